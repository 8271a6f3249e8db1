"""Numbers that examples are drawn from, other ones in every run; a failure says its own.

ONNX_FCN_SEEDS=2000 pytest -m slow tests/test_random.py     so many, whatever the test takes otherwise
ONNX_FCN_SEED=4711 pytest tests/test_operands.py            this one again
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator


def examples(count: int) -> tuple[int, int]:
    """(a seed that nobody has chosen, how many examples to draw from it), unless the environment says which."""
    given = os.environ.get("ONNX_FCN_SEED")
    return secrets.randbelow(1 << 40) if given is None else int(given), int(os.environ.get("ONNX_FCN_SEEDS", count))


def seeds(count: int) -> range:
    """So many seeds, each with an example of its own; the one that the environment names is alone."""
    first, count = examples(1 if "ONNX_FCN_SEED" in os.environ else count)
    return range(first, first + count)


@contextlib.contextmanager
def told(seed: int, what: str = "", *, count: int = 1) -> Iterator[None]:
    """A failure within says how to repeat it."""
    try:
        yield
    except Exception as error:
        again = f"ONNX_FCN_SEED={seed}" + (f" ONNX_FCN_SEEDS={count}" if count > 1 else "")
        raise AssertionError(f"{again} repeats this: {what or error}") from error
