"""Maps lie where the image lies, by readers that know nothing of this package; and a stop at any point changes nothing.

What is expected of a cell comes from `Grid.pixel_of`, the middle of its window in pixels.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import law
import numpy as np
import onnx
import pytest
import tifffile
import zarr

import onnx_fcn
from onnx_fcn import OptionError
from onnx_fcn.cli import main
from onnx_fcn.images.image import open_image
from onnx_fcn.images.masks import open_mask
from onnx_fcn.images.placement import GeoKeys, Placement

#: Of rasterio, which multiplies transformations by * where affine 3 wants @.
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

ROOT = Path(__file__).parent.parent
PAGE = np.load(ROOT / "fixtures/digits_page.npy")
BOXES = json.loads((ROOT / "fixtures/digits_page.json").read_text())
DIGITS = onnx.load(ROOT / "fixtures/digits_padded.onnx")

#: Pixels of the page in micrometers, and where the middle of the first one is.
SIZE, MIDDLE = (0.5, 0.25), (100.0, -30.0)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of converted networks."""
    folder = tmp_path_factory.mktemp("networks")
    onnx_fcn.convert(DIGITS, folder / "plain.onnx", validate=False)
    onnx_fcn.convert(DIGITS, folder / "fine.onnx", validate=False, output_stride=2)
    onnx_fcn.convert(DIGITS, folder / "argmax.onnx", validate=False, argmax=True)
    return folder


def middles(model: Path, size: tuple[int, int], output: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels in the middles of the windows, counted from the middle of the first pixel."""
    grid = onnx_fcn.read_geometry(model).grid(*size, output=output)
    return grid.pixel_of(np.arange(grid.shape[0]), 0)[1], grid.pixel_of(0, np.arange(grid.shape[1]))[0]


def doubled(page: np.ndarray) -> np.ndarray:
    """A page whose level 1 it is."""
    return page.repeat(2, 0).repeat(2, 1)


# GeoTIFF --------------------------------------------------------------------------------------------------------------


def scene(path: Path, page: np.ndarray = PAGE, crs: Any = "EPSG:32633", transform: Any = None, **how: Any) -> Any:
    """Write a GeoTIFF with pixels of half a meter; returns its transformation."""
    rasterio = pytest.importorskip("rasterio")
    transform = transform or rasterio.transform.from_origin(500_000, 5_800_000, 0.5, 0.5)
    shape = {"height": page.shape[0], "width": page.shape[1], "count": 1, "dtype": page.dtype}
    point = how.pop("point", False)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape, **how) as file:
        file.write(page, 1)
        if point:
            file.update_tags(AREA_OR_POINT="Point")
    return transform


@pytest.mark.parametrize("network", ["plain", "fine"])
@pytest.mark.parametrize("how", ["map.tif", "map.tif --cog", "map.tif --level 1"])
def test_digits_are_found_by_world_coordinates(network: str, how: str, networks: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    level = 1 if "--level" in how else 0
    scene(tmp_path / "page.tif", doubled(PAGE) if level else PAGE, tiled=True, blockxsize=64, blockysize=64)
    if level:
        with rasterio.open(tmp_path / "page.tif", "r+") as file:
            file.build_overviews([2], rasterio.enums.Resampling.nearest)
    model, target = networks / f"{network}.onnx", tmp_path / "map.tif"
    words = ["apply", str(model), str(tmp_path / "page.tif"), str(target), *how.split()[1:], "--tile", "150", "-q"]
    assert main(words) == 0
    pixel = 0.5 * 2**level
    with rasterio.open(target) as file:
        scores = file.read()
        rows, columns = middles(model, PAGE.shape)
        x, y = 500_000 + pixel * (columns + 0.5), 5_800_000 - pixel * (rows + 0.5)
        np.testing.assert_allclose(file.xy(np.arange(file.height), np.zeros(file.height, int))[1], y, rtol=1e-15)
        np.testing.assert_allclose(file.xy(np.zeros(file.width, int), np.arange(file.width))[0], x, rtol=1e-15)
        assert np.isnan(file.nodata)
        assert file.descriptions[:2] == ("scores 0", "scores 1")
        assert (file.profile["tiled"], file.profile["compress"], file.crs.to_epsg()) == (True, "deflate", 32633)
        assert (file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") == ("--cog" in how)
        found = 0
        for box in BOXES:
            column, row = (box["left"] + box["right"]) / 2, (box["top"] + box["bottom"]) / 2  # from the corner
            at = file.index(500_000 + pixel * column, 5_800_000 - pixel * row)
            found += int(scores[:, at[0], at[1]].argmax() == box["label"])
    assert (found, len(BOXES)) == (96, 96)


CUSTOM = "+proj=laea +lat_0=10 +lon_0=-81 +x_0=7 +y_0=3 +ellps=WGS84 +units=km"

#: CRS and how the scene is written.
SCENES: dict[str, dict[str, Any]] = {
    "UTM": {"crs": "EPSG:32633"},
    "degrees": {"crs": "EPSG:4326", "transform": (1e-5, 0, 13.25, 0, -1e-5, 52.5)},
    "without a code": {"crs": CUSTOM},
    "with heights": {"crs": "EPSG:32633+5773"},
    "turned": {"crs": "EPSG:3857", "transform": (0.4, 0.3, 12.25, 0.3, -0.4, 7.5)},
    "upside down": {"crs": "EPSG:3857", "transform": (0.5, 0, 12.25, 0, 0.5, 7.5)},
    "about points": {"crs": "EPSG:32633", "point": True},
    "turned, about points": {"crs": "EPSG:3857", "transform": (0.4, 0.3, 12.25, 0.3, -0.4, 7.5), "point": True},
    "no CRS": {"crs": None},
}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("cog", [False, True])
def test_the_crs_is_that_of_the_scene(name: str, cog: bool, networks: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    how = dict(SCENES[name])
    if "transform" in how:
        how["transform"] = rasterio.Affine(*how["transform"])
    scene(tmp_path / "page.tif", PAGE[:80, :90], **how)
    applied = onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.tif", cog=cog)
    cells = rasterio.Affine.translation(12, 12) @ rasterio.Affine.scale(4)  # windows of 28 pixels, every 4
    with rasterio.open(tmp_path / "page.tif") as page, rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs == page.crs
        assert (None if file.crs is None else file.crs.to_wkt()) == (None if page.crs is None else page.crs.to_wkt())
        assert file.tags().get("AREA_OR_POINT") == page.tags().get("AREA_OR_POINT")
        expected = (page.transform @ cells)[:6]
        np.testing.assert_allclose(file.transform[:6], expected, rtol=1e-14, atol=1e-12)
    assert applied.placement is not None
    np.testing.assert_allclose(applied.placement.transform, expected, rtol=1e-14, atol=1e-12)


def test_class_numbers_have_names_and_a_number_for_none(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    labels = [*map(str, range(9)), "<nine> & 九", "none"]
    named = onnx.load(ROOT / "fixtures/digits_padded.onnx")
    onnx.helper.set_model_props(named, {"labels": json.dumps(labels)})
    onnx_fcn.convert(named, tmp_path / "argmax.onnx", validate=False, argmax=True)
    onnx_fcn.convert(named, tmp_path / "scores.onnx", validate=False)
    scene(tmp_path / "page.tif")
    mask = np.zeros(PAGE.shape, np.uint8)
    mask[:200] = 1
    np.save(tmp_path / "mask.npy", mask)
    for name in ("argmax", "scores"):
        how: Any = {"mask": tmp_path / "mask.npy", "tile": 100}
        applied = onnx_fcn.apply(tmp_path / f"{name}.onnx", tmp_path / "page.tif", tmp_path / f"{name}.tif", **how)
    with rasterio.open(tmp_path / "argmax.tif") as file:
        assert (file.nodata, file.count, file.dtypes) == (255, 1, ("uint8",))
        assert (file.read(1)[:30] == 255).all()
        assert file.tags(1)["9"] == "<nine> & 九"
    with rasterio.open(tmp_path / "scores.tif") as file:
        assert file.descriptions == tuple(labels)
        assert np.isnan(file.read(5)[:30]).all()
        assert not file.read_masks(5)[:30].any()
    with closing(open_mask(tmp_path / "argmax.tif", 2)) as classes:
        assert (classes.size, classes.read((slice(0, 3), slice(0, 3))).tolist()) == ((72, 107), [[255] * 3] * 3)
    with closing(open_image(tmp_path / "scores.tif", 2, 11)) as image:
        assert (image.size, image.placement) == ((72, 107), applied.placement)


def test_a_cog_has_overviews(networks: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    scene(tmp_path / "page.tif", np.tile(PAGE, (8, 6)))
    onnx_fcn.apply(networks / "argmax.onnx", tmp_path / "page.tif", tmp_path / "map.tif", cog=True)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.overviews(1) == [2]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert set(np.unique(file.read(1))) <= set(range(11))


def test_points_on_the_ground_alone_are_no_place(networks: Path, tmp_path: Path) -> None:
    """Nor are numbers that place nothing."""
    points = (0.0, 0, 0, 10, 20, 0, 5, 0, 0, 11, 20, 0)
    for name, tags in {
        "points": [(33922, 12, 12, points, True)],
        "nowhere": [(33922, 12, 6, (0.0, 0, 0, np.nan, 20, 0), True), (33550, 12, 3, (1.0, 1, 0), True)],
        "flat": [(34264, 12, 16, (0.0,) * 16, True)],
        "short": [(34735, 3, 3, (1, 1, 0), True), (33550, 12, 1, (1.0,), True)],
    }.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", PAGE, photometric="minisblack", extratags=tags)
        assert (
            onnx_fcn.apply(networks / "plain.onnx", tmp_path / f"{name}.tif", tmp_path / f"{name}.npy").placement
            is None
        )


# OME-Zarr and OME-TIFF ------------------------------------------------------------------------------------------------


def ome_zarr(path: Path, version: str, page: np.ndarray = PAGE) -> None:
    """A time, a channel and a plane, with a level of twice the resolution."""
    form = 2 if version == "0.4" else 3
    group = zarr.open_group(str(path), mode="w", zarr_format=form)
    for level, pixels in enumerate((doubled(page), page)):
        array: Any = group.create_array(
            str(level), shape=(1, 1, 1, *pixels.shape), chunks=(1, 1, 1, 99, 99), dtype="u1"
        )
        array[0, 0, 0] = pixels
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": letter, "type": "space", "unit": "micrometer"} for letter in "zyx"]
    (h, w), (y, x) = SIZE, MIDDLE  # of level 1: the finer one has its corner at the same place
    levels = [([h / 4, w / 4], [(y - h / 4) / 2, (x - w / 4) / 2]), ([h / 2, w / 2], [y / 2, x / 2])]
    datasets = [
        {
            "path": str(k),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, 1.0, 3.0, *scale]},
                {"type": "translation", "translation": [0.0, 0.0, 7.0, *middle]},
            ],
        }
        for k, (scale, middle) in enumerate(levels)
    ]
    everywhere = [{"type": "scale", "scale": [1.0, 1.0, 1.0, 2.0, 2.0]}]
    several = [{"axes": axes, "datasets": datasets, "coordinateTransformations": everywhere, "name": "page"}]
    if form == 2:
        group.attrs["multiscales"] = [{**several[0], "version": version}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": several}


def ome_tiff(path: Path, page: np.ndarray = PAGE) -> None:
    """A pyramid whose finer level has its corner at the same place."""
    (h, w), (y, x) = SIZE, MIDDLE
    said = {"axes": "YX", "PhysicalSizeY": h / 2, "PhysicalSizeX": w / 2, "PhysicalSizeYUnit": "µm"}
    said |= {"PhysicalSizeXUnit": "µm", "Plane": {"PositionY": [(y - h / 4) / 1000], "PositionYUnit": ["mm"]}}
    said["Plane"] |= {"PositionX": [x - w / 4], "PositionXUnit": ["µm"]}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(doubled(page), subifds=1, metadata=said, tile=(64, 64), photometric="minisblack")
        file.write(page, subfiletype=1, tile=(64, 64), photometric="minisblack")


#: How a page is written, and the digits by which positions are written in the file.
SLIDES: dict[str, Callable[[Path], None]] = {
    "page4.zarr": lambda path: ome_zarr(path, "0.4"),
    "page5.zarr": lambda path: ome_zarr(path, "0.5"),
    "page.ome.tif": ome_tiff,
}


def read_zarr(path: Path, level: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(scale, translation) of a level, as another package reads them."""
    models = pytest.importorskip("ome_zarr_models.v05.image")
    (several,) = models.Image.from_zarr(zarr.open_group(str(path), mode="r")).attributes.ome.multiscales
    assert {axis.unit for axis in several.axes if axis.type == "space"} == {"micrometer"}
    scale, translation = several.datasets[level].coordinateTransformations
    return np.array(scale.scale[-2:]), np.array(translation.translation[-2:])


def read_ome(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with tifffile.TiffFile(path) as file:
        assert file.series[0].axes == "CYX"[-file.series[0].ndim :]
        assert file.pages[0].is_tiled
        pixels = ElementTree.fromstring(file.ome_metadata).find("{*}Image/{*}Pixels")
    planes = pixels.findall("{*}Plane")
    assert {p.attrib["PositionXUnit"] for p in planes} == {pixels.attrib["PhysicalSizeYUnit"]} == {"µm"}
    names = [channel.attrib.get("Name") for channel in pixels.findall("{*}Channel")]
    assert names in (["scores 0", *(f"scores {k}" for k in range(1, 11))], [None])
    size = [float(pixels.attrib[f"PhysicalSize{letter}"]) for letter in "YX"]
    return np.array(size), np.array([float(planes[-1].attrib[f"Position{letter}"]) for letter in "YX"])


def read_json(path: Path) -> tuple[np.ndarray, np.ndarray]:
    said = json.loads((path.parent / f"{path.name}.json").read_text())
    assert (said["unit"], said["shape"]) == ("micrometer", list(np.load(path).shape))
    return np.array(said["scale"]), np.array(said["translation"])


#: The map, and how others read where it lies.
MAPS: dict[str, Callable[[Path], tuple[np.ndarray, np.ndarray]]] = {
    "map.zarr": read_zarr,
    "map.ome.tif": read_ome,
    "map.tif": read_ome,
    "map.npy": read_json,
}


@pytest.mark.parametrize("network", ["plain", "fine", "argmax"])
@pytest.mark.parametrize("slide", SLIDES)
def test_positions_are_those_of_the_slide(slide: str, network: str, networks: Path, tmp_path: Path) -> None:
    """At each level of it."""
    SLIDES[slide](tmp_path / slide)
    model = networks / f"{network}.onnx"
    for level, page in enumerate((doubled(PAGE), PAGE)):
        rows, columns = middles(model, page.shape)
        size = np.array(SIZE) / 2 ** (1 - level)
        first = np.array(MIDDLE) - np.array(SIZE) / 2 + size / 2
        for name, read in MAPS.items():
            path = tmp_path / f"{level}{name}"
            applied = onnx_fcn.apply(model, tmp_path / slide, path, level=level, tile=400)
            scale, translation = read(path)
            for axis, pixels in enumerate((rows, columns)):
                found = translation[axis] + scale[axis] * np.arange(len(pixels))
                np.testing.assert_allclose(found, first[axis] + size[axis] * pixels, rtol=0, atol=1e-9)
            assert applied.placement is not None
            np.testing.assert_allclose(applied.placement.middle, translation, rtol=0, atol=1e-9)


def test_coarser_levels_lie_where_the_finest_lies(networks: Path, tmp_path: Path) -> None:
    """Means are of two by two cells; numbers of classes are every second one."""
    ome_zarr(tmp_path / "page.zarr", "0.5", np.tile(PAGE, (4, 3)))
    onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.zarr", tmp_path / "scores.zarr", level=1, tile=300)
    onnx_fcn.apply(networks / "argmax.onnx", tmp_path / "page.zarr", tmp_path / "classes.zarr", level=1, tile=300)
    scores, classes = (zarr.open(str(tmp_path / f"{name}.zarr"), mode="r") for name in ("scores", "classes"))
    assert sorted(scores.array_keys()) == sorted(classes.array_keys()) == ["0", "1", "2", "3"]
    whole = scores["0"][:]
    even = whole[:, : whole.shape[1] // 2 * 2, : whole.shape[2] // 2 * 2]
    pairs = even.reshape(11, even.shape[1] // 2, 2, even.shape[2] // 2, 2).mean((2, 4))
    found = scores["1"][:, : pairs.shape[1], : pairs.shape[2]]
    np.testing.assert_allclose(found, pairs, rtol=0, atol=1e-4)
    assert np.array_equal(classes["2"][:], classes["0"][::4, ::4])
    finest = read_zarr(tmp_path / "scores.zarr")
    for level in (1, 2, 3):
        scale, translation = read_zarr(tmp_path / "scores.zarr", level)
        assert np.array_equal(scale, finest[0] * 2**level)
        np.testing.assert_allclose(translation - scale / 2, finest[1] - finest[0] / 2, rtol=0, atol=1e-9)
        assert np.array_equal(read_zarr(tmp_path / "classes.zarr", level)[1], read_zarr(tmp_path / "classes.zarr")[1])
    channels = scores.attrs["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == [f"scores {k}" for k in range(11)]
    assert channels[3]["window"]["max"] == whole[3].max()
    with closing(open_image(tmp_path / "scores.zarr", 2, 11, 1)) as image:  # as the other commands read it
        assert np.array_equal(image.whole(), scores["1"][:])
        assert image.placement is not None
        np.testing.assert_allclose(image.placement.middle, read_zarr(tmp_path / "scores.zarr", 1)[1])


def test_what_was_left_out_is_not_in_means(networks: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "page.npy", PAGE)
    mask = np.zeros(PAGE.shape, np.uint8)
    mask[:, :203] = 1
    np.save(tmp_path / "mask.npy", mask)
    how: Any = {"mask": tmp_path / "mask.npy", "tile": 64}
    applied = onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.npy", tmp_path / "map.zarr", **how)
    assert (applied.placement, applied.skipped > 5) == (None, True)
    group = zarr.open(str(tmp_path / "map.zarr"), mode="r")
    left_out = np.isnan(group["0"][0])
    assert np.array_equal(np.isnan(group["1"][0]), _all_of_pairs(left_out))
    (several,) = group.attrs["ome"]["multiscales"]  # in pixels, as the image does not say where it lies
    assert several["datasets"][0]["coordinateTransformations"][1]["translation"] == [0, 13.5, 13.5]
    assert "unit" not in several["axes"][1]


def _all_of_pairs(cells: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        cells = np.logical_and.reduceat(cells, np.arange(0, cells.shape[axis], 2), axis)
    return cells


def test_slides_of_aperio(networks: Path, tmp_path: Path) -> None:
    said = "Aperio Image Library v11.2.1\r\n908x624 [0,0] (240x240) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990|Left = 2"
    with tifffile.TiffWriter(tmp_path / "page.svs") as file:
        file.write(doubled(PAGE), description=said, metadata=None, tile=(240, 240), photometric="minisblack")
        file.write(PAGE[::4, ::4], metadata=None, photometric="minisblack")  # a thumbnail
        file.write(PAGE, metadata=None, tile=(240, 240), photometric="minisblack")
    for level in (0, 1):
        with closing(open_image(tmp_path / "page.svs", 2, 1, level)) as image:
            assert image.placement is not None
            assert (image.placement.unit, image.placement.size) == ("micrometer", (0.499 * 2**level,) * 2)
            assert image.placement.origin == (-0.2495, -0.2495)


def test_a_level_is_a_whole_number_of_times_coarser(tmp_path: Path) -> None:
    """307 pixels have 153 or 154 at half the resolution; in a GeoTIFF they are spread over the whole image."""
    said = {"axes": "YX", "PhysicalSizeY": 1.0, "PhysicalSizeX": 1.0}
    with tifffile.TiffWriter(tmp_path / "page.ome.tif", ome=True) as file:
        file.write(np.zeros((307, 401), np.uint8), subifds=1, metadata=said, tile=(64, 64))
        file.write(np.zeros((153, 201), np.uint8), subfiletype=1, tile=(64, 64))
    with closing(open_image(tmp_path / "page.ome.tif", 2, 1, 1)) as image:
        assert image.placement is not None
        assert image.placement.size == (2.0, 2.0)


def test_volumes(tmp_path: Path) -> None:
    body = "c = Conv <strides = [2, 2, 1], pads = [1, 0, 1, 1, 0, 1]> (x, k)  y = GlobalAveragePool (c)"
    model = law.model(body, image="float[N,1,6,8,7] x", outputs="float[A,B,C,D,E] y", k=(3, 1, 3, 3, 3))
    onnx_fcn.convert(model, tmp_path / "out.onnx", validate=False)
    said = {"axes": "ZYX", "PhysicalSizeZ": 2.0, "PhysicalSizeY": 1.0, "PhysicalSizeX": 0.5, "PhysicalSizeZUnit": "nm"}
    said |= {"PhysicalSizeYUnit": "nm", "PhysicalSizeXUnit": "nm"}
    volume = law.random("v", 21, 30, 17).astype(np.float32)
    tifffile.imwrite(tmp_path / "volume.ome.tif", volume, metadata=said, ome=True, photometric="minisblack")
    grid = onnx_fcn.read_geometry(tmp_path / "out.onnx").grid(21, 30, 17)
    x, y, z = (float(v) for v in grid.pixel_of(0, 0, 0))
    for name in ("map.zarr", "map.ome.tif", "map.npy"):
        applied = onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "volume.ome.tif", tmp_path / name, tile=12)
        assert applied.placement is not None
        np.testing.assert_allclose(applied.placement.middle, (2 * z, y, x / 2))
    scores = np.load(tmp_path / "map.npy")
    assert np.array_equal(tifffile.imread(tmp_path / "map.ome.tif"), scores)
    assert np.array_equal(zarr.open(str(tmp_path / "map.zarr"), mode="r")["0"][:], scores)
    with closing(open_image(tmp_path / "map.ome.tif", 3, 3)) as image:
        assert (image.placement, image.size) == (applied.placement, scores.shape[1:])


# Every form of a map --------------------------------------------------------------------------------------------------

PADDED, UNPADDED = DIGITS, onnx.load(ROOT / "fixtures/digits_unpadded.onnx")
POOLED = law.model(
    "c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  m = GlobalAveragePool (c)  f = Flatten (m)  "
    "y = MatMul (f, w)",
    image="float[N,1,12,14] x",
    k=(3, 1, 3, 3),
    w=(3, 5),
)
EACH = law.model(
    "c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  y = Relu (c)",
    image="float[N,1,60,30] x",
    outputs="float[A,B,C,D] y",
    k=(5, 1, 3, 3),
)

#: The network, and what is asked of it.
FORMS: dict[str, tuple[onnx.ModelProto, dict[str, Any]]] = {
    "padded": (PADDED, {}),
    "unpadded": (UNPADDED, {}),
    "stride": (PADDED, {"output_stride": 2}),
    "unpadded stride": (UNPADDED, {"output_stride": 1}),
    "argmax": (PADDED, {"argmax": True}),
    "features": (PADDED, {"outputs": ["max_pool2d_1"]}),
    "cam": (POOLED, {"cam": True}),
    "cam argmax": (POOLED, {"cam": True, "argmax": True}),
    "fine cam": (POOLED, {"cam": True, "output_stride": 1}),
    "each position": (EACH, {}),
    "a held axis": (EACH, {"slide": ["width"]}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(60, 75), (60, 78)])
def test_cells_lie_around_the_middles_of_their_windows(form: str, size: tuple[int, int], tmp_path: Path) -> None:
    """With pixels left over, too."""
    network, how = FORMS[form]
    onnx_fcn.convert(network, tmp_path / "out.onnx", validate=False, **how)
    answers = onnx_fcn.read_geometry(tmp_path / "out.onnx").of()
    pixels = Placement((10.0, 20.0), ((2.0, 0.0), (0.0, 3.0)))
    with tifffile.TiffWriter(tmp_path / "page.ome.tif", ome=True) as file:
        said = {"axes": "YX", "PhysicalSizeY": 2.0, "PhysicalSizeX": 3.0}
        said["Plane"] = {"PositionY": [11.0], "PositionX": [21.5]} | {f"Position{a}Unit": ["µm"] for a in "YX"}
        file.write(law.random("page", *size).astype(np.float32), metadata=said)
    applied = onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "page.ome.tif", tmp_path / "map.npy", tile=24)
    cells, grid = applied.placement, answers.grid(*size)
    assert cells is not None
    assert applied.shape[-2:] == grid.shape
    for row, column in ((0, 0), (grid.shape[0] - 1, grid.shape[1] - 1)):
        x, y = grid.pixel_of(row, column)
        there = pixels.position(y + 0.5, x + 0.5)
        np.testing.assert_allclose(cells.position(row + 0.5, column + 0.5), there, rtol=0, atol=1e-9)
    assert cells.size == tuple(float(s) * p for s, p in zip(answers.stride, (2, 3)))


def test_geokeys() -> None:
    keys = GeoKeys((1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2, 3072, 0, 1, 32633))
    assert (keys.is_point, keys.code, keys[3076]) == (True, "EPSG:32633", None)
    assert GeoKeys((1, 1, 0, 1, 2048, 0, 1, 4326)).code == "EPSG:4326"
    assert GeoKeys((1, 1, 0, 2, 3072, 0, 1, 32767, 2048, 0, 1, 4326)).code == ""
    assert GeoKeys().code == ""


# What cannot be written -----------------------------------------------------------------------------------------------


def test_more_than_four_gigabytes(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are written as BigTIFF."""
    rasterio = pytest.importorskip("rasterio")
    scene(tmp_path / "page.tif")
    onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "small.tif")
    monkeypatch.setattr("onnx_fcn.tiles.formats.BIG", 1000)
    onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "big.tif")
    onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "big.ome.tif")
    with rasterio.open(tmp_path / "small.tif") as small, rasterio.open(tmp_path / "big.tif") as big:
        assert (small.crs, small.transform, small.descriptions) == (big.crs, big.transform, big.descriptions)
        assert np.array_equal(small.read(), big.read())
    for name, is_big in (("small.tif", False), ("big.tif", True), ("big.ome.tif", True)):
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.is_bigtiff == is_big


def test_what_a_cog_needs(networks: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "page.npy", PAGE)
    for name, why in (("map.tif", "the image is not a GeoTIFF"), ("map.zarr", "'.*map.zarr' is not the name of one")):
        with pytest.raises(OptionError, match=f"--cog writes a GeoTIFF, and {why}: leave it out"):
            onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.npy", tmp_path / name, cog=True)
    assert os.listdir(tmp_path) == ["page.npy"]


def test_rasterio_is_needed_for_few_things(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene(tmp_path / "page.tif")
    scene(tmp_path / "custom.tif", crs=CUSTOM)
    for module in [m for m in sys.modules if m.partition(".")[0] == "rasterio"]:
        monkeypatch.setitem(sys.modules, module, None)
    for image, name, cog in (("custom", "a.npy", False), ("custom", "a.zarr", False), ("page", "a.tif", True)):
        with pytest.raises(OptionError, match=r"a\.\w+' needs rasterio, which is not installed: .*'onnx-fcn\[geo\]'"):
            onnx_fcn.apply(networks / "plain.onnx", tmp_path / f"{image}.tif", tmp_path / name, cog=cog)
    assert sorted(os.listdir(tmp_path)) == ["custom.tif", "page.tif"]
    for name in ("map.tif", "map.npy", "map.zarr"):
        onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / name)
    onnx_fcn.apply(networks / "plain.onnx", tmp_path / "custom.tif", tmp_path / "custom_map.tif")


def test_a_crs_without_a_code_is_wkt(networks: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    scene(tmp_path / "page.tif", crs=CUSTOM)
    onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.npy")
    onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.zarr")
    crs = json.loads((tmp_path / "map.npy.json").read_text())["crs"]
    said = dict(zarr.open(str(tmp_path / "map.zarr"), mode="r")["0"].attrs)
    assert said["proj:wkt2"] == crs
    with rasterio.open(tmp_path / "page.tif") as page:
        assert rasterio.CRS.from_wkt(crs) == page.crs
        np.testing.assert_allclose(
            said["spatial:transform"], (page.transform @ rasterio.Affine(4, 0, 12, 0, 4, 12))[:6]
        )


def test_types_that_a_format_does_not_have(tmp_path: Path) -> None:
    ome_tiff(tmp_path / "page.ome.tif")
    body = "c = Conv <strides = [4, 4]> (x, k)  y = Cast <to = 7> (c)"
    model = law.model(f"{body}", image="float[N,1,9,9] x", outputs="int64[A,B,C,D] y", k=(2, 1, 9, 9))
    onnx_fcn.convert(model, tmp_path / "out.onnx", validate=False)
    with pytest.raises(OptionError, match="OME-TIFF does not store 3 axes of type int64: use"):
        onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "page.ome.tif", tmp_path / "map.tif")
    onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "page.ome.tif", tmp_path / "map.zarr")


def test_what_the_command_says(networks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scene(tmp_path / "page.tif")
    ome_tiff(tmp_path / "page.ome.tif")
    for image, says in (("page.tif", "2×2 meter, EPSG:32633"), ("page.ome.tif", "1×0.5 micrometer")):
        assert main(["apply", *map(str, (networks / "plain.onnx", tmp_path / image, tmp_path / f"{image}.npy"))]) == 0
        assert f"cells    {says}\n" in capfd.readouterr().out


# Stopping and going on ------------------------------------------------------------------------------------------------

#: What a run does to the disk, in a child process that kills itself before one of these steps, or has no space for it.
CHILD = """
import os, signal, sys
import numpy as np, onnx_fcn
from onnx_fcn.errors import FcnError

left, how = int(sys.argv[1]), sys.argv[2]

def counted(function):
    def stopping(*args, **more):
        global left
        left -= 1
        if left == 0 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0 and how == "full":
            raise OSError(28, "No space left on device")
        return function(*args, **more)
    return stopping

for name in ("fsync", "replace", "rename", *(["link", "unlink"] if how == "kill" else [])):
    setattr(os, name, counted(getattr(os, name)))
np.pad = counted(np.pad)  # each row of tiles that is packed
try:
    onnx_fcn.apply(*sys.argv[3:6], tile=150, cog="cog" in sys.argv[5])
except FcnError as error:
    print(error)
    sys.exit(2)
print(-left)
"""

#: Names of maps, and how many steps before the last one they are stopped: by then, all tiles are done.
STOPPED = [("map.npy", 4), ("map.tif", 4), ("map.tif", 6), ("map_cog.tif", 3), ("map.ome.tif", 5), ("map.zarr", 6)]


def child(left: int, how: str, model: Path, image: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(left), how, str(model), str(image), str(target)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def contents(folder: Path, name: str) -> dict[str, bytes]:
    """The bytes of all files of a map."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.relative_to(folder).parts[0].startswith(name)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def stops(name: str, how: str, steps: Callable[[int], Iterable[int]], networks: Path, tmp_path: Path) -> None:
    """Stop at these steps, of as many as there are, and go on."""
    model, image, target = networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "maps" / name
    count = begun(name, how, networks, tmp_path)
    expected = contents(target.parent, "map")
    for left in steps(count):
        shutil.rmtree(target.parent)
        target.parent.mkdir()
        ended = child(left, how, model, image, target)
        assert ended.returncode == (-signal.SIGKILL if how == "kill" else 2), (left, ended.stdout, ended.stderr)
        if how == "full":
            assert ended.stdout.startswith("cannot write '"), ended.stdout
            assert ended.stdout.count("\n") == 1
        if not target.exists():
            again = child(0, "", model, image, target)
            assert again.returncode == 0, (left, again.stdout, again.stderr)
        else:
            assert how == "kill"
            for rest in ("journal", "partial"):  # after the last renaming, they may be left
                (target.parent / f"{name}.{rest}").unlink(missing_ok=True)
        assert contents(target.parent, "map") == expected, left


@pytest.mark.parametrize(("name", "before"), STOPPED)
def test_a_map_that_is_killed_while_it_is_completed(name: str, before: int, networks: Path, tmp_path: Path) -> None:
    stops(name, "kill", lambda count: [count - before], networks, tmp_path)


def test_a_disk_that_is_full_while_a_map_is_begun_and_completed(networks: Path, tmp_path: Path) -> None:
    stops("map.tif", "full", lambda count: [1, count - 2], networks, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("name", dict(STOPPED))
def test_a_map_that_is_stopped_anywhere(name: str, how: str, networks: Path, tmp_path: Path) -> None:
    stops(name, how, lambda count: range(1, count + 1), networks, tmp_path)


def begun(name: str, how: str, networks: Path, tmp_path: Path) -> int:
    """Make the map without a stop; returns the number of steps."""
    scene(tmp_path / "page.tif")
    (tmp_path / "maps").mkdir()
    ended = child(0, how, networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "maps" / name)
    assert ended.returncode == 0, ended.stderr
    assert sorted(os.listdir(tmp_path / "maps")) == [name, *([f"{name}.json"] if name == "map.npy" else [])]
    return int(ended.stdout)


def test_a_cog_that_gdal_did_not_finish(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL says nothing if a full disk takes only the first tiles."""
    rasterio, gdal = pytest.importorskip("rasterio"), pytest.importorskip("rasterio.shutil")
    scene(tmp_path / "page.tif")
    copy = gdal.copy

    def cut(source: str, made: str, **how: Any) -> None:
        copy(source, made, **how)
        os.truncate(made, os.path.getsize(made) - 9)

    def changed(source: str, made: str, **how: Any) -> None:
        copy(source, made, **how)
        with rasterio.open(made, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
            file.write(file.read(3) + 1, 3)

    how: Any = {"tile": 150, "cog": True}
    for damage in (cut, changed):
        monkeypatch.setattr(gdal, "copy", damage)
        with pytest.raises(
            OptionError, match=r"cannot write '.*map.tif': GDAL wrote a part of it only, as it does when"
        ):
            onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.tif", **how)
        assert sorted(os.listdir(tmp_path)) == ["map.tif.journal", "map.tif.partial", "page.tif"]
    monkeypatch.setattr(gdal, "copy", copy)
    applied = onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.tif", **how)
    assert applied.resumed == applied.tiles > 5


def test_another_file_beside_a_map_stays(networks: Path, tmp_path: Path) -> None:
    ome_tiff(tmp_path / "page.ome.tif")
    (tmp_path / "map.npy.json").write_text("precious")
    with pytest.raises(OptionError, match=r"map.npy.json' exists, where the place of the map is to be written: remove"):
        onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.ome.tif", tmp_path / "map.npy")
    assert sorted(os.listdir(tmp_path)) == ["map.npy.json", "page.ome.tif"]
    assert (tmp_path / "map.npy.json").read_text() == "precious"


def test_a_cog_is_no_continuation_of_another_map(networks: Path, tmp_path: Path) -> None:
    scene(tmp_path / "page.tif")

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    how: Any = {"tile": 150}
    with pytest.raises(KeyboardInterrupt):
        onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.tif", progress=stop, **how)
    with pytest.raises(OptionError, match="an unfinished map with another cog"):
        onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.tif", cog=True, **how)
    assert onnx_fcn.apply(networks / "plain.onnx", tmp_path / "page.tif", tmp_path / "map.tif", **how).resumed == 2
