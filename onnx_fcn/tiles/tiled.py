"""A converted file that is run tile by tile: whether its tiles can be exact, and the session that runs them."""

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
from onnx_fcn.running.network import Converted, converted_in, lean_options
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tiles.tiling import Tiling, approximate_answers, tiling_of

__all__ = ["Run", "Tiled", "open_tiled"]


#: The most tiles along an axis: they are listed in memory.
MOST_TILES = 1 << 20

#: Crops (C, *space) of one size → their maps (N, K, *cells).
Run = Callable[[Sequence[Array]], Array]


@dataclass(frozen=True)
class Tiled:
    """A converted file, and what its tiles depend on.

    Attributes:
        path: the file.
        network: its input, output and geometry.
        obstacle: why tiles cannot be exact; empty if they can.
    """

    path: str
    network: Converted
    obstacle: str

    def tiling(self, size: Sequence[int], tile: int, *, approximate: bool = False) -> Tiling:
        """The tiles of an image of this size.

        Raises:
            OptionError: if they cannot be exact and `approximate` is not set; if the image is too small; if the file
                does not take crops of these sizes.
        """
        if self.obstacle and not approximate:
            raise OptionError(f"tiles cannot be exact: {self.obstacle}; --approximate uses tiles nevertheless")
        if max(size) > MOST_TILES * tile:
            raise OptionError(
                f"an image of {'×'.join(map(str, size))} pixels has more than {MOST_TILES} tiles of {tile} along "
                "an axis: if the size is right, give a larger --tile"
            )
        answers = approximate_answers(self.network.answers) if self.obstacle else self.network.answers
        tiling = tiling_of(answers, self.network.native, size, tile, self.network.fixed)
        lengths = [{cut.pixels.stop - cut.pixels.start for cut in cuts} for cuts in tiling.axes]
        for extreme in (min, max):
            self.network.check_size([extreme(several) for several in lengths])
        return tiling

    def runner(self, preprocess: Preprocessing, providers: Sequence[Any] | None = None, *, arena: bool = False) -> Run:
        """A session that runs crops; only its weights are kept between runs unless there is an `arena`.

        Raises:
            ModelError: if onnxruntime does not load the model; later, when it does not run it.
            OptionError: if onnxruntime has no such provider.
        """
        session = self.network.session(providers, lean_options(arena=arena))
        return lambda crops: session.run(np.stack([preprocess(crop) for crop in crops]))

    def activations(self, crop: Sequence[int], batch: int) -> int | None:
        """Peak bytes of the tensors alive at one node in a run on crops of this size; None if unknown."""
        sizes = dict(zip(AXES[self.network.rank], crop)) | {"N": batch, "C": self.network.channels}
        shape = [sizes[letter] for letter in self.network.layout]
        return activations_at(self._skeleton, self.network.image, shape)

    @functools.cached_property
    def _skeleton(self) -> ModelProto:
        """The model without its weights; not a field, since workers that only run tiles do not need it."""
        return storage.read(self.path)[0]

    def digest(self) -> str:
        """SHA-256 of the file and its external data: identifies the model."""
        _, store = storage.read(self.path)
        digest = hashlib.sha256()
        for location in sorted(store.sources):
            digest.update(store.sources[location].data)
        return digest.hexdigest()


def open_tiled(path: str | os.PathLike[str], output: str | None = None) -> Tiled:
    """Read a converted file for tiling. Weights are not read.

    Raises:
        ModelError: if onnx_fcn did not convert the model, or its graph was changed since.
        OptionError: if there is no such output, or it is not a map; if the model reads more than an image.
    """
    model, _ = storage.read(path)
    network = converted_in(model, os.fspath(path), output)
    if network.others:
        raise OptionError(f"the model takes more than an image: {', '.join(map(repr, network.others))}")
    return Tiled(os.fspath(path), network, _obstacle(model.graph, network.answers))


def _obstacle(graph: GraphProto, answers: Answers) -> str:
    """Why tiles cannot be exact; empty if they can."""
    if answers.exactness == "context":
        return answers.reason
    for node in graph.node:
        name = node.name or next(filter(None, node.output), node.op_type)
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[3]:
            return f"'{name}' resizes a map by a factor that depends on the size of the image"
        if _padding(node) == "wrap":
            return f"'{name}' pads with pixels from the other end of the image"
    return ""


def _padding(node: onnx.NodeProto) -> str:
    """The mode of a Pad; empty for other operators."""
    if node.op_type != "Pad":
        return ""
    return next((a.s.decode() for a in node.attribute if a.name == "mode"), "constant")
