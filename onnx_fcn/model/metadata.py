"""Where the answers of a converted model are, written into the model itself and read back.

The geometry is stored in the model's `metadata_props` under keys that begin with ``onnx_fcn.`` (docs/geometry.md lists
them), and is loaded from the converted file alone. Other tools copy metadata to graphs that it was not written for; so
it contains a fingerprint of its graph, and is not accepted without it.

A pipeline reads it next to onnxruntime, so nothing here imports the converter: numpy and onnx are enough.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto

from onnx_fcn._version import __version__
from onnx_fcn.errors import ModelError
from onnx_fcn.geometry import AXES, Answers, Count, Field, Geometry, Inner, Number
from onnx_fcn.model import storage

__all__ = [
    "FORMAT",
    "PREFIX",
    "Trained",
    "asked_of",
    "fingerprint",
    "geometry_in",
    "metadata_of",
    "read_geometry",
    "to_json",
    "trained_in",
]


#: Version of the keys and their meaning.
FORMAT = "2"

PREFIX = "onnx_fcn."

#: The largest numbers that are accepted as pixels of an image, or of a window.
MOST_PIXELS, MOST_WINDOW = 1 << 40, 1 << 28

#: An image that is `FAR` pixels larger has one more cell per stride, give or take `MARGIN`.
FAR, MARGIN = 1 << 24, 1 << 12


def metadata_of(
    geometry: Geometry, source: str, converted: GraphProto, asked: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The entries of `metadata_props` that say where the answers of a converted model are.

    `source` is the fingerprint of the original, and `asked` are the options of the conversion.
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
    outputs = {f"output.{name}": json.dumps(to_json(a), ensure_ascii=False) for name, a in geometry.outputs.items()}
    return {PREFIX + key: value for key, value in {**entries, **outputs}.items()}


def to_json(answers: Answers) -> dict[str, Any]:
    """Answers as a JSON object; an infinite field has neither size nor padding."""
    entry = {
        "window": answers.window,
        "stride": answers.stride,
        "offset": answers.offset,
        "field": [f.size if f.is_local else None for f in answers.field],
        "padding": [f.padding if f.is_local else None for f in answers.field],
        "cells": [c.steps for c in answers.count],
        "inner": [{"front": i.front, "behind": i.behind.steps} for i in answers.inner],
        "formula": answers.formulas(),
        "exactness": answers.exactness,
        "reason": answers.reason,
        "context": answers.context,
        "form": answers.form,
        "layout": answers.layout or None,
    }
    optional = {"mirror": answers.mirror, "period": answers.period}
    return entry | {key: value for key, value in optional.items() if value}


#: The most letters of an entry, steps of a count, and nodes of context: more than any network has.
MOST_LETTERS, MOST_STEPS, MOST_NODES = 1 << 24, 256, 1 << 16

#: The most maps that a head reads.
MOST_MAPS = 64

Check = Callable[[Any], Any]


def _number(value: Any, above: float = -math.inf, most: float = MOST_PIXELS) -> Number:
    """A number of pixels."""
    if type(value) not in (int, float) or not above < value or not abs(value) <= most:
        raise ValueError(f"{_shorten(value)} is not a number of pixels")
    return int(value) if isinstance(value, int) else float(value)


def _whole(value: Any, above: float = -math.inf) -> int:
    if type(value) is not int:
        raise ValueError(f"{_shorten(value)} is not a whole number")
    return int(_number(value, above))


def _positive(value: Any) -> Number:
    return _number(value, above=0)


def _window(value: Any) -> Number:
    return _number(value, above=0, most=MOST_WINDOW)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{_shorten(value)} is not text")
    return value


def _steps(value: Any) -> Count:
    """The steps of a count: (multiply, add, divide) each."""
    steps = _list_of(lambda step: step, most=MOST_STEPS)(value)
    shaped = [_list_of(_whole, count=3)(step) for step in steps]
    if any(multiply < 1 or divide < 1 for multiply, _, divide in shaped):
        raise ValueError("a step of a count multiplies or divides by less than 1")
    return Count(tuple((multiply, add, divide) for multiply, add, divide in shaped))


def _exactness(value: Any) -> str:
    if value not in ("exact", "padded", "context"):
        raise ValueError(f"{_shorten(value)} is not an exactness")
    return _text(value)


def _distance(value: Any) -> Number:
    return 0 if value == 0 else _positive(value)


def _optional(check: Check) -> Check:
    """A check of None, or of a value."""
    return lambda value: None if value is None else check(value)


def _list_of(check: Check, *, count: int | None = None, most: int = MOST_NODES) -> Check:
    """A check of a list of `count` values, or of at most `most`."""

    def check_list(value: Any) -> list[Any]:
        if type(value) is not list or len(value) > most or count not in (None, len(value)):
            raise ValueError(f"{_shorten(value)} is not a list of {count or f'at most {most}'}")
        return [check(one) for one in value]

    return check_list


def _inner(value: Any) -> Inner:
    """The cells that do not depend on how the image continues."""
    if type(value) is not dict or type(front := value["front"]) is not int or not 0 <= front <= MOST_WINDOW:
        raise ValueError(f"{_shorten(value)} does not say which cells see no padding")
    return Inner(front, _steps(value["behind"]))


#: The values of an output's entry: one for each axis of the image, or one for all axes.
PER_AXIS: dict[str, Check] = {
    "window": _window,
    "stride": _positive,
    "offset": _number,
    "field": _optional(_positive),
    "padding": _optional(_number),
    "cells": _steps,
    "inner": _inner,
}
FOR_ALL: dict[str, Check] = {
    "exactness": _exactness,
    "reason": _text,
    "context": _list_of(_text),
    "form": _text,
    "layout": _optional(_text),
}


def _from_json(text: str, native: Sequence[int]) -> Answers:
    """The answers of an output from its entry; `native` is the native size of the network.

    Raises:
        KeyError, RecursionError, ValueError: if the text is not a valid entry.
    """
    entry, rank = _parse(text), len(native)
    if type(entry) is not dict:
        raise ValueError("an output's entry is not an object")
    axes: dict[str, Any] = {key: _list_of(check, count=rank)(entry[key]) for key, check in PER_AXIS.items()}
    values: dict[str, Any] = {key: check(entry[key]) for key, check in FOR_ALL.items()}
    fields = []
    for size, padding, stride in zip(axes["field"], axes["padding"], axes["stride"]):
        if (size is None) != (padding is None):
            raise ValueError("a field has a size or a padding, and not both")
        fields.append(Field(1, stride).everywhere() if size is None else Field(size, stride, -padding))
    for pixels, stride, count, inner in zip(native, axes["stride"], axes["cells"], axes["inner"]):
        _check_count(count, pixels)
        for steps in (count, inner.behind):
            _check_rate(steps, pixels, stride)
    return Answers(
        tuple(axes["window"]),
        tuple(axes["stride"]),
        tuple(axes["offset"]),
        tuple(fields),
        tuple(axes["cells"]),
        tuple(axes["inner"]),
        values["exactness"],
        values["reason"],
        tuple(values["context"]),
        values["form"],
        "" if values["layout"] is None else _layout(values["layout"], rank),
        tuple(_list_of(_distance, count=rank)(entry["mirror"])) if "mirror" in entry else (),
        _periods(entry["period"], axes["stride"]) if "period" in entry else (),
    )


def _periods(value: Any, strides: Sequence[Number]) -> tuple[Number, ...]:
    """Pixels by which an image may begin later along each axis: whole strides."""
    periods = _list_of(_positive, count=len(strides))(value)
    if any(period % stride for period, stride in zip(periods, strides)):
        raise ValueError(f"{_shorten(value)} are not whole strides")
    return tuple(periods)


def _check_count(count: Count, native: int) -> None:
    """Raises ValueError if an image of the native size does not give at least one cell, and not many more."""
    cells = count(native)
    if not 1 <= cells <= 2 * native + MARGIN:
        raise ValueError(f"an image of {native} pixels would have {_shorten(cells)} cells")


def _check_rate(count: Count, native: int, stride: Number) -> None:
    """Raises ValueError if cells are not about a stride apart.

    The check ensures that computing with the number of cells takes little time and memory.
    """
    further = count(native + FAR) - count(native)
    if abs(further * stride - FAR) > (MARGIN + len(count.steps)) * max(stride, 1):
        raise ValueError(f"its cells would not be {float(stride):g} pixels apart")


def _layout(text: Any, rank: int) -> str:
    """A layout: the axes of the image in any order, and perhaps a batch and channels."""
    if (
        not isinstance(text, str)
        or len(set(text)) < len(text)
        or not set(AXES[rank]) <= set(text) <= {*AXES[rank], *"NC"}
    ):
        raise ValueError(f"{_shorten(text)} is not a layout of {rank} axes")
    return text


def _parse(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        RecursionError, ValueError: if it is not JSON, is nested too deeply, or is too long.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(f"an entry has {len(text)} letters")
    return json.loads(text)


def _shorten(value: Any) -> str:
    """A value as a short text for a message."""
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_geometry(source: str | os.PathLike[str] | onnx.ModelProto) -> Geometry:
    """Where the answers of a converted model are, from its file alone. Weights are not read.

    Raises:
        ModelError: if onnx_fcn did not convert the model, or its graph was changed since.
    """
    return geometry_in(storage.read(source)[0])


def geometry_in(model: ModelProto) -> Geometry:
    """`read_geometry` for a model, or a skeleton, in memory.

    Raises:
        ModelError: if onnx_fcn did not convert the model, or its graph was changed since.
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
        raise ModelError(f"the geometry was written by {wrote}, but this version reads format {FORMAT}: {again}")
    try:
        if entries.get("graph") != fingerprint(graph):
            raise ModelError(f"the geometry in the metadata belongs to another graph than this file's: {again}")
        names = [o.name for o in graph.output if f"output.{o.name}" in entries]
        window = tuple(_list_of(_whole)(_parse(entries["window"])))
        if len(window) not in AXES:
            raise ValueError(f"an image cannot have {len(window)} axes")
        if not all(0 < n <= MOST_WINDOW for n in window) or math.prod(window) > MOST_WINDOW:
            raise ValueError(f"no network has a window of {'×'.join(map(_shorten, window))} pixels")
        outputs = {name: _from_json(entries[f"output.{name}"], window) for name in names}
        geometry = Geometry(window, outputs, entries["image"], _layout(entries["layout"], len(window)))
    except KeyError as error:
        raise ModelError(f"the geometry in the metadata cannot be read (it lacks {error}): {again}") from None
    except (RecursionError, ValueError) as error:
        raise ModelError(f"the geometry in the metadata cannot be read ({error}): {again}") from None
    declared = next((i for i in graph.input if i.name == geometry.image), None)
    if declared is None:
        raise ModelError(f"the model has no input '{geometry.image}', which its metadata calls the image: {again}")
    if (axes := len(declared.type.tensor_type.shape.dim)) != len(geometry.layout):
        raise ModelError(
            f"the metadata says that the axes of '{geometry.image}' are {geometry.layout}, but it has {axes}: {again}"
        )
    return geometry


def asked_of(model: ModelProto) -> dict[str, Any]:
    """The options of the conversion, as far as they change the answers.

    Raises:
        ModelError: if the metadata cannot be read.
    """
    entry = next((e.value for e in model.metadata_props if e.key == f"{PREFIX}asked"), "{}")
    try:
        asked = _parse(entry)
        if not isinstance(asked, dict):
            raise ValueError(f"{_shorten(asked)} is not an object")
    except (RecursionError, ValueError) as error:
        raise ModelError(f"the metadata of the converted model cannot be read: {error}") from None
    return asked


@dataclass(frozen=True)
class Trained:
    """The trained head of a file: what a comparison with the original needs.

    Attributes:
        output: the name of its output.
        tensors: the maps that it reads, by their names in the original.
        nodes: the Conv that reads each of them.
    """

    output: str
    tensors: tuple[str, ...]
    nodes: tuple[str, ...]


def trained_in(model: ModelProto) -> Trained | None:
    """The trained head of a file; None if its head was not trained.

    Raises:
        ModelError: if the metadata cannot be read.
    """
    text = next((e.value for e in model.metadata_props if e.key == f"{PREFIX}fit"), None)
    if text is None:
        return None
    try:
        entry, names = _parse(text), _list_of(_text, most=MOST_MAPS)
        tensors, nodes = tuple(names(entry["tensors"])), tuple(names(entry["nodes"]))
        if not tensors or len(set(tensors)) != len(tensors) or len(tensors) != len(nodes):
            raise ValueError("it does not name one node for each map")
        return Trained(_text(entry["output"]), tensors, nodes)
    except (KeyError, TypeError, RecursionError, ValueError) as error:
        raise ModelError(f"what the metadata say of training cannot be read ({error}): fit the model again") from None


def fingerprint(graph: GraphProto) -> str:
    """SHA-256 of a graph, without the values of its weights, the names of its nodes and its documentation.

    Of weights it contains name, type and dims, so that it takes milliseconds for models of any size, and is the same
    for inline and external data. Declared sizes are left out.
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
            yield str(attribute.name)  # bytes if it is not UTF-8
            if attribute.HasField("t"):
                yield f"{attribute.t.data_type} {list(attribute.t.dims)}"
            elif attribute.HasField("g"):
                yield from _parts(attribute.g)
            else:
                plain = AttributeProto()
                plain.CopyFrom(attribute)
                plain.ClearField("doc_string")
                yield plain.SerializeToString(deterministic=True).hex()
