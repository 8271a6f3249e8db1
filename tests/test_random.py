"""Random classifiers obey the law, or are refused; a wrong answer is the only way to fail.

`networks.py` draws a classifier and says what it is by construction. The oracle knows none of the package's rules. It
is onnxruntime, on the original model:

    law      trunk on a larger image, then the original head on every window of its map: equals the cell of the answer
    crops    where nothing pads and nothing sees more than its window: the original on the image under `grid.boxes`

Everything that `convert` says is held against that too: it validates, its grid has as many cells as there are answers,
and the outputs' formulas give the same counts.

More examples, other ones every time, with a tally: `PYTHONPATH=. python tests/test_random.py 5000`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import fresh
import hypothesis
import law
import numpy as np
import onnxruntime
import pytest
from hypothesis import Phase, given, settings
from law import Array
from networks import Network, networks
from onnx import helper
from test_rules import FAULTS

import onnx_fcn
from onnx_fcn import Conversion, UnsupportedModel, ValidationError

#: Largest difference allowed, relative to the largest answer: up to a dozen layers in a row, each with the rounding of
#: `law.ROUNDING`. A weight in the wrong place is a thousand times that.
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 5e-2}

#: Windows whose answers differ by less than that many tolerances would hide a misplaced one.
DISTINCT = 10

#: Windows of a larger image, more than the native size has, along each axis.
MORE = (2, 1, 1)

#: Shares of the examples. Nearly all of these networks can slide: the others are refused for a good reason. Where a
#: head ignores its map (everything is cut off by an activation), the windows look alike. The package's own validation
#: may reject what is right, seldom: where half floats cancel, or a score is as small as the rounding of its operator.
LEAST_CONVERTED, LEAST_DISTINCT, MOST_ALARMS = 0.95, 0.75, 0.01


def outcome(network: Network, *, validate: bool = True) -> str:
    """Convert a network and check the law: ``distinct``, ``alike`` (no window differs), ``false alarm``, a refusal."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        whole = law.session(network.original)
        whole({"image": noise(network, network.size)})
    except (
        state.Fail,
        state.RuntimeException,
    ):  # its shape inference and its pools disagree, or it pads by less than 0
        hypothesis.reject()
    rejected = False
    try:
        conversion = onnx_fcn.convert(network.original, validate=validate)
    except UnsupportedModel as refused:
        return refused.diagnostics[0].code
    except ValidationError:  # if the oracle agrees with the conversion, it was a false alarm
        conversion, rejected = onnx_fcn.convert(network.original, validate=False), True
    size = tuple(n + m * p + e for n, m, p, e in zip(network.size, MORE, network.grid, network.extra))
    image = noise(network, size)
    converted = conversion.to_proto()
    answers = law.session(converted)({"image": image})
    check_shapes(network, conversion, size, answers)
    law.check_formulas(converted, {"image": image}, answers)
    check_native(network, whole, law.session(converted))
    check_law(network, image, answers)
    if network.exact:
        check_crops(network, conversion, image, answers)
    if rejected:
        return "false alarm"
    return "distinct" if any(ranges(a) > DISTINCT * TOLERANCE[a.dtype] for a in answers) else "alike"


def noise(network: Network, size: tuple[int, ...]) -> Array:
    """A random image of that size, or a batch of them."""
    declared = network.original.graph.input[0]
    shape = law.dims_of(declared)
    shape[0] = network.batch
    for axis, pixels in zip(network.space, size):
        shape[axis] = pixels
    return law.random(str(size), *shape).astype(law.numpy_type(declared))


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
    image = noise(network, network.size)
    for want, got in zip(original({"image": image}), converted({"image": image}), strict=True):
        agree(got.reshape(want.shape), want, "native size")


def check_law(network: Network, image: Array, answers: list[Array]) -> None:
    """Each cell is the original head on its window of the map."""
    native = noise(network, network.size)
    cut = helper.make_tensor_value_info(network.cut, helper.np_dtype_to_tensor_dtype(image.dtype), None)
    graph, reference = network.original.graph, law.session(network.reference)
    (here,) = law.session(law.part(network.original, graph.input, [cut]))({"image": native})
    assert here.shape[2:] == network.window
    agree(reference({"image": native})[0], here, "the reference at the native size")
    (whole,) = reference({"image": image})
    head = law.session(law.part(network.original, [cut, *graph.input], graph.output))
    space = range(2, whole.ndim)
    windows = law.by_window(
        head, {network.cut: whole, "image": native}, network.cut, network.window, space, network.step
    )
    grid = tuple(k + 1 for k in max(windows))
    for k, answer in enumerate(answers):
        want = np.stack([window[k] for window in windows.values()], axis=-1)
        agree(answer, want.reshape(*want.shape[:2], *grid), "law")


def check_crops(network: Network, conversion: Conversion, image: Array, answers: list[Array]) -> None:
    """Each cell is the original on its box of the image."""
    whole, rank = law.session(network.original), len(network.size)
    for k, output in enumerate(network.original.graph.output):
        grid = conversion.grid(*network.size, output=output.name).answers.grid(*(image.shape[a] for a in network.space))
        for place in np.ndindex(*grid.shape):
            box = grid.boxes[place]
            where = [slice(None)] * image.ndim
            for axis, first, behind in zip(network.space, box[rank - 1 :: -1], box[: rank - 1 : -1]):
                where[axis] = slice(first, behind)
            if any(image[tuple(where)].shape[axis] < pixels for axis, pixels in zip(network.space, network.size)):
                continue  # the last of a grid reaches beyond the image where the operators leave pixels out
            want = whole({"image": np.ascontiguousarray(image[tuple(where)])})[k]
            agree(answers[k][(..., *place)], want, f"crop {place}")


def agree(got: Array, want: Array, where: str) -> None:
    """The same numbers but for rounding."""
    assert got.shape == want.shape, f"{where}: shape {got.shape} where {want.shape} is right"
    wrong = np.abs(got.astype(np.float64) - want)
    scale = max(1.0, float(np.abs(want).max()))
    assert wrong.max() <= TOLERANCE[want.dtype] * scale, f"{where}: differs by {wrong.max() / scale:.2g}"


def run(
    examples: int, *, seed: int | None = None, validate: bool = True, phases: Sequence[Phase] = tuple(Phase)
) -> Counter[str]:
    """Try that many networks, those of a seed or the same ones in every run, and count what became of them."""
    tally: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        derandomize=seed is None,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @given(networks())
    def obeys(network: Network) -> None:
        tally[outcome(network, validate=validate)] += 1

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


if __name__ == "__main__":
    first, count = fresh.examples(int(sys.argv[1]))
    print(run(count, seed=first))
