"""What a file leaves open about its image: which of several readings its shape suggests, and how to say otherwise.

If something slides over the image, the network decides which of its axes are positions. If nothing does, several
readings are exact: then `--input-size` decides, or the shape suggests one, or the model is refused with a question.
Assumptions about axes, sizes and batch are noted in the image, for the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnx_fcn.errors import Diagnostic, ModelError
from onnx_fcn.lifting.facts import Unmapped
from onnx_fcn.lifting.lifted import BATCH, Lifted
from onnx_fcn.lifting.program import Image, Walk
from onnx_fcn.model.agreement import is_rounded
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, declared_as, dims_in_words, static_dims
from onnx_fcn.model.operators import CHANNELS_FIRST
from onnx_fcn.tables import pixels
from onnx_fcn.walk.images import (
    FEW,
    Request,
    axes_in_words,
    first_layer,
    leaves_batch_open,
    likeness,
    open_axes,
    unrolled,
    width_of,
    written_size,
)
from onnx_fcn.walk.mixing import batches_taken, keeps_apart, mixed

__all__ = [
    "APART",
    "assumption",
    "check_batch",
    "has_own_batch",
    "note_sizes",
    "row_inside",
    "row_of_pixels",
    "suggested",
    "undecided_reading",
]


def suggested(document: Document, undecided: Sequence[Walk], request: Request) -> Walk | None:
    """The likeliest of several exact readings of an image that nothing slides over; None if it would be a guess.

    A reading that treats all positions alike is likelier than one that does not (which takes the scales of channels for
    those of positions), and an axis of length 1 has no positions. If every reading has such an axis, proportions say
    nothing, and the axis order of ONNX's own operators decides. The alternatives are noted in its image.
    """
    undecided = [w for w in undecided if _has_channels_in_place(w)] or list(undecided)
    undecided = [w for w in undecided if not _tells_positions_apart(w)] or undecided
    whole = [w for w in undecided if min(w.image.size) > 1]
    held = whole or undecided
    if request.size is None:
        held = _with_channels(held)
    if not held:
        return None
    chosen = max(held, key=lambda w: likeness(w.image)) if whole else held[0]
    others = [w for w in undecided if w.image.space != chosen.image.space]
    if others:
        thin = len(whole) < len(undecided)
        reason = "slides along no axis of length 1" if whole and thin else "is the order of ONNX's own operators"
        reason = "looks most like a picture" if whole and len(chosen.image.space) > 1 else reason
        said = assumption(document, chosen.image, [w.image for w in others], request, reason)
        chosen.image = replace(chosen.image, assumed=(said, *chosen.image.assumed))
    return chosen


def _with_channels(readings: Sequence[Walk]) -> list[Walk]:
    """The readings that the shape suggests: a table or a sequence is as likely as a picture without channels.

    Without a batch, a picture is recognised by its few channels; with a batch, by having channels at all, and so is a
    signal that is the only reading.
    """
    full = [w for w in readings if None not in (w.image.batch, w.image.channels)]
    pictures = [w for w in full if len(w.image.space) > 1]
    if any(w.image.batch is not None for w in readings):
        return pictures or (full if len(readings) == 1 else [])
    return [w for w in readings if len(w.image.space) == 2 and width_of(w.image) in FEW]


def _has_channels_in_place(walk: Walk) -> bool:
    """Does every operator that takes axis 1 for the channels find them there?"""
    facts = [slot.operands[0] for slot in walk.slots if slot.node.op in CHANNELS_FIRST and slot.operands]
    return all(set(f.layout[1]) <= set(f.channels) for f in facts if isinstance(f, Lifted) and f.rank > 1)


def _tells_positions_apart(walk: Walk) -> bool:
    """Does an operator treat the positions of a window in different ways?"""
    return any(isinstance(f, Lifted) and f.unfolded is not None for f in walk.facts.values())


def assumption(document: Document, image: Image, others: Sequence[Image], request: Request, reason: str) -> str:
    """What was assumed about an image that nothing slides over, why, and how to choose another reading.

    A size does not distinguish readings of the same size, and is not suggested again if it was given.
    """
    said = None if request.size is None else written_size(request.size)
    own = written_size(image.size)
    alike = next((i for i in others if i.size == image.size), None)
    sizes = [size for size in _offers(others, image) if size not in (own, said)]
    advice = [] if own == said else [f"--input-size {own} confirms a window of {pixels(image.size)}"]
    advice += [f"--input-size {' or '.join(sizes)} chooses another reading"] if sizes else []
    if alike is not None:
        first = "first" if alike.channels == len(alike.shape) - 1 else "last"
        advice.append(
            f"{axes_in_words(alike)} has the same size: if it is that, give the model an input with the channels "
            f"{first}, and transpose it inside"
        )
    shape = dims_in_words(declared_as(document.proto.graph, image.name))
    return (
        f"Nothing slides over '{image.name}', so the file does not say which of its axes are positions: {shape} "
        f"is read as {axes_in_words(image)}, which {reason}; {', or '.join(advice)}."
    )


def _offers(readings: Sequence[Image], *chosen: Image) -> list[str]:
    """Sizes that choose one of these readings, as the command line takes them.

    A single number applies to every axis, so it cannot choose a row of as many pixels as a square picture is wide; and
    a size that includes the channels is taken for a mistake.
    """
    sizes = [r.size for r in readings if not _names_few(r)]
    squares = {n[0] for n in (*sizes, *(r.size for r in chosen)) if len(n) > 1 and len(set(n)) == 1}
    return list(dict.fromkeys(written_size(n) for n in sizes if len(n) > 1 or n[0] not in squares))


def _names_few(image: Image) -> bool:
    """Does the size of a reading include an axis that may be the few channels of a picture?"""
    size, shape = image.size, image.shape
    ends = ((size[0], shape[1]), (size[-1], shape[-1]))
    return len(size) == len(shape) - 1 > 1 and any(n == width in FEW for n, width in ends)


def undecided_reading(document: Document, undecided: Sequence[Walk]) -> Diagnostic:
    """The refusal of an image if nothing suggests which of its axes are positions."""
    name = undecided[0].image.name
    declared = declared_as(document.proto.graph, name)
    sizes = _offers([w.image for w in undecided])
    reason = (
        f"nothing slides over its shape {dims_in_words(declared)}, so the file does not say which of its axes are "
        "positions in an image"
    )
    if all(len(w.image.size) == 1 for w in undecided) and len(static_dims(declared)) == 2:
        hint = (
            "if it holds the pixels of an image in a row, give the model an input with axes for them, such as "
            f"(N, channels, height, width), and flatten that inside; if it is a signal, give --input-size {sizes[0]}"
        )
    else:
        others = (
            "; if another input is the image, name it with --input"
            if len(data_inputs(document.proto.graph)) > 1
            else ""
        )
        hint = f"give the size of its window with --input-size, such as {' or '.join(sizes)}{others}"
    return Diagnostic("no-positions", name, "input", reason, hint)


#: The hint for a network that reshapes a row into an image, given the result of that Reshape.
INSIDE = "make '{}' the input, as onnx.utils.extract_model does"


def row_of_pixels(document: Document, name: str, size: tuple[int, ...]) -> str:
    """Advice if a size is that of an image whose pixels are in a row; empty if it is not."""
    size = size * 2 if len(size) == 1 else size
    dims = static_dims(declared_as(document.proto.graph, name))
    values, positions = dims[-1], math.prod(size)
    if len(dims) != 2 or values is None or values % positions:
        return ""
    if (inside := unrolled(document, name)) is not None:
        return f"Reshape '{inside[0]}' turns the row into an image: {INSIDE.format(inside[1])}"
    channels = values // positions
    forms = [(1, *size)]
    if channels > 1:
        forms = [(channels, *size), (*size, channels)]
    elif len(size) > 2 and {size[0], size[-1]} & set(FEW):
        forms = [size]
    shapes = " or ".join(f"(N, {', '.join(map(str, form))})" for form in forms)
    return (
        f"the pixels of an image may be in a row there, but windows cannot be cut out of rows: give the model an input "
        f"{shapes}, and flatten it inside"
    )


def row_inside(document: Document, image: Image) -> list[Diagnostic]:
    """The refusal of a network that reshapes a row into its image; empty if it does not."""
    inside = unrolled(document, image.name) if len(image.shape) == 2 else None
    if inside is None:
        return []
    shape = dims_in_words(declared_as(document.proto.graph, image.name))
    reason = (
        f"it is a row {shape} that Reshape '{inside[0]}' turns into an image, and windows cannot be cut out of rows"
    )
    return [Diagnostic("row-of-pixels", image.name, "input", reason, INSIDE.format(inside[1]))]


#: The hint for a network that mixes the images of a batch.
APART = (
    "in a larger batch an image has no answer of its own: leave this out of the network, or declare its input with a "
    "batch of 1 to convert it for one image at a time"
)


def check_batch(document: Document, walk: Walk, free: Walk) -> list[Diagnostic]:
    """The refusal of a walk if the network mixes the images of a batch that its file leaves open.

    If the walk succeeds with any batch, only what no rule sees can mix them, such as a gate. If it succeeds with one
    batch only, because the network runs with no other (an export may bake in that of its example) or because a rule is
    too narrow, the fixed batch is noted in the image.

    Args:
        document: the model.
        walk: the walk that succeeds.
        free: the walk of the same reading with a free batch.
    """
    image = walk.image
    if not leaves_batch_open(document, image):
        return []
    if walk is free:
        return _mixed_beside(document, walk)
    taken = batches_taken(document, image, [o for o in walk.outputs if isinstance(walk.facts.get(o), Lifted)])
    causes = list(free.causes.values())
    if taken == "mixed":
        return [replace(d, code="batch", hint=APART) for d in causes]
    why = "".join(f" ({replace(d, hint='')})" for d in causes[:1])
    reason = (
        f"the original runs with no other{_baker(free) or why}" if taken == "one" else f"no rule covers others{why}"
    )
    note = f"The batch is fixed at {walk.batch}, though the file leaves it open: {reason}."
    walk.image = replace(image, assumed=(*image.assumed, note))
    return []


def _mixed_beside(document: Document, walk: Walk) -> list[Diagnostic]:
    """The refusal of a network that mixes the images of a batch in nodes that no rule lifts.

    The scales that a DynamicQuantizeLinear computes for the whole batch are no reason: they only change the rounding.
    """
    made = {o: slot for slot in walk.slots for o in slot.node.outputs}
    named = {o for node in document.nodes for o in node.outputs}
    beside = [o for o in made if type(walk.facts.get(o)) is Unmapped]
    if all(keeps_apart(walk, made[o]) for o in beside) or is_rounded(document):
        return []
    asked = [o for o in beside if o in named]
    if len(asked) < len(beside):  # tensors inside a branch cannot be outputs: look at the answers
        asked += [o for o in walk.outputs if o in made and isinstance(walk.facts.get(o), Lifted)]
    try:
        name = mixed(document, walk.image, asked)
    except ModelError:
        return []  # it takes no other batch
    if name is None:
        return []
    reason = f"gives '{name}', in which the images of a batch change each other"
    return [Diagnostic("batch", made[name].name, made[name].node.op, reason, APART)]


def _baker(free: Walk) -> str:
    """The first node that merges the images of a batch into one row, as a clause; empty if none does."""
    for slot in free.slots:
        for output in slot.node.outputs:
            fact = free.facts.get(output)
            if isinstance(fact, Lifted) and any(fact.batch in group and len(group) > 1 for group in fact.layout):
                return f", as {slot.node.op} '{slot.name}' makes {fact.dims} of N images"
    return ""


def note_sizes(document: Document, walk: Walk, request: Request) -> None:
    """Note in the image the sizes that its file leaves open and a dense layer determines."""
    image, layer = walk.image, first_layer(document, walk.image.name)
    told = [k for k in open_axes(document, image) if request.size is None or k not in image.space]
    if not told or layer is None or layer.slides:
        return
    words = axes_in_words(image)[1:-1].split(", ")
    names, sizes = (" and ".join(found) for found in zip(*((words[k], str(image.shape[k])) for k in told)))
    shape = dims_in_words(declared_as(document.proto.graph, image.name))
    note = (
        f"The shape {shape} of '{image.name}' leaves its {names} open: {sizes} {'is' if len(told) == 1 else 'are'} "
        f"assumed, as {layer.op} '{layer.node}' reads {layer.reads} values."
    )
    walk.image = replace(image, assumed=(*image.assumed, note))


def has_own_batch(document: Document, walk: Walk) -> bool:
    """Was a walk made with the batch that the file declares, or with a free one if it declares none?"""
    axis = walk.image.batch
    return axis is None or walk.batch == (
        static_dims(declared_as(document.proto.graph, walk.image.name))[axis] or BATCH
    )
