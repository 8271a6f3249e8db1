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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from onnx_fcn.errors import ModelError
from onnx_fcn.geometry import AXES, Answers, Count, Field, Geometry, Inner, Number, ratio
from onnx_fcn.model import storage
from onnx_fcn.model.entries import Check, formula_of, list_of, name_of, object_of, optional, parse, shorten, text_of
from onnx_fcn.model.nodes import Node
from onnx_fcn.model.version import __version__

if TYPE_CHECKING:
    from onnx_fcn.model.document import Document

__all__ = [
    "FORMAT",
    "PREFIX",
    "Trained",
    "asked_of",
    "fingerprint",
    "geometry_in",
    "kept_entries",
    "labels_in",
    "metadata_of",
    "preprocessing_in",
    "read_geometry",
    "to_json",
    "trained_in",
]


#: Version of the keys and their meaning.
FORMAT = "2"

PREFIX = "onnx_fcn."

#: What to do with a file that another tool changed.
STAMP = "compare it with the original once more, by onnx-fcn --verify ORIGINAL FILE --stamp"

#: The largest numbers that are accepted as pixels of an image, or of a window.
MOST_PIXELS, MOST_WINDOW = 1 << 40, 1 << 28

#: An image that is `FAR` pixels larger has one more cell per stride, give or take `MARGIN`.
FAR, MARGIN = 1 << 24, 1 << 12

#: The most steps of a count: more than any network has.
MOST_STEPS = 256


def metadata_of(
    geometry: Geometry,
    original: Document,
    converted: Document,
    asked: Mapping[str, Any] | None = None,
    *,
    labels: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    trained: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The entries of `metadata_props` that say where the answers of a converted model are, and what they mean.

    Args:
        geometry: where they are.
        original: the model as it was given, ready to be lifted.
        converted: the converted model.
        asked: the options of the conversion.
        labels: the names of the map's channels, if they are known.
        preprocessing: how pixels become the input, as `Preprocessing.to_json` gives it, if that is known.
        trained: the output, tensors and nodes of a trained head, and how it was trained.
    """
    seen: dict[Node, bytes] = {}
    source, graph = (fingerprint(d.proto.graph, d.nodes, seen) for d in (original, converted))
    entries = {
        "version": __version__,
        "format": FORMAT,
        "source": source,
        "graph": graph,
        "image": geometry.image,
        "layout": geometry.layout,
        "window": json.dumps(geometry.window),
    }
    if wanted := {key: value for key, value in (asked or {}).items() if value}:
        entries["asked"] = json.dumps(wanted, ensure_ascii=False)
    if labels:
        entries["labels"] = json.dumps(list(labels), ensure_ascii=False)
    if preprocessing is not None:
        entries["preprocessing"] = json.dumps(dict(preprocessing))
    if trained is not None:
        entries["fit"] = json.dumps(dict(trained), ensure_ascii=False)
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
    more = {"mirror": answers.mirror, "period": answers.period, "held": answers.held}
    return entry | {key: value for key, value in more.items() if value}


#: The most maps that a head reads.
MOST_MAPS = 64


def _number(value: Any, above: float = -math.inf, most: float = MOST_PIXELS) -> Number:
    """A number of pixels."""
    if type(value) not in (int, float) or not above < value or not abs(value) <= most:
        raise ValueError(f"{shorten(value)} is not a number of pixels")
    return int(value) if isinstance(value, int) else float(value)


def _whole(value: Any, above: float = -math.inf) -> int:
    if type(value) is not int:
        raise ValueError(f"{shorten(value)} is not a whole number")
    return int(_number(value, above))


def _positive(value: Any) -> Number:
    return _number(value, above=0)


def _window(value: Any) -> Number:
    return _number(value, above=0, most=MOST_WINDOW)


def _steps(value: Any) -> Count:
    """The steps of a count: (multiply, add, divide) each."""
    steps = list_of(lambda step: step, most=MOST_STEPS)(value)
    shaped = [list_of(_whole, count=3)(step) for step in steps]
    if any(multiply < 1 or divide < 1 for multiply, _, divide in shaped):
        raise ValueError("a step of a count multiplies or divides by less than 1")
    return Count(tuple((multiply, add, divide) for multiply, add, divide in shaped))


def _exactness(value: Any) -> str:
    if value not in ("exact", "padded", "context"):
        raise ValueError(f"{shorten(value)} is not an exactness")
    return text_of(value)


def _distance(value: Any) -> Number:
    return 0 if value == 0 else _positive(value)


def _inner(value: Any) -> Inner:
    """The cells that do not depend on how the image continues."""
    if type(value) is not dict or type(front := value["front"]) is not int or not 0 <= front <= MOST_WINDOW:
        raise ValueError(f"{shorten(value)} does not say which cells see no padding")
    return Inner(front, _steps(value["behind"]))


#: The values of an output's entry: one for each axis of the image, or one for all axes.
PER_AXIS: dict[str, Check] = {
    "window": _window,
    "stride": _positive,
    "offset": _number,
    "field": optional(_positive),
    "padding": optional(_number),
    "cells": _steps,
    "inner": _inner,
}
FOR_ALL: dict[str, Check] = {
    "exactness": _exactness,
    "reason": text_of,
    "context": list_of(text_of),
    "form": text_of,
    "layout": optional(text_of),
}


def _from_json(text: str, native: Sequence[int]) -> Answers:
    """The answers of an output from its entry; `native` is the native size of the network.

    Raises:
        KeyError, RecursionError, ValueError: if the text is not a valid entry.
    """
    entry, rank = object_of(parse(text)), len(native)
    axes: dict[str, Any] = {key: list_of(check, count=rank)(entry[key]) for key, check in PER_AXIS.items()}
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
    held = _held(entry["held"], native) if "held" in entry else ()
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
        "" if values["layout"] is None else _layout(values["layout"], rank, held),
        tuple(list_of(_distance, count=rank)(entry["mirror"])) if "mirror" in entry else (),
        _periods(entry["period"], axes["stride"]) if "period" in entry else (),
        held,
    )


def _periods(value: Any, strides: Sequence[Number]) -> tuple[Number, ...]:
    """Pixels by which an image may begin later along each axis: whole strides."""
    periods = list_of(_positive, count=len(strides))(value)
    if any(ratio(period, stride).denominator != 1 for period, stride in zip(periods, strides)):
        raise ValueError(f"{shorten(value)} are not whole strides")
    return tuple(periods)


def _held(value: Any, native: Sequence[int]) -> tuple[int | None, ...]:
    """The native size along the axes that keep it, None along the others."""
    sizes = list_of(optional(_whole), count=len(native))(value)
    if None not in sizes or any(held not in (None, pixels) for held, pixels in zip(sizes, native)):
        raise ValueError(f"{shorten(value)} are not the native size along some axes")
    return tuple(sizes)


def _check_count(count: Count, native: int) -> None:
    """Raises ValueError if an image of the native size does not give at least one cell, and not many more."""
    cells = count(native)
    if not 1 <= cells <= 2 * native + MARGIN:
        raise ValueError(f"an image of {native} pixels would have {shorten(cells)} cells")


def _check_rate(count: Count, native: int, stride: Number) -> None:
    """Raises ValueError if cells are not about a stride apart.

    The check ensures that computing with the number of cells takes little time and memory.
    """
    further = count(native + FAR) - count(native)
    if abs(further * stride - FAR) > (MARGIN + len(count.steps)) * max(stride, 1):
        raise ValueError(f"its cells would not be {float(stride):g} pixels apart")


def _layout(text: Any, rank: int, held: Sequence[int | None] = ()) -> str:
    """A layout: the axes of the image in any order, and perhaps a batch and channels.

    An output need not have those that keep their size.
    """
    needed = {name for name, size in zip(AXES[rank], held or (None,) * rank) if size is None}
    if not isinstance(text, str) or len(set(text)) < len(text) or not needed <= set(text) <= {*AXES[rank], *"NC"}:
        raise ValueError(f"{shorten(text)} is not a layout of {rank} axes")
    return text


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
    entries, graph, again = _entries(model), model.graph, "convert the original again"
    if "format" not in entries:
        raise ModelError(
            "the model does not say where its answers are: onnx_fcn did not convert it, or another tool removed its "
            f"metadata. Then {STAMP}"
        )
    if entries["format"] != FORMAT:
        wrote = f"onnx_fcn {entries.get('version', '?')}, in format {entries['format']}"
        raise ModelError(f"the geometry was written by {wrote}, but this version reads format {FORMAT}: {again}")
    try:
        if entries.get("graph") != fingerprint(graph):
            raise ModelError(f"the geometry in the metadata belongs to another graph than this file's: {STAMP}")
        names = [o.name for o in graph.output if f"output.{o.name}" in entries]
        window = tuple(list_of(_whole)(parse(entries["window"])))
        if len(window) not in AXES and (window or names):
            raise ValueError(f"an image cannot have {len(window)} axes")
        if not all(0 < n <= MOST_WINDOW for n in window) or math.prod(window) > MOST_WINDOW:
            raise ValueError(f"no network has a window of {'×'.join(map(shorten, window))} pixels")
        outputs = {name: _from_json(entries[f"output.{name}"], window) for name in names}
        layout = _layout(entries["layout"], len(window)) if window else ""
        geometry = Geometry(window, outputs, entries["image"], layout)
    except KeyError as error:
        raise ModelError(f"the geometry in the metadata cannot be read (it lacks {error}): {again}") from None
    except (RecursionError, ValueError) as error:
        raise ModelError(f"the geometry in the metadata cannot be read ({error}): {again}") from None
    declared = next((i for i in graph.input if i.name == geometry.image), None)
    if declared is None:
        raise ModelError(f"the model has no input '{geometry.image}', which its metadata calls the image: {again}")
    if window and (axes := len(declared.type.tensor_type.shape.dim)) != len(geometry.layout):
        raise ModelError(
            f"the metadata says that the axes of '{geometry.image}' are {geometry.layout}, but it has {axes}: {again}"
        )
    return geometry


def _entries(model: ModelProto) -> dict[str, str]:
    """The entries of onnx_fcn, without their prefix."""
    props = [(e.key, e.value) for e in model.metadata_props]
    # Protobuf gives a string that is not UTF-8 as bytes.
    text = [(key, value) for key, value in props if isinstance(key, str) and isinstance(value, str)]
    return {key.removeprefix(PREFIX): value for key, value in text if key.startswith(PREFIX)}


def _value_of(model: ModelProto, name: str, check: Check) -> Any:
    """The value of an entry that a model may have; None if it has none.

    Raises:
        ModelError: if the check refuses it.
    """
    entry = _entries(model).get(name)
    try:
        return None if entry is None else check(parse(entry))
    except KeyError as error:
        reason = f"it lacks {error}"
    except (RecursionError, ValueError) as error:
        reason = str(error)
    raise ModelError(f"the entry '{PREFIX}{name}' in the metadata of the model cannot be read: {reason}")


def asked_of(model: ModelProto) -> dict[str, Any]:
    """The options of the conversion, as far as they change the answers.

    Raises:
        ModelError: if the metadata cannot be read.
    """
    return _value_of(model, "asked", object_of) or {}


def kept_entries(model: ModelProto) -> dict[str, str]:
    """The entries about what users gave, which no walk of the original tells: labels, preprocessing, training."""
    return {PREFIX + key: text for key, text in _entries(model).items() if key in ("labels", "preprocessing", "fit")}


def labels_in(model: ModelProto) -> tuple[str, ...]:
    """The names of the map's channels, in order; empty if the model does not say.

    Raises:
        ModelError: if the entry is not a list of names.
    """
    return tuple(_value_of(model, "labels", list_of(name_of)) or ())


def preprocessing_in(model: ModelProto) -> Mapping[str, Any] | None:
    """How pixels become the input of the network, as `Preprocessing.from_json` takes it; None if it does not say.

    Raises:
        ModelError: if the entry is not such an object, or a number in it is out of range.
    """
    found: Mapping[str, Any] | None = _value_of(model, "preprocessing", formula_of)
    return found


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
        ModelError: if the entry does not name one node for each map.
    """
    found: Trained | None = _value_of(model, "fit", _trained)
    return found


def _trained(value: Any) -> Trained:
    entry, names = object_of(value), list_of(name_of, most=MOST_MAPS)
    tensors, nodes = tuple(names(entry["tensors"])), tuple(names(entry["nodes"]))
    if not tensors or len(set(tensors)) < len(tensors) or len(tensors) != len(nodes):
        raise ValueError("it does not name one node for each map")
    return Trained(name_of(entry["output"]), tensors, nodes)


def fingerprint(graph: GraphProto, nodes: Iterable[Node] | None = None, seen: dict[Node, bytes] | None = None) -> str:
    """SHA-256 of a graph, without the values of its weights, the names of its nodes and its documentation.

    Of weights it contains name, type and dims, so that it takes milliseconds for models of any size, and is the same
    for inline and external data. Declared sizes are left out.

    Args:
        graph: the graph.
        nodes: its nodes, if they have been read.
        seen: what is hashed of nodes that other graphs have, too; it is completed.
    """
    digest, seen = hashlib.sha256(), {} if seen is None else seen
    digest.update(_joined(_declarations(graph)))
    for node in map(Node.of, graph.node) if nodes is None else nodes:
        if node not in seen:
            seen[node] = _joined(_parts(node.proto))
        digest.update(seen[node])
    return digest.hexdigest()


def _joined(parts: Iterable[str]) -> bytes:
    return "".join([f"{part}\0" for part in parts]).encode()


def _declarations(graph: GraphProto) -> Iterator[str]:
    yield from (f"input {v.name}" for v in graph.input)
    yield from (f"output {v.name}" for v in graph.output)
    yield from sorted(f"weight {t.name} {t.data_type} {t.dims[:]}" for t in graph.initializer)


def _parts(node: NodeProto) -> Iterator[str]:
    yield f"node {node.domain} {node.op_type} {node.input[:]} {node.output[:]}"
    named = [(a.name, a) for a in node.attribute[:]]
    for name, attribute in sorted(named, key=itemgetter(0)):
        yield str(name)  # bytes if it is not UTF-8
        if attribute.HasField("t"):
            yield f"{attribute.t.data_type} {attribute.t.dims[:]}"
        elif attribute.HasField("g"):
            yield from _declarations(attribute.g)
            for inner in attribute.g.node:
                yield from _parts(inner)
        else:
            yield _undocumented(attribute).SerializeToString(deterministic=True).hex()


def _undocumented(attribute: AttributeProto) -> AttributeProto:
    """An attribute without its documentation."""
    if not attribute.HasField("doc_string"):
        return attribute
    plain = AttributeProto()
    plain.CopyFrom(attribute)
    plain.ClearField("doc_string")
    return plain
