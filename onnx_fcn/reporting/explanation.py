"""Explanations of one node or tensor of a model: its place on the map, what it becomes, or why it is refused.

    >>> print(onnx_fcn.explain("model.onnx", "/classifier/Gemm"))

The facts of the walk decide everything, so they answer "why": this module shows them in words. A refused network is
explained as far as the walk reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from onnx_fcn.errors import Diagnostic, OptionError, Unsupported, UnsupportedModel, did_you_mean
from onnx_fcn.geometry import SIZE_NAMES
from onnx_fcn.lifting.facts import Blocked, Fact, Known, Unmapped, Whole
from onnx_fcn.lifting.lifted import Lifted, dim_of
from onnx_fcn.lifting.program import Emission, Slot, Walk
from onnx_fcn.model.collector import rarely_collected
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import names_used
from onnx_fcn.model.objects import Source, as_model
from onnx_fcn.model.version import __version__
from onnx_fcn.reporting.report import FORMAT
from onnx_fcn.tables import Table, pixels, plain, size_text
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.assemble import assemble
from onnx_fcn.walk.cut import Cut, find_cut
from onnx_fcn.walk.fields import sliding
from onnx_fcn.walk.given import Given
from onnx_fcn.walk.images import Request, Size, size_of
from onnx_fcn.walk.lift import answering
from onnx_fcn.walk.regions import on_windows
from onnx_fcn.walk.search import explored

__all__ = ["Explanation", "Operand", "explain"]


#: The number of elements of the largest constant that is shown.
SHOWN = 16

#: The meaning of each `Explanation.part`.
PARTS = {
    "image": "the image: it slides",
    "trunk": "trunk: the cut is computed from it",
    "head": "head: it comes after the cut",
    "network": "a network without a head: everything slides",
    "region": "region: it runs unchanged on every window",
    "context": "context: it sees the whole image, and stays unchanged",
    "beside": "beside the image: it is the same for all positions, so it stays unchanged",
    "constant": "constant: it does not depend on the image",
    "unused": "unused: no output is computed from it",
    "reached": "reached: it was lifted before the network was refused",
    "refused": "refused",
    "blocked": "computed from something that is refused",
}

#: The meaning of each `Operand.fact` except ``map``.
FACTS = {
    "constant": "constant",
    "unmapped": "the same for all positions",
    "whole": "of the whole image",
    "blocked": "computed from something that is refused",
    "unused": "unused",
    "window": "of each window",
}


@dataclass(frozen=True)
class Operand:
    """A tensor of the original, and the fact that the walk found for it.

    Attributes:
        name: its name.
        fact: ``map`` (every window has its own), ``constant``, ``unmapped`` (depends on an input, but not on the
            position), ``whole`` (relates positions of the whole image), ``blocked`` (computed from something
            refused), ``window`` (computed on every window by a region) or ``unused``.
        layout: for a map, or what relates its positions, the axes of the map that each axis of the tensor consists of,
            such as ``n (c256 h6 w6)``.
        map: the name of the map in the converted model; None if it has none.
        channels: the number of channels of the map.
        window: cells of the map that one original tensor covers, along each axis of the image.
        stride: pixels between the cells of the map.
        field: pixels that a cell sees; None if it sees the whole image.
        start: the first pixel that cell 0 sees; None if a cell sees the whole image.
        cells: formulas for the number of cells for an image of any size.
        value: for a constant that is computed from sizes, its value at the native size; N is the batch.
    """

    name: str
    fact: str
    layout: str = ""
    map: str | None = None
    channels: int | None = None
    window: tuple[int, ...] = ()
    stride: tuple[float, ...] = ()
    field: tuple[float | None, ...] = ()
    start: tuple[float | None, ...] = ()
    cells: tuple[str, ...] = ()
    value: str = ""


@dataclass(frozen=True)
class Explanation:
    """The explanation of a node, or of a tensor and the node that produces it.

    Attributes:
        name: the requested name.
        node: the name of the node; empty for an input or an initializer.
        op: its operator; ``input`` or ``initializer`` if there is no node.
        part: ``image``, ``trunk``, ``head``, ``network`` (without a head), ``region`` (runs on every window),
            ``context``, ``beside`` the image, ``constant``, ``unused``, and in a refused network ``refused``,
            ``blocked`` or ``reached``.
        becomes: what replaces the node in the converted model.
        reads: the tensors that the node reads.
        makes: the tensors that the node produces, or only the requested one.
        causes: root causes, if the node or something before it is refused.
    """

    name: str
    node: str
    op: str
    part: str
    becomes: str
    reads: tuple[Operand, ...]
    makes: tuple[Operand, ...]
    causes: tuple[Diagnostic, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The explanation as a JSON object, described in docs/report.md."""
        return {"version": FORMAT, "generator": f"onnx_fcn {__version__}", **asdict(self)}

    def __str__(self) -> str:
        return plain(self.tables())

    def tables(self) -> list[Table]:
        """The tables that the command shows."""
        return [Table("", (), tuple(_rows(self)))]


@rarely_collected()
def explain(
    source: Source,
    name: str,
    *,
    input_size: Size | None = None,
    input: str | None = None,
    output_stride: int | Sequence[int] | None = None,
    windows: bool = False,
    slide: Sequence[str] = (),
    context: Literal["attention"] | None = None,
) -> Explanation:
    """Explain a node or tensor by name, also in a network that is refused.

    Args:
        source: a model, as `convert` takes it.
        name: the name of a node of the main graph, or of a tensor. If both exist, it means the node.
        input_size: the image size that the network was made for, as for `convert`.
        input: the name of the image input, if there are several inputs.
        output_stride: pixels between answers, as for `convert`.
        windows: run what cannot slide on every window, as for `convert`.
        slide: the axes of the image that slide, as for `convert`.
        context: ``"attention"``: attention sees the whole image, as for `convert`.

    Raises:
        ModelError: if the source is not a usable model.
        UnsupportedModel: if no input looks like an image, so that nothing can be explained, or the answers cannot be
            as close as `output_stride`.
        OptionError: if there is no such node or tensor (the message gives the nearest names), or `output_stride` does
            not fit.
    """
    asked = Asked(output_stride=output_stride, windows=windows, context=context or "")
    document = Given.open(as_model(source), asked).selected
    request = Request(input, size_of(input_size), windows=windows, slide=tuple(name.lower() for name in slide))
    walk, causes = explored(document, request)
    if causes and context is not None:
        walk, causes = explored(document, replace(request, attention=True))
    if walk is None:
        raise UnsupportedModel(causes)
    if causes and windows:
        try:
            walk, causes = on_windows(document, request, walk, causes), []
        except UnsupportedModel as refusal:
            causes = list(refusal.diagnostics)
    if not causes:
        walk = answering(document, walk, asked)
        try:
            document.commit(assemble(document, walk))
        except UnsupportedModel as refusal:
            causes = list(refusal.diagnostics)
    return _Explainer(document, walk, causes).of(name)


class _Explainer:
    """Looks up the facts that a walk found."""

    def __init__(self, document: Document, walk: Walk, causes: Sequence[Diagnostic]) -> None:
        self._walk, self._causes = walk, causes
        self._cut: Cut | None = find_cut(walk) if walk.has_head else None
        self._trunk = set() if self._cut is None else walk.upstream(self._cut.name)
        self._made = {name for node in document.proto.graph.node for name in node.output}
        self._made |= {i.name for i in document.proto.graph.input}
        self._nodes = {slot.node.name: k for k, slot in enumerate(walk.slots) if slot.node.name}
        self._graph = document.proto.graph
        nodes = walk.region.nodes if walk.region else ()
        copied = walk.region.copied if walk.region else ()  # these are constants outside, which is asked about
        own = (n for n in nodes if n.output[0] not in copied)
        self._region = {name for n in own for name in (n.name, *n.output) if name}
        refusals = {**walk.diagnostics, **walk.causes}  # found at one node, and attributed to the node at fault
        self._refusals = {self._nodes.get(d.node, self._walk.makers.get(d.node, k)): d for k, d in refusals.items()}

    def of(self, name: str) -> Explanation:
        """The explanation of a node or tensor."""
        if name in self._region:
            return self._in_region(name)
        if name in self._nodes:
            return self._node(name, self._nodes[name])
        if name in self._walk.makers:
            return self._node(name, self._walk.makers[name], only=name)
        if name in self._walk.facts:
            fact = self._walk.facts[name]
            part = "image" if isinstance(fact, Lifted) else "beside" if isinstance(fact, Unmapped) else "constant"
            op = "initializer" if isinstance(fact, Known) else "input"
            return Explanation(name, "", op, part, "stays", (), (self._operand(name),))
        for node in self._graph.node:
            if name and name in (node.name, *node.output):
                makes = tuple(Operand(o, "unused") for o in node.output if o)
                return Explanation(name, node.name, node.op_type, "unused", "stays", (), makes)
        names = [*self._nodes, *self._walk.facts, *self._walk.makers]
        raise OptionError(f"the model has no node or tensor '{name}'{did_you_mean(name, names)}")

    def _node(self, name: str, k: int, *, only: str = "") -> Explanation:
        slot = self._walk.slots[k]
        part = self._part(k)
        causes = tuple(self._root_causes(k)) if part in ("refused", "blocked") else ()
        becomes = "nothing: the network is refused" if self._causes else self._becomes(slot)
        reads = tuple(self._operand(n) for n in dict.fromkeys(slot.node.reads))
        makes = tuple(self._operand(o) for o in slot.node.outputs if o and only in ("", o))
        return Explanation(name, slot.name, str(slot.node.op), part, becomes, reads, makes, causes)

    def _in_region(self, name: str) -> Explanation:
        """The explanation of a node that runs on every window, or of a tensor that it makes."""
        assert self._walk.region is not None, "a name in it was found"
        node = next(n for n in self._walk.region.nodes if name in (n.name, *n.output))
        reads = tuple(self._operand(n) for n in dict.fromkeys(names_used(node)))
        makes = tuple(self._operand(o) for o in node.output if o and name in (node.name, o))
        return Explanation(name, node.name or node.output[0], node.op_type, "region", "stays unchanged", reads, makes)

    def _part(self, k: int) -> str:
        walk, facts = self._walk, self._facts(k)
        if k in self._refusals:
            return "refused"
        if any(isinstance(f, Blocked) for f in facts):
            return "blocked"
        if k in walk.context or any(isinstance(f, Whole) or (isinstance(f, Unmapped) and f.context) for f in facts):
            return "context"
        if all(isinstance(f, Known) for f in facts):
            return "constant"
        if not any(isinstance(f, Lifted) for f in facts):
            return "beside"
        if self._causes:
            return "reached"
        if self._cut is None:
            return "head" if walk.has_head else "network"
        return "trunk" if k in self._trunk else "head"

    def _facts(self, k: int) -> list[Fact]:
        outputs = self._walk.slots[k].node.outputs
        return [self._walk.facts[n] for n in outputs if n in self._walk.facts]

    def _root_causes(self, k: int) -> Iterator[Diagnostic]:
        """The root causes among the nodes that this one is computed from, itself included."""
        wanted: set[str] = set()
        for j in range(k, -1, -1):
            slot = self._walk.slots[j]
            if j == k or any(o in wanted for o in slot.node.outputs):
                if j in self._refusals:
                    yield self._refusals[j]
                wanted |= set(slot.node.reads)

    def _becomes(self, slot: Slot) -> str:
        """What replaces the node in the converted model."""
        if not slot.replaced:
            return "stays unchanged" if any(n in self._made for n in slot.node.outputs) else "nothing: no longer read"
        if not slot.emissions:
            return "no node: it only regroups the axes"
        live = [e for e in slot.emissions if any(o in self._made for o in e.node.outputs)]
        if not live:
            return "nothing: no longer read"
        return " + ".join(_emission_text(e, slot) for e in live)

    def _operand(self, name: str) -> Operand:
        walk = self._walk
        fact = walk.facts.get(name)
        if fact is None:
            return Operand(name, "window" if name in self._region else "unused")
        if isinstance(fact, Known):
            return Operand(name, "constant", value=self._value(fact))
        if isinstance(fact, Whole):
            return Operand(name, "whole", layout=str(fact))
        if not isinstance(fact, Lifted):
            return Operand(name, "blocked" if isinstance(fact, Blocked) else "unmapped")
        axes = sliding(fact)
        fields = [a.field.plain() for a in axes]
        name_of_map = walk.renamed.get(fact.map, fact.map)
        return Operand(
            name,
            "map",
            layout=str(fact),
            map=name_of_map if name_of_map in self._made and not self._causes else None,
            channels=fact.width,
            window=tuple(a.window for a in axes),
            stride=tuple(float(f.stride) for f in fields),
            field=tuple(float(f.size) if f.is_local else None for f in fields),
            start=tuple(float(f.start) if f.is_local else None for f in fields),
            cells=tuple(a.count.formula(SIZE_NAMES[len(walk.image.size)][a.image or 0]) for a in axes),
        )

    def _value(self, fact: Known) -> str:
        """The value of a small constant that is computed from sizes; otherwise empty."""
        if not fact.sized:
            return ""
        try:
            value = self._walk.values[fact.name]
        except Unsupported:
            return ""
        if value.size > SHOWN:
            return ""
        words = [dim_of(int(v)) if v == v // 1 else str(v) for v in value.reshape(-1).tolist()]
        return f"[{', '.join(words)}]" if value.ndim else words[0]


def _emission_text(emission: Emission, slot: Slot) -> str:
    """An operator and its kernel, and whether it is the original node or a variant of it."""
    node = emission.node
    kernel = node.attrs.get("kernel_shape")
    text = f"{node.op} {size_text(kernel)}" if kernel else str(node.op)
    if not emission.varies:
        return text
    changed = {k for k in (*node.attrs, *slot.node.attrs) if node.attrs.get(k) != slot.node.attrs.get(k)}
    return f"{text}, with {', '.join(sorted(changed))} rewritten" if changed else f"{text}, unchanged"


def _rows(it: Explanation) -> Iterator[tuple[str, str]]:
    yield ("node" if it.node else it.op), f"{it.op} '{it.node}'" if it.node else f"'{it.name}'"
    yield "part", PARTS[it.part]
    for cause in it.causes:
        if cause.node == it.node:
            yield "why", f"{cause.reason}{f' ({cause.hint})' if cause.hint else ''}"
        else:
            yield "because", str(cause)
    if it.node:
        yield "becomes", it.becomes
    for operand in it.reads:
        yield "reads", _summary(operand)
    for operand in it.makes:
        yield "makes" if it.node else "is", _summary(operand)
        if operand.fact == "map":
            yield from _map_rows(operand)


def _summary(operand: Operand) -> str:
    if operand.fact != "map":
        more = operand.value or operand.layout
        return f"'{operand.name}', {FACTS[operand.fact]}" + (f" {more}" if more else "")
    return f"'{operand.name}', {operand.layout}"


def _map_rows(operand: Operand) -> Iterator[tuple[str, str]]:
    """The rows on the cells of a map: their number, stride and receptive field."""
    named = f"'{operand.map}', " if operand.map is not None else ""
    window = (
        f", a window of {size_text(operand.window)}" if any(n > 1 for n in operand.window) else ", one cell a window"
    )
    yield "map", f"{named}{operand.channels} channel{'' if operand.channels == 1 else 's'}{window}"
    yield "stride", f"{pixels(operand.stride, square=True)} a cell"
    sizes = [s for s in operand.field if s is not None]
    if len(sizes) < len(operand.field):
        yield "field", "the whole image"
    else:
        starts = dict.fromkeys(f"{s:g}" for s in operand.start if s is not None)
        yield "field", f"{pixels(sizes)}, from {'×'.join(starts)} on"
    yield "cells", ", ".join(operand.cells)
