"""Atomic writes: a file is written next to its target, synced, and renamed.

    with drafted("report.json") as draft:      # fails if the file cannot be written,
        draft.write(content)                   # here if the disk is full;
        draft.commit()                         # this replaces the target

A reader of the target always finds either the old file or the complete new one, even if the process is killed; a killed
process may leave a temporary file, which nobody reads. Models, whose weights are streamed, are written in the same way
(`storage`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx_fcn.errors import OptionError, reason_of

__all__ = [
    "Draft",
    "check_other",
    "create",
    "drafted",
    "put",
    "resolve",
    "sync_folder",
    "target_of",
    "temporary_path",
    "writing",
]


@dataclass(frozen=True)
class Draft:
    """A small file that is not yet in its place.

    Attributes:
        path: the file to write, as the user named it.
        target: the path with links followed.
        replaces: whether the target existed at the start; a file that appears later belongs to somebody else.
    """

    path: str | os.PathLike[str]
    target: Path
    replaces: bool
    _temporary: Path
    _fd: int

    def write(self, content: bytes) -> None:
        """Write the content and sync it.

        Raises:
            OptionError: if it cannot be written.
        """
        with writing(self.path):
            left = memoryview(content)
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)

    def commit(self) -> None:
        """Move the draft to its target.

        Raises:
            OptionError: if the target cannot be replaced, or appeared meanwhile.
        """
        with writing(self.path):
            put(self._temporary, self.target, replaces=self.replaces)
            sync_folder(self.target.parent)


@contextlib.contextmanager
def drafted(path: str | os.PathLike[str]) -> Iterator[Draft]:
    """A draft of a file, which is removed at the end unless it was committed.

    Raises:
        OptionError: if the file cannot be written.
    """
    target = target_of(path)
    beside, replaces = temporary_path(target), target.exists()
    try:
        with writing(path):
            fd = create(beside, target)
        try:
            yield Draft(path, target, replaces, beside, fd)
        finally:
            os.close(fd)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def check_other(
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    others: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Raises OptionError if the file to write is the model that is read, or another file that is."""
    target = os.path.realpath(output)
    if model is not None and os.path.realpath(model) == target:
        raise OptionError(f"'{os.fspath(output)}' is the model itself: write the result to another file")
    if target in map(os.path.realpath, others):
        raise OptionError(f"cannot write '{os.fspath(output)}': it is an input")


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file to write for `path`: links are followed, so that they stay links.

    Raises:
        OptionError: if it cannot be written.
    """
    name = os.fspath(path)
    with writing(path):
        target = resolve(path)
        if not target.parent.is_dir():
            parent = target.parent if os.path.islink(path) else Path(path).parent
            raise OptionError(f"cannot write '{name}': there is no directory '{parent}'")
        if target.is_dir():
            raise OptionError(f"cannot write '{name}': it is a directory")
        if target.exists() and not target.is_file():
            raise OptionError(f"cannot write '{name}': it is not a regular file")
        if target.exists() and not os.access(target, os.W_OK):
            raise OptionError(f"cannot write '{name}': it is write-protected")
    return target


def resolve(path: str | os.PathLike[str]) -> Path:
    """The path with all symbolic links followed. Raises OSError if it is not a path."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a null byte
        raise OSError(errno.EINVAL, str(error)) from None


def temporary_path(target: Path) -> Path:
    """A new name next to the target; it names this package, in case the file is left behind."""
    return target.with_name(f".onnx_fcn-{secrets.token_hex(4)}.tmp")


def create(path: Path, target: Path) -> int:
    """Create a file, with the permissions of the target if that exists, and return its descriptor."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(fd, stat.S_IMODE(target.stat().st_mode))
    except BaseException:
        os.close(fd)
        path.unlink()
        raise
    return fd


def put(made: Path, target: Path, *, replaces: bool) -> None:
    """Rename a file or a folder that was written to its target.

    Raises:
        FileExistsError: if the target exists, and `replaces` is false; both are left unchanged.
        OSError: if it cannot be renamed.
    """
    if replaces:
        os.replace(made, target)
    elif made.is_dir():
        if os.path.lexists(target):  # what appears after this line is replaced only if it is an empty folder
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
        os.rename(made, target)
    else:
        try:
            os.link(made, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)) from None
            os.rename(made, target)
        else:
            os.unlink(made)


@contextlib.contextmanager
def writing(target: str | os.PathLike[str]) -> Iterator[None]:
    """Raises OptionError, with a sentence for the user, for every OSError within."""
    try:
        yield
    except FileExistsError:
        raise OptionError(
            f"'{os.fspath(target)}' appeared meanwhile, and was left unchanged: move it away, or give another name"
        ) from None
    except OSError as error:
        raise OptionError(f"cannot write '{os.fspath(target)}': {reason_of(error)}") from None


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; systems that cannot open a folder do this by themselves."""
    with contextlib.suppress(PermissionError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
