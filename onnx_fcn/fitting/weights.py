"""Weights of a converted file exchanged on disk, whole or not at all.

    onnx_fcn.replace_weights("out.onnx", {"head.weight": kernel, "head.bias": bias}, "tuned.onnx")

Nodes, types and shapes stay as they are, and with them the geometry in the metadata, whose fingerprint leaves the
values of weights out. So a value that decides a shape or a place, such as the factors of a Resize, cannot be exchanged.
The other weights stay on disk: they are streamed from file to file, and never loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError, did_you_mean
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit, Weight
from onnx_fcn.model.graphs import data_inputs, graphs_within, names_used, nodes_within
from onnx_fcn.model.metadata import geometry_in
from onnx_fcn.model.operators import PLACES, REORDERS, SHAPED_BY_VALUES
from onnx_fcn.model.wire import BITS
from onnx_fcn.walk.forms import FLOATS

__all__ = ["replace_weights"]


#: Types of weights that floats of any width are rounded to. Other types only take arrays of their own.

#: Operators that read shapes and places in all operands, or in all but the first.
PLACES_IN_ALL = frozenset({"ConstantOfShape", "NonZero", "Range"})
PLACES_IN_LATER = SHAPED_BY_VALUES | REORDERS | PLACES

#: Operators that read the shape of their operand, and no value.
READS_SHAPE = frozenset({"Shape", "Size"})


def replace_weights(
    model: str | os.PathLike[str] | ModelProto,
    weights: Mapping[str, Array],
    output: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
) -> None:
    """Exchange weights of a converted model, such as those that were trained further, and write it as a file.

    Everything else stays, so the geometry still holds. Weights that are not named are copied from file to file.

    Args:
        model: a file that onnx_fcn converted, or such a model.
        weights: new values by the names of initializers, or of the outputs of Constant nodes; each has the shape of the
            old ones. Floats are rounded to the type of the weight; other types take only arrays of their own.
        output: where to write the result, whole or not at all; may be the model itself.
        external_data: store large weights in a file beside the model (True) or within it (False); None: as the model
            does. A model of more than 2 GB is always stored with external data.

    Raises:
        ModelError: if the model cannot be used, or onnx_fcn did not convert it.
        OptionError: if an array does not fit, or the output cannot be written.
    """
    document = Document.open(model)
    geometry_in(document.proto)
    if not weights:
        raise OptionError("there is nothing to replace: pass arrays by the names of the weights")
    edit = _edit(document, weights)
    if edit.initializers or edit.nodes:  # values that stay the same keep their bytes
        document.commit(edit)
    document.save(output, external_data=external_data)


@dataclass(frozen=True)
class _Stored:
    """Where a weight is: an initializer, or the value of the Constant node with this index."""

    tensor: TensorProto
    node: int | None = None


def _edit(document: Document, weights: Mapping[str, Array]) -> Edit:
    """The weights whose values differ from those in the model. Raises OptionError if an array does not fit."""
    graph = document.proto.graph
    stored, placing = _stored_in(graph), _placing(graph)
    edit = Edit()
    for name, array in weights.items():
        if name not in stored:
            raise OptionError(_missing(graph, name, stored))
        found = stored[name]
        new = _fitted(name, array, found.tensor)
        if _same(new, document.array(found.tensor)):
            continue
        if name in placing:
            raise OptionError(
                f"'{name}' cannot be exchanged, since {placing[name]} reads a shape or places from it: with other "
                "values the geometry of the file would be wrong"
            )
        if found.node is None:
            edit.initializers[name] = Weight(new, new.shape, found.tensor.data_type)
        else:
            edit.nodes[found.node] = [_constant(graph.node[found.node], new)]
    return edit


def _stored_in(graph: GraphProto) -> dict[str, _Stored]:
    """The weights of a graph by name: initializers, and tensors of Constant nodes."""
    stored = {tensor.name: _Stored(tensor) for tensor in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    stored[node.output[0]] = _Stored(attribute.t, index)
    return stored


def _constant(node: NodeProto, array: Array) -> NodeProto:
    """A Constant node with another value."""
    new = NodeProto()
    new.CopyFrom(node)
    for attribute in new.attribute:
        if attribute.name == "value":
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, order="C"), attribute.t.name))
    return new


def _missing(graph: GraphProto, name: Any, stored: Mapping[str, _Stored]) -> str:
    """Why there is no weight of this name that can be exchanged, as a message."""
    producer = next((node for node in graph.node if name in node.output[:]), None)
    if producer is not None and producer.op_type == "Constant":
        return f"'{name}' is not stored as a tensor, but as numbers in {_called(producer)}: it cannot be exchanged"
    if producer is not None:
        operands = [f"'{n}'" for n in names_used(producer) if n in stored]
        hint = f", which reads {' and '.join(operands)}" if 0 < len(operands) < 5 else ""
        return f"'{name}' is not a stored weight, but computed by {_called(producer)}{hint}"
    if name in {sparse.values.name for sparse in graph.sparse_initializer}:
        return f"'{name}' is stored as a sparse tensor, which cannot be exchanged"
    if name in {declared.name for declared in data_inputs(graph)}:
        return f"'{name}' is an input of the model, and no weight"
    if any(name == tensor.name for inner in graphs_within(graph) for tensor in inner.initializer):
        return f"'{name}' is stored in a branch or a loop of the model, where weights cannot be exchanged"
    hint = did_you_mean(str(name), [n for n in stored if isinstance(n, str)])
    return f"there is no weight '{name}' among the {len(stored)} of the model{hint}"


def _fitted(name: str, array: object, tensor: TensorProto) -> Array:
    """An array in the type of a weight.

    Raises:
        OptionError: if its shape is another one, its type would lose more than digits, or not all values are finite.
    """
    if isinstance(array, np.generic):  # what numpy makes of an array without axes when it computes with it
        array = np.asarray(array)
    if not isinstance(array, np.ndarray):
        what = f"the value for '{name}' is of the type {type(array).__name__}, and not a numpy array"
        raise OptionError(f"{what}: convert it, in torch with tensor.detach().cpu().numpy()")
    if tensor.data_type not in BITS:
        raise OptionError(f"'{name}' holds no numbers, so it cannot be exchanged")
    if array.shape != tuple(tensor.dims):
        raise OptionError(
            f"'{name}' has the shape {_in_words(tensor.dims)}, but the array for it has {_in_words(array.shape)}: "
            "only the values can be exchanged"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    is_float = array.dtype.kind == "f" or str(array.dtype) == "bfloat16"
    if array.dtype != dtype and not (is_float and tensor.data_type in FLOATS):
        wanted = "an array of floats" if tensor.data_type in FLOATS else f"its values as an array of {dtype}"
        raise OptionError(f"'{name}' is of the type {dtype}, which {array.dtype} cannot replace: pass {wanted}")
    if not np.isfinite(array).all():
        raise OptionError(f"the array for '{name}' has NaN or infinite values")
    with np.errstate(over="ignore"):
        fitted = array.astype(dtype, copy=False)
    if not np.isfinite(fitted).all():
        largest = float(np.abs(array).max())
        raise OptionError(f"the array for '{name}' has values up to {largest:.2g}, which {dtype} cannot represent")
    return fitted


def _same(one: Array, other: Array) -> bool:
    """Do two arrays of the same type and shape have the same bytes?"""
    first, second = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    return np.array_equal(first, second)


def _in_words(dims: Any) -> str:
    """A shape: ``(64, 20, 4, 4)``."""
    return f"({', '.join(map(str, dims))})"


def _called(node: NodeProto) -> str:
    """A node in a message."""
    return f"{node.op_type} '{node.name or ''.join(node.output[:1])}'"


# Values that decide where answers are ---------------------------------------------------------------------------------


def _placing(graph: GraphProto) -> dict[str, str]:
    """Tensors whose values decide shapes and places, with the node that reads them: they must not change.

    These are the operands of nodes for shapes and places, and everything that such an operand is computed from, except
    the image: followed back from them, up to a node that reads no value.
    """
    nodes = [inner for node in graph.node for inner in (node, *nodes_within(node))]
    of_image = {declared.name for declared in data_inputs(graph)}
    for node in nodes:
        if node.op_type not in READS_SHAPE and not of_image.isdisjoint(node.input[:]):
            of_image.update(node.output)
    producer = {name: node for node in nodes for name in node.output[:]}
    found: dict[str, str] = {}
    wanted = [(name, _called(node)) for node in nodes for name in _places_of(node)]
    while wanted:
        name, reader = wanted.pop()
        if name not in of_image and name not in found:
            found[name] = reader
            node = producer.get(name)
            if node is not None and node.op_type not in READS_SHAPE:
                wanted += [(operand, reader) for operand in node.input]
    return found


def _places_of(node: NodeProto) -> Iterator[str]:
    """The operands in which a node reads a shape or a place."""
    if node.op_type in PLACES_IN_ALL:
        yield from node.input
    elif node.op_type in PLACES_IN_LATER:
        for index, name in enumerate(node.input[1:], start=1):
            if (node.op_type, index) != ("Pad", 2):  # the value that it pads with
                yield name
