"""Which input is the image, at which size, and which of its axes slide: every reading that its shape allows.

If something slides over the image, the network decides between the readings: a wrong one fails at the first
convolution or pooling. If a dense layer reads the image itself, several readings may be exact. Then the requested size
decides, or otherwise the shape suggests one: a picture has few channels and is not much longer than it is wide.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import onnx
from onnx import ValueInfoProto

from onnx_fcn.errors import ModelError, OptionError
from onnx_fcn.geometry import SIZE_NAMES
from onnx_fcn.lifting.lifted import BATCH
from onnx_fcn.lifting.program import Image
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import (
    data_inputs,
    declared_as,
    dim_name,
    dims_in_words,
    static_dims,
)
from onnx_fcn.model.operators import DENSE, SLIDING, UNCHANGED
from onnx_fcn.tables import size_text
from onnx_fcn.walk.asked import Asked

__all__ = [
    "FEW",
    "FORMS",
    "Request",
    "Size",
    "along_axes",
    "axes_in_words",
    "batches",
    "first_layer",
    "images",
    "images_of_sizes",
    "leaves_batch_open",
    "likeness",
    "open_axes",
    "size_of",
    "squarest",
    "unrolled",
    "width_of",
    "written_size",
]


#: Pixels along the axes that are open, or None.
Open = TypeVar("Open", bound=int | None)

#: An image size as users give it: (height, width), or one number for all axes.
Size = int | Sequence[int]

#: The most values that an input may have for one image: 1 GB of floats. More than that means a damaged file.
LARGEST_INPUT = 1 << 28

#: The most values that an input with a fixed batch may have: 4 GB of floats.
LARGEST_BATCH = 1 << 30

#: Numbers of channels that pictures have.
FEW = (1, 3, 4)

#: A picture of few channels may be this many times longer than wide, and still looks as likely as a square of many.
LONG = 16

#: For each rank of an input: its (batch, channels, spatial axes), the likeliest first.
FORMS: dict[int, list[tuple[int | None, int | None, tuple[int, ...]]]] = {
    5: [(0, 1, (2, 3, 4)), (0, 4, (1, 2, 3))],
    4: [(0, 1, (2, 3)), (0, 3, (1, 2)), (0, None, (1, 2, 3)), (None, 0, (1, 2, 3))],
    3: [(0, 1, (2,)), (0, 2, (1,)), (None, 0, (1, 2)), (0, None, (1, 2)), (None, 2, (0, 1))],
    2: [(0, None, (1,)), (None, None, (0, 1))],
}


@dataclass(frozen=True)
class Request:
    """What the user said about the image, and the options that decide how it is read.

    Attributes:
        input: the name of the input that is the image.
        size: the native size, in pixels; a single number applies to every axis.
        folds: fold the batch into a spatial axis around the head.
        declared_batch: the answers keep the original's shapes, which may depend on a fixed batch: a Squeeze removes a
            batch of one, too.
        windows: run what cannot slide on every window.
        window_stride: pixels between these windows; None for the stride that the network has at its last map.
        slide: names of the axes that slide, while the others keep their size; empty if the outputs decide.
        keeps_size: replace dense layers where they stand if the network cannot slide.
        attention: what relates positions to each other sees those of the whole image.
        portable: use only operators that all common runtimes read alike.
    """

    input: str | None = None
    size: tuple[int, ...] | None = None
    folds: bool = False
    declared_batch: bool = False
    windows: bool = False
    window_stride: int | None = None
    slide: tuple[str, ...] = ()
    keeps_size: bool = False
    attention: bool = False
    portable: bool = False

    @classmethod
    def of(cls, asked: Asked, input: str | None, size: tuple[int, ...] | None, *, free_batch: bool = False) -> Request:
        """How the image is read for what is asked for; with `free_batch`, also if a batch of one has to go."""
        return cls(
            input=input,
            size=size,
            folds=asked.folds,
            declared_batch=asked.keeps_shape and not free_batch,
            windows=asked.windows,
            window_stride=asked.window_stride,
            slide=asked.slide,
            keeps_size=asked.keep_size,
            attention=asked.context == "attention",
            portable=asked.portable,
        )


def size_of(size: object, name: str = "input size") -> tuple[int, ...] | None:
    """The requested size as a tuple; `name` is what messages call it.

    Raises:
        OptionError: if it is neither a number of pixels nor a sequence of them.
    """
    if size is None:
        return None
    try:
        numbers = tuple(map(operator.index, size if isinstance(size, Sequence) else (size,)))
    except TypeError:
        numbers = ()
    if not numbers or isinstance(size, str) or min(numbers) < 1:
        raise OptionError(f"the {name} {size!r} is not a size in pixels, such as (224, 224)")
    return numbers


def along_axes(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """The size of an image along all of its axes; one number is for each of them.

    Raises:
        OptionError: if it is no size, or has another number of axes.
    """
    given = size_of(size, "size") or ()
    given = given * axes if len(given) == 1 else given
    if len(given) != axes:
        times = "×".join(map(str, given))
        raise OptionError(f"{times} is not a size of an image with {axes} axes")
    return given


def images(document: Document, request: Request, open_size: int | None = None) -> Iterator[Image]:
    """The readings of the inputs as an image, the likeliest first: see `images_of_sizes`."""
    return (image for _, image in images_of_sizes(document, request, [open_size]))


def images_of_sizes(document: Document, request: Request, open_sizes: Iterable[Open]) -> Iterator[tuple[Open, Image]]:
    """The readings of the inputs as an image of each of these sizes, the likeliest first.

    Args:
        document: the model.
        request: what the user said; readings that contradict it are left out.
        open_sizes: pixels along every axis whose size is neither declared nor requested; with None, readings with such
            an axis are left out.

    Raises:
        OptionError: if there is no such input, or no input has all axes that are to slide.
        ModelError: if an input is larger than any image, or has no valid type.
    """
    given = data_inputs(document.proto.graph)
    for declared in given:
        kind = declared.type.tensor_type.elem_type
        if kind == onnx.TensorProto.UNDEFINED or kind not in onnx.TensorProto.DataType.values():
            raise ModelError(f"input '{declared.name}' holds values of type {kind}, which ONNX does not know")
        _check_size(declared.name, [d for d in static_dims(declared)[1:] if d is not None])
        if math.prod(d for d in static_dims(declared) if d is not None) > LARGEST_BATCH:
            raise ModelError(
                f"input '{declared.name}' has the shape {dims_in_words(declared)}, with more values than the "
                f"{LARGEST_BATCH:,} that are compared: export the model with a smaller batch"
            )
    if request.input is not None and request.input not in {i.name for i in given}:
        names = ", ".join(f"'{i.name}'" for i in given)
        raise OptionError(f"the model has no input '{request.input}': its inputs are {names}")
    given = [i for i in given if request.input in (None, i.name)]
    used = {name for k in document.needed() for name in document.nodes[k].reads}
    given = [i for i in given if i.name in used] or given
    given.sort(key=lambda i: -len(i.type.tensor_type.shape.dim))
    _check_axes(given, request.slide)
    layer_of = functools.cache(functools.partial(first_layer, document))
    for open_size, declared in itertools.product(open_sizes, given):
        dims = static_dims(declared)
        if declared.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            continue
        for batch, channels, space in FORMS.get(len(dims), []):
            shape = list(dims)
            if request.size is not None:
                size = request.size * len(space) if len(request.size) == 1 else request.size
                if len(size) != len(space):
                    continue
                named = len(size) == len(request.size) and all(dims[axis] is None for axis in space)
                if batch is None and dims[0] is None and not named:
                    continue  # an open first axis is a batch, unless all axes are open and the size names them
                if any(dims[axis] not in (None, pixels) for axis, pixels in zip(space, size)):
                    continue  # the file declares another size
                for axis, pixels in zip(space, size):
                    shape[axis] = pixels
            elif open_size is not None:
                for axis in space:
                    shape[axis] = shape[axis] or open_size
            if batch is not None:
                shape[batch] = shape[batch] or BATCH
            elif None in shape:
                continue
            held = _held(declared, space, request.slide)
            if request.slide and held is None:
                continue
            for filled in _filled(layer_of, declared.name, shape, batch, channels, is_sized=open_size is None):
                _check_size(declared.name, [d for k, d in enumerate(filled) if k != batch])
                kind = declared.type.tensor_type.elem_type
                yield open_size, Image(declared.name, filled, batch, channels, space, kind, held=held)


def _names(declared: ValueInfoProto, space: Sequence[int]) -> list[set[str]]:
    """The names of the axes of an image: what the file calls it, or else a word and its first letter."""
    words = SIZE_NAMES[len(space)]
    own = [dim_name(declared.type.tensor_type.shape.dim[axis]).lower() for axis in space]
    return [{name} - {""} | ({word, word[0]} - set(own)) for word, name in zip(words, own)]


def _held(declared: ValueInfoProto, space: Sequence[int], slide: Sequence[str]) -> frozenset[int] | None:
    """The axes of a reading that do not slide, by their place in it; None if it has not all axes that shall."""
    names = _names(declared, space)
    if not slide or any(not any(name in axis for axis in names) for name in slide):
        return None
    return frozenset(k for k, axis in enumerate(names) if axis.isdisjoint(slide))


def _check_axes(given: Sequence[ValueInfoProto], slide: Sequence[str]) -> None:
    """Raises OptionError if no reading of an input has all axes that are to slide."""
    readings = [(declared, space) for declared in given for _, _, space in FORMS.get(len(static_dims(declared)), [])]
    if slide and all(_held(declared, space, slide) is None for declared, space in readings):
        axes = [axis for declared, space in readings for axis in _names(declared, space)]
        known = dict.fromkeys(name for axis in axes for name in sorted(axis) if len(name) > 1)
        raise OptionError(f"the image has no axes {' and '.join(map(repr, slide))}: --slide takes {', '.join(known)}")


def _filled(
    layer_of: Callable[[str], Layer | None],
    name: str,
    shape: Sequence[int | None],
    batch: int | None,
    channels: int | None,
    *,
    is_sized: bool,
) -> list[tuple[int, ...]]:
    """The shapes that an input with an open axis may have, by the weights of the first layer that it enters.

    A wrong number fails at that layer. A convolution gives the channels only; a dense layer that reads the whole image
    gives any axis, or the channels if it reads those at every position.

    Args:
        layer_of: the first layer that an input enters.
        name: the input.
        shape: its axes; None for those that are open.
        batch: the axis of the batch, or None.
        channels: the axis of the channels, or None.
        is_sized: whether every size is known, so that a dense layer determines what is left.
    """
    left = [k for k, d in enumerate(shape) if d is None]
    numbers: list[int] = []
    if not left:
        return [tuple(d for d in shape if d is not None)]
    if len(left) == 1 and (layer := layer_of(name)) is not None:
        if layer.slides:
            numbers = [layer.reads] if left[0] == channels else []
        elif is_sized:
            known = math.prod(d for k, d in enumerate(shape) if d is not None and k != batch)
            numbers = [layer.reads // known] if layer.reads % known == 0 else []
            numbers += [layer.reads] if left[0] == channels else []
    return [tuple(n if d is None else d for d in shape) for n in dict.fromkeys(numbers) if n > 0]


@dataclass(frozen=True)
class Layer:
    """The first layer with weights that an image enters.

    Attributes:
        node: its name, or that of its output.
        op: its operator.
        slides: whether it is a convolution.
        reads: the number of channels that a convolution reads, or of values that a dense layer reads.
    """

    node: str
    op: str
    slides: bool
    reads: int


def first_layer(document: Document, name: str) -> Layer | None:
    """The first layer that an input enters; None if there is none, or if its weights are not stored."""
    reached = {name}
    # the stored tensors, also under the names of their quantised, cast or copied versions
    weights: dict[str, Sequence[int]] = {t.name: t.dims for t in document.proto.graph.initializer}
    for node in document.nodes:
        if reached.isdisjoint(node.inputs):
            if node.op == "Constant":
                value = node.attrs.get("value")
                weights[node.outputs[0]] = [] if value is None else value.dims
            elif node.op in UNCHANGED and node.inputs[0] in weights:
                weights[node.outputs[0]] = weights[node.inputs[0]]
            continue
        dims = [weights[n] for n in node.inputs if n in weights]
        called = node.name or node.outputs[0]
        if node.op in SLIDING:
            channels = next((w[1] for w in dims if len(w) > 2), None)
            return None if channels is None else Layer(called, node.op, True, channels * node.attrs.get("group", 1))
        if node.op in DENSE and (matrix := next((w for w in dims if len(w) == 2), None)) is not None:
            turned = bool(node.attrs.get("transB")) or node.inputs[0] in weights
            return Layer(called, node.op, False, matrix[1 if turned else 0])
        reached.update(node.outputs)
    return None


def _check_size(name: str, sizes: Sequence[int]) -> None:
    if math.prod(sizes) > LARGEST_INPUT:
        raise ModelError(
            f"input '{name}' has {size_text(sizes)} values for one image, "
            f"more than the {LARGEST_INPUT:,} that are compared"
        )


def open_axes(document: Document, image: Image) -> list[int]:
    """The axes of an image, except the batch, that its file leaves open."""
    dims = static_dims(declared_as(document.proto.graph, image.name))
    return [k for k, d in enumerate(dims) if d is None and k != image.batch]


def leaves_batch_open(document: Document, image: Image) -> bool:
    """Has an image a batch of any size, as its file declares it?"""
    dims = static_dims(declared_as(document.proto.graph, image.name))
    return image.batch is not None and dims[image.batch] is None


def width_of(image: Image) -> int | None:
    """The number of channels of an image; None if it has no channel axis."""
    return None if image.channels is None else image.shape[image.channels]


def likeness(image: Image) -> Fraction:
    """How much a reading looks like a picture: the more equal its sides, the more; less strictly with few channels.

    A picture may be (3, 16, 200), but (2048, 8, 4) is a feature map, and not a picture of 2048×8 pixels.
    """
    channels = width_of(image)
    few = len(image.space) == 2 if channels is None else channels in FEW and min(image.size) > channels
    return -Fraction(max(image.size), min(image.size)) / (LONG if few else 1)


def unrolled(document: Document, name: str) -> tuple[str, str] | None:
    """The Reshape that turns a row of pixels into an image before any layer, and its result; None if there is none."""
    reached, graph = {name}, document.proto.graph
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            stored.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        if not reached.intersection(node.input):
            continue
        if node.op_type in SLIDING | DENSE:
            return None
        if node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] in stored:
            target = document.array(stored[node.input[1]]).reshape(-1)
            if sum(int(d) != 1 for d in target[1:]) > 1:
                return node.name or node.output[0], node.output[0]
        reached.update(node.output)
    return None


def squarest(dims: Sequence[int | None], layer: Layer) -> tuple[int, ...] | None:
    """The size with the most equal sides at which a dense layer reads a whole image of these axes, some of them open.

    None if it cannot read such an image, or if more than two spatial axes are open.
    """
    found: list[tuple[int, ...]] = []
    for batch, channels, space in FORMS[len(dims)] if not layer.slides else ():
        if batch is None or channels is None:
            continue
        left = [axis for axis in space if dims[axis] is None]
        known = math.prod(d for axis in space if (d := dims[axis]) is not None)
        width = dims[channels]
        for count in FEW if width is None else (width,):
            area, rest = divmod(layer.reads, known * count)
            if rest or not area or len(left) > 2:
                continue
            short = next(n for n in range(math.isqrt(area), 0, -1) if area % n == 0) if len(left) == 2 else area
            sides = iter((short, area // short))
            found.append(tuple(next(sides) if (d := dims[axis]) is None else d for axis in space))
    return min(found, key=lambda size: Fraction(max(size), min(size)), default=None)


def batches(document: Document, image: Image, *, declared: bool = False) -> list[int]:
    """The batches to evaluate shapes with: a prime first, then the declared one, or 1 if it is open.

    `declared`: start with the declared one.
    """
    if image.batch is None:
        return [1]
    if static := static_dims(declared_as(document.proto.graph, image.name))[image.batch]:
        return [static, BATCH] if declared else [BATCH, static]
    return [BATCH, 1, *_literals(document)]


def _literals(document: Document) -> list[int]:
    """First dims of constant Reshape targets: batches that the graph may have baked in."""
    tensors = {t.name: t for t in document.proto.graph.initializer}
    found = []
    for node in document.nodes:
        if node.op == "Reshape" and len(node.inputs) > 1 and (t := tensors.get(node.inputs[1])) is not None:
            target = document.array(t).reshape(-1)
            if len(target) and 1 < target[0] < 1024:
                found.append(int(target[0]))
    return list(dict.fromkeys(found))[:4]


def axes_in_words(image: Image) -> str:
    """What the axes are in this reading: ``(batch, height, width, channels)``."""
    names = {image.batch: "batch", image.channels: "channels"} | dict(zip(image.space, SIZE_NAMES[len(image.space)]))
    return f"({', '.join(names[k] for k in range(len(image.shape)))})"


def written_size(size: Sequence[int]) -> str:
    """A size as the command line takes it: ``28x28``."""
    return "x".join(map(str, size))
