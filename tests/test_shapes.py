"""Which pixels shapes cover: compared with oracles in exact arithmetic, in blocks of every size."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_fcn.fitting import shapes
from onnx_fcn.fitting.shapes import Area, Line, Points, Runs, Shape

HEIGHT, WIDTH = SIZE = (17, 23)
CODES = np.array([5, 6, -1], np.int32)

#: Quarters of pixels, in the image and around it: centres and edges of pixels are hit often.
QUARTERS = st.integers(-20, 110).map(lambda n: n / 4)
PLACES = st.tuples(QUARTERS, QUARTERS)
RINGS = st.lists(st.lists(PLACES, min_size=3, max_size=8).map(np.array), min_size=1, max_size=3)


def painted(shape: Shape, block: int | tuple[int, int] = 100, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The codes of an image, block by block."""
    height, width = (block, block) if isinstance(block, int) else block
    codes = np.full(size, -7, np.int32)
    for top, left in itertools.product(range(0, size[0], height), range(0, size[1], width)):
        box = slice(top, min(top + height, size[0])), slice(left, min(left + width, size[1]))
        shape.paint(codes[box], box, CODES)
    return codes


def inside(rings: list[np.ndarray], row: int, column: int) -> bool:
    """Is the centre of a pixel inside, by a ray to the left that crosses edges, in exact arithmetic?"""
    y, x = row + Fraction(1, 2), column + Fraction(1, 2)
    crossings = 0
    for ring in rings:
        corners = [(Fraction(a), Fraction(b)) for a, b in ring.tolist()]
        for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1]):
            if (y0 <= y) != (y1 <= y):
                crossings += x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x
    return crossings % 2 == 1


@given(RINGS)
def test_an_area_covers_the_pixels_whose_centres_are_inside(rings: list[np.ndarray]) -> None:
    expected = [[inside(rings, i, j) for j in range(WIDTH)] for i in range(HEIGHT)]
    np.testing.assert_array_equal(painted(Area.of(rings, 1)) == 6, expected)


@given(st.lists(st.tuples(st.floats(-9, 30), st.floats(-9, 30)), min_size=3, max_size=12).map(np.array))
def test_an_area_of_any_coordinates(ring: np.ndarray) -> None:
    """But for centres so close to an edge that floats cannot tell."""
    found = painted(Area.of([ring], 0)) == 5
    rows, columns = np.nonzero(found != [[inside([ring], i, j) for j in range(WIDTH)] for i in range(HEIGHT)])
    for i, j in zip(rows, columns):
        near = [inside([ring + np.array([0, shift])], i, j) for shift in (-1e-9, 1e-9)]
        assert near[0] != near[1]


def test_a_centre_on_an_edge_whose_quotient_is_rounded() -> None:
    """The edge crosses row 49 at column 275.5 exactly, the centre of pixel 275; a float has it right of that."""
    ring = np.array([[-41.5, 633], [116, 14.25], [116, 633]])
    codes, box = np.full((1, 10), -7, np.int32), (slice(49, 50), slice(270, 280))
    Area.of([ring], 0).paint(codes, box, CODES)
    assert (codes[0] == 5).tolist() == [inside([ring], 49, j) for j in range(270, 280)] == [False] * 5 + [True] * 5


def test_a_hole_and_an_island_in_it() -> None:
    square = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
    codes = painted(Area.of([square * 10 + 1, square * 6 + 3, square * 2 + 5], 0)) == 5
    expected = np.zeros(SIZE, bool)
    expected[1:11, 1:11] = True
    expected[3:9, 3:9] = False
    expected[5:7, 5:7] = True
    np.testing.assert_array_equal(codes, expected)


@given(st.lists(PLACES, min_size=4, max_size=4, unique=True).map(np.array))
def test_areas_that_share_an_edge_leave_no_pixel_out(corners: np.ndarray) -> None:
    """Two triangles, the shared edge in opposite directions, are the quadrilateral."""
    a, b, c, d = corners
    first, second = (painted(Area.of([np.array(ring)], 0)) == 5 for ring in ([a, b, c], [c, d, a]))
    np.testing.assert_array_equal(first ^ second, painted(Area.of([corners], 0)) == 5)


def passes(start: np.ndarray, end: np.ndarray, row: int, column: int) -> bool:
    """Does a segment meet a closed pixel, in exact arithmetic (Liang and Barsky's clipping)?"""
    low, high = Fraction(0), Fraction(1)
    for a, b, first in ((start[0], end[0], row), (start[1], end[1], column)):
        a, b = Fraction(float(a)), Fraction(float(b))
        if a == b:
            if not first <= a <= first + 1:
                return False
            continue
        enter, leave = sorted([(first - a) / (b - a), (first + 1 - a) / (b - a)])
        low, high = max(low, enter), min(high, leave)
    return low <= high


@given(st.tuples(PLACES, PLACES).map(np.array))
def test_a_line_is_a_chain_of_pixels_that_it_passes(ends: np.ndarray) -> None:
    """One pixel wide: one in each row, or each column, that the line crosses, and those of its ends."""
    found = painted(Line(ends, 0)) == 5
    met = np.array([[passes(ends[0], ends[1], i, j) for j in range(WIDTH)] for i in range(HEIGHT)])
    assert not (found & ~met).any()
    axis = int(np.abs(ends[1] - ends[0]).argmax())
    low, high = sorted(ends[:, axis])
    for k in range(SIZE[axis]):
        if low <= k + 0.5 < high:
            across = ends[0, 1 - axis] + (k + 0.5 - ends[0, axis]) * np.divide(*(ends[1] - ends[0])[[1 - axis, axis]])
            within = 0 <= across < SIZE[1 - axis]
            count = np.take(found, k, axis).sum()
            assert within <= count <= 3 if abs(across - round(across)) > 1e-9 else count <= 3
            if k not in np.floor(ends[:, axis]) and abs(across - round(across)) > 1e-9:
                assert count == within
    for place in ends:
        row, column = np.floor(place).astype(int)
        if 0 <= row < HEIGHT and 0 <= column < WIDTH:
            assert found[row, column]


def test_lines_along_the_axes_and_the_diagonal() -> None:
    for places, expected in (
        ([[3.5, 2], [3.5, 8]], [(3, k) for k in range(2, 9)]),
        ([[9, 4.2], [2, 4.2]], [(k, 4) for k in range(2, 10)]),
        ([[2, 2], [5, 5]], [(k, k) for k in range(2, 6)]),
        ([[2.5, 2.5], [2.5, 5.5], [5.5, 5.5]], [(2, 2), (2, 3), (2, 4), (2, 5), (3, 5), (4, 5), (5, 5)]),
        ([[4.9, 4.9]], [(4, 4)]),
    ):
        codes = painted(Line(np.array(places, float), 0))
        assert list(zip(*np.nonzero(codes == 5))) == expected


def test_the_last_point_in_a_pixel_counts() -> None:
    places = np.array([[3.2, 4.9], [3.9, 4.0], [-0.1, 2], [16.99, 22.99], [17, 2]])
    codes = painted(Points(places, np.array([0, 1, 0, -1, 0])))
    expected = np.full(SIZE, -7)
    expected[3, 4], expected[16, 22] = 6, -1
    np.testing.assert_array_equal(codes, expected)


def test_points_in_a_volume() -> None:
    codes = np.full((2, 3, 4), -7, np.int32)
    box = slice(4, 6), slice(0, 3), slice(8, 12)
    Points(np.array([[4, 1, 9.5], [4, 3, 9], [5.5, 2, 11]]), np.array([0, 0, 1])).paint(codes, box, CODES)
    assert [tuple(map(int, place)) for place in zip(*np.nonzero(codes != -7))] == [(0, 1, 1), (1, 2, 3)]


@given(st.data())
def test_runs_go_down_the_columns(data: Any) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH)))
    if data.draw(st.booleans()):  # a few long runs
        mask = np.sort(mask)
    mask = np.roll(mask, data.draw(st.integers(0, 400))).reshape(WIDTH, HEIGHT).T
    np.testing.assert_array_equal(painted(Runs(stops_of(mask), HEIGHT, 1)) == 6, mask)


def stops_of(mask: np.ndarray) -> np.ndarray:
    """The ends of the runs, counted pixel by pixel."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return np.cumsum(counts)


def some_shapes() -> dict[str, Shape]:
    rng = np.random.default_rng(0)
    rings = [rng.uniform(-5, 28, (n, 2)) for n in (40, 9)]
    blob = np.zeros(SIZE, bool)
    blob[4:9, 6:15] = rng.integers(0, 2, (5, 9))
    return {
        "area": Area.of(rings, 0),
        "line": Line(rng.uniform(-5, 28, (30, 2)), 0),
        "points": Points(rng.uniform(-2, 24, (60, 2)), rng.integers(0, 2, 60)),
        "runs": Runs(stops_of(blob), HEIGHT, 0),
        "runs through columns": Runs(np.cumsum([3, 100, 40, 7, HEIGHT * WIDTH - 150]), HEIGHT, 0),
        "no runs": Runs(np.cumsum([HEIGHT * WIDTH]), HEIGHT, 0),
    }


@pytest.mark.parametrize("crossings", [1, 7, 1 << 20])
@pytest.mark.parametrize("block", [1, 4, 5, 16, (3, 100), (100, 2)])
@pytest.mark.parametrize("name", some_shapes())
def test_blocks_of_every_size_give_the_same(
    name: str, block: int | tuple[int, int], crossings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = some_shapes()[name]
    whole = painted(shape)
    assert (whole != -7).any() == (name != "no runs")
    monkeypatch.setattr(shapes, "CROSSINGS", crossings)
    np.testing.assert_array_equal(painted(shape, block), whole)


@pytest.mark.parametrize("name", some_shapes())
def test_bounds_contain_what_is_covered(name: str) -> None:
    shape = some_shapes()[name]
    allowed = np.zeros(SIZE, bool)
    for (top, bottom), (left, right) in shape.bounds():
        allowed[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    assert allowed[painted(shape) != -7].all()


@pytest.mark.parametrize("name", some_shapes())
def test_shapes_in_an_image_of_another_size(name: str) -> None:
    """Twice as large, every second pixel of an area is its own; half as large, it is that of the pixel's centre."""
    shape = some_shapes()[name]
    twice = painted(shape.scaled(np.array([2.0, 3.0])), 7, (2 * HEIGHT, 3 * WIDTH)) != -7
    own = painted(shape) != -7
    if name == "line":
        assert twice.any()
    elif name == "points":
        rows, columns = np.nonzero(twice)
        assert {*zip(rows // 2, columns // 3)} == {*zip(*np.nonzero(own))}
    elif name == "area":  # its pixels are smaller
        assert abs(twice.mean() - own.mean()) < 0.1
    else:
        np.testing.assert_array_equal(twice, own.repeat(2, 0).repeat(3, 1))
    half = painted(shape.scaled(np.array([1 / 3, 1 / 3])), 4, (6, 8)) != -7
    if "runs" in name:
        expected = np.zeros((6, 8), bool)
        expected[:, :] = np.pad(own, ((0, 1), (0, 1)))[1::3, 1::3]
        np.testing.assert_array_equal(half, expected)


def test_shapes_of_hostile_sizes_are_painted_at_once() -> None:
    far = float(2**31 - 1)
    box = slice(0, 8), slice(0, 8)
    for shape in (
        Area.of([np.array([[-far, -far], [-far, far], [far, far], [far, -far]])], 0),
        Line(np.array([[-far, -far], [far, far]]), 0),
        Runs(np.array([0, 2**60]), 2**30, 0),
    ):
        codes = np.full((8, 8), -7, np.int32)
        shape.paint(codes, box, CODES)
        assert (codes == 5).sum() >= 8
