"""`quantize`: calibrated on whole images, compared on others, and used like the float file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest

import onnx_fcn
from onnx_fcn import ModelError, OptionError, Preprocessing, Quantized, ValidationError
from onnx_fcn.cli import main
from onnx_fcn.cli.quantize import _table
from onnx_fcn.running import quantizing
from onnx_fcn.running.fidelity import Fidelity, Output, Tally
from onnx_fcn.running.network import open_converted
from onnx_fcn.running.ranges import cheapest_range, ranges
from onnx_fcn.tables import percent, plain

FIXTURES = Path(__file__).parent.parent / "fixtures"
PAGE = np.load(FIXTURES / "digits_page.npy")
BOXES = json.loads((FIXTURES / "digits_page.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of the page, of several sizes."""
    folder = tmp_path_factory.mktemp("images")
    for k, (top, left) in enumerate([(0, 0), (80, 100), (150, 30), (20, 240), (100, 200), (60, 10)]):
        PIL.Image.fromarray(PAGE[top : top + 90 + 20 * k, left : left + 190 + 8 * k]).save(folder / f"{k}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def convert(folder: Path, name: str = "digits_padded.onnx", **how: Any) -> Path:
    onnx_fcn.convert(FIXTURES / name, folder / "out.onnx", validate=False, **how)
    return folder / "out.onnx"


def example(**values: Any) -> Quantized:
    """The report on a file that does not exist."""
    outputs = (Fidelity("scores", False, 1.0, 1.0, 0, 0.05, 0.1),)
    made = Quantized("fast.onnx", 1, (("a.png", 0.1, 1.0),), outputs, (64, 64), (0.1, 0.04), (2, 1), wide_sums=True)
    return replace(made, **values)


def pages(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """A folder of parts of the page, of these sizes."""
    folder.mkdir()
    for k, (height, width) in enumerate(sizes):
        PIL.Image.fromarray(PAGE[10 * k : 10 * k + height, 40 * k : 40 * k + width]).save(folder / f"{k}.png")
    return folder


def with_entry(path: Path, key: str, value: Any) -> Path:
    """A file with one more entry in its metadata."""
    model = onnx.load(path)
    model.metadata_props.add(key=f"onnx_fcn.{key}", value=json.dumps(value))
    onnx.save(model, path)
    return path


def digits_found(maps: np.ndarray) -> int:
    """How many of the 96 digits of the page a map names in the middle of their boxes: (11, 72, 107) → a number."""
    best = maps.argmax(0)
    return sum(best[(box["top"] + 2) // 4, (box["left"] + 2) // 4] == box["label"] for box in BOXES)


def entries(path: Path) -> dict[str, str]:
    return {e.key: e.value for e in onnx.load(path, load_external_data=False).metadata_props}


@pytest.mark.parametrize("name", ["digits_padded.onnx", "digits_unpadded.onnx"])
def test_all_digits_are_found(name: str, images: Path, tmp_path: Path) -> None:
    """The file answers in 8 bits, as is said of it, and is verified and read like the float one."""
    source, fast, maps = convert(tmp_path, name), tmp_path / "fast.onnx", tmp_path / "map.npy"
    found = onnx_fcn.quantize(source, images, fast)
    assert (found.calibrated, [Path(file).name for file, _, _ in found.compared]) == (3, ["1.png", "3.png", "5.png"])
    assert found.agreement >= 0.98
    assert found.nbytes == (source.stat().st_size, fast.stat().st_size)
    graph = onnx.load(fast).graph
    (first, *_, last) = (node for node in graph.node if node.op_type == "Conv")
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert {*first.input[:2]} <= dequantised
    assert last.input[1] not in dequantised

    pixels = np.asarray(PIL.Image.open(images / "5.png"), np.float32)[None, None] / 255
    (want,), (have,) = (law.session(onnx.load(path))({"image": pixels}) for path in (source, fast))
    assert found.compared[2][1] == pytest.approx(np.abs(have - want).max() / np.abs(want).max(), rel=1e-3)
    assert found.compared[2][2] == np.mean(have.argmax(1) == want.argmax(1))

    assert onnx_fcn.read_geometry(fast) == onnx_fcn.read_geometry(source)
    onnx_fcn.apply(fast, FIXTURES / "digits_page.npy", maps, preprocess="unit")
    assert digits_found(np.load(maps)) == 96
    data = {"image": PAGE.astype(np.float32)[None, None] / 255}
    assert onnx_fcn.validate(FIXTURES / name, fast, data=data, tolerance=0.1).passed


def test_what_the_file_says_stays(images: Path, tmp_path: Path) -> None:
    source = convert(tmp_path, argmax=True)
    with_entry(source, "labels", [f"digit {k}" for k in range(10)] + ["none"])
    model = onnx.load(source)
    model.metadata_props.add(key="made.by", value="somebody")
    onnx.save(model, source)
    onnx_fcn.quantize(source, images, tmp_path / "fast.onnx")
    before, after = entries(source), entries(tmp_path / "fast.onnx")
    assert {key for key in before if before[key] != after[key]} == {"onnx_fcn.graph"}


def test_the_map_of_one_channel_has_a_share_of_cells_on_one_side(images: Path, tmp_path: Path) -> None:
    body = "c = Conv (image, k)  r = Relu (c)  f = Flatten (r)  y = MatMul (f, w)"
    model = law.model(body, image="float[N,1,28,28] image", k=(2, 1, 5, 5), w=(1152, 1))
    onnx_fcn.convert(model, tmp_path / "out.onnx", validate=False)
    found = onnx_fcn.quantize(tmp_path / "out.onnx", images, tmp_path / "fast.onnx", agreement=0.9)
    assert 0.9 < found.agreement <= 1


@pytest.mark.parametrize("batch", [None, 2])
def test_a_file_of_one_size(batch: int | None, images: Path, tmp_path: Path) -> None:
    """Images are calibrated on, and compared, in their middle; weights in a file of their own are read."""
    source = convert(tmp_path, fix_size=(90, 190), batch=batch, external_data=True)
    found = onnx_fcn.quantize(source, images, tmp_path / "fast.onnx")
    assert found.size == (90, 190)
    assert found.agreement >= 0.98
    PIL.Image.fromarray(PAGE[:80, :190]).save(images / "z.png")
    try:
        with pytest.raises(OptionError, match="80×190 pixels, fewer than the 90×190 to which the size of the file was"):
            onnx_fcn.quantize(source, images, tmp_path / "other.onnx")
    finally:
        os.remove(images / "z.png")


def test_weights_of_more_than_two_gigabytes(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not fit into one file, so each step keeps them in a file of their own."""
    source = convert(tmp_path)
    onnx_fcn.quantize(source, images, tmp_path / "small.onnx")
    monkeypatch.setattr(quantizing, "LARGE", 0)
    onnx_fcn.quantize(source, images, tmp_path / "large.onnx")
    image = {"image": PAGE.astype(np.float32)[None, None] / 255}
    small, large = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("small", "large"))
    np.testing.assert_array_equal(large.run(None, image)[0], small.run(None, image)[0])


def test_the_same_bytes_again(images: Path, tmp_path: Path) -> None:
    source = convert(tmp_path)
    for name in ("one.onnx", "two.onnx"):
        onnx_fcn.quantize(source, images, tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_weights_have_seven_bits_where_sums_have_sixteen(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = convert(tmp_path)
    largest = {}
    for wide in (True, False, None):
        monkeypatch.setattr(quantizing, "_has_wide_sums", lambda wide=wide: wide)
        found = onnx_fcn.quantize(source, images, tmp_path / f"{wide}.onnx")
        assert (found.wide_sums, found.weight_bits) == (wide, 8 if wide else 7)
        weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / f"{wide}.onnx").graph.initializer]
        largest[wide] = max(np.abs(w.astype(int)).max() for w in weights if w.dtype == np.int8 and w.ndim == 4)
    assert largest == {True: 127, False: 64, None: 64}


@pytest.mark.parametrize(("machine", "flags", "wide", "said"), [
    ("x86_64", "flags : sse2 avx512_vnni", True, " 8 bits, with a scale"),
    ("AMD64", "flags : sse2 avx2", False, "7 bits, as this processor has no VNNI"),
    ("AMD64", None, None, "7 bits, as it is not known whether this processor has VNNI"),
    ("arm64", None, True, " 8 bits, with a scale"),
])  # fmt: skip
def test_what_is_known_about_the_processor(
    machine: str, flags: str | None, wide: bool | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and macOS do not say whether there is VNNI: weights have 7 bits, and the report says why."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(quantizing, "CPUINFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    assert quantizing._has_wide_sums() is wide
    assert said in plain([_table(example(wide_sums=wide))])


# Files that answer something else ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright squares on black: what a detector looks for is at one cell of a thousand."""
    folder = tmp_path_factory.mktemp("squares")
    for k in range(4):
        pixels = np.zeros((256, 256), np.uint8)
        for top, left in np.random.default_rng(k).integers(0, 250, (3, 2)):
            pixels[top : top + 6, left : left + 6] = 255
        PIL.Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def detector(folder: Path, body: str = "", outputs: str = "y", **weights: Any) -> Path:
    """A converted network of 6×6 pixels whose `y` is the brightness; `body` makes other outputs of its features `f`."""
    body = f"c = Conv (image, k)  r = Relu (c)  f = Flatten (r)  y = MatMul (f, w)  {body}"
    weights = {"k": np.full((2, 1, 3, 3), 1 / 9, np.float32), "w": np.full((32, 1), 1 / 32, np.float32), **weights}
    model = law.model(body, image="float[N,1,6,6] image", outputs=outputs, **weights)
    onnx_fcn.convert(model, folder / "detector.onnx", validate=False)
    return folder / "detector.onnx"


def spoil(monkeypatch: pytest.MonkeyPatch, output: str, factor: Any = 1.0, added: Any = 0.0) -> None:
    """Let the quantised file answer with an output times a factor, one for each channel perhaps, plus a number."""
    original = quantizing._quantized

    def spoiled(source: Any, converted: Any, path: Path, *arguments: Any, **how: Any) -> None:
        original(source, converted, path, *arguments, **how)
        model = onnx.load(path)
        for node in model.graph.node:
            for k, name in enumerate(node.output):
                if name == output:
                    node.output[k] = "before"
        for name, value in (("factor", factor), ("added", added)):
            column = np.asarray(value, np.float32).reshape(-1, 1, 1)
            model.graph.initializer.append(onnx.numpy_helper.from_array(column, name))
        model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["scaled"]))
        model.graph.node.append(onnx.helper.make_node("Add", ["scaled", "added"], [output]))
        onnx.save(model, path)

    monkeypatch.setattr(quantizing, "_quantized", spoiled)


def test_a_detector(squares: Path, tmp_path: Path) -> None:
    found = onnx_fcn.quantize(detector(tmp_path), squares, tmp_path / "fast.onnx")
    (output,) = found.outputs
    assert (output.output, output.has_sides) == ("y", True)
    assert found.agreement >= 0.999
    assert found.recall is not None
    assert found.recall >= 0.9
    assert found.noise is not None
    assert found.noise < 0.05


@pytest.mark.parametrize(("factor", "added", "said"), [
    (0, 0, "only 0.0% of the cells above the middle of the scores stay there, and 50.0% is the least: calibrate"),
    (1, 0.2, "the scores are off by 6.53 of their spread (root mean square), and 0.3 is the most: calibrate and"),
    (1.4, 0, "the scores are off by 0.4"),
    (-1, 0, "only 0.0% of the cells above the middle"),
    (1, float("nan"), "only 0.0% of the cells above the middle"),
])  # fmt: skip
def test_a_map_of_one_channel_that_is_dead_or_off(
    factor: float, added: float, said: str, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 63,001 cells almost all are below the middle, and stay there whatever becomes of the others."""
    source = detector(tmp_path)
    spoil(monkeypatch, "y", factor, added)
    with pytest.raises(ValidationError, match=re.escape(said)) as caught:
        onnx_fcn.quantize(source, squares, tmp_path / "fast.onnx")
    report = caught.value.report
    assert isinstance(report, onnx_fcn.Quantized)
    assert report.agreement > 0.98
    assert os.listdir(tmp_path) == ["detector.onnx"]


def test_a_rare_class_beside_a_background(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The background is the best class at 999 of 1000 cells, and of a file that answers nothing as well."""
    body, bias = "z = Add (y, b)", np.array([0.5, 0], np.float32)
    weights = np.stack([np.zeros(32), np.full(32, 1 / 32)], 1).astype(np.float32)
    source = detector(tmp_path, body, "z", w=weights, b=bias)
    assert onnx_fcn.quantize(source, squares, tmp_path / "fast.onnx").agreement > 0.999
    spoil(monkeypatch, "z", 0)
    with pytest.raises(ValidationError, match=r"only 0\.0% of the cells of class 1 keep it, and 50"):
        onnx_fcn.quantize(source, squares, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_a_class_that_is_lost(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = np.zeros(11)
    lost[3] = -1e3
    source = convert(tmp_path)
    spoil(monkeypatch, "scores", 1, lost)
    with pytest.raises(ValidationError, match=r"only 0\.0% of the cells of class 3 keep it"):
        onnx_fcn.quantize(source, images, tmp_path / "fast.onnx", agreement=0.9)


def test_scores_without_a_scale(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best class is the same at every cell, and the scores are not."""
    source = convert(tmp_path)
    spoil(monkeypatch, "scores", 2)
    with pytest.raises(ValidationError, match=r"the scores are off by 2\.\d+ of their spread"):
        onnx_fcn.quantize(source, images, tmp_path / "fast.onnx")


@pytest.mark.parametrize("channels", [1, 4])
def test_every_output_is_compared(
    channels: int, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = detector(tmp_path, "z = MatMul (f, v)", "y, z", v=(32, channels))
    found = onnx_fcn.quantize(source, squares, tmp_path / "fast.onnx")
    assert [f.output for f in found.outputs] == ["y", "z"]
    assert found.agreement == min(f.agreement for f in found.outputs if f.agreement is not None)
    assert f"at output '{found.worst.output}', the least of 2" in dict(_table(found).rows)["agreement"]
    spoil(monkeypatch, "z", -1)
    words = ["quantize", str(source), str(squares), str(tmp_path / "other.onnx")]
    assert main(words) == 3
    assert "error: of output 'z', " in capsys.readouterr().err
    assert not (tmp_path / "other.onnx").exists()


def test_nothing_is_measured_of_the_scores_of_classes(images: Path, tmp_path: Path) -> None:
    source = convert(tmp_path, argmax=True)
    found = onnx_fcn.quantize(source, images, tmp_path / "fast.onnx")
    assert (found.error, found.noise) == (None, None)
    assert all(error is None for _, error, _ in found.compared)
    assert found.recall is not None
    said = plain([_table(found)])
    assert "have the same best class" in said
    assert "largest score" not in said
    assert "spread" not in said


def test_images_that_show_nothing(squares: Path, tmp_path: Path) -> None:
    """A map that is the same everywhere is that of a dead file, too."""
    folder = tmp_path / "black"
    folder.mkdir()
    for k in range(2):
        PIL.Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / f"{k}.png")
    with pytest.raises(OptionError, match="output 'y' is the same at every cell of the images compared, so that a"):
        onnx_fcn.quantize(detector(tmp_path), folder, tmp_path / "fast.onnx")
    source = convert(tmp_path, argmax=True)
    with pytest.raises(OptionError, match="output 'scores' is the same at every cell of the images compared"):
        onnx_fcn.quantize(source, folder, tmp_path / "fast.onnx")
    assert not (tmp_path / "fast.onnx").exists()


def test_images_count_by_their_cells() -> None:
    """A small image with one cell off is not as far off as a large one."""
    tally = Tally(Output("y", True, 1, False))
    for count, wrong in ((10, 5), (990, 0)):
        want = np.stack([np.zeros(count), np.ones(count)])[None]
        want[..., ::3] = want[:, ::-1, ::3]
        have = want.copy()
        have[..., :wrong] = want[:, ::-1, :wrong]
        assert tally.add(want, have)[1] == 1 - wrong / count
    found = tally.result()
    assert found.agreement == 0.995
    assert (found.recall, found.weakest) == (pytest.approx(1 - 2 / 334), 0)
    assert found.noise == pytest.approx(np.sqrt(0.005 / (1 / 3 * 2 / 3)), rel=1e-3)


def test_the_spread_is_that_of_all_images() -> None:
    """Around the mean of all of them, not of each one; each channel around its own."""
    random = np.random.default_rng(0)
    own = np.array([[100], [0], [-9]])
    images = [random.normal(middle, 1, (1, 3, cells)) + own for middle, cells in ((0, 5), (20, 6), (-7, 9))]
    tally = Tally(Output("y", True, 1, False))
    for image in images:
        tally.add(image, image + 0.5)
    together = np.concatenate(images, -1)[0]
    assert tally.result().noise == pytest.approx(0.5 / np.sqrt(together.var(axis=1).mean()))


def test_a_class_of_few_cells_does_not_count() -> None:
    for batch, few, counts in ((1, 19, False), (1, 20, True), (2, 39, False), (2, 40, True)):
        tally = Tally(Output("best", True, None, True), batch=batch)
        want = np.repeat([0, 1], [1000, few])
        tally.add(want, np.zeros_like(want))
        assert tally.result().recall == (0 if counts else 1)


def test_scores_that_are_no_map() -> None:
    """Features of the whole image have neither cells nor classes; a constant among the outputs has no spread."""
    for want, have, noise in (([1.0, 3, 5], [1.0, 3, 7], np.sqrt(4 / 8)), ([2.0, 2, 2], [2.0, 2, 1], 0.5)):
        tally = Tally(Output("features", False, None, False))
        tally.add(np.array(want), np.array(have))
        found = tally.result()
        assert (found.agreement, found.recall, found.noise) == (None, None, pytest.approx(noise))
        assert "the scores are off by" in found.fault(0.98)


# What is refused ------------------------------------------------------------------------------------------------------


def test_nothing_is_written_if_too_few_cells_agree(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, fast = convert(tmp_path), tmp_path / "fast.onnx"
    fast.write_bytes(b"before")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        ValidationError, match=r"only 99\.\d+% of the cells have the same best class as before, and 100\.0"
    ):
        onnx_fcn.quantize(source, images, fast, agreement=1.0)
    assert main(["quantize", str(source), str(images), str(fast), "--agreement", "1"]) == 3
    assert "allow less by --agreement" in capsys.readouterr().err
    assert fast.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == before


def test_what_cannot_be_quantised(images: Path, tmp_path: Path) -> None:
    source, fast = convert(tmp_path), tmp_path / "fast.onnx"
    with pytest.raises(ModelError, match="does not say where its answers are"):
        onnx_fcn.quantize(FIXTURES / "digits_padded.onnx", images, fast)
    with pytest.raises(OptionError, match="is the model itself"):
        onnx_fcn.quantize(source, images, source)
    for share in (98, 0, float("nan")):
        with pytest.raises(OptionError, match=f"a share of the cells, above 0 and at most 1, not {share}"):
            onnx_fcn.quantize(source, images, fast, agreement=share)
    with pytest.raises(OptionError, match="has one image only"):
        onnx_fcn.quantize(source, images / "0.png", fast)
    with pytest.raises(OptionError, match="'nowhere' does not exist"):
        onnx_fcn.quantize(source, "nowhere", fast)
    (tmp_path / "small").mkdir()
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(PAGE[:20, :40]).save(tmp_path / "small" / name)
    with pytest.raises(OptionError, match="20×40"):
        onnx_fcn.quantize(source, tmp_path / "small", fast)
    (tmp_path / "small" / "a.png").write_bytes(b"no picture")
    with pytest.raises(OptionError, match=r"a\.png"):
        onnx_fcn.quantize(source, tmp_path / "small", fast)
    assert not fast.exists()
    onnx_fcn.quantize(source, images, fast)
    with pytest.raises(OptionError, match="is quantised already"):
        onnx_fcn.quantize(fast, images, tmp_path / "faster.onnx")


@pytest.mark.parametrize(("sizes", "said"), [
    ([(28, 28)] * 4, "none of the images is enough larger than the window of 28×28 pixels to have more answers"),
    ([(28, 31), (30, 28)], "none of the images is enough larger"),  # still one cell, since the stride is 4
    ([(28, 28), (90, 90), (28, 28)], "one of the images is enough larger than the window of 28×28 pixels"),
])  # fmt: skip
def test_windows_alone_say_nothing_about_larger_images(
    sizes: list[tuple[int, int]], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pages(tmp_path / "images", sizes)
    monkeypatch.setattr(quantizing, "ranges", None)  # nothing is measured before
    with pytest.raises(OptionError, match=said):
        onnx_fcn.quantize(convert(tmp_path), folder, tmp_path / "fast.onnx")


def test_larger_images_are_calibrated_on_and_compared(tmp_path: Path) -> None:
    """However they are arranged: every other image is a window here."""
    folder = pages(tmp_path / "images", [(28, 28), (120, 150), (28, 28), (130, 140), (28, 28), (110, 160)])
    found = onnx_fcn.quantize(convert(tmp_path), folder, tmp_path / "fast.onnx", agreement=0.9)
    assert [Path(file).name for file, *_ in found.compared] == ["0.png", "3.png", "4.png"]
    assert (found.calibrated, found.size) == (3, (130, 140))


def test_windows_of_more_pixels_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger images stay larger than a window."""
    monkeypatch.setattr(quantizing, "MOST_PIXELS", 100)
    found = onnx_fcn.quantize(convert(tmp_path), pages(tmp_path / "images", [(90, 120)] * 4), tmp_path / "fast.onnx")
    assert found.size == (42, 42)


def test_what_is_being_done(images: Path, tmp_path: Path) -> None:
    said: list[str] = []
    onnx_fcn.quantize(convert(tmp_path), images, tmp_path / "fast.onnx", progress=said.append)
    for words in ("measuring the ranges of activations: image 3 of 3", "comparing on image 3 of 3", "rounding weights"):
        assert words in said


def test_a_file_of_the_native_size_needs_no_larger_images(tmp_path: Path) -> None:
    folder = pages(tmp_path / "images", [(28, 28), (30, 30)] * 2)
    for size in ((28, 28), (28, 30)):  # one cell each
        source = convert(tmp_path, fix_size=size)
        chosen = quantizing._split(open_converted(source), [str(folder / f"{k}.png") for k in range(1, 4, 2)])
        assert [len(files) for files in chosen] == [1, 1]


def test_no_input_is_overwritten(images: Path, tmp_path: Path) -> None:
    made = convert(tmp_path, external_data=True)
    weights = next(tmp_path.glob("*.data"))
    for path in (weights, images / "0.png"):
        before = path.read_bytes()
        with pytest.raises(OptionError, match="it is an input"):
            onnx_fcn.quantize(made, images, path)
        assert path.read_bytes() == before


def test_too_little_memory_is_no_fault_of_the_model(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(quantizing, "ranges", exhausted)
    assert main(["quantize", str(convert(tmp_path)), str(images), str(tmp_path / "fast.onnx")]) == 2
    assert "there is not enough memory" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only onnxruntime's own calls are blamed on it, and each of them is."""

    def broken(*_: object, **__: object) -> None:
        raise raised

    source, fast = convert(tmp_path), tmp_path / "fast.onnx"
    for target, error, said in (
        ("onnx_fcn.running.quantizing.ranges", AssertionError, "^a wrong sum"),
        (
            "onnxruntime.quantization.quantize_static",
            ModelError,
            "onnxruntime does not quantise the model: a wrong sum",
        ),
        ("onnxruntime.quantization.shape_inference.quant_pre_process", ModelError, "does not quantise the model: a wr"),
        (
            "onnxruntime.quantization.quantize_static",
            OptionError,
            "copies of the model beside the output: no space left",
        ),
    ):
        raised = OSError(errno.ENOSPC, "No space left") if error is OptionError else AssertionError("a wrong sum")
        with monkeypatch.context() as patch:
            patch.setattr(target, broken)
            with pytest.raises(error, match=said):
                onnx_fcn.quantize(source, images, fast)
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_a_run_that_fails_while_ranges_are_measured(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's reason is given with the size of the image, and a lack of memory is no fault of the model."""

    class Failing:
        def __init__(self, reason: str) -> None:
            self.reason = reason

        def get_outputs(self) -> list[Any]:
            return []

        def run(self, *_: object) -> None:
            raise RuntimeError(self.reason)

    source, data = convert(tmp_path), {"image": np.zeros((1, 1, 30, 40), np.float32)}
    for reason, error, said in (
        ("Conv is broken", ModelError, "does not run the model on 30×40 pixels: Conv is broken"),
        ("std::bad_alloc", OptionError, "not enough memory to run the model on 30×40 pixels"),
    ):
        monkeypatch.setattr("onnx_fcn.running.ranges.inference_session", lambda *_, why=reason, **__: Failing(why))
        monkeypatch.setattr("onnx_fcn.running.ranges._groups", lambda *_: [["scores"]])
        with pytest.raises(error, match=said):
            ranges(source, lambda _: [data], lambda _: (30, 40))


def test_copies_of_the_model_are_beside_the_output(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of onnxruntime's tools: the system's folder for temporary files may be in memory."""
    for name in ("system", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    made: list[Path] = []
    original = tempfile.mkdtemp

    def recorded(*arguments: Any, **how: Any) -> str:
        made.append(Path(original(*arguments, **how)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", recorded)
    onnx_fcn.quantize(convert(tmp_path), images, tmp_path / "results/fast.onnx")
    assert len(made) >= 3  # ours, and one at least of each tool
    assert all((tmp_path / "results") in path.parents for path in made)
    assert os.listdir(tmp_path / "results") == ["fast.onnx"]
    assert tempfile.tempdir == str(tmp_path / "system")


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "ranges", None)
    with pytest.raises(OptionError, match="there is no directory"):
        onnx_fcn.quantize(convert(tmp_path), images, tmp_path / "nowhere/fast.onnx")


def test_a_source_that_changes_meanwhile(images: Path, tmp_path: Path) -> None:
    source = convert(tmp_path)

    def change(words: str) -> None:
        if words.startswith("comparing"):
            os.utime(source, (1, 1))

    with pytest.raises(ModelError, match="changed"):
        onnx_fcn.quantize(source, images, tmp_path / "fast.onnx", progress=change)
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_other_inputs(tmp_path: Path, images: Path) -> None:
    body = "c = Conv (image, k)  m = Mul (c, gain)  f = Flatten (m)  y = MatMul (f, w)"
    model = law.model(body, image="float[N,1,28,28] image, float[1] gain", k=(2, 1, 5, 5), w=(1152, 4))
    onnx_fcn.convert(model, tmp_path / "out.onnx", validate=False)
    with pytest.raises(OptionError, match="reads an image of floats, and nothing else"):
        onnx_fcn.quantize(tmp_path / "out.onnx", images, tmp_path / "fast.onnx")


# The command line -----------------------------------------------------------------------------------------------------


def test_the_report(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, fast = convert(tmp_path), tmp_path / "fast.onnx"
    assert main(["quantize", str(source), str(images), str(fast), "--preprocess", "unit"]) == 0
    said = capsys.readouterr().out
    for words in (f"{fast}, ", "3 calibrated on, 3 others compared", "of the cells have the same best class", "ms at "):
        assert words in said
    assert main(["quantize", str(source), str(images), str(fast), "-q"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("words", "message"), [
    ("--agreement 2", "argument --agreement: '2' is not a number above 0 and at most 1"),
    ("--agreement 0", "'0' is not a number above 0 and at most 1"),
    ("--agreement nan", "'nan' is not a number above 0 and at most 1"),
    ("--agreement much", "'much' is not a number above 0 and at most 1"),
    ("--json out.onnx", "cannot write 'out.onnx': it is an input"),
    ("--preprocess magic", "magic"),
    ("--mean 1,2,3 --std 0,1,1", "std"),
    ("--unknown", "unrecognized arguments: --unknown"),
])  # fmt: skip
def test_bad_values(
    words: str,
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fast = tmp_path / "fast.onnx"
    convert(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", "out.onnx", str(images), str(fast), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not fast.exists()


def test_the_report_as_json(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the keys of docs/deploying.md; - writes it to stdout, and nothing else."""
    source, fast, file = convert(tmp_path), tmp_path / "fast.onnx", tmp_path / "report.json"
    words = ["quantize", str(source), str(images), str(fast), "--json"]
    assert main([*words, str(file)]) == 0
    assert "have the same best class" in capsys.readouterr().out
    assert main([*words, "-"]) == 0
    printed, stored = json.loads(capsys.readouterr().out), json.loads(file.read_text())
    for report in (printed, stored):
        del report["seconds"]
    assert printed == stored
    assert stored["version"] == 1
    assert stored["bytes"] == {"before": source.stat().st_size, "after": fast.stat().st_size}
    assert [Path(each["image"]).name for each in stored["compared"]] == ["1.png", "3.png", "5.png"]
    (output,) = stored["outputs"]
    assert output["name"] == "scores"
    assert all(stored[key] == output[key] for key in ("agreement", "recall", "noise", "error"))
    text = (FIXTURES.parent / "docs/deploying.md").read_text()
    assert all(f"`{key}`" in text for key in (*stored, *stored["compared"][0], *output))
    file.unlink()
    assert main([*words, str(file), "--agreement", "1"]) == 3
    assert not file.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_what_is_being_done_is_shown_on_a_terminal(images: Path, tmp_path: Path) -> None:
    """Calibration takes minutes."""
    import pty

    source = convert(tmp_path)
    command = [sys.executable, "-m", "onnx_fcn", "quantize", str(source), str(images), str(tmp_path / "fast.onnx")]
    terminal, end = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(terminal, 4096):
                shown += piece
        os.close(terminal)
    assert process.returncode == 0
    assert " …" in shown.decode()  # which steps depends on how long they take


@pytest.mark.parametrize(("share", "other", "text"), [
    (0.98765, 0.98, "98.8%"),
    (0.99999, 1.0, "99.999%"),
    (1.0, 0.99999, "100.000%"),
    (0.9799999, 0.98, "97.99999%"),
    (1.0, 1.0, "100.0%"),
])  # fmt: skip
def test_shares_that_differ_look_different(share: float, other: float, text: str) -> None:
    assert percent(share, other) == text


# Ranges ---------------------------------------------------------------------------------------------------------------


def cost_of(values: np.ndarray, low: float, high: float) -> float:
    """The mean square of what rounding to 256 values in a range, and cutting off beyond, change."""
    step = (high - low) / 255
    kept = low + np.round((values.clip(low, high) - low) / step) * step
    return float(np.square(kept - values).mean())


@pytest.mark.parametrize(("name", "narrower"), [("evenly", False), ("normally", True), ("positive", True)])
def test_the_range_that_costs_the_least(name: str, narrower: bool) -> None:
    random = np.random.default_rng(7)
    values = {
        "evenly": random.uniform(-1, 2, 100_000),
        "normally": np.append(random.standard_normal(100_000), [-60, 90]),
        "positive": np.append(np.maximum(random.standard_normal(100_000), 0), 70),
    }[name]
    low, high = min(values.min(), 0), values.max()
    counts = np.histogram(values, 2048, (low, high))[0]
    found = cheapest_range(counts, low, high)
    assert bool(found[0] > low or found[1] < high) is narrower
    assert low <= found[0] <= 0 <= found[1] <= high
    others = [(low * a, high * b) for a in (0.25, 0.5, 0.75, 1) for b in (0.25, 0.5, 0.75, 1)]
    assert cost_of(values, *found) <= 1.02 * min(cost_of(values, *other) for other in others)


def test_many_runs_give_the_same_ranges(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tensors at a time, where all of them do not fit into memory."""
    source = convert(tmp_path)
    image = [{"image": PAGE[None, None, :90, :120].astype(np.float32) / 255}]
    given = (source, lambda _: image, lambda _: (90, 120))
    whole = ranges(*given)
    monkeypatch.setattr("onnx_fcn.running.ranges.MOST_BYTES", 1000)
    assert ranges(*given) == whole
    assert {"image", "scores"} < whole.keys()
    (scores,) = law.session(onnx.load(source))(image[0])
    assert scores.min() <= whole["scores"][0] <= 0 <= whole["scores"][1] <= scores.max()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_images_with_numbers_that_are_not_finite(place: int, value: float, tmp_path: Path) -> None:
    """In calibration they would leave ranges unmeasured, and in the comparison every difference infinite."""
    source = convert(tmp_path)
    (tmp_path / "images").mkdir()
    for k in range(2):
        pixels = PAGE[:60, :70].astype(np.float32)
        pixels[30, 30] = value if k == place else 0
        np.save(tmp_path / f"images/{k}.npy", pixels)
    with pytest.raises(OptionError, match=rf"{place}.npy' contains NaN or infinities, which 8 bits do not hold: leave"):
        onnx_fcn.quantize(source, tmp_path / "images", tmp_path / "fast.onnx")
    assert not (tmp_path / "fast.onnx").exists()


def test_the_preprocessing_is_stored(images: Path, tmp_path: Path) -> None:
    """The ranges are those of this input: of another one, the commands that read the file by default would be off."""
    source, fast = convert(tmp_path), tmp_path / "fast.onnx"
    formula = Preprocessing(1 / 255, mean=(0.1,), std=(1.1,))
    for given, stored in (
        (None, None),
        ("unit", Preprocessing.named("unit")),
        (formula, replace(formula, full_scale=255)),
    ):
        onnx_fcn.quantize(source, images, fast, preprocess=given)
        assert open_converted(fast).preprocessing == stored
    onnx_fcn.apply(fast, FIXTURES / "digits_page.npy", tmp_path / "stored.npy")
    onnx_fcn.apply(fast, FIXTURES / "digits_page.npy", tmp_path / "given.npy", preprocess=formula)
    np.testing.assert_array_equal(np.load(tmp_path / "stored.npy"), np.load(tmp_path / "given.npy"))
    again = tmp_path / "again.onnx"  # what the float file says is replaced
    onnx_fcn.quantize(with_entry(source, "preprocessing", formula.to_json()), images, again, preprocess="unit")
    assert open_converted(again).preprocessing == Preprocessing.named("unit")


def test_floats_of_pictures_are_stored_as_such(tmp_path: Path) -> None:
    folder, source, fast = tmp_path / "images", convert(tmp_path), tmp_path / "fast.onnx"
    folder.mkdir()
    for k in range(2):
        np.save(folder / f"{k}.npy", PAGE[: 120 + 50 * k, 60 * k :].astype(np.float32) / 255)
    onnx_fcn.quantize(source, folder, fast, preprocess=Preprocessing(1.0))
    assert open_converted(fast).preprocessing == Preprocessing(1.0, full_scale=1)
    PIL.Image.fromarray(PAGE[:120]).save(folder / "2.png")
    with pytest.raises(OptionError, match=r"2\.png' has other numbers than the images before it: .* --preprocess"):
        onnx_fcn.quantize(source, folder, fast, preprocess=Preprocessing(1.0))


@pytest.mark.parametrize(("seconds", "said"), [((0.1, 0.04), False), ((0.1, 0.12), True)])
def test_a_file_that_is_not_faster_says_so(seconds: tuple[float, float], said: bool) -> None:
    assert ("8 bits gain nothing" in plain([_table(example(seconds=seconds))])) is said
