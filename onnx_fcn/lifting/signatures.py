"""The operands that a rule accepts, according to its signature; the walk checks every node against it.

    def rule(site: Site, x: Lifted, weight: Fact, bias: Fact | None = None)

accepts a map, then an operand of any kind, then an optional one. So a rule never receives an operand of a kind that it
was not written for, such as a scale that depends on the image while the features are a separate input, or a missing
bias.
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
    """The operands that a rule accepts.

    Attributes:
        kinds: the accepted types of fact, for each operand.
        further: the accepted types for all operands after these; None if the rule accepts no more.
        least: number of required operands.
    """

    kinds: tuple[tuple[type, ...], ...]
    further: tuple[type, ...] | None
    least: int

    def types_of(self, place: int) -> tuple[type, ...]:
        """The accepted types of fact for an operand; empty if the rule has no such operand."""
        return self.kinds[place] if place < len(self.kinds) else self.further or ()


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The types in an annotation."""
    return (object,) if annotation is Any else tuple(get_args(annotation)) or (annotation,)


@functools.cache
def _signature(rule: Callable[..., Any]) -> Signature:
    hints = get_type_hints(rule)
    operands = list(inspect.signature(rule).parameters.values())[1:]  # without the site
    kinds = [_kinds(hints.get(p.name, object)) for p in operands]
    further = kinds.pop() if operands and operands[-1].kind is inspect.Parameter.VAR_POSITIONAL else None
    return Signature(tuple(kinds), further, sum(p.default is p.empty for p in operands[: len(kinds)]))


def check_operands(rule: Callable[..., Any], operands: Sequence[object], words: Mapping[type, str]) -> None:
    """Check that a rule accepts these operands.

    Args:
        rule: `rule(site, *facts of the operands)`, annotated.
        operands: the facts; None for an operand that is left out.
        words: how messages describe a tensor, by the type of its fact.

    Raises:
        Unsupported: if the rule does not accept one of the operands, or their number.
    """
    signature = _signature(rule)
    most = len(operands) if signature.further is not None else len(signature.kinds)
    if not signature.least <= len(operands) <= most:
        wanted = str(most) if signature.least == most else f"{signature.least} or more"
        raise Unsupported(f"has {len(operands)} operands, but expects {wanted}", code="operands")
    for place, fact in enumerate(operands):
        if isinstance(fact, taken := signature.types_of(place)):
            continue
        if fact is None:
            raise Unsupported(f"lacks its operand {place + 1}", code="operands")
        asked = " or ".join(said for kind, said in words.items() if kind in taken)
        raise Unsupported(
            f"is converted only if its operand {place + 1} {asked}, but here it {words[type(fact)]}",
            code="operands",
        )
