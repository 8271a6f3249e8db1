"""The position of one window's answer on a map.

`original_at` is the statement that every rule obeys, as an array: the original tensor at one position of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.lifting.lifted import Atom, Lifted, atoms_of

__all__ = ["as_physical", "batch_axis", "of_size", "original_at", "physical_of", "whole_map", "window_of", "windows_of"]


def original_at(fact: Lifted, physical: Array, position: Sequence[int]) -> Array:
    """Extract the original tensor at one position of the window from a map (N, C, *space): what `Lifted` means."""
    rates: list[Any] = [slice(None, None, axis.rate) for axis in fact.space]
    window: Array = physical[window_of(fact, position)][(..., *rates)]
    atoms = [fact.batch, *fact.channels, *(a for axis in fact.space for a in axis.atoms)]
    order = [a for group in fact.layout for a in group]
    batch = physical.shape[0]
    seen: Array = window.reshape([batch, *(a.size for a in atoms[1:])])
    if fact.batch not in order:
        order = [fact.batch, *order]
    seen = seen.transpose([atoms.index(a) for a in order])
    if batch > 1 and fact.batch not in (a for group in fact.layout for a in group):
        return seen.reshape(-1)
    return seen.reshape([_size(group, fact.batch, batch) for group in fact.layout])


def physical_of(fact: Lifted, original: Array) -> Array:
    """An original tensor as the window of its map, (N, C, *window): the inverse of `original_at`."""
    atoms = [a for group in fact.layout for a in group]
    batch = original.size // math.prod(a.size for a in atoms if a is not fact.batch)
    sizes = [batch if a is fact.batch else a.size for a in atoms]
    values = original.reshape(sizes if fact.batch in atoms else [batch, *sizes])
    atoms = atoms if fact.batch in atoms else [fact.batch, *atoms]
    order = [fact.batch, *fact.channels, *(a for axis in fact.space for a in axis.atoms)]
    physical: Array = values.transpose([atoms.index(a) for a in order]).reshape(batch, fact.width, *fact.window)
    return physical


def of_size(fact: Lifted, cells: Sequence[int]) -> Lifted:
    """The fact of a dense map whose one window is all of its cells: the original tensor of a larger image.

    Axes that are not in the original tensor, since they were reduced, stay single cells.
    """
    places, space = fact.placed(fact.axes), list(fact.space)
    layout: list[tuple[Atom, ...]] = list(fact.layout)
    for k, (axis, n) in enumerate(zip(fact.space, cells)):
        made = replace(axis, atoms=atoms_of(n, "p"), rate=1)
        for j, group in enumerate(fact.layout):
            if axis.atoms and axis.atoms[0] in group:
                layout[j] = tuple(b for a in layout[j] for b in (made.atoms if a in axis.atoms else (a,)))
                space[k] = made
            elif not axis.atoms and places[j] == [2 + k]:
                layout[j], space[k] = made.atoms, made
    return replace(fact, space=tuple(space), layout=tuple(layout))


def whole_map(fact: Lifted, original: Array, cells: Sequence[int]) -> Array | None:
    """The tensor of an image with this many cells as its map (N, C, *cells); None if it has another shape."""
    whole = of_size(fact, cells)
    if whole.window != tuple(cells):
        return None
    batch = original.size // max(math.prod(a.size for g in whole.layout for a in g if a is not fact.batch), 1)
    if original.shape != tuple(_size(group, fact.batch, batch) for group in whole.layout):
        return None
    return physical_of(whole, original)


def windows_of(fact: Lifted, physical: Array) -> Array:
    """All windows of a map: (N, C, *space) → (N, C, *positions, *window), a view."""
    spans = tuple(a.extent for a in fact.space)
    shown = np.lib.stride_tricks.sliding_window_view(physical, spans, tuple(range(2, 2 + len(spans))))
    steps: list[Any] = [slice(None, None, a.step) for a in fact.space]
    rates: list[Any] = [slice(None, None, a.rate) for a in fact.space]
    windows: Array = shown[(slice(None), slice(None), *steps, *rates)]
    return windows


def window_of(fact: Lifted, position: Sequence[int]) -> tuple[slice, ...]:
    """The slices of a map (N, C, *space) that contain the window at a position."""
    starts = [p * axis.step for axis, p in zip(fact.space, position)]
    return (slice(None), slice(None), *(slice(s, s + axis.extent) for s, axis in zip(starts, fact.space)))


def _size(group: tuple[Atom, ...], batch: Atom, count: int) -> int:
    return int(np.prod([count if a is batch else a.size for a in group]))


def as_physical(fact: Lifted, original: Array) -> Array | None:
    """Transpose a whole map from the axes of the original to (N, C, *space); None if its layout is not plain."""
    axes = fact.axes
    if len(axes) != fact.rank or len(set(axes)) < len(axes) or set(axes) != set(fact.layout):
        return None
    return original.transpose([fact.layout.index(group) for group in axes])


def batch_axis(fact: Lifted) -> int | None:
    """The axis of the original tensor that is exactly the batch, or None."""
    return next((k for k, group in enumerate(fact.layout) if group == (fact.batch,)), None)
