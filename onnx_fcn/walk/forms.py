"""Other forms of the answers than the map, made from an output on its grid.

    cam         the answers of the cells of each window, which `walk.cam` made: here they only get their name
    reduce      the mean or the maximum of the map: the original's shape again, for images of any size
    full_size   the map at the resolution of the image, each answer in the middle of its window
    argmax      the best class instead of the scores
    keep_size   the original sizes of input and outputs, with convolutions in place of dense layers

Each takes a few nodes after the map, which stays in the graph under a name of its own, so that validation can check it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx

from onnx_fcn.errors import Diagnostic, OptionError, Unsupported, UnsupportedModel
from onnx_fcn.geometry import SIZE_NAMES, Field
from onnx_fcn.lifting.lifted import BATCH, Atom, Lifted, dims_of
from onnx_fcn.lifting.program import FormedOutput, Slot, Walk
from onnx_fcn.lifting.site import Site
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.fields import about_cells, answers_by_field

__all__ = ["FLOATS", "finish", "form"]


FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)

#: Types for which onnxruntime has an ArgMax.
COMPARED = FLOATS - {onnx.TensorProto.BFLOAT16} | {
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
}

#: Up to this many classes have numbers of one byte; more have 64 bits, as in ONNX.
BYTE = 256


def finish(walk: Walk, asked: Asked) -> None:
    """Bring all outputs of a finished walk into the requested form.

    Raises:
        UnsupportedModel: if an output cannot have that form.
        OptionError: if the network has no head, and so no answers.
    """
    replaced = asked.keep_size and any(c.kind == "dense" for slot in walk.slots for c in slot.changes)
    if asked.form != "map" and not walk.has_head and not replaced:
        raise OptionError(
            f"the network answers for each position already, without a head, so its maps cannot become '{asked.form}'"
        )
    form(walk, asked)


def form(walk: Walk, asked: Asked) -> None:
    """`finish`, for maps that are answers although the network has no dense layer.

    Raises:
        UnsupportedModel: if an output cannot have that form.
    """
    if asked.form == "map":
        return
    causes = []
    for slot in walk.epilogue:
        name = slot.node.outputs[0]
        if walk.results[name].is_dense and name not in walk.by_field and not asked.keep_size:
            continue  # it is no answer about a window
        site = Site(walk, len(walk.slots), slot)
        try:
            walk.formed[name] = _formed(walk, site, slot, name, asked)
        except Unsupported as refusal:
            causes.append(Diagnostic(refusal.code, name, "output", refusal.reason, refusal.hint))
    if causes:
        raise UnsupportedModel(causes)


def _formed(walk: Walk, site: Site, slot: Slot, name: str, asked: Asked) -> FormedOutput:
    x, original = walk.results[name], slot.operands[0]
    assert isinstance(original, Lifted)
    batch = _batch_axis(walk, original)
    if asked.keeps_shape:
        _check_rank(walk, name)
    if asked.keep_size:
        dense = walk.formed[name].tensor if name in walk.formed else x.map
        tensor = dense if x.is_dense else as_original(site, x, original, batch)
        return FormedOutput(tensor, _original_dims(original, batch), x.elem_type, asked.form)
    sizes = SIZE_NAMES[len(walk.image.space)]
    tensor, elem_type = x.map, x.elem_type
    dims: tuple[int | str | None, ...] = (None, x.width, *map(walk.cells, x.space))
    if (asked.reduce or asked.full_size) and elem_type not in FLOATS:
        raise Unsupported("is a map of integers, which cannot be averaged or interpolated", code="form")
    if asked.reduce:
        if any(a.count(n) > 1 for a in x.space for n in [walk.image.size[a.image or 0]]):
            raise Unsupported(
                "has several answers at the native size, where windows extend beyond the image: reduced, they differ "
                "from the original's",
                code="form",
                hint="leave --output-stride out" if walk.options.asked else "leave --reduce out",
            )
        tensor, dims = _reduced(site, x, asked.reduce), (None, x.width)
        if asked.argmax:
            tensor = site.squeeze(tensor, [2 + k for k in range(len(x.space))])
        else:
            tensor = as_original(site, x.on(tensor), original, batch)
            dims = _original_dims(original, batch)
    if asked.full_size:
        about = about_cells(walk, name, x.space, walk.upstream(name)) if answers_by_field(walk, name, x) else None
        tensor = _enlarged(walk, site, x, about)
        dims = (None, x.width, *(n if k in walk.held else sizes[k] for k, n in enumerate(walk.image.size)))
    if asked.argmax:
        if elem_type not in COMPARED:
            raise Unsupported("is a map of a type for which onnxruntime has no ArgMax", code="form")
        if sum(any(a in original.channels for a in group) for group in original.layout) > 1:
            numbers = dims_of(size for k, size in enumerate(original.shape) if k != batch and size > 1)
            raise Unsupported(
                f"has {numbers} numbers for each window, so there is no best class",
                code="form",
                hint="leave --argmax out",
            )
        if x.width == 1:
            hint = "--outputs chooses others" if len(walk.outputs) > 1 else "leave --argmax out"
            raise Unsupported("has one channel, so there is no best class", code="form", hint=hint)
        tensor = site.emit([tensor], "ArgMax", axis=1, keepdims=0)
        elem_type = onnx.TensorProto.INT64
        if x.width <= BYTE:
            elem_type = onnx.TensorProto.UINT8
            tensor = site.emit([tensor], "Cast", to=elem_type)
        dims = (None, *dims[2:])
    return FormedOutput(tensor, dims, elem_type, asked.form)


def as_original(site: Site, x: Lifted, original: Lifted, batch: int | None) -> str:
    """One answer for each image, (N, C, 1, …) or (N, C), in the shape of the original, with the batch on that axis.

    Raises:
        Unsupported: if the original has the batch on an axis with something else.
    """
    sizes = [Atom.product(group) for k, group in enumerate(original.layout) if k != batch]
    if original.batch.size > 1 and batch is None:
        raise Unsupported("has the batch on an axis with something else", code="form")
    if batch is None:  # no axis of its own
        return site.emit([x.map, np.array(sizes, np.int64)], "Reshape")
    name = site.emit([x.map, np.array([0, *sizes], np.int64)], "Reshape")
    perm = [k + 1 if k < (batch or 0) else k for k in range(len(sizes) + 1)]
    perm[batch or 0] = 0
    return name if not batch else site.emit([name], "Transpose", perm=perm)


def _check_rank(walk: Walk, name: str) -> None:
    """Raises Unsupported if an answer of the original has another rank for one image than for several."""
    if walk.batch != BATCH:
        return
    made = {output: slot for slot in walk.slots for output in slot.node.outputs}
    wanted, seen = [name], {name}
    while wanted:
        slot = made.get(wanted.pop())
        if slot is None or slot.node.op in ("Flatten", "Reshape"):
            continue  # they say how many axes there are
        x, axes = (*slot.operands, None, None)[:2]
        everything = slot.node.op == "Squeeze" and axes is None and "axes" not in slot.node.attrs
        if everything and isinstance(x, Lifted) and (x.batch,) in x.layout:
            raise Unsupported(
                f"has another rank for one image than for several, as Squeeze '{slot.name}' without axes removes a "
                "batch of one too",
                code="form",
                hint="give that node the axes that it removes",
            )
        wanted += [n for n in slot.node.inputs if n not in seen]
        seen |= set(slot.node.inputs)


def _original_dims(original: Lifted, batch: int | None) -> tuple[int | str | None, ...]:
    """The shape of the original; None for the batch."""
    return tuple(None if k == batch else Atom.product(group) for k, group in enumerate(original.layout))


def _batch_axis(walk: Walk, original: Lifted) -> int | None:
    """The axis of the original's answers that is the batch, or None.

    A batch of one image has no factor of its own: where the first axis is of size 1, that is where more would go.
    """
    if original.batch.size > 1:
        return next((k for k, group in enumerate(original.layout) if group == (original.batch,)), None)
    return 0 if walk.image.batch is not None and original.layout[:1] == ((),) else None


def _reduced(site: Site, x: Lifted, kind: str) -> str:
    """(N, C, *grid) → (N, C, 1, …)."""
    return site.reduce(x.map, {"mean": "ReduceMean", "max": "ReduceMax"}[kind], [2 + k for k in range(len(x.space))])


def _enlarged(walk: Walk, site: Site, x: Lifted, about: Sequence[Field] | None) -> str:
    """(N, C, *grid) → (N, C, *image): linear between the middles of windows, constant beyond the outermost ones.

    `about`: the pixels that an answer is about along each axis, if not a window of the native size.
    """
    site.check_interpolates()
    if any(a.stride.denominator != 1 for a in x.space):
        raise Unsupported(
            "has answers a fraction of a pixel apart, so they are not in the middle of pixels", code="form"
        )
    windows = [walk.image.size[a.image or 0] for a in x.space] if about is None else [_window(f) for f in about]
    strides = [int(a.stride) for a in x.space]
    centred = all((w - s) % 2 == 0 for w, s in zip(windows, strides))
    plans = [_centred(w, s) if centred else _asymmetric(w, s) for w, s in zip(windows, strides)]
    name, rank = x.map, len(x.space)
    casts = x.elem_type != onnx.TensorProto.FLOAT  # the only floats that onnxruntime interpolates
    if casts:
        name = site.emit([name], "Cast", to=onnx.TensorProto.FLOAT)
    flat = rank == 1  # onnxruntime interpolates two axes or three
    if flat:
        name = site.unsqueeze(name, [2])
    scales = np.array([1.0, 1.0, *[1.0] * flat, *(float(factor) for factor, _, _ in plans)], np.float32)
    mode = "half_pixel" if centred else "asymmetric"
    name = site.resize(name, scales, "Resize", mode="linear", coordinate_transformation_mode=mode)
    if flat:
        name = site.squeeze(name, [2])
    fronts = [max(front, 0) for _, front, _ in plans]
    starts, steps = [max(-front, 0) for _, front, _ in plans], [step for _, _, step in plans]
    ends = site.emit([walk.image.name], "Shape")
    ends = site.emit([ends, np.array(walk.image.space, np.int64)], "Gather", axis=0)
    if max(steps) > 1:
        ends = site.emit([ends, np.array(steps, np.int64)], "Mul")
    if any(starts):
        ends = site.emit([ends, np.array(starts, np.int64)], "Add")
    have = site.emit([site.emit([name], "Shape"), np.arange(2, 2 + rank)], "Gather", axis=0)
    rest = site.emit([ends, site.emit([have, np.array(fronts, np.int64)], "Add")], "Sub")
    is_left = site.emit([rest, np.array(0, np.int64)], "Greater")
    rest = site.emit([is_left, rest, np.array(0, np.int64)], "Where")  # a Max takes no integers before opset 12
    amounts = site.emit([np.array([0, 0, *fronts, 0, 0], np.int64), rest], "Concat", axis=0)
    name = site.emit([name, amounts], "Pad", mode="edge")
    axes = np.arange(2, 2 + rank)
    name = site.emit([name, np.array(starts, np.int64), ends, axes, np.array(steps, np.int64)], "Slice")
    return site.emit([name], "Cast", to=x.elem_type) if casts else name


def _window(about: Field) -> int:
    """The size of a window that begins at pixel 0 and has the middle of cell 0 in its middle."""
    window = 2 * Fraction(about.centre) + 1
    if window.denominator != 1:
        raise Unsupported("has answers whose middles are not in the middle of pixels or between them", code="form")
    return int(window)


def _centred(window: int, stride: int) -> tuple[int, int, int]:
    """(interpolation factor, number of samples between pixel 0 and the first sample, samples from pixel to pixel).

    Cell i belongs to pixel i·stride + (window - 1)/2, the middle of its window. By the half_pixel rule of Resize it is
    the middle of samples i·stride … (i + 1)·stride - 1, so window - stride has to be even.
    """
    return stride, (window - stride) // 2, 1


def _asymmetric(window: int, stride: int) -> tuple[int, int, int]:
    """The same by the asymmetric rule of Resize, by which cell i is sample i·stride.

    The middle of an even window is between two pixels: then there are two samples per pixel, and every other is used.
    """
    return (stride, (window - 1) // 2, 1) if window % 2 else (2 * stride, window - 1, 2)
