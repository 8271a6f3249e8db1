"""What all labels answer: the class code at each pixel of a box.

A code is a whole number from 0, and means the same class in all files that are opened together. It is not yet the index
of a class: `classes` numbers those codes that occur.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.stored import Box, size_text

__all__ = ["LARGEST", "NONE", "Labels", "Note", "blocks", "check_sizes", "listed"]


#: The code where a pixel has no label.
NONE = -1

#: The largest code.
LARGEST = 2**31 - 1

#: Receives a sentence that is no error.
Note = Callable[[str], None]


class Labels(abc.ABC):
    """The labels of one image.

    Attributes:
        name: their file in messages.
        image: their image in messages.
        codes: names of the codes, as far as the file has names.
        ignored: the number that stands for no label in a mask.
    """

    name: str
    image: str
    codes: Mapping[int, str]
    ignored: int | None = None

    @abc.abstractmethod
    def check(self, size: Sequence[int]) -> tuple[str, ...]:
        """Compare the labels with the size of their image.

        Returns:
            sentences about labels that are beyond the image.

        Raises:
            OptionError: if they are for an image of another size, or all are beyond it; if a mask cannot be read.
        """

    @abc.abstractmethod
    def boxes(self, size: Sequence[int], block: int) -> Iterator[Box]:
        """The blocks that may have labels, row by row: boxes of a fixed grid of `block` pixels along an axis."""

    @abc.abstractmethod
    def read(self, box: Box) -> Array:
        """The code at each pixel of a box, in int32: `NONE` where there is no label.

        Raises:
            OptionError: if a number of a mask is no code, or its file is damaged.
        """

    def at_level(self, finest: Sequence[int], size: Sequence[int]) -> Labels:
        """The labels for a level of a pyramid.

        Args:
            finest: size of level 0, whose pixels are the coordinates of a file.
            size: size of the level.

        Raises:
            OptionError: if the file says that it is for an image of another size.
        """
        return self

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file until labels are read again."""


def blocks(size: Sequence[int], block: int) -> Iterator[Box]:
    """All boxes of a grid over an image, row by row, of at most `block` pixels along an axis."""
    if not size:
        yield ()
    else:
        for start in range(0, size[0], block):
            part = slice(start, min(start + block, size[0]))
            yield from ((part, *rest) for rest in blocks(size[1:], block))


def check_sizes(labels: Labels, own: Sequence[int], size: Sequence[int], level: int) -> None:
    """Raises OptionError if labels are not of the size of their image, which is read at a level of its pyramid."""
    if tuple(own) == tuple(size):
        return
    hint = ": give labels of the same size"
    finer = _levels_between(size, own)
    coarser = -_levels_between(own, size)
    if (finer or coarser) and level + finer + coarser >= 0:
        hint = f": is it of another level? give --level {level + finer + coarser}"
    raise OptionError(
        f"{labels.image} has {size_text(size)} pixels, and its labels in {labels.name} are for {size_text(own)}{hint}"
    )


def _levels_between(fine: Sequence[int], coarse: Sequence[int]) -> int:
    """How many times the fine size was halved to give the coarse one, rounded up or down; 0 if it was not."""
    count = round(math.log2(fine[0] / coarse[0]))
    if count < 1 or len(fine) != len(coarse):
        return 0
    fits = all(n >> count <= half <= -(-n >> count) for n, half in zip(fine, coarse))
    return count if fits else 0


def listed(names: Sequence[str], most: int = 3) -> str:
    """Some names for a message: the first of them, and how many more there are."""
    shown = [f"'{name}'" for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
