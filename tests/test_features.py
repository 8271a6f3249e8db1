"""Answers as GeoJSON: rasterised again they are the class map, and others read them as QuPath's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import rasterize
from shapely.geometry import shape

import onnx_fcn
from onnx_fcn.cli import main
from onnx_fcn.viewing.features import areas, geojson

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ("none", "cat", "dög")


def rasterised(features: list[Any], names: tuple[str, ...], size: tuple[int, ...], fill: int) -> np.ndarray:
    """The class at each pixel, by other means than those that drew the polygons."""
    drawn = [(f["geometry"], names.index(f["properties"]["classification"]["name"])) for f in features]
    return rasterize(drawn, size, fill=fill, dtype=np.int32) if drawn else np.full(size, fill)


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_areas_are_the_class_map(classes: np.ndarray) -> None:
    for background in (None, 0):
        found = json.loads(geojson(areas(classes, NAMES, background)))["features"]
        assert np.array_equal(rasterised(found, NAMES, classes.shape, 0), classes)
        polygons = [shape(f["geometry"]) for f in found]
        assert all(p.is_valid for p in polygons)
        shares = [f["properties"]["measurements"]["share"] for f in found]
        assert np.allclose(shares, [p.area / classes.size for p in polygons])
        assert sum(p.area for p in polygons) == np.sum(classes != background) if background == 0 else classes.size


def test_a_hole_is_no_part_of_its_area() -> None:
    classes = np.ones((5, 5), np.uint8)
    classes[2, 2] = 2
    ring, hole = sorted(areas(classes, NAMES), key=lambda f: -f["properties"]["measurements"]["share"])
    assert [len(f["geometry"]["coordinates"]) for f in (ring, hole)] == [2, 1]
    assert ring["properties"]["measurements"] == {"share": 24 / 25}
    assert ring["properties"]["classification"] == {"name": "cat", "color": [86, 180, 233]}
    assert hole["properties"]["classification"]["name"] == "dög"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", "out.onnx", validate=False)
    return Path("out.onnx")


def test_the_areas_of_a_picture(model: Path) -> None:
    page = str(FIXTURES / "digits_page.npy")
    assert main(["segment", str(model), page, "map.npy", "all.geojson", "-q"]) == 0
    assert main(["segment", str(model), page, "digits.geojson", "--background", "10", "-q"]) == 0
    classes, names = np.load("map.npy"), tuple(map(str, range(11)))
    for file in ("all.geojson", "digits.geojson"):
        found = json.loads(Path(file).read_text("utf-8"))["features"]
        assert np.array_equal(rasterised(found, names, classes.shape, 10), classes)
        assert {f["properties"]["objectType"] for f in found} == {"annotation"}
    assert 96 <= len(found) < 100  # some digits have a corner of another class


def test_the_windows_of_a_class(model: Path) -> None:
    page = str(FIXTURES / "digits_page.npy")
    assert main(["heatmap", str(model), page, "found.json", "found.geojson", "--class", "3", "--class", "5", "-q"]) == 0
    listed = [w for c in json.loads(Path("found.json").read_text("utf-8"))["classes"] for w in c["windows"]]
    found = json.loads(Path("found.geojson").read_text("utf-8"))["features"]
    assert [list(shape(f["geometry"]).bounds) for f in found] == [w["box"] for w in listed]
    assert [f["properties"]["measurements"] for f in found] == [{"score": w["score"]} for w in listed]
    assert {f["properties"]["objectType"] for f in found} == {"detection"}


def test_without_rasterio(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rasterio", "rasterio.features"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["segment", str(model), str(FIXTURES / "digits_page.npy"), "map.geojson"]) == 2
    says = "writing areas as GeoJSON needs rasterio, which is not installed: pip install 'onnx-fcn[geo]'"
    assert says in capsys.readouterr().err
    assert not Path("map.geojson").exists()
