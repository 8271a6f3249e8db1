"""Faults, planted one at a time into a converted model: what a wrong conversion could look like.

`mutants` yields every one that fits some node, weight or output of a model: axes of a weight swapped or flipped, a tap
zeroed, channels exchanged, an attribute off by one, a node left out, operands or outputs exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from law import Array
from onnx import ModelProto, NodeProto, helper, numpy_helper

Mutant = tuple[str, ModelProto]


def mutants(model: ModelProto) -> Iterator[Mutant]:
    """(what is wrong, the model with that fault), for each fault that fits."""
    yield from weight_faults(model)
    yield from attribute_faults(model)
    yield from node_faults(model)
    yield from output_faults(model)


def copied(model: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    return made


# Weights --------------------------------------------------------------------------------------------------------------


def weight_faults(model: ModelProto) -> Iterator[Mutant]:
    for k, tensor in enumerate(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if tensor.name not in {i for n in model.graph.node for i in n.input}:
            continue
        for what, change in changes_of(value) if value.dtype.kind == "f" else index_changes(value):
            wrong = np.ascontiguousarray(change(value.copy()))
            if wrong.shape == value.shape and wrong.tobytes() != value.tobytes():
                made = copied(model)
                made.graph.initializer[k].CopyFrom(numpy_helper.from_array(wrong, tensor.name))
                yield f"{tensor.name} {list(value.shape)}: {what}", made


def changes_of(value: Array) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Faults of one weight."""
    for a, b in itertools.combinations(range(value.ndim), 2):
        yield f"axes {a} and {b} swapped", lambda w, a=a, b=b: w.swapaxes(a, b)
        yield f"axes {a} and {b} swapped in storage", lambda w, a=a, b=b: w.swapaxes(a, b).reshape(w.shape)
    for axis in range(value.ndim):
        yield f"axis {axis} rolled", lambda w, axis=axis: np.roll(w, 1, axis)
        yield f"axis {axis} flipped", lambda w, axis=axis: np.flip(w, axis)
        if value.shape[axis] > 2:
            yield f"the first two of axis {axis} exchanged", lambda w, axis=axis: exchanged(w, axis)
        if value.shape[axis] > 1:
            yield f"the second of axis {axis} negated", lambda w, axis=axis: negated(w, axis)
    yield "the first element zeroed", lambda w: put(w, 0, 0)
    yield "the last element zeroed", lambda w: put(w, -1, 0)
    yield "the largest element zeroed", lambda w: put(w, int(np.abs(w).argmax()), 0)
    yield "zeroed", np.zeros_like
    yield "halved", lambda w: w / w.dtype.type(2)
    yield "negated", np.negative


def index_changes(value: Array) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Faults of an index, a limit or a size."""
    if value.ndim == 1 and value.size:
        yield "the first one less", lambda w: put(w, 0, w[0] - 1)
        yield "the last one less", lambda w: put(w, -1, w[-1] - 1)
        yield "the largest 4", lambda w: put(w, int(w.argmax()), 4)
    if value.ndim == 1 and value.size > 1:
        yield "the first two exchanged", lambda w: exchanged(w, 0)


def negated(value: Array, axis: int) -> Array:
    value.swapaxes(0, axis)[1] *= -1
    return value


def exchanged(value: Array, axis: int) -> Array:
    order = np.arange(value.shape[axis])
    order[:2] = 1, 0
    return value.take(order, axis)


def put(value: Array, at: int, number: float) -> Array:
    value.reshape(-1)[at] = number
    return value


# Attributes -----------------------------------------------------------------------------------------------------------


def attribute_faults(model: ModelProto) -> Iterator[Mutant]:
    for k, node in enumerate(model.graph.node):
        for what, name, value in attribute_changes(node):
            made = copied(model)
            attributes = made.graph.node[k].attribute
            kept = [a for a in attributes if a.name != name]
            del attributes[:]
            attributes.extend([*kept, helper.make_attribute(name, value)])
            yield f"{node.op_type} {node.output[0]}: {what}", made


def attribute_changes(node: NodeProto) -> Iterator[tuple[str, str, object]]:
    """(what, attribute, value): faults of one node's attributes."""
    have = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in ("Conv", "MaxPool", "AveragePool", "LpPool"):
        rank = len(have["kernel_shape"]) if "kernel_shape" in have else 2
        lists = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * 2 * rank} | have
        for name in ("strides", "dilations"):
            for axis in range(rank):
                yield f"{name}[{axis}] one more", name, changed(lists[name], axis, 1)
        for axis in range(rank):
            begin, end = lists["pads"][axis], lists["pads"][axis + rank]
            if end:
                shifted = changed(changed(lists["pads"], axis, 1), axis + rank, -1)
                yield f"pads[{axis}] shifted to the begin", "pads", shifted
            if begin:
                shifted = changed(changed(lists["pads"], axis, -1), axis + rank, 1)
                yield f"pads[{axis}] shifted to the end", "pads", shifted
            yield f"pads[{axis + rank}] one more", "pads", changed(lists["pads"], axis + rank, 1)
    if node.op_type in ("AveragePool", "MaxPool", "LpPool"):
        yield "ceil_mode toggled", "ceil_mode", 1 - have.get("ceil_mode", 0)
        for axis in range(rank):
            yield f"kernel_shape[{axis}] one more", "kernel_shape", changed(have["kernel_shape"], axis, 1)
    if node.op_type == "AveragePool":
        yield "count_include_pad toggled", "count_include_pad", 1 - have.get("count_include_pad", 0)
    if node.op_type in ("Softmax", "LogSoftmax", "Concat", "Gather"):
        for axis in (1, 2, 3):
            if axis != have.get("axis"):
                yield f"axis {axis}", "axis", axis
    if node.op_type == "BatchNormalization":
        yield "epsilon 0.1", "epsilon", 0.1
    if node.op_type == "Transpose":
        perm = list(have["perm"])
        yield "perm exchanges the last two", "perm", [*perm[:-2], *perm[:-3:-1]]


def changed(values: object, at: int, by: int) -> list[int]:
    made = list(values)  # type: ignore[call-overload]
    made[at] += by
    return made


# Nodes and outputs ----------------------------------------------------------------------------------------------------

#: Operators that are easily confused.
ALIKE = {"AveragePool": "MaxPool", "MaxPool": "AveragePool", "Add": "Sub", "Sub": "Add", "Mul": "Add", "Div": "Mul",
         "Relu": "Identity", "Softmax": "LogSoftmax", "Sigmoid": "Tanh", "Tanh": "Sigmoid"}  # fmt: skip

#: What goes with an operator and not with the one that it is confused with.
OWN = frozenset({"count_include_pad", "storage_order"})


def node_faults(model: ModelProto) -> Iterator[Mutant]:
    weights = {t.name for t in model.graph.initializer}
    for k, node in enumerate(model.graph.node):
        where = f"{node.op_type} {node.output[0]}"
        if node.op_type in ALIKE:
            made = copied(model)
            made.graph.node[k].op_type = ALIKE[node.op_type]
            kept = [a for a in node.attribute if a.name not in OWN]
            del made.graph.node[k].attribute[:]
            made.graph.node[k].attribute.extend(kept)
            yield f"{where}: {ALIKE[node.op_type]}", made
        maps = [i for i in node.input if i and i not in weights]
        if len(maps) == 1 and len(node.output) == 1 and node.op_type != "Identity":
            made = copied(model)
            left_out = helper.make_node("Identity", maps, [node.output[0]], node.name)
            made.graph.node[k].CopyFrom(left_out)
            yield f"{where}: left out", made
        if len(node.input) == 3 and node.op_type == "Conv":
            made = copied(model)
            del made.graph.node[k].input[2]
            yield f"{where}: bias left out", made
        if len(node.input) == 2 and node.op_type in ("Sub", "Div", "Concat"):
            made = copied(model)
            made.graph.node[k].input[0], made.graph.node[k].input[1] = node.input[1], node.input[0]
            yield f"{where}: operands exchanged", made


def output_faults(model: ModelProto) -> Iterator[Mutant]:
    """Two outputs that are computed by other nodes, each under the name of the other."""
    produced = {o: (k, j) for k, n in enumerate(model.graph.node) for j, o in enumerate(n.output)}
    read = {i for n in model.graph.node for i in n.input}
    names = [o.name for o in model.graph.output if o.name in produced and o.name not in read]
    for a, b in itertools.combinations(names, 2):
        made = copied(model)
        for name, other in ((a, b), (b, a)):
            k, j = produced[name]
            made.graph.node[k].output[j] = other
        yield f"outputs {a} and {b} exchanged", made


# Faults of larger images ----------------------------------------------------------------------------------------------


def with_attribute(model: ModelProto, operator: str, name: str, value: object) -> ModelProto:
    """The first node of this operator with another attribute."""
    made = copied(model)
    node = next(n for n in made.graph.node if n.op_type == operator)
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return made


def with_weight(model: ModelProto, change: Callable[[Array], Array], *shape: int) -> ModelProto:
    """The first weight of this shape, changed."""
    made = copied(model)
    tensor = next(t for t in made.graph.initializer if tuple(t.dims) == shape)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
    return made


def with_size_factor(model: ModelProto, tensor: str, native: int) -> ModelProto:
    """A tensor times its width, in units of the native one: what a size that was not frozen does."""
    made = copied(model)
    k = next(k for k, n in enumerate(made.graph.node) if tensor in n.output)
    made.graph.node[k].output[list(made.graph.node[k].output).index(tensor)] = "unscaled"
    made.graph.initializer.append(numpy_helper.from_array(np.array(3), "of_width"))
    made.graph.initializer.append(numpy_helper.from_array(np.float32(native), "native_width"))
    scaled = [
        helper.make_node("Shape", ["unscaled"], ["its_shape"]),
        helper.make_node("Gather", ["its_shape", "of_width"], ["its_width"]),
        helper.make_node("Cast", ["its_width"], ["as_float"], to=1),
        helper.make_node("Div", ["as_float", "native_width"], ["ratio"]),
        helper.make_node("Mul", ["unscaled", "ratio"], [tensor]),
    ]
    nodes = [*made.graph.node[: k + 1], *scaled, *made.graph.node[k + 1 :]]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made
