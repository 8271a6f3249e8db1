"""What people look at: pictures, the numbers in them, the page in a real browser, and refusals in a sentence."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import chromium
import law
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import onnx_fcn
from onnx_fcn.cli import main
from onnx_fcn.viewing.drawing import Panel, class_map, encode, heat_map

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
VIEWING = ROOT / "docs/viewing.md"
KNOWN = json.loads((FIXTURES / "digits_page.json").read_text("utf-8"))

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", folder / "out.onnx", validate=False)
    onnx_fcn.convert(FIXTURES / "digits_padded.onnx", folder / "padded.onnx", validate=False)
    onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", folder / "best.onnx", argmax=True, validate=False)
    return folder


@pytest.fixture
def command(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Run the command in a folder with models, the fixtures, and a photograph of 40×60 pixels."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    shutil.copy(FIXTURES / "digits_page.npy", tmp_path / "page.npy")
    photograph = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    PIL.Image.fromarray(photograph).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(words)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def opened(file: str) -> np.ndarray:
    with PIL.Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def bright(digit: int) -> np.ndarray:
    """The pixels within a window of a digit: (312, 454)."""
    where = np.zeros((312, 454), bool)
    for box in KNOWN:
        if box["label"] == digit:
            where[box["top"] : box["bottom"], box["left"] : box["right"]] = True
    return where


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["out.onnx", "padded.onnx"])
def test_a_heat_map_is_bright_where_the_class_is_and_dark_elsewhere(command: Command, model: str) -> None:
    assert command("heatmap", model, "page.npy", "3.npy", "3.json", "--class", "3", "-q") == (0, "", "")
    (heat,) = np.load("3.npy")
    assert heat.shape == (312, 454)
    hot = heat > 0.5
    assert bright(3)[hot].all()
    for box in KNOWN:
        inside = hot[box["top"] : box["bottom"], box["left"] : box["right"]]
        assert inside.any() == (box["label"] == 3)
    written = json.loads(Path("3.json").read_text("utf-8"))
    (entry,) = written["classes"]
    assert (entry["class"], entry["label"], len(entry["windows"])) == (3, "3", 12)
    assert written["size"] == [312, 454]
    assert written["activation"] == "softmax"
    assert entry["windows"][0]["score"] == pytest.approx(entry["peak"])


@pytest.mark.parametrize("kind", ["jpg", "pdf", "svg"])
def test_pictures_of_every_kind(command: Command, kind: str) -> None:
    code, out, err = command("heatmap", "out.onnx", "page.npy", f"heat.{kind}", "--class", "3")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"written  heat.{kind}"
    start = Path(f"heat.{kind}").read_bytes()[:200]
    assert any(mark in start for mark in (b"\xff\xd8", b"%PDF", b"<?xml"))


def test_the_picture_shows_the_heat_and_boxes(command: Command) -> None:
    """Colours of the heat and of boxes are in the picture, in the places where the class is."""
    command("heatmap", "out.onnx", "page.npy", "heat.png", "--class", "3")
    picture = opened("heat.png")
    cyan = (np.abs(picture - [0x4D, 0xE8, 0xFF]).max(axis=2) < 40).nonzero()
    scale = 1024 / 454  # 6.4 inches at 160 dpi; the picture begins at 0.15 inches, under 0.55 of titles
    x, y = (cyan[1] - 24) / scale, (cyan[0] - 88) / scale
    near = [
        np.any([abs(x - edge) < 5 for edge in (b["left"], b["right"])], axis=0)
        | np.any([abs(y - edge) < 5 for edge in (b["top"], b["bottom"])], axis=0)
        for b in KNOWN
        if b["label"] == 3
    ]
    assert len(x) > 1000
    assert np.any(near, axis=0).all()


def test_the_picture_in_the_readme_is_made_by_its_command(command: Command) -> None:
    line = next(
        ln for ln in VIEWING.read_text("utf-8").splitlines() if ln.strip().endswith("docs/heatmap.webp --class 3")
    )
    assert f"$ {line.strip()}\n" in (ROOT / "README.md").read_text("utf-8")
    Path("docs").mkdir()
    assert command(*shlex.split(line)[3:])[0] == 0
    made, shown = opened("docs/heatmap.webp"), opened(str(ROOT / "docs/heatmap.webp"))
    assert made.shape == shown.shape
    assert np.abs(made - shown).mean() < 1.5  # other versions of fonts and encoders
    assert (ROOT / "docs/heatmap.webp").stat().st_size < 100_000


def test_several_classes_side_by_side(command: Command) -> None:
    code, out, _ = command("heatmap", "out.onnx", "page.npy", "top.png", "top.npy", "--top", "3")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[3:6]] == ["class 7", "class 0", "class 5"]
    assert np.load("top.npy").shape == (3, 312, 454)
    assert command("heatmap", "out.onnx", "page.npy", "two.npy", "--class", "3", "--class", "5", "-q")[0] == 0
    assert np.load("two.npy").shape == (2, 312, 454)


def test_without_a_class_it_is_the_best_and_most_local(command: Command) -> None:
    """None of them is as sure as the digits, and everywhere: not what one looks for."""
    _, out, _ = command("heatmap", "out.onnx", "page.npy", "heat.npy")
    assert "class 7  best 1.000" in out


def test_a_class_map_has_the_classes_at_their_places(command: Command) -> None:
    code, out, _ = command("segment", "out.onnx", "page.npy", "c.png", "c.npy", "c.json", "--background", "10")
    assert code == 0
    assert "class 10  94.0% of the picture" in out
    classes = np.load("c.npy")
    assert classes.dtype == np.uint8
    for box in KNOWN:
        middle = (box["top"] + box["bottom"]) // 2, (box["left"] + box["right"]) // 2
        assert classes[middle] == box["label"]
    shares = {entry["class"]: entry["share"] for entry in json.loads(Path("c.json").read_text("utf-8"))["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert command("segment", "best.onnx", "page.npy", "best.npy", "-q")[0] == 0
    np.testing.assert_array_equal(np.load("best.npy"), classes)


def test_several_scales_show_the_best_of_each(command: Command) -> None:
    for name, scale in (("1", "1"), ("2", "1.5"), ("both", "1,1.5")):
        assert command("heatmap", "out.onnx", "page.npy", f"{name}.npy", "--class", "3", "--scale", scale, "-q")[0] == 0
    np.testing.assert_array_equal(np.load("both.npy"), np.maximum(np.load("1.npy"), np.load("2.npy")))
    _, out, _ = command("heatmap", "out.onnx", "page.npy", "both.json", "--class", "3", "--scale", "1,1.5")
    assert "read at 312×454 and 468×681" in out


def test_a_small_picture_is_enlarged_and_it_says_so(command: Command) -> None:
    np.save("small.npy", np.load("page.npy")[15:40, 13:43])
    code, out, _ = command("heatmap", "out.onnx", "small.npy", "small.png")
    assert code == 0
    assert "small.npy, 25×30 pixels, read at 28×34 (enlarged: it is smaller than a window)" in out
    assert "class 3  best" in out


def test_a_photograph_in_colours_of_any_shape(command: Command) -> None:
    for name, size, show in (
        ("tall", (30, 900), "heatmap"),
        ("wide", (2500, 40), "segment"),
        ("p", (60, 40), "heatmap"),
    ):
        with PIL.Image.open("photo.jpg") as photograph:
            photograph.resize(size).save(f"{name}.jpg")
        assert command(show, "out.onnx", f"{name}.jpg", f"{name}.png", "-q") == (0, "", "")
        width, height = PIL.Image.open(f"{name}.png").size
        assert 300 < width < 2000
        assert 150 < height < 2000


def test_names_are_shown_as_they_are(command: Command) -> None:
    """Whatever matplotlib, HTML or a script would take for something else."""
    names = [
        "$\\frac{1}$",
        "_one",
        "</script><b>two",
        "<!--three",
        "é",
        "五",
        "six" * 60,
        "seven",
        "8",
        "{{data}}",
        "none",
    ]
    Path("labels.txt").write_text("\n".join(names), "utf-8")
    assert (
        command(
            "heatmap", "out.onnx", "page.npy", "heat.png", "--class", "0", "--class", "6", "--labels", "labels.txt"
        )[0]
        == 0
    )
    assert command("segment", "out.onnx", "page.npy", "seg.png", "--labels", "labels.txt")[0] == 0
    assert command("page", "out.onnx", "page.npy", "page.html", "--labels", "labels.txt")[0] == 0
    text = Path("page.html").read_text("utf-8")
    assert "</script><b>" not in text
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data[1])["labels"] == names


def key_of(figure: Figure) -> dict[str, str]:
    """The names and shares in the key of a class map, in their order."""
    words = [text.get_text() for text in figure.texts[1:]]
    return dict(zip(words[::2], words[1::2]))


def drawn_in(figure: Figure) -> list[np.ndarray]:
    """The arrays that a class map shows."""
    return [np.asarray(image.get_array()) for image in figure.axes[0].get_images()]


def test_many_classes_share_a_colour() -> None:
    picture, classes = np.zeros((40, 50, 3), np.float32), np.arange(2000).reshape(40, 50) // 100
    figure = class_map(picture, classes, [str(k) for k in range(20)], "many", None)
    words = key_of(figure)
    assert len(words) == 13
    assert list(words.items())[-1] == ("8 others", "40.0%")
    assert encode(figure, "png").startswith(b"\x89PNG")
    bare = class_map(picture, np.zeros((40, 50), int), ["none"], "nothing", 0)
    assert not key_of(bare)


def test_the_key_fits_beside_a_flat_picture_and_its_lines_are_sorted_by_share() -> None:
    classes = np.repeat([2, 0, 3, 3, 0, 0, 9, 10, 11], 40).reshape(1, -1).repeat(6, 0)
    names = ["cat", "dog", "W" * 40, "$x^2$", *map(str, range(4, 12))]
    figure = class_map(np.zeros((6, 360, 3), np.float32), classes, names, "flat", None)
    assert list(key_of(figure)) == ["cat", "$x^2$", "W" * 23 + "…", "9", "10", "11"]
    assert list(key_of(figure).values()) == ["33.3%", "22.2%", *["11.1%"] * 4]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height
    assert all(name.x1 < share.x0 for name, share in zip(boxes[1::2], boxes[2::2]))


def test_a_class_has_the_same_colour_in_every_picture() -> None:
    """Whatever its share, and whatever else there is; after the last colour they begin anew."""
    white = np.full((4, 8, 3), 255, np.float32)
    names = [str(k) for k in range(40)]

    def colour_of(index: int, *others: int) -> tuple[float, ...]:
        classes = np.resize([index, *others], (4, 8))
        classes[0, 0] = index
        return tuple(drawn_in(class_map(white, classes, names, "t", None))[0][0, 0])

    for index in (0, 3, 7, 13, 14, 39):
        assert colour_of(index) == colour_of(index, 1, 1, 2) == colour_of(index, 4) == colour_of(index % 14)
    assert len({colour_of(index) for index in range(14)}) == 14


def test_contours_leave_the_inside_of_a_class_as_it_is() -> None:
    """Lines of one or two pixels of the drawing, on the inner side of each border; none around the background."""
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.float32)
    classes = np.zeros((30, 40), int)
    classes[8:22, 10:30] = 1
    figure = class_map(picture, classes, ["none", "square"], "t", 0, contours=True)
    shown, lines = drawn_in(figure)
    np.testing.assert_allclose(shown, picture / 255)
    factor = lines.shape[0] // 30
    assert lines.shape == (30 * factor, 40 * factor, 4)
    opaque = lines[..., 3] == 255
    inside = classes.repeat(factor, 0).repeat(factor, 1) == 1
    assert opaque[inside].any()
    assert not opaque[~inside].any()
    width = factor * 1024 / (40 * factor)  # of a fine pixel, in pixels of the drawing: 6.4 inches at 160 dpi
    row = opaque[lines.shape[0] // 2]
    thickness = row[: row.size // 2].sum() * width / factor
    assert 1 <= thickness <= 2
    assert set(map(tuple, lines[opaque][:, :3])) == {(0x56, 0xB4, 0xE9)}
    assert not lines[0, :, 3].any()  # the end of the picture is no border
    assert encode(figure, "png").startswith(b"\x89PNG")
    both = drawn_in(class_map(picture, classes, ["none", "square"], "t", None, contours=True))[1]
    assert {(0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)} == set(map(tuple, both[both[..., 3] == 255][:, :3]))


def test_a_large_picture_is_drawn_in_its_own_coordinates() -> None:
    figure = heat_map(np.zeros((4100, 100, 3), np.float32), [Panel("p", np.ones((4100, 100)), [])], "t", "s")
    (image,) = figure.axes[0].get_images()
    assert image.get_array().shape[0] == 2050
    assert tuple(image.get_extent()) == (-0.5, 99.5, 4099.5, -0.5)


# The page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium.started() as found:
        yield found


@pytest.fixture(scope="module")
def page(models: Path, browser: webdriver.Chrome) -> webdriver.Chrome:
    target = models / "page.html"
    assert main(["page", str(models / "padded.onnx"), str(FIXTURES / "digits_page.npy"), str(target), "-q"]) == 0
    browser.get(target.as_uri())
    return browser


def text(page: webdriver.Chrome, name: str) -> str:
    return page.find_element(By.ID, name).text


def answers(page: webdriver.Chrome) -> list[tuple[str, float]]:
    lines = text(page, "answers").splitlines()
    return [(name, float(score)) for name, score in zip(lines[::2], lines[1::2])]


def rectangle(page: webdriver.Chrome, kind: str) -> list[float]:
    found = page.find_element(By.CSS_SELECTOR, f"#boxes .{kind}")
    return [float(found.get_attribute(side)) for side in ("x", "y", "width", "height")]


def choose(page: webdriver.Chrome, digit: int) -> None:
    """With the keyboard, as a slider is."""
    page.find_element(By.ID, "class").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * digit)


def test_the_page_loads_nothing_and_complains_of_nothing(page: webdriver.Chrome) -> None:
    assert page.get_log("browser") == []
    asked = chromium.asked(page)
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in asked) == 1


def test_the_mouse_tells_the_answers_of_each_digit(page: webdriver.Chrome) -> None:
    stage = page.find_element(By.ID, "stage")
    scale = stage.size["width"] / 454
    grid = onnx_fcn.read_geometry(Path(page.current_url.removeprefix("file://")).with_name("padded.onnx")).grid(
        312, 454
    )
    for box in KNOWN[::24]:
        row, column = (int(k) for k in grid.cell_at(box["left"] + 14, box["top"] + 14))
        x, y = grid.pixel_of(row, column)
        at = [round((x + 0.5) * scale - stage.size["width"] / 2), round((y + 0.5) * scale - stage.size["height"] / 2)]
        ActionChains(page).move_to_element_with_offset(stage, *at).perform()
        assert text(page, "celltitle") == f"Row {row + 1} of 72, column {column + 1} of 107"
        assert answers(page)[0][0] == f"class {box['label']}"
        assert len(answers(page)) == 5
        left, top, right, bottom = grid.boxes[row, column]
        assert rectangle(page, "window") == [left, top, right - left, bottom - top]
        left, top = grid.fields[row, column, :2].clip(0)
        right, bottom = np.minimum(grid.fields[row, column, 2:], (454, 312))
        assert rectangle(page, "field") == [left, top, right - left, bottom - top]


def test_the_heat_lies_where_the_class_is(page: webdriver.Chrome) -> None:
    choose(page, 3)
    assert text(page, "classname") == "class 3"
    script = """const c = document.getElementById("heat"), p = c.getContext("2d").getImageData(0, 0, c.width, c.height);
    return [c.width, c.height, Array.from(p.data.filter((_, k) => k % 4 == 0))]"""
    width, height, red = page.execute_script(script)
    hot = np.reshape(red, (height, width)) > 200
    y, x = ((k + 0.5) * n / m for k, n, m in zip(hot.nonzero(), (312, 454), (height, width)))
    assert bright(3)[y.astype(int), x.astype(int)].all()
    for box in KNOWN:
        inside = (x > box["left"]) & (x < box["right"]) & (y > box["top"]) & (y < box["bottom"])
        assert inside.any() == (box["label"] == 3)


def test_the_keyboard_moves_and_a_screen_reader_hears_it(page: webdriver.Chrome) -> None:
    choose(page, 7)
    assert answers(page)[0] == ("class 7", pytest.approx(1, abs=0.01))  # at the best window of the class
    assert text(page, "classname") == "class 7"
    slider = page.find_element(By.ID, "class")
    assert slider.get_attribute("aria-valuetext") == "class 7"
    stage = page.find_element(By.ID, "stage")
    assert stage.get_attribute("role") == "application"
    assert stage.accessible_name == "digits_page.npy"
    assert slider.accessible_name.startswith("Class")
    stage.send_keys(Keys.HOME)
    row = text(page, "celltitle").split(",")[0]
    assert text(page, "celltitle") == f"{row}, column 1 of 107"
    stage.send_keys(Keys.ARROW_RIGHT, Keys.SHIFT + Keys.ARROW_RIGHT)
    assert text(page, "celltitle") == f"{row}, column 7 of 107"
    said = page.find_element(By.ID, "said")
    assert said.get_attribute("aria-live") == "polite"
    assert said.get_attribute("textContent").startswith(f"{row}, column 7 of 107: class ")
    page.find_element(By.ID, "best").click()
    assert answers(page)[0][0] == "class 7"
    page.find_element(By.ID, "opacity").send_keys(Keys.HOME)
    assert page.find_element(By.ID, "heat").value_of_css_property("opacity") == "0"
    assert text(page, "opacityvalue") == "0 %"


def test_all_is_reached_by_tab_and_fits_a_narrow_screen(page: webdriver.Chrome) -> None:
    page.refresh()
    reached = []
    for _ in range(4):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.switch_to.active_element.get_attribute("id"))
    assert reached == ["stage", "class", "opacity", "best"]
    metrics = {"width": 340, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 340
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_of_a_thousand_classes(command: Command, browser: webdriver.Chrome, tmp_path: Path) -> None:
    """Maps of the best only; answers, and their names, of all."""
    source = law.model(
        "m = Conv <strides = [4, 4]> (x, k)  r = Relu (m)  f = Flatten (r)  y = MatMul (f, w)",
        image="float[N,3,16,16] x",
        k=(5, 3, 4, 4),
        w=(80, 1000),
    )
    onnx_fcn.convert(source, validate=False).save("large.onnx")
    assert command("page", "large.onnx", "photo.jpg", "large.html", "--class", "777")[0] == 0
    browser.get((tmp_path / "large.html").as_uri())
    assert browser.get_log("browser") == []
    assert text(browser, "classname") == "class 777"
    assert browser.find_element(By.ID, "class").get_attribute("max") == "63"
    result = onnx_fcn.DenseModel("large.onnx").run("photo.jpg")
    browser.find_element(By.ID, "stage").send_keys(Keys.HOME, *[Keys.ARROW_UP] * 20)
    classes, scores = result.top(5)
    assert answers(browser) == [
        (f"class {k}", pytest.approx(s, abs=1e-3)) for k, s in zip(classes[:, 0, 0], scores[:, 0, 0])
    ]


# What is said ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence_and_an_exit_code(command: Command, tmp_path: Path) -> None:
    Path("text.png").write_text("no picture")
    Path("text.npy").write_text("no array")
    Path("empty.npy").write_bytes(b"")
    Path("folder").mkdir()
    Path("cut.jpg").write_bytes(Path("photo.jpg").read_bytes()[:700])
    np.save("five.npy", np.zeros((40, 40, 5), np.uint8))
    before = sorted(p.name for p in tmp_path.iterdir())
    for code, words, sentence in (
        (1, "heatmap fixtures/digits_padded.onnx page.npy o.png", "onnx_fcn did not convert it"),
        (1, "heatmap none.onnx page.npy o.png", "'none.onnx' does not exist"),
        (1, "page page.npy page.npy o.html", "is not an ONNX model"),
        (2, "heatmap out.onnx none.jpg o.png", "'none.jpg' does not exist"),
        (2, "heatmap out.onnx folder o.png", "'folder' is a folder, but not a zarr store"),
        (2, "heatmap out.onnx text.png o.png", "'text.png' is not an image: TIFF, PNG, JPEG"),
        (
            2,
            "heatmap out.onnx cut.jpg o.png",
            "'cut.jpg' cannot be read as an image: it is damaged, cut short, or in an unknown format",
        ),
        (2, "heatmap out.onnx text.npy o.png", "'text.npy' is not an image: TIFF, PNG, JPEG"),
        (2, "heatmap out.onnx empty.npy o.png", "'empty.npy' is not an image: TIFF, PNG, JPEG"),
        (
            2,
            "heatmap out.onnx five.npy o.png",
            "'five.npy' has the shape (40, 40, 5), and the model takes images with",
        ),
        (2, "heatmap out.onnx page.npy o.gif", "cannot write 'o.gif': its suffix must be one of"),
        (2, "page out.onnx page.npy o.png", "one of .html, .htm"),
        (2, "heatmap out.onnx page.npy no/o.png", "cannot write 'no/o.png': there is no directory 'no'"),
        (2, "segment out.onnx page.npy page.npy", "cannot write 'page.npy': it is an input"),
        (2, "heatmap out.onnx page.npy o.png --class seven", "there is no class 'seven' among the 11"),
        (2, "segment out.onnx page.npy o.png --background 11", "there is no class '11' among the 11"),
        (2, "heatmap best.onnx page.npy o.png", "gives the best class only"),
        (2, "heatmap out.onnx page.npy o.png --output x", "the outputs with one are 'scores'"),
        (
            2,
            "heatmap out.onnx page.npy o.png --mean 1,2,3",
            "the mean (1, 2, 3) is for 3 channels, and the network reads 1: give --mean",
        ),
        (2, "heatmap out.onnx page.npy o.png --std 0", "neither scale nor std is zero"),
        (2, "heatmap out.onnx page.npy o.png --scale 0", "a scale is a positive number, not 0"),
        (2, "segment out.onnx page.npy o.png --scale 1,2", "a class map has one size: give one --scale"),
        (2, "page out.onnx page.npy o.html --scale 1,2", "a page has one size: give one --scale"),
        (2, "heatmap out.onnx page.npy o.png --top 0", "'0' is not an integer of at least 1"),
        (2, "heatmap out.onnx page.npy o.png --scale many", "'many' is not a number"),
    ):
        result = command(*words.split())
        assert (result[0], result[1]) == (code, ""), words
        assert sentence in result[2], words
        assert "Traceback" not in result[2]
        if "usage:" not in result[2]:
            assert result[2].startswith("error: ")
            assert result[2].count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_full_disk_leaves_no_file_behind(command: Command, tmp_path: Path) -> None:
    """In a process that may write files of 20 kB only: none of the outputs is there, the small one neither."""
    before = sorted(p.name for p in tmp_path.iterdir())
    limited = "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from onnx_fcn.cli import main; sys.exit(main())"
    words = ["segment", "out.onnx", "page.npy", "classes.json", "classes.npy"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", limited, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write 'classes.npy': file too large\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_scores_that_are_no_numbers(command: Command) -> None:
    source = law.model(
        "m = Conv (x, k)  f = Flatten (m)  d = MatMul (f, w)  y = Log (d)",
        image="float[N,1,6,6] x",
        k=(5, 1, 3, 3),
        w=(80, 4),
    )
    onnx_fcn.convert(source, validate=False).save("log.onnx")
    code, _, err = command("heatmap", "log.onnx", "photo.jpg", "o.png")
    assert code == 2
    assert "the network's scores are not all finite" in err


def test_single_scores_and_numbers_of_classes(command: Command) -> None:
    """A class map of one score has two sides, one of numbers has those classes; neither takes these for scores."""
    body = "m = Conv (x, k)  f = Flatten (m)  l = MatMul (f, w)  {}"
    shapes = {"k": (5, 3, 3, 3), "w": (80, 1)}
    single = law.model(body.format("y = Sigmoid (l)"), image="float[N,3,6,6] x", **shapes)
    onnx_fcn.convert(single, validate=False).save("single.onnx")
    code, out, _ = command(
        "segment", "single.onnx", "photo.jpg", "s.npy", "s.json", "s.png", "--background", "below 0.5"
    )
    assert code == 0
    assert {line.split("  ")[0] for line in out.splitlines()[3:5]} == {"below 0.5", "from 0.5 on"}
    shares = {entry["class"]: entry["share"] for entry in json.loads(Path("s.json").read_text("utf-8"))["classes"]}
    assert shares == {k: pytest.approx((np.load("s.npy") == k).mean()) for k in (0, 1)}
    assert 0.02 < shares[1] < 0.98
    last = "y = ArgMax <axis = 1> (l)"
    numbers = law.model(
        body.format(last), image="float[N,3,6,6] x", outputs="int64[N,1] y", opset=13, **{**shapes, "w": (80, 4)}
    )
    onnx_fcn.convert(numbers, validate=False).save("numbers.onnx")
    assert command("segment", "numbers.onnx", "photo.jpg", "n.npy", "n.png", "-q") == (0, "", "")
    result = onnx_fcn.DenseModel("numbers.onnx").run("photo.jpg")
    np.testing.assert_array_equal(np.load("n.npy"), result.classes_at_pixels())
    for name in ("heatmap", "page"):
        code, _, err = command(name, "numbers.onnx", "photo.jpg", "o.html" if name == "page" else "o.png")
        assert (code, Path("o.png").exists()) == (2, False)
        assert "gives the best class only, without scores" in err


def test_scores_below_zero(command: Command) -> None:
    body = "m = Conv (x, k)  f = Flatten (m)  l = MatMul (f, w)  y = LogSoftmax <axis = 1> (l)"
    source = law.model(body, image="float[N,3,6,6] x", opset=13, k=(5, 3, 3, 3), w=(80, 4))
    onnx_fcn.convert(source, validate=False).save("log.onnx")
    for words in ([], ["--class", "2"]):
        code, out, _ = command("heatmap", "log.onnx", "photo.jpg", "o.png", "o.npy", "--activation", "none", *words)
        assert code == 0
        assert re.search(r"best -\d", out)
        assert np.load("o.npy").max() < 0


@pytest.mark.parametrize("package", ["PIL", "matplotlib"])
def test_a_missing_extra_is_named(command: Command, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    for words in (
        "heatmap out.onnx photo.jpg o.png",
        "segment out.onnx photo.jpg o.png",
        "page out.onnx photo.jpg o.html",
    ):
        code, _, err = command(*words.split())
        assert code == 2
        assert err.endswith("is not installed: pip install 'onnx-fcn[view]'\n")


def test_help_lists_the_commands(command: Command) -> None:
    _, out, _ = command("--help")
    for name in ("heatmap", "segment", "page"):
        assert f"  {name} out.onnx photo.jpg" in out
        code, about, _ = command(name, "--help")
        assert code == 0
        assert f"usage: onnx-fcn {name}" in about
        assert ("--class" in about) == (name != "segment")


def test_a_model_of_such_a_name_is_a_model(command: Command) -> None:
    shutil.copy(FIXTURES / "digits_padded.onnx", "page")
    code, out, _ = command("./page")
    assert code == 0
    assert "Conv 7×7, 20 → 64" in out


# The documentation ----------------------------------------------------------------------------------------------------


def test_the_documentation_is_executed(command: Command) -> None:
    tried = doctest.testfile(str(VIEWING), module_relative=False, encoding="utf-8")
    assert tried.failed == 0
    assert tried.attempted >= 8
    shown = re.findall(r"^```console\n\$ python -m onnx_fcn (.*?)\n(.*?)^```", VIEWING.read_text("utf-8"), re.M | re.S)
    assert shown
    for line, output in shown:
        assert command(*shlex.split(line)) == (0, output, "")


def test_the_documentation_names_every_option(command: Command) -> None:
    words: set[str] = set()
    for name in ("heatmap", "segment", "page"):
        words |= set(re.findall(r"--[a-z-]+", command(name, "--help")[1]))
    documented = VIEWING.read_text("utf-8")
    assert {w for w in words if f"`{w}" not in documented} <= {"--help", "--quiet"}
