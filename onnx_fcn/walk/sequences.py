"""Sequences of tensors, rewritten as the tensors in them.

Scripted models keep feature maps in lists. If the length of a list is known before the network runs, it is a tuple of
tensors, and no node has to handle a sequence:

    SplitToSequence                                     Split, or a Gather of each element
    SequenceConstruct, -Empty, -Insert, -Erase          nothing: they only say which tensors are in a sequence
    SequenceAt                                          Identity of one tensor
    ConcatFromSequence                                  Concat of all of them
    SequenceLength                                      a constant

A node stays if a length or an index is not known, or if an If or a Loop makes or reads the sequence: the walk refuses
it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.constants import Values, stored_in
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.graphs import names_used, needed_nodes, opset_of, stored_names, tensor_names
from onnx_fcn.model.inference import dims_in, infer_types
from onnx_fcn.model.nodes import Node

__all__ = ["without_sequences"]


def without_sequences(document: Document) -> Document:
    """The same model with tensors instead of sequences, where these are known; itself if it has no sequences."""
    if not any(_meaning_of(node.op, node.domain) for node in document.nodes):
        return document
    nodes = document.proto.graph.node
    rewriting = _Rewriting(document)
    edit = _without_unread(document.proto.graph, [rewriting.replace(node) for node in nodes])
    document = document.copy()
    document.commit(edit)
    return document


def _without_unread(graph: GraphProto, made: Sequence[Sequence[NodeProto]]) -> Edit:
    """The edit that replaces each node, but for what only sequences needed: their makers, indices and sizes."""
    needed = needed_nodes(graph)
    read = {o.name for o in graph.output}
    nodes: dict[int, list[NodeProto]] = {}
    for k in reversed(range(len(made))):
        kept = []
        for node in reversed(made[k]):
            if k not in needed or not read.isdisjoint(node.output):
                kept.append(node)
                read.update(names_used(node))
        nodes[k] = kept[::-1]
    before = {name for node in graph.node for name in names_used(node)}
    return Edit(nodes=nodes, removed_initializers=(stored_names(graph) & before) - read)


class _Rewriting:
    """One pass over the nodes of a graph, in order.

    Attributes:
        members: the tensors in each sequence, by its name.
        nodes: those that replace the node at hand, so far.
    """

    def __init__(self, document: Document) -> None:
        self.members: dict[str, list[str]] = {}
        self.nodes: list[NodeProto] = []
        self._proto, graph = document.proto, document.proto.graph
        opsets = {o.domain: o.version for o in document.proto.opset_import}
        self._values = Values(document.nodes, stored_in(graph), document.array, opsets)
        self._names = tensor_names(graph)
        self._done: list[NodeProto] = []  # what replaces the nodes before
        self._types: dict[str, onnx.TypeProto.Tensor] = {}

    def replace(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that replace the next one; itself if what it needs is not known.

        A node that makes a sequence is the last of them, since something that stays may read the sequence.
        """
        self.nodes = []
        meaning = _meaning_of(node.op_type, node.domain)
        if meaning is not None:
            with contextlib.suppress(Unsupported):
                meaning(self, node)
        if not self.nodes or node.output[0] in self.members:
            self.nodes.append(node)
        self._values.produce(map(Node.of, self.nodes))
        self._done += self.nodes
        return self.nodes

    def emit(self, node: NodeProto, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Emit a node in place of another one, whose name it gets if it makes the same tensor."""
        name = node.name if outputs == node.output[:] else outputs[0]
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))

    def constant(self, value: Array, output: str) -> str:
        """Emit a constant, and return its name."""
        self.nodes.append(helper.make_node("Constant", [], [output], output, value=numpy_helper.from_array(value)))
        return output

    def emit_with(
        self, key: str, integers: list[int], node: NodeProto, op: str, x: str, outputs: list[str], **attributes: int
    ) -> None:
        """Emit a node that gets integers as an operand, and before opset 13 as the attribute `key`."""
        if (opset_of(self._proto) or 1) < 13:
            self.emit(node, op, [x], outputs, **{key: integers}, **attributes)
        else:
            operand = self.constant(np.array(integers, np.int64), self.fresh(node))
            self.emit(node, op, [x, operand], outputs, **attributes)

    def fresh(self, node: NodeProto) -> str:
        """A new name for a tensor that is made in place of a node's output."""
        name = next(n for k in itertools.count() if (n := f"{node.output[0]}/{k}") not in self._names)
        self._names.add(name)
        return name

    def sequence(self, name: str) -> list[str]:
        """The tensors in a sequence.

        Raises:
            Unsupported: if they are not known.
        """
        if name not in self.members:
            raise Unsupported(f"what is in '{name}' is not known", code="unknown-value")
        return self.members[name]

    def value(self, node: NodeProto, operand: int) -> Array | None:
        """The value of an operand; None if it is absent.

        Raises:
            Unsupported: if it is not known.
        """
        name = node.input[operand] if operand < len(node.input) else ""
        return self._values[name] if name else None

    def place(self, node: NodeProto, operand: int, length: int, default: int) -> int:
        """The place in a sequence that an operand gives, counted from its start; `default` if it is absent.

        Raises:
            Unsupported: if it is not known, or there is no such place.
        """
        value = self.value(node, operand)
        place = default if value is None else int(value.reshape(-1)[0])
        if not -length <= place < length:
            raise Unsupported(f"there is no place {place} in a sequence of {length}", code="indices")
        return place % length

    def size(self, name: str, axis: int) -> int:
        """The size of an axis of a tensor.

        Raises:
            Unsupported: if it is not the same for all images.
        """
        if name not in self._types:
            model = onnx.ModelProto()
            model.CopyFrom(self._proto)
            for field in ("node", "value_info", "output"):
                model.graph.ClearField(field)
            model.graph.node.extend(self._done)
            self._types = infer_types(model) or {}
        dims = dims_in(self._types[name]) if name in self._types else None
        size = dims[axis] if dims and -len(dims) <= axis < len(dims) else None
        if size is None:
            raise Unsupported(f"the size of axis {axis} of '{name}' is not known", code="unknown-shape")
        return size


def _split(rewriting: _Rewriting, node: NodeProto) -> None:
    """Parts of one axis: of these sizes, all of one size but for the last, or single elements."""
    x, axis, given = node.input[0], _attribute(node, "axis", 0), rewriting.value(node, 1)
    if given is None:
        rewriting.members[node.output[0]] = _elements(rewriting, node, x, axis)
        return
    if np.any(given < 1):
        raise Unsupported("a part has no elements", code="empty")
    if given.ndim:
        sizes = [int(n) for n in given]
    else:
        total, each = rewriting.size(x, axis), int(given)
        sizes = [min(each, total - start) for start in range(0, total, each)]
    parts = [rewriting.fresh(node) for _ in sizes]
    rewriting.emit_with("split", sizes, node, "Split", x, parts, axis=axis)
    rewriting.members[node.output[0]] = parts


def _elements(rewriting: _Rewriting, node: NodeProto, x: str, axis: int) -> list[str]:
    """The elements of one axis, which is left out unless the node keeps it."""
    shape = [1] if _attribute(node, "keepdims", 1) else []
    elements = []
    for k in range(rewriting.size(x, axis)):
        index = rewriting.constant(np.full(shape, k), rewriting.fresh(node))
        elements.append(rewriting.fresh(node))
        rewriting.emit(node, "Gather", [x, index], elements[-1:], axis=axis)
    return elements


def _empty(rewriting: _Rewriting, node: NodeProto) -> None:
    rewriting.members[node.output[0]] = []


def _construct(rewriting: _Rewriting, node: NodeProto) -> None:
    rewriting.members[node.output[0]] = list(node.input)


def _insert(rewriting: _Rewriting, node: NodeProto) -> None:
    """A sequence with one more tensor, by default at its end."""
    members = rewriting.sequence(node.input[0])
    place = rewriting.place(node, 2, len(members) + 1, len(members))
    rewriting.members[node.output[0]] = [*members[:place], node.input[1], *members[place:]]


def _erase(rewriting: _Rewriting, node: NodeProto) -> None:
    """A sequence without one of its tensors, by default the last."""
    members = rewriting.sequence(node.input[0])
    place = rewriting.place(node, 1, len(members), -1)
    rewriting.members[node.output[0]] = [*members[:place], *members[place + 1 :]]


def _at(rewriting: _Rewriting, node: NodeProto) -> None:
    members = rewriting.sequence(node.input[0])
    rewriting.emit(node, "Identity", [members[rewriting.place(node, 1, len(members), 0)]], node.output[:])


def _length(rewriting: _Rewriting, node: NodeProto) -> None:
    rewriting.constant(np.array(len(rewriting.sequence(node.input[0]))), node.output[0])


def _concat(rewriting: _Rewriting, node: NodeProto) -> None:
    """All tensors in one, along an axis that they have or along a new one."""
    members, axis = rewriting.sequence(node.input[0]), _attribute(node, "axis", 0)
    if not members:
        raise Unsupported("an empty sequence has no shape", code="empty")
    if _attribute(node, "new_axis", 0):
        wider = [rewriting.fresh(node) for _ in members]
        for name, made in zip(members, wider):
            rewriting.emit_with("axes", [axis], node, "Unsqueeze", name, [made])
        members = wider
    rewriting.emit(node, "Concat", members, node.output[:], axis=axis)


#: What each operator on sequences means.
_MEANINGS: dict[str, Callable[[_Rewriting, NodeProto], None]] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}


def _meaning_of(operator: str, domain: str) -> Callable[[_Rewriting, NodeProto], None] | None:
    return _MEANINGS.get(operator) if domain in ("", "ai.onnx") else None


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
