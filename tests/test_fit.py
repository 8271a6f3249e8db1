"""Training on labels: what the digits page teaches, every kind of input, the report, and every refusal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array
import numpy as np
import onnx
import onnxruntime
import pytest
from law import model
from test_heads import NETWORKS

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import FcnError, Fitted, OptionError, UnsupportedModel
from onnx_fcn.cli import main
from onnx_fcn.fitting import sampling, search
from onnx_fcn.fitting.candidates import usable
from onnx_fcn.fitting.features import Extractor
from onnx_fcn.fitting.fit import _closer
from onnx_fcn.fitting.network import open_network
from onnx_fcn.fitting.search import Samples, folds_of, scored
from onnx_fcn.fitting.solver import Standard, trained
from onnx_fcn.images.image import open_image
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.running.truth import compare
from onnx_fcn.walk.asked import Asked

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "fixtures/digits_unpadded.onnx"
PAGE = ROOT / "fixtures/digits_page.npy"
BOXES = json.loads((ROOT / "fixtures/digits_page.json").read_text())

#: The pixel between the fourth and the fifth line of digits: those above are to train on, the others to test.
MIDDLE = 156

#: The class of a digit, and the names of the classes; the last is paper.
TASKS: dict[str, Any] = {
    "digit": (lambda label: 0, ["digit", "none"]),
    "ten": (lambda label: label, [*map(str, range(10)), "none"]),
    "parity": (lambda label: label % 2, ["even", "odd", "none"]),
}


def truth(task: str, lines: slice) -> np.ndarray:
    """Labels of some lines of the page: the middles of digits, and paper away from them; 255 elsewhere."""
    class_of, names = TASKS[task]
    page = np.load(PAGE)
    labels = np.full(page.shape, 255, np.uint8)
    labels[14:-14, 14:-14] = len(names) - 1
    for box in BOXES:
        y, x = box["top"] + 14, box["left"] + 14
        labels[max(y - 9, 0) : y + 9, max(x - 9, 0) : x + 9] = 255
    for box in BOXES:
        y, x = box["top"] + 14, box["left"] + 14
        labels[y - 2 : y + 2, x - 2 : x + 2] = class_of(box["label"])
    kept = np.full_like(labels, 255)
    kept[lines] = labels[lines]
    return kept


UPPER, LOWER = slice(0, MIDDLE), slice(MIDDLE, None)


def judged(path: Path, task: str) -> tuple[onnx_fcn.Confusion, int]:
    """How a trained file does on the lower lines, and the number of their 48 digits that are right."""
    class_of, names = TASKS[task]
    result = onnx_fcn.DenseModel(path).run(np.load(PAGE))
    assert result.labels == tuple(names)
    found, want = result.classes_at_pixels(), truth(task, LOWER)
    below = [(b["top"] + 14, b["left"] + 14, class_of(b["label"])) for b in BOXES if b["top"] + 14 >= MIDDLE]
    return onnx_fcn.Confusion.of(want, found, len(names), 255), sum(int(found[y, x]) == k for y, x, k in below)


@pytest.mark.parametrize(("task", "least"), [("digit", 0.97), ("ten", 0.98), ("parity", 0.85)])
def test_the_digits_page(task: str, least: float, tmp_path: Path) -> None:
    """Trained on the upper lines, tested on the lower ones, whose digits were never seen: learnt anew, or regrouped."""
    np.save(tmp_path / "labels.npy", truth(task, UPPER))
    fitted = onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", tmp_path / "out.onnx", names=TASKS[task][1])
    confusion, right = judged(tmp_path / "out.onnx", task)
    assert fitted.at == "last"
    assert confusion.mean_iou >= least
    assert right >= (44 if task == "parity" else 48)


def clicks(task: str, count: int, seed: int) -> str:
    """So many points of each class in the upper lines, as CSV: one in each of some digits, and some on paper."""
    class_of, names = TASKS[task]
    random, labels, rows = np.random.default_rng(seed), truth(task, UPPER), ["x,y,label"]
    above = [b for b in BOXES if b["top"] + 14 < MIDDLE]
    for name in names[:-1]:
        own = [b for b in above if names[class_of(b["label"])] == name]
        rows += [
            f"{b['left'] + 14},{b['top'] + 14},{name}" for b in (own[k] for k in random.permutation(len(own))[:count])
        ]
    places = np.argwhere(labels == len(names) - 1)
    rows += [f"{x},{y},{names[-1]}" for y, x in random.permutation(places)[:count]]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("seed", range(3))
def test_twenty_clicks_a_class(seed: int, tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text(clicks("parity", 20, seed))
    onnx_fcn.fit(DIGITS, PAGE, tmp_path / "clicks.csv", tmp_path / "out.onnx", names=TASKS["parity"][1])
    confusion, _ = judged(tmp_path / "out.onnx", "parity")
    assert confusion.accuracy >= 0.99


def test_everything_works_on_a_trained_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metadata have names and preprocessing, so the commands need neither."""
    np.save(tmp_path / "labels.npy", truth("parity", UPPER))
    monkeypatch.chdir(tmp_path)
    fitted = onnx_fcn.fit(DIGITS, PAGE, "labels.npy", "out.onnx", at="stride:4", names=TASKS["parity"][1])
    assert main(["segment", "out.onnx", "-q", str(PAGE), "classes.png", "classes.npy"]) == 0  # options between files
    assert main(["heatmap", "out.onnx", str(PAGE), "--class", "odd", "heat.png", "-q"]) == 0
    assert main(["page", "out.onnx", str(PAGE), "page.html", "-q"]) == 0
    assert main(["apply", "out.onnx", str(PAGE), "map.npy", "-q"]) == 0
    assert main(["apply", "out.onnx", "--tile", "96", str(PAGE), "tiles.npy", "-q"]) == 0
    assert main(["--verify", str(DIGITS), "out.onnx"]) == 0
    image = dask.array.from_array(np.load(PAGE), chunks=100)
    np.testing.assert_allclose(
        onnx_fcn.dask.apply("out.onnx", image).compute(), np.load("map.npy"), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(np.load("tiles.npy"), np.load("map.npy"), rtol=1e-4, atol=1e-4)
    assert np.load("classes.npy").shape == np.load(PAGE).shape
    grid = onnx_fcn.read_geometry("out.onnx").grid(*np.load(PAGE).shape)
    assert np.load("map.npy").shape == (3, *grid.shape)
    assert fitted.geometry.grid(*np.load(PAGE).shape).shape == grid.shape


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", truth("parity", UPPER))
    for name in ("a", "b"):
        onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", tmp_path / f"{name}.onnx", samples=100, seed=7)
    onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", tmp_path / "c.onnx", samples=100, seed=8)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "c.onnx").read_bytes()


# Every kind of network ------------------------------------------------------------------------------------------------


def labelled_noise(folder: Path, size: tuple[int, ...], channels: int, count: int, kind: Any = np.uint8) -> None:
    """Images whose right half is brighter, in random places, and masks of it."""
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        image = random.integers(60, 130, (*size, channels)).astype(kind)
        edge = int(random.integers(size[-1] // 3, size[-1] * 2 // 3))
        image[..., edge:, :] += 80
        labels = np.zeros(size, np.uint8)
        labels[..., edge:] = 1
        labels[..., edge - 2 : edge + 2] = 255
        np.save(folder / f"images/{number}.npy", image if channels > 1 else image[..., 0])
        np.save(folder / f"labels/{number}.npy", labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network(name: str, tmp_path: Path) -> None:
    """Bright and dark, by a layer on a map of a network with random weights; in 1-D a sound, in 3-D a volume."""
    given = model(**NETWORKS[name])
    native = open_network(given).walk.image.size
    channels = {"sound": 2, "solid": 1}.get(name, 3)
    size = tuple(2 * n + 3 for n in native)
    if name == "sound":
        size = (400,)
    labelled_noise(tmp_path, size, channels, 3)
    fitted = onnx_fcn.fit(
        given, tmp_path / "images", tmp_path / "labels", tmp_path / "out.onnx", at="a", samples=200,
        preprocess=Preprocessing(scale=1 / 255),
    )  # fmt: skip
    assert fitted.validation.passed
    assert max(c.error for c in fitted.validation.checks if c.kind == "fit") <= (2e-2 if name == "half" else 2e-4)
    assert fitted.scores[0].confusion.accuracy > 0.9
    assert onnx_fcn.validate(given, tmp_path / "out.onnx").passed


@pytest.mark.parametrize("stride", [1, (1, 2), 2, 4])
@pytest.mark.parametrize("pads", [0, 1])
def test_the_last_layer_s_answers_of_a_denser_map(pads: int, stride: int | tuple[int, int], tmp_path: Path) -> None:
    """A map that dilates has more answers at the native size, or more on a crop than whole windows."""
    given = model(
        f"a = Conv <strides = [2, 2], pads = [{pads}, {pads}, {pads}, {pads}]> (x, k)  r = Relu (a)  "
        f"b = Conv <strides = [2, 2], pads = [{pads}, {pads}, {pads}, {pads}]> (r, l)  s = Relu (b)  "
        "g = GlobalAveragePool (s)  f = Flatten (g)  y = MatMul (f, w)",
        image="float[N,3,16,16] x", k=(8, 3, 3, 3), l=(8, 8, 3, 3), w=(8, 5),
    )  # fmt: skip
    labelled_noise(tmp_path, (47, 50), 3, 3)
    fitted = onnx_fcn.fit(
        given, tmp_path / "images", tmp_path / "labels", tmp_path / "out.onnx", at="last", samples=60,
        output_stride=stride, preprocess=Preprocessing(scale=1 / 255),
    )  # fmt: skip
    assert fitted.validation.passed
    assert onnx_fcn.validate(given, tmp_path / "out.onnx").passed


@pytest.mark.parametrize(("size", "network"), [((1, 400), "sound"), ((1, 24, 26, 28), "solid"), ((400, 1), "sound")])
def test_an_axis_of_one_channel_is_where_apply_has_it(size: tuple[int, ...], network: str, tmp_path: Path) -> None:
    mono: dict[str, Any] = {"image": "float[N,1,64] x", "w1": (6, 1, 5)} if network == "sound" else {}
    given = model(**{**NETWORKS[network], **mono})
    image = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    labels = np.zeros([n for n in size if n > 1], np.uint8)
    labels[labels.shape[0] // 2 :] = 1
    np.save(tmp_path / "image.npy", image + 9 * labels.reshape(size))
    np.save(tmp_path / "labels.npy", labels)
    onnx_fcn.fit(
        given, tmp_path / "image.npy", tmp_path / "labels.npy", tmp_path / "out.onnx", at="a", samples=60,
        preprocess=Preprocessing(),
    )  # fmt: skip
    onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy")
    assert np.load(tmp_path / "map.npy").ndim == labels.ndim + 1


STEPS = "a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  r = Relu (a)"
TURNED = "g = ReduceMean <axes = [2], keepdims = 0> (r)  t = Transpose <perm = [0, 2, 1]> (g)"
WIDE: dict[str, Any] = {"image": "float[N,3,16,40] x", "k": (8, 3, 3, 3), "w": (8, 4)}

#: Networks whose maps have other axes than batch, channels and those of the image: (network, map, size of images).
OTHER_AXES: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "steps along the width": ({"body": f"{STEPS}  {TURNED}  y = MatMul (t, w)", **WIDE}, "last", (16, 107)),
    "steps along the width, the last axis": (
        {"body": f"{STEPS}  {TURNED}  s = MatMul (t, w)  y = Transpose <perm = [0, 2, 1]> (s)", **WIDE},
        "last", (16, 107),
    ),
    "bands of a sound, along which a convolution slides": (
        {
            "body": "a = Conv <strides = [4]> (x, k)  u = Unsqueeze (a, one)  c = Conv (u, l)  f = Flatten (c)  "
            "y = MatMul (f, w)",
            "image": "float[N,1,160] x", "k": (8, 1, 8), "one": [1], "l": (3, 1, 3, 3), "w": (666, 4),
        },
        "u", (400,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_AXES)
def test_features_lie_where_their_fields_are(name: str, tmp_path: Path) -> None:
    """What is trained at a pixel is answered there, and not half a window beside it; a held axis has no border."""
    network, at, size = OTHER_AXES[name]
    labelled_noise(tmp_path, size, 3 if len(size) > 1 else 1, 3)
    images, labels = tmp_path / "images", tmp_path / "labels"
    fitted = onnx_fcn.fit(
        model(opset=13, **network), images, labels, tmp_path / "out.onnx", at=at,
        preprocess=Preprocessing(scale=1 / 255), held_out=(images, labels),
    )  # fmt: skip
    assert fitted.held_out is not None
    assert fitted.held_out.accuracy > 0.97
    assert len(size) == 1 or not any("outside the outermost answers" in note for note in fitted.notes)
    onnx_fcn.apply(tmp_path / "out.onnx", images / "0.npy", tmp_path / "map.npy")
    grid = onnx_fcn.read_geometry(tmp_path / "out.onnx").grid(*size)
    pixels = np.rint(grid.pixel_of(*np.indices(grid.shape))[::-1]).astype(int)
    want = np.load(labels / "0.npy")[tuple(np.clip(pixels, 0, np.array(size).reshape(-1, *[1] * len(size)) - 1))]
    assert (np.load(tmp_path / "map.npy").argmax(0) == want)[want != 255].mean() > 0.95


@pytest.mark.parametrize("tensors", [("c",), ("a", "c"), ("f",)], ids="+".join)
@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_tiles_are_those_of_one_pass(name: str, tensors: tuple[str, ...], tmp_path: Path) -> None:
    found = open_network(model(**NETWORKS[name]))
    size = tuple(2 * n + 7 + k for k, n in enumerate(found.walk.image.size))
    channels = {"sound": 2, "solid": 1}.get(name, 3)
    random = np.random.default_rng(1)
    pixels = random.standard_normal((*size, channels)).astype(np.float32)
    positions = np.stack([random.integers(0, n, 40) for n in size], axis=1)
    features = [usable(found, t, covers=t == "f") for t in tensors]
    formula = Preprocessing(scale=1.0)
    image = open_image(pixels if channels > 1 else pixels[..., 0], len(size), channels)
    whole = Extractor(found, features, tile=10_000)(image, formula, positions)
    for tile in (1, 6, 20):
        parts = Extractor(found, features, tile=tile)(image, formula, positions)
        for have, want in zip(parts, whole):
            scale = np.abs(want).max()
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=(1e-2 if name == "half" else 1e-5) * scale)


def test_features_are_interpolated_between_cells() -> None:
    """As `segment` shows answers at pixels: linear between the middles of cells."""
    found = open_network(model(**NETWORKS["unpadded"]))
    pixels = np.random.default_rng(2).standard_normal((60, 70, 3)).astype(np.float32)
    places = np.argwhere(np.ones((60, 70), bool))[::13]
    (have,) = Extractor(found, [usable(found, "c")])(open_image(pixels, 2, 3), Preprocessing(scale=1.0), places)
    graph = model(**NETWORKS["unpadded"])
    for declared in graph.graph.input:
        for axis in (2, 3):
            declared.type.tensor_type.shape.dim[axis].dim_param = f"n{axis}"
    del graph.graph.output[:]
    graph.graph.output.append(onnx.ValueInfoProto(name="c"))
    del graph.graph.node[4:]
    (values,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(
        ["c"], {"x": pixels.transpose(2, 0, 1)[None]}
    )
    field = found.map_at("c").space[0].field
    first, stride = float(field.centre), float(field.stride)
    rows, columns = ((places[:, k] - first) / stride for k in (0, 1))
    rows, columns = rows.clip(0, values.shape[2] - 1), columns.clip(0, values.shape[3] - 1)
    for n, (row, column) in enumerate(zip(rows, columns)):
        i, j = min(int(row), values.shape[2] - 2), min(int(column), values.shape[3] - 2)
        r, c = row - i, column - j
        corner = values[0, :, i : i + 2, j : j + 2]
        want = np.einsum("kij,i,j->k", corner, [1 - r, r], [1 - c, c])
        np.testing.assert_allclose(have[n], want, rtol=1e-4, atol=1e-5)


# Folds and scores -----------------------------------------------------------------------------------------------------


def samples(images: int, each: int, count: int = 3, seed: int = 0) -> Samples:
    random = np.random.default_rng(seed)
    total = images * each
    classes = np.resize(np.arange(count), total)
    features = random.standard_normal((total, 4)).astype(np.float32) + classes[:, None]
    places = random.integers(0, 400, (total, 2))
    return Samples({"m": features}, classes, np.repeat(np.arange(images), each), places, np.ones(total), count)


def test_folds_are_whole_images() -> None:
    taken = samples(7, 12)
    folds, what = folds_of(taken, 5, [30, 30], 0)
    assert what == "5 folds of 7 images"
    assert len(folds) == 5
    for fold in folds:
        assert not set(taken.images[fold.train]) & set(taken.images[fold.test])
    assert sorted(np.concatenate([f.test for f in folds])) == list(range(84))
    assert folds_of(samples(3, 12), 5, [30, 30], 0)[1] == "each image in turn"


def test_folds_of_one_image_do_not_see_each_other() -> None:
    """Samples that see a tested pixel are left out, if every class keeps half of its samples."""
    taken = samples(1, 2000)
    folds, what = folds_of(taken, 4, [20, 20], 0)
    assert what == "4 folds of blocks of a single image, whose features see each other, which is optimistic"
    for fold in folds:
        assert len(np.unique(taken.classes[fold.train])) == 3
    crowded = [len(f.train) + len(f.test) == 2000 for f in folds]
    assert all(crowded), "blocks of the field's size are all neighbours, so nothing can be left out"
    wide = replace(taken, positions=taken.positions // 40 * 400)  # clusters far from each other
    folds, what = folds_of(wide, 4, [20, 20], 0)
    assert what == "4 folds of blocks of a single image, which is optimistic"
    for fold in folds:
        apart = np.abs(wide.positions[fold.train][:, None] - wide.positions[fold.test][None]).max(-1)
        assert apart.min() >= 20
        assert len(fold.train) >= 1000


def test_blocks_shrink_until_every_class_is_in_every_fold() -> None:
    """Two classes in two clusters: blocks of the field would hold out a class as a whole."""
    places = np.concatenate([np.arange(10)[:, None] * [7, 3], 300 + np.arange(10)[:, None] * [7, 3]])
    classes = np.repeat([0, 1], 10)
    taken = Samples({"m": np.zeros((20, 1), np.float32)}, classes, np.zeros(20, int), places, np.ones(20), 2)
    folds, _ = folds_of(taken, 5, [1000, 1000], 0)
    assert len(folds) == 5
    for fold in folds:
        assert set(classes[fold.train]) == {0, 1}


def test_scores_are_those_of_whole_maps() -> None:
    """A sample counts as many pixels as it stands for: a frequent class that is sampled thinly weighs as in the map."""
    found = onnx_fcn.Confusion.of(
        np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2, weights=np.array([100.0, 100.0, 1.0, 1.0])
    )
    np.testing.assert_array_equal(found.matrix, [[100, 100], [0, 2]])


def test_the_strongest_penalty_within_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes in each of five folds, by penalty: the second is as good as the best within its error, the first not."""
    taken = samples(5, 100, count=2)
    folds, _ = folds_of(taken, 5, [30, 30], 0)
    wrong = {1e-4: [30] * 5, 1e-3: [3, 1, 4, 2, 3], 1e-2: [0, 4, 1, 3, 2]}
    wrong |= dict.fromkeys((1e-1, 1.0), [20] * 5)  # and then the search ends
    wrong[10.0] = [0] * 5
    numbers = iter(range(5))

    def of_fold(number: int) -> Any:
        want = taken.classes[folds[number].test]
        for strength, mistakes in wrong.items():
            given = np.where(np.arange(len(want)) < mistakes[number], 1 - want, want)
            yield strength, lambda _, given=given: np.eye(2)[given]

    monkeypatch.setattr(search, "path", lambda *_: of_fold(next(numbers)))
    score = scored(taken, SimpleNamespace(name="m", tensors=("m",), features=(), numbers=4), folds, True, 0)
    assert max(score.mean_iou_by_c, key=score.mean_iou_by_c.get) == 1e-2
    assert score.c == 1e-3
    assert score.confusion.pixels == 500
    assert 10.0 not in score.mean_iou_by_c


def test_mean_and_deviation_are_folded_in_double_precision() -> None:
    random = np.random.default_rng(0)
    features = (random.standard_normal((300, 5)) * [1, 1e-3, 1e3, 1, 1] + [1e3, 100, -1e4, 0, 5]).astype(np.float32)
    weights, bias = random.standard_normal((3, 5)), random.standard_normal(3)
    standard = Standard.of(features)
    layer = standard.folded(weights, bias, True)
    assert layer.weights.dtype == layer.bias.dtype == np.float64
    exact = features.astype(np.float64)
    want = (exact - standard.mean.astype(np.float64)) / standard.deviation.astype(np.float64) @ weights.T + bias
    np.testing.assert_allclose(layer(exact), want, rtol=1e-9, atol=1e-9)


def test_rare_classes_are_not_thinned() -> None:
    classes = np.repeat([0, 1, 2], [5000, 4000, 30])
    kept = search._thinned(np.arange(9030), classes, 1000, np.random.default_rng(0))
    counts = np.bincount(classes[kept])
    assert counts[2] == 30
    assert abs(counts[0] - counts[1]) <= 1
    assert 900 <= len(kept) <= 1000
    assert len(search._thinned(np.arange(9030), classes, 10_000, np.random.default_rng(0))) == 9030


def test_a_penalty_means_the_same_for_any_number_of_samples() -> None:
    random = np.random.default_rng(0)
    classes = np.resize(np.arange(3), 600)
    features = (random.standard_normal((600, 5)) + classes[:, None]).astype(np.float32)
    once = trained(features, classes, 3, True, 0.1)
    often = trained(np.tile(features, (20, 1)), np.tile(classes, 20), 3, True, 0.1)
    np.testing.assert_allclose(often.weights, once.weights, rtol=1e-2, atol=1e-3)


# The command and its report -------------------------------------------------------------------------------------------


def test_the_command_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    np.save(tmp_path / "labels.npy", truth("parity", UPPER))
    np.save(tmp_path / "tests.npy", truth("parity", LOWER))
    monkeypatch.chdir(tmp_path)
    words = ["fit", str(DIGITS), str(PAGE), "labels.npy", "--names", "even,odd,none", "out.onnx", "--json", "fit.json"]
    assert main([*words, "--held-out", str(PAGE), "tests.npy", "--samples", "300"]) == 0
    said = capsys.readouterr().out
    for part in (
        "last",
        "cut",
        "± ",
        "taken: the best",
        "By class: held-out images",
        "it answers as trained",
        "out.onnx",
    ):
        assert part in said
    assert len(said.splitlines()) <= 42
    report = json.loads(Path("fit.json").read_text())
    assert report["version"] == 1
    assert report["at"] == report["scores"][0]["at"] == "last"
    assert [c["name"] for c in report["classes"]] == ["even", "odd", "none"]
    for score in (*report["scores"], report["held_out"]):
        assert len(score["iou"]) == len(score["confusion"]) == 3
        assert 0 < score["pixel_accuracy"] <= 1
    assert report["preprocessing"]["full_scale"] == 255
    assert report["validation"]["passed"]
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


def test_without_an_output_it_only_reports(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    fitted = onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", samples=50)
    assert isinstance(fitted, Fitted)
    assert fitted.path is None
    assert "written" not in fitted.text()
    assert {p.name for p in tmp_path.iterdir()} == {"labels.npy"}
    fitted.save(tmp_path / "later.onnx")
    assert onnx_fcn.validate(DIGITS, tmp_path / "later.onnx").passed
    assert fitted.to_proto().graph.output[0].name == fitted.output


def test_few_labels_are_said_to_be_few(tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("x,y,label\n27,29,a\n230,29,a\n90,60,b\n91,61,b\n")
    fitted = onnx_fcn.fit(DIGITS, PAGE, tmp_path / "few.csv", at="last")
    assert any("class 'a' has 2 labelled pixels: too few to tell" in note for note in fitted.notes)


def test_labels_beyond_the_outermost_answers_are_counted(tmp_path: Path) -> None:
    """The window of the last layer is 28 pixels wide, so there is no answer within 13 pixels of the border, less 2."""
    rows = ["x,y,label", *(f"{x},{20 + 9 * k},{'ab'[k % 2]}" for k, x in enumerate((2, 11, 12, 200, 300, 444, 453)))]
    (tmp_path / "border.csv").write_text("\n".join(rows) + "\n")
    fitted = onnx_fcn.fit(DIGITS, PAGE, tmp_path / "border.csv", at="last")
    assert any("4 of 7 samples lie outside the outermost answers" in note for note in fitted.notes)


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    """Features that hardly vary have large weights."""
    small = np.random.default_rng(0).normal(0, 3e-7, (8, 3, 3, 3)).astype(np.float16)
    network = model(
        "a = Conv (x, k)  g = GlobalAveragePool (a)  f = Flatten (g)  y = MatMul (f, w)",
        image="float16[N,3,12,12] x", opset=13, k=small, w=(8, 3),
    )  # fmt: skip
    labelled_noise(tmp_path, (30, 40), 3, 1)
    with pytest.raises(OptionError, match="their weights are beyond the range of float16: choose other maps, or take"):
        onnx_fcn.fit(network, tmp_path / "images", tmp_path / "labels", at="a", samples=200)


def test_pixels_without_data_are_left_out(tmp_path: Path) -> None:
    """Images of numbers have NaN there, and so have the features of all windows that see them."""
    page, labels = np.load(PAGE).astype(np.float32), truth("digit", UPPER)
    page[60, 200] = np.nan
    np.save(tmp_path / "page.npy", page)
    np.save(tmp_path / "labels.npy", labels)
    fitted = onnx_fcn.fit(DIGITS, tmp_path / "page.npy", tmp_path / "labels.npy", at="last", samples=5000)
    (note,) = (n for n in fitted.notes if "left out" in n)
    lost = int(re.match(r"([\d,]+) of [\d,]+ samples are left out, since the features '.*' are not finite", note)[1])
    assert 0 < lost < 100
    assert fitted.samples > 1000
    page[labels == 0] = np.nan
    np.save(tmp_path / "page.npy", page)
    with pytest.raises(OptionError, match="are not finite numbers at any labelled pixel of class '0'"):
        onnx_fcn.fit(DIGITS, tmp_path / "page.npy", tmp_path / "labels.npy", at="last", samples=500)
    np.save(tmp_path / "part.npy", np.where(np.arange(page.shape[1]) < 230, labels, 255).astype(np.uint8))
    clean = np.load(PAGE).astype(np.float32)
    np.save(tmp_path / "clean.npy", clean)
    clean[100, 100] = np.inf
    np.save(tmp_path / "infinite.npy", clean)
    fitted = onnx_fcn.fit(
        DIGITS, tmp_path / "clean.npy", tmp_path / "part.npy", at="last", samples=100,
        held_out=(tmp_path / "infinite.npy", tmp_path / "labels.npy"),
    )  # fmt: skip
    assert any("held-out images:" in note and "left out" in note for note in fitted.notes)


def test_progress_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    said: list[tuple[str, int, int]] = []
    onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", samples=50, progress=lambda *words: said.append(words))
    words = {words for words, _, _ in said}
    assert {"reading labels", "computing features of image 1 of 1", "scoring last", "training on last"} <= words


# Refusals -------------------------------------------------------------------------------------------------------------


QUANTISED = """
    q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
    a = QLinearConv <strides = [2, 2]> (q, s, z, w1, s, z, s, z)  f = Flatten (a)
    y = QLinearMatMul (f, s, z, w2, s, z, s, z)
"""


def refusals(folder: Path) -> dict[str, tuple[dict[str, Any], type[FcnError], str]]:
    """Arguments that do not fit, by name: what is changed, the error, and its words."""
    page = np.load(PAGE)
    files = {
        "nothing.npy": np.full(page.shape, 255, np.uint8),
        "one.npy": np.zeros(page.shape, np.uint8),
        "half.npy": np.zeros((156, 227), np.uint8),
        "other.npy": np.zeros((300, 454), np.uint8),
        "beyond.npy": np.where(page > 100, 3, 0).astype(np.uint8),
        "rgb.npy": np.zeros((*page.shape, 3), np.uint8),
        "good.npy": np.where(page > 100, 1, 0).astype(np.uint8),
        "tiny.npy": page[:20, :20],
        "tiny_labels.npy": np.resize([0, 1], (20, 20)).astype(np.uint8),
    }
    for name, values in files.items():
        np.save(folder / name, values)
    two = model(
        "a = Conv <strides = [2, 2]> (x, w1)  f = Flatten (a)  y = Gemm (f, w2)  z = Gemm (f, w3)",
        image="float[N,1,12,12] x", outputs="y, z", w1=(4, 1, 3, 3), w2=(100, 3), w3=(100, 2),
    )  # fmt: skip
    pool = model(
        "a = Conv <strides = [2, 2]> (x, w1)  p = GlobalMaxPool (a)  y = Flatten (p)",
        image="float[N,1,12,12] x", w1=(4, 1, 3, 3),
    )  # fmt: skip
    attention = model(
        "a = Conv (x, w1) r = Reshape (a, s) t = Transpose <perm = [0, 2, 1]> (r) m = MatMul (t, r) y = Flatten (m)",
        image="float[N,1,12,12] x", w1=(4, 1, 3, 3), s=[0, 4, 100],
    )  # fmt: skip
    return {
        "no label": ({"labels": "nothing.npy"}, OptionError, "no pixel has a label"),
        "one class": ({"labels": "one.npy"}, OptionError, "all labelled pixels are '0': two classes are needed"),
        "another level": ({"labels": "half.npy"}, OptionError, r"156×227: is it of another level\? give --level 1"),
        "another size": ({"labels": "other.npy"}, OptionError, r"312×454 pixels, .* 300×454: give labels of"),
        "beyond names": (
            {"labels": "beyond.npy", "names": ["a", "b"]}, OptionError, "value 3 in .* has no name: --names gives 2",
        ),
        "colours": ({"labels": "rgb.npy"}, OptionError, "colours|axes|channels"),
        "too small": ({"images": "tiny.npy", "labels": "tiny_labels.npy"}, OptionError, "20×20 pixels.*28×28"),
        "no tensor": ({"at": "nothing"}, OptionError, "the model has no tensor 'nothing'"),
        "no position": ({"at": "0.weight"}, OptionError, "does not depend on the position"),
        "several outputs": ({"model": two}, OptionError, "several outputs, 'y', 'z': name the one"),
        "no last layer": ({"model": pool, "at": "last"}, OptionError, "ends with GlobalMaxPool.*--at cut"),
        "attention": (
            {"model": attention}, UnsupportedModel,
            r"multiplies positions with positions[^(]*\(attention[^(]*\n.*--output names a tensor to end the",
        ),
        "seed": ({"seed": -1}, OptionError, "--seed is an integer of at least 0, not -1"),
        "samples": ({"samples": 0}, OptionError, "--samples is an integer of at least 1, not 0"),
        "folds": ({"folds": 1}, OptionError, "--folds is an integer of at least 2, not 1"),
        "balance": ({"balance": "some"}, OptionError, "classes are 'balanced', or not"),
        "provider": ({"providers": ["Nothing"]}, OptionError, "no provider 'Nothing'"),
        "no folder": ({"output": "missing/out.onnx"}, OptionError, "missing"),
        "the model itself": ({"output": DIGITS}, OptionError, "is the model itself: write the trained file"),
        "a label file": ({"output": "good.npy"}, OptionError, "is among the images or labels: write the trained"),
        "a large seed": ({"seed": 2**32}, OptionError, "--seed is at most 4294967295, not 4294967296"),
        "a level": ({"level": -1}, OptionError, "--level is an integer of at least 0, not -1"),
        "an array": ({"images": page}, OptionError, "images and labels are a file or a folder each"),
        "a name": ({"names": "abc"}, OptionError, "has no name: --names gives one name, for 0"),
        "held out": ({"held_out": "folder"}, OptionError, "images and labels are a file or a folder each"),
        "no number": ({"at": "stride:4,last"}, OptionError, "takes numbers of pixels, .* not 'last'"),
        "no stride": ({"at": "stride:"}, OptionError, "--at stride: names no stride"),
        "no image": ({"images": "missing.npy"}, OptionError, "missing.npy"),
        "a finer map": (
            {"at": "stride:2", "output_stride": 4}, OptionError,
            "--output-stride 4 is more than the 2 pixels between the cells of stride 2, .*: leave it out, or choose",
        ),
        "no divisor": (
            {"output_stride": 3}, OptionError, r"which --output-stride 3 does not divide: use 1, 2, 4$",
        ),
        "a coarser stride": ({"output_stride": 8}, OptionError, "is more than the network strides, .*: leave it out"),
        "preset": ({"preprocess": "nothing"}, OptionError, "there is no preprocessing 'nothing'"),
    }  # fmt: skip


REFUSALS = [
    "no label", "one class", "another level", "another size", "beyond names", "colours", "too small", "no tensor",
    "no position", "several outputs", "no last layer", "attention", "samples", "seed", "folds", "balance", "provider",
    "no folder", "the model itself", "a label file", "a large seed", "a level", "an array", "a name", "held out",
    "no number", "no stride", "no image", "a finer map", "no divisor", "a coarser stride", "preset",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = refusals(tmp_path)
    assert set(found) == set(REFUSALS)
    changed, error, words = found[name]
    given = {"model": DIGITS, "images": PAGE, "labels": "good.npy", "output": "out.onnx", **changed}
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(error, match=words) as caught:
        onnx_fcn.fit(**given)
    assert "\n" not in str(caught.value) or error is UnsupportedModel
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_quantised_last_layer_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.resize(np.arange(200), (20, 20)).astype(np.uint8))
    np.save(tmp_path / "labels.npy", np.resize([0, 1], (20, 20)).astype(np.uint8))
    scale, zero = np.float32(0.1), np.uint8(128)
    given = model(
        QUANTISED, image="float[N,1,12,12] x", s=scale, z=zero,
        w1=np.resize([100, 140, 130], (4, 1, 3, 3)).astype(np.uint8),
        w2=np.resize([100, 140, 130], (100, 3)).astype(np.uint8),
    )  # fmt: skip
    with pytest.raises(OptionError, match="fit the float model"):
        onnx_fcn.fit(given, tmp_path / "image.npy", tmp_path / "labels.npy", at="a")


def test_a_converted_model_is_refused(tmp_path: Path) -> None:
    onnx_fcn.convert(DIGITS, tmp_path / "out.onnx")
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    with pytest.raises(UnsupportedModel, match=r"already: onnx_fcn converted it.*pass the original"):
        onnx_fcn.fit(tmp_path / "out.onnx", PAGE, tmp_path / "labels.npy")


def test_scikit_learn_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(OptionError, match=r"training needs scikit-learn, .* pip install 'onnx-fcn\[fit\]'"):
        onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--at", "nothing"], 2, "no tensor 'nothing'"),
        (["--ignore", "x"], 2, "neither a whole number nor 'none'"),
        (["--folds", "0"], 2, "--folds is an integer of at least 2, not 0"),
        (["--folds", "1"], 2, "--folds is an integer of at least 2, not 1"),
        (["--at", ""], 2, "--at is empty: it is auto, last, cut, stride:8,16 or names of tensors"),
        (["--input-size", "x"], 2, "is not a size in pixels"),
        (["--output", "other"], 2, "no output 'other'"),
        (["--held-out", "missing", "missing"], 2, "missing"),
        (["--json", "missing/report.json"], 2, "missing"),
        (["--seed", "-1"], 2, "is not a whole number of at least 0"),
    ],
)
def test_exit_codes(words: list[str], code: int, said: str, tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    assert main(["fit", str(DIGITS), str(PAGE), str(tmp_path / "labels.npy"), *words]) == code
    assert said in capsys.readouterr().err


def test_the_report_is_not_written_over_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("labels.npy", truth("digit", UPPER))
    words = ["fit", str(DIGITS), str(PAGE), "labels.npy", "out.onnx", "--samples", "50"]
    assert main([*words, "--json", "out.onnx"]) == 2
    assert "cannot write 'out.onnx': it is an input" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"labels.npy"}
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["at"]


def test_held_out_images(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    np.save(tmp_path / "other.npy", np.where(np.load(PAGE) > 100, 2, 0).astype(np.uint8))
    np.save(tmp_path / "none.npy", np.full_like(np.load(PAGE), 255))
    np.save(tmp_path / "part.npy", np.where(truth("digit", LOWER) == 0, 0, 255).astype(np.uint8))
    for labels, words in (
        ("other.npy", "the held-out labels have a class '2', which is not trained"),
        ("none.npy", "no pixel of the held-out images has a label"),
    ):
        with pytest.raises(OptionError, match=words):
            onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", held_out=(PAGE, tmp_path / labels), samples=20)
    (tmp_path / "clicks.csv").write_text(clicks("parity", 12, 0))  # in the order none, odd, even, as --names says
    np.save(tmp_path / "mask.npy", np.choose(np.minimum(truth("parity", LOWER), 3), [2, 1, 0, 255]).astype(np.uint8))
    fitted = onnx_fcn.fit(
        DIGITS, PAGE, tmp_path / "clicks.csv", names=["none", "odd", "even"], at="last",
        held_out=(PAGE, tmp_path / "mask.npy"),
    )  # fmt: skip
    assert fitted.held_out.accuracy > 0.95
    assert "held-out images: their masks are read as 0 = none, 1 = odd, 2 = even" in fitted.notes
    fitted = onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", held_out=(PAGE, tmp_path / "part.npy"), samples=50)
    assert fitted.held_out.matrix.sum(1) == pytest.approx([48 * 16, 0])
    assert "nan" not in fitted.text()


def test_numbers_as_names_are_the_numbers_of_masks(tmp_path: Path) -> None:
    """Of a mask that is held out as of one that `segment --truth` compares with."""
    seen = np.array([3, 5, 9, 255])[np.minimum(truth("parity", LOWER), 3)].astype(np.uint8)
    np.save(tmp_path / "mask.npy", seen)
    lines = clicks("parity", 12, 0)
    for old, new in (("even", "3"), ("odd", "5"), ("none", "9")):
        lines = lines.replace(old, new)
    (tmp_path / "clicks.csv").write_text(lines)
    fitted = onnx_fcn.fit(
        DIGITS, PAGE, tmp_path / "clicks.csv", tmp_path / "out.onnx", at="last", held_out=(PAGE, tmp_path / "mask.npy")
    )
    assert sorted(fitted.names) == ["3", "5", "9"]
    assert fitted.held_out.accuracy > 0.95
    classes = np.array([[fitted.names.index(str(n)) if n != 255 else 0 for n in row] for row in seen])
    assert compare(tmp_path / "mask.npy", classes, fitted.names).confusion.accuracy == 1
    np.save(tmp_path / "labels.npy", truth("parity", UPPER))
    with pytest.raises(OptionError, match="calls number 0 of the masks '3', but names that are numbers stand for"):
        onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", names=["3", "5", "9"])


def test_a_built_in_batch_becomes_free(tmp_path: Path) -> None:
    """Labels are on single images, and so are the pictures that a trained file is for."""
    labelled_noise(tmp_path, (24, 30), 1, 3)
    network = model(
        "a = Conv <strides = [2, 2]> (x, w1)  r = Relu (a)  f = Flatten (r)  y = Gemm (f, w2)",
        image="float[4,1,12,12] x", w1=(6, 1, 3, 3), w2=(150, 3),
    )  # fmt: skip
    trained = onnx_fcn.fit(network, tmp_path / "images", tmp_path / "labels", tmp_path / "out.onnx", at="stride:2")
    assert trained.validation.passed
    dims = onnx.load(tmp_path / "out.onnx").graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch"
    image = np.load(tmp_path / "images/0.npy")
    assert onnx_fcn.DenseModel(tmp_path / "out.onnx").run(image).map.shape[0] == 2
    assert onnx_fcn.validate(network, tmp_path / "out.onnx").passed


def test_labels_that_were_left_out_are_named_if_too_few_are_left(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("x,y,label\n-1,2,a\n100,5,b\n")
    with pytest.raises(OptionError, match=r"two classes are needed; 1 of the 2 shapes in .* lies beyond"):
        onnx_fcn.fit(DIGITS, PAGE, tmp_path / "clicks.csv", at="last")


def test_accents_that_macos_takes_apart(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "images" / (unicodedata.normalize("NFD", "bär") + ".npy"), np.load(PAGE))
    np.save(tmp_path / "labels" / "bär.npy", truth("parity", UPPER))
    fitted = onnx_fcn.fit(DIGITS, tmp_path / "images", tmp_path / "labels", at="last", samples=20)
    assert fitted.names == ("0", "1", "2")


def test_folds_may_choose_answers_closer_than_asked_for() -> None:
    maps = SimpleNamespace(name="stride 4+8", features=[SimpleNamespace(stride=(8, 8)), SimpleNamespace(stride=(4, 8))])
    said = "answers are 4x8 pixels apart, closer than --output-stride asks: stride 4+8 is the best by folds"
    assert list(_closer(maps, Asked(output_stride=8))) == [said]
    assert not [*_closer(maps, Asked(output_stride=(4, 8))), *_closer(maps, Asked())]


def test_maps_before_attention_can_be_fitted(tmp_path: Path) -> None:
    """The advice for a network with attention: another tensor as its output."""
    given = model(
        "a = Conv (x, w1) r = Reshape (a, s) t = Transpose <perm = [0, 2, 1]> (r) m = MatMul (t, r) y = Flatten (m)",
        image="float[N,1,12,12] x", w1=(4, 1, 3, 3), s=[0, 4, 100],
    )  # fmt: skip
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    fitted = onnx_fcn.fit(given, PAGE, tmp_path / "labels.npy", output_name="a", at="a", samples=20)
    assert fitted.validation.passed


def test_changed_weights_of_the_trunk_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", tmp_path / "t.onnx", at="last", samples=20)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "t.onnx").graph.initializer}
    trunk = onnx.load(DIGITS).graph.initializer[0].name
    onnx_fcn.replace_weights(tmp_path / "t.onnx", {trunk: 2 * weights[trunk]}, tmp_path / "t.onnx")
    words = r"layer on the original's features of 'scores' at \d+×\d+ differ by \S+ \(allowed 0.0002\)$"
    with pytest.raises(onnx_fcn.ValidationError, match=words):
        onnx_fcn.validate(DIGITS, tmp_path / "t.onnx")


def test_dynamic_quantisation_is_named_as_a_cause(tmp_path: Path) -> None:
    """Its scale is that of the largest pixel of the whole image."""
    given = model(
        "q, s, z = DynamicQuantizeLinear (x) a = DequantizeLinear (q, s, z) b = Conv (a, w1) f = Flatten (b) "
        "y = Gemm (f, w2)",
        image="float[N,1,12,12] x", w1=(4, 1, 3, 3), w2=(400, 3),
    )  # fmt: skip
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    with pytest.raises(
        FcnError, match="depends on the whole image, through a squeeze-and-excite gate, dynamic quantis"
    ):
        onnx_fcn.fit(given, PAGE, tmp_path / "labels.npy", at="b", samples=20)


def test_pictures_as_labels_are_told() -> None:
    fitted = onnx_fcn.fit(DIGITS, PAGE, PAGE, samples=2, at="last")
    assert any("class numbers are many: the labels may be pictures, or exchanged" in note for note in fitted.notes)


def as_numbers(folder: Path, page: np.ndarray) -> dict[str, Path]:
    """The page in several numbers: bytes, 16 bits, floats from 0 to 1 and from 0 to 255, with a sign, and with NaN."""
    holes = page.astype(np.float32)
    holes[:3, :3] = np.nan
    kinds = {
        "bytes": page,
        "deep": page.astype(np.uint16) * 257,
        "unit": page / np.float32(255),
        "floats": page.astype(np.float32),
        "signed": page.astype(np.int16),
        "holes": holes,
    }
    for kind, pixels in kinds.items():
        np.save(folder / f"{kind}.npy", pixels)
    return {kind: folder / f"{kind}.npy" for kind in kinds}


@pytest.mark.parametrize("kind", ["bytes", "deep", "unit"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_the_formula_of_a_picture_means_the_same_in_all_numbers(kind: str, scale: float | None, tmp_path: Path) -> None:
    """Stored numbers are 255 times larger in bytes than in floats from 0 to 1, and the network must not see that."""
    files, formula = as_numbers(tmp_path, np.load(PAGE)), scale and Preprocessing(scale)
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    fitted = onnx_fcn.fit(
        DIGITS, files[kind], tmp_path / "labels.npy", tmp_path / "t.onnx", at="last", samples=50, preprocess=formula
    )
    assert fitted.preprocessing.full_scale is not None
    maps = []
    for same in ("bytes", "deep", "unit"):
        maps.append(onnx_fcn.DenseModel(tmp_path / "t.onnx").run(files[same]).map)
        onnx_fcn.apply(tmp_path / "t.onnx", files[same], tmp_path / f"{same}_map.npy")
        maps.append(np.load(tmp_path / f"{same}_map.npy"))
    for found in maps[1:]:
        np.testing.assert_allclose(found, maps[0], rtol=0, atol=1e-3 * np.abs(maps[0]).max())
    if scale is None:
        assert fitted.preprocessing == Preprocessing(1 / 255, full_scale=255)
    for other in ("floats", "holes"):
        with pytest.raises(OptionError, match="floats are from 0 to 1, and these are"):
            onnx_fcn.apply(tmp_path / "t.onnx", files[other], tmp_path / "no.npy")


@pytest.mark.parametrize("kind", ["floats", "signed", "holes"])
def test_a_formula_of_stored_numbers_refuses_pictures(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What was trained on is taken by all commands, and what is not about the same numbers is refused."""
    monkeypatch.chdir(tmp_path)
    files = as_numbers(tmp_path, np.load(PAGE))
    np.save("labels.npy", truth("digit", UPPER))
    fitted = onnx_fcn.fit(DIGITS, files[kind], "labels.npy", "t.onnx", at="last", samples=50)
    assert fitted.preprocessing == Preprocessing(1.0)
    for other in ("bytes", "deep"):
        words = f"trained on numbers that are not a picture's, and '.*{other}.npy' is a picture of uint.*--preprocess"
        with pytest.raises(OptionError, match=words):
            onnx_fcn.apply("t.onnx", files[other], "no.npy")
        with pytest.raises(OptionError, match=words):
            onnx_fcn.DenseModel("t.onnx").run(files[other])
        onnx_fcn.DenseModel("t.onnx", preprocess="unit").run(files[other])
    if kind == "holes":
        assert main(["segment", "t.onnx", "holes.npy", "map.npy"]) == 2
        said = "error: 'holes.npy' has pixels that are NaN or infinite, and no answer that sees one is defined: replace"
        assert said in capsys.readouterr().err
        return
    for command, file in (("segment", "map.npy"), ("segment", "map.png"), ("heatmap", "heat.png"), ("page", "p.html")):
        assert main([command, "t.onnx", f"{kind}.npy", file]) == 0
        assert re.search(
            rf"network +gets pixel of {np.load(files[kind]).dtype} as it is stored", capsys.readouterr().out
        )
    assert main(["apply", "t.onnx", f"{kind}.npy", "scores.npy"]) == 0
    np.testing.assert_allclose(np.load("scores.npy"), onnx_fcn.DenseModel("t.onnx").run(files[kind]).map, atol=1e-4)


def test_floats_are_a_picture_if_all_images_are_from_0_to_1(tmp_path: Path) -> None:
    """One image of reflectances may be within 0 to 1 by chance: all of them decide."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    page = np.load(PAGE) / np.float32(255)
    for name, image in {"a": page, "b": page * np.float32(1.1)}.items():
        np.save(tmp_path / f"images/{name}.npy", image)
        np.save(tmp_path / f"labels/{name}.npy", truth("digit", UPPER))
    fitted = onnx_fcn.fit(DIGITS, tmp_path / "images", tmp_path / "labels", at="last", samples=20)
    assert fitted.preprocessing == Preprocessing(1.0)
    np.save(tmp_path / "images/b.npy", np.load(PAGE))
    fitted = onnx_fcn.fit(DIGITS, tmp_path / "images", tmp_path / "labels", at="last", samples=20)
    assert fitted.preprocessing == Preprocessing(1 / 255, full_scale=255)


def test_images_of_different_numbers_are_refused(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    page = np.load(PAGE)
    for name, image in {"a": page, "b": page.astype(np.float32)}.items():
        np.save(tmp_path / f"images/{name}.npy", image)
        np.save(tmp_path / f"labels/{name}.npy", truth("digit", UPPER))
    with pytest.raises(OptionError, match=r"has other numbers than the images before it.*--preprocess"):
        onnx_fcn.fit(DIGITS, tmp_path / "images", tmp_path / "labels", samples=20)


def test_features_that_do_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_BYTES", 60_000)
    np.save(tmp_path / "labels.npy", truth("digit", UPPER))
    fitted = onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", at="last")
    assert fitted.samples * 64 * 4 <= 60_000
    assert any("pixels of each class and image are taken, since more features would" in note for note in fitted.notes)


def test_a_class_in_one_image_only(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        labels = truth("parity", UPPER)
        labels[labels == 1] = 1 if number == 0 else 255
        np.save(tmp_path / f"images/{number}.npy", np.load(PAGE))
        np.save(tmp_path / f"labels/{number}.npy", labels)
    fitted = onnx_fcn.fit(DIGITS, tmp_path / "images", tmp_path / "labels", samples=40, at="last")
    assert any("class '1' is labelled in one image only" in note for note in fitted.notes)


def test_nothing_can_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("x,y,label\n27,29,a\n230,60,b\n")
    fitted = onnx_fcn.fit(DIGITS, PAGE, tmp_path / "two.csv", tmp_path / "out.onnx")
    assert not fitted.scores
    assert any("there are too few labels to hold any out" in note for note in fitted.notes)


def test_scores_between_cells_decide_at_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", truth("parity", UPPER))
    onnx_fcn.fit(DIGITS, PAGE, tmp_path / "labels.npy", tmp_path / "out.onnx", samples=100)
    result = onnx_fcn.DenseModel(tmp_path / "out.onnx").run(np.load(PAGE))
    np.testing.assert_array_equal(result.classes_at_pixels(), result.at_pixels(result.map).argmax(0))


def test_an_interrupted_fit_leaves_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", truth("ten", UPPER))
    words = ["-m", "onnx_fcn", "fit", str(DIGITS), str(PAGE), "labels.npy", "out.onnx", "--samples", "100000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for wait in (1.0, 2.0, 3.0):
        process = subprocess.Popen([sys.executable, *words], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
        left = {p.name for p in tmp_path.iterdir()} - {"labels.npy"}
        assert left == (set() if code else {"out.onnx"})
        assert code in (0, 130, -signal.SIGINT)
        (tmp_path / "out.onnx").unlink(missing_ok=True)
