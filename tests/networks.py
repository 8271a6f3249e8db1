"""Random classifiers for hypothesis: a trunk, a boundary and a head, each drawn layer by layer.

What a network is goes with it, by construction and not by analysis: its last feature map (`cut`), the pixels between its
windows, whether a window's answer is that of its crop. A second model comes along, the **reference**: the same trunk,
written so that it means the same at any size, as the original may not (targets of Reshape baked, `auto_pad`, sizes of
Resize, ends of Slice). So the law can be checked for all of them with nothing but onnxruntime.

Each choice has the plainest option first, where hypothesis shrinks to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import law
import numpy as np
from hypothesis import strategies as st
from law import Array
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

BATCH = "batch"


@dataclass(frozen=True)
class Network:
    """A classifier and what is known of it.

    Attributes:
        original: the classifier.
        reference: its trunk, from image to cut, at any size.
        cut: the last feature map, (N, C, *space).
        size: of its images, in pixels.
        space: the axes of the image that these are.
        window: cells of the cut along each axis, at that size.
        step: cells of the cut between neighbouring windows.
        grid: pixels between neighbouring windows.
        exact: nothing pads, and nothing sees more than its window.
        batch: of its images.
        fixed: is the batch baked?
        extra: pixels, along each axis, that a larger image has beyond its windows.
    """

    original: ModelProto
    reference: ModelProto
    cut: str
    size: tuple[int, ...]
    space: tuple[int, ...]
    window: tuple[int, ...]
    step: tuple[int, ...]
    grid: tuple[int, ...]
    exact: bool
    batch: int
    fixed: bool
    extra: tuple[int, ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a failure."""
        printer.text(str(self))

    def __str__(self) -> str:
        """The graph, and the dims of its weights."""
        graph = self.original.graph
        weights = {t.name: list(t.dims) for t in graph.initializer}
        lines = [f"{' '.join(n.output)} = {n.op_type}({', '.join(n.input)}) {attributes(n)}" for n in graph.node]
        facts = {k: getattr(self, k) for k in ("cut", "size", "window", "step", "grid", "exact", "batch", "fixed")}
        opset = self.original.opset_import[0].version
        return "\n".join([f"opset {opset}, {facts}, weights {weights}", *lines])


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node, as values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


# Maps -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Cells at the native size, pixels between neighbouring cells, pixels between neighbouring windows."""

    cells: int
    stride: Fraction = Fraction(1)
    grid: Fraction = Fraction(1)

    def of(self, cells: int, stride: Fraction) -> Axis:
        """The axis of a map that an operator made of one with this axis."""
        common = Fraction(
            math.lcm(self.grid.numerator, stride.numerator), math.gcd(self.grid.denominator, stride.denominator)
        )
        return Axis(cells, stride, common)


@dataclass(frozen=True)
class Map:
    """A feature map (N, C, *space)."""

    name: str
    channels: int
    space: tuple[Axis, ...]

    @property
    def cells(self) -> list[int]:
        return [a.cells for a in self.space]

    @property
    def rank(self) -> int:
        return 2 + len(self.space)


@dataclass(frozen=True)
class Sliding:
    """The attributes of a convolution or pooling as the original writes them and as they are at any size."""

    attrs: dict[str, Any]
    plain: dict[str, Any]
    space: tuple[Axis, ...]
    pads: bool


class Graph:
    """A network in the making."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.opset: int = self.pick(13, *(v for v in range(7, law.newest_opset() + 1) if v != 13))
        self.kind = np.dtype(self.pick(np.float32, np.float32, np.float32, np.float16))
        self.batch: int = self.pick(1, 2)
        self.fixed: bool = self.flag()
        self.random = np.random.default_rng(self.integer(0, 999))
        self.original: list[NodeProto] = []
        self.reference: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.exact = True
        self.image = ""

    # Choices

    def pick(self, *options: Any) -> Any:
        """One of these, preferably the first."""
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def integer(self, least: int, most: int) -> int:
        return int(self.draw(st.integers(least, most)))

    # Nodes

    def emit(self, op: str, *operands: str | Array, outputs: int = 1, **attrs: Any) -> Any:
        """A node in both models; arrays become initializers. The name of its output, or of all of them."""
        node = self._node(op, operands, outputs, attrs)
        self.original.append(node)
        self.reference.append(node)
        return node.output[0] if outputs == 1 else list(node.output)

    def frozen(self, op: str, *operands: str | Array, plain: tuple[Any, ...], **attrs: Any) -> str:
        """A node of the original that does not mean the same at another size, and what does: (op, operands, attrs)."""
        name = self.only(op, *operands, **attrs)
        self.instead(name, *plain)
        return name

    def only(self, op: str, *operands: str | Array, **attrs: Any) -> str:
        """A node that only the original has."""
        self.original.append(self._node(op, operands, 1, attrs))
        return str(self.original[-1].output[0])

    def instead(self, name: str, op: str, operands: Sequence[str | Array], attrs: dict[str, Any]) -> None:
        """A node of the reference that makes a tensor that the original makes otherwise."""
        node = self._node(op, operands, 1, attrs)
        node.name, node.output[0] = f"{op}_for_{name}", name
        self.reference.append(node)

    def _node(self, op: str, operands: Sequence[str | Array], outputs: int, attrs: dict[str, Any]) -> NodeProto:
        names = [o if isinstance(o, str) else self.weight(o) for o in operands]
        number = len(self.original)
        made = [f"t{number}" if outputs == 1 else f"t{number}_{k}" for k in range(outputs)]
        return helper.make_node(op, names, made, f"{op}_{number}", **attrs)

    def weight(self, value: Array) -> str:
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    # Values

    def normal(self, *shape: int, fan: int = 0) -> Array:
        """Random weights of a layer that sums `fan` inputs, so that its outputs are as large as these."""
        return (self.random.standard_normal(shape) / math.sqrt(fan or 1)).astype(self.kind)

    def positive(self, *shape: int) -> Array:
        return self.random.uniform(0.5, 1.5, shape).astype(self.kind)

    def ints(self, *values: int) -> Array:
        return np.array(values, np.int64)

    # Spellings that depend on the opset

    def reduce(self, op: str, x: str, axes: Sequence[int], keepdims: bool) -> str:
        by_operand = self.opset >= (13 if op == "ReduceSum" else 18)
        if by_operand:
            return str(self.emit(op, x, self.ints(*axes), keepdims=int(keepdims)))
        return str(self.emit(op, x, axes=list(axes), keepdims=int(keepdims)))

    def squeeze(self, op: str, x: str, axes: Sequence[int]) -> str:
        """Squeeze or Unsqueeze."""
        if self.opset >= 13:
            return str(self.emit(op, x, self.ints(*axes)))
        return str(self.emit(op, x, axes=list(axes)))

    def slice(self, x: str, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> str:
        return str(self.emit("Slice", x, *self._limits(starts, ends, axes)[0], **self._limits(starts, ends, axes)[1]))

    def _limits(
        self, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]
    ) -> tuple[list[Array], dict[str, Any]]:
        if self.opset >= 10:
            return [self.ints(*starts), self.ints(*ends), self.ints(*axes)], {}
        return [], {"starts": list(starts), "ends": list(ends), "axes": list(axes)}

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        if self.opset >= 13:
            return list(self.emit("Split", x, self.ints(*sizes), outputs=len(sizes), axis=1))
        return list(self.emit("Split", x, outputs=len(sizes), axis=1, split=list(sizes)))

    def reshape(self, x: str, rest: Sequence[int], features: Sequence[int] = ()) -> str:
        """Reshape to (N, *rest), in one of the ways in which exporters write that."""
        target = self.target(x, rest)
        if isinstance(target, str):
            return str(self.emit("Reshape", x, target))
        return str(self.emit("Reshape", x, target))

    def target(self, x: str, rest: Sequence[int]) -> str | Array:
        """The target (N, *rest) of a Reshape."""
        ways = ["zero", "minus one", "the last left open", "from Shape by Gather", "from Shape by Slice"]
        way = self.pick(*ways, *(["literal"] if self.fixed else []))
        if way == "zero":
            return self.ints(0, *rest)
        if way == "minus one":
            return self.ints(-1, *rest)
        if way == "the last left open":
            return self.ints(0, *rest[:-1], -1)
        if way == "literal":
            return self.ints(self.batch, *rest)
        shape = self.emit("Shape", self.pick(x, self.image))
        if way == "from Shape by Slice":
            batch = self.slice(shape, [0], [0], [1])
        else:
            batch = self.squeeze("Unsqueeze", self.emit("Gather", shape, np.array(0), axis=0), [0])
        return str(self.emit("Concat", batch, self.ints(*rest[:-1], -1), axis=0))


def sliding(g: Graph, x: Map, *, pool: str = "") -> Sliding | None:
    """Draw how an operator slides over a map; None where less than two cells of a window would remain."""
    rank = len(x.space)
    kernel = [g.integer(1 + bool(pool), 3) for _ in range(rank)]
    strides = [g.pick(1, 1, 2, 3) for _ in range(rank)]
    padding = g.pick("none", "none", "even", "uneven", "SAME_UPPER", "SAME_LOWER", "VALID")
    dilates = {"": 7, "MaxPool": 10, "AveragePool": 19, "LpPool": 18}[pool] <= g.opset
    may_dilate = dilates and padding in ("none", "even", "uneven")
    dilations = [g.pick(1, 1, 2) if may_dilate else 1 for _ in range(rank)]
    ceils = {"": 99, "LpPool": 22}.get(pool, 10) <= g.opset and padding in ("none", "even", "uneven")
    ceil = ceils and g.flag()
    begins, ends = [0] * rank, [0] * rank
    for k, axis in enumerate(x.space):
        span = (kernel[k] - 1) * dilations[k] + 1
        if padding == "even":
            begins[k] = ends[k] = kernel[k] // 2
        elif padding == "uneven":
            begins[k], ends[k] = (g.integer(0, kernel[k] - 1) for _ in range(2))
        elif padding.startswith("SAME"):
            total = max((-(-axis.cells // strides[k]) - 1) * strides[k] + span - axis.cells, 0)
            halves = total // 2, total - total // 2
            begins[k], ends[k] = halves if padding == "SAME_UPPER" else halves[::-1]
    space, overflows = [], False
    for k, axis in enumerate(x.space):
        span, extent = (kernel[k] - 1) * dilations[k] + 1, axis.cells + begins[k] + ends[k]
        if extent < span:
            return None
        cells = (extent - span) // strides[k] + 1
        if ceil:
            cells = -(-(extent - span) // strides[k]) + 1
            cells -= (cells - 1) * strides[k] >= axis.cells + begins[k]
        if cells < 2:
            return None
        overflows |= (cells - 1) * strides[k] + span > extent
        space.append(axis.of(cells, axis.stride * strides[k]))
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    if any(d > 1 for d in dilations):
        attrs["dilations"] = dilations
    if ceil:
        attrs["ceil_mode"] = 1
    plain = {**attrs, "pads": [*begins, *ends]}
    if padding in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        attrs["auto_pad"] = padding
    elif padding != "none":
        attrs["pads"] = plain["pads"]
    return Sliding(attrs, plain, tuple(space), overflows or any(begins) or any(ends))


# Trunks ---------------------------------------------------------------------------------------------------------------


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


ACTIVATIONS = {"Relu": 7, "LeakyRelu": 7, "Sigmoid": 7, "Tanh": 7, "Elu": 7, "Softplus": 7, "Abs": 7, "HardSigmoid": 7,
               "HardSwish": 14, "Gelu": 20, "Mish": 18}  # fmt: skip


def activated(g: Graph, x: str) -> str:
    return str(g.emit(g.pick(*(op for op, first in ACTIVATIONS.items() if first <= g.opset)), x))


def activation(g: Graph, x: Map) -> Map:
    return replace(x, name=activated(g, x.name))


def normalised(g: Graph, x: str, channels: int) -> str:
    """Batch normalisation of axis 1."""
    return str(
        g.emit(
            "BatchNormalization",
            x,
            g.positive(channels),
            g.normal(channels),
            g.normal(channels),
            g.positive(channels),
            epsilon=g.pick(1e-5, 0.1),
        )
    )


def batch_norm(g: Graph, x: Map) -> Map:
    return replace(x, name=normalised(g, x.name, x.channels))


def combined(g: Graph, x: str, constant: Array) -> str:
    """A constant added, subtracted, multiplied, divided by, on either side."""
    op = g.pick("Add", "Sub", "Mul", "Div", "PRelu" if g.opset >= 9 else "Add")
    if op in ("Div", "PRelu"):
        return str(g.emit(op, x, np.abs(constant) + constant.dtype.type(0.5)))
    return str(g.emit(op, *((constant, x) if g.flag() else (x, constant))))


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
    return replace(x, name=name)


def gate(g: Graph, x: Map) -> Map:
    """Squeeze and excite."""
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
    operands, attrs = g._limits(begins, [a.cells - e for a, e in zip(x.space, ends)], axes)
    plain_operands, plain_attrs = g._limits(begins, backwards, axes)
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


LAYERS = (conv, pool, activation, batch_norm, constant, residual, branches, recurse, shuffle, gate, resize, padded_conv,
          cropped, channels_last, across_channels, transposed_conv, instance_norm, depth_to_space)  # fmt: skip


# Boundaries: from the map (N, C, *space) to features (N, F) -----------------------------------------------------------


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
    op, axes = g.pick("ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"), list(range(2, x.rank))
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


# Heads: layers on features (N, F) -------------------------------------------------------------------------------------


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
    return replace(f, name=g.emit("Sub", f.name, g.reduce("ReduceMean", f.name, [1], True)))


HEAD_LAYERS = (gemm, matmul, nonlinear, dropout, feature_norm, feature_constant, skip, parts, gated, grouped, centred,
               gemm_on_the_right)  # fmt: skip


def answered(g: Graph, f: Features, name: str) -> None:
    """An output (N, K)."""
    op = g.pick("Identity", "Softmax", "Sigmoid", "LogSoftmax")
    attrs = {"axis": g.pick(1, -1) if g.opset >= 11 else 1} if "Softmax" in op else {}
    g.emit(op, f.name, **attrs)
    g.original[-1].output[0] = name


# Networks -------------------------------------------------------------------------------------------------------------


@st.composite
def networks(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Network:
    """A classifier with one to six layers in its trunk and one or two outputs."""
    g = Graph(draw)
    rank = g.pick(2, 2, 1, 3)
    size = tuple(draw(st.lists(st.integers(6, 14 if rank < 3 else 9), min_size=rank, max_size=rank, unique=True)))
    channels = g.integer(1, 5)
    last = g.flag()
    g.image = "image"
    dims = [*size, channels] if last else [channels, *size]
    x = Map(g.image, channels, tuple(Axis(n) for n in size))
    if last:
        x = replace(x, name=g.emit("Transpose", g.image, perm=[0, rank + 1, *range(1, rank + 1)]))
    if last or rank == 1:  # something has to tell the channels from the axes that slide, and sounds from tables
        x = replace(x, name=same(g, x))
    for layer in draw(st.lists(st.sampled_from(LAYERS), max_size=6)):
        if math.prod(x.cells) * x.channels < 4000:
            x = layer(g, x)
    if not g.original:
        x = activation(g, x)
    cut, beyond = x, len(g.reference)
    count = g.pick(1, 1, 2)
    f = g.pick(*BOUNDARIES)(g, x)
    for layer in draw(st.lists(st.sampled_from(HEAD_LAYERS), max_size=4)):
        f = layer(g, f)
    answered(g, f, "y")
    if count == 2:
        again = g.pick("same features", "same map")
        f = f if again == "same features" else g.pick(*BOUNDARIES)(g, x)
        answered(g, gemm(g, nonlinear(g, f)), "z")
    kind = helper.np_dtype_to_tensor_dtype(g.kind)
    batch = g.batch if g.fixed else BATCH
    outputs = [helper.make_tensor_value_info(name, kind, [batch, None]) for name in "yz"[:count]]
    image = helper.make_tensor_value_info(g.image, kind, [batch, *dims])
    any_size = helper.make_tensor_value_info(g.image, kind, [None] * (1 + rank + 1))
    reference_cut = helper.make_tensor_value_info(cut.name, kind, [None] * cut.rank)
    original = model(g, g.original, image, outputs)
    reference = model(g, g.reference[:beyond], any_size, [reference_cut])
    return Network(
        original,
        reference,
        cut.name,
        size,
        tuple(range(1, rank + 1) if last else range(2, rank + 2)),
        tuple(a.cells for a in cut.space),
        tuple(int(a.grid / a.stride) for a in cut.space),
        tuple(int(a.grid) for a in cut.space),
        g.exact,
        g.batch,
        g.fixed,
        tuple(g.integer(0, 2) for _ in size),
    )


def model(g: Graph, nodes: Sequence[NodeProto], image: Any, outputs: Sequence[Any]) -> ModelProto:
    """The nodes with the weights that they read."""
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(nodes, "g", [image], outputs, [w for w in g.weights if w.name in read])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=8)
    checker.check_model(made)
    return made
