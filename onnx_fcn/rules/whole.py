"""Rules between the positions of the whole map: what attention does with scores, on the axes of the original.

They are in a registry of their own: the same operators mean something else at every window. Each node stays as it is,
except for sizes that are written into it, and its rule says which factors the axes of its result have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import onnx

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.facts import KINDS, Extent, Fact, Known, Shared, Unmapped, Whole
from onnx_fcn.lifting.lifted import Atom, Lifted, atoms_of
from onnx_fcn.lifting.refusals import ONE_ANSWER, RUN_THE_REST
from onnx_fcn.lifting.signatures import check_operands
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.whole import check_same, map_of, regrouped, renewed, shape_at_run_time, whole_of
from onnx_fcn.rules.dense import letters_of
from onnx_fcn.rules.layout import resolve_shape

__all__ = ["on_whole_map", "operators", "rule_between"]


#: A rule: `rule(site, *facts of the operands) -> fact(s) of the outputs`.
WholeRule = Callable[..., "Fact | Sequence[Fact]"]

_RULES: dict[str, WholeRule] = {}

R = TypeVar("R", bound=WholeRule)

BOOL = onnx.TensorProto.BOOL


def between(*operators: str) -> Callable[[R], R]:
    """Register a function as the rule of operators between positions: `rule(site, *facts) -> fact(s)`."""

    def register(rule: R) -> R:
        assert _RULES.keys().isdisjoint(operators)
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


def operators() -> list[str]:
    """Every operator that has a rule between positions."""
    return sorted(_RULES)


def rule_between(domain: str | None, operator: str) -> WholeRule | None:
    """The rule of an operator between positions, or None."""
    return _RULES.get(operator) if domain in (None, "", "ai.onnx") else None


def on_whole_map(site: Site, operands: Sequence[Fact | None]) -> list[Fact]:
    """The facts of a node that relates positions to each other, or reads what does.

    Raises:
        Unsupported: if it has no meaning for images of other sizes, or no rule.
    """
    rule = rule_between(site.node.domain, site.op)
    if rule is None and not any(isinstance(f, Lifted) or (isinstance(f, Whole) and f.has_positions) for f in operands):
        raise Unsupported(f"reads {ONE_ANSWER}", code="attention-answer", hint=RUN_THE_REST)
    if rule is None:
        raise Unsupported(
            f"reads what attention computed between positions, where there is no rule for {site.op}",
            code="no-rule",
            hint=RUN_THE_REST,
        )
    given = [whole_of(site, f) if isinstance(f, Lifted) else f for f in operands]
    check_operands(rule, given, KINDS)
    made = rule(site, *given)
    facts: Sequence[Fact] = [made] if isinstance(made, Fact) else made
    return [map_of(site, f) for f in facts]


# One operand --------------------------------------------------------------------------------------------------------


@between("Abs", "Elu", "Erf", "Exp", "Gelu", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh")
@between("Identity")
def unary(site: Site, x: Whole) -> Whole:
    """One value in, one value out."""
    return replace(x, name=site.emit([x]))


@between("IsNaN", "IsInf", "Not")
def predicate(site: Site, x: Whole) -> Whole:
    """One truth value for each element."""
    return replace(x, name=site.emit([x]), elem_type=BOOL)


@between("Cast")
def cast(site: Site, x: Whole) -> Whole:
    """Conversion to another type."""
    return replace(x, name=site.emit([x]), elem_type=site.type_attr("to"))


@between("Clip")
def clip(site: Site, x: Whole, *limits: Known | None) -> Whole:
    """Values limited by two constants."""
    return replace(x, name=site.emit([x, *limits]))


@between("Dropout")
def dropout(site: Site, x: Whole, *operands: Known | None) -> Whole:
    """The identity at inference.

    Raises:
        Unsupported: if it drops values, or its mask is used.
    """
    training = operands[1] if len(operands) > 1 else None
    if site.has_output(1) or (training is not None and site.value(training).any()):
        raise Unsupported("drops values at random, as in training", code="training")
    return replace(x, name=site.emit([x, *operands]))


@between("Softmax", "LogSoftmax")
def softmax(site: Site, x: Whole) -> Whole:
    """Along one axis, before opset 13 along that and all later ones: they may be positions of images of any size."""
    coerces = site.opset < 13
    first = x.axis(int(site.attr("axis", 1 if coerces else -1)))
    if any(x.batch in group for group in x.layout[first : None if coerces else first + 1]):
        raise Unsupported(f"weighs the images of a batch: {x}", code="batch")
    site.note_attention(x)
    return replace(x, name=site.emit([x]))


@between("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def reduce(site: Site, x: Whole, axes: Known | None = None) -> Whole:
    """Over some axes, which may be positions of images of any size."""
    over = site.axes(axes)
    if over is None:
        raise Unsupported("reduces over the batch, too", code="batch")
    gone = {x.axis(k) for k in over}
    if any(x.batch in x.layout[k] for k in gone):
        raise Unsupported(f"reduces over the batch: {x}", code="batch")
    site.note_attention(x)
    keeps = site.flag("keepdims", 1)
    layout = tuple(() if k in gone else group for k, group in enumerate(x.layout) if keeps or k not in gone)
    return replace(x, name=site.emit([x, axes]), layout=layout)


# Axes ---------------------------------------------------------------------------------------------------------------


@between("Transpose")
def transpose(site: Site, x: Whole) -> Whole:
    """A permutation of the axes."""
    perm = site.attr("perm") or list(range(x.rank))[::-1]
    if sorted(perm) != list(range(x.rank)):
        raise Unsupported(f"permutes {x.rank} axes by {perm}, which is not a permutation of them")
    return replace(x, name=site.emit([x]), layout=tuple(x.layout[k] for k in perm))


@between("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(site: Site, x: Whole, target: Known | None = None) -> Whole:
    """Row-major regrouping: a target with numbers of positions is computed at run time."""
    made = regrouped(x, _new_shape(site, x, target))
    name = site.emit([x, shape_at_run_time(site, x.layout, made.layout, x.extents)], "Reshape")
    return replace(made, name=name)


def _new_shape(site: Site, x: Whole, target: Known | None) -> list[int]:
    """The shape at the native size after an operator that only regroups axes."""
    if site.op == "Reshape":
        wanted = site.attr("shape") if target is None else site.ints(target)
        return resolve_shape(wanted or [], x, allowzero=site.flag("allowzero"))
    if site.op == "Flatten":
        axis = x.axis(int(site.attr("axis", 1)))
        return [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])]
    axes = site.axes(target)
    if site.op == "Squeeze":
        gone = {k for k, d in enumerate(x.shape) if d == 1} if axes is None else {x.axis(k) for k in axes}
        return [d for k, d in enumerate(x.shape) if k not in gone]
    rank = x.rank + len(axes or ())
    new, sizes = {k % rank for k in axes or ()}, iter(x.shape)
    return [1 if k in new else next(sizes) for k in range(rank)]


@between("Split")
def split(site: Site, x: Whole, sizes: Known | None = None) -> list[Whole]:
    """Parts of an axis that does not depend on the size of the image."""
    axis = _constant_axis(x, int(site.attr("axis", 0)))
    count = len(site.outputs)
    part = -(-x.shape[axis] // count)
    equal = [min(part, x.shape[axis] - k * part) for k in range(count)]
    widths = site.ints(sizes) or site.attr("split") or equal
    names = site.emit_many([x, sizes])
    return [replace(_resized(x, axis, n), name=name) for n, name in zip(widths, names)]


@between("Slice")
def slice_(site: Site, x: Whole, *bounds: Known) -> Whole:
    """A part of axes that do not depend on the size of the image."""
    given = [site.ints(f) for f in bounds] or [site.attr(name) for name in ("starts", "ends", "axes")]
    starts, ends, *more = (numbers or [] for numbers in given)
    axes = more[0] if more and more[0] else range(len(starts))
    steps = more[1] if more[1:] else [1] * len(starts)
    made = x
    for start, end, axis, step in zip(starts, ends, axes, steps):
        axis = _constant_axis(x, axis)
        made = _resized(made, axis, len(range(*slice(start, end, step).indices(x.shape[axis]))))
    return replace(made, name=site.emit([x, *bounds]))


@between("Shape")
def shape(site: Site, x: Whole) -> Known:
    """The shape at the native size."""
    return site.sized_output(np.array(x.shape, np.int64)[site.attr("start", 0) : site.attr("end")])


def _constant_axis(x: Whole, axis: int) -> int:
    """An axis whose size does not depend on the image.

    Raises:
        Unsupported: if it does.
    """
    axis = x.axis(axis)
    if any(a in x.extents for a in x.layout[axis]):
        raise Unsupported(f"takes a part of the positions of an image, {x}", code="attention-parts", hint=RUN_THE_REST)
    return axis


def _resized(x: Whole, axis: int, size: int) -> Whole:
    """The same with another size of a constant axis."""
    return replace(x, layout=(*x.layout[:axis], atoms_of(size, "k"), *x.layout[axis + 1 :]))


# Several operands ---------------------------------------------------------------------------------------------------


@between("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Sum", "And", "Or")
def arithmetic(site: Site, *operands: Whole | Shared) -> Whole:
    """Operands that broadcast to one shape."""
    found, names = _together(site, operands)
    rank = max(x.rank for x in found)
    layouts = [((),) * (rank - x.rank) + x.layout for x in found]
    return _made(site, found, _broadcast(site, layouts, _extents(found)), site.emit(names))


@between("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def comparison(site: Site, *operands: Whole | Shared) -> Whole:
    """A truth value for each element."""
    return replace(arithmetic(site, *operands), elem_type=BOOL)


@between("Where")
def where(site: Site, condition: Whole | Shared, chosen: Whole | Shared, other: Whole | Shared) -> Whole:
    """A choice for each element."""
    kinds = [f.elem_type for f in (chosen, other) if isinstance(f, Whole)]
    return replace(
        arithmetic(site, condition, chosen, other), elem_type=kinds[0] if kinds else site.elem_type_of(chosen)
    )


@between("MatMul")
def matmul(site: Site, a: Whole | Shared, b: Whole | Shared) -> Whole:
    """numpy.matmul: (…, M, K)·(…, K, O) -> (…, M, O)."""
    (x, y), names = _together(site, (a, b))
    if min(x.rank, y.rank) < 2:
        raise Unsupported(f"multiplies {x} and {y}, one of which is no matrix", code="rank", hint=RUN_THE_REST)
    rank, extents = max(x.rank, y.rank), _extents([x, y])
    first, second = (((),) * (rank - f.rank) + f.layout for f in (x, y))
    if x.batch in first[-1] or x.batch in second[-2]:
        raise Unsupported("sums over the batch", code="batch")
    check_same(site, first[-1], second[-2], extents)
    stacked = _broadcast(site, [first[:-2], second[:-2]], extents)
    site.note_attention(x if isinstance(a, Whole) else y)
    return _made(site, [x, y], (*stacked, first[-2], second[-1]), site.emit(names))


@between("Einsum")
def einsum(site: Site, *operands: Whole | Shared) -> Whole:
    """A sum of products over the letters that the result lacks."""
    found, names = _together(site, operands)
    terms, result = letters_of(site, [x.rank for x in found])
    extents, axes = _extents(found), dict[str, tuple[Atom, ...]]()
    for x, term in zip(found, terms):
        for letter, group in zip(term, x.layout):
            (axes[letter],) = _broadcast(site, [(axes.get(letter, ()),), (group,)], extents)
    summed = [a for letter, group in axes.items() if letter not in result for a in group]
    if any(x.batch in summed for x in found):
        raise Unsupported("sums over the batch", code="batch")
    if len(set(result)) != len(result) or any(len(set(t)) != len(t) for t in terms):
        raise Unsupported("takes a diagonal", code="einsum", hint=RUN_THE_REST)
    site.note_attention(next(x for x, f in zip(found, operands) if isinstance(f, Whole)))
    return _made(site, found, tuple(axes[letter] for letter in result), site.emit(names))


@between("Attention")
def attention(
    site: Site,
    q: Whole | Shared,
    k: Whole | Shared,
    v: Whole | Shared,
    mask: Whole | Shared | None = None,
    *rest: Fact | None,
) -> Whole:
    """Queries (N, heads, M, E), keys (N, heads, P, E), values (N, heads, P, O) -> (N, heads, M, O).

    Or with heads and features on one axis, (N, …, heads·E).

    Raises:
        Unsupported: if it continues another sequence, or gives more than the weighted values.
    """
    if any(f is not None for f in rest) or any(site.has_output(k) for k in range(1, 4)):
        raise Unsupported("attends to more than the positions of a map", code="attention", hint=RUN_THE_REST)
    given = [f for f in (q, k, v, mask) if f is not None]
    (queries, keys, values, *masks), names = _together(site, given)
    extents = _extents([queries, keys, values, *masks])
    if {queries.rank, keys.rank, values.rank} not in ({3}, {4}):
        raise Unsupported(f"attends to {keys}, which is not a list of positions", code="rank", hint=RUN_THE_REST)
    listed, cells = queries.layout[-2], keys.layout[-2]
    check_same(site, cells, values.layout[-2], extents)
    for x in masks:
        _broadcast(site, [x.layout[-2:], (listed, cells)[-x.rank :]], extents)
    _broadcast(site, [x.layout[:1] for x in (queries, keys, values)], extents)
    width = values.shape[-1]
    if queries.rank == 3:
        width = width // int(site.attr("kv_num_heads", 1)) * int(site.attr("q_num_heads", 1))
    site.note_attention(queries)
    return _made(site, [queries, keys, values], (*queries.layout[:-1], atoms_of(width, "o")), site.emit(names))


def _together(site: Site, operands: Sequence[Whole | Shared]) -> tuple[list[Whole], list[Operand]]:
    """Operands as tensors of the whole map with the same batch, and what the node reads for them."""
    batch = next(f.batch for f in operands if isinstance(f, Whole))
    found = []
    for fact in operands:
        x = fact if isinstance(fact, Whole) else _constant(site, fact, batch)
        swap = {x.batch: batch}
        layout = tuple(tuple(swap.get(a, a) for a in group) for group in x.layout)
        found.append(
            renewed(replace(x, batch=batch, layout=layout, extents={swap.get(a, a): e for a, e in x.extents.items()}))
        )
    kept: list[Operand] = [
        site.value(f) if isinstance(f, Known) and f.sized and not site.grows(f) else f for f in operands
    ]
    return found, kept


def _constant(site: Site, fact: Shared, batch: Atom) -> Whole:
    """A tensor without positions.

    Raises:
        Unsupported: if it has positions, or is a number computed from the size of the map: a larger image has others.
    """
    if isinstance(fact, Unmapped) and (fact.spread is not None or fact.even):
        raise Unsupported(
            f"reads '{fact.name}', which was repeated for each position", code="spread", hint=RUN_THE_REST
        )
    if isinstance(fact, Unmapped):
        shape = site.shape_of(fact)
    elif fact.sized and site.value(fact).dtype.kind == "f" and site.grows(fact):
        raise Unsupported("computes with the size of the map", code="sized-number", hint=RUN_THE_REST)
    else:
        shape = site.value(fact).shape
    own = isinstance(fact, Unmapped) and batch.size > 1
    layout = tuple((batch,) if own and d == batch.size else atoms_of(d, "k") for d in shape)
    return Whole(fact.name, batch, layout, {}, onnx.TensorProto.UNDEFINED)


def _extents(facts: Sequence[Whole]) -> dict[Atom, Extent]:
    return {a: e for x in facts for a, e in x.extents.items()}


def _broadcast(
    site: Site, layouts: Sequence[Sequence[tuple[Atom, ...]]], extents: Mapping[Atom, Extent]
) -> tuple[tuple[Atom, ...], ...]:
    """The axes of a result whose operands have these: along each, those that are not of size 1 agree."""
    made = []
    for groups in zip(*layouts):
        whole = [g for g in groups if g]
        for other in whole[1:]:
            check_same(site, whole[0], other, extents)
        made.append(whole[0] if whole else ())
    return tuple(made)


def _made(site: Site, operands: Sequence[Whole], layout: tuple[tuple[Atom, ...], ...], name: str) -> Whole:
    """The result of operands with this layout."""
    kind = next(x.elem_type for x in operands if x.elem_type)
    return Whole(name, operands[0].batch, layout, _extents(operands), kind)
