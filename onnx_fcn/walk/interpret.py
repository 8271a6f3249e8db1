"""The walk: one pass from the image to the outputs that lifts every operator by its rule, trunk and head alike.

Converting a classifier is vectorising it over window positions, as `jax.vmap` vectorises over a batch axis. Each
tensor gets one fact (`lifting/facts.py`).

A node without a lifted operand is left unchanged: *unmapped means untouched*. A node with one needs a rule; a rule
reads facts, asks its `Site` for new nodes, and returns the facts of its outputs. The new nodes wait in the slot of the
node that they replace: the model is not changed before the whole walk has succeeded.

**Context.** A gate such as squeeze-and-excite cannot be told from a head in advance: both begin with a pooling over
the whole window. So every such reduction is an *origin* of what it computes; when a value meets a live map again,
the walk rewinds to its origins and marks them as context: they stay global, and their branch stays unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Diagnostic, Unsupported
from onnx_fcn.lifting.constants import stored_in
from onnx_fcn.lifting.facts import KINDS, Blocked, Fact, Known, Unmapped, Whole
from onnx_fcn.lifting.folding import same_folding
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Constant, Rewind, Slot, Walk, at_node
from onnx_fcn.lifting.refusals import (
    EVALUATION,
    ONE_ANSWER,
    PER_POSITION,
    REORDERED,
    REPLACE,
    RUN_THE_REST,
    SUBGRAPHS,
    hint_for,
    product_of_maps,
)
from onnx_fcn.lifting.registry import Rule
from onnx_fcn.lifting.signatures import check_operands
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.whole import check_factor
from onnx_fcn.model.edit import Weight
from onnx_fcn.model.nodes import Node
from onnx_fcn.model.operators import ATTENTION, FACTORS, RANDOM, REORDERS, SPREADS
from onnx_fcn.rules import regions, rule_of
from onnx_fcn.rules.whole import on_whole_map, rule_between
from onnx_fcn.walk.dense import on_original_axes
from onnx_fcn.walk.ends import as_image_map, check_meeting, delivered, named
from onnx_fcn.walk.even import even_axes

__all__ = ["run"]


#: The hint for outputs that are resized to a size that is computed from the image.
RESIZES_ITSELF = "its own nodes answer for images of any size, once the sizes of the input are dynamic"


#: The facts of tensors that a rule is needed for.
MAPPED = frozenset({Lifted, Whole})


def run(walk: Walk) -> Walk:
    """Lift every node in order, and deliver the outputs."""
    walk.facts[walk.image.name] = _apart(walk, walk.image.name, as_image_map(Site(walk, -1, walk.prologue), walk.image))
    position = 0
    while position < len(walk.slots):
        slot = walk.slots[position]
        try:
            _step(walk, position, slot)
        except Rewind as rewind:
            walk.context |= rewind.slots
            position = min(rewind.slots)
            _forget(walk, position)
            continue
        position += 1
    if walk.succeeded:
        for name in walk.outputs:
            _deliver(walk, name)
        _check_resized(walk)
        if walk.image.held is None and len(walk.held) == len(walk.image.space):
            reason = "has answers along one axis of the image, and another output along the other: none has both"
            hint = "choose one of them with --outputs, or the axis with --slide"
            walk.diagnostics[len(walk.slots)] = Diagnostic("no-common-axis", walk.outputs[0], "output", reason, hint)
    return walk


def _deliver(walk: Walk, name: str) -> None:
    """Bring one output into the form (N, C, *grid), in a slot after all others; a dense one also on its own axes."""
    fact = walk.facts.get(name)
    if isinstance(fact, Whole):
        reason = f"relates positions to each other: {fact}" if fact.has_positions else f"is {ONE_ANSWER}"
        walk.diagnostics[len(walk.slots)] = Diagnostic("attention-answer", name, "output", reason, RUN_THE_REST)
    if not isinstance(fact, Lifted):
        return
    slot = Slot(Node("Output", name, outputs=[name]), len(walk.slots), replaced=True, operands=(fact,))
    walk.epilogue.append(slot)
    site = Site(walk, len(walk.slots), slot)
    try:
        walk.results[name] = result = delivered(site, fact)
        if result.is_dense and (formed := on_original_axes(walk, site, result)) is not None:
            walk.formed[name] = formed
    except Unsupported as refusal:
        walk.diagnostics[len(walk.slots)] = Diagnostic(refusal.code, name, "output", refusal.reason, refusal.hint)


def _check_resized(walk: Walk) -> None:
    """Refuse dense outputs behind a Resize to a size that is computed from the image.

    Its size at the native size is a scale, which is right for windows. But a dense output is about the whole image, for
    which the original's nodes compute another size where pixels are left over.
    """
    dense = [name for name, result in walk.results.items() if result.is_dense]
    resized: dict[str, Slot] = {}
    for name in dense:
        for slot in (walk.slots[k] for k in sorted(walk.upstream(name))):
            if slot.node.op in ("Resize", "Upsample") and slot.slides is not None and _is_sized(walk, slot):
                resized.setdefault(name, slot)
    for name, slot in list(resized.items())[:1]:
        reason = f"is resized to a size that '{slot.name}' computes from that of the image"
        others = [o for o in walk.outputs if o not in resized]
        hint = f"keep only the other outputs, with --outputs {','.join(others)}" if others else RESIZES_ITSELF
        walk.diagnostics[len(walk.slots)] = Diagnostic("resized", name, "output", reason, hint)


def _is_sized(walk: Walk, slot: Slot) -> bool:
    """Does a node resize a map to a size that is computed from the image's?

    Exporters join literal numbers of rows and columns with the numbers of images and channels, which they read off.
    """
    x, *operands = slot.operands
    sized = [fact for fact in operands if isinstance(fact, Known) and fact.sized]
    if not isinstance(x, Lifted) or not sized:
        return False
    space = {axis.atoms[0] for axis in x.space if axis.atoms}
    along = {k for k, group in enumerate(x.layout) if space & set(group)}
    for fact in sized:
        made = walk.slots[walk.makers[fact.name]] if fact.name in walk.makers else None
        if made is None or made.node.op != "Concat":
            return True
        axis = 0
        for part in made.operands:
            assert isinstance(part, Known), "a known value is made of known ones"
            count = walk.values[part.name].size
            if part.sized and along & set(range(axis, axis + count)):
                return True
            axis += count
    return False


def _forget(walk: Walk, position: int) -> None:
    walk.counts.clear()  # since names are given back
    attention = {k for k in walk.attention if k >= position}
    walk.attention -= attention
    walk.context -= attention
    for k in range(position, len(walk.slots)):
        slot = walk.slots[k]
        for emission in slot.emissions:
            walk.names -= {emission.node.name, *emission.node.outputs} - slot.own_names
        walk.names -= {c.name for c in slot.constants}
        slot.emissions, slot.constants, slot.changes = (), (), ()
        slot.replaced, slot.slides, slot.repeated = False, None, 0
        for output in slot.node.outputs:
            walk.facts.pop(output, None)
        walk.diagnostics.pop(k, None)
        walk.needs.pop(k, None)
        walk.products.pop(k, None)


def _step(walk: Walk, position: int, slot: Slot) -> None:
    """Find the facts of one node's outputs."""
    node, facts = slot.node, walk.facts
    names = node.inputs
    implicit = sorted(set(node.reads).difference(names))
    operands = tuple(facts[n] if n else None for n in names)
    slot.operands = operands
    everything = [f for f in (*operands, *(facts[n] for n in implicit if n in facts)) if f is not None]
    kinds = set(map(type, everything))
    condition = next(iter(operands), None)
    outputs: Sequence[Fact]
    if Blocked in kinds:
        blocked = [f for f in everything if isinstance(f, Blocked)]
        origins: frozenset[int] = frozenset().union(*(f.origins for f in blocked))
        causes: frozenset[int] = frozenset().union(*(f.causes for f in blocked))
        if origins and any(isinstance(f, Lifted) and f.is_live for f in everything):
            raise Rewind(origins)
        if _is_product(node, operands):
            walk.products[position] = causes
        outputs = [Blocked(origins, causes)] * len(node.outputs)
    elif node.op in RANDOM and node.domain in ("", "ai.onnx"):
        reason = "gives other values in every run, so that no answer can be compared with the original's"
        walk.diagnostics[position] = Diagnostic("random", slot.name, node.op, reason, EVALUATION)
        outputs = [Blocked(causes=frozenset({position}))] * len(node.outputs)
    elif node.op == "If" and isinstance(condition, Known) and not kinds.isdisjoint(MAPPED):
        outputs = _inline_branch(walk, position, slot, condition)
    elif kinds.isdisjoint(MAPPED):
        outputs = _untouched(walk, Site(walk, position, slot), slot, everything)
        sized = [f for f in operands if isinstance(f, Known) and f.sized]
        beside = all(type(f) is Unmapped and f.spread is None and not f.context for f in outputs)
        if sized and beside and not implicit:
            outputs = _frozen(Site(walk, position, slot), operands, sized, outputs)
    else:
        site = Site(walk, position, slot)
        try:
            outputs = _apply(walk, site, slot, operands, implicit)
        except Unsupported as refusal:
            lifted = [f for f in everything if isinstance(f, Lifted)]
            walk.diagnostics[position] = _diagnosed(walk, slot, refusal, lifted)
            if refusal.needs and not any(isinstance(f, Known) and f.sized for f in everything):
                walk.needs[position] = refusal.needs
            outputs = [Blocked(_origins(walk, position, lifted), frozenset({position}))] * len(node.outputs)
    slot.settle()
    for name, fact in zip(node.outputs, outputs):
        if name:
            facts[name] = _apart(walk, name, fact)


def _apart(walk: Walk, name: str, fact: Fact) -> Fact:
    """The fact of a tensor, with its windows further apart if that is the map where they are to be."""
    if walk.options.apart is None or walk.options.apart[0] != name or not isinstance(fact, Lifted):
        return fact
    return fact.spaced(walk.options.apart[1])


def _origins(walk: Walk, position: int, lifted: Sequence[Lifted]) -> frozenset[int]:
    """The reductions that a refused node, or what it reads, descends from, if all of them may be context.

    The node is one of them if it is refused as a head: a reduction that would unfold a window of too many values.
    """
    own = frozenset({position} & walk.reductions - walk.context)
    origins = own.union(*(f.origins for f in lifted if own or not f.is_live))
    return origins if origins <= walk.reductions else frozenset()


def _is_product(node: Node, operands: Sequence[Fact | None]) -> bool:
    """Does a node multiply two values that depend on the image, counting those that were refused?"""
    if node.op in ATTENTION:
        return True
    places = FACTORS.get(node.op, ())
    factors = [operands[k] for k in places if k < len(operands)]
    return len(factors) == 2 and all(isinstance(f, Blocked | Lifted) for f in factors)


def _diagnosed(walk: Walk, slot: Slot, refusal: Unsupported, lifted: list[Lifted]) -> Diagnostic:
    """A refusal with its node, or with an earlier node at fault that mixed positions or turned them into channels."""
    mixing = sorted(k for f in lifted for k in f.origins if any(c.kind == "dense" for c in walk.slots[k].changes))
    if mixing and refusal.code == "unfold-too-large":
        layer = walk.slots[mixing[-1]]
        reason = f"mixes the positions of a window, and {slot.node.op} '{slot.name}', after it, {refusal.reason}"
        return at_node(layer, Unsupported(reason, code="mixes-positions", hint=refusal.hint))
    unfolded = next((f.unfolded for f in lifted if f.unfolded is not None), None)
    if unfolded is None or refusal.code not in ("not-channels", "not-spatial"):
        return at_node(slot, refusal)
    earlier = walk.slots[unfolded]
    return Diagnostic(
        "per-position",
        earlier.name,
        earlier.node.op,
        f"treats the positions of a window in different ways, and {slot.node.op} '{slot.name}' slides over the result",
        REORDERED if earlier.node.op in REORDERS else PER_POSITION,
    )


def _apply(
    walk: Walk, site: Site, slot: Slot, operands: tuple[Fact | None, ...], implicit: list[str]
) -> Sequence[Fact]:
    if walk.options.attention and slot.node.op in ("Div", "Mul"):
        check_factor(site, operands)
    if any(isinstance(f, Whole) for f in operands):
        slot.replaced = True
        return named(site, on_whole_map(site, operands))
    try:
        outputs = _by_rule(walk, site, slot, operands, implicit)
    except Unsupported as refusal:
        if refusal.code in ("sizes-meet", "counts-meet") and (resized := site.last_resized()) is not None:
            raise Rewind([resized]) from refusal
        if refusal.code != "product-of-maps" or not _attends(walk, slot, operands):
            raise
        slot.replaced = True
        outputs = on_whole_map(site, operands)
    if site.is_context or any(isinstance(f, Unmapped) and f.context for f in operands):
        outputs = [_everywhere(f) for f in outputs]
    return named(site, outputs)


def _attends(walk: Walk, slot: Slot, operands: Sequence[Fact | None]) -> bool:
    """May a product of maps relate the positions of the whole image to each other?"""
    maps = any(isinstance(f, Lifted) and (f.is_live or f.unfolded is not None) for f in operands)
    return walk.options.attention and maps and rule_between(slot.node.domain, slot.node.op) is not None


def _by_rule(
    walk: Walk, site: Site, slot: Slot, operands: tuple[Fact | None, ...], implicit: list[str]
) -> Sequence[Fact]:
    """What the rule of a node makes of operands with values for every position."""
    rule: Rule | None = regions.windows if slot.covers else rule_of(slot.node.domain, slot.node.op)
    if rule is None and slot.node.op in ATTENTION:
        raise product_of_maps()
    if rule is None:
        domain = f"{slot.node.domain}." if slot.node.domain else ""
        raise Unsupported(
            f"there is no rule for {domain}{slot.node.op}, so its meaning at every position is unknown",
            code="no-rule",
            hint=hint_for(slot.node.domain, slot.node.op, _answered_with(walk, slot)),
        )
    if implicit:
        raise Unsupported("its subgraph reads a map", code="subgraph", hint=SUBGRAPHS.get(slot.node.op, REPLACE))
    check_operands(rule, operands, KINDS)
    check_meeting(site, operands)
    slot.replaced = True
    result = rule(site, *same_folding(site, operands))
    outputs: Sequence[Fact] = [result] if isinstance(result, Fact) else list(result)
    if any(isinstance(f, Lifted) and f.is_empty and site.has_output(k) for k, f in enumerate(outputs)):
        raise Unsupported("gives a tensor without any values", code="empty", hint="crop less, or reduce over less")
    return outputs


def _answered_with(walk: Walk, slot: Slot) -> str:
    """The tensor that a node makes all of its results of, if these are answers; empty if not, or if it is the image."""
    read = [n for n in slot.node.inputs if isinstance(walk.facts.get(n), Lifted)]
    is_last = {*slot.node.outputs} <= {*walk.outputs}
    return read[0] if is_last and read and walk.image.name not in read else ""


def _everywhere(fact: Fact) -> Fact:
    """The fact of a tensor that depends on the whole image."""
    if isinstance(fact, Lifted):
        return replace(fact, space=tuple(replace(a, whole=True) for a in fact.space))
    return replace(fact, context=True) if isinstance(fact, Unmapped) else fact


def _untouched(walk: Walk, site: Site, slot: Slot, operands: list[Fact]) -> Sequence[Fact]:
    """The facts of a node without a mapped operand, which stays unchanged."""
    names = slot.node.outputs
    unmapped = [f for f in operands if isinstance(f, Unmapped)]
    sized = any(isinstance(f, Known) and f.sized for f in operands)
    if not unmapped:
        return [Known(n, sized) for n in names]
    if slot.node.op == "Shape" and (shape := _static_shape(walk, slot, unmapped[0].name)) is not None:
        walk.values.set(names[0], shape)
        return [Known(names[0], sized=True)]
    if slot.node.op in SPREADS and isinstance(operands[0], Unmapped):
        spread = None if operands[0].even else operands[0].spread or operands[0].name
        return [replace(operands[0], name=names[0], spread=spread)]
    even = even_axes(site, operands)
    return [Unmapped(n, context=any(f.context for f in unmapped), even=even) for n in names]


def _frozen(
    site: Site, operands: Sequence[Fact | None], sized: Sequence[Known], outputs: Sequence[Fact]
) -> Sequence[Fact]:
    """Replace the sizes of the image that a node beside it reads by those of a window.

    The batch size is still read from the image: it is the same for all windows.
    """
    try:
        for fact in sized:
            site.fixed_value(fact)
    except Unsupported:
        return outputs
    return named(site, [Unmapped(name) for name in site.replace_operands(operands)])


def _static_shape(walk: Walk, slot: Slot, name: str) -> Array | None:
    """The value of a Shape of an unmapped tensor; None if its shape is not known."""
    shape = walk.shape_of(name)
    if shape is None or any(d is None for d in shape):
        return None
    start, end = slot.node.attrs.get("start", 0), slot.node.attrs.get("end")
    return np.array(shape[start:end], np.int64)


def _inline_branch(walk: Walk, position: int, slot: Slot, condition: Known) -> Sequence[Fact]:
    """Replace an If by the nodes of the branch that its constant condition chooses."""
    chosen = "then_branch" if bool(walk.values[condition.name].reshape(-1)[0]) else "else_branch"
    graph: onnx.GraphProto = slot.node.attrs[chosen]
    for name, tensor in stored_in(graph).items():
        array = walk.values.add(name, tensor)
        elem_type = tensor.data_type if isinstance(tensor, onnx.TensorProto) else tensor.values.data_type
        slot.constants += (Constant(name, Weight(array, array.shape, elem_type)),)
        walk.facts[name] = Known(name)
    slot.replaced = True
    if not slot.unfolded:
        slot.unfolded = True
        nodes = [Node.of(proto) for proto in graph.node]
        nodes += [
            Node("Identity", output, [result.name], [output]) for result, output in zip(graph.output, slot.node.outputs)
        ]
        walk.insert(position + 1, [Slot(node, slot.index) for node in nodes])
        walk.values.produce(nodes)
    return []
