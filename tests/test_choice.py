"""Classes, and the pixels that are drawn: which, how many, and why some labels are refused."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_fcn import OptionError
from onnx_fcn._types import Array
from onnx_fcn.fitting.choice import _keys, census, draw
from onnx_fcn.fitting.classes import Classes, classes_of
from onnx_fcn.fitting.codes import Labels, blocks
from onnx_fcn.fitting.labels import Labelled, open_labels

SIZE = (40, 60)
CODES = np.random.default_rng(0).choice([-1, 3, 5, 9], SIZE, p=[0.3, 0.5, 0.19, 0.01]).astype(np.int32)
CLASSES = Classes((3, 5, 9), ("a", "b", "c"))


class Known(Labels):
    """Labels in memory; the file is closed after it was read."""

    def __init__(
        self,
        codes: np.ndarray = CODES,
        names: dict[int, str] | None = None,
        ignored: int | None = None,
        name: str = "m.png",
    ) -> None:
        self.name, self.image, self.codes, self.ignored = f"'{name}'", "'image.png'", names or {}, ignored
        self._codes, self.closed = codes, False

    def check(self, size: Sequence[int]) -> tuple[str, ...]:
        return ()

    def boxes(self, size: Sequence[int], block: int) -> Iterator[tuple[slice, ...]]:
        return blocks(size, block)

    def read(self, box: tuple[slice, ...]) -> Array:
        part: Array = self._codes[box]
        return part

    def close(self) -> None:
        self.closed = True


class Endless(Known):
    """Labels of a large image, made by the block."""

    def read(self, box: tuple[slice, ...]) -> Array:
        rows, columns = np.ogrid[box]
        return ((rows * 7 + columns) % 3).astype(np.int32)


def one(number: int = 0, **how: Any) -> Labelled:
    return Labelled("image.png", "'image.png'", Known(**how), number)


# The draw -------------------------------------------------------------------------------------------------------------


def test_a_census_counts_codes() -> None:
    labelled = one()
    assert census(labelled, SIZE, 7) == census(labelled, SIZE) == {c: np.sum(c == CODES) for c in (3, 5, 9)}
    assert isinstance(labelled.labels, Known)
    assert labelled.labels.closed
    assert census(one(codes=np.full(SIZE, -1)), SIZE) == {}
    assert census(one(codes=CODES + 10**9 * (CODES == 9)), SIZE) == {
        3: int((CODES == 3).sum()), 5: int((CODES == 5).sum()), 10**9 + 9: int((CODES == 9).sum())
    }  # fmt: skip


def test_an_image_is_no_mask() -> None:
    codes = np.arange(10_000, dtype=np.int32).reshape(100, 100)
    says = r"'m.png' has more than 4096 different values: it is an image, or it numbers objects, and not classes$"
    with pytest.raises(OptionError, match=says):
        census(one(codes=codes), (100, 100), 10)
    assert len(census(one(codes=codes % 4096), (100, 100), 10)) == 4096


def test_a_draw_has_labelled_pixels_of_each_class_in_order() -> None:
    chosen = draw(one(), SIZE, CLASSES, 100, 0)
    assert chosen.positions.dtype == np.int64
    assert chosen.positions.shape == (200 + (CODES == 9).sum(), 2)
    np.testing.assert_array_equal(np.array(CLASSES.codes)[chosen.classes], CODES[tuple(chosen.positions.T)])
    np.testing.assert_array_equal(np.bincount(chosen.classes), [100, 100, (CODES == 9).sum()])
    np.testing.assert_array_equal(chosen.counts, [np.sum(code == CODES) for code in CLASSES.codes])
    flat = np.ravel_multi_index(tuple(chosen.positions.T), SIZE)
    assert (np.diff(flat) > 0).all()


def test_classes_may_be_in_any_order() -> None:
    chosen = draw(one(), SIZE, Classes((9, 3, 5), ("c", "a", "b")), 20, 0)
    np.testing.assert_array_equal(np.array([9, 3, 5])[chosen.classes], CODES[tuple(chosen.positions.T)])


def test_nothing_is_drawn_from_an_image_without_labels() -> None:
    chosen = draw(one(codes=np.full(SIZE, -1)), SIZE, CLASSES, 20, 0)
    assert (chosen.positions.shape, chosen.classes.shape, chosen.counts.tolist()) == ((0, 2), (0,), [0, 0, 0])


@pytest.mark.parametrize("shape", [(2400,), SIZE, (10, 12, 20)])
def test_blocks_do_not_matter_and_seeds_and_images_do(shape: tuple[int, ...]) -> None:
    codes = CODES.reshape(shape)
    first = draw(one(codes=codes), shape, CLASSES, 30, 5)
    for block in (1, 3, 16, 1000):
        again = draw(one(codes=codes), shape, CLASSES, 30, 5, block)
        np.testing.assert_array_equal(again.positions, first.positions)
        np.testing.assert_array_equal(again.classes, first.classes)
        np.testing.assert_array_equal(again.counts, first.counts)
    for other in (draw(one(codes=codes), shape, CLASSES, 30, 6), draw(one(1, codes=codes), shape, CLASSES, 30, 5)):
        shared = {*map(tuple, first.positions)} & {*map(tuple, other.positions)}
        assert len(shared) < 45


def test_a_larger_sample_contains_a_smaller_one() -> None:
    small, large = (draw(one(), SIZE, CLASSES, n, 0) for n in (10, 50))
    assert {*map(tuple, small.positions)} < {*map(tuple, large.positions)}


def test_every_pixel_is_drawn_equally_often() -> None:
    """Over seeds: single pixels, and neighbours together, as often as chance has it (χ² within 5 deviations)."""
    codes, size, draws = np.zeros((8, 8), np.int32), (8, 8), 3000
    classes = Classes((0,), ("a",))
    found, pairs = np.zeros(64), 0
    for seed in range(draws):
        flat = np.ravel_multi_index(tuple(draw(one(codes=codes), size, classes, 16, seed).positions.T), size)
        found[flat] += 1
        pairs += int((np.diff(flat) == 1).sum())
    share = 16 / 64
    expected = draws * share
    chi = ((found - expected) ** 2 / (expected * (1 - share))).sum()  # 63 degrees of freedom
    assert abs(chi - 63) < 5 * math.sqrt(2 * 63)
    both = 63 * share * 15 / 63  # neighbours among 64 in a row that are both drawn
    assert abs(pairs / draws - both) < 5 * math.sqrt(both / draws)


def test_keys_are_those_of_splitmix64() -> None:
    """The published numbers of the state 1234567."""
    keys = _keys(np.arange(5), np.array([1234567], np.uint64)).tolist()
    assert keys == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def test_memory_does_not_grow_with_the_image() -> None:
    peaks = []
    for edge in (256, 1024):
        tracemalloc.start()
        chosen = draw(Labelled("", "", Endless()), (edge, edge), Classes((0, 1, 2), ("a", "b", "c")), 50, 0, 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert chosen.counts.sum() == edge * edge
        assert len(chosen.positions) == 150
    assert peaks[1] < 1.2 * peaks[0]


def test_blocks_have_as_many_pixels_whatever_the_axes() -> None:
    for shape in ((2**23,), (3000, 3000), (300, 300, 300)):
        seen = Counter[int]()

        class Watched(Endless):
            def read(self, box: tuple[slice, ...]) -> Array:
                seen[math.prod(part.stop - part.start for part in box)] += 1  # noqa: B023
                return np.zeros((1,) * len(box), np.int32)

        census(Labelled("", "", Watched()), shape)
        assert 2**21 < max(seen) <= 2**22


def test_blocks_are_a_grid_over_the_image() -> None:
    assert list(blocks((5, 4), 3)) == [
        (slice(i, j), slice(k, n)) for i, j in ((0, 3), (3, 5)) for k, n in ((0, 3), (3, 4))
    ]
    assert list(blocks((2,), 3)) == [(slice(0, 2),)]


def test_labels_that_change_are_noticed() -> None:
    with pytest.raises(OptionError, match=r"'m.png' has changed: it did not have the class 9$"):
        draw(one(), SIZE, Classes((3, 5), ("a", "b")), 10, 0)


def test_more_pixels_than_numbers() -> None:
    with pytest.raises(OptionError, match=r"'image.png' has too many pixels to choose from$"):
        draw(one(), (2**40, 2**40), CLASSES, 10, 0)


# Classes --------------------------------------------------------------------------------------------------------------


def found(
    counts: dict[int, int], names: Sequence[str] = (), own: dict[int, str] | None = None, ignored: int | None = None
) -> Classes:
    return classes_of(
        [{}, counts], [one(names=own, ignored=ignored, name="k.png"), one(names=own, ignored=ignored)], names
    )


def test_classes_are_the_codes_that_occur() -> None:
    assert found({7: 1, 2: 5, 4: 0}) == Classes((2, 7), ("2", "7"))
    assert len(found({7: 1, 2: 5})) == 2
    assert found({1: 1, 0: 5}, own={0: "air", 1: "ink", 2: "x"}) == Classes((0, 1), ("air", "ink"))
    assert classes_of([{3: 1}, {1: 2, 3: 4}], [one(), one()]) == Classes((1, 3), ("1", "3"))


def test_named_classes() -> None:
    assert found({0: 1, 1: 5}, ["paper", "ink"]) == Classes((0, 1), ("paper", "ink"))
    assert found({0: 1, 1: 5}, ["ink", "air"], {0: "air", 1: "ink"}) == Classes((1, 0), ("ink", "air"))


OWN = {0: "air", 1: "ink", 2: "paper"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing in masks": ({"counts": {}, "ignored": 255}, "no pixel has a label: --ignore 255 leaves all out$"),
    "nothing in masks, all counted": ({"counts": {}}, "no pixel has a label: no shape contains the centre of a pixel$"),
    "one class": (
        {"counts": {3: 8}, "ignored": 255},
        "all labelled pixels are '3': two classes are needed, and 255 stands for no label: --ignore none makes it a "
        "class$",
    ),
    "one class of shapes": ({"counts": {1: 8}, "own": OWN}, "all labelled pixels are 'ink': two classes are needed$"),
    "one name": ({"counts": {0: 8}, "names": ["ink"]}, "all labelled pixels are 'ink': two classes are needed$"),
    "a name twice": ({"counts": {0: 8}, "names": ["a", "b", "a"]}, "--names gives 'a' twice$"),
    "half a letter in a name": (
        {"counts": {0: 8, 1: 8}, "names": ["a", "\ud800"]},
        r"'\\ud800' is not a name of a class: it is text of 1 to 1000 letters, in UTF-8 and without control "
        "characters$",
    ),
    "half a letter in a name of a shape": (
        {"counts": {0: 8, 1: 8}, "own": {0: "air", 1: "\udcff"}}, r"'\\udcff' is not a name of a class: it is text of",
    ),
    "a number beyond names": (
        {"counts": {0: 1, 7: 1}, "names": ["a", "b", "c"]},
        "value 7 in 'm.png' has no name: --names gives 3 names, for 0 to 2$",
    ),
    "a number beyond one name": (
        {"counts": {0: 1, 1: 1}, "names": ["a"]}, "value 1 in 'm.png' has no name: --names gives one name, for 0$",
    ),
    "a name without a number": (
        {"counts": {0: 1, 2: 1}, "names": ["a", "b", "c"]}, "class 'b' has no labels: no pixel has the value 1$",
    ),
    "another name in shapes": (
        {"counts": {0: 1, 1: 1}, "own": OWN, "names": ["air", "inks", "paper"]},
        r"the labels have a class 'ink', which is not among the --names: did you mean 'inks'\?$",
    ),
    "a name too few for shapes": (
        {"counts": {0: 1, 1: 1}, "own": OWN, "names": ["air", "ink"]},
        "the labels have a class 'paper', which is not among the --names$",
    ),
    "a name without shapes": (
        {"counts": {0: 1, 1: 1, 2: 1}, "own": OWN, "names": ["air", "ink", "paper", "x"]},
        "class 'x' has no labels: label some pixels, or leave it out of --names$",
    ),
    "a name that is covered": (
        {"counts": {0: 1, 1: 1}, "own": OWN, "names": ["air", "ink", "paper"]},
        "class 'paper' has no labels: label some pixels, or leave it out of --names$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_classes_that_are_refused(name: str) -> None:
    how, says = REFUSED[name]
    with pytest.raises(OptionError, match=says):
        found(**how)


def test_a_mask_of_the_digits_page(tmp_path: Path) -> None:
    """Ink and paper of the fixture's first lines, from a file to the pixels that are drawn."""
    page = np.load(Path(__file__).parent.parent / "fixtures/digits_page.npy")
    codes = np.full(page.shape, 255, np.uint8)
    codes[:150] = page[:150] > 127
    np.save(tmp_path / "page.npy", page)
    np.save(tmp_path / "labels.npy", codes)
    (labelled,) = open_labels(tmp_path / "page.npy", tmp_path / "labels.npy")
    assert labelled.labels.check(page.shape) == ()
    classes = classes_of([census(labelled, page.shape)], [labelled], ["paper", "ink"])
    chosen = draw(labelled, page.shape, classes, 200, 0)
    assert chosen.counts.tolist() == [(codes == 0).sum(), (codes == 1).sum()]
    values = page[tuple(chosen.positions.T)]
    assert ((values > 127) == chosen.classes).all()
    assert chosen.positions[:, 0].max() < 150
