"""Points, lines, areas and runs, and the pixels that they cover, by region.

Places are continuous coordinates along the axes of the image, such as (row, column). Pixel k covers [k, k+1), and its
centre is k + 1/2.

- A point covers the pixel that contains it.
- A line covers, for each row that it crosses, the pixel that it passes at the row's centre; for each column, if it is
  flatter than a diagonal. Its corners and ends cover their pixels, too. So it is one pixel wide.
- An area covers the pixels whose centres are inside: a ray from there to the left crosses its rings an odd number of
  times, so rings inside are holes. Areas that share an edge cover each pixel on it once.
- Runs (COCO's run-length encoding) cover every second stretch of the pixels, counted down the columns.

Which pixels are covered does not depend on the box that is asked for.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.images.stored import Box

__all__ = ["Area", "Line", "Points", "Runs", "Shape"]


#: The most crossings that are computed at once.
CROSSINGS = 1 << 20


class Shape(abc.ABC):
    """Some pixels with one label, or, for points, with one each.

    Labels are indices of the list of codes that `paint` is given; -1 is its last one.
    """

    @abc.abstractmethod
    def bounds(self) -> Array:
        """The pixels that may be covered, (parts, axes, 2): the first one, and the one behind the last."""

    @abc.abstractmethod
    def paint(self, target: Array, box: Box, codes: Array) -> None:
        """Write the codes of the covered pixels into the part of the image that is a box."""

    @abc.abstractmethod
    def scaled(self, factors: Array) -> Shape:
        """The shape in an image that is smaller or larger by a factor along each axis."""

    @abc.abstractmethod
    def labels(self) -> Array:
        """The labels that occur."""


@dataclass(frozen=True)
class Points(Shape):
    """Points at `places` (count, axes), with a label each; of several in one pixel the last counts."""

    places: Array
    marks: Array

    def bounds(self) -> Array:
        pixels = np.floor(self.places).astype(np.int64)
        return np.stack([pixels, pixels + 1], axis=-1)

    def paint(self, target: Array, box: Box, codes: Array) -> None:
        _paint_places(target, box, self.places, codes[self.marks])

    def scaled(self, factors: Array) -> Points:
        return Points(self.places * factors, self.marks)

    def labels(self) -> Array:
        return np.unique(self.marks)


@dataclass(frozen=True)
class Line(Shape):
    """A line through `places` (count, 2)."""

    places: Array
    label: int

    def bounds(self) -> Array:
        return np.stack([np.floor(self.places.min(0)), np.floor(self.places.max(0)) + 1], -1).astype(np.int64)[None]

    def paint(self, target: Array, box: Box, codes: Array) -> None:
        code = codes[self.label]
        _paint_places(target, box, self.places, np.full(len(self.places), code))
        starts, ends = self.places[:-1], self.places[1:]
        along = np.abs(ends - starts).argmax(axis=1)
        for axis in (0, 1):
            edges = _upward(starts[along == axis], ends[along == axis], axis)
            for pixel, low, high in _crossings(*edges, axis, box[axis]):
                share = (pixel + 0.5 - low[:, axis]) / (high - low)[:, axis]
                passed = low + share[:, None] * (high - low)
                passed[:, axis] = pixel
                _paint_places(target, box, passed, np.full(len(passed), code))

    def scaled(self, factors: Array) -> Line:
        return Line(self.places * factors, self.label)

    def labels(self) -> Array:
        return np.array([self.label])


@dataclass(frozen=True)
class Area(Shape):
    """The inside of rings, given by their edges (count, 2), from the end with the lower row to the other."""

    low: Array
    high: Array
    label: int

    @classmethod
    def of(cls, rings: Sequence[Array], label: int) -> Area:
        """The area in rings (count, 2), closed or not; those inside others are holes."""
        starts = np.concatenate(rings)
        ends = np.concatenate([np.concatenate([ring[1:], ring[:1]]) for ring in rings])
        return cls(*_upward(starts, ends, 0), label)

    def bounds(self) -> Array:
        return self._bounds[None]

    @functools.cached_property
    def _bounds(self) -> Array:
        columns = np.concatenate([self.low[:, 1], self.high[:, 1]])
        return _first_centre(np.array([[self.low[:, 0].min(), self.high[:, 0].max()], [columns.min(), columns.max()]]))

    def paint(self, target: Array, box: Box, codes: Array) -> None:
        limits = [(max(a, s.start), min(b, s.stop)) for (a, b), s in zip(self._bounds.tolist(), box)]
        (top, bottom), (left, right) = limits
        if top >= bottom or left >= right:
            return
        width = right - left
        turns = np.zeros((bottom - top, width + 1), np.uint8)  # parity is all that counts, so it may overflow
        for row, low, high in _crossings(self.low, self.high, 0, slice(top, bottom)):
            column = np.minimum(np.maximum(_crossed(row, low, high) - left, 0), width)
            np.add.at(turns, (row - top, column), np.uint8(1))
        inside = np.cumsum(turns[:, :width], axis=1, dtype=np.uint8) & np.uint8(1)
        part = target[top - box[0].start : bottom - box[0].start, left - box[1].start : right - box[1].start]
        part[inside.view(bool)] = codes[self.label]

    def scaled(self, factors: Array) -> Area:
        return Area(self.low * factors, self.high * factors, self.label)

    def labels(self) -> Array:
        return np.array([self.label])


@dataclass(frozen=True)
class Runs(Shape):
    """Runs of pixels down the columns of an image, by turns outside and inside.

    Attributes:
        stops: the pixel behind each run; the first run is outside.
        height: rows of that image.
        label: the label of the pixels inside.
        factors: size of the image that is labelled, as a multiple of that one along each axis.
    """

    stops: Array
    height: int
    label: int
    factors: tuple[float, float] = (1.0, 1.0)

    def bounds(self) -> Array:
        first, last = self.stops[:-1:2], self.stops[1::2] - 1
        full = last >= first
        if not full.any():
            return np.zeros((1, 2, 2), np.int64)
        first, last = first[full], last[full]
        columns = [first[0] // self.height, last[-1] // self.height + 1]
        rows = [0, self.height]
        if (first // self.height == last // self.height).all():
            rows = [(first % self.height).min(), (last % self.height).max() + 1]
        limits = np.array([rows, columns]) * np.array(self.factors)[:, None]
        return np.stack([np.floor(limits[:, 0]), np.ceil(limits[:, 1])], axis=-1).astype(np.int64)[None]

    def paint(self, target: Array, box: Box, codes: Array) -> None:
        limits = [slice(max(a, s.start), min(b, s.stop)) for (a, b), s in zip(self.bounds()[0].tolist(), box)]
        if any(s.start >= s.stop for s in limits):
            return
        row, column = (
            np.floor((np.arange(s.start, s.stop) + 0.5) / factor).astype(np.int64)
            for s, factor in zip(limits, self.factors)
        )
        run = np.searchsorted(self.stops, column * self.height + row[:, None], side="right")
        inside = run % 2 == 1
        part = target[tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(limits, box))]
        part[inside] = codes[self.label]

    def scaled(self, factors: Array) -> Runs:
        rows, columns = (a * float(b) for a, b in zip(self.factors, factors))
        return replace(self, factors=(rows, columns))

    def labels(self) -> Array:
        return np.array([self.label])


def _paint_places(target: Array, box: Box, places: Array, codes: Array) -> None:
    """Write codes (count,) into the pixels that contain places (count, axes), if these are in the box."""
    pixels = np.floor(places).astype(np.int64) - [part.start for part in box]
    within = ((pixels >= 0) & (pixels < target.shape)).all(axis=1)
    target[tuple(pixels[within].T)] = codes[within]


def _first_centre(limits: Array) -> Array:
    """The first pixel whose centre is not below a limit."""
    first: Array = np.ceil(limits - 0.5).astype(np.int64)
    return first


def _crossed(rows: Array, low: Array, high: Array) -> Array:
    """The first column whose centre is not left of where an edge crosses the centre line of a row.

    The quotient is rounded, so the column is compared by products, which are exact for moderate coordinates.
    """
    height, width = (high - low).T
    down = rows + 0.5 - low[:, 0]
    column = _first_centre(low[:, 1] + down / height * width)
    for nearby in (column - 1, column):
        right = (nearby + 0.5 - low[:, 1]) * height >= down * width
        column = np.where(right, np.minimum(column, nearby), nearby + 1)
    return column


def _upward(starts: Array, ends: Array, axis: int) -> tuple[Array, Array]:
    """(lower end, upper end) of edges along an axis: the same for both directions, so areas that share one fit."""
    forward = (starts[:, axis] <= ends[:, axis])[:, None]
    return np.where(forward, starts, ends), np.where(forward, ends, starts)


def _crossings(low: Array, high: Array, axis: int, part: slice) -> Iterator[tuple[Array, Array, Array]]:
    """Which edges cross the centre lines of the pixels along an axis.

    Args:
        low, high: the lower and upper ends of the edges along the axis, (count, 2).
        axis: the axis along which the centre lines follow each other.
        part: the pixels along this axis whose lines are asked for.

    Yields:
        the pixel, and the ends of the edge, of some crossings.
    """
    first = np.maximum(_first_centre(low[:, axis]), part.start)
    counts = np.maximum(np.minimum(_first_centre(high[:, axis]), part.stop) - first, 0)
    stops = np.cumsum(counts)
    begin = before = 0
    while begin < len(counts):
        behind = max(int(np.searchsorted(stops, before + CROSSINGS, side="right")), begin + 1)
        edge = np.repeat(np.arange(begin, behind), counts[begin:behind])
        pixel = np.arange(before, before + len(edge)) + (first - stops + counts)[edge]
        yield pixel, low[edge], high[edge]
        begin, before = behind, int(stops[behind - 1])
