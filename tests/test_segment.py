"""`segment` for a trained network: names from its file, the truth to compare with, and edges of the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import law
import numpy as np
import onnx
import PIL.Image
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score
from test_viewing import FIXTURES, KNOWN, Command, command, models

import onnx_fcn
from onnx_fcn import DenseModel, OptionError
from onnx_fcn.running.truth import compare, numbers_of
from onnx_fcn.viewing.drawing import to_rgb
from onnx_fcn.viewing.refining import Guide, box_mean, radius_of, refined_classes

__all__ = ["command", "models"]

NAMES = [f"digit {k}" for k in range(10)] + ["paper"]
SEGMENT = ("segment", "out.onnx", "page.npy")


def truth_of_digits() -> np.ndarray:
    """The digits at the middles of their windows, paper at their corners, and 255 elsewhere: (312, 454)."""
    truth = np.full((312, 454), 255, np.uint8)
    for box in KNOWN:
        row, column = (box["top"] + box["bottom"]) // 2, (box["left"] + box["right"]) // 2
        truth[box["top"] : box["top"] + 2, box["left"] : box["left"] + 2] = 10
        truth[row - 2 : row + 3, column - 2 : column + 3] = box["label"]
    return truth


def named(names: list[str]) -> None:
    """Write the digits' network with names of its classes in its file, as named.onnx."""
    model = onnx.load("out.onnx")
    model.metadata_props.add(key="onnx_fcn.labels", value=json.dumps(names))
    onnx.save(model, "named.onnx")


# The truth ------------------------------------------------------------------------------------------------------------


def test_the_truth_is_compared(command: Command) -> None:
    """In words and as JSON, with the numbers that scikit-learn finds for the pixels that count."""
    named(NAMES)
    truth = truth_of_digits()
    PIL.Image.fromarray(truth).save("truth.png")
    words = ("named.onnx", "page.npy", "c.npy", "c.json", "--truth", "truth.png")
    code, out, err = command("segment", *words)
    assert (code, err) == (0, "")
    counted, found = truth != 255, np.load("c.npy")
    pair = truth[counted], found[counted]
    written = json.loads(Path("c.json").read_text("utf-8"))["truth"]
    present = [entry["class"] for entry in written["classes"]]
    assert present == list(range(11))
    assert written["confusion"] == confusion_matrix(*pair, labels=present).tolist()
    ious = jaccard_score(*pair, labels=present, average=None)
    for entry, iou in zip(written["classes"], ious):
        assert entry["label"] == NAMES[entry["class"]]
        assert entry["iou"] == pytest.approx(iou)
        assert f"{NAMES[entry['class']]} (class {entry['class']})" in out
        assert f" of the picture, IoU {iou:.3f}\n" in out
    accuracy = (pair[0] == pair[1]).mean()
    assert 0.9 < accuracy < 1
    assert written["accuracy"] == pytest.approx(accuracy)
    assert written["mean_iou"] == pytest.approx(ious.mean())
    assert (written["pixels"], written["ignored"]) == (counted.sum(), (~counted).sum())
    assert (written["mask"], written["ignore"]) == ("truth.png", 255)
    means = f"mean IoU {ious.mean():.3f}, pixel accuracy {accuracy:.3f}"
    assert f"truth.png: {means}, {(~counted).mean():.1%} of the picture ignored\n" in out


def test_a_class_that_is_not_in_both(command: Command) -> None:
    """One that the truth lacks has an IoU of 0 and no recall; one that only the truth has gets a row, too."""
    found = np.zeros((4, 10), np.uint8)
    found[0, 0] = 1
    truth = np.zeros((4, 10), np.uint8)
    truth[3] = 2
    np.save("truth.npy", truth)
    result = compare("truth.npy", found, ["a", "b", "c", "d"]).to_json(["a", "b", "c", "d"])
    assert [(c["label"], c["iou"], c["recall"]) for c in result["classes"]] == [
        ("a", pytest.approx(29 / 40), pytest.approx(29 / 30)),
        ("b", 0, None),
        ("c", 0, 0),
    ]
    assert result["confusion"] == [[29, 1, 0], [0, 0, 0], [10, 0, 0]]
    json.dumps(result, allow_nan=False)
    truth = np.full((312, 454), 255, np.uint8)
    truth[:20, :20] = 3  # where there is paper
    np.save("corner.npy", truth)
    _, out, _ = command(*SEGMENT, "c.json", "--truth", "corner.npy")
    assert "class 10  94.0% of the picture, IoU 0.000\n" in out
    assert "class 7   0.4% of the picture, no pixel with a truth\n" in out
    assert "class 3   0.8% of the picture, IoU 0.000\n" in out
    assert "mean IoU 0.000, pixel accuracy 0.000" in out


def test_strips_of_a_large_picture_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth, found = random.integers(0, 4, (2, 50, 30))
    truth[7] = 255
    np.save(tmp_path / "truth.npy", truth)
    whole = compare(tmp_path / "truth.npy", found, list("abcd"))
    monkeypatch.setattr("onnx_fcn.running.truth.AT_ONCE", 100)
    parts = compare(tmp_path / "truth.npy", found, list("abcd"))
    np.testing.assert_array_equal(parts.confusion.matrix, whole.confusion.matrix)
    assert parts.ignored == whole.ignored == 30


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["cat", "dog"], {0: 0, 1: 1}),
        (["1", "2"], {1: 0, 2: 1}),
        (["7", "0", "3"], {7: 0, 0: 1, 3: 2}),
        (["1", "two"], {0: 0, 1: 1}),
        (["1", "01"], {0: 0, 1: 1}),
        (["1", "٢"], {0: 0, 1: 1}),
        (["1", "9" * 5000], {0: 0, 1: 1}),
    ],
)
def test_names_that_are_numbers_are_those_of_the_mask(names: list[str], numbers: dict[int, int]) -> None:
    assert numbers_of(names) == numbers


def test_a_network_that_was_fitted_to_a_mask(command: Command) -> None:
    """Its classes are called as the mask numbers them."""
    named([str(k + 1) for k in range(11)])
    truth = truth_of_digits()
    np.save("zero.npy", truth)
    np.save("one.npy", np.where(truth == 255, truth, truth + 1))
    command(*SEGMENT, "of-indices.json", "--truth", "zero.npy", "-q")
    command("segment", "named.onnx", "page.npy", "of-names.json", "--truth", "one.npy", "-q")
    of_indices, of_names = (json.loads(Path(f"of-{k}.json").read_text("utf-8"))["truth"] for k in ("indices", "names"))
    assert of_names["confusion"] == of_indices["confusion"]
    code, _, err = command("segment", "named.onnx", "page.npy", "o.json", "--truth", "zero.npy")
    assert code == 2
    assert "'zero.npy' contains 0, and the numbers of the classes are 1 to 11: --ignore 0 leaves out" in err


def test_what_is_ignored(tmp_path: Path) -> None:
    """By default 255, unless that is a class."""
    many, found = [f"c{k}" for k in range(300)], np.zeros((2, 3), np.int64)
    truth = np.array([[0, 0, 255], [255, 0, 7]])
    np.save(tmp_path / "t.npy", truth)
    few = compare(tmp_path / "t.npy", found, many[:10])
    assert (few.ignore, few.ignored, few.confusion.pixels) == (255, 2, 4)
    all_ = compare(tmp_path / "t.npy", found, many)
    assert (all_.ignore, all_.ignored, all_.confusion.pixels) == (None, 0, 6)
    named_so = compare(tmp_path / "t.npy", found, ["0", "7", "255"])
    assert (named_so.ignore, named_so.confusion.matrix[2, 0]) == (None, 2)
    with pytest.raises(
        OptionError, match="contains 255, and the numbers of the classes are 0 to 9: --ignore 255 leaves"
    ):
        compare(tmp_path / "t.npy", found, many[:10], 7)


def test_truths_that_do_not_fit(command: Command) -> None:
    np.save("small.npy", np.zeros((156, 227), np.uint8))
    np.save("seven.npy", np.full((312, 454), 77, np.uint8))
    np.save("ignored.npy", np.full((312, 454), 255, np.uint8))
    np.save("floats.npy", np.zeros((312, 454), np.float32))
    many = np.zeros((312, 454), np.int64)
    many[0, :8] = range(100, 108)
    np.save("many.npy", many)
    PIL.Image.new("RGB", (454, 312)).save("colours.png")
    Path("text.png").write_text("no picture")
    before = sorted(p.name for p in Path().iterdir())
    for words, sentence in (
        (
            "--truth small.npy",
            "'small.npy' has 156×227 pixels, and the picture has 312×454: the truth is a mask of the",
        ),
        (
            "--truth seven.npy",
            "'seven.npy' contains 77, and the numbers of the classes are 0 to 10: --ignore 77 leaves",
        ),
        ("--truth many.npy", "'many.npy' contains 100, 101, 102, 103, 104, …, and the numbers"),
        (
            "--truth ignored.npy",
            "'ignored.npy' contains nothing but 255, which --ignore leaves out: no pixel has a truth",
        ),
        ("--truth floats.npy", "'floats.npy' contains float32, and class numbers are integers"),
        ("--truth colours.png", "'colours.png' is not a mask: its pixels are colours"),
        ("--truth text.png", "'text.png' is not an image"),
        ("--ignore 0", "--ignore is a number in the truth: give --truth as well"),
        ("--truth none.png", "'none.png' does not exist"),
    ):
        code, out, err = command(*SEGMENT, "o.png", "o.json", *words.split())
        assert (code, out) == (2, ""), words
        assert sentence in err, words
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert sorted(p.name for p in Path().iterdir()) == before
    code, _, err = command(*SEGMENT, "ignored.npy", "--truth", "ignored.npy")
    assert (code, err) == (2, "error: cannot write 'ignored.npy': it is an input\n")


def test_names_of_the_file_are_in_the_report_and_in_the_picture(command: Command) -> None:
    named(NAMES)
    code, out, _ = command(
        "segment", "named.onnx", "page.npy", "c.svg", "c.json", "--background", "paper", "--contours"
    )
    assert code == 0
    assert re.search(r"^paper \(class 10\) +94.0% of the picture$", out, re.MULTILINE)
    entries = json.loads(Path("c.json").read_text("utf-8"))["classes"]
    assert {entry["class"]: entry["label"] for entry in entries} == dict(enumerate(NAMES))
    assert Path("c.svg").read_bytes().startswith(b"<?xml")


# At the edges of the picture ------------------------------------------------------------------------------------------


def naive_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """The mean over each pixel's window, pixel by pixel."""
    means = np.empty(values.shape)
    for y, x in np.ndindex(values.shape):
        means[y, x] = values[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1].mean()
    return means


@pytest.mark.parametrize("radius", [0, 1, 3, 8, 50])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 17)])
def test_means_over_windows(shape: tuple[int, int], radius: int) -> None:
    values = np.random.default_rng(0).random(shape, np.float32)
    np.testing.assert_allclose(box_mean(values, radius), naive_mean(values, radius), rtol=1e-6)


def test_the_guided_filter_is_that_of_the_paper() -> None:
    """Equations 5, 6 and 8 as they stand, in float64."""
    random = np.random.default_rng(0)
    picture, values = random.integers(0, 256, (12, 15, 3)).astype(np.float32), random.random((12, 15), np.float32)
    guide, radius, epsilon = (picture @ [0.299, 0.587, 0.114]) / 255, 2, 0.01
    mean, spread = naive_mean(guide, radius), naive_mean(guide**2, radius) - naive_mean(guide, radius) ** 2
    slope = (naive_mean(guide * values, radius) - mean * naive_mean(values, radius)) / (spread + epsilon)
    offset = naive_mean(values, radius) - slope * mean
    expected = naive_mean(slope, radius) * guide + naive_mean(offset, radius)
    np.testing.assert_allclose(Guide(picture, radius, epsilon).filtered(values), expected, atol=1e-5)
    flat = np.full((12, 15), 0.25, np.float32)
    np.testing.assert_allclose(Guide(picture, radius).filtered(flat), flat, atol=1e-5)


def test_a_border_moves_to_the_edge_of_the_picture() -> None:
    """The probabilities change 4 pixels beside an edge, as those of answers 8 pixels apart may."""
    picture = np.full((40, 60, 3), 60, np.float32)
    picture[:, 33:] = 190
    values = np.clip((np.arange(60) - 25) / 8, 0, 1)[None].repeat(40, 0).astype(np.float32)
    for radius in (8, 12):
        refined = Guide(picture, radius).filtered(values) >= 0.5
        np.testing.assert_array_equal(refined, picture[..., 0] > 100)
    assert (values >= 0.5)[0].argmax() == 29


def test_refined_classes_of_the_page(command: Command) -> None:
    """More of the pixels that are taken for digits are ink than before, and nearly all digits are still found."""
    page = np.load(FIXTURES / "digits_page.npy")
    code, out, _ = command(*SEGMENT, "fine.npy", "fine.json", "fine.png", "--refine")
    assert code == 0
    assert "refined   along the edges of the picture, by a guided filter with a radius of 4 pixels\n" in out
    assert json.loads(Path("fine.json").read_text("utf-8"))["refined"] == {"radius": 4}
    command(*SEGMENT, "plain.npy", "-q")
    fine, plain = np.load("fine.npy"), np.load("plain.npy")
    assert fine.dtype == np.uint8
    assert (page[fine < 10] > 100).mean() > (page[plain < 10] > 100).mean() + 0.2
    found = [(fine[b["top"] : b["bottom"], b["left"] : b["right"]] == b["label"]).any() for b in KNOWN]
    assert sum(found) >= 90  # of 96: what only a few answers see may vanish


def test_a_refined_map_is_the_best_of_filtered_probabilities(models: Path) -> None:
    """Class by class, as all at once."""
    page = np.load(FIXTURES / "digits_page.npy")[:90, :80]
    result = DenseModel(models / "out.onnx").run(page)
    picture, radius = to_rgb(page[..., None].astype(np.float32)), radius_of(result)
    assert radius == 4
    filtered = [Guide(picture, radius).filtered(result.at_pixels(p)) for p in result.probabilities]
    candidates = np.unique(result.classes)
    expected = candidates[np.argmax(np.stack(filtered)[candidates], axis=0)]
    np.testing.assert_array_equal(refined_classes(result, picture, radius), expected)
    assert radius_of(DenseModel(models / "out.onnx").run(page, 2.0)) == 2


def test_a_single_score_is_refined_and_class_numbers_are_not(command: Command) -> None:
    body = "m = Conv (x, k)  f = Flatten (m)  l = MatMul (f, w)  y = Sigmoid (l)"
    source = law.model(body, image="float[N,3,6,6] x", k=(5, 3, 3, 3), w=(80, 1))
    onnx_fcn.convert(source, validate=False).save("single.onnx")
    assert command("segment", "single.onnx", "photo.jpg", "s.npy", "--refine", "-q") == (0, "", "")
    assert set(np.unique(np.load("s.npy"))) == {0, 1}
    code, _, err = command("segment", "best.onnx", "page.npy", "o.npy", "--refine")
    assert code == 2
    assert "the model gives the best class only, without scores" in err
