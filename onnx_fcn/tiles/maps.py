"""Maps that are written tile by tile, and the journal from which an interrupted run resumes.

A map grows under the name of its target plus `.partial`, and is renamed when it is complete. A journal beside it lists
its tiles: the first line records what the map is made from, and each finished tile adds a line after its bytes are on
the disk. An interrupted run resumes from there; an unterminated line, the last of a killed process, is ignored. What a
format makes of all values, such as coarser levels, is made under the partial name, and again if that is interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_fcn.errors import OptionError
from onnx_fcn.files import drafted, put
from onnx_fcn.images.stored import missing_package
from onnx_fcn.tiles.formats import SUFFIXES, Format, Map

__all__ = ["Journal", "MapFile"]


#: How a journal begins: the first key of its header.
START = b'{"onnx_fcn": '


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

    @property
    def beside(self) -> Path:
        """The file that says what the map's format does not."""
        return self.path.with_name(self.path.name + ".json")

    def create(self, form: Format, chunk: Sequence[int]) -> None:
        """Create the map, without values yet.

        Raises:
            OptionError: if the disk is too full, or a package is missing.
        """
        free = shutil.disk_usage(self.path.parent).free
        if form.needed > free:
            raise OptionError(
                f"cannot write '{self.path}': the map takes {_gigabytes(form.needed)}, and {_gigabytes(free)} are free"
            )
        with self.writing():
            self._writes_beside(form)
            self.discard()
            try:
                form.create(self.partial, chunk)
            except BaseException:
                self.discard()
                raise

    def open(self, form: Format) -> Map:
        """Open the created map for writing."""
        with self.writing():
            return form.open(self.partial)

    def _writes_beside(self, form: Format) -> bool:
        """Is a file to be written beside the map? Raises OptionError if there is another."""
        if not form.beside or not os.path.lexists(self.beside):
            return bool(form.beside)
        if not self.beside.is_file() or self.beside.read_bytes() != form.beside.encode():
            raise OptionError(f"'{self.beside}' exists, where the place of the map is to be written: remove it")
        return False  # of a run that was interrupted

    def discard(self) -> None:
        """Remove what was begun."""
        if self.partial.is_dir() and not self.partial.is_symlink():
            shutil.rmtree(self.partial)
        else:
            self.partial.unlink(missing_ok=True)

    def finish(self, form: Format) -> None:
        """Complete the map, and rename it to its target.

        Raises:
            OptionError: if the target exists by now; the map then keeps its partial name.
        """
        with self.writing():
            form.complete(self.partial)
            if self._writes_beside(form):
                with drafted(self.beside) as draft:
                    draft.write(form.beside.encode())
                    draft.commit()
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
