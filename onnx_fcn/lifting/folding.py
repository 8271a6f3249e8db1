"""Folding the batch into a spatial axis around a head, so that onnxruntime reads the head's weights only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_fcn.lifting.dilation import cell_maps
from onnx_fcn.lifting.emitter import END, Operand
from onnx_fcn.lifting.facts import Fact, Unmapped
from onnx_fcn.lifting.lifted import Atom, Lifted
from onnx_fcn.lifting.site import Site

__all__ = ["fold_batch", "restore_batch", "same_folding"]


def fold_batch(site: Site, x: Lifted, axes: Sequence[int]) -> Lifted:
    """Make the window channels, and put batch and grid on one axis: (N, C, *space) -> (1, k·C, 1, N·grid).

    onnxruntime convolves one image at a time, so it reads the weights of a head once for each image of a batch.
    With the batch along a spatial axis it multiplies all at once.
    """
    rank = 2 + len(x.space)
    front = site.emit([x], "Transpose", perm=[1, 0, *range(2, rank)])
    moved = tuple(atom for k in axes for atom in x.space[k].atoms)
    cells = site.emit(cell_maps(site, x.on(front), axes), "Concat", axis=0)
    target = np.array([1, x.width * Atom.product(moved), *[1] * (rank - 3), -1], np.int64)
    name, shape = site.emit([cells, target], "Reshape"), site.emit([cells], "Shape")
    space = tuple(a.contracted() if k in axes else a for k, a in enumerate(x.space))
    return replace(x, map=name, channels=(*moved, *x.channels), space=space, folded=shape)


def restore_batch(site: Site, x: Lifted) -> Lifted:
    """Put the batch and the grid of a folded map back on axes of their own."""
    if x.folded is None:
        return x
    sizes: list[Operand] = [
        np.array([x.width], np.int64),
        site.slice(x.folded, [1], [END], [0]),
    ]
    seen = site.emit([x, site.emit(sizes, "Concat", axis=0)], "Reshape")
    rank = 2 + len(x.space)
    return replace(x, map=site.emit([seen], "Transpose", perm=[1, 0, *range(2, rank)]), folded=None)


def same_folding(site: Site, operands: Sequence[Fact | None]) -> list[Fact | None]:
    """The operands in a form that one node can read: all of them folded, or none."""
    mapped = [f for f in operands if isinstance(f, Lifted)]
    if not any(f.folded for f in mapped):
        return [*operands]
    alone = all(f.folded for f in mapped) and not any(isinstance(f, Unmapped) for f in operands)
    keeps = alone and site.op not in ("Shape", "Size")
    return [restore_batch(site, f) if isinstance(f, Lifted) and not keeps else f for f in operands]
