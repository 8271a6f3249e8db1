"""The registry of rules: which function lifts an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from onnx_fcn.lifting.facts import Fact

__all__ = ["Rule", "lifts", "operators", "rule_of"]


#: A rule: `rule(site, *facts of the operands) -> fact(s) of the outputs`.
Rule = Callable[..., "Fact | Sequence[Fact]"]

_RULES: dict[tuple[str, str], Rule] = {}

R = TypeVar("R", bound=Rule)


def lifts(*operators: str, domain: str = "") -> Callable[[R], R]:
    """Register a function as the rule of operators: `rule(site, *facts of the operands) -> fact(s) of the outputs`."""

    def register(rule: R) -> R:
        for operator in operators:
            assert (domain, operator) not in _RULES, operator
            _RULES[domain, operator] = rule
        return rule

    return register


def rule_of(domain: str, operator: str) -> Rule | None:
    """The rule of an operator, or None."""
    return _RULES.get(("" if domain in (None, "", "ai.onnx") else domain, operator))


def operators() -> list[tuple[str, str]]:
    """Every (domain, operator) that has a rule."""
    return sorted(_RULES)
