"""Where the answers of a converted model are, written into the model itself and read back.

The geometry is stored in the model's `metadata_props` under keys that begin with ``onnx_fcn.`` (docs/geometry.md lists
them), and loaded from the converted file alone. Metadata outlives the graph that it was written for, as other tools
copy it along; so it carries a fingerprint of its graph, and is not believed without.

A pipeline reads it beside onnxruntime, so nothing here imports the converter: numpy and onnx are enough.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto

from onnx_fcn import storage
from onnx_fcn._version import __version__
from onnx_fcn.errors import ModelError
from onnx_fcn.geometry import AXES, Answers, Count, Field, Geometry, Number

__all__ = ["asked_of", "fingerprint", "geometry_in", "metadata_of", "read_geometry", "written"]

#: Version of the keys and what they mean.
FORMAT = "1"

PREFIX = "onnx_fcn."

#: Numbers beyond this are no pixels of an image.
MOST_PIXELS = 1 << 40


def metadata_of(
    geometry: Geometry, source: str, converted: GraphProto, asked: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The entries of `metadata_props` that say where the answers of a converted model are.

    `source` is the fingerprint of the original, and `asked` what the conversion was asked for.
    """
    entries = {
        "version": __version__,
        "format": FORMAT,
        "source": source,
        "graph": fingerprint(converted),
        "image": geometry.image,
        "layout": geometry.layout,
        "window": json.dumps(geometry.window),
    }
    if wanted := {key: value for key, value in (asked or {}).items() if value}:
        entries["asked"] = json.dumps(wanted, ensure_ascii=False)
    outputs = {f"output.{name}": json.dumps(written(a), ensure_ascii=False) for name, a in geometry.outputs.items()}
    return {PREFIX + key: value for key, value in {**entries, **outputs}.items()}


def written(answers: Answers) -> dict[str, Any]:
    """Answers in JSON: an infinite field has neither size nor start."""
    return {
        "window": answers.window,
        "stride": answers.stride,
        "offset": answers.offset,
        "field": [f.size if f.is_local else None for f in answers.field],
        "padding": [f.padding if f.is_local else None for f in answers.field],
        "cells": [c.steps for c in answers.count],
        "formula": answers.formulas(),
        "exactness": answers.exactness,
        "reason": answers.reason,
        "context": answers.context,
        "form": answers.form,
        "layout": answers.layout or None,
    }


def _read(entry: dict[str, Any]) -> Answers:
    """Answers from JSON.

    Raises:
        KeyError, TypeError, ValueError: that is no JSON of answers.
    """
    rank = len(entry["window"])
    if rank not in AXES or entry["exactness"] not in ("exact", "padded", "context"):
        raise ValueError(f"exactness {entry['exactness']!r} of {rank} axes")
    sizes = (_number(size, above=0) if size is not None else None for size in entry["field"])
    strides = tuple(_number(s, above=0) for s in entry["stride"])
    fields = [
        Field().everywhere() if size is None else Field(size, 1, -_number(padding))
        for size, padding in zip(sizes, entry["padding"], strict=True)
    ]
    answers = Answers(
        tuple(_number(w, above=0) for w in entry["window"]),
        strides,
        tuple(_number(o) for o in entry["offset"]),
        tuple(replace(f, stride=s) for f, s in zip(fields, strides, strict=True)),
        tuple(Count(tuple(_step(*step) for step in steps)) for steps in entry["cells"]),
        entry["exactness"],
        str(entry["reason"]),
        tuple(map(str, entry["context"])),
        str(entry["form"]),
        "" if entry["layout"] is None else _layout(entry["layout"], rank),
    )
    if len({rank, len(strides), len(answers.offset), len(fields), len(answers.count)}) > 1:
        raise ValueError("the axes differ in number")
    return answers


def _layout(text: Any, rank: int) -> str:
    """Axes of the image in any order, and perhaps a batch and channels."""
    if (
        not isinstance(text, str)
        or len(set(text)) < len(text)
        or not set(AXES[rank]) <= set(text) <= {*AXES[rank], *"NC"}
    ):
        raise ValueError(f"{text!r} is no layout of {rank} axes")
    return text


def _step(multiply: Any, add: Any, divide: Any) -> tuple[int, int, int]:
    step = _number(multiply, above=0), _number(add), _number(divide, above=0)
    if not all(isinstance(n, int) for n in step):
        raise ValueError(f"{step} is no step of integers")
    return int(step[0]), int(step[1]), int(step[2])


def _number(value: Any, above: float = -math.inf) -> Number:
    if type(value) not in (int, float) or not above < value or not abs(value) <= MOST_PIXELS:
        raise ValueError(f"{value!r} is no number of pixels")
    return int(value) if isinstance(value, int) else float(value)


def read_geometry(source: str | os.PathLike[str] | onnx.ModelProto) -> Geometry:
    """Where the answers of a converted model are, from its file alone. Weights are not read.

    Raises:
        ModelError: it is no model that onnx_fcn converted, or its graph was changed since.
    """
    return geometry_in(storage.read(source)[0])


def geometry_in(model: ModelProto) -> Geometry:
    """The same from a model, or its skeleton, that was read already.

    Raises:
        ModelError: likewise.
    """
    props = [(e.key, e.value) for e in model.metadata_props]
    # Protobuf gives a string that is not UTF-8 as bytes.
    text = [(key, value) for key, value in props if isinstance(key, str) and isinstance(value, str)]
    entries = {key.removeprefix(PREFIX): value for key, value in text if key.startswith(PREFIX)}
    graph, again = model.graph, "convert the original again"
    if "format" not in entries:
        raise ModelError("the model does not say where its answers are: onnx_fcn did not convert it")
    if entries["format"] != FORMAT:
        wrote = f"onnx_fcn {entries.get('version', '?')}, in format {entries['format']}"
        raise ModelError(f"the geometry was written by {wrote}, and this version reads format {FORMAT}: {again}")
    try:
        if entries.get("graph") != fingerprint(graph):
            raise ModelError(f"the geometry in the metadata is that of another graph than this file's: {again}")
        names = [o.name for o in graph.output if f"output.{o.name}" in entries]
        outputs = {name: _read(json.loads(entries[f"output.{name}"])) for name in names}
        window = tuple(int(_number(w, above=0)) for w in json.loads(entries["window"]))
        if len(window) not in AXES or any(len(answers.window) != len(window) for answers in outputs.values()):
            raise ValueError("the axes differ in number")
        geometry = Geometry(window, outputs, entries["image"], _layout(entries["layout"], len(window)))
    except KeyError as error:
        raise ModelError(f"the geometry in the metadata cannot be read (it lacks {error}): {again}") from None
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f"the geometry in the metadata cannot be read ({error}): {again}") from None
    declared = next((i for i in graph.input if i.name == geometry.image), None)
    if declared is None:
        raise ModelError(f"the model has no input '{geometry.image}', which its metadata calls the image: {again}")
    if (axes := len(declared.type.tensor_type.shape.dim)) != len(geometry.layout):
        raise ModelError(
            f"the metadata says that the axes of '{geometry.image}' are {geometry.layout}, and it has {axes}: {again}"
        )
    return geometry


def asked_of(model: ModelProto) -> dict[str, Any]:
    """What the conversion was asked for beyond the plain map.

    Raises:
        ModelError: the metadata cannot be read.
    """
    entry = next((e.value for e in model.metadata_props if e.key == f"{PREFIX}asked"), "{}")
    try:
        asked = json.loads(entry)
        if not isinstance(asked, dict):
            raise ValueError(f"'{entry}' is no object")
    except (RecursionError, ValueError) as error:
        raise ModelError(f"the metadata of the converted model cannot be read: {error}") from None
    return asked


def fingerprint(graph: GraphProto) -> str:
    """SHA-256 of a graph without the values of its weights, its names of nodes and its documentation.

    Weights count with name, type and dims, so that it takes milliseconds whatever the model weighs, and is the same
    for inline and external data. Declared sizes do not count.
    """
    digest = hashlib.sha256()
    for part in _parts(graph):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _parts(graph: GraphProto) -> Iterator[str]:
    yield from (f"input {v.name}" for v in graph.input)
    yield from (f"output {v.name}" for v in graph.output)
    yield from sorted(f"weight {t.name} {t.data_type} {list(t.dims)}" for t in graph.initializer)
    for node in graph.node:
        yield f"node {node.domain} {node.op_type} {list(node.input)} {list(node.output)}"
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            yield attribute.name
            if attribute.HasField("t"):
                yield f"{attribute.t.data_type} {list(attribute.t.dims)}"
            elif attribute.HasField("g"):
                yield from _parts(attribute.g)
            else:
                plain = AttributeProto()
                plain.CopyFrom(attribute)
                plain.ClearField("doc_string")
                yield plain.SerializeToString(deterministic=True).hex()
