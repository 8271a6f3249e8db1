"""A map that windows were cut for is one like any other: its forms, tiles, geometry, costs and explanations.

And what is said where windows are a remedy, or are none: the command that a refusal names is run on the model.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import law
import numpy as np
import onnx
import pytest
import wording
from law import Array
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from test_tiles import assert_same, once
from test_windows import ATTENTION, CASES, EMBEDDED, IMAGE, PLACES, POSITIONS, SCORES, TRUNK, case
from test_windows_strides import PIXELS

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import DenseModel, UnsupportedModel
from onnx_fcn.cli.convert import main
from onnx_fcn.lifting.regions import together_of
from onnx_fcn.walk import regions

#: Relative to the largest answer: the same sums in another order.
ROUNDING = 2e-5

SCORED = EMBEDDED.replace("y =", "a =")
PADDED = "a trunk that pads, pools and joins"


def attended(ending: str = "y = Identity (a)", **weights: Any) -> ModelProto:
    """Windows of 9×7 pixels, every 2; nothing pads."""
    return case(f"{SCORED}  {ending}", weights={**PLACES, **weights}).model()


#: A map of numbers that are quantised, as quantize_static writes it, and what it passes on the way to the windows.
ROUNDED = ("q = QuantizeLinear (c, scale, zero)  d = DequantizeLinear (q, scale, zero)  {}  r = Reshape (e, flat)  "
           "t = Transpose <perm = [0, 2, 1]> (r)  u = Transpose <perm = [0, 2, 1]> (t)  s = MatMul (t, u)  "
           "p = Softmax <axis = -1> (s)  z = MatMul (p, t)  g = ReduceMean <axes = [1], keepdims = 0> (z)  "
           "y = MatMul (g, w)")  # fmt: skip


@pytest.mark.parametrize("passed", ["e = Identity (d)", "e = MaxPool <kernel_shape = [2, 2]> (d)"])
@pytest.mark.parametrize("batch", ["N", "1"])
def test_a_quantised_map(batch: str, passed: str, tmp_path: Path) -> None:
    """onnxruntime moves a DequantizeLinear, and ended the process where the body of a Scan reads what is behind it."""
    original = law.model(
        f"c = Conv <strides = [4, 4]> (x, k)  {ROUNDED.format(passed)}",
        image=f"float[{batch},3,32,32] x", k=(6, 3, 4, 4), flat=[0, 6, -1], w=(6, 5), scale=np.float32(0.05),
        zero=np.uint8(128),
    )  # fmt: skip
    onnx.save(original, tmp_path / "model.onnx")
    command = [sys.executable, "-m", "onnx_fcn", tmp_path / "model.onnx", tmp_path / "out.onnx", "--windows"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_windows_of_different_brightness_are_quantised_each_by_its_own_scale() -> None:
    original = attended("i, step, zero = DynamicQuantizeLinear (a)  y = DequantizeLinear (i, step, zero)")
    converted = onnx_fcn.convert(original, windows=True).to_proto()
    image = law.random("x", 1, 3, 9, 25).astype(np.float32)
    image[..., 12:] *= 100
    assert np.abs(answers(converted, image) - plain(original, image))[..., :2].max() < 1e-5


def plain(original: ModelProto, image: Array, stride: int = 2) -> Array:
    """The map of the first output, (N, K, *grid): the original on every crop."""
    cells = law.by_window(law.session(original), {"x": image}, "x", (9, 7), (2, 3), (stride, stride))
    vectors = np.stack([law.vectors(c[0], len(image)) for c in cells.values()], -1)
    return vectors.reshape(*vectors.shape[:2], *(n + 1 for n in max(cells)))


def images() -> list[Array]:
    """Of the native size, larger, and with pixels left over."""
    return [law.random(str(size), 2, 3, *size).astype(np.float32) for size in ((9, 7), (14, 12), (13, 18))]


def answers(converted: ModelProto, image: Array) -> Array:
    feeds = {"x": image}
    got = law.session(converted)(feeds)
    law.check_formulas(converted, feeds, got)
    return got[0]


def close(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    assert np.abs(got.astype(np.float64) - want).max() <= ROUNDING * np.abs(want).max()


def scan_in(model: ModelProto) -> NodeProto:
    return next(n for n in model.graph.node if n.op_type == "Scan")


def body_of(model: ModelProto) -> GraphProto:
    graph: GraphProto = scan_in(model).attribute[[a.name for a in scan_in(model).attribute].index("body")].g
    return graph


def made_by(graph: GraphProto, op: str, at: int = 0) -> NodeProto:
    """The nth node of an operator."""
    return [n for n in graph.node if n.op_type == op][at]


# Windows that run together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 11, 13, 17, 23])
def test_any_number_of_windows(columns: int) -> None:
    """They run in rows of at most eight, as equal as may be."""
    original = attended()
    converted = onnx_fcn.convert(original, windows=True, validate=False).to_proto()
    image = law.random(str(columns), 2, 3, 9, 5 + 2 * columns).astype(np.float32)
    close(answers(converted, image), plain(original, image))
    firsts = scan_in(converted).input[0]
    converted.graph.output.append(helper.make_tensor_value_info(firsts, TensorProto.INT64, [None, None, 1]))
    rows = law.session(converted)({"x": image})[-1]
    assert rows.shape[1] == together_of(columns, 8) <= 8
    assert rows.size - columns < max(1, columns / 8)


@pytest.mark.parametrize(("image", "opset", "together"), [
    ("float[N,3,9,7] x", 13, True), ("float[N,3,9,7] x", 10, True), ("float[N,3,9,7] x", 9, False),
    ("float[1,3,9,7] x", 13, False), ("float[2,3,9,7] x", 13, False),
])  # fmt: skip
def test_which_windows_run_together(image: str, opset: int, together: bool) -> None:
    """Those of a network that takes any number of images, where a count at run time can be sliced by."""
    original = case(f"{SCORED}  y = Identity (a)", image=image, weights=PLACES).build(opset)
    body = body_of(onnx_fcn.convert(original, windows=True).to_proto())
    dims = [d.dim_value or None for d in body.input[0].type.tensor_type.shape.dim]
    assert dims == ([None, 1] if together else [1])


# Forms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "reduced"), [("mean", np.mean), ("max", np.max)])
def test_reduced(kind: Any, reduced: Callable[..., Array]) -> None:
    original = attended()
    converted = onnx_fcn.convert(original, windows=True, reduce=kind).to_proto()
    for image in images():
        close(answers(converted, image), reduced(plain(original, image), axis=(2, 3)))


def test_the_best_class() -> None:
    original = attended()
    converted = onnx_fcn.convert(original, windows=True, argmax=True).to_proto()
    for image in images():
        got = answers(converted, image)
        assert got.dtype == np.uint8
        assert np.array_equal(got.reshape(2, *got.shape[-2:]), plain(original, image).argmax(1))


def test_logits() -> None:
    converted = onnx_fcn.convert(attended("y = Softmax <axis = 1> (a)"), windows=True, logits=True).to_proto()
    for image in images():
        close(answers(converted, image), plain(attended(), image))


def test_full_size() -> None:
    """In the middle of each window of 9×7 pixels is its answer; windows are an even number of pixels apart."""
    original = attended()
    converted = onnx_fcn.convert(original, windows=True, full_size=True).to_proto()
    for image in images():
        got, want = answers(converted, image), plain(original, image)
        assert got.shape == (*want.shape[:2], *image.shape[2:])
        close(got[:, :, 4 : image.shape[2] - 4 : 2, 3 : image.shape[3] - 3 : 2], want)


@pytest.mark.parametrize(
    "name", ["embedded positions", "outputs of two ranks", "an answer without an axis for the batch", "the best class",
             "a GRU that answers at each step, with the batch between", "an image without a batch"]
)  # fmt: skip
def test_the_original_s_shapes(name: str) -> None:
    known = CASES[name]
    original = known.model()
    converted = onnx_fcn.convert(original, windows=True, keep_size=True).to_proto()
    for batch in known.batches:
        feeds = {i.name: law.noise(i, batch, (-2, 2)) for i in law.data_inputs(original)}
        want, got = law.session(original)(feeds), law.session(converted)(feeds)
        for a, b in zip(got, want, strict=True):
            close(a, b)


# Tiles ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"window_stride": 6}, {"output_stride": 1}, {"argmax": True}], ids=str)
@pytest.mark.parametrize("name", ["embedded positions", PADDED])
def test_tiles_are_one_pass(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    onnx_fcn.convert(CASES[name].model(), tmp_path / "out.onnx", windows=True, **how)
    image = law.random("image", 3, 41, 32).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    expected = once(tmp_path / "out.onnx", image)
    for tile in (7, 12):
        onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / f"{tile}.npy", tile=tile)
        assert_same(np.load(tmp_path / f"{tile}.npy"), expected)
    assert_same(DenseModel(tmp_path / "out.onnx").run_tensor(image[None]).map, expected)
    tiled = onnx_fcn.dask.apply(tmp_path / "out.onnx", dask.array.from_array(image), tile=15)
    assert_same(tiled.compute(scheduler="sync"), expected)


def test_tiles_of_a_network_in_which_nothing_slides(tmp_path: Path) -> None:
    onnx_fcn.convert(PIXELS.model(), tmp_path / "out.onnx", windows=True)
    image = law.random("image", 6, 30, 23).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", tile=9)
    assert_same(np.load(tmp_path / "map.npy"), once(tmp_path / "out.onnx", image))


# Reports --------------------------------------------------------------------------------------------------------------


def test_geometry(tmp_path: Path) -> None:
    report = onnx_fcn.convert(attended(), tmp_path / "out.onnx", windows=True, window_stride=4).report
    grid = onnx_fcn.read_geometry(tmp_path / "out.onnx").grid(22, 20)
    assert grid == report.geometry.grid(22, 20)
    assert grid.shape == ((22 - 9) // 4 + 1, (20 - 7) // 4 + 1)
    assert grid.boxes[1, 2].tolist() == [8, 4, 15, 13]  # left, top, right, bottom
    image = law.random("x", 1, 3, 22, 20).astype(np.float32)
    left, top, right, bottom = grid.boxes[2, 1]
    crop = law.session(attended())({"x": image[:, :, top:bottom, left:right].copy()})[0]
    close(once(tmp_path / "out.onnx", image[0])[:, 2, 1], crop[0])


#: Multiply-accumulates of `attended`, counted by hand: a cell of the convolution; and behind it queries and keys, their
#: products, the weighted positions, and the scores.
PER_CELL, PER_WINDOW = 6 * 3 * 3 * 3, 2 * 12 * 6 * 6 + 2 * 12 * 12 * 6 + 6 * 5


@pytest.mark.parametrize("stride", [2, 4])
def test_costs(stride: int) -> None:
    """At any size: the trunk once, and the rest for each window."""
    sizes = [(20, 31), (9, 40)]
    report = onnx_fcn.convert(attended(), windows=True, window_stride=stride, sizes=sizes, validate=False).report
    native = PER_CELL * 4 * 3 + PER_WINDOW
    assert (report.native.trunk.macs, report.native.head.macs) == (PER_CELL * 4 * 3, PER_WINDOW)
    assert [cost.size for cost in report.costs] == [(9, 7), *sizes]
    for cost in report.costs:
        cells = math.prod((n - 3) // 2 + 1 for n in cost.size)
        windows = tuple((n - w) // stride + 1 for n, w in zip(cost.size, (9, 7)))
        assert cost.answers == windows
        assert cost.macs == PER_CELL * cells + PER_WINDOW * math.prod(windows)
        assert cost.crops == native * math.prod(windows)


@pytest.mark.parametrize(
    ("name", "positions"),
    [("a shape that is computed", 12), ("a class token, repeated for the images of the batch", 13),
     ("a number of pixels that divides", 12), ("another input, for each position", 12)],
)  # fmt: skip
def test_costs_of_what_is_known_only_when_it_runs(name: str, positions: int) -> None:
    """Shapes that are computed are those of one image."""
    report = onnx_fcn.convert(CASES[name].model(), windows=True, validate=False).report
    attention = 2 * positions * 6 * 6 + 2 * positions * positions * 6 + 6 * 5
    assert (report.native.trunk.macs, report.native.head.macs) == (PER_CELL * 4 * 3, attention)
    assert report.costs[0].macs == PER_CELL * 4 * 3 + attention


def test_memory_does_not_grow_with_what_runs_on_windows() -> None:
    """Activations of the native size are about those of the original."""
    report = onnx_fcn.convert(attended(), windows=True, validate=False).report
    first = report.costs[0].activations
    assert first is not None
    assert report.native.activations is not None
    assert first < 3 * report.native.activations


def test_the_report(tmp_path: Path) -> None:
    original = attended()
    report = onnx_fcn.convert(original, tmp_path / "out.onnx", windows=True).report
    (layer,) = report.layers
    assert (layer.kind, layer.was, layer.becomes) == ("region", "12 nodes", "Scan")
    assert (layer.kernel, layer.inputs, layer.outputs) == ((4, 3), 6, 5)
    assert report.cut is not None
    assert (report.cut.name, report.stride, report.window) == ("m", (2, 2), (9, 7))
    text = re.sub(r" +", " ", str(report))
    assert "12 nodes 't' becomes Scan 4×3, 6 → 5" in text
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["layers"][0]["kind"] == "region"
    assert values["cut"]["name"] == "m"
    assert wording.faults(report.text(verbose=True), outputs=1) == []


def test_explanations() -> None:
    inside = onnx_fcn.explain(attended(), "aff", windows=True)
    assert (inside.part, inside.op, inside.becomes, inside.causes) == ("region", "MatMul", "stays unchanged", ())
    assert [(o.name, o.fact) for o in (*inside.reads, *inside.makes)] == [(n, "window") for n in ("q", "kt", "aff")]
    assert [(o.name, o.fact) for o in onnx_fcn.explain(attended(), "q", windows=True).reads] == [
        ("p", "window"),
        ("wq", "constant"),
    ]
    before = onnx_fcn.explain(attended(), "c", windows=True)
    assert (before.part, before.op, before.makes[0].stride) == ("trunk", "Conv", (2, 2))
    assert onnx_fcn.explain(attended(), "aff").part == "refused"
    for told in (inside, before):
        assert wording.faults(str(told), outputs=1) == []
        json.dumps(told.to_dict(), allow_nan=False)


def test_an_explanation_of_an_answer() -> None:
    """It names the operator of the file, not one that no file has."""
    told = onnx_fcn.explain(attended(), "y", windows=True)
    assert told.op == "Identity"
    assert told.makes[0].stride == (2, 2)


# Weights --------------------------------------------------------------------------------------------------------------


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    """Of the region and of the trunk, by their names; linked, none is written again."""
    wide = case(
        f"{TRUNK}  {POSITIONS}  e = MatMul (u, up)  kt = Transpose <perm = [0, 2, 1]> (e)  aff = MatMul (e, kt)  "
        "o = MatMul (aff, e)  g = Gather <axis = 1> (o, first)  h = MatMul (g, big)  y = MatMul (h, w)",
        weights={"up": (6, 1024), "big": (1024, 1024), "w": (1024, 5)},
    )  # fmt: skip
    source = tmp_path / "model.onnx"
    onnx.save(wide.model(), source, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    onnx_fcn.convert(source, tmp_path / "linked.onnx", windows=True, link_data=True, external_data=True)
    linked = onnx.load(tmp_path / "linked.onnx", load_external_data=False)
    places = {t.name: [(e.key, e.value) for e in t.external_data]
              for t in onnx.load(source, load_external_data=False).graph.initializer}  # fmt: skip
    kept = {t.name: [(e.key, e.value) for e in t.external_data] for t in linked.graph.initializer}
    assert kept["big"] == places["big"] != []
    assert kept["up"] == places["up"] != []
    assert sum(len(t.raw_data) for t in (*linked.graph.initializer, *body_of(linked).initializer)) < 5000
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "weights.bin", "linked.onnx"}
    onnx_fcn.convert(source, tmp_path / "out.onnx", windows=True)
    assert (
        sum(p.stat().st_size for p in tmp_path.glob("out.onnx*")) < (tmp_path / "weights.bin").stat().st_size + 20_000
    )
    image = law.random("x", 3, 15, 12).astype(np.float32)
    assert np.array_equal(once(tmp_path / "out.onnx", image), once(tmp_path / "linked.onnx", image))


# Advice ---------------------------------------------------------------------------------------------------------------

#: Refused networks for which windows are a remedy.
ADVISED = ("a class token, repeated for the images of the batch", "embedded positions", "a volume", "a signal",
           "an LSTM along the positions", "coordinates as channels of the map", "channels last", PADDED,
           "padding behind the map that two outputs share", "another input, for each position",
           "an image without a batch", "a baked batch of two")  # fmt: skip


@pytest.mark.parametrize("name", ADVISED)
def test_the_advice_works(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(CASES[name].model(), source)
    assert main([str(source), str(out)]) == 1
    said = capsys.readouterr().err
    assert "--windows" in said
    assert not out.exists()
    assert main([str(source), str(out), "--windows", "--json", str(tmp_path / "report.json")]) == 0
    assert onnx_fcn.validate(source, out).passed
    shares = re.findall(r"(\d+)% of the work comes before", said)
    native = json.loads((tmp_path / "report.json").read_text("utf-8"))["native"]
    assert (native["macs"] is None) == ("LSTM" in name)
    if native["macs"]:
        assert shares == [f"{native['trunk']['macs'] / native['macs']:.0%}".rstrip("%")]
    with pytest.raises(UnsupportedModel) as refused:
        onnx_fcn.convert(source)
    outputs = len(CASES[name].model().graph.output)
    assert wording.faults(str(refused.value), outputs=outputs, given=("--windows",)) == []


def test_the_advice_is_a_line_whatever_tensors_are_called() -> None:
    hostile = attended()
    for node in hostile.graph.node:
        for names in (node.input, node.output):
            names[:] = ["m\n\x1b[31m" + "m" * 100_000 if name == "m" else name for name in names]
    with pytest.raises(UnsupportedModel) as refused:
        onnx_fcn.convert(hostile)
    *_, advice = lines = str(refused.value).splitlines()
    assert advice == refused.value.advice.splitlines()[0]
    assert advice.startswith(r"--windows runs what comes after 'm\n\x1b[31mmm")
    assert all(len(line) <= 2_100 and line.isprintable() for line in lines)


def test_the_advice_where_nothing_slides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(PIXELS.model(), tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx")]) == 1
    said = capsys.readouterr().err
    assert "--windows" in said
    assert "crops" in said
    assert "%" not in said
    assert main([str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx"), "--windows"]) == 0


def custom_operator() -> ModelProto:
    """As onnxruntime runs it with a library of the user's alone."""
    made = attended()
    node = made_by(made.graph, "Softmax")
    node.domain, node.op_type = "my.own", "Weights"
    made.opset_import.append(helper.make_opsetid("my.own", 1))
    return made


def labelled() -> ModelProto:
    """A classifier of scikit-learn behind the attention, whose labels are text."""
    made = attended()
    made.graph.node[-1].CopyFrom(
        helper.make_node("LinearClassifier", ["a"], ["label", "y"], domain="ai.onnx.ml", intercepts=[0.0, 0.0],
            coefficients=law.random("w", 10).tolist(), classlabels_strings=["cat", "dog"])
    )  # fmt: skip
    made.graph.ClearField("output")
    for name, kind, dims in (("label", TensorProto.STRING, ["N"]), ("y", TensorProto.FLOAT, ["N", 2])):
        made.graph.output.append(helper.make_tensor_value_info(name, kind, dims))
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return made


def test_labels_that_are_text_can_be_left_out() -> None:
    converted = onnx_fcn.convert(labelled(), windows=True, outputs=["y"]).to_proto()
    for image in images():
        want = law.by_window(law.session(labelled()), {"x": image}, "x", (9, 7), (2, 3), (2, 2))
        got = answers(converted, image)
        for place, (_, scores) in want.items():
            close(got[(..., *place)], scores)


def stated(body: str, image: str = IMAGE, outputs: str = "y", **weights: Any) -> ModelProto:
    return case(body, image=image, outputs=outputs, weights=weights).model()


#: Refused networks for which windows are no remedy, and words of the reason.
HELPLESS: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "images of a batch that change each other": (
        lambda: stated(f"{TRUNK}  a = ReduceMean <axes = [0]> (m)  d = Sub (m, a)  f = Flatten (d)  y = MatMul (f, w)",
            w=(72, 5)), "over the batch"),
    "images that are mixed behind the attention": (
        lambda: attended("b = ReduceMean <axes = [0]> (a)  y = Sub (a, b)"), "images of a batch|over the batch"),
    "random numbers behind the cut": (
        lambda: stated(f"{TRUNK}  {POSITIONS}  n = RandomNormalLike (u)  p = Add (u, n)  {ATTENTION}  {SCORES}"),
        "other values in every run"),
    "random numbers in the trunk": (
        lambda: stated("c = Conv <strides = [2, 2]> (x, k)  n = RandomNormalLike (c)  m = Add (c, n)  "
            f"{POSITIONS}  p = Identity (u)  {ATTENTION}  {SCORES}"), "other values in every run"),
    "an operator that only the user has": (custom_operator, "multiplies positions with positions"),
    "a table": (
        lambda: stated("q = MatMul (x, w)  kt = Transpose (q)  a = MatMul (q, kt)  s = Softmax <axis = 1> (a)  "
            "y = MatMul (s, q)", image="float[N,12] x", w=(12, 5)), "two answers"),
    "words": (
        lambda: stated(f"e = Gather (table, x)  p = Add (e, places)  {ATTENTION}  {SCORES}", image="int64[N,12] x",
            table=(50, 6), places=(1, 12, 6)), "multiplies positions with positions"),
    "labels that are text": (labelled, "'label' is text"),
    "answers of a size that is not known": (
        lambda: stated(f"{TRUNK}  q = NonZero (m)  y = Cast <to = 1> (q)"), "NonZero"),
}  # fmt: skip


#: Those of which only a run shows it: a refusal runs nothing.
SHOWN_BY_RUNNING = ("images that are mixed behind the attention",)


@pytest.mark.parametrize("name", HELPLESS)
def test_windows_are_no_remedy(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, reason = HELPLESS[name]
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(build(), source)
    assert main([str(source), str(out)]) == 1
    assert ("--windows runs" in capsys.readouterr().err) == (name in SHOWN_BY_RUNNING)
    assert main([str(source), str(out), "--windows"]) == 1
    said = capsys.readouterr().err
    assert re.search(reason, said)
    assert "Traceback" not in said
    assert wording.faults(said) == []
    assert not out.exists()


def test_costs_of_what_is_not_counted() -> None:
    """A recurrence on every window does most of the work: no number is better than one without it."""
    report = onnx_fcn.convert(CASES["an LSTM along the positions"].model(), windows=True, validate=False).report
    assert report.native.macs is None
    assert report.native.trunk.macs
    assert all(cost.macs is None and cost.ratio is None for cost in report.costs)


def test_costs_of_very_many_windows() -> None:
    """They are multiplied, not listed."""
    report = onnx_fcn.convert(attended(), windows=True, validate=False, sizes=[1_000_000]).report
    cost = report.costs[-1]
    assert cost.macs is not None
    assert cost.macs > 10**11 * (report.native.head.macs or 0)


def test_a_closer_distance_that_is_proposed_is_taken() -> None:
    """The map may have cells at half the distance, and no windows: then operators have to dilate."""
    fine = f"c = Conv <strides = [32, 32]> (x, k)  m = Relu (c)  {EMBEDDED.partition('m = ')[2].partition(')')[2]}"
    for network, option in (
        (case(fine, image="float[N,3,130,98] x", weights=PLACES | {"k": (6, 3, 3, 3)}), "output_stride"),
        (case(fine.replace("[32, 32]", "[16, 16]"), image="float[N,3,66,50] x",
            weights=PLACES | {"k": (6, 3, 3, 3)}), "window_stride"),
    ):  # fmt: skip
        wide = 32 if option == "window_stride" else None
        report = onnx_fcn.convert(network.model(), windows=True, window_stride=wide, validate=False).report
        (said,) = re.findall(r"--([a-z]+-stride) (\d+) also gives the answers in between", str(report))
        assert said == (option.replace("_", "-"), "16")
        closer = onnx_fcn.convert(network.model(), windows=True, **{option: 16}, validate=False).report
        assert closer.stride == (16, 16)


@pytest.mark.parametrize("name", ["a table", "labels that are text"])
def test_what_cannot_run_on_windows_is_explained(name: str) -> None:
    build, _ = HELPLESS[name]
    model = build()
    for windows in (False, True):
        assert onnx_fcn.explain(model, model.graph.node[-1].output[0], windows=windows).part in ("refused", "blocked")


def test_large_windows_run_together_in_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches hold the activations of few of them; the costs say so, too."""
    original = attended()
    many, few, one = ([], [], [])
    for limit, found in ((1 << 24, many), (3000, few), (1, one)):
        monkeypatch.setattr(regions, "LIVE", limit)
        conversion = onnx_fcn.convert(original, windows=True)
        image = images()[1]
        close(answers(conversion.to_proto(), image), plain(original, image))
        found += [cost.activations for cost in conversion.report.costs]
    assert many[2] > few[2] > one[2]
