"""What a graph costs to run, counted without running it: multiply-accumulates and activation memory.

A **multiply-accumulate** (MAC) is a product that is added to a sum, or two FLOPs. Convolutions and dense layers are
counted, as in torchvision's tables and in fvcore:

    Conv                     output elements × channels of a group × taps of the kernel
    ConvTranspose            input elements × output channels of a group × taps of the kernel
    Gemm, MatMul             output elements × features that are summed for each
    Einsum of two operands   the product of the sizes of all its indices

and so are their quantised and fused forms. Poolings, normalisations, activations and what is computed from constants
alone are not counted. The number is not known if there is a recurrence or fused attention, which do much work.

**Activation memory** is the largest sum, over the nodes in their order, of the bytes of all live tensors: computed
already, and still read by this node or a later one. It ignores weights, workspace and alignment, and that a runtime
may fuse nodes or let one overwrite its input. It shows how sizes compare; it does not predict the memory of a process.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TypeProto

from onnx_fcn.model.graphs import nodes_within, stored_names
from onnx_fcn.model.inference import declared_types, dims_in, infer_types
from onnx_fcn.model.nodes import Node
from onnx_fcn.model.operators import CONVOLUTIONS, COUNTED, LINEAR, UNCOUNTED
from onnx_fcn.model.wire import BITS, payload_bytes

__all__ = ["Dims", "Program", "Tensor", "activations_at", "macs_of", "tensor_of", "tensors_in", "total"]


Dims = tuple[int, ...]


class Tensor(NamedTuple):
    """Type and shape of a tensor; each is None if it is not known before the model runs."""

    elem_type: int | None = None
    dims: Dims | None = None

    @property
    def bytes(self) -> int | None:
        """The size of the tensor in memory; None if not known."""
        if self.dims is None or self.elem_type is None or self.elem_type not in BITS:
            return None
        return payload_bytes(self.dims, self.elem_type)


def activations_at(model: ModelProto, image: str, shape: Sequence[int]) -> int | None:
    """Bytes of the tensors that are live at the worst node of any model; None if a size is not known.

    Args:
        model: a model or its skeleton; no other input may depend on the size of the image.
        image: the name of the input that is the image.
        shape: the shape of the image, with its batch.
    """
    program, known = Program(model.graph), ModelProto()
    known.CopyFrom(model)
    graph = known.graph
    given = next(i for i in graph.input if i.name == image)
    given.CopyFrom(onnx.helper.make_tensor_value_info(image, given.type.tensor_type.elem_type, shape))
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    return program.peak(tensors_in(known))


class Program:
    """The nodes of a graph that depend on an input; all others are computed once, when the model is loaded.

    A network of ten thousand nodes has tensors of a few **forms**: all tensors of one form have the same type and shape
    in every run. So what does not depend on the size of the image is found out once, and a size is computed for each
    form, not for each tensor.

    Attributes:
        nodes: the name of each node's first output.
        needed: the forms of the tensors whose sizes determine the cost of a run.
    """

    def __init__(
        self, graph: GraphProto, forms: Mapping[str, Hashable] | None = None, nodes: Iterable[Node] | None = None
    ) -> None:
        """Read the nodes of a graph.

        Args:
            graph: the graph.
            forms: the forms of its tensors; by default, that of a tensor is its name.
            nodes: its nodes, if they have been read already.
        """
        known, stored = forms or {}, stored_names(graph)
        made = dict.fromkeys((i.name for i in graph.input if i.name not in stored), 0)  # a tensor -> the node's place
        last: dict[str, int] = {}
        bounds: dict[str, str] = {}  # a tensor -> one that has at least as many elements
        self.nodes: list[str] = []
        self._layers: dict[Hashable, _Layer] = {}
        for node in map(Node.of, graph.node) if nodes is None else nodes:
            inputs, outputs, reads = node.inputs, node.outputs, node.reads
            if made.keys().isdisjoint(reads):
                continue
            makes = [name for name in outputs if name]
            self.nodes.append(next(iter(makes), ""))
            place = len(self.nodes)
            for name in reads:
                last[name] = place
            for name in makes:
                made[name] = place
            if node.op in ("Reshape", "Slice"):
                bounds.update(dict.fromkeys(makes, inputs[0]))
            if _counts(node.op, node.domain) or (node.has_subgraphs and _counts_within(node.proto)):
                around = tuple([known.get(name, name) for name in (*inputs, *outputs[:1])])
                key = (node.op, b"" if node.op in CONVOLUTIONS else _attributes(node.proto), around)
                if key not in self._layers:
                    self._layers[key] = _Layer(node.proto, around, [])
                self._layers[key].names.append(self.nodes[-1])
        end = len(self.nodes) + 1
        last.update({o.name: end for o in graph.output})
        ends = [last.get(name, place or end) for name, place in made.items()]  # an input that nothing reads stays
        self._made, self._bounds = made, bounds
        self._forms = [known.get(name, name) for name in made]
        self._born, self._gone = np.array(list(made.values())), np.array(ends) + 1
        self.needed = {form for layer in self._layers.values() for form in layer.around if form}.union(self._forms)

    def macs(self, tensors: Mapping[Any, Tensor]) -> dict[str, int | None]:
        """Multiply-accumulates of each layer, by the name of its first output; `tensors` are given by their forms."""
        counts = [(layer.macs(tensors), layer.names) for layer in self._layers.values()]
        return {name: count for count, names in counts for name in names}

    def peak(self, tensors: Mapping[Any, Tensor], within: Mapping[str, int] | None = None) -> int | None:
        """Bytes of the tensors that are live at the worst node; None if the size of one is not known.

        Args:
            tensors: the types and shapes of the tensors, by their forms.
            within: bytes of the tensors that are live within nodes with a subgraph, by the names of their outputs.
        """
        sizes = self._sizes(tensors)
        if sizes is None:
            return None
        large = sum(sizes) >= 1 << 62  # as no machine has: Python's integers then
        taken = np.array(sizes, object if large else np.int64)
        change = np.zeros(len(self.nodes) + 3, taken.dtype)
        np.add.at(change, self._born, taken)
        np.subtract.at(change, self._gone, taken)
        live = change.cumsum()
        inner = [int(live[self._made[name]]) + size for name, size in (within or {}).items() if name in self._made]
        return max([int(live.max()), *inner])

    def _sizes(self, tensors: Mapping[Any, Tensor]) -> list[int] | None:
        """Bytes of each tensor that depends on an input, in the order in which they are made."""
        of_form = {form: tensors.get(form, Tensor()).bytes for form in set(self._forms)}
        sizes = [of_form[form] for form in self._forms]
        if None in sizes:
            found: dict[str, int | None] = {}
            for name, size in zip(self._made, sizes):
                found[name] = found.get(self._bounds.get(name, "")) if size is None else size
            sizes = list(found.values())
        known = [size for size in sizes if size is not None]
        return known if len(known) == len(sizes) else None


class _Layer(NamedTuple):
    """Nodes with equally many multiply-accumulates in every run, counted or not, or with such nodes in a subgraph.

    Attributes:
        node: one of them.
        around: the forms of its inputs and of its first output.
        names: the name of each one's first output.
    """

    node: NodeProto
    around: tuple[Hashable, ...]
    names: list[str]

    def macs(self, tensors: Mapping[Any, Tensor]) -> int | None:
        """Multiply-accumulates of one of them."""
        names = (*self.node.input[:], *self.node.output[:1])
        return macs_of(self.node, {n: tensors[form] for n, form in zip(names, self.around) if form in tensors})


def _attributes(node: NodeProto) -> bytes:
    """The attributes of a node that its multiply-accumulates may depend on."""
    return b"".join(a.SerializeToString() for a in node.attribute[:])


def tensors_in(model: ModelProto) -> dict[str, Tensor]:
    """The tensors of a model, as far as onnx infers them from those that are declared."""
    return {name: tensor_of(kind) for name, kind in (infer_types(model) or declared_types(model)).items()}


def tensor_of(kind: TypeProto.Tensor) -> Tensor:
    """The type and shape in a declaration."""
    dims = dims_in(kind)
    known = dims is not None and None not in dims
    return Tensor(kind.elem_type or None, tuple(d for d in dims or () if d is not None) if known else None)


def macs_of(node: NodeProto, tensors: Mapping[str, Tensor]) -> int | None:
    """Multiply-accumulates of one node.

    None if a size is not known, if a subgraph contains a layer, or for what is not counted though it does much work.
    """
    if _counts_within(node) or node.op_type in UNCOUNTED:
        return None
    if not _counts(node.op_type, node.domain):
        return 0
    dims = [_dims(tensors, name) for name in node.input]
    output = _dims(tensors, node.output[0])
    attributes = {a.name: a for a in node.attribute}
    if node.op_type in CONVOLUTIONS:
        return _product(output, _rest(dims[CONVOLUTIONS[node.op_type]]))
    if node.op_type in LINEAR:
        return _product(dims[0] and dims[0][:-1], (len(attributes["coefficients"].floats),))
    if node.op_type == "ConvTranspose":
        return _product(dims[0], _rest(dims[1]))
    if node.op_type == "Einsum":
        return _einsum(attributes["equation"].s.decode(), dims)
    if "transBatchA" in attributes and attributes["transBatchA"].i:
        return None
    if dims[0] is None:
        return None
    turned = "transA" in attributes and attributes["transA"].i
    return _product(output, dims[0][-2:-1] if turned and len(dims[0]) > 1 else dims[0][-1:])


#: The operators that have multiply-accumulates, and their domains.
LAYERS, DOMAINS = COUNTED | UNCOUNTED, frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


def _counts(operator: str, domain: str) -> bool:
    return operator in LAYERS and domain in DOMAINS


def _counts_within(node: NodeProto) -> bool:
    """Is there an operator that has multiply-accumulates in a subgraph?"""
    return any(_counts(inner.op_type, inner.domain) for inner in nodes_within(node))


def _dims(tensors: Mapping[str, Tensor], name: str) -> Dims | None:
    return tensors[name].dims if name in tensors else None


def _rest(dims: Dims | None) -> Dims | None:
    """Channels of a group, and taps: all dims of a kernel but the first."""
    return None if dims is None else dims[1:]


def _product(*shapes: Dims | None) -> int | None:
    return None if None in shapes else math.prod(d for dims in shapes if dims is not None for d in dims)


def _einsum(equation: str, dims: Sequence[Dims | None]) -> int | None:
    """One multiply-accumulate for each combination of indices; None for more than two operands.

    Their products may be computed in different orders, at different costs.
    """
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        return 0 if len(terms) == 1 else None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, dims):
        if shape is None:
            return None
        for index, size in zip(term, shape):
            sizes[index] = max(size, sizes.get(index, 1))
    return math.prod(sizes.values())


def total(counts: Iterable[int | None]) -> int | None:
    """The sum; None if one of the counts is not known."""
    listed = list(counts)
    return None if None in listed else sum(c for c in listed if c is not None)
