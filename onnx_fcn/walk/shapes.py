"""Shapes of tensors at the native size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.constants import Values, stored_in
from onnx_fcn.lifting.facts import Fact, Known
from onnx_fcn.lifting.program import Image
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import static_dims
from onnx_fcn.model.inference import dims_in, infer_types
from onnx_fcn.model.nodes import Node
from onnx_fcn.model.operators import SHAPED_BY_VALUES, STAND_INS

__all__ = ["Shapes", "is_consistent", "native_types"]


class Shapes:
    """Shapes of tensors at the native size, inferred on demand.

    Values that the walk has evaluated so far, such as the target of a Reshape, are put in as constants: inference alone
    does not get past them. So an open shape is inferred again once the walk has evaluated more of them.
    """

    def __init__(self, document: Document, image: Image, facts: dict[str, Fact], values: Values) -> None:
        self._document, self._image, self._facts, self._values = document, image, facts, values
        self._shapes: dict[str, tuple[int | None, ...]] = {}
        self._computed = _computed_operands(document)
        self._put_in: frozenset[str] | None = None  # those that were known at the last inference

    def __call__(self, name: str) -> tuple[int | None, ...] | None:
        shape = self._shapes.get(name)
        if shape is None or None in shape:
            known = frozenset(n for n in self._computed if isinstance(self._facts.get(n), Known))
            if known != self._put_in:
                self._put_in = known
                types = _inferred(self._document, self._image, _evaluated(self._values, known))
                shapes = {name: dims_in(kind) for name, kind in types.items()}
                self._shapes = {name: shape for name, shape in shapes.items() if shape is not None}
        return self._shapes.get(name)


def native_types(document: Document, image: Image) -> dict[str, onnx.TypeProto.Tensor]:
    """Types and shapes of all tensors at the native size, as far as they are known before the network runs.

    What is computed from shapes is evaluated and put in, and more shapes are inferred, until there are no more.
    """
    return _settled(document, image)[0]


def is_consistent(document: Document, image: Image) -> bool:
    """Does onnx find no operator whose operands do not fit each other at the native size? It misses some."""
    _, found = _settled(document, image)
    try:
        onnx.shape_inference.infer_shapes(_put_together(document, image, found), data_prop=True, strict_mode=True)
    except Exception:  # its exceptions have no common base
        return False
    return True


def _settled(document: Document, image: Image) -> tuple[dict[str, onnx.TypeProto.Tensor], dict[str, Array]]:
    """(types of tensors, values that shapes are computed from), once inferring again would give no more of them."""
    graph = document.proto.graph
    opsets = {o.domain: o.version for o in document.proto.opset_import}
    values = Values(map(Node.of, graph.node), stored_in(graph), document.array, opsets)
    computed = _computed_operands(document)
    found: dict[str, Array] = {}
    while True:
        types = _inferred(document, image, found)
        for node in graph.node:
            if (value := _size_of(node, types)) is not None:
                values.set(node.output[0], value)
        more = _evaluated(values, computed - found.keys())
        if not more:
            return types, found
        found |= more


def _size_of(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> Array | None:
    """The value of a Shape or Size whose operand has a known shape; None for other nodes."""
    if node.op_type not in ("Shape", "Size") or node.domain not in ("", "ai.onnx") or node.input[0] not in types:
        return None
    dims = dims_in(types[node.input[0]])
    if dims is None or None in dims:
        return None
    attributes = {a.name: a.i for a in node.attribute}
    shape = np.array(dims, np.int64)[attributes.get("start", 0) : attributes.get("end")]
    return shape if node.op_type == "Shape" else np.array(shape.prod())


def _computed_operands(document: Document) -> frozenset[str]:
    """Operands that determine the shape of a result, and are not stored; the condition of an If is one."""
    graph = document.proto.graph
    shaping = {name for node in graph.node if node.op_type in SHAPED_BY_VALUES for name in node.input[1:]}
    shaping |= {node.input[0] for node in graph.node if node.op_type == "If" and node.input}
    return frozenset(shaping - {t.name for t in graph.initializer} - {""})


def _evaluated(values: Values, names: Iterable[str]) -> dict[str, Array]:
    """The values of those tensors that can be evaluated."""
    found = {}
    for name in names:
        with contextlib.suppress(Unsupported):
            found[name] = values[name]
    return found


def _inferred(document: Document, image: Image, put_in: Mapping[str, Array]) -> dict[str, onnx.TypeProto.Tensor]:
    """Types of tensors at the native size, with these values put in as constants."""
    return infer_types(_put_together(document, image, put_in)) or {}


def _put_together(document: Document, image: Image, put_in: Mapping[str, Array]) -> onnx.ModelProto:
    """The model at the native size, with these values put in as constants."""
    model = onnx.ModelProto()
    model.CopyFrom(document.proto)
    del model.graph.value_info[:]
    batch = 1 if image.batch is None else image.shape[image.batch]
    given = next(i for i in model.graph.input if i.name == image.name)
    stated = (None, static_dims(given)[image.batch or 0])  # an input with another first axis has no batch
    for declared in model.graph.input:
        shape = declared.type.tensor_type.shape
        for k, dim in enumerate(shape.dim):
            if declared.name == image.name:
                dim.dim_value = image.shape[k]
            elif k == 0 and image.batch is not None and (dim.dim_value or None) in stated:
                dim.dim_value = batch
    _put_in(model.graph, put_in)
    _stand_in(model.graph)
    for declared in model.graph.output:
        declared.type.tensor_type.ClearField("shape")
    return model


def _put_in(graph: onnx.GraphProto, values: Mapping[str, Array]) -> None:
    """Put in, as initializers, the values that shapes are computed from."""
    for node in graph.node:
        for k, name in enumerate(node.input[1:], 1):
            if node.op_type in SHAPED_BY_VALUES and name in values:
                node.input[k] = f"{name}/value"
                value = np.ascontiguousarray(values[name])
                graph.initializer.append(onnx.numpy_helper.from_array(value, node.input[k]))
    nodes = [chosen for node in graph.node for chosen in _chosen(graph, node, values)]
    del graph.node[:]
    graph.node.extend(nodes)


def _chosen(graph: onnx.GraphProto, node: onnx.NodeProto, values: Mapping[str, Array]) -> Sequence[onnx.NodeProto]:
    """The nodes of the branch that an If with a known condition chooses; any other node itself."""
    if node.op_type != "If" or not node.input or node.input[0] not in values:
        return [node]
    name = "then_branch" if values[node.input[0]].reshape(-1)[0] else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == name)
    graph.initializer.extend(branch.initializer)
    results = zip(branch.output, node.output)
    return [*branch.node, *(onnx.helper.make_node("Identity", [made.name], [given]) for made, given in results)]


def _stand_in(graph: onnx.GraphProto) -> None:
    """Replace operators that onnx has no shape inference for by similar ones."""
    for node in graph.node:
        if node.domain in ("com.microsoft", "ai.onnx.ml") and node.op_type in STAND_INS:
            node.op_type, operands = STAND_INS[node.op_type]
            node.domain = ""
            node.input[:] = node.input[operands]
