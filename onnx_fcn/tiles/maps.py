"""Maps that are written tile by tile: .npy, .tif, or a zarr store.

A map grows under the name of its target plus `.partial`, and is renamed when it is complete. A journal beside it lists
its tiles: the first line records what the map is made from, and each finished tile adds a line after its bytes are on
the disk. An interrupted run resumes from there; an unterminated line, the last of a killed process, is ignored.

Nothing is memory-mapped: pages of a mapping count as resident memory for as long as the process lives.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.files import put
from onnx_fcn.images.stored import missing_package

__all__ = ["Journal", "Map", "MapFile", "fill_of"]


Box = tuple[slice, ...]

SUFFIXES = (".npy", ".tif", ".tiff", ".zarr")


def fill_of(dtype: np.dtype[Any]) -> float:
    """The value of cells that were left out: NaN for floats, -1 for signed integers, the maximum for unsigned ones."""
    return math.nan if dtype.kind == "f" else -1 if dtype.kind == "i" else int(np.iinfo(dtype).max)


#: How a journal begins: the first key of its header.
START = b'{"onnx_fcn": '


class Map(Protocol):
    """An array in a file."""

    def write(self, box: Box, values: Array) -> None:
        """Write a box through to the disk."""

    def close(self) -> None:
        """Close the file; nothing is written after this."""


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


class _Zarr:
    """An array of a zarr store; each tile is a chunk."""

    def __init__(self, path: Path) -> None:
        import zarr

        self._path, self._array = path, zarr.open_array(str(path), mode="r+")

    def write(self, box: Box, values: Array) -> None:
        self._array[box] = values
        chunk = [b.start // n for b, n in zip(box, self._array.chunks)]
        for name in ("c/" + "/".join(map(str, chunk)), ".".join(map(str, chunk))):  # of formats 3 and 2
            with contextlib.suppress(FileNotFoundError), (self._path / name).open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        return None


class MapFile:
    """The files of a map: the target, the partial map beside it, and the journal."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises OptionError if the target exists, its folder does not, or its suffix is not that of a map."""
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.journal = self.path.with_name(self.path.name + ".journal")
        if self.path.suffix.lower() not in SUFFIXES:
            suffixes = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            raise OptionError(f"'{path}' is not the name of a map: it must end in {suffixes}")
        if os.path.lexists(self.path):
            raise OptionError(f"'{path}' exists: remove it, or write to another name")
        if not self.path.parent.is_dir():
            raise OptionError(f"cannot write '{path}': there is no folder '{self.path.parent}'")

    def create(self, shape: Sequence[int], dtype: np.dtype[Any], chunk: Sequence[int]) -> None:
        """Create the map, without values yet.

        Raises:
            OptionError: if the disk is too full, or the format cannot store it.
        """
        needed, free = math.prod(shape) * dtype.itemsize, shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise OptionError(
                f"cannot write '{self.path}': the map takes {_gigabytes(needed)}, and {_gigabytes(free)} are free"
            )
        kind = self.path.suffix.lower()
        with self.writing():
            self.discard()
            if kind == ".zarr":
                self._create_zarr(shape, dtype, chunk)
            elif kind == ".npy":
                header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
                with self.partial.open("wb") as file:
                    np.lib.format.write_array_header_2_0(file, header)
                    file.truncate(file.tell() + needed)
            else:
                self._create_tiff(shape, dtype)

    def _create_zarr(self, shape: Sequence[int], dtype: np.dtype[Any], chunk: Sequence[int]) -> None:
        import zarr

        options: Any = {"shape": tuple(shape), "chunks": tuple(chunk), "dtype": dtype, "fill_value": fill_of(dtype)}
        zarr.open_array(str(self.partial), mode="w", **options)

    def _create_tiff(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        import tifffile

        if len(shape) not in (2, 3) or dtype == np.float16:
            raise OptionError(
                f"cannot write '{self.path}': TIFF does not store {len(shape)} axes of type {dtype}: use .npy"
            )
        axes = "CYX"[-len(shape) :]
        how: Any = {"photometric": "minisblack", "metadata": {"axes": axes}, "bigtiff": math.prod(shape) > 1 << 28}
        tifffile.imwrite(self.partial, shape=tuple(shape), dtype=dtype, **how)

    def open(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Map:
        """Open the created map for writing."""
        kind = self.path.suffix.lower()
        with self.writing():
            if kind == ".zarr":
                return _Zarr(self.partial)
            if kind == ".npy":
                with self.partial.open("rb") as header:
                    np.lib.format.read_magic(header)
                    np.lib.format.read_array_header_2_0(header)
                    return self._flat(shape, dtype, header.tell())
            import tifffile

            with tifffile.TiffFile(self.partial) as file:
                return self._flat(shape, dtype, file.series[0].dataoffset)

    def _flat(self, shape: Sequence[int], dtype: np.dtype[Any], offset: int | None) -> _Flat:
        if offset is None or self.partial.stat().st_size < offset + math.prod(shape) * dtype.itemsize:
            raise ValueError("not as it was created")
        return _Flat(self.partial, shape, dtype, offset)

    def discard(self) -> None:
        """Remove what was begun."""
        if self.partial.is_dir() and not self.partial.is_symlink():
            shutil.rmtree(self.partial)
        else:
            self.partial.unlink(missing_ok=True)

    def finish(self) -> None:
        """Rename the map to its target.

        Raises:
            OptionError: if the target exists by now; the map then keeps its partial name.
        """
        with self.writing():
            try:
                put(self.partial, self.path, replaces=False)
            except FileExistsError:
                raise OptionError(
                    f"'{self.path}' appeared while the map was made, and was not replaced: move it away, and run the "
                    f"same command again, which finds all tiles in '{self.partial}'"
                ) from None
            self.journal.unlink()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns errors of writing a map into one sentence."""
        try:
            yield
        except ImportError as error:
            raise missing_package(f"writing '{self.path}'", error) from None
        except OSError as error:
            raise OptionError(f"cannot write '{self.path}': {error.strerror or error}") from None
        except (IndexError, ValueError):  # of files that an earlier run should have left
            raise OptionError(
                f"'{self.partial}' is not the map that was begun: remove it and '{self.journal}' to start over"
            ) from None


class Journal:
    """The file that lists the finished tiles of a map: a header, then one line per tile.

    Attributes:
        header: the first line; None if no map was begun.
        done: numbers of the finished tiles.
    """

    def __init__(self, path: Path) -> None:
        """Open it exclusively.

        Raises:
            OptionError: if another run is writing it, or it is not a journal.
        """
        self.path = path
        self.header: dict[str, Any] | None = None
        self.done: set[int] = set()
        try:
            self._file = io.FileIO(path, "a+")
        except OSError as error:
            raise OptionError(f"cannot write '{path}': {error.strerror}") from None
        _lock(self._file, path)
        self._file.seek(0)
        text = self._file.readall()
        *lines, torn = text.split(b"\n")
        try:
            if lines:
                self.header = json.loads(lines[0])
                self.done = {int(line) for line in lines[1:]}
            if not isinstance(self.header, dict | None):
                raise ValueError("something else")
            if text[: len(START)] != START[: len(text)]:
                raise ValueError("something else")
        except (RecursionError, ValueError):
            self._file.close()
            raise OptionError(f"'{path}' is not the journal of an unfinished map: move it away") from None
        self._file.truncate(len(text) - len(torn))

    @property
    def tile(self) -> int | None:
        """The tile size that the map was begun with."""
        tile = (self.header or {}).get("tile")
        return tile if isinstance(tile, int) and tile > 0 else None

    def check(self, header: Mapping[str, Any]) -> None:
        """Raises OptionError if the map that was begun differs in anything that determines it."""
        before, wanted = self.header or {}, json.loads(json.dumps(header))
        if others := [key for key in wanted if before.get(key) != wanted[key]]:
            raise OptionError(
                f"'{self.path}' is of an unfinished map with another {' and another '.join(others)}: give the same "
                "again to resume, or remove it to start over"
            )

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write the header of a map without tiles."""
        self._file.truncate(0)
        self.done = set()
        self._write(json.dumps(header))

    def discard(self) -> None:
        """Remove the header and all tiles."""
        self._file.truncate(0)
        self.done = set()

    def add(self, number: int) -> None:
        """Record a tile whose values are on the disk."""
        self._write(str(number))
        self.done.add(number)

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n".encode())
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release it; an empty journal is removed."""
        if not os.fstat(self._file.fileno()).st_size:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _lock(file: io.FileIO, path: Path) -> None:
    """Lock out other runs while the file is open, if the system supports it."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OptionError(f"another run is writing what '{path}' lists") from None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
