"""From pixels to what a network reads: the formula, and its usual choices.

What a network was trained on is

    x = (pixel · scale - mean) / std

for each channel, and no ONNX file says it; the usual choices have names, and are about pixels from 0 to 255:

    unit       pixel/255: 0 to 1
    imagenet   (pixel/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225): torchvision, timm
    tf         pixel/127.5 - 1: -1 to 1, as Keras calls it
    caffe      BGR, pixel - (103.939, 116.779, 123.68): Caffe's and Keras's older networks
    raw        the pixels as they are: 0 to 255

What is no picture, such as sound or a scientific image, is read as its numbers are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError

__all__ = ["PRESETS", "Preprocessing", "chosen", "for_stored", "is_picture"]


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
                wanted = "one value" if channels == 1 else f"one value or {channels}"
                raise OptionError(
                    f"the {name} {_listed(values)} is for {len(values)} channels, and the network reads {channels}: "
                    f"give --mean and --std {wanted} each"
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


def is_picture(dtype: np.dtype[Any], rank: int, channels: int) -> bool:
    """Are these brightnesses, from 0 to full scale? Unsigned integers in two axes, as bytes or as grey or RGB."""
    return dtype.kind == "u" and rank == 2 and (dtype.itemsize == 1 or channels in (1, 3))


def for_stored(
    preset: str | Preprocessing | None,
    dtype: np.dtype[Any],
    white: float,
    rank: int,
    channels: int,
    reads_integers: bool,
    **numbers: Any,
) -> Preprocessing:
    """What becomes of numbers as a file holds them.

    A preset by its name is about pixels from 0 to 255, and unsigned integers then count from 0 to full scale, 255.
    Without one, a picture becomes what it does by default (``unit``); everything else, such as sound, bands of a scene
    or floats, goes in as it is stored, and so does whatever is given a scale of its own.

    Args:
        preset: its name, or the numbers, which are for what is stored.
        dtype: of what is stored.
        white: the number that stands for full scale.
        rank: axes of the image.
        channels: that the network takes.
        reads_integers: does the network? Then there is no default but ``raw``.
        numbers: as in `chosen`.

    Raises:
        OptionError: as `chosen` does; a preset was asked for, and those are no pixels of a picture.
    """
    by_default = is_picture(dtype, rank, channels) and not reads_integers
    formula = chosen(preset, "unit" if by_default else "raw", **numbers)
    if isinstance(preset, Preprocessing) or (preset is None and (not by_default or numbers.get("scale") is not None)):
        return formula
    if dtype.kind != "u":
        raise OptionError(
            f"preset '{preset}' is about pixels from 0 to 255 in unsigned integers, and these are {dtype}: give the "
            "scale, mean and std of the numbers that are stored"
        )
    return replace(formula, scale=formula.scale * 255 / white)


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
