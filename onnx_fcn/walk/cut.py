"""Where the trunk ends and the head begins.

The **cut** is the last feature map through which every answer is reached. The law is about it: a cell of the converted
model's output is the original head, run on one window of that map. So nothing after the cut may pad (windows would see
each other), and operators that stride there dilate instead, so that all answers have one grid. Outputs that are maps
themselves are no answers: each is on a grid of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from onnx_fcn.lifting.facts import Known
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Slot, Walk

__all__ = [
    "Cut",
    "before_answers",
    "cuts_of",
    "find_cut",
    "instead_of_padding",
    "padded_beyond",
    "pooling_weights",
    "slots_of_head",
]


@dataclass(frozen=True)
class Cut:
    """The last map that every answer is reached through.

    Attributes:
        name: the tensor in the original model.
        fact: what it became.
    """

    name: str
    fact: Lifted


def padded_beyond(walk: Walk, cut: Cut) -> list[int]:
    """Slots that pad a map after the cut."""
    return [k for k in slots_of_head(walk, cut) if (s := walk.slots[k].slides) is not None and s.pads]


def instead_of_padding(walk: Walk, cut: Cut) -> str:
    """The hint for padding after the cut: keep an output without any, or run on windows."""
    for name in walk.outputs if len(walk.outputs) > 1 else ():
        alone = replace(walk, outputs=(name,))
        own = find_cut(alone)
        if own is not None and walk.upstream(name).isdisjoint(padded_beyond(alone, own)):
            return f"keep only one of the outputs, with --outputs {name}"
    return f"it can only run on windows of '{cut.name}'"


def find_cut(walk: Walk) -> Cut | None:
    """The last map with a live window that all answers are reached through; None if there is none."""
    return next(cuts_of(walk), None)


def cuts_of(walk: Walk) -> Iterator[Cut]:
    """Every live map that all answers are reached through, the last first: all outputs of a network without a head.

    Immediate dominators of a directed acyclic graph, in topological order: the nearest common dominator of the
    operands (Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", 2001).
    """
    parent: dict[str, str] = {}
    depth = {walk.image.name: 0}

    def join(names: Iterable[str]) -> str | None:
        common: str | None = None
        for name in names:
            if common is None:
                common = name
                continue
            while common != name:
                if depth[common] >= depth[name]:
                    common = parent[common]
                else:
                    name = parent[name]
        return common

    for slot in walk.slots:
        common = join(n for n in slot.node.reads if n in depth and not isinstance(walk.facts.get(n), Known))
        if common is None:
            continue
        for output in slot.node.outputs:
            if output and not isinstance(walk.facts.get(output), Known):
                parent[output], depth[output] = common, depth[common] + 1
    answers = walk.answers
    top = join(o for o in answers if o in depth)
    while top is not None:
        fact = walk.facts.get(top)
        is_map = isinstance(fact, Lifted) and fact.is_live and _is_map(walk, fact)
        if isinstance(fact, Lifted) and is_map and top not in answers and not _lacks_pooling(walk, fact):
            yield Cut(top, fact)
        top = parent.get(top)


def _lacks_pooling(walk: Walk, fact: Lifted) -> bool:
    """Was a pooling before a map left out? Then the original has another map there."""
    return any(walk.slots[k].name in walk.options.left_out for k in fact.origins)


def _is_map(walk: Walk, fact: Lifted) -> bool:
    """Has a tensor positions on axes of their own? After attention they may be a list, (N, positions, C)."""
    return fact.padding is None and (fact.is_plain or (bool(walk.attention) and fact.is_dense))


def slots_of_head(walk: Walk, cut: Cut) -> list[int]:
    """Slots that compute something from the cut that an answer needs."""
    needed = before_answers(walk)
    return [k for k in slots_beyond(walk, cut.name) if k in needed]


def before_answers(walk: Walk) -> set[int]:
    """Slots that answers are computed from, rather than dense outputs only."""
    return set().union(*(walk.upstream(name) for name in walk.answers))


def pooling_weights(walk: Walk) -> frozenset[str]:
    """Operators that were taken for context, but weigh the positions of a window for a pooling of the head.

    They are those whose weights nothing slides over, and of which nothing else that is context is computed.
    """
    weights = walk.weights | {k for k in walk.context if _divides_what_it_sums(walk, walk.slots[k])}
    beyond = {k: slots_beyond(walk, walk.slots[k].node.outputs[0]) for k in weights}
    gates = walk.context - weights
    needed = {k for k, js in beyond.items() if any(j in gates or _slides_over_map(walk, j) for j in js)}
    return frozenset(walk.slots[k].name for k in weights - needed)


def _divides_what_it_sums(walk: Walk, slot: Slot) -> bool:
    """Is an operator part of a softmax over all positions that is written out?

    That is exp(x - max(x)) divided by its own sum: the maximum is taken from what it was found in, and what was summed
    is divided by the sum.
    """
    op = {"ReduceMax": "Sub", "GlobalMaxPool": "Sub", "ReduceSum": "Div", "ReduceL1": "Div"}.get(slot.node.op)
    if op is None:
        return False
    source, made = slot.node.inputs[0], {slot.node.outputs[0]}
    for other in (walk.slots[k] for k in slots_beyond(walk, slot.node.outputs[0])):
        if other.node.op == op and other.node.inputs[0] == source and other.node.inputs[1] in made:
            return True
        made |= set(other.node.outputs)
    return False


def _slides_over_map(walk: Walk, position: int) -> bool:
    """Does an operator slide, and not just cover the window?"""
    slot = walk.slots[position]
    made = [walk.facts.get(name) for name in slot.node.outputs]
    return slot.slides is not None and any(isinstance(f, Lifted) and f.is_live for f in made)


def slots_beyond(walk: Walk, name: str) -> list[int]:
    """Slots that compute something from a tensor."""
    reached, found = {name}, []
    for k, slot in enumerate(walk.slots):
        if any(n in reached for n in slot.node.reads):
            found.append(k)
            reached |= set(filter(None, slot.node.outputs))
    return found
