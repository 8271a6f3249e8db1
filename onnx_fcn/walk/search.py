"""Which reading of the inputs is right: each is walked, the likeliest first, and the network decides.

What cannot be known in advance is tried: the axes of the image (a wrong reading fails at its first convolution), and
the batch (a prime, which no literal in the graph equals; then the batch that the graph may have baked in).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import onnx

from onnx_fcn.errors import Diagnostic, OptionError, UnsupportedModel
from onnx_fcn.lifting.facts import Unmapped
from onnx_fcn.lifting.lifted import BATCH, Lifted
from onnx_fcn.lifting.program import Image, Options, Slot, Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.exported import image_size
from onnx_fcn.model.graphs import data_inputs, declared_as, dims_in_words, opset_of, static_dims
from onnx_fcn.model.metadata import PREFIX
from onnx_fcn.tables import pixels, size_text
from onnx_fcn.walk.images import (
    FEW,
    FORMS,
    Request,
    batches,
    first_layer,
    images,
    images_of_sizes,
    open_axes,
    squarest,
    width_of,
    written_size,
)
from onnx_fcn.walk.passes import walked
from onnx_fcn.walk.readings import (
    APART,
    check_batch,
    has_own_batch,
    note_sizes,
    row_inside,
    row_of_pixels,
    suggested,
    undecided_reading,
)

__all__ = ["causes_of", "explored"]


#: From this version on, broadcasting, batch normalisation and dropout are defined as they are today.
OLDEST_OPSET = 7

#: The metadata key by which a converted model is known.
CONVERTED = f"{PREFIX}format"

#: The hint for a network without an image.
NO_MAP = "only a network that convolves or pools its input can become fully convolutional"

#: Image sizes to try if the file does not declare one and the head decides: the usual ones first.
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

#: Codes of refusals that are not about sizes: operators without a rule, and products of what depends on the image.
OF_ANY_SIZE = frozenset({"no-rule", "product-of-maps", "random"})


def explored(document: Document, request: Request) -> tuple[Walk | None, list[Diagnostic]]:
    """The walk of the likeliest reading of the inputs, and every root cause if it is refused.

    Raises:
        OptionError: if the request does not fit the model.
    """
    opset = opset_of(document.proto)
    opset = OLDEST_OPSET if opset is None else opset
    if opset < OLDEST_OPSET:
        reason = f"the model uses opset {opset}, and before opset {OLDEST_OPSET} operators have other meanings"
        return None, [Diagnostic("opset", "", "", reason, "raise it first, with onnx.version_converter")]
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        reason = f"the model uses opset {opset}, and the installed onnx knows operators up to opset {newest}"
        return None, [Diagnostic("opset", "", "", reason, "upgrade onnx and onnxruntime")]
    if any(entry.key == CONVERTED for entry in document.proto.metadata_props):
        reason = "the model is fully convolutional already: onnx_fcn converted it"
        return None, [Diagnostic("converted", "", "", reason, "pass the original")]
    if (walk := _of_stated_size(document, request)) is not None:
        return walk, []
    walk, causes = _of_own_size(document, request)
    stated = image_size(document.proto)
    if walk is not None and stated and request.size is None and open_axes(document, walk.image):
        size = size_text(stated * len(walk.image.space) if len(stated) == 1 else stated)
        note = f"The metadata say {size} pixels, which the network does not take, so this was passed over."
        walk.image = replace(walk.image, assumed=(*walk.image.assumed, note))
    return walk, causes


def _of_own_size(document: Document, request: Request) -> tuple[Walk | None, list[Diagnostic]]:
    """`explored`, at a size that the file declares, the user gives, or only the nodes tell."""
    candidates = list(images(document, request))
    if not candidates:
        return _read(document, _sized_by_head(document, request), request)
    walk, causes = _read(document, candidates, request)
    if causes and request.size is None and all(open_axes(document, i) for i in candidates):
        named = replace(request, input=candidates[0].name)
        fitting = _fitting(document, named)
        if fitting is not None:  # the declared sizes were not the problem: an open one was
            return _read(document, _sized(document, named, fitting), request)
    return walk, causes


def _of_stated_size(document: Document, request: Request) -> Walk | None:
    """The walk at the size that the exporter stored in the metadata, if the file declares none and that one fits."""
    size = image_size(document.proto)
    if not size or request.size is not None:
        return None
    stated = replace(request, size=size)
    readings = [i for i in images(document, stated) if {*i.space} <= {*open_axes(document, i)}]
    walk, causes = _read(document, readings, stated) if readings else (None, [])
    if walk is None or causes:
        return None
    shape = dims_in_words(declared_as(document.proto.graph, walk.image.name))
    note = f"The shape {shape} of '{walk.image.name}' leaves its size open: the metadata say {pixels(walk.image.size)}."
    walk.image = replace(walk.image, assumed=(*walk.image.assumed, note))
    return walk


def _read(document: Document, candidates: Sequence[Image], request: Request) -> tuple[Walk | None, list[Diagnostic]]:
    """The walk of the first of these readings that succeeds; if none does, the likeliest one with its root causes."""
    failures: list[Walk] = []
    undecided: list[Walk] = []  # readings of the first input that succeed, though nothing slides
    mixing: Walk | None = None  # the likeliest reading, if the network mixes what that takes for a batch
    for name, readings in groupby(candidates, lambda image: image.name):
        for image in readings:
            if mixing is not None and image.batch is not None:
                continue
            tried: list[Walk] = []
            for walk in _walks(document, image, request):
                tried.append(walk)
                if _lacks_rules(walk):
                    break  # no other batch helps
                if walk.succeeded and _depends(walk):
                    slides = any(s.slides is not None for s in walk.slots)
                    if slides or name == candidates[0].name:
                        if causes := check_batch(document, walk, tried[0]):
                            return tried[0], causes
                        note_sizes(document, walk, request)
                    if slides:
                        return walk, [] if request.size else _colours_that_slide(document, walk)
                    if name == candidates[0].name:  # a mask or table beside the image must not pass for the image
                        undecided.append(walk)
                        tried.clear()
                    break
            failures += tried
            mixed = [w for w in tried if _mixes_images(w)]
            if mixed and image is candidates[0]:
                if len(mixed) == len(tried):
                    return mixed[-1], causes_of(mixed[-1])  # understood: another reading would be a wrong one
                if mixed[-1].batch != BATCH:
                    mixing = mixed[-1]  # no other batch fits the weights, so this axis may not be a batch
            if tried and _lacks_rules(tried[-1]):
                break  # no other axes help
        if (chosen := suggested(document, undecided, request)) is not None:
            return chosen, []
        if mixing is not None and not (undecided := [w for w in undecided if len(w.image.space) == 2]):
            return mixing, causes_of(mixing)
        if mixing is not None:
            break
    if undecided and not any(slot.slides for walk in failures for slot in walk.slots):
        inside = row_inside(document, undecided[0].image)
        return undecided[0], inside or [undecided_reading(document, undecided)]
    if not failures:
        return None, [Diagnostic("no-image", "", "", "no input looks like an image", NO_MAP)]
    refused = [w for w in failures if w.diagnostics]
    furthest = max(refused, key=lambda w: (min(w.diagnostics), has_own_batch(document, w))) if refused else failures[0]
    if _mixes_images(failures[0]) and has_own_batch(document, failures[0]) and not _lacks_rules(furthest):
        furthest = failures[0]  # with a baked batch, what was refused merely follows from it
    return furthest, row_inside(document, furthest.image) or causes_of(furthest)


def _sized_by_head(document: Document, request: Request) -> list[Image]:
    """The image at the size that the first dense layer requires, if the file does not declare one.

    Raises:
        OptionError: if the head takes any size, or none of the usual ones.
    """
    given = [i for i in data_inputs(document.proto.graph) if request.input in (None, i.name)]
    if not given:
        others = [i.name for i in document.proto.graph.input]
        what = f"input '{others[0]}' is a sequence or optional" if others else "the model has no inputs"
        hint = "export the network with a tensor as its input"
        raise UnsupportedModel([Diagnostic("no-image", "", "", f"{what}, and an image is a tensor", hint)])
    first = max(given, key=lambda i: len(i.type.tensor_type.shape.dim))
    rank, shape = len(first.type.tensor_type.shape.dim), dims_in_words(first)
    if first.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        raise UnsupportedModel([Diagnostic("no-image", "", "", f"input '{first.name}' is text, not an image")])
    if rank not in FORMS:
        reason = f"input '{first.name}' has {rank} axes, and an image has 2 to {max(FORMS)}"
        raise UnsupportedModel([Diagnostic("no-image", "", "", reason)])
    if request.size is not None:
        known = row_of_pixels(document, first.name, request.size)
        known = known or "give the size that the network was made for, not that of your images"
        raise OptionError(
            f"--input-size {size_text(request.size)} does not fit input '{first.name}' of shape {shape}: {known}"
        )
    named = replace(request, input=first.name)
    return _sized(document, named, _fitting(document, named))


def _sized(document: Document, request: Request, fitting: tuple[int, Walk] | None) -> list[Image]:
    """The readings of the requested input at the size that fits, provided that a larger one does not.

    Raises:
        OptionError: if the head takes any size, or none of the usual ones.
    """
    declared = declared_as(document.proto.graph, request.input or "")
    dims = static_dims(declared)
    layer = first_layer(document, declared.name)
    shaped = fitting is not None and fitting[1].image.channels is not None
    if not shaped and layer is not None and (found := squarest(dims, layer)) is not None:
        why = f"{layer.op} '{layer.node}' reads {layer.reads} values, which fits many sizes"
        size = found if fitting is None else fitting[1].image.size
    elif fitting is None:
        why, size = "its head takes none of the usual sizes", (224,) * max(len(dims) - 2, 1)
    elif (larger := _at_size(document, request, 2 * fitting[0])) is None:
        return list(images(document, request, fitting[0]))
    elif (made := _made_alike(fitting[1], larger)) is not None:
        slot, size = made
        why = f"its head takes any size, as {slot.node.op} '{slot.name}' makes each {pixels(size)}"
    else:
        why, size = "its head takes any size", tuple(dims[axis] or 224 for axis in fitting[1].image.space)
    raise OptionError(
        f"input '{declared.name}' has shape {dims_in_words(declared)}, so the file does not say which size the network "
        f"was made for, and {why}: give it with --input-size, such as {written_size(size)}"
    )


@dataclass
class _Span:
    """The sizes at which a reading may succeed, as far as its refused walks say.

    A map of a larger image is nowhere smaller. So a window that was too small for a kernel is too small in any smaller
    image, and values that were too many for a dense layer are too many in any larger one.
    """

    least: int = min(USUAL_SIZES)
    most: int = max(USUAL_SIZES)

    def __contains__(self, size: int) -> bool:
        return self.least <= size <= self.most

    def narrow(self, walk: Walk, size: int) -> None:
        """Leave out the sizes at which a walk would be refused as this one was, with `size` pixels along open axes.

        An If may choose another branch at another size: then only operators before it are sure to get the same maps.
        """
        chosen = next((k for k, slot in enumerate(walk.slots) if slot.unfolded), len(walk.slots))
        needs = {need for k, need in walk.needs.items() if k < chosen}
        if "larger" in needs:
            self.least = max(self.least, size + 1)
        if "smaller" in needs:
            self.most = min(self.most, size - 1)
        if any(_refuses_any_size(walk, k, chosen) for k in walk.diagnostics if k < len(walk.slots)):
            self.most = 0


def _refuses_any_size(walk: Walk, position: int, chosen: int) -> bool:
    """Was a node refused for what it is, or for which axes are the image's, whatever their sizes?

    Axes of one cell are dropped from a layout, so the latter is said only of maps with more cells at any usual size.
    Nothing is said of nodes of a branch, nor, about axes, of those after the first one that was `chosen`.
    """
    slot, code = walk.slots[position], walk.diagnostics[position].code
    if code in OF_ANY_SIZE:
        in_branch = any(other.unfolded and other.index == slot.index for other in walk.slots)
        return not walk.options.attention and not in_branch
    maps = [fact for fact in slot.operands if isinstance(fact, Lifted)]
    least = min(*walk.image.size, *USUAL_SIZES)
    more = all(a.count(least) > 1 for x in maps for a in x.space if a.image is not None)
    return code == "not-channels" and position < chosen and more


def _fitting(document: Document, request: Request) -> tuple[int, Walk] | None:
    """The first of the usual sizes at which a reading succeeds, and its walk; None if none does."""
    spans: defaultdict[tuple[object, ...], _Span] = defaultdict(_Span)
    batches_of: dict[int | None, list[int]] = {}
    for size, image in images_of_sizes(document, request, USUAL_SIZES):
        if image.batch not in batches_of:
            batches_of[image.batch] = batches(document, image, declared=request.declared_batch)
        for batch in batches_of[image.batch]:
            span = spans[image.batch, image.space, width_of(image), batch]
            if size not in span:
                continue
            walk = _walked(document, image.with_batch(batch), request)
            if walk.succeeded:
                return size, walk
            span.narrow(walk, size)
    return None


def _at_size(document: Document, request: Request, size: int) -> Walk | None:
    """The walk of the likeliest reading that succeeds with `size` pixels along every open axis."""
    every = (walk for image in images(document, request, size) for walk in _walks(document, image, request))
    return next((walk for walk in every if walk.succeeded), None)


def _made_alike(small: Walk, larger: Walk) -> tuple[Slot, tuple[int, ...]] | None:
    """The first node whose maps have the same size for images of two different sizes, and that size."""
    for slot in small.slots:
        for output in slot.node.outputs:
            a, b = small.facts.get(output), larger.facts.get(output)
            if isinstance(a, Lifted) and isinstance(b, Lifted) and a.window == b.window and min(a.window) > 1:
                return slot, a.window
    return None


def _walks(document: Document, image: Image, request: Request) -> Iterator[Walk]:
    """The walks of one reading, one for each batch that it may have."""
    for batch in batches(document, image, declared=request.declared_batch):
        yield _walked(document, image.with_batch(batch), request)


def _walked(document: Document, image: Image, request: Request) -> Walk:
    options = Options(folds=request.folds, attention=request.attention, portable=request.portable)
    return walked(document, image, options)


def _depends(walk: Walk) -> bool:
    """Does an output depend on the position in the image?"""
    return any(isinstance(walk.facts.get(o), Lifted) for o in walk.outputs)


def _colours_that_slide(document: Document, walk: Walk) -> list[Diagnostic]:
    """Refuse a depth of 1, 3 or 4 slices that become the channels of a convolution over the other axes.

    They may be colours: a file with an extra axis, such as (sequence, 1, 3, 24, 24), would slide over its colours.
    """
    image = walk.image
    depth = image.space[0]
    slices, channels = image.shape[depth], width_of(image) or 1
    if len(image.space) < 3 or channels > 1 or slices not in FEW:
        return []
    maps = (f for f in walk.facts.values() if isinstance(f, Lifted) and f.unfolded is not None and f.is_live)
    if not any(axis.image == 0 and axis.window == 1 for fact in maps for axis in fact.space):
        return []
    shape = dims_in_words(declared_as(document.proto.graph, image.name))
    reason = (
        f"axis {depth} of its shape {shape} becomes the channels of a convolution, so it may hold colours rather than "
        "positions"
    )
    hint = (
        f"if they are colours, give the network an input (N, {slices}, height, width) without the extra axes; if they "
        f"are a depth, give --input-size {written_size(image.size)}"
    )
    return [Diagnostic("colours", image.name, "input", reason, hint)]


def _lacks_rules(walk: Walk) -> bool:
    """Is a network refused only for operators without a rule?"""
    return {d.code for d in walk.diagnostics.values()} == {"no-rule"}


def _mixes_images(walk: Walk) -> bool:
    """Is a network refused only because it computes across the images of a batch?"""
    return {d.code for d in walk.diagnostics.values()} == {"batch"}


def causes_of(failure: Walk) -> list[Diagnostic]:
    """The root causes of a refusal, in the order of the graph."""
    if failure.diagnostics:
        return [replace(d, hint=d.hint or APART) if d.code == "batch" else d for d in failure.causes.values()]
    reason = "no output depends on the position in it: nothing slides over this input"
    made = {o for slot in failure.slots for o in slot.node.outputs}
    others = any(isinstance(f, Unmapped) and name not in made for name, f in failure.facts.items())
    hint = "if another input is the image, name it with --input" if others else NO_MAP
    return [Diagnostic("no-image", failure.image.name, "input", reason, hint)]
