"""onnxruntime against the original: is it the same network?

Three questions, the first two of which decide:

    native   at the native size, is the answer the same?
    law      on a larger image, is every cell the original head on its window of the feature map?
    crops    on a larger image, is every cell the original network on its crop of the image?

The law holds for every network. The last holds only where nothing pads and nothing sees the whole image: a crop sees
zeros beyond its border where the large image has pixels. So crops are measured always, and decide only then.

Outputs that saturate (a softmax is 0 or 1 for most inputs) would hide faults, so what enters them is compared too.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from onnx_fcn.document import Document, names_used
from onnx_fcn.errors import ModelError, ValidationError
from onnx_fcn.interpret import BATCH, Walk
from onnx_fcn.known import Array
from onnx_fcn.lifted import Atom, Lifted
from onnx_fcn.lifting import Cut, data_inputs, find_cut, static_dims

__all__ = ["Check", "Validation", "run_checks"]

#: Largest difference allowed, relative to the largest answer. A Conv and a Gemm add the same products in another
#: order: n of them differ by about √n·ε, which is 2e-5 for the 25,088 inputs of VGG's first dense layer; several
#: layers and a cancellation of large terms may add a digit.
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4, np.dtype(np.float16): 2e-2}

#: A network that rounds its activations to 8 or 16 bits may round one of them the other way: one step of many.
ROUNDED_TOLERANCE = 2e-2

#: Answers below this are compared absolutely: a network of zero weights answers zero.
SMALLEST_SCALE = 1e-6

#: Windows that the law is checked on: the corners, and some between.
WINDOWS = 9

#: Crops that are compared where they need not agree: enough to see by how much they do not.
INFORMATIVE_CROPS = 1

#: Operators whose results saturate or discard: what enters them is compared too.
HIDING = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "HardSigmoid", "ArgMax", "ArgMin", "TopK", "Hardmax", "Clip"}
)
THROUGH = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose"})


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        kind: ``native``, ``law`` or ``crops``.
        subject: what was compared, such as an output's name.
        size: the size of the image, in pixels.
        batch: images at once.
        compared: windows, or elements.
        error: largest difference relative to the largest answer; NaN where it could not be measured.
        tolerance: the largest error allowed; None for what is only information.
        note: a sentence.
    """

    kind: str
    subject: str
    size: tuple[int, ...]
    batch: int
    compared: int
    error: float
    tolerance: float | None
    note: str = ""

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
    """

    original: Document
    state: Walk
    lifted: Document
    converted: Document
    seed: int = 0
    progress: Progress = lambda _: None

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.inputs = {i.name: i for i in data_inputs(self.original)}
        self.outputs = [o.name for o in self.original.proto.graph.output]
        self.tolerance = _tolerance(self.original)
        self.hidden = (
            self._hidden() if self.lifted is self.converted or _same_graph(self.lifted, self.converted) else {}
        )
        self.facts: dict[str, Lifted] = {**self.state.results, **self.hidden}
        self.names = [*self.outputs, *self.hidden]

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

    One model is open at a time, so that the weights of one only are mapped.

    Raises:
        ModelError: onnxruntime cannot run the original.
        ValidationError: it cannot run the converted model.
    """
    c = comparison
    cases = _native_cases(c, data)
    wide = _wide_case(c, data)
    _ask_original(c, cases, wide)
    if wide is not None:
        _ask_head(c, wide)
    _ask_converted(c, cases, wide)
    checks = [check for case in cases for check in _native_checks(c, case)]
    if wide is not None:
        checks += _wide_checks(c, wide)
    return Validation(tuple(checks))


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
    """

    size: tuple[int, ...]
    batch: int
    feeds: dict[str, Array]
    note: str = ""
    expected: Answers = field(default_factory=dict)
    got: Answers = field(default_factory=dict)


@dataclass
class Wide(Case):
    """A larger image.

    Attributes:
        cut: the map that the law is about.
        map: that map of this image, (N, C, *space).
        positions: the windows that are compared, as cells of the cut's grid.
        windows: the original head's answers for these windows.
        crops: the original's answers for the crops of the first of them.
    """

    cut: Cut | None = None
    map: Array = field(default_factory=lambda: np.zeros(0))
    positions: list[list[int]] = field(default_factory=list)
    windows: list[Answers] = field(default_factory=list)
    crops: list[Answers] = field(default_factory=list)

    @property
    def grid(self) -> list[int]:
        """Windows of the cut along each axis."""
        assert self.cut is not None
        return [(n - a.extent) // a.step + 1 for n, a in zip(self.map.shape[2:], self.cut.fact.space)]


def _native_cases(c: Comparison, data: Mapping[str, Array] | None) -> list[Case]:
    """Random images of the native size, with every batch that is free, and given ones."""
    size = c.state.image.size
    cases = [Case(size, batch, random_feeds(c, size, batch)) for batch in _batches(c)]
    if data is not None and all(tuple(data[n].shape[1:]) == _shape(c, n, size, 1)[1:] for n in data):
        count = len(next(iter(data.values())))
        cases.append(Case(size, count, {**random_feeds(c, size, count), **data}, "given data"))
    return cases


def _wide_case(c: Comparison, data: Mapping[str, Array] | None) -> Wide | None:
    """A larger image with its feature map: a given one, or a random one. None where nothing slides."""
    cut = find_cut(c.state)
    if cut is None:
        return None
    image, batch = c.state.image, _batches(c)[0]
    size = larger_size(cut, image.size)
    feeds = random_feeds(c, size, batch)
    given = (data or {}).get(image.name)
    if given is not None and given.ndim == len(image.shape):
        sizes = tuple(given.shape[a] for a in image.space)
        if sizes != image.size and all(have >= native for have, native in zip(sizes, image.size)):
            feeds, size = {**feeds, image.name: given[:batch].astype(feeds[image.name].dtype)}, sizes
    c.progress(f"feature map at {_spelled(size)}")
    wide = Wide(size, batch, feeds, cut=cut, map=_feature_map(c, cut, feeds))
    steps = [max(k) for k in zip(*(_ratios(f, cut) for f in c.facts.values()))] or [1] * len(wide.grid)
    cells = sampled([-(-w // s) for w, s in zip(wide.grid, steps)], c.random)
    wide.positions = [[p * s for p, s in zip(cell, steps)] for cell in cells]
    return wide


def _feature_map(c: Comparison, cut: Cut, feeds: Mapping[str, Array]) -> Array:
    """The cut's map of an image (N, C, *space): of the original trunk, or of the lifted one where sizes are baked."""
    image = c.state.image.name
    name = c.state.renamed.get(cut.fact.map, cut.fact.map)
    lifted = extract(c.lifted.proto, [image], [name])
    if cut.name != image:
        with contextlib.suppress(ModelError):
            seen = session(c.original, extract(c.original.proto, [image], [cut.name]))(feeds)[0]
            physical = as_physical(cut.fact, seen)
            if physical is not None and physical.shape[2:] == _map_extents(c, cut, feeds):
                return physical
    return feeds[image] if name == image else session(c.lifted, lifted)(feeds)[0]


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


def _ask_original(c: Comparison, cases: list[Case], wide: Wide | None) -> None:
    """The original's answers at the native size and for crops; batches that it does not run are dropped."""
    run = session(c.original, with_outputs(c.original, c.hidden))
    for case in list(cases):
        c.progress(f"original at the native size, batch {case.batch}")
        try:
            case.expected = dict(zip(c.names, run(case.feeds)))
        except ModelError:
            if case is cases[0] or case.note:
                raise
            cases.remove(case)  # the graph bakes another batch
    if wide is None or not c.state.has_head:
        return
    crops = wide.positions if is_exact(c.state) else wide.positions[-INFORMATIVE_CROPS:]
    for k, position in enumerate(crops):
        c.progress(f"crops at {_spelled(wide.size)}: {k + 1} of {len(crops)}")
        wide.crops.append(dict(zip(c.names, run(_cropped(c, wide, position)))))


def _cropped(c: Comparison, wide: Wide, position: Sequence[int]) -> dict[str, Array]:
    """The inputs with the image cut to one window."""
    assert wide.cut is not None
    image = c.state.image
    offsets = {a.image: int(p * a.grid) for a, p in zip(wide.cut.fact.space, position)}
    index = [slice(None)] * len(image.shape)
    for k, (axis, extent) in enumerate(zip(image.space, image.size)):
        index[axis] = slice(offsets.get(k, 0), offsets.get(k, 0) + extent)
    return {**wide.feeds, image.name: np.ascontiguousarray(wide.feeds[image.name][tuple(index)])}


def _ask_head(c: Comparison, wide: Wide) -> None:
    """The original head's answers for windows of the feature map, all at once where the batch is free."""
    assert wide.cut is not None
    if not c.state.has_head:
        return
    cut, image = wide.cut, c.state.image
    head = session(c.original, extract(c.original.proto, [cut.name, *c.inputs], c.names))
    windows = [original_at(cut.fact, wide.map, p).astype(wide.map.dtype) for p in wide.positions]
    feeds = {**wide.feeds, image.name: random_feeds(c, image.size, wide.batch)[image.name]}
    c.progress(f"head on {len(windows)} windows at {_spelled(wide.size)}")
    together = c.state.batch == BATCH and wide.batch == 1 and len(c.inputs) == 1 and not c.state.context
    batch_axis = next((k for k, g in enumerate(cut.fact.layout) if g == (cut.fact.batch,)), None)
    if together and batch_axis is not None and all(f.has_batch for f in c.facts.values()):
        with contextlib.suppress(ModelError):
            answers = head({**feeds, cut.name: np.concatenate(windows, batch_axis)})
            axes = [next(k for k, g in enumerate(c.facts[n].layout) if g == (c.facts[n].batch,)) for n in c.facts]
            split = [np.split(a, len(windows), axis) for a, axis in zip(_of(c, answers), axes)]
            wide.windows = [dict(zip(c.facts, each)) for each in zip(*split)]
            return
    wide.windows = [dict(zip(c.names, head({**feeds, cut.name: window}))) for window in windows]


def _of(c: Comparison, answers: Sequence[Array]) -> list[Array]:
    """Of all answers, those that have facts, in the order of the facts."""
    by_name = dict(zip(c.names, answers))
    return [by_name[name] for name in c.facts]


def _ask_converted(c: Comparison, cases: Sequence[Case], wide: Wide | None) -> None:
    """The converted model's answers."""
    try:
        run = session(c.converted, with_outputs(c.converted, [fact.map for fact in c.hidden.values()]))
        for case in [*cases, *([wide] if wide is not None else [])]:
            c.progress(f"converted model at {_spelled(case.size)}, batch {case.batch}")
            case.got = _unfolded(c, dict(zip(c.names, run(case.feeds))))
    except ModelError as error:
        raise ValidationError(f"the converted model fails: {error}") from None


def _unfolded(c: Comparison, answers: Answers) -> Answers:
    """The answers with (1, C, 1, N·grid) as (N, C, *grid), where the batch was folded around the head."""
    shape = next((list(answers[n].shape) for n in c.state.results if answers[n].ndim > 2), [])
    for name, fact in c.hidden.items():
        if fact.folded:
            answers[name] = np.moveaxis(answers[name].reshape(fact.width, shape[0], *shape[2:]), 0, 1)
    return answers


def _native_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """Is the answer at the native size the same?"""
    for name, want in case.expected.items():
        have, fact, note = case.got[name], c.facts.get(name), case.note
        if have.size != want.size:
            error, note = np.inf, f"has shape {have.shape} where the original has {want.shape}"
        else:
            if fact is not None and have.ndim == 2 + len(fact.space) and c.state.has_head:
                have = original_at(fact, have, [0] * len(fact.space))
            error = difference(have.reshape(want.shape), want)
        yield Check("native", name, case.size, case.batch, want.size, error, c.tolerance, note)


def _wide_checks(c: Comparison, wide: Wide) -> Iterator[Check]:
    """Is every cell the original head on its window? Is it the original on its crop?"""
    assert wide.cut is not None
    if not c.state.has_head:
        return
    exact, cut = is_exact(c.state), wide.cut
    why = "" if exact else why_not_exact(c.state)
    for name, fact in c.facts.items():
        answer = wide.got[name]
        by_image = {a.image: -(-w // r) for a, w, r in zip(cut.fact.space, wide.grid, _ratios(fact, cut))}
        grid = tuple(by_image.get(a.image, 1) for a in fact.space)
        if answer.shape[2:] != grid:
            note = f"is a grid of {answer.shape[2:]} where there are {grid} windows"
            yield Check("law", name, wide.size, wide.batch, 0, np.inf, c.tolerance, note)
            continue
        cells = [_cell(fact, answer, at, cut) for at in wide.positions]
        law = max(_shaped_difference(cell, want[name]) for cell, want in zip(cells, wide.windows))
        yield Check("law", name, wide.size, wide.batch, len(wide.windows), law, c.tolerance)
        crops = max(_shaped_difference(cell, want[name]) for cell, want in zip(cells[-len(wide.crops) :], wide.crops))
        yield Check("crops", name, wide.size, wide.batch, len(wide.crops), crops, c.tolerance if exact else None, why)


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
    index: list[Any] = [slice(None), slice(None)]
    for axis, p in zip(fact.space, position):
        start = p * axis.step
        index.append(slice(start, start + axis.extent, axis.rate))
    window: Array = physical[tuple(index)]
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
    scale = max(SMALLEST_SCALE, float(np.abs(b[finite]).max()))
    return float(np.abs(a[finite] - b[finite]).max()) / scale


def _shaped_difference(have: Array, want: Array) -> float:
    return difference(have.reshape(want.shape), want) if have.size == want.size else float("inf")


def is_exact(state: Walk) -> bool:
    """Does a cell equal the crop of its window: does nothing pad and nothing see the whole image?"""
    return not state.context and not any(s.slides is not None and s.slides.pads for s in state.seats)


def why_not_exact(state: Walk) -> str:
    """Why cells differ from crops, in a sentence."""
    padded = [s.name for s in state.seats if s.slides is not None and s.slides.pads]
    if state.context:
        names = ", ".join(f"'{state.seats[k].name}'" for k in sorted(state.context)[:3])
        return f"{names} sees the whole image, which differs from a crop"
    return (
        f"'{padded[0]}'{' and others pad' if len(padded) > 1 else ' pads'}: a crop sees zeros where the image goes on"
    )


# What to run it on ----------------------------------------------------------------------------------------------------


def larger_size(cut: Cut, native: Sequence[int]) -> tuple[int, ...]:
    """An image with some more windows along each axis, a different number along each."""
    grids = {a.image: a.grid for a in cut.fact.space}
    more = itertools.cycle((2, 1, 1) if len(native) > 1 else (3,))
    return tuple(n + int(m * max(1, grids.get(k, 1))) for k, (n, m) in enumerate(zip(native, more)))


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
    return [1, 3] if c.state.batch == BATCH else [c.state.batch]


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
            feeds[name] = c.random.standard_normal(shape).astype(kind)
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


# Models and sessions --------------------------------------------------------------------------------------------------


def session(document: Document, model: ModelProto | None = None) -> Callable[[Mapping[str, Array]], list[Array]]:
    """A runnable model: `run(feeds) -> outputs`, with its weights mapped from the document's files.

    Optimisations stay basic and weights are not repacked, so that they are not copied.

    Raises:
        ModelError: onnxruntime does not load or run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # these keep their peak
    serialized, folder = document.session_model(model)
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        runner = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"onnxruntime does not load the model: {_message(error)}") from error
    names = {i.name for i in runner.get_inputs()}

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return list(runner.run(None, {k: v for k, v in feeds.items() if k in names}))
        except Exception as error:
            raise ModelError(f"onnxruntime does not run the model: {_message(error)}") from error

    return run


def _message(error: Exception) -> str:
    """What onnxruntime says, on one line: the interesting part of it is often the last."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 400 else f"{words[:150]} … {words[-240:]}"


def with_outputs(document: Document, names: Iterable[str]) -> ModelProto | None:
    """The model with more outputs."""
    names = list(names)
    if not names:
        return None
    model = ModelProto()
    model.CopyFrom(document.proto)
    model.graph.output.extend(ValueInfoProto(name=n) for n in names)
    return model


def extract(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The part of a model between some tensors, of any shapes."""
    graph = model.graph
    producer = {o: k for k, n in enumerate(graph.node) for o in n.output if o}
    wanted, kept = [o for o in outputs if o not in inputs], set()
    while wanted:
        name = wanted.pop()
        k = producer.get(name)
        if k is not None and name not in inputs and k not in kept:
            kept.add(k)
            wanted += names_used(graph.node[k])
    nodes = [graph.node[k] for k in sorted(kept)]
    used = {n for node in nodes for n in names_used(node)} | set(outputs)
    made = ModelProto()
    made.CopyFrom(ModelProto(ir_version=model.ir_version))
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = graph.name or "part"
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(t for t in graph.initializer if t.name in used)
    made.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in used)
    stored = {t.name for t in made.graph.initializer}
    types = element_types(model)
    for name in dict.fromkeys((*inputs, *(i.name for i in graph.input if i.name in stored))):
        if name in used:
            made.graph.input.append(onnx.helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None))
    made.graph.output.extend(ValueInfoProto(name=o) for o in outputs)
    return made


def element_types(model: ModelProto) -> dict[str, int]:
    """Element types of the tensors of a model, as far as they can be inferred."""
    stripped = ModelProto()
    stripped.CopyFrom(model)
    del stripped.graph.value_info[:]
    with contextlib.suppress(Exception):  # it refuses some valid models; then the declared types have to do
        stripped = onnx.shape_inference.infer_shapes(stripped)
    graph = stripped.graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
