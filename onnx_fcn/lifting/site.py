"""What a rule may do at one node: read its operands and attributes, emit nodes in its slot, record its conversion.

Functions that bring maps into the form that an operator needs are in `layouts`, those for dilated maps in `dilation`,
and everything that depends on the opset version in `emitter`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.emitter import Emitter
from onnx_fcn.lifting.facts import Fact, Known, Unmapped, Whole
from onnx_fcn.lifting.lifted import Axis, Lifted
from onnx_fcn.lifting.program import Change, Emission, Slides
from onnx_fcn.lifting.regions import Region
from onnx_fcn.lifting.sizes import grows

__all__ = ["Site"]


class Site(Emitter):
    """One node under conversion: the values that its rule reads, and the slot for the nodes that it emits."""

    def has_output(self, index: int) -> bool:
        """Does anything read this output?"""
        return index < len(self.outputs) and self.outputs[index] in self._walk.read

    def ints(self, fact: Fact | None) -> list[int] | None:
        """A constant operand as a list of integers; None if it is absent."""
        return None if fact is None else [int(v) for v in self.value(fact).reshape(-1)]

    def axes(self, fact: Fact | None) -> list[int] | None:
        """The axes of Squeeze, Unsqueeze and Reduce: an attribute in early opsets, an operand in later ones."""
        return self.ints(fact) if fact is not None else self.attr("axes")

    def producer(self, fact: Known) -> onnx.NodeProto | None:
        """The node that computes a constant; None for an initializer."""
        return self._walk.values.producer(fact.name)

    def record_constant(self, name: str, value: Array) -> Known:
        """Record the value of a new constant, so that other rules can read it."""
        self._walk.values.set(name, value)
        return Known(name)

    def elem_type_of(self, fact: Fact | None) -> int:
        """Element type of an operand.

        Raises:
            Unsupported: if the operand is unmapped.
        """
        if isinstance(fact, Lifted):
            return fact.elem_type
        if isinstance(fact, Known):
            return int(onnx.helper.np_dtype_to_tensor_dtype(self.value(fact).dtype))
        raise Unsupported("the type of an operand is not known", code="unknown-type")

    def type_attr(self, name: str, default: int = 0) -> int:
        """An attribute that is an element type."""
        return int(self.node.attrs.get(name) or default)

    def weight_shape(self, fact: Known) -> tuple[int, ...]:
        """Shape of a weight, without dequantising or casting it."""
        node = self.producer(fact)
        if node is not None and node.op_type in ("DequantizeLinear", "Cast") and node.input:
            return self.weight_shape(Known(node.input[0]))
        return self._walk.values.shape(fact.name)

    def sized_output(self, value: Array, *, at_run_time: str | None = None) -> Known:
        """The output of the node as a value that is computed from sizes.

        Args:
            value: the value at the native size.
            at_run_time: the tensor that contains it at any size.
        """
        if at_run_time is not None:
            self.aliases[at_run_time] = self.outputs[0]
        self._walk.values.set(self.outputs[0], value)
        return Known(self.outputs[0], sized=True)

    def shape_of(self, fact: Unmapped) -> tuple[int, ...]:
        """Shape of an unmapped tensor at the native size.

        Raises:
            Unsupported: if shape inference cannot determine it.
        """
        shape = self._walk.shape_of(fact.name)
        if shape is None or any(d is None for d in shape):
            raise Unsupported(f"the shape of '{fact.name}' is not known", code="unknown-shape")
        return tuple(d for d in shape if d is not None)

    def grows(self, fact: Known) -> bool:
        """Does a value that is computed from sizes depend on that of the image?"""
        return grows(self._walk, fact.name)

    @property
    def region(self) -> Region:
        """The region that this node stands for."""
        assert self._walk.region is not None, "the program has a region"
        return self._walk.region

    def output_stride(self, axis: Axis) -> Fraction | None:
        """The coarsest stride that answers may have along an axis, in input pixels; None to keep the network's own."""
        strides = self._walk.options.output_stride
        return strides[axis.image] if strides and axis.image is not None else None

    @property
    def is_stride_requested(self) -> bool:
        """Did the user choose the output stride? Otherwise it is the one that all answers share."""
        return self._walk.options.asked

    @property
    def is_portable(self) -> bool:
        """Should the result have only operators that all common runtimes read alike?"""
        return self._walk.options.portable

    @property
    def is_quantized(self) -> bool:
        """Does the network dequantise values somewhere?"""
        return any(slot.node.op == "DequantizeLinear" for slot in self._walk.slots)

    @property
    def has_slid(self) -> bool:
        """Has an operator slid before this one? It has decided which axes are those of the image."""
        return any(slot.slides is not None for slot in itertools.islice(self._walk.slots, self.position))

    def maps_before(self) -> Iterator[Lifted]:
        """The maps that this node's operands were computed from, the last first, and the image at the end."""
        made = [name for k in self._positions_before() for name in self._walk.slots[k].node.outputs]
        facts = map(self._walk.facts.get, [*made, self._walk.image.name])
        yield from (f for f in facts if isinstance(f, Lifted))

    def _positions_before(self) -> Iterator[int]:
        """The slots that this node's operands were computed in, the last first."""
        yield from sorted(set().union(*(self._walk.upstream(name) for name in self.node.inputs)), reverse=True)

    def last_resized(self) -> int | None:
        """The last Resize of a map before this node that is not context; None if there is none."""
        for k in self._positions_before():
            slot = self._walk.slots[k]
            if slot.node.op == "Resize" and slot.slides is not None and k not in self._walk.context:
                return k
        return None

    @property
    def has_several_outputs(self) -> bool:
        """Has the network more than one output?"""
        return len(self._walk.outputs) > 1

    @property
    def reductions(self) -> set[int]:
        """Positions of the reductions that may prove to be context."""
        return self._walk.reductions

    @property
    def emissions(self) -> tuple[Emission, ...]:
        """The nodes emitted at this site."""
        return self._slot.emissions

    def name_at(self, position: int) -> str:
        """The name of another node of the program."""
        return self._walk.slots[position].name

    def step_at(self, position: int) -> tuple[str, Lifted, str] | None:
        """(operator, operand, map of the result) of an earlier reduction; None if it is none of a single map."""
        slot = self._walk.slots[position]
        operand, result = next(iter(slot.operands), None), self._walk.facts.get(slot.node.outputs[0])
        if not isinstance(operand, Lifted) or not isinstance(result, Lifted):
            return None
        return slot.node.op, operand, result.map

    @property
    def is_head(self) -> bool:
        """Does this reduction belong to the head, although an earlier walk took it for context?"""
        return self._slot.name in self._walk.options.head

    @property
    def is_left_out(self) -> bool:
        """Is this a pooling that is left out, so that what follows it is computed at each cell?"""
        return self._slot.name in self._walk.options.left_out

    @property
    def is_context(self) -> bool:
        """Did this reduction prove to be context, which stays global?"""
        return self.position in self._walk.context

    def record_reduction(self, x: Lifted, *, contextable: bool) -> frozenset[int]:
        """Record a contraction of the window here, and return the origins of its result."""
        if contextable and not self.is_head:
            self._walk.reductions.add(self.position)
        return x.origins | {self.position}

    def record_weights(self) -> None:
        """Record that this operator weighs the positions of a map against each other."""
        self._walk.weights.add(self.position)

    @property
    def image_axes(self) -> int:
        """The number of axes of the image that are positions."""
        return len(self._walk.image.space)

    def note_attention(self, x: Whole) -> None:
        """Record that this operator relates positions of the whole image to each other."""
        self._walk.context.add(self.position)
        self._walk.attention.add(self.position)
        self._slot.changes += (Change("context", reads=x.name, layout=str(x)),)

    def note_context(self, x: Lifted) -> None:
        """Record that this operator sees the whole image, whatever its size."""
        self._walk.context.add(self.position)
        self.note("context", x, x.window)

    def note(self, kind: str, x: Lifted, kernel: Sequence[int] = (), **numbers: Any) -> None:
        """Record how this node, which reads x, is converted, for the report: see `Change`."""
        reads = next((n for n, f in zip(self.node.inputs, self._slot.operands) if isinstance(f, Lifted)), "")
        self._slot.changes += (Change(kind, tuple(kernel), reads=reads, layout=str(x), **numbers),)

    def record_repeated(self, size: int) -> int:
        """Record `size` bytes of a repeated weight or a copying kernel; return the bytes of all of them so far."""
        self._slot.repeated += size
        return sum(slot.repeated for slot in (*self._walk.slots, *self._walk.epilogue))

    def note_sliding(self, *, pads: bool, strides: bool) -> None:
        """Record how this operator's result differs from what a single window would give."""
        self._slot.slides = Slides(pads, strides)

    @property
    def folds(self) -> bool:
        """Should the batch be folded into a spatial axis around the head?"""
        return self._walk.options.folds
