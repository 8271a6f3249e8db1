"""An image as a network reads it, by region; and pictures as pixels from 0 to 255.

An image is opened for a number of axes and channels, those that the network reads. It is read as (channels, *space), in
the numbers that are stored, from every format, so all commands see the same; `white` is the number for full scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import Reading, reading_of
from onnx_fcn.images.identity import stamp
from onnx_fcn.images.opening import open_stored
from onnx_fcn.images.placement import Placement
from onnx_fcn.images.stored import Box, Picture, Stored, check_room, errors_as_sentences, missing_package

__all__ = ["Image", "check_picture", "open_image", "pixels_of", "resize"]


@dataclass(frozen=True)
class Image:
    """An image that is read by region.

    Attributes:
        name: its name in messages.
        size: pixels along each axis.
        channels: number of channels it is read with.
        dtype: type of the stored numbers.
        white: the number for full scale.
        has_alpha: does it have alpha, which is dropped?
    """

    name: str
    size: tuple[int, ...]
    channels: int
    dtype: np.dtype[Any]
    white: float
    has_alpha: bool
    _stored: Stored
    _reading: Reading

    @property
    def placement(self) -> Placement | None:
        """Where its pixels lie; None if the file does not say it."""
        if self._stored.placed is None:
            return None
        placement, axes = self._stored.placed
        own = self._reading.order[-self._reading.rank :]
        return placement.along([axes.index(k) for k in own]) if set(own) <= set(axes) else None

    def read(self, box: Box) -> Array:
        """The pixels of a box: (channels, *space).

        Raises:
            OptionError: if the file is damaged there.
        """
        with errors_as_sentences(self.name):
            part = np.asarray(self._stored.fetch(self._reading.box(len(self._stored.shape), box)))
        pixels: Array = self._reading.arrange(part)
        return self._reading.mix(pixels)

    def whole(self) -> Array:
        """All pixels: (channels, *size)."""
        check_room(self.name, int(np.prod(self.size, dtype=float)) * self.channels * 4, "the whole image at once")
        return self.read(tuple(slice(0, n) for n in self.size))

    def close(self) -> None:
        """Close the file; nothing is read after this."""
        self._stored.close()

    def identity(self) -> dict[str, Any]:
        """What identifies this image, and changes when the file changes, without reading its pixels.

        Raises:
            OptionError: if the file is gone.
        """
        with errors_as_sentences(self.name):
            return {"size": self.size, "type": self.dtype.str, "files": stamp(self._stored.files)}


def open_image(source: Picture, rank: int, channels: int | None, level: int = 0) -> Image:
    """Open an image for a network that reads this number of axes and channels.

    Args:
        source: a file, the folder of a zarr store, an array, or a Pillow image.
        rank: number of axes of the image: 2 for a picture.
        channels: number of channels to read; None for all that it has.
        level: level of a pyramid; 0 is the finest.

    Raises:
        OptionError: if it cannot be read, is not an image, or has other axes or channels; if a package is missing.
    """
    found = open_stored(source, level)
    try:
        if found.rank not in (None, rank):
            raise OptionError(f"{found.name} has one axis, as sound has, and the model takes images with {rank} axes")
        if 0 in found.shape:
            raise OptionError(f"{found.name} has no pixels: its shape is {found.shape}")
        how: Any = {"samples": found.samples, "tone": found.tone, "alpha": found.alpha}
        reading = reading_of(found.shape, rank, channels, found.name, **how)
    except OptionError:
        found.close()
        raise
    size = tuple(found.shape[k] for k in reading.order[-rank:])
    return Image(found.name, size, reading.channels, found.dtype, found.white, found.alpha > 0, found, reading)


def check_picture(image: Image, pixels: Array) -> None:
    """Raises OptionError if the brightness that these numbers stand for is unknown."""
    if image.dtype.kind == "u":
        return
    if image.dtype.kind != "f":
        raise OptionError(
            f"{image.name} contains {image.dtype}, so it is not a picture: pixels are unsigned "
            f"integers, or floats from 0 to 1"
        )
    if not np.isfinite(pixels).all():
        raise OptionError(f"float pixels are from 0 to 1, and some in {image.name} are NaN or infinite: replace them")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):
        raise OptionError(
            f"float pixels are from 0 to 1, and those in {image.name} are from {low:g} to {high:g}: give them as uint8"
        )


def pixels_of(source: Picture, channels: int | None = None) -> Array:
    """The pixels of a picture, from 0 to 255: (H, W, C) in float32.

    Full scale is the largest value of an integer type, and 1 for floats.

    Raises:
        OptionError: if it is not a picture, or cannot be read.
    """
    with contextlib.closing(open_image(source, 2, channels)) as image:
        pixels = image.whole()
    check_picture(image, pixels)
    values: Array = pixels.astype(np.float32)
    values *= np.float32(255 / image.white)
    return np.moveaxis(values, 0, -1)


def resize(pixels: Array, size: Sequence[int], name: str = "the picture") -> Array:
    """(H, W, C) resized to (height, width): bilinear, with averaging if it shrinks.

    Raises:
        OptionError: if there is not enough memory; if Pillow is missing.
    """
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    check_room(name, 2 * height * width * pixels.shape[-1] * 4, f"{height}×{width} pixels")
    try:
        import PIL.Image
    except ImportError as error:
        raise missing_package("resizing a picture", error) from None
    planes = [
        np.asarray(
            PIL.Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(
                (width, height), PIL.Image.Resampling.BILINEAR
            )
        )
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(planes, axis=-1)
