"""Validation rejects every fault that changes an answer by more than rounding.

Faults are planted into converted models (`mutations.py`), over networks that make them hard to see: outputs that
saturate, weights that are tiny, or all the same, a score that is much smaller than its neighbours, images in bytes.
A mutant is either rejected, or its answers are those of the converted model on dense random images: the fault is none.

All networks, with the tally: `PYTHONPATH=.:tests/support python tests/test_mutations.py`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fresh
import law
import numpy as np
import onnxruntime
import pytest
from law import Array, positive, random
from mutations import mutants
from onnx import ModelProto
from test_rules import FAULTS, ROWS

import onnx_fcn
from onnx_fcn import FcnError, ValidationError

#: Images are drawn at each of these scales (deviation, mean): noise, small and large values, and bytes.
SCALES = ((1.0, 0.0), (0.1, 0.5), (10.0, 0.0), (64.0, 128.0))

#: A change of an answer by less than that, relative to the largest of its kind, is rounding; `law.ROUNDING` times eps
#: is 8e-6 for one layer.
ROUNDING = 2e-5

#: A change that the images of every seed show: half as much again as the 2e-4 that the validation allows. Whether it
#: sees a change between the two hangs on its images.
SHOWN = 3e-4

HEAD = "f = Flatten (m)  y = MatMul (f, w)"
TWO = "f = Flatten (m)  d = Gemm (f, w, b)  r = Relu (d)  y = Gemm <transB = 1> (r, v, c)"


def scaled(name: str, *shape: int, rows: dict[int, float]) -> Array:
    """Random weights of which some outputs (columns) are scaled."""
    value = (random(name, *shape) / np.sqrt(shape[0])).astype(np.float32)
    for row, factor in rows.items():
        value[:, row] *= np.float32(factor)
    return value


NETWORKS: dict[str, ModelProto] = {
    "dense": law.model(
        f"m = Conv (x, k, e)  {TWO}", image="float[N,3,6,7] x",
        k=(3, 3, 3, 3), e=(3,), w=(60, 8), b=(8,), v=(8, 8), c=(8,),
    ),
    "padded": law.model(
        f"m = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k, e)  {TWO}", image="float[N,3,7,9] x",
        k=(4, 3, 3, 3), e=(4,), w=(80, 8), b=(8,), v=(5, 8), c=(5,),
    ),
    "channels last": law.model(
        "t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv (t, k)  r = Relu (c)  "
        "p = MaxPool <kernel_shape = [2, 2]> (r)  b = Transpose <perm = [0, 2, 3, 1]> (p)  f = Reshape (b, s)  "
        "y = MatMul (f, w)", image="float[N,7,7,3] x", k=(4, 3, 3, 3), s=[-1, 64], w=(64, 5),
    ),
    "averages that count": law.model(
        "a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (x)  "
        "m = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)  " + HEAD,
        image="float[N,3,7,9] x", w=(60, 5),
    ),
    "ceil mode": law.model(
        "a = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)  m = Conv (a, k)  " + HEAD,
        image="float[N,3,9,7] x", k=(4, 3, 2, 2), w=(48, 5),
    ),
    "two outputs": law.model(
        "f = Flatten (x)  d = MatMul (f, w)  y = Relu (d)  e = MatMul (f, v)  z = Relu (e)", outputs="y, z",
        image="float[N,3,4,4] x", w=(48, 5), v=(48, 5),
    ),
    "saturated softmax": law.model(
        f"m = Conv (x, k)  {HEAD[:-len('y = MatMul (f, w)')]}d = Gemm (f, w, b)  g = Mul (d, h)  "
        "y = Softmax <axis = 1> (g)",
        image="float[N,3,5,6] x", k=(4, 3, 2, 2), w=(80, 5), b=(5,), h=1e4,
    ),
    "saturated sigmoid of an intermediate": law.model(
        "f = Flatten (x)  d = MatMul (f, w)  g = Mul (d, h)  s = Sigmoid (g)  y = MatMul (s, v)",
        image="float[N,3,5,4] x", w=(60, 6), h=300.0, v=(6, 5),
    ),
    "softmax, then argmax": law.model(
        "f = Flatten (x)  d = MatMul (f, w)  s = Softmax <axis = 1> (d)  y = ArgMax <axis = 1> (s)",
        image="float[N,3,5,4] x", w=(60, 7),
    ),
    "constant weights": law.model(
        f"m = Conv (x, k)  {HEAD}", image="float[N,3,6,5] x",
        k=np.full((4, 3, 2, 2), 0.1, np.float32), w=np.full((80, 5), 0.05, np.float32),
    ),
    "tiny weights": law.model(
        f"m = Conv (x, k)  {HEAD}", image="float[N,3,6,5] x",
        k=(random("k", 4, 3, 2, 2) * 1e-5).astype(np.float32), w=(random("w", 80, 5) * 1e-5).astype(np.float32),
    ),
    "scores of other units": law.model(
        f"m = Conv (x, k)  {HEAD}", image="float[N,3,6,5] x", k=(4, 3, 2, 2), w=scaled("w", 80, 5, rows={1: 1e-5}),
    ),
    "a channel that hardly counts": law.model(
        f"m = Mul (x, a)  {HEAD}", image="float[N,3,4,5] x",
        a=np.array([1, 1, 1e-4], np.float32).reshape(3, 1, 1), w=(60, 5),
    ),
    "a large bias": law.model(
        "f = Flatten (x)  d = MatMul (f, w)  y = Add (d, b)", image="float[N,3,4,5] x", w=(60, 5),
        b=np.array([1e4, 0, 0, 0, 0], np.float32),
    ),
    "images in bytes": law.model(
        f"a = Sub (x, h)  b = Div (a, g)  c = Conv <pads = [1, 1, 1, 1]> (b, k)  m = Relu (c)  {HEAD}",
        image="float[N,3,6,5] x", h=np.float32([123, 117, 104]).reshape(3, 1, 1),
        g=np.float32([58, 57, 56]).reshape(3, 1, 1), k=(4, 3, 3, 3), w=(120, 5),
    ),
    "dark images are nothing": law.model(
        f"a = Sub (x, h)  b = Relu (a)  m = Conv (b, k)  {HEAD}", image="float[N,3,6,5] x", h=20.0,
        k=(4, 3, 2, 2), w=(80, 5),
    ),
    "squeeze and excite": law.model(
        "c = Conv (x, k)  p = GlobalAveragePool (c)  a = Conv (p, v)  r = Relu (a)  b = Conv (r, u)  g = Sigmoid (b)  "
        "s = Mul (c, g)  n = BatchNormalization (s, q, o, l, i)  h = GlobalAveragePool (n)  f = Flatten (h)  "
        "y = Gemm <transB = 1> (f, w, e)", image="float[N,3,6,7] x",
        k=(4, 3, 3, 3), v=(2, 4, 1, 1), u=(4, 2, 1, 1), q=positive("q", 4), o=(4,), l=(4,), i=positive("i", 4),
        w=(5, 4), e=(5,),
    ),
    "shuffled and split": law.model(
        "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1, 3, 4]> (r)  q = Reshape (t, u)  "
        "c = Conv <group = 2> (q, k)  a, b = Split <axis = 1> (c)  g = Sigmoid (a)  m = Concat <axis = 1> (b, g)  "
        + HEAD, image="float[N,6,5,4] x", s=[-1, 2, 3, 5, 4], u=[-1, 6, 5, 4], k=(4, 3, 2, 2), w=(48, 5),
    ),
    "one axis": law.model(
        f"m = Conv <dilations = [2], pads = [2, 1]> (x, k, e)  {TWO}", image="float[N,4,9] x",
        k=(4, 4, 3), e=(4,), w=(32, 6), b=(6,), v=(6, 6), c=(6,),
    ),
    "cropped and enlarged": law.model(
        f'a = Slice (x, one, end, axes)  c = Conv (a, k)  m = Resize (c, "", scales)  {HEAD}',
        image="float[N,3,8,7] x", one=[1, 1], end=[2**31 - 1, -1], axes=[2, 3], k=(4, 3, 2, 2),
        scales=np.float32([1, 1, 2, 2]), w=(384, 5),
    ),
    "a single score": law.model(
        f"m = Conv (x, k, e)  {TWO}", image="float[N,3,6,7] x",
        k=(3, 3, 3, 3), e=(3,), w=(60, 8), b=(8,), v=(1, 8), c=(1,),
    ),
    "another input that hardly counts": law.model(
        f"m = Conv (x, k)  {HEAD[:-len('y = MatMul (f, w)')]}d = MatMul (f, w)  g = MatMul (e, v)  y = Add (d, g)",
        image="float[N,3,4,5] x, float[N,4] e", k=(4, 3, 2, 2), w=(48, 5),
        v=(random("v", 4, 5) * 1e-3).astype(np.float32),
    ),
    "an answer for each position, beside scores": law.model(
        "m = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k, e)  r = Reshape (m, s)  "
        "t = Transpose <perm = [0, 2, 1]> (r)  y = MatMul (t, v)  g = GlobalAveragePool (m)  f = Flatten (g)  "
        "z = MatMul (f, w)", image="float[N,3,8,10] x", outputs="y, z",
        k=(4, 3, 3, 3), e=(4,), s=[0, 4, 20], v=(4, 5), w=(4, 6),
    ),
    "an answer for each step": law.model(
        "m = Conv <pads = [1, 1, 1, 1]> (x, k, e)  r = Relu (m)  g = ReduceMean <axes = [2], keepdims = 0> (r)  "
        "t = Transpose <perm = [0, 2, 1]> (g)  y = MatMul (t, w)", image="float[N,3,6,8] x", opset=13,
        k=(4, 3, 3, 3), e=(4,), w=(4, 5),
    ),
    "a map that is enlarged by a literal size": law.model(
        'm = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k, e)  u = Resize (m, "", "", n)  y = Conv (u, l)',
        image="float[1,3,8,10] x", k=(4, 3, 3, 3), e=(4,), n=[1, 4, 8, 10], l=(5, 4, 1, 1),
    ),
    "half floats": law.model(
        f"m = Relu (x)  {HEAD}", image="float16[N,6,4,3] x", w=(72, 5),
    ),
}  # fmt: skip


@dataclass
class Verdicts:
    """What became of the mutants of one network."""

    rejected: int = 0
    equivalent: int = 0
    missed: dict[str, float] = field(default_factory=dict)  # fault -> how much an answer changes


@dataclass(frozen=True)
class Judged:
    """A network, what it was converted into, and what that answers on random images."""

    original: ModelProto
    converted: ModelProto
    images: list[dict[str, Array]]
    expected: list[list[Array] | None]

    @staticmethod
    @functools.cache
    def of(name: str) -> Judged:
        """One of the networks."""
        original = NETWORKS[name]
        conversion = onnx_fcn.convert(original)
        converted = conversion.to_proto()
        images = sampled(converted, conversion.report.window)
        return Judged(original, converted, images, [answers(converted, image) for image in images])

    def change(self, mutant: ModelProto, seed: int = 0) -> float | None:
        """How much a fault changes an answer, relative to the largest of its kind; None where it is rejected."""
        try:
            onnx_fcn.validate(self.original, mutant, seed=seed)
        except FcnError:
            return None
        return max(changes(want, answers(mutant, image)) for want, image in zip(self.expected, self.images))

    @property
    def rounding(self) -> float:
        """A change that is none."""
        return ROUNDING * (500 if law.numpy_type(self.original.graph.input[0]) == np.float16 else 1)


def judged(name: str) -> Verdicts:
    """Plant every fault, and see which ones validation misses."""
    network, found = Judged.of(name), Verdicts()
    for what, mutant in mutants(network.converted):
        change = network.change(mutant)
        if change is None:
            found.rejected += 1
        elif change <= network.rounding:
            found.equivalent += 1
        else:
            found.missed[what] = change
    return found


def sampled(model: ModelProto, window: tuple[int, ...]) -> list[dict[str, Array]]:
    """Random images with the other inputs: the native size, and larger ones, at all scales."""
    image, *others = law.data_inputs(model)
    dims = law.dims_of(image)
    space = [k for k, n in enumerate(dims) if n is None and k]
    found = []
    for number, (deviation, mean) in enumerate(SCALES):
        for more in (0, 1, 4, 11):
            shape = [2, *dims[1:]]
            for k, axis in enumerate(space):
                shape[axis] = window[k] + more + (k if more else 0)
            feeds = {image.name: random(f"{number} {more}", *shape) * deviation + mean}
            feeds |= {o.name: random(f"{o.name} {number}", 2, *law.dims_of(o)[1:]) * deviation for o in others}
            found.append({name: value.astype(law.numpy_type(image)) for name, value in feeds.items()})
    return found


def answers(model: ModelProto, feeds: dict[str, Array]) -> list[Array] | None:
    """What a model answers; None where onnxruntime fails."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return law.session(model)(feeds)
    except (state.Fail, state.RuntimeException, state.InvalidArgument):
        return None


def changes(want: list[Array] | None, got: list[Array] | None) -> float:
    """How much answers differ, relative to the largest of the same score; infinite where only one fails."""
    if want is None or got is None:
        return 0.0 if want is got else np.inf
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        if a.shape != b.shape:
            return np.inf
        axes = (0, *range(2, a.ndim))
        scale = np.maximum(np.abs(a).max(axis=axes, keepdims=True), 1e-30)
        worst = max(worst, float((np.abs(a.astype(np.float64) - b) / scale).max()))
    return worst


#: Networks of the quick test run.
FAST = ("dense", "channels last", "two outputs")


def cases() -> Iterator[Any]:
    for name in NETWORKS:
        marks = [] if name in FAST else [pytest.mark.slow]
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(cases()))
def test_every_fault_is_rejected(name: str) -> None:
    verdicts = judged(name)
    assert verdicts.rejected > 15
    assert verdicts.missed == {}


@pytest.mark.parametrize("count", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_fault_is_rejected_on_other_images(count: int) -> None:
    """A network, a fault in it and the images that it is judged on, drawn anew in every run."""
    names = sorted(NETWORKS)
    for seed in fresh.seeds(count):
        random = np.random.default_rng(seed)
        network = Judged.of(str(random.choice(names)))
        faults = list(mutants(network.converted))
        what, mutant = faults[random.integers(len(faults))]
        with fresh.told(seed, what):
            assert (network.change(mutant, seed) or 0.0) <= max(SHOWN, network.rounding)


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_conversion_rejects_itself(plant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule with a fault: the conversion's own check finds it."""
    case = ROWS[FAULTS[plant]]
    model = case.model(case.opsets[-1])
    onnx_fcn.convert(model)
    plant(monkeypatch)
    with pytest.raises(ValidationError, match="is not the same network"):
        onnx_fcn.convert(model)


def tally() -> None:
    """Print what became of the mutants of each network."""
    total: Counter[str] = Counter()
    print("| network | rejected | no fault | missed |\n|---|---|---|---|")
    for name in NETWORKS:
        verdicts = judged(name)
        total.update(rejected=verdicts.rejected, equivalent=verdicts.equivalent, missed=len(verdicts.missed))
        print(f"| {name} | {verdicts.rejected} | {verdicts.equivalent} | {len(verdicts.missed)} |")
        for what, change in verdicts.missed.items():
            print(f"    {what}: changes an answer by {change:.2g}")
    print(f"| all | {total['rejected']} | {total['equivalent']} | {total['missed']} |")


if __name__ == "__main__":
    tally()
