"""Labels in files: which image they belong to, what they say at its pixels, and what is refused in one sentence."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from onnx_fcn import OptionError
from onnx_fcn.fitting.choice import census
from onnx_fcn.fitting.labels import Labelled, open_labels

SIZE = (20, 30)
CODES = np.random.default_rng(0).integers(0, 3, SIZE).astype(np.uint8)


def image(path: Path, size: tuple[int, ...] = SIZE) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.zeros(size, np.uint8))
    else:
        PIL.Image.fromarray(np.zeros(size, np.uint8)).save(path)
    return path


def mask(path: Path, codes: np.ndarray = CODES) -> Path:
    path.parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(codes).save(path)
    return path


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(one: Labelled, size: tuple[int, ...] = SIZE, block: int = 7) -> np.ndarray:
    """The codes of all pixels, by the blocks that may have some."""
    codes = np.full(size, -1)
    one.labels.check(size)
    seen = np.zeros(size, int)
    for box in one.labels.boxes(size, block):
        codes[box] = one.labels.read(box)
        seen[box] += 1
    assert seen.max(initial=0) <= 1
    one.labels.close()
    return codes


def only(folder: Path, labels: Path, **how: Any) -> Labelled:
    """The labels of one image."""
    (one,) = open_labels(image(folder / "image.png"), labels, **how)
    return one


# Masks ----------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_mask(tmp_path: Path) -> None:
    codes = CODES.copy()
    codes[:3] = 255
    path = mask(tmp_path / "any_name.png", codes)
    expected = codes.astype(int)
    expected[:3] = -1
    one = only(tmp_path, path)
    assert (one.image, one.name) == (str(tmp_path / "image.png"), f"'{tmp_path / 'image.png'}'")
    assert (one.labels.name, one.labels.codes, one.labels.ignored) == (f"'{path}'", {}, 255)
    np.testing.assert_array_equal(read(one), expected)
    np.testing.assert_array_equal(read(only(tmp_path, path, ignore=None)), codes)
    np.testing.assert_array_equal(read(only(tmp_path, path, ignore=0)), np.where(codes == 0, -1, codes.astype(int)))
    assert one.labels.read((slice(0, 2), slice(0, 2))).dtype == np.int32


@pytest.mark.parametrize("wrong", [-1, 2**31, 2**63])
def test_numbers_that_are_no_codes(wrong: int, tmp_path: Path) -> None:
    codes = CODES.astype(np.uint64 if wrong > 2**62 else np.int64)
    codes[5, 7] = wrong
    np.save(tmp_path / "m.npy", codes)
    says = rf"m.npy' contains {wrong}, and class numbers are from 0 to 2147483647: --ignore {wrong} says that it stands"
    with pytest.raises(OptionError, match=says):
        read(only(tmp_path, tmp_path / "m.npy"))
    codes[:, 0] = 255
    assert (read(only(tmp_path, tmp_path / "m.npy", ignore=wrong))[5, :9] == [*CODES[5, :7], -1, CODES[5, 8]]).all()


def test_folders_of_masks(tmp_path: Path) -> None:
    """Any suffix, hidden files left out; what has no counterpart is told by name."""
    for name in ("b.png", "a.bmp", "c.ome.tif", "d.jpg", "e.png", ".hidden.png"):
        image(tmp_path / "images" / name)
    written(tmp_path / "images" / "notes.txt", "")
    (tmp_path / "images" / "below").mkdir()
    for number, name in enumerate(("a.png", "b.bmp", "c.png", "x.png", "y.y.png", ".e.png")):
        mask(tmp_path / "labels" / name, np.full_like(CODES, number))
    zarr.open_array(str(tmp_path / "labels/d.zarr"), mode="w", shape=SIZE, chunks=(8, 8), dtype="u1")[...] = 3
    notes: list[str] = []
    found = open_labels(tmp_path / "images", tmp_path / "labels", note=notes.append)
    assert [Path(one.image).name for one in found] == ["a.bmp", "b.png", "c.ome.tif", "d.jpg"]
    assert [int(read(one).max()) for one in found] == [0, 1, 2, 3]
    assert [one.number for one in found] == [0, 1, 2, 3]
    assert notes == [
        f"2 files of labels have no image: '{tmp_path}/labels/x.png' and '{tmp_path}/labels/y.y.png'",
        f"1 image has no labels and is left out: '{tmp_path}/images/e.png'",
    ]


def test_an_image_that_is_a_folder(tmp_path: Path) -> None:
    for name in ("images/a.zarr", "a.zarr"):
        zarr.open_array(str(tmp_path / name), mode="w", shape=SIZE, chunks=(8, 8), dtype="u1")[...] = CODES
    for images, labels in (("a.zarr", "a.zarr"), ("images", "a.zarr")):
        (one,) = open_labels(tmp_path / images, tmp_path / labels)
        np.testing.assert_array_equal(read(one), CODES)


def test_equal_names_up_to_the_suffix_come_first(tmp_path: Path) -> None:
    for name in ("a.png", "a.1.png", "a.2.png"):
        image(tmp_path / "images" / name)
    for number, name in enumerate(("a.1.png", "a.3.png")):
        mask(tmp_path / "labels" / name, np.full_like(CODES, number))
    with pytest.raises(OptionError, match=r"a.2.png' and '.*a.png' have equal names, so it is not clear .*a.3.png'$"):
        open_labels(tmp_path / "images", tmp_path / "labels")  # a.3 is that of a.png or of a.2.png: not guessed
    mask(tmp_path / "labels" / "a.png", CODES)
    found = open_labels(tmp_path / "images", tmp_path / "labels")
    assert [Path(one.image).name for one in found] == ["a.1.png", "a.2.png", "a.png"]
    assert [Path(one.labels.name).name for one in found] == ["a.1.png'", "a.3.png'", "a.png'"]


def folders(images: str, labels: str) -> Callable[[Path], tuple[Path, Path]]:
    """Folders with files of these names; a name alone stands for a file."""

    def make(folder: Path) -> tuple[Path, Path]:
        for name in images.split():
            image(folder / "images" / name)
        for name in labels.split():
            (mask if name.endswith("png") else written)(folder / "labels" / name, *[[]][: not name.endswith("png")])
        return folder / "images", folder / "labels"

    return make


def alone(images: str, labels: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(folder: Path) -> tuple[Path, Path]:
        pictures, files = folders(images, labels)(folder)
        return pictures if len(images.split()) > 1 else pictures / images, files / labels

    return make


def empty(images: str, labels: str) -> Callable[[Path], tuple[Path, Path]]:
    def make(folder: Path) -> tuple[Path, Path]:
        pictures, files = folders(images, labels)(folder)
        for path in (pictures, files):
            path.mkdir(exist_ok=True)
        return pictures, files

    return make


def same(folder: Path) -> tuple[Path, Path]:
    image(folder / "images" / "a.png")
    (folder / "link").symlink_to(folder / "images")
    return folder / "images", folder / "link"


PAIRS: dict[str, tuple[Callable[[Path], tuple[Path, Path]], str]] = {
    "other names": (
        folders("a.png b.png", "x.png y.png"),
        "no labels have the name of an image: images are called such as 'a.png', and labels such as 'x.png'$",
    ),
    "two masks": (
        folders("a.png", "a.bmp.png a.png a.tif.json a.json"),
        "labels/a.json' and '.*labels/a.png' have equal names, so it is not clear which of them belongs to '.*images",
    ),
    "two images": (
        folders("a.png a.jpg", "a.png"),
        "images/a.jpg' and '.*images/a.png' have equal names, so it is not clear which of them belongs to '.*/labels/a",
    ),
    "two masks up to the first dot": (
        folders("a.png b.ome.png", "a.png b.mask.png b.png"),
        "labels/b.mask.png' and '.*labels/b.png' have equal names, so it is not clear .* '.*images/b.ome.png'$",
    ),
    "two images up to the first dot": (
        folders("a.png b.0.png b.1.png", "a.png b.png"),
        "images/b.0.png' and '.*images/b.1.png' have equal names, so it is not clear .* '.*labels/b.png'$",
    ),
    "one mask of two images": (
        alone("a.png b.png", "a.png"),
        "labels/a.png' is the mask of one image, and there are 2 images: give a folder with a file for each$",
    ),
    "one GeoJSON of two images": (
        alone("a.png b.png", "a.json"),
        "labels/a.json' is for one image, since it names none, and there are 2 images: give a folder with a file for",
    ),
    "masks and names": (
        folders("a.png b.png", "a.png b.json"),
        "labels/a.png' is a mask, which numbers classes, and '.*labels/b.json' names them: give one kind$",
    ),
    "no images": (empty("", "a.png"), "the folder '.*images' contains no image$"),
    "no labels": (empty("a.png", ""), "the folder '.*labels' contains no labels$"),
    "hidden labels": (empty("a.png", ".a.png"), "the folder '.*labels' contains no labels$"),
    "images as labels": (same, "the folder '.*link' contains images, and no labels$"),
    "images that are nowhere": (lambda f: (f / "none", f), "none' does not exist$"),
    "labels that are nowhere": (lambda f: (image(f / "a.png"), f / "none.png"), "none.png' does not exist$"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_labels_that_do_not_belong_to_images(name: str, tmp_path: Path) -> None:
    make, says = PAIRS[name]
    with pytest.raises(OptionError, match=says):
        open_labels(*make(tmp_path))


def test_labels_beside_their_images(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    written(tmp_path / "a.geojson", [feature("Point", [1, 2], "ink")])
    (one,) = open_labels(tmp_path, tmp_path)
    assert Path(one.image).name == "a.jpg"


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (
            (21, 30),
            "'.*image.png' has 21×30 pixels, and its labels in '.*m.png' are for 20×30: give labels of the same size$",
        ),
        ((30, 20), "has 30×20 pixels, and its labels in '.*m.png' are for 20×30: give labels of the same size$"),
        ((40, 60), "are for 20×30: is it of another level. give --level 1$"),
        ((159, 241), "are for 20×30: is it of another level. give --level 3$"),
        ((159, 230), "are for 20×30: give labels of the same size$"),
        ((10, 15), "are for 20×30: give labels of the same size$"),
    ],
)
def test_a_mask_of_another_size(size: tuple[int, int], says: str, tmp_path: Path) -> None:
    one = only(tmp_path, mask(tmp_path / "m.png"))
    assert one.labels.check(SIZE) == ()
    with pytest.raises(OptionError, match=says):
        one.labels.check(size)


def test_masks_of_a_level(tmp_path: Path) -> None:
    """One of the level itself, or a pyramid."""
    with tifffile.TiffWriter(tmp_path / "m.tif") as file:
        file.write(CODES.repeat(2, 0).repeat(2, 1), subifds=1, photometric="minisblack", tile=(16, 16))
        file.write(CODES, subfiletype=1, photometric="minisblack", tile=(16, 16))
    for path in (mask(tmp_path / "m.png"), tmp_path / "m.tif"):
        np.testing.assert_array_equal(read(only(tmp_path, path, level=1)), CODES)
    for path in (tmp_path / "m.png", tmp_path / "m.tif"):
        one = only(tmp_path, path, level=1)
        with pytest.raises(OptionError, match=r"has 11×15 pixels, and its labels in .* give labels of the same size"):
            one.labels.check((11, 15))
    with pytest.raises(
        OptionError, match=r"its labels in '.*m.png' are for 20×30: is it of another level. give --level 0"
    ):
        only(tmp_path, tmp_path / "m.png", level=1).labels.check((10, 15))


@pytest.mark.parametrize("shape", [(300,), (5, 6, 7)])
def test_masks_with_other_numbers_of_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 4, shape)
    np.save(tmp_path / "m.npy", codes)
    np.testing.assert_array_equal(read(only(tmp_path, tmp_path / "m.npy", rank=len(shape)), shape, 4), codes)


# GeoJSON --------------------------------------------------------------------------------------------------------------


def feature(kind: str, coordinates: Any, name: Any = None, **properties: Any) -> dict[str, Any]:
    """A feature as QuPath writes it."""
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    geometry = {"type": kind, "coordinates": coordinates}
    return {
        "type": "Feature",
        "id": "x",
        "geometry": geometry,
        "properties": {"objectType": "annotation", **properties},
    }


def square(left: float, top: float, side: float) -> list[list[float]]:
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]


ALL = [
    feature("Polygon", [square(2, 1, 10), square(4, 3, 4)], "tumour"),
    feature("MultiPolygon", [[square(15, 2, 3)], [square(20, 2, 4)]], "stroma"),
    feature("LineString", [[1, 15.5], [9, 15.5]], "stroma"),
    feature("MultiLineString", [[[1, 17], [4, 17]], [[20.2, 12], [20.2, 18.1]]], "air"),
    feature("Point", [28.9, 0.1], "air"),
    feature("MultiPoint", [[28, 3, 7], [28.5, 4.5, 7]], "tumour"),
    feature("Polygon", [square(2, 1, 2)], "air"),
    feature("Polygon", [square(0, 0, 30)]),
    {"type": "Feature", "geometry": None, "properties": {"classification": {"name": "air"}}},
]


def expected_of_all() -> np.ndarray:
    air, stroma, tumour = 0, 1, 2
    codes = np.full(SIZE, -1)
    codes[1:11, 2:12] = tumour
    codes[3:7, 4:8] = -1
    codes[2:5, 15:18] = codes[2:6, 20:24] = stroma
    codes[15, 1:10] = stroma
    codes[17, 1:5] = codes[12:19, 20] = codes[0, 28] = air
    codes[3:5, 28] = tumour
    codes[1:3, 2:4] = air
    return codes


@pytest.mark.parametrize("form", ["collection", "list", "pretty"])
def test_geojson_as_qupath_exports_it(form: str, tmp_path: Path) -> None:
    content: Any = ALL if form == "list" else {"type": "FeatureCollection", "features": ALL}
    path = written(tmp_path / "a.geojson", "\ufeff " + json.dumps(content, indent=2) if form == "pretty" else content)
    notes: list[str] = []
    one = only(tmp_path, path, note=notes.append)
    assert one.labels.codes == {0: "air", 1: "stroma", 2: "tumour"}
    assert one.labels.ignored is None
    for block in (1, 7, 16, 100):
        np.testing.assert_array_equal(read(one, block=block), expected_of_all())
    assert notes == [f"2 features have no class and are ignored, in '{path}'"]


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "a"}}, "a"),
        ({"classification": {"names": ["Tumour", "Positive"]}}, "Tumour: Positive"),
        ({"classification": " a "}, "a"),
        ({"classification": {"color": 3}, "class": "a"}, "a"),
        ({"class": "a", "label": "b"}, "a"),
        ({"label": 7}, "7"),
    ],
)
def test_where_the_class_of_a_feature_is(properties: dict[str, Any], name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", feature("Point", [1, 2], **properties))  # one feature
    assert only(tmp_path, path).labels.codes == {0: name}


@pytest.mark.parametrize(
    "properties", [{}, None, {"classification": None}, {"class": ""}, {"label": True}, {"label": [1]}]
)
def test_features_without_a_class(properties: Any, tmp_path: Path) -> None:
    row = {**feature("Point", [1, 2]), "properties": properties}
    with pytest.raises(OptionError, match=r"no pixel has a label: nothing in '.*a.json' has a class$"):
        only(tmp_path, written(tmp_path / "a.json", [row]))
    notes: list[str] = []
    only(tmp_path, written(tmp_path / "a.json", [row, feature("Point", [1, 2], "x")]), note=notes.append)
    assert notes == [f"1 feature has no class and is ignored, in '{tmp_path}/a.json'"]


def test_a_collection_of_geometries(tmp_path: Path) -> None:
    row = feature("GeometryCollection", None, "a")
    row["geometry"]["geometries"] = [feature(*kind)["geometry"] for kind in (("Point", [1, 2]), ("Point", [5, 2]))]
    codes = read(only(tmp_path, written(tmp_path / "a.json", row)))
    assert [tuple(map(int, place)) for place in zip(*np.nonzero(codes == 0))] == [(2, 1), (2, 5)]


def test_the_last_feature_is_on_top(tmp_path: Path) -> None:
    rows = [feature("Point", [3, 3], "a"), feature("Polygon", [square(2, 2, 4)], "b"), feature("Point", [4, 4], "a")]
    codes = read(only(tmp_path, written(tmp_path / "a.json", rows)))
    assert (codes[3, 3], codes[4, 4], (codes == 1).sum()) == (1, 0, 15)


def test_codes_mean_the_same_in_all_files(tmp_path: Path) -> None:
    for k, names in enumerate((["b", "c"], ["a"], ["c", "a"], [])):
        image(tmp_path / "images" / f"{k}.png")
        written(tmp_path / "labels" / f"{k}.geojson", [feature("Point", [i, 1], n) for i, n in enumerate(names)])
    notes: list[str] = []
    found = open_labels(tmp_path / "images", tmp_path / "labels", note=notes.append)
    assert [one.labels.codes for one in found] == [{0: "a", 1: "b", 2: "c"}] * 3
    assert [read(one)[1, :3].tolist() for one in found] == [[1, 2, -1], [0, -1, -1], [2, 0, -1]]
    assert notes == [f"1 image has no labels and is left out: '{tmp_path}/images/3.png'"]


def test_names_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", [feature("Point", [1, 1], str(n)) for n in (10, 9, 100)])
    assert only(tmp_path, path).labels.codes == {0: "9", 1: "10", 2: "100"}


def test_only_blocks_that_shapes_touch_are_read(tmp_path: Path) -> None:
    rows = [feature("Point", [999_000.5, 7], "a"), feature("Polygon", [square(500, 90_000, 30)], "b")]
    one = only(tmp_path, written(tmp_path / "a.json", rows))
    size = (10**6, 10**6)
    assert list(one.labels.boxes(size, 512)) == [
        (slice(0, 512), slice(998912, 999424)),
        (slice(89600, 90112), slice(0, 512)),
        (slice(89600, 90112), slice(512, 1024)),
    ]
    assert list(one.labels.boxes((100, 100), 512)) == []
    assert census(one, size) == {0: 1, 1: 900}


def test_shapes_beyond_the_image(tmp_path: Path) -> None:
    rows = [feature("Point", [x, 3], "a") for x in (-0.1, 0, 29.9, 30)] + [feature("Polygon", [square(8, 20, 5)], "a")]
    one = only(tmp_path, written(tmp_path / "a.json", rows))
    path, picture = one.labels.name, one.name
    assert one.labels.check(SIZE) == (f"3 of the 5 shapes in {path} lie beyond {picture}, which has 20×30 pixels",)
    assert one.labels.check((21, 31)) == (f"1 of the 5 shapes in {path} lies beyond {picture}, which has 21×31 pixels",)
    one = only(tmp_path, written(tmp_path / "a.json", [rows[0], rows[3]]))
    with pytest.raises(
        OptionError,
        match=r"all that '.*a.json' labels lies beyond '.*image.png', which has 20×30 pixels: coordinates are pixels "
        r"of the finest level, x before y$",
    ):
        one.labels.check(SIZE)


def test_coordinates_at_another_level(tmp_path: Path) -> None:
    one = only(tmp_path, written(tmp_path / "a.json", ALL), level=1)
    assert one.labels.at_level(SIZE, SIZE) is one.labels
    half = one.labels.at_level((40, 60), SIZE)
    halved = [{**row, "geometry": scaled(row["geometry"])} for row in ALL]
    expected = read(only(tmp_path, written(tmp_path / "half.json", halved)))
    np.testing.assert_array_equal(read(Labelled(one.image, one.name, half)), expected)
    assert (half.codes, (expected >= 0).sum() > 20) == (one.labels.codes, True)


def scaled(geometry: Any) -> Any:
    """A geometry in half the size."""
    if isinstance(geometry, dict):
        return {**geometry, "coordinates": scaled(geometry["coordinates"])}
    return [scaled(part) for part in geometry] if isinstance(geometry, list) else geometry and geometry / 2


FAR = "which is not a pixel of an image$"
NONE = "has coordinates that are not a list of positions .x, y.$"
GEOJSON: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "a.json' is not JSON: line 1 cannot be read$"),
    "no JSON further down": ('[\n{"a": 1},\n}]', "a.json' is not JSON: line 3 cannot be read$"),
    "nesting": ("[" * 200_000, "a.json' is nested too deeply to be labels$"),
    "nested coordinates": ([feature("Polygon", "@", "a")], NONE),
    "a number of many digits": ("[" + "9" * 5000 + "]", "a.json' is not JSON: it contains what is neither text nor a"),
    "something else": ({"a": 1}, "a.json' is neither GeoJSON with features nor COCO with images and annotations$"),
    "a bare geometry": ({"type": "Point", "coordinates": [1, 2]}, "is neither GeoJSON with features nor COCO"),
    "no features": ([1, 2], "feature 1 in '.*a.json' is not a GeoJSON feature$"),
    "no class anywhere": ([], "no pixel has a label: nothing in '.*a.json' has a class$"),
    "another type": (
        [feature("Point", [1, 1], "a"), feature("Circle", [1, 1], "a")],
        "feature 2 in '.*a.json' has a geometry of the type 'Circle': Point, LineString, Polygon, their Multi forms "
        "and GeometryCollection are read$",
    ),
    "a long type": ([feature("C" * 10**6, [1, 1], "a")], "of the type 'CCCC.*C: Point"),
    "a geometry that is none": ([{**feature("Point", [1, 1], "a"), "geometry": 3}], "of the type None"),
    "a collection in a collection": (
        [{**feature("Point", [1, 1], "a"), "geometry": {
            "type": "GeometryCollection", "geometries": [{"type": "GeometryCollection", "geometries": []}]}}],
        "feature 1 in '.*a.json' is a collection without a plain list of geometries$",
    ),
    "NaN": ([feature("Point", [float("nan"), 1], "a")], f"feature 1 in '.*a.json' has the coordinate nan, {FAR}"),
    "infinity": ([feature("LineString", [[1, 1], [2, float("-inf")]], "a")], f"has the coordinate -inf, {FAR}"),
    "far away": ([feature("Point", [1, 1e300], "a")], rf"has the coordinate 1e\+300, {FAR}"),
    "farther than floats": ('[{"type": "Feature", "properties": {"class": "a"}, "geometry": {"type": "Point", '
                            '"coordinates": [1, 1e400]}}]', f"has the coordinate inf, {FAR}"),
    "a long integer": ([feature("Point", [1, 10**400], "a")], NONE),
    "text": ([feature("Point", ["x", "y"], "a")], NONE),
    "one number": ([feature("Point", [1], "a")], NONE),
    "a number": ([feature("Polygon", 3, "a")], NONE),
    "nothing": ([feature("MultiPolygon", [], "a")], NONE),
    "an empty ring": ([feature("Polygon", [[]], "a")], NONE),
    "two corners": ([feature("Polygon", [[[0, 0], [1, 1]]], "a")], NONE),
    "uneven positions": ([feature("LineString", [[0, 0], [1]], "a")], NONE),
    "no places": ([feature("MultiPoint", [], "a")], NONE),
    "an object": ([feature("MultiPoint", {"x": 1}, "a")], NONE),
}  # fmt: skip


@pytest.mark.parametrize("name", GEOJSON)
def test_geojson_that_is_not_valid(name: str, tmp_path: Path) -> None:
    content, says = GEOJSON[name]
    text = content if isinstance(content, str) else json.dumps(content).replace('"@"', "[" * 900 + "]" * 900)
    started = time.process_time()
    with pytest.raises(OptionError, match=says) as refused:
        only(tmp_path, written(tmp_path / "a.json", text))
    assert time.process_time() - started < 2
    assert len(str(refused.value)) < 600


def test_json_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[\xff]")
    with pytest.raises(OptionError, match=r"a.json' is not JSON: it contains what is neither text nor a number"):
        only(tmp_path, tmp_path / "a.json")


def test_json_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.json", ALL)
    monkeypatch.setattr("onnx_fcn.memory.available", lambda: 1000)
    with pytest.raises(OptionError, match=r"a.json' cannot be read: parsing it takes .* GB, and 1e-06 GB are free"):
        only(tmp_path, path)


def test_json_without_the_suffix(tmp_path: Path) -> None:
    for before in ("", "\ufeff", " \n"):
        assert only(tmp_path, written(tmp_path / "labels.txt", before + json.dumps(ALL))).labels.codes


def test_drawings_are_in_two_axes(tmp_path: Path) -> None:
    for rank, kind in ((1, "one axis"), (3, "3 axes")):
        with pytest.raises(
            OptionError, match=f"a.json' draws in two axes, and the model takes images with {kind}: give points as CSV$"
        ):
            only(tmp_path, written(tmp_path / "a.json", ALL), rank=rank)


# COCO -----------------------------------------------------------------------------------------------------------------


def compressed(counts: list[int]) -> str:
    """COCO's text of run lengths, from its description."""
    text = ""
    for k, count in enumerate(counts):
        value = count - counts[k - 2] if k > 2 else count
        while True:
            low, value = value & 31, value >> 5
            done = value == (-1 if low & 16 else 0)
            text += chr(48 + low + (0 if done else 32))
            if done:
                break
    return text


def test_compressed_runs_of_pycocotools() -> None:
    """What pycocotools writes for a 3×3 block at (2, 4) of 10×12 pixels: runs 42, 3, 7, 3, 7, 3, 55."""
    assert compressed([42, 3, 7, 3, 7, 3, 55]) == "Z137000`1"


def coco(*annotations: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 4, "file_name": "train/image.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 9, "name": "ant"}, {"id": 2, "name": "wasp"}, {"id": 5, "name": "bee"}],
        "annotations": [{"id": k, "image_id": 4, "category_id": 9, **row} for k, row in enumerate(annotations)],
        **changed,
    }


def counts_of(area: np.ndarray) -> list[int]:
    counts, value = [0], False
    for pixel in area.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


BLOB = np.zeros(SIZE, bool)
BLOB[9:18, 3:25] = np.random.default_rng(1).integers(0, 2, (9, 22))


@pytest.mark.parametrize("form", ["list", "text"])
def test_runs(form: str, tmp_path: Path) -> None:
    for blob in (BLOB, ~BLOB, BLOB & False, BLOB | True):
        counts = counts_of(blob)
        encoded = {"size": [*SIZE], "counts": counts if form == "list" else compressed(counts)}
        one = only(tmp_path, written(tmp_path / "coco.json", coco({"segmentation": encoded})))
        np.testing.assert_array_equal(read(one) == 0, blob)


def test_everything_in_coco(tmp_path: Path) -> None:
    """Codes are in the order of categories' ids, of those that are used; crowds take labels away."""
    rows = [
        {"segmentation": [[2, 1, 8, 1, 8, 7, 2, 7], [10, 1, 12, 1, 12, 3, 10, 3]], "bbox": [0, 0, 30, 20]},
        {"category_id": 5, "segmentation": {"size": [*SIZE], "counts": counts_of(BLOB)}},
        {"category_id": 5, "bbox": [20, 2, 4, 5]},
        {"category_id": 9, "bbox": [24, 2, 4, 5], "segmentation": []},
        {"segmentation": {"size": [*SIZE], "counts": [0, 3, 597]}, "iscrowd": 1, "category_id": 2},
        {"segmentation": [[2, 1, 4, 1, 4, 3, 2, 3]], "iscrowd": 1, "category_id": 2},
    ]
    expected = np.full(SIZE, -1)
    expected[1:7, 2:8] = expected[1:3, 10:12] = 1
    expected[BLOB] = 0
    expected[4, 22], expected[4, 26] = 0, 1
    expected[1:3, 2:4] = expected[:3, 0] = -1
    path = written(tmp_path / "coco.json", coco(*rows))
    one = only(tmp_path, path)
    assert one.labels.codes == {0: "bee", 1: "ant"}
    np.testing.assert_array_equal(read(one), expected)
    expected[2:7, 20:24], expected[2:7, 24:28] = 0, 1
    np.testing.assert_array_equal(read(only(tmp_path, path, boxes="fill")), expected)
    with pytest.raises(OptionError, match=r"a box labels its 'centre', or all its pixels \('fill'\), and not 'edge'$"):
        only(tmp_path, path, boxes="edge")


def test_crowds_alone_are_no_labels(tmp_path: Path) -> None:
    one = only(tmp_path, written(tmp_path / "coco.json", coco({"segmentation": [[2, 1, 4, 1, 4, 3]], "iscrowd": 1})))
    assert (one.labels.codes, census(one, SIZE)) == ({}, {})


def test_runs_give_the_size_of_their_image_too(tmp_path: Path) -> None:
    runs = {"segmentation": {"size": [*SIZE], "counts": counts_of(BLOB)}}
    images = [{"id": 4, "file_name": "image.png"}]
    one = only(tmp_path, written(tmp_path / "coco.json", coco(runs, images=images)))
    with pytest.raises(OptionError, match=r"has 21×30 pixels, and its labels in '.*coco.json' are for 20×30"):
        one.labels.check((21, 30))
    other = {"segmentation": {"size": [10, 60], "counts": [600]}}
    with pytest.raises(OptionError, match=r"annotation 2 .* has runs for 10×60 pixels, and its image has 20×30$"):
        only(tmp_path, written(tmp_path / "coco.json", coco(runs, other, images=images)))


def test_coco_names_images(tmp_path: Path) -> None:
    names = ["a.png", "deep/b.jpg", "c", "D:\\x\\d.png", "gone.png", "empty.png"]
    rows = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    spots = [{"image_id": k, "bbox": [k, 0, 1, 1]} for k in range(5)]
    for name in ("a.png", "b.jpg", "c.tif", "d.png", "empty.png", "unknown.png"):
        image(tmp_path / "images" / name)
    notes: list[str] = []
    path = written(tmp_path / "coco.json", coco(*spots, images=rows))
    found = open_labels(tmp_path / "images", path, note=notes.append)
    assert [Path(one.image).name for one in found] == ["a.png", "b.jpg", "c.tif", "d.png"]
    assert [int(np.argmax(read(one)[0])) for one in found] == [0, 1, 2, 3]
    assert notes == [
        f"1 image is only in '{path}': 'gone.png'",
        f"2 images have no labels and are left out: '{tmp_path}/images/empty.png' and '{tmp_path}/images/unknown.png'",
    ]


def test_coco_of_an_image_of_another_size(tmp_path: Path) -> None:
    one = only(tmp_path, written(tmp_path / "coco.json", coco({"bbox": [10, 4, 3, 3]})))
    assert one.labels.check(SIZE) == ()
    says = (
        r"'.*image.png' has 40×60 pixels, and its labels in '.*coco.json' are for 20×30: is it of another level. give "
    )
    with pytest.raises(OptionError, match=says + "--level 1$"):
        one.labels.check((40, 60))
    with pytest.raises(OptionError, match=says + "--level 1$"):
        one.labels.at_level((40, 60), (10, 15))
    assert one.labels.at_level((40, 60), SIZE) is one.labels  # they are of that level
    half = one.labels.at_level(SIZE, (10, 15))
    assert half.check((10, 15)) == ()
    assert half.read((slice(0, 10), slice(0, 15)))[2, 5] == 0


ROW = {"bbox": [1, 1, 2, 2]}
COCO: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown image": (
        coco({**ROW, "image_id": 7}), "annotation 1 in '.*coco.json' has the image_id 7, which is not listed$",
    ),
    "no image": (coco({**ROW, "image_id": None}), "has the image_id None, which is not listed$"),
    "a list for an id": (coco({**ROW, "category_id": [9]}), r"has the category_id \[9\], which is not listed$"),
    "an unknown category": (
        coco(ROW, {**ROW, "category_id": 3}), "annotation 2 .* has the category_id 3, which is not listed$",
    ),
    "no annotation": (coco(ROW, annotations=[3]), "annotation 1 in '.*coco.json' is not a COCO annotation$"),
    "no categories": (coco(ROW, categories=None), "has the category_id 9, which is not listed$"),
    "categories of one id": (
        coco(ROW, categories=[{"id": 9, "name": "a"}] * 2),
        "coco.json' has a row in 'categories' without an id of its own$",
    ),
    "images without an id": (coco(ROW, images=[{}]), "coco.json' has a row in 'images' without an id of its own$"),
    "images without a name": (
        coco(ROW, images=[{"id": 4}]), "image 4 in '.*coco.json' has no 'file_name', or that of another one$",
    ),
    "images of one name": (
        coco(ROW, images=[{"id": k, "file_name": "image.png"} for k in (4, 5)]),
        "image 5 in '.*coco.json' has no 'file_name'",
    ),
    "images of one name in two folders": (
        coco(ROW, images=[{"id": k, "file_name": f"{k}/image.png"} for k in (4, 5)]),
        "'4/image.png' and '5/image.png' have equal names, so it is not clear which of them belongs to '.*image.png'$",
    ),
    "other images": (
        coco(ROW, images=[{"id": 4, "file_name": "other.png"}]),
        "coco.json' names images such as 'other.png', and there are others, such as '.*image.png'$",
    ),
    "no images": (coco(images=[]), "no pixel has a label: nothing in '.*coco.json' has a class$"),
    "no annotations": (coco(), "no pixel has a label: nothing in '.*coco.json' has a class$"),
    "neither": (coco({"caption": "a"}), r"has neither a segmentation nor a box \[x, y, width, height\]$"),
    "three numbers": (coco({"bbox": [1, 2, 3]}), "has neither a segmentation nor a box"),
    "a negative width": (
        coco(ROW, {"bbox": [50, 50, -40, 4]}),
        r"annotation 2 in '.*coco.json' has a box whose width or height is negative: \[50, 50, -40, 4\]$",
    ),
    "a negative height": (coco({"bbox": [5, 5, 4, -0.5]}), r"whose width or height is negative: \[5, 5, 4, -0.5\]$"),
    "a box of text": (coco({"bbox": ["a", 1, 2, 3]}), NONE),
    "a box far away": (coco({"bbox": [1, 2, 1e300, 3]}), rf"has the coordinate 1e\+300, {FAR}"),
    "a polygon that is none": (coco({"segmentation": [3]}), r"has a polygon that is not a list \[x, y, x, y, …\]$"),
    "an odd polygon": (coco({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}), "has a polygon that is not a list"),
    "two corners": (coco({"segmentation": [[1, 2, 3, 4]]}), NONE),
    "NaN": (coco({"segmentation": [[1, 2, 3, 4, float("nan"), 6]]}), f"has the coordinate nan, {FAR}"),
    **{
        f"runs: {name}": (coco({"segmentation": {"size": [*SIZE], "counts": [600], **changed}}), says)
        for name, changed, says in (
            ("no size", {"size": None}, r"has a run-length encoding without a size \[height, width\]$"),
            ("a size below one", {"size": [0, 30]}, "has a run-length encoding without a size"),
            ("a size of text", {"size": ["20", 30]}, "has a run-length encoding without a size"),
            ("a long size", {"size": [20, 30, 1]}, "has a run-length encoding without a size"),
            ("a huge size", {"size": [10**400, 1]}, "has a run-length encoding without a size"),
            ("another size", {"size": [30, 20]}, "has runs for 30×20 pixels, and its image has 20×30$"),
            ("too few", {"counts": [599]}, "has runs of 599 pixels, and 20×30 are 600$"),
            ("many", {"counts": [142085]}, "has runs of 142085 pixels, and 20×30 are 600$"),
            ("too many", {"counts": [0, 2**70]}, r"has runs of 1.181e\+21 pixels, and 20×30 are 600$"),
            ("below zero", {"counts": [700, -100]}, "a run-length encoding whose counts are not numbers of pixels$"),
            ("fractions", {"counts": [599.5, 0.5]}, "whose counts are not numbers of pixels$"),
            ("nothing", {"counts": None}, "whose counts are not numbers of pixels$"),
            ("other letters", {"counts": "Z1 é"}, "has a run-length encoding that is damaged$"),
            ("endless letters", {"counts": "o" * 10**6}, "has a run-length encoding that is damaged$"),
            ("cut short", {"counts": "Z1o"}, "has a run-length encoding that is cut short$"),
            ("empty", {"counts": ""}, "has runs of 0 pixels, and 20×30 are 600$"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COCO)
def test_coco_that_is_not_valid(name: str, tmp_path: Path) -> None:
    content, says = COCO[name]
    with pytest.raises(OptionError, match=says):
        only(tmp_path, written(tmp_path / "coco.json", content))


# CSV ------------------------------------------------------------------------------------------------------------------


def test_points_in_csv(tmp_path: Path) -> None:
    """Rows are in order; fractions belong to their pixel; other columns, and the order of columns, do not matter."""
    path = written(
        tmp_path / "a.csv",
        '\ufeffLabel, id ,Y,X,note,label\nink,1,3.99,7,"a,b",b\n"paper, old",2,0,0\nink,3,1,1\n\npaper,,1,1\n,5,9,9,\n',
    )
    notes: list[str] = []
    one = only(tmp_path, path, note=notes.append)
    expected = np.full(SIZE, -1)
    expected[3, 7], expected[0, 0], expected[1, 1] = 0, 2, 1
    assert one.labels.codes == {0: "ink", 1: "paper", 2: "paper, old"}
    np.testing.assert_array_equal(read(one), expected)
    assert notes == [f"1 row has no label and is ignored, in '{path}'"]


def test_csv_names_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / "images" / name)
    path = written(
        tmp_path / "a.csv", "image,x,y,label\nb.png,1,0,q\nfolder/a,2,0,p\nb.png,3,0,p\nz.png,1,1,p\nc,0,0,\n"
    )
    notes: list[str] = []
    found = open_labels(tmp_path / "images", path, note=notes.append)
    assert [Path(one.image).name for one in found] == ["a.png", "b.png"]
    assert [read(one)[0, :4].tolist() for one in found] == [[-1, -1, 0, -1], [-1, 1, -1, 0]]
    assert notes == [
        f"1 image is only in '{path}': 'z.png'",
        f"1 row has no label and is ignored, in '{path}'",
        f"1 image has no labels and is left out: '{tmp_path}/images/c.png'",
    ]


def test_folders_of_csv(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / "images" / f"{name}.png")
        written(tmp_path / "labels" / f"{name}.csv", f"x,y,label\n1,1,{name}\n")
    found = open_labels(tmp_path / "images", tmp_path / "labels")
    assert [read(one)[1, 1] for one in found] == [0, 1]
    written(tmp_path / "labels" / "a.csv", "image,x,y,label\na.png,1,1,z\n")
    says = r"labels/a.csv' names its images itself: give this file as the labels, and not its folder$"
    with pytest.raises(OptionError, match=says):
        open_labels(tmp_path / "images", tmp_path / "labels")


def test_points_in_sound_and_volumes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "image,x,label\nimage,17.5,speech\nimage,3,noise\n")
    codes = read(only(tmp_path, path, rank=1), (40,))
    assert codes.tolist() == [-1] * 3 + [0] + [-1] * 13 + [1] + [-1] * 22
    path = written(tmp_path / "a.csv", "image,x,y,z,label\nimage,1,2,3,a\n")
    codes = read(only(tmp_path, path, rank=3), (5, 6, 7))
    assert [tuple(map(int, place)) for place in zip(*np.nonzero(codes == 0))] == [(3, 2, 1)]


CSV: dict[str, tuple[str, str]] = {
    "nothing": (
        "", "a.csv' has no column 'x': for images with 2 axes, its first line is x,y,label, or image,x,y,label$",
    ),
    "no header": ("1,2,ink\n", "a.csv' has no column 'x'"),
    "no label": ("x,y,class\n1,2,a\n", "a.csv' has no column 'label'"),
    "semicolons": ("x;y;label\n1;2;a\n", "a.csv' has no column 'x'"),
    "no rows": ("x,y,label\n", "no pixel has a label: nothing in '.*a.csv' has a class$"),
    "no number": ("x,y,label\n1,2,a\n\n1,two,a\n", "line 4 of '.*a.csv' has a coordinate that is not a number$"),
    "no label but a number": ("x,label,y\n1,a\n", "line 2 of '.*a.csv' has a coordinate that is not a number$"),
    "NaN": ("x,y,label\nnan,2,a\n", f"line 2 of '.*a.csv' has the coordinate nan, {FAR}"),
    "far away": ("x,y,label\n1,1e300,a\n", rf"line 2 of '.*a.csv' has the coordinate 1e\+300, {FAR}"),
    "no image": ("image,x,y,label\n ,2,2,a\n", "line 2 of '.*a.csv' names no image$"),
    "an image of two names": (
        "image,x,y,label\nimage.png,2,2,a\na/image,1,1,a\n",
        "'image.png' and 'a/image' have equal names, so it is not clear which of them belongs to '.*image.png'$",
    ),
    "other images": ("image,x,y,label\nb.png,2,2,a\n", "a.csv' names images such as 'b.png', and there are others"),
    "a field without an end": ('x,y,label\n1,2,"' + "a" * 200_000, "a.csv' is not CSV: line 2 cannot be read"),
    "an open quote": ('x,y,label\n1,2,a\n2,2,"b\n3,3,a\n', "not CSV: line 4 cannot be read; is a quote left open"),
}  # fmt: skip


@pytest.mark.parametrize("name", CSV)
def test_csv_that_is_not_valid(name: str, tmp_path: Path) -> None:
    content, says = CSV[name]
    with pytest.raises(OptionError, match=says):
        only(tmp_path, written(tmp_path / "a.csv", content))


@pytest.mark.parametrize(("rank", "first"), [(1, "one axis, its first line is x,label"), (3, "3 axes, .* x,y,z,label")])
def test_columns_for_other_numbers_of_axes(rank: int, first: str, tmp_path: Path) -> None:
    missing = "x" if rank == 1 else "z"
    with pytest.raises(OptionError, match=f"a.csv' has no column '{missing}': for images with {first}, or image,x"):
        only(tmp_path, written(tmp_path / "a.csv", "y,label\n" if rank == 1 else "x,y,label\n"), rank=rank)


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x,y,label\n1,2,\xff\n")
    with pytest.raises(OptionError, match=r"a.csv' is not CSV: it is not text in UTF-8$"):
        only(tmp_path, tmp_path / "a.csv")


def test_names_of_files_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = written(tmp_path / "a\x1b[31m.json", "{")
    with pytest.raises(OptionError, match=re.escape(r"a\x1b[31m.json' is not JSON")):
        only(tmp_path, path)


def test_many_shapes_take_little_time(tmp_path: Path) -> None:
    """Ten thousand cells of a slide, as one detection after the other."""
    rng = np.random.default_rng(0)
    around = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 13)), np.sin(t)], 1) * 6
    rows = [feature("Polygon", [(around + at).round(2).tolist()], "a") for at in rng.uniform(0, 9_000, (10_000, 2))]
    one = only(tmp_path, written(tmp_path / "a.json", rows))
    started = time.process_time()
    assert census(one, (9_000, 9_000))[0] > 500_000
    assert time.process_time() - started < 10
