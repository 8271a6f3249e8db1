"""Do both models compute a map in the same way? Then it needs to be computed once only.

They do if both have the same nodes and the same weights, byte for byte. They also do if they differ in names and in
Transposes only, as trunks do that were channels-last. Every tensor is brought into the form

    tensor = transpose(value, permutation)

in which Transposes only change the permutation. Values are numbered: those that the same operator makes of the same
values, with the same attributes, have the same number, in both models. A pointwise operator computes the same of a
transposed value, transposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto

from onnx_fcn._types import Array
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import nodes_within
from onnx_fcn.model.operators import RANDOM
from onnx_fcn.model.sessions import extract
from onnx_fcn.walk.cut import Cut

__all__ = ["same_trunk"]


#: A value, and the permutation of its axes that a tensor is; an empty one leaves them in place.
Tensor = tuple[int, tuple[int, ...]]

#: Operators that compute each element of their result from that element of their operand.
POINTWISE = frozenset(
    {"Abs", "Celu", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"}
    | {"LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus"}
    | {"Softsign", "Sqrt", "Tanh", "ThresholdedRelu"}
)

#: Pointwise operators of several tensors of one rank.
JOINING = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum"})

#: Attributes that may be left out if all of their values are these.
NEUTRAL = {"pads": 0, "strides": 1, "dilations": 1}


def same_trunk(c: Comparison, cut: Cut) -> bool:
    """Do both models compute the cut in the same way, from the same weights?"""
    fact, image = cut.fact, c.walk.image.name
    name = c.walk.renamed.get(fact.map, fact.map)
    order = _order_of(fact)
    targets = [t for t in ({cut.name: order} if order else {}) | {fact.map: ()} if t in _made(c.original)]
    if name not in _made(c.converted) or not targets:
        return False
    before = extract(c.original.proto, [image], targets)
    after = extract(c.converted.proto, [image], [name])
    if not _are_comparable(before, after):
        return False
    values = _Values((c.original, before), (c.converted, after))
    have, made = values.tensors_of(after)[name], values.tensors_of(before)
    c.original.release()
    c.converted.release()
    wanted = [(made[t][0], _transposed(made[t][1], order if t == cut.name else ())) for t in targets]
    return have in wanted


def _made(document: Document) -> set[str]:
    """The tensors that the nodes of a model compute."""
    return {output for node in document.proto.graph.node for output in node.output}


def _order_of(fact: Lifted) -> tuple[int, ...]:
    """The axes of the original tensor in the order of its map, (N, C, *space); empty if they are not the same axes."""
    axes = fact.axes
    plain = len(axes) == fact.rank and len(set(axes)) == len(axes) and set(axes) == set(fact.layout)
    return tuple(fact.layout.index(group) for group in axes) if plain else ()


def _are_comparable(before: ModelProto, after: ModelProto) -> bool:
    """Have both models the same opsets, functions and sparse weights, and no node that is more than its attributes?"""
    a, b = before.graph, after.graph
    same = (
        list(before.opset_import) == list(after.opset_import)
        and list(before.functions) == list(after.functions)
        and list(a.sparse_initializer) == list(b.sparse_initializer)
    )
    nodes = [*a.node, *b.node]
    return same and not any(node.op_type in RANDOM or any(True for _ in nodes_within(node)) for node in nodes)


class _Values:
    """The numbers of the values of two models."""

    def __init__(self, *models: tuple[Document, ModelProto]) -> None:
        self._numbers: dict[object, int] = {}
        self._weights: dict[int, dict[str, int]] = {}
        known: dict[tuple[object, ...], list[tuple[str, int, Array]]] = {}
        for document, model in models:
            found = self._weights[id(model)] = {}
            weights: list[tuple[str, int, Array]] = []
            for tensor in model.graph.initializer:
                array = document.array(tensor)
                alike = sorted(known.get((array.dtype, array.shape), ()), key=lambda k: k[0] != tensor.name)
                same = (number for _, number, other in alike if _same_bytes(array, other))
                found[tensor.name] = next(same, None) or self._number(("weight", tensor.name, id(model)))
                weights.append((tensor.name, found[tensor.name], array))
            for name, number, array in weights:
                known.setdefault((array.dtype, array.shape), []).append((name, number, array))

    def _number(self, key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers) + 1)

    def tensors_of(self, model: ModelProto) -> Mapping[str, Tensor]:
        """The tensors of a model, by name; inputs of the same name are the same in both models."""
        tensors: dict[str, Tensor] = {name: (n, ()) for name, n in self._weights[id(model)].items()}
        scalars = {t.name for t in model.graph.initializer if all(d == 1 for d in t.dims)}
        for node in model.graph.node:
            operands = [tensors.get(n) or (self._number(("input", n)), ()) for n in node.input]
            if node.op_type == "Transpose" and not node.domain and (order := _ints(node, "perm")):
                number, permutation = operands[0]
                tensors[node.output[0]] = number, _transposed(permutation, order)
                continue
            shared: tuple[int, ...] = ()
            if not node.domain and (node.op_type in POINTWISE or node.op_type in JOINING):
                of_maps = {p for name, (_, p) in zip(node.input, operands) if name and name not in scalars}
                shared = of_maps.pop() if len(of_maps) == 1 else ()
            if shared:
                operands = [(number, ()) for number, _ in operands]
            key = node.domain, node.op_type, node.overload, _attributes(node), tuple(operands)
            for k, name in enumerate(node.output):
                tensors[name] = self._number((*key, k)), shared
        return tensors


def _transposed(permutation: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The permutation of axes that another one follows; empty if both together leave the axes in place."""
    both = tuple(permutation[k] for k in order) if permutation and order else tuple(permutation or order)
    return () if both == tuple(range(len(both))) else both


def _ints(node: NodeProto, name: str) -> tuple[int, ...]:
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())


def _attributes(node: NodeProto) -> tuple[bytes, ...]:
    """The attributes of a node, without those that change nothing."""
    return tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute if not _is_neutral(node, a)))


def _is_neutral(node: NodeProto, attribute: AttributeProto) -> bool:
    """Would a node mean the same without an attribute? The kernel of a convolution has its shape anyway."""
    if attribute.name == "kernel_shape":
        return node.op_type == "Conv" and not node.domain
    return attribute.name in NEUTRAL and all(n == NEUTRAL[attribute.name] for n in attribute.ints)


def _same_bytes(a: Array, b: Array) -> bool:
    return np.array_equal(_as_bytes(a), _as_bytes(b))


def _as_bytes(array: Array) -> Array:
    """The bytes of an array: as bytes, NaN equals itself and -0 differs from 0."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
