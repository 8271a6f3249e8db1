"""Answers as GeoJSON: the areas of a class map, and the windows of a class, as polygons in pixels of the picture.

The form is QuPath's, which reads it, as QGIS, shapely and GDAL do: a FeatureCollection of features with `objectType`,
`classification` and `measurements`. Coordinates are (x, y): pixel (row, column) covers the square from (column, row) to
(column + 1, row + 1), so a polygon goes along the edges of pixels, and rasterised again it is the area.

https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
https://datatracker.ietf.org/doc/html/rfc7946
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.images.stored import missing_package
from onnx_fcn.running.dense_model import Detection
from onnx_fcn.viewing.drawing import colour_of

__all__ = ["areas", "geojson", "windows"]


Feature = dict[str, Any]


def areas(classes: Array, names: Sequence[str], background: int | None = None) -> Iterator[Feature]:
    """The connected areas of the best class at each pixel, (H, W), each a polygon with its holes.

    Pixels are connected by their edges, not by their corners. Each area has its share of the picture.

    Raises:
        OptionError: if rasterio is missing.
    """
    try:
        from rasterio.features import shapes
    except ImportError as error:
        raise missing_package("writing areas as GeoJSON", error) from None
    rings = shapes(np.ascontiguousarray(classes, np.int32), None if background is None else classes != background)
    for polygon, found in rings:
        coordinates = polygon["coordinates"]
        pixels = sum(map(_area, coordinates[:1])) - sum(map(_area, coordinates[1:]))
        yield _feature("annotation", coordinates, int(found), names, {"share": pixels / classes.size})


def windows(found: Iterable[Detection], names: Sequence[str]) -> Iterator[Feature]:
    """The windows in which classes were found, each a rectangle with its score."""
    for each in found:
        left, top, right, bottom = each.box
        ring = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        yield _feature("detection", [ring], each.index, names, {"score": each.score})


def geojson(features: Iterable[Feature]) -> bytes:
    """A .geojson file of these features."""
    values = {"type": "FeatureCollection", "features": list(features)}
    return (json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _feature(
    kind: str, rings: Sequence[Sequence[tuple[float, float]]], index: int, names: Sequence[str], measured: Feature
) -> Feature:
    colour = [round(255 * part) for part in colour_of(index)]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[_written(place) for place in ring] for ring in rings]},
        "properties": {
            "objectType": kind,
            "classification": {"name": names[index], "color": colour},
            "measurements": {name: float(value) for name, value in measured.items()},
        },
    }


def _written(place: tuple[float, float]) -> list[float]:
    """A place as it is written: whole numbers as such, others to hundredths of a pixel."""
    return [int(value) if value == int(value) else round(value, 2) for value in place]


def _area(ring: Sequence[tuple[float, float]]) -> float:
    """The area within a ring (the shoelace formula)."""
    x, y = np.array(ring, float).T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2
