"""onnxruntime against the original: is it the same network?

Questions, of which all but the third decide:

    native   at the native size, is the answer the same?
    law      on a larger image, is every cell the original head on its window of the feature map?
    crops    on a larger image, is every cell the original network on its crop of the image?
    phases   where operators dilate instead of striding, is each phase of the map that of the original's trunk?
    grid     on an image with pixels left over, are there as many answers as was said?
    form     where the answers are more than the map, is that what they were to be?

The law holds for every network. The last holds only where nothing pads and nothing sees the whole image: a crop sees
zeros beyond its border where the large image has pixels. So crops are measured always, and decide only then.

Outputs that saturate (a softmax is 0 or 1 for most inputs) would hide faults, so what enters them is compared too.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnx_fcn.document import Document
from onnx_fcn.errors import ModelError, ValidationError
from onnx_fcn.interpret import BATCH, Walk
from onnx_fcn.known import Array
from onnx_fcn.lifted import Atom, Lifted
from onnx_fcn.lifting import Cut, cuts_of, data_inputs, static_dims, upstream
from onnx_fcn.placement import geometry_of
from onnx_fcn.sessions import extract, session, with_outputs

__all__ = ["Check", "Validation", "run_checks"]

#: Largest difference allowed, relative to the largest answer. A Conv and a Gemm add the same products in another
#: order: n of them differ by about √n·ε, which is 2e-5 for the 25,088 inputs of VGG's first dense layer; several
#: layers and a cancellation of large terms may add a digit.
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4, np.dtype(np.float16): 2e-2}

#: A network that rounds its activations to 8 or 16 bits may round one of them the other way: one step of many.
ROUNDED_TOLERANCE = 2e-2

#: How many times the smallest normal number an answer has to be to be compared relatively: below, digits go missing.
SMALLEST_SCALE = 16

#: Deviations of the random images. A network that answers the same everywhere, as one that was trained on bytes may to
#: noise of deviation 1, is asked again with more.
DEVIATIONS = (1.0, 16.0, 255.0)

#: Windows that the law is checked on: the corners, and some between.
WINDOWS = 9

#: Multiply-accumulates that crops may take which need not agree: enough to see by how much they do not.
CROPS_BUDGET = 20e9

#: Images at once, where the batch is free.
BATCHES = 3

#: Operators whose results saturate or discard: what enters them is compared too.
HIDING = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "HardSigmoid", "ArgMax", "ArgMin", "TopK", "Hardmax", "Clip"}
)
THROUGH = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose"})


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        kind: ``native``, ``law``, ``crops``, ``phases``, ``form`` or ``grid``.
        subject: what was compared, such as an output's name.
        size: the size of the image, in pixels.
        batch: images at once.
        compared: windows, or elements.
        error: largest difference relative to the largest answer; NaN where it could not be measured.
        tolerance: the largest error allowed; None for what is only information.
        note: a sentence.
        median: of crops, the error of the median window; None for other checks.
        top1: of crops, the share of windows whose largest answer is the same one; None where that means nothing.
    """

    kind: str
    subject: str
    size: tuple[int, ...]
    batch: int
    compared: int
    error: float
    tolerance: float | None
    note: str = ""
    median: float | None = None
    top1: float | None = None

    @property
    def passed(self) -> bool:
        """Within its tolerance, or only information."""
        return self.tolerance is None or self.error <= self.tolerance


@dataclass(frozen=True)
class Validation:
    """All comparisons of two models."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Did everything that decides hold?"""
        return all(c.passed for c in self.checks)

    def worst(self, kind: str) -> float | None:
        """The largest error of one kind of check; None where there was none."""
        errors = [c.error for c in self.checks if c.kind == kind]
        return max(errors) if errors else None

    def failure(self) -> str:
        """One sentence about the worst failure."""
        worst = max((c for c in self.checks if not c.passed), key=lambda c: np.nan_to_num(c.error, nan=np.inf))
        size = "×".join(map(str, worst.size))
        what = {
            "native": "the answer at the native size",
            "law": "a cell of the map and the original head on its window",
            "crops": "a cell of the map and the original network on its crop",
            "phases": "a phase of the map and the original trunk on the shifted image",
            "grid": "the number of answers",
            "form": "the answers and what they were to become of the map",
        }[worst.kind]
        reason = worst.note or f"differ by {worst.error:.2g} (allowed {worst.tolerance:.2g})"
        return f"{what} of '{worst.subject}' at {size}: {reason}"


Progress = Callable[[str], None]


@dataclass
class Comparison:
    """The two models at hand, with what is known of them.

    Attributes:
        original: the model as it was.
        state: the walk that lifted it.
        lifted: the result of that walk, whose trunk gives the feature map.
        converted: the file that is judged: that result, or what another tool made of it.
        exact: whether the cells of a map have to equal crops.
        macs: multiply-accumulates of the original on one image, where they are known.
        is_ours: whether the judged file is our result; the tensors of another tool's may have any names.
        maps: for each output that is more than its map of answers, and for each tensor in front of a saturating
            operator, the tensor of the converted model that is the map.
    """

    original: Document
    state: Walk
    lifted: Document
    converted: Document
    seed: int = 0
    progress: Progress = lambda _: None
    macs: int | None = None

    def __post_init__(self) -> None:
        self.deviation = DEVIATIONS[0]
        self.random = np.random.default_rng(self.seed)
        self.inputs = {i.name: i for i in data_inputs(self.original)}
        self.outputs = [o.name for o in self.original.proto.graph.output]
        self.tolerance = _tolerance(self.original)
        self.answers = geometry_of(self.state).outputs
        self.is_ours = self.lifted is self.converted or _same_graph(self.lifted, self.converted)
        self.hidden = self._hidden() if self.is_ours else {}
        self.facts: dict[str, Lifted] = {**self.state.results, **self.hidden}
        every = all(a.exactness == "exact" for a in self.answers.values())
        self.exact = {n: self.answers[n].exactness == "exact" if n in self.answers else every for n in self.facts}
        self.names = [*self.outputs, *self.hidden]
        renamed = self.state.renamed
        maps = {name: renamed.get(m := self.state.results[name].map, m) for name in self.state.finals}
        if self.keeps_size:
            maps = {}
        self.maps = {**maps, **{name: fact.map for name, fact in self.hidden.items()}}

    @property
    def keeps_size(self) -> bool:
        """Does the converted model take images of the native size only?"""
        return any(final.form == "keep-size" for final in self.state.finals.values())

    def _hidden(self) -> dict[str, Lifted]:
        """Tensors in front of saturating operators at the end, with their facts as they are named in the result."""
        producer = {o: n for n in self.original.proto.graph.node for o in n.output if o}
        found: dict[str, Lifted] = {}
        have = {o for n in self.lifted.proto.graph.node for o in n.output}
        for name in self.outputs:
            for _ in range(64):
                node = producer.get(name)
                if node is None or node.op_type not in HIDING | THROUGH:
                    break
                name = node.input[0]
                fact = self.state.facts.get(name)
                if (
                    node.op_type in HIDING
                    and isinstance(fact, Lifted)
                    and not fact.is_live
                    and name not in self.outputs
                ):
                    renamed = self.state.renamed.get(fact.map, fact.map)
                    if renamed in have and name in producer:
                        found[name] = fact.on(renamed)
        return found


def run_checks(comparison: Comparison, data: Mapping[str, Array] | None = None) -> Validation:
    """Compare two models on random images, and on the user's own.

    One model is open at a time, so that the weights of one only are mapped. What both share needs no second run: where
    the trunk is node for node and byte for byte the original's, its map of the larger image is taken from the
    converted model, and only the head is run in batches.

    Raises:
        ModelError: onnxruntime cannot run the original.
        ValidationError: it cannot run the converted model.
    """
    for comparison.deviation in DEVIATIONS:
        cases, wide, checks = _compared(comparison, data)
        if not all(check.passed for check in checks) or _tell_apart(comparison, cases, wide):
            break
    return Validation(tuple(checks))


def _compared(c: Comparison, data: Mapping[str, Array] | None) -> tuple[list[Case], Wide | None, list[Check]]:
    """All that was compared on random images of one deviation."""
    wide = _wide_case(c, data)
    shared = wide is not None and c.is_ours and _same_trunk(c, wide.cut)
    batched = wide is not None and shared and _takes_batches(c, wide.cut)
    cases = _native_cases(c, data, wide, _batches(c)[:1] if batched else _batches(c))
    if wide is not None and not shared:
        c.progress(f"feature map at {_spelled(wide.size)}")
        wide.map = _feature_map(c, wide.cut, wide.feeds)
    try:
        _ask_converted(c, cases, wide, with_map=shared)
    except ModelError as error:
        _ask_original(c, cases[:1])  # which may be the one that does not run
        raise ValidationError(f"the converted model fails: {error}") from None
    if wide is not None and c.state.has_head:
        wide.positions = _positions(c, wide)
    _ask_original(c, cases)
    if wide is not None and c.state.has_head:
        _ask_crops(c, wide, cases[0])
        _ask_head(c, wide)
        if batched:
            cases += _head_in_batches(c, wide)
    checks = [check for case in cases for check in _native_checks(c, case)]
    for case in [*cases, *([wide] if wide is not None else [])]:
        checks += _form_checks(c, case)
    if wide is not None and c.state.has_head:
        checks += _wide_checks(c, wide)
    if wide is not None:
        checks += _phase_checks(c, wide)
        if not shared and wide.cut.name != c.state.image.name:
            checks += _grid_checks(c)
    return cases, wide, checks


Answers = dict[str, Array]


@dataclass
class Case:
    """One image, or batch of images, and what both models answered.

    Attributes:
        size: in pixels.
        batch: images at once.
        feeds: all inputs.
        note: what is said of it in the report.
        expected: the answers of the original.
        got: those of the converted model, by the names of the original's tensors.
        finals: what it makes of them, where that is asked for.
    """

    size: tuple[int, ...]
    batch: int
    feeds: dict[str, Array]
    note: str = ""
    expected: Answers = field(default_factory=dict)
    got: Answers = field(default_factory=dict)
    finals: Answers = field(default_factory=dict)


@dataclass
class Wide(Case):
    """A larger image.

    Attributes:
        cut: the map that the law is about.
        inner: a window within it, as a cell of the cut's grid, whose crop is the first image of the native size.
        map: that map of this image, (N, C, *space).
        positions: the windows that are compared, as cells of the cut's grid; `inner` is the last.
        windows: the original head's answers for these windows.
        crops: the original's answers for the crops of the last of them.
    """

    cut: Cut = field(kw_only=True)
    inner: list[int] = field(default_factory=list)
    map: Array = field(default_factory=lambda: np.zeros(0))
    positions: list[list[int]] = field(default_factory=list)
    windows: list[Answers] = field(default_factory=list)
    crops: list[Answers] = field(default_factory=list)

    @property
    def grid(self) -> list[int]:
        """Windows of the cut along each axis."""
        return [(n - a.extent) // a.step + 1 for n, a in zip(self.map.shape[2:], self.cut.fact.space)]


def _wide_case(c: Comparison, data: Mapping[str, Array] | None) -> Wide | None:
    """A larger image: a given one, or a random one. None where nothing slides."""
    named = {c.state.image.name, *(o for node in c.original.proto.graph.node for o in node.output)}
    cut = next((k for k in cuts_of(c.state) if k.name in named), None)  # no tensor inside a branch can be fed
    if cut is None or c.keeps_size:
        return None
    image, batch = c.state.image, _batches(c)[0]
    size = larger_size(cut, image.size)
    feeds = random_feeds(c, size, batch)
    given = (data or {}).get(image.name)
    if given is not None and given.ndim == len(image.shape):
        sizes = tuple(given.shape[a] for a in image.space)
        if sizes != image.size and all(have >= native for have, native in zip(sizes, image.size)):
            feeds, size = {**feeds, image.name: given[:batch].astype(feeds[image.name].dtype)}, sizes
    more = [
        (size[a.image] - image.size[a.image]) // a.grid if a.image is not None else 0 for a in cut.fact.space
    ]  # windows beyond the first
    steps = _steps(c, cut)
    return Wide(size, batch, feeds, cut=cut, inner=[s if s <= m else 0 for s, m in zip(steps, more)])


def _tell_apart(c: Comparison, cases: Sequence[Case], wide: Wide | None) -> bool:
    """Do answers differ between windows, or images, by more than is allowed? Else a fault might not show."""
    found = wide.windows if wide is not None and wide.windows else [case.expected for case in cases]
    pairs = [(each[name], found[0][name]) for each in found[1:] for name in found[0] if name in each]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape]
    return not pairs or any(difference(a, b) > c.tolerance for a, b in pairs)


def _steps(c: Comparison, cut: Cut) -> list[int]:
    """Windows of the cut from one cell of the coarsest output to the next, along each axis."""
    return [max(k) for k in zip(*(_ratios(f, cut) for f in c.facts.values()))] or [1] * len(cut.fact.space)


def _positions(c: Comparison, wide: Wide) -> list[list[int]]:
    """The windows to compare: corners, some between, those with a whole crop last, and `inner` at the very end.

    The last windows of a dilated map, or of one that is rounded up, may reach beyond the image: they have no crop.
    """
    steps = _steps(c, wide.cut)
    cells = sampled([-(-w // s) for w, s in zip(wide.grid, steps)], c.random)
    found = [[p * s for p, s in zip(cell, steps)] for cell in cells]
    return [*sorted((p for p in found if p != wide.inner), key=lambda p: _has_crop(c, wide, p)), wide.inner]


def _native_cases(
    c: Comparison, data: Mapping[str, Array] | None, wide: Wide | None, batches: Sequence[int]
) -> list[Case]:
    """Images of the native size, and given ones. The first is a crop of the larger image: it answers two questions."""
    size = c.state.image.size
    cases = [Case(size, batch, random_feeds(c, size, batch)) for batch in batches]
    if wide is not None:
        cases[0].feeds = _cropped(c, wide, wide.inner)
    if data is not None and all(tuple(data[n].shape[1:]) == _shape(c, n, size, 1)[1:] for n in data):
        count = len(next(iter(data.values())))
        cases.append(Case(size, count, {**random_feeds(c, size, count), **data}, "given data"))
    return cases


def _same_trunk(c: Comparison, cut: Cut) -> bool:
    """Is all that computes the cut in the converted model, nodes and weights, what it was in the original?"""
    name, image = cut.fact.map, c.state.image.name
    if name == image or c.state.renamed.get(name, name) != name:
        return False
    before, after = (extract(d.proto, [image], [name]) for d in (c.original, c.converted))
    if not before.graph.node or list(before.graph.node) != list(after.graph.node):
        return False
    if list(before.opset_import) != list(after.opset_import) or list(before.functions) != list(after.functions):
        return False
    weights = [{t.name: t for t in m.graph.initializer} for m in (before, after)]
    same = weights[0].keys() == weights[1].keys() and all(
        _same_bytes(c.original.array(weights[0][n]), c.converted.array(weights[1][n])) for n in weights[0]
    )
    c.original.release()
    c.converted.release()
    return same and list(before.graph.sparse_initializer) == list(after.graph.sparse_initializer)


def _same_bytes(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(_as_bytes(a), _as_bytes(b))


def _as_bytes(array: Array) -> Array:
    """The bytes of an array: NaN equals itself, and -0 is not 0."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _takes_batches(c: Comparison, cut: Cut) -> bool:
    """Can the head be run on several windows at once, in the original?"""
    return (
        _batches(c)[0] == 1
        and c.state.batch == BATCH
        and len(c.inputs) == 1
        and not c.state.context
        and _batch_axis(cut.fact) is not None
        and all(_batch_axis(f) is not None for f in c.facts.values())
    )


def _batch_axis(fact: Lifted) -> int | None:
    """The axis of the original tensor that is the batch and nothing else."""
    return next((k for k, group in enumerate(fact.layout) if group == (fact.batch,)), None)


def _feature_map(c: Comparison, cut: Cut, feeds: Mapping[str, Array]) -> Array:
    """The cut's map of an image (N, C, *space): of the original trunk, or of the lifted one where sizes are baked."""
    image = c.state.image.name
    name = c.state.renamed.get(cut.fact.map, cut.fact.map)
    lifted = extract(c.lifted.proto, [image], [name])
    if cut.name != image and _pads_alike(c, cut, [feeds[image].shape[k] for k in c.state.image.space]):
        with contextlib.suppress(ModelError):
            seen = session(c.original, extract(c.original.proto, [image], [cut.name]))(feeds)[0]
            physical = as_physical(cut.fact, seen)
            if physical is not None and physical.shape[2:] == _map_extents(c, cut, feeds):
                return physical
    return feeds[image] if name == image else session(c.lifted, lifted)(feeds)[0]


def _phase_checks(c: Comparison, wide: Wide) -> Iterator[Check]:
    """Is each phase of a dilated map the original's map of the shifted image?

    Phase 0 is, everywhere. The others are where no padding is seen: shifting moves the border of the image.
    """
    cut, image = wide.cut, c.state.image
    rates = [axis.rate for axis in cut.fact.space]
    if max(rates, default=1) == 1 or cut.name == image.name or not _pads_alike(c, cut, wide.size):
        return
    try:
        trunk = session(c.original, extract(c.original.proto, [image.name], [cut.name]))
    except ModelError:
        return  # it has another input
    for phase in sampled(rates, c.random):
        index, ends = [slice(None)] * len(image.shape), list(wide.size)
        for axis, p in zip(cut.fact.space, phase):
            if axis.image is not None and p:  # smaller by a whole stride: what depends on the size stays the same
                start, period = int(p * axis.stride), int(axis.rate * axis.stride)
                ends[axis.image] += start - period
                index[image.space[axis.image]] = slice(start, ends[axis.image])
        c.progress(f"phase {_spelled(phase)} of the feature map")
        feeds = {**wide.feeds, image.name: np.ascontiguousarray(wide.feeds[image.name][tuple(index)])}
        try:
            want = as_physical(cut.fact, trunk(feeds)[0])
        except ModelError:
            continue  # a size is baked into the original's trunk
        if want is None:
            continue
        slices: list[Any] = [slice(p, None, r) for p, r in zip(phase, rates)]
        have = wide.map[(..., *slices)]
        both: list[Any] = [slice(min(m, n)) for m, n in zip(have.shape[2:], want.shape[2:])]
        have, want = have[(..., *both)], want[(..., *both)]
        if any(phase):
            inside = _inside(cut.fact, ends, phase, have.shape[2:])
            have, want = (m.transpose(*range(2, m.ndim), 0, 1)[inside] for m in (have, want))
        if want.size:
            cells = want.size // (want.shape[1] * want.shape[0]) if not any(phase) else len(want)
            yield Check(
                "phases", cut.name, wide.size, wide.batch, cells, difference(have, want), c.tolerance,
                f"phase {_spelled(phase)}",
            )  # fmt: skip


def _grid_checks(c: Comparison) -> Iterator[Check]:
    """On an image with pixels behind the last window, is the number of answers what it is said to be?

    Padding at the far end, and sizes that are rounded up, show there alone.
    """
    if c.keeps_size or not c.state.has_head:
        return
    native = c.state.image.size
    strides = [max([math.ceil(a.stride[k]) for a in c.answers.values()], default=1) for k in range(len(native))]
    size = tuple(n + s - 1 for n, s in zip(native, strides))
    batch = _batches(c)[0]
    tensors = [c.maps.get(name, name) for name in c.answers]
    extra = [t for t in tensors if t not in c.outputs]
    if extra and not c.is_ours:
        return
    c.progress(f"converted model at {_spelled(size)}")
    try:
        answers = session(c.converted, with_outputs(c.converted, extra))(random_feeds(c, size, batch))
    except ModelError as error:
        raise ValidationError(f"the converted model fails at {_spelled(size)}: {error}") from None
    found = dict(zip([*c.outputs, *extra], answers))
    for (name, said), tensor in zip(c.answers.items(), tensors):
        have, want = found[tensor].shape[2:], tuple(count(n) for count, n in zip(said.count, size))
        note = "" if have == want else f"is a grid of {have} where {want} was said"
        yield Check("grid", name, size, batch, 1, 0.0 if have == want else np.inf, c.tolerance, note)


def _inside(fact: Lifted, ends: Sequence[int], phase: Sequence[int], cells: Sequence[int]) -> Array:
    """Which cells of one phase see neither padding of the image nor of the shifted one, which has these ends."""
    inside = np.ones(tuple(cells), bool)
    for k, (axis, p, count) in enumerate(zip(fact.space, phase, cells)):
        if not axis.field.is_local:
            return np.zeros_like(inside)
        if axis.image is None:
            continue
        first = float(axis.field.start) + (p + axis.rate * np.arange(count)) * float(axis.stride)
        seen = (first >= float(p * axis.stride)) & (first + float(axis.field.size) <= ends[axis.image])
        inside &= seen.reshape([-1 if j == k else 1 for j in range(len(cells))])
    return inside


def _pads_alike(c: Comparison, cut: Cut, size: Sequence[int]) -> bool:
    """Does the original's trunk pad an image of this size as one of the native size? `auto_pad` reads the size."""
    attributes = (a for k in upstream(c.state, cut.name) for a in c.state.seats[k].proto.attribute)
    if not any(a.name == "auto_pad" and a.s.startswith(b"SAME") for a in attributes):
        return True
    periods = {a.image: max(a.grid, a.stride * a.rate) for a in cut.fact.space}
    return all((n - m) % periods.get(k, 1) == 0 for k, (n, m) in enumerate(zip(size, c.state.image.size)))


def _map_extents(c: Comparison, cut: Cut, feeds: Mapping[str, Array]) -> tuple[int, ...]:
    """The cells of the lifted trunk's map, by shape inference: at other sizes the original may pad otherwise."""
    model = extract(c.lifted.proto, [c.state.image.name], [c.state.renamed.get(cut.fact.map, cut.fact.map)])
    for declared in model.graph.input:
        if declared.name in feeds:
            shape = feeds[declared.name].shape
            declared.CopyFrom(
                onnx.helper.make_tensor_value_info(declared.name, declared.type.tensor_type.elem_type, shape)
            )
    with contextlib.suppress(Exception):  # it refuses some valid models; then the map is the lifted one
        dims = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
        return tuple(d.dim_value for d in dims[2:])
    return ()


def _ask_original(c: Comparison, cases: list[Case]) -> None:
    """The original's answers at the native size; batches that it does not run are dropped."""
    run = session(c.original, with_outputs(c.original, c.hidden))
    for case in list(cases):
        c.progress(f"original at the native size, batch {case.batch}")
        try:
            case.expected = dict(zip(c.names, run(case.feeds)))
        except ModelError:
            if case is cases[0] or case.note:
                raise
            cases.remove(case)  # the graph bakes another batch


def _ask_crops(c: Comparison, wide: Wide, inner: Case) -> None:
    """The original's answers for crops of the larger image: all where they decide; the last of them is known."""
    affordable = 1 if c.macs is None else max(1, int(CROPS_BUDGET / max(c.macs, 1)))
    crops = len(wide.positions) if any(c.exact.values()) else affordable
    others = [p for p in wide.positions[-crops:-1] if _has_crop(c, wide, p)]
    if others:
        run = session(c.original, with_outputs(c.original, c.hidden))
    for k, position in enumerate(others):
        c.progress(f"crops at {_spelled(wide.size)}: {k + 1} of {len(others)}")
        wide.crops.append(dict(zip(c.names, run(_cropped(c, wide, position)))))
    wide.crops.append(inner.expected)


def _cropped(c: Comparison, wide: Wide, position: Sequence[int]) -> dict[str, Array]:
    """The inputs with the image cut to one window."""
    image, offsets = c.state.image, _offsets(wide, position)
    index = [slice(None)] * len(image.shape)
    for k, (axis, extent) in enumerate(zip(image.space, image.size)):
        index[axis] = slice(offsets.get(k, 0), offsets.get(k, 0) + extent)
    return {**wide.feeds, image.name: np.ascontiguousarray(wide.feeds[image.name][tuple(index)])}


def _has_crop(c: Comparison, wide: Wide, position: Sequence[int]) -> bool:
    """Does a window lie within the image?"""
    offsets = _offsets(wide, position)
    return all(offsets.get(k, 0) + native <= n for k, (native, n) in enumerate(zip(c.state.image.size, wide.size)))


def _offsets(wide: Wide, position: Sequence[int]) -> dict[int | None, int]:
    """The first pixel of a window along each axis of the image."""
    return {a.image: int(p * a.grid) for a, p in zip(wide.cut.fact.space, position)}


def _ask_head(c: Comparison, wide: Wide) -> None:
    """The original head's answers for windows of the feature map, all at once where the batch is free."""
    cut, image = wide.cut, c.state.image
    head = session(c.original, extract(c.original.proto, [cut.name, *c.inputs], c.names))
    windows = [original_at(cut.fact, wide.map, p).astype(wide.map.dtype) for p in wide.positions]
    feeds = {**wide.feeds, image.name: random_feeds(c, image.size, wide.batch)[image.name]}
    c.progress(f"head on {len(windows)} windows at {_spelled(wide.size)}")
    axis = _batch_axis(cut.fact)
    if _takes_batches(c, cut) and axis is not None:
        images = random_feeds(c, image.size, len(windows))  # a head may read its batch off the image
        with contextlib.suppress(ModelError):
            answers = dict(zip(c.names, head({**images, cut.name: np.concatenate(windows, axis)})))
            split = {n: np.split(answers[n], len(windows), _batch_axis(f) or 0) for n, f in c.facts.items()}
            wide.windows = [{n: split[n][k] for n in c.facts} for k in range(len(windows))]
            return
    wide.windows = [dict(zip(c.names, head({**feeds, cut.name: window}))) for window in windows]


def _head_in_batches(c: Comparison, wide: Wide) -> Iterator[Case]:
    """Both heads on several windows at once: no batch is mixed. None where the original's does not run so."""
    cut, size = wide.cut, c.state.image.size
    positions = [wide.positions[k % len(wide.positions)] for k in range(BATCHES)]
    case = Case(size, BATCHES, {}, "the head alone, behind the same trunk")
    windows = [original_at(cut.fact, wide.map, p).astype(wide.map.dtype) for p in positions]
    c.progress(f"heads, batch {BATCHES}")
    try:
        head = session(c.original, extract(c.original.proto, [cut.name], c.names))
        case.expected = dict(zip(c.names, head({cut.name: np.concatenate(windows, _batch_axis(cut.fact) or 0)})))
    except ModelError:  # the graph bakes another batch
        return
    outputs = [c.maps.get(n, n) for n in c.names]
    try:
        head = session(c.converted, extract(c.converted.proto, [cut.fact.map], outputs))
        stack = np.concatenate([wide.map[_window(cut.fact, p)] for p in positions])
        case.got = _unfolded(c, dict(zip(c.names, head({cut.fact.map: stack}))))
    except ModelError as error:
        raise ValidationError(f"the converted model fails on a batch of {BATCHES}: {error}") from None
    yield case


def _ask_converted(c: Comparison, cases: Sequence[Case], wide: Wide | None, *, with_map: bool) -> None:
    """The converted model's answers, and its feature map of the larger image if that is asked for."""
    extra = dict.fromkeys(c.maps.values())
    if wide is not None and with_map:
        extra[wide.cut.fact.map] = None
    extras = [n for n in extra if n not in c.outputs]
    run = session(c.converted, with_outputs(c.converted, extras if c.is_ours else []))
    # the maps behind another tool's outputs may be gone: they are ours then, and its outputs have to be made of these
    maps = run if c.is_ours or not extras else session(c.lifted, with_outputs(c.lifted, extras))
    for case in [*cases, *([wide] if wide is not None else [])]:
        c.progress(f"converted model at {_spelled(case.size)}, batch {case.batch}")
        judged = run(case.feeds)
        answers = dict(zip([*c.outputs, *extras], judged if maps is run else maps(case.feeds)))
        answers |= zip(c.outputs, judged)
        if isinstance(case, Wide) and with_map:
            case.map = answers[case.cut.fact.map]
        case.finals = {name: answers[name] for name in c.state.finals}
        case.got = _unfolded(c, {name: answers[c.maps.get(name, name)] for name in c.names})


def _unfolded(c: Comparison, answers: Answers) -> Answers:
    """The answers with (1, C, 1, N·grid) as (N, C, *grid), where the batch was folded around the head."""
    shape = next((list(answers[n].shape) for n in c.state.results if answers[n].ndim > 2), [])
    for name, fact in c.hidden.items():
        if fact.folded:
            answers[name] = np.moveaxis(answers[name].reshape(fact.width, shape[0], *shape[2:]), 0, 1)
    return answers


def _native_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """Is the answer at the native size the same?

    A dilated network that pads has answers in between at the native size too, whose windows reach beyond the image;
    the first is the original's.
    """
    for name, want in case.expected.items():
        have, fact, note = case.got[name], c.facts.get(name), case.note
        if fact is not None and c.state.has_head and have.shape[1:] == (fact.width, *_grid_at(fact, case.size)):
            have = original_at(fact, have, [0] * len(fact.space))
        if have.size != want.size:
            error, note = np.inf, f"has shape {case.got[name].shape} where the original has {want.shape}"
        else:
            error = difference(have.reshape(want.shape), want)
        yield Check("native", name, case.size, case.batch, want.size, error, c.tolerance, note)


def _grid_at(fact: Lifted, size: Sequence[int]) -> tuple[int, ...]:
    """Answers of an output on an image of this size."""
    return tuple(1 if a.image is None else a.count(size[a.image]) for a in fact.space)


def _form_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """Is what the converted model makes of its maps what the form says, in numpy's words?"""
    for name, have in case.finals.items():
        final, fact = c.state.finals[name], c.state.results[name]
        if final.form == "keep-size":
            if have.shape != case.expected[name].shape:
                note = f"has shape {have.shape} where the original has {case.expected[name].shape}"
                yield Check("form", name, case.size, case.batch, 0, np.inf, c.tolerance, note)
            continue
        scores = case.got[name].astype(np.float64)
        axes, words = tuple(range(2, scores.ndim)), final.form.split()
        if "mean" in words or "max" in words:
            scores = scores.mean(axes) if "mean" in words else scores.max(axes)
        if "full-size" in words:
            scores = _interpolated(scores, case.size, c.state.image.size, [float(a.stride) for a in fact.space])
        if "argmax" in words:
            error = _below_the_best(scores, have)
        else:
            if final.form in ("mean", "max"):  # in the original's shape
                scores = original_at(fact, scores.reshape(*scores.shape, *[1] * len(axes)), [0] * len(axes))
            error = difference(have, scores) if have.shape == scores.shape else np.inf
        yield Check("form", name, case.size, case.batch, have.size, error, c.tolerance, final.form)


def _below_the_best(scores: Array, chosen: Array) -> float:
    """How far the chosen classes' scores are below the best ones, relative to the largest; classes are axis 1."""
    if chosen.shape != scores.shape[:1] + scores.shape[2:] or chosen.max(initial=0) >= scores.shape[1]:
        return float("inf")
    of_chosen = np.take_along_axis(scores, np.expand_dims(chosen.astype(np.int64), 1), 1)[:, 0]
    return difference(of_chosen, scores.max(1))


def _interpolated(scores: Array, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[float]) -> Array:
    """(N, C, *grid) → (N, C, *sizes): linear between the middles of windows, constant beyond the outermost."""
    for k, (pixels, window, stride) in enumerate(zip(sizes, windows, strides)):
        cells = scores.shape[2 + k]
        at = np.clip((np.arange(pixels) - (window - 1) / 2) / stride, 0, cells - 1)
        low = np.minimum(np.floor(at).astype(np.int64), max(cells - 2, 0))
        part = (at - low).reshape([-1 if j == 2 + k else 1 for j in range(scores.ndim)])
        high = np.minimum(low + 1, cells - 1)
        scores = scores.take(low, 2 + k) * (1 - part) + scores.take(high, 2 + k) * part
    return scores


def _wide_checks(c: Comparison, wide: Wide) -> Iterator[Check]:
    """Is every cell the original head on its window? Is it the original on its crop?"""
    cut = wide.cut
    for name, fact in c.facts.items():
        answer = wide.got[name]
        by_image = {a.image: -(-w // r) for a, w, r in zip(cut.fact.space, wide.grid, _ratios(fact, cut))}
        grid = tuple(by_image.get(a.image, 1) for a in fact.space)
        if answer.shape[1:] != (fact.width, *grid):
            note = f"has shape {answer.shape} where there are {grid} windows with {fact.width} channels"
            yield Check("law", name, wide.size, wide.batch, 0, np.inf, c.tolerance, note)
            continue
        cells = [_cell(fact, answer, at, cut) for at in wide.positions]
        law = max(_shaped_difference(cell, want[name]) for cell, want in zip(cells, wide.windows))
        yield Check("law", name, wide.size, wide.batch, len(wide.windows), law, c.tolerance)
        yield _crops_check(c, name, wide, cells[-len(wide.crops) :])


def _crops_check(c: Comparison, name: str, wide: Wide, cells: Sequence[Array]) -> Check:
    """How far cells agree with the original on their crops."""
    tolerance, why = c.tolerance if c.exact[name] else None, ""
    if tolerance is None and name in c.answers:
        why = c.answers[name].reason
    wanted = [crop[name] for crop in wide.crops]
    errors = [_shaped_difference(cell, want) for cell, want in zip(cells, wanted)]
    scores = all(want.ndim == 2 and want.shape[1] > 1 for want in wanted) and name in c.outputs
    same = [np.array_equal(_best(cell, want), _best(want, want)) for cell, want in zip(cells, wanted)] if scores else []
    return Check(
        "crops", name, wide.size, wide.batch, len(errors), max(errors), tolerance, why,
        median=float(np.median(errors)), top1=float(np.mean(same)) if scores else None,
    )  # fmt: skip


def _best(scores: Array, like: Array) -> Array:
    """The class with the largest score."""
    best: Array = scores.reshape(like.shape).argmax(axis=1)
    return best


def _spelled(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


def _ratios(fact: Lifted, cut: Cut) -> list[int]:
    """Windows of the cut from one cell of a tensor to the next."""
    stride = {a.image: a.stride for a in fact.space}
    return [max(1, int(stride.get(a.image, a.grid) / a.grid)) for a in cut.fact.space]


def _cell(fact: Lifted, answer: Array, at: Sequence[int], cut: Cut) -> Array:
    """The original tensor at one window of the cut."""
    ratios = _ratios(fact, cut)
    by_image = {a.image: p // r for a, p, r in zip(cut.fact.space, at, ratios)}
    return original_at(fact, answer, [by_image.get(a.image, 0) for a in fact.space])


# Facts and arrays -----------------------------------------------------------------------------------------------------


def original_at(fact: Lifted, physical: Array, position: Sequence[int]) -> Array:
    """The original tensor at one position of the window, out of a map (N, C, *space): what `Lifted` means."""
    rates: list[Any] = [slice(None, None, axis.rate) for axis in fact.space]
    window: Array = physical[_window(fact, position)][(..., *rates)]
    atoms = [fact.batch, *fact.channels, *(a for axis in fact.space for a in axis.atoms)]
    order = [a for group in fact.layout for a in group]
    batch = physical.shape[0]
    seen: Array = window.reshape([batch, *(a.size for a in atoms[1:])])
    if fact.batch not in order:
        order = [fact.batch, *order]
    seen = seen.transpose([atoms.index(a) for a in order])
    if batch > 1 and fact.batch not in (a for group in fact.layout for a in group):
        return seen.reshape(-1)
    return seen.reshape([_size(group, fact.batch, batch) for group in fact.layout])


def _window(fact: Lifted, position: Sequence[int]) -> tuple[slice, ...]:
    """Where a window lies in a map (N, C, *space)."""
    starts = [p * axis.step for axis, p in zip(fact.space, position)]
    return (slice(None), slice(None), *(slice(s, s + axis.extent) for s, axis in zip(starts, fact.space)))


def _size(group: tuple[Atom, ...], batch: Atom, count: int) -> int:
    return int(np.prod([count if a is batch else a.size for a in group]))


def as_physical(fact: Lifted, original: Array) -> Array | None:
    """A whole map with the axes of the original as (N, C, *space); None where its layout is not plain."""
    axes = [(fact.batch,) if fact.batch.size > 1 else (), fact.channels, *(a.atoms for a in fact.space)]
    if len(axes) != fact.rank or len(set(axes)) < len(axes) or set(axes) != set(fact.layout):
        return None
    return original.transpose([fact.layout.index(group) for group in axes])


def difference(have: Array, want: Array) -> float:
    """Largest difference relative to the largest answer; infinite where NaN or infinity stand at other places."""
    if want.size == 0:
        return 0.0
    if want.dtype.kind not in "fc" and str(want.dtype) != "bfloat16":
        return float(np.mean(have != want)) if want.dtype.kind == "b" else _scaled(have, want)
    return _scaled(have, want)


def _scaled(have: Array, want: Array) -> float:
    a, b = have.astype(np.float64), want.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(
        a[~finite & ~np.isnan(b)], b[~finite & ~np.isnan(b)]
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    kind = want.dtype if want.dtype in TOLERANCE else np.dtype(np.float32)
    scale = max(SMALLEST_SCALE * float(np.finfo(kind).tiny), float(np.abs(b[finite]).max()))
    return float(np.abs(a[finite] - b[finite]).max()) / scale


def _shaped_difference(have: Array, want: Array) -> float:
    return difference(have.reshape(want.shape), want) if have.size == want.size else float("inf")


# What to run it on ----------------------------------------------------------------------------------------------------


def larger_size(cut: Cut, native: Sequence[int]) -> tuple[int, ...]:
    """An image with some more windows along each axis, a different number along each; of a dilated map, every phase."""
    steps = {a.image: max(a.grid, a.stride * a.rate) for a in cut.fact.space}
    more = itertools.cycle((2, 1, 1) if len(native) > 1 else (3,))
    return tuple(n + int(m * max(1, steps.get(k, 1))) for k, (n, m) in enumerate(zip(native, more)))


def sampled(grid: Sequence[int], random: np.random.Generator) -> list[tuple[int, ...]]:
    """Positions on a grid: the corners, and some between."""
    corners = list(dict.fromkeys(itertools.product(*((0, n - 1) for n in grid))))
    others = [p for p in np.ndindex(*grid) if p not in set(corners)]
    chosen = random.permutation(len(others))[: max(0, WINDOWS - len(corners))]
    return corners + [others[k] for k in sorted(chosen)]


def _batches(c: Comparison) -> list[int]:
    image = c.state.image
    if image.batch is None:
        return [1]
    declared = static_dims(c.inputs[image.name])[image.batch]
    if declared is not None:
        return [declared]
    return [1, BATCHES] if c.state.batch == BATCH else [c.state.batch]


def _shape(c: Comparison, name: str, size: Sequence[int], batch: int) -> tuple[int, ...]:
    image = c.state.image
    if name == image.name:
        shape = list(image.shape)
        if image.batch is not None:
            shape[image.batch] = batch
        for axis, pixels in zip(image.space, size):
            shape[axis] = pixels
        return tuple(shape)
    dims = static_dims(c.inputs[name])
    return tuple((batch if k == 0 else 1) if d is None else d for k, d in enumerate(dims))


def random_feeds(c: Comparison, size: Sequence[int], batch: int) -> dict[str, Array]:
    """Random values for every input."""
    feeds = {}
    for name, declared in c.inputs.items():
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type))
        shape = _shape(c, name, size, batch)
        if kind.kind == "f" or str(kind) == "bfloat16":
            feeds[name] = (c.deviation * c.random.standard_normal(shape)).astype(kind)
        elif kind.kind == "b":
            feeds[name] = c.random.integers(0, 2, shape).astype(kind)
        else:
            feeds[name] = c.random.integers(0, 127 if kind.itemsize == 1 and kind.kind == "i" else 256, shape).astype(
                kind
            )
    return feeds


def _tolerance(document: Document) -> float:
    """The tolerance of the coarsest arithmetic in a model."""
    graph = document.proto.graph
    operators = {n.op_type for n in graph.node}
    rounded = any("Quantize" in o or "Integer" in o or o.startswith("QLinear") or o == "QGemm" for o in operators)
    types = {t.data_type for t in graph.initializer} | {i.type.tensor_type.elem_type for i in graph.input}
    casts = {a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    if rounded or (types | casts) & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return ROUNDED_TOLERANCE
    return TOLERANCE[np.dtype(np.float32)]


def _same_graph(a: Document, b: Document) -> bool:
    return [n.name for n in a.proto.graph.node] == [n.name for n in b.proto.graph.node]
