"""Files with weights, mapped into memory, and stretches of them."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto

from onnx_fcn._types import Array
from onnx_fcn.errors import ModelError, OptionError, reason_of
from onnx_fcn.files import resolve

__all__ = ["IN_MEMORY", "Extent", "Piece", "Source", "Values", "is_text", "location_of", "open_external"]


IN_MEMORY = "\0model"  # the location of a model without a file; no file can have this name


class Source:
    """A mapped file with weights, or the bytes of a model in memory."""

    def __init__(
        self, location: str, data: Any, path: Path | None = None, identity: Identity = (), name: str = ""
    ) -> None:
        self.location, self.data, self.path, self.identity, self.name = location, data, path, identity, name
        self.view = np.frombuffer(data, np.uint8)

    @classmethod
    def open(cls, file: str | os.PathLike[str], location: str | None = None) -> Source:
        """Map a file; references to it have this location, or else its name.

        Raises:
            ModelError: if it cannot be opened, or is not a regular file.
        """
        name = os.fspath(file)
        try:
            path = resolve(file)
            # Without O_NONBLOCK, opening a named pipe waits for a writer.
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise ModelError(f"'{name}' does not exist") from None
        except OSError as error:
            raise ModelError(f"'{name}' cannot be opened: {reason_of(error)}") from None
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                if (path / "saved_model.pb").exists():
                    raise ModelError(f"'{name}' is a SavedModel of TensorFlow: convert it with tf2onnx")
                raise ModelError(f"'{name}' is a directory: pass the model file in it")
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"'{name}' is not a regular file")
            data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if status.st_size else b""
        finally:
            os.close(fd)
        location = location or (path.name if is_text(path.name) else IN_MEMORY)
        return cls(location, data, path, _identity(status), name)

    def __str__(self) -> str:
        return f"'{self.name}'" if self.name else "the model in memory"

    def release(self) -> None:
        """Release the pages of the map that have been read: they are read again from the file when needed."""
        if isinstance(self.data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def offset_of(self, array: Array) -> int | None:
        """The offset of an array in this source; None if it is not a contiguous view of its bytes."""
        offset = array.ctypes.data - self.view.ctypes.data
        inside = offset >= 0 and offset + array.nbytes <= self.view.nbytes
        return offset if inside and array.flags.c_contiguous else None

    def seen_from(self, folder: Path) -> str:
        """The file as an external-data location for a model in `folder`.

        Raises:
            OptionError: if it is not in this folder or beneath.
        """
        if self.path is None or not self.path.is_relative_to(folder) or not is_text(str(self.path)):
            raise OptionError(f"only a model in or above its folder can link to the weights in {self}: copy them")
        return self.path.relative_to(folder).as_posix()

    def check_unchanged(self) -> None:
        """Raises ModelError if the file was changed or removed since it was opened."""
        if self.path is not None:
            with self.reopen():
                pass

    @contextlib.contextmanager
    def reopen(self) -> Iterator[int]:
        """A descriptor of the mapped file.

        Raises:
            ModelError: if the file was changed or removed since it was opened.
        """
        assert self.path is not None
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except OSError:
            raise ModelError(f"{self} was removed since it was opened: start again") from None
        try:
            if _identity(os.fstat(fd)) != self.identity:
                raise ModelError(f"{self} was changed since it was opened: start again")
            yield fd
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Extent:
    """A stretch of the bytes of a source."""

    source: Source
    offset: int
    nbytes: int

    def view(self) -> Array:
        return self.source.view[self.offset : self.offset + self.nbytes]


Values: TypeAlias = "Array | Extent"  # of a tensor
Piece: TypeAlias = "memoryview | Values"  # of a file
Identity: TypeAlias = tuple[int, ...]


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_external(folder: Path, location: str, tensor: str) -> Source:
    """Open an external data file.

    Raises:
        ModelError: if it is not a regular file in the folder of the model or beneath.
    """
    path = folder / location
    where = f"the external data of tensor '{tensor}', '{location}',"
    if not location or "\0" in location or os.path.isabs(location):
        raise ModelError(f"{where} is not a relative path")
    if not resolve(path).is_relative_to(folder):
        raise ModelError(f"{where} is outside of the model's folder '{folder}'")
    if not os.path.exists(path):
        raise ModelError(f"{where} is missing: put it into '{folder}', next to the model")
    return Source.open(path, location)


def location_of(tensor: TensorProto) -> tuple[str, int, int | None]:
    """The (location, offset, length) of an external tensor.

    Raises:
        ModelError: if they are malformed.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = entries.get("location", ""), entries.get("offset", "0"), entries.get("length")
    for text in (offset, "0" if length is None else length):
        if not (isinstance(text, str) and re.fullmatch("[0-9]{1,19}", text)):
            raise ModelError(f"the offset or length of tensor '{tensor.name}' is {text!r}, not a number of bytes")
    if not isinstance(location, str):
        raise ModelError(f"tensor '{tensor.name}' is stored in {location!r}, which is not a name in UTF-8")
    return location, int(offset), int(length) if length is not None else None


def is_text(name: str) -> bool:
    """Can a model store this file name?"""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
