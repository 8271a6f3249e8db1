"""Gates and poolings that weigh the positions of a map, and kernels that the image mixes, as torch exports them.

torch is the judge: the trunk on all of a larger image, then the head on every window of its last map.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import exports
import law
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import onnx_fcn
from onnx_fcn import UnsupportedModel

NATIVE, LARGER, STRIDE, WINDOW, CHANNELS = 32, (56, 43), 4, 8, 8

#: torch and onnxruntime differ by rounding, behind a dozen layers; relative to the largest answer.
ROUNDING = 1e-5


class Weighing(nn.Module):
    """A softmax over all positions of a map: (N, C, H, W) -> (N, 1, H·W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).flatten(2).softmax(-1)


class Attended(Weighing):
    """The weighted sum of all positions, (N, C), by a product of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ super().forward(x).transpose(1, 2)).squeeze(-1)


class Summed(Weighing):
    """The same by a product and a sum."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * super().forward(x).view_as(x[:, :1])).sum((2, 3))


class Written(Weighing):
    """The same with a softmax that is written out."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.one(x)
        weights = torch.exp(scores - scores.amax((2, 3), keepdim=True))
        return (weights / (weights.sum((2, 3), keepdim=True) + 1e-9) * x).sum((2, 3))


class Contracted(Weighing):
    """The same by an einsum."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ncp,nop->nc", x.flatten(2), super().forward(x))


class Queried(nn.Module):
    """The values of all positions, weighted by how their keys agree with a learnt query, in two heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, 2, 1)
        self.values = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weights = self.query(x).reshape(n, 2, 1, h * w).softmax(-1)
        return (weights @ self.values(x).reshape(n, 2, c // 2, h * w).transpose(2, 3)).reshape(n, c)


class LogSumExp(nn.Module):
    """A smooth maximum of all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return torch.logsumexp(x, (2, 3))


class Gate(nn.Module):
    """Channels gated by what is pooled from all positions."""

    def __init__(self, pool: type[nn.Module]) -> None:
        super().__init__()
        self.pool, self.dense = pool(CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.dense(self.pool(x)).sigmoid()[:, :, None, None]


class GlobalContext(nn.Module):
    """Added to each position: the weighted sum of all of them, transformed (GCNet, Cao et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, 1, 1)
        self.transform = nn.Sequential(nn.Conv2d(CHANNELS, 4, 1), nn.ReLU(), nn.Conv2d(4, CHANNELS, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weights = self.one(x).reshape(n, 1, h * w).softmax(-1).unsqueeze(3)
        return x + self.transform((x.reshape(n, c, h * w).unsqueeze(1) @ weights).view(n, c, 1, 1))


class Coarse(nn.Module):
    """A gate of what a stride of 3 leaves of the map, back to its size (GhostNetV2, Tang et al., 2022)."""

    def __init__(self, mode: str, corners: bool | None) -> None:
        super().__init__()
        self.conv, self.mode, self.corners = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), mode, corners

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(functional.avg_pool2d(x, 3)).sigmoid()
        return x * functional.interpolate(gate, x.shape[2:], mode=self.mode, align_corners=self.corners)


class MixedKernel(nn.Module):
    """A convolution by a kernel that the image mixes from four (CondConv, Yang et al., 2019)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.route = nn.Linear(CHANNELS, 4)
        self.kernels = nn.Parameter(torch.randn(4, CHANNELS * CHANNELS // groups * 9) / 8)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mixed = self.route(functional.adaptive_avg_pool2d(x, 1).flatten(1)).sigmoid() @ self.kernels
        kernel = mixed.view(n * c, c // self.groups, 3, 3)
        y = functional.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n * self.groups)
        return y.permute(1, 0, 2, 3).view(n, c, y.shape[-2], y.shape[-1])


POOLS = (Attended, Summed, Written, Contracted, Queried, LogSumExp)
GATES: dict[str, Callable[[], nn.Module]] = {
    "global context": GlobalContext,
    "coarse gate, nearest": lambda: Coarse("nearest", None),
    "coarse gate, bilinear": lambda: Coarse("bilinear", False),
    "coarse gate, corners aligned": lambda: Coarse("bilinear", True),
    **{f"gate, {pool.__name__}": lambda pool=pool: Gate(pool) for pool in POOLS},
}
KERNELS: dict[str, Callable[[], nn.Module]] = {
    "mixed kernel": lambda: MixedKernel(1),
    "mixed kernel for each channel": lambda: MixedKernel(CHANNELS),
}

exporters = pytest.mark.parametrize(("dynamo", "opset"), [(False, 13), (True, 18)], ids=["torchscript", "dynamo"])
batches = pytest.mark.parametrize("free", [True, False], ids=["any batch", "one image"])


def network(block: nn.Module, pool: type[nn.Module] | None = None, native: int = NATIVE) -> nn.Sequential:
    """(trunk with this block, head): answers every 4 pixels, of windows of 8×8 cells."""

    def build() -> nn.Sequential:
        trunk = [nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU(), block, nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1), nn.ReLU()]
        head = [nn.Flatten(), nn.Linear(CHANNELS * WINDOW**2, 5)]
        return nn.Sequential(
            nn.Sequential(*trunk), nn.Sequential(*head if pool is None else [pool(CHANNELS), nn.Linear(CHANNELS, 5)])
        )

    made = exports.scaled(build, native)
    assert isinstance(made, nn.Sequential)
    return made


def check(model: nn.Sequential, source: Path, free: bool, **options: int) -> onnx_fcn.Report:
    """Convert a file, and compare every answer for a larger image with torch's."""
    conversion = onnx_fcn.convert(source, **options)
    images = exports.noise(model, 2 if free else 1, LARGER)
    got = law.session(conversion.to_proto())({"image": images.numpy()})[0]
    with torch.no_grad():
        cells = model[0](images)
        windows = cells.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1)  # (N, C, rows, columns, 8, 8)
        n, _, rows, columns = windows.shape[:4]
        answers = model[1](windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
    want = answers.reshape(n, rows, columns, -1).permute(0, 3, 1, 2).numpy()
    step = options.get("output_stride", STRIDE) // STRIDE
    want = want[:, :, ::step, ::step]
    assert got.shape == want.shape
    assert np.abs(got - want).max() < ROUNDING * np.abs(want).max()
    return conversion.report


@exporters
@batches
@pytest.mark.parametrize("name", GATES)
def test_a_gate_sees_the_whole_image(name: str, free: bool, dynamo: bool, opset: int, tmp_path: Path) -> None:
    model = network(GATES[name]())
    source = exports.export(model, tmp_path / "m.onnx", NATIVE, dynamo=dynamo, opset=opset, dynamic_batch=free)
    assert check(model, source, free).context


@exporters
@pytest.mark.parametrize("pool", POOLS)
def test_a_pooling_of_the_head_sees_its_window(pool: type[nn.Module], dynamo: bool, opset: int, tmp_path: Path) -> None:
    model = network(nn.Identity(), pool)
    source = exports.export(model, tmp_path / "m.onnx", NATIVE, dynamo=dynamo, opset=opset)
    assert not check(model, source, True).context
    assert not check(model, source, True, output_stride=8).context


@exporters
def test_of_both_only_the_gate_sees_the_whole_image(dynamo: bool, opset: int, tmp_path: Path) -> None:
    model = network(GlobalContext(), Summed)
    source = exports.export(model, tmp_path / "m.onnx", NATIVE, dynamo=dynamo, opset=opset)
    assert [op for _, op in check(model, source, True).context] == ["Softmax", "MatMul"]


@exporters
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_of_the_whole_image(name: str, dynamo: bool, opset: int, tmp_path: Path) -> None:
    """torch exports it for one image only, or for a fixed number of them."""
    model = network(KERNELS[name]())
    source = exports.export(model, tmp_path / "m.onnx", NATIVE, dynamo=dynamo, opset=opset, dynamic_batch=False)
    assert check(model, source, False).context


def test_a_kernel_for_each_image_is_refused(tmp_path: Path) -> None:
    model, source = network(MixedKernel(1)), tmp_path / "m.onnx"
    with exports.quiet():
        torch.onnx.export(model, (exports.noise(model, 2, NATIVE),), source, dynamo=False, opset_version=13)
    assert onnx.load(source).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    with pytest.raises(UnsupportedModel, match="each image of a batch with a kernel of its own"):
        onnx_fcn.convert(source)


@pytest.mark.parametrize("pool", [Attended, Summed])
def test_answers_in_between(pool: type[nn.Module], tmp_path: Path) -> None:
    """Every other answer is that of the network's own stride: the weights are those of the window, at any stride."""
    model = network(nn.Identity(), pool)
    source = exports.export(model, tmp_path / "m.onnx", NATIVE, dynamo=False, opset=13)
    images = exports.noise(model, 1, LARGER).numpy()
    plain, finer = (
        law.session(onnx_fcn.convert(source, output_stride=stride).to_proto())({"image": images})[0]
        for stride in (STRIDE, STRIDE // 2)
    )
    law.agree(finer[:, :, ::2, ::2], plain, "the answers of the network's own stride")


@exporters
def test_weights_of_a_dilated_map_are_refused(dynamo: bool, opset: int, tmp_path: Path) -> None:
    strided = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1), nn.ReLU(), GlobalContext())
    model = network(strided, native=2 * NATIVE)
    source = exports.export(model, tmp_path / "m.onnx", 2 * NATIVE, dynamo=dynamo, opset=opset)
    with pytest.raises(UnsupportedModel, match="weighs all positions by a softmax, which gives a different result"):
        onnx_fcn.convert(source, output_stride=2)


@pytest.mark.parametrize("pool", ["GlobalAveragePool (s)", "AveragePool <kernel_shape = [6, 7]> (s)",
                                  "ReduceMean <axes = [2, 3]> (s)"])  # fmt: skip
def test_a_gate_of_a_map_that_slid_along_features(pool: str) -> None:
    """The map has an axis of space more than the original, which the branch of the gate must not see."""
    model = law.model(
        "z = Conv (x, i)  u = Unsqueeze (z, one)  c = Conv (u, k)  d = Conv (c, l)  s = Squeeze (d, two)  "
        f"g = {pool}  e = Conv (g, v)  q = Sigmoid (e)  t = Mul (s, q)  h = Conv (t, w)  f = Flatten (h)  "
        "y = MatMul (f, p)",
        image="float[N,3,8,9] x", opset=13, i=(3, 3, 2, 2), one=[1], k=(3, 1, 2, 2, 2), l=(4, 3, 2, 1, 1), two=[2],
        v=(4, 4, 1, 1), w=(4, 4, 2, 2), p=(120, 5),
    )  # fmt: skip
    assert onnx_fcn.convert(model).report.geometry.of().context == ("g",)


@pytest.mark.parametrize("weighs", ["Sigmoid", "HardSigmoid", "Neg"])
@pytest.mark.parametrize(("op", "axis"), [("ReduceMax", 3), ("ReduceMean", 3), ("ReduceMean", 2)])
def test_a_gate_for_each_feature_that_a_convolution_slides_along(op: str, axis: int, weighs: str) -> None:
    """What saturates is compared before it does, with an axis of features beside the windows."""
    model = law.model(
        f"c = Conv <strides = [5]> (x, k)  a = Abs (c)  u = Unsqueeze (a, one)  m = Conv (u, l)  "
        f"g = {op} <axes = [{axis}], keepdims = 1> (m)  s = {weighs} (g)  t = Mul (m, s)  f = Flatten (t)  "
        "y = MatMul (f, w)",
        image="float[N,1,100] x", opset=13, k=(8, 1, 20), one=[1], l=(4, 1, 3, 3), w=(4 * 6 * 15, 5),
    )  # fmt: skip
    image = law.random("sound", 2, 1, 163).astype(np.float32)
    got = law.session(onnx_fcn.convert(model, input_size=100).to_proto())({"x": image})[0]
    for k in range(got.shape[2]):
        crop = np.ascontiguousarray(image[..., 5 * k : 5 * k + 100])
        law.agree(got[..., k], law.session(model)({"x": crop})[0], f"window {k}")
