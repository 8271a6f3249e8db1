"""Which operands a rule takes: its signature says so, and the walk holds every node to it.

    def rule(site: Site, x: Lifted, weight: Fact, bias: Fact | None = None)

wants a map, then whatever there is, then perhaps something. So no rule meets an operand of a kind that it was not
written for: a scale that is the image where the features are an input beside it, a bias that was left out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from onnx_fcn.errors import Unsupported

__all__ = ["check_operands"]


@dataclass(frozen=True)
class Signature:
    """The operands that a rule takes.

    Attributes:
        kinds: of each operand, the types of facts that it may be.
        further: those of all operands behind them; None where there are none.
        least: operands that have to be there.
    """

    kinds: tuple[tuple[type, ...], ...]
    further: tuple[type, ...] | None
    least: int

    def taken(self, place: int) -> tuple[type, ...]:
        """The types of facts that an operand may be; none where there is no such operand."""
        return self.kinds[place] if place < len(self.kinds) else self.further or ()


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The types that an annotation names."""
    return (object,) if annotation is Any else tuple(get_args(annotation)) or (annotation,)


@functools.cache
def _signature(rule: Callable[..., Any]) -> Signature:
    hints = get_type_hints(rule)
    operands = list(inspect.signature(rule).parameters.values())[1:]  # behind the site
    kinds = [_kinds(hints.get(p.name, object)) for p in operands]
    further = kinds.pop() if operands and operands[-1].kind is inspect.Parameter.VAR_POSITIONAL else None
    return Signature(tuple(kinds), further, sum(p.default is p.empty for p in operands[: len(kinds)]))


def check_operands(rule: Callable[..., Any], operands: Sequence[object], words: Mapping[type, str]) -> None:
    """Does a rule take these operands?

    Args:
        rule: `rule(site, *facts of the operands)`, annotated.
        operands: the facts; None for one that is left out.
        words: what it says of a tensor that its fact is of a type.

    Raises:
        Unsupported: it is not written for one of them, or for so many.
    """
    signature = _signature(rule)
    most = len(operands) if signature.further is not None else len(signature.kinds)
    if not signature.least <= len(operands) <= most:
        wanted = str(most) if signature.least == most else f"{signature.least} or more"
        raise Unsupported(f"has {len(operands)} operands, and takes {wanted}", code="operands")
    for place, fact in enumerate(operands):
        if isinstance(fact, taken := signature.taken(place)):
            continue
        if fact is None:
            raise Unsupported(f"lacks its operand {place + 1}", code="operands")
        asked = " or ".join(said for kind, said in words.items() if kind in taken)
        raise Unsupported(
            f"is converted only where its operand {place + 1} {asked}, and here that {words[type(fact)]}",
            code="operands",
        )
