"""From pixels to what a network reads: the formula, its usual choices, and pictures in files and arrays.

What a network was trained on is

    x = (pixel · scale - mean) / std

for each channel, and no ONNX file says it; the usual choices have names, and are about pixels from 0 to 255:

    unit       pixel/255: 0 to 1
    imagenet   (pixel/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225): torchvision, timm
    tf         pixel/127.5 - 1: -1 to 1, as Keras calls it
    caffe      BGR, pixel - (103.939, 116.779, 123.68): Caffe's and Keras's older networks
    raw        the pixels as they are: 0 to 255

A picture is (height, width, channels), RGB or grey. What is no picture, such as sound or a scientific image, is read as
its numbers are stored.

Only numpy is needed here for arrays; pictures in files and resizing take Pillow, the extra `view`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fcn.errors import OptionError, reason_of

__all__ = ["PRESETS", "Picture", "Preprocessing", "chosen", "for_stored", "pixels_of", "resized", "with_channels"]

Array = np.ndarray[Any, Any]

#: A file, an array (height, width) or (height, width, channels), or a `PIL.Image.Image`.
Picture = str | os.PathLike[str] | Any

#: ITU-R BT.601, as Pillow makes grey of colours.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of pixels: x = (pixel · scale - mean) / std.

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
        """(C, *space) → the same in float32, as the network reads it; of the same type where nothing is to be done.

        Raises:
            OptionError: `mean` or `std` are for another number of channels.
        """
        channels = len(pixels)
        self.check(channels)
        if self.order == "BGR" and channels == 3:
            pixels = pixels[::-1]
        if self.keeps_values:
            return pixels
        column = (-1,) + (1,) * (pixels.ndim - 1)
        values = _scaled(pixels, self.scale)
        values -= np.array(self.mean, np.float32).reshape(column)
        values /= np.array(self.std, np.float32).reshape(column)
        return values

    def check(self, channels: int) -> None:
        """Raises OptionError: `mean` or `std` are for another number of channels."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise OptionError(
                    f"{name} has {len(values)} values, and the network reads {channels} channel{'s' * (channels > 1)}"
                )

    @property
    def keeps_values(self) -> bool:
        """Do the numbers stay as they are?"""
        return self.scale == 1 and not any(self.mean) and all(s == 1 for s in self.std)

    def __str__(self) -> str:
        """The formula, such as ``(pixel/255 - 0.5) / 0.25``."""
        whole = 0 < self.scale < 1 and abs(1 / self.scale - round(1 / self.scale, 3)) < 1e-9
        text = "pixel" if self.scale == 1 else f"pixel/{1 / self.scale:.6g}" if whole else f"pixel·{self.scale:.6g}"
        if any(self.mean):
            text = f"{text} - {_listed(self.mean)}"
        if any(s != 1 for s in self.std):
            text = f"({text}) / {_listed(self.std)}" if " " in text else f"{text} / {_listed(self.std)}"
        return f"{text}, in the order BGR" if self.order == "BGR" else text


PRESETS = {
    "unit": Preprocessing(),
    "imagenet": Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Preprocessing(1 / 127.5, mean=(1.0,)),
    "caffe": Preprocessing(1.0, mean=(103.939, 116.779, 123.68), order="BGR"),
    "raw": Preprocessing(1.0),
}


def chosen(
    preset: str | Preprocessing | None,
    default: str,
    *,
    scale: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    order: str | None = None,
) -> Preprocessing:
    """A preset with some of its numbers changed; with a scale and no preset, the formula begins with that.

    Args:
        preset: its name, or the numbers.
        default: the name of the preset where none is asked for.
        scale, mean, std, order: as in `Preprocessing`.

    Raises:
        OptionError: there is no such preset; the numbers make no sense.
    """
    if not isinstance(preset, Preprocessing):
        preset = Preprocessing.named(preset or (default if scale is None else "raw"))
    given = {"scale": scale, "mean": _tuple(mean), "std": _tuple(std), "order": order}
    changed: Any = {key: value for key, value in given.items() if value is not None}
    return replace(preset, **changed)


def for_stored(
    preset: str | Preprocessing | None, dtype: np.dtype[Any], rank: int, reads_integers: bool, **numbers: Any
) -> Preprocessing:
    """What becomes of numbers as a file holds them: the same as with `pixels_of` for pictures, of whatever range.

    A preset by its name is about pictures, and unsigned integers then count from 0 to 255, as everywhere. Without one,
    bytes in an image of two axes are a picture, and become what they do by default (``unit``); everything else, such
    as sound or a scientific image, goes in as it is stored.

    Args:
        preset: its name, or the numbers, which are for what is stored.
        dtype: of what is stored.
        rank: axes of the image.
        reads_integers: does the network? Then there is no default but ``raw``.
        numbers: as in `chosen`.

    Raises:
        OptionError: as `chosen` does; a preset was asked for, and those are no pixels of a picture.
    """
    is_picture = dtype == np.uint8 and rank == 2 and not reads_integers
    formula = chosen(preset, "unit" if is_picture else "raw", **numbers)
    if not isinstance(preset, str):
        return formula
    if dtype.kind not in "ub":
        raise OptionError(
            f"preset '{preset}' is about pixels from 0 to 255 in unsigned integers, and these are {dtype}: give the "
            "scale, mean and std of the numbers that are stored"
        )
    return replace(formula, scale=formula.scale * _range(dtype))


def _tuple(values: float | Sequence[float] | None) -> tuple[float, ...] | None:
    """One number, or one for each channel."""
    if values is None:
        return None
    return tuple(map(float, values)) if isinstance(values, Sequence) else (float(values),)


def _scaled(pixels: Array, scale: float) -> Array:
    values: Array = pixels.astype(np.float32)
    values *= np.float32(scale)
    return values


def _listed(values: Sequence[float]) -> str:
    text = ", ".join(f"{v:.6g}" for v in values)
    return text if len(values) == 1 else f"({text})"


def _range(dtype: np.dtype[Any]) -> float:
    """What makes pixels from 0 to 255 of unsigned integers."""
    return 255.0 if dtype.kind == "b" else 255 / np.iinfo(dtype).max


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
    if picture.dtype.kind in "ub":
        return _scaled(picture, _range(picture.dtype))
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
