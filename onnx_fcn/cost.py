"""What a run costs: multiply-accumulates and activation memory, counted on the graph without running it.

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

Sizes are exact: those of maps are counted by the walk (`Axis.count`), and shape inference fills in what lies between.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from onnx_fcn.document import Document, names_used, nodes_within
from onnx_fcn.errors import OptionError
from onnx_fcn.geometry import Answers, Geometry
from onnx_fcn.inputs import static_dims
from onnx_fcn.interpret import Walk
from onnx_fcn.lifted import BATCH, Lifted
from onnx_fcn.lifting import find_cut, upstream
from onnx_fcn.storage import stored_names
from onnx_fcn.wire import BITS, payload_bytes

__all__ = [
    "ImageCost",
    "NativeCost",
    "Part",
    "Program",
    "Sizes",
    "Tensor",
    "activations_at",
    "costs_of",
    "macs_of",
    "native_cost",
    "tensors_at",
]

#: Image sizes in terms of the native one, where the user names none.
FACTORS = (1.5, 2, 4)

#: Operators whose operand of this number is a kernel (outputs, channels of a group, *taps).
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1}

#: Operators that sum over the last axis of their first operand, or the one before it where that is transposed.
PRODUCTS = frozenset(
    {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedGemm", "FusedMatMul", "QGemm", "MatMulNBits"}
    | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)

#: The form of answers to images of the native size only.
KEEP_SIZE = "keep-size"

COUNTED = frozenset({*CONVOLUTIONS, *PRODUCTS, "ConvTranspose", "Einsum"})

#: Image sizes as users give them: (height, width), or one number for all axes.
Sizes = Sequence[int | Sequence[int]]

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """The trunk or the head: how many nodes depend on an input, and their multiply-accumulates (None: not known)."""

    nodes: int
    macs: int | None


@dataclass(frozen=True)
class NativeCost:
    """What the original costs on an image of its native size.

    Attributes:
        batch: images that all costs are for: one, or as many as the graph has built in.
        macs: multiply-accumulates. None where a size is not known before it runs.
        activations: bytes of the tensors that are live at the worst node; None likewise.
        trunk: the nodes that the cut is computed from.
        head: all others.
    """

    batch: int
    macs: int | None
    activations: int | None
    trunk: Part
    head: Part


@dataclass(frozen=True)
class ImageCost:
    """What an image of one size costs on the converted network, and as crops.

    Attributes:
        size: of the image, in pixels.
        answers: the grid of answers for it.
        macs: multiply-accumulates of the map. None where a size is not known before it runs.
        crops: those of the original on the crops of the same windows; None likewise, and where there are no windows.
        activations: bytes of the tensors of the converted network that are live at the worst node; None likewise.
    """

    size: Dims
    answers: Dims
    macs: int | None
    crops: int | None
    activations: int | None

    @property
    def ratio(self) -> float | None:
        """How many times fewer multiply-accumulates the map takes than the crops."""
        return self.crops / self.macs if self.crops is not None and self.macs else None


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


def costs_of(
    original: Document, document: Document, state: Walk, geometry: Geometry, sizes: Sizes = ()
) -> tuple[NativeCost, tuple[ImageCost, ...]]:
    """What the original costs at its native size, and the converted network there and at other sizes.

    Args:
        original: the model as it was opened.
        document: the same after the edit.
        state: the walk.
        geometry: where the answers are.
        sizes: of images, in pixels; without any, one and a half times the native size, twice and four times.

    Raises:
        OptionError: an image is too small, or has another number of axes.
    """
    native, answers = native_cost(original, state), geometry.of()
    chosen = [_spelled(s, len(geometry.window)) for s in sizes]
    if answers.form == KEEP_SIZE and any(size != geometry.window for size in chosen):
        raise OptionError("the model keeps its size, so no other has a cost")
    if not chosen and answers.form != KEEP_SIZE:
        chosen = list(_larger(geometry.window, answers))
    rows, program = [], Program(document.proto.graph)
    for size in dict.fromkeys((geometry.window, *chosen)):
        windows, tensors = answers.grid(*size).shape, tensors_at(document, state, program, size)
        crops = math.prod(windows) * native.macs if state.has_head and native.macs is not None else None
        macs = total(program.macs(tensors).values())
        rows.append(ImageCost(size, windows, macs, crops, program.peak(tensors)))
    return native, tuple(rows)


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
    declared = next(i for i in graph.input if i.name == image)
    declared.CopyFrom(onnx.helper.make_tensor_value_info(image, declared.type.tensor_type.elem_type, shape))
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    return program.peak(_inferred(known))


def native_cost(original: Document, state: Walk) -> NativeCost:
    """What the original costs at its native size."""
    program, cut = Program(original.proto.graph), find_cut(state)
    tensors = tensors_at(original, state, program)
    macs = program.macs(tensors)
    seats = set() if cut is None else upstream(state, cut.name)
    before = {o.name for k in seats for o in state.seats[k].node.outputs}
    parts = [[names[0] for names in program.makes if (names[0] in before) == inside] for inside in (True, False)]
    trunk, head = (Part(len(names), total(macs.get(name, 0) for name in names)) for names in parts)
    return NativeCost(batch_of(state), total(macs.values()), program.peak(tensors), trunk, head)


def batch_of(state: Walk) -> int:
    """Images in a run: one, unless the graph has a batch built in."""
    return 1 if state.batch == BATCH else state.batch


def _spelled(size: int | Sequence[int], axes: int) -> Dims:
    """A size along all axes."""
    given = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(given) != axes:
        times = "×".join(map(str, given))
        raise OptionError(f"{times} is no size of an image with {axes} axes")
    return given


def _larger(window: Dims, answers: Answers) -> Iterator[Dims]:
    """Larger images, by whole strides."""
    for factor in FACTORS:
        steps = [(native, math.ceil(stride)) for native, stride in zip(window, answers.stride)]
        yield tuple(native + max(round((factor - 1) * native / step), 1) * step for native, step in steps)


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


# Sizes of tensors -----------------------------------------------------------------------------------------------------


def tensors_at(document: Document, state: Walk, program: Program, size: Dims | None = None) -> dict[str, Tensor]:
    """Types and shapes of the tensors that a program needs; shape inference runs if the walk does not know them all.

    Args:
        document: the original, or with a size the converted model.
        state: the walk.
        program: the document's.
        size: of the image, in pixels.
    """
    batch, image = batch_of(state), state.image
    if size is None:
        known = {n: Tensor(f.elem_type, _logical(f, batch)) for n, f in _maps(state)}
    else:
        facts = {**{f.map: f for _, f in _maps(state)}, **{f.map: f for f in state.results.values() if not f.is_live}}
        mapped = {state.renamed.get(n, n): f for n, f in facts.items() if f.folded is None}
        known = {n: Tensor(f.elem_type, _physical(f, size, batch)) for n, f in mapped.items()}
    known[image.name] = Tensor(image.elem_type, _image(state, size or image.size))
    stored = {t.name: Tensor(t.data_type, tuple(t.dims)) for t in document.proto.graph.initializer}
    if program.needed <= known.keys() | stored.keys():
        return known | stored
    model = ModelProto()
    model.CopyFrom(document.proto)
    _declare(model.graph, known, state, batch)
    return _inferred(model) | stored


def _inferred(model: ModelProto) -> dict[str, Tensor]:
    """Types and shapes as far as they follow from those that are declared."""
    with contextlib.suppress(Exception):  # it refuses some valid models; then only what is declared is known
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return {v.name: _tensor(v) for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}


def _maps(state: Walk) -> list[tuple[str, Lifted]]:
    return [(name, fact) for name, fact in state.facts.items() if isinstance(fact, Lifted)]


def _logical(fact: Lifted, batch: int) -> Dims:
    """Shape of the tensor in the original, at the native size."""
    return tuple(math.prod(batch if a is fact.batch else a.size for a in group) for group in fact.layout)


def _physical(fact: Lifted, size: Dims, batch: int) -> Dims:
    """Shape of the map for an image of that size."""
    return (batch, fact.width, *(1 if a.image is None else a.count(size[a.image]) for a in fact.space))


def _image(state: Walk, size: Dims) -> Dims:
    """Shape of the image at that size."""
    image, batch = state.image, batch_of(state)
    space = dict(zip(image.space, size))
    return tuple(batch if k == image.batch else space.get(k, d) for k, d in enumerate(image.shape))


def _declare(graph: GraphProto, tensors: Mapping[str, Tensor], state: Walk, batch: int) -> None:
    """State what is known, and nothing else, of every tensor."""
    known = {n: onnx.helper.make_tensor_value_info(n, t.elem_type, t.dims) for n, t in tensors.items() if t.elem_type}
    image = next(i for i in graph.input if i.name == state.image.name)
    stated = (None, None if state.image.batch is None else static_dims(image)[state.image.batch])
    for declared in graph.input:
        if declared.name in known:
            declared.CopyFrom(known[declared.name])
            continue
        for dim, static in list(zip(declared.type.tensor_type.shape.dim, static_dims(declared)))[:1]:
            if state.image.batch is not None and static in stated:  # any other first axis of an input is no batch
                dim.dim_value = batch
    for declared in graph.output:
        declared.type.tensor_type.ClearField("shape")
        if declared.name in known:
            declared.CopyFrom(known[declared.name])
    made = {name for node in graph.node for name in node.output} - {o.name for o in graph.output}
    del graph.value_info[:]
    graph.value_info.extend(value for name, value in known.items() if name in made)


def _tensor(declared: ValueInfoProto) -> Tensor:
    kind = declared.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    known = kind.HasField("shape") and None not in dims
    return Tensor(kind.elem_type or None, tuple(d for d in dims if d is not None) if known else None)


# Counting -------------------------------------------------------------------------------------------------------------


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
