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

A formula is about pixels from 0 to 255, whatever the number of bits (`full_scale` is 255), or about the numbers as they
are stored (None). `for_stored` makes the second of the first, and a converted file may contain either. Full scale is
the largest unsigned integer, and 1 for floats. What was trained on pictures stores the first (`for_training`), so that
bytes, 16 bits and floats of one picture give the same input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError

__all__ = [
    "PRESETS",
    "Preprocessing",
    "are_unit",
    "changed",
    "check_trained",
    "for_stored",
    "for_training",
    "is_picture",
    "range_of",
    "settled",
]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the input of a network: x = (pixel · scale - mean) / std.

    Attributes:
        scale: factor of the pixels. None: 1/255 of pixels from 0 to 255, and 1 for numbers that are not a picture's.
        mean: one value per channel, or one for all.
        std: one value per channel, or one for all.
        order: ``RGB`` or ``BGR``: the order of channels that the network reads, also in `mean` and `std`.
        full_scale: what the largest unsigned integer counts as, whatever its number of bits, and 1 in floats: 255 in
            the presets. None: the formula is for numbers as they are stored.
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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The formula of `to_json`.

        Raises:
            OptionError: if a number is invalid.
        """
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The formula as a JSON object: scale, mean, std, order and full_scale."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def of_stored(self, white: float) -> Preprocessing:
        """The same formula about the numbers of a file as they are stored; `white` is the number for full scale."""
        if self.full_scale is None:
            return self
        ratio = self.factor if self.full_scale == white else self.factor * self.full_scale / white
        return replace(self, scale=ratio, full_scale=None)

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
        with np.errstate(all="ignore"):  # the answers show it
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


@dataclass(frozen=True)
class OfFloats(Preprocessing):
    """A formula about stored floats whose full scale is 1: floats beyond 0 to 1 have another one, and are refused."""

    def __call__(self, pixels: Array) -> Array:
        """As a formula does.

        Raises:
            OptionError: if a pixel is not from 0 to 1.
        """
        if not are_unit(pixels):
            raise OptionError(
                f"the preprocessing is for pictures, whose floats are from 0 to 1, and these are {range_of(pixels)}: "
                "scale them to that, or give the formula of the stored numbers"
            )
        return super().__call__(pixels)

    __str__ = Preprocessing.__str__


PRESETS = {
    "unit": Preprocessing(1 / 255, full_scale=255),
    "imagenet": Preprocessing(1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), full_scale=255),
    "tf": Preprocessing(1 / 127.5, mean=(1.0,), full_scale=255),
    "caffe": Preprocessing(1.0, mean=(103.939, 116.779, 123.68), order="BGR", full_scale=255),
    "raw": Preprocessing(1.0, full_scale=255),
}


def changed(base: str | Preprocessing | None, **numbers: Any) -> str | Preprocessing | None:
    """A preset or formula with some of its numbers changed, or a formula of them alone; the base if there are none.

    Args:
        base: the preset's name, or the formula.
        numbers: attributes of `Preprocessing`; those that are None do not count.

    Raises:
        OptionError: if there is no such preset, or a number is invalid.
    """
    given = {name: value for name, value in numbers.items() if value is not None}
    if not given:
        return base
    return replace(Preprocessing.named(base) if isinstance(base, str) else base or Preprocessing(), **given)


def is_picture(dtype: np.dtype[Any], rank: int, channels: int, *, is_unit: bool = False) -> bool:
    """Are these brightnesses, from 0 to full scale?

    Unsigned integers in two axes, as bytes or as grey or RGB; and floats as grey or RGB, if all of them are from 0 to 1
    (`is_unit`).
    """
    if rank != 2 or dtype.kind not in "uf":
        return False
    return channels in (1, 3) and is_unit if dtype.kind == "f" else dtype.itemsize == 1 or channels in (1, 3)


def range_of(pixels: Array) -> str:
    """The range of numbers in words, such as ``from 0 to 254``."""
    if not np.isfinite(pixels).all():
        return "not all finite: some are NaN or infinite"
    return f"from {pixels.min():g} to {pixels.max():g}"


def settled(
    wanted: str | Preprocessing | None,
    dtype: np.dtype[Any],
    rank: int,
    channels: int,
    reads_integers: bool,
    *,
    is_unit: bool = False,
) -> Preprocessing:
    """The formula that is asked for, with its scale: without one, that of pictures or of other numbers.

    Pictures are divided by 255, with pixels from 0 to 255; everything else, such as sound, bands of a scene or floats,
    keeps its scale.

    Args:
        wanted: a preset's name, or a formula.
        dtype: type of the stored numbers.
        rank: number of axes of the image.
        channels: number of channels that the network reads.
        reads_integers: does the network read integers? Then they are not scaled by default.
        is_unit: are the numbers known to be floats from 0 to 1?

    Raises:
        OptionError: if there is no such preset.
    """
    formula = Preprocessing.named(wanted) if isinstance(wanted, str) else wanted or Preprocessing()
    if formula.scale is not None:
        return formula
    if is_picture(dtype, rank, channels, is_unit=is_unit) and not reads_integers:
        return replace(formula, scale=1 / 255, full_scale=255)
    return replace(formula, scale=1.0)


def for_training(
    wanted: str | Preprocessing | None,
    dtype: np.dtype[Any],
    white: float,
    rank: int,
    channels: int,
    reads_integers: bool,
    is_unit: bool,
) -> Preprocessing:
    """The formula that a trained file stores: about full scale if it was trained on pictures, in whatever numbers.

    Without a full scale, it is about numbers that are not a picture's. The arguments are those of `for_stored`.

    Raises:
        OptionError: if there is no such preset.
    """
    formula = settled(wanted, dtype, rank, channels, reads_integers, is_unit=is_unit)
    if formula.full_scale is None and is_picture(dtype, rank, channels, is_unit=is_unit):
        return replace(formula, full_scale=float(white))
    return formula


def check_trained(formula: Preprocessing | None, dtype: np.dtype[Any], rank: int, channels: int, name: str) -> None:
    """Raises OptionError if a network was trained on numbers that are not a picture's, and `name` is a picture.

    `formula` is the one that `for_training` gave.
    """
    if formula is not None and formula.full_scale is None and is_picture(dtype, rank, channels):
        raise OptionError(
            f"the network was trained on numbers that are not a picture's, and {name} is a picture of {dtype}: give it "
            "in the numbers that were trained on, or a formula for it with --preprocess"
        )


def for_stored(
    wanted: str | Preprocessing | None,
    dtype: np.dtype[Any],
    white: float,
    rank: int,
    channels: int,
    reads_integers: bool,
) -> Preprocessing:
    """The formula for the numbers of a file as they are stored; `white` is the number for full scale.

    One for pixels from 0 to 255, as presets are, gets unsigned integers scaled so that full scale is 255, and floats of
    a picture so that 1 is. Such a formula refuses floats beyond 0 to 1 when it reads them. The other arguments are
    those of `settled`.

    Raises:
        OptionError: if there is no such preset, or one is given for numbers that are not a picture's.
    """
    formula = settled(wanted, dtype, rank, channels, reads_integers)
    if formula.full_scale is not None and is_picture(dtype, rank, channels, is_unit=True) and dtype.kind == "f":
        return OfFloats(**vars(formula.of_stored(white)))
    if formula.full_scale is not None and dtype.kind != "u":
        subject = f"preset '{wanted}'" if isinstance(wanted, str) else "the preprocessing"
        raise OptionError(
            f"{subject} is for pixels from 0 to {formula.full_scale:g} in unsigned integers, and these are {dtype}: "
            "give the scale, mean and std of the stored numbers"
        )
    return formula.of_stored(white)


def are_unit(pixels: Array) -> bool:
    """Are all of them from 0 to 1? NaN is not."""
    return bool(pixels.min() >= 0 and pixels.max() <= 1)


def _scale(pixels: Array, scale: float) -> Array:
    values: Array = pixels.astype(np.float32)
    values *= np.float32(scale)
    return values


def _list_text(values: Sequence[float]) -> str:
    text = ", ".join(f"{v:.6g}" for v in values)
    return text if len(values) == 1 else f"({text})"
