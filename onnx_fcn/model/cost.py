"""What a graph costs to run, counted without running it: multiply-accumulates and activation memory.

A **multiply-accumulate** (MAC) is a product that is added to a sum, or two FLOPs. Convolutions and dense layers count,
as in torchvision's tables and in fvcore:

    Conv                     output elements × channels of a group × taps of the kernel
    ConvTranspose            input elements × output channels of a group × taps of the kernel
    Gemm, MatMul             output elements × features that each is summed over
    Einsum of two operands   the sizes of all its indices, multiplied

with their quantised and fused forms. Poolings, normalisations, activations and recurrences do not count, nor does what
is computed from constants alone.

**Activation memory** is the largest sum, over the nodes in their order, of the bytes of all tensors that are live: made
already, and still read by this node or a later one. Weights, workspace and alignment are not in it, nor that a runtime
fuses nodes or lets one write over its input: it tells how sizes compare, and is no promise for a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TypeProto

from onnx_fcn.model.graphs import names_used, nodes_within, stored_names
from onnx_fcn.model.inference import declared, dims_in, inferred
from onnx_fcn.model.operators import CONVOLUTIONS, COUNTED
from onnx_fcn.model.wire import BITS, payload_bytes

__all__ = ["Dims", "Program", "Tensor", "activations_at", "macs_of", "tensors_in", "total"]


Dims = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """Type and shape of a tensor; None where they are not known before it runs."""

    elem_type: int | None = None
    dims: Dims | None = None

    @property
    def bytes(self) -> int | None:
        """What it takes in memory."""
        if self.dims is None or self.elem_type is None or self.elem_type not in BITS:
            return None
        return payload_bytes(self.dims, self.elem_type)


def activations_at(model: ModelProto, image: str, shape: Sequence[int]) -> int | None:
    """Bytes of the tensors that are live at the worst node, counted on any model alone; None where a size is not known.

    Args:
        model: it, or its skeleton; no other input may depend on the size of the image.
        image: the input that is the image.
        shape: of the image, with its batch.
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

    Attributes:
        layers: those that have multiply-accumulates, or a subgraph in which a layer may hide.
        makes: the names that each node makes.
        needed: the tensors whose sizes tell what a run costs.
    """

    def __init__(self, graph: GraphProto) -> None:
        stored = stored_names(graph)
        self._inputs = [i.name for i in graph.input if i.name not in stored]
        self._nodes: list[NodeProto] = []
        self._reads: list[list[str]] = []
        self.makes: list[list[str]] = []
        varying = set(self._inputs)
        for node in graph.node:
            reads = names_used(node)
            if not varying.isdisjoint(reads):
                self._nodes.append(node)
                self._reads.append(reads)
                self.makes.append([name for name in node.output[:] if name])
                varying.update(self.makes[-1])
        self._last = {name: k for k, names in enumerate(self._reads) for name in names}
        self._last |= {o.name: len(self._nodes) for o in graph.output}
        self.layers = [n for n in self._nodes if _counts(n) or any(map(_counts, nodes_within(n)))]
        self.needed = varying | {name for node in self.layers for name in node.input if name}

    def macs(self, tensors: Mapping[str, Tensor]) -> dict[str, int | None]:
        """Multiply-accumulates of each layer, by the name of its first output."""
        return {next(filter(None, node.output)): macs_of(node, tensors) for node in self.layers}

    def peak(self, tensors: Mapping[str, Tensor]) -> int | None:
        """Bytes of the tensors that are live at the worst node; None where the size of one is not known."""
        taken = {name: tensors.get(name, Tensor()).bytes for name in self._inputs}
        for node, names in zip(self._nodes, self.makes):
            for name in names:
                taken[name] = tensors.get(name, Tensor()).bytes
                if taken[name] is None and node.op_type == "Reshape":  # as many elements, however they lie
                    taken[name] = taken.get(node.input[0])
        sizes = {name: size for name, size in taken.items() if size is not None}
        if len(sizes) < len(taken):
            return None
        peak = live = sum(sizes[name] for name in self._inputs)
        for k, (reads, makes) in enumerate(zip(self._reads, self.makes)):
            live += sum(sizes[name] for name in makes)
            peak = max(peak, live)
            live -= sum(sizes[name] for name in {*reads, *makes} if name in sizes and self._last.get(name, k) == k)
        return peak


def tensors_in(model: ModelProto) -> dict[str, Tensor]:
    """The tensors of a model, as far as they follow from those that are declared."""
    return {name: _tensor(kind) for name, kind in (inferred(model) or declared(model)).items()}


def _tensor(kind: TypeProto.Tensor) -> Tensor:
    dims = dims_in(kind)
    known = dims is not None and None not in dims
    return Tensor(kind.elem_type or None, tuple(d for d in dims or () if d is not None) if known else None)


def macs_of(node: NodeProto, tensors: Mapping[str, Tensor]) -> int | None:
    """Multiply-accumulates of one node; None where a size is not known, or where a layer hides in a subgraph."""
    if any(map(_counts, nodes_within(node))):
        return None
    if not _counts(node):
        return 0
    dims = [_dims(tensors, name) for name in node.input]
    output = _dims(tensors, node.output[0])
    attributes = {a.name: a for a in node.attribute}
    if node.op_type in CONVOLUTIONS:
        return _product(output, _rest(dims[CONVOLUTIONS[node.op_type]]))
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


def _counts(node: NodeProto) -> bool:
    return node.op_type in COUNTED and node.domain in ("", "ai.onnx", "com.microsoft")


def _dims(tensors: Mapping[str, Tensor], name: str) -> Dims | None:
    return tensors[name].dims if name in tensors else None


def _rest(dims: Dims | None) -> Dims | None:
    """Channels of a group, and taps."""
    return None if dims is None else dims[1:]


def _product(*shapes: Dims | None) -> int | None:
    return None if None in shapes else math.prod(d for dims in shapes if dims is not None for d in dims)


def _einsum(equation: str, dims: Sequence[Dims | None]) -> int | None:
    """One multiply-accumulate for each combination of indices; more operands leave the order of products open."""
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
    """The sum; None where one of them is not known."""
    listed = list(counts)
    return None if None in listed else sum(c for c in listed if c is not None)
