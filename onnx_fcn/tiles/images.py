"""Images of any size, read by region: TIFF with its pyramids, PNG and the like, .npy, zarr, and sound as .wav.

What a file is, its first bytes say. An image is opened for a network, which tells how many axes and channels it takes;
which axis of the file holds the channels follows from that: the last one, or else the first, that has as many.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fcn.errors import OptionError

__all__ = ["Image", "missing", "open_image", "order_of"]

Array = np.ndarray[Any, Any]
Box = tuple[slice, ...]

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Stored:
    """An array as it lies in a file: its shape, its type, and `fetch(box)`, which reads a part of it.

    `file` is what stays open for that.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fetch: Callable[[Box], Array]
    file: Any = None


@dataclass(frozen=True)
class Image:
    """An image that is read by region.

    Attributes:
        name: of the file.
        size: along each axis, in pixels.
        dtype: of the pixels.
    """

    name: str
    size: tuple[int, ...]
    dtype: np.dtype[Any]
    _stored: Stored
    _order: tuple[int, ...]

    def read(self, box: Box) -> Array:
        """The pixels of a box: (C, *space).

        Raises:
            OptionError: the file is damaged there.
        """
        stored = self._stored
        rank = len(self.size)
        index: list[slice] = [slice(0, 1)] * len(stored.shape)
        for axis, part in zip(self._order[-rank:], box):
            index[axis] = part
        if len(self._order) > rank:
            index[self._order[0]] = slice(None)
        with _sentence(self.name):
            pixels = np.asarray(stored.fetch(tuple(index)))
        others = tuple(k for k in range(pixels.ndim) if k not in self._order)
        pixels = pixels.squeeze(others)
        kept = sorted(self._order)
        pixels = pixels.transpose([kept.index(k) for k in self._order])
        return pixels if len(self._order) > rank else pixels[None]

    def close(self) -> None:
        """Nothing more will be read."""
        if self._stored.file is not None:
            self._stored.file.close()

    def identity(self) -> dict[str, Any]:
        """What tells this file from another one, without reading it all."""
        path = Path(self.name)
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        stamps = [[p.name if path.is_dir() else "", p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        return {"size": self.size, "type": self.dtype.str, "files": stamps}


def open_image(path: str | os.PathLike[str], rank: int, channels: int, level: int = 0) -> Image:
    """Open an image for a network with that many axes and channels.

    Args:
        path: the file, or the folder of a zarr store.
        rank: axes of the image: 2 for a picture.
        channels: that it must have; an image without an axis for them has one.
        level: of a pyramid; 0 is the finest.

    Raises:
        OptionError: it cannot be read, is no image, or has other axes or channels; a package is missing.
    """
    name = os.fspath(path)
    with _sentence(name):
        stored = _opened(name, level)
    try:
        order = order_of(stored.shape, rank, channels, f"'{name}'")
        if 0 in stored.shape:
            raise OptionError(f"'{name}' has no pixels: its shape is {stored.shape}")
    except OptionError:
        if stored.file is not None:
            stored.file.close()
        raise
    return Image(name, tuple(stored.shape[k] for k in order[-rank:]), stored.dtype, stored, order)


def order_of(shape: Sequence[int], rank: int, channels: int, name: str) -> tuple[int, ...]:
    """Which axes of an array are the channels, if it has an axis of them, and those of the image, in order.

    Raises:
        OptionError: it is no image of that many axes and channels.
    """
    axes = list(range(len(shape)))
    while len(axes) > rank and shape[axes[0]] == 1 and not (len(axes) == rank + 1 and channels == 1):
        axes.pop(0)
    if len(axes) == rank and channels == 1:
        return tuple(axes)
    if len(axes) == rank + 1:
        if shape[axes[-1]] == channels:
            return (axes[-1], *axes[:-1])
        if shape[axes[0]] == channels:
            return tuple(axes)
    kind = f"{rank} axes and {channels} channel{'s' * (channels > 1)}"
    raise OptionError(f"{name} has the shape {tuple(shape)}, and the model takes images with {kind}")


@contextlib.contextmanager
def _sentence(name: str) -> Iterator[None]:
    """Whatever a library says of a bad file, in one sentence."""
    try:
        yield
    except (OptionError, MemoryError):
        raise
    except ImportError as error:
        raise missing(f"reading '{name}'", error) from None
    except FileNotFoundError:
        raise OptionError(f"'{name}' does not exist") from None
    except Exception as error:  # each library has its own
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise OptionError(f"'{name}' cannot be read as an image: {reason or type(error).__name__}") from None


def missing(what: str, error: ImportError) -> OptionError:
    """The sentence for a package that is not there."""
    return OptionError(f"{what} needs {error.name}: pip install 'onnx_fcn[tiles]'")


def _opened(name: str, level: int) -> Stored:
    path = Path(name)
    if path.is_dir():
        return _zarr(name, level)
    with path.open("rb") as file:
        start = file.read(12)
    if start[:4] in TIFF_SIGNATURES:
        return _tiff(name, level)
    if level:
        raise OptionError(f"'{name}' is no pyramid, so it has no level {level}")
    if start[:6] == b"\x93NUMPY":
        return _npy(name)
    if start[:4] in (b"RIFF", b"RIFX") and start[8:] == b"WAVE":
        return _wav(name)
    return _picture(name)


def _npy(name: str) -> Stored:
    """Mapped anew for each region: pages that were read once would count as memory until the end."""

    def mapped() -> Array:
        array: Array = np.load(name, mmap_mode="r", allow_pickle=False)
        return array

    opened = mapped()
    return Stored(opened.shape, opened.dtype, lambda box: np.array(mapped()[box]))


def _zarr(name: str, level: int) -> Stored:
    import zarr

    try:
        store: Any = zarr.open(name, mode="r")
    except FileNotFoundError:
        raise OptionError(f"'{name}' is a folder, and no zarr store") from None
    if not hasattr(store, "shape"):  # a pyramid is a group of arrays, the finest first
        if str(level) not in store:
            raise OptionError(f"'{name}' is a group of arrays without a level '{level}'")
        store = store[str(level)]
    elif level:
        raise OptionError(f"'{name}' is no pyramid, so it has no level {level}")
    return Stored(tuple(store.shape), np.dtype(store.dtype), lambda box: np.asarray(store[box]))


def _tiff(name: str, level: int) -> Stored:
    """Its first image: mapped, if the pixels lie there as they are; else a region's tiles or strips are decoded."""
    import tifffile

    with tifffile.TiffFile(name) as file:
        levels = file.series[0].levels
        if level >= len(levels):
            raise OptionError(f"'{name}' has {len(levels)} levels, so there is no level {level}: the finest is 0")
        chosen = levels[level]
        shape, dtype, offset = chosen.shape, chosen.dtype, chosen.dataoffset
        if dtype is None:
            raise OptionError(f"'{name}' has pixels of a type that numpy does not know")
        if offset is not None:
            kind = dtype.newbyteorder(file.byteorder)
            return Stored(shape, dtype, lambda box: np.array(np.memmap(name, kind, "r", offset, shape)[box], dtype))
    import zarr

    store = tifffile.imread(name, aszarr=True, series=0, level=level)
    array: Any = zarr.open(store, mode="r")
    return Stored(shape, dtype, lambda box: np.asarray(array[box]), store)


def _wav(name: str) -> Stored:
    """Sound as (samples, channels), in integers as they are stored."""
    import wave

    file = wave.open(name, "rb")  # noqa: SIM115  (stays open as long as the image)
    channels, width = file.getnchannels(), file.getsampwidth()
    dtype = np.dtype({1: np.uint8, 2: np.int16, 3: np.int32, 4: np.int32}[width])

    def fetch(box: Box) -> Array:
        start, stop, _ = box[0].indices(file.getnframes())
        file.setpos(start)
        data = np.frombuffer(file.readframes(stop - start), np.uint8).reshape(-1, channels, width)
        if width == 3:  # the sign goes into a fourth byte
            data = np.concatenate([data, np.where(data[..., -1:] > 127, 255, 0).astype(np.uint8)], axis=-1)
        samples = np.ascontiguousarray(data).view(dtype.newbyteorder("<"))[..., 0]
        return samples[:, box[1]].astype(dtype)

    return Stored((file.getnframes(), channels), dtype, fetch, file)


def _picture(name: str) -> Stored:
    """PNG, JPEG and whatever else Pillow reads; these have no regions, so the whole is decoded."""
    import PIL.Image

    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None  # large images are what this is for
    try:
        with warnings.catch_warnings(), PIL.Image.open(name) as file:
            warnings.simplefilter("ignore")
            decoded = {"1": "L", "P": "RGB", "PA": "RGBA"}.get(file.mode)
            pixels = np.asarray(file.convert(decoded) if decoded else file)
    except PIL.UnidentifiedImageError:
        raise OptionError(f"'{name}' is not an image: TIFF, PNG, JPEG, .npy, .wav and zarr stores are read") from None
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit
    return Stored(pixels.shape, pixels.dtype, lambda box: pixels[box])
