"""The walk: one pass from the image to the outputs that lifts every operator by its rule, trunk and head alike.

Converting a classifier is vectorising it over window positions, as `jax.vmap` vectorises over a batch axis. Each
tensor gets one fact (`lifting/facts.py`).

A node without a lifted operand is left unchanged: *unmapped means untouched*. A node with one needs a rule; a rule
reads facts, asks its `Site` for new nodes, and returns the facts of its outputs. The new nodes wait in the seat of the
node that they replace: the model is not changed before the whole walk has succeeded.

**Context.** A gate such as squeeze-and-excite cannot be told from a head in advance: both begin with a pooling over
the whole window. So every such reduction is an *origin* of what it computes; when a value meets a live map again,
the walk rewinds to its origins and marks them as context: they stay global, and their branch stays unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import onnx_graphsurgeon as gs

from onnx_fcn._types import Array
from onnx_fcn.errors import Diagnostic, Unsupported
from onnx_fcn.lifting.constants import stored_in
from onnx_fcn.lifting.facts import KINDS, Blocked, Fact, Known, Unmapped
from onnx_fcn.lifting.folding import same_folding
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Rewind, Seat, Walk, at_node
from onnx_fcn.lifting.refusals import EVALUATION, PER_POSITION, REORDERED, REPLACE, SUBGRAPHS, hint_for, product_of_maps
from onnx_fcn.lifting.signatures import check_operands
from onnx_fcn.lifting.site import Site
from onnx_fcn.model.edit import Weight
from onnx_fcn.model.graphs import names_used
from onnx_fcn.model.operators import ATTENTION, FACTORS, RANDOM, REORDERS, SPREADS
from onnx_fcn.rules import rule_of
from onnx_fcn.walk.ends import as_image_map, check_meeting, delivered, named

__all__ = ["run"]


def run(state: Walk) -> Walk:
    """Lift every node in order, and deliver the outputs."""
    state.facts[state.image.name] = as_image_map(Site(state, -1, state.prologue), state.image)
    position = 0
    while position < len(state.seats):
        seat = state.seats[position]
        try:
            _step(state, position, seat)
        except Rewind as rewind:
            state.context |= rewind.seats
            position = min(rewind.seats)
            _forget(state, position)
            continue
        position += 1
    if state.succeeded:
        for name in state.outputs:
            _deliver(state, name)
    return state


def _deliver(state: Walk, name: str) -> None:
    """Bring one output into the form (N, C, *grid), in a seat after all others."""
    fact = state.facts.get(name)
    if not isinstance(fact, Lifted):
        return
    node = gs.Node("Output", name, outputs=[gs.Variable(name)])
    seat = Seat(node, onnx.NodeProto(), len(state.seats), replaced=True, operands=(fact,))
    state.epilogue.append(seat)
    try:
        state.results[name] = delivered(Site(state, len(state.seats), seat), fact)
    except Unsupported as refusal:
        state.diagnostics[len(state.seats)] = Diagnostic(refusal.code, name, "output", refusal.reason, refusal.hint)


def _forget(state: Walk, position: int) -> None:
    state.counts.clear()  # since names are given back
    for k in range(position, len(state.seats)):
        seat = state.seats[k]
        for emission in seat.emissions:
            state.names -= {emission.node.name, *(o.name for o in emission.node.outputs)} - seat.own_names
        state.names -= set(seat.constants)
        seat.emissions, seat.constants, seat.sources, seat.changes = [], {}, {}, []
        seat.replaced, seat.slides, seat.repeated = False, None, 0
        for output in seat.node.outputs:
            state.facts.pop(output.name, None)
        state.diagnostics.pop(k, None)
        state.products.pop(k, None)


def _step(state: Walk, position: int, seat: Seat) -> None:
    """Find the facts of one node's outputs."""
    node, facts = seat.node, state.facts
    names = [t.name for t in node.inputs]
    implicit = sorted(set(names_used(seat.proto)) - {"", *names})
    operands = tuple(facts[n] if n else None for n in names)
    seat.operands = operands
    everything = [f for f in (*operands, *(facts[n] for n in implicit if n in facts)) if f is not None]
    condition = next(iter(operands), None)
    outputs: Sequence[Fact]
    blocked = [f for f in everything if isinstance(f, Blocked)]
    if blocked:
        origins: frozenset[int] = frozenset().union(*(f.origins for f in blocked))
        causes: frozenset[int] = frozenset().union(*(f.causes for f in blocked))
        if origins and any(isinstance(f, Lifted) and f.is_live for f in everything):
            raise Rewind(origins)
        if _is_product(node, operands):
            state.products[position] = causes
        outputs = [Blocked(origins, causes)] * len(node.outputs)
    elif node.op in RANDOM and node.domain in (None, "", "ai.onnx"):
        reason = "gives other values in every run, so that no answer can be compared with the original's"
        state.diagnostics[position] = Diagnostic("random", seat.name, node.op, reason, EVALUATION)
        outputs = [Blocked(causes=frozenset({position}))] * len(node.outputs)
    elif node.op == "If" and isinstance(condition, Known) and any(isinstance(f, Lifted) for f in everything):
        outputs = _inline_branch(state, position, seat, condition)
    elif not any(isinstance(f, Lifted) for f in everything):
        outputs = _untouched(state, seat, everything)
        sized = [f for f in operands if isinstance(f, Known) and f.sized]
        beside = all(type(f) is Unmapped and f.spread is None and not f.context for f in outputs)
        if sized and beside and not implicit:
            outputs = _frozen(Site(state, position, seat), operands, sized, outputs)
    else:
        site = Site(state, position, seat)
        try:
            outputs = _apply(site, seat, operands, implicit)
        except Unsupported as refusal:
            lifted = [f for f in everything if isinstance(f, Lifted)]
            state.diagnostics[position] = _diagnosed(state, seat, refusal, lifted)
            origins = frozenset().union(*(f.origins for f in lifted if not f.is_live))
            origins = origins if origins <= state.reductions else frozenset()
            outputs = [Blocked(origins, frozenset({position}))] * len(node.outputs)
    for tensor, fact in zip(node.outputs, outputs):
        if tensor.name:
            facts[tensor.name] = fact


def _is_product(node: gs.Node, operands: Sequence[Fact | None]) -> bool:
    """Does a node multiply two values that depend on the image, counting those that were refused?"""
    if node.op in ATTENTION:
        return True
    places = FACTORS.get(node.op, ())
    factors = [operands[k] for k in places if k < len(operands)]
    return len(factors) == 2 and all(isinstance(f, Blocked | Lifted) for f in factors)


def _diagnosed(state: Walk, seat: Seat, refusal: Unsupported, lifted: list[Lifted]) -> Diagnostic:
    """A refusal with its node, or with an earlier node at fault that mixed positions or turned them into channels."""
    mixing = sorted(k for f in lifted for k in f.origins if any(c.kind == "dense" for c in state.seats[k].changes))
    if mixing and refusal.code == "unfold-too-large":
        layer = state.seats[mixing[-1]]
        reason = f"mixes the positions of a window, and {seat.node.op} '{seat.name}', after it, {refusal.reason}"
        return at_node(layer, Unsupported(reason, code="mixes-positions", hint=refusal.hint))
    unfolded = next((f.unfolded for f in lifted if f.unfolded is not None), None)
    if unfolded is None or refusal.code not in ("not-channels", "not-spatial"):
        return at_node(seat, refusal)
    earlier = state.seats[unfolded]
    return Diagnostic(
        "per-position",
        earlier.name,
        earlier.node.op,
        f"treats the positions of a window in different ways, and {seat.node.op} '{seat.name}' slides over the result",
        REORDERED if earlier.node.op in REORDERS else PER_POSITION,
    )


def _apply(site: Site, seat: Seat, operands: tuple[Fact | None, ...], implicit: list[str]) -> Sequence[Fact]:
    rule = rule_of(seat.node.domain, seat.node.op)
    domain = f"{seat.node.domain}." if seat.node.domain else ""
    if rule is None and seat.node.op in ATTENTION:
        raise product_of_maps()
    if rule is None:
        raise Unsupported(
            f"there is no rule for {domain}{seat.node.op}, so its meaning at every position is unknown",
            code="no-rule",
            hint=hint_for(seat.node.domain, seat.node.op),
        )
    if implicit:
        raise Unsupported("its subgraph reads a map", code="subgraph", hint=SUBGRAPHS.get(seat.node.op, REPLACE))
    check_operands(rule, operands, KINDS)
    check_meeting(site, operands)
    seat.replaced = True
    result = rule(site, *same_folding(site, operands))
    outputs: Sequence[Fact] = [result] if isinstance(result, Lifted | Known | Unmapped | Blocked) else list(result)
    if any(isinstance(f, Lifted) and 0 in f.shape and site.has_output(k) for k, f in enumerate(outputs)):
        raise Unsupported("gives a tensor without any values", code="empty", hint="crop less, or reduce over less")
    if site.is_context or any(isinstance(f, Unmapped) and f.context for f in operands):
        outputs = [_everywhere(f) for f in outputs]
    return named(site, outputs)


def _everywhere(fact: Fact) -> Fact:
    """The fact of a tensor that depends on the whole image."""
    if isinstance(fact, Lifted):
        return replace(fact, space=tuple(replace(a, field=a.field.everywhere()) for a in fact.space))
    return replace(fact, context=True) if isinstance(fact, Unmapped) else fact


def _untouched(state: Walk, seat: Seat, operands: list[Fact]) -> Sequence[Fact]:
    """The facts of a node without a mapped operand, which stays unchanged."""
    names = [o.name for o in seat.node.outputs]
    unmapped = [f for f in operands if isinstance(f, Unmapped)]
    sized = any(isinstance(f, Known) and f.sized for f in operands)
    if not unmapped:
        return [Known(n, sized) for n in names]
    if seat.node.op == "Shape" and (shape := _static_shape(state, seat, unmapped[0].name)) is not None:
        state.values.set(names[0], shape)
        return [Known(names[0], sized=True)]
    if seat.node.op in SPREADS and isinstance(operands[0], Unmapped):
        return [replace(operands[0], name=names[0], spread=operands[0].spread or operands[0].name)]
    return [Unmapped(n, context=any(f.context for f in unmapped)) for n in names]


def _frozen(
    site: Site, operands: Sequence[Fact | None], sized: Sequence[Known], outputs: Sequence[Fact]
) -> Sequence[Fact]:
    """Replace the sizes of the image that a node beside it reads by those of a window.

    The batch size is still read from the image: it is the same for all windows.
    """
    try:
        for fact in sized:
            site.frozen(fact)
    except Unsupported:
        return outputs
    return named(site, [Unmapped(name) for name in site.replace_operands(operands)])


def _static_shape(state: Walk, seat: Seat, name: str) -> Array | None:
    import numpy as np

    shape = state.shape_of(name)
    if shape is None or any(d is None for d in shape):
        return None
    start, end = seat.node.attrs.get("start", 0), seat.node.attrs.get("end")
    return np.array(shape[start:end], np.int64)


def _inline_branch(state: Walk, position: int, seat: Seat, condition: Known) -> Sequence[Fact]:
    """Replace an If by the nodes of the branch that its constant condition chooses."""
    chosen = "then_branch" if bool(state.values[condition.name].reshape(-1)[0]) else "else_branch"
    view: gs.Graph = seat.node.attrs[chosen]
    graph = next(a.g for a in seat.proto.attribute if a.name == chosen)
    for name, tensor in stored_in(graph).items():
        array = state.values.add(name, tensor)
        elem_type = tensor.data_type if isinstance(tensor, onnx.TensorProto) else tensor.values.data_type
        seat.constants[name] = Weight(array, array.shape, elem_type)
        state.facts[name] = Known(name)
    seat.replaced = True
    if not seat.unfolded:
        seat.unfolded = True
        inner = [Seat(node, proto, seat.index) for node, proto in zip(view.nodes, graph.node)]
        for result, output in zip(graph.output, seat.proto.output):
            alias = gs.Node("Identity", output, inputs=[gs.Variable(result.name)], outputs=[gs.Variable(output)])
            inner.append(Seat(alias, onnx.helper.make_node("Identity", [result.name], [output]), seat.index))
        state.seats[position + 1 : position + 1] = inner
        state.values.produce(s.proto for s in inner)
    return []
