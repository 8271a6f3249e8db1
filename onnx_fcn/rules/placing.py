"""Placing a sliding operator on a map.

Sliding commutes with windows, so the operator stays unchanged and only the geometry is updated. Parameters that depend
on the size (`auto_pad`) are resolved at the native size and frozen. If the native output is a single cell, nothing
slides: the operator *is* a dense layer (or a pooling) over the window. Its kernel is cropped to the window, its padding
is removed, and it is applied at every position of the grid. Along axes that are not the image's, it does the same in
every window, so it stays as it is there, with its padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onnx_fcn._types import Array, record
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.dilation import split_stride
from onnx_fcn.lifting.emitter import END
from onnx_fcn.lifting.facts import Known, Shared
from onnx_fcn.lifting.layouts import padding_refusal
from onnx_fcn.lifting.lifted import Axis, Lifted, atoms_of, dim_of
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.weights import kernel

__all__ = ["Placed", "Plan", "Slide", "parameters", "place", "place_kernel", "result"]


@record
class Slide:
    """An operator's parameters along one axis of the original tensor, in cells, with the padding resolved."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0
    ceil: bool = False

    @property
    def span(self) -> int:
        """Number of cells that the dilated kernel covers."""
        return (self.kernel - 1) * self.dilation + 1

    def cells(self, extent: int) -> int:
        """Number of output cells for an input extent (ONNX Conv and pooling operators)."""
        room = extent + self.begin + self.end - self.span
        if not self.ceil:
            return room // self.stride + 1
        cells = -(-room // self.stride) + 1
        if (cells - 1) * self.stride >= extent + self.begin:  # no window starts in the padding at the end
            cells -= 1
        return cells

    def overflows(self, extent: int) -> bool:
        """Whether a window reaches beyond the padding at the end, as ceil_mode allows."""
        return (self.cells(extent) - 1) * self.stride + self.span > extent + self.begin + self.end

    def taps(self, extent: int) -> range:
        """The taps of the first window that are inside the map.

        Raises:
            Unsupported: if there are none.
        """
        inside = [t for t in range(self.kernel) if 0 <= t * self.dilation - self.begin < extent]
        if not inside:
            raise Unsupported(f"its kernel of {self.kernel} is entirely in the padding", code="padding")
        return range(inside[0], inside[-1] + 1)


@record
class Placed:
    """An operator along one axis of the map, in cells of the map; by default the operator does nothing there.

    Attributes:
        made: the axis of the result.
        taps: the remaining taps of the kernel.
        stride, dilation, begin, end: parameters of the emitted operator.
        crop: cells at the start and at the end that no tap of any window reaches.
        counted: for an average that counts padding, the ratio of remaining taps to counted taps.
    """

    made: Axis
    taps: range = range(1)
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0
    crop: tuple[int, int] = (0, 0)
    counted: float = 1.0

    def along(self, axis: Axis) -> Placed:
        """The same operator along an axis that is parallel to its own."""
        made = axis.parallel(self.made, atoms_of(self.made.window, _name_along(axis)))
        return Placed(made, self.taps, self.stride, self.dilation, self.begin, self.end, self.crop, self.counted)


@record
class Plan:
    """An operator on all axes of the map.

    Attributes:
        axes: the operator along each spatial axis.
        contracts: whether the window is contracted along some axis.
        ceil: whether the output size is rounded up.
    """

    axes: tuple[Placed, ...]
    contracts: bool = False
    ceil: bool = False

    @property
    def kernel(self) -> list[int]:
        """Taps along each axis."""
        return [len(a.taps) for a in self.axes]

    @property
    def dilations(self) -> list[int]:
        """Cells between taps along each axis."""
        return [a.dilation for a in self.axes]

    @property
    def begins(self) -> list[int]:
        """Padding at the start of each axis."""
        return [a.begin for a in self.axes]

    @property
    def ends(self) -> list[int]:
        """Padding at the end of each axis."""
        return [a.end for a in self.axes]

    @property
    def space(self) -> tuple[Axis, ...]:
        """The axes of the result."""
        return tuple(a.made for a in self.axes)

    @property
    def counted(self) -> float:
        """For an average that counts padding, the ratio of remaining taps to counted taps."""
        return math.prod(a.counted for a in self.axes)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the emitted operator."""
        return {
            "kernel_shape": self.kernel,
            "strides": [a.stride for a in self.axes],
            "dilations": self.dilations,
            "pads": [*self.begins, *self.ends],
            "auto_pad": "NOTSET",
        }

    def cut(self, w: Array, axes: Sequence[int]) -> Array:
        """(…, taps along these axes of the map) -> (…, the remaining taps)."""
        cuts: Any = (..., *(slice(self.axes[k].taps.start, self.axes[k].taps.stop) for k in axes))
        remaining: Array = w[cuts]
        return remaining


def parameters(site: Site, extents: Sequence[int], kernel_shape: Sequence[int]) -> list[Slide]:
    """The node's parameters along each axis, with `auto_pad` resolved at the native extents.

    Raises:
        Unsupported: if attributes differ in length, the kernel does not fit the extents, or runtimes read `auto_pad`
            differently.
    """
    rank = len(kernel_shape)
    strides, dilations = site.attr("strides") or [1] * rank, site.attr("dilations") or [1] * rank
    pads = site.attr("pads") or [0] * 2 * rank
    mode, ceil = str(site.attr("auto_pad", "NOTSET")), site.flag("ceil_mode")
    if not (rank == len(strides) == len(dilations) == len(extents) and len(pads) == 2 * rank):
        lengths = f"a kernel of {rank}, strides of {len(strides)}, dilations of {len(dilations)}, pads of {len(pads)}"
        raise Unsupported(f"slides along {len(extents)} axes with {lengths} values", code="rank")
    result = []
    for k, extent in enumerate(extents):
        slide = Slide(kernel_shape[k], strides[k], dilations[k], pads[k], pads[k + rank], ceil)
        if mode != "NOTSET":
            slide = replace(slide, begin=0, end=0)
            _check_alike(site, slide, mode, extent)
            slide = replace(slide, ceil=False)
        if mode.startswith("SAME"):
            total = max(_same(slide, extent), 0)
            small, large = total // 2, total - total // 2
            begin, end = (small, large) if mode == "SAME_UPPER" else (large, small)
            slide = replace(slide, begin=begin, end=end)
        if slide.cells(extent) < 1:
            raise Unsupported(
                f"its kernel of {slide.span} does not fit the {dim_of(extent)} cells of the window",
                code="size",
                needs="larger",
            )
        result.append(slide)
    return result


def _same(slide: Slide, extent: int) -> int:
    """The padding at both ends for ⌈extent / stride⌉ cells; negative if that leaves cells out."""
    return (-(-extent // slide.stride) - 1) * slide.stride + slide.span - extent


def _check_alike(site: Site, slide: Slide, mode: str, extent: int) -> None:
    """Raises Unsupported if runtimes read this `auto_pad` differently.

    Measured with onnxruntime: a convolution cuts off a cell at the start from 3 on that are left out (SAME_LOWER: 4), a
    pooling from 2 on (3), and a pooling that dilates is padded as if it did not.
    """
    pools = site.op.endswith("Pool")
    if mode == "VALID":
        if slide.overflows(extent):
            raise Unsupported(
                "has auto_pad VALID and rounds its size up, where onnxruntime adds a cell for a part of its kernel, "
                "and others do not: give it explicit pads of zero, or no ceil_mode",
                code="padding",
            )
    elif pools and slide.dilation > 1:
        raise Unsupported(
            "has auto_pad and dilates, where onnxruntime pads for the kernel without its gaps, and others for all that "
            "it covers: give it explicit pads",
            code="padding",
        )
    elif _same(slide, extent) < (-2 if mode == "SAME_UPPER" else -3) + pools:
        raise Unsupported(
            f"has auto_pad with a kernel of {slide.span} and a stride of {slide.stride}, where onnxruntime cuts off "
            "cells, and others pad with none: give it explicit pads",
            code="padding",
        )


def place(site: Site, x: Lifted, axes: Sequence[int], slides: Sequence[Slide]) -> tuple[Lifted, Plan]:
    """Place an operator's axes on the map's axes: it slides, or contracts the window if that becomes one cell.

    Returns the map, cropped if the kernel does not reach the whole window, and the operator on it.

    Raises:
        Unsupported: if it contracts a padded window, or its kernel is entirely in its own padding.
    """
    if all(s.cells(x.space[k].window) == 1 for s, k in zip(slides, axes) if x.space[k].image is not None):
        return _place_over_window(site, x, axes, slides)
    return x, _place_sliding(site, x, axes, slides)


def _place_over_window(site: Site, x: Lifted, axes: Sequence[int], slides: Sequence[Slide]) -> tuple[Lifted, Plan]:
    """Place an operator that reduces a window to one cell at every position of the grid: (*window) -> (1, …)."""
    covered = [k for slide, k in zip(slides, axes) if slide.cells(x.space[k].window) == 1]
    if any(s.ceil and s.overflows(x.space[k].window) for s, k in zip(slides, axes) if k not in covered):
        raise Unsupported("covers the window, but rounds its size up along another axis", code="ceil")
    placed = {
        k: _cover_axis(x.space[k], slide) if k in covered else _slide_axis(x.space[k], slide, (slide.stride, 1), False)
        for slide, k in zip(slides, axes)
    }
    contracts = any(x.space[k].window > 1 for k in covered)
    plan = Plan(tuple(placed.get(k, Placed(axis)) for k, axis in enumerate(x.space)), contracts=contracts)
    if contracts and x.padding is not None:
        raise padding_refusal(site, x)
    crops = {k: p.crop for k, p in placed.items() if any(p.crop)}
    if crops:
        starts, ends = [front for front, _ in crops.values()], [-back or END for _, back in crops.values()]
        x = replace(x, map=site.slice(x.map, starts, ends, [k + 2 for k in crops]))
    site.note_sliding(pads=False, strides=False)
    if contracts:
        site.note("window", x, plan.kernel, inputs=x.width)
    return x, plan


def _cover_axis(axis: Axis, slide: Slide) -> Placed:
    """Place a kernel over the whole window along one axis, without taps in the padding or cells that no tap reaches."""
    taps = slide.taps(axis.window)
    front = taps[0] * slide.dilation - slide.begin
    back = axis.window - 1 - front - (len(taps) - 1) * slide.dilation
    padded = axis.window + slide.begin + slide.end
    return Placed(
        made=axis.contracted(front, axis.window - 1 - back),
        taps=taps,
        stride=axis.step,
        dilation=slide.dilation * axis.rate if len(taps) > 1 else 1,
        crop=(front * axis.rate, back * axis.rate),
        counted=len(taps) / min(slide.kernel, -(-padded // slide.dilation)),
    )


def _place_sliding(site: Site, x: Lifted, axes: Sequence[int], slides: Sequence[Slide]) -> Plan:
    """Place an operator unchanged, or dilated beyond the output stride: (*window) -> (*cells)."""
    steps = [split_stride(site, x.space[k], slide.stride) for slide, k in zip(slides, axes)]
    dilates = any(rate > 1 for _, rate in steps)  # ceil_mode applies to all axes, so all are written the same way
    placed: dict[int, Placed] = {}
    for n, k in enumerate(axes):
        axis, how = x.space[k], (slides[n], steps[n])
        same = (j for m, j in enumerate(axes[:n]) if (slides[m], steps[m]) == how and x.space[j].is_parallel(axis))
        like = next(same, None)
        placed[k] = _slide_axis(axis, *how, dilates) if like is None else placed[like].along(axis)
    moving = [(slide, step, x.space[k]) for slide, (step, _), k in zip(slides, steps, axes) if x.space[k].slides]
    pads = any(slide.begin or slide.end or slide.overflows(axis.window) for slide, _, axis in moving)
    site.note_sliding(pads=pads, strides=any(step > 1 for _, step, _ in moving))
    ceil = any(s.ceil for s in slides) and not dilates
    return Plan(tuple(placed.get(k, Placed(axis)) for k, axis in enumerate(x.space)), ceil=ceil)


def _slide_axis(axis: Axis, slide: Slide, step: tuple[int, int], dilates: bool) -> Placed:
    """Place a kernel that slides along one axis by `stride` cells; the resulting axis is dilated by `rate`.

    If some axis `dilates`, the size is padded instead of rounded up.
    """
    stride, rate = step
    dilation, begin, end = slide.dilation * axis.rate, slide.begin * axis.rate, slide.end * axis.rate
    if slide.ceil and dilates:  # room for the last window, but none that starts after the map
        end = axis.rate * min(slide.end + slide.stride - 1, max(slide.span - 1, slide.end))
    name = _name_along(axis)
    cells, ceil = slide.cells(axis.window), slide.ceil and not dilates
    made = axis.slid(cells, name, slide.kernel, stride, dilation, (begin, end), ceil=ceil, rate=rate)
    return Placed(made, range(slide.kernel), stride, dilation, begin, end)


def _name_along(axis: Axis) -> str:
    """The name of the cells along an axis."""
    return axis.atoms[0].name.rstrip("'") if axis.atoms else "w"


def result(site: Site, x: Lifted, plan: Plan, axes: Sequence[int], name: str, channels: int | None) -> Lifted:
    """The fact of a sliding operator's output (n, channels, spatial axes …)."""
    new = x.channels if channels is None else atoms_of(channels, "c")
    origins = site.record_reduction(x, contextable=False) if plan.contracts else x.origins
    batch = (x.batch,) if x.batch.size > 1 else ()
    layout = (batch, new, *(plan.space[k].atoms for k in axes))
    # an earlier Pad is consumed by the operator that slides: from here on it is the trunk's own padding
    return replace(x, map=name, channels=new, space=plan.space, layout=layout, origins=origins, padding=None)


def place_kernel(site: Site, weight: Shared, shape: Sequence[int], axes: Sequence[int], plan: Plan) -> Shared | str:
    """The kernel, of this shape, with its axes in the map's order, cropped to the window.

    Raises:
        Unsupported: if a kernel that is computed from the image would have to change.
    """
    rank = len(shape) - 2
    order = sorted(range(rank), key=lambda k: axes[k])
    whole = all(len(plan.axes[k].taps) == n for k, n in zip(axes, shape[2:]))
    if whole and order == list(range(rank)) and len(plan.kernel) == rank:
        return weight
    if not isinstance(weight, Known):
        raise Unsupported(
            "needs a kernel that is computed from the image in another order of axes, or only a part of it",
            code="not-constant",
        )
    dims = (*shape[:2], *plan.kernel)
    return kernel(site, weight, lambda w: plan.cut(w, axes).transpose(0, 1, *(2 + k for k in order)), dims)
