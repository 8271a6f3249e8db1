"""Where maps and answers are in the image, read off a finished walk.

Every axis of a fact carries its field and its count, so nothing is computed here: the axes that run along the image
are put in its order, and what is true of every node before an output is stated for its answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from onnx_fcn.geometry import AXES, Answers, Field, Geometry, Number
from onnx_fcn.lifting.lifted import Axis, Lifted
from onnx_fcn.lifting.program import Image, Walk

__all__ = ["about_cells", "answers_by_field", "fields_of", "geometry_of", "layout_of", "meetings", "sliding"]


def fields_of(walk: Walk) -> dict[str, tuple[Field, ...]]:
    """The receptive field of every tensor on a map, along each axis of the image, by its original name.

    Maps with the same axes, such as those of a convolution and of its activation, share one value.
    """
    maps = [(name, fact) for name, fact in walk.facts.items() if isinstance(fact, Lifted)]
    spaces = {id(fact.space): fact for _, fact in maps}
    shared = {key: tuple([a.field.plain() for a in sliding(fact)]) for key, fact in spaces.items()}
    return {name: shared[id(fact.space)] for name, fact in maps}


def sliding(fact: Lifted) -> list[Axis]:
    """The axes of a map that run along the image, in its order."""
    along = [a for a in fact.space if a.image is not None]
    return sorted(along, key=lambda a: a.image or 0)


def geometry_of(walk: Walk) -> Geometry:
    """Where the answers are of all outputs with a grid."""
    outputs = {name: _answers(walk, name, fact, walk.upstream(name)) for name, fact in walk.results.items()}
    return Geometry(walk.image.size, outputs, walk.image.name, layout_of(walk.image))


def layout_of(image: Image) -> str:
    """The axes of an image, such as ``NCHW``; empty if it is read without positions."""
    if not image.space:
        return ""
    letters = dict(zip(image.space, AXES[len(image.space)])) | {image.batch: "N", image.channels: "C"}
    return "".join(letters[k] for k in range(len(image.shape)))


def _answers(walk: Walk, name: str, fact: Lifted, before: Set[int]) -> Answers:
    """The geometry of one output, which the slots `before` compute.

    In a network without a head, the window of an answer is its receptive field.
    """
    axes = sliding(fact)
    field = tuple(a.field.plain() for a in axes)
    context = tuple(dict.fromkeys(walk.slots[k].name for k in sorted(walk.context & before)))
    pads = [walk.slots[k].name for k in sorted(before) if _pads(walk, k)]
    window: tuple[Number, ...] = walk.image.size
    offset: tuple[Number, ...] = (0,) * len(axes)
    within = all(a.inner.front == 0 and a.inner.behind(pixels) >= 1 for a, pixels in zip(axes, walk.image.size))
    if answers_by_field(walk, name, fact):
        about = [f.plain() for f in about_cells(walk, name, axes, before)]
        window, offset, within = tuple(f.size for f in about), tuple(f.start for f in about), False
    if context:
        exactness, reason = "context", f"{_verb(context, 'see')} the whole image, whatever its size"
    elif pads and not within:
        exactness, reason = "padded", f"{_verb(pads, 'pad')}: a crop sees padding where the larger image has pixels"
    else:
        exactness, reason = "exact", "no padding reaches an answer, and nothing sees more than its window"
    stride = tuple(f.stride for f in field)
    form = walk.formed[name].form if name in walk.formed else "map"
    count, inner = tuple(a.count for a in axes), tuple(a.inner for a in axes)
    layout = _output_layout(walk, name, fact, form)
    mirror = tuple(math.ceil(a.mirror) for a in axes) if any(a.mirror for a in axes) else ()
    held = tuple(n if k in walk.held else None for k, n in enumerate(walk.image.size)) if walk.held else ()
    period = tuple(int(a.window_stride) for a in axes) if any(a.window_stride != a.stride for a in axes) else ()
    return Answers(
        window, stride, offset, field, count, inner, exactness, reason, context, form, layout, mirror, period, held
    )


def _pads(walk: Walk, position: int) -> bool:
    slides = walk.slots[position].slides
    return slides is not None and slides.pads


def about_cells(walk: Walk, name: str, axes: Sequence[Axis], before: Iterable[int]) -> list[Field]:
    """The pixels that an answer by field is about, along these axes of an output that the slots `before` compute."""
    padded = any(_pads(walk, k) for k in before)
    cells = walk.unpooled[name].space if name in walk.unpooled else axes
    rates = {a.image: a.rate for a in cells}
    return [a.local if name in walk.by_field else _about(walk, a, rates[a.image], padded=padded) for a in axes]


def _about(walk: Walk, axis: Axis, rate: int, *, padded: bool) -> Field:
    """The pixels that a cell of a map is about: those that it sees by itself, around its place in the image.

    If the cells tile the native image, as the designers of segmenters have it, cell i is in the middle of pixels
    i·stride … (i + 1)·stride - 1. Its field need not be: every strided layer and every finer map moves it, and without
    padding its middle is all there is. Every `rate`-th cell of a dilated map is one of the map without dilation, and is
    where that is.
    """
    pixels, stride = walk.image.size[axis.image or 0], axis.stride * rate
    tiles = abs(-(-axis.count(pixels) // rate) * stride - pixels) < stride and axis.image not in walk.held
    if not tiles or not (padded or axis.window_stride != axis.stride):
        return axis.local
    return axis.local.around((stride - 1) / 2)


def answers_by_field(walk: Walk, name: str, fact: Lifted) -> bool:
    """Is an answer about its receptive field, rather than about a window of the native size?"""
    return fact.is_dense or name in walk.by_field or name in walk.unpooled


def _output_layout(walk: Walk, name: str, fact: Lifted, form: str) -> str:
    """The axes of an output, such as ``NCHW``; empty if they are not batch, channels and cells."""
    words = set(form.split())
    if not words <= {"map", "cam", "argmax"} or any(a.image is None for a in fact.space):
        return ""
    names = AXES[len(sliding(fact))]
    letters = ["N", "C", *(names[a.image or 0] for a in fact.space)]
    if name in walk.formed and form == "map":  # on the axes of the original
        places = [k for place in fact.placed(fact.axes) for k in place]
        own = len(places) == fact.rank and len(set(places)) == fact.rank
        return "".join(letters[k] for k in places) if own else ""
    text = "".join(letters)
    return text.replace("C", "") if "argmax" in words else text


def _verb(nodes: Sequence[str], verb: str) -> str:
    return f"'{nodes[0]}' {verb}s" if len(nodes) == 1 else f"'{nodes[0]}' and {len(nodes) - 1} more {verb}"


def meetings(walk: Walk) -> Iterator[str]:
    """Branches that meet although the middles of their cells are apart, in sentences."""
    for slot in walk.slots:
        spaces = {id(fact.space) for fact in slot.operands if isinstance(fact, Lifted)}
        if len(spaces) < 2:  # one map, or maps with the same axes
            continue
        axes = {n: sliding(f) for n, f in zip(slot.node.inputs, slot.operands) if isinstance(f, Lifted)}
        for k in range(len(walk.image.size)):
            fields = {n: along[k].field for n, along in axes.items() if along[k].atoms}
            middles = _middles({n: field for n, field in fields.items() if field.is_local})
            if len(set(middles.values())) > 1:
                paths = " with ".join(f"'{n}', whose first cell is at pixel {m:g}" for n, m in middles.items())
                yield f"'{slot.name}' joins {paths}: branches that are not aligned."
                break


def _middles(fields: Mapping[str, Field]) -> dict[str, float]:
    """The pixels in the middle of the first cells of maps; empty if they have the same."""
    apart = len({field.start + field.end for field in fields.values()}) > 1
    return {name: float(field.centre) for name, field in fields.items()} if apart else {}
