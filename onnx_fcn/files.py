"""A file is there whole or not at all: it is written beside its target, put onto the disk, and renamed.

    with drafted("report.json") as draft:      # whether it can be written is known here,
        draft.write(content)                   # a full disk here,
        draft.commit()                         # and here it takes its place

Whoever reads the target finds the old file or the new one, also if the process is killed at any moment; what a killed
process may leave behind is a temporary file, which nobody reads. Models, whose weights are streamed, go the same way
(`storage`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx_fcn.errors import OptionError, reason_of

__all__ = ["Draft", "created", "drafted", "put", "resolved", "sync_folder", "target_of", "temporary", "writing"]


@dataclass(frozen=True)
class Draft:
    """A small file that is not yet in its place.

    Attributes:
        path: the file to write, as the user named it.
        target: the same with links followed.
        replaces: was there a file before? What appears meanwhile is somebody else's.
    """

    path: str | os.PathLike[str]
    target: Path
    replaces: bool
    _temporary: Path
    _fd: int

    def write(self, content: bytes) -> None:
        """Write all of it, onto the disk.

        Raises:
            OptionError: it cannot be written.
        """
        with writing(self.path):
            left = memoryview(content)
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)

    def commit(self) -> None:
        """Put it in its place.

        Raises:
            OptionError: the target cannot be replaced, or appeared meanwhile.
        """
        with writing(self.path):
            put(self._temporary, self.target, replaces=self.replaces)
            sync_folder(self.target.parent)


@contextlib.contextmanager
def drafted(path: str | os.PathLike[str]) -> Iterator[Draft]:
    """A draft of a file, which is gone afterwards unless it was committed.

    Raises:
        OptionError: the file cannot be written.
    """
    target = target_of(path)
    beside, replaces = temporary(target), target.exists()
    try:
        with writing(path):
            fd = created(beside, target)
        try:
            yield Draft(path, target, replaces, beside, fd)
        finally:
            os.close(fd)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file to write for `path`: links are followed, so that they stay links.

    Raises:
        OptionError: it cannot be written.
    """
    name = os.fspath(path)
    with writing(path):
        target = resolved(path)
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


def resolved(path: str | os.PathLike[str]) -> Path:
    """The path with all symbolic links followed."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a null byte
        raise OSError(errno.EINVAL, str(error)) from None


def temporary(target: Path) -> Path:
    """A new name beside the target, which says whose it is if it is ever left behind."""
    return target.with_name(f".onnx_fcn-{secrets.token_hex(4)}.tmp")


def created(path: Path, target: Path) -> int:
    """A descriptor of a new file, with the permissions of the target if that is there already."""
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
    """Give what was made its name: a file, or a folder.

    Raises:
        FileExistsError: something has that name, and is not to be replaced; it is as it was, and so is what was made.
        OSError: it cannot be renamed.
    """
    if replaces:
        os.replace(made, target)
    elif made.is_dir():
        if os.path.lexists(target):  # and between this and the next line it takes at most the place of an empty folder
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
    """Say what the system's refusals mean."""
    try:
        yield
    except FileExistsError:
        raise OptionError(
            f"'{os.fspath(target)}' appeared meanwhile, and was left as it is: move it away, or give another name"
        ) from None
    except OSError as error:
        raise OptionError(f"cannot write '{os.fspath(target)}': {reason_of(error)}") from None


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last; a system that cannot open a folder does so by itself."""
    with contextlib.suppress(PermissionError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
