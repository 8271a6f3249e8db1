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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TypeProto

from onnx_fcn.model.graphs import names_used, nodes_within, stored_names
from onnx_fcn.model.inference import declared_types, dims_in, infer_types
from onnx_fcn.model.operators import CONVOLUTIONS, COUNTED, LINEAR, UNCOUNTED
from onnx_fcn.model.wire import BITS, payload_bytes

__all__ = ["Dims", "Program", "Tensor", "activations_at", "macs_of", "tensor_of", "tensors_in", "total"]


Dims = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
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

    Attributes:
        layers: the nodes that have multiply-accumulates, counted or not, or a subgraph that contains such a node.
        makes: the names of each node's outputs.
        needed: the tensors whose sizes determine the cost of a run.
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

    def peak(self, tensors: Mapping[str, Tensor], within: Mapping[str, int] | None = None) -> int | None:
        """Bytes of the tensors that are live at the worst node; None if the size of one is not known.

        Args:
            tensors: the types and shapes of the tensors.
            within: bytes of the tensors that are live within nodes with a subgraph, by the names of their outputs.
        """
        taken = {name: tensors.get(name, Tensor()).bytes for name in self._inputs}
        for node, names in zip(self._nodes, self.makes):
            for name in names:
                taken[name] = tensors.get(name, Tensor()).bytes
                if taken[name] is None and node.op_type in ("Reshape", "Slice"):  # it has no more elements
                    taken[name] = taken.get(node.input[0])
        sizes = {name: size for name, size in taken.items() if size is not None}
        if len(sizes) < len(taken):
            return None
        peak = live = sum(sizes[name] for name in self._inputs)
        for k, (reads, makes) in enumerate(zip(self._reads, self.makes)):
            live += sum(sizes[name] for name in makes)
            peak = max(peak, live + max(((within or {}).get(name, 0) for name in makes), default=0))
            live -= sum(sizes[name] for name in {*reads, *makes} if name in sizes and self._last.get(name, k) == k)
        return peak


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
    if any(map(_counts, nodes_within(node))) or node.op_type in UNCOUNTED:
        return None
    if not _counts(node):
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


def _counts(node: NodeProto) -> bool:
    return node.op_type in COUNTED | UNCOUNTED and node.domain in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


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
