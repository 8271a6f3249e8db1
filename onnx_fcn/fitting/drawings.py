"""Labels drawn as shapes: what a file says about one image, and the codes that this gives at its pixels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.codes import NONE, Labels, check_sizes
from onnx_fcn.fitting.shapes import Points, Shape
from onnx_fcn.images.stored import Box, size_text

__all__ = ["UNLABELLED", "Drawing", "Vectors"]


#: The label of a shape that takes labels away.
UNLABELLED = -1


class Drawing:
    """The shapes that a file draws on one image, in order: where several cover a pixel, the last one counts.

    Attributes:
        shapes: the shapes; a label is an index of `names`.
        names: the names of classes, in the order in which they were met.
        unnamed: number of features without a class, which are left out.
        size: size of the image according to the file, if it says so.
    """

    def __init__(self, size: tuple[int, ...] | None = None) -> None:
        self.names: list[str] = []
        self.unnamed = 0
        self.size = size
        self._shapes: list[Shape] = []
        self._labels: dict[str, int] = {}
        self._points: list[tuple[Array, Array]] = []  # those at the end, which become one shape

    @property
    def shapes(self) -> list[Shape]:
        """All shapes."""
        self._gather_points()
        return self._shapes

    def label(self, name: str) -> int:
        """The label of a class."""
        if name not in self._labels:
            self._labels[name] = len(self.names)
            self.names.append(name)
        return self._labels[name]

    def add(self, shape: Shape) -> None:
        """Draw a shape over the others."""
        if isinstance(shape, Points):
            self._points.append((shape.places, shape.marks))
            return
        self._gather_points()
        self._shapes.append(shape)

    def add_points(self, places: Array, label: int) -> None:
        """Draw points (count, axes)."""
        self.add(Points(places, np.full(len(places), label)))

    def used(self) -> list[str]:
        """The names of the classes that have shapes."""
        labels = {int(label) for shape in self.shapes for label in shape.labels()} - {UNLABELLED}
        return [self.names[label] for label in sorted(labels)]

    def _gather_points(self) -> None:
        if self._points:
            places, marks = zip(*self._points)
            self._shapes.append(Points(np.concatenate(places), np.concatenate(marks)))
            self._points = []


class Vectors(Labels):
    """The codes of the shapes on one image.

    Args:
        path: the file.
        image: the image.
        drawing: what the file draws on it, at least one shape.
        codes: the codes of all files, by name.
        level: the level of the image's pyramid that is read, for messages.
    """

    def __init__(
        self,
        path: str,
        image: str,
        drawing: Drawing,
        codes: Mapping[str, int],
        level: int = 0,
    ) -> None:
        self.name, self.image = f"'{path}'", f"'{image}'"
        self.codes = {code: label for label, code in codes.items()}
        self._size, self._level = drawing.size, level
        self._by_label = np.array([*(codes.get(label, NONE) for label in drawing.names), NONE], np.int32)
        self._draw(drawing.shapes)

    def _draw(self, shapes: Sequence[Shape]) -> None:
        self._shapes = shapes
        parts = [shape.bounds() for shape in shapes]
        self._bounds = np.concatenate(parts)  # (parts of shapes, axes, 2), in pixels
        self._shape_of_part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def check(self, size: Sequence[int]) -> tuple[str, ...]:
        if self._size is not None:
            check_sizes(self, self._size, size, self._level)
        behind = self._bounds[..., 1]
        drawn = np.asarray((behind > self._bounds[..., 0]).all(axis=1))
        beyond = int((drawn & ((behind <= 0) | (self._bounds[..., 0] >= size)).any(axis=1)).sum())
        if not beyond:
            return ()
        where = f"beyond {self.image}, which has {size_text(size)} pixels"
        if beyond == int(drawn.sum()):
            raise OptionError(
                f"all that {self.name} labels lies {where}: coordinates are pixels of the finest level, x before y"
            )
        return (f"{beyond} of the {len(drawn)} shapes in {self.name} {'lies' if beyond == 1 else 'lie'} {where}",)

    def boxes(self, size: Sequence[int], block: int) -> Iterator[Box]:
        limits = np.clip(self._bounds, 0, np.array(size)[:, None])
        limits = limits[(limits[..., 0] < limits[..., 1]).all(axis=1)]
        return _touched(limits, (), size, block)

    def read(self, box: Box) -> Array:
        codes = np.full([part.stop - part.start for part in box], NONE, np.int32)
        first, behind = (np.array([getattr(part, end) for part in box]) for end in ("start", "stop"))
        meets = ((self._bounds[..., 0] < behind) & (self._bounds[..., 1] > first)).all(axis=1)
        for number in np.unique(self._shape_of_part[meets]):
            self._shapes[number].paint(codes, box, self._by_label)
        return codes

    def close(self) -> None:
        """Nothing is open: the file was read at once."""

    def at_level(self, finest: Sequence[int], size: Sequence[int]) -> Vectors:
        if tuple(size) in (tuple(finest), self._size):
            return self
        if self._size is not None:
            check_sizes(self, self._size, finest, 0)
        factors = np.array(size) / np.array(finest)
        scaled = copy.copy(self)
        scaled._size = None
        scaled._draw([shape.scaled(factors) for shape in self._shapes])
        return scaled


def _touched(limits: Array, before: Box, size: Sequence[int], block: int) -> Iterator[Box]:
    """The boxes of a grid that begin with some slices and touch parts with these limits (parts, axes, 2), in order."""
    axis = len(before)
    if axis == len(size):
        yield before
        return
    at = 0
    while len(limits := limits[limits[:, axis, 1] > at]):
        at = max(at, int(limits[:, axis, 0].min()) // block * block)
        part = slice(at, min(at + block, size[axis]))
        yield from _touched(limits[limits[:, axis, 0] < part.stop], (*before, part), size, block)
        at = part.stop
