"""What the metadata of a converted file claim about its answers, compared with a walk of the original.

A file whose stride was edited still gives the right answers, but every box that is drawn with it is wrong. So a
comparison of two models also compares the metadata, value by value, with what the walk would have written. The claimed
values are never computed with, so no number in a file can do harm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from onnx import ModelProto

from onnx_fcn.geometry import Geometry
from onnx_fcn.model.metadata import FORMAT, PREFIX, to_json

__all__ = ["claimed_image", "claims_of", "false_claims"]


#: Pixels of the largest image that a network is run on because a file claims so.
LARGEST_CLAIM = 1 << 24


#: The values of an output's entry, and what a sentence calls them. The others are prose, which may differ by version.
VALUES = {
    "window": "window",
    "stride": "stride",
    "offset": "offset",
    "field": "receptive field",
    "padding": "padding",
    "cells": "number of cells",
    "formula": "formula of the number of cells",
    "mirror": "reach of padding that repeats or reflects",
    "period": "number of pixels by which an image may begin later",
    "held": "axes that keep their native size",
    "inner": "range of the cells that see no padding",
    "exactness": "exactness",
    "context": "context",
    "form": "form",
    "layout": "layout",
}


def claims_of(model: ModelProto) -> dict[str, str]:
    """The entries that say where answers are, without their prefix; empty if a reader would not accept the format."""
    props = [(e.key, e.value) for e in model.metadata_props if isinstance(e.key, str) and isinstance(e.value, str)]
    claims = {key.removeprefix(PREFIX): value for key, value in props if key.startswith(PREFIX)}
    return claims if claims.get("format") == FORMAT else {}


def claimed_image(model: ModelProto) -> tuple[str | None, tuple[int, ...] | None]:
    """The name of the image and its native size in pixels, as the metadata give them; None for what is not usable."""
    claims = claims_of(model)
    size = _parse(claims.get("window"))
    usable = isinstance(size, list) and len(size) > 0 and all(type(n) is int and n > 0 for n in size)
    return claims.get("image"), tuple(size) if usable and 0 < math.prod(size) <= LARGEST_CLAIM else None


def false_claims(claims: Mapping[str, str], geometry: Geometry) -> Iterator[tuple[str, str]]:
    """(an output, or the image; a sentence) for each value that differs from this geometry."""
    whole = {"image": claims.get("image"), "layout": claims.get("layout"), "window": _parse(claims.get("window"))}
    right = {"image": geometry.image, "layout": geometry.layout, "window": list(geometry.window)}
    for key in right:
        if whole[key] != right[key]:
            yield geometry.image, _sentence(key, whole[key], right[key])
    named = {key.removeprefix("output."): _parse(text) for key, text in claims.items() if key.startswith("output.")}
    for name, answers in geometry.outputs.items():
        right = json.loads(json.dumps(to_json(answers)))
        claimed = named.pop(name, None)
        if not isinstance(claimed, dict):
            yield name, "they do not say where these answers are"
            continue
        for key, words in VALUES.items():
            if claimed.get(key) != right.get(key):
                yield name, _sentence(words, claimed.get(key), right.get(key))
    for name in named:
        yield name, "they say where these answers are, but this output has no grid of answers"


def _sentence(words: str, claimed: Any, right: Any) -> str:
    """A sentence about a false claim."""
    text = repr(claimed)
    given = "is not given" if claimed is None else f"is given as {text if len(text) <= 80 else text[:80] + '…'}"
    return f"the {words} {given}, but it is {right!r}"


def _parse(text: str | None) -> Any:
    """The value that a JSON text stands for; None if it is not JSON."""
    try:
        return None if text is None else json.loads(text)
    except (RecursionError, ValueError):
        return None
