"""Broadcasting: operands that broadcast as original tensors are made to broadcast as maps (N, C, *space).

Every operand becomes a `Term`: a map, or a value that is the same at every position. Terms are first brought to the
same axes and cells, then to the same atoms. After that, their axes correspond and their channels have one order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnx_fcn._types import Array, record
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.folding import same_folding
from onnx_fcn.lifting.layouts import (
    arrange,
    as_channels,
    as_map,
    crop_to_common,
    expand_over,
    features_to_space,
    move_factors,
    source_of,
    unfold,
)
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, atoms_of, dim_of
from onnx_fcn.lifting.site import Site

__all__ = ["align", "combine"]


@record
class Term:
    """One operand of a broadcast as a map: a mapped tensor, or a value that is the same at every position.

    Attributes:
        fact: its layout, over the axes of the result; the map's name is empty for a constant.
        value: the elements of a constant, (C, *space), with one cell along each axis that slides.
        uniform: whether it is the same at every position. It then has no window to contract.
    """

    fact: Lifted
    value: Array | None = None
    uniform: bool = False

    def on_axes(self, rank: int) -> Term:
        """The term with leading axes of size 1, as broadcasting adds them."""
        return replace(self, fact=replace(self.fact, layout=((),) * (rank - self.fact.rank) + self.fact.layout))


def combine(
    site: Site,
    operands: Sequence[Fact],
    op: str | None = None,
    emit: Callable[[list[Operand]], str] | None = None,
) -> Lifted:
    """Emit an elementwise operator on mapped, unmapped and constant operands that broadcast as the originals did.

    Maps are brought to one order of channels, constants to (C, 1, …), and per-image values to (N, C, 1, …). If a
    constant or a reduced value differs between the positions of a live window, the window is unfolded first.

    Raises:
        Unsupported: if the maps are on different grids, or channels of one meet positions of another.
    """
    together = [f for f in same_folding(site, operands) if f is not None]
    alike = [f for f in together if isinstance(f, Lifted)]
    if len(alike) == len(together) and all(_are_alike(alike[0], f) for f in alike[1:]):
        return _joined_alike(alike, emit(list(alike)) if emit is not None else site.emit(alike, op))
    operands = [move_factors(site, f) if isinstance(f, Lifted) else f for f in together]
    rank = _rank(site, operands)
    # maps (N, C, *space), all on the same cells
    maps = _match_cells(site, [Term(f).on_axes(rank) for f in operands if isinstance(f, Lifted)], operands)
    # with them constants (C, 1, …) and per-image values (N, C, 1, …)
    mapped = iter(maps)
    terms = [next(mapped) if isinstance(f, Lifted) else _uniform_term(site, f, maps) for f in operands]
    terms = _unify_atoms(terms)
    widest = max((t.fact for t in terms if not t.uniform), key=lambda f: f.width)
    channels = tuple(dict.fromkeys([*widest.channels, *(a for t in terms for a in t.fact.channels)]))
    physical = [_operand(site, t, channels, f) for t, f in zip(terms, operands)]
    y = emit(physical) if emit is not None else site.emit(physical, op)
    return _result(terms, widest, channels, y)


def _are_alike(first: Lifted, other: Lifted, joined: int | None = None) -> bool:
    """Have two maps the same cells, and one atom at most on each axis, the same axis of the map in both?

    Nothing has to be brought together then. Most maps that meet do, at the end of a residual or a dense block. Along
    the axis `joined` both have all of their channels, of any number.
    """
    if len(first.space) != len(other.space) or len(first.layout) != len(other.layout):
        return False
    for a, b in zip(first.space, other.space):
        if a.image != b.image or a.rate != b.rate or a.local.stride != b.local.stride or a.count != b.count:
            return False
    places, others = _single_axes(first), _single_axes(other)
    if places is None or others is None:
        return False
    if joined is not None:
        if not places[joined][0] == others[joined][0] == 1:
            return False
        others[joined] = places[joined]
    return places == others


def _single_axes(x: Lifted) -> list[tuple[int, int]] | None:
    """(axis of the map, size) of each axis of the original; None if one consists of several atoms."""
    axes = [x.channels, *(a.atoms for a in x.space)]
    if any(len(atoms) > 1 for atoms in (*axes, *x.layout)):
        return None
    places = {atoms[0]: k for k, atoms in enumerate(axes, 1) if atoms}
    return [(places.get(group[0], 0), group[0].size) if group else (0, 1) for group in x.layout]


def _joined_space(maps: Sequence[Lifted]) -> tuple[Axis, ...]:
    """The axes of a map that is computed from maps that are alike."""
    space = maps[0].space
    for x in maps[1:]:
        joined: list[Axis] = []
        for k, (a, b) in enumerate(zip(space, x.space)):
            like = next((j for j in range(k) if a.is_parallel(space[j]) and b.is_parallel(x.space[j])), None)
            joined.append(a.joined(b) if like is None else a.parallel(joined[like], a.atoms))
        space = tuple(joined)
    return space


def _joined_alike(maps: Sequence[Lifted], name: str) -> Lifted:
    """The fact of the output of an elementwise operator on maps that are alike."""
    first, *others = maps
    origins, padding, unfolded = first.origins, first.padding, first.unfolded
    for x in others:
        origins |= x.origins
        padding = x.padding if padding is None else padding
        unfolded = x.unfolded if unfolded is None else unfolded
    return Lifted(
        name,
        first.batch,
        first.channels,
        _joined_space(maps),
        first.layout,
        first.elem_type,
        origins,
        padding,
        unfolded,
        first.folded,
    )


def _value(site: Site, fact: Known) -> Array:
    """The elements of a constant, which are the same for every image size."""
    return site.fixed_value(fact) if fact.sized else site.value(fact)


def _rank(site: Site, operands: Sequence[Fact]) -> int:
    """The number of axes that the operands broadcast to."""
    ranks = [f.rank for f in operands if isinstance(f, Lifted)]
    ranks += [_value(site, f).ndim for f in operands if isinstance(f, Known)]
    ranks += [len(source_of(site, f)[1]) for f in operands if isinstance(f, Unmapped)]
    return max(ranks)


def _match_cells(site: Site, maps: list[Term], operands: Sequence[Fact]) -> list[Term]:
    """Bring maps to the same axes and cells, and unfold their windows as far as broadcasting requires."""
    values = [_value(site, f) for f in operands if isinstance(f, Known)]
    shapes = [source_of(site, f)[1] for f in operands if isinstance(f, Unmapped)]
    while (unfolded := _unfold_mismatched(site, maps, values, shapes)) is not None:
        maps = unfolded
    maps = _on_the_same_axes(site, _with_features_in_space(site, maps))
    return [replace(t, fact=fact) for t, fact in zip(maps, crop_to_common(site, [t.fact for t in maps]))]


def _uniform_term(site: Site, fact: Fact, maps: Sequence[Term]) -> Term:
    """The term of an operand that is the same at every position and broadcasts with these maps."""
    if isinstance(fact, Unmapped):
        return Term(as_map(site, fact, maps[0].fact), uniform=True).on_axes(maps[0].fact.rank)
    assert isinstance(fact, Known)
    return _constant_term(_value(site, fact), maps)


def _result(terms: Sequence[Term], widest: Lifted, channels: tuple[Atom, ...], name: str) -> Lifted:
    """The fact of the output of an elementwise operator on these terms."""
    moving = [t.fact for t in terms if not t.uniform]
    return Lifted(
        map=name,
        batch=widest.batch,
        channels=channels,
        space=_join_spaces(moving),
        layout=_broadcast([t.fact for t in terms]),
        elem_type=widest.elem_type,
        origins=frozenset().union(*(f.origins for f in moving)),
        padding=next((f.padding for f in moving if f.padding is not None), None),
        unfolded=next((f.unfolded for f in moving if f.unfolded is not None), None),
        folded=next((f.folded for f in moving if f.folded is not None), None),
    ).canonical()


def _broadcast(facts: Sequence[Lifted]) -> tuple[tuple[Atom, ...], ...]:
    """The layout that unified layouts broadcast to: for each axis, the first group that is not empty."""
    return tuple(next((g for g in groups if g), ()) for groups in zip(*(f.layout for f in facts)))


def align(site: Site, operands: Sequence[Fact], axis: int) -> list[Lifted]:
    """Prepare operands for a join along one axis: maps whose other axes have the same atoms.

    Along the joined axis, each operand keeps its own atoms, as channels.

    Raises:
        Unsupported: if the maps are on different grids, or different axes meet.
    """
    alike = [f for f in operands if isinstance(f, Lifted)]
    if len(alike) == len(operands) and all(_are_alike(alike[0], f, axis) for f in alike):
        return _aligned_alike(alike, axis)
    maps = [as_channels(site, f, [axis])[0] for f in alike]
    # other axes may share atoms with this one
    maps = [f.renamed({a: Atom(a.size, a.name) for a in f.layout[axis]}) for f in maps]
    own = [f.layout[axis] for f in maps]
    met = list(zip(_match_cells(site, [Term(_without(f, axis)) for f in maps], operands), own))
    mapped = iter(met)
    parts = [next(mapped) if isinstance(f, Lifted) else _fill(site, f, axis, met) for f in operands]
    terms = _unify_atoms([t for t, _ in parts])
    space = _join_spaces([t.fact for t in terms if not t.uniform])
    layout = _broadcast([t.fact for t in terms])
    return [_with(replace(t.fact, space=space, layout=layout), axis, group) for t, (_, group) in zip(terms, parts)]


def _aligned_alike(maps: Sequence[Lifted], axis: int) -> list[Lifted]:
    """Maps that are alike but for their channels, along this axis, with the same atoms on the others."""
    first, space, aligned = maps[0], _joined_space(maps), []
    for x in maps:
        channels = tuple(Atom(a.size, a.name) for a in x.channels)
        batch = first.batch if first.batch.size > 1 else x.batch
        layout = tuple(channels if k == axis else group for k, group in enumerate(first.layout))
        aligned.append(replace(x, batch=batch, channels=channels, space=space, layout=layout))
    return aligned


def _fill(
    site: Site, fact: Fact, axis: int, maps: Sequence[tuple[Term, tuple[Atom, ...]]]
) -> tuple[Term, tuple[Atom, ...]]:
    """Repeat an operand that is the same at every position over the map; returns its atoms along the axis as well."""
    like = maps[0][0].fact
    if isinstance(fact, Unmapped):
        spread = _repeat(site, as_map(site, fact, like), axis, site.shape_of(fact))
    else:
        assert isinstance(fact, Known)
        term = _constant_term(_value(site, fact), [Term(_with(t.fact, axis, group)) for t, group in maps])
        assert term.value is not None
        spread = term.fact.on(site.constant(term.value[None], source=fact.name))
    filled = spread.on(expand_over(site, spread.map, spread.width, like))  # (N | 1, C, 1, …) -> (N, C, *space)
    return Term(_without(filled, axis), uniform=True), filled.layout[axis]


def _repeat(site: Site, x: Lifted, axis: int, shape: Sequence[int]) -> Lifted:
    """Repeat a value along the joined axis as often as the original does."""
    if x.rank != len(shape) or x.layout[axis] or shape[axis] == 1:
        return x
    new = atoms_of(shape[axis], "u")
    return _with(arrange(site, x, (*new, *x.channels)), axis, new)


def _without(fact: Lifted, axis: int) -> Lifted:
    return _with(fact, axis, ())


def _with(fact: Lifted, axis: int, group: tuple[Atom, ...]) -> Lifted:
    return replace(fact, layout=tuple(group if k == axis else g for k, g in enumerate(fact.layout)))


def _unfold_mismatched(
    site: Site, terms: Sequence[Term], values: Sequence[Array], shapes: Sequence[Sequence[int]]
) -> list[Term] | None:
    """The terms with those axes of the window unfolded on which they cannot broadcast; None if they all broadcast."""
    wanted: set[int | None] = set()
    live = {a.image for t in terms for a in t.fact.space if a.atoms and a.image is not None}
    for term in terms:  # a value reduced over the window meets the window
        wanted |= {a.image for a in term.fact.space if not a.atoms and a.image in live}
    rank = terms[0].fact.rank
    for image in live:  # positions along two axes of the result: an outer product
        along = {k for t in terms for k, g in enumerate(t.fact.layout) if any(_image(t.fact, a) == image for a in g)}
        wanted |= {image} if len(along) > 1 else set()
    for axis in range(rank):
        groups = [t.fact.layout[axis] for t in terms]
        places = {tuple(_image(t.fact, a) for a in g) for t, g in zip(terms, groups) if g}
        images = {i for place in places for i in place if i is not None}
        mixed = any((i is None) != (j is None) for p in places for q in places for i, j in zip(p, q))
        fixed = all(_fixed_axis(t.fact, g) is not None for t, g in zip(terms, groups) if g)
        for value in values:  # a constant that differs between positions
            k = axis - rank + value.ndim
            if images and not fixed and k >= 0 and value.shape[k] > 1 and np.any(value != value.take([0], k)):
                wanted |= images
        if any(shape[axis - rank] > 1 for shape in shapes if axis - rank + len(shape) >= 0):  # a second image
            wanted |= images
        if mixed or (len(images) > 1 and len(places) > 1):
            wanted |= images
    if not wanted:
        return None
    result, changed = [], False
    for term in terms:
        axes = [k for k, a in enumerate(term.fact.space) if a.atoms and a.image in wanted]
        changed |= bool(axes)
        result.append(replace(term, fact=unfold(site, term.fact, axes)) if axes else term)
    return result if changed else None


def _image(fact: Lifted, atom: Atom) -> int | None:
    """The image axis that an atom runs along; None for channels and the batch."""
    return next((a.image for a in fact.space if atom in a.atoms), None)


def _fixed_axis(fact: Lifted, group: Sequence[Atom]) -> int | None:
    """The axis of the map that is this axis of the original, if it has one window only, which is all of it."""
    k = fact.space_of(group)
    return k if k is not None and not fact.space[k].slides and fact.space[k].rate == 1 else None


def _with_features_in_space(site: Site, terms: Sequence[Term]) -> list[Term]:
    """The maps with the same axes in space: features that are in space for one of them are so for all."""
    result = list(terms)
    for axis in range(terms[0].fact.rank):
        if any(_is_in_space(t.fact, axis) for t in terms):
            for k, term in enumerate(result):
                group = term.fact.layout[axis]
                if group and set(group) <= set(term.fact.channels):
                    result[k] = replace(term, fact=features_to_space(site, term.fact, axis))
    return result


def _is_in_space(fact: Lifted, axis: int) -> bool:
    """Does this axis of the original consist of features that are an axis of the map's space?"""
    k = fact.space_of(fact.layout[axis])
    return k is not None and fact.space[k].image is None


def _on_the_same_axes(site: Site, terms: Sequence[Term]) -> list[Term]:
    """Bring maps to equal rank, by adding axes of length 1."""
    rank = max(len(t.fact.space) for t in terms)
    result = []
    for term in terms:
        fact, have = term.fact, len(term.fact.space)
        if have < rank:
            name = site.unsqueeze(fact.map, [2 + k for k in range(have, rank)])
            fact = replace(fact, map=name, space=(*fact.space, *[Axis(())] * (rank - have)))
        result.append(replace(term, fact=fact))
    if len({tuple(a.image for a in t.fact.space if a.image is not None) for t in result}) > 1:
        raise Unsupported("joins maps whose spatial axes are in different orders", code="permuted-axes")
    return result


def _constant_term(value: Array, terms: Sequence[Term]) -> Term:
    """A constant as a term. Its axes along the batch, or along a window that slides, shrink to one element.

    Raises:
        Unsupported: if it differs between the images of a batch.
    """
    like, rank = terms[0].fact, terms[0].fact.rank
    layout: list[tuple[Atom, ...]] = [()] * (rank - value.ndim)
    channels: list[Atom] = []
    space = [replace(a, atoms=()) for a in like.space]
    places = list[int]()  # for each axis of the constant, that of the map, with the channels first
    for k in range(value.ndim):
        axis = rank - value.ndim + k
        groups = [t.fact.layout[axis] for t in terms]
        batch = any(a is t.fact.batch for t, g in zip(terms, groups) for a in g)
        moving = any(_image(t.fact, a) is not None for t, g in zip(terms, groups) for a in g)
        fixed = next((j for t, g in zip(terms, groups) if g and (j := _fixed_axis(t.fact, g)) is not None), None)
        if fixed is not None and value.shape[k] > 1:
            space[fixed] = replace(space[fixed], atoms=atoms_of(value.shape[k], "k"))
            layout.append(space[fixed].atoms)
            places.append(2 + fixed)
            continue
        if value.shape[k] > 1 and (batch or moving):
            first = value.take([0], k)
            if np.any(value != first):
                raise Unsupported("a constant differs between the images of a batch", code="constant-per-image")
            value = first
        group = atoms_of(value.shape[k], "k")
        layout.append(group)
        places.append(1)
        channels += group
    fact = Lifted("", like.batch, tuple(channels), tuple(space), tuple(layout), like.elem_type)
    ordered = value.transpose(sorted(range(value.ndim), key=places.__getitem__))
    return Term(fact, ordered.reshape(fact.width, *fact.window), uniform=True)


def _unify_atoms(terms: Sequence[Term]) -> list[Term]:
    """Give the terms the same atoms: split their axes at each other's boundaries, and identify equal factors.

    Raises:
        Unsupported: if they do not broadcast, or the boundaries cut each other.
    """
    facts = [t.fact for t in terms]
    names: list[dict[Atom, Atom]] = [{} for _ in terms]
    seen: set[Atom] = set()
    order = sorted(range(len(terms)), key=lambda k: terms[k].uniform)
    for axis in range(facts[0].rank):
        wide = [k for k in order if facts[k].layout[axis]]
        if not wide:
            continue
        sizes = _boundaries([[a.size for a in facts[k].layout[axis]] for k in wide], facts, axis)
        for k in wide:
            facts[k] = facts[k].refined(axis, sizes)
        first = facts[wide[0]]
        named = first.layout[axis]
        if not seen.isdisjoint(named):  # an outer product: the same factor runs along another axis already
            if any(a not in first.channels for a in named):
                raise Unsupported(f"joins {facts[0]} with {first}: different axes meet", code="axes-meet")
            named = tuple(Atom(a.size, a.name) for a in named)
        seen |= set(named)
        for k in wide:
            fact = facts[k]
            for atom, other in zip(fact.layout[axis], first.layout[axis]):
                if _kind(fact, atom) != _kind(first, other) and not terms[k].uniform:
                    raise Unsupported(f"joins {first} with {fact}: different axes meet", code="axes-meet")
            names[k] |= dict(zip(fact.layout[axis], named))
    return [replace(t, fact=f.renamed(new)) for t, f, new in zip(terms, facts, names)]


def _kind(fact: Lifted, atom: Atom) -> tuple[int, int | None]:
    return min(fact.place(atom), 2), _image(fact, atom)


def _boundaries(rows: Sequence[Sequence[int]], facts: Sequence[Lifted], axis: int) -> list[int]:
    """The factors, row-major, of one axis that is split at the boundaries of all of these factorisations.

    Raises:
        Unsupported: if the factorisations differ in size, or their boundaries cut each other.
    """
    totals = {math.prod(r) for r in rows}
    if len(totals) > 1:
        raise Unsupported(
            f"operands of {' and '.join(map(dim_of, sorted(totals)))} elements do not broadcast along axis {axis}",
            code="broadcast",
        )
    cuts = sorted({math.prod(row[k:]) for row in rows for k in range(len(row) + 1)}, reverse=True)
    if any(a % b for a, b in itertools.pairwise(cuts)):
        raise Unsupported(f"joins {' with '.join(map(str, facts))}: their factors cut each other", code="axes-meet")
    return [a // b for a, b in itertools.pairwise(cuts)]


def _operand(site: Site, term: Term, channels: Sequence[Atom], fact: Fact) -> Operand:
    """The physical operand of a term, with its channels in the common order or one channel that broadcasts."""
    have = [a for a in channels if a in term.fact.channels]
    if term.value is None:
        return arrange(site, term.fact, channels if have and len(have) < len(channels) else have)
    assert isinstance(fact, Known)
    if term.value.size == 1:
        return fact if site.value(fact).ndim <= 1 else site.constant(term.value.reshape(()), source=fact.name)
    cells, axes = term.value.shape[1:], len(term.fact.channels)
    value = term.value.reshape([*(a.size for a in term.fact.channels), *cells])
    value = value.transpose([*(term.fact.channels.index(a) for a in have), *range(axes, value.ndim)])
    value = value.reshape([*(a.size if a in have else 1 for a in channels), *cells])
    value = np.broadcast_to(value, [*(a.size for a in channels), *cells]).reshape(-1, *cells)
    return site.constant(value, source=fact.name)


def _join_spaces(facts: Sequence[Lifted]) -> tuple[Axis, ...]:
    """The axes of a map that is computed from several maps.

    Raises:
        Unsupported: if their cells have different strides.
    """
    result = []
    for axes in zip(*(f.space for f in facts)):
        if len({a.atoms for a in axes if a.atoms}) > 1:
            raise Unsupported(f"joins {' with '.join(map(str, facts))}: different axes meet", code="axes-meet")
        strides = sorted({a.stride * a.rate for a in axes})
        if len({(a.stride, a.rate) for a in axes}) > 1:
            reason = f"joins maps with a cell every {' and every '.join(map(str, strides))} pixels"
            if any((s / strides[0]).denominator > 1 for s in strides) and any(s.denominator > 1 for s in strides):
                raise Unsupported(
                    f"{reason}: one was resized to the size of another, which is another scale at other sizes",
                    code="sizes-meet",
                    hint="export the network for an image size at which its strides leave no cells over",
                )
            raise Unsupported(reason, code="strides-meet")
        joined = next((a for a in axes if a.atoms), axes[0])
        for axis in axes:
            joined = joined.joined(axis)
        result.append(joined)
    return tuple(result)
