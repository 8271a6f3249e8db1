"""From a picture to what a network reads: files and arrays to pixels, and pixels to a scaled, centred tensor.

Pixels are (height, width, channels), RGB or grey, from 0 to 255. What a network was trained on is

    x = (pixel · scale - mean) / std

for each channel, and no ONNX file says it; the usual choices have names:

    unit       pixel/255: 0 to 1
    imagenet   (pixel/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225): torchvision, timm
    tf         pixel/127.5 - 1: -1 to 1, as Keras calls it
    caffe      BGR, pixel - (103.939, 116.779, 123.68): Caffe's and Keras's older networks
    raw        the pixels as they are: 0 to 255

Only numpy is needed here for arrays; pictures in files and resizing take Pillow, the extra `view`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fcn.errors import OptionError, reason_of

__all__ = ["PRESETS", "Picture", "Preprocessing", "pixels_of", "resized", "with_channels"]

Array = np.ndarray[Any, Any]

#: A file, an array (height, width) or (height, width, channels), or a `PIL.Image.Image`.
Picture = str | os.PathLike[str] | Any

#: ITU-R BT.601, as Pillow makes grey of colours.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of pixels from 0 to 255: x = (pixel · scale - mean) / std.

    Attributes:
        scale: what pixels are multiplied by.
        mean: for each channel, or one for all.
        std: likewise.
        order: ``RGB`` or ``BGR``, the order of channels that the network reads, and that `mean` and `std` are in.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: str = "RGB"

    def __post_init__(self) -> None:
        """Raises: OptionError, for numbers that no picture survives."""
        if self.order not in ("RGB", "BGR"):
            raise OptionError(f"channels are in the order RGB or BGR, not '{self.order}'")
        if not np.isfinite([self.scale, *self.mean, *self.std]).all() or 0 in (self.scale, *self.std):
            raise OptionError("scale, mean and std are finite numbers, and neither scale nor std is zero")

    @classmethod
    def named(cls, name: str) -> Preprocessing:
        """One of the presets.

        Raises:
            OptionError: there is none of that name.
        """
        if name not in PRESETS:
            raise OptionError(f"there is no preprocessing '{name}': it is one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def __call__(self, pixels: Array) -> Array:
        """(H, W, C) from 0 to 255 → the same in float32, as the network reads it.

        Raises:
            OptionError: `mean` or `std` are for another number of channels.
        """
        channels = pixels.shape[-1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise OptionError(f"{name} has {len(values)} values, and the network reads {channels} channels")
        if self.order == "BGR" and channels == 3:
            pixels = pixels[..., ::-1]
        centred = pixels * np.float32(self.scale) - np.array(self.mean, np.float32)
        scaled: Array = centred / np.array(self.std, np.float32)
        return scaled


PRESETS = {
    "unit": Preprocessing(),
    "imagenet": Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Preprocessing(1 / 127.5, mean=(1.0,)),
    "caffe": Preprocessing(1.0, mean=(103.939, 116.779, 123.68), order="BGR"),
    "raw": Preprocessing(1.0),
}


def pixels_of(picture: Picture) -> Array:
    """The pixels of a picture, from 0 to 255: (H, W, C) in float32.

    Integers count from 0 to the largest of their type, floats from 0 to 1. Pictures in files are turned as their EXIF
    data says, and lose an alpha channel.

    Raises:
        OptionError: it is no picture, or cannot be read.
    """
    if isinstance(picture, (str, os.PathLike)):
        picture = _read(Path(picture))
    elif not isinstance(picture, np.ndarray):
        picture = _decoded(picture)
    if picture.ndim not in (2, 3) or 0 in picture.shape:
        raise OptionError(
            f"an array {picture.shape} is no picture: that is (height, width) or (height, width, channels)"
        )
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.dtype == bool:
        return picture.astype(np.float32) * 255
    if picture.dtype.kind == "u":
        return picture.astype(np.float32) * np.float32(255 / np.iinfo(picture.dtype).max)
    if picture.dtype.kind != "f":
        raise OptionError(
            f"an array of {picture.dtype} is no picture: pixels are unsigned integers, or floats from 0 to 1"
        )
    low, high = picture.min(), picture.max()
    if not (low >= 0 and high <= 1):  # nor NaN
        raise OptionError(
            f"pixels in floats are from 0 to 1, and these are from {low:g} to {high:g}: give them as uint8"
        )
    return picture.astype(np.float32) * 255


def with_channels(pixels: Array, channels: int) -> Array:
    """The same picture in as many channels: grey of colours, or colours of grey.

    Raises:
        OptionError: there is no such picture.
    """
    have = pixels.shape[-1]
    if have == channels:
        return pixels
    if (have, channels) == (3, 1):
        return (pixels @ LUMA)[..., None]
    if have == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    raise OptionError(f"the picture has {have} channels, and the network reads {channels}")


def resized(pixels: Array, size: Sequence[int]) -> Array:
    """(H, W, C) at another size, (height, width): linear, and averaging where it shrinks."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    image = _pillow()
    planes = [
        np.asarray(image.fromarray(np.ascontiguousarray(plane)).resize((width, height), image.Resampling.BILINEAR))
        for plane in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(planes, axis=-1)


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise OptionError("pictures take Pillow, which is not installed: pip install 'onnx-fcn[view]'") from None
    return PIL.Image


def _read(path: Path) -> Array:
    """The pixels of a file, as they are stored: an array in .npy, or a picture that Pillow reads."""
    try:
        if path.suffix == ".npy":
            return _array(path)
        image = _pillow()
        try:
            with image.open(path) as picture:
                return _decoded(picture)
        except (image.UnidentifiedImageError, image.DecompressionBombError, SyntaxError) as error:
            large = isinstance(error, image.DecompressionBombError)
            why = "it is too large to be read at once" if large else "no picture that Pillow knows"
            raise OptionError(f"cannot read '{path}': {why}") from None
    except OSError as error:
        raise OptionError(f"cannot read '{path}': {reason_of(error)}") from None
    except ValueError as error:
        raise OptionError(f"cannot read '{path}': {error}") from None


def _array(path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray):
        raise OptionError(f"cannot read '{path}': no array of numbers")
    return array


def _decoded(picture: Any) -> Array:
    """The pixels of an image of Pillow: grey or RGB."""
    image = _pillow()
    if not isinstance(picture, image.Image):
        raise OptionError(f"a {type(picture).__name__} is no picture: give a file, an array, or an image of Pillow")
    import PIL.ImageOps

    upright: Any = PIL.ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):
        return np.asarray(upright).astype(np.uint16)
    if upright.mode in ("I", "F"):
        raise OptionError("the picture has 32 bits a pixel, whose range nothing says: save it with 8 or 16")
    return np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA", "La") else "RGB"))
