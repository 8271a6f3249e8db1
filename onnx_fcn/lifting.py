"""From a document to a finished walk: which reading of its inputs holds, at which size and batch, where its trunk ends.

What cannot be known in advance is tried: the axes of the image (a wrong reading dies at its first convolution), the
batch (a prime tells it from every literal; where the graph bakes one, that one), whether a reduction is context.

The **cut** is the last feature map through which every output is reached. The law is about it: a cell of the converted
model's output is the original head, run on one window of that map. So beyond the cut nothing may pad (windows would
see each other), and whatever strides there dilates instead, so that all outputs have one grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_fcn.document import Document, names_used
from onnx_fcn.errors import Diagnostic, OptionError, Unsupported, UnsupportedModel
from onnx_fcn.inputs import (
    FEW,
    FORMS,
    Request,
    batches,
    data_inputs,
    declared_as,
    dims_in_words,
    first_layer,
    images,
    needed_nodes,
    open_axes,
    squarest,
    static_dims,
    written_size,
)
from onnx_fcn.interpret import Fact, Image, Known, Options, Seat, Unmapped, Walk, run
from onnx_fcn.known import Values, stored_in
from onnx_fcn.lifted import BATCH, Lifted
from onnx_fcn.metadata import PREFIX
from onnx_fcn.readings import (
    APART,
    check_batch,
    has_own_batch,
    note_sizes,
    row_inside,
    row_of_pixels,
    suggested,
    undecided_reading,
)
from onnx_fcn.tables import pixels, times

__all__ = ["Cut", "cuts_of", "dilated", "explored", "find_cut", "lift", "makers_of", "upstream"]

#: Broadcasting, batch normalisation and dropout are spelled as they are today from this version on.
OLDEST_OPSET = 7

#: What onnx_fcn writes into the metadata of whatever it converts.
CONVERTED = f"{PREFIX}format"

#: What to do about a network that has no image.
NO_MAP = "only a network that convolves or pools its input can become fully convolutional"

#: Operators whose later operands say what shape the result has.
SHAPED_BY_VALUES = frozenset(
    {
        *("Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze", "Upsample"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
    }
)

_FIRST, _BOTH, _QUANTIZED = slice(1), slice(2), slice(0, 4, 3)

#: Operators of onnxruntime's that onnx infers no shapes for: what has the same, and which operands it takes.
STAND_INS = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), ("Identity", _FIRST)),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), ("Identity", _FIRST)),
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"), ("Identity", _FIRST)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), ("MatMul", _BOTH)),
    "FusedConv": ("Conv", _BOTH),
    "FusedGemm": ("Gemm", _BOTH),
    "FusedMatMul": ("Gemm", _BOTH),  # of vectors; it may transpose them
    "QGemm": ("Gemm", _QUANTIZED),
    "QLinearAdd": ("Add", _QUANTIZED),
    "QLinearAveragePool": ("AveragePool", _FIRST),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", _FIRST),
    "QLinearMul": ("Mul", _QUANTIZED),
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
    return state if request.output_stride is None else dilated(document, state, request.output_stride)


def dilated(document: Document, state: Walk, output_stride: int) -> Walk:
    """The walk whose answers lie so many pixels apart, of a model that was lifted at its own stride.

    Raises:
        UnsupportedModel: something in it cannot dilate.
        OptionError: the network's strides do not divide so.
    """
    if _check_stride(state, output_stride) == output_stride:
        return state
    dense = _walked(document, state.image, folds=state.options.folds, output_stride=Fraction(output_stride))
    if not dense.succeeded:
        raise UnsupportedModel(_causes(dense))
    _check_dense(state, dense, output_stride)
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
    """Raises: OptionError, if one number of the size is that of the channels.

    Where the size holds as it was said too, it is, unless the channels are as few as those of pictures.
    """
    given = request.size or ()
    for declared in data_inputs(document):
        shape = static_dims(declared)
        for axis, channels, size in ((1, given[:1], given[1:]), (-1, given[-1:], given[:-1])):
            if not size or len(given) != len(shape) - 1 or shape[axis] not in channels:
                continue
            if shape[axis] not in FEW and any(images(document, request)) and not explored(document, request)[1]:
                continue
            other = replace(request, size=size)
            if any(images(document, other)) and not explored(document, other)[1]:
                long, short = written_size(given), written_size(size)
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
    candidates = list(images(document, request))
    if not candidates:
        return _read(document, _sized_by_head(document, request), request)
    state, causes = _read(document, candidates, request)
    if causes and request.size is None and all(open_axes(document, i) for i in candidates):
        named = replace(request, input=candidates[0].name)
        if (fitting := _fitting(document, named)) is not None:  # what is open is another size
            return _read(document, _sized(document, named, fitting), request)
    return state, causes


def _read(document: Document, candidates: Sequence[Image], request: Request) -> tuple[Walk | None, list[Diagnostic]]:
    """The walk of the first of these readings that holds, and every root cause for its refusal if none does."""
    failures: list[Walk] = []
    undecided: list[Walk] = []  # readings of the first input that hold, though nothing slides
    mixing: Walk | None = None  # the likeliest reading, where the network mixes what it takes for a batch
    for name, readings in groupby(candidates, lambda image: image.name):
        for image in readings:
            if mixing is not None and image.batch is not None:
                continue
            tried: list[Walk] = []
            for state in _walks(document, image, request):
                tried.append(state)
                if _answers_per_pixel(state):
                    return state, _causes(state)  # understood: another reading would be a wrong one
                if _lacks_rules(state):
                    break  # whatever its batch is
                if state.succeeded and _depends(state):
                    slides = any(s.slides is not None for s in state.seats)
                    if slides or name == candidates[0].name:
                        if causes := check_batch(document, state, tried[0]):
                            return tried[0], causes
                        note_sizes(document, state, request)
                    if slides:
                        return state, [] if request.size else _colours_that_slide(document, state)
                    if name == candidates[0].name:  # a mask or a table beside the image must not pass for one
                        undecided.append(state)
                        tried.clear()
                    break
            failures += tried
            mixed = [w for w in tried if _mixes_images(w)]
            if mixed and image is candidates[0]:
                if len(mixed) == len(tried):
                    return mixed[-1], _causes(mixed[-1])  # understood likewise
                if mixed[-1].batch != BATCH:
                    mixing = mixed[-1]  # another batch does not fit the weights, so that this may be none
            if tried and _lacks_rules(tried[-1]):
                break  # whatever its axes are
        if (chosen := suggested(document, undecided, request)) is not None:
            return chosen, []
        if mixing is not None and not (undecided := [w for w in undecided if len(w.image.space) == 2]):
            return mixing, _causes(mixing)
        if mixing is not None:
            break
    if undecided and not any(seat.slides for state in failures for seat in state.seats):
        inside = row_inside(document, undecided[0].image)
        return undecided[0], inside or [undecided_reading(document, undecided)]
    if not failures:
        return None, [Diagnostic("no-image", "", "", "no input looks like an image", NO_MAP)]
    refused = [w for w in failures if w.diagnostics]
    furthest = max(refused, key=lambda w: (min(w.diagnostics), has_own_batch(document, w))) if refused else failures[0]
    if _mixes_images(failures[0]) and has_own_batch(document, failures[0]) and not _lacks_rules(furthest):
        furthest = failures[0]  # with the batch that it bakes, if any, what follows from that was refused
    return furthest, row_inside(document, furthest.image) or _causes(furthest)


def _walked(document: Document, image: Image, *, folds: bool = False, output_stride: Fraction | None = None) -> Walk:
    """Walk once, and again for what only the end of a walk shows."""
    options = Options(output_stride, folds=folds, asked=output_stride is not None)
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
        trunk = upstream(state, cut.name)
        head = {state.seats[k].name for k in state.context if k not in trunk and k in state.reductions}
        if head - options.head:
            options = replace(options, head=options.head | head)
            continue
        strides = [s for k in _beyond(state, cut) if (s := state.seats[k].slides) is not None]
        if any(s.strides for s in strides) and _coarser(options, shared):
            options = replace(options, output_stride=shared)
            continue
        for k in _padded_beyond(state, cut):
            state.diagnostics[k] = Diagnostic(
                "padding-beyond-cut",
                state.seats[k].name,
                state.seats[k].node.op,
                f"pads a branch of the head behind '{cut.name}', the last map that all answers are computed from: "
                "windows of a larger image would see each other where the original sees padding",
                _instead_of_padding(state, cut),
            )
        return state


def _padded_beyond(state: Walk, cut: Cut) -> list[int]:
    """Seats that pad a map behind the cut."""
    return [k for k in _beyond(state, cut) if (s := state.seats[k].slides) is not None and s.pads]


def _instead_of_padding(state: Walk, cut: Cut) -> str:
    """What to do about padding behind the cut: an output that has none of its own, or the map at the cut."""
    for name in state.outputs if len(state.outputs) > 1 else ():
        alone = replace(state, outputs=(name,))
        own = find_cut(alone)
        if own is not None and upstream(state, name).isdisjoint(_padded_beyond(alone, own)):
            return f"keep only one of the outputs, with --outputs {name}"
    return f"take '{cut.name}' as an output, and run the rest on windows of it"


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
                node.op_type, operands = STAND_INS[node.op_type]
                node.domain = ""
                node.input[:] = node.input[operands]

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


# Which reading of the inputs it is ------------------------------------------------------------------------------------


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
    rank, shape = len(first.type.tensor_type.shape.dim), dims_in_words(first)
    if first.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        raise UnsupportedModel([Diagnostic("no-image", "", "", f"input '{first.name}' is text, and no image")])
    if rank not in FORMS:
        reason = f"input '{first.name}' has {rank} axes, and an image has 2 to {max(FORMS)}"
        raise UnsupportedModel([Diagnostic("no-image", "", "", reason)])
    if request.size is not None:
        known = row_of_pixels(document, first.name, request.size)
        known = known or "it is the size that the network was made for, whatever the size of your images"
        raise OptionError(
            f"--input-size {times(request.size)} does not fit input '{first.name}' of shape {shape}: {known}"
        )
    named = replace(request, input=first.name)
    return _sized(document, named, _fitting(document, named))


def _sized(document: Document, request: Request, fitting: tuple[int, Walk] | None) -> list[Image]:
    """The readings of the input that the request names at the size that fits, where a larger one does not.

    Raises:
        OptionError: the head takes any size, or none of the usual ones.
    """
    declared = declared_as(document, request.input or "")
    dims = static_dims(declared)
    layer = first_layer(document, declared.name)
    shaped = fitting is not None and fitting[1].image.channels is not None
    if not shaped and layer is not None and (found := squarest(dims, layer)) is not None:
        why = f"{layer.op} '{layer.node}' reads {layer.reads} values of it, which many sizes have"
        size = found if fitting is None else fitting[1].image.size
    elif fitting is None:
        why, size = "its head takes none of the usual sizes", (224,) * max(len(dims) - 2, 1)
    elif (larger := _at_size(document, request, 2 * fitting[0])) is None:
        return list(images(document, request, fitting[0]))
    elif (made := _made_alike(fitting[1], larger)) is not None:
        seat, size = made
        why = f"its head takes any size, as {seat.node.op} '{seat.name}' makes {pixels(size)} of them all"
    else:
        why, size = "its head takes any size", tuple(dims[axis] or 224 for axis in fitting[1].image.space)
    raise OptionError(
        f"input '{declared.name}' has shape {dims_in_words(declared)}, so the size that the network was made for is "
        f"not in the file, and {why}: say it with --input-size, such as {written_size(size)}"
    )


def _fitting(document: Document, request: Request) -> tuple[int, Walk] | None:
    """The first of the usual sizes at which a reading holds, and its walk; None where none does."""
    tried = ((size, _at_size(document, request, size)) for size in USUAL_SIZES)
    return next(((size, walk) for size, walk in tried if walk is not None), None)


def _at_size(document: Document, request: Request, size: int) -> Walk | None:
    """The walk of the likeliest reading that holds with so many pixels along every axis that is open."""
    every = (state for image in images(document, request, size) for state in _walks(document, image, request))
    return next((state for state in every if state.succeeded), None)


def _made_alike(small: Walk, larger: Walk) -> tuple[Seat, tuple[int, ...]] | None:
    """The first node that makes maps of one size of two images of different sizes, and that size."""
    for seat in small.seats:
        for output in seat.node.outputs:
            a, b = small.facts.get(output.name), larger.facts.get(output.name)
            if isinstance(a, Lifted) and isinstance(b, Lifted) and a.window == b.window and min(a.window) > 1:
                return seat, a.window
    return None


def _with_batch(image: Image, batch: int) -> Image:
    return replace(image, shape=tuple(batch if k == image.batch else d for k, d in enumerate(image.shape)))


def _walks(document: Document, image: Image, request: Request) -> Iterator[Walk]:
    """The walks of one reading, with each batch that it may have."""
    for batch in batches(document, image, declared=request.declared_batch):
        yield _walked(document, _with_batch(image, batch), folds=request.folds)


def _depends(state: Walk) -> bool:
    """Does an output depend on the position in the image?"""
    return any(isinstance(state.facts.get(o), Lifted) for o in state.outputs)


def _colours_that_slide(document: Document, state: Walk) -> list[Diagnostic]:
    """A refusal where as few slices as a picture has colours become the channels of a convolution over the other axes.

    A file of an axis too many, such as (sequence, 1, 3, 24, 24), would answer for every three neighbouring colours.
    """
    image = state.image
    depth = image.space[0]
    slices, channels = image.shape[depth], 1 if image.channels is None else image.shape[image.channels]
    if len(image.space) < 3 or channels > 1 or slices not in FEW:
        return []
    maps = (f for f in state.facts.values() if isinstance(f, Lifted) and f.unfolded is not None and f.is_live)
    if not any(axis.image == 0 and axis.window == 1 for fact in maps for axis in fact.space):
        return []
    shape = dims_in_words(declared_as(document, image.name))
    reason = (
        f"axis {depth} of its shape {shape} becomes the channels of a convolution, so it may be colours rather than "
        "positions"
    )
    hint = (
        "where it is colours, give the network an input without the other axes that are no image's, such as "
        f"(N, {slices}, height, width); where it is a depth, say --input-size {written_size(image.size)}"
    )
    return [Diagnostic("colours", image.name, "input", reason, hint)]


def _answers_per_pixel(state: Walk) -> bool:
    """Is a network refused only because of what it answers?"""
    return {d.code for d in state.diagnostics.values()} == {"decoder-output"}


def _lacks_rules(state: Walk) -> bool:
    """Is a network refused for operators alone that have no rule?"""
    return {d.code for d in state.diagnostics.values()} == {"no-rule"}


def _mixes_images(state: Walk) -> bool:
    """Is a network refused only because it computes across the images of a batch?"""
    return {d.code for d in state.diagnostics.values()} == {"batch"}


def _causes(failure: Walk) -> list[Diagnostic]:
    """The root causes of a refusal, in the order of the graph."""
    if failure.diagnostics:
        return [replace(d, hint=d.hint or APART) if d.code == "batch" else d for d in failure.causes.values()]
    reason = "no output depends on the position in it: nothing slides over this input"
    made = {o.name for seat in failure.seats for o in seat.node.outputs}
    others = any(isinstance(f, Unmapped) and name not in made for name, f in failure.facts.items())
    hint = "where another input is the image, name it with --input" if others else NO_MAP
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


def makers_of(state: Walk) -> dict[str, int]:
    """The seat that makes each tensor."""
    return {name: k for k, seat in enumerate(state.seats) for name in seat.proto.output if name}


def upstream(state: Walk, name: str, makers: Mapping[str, int] | None = None) -> set[int]:
    """Seats that a tensor is computed from; whoever asks for many tensors has `makers_of` at hand."""
    makers = makers_of(state) if makers is None else makers
    waiting, found = [name], set()
    while waiting:
        k = makers.get(waiting.pop())
        if k is not None and k not in found:
            found.add(k)
            waiting += _reads(state.seats[k])
    return found
