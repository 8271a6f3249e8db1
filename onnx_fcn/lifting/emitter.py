"""Emits nodes in the slot of a node, in the form that the model's opset requires.

Rules request operations (slice these axes, reduce over those); the emitter chooses the attributes and operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.constants import for_one_image, is_repeated
from onnx_fcn.lifting.facts import Blocked, Fact, Known
from onnx_fcn.lifting.lifted import BATCH, Lifted
from onnx_fcn.lifting.program import Constant, Emission, Slot, Walk
from onnx_fcn.model.edit import Weight
from onnx_fcn.model.nodes import Node

__all__ = ["END", "POOLINGS", "Emitter", "Operand"]

#: An input of an emitted node: a tensor's name, a fact, a constant, or nothing.
Operand = str | Fact | Array | None

#: The end of a slice that extends to the end of its axis.
END = int(np.iinfo(np.int64).max)

#: The first opset in which these operators accept dilations.
DILATE = {"MaxPool": 10, "LpPool": 18, "AveragePool": 19}

RAISE_OPSET = "raise the opset first, with onnx.version_converter"

_DEFAULTS = {
    "ceil_mode": 0,
    "strides": 1,
    "dilations": 1,
    "pads": 0,
    "group": 1,
    "count_include_pad": 0,
    "auto_pad": "NOTSET",
}


#: Operators whose strides and pads are written even if they are defaults: MNN divides by a missing stride.
POOLINGS = frozenset({"AveragePool", "LpPool", "MaxPool"})


def _explicit(op: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of an operator that is made, with the strides and pads of a pooling even if they are defaults."""
    given = {k: v for k, v in attrs.items() if v is not None}
    if op not in POOLINGS:
        return given
    rank = len(given["kernel_shape"])
    given.setdefault("strides", [1] * rank)
    if given.get("auto_pad", "NOTSET") == "NOTSET":
        given.setdefault("pads", [0] * 2 * rank)
    return given


def _is_default(name: str, value: Any) -> bool:
    """Does this attribute of a sliding operator equal its default?"""
    default = _DEFAULTS.get(name)
    return default is not None and (value == default or (isinstance(value, list) and set(value) <= {default}))


class Emitter:
    """One node under conversion: its attributes and constants, and the nodes that its rule emits."""

    def __init__(self, walk: Walk, position: int, slot: Slot) -> None:
        self._walk, self.position, self._slot = walk, position, slot
        self.node = slot.node
        self.outputs: list[str] = slot.node.outputs
        self.aliases: dict[str, str] = {}

    @property
    def op(self) -> str:
        """The operator type of the node."""
        return self.node.op

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self._walk.opsets.get("", self._walk.opsets.get("ai.onnx", 1))

    @property
    def batch(self) -> int:
        """The batch that shapes are evaluated with."""
        return self._walk.batch

    def fresh(self, hint: str) -> str:
        """A tensor name that is used nowhere else."""
        return self._walk.fresh(hint)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        value = self.node.attrs.get(name, default)
        return list(value) if isinstance(value, list | tuple) else value

    def flag(self, name: str, default: int = 0) -> bool:
        """An attribute of the node that is 0 or 1.

        Raises:
            Unsupported: if it is neither, because runtimes interpret that differently.
        """
        value = self.attr(name, default)
        if value not in (0, 1):
            raise Unsupported(f"its attribute {name} is {value}, but must be 0 or 1", code="attribute")
        return bool(value)

    def value(self, fact: Fact | None) -> Array:
        """The value of an operand at the native size.

        Raises:
            Unsupported: if it depends on the image.
        """
        if not isinstance(fact, Known):
            raise Unsupported("requires a constant, but the value depends on the image", code="not-constant")
        return self._walk.values[fact.name]

    def fixed_value(self, fact: Fact | None) -> Array:
        """The value of an operand that may be computed from sizes, fixed to the native size.

        Raises:
            Unsupported: if it depends on the size of the batch too.
        """
        value = self.value(fact)
        one = for_one_image(value)
        stored = one if is_repeated(value) else value
        with np.errstate(invalid="ignore"):  # a mask of infinities has no remainder
            counts = value.dtype.kind in "iuf" and np.any((stored != 0) & (np.fmod(stored, BATCH) == 0))
        if self.batch == BATCH and counts:
            raise Unsupported("computes with the size of the batch", code="batch")
        if self.batch == BATCH and BATCH in value.shape:  # repeated for each image
            if np.any(stored != one):
                raise Unsupported("counts the images of the batch", code="batch")
            return one
        return value

    def constant(self, value: Array, dims: Sequence[int] | None = None, *, source: str | None = None) -> str:
        """Add an initializer with these dims; return its name. `source`: the tensor that it is computed from."""
        base = next(o for o in self.outputs if o)
        name = self._walk.fresh(f"{source}/fcn" if source else f"{base}/constant")
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        weight = Weight(value, tuple(value.shape if dims is None else dims), elem_type)
        self._slot.constants += (Constant(name, weight, source or ""),)
        return name

    def emit(self, inputs: Sequence[Operand] = (), op: str | None = None, *, domain: str = "", **attrs: Any) -> str:
        """Emit a node with one output; without `op`, the slot's own node with other inputs. Returns the output's name.

        The slot's own node keeps the attributes that are not given; None removes one.
        """
        return self.emit_many(inputs, op, outputs=1, domain=domain, **attrs)[0]

    def emit_many(
        self,
        inputs: Sequence[Operand],
        op: str | None = None,
        *,
        outputs: int | None = None,
        domain: str = "",
        **attrs: Any,
    ) -> list[str]:
        """Emit a node with this many outputs, or as many as the slot's node has. Returns their names."""
        varies, own, made = op is None, self.node, op or self.op
        count = len(self.outputs) if outputs is None else outputs
        hint = f"{next(filter(None, self.outputs))}/{made}"
        present = [*map(bool, self.outputs), *[False] * count][:count] if varies else [True] * count
        names = [self._walk.fresh(hint) if is_present else "" for is_present in present]
        given: Mapping[str, Any] = {k: v for k, v in attrs.items() if k in own.attrs or not _is_default(k, v)}
        if varies:
            domain, given = own.domain, {**own.attrs, **given} if given else own.attrs
        if given is not own.attrs or made in POOLINGS:
            given = _explicit(made, given)
        node = Node(made, own.name if varies else names[0], self._inputs(inputs), names, given, domain)
        self._slot.emissions += (Emission(node, varies),)
        return names

    def replace_operands(self, operands: Sequence[Operand]) -> list[str]:
        """Replace the operands of the slot's node. Returns the names of its outputs."""
        self._slot.replaced = True
        return self.emit_many(operands)

    def _inputs(self, operands: Sequence[Operand]) -> list[str]:
        """Names of the inputs; trailing absent ones are dropped, unless the original node lists them."""
        names = [self._operand(operand) for operand in operands]
        while names and not names[-1] and len(names) > len(self.node.inputs):
            names.pop()
        return names

    def _operand(self, operand: Operand) -> str:
        if operand is None:
            return ""
        if isinstance(operand, str):
            return operand
        if isinstance(operand, Lifted):
            return operand.map
        if isinstance(operand, np.ndarray):
            return self.constant(operand)
        if isinstance(operand, Known) and operand.sized:
            return self.constant(self.fixed_value(operand), source=operand.name)
        assert not isinstance(operand, Blocked), "a rule never sees what was refused"
        return operand.name

    # Operators by opset -------------------------------------------------------------------------------------------
    #
    # Everything that depends on the opset of emitted nodes is here. What an *original* node means in its opset, such
    # as the axes of an early Softmax, is up to its rule.

    def _check_since(self, opset: int, what: str) -> None:
        """Raises Unsupported if the opset is older; `what` begins the reason."""
        if self.opset < opset:
            raise Unsupported(f"{what} requires opset {opset}", code="opset", hint=RAISE_OPSET)

    def dtype(self, elem_type: int) -> np.dtype[Any]:
        """The numpy type of an ONNX element type."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))

    def scalar(self, x: Lifted, value: float) -> Array:
        """A scalar of the map's type."""
        return np.array(value, self.dtype(x.elem_type))

    def unsqueeze(self, name: str, axes: Sequence[int]) -> str:
        """Unsqueeze: axes are an attribute before opset 13."""
        if self.opset < 13:
            return self.emit([name], "Unsqueeze", axes=list(axes))
        return self.emit([name, np.array(axes, np.int64)], "Unsqueeze")

    def squeeze(self, name: str, axes: Sequence[int]) -> str:
        """Squeeze: axes are an attribute before opset 13."""
        if self.opset < 13:
            return self.emit([name], "Squeeze", axes=list(axes))
        return self.emit([name, np.array(axes, np.int64)], "Squeeze")

    def slice(
        self, name: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int] = ()
    ) -> str:
        """Slice: before opset 10 it has attributes, and no steps."""
        if all(s == 0 for s in starts) and all(e == END for e in ends) and set(steps) <= {1}:
            return name
        if self.opset >= 10:
            operands: list[Operand] = [np.array(v, np.int64) for v in (starts, ends, axes)]
            if set(steps) - {1}:
                operands.append(np.array(steps, np.int64))
            return self.emit([name, *operands], "Slice")
        name = self.emit([name], "Slice", starts=list(starts), ends=list(ends), axes=list(axes))
        if set(steps) - {1}:  # a pooling with kernel 1 and that stride
            spatial = dict(zip(axes, steps))
            rank = max(axes) - 1
            strides = [spatial.get(k + 2, 1) for k in range(rank)]
            name = self.emit([name], "MaxPool", kernel_shape=[1] * rank, strides=strides)
        return name

    @property
    def slices_by_steps(self) -> bool:
        """Does Slice accept steps along any axis?"""
        return self.opset >= 10

    def slice_to(self, name: Operand, end: str, axis: int, why: str) -> str:
        """Slice along one axis up to a size that is known only at run time, a tensor (1,).

        In opset 9, whose Slice has attributes, a Gather of the indices 0 … end - 1.

        Raises:
            Unsupported: if the opset is older than 9; `why` begins the reason.
        """
        if self.opset >= 10:
            return self.emit([name, np.array([0]), end, np.array([axis])], "Slice")
        self._check_since(9, why)
        ones = self.emit([end], "ConstantOfShape", value=onnx.numpy_helper.from_array(np.ones(1, np.int64)))
        indices = self.squeeze(self.emit([ones], "NonZero"), [0])
        return self.emit([name, indices], "Gather", axis=axis)

    def expand(self, name: Operand, shape: Operand) -> str:
        """Expand a tensor to a shape.

        Raises:
            Unsupported: if the opset is older than 8.
        """
        self._check_since(8, "repeats a value over the map, which")
        return self.emit([name, shape], "Expand")

    def where(self, condition: Operand, chosen: Operand, other: Operand) -> str:
        """A choice for each element.

        Raises:
            Unsupported: if the opset is older than 9.
        """
        self._check_since(9, "chooses between values, which")
        return self.emit([condition, chosen, other], "Where")

    def check_broadcasts(self) -> None:
        """Check that the node's operator broadcasts its operands.

        Raises:
            Unsupported: if it does not in this opset.
        """
        if self.opset < 8 and self.op in ("Max", "Mean", "Min", "Sum"):
            raise Unsupported(f"{self.op} does not broadcast before opset 8", code="opset", hint=RAISE_OPSET)

    def dilates(self, op: str) -> bool:
        """Does this pooling accept dilations?"""
        return self.opset >= DILATE.get(op, 0)

    def check_dilates(self, op: str) -> None:
        """Check that this pooling accepts dilations.

        Raises:
            Unsupported: if it does not in this opset.
        """
        if not self.dilates(op):
            what = op if op == self.op else "poolings"  # the original node has another name
            raise Unsupported(f"{what} cannot be dilated before opset {DILATE[op]}", code="rate", hint=RAISE_OPSET)

    def check_interpolates(self) -> None:
        """Check that Resize accepts a coordinate transformation.

        Raises:
            Unsupported: if it does not in this opset.
        """
        self._check_since(11, "interpolates by Resize, which")

    def resize(self, x: Operand, scales: Array, op: str | None = None, **attrs: Any) -> str:
        """Resize by scales, with this operator or the node's own. Upsample and opsets before 11 have no other operand.

        Later opsets have a region of interest between x and the scales: empty here, and left out since opset 13.
        """
        if (op or self.op) == "Upsample" or self.opset < 11:
            return self.emit([x, scales], op)
        region: Operand = np.zeros(0, np.float32) if self.opset < 13 else None
        return self.emit([x, region, scales], op, **attrs)

    def resize_to(self, x: Operand, sizes: Operand) -> str:
        """The node's own Resize, to the sizes of all axes: an operand since opset 11."""
        none: Operand = np.zeros(0, np.float32) if self.opset < 13 else None
        return self.emit([x, none, none, sizes], axes=None)

    def pad_as(self, x: Operand, amounts: Sequence[int], value: Operand, mode: str) -> str:
        """The node's own Pad by other amounts: before opset 11 amounts, value and mode are attributes."""
        if self.opset < 11:
            return self.emit([x], pads=list(amounts))
        return self.emit([x, np.array(amounts, np.int64), *([value] if value is not None else [])], mode=mode)

    def pad(self, name: str, begins: Sequence[int], ends: Sequence[int], value: Array) -> str:
        """Pad with a constant: attributes before opset 11."""
        amounts = [*begins, *ends]
        if self.opset < 11:
            return self.emit([name], "Pad", pads=amounts, value=float(value))
        return self.emit([name, np.array(amounts, np.int64), value], "Pad")

    def pad_edges(self, name: str, begins: Sequence[int], ends: Sequence[int]) -> str:
        """Pad by repeating the cells at the edge: an attribute before opset 11."""
        amounts = [*begins, *ends]
        if self.opset < 11:
            return self.emit([name], "Pad", pads=amounts, mode="edge")
        return self.emit([name, np.array(amounts, np.int64)], "Pad", mode="edge")

    def lowest(self, elem_type: int) -> float:
        """The lowest number of a type."""
        kind = self.dtype(elem_type)
        return float(np.iinfo(kind).min) if kind.kind in "iu" else -math.inf

    def reduce(self, name: str, kind: str, axes: Sequence[int]) -> str:
        """Reduce over axes and keep them: they are an operand of ReduceSum since opset 13, of the others since 18."""
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.emit([name, np.array(axes, np.int64)], kind, keepdims=1)
        return self.emit([name], kind, axes=list(axes), keepdims=1)

    def reduce_as(self, name: str, axes: Sequence[int]) -> str:
        """The node's own reduction over other axes, which it keeps."""
        if len(self.node.inputs) > 1 and self.node.inputs[1]:
            return self.emit([name, np.array(axes, np.int64)], keepdims=1, noop_with_empty_axes=None)
        if self.opset >= (13 if self.op == "ReduceSum" else 18):
            return self.emit([name, np.array(axes, np.int64)], keepdims=1, noop_with_empty_axes=None)
        return self.emit([name], axes=list(axes), keepdims=1)

    def softmax(self, name: str, axis: int, rank: int, op: str) -> str:
        """Softmax along one axis: before opset 13 it flattens all axes from there on, so the axis must be last."""
        if self.opset >= 13:
            return self.emit([name], op, axis=axis)
        return self.with_axis_last(name, axis, rank, lambda t: self.emit([t], op, axis=rank - 1))

    def with_axis_last(self, name: str, axis: int, rank: int, emit: Callable[[str], str]) -> str:
        """Move an axis of a tensor to the end, apply `emit`, and move the axis back."""
        perm = [k for k in range(rank) if k != axis] + [axis]
        back = [perm.index(k) for k in range(rank)]
        return self.emit([emit(self.emit([name], "Transpose", perm=perm))], "Transpose", perm=back)
