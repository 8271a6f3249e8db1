"""The class numbers of a mask, by region.

A mask has one whole number at each pixel. It is read as it is stored: grey as numbers, a palette as indices, whatever
the colours. Nothing is scaled, inverted or mixed, so a file whose pixels are colours is refused, and so is one whose
numbers may have changed in compression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import RGB, Reading
from onnx_fcn.images.opening import open_stored
from onnx_fcn.images.stored import Box, Stored, errors_as_sentences

__all__ = ["Mask", "open_mask"]


@dataclass(frozen=True)
class Mask:
    """A mask that is read by region.

    Attributes:
        name: its name in messages.
        size: pixels along each axis.
        dtype: type of the stored numbers.
    """

    name: str
    size: tuple[int, ...]
    dtype: np.dtype[Any]
    _stored: Stored
    _reading: Reading

    def read(self, box: Box) -> Array:
        """The stored numbers of a box, as integers: True is 1.

        Raises:
            OptionError: if the file is damaged there.
        """
        with errors_as_sentences(self.name):
            part = np.asarray(self._stored.fetch(self._reading.box(len(self._stored.shape), box)))
        numbers: Array = self._reading.arrange(part)[0]
        return numbers.astype(np.uint8) if self.dtype.kind == "b" else numbers

    def close(self) -> None:
        """Close the file; nothing is read after this."""
        self._stored.close()


def open_mask(path: str | PathLike[str], rank: int, level: int = 0) -> Mask:
    """Open a mask: PNG (grey or with a palette), .npy, TIFF, or a zarr store.

    Args:
        path: the file, or the folder of a zarr store.
        rank: number of axes of the image: 2 for a picture.
        level: level of a pyramid; 0 is the finest.

    Raises:
        OptionError: if it cannot be read, or has no such level; if its pixels are not single whole numbers; if it has
            another number of axes.
    """
    found = open_stored(path, level, shown=False)
    try:
        _check_numbers(found)
        axes = _axes_of(found, rank)
    except OptionError:
        found.close()
        raise
    size = tuple(found.shape[k] for k in axes)
    return Mask(found.name, size, found.dtype, found, Reading(axes, rank, 1, 1))


def _check_numbers(found: Stored) -> None:
    """Raises OptionError if there is not one whole number at each pixel."""
    if found.rank is not None:
        raise OptionError(f"{found.name} is sound, which contains no class numbers: save the mask as .npy")
    if found.tone == RGB:
        raise OptionError(
            f"{found.name} is not a mask: its pixels are colours, which are not class numbers: save it in grey or with "
            "a palette"
        )
    if found.alpha:
        raise OptionError(
            f"{found.name} is not a mask: its pixels have alpha, which is not a class number: save it without"
        )
    if found.dtype.kind not in "biu":
        whole = ", so floats are refused even if they are whole" if found.dtype.kind == "f" else ""
        raise OptionError(
            f"{found.name} contains {found.dtype}, and class numbers are integers{whole}: save it as uint8 or int32"
        )


def _axes_of(found: Stored, rank: int) -> tuple[int, ...]:
    """The axes of the image, without those of size 1 before them and of the samples."""
    shape: Sequence[int] = found.shape
    axes = [k for k in range(len(shape)) if k != found.samples or shape[k] != 1]
    while len(axes) > rank and shape[axes[0]] == 1:
        axes.pop(0)
    if found.samples in axes or len(axes) != rank:
        kind = "one axis" if rank == 1 else f"{rank} axes"
        raise OptionError(
            f"{found.name} has the shape {tuple(shape)}: a mask of an image with {kind} has one number at each pixel, "
            f"and no axis of channels"
        )
    if 0 in shape:
        raise OptionError(f"{found.name} has no pixels: its shape is {tuple(shape)}")
    return tuple(axes)
