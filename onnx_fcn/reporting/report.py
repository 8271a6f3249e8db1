"""The report on what was found, done and measured: a plain value, its texts, and its JSON.

A `Report` contains only numbers, names and sentences, no facts or protos, so it can be compared, pickled and kept. Its
texts are made from one list of `Table`s: `Report.text` aligns them as plain text, and the command line draws them on a
terminal. The short text fits on one screen and contains every caveat, so it hides nothing that changes the meaning of
the answers. The verbose text has every layer, change, cost and check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx_fcn.checking.checks import Validation
from onnx_fcn.errors import OptionError, did_you_mean
from onnx_fcn.geometry import KEEP_SIZE, Answers, Field, Geometry
from onnx_fcn.model.metadata import to_json
from onnx_fcn.model.version import __version__
from onnx_fcn.reporting.checks import tables_of, validation_dict
from onnx_fcn.reporting.cost import ImageCost, NativeCost
from onnx_fcn.reporting.values import Difference, Dim, Example, Layer, Map, Tensor
from onnx_fcn.tables import Table, bytes_of, count_of, pixels, plain, size_text

__all__ = ["FORMAT", "Report", "context_caveat"]


#: Version of the format of `Report.to_dict` (docs/report.md). It is increased if a key is renamed, removed or changes
#: its meaning.
FORMAT = 1

#: The number of layers of the head that the diagram names.
SHOWN = 6

#: The number of layers, and of outputs, that the short text names.
BRIEF = 4


@dataclass
class Report:
    """The result of a conversion, or of an inspection.

    Attributes:
        source: the path of the model; empty for one in memory.
        source_bytes: its size with its external data.
        image: the input that is the image.
        axes: its axes, such as ``NCHW``.
        window: the native size, in pixels: the window of one answer.
        outputs: the answers.
        cut: the last feature map that all answers are computed from; None if the whole network slides.
        layers: the nodes that became convolutions and poolings, in the order of the graph.
        context: nodes that see the whole image at any size, and their operators.
        caveats: sentences to read before relying on the answers.
        example: a larger image and its grid of answers; None if the network was fully convolutional already.
        native: the cost of the original at its native size.
        costs: the cost of the converted network at the native and at larger sizes.
        difference: what changed in the graph.
        validation: the comparison with the original; None if it was skipped.
        output: the path of the result; None if nothing was written.
        output_bytes: its size with its external data.
        data: the path of the result's data file; None if its weights are in the model file.
        seconds: the duration of each stage.
        geometry: where the answers are: their windows, receptive fields, counts and exactness.
        fields: the receptive field of every tensor on a map along each axis of the image, by its original name.
        sizes: the requested image sizes, in pixels; the JSON has them among the costs.
        classes: the names of the classes that the exporter stored in the model, if they fit the first output.
        slides: whether the network slides over larger images. If not, there is no grid of answers, and dense layers
            became convolutions where they stood.
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
    native: NativeCost
    costs: tuple[ImageCost, ...]
    difference: Difference
    validation: Validation | None = None
    output: str | None = None
    output_bytes: int = 0
    data: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    geometry: Geometry = field(default_factory=lambda: Geometry((), {}))
    fields: dict[str, tuple[Field, ...]] = field(default_factory=dict)
    sizes: tuple[tuple[int, ...], ...] = ()
    slides: bool = True
    classes: tuple[str, ...] = ()

    def field(self, tensor: str) -> tuple[Field, ...]:
        """The receptive field of a tensor of the original, along each axis of the image.

        Raises:
            OptionError: if no map of the network has that name.
        """
        if tensor not in self.fields:
            hint = did_you_mean(tensor, self.fields)
            raise OptionError(f"the model has no tensor '{tensor}' that depends on the position in the image{hint}")
        return self.fields[tensor]

    @property
    def stride(self) -> tuple[float, ...]:
        """Pixels between neighbouring answers of the first output, along each axis of the image."""
        return self.outputs[0].stride

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object, described in docs/report.md; its ``version`` is `FORMAT`."""
        values = asdict(self)
        del values["sizes"]
        validation = None if self.validation is None else validation_dict(self.validation)
        values |= {"context": [{"node": node, "op": op} for node, op in self.context], "validation": validation}
        values["costs"] = [asdict(cost) | {"ratio": cost.ratio} for cost in self.costs]
        values["geometry"] = {name: to_json(answers) for name, answers in self.geometry.outputs.items()}
        values["fields"] = {name: [_field_dict(f) for f in fields] for name, fields in self.fields.items()}
        return {"version": FORMAT, "generator": f"onnx_fcn {__version__}", **values}

    def __str__(self) -> str:
        return self.text()

    def text(self, *, verbose: bool = False) -> str:
        """The report as plain text, as the command prints it.

        Args:
            verbose: include every layer, change, cost and check; otherwise the text fits on one screen and equals
                `str(report)`.
        """
        return plain(self.tables(verbose=verbose))

    def tables(self, *, verbose: bool = False) -> list[Table]:
        """The tables that `text` aligns."""
        return list(_verbose(self) if verbose else _brief(self))


def _field_dict(value: Field) -> dict[str, Any]:
    """A field as a JSON object; size and padding are None if it is the whole image."""
    local = value.is_local
    return {"size": value.size if local else None, "stride": value.stride, "padding": value.padding if local else None}


def _brief(report: Report) -> Iterator[Table]:
    """The tables of the short text, which fits on one screen and contains every caveat."""
    yield Table("", (), tuple(_summary(report)))
    if report.validation is not None:
        yield from tables_of(report.validation)
    if report.output is not None:
        yield Table("", (), (("written", _written(report)),))


def _summary(report: Report) -> Iterator[tuple[str, str]]:
    """The rows on the model, the meaning of the answers, the layers, the cost, and every caveat."""
    yield from _model(report)
    yield from _first_rows(list(_answers(report)))
    yield from _classes(report)
    yield from _form(report)
    strides = list(_strides(report))
    if report.slides:
        yield "window", ", ".join([pixels(report.window), *strides[:1]])
    yield from (("stride", words) for words in strides[1:])
    yield from _exactness(report.geometry)
    if report.example is not None:
        native = [f"{pixels(c.size)} → {_answers_on(c.answers)}" for c in report.costs[:1]]
        yield "example", "; ".join([*native, _example(report.example, report.geometry)])
    yield from _label_once(_first_rows(list(_layers(report))))
    yield from _label_once(("cost", words) for words in _work(report))
    yield from (("caveat", words) for words in _caveats(report))


def _layers(report: Report) -> Iterator[tuple[str, str]]:
    """What each layer became; if there are many, the dense layers come first."""
    layers = list(report.layers)
    if len(layers) > BRIEF:
        layers.sort(key=lambda layer: layer.kind != "dense")
    names = [f"{layer.was} '{layer.node}'" for layer in layers]
    width = max(map(len, names[:BRIEF]), default=0)
    for name, layer in zip(names, layers):
        yield "layers", f"{name.ljust(width)}  becomes {_replacement(layer)}"


def _first_rows(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The first rows, and the number of the others."""
    yield from rows[:BRIEF]
    if len(rows) > BRIEF:
        yield "", f"and {len(rows) - BRIEF} more, which the verbose report lists"


def _label_once(rows: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The rows with a label on the first one only."""
    for k, (label, words) in enumerate(rows):
        yield "" if k else label, words


def _work(report: Report) -> Iterator[str]:
    """The cost of one window, and of the requested image sizes or, without any, the largest one."""
    batch = "" if report.native.batch == 1 else f" in a batch of {report.native.batch}"
    shown = [c for c in report.costs if c.size in report.sizes] if report.sizes else report.costs[1:][-1:]
    larger = []
    for cost in shown:
        crops = "" if cost.ratio is None else f", {_macs(cost.crops)} as crops"
        larger.append(f"{size_text(cost.size)}: {_macs(cost.macs)} for {_answers_on(cost.answers)}{crops}")
    yield "; ".join([f"{_macs(report.native.macs)} MACs {_per_unit(report)}{batch}", *larger[:1]])
    yield from larger[1:]


def _per_unit(report: Report) -> str:
    """What the cost of the original is for, as the end of a phrase."""
    return "a window" if report.slides else "an image"


def _caveats(report: Report) -> Iterator[str]:
    """All caveats; nodes that see the whole image share one."""
    context = [context_caveat([node]) for node in report.context]
    merged = False
    for caveat in report.caveats:
        if caveat not in context:
            yield caveat
        elif not merged:
            merged = True
            yield context_caveat(report.context)


def context_caveat(nodes: Sequence[tuple[str, str]]) -> str:
    """The caveat on nodes, given by name and operator, that see the whole image."""
    name, op = nodes[0]
    sees = f"and {len(nodes) - 1} more see" if len(nodes) > 1 else "sees"
    return f"'{name}' ({op}) {sees} the whole image: every answer depends on all of it, not only on its window."


def _verbose(report: Report) -> Iterator[Table]:
    yield Table("", (), tuple(_overview(report)))
    yield Table("From an image to its answers", (), tuple(_diagram(report)))
    if report.layers:
        columns = ("node", "was", "becomes", "reads", "weight")
        title = "What answers at every position" if report.slides else "What became convolutions"
        yield Table(title, columns, tuple(map(_layer_row, report.layers)))
    yield Table("What changed", (), tuple(_difference_rows(report.difference)))
    headings = ("image", "answers", "MACs", "as crops", "ratio", "activations")
    if report.costs:
        yield Table("What a larger image costs", headings, tuple(map(_cost_row, report.costs)))
    if report.caveats:
        yield Table("What to know", (), tuple((c,) for c in report.caveats))
    if report.validation is not None:
        yield from tables_of(report.validation, verbose=True)


def _overview(report: Report) -> Iterator[tuple[str, str]]:
    yield from _model(report)
    yield from _answers(report)
    yield from _classes(report)
    yield from _form(report)
    if report.slides:
        yield "window", pixels(report.window)
    yield from (("stride", words) for words in _strides(report))
    yield from _fields(report.geometry)
    if report.example is not None:
        yield "example", _example(report.example, report.geometry)
    yield "cost", _native(report.native, _per_unit(report))
    if report.output is not None:
        yield "written", _written(report)
    if report.seconds:
        parts = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items())
        yield "time", f"{sum(report.seconds.values()):.2f} s ({parts})"


def _model(report: Report) -> Iterator[tuple[str, str]]:
    """The rows on the model file and its image."""
    if report.source:
        yield "model", f"{report.source}, {bytes_of(report.source_bytes)}"
    yield "image", ", ".join(filter(None, (_change(report.image), report.axes)))


def _answers(report: Report) -> Iterator[tuple[str, str]]:
    for output in report.outputs:
        yield "answers", _change(output)


def _classes(report: Report) -> Iterator[tuple[str, str]]:
    """The row on the names of the classes, if the exporter stored them."""
    names = report.classes
    if names:
        shown = ", ".join(map(repr, names[:BRIEF])) + (", …" if len(names) > BRIEF else "")
        yield "classes", f"{len(names)}, named in the model: {shown}"


def _form(report: Report) -> Iterator[tuple[str, str]]:
    """The row on the form of the answers, if it is not a map."""
    form = (report.geometry.of().form if report.geometry.outputs else "map") if report.slides else KEEP_SIZE
    if form != "map":
        yield "form", f"{form}: {_FORM_WORDS[form.split()[0]]}"


def _strides(report: Report) -> Iterator[str]:
    """Pixels between the answers of the first output, and of each output that differs from it."""
    for output in report.outputs:
        if output.stride and (output is report.outputs[0] or output.stride != report.stride):
            of = "" if output is report.outputs[0] else f" of '{output.name}'"
            yield f"{pixels(output.stride, square=True)} between answers{of}"


def _example(example: Example, geometry: Geometry) -> str:
    """A larger image and its answers, with the number that no padding reaches if the network is padded."""
    padded = geometry.of().exactness == "padded"
    free = f", {example.interior or 'none'} of them free of padding" if padded else ""
    return f"{pixels(example.size)} → {_answers_on(example.answers)}{free}"


def _answers_on(grid: Sequence[int]) -> str:
    return "1 answer" if math.prod(grid) == 1 else f"{size_text(grid)} answers"


def _written(report: Report) -> str:
    data = f", with its weights in {report.data}" if report.data else ""
    doubt = ", not compared with the original" if report.validation is None else ""
    return f"{report.output}, {bytes_of(report.output_bytes)}{data}{doubt}"


#: The meaning of a form, by its first word.
_FORM_WORDS = {
    "mean": "of the map of answers, for an image of any size",
    "max": "of the map of answers, for an image of any size",
    "cam": "the answer of each cell; the mean, or the maximum, over a window is its score",
    "full-size": "each answer in the middle of its window, linear in between",
    "argmax": "the best class of each answer",
    KEEP_SIZE: "all shapes unchanged, with convolutions for dense layers",
}


def _native(cost: NativeCost, unit: str) -> str:
    """The cost of one window, or image, in the original."""
    macs, activations = _macs(cost.macs), _activations(cost.activations)
    images = "" if cost.batch == 1 else f", in a batch of {cost.batch}"
    return f"{macs} multiply-accumulates (MACs) {unit}, {activations} of activations{images}"


def _macs(count: int | None) -> str:
    return "unknown" if count is None else count_of(count)


def _activations(count: int | None) -> str:
    return "unknown" if count is None else bytes_of(count)


def _cost_row(cost: ImageCost) -> tuple[str, ...]:
    crops, ratio = ("–", "–") if cost.ratio is None else (_macs(cost.crops), f"{cost.ratio:.1f}×")
    return size_text(cost.size), size_text(cost.answers), _macs(cost.macs), crops, ratio, _activations(cost.activations)


def _diagram(report: Report) -> Iterator[tuple[str, str]]:
    """The trunk, the cut and the head, top to bottom, with an arrow for each part."""
    before = report.image.before or ()
    channels = [d for d, axis in zip(before, report.axes) if axis == "C" and isinstance(d, int)]
    yield "image", f"'{report.image.name}', {size_text([*channels, *report.window]) or _shape(before)}"
    trunk, head = report.native.trunk, report.native.head
    if report.cut is None:
        yield "  ↓", f"{_nodes(trunk.nodes + head.nodes)}, {_macs(report.native.macs)} MACs"
    else:
        yield "  ↓", f"trunk: {_nodes(trunk.nodes)}, {_macs(trunk.macs)} MACs"
        cells = size_text((report.cut.channels, *report.cut.window))
        yield "cut", f"'{report.cut.name}', {cells}, a cell every {pixels(report.cut.stride, square=True)}"
        yield "  ↓", f"head: {_nodes(head.nodes)}, {_macs(head.macs)} MACs a window"
    for layer in report.layers[:SHOWN]:
        yield "  ↓", f"  {_replacement(layer)}"
    if len(report.layers) > SHOWN:
        yield "  ↓", f"  and {len(report.layers) - SHOWN} more, listed below"
    for output in report.outputs:
        yield "answers", f"'{output.name}'{_answer(report, output)}"


def _answer(report: Report, output: Tensor) -> str:
    """The numbers of an output, and the distance between its answers."""
    answers = report.geometry.outputs.get(output.name)
    if answers is None or output.after is None:
        return ""
    every = f"every {pixels(output.stride, square=True)}"
    if answers.form not in ("map", "cam"):
        return f", {answers.form}" if answers.form == KEEP_SIZE else f", {answers.form} of a map of answers {every}"
    width = output.after[1] if len(output.after) > 1 else None
    return f", {width} numbers {every}" if isinstance(width, int) else f", {every}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _fields(geometry: Geometry) -> Iterator[tuple[str, str]]:
    """The field of an answer, and whether it equals the original's on a crop; once for outputs with equal rows."""
    seen_before: set[tuple[str, str]] = set()
    for name, answers in geometry.outputs.items():
        of = f" of '{name}'" if seen_before else ""
        starts = list(dict.fromkeys(f"{float(f.start):g}" for f in answers.field))
        start = f", from {'×'.join(starts)} on"
        whole = not all(f.is_local for f in answers.field)
        seen = "the whole image" if whole else f"{pixels([float(f.size) for f in answers.field])}{start}"
        verdict = _verdict_on_crops(answers)
        if (seen, verdict) not in seen_before:
            yield "field", seen + of
            yield "exact", verdict + of
            seen_before.add((seen, verdict))


def _exactness(geometry: Geometry) -> Iterator[tuple[str, str]]:
    """Whether an answer equals the original's on a crop; once for outputs with equal rows."""
    first: dict[str, str] = {}
    for name, answers in geometry.outputs.items():
        first.setdefault(_verdict_on_crops(answers), name)
    for k, (verdict, name) in enumerate(first.items()):
        yield "exact", verdict + (f" of '{name}'" if k else "")


def _verdict_on_crops(answers: Answers) -> str:
    return f"{'yes' if answers.exactness == 'exact' else f'no, {answers.exactness}'}: {answers.reason}"


def _change(tensor: Tensor) -> str:
    before, after = _shape(tensor.before), _shape(tensor.after)
    return f"'{tensor.name}' {before}" + (f" → {after}" if after != before else "")


def _shape(dims: Sequence[Dim] | None) -> str:
    return "of unknown shape" if dims is None else f"({', '.join('?' if d is None else str(d) for d in dims)})"


def _replacement(layer: Layer) -> str:
    """The operator that replaces a layer, its kernel and its channels."""
    single = layer.kernel and " + " not in layer.becomes
    becomes = f"{layer.becomes} {size_text(layer.kernel)}" if single else layer.becomes
    if layer.inputs and layer.outputs:
        becomes += f", {layer.inputs * layer.groups} → {layer.outputs}"
    if layer.groups > 1 and layer.kind == "dense":
        becomes += f", {layer.groups} groups"
    return becomes


def _layer_row(layer: Layer) -> tuple[str, ...]:
    whole = any(k > 1 for k in layer.kernel)
    size = (layer.inputs * layer.groups,) if layer.inputs else ()
    reads = f"{size_text((*size, *(layer.kernel if whole else ())))} of '{layer.reads}'"
    reads += f" as {layer.layout}" if whole else ""
    stored = {True: ", same bytes", False: ", rewritten", None: ""}[layer.same_bytes]
    return layer.node, layer.was, _replacement(layer), reads, f"'{layer.weight}'{stored}" if layer.weight else "–"


def _difference_rows(difference: Difference) -> Iterator[tuple[str, str]]:
    for verb in ("kept", "changed", "removed", "added"):
        counts: dict[str, int] = getattr(difference, verb)
        if counts:
            yield f"nodes {verb}", ", ".join(f"{n} {op}" for op, n in counts.items())
    weights = {
        "reshaped": difference.reshaped,
        "rewritten": difference.rewritten,
        "removed": difference.removed_initializers,
        "added": difference.added_initializers,
    }
    for verb, names in weights.items():
        if names:
            yield f"weights {verb}", ", ".join(map(repr, names))
