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
        array: any strided view; its elements in C order are the payload. A view on a memory map is not copied before
            the model is saved.
        dims: the dimensions to declare, with the same number of elements.
        elem_type: the `TensorProto.DataType`.
    """

    array: Array
    dims: tuple[int, ...]
    elem_type: int


@dataclass(frozen=True)
class Edit:
    """The difference to the main graph of a model. What it does not name stays unchanged.

    Attributes:
        nodes: index of a node → the nodes that replace it; an empty list removes it.
        order: a new order of the node indices, such as `Document.sorted_order` returns.
        initializers: new initializers, or new values for those of the same name.
        removed_initializers: names; graph inputs of the same name, which declare them, are removed as well.
        inputs: new declarations of inputs, by name; their documentation is kept.
        outputs: new declarations of outputs, by name; their documentation is kept.
        added_outputs: declarations of further outputs.
        removed_outputs: names of graph outputs to remove.
        value_info: all declarations of intermediate tensors, replacing the present ones; None keeps these.
        metadata: entries of `metadata_props`, added or replaced.
        opset_imports: domain → version, added or replaced.
    """

    nodes: dict[int, list[NodeProto]] = field(default_factory=dict)
    order: list[int] | None = None
    initializers: dict[str, Weight] = field(default_factory=dict)
    removed_initializers: set[str] = field(default_factory=set)
    inputs: dict[str, ValueInfoProto] = field(default_factory=dict)
    outputs: dict[str, ValueInfoProto] = field(default_factory=dict)
    added_outputs: list[ValueInfoProto] = field(default_factory=list)
    removed_outputs: set[str] = field(default_factory=set)
    value_info: list[ValueInfoProto] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    opset_imports: dict[str, int] = field(default_factory=dict)
