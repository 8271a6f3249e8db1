"""Dense outputs: with one value, or vector, for each position, on the axes on which the original has them.

A dense output of a larger image is larger itself: (N, C, h·w), (N, h·w, C), (N, h, w), or (w, N, C) after the height
was reduced. From the map (N, C, *space) it is a Transpose and a Reshape, or a Squeeze, with sizes read at run time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.folding import restore_batch
from onnx_fcn.lifting.layouts import move_factors, settle, unfold
from onnx_fcn.lifting.lifted import BATCH, Atom, Lifted
from onnx_fcn.lifting.program import FormedOutput, Walk
from onnx_fcn.lifting.site import Site

__all__ = ["as_map", "on_original_axes"]


def as_map(site: Site, x: Lifted) -> Lifted:
    """A dense tensor as a map (N, C, *space), each axis of which is whole in the original's layout.

    Raises:
        Unsupported: if only a part of an axis is.
    """
    features = [k for k, axis in enumerate(x.space) if axis.image is None]
    x = settle(site, unfold(site, move_factors(site, restore_batch(site, x)), features))
    whole = [axis.atoms for axis in x.space]
    mixed = any(set(g) & set(x.channels) and not set(g) <= set(x.channels) for g in x.layout)
    if mixed or any(len(atoms) > 1 for atoms in whole):
        raise Unsupported(
            f"has the positions of the image in another order ({x}), so it is no map of a larger image",
            code="order-of-positions",
            hint="--outputs takes the map before it",
        )
    return x


def on_original_axes(walk: Walk, site: Site, x: Lifted) -> FormedOutput | None:
    """A dense map (N, C, *space) on the axes of the original; None if it has them already.

    It stays the map if there are several rows of answers along an axis that the original has not.
    """
    if any(not a.atoms and a.image not in walk.held for a in x.space):
        return None
    name, axes = _split_channels(site, x)
    groups = x.placed(axes)
    if axes == x.axes and groups == [[k] for k in range(len(axes))]:
        return None
    kept = sorted(k for group in groups for k in group)
    gone = [k for k in range(len(axes)) if k not in kept]
    name = site.squeeze(name, gone) if gone else name
    perm = [kept.index(k) for group in groups for k in group]
    name = name if perm == sorted(perm) else site.emit([name], "Transpose", perm=perm)
    if any(len(group) > 1 for group in groups):
        name = _merged(site, name, [[axes[k] for k in group] for group in groups], x.channels)
    elif missing := [k for k, group in enumerate(groups) if not group]:
        name = site.unsqueeze(name, missing)
    dims = tuple(None if group == [0] else _dim(walk, x, [axes[k] for k in group]) for group in groups)
    return FormedOutput(name, dims, x.elem_type, "map")


def _split_channels(site: Site, x: Lifted) -> tuple[str, list[tuple[Atom, ...]]]:
    """The map with an axis for each axis of channels of the original, and the atoms of its axes."""
    groups = [g for g in x.layout if g and set(g) <= set(x.channels)]
    if len(groups) < 2:
        return x.map, x.axes
    rank = 2 + len(x.space)
    last = site.emit([x], "Transpose", perm=[0, *range(2, rank), 1])
    target = [*[0] * (rank - 1), *map(Atom.product, groups)]
    batch, _, *space = x.axes
    return site.emit([last, np.array(target, np.int64)], "Reshape"), [batch, *space, *groups]


def _merged(site: Site, name: str, groups: Sequence[Sequence[tuple[Atom, ...]]], channels: Sequence[Atom]) -> str:
    """Merge neighbouring axes by a Reshape; each group is the atoms of the axes that become one.

    Its target is a constant, unless several sizes are unknown before the network runs.
    """
    target: list[int] = []
    first = 0
    for k, group in enumerate(groups):
        stays = first == k and len(group) == 1
        is_open = any(a not in channels for atoms in group for a in atoms)
        target.append(0 if stays else -1 if is_open else Atom.product(a for atoms in group for a in atoms))
        first += len(group)
    if target.count(-1) < 2:
        return site.emit([name, np.array(target, np.int64)], "Reshape")
    shape, sizes, first = site.emit([name], "Shape"), list[Operand](), 0
    for group, size in zip(groups, target):
        seen = site.slice(shape, [first], [first + len(group)], [0])
        sizes.append(site.emit([seen], "ReduceProd") if size == -1 else np.array([size], np.int64))
        first += len(group)
    return site.emit([name, site.emit(sizes, "Concat", axis=0)], "Reshape")


def _dim(walk: Walk, x: Lifted, axes: Sequence[tuple[Atom, ...]]) -> int | str:
    """The size of an axis of the original, on which these axes of the map are: a formula if it depends on the image."""
    product, factors = 1, list[str]()
    for atoms in axes:
        axis = next((a for a in x.space if atoms and a.atoms == atoms), None)
        size = walk.cells(axis) if axis is not None else Atom.product(atoms)
        if x.batch in atoms and walk.batch == BATCH:
            size = "batch"
        if isinstance(size, int):
            product *= size
        else:
            factors.append(size)
    if len(axes) < 2 or not factors:
        return factors[0] if factors else product
    return " * ".join([*([str(product)] if product > 1 else []), *(f"({f})" if " " in f else f for f in factors)])
