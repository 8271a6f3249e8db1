"""Dilation beyond the output stride: the step and rate of an operator, and what others may read of a dilated map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.emitter import END
from onnx_fcn.lifting.lifted import Axis, Lifted
from onnx_fcn.lifting.refusals import RUN_THE_REST
from onnx_fcn.lifting.site import Site

__all__ = ["cell_maps", "check_undilated", "dilation_refusal", "maximum_of_slices", "split_stride", "undilate"]


def split_stride(site: Site, axis: Axis, stride: int) -> tuple[int, int]:
    """(step in cells of the map, rate of the result): beyond the requested output stride operators dilate."""
    target = site.output_stride(axis)
    if target is None or not axis.slides:
        return stride, 1
    room, step = target / axis.stride, stride * axis.rate
    step = math.gcd(step, int(room)) if room.denominator == 1 else 1
    return step, stride * axis.rate // step


def undilate(site: Site, x: Lifted) -> Lifted:
    """Every rate-th cell: those that the map has without dilation. Global operators must read only these."""
    axes = [k for k, a in enumerate(x.space) if a.rate > 1]
    if not axes:
        return x
    zeros, most = [0] * len(axes), [END] * len(axes)
    name = site.slice(x.map, zeros, most, [2 + k for k in axes], [x.space[k].rate for k in axes])
    rates = {k: x.space[k].rate for k in axes}
    space = tuple(a.slid(a.window, "w", 1, rates[k]) if k in axes else a for k, a in enumerate(x.space))
    return replace(x, map=name, space=tuple(replace(a, atoms=b.atoms) for a, b in zip(space, x.space)))


def check_undilated(site: Site, x: Lifted, does: str) -> None:
    """Check that a map is not dilated.

    Raises:
        Unsupported: if it is; the operator `does` something with neighbouring cells or with all of them.
    """
    if any(a.rate > 1 for a in x.space):
        raise dilation_refusal(site, does)


def dilation_refusal(site: Site, does: str) -> Unsupported:
    """The refusal of an operator that `does` something that is not possible on a dilated map."""
    if site.is_stride_requested:
        return Unsupported(
            f"{does}, which gives a different result on a map with answers in between",
            code="rate",
            hint="a coarser --output-stride leaves the maps before it unchanged",
        )
    several = site.has_several_outputs
    return Unsupported(
        f"{does}, but the answers of all branches share one grid only if the map before it is dilated",
        code="rate",
        hint="convert outputs with different strides separately, with --outputs" if several else RUN_THE_REST,
    )


def maximum_of_slices(
    site: Site, x: Lifted, kernel: Sequence[int], strides: Sequence[int], rates: Sequence[int], pads: Sequence[int]
) -> str:
    """A MaxPool that dilates as maxima of shifted slices, one axis after the other; pads are begins, then ends."""
    rank, name = len(kernel), x.map
    if any(pads):
        lowest = site.scalar(x, site.lowest(x.elem_type))
        name = site.pad(name, [0, 0, *pads[:rank]], [0, 0, *pads[rank:]], lowest)
    for k, (taps, stride, rate) in enumerate(zip(kernel, strides, rates)):
        behind = [(taps - 1 - tap) * rate for tap in range(taps)]
        starts = [tap * rate for tap in range(taps)]
        parts = [
            site.slice(name, [start], [-left if left else END], [2 + k], [stride])
            for start, left in zip(starts, behind)
        ]
        name = parts[0] if taps == 1 else site.emit(parts, "Max")
    return name


def cell_maps(site: Site, x: Lifted, axes: Sequence[int]) -> list[str]:
    """For each cell of the window along these axes, in row-major order, the map of that cell in all windows."""
    space = [x.space[k] for k in axes]
    names = []
    for at in np.ndindex(*(a.window for a in space)):
        left = [(a.window - 1 - p) * a.rate for a, p in zip(space, at)]
        starts, ends = [p * a.rate for a, p in zip(space, at)], [-n if n else END for n in left]
        names.append(site.slice(x.map, starts, ends, [k + 2 for k in axes], [a.step for a in space]))
    return names
