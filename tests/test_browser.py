"""docs/browser.html in a real browser: onnxruntime-web answers there as onnxruntime does here, and the page shows it.

It is skipped without Chromium and its driver, and without onnxruntime-web, which npm installs beside this repository's
README.md, or elsewhere:

    npm install --no-save onnxruntime-web@1.30 && pytest -m slow tests/test_browser.py
    ONNXRUNTIME_WEB=…/node_modules/onnxruntime-web pytest -m slow tests/test_browser.py
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.interaction import POINTER_MOUSE, POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import onnx_fcn

pytestmark = pytest.mark.slow

Array = np.ndarray

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
KNOWN = json.loads((FIXTURES / "digits_page.json").read_text("utf-8"))
PAGE = np.load(FIXTURES / "digits_page.npy")

#: Relative to the largest answer: the kernels for WebAssembly sum in another order.
ROUNDING = 1e-4

#: The class of the digits models for what is no digit.
NONE = 10

#: Digits as strokes in a drawing of 256×128 pixels, and the middle of each.
STROKES = {
    "1": ([(20, 24), (26, 18), (26, 38)], (24, 28)),
    "3": ([(142, 20), (148, 18), (154, 22), (148, 28), (154, 33), (148, 38), (142, 36)], (148, 28)),
    "2": ([(182, 22), (188, 18), (194, 22), (190, 29), (182, 37), (196, 37)], (189, 28)),
    "6": ([(70, 78), (62, 84), (61, 94), (67, 98), (73, 94), (70, 89), (62, 92)], (67, 88)),
}


# The page, served -----------------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docs/deploying.md makes, with more models."""
    runtime = Path(os.environ.get("ONNXRUNTIME_WEB", ROOT / "node_modules/onnxruntime-web")).absolute()
    if not runtime.is_dir():
        pytest.skip(f"onnxruntime-web is not in {runtime}: install it by npm, and set ONNXRUNTIME_WEB to its folder")
    folder = tmp_path_factory.mktemp("web")
    (folder / "node_modules").mkdir()
    (folder / "node_modules/onnxruntime-web").symlink_to(runtime, target_is_directory=True)
    shutil.copy(ROOT / "docs/browser.html", folder)
    unpadded = FIXTURES / "digits_unpadded.onnx"
    onnx_fcn.convert(unpadded, folder / "out.onnx", validate=False)
    onnx_fcn.convert(unpadded, folder / "best.onnx", argmax=True, validate=False)
    onnx_fcn.convert(FIXTURES / "digits_padded.onnx", folder / "padded.onnx", validate=False)
    onnx_fcn.fit(unpadded, FIXTURES / "digits_page.npy", FIXTURES / "digits_clicks.csv").save(folder / "parity.onnx")
    shutil.copy(unpadded, folder / "original.onnx")
    PIL.Image.fromarray(PAGE).save(folder / "page.png")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def started() -> Iterator[webdriver.Chrome]:
    with chromium.started() as found:
        yield found


@pytest.fixture
def browser(started: webdriver.Chrome) -> webdriver.Chrome:
    """With empty logs."""
    started.get("about:blank")
    for log in ("browser", "performance"):
        started.get_log(log)
    return started


def opened(browser: webdriver.Chrome, address: str, query: str = "") -> webdriver.Chrome:
    browser.get(f"{address}browser.html{query}")
    return answered(browser)


def answered(page: webdriver.Chrome) -> webdriver.Chrome:
    """The page, after it has shown the answers for its drawing as it is."""
    stage = page.find_element(By.ID, "stage")
    WebDriverWait(page, 60).until(
        lambda _: stage.get_attribute("aria-busy") == "false" or text(page, "said").startswith("Error")
    )
    return page


def load(page: webdriver.Chrome, picture: Path) -> webdriver.Chrome:
    """Open a picture in the page."""
    with PIL.Image.open(picture) as image:
        width, height = image.size
    page.find_element(By.ID, "picture").send_keys(str(picture))
    drawing = page.find_element(By.ID, "drawing")
    WebDriverWait(page, 60).until(lambda _: size(drawing) == (height, width))
    return answered(page)


def size(drawing: Any) -> tuple[int, int]:
    return int(drawing.get_attribute("height")), int(drawing.get_attribute("width"))


def text(page: webdriver.Chrome, name: str) -> str:
    return page.find_element(By.ID, name).text


def drawn(page: webdriver.Chrome) -> Array:
    """The pixels of the drawing: (height, width)."""
    height, width, red = page.execute_script(
        """const c = document.getElementById("drawing"), p = c.getContext("2d").getImageData(0, 0, c.width, c.height);
        return [c.height, c.width, Array.from(p.data.filter((_, k) => k % 4 == 0))]"""
    )
    return np.reshape(red, (height, width)).astype(np.uint8)


def scores(page: webdriver.Chrome) -> Array:
    """What onnxruntime-web gave for the drawing."""
    shape, values = page.execute_script("const {scores} = answered; return [scores.dims, Array.from(scores.data)]")
    return np.reshape(values, shape)


def boxes(page: webdriver.Chrome) -> list[tuple[str, float, float]]:
    """What the page found: the name in each box, and the box's left and top."""
    windows, names = page.execute_script(
        """const all = kind => [...document.querySelectorAll(`#boxes ${kind}`)];
        const places = (marks, ...keys) => marks.map(m => keys.map(k => Number(m.getAttribute(k))));
        return [places(all(".window"), "x", "y", "width", "height"),
                all("text").map((t, k) => [t.textContent, ...places(all("text"), "x", "y")[k]])]"""
    )
    found = []
    for left, top, width, height in windows:
        (name,) = [n for n, x, y in names if 0 < x - left < 4 and 0 < y - top < 12]  # in the corner
        assert (width, height) == (28, 28)
        found.append((name, left, top))
    assert len(names) == len(found)
    return found


def expected(model: Path, pixels: Array) -> Array:
    """What onnxruntime gives: (1, classes, rows, columns)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": pixels[None, None] / np.float32(255)})
    return np.asarray(found)


def sure(scores: Array, least: float) -> int:
    """The number of cells that are a digit, as likely as that."""
    shares = np.exp(scores[0] - scores[0].max(axis=0))
    shares /= shares.sum(axis=0)
    return int(((shares.argmax(axis=0) != NONE) & (shares.max(axis=0) >= least)).sum())


def agree(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    assert np.abs(want).max() > 1
    assert np.abs(got - want).max() <= ROUNDING * np.abs(want).max()


# What it answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["out.onnx", "padded.onnx"])
def test_a_picture_is_answered_as_onnxruntime_does(
    browser: webdriver.Chrome, address: str, folder: Path, model: str
) -> None:
    page = load(opened(browser, address, f"?model={model}"), folder / "page.png")
    np.testing.assert_array_equal(drawn(page), PAGE)
    want = expected(folder / model, PAGE)
    agree(scores(page), want)
    assert text(page, "said").startswith("96 found; 72×107 answers for 312×454 pixels in ")
    labels = [str(box["label"]) for box in KNOWN]
    assert text(page, "read").splitlines() == [" ".join(labels[k : k + 12]) for k in range(0, 96, 12)]

    found = boxes(page)
    assert len(found) == 96
    for box in KNOWN:  # answers are 4 pixels apart
        near = [name for name, x, y in found if max(abs(x - box["left"]), abs(y - box["top"])) <= 4]
        assert near == [str(box["label"])]

    threshold = page.find_element(By.ID, "threshold")
    for keys, least in (("", "0.50"), (Keys.END, "0.95"), (Keys.HOME, "0.05")):
        threshold.send_keys(keys)
        assert text(page, "least") == least
        cells = len(page.find_elements(By.CSS_SELECTOR, "#boxes .cell"))
        assert cells == pytest.approx(sure(want, float(least)), abs=1)  # one may be in the balance
    assert sure(want, 0.05) > sure(want, 0.95) + 100


@pytest.mark.parametrize("kind", [POINTER_MOUSE, POINTER_TOUCH])
def test_strokes_are_answered_as_onnxruntime_does(
    browser: webdriver.Chrome, address: str, folder: Path, kind: str
) -> None:
    page = opened(browser, address)
    drawing = page.find_element(By.ID, "drawing")
    assert size(drawing) == (128, 256)
    assert drawn(page).max() == 0
    assert text(page, "said").startswith("0 found; 26×58 answers for 128×256 pixels in ")
    scale = drawing.size["width"] / 256
    before = drawn(page)
    for name, (points, _) in STROKES.items():
        actions = ActionChains(page, duration=0, devices=[PointerInput(kind, kind)])
        for k, (x, y) in enumerate(points):
            actions.move_to_element_with_offset(drawing, round((x - 128) * scale), round((y - 64) * scale))
            if k == 0:
                actions.click_and_hold()
        actions.release().perform()
        pixels = drawn(answered(page))
        assert all(pixels[y, x] == 255 for x, y in points)
        assert 80 < ((pixels > 127) & (before <= 127)).sum() < 400, name
        before = pixels
        agree(scores(page), expected(folder / "out.onnx", pixels))

    assert text(page, "read") == "1 3 2\n6"
    found = boxes(page)
    assert len(found) == len(STROKES)
    for name, (_, (x, y)) in STROKES.items():
        (place,) = [(left + 14, top + 14) for label, left, top in found if label == name]
        assert np.abs(np.subtract(place, (x, y))).max() <= 6

    page.find_element(By.ID, "clear").click()
    assert drawn(answered(page)).max() == 0
    assert text(page, "read") == ""
    assert boxes(page) == []


def test_a_small_picture_in_colour_lies_on_black_paper(browser: webdriver.Chrome, address: str, folder: Path) -> None:
    """At least one window; its grey is that of Pillow."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(picture).save(folder / "small.png")
    page = opened(browser, address)
    page.find_element(By.ID, "picture").send_keys(str(folder / "small.png"))
    drawing = page.find_element(By.ID, "drawing")
    WebDriverWait(page, 60).until(lambda _: size(drawing) == (28, 40))
    pixels = np.zeros((28, 40))
    pixels[:20] = picture @ (0.299, 0.587, 0.114)
    agree(scores(answered(page)), expected(folder / "out.onnx", pixels.astype(np.float32)))


def test_the_input_is_what_the_file_says(browser: webdriver.Chrome, address: str, folder: Path) -> None:
    model = onnx.load(folder / "out.onnx")
    said = onnx_fcn.Preprocessing(scale=1 / 255, mean=0.5, std=0.25).to_json()
    model.metadata_props.add(key="onnx_fcn.preprocessing", value=json.dumps(said))
    onnx.save(model, folder / "centred.onnx")
    page = load(opened(browser, address, "?model=centred.onnx"), folder / "page.png")
    agree(scores(page), onnx_fcn.DenseModel(folder / "centred.onnx").run(PAGE).map[None])
    assert np.abs(scores(page) - expected(folder / "centred.onnx", PAGE)).max() > 1


def test_names_of_classes_are_those_in_the_file(browser: webdriver.Chrome, address: str, folder: Path) -> None:
    page = load(opened(browser, address, "?model=parity.onnx&background=none"), folder / "page.png")
    agree(scores(page), expected(folder / "parity.onnx", PAGE))
    want = [("even", "odd")[box["label"] % 2] for box in KNOWN]
    read = text(page, "read").split()
    assert set(read) == {"even", "odd"}
    assert len(read) == 96
    assert sum(a == b for a, b in zip(read, want)) >= 90  # 93, from about twenty examples of each


# What it asks for, and says -------------------------------------------------------------------------------------------


def test_it_asks_its_own_server_only_and_complains_of_nothing(
    browser: webdriver.Chrome, address: str, folder: Path
) -> None:
    load(opened(browser, address), folder / "page.png")
    assert browser.get_log("browser") == []
    urls = [url for url in chromium.asked(browser) if not url.startswith(("about:", "data:", "blob:"))]
    assert all(url.startswith(address) for url in urls)
    runtime = "node_modules/onnxruntime-web/dist/"
    assert {url.removeprefix(address) for url in urls} == {
        "browser.html",
        "out.onnx",
        f"{runtime}ort.wasm.bundle.min.mjs",
        f"{runtime}ort-wasm-simd-threaded.wasm",
    }


def test_it_fits_a_narrow_screen_in_light_and_dark(browser: webdriver.Chrome, address: str) -> None:
    metrics = {"width": 340, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page = opened(browser, address)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 340
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            colours = page.execute_script(
                "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
            )
            ink, ground = (sum(map(int, c.removeprefix("rgb(").removesuffix(")").split(","))) / 3 for c in colours)
            assert (ground - ink if scheme == "light" else ink - ground) > 150
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_two_files_of_the_package_suffice(browser: webdriver.Chrome, address: str, folder: Path) -> None:
    published = folder / "published"
    published.mkdir()
    page = (folder / "browser.html").read_text("utf-8")
    beside = page.replace('RUNTIME = "./node_modules/onnxruntime-web/dist/', 'RUNTIME = "./')
    assert beside != page
    (published / "browser.html").write_text(beside, "utf-8")
    shutil.copy(folder / "out.onnx", published)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(folder / "node_modules/onnxruntime-web/dist" / name, published)
    assert text(opened(browser, f"{address}published/"), "said").startswith("0 found; 26×58 answers")
    assert {url for url in chromium.asked(browser) if "ort" in url.rpartition("/")[2]} == {
        f"{address}published/ort.wasm.bundle.min.mjs",
        f"{address}published/ort-wasm-simd-threaded.wasm",
    }


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?model=none.onnx", "none.onnx is not there: convert a model"),
        ("?model=original.onnx", "original.onnx does not say where its answers are: convert it with onnx_fcn"),
        ("?model=best.onnx", "this page needs a map of scores in NCHW, and best.onnx gives"),
        ("?model=browser.html", "browser.html does not say where its answers are"),
    ],
)
def test_what_it_cannot_use_is_said(browser: webdriver.Chrome, address: str, query: str, sentence: str) -> None:
    page = opened(browser, address, query)
    assert text(page, "said").startswith(f"Error: {sentence}")


def test_a_missing_runtime_is_said(browser: webdriver.Chrome, folder: Path) -> None:
    browser.get((folder / "browser.html").as_uri())  # a file, from which browsers load no modules
    assert "npm install onnxruntime-web" in text(answered(browser), "said")
