"""Labels in a mask: the stored number of a pixel is its code, except for the number that stands for no label."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.codes import LARGEST, NONE, Labels, blocks, check_sizes
from onnx_fcn.images.masks import Mask, open_mask
from onnx_fcn.images.stored import Box

__all__ = ["Raster"]


class Raster(Labels):
    """A mask, which is opened when it is first needed, and again after it was closed.

    If the image is read at a level of its pyramid, the mask is one of that level, or itself a pyramid.
    """

    def __init__(self, path: str, image: str, rank: int, *, ignored: int | None, level: int = 0) -> None:
        self.name, self.image, self.codes, self.ignored = f"'{path}'", f"'{image}'", {}, ignored
        self._path, self._rank, self._level = path, rank, level
        self._at = 0  # the level that is read
        self._mask: Mask | None = None

    def check(self, size: Sequence[int]) -> tuple[str, ...]:
        own = self._opened().size
        if own != tuple(size) and self._level and not self._at and self._has_level(size):
            self.close()
            self._at, own = self._level, tuple(size)
        check_sizes(self, own, size, self._level)
        return ()

    def boxes(self, size: Sequence[int], block: int) -> Iterator[Box]:
        return blocks(size, block)

    def read(self, box: Box) -> Array:
        numbers = self._opened().read(box)
        labelled = np.ones(numbers.shape, bool) if self.ignored is None else numbers != self.ignored
        codes = np.where(labelled, numbers, numbers.dtype.type(0))
        for wrong in (codes.min(initial=0), codes.max(initial=0)):
            if not 0 <= int(wrong) <= LARGEST:
                raise OptionError(
                    f"{self.name} contains {wrong}, and class numbers are from 0 to {LARGEST}: --ignore {wrong} says "
                    f"that it stands for no label"
                )
        return np.where(labelled, codes.astype(np.int32), np.int32(NONE))

    def close(self) -> None:
        if self._mask is not None:
            self._mask.close()
            self._mask = None

    def _opened(self) -> Mask:
        if self._mask is None:
            self._mask = open_mask(self._path, self._rank, self._at)
        return self._mask

    def _has_level(self, size: Sequence[int]) -> bool:
        """Is the mask a pyramid, and does the level of the image have this size?"""
        try:
            with contextlib.closing(open_mask(self._path, self._rank, self._level)) as mask:
                return mask.size == tuple(size)
        except OptionError:  # it has no such level, so its only one is compared with the image
            return False
