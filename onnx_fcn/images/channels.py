"""Which axis of an array is the channels, and conversion between grey and RGB.

A network reads images with some number of axes and channels. An array with one axis more has an axis of channels: the
one that its file names, otherwise the last, or the first, of the right size. Grey is repeated three times for an RGB
network; RGB becomes grey as 0.299 R + 0.587 G + 0.114 B. Alpha (opacity) is dropped, unless the network reads as many
channels as there are with it. Nothing else is guessed: any other number of channels is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError

__all__ = ["GREY", "LUMA", "NUMBERS", "RGB", "Reading", "reading_of"]


#: ITU-R BT.601, the weights by which Pillow converts RGB to grey.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

#: What the samples are according to the file; `NUMBERS` are bands that are not colours. Arrays do not say.
GREY, RGB, NUMBERS = "grey", "RGB", "numbers"


@dataclass(frozen=True)
class Reading:
    """How an array is read for a network.

    Attributes:
        order: axes of the array: the axis of channels, if there is one, then the axes of the image.
        rank: number of axes of the image.
        kept: number of samples read, from the first; the others are alpha.
        channels: number of channels after conversion.
    """

    order: tuple[int, ...]
    rank: int
    kept: int
    channels: int

    def box(self, ndim: int, space: Sequence[slice]) -> tuple[slice, ...]:
        """The index of the part of the array that contains a box of the image."""
        index = [slice(0, 1)] * ndim
        for axis, part in zip(self.order[-self.rank :], space):
            index[axis] = part
        if len(self.order) > self.rank:
            index[self.order[0]] = slice(0, self.kept)
        return tuple(index)

    def arrange(self, part: Any) -> Any:
        """A part of the array, with all its axes → (kept, *space); numpy or dask."""
        index = tuple(slice(None) if k in self.order else 0 for k in range(part.ndim))
        axes = sorted(self.order)
        pixels = part[index].transpose([axes.index(k) for k in self.order])
        return pixels if len(self.order) > self.rank else pixels[None]

    def mix(self, pixels: Array) -> Array:
        """(kept, *space) → (channels, *space)."""
        if self.kept == self.channels:
            return pixels
        if self.channels == 1:
            grey: Array = np.tensordot(LUMA, pixels.astype(np.float32), 1)[None]
            return grey
        return np.repeat(pixels, self.channels, axis=0)


def reading_of(
    shape: Sequence[int],
    rank: int,
    channels: int | None,
    name: str,
    *,
    samples: int | None = None,
    tone: str = "",
    alpha: int = 0,
) -> Reading:
    """How an array is read for a network.

    Args:
        shape: shape of the array.
        rank: number of axes of the image: 2 for a picture.
        channels: number of channels that the network reads; None to keep all.
        name: name of the array in messages.
        samples: the axis of colours or bands, if the file names one.
        tone: what the samples are: `GREY`, `RGB` or `NUMBERS`; empty if unknown.
        alpha: number of samples at the end that are not colours.

    Raises:
        OptionError: if it is not an image with this number of axes and channels.
    """
    axes = list(range(len(shape)))
    while len(axes) > rank and shape[axes[0]] == 1 and axes[0] != samples:
        if len(axes) == rank + 1 and channels in (1, None):
            break
        axes.pop(0)
    found, order = 0, axes  # not an image, as far as is known
    if len(axes) == rank and samples not in axes:
        found = 1
    elif len(axes) == rank + 1:
        axis = samples if samples in axes else _axis_of_channels(shape, axes, channels, rank)
        if axis is not None:
            found, order = shape[axis], [axis, *(k for k in axes if k != axis)]
    colours = found - alpha
    wanted = colours if channels is None else channels
    is_picture = rank == 2 and tone != NUMBERS
    if found > 0 and wanted in (found, colours):
        return Reading(tuple(order), rank, wanted, wanted)
    if is_picture and (colours, wanted) in ((1, 3), (3, 1)):
        return Reading(tuple(order), rank, colours, wanted)
    kind = ("one axis" if rank == 1 else f"{rank} axes") + (
        f" and {channels} channel{'s' * (channels > 1)}" if channels else ""
    )
    if is_picture and tone and channels is not None:
        picture = f"a picture in {tone}" + " with alpha" * bool(alpha)
        wants = "in RGB or grey" if channels in (1, 3) else f"of {channels} channels"
        raise OptionError(f"{name} is {picture}, and the model takes images with {kind}: give one {wants}")
    perhaps = "; if one channel is alpha, remove it" if rank == 2 and found in (2, 4) else ""
    if rank == 1 and channels == 1 and len(axes) == 2:
        perhaps = "; mix stereo sound to mono"
    raise OptionError(f"{name} has the shape {tuple(shape)}, and the model takes images with {kind}{perhaps}")


def _axis_of_channels(shape: Sequence[int], axes: Sequence[int], channels: int | None, rank: int) -> int | None:
    """The last axis, otherwise the first, whose size is the number of channels, or one convertible to it."""
    if channels is None:
        return axes[-1]
    likely = [channels, {1: 3, 3: 1}.get(channels, channels)] if rank == 2 else [channels]
    found = [axis for count in likely for axis in (axes[-1], axes[0]) if shape[axis] == count]
    if found:
        return found[0]
    return axes[-1] if rank == 2 and shape[axes[-1]] in (2, 4) else None
