"""What a cell means: the pixels that it is computed from, the number of cells, and the window of each answer.

`Field`, `Count` and `Inner` are about one axis of the image.

A cell i of a map sees the pixels

    start + i·stride  …  start + i·stride + size - 1

its receptive **field**. Sliding a kernel of k taps, stride s, dilation d and b cells of padding at the start gives

    size' = size + (k - 1)·d·stride        stride' = stride·s        start' = start - b·stride

and where branches meet the field is the union of their fields (Araujo, Norris, Sim, "Computing Receptive Fields of
Convolutional Neural Networks", Distill 2019, equations 2 to 4; the padding there is -start).

A map has ⌊(n + add)/divide⌋ cells for an image of n pixels, for any operators that slide and any rounding, since

    ⌊(⌊(n + a)/b⌋ + c)/d⌋ = ⌊(n + a + b·c)/(b·d)⌋

so a whole network is one such **count**, and its formula can be written down: `(height - 224) // 32 + 1`.

What is beyond a stretch of the image (padding, or more of the image) reaches some cells at either end of a map. The
others, the **inner** cells, do not depend on how the image continues. They are counted operator by operator, as cells
are, and this makes tiles exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from onnx_fcn._types import Array, record
from onnx_fcn.errors import OptionError

__all__ = [
    "AXES",
    "KEEP_SIZE",
    "SIZE_NAMES",
    "Answers",
    "Count",
    "Field",
    "Geometry",
    "Grid",
    "Inner",
    "Number",
    "Steps",
    "Taps",
    "interpolate",
    "ratio",
]


Number = int | float | Fraction

#: Names of the sizes of images with 1, 2 and 3 spatial axes.
SIZE_NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}

#: Strides are fractions with small denominators: the products of the scales by which a network resizes.
LARGEST_DENOMINATOR = 1 << 20

#: The letters of these axes in a layout; N is the batch and C the channels.
AXES = {1: "W", 2: "HW", 3: "DHW"}

#: The form of answers that exist for images of the native size only.
KEEP_SIZE = "keep-size"


@record
class Field:
    """The receptive field of a cell along one axis, in input pixels.

    Attributes:
        size: pixels that one cell sees; infinite if the cell depends on the whole image.
        stride: pixels between the fields of neighbouring cells.
        start: the first pixel that cell 0 sees; negative if it is in the padding.
    """

    size: Number = 1
    stride: Number = 1
    start: Number = 0

    @property
    def padding(self) -> Number:
        """Pixels of the first cell's field that are before the image."""
        return -self.start

    @property
    def end(self) -> Number:
        """The pixel after the field of cell 0."""
        return self.start + self.size

    @property
    def centre(self) -> Number:
        """The pixel in the middle of the field of cell 0."""
        return self.start + Fraction(1, 2) * (self.size - 1) if self.is_local else math.nan

    @property
    def is_local(self) -> bool:
        """Is the field a part of the image of fixed size, rather than the whole image?"""
        return math.isfinite(self.size)

    def slid(self, kernel: int, stride: int = 1, dilation: int = 1, begin: int = 0) -> Field:
        """The field after an operator that slides; `begin` cells of padding at the start, negative if it crops."""
        size = self.size + (kernel - 1) * dilation * self.stride
        return Field(size, self.stride * stride, self.start - begin * self.stride)

    def resampled(self, taps: Taps) -> Field:
        """The field after an operator that makes the map finer or coarser.

        It is the smallest field that contains those of all cells: the taps of a cell depend on its place.
        """
        before, after = taps.reach
        start = self.start - self.stride * before
        return Field(self.size + self.stride * (before + after), self.stride / taps.scale, start)

    def joined(self, other: Field) -> Field:
        """The union of two fields with the same stride."""
        assert self.stride == other.stride, "maps of different strides are never joined"
        start = min(self.start, other.start)
        return Field(max(self.end, other.end) - start, self.stride, start)

    def around(self, middle: Number) -> Field:
        """The smallest field that contains this one and has a pixel, or half a one, in its middle."""
        reach = max(middle - self.start, self.end - 1 - middle)
        return Field(2 * reach + 1, self.stride, middle - reach)

    def everywhere(self) -> Field:
        """The field of context: the whole image, at any size."""
        return Field(math.inf, self.stride, -math.inf)

    def plain(self) -> Field:
        """The field with integers, and with floats for values that are not integers."""
        if type(self.size) is type(self.stride) is type(self.start) is int:
            return self
        return Field(_plain(self.size), _plain(self.stride), _plain(self.start))


def _plain(value: Number) -> Number:
    return int(value) if math.isfinite(value) and value == int(value) else float(value)


def ratio(value: Number, unit: Number) -> Fraction:
    """How many times a number of pixels contains another, where floats stand for fractions: 4 contains 4/3 three times.

    (4 % 1.3333333333333333 is not 0, and 5 % 0.8333333333333334 is almost 5/6.)
    """
    return (Fraction(value) / Fraction(unit)).limit_denominator(LARGEST_DENOMINATOR)


@record
class Taps:
    """The cells of a map that each cell of a finer or coarser map is computed from.

    With a scale of p/q, cell j is computed from the cells ⌊(2·q·j + first)/(2·p)⌋ … ⌊(2·q·j + last)/(2·p)⌋: halves
    suffice, since cells are measured from their corners or from their middles.

    Attributes:
        scale: cells of the result per cell of the map.
        first: as in this formula.
        last: as in this formula.
    """

    scale: Fraction
    first: int = 0
    last: int = 0

    def cells(self, j: int) -> tuple[int, int]:
        """The first and the last cell that cell j is computed from; beyond the map if that is clamped or padded."""
        step, divide = 2 * self.scale.denominator * j, 2 * self.scale.numerator
        return (step + self.first) // divide, (step + self.last) // divide

    @property
    def reach(self) -> tuple[Fraction, Fraction]:
        """The largest distances from j/scale back to the first cell, and on to the last."""
        divide = 2 * self.scale.numerator
        before = Fraction(divide - 2 + self.first % 2 - self.first, divide)
        return before, Fraction(self.last - self.last % 2, divide)


#: Each (multiply, add, divide), applied in order: n → ⌊(n·multiply + add)/divide⌋.
Steps = tuple[tuple[int, int, int], ...]


@record
class Count:
    """The number of cells of a map along one axis, for an image of n pixels.

    Attributes:
        steps: (multiply, add, divide), applied in order: n → ⌊(n·multiply + add)/divide⌋. One step is enough unless an
            operator slides over a map that was made finer.
    """

    steps: Steps = ()

    def __call__(self, pixels: int) -> int:
        """The number of cells for an image of this many pixels; 0 if these do not suffice for one."""
        return max(int(self._unbounded(pixels)), 0)

    def _unbounded(self, pixels: Any) -> Any:
        """The formula itself, for a number or an array; it may be negative if the pixels do not suffice."""
        for multiply, add, divide in self.steps:
            pixels = (pixels * multiply + add) // divide
        return pixels

    @property
    def rate(self) -> Fraction:
        """Cells per pixel, for large images."""
        return math.prod((Fraction(m, d) for m, _, d in self.steps), start=Fraction(1))

    @property
    def period(self) -> int:
        """The least number of pixels that always adds the same number of cells, `period * rate`."""
        period, rate = 1, Fraction(1)
        for multiply, _, divide in self.steps:
            rate *= Fraction(multiply, divide)
            period = math.lcm(period, rate.denominator)
        return period

    def beyond(self, other: Count) -> tuple[int, int]:
        """The smallest and the largest surplus of cells over another count, over all numbers of pixels.

        Both counts grow at the same rate, so the surplus is periodic. With one step of the same factors it is
        ⌊(y + a - b)/divide⌋, where y is the remainder of the other count; y takes every value that steps of
        gcd(multiply, divide) reach.
        """
        if len(self.steps) <= 1 and len(other.steps) <= 1:
            multiply, add, divide = self.steps[0] if self.steps else (1, 0, 1)
            m, less, d = other.steps[0] if other.steps else (1, 0, 1)
            if (multiply, divide) == (m, d):
                step = math.gcd(multiply, divide)
                first = less % step
                return (first + add - less) // divide, (divide - step + first + add - less) // divide
        assert self.rate == other.rate, "maps of different strides are never compared"
        pixels = np.arange(math.lcm(self.period, other.period))
        surplus = self._unbounded(pixels) - other._unbounded(pixels)
        return int(surplus.min()), int(surplus.max())

    def at_most(self, other: Count) -> Count:
        """A count that is never more than either; if one of them never exceeds the other, that one."""
        least, most = self.beyond(other)
        if most <= 0:
            return self
        return other if least >= 0 else self.then(1, -most, 1)

    def then(self, multiply: int, add: int, divide: int) -> Count:
        """The count after one more step."""
        steps = [*self.steps, (multiply, add, divide)]
        while steps:
            multiply, add, divide = steps.pop()
            if multiply % divide == 0:
                multiply, add, divide = multiply // divide, add // divide, 1
            if (multiply, add, divide) == (1, 0, 1):
                break
            if not steps or (multiply != 1 and steps[-1][2] != 1):
                steps.append((multiply, add, divide))
                break
            m, a, d = steps.pop()
            steps.append((m * multiply, a * multiply + add * d, d * divide))
        return Count(tuple(steps))

    def slid(
        self, kernel: int, stride: int = 1, dilation: int = 1, begin: int = 0, end: int = 0, *, ceil: bool = False
    ) -> Count:
        """The count after an operator that slides over e cells.

        With `ceil` it is ⌈(e + begin + end - span)/stride⌉ + 1, but no window starts after the begin + e cells; `end`
        is less than the kernel in this case, as in every pooling.
        """
        room = begin + end - (kernel - 1) * dilation - 1 + stride
        if ceil:
            room = begin + stride - 1 + min(room - begin, 0)
        return self.then(1, room, stride)

    def resampled(self, scale: Fraction, add: int = 0) -> Count:
        """The count after an operator that makes a map of e cells finer or coarser: ⌊e·scale⌋ + add."""
        return self.then(scale.numerator, add * scale.denominator, scale.denominator)

    def joined(self, other: Count) -> Count:
        """The simpler of two counts that agree at every size at which the network runs."""
        if self.steps == other.steps:
            return self
        return min(self, other, key=lambda c: (len(c.steps), c.steps))

    def formula(self, size: str) -> str:
        """The count as an expression in Python, such as ``(height - 224) // 32 + 1``."""
        text = size
        for multiply, add, divide in self.steps:
            whole = 1 if divide > 1 and multiply == 1 else 0  # ⌊(n + a)/d⌋ = ⌊(n + a - d)/d⌋ + 1
            text = _sum(_factor(text) + f" * {multiply}" if multiply > 1 else text, add - whole * divide)
            if divide > 1:
                text = _sum(f"{_factor(text)} // {divide}", whole)
        return text

    def least(self, cells: int = 1) -> int:
        """The smallest number of pixels that gives this many cells."""
        high = 1
        while self(high) < cells:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self(middle) >= cells else (middle, high)
        return high


def _factor(text: str) -> str:
    return text if text.isidentifier() else f"({text})"


def _sum(text: str, add: int) -> str:
    return text if add == 0 else f"{text} {'+' if add > 0 else '-'} {abs(add)}"


@record
class Inner:
    """The cells of a map that do not depend on what is before and after a stretch of the image of n pixels.

    They are cells `front` … `behind(n)` - 1: the others see padding, or would see more of the image if it continued.
    The count is kept operator by operator, so that it also excludes cells that do not see the border, but see a map
    whose end was cut off.

    Attributes:
        front: the number of cells at the start that are not inner ones.
        behind: the cell after the last inner one, for a stretch of n pixels.
    """

    front: int = 0
    behind: Count = Count()

    def slid(self, count: Count, kernel: int, stride: int = 1, dilation: int = 1, begin: int = 0) -> Inner:
        """The inner cells after an operator that slides, and returns `count` cells; `begin` as for `Field.slid`.

        Its cell i is computed from the cells i·stride - begin … i·stride - begin + (kernel - 1)·dilation.
        """
        front = max(-(-(self.front + begin) // stride), 0)
        return Inner(front, self.behind.slid(kernel, stride, dilation, begin).at_most(count))

    def resampled(self, count: Count, taps: Taps) -> Inner:
        """The inner cells after an operator that makes the map finer or coarser, and returns `count` cells."""
        finer, coarser = 2 * taps.scale.numerator, 2 * taps.scale.denominator
        front = max(-((taps.first - self.front * finer) // coarser), 0)
        return Inner(front, self.behind.then(finer, coarser - 1 - taps.last, coarser).at_most(count))

    def joined(self, other: Inner) -> Inner:
        """The inner cells of a map that is computed from two maps, cell by cell."""
        return Inner(max(self.front, other.front), self.behind.at_most(other.behind))


@dataclass(frozen=True)
class Answers:
    """The geometry of one output: each attribute has one value per axis of the image.

    Attributes:
        window: pixels that one answer is about: the native size.
        stride: pixels between the windows of neighbouring answers.
        offset: the first pixel of the window of answer 0.
        field: the receptive field of an answer.
        count: the number of answers for an image of n pixels.
        inner: the answers that do not depend on how the image continues; not meaningful if an axis of `field` is
            infinite.
        exactness: ``exact`` (every answer is the original's for the crop of its window), ``padded`` (a crop sees
            zeros where the larger image continues) or ``context`` (an answer depends on the whole image).
        reason: the reason for this exactness, in a sentence.
        context: names of the nodes that see the whole image.
        form: what the output is: ``map`` for the grid of answers, ``cam`` for that of the cells of a class activation
            map, or what is computed from it, such as ``mean`` or ``full-size argmax``.
        layout: the axes of the output, such as ``NCHW``; empty if they are not batch, channels and cells.
        mirror: pixels by which padding that repeats or reflects a map may reach further inside than an answer that sees
            it; empty if there is no such padding.
        period: pixels by which an image may begin later, so that its answers are among those of the whole image; empty
            if every stride will do. It is longer than a stride if coarser maps were interpolated.
        held: the only size of the image along each axis, and None where it may have any; empty if it may everywhere.
    """

    window: tuple[Number, ...]
    stride: tuple[Number, ...]
    offset: tuple[Number, ...]
    field: tuple[Field, ...]
    count: tuple[Count, ...]
    inner: tuple[Inner, ...]
    exactness: str
    reason: str
    context: tuple[str, ...] = ()
    form: str = "map"
    layout: str = ""
    mirror: tuple[Number, ...] = ()
    period: tuple[Number, ...] = ()
    held: tuple[int | None, ...] = ()

    @property
    def padding(self) -> tuple[Number, ...]:
        """Pixels of the first answer's field that are before the image."""
        return tuple(f.padding for f in self.field)

    @property
    def least(self) -> tuple[int, ...]:
        """The smallest image that has an answer."""
        return tuple(c.least() for c in self.count)

    def grid(self, *size: int) -> Grid:
        """The answers for an image of this size.

        Raises:
            OptionError: if the image is too small for an answer, or has another number of axes.
        """
        if len(size) != len(self.window):
            raise OptionError(f"{_size_text(size)} is not a size of an image with {len(self.window)} axes")
        self.check_held(size)
        shape = tuple(count(n) for count, n in zip(self.count, size))
        if 0 in shape:
            raise OptionError(
                f"an image of {_size_text(size)} pixels is too small for an answer, whose window is "
                f"{_size_text(self.window)}: the smallest image that the network takes is {_size_text(self.least)}; "
                "enlarge the image, or pad it to that size"
            )
        return Grid(tuple(size), shape, self)

    def check_held(self, size: Sequence[int]) -> None:
        """Raises OptionError if an axis that keeps its size would have another."""
        for name, held, pixels in zip(SIZE_NAMES[len(size)], self.held, size):
            if held not in (None, pixels):
                raise OptionError(
                    f"the network takes images with a {name} of {held} pixels, not images of {_size_text(size)}: "
                    "resize the image, or crop it"
                )

    def fitted(self, *size: int) -> tuple[int, ...]:
        """The largest size up to this one that windows cover without a remainder."""
        steps = (math.floor(ratio(n - w, s)) for n, w, s in zip(size, self.window, self.stride))
        return tuple(int(ratio(w + k * s, 1)) for k, w, s in zip(steps, self.window, self.stride))

    def formulas(self) -> tuple[str, ...]:
        """The counts as expressions in Python."""
        return tuple(c.formula(name) for c, name in zip(self.count, SIZE_NAMES[len(self.count)]))


@dataclass(frozen=True)
class Grid:
    """The answers for an image of one size, and where they are.

    Boxes are in Pillow's order: the first pixel along each axis, then the pixel after the last one, x before y: (left,
    top, right, bottom) of a picture. They are not cut at the border of the image: fields reach into the padding.

    Attributes:
        size: the size of the image, in pixels.
        shape: rows and columns of answers; a third axis comes first.
        answers: the geometry of the output.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]
    answers: Answers

    @property
    def boxes(self) -> Array:
        """The window of each answer: (rows, columns, 4)."""
        return self._boxes(self.answers.offset, self.answers.window)

    @property
    def fields(self) -> Array:
        """The receptive field of each answer: (rows, columns, 4). Infinite if it is the whole image."""
        field = self.answers.field
        return self._boxes([f.start for f in field], [f.size for f in field])

    @property
    def interior(self) -> Array:
        """Whether each answer is independent of how the image continues, so that no padding reaches it."""
        answers, axes = self.answers, list[Array]()
        for cells, pixels, inner, field in zip(self.shape, self.size, answers.inner, answers.field):
            at = np.arange(cells)
            axes.append((at >= inner.front) & (at < inner.behind(pixels)) & field.is_local)
        return functools.reduce(np.logical_and.outer, axes)

    @property
    def remainder(self) -> tuple[Number, ...]:
        """Pixels at the far end of each axis that are in no window; negative if the last window reaches beyond."""
        ends = (o + (n - 1) * s + w for o, n, s, w in self._axes())
        return tuple(_plain(pixels - end) for pixels, end in zip(self.size, ends))

    def pixel_of(self, row: Any, *others: Any) -> tuple[Array, ...]:
        """The pixel (x, y) in the middle of the window of an answer (row, column); also for arrays."""
        middles = [o + np.asarray(i) * float(s) + (w - 1) / 2 for i, (o, _, s, w) in zip((row, *others), self._axes())]
        return tuple(middles[::-1])

    def cell_at(self, x: Any, *others: Any) -> tuple[Array, ...]:
        """The answer (row, column) whose window has its middle nearest to a pixel (x, y); also for arrays."""
        pixels = (x, *others)[::-1]
        return tuple(np.rint(self.cells_at(k, p)).astype(np.int64) for k, p in enumerate(pixels))

    def cells_at(self, axis: int, pixels: Any) -> Array:
        """Positions of pixels relative to the middles of the windows along one axis, in cells: 1.5 is between 1 and 2.

        Before the first middle it is 0, and after the last middle it is the last cell.
        """
        offset, cells, stride, window = self._axes()[axis]
        places: Array = np.clip((np.asarray(pixels) - offset - (window - 1) / 2) / stride, 0, cells - 1)
        return places

    def _axes(self) -> list[tuple[float, int, float, float]]:
        """(offset, answers, stride, window) of each axis."""
        a = self.answers
        return [(float(o), n, float(s), float(w)) for o, n, s, w in zip(a.offset, self.shape, a.stride, a.window)]

    def _boxes(self, start: Sequence[Number], size: Sequence[Number]) -> Array:
        """Boxes of these sizes, a stride apart; a box includes pixels that it covers in part."""
        first, behind = [], []
        for begin, extent, (_, cells, stride, _) in zip(start, size, self._axes()):
            at = np.arange(cells) * stride
            first.append(np.floor(at + float(begin)))
            behind.append(np.ceil(at + float(begin + extent if math.isfinite(extent) else math.inf)))
        sides = [*np.meshgrid(*first, indexing="ij")[::-1], *np.meshgrid(*behind, indexing="ij")[::-1]]
        boxes = np.stack(sides, axis=-1)
        return boxes.astype(np.int64) if np.isfinite(boxes).all() else boxes


def interpolate(values: Array, places: Sequence[Array]) -> Array:
    """Interpolate cells linearly: (..., *cells) → (..., *places); an array of places, in cells, for each axis."""
    for k, at in enumerate(places):
        axis = values.ndim - len(places) + k
        cells = values.shape[axis]
        before = np.minimum(at.astype(np.int64), max(cells - 2, 0))
        weight = (at - before).astype(np.result_type(values, np.float32)).reshape(-1, *[1] * (values.ndim - 1 - axis))
        behind = np.minimum(before + 1, cells - 1)
        values = values.take(before, axis) * (1 - weight) + values.take(behind, axis) * weight
    return values


@dataclass(frozen=True)
class Geometry:
    """Where the answers of a converted model are.

    Attributes:
        window: the native size: pixels that one answer is about.
        outputs: the geometry of each output, by name.
        image: the name of the input that is the image.
        layout: the axes of this input, such as ``NCHW``.
    """

    window: tuple[int, ...]
    outputs: Mapping[str, Answers]
    image: str = ""
    layout: str = ""

    def of(self, output: str | None = None) -> Answers:
        """The geometry of one output, by default of the first.

        Raises:
            OptionError: if there is no such output with a grid of answers.
        """
        name = next(iter(self.outputs), "") if output is None else output
        if name not in self.outputs:
            known = ", ".join(map(repr, self.outputs)) or "none"
            raise OptionError(
                f"the model has no output '{name}' with a grid of answers: the outputs with one are {known}"
            )
        return self.outputs[name]

    @property
    def stride(self) -> tuple[Number, ...]:
        """Pixels between neighbouring answers of the first output."""
        return self.of().stride

    @property
    def exactness(self) -> dict[str, str]:
        """``exact``, ``padded`` or ``context``, by output name."""
        return {name: answers.exactness for name, answers in self.outputs.items()}

    def grid(self, *size: int, output: str | None = None) -> Grid:
        """The answers of an output, by default the first, for an image of this size: (height, width).

        Raises:
            OptionError: if the image is too small, or there is no such output.
        """
        return self.of(output).grid(*size)


def _size_text(size: Sequence[Number]) -> str:
    return "×".join(f"{float(n):g}" if n != int(n) else str(int(n)) for n in size)
