"""Random boundaries, from a feature map to features, (N, C, *space) -> (N, F), and layers of heads on these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from drawn import Graph, Map, activated, combined, normalised
from hypothesis import strategies as st


@dataclass(frozen=True)
class Features:
    """A tensor (N, F)."""

    name: str
    count: int


def flattened(g: Graph, name: str, dims: Sequence[int]) -> Features:
    """A tensor (N, *dims) as (N, F)."""
    count = math.prod(dims)
    if g.flag():
        return Features(g.emit("Flatten", name, axis=g.pick(1, -len(dims)) if g.opset >= 11 else 1), count)
    return Features(g.reshape(name, [count]), count)


def flatten(g: Graph, x: Map) -> Features:
    return flattened(g, x.name, [x.channels, *x.cells])


def permuted(g: Graph, x: Map) -> Features:
    """Channels last, as TensorFlow flattens, or any other order."""
    order = list(g.draw(st.permutations(range(1, x.rank))))
    dims = [0, x.channels, *x.cells]
    return flattened(g, g.emit("Transpose", x.name, perm=[0, *order]), [dims[k] for k in order])


def spent(g: Graph, name: str, x: Map, channels: int | None = None) -> Features:
    """A tensor (N, C, 1, 1) as (N, C)."""
    channels = channels or x.channels
    if g.flag():
        return flattened(g, name, [channels, *[1] * len(x.space)])
    return Features(g.squeeze("Squeeze", name, range(2, x.rank)), channels)


def global_pool(g: Graph, x: Map) -> Features:
    lp = ["GlobalLpPool"] if g.opset < 22 else []  # onnxruntime has no newer one
    return spent(g, g.emit(g.pick("GlobalAveragePool", "GlobalMaxPool", *lp), x.name), x)


def reduced(g: Graph, x: Map) -> Features:
    halves = g.kind == np.float16  # the sum of a map keeps few of their digits
    op = g.pick("ReduceMean", "ReduceMax", "ReduceL2", *([] if halves else ["ReduceSum"]))
    axes = list(range(2, x.rank))
    if g.opset >= 11 and g.flag():
        axes = [a - x.rank for a in axes]
    if g.flag():
        return spent(g, g.reduce(op, x.name, axes, True), x)
    return Features(g.reduce(op, x.name, axes, False), x.channels)


def partly_reduced(g: Graph, x: Map) -> Features:
    """A mean along one axis of the map, and the rest flattened."""
    axis = g.integer(2, x.rank - 1)
    dims = [x.channels, *x.cells]
    del dims[axis - 1]
    return flattened(g, g.reduce(g.pick("ReduceMean", "ReduceMax"), x.name, [axis], False), dims)


def covering_pool(g: Graph, x: Map) -> Features:
    return spent(g, g.emit(g.pick("AveragePool", "MaxPool"), x.name, kernel_shape=x.cells), x)


def covering_conv(g: Graph, x: Map) -> Features:
    outputs, fan = g.integer(1, 9), x.channels * math.prod(x.cells)
    operands = [g.normal(outputs, x.channels, *x.cells, fan=fan), *([g.normal(outputs)] if g.flag() else [])]
    return spent(g, g.emit("Conv", x.name, *operands, kernel_shape=x.cells), x, outputs)


def einsum(g: Graph, x: Map) -> Features:
    if g.opset < 12 or g.kind != np.float32:
        return flatten(g, x)
    letters, outputs = "chwd"[: x.rank - 1], g.integer(1, 9)
    w = g.normal(x.channels, *x.cells, outputs, fan=x.channels * math.prod(x.cells))
    return Features(g.emit("Einsum", x.name, w, equation=f"n{letters},{letters}o->no"), outputs)


def constant_per_element(g: Graph, x: Map) -> Features:
    """Another constant for each element of the window, before or after the flatten."""
    if g.flag():
        return flattened(g, combined(g, x.name, g.normal(x.channels, *x.cells)), [x.channels, *x.cells])
    f = flatten(g, x)
    return replace(f, name=combined(g, f.name, g.normal(f.count)))


def mean_and_maximum(g: Graph, x: Map) -> Features:
    parts = [g.emit("GlobalAveragePool", x.name), g.emit("GlobalMaxPool", x.name)]
    return spent(g, g.emit("Concat", *parts, axis=1), x, 2 * x.channels)


BOUNDARIES = (flatten, permuted, global_pool, reduced, covering_pool, covering_conv, einsum, partly_reduced,
              constant_per_element, mean_and_maximum)  # fmt: skip


# Layers on features ---------------------------------------------------------------------------------------------------


def gemm(g: Graph, f: Features, outputs: int = 0) -> Features:
    outputs = outputs or g.integer(2, 9)
    w, trans_a, trans_b = g.normal(f.count, outputs, fan=f.count), g.flag(), g.flag()
    x = g.emit("Transpose", f.name, perm=[1, 0]) if trans_a else f.name
    bias = g.pick((outputs,), (1, outputs), (1,), (), *([None] if g.opset >= 11 else []))
    attrs = {"alpha": g.pick(1.0, 0.5), "beta": g.pick(1.0, 3.0), "transA": int(trans_a), "transB": int(trans_b)}
    operands = [w.T.copy() if trans_b else w, *([g.normal(*bias)] if bias is not None else [])]
    if g.opset < 9 and bias == ():
        operands[1] = operands[1].reshape(1)
    return Features(g.emit("Gemm", x, *operands, **attrs), outputs)


def gemm_on_the_right(g: Graph, f: Features) -> Features:
    """The weight as the first operand, and the answers as columns."""
    outputs = g.integer(2, 9)
    y = g.emit("Gemm", g.normal(outputs, f.count, fan=f.count), f.name, g.normal(outputs, 1), transB=1)
    return Features(g.emit("Transpose", y, perm=[1, 0]), outputs)


def matmul(g: Graph, f: Features) -> Features:
    outputs = g.integer(2, 9)
    y = g.emit("MatMul", f.name, g.normal(f.count, outputs, fan=f.count))
    if g.flag():
        b = g.normal(*g.pick((outputs,), (1, outputs)))
        y = g.emit("Add", *((b, y) if g.flag() else (y, b)))
    return Features(y, outputs)


def nonlinear(g: Graph, f: Features) -> Features:
    return replace(f, name=activated(g, f.name))


def dropout(g: Graph, f: Features) -> Features:
    if g.opset >= 12 and g.flag():
        return replace(f, name=g.emit("Dropout", f.name, np.array(0.5, np.float32)))
    return replace(f, name=g.emit("Dropout", f.name))


def feature_norm(g: Graph, f: Features) -> Features:
    if g.opset >= 17 and g.flag():
        return replace(f, name=g.emit("LayerNormalization", f.name, g.positive(f.count), g.normal(f.count), axis=-1))
    return replace(f, name=normalised(g, f.name, f.count))


def feature_constant(g: Graph, f: Features) -> Features:
    return replace(f, name=combined(g, f.name, g.normal(*g.pick((f.count,), (1, f.count), (), (1, 1)))))


def skip(g: Graph, f: Features) -> Features:
    branch = gemm(g, nonlinear(g, f) if g.flag() else f, f.count)
    return replace(f, name=g.emit(g.pick("Add", "Sub", "Mul"), *g.pick((f.name, branch.name), (branch.name, f.name))))


def parts(g: Graph, f: Features) -> Features:
    """Split, one part activated, joined the other way round."""
    if f.count < 2:
        return f
    first = g.integer(1, f.count - 1)
    a, b = g.split(f.name, [first, f.count - first])
    return replace(f, name=g.emit("Concat", b, activated(g, a), axis=g.pick(1, -1) if g.opset >= 11 else 1))


def gated(g: Graph, f: Features) -> Features:
    half = f.count // 2
    if not half:
        return f
    a, b = (g.slice(f.name, [1], [s], [e]) for s, e in ((0, half), (half, 2 * half)))
    return Features(g.emit("Mul", a, g.emit("Sigmoid", b)), half)


def grouped(g: Graph, f: Features) -> Features:
    """Features as (N, G, F/G): maxout, or features turned."""
    groups = next((d for d in (2, 3, 5, 7) if f.count % d == 0), 1)
    r = g.reshape(f.name, [groups, f.count // groups])
    if g.flag():
        return Features(g.reduce("ReduceMax", r, [1], False), f.count // groups)
    turned = g.emit("Transpose", r, perm=[0, 2, 1])
    return flattened(g, turned, [f.count // groups, groups])


def centred(g: Graph, f: Features) -> Features:
    """Less their mean. That of a map of one channel is the mean of a whole image, as far as the graph says."""
    f = gemm(g, f) if g.one_channel else f
    return replace(f, name=g.emit("Sub", f.name, g.reduce("ReduceMean", f.name, [1], True)))


HEAD_LAYERS = (gemm, matmul, nonlinear, dropout, feature_norm, feature_constant, skip, parts, gated, grouped, centred,
               gemm_on_the_right)  # fmt: skip


def answered(g: Graph, f: Features, name: str) -> None:
    """An output (N, K)."""
    op = g.pick("Identity", "Softmax", "Sigmoid", "LogSoftmax")
    attrs = {"axis": g.pick(1, -1) if g.opset >= 11 else 1} if "Softmax" in op else {}
    g.emit(op, f.name, **attrs)
    g.original[-1].output[0] = name
