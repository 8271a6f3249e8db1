"""Writes a model and its weights next to the target, streamed and synced, and replaces the target atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto

from onnx_fcn.errors import ModelError, OptionError
from onnx_fcn.files import create, put, resolve, sync_folder, target_of, temporary_path, writing
from onnx_fcn.model import wire
from onnx_fcn.model.payloads import BLOCK, blocks
from onnx_fcn.model.sources import Extent, Piece, is_text, location_of
from onnx_fcn.model.storage import ALIGNMENT, COMPUTED, LARGE, LARGEST_FILE, PAGE, Store, Substitute, read

__all__ = ["Staged", "staged"]


try:
    import fcntl
except ImportError:  # Windows, where a mapped file cannot be removed anyway
    fcntl = None  # type: ignore[assignment]


SYNCED = 64 << 20  # bytes after which a sync begins


@contextlib.contextmanager
def staged(
    path: str | os.PathLike[str],
    store: Store,
    skeleton: ModelProto,
    *,
    edited: bool,
    external_data: bool | None = None,
    link_data: bool = False,
) -> Iterator[Staged]:
    """Write a model to a temporary file next to `path`, which replaces `path` when the stage is committed.

    Args:
        path: a file, or a link to one, that may exist.
        store: the payloads.
        skeleton: the model, with references to them.
        edited: whether the skeleton was edited after it was read.
        external_data: whether large payloads go to a data file. None: payloads that came from one do, and all do if
            the model file would otherwise be larger than 2 GB.
        link_data: refer to payloads in the files of the store instead of copying them.

    Raises:
        OptionError: if `path` cannot be written.
        ModelError: if the source has changed since it was opened.
    """
    with writing(path):
        target = target_of(resolve(path))
        if target in store.paths and target != store.path:
            raise OptionError(f"cannot write '{os.fspath(path)}': the model's weights are in it")
        stage = Staged(target, store)
    try:
        stage._write(skeleton, edited, external_data, link_data)
        yield stage
    finally:
        stage._discard()


class Staged:
    """A model that is written, but not yet in its place.

    Attributes:
        path: the temporary model file; it can be opened and run like any other.
        target: the file that `commit` replaces or creates.
        data: the data file next to the model, already under its final name; None if all weights are in the model.
        size: bytes of both files.
    """

    def __init__(self, target: Path, store: Store) -> None:
        self.target = target
        self.path = temporary_path(target)
        self._replaces = target.exists()  # a file that appears later belongs to somebody else
        self.data: Path | None = None
        self.size = 0
        self._store = store
        self._made: dict[Path, int] = {}  # files to remove unless committed, with their inodes
        self._syncs: list[_Sync] = []
        self._held = contextlib.ExitStack()  # keeps other runs from removing the data file

    def commit(self) -> None:
        """Move the model to its target.

        Raises:
            ModelError: if the source has changed since it was opened; the target is left unchanged.
            OptionError: if the target cannot be written, or appeared meanwhile.
        """
        self._store.check_unchanged()
        stale = self._stale_data()
        with writing(self.target):
            for sync in self._syncs:
                sync.wait()
            if self.data is not None and not self.data.exists():
                raise OptionError(f"'{self.data}' was removed, perhaps by another run: start again")
            inode = self.path.stat().st_ino
            put(self.path, self.target, replaces=self._replaces)
            self._made.clear()
            sync_folder(self.target.parent)
        for path in stale:
            with contextlib.suppress(OSError):
                if self.target.stat().st_ino == inode:  # and not a newer model of another run, which may need the data
                    _remove_unheld(path)

    def _write(self, skeleton: ModelProto, edited: bool, external_data: bool | None, link_data: bool) -> None:
        self._store.check_unchanged()
        with writing(self.target):
            if not external_data and (external_data is False or not self._store.external):
                pieces = self._store.pieces(skeleton, edited=edited)
                if sum(piece.nbytes for piece in pieces) <= LARGEST_FILE:
                    self._write_file(self.path, pieces)
                    return
                if external_data is False:
                    raise OptionError(
                        f"'{self.target}' would be larger than 2 GB, which no single ONNX file can be: "
                        "keep its weights in a data file"
                    )
                external_data = True
            self._write_file(self.path, self._with_data_file(skeleton, bool(external_data), link_data))

    def _with_data_file(self, skeleton: ModelProto, all_external: bool, link_data: bool) -> list[Piece]:
        """Write the data file, and return the pieces of the model file that refers to it."""
        store, model = self._store, skeleton.SerializeToString()
        pieces: list[Piece] = []
        offsets: dict[tuple[str, int, int | None], int] = {}
        end = 0

        def stays_inline(location: str) -> bool:
            return not all_external and location == store.own.location

        def lay_out(tensor: TensorProto) -> None:
            nonlocal end
            place = location_of(tensor)
            if place in offsets or stays_inline(place[0]) or (link_data and place[0] != COMPUTED):
                return
            payload = store.payload(tensor)
            padding = -end % (PAGE if payload.nbytes >= LARGE else ALIGNMENT)
            offsets[place] = end + padding
            pieces.extend((memoryview(bytes(padding)), payload))
            end += padding + payload.nbytes

        wire.rewrite(model, lay_out)
        name = self._write_data(pieces) if pieces else ""

        def settle(tensor: TensorProto) -> Substitute:
            place = location, offset, _ = location_of(tensor)
            if stays_inline(location):
                return store.inline(tensor)
            nbytes = store.payload(tensor).nbytes
            if place in offsets:
                wire.refer(tensor, name, offsets[place], nbytes)
            else:
                wire.refer(tensor, store.sources[location].seen_from(self.target.parent), offset, nbytes)
            return tensor

        return wire.rewrite(model, settle)

    def _write_data(self, pieces: list[Piece]) -> str:
        """Write the data file and return its name, which depends on its contents: no model finds other data there."""
        if not is_text(self.target.name):
            raise OptionError(f"the data file of '{self.target}' needs a name in UTF-8, since ONNX stores it as text")
        beside = temporary_path(self.target)
        digest = self._write_file(beside, pieces, digest=True)
        self.data = self.target.with_name(f"{self.target.name}.{digest[:16]}.data")
        if self.data in self._store.paths:  # in place, and these payloads stay: so does the file, which is mapped
            self._held.callback(os.close, fd := _hold(self.data))
            beside.unlink()
            del self._made[beside]
            if _sha256(fd) != digest:
                raise OptionError(f"'{self.data}' was changed after it was written: write the model to another file")
            return self.data.name
        present = self.data.exists()
        self._held.callback(os.close, _hold(beside))
        os.replace(beside, self.data)
        inode = self._made.pop(beside)
        if not present:
            self._made[self.data] = inode
        sync_folder(self.target.parent)
        return self.data.name

    def _write_file(self, path: Path, pieces: Sequence[Piece], *, digest: bool = False) -> str:
        """Write pieces one after the other, and start to sync them, which `commit` waits for.

        Returns:
            With `digest`, the SHA-256 of the file in hexadecimal.
        """
        with open(create(path, self.target), "wb", buffering=LARGE) as file:
            self._made[path] = os.fstat(file.fileno()).st_ino
            _reserve(file.fileno(), sum(piece.nbytes for piece in pieces))
            sync = _Sync(os.dup(file.fileno()))
            self._syncs.append(sync)
            for piece in pieces:
                if isinstance(piece, Extent) and piece.source.path and piece.nbytes >= LARGE:
                    file.flush()
                    _copy(piece, file.fileno(), sync.grow)
                else:
                    for block in blocks(piece, self._store.release):
                        file.write(block)
                        sync.grow(len(block))
            file.flush()
            sync.finish()
            self.size += file.tell()
            return _sha256(file.fileno()) if digest else ""

    def _stale_data(self) -> list[Path]:
        """The data file of the model that will be replaced, if this package wrote it and no model here needs it.

        The models are only read if there is such a file.
        """
        own = re.compile(re.escape(self.target.name) + r"\.[0-9a-f]{16}\.data")
        try:
            data = "" if self.data is None else self.data.name
            if not any(own.fullmatch(name) for name in os.listdir(self.target.parent) if name != data):
                return []
            (_, replaced), (_, written) = read(self.target), read(self.path)
        except (ModelError, OSError):
            return []
        sources = set() if self._store.path == self.target else self._store.paths  # in place the source goes
        unneeded = replaced.paths - sources - written.paths
        return [path for path in unneeded if own.fullmatch(path.name) and path.parent == self.target.parent]

    def _discard(self) -> None:
        for path, inode in self._made.items():
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
        for sync in self._syncs:
            with contextlib.suppress(OSError):
                sync.wait()
        self._held.close()


class _Sync(threading.Thread):
    """Syncs a file while it is being written, and the rest while the model is validated; then closes it."""

    def __init__(self, fd: int) -> None:
        super().__init__(name="onnx_fcn-fsync")
        self._fd = fd
        self._error: OSError | None = None
        self._waiting = 0
        self._wake = threading.Event()
        self._whole = False
        self.start()

    def run(self) -> None:
        try:
            whole = False
            while not whole:
                self._wake.wait()
                self._wake.clear()
                whole = self._whole
                os.fsync(self._fd)
        except OSError as error:
            self._error = error
        finally:
            os.close(self._fd)

    def grow(self, nbytes: int) -> None:
        """Report that this many more bytes were written."""
        self._waiting += nbytes
        if self._waiting >= SYNCED:
            self._waiting = 0
            self._wake.set()

    def finish(self) -> None:
        """Report that nothing more will be written."""
        self._whole = True
        self._wake.set()

    def wait(self) -> None:
        """Wait until the file is on the disk. Raises OSError if it cannot be synced."""
        self.finish()
        self.join()
        if self._error is not None:
            raise self._error


def _reserve(fd: int, nbytes: int) -> None:
    """Allocate a file before it is written, to find a full disk at once and to let the system place it in one piece.

    Raises:
        OSError: if there is not enough room.
    """
    if nbytes >= LARGE and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            if error.errno not in CANNOT_RESERVE:
                raise


def _copy(extent: Extent, target: int, grow: Callable[[int], None]) -> None:
    """Append a stretch of a file to another one, and report its growth; the system copies if it can.

    Raises:
        ModelError: if the source was cut short meanwhile.
        OSError: if the target cannot be written.
    """
    at, end = extent.offset, extent.offset + extent.nbytes
    with extent.source.reopen() as source:
        for copy in COPIERS:
            try:
                while at < end:
                    copied = copy(source, target, at, min(end - at, SYNCED))
                    if copied == 0:
                        raise ModelError(f"{extent.source} was cut short while it was being read: start again")
                    at += copied
                    grow(copied)
                return
            except OSError as error:
                if error.errno not in CANNOT_COPY or copy is COPIERS[-1]:
                    raise


def _copy_by_reading(source: int, target: int, offset: int, count: int) -> int:
    return os.write(target, os.pread(source, min(count, BLOCK), offset))


# (source, target, offset in the source, count) → bytes copied to the target's position; the fastest is first.
COPIERS: list[Callable[..., int]] = [_copy_by_reading]
if hasattr(os, "sendfile"):
    COPIERS.insert(0, lambda source, target, offset, count: os.sendfile(target, source, offset, count))
if hasattr(os, "copy_file_range"):
    COPIERS.insert(0, lambda source, target, offset, count: os.copy_file_range(source, target, count, offset))
CANNOT_RESERVE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV}
CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTSOCK, errno.EPERM}


def _hold(path: Path) -> int:
    """Open a file with a shared lock: while the descriptor is open, other runs do not remove the file."""
    fd = os.open(path, os.O_RDONLY)
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def _remove_unheld(path: Path) -> None:
    """Remove a data file, unless another run has just written the same one and will refer to it.

    Raises:
        OSError: if another run has locked it, or it cannot be removed.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            path.unlink()
    finally:
        os.close(fd)


def _sha256(fd: int) -> str:
    digest, at = hashlib.sha256(), 0
    while block := os.pread(fd, LARGE, at):
        digest.update(block)
        at += len(block)
    return digest.hexdigest()
