"""Values that do not depend on the image: constants, and everything that the graph computes from them and from shapes.

Shape computations are evaluated, not matched: `Shape` of a mapped tensor evaluates to the original shape at the native
size, so a Reshape target becomes numbers however the exporter computed it. A value is evaluated only when a rule
requests it. Operators that only rearrange a weight (Transpose, Reshape …) return numpy views, so a weight that is
stored in a file is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.lifted import BATCH, dims_of
from onnx_fcn.model.graphs import names_used, nodes_within
from onnx_fcn.model.nodes import Node

__all__ = ["VIEWS", "Values", "for_one_image", "is_repeated", "stored_in"]


#: How a graph stores a tensor.
Stored = TensorProto | SparseTensorProto

#: Computed values with more elements are refused: they come from a malformed graph, not from a weight.
LARGEST = 1 << 30

#: Numbers of images that a value is evaluated for if it may be the same for each: what happens from some image on shows
#: for the larger one.
FEW, MORE = 2, 131

#: By how much, relative to the largest, the values of equal images may differ: onnx's implementation rounds.
ROUNDING = 1e-6

#: The most steps of a Loop that computes a constant: more, or no number of them, may never end.
MOST_STEPS = 10_000


class Values:
    """Evaluates tensors on demand and caches them.

    Args:
        nodes: the nodes that compute values.
        initializers: the stored tensors, by name.
        array: reads an initializer or an attribute's tensor, as a view if possible.
        opsets: the version of each operator set.
        outside: the values of the surrounding graph, which a subgraph reads by name.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        initializers: Mapping[str, Stored],
        array: Callable[[TensorProto], Array],
        opsets: Mapping[str, int],
        outside: Values | None = None,
    ) -> None:
        self._producers: dict[str, Node] = {}
        self._initializers, self._array, self._opsets = dict(initializers), array, opsets
        self._outside = outside
        self._values: dict[str, Array] = {}
        self.produce(nodes)

    def produce(self, nodes: Iterable[Node]) -> None:
        """Add nodes, such as those of a branch that was inlined into the program."""
        self._producers.update({o: node for node in nodes for o in node.outputs if o})

    def add(self, name: str, tensor: Stored) -> Array:
        """Add an initializer and return its value."""
        self._initializers[name] = tensor
        return self[name]

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor; None for an initializer."""
        node = self._producers.get(name)
        return None if node is None else node.proto

    def set(self, name: str, value: Array) -> None:
        """Set the value of a tensor that is not evaluated here, such as the shape of a mapped one."""
        self._values[name] = value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; that of a weight without reading it.

        Raises:
            Unsupported: as for its value.
        """
        stored = self._initializers.get(name)
        return tuple(stored.dims) if isinstance(stored, TensorProto) else self[name].shape

    def __getitem__(self, name: str) -> Array:
        """The value of a tensor.

        Raises:
            Unsupported: if an operator that it depends on cannot be evaluated.
        """
        wanted = [name]
        while wanted:  # not recursion: constant chains can be thousands of nodes long
            top = wanted[-1]
            if top in self._values:
                wanted.pop()
                continue
            if top in self._initializers:
                self._values[top] = self._stored(self._initializers[top])
                continue
            if top not in self._producers:
                if self._outside is not None:
                    self._values[top] = self._outside[top]
                    continue
                raise Unsupported(f"the value of '{top}' is not known", code="unknown-value")
            node = self._producers[top]
            needed = node.inputs if node.op == "If" else node.reads  # of an If, the chosen branch alone
            missing = [i for i in needed if i and i not in self._values]
            if missing:
                if len(wanted) > len(self._producers) + 1:
                    raise Unsupported(f"the value of '{top}' depends on itself", code="unknown-value")
                wanted += missing
                continue
            self._values.update(self._evaluate(node.proto))
        return self._values[name]

    def _evaluate(self, node: onnx.NodeProto) -> dict[str, Array]:
        inputs = [self._values[i] if i else None for i in node.input]
        view = VIEWS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            return {node.output[0]: self._array(attributes["value"].t)}
        if node.op_type == "Constant" and "sparse_value" in attributes:
            return {node.output[0]: self._stored(attributes["sparse_value"].sparse_tensor)}
        if node.op_type == "If":
            graph = attributes["then_branch" if _operand(inputs, 0).all() else "else_branch"].g
            branch = Values(map(Node.of, graph.node), stored_in(graph), self._array, self._opsets, self)
            return {name: branch[result.name] for name, result in zip(node.output, graph.output) if name}
        if node.op_type == "ConstantOfShape":
            fill = self._array(attributes["value"].t).reshape(()) if "value" in attributes else np.float32(0)
            return {node.output[0]: np.broadcast_to(fill, [int(d) for d in _operand(inputs, 0)])}
        if node.op_type == "DequantizeLinear":
            view = _dequantize
        if node.op_type == "Expand":
            view = _expand
        if view is not None:
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            try:
                return {node.output[0]: view(inputs, values)}
            except (ValueError, IndexError, TypeError) as error:  # incompatible operands
                raise _no_value(node, inputs) from error
        return self._reference(node)

    def _stored(self, tensor: Stored) -> Array:
        """A stored tensor; a sparse one is made dense."""
        if isinstance(tensor, TensorProto):
            return self._array(tensor)
        if math.prod(tensor.dims) > LARGEST:
            raise Unsupported(f"the sparse weight '{tensor.values.name}' is too large", code="unknown-value")
        values, indices = self._array(tensor.values), self._array(tensor.indices)
        dense = np.zeros(tensor.dims, values.dtype)
        dense[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, dense.shape)] = values
        return dense

    def _reference(self, node: onnx.NodeProto) -> dict[str, Array]:
        """Evaluate one node with onnx's reference implementation: for some images, if they are all the same."""
        given = {name: self._values[name] for name in dict.fromkeys(names_used(node))}
        _check_ends(node, given)
        repeated = {n for n, v in given.items() if any(_is_repeated(v, k) for k in range(v.ndim))}
        if repeated:
            some = ({n: _images(v, count) if n in repeated else v for n, v in given.items()} for count in (FEW, MORE))
            try:
                few, more = (self._referred(node, values) for values in some)
            except Unsupported:  # the number of images is in another operand
                return self._referred(node, given)
            made = {name: _repeated(value, more[name]) for name, value in few.items()}
            values = {name: value for name, value in made.items() if value is not None}
            if len(values) == len(made):
                return values
        return self._referred(node, given)

    def _referred(self, node: onnx.NodeProto, given: Mapping[str, Array]) -> dict[str, Array]:
        """The results of a node for these operands, by onnx's reference implementation."""
        from onnx.reference import ReferenceEvaluator

        outputs = [o for o in node.output if o]
        graph = onnx.helper.make_graph(
            [node],
            "value",
            [
                onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in given.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(o) for o in outputs],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in self._opsets.items()]
        )
        try:
            with np.errstate(all="ignore"):  # the logarithm of 0 is a value
                results = ReferenceEvaluator(model).run(None, dict(given))
        except Exception as error:  # any exception from the reference evaluator means that there is no value
            raise _no_value(node, list(given.values())) from error
        values = dict(zip(outputs, map(np.asarray, results)))
        if any(v.size > LARGEST for v in values.values()):
            raise Unsupported(f"the value of '{outputs[0]}' is too large", code="unknown-value")
        return values


def _is_repeated(value: Array, axis: int) -> bool:
    """Is an axis that of the images, all of which have the same values?"""
    return value.shape[axis : axis + 1] == (BATCH,) and value.strides[axis] == 0


def _images(value: Array, count: int) -> Array:
    """A value that is repeated for each image, for so many images."""
    return value[tuple(slice(count if _is_repeated(value, k) else None) for k in range(value.ndim))]


def _repeated(few: Array, more: Array) -> Array | None:
    """The value for any number of images, from those for `FEW` and for `MORE`; None unless it is the same for each.

    An operator that counts the images, adds them up, numbers them or takes some of them gives other values.
    """
    if few.ndim != more.ndim or any(a != b and (a, b) != (FEW, MORE) for a, b in zip(few.shape, more.shape)):
        return None
    of_images = [a != b for a, b in zip(few.shape, more.shape)]
    one = few[tuple(slice(1 if own else None) for own in of_images)]
    rounding = ROUNDING * np.abs(one[np.isfinite(one)]).max(initial=0) if one.dtype.kind == "f" else 0
    for value in (few, more):
        with np.errstate(invalid="ignore"):  # infinities have no difference
            same = (value == one) | (np.abs(value - one) <= rounding) if rounding else value == one
        if not np.all(same | (value != value)) or np.any((value != value) != (one != one)):
            return None
    return np.broadcast_to(one, [BATCH if own else n for own, n in zip(of_images, few.shape)])


def _check_ends(node: onnx.NodeProto, given: Mapping[str, Array]) -> None:
    """Raises Unsupported if a node is a loop that may run for ever, or for a long time."""
    count = given.get(node.input[0]) if node.op_type == "Loop" and node.input else None
    ends = node.op_type != "Loop" or (count is not None and count.size == 1 and int(count.reshape(-1)[0]) <= MOST_STEPS)
    if not ends or any(inner.op_type == "Loop" for inner in nodes_within(node)):
        raise Unsupported(
            f"the value of '{node.output[0]}' is computed by a loop that is not known to end within {MOST_STEPS} steps",
            code="unknown-value",
        )


def for_one_image(value: Array) -> Array:
    """The part of a value for one image, which broadcasts: each axis as long as the evaluation batch is cut to 1."""
    return value[tuple(slice(1) if size == BATCH else slice(None) for size in value.shape)]


def is_repeated(value: Array) -> bool:
    """Is it evidently the same for each image: is nothing but one image stored?"""
    return all(_is_repeated(value, k) for k, size in enumerate(value.shape) if size == BATCH)


def stored_in(graph: onnx.GraphProto) -> dict[str, Stored]:
    """The initializers of a graph, by name."""
    return {t.name: t for t in graph.initializer} | {t.values.name: t for t in graph.sparse_initializer}


def _no_value(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> Unsupported:
    name = node.name or node.output[0]
    given = " and ".join(dims_of(v.shape) for v in inputs if v is not None)
    what = f"with operands of shape {given}" if given else "without operands"
    return Unsupported(f"the constant {node.op_type} '{name}' cannot be evaluated {what}", code="unknown-value")


def _operand(inputs: list[Array | None], index: int) -> Array:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise Unsupported("a constant node lacks an operand", code="unknown-value")
    return value


def _axes(inputs: list[Array | None], attributes: dict[str, Any]) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(a) for a in inputs[1].reshape(-1)]
    return attributes.get("axes")


def _reshape(inputs: list[Array | None], attributes: dict[str, Any]) -> Array:
    value = _operand(inputs, 0)
    target = [int(d) for d in (_operand(inputs, 1).reshape(-1) if len(inputs) > 1 else attributes.get("shape", []))]
    if not attributes.get("allowzero"):
        target = [value.shape[k] if d == 0 and k < value.ndim else d for k, d in enumerate(target)]
    try:
        if _is_repeated(value, 0) and target[:1] in ([BATCH], [-1]):  # numpy would copy it for each image
            one = value[:1].reshape([1 if target[0] == BATCH else -1, *target[1:]])
            if len(one) == 1:
                return np.broadcast_to(one, [BATCH, *one.shape[1:]])
        return value.reshape(target)
    except ValueError as error:
        raise Unsupported(
            f"a constant of shape {dims_of(value.shape)} cannot be reshaped to {dims_of(target)}", code="unknown-value"
        ) from error


def _squeeze(inputs: list[Array | None], attributes: dict[str, Any]) -> Array:
    axes = _axes(inputs, attributes)
    value = _operand(inputs, 0)
    return value.squeeze() if axes is None else value.squeeze(tuple(axes))


def _expand(inputs: list[Array | None], attributes: dict[str, Any]) -> Array:
    value, target = _operand(inputs, 0), [int(d) for d in _operand(inputs, 1).reshape(-1)]
    shape = np.broadcast_shapes(value.shape, tuple(target))
    if math.prod(d for d in shape if d != BATCH) > LARGEST:  # the images share one copy
        raise Unsupported(f"a constant of shape {dims_of(shape)} is too large", code="unknown-value")
    return np.broadcast_to(value, shape)


def _flatten(inputs: list[Array | None], attributes: dict[str, Any]) -> Array:
    value, axis = _operand(inputs, 0), attributes.get("axis", 1)
    axis += value.ndim if axis < 0 else 0
    return value.reshape(int(np.prod(value.shape[:axis])), int(np.prod(value.shape[axis:])))


def _dequantize(inputs: list[Array | None], attributes: dict[str, Any]) -> Array:
    """(x - zero point)·scale, per tensor, along an axis or in blocks; onnx evaluates it only since opset 19."""
    value, scale, zero = _operand(inputs, 0), _operand(inputs, 1), inputs[2] if len(inputs) > 2 else None
    axis = attributes.get("axis", 1) % max(value.ndim, 1)

    def spread(parameter: Array) -> Array:
        if block := attributes.get("block_size"):
            return parameter.repeat(block, axis).take(range(value.shape[axis]), axis)
        shape = [-1 if k == axis else 1 for k in range(value.ndim)] if parameter.size > 1 else []
        return parameter.reshape(shape)

    centred = value.astype(scale.dtype)
    if zero is not None:
        centred = centred - spread(zero.astype(scale.dtype))
    return np.asarray(centred * spread(scale), scale.dtype)


#: Operators that reinterpret the same bytes: numpy makes views, while onnx's evaluator would copy.
VIEWS: dict[str, Callable[[list[Array | None], dict[str, Any]], Array]] = {
    "Identity": lambda inputs, _: _operand(inputs, 0),
    "Dropout": lambda inputs, _: _operand(inputs, 0),
    "Transpose": lambda inputs, attributes: _operand(inputs, 0).transpose(attributes.get("perm")),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": lambda inputs, attributes: np.expand_dims(_operand(inputs, 0), tuple(_axes(inputs, attributes) or ())),
}
