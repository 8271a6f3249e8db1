"""Layers of random trunks: from one feature map to the next, (N, C, *space) -> (N, C', *space')."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from drawn import Graph, Map, activated, combined, normalised, sliding


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
    """Squeeze and excite, behind a convolution if channels were shuffled: else it is taken for a part of the head."""
    x = replace(x, name=same(g, x)) if g.regrouped else x
    hidden, ones = g.integer(1, 4), [1] * len(x.space)
    axes = list(range(2, x.rank))
    down, up = g.normal(hidden, x.channels, fan=x.channels), g.normal(x.channels, hidden, fan=hidden)
    if g.flag():
        h = g.reduce("ReduceMean", x.name, axes, False)
        h = g.emit("Gemm", h, down, g.normal(hidden), transB=1)
        h = g.emit("Gemm", g.emit("Relu", h), up, g.normal(x.channels), transB=1)
        h = g.reshape(g.emit("Sigmoid", h), [x.channels, *ones])
    else:
        h = g.emit("GlobalAveragePool", x.name) if g.flag() else g.reduce("ReduceMean", x.name, axes, True)
        h = g.emit("Relu", g.emit("Conv", h, down.reshape(*down.shape, *ones)))
        h = g.emit("Sigmoid", g.emit("Conv", h, up.reshape(*up.shape, *ones)))
    g.exact = False
    return replace(x, name=g.emit("Mul", *((x.name, h) if g.flag() else (h, x.name))))


def instance_norm(g: Graph, x: Map) -> Map:
    x = replace(x, name=same(g, x)) if g.regrouped else x
    g.exact = False
    return replace(x, name=g.emit("InstanceNormalization", x.name, g.positive(x.channels), g.normal(x.channels)))


def resize(g: Graph, x: Map) -> Map:
    factors = [g.pick(2, 1, 3) for _ in x.space]
    if g.opset < 10 or g.kind != np.float32:
        return x
    mode = "nearest" if g.opset < 11 or len(x.space) != 2 else g.pick("nearest", "linear")
    scales = np.array([1, 1, *factors], np.float32)
    space = tuple(a.of(a.cells * f, a.stride / f) for a, f in zip(x.space, factors))
    if mode == "linear" and max(factors) > 1:
        g.exact = False
    if g.opset < 11:
        return Map(g.emit("Resize", x.name, scales, mode=mode), x.channels, space)
    attrs = {"mode": mode, "coordinate_transformation_mode": g.pick("half_pixel", "asymmetric")}
    if attrs["coordinate_transformation_mode"] == "asymmetric":
        attrs["nearest_mode"] = "floor"
    none = "" if g.opset >= 13 else np.zeros(0, np.float32)
    if g.fixed and g.flag():
        sizes = g.ints(g.batch, x.channels, *(a.cells for a in space))
        name = g.frozen("Resize", x.name, none, "" if g.opset >= 13 else np.zeros(0, np.float32), sizes,
                        plain=("Resize", [x.name, none, scales], attrs), **attrs)  # fmt: skip
        return Map(name, x.channels, space)
    return Map(g.emit("Resize", x.name, none, scales, **attrs), x.channels, space)


def transposed_conv(g: Graph, x: Map) -> Map:
    rank = len(x.space)
    if rank > 2 or g.kind != np.float32:
        return x
    kernel, strides = [g.integer(1, 3) for _ in range(rank)], [g.pick(1, 2) for _ in range(rank)]
    pads = [g.integer(0, k - 1) for k in kernel * 2] if g.flag() else [0] * 2 * rank
    cells = [(a.cells - 1) * s + k - b - e for a, s, k, b, e in zip(x.space, strides, kernel, pads, pads[rank:])]
    if min(cells) < 2:
        return x
    g.exact = False  # each cell sees its neighbours' kernels, which a crop does not have
    outputs = g.integer(1, 5)
    w = g.normal(x.channels, outputs, *kernel, fan=x.channels * math.prod(kernel))
    name = g.emit("ConvTranspose", x.name, w, kernel_shape=kernel, strides=strides, pads=pads)
    return Map(name, outputs, tuple(a.of(n, a.stride / s) for a, n, s in zip(x.space, cells, strides)))


def padded_conv(g: Graph, x: Map) -> Map:
    """A Pad, and a convolution that uses it up."""
    rank = len(x.space)
    begins, ends = [g.integer(0, 2) for _ in range(rank)], [g.integer(0, 2) for _ in range(rank)]
    pads = [0, 0, *begins, 0, 0, *ends]
    if min(x.cells) < 3:
        return x
    g.exact &= not any(pads)
    if g.opset < 11:
        name = g.emit("Pad", x.name, pads=pads)
    else:
        mode = g.pick("constant", "edge", "reflect")
        operands = [g.ints(*pads), *([np.array(0.5, g.kind)] if mode == "constant" and g.flag() else [])]
        name = g.emit("Pad", x.name, *operands, mode=mode)
    w = g.normal(4, x.channels, *[2] * rank, fan=x.channels * 2**rank)
    space = tuple(a.of(a.cells + b + e - 1, a.stride) for a, b, e in zip(x.space, begins, ends))
    return Map(g.emit("Conv", name, w), 4, space)


def cropped(g: Graph, x: Map) -> Map:
    """The borders cut off, with ends from the back or as the numbers that they are at the native size."""
    begins, ends = ([g.integer(0, 1) for _ in x.space] for _ in range(2))
    space = tuple(a.of(a.cells - b - e, a.stride) for a, b, e in zip(x.space, begins, ends))
    if min(a.cells for a in space) < 2:
        return x
    axes = list(range(2, x.rank))
    backwards = [-e if e else 2**31 - 1 for e in ends]
    if g.flag():
        return Map(g.slice(x.name, axes, begins, backwards), x.channels, space)
    operands, attrs = g.limits(begins, [a.cells - e for a, e in zip(x.space, ends)], axes)
    plain_operands, plain_attrs = g.limits(begins, backwards, axes)
    name = g.frozen("Slice", x.name, *operands, plain=("Slice", [x.name, *plain_operands], plain_attrs), **attrs)
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


LAYERS = (conv, pool, activation, batch_norm, constant, residual, branches, recurse, shuffle, gate, resize, padded_conv,
          cropped, channels_last, across_channels, transposed_conv, instance_norm, depth_to_space, space_to_depth,
          mean_subtracted, weighted)  # fmt: skip
