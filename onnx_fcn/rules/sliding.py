"""Operators that slide: convolutions and poolings.

Sliding commutes with windows, so these operators stay unchanged and only the geometry is updated; `placing` describes
how an operator is placed on a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.geometry import Taps
from onnx_fcn.lifting.context import keep_global
from onnx_fcn.lifting.dilation import check_undilated, dilation_refusal, maximum_of_slices
from onnx_fcn.lifting.emitter import END
from onnx_fcn.lifting.facts import Fact, Known, Shared, Unmapped
from onnx_fcn.lifting.layouts import (
    along_channels,
    arrange,
    as_feature_map,
    at_each_position,
    expand_over,
    grouped,
    move_factors,
    spatial_axes,
)
from onnx_fcn.lifting.lifted import BATCH, Axis, Lifted, atoms_of
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.weights import kernel
from onnx_fcn.rules.dense import standing_convolution
from onnx_fcn.rules.placing import Placed, Plan, Slide, parameters, place, place_kernel, result
from onnx_fcn.rules.reduction import reduced


@lifts("Conv")
def conv(site: Site, x: Lifted, weight: Fact, bias: Shared | None = None) -> Lifted:
    """(N, C, *space) -> (N, M, *space')."""
    return convolved(site, x, weight, lambda x, w: [x, w, bias])


@lifts("FusedConv", domain="com.microsoft")
def fused_conv(site: Site, x: Lifted, weight: Fact, bias: Shared | None = None, added: Fact | None = None) -> Lifted:
    """A Conv fused with its activation by onnxruntime's optimiser."""
    if added is not None:
        raise Unsupported("also adds another map", code="fused-sum", hint="use the model before its optimisation")
    return convolved(site, x, weight, lambda x, w: [x, w, bias])


@lifts("QLinearConv")
def quantized_conv(
    site: Site,
    x: Lifted,
    x_scale: Shared,
    x_zero: Shared,
    weight: Fact,
    w_scale: Shared,
    w_zero: Shared,
    y_scale: Shared,
    y_zero: Shared,
    bias: Shared | None = None,
) -> Lifted:
    """(x, its scale and zero point, w, …, y's scale and zero point, bias)."""
    y = convolved(site, x, weight, lambda x, w: [x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias])
    return replace(y, elem_type=site.elem_type_of(y_zero))


@lifts("ConvInteger")
def integer_conv(site: Site, x: Lifted, weight: Fact, *zeros: Shared | None) -> Lifted:
    """Sums of products of integers, in int32."""
    y = convolved(site, x, weight, lambda x, w: [x, w, *zeros])
    return replace(y, elem_type=onnx.TensorProto.INT32)


def convolved(site: Site, x: Fact, weight: Fact, operands: Callable[[Lifted, Shared | str], list[Any]]) -> Lifted:
    """A convolution that slides or covers the window; `operands` lists its inputs for a map and a kernel.

    Raises:
        Unsupported: if its kernel differs between positions, or between the images of a batch.
    """
    if isinstance(x, Lifted) and isinstance(weight, Unmapped):
        return _convolved_by(site, x, weight, operands)
    if not isinstance(x, Lifted) or not isinstance(weight, Known):
        raise Unsupported("the weights of a convolution depend on the image", code="not-constant")
    shape = site.weight_shape(weight)
    if x.rank > 1 and not x.layout[1] and x.channels and x.is_live and shape[:2] == (1, 1):
        still = [k for k in range(2, x.rank) if x.space_of(x.layout[k]) is None and x.layout[k]]
        along = dict(enumerate(parameters(site, x.shape[2:], shape[2:]), 2))
        if all(along[k] == Slide(1) for k in still):
            return _window_sum(site, x, weight, shape, operands, along, still)
    x = move_factors(site, x)
    if x.is_map:
        return _slid(site, x, weight, shape, operands)
    if (taps := standing(site, x, shape[2:])) is not None:
        return standing_convolution(site, x, weight, taps, operands)
    if x.is_per_position and x.rank == len(shape):
        cells = [s.cells(n) for s, n in zip(parameters(site, x.shape[2:], shape[2:]), x.shape[2:])]
        return at_each_position(site, x, [shape[0], *cells], lambda t: site.emit(operands(t, weight)))
    return _slid(site, x, weight, shape, operands)


def _slid(
    site: Site,
    x: Lifted,
    weight: Shared,
    shape: Sequence[int],
    operands: Callable[[Lifted, Shared | str], list[Any]],
) -> Lifted:
    """A kernel (M, C/groups, *taps) on a feature map, at every position."""
    x = as_feature_map(site, x)
    x, axes = spatial_axes(site, x)
    slides = parameters(site, [x.space[k].window for k in axes], shape[2:])
    x, plan = place(site, x, axes, slides)
    w = place_kernel(site, weight, shape, axes, plan)
    y = site.emit(operands(x, w), group=site.attr("group", 1), **plan.attrs)
    return result(site, x, plan, axes, y, shape[0])


def _convolved_by(
    site: Site, x: Lifted, weight: Unmapped, operands: Callable[[Lifted, Shared | str], list[Any]]
) -> Lifted:
    """A convolution whose kernel is computed from the whole image, or from another input: the same at all positions."""
    shape = site.shape_of(weight)
    joined = x.rank > 1 and x.batch in x.layout[1]
    if joined or (site.batch == BATCH and any(n % BATCH == 0 for n in shape)):
        raise Unsupported(
            "convolves each image of a batch with a kernel of its own, which is computed from that image",
            code="kernel-per-image",
            hint="export the network with a batch of one",
        )
    return _slid(site, x, weight, shape, operands)


def standing(site: Site, x: Lifted, kernel_shape: Sequence[int]) -> dict[int, range] | None:
    """The taps of a kernel that covers some axes of the original and has one tap along the others; None if it slides.

    Also None if channels of a live map are not on axis 1, so that a wrong guess of the image axes is detected.
    """
    if x.rank < 3 or x.rank != 2 + len(kernel_shape) or (x.is_live and not set(x.channels) <= set(x.layout[1])):
        return None
    covers: dict[int, range] = {}
    for k, slide in enumerate(parameters(site, x.shape[2:], kernel_shape), 2):
        if slide.cells(x.shape[k]) == 1:
            covers[k] = slide.taps(x.shape[k])
            if len(covers[k]) != x.shape[k]:
                return None
        elif replace(slide, ceil=False) != Slide(1):
            return None
    return covers


def _window_sum(
    site: Site,
    x: Lifted,
    weight: Known,
    shape: Sequence[int],
    operands: Callable[[Lifted, Shared | str], list[Any]],
    slides: dict[int, Slide],
    still: Sequence[int],
) -> Lifted:
    """A convolution over all axes of a tensor, including the batch and the channels, as JAX writes window sums.

    (1, 1, N, *space, C) with a kernel of 1 along N and C becomes depthwise, with the same kernel for every channel.
    """
    moving = [k for k in range(2, x.rank) if k not in still]
    channels = [k for k in still if x.batch not in x.layout[k]]
    order = [*(k for k in still if k not in channels), *channels, *moving]
    x = as_feature_map(site, replace(x, layout=tuple(x.layout[k] for k in order)))
    x, axes = spatial_axes(site, x)
    x, plan = place(site, x, axes, [slides[k] for k in moving])
    dims = (x.width, 1, *plan.kernel)

    def view(w: Array) -> Array:
        w = w.transpose([0, 1, *still, *moving]).reshape(1, 1, *(shape[k] for k in moving))
        w = plan.cut(w, axes)
        return np.broadcast_to(w.transpose(0, 1, *(2 + axes.index(k) for k in sorted(axes))), (x.width, *w.shape[1:]))

    y = site.emit(operands(x, kernel(site, weight, view, dims)), group=x.width, **plan.attrs)
    made = result(site, x, plan, axes, y, None)
    back = [order.index(k) for k in range(2, len(order) + 2)]
    return replace(made, layout=((), (), *(made.layout[k] for k in back)))


@dataclass(frozen=True)
class Upsampling:
    """A transposed convolution along one axis, padding resolved: cell i spreads from cell i·stride - begin on.

    Attributes:
        span: cells that the dilated kernel covers.
        stride: cells of the result per cell of the map.
        begin, end: cells that are removed at the start and at the end.
        extra: cells that are added at the end.
    """

    span: int
    stride: int
    begin: int
    end: int
    extra: int

    def cells(self, extent: int) -> int:
        """Number of output cells for an input extent."""
        return (extent - 1) * self.stride + self.span + self.extra - self.begin - self.end

    @property
    def taps(self) -> Taps:
        """Cell j is computed from the cells ⌈(j + begin - span + 1)/stride⌉ … ⌊(j + begin)/stride⌋."""
        return Taps(Fraction(self.stride), 2 * (self.begin - self.span + self.stride), 2 * self.begin)

    @property
    def is_local(self) -> bool:
        """Whether every cell is computed from one cell, independently of its neighbours."""
        return self.span <= self.stride and not self.begin and not self.end


@lifts("ConvTranspose")
def conv_transpose(site: Site, x: Lifted, weight: Fact, bias: Shared | None = None) -> Lifted:
    """(N, C, *space) -> (N, M, *space·stride): finer cells on the same windows."""
    if not isinstance(weight, Known) or not isinstance(x, Lifted):
        raise Unsupported("the weights of a convolution depend on the image", code="not-constant")
    shape, group = site.weight_shape(weight), site.attr("group", 1)
    x = as_feature_map(site, x)
    x, axes = spatial_axes(site, x)
    if len(axes) != len(x.space):
        raise Unsupported("upsamples a map with more axes than the original", code="not-spatial")
    check_undilated(site, x, "upsamples the map")
    order = sorted(range(len(axes)), key=lambda k: axes[k])
    steps = _upsamplings(site, [x.space[k].window for k in axes], shape[2:])
    steps = [steps[k] for k in order]
    space = tuple(_finer(x, axis, step) for axis, step in zip(x.space, steps))
    pads = not all(s.is_local for s, axis in zip(steps, x.space) if axis.slides)
    site.note_sliding(pads=pads, strides=False)
    margins = [*(s.begin for s in steps), *(s.end for s in steps)]
    attrs: dict[str, Any] = {"pads": margins, "auto_pad": "NOTSET", "output_shape": None}
    w: Known | str = weight
    if order != list(range(len(axes))):
        dims = (*shape[:2], *(shape[2 + k] for k in order))
        w = kernel(site, weight, lambda w: w.transpose(0, 1, *(2 + k for k in order)), dims)
        for name in ("kernel_shape", "strides", "dilations", "output_padding"):
            given = site.attr(name)
            attrs[name] = [given[k] for k in order] if given else None
    y = site.emit([x, w, bias], **attrs)
    return result(site, x, Plan(tuple(map(Placed, space))), axes, y, shape[1] * group)


def _upsamplings(site: Site, extents: Sequence[int], kernel_shape: Sequence[int]) -> list[Upsampling]:
    """The node's parameters along each axis, with `auto_pad` and `output_shape` resolved at the native extents.

    Raises:
        Unsupported: if more cells are requested than a window gives.
    """
    rank = len(kernel_shape)
    strides, dilations = site.attr("strides") or [1] * rank, site.attr("dilations") or [1] * rank
    extra, pads = site.attr("output_padding") or [0] * rank, site.attr("pads") or [0] * 2 * rank
    mode, wanted = str(site.attr("auto_pad", "NOTSET")), site.attr("output_shape")
    steps = []
    for k, extent in enumerate(extents):
        span = (kernel_shape[k] - 1) * dilations[k] + 1
        step = Upsampling(span, strides[k], pads[k], pads[k + rank], extra[k])
        if mode == "VALID" or wanted or mode.startswith("SAME"):
            step = replace(step, begin=0, end=0)
        if wanted or mode.startswith("SAME"):
            total = step.cells(extent) - (wanted[-rank:][k] if wanted else extent * step.stride)
            if total < 0:
                raise Unsupported(f"requests {-total} more cells than a window gives", code="size")
            half = total // 2  # the larger half of an odd total is at the start, except for SAME_UPPER
            begin, end = (half, total - half) if mode == "SAME_UPPER" else (total - half, half)
            step = replace(step, begin=begin, end=end)
        steps.append(step)
    return steps


def _finer(x: Lifted, axis: Axis, step: Upsampling) -> Axis:
    """One axis of the map, upsampled.

    Raises:
        Unsupported: if the window is already contracted to one cell.
    """
    cells = step.cells(axis.window)
    if axis.window == 1 and cells > 1 and x.origins:
        raise Unsupported("upsamples one cell of a window to a map", code="decoder")
    name = axis.atoms[0].name if axis.atoms else "w"
    return axis.resampled(cells, name, step.taps, cells - axis.window * step.stride)


#: The reduction that a pooling over all of its axes is, by the operator and its p.
REDUCES = {
    ("MaxPool", 2): "ReduceMax",
    ("AveragePool", 2): "ReduceMean",
    ("LpPool", 1): "ReduceL1",
    ("LpPool", 2): "ReduceL2",
}


#: The attributes of a pooling.
PARAMETERS = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad")


@lifts("MaxPool", "AveragePool", "LpPool")
def pool(site: Site, x: Lifted) -> Fact:
    """(N, C, *space) -> (N, C, *space')."""
    return pooling(site, x, site.op)


def pooling(site: Site, x: Lifted, op: str, *rest: Shared | None) -> Fact:
    """A pooling `op` with the node's parameters, possibly on another type; `rest` are its other operands."""
    if site.has_output(1):
        raise Unsupported("the indices of a MaxPool are used, which refer to cells of the whole map", code="indices")
    x = move_factors(site, x)
    kind = REDUCES.get((op, site.attr("p", 2)))
    if kind and not x.is_map and not any(site.attr("pads") or []):
        taps = standing(site, x, site.attr("kernel_shape"))
        if taps is not None and len(taps) == x.rank - 2:
            return reduced(site, x, kind, list(taps), keepdims=True)
    if not x.is_map and x.is_per_position and not rest and x.rank == 2 + len(site.attr("kernel_shape")):
        cells = [s.cells(n) for s, n in zip(parameters(site, x.shape[2:], site.attr("kernel_shape")), x.shape[2:])]
        own = {} if op == site.op else {name: site.attr(name) for name in PARAMETERS}
        return at_each_position(
            site, x, [x.shape[1], *cells], lambda t: site.emit([t], None if op == site.op else op, **own)
        )
    along = across(site, x)
    if along:
        return across_channels(site, x, along, op, *rest)
    x = as_feature_map(site, x)
    x, axes = spatial_axes(site, x)
    slides = parameters(site, [x.space[k].window for k in axes], site.attr("kernel_shape"))
    whole = all(_is_whole(s, x.space[k].window) for s, k in zip(slides, axes))
    contextable = whole and any(x.space[k].window > 1 for k in axes)
    if contextable and site.is_context:
        return keep_global(site, x, "Global" + op)
    if site.is_left_out:
        if not kind or not contextable:
            raise Unsupported("does not pool exactly the positions of the map", code="cam")
        return reduced(site, x, kind, range(2, x.rank), keepdims=True)
    x, plan = place(site, x, axes, slides)
    y = pooled(site, x, plan, op, *rest)
    origins = site.record_reduction(x, contextable=contextable) if plan.contracts else x.origins
    return replace(result(site, x, plan, axes, y, None), origins=origins)


def _is_whole(slide: Slide, window: int) -> bool:
    """Is a pooling one of all positions along an axis, with the size of the map as its kernel, and not one that slides?

    One that slides, on a map that it happens to cover, has a kernel of another size, padding, or a stride of its own.
    """
    if slide.begin or slide.end or slide.kernel != window or slide.cells(window) != 1:
        return False
    return slide.stride in (1, slide.kernel) or window == 1


def across(site: Site, x: Lifted) -> dict[int, Slide]:
    """The parameters of a pooling that slides along channel axes only, by axis; empty if it also moves on the map.

    An example is the windowed mean of a local response normalisation: n () c h w, with a kernel of 5×1×1.
    """
    if x.is_map or x.rank != 2 + len(site.attr("kernel_shape")) or not set(x.layout[1]) <= set(x.channels):
        return {}
    slides = dict(enumerate(parameters(site, x.shape[2:], site.attr("kernel_shape")), 2))
    along = {k: s for k, s in slides.items() if set(x.layout[k]) & set(x.channels)}
    still = all(replace(s, ceil=False) == Slide(1) for k, s in slides.items() if k not in along)
    covered = {*x.layout[1], *(a for k in along for a in x.layout[k])}
    return along if still and covered == set(x.channels) else {}


def across_channels(site: Site, x: Lifted, along: dict[int, Slide], op: str, *rest: Shared | None) -> Lifted:
    """A pooling along channels at every cell; the cells are on an additional axis, along which it does nothing."""
    slides = [*along.values(), Slide(1)]
    attrs: dict[str, Any] = {
        "kernel_shape": [s.kernel for s in slides],
        "strides": [s.stride for s in slides],
        "dilations": [s.dilation for s in slides] if site.attr("dilations") else None,
        "pads": [*(s.begin for s in slides), *(s.end for s in slides)],
        "auto_pad": "NOTSET",
    }
    sizes = [s.cells(x.shape[k]) for k, s in along.items()]
    return along_channels(
        site, x, list(along), sizes, lambda t: site.emit([t, *rest], None if rest or op == site.op else op, **attrs)
    )


def pooled(site: Site, x: Lifted, plan: Plan, op: str, *rest: Shared | None) -> str:
    """Emit the pooling of a plan, or equivalent nodes if onnxruntime or the opset lacks its dilations."""
    dilated = any(d > 1 for d, n in zip(plan.dilations, plan.kernel) if n > 1)
    rounds = bool(site.attr("ceil_mode", 0)) and not plan.ceil and not plan.contracts
    if rounds and site.attr("count_include_pad", 0) and (any(plan.begins) or any(plan.ends)):
        raise Unsupported("an average that counts padding and rounds its size up cannot be dilated", code="rate")
    if rest and (dilated or plan.counted != 1.0):
        raise Unsupported("an average of integers is neither dilated nor cut to the window", code="rate")
    if op == "AveragePool" and dilated and (not plan.ceil or not site.dilates(op) or _wide(plan)):
        return average(site, x, plan)
    if dilated and op == "MaxPool" and site.is_portable and not plan.ceil:
        pads = [*plan.begins, *plan.ends]
        return maximum_of_slices(site, x, plan.kernel, plan.attrs["strides"], plan.dilations, pads)
    if dilated:
        site.check_dilates(op)
    attrs = {**plan.attrs, "ceil_mode": int(plan.ceil)}
    if op == "AveragePool":
        attrs["count_include_pad"] = int(site.flag("count_include_pad"))
    if not dilated and not (op == "MaxPool" and site.attr("dilations")):
        attrs["dilations"] = None
    if dilated and _wide(plan):
        lowest = 0 if op == "LpPool" else site.lowest(x.elem_type)
        x = x.on(site.pad(x.map, [0, 0, *plan.begins], [0, 0, *plan.ends], site.scalar(x, lowest)))
        attrs["pads"] = None
    y = site.emit([x, *rest], None if rest or op == site.op else op, **attrs)
    if op == "AveragePool" and site.flag("count_include_pad") and plan.counted != 1.0:
        y = site.emit([y, site.scalar(x, plan.counted)], "Mul")
    return y


def _wide(plan: Plan) -> bool:
    """Whether the padding is as wide as the undilated kernel. onnxruntime rejects such poolings."""
    return any(max(b, e) >= n for b, e, n in zip(plan.begins, plan.ends, plan.kernel))


def average(site: Site, x: Lifted, plan: Plan) -> str:
    """A dilated average: a depthwise convolution with equal weights, divided by the share of cells inside the map.

    Some runtimes ignore the dilations of AveragePool; only a size that is rounded up needs them.
    """
    padded = any(plan.begins) or any(plan.ends)
    if padded and site.flag("count_include_pad") and site.flag("ceil_mode"):
        raise Unsupported("an average that counts padding and rounds its size up cannot be dilated", code="rate")
    taps = float(np.prod(plan.kernel))
    kind = site.dtype(x.elem_type)
    mean = site.emit([x, np.full((x.width, 1, *plan.kernel), 1 / taps, kind)], "Conv", group=x.width, **plan.attrs)
    if not padded or site.flag("count_include_pad"):
        return mean
    ones = expand_over(site, np.ones((1, 1, *[1] * len(x.space)), kind), 1, x)
    inside = site.emit([ones, np.full((1, 1, *plan.kernel), 1 / taps, kind)], "Conv", **plan.attrs)
    return site.emit([mean, inside], "Div")


#: How many cells further inside the source of a padding cell is, per cell that it is beyond the edge.
MIRRORS = {"edge": 1, "reflect": 2}


def _pad_features(
    site: Site, x: Lifted, axis: int, amounts: tuple[int, int], value: Shared | None, mode: str
) -> Lifted:
    """Pad an axis of the original that is a part of the channels: (…, K, …) -> (…, K + amounts, …)."""
    made = atoms_of(x.shape[axis] + sum(amounts), "c")

    def emit(name: str, place: int) -> str:
        rank = 2 + len(x.space) if place == 1 else 4
        front, back = ([amount if k == place else 0 for k in range(rank)] for amount in amounts)
        return site.pad_as(name, [*front, *back], value, mode)

    y = grouped(site, x, x.layout[axis], emit, made)
    return replace(y, layout=(*x.layout[:axis], made, *x.layout[axis + 1 :]))


def _mirrored_by_phase(site: Site, x: Lifted, k: int, pads: tuple[int, int], mode: str) -> Lifted:
    """Repeat or reflect each phase of a dilated map by itself, as the undilated map is.

    The j-th cell beyond the end of a phase is j·rate cells beyond the end of the map. So blocks of `rate` cells, one of
    each phase, are repeated, or come in the opposite order: (…, n, …) → (…, n + rate·(front + back), …).

    Raises:
        Unsupported: if a phase may have too few cells.
    """
    axis, rate = 2 + k, x.space[k].rate
    if x.space[k].window < 2 + (max(pads) if mode == "reflect" else 0):
        raise dilation_refusal(site, "repeats or reflects all cells of a map")

    def block(j: int, *, front: bool) -> str:
        """The j-th block beyond an end, from 1 on."""
        first = 0 if mode == "edge" else j * rate
        start, end = (first, first + rate) if front else (-first - rate, -first or END)
        return site.slice(x.map, [start], [end], [axis])

    before = [block(j, front=True) for j in range(pads[0], 0, -1)]
    behind = [block(j, front=False) for j in range(1, pads[1] + 1)]
    cropped = [max(-n, 0) * rate for n in pads]
    kept = site.slice(x.map, [cropped[0]], [-cropped[1] or END], [axis]) if any(cropped) else x.map
    return x.on(site.emit([*before, kept, *behind], "Concat", axis=axis))


@lifts("Pad")
def pad(
    site: Site, x: Lifted, pads: Fact | None = None, value: Shared | None = None, axes: Fact | None = None
) -> Lifted:
    """Padding around the map, which a sliding operator must consume; padding of channels stays at each position."""
    amounts = site.attr("pads") if pads is None else site.ints(pads)
    which = site.ints(axes) if axes is not None else list(range(x.rank))
    if amounts is None or which is None or len(amounts) != 2 * len(which):
        raise Unsupported("does not give the padding of each axis", code="operands")
    begins, ends = [0] * x.rank, [0] * x.rank
    for k, a in enumerate(which):
        begins[x.axis(a)], ends[x.axis(a)] = amounts[k], amounts[k + len(which)]
    mode = str(site.attr("mode", "constant"))
    for k, group in enumerate(x.layout):
        if (begins[k] or ends[k]) and group and set(group) < set(x.channels):
            x = _pad_features(site, x, k, (begins[k], ends[k]), value, mode)
            begins[k] = ends[k] = 0
    if not any(begins) and not any(ends):
        return x
    x = arrange(site, x, x.channels_in_order)
    padded = [axis for k in range(x.rank) if begins[k] or ends[k] if (axis := x.space_of(x.layout[k])) is not None]
    if mode == "wrap" and any(x.space[axis].rate > 1 for axis in padded):
        raise dilation_refusal(site, "continues a map with its other end")
    rank = 2 + len(x.space)
    front, back = [0] * rank, [0] * rank
    channels, space, layout = x.channels, list(x.space), list(x.layout)
    padding = x.padding
    for k in range(x.rank):
        if not begins[k] and not ends[k]:
            continue
        size = x.shape[k] + begins[k] + ends[k]
        axis = x.space_of(x.layout[k])
        if axis is not None:
            rate = x.space[axis].rate
            front[2 + axis], back[2 + axis] = begins[k] * rate, ends[k] * rate
            margin = (front[2 + axis], back[2 + axis])
            space[axis] = x.space[axis].slid(size, x.layout[k][0].name, 1, pads=margin, rate=rate)
            layout[k] = space[axis].atoms
            if mode in MIRRORS:
                space[axis] = space[axis].mirrored(MIRRORS[mode] * max(*margin, 0))
            if mode in MIRRORS and rate > 1:
                x = _mirrored_by_phase(site, x, axis, (begins[k], ends[k]), mode)
                front[2 + axis] = back[2 + axis] = 0
            grows = (begins[k] > 0 or ends[k] > 0) and space[axis].slides
            padding = site.position if grows else padding
        elif x.layout[k] == x.channels and k != 0:
            front[1], back[1] = begins[k], ends[k]
            channels = layout[k] = atoms_of(size, "c")
        else:
            raise Unsupported(f"pads axis {k} of {x}, which is not an axis of the map", code="not-spatial")
    y = site.pad_as(x, [*front, *back], value, mode) if any((*front, *back)) else x.map
    site.note_sliding(pads=padding == site.position, strides=False)
    return replace(x, map=y, channels=channels, space=tuple(space), layout=tuple(layout), padding=padding)
