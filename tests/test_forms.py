"""Other answers than the map: reduced, at full size, the best class, in the original's shapes, as logits, of a choice.

The map itself is the original on every window of an image, which numpy cuts out; the networks here pad nothing. What is
to become of it is said again in numpy, and for images at full size in a closed form: a ramp whose mean over a window is
its value in the middle of it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnx_fcn
from onnx_fcn import OptionError, UnsupportedModel, ValidationError
from onnx_fcn.cli import main
from onnx_fcn.rules import classical

FIXTURES = Path(__file__).parent.parent / "fixtures"
DIGITS = FIXTURES / "digits_unpadded.onnx"

#: Relative to the largest answer: the same sums in another order.
ROUNDING = 2e-5

Array = np.ndarray

TRUNK = "c = Conv <strides = [2, 2]> (x, k)  m = Relu (c)"
HEAD = "f = Flatten (m)  d = Gemm <transB = 1> (f, w, b)"
WEIGHTS: dict[str, Any] = {"k": (6, 3, 3, 3), "w": (7, 72), "b": (7,)}


def classifier(
    head: str = f"{HEAD}  y = Identity (d)", *, image: str = "float[N,3,9,7] x", opset: int = 13, **more: Any
) -> ModelProto:
    """A network with windows of 9×7 pixels, every 2, whose convolution does not pad."""
    return law.model(f"{TRUNK}  {head}", image=image, opset=opset, **{**WEIGHTS, **more})


def plain(original: ModelProto, image: Array, stride: Sequence[int] = (2, 2)) -> list[Array]:
    """The map of answers (N, K, *grid) for each output: the original on every window."""
    declared, *_ = law.data_inputs(original)
    axes = range(2, image.ndim)
    native = [law.dims_of(declared)[k] for k in axes]
    cells = law.by_window(law.session(original), {declared.name: image}, declared.name, native, axes, stride)
    grid = tuple(n + 1 for n in max(cells))
    outputs = range(len(original.graph.output))
    stacks = [np.stack([law.vectors(c[k], len(image)) for c in cells.values()], -1) for k in outputs]
    return [s.reshape(*s.shape[:2], *grid) for s in stacks]


def made(original: ModelProto, **options: Any) -> ModelProto:
    """What becomes of a network; it is compared with the original on the way."""
    converted = onnx_fcn.convert(original, **options).to_proto()
    onnx.checker.check_model(converted, full_check=True)
    return converted


def answers(converted: ModelProto, image: Array) -> list[Array]:
    """Its outputs, which have the shapes and types that it declares."""
    feeds = {converted.graph.input[0].name: image}
    got = law.session(converted)(feeds)
    law.check_formulas(converted, feeds, got)
    for declared, answer in zip(converted.graph.output, got, strict=True):
        dims = law.dims_of(declared)
        assert all(d in (None, n) for d, n in zip(dims, answer.shape, strict=True)), f"{dims} and {answer.shape}"
        assert law.numpy_type(declared) == answer.dtype
    return got


def images(original: ModelProto, sizes: Sequence[Sequence[int]] = ((9, 7), (14, 12), (13, 21))) -> list[Array]:
    """Random images of some sizes; three at once where the batch is free."""
    declared, *_ = law.data_inputs(original)
    batch = law.dims_of(declared)[0] or 3
    return [law.noise(declared, batch, (-2, 2), [batch, law.dims_of(declared)[1], *size]) for size in sizes]


def close(got: Array, want: Array, tolerance: float = ROUNDING) -> None:
    assert got.shape == want.shape
    assert np.abs(got.astype(np.float64) - want).max() <= tolerance * np.abs(want).max()


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# Reduced --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize(("kind", "reduced"), [("mean", np.mean), ("max", np.max)])
def test_reduced(kind: str, reduced: Callable[..., Array], opset: int) -> None:
    original = classifier(opset=opset)
    converted = made(original, reduce=kind)
    for image in images(original):
        close(answers(converted, image)[0], reduced(plain(original, image)[0], axis=(2, 3)))
    native = images(original)[0]
    close(answers(converted, native)[0], law.session(original)({"x": native})[0])


@pytest.mark.parametrize(
    ("head", "weights"),
    [
        (f"{HEAD}  y = Transpose (d)", {}),
        (f"{HEAD}  y = Reshape (d, s)", {"s": [-1, 7, 1, 1]}),
        (f"{HEAD}  r = Reshape (d, s)  y = Transpose <perm = [1, 0, 2]> (r)", {"s": [-1, 7, 1]}),
        (f"{HEAD}  y = Unsqueeze (d, s)", {"s": [0]}),
    ],
    ids=["batch last", "two axes more", "batch between", "an axis before the batch"],
)
@pytest.mark.parametrize("form", [{"reduce": "mean"}, {"keep_size": True}], ids=["mean", "keep size"])
def test_the_original_s_shape_comes_back(head: str, weights: dict[str, Any], form: dict[str, Any]) -> None:
    original = classifier(head, **weights)
    for batch in (1, 3):
        image = images(original)[0][:batch]
        want = law.session(original)({"x": image})[0]
        close(answers(made(original, **form), image)[0], want)


def test_one_image_without_a_batch_stays_without() -> None:
    original = classifier("g = ReduceMean <axes = [2, 3], keepdims = 0> (m)  s = Squeeze (g)  y = MatMul (s, v)",
        image="float[1,3,9,7] x", opset=11, v=(6, 5))  # fmt: skip
    image = images(original)[0]
    for form in ({"reduce": "max"}, {"keep_size": True}):
        assert answers(made(original, **form), image)[0].shape == (5,)
        close(answers(made(original, **form), image)[0], law.session(original)({"x": image})[0])


def test_a_digit_is_read_wherever_it_is() -> None:
    """On an image of twice the size, with the rest of it empty."""
    page, boxes = np.load(FIXTURES / "digits_page.npy"), json.loads((FIXTURES / "digits_page.json").read_text())
    converted = made(onnx.load(DIGITS), reduce="max")
    for box, (top, left) in zip(boxes[:20], itertools.cycle([(0, 0), (28, 4), (12, 16), (28, 28)])):
        image = np.zeros((1, 1, 56, 56), np.float32)
        digit = page[box["top"] : box["top"] + 28, box["left"] : box["left"] + 28]
        image[0, 0, top : top + 28, left : left + 28] = digit / 255
        assert answers(converted, image)[0][0, :10].argmax() == box["label"]


# Logits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "closing",
    [
        "y = Softmax (d)",
        "y = LogSoftmax (d)",
        "y = Sigmoid (d)",
        "p = Softmax (d)  i = Identity (p)  y = Reshape (i, s)",
        "p = Sigmoid (d)  y = Cast <to = 1> (p)",
    ],
)
def test_logits(closing: str) -> None:
    weights = {"s": [-1, 7]} if "Reshape" in closing else {}
    original = classifier(f"{HEAD}  {closing}", **weights)
    converted = made(original, logits=True)
    assert not {"Softmax", "LogSoftmax", "Sigmoid"} & set(operators(converted))
    for image in images(original):
        close(answers(converted, image)[0], plain(classifier(), image)[0])


def test_the_mean_of_logits_is_another_than_that_of_probabilities() -> None:
    original = classifier(f"{HEAD}  y = Softmax (d)")
    image = images(original)[1]
    probabilities, logits = plain(original, image)[0], plain(classifier(), image)[0]
    close(answers(made(original, reduce="mean"), image)[0], probabilities.mean((2, 3)))
    close(answers(made(original, reduce="mean", logits=True), image)[0], logits.mean((2, 3)))


def test_logits_of_some_outputs_only() -> None:
    original = classifier(f"{HEAD}  y = Softmax (d)  z = Relu (d)", outputs="y, z")
    got = answers(made(original, logits=True), images(original)[1])
    logits = plain(classifier(), images(original)[1])[0]
    close(got[0], logits)
    close(got[1], np.maximum(logits, 0))


# At full size ---------------------------------------------------------------------------------------------------------


def ramp_network(
    kernel: Sequence[int], stride: Sequence[int], cells: Sequence[int], opset: int, kind: str
) -> ModelProto:
    """The mean of the image over a window: over kernels, then over cells of these."""
    size = [(c - 1) * s + k for k, s, c in zip(kernel, stride, cells)]
    type_ = law.numpy_type(helper.make_tensor_value_info("x", TensorProto.DataType.Value(kind.upper()), []))
    taps, features = int(np.prod(kernel)), int(np.prod(cells))
    k = np.full((1, 1, *kernel), 1 / taps, type_)
    w = np.array([[1, -2]], type_).repeat(features, 0) / features
    return law.model(
        f"c = Conv <strides = {list(stride)}> (x, k)  f = Flatten (c)  y = MatMul (f, w)",
        image=f"{kind}[N,1,{','.join(map(str, size))}] x", opset=opset, k=k, w=w.astype(type_),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "stride", "cells", "opset", "kind"),
    [
        ((4, 4), (4, 4), (3, 2), 13, "float"),  # window 12×8, stride 4: both even
        ((3, 5), (3, 3), (3, 1), 13, "float"),  # window 9×5, stride 3: both odd
        ((3, 3), (2, 2), (3, 4), 13, "float"),  # window 7×9, stride 2
        ((4, 2), (3, 1), (3, 3), 13, "float"),  # window 10×4, strides 3 and 1
        ((3, 4), (2, 3), (3, 3), 13, "float"),  # window 7×10: of odd and even differences
        ((2, 3), (4, 5), (2, 2), 13, "float"),  # window 6×8, strides that leave pixels out
        ((1, 1), (4, 4), (1, 2), 13, "float"),  # windows that are smaller than their stride
        ((1, 2), (3, 4), (2, 1), 13, "float"),
        ((4, 4), (4, 4), (3, 2), 11, "float"),
        ((3, 3), (2, 2), (3, 4), 19, "float16"),
        ((4,), (4,), (3,), 13, "float"),
        ((4,), (3,), (3,), 13, "float"),
        ((2, 4, 2), (2, 4, 2), (2, 1, 3), 13, "float"),
    ],
)  # fmt: skip
def test_a_ramp_at_full_size(
    kernel: tuple[int, ...], stride: tuple[int, ...], cells: tuple[int, ...], opset: int, kind: str
) -> None:
    """Every value stands on its pixel: a ramp is a ramp again, and level outside the middles of all windows."""
    original = ramp_network(kernel, stride, cells, opset, kind)
    conversion = onnx_fcn.convert(original, full_size=True)
    converted = conversion.to_proto()
    window = law.dims_of(original.graph.input[0])[2:]
    slopes = [0.5, -0.25, 0.125][: len(window)]
    for more in ([0] * len(window), [s * 3 + 1 for s in stride], [2 * s - 1 for s in stride]):
        size = [w + m for w, m in zip(window, more)]
        pixels = np.meshgrid(*map(np.arange, size), indexing="ij")
        image = sum(a * p for a, p in zip(slopes, pixels)).astype(law.numpy_type(original.graph.input[0]))
        (got,) = answers(converted, image[None, None])
        ends = [((w - 1) / 2, (w - 1) / 2 + (n - w) // s * s) for n, w, s in zip(size, window, stride)]
        level = sum(a * np.clip(p, *end) for a, p, end in zip(slopes, pixels, ends))
        want = np.stack([level, -2 * level])[None]
        close(got, want, 2e-3 if kind == "float16" else ROUNDING)
        if len(size) == 2:
            grid = conversion.grid(*size)
            middles = (grid.boxes[..., :2] + grid.boxes[..., 2:] - 1) / 2
            assert np.array_equal(middles[0, 0], [ends[1][0], ends[0][0]])
            assert np.array_equal(middles[-1, -1], [ends[1][1], ends[0][1]])


@pytest.mark.parametrize("options", [{}, {"output_stride": 1}], ids=["at its stride", "at stride 1"])
def test_full_size(options: dict[str, int]) -> None:
    original = classifier()
    converted = made(original, full_size=True, **options)
    stride = options.get("output_stride", 2)
    for image in images(original, [(14, 12), (13, 21)]):
        close(answers(converted, image)[0], interpolated(plain(original, image, (stride, stride))[0], image, stride))


def interpolated(scores: Array, image: Array, stride: int, window: Sequence[int] = (9, 7)) -> Array:
    """(N, K, rows, columns) → (N, K, height, width), one axis after the other by np.interp."""
    for k, (n, w) in enumerate(zip(image.shape[2:], window)):
        middles = (w - 1) / 2 + stride * np.arange(scores.shape[2 + k])
        scores = np.apply_along_axis(lambda row, at=middles, n=n: np.interp(np.arange(n), at, row), 2 + k, scores)
    return scores


# The best class -------------------------------------------------------------------------------------------------------


def test_full_size_of_a_type_that_is_not_interpolated() -> None:
    """onnxruntime interpolates no doubles, and convolves none: the dense layer is all there is."""
    original = law.model("f = Flatten (x)  y = MatMul (f, w)", image="double[N,3,4,3] x", w=np.eye(36, 5))
    converted = made(original, full_size=True)
    image = np.random.default_rng(0).standard_normal((2, 3, 4, 3))
    close(answers(converted, image)[0][:, :, 1, 1], law.session(original)({"x": image})[0])


def test_the_best_class() -> None:
    original = classifier()
    for image in images(original):
        scores = plain(original, image)[0]
        (best,) = answers(made(original, argmax=True), image)
        assert best.dtype == np.uint8
        assert np.array_equal(best, scores.argmax(1))
        (best,) = answers(made(original, argmax=True, reduce="mean"), image)
        assert np.array_equal(best, scores.mean((2, 3)).argmax(1))
        (best,) = answers(made(original, argmax=True, full_size=True), image)
        full = interpolated(scores, image, 2)
        chosen = np.take_along_axis(full, best[:, None].astype(int), 1)[:, 0]
        close(chosen, full.max(1))  # where two are equal but for rounding, either may win


@pytest.mark.parametrize(("classes", "kind"), [(256, np.uint8), (257, np.int64)])
def test_the_type_of_the_best_class(classes: int, kind: type) -> None:
    original = classifier(w=(classes, 72), b=(classes,))
    (best,) = answers(made(original, argmax=True), images(original)[1])
    assert best.dtype == kind
    assert np.array_equal(best, plain(original, images(original)[1])[0].argmax(1))


# In the original's shapes ---------------------------------------------------------------------------------------------

KEPT = {
    "two heads": (f"{HEAD}  y = Softmax (d)  g = GlobalMaxPool (m)  h = Flatten (g)  z = MatMul (h, v)",
        {"v": (6, 4), "outputs": "y, z"}),
    "a fixed batch": (f"{HEAD}  y = Relu (d)", {"image": "float[4,3,9,7] x"}),
    "opset 7": (f"{HEAD}  y = Relu (d)", {"opset": 7}),
    "channels last": ("t = Transpose <perm = [0, 2, 3, 1]> (m)  f = Reshape (t, s)  y = MatMul (f, v)",
        {"s": [-1, 72], "v": (72, 5)}),
    "fp16": (f"{HEAD}  y = Softmax (d)", {"image": "float16[N,3,9,7] x"}),
    "hidden layers": (f"{HEAD}  e = Relu (d)  g = Gemm (e, v, u)  y = Add (g, e)", {"v": (7, 7), "u": (7,)}),
    "QDQ": ("f = Flatten (m)  q = QuantizeLinear (f, scale, zero)  p = DequantizeLinear (q, scale, zero)  "
        "w8 = DequantizeLinear (weight, scale, zero8)  y = MatMul (p, w8)",
        {"scale": np.float32(0.05), "zero": np.uint8(0), "zero8": np.int8(0),
         "weight": np.random.default_rng(0).integers(-99, 99, (72, 5)).astype(np.int8)}),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_keep_size(name: str) -> None:
    head, given = KEPT[name]
    original = classifier(head, **given)
    converted = made(original, keep_size=True)
    assert not {"Gemm", "MatMul"} & set(operators(converted))
    assert converted.graph.input[0] == original.graph.input[0]
    for batch in law.batches_of(original.graph.input[0], (2, 3)):
        image = law.noise(original.graph.input[0], batch, (-2, 2))
        for got, want in zip(answers(converted, image), law.session(original)({"x": image}), strict=True):
            close(got, want, 2e-2 if name in ("fp16", "QDQ") else ROUNDING)


def test_keep_size_of_a_channels_last_export(tmp_path: Path) -> None:
    original = onnx.load(exports.keras_style(tmp_path / "model.onnx"))
    converted = made(original, keep_size=True)
    assert not {"Gemm", "MatMul"} & set(operators(converted))
    for batch in (1, 3):
        image = np.random.default_rng(0).uniform(-2, 2, (batch, 32, 32, 3)).astype(np.float32)
        close(answers(converted, image)[0], law.session(original)({"image": image})[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_keep_size_of_a_large_network(name: str, tmp_path: Path) -> None:
    source = exports.export(getattr(exports, name)(), tmp_path / "model.onnx", 224, dynamo=False, opset=13)
    onnx_fcn.convert(source, tmp_path / "out.onnx", keep_size=True)
    converted, original = onnx.load(tmp_path / "out.onnx"), onnx.load(source)
    assert not {"Gemm", "MatMul"} & set(operators(converted))
    for batch in (1, 2):
        image = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
        close(answers(converted, image)[0], law.session(original)({"image": image})[0], 1e-4)


# Some outputs ---------------------------------------------------------------------------------------------------------


def two_outputs() -> ModelProto:
    return classifier(f"{HEAD}  y = Softmax (d)  a = Conv <pads = [1, 1, 1, 1]> (m, aux)  g = GlobalAveragePool (a)  "
        "h = Flatten (g)  z = MatMul (h, v)", outputs="y, z", aux=(4, 6, 3, 3), v=(4, 5))  # fmt: skip


def test_outputs() -> None:
    original = two_outputs()
    with pytest.raises(UnsupportedModel, match="keep only one of the outputs, with --outputs y"):
        onnx_fcn.convert(original)
    converted = made(original, outputs=["y"])
    assert [o.name for o in converted.graph.output] == ["y"]
    assert {t.name for t in converted.graph.initializer} == {"k", "w", "b"}
    image = images(original)[1]
    close(answers(converted, image)[0], plain(original, image)[0])


def test_outputs_keep_their_order() -> None:
    original = classifier(f"{HEAD}  y = Softmax (d)  z = Relu (d)  v = Sigmoid (d)", outputs="y, z, v")
    converted = made(original, outputs=["v", "y"])
    assert [o.name for o in converted.graph.output] == ["y", "v"]


# Together -------------------------------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "stride": {"output_stride": 1},
    "mean": {"reduce": "mean"},
    "max, best class": {"reduce": "max", "argmax": True},
    "full size": {"full_size": True},
    "best class": {"argmax": True},
    "full size, best class": {"full_size": True, "argmax": True},
    "full size, stride": {"full_size": True, "output_stride": 1},
    "kept size": {"keep_size": True},
    "logits": {"logits": True},
    "one output": {"outputs": ["y"]},
    "all at once": {"outputs": ["y"], "logits": True, "full_size": True, "argmax": True, "output_stride": 1},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "fp16": {"image": "float16[N,3,9,7] x"},
    "a fixed batch": {"image": "float[2,3,9,7] x"},
}


def network(**given: Any) -> ModelProto:
    return classifier(f"{HEAD}  y = Softmax (d)  z = Relu (d)", outputs="y, z", **given)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", NETWORKS)
def test_a_written_file_says_what_was_made_and_is_verified(given: str, form: str, tmp_path: Path) -> None:
    original = network(**NETWORKS[given])
    onnx.save(original, tmp_path / "model.onnx")
    conversion = onnx_fcn.convert(tmp_path / "model.onnx", tmp_path / "out.onnx", **FORMS[form])
    assert onnx_fcn.validate(tmp_path / "model.onnx", tmp_path / "out.onnx").passed
    geometry = onnx_fcn.read_geometry(tmp_path / "out.onnx")
    assert geometry == conversion.report.geometry
    made_of = FORMS[form]
    words = [str(made_of.get("reduce", ""))] * ("reduce" in made_of)
    words += [
        w
        for w, key in (("keep-size", "keep_size"), ("full-size", "full_size"), ("argmax", "argmax"))
        if made_of.get(key)
    ]
    assert geometry.of("y").form == (" ".join(words) or "map")
    assert (f"\nform     {' '.join(words)}: " in str(conversion.report)) == bool(words)
    assert geometry.of("y").stride == (made_of.get("output_stride", 2),) * 2
    entry = next((p.value for p in onnx.load(tmp_path / "out.onnx").metadata_props if p.key == "onnx_fcn.asked"), "{}")
    assert json.loads(entry) == made_of


def test_head_folded() -> None:
    """With the batch folded into a spatial axis around the head."""
    original = classifier(f"{HEAD}  y = Relu (d)")
    check_folded(original)


@pytest.mark.parametrize("last", ["y = Softmax (d)", "e = Gemm <beta = 0.5> (f, v, d)  y = Relu (e)"])
def test_head_folded_with_more_than_a_layer(last: str) -> None:
    """What enters a softmax is compared too; and a bias that is folded meets a product of what is not yet."""
    check_folded(classifier(f"{HEAD}  {last}", v=(72, 7)))


def check_folded(original: ModelProto) -> None:
    for options in ({"output_stride": 1}, {"reduce": "mean"}, {"full_size": True}, {"keep_size": True}):
        folded, conv = (made(original, head=head, **options) for head in ("folded", "conv"))
        for image in images(original)[: 1 if "keep_size" in options else 3]:
            close(answers(folded, image)[0], answers(conv, image)[0])


# Any tensor of the graph ----------------------------------------------------------------------------------------------


def test_a_tensor_of_the_graph(tmp_path: Path) -> None:
    """Features before the last layer: on every window they are the original's, which does not output them."""
    original = classifier(f"{HEAD}  r = Relu (d)  y = MatMul (r, v)", v=(7, 5))
    onnx.save(original, tmp_path / "model.onnx")
    onnx_fcn.convert(tmp_path / "model.onnx", tmp_path / "out.onnx", outputs=["r", "y"])
    converted = onnx.load(tmp_path / "out.onnx")
    assert [o.name for o in converted.graph.output] == ["y", "r"]
    features = ModelProto()
    features.CopyFrom(original)
    features.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    for image in images(original):
        for got, want in zip(answers(converted, image), plain(features, image), strict=True):
            close(got, want)
    assert onnx_fcn.validate(tmp_path / "model.onnx", tmp_path / "out.onnx").passed
    faulty = onnx.load(tmp_path / "out.onnx")
    bias = next(t for t in faulty.graph.initializer if t.name == "b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), "b"))
    with pytest.raises(ValidationError, match="not the same network"):
        onnx_fcn.validate(tmp_path / "model.onnx", faulty)


def test_a_map_of_the_graph() -> None:
    """A network that slides as a whole: on any image it is the original's convolution."""
    converted = onnx_fcn.convert(classifier(), outputs=["c"])
    assert converted.report.cut is None
    alone = law.model("c = Conv <strides = [2, 2]> (x, k)", image="float[N,3,H,W] x", outputs="c", k=WEIGHTS["k"])
    for image in images(classifier()):
        close(answers(converted.to_proto(), image)[0], law.session(alone)({"x": image})[0])


def test_a_tensor_that_does_not_exist() -> None:
    message = "the model has no output 'scores', and no node makes it: the outputs are 'y': did you mean 'score'\\?"
    with pytest.raises(OptionError, match=message):
        onnx_fcn.convert(classifier(f"{HEAD}  score = Relu (d)  y = Identity (score)"), outputs=["scores"])
    with pytest.raises(OptionError, match="the model has no output 'x', and no node makes it"):
        onnx_fcn.convert(classifier(), outputs=["x"])


def test_scores_before_what_only_makes_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As hosted trainers write it: the hints name the tensors before, and these convert."""
    original = classifier(f"{HEAD}  scores = Softmax <axis = 1> (d)  y = ArgMax <axis = 1, keepdims = 0> (scores)")
    words = [f"class {k}".encode() for k in range(7)]
    original.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [7], words))
    original.graph.node.append(
        helper.make_node("ArrayFeatureExtractor", ["words", "y"], ["label"], domain="ai.onnx.ml")
    )
    maps = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    original.graph.node.append(
        helper.make_node("ZipMap", ["scores"], ["loss"], domain="ai.onnx.ml", classlabels_strings=words)
    )
    del original.graph.output[:]
    original.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]))
    original.graph.output.append(helper.make_value_info("loss", helper.make_sequence_type_proto(maps)))
    original.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(original, tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx")]) == 1
    said = capsys.readouterr().err
    assert "leave it out, with --outputs y" in said
    assert "leave it out, with --outputs scores" in said
    assert main([str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx"), "--outputs", "scores"]) == 0
    alone = classifier(f"{HEAD}  scores = Softmax <axis = 1> (d)", outputs="scores")
    for image in images(alone):
        close(answers(onnx.load(tmp_path / "out.onnx"), image)[0], plain(alone, image)[0])


def with_names() -> ModelProto:
    """A linear classifier as converters of classical models write it: its labels are strings."""
    original = classifier(f"{HEAD}  y = Relu (d)")
    coefficients = law.random("coefficients", 2, 7).reshape(-1).tolist()
    original.graph.node.extend(
        [
            helper.make_node("LinearClassifier", ["y"], ["label", "p"], domain="ai.onnx.ml", coefficients=coefficients,
                intercepts=[0.1, 0.2], post_transform="LOGISTIC", classlabels_strings=["crack", "ok"]),
            helper.make_node("Normalizer", ["p"], ["q"], domain="ai.onnx.ml", norm="L1"),
        ]
    )  # fmt: skip
    original.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    del original.graph.output[:]
    original.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]))
    original.graph.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, ["N", 2]))
    return original


def test_probabilities_of_a_linear_classifier_with_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = with_names()
    onnx.save(original, tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx")]) == 1
    assert "gives labels that are strings, which a map cannot contain (leave it out, with --outputs p)" in (
        capsys.readouterr().err
    )
    assert main([str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx"), "--outputs", "q"]) == 0
    converted = onnx.load(tmp_path / "out.onnx")
    assert {node.domain for node in converted.graph.node} == {""}
    del original.graph.output[0]
    for image in images(original):
        close(answers(converted, image)[0], plain(original, image)[0])


def test_a_fault_beside_names_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings of the original are not compared when it is run twice."""
    monkeypatch.setattr(classical, "_logistic", lambda site, x: x.on(site.emit([x], "Exp")))
    with pytest.raises(ValidationError, match="not the same network"):
        onnx_fcn.convert(with_names(), outputs=["q"])


# What cannot be -------------------------------------------------------------------------------------------------------

CONTRADICTIONS = [
    ({"keep_size": True, "full_size": True}, "--keep-size and --full-size contradict each other"),
    ({"keep_size": True, "argmax": True}, "--keep-size and --argmax contradict each other"),
    ({"keep_size": True, "reduce": "mean"}, "--keep-size and --reduce contradict each other"),
    ({"keep_size": True, "output_stride": 1}, "--keep-size and --output-stride contradict each other"),
    ({"reduce": "mean", "full_size": True}, "--reduce and --full-size contradict each other"),
    ({"outputs": ["nothing"]}, "the model has no output 'nothing', and no node makes it: the outputs are 'y', 'z'"),
    ({"output_stride": 3}, "--output-stride 3 does not divide: use 1, 2"),
    ({"window_stride": 4}, "--window-stride is the distance of the windows that --windows cuts: give that, too"),
    ({"logits": True, "outputs": ["z"]}, "no output closes with a Softmax, LogSoftmax or Sigmoid"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS, ids=[m for _, m in CONTRADICTIONS])
def test_contradictions(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error, from Python as on the command line, where nothing is written."""
    source, output = str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx")
    onnx.save(network(), source)
    with pytest.raises(OptionError, match=message):
        onnx_fcn.convert(source, **options)
    assert main([source, output, *spelled(options)]) == 2
    assert message in capsys.readouterr().err
    assert not Path(output).exists()


def spelled(options: dict[str, Any]) -> list[str]:
    """Options as they are written on the command line."""
    words = []
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(",".join(value) if isinstance(value, list) else str(value))
    return words


@pytest.mark.parametrize("form", FORMS)
def test_the_command_makes_the_same_file(form: str, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    onnx_fcn.convert(tmp_path / "model.onnx", tmp_path / "api.onnx", **FORMS[form])
    command = [str(tmp_path / "model.onnx"), str(tmp_path / "cli.onnx"), "--quiet", *spelled(FORMS[form])]
    assert main(command) == 0
    assert (tmp_path / "api.onnx").read_bytes() == (tmp_path / "cli.onnx").read_bytes()
    assert main(["--verify", command[0], command[1], "--quiet"]) == 0


@pytest.mark.parametrize(
    "words", [["--reduce", "sum"], ["--output-stride", "0"], ["--output-stride", "-2"], ["--outputs", ","]]
)
def test_options_that_mean_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DIGITS), *words]) == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("words", [*map(spelled, FORMS.values())], ids=FORMS)
def test_verify_takes_no_option_beside_metadata(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_fcn.convert(DIGITS, tmp_path / "out.onnx", validate=False)
    assert main(["--verify", str(DIGITS), str(tmp_path / "out.onnx"), *words]) == 2
    options = ", ".join(word for word in words if word.startswith("--"))
    error = capsys.readouterr().err
    assert error.startswith("error: the metadata of the converted model say how it was made: leave --")
    assert set(options.split(", ")) == set(error.partition("leave ")[2].removesuffix(" out\n").split(", "))


def test_an_unknown_reduction() -> None:
    with pytest.raises(OptionError, match="its mean or its max, not to 'sum'"):
        onnx_fcn.convert(DIGITS, reduce="sum")  # type: ignore[arg-type]


def test_probabilities_that_something_else_reads_stay() -> None:
    original = classifier(f"{HEAD}  p = Softmax (d)  y = Identity (p)  [gate] z = Mul (p, d)", outputs="y, z")
    with pytest.raises(OptionError, match="the Softmax before 'y' is read by 'gate' too"):
        onnx_fcn.convert(original, logits=True)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (f"{HEAD}  s = ArgMax <axis = 1> (d)  y = Identity (s)", {"reduce": "mean"}, "map of integers, which cannot"),
        (f"{HEAD}  s = ArgMax <axis = 1> (d)  y = Identity (s)", {"full_size": True}, "a map of integers"),
        (f"{HEAD}  y = ReduceMax <axes = [1]> (d)", {"argmax": True}, "has one channel, so there is no best class"),
        (f"{HEAD}  y = Greater (d, b)", {"argmax": True}, "a type for which onnxruntime has no ArgMax"),
        (f"{HEAD}  a = Abs (d)  y = Cast <to = 4> (a)", {"argmax": True}, "a type for which onnxruntime has no"),
    ],
)  # fmt: skip
def test_maps_that_cannot_take_a_form(head: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        onnx_fcn.convert(classifier(head), **options)


def test_answers_of_several_axes_have_no_best_class() -> None:
    """Of (N, 2, 7) the best of 14 is no class; an axis of one number more does no harm."""
    pair = f"{HEAD}  e = Neg (d)  a = Unsqueeze (d, one)  b1 = Unsqueeze (e, one)  "
    for head, widths in (("y = Concat <axis = 1> (a, b1)", 2), ("y = Identity (a)", 1)):
        original = classifier(pair + head, outputs=f"float[N,{widths},7] y", one=[1])
        if widths == 1:
            (best,) = answers(made(original, argmax=True), images(original)[1])
            assert best.ndim == 3
            continue
        with pytest.raises(UnsupportedModel, match="has 2×7 numbers for each window, so there is no best class"):
            onnx_fcn.convert(original, argmax=True)


def test_full_size_takes_an_opset_that_interpolates() -> None:
    with pytest.raises(UnsupportedModel, match="Resize, which requires opset 11"):
        onnx_fcn.convert(classifier(opset=10), full_size=True)


def test_several_answers_at_the_native_size_are_not_reduced() -> None:
    original = law.model(f"c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  m = Relu (c)  {HEAD}  y = Relu (d)",
        image="float[N,3,8,6] x", k=(6, 3, 3, 3), w=(7, 72), b=(7,))  # fmt: skip
    made(original, reduce="mean")
    with pytest.raises(UnsupportedModel, match="several answers at the native size"):
        onnx_fcn.convert(original, reduce="mean", output_stride=1)


# Planted faults -------------------------------------------------------------------------------------------------------


def edited(converted: ModelProto, op: str, change: Callable[[ModelProto, onnx.NodeProto], None]) -> ModelProto:
    """The network with a fault in the last of its nodes with this operator."""
    faulty = ModelProto()
    faulty.CopyFrom(converted)
    change(faulty, [n for n in faulty.graph.node if n.op_type == op][-1])
    return faulty


def constant(position: int, change: Callable[[Array], Array]) -> Callable[[ModelProto, onnx.NodeProto], None]:
    """Change a constant that a node reads."""

    def edit(model: ModelProto, node: onnx.NodeProto) -> None:
        old = next(t for t in model.graph.initializer if t.name == node.input[position])
        name = f"{old.name}/fault"
        model.graph.initializer.append(numpy_helper.from_array(change(numpy_helper.to_array(old)), name))
        node.input[position] = name

    return edit


def attribute(name: str, value: Any) -> Callable[[ModelProto, onnx.NodeProto], None]:
    def edit(_: ModelProto, node: onnx.NodeProto) -> None:
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def operator(op: str) -> Callable[[ModelProto, onnx.NodeProto], None]:
    def edit(_: ModelProto, node: onnx.NodeProto) -> None:
        node.op_type = op

    return edit


def test_validation_rejects_probabilities_for_logits() -> None:
    original = classifier(f"{HEAD}  y = Softmax (d)")
    probabilities, logits = made(original), made(original, logits=True)
    asked = next(p for p in logits.metadata_props if p.key == "onnx_fcn.asked")
    probabilities.metadata_props.append(asked)
    with pytest.raises(ValidationError):
        onnx_fcn.validate(original, probabilities)


FAULTS = {
    "full size, shifted by a pixel": (
        {"full_size": True}, "Concat", constant(0, lambda pads: np.add(pads, [0, 0, 1, 0, 0, 0]))),
    "full size, padded too little": (
        {"full_size": True}, "Add", constant(1, lambda fronts: np.add(fronts, [1, 0]))),
    "full size, by the corners": (
        {"full_size": True}, "Resize", attribute("coordinate_transformation_mode", "align_corners")),
    "full size, the nearest": ({"full_size": True}, "Resize", attribute("mode", "nearest")),
    "full size, the border mirrored": ({"full_size": True}, "Pad", attribute("mode", "reflect")),
    "the worst class": ({"argmax": True}, "ArgMax", operator("ArgMin")),
    "the best column": ({"argmax": True}, "ArgMax", attribute("axis", 3)),
    "the maximum for the mean": ({"reduce": "mean"}, "ReduceMean", operator("ReduceMax")),
    "the mean of the rows": ({"reduce": "max"}, "ReduceMax", attribute("axes", [2])),
    "a transposed kernel at the kept size": ({"keep_size": True}, "Conv", constant(1, lambda w: w[..., ::-1].copy())),
    "another dilation": ({"output_stride": 1}, "Conv", attribute("dilations", [1, 2])),
    "a stride that stayed": ({"output_stride": 1}, "Conv", attribute("strides", [2, 2])),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_validation_rejects(name: str) -> None:
    options, op, change = FAULTS[name]
    closing = "y = Softmax (d)" if "logits" in options else "y = Identity (d)"
    original = classifier(f"{HEAD}  {closing}", image="float[N,3,9,7] x")
    converted = made(original, **options)
    assert onnx_fcn.validate(original, converted).passed
    with pytest.raises(ValidationError):
        onnx_fcn.validate(original, edited(converted, op, change))


@pytest.mark.parametrize("option", ["output_stride", "window_stride"])
@pytest.mark.parametrize("value", [2.0, True, 0, "4"], ids=str)
def test_strides_are_whole_numbers_of_pixels(option: str, value: Any) -> None:
    """A file with another one could not be verified."""
    with pytest.raises(
        OptionError, match=rf"--{option.replace('_', '-')} is a number of pixels from 1 on,.* not {value!r}"
    ):
        onnx_fcn.convert(classifier(), windows=True, **{option: value})
