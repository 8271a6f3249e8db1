"""The formats of maps: how each is created, written tile by tile, and completed.

    .npy    an array, with a JSON beside it if the image lies somewhere
    .zarr   an OME-Zarr group with coarser levels; of sound an array, since OME-Zarr has none of one axis
    .tif    GeoTIFF if the image lies in a CRS, OME-TIFF if its pixels have a physical size, otherwise TIFF
    .ome.tif

Compressed tiles of a TIFF cannot be written in any order, and again after an interruption. So a TIFF that is to have
them grows uncompressed, in a file whose values have a fixed place, and is packed when it is complete. Everything that
is made then is made from the values alone, beside the file or before anything refers to it, and may be made again.

Nothing is memory-mapped for longer than a read: pages of a mapping count as resident memory while it exists.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import importlib
import io
import itertools
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError, in_one_line
from onnx_fcn.images.placement import Placement
from onnx_fcn.tiles.description import Layer, crs_of, fill_of, geotiff, ngff, ome, plain, spatial

__all__ = ["SUFFIXES", "Format", "Map", "format_of"]


Box = tuple[slice, ...]

SUFFIXES = (".npy", ".tif", ".tiff", ".zarr")

#: Rows of a strip while a TIFF grows, and rows and columns of its tiles when it is packed.
STRIP, TILE = 64, 256

#: Bytes of a TIFF from which on its offsets have 64 bits: 4 GiB, less what is not pixels.
BIG = (1 << 32) - (1 << 27)

#: A zarr store has up to this many coarser levels, and none that are coarser than this many cells.
COARSER, SMALLEST = 3, 64

#: Coarser levels have the chunks of the finest, or half of these if they are larger: a chunk of it makes one of theirs.
CHUNK = 256


class Map(Protocol):
    """An array in a file."""

    def write(self, box: Box, values: Array) -> None:
        """Write a box through to the disk."""

    def close(self) -> None:
        """Close the file; nothing is written after this."""


class Format(Protocol):
    """A map as a file, or a folder, that grows under another name."""

    @property
    def needed(self) -> int:
        """Bytes that it needs on the disk until it is complete, if nothing can be compressed."""

    @property
    def beside(self) -> str:
        """The content of the file NAME.json beside it; empty if there is none."""

    def create(self, path: Path, chunk: Sequence[int]) -> None:
        """Create it without values. Raises ImportError if a package is missing for any of what follows."""

    def open(self, path: Path) -> Map:
        """Open it for writing. Raises ValueError if it is not as it was created."""

    def complete(self, path: Path) -> None:
        """Make everything that needs all values; may be called again, also after it was interrupted."""


def format_of(path: Path, layer: Layer, *, cog: bool = False) -> Format:
    """The format of a map, by the suffix of its name.

    Raises:
        OptionError: if it cannot store the map, or is no GeoTIFF although a COG is asked for.
    """
    kind = path.suffix.lower()
    is_ome = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    tiff = kind in (".tif", ".tiff")
    if cog and (not tiff or is_ome or layer.geokeys is None):
        why = f"'{path}' is not the name of one" if not tiff or is_ome else "the image is not a GeoTIFF"
        raise OptionError(f"--cog writes a GeoTIFF, and {why}: leave it out, or write the map of a GeoTIFF to a .tif")
    if kind == ".npy":
        return _Npy(layer)
    if not tiff:
        return _Zarr(layer) if len(layer.axes.lstrip("C")) > 1 else _ZarrArray(layer)
    is_geo = layer.geokeys is not None and not is_ome
    is_ome = is_ome or (layer.placement is not None and not is_geo)
    kind, width = layer.dtype.kind, layer.dtype.itemsize
    is_known = width > 2 if kind == "f" else kind in "iu" and (width < 8 or not is_ome)
    if not is_known or not 2 <= len(layer.shape) <= 3 + is_ome:
        raise OptionError(
            f"cannot write '{path}': {'OME-' * is_ome}TIFF does not store {len(layer.shape)} axes of type "
            f"{layer.dtype}: use .npy"
        )
    if is_geo and len(layer.names) > 65535:
        raise OptionError(
            f"cannot write '{path}': a GeoTIFF has at most 65535 bands, not {len(layer.names)}: use .zarr"
        )
    if is_geo or is_ome:
        return _PackedTiff(layer, geotiff(layer) if is_geo else ome(layer), cog=cog)
    return _Tiff(layer, {"photometric": "minisblack", "metadata": {"axes": "CYX"[-len(layer.shape) :]}})


class _Flat:
    """An array stored contiguously from an offset in a file: .npy, and TIFF without compression."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype[Any], offset: int) -> None:
        self._file = io.FileIO(path, "r+")
        self._shape, self._dtype, self._offset = shape, dtype, offset

    def write(self, box: Box, values: Array) -> None:
        values = np.ascontiguousarray(values, self._dtype)
        starts = np.meshgrid(*(np.arange(b.start, b.stop) for b in box[:-1]), [box[-1].start], indexing="ij")
        cells = np.ravel_multi_index(tuple(starts), tuple(self._shape)).ravel()
        offsets = self._offset + cells * self._dtype.itemsize
        fd = self._file.fileno()
        for offset, row in zip(offsets.tolist(), values.reshape(len(offsets), -1)):
            if os.pwrite(fd, row.data, offset) != row.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a full disk writes a part
        os.fsync(fd)

    def close(self) -> None:
        self._file.close()


def _flat(path: Path, layer: Layer, offset: int | None) -> _Flat:
    if offset is None or path.stat().st_size < offset + layer.nbytes:
        raise ValueError("not as it was created")
    return _Flat(path, layer.shape, layer.dtype, offset)


class _Npy:
    def __init__(self, layer: Layer) -> None:
        self.layer, self.needed = layer, layer.nbytes

    @functools.cached_property
    def beside(self) -> str:
        return "" if self.layer.placement is None else plain(self.layer, crs_of(self.layer))

    def create(self, path: Path, chunk: Sequence[int]) -> None:
        header = {"descr": self.layer.dtype.str, "fortran_order": False, "shape": self.layer.shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_2_0(file, header)
            file.truncate(file.tell() + self.layer.nbytes)

    def open(self, path: Path) -> Map:
        with path.open("rb") as header:
            np.lib.format.read_magic(header)
            np.lib.format.read_array_header_2_0(header)
            return _flat(path, self.layer, header.tell())

    def complete(self, path: Path) -> None:
        return None


class _Tiff:
    """A TIFF without compression; `how` are arguments of `tifffile.imwrite`."""

    beside = ""

    def __init__(self, layer: Layer, how: dict[str, Any]) -> None:
        self.layer, self.needed = layer, layer.nbytes
        self.how: dict[str, Any] = {"shape": layer.shape, "dtype": layer.dtype, "bigtiff": layer.nbytes > BIG, **how}

    def create(self, path: Path, chunk: Sequence[int]) -> None:
        import tifffile

        tifffile.imwrite(path, **self.how)

    def open(self, path: Path) -> Map:
        import tifffile

        with tifffile.TiffFile(path) as file:
            return _flat(path, self.layer, file.series[0].dataoffset)

    def complete(self, path: Path) -> None:
        return None


class _Packed:
    """A TIFF that is complete."""

    def write(self, box: Box, values: Array) -> None:
        raise ValueError("already packed")

    def close(self) -> None:
        return None


class _PackedTiff(_Tiff):
    """A TIFF that is tiled and compressed when it is complete."""

    def __init__(self, layer: Layer, how: dict[str, Any], *, cog: bool) -> None:
        super().__init__(layer, how)
        self.cog = cog
        self.needed = (3 if cog else 2) * layer.nbytes  # what is packed, beside what it is made from

    def create(self, path: Path, chunk: Sequence[int]) -> None:
        import tifffile

        importlib.import_module("rasterio" if self.cog else "imagecodecs")
        _remove(self._made(path))
        tifffile.imwrite(path, rowsperstrip=STRIP, **self.how)

    def open(self, path: Path) -> Map:
        return _Packed() if self._is_packed(path) else super().open(path)

    def complete(self, path: Path) -> None:
        if self._is_packed(path):
            return
        made = self._made(path)
        _remove(made)
        try:
            (self._pack_as_cog if self.cog else self._pack)(path, made)
            with made.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(made, path)
        finally:
            _remove(made)

    @staticmethod
    def _made(path: Path) -> Path:
        return path.with_name(f"{path.name}.packing")

    @staticmethod
    def _is_packed(path: Path) -> bool:
        import tifffile

        with tifffile.TiffFile(path) as file:
            return bool(file.series[0].keyframe.is_tiled)

    def _pack(self, path: Path, made: Path) -> None:
        import tifffile

        with tifffile.TiffFile(path) as file:
            offset = file.series[0].dataoffset
        how: Any = {"tile": (TILE, TILE), "compression": "zlib", "predictor": True, "buffersize": 1 << 24}
        tifffile.imwrite(made, data=self._tiles(path, offset), **self.how, **how)

    def _tiles(self, path: Path, offset: int | None) -> Iterator[Array]:
        """The tiles of each plane, row by row; those at the ends are filled with their last cells."""
        height, width = self.layer.shape[-2:]
        planes = (-1, height, width)
        for plane, top in itertools.product(range(math.prod(self.layer.shape[:-2])), range(0, height, TILE)):
            values = np.memmap(path, self.layer.dtype, "r", offset or 0, self.layer.shape).reshape(planes)
            rows = np.array(values[plane, top : top + TILE])
            del values
            rows = np.pad(rows, [(0, TILE - len(rows)), (0, -width % TILE)], "edge")
            for left in range(0, width, TILE):
                yield np.ascontiguousarray(rows[:, left : left + TILE])

    def _pack_as_cog(self, path: Path, made: Path) -> None:
        """By GDAL, with overviews: means of scores, and every second of class numbers."""
        import rasterio
        import rasterio.shutil

        resampling = "AVERAGE" if self.layer.dtype.kind == "f" else "NEAREST"
        how: Any = {"compress": "DEFLATE", "predictor": "YES", "bigtiff": "IF_SAFER", "overview_resampling": resampling}
        try:
            with rasterio.Env(GDAL_CACHEMAX=64), _silenced("rasterio"):  # megabytes
                rasterio.shutil.copy(os.path.abspath(path), os.path.abspath(made), driver="COG", **how)
                complete = self._is_complete(path, made)
        except Exception as error:  # GDAL's are not those of files
            raise OSError(in_one_line(error)) from None
        if not complete:
            raise OSError(errno.EIO, "GDAL wrote a part of it only, as it does when the disk is full")

    def _is_complete(self, path: Path, made: Path) -> bool:
        """Has a COG all tiles, and those values? GDAL does not tell if it could not write the last ones."""
        import rasterio
        import rasterio.windows
        import tifffile

        with tifffile.TiffFile(made) as file:
            size, pages = file.filehandle.size, list(file.pages)
            ends = [(at + n, n) for page in pages for at, n in zip(page.dataoffsets, page.databytecounts)]
        if not all(n and end <= size for end, n in ends):
            return False
        with rasterio.open(path) as source, rasterio.open(made) as copied:
            bands = range(1, source.count + 1)
            for top in range(0, source.height, 2 * TILE):  # rows of its tiles
                rows = rasterio.windows.Window(0, top, source.width, min(2 * TILE, source.height - top))
                if any(source.read(k, window=rows).tobytes() != copied.read(k, window=rows).tobytes() for k in bands):
                    return False
        return True


@contextlib.contextmanager
def _silenced(package: str) -> Iterator[None]:
    """Errors that are raised, or found afterwards, are not logged as well."""
    logger = logging.getLogger(package)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _remove(path: Path) -> None:
    """Remove a file, and what GDAL writes beside it."""
    for name in glob.glob(f"{glob.escape(str(path))}*"):
        with contextlib.suppress(OSError):
            os.unlink(name)


class _ZarrArrayMap:
    """An array of a zarr store; each tile is a chunk."""

    def __init__(self, path: Path) -> None:
        import zarr

        self._path, self._array = path, zarr.open_array(str(path), mode="r+")

    def write(self, box: Box, values: Array) -> None:
        self._array[box] = values
        chunk = "/".join(str(b.start // n) for b, n in zip(box, self._array.chunks))
        with contextlib.suppress(FileNotFoundError), (self._path / "c" / chunk).open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        return None


def _create_array(path: Path, layer: Layer, shape: Sequence[int], chunk: Sequence[int], said: dict[str, Any]) -> Any:
    import zarr

    return zarr.create_array(
        str(path),
        shape=tuple(shape),
        chunks=tuple(chunk),
        dtype=layer.dtype,
        fill_value=fill_of(layer.dtype),
        dimension_names=layer.axes.lower(),
        attributes=said,
        zarr_format=3,
        overwrite=True,
    )


def _remove_drafts(path: Path) -> None:
    """Remove what a killed run left of a chunk: zarr writes it under another name, and renames it."""
    for draft in path.rglob("*.partial"):
        draft.unlink()


class _ZarrArray:
    """An array as a zarr store."""

    beside = ""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.needed = layer, layer.nbytes

    def create(self, path: Path, chunk: Sequence[int]) -> None:
        _create_array(path, self.layer, self.layer.shape, chunk, {})

    def open(self, path: Path) -> Map:
        return _ZarrArrayMap(path)

    def complete(self, path: Path) -> None:
        _remove_drafts(path)


class _Zarr:
    """An OME-Zarr group: the map is the array 0, and 1, 2, … are coarser. It is a group when it is complete."""

    beside = ""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.needed = layer, layer.nbytes * 3 // 2

    @functools.cached_property
    def _crs(self) -> str:
        return crs_of(self.layer)

    def create(self, path: Path, chunk: Sequence[int]) -> None:
        path.mkdir()
        said = spatial(self.layer.placement, self._crs)
        _create_array(path / "0", self.layer, self.layer.shape, chunk, said)

    def open(self, path: Path) -> Map:
        return _ZarrArrayMap(path / "0")

    def complete(self, path: Path) -> None:
        import zarr

        _remove_drafts(path)
        finer: Any = zarr.open_array(str(path / "0"), mode="r")
        limits = _limits(finer) if self.layer.has_channels else []
        levels = [self.layer.physical]
        place = self.layer.placement
        while len(levels) <= COARSER and max(finer.shape[-len(levels[0].steps) :]) > SMALLEST:
            place = None if place is None else self._halved(place)
            levels.append(self._halved(levels[-1]))
            finer = self._halve(finer, path / str(len(levels) - 1), spatial(place, self._crs))
        group = {"zarr_format": 3, "node_type": "group", "attributes": ngff(self.layer, levels, limits)}
        made = path / "zarr.json.tmp"
        with made.open("w", encoding="utf-8") as file:
            json.dump(group, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path / "zarr.json")

    def _halved(self, place: Placement) -> Placement:
        """Where the cells of the next level lie: around two by two, or around every second one."""
        rank = len(place.steps)
        return place.resampled([0.0 if self.layer.dtype.kind == "f" else -0.5] * rank, [2.0] * rank)

    def _halve(self, finer: Any, path: Path, said: dict[str, Any]) -> Any:
        """Write the next coarser level: means of scores without those that were left out, and every second integer."""
        import zarr

        front = int(self.layer.has_channels)
        shape = (*finer.shape[:front], *(-(-n // 2) for n in finer.shape[front:]))
        half = (n if n <= CHUNK else -(-n // 2) for n in finer.chunks[front:])
        chunk = (*finer.chunks[:front], *map(min, half, shape[front:]))
        _create_array(path, self.layer, shape, chunk, said)
        coarser = _ZarrArrayMap(path)
        for box in _boxes(shape, chunk):
            there = (*box[:front], *(slice(2 * b.start, 2 * b.stop) for b in box[front:]))
            values = np.asarray(finer[there])
            axes = tuple(range(front, values.ndim))
            if values.dtype.kind == "f":
                coarser.write(box, _mean_of_pairs(values, axes))
            else:
                every_second = [slice(None)] * front + [slice(None, None, 2)] * len(axes)
                coarser.write(box, values[tuple(every_second)])
        return zarr.open_array(str(path), mode="r")


def _boxes(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[Box]:
    """The boxes of an array's chunks."""
    starts = itertools.product(*(range(0, n, c) for n, c in zip(shape, chunk)))
    return (tuple(slice(a, min(a + c, n)) for a, c, n in zip(start, chunk, shape)) for start in starts)


def _mean_of_pairs(values: Array, axes: Sequence[int]) -> Array:
    """Means of two by two (by two) cells without NaN; the last one along an axis may be alone."""
    kept = ~np.isnan(values)
    total, count = np.where(kept, values, 0), kept.astype(np.uint8)
    with np.errstate(all="ignore"):
        for axis in axes:
            at = np.arange(0, values.shape[axis], 2)
            total, count = np.add.reduceat(total, at, axis), np.add.reduceat(count, at, axis)
        mean: Array = (total / count).astype(values.dtype)
    return mean


def _limits(array: Any) -> list[tuple[float, float]]:
    """The least and the largest finite value of each channel, of cells that were not left out; 0 and 1 without any."""
    dtype = np.dtype(array.dtype)
    kind = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    low, high = np.full(array.shape[0], kind.max, dtype), np.full(array.shape[0], kind.min, dtype)
    for box in _boxes(array.shape, array.chunks):
        values, rows = np.asarray(array[box]).reshape(box[0].stop - box[0].start, -1), box[0]
        kept = np.isfinite(values) & (values != fill_of(dtype))
        low[rows] = np.minimum(low[rows], values.min(axis=1, initial=kind.max, where=kept))
        high[rows] = np.maximum(high[rows], values.max(axis=1, initial=kind.min, where=kept))
    return [(float(a), float(b)) if a <= b else (0.0, 1.0) for a, b in zip(low, high)]
