"""Which axis of an array holds the channels, and how grey and colours become each other.

A network takes images of some axes and channels. An array has an axis for the channels where it has one axis more: the
one that its file names, or else the last, or the first, that has as many. Grey goes into a network of colours three
times; colours go into one of grey as 0.299 R + 0.587 G + 0.114 B. Alpha, which says how opaque a pixel is, is left out,
unless the network takes as many channels as there are with it. Nothing else is guessed: whatever has other channels is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError

__all__ = ["GREY", "LUMA", "NUMBERS", "RGB", "Reading", "reading_of"]


#: ITU-R BT.601, as Pillow makes grey of colours.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

#: What a file says that its samples are; `NUMBERS` are bands that are no colours, and an array says nothing.
GREY, RGB, NUMBERS = "grey", "RGB", "numbers"


@dataclass(frozen=True)
class Reading:
    """How an array is read for a network.

    Attributes:
        order: axes of the array: that of the channels, if there is one, and those of the image.
        rank: how many of these are of the image.
        kept: the first so many samples; others are alpha.
        channels: that come out.
    """

    order: tuple[int, ...]
    rank: int
    kept: int
    channels: int

    def box(self, ndim: int, space: Sequence[slice]) -> tuple[slice, ...]:
        """The part of the array that holds a box of the image."""
        index = [slice(0, 1)] * ndim
        for axis, part in zip(self.order[-self.rank :], space):
            index[axis] = part
        if len(self.order) > self.rank:
            index[self.order[0]] = slice(0, self.kept)
        return tuple(index)

    def arranged(self, part: Any) -> Any:
        """A part of the array, with all of its axes → (kept, *space); also of a dask array."""
        index = tuple(slice(None) if k in self.order else 0 for k in range(part.ndim))
        axes = sorted(self.order)
        pixels = part[index].transpose([axes.index(k) for k in self.order])
        return pixels if len(self.order) > self.rank else pixels[None]

    def mixed(self, pixels: Array) -> Array:
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
        shape: of the array.
        rank: axes of the image: 2 for a picture.
        channels: that the network takes; None for as many as there are.
        name: how sentences call the array.
        samples: the axis that holds colours or bands, where the file says which.
        tone: what these are: `GREY`, `RGB` or `NUMBERS`; empty where nothing says it.
        alpha: how many of them, the last ones, are no colours.

    Raises:
        OptionError: it is no image of that many axes and channels.
    """
    axes = list(range(len(shape)))
    while len(axes) > rank and shape[axes[0]] == 1 and axes[0] != samples:
        if len(axes) == rank + 1 and channels in (1, None):
            break
        axes.pop(0)
    found, order = 0, axes  # no image at all, as far as is known
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
    perhaps = "; an alpha channel has to go, if that is one" if rank == 2 and found in (2, 4) else ""
    if rank == 1 and channels == 1 and len(axes) == 2:
        perhaps = "; sound in stereo has to be mixed to mono"
    raise OptionError(f"{name} has the shape {tuple(shape)}, and the model takes images with {kind}{perhaps}")


def _axis_of_channels(shape: Sequence[int], axes: Sequence[int], channels: int | None, rank: int) -> int | None:
    """The last axis, or else the first, that has as many as the network takes; or as can become those."""
    if channels is None:
        return axes[-1]
    likely = [channels, {1: 3, 3: 1}.get(channels, channels)] if rank == 2 else [channels]
    found = [axis for count in likely for axis in (axes[-1], axes[0]) if shape[axis] == count]
    if found:
        return found[0]
    return axes[-1] if rank == 2 and shape[axes[-1]] in (2, 4) else None
