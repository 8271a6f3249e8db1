"""What a map says about itself in its file: where its cells lie, what its channels are, and which number is no answer.

Four formats say it, each in its own words:

    geotiff   the tags of a GeoTIFF (OGC 19-008r4), with names and nodata as GDAL writes them
    ome       the metadata of an OME-TIFF, as tifffile takes them
    ngff      the attributes of an OME-Zarr group (NGFF 0.5)
    plain     the same as JSON, for formats that have no place for it
"""

from __future__ import annotations

import io
import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from onnx_fcn.errors import printable
from onnx_fcn.images.placement import UNITS, GeoKeys, Placement, geotiff_tags
from onnx_fcn.running.network import Converted

__all__ = ["Layer", "crs_of", "fill_of", "geotiff", "layer_of", "ngff", "ome", "plain", "spatial"]


#: Tags in which GDAL keeps names, and the number that is no value.
GDAL_METADATA, GDAL_NODATA = 42112, 42113

#: The zarr conventions that say where an array lies, by name and UUID.
CONVENTIONS = {
    "spatial:": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "proj:": "f17cb550-5864-4468-aeb7-f3180cfb622f",
}

#: Colors of channels, in turn (Okabe and Ito's, which color-blind people can tell apart).
COLORS = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")


def fill_of(dtype: np.dtype[Any]) -> float:
    """The value of cells that were left out: NaN for floats, -1 for signed integers, the maximum for unsigned ones."""
    return math.nan if dtype.kind == "f" else -1 if dtype.kind == "i" else int(np.iinfo(dtype).max)


@dataclass(frozen=True)
class Layer:
    """A map as its file describes it.

    Attributes:
        shape: (channels, *cells), or (*cells,) of class numbers.
        dtype: type of its values.
        axes: a letter for each axis, such as ``CYX``.
        names: the names of its channels, or of the only one.
        classes: the names of the classes, if its values are their numbers and names are known; otherwise empty.
        placement: where its cells lie; None if the image does not say where it lies.
        physical: the same for formats without a CRS; in pixels of the image if it does not say where it lies.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    placement: Placement | None
    physical: Placement

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def geokeys(self) -> GeoKeys | None:
        """The CRS in which its cells lie; None if the image is not a GeoTIFF."""
        return None if self.placement is None else self.placement.geokeys

    @property
    def has_channels(self) -> bool:
        """Is there an axis of channels?"""
        return self.axes.startswith("C")


def layer_of(network: Converted, cells: Sequence[int], image: Placement | None) -> Layer:
    """The map of a converted network, for an image that lies there."""
    labels = tuple(map(printable, network.labels))
    names, classes = labels, tuple[str, ...]()
    if network.width is None:
        names, classes = (network.output,), labels
    elif len(labels) != network.width:
        names = tuple(f"{network.output} {k}" for k in range(network.width))
    physical = Placement.of_pixels([1.0] * network.rank) if image is None else image.on_ground()
    return Layer(
        network.map_shape(cells),
        network.output_type,
        "C" * (network.width is not None) + "ZYX"[-network.rank :],
        tuple(map(printable, names)),
        classes,
        None if image is None else image.cells(network.answers),
        physical.cells(network.answers),
    )


def geotiff(layer: Layer) -> dict[str, Any]:
    """Arguments of `tifffile.imwrite` for a GeoTIFF with a band for each channel."""
    assert layer.placement is not None, "only maps of GeoTIFFs are"
    items = [
        f'<Item name="DESCRIPTION" sample="{k}" role="description">{_twice(name)}</Item>'
        for k, name in enumerate(layer.names)
    ]
    items += [f'<Item name="{k}" sample="0">{_twice(name)}</Item>' for k, name in enumerate(layer.classes)]
    texts = {
        GDAL_METADATA: f"<GDALMetadata>{''.join(items)}</GDALMetadata>",
        GDAL_NODATA: str(fill_of(layer.dtype)),
    }
    extra = geotiff_tags(layer.placement) + [
        (code, 2, 0, text.encode("utf-8", "replace"), True) for code, text in texts.items()
    ]
    planes = {"planarconfig": "separate"} if layer.has_channels else {}
    return {"photometric": "minisblack", "metadata": None, "software": False, "extratags": extra, **planes}


def _twice(name: str) -> str:
    """A name as GDAL escapes it: as a value, and again as XML."""
    return escape(escape(name))


def ome(layer: Layer) -> dict[str, Any]:
    """Arguments of `tifffile.imwrite` for an OME-TIFF."""
    planes = math.prod(layer.shape[: -len(layer.axes.lstrip("CZ"))])
    symbol = UNITS[layer.physical.unit][0] if layer.physical.unit in UNITS else "pixel"
    said: dict[str, Any] = {"axes": layer.axes, "Plane": {}}
    for letter, size, middle in zip(layer.axes.lstrip("C"), layer.physical.scale, layer.physical.middle):
        said |= {f"PhysicalSize{letter}": size, f"PhysicalSize{letter}Unit": symbol}
        said["Plane"] |= {f"Position{letter}": [middle] * planes, f"Position{letter}Unit": [symbol] * planes}
    if layer.has_channels:
        said["Channel"] = {"Name": [_attribute(name) for name in layer.names]}
    said["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_OID, repr(layer)))  # the same when a run is resumed
    return {"photometric": "minisblack", "ome": True, "metadata": said, "software": False}


def _attribute(name: str) -> str:
    """A name as an attribute of XML."""
    return quoteattr(name)[1:-1]


def ngff(layer: Layer, levels: Sequence[Placement], limits: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Attributes of an OME-Zarr group of the arrays 0, 1 …, with the least and the largest value of each channel."""
    space = {"type": "space", **({"unit": layer.physical.unit} if layer.physical.unit else {})}
    axes = [{"name": "c", "type": "channel"}] * layer.has_channels
    front = [1.0] * len(axes)
    axes += [{"name": letter, **space} for letter in layer.axes.lstrip("C").lower()]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [*front, *place.scale]},
                {"type": "translation", "translation": [*(0.0 for _ in front), *place.middle]},
            ],
        }
        for level, place in enumerate(levels)
    ]
    said: dict[str, Any] = {"version": "0.5", "multiscales": [{"name": "map", "axes": axes, "datasets": datasets}]}
    if layer.has_channels:
        channels = [
            {
                "label": name,
                "color": COLORS[k % len(COLORS)],
                "active": k == 0,
                "window": {"min": low, "max": high, "start": low, "end": high},
            }
            for k, (name, (low, high)) in enumerate(zip(layer.names, limits))
        ]
        said["omero"] = {"channels": channels}
    return {"ome": said, **({"classes": list(layer.classes)} if layer.classes else {})}


def spatial(placement: Placement | None, crs: str) -> dict[str, Any]:
    """Attributes of a zarr array whose cells lie in a CRS, by the zarr conventions `spatial` and `proj`."""
    if placement is None or placement.geokeys is None:
        return {}
    said: dict[str, Any] = {"spatial:dimensions": ["y", "x"], "spatial:transform": list(placement.transform)}
    if crs:
        said["proj:code" if crs.startswith("EPSG:") else "proj:wkt2"] = crs
    known = [{"name": name, "uuid": code} for name, code in CONVENTIONS.items() if crs or name != "proj:"]
    return {"zarr_conventions": known, **said}


def plain(layer: Layer, crs: str) -> str:
    """JSON that says where a map lies: positions of middles as in OME-Zarr, and a transformation as rasterio has it."""
    physical, fill = layer.physical, fill_of(layer.dtype)
    said: dict[str, Any] = {
        "axes": layer.axes.lower(),
        "shape": list(layer.shape),
        "names": list(layer.names),
        **({"classes": list(layer.classes)} if layer.classes else {}),
        "nodata": "NaN" if math.isnan(fill) else fill,
        "unit": physical.unit or "pixel",
        "scale": list(physical.scale),
        "translation": list(physical.middle),
    }
    if layer.placement is not None and layer.geokeys is not None:
        said |= {"crs": crs, "transform": list(layer.placement.transform)}
    return json.dumps(said, ensure_ascii=False) + "\n"


def crs_of(layer: Layer) -> str:
    """The CRS of a map: an EPSG code, or WKT if it has none; empty if there is no CRS.

    Raises:
        ImportError: if it has no code, and rasterio, which knows its WKT, is not installed.
    """
    keys = layer.geokeys
    if keys is None or not keys.directory or keys.code:
        return "" if keys is None else keys.code
    import rasterio.io
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, shape=(1, 1), dtype=np.uint8, **{**geotiff(layer), "planarconfig": None})
    with rasterio.io.MemoryFile(file.getvalue()) as memory, memory.open() as opened:
        return str(opened.crs.to_wkt(version="WKT2_2019")) if opened.crs else ""
