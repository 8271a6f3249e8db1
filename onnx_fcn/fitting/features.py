"""Features of pixels: the values of a network's maps there, linear between the middles of cells, constant beyond them.

The image is read crop by crop; a crop contains what the cells around its pixels depend on, as a tile does (see
`tiles.tiling`), so that features are those of one pass over the whole image, and memory does not grow with it. Parts of
the image without labels are not read.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.candidates import Feature
from onnx_fcn.fitting.network import Network
from onnx_fcn.images.image import Image
from onnx_fcn.lifting.lifted import Axis, lcm
from onnx_fcn.lifting.windows import windows_of
from onnx_fcn.model.sessions import extract
from onnx_fcn.running.network import Converted, converted_in, inference_session, lean_options, run_session
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tables import size_text
from onnx_fcn.walk.fields import sliding
from onnx_fcn.walk.heads import middles_of

__all__ = ["TILE", "Extractor"]


#: Pixels of a crop along each axis, without what its cells see around it, by the number of axes.
TILE = {1: 1 << 20, 2: 1024, 3: 96}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cells:
    """One map in the session: where its cells are, and how it lies.

    Attributes:
        feature: the map.
        axes: its axes along the image, in the image's order; contracted if the layer covers the window.
        order: of each axis of the image, the spatial axis of the tensor.
        middles: the pixel in the middle of cell 0, along each axis.
    """

    feature: Feature
    axes: tuple[Axis, ...]
    order: tuple[int, ...]
    middles: tuple[Fraction, ...]

    @classmethod
    def of(cls, feature: Feature, native: tuple[int, ...]) -> Cells:
        order = tuple(map(feature.fact.space.index, sliding(feature.fact)))
        middles = middles_of(feature.fact, native)
        return cls(feature, feature.axes, order, tuple(middles[k] for k in order))

    def places(self, axis: int, pixels: Array, size: int) -> Array:
        """Positions of pixels between the middles of cells, in cells."""
        places: Array = np.clip(self._places(axis, pixels), 0, self.axes[axis].count(size) - 1)
        return places

    def beyond(self, axis: int, pixels: Array, size: int) -> Array:
        """Whether pixels are more than half a stride beyond the middles of the outermost cells."""
        places = self._places(axis, pixels)
        outside: Array = (places < -0.5) | (places > self.axes[axis].count(size) - 0.5)
        return outside

    def _places(self, axis: int, pixels: Array) -> Array:
        a = self.axes[axis]
        places: Array = (pixels - float(self.middles[axis])) / float(a.stride)
        return places

    def values(self, found: Array) -> Array:
        """A tensor (1, C, *space) as (features, *cells)."""
        fact, values = self.feature.fact, found[0]
        if self.feature.covers:
            rank = len(fact.space)
            windows = windows_of(fact, found)[0]
            positions = windows.shape[1 : 1 + rank]
            values = np.moveaxis(windows, range(1 + rank, 1 + 2 * rank), range(1, 1 + rank)).reshape(-1, *positions)
        index = tuple(slice(None) if k in self.order else 0 for k in range(len(fact.space)))
        kept = sorted(self.order)
        lying: Array = values[(slice(None), *index)].transpose([0, *(1 + kept.index(k) for k in self.order)])
        return lying


class Extractor:
    """Runs the trunk of a network for the maps that candidates read."""

    def __init__(
        self, network: Network, features: Sequence[Feature], tile: int | None = None, providers: Sequence[Any] = ()
    ) -> None:
        """Open a session.

        Raises:
            ModelError: if onnxruntime does not load the model.
            OptionError: if it has no such provider, or the network reads more than an image.
        """
        self.converted: Converted = converted_in(network.document.proto, network.document.proto)
        if self.converted.others:
            raise OptionError(f"the model takes more than an image: {', '.join(map(repr, self.converted.others))}")
        native = network.walk.image.size
        self._native, self._held = native, network.walk.held
        self._sources = [Cells.of(f, native) for f in features]
        self._tile = tile or TILE[len(native)]
        names = list(dict.fromkeys(network.tensor(f.tensor) for f in features))
        self._index = [names.index(network.tensor(f.tensor)) for f in features]
        model = extract(network.document.proto, [network.walk.image.name], names)
        serialized, folder = network.document.session_model(model)
        self._session = inference_session(serialized, providers, lean_options(folder))
        self._image = network.walk.image.name
        self._period = [
            functools.reduce(lcm, (s.axes[k].window_stride for s in self._sources)).numerator
            for k in range(len(native))
        ]

    def __call__(
        self, image: Image, formula: Preprocessing, positions: Array, progress: Progress | None = None
    ) -> list[Array]:
        """The features of pixels (n, rank) of an image: (n, numbers) for each map, in float32.

        Raises:
            OptionError: if the image is smaller than the window.
            ModelError: if onnxruntime does not run the model.
        """
        if any(n < m for n, m in zip(image.size, self._native)):
            raise OptionError(
                f"{image.name} has {size_text(image.size)} pixels, and the window of the network is "
                f"{size_text(self._native)}: images must not be smaller"
            )
        found = [np.empty((len(positions), s.feature.numbers), np.float32) for s in self._sources]
        groups = list(self._groups(positions))
        for done, rows in enumerate(groups):
            box = tuple(self._stretch(image.size, k, positions[rows, k]) for k in range(len(image.size)))
            crop = formula(image.read(box))[None]
            if self.converted.batch not in (None, 1):
                crop = np.repeat(crop, self.converted.batch, 0)
            maps = run_session(self._session, None, {self._image: self.converted.arrange(crop)}, _crop_size(box))
            for source, index, values in zip(self._sources, self._index, found):
                begins = [int(b.start / a.stride) for b, a in zip(box, source.axes)]
                places = [
                    source.places(k, positions[rows, k], image.size[k]) - begins[k] for k in range(len(image.size))
                ]
                values[rows] = _interpolated(source.values(maps[index]), places)
            if progress is not None:
                progress(done + 1, len(groups))
        return found

    def beyond(self, feature: Feature, size: Sequence[int], positions: Array) -> int:
        """The number of pixels (n, rank) of an image beyond the outermost cells of a map, whose features they get."""
        source = Cells.of(feature, self._native)
        slides = [k for k in range(len(size)) if k not in self._held]  # along another axis a cell is about all pixels
        outside = [source.beyond(k, positions[:, k], size[k]) for k in slides]
        return int(np.logical_or.reduce(outside).sum())

    def _groups(self, positions: Array) -> Iterator[Array]:
        """The rows of positions on the same tile."""
        if not len(positions):
            return
        tiles = positions // self._tile
        _, inverse = np.unique(tiles, axis=0, return_inverse=True)
        order = np.argsort(inverse.reshape(-1), kind="stable")
        yield from np.split(order, np.cumsum(np.bincount(inverse.reshape(-1)))[:-1])

    def _stretch(self, size: Sequence[int], axis: int, pixels: Array) -> slice:
        """The stretch of an axis of the image that the cells around these pixels depend on."""
        n, period, native = size[axis], self._period[axis], self._native[axis]
        ends = np.array([pixels.min(), pixels.max()])
        cells = [(s.axes[axis], *_around(s.places(axis, ends, n))) for s in self._sources]
        least = min((first - a.inner.front - _margin(a)) * a.stride for a, first, _ in cells)
        begin = max(min(int(least // period), (n - native) // period), 0) * period
        end = begin + native
        for a, _, last in cells:
            end = max(end, begin + a.inner.behind.least(last + 1 - int(Fraction(begin) / a.stride) + _margin(a)))
        return slice(begin, min(end, n))


def _crop_size(box: Sequence[slice]) -> list[int]:
    return [s.stop - s.start for s in box]


def _around(places: Array) -> tuple[int, int]:
    """The first and the last cell that values at these places are computed from."""
    return int(np.floor(places[0])), int(np.ceil(places[1]))


def _margin(axis: Axis) -> int:
    return math.ceil(axis.mirror / axis.stride)


def _interpolated(values: Array, places: Sequence[Array]) -> Array:
    """Values at places: (features, *cells) → (n, features)."""
    before = [np.minimum(p.astype(np.int64), n - 1) for p, n in zip(places, values.shape[1:])]
    behind = [np.minimum(b + 1, n - 1) for b, n in zip(before, values.shape[1:])]
    shares = [(p - b).astype(np.float32) for p, b in zip(places, before)]
    result: Array = np.zeros((len(places[0]), len(values)), np.float32)
    for corner in itertools.product((0, 1), repeat=len(places)):
        share = functools.reduce(np.multiply, [s if far else 1 - s for far, s in zip(corner, shares)])
        if not share.any():
            continue
        index = tuple(b if far else a for far, a, b in zip(corner, before, behind))
        result += values[(slice(None), *index)].T.astype(np.float32) * share[:, None]
    return result
