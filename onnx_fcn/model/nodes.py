"""A node as rules read and write it: names of tensors, and attributes as Python values.

A node of a model is read once, and its attributes when they are asked for; one that is made becomes a proto when it is
stored. Ten thousand of them are made in a conversion of as many nodes, so they are as light as they can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, NodeProto

from onnx_fcn.model.graphs import names_used, subgraphs

__all__ = ["Node", "attributes_of"]


class Node:
    """A node of a graph, or one that is made.

    Attributes:
        op: the operator.
        inputs: names of tensors; empty where an optional one is absent.
        outputs: names of tensors, likewise.
        name: its name; may be empty.
        domain: the domain of the operator; empty for ONNX's own.
    """

    __slots__ = ("_attrs", "_nested", "_proto", "_reads", "domain", "inputs", "name", "op", "outputs")

    def __init__(
        self,
        op: str,
        name: str = "",
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        attrs: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> None:
        self.op, self.name, self.domain = op, name, domain
        self.inputs, self.outputs = list(inputs), list(outputs)
        self._attrs: Mapping[str, Any] | None = {} if attrs is None else attrs
        self._proto: NodeProto | None = None
        self._reads: list[str] | None = None
        self._nested: bool | None = None

    @classmethod
    def of(cls, proto: NodeProto, names: dict[str, str] | None = None) -> Node:
        """A node of a model. Nodes that are read with the same dict of `names` have one object for equal names."""
        one = ({} if names is None else names).setdefault
        node = cls.__new__(cls)
        op, domain = proto.op_type, proto.domain
        node.op, node.name, node.domain = one(op, op), proto.name, one(domain, domain)
        node.inputs, node.outputs = [one(n, n) for n in proto.input], [one(n, n) for n in proto.output]
        node._attrs, node._proto, node._reads, node._nested = None, proto, None, None
        return node

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The attributes by name: numbers, strings, lists of these, or protos of tensors and graphs."""
        if self._attrs is None:
            assert self._proto is not None, "a node without attributes is one of a model"
            self._attrs = attributes_of(self._proto)
        return self._attrs

    @property
    def reads(self) -> list[str]:
        """The names of all tensors that it reads, including those that its subgraphs read from outside."""
        if self._reads is None:
            if self.has_subgraphs:
                self._reads = names_used(self.proto)
            else:  # often the same list
                self._reads = self.inputs if all(self.inputs) else [n for n in self.inputs if n]
        return self._reads

    @property
    def has_subgraphs(self) -> bool:
        """Has it attributes that are graphs?"""
        if self._nested is None:
            made = self._proto is None
            graphs = (v for v in self.attrs.values() if isinstance(v, GraphProto)) if made else subgraphs(self.proto)
            self._nested = any(True for _ in graphs)
        return self._nested

    @property
    def proto(self) -> NodeProto:
        """The node of the model; of one that is made, as it will be stored."""
        if self._proto is None:
            self._proto = self._exported()
        return self._proto

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The same node with other names of tensors that it reads or makes; itself if it has none of them."""
        if names.keys().isdisjoint(self.inputs) and names.keys().isdisjoint(self.outputs):
            return self
        inputs = [names.get(n, n) for n in self.inputs]
        outputs = [names.get(n, n) for n in self.outputs]
        if self._proto is None:
            return Node(self.op, self.name, inputs, outputs, self._attrs, self.domain)
        proto = NodeProto()
        proto.CopyFrom(self._proto)
        proto.input[:], proto.output[:] = inputs, outputs
        return Node.of(proto)

    def _exported(self) -> NodeProto:
        proto = NodeProto(input=self.inputs, output=self.outputs, op_type=self.op)
        if self.name:
            proto.name = self.name
        if self.domain:
            proto.domain = self.domain
        for name, value in self.attrs.items():
            proto.attribute.append(_attribute(name, value))
        return proto


#: The field of a proto with the value of an attribute of this type.
_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}


def attributes_of(proto: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name, without those of types that no rule knows."""
    return {a.name: _value(a) for a in proto.attribute[:] if a.type in _FIELDS}


def _value(attribute: AttributeProto) -> Any:
    kind = attribute.type
    if kind == AttributeProto.INT:
        return attribute.i
    if kind in (AttributeProto.INTS, AttributeProto.FLOATS):
        return getattr(attribute, _FIELDS[kind])[:]
    if kind == AttributeProto.STRING:
        return attribute.s.decode()
    if kind == AttributeProto.STRINGS:
        return [word.decode() for word in attribute.strings]
    return getattr(attribute, _FIELDS[kind])


def _attribute(name: str, value: Any) -> AttributeProto:
    """An attribute as `onnx.helper.make_attribute` writes it, which takes ten times as long for the usual ones."""
    if type(value) is int:
        return AttributeProto(name=name, type=AttributeProto.INT, i=value)
    if type(value) is list and value and all(type(v) is int for v in value):
        return AttributeProto(name=name, type=AttributeProto.INTS, ints=value)
    return onnx.helper.make_attribute(name, value)
