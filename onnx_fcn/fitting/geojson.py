"""Labels in GeoJSON, as QuPath exports it: a FeatureCollection, a list of features, or one feature.

The class of a feature is its `classification` (QuPath), or else its `class` or `label`. Coordinates are (x, y), in
pixels of the finest level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.drawings import Drawing
from onnx_fcn.fitting.reading import places_of
from onnx_fcn.fitting.shapes import Area, Line

__all__ = ["draw_geojson", "features_of"]


def features_of(content: Any) -> list[Any] | None:
    """The features in the content of a JSON file; None if it is not GeoJSON."""
    if isinstance(content, dict):
        if content.get("type") == "FeatureCollection" and isinstance(content.get("features"), list):
            return list(content["features"])
        return [content] if content.get("type") == "Feature" else None
    return content if isinstance(content, list) else None


def draw_geojson(path: str, features: list[Any]) -> Drawing:
    """The features in a file; those without a class or geometry are counted.

    Raises:
        OptionError: if one is not valid.
    """
    drawing = Drawing()
    for number, feature in enumerate(features, 1):
        where = f"feature {number} in '{path}'"
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise OptionError(f"{where} is not a GeoJSON feature")
        name = _class_of(feature.get("properties"))
        if name is None or feature.get("geometry") is None:
            drawing.unnamed += 1
        else:
            _draw(drawing, feature["geometry"], drawing.label(name), where)
    return drawing


def _class_of(properties: Any) -> str | None:
    """The name of a feature's class."""
    if not isinstance(properties, dict):
        return None
    found = properties.get("classification")
    if isinstance(found, Mapping):
        names = found.get("names")  # of a class and its derived ones
        joined = ": ".join(map(str, names)) if isinstance(names, list) else None
        found = found.get("name") or joined
    for name in (found, properties.get("class"), properties.get("label")):
        if isinstance(name, str | int) and not isinstance(name, bool) and str(name).strip():
            return str(name).strip()
    return None


def _draw(drawing: Drawing, geometry: Any, label: int, where: str) -> None:
    """Draw a geometry, or all of a collection."""
    kind, parts = (geometry.get(key) if isinstance(geometry, dict) else None for key in ("type", "coordinates"))
    if kind == "GeometryCollection":
        members = geometry.get("geometries")
        if not isinstance(members, list) or any(_is_collection(member) for member in members):
            raise OptionError(f"{where} is a collection without a plain list of geometries")
        for member in members:
            _draw(drawing, member, label, where)
    elif kind == "Point":
        drawing.add_points(places_of([parts], where), label)
    elif kind == "MultiPoint":
        drawing.add_points(places_of(parts, where), label)
    elif kind in ("LineString", "MultiLineString"):
        for line in [parts] if kind == "LineString" else _list(parts, where):
            drawing.add(Line(places_of(line, where), label))
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in [parts] if kind == "Polygon" else _list(parts, where):
            rings = [places_of(ring, where, 3) for ring in _list(polygon, where)]
            drawing.add(Area.of(rings, label))
    else:
        known = "Point, LineString, Polygon, their Multi forms and GeometryCollection are"
        raise OptionError(f"{where} has a geometry of the type {kind!r:.40}: {known} read")


def _is_collection(geometry: Any) -> bool:
    return isinstance(geometry, dict) and geometry.get("type") == "GeometryCollection"


def _list(parts: Any, where: str) -> list[Any]:
    if not isinstance(parts, list) or not parts:
        raise OptionError(f"{where} has coordinates that are not a list of positions [x, y]")
    return parts
