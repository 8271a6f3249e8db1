"""Networks that cannot slide, at their own size: dense layers become convolutions, and everything else stays.

The oracle is onnxruntime on the original: all outputs have its shapes and values, for every batch that it takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

import onnx_fcn
from onnx_fcn import ModelError, OptionError, ValidationError
from onnx_fcn.cli.convert import main

ROUNDING = 1e-4

#: Attention between the tokens `t`, (N, 12, 6) -> `o` of that shape.
ATTENTION = """q = MatMul (t, wq)  k = MatMul (t, wk)  kt = Transpose <perm = [0, 2, 1]> (k)  a = MatMul (q, kt)
    s = Softmax <axis = 2> (a)  o = MatMul (s, t)"""
HEADS: dict[str, Any] = {"wq": (6, 6), "wk": (6, 6)}

#: The tokens of an image (N, 6, 4, 3), and what is left of them after the attention: (N, 72).
TOKENS = "f = Reshape (x, flat)  t = Transpose <perm = [0, 2, 1]> (f)"
ROW = "r = Flatten (o)"
MIXED: dict[str, Any] = {"flat": [0, 6, 12], **HEADS}

#: A feature map `m`, (N, 6, 3, 2), of the tokens `o`.
MAP = "u = Transpose <perm = [0, 2, 1]> (o)  g = Reshape (u, grid)  m = AveragePool <kernel_shape = [2, 2]> (g)"

#: A network of (N, 72), and its weights.
Network = tuple[str, dict[str, Any]]

#: What may come after the attention, on `r`, (N, 72), or `o`, (N, 12, 6).
AFTER: dict[str, Network] = {
    "Gemm": ("y = Gemm <transB = 1> (r, w, b)", {"w": (5, 72), "b": (5,)}),
    "Gemm without a bias": ("y = Gemm (r, w)", {"w": (72, 5)}),
    "Gemm with factors": ("y = Gemm <alpha = 0.5, beta = 3.0> (r, w, b)", {"w": (72, 5), "b": (1, 5)}),
    "Gemm that scales its bias": ("y = Gemm <beta = 3.0> (r, w, b)", {"w": (72, 5), "b": (5,)}),
    "Gemm that ignores its bias": ("y = Gemm <beta = 0.0> (r, w, b)", {"w": (72, 5), "b": (5,)}),
    "Gemm with one number": ("y = Gemm (r, w, b)", {"w": (72, 5), "b": np.float32(0.7)}),
    "Gemm that adds scores": ("e = MatMul (r, v)  y = Gemm <alpha = 2.0, beta = 0.5> (r, w, e)",
        {"w": (72, 5), "v": (72, 5)}),
    "Gemm transposed": ("u = Transpose <perm = [1, 0]> (r)  y = Gemm <transA = 1> (u, w, b)",
        {"w": (72, 5), "b": (5,)}),
    "a weight on the left": ("u = Transpose <perm = [1, 0]> (r)  z = Gemm (w, u, c)  y = Transpose <perm = [1, 0]> (z)",
        {"w": (5, 72), "c": (5, 1)}),
    "both transposed": ("z = Gemm <transA = 1, transB = 1> (w, r)  y = Transpose <perm = [1, 0]> (z)", {"w": (72, 5)}),
    "MatMul and Add": ("m = MatMul (r, w)  y = Add (m, b)", {"w": (72, 5), "b": (5,)}),
    "MatMul at each token": ("m = MatMul (o, w)  y = ReduceMean <axes = [1], keepdims = 0> (m)", {"w": (6, 5)}),
    "MatMul of tokens": ("m = MatMul (w, o)  y = ReduceMean <axes = [1], keepdims = 0> (m)", {"w": (4, 12)}),
    "MatMul of a matrix": ("u = Transpose <perm = [1, 0]> (r)  z = MatMul (w, u)  y = Transpose <perm = [1, 0]> (z)",
        {"w": (5, 72)}),
    "four axes": ("u = Reshape (o, grid)  m = MatMul (u, w)  y = Flatten (m)", {"grid": [0, 4, 3, 6], "w": (6, 5)}),
    "four axes on the left": ("u = Reshape (o, grid)  m = MatMul (w, u)  y = Flatten (m)",
        {"grid": [0, 4, 3, 6], "w": (2, 3)}),
    "a map": (f"{MAP}  d = Flatten (m)  y = Gemm (d, w, b)",
        {"grid": [0, 6, 4, 3], "w": (36, 5), "b": (5,)}),
    "a map in steps": (f"{MAP}  d = Reshape (m, twice) "
        "e = Flatten (d)  y = MatMul (e, w)", {"grid": [0, 6, 4, 3], "twice": [0, 6, 6], "w": (36, 5)}),
    "a map that is read again": (f"{MAP}  d = Flatten (m) "
        "n = Neg (d)  y = MatMul (d, w)  z = MatMul (n, v)",
        {"grid": [0, 6, 4, 3], "w": (36, 5), "v": (36, 3), "outputs": "y, z"}),
    "two layers of one weight": ("e = MatMul (r, w)  h = Relu (e)  i = Add (h, r)  y = MatMul (i, w)", {"w": (72, 72)}),
    "a hidden layer as an output": ("e = Gemm (r, v, b)  h = Relu (e)  y = MatMul (h, w)",
        {"v": (72, 8), "b": (8,), "w": (8, 5), "outputs": "y, e"}),
    "a weight that is transposed": ("wt = Transpose <perm = [1, 0]> (w)  y = MatMul (r, wt)", {"w": (5, 72)}),
    "a softmax": ("e = Gemm (r, w, b)  y = Softmax <axis = 1> (e)", {"w": (72, 5), "b": (5,)}),
    "QDQ": ("w8 = DequantizeLinear <axis = 1> (weight, scale)  y = MatMul (r, w8)",
        {"scale": np.float32([0.01, 0.02, 0.03]),
         "weight": np.random.default_rng(0).integers(-99, 99, (72, 3)).astype(np.int8)}),
}  # fmt: skip


def attending(after: str, *, batch: object = "N", image: str = "", **weights: Any) -> ModelProto:
    """A network that ends as `after` says, behind attention between the positions of its image."""
    body = f"{TOKENS}  {ATTENTION}  {ROW}  {after}"
    return law.model(body, image=image or f"float[{batch},6,4,3] x", **{**MIXED, **weights})


def operators(network: ModelProto) -> list[str]:
    return [node.op_type for node in network.graph.node]


def products(network: ModelProto) -> list[onnx.NodeProto]:
    """The dense layers of a network: products with a constant."""
    made = {o for n in network.graph.node if n.op_type not in ("Constant", "DequantizeLinear") for o in n.output}
    read = {i.name for i in law.data_inputs(network)} | made
    layers = [n for n in network.graph.node if n.op_type in ("Gemm", "MatMul")]
    return [n for n in layers if not set(n.input[:2]) <= read]


def check(original: ModelProto, converted: ModelProto, tolerance: float = ROUNDING) -> None:
    """The same answers for every batch, in the same shapes, without a dense layer."""
    assert not products(converted)
    assert list(converted.graph.input) == list(original.graph.input)
    assert list(converted.graph.output) == list(original.graph.output)
    inputs = law.data_inputs(original)
    for batch in [1, 3] if law.dims_of(inputs[0])[0] is None else [law.dims_of(inputs[0])[0]]:
        feeds = {declared.name: law.noise(declared, batch, (-1, 1)) for declared in inputs}
        wanted, got = (law.session(m)(feeds) for m in (original, converted))
        for want, have in zip(wanted, got, strict=True):
            assert have.shape == want.shape
            assert have.dtype == want.dtype
            np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def kept(original: ModelProto, **options: Any) -> onnx_fcn.Conversion:
    conversion = onnx_fcn.convert(original, keep_size=True, **options)
    assert options.get("validate") is False or conversion.report.validation.passed
    assert not conversion.report.slides
    assert not conversion.report.geometry.outputs
    return conversion


@pytest.mark.parametrize("batch", ["N", 2], ids=["free", "fixed"])
@pytest.mark.parametrize("name", AFTER)
def test_dense_layers(name: str, batch: object) -> None:
    after, weights = AFTER[name]
    original = attending(after, batch=batch, **weights)
    check(original, kept(original).to_proto(), 2e-3 if name == "QDQ" else ROUNDING)


@pytest.mark.parametrize("opset", [9, 11, 12, 17])
def test_opsets(opset: int) -> None:
    original = attending("y = Gemm (r, w, b)", w=(72, 5), b=(5,), opset=opset)
    check(original, kept(original).to_proto())


def test_half_precision() -> None:
    original = attending("y = Gemm <alpha = 0.5> (r, w, b)", image="float16[N,6,4,3] x", w=(72, 5), b=(5,))
    check(original, kept(original).to_proto(), 2e-2)


def test_everything_else_stays() -> None:
    """Names, the weight under its own, and every other node."""
    original = attending("y = Gemm <transB = 1> (r, w, b)", w=(5, 72), b=(5,))
    conversion = kept(original)
    converted = conversion.to_proto()
    stays = [n for n in original.graph.node if n not in products(original)]
    assert [n for n in converted.graph.node if n in stays] == stays
    assert {t.name for t in original.graph.initializer} <= {t.name for t in converted.graph.initializer}
    assert [(layer.was, layer.becomes) for layer in conversion.report.layers] == [
        ("MatMul", "Conv"), ("MatMul", "Conv"), ("Gemm", "Conv"),
    ]  # fmt: skip
    assert conversion.report.layers[-1].same_bytes


def test_a_map_is_read_as_it_is() -> None:
    """The kernel covers the map, the bytes are the same, and nothing is flattened."""
    after = f"{MAP}  d = Flatten (m)  y = Gemm <transB = 1> (d, w)"
    report = kept(attending(after, grid=[0, 6, 4, 3], w=(5, 36))).report
    layer = report.layers[-1]
    assert (layer.kernel, layer.inputs, layer.reads, layer.same_bytes) == ((3, 2), 6, "m", True)


def test_what_is_no_map_is_read_flattened() -> None:
    """Four axes that no convolution or pooling made, such as those of heads, may make any kernel."""
    after = "u = Transpose <perm = [0, 2, 1]> (o)  m = Reshape (u, grid)  d = Flatten (m)  y = MatMul (d, w)"
    report = kept(attending(after, grid=[0, 6, 4, 3], w=(72, 5))).report
    assert (report.layers[-1].kernel, report.layers[-1].reads) == ((1, 1), "d")


def test_one_weight_of_two_layers_is_stored_once() -> None:
    after, weights = AFTER["two layers of one weight"]
    converted = kept(attending(after, **weights)).to_proto()
    assert [list(t.dims) for t in converted.graph.initializer if 72 in t.dims] == [[72, 72, 1, 1]]
    assert "w" in {t.name for t in converted.graph.initializer}


# Networks of torch ----------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Patches, a class token, positions, a block of attention and one of two layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.learned = nn.ParameterList([torch.randn(1, 1, 16), torch.randn(1, 17, 16)])
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(3)])
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        token, places = self.learned
        x = torch.cat([token.expand(x.shape[0], -1, -1), x], 1) + places
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.layers(self.norms[1](x))
        return self.head(self.norms[2](x)[:, 0])


class Recurrent(nn.Module):
    """Columns of a map, read in order in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, (32, 3), 2), nn.ReLU())
        self.lstm, self.head = nn.LSTM(8, 6, bidirectional=True, batch_first=True), nn.Linear(12, 7)

    def forward(self, image: Tensor) -> Tensor:
        x, _ = self.lstm(self.trunk(image).squeeze(2).transpose(1, 2))
        return self.head(x).log_softmax(2)


class Mixer(nn.Module):
    """Layers over the tokens of each channel, and over the channels of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.norm = nn.LayerNorm(12)
        self.tokens = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16))
        self.channels = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm(x))).mean(1).relu())


@pytest.mark.parametrize(
    ("dynamo", "free"),
    [(False, True), (False, False), (True, False), pytest.param(True, True, marks=pytest.mark.slow)],
    ids=["legacy, free", "legacy, fixed", "dynamo, fixed", "dynamo, free"],
)
@pytest.mark.parametrize("build", [Transformer, Recurrent])
def test_exports(build: Callable[[], nn.Module], dynamo: bool, free: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        path = exports.export(build().eval(), tmp_path / "model.onnx", 32, dynamo=dynamo, opset=18, dynamic_batch=free)
    out = tmp_path / "out.onnx"
    onnx_fcn.convert(path, out, keep_size=True)
    check(onnx.load(path), onnx.load(out))
    assert onnx_fcn.validate(path, out).passed


def test_a_mixer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = exports.export(Mixer().eval(), tmp_path / "model.onnx", 32, dynamo=False, opset=17)
    converted = onnx_fcn.convert(path, keep_size=True).to_proto()
    check(onnx.load(path), converted)


# Other images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 1])
def test_an_image_in_one_row(batch: object) -> None:
    original = law.model(
        "a = Reshape (x, s)  c = Conv <strides = [2, 2]> (a, k)  r = Relu (c)  f = Flatten (r)  y = Gemm (f, w, b)",
        image=f"float[{batch},784] x", s=[-1, 1, 28, 28], k=(8, 1, 5, 5), w=(8 * 144, 3), b=(3,),
    )  # fmt: skip
    conversion = kept(original)
    check(original, conversion.to_proto())
    assert conversion.report.layers[-1].kernel == (12, 12)
    assert "it is a row" in conversion.report.caveats[0]


@pytest.mark.parametrize("batch", ["N", 2])
def test_a_table(batch: object) -> None:
    """Nothing slides over features, and none of their axes need be positions."""
    body = "a = Gemm (x, w, b)  h = Relu (a)  y = Gemm (h, v)"
    original = law.model(body, image=f"float[{batch},48] x", w=(48, 16), b=(16,), v=(16, 3))
    check(original, kept(original).to_proto())


def test_another_input() -> None:
    original = attending(
        "c = Concat <axis = 1> (r, z)  y = Gemm (c, w)", image="float[N,6,4,3] x, float[N,8] z", w=(80, 5)
    )
    check(original, kept(original).to_proto())


def test_channels_last() -> None:
    original = law.model(
        f"u = Reshape (x, rows)  t = MatMul (u, e)  {ATTENTION}  r = Flatten (o)  y = Gemm (r, w)",
        image="float[N,4,3,5] x", rows=[0, 12, 5], e=(5, 6), w=(72, 5), **HEADS,
    )  # fmt: skip
    check(original, kept(original).to_proto())


def test_a_batch_that_is_built_in() -> None:
    """The file leaves the batch open, but the network runs with one image only."""
    original = attending("y = Gemm (r, w)", w=(72, 5), flat=[1, 6, 12])
    conversion = kept(original)
    assert {check.batch for check in conversion.report.validation.checks} == {1}


def test_a_size_that_the_user_gives(tmp_path: Path) -> None:
    """The file leaves the size open: it is in the metadata, so that the result can be compared again."""
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    original = attending("y = Gemm (r, w)", image="float[N,6,H,W] x", flat=[0, 6, -1], w=(72, 5))
    onnx.save(original, source)
    onnx_fcn.convert(source, out, keep_size=True, input_size=(4, 3))
    assert onnx_fcn.validate(source, out).passed


# What is left, and what is said ---------------------------------------------------------------------------------------


LEFT: dict[str, tuple[str, dict[str, Any], str]] = {
    "five axes": ("u = Reshape (o, five)  m = MatMul (u, w)  y = Flatten (m)", {"five": [0, 2, 2, 3, 6], "w": (6, 5)},
        "MatMul 'm' stays as it is (reads a tensor with 5 axes, and a convolution takes up to 4)."),
    "a matrix for each image": ("m = MatMul (o, w)  y = Flatten (m)", {"w": (1, 6, 5)},
        "MatMul 'm' stays as it is (has a weight of shape 1×6×5, which is not a matrix)."),
    "quantised": ("h = Mul (r, hundred)  i = Cast <to = 3> (h)  m = MatMulInteger (i, w)  c = Cast <to = 1> (m)  "
        "y = Reshape (c, rows)", {"hundred": np.float32(100), "rows": [-1, 5],
            "w": np.random.default_rng(0).integers(-99, 99, (72, 5)).astype(np.int8)},
        "MatMulInteger 'm' stays as it is (is neither a Gemm nor a MatMul)."),
    "an equation": ("y = Einsum <equation = \"nk,ko->no\"> (r, w)", {"w": (72, 5)},
        "Einsum 'y' stays as it is (is neither a Gemm nor a MatMul)."),
    "doubles": ("d = Cast <to = 11> (r)  y = MatMul (d, w)", {"w": np.ones((72, 5))},
        "MatMul 'y' stays as it is (computes with DOUBLE, which onnxruntime does not convolve)."),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_layers_that_stay(name: str) -> None:
    after, weights, said = LEFT[name]
    original = attending(after, **weights)
    conversion = kept(original)
    assert said in conversion.report.caveats
    stays = original.graph.node[{"doubles": -1, "an equation": -1, "quantised": -3}.get(name, -2)]
    assert stays in conversion.to_proto().graph.node


def test_layers_in_a_subgraph_stay() -> None:
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["r", "w"], [f"{op}_m"]), helper.make_node(op, [f"{op}_m"], [op])], op,
            [], [helper.make_tensor_value_info(op, 1, None)],
        )
        for op in ("Relu", "Neg")
    ]  # fmt: skip
    original = attending(
        "total = ReduceSum <keepdims = 0> (r)  zero = Sub (total, total)  y = MatMul (r, w)", w=(72, 5)
    )
    nodes = [
        helper.make_node("GreaterOrEqual", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], "choice", then_branch=branches[0], else_branch=branches[1]),
    ]
    original.graph.node.extend(nodes)
    original.graph.output.append(helper.make_tensor_value_info("chosen", 1, ["N", 5]))
    conversion = kept(original)
    converted = conversion.to_proto()
    assert nodes[1] in converted.graph.node
    assert any("'choice' stays as it is" in caveat for caveat in conversion.report.caveats)


def test_the_cause_is_reported() -> None:
    report = kept(attending("y = Gemm (r, w)", w=(72, 5))).report
    assert report.caveats[0].startswith("The network cannot slide, so only its dense layers were replaced")
    assert "(MatMul 'a': multiplies positions with positions" in report.caveats[0]
    for verbose in (False, True):
        assert "The network cannot slide" in report.text(verbose=verbose)
        assert "window" not in report.text(verbose=verbose)
    assert report.to_dict()["slides"] is False


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "no dense layer": ("n = MatMul (o, t2)  y = Flatten (n)", {}, {}, OptionError, "has no dense layer"),
    "a free batch": ("y = MatMul (r, w)", {"w": (72, 5), "batch": 1}, {"dynamic_batch": True}, OptionError,
        "the network cannot slide, so its batch stays as it is: leave --dynamic-batch out"),
    "a folded head": ("y = MatMul (r, w)", {"w": (72, 5)}, {"head": "folded"}, OptionError, "leave --head folded out"),
    "other sizes": ("y = MatMul (r, w)", {"w": (72, 5)}, {"sizes": [64]}, OptionError, "no cost at other sizes"),
    "a stride": ("y = MatMul (r, w)", {"w": (72, 5)}, {"output_stride": 2}, OptionError, "contradict each other"),
    "a random layer": ("n = RandomNormalLike (r)  y = MatMul (n, w)", {"w": (72, 5)}, {}, ModelError, "random"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    after, weights, options, error, said = REFUSED[name]
    if name == "no dense layer":
        body = f"{TOKENS}  a = MatMul (t, f)  y = Softmax <axis = 2> (a)"
        original = law.model(body, image="float[N,6,4,3] x", flat=[0, 6, 12])
    else:
        original = attending(after, **weights)
    with pytest.raises(error, match=said):
        onnx_fcn.convert(original, keep_size=True, **options)


def test_windows_come_first() -> None:
    """With --windows the network runs on the window of the native size, as before."""
    after, weights = AFTER["Gemm"]
    converted = onnx_fcn.convert(attending(after, **weights), keep_size=True, windows=True).to_proto()
    assert "Scan" in operators(converted)


# The file in use ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An original, and what it became."""
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(attending("y = Gemm (r, w, b)", image="float[N,6,4,3] x", w=(72, 5), b=(5,)), source)
    onnx_fcn.convert(source, out, keep_size=True)
    return source, out


def test_a_file_claims_no_grid(files: tuple[Path, Path]) -> None:
    geometry = onnx_fcn.read_geometry(files[1])
    assert (geometry.window, geometry.outputs, geometry.layout) == ((), {}, "")
    with pytest.raises(OptionError, match="no output '' with a grid of answers"):
        geometry.grid(8, 8)


def test_a_grid_of_no_image_is_refused(files: tuple[Path, Path]) -> None:
    wrong = onnx.load(files[1])
    wrong.metadata_props.add(key="onnx_fcn.output.y", value="{}")
    with pytest.raises(ModelError, match="an image cannot have 0 axes"):
        onnx_fcn.read_geometry(wrong)


@pytest.mark.parametrize("command", ["heatmap", "segment", "page", "apply"])
def test_commands_on_images_say_why_not(
    command: str, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "image.npy", np.zeros((9, 9, 6), np.float32))
    result = tmp_path / f"result{'.html' if command == 'page' else '.npy'}"
    assert main([command, str(files[1]), str(tmp_path / "image.npy"), str(result)]) == 2
    assert "answers images of one size only" in capsys.readouterr().err


def test_verify_finds_a_wrong_weight(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, out = files
    assert main(["--verify", str(source), str(out)]) == 0
    assert "it is the same network" in capsys.readouterr().out
    wrong = onnx.load(out)
    weight = next(t for t in wrong.graph.initializer if t.name == "w")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), "w"))
    onnx.save(wrong, out)
    with pytest.raises((ModelError, ValidationError)):
        onnx_fcn.validate(source, out)


def test_verify_after_another_tool(files: tuple[Path, Path], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(files[1], options, providers=["CPUExecutionProvider"])
    assert onnx_fcn.validate(files[0], tmp_path / "optimised.onnx").passed


def test_an_edited_claim_is_found(files: tuple[Path, Path]) -> None:
    source, out = files
    wrong = onnx.load(out)
    next(e for e in wrong.metadata_props if e.key == "onnx_fcn.window").value = "[4, 3]"
    onnx.save(wrong, out)
    with pytest.raises(ValidationError):
        onnx_fcn.validate(source, out)


def test_external_weights_stay_where_they_are(tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    original = attending("y = Gemm <transB = 1, alpha = 0.5> (r, w)", w=(500, 72))
    onnx.save(original, source, save_as_external_data=True, location="weights.bin", size_threshold=1000)
    report = onnx_fcn.convert(source, out, keep_size=True, link_data=True).report
    assert report.layers[-1].same_bytes
    linked = {t.name: t for t in onnx.load(out, load_external_data=False).graph.initializer}
    assert {e.key: e.value for e in linked["w"].external_data}["location"] == "weights.bin"
    check(onnx.load(source), onnx.load(out))
