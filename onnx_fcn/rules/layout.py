"""Operators that only regroup axes: they change the layout and emit no node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.dilation import undilate
from onnx_fcn.lifting.facts import Fact, Known, Shared, Whole
from onnx_fcn.lifting.layouts import arrange, settle
from onnx_fcn.lifting.lifted import Atom, Lifted, dims_of
from onnx_fcn.lifting.refusals import EVALUATION
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site


@lifts("Identity", "Dropout")
def identity(site: Site, x: Lifted, *operands: Shared | None) -> Sequence[Fact]:
    """The identity at inference. A Dropout stays in the graph, as in the original."""
    if site.op == "Identity":
        return [x]
    if site.has_output(1):
        raise Unsupported("the mask of a Dropout is used", code="dropout-mask")
    training = operands[1] if len(operands) > 1 else None
    if training is not None and not (isinstance(training, Known) and not site.value(training).any()):
        raise Unsupported("drops values at random, as in training", code="training", hint=EVALUATION)
    return [x.on(site.emit([x, *operands]))]


@lifts("Flatten")
def flatten(site: Site, x: Lifted) -> Lifted:
    """(d0, d1, ...) -> (d0·…·d[axis-1], d[axis]·…)."""
    axis = int(site.attr("axis", 1))
    axis += x.rank if axis < 0 else 0
    return x.reshaped((math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@lifts("Reshape")
def reshape(site: Site, x: Lifted, shape: Fact | None = None) -> Lifted:
    """Row-major regrouping; the target is a constant or computed from shapes."""
    if not isinstance(x, Lifted):
        raise Unsupported("reshapes a constant by the values of a map", code="not-constant")
    target = site.attr("shape") if shape is None else site.ints(shape)
    dims = resolve_shape(target or [], x, allowzero=site.flag("allowzero") and shape is not None)
    try:
        return x.reshaped(dims)
    except Unsupported:  # it cuts through channels that an earlier Reshape split differently: merge them into one axis
        return settle(site, x).reshaped(dims)


def resolve_shape(target: Sequence[int], x: Lifted | Whole, *, allowzero: bool = False) -> list[int]:
    """A Reshape target with 0 (copied) and -1 (inferred) filled in.

    Raises:
        Unsupported: if the -1 does not come out as a whole number.
    """
    shape = x.shape
    dims = [shape[k] if d == 0 and not allowzero and k < len(shape) else d for k, d in enumerate(target)]
    if -1 in dims:
        rest = math.prod(d for d in dims if d != -1)
        total = math.prod(shape)
        if rest == 0 or total % rest:
            raise Unsupported(f"reshapes {x} ({x.dims}) to {dims_of(target)}: not divisible", code="reshape-size")
        dims[dims.index(-1)] = total // rest
    return dims


@lifts("Transpose")
def transpose(site: Site, x: Lifted) -> Lifted:
    """A permutation of the axes."""
    perm = site.attr("perm") or list(range(x.rank))[::-1]
    if sorted(perm) != list(range(x.rank)):
        raise Unsupported(f"permutes {x.rank} axes by {perm}, which is not a permutation of them")
    return x.transposed(perm)


@lifts("Squeeze")
def squeeze(site: Site, x: Lifted, axes: Fact | None = None) -> Lifted:
    """Removal of axes of size 1."""
    return x.squeezed(site.axes(axes))


@lifts("Unsqueeze")
def unsqueeze(site: Site, x: Lifted, axes: Fact | None = None) -> Lifted:
    """Insertion of axes of size 1."""
    return x.unsqueezed(site.axes(axes) or [])


@lifts("Expand")
def expand(site: Site, x: Lifted, shape: Fact) -> Lifted:
    """Broadcast to a shape: new factors become identical channels."""
    target = site.ints(shape) or []
    rank = max(len(target), x.rank)
    target = [1] * (rank - len(target)) + target
    return tiled(site, x.unsqueezed(range(rank - x.rank)), [t if s == 1 else 1 for s, t in _pairs(x, target)])


def _pairs(x: Lifted, target: Sequence[int]) -> list[tuple[int, int]]:
    shape = [1] * (len(target) - x.rank) + list(x.shape)
    if any(s != t and 1 not in (s, t) for s, t in zip(shape, target)):
        raise Unsupported(f"expands {x} ({x.dims}) to {dims_of(target)}: these do not broadcast", code="expand")
    return list(zip(shape, target))


@lifts("Tile")
def tile(site: Site, x: Lifted, repeats: Fact) -> Lifted:
    """Repetition along each axis."""
    counts = site.ints(repeats) or []
    if len(counts) != x.rank or min(counts, default=1) < 1:
        raise Unsupported(f"repeats the {x.rank} axes of {x} by {dims_of(counts)}: the counts do not fit", code="size")
    return tiled(site, x, counts)


def tiled(site: Site, x: Lifted, repeats: Sequence[int]) -> Lifted:
    """(d0, …) -> (r0·d0, …): the repetitions are the outer factor, as channels."""
    layout, new = list(x.layout), []
    for k, count in enumerate(repeats):
        if count != 1:
            new.append(Atom(int(count), "t"))
            layout[k] = (new[-1], *layout[k])
    made = arrange(site, x, (*new, *x.channels))
    return replace(made, layout=tuple(layout)).canonical()


@lifts("Shape", "Size")
def shape(site: Site, x: Lifted) -> Known:
    """A known value: the original shape at the native size; at run time, for untouched branches, the map's shape."""
    value: Array = np.array(x.shape, np.int64)
    if site.op == "Size":
        return site.sized_output(np.array(value.prod()))
    kept = list(range(x.rank))[site.attr("start", 0) : site.attr("end")]
    if not x.is_plain or len(x.axes) != x.rank:
        return site.sized_output(value[kept])
    perm = x.order
    if perm == kept:
        return site.sized_output(value, at_run_time=site.emit([undilate(site, x)], "Shape"))
    order = np.array([perm[k] for k in kept], np.int64)
    name = site.emit([site.emit([undilate(site, x)], "Shape"), order], "Gather", axis=0)
    return site.sized_output(value[kept], at_run_time=name)
