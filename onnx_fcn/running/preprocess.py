"""From pixels to the input of a network: the formula, and its usual presets.

A network was trained on

    x = (pixel · scale - mean) / std

per channel, and an ONNX file does not record it. The usual choices have names, for pixels from 0 to 255:

    unit       pixel/255: 0 to 1
    imagenet   (pixel/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225): torchvision, timm
    tf         pixel/127.5 - 1: -1 to 1, as Keras calls it
    caffe      BGR, pixel - (103.939, 116.779, 123.68): Caffe's and Keras's older networks
    raw        the pixels unchanged: 0 to 255

Data that is not a picture, such as sound or a scientific image, is used unchanged by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError

__all__ = ["PRESETS", "Preprocessing", "changed", "for_stored", "is_picture"]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the input of a network: x = (pixel · scale - mean) / std.

    Attributes:
        scale: factor of the pixels. None: 1/255 of pixels from 0 to 255, and 1 for numbers that are not a picture's.
        mean: one value per channel, or one for all.
        std: one value per channel, or one for all.
        order: ``RGB`` or ``BGR``: the order of channels that the network reads, also in `mean` and `std`.
        full_scale: what the largest unsigned integer counts as, whatever its number of bits: 255 in the presets. None:
            the formula is for numbers as they are stored.
    """

    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: str = "RGB"
    full_scale: float | None = None

    def __post_init__(self) -> None:
        """Raises OptionError if the order is unknown, a number is not finite, or scale or std is zero."""
        for name in ("mean", "std"):
            values = np.atleast_1d(np.asarray(getattr(self, name), np.float64))  # also a list, an array or a number
            object.__setattr__(self, name, tuple(values.tolist()))
        if self.order not in ("RGB", "BGR"):
            raise OptionError(f"the channel order is RGB or BGR, not '{self.order}'")
        if not np.isfinite([self.factor, *self.mean, *self.std]).all() or 0 in (self.factor, *self.std):
            raise OptionError("scale, mean and std are finite numbers, and neither scale nor std is zero")
        if self.full_scale is not None and not 0 < self.full_scale < np.inf:
            raise OptionError(f"full scale is a positive number, not {self.full_scale}")

    @property
    def factor(self) -> float:
        """The scale for pixels from 0 to 255."""
        return 1 / 255 if self.scale is None else self.scale

    @classmethod
    def named(cls, name: str) -> Preprocessing:
        """One of the presets.

        Raises:
            OptionError: if there is none of that name.
        """
        if name not in PRESETS:
            raise OptionError(f"there is no preprocessing '{name}': it is one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def __call__(self, pixels: Array) -> Array:
        """(C, *space) → the input of the network in float32; in the same dtype if values do not change.

        Raises:
            OptionError: if `mean` or `std` have another number of channels.
        """
        channels = len(pixels)
        self.check(channels)
        if self.order == "BGR" and channels == 3:
            pixels = pixels[::-1]
        if self.keeps_values:
            return pixels
        column = (-1,) + (1,) * (pixels.ndim - 1)
        values = _scale(pixels, self.factor)
        values -= np.array(self.mean, np.float32).reshape(column)
        values /= np.array(self.std, np.float32).reshape(column)
        return values

    def check(self, channels: int) -> None:
        """Raises OptionError if `mean` or `std` have another number of channels."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                wanted = "one value" if channels == 1 else f"one value or {channels}"
                raise OptionError(
                    f"the {name} {_list_text(values)} is for {len(values)} channels, and the network reads {channels}: "
                    f"give --mean and --std {wanted} each"
                )

    @property
    def keeps_values(self) -> bool:
        """Do values stay unchanged?"""
        return self.factor == 1 and not any(self.mean) and all(s == 1 for s in self.std)

    def __str__(self) -> str:
        """The formula, such as ``(pixel/255 - 0.5) / 0.25``."""
        factor = self.factor
        whole = 0 < factor < 1 and abs(1 / factor - round(1 / factor, 3)) < 1e-9
        text = "pixel" if factor == 1 else f"pixel/{1 / factor:.6g}" if whole else f"pixel·{factor:.6g}"
        if any(self.mean):
            text = f"{text} - {_list_text(self.mean)}"
        if any(s != 1 for s in self.std):
            text = f"({text}) / {_list_text(self.std)}" if " " in text else f"{text} / {_list_text(self.std)}"
        return f"{text}, in the order BGR" if self.order == "BGR" else text


PRESETS = {
    "unit": Preprocessing(1 / 255, full_scale=255),
    "imagenet": Preprocessing(1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), full_scale=255),
    "tf": Preprocessing(1 / 127.5, mean=(1.0,), full_scale=255),
    "caffe": Preprocessing(1.0, mean=(103.939, 116.779, 123.68), order="BGR", full_scale=255),
    "raw": Preprocessing(1.0, full_scale=255),
}


def changed(preset: str | None, **numbers: Any) -> str | Preprocessing | None:
    """A preset with some of its numbers changed, or a formula of them alone; the preset if there are none.

    Args:
        preset: its name.
        numbers: attributes of `Preprocessing`; those that are None do not count.

    Raises:
        OptionError: if there is no such preset, or a number is invalid.
    """
    given = {name: value for name, value in numbers.items() if value is not None}
    if not given:
        return preset
    return replace(Preprocessing() if preset is None else Preprocessing.named(preset), **given)


def is_picture(dtype: np.dtype[Any], rank: int, channels: int) -> bool:
    """Are these brightnesses, from 0 to full scale? Unsigned integers in two axes, as bytes or as grey or RGB."""
    return dtype.kind == "u" and rank == 2 and (dtype.itemsize == 1 or channels in (1, 3))


def for_stored(
    wanted: str | Preprocessing | None,
    dtype: np.dtype[Any],
    white: float,
    rank: int,
    channels: int,
    reads_integers: bool,
) -> Preprocessing:
    """The formula for the numbers of a file as they are stored.

    A preset is for pixels from 0 to 255: unsigned integers are scaled so that full scale is 255. Without a scale,
    pictures are divided by 255 then; everything else, such as sound, bands of a scene or floats, keeps its scale.

    Args:
        wanted: a preset's name, or a formula.
        dtype: type of the stored numbers.
        white: the stored number for full scale.
        rank: number of axes of the image.
        channels: number of channels that the network reads.
        reads_integers: does the network read integers? Then they are not scaled by default.

    Raises:
        OptionError: if there is no such preset, or one is given for numbers that are not unsigned integers.
    """
    formula = Preprocessing.named(wanted) if isinstance(wanted, str) else wanted or Preprocessing()
    if formula.scale is None:
        by_default = is_picture(dtype, rank, channels) and not reads_integers
        formula = replace(formula, scale=1 / 255, full_scale=255) if by_default else replace(formula, scale=1.0)
    if formula.full_scale is None:
        return formula
    if dtype.kind != "u":
        preset = f"preset '{wanted}'" if isinstance(wanted, str) else "a preset"
        raise OptionError(
            f"{preset} is for pixels from 0 to 255 in unsigned integers, and these are {dtype}: give the "
            "scale, mean and std of the stored numbers"
        )
    return replace(formula, scale=formula.factor * formula.full_scale / white, full_scale=None)


def _scale(pixels: Array, scale: float) -> Array:
    values: Array = pixels.astype(np.float32)
    values *= np.float32(scale)
    return values


def _list_text(values: Sequence[float]) -> str:
    text = ", ".join(f"{v:.6g}" for v in values)
    return text if len(values) == 1 else f"({text})"
