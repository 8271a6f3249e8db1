"""A classifier that gets another head: its maps, its plain conversion, and the trained file.

The plain conversion is validated first, as `convert` does; its maps are what the head is trained on. The trained file
is the original's walk with the head in place of its outputs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx_fcn._types import Progress
from onnx_fcn.checking.checks import Validation
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.checking.heads import prove_head
from onnx_fcn.conversion.blaming import blaming_model
from onnx_fcn.conversion.comparing import accepted, compare
from onnx_fcn.errors import OptionError, UnsupportedModel
from onnx_fcn.geometry import Geometry
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.graphs import declared_as, static_dims
from onnx_fcn.model.metadata import metadata_of
from onnx_fcn.model.objects import Model
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.assemble import assemble
from onnx_fcn.walk.fields import geometry_of
from onnx_fcn.walk.forms import form
from onnx_fcn.walk.given import Given
from onnx_fcn.walk.heads import Head, map_at, with_head
from onnx_fcn.walk.images import Request, Size, size_of, written_size
from onnx_fcn.walk.lift import answering, lift
from onnx_fcn.walk.mixing import check_freed

__all__ = ["Network", "Written", "open_network", "output_of"]


#: How the hint of a node begins that cannot slide, and could run on windows.
RUN_ALONE = "it can only run on windows of"

#: The advice in its place.
BEFORE = (
    "a layer can be trained on the maps before: --output names a tensor to end the network at, such as the last map "
    "before this"
)

#: The map itself, at the network's own stride.
PLAIN = Asked()


@dataclass(frozen=True)
class Network:
    """A classifier, and its plain conversion.

    Attributes:
        given: the classifier.
        walk: the walk of its plain conversion.
        document: the plain conversion.
        request: how it was lifted.
        asked: what the trained file is asked for.
        seed: of the random images that it is compared on.
        progress: called with a few words before each step that may take seconds.
    """

    given: Given
    walk: Walk
    document: Document
    request: Request
    asked: Asked
    seed: int
    progress: Progress

    def map_at(self, name: str) -> Lifted:
        """The map of a tensor of the original.

        Raises:
            OptionError: if there is no such map.
        """
        return map_at(self.walk, name)

    def tensor(self, name: str) -> str:
        """The name of that map in the plain conversion."""
        found = self.map_at(name).map
        return self.walk.renamed.get(found, found)

    @property
    def comparison(self) -> Comparison:
        """The original beside its plain conversion."""
        return Comparison(self.given, self.walk, self.document, self.document, self.seed, self.progress)

    @property
    def has_fixed_batch(self) -> bool:
        """Does the file ask for several images at once? The trained one takes any number."""
        image = self.walk.image
        declared = static_dims(declared_as(self.given.selected.proto.graph, image.name))
        return image.batch is not None and (declared[image.batch] or 1) > 1

    def validate(self) -> Validation:
        """Compare the plain conversion with the original.

        Raises:
            ValidationError: if the numbers disagree.
        """
        return compare(self.comparison, None)

    def write(
        self,
        head: Head,
        output: str | os.PathLike[str] | None,
        trained: Mapping[str, Any],
        *,
        labels: Sequence[str] = (),
        preprocessing: Mapping[str, Any] | None = None,
        external_data: bool | None = None,
    ) -> Written:
        """Write the trained file, whole or not at all, after it has been compared with the original.

        Args:
            head: the trained layer.
            output: the file; None to keep the model in memory.
            trained: what the metadata tell about the training, beside what they need.
            labels: the names of the classes.
            preprocessing: how pixels become the input, as `Preprocessing.to_json` gives it.
            external_data: as of `convert`.

        Raises:
            ValidationError: if the numbers disagree.
            OptionError: if the file cannot be written.
        """
        original = self.given.selected
        document = original.copy()
        with blaming_model(self.given):
            walk = with_head(document, answering(document, lift(document, self.request), self.asked.as_map), head)
            form(walk, self.asked)
            document.commit(assemble(document, walk, dynamic_batch=self.has_fixed_batch))
            if self.has_fixed_batch:
                check_freed(document, original, walk)
        geometry = geometry_of(walk)
        nodes = [e.node.name for e in walk.slots[-1].emissions if e.node.op == "Conv"]
        metadata = metadata_of(
            geometry,
            self.given.whole,
            document,
            self.asked.to_json(),
            labels=labels,
            preprocessing=preprocessing,
            trained={"output": head.output, "tensors": head.tensors, "nodes": nodes, **trained},
        )
        document.commit(Edit(metadata=metadata))
        if output is None:
            proof = accepted(prove_head(self.comparison, walk, head, document), self.given)
            return Written(document, geometry, proof, document.size)
        with document.staged(output, external_data=external_data) as staged:
            proof = accepted(prove_head(self.comparison, walk, head, Document.open(staged.path)), self.given)
            original.check_unchanged()
            staged.commit()
        return Written(document, geometry, proof, staged.size)


@dataclass(frozen=True)
class Written:
    """A trained file.

    Attributes:
        document: the model.
        geometry: where its answers are.
        validation: its comparison with the original.
        size: bytes of the file.
    """

    document: Document
    geometry: Geometry
    validation: Validation
    size: int


def open_network(
    source: Model,
    *,
    input: str | None = None,
    input_size: Size | None = None,
    asked: Asked = PLAIN,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Network:
    """Open a classifier, and convert it in memory.

    Raises:
        ModelError: if it is not a usable model.
        UnsupportedModel: if it cannot become fully convolutional.
        OptionError: if an option does not fit it.
    """
    request = Request(input, size_of(input_size))
    given = Given.open(source, asked)
    document = given.selected.copy()
    with blaming_model(given), _advising_fit():
        walk = answering(document, lift(document, request), asked.as_map)
        if walk.options.apart is not None:
            raise OptionError(
                f"--output-stride {written_size(asked.output_strides)} is more than the network strides, and a trained "
                "layer has an answer at every cell of its maps: leave it out"
            )
        document.commit(assemble(document, walk))
    geometry = geometry_of(walk)
    entries = metadata_of(geometry, given.whole, document, {})
    document.commit(Edit(metadata=entries))
    return Network(given, walk, document, request, asked, seed, progress)


@contextlib.contextmanager
def _advising_fit() -> Iterator[None]:
    """Take what only conversion has out of the advice of an error: coarser strides, and windows that run alone."""
    try:
        yield
    except UnsupportedModel as error:
        causes = [replace(d, hint="") if d.hint.startswith(RUN_ALONE) else d for d in error.diagnostics]
        hint = BEFORE if causes != list(error.diagnostics) else ""
        raise UnsupportedModel(causes, error.advice or hint) from None
    except OptionError as error:
        raise OptionError(re.sub(r", or a multiple of \d+", "", str(error))) from None


def output_of(network: Network, tensors: Sequence[str]) -> str:
    """The name of the trained output: that of the original.

    It is another one if the layer reads what follows from the original's output, or if no rule replaced the node that
    makes it: such a node keeps the names of its outputs.
    """
    walk = network.walk
    (name,) = walk.outputs
    made = walk.makers.get(name)
    free = made is not None and walk.slots[made].replaced and not any(made in walk.upstream(t) for t in tensors)
    return name if free else walk.fresh(name)
