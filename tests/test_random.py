"""Random classifiers obey the law, or are refused; a wrong answer is the only way to fail.

`networks.py` draws a classifier and says what it is by construction. The oracle knows none of the package's rules. It
is onnxruntime, on the original model:

    law      trunk on a larger image, then the original head on every window of its map: equals the cell of the answer
    crops    where nothing pads and nothing sees more than its window: the original on the image under `grid.boxes`

Everything that `convert` says is held against that too: it validates, its grid has as many cells as there are answers,
and the outputs' formulas give the same counts.

More examples, other ones every time, with a tally: `PYTHONPATH=.:tests/support python tests/test_random.py 5000`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fresh
import hypothesis
import law
import numpy as np
import onnxruntime
import pytest
from hypothesis import Phase, given, settings
from hypothesis.strategies import SearchStrategy
from law import Array
from networks import Network, networks
from onnx import helper
from test_rules import FAULTS
from trunks import conv, cropped, gate, meeting, pool, resize

import onnx_fcn
from onnx_fcn import Conversion, UnsupportedModel, ValidationError
from onnx_fcn.lifting.site import Site
from onnx_fcn.rules import broadcasting, channels, resizing
from onnx_fcn.walk import passes

#: Largest difference allowed, relative to the largest answer: up to a dozen layers in a row, each with the rounding of
#: `law.ROUNDING`. A weight in the wrong place is a thousand times that.
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 5e-2}

#: Windows whose answers differ by less than that many tolerances would hide a misplaced one.
DISTINCT = 10

#: Networks of all layers.
ANY = networks()

#: Windows of a larger image, more than the native size has, along each axis.
MORE = (2, 1, 1)

#: Pixels that a long image has more than the native size, at most, and cells of it that are compared.
LONG, SAMPLES = 600, 6

#: Shares of the examples. Nearly all of these networks can slide: the others are refused for a good reason. Where a
#: head ignores its map (everything is cut off by an activation), the windows look alike. The package's own validation
#: may reject what is right, seldom: where half floats cancel, or a score is as small as the rounding of its operator.
LEAST_CONVERTED, LEAST_DISTINCT, MOST_ALARMS = 0.95, 0.75, 0.01


def outcome(network: Network, *, validate: bool = True) -> str:
    """Convert a network and check the law: ``distinct``, ``alike`` (no window differs), ``false alarm``, a refusal."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        whole = law.session(network.original)
        whole(noise(network, network.size))
    except (
        state.Fail,
        state.RuntimeException,
        state.InvalidGraph,
        state.NotImplemented,
    ):  # its shape inference and its pools disagree, it pads by less than 0, or a kernel is missing
        hypothesis.reject()
    rejected = False
    try:
        conversion = onnx_fcn.convert(network.original, validate=validate)
    except UnsupportedModel as refused:
        return refused.diagnostics[0].code if network.slides else "rightly refused"
    except ValidationError:  # if the oracle agrees with the conversion, it was a false alarm
        conversion, rejected = onnx_fcn.convert(network.original, validate=False), True
    assert network.slides, "it cannot slide, and was converted"
    if conversion.report.window != network.size:  # read in another way: its axes may be any, or it is refused as it is
        try:
            conversion = onnx_fcn.convert(network.original, input_size=network.size, validate=validate and not rejected)
        except UnsupportedModel:
            return "another reading"
    converted = conversion.to_proto()
    run = law.session(converted)
    check_native(network, whole, run)
    size = tuple(n + m * p + e for n, m, p, e in zip(network.size, MORE, network.grid, network.extra))
    long = tuple(n + min(m * p, LONG) + e for n, m, p, e in zip(network.size, network.far, network.grid, network.extra))
    differ = False
    for pixels, sampled in ((size, False), (long, True)):
        feeds = noise(network, pixels)
        answers = run(feeds)
        check_shapes(network, conversion, pixels, answers)
        law.check_formulas(converted, feeds, answers)
        check_law(network, feeds, answers, sampled=sampled)
        if network.exact:
            check_crops(network, conversion, feeds, answers, sampled=sampled)
        differ |= any(ranges(a) > DISTINCT * TOLERANCE[a.dtype] for a in answers if a.dtype in TOLERANCE)
    if rejected:
        return "false alarm"
    return "distinct" if differ else "alike"


def noise(network: Network, size: tuple[int, ...]) -> dict[str, Array]:
    """A random image of that size, or a batch of them, and the vectors that belong to it."""
    declared = network.original.graph.input[0]
    shape, kind = law.dims_of(declared), law.numpy_type(declared)
    shape[0] = network.batch
    for axis, pixels in zip(network.space, size):
        shape[axis] = pixels
    vectors = {name: law.random(name, network.batch, n).astype(kind) for name, n in network.vectors.items()}
    return {"image": law.random(str(size), *shape).astype(kind), **vectors}


def ranges(answers: Array) -> float:
    """How much the windows' answers (N, K, *grid) differ, relative to the largest."""
    cells = answers.reshape(*answers.shape[:2], -1).astype(np.float64)
    return float(np.ptp(cells, axis=-1).max() / max(np.abs(cells).max(), 1e-30))


def check_shapes(network: Network, conversion: Conversion, size: tuple[int, ...], answers: list[Array]) -> None:
    """The grid that is reported is the one that onnxruntime answers with."""
    assert conversion.report.window == network.size
    for output, answer in zip(network.original.graph.output, answers, strict=True):
        assert answer.shape[0] == network.batch
        assert conversion.grid(*size, output=output.name).shape == answer.shape[2:]


def check_native(network: Network, original: law.Session, converted: law.Session) -> None:
    """At the native size the answer is the same."""
    feeds = noise(network, network.size)
    wanted, answers = original(feeds), converted(feeds)
    same(network, [a.reshape(w.shape) for a, w in zip(answers, wanted, strict=True)], wanted, "native size")


def places_of(grid: tuple[int, ...], *, sampled: bool) -> list[tuple[int, ...]]:
    """All places of a grid, or the last one and some others."""
    places = list(np.ndindex(*grid))
    if not sampled or len(places) <= SAMPLES:
        return places
    chosen = np.random.default_rng(len(places)).choice(len(places) - 1, SAMPLES - 1, replace=False)
    return [places[-1], *(places[k] for k in chosen)]


def check_law(network: Network, feeds: dict[str, Array], answers: list[Array], *, sampled: bool) -> None:
    """Each cell is the original head on its window of the map."""
    native = noise(network, network.size)
    cut = helper.make_tensor_value_info(network.cut, helper.np_dtype_to_tensor_dtype(feeds["image"].dtype), None)
    graph, reference = network.original.graph, law.session(network.reference)
    (here,) = law.session(law.part(network.original, graph.input, [cut]))(native)
    assert here.shape[2:] == network.window
    agree(reference(native)[0], here, "the reference at the native size")
    (whole,) = reference(feeds)
    head = law.session(law.part(network.original, [cut, *graph.input], graph.output))
    grid = tuple((n - w) // s + 1 for n, w, s in zip(whole.shape[2:], network.window, network.step))
    assert all(answer.shape[-len(grid) :] == grid for answer in answers), f"{grid} windows, not {answers[0].shape}"
    for place in places_of(grid, sampled=sampled):
        where = tuple(slice(k * s, k * s + w) for k, s, w in zip(place, network.step, network.window))
        want = head({**native, network.cut: np.ascontiguousarray(whole[(..., *where)])})
        same(network, [a[(..., *place)] for a in answers], want, f"law at {place}")


def check_crops(
    network: Network, conversion: Conversion, feeds: dict[str, Array], answers: list[Array], *, sampled: bool
) -> None:
    """Each cell is the original on its box of the image."""
    whole, rank, image = law.session(network.original), len(network.size), feeds["image"]
    sizes = [image.shape[a] for a in network.space]
    names = [output.name for output in network.original.graph.output]
    grid = conversion.grid(*network.size, output=names[0]).answers.grid(*sizes)
    for place in places_of(grid.shape, sampled=sampled):
        box = grid.boxes[place]
        where = [slice(None)] * image.ndim
        for axis, first, behind in zip(network.space, box[rank - 1 :: -1], box[: rank - 1 : -1]):
            where[axis] = slice(first, behind)
        if any(image[tuple(where)].shape[axis] < pixels for axis, pixels in zip(network.space, network.size)):
            continue  # the last of a grid reaches beyond the image where the operators leave pixels out
        want = whole({**feeds, "image": np.ascontiguousarray(image[tuple(where)])})
        same(network, [a[(..., *place)] for a in answers], want, f"crop {place}")


def same(network: Network, answers: list[Array], wanted: list[Array], where: str) -> None:
    """The same answers; of classes, those whose scores are the largest but for rounding."""
    for output, got, want in zip(network.original.graph.output, answers, wanted, strict=True):
        if output.name == network.classes:
            scores = wanted[0].astype(np.float64)
            index = got.reshape(len(scores), 1)
            assert index.dtype == want.dtype
            assert 0 <= index.min() <= index.max() < scores.shape[1]
            got, want = np.take_along_axis(scores, index, 1).astype(wanted[0].dtype), wanted[0].max(1, keepdims=True)
        agree(got, want, where)


def agree(got: Array, want: Array, where: str) -> None:
    """The same numbers but for rounding."""
    assert got.shape == want.shape, f"{where}: shape {got.shape} where {want.shape} is right"
    wrong = np.abs(got.astype(np.float64) - want)
    scale = max(1.0, float(np.abs(want).max()))
    assert wrong.max() <= TOLERANCE[want.dtype] * scale, f"{where}: differs by {wrong.max() / scale:.2g}"


def run(
    examples: int,
    *,
    seed: int | None = None,
    validate: bool = True,
    phases: Sequence[Phase] = tuple(Phase),
    drawn: SearchStrategy[Network] = ANY,
    judge: Callable[[Network], str] | None = None,
) -> Counter[str]:
    """Try that many networks, those of a seed or the same ones in every run, and count what became of them.

    `judge`: says what became of one; by default `outcome`.
    """
    tally: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        derandomize=seed is None,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @given(drawn)
    def obeys(network: Network) -> None:
        tally[outcome(network, validate=validate) if judge is None else judge(network)] += 1

    (obeys if seed is None else hypothesis.seed(seed)(obeys))()
    return tally


def shares(tally: Counter[str]) -> Iterator[float]:
    """(converted of all, distinct of converted)."""
    yield (tally["distinct"] + tally["alike"]) / tally.total()
    yield tally["distinct"] / (tally["distinct"] + tally["alike"])


def test_law() -> None:
    check_shares(run(100))


@pytest.mark.parametrize("examples", [15, pytest.param(2000, marks=pytest.mark.slow)])
def test_law_of_other_networks(examples: int) -> None:
    """Drawn anew in every run."""
    seed, count = fresh.examples(examples)
    with fresh.told(seed, count=count):
        tally = run(count, seed=seed)
        if count >= 1000:  # of a few, shares say nothing
            check_shares(tally)


def check_shares(tally: Counter[str]) -> None:
    """Nearly all are converted, most of them tell a misplaced window, and hardly any is rejected wrongly."""
    converted, distinct = shares(tally)
    assert converted > LEAST_CONVERTED
    assert distinct > LEAST_DISTINCT
    assert tally["false alarm"] <= MOST_ALARMS * tally.total()


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule with a fault does not get through, without any help from the package's own validation."""
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        run(200, validate=False, phases=[Phase.generate])


def centred_on_the_map(patch: pytest.MonkeyPatch) -> None:
    """A resize shifts its cells by what is cut off at the end, at every size."""
    emit = resizing._emit

    def wrong(site: Site, *rest: Any) -> str:
        name = emit(site, *rest)
        for emission in site._slot.emissions:
            attrs = emission.node.attrs
            attrs.update({k: site.attr(k) for k in attrs if k == "coordinate_transformation_mode"})
        return name

    patch.setattr(resizing, "_emit", wrong)


def unchecked_floats(patch: pytest.MonkeyPatch) -> None:
    """A nearest resize by a factor that single floats do not hold counts as exact."""
    patch.setattr(resizing.Sampling, "check", lambda _: None)


def crops_begin_early(patch: pytest.MonkeyPatch) -> None:
    crop = channels._crop

    def early(site: Site, x: Any, axis: int, k: int, index: Any, step: int, behind: int | None) -> Any:
        moved = min(1, int(index[0]))
        return crop(site, x, axis, k, index - moved, step, None if behind is None else behind + moved)

    patch.setattr(channels, "_crop", early)


def nothing_is_cut_where_branches_meet(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(broadcasting, "crop_to_common", lambda _, maps: list(maps))


def no_larger_half(patch: pytest.MonkeyPatch) -> None:
    """SAME_LOWER pads as SAME_UPPER does."""
    attr = Site.attr
    patch.setattr(Site, "attr", lambda self, name, default=None:
        "SAME_UPPER" if attr(self, name, default) == "SAME_LOWER" else attr(self, name, default))  # fmt: skip


def weights_are_those_of_windows(patch: pytest.MonkeyPatch) -> None:
    """A softmax over all positions is a part of the head wherever it is."""
    patch.setattr(passes, "pooling_weights", lambda walk: frozenset(walk.slots[k].name for k in walk.weights))


#: Faults of rules that larger images show, and the layers that are drawn to find them.
LARGER = {
    centred_on_the_map: (resize,),
    unchecked_floats: (resize,),
    crops_begin_early: (cropped, conv),
    nothing_is_cut_where_branches_meet: (meeting,),
    no_larger_half: (conv, pool),
    weights_are_those_of_windows: (gate,),
}


#: Of these about one network in a hundred shows something.
RARE = (centred_on_the_map, unchecked_floats)


@pytest.mark.parametrize(
    "plant",
    [pytest.param(f, marks=[pytest.mark.slow] if f in RARE else []) for f in LARGER],
    ids=lambda plant: plant.__name__,
)
def test_a_fault_of_larger_images_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the native size does not show: pixels left over do, or cells far out."""
    plant(monkeypatch)
    state = onnxruntime.capi.onnxruntime_pybind11_state
    with pytest.raises((AssertionError, state.RuntimeException, state.Fail)):
        run(1000, validate=False, phases=[Phase.generate], drawn=networks(LARGER[plant]))


if __name__ == "__main__":
    first, count = fresh.examples(int(sys.argv[1]))
    print(run(count, seed=first))
