"""Reductions: over the window they become poolings of the map, over channels they stay, over both they are split.

A reduction over the whole window is also how squeeze-and-excite begins. It is lifted first. If its value later meets a
live map, the walk returns to it and treats it as context: it stays global (see `walk.interpret`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.context import pooled_globally
from onnx_fcn.lifting.dilation import undilate
from onnx_fcn.lifting.facts import Fact, Unmapped
from onnx_fcn.lifting.layouts import (
    CONVOLVED,
    arrange,
    as_channels,
    as_feature_map,
    grouped,
    grouped_many,
    padding_refusal,
    pool_window,
    spatial_axes,
    unfold,
)
from onnx_fcn.lifting.lifted import Atom, Lifted, atoms_of
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site

#: Reductions as (operators on each element, the pooling, operators on the result).
FORMS: dict[str, tuple[Sequence[str], str, Sequence[str]]] = {
    "ReduceMean": ((), "mean", ()),
    "ReduceSum": ((), "sum", ()),
    "ReduceMax": ((), "max", ()),
    "ReduceMin": (("Neg",), "max", ("Neg",)),
    "ReduceL1": (("Abs",), "sum", ()),
    "ReduceL2": (("Square",), "sum", ("Sqrt",)),
    "ReduceSumSquare": (("Square",), "sum", ()),
}

#: Types whose windows are pooled; onnxruntime reduces integers, but does not pool them.
POOLED = CONVOLVED | {onnx.TensorProto.DOUBLE}


@lifts("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(site: Site, x: Lifted) -> Fact:
    """(N, C, *space) -> (N, C, 1, …): a pooling whose kernel is the window."""
    kinds = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
    if site.op == "GlobalLpPool" and site.attr("p", 2) not in (1, 2):
        raise Unsupported("has a p other than 1 and 2", code="lp")
    kind = kinds.get(site.op, "ReduceL1" if site.attr("p", 2) == 1 else "ReduceL2")
    return reduced(site, x, kind, range(2, x.rank), keepdims=True)


@lifts(*FORMS, "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def reduce(site: Site, x: Lifted, axes: Fact | None = None) -> Fact:
    """A reduction over some axes of the original tensor, by default all."""
    which = site.axes(axes)
    if not which:
        if site.attr("noop_with_empty_axes", 0):
            return x
        which = list(range(x.rank))
    return reduced(site, x, site.op, [x.axis(a) for a in which], axes, keepdims=site.flag("keepdims", 1))


def reduced(
    site: Site, x: Lifted, kind: str, axes: Sequence[int] | range, operand: Fact | None = None, *, keepdims: bool
) -> Fact:
    """A reduction over some axes of the original tensor.

    Raises:
        Unsupported: if it reduces over the batch, or over a part of an axis of the image.
    """
    atoms = {a for k in axes for a in x.layout[k]}
    if x.batch in atoms:
        raise Unsupported(f"reduces over the batch: axes {list(axes)} of {x}", code="batch")
    over = [k for k, a in enumerate(x.space) if a.atoms and set(a.atoms) <= atoms]
    if any(a in atoms for k, axis in enumerate(x.space) if k not in over for a in axis.atoms):
        raise Unsupported(f"reduces over a part of an axis of the image: {x}", code="reduce-partial-window")
    left = [x.layout[k] for k in range(x.rank) if k not in axes]
    steps = _steps(site, x)
    if steps or x.covers_positions(axes):  # then no axis of size 1 is one of the image
        left = [g for g in left if g]
    contextable = len(over) == sum(bool(a.atoms) for a in x.space) > 0 and _leaves_a_vector(x, left)
    if contextable and site.is_context:
        return _global(site, x, kind, axes, operand, steps, keepdims=keepdims)
    first = steps[0].before if contextable and steps else x
    origins = site.record_reduction(first, contextable=contextable) if over else x.origins
    if x.padding is not None and over:
        raise padding_refusal(site, x)
    channels = tuple(a for a in x.channels if a in atoms)
    if over and not site.is_left_out:
        site.note("window", x, x.kernel(over)[0])
    y = _over(site, x, kind, over, channels)
    layout = tuple(() if k in axes else g for k, g in enumerate(y.layout) if keepdims or k not in axes)
    return replace(y, layout=layout, origins=origins)


def _leaves_a_vector(x: Lifted, left: Sequence[tuple[Atom, ...]]) -> bool:
    """Are the axes that a reduction leaves those of the batch, and all or none of the channels, side by side?

    No other axis may be left: one of a single cell has more cells on a larger image.
    """
    kept = [a for g in left for a in g if a in x.channels]
    others = [g for g in left if not g or not set(g) <= set(x.channels)]
    if not all(g in ((), (x.batch,)) for g in others) or len(others) > (1 if x.channels else 2):
        return False
    places = _places(x, left)
    return len(kept) in (0, len(x.channels)) and len(places) == len(set(places))


def _places(x: Lifted, groups: Sequence[tuple[Atom, ...]]) -> list[int]:
    """The axes of the map, 0 the batch and 1 the channels, that these groups run along one after the other."""
    return [k for k, _ in itertools.groupby(x.place(g[0]) for g in groups if g)]


@dataclass(frozen=True)
class Step:
    """An earlier reduction of the same map along other axes: of `x.mean(3).mean(2)` the first.

    Attributes:
        kind: its operator.
        axes: the axes of the map that it reduced.
        before: the map.
    """

    kind: str
    axes: tuple[int, ...]
    before: Lifted


def _steps(site: Site, x: Lifted) -> list[Step]:
    """The reductions along axes of the image, one after the other, whose result x is."""
    for op, before, result in filter(None, map(site.step_at, sorted(x.origins))):
        if op.startswith("Reduce") and result == x.map and before.channels == x.channels:
            axes = tuple(2 + k for k, (a, b) in enumerate(zip(before.space, x.space)) if a.atoms and not b.atoms)
            return [*_steps(site, before), Step(op, axes, before)]
    return []


def _global(
    site: Site,
    x: Lifted,
    kind: str,
    axes: Sequence[int] | range,
    operand: Fact | None,
    steps: Sequence[Step],
    *,
    keepdims: bool,
) -> Fact:
    """The unchanged reduction over the whole map, of any size: context. Earlier steps are made again, globally."""
    whole_map = steps[0].before if steps else x
    site.note_context(whole_map)
    name = undilate(site, whole_map).map
    for step in steps:
        name = site.reduce(name, step.kind, step.axes)
    x = x.on(name) if steps else undilate(site, x)
    if site.op.startswith("Global") and x.is_map and not steps:
        x, _order = spatial_axes(site, as_feature_map(site, x))
        return pooled_globally(site, x)
    if site.op.startswith("Reduce") and list(x.layout) == x.axes and not steps:  # channels first: it stays unchanged
        return Unmapped(site.emit([x] if operand is None else [x, operand]))
    reduced_atoms = {a for k in axes for a in x.layout[k]}
    channels = [1] if x.channels and reduced_atoms.issuperset(x.channels) else []
    physical = [*channels, *range(2, 2 + len(x.space))]
    name = site.reduce_as(x.map, physical) if site.op.startswith("Reduce") else site.reduce(x.map, kind, physical)
    # (N, C | 1, 1 …) has no positions, so reordering its axes costs no more than copying a vector
    rank = 2 + len(x.space)
    groups = [x.layout[k] if k not in axes else () for k in range(x.rank) if keepdims or k not in axes]
    if not channels:
        name = arrange(site, x.on(name), x.channels_in_order).map
    used = _places(x, groups)
    perm = [*used, *(k for k in range(rank) if k not in used)]
    if perm != list(range(rank)):
        name = site.emit([name], "Transpose", perm=perm)
    target = [1 if not g else -1 if x.batch in g else Atom.product(g) for g in groups]
    return Unmapped(site.emit([name, np.array(target, np.int64)], "Reshape"))


def _over(site: Site, x: Lifted, kind: str, over: Sequence[int], channels: Sequence[Atom]) -> Lifted:
    """Reduce over whole windows and over channel atoms; the caller sets the layout.

    A pooling that is left out keeps the cells of the window along the axes of the image.
    """
    if kind not in FORMS or x.elem_type not in POOLED:
        channels = [*channels, *(a for k in over for a in x.space[k].atoms)]
        return grouped(site, unfold(site, x, over), channels, lambda t, axis: site.reduce(t, kind, [axis]), ())
    before, pooling, after = FORMS[kind]
    name = _chain(site, x.map, before)
    apart = {k for k in over if site.is_left_out and x.space[k].image is not None}
    if over:
        name = _pooled(site, x, name, over, [k for k in over if k not in apart], pooling)
    made = {k: x.space[k].unpooled() if k in apart else x.space[k].contracted() for k in over}
    y = replace(x, map=name, space=tuple(made.get(k, a) for k, a in enumerate(x.space)))
    if channels:
        plain = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax"}[pooling]
        y = grouped(site, y, channels, lambda t, axis: site.reduce(t, plain, [axis]), ())
    return y.on(_chain(site, y.map, after))


def _chain(site: Site, name: str, operators: Sequence[str]) -> str:
    for op in operators:
        name = site.emit([name, name], "Mul") if op == "Square" else site.emit([name], op)
    return name


def _pooled(site: Site, x: Lifted, name: str, over: Sequence[int], along: Sequence[int], pooling: str) -> str:
    """Pool a map over the whole window along some of the axes `over`, at every position of the grid.

    A sum is a mean times the number of cells along all of them.
    """
    y = pool_window(site, x.on(name), pooling == "max", along) if along else name
    return site.emit([y, site.scalar(x, float(np.prod(x.kernel(over)[0])))], "Mul") if pooling == "sum" else y


@lifts("ArgMax", "ArgMin")
def arg(site: Site, x: Lifted) -> Lifted:
    """The index of the best element along one axis."""
    axis = x.axis(int(site.attr("axis", 0)))
    x, atoms = as_channels(site, x, [axis])
    y = grouped(site, x, atoms, lambda t, k: site.emit([t], axis=k, keepdims=1), ())
    keep = site.flag("keepdims", 1)
    layout = tuple(() if k == axis else g for k, g in enumerate(x.layout) if keep or k != axis)
    return replace(y, layout=layout, elem_type=onnx.TensorProto.INT64)


@lifts("TopK")
def top_k(site: Site, x: Lifted, count: Fact | None = None) -> Sequence[Fact]:
    """The k best elements along one axis, and their indices."""
    k = int(site.attr("k", 0)) if count is None else (site.ints(count) or [0])[0]
    axis = x.axis(int(site.attr("axis", -1)))
    x, atoms = as_channels(site, x, [axis])
    best = atoms_of(k, "k")
    given = [count] if count is not None else []
    made = grouped_many(site, x, atoms, lambda t, k: site.emit_many([t, *given], axis=k), best)
    layout = tuple(best if j == axis else g for j, g in enumerate(x.layout))
    kinds = [x.elem_type, onnx.TensorProto.INT64]
    return [replace(y, layout=layout, elem_type=kind) for y, kind in zip(made, kinds)]
