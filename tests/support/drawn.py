"""A network in the making, drawn by hypothesis: its nodes, its weights, and what each opset calls them.

Two models are made at once, the original and the **reference**: the same trunk, written so that it means the same at
any size, as the original may not (targets of Reshape baked, `auto_pad`, sizes of Resize, ends of Slice).

Each choice has the plainest option first, where hypothesis shrinks to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import law
import numpy as np
from hypothesis import strategies as st
from law import Array
from onnx import FunctionProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper


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
        self.constants: list[NodeProto] = []
        self.functions: list[FunctionProto] = []
        self.inputs: dict[str, int] = {}  # vectors beside the image, and their lengths
        self.spelled: str = self.pick(*["initializer"] * 6, "Constant", "Constant", "If", "If", "sparse")
        self.exact = True
        self.slides = True  # is there a network that answers for every window as this one does?
        self.regrouped = False  # are channels in another order only by a Reshape?
        self.one_channel = False  # has the last map of the trunk one?
        self.image = ""

    @property
    def onnx_kind(self) -> int:
        """The type of its numbers as ONNX calls it."""
        return int(helper.np_dtype_to_tensor_dtype(self.kind))

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

    def beside(self, op: str, operands: Sequence[str | Array], attrs: dict[str, Any]) -> str:
        """A node that only the reference has, for its own purposes."""
        name = f"r{len(self.reference)}"
        self.instead(name, op, operands, attrs)
        return name

    def vector(self, count: int) -> str:
        """An input beside the image, (N, count)."""
        name = f"vector{len(self.inputs)}"
        self.inputs[name] = count
        return name

    def _node(self, op: str, operands: Sequence[str | Array], outputs: int, attrs: dict[str, Any]) -> NodeProto:
        names = [o if isinstance(o, str) else self.weight(o) for o in operands]
        number = len(self.original)
        made = [f"t{number}" if outputs == 1 else f"t{number}_{k}" for k in range(outputs)]
        return helper.make_node(op, names, made, f"{op}_{number}", **attrs)

    def weight(self, value: Array) -> str:
        """The name of a constant, which is written in the way of this network."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        if self.spelled == "sparse" and self.opset >= 11 and value.dtype == np.float32 and value.ndim == 2:
            self.constants.append(helper.make_node("Constant", [], [name], sparse_value=sparse(value, name)))
        elif self.spelled == "Constant":
            self.constants.append(helper.make_node("Constant", [], [name], value=self.weights[-1]))
        elif self.spelled == "If" and value.dtype == self.kind:
            self.constants += chosen(self.weights[-1], len(self.constants))
        return name

    def call(self, domain: str, name: str, x: str, body: str) -> None:
        """A call of a local function that does what an operator does, in the original; `instead` has to follow."""
        self.functions.append(
            helper.make_function(
                domain,
                name,
                ["a"],
                ["b"],
                [helper.make_node(body, ["a"], ["b"])],
                [helper.make_opsetid("", self.opset)],
            )
        )
        self.original.append(self._node(name, [x], 1, {"domain": domain}))

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
        operands, attrs = self.limits(starts, ends, axes)
        return str(self.emit("Slice", x, *operands, **attrs))

    def limits(
        self, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]
    ) -> tuple[list[Array], dict[str, Any]]:
        """The operands and the attributes of a Slice."""
        if self.opset >= 10:
            return [self.ints(*starts), self.ints(*ends), self.ints(*axes)], {}
        return [], {"starts": list(starts), "ends": list(ends), "axes": list(axes)}

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        if self.opset >= 13:
            return list(self.emit("Split", x, self.ints(*sizes), outputs=len(sizes), axis=1))
        return list(self.emit("Split", x, outputs=len(sizes), axis=1, split=list(sizes)))

    def reshape(self, x: str, rest: Sequence[int]) -> str:
        """Reshape to (N, *rest), in one of the ways in which exporters write that."""
        return str(self.emit("Reshape", x, self.target(x, rest)))

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


def sparse(value: Array, name: str) -> SparseTensorProto:
    """A matrix as those of its values that are not 0, row by row."""
    places = np.flatnonzero(value)
    values = numpy_helper.from_array(value.reshape(-1)[places], name)
    return helper.make_sparse_tensor(
        values, numpy_helper.from_array(places.astype(np.int64), f"{name}_places"), value.shape
    )


def chosen(value: TensorProto, number: int) -> list[NodeProto]:
    """A constant that an If chooses, always the same way."""
    other = numpy_helper.from_array(-numpy_helper.to_array(value), f"{value.name}_other")
    branches = {}
    for branch, tensor in (("then_branch", value), ("else_branch", other)):
        made, name = f"{value.name}_{branch}", tensor.name
        declared = helper.make_tensor_value_info(made, value.data_type, value.dims)
        node = helper.make_node("Constant", [], [made], value=tensor)
        branches[branch] = helper.make_graph([node], name, [], [declared])
    yes = numpy_helper.from_array(np.array(True), f"{value.name}_condition")
    return [
        helper.make_node("Constant", [], [f"{value.name}_yes"], value=yes),
        helper.make_node("If", [f"{value.name}_yes"], [value.name], f"If_{number}", **branches),
    ]


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


# What trunks and heads have in common ---------------------------------------------------------------------------------

ACTIVATIONS = {"Relu": 7, "LeakyRelu": 7, "Sigmoid": 7, "Tanh": 7, "Elu": 7, "Softplus": 7, "Abs": 7, "HardSigmoid": 7,
               "HardSwish": 14, "Gelu": 20, "Mish": 18}  # fmt: skip


def activated(g: Graph, x: str) -> str:
    op = g.pick(*(op for op, first in ACTIVATIONS.items() if first <= g.opset), "Clip")
    return clipped(g, x) if op == "Clip" else str(g.emit(op, x))


def clipped(g: Graph, x: str) -> str:
    """Clip to -½ … 2, or from below alone."""
    if g.opset < 11:
        return str(g.emit("Clip", x, min=-0.5, max=2.0))
    limits = [np.array(-0.5, g.kind), np.array(2.0, g.kind)]
    return str(g.emit("Clip", x, *limits[: g.pick(2, 1)]))


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


def combined(g: Graph, x: str, constant: Array) -> str:
    """A constant added, subtracted, multiplied, divided by, on either side."""
    op = g.pick("Add", "Sub", "Mul", "Div", "PRelu" if g.opset >= 9 else "Add")
    if op in ("Div", "PRelu"):
        return str(g.emit(op, x, np.abs(constant) + constant.dtype.type(0.5)))
    return str(g.emit(op, *((constant, x) if g.flag() else (x, constant))))
