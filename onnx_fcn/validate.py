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

#: Operators whose results saturate or discard: what enters them is compared too.
HIDING = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "HardSigmoid", "ArgMax", "ArgMin", "TopK", "Hardmax", "Clip"}
)
THROUGH = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose"})


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        kind: ``native``, ``law``, ``trunk`` or ``crops``.
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
            "trunk": "the trunk on a larger image",
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
    checks: list[Check] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.inputs = {i.name: i for i in data_inputs(self.original)}
        self.outputs = [o.name for o in self.original.proto.graph.output]
        self.tolerance = _tolerance(self.original)
        self.hidden = (
            self._hidden() if self.lifted is self.converted or _same_graph(self.lifted, self.converted) else {}
        )
        self.facts: dict[str, Lifted] = {**self.state.results, **self.hidden}

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

    Raises:
        ModelError: onnxruntime cannot run the original.
        ValidationError: it cannot run the converted model.
    """
    native = _Native(comparison)
    native.check(data)
    comparison.checks += _law(comparison, native, data)
    return Validation(tuple(comparison.checks))


class _Native:
    """Both models, and their answers at the native size."""

    def __init__(self, comparison: Comparison) -> None:
        self.c = comparison
        c = comparison
        self.original = session(c.original, with_outputs(c.original, c.hidden))
        extra = [fact.map for fact in c.hidden.values()]
        try:
            self.converted = session(c.converted, with_outputs(c.converted, extra))
        except ModelError as error:
            raise ValidationError(f"onnxruntime cannot load the converted model: {error}") from None
        self.names = [*c.outputs, *c.hidden]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answers of the original, by its own names."""
        return dict(zip(self.names, self.original(feeds)))

    def run_converted(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answers of the converted model, by the names of the original's tensors."""
        try:
            answers = dict(zip(self.names, self.converted(feeds)))
        except ModelError as error:
            raise ValidationError(f"onnxruntime cannot run the converted model: {error}") from None
        shape = next((list(answers[n].shape) for n in self.c.state.results if answers[n].ndim > 2), [])
        for name, fact in self.c.hidden.items():
            if fact.folded:  # (1, C, 1, N·grid)
                seen = answers[name].reshape(fact.width, shape[0], *shape[2:])
                answers[name] = np.moveaxis(seen, 0, 1)
        return answers

    def check(self, data: Mapping[str, Array] | None) -> None:
        """Compare on random images, with every batch that the original runs, and on given ones of the native size."""
        c = self.c
        for batch in _batches(c):
            c.progress(f"native size, batch {batch}")
            feeds = random_feeds(c, c.state.image.size, batch)
            try:
                expected = self.run(feeds)
            except ModelError:
                if batch == _batches(c)[0]:
                    raise
                continue  # the graph bakes another batch
            self._compare(expected, self.run_converted(feeds), c.state.image.size, batch, "")
        if data is not None and all(tuple(data[n].shape[1:]) == _shape(c, n, c.state.image.size, 1)[1:] for n in data):
            feeds = {**random_feeds(c, c.state.image.size, len(next(iter(data.values())))), **data}
            self._compare(self.run(feeds), self.run_converted(feeds), c.state.image.size, len(feeds), "given data")

    def _compare(
        self, expected: dict[str, Array], got: dict[str, Array], size: tuple[int, ...], batch: int, note: str
    ) -> None:
        c = self.c
        for name, want in expected.items():
            have = got[name]
            if have.size != want.size:
                error, said = np.inf, f"has shape {have.shape} where the original has {want.shape}"
            else:
                fact = c.facts.get(name)
                fits = fact is not None and have.ndim == 2 + len(fact.space) and c.state.has_head
                seen = original_at(fact, have, (0,) * len(fact.space)) if fits and fact is not None else have
                error, said = difference(seen.reshape(want.shape), want), note
            c.checks.append(Check("native", name, size, batch, want.size, error, c.tolerance, said))


def _law(c: Comparison, native: _Native, data: Mapping[str, Array] | None) -> Iterator[Check]:
    """The law, the trunk and the crops on a larger image."""
    cut = find_cut(c.state)
    if cut is None:
        return
    image = c.state.image
    size = larger_size(cut, image.size)
    big = {k: v for k, v in (data or {}).items() if k == image.name and v.ndim == len(image.shape)}
    batch = _batches(c)[0]
    feeds = random_feeds(c, size, batch)
    for name, array in big.items():
        sizes = tuple(array.shape[a] for a in image.space)
        if all(a >= b for a, b in zip(sizes, image.size)) and sizes != image.size:
            feeds, size = {**feeds, name: array[:batch].astype(feeds[name].dtype)}, sizes
    shown = "×".join(map(str, size))
    c.progress(f"law at {shown}")
    trunk_map = c.state.renamed.get(cut.fact.map, cut.fact.map)
    trunk = session(c.lifted, extract(c.lifted.proto, [image.name], [trunk_map]))
    fmap = feeds[image.name] if trunk_map == image.name else trunk(feeds)[0]
    yield from _trunk(c, cut, fmap, feeds, size, batch)
    answers = native.run_converted(feeds)
    if not c.state.has_head:
        return
    head = session(c.original, extract(c.original.proto, [cut.name, *c.inputs], native.names))
    windows = [(n - a.extent) // a.step + 1 for n, a in zip(fmap.shape[2:], cut.fact.space)]
    still = random_feeds(c, image.size, batch)
    for name, fact in c.facts.items():
        yield from _grid(c, name, fact, answers[name], cut, windows, size, batch)
    ratios = [_ratios(f, cut) for f in c.facts.values()]
    step = [max(r[k] for r in ratios) for k in range(len(windows))]
    positions = sampled([-(-w // s) for w, s in zip(windows, step)], c.random)
    law = dict.fromkeys(c.facts, 0.0)
    crops = dict.fromkeys(c.facts, 0.0)
    for k, cell in enumerate(positions):
        c.progress(f"law at {shown}: window {k + 1} of {len(positions)}")
        at = [p * s for p, s in zip(cell, step)]
        window = original_at(cut.fact, fmap, at)
        feed = {**feeds, image.name: still[image.name], cut.name: window.astype(fmap.dtype)}
        wanted = dict(zip(native.names, head(feed)))
        for name, fact in c.facts.items():
            seen = _cell(fact, answers[name], at, cut)
            law[name] = max(law[name], _shaped_difference(seen, wanted[name]))
    exact = is_exact(c.state)
    for k, cell in enumerate(positions):
        c.progress(f"crops at {shown}: {k + 1} of {len(positions)}")
        at = [p * s for p, s in zip(cell, step)]
        offsets = [0] * len(image.space)
        for axis, p in zip(cut.fact.space, at):
            if axis.image is not None:
                offsets[axis.image] = int(p * axis.grid)
        index = [slice(None)] * len(image.shape)
        for k, offset, extent in zip(image.space, offsets, image.size):
            index[k] = slice(offset, offset + extent)
        crop = native.run({**feeds, image.name: np.ascontiguousarray(feeds[image.name][tuple(index)])})
        for name, fact in c.facts.items():
            crops[name] = max(crops[name], _shaped_difference(_cell(fact, answers[name], at, cut), crop[name]))
    for name, error in law.items():
        yield Check("law", name, size, batch, len(positions), error, c.tolerance)
    why = "" if exact else why_not_exact(c.state)
    for name, error in crops.items():
        yield Check("crops", name, size, batch, len(positions), error, c.tolerance if exact else None, why)


def _trunk(
    c: Comparison, cut: Cut, fmap: Array, feeds: Mapping[str, Array], size: tuple[int, ...], batch: int
) -> Iterator[Check]:
    """Is the feature map that of the original trunk, where that runs at another size at all?"""
    if cut.name == c.state.image.name:
        return
    try:
        want = session(c.original, extract(c.original.proto, [c.state.image.name], [cut.name]))(feeds)[0]
    except ModelError:
        return  # sizes are baked into it
    have = map_as_original(cut.fact, fmap)
    if have is not None and have.shape == want.shape:
        yield Check("trunk", cut.name, size, batch, want.size, difference(have, want), c.tolerance)


def _grid(
    c: Comparison,
    name: str,
    fact: Lifted,
    answer: Array,
    cut: Cut,
    windows: Sequence[int],
    size: tuple[int, ...],
    batch: int,
) -> Iterator[Check]:
    """Does the map of answers have a cell for every window?"""
    ratios = _ratios(fact, cut)
    by_image = {a.image: -(-w // r) for a, w, r in zip(cut.fact.space, windows, ratios)}
    want = tuple(by_image.get(a.image, 1) for a in fact.space)
    if answer.shape[2:] != want:
        note = f"is a grid of {answer.shape[2:]} where there are {want} windows"
        yield Check("law", name, size, batch, 0, np.inf, c.tolerance, note)


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


def map_as_original(fact: Lifted, physical: Array) -> Array | None:
    """A whole map with the axes of the original; None where its layout is not plain."""
    axes = [(fact.batch,) if fact.batch.size > 1 else (), fact.channels, *(a.atoms for a in fact.space)]
    if not fact.is_plain or len(axes) != fact.rank or len(set(map(tuple, axes))) < len(axes):
        return None
    return physical.transpose([axes.index(group) for group in fact.layout])


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
    more = itertools.cycle((3, 2, 1))
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
    serialized, folder = document.session_model(model)
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        runner = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"onnxruntime does not load the model: {_first_line(error)}") from error
    names = {i.name for i in runner.get_inputs()}

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return list(runner.run(None, {k: v for k, v in feeds.items() if k in names}))
        except Exception as error:
            raise ModelError(f"onnxruntime does not run the model: {_first_line(error)}") from error

    return run


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


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
