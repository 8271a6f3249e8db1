"""From a document to a finished walk: which input is the image, at which size and batch, and where its trunk ends.

What cannot be known in advance is tried: the axes of the image (a wrong guess dies at its first convolution), the
batch (a prime tells it from every literal; where the graph bakes one, that one), whether a reduction is context.

The **cut** is the last feature map through which every output is reached. The law is about it: a cell of the converted
model's output is the original head, run on one window of that map. So beyond the cut nothing may pad (windows would
see each other), and whatever strides there dilates instead, so that all outputs have one grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ValueInfoProto

from onnx_fcn.document import Document, names_used
from onnx_fcn.errors import Diagnostic, ModelError, OptionError, Unsupported, UnsupportedModel
from onnx_fcn.interpret import BATCH, Fact, Image, Known, Options, Seat, Unmapped, Walk, run
from onnx_fcn.known import Values, stored_in
from onnx_fcn.lifted import Lifted
from onnx_fcn.metadata import PREFIX
from onnx_fcn.storage import stored_names

__all__ = ["Cut", "Request", "cuts_of", "data_inputs", "explored", "find_cut", "lift", "static_dims", "upstream"]

#: Broadcasting, batch normalisation and dropout are spelled as they are today from this version on.
OLDEST_OPSET = 7

#: Values of an input for one image: 1 GB of floats. A larger one is damage, and nothing could be compared.
LARGEST_INPUT = 1 << 28

#: What onnx_fcn writes into the metadata of whatever it converts.
CONVERTED = f"{PREFIX}format"

#: Operators whose later operands say what shape the result has.
SHAPED_BY_VALUES = frozenset(
    {
        *("Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze", "Upsample"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
    }
)

#: Operators of onnxruntime's that onnx infers no shapes for: what has the same, and the places of its operands.
STAND_INS = {
    "DequantizeLinear": ("Identity", (0,)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QuantizeLinear": ("Identity", (0,)),
}

#: Image sizes to try when the file does not say one and the head decides: the usual ones first.
USUAL_SIZES = (
    224,
    227,
    299,
    256,
    128,
    64,
    32,
    28,
    *range(16, 129, 4),
    *range(8, 65),
    *range(144, 513, 16),
    231,
    331,
    380,
)

#: (batch, channels, spatial axes) of an image of that rank, the likeliest first.
FORMS: dict[int, list[tuple[int | None, int | None, tuple[int, ...]]]] = {
    5: [(0, 1, (2, 3, 4)), (0, 4, (1, 2, 3))],
    4: [(0, 1, (2, 3)), (0, 3, (1, 2)), (0, None, (1, 2, 3)), (None, 0, (1, 2, 3))],
    3: [(0, 1, (2,)), (0, 2, (1,)), (None, 0, (1, 2)), (0, None, (1, 2)), (None, 2, (0, 1))],
    2: [(0, None, (1,)), (None, None, (0, 1))],
}


@dataclass(frozen=True)
class Request:
    """What the user said about the image and the head.

    Attributes:
        input: the name of the input that is the image.
        size: the native size, in pixels.
        folds: fold the batch into a spatial axis around the head.
        output_stride: pixels between answers, fewer than the network strides: operators dilate instead (à trous).
        declared_batch: the answers get the original's shapes, which depend on a batch that is fixed: of one image, a
            Squeeze removes the batch too.
    """

    input: str | None = None
    size: tuple[int, ...] | None = None
    folds: bool = False
    output_stride: int | None = None
    declared_batch: bool = False


@dataclass(frozen=True)
class Cut:
    """The last map that every output is reached through.

    Attributes:
        name: the tensor in the original model.
        fact: what it became.
    """

    name: str
    fact: Lifted


def lift(document: Document, request: Request) -> Walk:
    """Lift a whole model.

    Raises:
        UnsupportedModel: it cannot slide; with every root cause of the likeliest reading of its inputs.
        OptionError: the request does not fit the model.
    """
    state = _lifted(document, request)
    if request.output_stride is None:
        return state
    coarsest = _check_stride(state, request.output_stride)
    if coarsest == request.output_stride:
        return state
    dense = _walked(document, state.image, folds=request.folds, output_stride=Fraction(request.output_stride))
    if not dense.succeeded:
        raise UnsupportedModel(_causes(dense))
    _check_dense(state, dense, request.output_stride)
    return dense


def _check_stride(state: Walk, output_stride: int) -> Fraction:
    """The largest stride of all answers, which the wanted one has to divide.

    Raises:
        OptionError: it does not.
    """
    if output_stride < 1:
        raise OptionError(f"--output-stride is a number of pixels from 1 on, not {output_stride}")
    strides = sorted({a.stride for f in state.results.values() for a in f.space if a.image is not None})
    if not strides:
        raise OptionError("no answer depends on the position, so there is no --output-stride")
    if any(s % output_stride and output_stride % s for s in strides) or output_stride > strides[-1]:
        stride = int(strides[-1])
        fit = ", ".join(str(n) for n in range(1, stride + 1) if not any(s % n and n % s for s in strides))
        raise OptionError(
            f"the answers lie {' and '.join(map(str, strides))} pixels apart, and --output-stride {output_stride} "
            f"does not divide that: it can be {fit}"
        )
    return strides[-1]


def _check_dense(plain: Walk, dense: Walk, output_stride: int) -> None:
    """Did every answer come out at the stride that was asked for?"""
    for name, fact in dense.results.items():
        for axis, was in zip(fact.space, plain.results[name].space):
            if axis.image is not None and axis.stride != min(was.stride, output_stride):
                raise UnsupportedModel(
                    [
                        Diagnostic(
                            "output-stride",
                            name,
                            "output",
                            f"lies {axis.stride} pixels apart where {min(was.stride, output_stride)} were asked for: "
                            "the strides of its network do not divide into it",
                            "another --output-stride, or none",
                        )
                    ]
                )


def _lifted(document: Document, request: Request) -> Walk:
    """Lift a whole model at its own stride."""
    _check_channels(document, request)
    state, causes = explored(document, request)
    if state is None or causes:
        raise UnsupportedModel(causes)
    return state


def _check_channels(document: Document, request: Request) -> None:
    """Raises: OptionError, if one number of the size is that of the channels."""
    given = request.size or ()
    for declared in data_inputs(document):
        shape = static_dims(declared)
        for axis, channels, size in ((1, given[:1], given[1:]), (-1, given[-1:], given[:-1])):
            if not size or len(given) != len(shape) - 1 or shape[axis] not in channels:
                continue
            other = replace(request, size=size)
            if any(images(document, other)) and not explored(document, other)[1]:
                long, short = ("x".join(map(str, numbers)) for numbers in (given, size))
                raise OptionError(
                    f"--input-size {long} names the channels of input '{declared.name}' too, which are no size in "
                    f"pixels: it is --input-size {short}"
                )


def explored(document: Document, request: Request) -> tuple[Walk | None, list[Diagnostic]]:
    """The walk of the likeliest reading of the inputs, and every root cause for its refusal, if it is refused.

    Raises:
        OptionError: the request does not fit the model.
    """
    opset = next((o.version for o in document.proto.opset_import if o.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        reason = f"the model uses opset {opset}, and operators mean something else before opset {OLDEST_OPSET}"
        return None, [Diagnostic("opset", "", "", reason, "raise it first, with onnx.version_converter")]
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        reason = f"the model uses opset {opset}, and the installed onnx knows operators up to opset {newest}"
        return None, [Diagnostic("opset", "", "", reason, "upgrade onnx and onnxruntime")]
    if any(entry.key == CONVERTED for entry in document.proto.metadata_props):
        reason = "the model is fully convolutional already: onnx_fcn converted it"
        return None, [Diagnostic("converted", "", "", reason, "pass the original")]
    failures: list[Walk] = []
    candidates = list(images(document, request))
    if not candidates:
        candidates = _sized_by_head(document, request)
    for rank, image in enumerate(candidates):
        for batch in _batches(document, image, declared=request.declared_batch):
            state = _walked(document, _with_batch(image, batch), folds=request.folds)
            if state.succeeded and _is_image(state, likeliest=rank == 0):
                return state, []
            if _answers_per_pixel(state):
                return state, _causes(state)  # understood: another reading would be a wrong one
            failures.append(state)
    if not failures:
        return None, [Diagnostic("no-image", "", "", "no input looks like an image")]
    refused = [w for w in failures if w.diagnostics]
    furthest = max(refused, key=lambda w: min(w.diagnostics)) if refused else failures[0]
    return furthest, _causes(furthest)


def _walked(document: Document, image: Image, *, folds: bool = False, output_stride: Fraction | None = None) -> Walk:
    """Walk once, and again for what only the end of a walk shows."""
    options = Options(output_stride, folds=folds)
    while True:
        state = run(_program(document, image, options))
        cut = find_cut(state)
        if cut is None:
            return state
        meet = any(d.code == "strides-meet" for d in state.diagnostics.values())
        shared = max(a.stride for a in cut.fact.space)
        if meet and _coarser(options, shared):  # levels of a pyramid: brought to the stride that they share
            options = replace(options, output_stride=shared)
            continue
        if not state.succeeded or not state.has_head:
            return state
        beyond = _beyond(state, cut)
        trunk = upstream(state, cut.name)
        head = {state.seats[k].name for k in state.context if k not in trunk and k in state.reductions}
        if head - options.head:
            options = replace(options, head=options.head | head)
            continue
        strides = [s for k in beyond if (s := state.seats[k].slides) is not None]
        if any(s.strides for s in strides) and _coarser(options, shared):
            options = replace(options, output_stride=shared)
            continue
        for k in beyond:
            slides = state.seats[k].slides
            if slides is not None and slides.pads:
                state.diagnostics[k] = Diagnostic(
                    "padding-beyond-cut",
                    state.seats[k].name,
                    state.seats[k].node.op,
                    f"pads a branch of the head behind '{cut.name}', the last map that all outputs share: windows "
                    "of a larger image would see each other where the original sees padding",
                    "keep only one of the outputs",
                )
        return state


def _coarser(options: Options, stride: Fraction) -> bool:
    """May operators make the map coarser than this?"""
    return options.output_stride is None or options.output_stride > stride


def _program(document: Document, image: Image, options: Options) -> Walk:
    """The nodes that the outputs need, with a fact for every tensor that no node computes."""
    graph, view = document.proto.graph, document.graph
    initializers = stored_in(graph)
    needed = needed_nodes(document)
    seats = [Seat(view.nodes[k], graph.node[k], k) for k in range(len(graph.node)) if k in needed]
    opsets = {o.domain: o.version for o in document.proto.opset_import}
    values = Values(graph.node, initializers, document.array, opsets)
    facts: dict[str, Fact] = {name: Known(name) for name in initializers}
    for declared in graph.input:
        if declared.name not in facts and declared.name != image.name:
            facts[declared.name] = Unmapped(declared.name)
    names = {t for node in graph.node for t in (*node.input, *node.output)} | set(initializers) | set(facts)
    prologue = gs.Node("Input", image.name, outputs=[gs.Variable(image.name)])
    outputs = tuple(o.name for o in graph.output)
    shapes = _Shapes(document, image, facts, values)
    seat = Seat(prologue, onnx.NodeProto(), -1, replaced=True)
    read = frozenset(n for s in seats for n in names_used(s.proto)) | set(outputs)
    names |= {image.name} | {node.name for node in graph.node}
    return Walk(image, options, opsets, values, seats, outputs, shapes, seat, read=read, facts=facts, names=names)


def needed_nodes(document: Document) -> set[int]:
    """Indices of the nodes that the outputs need."""
    nodes = document.proto.graph.node
    producer = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    wanted = [o.name for o in document.proto.graph.output]
    found: set[int] = set()
    while wanted:
        k = producer.get(wanted.pop())
        if k is not None and k not in found:
            found.add(k)
            wanted += names_used(nodes[k])
    return found


class _Shapes:
    """Shapes of tensors at the native size, inferred when one is asked for that is not known yet.

    What the walk has evaluated by then, such as the target of a Reshape, is put in as a constant: inference alone
    would not get beyond it. So a shape that is still open is inferred again once the walk knows more of these.
    """

    def __init__(self, document: Document, image: Image, facts: dict[str, Fact], values: Values) -> None:
        self._document, self._image, self._facts, self._values = document, image, facts, values
        self._shapes: dict[str, tuple[int | None, ...]] = {}
        self._computed = self._computed_operands()
        self._put_in: frozenset[str] | None = None  # those that were known at the last inference

    def __call__(self, name: str) -> tuple[int | None, ...] | None:
        shape = self._shapes.get(name)
        if shape is None or None in shape:
            known = frozenset(n for n in self._computed if isinstance(self._facts.get(n), Known))
            if known != self._put_in:
                self._put_in = known
                self._shapes = self._inferred()
        return self._shapes.get(name)

    def _computed_operands(self) -> frozenset[str]:
        """Operands that say what shape a result has, and are not stored."""
        graph = self._document.proto.graph
        shaping = {name for node in graph.node if node.op_type in SHAPED_BY_VALUES for name in node.input[1:]}
        return frozenset(shaping - {t.name for t in graph.initializer})

    def _evaluate(self, graph: onnx.GraphProto) -> None:
        """Put in, as initializers, the values that shapes are computed from."""
        assert self._put_in is not None
        for node in graph.node:
            for k, name in enumerate(node.input[1:], 1):
                if node.op_type in SHAPED_BY_VALUES and name in self._put_in:
                    try:
                        value = self._values[name]
                    except Unsupported:
                        continue
                    node.input[k] = f"{name}/value"
                    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), node.input[k]))

    def _stand_in(self, graph: onnx.GraphProto) -> None:
        """Put operators that onnx knows in the place of some that it does not."""
        for node in graph.node:
            if node.domain == "com.microsoft" and node.op_type in STAND_INS:
                node.op_type, places = STAND_INS[node.op_type]
                operands = [node.input[k] for k in places]
                node.domain = ""
                del node.input[:]
                node.input.extend(operands)

    def _inferred(self) -> dict[str, tuple[int | None, ...]]:
        model = onnx.ModelProto()
        model.CopyFrom(self._document.proto)
        del model.graph.value_info[:]
        batch = 1 if self._image.batch is None else self._image.shape[self._image.batch]
        image = next(i for i in model.graph.input if i.name == self._image.name)
        stated = (None, static_dims(image)[self._image.batch or 0])  # any other first axis of an input is no batch
        for declared in model.graph.input:
            shape = declared.type.tensor_type.shape
            for k, dim in enumerate(shape.dim):
                if declared.name == self._image.name:
                    dim.dim_value = self._image.shape[k]
                elif k == 0 and self._image.batch is not None and (dim.dim_value or None) in stated:
                    dim.dim_value = batch
        self._evaluate(model.graph)
        self._stand_in(model.graph)
        for declared in model.graph.output:
            declared.type.tensor_type.ClearField("shape")
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # it refuses some valid models; then these shapes are simply not known
            return {}
        graph = model.graph
        return {
            v.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim)
            for v in (*graph.value_info, *graph.input, *graph.output)
            if v.type.tensor_type.HasField("shape")
        }


# Which input is the image ---------------------------------------------------------------------------------------------


def images(document: Document, request: Request) -> Iterator[Image]:
    """The ways in which the inputs may be an image, the likeliest first.

    Nothing where the size is neither declared nor requested.

    Raises:
        OptionError: there is no such input.
        ModelError: an input is larger than any image.
    """
    given = data_inputs(document)
    for declared in given:
        _check_size(declared.name, [d for d in static_dims(declared)[1:] if d is not None])
    if request.input is not None and request.input not in {i.name for i in given}:
        names = ", ".join(f"'{i.name}'" for i in given)
        raise OptionError(f"the model has no input '{request.input}': its inputs are {names}")
    given = [i for i in given if request.input in (None, i.name)]
    used = {name for k in needed_nodes(document) for name in names_used(document.proto.graph.node[k])}
    given = [i for i in given if i.name in used] or given
    given.sort(key=lambda i: -len(i.type.tensor_type.shape.dim))
    for declared in given:
        dims = static_dims(declared)
        if declared.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            continue
        for batch, channels, space in FORMS.get(len(dims), []):
            shape = list(dims)
            if request.size is not None:
                if len(request.size) != len(space):
                    continue
                if any(dims[axis] not in (None, pixels) for axis, pixels in zip(space, request.size)):
                    continue  # the file says another size
                for axis, pixels in zip(space, request.size):
                    shape[axis] = pixels
            if batch is not None:
                shape[batch] = shape[batch] or BATCH
            if any(shape[k] is None for k in range(len(shape))):
                continue
            sizes = tuple(d for d in shape if d is not None)
            _check_size(declared.name, [d for k, d in enumerate(sizes) if k != batch])
            yield Image(declared.name, sizes, batch, channels, space, declared.type.tensor_type.elem_type)


def _sized_by_head(document: Document, request: Request) -> list[Image]:
    """The image at the size that the first dense layer wants, where the file does not say it.

    Raises:
        OptionError: the head takes any size, or none of the usual ones.
    """
    given = [i for i in data_inputs(document) if request.input in (None, i.name)]
    if not given:
        others = [i.name for i in document.proto.graph.input]
        what = f"input '{others[0]}' is a sequence or optional" if others else "the model has no inputs"
        hint = "export the network with a tensor as its input"
        raise UnsupportedModel([Diagnostic("no-image", "", "", f"{what}, and an image is a tensor", hint)])
    first = max(given, key=lambda i: len(i.type.tensor_type.shape.dim))
    shown = [d if d is not None else "?" for d in static_dims(first)]
    if first.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        raise UnsupportedModel([Diagnostic("no-image", "", "", f"input '{first.name}' is text, and no image")])
    if len(shown) not in FORMS:
        reason = f"input '{first.name}' has {len(shown)} axes, and an image has 2 to {max(FORMS)}"
        raise UnsupportedModel([Diagnostic("no-image", "", "", reason)])
    if request.size is not None:
        size = "×".join(map(str, request.size))
        known = "it is the size that the network was made for, whatever the size of your images"
        raise OptionError(f"--input-size {size} does not fit input '{first.name}' of shape {shown}: {known}")
    rank = len(shown) - 2
    fits = next((p for p in USUAL_SIZES if _lifts_at(document, first.name, (p,) * rank)), None)
    where = f"input '{first.name}' has shape {shown}, so the size that the network was made for is not in the file"
    if fits and not _lifts_at(document, first.name, (2 * fits,) * rank):
        return list(images(document, Request(first.name, (fits,) * rank)))
    why = "its head takes any size" if fits else "its head takes none of the usual sizes"
    raise OptionError(f"{where}, and {why}: say it with --input-size, such as {'x'.join(['224'] * max(rank, 1))}")


def _check_size(name: str, sizes: Sequence[int]) -> None:
    if math.prod(sizes) > LARGEST_INPUT:
        size = "×".join(map(str, sizes))
        raise ModelError(f"input '{name}' has {size} values for one image: no more than {LARGEST_INPUT:,} are compared")


def _lifts_at(document: Document, name: str, size: tuple[int, ...]) -> bool:
    return any(_lifts(document, image) for image in images(document, Request(name, size)))


def _lifts(document: Document, image: Image) -> bool:
    return any(_walked(document, _with_batch(image, batch)).succeeded for batch in _batches(document, image))


def data_inputs(document: Document) -> list[ValueInfoProto]:
    """The inputs that are not initializers (before IR version 4 these are listed as inputs too)."""
    stored = stored_names(document.proto.graph)
    return [i for i in document.proto.graph.input if i.name not in stored and i.type.HasField("tensor_type")]


def static_dims(declared: ValueInfoProto) -> list[int | None]:
    """Declared dims; None for symbolic and meaningless ones."""
    return [d.dim_value if d.dim_value > 0 else None for d in declared.type.tensor_type.shape.dim]


def _batches(document: Document, image: Image, *, declared: bool = False) -> list[int]:
    """The batches to evaluate shapes with: a prime first, then the one that the model declares, or one.

    `declared`: that one first.
    """
    if image.batch is None:
        return [1]
    value = next(i for i in document.proto.graph.input if i.name == image.name)
    if static := static_dims(value)[image.batch]:
        return [static, BATCH] if declared else [BATCH, static]
    return [BATCH, 1, *_literals(document)]


def _literals(document: Document) -> list[int]:
    """First dims of constant Reshape targets: batches that the graph may bake."""
    tensors = {t.name: t for t in document.proto.graph.initializer}
    found = []
    for node in document.proto.graph.node:
        if node.op_type == "Reshape" and len(node.input) > 1 and (t := tensors.get(node.input[1])) is not None:
            target = document.array(t).reshape(-1)
            if len(target) and 1 < target[0] < 1024:
                found.append(int(target[0]))
    return list(dict.fromkeys(found))[:4]


def _with_batch(image: Image, batch: int) -> Image:
    shape = tuple(batch if k == image.batch else d for k, d in enumerate(image.shape))
    return replace(image, shape=shape)


def _is_image(state: Walk, *, likeliest: bool) -> bool:
    """Does anything slide over it, and does an output depend on it? A table of features does not.

    Where nothing slides a head may read the image itself, but only in the likeliest reading of the inputs: after a
    refusal, a mask or a table beside the image must not pass for one.
    """
    slides = any(s.slides is not None for s in state.seats) or (likeliest and len(state.image.space) > 1)
    return slides and any(isinstance(state.facts.get(o), Lifted) for o in state.outputs)


def _answers_per_pixel(state: Walk) -> bool:
    """Is a network refused only because of what it answers?"""
    return {d.code for d in state.diagnostics.values()} == {"decoder-output"}


def _causes(failure: Walk) -> list[Diagnostic]:
    """The root causes of a refusal, in the order of the graph."""
    if failure.diagnostics:
        return [failure.diagnostics[k] for k in sorted(failure.diagnostics)]
    reason = "no output depends on the position in it: nothing slides over this input"
    hint = "where another input is the image, name it with --input"
    return [Diagnostic("no-image", failure.image.name, "input", reason, hint)]


# Where the trunk ends -------------------------------------------------------------------------------------------------


def find_cut(state: Walk) -> Cut | None:
    """The last map with a live window that all outputs are reached through; None where there is none."""
    cuts = list(cuts_of(state))
    return cuts[0] if cuts else None


def cuts_of(state: Walk) -> Iterator[Cut]:
    """Every live map that all outputs are reached through, the last first.

    Immediate dominators of a directed acyclic graph, in topological order: the nearest common dominator of the
    operands (Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", 2001).
    """
    parent: dict[str, str] = {}
    depth = {state.image.name: 0}

    def join(names: Iterable[str]) -> str | None:
        common: str | None = None
        for name in names:
            if common is None:
                common = name
                continue
            while common != name:
                if depth[common] >= depth[name]:
                    common = parent[common]
                else:
                    name = parent[name]
        return common

    for seat in state.seats:
        common = join(n for n in _reads(seat) if n in depth and not isinstance(state.facts.get(n), Known))
        if common is None:
            continue
        for output in seat.node.outputs:
            if output.name and not isinstance(state.facts.get(output.name), Known):
                parent[output.name], depth[output.name] = common, depth[common] + 1
    top = join(o for o in state.outputs if o in depth)
    outputs = set(state.outputs)
    while top is not None:
        fact = state.facts.get(top)
        if isinstance(fact, Lifted) and fact.is_live and fact.is_plain and fact.padding is None and top not in outputs:
            yield Cut(top, fact)
        top = parent.get(top)


def _reads(seat: Seat) -> Iterable[str]:
    return names_used(seat.proto)


def _beyond(state: Walk, cut: Cut) -> list[int]:
    """Seats that compute something from the cut."""
    reached, found = {cut.name}, []
    for k, seat in enumerate(state.seats):
        if any(n in reached for n in _reads(seat)):
            found.append(k)
            reached |= {o.name for o in seat.node.outputs if o.name}
    return found


def upstream(state: Walk, name: str) -> set[int]:
    """Seats that a tensor is computed from."""
    wanted, found = {name}, set()
    for k in range(len(state.seats) - 1, -1, -1):
        seat = state.seats[k]
        if any(o.name in wanted for o in seat.node.outputs):
            found.add(k)
            wanted |= set(_reads(seat))
    return found
