"""Numbers that examples are drawn from, other ones in every run; a failure says its own.

ONNX_FCN_SEEDS=2000 pytest -m slow tests/test_random.py     that many, whatever the test takes otherwise
ONNX_FCN_SEED=4711 pytest tests/test_random.py              this one again
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator


def fresh(count: int) -> range:
    """That many seeds which nobody has chosen, unless the environment says which ones, or how many."""
    given = os.environ.get("ONNX_FCN_SEED")
    first = secrets.randbelow(1 << 40) if given is None else int(given)
    return range(first, first + int(os.environ.get("ONNX_FCN_SEEDS", count if given is None else 1)))


@contextlib.contextmanager
def told(seed: int, what: str = "") -> Iterator[None]:
    """A failure within says how to repeat it."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"ONNX_FCN_SEED={seed} repeats this: {what or error}") from error
