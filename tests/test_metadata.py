"""What a file says about itself beyond its geometry: the names of classes and the preprocessing, as defaults."""

from __future__ import annotations

import json
import math
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array
import law
import numpy as np
import onnx
import pytest
from test_converted import made

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import DenseModel, ModelError, OptionError, Preprocessing
from onnx_fcn.cli import main
from onnx_fcn.model.document import Document
from onnx_fcn.model.metadata import geometry_in, labels_in, metadata_of, preprocessing_in
from onnx_fcn.running.preprocess import PRESETS, changed, settled

NAMES = ["cat", "dog", "Füchse", "狐", "10 %"]
IMAGENET = PRESETS["imagenet"]
PIXELS = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)


def with_entries(model: onnx.ModelProto, **entries: Any) -> onnx.ModelProto:
    """A model whose metadata have more entries: texts, or values that become JSON."""
    for name, value in entries.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=f"onnx_fcn.{name}", value=text)
    return model


def saved(folder: Path, **entries: Any) -> Path:
    """A network of five classes that reads colours, and a picture for it, as files."""
    onnx.save(with_entries(made("NCHW"), **entries), folder / "out.onnx")
    np.save(folder / "image.npy", PIXELS)
    return folder / "out.onnx"


def answers_of(path: Path, pixels: np.ndarray, **how: Any) -> list[np.ndarray]:
    """The map of a picture in one pass, in tiles, and by dask."""
    np.save(path.with_name("pixels.npy"), pixels)
    target = path.with_name("map.npy")
    target.unlink(missing_ok=True)
    onnx_fcn.apply(path, path.with_name("pixels.npy"), target, tile=8, **how)
    lazy = onnx_fcn.dask.apply(path, dask.array.from_array(pixels), tile=8, **how)
    return [DenseModel(path, **how).run(pixels).map, np.load(target), lazy.compute(scheduler="sync")]


# What is written is read ----------------------------------------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    model = made("NCHW")
    formula = changed("imagenet", scale=1 / 128, order="BGR")
    assert isinstance(formula, Preprocessing)
    geometry, document = geometry_in(model), Document.open(model)
    entries = metadata_of(geometry, document, document, labels=NAMES, preprocessing=formula.to_json())
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    assert geometry_in(model) == geometry
    assert labels_in(model) == tuple(NAMES)
    assert Preprocessing.from_json(preprocessing_in(model) or {}) == formula
    bare = metadata_of(geometry, document, document)
    assert set(entries) - set(bare) == {"onnx_fcn.labels", "onnx_fcn.preprocessing"}


@pytest.mark.parametrize(("scale", "width"), [(Fraction(3, 4), 10), (Fraction(5, 6), 10), (Fraction(5, 7), 10)])
def test_a_stride_that_is_a_fraction_is_read(scale: Fraction, width: int, tmp_path: Path) -> None:
    """It is a float in the file: 4 % 1.3333333333333333 is not 0."""
    network = law.model(
        'c = Conv (x, w)  r = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
        'nearest_mode = "floor"> (c, , s)  g = GlobalAveragePool (r)  y = Flatten (g)',
        image=f"float[N,2,8,{width}] x",
        opset=19,
        s=np.array([1, 1, 1, scale], np.float32),
        w=(2, 2, 7, 9),
    )
    converted = onnx_fcn.convert(network, tmp_path / "out.onnx")
    answers = onnx_fcn.read_geometry(tmp_path / "out.onnx").of()
    assert answers == converted.report.geometry.of()
    assert answers.stride[1] == float(1 / scale)
    assert answers.period[1] == (1 / scale).numerator
    for pixels in range(width, width + 30):
        assert answers.fitted(8, pixels)[1] == int(width + (pixels - width) * scale // 1 / scale)


def test_a_file_that_says_nothing() -> None:
    model = made("NCHW")
    assert (labels_in(model), preprocessing_in(model)) == ((), None)


@pytest.mark.parametrize("formula", [*PRESETS.values(), Preprocessing(), Preprocessing(1 / 4095, (0.5,), (2.0,))])
def test_formulas_survive_json(formula: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(formula.to_json()))) == formula


HUGE = "9" * 4000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("cat,dog", "Expecting value: line 1 column 1"),
        ({"cat": 0}, "is not a list of at most 65536"),
        (["cat", 7], "7 is not text"),
        (["cat", ""], "'' is not a name"),
        (["cat", "two\nlines"], "'two\\\\nlines' is not a name"),
        (["cat", "\x1b[2J"], "is not a name"),
        ('["cat", "\\ud800"]', "is not a name"),
        (["x" * 1001], "x… is not a name"),
        (["x"] * 70000, "is not a list of at most 65536"),
        ("[" * 100000, "recursion|nested"),
        (f"[{HUGE}{HUGE}]", "integer string"),
    ],
)
def test_names_that_are_none_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^the entry 'onnx_fcn.labels' in the metadata .* cannot be read: .*{reason}"):
        labels_in(with_entries(made("NCHW"), labels=value))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ([], "\\[\\] is not an object"),
        ({"scale": ...}, "it lacks 'scale'"),
        ({"scale": 0}, "0 is no factor: it is too close to zero"),
        ({"scale": math.nan}, "nan is not a number between -1e\\+30 and 1e\\+30"),
        ({"scale": True}, "True is not a number between"),
        ({"scale": "1/255"}, "'1/255' is not a number between"),
        ({"mean": 0.5}, "0.5 is not a list"),
        ({"mean": []}, "a list of numbers for the channels is empty"),
        ({"mean": [math.inf]}, "inf is not a number between"),
        ({"mean": [10**400]}, "a huge number is not a number between"),
        ({"std": [1, 1e-40]}, "1e-40 is no factor"),
        ({"order": "RBG"}, "'RBG' is not RGB or BGR"),
        ({"order": ["RGB"]}, "\\['RGB'\\] is not RGB or BGR"),
        ({"full_scale": -255}, "-255 is no full scale: it is negative"),
    ],
)
def test_formulas_that_are_none_are_refused(change: Any, reason: str, tmp_path: Path) -> None:
    values: Any = change
    if isinstance(change, dict):
        values = {key: value for key, value in {**IMAGENET.to_json(), **change}.items() if value is not ...}
    path = saved(tmp_path, preprocessing=values)
    for run in (
        lambda: preprocessing_in(onnx.load(path)),
        lambda: DenseModel(path),
        lambda: onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy"),
    ):
        with pytest.raises(ModelError, match=f"^the entry 'onnx_fcn.preprocessing' in .* cannot be read: {reason}"):
            run()


def test_the_largest_numbers_that_are_accepted_do_no_harm(tmp_path: Path) -> None:
    extreme = {"scale": 1e30, "mean": [-1e30], "std": [1e-30], "order": "RGB", "full_scale": 1e30}
    path = saved(tmp_path, preprocessing=extreme)
    assert not np.isfinite(DenseModel(path).run(PIXELS).map).all()


def test_a_hostile_entry_takes_no_time() -> None:
    model = with_entries(made("NCHW"), labels="[" + "0," * (1 << 22) + "0]")
    begun = time.perf_counter()
    with pytest.raises(ModelError, match="is not a list"):
        labels_in(model)
    assert time.perf_counter() - begun < 5


# They are the defaults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (IMAGENET, lambda x: (x / 255 - np.array(IMAGENET.mean)) / IMAGENET.std),
        (PRESETS["caffe"], lambda x: x[..., ::-1] - np.array(PRESETS["caffe"].mean)),
        (Preprocessing(1 / 100, (0.5,)), lambda x: x / 100 - 0.5),
    ],
)
def test_the_formula_of_the_file_is_the_default(formula: Preprocessing, expected: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, preprocessing=formula.to_json())
    seen = expected(PIXELS.astype(np.float64)).transpose(2, 0, 1).astype(np.float32)
    wanted = DenseModel(path).run_tensor(seen[None]).map
    for found in answers_of(path, PIXELS):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert DenseModel(path).preprocess == formula


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("full_scale", [None, 255])
@pytest.mark.parametrize("of_file", [True, False])
def test_a_formula_means_the_same_everywhere(
    bits: int, full_scale: float | None, of_file: bool, tmp_path: Path
) -> None:
    """From the file or given: about the numbers as they are stored, or about pixels from 0 to 255."""
    formula = Preprocessing(1 / 200, (0.1, 0.2, 0.3), full_scale=full_scale)
    path = saved(tmp_path, **({"preprocessing": formula.to_json()} if of_file else {}))
    pixels = np.random.default_rng(0).integers(0, 1 << bits, (31, 40, 3)).astype(f"uint{bits}")
    stored = pixels if full_scale is None else pixels * (255 / np.iinfo(pixels.dtype).max)
    seen = (stored / 200 - np.array(formula.mean)).transpose(2, 0, 1).astype(np.float32)
    wanted = DenseModel(path).run_tensor(seen[None]).map
    for found in answers_of(path, pixels, **({} if of_file else {"preprocess": formula})):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_floats_from_0_to_1_are_pixels_for_the_formula_of_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path, preprocessing=IMAGENET.to_json())
    model = DenseModel(path)
    np.testing.assert_allclose(model.run(PIXELS / 255).map, model.run(PIXELS).map, atol=1e-3)
    np.save(tmp_path / "floats.npy", PIXELS / np.float32(255))
    onnx_fcn.apply(path, tmp_path / "floats.npy", tmp_path / "map.npy")
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), model.run(PIXELS).map, atol=1e-3)
    for k, (pixels, words) in enumerate(
        ((PIXELS.astype(np.float32), "from 0 to 2"), (PIXELS * np.float32(np.nan), "NaN"))
    ):
        np.save(tmp_path / f"{k}.npy", pixels)
        with pytest.raises(OptionError, match=f"for pictures, whose floats are from 0 to 1, and these are .*{words}"):
            onnx_fcn.apply(path, tmp_path / f"{k}.npy", tmp_path / "no.npy")


def test_what_is_given_wins(tmp_path: Path) -> None:
    path = saved(tmp_path, preprocessing=IMAGENET.to_json(), labels=NAMES)
    for found, wanted in zip(
        answers_of(path, PIXELS, preprocess="tf"), answers_of(saved(tmp_path), PIXELS, preprocess="tf")
    ):
        np.testing.assert_array_equal(found, wanted)
    path = saved(tmp_path, preprocessing=IMAGENET.to_json(), labels=NAMES)
    assert DenseModel(path).run(PIXELS).labels == tuple(NAMES)
    assert DenseModel(path, labels=list("abcde")).run(PIXELS).labels == tuple("abcde")
    assert DenseModel(path, labels=[]).run(PIXELS).labels == tuple("01234")
    with pytest.raises(OptionError, match="there are 2 labels for 5 classes"):
        DenseModel(path, labels=["a", "b"]).run(PIXELS)


def test_the_names_have_to_fit_the_map(tmp_path: Path) -> None:
    path = saved(tmp_path, labels=NAMES[:4])
    words = "the metadata of the model has the names of 4 classes, and output 'y' has 5: give other names with --labels"
    with pytest.raises(ModelError, match=words):
        DenseModel(path)
    assert DenseModel(path, labels=NAMES).run(PIXELS).labels == tuple(NAMES)
    best = with_entries(made("NCHW", argmax=True), labels=NAMES[:1])
    with pytest.raises(ModelError, match=r"has the names of 1 classes, and output 'y' has [2-5]"):
        DenseModel(best).run(PIXELS)
    best = with_entries(made("NCHW", argmax=True), labels=NAMES)
    assert DenseModel(best).run(PIXELS).labels == tuple(NAMES)


def test_commands_show_the_names_and_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, preprocessing=IMAGENET.to_json(), labels=NAMES)
    monkeypatch.chdir(tmp_path)
    gets = "gets (pixel/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)\n"

    def said(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    assert gets in said("heatmap", "out.onnx", "image.npy", "h.json", "--class", "dog")
    assert json.loads(Path("h.json").read_text("utf-8"))["classes"][0]["label"] == "dog"
    assert gets in said("segment", "out.onnx", "image.npy", "s.json")
    assert {entry["label"] for entry in json.loads(Path("s.json").read_text("utf-8"))["classes"]} <= set(NAMES)
    assert gets in said("page", "out.onnx", "image.npy", "p.html")
    assert NAMES[3] in Path("p.html").read_text("utf-8")
    assert gets in said("apply", "out.onnx", "image.npy", "map.npy")
    assert "gets pixel/127.5 - 1\n" in said("segment", "out.onnx", "image.npy", "s.json", "--preprocess", "tf")


@pytest.mark.parametrize("command", ["heatmap", "apply"])
def test_numbers_change_the_formula_of_the_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they change a preset; a preset takes its place."""
    saved(tmp_path, preprocessing=PRESETS["tf"].to_json())
    monkeypatch.chdir(tmp_path)
    target = {"heatmap": "h.npy", "apply": "map.npy"}[command]
    scale = {"heatmap": "--pixel-scale", "apply": "--scale"}[command]
    for words, formula in (
        (["--std", "0.5"], "(pixel/127.5 - 1) / 0.5"),
        ([scale, "1/100"], "pixel/100 - 1"),
        (["--channel-order", "BGR"], "pixel/127.5 - 1, in the order BGR"),
        (["--preprocess", "unit", "--mean", "0.25"], "pixel/255 - 0.25"),
    ):
        assert main((command, "out.onnx", "image.npy", target, *words)) == 0
        assert f"gets {formula}\n" in capsys.readouterr().out
        Path(target).unlink()


def test_a_scale_is_about_pixels_from_0_to_255_for_commands_that_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.save("deep.npy", PIXELS.astype(np.uint16) * 257)
    for name in ("image.npy", "deep.npy"):
        assert main(("heatmap", "out.onnx", name, f"of-{name}", "--pixel-scale", "1/100", "--class", "0", "-q")) == 0
    np.testing.assert_allclose(np.load("of-deep.npy"), np.load("of-image.npy"), atol=1e-4)


def test_a_formula_is_settled_before_it_is_stored() -> None:
    """Fitting stores what the network got, so that the default of one picture is that of the file."""
    bytes_, floats = np.dtype(np.uint8), np.dtype(np.float32)
    assert settled(None, bytes_, 2, 3, False) == Preprocessing(1 / 255, full_scale=255)
    assert settled(None, bytes_, 2, 3, True) == Preprocessing(1.0)
    assert settled(None, floats, 2, 3, False) == Preprocessing(1.0)
    assert settled("tf", bytes_, 2, 3, False) == PRESETS["tf"]
    assert settled(Preprocessing(mean=0.5), bytes_, 2, 3, False) == changed("unit", mean=(0.5,))
