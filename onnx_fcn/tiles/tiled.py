"""A converted file that is run tile by tile: whether its tiles can be exact, and what they are run with."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.geometry import AXES, Answers
from onnx_fcn.model import storage
from onnx_fcn.model.cost import activations_at
from onnx_fcn.running.network import Converted, converted_in
from onnx_fcn.running.preprocess import Preprocessing, for_stored
from onnx_fcn.tiles.tiling import Tiling, approximate_answers, tiling_of

__all__ = ["Run", "Tiled", "open_tiled"]


#: Tiles along an axis, of which a list is made.
MOST_TILES = 1 << 20

#: Crops (C, *space) of one size -> their maps (N, K, *cells).
Run = Callable[[Sequence[Array]], Array]


@dataclass(frozen=True)
class Tiled:
    """A converted file, and what its tiles depend on.

    Attributes:
        path: the file.
        network: what it says of itself.
        obstacle: why tiles cannot be exact; empty where they can.
    """

    path: str
    network: Converted
    obstacle: str

    def tiling(self, size: Sequence[int], tile: int, *, approximate: bool = False) -> Tiling:
        """The tiles of an image of that size.

        Raises:
            OptionError: they cannot be exact, and approximate ones were not asked for; the image is too small; the file
                takes no crops of these sizes.
        """
        if self.obstacle and not approximate:
            raise OptionError(f"tiles cannot be exact: {self.obstacle}; --approximate takes tiles nevertheless")
        if max(size) > MOST_TILES * tile:
            raise OptionError(
                f"an image of {'×'.join(map(str, size))} pixels has more than {MOST_TILES} tiles of {tile} along "
                "an axis: give a larger --tile, if it is that large"
            )
        answers = approximate_answers(self.network.answers) if self.obstacle else self.network.answers
        tiling = tiling_of(answers, self.network.native, size, tile)
        lengths = [{cut.pixels.stop - cut.pixels.start for cut in cuts} for cuts in tiling.axes]
        for extreme in (min, max):
            self.network.check_size([extreme(several) for several in lengths])
        return tiling

    def preprocessing(
        self, preset: str | Preprocessing | None, dtype: np.dtype[Any], white: float, name: str, **numbers: Any
    ) -> Preprocessing:
        """What becomes of pixels of that type and full scale, in an image of that name.

        Raises:
            OptionError: they cannot become what the network reads.
        """
        network = self.network
        if dtype.kind not in "uif":
            raise OptionError(f"{name} holds values of type {dtype}, which are not pixels")
        reads_integers = network.image_type.kind != "f"
        preprocess = for_stored(preset, dtype, white, network.rank, network.channels, reads_integers, **numbers)
        preprocess.check(network.channels)
        if reads_integers and not preprocess.keeps_values:
            raise OptionError(f"the model takes pixels of type {network.image_type}, so they cannot be scaled")
        if reads_integers and not np.can_cast(dtype, network.image_type):
            raise OptionError(f"{name} has pixels of type {dtype}, and the model takes {network.image_type}")
        return preprocess

    def runner(self, preprocess: Preprocessing, providers: Sequence[Any] | None = None) -> Run:
        """A session.

        Nothing is kept between runs but the weights: no arena, which would keep the largest size that it ever had.

        Raises:
            ModelError: onnxruntime does not load it, and later: does not run it.
            OptionError: onnxruntime has no such provider.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        session = self.network.session(providers, options)
        return lambda crops: session.run(np.stack([preprocess(crop) for crop in crops]))

    def activations(self, crop: Sequence[int], batch: int) -> int | None:
        """Bytes of the tensors that a run on crops of that size has at the worst node; None where that is not known."""
        sizes = dict(zip(AXES[self.network.rank], crop)) | {"N": batch, "C": self.network.channels}
        shape = [sizes[letter] for letter in self.network.layout]
        return activations_at(self._skeleton, self.network.image, shape)

    @functools.cached_property
    def _skeleton(self) -> ModelProto:
        """The model without its weights; not a field, since workers that only run tiles have no use for it."""
        return storage.read(self.path)[0]

    def digest(self) -> str:
        """SHA-256 of the file and its external data: what tells this model from every other one."""
        _, store = storage.read(self.path)
        digest = hashlib.sha256()
        for location in sorted(store.sources):
            digest.update(store.sources[location].data)
        return digest.hexdigest()


def open_tiled(path: str | os.PathLike[str], output: str | None = None) -> Tiled:
    """Read what a converted file says of itself. Weights are not read.

    Raises:
        ModelError: it is no model that onnx_fcn converted, or its graph was changed since.
        OptionError: there is no such output, or it is no map; the model reads more than an image.
    """
    model, _ = storage.read(path)
    network = converted_in(model, os.fspath(path), output)
    if network.others:
        raise OptionError(f"the model takes more than an image: {', '.join(map(repr, network.others))}")
    return Tiled(os.fspath(path), network, _obstacle(model.graph, network.answers))


def _obstacle(graph: GraphProto, answers: Answers) -> str:
    """Why tiles cannot be exact."""
    if answers.exactness == "context":
        return answers.reason
    for node in graph.node:
        name = node.name or next(filter(None, node.output), node.op_type)
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[3]:
            return f"'{name}' resizes a map by as much as the size of the image says"
        if _padding(node) == "wrap":
            return f"'{name}' pads with what lies at the other end of the image"
    return ""


def _padding(node: onnx.NodeProto) -> str:
    """The mode of a Pad; empty for other operators."""
    if node.op_type != "Pad":
        return ""
    return next((a.s.decode() for a in node.attribute if a.name == "mode"), "constant")
