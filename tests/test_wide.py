"""Nodes with very many operands or results: the work grows with their number, and not with its square.

What is counted are calls, of Python's functions and of C's, so that a busy machine changes nothing.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType

import law
import pytest
from onnx import ModelProto

import onnx_fcn
from onnx_fcn.lifting.program import Walk

#: How many times the calls may be for twice as many; squares would be four times as many.
TWICE = 2.3


def many(form: str, count: int) -> str:
    """A list of names, such as x0, x1 …"""
    return ", ".join(form.format(k) for k in range(count))


def joined(count: int) -> ModelProto:
    return law.model(
        f"m = Concat <axis = 1> ({many('x', count)})  f = Flatten (m)  y = MatMul (f, w)",
        image="float[N,1,2,2] x", w=(4 * count, 2),
    )  # fmt: skip


def joined_features(count: int) -> ModelProto:
    flat = "  ".join(f"r{k} = Relu (x)  f{k} = Flatten (r{k})" for k in range(count))
    return law.model(
        f"{flat}  f = Concat <axis = 1> ({many('f{}', count)})  y = MatMul (f, w)",
        image="float[N,1,2,2] x", w=(4 * count, 2),
    )  # fmt: skip


def added(count: int) -> ModelProto:
    return law.model(
        f"m = Sum ({many('x', count)})  f = Flatten (m)  y = MatMul (f, w)", image="float[N,1,2,2] x", w=(4, 2)
    )


def split(count: int) -> ModelProto:
    return law.model(
        f"f = Flatten (x)  d = MatMul (f, w)  {many('y{}', count)} = Split <axis = 1> (d)",
        image="float[N,1,2,2] x", outputs=many("y{}", count), w=(4, count),
    )  # fmt: skip


def pooled(count: int) -> ModelProto:
    pools = "  ".join(f"y{k} = GlobalAveragePool (s{k})" for k in range(count))
    return law.model(
        f"m = Conv (x, k)  {many('s{}', count)} = Split <axis = 1> (m)  {pools}",
        image="float[N,1,2,2] x", outputs=many("y{}", count), k=(count, 1, 1, 1),
    )  # fmt: skip


def calls(action: Callable[[], object]) -> int:
    """How many functions an action calls."""
    count = 0

    def called(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # whose callbacks are called as often as there is other garbage
    sys.setprofile(called)
    try:
        action()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


@pytest.mark.parametrize("wide", [joined, joined_features, added, split, pooled], ids=lambda wide: wide.__name__)
def test_twice_as_many_are_twice_the_work(wide: Callable[[int], ModelProto]) -> None:
    few, more = wide(100), wide(200)
    for model in (few, more):
        onnx_fcn.convert(model, validate=False)  # what is computed once
    costs = [calls(lambda model=model: onnx_fcn.convert(model, validate=False)) for model in (few, more)]
    assert costs[1] < TWICE * costs[0]


class Asked(set[str]):
    """A set that counts how often it is asked."""

    count = 0

    def __contains__(self, name: object) -> bool:
        self.count += 1
        return super().__contains__(name)


def test_a_name_is_found_at_once() -> None:
    """However many there are of its kind; and it is a new one."""

    class Names:
        names, counts = Asked({"a", "a_3"}), {}

    made = [Walk.fresh(Names, "a") for _ in range(1000)]  # type: ignore[arg-type]  (all that it reads of a walk)
    assert made[:2] == ["a_2", "a_4"]
    assert len(set(made)) == 1000
    assert Names.names.count < 3000
