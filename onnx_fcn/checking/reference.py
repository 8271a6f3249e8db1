"""The feature map that the head's windows are cut from, on an image of another size.

The reference is the original's trunk, if it means the same at that size. It does not if the native size is built into
it, or if it reads the size of the map at run time where that of a window is meant. These cases are handled:

    a pooling of the whole map, with the map's size as its kernel    its global form
    a size that is used as a number, such as a divisor               that of a window
    context that is computed in another way                          its value in the converted model
    pads, and coordinates of a Resize, that depend on the size       only at sizes that pad and resize alike
    the literal sizes of a Resize that is context                    those of the larger image

The rest of the trunk stays the original. If it still does not run, for instance because a Reshape names the map's size,
the converted trunk takes its place. Then only what does not depend on the size is compared with the original: the
cells of its maps that no padding reaches, on crops (`interior`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from onnx_fcn._types import Array
from onnx_fcn.checking.cases import periods_of
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.errors import ModelError
from onnx_fcn.lifting.constants import for_one_image
from onnx_fcn.lifting.facts import Known, Unmapped, Whole
from onnx_fcn.lifting.lifted import Atom, Lifted
from onnx_fcn.lifting.program import Slot, Walk
from onnx_fcn.lifting.windows import as_physical, whole_map
from onnx_fcn.model.agreement import difference
from onnx_fcn.model.operators import GLOBAL, SHAPED_BY_VALUES
from onnx_fcn.model.sessions import extract, session
from onnx_fcn.walk.cut import Cut, cuts_of

__all__ = [
    "attended_map",
    "crop_difference",
    "fits",
    "interior",
    "interior_map",
    "reference_map",
    "trunk_of",
]


#: Attributes that a pooling keeps when it becomes global.
KEPT = frozenset({"channels_last", "p"})


def reference_map(c: Comparison, cut: Cut, feeds: Mapping[str, Array]) -> Array | None:
    """The cut's map of an image (N, C, *space) from the original's trunk; None if the trunk means another map there."""
    image = c.walk.image
    size = [feeds[image.name].shape[k] for k in image.space]
    if cut.name == image.name:
        return as_physical(cut.fact, feeds[image.name])
    if not fits(c.walk, cut, size):
        return None
    context = _context_tensors(c.walk, cut)
    fed_or_not = ([], context) if context else ([],)
    for trunk, fed in ((trunk, fed) for trunk in _trunks(c, cut, feeds[image.name]) for fed in fed_or_not):
        try:
            values = _converted_values(c, fed, feeds)
            part = extract(trunk, [*c.inputs, *fed], [cut.name], {n: v.dtype for n, v in values.items()})
            seen = session(c.original, part)({**feeds, **values})[0]
        except ModelError:
            continue  # the size is built into it
        cells = tuple(a.extent if a.image is None else a.count(size[a.image]) for a in cut.fact.space)
        if (physical := whole_map(cut.fact, seen, cells)) is not None:
            return physical
    return None


def _trunks(c: Comparison, cut: Cut, image: Array) -> Iterator[ModelProto]:
    """The original's trunk as it may mean the same on an image of another size, the most faithful first.

    With attention, these are its own nodes, whatever they compute from the size of a map; and the same with numbers of
    positions that stand in the shapes of Reshapes and Expands replaced by those of this image, or left out where a
    value is only repeated for all positions.
    """
    if not c.walk.attention & c.walk.upstream(cut.name):
        yield trunk_of(c, cut)
        if _resized_context(c.walk, cut):
            trunk = trunk_of(c, cut)
            _set_sizes(c.walk, trunk, image)
            yield trunk
        return
    yield trunk_of(c, cut, freezes=False)
    trunk = trunk_of(c, cut, freezes=False)
    for node in trunk.graph.node:
        k = c.walk.makers.get(node.output[0])
        fact = c.walk.facts.get(node.output[0])
        shaped = node.op_type in ("Reshape", "Expand") and len(node.input) == 2 and k is not None
        if shaped and isinstance(fact, Unmapped) and fact.spread == node.input[0]:  # what reads it repeats it as well
            node.op_type = "Identity"
            del node.input[1:]
        elif shaped and isinstance(fact, Lifted | Whole):
            _give(trunk, node, 1, _shape_at(c.walk, fact, image))
    yield trunk


def _give(trunk: ModelProto, node: onnx.NodeProto, place: int, sizes: Sequence[int]) -> None:
    """Give a node of a trunk these sizes as an operand."""
    node.input[place] = f"{node.output[0]}/sizes"
    trunk.graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, np.int64), node.input[place]))


def _resized_context(walk: Walk, cut: Cut) -> bool:
    """Is a map of the trunk resized to the size of an earlier one, whatever that is?"""
    return any(walk.slots[k].node.op == "Resize" for k in walk.context & walk.upstream(cut.name))


def _set_sizes(walk: Walk, trunk: ModelProto, image: Array) -> None:
    """Replace the sizes that a trunk resizes maps to, which may be literal, by those for an image of any size."""
    for node in trunk.graph.node:
        fact = walk.facts.get(node.output[0])
        if node.op_type == "Resize" and len(node.input) == 4 and isinstance(fact, Lifted):
            shape = _shape_at(walk, fact, image)
            axes = next((a.ints for a in node.attribute if a.name == "axes"), range(len(shape)))
            _give(trunk, node, 3, [shape[axis] for axis in axes])


def _shape_at(walk: Walk, fact: Lifted | Whole, image: Array) -> list[int]:
    """The shape of a tensor of the original for an image of any size."""
    sizes = {} if walk.image.batch is None else {fact.batch: image.shape[walk.image.batch]}
    axes = fact.space if isinstance(fact, Lifted) else [e.axis for e in fact.extents.values() if e.axis is not None]
    for axis in axes:
        if axis.image is not None and axis.atoms:  # the outermost factor grows
            cells = axis.count(image.shape[walk.image.space[axis.image]])
            sizes[axis.atoms[0]] = cells // Atom.product(axis.atoms[1:])
    return [math.prod(sizes.get(a, a.size) for a in group) for group in fact.layout]


def trunk_of(c: Comparison, cut: Cut, *, freezes: bool = True) -> ModelProto:
    """The original's trunk, with what is built in for the native size rewritten to mean the same at any size.

    `freezes`: sizes that are used as numbers are those of a window.
    """
    walk, part = c.walk, extract(c.original.proto, list(c.inputs), [cut.name])
    slots = {slot.node.outputs[0]: k for k, slot in enumerate(walk.slots) if slot.node.outputs}
    frozen: dict[str, Array] = {}
    for node in part.graph.node:
        k = slots.get(node.output[0])
        if k is None:
            continue
        if k in walk.context and node.op_type in GLOBAL:
            node.op_type = GLOBAL[node.op_type]
            kept = [a for a in node.attribute if a.name in KEPT]
            del node.attribute[:]
            node.attribute.extend(kept)
        for place, name in _size_operands(walk, walk.slots[k]) if freezes else ():
            node.input[place] = f"{name}/of a window"
            frozen[node.input[place]] = for_one_image(walk.values[name])
    part.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in frozen.items())
    return part


def _size_operands(walk: Walk, slot: Slot) -> list[tuple[int, str]]:
    """(index, name) of the operands that are computed from a map's size and used as numbers together with a map."""
    facts = [walk.facts.get(name) for name in slot.node.inputs]
    frozen = slot.replaced or any(isinstance(f, Lifted) for f in facts)
    if slot.node.op in SHAPED_BY_VALUES or not frozen:
        return []
    return [(k, f.name) for k, f in enumerate(facts) if isinstance(f, Known) and f.sized]


def _context_tensors(walk: Walk, cut: Cut) -> list[str]:
    """Tensors of the trunk that are reduced from the whole map and are the same at all positions."""
    slots = [walk.slots[k] for k in sorted(walk.context & walk.upstream(cut.name))]
    names = [o for slot in slots for o in slot.node.outputs if o]
    return [n for n in names if isinstance(walk.facts.get(n), Unmapped)]


def _converted_values(c: Comparison, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The values of context tensors in the converted model."""
    if not names:
        return {}
    facts = [c.walk.facts[n] for n in names]
    tensors = [f.name for f in facts if isinstance(f, Unmapped)]
    part = extract(c.lifted.proto, list(c.inputs), tensors)
    return dict(zip(names, session(c.lifted, part)(feeds)))


def fits(walk: Walk, cut: Cut, size: Sequence[int]) -> bool:
    """Does the original's trunk pad and resample an image of this size like one of the native size?"""
    if not any(_reads_size(walk, walk.slots[k]) for k in walk.upstream(cut.name)):
        return True
    periods = periods_of(cut)
    return all((n - m) % periods.get(k, 1) == 0 for k, (n, m) in enumerate(zip(size, walk.image.size)))


def _reads_size(walk: Walk, slot: Slot) -> bool:
    """Does an operator pad or resample by the size of the map?

    `auto_pad` does; some exporters spell it out with Shape and Pad. A Resize with computed sizes has another scale if
    they were rounded, and `half_pixel_symmetric` shifts by what was cut off.
    """
    if slot.node.op in ("Pad", "Resize", "Upsample"):
        if slot.node.attrs.get("coordinate_transformation_mode") == "half_pixel_symmetric":
            return True
        return any(isinstance(f, Known) and f.sized for f in map(walk.facts.get, slot.node.inputs))
    return any(a.name == "auto_pad" and a.s.startswith(b"SAME") for a in slot.node.proto.attribute)


def attended_map(walk: Walk, cut: Cut) -> Cut | None:
    """The last map up to the cut without dilation that all attention before the cut contributes to."""
    trunk = walk.upstream(cut.name)
    attention, made = walk.attention & trunk, {o for k in trunk for o in walk.slots[k].node.outputs}
    if not attention:
        return None
    maps = (m for m in cuts_of(walk) if m.name in made and attention <= walk.upstream(m.name))
    return next((m for m in maps if all(a.rate == 1 for a in m.fact.space)), cut)


def interior_map(walk: Walk, cut: Cut) -> Cut | None:
    """The last map up to the cut that has cells without padding in their field, on an image of the native size."""
    trunk = walk.upstream(cut.name)
    made = {o for k in trunk for o in walk.slots[k].node.outputs}
    maps = (m for m in cuts_of(walk) if m.name in made)
    return next((m for m in maps if _has_interior(m.fact, walk.image.size)), None)


def _has_interior(fact: Lifted, size: Sequence[int]) -> bool:
    """`interior(fact, size).any()`, for windows of any size."""
    for axis in fact.space:
        if not axis.field.is_local:
            return False
        if axis.image is not None:
            first = -(-axis.inner.front // axis.rate)
            if first >= axis.window or first * axis.rate >= axis.inner.behind(size[axis.image]):
                return False
    return True


def crop_difference(
    fact: Lifted, found: Array, offsets: Mapping[int | None, int], want: Array | None, inside: Array
) -> float:
    """How far cells of a map (N, C, *space) are from those of a crop of the image.

    Args:
        fact: the map.
        found: its values.
        offsets: the pixel along each axis of the image at which the crop begins.
        want: the map of the crop, one window; None if it has another shape.
        inside: the cells of the window that count (`interior`).
    """
    starts = [int(offsets.get(a.image, 0) / a.stride) for a in fact.space]
    slices: list[Any] = [slice(s, s + a.extent, a.rate) for s, a in zip(starts, fact.space)]
    have = found[(..., *slices)]
    if want is None or have.shape != want.shape:
        return math.inf
    have, want = (m.transpose(*range(2, m.ndim), 0, 1)[inside] for m in (have, want))
    return difference(have, want)


def interior(fact: Lifted, size: Sequence[int], phase: Sequence[int] = (), cells: Sequence[int] = ()) -> Array:
    """A boolean map of the cells whose field contains no padding, on an image of this `size`.

    Args:
        fact: the map.
        size: pixels of the image along each axis.
        phase: of a dilated map, the phase whose cells are meant; the image begins this many cells later.
        cells: the shape of the result; that of a window by default.
    """
    phase, cells = phase or [0] * len(fact.space), cells or [a.window for a in fact.space]
    inside = np.ones(tuple(cells), bool)
    for k, (axis, p, count) in enumerate(zip(fact.space, phase, cells)):
        if not axis.field.is_local:
            return np.zeros_like(inside)
        if axis.image is None:
            continue
        at, behind = axis.rate * np.arange(count), axis.inner.behind(size[axis.image] - int(p * axis.stride))
        seen = (at >= axis.inner.front) & (at < behind)
        inside &= seen.reshape([-1 if j == k else 1 for j in range(len(cells))])
    return inside
