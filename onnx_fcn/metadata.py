"""Where the answers of a converted model are, written into the model itself and read back.

The geometry is read off a finished walk, stored in the model's `metadata_props` under keys that begin with
``onnx_fcn.`` (docs/geometry.md lists them), and loaded from the converted file alone. Metadata outlives the graph that
it was written for, as other tools copy it along; so it carries a fingerprint of its graph, and is not believed without.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto

from onnx_fcn._version import __version__
from onnx_fcn.document import Document, names_used
from onnx_fcn.errors import ModelError
from onnx_fcn.geometry import Answers, Count, Field, Geometry, Number
from onnx_fcn.interpret import Walk
from onnx_fcn.lifted import Axis, Lifted

__all__ = ["fields_of", "fingerprint", "geometry_of", "meetings", "metadata_of", "read_geometry", "written"]

#: Version of the keys and what they mean.
FORMAT = "1"

PREFIX = "onnx_fcn."


# From a walk ----------------------------------------------------------------------------------------------------------


def fields_of(state: Walk) -> dict[str, tuple[Field, ...]]:
    """The receptive field of every tensor that lies on a map, along each axis of the image, by its original name."""
    return {n: tuple(a.field.plain() for a in sliding(f)) for n, f in state.facts.items() if isinstance(f, Lifted)}


def sliding(fact: Lifted) -> list[Axis]:
    """The axes of a map that run along the image, in its order."""
    return sorted((a for a in fact.space if a.image is not None), key=lambda a: a.image or 0)


def geometry_of(state: Walk) -> Geometry:
    """Where the answers of all outputs are that lie on a grid."""
    return Geometry(state.image.size, {name: _answers(state, name, fact) for name, fact in state.results.items()})


def _answers(state: Walk, name: str, fact: Lifted) -> Answers:
    """The geometry of one output. A map of a network without a head has no window but its receptive field."""
    axes = sliding(fact)
    field = tuple(a.field.plain() for a in axes)
    upstream = _upstream(state, name)
    context = tuple(dict.fromkeys(state.seats[k].name for k in sorted(state.context & upstream)))
    pads = [state.seats[k].name for k in sorted(upstream) if (s := state.seats[k].slides) is not None and s.pads]
    window: tuple[Number, ...] = state.image.size
    offset: tuple[Number, ...] = (0,) * len(axes)
    within = all(f.start >= 0 and f.end <= pixels for f, pixels in zip(field, state.image.size))
    if fact.is_live:
        window, offset, within = tuple(f.size for f in field), tuple(f.start for f in field), False
    if context:
        exactness, reason = "context", f"{_verb(context, 'see')} the whole image, whatever its size"
    elif pads and not within:
        exactness, reason = "padded", f"{_verb(pads, 'pad')}: a crop sees padding where the larger image goes on"
    else:
        exactness, reason = "exact", "no padding reaches an answer, and nothing sees more than its window"
    stride = tuple(f.stride for f in field)
    return Answers(window, stride, offset, field, tuple(a.count for a in axes), exactness, reason, context)


def _verb(nodes: Sequence[str], verb: str) -> str:
    return f"'{nodes[0]}' {verb}s" if len(nodes) == 1 else f"'{nodes[0]}' and {len(nodes) - 1} more {verb}"


def _upstream(state: Walk, name: str) -> set[int]:
    """Seats that a tensor is computed from."""
    wanted, found = {name}, set()
    for k in range(len(state.seats) - 1, -1, -1):
        if any(o.name in wanted for o in state.seats[k].node.outputs):
            found.add(k)
            wanted |= set(names_used(state.seats[k].proto))
    return found


def meetings(state: Walk) -> Iterator[str]:
    """Branches that meet although the middles of their cells lie apart, in sentences."""
    for seat in state.seats:
        maps = [(t.name, f) for t, f in zip(seat.node.inputs, seat.operands) if isinstance(f, Lifted)]
        for k in range(len(state.image.size)):
            middles = {n: sliding(f)[k].field.centre for n, f in maps if sliding(f)[k].atoms}
            middles = {n: float(m) for n, m in middles.items() if not math.isnan(m)}
            if len(set(middles.values())) > 1:
                paths = " with ".join(f"'{n}', whose first cell lies at pixel {m:g}" for n, m in middles.items())
                yield f"'{seat.name}' joins {paths}: branches that are not aligned."
                break


# In the model ---------------------------------------------------------------------------------------------------------


def metadata_of(geometry: Geometry, image: str, source: Document, converted: Document) -> dict[str, str]:
    """The entries of `metadata_props` that say where the answers of a converted model are."""
    entries = {
        "version": __version__,
        "format": FORMAT,
        "source": fingerprint(source.proto.graph),
        "graph": fingerprint(converted.proto.graph),
        "image": image,
        "window": json.dumps(geometry.window),
    }
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
    }


def _read(entry: dict[str, Any]) -> Answers:
    fields = [
        Field().everywhere() if size is None else Field(size, 1, -padding)
        for size, padding in zip(entry["field"], entry["padding"], strict=True)
    ]
    return Answers(
        tuple(entry["window"]),
        tuple(entry["stride"]),
        tuple(entry["offset"]),
        tuple(replace(f, stride=s) for f, s in zip(fields, entry["stride"], strict=True)),
        tuple(Count(tuple((m, a, d) for m, a, d in steps)) for steps in entry["cells"]),
        entry["exactness"],
        entry["reason"],
        tuple(entry["context"]),
    )


def read_geometry(source: str | os.PathLike[str] | onnx.ModelProto) -> Geometry:
    """Where the answers of a converted model are, from its file alone. Weights are not read.

    Raises:
        ModelError: it is no model that onnx_fcn converted, or its graph was changed since.
    """
    document = Document.open(source)
    entries = {e.key.removeprefix(PREFIX): e.value for e in document.proto.metadata_props if e.key.startswith(PREFIX)}
    graph, again = document.proto.graph, "convert the original again"
    if "format" not in entries:
        raise ModelError("the model does not say where its answers are: onnx_fcn did not convert it")
    if entries["format"] != FORMAT:
        wrote = f"onnx_fcn {entries.get('version', '?')}, in format {entries['format']}"
        raise ModelError(f"the geometry was written by {wrote}, and this version reads format {FORMAT}: {again}")
    if entries.get("graph") != fingerprint(graph):
        raise ModelError(f"the geometry in the metadata is that of another graph than the one in this file: {again}")
    try:
        names = [o.name for o in graph.output if f"output.{o.name}" in entries]
        outputs = {name: _read(json.loads(entries[f"output.{name}"])) for name in names}
        return Geometry(tuple(json.loads(entries["window"])), outputs)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the geometry in the metadata cannot be read ({error}): {again}") from None


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
