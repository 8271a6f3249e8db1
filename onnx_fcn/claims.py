"""What the metadata of a converted file claim of its answers, held against a walk of the original.

A file whose stride was edited answers as ever, and every box that is drawn with it is wrong. So whoever compares two
models compares this as well: value by value, with what the walk would have written. Nothing that a file says is
computed with, so that no number in it can do harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from onnx import ModelProto

from onnx_fcn.geometry import Geometry
from onnx_fcn.metadata import FORMAT, PREFIX, written

__all__ = ["claims_of", "false_claims"]

#: Values of an output's entry, as a sentence names them. What is not here is prose, which versions may word otherwise.
VALUES = {
    "window": "the window",
    "stride": "the stride",
    "offset": "the offset",
    "field": "the receptive field",
    "padding": "the padding",
    "cells": "the number of cells",
    "formula": "the formula of the number of cells",
    "exactness": "the exactness",
    "context": "the nodes that see the whole image, for the answers",
    "form": "the form",
    "layout": "the layout",
}


def claims_of(model: ModelProto) -> dict[str, str]:
    """The entries that tell where answers are, without their prefix; none where a reader would not read them."""
    props = [(e.key, e.value) for e in model.metadata_props if isinstance(e.key, str) and isinstance(e.value, str)]
    claims = {key.removeprefix(PREFIX): value for key, value in props if key.startswith(PREFIX)}
    return claims if claims.get("format") == FORMAT else {}


def false_claims(claims: Mapping[str, str], geometry: Geometry) -> Iterator[tuple[str, str]]:
    """(an output, or the image; a sentence) for each value that is not that of this geometry."""
    for key, right in (("image", geometry.image), ("layout", geometry.layout)):
        if claims.get(key) != right:
            yield geometry.image, f"the metadata say that the {key} is {_short(claims.get(key))}, and it is {right!r}"
    window = _parsed(claims.get("window"))
    if window != list(geometry.window):
        yield geometry.image, f"the metadata say that the window is {_short(window)}, and it is {list(geometry.window)}"
    named = {key.removeprefix("output."): _parsed(text) for key, text in claims.items() if key.startswith("output.")}
    for name, answers in geometry.outputs.items():
        right = json.loads(json.dumps(written(answers)))
        claimed = named.pop(name, None)
        if not isinstance(claimed, dict):
            yield name, f"the metadata do not say where the answers '{name}' are"
            continue
        for key, words in VALUES.items():
            if claimed.get(key) != right[key]:
                said = _short(claimed.get(key))
                yield name, f"the metadata say that {words} of '{name}' is {said}, and it is {right[key]}"
    for name in named:
        yield name, f"the metadata say where the answers '{name}' are, and there are none on a grid"


def _parsed(text: str | None) -> Any:
    """A value in JSON; None where it is none."""
    try:
        return None if text is None else json.loads(text)
    except (RecursionError, ValueError):
        return None


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
