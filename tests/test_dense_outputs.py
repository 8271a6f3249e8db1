"""Outputs with an answer for each position: on a larger image, those of torch's own network on it, on the same axes."""

from __future__ import annotations

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

#: How a map of 5 channels, with the features `f` before it, becomes the output; and the axes of that.
ANSWERS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], str]] = {
    "the map": (lambda net, f, m: m, "NCHW"),
    "channels last": (lambda net, f, m: m.permute(0, 2, 3, 1), "NHWC"),
    "positions in a row": (lambda net, f, m: m.flatten(2), ""),
    "positions first": (lambda net, f, m: m.permute(0, 2, 3, 1).flatten(1, 2), ""),
    "rows of all images": (lambda net, f, m: m.permute(0, 2, 3, 1).reshape(-1, 5), ""),
    "columns first": (lambda net, f, m: m.transpose(2, 3).flatten(2), ""),
    "channels on two axes": (lambda net, f, m: f.reshape(f.shape[0], 2, 4, *f.shape[2:]).transpose(2, 3), ""),
    "a dense layer at each position": (lambda net, f, m: net.dense(f.permute(0, 2, 3, 1)), "NHWC"),
    "the best class": (lambda net, f, m: m.argmax(1), "NHW"),
    "the largest score": (lambda net, f, m: m.max(1)[0], "NHW"),
    "the closest of a bank": (lambda net, f, m: net.closest(f).reshape(f.shape[0], 1, *f.shape[2:]), "NCHW"),
    "a pixel shuffle": (lambda net, f, m: functional.pixel_shuffle(f, 2), "NCHW"),
    "a finer map": (lambda net, f, m: functional.interpolate(m, scale_factor=2.0), "NCHW"),
}

#: The same where the height is pooled away: an answer for each step along the width.
STEPS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], str]] = {
    "a row": (lambda net, f, m: m.mean(2), "NCW"),
    "steps first": (lambda net, f, m: m.mean(2).permute(2, 0, 1), "WNC"),
    "a dense layer at each step": (lambda net, f, m: net.dense(f.amax(2).transpose(1, 2)).log_softmax(2), "NWC"),
    "a kernel as high as the map": (lambda net, f, m: net.column(f).squeeze(2), "NCW"),
    "the best class of each step": (lambda net, f, m: m.mean(2).argmax(1), "NW"),
    "a convolution along the steps": (lambda net, f, m: net.along(f.mean(2)), "NCW"),
}

NATIVE = (24, 32)


class Network(nn.Module):
    """Two convolutions with padding, and answers 4 pixels apart."""

    def __init__(self, answers: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answers = answers
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.scores, self.dense = nn.Conv2d(8, 5, 1), nn.Linear(8, 5)
        self.column, self.along = nn.Conv2d(8, 5, (6, 3), padding=(0, 1)), nn.Conv1d(8, 5, 3, padding=1)
        self.register_buffer("bank", torch.randn(7, 8))

    def closest(self, f: Tensor) -> Tensor:
        """The squared distance of each position to the closest vector of the bank: (N·h·w,)."""
        rows = f.permute(0, 2, 3, 1).reshape(-1, 8)
        squares = rows.pow(2).sum(1, keepdim=True) + self.bank.pow(2).sum(1)
        return (squares - 2 * rows @ self.bank.T).min(1)[0]

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, height, width) in."""
        f = self.trunk(image)
        return self.answers(self, f, self.scores(f))


def network(answers: Callable[[Any, Tensor, Tensor], Tensor]) -> Network:
    """A network with the same weights every time."""
    torch.manual_seed(3)
    return Network(answers).eval()


def image(*size: int, batch: int = 1) -> np.ndarray[Any, Any]:
    """Noise of (batch, 3, *size)."""
    return np.random.default_rng(5).standard_normal((batch, 3, *size)).astype(np.float32)


def agrees(net: nn.Module, converted: Path, pixels: np.ndarray[Any, Any]) -> None:
    """Does the converted file answer what torch does?"""
    with torch.no_grad():
        wanted = net(torch.from_numpy(pixels)).numpy()
    (found,) = law.session(onnx.load(converted))({"image": pixels})
    law.agree(found, wanted, "the answers")


@pytest.mark.parametrize(
    ("dynamo", "free"), [(False, True), (False, False), (True, False)], ids=["legacy", "legacy, one image", "dynamo"]
)
@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_for_each_position(kind: str, dynamo: bool, free: bool, tmp_path: Path) -> None:
    answers, layout = ANSWERS[kind]
    net, path = network(answers), tmp_path / "out.onnx"
    file = exports.export(net, tmp_path / "in.onnx", NATIVE, dynamo=dynamo, opset=18, dynamic_batch=free)
    conversion = onnx_fcn.convert(file, path)
    (output,) = conversion.report.geometry.outputs.values()
    assert (output.form, output.layout) == ("map", layout)
    for size in (NATIVE, (40, 72), (27, 45)):
        agrees(net, path, image(*size, batch=2 if free else 1))
    checks = conversion.report.validation.checks if conversion.report.validation else ()
    assert {"native", "dense", "grid"} <= {c.kind for c in checks}
    assert all(c.passed for c in onnx_fcn.validate(file, path, seed=1).checks)


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("kind", STEPS)
def test_answers_for_each_step_keep_the_height(kind: str, dynamo: bool, tmp_path: Path) -> None:
    answers, layout = STEPS[kind]
    net, path = network(answers), tmp_path / "out.onnx"
    file = exports.export(net, tmp_path / "in.onnx", NATIVE, dynamo=dynamo, opset=18)
    conversion = onnx_fcn.convert(file, path)
    (output,) = conversion.report.geometry.outputs.values()
    assert (output.layout, output.held) == (layout, (24, None))
    assert conversion.report.image.after == ("batch", 3, 24, "width")
    assert any(c.startswith("The height of the image stays 24") for c in conversion.report.caveats)
    for width in (32, 61, 100):
        agrees(net, path, image(24, width, batch=2))
    assert conversion.grid(24, 64).shape == (1, 16)
    with pytest.raises(OptionError, match="with a height of 24 pixels, not images of 48×64: resize the image"):
        conversion.grid(48, 64)
    assert all(c.passed for c in onnx_fcn.validate(file, path, seed=1).checks)


def test_data_of_another_height_are_refused(tmp_path: Path) -> None:
    file = exports.export(network(STEPS["a row"][0]), tmp_path / "in.onnx", NATIVE, dynamo=False, opset=17)
    onnx_fcn.convert(file, data=image(24, 40))
    with pytest.raises(OptionError, match=r"has shape \(1, 3, 28, 40\), and the model takes \(any, 3, 24, ≥32\)"):
        onnx_fcn.convert(file, data=image(28, 40))


class Beside(nn.Module):
    """Scores, and a map beside them: of the last stage, of an earlier one, or computed from the last."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.early = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.dense, self.smooth = nn.Linear(8, 5), nn.Conv2d(8, 2, 3, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(scores, map)."""
        early = self.early(image)
        late = self.late(early)
        maps = {
            "early": early,
            "late": late,
            "smooth": self.smooth(late),
            "activation": functional.conv2d(late, self.dense.weight[:, :, None, None], self.dense.bias),
        }
        return self.dense(late.mean((2, 3))), maps[self.kind]


@pytest.mark.parametrize("kind", ["early", "late", "smooth", "activation"])
def test_a_map_beside_scores(kind: str, tmp_path: Path) -> None:
    """Each is on a grid of its own: the map is not an answer for each window."""
    torch.manual_seed(4)
    net = Beside(kind).eval()
    file, path = tmp_path / "in.onnx", tmp_path / "out.onnx"
    with exports.quiet():
        torch.onnx.export(
            net, (torch.zeros(1, 3, *NATIVE),), file, input_names=["image"], output_names=["scores", "map"],
            dynamo=False, opset_version=17,
        )  # fmt: skip
    conversion = onnx_fcn.convert(file, path)
    assert {c.kind for c in conversion.report.validation.checks if c.subject == "map"} >= {"native", "dense", "grid"}
    pixels = image(40, 56)
    with torch.no_grad():
        features = net.late(net.early(torch.from_numpy(pixels)))
        pooled = functional.avg_pool2d(features, (6, 8), 1)
        scores = functional.conv2d(pooled, net.dense.weight[:, :, None, None], net.dense.bias)
        wanted = net(torch.from_numpy(pixels))[1]
    found = law.session(onnx.load(path))({"image": pixels})
    law.agree(found[0], scores.numpy(), "the scores")
    law.agree(found[1], wanted.numpy(), "the map")
    formed = onnx_fcn.convert(file, argmax=True)
    assert [o.form for o in formed.report.geometry.outputs.values()] == ["argmax", "map"]


#: A map of 5 channels of 6×8 pixels, with padding.
PADDED = "m = Conv <pads = [1, 1, 1, 1]> (x, k)"


def obeys(body: str, image: str, size: tuple[int, ...], outputs: str = "y", **weights: Any) -> onnx_fcn.Conversion:
    """Convert a network whose nodes mean the same at any size, and compare it with itself on a larger image."""
    model = law.model(body, image=image, outputs=outputs, **weights)
    conversion = onnx_fcn.convert(model)
    feeds = {"x": law.random("image", *size).astype(np.float32)}
    wanted = law.session(law.trunk_of(model, outputs.split(", ")))(feeds)
    for found, want in zip(law.session(conversion.to_proto())(feeds), wanted, strict=True):
        law.agree(found, want, "the answers")
    return conversion


@pytest.mark.parametrize("body", ["y = Transpose <perm = [0, 2, 3, 1]> (m)", "y = Relu (m)"])
def test_an_image_of_one_row(body: str) -> None:
    """An axis of a single cell is on the axis on which the original has it, and may have more."""
    obeys(f"{PADDED}  {body}", "float[N,6,1,8] x", (2, 6, 3, 11), k=(5, 6, 3, 3))


def test_a_height_that_is_kept_as_an_axis_slides() -> None:
    """(N, C, 1, w): the original has an axis for more rows."""
    conversion = onnx_fcn.convert(law.model(f"{PADDED}  y = ReduceMean <axes = [2]> (m)", k=(5, 6, 3, 3)))
    assert conversion.report.outputs[0].after == ("N", 5, "height - 3", "width")


def test_the_map_may_come_first_and_the_form_is_for_the_scores() -> None:
    body = f"{PADDED}  y = Relu (m)  f = Flatten (m)  s = MatMul (f, w)  z = Softmax (s)"
    model = law.model(body, outputs="y, z", k=(5, 6, 3, 3), w=(60, 4))
    for options in ({"full_size": True}, {"reduce": "mean"}, {"logits": True}, {"argmax": True}):
        report = onnx_fcn.convert(model, **options).report
        assert report.geometry.of("y").form == "map"
        assert report.geometry.of("z").form != "map" or "logits" in options


def test_logits_that_are_the_cut() -> None:
    body = f"{PADDED}  y = Sigmoid (m)  f = Flatten (m)  z = MatMul (f, w)"
    conversion = onnx_fcn.convert(law.model(body, outputs="y, z", k=(5, 6, 3, 3), w=(60, 4)), logits=True)
    assert conversion.report.validation is not None


def test_rows_of_several_images_say_how_many_there_are() -> None:
    rows = f"{PADDED}  t = Transpose <perm = [0, 2, 3, 1]> (m)  y = Reshape (t, s)"
    for image, batch in (("float[N,6,4,3] x", "N"), ("float[2,6,4,3] x", "2")):
        report = onnx_fcn.convert(law.model(rows, image=image, k=(5, 6, 3, 3), s=[-1, 5])).report
        assert report.outputs[0].after == (f"{batch} * height * width", 5)


def test_outputs_along_different_axes_are_refused() -> None:
    body = f"{PADDED}  y = ReduceMean <axes = [2], keepdims = 0> (m)  z = ReduceMean <axes = [3], keepdims = 0> (m)"
    model = law.model(body, outputs="y, z", k=(5, 6, 3, 3))
    with pytest.raises(UnsupportedModel, match="none has both"):
        onnx_fcn.convert(model)
    assert onnx_fcn.convert(model, outputs=["y"]).report.geometry.of().held == (4, None)


def test_a_size_that_is_computed_from_the_image_is_refused() -> None:
    """A scale in its place would be right at some sizes only, and the original answers at all."""
    body = (
        "m = Conv <strides = [2, 2]> (x, k)  s = Shape (x)  hw = Slice (s, two, four)  n = Shape (m)  "
        'nc = Slice (n, zero, two)  t = Concat <axis = 0> (nc, hw)  [up] y = Resize (m, "", "", t)'
    )
    bounds = {"zero": [0], "two": [2], "four": [4]}
    model = law.model(body, image="float[N,6,8,12] x", opset=13, k=(5, 6, 2, 2), **bounds)
    with pytest.raises(UnsupportedModel, match=r"is resized to a size that 'up' computes from that of.*its own nodes"):
        onnx_fcn.convert(model)
    scores = "g = Flatten (m)  z = MatMul (g, w)"
    both = law.model(
        f"{body}  {scores}", image="float[N,6,8,12] x", outputs="y, z", opset=13, k=(5, 6, 2, 2), w=(120, 3), **bounds
    )
    with pytest.raises(UnsupportedModel, match="keep only the other outputs, with --outputs z"):
        onnx_fcn.convert(both)
    onnx_fcn.convert(both, outputs=["z"])


#: Networks with an answer for each position, and the pixel in the middle of the first.
PLACES = {
    "a decoder that is as fine as the image": (
        "a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  "
        "b = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (a, l)  "
        "c = ConvTranspose <strides = [2, 2]> (b, u)  d = ConvTranspose <strides = [2, 2]> (c, u)  "
        "y = Concat <axis = 1> (d, x)", 0),
    "a map of every second pixel, padded": ("y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)", 0.5),
    "a map of every second pixel": ("y = Conv <strides = [2, 2]> (x, k)", 1),
    "a map of every pixel, padded at its end": ("y = Conv <pads = [0, 0, 2, 2]> (x, k)", 0),
    "a map of every pixel": ("y = Conv (x, k)", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_cells_that_tile_the_image_lie_in_the_middle_of_their_pixels(name: str) -> None:
    """The designers of segmenters compare them with labels there; strided layers and finer maps move the fields."""
    body, first = PLACES[name]
    kernels = {"k": (6, 6, 3, 3), "l": (6, 6, 3, 3), "u": (6, 6, 2, 2)}
    model = law.model(body, image="float[N,6,16,24] x", **{n: s for n, s in kernels.items() if f"{n})" in body})
    answers = onnx_fcn.convert(model).report.geometry.of()
    grid = answers.grid(32, 52)
    cell = np.arange(2) + 3
    assert np.allclose(grid.pixel_of(cell, cell), first + answers.stride[0] * cell)
    for start, size, field in zip(answers.offset, answers.window, answers.field):
        assert start <= field.start
        assert start + size >= field.end
    if answers.stride == (2, 2):  # on a finer grid every other answer is the same, and at the same place
        finer = onnx_fcn.convert(model, output_stride=1).report.geometry.of().grid(32, 52)
        assert np.allclose(finer.pixel_of(2 * cell, 2 * cell), grid.pixel_of(cell, cell))


@pytest.mark.parametrize("pads", ["", ", pads = [1, 1, 1, 1]"], ids=["unpadded", "padded"])
def test_cells_behind_a_gate_lie_where_they_would_without_it(pads: str, tmp_path: Path) -> None:
    """They see the whole image, but are not about it."""
    model = law.model(
        f"m = Conv <strides = [2, 2]{pads}> (x, k)  p = GlobalAveragePool (m)  g = Sigmoid (p)  s = Mul (m, g)  "
        "h = GlobalAveragePool (s)  y = Flatten (h)", image="float[N,6,16,24] x", k=(6, 6, 3, 3),
    )  # fmt: skip
    local, gated = (onnx_fcn.convert(model, tmp_path / n, outputs=[n]).report.geometry.of() for n in "ms")
    assert (gated.window, gated.offset, gated.stride) == (local.window, local.offset, local.stride)
    assert not any(field.is_local for field in gated.field)
    assert onnx_fcn.read_geometry(tmp_path / "s").of() == gated


@pytest.mark.parametrize(("read", "joined"), [("m", "nc, hw"), ("x", "b, c, hw")])
def test_a_literal_size_beside_the_shape_of_the_image_is_a_scale(read: str, joined: str) -> None:
    """torch writes `interpolate(size=…)` as the numbers of images and channels, read off, and two literal ones."""
    body = (
        f"m = Conv <strides = [2, 2]> (x, k)  n = Shape ({read})  nc = Slice (n, zero, two)  b = Slice (n, zero, one)  "
        f't = Concat <axis = 0> ({joined})  y = Resize (m, "", "", t)'
    )
    shapes = {"zero": [0], "one": [1], "two": [2], "c": [5], "hw": [8, 12]}
    model = law.model(body, image="float[N,6,8,12] x", opset=13, k=(5, 6, 2, 2), **shapes)
    image = law.random("x", 2, 6, 13, 21).astype(np.float32)
    (found,) = law.session(onnx_fcn.convert(model).to_proto())({"x": image})
    assert found.shape == (2, 5, 12, 20)


def test_a_line_of_steps_is_read_back(tmp_path: Path) -> None:
    """An output without the axis that is held has a layout, a heat map and tiles."""
    out = tmp_path / "out.onnx"
    body = f"{PADDED}  p = ReduceMean <axes = [2], keepdims = 0> (m)  y = Softmax <axis = 1> (p)"
    onnx_fcn.convert(law.model(body, image="float[N,3,8,9] x", k=(5, 3, 3, 3)), out)
    answers = onnx_fcn.read_geometry(out).of()
    assert (answers.layout, answers.held) == ("NCW", (8, None))
    result = onnx_fcn.DenseModel(out).run(np.zeros((8, 40, 3), np.uint8))
    assert result.grid.shape == (1, 40)


def test_a_feature_vector_of_the_window_is_no_map() -> None:
    """Positions on the axis of the channels are features of a window: (N, 8·6·8) is one vector."""
    conversion = onnx_fcn.convert(law.model("c = Conv (x, k)  y = Flatten (c)", k=(5, 6, 2, 2)))
    assert conversion.report.outputs[0].after == ("N", 30, "height - 3", "width - 2")


def test_positions_in_another_order_are_refused() -> None:
    """Windows of a map: blocks of 2×3 positions are on the first axis, the positions in a block on the last."""
    body = "c = Conv (x, k)  r = Reshape (c, s)  t = Transpose <perm = [0, 2, 4, 3, 5, 1]> (r)  y = Reshape (t, u)"
    model = law.model(body, image="float[N,6,6,8] x", k=(6, 6, 3, 3), s=[0, 6, 2, 2, 2, 3], u=[0, 4, 6, 6])
    with pytest.raises(UnsupportedModel, match="has the positions of the image in another order"):
        onnx_fcn.convert(model)


def test_a_wrong_cell_of_a_dense_output_is_found() -> None:
    """Only cells of a larger image are wrong: the sum of what lies beyond the native width is added to all."""
    original = law.model("c = Conv <pads = [1, 1, 1, 1]> (x, k)  y = Sigmoid (c)", k=(5, 6, 3, 3))
    wrong = onnx_fcn.convert(original).to_proto()
    (conv,) = [node for node in wrong.graph.node if node.op_type == "Conv"]
    made, conv.output[0] = conv.output[0], "raw"
    beyond = [
        onnx.helper.make_node("Slice", ["raw", "start", "end", "axis"], ["rest"]),
        onnx.helper.make_node("ReduceSum", ["rest"], ["sum"]),
        onnx.helper.make_node("Add", ["raw", "sum"], [made]),
    ]
    place = list(wrong.graph.node).index(conv) + 1
    nodes = [*wrong.graph.node[:place], *beyond, *wrong.graph.node[place:]]
    del wrong.graph.node[:]
    wrong.graph.node.extend(nodes)
    for name, value in {"start": 3, "end": 1 << 20, "axis": 3}.items():
        wrong.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    with pytest.raises(ValidationError, match="a cell of the map and the original's of 'y'"):
        onnx_fcn.validate(original, wrong)
