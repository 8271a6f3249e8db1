"""Tensors of the whole map, whatever its size: what attention computes between the positions of an image.

A matrix of scores has two axes of positions, so it is no map, and no window of it is the matrix of a window. But on the
axes of the original its meaning is the same for images of any size: only the numbers of positions differ. A `Whole`
fact states which factors of its axes these are, and where their sizes are read at run time:

    scores      n heads8 (h7 w7) (h7 w7)
    answers     n heads8 (h7 w7) c32           has every axis of the image once: a map again

`whole_of` brings a map to the axes of the original, and `map_of` brings a result back as soon as it is a map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.dilation import check_undilated
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.facts import Extent, Fact, Known, Whole
from onnx_fcn.lifting.folding import restore_batch
from onnx_fcn.lifting.layouts import move_factors, padding_refusal
from onnx_fcn.lifting.lifted import Atom, Lifted, dims_of
from onnx_fcn.lifting.program import Rewind
from onnx_fcn.lifting.refusals import RUN_THE_REST
from onnx_fcn.lifting.site import Site

__all__ = ["Groups", "check_factor", "check_same", "map_of", "regrouped", "renewed", "shape_at_run_time", "whole_of"]


#: The axes of a tensor, each as the atoms that it is the product of.
Groups = Sequence[tuple[Atom, ...]]


def whole_of(site: Site, x: Lifted) -> Whole:
    """A map, (N, C, *space), on the axes of the original tensor of the whole image.

    Raises:
        Unsupported: if it is dilated or padded, or has positions of a window in another way than as whole axes.
    """
    x = move_factors(site, restore_batch(site, x))
    if x.padding is not None:
        raise padding_refusal(site, x)
    check_undilated(site, x, "relates positions to each other")
    if any(a.slides and not a.atoms for a in x.space):
        raise _without_positions(site, x)
    if any(a.image is not None and len(a.atoms) > 1 for a in x.space):
        raise Unsupported(
            f"relates positions within parts of the map, {x}, whose size does not follow from that of the image",
            code="attention-parts",
            hint=RUN_THE_REST,
        )
    extents = {
        a: Extent(x.map, 2 + k, axis) for k, axis in enumerate(x.space) if axis.image is not None for a in axis.atoms
    }
    if x.batch.size > 1:
        extents[x.batch] = Extent(x.map, 0)
    name = _rearranged(site, x.map, x.axes, x.layout, extents)
    return Whole(name, x.batch, x.layout, extents, x.elem_type)


def _without_positions(site: Site, x: Lifted) -> Unsupported:
    """The refusal of a value for each window; if it may be context, the walk goes back to its origins."""
    if x.origins and x.origins <= site.reductions:
        raise Rewind(x.origins)
    if x.unfolded is None:
        what = f"relates positions to a value of a window, {x}"
        return Unsupported(what, code="attention-window", hint=RUN_THE_REST)
    return Unsupported(
        f"relates positions to each other after '{site.name_at(x.unfolded)}' has made channels of those of the native "
        "size, as position embeddings and windows of the map do",
        code="position-table",
        hint=RUN_THE_REST,
    )


def map_of(site: Site, fact: Fact) -> Fact:
    """A tensor of the whole image as a map (N, C, *space) if it has each axis of the image once; otherwise itself."""
    if not isinstance(fact, Whole):
        return fact
    atoms = [a for group in fact.layout for a in group]
    found = {e.axis.image or 0: a for a in atoms if (e := fact.extents.get(a)) is not None and e.axis is not None}
    batch = [fact.batch] if fact.batch.size > 1 else []
    open_atoms = [a for a in atoms if a in fact.extents]
    if len(found) < site.image_axes or len(open_atoms) != len(found) + len(batch):
        return fact
    positions = [found[k] for k in sorted(found)]
    channels = tuple(a for a in atoms if a not in fact.extents)
    groups = [tuple(batch), channels, *((a,) for a in positions)]
    name = _rearranged(site, fact.name, fact.layout, groups, fact.extents)
    axes = (fact.extents[a].axis for a in positions)
    space = tuple(replace(axis, whole=True) for axis in axes if axis is not None)
    return Lifted(name, fact.batch, channels, space, fact.layout, fact.elem_type)


def _rearranged(site: Site, name: str, have: Groups, want: Groups, extents: Mapping[Atom, Extent]) -> str:
    """A tensor whose axes are these atoms, with the same atoms grouped in another way and order."""
    target = [a for group in want for a in group]
    runs: list[tuple[Atom, ...]] = [()] if have and want and not have[0] and not want[0] else []  # a batch of one
    for atom in (a for group in have for a in group):
        follows = runs and runs[-1] and target.index(runs[-1][-1]) + 1 == target.index(atom)
        runs = [*runs[:-1], (*runs[-1], atom)] if follows else [*runs, (atom,)]
    perm = sorted(range(len(runs)), key=lambda k: target.index(runs[k][0]) if runs[k] else -1)
    if perm != sorted(perm):
        name = _reshaped(site, name, have, runs, extents)
        name, have = site.emit([name], "Transpose", perm=perm), [runs[k] for k in perm]
    return _reshaped(site, name, have, want, extents)


def _reshaped(site: Site, name: str, have: Groups, want: Groups, extents: Mapping[Atom, Extent]) -> str:
    """A tensor with its atoms grouped into other axes, in the same order."""
    if list(have) == list(want):
        return name
    return site.emit([name, shape_at_run_time(site, have, want, extents)], "Reshape")


def shape_at_run_time(site: Site, have: Groups, want: Groups, extents: Mapping[Atom, Extent]) -> Operand:
    """The target of a Reshape: a constant, unless several sizes are unknown before the network runs."""
    target: list[int] = []
    for k, group in enumerate(want):
        stays = k < len(have) and have[k] == group
        is_open = any(a in extents for a in group)
        target.append(0 if stays and is_open else -1 if is_open else Atom.product(group))
    if target.count(-1) < 2:
        return np.array(target, np.int64)
    last = len(target) - 1 - target[::-1].index(-1)
    sizes = [
        _size(site, group, extents) if size == -1 and k != last else np.array([size], np.int64)
        for k, (group, size) in enumerate(zip(want, target))
    ]
    return site.emit(sizes, "Concat", axis=0)


def _size(site: Site, group: Iterable[Atom], extents: Mapping[Atom, Extent]) -> Operand:
    """The size of an axis at run time, (1,)."""
    fixed = Atom.product(a for a in group if a not in extents)
    read = [e for a in group if (e := extents.get(a)) is not None]
    sizes: list[Operand] = [
        site.emit([site.emit([e.map], "Shape"), np.array([e.place])], "Gather", axis=0) for e in read
    ]
    sizes += [np.array([fixed])] if fixed > 1 else []
    return sizes[0] if len(sizes) == 1 else site.emit([site.emit(sizes, "Concat", axis=0)], "ReduceProd")


def regrouped(x: Whole, sizes: Sequence[int]) -> Whole:
    """The same elements with axes of these sizes, in row-major order; only constant factors are split.

    Raises:
        Unsupported: if an axis would begin or end within the positions of an axis of the image, or within the batch.
    """
    rest, groups = [a for group in x.layout for a in group], list[tuple[Atom, ...]]()
    for size in sizes:
        group, left = list[Atom](), size
        while left > 1 and rest:
            atom = rest.pop(0)
            if left % atom.size and (atom in x.extents or atom.size % left):
                raise Unsupported(
                    f"reads {x} as {dims_of(sizes)}, which cuts through {atom.name} = {atom.size}",
                    code="reshape-cuts-axis",
                    hint=RUN_THE_REST,
                )
            if left % atom.size:
                atom, inner = atom.split(left)
                rest.insert(0, inner)
            group.append(atom)
            left //= atom.size
        groups.append(tuple(group))
    if Atom.product(a for g in groups for a in g) != Atom.product(a for g in x.layout for a in g):
        raise Unsupported(f"reshapes {x} ({x.dims}) to {dims_of(sizes)}: not the same size", code="reshape-size")
    return replace(x, layout=tuple(groups))


def renewed(x: Whole) -> Whole:
    """The same tensor with other atoms of the same sizes, so that none is on two axes of a product; the batch stays."""
    new = {a: Atom(a.size, a.name) for group in x.layout for a in group if a is not x.batch}
    layout = tuple(tuple(new.get(a, a) for a in group) for group in x.layout)
    return replace(x, layout=layout, extents={new.get(a, a): _along(new.get(a, a), e) for a, e in x.extents.items()})


def _along(atom: Atom, extent: Extent) -> Extent:
    """An extent with this atom on its axis."""
    return extent if extent.axis is None else replace(extent, axis=replace(extent.axis, atoms=(atom,)))


def check_same(site: Site, a: Sequence[Atom], b: Sequence[Atom], extents: Mapping[Atom, Extent]) -> None:
    """Check that two axes that meet have the same size for images of every size.

    Raises:
        Unsupported: if they do not, or only at the native size.
    """
    if Atom.product(a) != Atom.product(b):
        sizes = f"{Atom.product(a)} and {Atom.product(b)}"
        raise Unsupported(f"has operands whose sizes {sizes} do not fit each other", code="broadcast")
    first, second = (_factors(atoms, extents) for atoms in (a, b))
    if first == second:
        return
    table = [atoms for atoms in (a, b) if not any(atom in extents for atom in atoms)]
    if table:
        raise Unsupported(
            f"has a constant for each of {Atom.product(table[0])} positions of the native size, as tables of relative "
            "positions have: a larger image has more",
            code="position-table",
            hint=RUN_THE_REST,
        )
    reason = "relates maps whose numbers of positions differ for some sizes of the image"
    raise Unsupported(reason, code="attention-cells", hint=RUN_THE_REST)


def check_factor(site: Site, operands: Sequence[Fact | None]) -> None:
    """Check that what attention gives is not multiplied by the number of positions at the native size, or divided.

    Raises:
        Unsupported: if it is: a larger image has more, but the file says a number.
    """
    counts: list[int] = []
    for fact in operands:
        if isinstance(fact, Whole):
            counts += fact.counts
        elif isinstance(fact, Lifted) and fact.is_live and not any(a.field.is_local for a in fact.space if a.slides):
            counts.append(math.prod(a.window for a in fact.space if a.image is not None))
    for known in (f for f in operands if isinstance(f, Known)) if counts else ():
        value = site.value(known)
        for count in counts:
            if value.size == 1 and count > 1 and np.isclose(value.item(), [count, 1 / count], rtol=1e-6).any():
                raise Unsupported(
                    f"scales by {count}, the number of positions at the native size: a larger image has more",
                    code="sized-number",
                    hint=RUN_THE_REST,
                )


def _factors(atoms: Sequence[Atom], extents: Mapping[Atom, Extent]) -> list[object]:
    """The factors of an axis, with those that are constant multiplied."""
    found: list[object] = []
    for is_open, run in itertools.groupby(atoms, lambda a: a in extents):
        if not is_open:
            found.append(Atom.product(run))
            continue
        axes = (extents[a].axis for a in run)
        found += ["batch" if axis is None else (axis.image, axis.count, axis.held) for axis in axes]
    return found
