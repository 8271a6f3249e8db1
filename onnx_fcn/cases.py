"""What two models are compared on: images of the native size, a larger one, and what both are asked about them.

A `Comparison` is the two models at hand, with all that is known of them before anything runs. A `Case` is an image or a
batch of images, and what both models answered; a `Wide` one is larger than native, and has a feature map and windows.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import onnx

from onnx_fcn.agreement import ROUNDED_TOLERANCE, Scale, batch_axis, tolerance_of
from onnx_fcn.document import Document
from onnx_fcn.given import Given
from onnx_fcn.inputs import data_inputs, static_dims
from onnx_fcn.interpret import Walk
from onnx_fcn.known import Array
from onnx_fcn.lifted import BATCH, Lifted
from onnx_fcn.lifting import Cut, cuts_of, upstream
from onnx_fcn.placement import geometry_of
from onnx_fcn.selection import THROUGH
from onnx_fcn.sessions import random_values
from onnx_fcn.sizes import largest_factor, long_size, uneven_size, wide_size

__all__ = [
    "BATCHES",
    "DEVIATIONS",
    "LEAST_BOUNDED",
    "Answers",
    "Case",
    "Comparison",
    "Wide",
    "batches_of",
    "cropped",
    "fed_cut",
    "has_crop",
    "largest_of",
    "long_case",
    "louder",
    "native_cases",
    "offsets_of",
    "own_scale",
    "period_of",
    "periods_of",
    "positions_of",
    "random_feeds",
    "ratios_of",
    "sampled",
    "shaken",
    "takes_batches",
    "uneven_case",
    "wide_case",
]

#: Deviations of the random images. A network that answers the same everywhere, as one that was trained on bytes may to
#: noise of deviation 1, is asked again with more.
DEVIATIONS = (1.0, 16.0, 255.0)

#: Windows that the law is checked on: the corners, and some between. Of a long image both ends are, and some between.
WINDOWS, FAR_WINDOWS = 9, 5

#: Multiply-accumulates that a long image may take; and how many times the native ones in any case where a trunk
#: computes with the places of cells: its arithmetic is not the same everywhere, so that far out is worth more there.
LONG_BUDGET, PLACES_FACTOR = 7e8, 3

#: Operators that compute with places.
PLACES = frozenset({"CumSum", "GridSample", "NonZero", "Range", "Resize", "Upsample"})

#: Images at once, where the batch is free.
BATCHES = 3

#: Operators whose results saturate or discard: what enters them is compared too.
HIDING = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "HardSigmoid", "ArgMax", "ArgMin", "TopK", "Hardmax", "Clip"}
)

#: So many of these at most: a head has a few, and each is one more tensor that both models give out.
MOST_HIDDEN = 32

#: Of these the result is as exact as 1 is, however small it is. Where what enters them is compared, answers below a
#: hundredth are compared absolutely.
BOUNDED = frozenset({"Softmax", "Sigmoid", "HardSigmoid"})
LEAST_BOUNDED = 1e-2

#: Operators that add up products of weights, and those through which each result stays as exact as its terms are.
SUMS = frozenset({"Gemm", "MatMul", "Conv"})
AFFINE = THROUGH | {"Add", "Sub", "Mul", "Div", "BatchNormalization", "ReduceMean", "GlobalAveragePool", "AveragePool"}

#: How far the feature map is shaken, relative to its root mean square, to see what hangs on it: far more than
#: rounding does, and little enough to stay on the same side of most kinks.
SHAKE = 1e-2

#: How many times the change that the whole map makes, by that slope, an answer counts as: its rounding comes of terms
#: that may have cancelled.
MARGIN = 10

Progress = Callable[[str], None]

Answers = dict[str, Array]


@dataclass
class Comparison:
    """The two models at hand, with what is known of them.

    Attributes:
        given: the model as it was given; the answers of its file are those to be reproduced.
        original: the network in it that was lifted.
        state: the walk that lifted it.
        lifted: the result of that walk, whose trunk gives the feature map.
        converted: the file that is judged: that result, or what another tool made of it.
        scales: what differences of each tensor are relative to, where that is not the largest answer.
        rounds: whether its arithmetic is coarser than single floats: no slope or size tells how it rounds.
        affine: tensors whose answers are sums of products, each with a rounding of its own.
        exact: whether the cells of a map have to equal crops.
        macs: multiply-accumulates of the original on one image, where they are known.
        is_ours: whether the judged file is our result; the tensors of another tool's may have any names.
        maps: for each output that is more than its map of answers, and for each tensor in front of a saturating
            operator, the tensor of the converted model that is the map.
    """

    given: Given
    state: Walk
    lifted: Document
    converted: Document
    seed: int = 0
    progress: Progress = lambda _: None
    macs: int | None = None

    def __post_init__(self) -> None:
        self.original = self.given.selected
        self.deviation = DEVIATIONS[0]
        self.random = np.random.default_rng(self.seed)
        self.inputs = {i.name: i for i in data_inputs(self.original)}
        self.outputs = [o.name for o in self.original.proto.graph.output]
        self.tolerance = tolerance_of(self.original)
        self.rounds = self.tolerance >= ROUNDED_TOLERANCE
        self.answers = geometry_of(self.state).outputs
        self.is_ours = self.lifted is self.converted or _same_graph(self.lifted, self.converted)
        self.scales: dict[str, Scale] = {}
        producer = {o: n for n in self.original.proto.graph.node for o in n.output if o}
        self.hidden = self._hidden(producer) if self.is_ours else {}
        self.facts: dict[str, Lifted] = {**self.state.results, **self.hidden}
        every = all(a.exactness == "exact" for a in self.answers.values())
        self.exact = {n: self.answers[n].exactness == "exact" if n in self.answers else every for n in self.facts}
        self.names = [*self.outputs, *self.hidden]
        self.affine = {n for n in self.facts if not self.rounds and self._is_affine(n, producer)}
        renamed = self.state.renamed
        maps = {name: renamed.get(m := self.state.results[name].map, m) for name in self.state.finals}
        if self.keeps_size:
            maps = {}
        self.maps = {**maps, **{name: fact.map for name, fact in self.hidden.items()}}

    @property
    def keeps_size(self) -> bool:
        """Does the converted model take images of the native size only?"""
        return any(final.form == "keep-size" for final in self.state.finals.values())

    def scale_of(self, name: str, case: Case) -> Scale:
        """What differences of a tensor are relative to.

        The answers for one window may be small because large terms cancel, which were rounded when they were large.
        Where nothing else tells how large these are, those for the other windows do.
        """
        scale = self.scales.get(name, Scale())
        if self.rounds and isinstance(case, Wide):
            return Scale(max([scale.least, *(largest_of(answers[name]) for answers in case.windows)]))
        return Scale(scale.least) if case.loud else scale

    def _hidden(self, producer: Mapping[str, onnx.NodeProto]) -> dict[str, Lifted]:
        """Tensors of the head in front of saturating operators, with their facts as they are named in the result.

        The nearest to the outputs are found first. An output that is nothing but saturated is compared as such.
        """
        found: dict[str, Lifted] = {}
        have = {o for n in self.lifted.proto.graph.node for o in n.output}
        waiting = deque((name, name) for name in self.outputs)  # a tensor, and the output that it is but for saturation
        seen = set(waiting)
        while waiting and len(found) < MOST_HIDDEN:
            name, output = waiting.popleft()
            node = producer.get(name)
            if node is None:
                continue
            for k, operand in enumerate(node.input):
                fact = self.state.facts.get(operand)
                if not isinstance(fact, Lifted) or fact.is_live:
                    continue
                step = operand, output if node.op_type in HIDING | THROUGH else ""
                if step not in seen:
                    seen.add(step)
                    waiting.append(step)
                renamed = self.state.renamed.get(fact.map, fact.map)
                hides = k == 0 and node.op_type in HIDING
                if hides and operand not in self.outputs and operand in producer and renamed in have:
                    found[operand] = fact.on(renamed)
                    if output and node.op_type in BOUNDED:
                        self.scales[output] = Scale(LEAST_BOUNDED)
        return found

    def _is_affine(self, name: str, producer: Mapping[str, onnx.NodeProto], depth: int = 64) -> bool:
        """Is a tensor made of sums of products, by what keeps the rounding of each?"""
        node = producer.get(name)
        if node is None or depth == 0:
            return False
        lifted = [k for k, n in enumerate(node.input) if isinstance(self.state.facts.get(n), Lifted)]
        if node.op_type in SUMS:
            return len(lifted) == 1
        if node.op_type in ("Mul", "Div") and len(lifted) != 1:
            return False
        return node.op_type in AFFINE and all(self._is_affine(node.input[k], producer, depth - 1) for k in lifted)


@dataclass
class Case:
    """One image, or batch of images, and what both models answered.

    Attributes:
        size: in pixels.
        batch: images at once.
        feeds: all inputs.
        note: what is said of it in the report.
        loud: whether its values are larger than those that `Comparison.scales` was found with.
        expected: the answers of the original.
        got: those of the converted model, by the names of the original's tensors.
        finals: what it makes of them, where that is asked for.
        probabilities: the original's answers behind a closing Softmax, where that was left out.
        logits: what enters it.
        within: the original's values of `Wide.trunk`.
    """

    size: tuple[int, ...]
    batch: int
    feeds: dict[str, Array]
    note: str = ""
    loud: bool = False
    expected: Answers = field(default_factory=dict)
    got: Answers = field(default_factory=dict)
    finals: Answers = field(default_factory=dict)
    probabilities: Answers = field(default_factory=dict)
    logits: Answers = field(default_factory=dict)
    within: Array | None = None


@dataclass
class Wide(Case):
    """A larger image.

    Attributes:
        cut: the map that the law is about.
        trunk: a map of the trunk, up to the cut, that sees no padding in places on an image of the native size.
        most: windows that are compared.
        inner: a window within it, as a cell of the cut's grid, whose crop is the first image of the native size; None
            of an image that has no part in that.
        map: the cut's map of this image, (N, C, *space).
        has_map: whether that is known before the converted model has run, by the original's trunk.
        found: what the converted model makes of `trunk`.
        positions: the windows that are compared, as cells of the cut's grid; `inner` is the last.
        windows: the original head's answers for these windows.
        crops: the original on the crops of the last of them.
    """

    cut: Cut = field(kw_only=True)
    trunk: Cut | None = None
    most: int = WINDOWS
    inner: list[int] | None = None
    map: Array = field(default_factory=lambda: np.zeros(0))
    has_map: bool = False
    found: Array | None = None
    positions: list[list[int]] = field(default_factory=list)
    windows: list[Answers] = field(default_factory=list)
    crops: list[Case] = field(default_factory=list)

    @property
    def grid(self) -> list[int]:
        """Windows of the cut along each axis."""
        return [(n - a.extent) // a.step + 1 for n, a in zip(self.map.shape[2:], self.cut.fact.space)]


def fed_cut(c: Comparison) -> Cut | None:
    """The last map that the original can be fed with: no tensor inside a branch can be. None where nothing slides."""
    named = {c.state.image.name, *(o for node in c.original.proto.graph.node for o in node.output)}
    return None if c.keeps_size else next((k for k in cuts_of(c.state) if k.name in named), None)


def wide_case(c: Comparison, cut: Cut, remainder: Sequence[int], data: Mapping[str, Array] | None) -> Wide:
    """A given larger image, or a random one with some windows more and these pixels left over."""
    image, batch = c.state.image, batches_of(c)[0]
    size = wide_size(image.size, period_of(c, cut), remainder, _most(c))
    feeds = random_feeds(c, size, batch)
    given = (data or {}).get(image.name)
    if given is not None and given.ndim == len(image.shape):
        sizes = tuple(given.shape[a] for a in image.space)
        if sizes != image.size and all(have >= native for have, native in zip(sizes, image.size)):
            feeds, size = {**feeds, image.name: given[:batch].astype(feeds[image.name].dtype)}, sizes
    more = [
        (size[a.image] - image.size[a.image]) // a.grid if a.image is not None else 0 for a in cut.fact.space
    ]  # windows beyond the first
    return Wide(size, batch, feeds, cut=cut, inner=[s if s <= m else 0 for s, m in zip(steps_of(c, cut), more)])


def long_case(c: Comparison, cut: Cut, remainder: Sequence[int]) -> Wide | None:
    """A random image that is long along one axis; None where it would have to be too short to tell anything."""
    image, batch, period = c.state.image, batches_of(c)[0], period_of(c, cut)
    axis, further = (int(c.random.integers(n)) for n in (len(period), max(period)))
    places = any(c.state.seats[k].node.op in PLACES for k in upstream(c.state, cut.name))
    affordable = max(LONG_BUDGET / c.macs if c.macs else math.inf, PLACES_FACTOR if places else 0)
    size = long_size(image.size, period, remainder, axis, further, min(_most(c), affordable))
    return None if size is None else Wide(size, batch, random_feeds(c, size, batch), cut=cut, most=FAR_WINDOWS)


def uneven_case(c: Comparison, remainder: Sequence[int]) -> Case:
    """A random image of hardly more than the native size, with these pixels left over."""
    size, batch = uneven_size(c.state.image.size, remainder, _most(c)), batches_of(c)[0]
    return Case(size, batch, random_feeds(c, size, batch))


def period_of(c: Comparison, cut: Cut | None) -> tuple[int, ...]:
    """Whole pixels from one window to the next, of the cut and of every output, along each axis of the image."""
    periods = {} if cut is None else periods_of(cut)
    strides = [[math.ceil(a.stride[k]) for a in c.answers.values()] for k in range(len(c.state.image.size))]
    return tuple(max(1, math.ceil(periods.get(k, 1)), *given) for k, given in enumerate(strides))


def _most(c: Comparison) -> float:
    """How many times larger than the native image an image may be."""
    image = c.state.image
    return largest_factor(math.prod(n for k, n in enumerate(image.shape) if k != image.batch))


def native_cases(
    c: Comparison, data: Mapping[str, Array] | None, wide: Wide | None, batches: Sequence[int], *, negated: bool
) -> list[Case]:
    """Images of the native size, and given ones. The first is a crop of the larger image: it answers two questions.

    `negated`: that image negated is one more, on which other units are on.
    """
    size = c.state.image.size
    cases = []
    for batch in batches:
        loud = batch > 1 and not c.rounds
        cases.append(Case(size, batch, random_feeds(c, size, batch, loud=loud), loud=loud))
    if wide is not None and wide.inner is not None:
        cases[0].feeds, cases[0].loud = cropped(c, wide, wide.inner), False
    image = cases[0].feeds[c.state.image.name]
    if negated and image.dtype.kind == "f":
        feeds = {**cases[0].feeds, c.state.image.name: -image}
        cases.append(Case(size, cases[0].batch, feeds, "the image negated"))
    others = {n: v for n, v in cases[0].feeds.items() if n != c.state.image.name and v.dtype.kind == "f"}
    if others and not c.rounds:  # what comes of them may hardly count
        feeds = {**cases[0].feeds, **{n: (v * DEVIATIONS[-1]).astype(v.dtype) for n, v in others.items()}}
        cases.append(Case(size, cases[0].batch, feeds, "the other inputs louder", loud=True))
    if data is not None and all(tuple(data[n].shape[1:]) == _shape(c, n, size, 1)[1:] for n in data):
        count = len(next(iter(data.values())))
        cases.append(Case(size, count, {**random_feeds(c, size, count), **data}, "given data"))
    return cases


def steps_of(c: Comparison, cut: Cut) -> list[int]:
    """Windows of the cut from one cell of the coarsest output to the next, along each axis."""
    return [max(k) for k in zip(*(ratios_of(f, cut) for f in c.facts.values()))] or [1] * len(cut.fact.space)


def positions_of(c: Comparison, wide: Wide) -> list[list[int]]:
    """The windows to compare: corners, some between, those with a whole crop last, and any `inner` at the very end.

    The last windows of a dilated map, or of one that is rounded up, may reach beyond the image: they have no crop.
    """
    steps = steps_of(c, wide.cut)
    cells = sampled([-(-w // s) for w, s in zip(wide.grid, steps)], c.random, wide.most)
    found = [[p * s for p, s in zip(cell, steps)] for cell in cells]
    ordered = sorted((p for p in found if p != wide.inner), key=lambda p: has_crop(c, wide, p))
    if wide.inner is None:  # the farthest last
        return sorted(ordered, key=lambda p: (has_crop(c, wide, p), sum(p)))
    return [*ordered, wide.inner]


def cropped(c: Comparison, wide: Wide, position: Sequence[int]) -> dict[str, Array]:
    """The inputs with the image cut to one window."""
    image, offsets = c.state.image, offsets_of(wide, position)
    index = [slice(None)] * len(image.shape)
    for k, (axis, extent) in enumerate(zip(image.space, image.size)):
        index[axis] = slice(offsets.get(k, 0), offsets.get(k, 0) + extent)
    return {**wide.feeds, image.name: np.ascontiguousarray(wide.feeds[image.name][tuple(index)])}


def has_crop(c: Comparison, wide: Wide, position: Sequence[int]) -> bool:
    """Does a window lie within the image?"""
    offsets = offsets_of(wide, position)
    return all(offsets.get(k, 0) + native <= n for k, (native, n) in enumerate(zip(c.state.image.size, wide.size)))


def offsets_of(wide: Wide, position: Sequence[int]) -> dict[int | None, int]:
    """The first pixel of a window along each axis of the image."""
    return {a.image: int(p * a.grid) for a, p in zip(wide.cut.fact.space, position)}


def ratios_of(fact: Lifted, cut: Cut) -> list[int]:
    """Windows of the cut from one cell of a tensor to the next."""
    stride = {a.image: a.stride for a in fact.space}
    return [max(1, int(stride.get(a.image, a.grid) / a.grid)) for a in cut.fact.space]


def periods_of(cut: Cut) -> dict[int | None, Fraction]:
    """Pixels from one window to the next without dilation, along each axis of the image."""
    return {a.image: max(a.grid, a.stride * a.rate) for a in cut.fact.space}


def sampled(grid: Sequence[int], random: np.random.Generator, most: int = WINDOWS) -> list[tuple[int, ...]]:
    """Positions on a grid: the corners, and some between, so many in all."""
    corners = list(dict.fromkeys(itertools.product(*((0, n - 1) for n in grid))))
    others = [p for p in np.ndindex(*grid) if p not in set(corners)]
    chosen = random.permutation(len(others))[: max(0, most - len(corners))]
    return corners + [others[k] for k in sorted(chosen)]


def batches_of(c: Comparison) -> list[int]:
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


def louder(images: Array, axis: int | None) -> Array:
    """A batch whose images have larger and larger values, so that what hides in front of a large bias shows.

    None of them is next to nothing, so that whatever reads a single one shows too. Every third is the one before it,
    negated: a unit that is off there is on here, as far as it depends on the values alone, so that a fault behind it
    shows.
    """
    if axis is None or images.dtype.kind != "f":
        return images
    shape = [1] * images.ndim
    shape[axis] = images.shape[axis]
    numbers = np.arange(images.shape[axis])
    images = images.take(numbers - (numbers % 3 == 2), axis)
    factors = np.resize(np.array(DEVIATIONS) * [1, 1, -1], images.shape[axis]).reshape(shape)
    least = np.sign(images) * np.std(images, dtype=np.float64)
    larger: Array = ((images + least) * factors).astype(images.dtype)
    return larger


def random_feeds(c: Comparison, size: Sequence[int], batch: int, *, loud: bool = False) -> dict[str, Array]:
    """Random values for every input; of a loud batch of images, `louder` ones."""
    feeds = {}
    for name, declared in c.inputs.items():
        feeds[name] = random_values(declared, _shape(c, name, size, batch), c.random, c.deviation)
        if loud and name == c.state.image.name:
            feeds[name] = louder(feeds[name], c.state.image.batch)
    return feeds


def largest_of(answers: Array) -> float:
    """The largest finite answer, by its absolute value."""
    return float(np.abs(answers[np.isfinite(answers)], dtype=np.float64).max(initial=0.0))


def shaken(c: Comparison, feature_map: Array) -> Array:
    """A feature map (N, C, *space) with a little noise: some for each value, as much for each channel as a whole.

    The latter is what an average over many cells does not even out.
    """
    shape = feature_map.shape
    noise = c.random.standard_normal(shape) + c.random.standard_normal((*shape[:2], *[1] * (len(shape) - 2)))
    with np.errstate(invalid="ignore", over="ignore"):  # a map that is not finite tells nothing
        mean_square = np.mean(np.square(feature_map, dtype=np.float64))
        changed: Array = (feature_map + SHAKE * np.sqrt(mean_square / 2) * noise).astype(feature_map.dtype)
    return changed


def own_scale(windows: Sequence[Array], changed: Sequence[Array]) -> Scale:
    """How large each answer counts as, by its values on some windows, and on the same windows of a `shaken` map."""
    largest = np.max(np.abs(windows), axis=0)
    with np.errstate(invalid="ignore"):  # infinity stays infinity
        change = np.max(np.abs(np.subtract(changed, windows)), axis=0)
    return Scale(own=np.maximum(largest, MARGIN / SHAKE * change))


def _same_graph(a: Document, b: Document) -> bool:
    return [n.name for n in a.proto.graph.node] == [n.name for n in b.proto.graph.node]


def takes_batches(c: Comparison, cut: Cut) -> bool:
    """Can the head be run on several windows at once, in the original?"""
    return (
        batches_of(c)[0] == 1
        and c.state.batch == BATCH
        and len(c.inputs) == 1
        and not c.state.context
        and batch_axis(cut.fact) is not None
        and all(batch_axis(f) is not None for f in c.facts.values())
    )
