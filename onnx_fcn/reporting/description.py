"""From a finished walk to its report: what each node became, what changed in the graph, and the caveats."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property

from onnx import GraphProto, TensorProto, ValueInfoProto

from onnx_fcn.geometry import SIZE_NAMES, Geometry
from onnx_fcn.lifting.emitter import POOLINGS
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Change, Emission, Slot, Standing, Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.exported import class_names
from onnx_fcn.model.graphs import dim_name
from onnx_fcn.model.nodes import Node
from onnx_fcn.model.wire import BITS
from onnx_fcn.reporting.cost import Sizes, costs_of
from onnx_fcn.reporting.report import Report, context_caveat
from onnx_fcn.reporting.values import Difference, Dim, Example, Layer, Map, Tensor
from onnx_fcn.tables import bytes_of, pixels
from onnx_fcn.walk.cut import find_cut
from onnx_fcn.walk.fields import fields_of, geometry_of, meetings, sliding
from onnx_fcn.walk.images import along_axes

__all__ = ["classes_of", "describe"]


#: The caveat if everything in a network slides that was to run on windows where it does not.
ALL_SLIDES = "Everything in the network slides, so no windows were cut: --windows changed nothing."

#: The caveat about an output whose closing probabilities a class activation map leaves out, after its name.
UNCLOSED = "has scores instead of probabilities, as with --logits: a mean of probabilities is not that of the mean."

#: The caveat if nothing in a network needed attention that sees the whole image.
NO_ATTENTION = "Everything in the network slides, so no attention became context: --context attention changed nothing."

#: Weights of at most this many values are compared by value.
COPIED = 1 << 16

#: Windows along each axis of the example.
EXAMPLE = 10

#: The distance between answers, in pixels, from which their grid is called coarse.
COARSE = 32

#: Added bytes of weights up to which no model gets a caveat, however small it is.
SMALL = 1 << 20


def describe(
    original: Document,
    document: Document,
    walk: Walk,
    *,
    source: str = "",
    sizes: Sizes = (),
    windows: bool = False,
    dropped: Sequence[str] = (),
    attention: bool = False,
) -> Report:
    """The report on a finished walk and its edit.

    Args:
        original: the model as opened.
        document: the model after the edit.
        walk: the walk.
        source: the model's path, as the user wrote it.
        sizes: image sizes to report the cost of.
        windows: what cannot slide was to run on every window.
        dropped: outputs whose closing probabilities were dropped, although the user did not ask for that.
        attention: attention in the trunk was to see the whole image.

    Raises:
        OptionError: if an image of these sizes is too small, or has another number of axes.
    """
    image, geometry = walk.image, geometry_of(walk)
    before, after = (_dims([*d.proto.graph.input, *d.proto.graph.output]) for d in (original, document))
    slots = [*walk.slots, *walk.epilogue]
    layers = tuple(_layers(original, document, walk, slots))
    context = tuple(dict.fromkeys((s.name, s.node.op) for s in slots if any(c.kind == "context" for c in s.changes)))
    cut = find_cut(walk)
    done = not walk.has_head
    native, costs = costs_of(original, document, walk, geometry, cut, sizes)
    return Report(
        source=source,
        source_bytes=original.size,
        image=Tensor(image.name, before[image.name], after[image.name]),
        axes=geometry.layout,
        window=image.size,
        outputs=tuple(
            Tensor(name, before[name], after[name], _stride(walk.results.get(name))) for name in walk.outputs
        ),
        cut=None if cut is None or done else Map(cut.name, cut.fact.width, cut.fact.window, _stride(cut.fact)),
        layers=layers,
        context=context,
        caveats=(
            *([ALL_SLIDES] if windows and walk.region is None else []),
            *(f"'{name}' {UNCLOSED}" for name in dropped),
            *([NO_ATTENTION] if attention and not walk.attention else []),
            *_caveats(walk, geometry, slots, context, original),
        ),
        example=None if done or walk.keeps_size else _example(walk, geometry),
        native=native,
        costs=costs,
        difference=_difference(original, document),
        geometry=geometry,
        fields=fields_of(walk),
        sizes=tuple(along_axes(s, len(image.size)) for s in sizes),
        slides=walk.standing is None,
        classes=classes_of(original, walk),
    )


def classes_of(original: Document, walk: Walk) -> tuple[str, ...]:
    """The names of the classes that the exporter stored, if the first output has so many channels."""
    names, first = class_names(original.proto), walk.results.get(walk.outputs[0])
    return names if first is not None and first.width == len(names) else ()


def _dims(declared: Iterable[ValueInfoProto]) -> dict[str, tuple[Dim, ...] | None]:
    """The declared shapes of tensors, by name; None if a tensor has no declared shape."""
    types = {value.name: value.type.tensor_type for value in declared}
    return {
        name: tuple(d.dim_value if d.HasField("dim_value") else dim_name(d) or None for d in t.shape.dim)
        if t.HasField("shape")
        else None
        for name, t in types.items()
    }


def _number(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)


def _stride(fact: Lifted | None) -> tuple[float, ...]:
    return () if fact is None else tuple(_number(a.stride) for a in sliding(fact))


def _example(walk: Walk, geometry: Geometry) -> Example:
    """An image that is larger by whole strides, so that its number of windows is exact however layers round."""
    steps = (math.ceil(stride) for stride in geometry.stride)
    larger = (native + (EXAMPLE - 1) * step for native, step in zip(walk.image.size, steps))
    size = tuple(walk.image.size[k] if k in walk.held else n for k, n in enumerate(larger))
    grid = geometry.grid(*size)
    return Example(size, grid.shape, int(grid.interior.sum()))


def _caveats(
    walk: Walk, geometry: Geometry, slots: Sequence[Slot], context: Sequence[tuple[str, str]], original: Document
) -> Iterator[str]:
    """Sentences that a user should read."""
    size = original.size
    yield from walk.image.assumed
    names, first = class_names(original.proto), walk.results.get(walk.outputs[0])
    if names and first is not None and first.width != len(names):
        have = f"{len(names)} {'class' if len(names) == 1 else 'classes'}"
        yield f"The metadata name {have}, and the answers have {first.width} channels, so the names are left out."
    if walk.standing is not None:
        yield from _on_standing(walk.standing)
    elif not walk.has_head:
        yield (
            "The network was fully convolutional already: it has an answer for each position of its map, and no head. "
            "Only sizes became dynamic."
        )
    for k in sorted(walk.held):
        name, size = SIZE_NAMES[len(walk.image.size)][k], walk.image.size[k]
        yield (
            f"The {name} of the image stays {size}: there are answers along the other "
            f"{'axis' if len(walk.image.size) == 2 else 'axes'} only, each of the whole {name}."
        )
    stride = max((a.window_stride for fact in walk.results.values() for a in sliding(fact)), default=Fraction(0))
    if stride >= COARSE and walk.has_head and not walk.formed:
        yield (
            f"There is one answer every {pixels([_number(stride)])}: {_closer(walk)} {_number(stride / 2):g} "
            "also gives the answers in between."
        )
    same = [s.name for s in slots if s.slides is not None and str(s.node.attrs.get("auto_pad", "")).startswith("SAME")]
    if same:
        others = f" and {len(same) - 1} more" if len(same) > 1 else ""
        yield (
            f"'{same[0]}'{others} pad{'' if others else 's'} by auto_pad, which depends on the size of the image: the "
            f"padding is fixed to that of {pixels(walk.image.size)}."
        )
    rounds = [s.name for s in slots if s.node.op.endswith("Pool") and s.node.attrs.get("ceil_mode", 0)]
    if rounds and _reaches_beyond(walk, geometry):
        yield (
            f"'{rounds[0]}' rounds up (ceil_mode): if pixels are left over, the last window reaches beyond the image, "
            "and no crop has its answer. `Grid.remainder` is negative then, and `Grid.interior` excludes the answer."
        )
    yield from _on_dilated_pools(slots)
    repeated = sum(s.repeated for s in slots)
    if repeated > max(size, SMALL):
        most = max(slots, key=lambda s: s.repeated)
        yield (
            f"The result is far larger than the {bytes_of(size)} of the model: it contains {bytes_of(repeated)} of "
            "kernels that copy windows and of weights that are repeated for each channel or position that they do not "
            f"sum over, most of it for '{most.name}'."
        )
    yield from meetings(walk)
    yield from (context_caveat([node]) for node in context)


def _on_dilated_pools(slots: Sequence[Slot]) -> Iterator[str]:
    """The poolings whose dilations some runtimes ignore without an error."""
    made = ((slot, e.node) for slot in slots for e in slot.emissions)
    stay = ((slot, slot.node) for slot in slots if not slot.replaced)
    pools = ((slot, node) for slot, node in itertools.chain(made, stay) if node.op in POOLINGS)
    dilated = [(slot.name, node.op) for slot, node in pools if _dilates(node)]
    if dilated:
        (name, op), *others = dict.fromkeys(dilated)
        more = f" and {len(others)} more" if others else ""
        advice = "" if op != "MaxPool" else "; --portable writes slices instead"
        yield f"'{name}'{more} dilates {op}: OpenCV 4, MNN and ncnn do not, and some ignore it silently{advice}."


def _dilates(node: Node) -> bool:
    """Are the taps of a pooling apart along some axis?"""
    kernel = node.attrs["kernel_shape"]
    return any(taps > 1 and rate > 1 for taps, rate in zip(kernel, node.attrs.get("dilations") or [1] * len(kernel)))


def _on_standing(standing: Standing) -> Iterator[str]:
    """Why nothing slides, and the dense layers that stay."""
    why = replace(standing.cause, hint="")
    yield f"The network cannot slide, so only its dense layers were replaced, and it keeps its size ({why})."
    reasons: dict[str, list[str]] = {}
    for layer in standing.left:
        reasons.setdefault(layer.reason, []).append(f"{layer.op} '{layer.node}'")
    for reason, layers in reasons.items():
        others = f" (and {len(layers) - 1} more like it)" if len(layers) > 1 else ""
        yield f"{layers[0]}{others} stays as it is ({reason})."


def _closer(walk: Walk) -> str:
    """`--window-stride` if the map has windows at half the distance, otherwise `--output-stride`."""
    cut = find_cut(walk) if walk.region is not None else None
    axes = zip(sliding(cut.fact), walk.region.stride) if cut is not None and walk.region is not None else ()
    halves = [(stride / 2 / axis.window_stride).denominator == 1 for axis, stride in axes]
    return "--window-stride" if halves and all(halves) else "--output-stride"


def _reaches_beyond(walk: Walk, geometry: Geometry) -> bool:
    """Is there, at some size, an answer without any padding whose window is not all in the image?"""
    exact = {name for name, answers in geometry.outputs.items() if answers.exactness == "exact"}
    return any(
        axis.count(pixels) > axis.inner.behind(pixels)
        for name in exact
        for axis, native in zip(sliding(walk.results[name]), walk.image.size)
        for pixels in range(native, native + math.ceil(axis.window_stride))
    )


def _layers(original: Document, document: Document, walk: Walk, slots: Sequence[Slot]) -> Iterator[Layer]:
    kernels = _Kernels(original, document)
    for slot in slots:
        for change in slot.changes:
            if change.kind == "context":
                continue
            emission = kernels.emission_of(change, slot)
            kernel = kernels.of(emission)
            fact = walk.facts.get(change.reads)
            reads = walk.renamed.get(fact.map, fact.map) if isinstance(fact, Lifted) else change.reads
            yield Layer(
                kind=change.kind,
                node=slot.name,
                was=slot.node.op if change.kind != "region" else f"{len(slot.covers)} nodes",
                becomes=_becomes(emission, slot, change),
                kernel=change.kernel,
                inputs=change.inputs,
                outputs=change.outputs,
                groups=change.groups,
                reads=reads,
                layout=change.layout,
                weight=change.weight,
                same_bytes=kernels.is_original(kernel, change.weight) if change.weight and kernel is not None else None,
            )


def _becomes(emission: Emission | None, slot: Slot, change: Change) -> str:
    """The operator that replaces a node, or several."""
    if change.kind == "region":
        return "Scan"
    return str(emission.node.op) if emission is not None else " + ".join(str(e.node.op) for e in slot.emissions)


class _Kernels:
    """The kernels of the result, and whether the original stores the same bytes."""

    def __init__(self, original: Document, document: Document) -> None:
        self._original, self._document = original, document
        self._producers = {name: node for node in document.nodes for name in node.outputs if name}
        self._had, self._tensors = _initializers(original), _initializers(document)
        self._payloads: dict[int, set[object]] = {}

    def emission_of(self, change: Change, slot: Slot) -> Emission | None:
        """The emitted node that carries out a change."""
        dims = (change.outputs, change.inputs, *change.kernel)

        def does(emission: Emission) -> bool:
            if tuple(emission.node.attrs.get("kernel_shape", ())) != change.kernel:
                return False
            return change.kind != "dense" or ((k := self.of(emission)) is not None and tuple(k.dims) == dims)

        return next(filter(does, reversed(slot.emissions)), None)

    def of(self, emission: Emission | None) -> TensorProto | None:
        """The initializer with the kernel of a Conv, also if a DequantizeLinear or a Cast is in between."""
        node = None if emission is None else self._producers.get(emission.node.outputs[0])
        place = 3 if node is not None and node.op == "QLinearConv" else 1
        name = node.inputs[place] if node is not None and len(node.inputs) > place else ""
        while name and name not in self._tensors:
            node = self._producers.get(name)
            name = node.inputs[0] if node is not None and node.inputs else ""
        return self._tensors.get(name)

    def is_original(self, kernel: TensorProto, weight: str) -> bool:
        """Whether the original contains these bytes, in this order: in the weight of that name, or in any other."""
        payload, size = _payload(self._document, kernel), _size(kernel)
        if weight in self._had and payload == _payload(self._original, self._had[weight]):
            return True
        if size not in self._payloads:
            self._payloads[size] = {_payload(self._original, t) for t in self._stored.get(size, ())}
        return payload in self._payloads[size]

    @cached_property
    def _stored(self) -> dict[int, list[TensorProto]]:
        """The tensors that the original stores, by their size."""
        found: dict[int, list[TensorProto]] = {}
        for tensor in _stored_tensors(self._original.proto.graph):
            found.setdefault(_size(tensor), []).append(tensor)
        return found


def _initializers(document: Document) -> dict[str, TensorProto]:
    return {t.name: t for t in document.proto.graph.initializer}


def _stored_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (a.t for a in node.attribute if a.HasField("t"))


def _is_large(tensor: TensorProto) -> bool:
    """Is it compared by its place in a file?"""
    return tensor.data_location == TensorProto.EXTERNAL and math.prod(tensor.dims[:]) > COPIED


def _size(tensor: TensorProto) -> int:
    """A number that is equal for tensors with the same bytes: that of the bits of their array."""
    return 0 if _is_large(tensor) else math.prod(tensor.dims[:]) * max(BITS.get(tensor.data_type, 0), 8)


def _payload(document: Document, tensor: TensorProto) -> object:
    """A key that is equal for tensors with the same bytes: for large ones, their location in a file.

    Small ones may be in another file than before.
    """
    if _is_large(tensor):
        return frozenset((e.key, e.value) for e in tensor.external_data if e.key in ("location", "offset"))
    return document.array(tensor).tobytes()


def _difference(original: Document, document: Document) -> Difference:
    stay = set(map(id, original.nodes)).intersection(map(id, document.nodes))  # as most do
    kept = Counter(node.op for node in original.nodes if id(node) in stay)
    before = {node.proto.SerializeToString(): node for node in original.nodes if id(node) not in stay}
    new: set[tuple[str, str]] = set()
    for node in (node for node in document.nodes if id(node) not in stay):
        if before.pop(node.proto.SerializeToString(), None) is None:
            new.add(_place(node))
        else:
            kept[node.op] += 1
    old = set(map(_place, before.values()))
    had, has = _initializers(original), _initializers(document)
    changed = [name for name, t in has.items() if name in had and t != had[name]]
    same = {n for n in changed if _payload(original, had[n]) == _payload(document, has[n])}
    return Difference(
        kept=_count(kept.elements()),
        changed=_count(op for op, _ in old & new),
        removed=_count(op for op, _ in old - new),
        added=_count(op for op, _ in new - old),
        reshaped=tuple(n for n in changed if n in same and has[n].dims[:] != had[n].dims[:]),
        rewritten=tuple(n for n in changed if n not in same),
        removed_initializers=tuple(n for n in had if n not in has),
        added_initializers=tuple(n for n in has if n not in had),
    )


def _place(node: Node) -> tuple[str, str]:
    """What a node keeps if a rule varies it: its operator and its first output."""
    return node.op, next(filter(None, node.outputs), node.name)


def _count(operators: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(operators).items()))
