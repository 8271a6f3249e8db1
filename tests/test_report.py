"""The report says what is in the model, where each kernel came from, and what to expect: as values, text and JSON."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import law
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

import onnx_fcn
import onnx_fcn.lifting.layouts
from onnx_fcn import Report, ValidationError
from onnx_fcn.reporting.values import Difference, Example, Layer, Map, Tensor

FIXTURES = Path(__file__).parent.parent / "fixtures"


def inspected(body: str, *, size: tuple[int, ...] | None = None, **given: object) -> Report:
    """The report on a small network; see `law.model`. `size`: of its image, where nothing slides over that."""
    return onnx_fcn.inspect(law.model(body, **given), input_size=size)


def test_of_a_classifier() -> None:
    report = onnx_fcn.inspect(FIXTURES / "digits_unpadded.onnx")
    assert report.source == str(FIXTURES / "digits_unpadded.onnx")
    assert report.source_bytes == (FIXTURES / "digits_unpadded.onnx").stat().st_size
    assert report.image == Tensor("image", ("batch", 1, 28, 28), ("batch", 1, "height", "width"))
    assert report.outputs == (
        Tensor("scores", ("batch", 11), ("batch", 11, "(height - 28) // 4 + 1", "(width - 28) // 4 + 1"), (4, 4)),
    )
    assert (report.axes, report.window, report.stride) == ("NCHW", (28, 28), (4, 4))
    assert report.cut == Map("/5/MaxPool_output_0", 20, (4, 4), (4, 4))
    assert report.layers == (
        Layer(
            kind="dense",
            node="/7/Gemm",
            was="Gemm",
            becomes="Conv",
            kernel=(4, 4),
            inputs=20,
            outputs=64,
            groups=1,
            reads="/5/MaxPool_output_0",
            layout="n (c20 h4 w4)",
            weight="7.weight",
            same_bytes=True,
        ),
        Layer("dense", "/10/Gemm", "Gemm", "Conv", (1, 1), 64, 11, 1, "/8/Relu_output_0", "n o64", "10.weight", True),
    )
    assert (report.context, report.caveats) == ((), ())
    assert report.example == Example((64, 64), (10, 10), 100)
    assert report.difference.removed == {"Flatten": 1, "Gemm": 2}
    assert report.difference.added == {"Conv": 2}
    assert sum(report.difference.kept.values()) + sum(report.difference.changed.values()) == 7
    assert report.difference.reshaped == ("7.weight", "10.weight")
    assert report.difference.rewritten == ()
    assert report.validation is None


def test_the_example_is_what_the_network_does(tmp_path: Path) -> None:
    for name in ("digits_unpadded", "digits_padded"):
        example = onnx_fcn.convert(FIXTURES / f"{name}.onnx", tmp_path / "out.onnx").report.example
        assert example is not None
        session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {"image": np.zeros((1, 1, *example.size), np.float32)})
        assert scores.shape[2:] == example.answers


def test_channels_last_weights_are_laid_out_anew() -> None:
    """As Keras has it: the image is channels-last, and so is the flatten."""
    report = inspected(
        "t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv (t, k)  u = Transpose <perm = [0, 2, 3, 1]> (c)  "
        "f = Reshape (u, s)  d = MatMul (f, w)  y = Add (d, b)",
        image="float[N,5,4,2] x", k=(6, 2, 2, 2), s=[-1, 72], w=(72, 3), b=(3,),
    )  # fmt: skip
    (layer,) = report.layers
    assert report.axes == "NHWC"
    assert report.image.after == ("N", "height", "width", 2)
    assert (layer.was, layer.kernel, layer.inputs, layer.outputs) == ("MatMul", (4, 3), 6, 3)
    assert (layer.reads, layer.layout, layer.same_bytes) == ("c", "n (h4 w3 c6)", False)
    assert report.difference.rewritten == ("w",)
    assert "6×4×3 of 'c' as n (h4 w3 c6)  'w', rewritten" in report.text(verbose=True)


def test_a_pooling_of_the_window() -> None:
    report = inspected("p = GlobalAveragePool (x)  f = Flatten (p)  y = Gemm (f, w)", w=(6, 5))
    pooling, dense = report.layers
    assert (pooling.kind, pooling.was, pooling.becomes, pooling.kernel) == (
        "window", "GlobalAveragePool", "AveragePool", (4, 3),
    )  # fmt: skip
    assert (pooling.weight, pooling.same_bytes) == ("", None)
    assert (dense.kind, dense.kernel) == ("dense", (1, 1))
    assert "GlobalAveragePool  AveragePool 4×3" in report.text(verbose=True)
    assert "GlobalAveragePool 'p'  becomes AveragePool 4×3" in str(report)


def test_a_convolution_of_the_whole_window() -> None:
    (layer,) = inspected("y = Conv (x, k)", k=(5, 6, 4, 3)).layers
    assert (layer.kind, layer.was, layer.becomes, layer.kernel) == ("window", "Conv", "Conv", (4, 3))


def test_an_unfolded_window() -> None:
    (layer,) = inspected("r = Relu (x)  y = Flatten (r)", size=(4, 3)).layers
    assert (layer.kind, layer.becomes, layer.kernel, layer.inputs, layer.outputs) == ("unfold", "Conv", (4, 3), 6, 72)


def test_groups() -> None:
    """A weight of its own for each of two groups of features."""
    report = inspected("f = Flatten (x)  d = MatMul (f, w)  g = Reshape (d, s)  e = MatMul (g, v)  y = Reshape (e, t)",
        w=(72, 8), s=[-1, 2, 1, 4], v=(2, 4, 3), t=[-1, 6],
    )  # fmt: skip
    grouped = report.layers[-1]
    assert (grouped.inputs, grouped.outputs, grouped.groups) == (4, 6, 2)
    assert "Conv 1×1, 8 → 6, 2 groups" in str(report)


def test_context() -> None:
    gated = "p = GlobalAveragePool (x)  [gate] g = Conv (p, v)  m = Mul (x, g)  f = Flatten (m)  y = Gemm (f, w)"
    report = inspected(gated.replace("p =", "[squeeze] p =", 1), v=(6, 6, 1, 1), w=(72, 5))
    assert report.context == (("squeeze", "GlobalAveragePool"),)
    (caveat,) = report.caveats
    assert caveat.startswith("'squeeze' (GlobalAveragePool) sees the whole image")
    assert caveat in " ".join(str(report).split())


def test_padding_is_told_once() -> None:
    conv = "[first] a = Conv <pads = [1, 1, 1, 1]> (x, k)"
    pool = "b = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)"
    head = "f = Flatten ({})  y = Gemm (f, w)"
    one = inspected(f"{conv}  {head.format('a')}", k=(6, 6, 3, 3), w=(72, 5))
    two = inspected(f"{conv}  {pool}  {head.format('b')}", k=(6, 6, 3, 3), w=(72, 5))
    assert one.caveats == two.caveats == ()
    for report, says in ((one, "'first' pads: a crop sees"), (two, "'first' and 1 more pad: a crop sees")):
        for text in (str(report), report.text(verbose=True)):
            assert text.count(" padding where") == 1
            assert f"exact    no, padded: {says} padding where the larger image has pixels" in text
    assert one.example == Example((13, 12), (10, 10), 64)
    assert "13×12 pixels → 10×10 answers, 64 of them free of padding" in str(one)


def test_a_coarse_stride() -> None:
    body = "a = Conv <strides = [{0}, {0}]> (x, k)  f = Flatten (a)  y = Gemm (f, w)"
    fine = inspected(body.format(16), image="float[N,1,65,65] x", k=(1, 1, 3, 3), w=(16, 2))
    coarse = inspected(body.format(32), image="float[N,1,65,65] x", k=(1, 1, 3, 3), w=(4, 2))
    assert fine.caveats == ()
    assert coarse.caveats == (
        "There is one answer every 32 pixels: --output-stride 16 also gives the answers in between.",
    )


def test_the_diagram() -> None:
    report = onnx_fcn.inspect(FIXTURES / "digits_unpadded.onnx")
    diagram = next(block for block in report.text(verbose=True).split("\n\n") if block.startswith("From an image"))
    assert (
        diagram
        == """\
From an image to its answers
  image    'image', 1×28×28
    ↓      trunk: 6 nodes, 464 k MACs
  cut      '/5/MaxPool_output_0', 20×4×4, a cell every 4 pixels
    ↓      head: 4 nodes, 21.2 k MACs a window
    ↓        Conv 4×4, 20 → 64
    ↓        Conv 1×1, 64 → 11
  answers  'scores', 11 numbers every 4 pixels"""
    )
    assert report.native.trunk.macs == 24 * 24 * 10 * 25 + 8 * 8 * 20 * 250
    assert report.native.head.macs == 20 * 16 * 64 + 64 * 11


def test_a_long_head_is_cut_short_in_the_diagram() -> None:
    dense = "".join(f"h{k + 1} = Gemm (h{k}, v)  " for k in range(8))
    report = inspected(f"h0 = Flatten (x)  {dense}  y = Gemm (h8, w)", v=(72, 72), w=(72, 5))
    text = report.text(verbose=True)
    assert "    ↓        and 3 more, listed below\n" in text
    assert text.index("listed below") < text.index("What answers at every position")


def test_a_fully_convolutional_network() -> None:
    report = inspected("c = Conv <pads = [1, 1, 1, 1]> (x, k)  y = Sigmoid (c)", k=(2, 6, 3, 3))
    assert (report.layers, report.cut, report.example) == ((), None, None)
    (caveat,) = report.caveats
    assert caveat.startswith("The network was fully convolutional already")
    assert report.difference.removed == report.difference.added == {}


def test_several_outputs() -> None:
    report = inspected(
        "f = Flatten (x)  y = Gemm (f, w)  z = Gemm (f, v)", size=(4, 3), outputs="y, z", w=(72, 5), v=(72, 2)
    )
    assert [(o.name, o.after) for o in report.outputs] == [
        ("y", ("N", 5, "height - 3", "width - 2")),
        ("z", ("N", 2, "height - 3", "width - 2")),
    ]


def test_one_and_three_dimensions() -> None:
    body = "c = Conv <strides = [{}]> (x, k)  f = Flatten (c)  y = Gemm (f, w)"
    line = inspected(body.format(2), image="float[N,2,9] x", k=(3, 2, 3), w=(12, 5))
    solid = inspected(body.format("1, 2, 3"), image="float[N,2,4,5,7] x", k=(3, 2, 2, 3, 4), w=(36, 5))
    assert (line.axes, line.window, line.stride) == ("NCW", (9,), (2,))
    assert (solid.axes, solid.window, solid.stride) == ("NCDHW", (4, 5, 7), (1, 2, 3))
    assert "stride   1×2×3 pixels between answers" in solid.text(verbose=True)
    assert "window   4×5×7 pixels, 1×2×3 pixels between answers" in str(solid)
    assert solid.outputs[0].after == ("N", 5, "depth - 3", "(height - 5) // 2 + 1", "(width - 7) // 3 + 1")


def test_difference_names_what_came_and_went() -> None:
    """Constants and shapes that only the flatten needed go; what is untouched is counted as kept."""
    report = inspected(
        "r = Relu (x)  s = Shape (r)  n = Gather (s, zero)  t = Concat <axis = 0> (n, rest)  "
        "f = Reshape (r, t)  y = Gemm (f, w)",
        size=(4, 3), zero=[0], rest=[-1], w=(72, 5),
    )  # fmt: skip
    assert report.difference == Difference(
        kept={"Relu": 1},
        changed={},
        removed={"Concat": 1, "Gather": 1, "Gemm": 1, "Reshape": 1, "Shape": 1},
        added={"Conv": 1},
        reshaped=(),
        rewritten=("w",),
        removed_initializers=("zero", "rest"),
        added_initializers=(),
    )


# As a value -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> Report:
    return onnx_fcn.convert(FIXTURES / "digits_padded.onnx").report


def test_is_a_plain_value(report: Report) -> None:
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert str(again) == str(report)
    assert again.text(verbose=True) == report.text(verbose=True)


def test_json(report: Report) -> None:
    """The keys are what scripts rely on: whoever changes one makes `FORMAT` grow."""
    values = report.to_dict()
    again = json.loads(json.dumps(values, allow_nan=False))
    assert list(again) == [
        "version", "generator", "source", "source_bytes", "image", "axes", "window", "outputs", "cut", "layers",
        "context", "caveats", "example", "native", "costs", "difference", "validation", "output", "output_bytes",
        "data", "seconds", "geometry", "fields", "slides", "classes",
    ]  # fmt: skip
    assert again["version"] == 1
    assert again["generator"] == f"onnx_fcn {onnx_fcn.__version__}"
    assert list(again["outputs"][0]) == ["name", "before", "after", "stride"]
    assert list(again["cut"]) == ["name", "channels", "window", "stride"]
    assert list(again["layers"][0]) == [
        "kind", "node", "was", "becomes", "kernel", "inputs", "outputs", "groups", "reads", "layout", "weight",
        "same_bytes",
    ]  # fmt: skip
    assert list(again["example"]) == ["size", "answers", "interior"]
    assert list(again["native"]) == ["batch", "macs", "activations", "trunk", "head"]
    assert list(again["native"]["trunk"]) == list(again["native"]["head"]) == ["nodes", "macs"]
    assert list(again["costs"][0]) == ["size", "answers", "macs", "crops", "activations", "ratio"]
    assert list(again["difference"]) == [
        "kept", "changed", "removed", "added", "reshaped", "rewritten", "removed_initializers", "added_initializers",
    ]  # fmt: skip
    assert list(again["validation"]) == ["passed", "checks", "uncovered"]
    assert list(again["validation"]["checks"][0]) == [
        "kind", "subject", "size", "batch", "compared", "error", "tolerance", "note", "median", "top1",
    ]  # fmt: skip


def test_json_of_what_could_not_be_measured(report: Report) -> None:
    assert report.validation is not None
    checks = tuple(replace(c, error=float("inf")) for c in report.validation.checks)
    failed = replace(report, validation=replace(report.validation, checks=checks))
    again = json.loads(json.dumps(failed.to_dict(), allow_nan=False))
    assert {c["error"] for c in again["validation"]["checks"]} == {None}


def test_text_is_aligned(report: Report) -> None:
    for text in (str(report), report.text(verbose=True)):
        assert all(line == line.rstrip() for line in text.splitlines())
    table = next(b for b in report.text(verbose=True).split("\n\n") if b.startswith("What answers")).splitlines()[1:]
    assert len({line.index(word) for line, word in zip(table, ("becomes", "Conv 7×7", "Conv 1×1"))}) == 1


def test_a_model_in_memory_has_no_path(report: Report) -> None:
    model: ModelProto = onnx.load(FIXTURES / "digits_padded.onnx")
    in_memory = onnx_fcn.inspect(model)
    assert in_memory.source == ""
    assert in_memory.layers == report.layers
    assert not str(in_memory).startswith("model")


def test_validation_error_holds_the_measurements(tmp_path: Path) -> None:
    original = FIXTURES / "digits_unpadded.onnx"
    onnx_fcn.convert(original, tmp_path / "out.onnx", validate=False)
    model = onnx.load(tmp_path / "out.onnx")
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Tanh"
    with pytest.raises(ValidationError, match="is not the same network") as raised:
        onnx_fcn.validate(original, save(model, tmp_path / "wrong.onnx"))
    assert isinstance(raised.value.report, onnx_fcn.Validation)
    assert not raised.value.report.passed
    assert raised.value.report.worst("native") > 0.01


def save(model: ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_a_file_that_grows_is_told() -> None:
    """Weights that are repeated, by how much, and where most of them are."""
    model = law.model(
        "r = Reshape (x, s)  [mix] m = MatMul (r, v)  y = Flatten (m)", image="float[N,20,12,12] x", s=[0, 20, 144],
        v=(144, 128),
    )  # fmt: skip
    conversion = onnx_fcn.convert(model, validate=False)
    (caveat,) = (c for c in conversion.report.caveats if "repeated" in c)
    assert "far larger than the 73.9 kB of the model" in caveat
    assert "it contains 1.5 MB of kernels" in caveat
    assert "most of it for 'mix'" in caveat
    assert conversion.to_proto().ByteSize() > 1.4e6


def test_kernels_that_unfold_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 48 channels for 16 positions is 3 kB."""
    body = "c = Conv (x, k)  a = Relu (c)  y = Flatten (a)  b = Neg (c)  z = Flatten (b)"
    model = law.model(body, image="float[N,3,4,4] x", outputs="y, z", k=(3, 3, 1, 1))
    monkeypatch.setattr(onnx_fcn.lifting.layouts, "REPEAT_LIMIT", 6144)
    onnx_fcn.convert(model, validate=False)
    monkeypatch.setattr(onnx_fcn.lifting.layouts, "REPEAT_LIMIT", 6143)
    with pytest.raises(
        onnx_fcn.UnsupportedModel, match="together with the repeated weights, would take 0 MB"
    ) as refused:
        onnx_fcn.convert(model, validate=False)
    assert [(d.code, d.node) for d in refused.value.diagnostics] == [("unfold-too-large", "z")]


# On one screen --------------------------------------------------------------------------------------------------------

DENSE = "f = Flatten (m)  [classifier_1_Gemm] d = Gemm (f, w)  a = Relu (d)  [classifier_4_Gemm] e = Gemm (a, v)  "

#: Networks whose reports are long: name, body, and what `law.model` takes.
LONG: dict[str, tuple[str, dict[str, object]]] = {
    "as AlexNet": (
        "[features_0_Conv] c = Conv <strides = [4, 4], pads = [2, 2, 2, 2]> (x, k)  n = LRN <size = 5> (c)  "
        "p = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (n)  "
        "[features_4_Conv] g = Conv <pads = [2, 2, 2, 2]> (p, l)  r = Relu (g)  "
        "q = MaxPool <kernel_shape = [3, 3], strides = [4, 4]> (r)  [avgpool_AveragePool] "
        "m = AveragePool <kernel_shape = [3, 3], strides = [1, 1]> (q)  "
        + DENSE
        + "b = Relu (e)  [classifier_6_Gemm] y = Gemm (b, u)",
        {
            "image": "float[batch,3,127,127] x", "k": (8, 3, 11, 11), "l": (12, 8, 5, 5), "w": (48, 32), "v": (32, 32),
            "u": (32, 10),
        },
    ),
    "quantised": (
        "[features_0_Conv] c = Conv <strides = [4, 4], auto_pad = \"SAME_UPPER\"> (x, k)  "
        "q = QuantizeLinear (c, s, z)  m = DequantizeLinear (q, s, z)  f = Flatten (m)  w = DequantizeLinear (i, t)  "
        "[fc_Gemm] d = MatMul (f, w)  r = QuantizeLinear (d, o, z)  y = DequantizeLinear (r, o, z)",
        {
            "image": "float[batch,3,16,16] x", "k": (8, 3, 5, 5), "s": 0.05, "z": np.int8(0), "t": 0.02, "o": 0.1,
            "i": np.random.default_rng(0).integers(-128, 128, (128, 10), np.int8),
        },
    ),
    "of two outputs, gated": (
        "[features_0_Conv] c = Conv <strides = [32, 32], pads = [1, 1, 0, 0]> (x, k)  "
        "[gate_GlobalAveragePool] g = GlobalAveragePool (c)  [gate_Conv] h = Conv (g, j)  j1 = Sigmoid (h)  "
        "s = Mul (c, j1)  [gate2_GlobalAveragePool] g2 = GlobalAveragePool (s)  j2 = Sigmoid (g2)  m = Mul (s, j2)  "
        + DENSE
        + "[age_Gemm] y = Gemm (a, u)  z = Softmax (e)",
        {
            "image": "float[batch,3,96,96] x", "outputs": "y, z", "k": (8, 3, 33, 33), "j": (8, 8, 1, 1),
            "w": (72, 32), "v": (32, 32), "u": (32, 10),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_fits_on_a_screen(name: str, tmp_path: Path) -> None:
    """24 lines of 100 columns, with a line for each layer, every caveat, every kind of check, and the file."""
    body, given = LONG[name]
    onnx.save(law.model(body, **given), tmp_path / "model.onnx")
    with pytest.MonkeyPatch.context() as place:
        place.chdir(tmp_path)
        report = onnx_fcn.convert("model.onnx", "model-fcn.onnx").report
    text = str(report)
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    for layer in report.layers:
        assert f"'{layer.node}' becomes {layer.becomes}" in words
    several = len(report.context) > 1
    assert {c for c in report.caveats if c not in words} == {c for c in report.caveats if several and " sees the " in c}
    assert ("and 1 more see the whole image: every answer depends on all of it" in words) == several
    assert all(c in " ".join(report.text(verbose=True).split()) for c in report.caveats)
    assert report.validation is not None
    kinds = {check.kind for check in report.validation.checks}
    compared = text.partition("Validation: it is the same network")[2].partition("\n\n")[0]
    figures = re.findall(r"^  (\d\.\de[+-]\d\d)  ", compared, re.MULTILINE)
    worst = [max(c.error for c in report.validation.checks if c.kind == kind) for kind in kinds]
    assert sorted(figures) == sorted(f"{error:.1e}" for error in worst)
    assert text.splitlines()[-1].startswith("written  model-fcn.onnx, ")
    assert f"window   {'×'.join(map(str, report.window))} pixels, {report.stride[0]} pixels between answers" in text
    assert report.example is not None
    assert f"{'×'.join(map(str, report.window))} pixels → 1 answer; " in text
    assert f"{'×'.join(map(str, report.example.size))} pixels → 10×10 answers" in text


def test_caveats_of_the_networks_that_have_to_fit() -> None:
    """Those that the test above looks for are there."""
    caveats = {name: onnx_fcn.inspect(law.model(body, **given)).caveats for name, (body, given) in LONG.items()}
    assert [len(found) for found in caveats.values()] == [1, 1, 3]


def test_many_layers_and_outputs_are_cut_short() -> None:
    heads = "".join(f"[head{k}] y{k} = Gemm (f, w)  " for k in range(6))
    report = inspected(
        f"f = Flatten (x)  {heads}", size=(4, 3), outputs=", ".join(f"y{k}" for k in range(6)), w=(72, 5)
    )
    text, full = str(report), report.text(verbose=True)
    assert text.count("and 2 more, which the verbose report lists") == 2
    for k in range(6):
        assert (f"'y{k}' (" in text, f"Gemm 'head{k}'  becomes" in text) == (k < 4, k < 4)
        assert (f"answers  'y{k}' (" in full, f"  head{k}  Gemm" in full) == (True, True)


def test_costs_of_the_largest_image_or_of_those_that_were_asked_for() -> None:
    digits = FIXTURES / "digits_unpadded.onnx"
    lines = {
        sizes: [line for line in str(onnx_fcn.inspect(digits, sizes=sizes)).splitlines() if "as crops" in line]
        for sizes in ((), (44,), ((44, 48), 56))
    }
    told = {sizes: [line.partition(": ")[0].split()[-1] for line in found] for sizes, found in lines.items()}
    assert told == {(): ["112×112"], (44,): ["44×44"], ((44, 48), 56): ["44×48", "56×56"]}
    assert lines[()] == ["cost     485 k MACs a window; 112×112: 25.7 M for 22×22 answers, 235 M as crops"]


def test_a_small_weight_that_leaves_a_data_file_keeps_its_bytes(tmp_path: Path) -> None:
    onnx.save(
        onnx.load(FIXTURES / "digits_unpadded.onnx"),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    report = onnx_fcn.inspect(tmp_path / "model.onnx")
    assert [layer.same_bytes for layer in report.layers] == [True, True]
    assert (report.difference.rewritten, len(report.difference.reshaped)) == ((), 2)
