"""Elementwise operators: of one map, or of several operands that broadcast in the order of the original tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.emitter import RAISE_OPSET, Operand
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.layouts import (
    arrange,
    as_channels,
    as_map,
    levelled,
    rearranged,
    repeated_over,
    source_of,
    unfold,
)
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, atoms_of, counted
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site

BOOL = onnx.TensorProto.BOOL


@lifts(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu"),
    *("Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
def unary(site: Site, x: Lifted) -> Lifted:
    """One value in, one out: unchanged at every position."""
    return x.on(site.emit([x]))


@lifts("Gelu", "QuickGelu", domain="com.microsoft")
def contributed_unary(site: Site, x: Lifted) -> Lifted:
    """One value in, one out."""
    return x.on(site.emit([x]))


@lifts("IsInf", "IsNaN")
def predicate(site: Site, x: Lifted) -> Lifted:
    """One value in, one truth value out."""
    return x.on(site.emit([x]), BOOL)


@lifts("Cast")
def cast(site: Site, x: Lifted) -> Lifted:
    """Another type."""
    return x.on(site.emit([x]), site.type_attr("to"))


@lifts("CastLike")
def cast_like(site: Site, x: Fact, like: Fact) -> Fact:
    """The type of another tensor."""
    if isinstance(x, Known) and isinstance(like, Lifted):
        value = site.value(x).astype(site.dtype(like.elem_type))
        return site.known(value, at_run_time=site.emit([x], "Cast", to=like.elem_type))
    if not isinstance(x, Lifted):
        raise Unsupported("casts a per-image value to the type of a map", code="not-constant")
    if isinstance(like, Lifted):
        return x.on(site.emit([x], "Cast", to=like.elem_type), like.elem_type)
    if isinstance(like, Known):
        to = onnx.helper.np_dtype_to_tensor_dtype(site.value(like).dtype)
        return x.on(site.emit([x, like]), to)
    raise Unsupported("casts to a type that is not known", code="not-constant")


@lifts("Clip")
def clip(site: Site, x: Fact, *limits: Fact | None) -> Lifted:
    """Between two scalars."""
    if not isinstance(x, Lifted) or any(isinstance(f, Lifted) for f in limits):
        raise Unsupported("clips to limits that depend on the position", code="not-constant")
    return x.on(site.emit([x, *limits]))


@lifts("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Sum", "Mean", "Max", "Min", "PRelu", "BitShift")
@lifts("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
def arithmetic(site: Site, *operands: Fact) -> Lifted:
    """Operands that broadcast to one shape."""
    if site.opset < 8 and site.op in ("Max", "Mean", "Min", "Sum") and not all(isinstance(f, Lifted) for f in operands):
        raise Unsupported(f"{site.op} does not broadcast before opset 8", code="opset", hint=RAISE_OPSET)
    return combine(site, operands)


@lifts("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def comparison(site: Site, *operands: Fact) -> Lifted:
    """A truth value for each element."""
    return replace(combine(site, operands), elem_type=BOOL)


@lifts("Where")
def where(site: Site, condition: Fact, chosen: Fact, other: Fact) -> Lifted:
    """A choice for each element."""
    kinds = [f.elem_type for f in (chosen, other) if isinstance(f, Lifted)]
    made = combine(site, [condition, chosen, other])
    return replace(made, elem_type=kinds[0] if kinds else site.elem_type_of(chosen))


@dataclass(frozen=True)
class Term:
    """One operand of a broadcast as a map: a mapped tensor, or a value that is the same at every position.

    Attributes:
        fact: its layout, over the axes of the result; the map's name is empty for a constant.
        value: a constant's elements, in the order of `fact.channels`.
        uniform: the same at every position: it has no window that could be contracted.
    """

    fact: Lifted
    value: Array | None = None
    uniform: bool = False

    def on_axes(self, rank: int) -> Term:
        """With leading axes of size 1, as broadcasting adds them."""
        return replace(self, fact=replace(self.fact, layout=((),) * (rank - self.fact.rank) + self.fact.layout))


def combine(
    site: Site,
    operands: Sequence[Fact],
    op: str | None = None,
    emit: Callable[[list[Operand]], str] | None = None,
) -> Lifted:
    """Emit an elementwise operator of mapped, unmapped and constant operands that broadcast as the originals did.

    Maps are brought to one order of channels, constants to (C, 1, …), and per-image values to (N, C, 1, …). Where a
    constant or a reduced value differs between the positions of a live window, the window is unfolded first.

    Raises:
        Unsupported: the maps lie on different grids, or one's channels meet another's positions.
    """
    operands = [rearranged(site, f) if isinstance(f, Lifted) else f for f in operands]
    maps = [f for f in operands if isinstance(f, Lifted)]
    values = {k: site.frozen(f) if f.sized else site.value(f) for k, f in enumerate(operands) if isinstance(f, Known)}
    rank = max(f.rank for f in maps)
    shapes = [source_of(site, f)[1] for f in operands if isinstance(f, Unmapped)]
    rank = max([rank, *(v.ndim for v in values.values()), *map(len, shapes)])
    terms = [Term(f).on_axes(rank) for f in maps]
    while (unfolded := _unfolded(site, terms, list(values.values()), shapes)) is not None:
        terms = unfolded
    terms = _level(site, _on_the_same_axes(site, terms))
    like, mapped = terms[0].fact, iter(terms)
    everything = [
        next(mapped)
        if isinstance(f, Lifted)
        else Term(as_map(site, f, like), uniform=True).on_axes(rank)
        if isinstance(f, Unmapped)
        else _constant(values[k], terms)
        for k, f in enumerate(operands)
    ]
    everything = _unified(everything)
    widest = max((t.fact for t in everything if not t.uniform), key=lambda f: f.width)
    facts = [t.fact for t in everything]
    channels = list(widest.channels)
    channels += dict.fromkeys(a for f in facts for a in f.channels if a not in channels)
    physical = [_operand(site, t, channels, f) for t, f in zip(everything, operands)]
    y = emit(physical) if emit is not None else site.emit(physical, op)
    moving = [t.fact for t in everything if not t.uniform]
    return Lifted(
        y,
        widest.batch,
        tuple(channels),
        _joined(moving),
        tuple(next((g for g in groups if g), ()) for groups in zip(*(f.layout for f in facts))),
        widest.elem_type,
        frozenset().union(*(f.origins for f in moving)),
        next((f.padding for f in moving if f.padding is not None), None),
        next((f.unfolded for f in moving if f.unfolded is not None), None),
        next((f.folded for f in moving if f.folded is not None), None),
    ).canonical()


def aligned(site: Site, operands: Sequence[Fact], axis: int) -> list[Lifted]:
    """Operands that will be joined along one axis, as maps whose other axes are made of the same atoms.

    Along that axis each keeps its own atoms, as channels.

    Raises:
        Unsupported: the maps lie on different grids, or different axes meet.
    """
    maps = [as_channels(site, f, [axis])[0] for f in operands if isinstance(f, Lifted)]
    maps = [f.renamed({a: Atom(a.size, a.name) for a in f.layout[axis]}) for f in maps]  # other axes may have them too
    groups = [f.layout[axis] for f in maps]
    values = [site.frozen(f) if f.sized else site.value(f) for f in operands if isinstance(f, Known)]
    terms = [Term(_without(f, axis)) for f in maps]
    shapes = [source_of(site, f)[1] for f in operands if isinstance(f, Unmapped)]
    while (unfolded := _unfolded(site, terms, values, shapes)) is not None:
        terms = unfolded
    terms = _level(site, _on_the_same_axes(site, terms))
    mapped, constants = iter(zip(terms, groups)), iter(values)
    everything: list[tuple[Term, tuple[Atom, ...]]] = []
    for fact in operands:
        if isinstance(fact, Lifted):
            everything.append(next(mapped))
            continue
        if isinstance(fact, Unmapped):
            spread = _repeated(site, as_map(site, fact, terms[0].fact), axis, site.shape_of(fact))
        else:
            term = _constant(next(constants), [Term(_with(t.fact, axis, g)) for t, g in zip(terms, groups)])
            assert term.value is not None
            value = term.value.reshape(1, -1, *[1] * len(term.fact.space))
            spread = term.fact.on(site.constant(value, source=fact.name if isinstance(fact, Known) else None))
        filled = spread.on(repeated_over(site, spread.map, spread.width, terms[0].fact))
        everything.append((Term(_without(filled, axis), uniform=True), filled.layout[axis]))
    facts = [t.fact for t in _unified([t for t, _ in everything])]
    space = _joined([f for f, (t, _) in zip(facts, everything) if not t.uniform])
    layout = tuple(next((g for g in groups if g), ()) for groups in zip(*(f.layout for f in facts)))
    return [_with(replace(f, space=space, layout=layout), axis, group) for f, (_, group) in zip(facts, everything)]


def _repeated(site: Site, x: Lifted, axis: int, shape: Sequence[int]) -> Lifted:
    """A value that was repeated along the axis that it is joined on, as many times."""
    if x.rank != len(shape) or x.layout[axis] or shape[axis] == 1:
        return x
    new = atoms_of(shape[axis], "u")
    return _with(arrange(site, x, (*new, *x.channels)), axis, new)


def _without(fact: Lifted, axis: int) -> Lifted:
    return _with(fact, axis, ())


def _with(fact: Lifted, axis: int, group: tuple[Atom, ...]) -> Lifted:
    return replace(fact, layout=tuple(group if k == axis else g for k, g in enumerate(fact.layout)))


def _unfolded(
    site: Site, terms: Sequence[Term], values: Sequence[Array], shapes: Sequence[Sequence[int]]
) -> list[Term] | None:
    """The terms with one axis of the window unfolded on which they could not broadcast; None when there is none."""
    wanted: set[int | None] = set()
    live = {a.image for t in terms for a in t.fact.space if a.atoms}
    for term in terms:  # a value that was reduced over the window meets the window
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
        for value in values:  # a constant that differs between positions
            k = axis - rank + value.ndim
            if images and k >= 0 and value.shape[k] > 1 and np.any(value != value.take([0], k)):
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
    """The axis of the image that an atom runs along; None for channels and the batch."""
    return next((a.image for a in fact.space if atom in a.atoms), None)


def _on_the_same_axes(site: Site, terms: Sequence[Term]) -> list[Term]:
    """Maps of equal rank: those that lack axes of length 1 get them."""
    rank = max(len(t.fact.space) for t in terms)
    result = []
    for term in terms:
        fact, have = term.fact, len(term.fact.space)
        if have < rank:
            name = site.unsqueeze(fact.map, [2 + k for k in range(have, rank)])
            fact = replace(fact, map=name, space=(*fact.space, *[Axis(())] * (rank - have)))
        result.append(replace(term, fact=fact))
    if len({tuple(a.image for a in t.fact.space if a.image is not None) for t in result}) > 1:
        raise Unsupported("joins maps whose axes are permuted", code="permuted-axes")
    return result


def _level(site: Site, terms: Sequence[Term]) -> list[Term]:
    return [replace(t, fact=fact) for t, fact in zip(terms, levelled(site, [t.fact for t in terms]))]


def _constant(value: Array, terms: Sequence[Term]) -> Term:
    """A constant as a term: axes that run along the batch or the window shrink to one element.

    Raises:
        Unsupported: it differs between the images of a batch.
    """
    like, rank = terms[0].fact, terms[0].fact.rank
    layout: list[tuple[Atom, ...]] = [()] * (rank - value.ndim)
    channels: list[Atom] = []
    for k in range(value.ndim):
        axis = rank - value.ndim + k
        groups = [t.fact.layout[axis] for t in terms]
        batch = any(a is t.fact.batch for t, g in zip(terms, groups) for a in g)
        moving = any(_image(t.fact, a) is not None for t, g in zip(terms, groups) for a in g)
        if value.shape[k] > 1 and (batch or moving):
            first = value.take([0], k)
            if np.any(value != first):
                raise Unsupported("a constant differs between the images of a batch", code="constant-per-image")
            value = first
        group = atoms_of(value.shape[k], "k")
        layout.append(group)
        channels += group
    space = tuple(replace(a, atoms=()) for a in like.space)
    return Term(Lifted("", like.batch, tuple(channels), space, tuple(layout), like.elem_type), value.reshape(-1), True)


def _unified(terms: Sequence[Term]) -> list[Term]:
    """The same terms with the same atoms: axes are split at each other's boundaries, and equal factors identified.

    Raises:
        Unsupported: they do not broadcast, or the boundaries cut each other.
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
    """Factors, row-major, that have the boundaries of all of these factorisations of one axis."""
    totals = {math.prod(r) for r in rows}
    if len(totals) > 1:
        raise Unsupported(
            f"operands of {' and '.join(map(counted, sorted(totals)))} elements do not broadcast along axis {axis}",
            code="broadcast",
        )
    cuts = sorted({math.prod(row[k:]) for row in rows for k in range(len(row) + 1)}, reverse=True)
    if any(a % b for a, b in itertools.pairwise(cuts)):
        raise Unsupported(f"joins {' with '.join(map(str, facts))}: their factors cut each other", code="axes-meet")
    return [a // b for a, b in itertools.pairwise(cuts)]


def _operand(site: Site, term: Term, channels: Sequence[Atom], fact: Fact) -> Operand:
    """The physical operand of a term: its channels in the common order, or one channel that broadcasts."""
    have = [a for a in channels if a in term.fact.channels]
    if term.value is None:
        return arrange(site, term.fact, channels if have and len(have) < len(channels) else have)
    assert isinstance(fact, Known)
    if term.value.size == 1:
        return fact if site.value(fact).ndim <= 1 else site.constant(term.value.reshape(()), source=fact.name)
    value = term.value.reshape([a.size for a in term.fact.channels])
    value = value.transpose([term.fact.channels.index(a) for a in have])
    value = value.reshape([a.size if a in have else 1 for a in channels])
    value = np.broadcast_to(value, [a.size for a in channels]).reshape(-1, *[1] * len(term.fact.space))
    return site.constant(value, source=fact.name)


def _joined(facts: Sequence[Lifted]) -> tuple[Axis, ...]:
    """The axes of a map that was made of several.

    Raises:
        Unsupported: their cells lie at different strides.
    """
    result = []
    for axes in zip(*(f.space for f in facts)):
        strides = {a.stride * a.rate for a in axes}
        if len({(a.stride, a.rate) for a in axes}) > 1:
            raise Unsupported(
                f"joins maps with a cell every {' and every '.join(str(s) for s in sorted(strides))} pixels",
                code="strides-meet",
            )
        joined = next((a for a in axes if a.atoms), axes[0])
        for axis in axes:
            joined = joined.joined(axis)
        result.append(joined)
    return tuple(result)
