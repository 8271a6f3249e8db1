"""Values from the JSON of a file that anybody may have written: each is checked before it is used.

A check takes a value of any type, and returns it or raises a ValueError whose text ends a sentence. The limits are
wider than anything that a network needs, and narrow enough that no entry takes long to read or much memory.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import Any

__all__ = [
    "MOST_LETTERS",
    "MOST_NAME",
    "MOST_VALUES",
    "Check",
    "formula_of",
    "list_of",
    "name_of",
    "object_of",
    "optional",
    "parse",
    "shorten",
    "text_of",
]


#: The most letters of an entry, values of a list, and letters of a name.
MOST_LETTERS, MOST_VALUES, MOST_NAME = 1 << 24, 1 << 16, 1000

#: Numbers of a preprocessing are at most this large, and those that divide or scale at least its inverse.
MOST_NUMBER = 1e30

Check = Callable[[Any], Any]


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        RecursionError, ValueError: if it is not JSON, is nested too deeply, or is too long.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(f"an entry has {len(text)} letters")
    return json.loads(text)


def text_of(value: Any) -> str:
    """A check of a text."""
    if type(value) is not str:
        raise ValueError(f"{shorten(value)} is not text")
    return value


def object_of(value: Any) -> dict[str, Any]:
    """A check of a JSON object."""
    if type(value) is not dict:
        raise ValueError(f"{shorten(value)} is not an object")
    return value


def optional(check: Check) -> Check:
    """A check of None, or of a value."""
    return lambda value: None if value is None else check(value)


def list_of(check: Check, *, count: int | None = None, most: int = MOST_VALUES) -> Check:
    """A check of a list of `count` values, or of at most `most`."""

    def check_list(value: Any) -> list[Any]:
        if type(value) is not list or len(value) > most or count not in (None, len(value)):
            raise ValueError(f"{shorten(value)} is not a list of {count or f'at most {most}'}")
        return [check(one) for one in value]

    return check_list


def name_of(value: Any) -> str:
    """A name that can be written: no control characters, and no half of a pair of surrogates."""
    name = text_of(value)
    if not 0 < len(name) <= MOST_NAME or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise ValueError(f"{shorten(name)} is not a name")
    return name


def formula_of(value: Any) -> dict[str, Any]:
    """The numbers of a preprocessing: x = (pixel·scale - mean)/std."""
    entry = object_of(value)
    return {key: check(entry[key]) for key, check in FORMULA.items()}


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= MOST_NUMBER:  # nor NaN
        raise ValueError(f"{shorten(value)} is not a number between -{MOST_NUMBER:g} and {MOST_NUMBER:g}")
    return float(value)


def _factor(value: Any) -> float:
    if abs(number := _finite(value)) < 1 / MOST_NUMBER:
        raise ValueError(f"{shorten(value)} is no factor: it is too close to zero")
    return number


def _full_scale(value: Any) -> float:
    if (number := _factor(value)) < 0:
        raise ValueError(f"{shorten(value)} is no full scale: it is negative")
    return number


def _per_channel(check: Check) -> Check:
    """A check of a list of one number or more."""

    def check_channels(value: Any) -> list[float]:
        numbers: list[float] = list_of(check)(value)
        if not numbers:
            raise ValueError("a list of numbers for the channels is empty")
        return numbers

    return check_channels


def _order(value: Any) -> str:
    if value not in ("RGB", "BGR"):
        raise ValueError(f"{shorten(value)} is not RGB or BGR")
    return text_of(value)


#: The values of the entry about the preprocessing.
FORMULA: dict[str, Check] = {
    "scale": optional(_factor),
    "mean": _per_channel(_finite),
    "std": _per_channel(_factor),
    "order": _order,
    "full_scale": optional(_full_scale),
}


def shorten(value: Any) -> str:
    """A value as a short text for a message."""
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
