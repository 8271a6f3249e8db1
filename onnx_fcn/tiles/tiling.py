"""Exact tiles: which pixels of a large image give which cells of its map, as if the whole image were run at once.

Each axis of the image is tiled separately. A crop begins at a multiple of every stride in the network, so that each of
its maps loses whole cells at the front: cell i of the image is cell i - begin/stride of the crop. The stride of the
answers is such a multiple, unless coarser maps were interpolated (`Answers.period`). The ends of the crop are
artificial: there the network pads although the image continues, or drops cells although more follow. So a tile keeps
only the **inner** cells of its crop (`geometry.Inner`), which do not depend on pixels outside the crop; these are
derived operator by operator. Where the image itself ends the crop ends with it, and the network does there what it does
in one pass.

A tile costs what its crop costs: for tiles of t pixels about (1 + (size - stride)/t) times as much along each axis,
where size is that of an answer's receptive field.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnx_fcn.errors import ModelError, OptionError
from onnx_fcn.geometry import SIZE_NAMES, Answers, Field, Inner

__all__ = ["Cut", "Tile", "Tiling", "approximate_answers", "tiling_of"]


Box = tuple[slice, ...]


@dataclass(frozen=True)
class Cut:
    """A stretch of cells along one axis.

    Attributes:
        cells: the cells, in the map of the whole image.
        pixels: the crop that they are computed from.
        kept: the same cells, in the map of that crop.
    """

    cells: slice
    pixels: slice
    kept: slice


@dataclass(frozen=True)
class Tile:
    """A box of cells: its number, and one slice per axis of the image for each field of `Cut`."""

    number: int
    cells: Box
    pixels: Box
    kept: Box

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(s.stop - s.start for s in self.cells)

    @property
    def crop(self) -> tuple[int, ...]:
        """Pixels of the crop along each axis."""
        return tuple(s.stop - s.start for s in self.pixels)


@dataclass(frozen=True)
class Tiling:
    """All tiles of an image, row by row.

    Attributes:
        size: size of the image, in pixels.
        shape: shape of its map, in cells.
        axes: the cuts along each axis.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[tuple[Cut, ...], ...]

    @property
    def chunk(self) -> tuple[int, ...]:
        """Cells of a tile along each axis; the last one may have fewer."""
        return tuple(cuts[0].cells.stop for cuts in self.axes)

    @property
    def overhead(self) -> float:
        """Extra pixels of the crops over the image, as a share of the image's pixels."""
        crops = (sum(c.pixels.stop - c.pixels.start for c in cuts) for cuts in self.axes)
        return int(math.prod(crops)) / math.prod(self.size) - 1

    @property
    def largest_crop(self) -> Tile:
        """A tile that needs as much memory as any."""
        cuts = [max(axis, key=lambda c: c.pixels.stop - c.pixels.start) for axis in self.axes]
        return _tile(0, cuts)

    def __len__(self) -> int:
        return math.prod(map(len, self.axes))

    def __iter__(self) -> Iterator[Tile]:
        for number, cuts in enumerate(itertools.product(*self.axes)):
            yield _tile(number, cuts)


def _tile(number: int, cuts: Sequence[Cut]) -> Tile:
    cells, pixels, kept = zip(*((c.cells, c.pixels, c.kept) for c in cuts))
    return Tile(number, cells, pixels, kept)


def tiling_of(
    answers: Answers, native: Sequence[int], size: Sequence[int], tile: int, only: Sequence[int | None] = ()
) -> Tiling:
    """Exact tiles of an image.

    Args:
        answers: the geometry of the output.
        native: the input size of the original network: no crop is smaller, unless the image is.
        size: size of the image, in pixels.
        tile: pixels from tile to tile along each axis, rounded down to whole strides, but at least one stride.
        only: for each axis the only size of a crop, in pixels; None for any size, and empty if all may have any.

    Raises:
        OptionError: if the image is too small, or an answer depends on all of it; if crops of the only size cannot
            cover it.
        ModelError: if the geometry contradicts itself.
    """
    grid = answers.grid(*size)
    if not all(f.is_local for f in answers.field):
        raise OptionError(f"tiles cannot be exact: {answers.reason}")
    crops = only or [None] * len(size)
    axes = tuple(
        _cuts(answers, k, native[k], n, tile) if crop is None else _even_cuts(answers, k, n, tile, crop)
        for k, (n, crop) in enumerate(zip(size, crops))
    )
    return Tiling(grid.size, grid.shape, axes)


def _cuts(answers: Answers, axis: int, native: int, pixels: int, tile: int) -> tuple[Cut, ...]:
    """The cuts of an axis of this many pixels."""
    count, inner = answers.count[axis], answers.inner[axis]
    stride, step = _steps(answers, axis)
    cells = count(pixels)
    if answers.held and answers.held[axis] is not None:  # a crop has this size, too
        return (Cut(slice(0, cells), slice(0, pixels), slice(0, cells)),)
    chunk = max(tile // stride, 1)
    margin = math.ceil(answers.mirror[axis] / stride) if answers.mirror else 0
    cuts = []
    for first in range(0, cells, chunk):
        behind = min(first + chunk, cells)
        shift = max(min(first - inner.front - margin, (pixels - native) // stride), 0) // step * step
        kept = slice(first - shift, behind - shift)
        least = max(inner.behind.least(kept.stop + margin), native)
        begin = shift * stride
        end = min(begin + -(-least // stride) * stride, pixels)
        if count(pixels - begin) != cells - shift:
            raise ModelError("the geometry in the metadata contradicts itself: convert the original again")
        cuts.append(Cut(slice(first, behind), slice(begin, end), kept))
    return tuple(cuts)


def _steps(answers: Answers, axis: int) -> tuple[int, int]:
    """(pixels between cells, cells by which a crop may begin later).

    Raises:
        OptionError: if cells are a fraction of a pixel apart.
    """
    stride = int(answers.stride[axis])
    if stride != answers.stride[axis]:
        raise OptionError(f"tiles cannot be exact: answers are {float(answers.stride[axis]):g} pixels apart")
    return stride, int(answers.period[axis]) // stride if answers.period else 1


def _even_cuts(answers: Answers, axis: int, pixels: int, tile: int, crop: int) -> tuple[Cut, ...]:
    """The cuts of an axis of this many pixels by crops of one size: the tile, or as much of it as they can cover.

    Raises:
        OptionError: if they cannot cover the image.
    """
    count, inner = answers.count[axis], answers.inner[axis]
    stride, step = _steps(answers, axis)
    cells, period = count(pixels), stride * step
    margin = math.ceil(answers.mirror[axis] / stride) if answers.mirror else 0
    latest = (pixels - crop) // period * period

    def cut(first: int, behind: int) -> Cut | None:
        """The crop that gives these cells; None if there is none."""
        begin = min(max(first - inner.front - margin, 0) // step * period, latest)
        ends = begin + crop == pixels
        reach = (count(crop) if ends else inner.behind(crop) - margin) + begin // stride
        if begin < 0 or behind > reach or (begin and first - begin // stride < inner.front + margin):
            return None
        shift = begin // stride
        return Cut(slice(first, behind), slice(begin, begin + crop), slice(first - shift, behind - shift))

    for chunk in range(max(min(tile // stride, count(crop)), 1), 0, -1):
        cuts = [cut(first, min(first + chunk, cells)) for first in range(0, cells, chunk)]
        found = [each for each in cuts if each is not None]
        if len(found) == len(cuts):
            return tuple(found)
    if pixels > crop and (pixels - crop) % period == 0:
        what_next = "an answer sees too much around it: convert the original with a larger --fix-size"
    elif pixels < crop:
        what_next = f"add pixels, so that there are {crop}, or convert the original with a smaller --fix-size"
    else:
        what_next = f"add pixels, or leave some out, so that there are {crop} plus a multiple of {period}"
    raise OptionError(
        f"the file takes images with a {SIZE_NAMES[len(answers.count)][axis]} of {crop} pixels only, and crops of that "
        f"size cannot cover {pixels}: {what_next}"
    )


def approximate_answers(answers: Answers) -> Answers:
    """The same answers as if each depended only on its window and as much again around it.

    For networks whose answers depend on the whole image: in a tile they depend on the tile.
    """
    seen = zip(answers.field, answers.window, answers.offset, answers.stride)
    field = tuple(f if f.is_local else Field(3 * w, s, o - w) for f, w, o, s in seen)
    around = [math.ceil(w / s) for w, s in zip(answers.window, answers.stride)]
    inner = tuple(Inner(n, count.then(1, -n, 1)) for n, count in zip(around, answers.count))
    return replace(answers, field=field, inner=inner)
