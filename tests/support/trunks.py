"""Layers of random trunks: from one feature map to the next, (N, C, *space) -> (N, C', *space')."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from drawn import Graph, Map, activated, combined, normalised, sliding
from law import Array
from onnx import TensorProto


def conv(g: Graph, x: Map) -> Map:
    how = sliding(g, x)
    if how is None:
        return x
    group = g.pick(1, *(d for d in (2, 3, x.channels) if x.channels % d == 0 and d > 1))
    outputs = group * g.integer(1, 8 if group == 1 else 2)
    fan = x.channels // group * math.prod(how.attrs["kernel_shape"])
    operands = [x.name, g.weight(g.normal(outputs, x.channels // group, *how.attrs["kernel_shape"], fan=fan))]
    if g.flag():
        operands.append(g.weight(g.normal(outputs)))
    g.exact &= not how.pads
    name = g.frozen(
        "Conv", *operands, plain=("Conv", operands, {**how.plain, "group": group}), group=group, **how.attrs
    )
    return Map(name, outputs, how.space)


def pool(g: Graph, x: Map) -> Map:
    op = g.pick("MaxPool", "AveragePool", "LpPool")
    how = sliding(g, x, pool=op)
    if how is None:
        return x
    more: dict[str, Any] = {}
    if op == "LpPool":
        more["p"] = g.pick(2, 1)
    if op == "AveragePool":
        more["count_include_pad"] = g.pick(0, 1)
    g.exact &= not how.pads
    name = g.frozen(op, x.name, plain=(op, [x.name], {**how.plain, **more}), **how.attrs, **more)
    return Map(name, x.channels, how.space)


def activation(g: Graph, x: Map) -> Map:
    return replace(x, name=activated(g, x.name))


def batch_norm(g: Graph, x: Map) -> Map:
    return replace(x, name=normalised(g, x.name, x.channels))


def constant(g: Graph, x: Map) -> Map:
    ones = [1] * len(x.space)
    shape = g.pick((), (x.channels, *ones), (1, x.channels, *ones), (1,), (1, 1, *ones))
    return replace(x, name=combined(g, x.name, g.normal(*shape)))


def same(g: Graph, x: Map) -> str:
    """A convolution that leaves the shape as it is."""
    size = g.pick(1, 3)
    kernel, group = [size] * len(x.space), g.pick(1, x.channels)
    w = g.normal(x.channels, x.channels // group, *kernel, fan=x.channels // group * math.prod(kernel))
    g.exact &= size == 1
    return str(g.emit("Conv", x.name, w, group=group, kernel_shape=kernel, pads=[size // 2] * 2 * len(x.space)))


def residual(g: Graph, x: Map) -> Map:
    branch = same(g, replace(x, name=activated(g, x.name)) if g.flag() else x)
    return replace(x, name=g.emit("Add", *((x.name, branch) if g.flag() else (branch, x.name))))


def branches(g: Graph, x: Map) -> Map:
    parts = [same(g, x), g.pick(x.name, None) or activated(g, x.name)]
    return Map(g.emit("Concat", *parts, axis=g.pick(1, 1 - x.rank) if g.opset >= 11 else 1), 2 * x.channels, x.space)


def recurse(g: Graph, x: Map) -> Map:
    """Channels in two parts, of which one goes on alone."""
    if x.channels < 2:
        return x
    first = g.integer(1, x.channels - 1)
    a, b = g.split(x.name, [first, x.channels - first])
    parts = [same(g, Map(a, first, x.space)), b]
    return replace(x, name=g.emit("Concat", *(parts[::-1] if g.flag() else parts), axis=1))


def shuffle(g: Graph, x: Map) -> Map:
    groups = next((d for d in (2, 3, 5, 7) if x.channels % d == 0), 1)
    inner = x.channels // groups
    before = [groups, inner, *x.cells]
    split = g.only("Reshape", x.name, g.pick(g.ints(0, *before), g.ints(-1, *before), g.ints(0, *before[:-1], -1)))
    turned = g.only("Transpose", split, perm=[0, 2, 1, *range(3, 1 + len(before))])
    name = g.only("Reshape", turned, g.pick(g.ints(0, x.channels, *x.cells), g.ints(-1, x.channels, *x.cells)))
    order = np.arange(x.channels).reshape(groups, inner).T.reshape(-1)
    g.instead(name, "Gather", [x.name, order], {"axis": 1})
    g.regrouped = True
    return replace(x, name=name)


def gate(g: Graph, x: Map) -> Map:
    """Squeeze and excite, behind a convolution if channels were shuffled: else it is taken for a part of the head.

    What is squeezed is a mean or a maximum of all positions, or their sum weighted by a softmax.
    """
    x = replace(x, name=same(g, x)) if g.regrouped else x
    hidden, ones = g.integer(1, 4), [1] * len(x.space)
    axes = list(range(2, x.rank))
    down, up = g.normal(hidden, x.channels, fan=x.channels), g.normal(x.channels, hidden, fan=hidden)
    if g.flag():
        if g.flag():
            h = g.reduce("ReduceMean", x.name, axes, False)
        else:
            h = g.reshape(weighted_sum(g, x), [x.channels])
        h = g.emit("Gemm", h, down, g.normal(hidden), transB=1)
        h = g.emit("Gemm", g.emit("Relu", h), up, g.normal(x.channels), transB=1)
        h = g.reshape(g.emit("Sigmoid", h), [x.channels, *ones])
    else:
        way = g.pick("GlobalAveragePool", "ReduceMean", "GlobalMaxPool", "AveragePool", "MaxPool")
        if way == "ReduceMean":
            h = g.reduce(way, x.name, axes, True)
        elif way.startswith("Global"):
            h = g.emit(way, x.name)
        else:  # with the native size of the map as the kernel
            h = g.frozen(way, x.name, plain=(f"Global{way}", [x.name], {}), kernel_shape=x.cells)
        h = g.emit("Relu", g.emit("Conv", h, down.reshape(*down.shape, *ones)))
        h = g.emit("Sigmoid", g.emit("Conv", h, up.reshape(*up.shape, *ones)))
    g.exact = False
    return replace(x, name=g.emit("Mul", *((x.name, h) if g.flag() else (h, x.name))))


def weighted_sum(g: Graph, x: Map) -> str:
    """All positions of a map, weighted by a softmax: (N, C, 1)."""
    one = g.emit("Conv", x.name, g.normal(1, x.channels, *[1] * len(x.space), fan=x.channels))
    weights = g.emit("Softmax", g.emit("Reshape", one, g.ints(0, 1, -1)), axis=2)
    flat = g.emit("Reshape", x.name, g.ints(0, x.channels, -1))
    return str(g.emit("MatMul", flat, g.emit("Transpose", weights, perm=[0, 2, 1])))


def instance_norm(g: Graph, x: Map) -> Map:
    x = replace(x, name=same(g, x)) if g.regrouped else x
    g.exact = False
    return replace(x, name=g.emit("InstanceNormalization", x.name, g.positive(x.channels), g.normal(x.channels)))


#: Scales of maps. onnxruntime cannot hold some of them in single floats, and none of the last two changes small maps.
SCALES = tuple(
    Fraction(n) for n in ("2", "1", "3", "1/2", "3/2", "4", "2/3", "5/4", "1/3", "6/5", "5/7", "21/20", "31/30")
)

#: Cell j of the result lies at (j + a)/scale - b of the map: (a, b).
SHIFTS = {
    "half_pixel": (Fraction(1, 2), Fraction(1, 2)),
    "asymmetric": (Fraction(0), Fraction(0)),
    "pytorch_half_pixel": (Fraction(1, 2), Fraction(1, 2)),
    "tf_half_pixel_for_nn": (Fraction(1, 2), Fraction(0)),
    "half_pixel_symmetric": (Fraction(1, 2), Fraction(1, 2)),
}

#: Pixels between windows, beyond which images would be too large to try.
COARSEST = 24


def resize(g: Graph, x: Map) -> Map:
    """By scales or sizes, which may be computed, in all modes. Sizes that a Resize names are its scale."""
    if g.kind != np.float32:
        return x
    if g.opset < 10:
        return upsampled(g, x)
    attrs = resize_attributes(g, len(x.space))
    factors = [scale_of(g, a.cells, attrs) for a in x.space]
    how = g.pick("scales", "scales", *(["sizes", "computed sizes"] if g.opset >= 11 else []))
    cells = [int(f * a.cells) for f, a in zip(factors, x.space)]
    if min(cells) < 2:
        return x
    if how != "scales":
        factors = [Fraction(n, a.cells) for n, a in zip(cells, x.space)]
    copies = cells == x.cells
    factors = [Fraction(1)] * len(cells) if copies else factors
    space = tuple(a.of(n, a.stride / f) for a, n, f in zip(x.space, cells, factors))
    if max(a.grid for a in space) > COARSEST:
        return x
    # a cell that is read in a map of any size lies where the fraction says, but for a symmetric shift
    symmetric = attrs.get("coordinate_transformation_mode") == "half_pixel_symmetric"
    g.slides &= not (symmetric and any((f * a.cells).denominator > 1 for f, a in zip(factors, x.space)))
    g.exact &= all(f == 1 or inside(f, a.cells, n, attrs) for f, a, n in zip(factors, x.space, cells))
    plain = attrs | ({"coordinate_transformation_mode": "half_pixel"} if symmetric else {})
    scales = np.array([1, 1, *factors], np.float32)
    if g.opset < 11:
        operands: list[str | Array] = [x.name, scales]
        stated = operands
    else:
        none: str | Array = "" if g.opset >= 13 else np.zeros(0, np.float32)
        stated = [x.name, none, scales]
        operands = stated if how == "scales" else [x.name, none, "" if g.opset >= 13 else np.zeros(0, np.float32)]
        if how != "scales":
            operands.append(sizes(g, x, cells, computed=how == "computed sizes"))
    name = g.only("Resize", *operands, **attrs)
    g.instead(name, *(("Identity", [x.name], {}) if copies else ("Resize", stated, plain)))
    return Map(name, x.channels, space)


def scale_of(g: Graph, cells: int, attrs: dict[str, Any]) -> Fraction:
    """A scale of an axis; mostly one that leaves whole cells where the others cannot slide."""
    symmetric = attrs.get("coordinate_transformation_mode") == "half_pixel_symmetric"
    whole = [f for f in SCALES if (f * cells).denominator == 1]
    return Fraction(g.pick(*(whole if symmetric and g.pick(1, 1, 1, 2) == 1 else SCALES)))


def upsampled(g: Graph, x: Map) -> Map:
    factors = [g.pick(2, 3, 1) for _ in x.space]
    scales = np.array([1, 1, *factors], np.float32)
    mode = g.pick("nearest", *(["linear"] if len(x.space) == 2 else []))
    g.exact &= mode == "nearest" or max(factors) == 1
    by_operand = {"mode": mode} if g.opset >= 9 else {"mode": mode, "scales": scales.tolist()}
    name = g.emit("Upsample", x.name, *([scales] if g.opset >= 9 else []), **by_operand)
    return Map(name, x.channels, tuple(a.of(a.cells * f, a.stride / f) for a, f in zip(x.space, factors)))


def resize_attributes(g: Graph, rank: int) -> dict[str, Any]:
    mode = g.pick("nearest", *(["linear", *(["cubic"] if g.opset >= 11 else [])] if rank == 2 else []))
    attrs: dict[str, Any] = {"mode": mode}
    if g.opset < 11:
        return attrs
    shifts = ["half_pixel", "asymmetric", "pytorch_half_pixel"]
    if mode == "nearest":
        attrs["nearest_mode"] = g.pick("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
        shifts += ["tf_half_pixel_for_nn"] if g.opset < 13 else []
    attrs["coordinate_transformation_mode"] = g.pick(*shifts, *(["half_pixel_symmetric"] * 2 if g.opset >= 19 else []))
    if mode != "nearest" and g.opset >= 18 and g.flag():
        attrs["antialias"] = 1
    if mode == "cubic" and g.flag():
        attrs["exclude_outside"] = 1
    return attrs


def inside(scale: Fraction, cells: int, size: int, attrs: dict[str, Any]) -> bool:
    """Are all cells of a resized window made of cells of that window, and would be in any larger map?"""
    first, shift = SHIFTS[attrs.get("coordinate_transformation_mode", "asymmetric")]
    places = [(j + first) / scale - shift for j in range(size)]
    if attrs["mode"] == "nearest":
        half = Fraction(1, 2)
        rounding = attrs.get("nearest_mode") or ("ceil" if scale < 1 else "floor")  # onnxruntime's, where none is said
        nearest = {
            "floor": math.floor,
            "ceil": math.ceil,
            "round_prefer_floor": lambda x: math.ceil(x - half),
            "round_prefer_ceil": lambda x: math.floor(x + half),
        }[rounding]
        return all(0 <= nearest(x) < cells for x in places)
    if attrs.get("antialias") and scale < 1:
        return False
    reach = 1 if attrs["mode"] == "cubic" else 0
    return all((x.denominator == 1 and 0 <= x < cells) or reach <= x <= cells - 1 - reach for x in places)


def sizes(g: Graph, x: Map, cells: list[int], *, computed: bool) -> str | Array:
    """What a Resize reads as sizes: numbers, or numbers behind a batch and channels that are read off the map."""
    if not computed and g.fixed:
        return g.ints(g.batch, x.channels, *cells)
    shape = g.only("Shape", x.name)
    operands, attrs = g.limits([0], [2], [0])
    return g.only("Concat", g.only("Slice", shape, *operands, **attrs), g.ints(*cells), axis=0)


def transposed_conv(g: Graph, x: Map) -> Map:
    rank = len(x.space)
    if rank > 2 or g.kind != np.float32:
        return x
    kernel, strides = [g.integer(1, 3) for _ in range(rank)], [g.pick(1, 2) for _ in range(rank)]
    how = g.pick("pads", "pads", "output_shape", "SAME_UPPER", "SAME_LOWER")
    more = [g.integer(0, s - 1) for s in strides] if how == "pads" and g.flag() else [0] * rank
    pads = [g.integer(0, k - 1) for k in kernel * 2] if how == "pads" and g.flag() else [0] * 2 * rank
    full = [(a.cells - 1) * s + k + m for a, s, k, m in zip(x.space, strides, kernel, more)]
    attrs: dict[str, Any] = {"pads": pads}
    if how != "pads":  # of an odd padding the larger half lies in front, unless SAME_UPPER says otherwise
        wanted = [a.cells * s for a, s in zip(x.space, strides)]
        if any(n > m for n, m in zip(wanted, full)):
            return x
        attrs = {"output_shape": wanted} if how == "output_shape" else {"auto_pad": how}
        spare = [n - m for n, m in zip(full, wanted)]
        small, large = [n // 2 for n in spare], [n - n // 2 for n in spare]
        pads = small + large if how == "SAME_UPPER" else large + small
    cells = [n - b - e for n, b, e in zip(full, pads, pads[rank:])]
    if min(cells) < 2:
        return x
    g.exact = False  # each cell sees its neighbours' kernels, which a crop does not have
    outputs = g.integer(1, 5)
    w = g.weight(g.normal(x.channels, outputs, *kernel, fan=x.channels * math.prod(kernel)))
    same = {"kernel_shape": kernel, "strides": strides, **({"output_padding": more} if any(more) else {})}
    name = g.frozen("ConvTranspose", x.name, w, plain=("ConvTranspose", [x.name, w], {**same, "pads": pads}),
                    **same, **attrs)  # fmt: skip
    return Map(name, outputs, tuple(a.of(n, a.stride / s) for a, n, s in zip(x.space, cells, strides)))


def padded_conv(g: Graph, x: Map) -> Map:
    """A Pad, perhaps by less than nothing, and a convolution that uses it up."""
    rank = len(x.space)
    least = g.pick(0, -1)
    begins, ends = [g.integer(least, 2) for _ in range(rank)], [g.integer(least, 2) for _ in range(rank)]
    pads = [0, 0, *begins, 0, 0, *ends]
    if min(x.cells) < 3 or min(a.cells + b + e for a, b, e in zip(x.space, begins, ends)) < 3:
        return x
    g.exact &= max(pads) <= 0
    if g.opset < 11:
        name = g.emit("Pad", x.name, pads=pads)
    else:
        mode = g.pick("constant", *(["edge", "reflect"] if min(pads) == 0 else []))
        operands = [g.ints(*pads), *([np.array(0.5, g.kind)] if mode == "constant" and g.flag() else [])]
        name = g.emit("Pad", x.name, *operands, mode=mode)
    w = g.normal(4, x.channels, *[2] * rank, fan=x.channels * 2**rank)
    space = tuple(a.of(a.cells + b + e - 1, a.stride) for a, b, e in zip(x.space, begins, ends))
    return Map(g.emit("Conv", name, w), 4, space)


def cropped(g: Graph, x: Map) -> Map:
    """The borders cut off, with ends from the back or as the numbers that they are at the native size; every cell, or
    every other unless channels were shuffled: else the step is taken for a part of the head, which has more windows."""
    begins, ends = ([g.integer(0, 2) for _ in x.space] for _ in range(2))
    steps = [g.pick(1, 1, 2) for _ in x.space] if g.opset >= 10 and g.flag() else [1] * len(x.space)
    steps = [1] * len(x.space) if g.regrouped else steps
    cells = [-(-(a.cells - b - e) // t) for a, b, e, t in zip(x.space, begins, ends, steps)]
    if min(cells) < 2:
        return x
    space = tuple(a.of(n, a.stride * t) for a, n, t in zip(x.space, cells, steps))
    axes = list(range(2, x.rank))
    backwards = [-e or 2**31 - 1 for e in ends]
    by_step = [g.ints(*steps)] if max(steps) > 1 else []
    plain_operands, plain_attrs = g.limits(begins, backwards, axes)
    written = [-e or 2**31 - 1 for e in ends] if g.flag() else [a.cells - e for a, e in zip(x.space, ends)]
    operands, attrs = g.limits(begins, written, axes)
    name = g.frozen("Slice", x.name, *operands, *by_step,
                    plain=("Slice", [x.name, *plain_operands, *by_step], plain_attrs), **attrs)  # fmt: skip
    return Map(name, x.channels, space)


def channels_last(g: Graph, x: Map) -> Map:
    """Some layers with the channels as the last axis."""
    last = [0, *range(2, x.rank), 1]
    name = g.emit("Transpose", x.name, perm=last)
    outputs = g.integer(1, 6)
    name = g.emit("MatMul", name, g.normal(x.channels, outputs, fan=x.channels))
    if g.flag():
        name = combined(g, name, g.normal(*g.pick((outputs,), (1, outputs), ())))
    name = g.emit("Transpose", name, perm=[0, x.rank - 1, *range(1, x.rank - 1)])
    return Map(name, outputs, x.space)


def across_channels(g: Graph, x: Map) -> Map:
    plain = g.kind == np.float32 and g.opset >= 13 and len(x.space) == 2  # onnxruntime's LRN takes four axes
    op = g.pick("LRN", "Softmax") if plain else "Identity"
    attrs = {"LRN": {"size": 3}, "Softmax": {"axis": 1}, "Identity": {}}[op]
    return replace(x, name=g.emit(op, x.name, **attrs))


def depth_to_space(g: Graph, x: Map) -> Map:
    if len(x.space) != 2 or x.channels % 4 or g.opset < 11 or g.kind != np.float32:
        return x
    name = g.emit("DepthToSpace", x.name, blocksize=2, mode=g.pick("DCR", "CRD"))
    return Map(name, x.channels // 4, tuple(a.of(2 * a.cells, a.stride / 2) for a in x.space))


def space_to_depth(g: Graph, x: Map) -> Map:
    """Cells of 2×2 as channels, by reshapes, and as the strided convolution that it is at any size."""
    if len(x.space) != 2 or any(n % 2 for n in x.cells) or min(x.cells) < 4:
        return x
    c, (h, w) = x.channels, x.cells
    split = g.only("Reshape", x.name, g.ints(-1, c, h // 2, 2, w // 2, 2))
    turned = g.only("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    name = g.only("Reshape", turned, g.pick(g.ints(0, 4 * c, h // 2, w // 2), g.ints(-1, 4 * c, h // 2, w // 2)))
    places = np.tile(np.eye(4, dtype=g.kind).reshape(4, 1, 2, 2), (c, 1, 1, 1))
    g.instead(name, "Conv", [x.name, places], {"group": c, "strides": [2, 2]})
    made = Map(name, 4 * c, tuple(a.of(a.cells // 2, a.stride * 2) for a in x.space))
    return replace(made, name=same(g, made))  # only what slides over the cells makes windows coarser


def mean_subtracted(g: Graph, x: Map) -> Map:
    """A mean image that is the same everywhere, written out for each pixel of the native size."""
    if g.flag():
        mean = g.normal(1, x.channels, *[1] * len(x.space))
        name = g.frozen("Sub", x.name, np.broadcast_to(mean, (1, x.channels, *x.cells)).copy(),
                        plain=("Sub", [x.name, mean], {}))  # fmt: skip
        return replace(x, name=name)
    return replace(x, name=g.emit("Neg", x.name))


def weighted(g: Graph, x: Map) -> Map:
    """Two branches of one map, weighted."""
    a, b = same(g, x), activated(g, x.name)
    return replace(x, name=g.emit(g.pick("Mul", "Sub", "Max", "Min") if g.opset >= 8 else "Mul", a, b))


def meeting(g: Graph, x: Map) -> Map:
    """Branches that stride in different ways and meet: with as many cells at the native size, and others at some."""
    rank, strides = len(x.space), [g.pick(2, 1, 3) for _ in x.space]
    if g.opset < 10 or g.kind != np.float32:
        return x
    made = []
    for _ in range(g.pick(2, 2, 3)):
        kernel = [g.integer(1, 3) for _ in range(rank)]
        pads = [g.integer(0, k - 1) for k in kernel * 2]
        auto = g.pick("", "", "SAME_UPPER", "SAME_LOWER")
        if auto:
            spare = [max((-(-a.cells // s) - 1) * s + k - a.cells, 0) for a, s, k in zip(x.space, strides, kernel)]
            small, large = [n // 2 for n in spare], [n - n // 2 for n in spare]
            pads = small + large if auto == "SAME_UPPER" else large + small
        extents = [a.cells + b + e - k for a, b, e, k in zip(x.space, pads, pads[rank:], kernel)]
        if min(extents) < 0:
            return x
        made.append((kernel, pads, auto, [n // s + 1 for n, s in zip(extents, strides)]))
    counts = [cells for *_, cells in made]
    if min(counts) != max(counts) or min(counts[0]) < 2:
        return x
    names = []
    for kernel, pads, auto, _ in made:
        op = g.pick("Conv", "MaxPool", "AveragePool")
        operands, more = [x.name], {}
        if op == "Conv":
            operands.append(g.weight(g.normal(x.channels, x.channels, *kernel, fan=x.channels * math.prod(kernel))))
        else:
            more = {"kernel_shape": kernel}
        g.exact &= not any(pads)
        plain = (op, operands, {"strides": strides, "pads": pads, **more})
        written = {"auto_pad": auto} if auto else {"pads": pads}
        names.append(g.frozen(op, *operands, plain=plain, strides=strides, **written, **more))
    op, attrs = g.pick(("Add", {}), ("Concat", {"axis": 1}), ("Mul", {}))
    if op != "Concat":
        names = names[:2]
    joined = g.only(op, *names, **attrs)
    g.instead(joined, op, common(g, names, rank), attrs)
    space = tuple(a.of(n, a.stride * s) for a, n, s in zip(x.space, counts[0], strides))
    return Map(joined, x.channels * (len(names) if op == "Concat" else 1), space)


def common(g: Graph, names: list[str], rank: int) -> list[str]:
    """The cells that some maps share, in the reference: from the first on."""
    shapes = [g.beside("Cast", [g.beside("Shape", [n], {})], {"to": TensorProto.FLOAT}) for n in names]
    least = g.beside("Cast", [g.beside("Min", shapes, {})], {"to": TensorProto.INT64})
    ends = g.beside("Slice", [least, g.ints(2), g.ints(2 + rank)], {})
    axes = g.ints(*range(2, 2 + rank))
    return [g.beside("Slice", [n, g.ints(*[0] * rank), ends, axes], {}) for n in names]


def padded_by_shape(g: Graph, x: Map) -> Map:
    """Pads computed from the size of the map, as TensorFlow's SAME is written: what they are at the native size."""
    rank, kernel, strides = len(x.space), [g.integer(1, 3) for _ in x.space], [g.pick(2, 1, 3) for _ in x.space]
    if g.opset < 12 or g.kind != np.float32:
        return x
    needed = [(-(-a.cells // s) - 1) * s + k for a, s, k in zip(x.space, strides, kernel)]
    total = [max(n - a.cells, 0) for n, a in zip(needed, x.space)]
    begins, cells = [n // 2 for n in total], [-(-a.cells // s) for a, s in zip(x.space, strides)]
    if min(cells) < 2:
        return x
    n = g.only("Slice", g.only("Shape", x.name), g.ints(2), g.ints(2 + rank))
    s, one = g.ints(*strides), g.ints(1)
    count = g.only("Div", g.only("Add", n, s - 1), s)
    extent = g.only("Add", g.only("Mul", g.only("Sub", count, one), s), g.ints(*kernel))
    spare = g.only("Max", g.only("Sub", extent, n), g.ints(0))
    begin = g.only("Div", spare, g.ints(2))
    pads = g.only("Concat", g.ints(0, 0), begin, g.ints(0, 0), g.only("Sub", spare, begin), axis=0)
    g.exact &= not any(total)
    padded = g.only("Pad", x.name, pads)
    g.instead(padded, "Pad", [x.name, g.ints(0, 0, *begins, 0, 0, *(t - b for t, b in zip(total, begins)))], {})
    # pads of less than nothing are none, so that a kernel smaller than its stride leaves cells out
    w = g.normal(3, x.channels, *kernel, fan=x.channels * math.prod(kernel))
    space = tuple(a.of((a.cells + t - k) // q + 1, a.stride * q) for a, t, k, q in zip(x.space, total, kernel, strides))
    return Map(g.emit("Conv", padded, w, strides=strides), 3, space)


def called(g: Graph, x: Map) -> Map:
    """A local function; onnxruntime prefers an operator of the same name, whatever the function says."""
    domain, name, body, runs = g.pick(
        ("own", "Bent", "Tanh", "Tanh"), ("own", "Relu", "Sigmoid", "Sigmoid"), ("", "Relu", "Neg", "Relu")
    )
    if any((f.domain, f.name) == (domain, name) for f in g.functions):
        return x
    g.call(domain, name, x.name, body)
    made = str(g.original[-1].output[0])
    g.instead(made, runs, [x.name], {})
    return replace(x, name=made)


def scaled_by_an_input(g: Graph, x: Map) -> Map:
    """FiLM: a vector that comes with the image scales the channels, and another one shifts them."""
    name = g.vector(g.integer(1, 4))
    w = g.normal(g.inputs[name], x.channels, fan=g.inputs[name])
    scale = g.emit("MatMul", name, w)
    for _ in x.space:
        scale = g.squeeze("Unsqueeze", scale, [2])
    return replace(x, name=g.emit(g.pick("Mul", "Add"), *((x.name, scale) if g.flag() else (scale, x.name))))


def divided_by_size(g: Graph, x: Map) -> Map:
    """By a count that is read off the map: what it is at the native size."""
    axis = g.integer(2, x.rank - 1)
    count = g.only("Cast", g.only("Gather", g.only("Shape", x.name), np.array(axis), axis=0), to=g.onnx_kind)
    name = g.only("Div", x.name, count)
    g.instead(name, "Div", [x.name, np.array(x.cells[axis - 2], g.kind)], {})
    return replace(x, name=name)


def response_norm(g: Graph, x: Map) -> Map:
    """Local response normalisation as torch writes it: the channels as an axis that a pooling slides along."""
    if len(x.space) != 2 or g.opset < 11 or g.kind != np.float32:
        return x
    size = g.pick(3, 2, 5)
    squares = g.squeeze("Unsqueeze", g.emit("Mul", x.name, x.name), [1])
    zeros = [0] * 4
    wide = g.emit("Pad", squares, g.ints(0, 0, size // 2, 0, 0, *zeros[:2], (size - 1) // 2, 0, 0))
    mean = g.squeeze("Squeeze", g.emit("AveragePool", wide, kernel_shape=[size, 1, 1], strides=[1, 1, 1]), [1])
    sums = g.emit("Add", g.emit("Mul", mean, np.array(0.5, g.kind)), np.array(1, g.kind))
    return replace(x, name=g.emit("Div", x.name, g.emit("Pow", sums, np.array(0.75, g.kind))))


def along_features(g: Graph, x: Map) -> Map:
    """Channels as an axis that convolutions slide along, too, as those of spectrograms do; the last one covers it."""
    rank = len(x.space)
    if rank > 2 or x.channels < 2 or min(x.cells) < 3:
        return x
    name = g.squeeze("Unsqueeze", same(g, x), [1])
    stride, begin, end = g.pick(1, 2), g.pick(0, 1), g.pick(0, 1)
    kernel, pads = [2] * (1 + rank), [begin, *[0] * rank, end, *[0] * rank]
    w = g.normal(3, 1, *kernel, fan=2 ** (1 + rank))
    name = g.emit("Conv", name, w, kernel_shape=kernel, strides=[stride, *[1] * rank], pads=pads)
    left = (x.channels + begin + end - 2) // stride + 1
    name = combined(g, activated(g, name), g.normal(left, *[1] * rank))
    name = g.emit("Conv", name, g.normal(4, 3, left, *[1] * rank, fan=3 * left))
    return Map(g.squeeze("Squeeze", name, [2]), 4, tuple(a.of(a.cells - 1, a.stride) for a in x.space))


def coordinates(g: Graph, x: Map) -> Map:
    """Where a cell is, as another channel: no window of a larger map would have what the original has."""
    if g.opset < 11 or g.kind != np.float32 or g.pick(1, 2, 3) < 3:
        return x
    size = g.only("Gather", g.only("Shape", x.name), np.array(x.rank - 1), axis=0)
    ramp = g.only("Cast", g.only("Range", np.array(0), size, np.array(1)), to=TensorProto.FLOAT)
    name = g.only("Add", x.name, ramp)
    g.instead(name, "Identity", [x.name], {})
    g.slides = False
    return replace(x, name=name)


LAYERS = (conv, pool, activation, batch_norm, constant, residual, branches, recurse, shuffle, gate, resize, padded_conv,
          cropped, channels_last, across_channels, transposed_conv, instance_norm, depth_to_space, space_to_depth,
          mean_subtracted, weighted, along_features)  # fmt: skip
