"""Dense outputs: with one value, or vector, for each position, on the axes on which the original has them.

A dense output of a larger image is larger itself: (N, C, h·w), (N, h·w, C), (N, h, w), or (w, N, C) after the height
was reduced. From the map (N, C, *space) it is a Transpose and a Reshape, or a Squeeze, with sizes read at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.folding import restore_batch
from onnx_fcn.lifting.layouts import move_factors, settle, unfold
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted
from onnx_fcn.lifting.program import BATCH_SIZE, FormedOutput, Walk
from onnx_fcn.lifting.site import Site

__all__ = ["as_map", "on_original_axes"]


def as_map(site: Site, x: Lifted) -> Lifted:
    """A dense tensor as a map (N, C, *space), each axis of which is whole in the original's layout.

    Raises:
        Unsupported: if only a part of an axis is.
    """
    x = move_factors(site, restore_batch(site, x))
    merged = {a for g in x.layout if set(g) & set(x.channels) for a in g}  # with channels on one axis
    whole = [k for k, axis in enumerate(x.space) if not axis.slides]
    x = settle(site, unfold(site, x, [k for k in whole if x.space[k].image is None or merged & set(x.space[k].atoms)]))
    mixed = any(set(g) & set(x.channels) and not set(g) <= set(x.channels) for g in x.layout)
    if mixed or any(len(axis.atoms) > 1 for axis in x.space):
        raise Unsupported(
            f"has the positions of the image in another order ({x}), so it is no map of a larger image",
            code="order-of-positions",
            hint="--outputs takes the map before it",
        )
    return x


class Part(NamedTuple):
    """An axis of a map: its atoms, and the axis of space that it is, if it is one."""

    atoms: tuple[Atom, ...]
    axis: Axis | None = None


def on_original_axes(walk: Walk, site: Site, x: Lifted) -> FormedOutput | None:
    """A dense map (N, C, *space) on the axes of the original; None if it has them already.

    It stays the map if there are several rows of answers along an axis that the original has not.
    """
    name, parts = _split_channels(site, x)
    groups = x.placed([part.atoms for part in parts])
    kept = sorted(k for group in groups for k in group)
    gone = [k for k in range(len(parts)) if k not in kept]
    if any(axis is not None and axis.image not in walk.held for axis in (parts[k].axis for k in gone)):
        return None
    if name == x.map and groups == [[k] for k in range(len(parts))]:
        return None
    name = site.squeeze(name, gone) if gone else name
    perm = [kept.index(k) for group in groups for k in group]
    name = name if perm == sorted(perm) else site.emit([name], "Transpose", perm=perm)
    if any(len(group) > 1 for group in groups):
        name = _merged(site, name, [[parts[k] for k in group] for group in groups], x.batch)
    elif missing := [k for k, group in enumerate(groups) if not group]:
        name = site.unsqueeze(name, missing)
    dims = tuple(None if group == [0] else _dim(walk, x, [parts[k] for k in group]) for group in groups)
    return FormedOutput(name, dims, x.elem_type, "map")


def _split_channels(site: Site, x: Lifted) -> tuple[str, list[Part]]:
    """The map with an axis for each axis of channels of the original."""
    groups = [g for g in x.layout if g and set(g) <= set(x.channels)]
    batch, channels, *_ = x.axes
    space = [Part(axis.atoms, axis) for axis in x.space]
    if len(groups) < 2:
        return x.map, [Part(batch), Part(channels), *space]
    rank = 2 + len(x.space)
    last = site.emit([x], "Transpose", perm=[0, *range(2, rank), 1])
    target = [*[0] * (rank - 1), *map(Atom.product, groups)]
    return site.emit([last, np.array(target, np.int64)], "Reshape"), [Part(batch), *space, *map(Part, groups)]


def _merged(site: Site, name: str, groups: Sequence[Sequence[Part]], batch: Atom) -> str:
    """Merge neighbouring axes by a Reshape; each group is the axes that become one.

    Its target is a constant, unless several sizes are unknown before the network runs.
    """
    target: list[int] = []
    first = 0
    for k, group in enumerate(groups):
        stays = first == k and len(group) == 1
        is_open = any(part.axis is not None or batch in part.atoms for part in group)
        target.append(0 if stays else -1 if is_open else Atom.product(a for part in group for a in part.atoms))
        first += len(group)
    if target.count(-1) < 2:
        return site.emit([name, np.array(target, np.int64)], "Reshape")
    shape, sizes, first = site.emit([name], "Shape"), list[Operand](), 0
    for group, size in zip(groups, target):
        seen = site.slice(shape, [first], [first + len(group)], [0])
        sizes.append(site.emit([seen], "ReduceProd") if size == -1 else np.array([size], np.int64))
        first += len(group)
    return site.emit([name, site.emit(sizes, "Concat", axis=0)], "Reshape")


def _dim(walk: Walk, x: Lifted, parts: Sequence[Part]) -> int | str:
    """The size of an axis of the original, on which these axes of the map are: a formula if it depends on the image."""
    product, factors = 1, list[str]()
    for part in parts:
        size = walk.cells(part.axis) if part.axis is not None else Atom.product(part.atoms)
        if x.batch in part.atoms:
            size = BATCH_SIZE
        if isinstance(size, int):
            product *= size
        else:
            factors.append(size)
    if len(parts) < 2 or not factors:
        return factors[0] if factors else product
    return " * ".join([*([str(product)] if product > 1 else []), *(f"({f})" if " " in f else f for f in factors)])
