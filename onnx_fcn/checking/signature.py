"""Has a model the inputs and outputs that a conversion of the original has?"""

from __future__ import annotations

from collections.abc import Iterator

from onnx_fcn.errors import ModelError
from onnx_fcn.lifting.program import Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, static_dims
from onnx_fcn.model.inference import dims_in

__all__ = ["check_signature"]


def check_signature(lifted: Document, judged: Document, walk: Walk, hint: str) -> None:
    """Check that a model has the inputs of a conversion of the original, and its outputs.

    Args:
        lifted: the conversion.
        judged: the model.
        walk: of the conversion.
        hint: the end of a sentence about its outputs.

    Raises:
        ModelError: if it has other inputs, or lacks an output.
    """
    if wrong := next(_mismatches(lifted, judged, walk, hint), ""):
        raise ModelError(f"the second model is not a conversion of the first: {wrong}")


def _mismatches(lifted: Document, judged: Document, walk: Walk, hint: str) -> Iterator[str]:
    """What a model lacks, has differently or has beyond the inputs of a conversion of the original, as clauses."""
    ours, theirs, image = lifted.proto.graph, judged.proto.graph, walk.image
    for kind, wanted, found, end in (
        ("input", data_inputs(ours), data_inputs(theirs), ""),
        ("output", ours.output, theirs.output, hint),
    ):
        named = {value.name: value for value in found}
        for value in wanted:
            other = named.get(value.name)
            if other is None:
                yield f"it has no {kind} '{value.name}'{end}"
                continue
            wanted_dims, found_dims = dims_in(value.type.tensor_type), dims_in(other.type.tensor_type)
            if wanted_dims is None or found_dims is None:
                continue
            if len(wanted_dims) != len(found_dims):
                yield f"its {kind} '{value.name}' has {len(found_dims)} axes in place of {len(wanted_dims)}{end}"
            elif value.name == image.name and image.channels is not None:
                channels, right = static_dims(other)[image.channels], image.shape[image.channels]
                if channels not in (None, right):
                    yield f"its input '{value.name}' has {channels} channels in place of {right}"
    own = {value.name for value in data_inputs(ours)}
    yield from (f"it has another input, '{v.name}'" for v in data_inputs(theirs) if v.name not in own)
