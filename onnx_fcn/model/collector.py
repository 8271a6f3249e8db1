"""Python's garbage collector while facts and nodes are made: far more rarely than by default."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["rarely_collected"]


#: Objects that are made between two collections of the youngest.
OBJECTS = 1_000_000

_lock = threading.Lock()
_inside = 0
_before: tuple[int, int, int] = gc.get_threshold()


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Collect garbage rarely meanwhile, in this process.

    A walk makes hundreds of thousands of objects that stay, and hardly a cycle: looking for garbage among them again
    and again takes a third of its time. What others have set is kept if it is rarer still, or off.
    """
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = gc.get_threshold()
            if 0 < _before[0] < OBJECTS:
                gc.set_threshold(OBJECTS, *_before[1:])
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                gc.set_threshold(*_before)
