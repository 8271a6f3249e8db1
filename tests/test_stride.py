"""Answers in between: a network that dilates instead of striding.

The law of an output stride S, where the network itself strides r·S pixels:

    y_S[..., ::r, ::r]      is the plain map, everywhere, and has its shape at every size
    y_S[..., p::r, q::r]    is the plain map of the image without its first p·S rows and q·S columns, wherever it sees
                            no padding; where nothing pads that is everywhere: each answer is the original's for a crop

The plain map is made by onnxruntime of the original, which `law.py` cuts in two: its trunk on the whole image, its head
on every window of that map. Which answers see padding is measured too: those that change when there is something else
than zeros around the image. Nothing of the package takes part in that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exports
import fresh
import hypothesis
import law
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from layers import cases
from onnx import ModelProto, helper, numpy_helper, shape_inference

import onnx_fcn
from onnx_fcn import OptionError, UnsupportedModel, ValidationError

FIXTURES = Path(__file__).parent.parent / "fixtures"

#: A flatten and two dense layers; `{n}` is filled with the number of features.
DENSE = "f = Flatten (m)  d = Gemm <transB = 1> (f, fc1, fc1_bias)  e = Relu (d)  y = MatMul (e, fc2)"
POOLED = "g = GlobalAveragePool (m)  f = Flatten (g)  y = MatMul (f, fc)"

#: What is around an image, where a test asks which answers see that.
SURROUNDINGS = 100

#: Relative to the largest answer: the same products, summed in another order.
ROUNDING = 2e-5

Array = np.ndarray


def network(
    trunk: str, head: str = DENSE, *, size: Sequence[int] = (22, 18), image: str = "", opset: int = 19, **weights: Any
) -> ModelProto:
    """A trunk in ONNX's text syntax, from the image `x` to the map `m`, and a head behind it.

    A weight that is no keyword is made for the node that reads it: of a `Conv` by its attribute kernel_shape, with as
    many outputs as the digits in its name say (`k8`, `k8b`), of the dense layers by what flows in.
    """
    image = image or f"float[N,3,{','.join(map(str, size))}] x"
    features = _features(trunk, image, opset, weights)
    sizes = {"fc1": (7, features[0]), "fc1_bias": (7,), "fc2": (7, 5), "fc": (features[1], 5)}
    more = {name: shape for name, shape in sizes.items() if name in head and name not in weights}
    return law.model(f"{trunk}  {head}", image=image, opset=opset, **weights, **more)


def _features(trunk: str, image: str, opset: int, weights: Mapping[str, Any]) -> tuple[int, int]:
    """(numbers, channels) of the map `m`."""
    given = {**weights, "outputs": "m"}
    made = law.model(trunk, image=image.replace("[N", "[1"), opset=opset, **given)
    dims = [d.dim_value for d in shape_inference.infer_shapes(made).graph.output[0].type.tensor_type.shape.dim]
    return int(np.prod(dims[1:])), dims[1]


@dataclass(frozen=True)
class Row:
    """A network and what is known of it.

    Attributes:
        stride: pixels between answers without an output stride, along each axis.
        wanted: output strides to try.
        gates: tensors that know the whole image: with an output stride they are to know what they knew before.
        remainder: do pixels that no window covers change nothing? Not where `auto_pad` reads the size.
        pads: does the trunk pad, or reach beyond the image as ceil_mode does?
        cut: the map that the heads read.
    """

    build: Callable[[], ModelProto]
    stride: tuple[int, ...]
    wanted: tuple[int, ...]
    gates: tuple[str, ...] = ()
    remainder: bool = True
    pads: bool = False
    cut: str = "m"


# The oracle -----------------------------------------------------------------------------------------------------------


class Plain:
    """The map of answers without an output stride, by the original."""

    def __init__(self, model: ModelProto, cut: str, gates: Sequence[str] = ()) -> None:
        self.image, *_ = law.data_inputs(model)
        self.cut, self.gates = cut, gates
        self.trunk = law.session(law.trunk_of(model, [cut]))
        self.model, self.window = model, self._window(law.dims_of(self.image))
        if gates:
            self.gate = law.session(law.trunk_of(model, gates))
        self._gated: law.Session | None = None

    def _window(self, dims: Sequence[int | None]) -> tuple[int, ...]:
        native = np.zeros([1 if d is None else d for d in dims], law.numpy_type(self.image))
        return self.trunk({self.image.name: native})[0].shape[2:]

    def map(self, image: Array, of: Array | None = None) -> Array:
        """The trunk's map; with gates, these see the image `of`."""
        if not self.gates:
            return self.trunk({self.image.name: image})[0]
        gates = dict(zip(self.gates, self.gate({self.image.name: image if of is None else of})))
        if self._gated is None:
            free = [None] * image.ndim
            declared = [helper.make_tensor_value_info(self.image.name, onnx.TensorProto.FLOAT, free)]
            declared += [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * g.ndim) for n, g in gates.items()
            ]
            cut = onnx.ValueInfoProto(name=self.cut)
            self._gated = law.session(law.part(self.model, declared, [cut]))
        return self._gated({self.image.name: image, **gates})[0]

    def __call__(self, image: Array, of: Array | None = None) -> list[Array]:
        """(N, K, *grid) for each output: the head on every window of the map; with gates, these see the image `of`."""
        maps = self.map(image, of)
        head = law.session(law.head_of(self.model, {self.cut: maps}))
        rank = maps.ndim - 2
        cells = law.by_window(head, {self.cut: maps}, self.cut, self.window, range(2, 2 + rank), [1] * rank)
        grid = tuple(n + 1 for n in max(cells))
        answers = []
        for k in range(len(self.model.graph.output)):
            stack = np.stack([law.vectors(c[k], len(image)) for c in cells.values()], axis=-1)
            answers.append(stack.reshape(*stack.shape[:2], *grid))
        return answers


def surrounded(image: Array, margin: Sequence[int], sign: float) -> Array:
    """The image in a frame of noise."""
    pads = [(0, 0), (0, 0), *((m, m) for m in margin)]
    framed = np.random.default_rng(1).uniform(1, SURROUNDINGS, [n + a + b for n, (a, b) in zip(image.shape, pads)])
    framed = (sign * framed).astype(image.dtype)
    framed[tuple(slice(a, a + n) for n, (a, _) in zip(image.shape, pads))] = image
    return framed


def inside(plain: Plain, image: Array, of: Array, answer: Array, stride: Sequence[int]) -> Array:
    """Which answers of the plain map do not depend on what is around the image: (rows, columns)."""
    margin = list(stride)
    same = np.ones(answer.shape[2:], bool)
    for sign in (1, -1):
        framed = plain(surrounded(image, margin, sign), of)[0]
        where = [slice(m // s, m // s + n) for m, s, n in zip(margin, stride, answer.shape[2:])]
        seen = framed[(..., *where)]
        same &= np.isclose(seen, answer, rtol=1e-4, atol=1e-4).all(axis=(0, 1))
    return same


def check(row: Row, wanted: int | Sequence[int], *, sizes: Sequence[Sequence[int]] = ()) -> None:
    """The law of an output stride, at the native size and larger ones, for all phases.

    By axis, it may also be a multiple of the stride of the network.
    """
    model = row.build()
    converted = onnx_fcn.convert(model, output_stride=wanted).to_proto()
    onnx.checker.check_model(converted, full_check=True)
    run, plain = law.session(converted), Plain(model, row.cut, row.gates)
    asked = [wanted] * len(row.stride) if isinstance(wanted, int) else wanted
    steps = [min(s, w) for s, w in zip(row.stride, asked)]
    kept = tuple(slice(None, None, max(1, w // s)) for s, w in zip(row.stride, asked)) if asked is wanted else ()
    rates = [s // t for s, t in zip(row.stride, steps)]
    native = [d for d in law.dims_of(plain.image)[2:] if d is not None]
    more = [(2, 1, 1), (4, 4, 2) if row.pads else (3, 2, 1)]
    sizes = sizes or [
        native,
        *(
            [n + m * s + (k + 1 if row.remainder else 0) for k, (n, m, s) in enumerate(zip(native, ms, row.stride))]
            for ms in more
        ),
    ]
    compared = dict.fromkeys(np.ndindex(*rates), 0)
    for size in sizes:
        for batch in law.batches_of(plain.image, range(2, 2 + len(native))):
            image = law.noise(plain.image, batch, (-2, 2), [None, law.dims_of(plain.image)[1], *size])
            answers = run({plain.image.name: image})
            law.check_formulas(converted, {plain.image.name: image}, answers)
            for phase in compared:
                shift = [p * t for p, t in zip(phase, steps)]
                # where the size is read, the shifted image has the same remainder
                ends = [None if row.remainder else n + s - t * bool(s) for n, s, t in zip(size, shift, row.stride)]
                shifted = np.ascontiguousarray(image[(..., *(slice(s, e) for s, e in zip(shift, ends)))])
                if any(n < w for n, w in zip(shifted.shape[2:], native)):
                    continue
                wants = plain(shifted, image)
                for k, (got, whole) in enumerate(zip(answers, wants, strict=True)):
                    got = got[(..., *(slice(p, None, r) for p, r in zip(phase, rates)))]
                    want = whole[(..., *kept)]
                    if not any(phase) or not row.pads:
                        assert got.shape == want.shape, f"phase {phase} at {size}"
                        agree(got, want, f"phase {phase} at {size}")
                        compared[phase] += 1
                        continue
                    if k == 0:
                        within = inside(plain, shifted, image, whole, row.stride)[kept]
                    both = tuple(slice(min(m, n)) for m, n in zip(got.shape[2:], want.shape[2:]))
                    cells = within[both]
                    if batch == 1 and cells.any():
                        agree(got[(..., *both)][..., cells], want[(..., *both)][..., cells], f"phase {phase} at {size}")
                        compared[phase] += 1
    assert all(compared.values()), f"phases that were never compared: {compared}"


def agree(got: Array, want: Array, where: str) -> None:
    assert np.isfinite(want).all()
    wrong = np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()
    assert wrong <= ROUNDING, f"{where}: {wrong:.2g} apart"


# Networks -------------------------------------------------------------------------------------------------------------

ROWS: dict[str, Row] = {}


def row(
    name: str,
    trunk: str,
    head: str = DENSE,
    *,
    stride: int | tuple[int, ...] = 4,
    wanted: Sequence[int] = (2,),
    gates: Sequence[str] = (),
    remainder: bool = True,
    pads: bool = False,
    cut: str = "m",
    **given: Any,
) -> None:
    """Add a row to the table; what is not named here is of `network`."""
    assert name not in ROWS, name
    strides = (stride, stride) if isinstance(stride, int) else stride
    build = functools.partial(network, trunk, head, **given)
    ROWS[name] = Row(build, strides, tuple(wanted), tuple(gates), remainder, pads, cut)


CONV = "c = Conv <strides = [2, 2]> (x, k8)  r = Relu (c)"
PADDED = "c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k8)  r = Relu (c)"
K = {"k8": (8, 3, 3, 3)}

# fmt: off
row("convolutions", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)", wanted=(2, 1), k6=(6, 8, 3, 3), **K)
row("convolutions that pad", f"{PADDED}  m = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r, k6)", wanted=(2, 1),
    pads=True, k6=(6, 8, 3, 3), **K)
row("layers behind the dilation", f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  "
    "a = Conv (p, k6)  m = Conv <dilations = [1, 2]> (a, k4)", size=(30, 34), wanted=(2, 1), k6=(6, 8, 2, 3),
    k4=(4, 6, 2, 2), **K)
row("strides that are no powers of two", "c = Conv <strides = [3, 3]> (x, k8)  m = MaxPool <kernel_shape = [2, 2], "
    "strides = [2, 2]> (c)", stride=6, wanted=(1, 2, 3), size=(27, 21), **K)
row("a stride that is divided within one layer", "m = Conv <strides = [4, 4]> (x, k8)", wanted=(1, 2), **K)
row("another stride along each axis", f"{CONV}  m = Conv <strides = [1, 2]> (r, k6)", stride=(2, 4), wanted=(2, 1),
    k6=(6, 8, 3, 3), **K)

row("max pooling", f"{CONV}  m = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (r)", wanted=(1, 2), **K)
row("max pooling, padded", f"{CONV}  m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)",
    pads=True, **K)
row("max pooling, padded more widely than its kernel once it dilates", f"{PADDED}  p = MaxPool <kernel_shape = [3, 3], "
    "strides = [2, 2], pads = [1, 1, 1, 1]> (r)  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2], "
    "pads = [1, 0, 1, 1]> (p)", stride=8, wanted=(4, 2), size=(42, 36), pads=True, **K)
row("max pooling, rounded up", f"{CONV}  p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (r)  "
    "m = Conv (p, k6)", size=(26, 20), pads=True, k6=(6, 8, 2, 2), **K)
row("max pooling, rounded up twice", f"{CONV}  p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (r)"
    "  q = Conv (p, k6)  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (q)", stride=8,
    wanted=(4, 2), size=(46, 38), pads=True, k6=(6, 8, 2, 2), **K)

for opset in (11, 18, 19):
    kind = f"opset {opset}"
    row(f"average pooling, {kind}", f"{CONV}  m = AveragePool <kernel_shape = [2, 3], strides = [2, 2]> (r)",
        opset=opset, **K)
    row(f"average pooling, padded, {kind}", f"{CONV}  a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], "
        "pads = [1, 1, 1, 1]> (r)  m = Conv (a, k6)", pads=True, opset=opset, k6=(6, 8, 2, 2), **K)
    row(f"average pooling, counting what it pads, {kind}", f"{CONV}  a = AveragePool <kernel_shape = [3, 3], "
        "strides = [2, 2], pads = [1, 0, 1, 1], count_include_pad = 1> (r)  m = Conv (a, k6)", pads=True, opset=opset,
        k6=(6, 8, 2, 2), **K)
    row(f"average pooling, rounded up, {kind}", f"{CONV}  a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], "
        "ceil_mode = 1> (r)  m = Conv (a, k6)", size=(26, 20), pads=True, opset=opset, k6=(6, 8, 2, 2), **K)
    row(f"average pooling behind the dilation, {kind}", f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>"
        "(r)  m = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (p)", pads=True, opset=opset, **K)
row("norm pooling", f"{CONV}  m = LpPool <kernel_shape = [2, 2], strides = [2, 2]> (r)", **K)
row("norm pooling, padded", f"{CONV}  m = LpPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)",
    pads=True, **K)
row("SAME at its end", "c = Conv <strides = [2, 2], auto_pad = \"SAME_UPPER\"> (x, k8)  r = Relu (c)  "
    "m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = \"SAME_UPPER\"> (r)", size=(26, 31), pads=True,
    remainder=False, **K)
row("SAME at its beginning", "c = Conv <strides = [2, 2], auto_pad = \"SAME_LOWER\"> (x, k8)  r = Relu (c)  "
    "m = Conv <strides = [2, 2], auto_pad = \"SAME_LOWER\"> (r, k6)", size=(26, 31), pads=True, remainder=False,
    k6=(6, 8, 4, 3), **K)

row("pooling heads", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)", POOLED, wanted=(2, 1), k6=(6, 8, 3, 3), **K)
row("pooling heads, padded", f"{PADDED}  m = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r, k6)", POOLED, pads=True,
    wanted=(2, 1), k6=(6, 8, 3, 3), **K)
row("pooling heads by ReduceMax", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)",
    "g = ReduceMax <axes = [2, 3], keepdims = 0> (m)  y = MatMul (g, fc)", opset=13, k6=(6, 8, 3, 3), **K)
row("pooling heads by AveragePool", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)",
    "g = AveragePool <kernel_shape = [4, 3]> (m)  f = Flatten (g)  y = MatMul (f, fc)", opset=13, k6=(6, 8, 3, 3), **K)
row("standard deviations in the head", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)",
    "g = ReduceMean <axes = [2, 3]> (m)  d = Sub (m, g)  q = Mul (d, d)  v = ReduceMean <axes = [2, 3], keepdims = 0> "
    "(q)  y = MatMul (v, fc)", opset=13, gates=["g"], cut="q", k6=(6, 8, 3, 3), fc=(6, 5), **K)
row("a convolution as the first dense layer", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)",
    "d = Conv (m, k7)  e = Relu (d)  f = Flatten (e)  y = MatMul (f, fc2)", k6=(6, 8, 3, 3), k7=(7, 6, 4, 3),
    fc2=(7, 5), **K)
row("a convolution with padding as the last layer", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)",
    "d = Conv <pads = [1, 1, 1, 1], strides = [6, 6]> (m, k7)  f = Flatten (d)  y = MatMul (f, fc2)",
    k6=(6, 8, 3, 3), k7=(7, 6, 6, 5), fc2=(7, 5), **K)
row("unfolded in the head", f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)",
    "f = Flatten (m)  n = LayerNormalization (f, g1)  y = MatMul (n, w72)", k6=(6, 8, 3, 3), g1=(72,), w72=(72, 5), **K)

DOWN = "strides = [2, 2], pads = [1, 1, 1, 1]"
row("residual", f"{PADDED}  a = Conv <{DOWN}> (r, k6)  b = Conv <strides = [2, 2]> (r, j6)  m = Add (a, b)", pads=True,
    wanted=(2, 1), k6=(6, 8, 3, 3), j6=(6, 8, 1, 1), **K)
row("residual with surplus cells", f"{PADDED}  a = Conv <{DOWN}> (r, k6)  "
    "b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  h = Conv (b, j6)  m = Add (a, h)", pads=True,
    size=(24, 20), wanted=(2, 1), remainder=False, k6=(6, 8, 3, 3), j6=(6, 8, 1, 1), **K)
row("dense with surplus cells", f"{PADDED}  a = Conv <{DOWN}> (r, k6)  b = AveragePool <kernel_shape = [2, 2], "
    "strides = [2, 2]> (r)  m = Concat <axis = 1> (a, b, a)", pads=True, size=(24, 20), remainder=False,
    k6=(6, 8, 3, 3), **K)
row("inception", f"{CONV}  a = Conv <strides = [2, 2]> (r, k6)  b = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> "
    "(r)  m = Concat <axis = 1> (a, b)", wanted=(2, 1), k6=(6, 8, 3, 3), **K)
SQUEEZE = "s = GlobalAveragePool ({0})  t = Conv (s, s1)  u = Relu (t)  v = Conv (u, s2)  gate = Sigmoid (v)  "
row("squeeze and excitation", f"{PADDED}  a = Conv <{DOWN}> (r, k6)  {SQUEEZE.format('a')}m = Mul (a, gate)",
    pads=True, wanted=(2, 1), gates=["gate"], k6=(6, 8, 3, 3), s1=(2, 6, 1, 1), s2=(6, 2, 1, 1), **K)
row("squeeze and excitation behind dilation", f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  "
    f"a = Conv (p, k6)  {SQUEEZE.format('a')}m = Mul (a, gate)", wanted=(2, 1), gates=["gate"], size=(26, 22),
    k6=(6, 8, 3, 3), s1=(2, 6, 1, 1), s2=(6, 2, 1, 1), **K)
row("squeeze by ReduceMean", f"{CONV}  a = Conv <strides = [2, 2]> (r, k6)  s = ReduceMean <axes = [2, 3]> (a)  "
    "gate = Sigmoid (s)  m = Mul (a, gate)", opset=13, gates=["gate"], k6=(6, 8, 3, 3), **K)
row("channel attention by the maximum", f"{CONV}  a = Conv <strides = [2, 2]> (r, k6)  s = GlobalMaxPool (a)  "
    "gate = Sigmoid (s)  m = Mul (a, gate)", gates=["gate"], k6=(6, 8, 3, 3), **K)
row("channel shuffle", f"{CONV}  o = Conv <strides = [2, 2]> (r, k6)  "
    "s = Shape (o)  hw = Slice (s, two, end)  s1 = Concat <axis = 0> (groups, hw)  s2 = Concat <axis = 0> (back, hw)  "
    "q = Reshape (o, s1)  "
    "t = Transpose <perm = [0, 2, 1, 3, 4]> (q)  u = Reshape (t, s2)  m = Conv <group = 2> (u, g6)", size=(26, 22),
    wanted=(2, 1), k6=(6, 8, 3, 3), g6=(6, 3, 2, 2), groups=[0, 2, 3], back=[0, 6], two=[2], end=[4], **K)
row("strided slices", f"{CONV}  a = Slice (r, zero, end, axes, two)  m = Conv (a, k6)", wanted=(2, 1),
    zero=[0, 0], end=[10**6, 10**6], axes=[2, 3], two=[2, 2], k6=(6, 8, 3, 3), size=(23, 19), **K)
row("focus: four phases of the image, stacked", "a = Slice (x, zz, end, axes, two)  b = Slice (x, oz, end, axes, two)  "
    "c = Slice (x, zo, end, axes, two)  h = Slice (x, oo, end, axes, two)  i = Concat <axis = 1> (a, b, c, h)  "
    "m = Conv <strides = [2, 2]> (i, k6)", wanted=(2,), zz=[0, 0], oz=[1, 0], zo=[0, 1], oo=[1, 1],
    end=[10**6, 10**6], axes=[2, 3], two=[2, 2], k6=(6, 12, 3, 3), size=(22, 18), remainder=False)
row("Pad", f"{CONV}  q = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  p = Pad (q, amounts)  m = Conv (p, k6)",
    pads=True, wanted=(2, 1), amounts=[0, 0, 1, 1, 0, 0, 0, 1], k6=(6, 8, 3, 3), **K)
row("normalisations and activations", f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  "
    "b = BatchNormalization (p, v, v, v, v)  q = PRelu (b, slope)  l = LRN <size = 3> (q)  m = HardSwish (l)",
    v=law.positive("v", 8), slope=law.positive("slope", 8, 1, 1), **K)

row("1-D", "c = Conv <strides = [2]> (x, k8)  p = MaxPool <kernel_shape = [3], strides = [2], pads = [1, 1]> (c)  "
    "m = Conv <strides = [2]> (p, k6)", image="float[N,3,46] x", stride=(8,), wanted=(4, 2, 1), pads=True,
    k8=(8, 3, 3), k6=(6, 8, 2))
row("3-D", "c = Conv <strides = [2, 2, 2]> (x, k8)  m = MaxPool <kernel_shape = [2, 2, 2], strides = [2, 1, 2]> (c)",
    image="float[N,3,12,9,10] x", stride=(4, 2, 4), wanted=(2, 1), k8=(8, 3, 3, 3, 3))

row("a head that strides", f"{CONV}  m = Relu (r)", "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)  "
    "f = Flatten (p)  y = MatMul (f, w72)", wanted=(2, 1), w72=(160, 5), cut="p", **K)
# fmt: on

CASES = [(name, wanted) for name, r in ROWS.items() for wanted in r.wanted]


@pytest.mark.parametrize(("name", "wanted"), CASES, ids=[f"{n}, {w}" for n, w in CASES])
def test_answers_in_between(name: str, wanted: int) -> None:
    check(ROWS[name], wanted)


@pytest.mark.parametrize("name", ROWS)
def test_another_stride_along_each_axis(name: str) -> None:
    """Closer along one axis, and as they are or further apart along the others."""
    row = ROWS[name]
    closer, axes = row.wanted[0], len(row.stride)
    for k in range(axes if axes > 1 else 0):
        if closer < row.stride[k]:
            check(row, [closer if j == k else s * (1 + (j + k) % 2) for j, s in enumerate(row.stride)])


def test_strides_by_axis() -> None:
    """One number for each axis that slides, told in the report, and read back."""
    original = ROWS["convolutions"].build()
    both = onnx_fcn.convert(original, output_stride=[2, 8])
    assert both.report.geometry.outputs["y"].stride == (2, 8)
    assert onnx_fcn.validate(original, both.to_proto()).passed
    same, plain = (onnx_fcn.convert(original, output_stride=s).to_proto() for s in ((2, 2), 2))
    assert same.graph == plain.graph
    for stride, message in [
        ((4, 3), r"4 pixels apart along the width, which --output-stride 4x3 does not divide: use 1, 2, 4, or a "
         "multiple of 4 there"),
        ((2, 2, 2), "--output-stride 2x2x2 has 3 numbers, but answers slide along height, width"),
        ((), r"from 1 on, or one for each axis, not \(\)"),
        ((2, 0), r"from 1 on, or one for each axis, not \(2, 0\)"),
    ]:  # fmt: skip
        with pytest.raises(OptionError, match=message):
            onnx_fcn.convert(original, output_stride=stride)


# Answers that are further apart ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_answers_further_apart(name: str) -> None:
    """Every second or third answer of the plain map, the first among them, at sizes with pixels left over."""
    row = ROWS[name]
    model = row.build()
    plain, own = Plain(model, row.cut, row.gates), math.lcm(*row.stride)
    native = [d for d in law.dims_of(plain.image)[2:] if d is not None]
    for wanted in (2 * own, 3 * own):
        converted = onnx_fcn.convert(model, output_stride=wanted)
        run, steps = law.session(converted.to_proto()), [wanted // s for s in row.stride]
        assert all(set(a.stride) == {wanted} for a in converted.report.geometry.outputs.values())
        for more in ([0] * len(native), [wanted * (k + 1) + row.remainder for k in range(len(native))]):
            size = [n + m for n, m in zip(native, more)]
            image = law.noise(plain.image, 1, (-2, 2), [None, law.dims_of(plain.image)[1], *size])
            answers = run({plain.image.name: image})
            law.check_formulas(converted.to_proto(), {plain.image.name: image}, answers)
            for got, want in zip(answers, plain(image), strict=True):
                want = want[(..., *(slice(None, None, step) for step in steps))]
                assert got.shape == want.shape
                agree(got, want, f"every {steps} at {size}")


def test_answers_further_apart_in_other_forms(tmp_path: Path) -> None:
    """Tiles are one pass, full size is interpolated between these answers, and verification knows the stride."""
    image = np.random.default_rng(0).uniform(0, 1, (97, 120)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    digits = FIXTURES / "digits_padded.onnx"
    onnx_fcn.convert(digits, tmp_path / "out.onnx", output_stride=12)
    assert onnx_fcn.validate(digits, tmp_path / "out.onnx").passed
    (whole,) = law.session(onnx.load(tmp_path / "out.onnx"))({"image": image[None, None]})
    onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", tile=24)
    assert np.abs(np.load(tmp_path / "map.npy") - whole[0]).max() <= ROUNDING * np.abs(whole).max()
    onnx_fcn.convert(digits, tmp_path / "full.onnx", output_stride=12, full_size=True)
    (full,) = law.session(onnx.load(tmp_path / "full.onnx"))({"image": image[None, None]})
    assert full.shape[2:] == image.shape
    answers = onnx_fcn.read_geometry(tmp_path / "out.onnx").of()
    assert (answers.stride, answers.period) == ((12, 12), ())


def test_phases_that_are_no_whole_pixels() -> None:
    """A finer map has cells between pixels, to which no image is shifted: right conversions were rejected."""
    original = law.model('u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
        'nearest_mode = "floor"> (x, , scales)  c = Conv <strides = [4, 4]> (u, k)  m = Relu (c)  f = Flatten (m)  '
        "y = MatMul (f, w)", image="float[N,3,12,12] x", opset=13, scales=np.float32([1, 1, 3, 3]), k=(4, 3, 4, 4),
        w=(324, 5))  # fmt: skip
    onnx_fcn.convert(original)
    for wanted in (2, 1):
        assert onnx_fcn.convert(original, output_stride=wanted).report.validation.passed


def test_what_has_no_answers_has_no_coarser_ones() -> None:
    bare = law.model("y = Conv <strides = [4, 4]> (x, w)", image="float[N,3,32,32] x", w=(5, 3, 4, 4))
    with pytest.raises(OptionError, match=r"--output-stride 8 does not divide: use 1, 2, 4$"):
        onnx_fcn.convert(bare, output_stride=8)


def test_a_trained_layer_answers_where_its_maps_have_cells(tmp_path: Path) -> None:
    page, clicks = FIXTURES / "digits_page.npy", FIXTURES / "digits_clicks.csv"
    told: list[str] = []
    with pytest.raises(OptionError, match=r"--output-stride 8 .* a trained layer has an answer at every cell"):
        onnx_fcn.fit(
            FIXTURES / "digits_unpadded.onnx", page, clicks, tmp_path / "out.onnx", output_stride=8,
            progress=lambda words, *_: told.append(words),
        )  # fmt: skip
    assert not any("training" in words for words in told)
    assert not list(tmp_path.iterdir())


# Random trunks --------------------------------------------------------------------------------------------------------


@st.composite
def trunks(draw: st.DrawFn) -> tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """(nodes, weights, size of the image, stride) of a trunk that pads nothing."""
    nodes, weights, previous, channels = [], {}, "x", 3
    layers = draw(st.integers(1, 4))
    slides = []
    for k in range(layers):
        name = "m" if k == layers - 1 else f"a{k}"
        kernel, stride = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
        dilation = [draw(st.integers(1, 2)) for _ in range(2)]
        op = draw(st.sampled_from(["Conv", "Conv", "MaxPool", "AveragePool"]))
        given = f"kernel_shape = {kernel}, strides = {stride}, dilations = {dilation}"
        if op == "Conv":
            width = draw(st.integers(2, 4))
            weights[f"k{k}"] = (width, channels, *kernel)
            nodes.append(f"{name} = Conv <{given}> ({previous}, k{k})")
            channels = width
        else:
            nodes.append(f"{name} = {op} <{given}> ({previous})")
        slides.append((kernel, stride, dilation))
        previous = name
    size = [draw(st.integers(2, 3)) for _ in range(2)]  # of the map, backwards to the image
    for kernel, stride, dilation in reversed(slides):
        size = [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(size, kernel, stride, dilation)]
    strides = tuple(int(np.prod([slide[1][axis] for slide in slides])) for axis in range(2))
    remainder = [draw(st.integers(0, s - 1)) for s in strides]  # pixels of the image that no window needs
    return "  ".join(nodes), weights, tuple(n + r for n, r in zip(size, remainder)), strides


@settings(max_examples=15)
@given(trunks(), st.data())
def test_every_phase_is_the_original_on_crops(
    trunk: tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    body, weights, size, strides = trunk
    fits = [s for s in range(1, max(strides)) if all(t % s == 0 or s % t == 0 for t in strides)]
    assume(fits and max(size) < 80)
    wanted = data.draw(st.sampled_from(fits))
    original = network(body, DENSE, size=size, **weights)
    converted = onnx_fcn.convert(original, output_stride=wanted).to_proto()
    steps = [min(s, wanted) for s in strides]
    image = law.noise(original.graph.input[0], 2, (-2, 2), [2, 3, *(n + s + 1 for n, s in zip(size, strides))])
    want = law.by_window(law.session(original), {"x": image}, "x", size, (2, 3), steps)
    (got,) = law.session(converted)({"x": image})
    scale = np.abs(np.stack([cell[0] for cell in want.values()])).max()
    for (row, column), cell in want.items():
        assert np.abs(got[:, :, row, column] - cell[0]).max() <= ROUNDING * scale


#: Behind a layer that strides: what depends on where a map ends.
AT_THE_END = {
    **{mode: (f'p = Pad <mode = "{mode}"> (r, one)  m = Conv <strides = [2, 2]> (p, k6)', {"one": [0, 0, 1, 1] * 2})
       for mode in ("edge", "reflect")},
    "every second cell": ("s = Slice (r, zero, end, axes, two)  m = Conv <pads = [1, 1, 1, 1]> (s, k6)",
                          {"zero": [0, 1], "end": [10**6] * 2, "axes": [2, 3], "two": [2, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_THE_END)
@pytest.mark.parametrize("native", [31, 32, 33, 34])
def test_every_rth_answer_where_a_map_ends(name: str, native: int) -> None:
    """Beyond its ends a dilated map goes on as the plain one does, at any size of the image."""
    body, values = AT_THE_END[name]
    original = network(f"c = Conv <strides = [2, 2]> (x, k8)  r = Relu (c)  {body}",
        size=(native, native + 1), k8=(8, 3, 3, 3), k6=(6, 8, 3, 3), **values)  # fmt: skip
    for more in range(5):
        image = law.random("image", 1, 3, native + more, native + 1 + 2 * more).astype(np.float32)
        ((got,), (want,)) = in_between(original, 1, 4, image)
        assert got.shape == want.shape
        agree(got, want, f"{more} pixels more")


def test_a_map_with_answers_in_between_has_no_other_end_to_continue_with() -> None:
    original = network('c = Conv <strides = [2, 2]> (x, k8)  p = Pad <mode = "wrap"> (c, one)  m = Conv (p, k6)',
        one=[0, 0, 1, 1] * 2, k6=(6, 8, 3, 3), **K)  # fmt: skip
    with pytest.raises(UnsupportedModel, match="continues a map with its other end, which gives a different result"):
        onnx_fcn.convert(original, output_stride=1)


@pytest.mark.parametrize("examples", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_rth_answer_of_drawn_networks(examples: int) -> None:
    """What a network answers without an output stride, at any size, however it pads, cuts off and meets again."""
    seed, count = fresh.examples(examples)

    @hypothesis.seed(seed)
    @settings(
        max_examples=count, derandomize=False, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases(), data=st.data())
    def agree_with_plain(case: Any, data: st.DataObject) -> None:
        original, larger, _ = case
        assume(all(min(dims) > 1 for dims in _spaces(original)))  # one cell is rejected where something pads it
        sizes = [[d.dim_value for d in original.graph.input[0].type.tensor_type.shape.dim[2:]], larger]
        sizes.append([data.draw(st.integers(a, b)) for a, b in zip(*sizes)])
        try:
            plain = onnx_fcn.convert(original, validate=False)
            strides = plain.report.geometry.of().stride
            assume(all(isinstance(n, int) for n in strides) and max(strides) > 1)
            wanted = [data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])) for n in strides]
            dense = onnx_fcn.convert(original, validate=False, output_stride=wanted)
            assume(dense.report.geometry.of().stride == tuple(wanted))
        except (OptionError, UnsupportedModel):
            assume(False)
        every = tuple(slice(None, None, n // w) for n, w in zip(strides, wanted))
        for size in sizes:
            image = law.random("image", 2, 2, *size).astype(np.float32)
            try:
                want = law.session(plain.to_proto())({"a0": image})[0]
            except Exception as error:  # more cells are reflected, or cropped, than there are
                if "onnxruntime" not in type(error).__module__:
                    raise
                continue
            got = law.session(dense.to_proto())({"a0": image})[0][(..., *every)]
            assert got.shape == want.shape, f"{wanted} at {size}"
            # Noise may cancel, or be nothing after a Relu: the terms are about 1.
            assert np.abs(got - want).max(initial=0) <= ROUNDING * max(np.abs(want).max(initial=0), 1e-2), f"at {size}"

    with fresh.told(seed, count=count):
        agree_with_plain()


def _spaces(model: ModelProto) -> list[list[int]]:
    """The sizes of all maps of a model along the axes of the image."""
    inferred = shape_inference.infer_shapes(model).graph.value_info
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim[2:]] for v in inferred if v.name.startswith("a")]
    return [dims for dims in shapes if dims]


# What the networks are made of ----------------------------------------------------------------------------------------


def in_between(
    original: ModelProto, wanted: int, ratio: int, image: Array, **options: Any
) -> tuple[list[Array], list[Array]]:
    """(every ratio-th answer, the answers without an output stride), both converted."""
    dense = onnx_fcn.convert(original, output_stride=wanted, **options).to_proto()
    plain = onnx_fcn.convert(original, validate=False, **options).to_proto()
    feeds = {original.graph.input[0].name: image}
    return [y[..., ::ratio, ::ratio] for y in law.session(dense)(feeds)], law.session(plain)(feeds)


def test_half_precision() -> None:
    original = network(f"{CONV}  m = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (r)",
        image="float16[N,3,22,18] x", **K)  # fmt: skip
    for got, want in zip(*in_between(original, 2, 2, law.noise(original.graph.input[0], 2, (-2, 2), [2, 3, 31, 30]))):
        assert np.abs(got - want).max() <= 2e-2 * np.abs(want).max()


def test_quantised() -> None:
    quantised = "{1} = QuantizeLinear ({0}, scale, zero)  {2} = DequantizeLinear ({1}, scale, zero)  "
    original = network(
        f"{CONV}  {quantised.format('r', 'q', 's')}w = DequantizeLinear (weight, scale, zero8)  "
        f"o = Conv <strides = [2, 2]> (s, w)  {quantised.format('o', 'p', 'm')}",
        opset=13, scale=np.float32(0.02), zero=np.uint8(100), zero8=np.int8(0),
        weight=np.random.default_rng(0).integers(-30, 30, (6, 8, 3, 3)).astype(np.int8), **K,
    )  # fmt: skip
    for got, want in zip(*in_between(original, 2, 2, law.noise(original.graph.input[0], 2, (-2, 2), [2, 3, 31, 30]))):
        assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()


def test_a_folded_head_and_a_fixed_batch() -> None:
    for batch, head in (("N", "folded"), ("2", "conv"), ("2", "folded")):
        original = network(f"{CONV}  m = Conv <strides = [2, 2]> (r, k6)", image=f"float[{batch},3,22,18] x",
            k6=(6, 8, 3, 3), **K)  # fmt: skip
        image = law.noise(original.graph.input[0], 2, (-2, 2), [2, 3, 31, 30])
        for got, want in zip(*in_between(original, 2, 2, image, head=head)):
            assert np.abs(got - want).max() <= ROUNDING * np.abs(want).max()


def test_channels_last(tmp_path: Path) -> None:
    original = onnx.load(exports.keras_style(tmp_path / "model.onnx"))
    image = np.random.default_rng(0).uniform(-2, 2, (2, 44, 37, 3)).astype(np.float32)
    for wanted in (2, 1):
        converted = onnx_fcn.convert(original, output_stride=wanted).to_proto()
        (got,) = law.session(converted)({"image": image})
        want = law.by_window(law.session(original), {"image": image}, "image", (32, 32), (1, 2), (wanted, wanted))
        grid = tuple(n + 1 for n in max(want))
        assert all(n >= m for n, m in zip(got.shape[2:], grid))  # windows need 30 of the 32 pixels
        got = got[:, :, : grid[0], : grid[1]]
        agree(got, np.stack([w[0] for w in want.values()], -1).reshape(got.shape), "all windows")


def test_several_outputs_at_other_strides() -> None:
    """Each is as dense as was asked for, or as it was where that is denser."""
    original = network(
        f"{CONV}  m = Conv (r, k6)",
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)  y = GlobalMaxPool (m)  h = Flatten (p)  "
        "z = MatMul (h, v)",
        outputs="y, z", v=(72, 5), k6=(6, 8, 3, 3), size=(21, 17), **K,
    )  # fmt: skip
    report = onnx_fcn.convert(original, output_stride=1).report
    assert {name: answers.stride for name, answers in report.geometry.outputs.items()} == {"y": (1, 1), "z": (1, 1)}
    image = law.noise(original.graph.input[0], 2, (-2, 2), [2, 3, 31, 30])
    plain = onnx_fcn.convert(original, validate=False)
    ratio = int(plain.report.stride[0])
    for got, want in zip(*in_between(original, 1, ratio, image)):
        agree(got, want, "phase 0")


def test_answers_lie_where_the_grid_says() -> None:
    original = ROWS["convolutions"].build()
    conversion = onnx_fcn.convert(original, output_stride=1, validate=False)
    image = law.noise(original.graph.input[0], 1, (-2, 2), [1, 3, 31, 29])
    (answers,) = law.session(conversion.to_proto())({"x": image})
    grid = conversion.grid(31, 29)
    assert grid.shape == answers.shape[2:]
    whole = law.session(original)
    for row, column in ((0, 0), (3, 2), (7, 5)):
        left, top, right, bottom = grid.boxes[row, column]
        (want,) = whole({"x": np.ascontiguousarray(image[..., top:bottom, left:right])})
        agree(answers[:, :, row, column], want, f"box of {(row, column)}")


# Whole networks -------------------------------------------------------------------------------------------------------

SMALL = {"densenet_small": 8, "shufflenet_small": 16, "se_resnet_small": 16, "efficientnet_small": 16}

WHOLE = [
    ("lenet", 32, (45, 66), 4, (2, 1)),
    *((name, 64, (80, 96), stride, (stride // 2,)) for name, stride in SMALL.items()),
    *(
        pytest.param(name, 64, (76, 93), stride, (stride // 4, 1), marks=pytest.mark.slow)
        for name, stride in SMALL.items()
    ),
    *(
        pytest.param(name, 224, size, stride, (16, 8, 4)[-count:], marks=pytest.mark.slow)
        for name, size, stride, count in (
            ("alexnet", (288, 352), 32, 3), ("resnet18", (256, 300), 32, 3), ("mobilenet_v2", (256, 300), 32, 3),
            ("squeezenet", (240, 270), 16, 2), ("vgg16", (256, 256), 32, 1),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "native", "size", "stride", "wanted"), WHOLE)
def test_whole_networks(
    name: str, native: int, size: tuple[int, int], stride: int, wanted: tuple[int, ...], tmp_path: Path
) -> None:
    """Every r-th answer is torch's: the trunk on the whole image, the head on every window of its map."""
    model = getattr(exports, name)()
    source = exports.export(model, tmp_path / "model.onnx", native, dynamo=False, opset=13)
    images = exports.noise(model, 1, size)
    want = by_window(model, images)
    for s in wanted:
        onnx_fcn.convert(source, tmp_path / "out.onnx", output_stride=s)
        run = onnxruntime.InferenceSession(tmp_path / "out.onnx")
        (got,) = run.run(None, {"image": images.numpy()})
        r = stride // s
        assert np.abs(got[..., ::r, ::r] - want).max() <= 1e-4 * np.abs(want).max()
        assert np.abs(np.diff(got, axis=3)).max() > 1e-2 * np.abs(want).max()


@torch.inference_mode()
def by_window(model: torch.nn.Sequential, images: torch.Tensor) -> Array:
    """The answers (N, K, rows, columns) of the head for every window of the trunk's map."""
    cut = next(k for k, layer in enumerate(model) if isinstance(layer, torch.nn.AdaptiveAvgPool2d | torch.nn.Flatten))
    native = {1: 32}.get(images.shape[1], 64 if min(images.shape[2:]) < 224 else 224)
    window = model[:cut](images[..., :native, :native]).shape[-1]
    windows = model[:cut](images).unfold(2, window, 1).unfold(3, window, 1).permute(0, 2, 3, 1, 4, 5)
    answers = model[cut:](windows.flatten(0, 2)).unflatten(0, windows.shape[:3])
    return answers.permute(0, 3, 1, 2).numpy()


@pytest.mark.parametrize("name", ["digits_unpadded", "digits_padded"])
@pytest.mark.parametrize("wanted", [2, 1])
def test_digits(name: str, wanted: int) -> None:
    page = np.load(FIXTURES / "digits_page.npy").astype(np.float32)[None, None, :120, :140] / 255
    original = onnx.load(FIXTURES / f"{name}.onnx")
    for got, want in zip(*in_between(original, wanted, 4 // wanted, page)):
        agree(got, want, name)
    if name == "digits_unpadded":
        (got,) = law.session(onnx_fcn.convert(original, output_stride=1, validate=False).to_proto())({"image": page})
        whole = law.session(original)
        for row, column in ((0, 0), (1, 2), (17, 31), (92, 112)):
            (want,) = whole({"image": np.ascontiguousarray(page[..., row : row + 28, column : column + 28])})
            assert np.abs(got[..., row, column] - want).max() <= 1e-4 * np.abs(want).max()


# What cannot be -------------------------------------------------------------------------------------------------------

REFUSED = {
    "upsampling in a dilated trunk": (
        f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  u = Resize <mode = \"nearest\"> "
        "(p, , scales)  m = Conv <strides = [2, 2]> (u, k6)",
        "resizes the map, which gives a different result on a map with answers in between",
        {"scales": np.array([1, 1, 2, 2], np.float32), "k6": (6, 8, 3, 3)}),
    "a transposed convolution in a dilated trunk": (
        f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  "
        "u = ConvTranspose <strides = [2, 2]> (p, t)  m = Conv <strides = [2, 2]> (u, k6)",
        "upsamples the map, which gives a different result on a map with answers in between",
        {"t": (8, 8, 2, 2), "k6": (6, 8, 3, 3)}),
    "a normalisation over positions in a dilated trunk": (
        f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  m = InstanceNormalization (p, v, v)",
        "normalises over all positions, which gives a different result on a map with answers in between",
        {"v": law.positive("v", 8)}),
    "an average that counts what it pads and overhangs": (
        f"{CONV}  a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], "
        "count_include_pad = 1, ceil_mode = 1> (r)  m = Conv (a, k6)", "counts padding and rounds its size up",
        {"k6": (6, 8, 2, 2)}),
    "a norm pooling before opset 18": (
        f"{CONV}  p = LpPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  "
        "m = LpPool <kernel_shape = [2, 2]> (p)", "cannot be dilated before opset 18",
        {"opset": 13}),
    "a maximum before opset 10": (
        f"{CONV}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  "
        "m = MaxPool <kernel_shape = [2, 2]> (p)", "cannot be dilated before opset 10",
        {"opset": 9}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    trunk, message, given = REFUSED[name]
    original = network(trunk, **given, **K)
    onnx_fcn.convert(original, validate=False)
    with pytest.raises(UnsupportedModel, match=message):
        onnx_fcn.convert(original, output_stride=2)


@pytest.mark.parametrize(("wanted", "message"), [
    (3, "4 pixels apart, which --output-stride 3 does not divide: use 1, 2, 4"),
    (6, "--output-stride 6 does not divide: use 1, 2, 4, or a multiple of 4"),
    (0, "a number of pixels from 1 on"), (-2, "from 1 on, or one for each axis, not -2"),
])  # fmt: skip
def test_strides_that_do_not_divide(wanted: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        onnx_fcn.convert(ROWS["convolutions"].build(), output_stride=wanted)


def test_its_own_stride_changes_nothing() -> None:
    original = ROWS["convolutions"].build()
    same, plain = (onnx_fcn.convert(original, output_stride=s).to_proto().graph for s in (4, None))
    assert same == plain


def test_validation_rejects_a_wrong_phase() -> None:
    """A dilation that is left out is wrong between the plain answers only, where neither crops nor the law look."""
    original = network(f"{PADDED}  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  "
        "m = Conv <pads = [1, 1, 1, 1]> (p, k6)", size=(24, 20), k6=(6, 8, 3, 3), **K)  # fmt: skip
    converted = onnx_fcn.convert(original, output_stride=2).to_proto()
    pool = next(n for n in converted.graph.node if n.op_type == "MaxPool")
    faulty = ModelProto()
    faulty.CopyFrom(converted)
    node = next(n for n in faulty.graph.node if n.op_type == "MaxPool")
    name = node.output[0]
    node.output[0] = f"{name}/right"
    # answers of odd rows are those of the row before
    rows = numpy_helper.from_array(np.repeat(np.arange(0, 64, 2), 2)[:11].astype(np.int64), "rows")
    faulty.graph.initializer.append(rows)
    place = list(faulty.graph.node).index(node) + 1
    faulty.graph.node.insert(place, helper.make_node("Gather", [node.output[0], "rows"], [name], "twice", axis=2))
    assert pool.output[0] == name
    with pytest.raises((ValidationError, UnsupportedModel)):
        onnx_fcn.validate(original, faulty)
