"""Where the pixels of an image lie: in a coordinate reference system (CRS), or in micrometers on a slide.

Pixels are counted from the corner of the first one, as GDAL does: pixel i covers i … i + 1, and its middle is i + ½.
Formats differ in this, and here is where they meet:

    GeoTIFF     the corner, or the middle if GTRasterTypeGeoKey is RasterPixelIsPoint (OGC 19-008r4)
    OME-Zarr    the middle: `translation` is where the value of index 0 is (NGFF 0.4 and 0.5)
    OME-TIFF    the middle, as in OME-Zarr, for `PositionX`; without one it is the zero point
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

from onnx_fcn.geometry import Answers

__all__ = ["UNITS", "GeoKeys", "Placed", "Placement", "geotiff_tags", "placed_by_ngff", "placed_by_tiff"]


#: The units of length of NGFF: their symbols in OME-TIFF, and their lengths in meters.
UNITS = {
    "angstrom": ("Å", 1e-10),
    "nanometer": ("nm", 1e-9),
    "micrometer": ("µm", 1e-6),
    "millimeter": ("mm", 1e-3),
    "centimeter": ("cm", 1e-2),
    "meter": ("m", 1.0),
    "kilometer": ("km", 1e3),
    "inch": ("in", 0.0254),
    "foot": ("ft", 0.3048),
}

#: TIFF tags of GeoTIFF (OGC 19-008r4, annex B).
PIXEL_SCALE, TIEPOINT, TRANSFORMATION = 33550, 33922, 34264
DIRECTORY, DOUBLES, TEXT = 34735, 34736, 34737
GEOTIFF = (PIXEL_SCALE, TIEPOINT, TRANSFORMATION, DIRECTORY, DOUBLES, TEXT)

#: GeoKeys: what tiepoints are about, the codes of the CRS, and its unit of length.
RASTER_TYPE, GEOGRAPHIC, PROJECTED, VERTICAL, LINEAR_UNITS = 1025, 2048, 3072, 4096, 3076

#: EPSG codes are in this range; 32767 is a CRS that the other keys define.
CODES = range(1024, 32767)

#: What reading metadata of another structure raises: such an image has no known place.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, ElementTree.ParseError, struct.error)

Vector = tuple[float, ...]


@dataclass(frozen=True)
class GeoKeys:
    """A CRS as the tags of a GeoTIFF, which are copied unchanged: no software has to understand it.

    Attributes:
        directory: GeoKeyDirectoryTag; empty if the file names no CRS.
        doubles: GeoDoubleParamsTag.
        text: GeoAsciiParamsTag.
    """

    directory: tuple[int, ...] = ()
    doubles: tuple[float, ...] = ()
    text: str = ""

    def __getitem__(self, key: int) -> int | None:
        """The value of a key with one short integer; None if there is none."""
        entries = (self.directory[k : k + 4] for k in range(4, len(self.directory), 4))
        return next((value for number, tag, _, value in entries if number == key and tag == 0), None)

    @property
    def is_point(self) -> bool:
        """Are tiepoints about the middle of a pixel, and not about its corner?"""
        return self[RASTER_TYPE] == 2

    @property
    def code(self) -> str:
        """The CRS as an EPSG code; empty if it has none."""
        code = self[PROJECTED] if self[PROJECTED] is not None else self[GEOGRAPHIC]
        return f"EPSG:{code}" if code in CODES and self[VERTICAL] is None else ""


@dataclass(frozen=True)
class Placement:
    """Where the pixels of an image, or the cells of a map, lie.

    The position of pixel (i, j), with fractions, is origin + i·steps[0] + j·steps[1]. Axes are those of the image, the
    slowest first, and positions have one coordinate for each: y before x, also in a CRS.

    Attributes:
        origin: the position of the corner of the first pixel.
        steps: for each axis, the way from a pixel to the next one.
        unit: the unit of positions, in NGFF's words, such as ``micrometer``; empty if unknown, or in a CRS.
        geokeys: the CRS of positions; None if there is none.
    """

    origin: Vector
    steps: tuple[Vector, ...]
    unit: str = ""
    geokeys: GeoKeys | None = None

    @classmethod
    def of_pixels(cls, size: Sequence[float], middle: Sequence[float] | None = None, unit: str = "") -> Placement:
        """Pixels of a physical size along each axis; `middle` is the position of the first one's middle."""
        at = middle or [0.0] * len(size)
        steps = tuple(tuple(s if k == j else 0.0 for j in range(len(size))) for k, s in enumerate(size))
        return cls(tuple(m - s / 2 for m, s in zip(at, size)), steps, unit)

    def position(self, *pixel: float) -> Vector:
        """The position of a pixel, counted from the corner of the first one."""
        along = list(zip(pixel, self.steps))
        return tuple(o + math.fsum(p * step[k] for p, step in along) for k, o in enumerate(self.origin))

    @property
    def middle(self) -> Vector:
        """The position of the middle of the first pixel."""
        return self.position(*[0.5] * len(self.steps))

    @property
    def size(self) -> Vector:
        """The length of a pixel along each axis."""
        return tuple(math.hypot(*step) for step in self.steps)

    @property
    def scale(self) -> Vector:
        """The way from a pixel to the next one along each axis, if axes are those of the positions; may be negative."""
        return tuple(step[k] for k, step in enumerate(self.steps))

    @property
    def transform(self) -> Vector:
        """A picture's x = a·column + b·row + c and y = d·column + e·row + f, as in rasterio: (a, b, c, d, e, f)."""
        (e, b), (d, a) = self.steps
        f, c = self.origin
        return a, b, c, d, e, f

    def resampled(self, corner: Sequence[float], scale: Sequence[float]) -> Placement:
        """A grid of larger pixels: the corner of its first one, and their sizes, in pixels of this one."""
        steps = tuple(tuple(s * v for v in step) for s, step in zip(scale, self.steps))
        return replace(self, origin=self.position(*corner), steps=steps)

    def cells(self, answers: Answers) -> Placement:
        """The cells of a map of this image.

        A cell is a pixel of `stride` pixels around the middle of its window, which is offset + window/2 for cell 0, so
        its corner is offset + window/2 - stride/2.
        """
        axes = zip(answers.offset, answers.window, answers.stride)
        corner = [float(o + Fraction(w) / 2 - Fraction(s) / 2) for o, w, s in axes]
        return self.resampled(corner, [float(s) for s in answers.stride])

    def along(self, axes: Sequence[int]) -> Placement:
        """The same for some of the axes."""
        steps = tuple(tuple(self.steps[k][j] for j in axes) for k in axes)
        return replace(self, origin=tuple(self.origin[k] for k in axes), steps=steps)

    def on_ground(self) -> Placement:
        """The same for software that knows no CRS: distances from the first pixel's middle, with y downwards."""
        if self.geokeys is None:
            return self
        return Placement.of_pixels(self.size, unit="meter" if self.geokeys[LINEAR_UNITS] == 9001 else "")

    @property
    def is_valid(self) -> bool:
        """Are all numbers finite, and all pixels of some size?"""
        return all(map(math.isfinite, self.origin + sum(self.steps, ()))) and all(s > 0 for s in self.size)

    def __str__(self) -> str:
        size, unit, keys = "×".join(f"{s:g}" for s in self.size), self.on_ground().unit, self.geokeys
        crs = "" if keys is None else keys.code or ("its CRS" if keys.directory else "")
        return f"{size}{' ' * bool(unit)}{unit}{', ' * bool(crs)}{crs}"


#: A placement, and for each of its axes that of the stored array.
Placed = tuple[Placement, tuple[int, ...]]


def placed_by_ngff(attributes: Mapping[str, Any], path: str) -> Placed | None:
    """The place of an array of an OME-Zarr group, from its coordinate transformations (NGFF 0.4 and 0.5).

    Args:
        attributes: the attributes of the group.
        path: the array in this group.
    """
    with contextlib.suppress(*MALFORMED):
        several = attributes.get("ome", attributes)["multiscales"][0]
        level = next(each for each in several["datasets"] if each["path"] == path)
        axes = [k for k, axis in enumerate(several["axes"]) if axis["type"] == "space"]
        units = {several["axes"][k].get("unit", "") for k in axes}
        scale, middle = [1.0] * len(several["axes"]), [0.0] * len(several["axes"])
        for step in (*level["coordinateTransformations"], *several.get("coordinateTransformations", ())):
            if step["type"] == "scale":
                scale = [a * float(b) for a, b in zip(scale, step["scale"], strict=True)]
                middle = [a * float(b) for a, b in zip(middle, step["scale"], strict=True)]
            elif step["type"] == "translation":
                middle = [a + float(b) for a, b in zip(middle, step["translation"], strict=True)]
            elif step["type"] != "identity":
                return None
        unit = units.pop() if len(units) == 1 else ""
        return _checked(Placement.of_pixels(scale, middle, str(unit)).along(axes), axes)
    return None


def placed_by_tiff(file: Any, level: int) -> Placed | None:
    """The place of the first image of a `tifffile.TiffFile`, at a level of its pyramid.

    From the tags of GeoTIFF, the metadata of OME-TIFF, or the description that Aperio's scanners write.
    """
    with contextlib.suppress(*MALFORMED):
        levels = file.series[0].levels
        finest, chosen = levels[0], levels[level]
        page = finest.keyframe
        placement = (
            _by_geotiff({code: page.tags[code].value for code in GEOTIFF if code in page.tags})
            or (_by_ome(file.ome_metadata, finest.axes) if file.is_ome else None)
            or _by_aperio(page.description)
        )
        if placement is None:
            return None
        axes = [k for k, letter in enumerate(finest.axes) if letter in "ZYX"][-len(placement.steps) :]
        factors = [finest.shape[k] / chosen.shape[k] for k in axes]
        if placement.geokeys is None:
            factors = [_whole(finest.shape[k], chosen.shape[k]) for k in axes]
        return _checked(placement.resampled([0] * len(axes), factors), axes)
    return None


def _checked(placement: Placement, axes: Sequence[int]) -> Placed | None:
    return (placement, tuple(axes)) if axes and placement.is_valid else None


def _whole(finest: int, coarse: int) -> float:
    """The factor of a level: a whole number if the sizes are those that it gives, rounded up or down.

    A picture of 307 pixels has 153 or 154 at half its resolution. GDAL instead spreads the pixels of an overview over
    the whole image, so its factor is the ratio.
    """
    ratio = finest / coarse
    near = round(ratio)
    return float(near) if coarse in (finest // near, -(-finest // near)) else ratio


def _by_geotiff(tags: Mapping[int, Any]) -> Placement | None:
    """As GDAL reads it: a tiepoint with a scale, otherwise the matrix. Ground control points alone are no place."""
    text = tags.get(TEXT, "")
    text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    keys = GeoKeys(tuple(map(int, tags.get(DIRECTORY, ()))), tuple(map(float, tags.get(DOUBLES, ()))), text)
    scale, tie, matrix = tags.get(PIXEL_SCALE, ()), tags.get(TIEPOINT, ()), tags.get(TRANSFORMATION, ())
    if len(scale) >= 2 and len(tie) >= 6 and scale[0] and scale[1]:
        a, e = float(scale[0]), -abs(float(scale[1]))
        b, c, d, f = 0.0, tie[3] - tie[0] * a, 0.0, tie[4] - tie[1] * e
    elif len(matrix) == 16:
        a, b, c = matrix[0], matrix[1], matrix[3]
        d, e, f = matrix[4], matrix[5], matrix[7]
    else:
        return None
    placement = Placement((float(f), float(c)), ((float(e), float(b)), (float(d), float(a))), geokeys=keys)
    return placement.resampled([-0.5, -0.5], [1, 1]) if keys.is_point else placement


def geotiff_tags(placement: Placement) -> list[tuple[int, int, int, Any, bool]]:
    """The tags of a GeoTIFF that lies there, as tifffile takes them: (code, type, count, values, only once)."""
    keys = placement.geokeys or GeoKeys()
    a, b, _, d, e, _ = placement.transform
    f, c = placement.middle if keys.is_point else placement.origin
    tags: dict[int, tuple[float, ...]] = {DIRECTORY: keys.directory, DOUBLES: keys.doubles}
    if b == d == 0 and a > 0 > e:
        tags |= {PIXEL_SCALE: (a, -e, 0.0), TIEPOINT: (0.0, 0.0, 0.0, c, f, 0.0)}
    else:
        tags[TRANSFORMATION] = (a, b, 0.0, c, d, e, 0.0, f, *[0.0] * 7, 1.0)
    kinds = {DIRECTORY: 3}  # short integers; all others are doubles
    text = [(TEXT, 2, 0, keys.text.encode("utf-8", "replace"), True)] if keys.text else []
    return [(code, kinds.get(code, 12), len(values), values, True) for code, values in tags.items() if values] + text


def _by_ome(description: str, axes: str) -> Placement | None:
    """From OME-XML: PhysicalSize of its first image, and Position of the first plane, in a unit of length."""
    pixels = ElementTree.fromstring(description).find("{*}Image/{*}Pixels")
    if pixels is None:
        return None
    plane = pixels.find("{*}Plane")
    size, middle = [], []
    names = {symbol: name for name, (symbol, _) in UNITS.items()}
    space = [letter for letter in axes if letter in "ZYX"]
    if "PhysicalSizeZ" not in pixels.attrib:
        space = [letter for letter in space if letter != "Z"]
    unit = names.get(_micro(pixels.get(f"PhysicalSize{space[-1]}Unit", "µm")), "")
    for letter in space:
        own = names.get(_micro(pixels.get(f"PhysicalSize{letter}Unit", "µm")), "")
        size.append(float(pixels.attrib[f"PhysicalSize{letter}"]) * _ratio(own, unit))
        at = {} if plane is None else plane.attrib
        there = names.get(_micro(at.get(f"Position{letter}Unit", "")), "")  # by default, of the microscope's own frame
        middle.append(float(at.get(f"Position{letter}", 0)) * _ratio(there, unit) if there and unit else 0.0)
    return Placement.of_pixels(size, middle, unit)


def _micro(symbol: str) -> str:
    """Greek mu and the micro sign are one."""
    return symbol.replace("\u03bc", "\u00b5")


def _ratio(unit: str, other: str) -> float:
    return 1.0 if unit == other else UNITS[unit][1] / UNITS[other][1]


def _by_aperio(description: str) -> Placement | None:
    """From the description of .svs files: `Aperio Image Library … |MPP = 0.4990|…`, in micrometers."""
    found = re.search(r"\|\s*MPP\s*=\s*([\d.]+)", description)
    if found is None or not description.startswith("Aperio"):
        return None
    return Placement.of_pixels([float(found[1])] * 2, unit="micrometer")
