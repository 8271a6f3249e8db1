"""The difference to a model, as a value: what `Document.commit` writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import NodeProto, ValueInfoProto

from onnx_fcn._types import Array

__all__ = ["Edit", "Weight"]


@dataclass(frozen=True)
class Weight:
    """The values of a new initializer.

    Attributes:
        array: any strided view; its elements in C order are the payload. A view on a memory map stays one until saved.
        dims: the dimensions to declare, of as many elements.
        elem_type: the `TensorProto.DataType`.
    """

    array: Array
    dims: tuple[int, ...]
    elem_type: int


@dataclass(frozen=True)
class Edit:
    """The difference to the main graph of a model. What it does not name stays as it is.

    Attributes:
        nodes: the nodes that take the seat of the one with this index; none to remove it.
        order: another order of the seats, such as `Document.sorted_order` gives.
        initializers: new ones, or new values for those of the same name.
        removed_initializers: names; the graph inputs of the same name, which are their declarations, go with them.
        inputs: new declarations in place of those of the same name, whose documentation is kept.
        outputs: likewise.
        removed_outputs: names of graph outputs that are none any more.
        value_info: all intermediate declarations, in place of the present ones; None keeps those.
        metadata: entries of `metadata_props`, added or replaced.
        opset_imports: domain → version, added or replaced.
    """

    nodes: dict[int, list[NodeProto]] = field(default_factory=dict)
    order: list[int] | None = None
    initializers: dict[str, Weight] = field(default_factory=dict)
    removed_initializers: set[str] = field(default_factory=set)
    inputs: dict[str, ValueInfoProto] = field(default_factory=dict)
    outputs: dict[str, ValueInfoProto] = field(default_factory=dict)
    removed_outputs: set[str] = field(default_factory=set)
    value_info: list[ValueInfoProto] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    opset_imports: dict[str, int] = field(default_factory=dict)
