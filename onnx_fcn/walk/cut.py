"""Where the trunk ends and the head begins.

The **cut** is the last feature map through which every output is reached. The law is about it: a cell of the converted
model's output is the original head, run on one window of that map. So nothing after the cut may pad (windows would see
each other), and operators that stride there dilate instead, so that all outputs have one grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from onnx_fcn.lifting.facts import Known
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Seat, Walk
from onnx_fcn.model.graphs import names_used

__all__ = ["Cut", "cuts_of", "find_cut", "instead_of_padding", "makers_of", "padded_beyond", "seats_beyond", "upstream"]


@dataclass(frozen=True)
class Cut:
    """The last map that every output is reached through.

    Attributes:
        name: the tensor in the original model.
        fact: what it became.
    """

    name: str
    fact: Lifted


def padded_beyond(state: Walk, cut: Cut) -> list[int]:
    """Seats that pad a map after the cut."""
    return [k for k in seats_beyond(state, cut) if (s := state.seats[k].slides) is not None and s.pads]


def instead_of_padding(state: Walk, cut: Cut) -> str:
    """The hint for padding after the cut: keep an output without any, or take the map at the cut as an output."""
    for name in state.outputs if len(state.outputs) > 1 else ():
        alone = replace(state, outputs=(name,))
        own = find_cut(alone)
        if own is not None and upstream(state, name).isdisjoint(padded_beyond(alone, own)):
            return f"keep only one of the outputs, with --outputs {name}"
    return f"take '{cut.name}' as an output, and run the rest on windows of it"


def find_cut(state: Walk) -> Cut | None:
    """The last map with a live window that all outputs are reached through; None if there is none."""
    cuts = list(cuts_of(state))
    return cuts[0] if cuts else None


def cuts_of(state: Walk) -> Iterator[Cut]:
    """Every live map that all outputs are reached through, the last first.

    Immediate dominators of a directed acyclic graph, in topological order: the nearest common dominator of the
    operands (Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", 2001).
    """
    parent: dict[str, str] = {}
    depth = {state.image.name: 0}

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

    for seat in state.seats:
        common = join(n for n in _reads(seat) if n in depth and not isinstance(state.facts.get(n), Known))
        if common is None:
            continue
        for output in seat.node.outputs:
            if output.name and not isinstance(state.facts.get(output.name), Known):
                parent[output.name], depth[output.name] = common, depth[common] + 1
    top = join(o for o in state.outputs if o in depth)
    outputs = set(state.outputs)
    while top is not None:
        fact = state.facts.get(top)
        if isinstance(fact, Lifted) and fact.is_live and fact.is_plain and fact.padding is None and top not in outputs:
            yield Cut(top, fact)
        top = parent.get(top)


def _reads(seat: Seat) -> Iterable[str]:
    return names_used(seat.proto)


def seats_beyond(state: Walk, cut: Cut) -> list[int]:
    """Seats that compute something from the cut."""
    reached, found = {cut.name}, []
    for k, seat in enumerate(state.seats):
        if any(n in reached for n in _reads(seat)):
            found.append(k)
            reached |= {o.name for o in seat.node.outputs if o.name}
    return found


def makers_of(state: Walk) -> dict[str, int]:
    """The seat that makes each tensor."""
    return {name: k for k, seat in enumerate(state.seats) for name in seat.proto.output if name}


def upstream(state: Walk, name: str, makers: Mapping[str, int] | None = None) -> set[int]:
    """Seats that a tensor is computed from; pass `makers_of(state)` when asking for many tensors."""
    makers = makers_of(state) if makers is None else makers
    waiting, found = [name], set()
    while waiting:
        k = makers.get(waiting.pop())
        if k is not None and k not in found:
            found.add(k)
            waiting += _reads(state.seats[k])
    return found
