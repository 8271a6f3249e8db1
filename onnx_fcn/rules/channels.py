"""Operators that join, cut and select along one axis: along channels by index, along the image by position."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.dilation import split_stride
from onnx_fcn.lifting.emitter import END
from onnx_fcn.lifting.facts import Fact
from onnx_fcn.lifting.layouts import arrange, as_channels, grouped, padding_refusal
from onnx_fcn.lifting.lifted import Atom, Lifted, atoms_of, dim_of
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.rules.broadcasting import align

#: The hint for models that look up a table, such as a word embedding.
LOOKED_UP = "export the part after the table, with the looked-up values as its input"


@lifts("Concat")
def concat(site: Site, *operands: Fact) -> Lifted:
    """Concatenation along channels at every position; the other axes agree."""
    return concatenated(site, operands, lambda parts: site.emit(parts, axis=1))


def concatenated(site: Site, operands: Sequence[Fact], emit: Callable[[list[Lifted]], str]) -> Lifted:
    """Join operands along the node's axis; `emit` joins maps along their channels."""
    first = next(f for f in operands if isinstance(f, Lifted))
    axis = first.axis(int(site.attr("axis")))
    maps = align(site, operands, axis)
    total = sum(f.shape[axis] for f in maps)
    joined = atoms_of(total, "c")
    others = [a for a in maps[0].channels if a not in maps[0].layout[axis]]
    parts = [arrange(site, f, [*f.layout[axis], *others]) for f in maps]
    y = emit(parts)
    layout = tuple(joined if k == axis else g for k, g in enumerate(maps[0].layout))
    return replace(
        maps[0],
        map=y,
        channels=(*joined, *others),
        layout=layout,
        origins=frozenset().union(*(f.origins for f in maps)),
        unfolded=next((f.unfolded for f in maps if f.unfolded is not None), None),
    ).canonical()


def choose(site: Site, x: Lifted, axis: int, index: Array) -> Lifted:
    """Select channels of one axis by a constant index, with a Slice or a Gather(axis=1)."""
    group = x.layout[axis]
    others = [a for a in x.channels if a not in group]
    x = arrange(site, x, [*group, *others])
    new, inner = atoms_of(len(index), "c"), Atom.product(others)
    layout = tuple(new if k == axis else g for k, g in enumerate(x.layout))
    if len(index) == x.shape[axis] and np.array_equal(index, np.arange(len(index))):
        return x
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    even = len(index) > 0 and step > 0 and np.array_equal(index, index[0] + step * np.arange(len(index)))
    if even and (step == 1 or (inner == 1 and site.slices_by_steps)):
        y = site.slice(x.map, [int(index[0]) * inner], [(int(index[-1]) + 1) * inner], [1], [step])
    else:
        flat = (index[:, None] * inner + np.arange(inner)).reshape(-1).astype(np.int64)
        y = site.emit([x, flat], "Gather", axis=1)
    return replace(x, map=y, channels=(*new, *others), layout=layout).canonical()


def take(site: Site, x: Lifted, axis: int, index: Array, behind: int | None = None) -> Lifted:
    """Select elements of any axis of the original tensor by a constant index.

    Args:
        x: the map.
        axis: the axis of the original tensor.
        index: the elements.
        behind: how many elements at the end of the axis are left out, whatever its size, by an increasing index. By
            default all behind the last one that is selected.

    Raises:
        Unsupported: if the axis is the batch, or the index is empty.
    """
    if x.batch in x.layout[axis]:
        raise Unsupported("selects images of the batch", code="batch")
    if not len(index):
        raise Unsupported(f"selects no element along axis {axis} of {x}", code="empty")
    k = x.space_of(x.layout[axis])
    if k is not None:
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        if step > 0 and np.array_equal(index, index[0] + step * np.arange(len(index))):
            return _crop(site, x, axis, k, index, step, behind)
    x, _ = as_channels(site, x, [axis])
    return choose(site, x, axis, index)


def _crop(site: Site, x: Lifted, axis: int, k: int, index: Array, step: int, behind: int | None) -> Lifted:
    """Select every `step`-th cell of the window along an axis of the image, from the first index on.

    A selection of several cells slides; a single cell contracts the window.
    """
    space, first, count = x.space[k], int(index[0]), len(index)
    rest = space.window - 1 - int(index[-1])
    stride, rate = split_stride(site, space, step)
    # The cells behind the last one of the window may be those of a larger image. Of outputs that share a grid, each has
    # an answer for each window: then these cells belong to the next one.
    if behind is not None and count > 1 and (rate == 1 or site.is_stride_requested):
        rest = behind
    starts, ends = [first * space.rate], [-rest * space.rate if rest else END]
    if count == 1:
        name = site.slice(x.map, starts, ends, [2 + k], [space.step])
        made, origins = space.contracted(first, first), site.record_reduction(x, contextable=False)
    else:
        name = site.slice(x.map, starts, ends, [2 + k], [stride])
        ends_off = (-first * space.rate, -rest * space.rate)
        made = space.slid(count, x.layout[axis][0].name, 1, stride, pads=ends_off, rate=rate)
        origins = x.origins
        site.note_sliding(pads=False, strides=stride > 1 and space.slides)
    if x.padding is not None and count == 1:
        raise padding_refusal(site, x)
    return replace(
        x,
        map=name,
        space=tuple(made if j == k else a for j, a in enumerate(x.space)),
        layout=tuple(made.atoms if j == axis else g for j, g in enumerate(x.layout)),
        origins=origins,
    )


@lifts("Slice")
def slice_(site: Site, x: Fact, *operands: Fact) -> Lifted:
    """A range of each axis."""
    if not isinstance(x, Lifted):
        raise Unsupported("slices a constant at indices that depend on the image", code="not-constant")
    given = (
        [site.ints(f) for f in operands] if operands else [site.attr("starts"), site.attr("ends"), site.attr("axes")]
    )
    starts, ends, axes, steps = [*given, None, None, None][:4]
    if starts is None or ends is None:
        raise Unsupported("lacks its starts or its ends", code="operands")
    for k, (start, end) in enumerate(zip(starts, ends)):
        axis = x.axis(axes[k] if axes else k)
        size = x.shape[axis]
        step = (steps or [1] * len(starts))[k]
        index = np.arange(size)[slice(start, _end(end, size, step), step)]
        if len(index) == size and (size < 2 or index[0] < index[1]):
            continue
        behind = max(0, size - end) if end >= 0 else min(size, -end)
        x = take(site, x, axis, index, behind)
    return x


def _end(end: int, size: int, step: int) -> int | None:
    """An ONNX end as a Python end: with a negative step, any end before the first element includes that element."""
    return None if step < 0 and end < -size else end


@lifts("CumSum")
def cumulated(site: Site, x: Lifted, axis: Fact) -> Lifted:
    """Cumulative sums along one axis."""
    x, atoms = as_channels(site, x, [x.axis((site.ints(axis) or [0])[0])])
    return grouped(site, x, atoms, lambda t, k: site.emit([t, np.array(k, np.int64)]))


@lifts("Split")
def split(site: Site, x: Lifted, sizes: Fact | None = None) -> Sequence[Fact]:
    """Consecutive parts of one axis."""
    axis = x.axis(int(site.attr("axis", 0)))
    parts, total = site.ints(sizes) if sizes is not None else site.attr("split"), x.shape[axis]
    if not parts:
        count = len(site.outputs)
        each = -(-total // count)
        parts = [each] * (total // each) + ([total % each] if total % each else [])
    if sum(parts) != total or len(parts) < len(site.outputs):
        raise Unsupported(
            f"splits the {dim_of(total)} values of axis {axis} of {x} into {' + '.join(map(dim_of, parts))}",
            code="split",
        )
    starts = np.cumsum([0, *parts])
    return [take(site, x, axis, np.arange(a, b)) for a, b in itertools.pairwise(starts)]


@lifts("GatherND")
def gather_nd(site: Site, x: Fact, index: Fact) -> Lifted:
    """Elements by constant tuples of indices into the leading axes: a Gather along these axes merged into one."""
    if not isinstance(x, Lifted):
        raise Unsupported("looks up a table by values of the image", code="lookup", hint=LOOKED_UP)
    chosen = site.value(index)
    depth = chosen.shape[-1]
    if site.attr("batch_dims", 0):
        raise Unsupported("uses different indices for each image of the batch", code="batch")
    leading = x.shape[:depth]
    flat = np.ravel_multi_index(tuple(np.moveaxis(chosen, -1, 0)), leading, mode="wrap").reshape(-1)
    seen = replace(x, layout=(tuple(a for g in x.layout[:depth] for a in g), *x.layout[depth:]))
    y = take(site, seen, 0, flat)
    return y.reshaped([*chosen.shape[:-1], *x.shape[depth:]])


@lifts("Gather")
def gather(site: Site, x: Fact, index: Fact) -> Lifted:
    """Elements of one axis by a constant index of any shape; the index's axes replace the axis."""
    if not isinstance(x, Lifted):
        raise Unsupported("looks up a table by values of the image", code="lookup", hint=LOOKED_UP)
    axis, chosen = x.axis(int(site.attr("axis", 0))), site.value(index)
    size = x.shape[axis]
    flat = np.where(chosen < 0, chosen + size, chosen).reshape(-1)
    y = take(site, x, axis, flat)
    return y.reshaped([*y.shape[:axis], *chosen.shape, *y.shape[axis + 1 :]])
