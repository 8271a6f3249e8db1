"""What was found, done and measured: one plain value, its texts, and its JSON.

A `Report` holds numbers, names and sentences only, no facts and no protos: it can be compared, pickled and kept. What
people read is the same list of `Table`s everywhere; `str(report)` aligns them as plain text, and the command line
draws them where there is a terminal.
"""

from __future__ import annotations

import difflib
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from onnx_fcn._version import __version__
from onnx_fcn.document import Document
from onnx_fcn.errors import OptionError
from onnx_fcn.geometry import Field, Geometry
from onnx_fcn.interpret import Change, Emission, Image, Seat, Walk
from onnx_fcn.lifted import Lifted
from onnx_fcn.lifting import find_cut
from onnx_fcn.metadata import written
from onnx_fcn.placement import fields_of, geometry_of, meetings, sliding
from onnx_fcn.validation import Validation

__all__ = ["FORMAT", "Report", "Table", "describe", "plain", "tables_of"]

#: Version of what `Report.to_dict` returns; it grows when a key is renamed, removed or changes its meaning.
FORMAT = 1

#: Windows along each axis of the example.
EXAMPLE = 10

#: Columns of a sentence in plain text.
WIDTH = 110

#: Names of the axes of an image, by their number.
LETTERS = {1: "W", 2: "HW", 3: "DHW"}

Dim = int | str | None


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, and its shape in the original and in the result (None where a size is unknown).

    `stride` is, for an output, how many pixels lie between its answers along each axis of the image.
    """

    name: str
    before: tuple[Dim, ...] | None
    after: tuple[Dim, ...] | None
    stride: tuple[float, ...] = ()


@dataclass(frozen=True)
class Map:
    """The cut: the feature map that all answers are computed from.

    Attributes:
        name: the tensor in the original.
        channels: its channels.
        window: its cells that one answer is computed from.
        stride: pixels per cell.
    """

    name: str
    channels: int
    window: tuple[int, ...]
    stride: tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """A node that was about one window, and answers at every position now.

    Attributes:
        kind: ``dense``, ``window`` (a convolution or pooling over the whole window) or ``unfold`` (window positions
            became channels).
        node: its name in the original.
        was: its operator.
        becomes: the operator that does its work now, or several, joined by " + ".
        kernel: cells of the map that it covers; all 1 behind the first dense layer.
        inputs: channels that it reads, in each group.
        outputs: channels that it makes.
        groups: groups of channels.
        reads: the map that it reads.
        layout: how the exporter had flattened it: ``n (c256 h6 w6)`` is channels first.
        weight: the name of its weight.
        same_bytes: whether the kernel is stored as the weight was; else it was laid out anew. None without a weight.
    """

    kind: str
    node: str
    was: str
    becomes: str
    kernel: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int
    reads: str
    layout: str
    weight: str
    same_bytes: bool | None


@dataclass(frozen=True)
class Difference:
    """Nodes of the main graph by operator, and names of its initializers.

    Attributes:
        kept: nodes that are untouched.
        changed: nodes that kept their operator and their place, with other inputs or attributes.
        removed, added: nodes of the original only, and of the result only.
        reshaped: initializers with other dims and the same bytes.
        rewritten: initializers with other values or another order of them.
        removed_initializers, added_initializers: what it says.
    """

    kept: dict[str, int]
    changed: dict[str, int]
    removed: dict[str, int]
    added: dict[str, int]
    reshaped: tuple[str, ...]
    rewritten: tuple[str, ...]
    removed_initializers: tuple[str, ...]
    added_initializers: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """An image size, in pixels, and the grid of answers for it."""

    size: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass
class Report:
    """The result of a conversion, or of an inspection.

    Attributes:
        source: the path of the model; empty for one in memory.
        source_bytes: its size with its external data.
        image: the input that is the image.
        axes: its axes, such as ``NCHW``.
        window: the native size, in pixels: what one answer sees.
        outputs: the answers.
        cut: the last feature map that all answers are computed from; None where the whole network slides.
        layers: what became convolutions and poolings, in the order of the graph.
        context: nodes that see the whole image, whatever its size, and their operators.
        caveats: what to know about the answers, in sentences.
        example: a larger image and its grid of answers; None where the network was fully convolutional already.
        difference: what changed in the graph.
        validation: the comparison with the original; None when it was skipped.
        output: the path of the result; None when nothing was written.
        output_bytes: its size with its external data.
        data: the path of the result's data file; None when its weights are in the model file.
        seconds: how long each stage took.
        geometry: where the answers are: their windows, receptive fields, counts and exactness.
        fields: the receptive field of every tensor on a map along each axis of the image, by its original name.
    """

    source: str
    source_bytes: int
    image: Tensor
    axes: str
    window: tuple[int, ...]
    outputs: tuple[Tensor, ...]
    cut: Map | None
    layers: tuple[Layer, ...]
    context: tuple[tuple[str, str], ...]
    caveats: tuple[str, ...]
    example: Example | None
    difference: Difference
    validation: Validation | None = None
    output: str | None = None
    output_bytes: int = 0
    data: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    geometry: Geometry = field(default_factory=lambda: Geometry((), {}))
    fields: dict[str, tuple[Field, ...]] = field(default_factory=dict)

    def field(self, tensor: str) -> tuple[Field, ...]:
        """The receptive field of a tensor of the original, along each axis of the image.

        Raises:
            OptionError: no map of the network has that name.
        """
        if tensor not in self.fields:
            near = difflib.get_close_matches(tensor, self.fields, 3)
            hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise OptionError(f"there is no tensor '{tensor}' that depends on the position in the image{hint}")
        return self.fields[tensor]

    @property
    def stride(self) -> tuple[float, ...]:
        """Pixels between neighbouring answers of the first output, along each axis of the image."""
        return self.outputs[0].stride

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it.

        ``version`` is that of this format, ``generator`` that of the package. All other keys are the attributes of
        this class, and below them those of `Tensor`, `Map`, `Layer`, `Example`, `Difference`, `Validation` and
        `Check`; ``validation.passed`` is added. ``geometry`` has, by output name, what docs/geometry.md says of the
        metadata, and ``fields`` size, stride and padding by tensor. Sizes are lists, the slowest axis first; symbolic
        dims are strings; an error that is no number, and a field that is the whole image, are null.
        """
        values = asdict(self)
        validation = None if self.validation is None else validation_dict(self.validation)
        values |= {"context": [{"node": node, "op": op} for node, op in self.context], "validation": validation}
        values["geometry"] = {name: written(answers) for name, answers in self.geometry.outputs.items()}
        values["fields"] = {name: [_field_dict(f) for f in fields] for name, fields in self.fields.items()}
        return {"version": FORMAT, "generator": f"onnx_fcn {__version__}", **values}

    def __str__(self) -> str:
        return plain(self.tables())

    def tables(self, *, verbose: bool = False) -> list[Table]:
        """What people read; `verbose` adds every single check, and what became of the initializers."""
        return list(_tables(self, verbose))


def _field_dict(value: Field) -> dict[str, Any]:
    """A field as JSON has it: without size and padding where it is the whole image."""
    local = value.is_local
    return {"size": value.size if local else None, "stride": value.stride, "padding": value.padding if local else None}


def validation_dict(validation: Validation) -> dict[str, Any]:
    """A validation as JSON has it: `passed`, and the attributes of its `Check`s."""
    checks = [asdict(c) | {"error": c.error if math.isfinite(c.error) else None} for c in validation.checks]
    return {"passed": validation.passed, "checks": checks}


# From the walk to the report ------------------------------------------------------------------------------------------


def describe(original: Document, document: Document, state: Walk, *, source: str = "") -> Report:
    """What a finished walk found, and what its edit changed.

    Args:
        original: the model as it was opened.
        document: the same after the edit.
        state: the walk.
        source: the model's path, as the user wrote it.
    """
    image = state.image
    before, after = original.proto.graph, document.proto.graph
    seats = [*state.seats, *state.epilogue]
    layers = tuple(_layers(original, document, state, seats))
    context = tuple(dict.fromkeys((s.name, s.node.op) for s in seats if any(c.kind == "context" for c in s.changes)))
    cut = find_cut(state)
    done = not state.has_head
    return Report(
        source=source,
        source_bytes=original.size,
        image=Tensor(image.name, _dims(before.input, image.name), _dims(after.input, image.name)),
        axes=_axes(image),
        window=image.size,
        outputs=tuple(
            Tensor(name, _dims(before.output, name), _dims(after.output, name), _stride(state.results.get(name)))
            for name in state.outputs
        ),
        cut=None if cut is None or done else Map(cut.name, cut.fact.width, cut.fact.window, _stride(cut.fact)),
        layers=layers,
        context=context,
        caveats=tuple(_caveats(state, seats, context)),
        example=None if done else _example(state),
        difference=_difference(original, document),
        geometry=geometry_of(state),
        fields=fields_of(state),
    )


def _axes(image: Image) -> str:
    names = dict(zip(image.space, LETTERS[len(image.space)])) | {image.batch: "N", image.channels: "C"}
    return "".join(names[k] for k in range(len(image.shape)))


def _dims(declared: Iterable[ValueInfoProto], name: str) -> tuple[Dim, ...] | None:
    """The declared shape of a tensor."""
    value = next(v for v in declared if v.name == name)
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in value.type.tensor_type.shape.dim
    )


def _number(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)


def _stride(fact: Lifted | None) -> tuple[float, ...]:
    return () if fact is None else tuple(_number(a.stride) for a in sliding(fact))


def _example(state: Walk) -> Example | None:
    """An image that is larger by whole strides, so that the number of windows on it is exact however layers round."""
    first = next((state.results[o] for o in state.outputs if o in state.results), None)
    if first is None:
        return None
    size, answers = list(state.image.size), []
    for axis in sliding(first):
        assert axis.image is not None
        native, step = size[axis.image], math.ceil(axis.stride)
        size[axis.image] = native + (EXAMPLE - 1) * step
        answers.append((size[axis.image] - native) // axis.stride + 1)
    return Example(tuple(size), tuple(answers))


def _caveats(state: Walk, seats: Sequence[Seat], context: Sequence[tuple[str, str]]) -> Iterator[str]:
    if not state.has_head:
        yield (
            "The network was fully convolutional already: it has no dense layer, and nothing in it covers its whole "
            "window; only the sizes of its input and outputs became dynamic."
        )
    padding = [s for s in seats if s.slides is not None and s.slides.pads]
    if padding and state.has_head:
        others = f" and {len(padding) - 1} more" if len(padding) > 1 else ""
        yield (
            f"'{padding[0].name}'{others} pad{'' if others else 's'}: around a crop there are zeros where the larger "
            "image goes on, so answers for crops differ from those on the map, which see their real surroundings."
        )
    same = [s.name for s in seats if s.slides is not None and str(s.node.attrs.get("auto_pad", "")).startswith("SAME")]
    if same:
        others = f" and {len(same) - 1} more" if len(same) > 1 else ""
        yield (
            f"'{same[0]}'{others} pad{'' if others else 's'} as auto_pad says, which depends on the size of the image: "
            f"the padding is that of {_pixels(state.image.size)}."
        )
    yield from meetings(state)
    for node, op in context:
        yield f"'{node}' ({op}) sees the whole image: every answer depends on all of it, not on its window alone."


def _layers(original: Document, document: Document, state: Walk, seats: Sequence[Seat]) -> Iterator[Layer]:
    kernels = _Kernels(original, document)
    for seat in seats:
        for change in seat.changes:
            if change.kind == "context":
                continue
            emission = kernels.emission_of(change, seat)
            kernel = kernels.of(emission)
            fact = state.facts.get(change.reads)
            reads = state.renamed.get(fact.map, fact.map) if isinstance(fact, Lifted) else change.reads
            yield Layer(
                kind=change.kind,
                node=seat.name,
                was=seat.node.op,
                becomes=str(emission.node.op) if emission is not None else _operators(seat.emissions),
                kernel=change.kernel,
                inputs=change.inputs,
                outputs=change.outputs,
                groups=change.groups,
                reads=reads,
                layout=change.layout,
                weight=change.weight,
                same_bytes=kernels.is_original(kernel) if change.weight and kernel is not None else None,
            )


def _operators(emissions: Iterable[Emission]) -> str:
    return " + ".join(str(e.node.op) for e in emissions)


class _Kernels:
    """The kernels of the result, and whether they are stored as they were."""

    def __init__(self, original: Document, document: Document) -> None:
        self._document = document
        self._producers = {name: node for node in document.proto.graph.node for name in node.output if name}
        self._tensors = {t.name: t for t in document.proto.graph.initializer}
        self._stored = {_payload(original, t) for t in _stored_tensors(original.proto.graph)}

    def emission_of(self, change: Change, seat: Seat) -> Emission | None:
        """The node that does what a change says."""
        found = [e for e in seat.emissions if tuple(e.node.attrs.get("kernel_shape", ())) == change.kernel]
        if change.kind == "dense":
            dims = (change.outputs, change.inputs, *change.kernel)
            found = [e for e in found if (k := self.of(e)) is not None and tuple(k.dims) == dims]
        return found[-1] if found else None

    def of(self, emission: Emission | None) -> TensorProto | None:
        """The initializer that holds the kernel of a Conv, behind a DequantizeLinear or a Cast."""
        node = None if emission is None else self._producers.get(emission.node.outputs[0].name)
        place = 3 if node is not None and node.op_type == "QLinearConv" else 1
        name = node.input[place] if node is not None and len(node.input) > place else ""
        while name and name not in self._tensors:
            node = self._producers.get(name)
            name = node.input[0] if node is not None and node.input else ""
        return self._tensors.get(name)

    def is_original(self, kernel: TensorProto) -> bool:
        """Does the original hold these bytes, in this order?"""
        return _payload(self._document, kernel) in self._stored


def _stored_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (a.t for a in node.attribute if a.HasField("t"))


def _payload(document: Document, tensor: TensorProto) -> object:
    """What two tensors of the same bytes share: large ones are references to a place in a file."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return frozenset((e.key, e.value) for e in tensor.external_data if e.key in ("location", "offset"))
    return document.array(tensor).tobytes()


def _difference(original: Document, document: Document) -> Difference:
    before = {n.SerializeToString(): n for n in original.proto.graph.node}
    after = {n.SerializeToString(): n for n in document.proto.graph.node}
    gone = {_place(n) for key, n in before.items() if key not in after}
    come = {_place(n) for key, n in after.items() if key not in before}
    had = {t.name: t for t in original.proto.graph.initializer}
    has = {t.name: t for t in document.proto.graph.initializer}
    same = {n for n in had.keys() & has.keys() if _payload(original, had[n]) == _payload(document, has[n])}
    return Difference(
        kept=_count(n.op_type for key, n in after.items() if key in before),
        changed=_count(op for op, _ in gone & come),
        removed=_count(op for op, _ in gone - come),
        added=_count(op for op, _ in come - gone),
        reshaped=tuple(n for n in has if n in same and list(has[n].dims) != list(had[n].dims)),
        rewritten=tuple(n for n in has if n in had and n not in same),
        removed_initializers=tuple(n for n in had if n not in has),
        added_initializers=tuple(n for n in has if n not in had),
    )


def _place(node: NodeProto) -> tuple[str, str]:
    """What a node keeps when a rule varies it: its operator and its first output."""
    return node.op_type, next(filter(None, node.output), node.name)


def _count(operators: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(operators).items()))


# What people read -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; columns without a heading are labels and what they say."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plain(tables: Iterable[Table]) -> str:
    """Tables as aligned text."""
    return "\n\n".join("\n".join(_lines(table)) for table in tables)


def _lines(table: Table) -> Iterator[str]:
    if table.title:
        yield table.title
    rows = [table.columns, *table.rows] if table.columns else list(table.rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    indent = "  " if table.title else ""
    for row in rows:
        if len(row) == 1:  # a sentence
            yield from textwrap.wrap(row[0], WIDTH, initial_indent=indent, subsequent_indent=indent)
        else:
            yield (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip()


def _tables(report: Report, verbose: bool) -> Iterator[Table]:
    yield Table("", (), tuple(_overview(report)))
    if report.layers:
        columns = ("node", "was", "becomes", "reads", "weight")
        yield Table("What answers at every position", columns, tuple(map(_layer_row, report.layers)))
    yield Table("What changed", (), tuple(_difference_rows(report.difference, verbose)))
    if report.caveats:
        yield Table("What to know", (), tuple((c,) for c in report.caveats))
    if report.validation is not None:
        yield from tables_of(report.validation, verbose=verbose)


def _overview(report: Report) -> Iterator[tuple[str, str]]:
    if report.source:
        yield "model", f"{report.source}, {_bytes(report.source_bytes)}"
    yield "image", f"{_change(report.image)}, {report.axes}"
    for output in report.outputs:
        yield "answers", _change(output)
    yield "window", _pixels(report.window)
    for output in report.outputs:
        if output.stride and (output is report.outputs[0] or output.stride != report.stride):
            of = "" if output is report.outputs[0] else f" of '{output.name}'"
            yield "stride", f"{_pixels(output.stride, square=True)} between answers{of}"
    yield from _where(report.geometry)
    if report.example is not None:
        yield "example", f"{_pixels(report.example.size)} → {_times(report.example.answers)} answers"
    if report.cut is not None:
        cells = _times((report.cut.channels, *report.cut.window))
        yield "cut", f"'{report.cut.name}', {cells}, {_pixels(report.cut.stride, square=True)} a cell"
    if report.output is not None:
        data = f", with its weights in {report.data}" if report.data else ""
        doubt = ", not compared with the original" if report.validation is None else ""
        yield "written", f"{report.output}, {_bytes(report.output_bytes)}{data}{doubt}"
    if report.seconds:
        parts = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
        yield "time", f"{sum(report.seconds.values()):.2f} s ({parts})"


def _where(geometry: Geometry) -> Iterator[tuple[str, str]]:
    """What an answer sees, and whether it is what the original says to a crop; once for outputs that are alike."""
    told: set[tuple[str, str]] = set()
    for name, answers in geometry.outputs.items():
        of = f" of '{name}'" if told else ""
        starts = list(dict.fromkeys(f"{float(f.start):g}" for f in answers.field))
        start = f", from {'×'.join(starts)} on"
        whole = not all(f.is_local for f in answers.field)
        seen = "the whole image" if whole else f"{_pixels([float(f.size) for f in answers.field])}{start}"
        verdict = f"{'yes' if answers.exactness == 'exact' else f'no, {answers.exactness}'}: {answers.reason}"
        if (seen, verdict) not in told:
            yield "field", seen + of
            yield "exact", verdict + of
            told.add((seen, verdict))


def _change(tensor: Tensor) -> str:
    before, after = _shape(tensor.before), _shape(tensor.after)
    return f"'{tensor.name}' {before}" + (f" → {after}" if after != before else "")


def _shape(dims: Sequence[Dim] | None) -> str:
    return "of unknown shape" if dims is None else f"({', '.join('?' if d is None else str(d) for d in dims)})"


def _pixels(sizes: Sequence[float], *, square: bool = False) -> str:
    """A size in pixels; one number for a square where that is understood."""
    if square and len(set(sizes)) == 1:
        sizes = sizes[:1]
    return f"{_times(sizes)} {'pixel' if tuple(sizes) == (1,) else 'pixels'}"


def _times(sizes: Sequence[float]) -> str:
    return "×".join(f"{s:g}" if s != int(s) else str(int(s)) for s in sizes)


def _bytes(count: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _layer_row(layer: Layer) -> tuple[str, ...]:
    single = layer.kernel and " + " not in layer.becomes
    becomes = f"{layer.becomes} {_times(layer.kernel)}" if single else layer.becomes
    if layer.inputs and layer.outputs:
        becomes += f", {layer.inputs * layer.groups} → {layer.outputs}"
    if layer.groups > 1 and layer.kind == "dense":
        becomes += f", {layer.groups} groups"
    whole = any(k > 1 for k in layer.kernel)
    size = (layer.inputs * layer.groups,) if layer.inputs else ()
    reads = f"{_times((*size, *(layer.kernel if whole else ())))} of '{layer.reads}'"
    reads += f" as {layer.layout}" if whole else ""
    stored = {True: ", same bytes", False: ", laid out anew", None: ""}[layer.same_bytes]
    return layer.node, layer.was, becomes, reads, f"'{layer.weight}'{stored}" if layer.weight else "–"


def _difference_rows(difference: Difference, verbose: bool) -> Iterator[tuple[str, str]]:
    for verb in ("kept", "changed", "removed", "added"):
        counts: dict[str, int] = getattr(difference, verb)
        if counts:
            listed = verb != "kept" or verbose
            named = ", ".join(f"{n} {op}" for op, n in counts.items())
            yield f"nodes {verb}", named if listed else str(sum(counts.values()))
    weights = {
        "reshaped": difference.reshaped,
        "laid out anew": difference.rewritten,
        "removed": difference.removed_initializers,
        "added": difference.added_initializers,
    }
    for verb, names in weights.items():
        if names:
            yield f"weights {verb}", ", ".join(map(repr, names)) if verbose or len(names) <= 4 else str(len(names))


#: What each kind of check compares.
QUESTIONS = {
    "native": "the original at its native size",
    "law": "the original head on its window of the feature map",
    "crops": "the original on the crop of its window",
    "phases": "the original's feature map of the shifted image",
}


def tables_of(validation: Validation, *, verbose: bool = False) -> Iterator[Table]:
    """A validation: the worst of each kind of check, or every one of them."""
    title = "Validation: it is the same network" if validation.passed else "Validation: it is NOT the same network"
    rows = []
    for kind, question in QUESTIONS.items():
        checks = [c for c in validation.checks if c.kind == kind]
        if not checks:
            continue
        if verbose:
            for c in checks:
                subject = f"{kind}: '{c.subject}', batch {c.batch}" + (f", {c.note}" if c.note else "")
                rows.append((subject, _times(c.size), f"{c.error:.1e}", _verdict(c.tolerance, c.passed)))
            continue
        worst = max(checks, key=lambda c: -math.inf if math.isnan(c.error) else c.error)
        count = f"{worst.compared} window{'' if worst.compared == 1 else 's'}"
        what = f"{question}, {count}" if kind in ("law", "crops") else question
        rows.append((what, _times(worst.size), f"{worst.error:.1e}", _verdict(worst.tolerance, worst.passed)))
    yield Table(title, ("check" if verbose else "each cell, compared with", "image", "largest error", ""), tuple(rows))


def _verdict(tolerance: float | None, passed: bool) -> str:
    if tolerance is None:
        return "for information"
    return f"{'within' if passed else 'EXCEEDS'} {tolerance:.0e}"
