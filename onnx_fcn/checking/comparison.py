"""What is compared: two models, with what is known of them before anything runs, and the images that both answer.

A `Comparison` is the two models. A `Case` is an image or a batch of images, with the answers of both models; a
`LargerImage` is a case of more than the native size, with a feature map and windows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnx_fcn._types import Array, Progress
from onnx_fcn.checking.checks import Check
from onnx_fcn.checking.limits import Limits
from onnx_fcn.lifting.facts import Unmapped
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Walk
from onnx_fcn.lifting.windows import windows_of
from onnx_fcn.model.agreement import ROUNDED_TOLERANCE, Scale, is_calibrated, is_rounded, tolerance_of
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs
from onnx_fcn.model.operators import AFFINE, BOUNDED, HIDING, SUMS, THROUGH
from onnx_fcn.walk.cut import Cut
from onnx_fcn.walk.fields import geometry_of
from onnx_fcn.walk.given import Given

__all__ = [
    "DEVIATIONS",
    "FAR_WINDOWS",
    "LEAST_BOUNDED",
    "WINDOWS",
    "Answers",
    "Case",
    "Comparison",
    "LargerImage",
    "Run",
    "largest_of",
]


#: Standard deviations of the random images. If the answers are the same everywhere, the next one is tried: a network
#: that was trained on bytes may hardly respond to noise of deviation 1.
DEVIATIONS = (1.0, 16.0, 255.0)

#: Windows that the law is checked on: the corners and some between; of a long image, both ends and some between.
WINDOWS, FAR_WINDOWS = 9, 5

#: The largest number of hidden tensors: a head has a few, and each is one more output of both models.
MOST_HIDDEN = 32

#: Results of bounded operators below this are compared absolutely.
LEAST_BOUNDED = 1e-2

Answers = dict[str, Array]


@dataclass
class Comparison:
    """Two models, with what is known of them.

    Attributes:
        given: the model as it was given; the answers of its file are to be reproduced.
        original: the network in it that was lifted.
        walk: the walk that lifted it.
        lifted: the result of that walk, whose trunk gives the feature map.
        converted: the file that is judged: that result, or what another tool made from it.
        seed: of the random images.
        progress: called with a few words before each step that may take seconds.
        scales: for some tensors, what differences are relative to instead of the largest answer.
        rounds: whether the arithmetic is coarser than single floats: then no slope or size shows how it rounds.
        affine: tensors whose answers are sums of products, each with a rounding of its own.
        dense: the outputs with an answer for each position, with their maps.
        facts: the other maps to compare: one answer for each window.
        exact: for each of these, whether its cells have to equal crops.
        macs: multiply-accumulates of the original on one image; None if they are not known.
        limits: the images that the judged file takes, where it takes fewer than a conversion does.
        allowed: the largest difference allowed; None for that of the coarser arithmetic of both files.
        is_coarser: whether the judged file computes in coarser arithmetic than the original.
        is_calibrated: whether the judged file rounds activations within ranges that were found on example images, and
            the original does not: beyond these ranges they have nothing in common.
        is_own_result: whether the judged file is the result of this walk; after another tool its tensors may have any
            names.
        maps: for each output that is more than its map of answers, and for each tensor before a saturating operator,
            the tensor of the converted model that is the map.
    """

    given: Given
    walk: Walk
    lifted: Document
    converted: Document
    seed: int = 0
    progress: Progress = lambda _: None
    macs: int | None = None
    limits: Limits = field(default_factory=Limits)
    allowed: float | None = None

    def __post_init__(self) -> None:
        self.original = self.given.selected
        self.deviation = DEVIATIONS[0]
        self.random = np.random.default_rng(self.seed)
        self.is_calibrated = is_calibrated(self.converted) and not is_rounded(self.original)
        self.inputs = {i.name: i for i in data_inputs(self.original.proto.graph)}
        self.outputs = [o.name for o in self.original.proto.graph.output]
        coarser = max(tolerance_of(self.original), tolerance_of(self.converted))
        self.tolerance = coarser if self.allowed is None else self.allowed
        self.rounds = coarser >= ROUNDED_TOLERANCE
        self.is_coarser = tolerance_of(self.converted) > tolerance_of(self.original)
        self.answers = geometry_of(self.walk).outputs
        self.is_own_result = self.lifted is self.converted or _same_graph(self.lifted, self.converted)
        self.scales: dict[str, Scale] = {}
        producer = {o: n for n in self.original.proto.graph.node for o in n.output if o}
        self.hidden = self._find_hidden(producer) if self.is_own_result else {}
        self.dense = {name: fact for name, fact in self.walk.results.items() if fact.is_dense}
        answers = {name: self._of_windows(name) for name in self.walk.results if name not in self.dense}
        self.facts: dict[str, Lifted] = {**answers, **self.hidden}
        every = all(self.answers[name].exactness == "exact" for name in answers)
        self.exact = {n: self.answers[n].exactness == "exact" if n in self.answers else every for n in self.facts}
        self.names = [*self.outputs, *self.hidden, *self._hidden_in_place(producer)]
        self.of_head = [name for name in self.names if name not in self.dense]
        self.affine = {n for n in self.facts if not self.rounds and self._is_affine(n, producer)}
        renamed = self.walk.renamed
        maps = {name: renamed.get(m := self.walk.results[name].map, m) for name in self.walk.formed}
        if self.walk.keeps_size:
            maps = {}
        self.maps = {**maps, **{name: fact.map for name, fact in self.hidden.items()}}

    def _of_windows(self, name: str) -> Lifted:
        """The map of an output with an answer for each window, also if it answers for the cells of each."""
        fact, cells = self.walk.results[name], self.walk.unpooled.get(name)
        if cells is None:
            return fact
        return replace(fact, space=tuple(a.contracted() if a.atoms else a for a in cells.space))

    def over_windows(self, name: str, got: Array) -> Array:
        """The answers for windows, (N, C, *grid): of an output that answers for cells, their mean or maximum."""
        cells = self.walk.unpooled.get(name)
        if cells is None or any(n < a.extent for n, a in zip(got.shape[2:], cells.space)):
            return got
        windows = windows_of(replace(self.walk.results[name], space=cells.space), got.astype(np.float64))
        axes = tuple(range(-len(cells.space), 0))
        with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs have no mean
            pooled: Array = windows.mean(axes) if cells.kind == "mean" else windows.max(axes)
            return pooled.astype(got.dtype)

    def note_of(self, name: str) -> str:
        """What is compared of an output that answers for cells; empty for others."""
        cells = self.walk.unpooled.get(name)
        return "" if cells is None else f"the {cells.kind} of its cells"

    def scale_of(self, name: str, case: Case) -> Scale:
        """What differences of a tensor are relative to.

        The answers for one window may be small because large terms cancel, and these were rounded when they were large.
        If nothing else shows how large these terms are, the answers for the other windows do.
        """
        scale = self.scales.get(name, Scale())
        if self.rounds and isinstance(case, LargerImage):
            return Scale(max([scale.least, *(largest_of(answers[name]) for answers in case.windows)]))
        return Scale(scale.least) if case.loud else scale

    def _find_hidden(self, producer: Mapping[str, onnx.NodeProto]) -> dict[str, Lifted]:
        """Tensors of the head before saturating operators, with their facts under the names in the result.

        Those nearest to the outputs are found first. If an output is only the result of a bounded operator, its scale
        is set as well.
        """
        found: dict[str, Lifted] = {}
        have = {o for n in self.lifted.proto.graph.node for o in n.output}
        waiting = deque((name, name) for name in self.outputs)  # a tensor, and the output that it is before saturation
        seen = set(waiting)
        while waiting and len(found) < MOST_HIDDEN:
            name, output = waiting.popleft()
            node = producer.get(name)
            if node is None:
                continue
            for k, operand in enumerate(node.input):
                fact = self.walk.facts.get(operand)
                if not isinstance(fact, Lifted) or fact.is_live:
                    continue
                step = operand, output if node.op_type in HIDING | THROUGH else ""
                if step not in seen:
                    seen.add(step)
                    waiting.append(step)
                renamed = self.walk.renamed.get(fact.map, fact.map)
                hides = k == 0 and node.op_type in HIDING
                if hides and operand not in self.outputs and operand in producer and renamed in have:
                    found[operand] = fact.on(renamed)
                    if output and node.op_type in BOUNDED:
                        self.scales[output] = Scale(LEAST_BOUNDED)
        return found

    def _hidden_in_place(self, producer: Mapping[str, onnx.NodeProto]) -> list[str]:
        """Tensors before saturating operators of a network that cannot slide: they have the same names in both.

        Those nearest to the outputs are found first.
        """
        if self.walk.standing is None or not self.is_own_result:
            return []
        both = producer.keys() & {o for n in self.lifted.proto.graph.node for o in n.output}
        hiding = [s for s in reversed(self.walk.slots) if s.node.op in HIDING]
        entering = dict.fromkeys(s.node.inputs[0] for s in hiding if isinstance(s.operands[0], Unmapped))
        return [n for n in entering if n in both and n not in self.outputs][:MOST_HIDDEN]

    def _is_affine(self, name: str, producer: Mapping[str, onnx.NodeProto], depth: int = 64) -> bool:
        """Is a tensor computed from sums of products by operators that keep the rounding of each?"""
        node = producer.get(name)
        if node is None or depth == 0:
            return False
        lifted = [k for k, n in enumerate(node.input) if isinstance(self.walk.facts.get(n), Lifted)]
        if node.op_type in SUMS:
            return len(lifted) == 1
        if node.op_type in ("Mul", "Div") and len(lifted) != 1:
            return False
        return node.op_type in AFFINE and all(self._is_affine(node.input[k], producer, depth - 1) for k in lifted)


@dataclass
class Case:
    """One image, or batch of images, and the answers of both models.

    Attributes:
        size: of an image, in pixels.
        batch: the number of images.
        feeds: the values of all inputs.
        note: a remark for the report.
        loud: whether the values are larger than those that `Comparison.scales` was found with.
        expected: the answers of the original.
        got: the answers of the converted model, by the names of the original's tensors.
        formed: the outputs of the converted model that are computed from these, if another form was requested.
        probabilities: the original's answers after a closing Softmax, if the conversion left it out.
        logits: the values that enter this Softmax.
        within: the original's values of `LargerImage.trunk`.
    """

    size: tuple[int, ...]
    batch: int
    feeds: dict[str, Array]
    note: str = ""
    loud: bool = False
    expected: Answers = field(default_factory=dict)
    got: Answers = field(default_factory=dict)
    formed: Answers = field(default_factory=dict)
    probabilities: Answers = field(default_factory=dict)
    logits: Answers = field(default_factory=dict)
    within: Array | None = None


@dataclass
class LargerImage(Case):
    """A larger image.

    Attributes:
        cut: the map that the law is about.
        trunk: a map up to the cut, some cells of which see no padding on an image of the native size.
        most: the largest number of windows to compare.
        inner: the window whose crop is the first image of the native size, as a cell of the cut's grid; None if no
            crop of this image is.
        map: the cut's map of this image, (N, C, *space).
        has_map: whether `map` comes from the original's trunk, before the converted model has run.
        found: the converted model's values of `trunk`.
        attended: a map up to the cut that attention over the whole image contributes to, if there is any.
        wanted: the original's values of `attended`, (N, C, *space); None if its nodes do not run on this image.
        seen: the converted model's values of `attended`.
        positions: the windows to compare, as cells of the cut's grid; `inner` is the last.
        windows: the original head's answers for these windows.
        cells: the original head's answers for windows that are filled with one cell of the map, by that cell's place
            along each axis of the image.
        crops: the original's answers on the crops of the last positions.
        dense: the maps of dense outputs from the original's nodes, where these give them.
        crop: the farthest crop, with the original's dense outputs.
        offset: the pixel along each axis of the image at which that crop begins.
    """

    cut: Cut = field(kw_only=True)
    trunk: Cut | None = None
    most: int = WINDOWS
    inner: list[int] | None = None
    map: Array = field(default_factory=lambda: np.zeros(0))
    has_map: bool = False
    found: Array | None = None
    attended: Cut | None = None
    wanted: Array | None = None
    seen: Array | None = None
    positions: list[list[int]] = field(default_factory=list)
    windows: list[Answers] = field(default_factory=list)
    cells: list[tuple[dict[int | None, int], Answers]] = field(default_factory=list)
    crops: list[Case] = field(default_factory=list)
    dense: Answers = field(default_factory=dict)
    crop: Case | None = None
    offset: dict[int | None, int] = field(default_factory=dict)

    @property
    def grid(self) -> list[int]:
        """Windows of the cut along each axis."""
        return [(n - a.extent) // a.step + 1 for n, a in zip(self.map.shape[2:], self.cut.fact.space)]


def largest_of(answers: Array) -> float:
    """The largest finite answer, by its absolute value."""
    return float(np.abs(answers[np.isfinite(answers)], dtype=np.float64).max(initial=0.0))


def _same_graph(a: Document, b: Document) -> bool:
    """Have two graphs the same nodes, and weights of the same types?"""

    def parts(document: Document) -> tuple[list[str], set[int]]:
        graph = document.proto.graph
        return [n.name for n in graph.node], {t.data_type for t in graph.initializer}

    return parts(a) == parts(b)


@dataclass
class Run:
    """Images of one deviation, the checks on them, and sentences about what was not compared."""

    cases: list[Case] = field(default_factory=list)
    larger: list[LargerImage] = field(default_factory=list)
    others: list[Case] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
