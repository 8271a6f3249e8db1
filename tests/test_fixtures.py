"""The fixtures are what fixtures/README.md says they are."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures"
CLASSIFIERS = ["digits_unpadded.onnx", "digits_padded.onnx"]

spec = importlib.util.spec_from_file_location("make_fixtures", FIXTURES / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def stated(name: str) -> list[tuple[int, int]]:
    """The row of the README's table: (right, asked) for digits, none, boxes of the page."""
    row = re.search(rf"^\| `{name}` (.*\d of \d.*)$", (FIXTURES / "README.md").read_text(), re.MULTILINE)
    return [(int(right), int(asked)) for right, asked in re.findall(r"(\d+) of (\d+)", row[1])]


def assert_states(name: str, column: int, right: np.ndarray) -> None:
    hits, asked = stated(name)[column]
    assert asked == len(right)
    # Another processor sums in another order, and may tip one digit that was in the balance.
    assert right.sum() == pytest.approx(hits, abs=1)


@pytest.fixture(scope="module")
def page() -> np.ndarray:
    return np.load(FIXTURES / "digits_page.npy")


@pytest.fixture(scope="module")
def boxes() -> list[dict[str, int]]:
    return json.loads((FIXTURES / "digits_page.json").read_text())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_held_out_digits_and_paper_are_told_as_stated(name):
    images, classes = make.exam()
    right = make.answers(FIXTURES / name, images) == classes
    assert_states(name, 0, right[classes != make.NONE])
    assert_states(name, 1, right[classes == make.NONE])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_boxes_of_the_page_hold_the_digits_they_claim(name, page, boxes):
    crops = np.stack([page[box["top"] : box["bottom"], box["left"] : box["right"]] for box in boxes])
    answers = make.answers(FIXTURES / name, crops[:, None].astype(np.float32) / 255)
    assert_states(name, 2, answers == [box["label"] for box in boxes])


def test_the_page_reads_pi(page, boxes):
    assert "".join(str(box["label"]) for box in boxes) == make.PI
    assert (page.dtype, page.shape) == (np.uint8, (312, 454))


def test_the_page_is_the_one_that_the_script_makes(page, boxes):
    again, windows = make.page_of_pi()
    np.testing.assert_array_equal(windows, [(box["left"], box["top"]) for box in boxes])
    np.testing.assert_allclose(again, page, rtol=0, atol=1)  # one level of grey: rounding after the enlargement


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_only_the_padded_classifier_pads(name):
    convolutions = [node for node in onnx.load(FIXTURES / name).graph.node if node.op_type == "Conv"]
    pads = [list(attribute.ints) for node in convolutions for attribute in node.attribute if attribute.name == "pads"]
    assert pads == [[2, 2, 2, 2] if name == "digits_padded.onnx" else [0, 0, 0, 0]] * 2


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("digits_*")), ids=lambda file: file.name)
def test_files_are_small_and_tell_nothing_of_the_machine_that_made_them(file):
    content = file.read_bytes()
    assert len(content) < 300_000
    assert b'File "' not in content  # of a stack trace, as dynamo's exporter keeps them
