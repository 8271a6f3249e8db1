"""A converted model as one object: what it reads of a picture, what it makes of scores, and where its windows are."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_fcn
from onnx_fcn import DenseModel, DenseResult, ModelError, OptionError, Preprocessing, detect
from onnx_fcn.images.image import pixels_of, resize
from onnx_fcn.running.preprocess import PRESETS, changed, for_stored

FIXTURES = Path(__file__).parent.parent / "fixtures"
PAGE = FIXTURES / "digits_page.npy"

#: How far a window that found a digit may be from the digit's own: from there on the fixtures call it none of them.
NEAR = 8


@pytest.fixture(scope="module", params=["digits_unpadded", "digits_padded"])
def digits(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return onnx_fcn.convert(FIXTURES / f"{request.param}.onnx", validate=False).to_proto()


@pytest.fixture(scope="module")
def model() -> DenseModel:
    return DenseModel(onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", validate=False).to_proto())


@pytest.fixture(scope="module")
def result(model: DenseModel) -> DenseResult:
    return model.run(PAGE)


def converted(source: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    return onnx_fcn.convert(source, validate=False, **options).to_proto()


def small(image: str = "float[N,3,6,6] x", **weights: Any) -> onnx.ModelProto:
    """A classifier of 6×6 windows into four classes."""
    return law.model("m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, w)", image=image, k=(5, 3, 3, 3), w=(80, 4))


@functools.cache
def small_model() -> DenseModel:
    return DenseModel(converted(small()))


# Where things are -----------------------------------------------------------------------------------------------------


def test_every_digit_of_the_page_is_found_and_nothing_else(digits: onnx.ModelProto) -> None:
    """Windows above 0.5: recall and precision, as docs/viewing.md states them."""
    result = DenseModel(digits).run(PAGE)
    known = json.loads((FIXTURES / "digits_page.json").read_text("utf-8"))
    recalled = right = told = 0
    for digit in range(10):
        places = np.array([[box["left"], box["top"]] for box in known if box["label"] == digit])
        found = np.array([d.box[:2] for d in result.best(digit, 50, threshold=0.5)])
        near = np.abs(places[:, None] - found[None]).max(axis=2) <= NEAR
        recalled, right, told = recalled + near.any(axis=1).sum(), right + near.any(axis=0).sum(), told + len(found)
    assert (recalled, right, told) == (96, 96, 96)


def test_the_map_is_what_onnxruntime_gives(model: DenseModel, result: DenseResult, digits: onnx.ModelProto) -> None:
    page = np.load(PAGE)[None, None] / np.float32(255)
    session = onnxruntime.InferenceSession(converted(onnx.load(FIXTURES / "digits_unpadded.onnx")).SerializeToString())
    np.testing.assert_allclose(result.map, session.run(None, {"image": page})[0][0], atol=1e-4)
    assert result.size == result.grid.size == page.shape[2:]
    np.testing.assert_array_equal(result.boxes, result.grid.boxes)
    assert model.window == (28, 28)


def test_boxes_are_in_pixels_of_the_picture_at_any_scale(model: DenseModel, result: DenseResult) -> None:
    page = PIL.Image.fromarray(np.load(PAGE))
    half = page.resize((page.width // 2, page.height // 2))
    enlarged = model.run(half, scale=2)
    assert enlarged.scale == (2, 2)
    (best,), (same,) = result.best(7), enlarged.best(7)
    assert best.score > 0.9
    near = [np.abs(np.array(d.box) * 2 - best.box).max() <= NEAR for d in enlarged.best(7, 6)]
    assert any(near)
    assert same.box[2] - same.box[0] == 14


def test_a_picture_smaller_than_a_window_is_enlarged(model: DenseModel) -> None:
    result = model.run(np.load(PAGE)[15:40, 13:43])
    assert result.size == (25, 30)
    assert result.grid.size == (28, 34)
    assert int(result.classes[0, 0]) == 3
    (found,) = result.best(3)
    assert found.box[1::2] == pytest.approx((0, 25))


def test_values_at_pixels_are_the_cells_own_in_the_middle_of_their_windows(result: DenseResult) -> None:
    """Windows are of 28 pixels: the middle is between two, whose mean is off by a quarter of a pixel's kink."""
    values = result.map[:3]
    at = result.at_pixels(values)
    assert at.shape == (3, 312, 454)
    ys, xs = (np.arange(n) * 4 + 13 for n in result.grid.shape)
    middles = sum(at[:, ys + dy][:, :, xs + dx] for dy in (0, 1) for dx in (0, 1)) / 4
    inner = (slice(None), slice(1, -1), slice(1, -1))
    kinks = np.abs(np.diff(values, n=2, axis=1)).max() + np.abs(np.diff(values, n=2, axis=2)).max()
    assert np.abs(middles - values)[inner].max() <= kinks / 8
    np.testing.assert_allclose(at[:, 0, 0], values[:, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(at[:, -1, -1], values[:, -1, -1], rtol=1e-6)


def test_values_at_pixels_reproduce_a_plane(result: DenseResult) -> None:
    x, y = (
        result.grid.pixel_of(*np.indices(result.grid.shape))[0],
        result.grid.pixel_of(*np.indices(result.grid.shape))[1],
    )
    at = result.at_pixels((2 * x + 3 * y).astype(np.float32))
    rows, columns = np.mgrid[14:290, 14:430]
    np.testing.assert_allclose(at[14:290, 14:430], 2 * columns + 3 * rows, rtol=1e-5)


def test_a_pixel_has_the_class_of_the_nearest_window(result: DenseResult) -> None:
    classes = result.classes_at_pixels()
    for x, y in ((0, 0), (27, 29), (100, 200), (453, 311)):
        row, column = result.grid.cell_at(x, y)
        assert classes[y, x] == result.classes[row, column]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.7]), st.integers(1, 30))
def test_suppression_keeps_the_best_of_what_overlaps(seed: int, overlap: float, count: int) -> None:
    model = small_model()
    image = np.random.default_rng(seed).random((14, 17, 3), np.float32)
    results = [model.run(image), model.run(image, 1.5)]
    found = detect(results, 2, count, overlap=overlap)
    scores = [d.score for d in found]
    assert scores == sorted(scores, reverse=True)
    assert len(found) <= count
    boxes = [d.box for d in found]
    assert all(shared(a, b) <= overlap + 1e-9 for k, a in enumerate(boxes) for b in boxes[:k])
    if len(found) < count:  # whatever was left out overlaps with something better
        for result in results:
            for box, score in zip(result.boxes.reshape(-1, 4), result.probabilities[2].ravel()):
                assert any(shared(tuple(box), d.box) > overlap - 1e-9 and d.score >= score for d in found)


def shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union, by the book."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


# Scores and classes ---------------------------------------------------------------------------------------------------


def test_best_classes_of_each_cell(result: DenseResult) -> None:
    classes, scores = result.top(4)
    order = np.argsort(-result.probabilities, axis=0, kind="stable")[:4]
    np.testing.assert_array_equal(scores, np.take_along_axis(result.probabilities, order, axis=0))
    np.testing.assert_array_equal(classes[0], result.classes)
    assert result.top(99)[0].shape == (11, *result.grid.shape)


@pytest.mark.parametrize(
    ("last", "wanted", "activation"),
    [
        ("y = Identity (l)", "auto", "softmax"),
        ("y = Softmax <axis = 1> (l)", "auto", "none"),
        ("y = LogSoftmax <axis = 1> (l)", "auto", "softmax"),
        ("y = Sigmoid (l)", "auto", "none"),
        ("y = Identity (l)", "sigmoid", "sigmoid"),
    ],
)
def test_what_makes_probabilities_of_scores(last: str, wanted: str, activation: str) -> None:
    source = law.model(
        f"m = Conv (x, k)  f = Flatten (m)  l = MatMul (f, w)  {last}",
        image="float[N,3,6,6] x",
        k=(5, 3, 3, 3),
        w=(80, 4),
    )
    image = np.random.default_rng(0).random((9, 9, 3))
    result = DenseModel(converted(source), activation=wanted).run(image)
    assert result.activation == activation
    logits = DenseModel(converted(small()), activation="none").run(image).map
    if "sigmoid" in (wanted, activation) or "Sigmoid" in last:
        expected = 1 / (1 + np.exp(-logits))
    else:
        powers = np.exp(logits - logits.max(axis=0))
        expected = powers / powers.sum(axis=0)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)


def test_one_class_is_a_sigmoid() -> None:
    source = law.model(
        "m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, w)", image="float[N,3,6,6] x", k=(5, 3, 3, 3), w=(80, 1)
    )
    result = DenseModel(converted(source), preprocess="raw").run(np.full((8, 8, 3), 200, np.uint8))
    assert result.activation == "sigmoid"
    assert np.isfinite(result.probabilities).all()


def test_classes_have_names(model: DenseModel, tmp_path: Path) -> None:
    proto = onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", validate=False).to_proto()
    names = ["zero", "one", "two", "three", "crane", "crane", "3", "seven", "eight", "nine", "None"]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n\n", "utf-8-sig")
    result = DenseModel(proto, labels=tmp_path / "labels.txt").run(PAGE)
    assert [result.class_index(n) for n in ("seven", "NONE", 9, "9", "3")] == [7, 10, 9, 9, 6]
    assert result.best("three")[0].label == "three"
    with pytest.raises(OptionError, match="classes 4, 5 are all called 'crane': give the number"):
        result.class_index("crane")
    with pytest.raises(OptionError, match=r"no class 'thre'.*did you mean 'three'"):
        result.class_index("thre")
    with pytest.raises(OptionError, match=r"no class '11' among the 11, numbered from 0 to 10$"):
        result.class_index(11)
    with pytest.raises(OptionError, match="2 labels for 11 classes"):
        DenseModel(proto, labels=["a", "b"]).run(PAGE)
    with pytest.raises(OptionError, match="labels': no such file"):
        DenseModel(proto, labels=tmp_path / "labels")
    with pytest.raises(OptionError, match="not UTF-8 text"):
        DenseModel(proto, labels=PAGE)


# What the network reads -----------------------------------------------------------------------------------------------


def test_presets_are_their_formulas() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = {
        "unit": pixels / 255,
        "imagenet": (pixels / 255 - mean) / std,
        "tf": pixels / 127.5 - 1,
        "caffe": pixels[..., ::-1] - [103.939, 116.779, 123.68],
        "raw": pixels,
    }
    assert set(expected) == set(PRESETS)
    for name, values in expected.items():
        read = Preprocessing.named(name)(pixels.transpose(2, 0, 1))
        np.testing.assert_allclose(read.transpose(1, 2, 0), values, atol=1e-4)


def test_pictures_of_any_kind_are_the_same_pixels(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 7), dtype=np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    for array, kinds in ((grey, ("png", "npy", "bmp")), (colours, ("png", "npy", "webp"))):
        for kind in kinds:
            file = tmp_path / f"picture.{kind}"
            if kind == "npy":
                np.save(file, array)
            else:
                PIL.Image.fromarray(array).save(file, lossless=True)
            np.testing.assert_array_equal(pixels_of(file), array.reshape(6, 7, -1))
    for same in (grey / 255, grey.astype(np.uint16) * 257, PIL.Image.fromarray(grey)):
        np.testing.assert_allclose(pixels_of(same), grey[..., None], atol=1e-4)
    PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_allclose(pixels_of(tmp_path / "deep.png"), grey[..., None], atol=1e-4)
    np.testing.assert_array_equal(pixels_of(grey > 100), (grey > 100)[..., None] * 255)


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.zeros((6, 9), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert pixels_of(tmp_path / "turned.jpg").shape == (9, 6, 1)


def test_grey_and_colours_become_each_other() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    grey = np.asarray(PIL.Image.fromarray(colours).convert("L"))
    np.testing.assert_allclose(pixels_of(colours, 1)[..., 0], grey, atol=1)
    assert pixels_of(grey, 3).shape == (4, 5, 3)
    with pytest.raises(OptionError, match=r"has the shape \(4, 5, 5\), and the model takes images with 2 axes and 3"):
        pixels_of(np.ones((4, 5, 5), np.uint8), 3)


def test_resizing_is_pillows() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    for size in ((40, 50), (9, 13)):
        expected = PIL.Image.fromarray(colours).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resize(colours.astype(np.float32), size), expected, atol=1)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), r"has the shape \(2, 3, 4, 5\), and the model takes images with 2 axes"),
        (np.zeros((0, 3), np.uint8), "has no pixels"),
        (np.zeros((4, 4), np.int64), "pixels are unsigned integers, or floats from 0 to 1"),
        (np.full((4, 4), 9.0), "those in the array are from 9 to 9: give them as"),
        (np.full((4, 4), np.nan), "and some in the array are NaN or infinite: replace them"),
        (7, "expected a file, an array or a Pillow image, got int"),
        ("nothing.png", "'nothing.png' does not exist"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        pixels_of(picture)


def test_a_formula_is_for_stored_numbers_and_a_preset_for_pixels_up_to_255() -> None:
    """Without a scale, a picture is divided by its full scale, and a scene keeps its numbers."""
    picture, scene = (np.dtype(np.uint16), 65535.0, 2, 3, False), (np.dtype(np.float32), 1.0, 2, 12, False)
    assert for_stored("unit", *picture).scale == pytest.approx(1 / 65535)
    assert for_stored(Preprocessing(mean=0.5), *picture) == for_stored(changed("unit", mean=(0.5,)), *picture)
    assert for_stored(Preprocessing(1 / 4095), *picture).scale == 1 / 4095
    assert for_stored(None, *scene) == Preprocessing(1.0)
    assert for_stored(Preprocessing(mean=[0.5] * 12), *scene) == Preprocessing(1.0, (0.5,) * 12)
    with pytest.raises(OptionError, match="preset 'unit' is for pixels from 0 to 255 in unsigned integers"):
        for_stored("unit", *scene)
    with pytest.raises(OptionError, match="the preprocessing is for pixels from 0 to 255"):
        for_stored(changed("unit", mean=(0.5,)), *scene)
    assert for_stored(Preprocessing(mean=np.full(12, 0.5)), *scene) == Preprocessing(1.0, (0.5,) * 12)
    assert (changed("tf"), changed(None)) == ("tf", None)


def test_numbers_that_no_picture_survives_are_refused() -> None:
    for wrong in ({"std": (0.0,)}, {"scale": 0.0}, {"mean": (float("nan"),)}, {"order": "RBG"}, {"full_scale": 0}):
        with pytest.raises(OptionError):
            Preprocessing(**wrong)
    with pytest.raises(
        OptionError,
        match=r"the mean \(1, 2\) is for 2 channels, and the network reads 3: give --mean and --std one value or 3",
    ):
        Preprocessing(mean=(1.0, 2.0))(np.zeros((3, 2, 2)))
    with pytest.raises(OptionError, match="no preprocessing 'torch'"):
        Preprocessing.named("torch")


# Networks of all kinds ------------------------------------------------------------------------------------------------


def test_channels_last_and_first_read_the_same_picture() -> None:
    last = law.model(
        "t = Transpose <perm = [0, 3, 1, 2]> (x)  m = Conv (t, k)  f = Flatten (m)  y = MatMul (f, w)",
        image="float[N,6,6,3] x",
        k=(5, 3, 3, 3),
        w=(80, 4),
    )
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    results = [DenseModel(converted(source), preprocess="imagenet").run(image) for source in (small(), last)]
    np.testing.assert_allclose(results[0].map, results[1].map, atol=1e-4)


def test_images_without_an_axis_of_channels() -> None:
    source = law.model(
        "c = Unsqueeze (x, one)  m = Conv (c, k)  f = Flatten (m)  y = MatMul (f, w)",
        image="float[N,6,6] x",
        one=[1],
        k=(5, 1, 3, 3),
        w=(80, 4),
    )
    model = DenseModel(converted(source))
    assert model.channels == 1
    assert model.run(np.zeros((9, 10), np.uint8)).map.shape == (4, 4, 5)


def test_integers_are_read_as_they_are() -> None:
    random = np.random.default_rng(0)
    source = law.model(
        "g = Cast <to = 1> (x)  m = Conv (g, k)  f = Flatten (m)  y = MatMul (f, w)",
        image="uint8[N,3,6,6] x",
        k=random.random((5, 3, 3, 3), np.float32),
        w=random.random((80, 4), np.float32),
    )
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    proto = converted(source)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (expected,) = session.run(None, {"x": np.moveaxis(image, -1, 0)[None]})
    np.testing.assert_allclose(DenseModel(proto).run(image).map, expected[0])


@pytest.mark.parametrize(
    ("image", "kernel", "features", "tensor", "map_shape"),
    [
        ("float[N,2,8] x", (5, 2, 3), 30, (1, 2, 20), (4, 13)),
        ("float[N,2,4,4,4] x", (5, 2, 3, 3, 3), 40, (1, 2, 6, 7, 8), (4, 3, 4, 5)),
    ],
)
def test_signals_and_volumes_run_too(
    image: str, kernel: tuple[int, ...], features: int, tensor: tuple[int, ...], map_shape: tuple[int, ...]
) -> None:
    source = law.model("m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, w)", image=image, k=kernel, w=(features, 4))
    model = DenseModel(converted(source))
    result = model.run_tensor(np.random.default_rng(0).random(tensor, np.float32))
    assert result.map.shape == map_shape
    assert len(result.best(1)[0].box) == 2 * len(map_shape[1:])
    assert result.at_pixels(result.probabilities).shape == (4, *tensor[2:])
    with pytest.raises(OptionError, match="pictures have two: see run_tensor"):
        model.run(np.zeros((9, 9)))
    with pytest.raises(OptionError, match="is not one image as the network reads it"):
        model.run_tensor(np.zeros(tensor[1:], np.float32))


def test_the_best_class_alone(model: DenseModel, result: DenseResult) -> None:
    best = DenseModel(onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", argmax=True, validate=False).to_proto()).run(
        PAGE
    )
    np.testing.assert_array_equal(best.classes_at_pixels(), result.classes_at_pixels())
    with pytest.raises(OptionError, match="without scores: convert the original without --argmax"):
        best.best(3)


@pytest.mark.parametrize("form", [{"full_size": True}, {"reduce": "mean"}, {"keep_size": True}])
def test_other_forms_are_refused(form: dict[str, Any]) -> None:
    proto = onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", validate=False, **form).to_proto()
    with pytest.raises(OptionError, match="is not a map: convert without that option"):
        DenseModel(proto)


def test_other_inputs_are_fed_or_asked_for() -> None:
    source = law.model(
        "m = Conv (x, k)  s = Add (m, z)  f = Flatten (s)  y = MatMul (f, w)",
        image="float[N,3,6,6] x, float[1,5,1,1] z", k=(5, 3, 3, 3), w=(80, 4),
    )  # fmt: skip
    model = DenseModel(converted(source))
    with pytest.raises(OptionError, match="the network also reads 'z': give its values in Python"):
        model.run(np.zeros((9, 9, 3), np.uint8))
    picture = np.zeros((9, 9, 3), np.uint8)
    results = [model.run(picture, feeds={"z": np.full((1, 5, 1, 1), n, np.float32)}) for n in (0, 1)]
    assert np.abs(results[0].map - results[1].map).max() > 0.1


def test_a_fixed_batch_is_refused() -> None:
    proto = converted(small("float[2,3,6,6] x"))
    with pytest.raises(
        OptionError, match="takes 2 images at once: convert the original without --batch, or with --dynamic-batch"
    ):
        DenseModel(proto)


def test_what_was_not_converted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="onnx_fcn did not convert it"):
        DenseModel(FIXTURES / "digits_padded.onnx")
    with pytest.raises(ModelError, match="does not exist"):
        DenseModel(tmp_path / "none.onnx")


def test_options_of_onnxruntime_are_passed_on(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", tmp_path / "out.onnx", validate=False)
    DenseModel(tmp_path / "out.onnx", session_options=options, providers=[("CPUExecutionProvider", {})])
    assert (tmp_path / "optimized.onnx").exists()
    with pytest.raises(OptionError, match=r"has no provider 'Abacus': it has .*CPUExecutionProvider"):
        DenseModel(tmp_path / "out.onnx", providers=["Abacus"])
    with pytest.raises(ModelError, match="onnxruntime does not load the model"):
        DenseModel(tmp_path / "out.onnx", providers=[("CPUExecutionProvider", 7)])
    with pytest.raises(OptionError, match="an activation is one of auto, softmax, sigmoid, none, not 'relu'"):
        DenseModel(tmp_path / "out.onnx", activation="relu")


def test_a_scale_is_positive(model: DenseModel) -> None:
    for scale in (0, -1, float("inf"), float("nan")):
        with pytest.raises(OptionError, match="a scale is a positive number"):
            model.run(PAGE, scale)


def test_pillow_is_asked_for_where_it_is_missing(
    model: DenseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(OptionError, match=r"pip install 'onnx-fcn\[view\]'"):
        pixels_of("photo.jpg")
    assert model.run(PAGE).map.shape == (11, 72, 107)  # an array at its own size takes numpy only


def test_running_needs_neither_the_converter_nor_pillow(tmp_path: Path) -> None:
    onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", tmp_path / "out.onnx", validate=False)
    script = "import sys, onnx_fcn; print(onnx_fcn.DenseModel(sys.argv[1]).run(sys.argv[2]).map.shape); " + (
        "print({'onnx_graphsurgeon', 'onnx_fcn.model.document', 'PIL', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out.onnx"), str(PAGE)]
    environment = os.environ | {"PYTHONPATH": str(FIXTURES.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(11, 72, 107)", "set()"]


# Numbers of classes, and single scores --------------------------------------------------------------------------------


def head(last: str, outputs: str = "y", classes: int = 4, **weights: Any) -> onnx.ModelProto:
    body = f"m = Conv (x, k)  f = Flatten (m)  l = MatMul (f, w)  {last}"
    return law.model(
        body, image="float[N,3,6,6] x", outputs=outputs, opset=13, k=(5, 3, 3, 3), w=(80, classes), **weights
    )


#: Originals that tell which class it is, and not how sure that is: (last layers, output).
NUMBERS = {
    "argmax": ("y = ArgMax <axis = 1, keepdims = 0> (l)", "int64[N] y"),
    "argmax that keeps its axis": ("y = ArgMax <axis = 1> (l)", "int64[N,1] y"),
    "the first of the best": ("v, y = TopK <axis = 1> (l, one)", "int64[N,1] y"),
    "argmax as floats": ("a = ArgMax <axis = 1> (l)  y = Cast <to = 1> (a)", "float[N,1] y"),
    "labels that are looked up": (
        "a = ArgMax <axis = 1> (l)  e = ai.onnx.ml.ArrayFeatureExtractor (labels, a)  y = Reshape (e, flat)",
        "int64[N] y",
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_classes_are_classes(name: str) -> None:
    last, outputs = NUMBERS[name]
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    scores = DenseModel(converted(head("y = Identity (l)"))).run(picture)
    found = DenseModel(converted(head(last, outputs, one=[1], flat=[-1], labels=[0, 1, 2, 3]))).run(picture)
    np.testing.assert_array_equal(found.classes, scores.classes)
    np.testing.assert_array_equal(found.classes_at_pixels(), scores.classes_at_pixels())
    assert len(np.unique(found.classes)) > 1
    for ask in (lambda: found.probabilities, lambda: found.best(0), lambda: found.top(2)):
        with pytest.raises(OptionError, match="gives the best class only, without scores"):
            ask()


@pytest.mark.parametrize(
    ("last", "outputs"),
    [
        ("v, y = TopK <axis = 1> (l, three)", "int64[N,3] y"),
        ("v, i = TopK <axis = 1> (l, three)  y = Cast <to = 1> (i)", "float[N,3] y"),
        ("v, i = TopK <axis = 1> (l, three)  c = Cast <to = 1> (i)  y = Concat <axis = 1> (v, c)", "float[N,6] y"),
    ],
)
def test_numbers_of_several_classes_are_refused(last: str, outputs: str) -> None:
    with pytest.raises(OptionError, match=r"'y' gives the numbers of . classes for each window, without scores"):
        DenseModel(converted(head(last, outputs, three=[3])))


@pytest.mark.parametrize("last", ["y = Sigmoid (l)", "y = Identity (l)"])
def test_a_single_score_says_yes_from_one_half_on(last: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    result = DenseModel(converted(head(last, classes=1))).run(picture)
    np.testing.assert_array_equal(result.classes, result.probabilities[0] >= 0.5)
    assert result.classes.max() == 1 > result.classes.min()
    assert result.names == ("below 0.5", "from 0.5 on")
    named = DenseModel(converted(head(last, classes=1)), labels=["scratch"]).run(picture)
    assert named.names == ("below 0.5", "scratch")
    raw = DenseModel(converted(head("y = Identity (l)", classes=1)), activation="none").run(picture)
    with pytest.raises(OptionError, match=r"single score is not a probability.* --activation sigmoid makes it one"):
        _ = raw.classes


def test_scores_below_zero_have_a_best_window() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    result = DenseModel(converted(head("y = LogSoftmax <axis = 1> (l)")), activation="none").run(picture)
    (found,) = result.best(2)
    assert found.score == result.map[2].max() < 0
    assert result.best(2, threshold=0.0) == []


def test_lines_of_labels_end_where_lines_of_text_end(tmp_path: Path) -> None:
    names = ["a\u2028b", "c\x85d", "e\x0bf", "g\x1ch"]
    for end in ("\n", "\r\n", "\n\n \n"):
        (tmp_path / "labels.txt").write_bytes((("\r\n" if end == "\r\n" else "\n").join(names) + end).encode())
        assert DenseModel(converted(head("y = Identity (l)")), labels=tmp_path / "labels.txt").labels == tuple(names)


def test_sizes_that_the_file_does_not_take(tmp_path: Path) -> None:
    """Another tool fixed it: both sizes are told, before anything is written."""
    model = converted(head("y = Identity (l)"))
    for axis, size in ((2, 20), (3, 31)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, tmp_path / "fixed.onnx")
    np.save(tmp_path / "image.npy", np.zeros((20, 30, 3), np.uint8))
    words = "takes images of 20×31 pixels, to which its size was fixed, not of 20×30"
    with pytest.raises(OptionError, match=words):
        DenseModel(tmp_path / "fixed.onnx").run(tmp_path / "image.npy")
    with pytest.raises(OptionError, match="images with a width of 31 pixels only, and crops of that size cannot"):
        onnx_fcn.apply(tmp_path / "fixed.onnx", tmp_path / "image.npy", tmp_path / "map.npy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fixed.onnx", "image.npy"]
    assert DenseModel(tmp_path / "fixed.onnx").run(np.zeros((20, 31, 3), np.uint8)).map.shape == (4, 15, 26)


@pytest.mark.parametrize("scale", [1e9, 1e300])
def test_a_picture_that_no_memory_holds(model: DenseModel, scale: float) -> None:
    with pytest.raises(OptionError, match=r"takes .* GB, and .* GB are free|would have more than \d+ pixels"):
        model.run(PAGE, scale)
