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

    __slots__ = ("_attrs", "_proto", "_reads", "domain", "inputs", "name", "op", "outputs")

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

    @classmethod
    def of(cls, proto: NodeProto) -> Node:
        """A node of a model."""
        node = cls.__new__(cls)
        node.op, node.name, node.domain = proto.op_type, proto.name, proto.domain
        node.inputs, node.outputs = proto.input[:], proto.output[:]
        node._attrs, node._proto, node._reads = None, proto, None
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
            if self._has_subgraphs:
                self._reads = names_used(self.proto)
            else:  # often the same list
                self._reads = self.inputs if all(self.inputs) else [n for n in self.inputs if n]
        return self._reads

    @property
    def _has_subgraphs(self) -> bool:
        if self._proto is not None:
            return bool(subgraphs(self._proto))
        return any(isinstance(value, GraphProto) for value in self.attrs.values())

    @property
    def proto(self) -> NodeProto:
        """The node of the model; of one that is made, as it will be stored."""
        if self._proto is None:
            self._proto = self._exported()
        return self._proto

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors that it reads or makes other names; not a node of a document, which is changed by an edit."""
        self.inputs = [names.get(n, n) for n in self.inputs]
        self.outputs = [names.get(n, n) for n in self.outputs]
        self._reads = None
        if self._proto is not None:
            self._proto.input[:], self._proto.output[:] = self.inputs, self.outputs

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
