"""Attention that sees the whole of a larger image, with `--context attention`: torch is the judge.

torch runs the trunk on all of the larger image, attention included, and the head on every window of its last map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import onnx_fcn
from onnx_fcn import OptionError, UnsupportedModel, ValidationError
from onnx_fcn.rules import whole

NATIVE, STRIDE, WINDOW, CHANNELS = 32, 4, 8, 8

#: With remainders of all kinds: prime numbers, one axis of the native size, and far longer than wide.
SIZES = ((56, 43), (37, 61), (32, 35), (131, 33))

#: torch and onnxruntime differ by rounding, behind a dozen layers; relative to the largest answer.
ROUNDING = 1e-5


class NonLocal(nn.Module):
    """Every position sees every other one (Wang et al., 2018). `size`: the numbers of cells that are written out."""

    def __init__(self, *, written: bool = True) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(CHANNELS, 6, 1) for _ in range(3))
        self.out, self.written = nn.Conv2d(6, CHANNELS, 1), written

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).flatten(2) for one in (self.theta, self.phi, self.g))
        y = (q.transpose(1, 2) @ k).softmax(-1) @ v.transpose(1, 2)
        n, _, h, w = x.shape
        size = (h, w) if self.written else (x.shape[2], x.shape[3])
        return x + self.out(y.transpose(1, 2).reshape(n, 6, *size))


class SplitHeads(nn.Module):
    """The attention of YOLO11: heads of a joint convolution, split, and a depthwise convolution of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.place = (
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 1),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, groups=CHANNELS),
        )
        self.out = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).view(n, 2, c, h * w).split([2, 2, 4], 2)
        scores = ((q * 2**-0.5).transpose(-2, -1) @ k).softmax(-1)
        y = (v @ scores.transpose(-2, -1)).view(n, c, h, w) + self.place(v.reshape(n, c, h, w))
        return x + self.out(y)


class PooledKeys(nn.Module):
    """The attention of PVTv2: on a list of positions, with keys of a coarser map."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(CHANNELS, 8), nn.Linear(CHANNELS, 16), nn.Linear(8, CHANNELS)
        self.reduce, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 4, 4), nn.LayerNorm(CHANNELS)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        q = self.q(t).reshape(n, h * w, 2, 4).permute(0, 2, 1, 3)
        pooled = self.norm(self.reduce(t.permute(0, 2, 1).reshape(n, c, h, w)).reshape(n, c, -1).permute(0, 2, 1))
        k, v = self.kv(pooled).reshape(n, -1, 2, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        y = t + self.out(y.transpose(1, 2).reshape(n, h * w, 8))
        return y.transpose(1, 2).reshape(n, c, h, w)


class Linear(nn.Module):
    """Linear attention: keys and values are contracted over all positions first, as in EfficientViT.

    `padded`: the sum of the keys is that of values of 1, which are padded to the others.
    """

    def __init__(self, *, padded: bool = False) -> None:
        super().__init__()
        self.padded = padded
        self.qkv, self.out = nn.Conv2d(CHANNELS, 24, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, 2, 12, h * w).split(4, 2)
        q, k = torch.relu(q), torch.relu(k)
        if self.padded:
            v = functional.pad(v, (0, 0, 0, 1), value=1.0)
            y = (v @ k.transpose(-1, -2)) @ q
            y = y[:, :, :-1] / (y[:, :, -1:] + 1e-3)
        else:
            y = (v @ k.transpose(-1, -2)) @ q / (k.sum(-1).unsqueeze(2) @ q + 1e-3)
        return x + self.out(y.reshape(n, c, h, w))


class MultiQuery(nn.Module):
    """Heads that share their keys and values, which are repeated by an Expand to the size of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q = self.q(x).reshape(n, 2, 4, h * w)
        k, v = self.kv(x).reshape(n, 1, 8, h * w).expand(n, 2, 8, h * w).split(4, 2)
        return x + (v @ (k.transpose(2, 3) @ q).softmax(2)).reshape(n, c, h, w)


class Axial(nn.Module):
    """Attention along the rows: the columns are in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).permute(0, 2, 3, 1).reshape(n * h, w, 3 * c).chunk(3, -1)
        y = (q @ k.transpose(1, 2) / math.sqrt(c)).softmax(-1) @ v
        return x + y.reshape(n, h, w, c).permute(0, 3, 1, 2)


class Summed(nn.Module):
    """The same as einsums, with positions on axes of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        scores = torch.einsum("ncp,ncq->npq", q, k).softmax(-1)
        return x + torch.einsum("npq,ncq->ncp", scores, v).view_as(x)


class Masked(nn.Module):
    """Scores that pass through arithmetic with constants before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1), nn.Parameter(torch.randn(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, 2, c // 2, h * w).unbind(1)
        scores = q.transpose(-1, -2) @ k + self.bias
        scores = torch.where(scores > 1, scores * 2, scores).softmax(-1)
        scores = scores / (1e-6 + scores.sum(-1, keepdim=True))
        return x + (v @ scores.transpose(-1, -2)).reshape(n, c, h, w)


class CrossCovariance(nn.Module):
    """Attention between channels, of queries and keys that are normalised along the positions (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, 2, c // 2, h * w).unbind(1)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        return x + ((q @ k.transpose(-1, -2)).softmax(-1) @ v).reshape(n, c, h, w)


class ScaledByItsWidth(nn.Module):
    """Scores that are divided by the root of the number of channels, as an exporter reads it at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one.flatten(2).transpose(1, 2)[:, None] for one in self.qkv(x).chunk(3, 1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + y[:, 0].transpose(1, 2).reshape(x.shape)


class ScaledByItsShape(ScaledByItsWidth):
    """The same written out, with the number of channels of the shape: a legacy export with a free batch computes it."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        scores = functional.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, -1)
        return x + (v @ scores.transpose(1, 2)).reshape(x.shape)


class Table(nn.Module):
    """Attention with a bias for each pair of positions, as in LeViT."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1), nn.Parameter(torch.randn(places, places))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        scores = (q.transpose(1, 2) @ k + self.bias).softmax(-1)
        return x + (v @ scores.transpose(1, 2)).view_as(x)


class Embedded(nn.Module):
    """Attention between positions with an embedding for each."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.places, self.attention = nn.Parameter(torch.randn(1, CHANNELS, places, places)), NonLocal()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x + self.places)


class InWindows(nn.Module):
    """Attention within windows of 4×4 positions, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        t = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        q, k, v = self.qkv(t).chunk(3, -1)
        y = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "non-local": NonLocal,
    "two of them": lambda: nn.Sequential(NonLocal(), nn.ReLU(), SplitHeads()),
    "split heads": SplitHeads,
    "pooled keys": PooledKeys,
    "pooled keys, fused": lambda: PooledKeys(fused=True),
    "linear": Linear,
    "linear, padded": lambda: Linear(padded=True),
    "shared keys": MultiQuery,
    "axial": Axial,
    "einsum": Summed,
    "arithmetic": Masked,
    "between channels": CrossCovariance,
    "scaled by its width": ScaledByItsWidth,
    "scaled by its shape": ScaledByItsShape,
}

exporters = pytest.mark.parametrize(("dynamo", "opset"), [(False, 14), (True, 18)], ids=["torchscript", "dynamo"])
batches = pytest.mark.parametrize("free", [True, False], ids=["any batch", "one image"])


def network(block: nn.Module, *, native: int = NATIVE) -> nn.Sequential:
    """(trunk with this block, head): answers every 4 pixels, of windows of 8×8 cells."""

    def build() -> nn.Sequential:
        trunk = [nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU(), block, nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1), nn.ReLU()]
        return nn.Sequential(
            nn.Sequential(*trunk), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5))
        )

    made = exports.scaled(build, native)
    assert isinstance(made, nn.Sequential)
    return made


def written(block: nn.Module, path: Path, *, dynamo: bool, opset: int, free: bool = True) -> tuple[nn.Sequential, Path]:
    """A network with this block, and its file."""
    model = network(block)
    return model, exports.export(model, path / "m.onnx", NATIVE, dynamo=dynamo, opset=opset, dynamic_batch=free)


def check(model: nn.Sequential, converted: onnx_fcn.Conversion, free: bool, step: int = 1) -> None:
    """Compare every answer for images of several sizes with torch's."""
    run = law.session(converted.to_proto())
    for size in SIZES:
        images = exports.noise(model, 2 if free else 1, size)
        with torch.no_grad():
            windows = model[0](images).unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)  # (N, C, rows, columns, 8, 8)
            n, _, rows, columns = windows.shape[:4]
            answers = model[1](windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
        want = answers.reshape(n, rows, columns, -1).permute(0, 3, 1, 2).numpy()[:, :, ::step, ::step]
        (got,) = run({"image": images.numpy()})
        assert got.shape == want.shape
        assert np.abs(got - want).max() < ROUNDING * np.abs(want).max()


@exporters
@batches
@pytest.mark.parametrize("name", BLOCKS)
def test_attention_sees_the_whole_image(name: str, free: bool, dynamo: bool, opset: int, tmp_path: Path) -> None:
    model, source = written(BLOCKS[name](), tmp_path, dynamo=dynamo, opset=opset, free=free)
    converted = onnx_fcn.convert(source, context="attention")
    check(model, converted, free)
    assert converted.report.context
    assert "attention" in {c.kind for c in converted.report.validation.checks}


#: Scores of positions for each other, `a`, of the map `c`, and a map `m` of values weighted by what is computed, `b`.
SCORES = """
    c = Conv (x, k)  s = Shape (c)  p = Reshape (c, flat)  t = Transpose <perm = [0, 2, 1]> (p)  a = MatMul (t, p)
"""
WEIGHTED = "o = MatMul (p, b)  m = Reshape (o, s)  g = GlobalAveragePool (m)  f = Flatten (g)  y = MatMul (f, w)"
WEIGHTS: dict[str, Any] = {"k": (6, 3, 3, 3), "flat": [0, 6, -1], "w": (6, 5)}

#: Scores in two heads, (N, 2, P, P), and their sum.
HEADS, JOINED = "u = Unsqueeze (a, one)  h = Mul (u, two)", "b = ReduceSum <keepdims = 0> (j, one)"
OF_HEADS: dict[str, Any] = {"one": [1], "two": (2, 1, 1)}

HALF = np.array(0.5, np.float32)
LIMITS = {"half": HALF, "t0": -HALF}

#: For operators between positions: from `a` to `b`, and what they read.
BETWEEN: dict[str, tuple[str, dict[str, Any]]] = {
    **{op: (f"d = {op} (a)  b = Softmax (d)", {}) for op in ("Abs", "Elu", "Erf", "Identity", "Neg", "Relu")},
    **{op: (f"d = {op} (a)  b = Softmax (d)", {}) for op in ("Sigmoid", "Softplus", "Tanh")},
    "Exp": ("e = Tanh (a)  b = Exp (e)", {}),
    "Gelu": ("d = Gelu (a)  b = Softmax (d)", {}),
    "Log": ("e = Softplus (a)  b = Log (e)", {}),
    "Reciprocal": ("e = Softplus (a)  d = Add (e, half)  b = Reciprocal (d)", {"half": HALF}),
    "Sqrt": ("e = Softplus (a)  b = Sqrt (e)", {}),
    "LogSoftmax": ("b = LogSoftmax <axis = 1> (a)", {}),
    "IsNaN": ("i = IsNaN (a)  j = Cast <to = 1> (i)  b = Add (a, j)", {}),
    "IsInf": ("i = IsInf (a)  j = Cast <to = 1> (i)  b = Add (a, j)", {}),
    "Not": ("i = Less (a, half)  j = Not (i)  b = Where (j, a, half)", {"half": HALF}),
    "And": ("i = Less (a, half)  j = Greater (a, t0)  q = And (i, j)  b = Where (q, a, t0)", LIMITS),
    "Or": ("i = Equal (a, half)  j = GreaterOrEqual (a, half)  q = Or (i, j)  b = Where (q, half, a)", {"half": HALF}),
    "LessOrEqual": ("i = LessOrEqual (a, half)  b = Where (i, half, a)", {"half": HALF}),
    "Clip": ("b = Clip (a, t0, half)", LIMITS),
    "Dropout": ("d = Dropout (a)  b = Softmax (d)", {}),
    "Div": ("e = Softplus (a)  r = ReduceSum <keepdims = 1> (e, last)  b = Div (e, r)", {"last": [-1]}),
    "Sub": ("r = ReduceMax <axes = [2], keepdims = 1> (a)  d = Sub (a, r)  b = Exp (d)", {}),
    "Max": ("r = Transpose <perm = [0, 2, 1]> (a)  q = Max (a, r)  z = Min (q, half)  b = Sum (z, a)", {"half": HALF}),
    "Mod": ("b = Mod <fmod = 1> (a, half)", {"half": HALF}),
    "Pow": ("e = Softplus (a)  b = Pow (e, half)", {"half": HALF}),
    **{
        f"Reduce{kind}": (f"r = Reduce{kind} <axes = [1], keepdims = 1> (a)  d = Tanh (a)  b = Mul (d, r)", {})
        for kind in ("L1", "L2", "Mean", "Min", "SumSquare")
    },
    "Reshape": ("z = Shape (a)  d = Reshape (a, rows)  e = Tanh (d)  b = Reshape (e, z)", {"rows": [0, -1, 1]}),
    "Flatten": ("z = Shape (a)  d = Flatten (a)  e = Tanh (d)  b = Reshape (e, z)", {}),
    "Squeeze": ("u = Unsqueeze (a, one)  e = Tanh (u)  b = Squeeze (e, one)", {"one": [1]}),
    "Split": (f"{HEADS}  q, r = Split <axis = 1> (h)  v = Mul (q, r)  b = Squeeze (v, one)", OF_HEADS),
    "Slice": (f"{HEADS}  v = Slice (h, one, end, one)  b = Squeeze (v, one)", {**OF_HEADS, "end": [2]}),
    "MatMul": (f"{HEADS}  i = Transpose <perm = [0, 2, 3, 1]> (h)  q = MatMul (i, mix)  r = Tanh (q)"
               f"  j = Transpose <perm = [0, 3, 1, 2]> (r)  {JOINED}", {**OF_HEADS, "mix": (2, 2)}),
    "Einsum": (f"{HEADS}  j = Einsum <equation = \"nhpq,hi->niqp\"> (h, mix)  {JOINED}", {**OF_HEADS, "mix": (2, 2)}),
}  # fmt: skip


def test_the_operator_attention(tmp_path: Path) -> None:
    """torch's newest exports have one operator for all of it."""
    model, source = written(PooledKeys(fused=True), tmp_path, dynamo=True, opset=23)
    converted = onnx_fcn.convert(source, context="attention")
    assert [op for _, op in converted.report.context] == ["Attention"]
    check(model, converted, True)


def test_every_operator_between_positions_has_a_row() -> None:
    text = " ".join([SCORES, WEIGHTED, *(body for body, _ in BETWEEN.values())])
    assert {op for op in whole.operators() if f" {op} " not in text} == {"Attention"}


@pytest.mark.parametrize("name", BETWEEN)
def test_between_positions(name: str) -> None:
    """The original's own nodes judge: nothing in this file says how large the map is."""
    body, weights = BETWEEN[name]
    opset = 20 if name == "Gelu" else 13
    given = {"image": "float[N,3,7,6] x", "outputs": "float[N,5] y", "opset": opset, **WEIGHTS, **weights}
    network = law.model(f"{SCORES} {body} {WEIGHTED}", **given)
    converted = onnx_fcn.convert(network, context="attention")
    law.check(network, converted.to_proto(), cut="m", between=(-0.5, 0.5))


def test_padding_that_depends_on_the_size_of_the_image() -> None:
    """Where pixels are left over, the original pads in another way: it is compared where none are."""
    scores = SCORES.replace("Conv (x", 'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x')
    given = {"image": "float[N,3,9,7] x", "outputs": "float[N,5] y", **WEIGHTS}
    network = law.model(f"{scores} b = Softmax (a) {WEIGHTED}", **given)
    report = onnx_fcn.convert(network, context="attention").report
    assert report.validation is not None
    assert "attention" in {c.kind for c in report.validation.checks}


def test_what_cannot_be_compared_is_rejected() -> None:
    """A slice of all rows of the native size: the original's nodes give another map of a larger image."""
    scores = SCORES.replace("c = Conv (x, k)", "c0 = Conv (x, k)  c = Slice (c0, from, to, rows)")
    given = {"image": "float[N,3,7,6] x", "outputs": "float[N,5] y", **WEIGHTS}
    network = law.model(f"{scores} b = Softmax (a) {WEIGHTED}", **given, **{"from": [0], "to": [5], "rows": [2]})
    with pytest.raises(ValidationError, match="the original's nodes do not run on a larger image"):
        onnx_fcn.convert(network, context="attention")


class Tokens(nn.Module):
    """A transformer without embeddings: patches as a list of positions, the mean of which is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norms = nn.Conv2d(3, CHANNELS, 4, 4), nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(3))
        self.qkv, self.out, self.dense = nn.Linear(CHANNELS, 24), nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 5)

    def trunk(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, p, c = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(n, p, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(n, p, c)
        return self.norms[2](x + functional.gelu(self.out(self.norms[1](x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.trunk(x).mean(1))


@exporters
def test_a_list_of_positions(dynamo: bool, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, (rows, columns) = Tokens().eval(), (11, 9)
    source = exports.export(model, tmp_path / "m.onnx", NATIVE, dynamo=dynamo, opset=opset)
    converted = onnx_fcn.convert(source, context="attention")
    images = exports.noise(model.patches, 2, (4 * rows + 3, 4 * columns + 1))
    with torch.no_grad():
        cells = model.trunk(images).transpose(1, 2).reshape(2, CHANNELS, rows, columns)
        windows = cells.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)
        want = model.dense(windows.mean((-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).numpy()
    (got,) = law.session(converted.to_proto())({"image": images.numpy()})
    assert np.abs(got - want).max() < ROUNDING * np.abs(want).max()


@pytest.mark.parametrize("options", [{"head": "folded"}, {"output_stride": 8}], ids=str)
def test_other_options_go_with_it(options: dict[str, Any], tmp_path: Path) -> None:
    model, source = written(SplitHeads(), tmp_path, dynamo=False, opset=14)
    converted = onnx_fcn.convert(source, context="attention", **options)
    check(model, converted, True, options.get("output_stride", STRIDE) // STRIDE)


def test_answers_in_between_follow_attention(tmp_path: Path) -> None:
    """Operators after attention dilate; every other answer is that of the network's own stride."""
    model, source = written(SplitHeads(), tmp_path, dynamo=False, opset=14)
    images = exports.noise(model, 1, SIZES[0]).numpy()
    plain, finer = (
        law.session(onnx_fcn.convert(source, context="attention", output_stride=stride).to_proto())({"image": images})[
            0
        ]
        for stride in (STRIDE, STRIDE // 2)
    )
    law.agree(finer[:, :, ::2, ::2], plain, "the answers of the network's own stride")
    with pytest.raises(UnsupportedModel, match="relates positions to each other, which gives a different result"):
        onnx_fcn.convert(source, context="attention", output_stride=1)


def test_the_file_says_what_it_was_asked_for(tmp_path: Path) -> None:
    _, source = written(NonLocal(), tmp_path, dynamo=False, opset=14)
    conversion = onnx_fcn.convert(source, tmp_path / "out.onnx", context="attention")
    report = conversion.report
    assert [op for _, op in report.context] == ["MatMul", "Softmax", "MatMul"]
    assert [entry["op"] for entry in report.to_dict()["context"]] == ["MatMul", "Softmax", "MatMul"]
    assert report.geometry.exactness == {"scores": "context"}
    assert "'/0/0.2/MatMul' (MatMul) sees the whole image" in report.caveats[0]
    assert onnx_fcn.validate(source, tmp_path / "out.onnx").passed
    assert not conversion.grid(*SIZES[0]).interior.any()


def test_explanations(tmp_path: Path) -> None:
    _, source = written(NonLocal(), tmp_path, dynamo=False, opset=14)
    explained = onnx_fcn.explain(source, "/0/0.2/Softmax", context="attention")
    assert (explained.part, explained.becomes) == ("context", "Softmax, unchanged")
    assert "of the whole image n (h16 w16) (h16 w16)" in str(explained)


def test_nothing_changes_where_nothing_needs_it(tmp_path: Path) -> None:
    source = exports.export(network(nn.Identity()), tmp_path / "m.onnx", NATIVE, dynamo=False, opset=14)
    converted, plain = onnx_fcn.convert(source, context="attention"), onnx_fcn.convert(source)
    assert converted.to_proto() == plain.to_proto()
    assert "--context attention changed nothing" in converted.report.caveats[0]


@pytest.mark.parametrize("other", [{"windows": True}, {"keep_size": True}], ids=str)
def test_contradictions(other: dict[str, bool], tmp_path: Path) -> None:
    _, source = written(NonLocal(), tmp_path, dynamo=False, opset=14)
    with pytest.raises(OptionError, match=r"--context attention and --.* contradict each other"):
        onnx_fcn.convert(source, context="attention", **other)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a table of pairs": (lambda: Table(256), "has a constant for each of 256 positions of the native size"),
    "an embedding": (lambda: Embedded(16), "has made channels of those of the native size"),
    "windows of the map": (
        InWindows,
        "whose size does not follow from that of the image|has made channels of those of the native size",
    ),
    "a divisor": (lambda: Divided(), "scales by 256, the number of positions at the native size"),
}


class Divided(nn.Module):
    """A non-local block that divides by the number of positions instead of a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2)
        return x + ((t @ (t.transpose(1, 2) @ t)) / t.shape[-1]).view_as(x)


@exporters
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, dynamo: bool, opset: int, tmp_path: Path) -> None:
    build, reason = REFUSED[name]
    _, source = written(build(), tmp_path, dynamo=dynamo, opset=opset, free=False)
    with pytest.raises(UnsupportedModel, match=reason):
        onnx_fcn.convert(source, context="attention")
    with pytest.raises(UnsupportedModel) as refusal:
        onnx_fcn.convert(source)
    assert "--context" not in str(refusal.value)


def test_proposed_where_it_works(tmp_path: Path) -> None:
    _, source = written(NonLocal(), tmp_path, dynamo=False, opset=14)
    with pytest.raises(UnsupportedModel, match=r"--windows runs .*\. --context attention lets attention see the whole"):
        onnx_fcn.convert(source)


class Bilinear(nn.Module):
    """A head of the products of all pairs of channels, (N, C, H, W) -> (N, C·C)."""

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2)
        return (t @ t.transpose(1, 2)).flatten(1)


def test_an_answer_without_positions_is_refused(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), Bilinear(), nn.Linear(16, 5))

    source = exports.export(exports.scaled(build, NATIVE), tmp_path / "m.onnx", NATIVE, dynamo=False, opset=14)
    with pytest.raises(UnsupportedModel, match="reads one answer for all positions of the image"):
        onnx_fcn.convert(source, context="attention")


def test_attention_in_a_branch_of_the_head_is_refused(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, CHANNELS, 3, 2, 1), NonLocal()
            self.dense = nn.Linear(2 * CHANNELS, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return self.dense(torch.cat([x.mean((2, 3)), self.block(x).amax((2, 3))], 1))

    source = exports.export(exports.scaled(Branches, NATIVE), tmp_path / "m.onnx", NATIVE, dynamo=False, opset=14)
    with pytest.raises(UnsupportedModel, match="relates positions in a branch of the head after"):
        onnx_fcn.convert(source, context="attention")


def test_a_dense_output(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU(), NonLocal(), nn.Conv2d(CHANNELS, 3, 1))

    model = exports.scaled(build, NATIVE)
    source = exports.export(model, tmp_path / "m.onnx", NATIVE, dynamo=False, opset=14)
    converted = onnx_fcn.convert(source, context="attention")
    assert "dense" in {c.kind for c in converted.report.validation.checks}
    for size in SIZES:
        images = exports.noise(model, 2, size)
        with torch.no_grad():
            want = model(images).numpy()
        (got,) = law.session(converted.to_proto())({"image": images.numpy()})
        assert np.abs(got - want).max() < ROUNDING * np.abs(want).max()


def test_one_axis(tmp_path: Path) -> None:
    """Attention between the steps of a sequence, with positions along one axis only."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.qkv, self.dense = nn.Conv1d(2, 8, 3, 2, 1), nn.Conv1d(8, 24, 1), nn.Linear(8, 5)

        def trunk(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            q, k, v = self.qkv(x).chunk(3, 1)
            return x + v @ (k.transpose(1, 2) @ q).softmax(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(self.trunk(x).mean(2))

    torch.manual_seed(0)
    model, native, larger = Steps().eval(), 32, 57
    source = exports.export(model, tmp_path / "m.onnx", (native,), dynamo=False, opset=14)
    converted = onnx_fcn.convert(source, context="attention")
    images = torch.randn(2, 2, larger)
    with torch.no_grad():
        windows = model.trunk(images).unfold(2, native // 2, 1)
        want = model.dense(windows.mean(-1).transpose(1, 2)).transpose(1, 2).numpy()
    (got,) = law.session(converted.to_proto())({"image": images.numpy()})
    assert np.abs(got - want).max() < ROUNDING * np.abs(want).max()


def planted(model: onnx.ModelProto, op: str, change: Callable[[onnx.NodeProto], None]) -> onnx.ModelProto:
    """A model with a fault in the last of its nodes with this operator."""
    change([node for node in model.graph.node if node.op_type == op][-1])
    return model


def test_a_fault_that_only_a_larger_image_shows(tmp_path: Path) -> None:
    """At the native size the map is a square: height and width that are exchanged do not matter there."""
    _, source = written(NonLocal(), tmp_path, dynamo=False, opset=14)
    model = onnx_fcn.convert(source, context="attention").to_proto()
    gathers = [n for n in model.graph.node if n.op_type == "Gather" and n.output[0].startswith("/0/0.2")]
    assert gathers, "the size of the map is read at run time"
    index = next(t for t in model.graph.initializer if t.name == gathers[-1].input[1])
    index.CopyFrom(onnx.numpy_helper.from_array(5 - onnx.numpy_helper.to_array(index), index.name))
    with pytest.raises(ValidationError, match="the converted model fails at "):
        onnx_fcn.validate(source, model)
