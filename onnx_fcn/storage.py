"""The storage of a model: where its payloads lie, and how they get from there into another file.

`read` opens a model as a skeleton and a `Store`, which knows for every reference in the skeleton what it stands for: an
extent of a memory-mapped file, or an array that is not stored yet, perhaps a permuted view on such a map. `staged` is
the inverse, and streams: extents are copied by the system from file to file, permuted views are put in order a band at
a time, so that memory holds some megabytes, however large the weights.

    skeleton, store = read("model.onnx")
    store.refer(tensor, array)                     # from now on these are the values of a tensor of the skeleton
    with staged("out.onnx", store, skeleton, edited=True) as stage:
        stage.commit()

A model is written beside its target, and takes its place at once when the stage is committed. Its data file is named
after its contents, so it can be there before: no other model refers to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import mmap
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto

from onnx_fcn import wire
from onnx_fcn.errors import ModelError, OptionError, reason_of
from onnx_fcn.staging import created, put, resolved, sync_folder, target_of, temporary, writing

try:
    import fcntl
except ImportError:  # Windows, where a file that is mapped cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

__all__ = ["Array", "Staged", "Store", "blocks", "joined", "read", "staged", "stored_names"]

Array: TypeAlias = "np.ndarray[Any, Any]"

LARGEST_FILE = 2**31 - 64  # bytes; onnxruntime and the checker refuse a model file of 2**31 - 2
PAGE = 4096
ALIGNMENT = 64  # of smaller ones
LARGE = 1 << 20  # bytes; a larger tensor starts on a page of its own in a data file
BLOCK = 8 << 20  # bytes that are read before their pages are let go
BAND = 48 << 20  # bytes of a permuted weight that are gathered at a time,
TILE = 16 << 10  # and at a step, so that what it reads and what it writes stay in the processor's cache
LINE = 64  # bytes of the cache that come and go together
CHUNK = 2 << 20  # bytes of a permuted weight that are written at a time
SYNCED = 64 << 20  # bytes after which the disk begins to write
IN_MEMORY = "\0model"  # references that no file name can spell: to a model without a file,
COMPUTED = "\0computed"  # and to a weight that is not stored yet

# What people hand over instead of a model: how such a file begins, and what it is.
LOOKALIKES = {
    b"PK\x03\x04": "a zip archive, perhaps a PyTorch checkpoint or a Keras model: export the network as ONNX, with "
    "torch.onnx.export or tf2onnx",
    b"\x80\x02": "a Python pickle, perhaps a PyTorch checkpoint: export the network with torch.onnx.export",
    b"\x89HDF": "an HDF5 file, perhaps of Keras: export the network with tf2onnx or keras.Model.export",
    b"\x93NUMPY": "an array of numpy: pass the model, and images with --data",
    b"\x89PNG": "an image: pass the model",
    b"\xff\xd8\xff": "an image: pass the model",
    b"ftrt": "an engine of TensorRT: start from the ONNX file that it was built of",
    b"\x1f\x8b": "gzip-compressed data: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"<?xml": "XML, perhaps of OpenVINO: start from the ONNX file that it was made of",
    b"<": "a web page: download the file itself",
}
# Other formats have a word further on: where, which, and what such a file is.
INNER_MARKS = [
    (4, b"TFL3", "a TensorFlow Lite model: convert it with tf2onnx"),
    (4, b"ORTM", "a model in onnxruntime's own format: start from the ONNX file that it was made of"),
    (8, b'{"', "a safetensors file, which has weights only: export the network with torch.onnx.export"),
]
TEXT = 200  # bytes at the beginning of a file that show whether it is text
NO_GRAPH = "it has no graph, so it may be another format of protobuf, such as TensorFlow's: convert it with tf2onnx"


def read(source: str | os.PathLike[str] | ModelProto) -> tuple[ModelProto, Store]:
    """The skeleton of a model file, or of a copy of a model in memory, and the store that its references refer to.

    Raises:
        ModelError: there is no such model; it is malformed, or its external data is not as it says.
    """
    if isinstance(source, ModelProto):
        try:
            return _read(Source(IN_MEMORY, source.SerializeToString()))
        except Exception as error:
            raise ModelError(f"the model in memory cannot be serialized: {error}") from None
    own = Source.open(source)
    if not own.data:
        raise ModelError(f"{own} is empty: perhaps a download or an export was interrupted")
    return _read(own)


def _read(own: Source) -> tuple[ModelProto, Store]:
    try:
        skeleton = wire.skeleton(own.data, own.location, release=own.release)
        proto = ModelProto.FromString(skeleton.model)
    except ModelError as error:
        raise ModelError(f"{own} is not an ONNX model, or damaged: {_lookalike(own.data) or error}") from None
    except Exception:
        kind = _lookalike(own.data) or "a message in it cannot be parsed"
        raise ModelError(f"{own} is not an ONNX model, or damaged: {kind}") from None
    if not proto.HasField("graph"):
        raise ModelError(f"{own} is not an ONNX model: {_lookalike(own.data) or NO_GRAPH}")
    store = Store(own, skeleton.references)
    wire.rewrite(proto.SerializeToString(), store.admit)
    return proto, store


def _lookalike(data: Any) -> str:
    """What a file that is no model seems to be."""
    start = bytes(data[:TEXT]).lstrip()
    kinds = [kind for mark, kind in LOOKALIKES.items() if start.startswith(mark)]
    kinds += [kind for at, mark, kind in INNER_MARKS if data[at : at + len(mark)] == mark]
    text = start.decode(errors="replace").strip()
    if len(text) > 1 and all((c.isprintable() and c != "\ufffd") or c.isspace() for c in text):
        kinds.append(f"text, which begins with {text.splitlines()[0][:40]!r}: pass the model file itself")
    return f"it looks like {kinds[0]}" if kinds else ""


def stored_names(graph: GraphProto) -> set[str]:
    """Names of the tensors whose values are in the model: they may be listed as inputs too."""
    return {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}


class Store:
    """Where the payloads of one model are: in its own file, in external data files, in arrays that are not stored yet.

    Attributes:
        own: the file of the model, or its bytes.
        sources: all mapped files by the location that references name, `own` among them.
        path: the file, with symbolic links resolved; None for a model in memory.
        folder: where external data is looked for; None for a model in memory.
    """

    def __init__(self, own: Source, references: Iterable[wire.Reference]) -> None:
        self.own, self.path = own, own.path
        self.folder = own.path.parent if own.path else None
        self.sources = {own.location: own}
        self._fields = {(place.offset, place.length): place.field for place in references}
        self._computed: list[Values] = []

    def __str__(self) -> str:
        return str(self.own)

    @property
    def external(self) -> bool:
        """Whether payloads came from external data files."""
        return len(self.sources) > 1

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(source.data) for source in self.sources.values())

    @property
    def paths(self) -> set[Path]:
        """All files."""
        return {source.path for source in self.sources.values() if source.path}

    def check_unchanged(self) -> None:
        """Make sure that the files are still those that were opened.

        Raises:
            ModelError: one was changed.
        """
        for source in self.sources.values():
            source.check_unchanged()

    def release(self) -> None:
        """Let go of the pages of all maps that have been read."""
        for source in self.sources.values():
            source.release()

    def admit(self, tensor: TensorProto) -> None:
        """Open the file of an external tensor that came with the model."""
        location, _, _ = _external(tensor)
        if location not in self.sources:
            if self.folder is None:
                raise ModelError(
                    f"tensor '{tensor.name}' of {self} lies in '{location}', of which a model in memory does not "
                    "know the folder: pass the path of the model instead"
                )
            self.sources[location] = _open_external(self.folder, location, tensor.name)
        self.payload(tensor)

    def payload(self, tensor: TensorProto) -> Values:
        """Where the bytes of an external tensor are."""
        location, offset, length = _external(tensor)
        if location == COMPUTED and offset < len(self._computed):
            return self._computed[offset]
        if tensor.data_type not in wire.BITS:
            raise ModelError(f"tensor '{tensor.name}' of type {tensor.data_type} cannot be stored externally")
        if any(size < 0 for size in tensor.dims):
            raise ModelError(f"tensor '{tensor.name}' has a negative dimension: {list(tensor.dims)}")
        expected = wire.payload_bytes(tensor.dims, tensor.data_type)
        if length is not None and length != expected:
            raise ModelError(f"tensor '{tensor.name}' takes {expected} bytes, but {length} are stored in '{location}'")
        source = self.sources[location]
        if offset + expected > len(source.data):
            raise ModelError(
                f"tensor '{tensor.name}' lies at bytes {offset} to {offset + expected} of {source}, "
                f"which has {len(source.data)}: is it incomplete?"
            )
        return Extent(source, offset, expected)

    def array(self, tensor: TensorProto) -> Array:
        """The values of an external tensor, as a view where they are stored as they are used."""
        payload, dims = self.payload(tensor), tuple(tensor.dims)
        if isinstance(payload, Extent):
            payload = payload.view()
        if wire.BITS[tensor.data_type] < 8:
            return onnx.numpy_helper.to_array(
                TensorProto(dims=dims, data_type=tensor.data_type, raw_data=np.asarray(payload).tobytes())
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return (payload if payload.dtype == dtype else payload.view(dtype)).reshape(dims).view()

    def refer(self, tensor: TensorProto, array: Array) -> None:
        """Make a tensor a reference to this payload: to where it lies in a file, or else to the array itself."""
        for source in self.sources.values():
            if (offset := source.offset_of(array)) is not None:
                wire.refer(tensor, source.location, offset, array.nbytes)
                return
        wire.refer(tensor, COMPUTED, len(self._computed), array.nbytes)
        self._computed.append(array)

    def inline(self, tensor: TensorProto) -> Substitute:
        """A tensor with its payload in it, in the field where it was found."""
        payload = self.payload(tensor)
        location, offset, _ = _external(tensor)
        number = self._fields.get((offset, payload.nbytes)) if location == self.own.location else None
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        return tensor, number or wire.RAW_DATA, payload

    def embedded(self, tensor: TensorProto) -> Substitute:
        """The same for a payload that lies in no file; the others stay references."""
        return self.inline(tensor) if _external(tensor)[0] in (IN_MEMORY, COMPUTED) else None

    def inlined(self, skeleton: ModelProto, *, edited: bool) -> list[Piece]:
        """The pieces of the whole model; those of a skeleton that is not edited are the file as it is."""
        if not edited and not self.external:
            return [Extent(self.own, 0, len(self.own.data))]
        return wire.rewrite(skeleton.SerializeToString(), self.inline)


class Source:
    """A mapped file with weights, or the bytes of a model in memory."""

    def __init__(
        self, location: str, data: Any, path: Path | None = None, identity: Identity = (), name: str = ""
    ) -> None:
        self.location, self.data, self.path, self.identity, self.name = location, data, path, identity, name
        self.view = np.frombuffer(data, np.uint8)

    @classmethod
    def open(cls, file: str | os.PathLike[str], location: str | None = None) -> Source:
        """Map a file; references to it have this location, or its name."""
        name = os.fspath(file)
        try:
            path = resolved(file)
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
        location = location or (path.name if _is_text(path.name) else IN_MEMORY)
        return cls(location, data, path, _identity(status), name)

    def __str__(self) -> str:
        return f"'{self.name}'" if self.name else "the model in memory"

    def release(self) -> None:
        """Let go of the pages of the map that have been read: they come back from the file when needed."""
        if isinstance(self.data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def offset_of(self, array: Array) -> int | None:
        """Where the payload of an array is in this source, when it is just a stretch of its bytes."""
        offset = array.ctypes.data - self.view.ctypes.data
        inside = offset >= 0 and offset + array.nbytes <= self.view.nbytes
        return offset if inside and array.flags.c_contiguous else None

    def seen_from(self, folder: Path) -> str:
        """The file as an external-data location for a model in `folder`."""
        if self.path is None or not self.path.is_relative_to(folder) or not _is_text(str(self.path)):
            raise OptionError(f"weights in {self} can only be linked by a model in or above its folder: copy them")
        return self.path.relative_to(folder).as_posix()

    def check_unchanged(self) -> None:
        if self.path is not None:
            with self.reopened():
                pass

    @contextlib.contextmanager
    def reopened(self) -> Iterator[int]:
        """A descriptor of the file, if it is still the one that is mapped."""
        assert self.path is not None
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except OSError:
            raise ModelError(f"{self} has gone since it was opened: start again") from None
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
Substitute: TypeAlias = "tuple[TensorProto, int, Values] | TensorProto | None"
Identity: TypeAlias = tuple[int, ...]


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open_external(folder: Path, location: str, tensor: str) -> Source:
    """Open an external data file, which must be a regular file in the folder of the model or beneath."""
    path = folder / location
    where = f"the external data of tensor '{tensor}', '{location}',"
    if not location or "\0" in location or os.path.isabs(location):
        raise ModelError(f"{where} is not a relative path")
    if not resolved(path).is_relative_to(folder):
        raise ModelError(f"{where} lies outside of the model's folder '{folder}'")
    if not os.path.exists(path):
        raise ModelError(f"{where} is missing: it belongs into '{folder}', beside the model")
    return Source.open(path, location)


def _external(tensor: TensorProto) -> tuple[str, int, int | None]:
    """The (location, offset, length) of an external tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = entries.get("location", ""), entries.get("offset", "0"), entries.get("length")
    for text in (offset, "0" if length is None else length):
        if not (isinstance(text, str) and re.fullmatch("[0-9]{1,19}", text)):
            raise ModelError(f"tensor '{tensor.name}' says that it is stored at bytes {text!r} of an external file")
    if not isinstance(location, str):
        raise ModelError(f"tensor '{tensor.name}' is stored in {location!r}, which is not a name in UTF-8")
    return location, int(offset), int(length) if length is not None else None


def blocks(payload: Piece, release: Callable[[], None]) -> Iterator[memoryview]:
    """The bytes of a payload, some megabytes at a time, each block good until the next one.

    `release` lets go of the mapped pages that have been read.
    """
    if isinstance(payload, Extent):
        payload = payload.view()
    if isinstance(payload, memoryview):
        yield payload
    elif payload.flags.c_contiguous:
        flat = payload.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK].data
            release()
    else:
        if payload.itemsize <= 8:
            payload = payload.view(f"u{payload.itemsize}")  # integers are what numpy moves fastest
        yield from _permuted(_coalesced(payload), release)


def _permuted(array: Array, release: Callable[[], None]) -> Iterator[memoryview]:
    """The bytes of a strided array in C order; the source is read in its own order as far as memory allows.

    When rows lie one after the other in the source, they are copied a few at a time. When they are interleaved, as in
    a transposed matrix, a band of rows is gathered, then the axes within each row are put in order:

        (h, w, c, band of k) → (band of k, h, w, c) → (band of k, c, h, w)
    """
    row = array.nbytes // len(array)
    if row > BAND:
        for inner in array:
            yield from _permuted(_coalesced(inner), release)
        return
    order = [0, *sorted(range(1, array.ndim), key=lambda axis: -abs(array.strides[axis]))]
    if array.ndim == 1 or abs(array.strides[0]) >= abs(array.strides[order[1]]):
        yield from _rows(array, release)
        return
    source = array.transpose(order)
    height = min(BAND // row, len(array))
    *outer, last = source.shape[1:]
    # Axes that are permuted later lie a line apart: at powers of two the processor's cache would hold few of them.
    gap = LINE // array.itemsize if order != sorted(order) else 0
    buffer = np.empty((height, *outer, last + gap), array.dtype)[..., :last]
    step = max(1, TILE // (height * array.itemsize))
    read = 0
    for start in range(0, len(array), height):
        band = source[start : start + height]
        gathered = buffer[: len(band)]
        for index in np.ndindex(*outer):
            for at in range(0, last, step):
                tile = (slice(None), *index, slice(at, at + step))
                gathered[tile] = band[tile]
                read += abs(band.strides[-1]) * step
                if read >= BLOCK:
                    release()
                    read = 0
        yield from _rows(gathered.transpose(np.argsort(order)), release)


def _rows(array: Array, release: Callable[[], None]) -> Iterator[memoryview]:
    """The bytes of an array in C order, some rows at a time."""
    height = max(1, CHUNK * len(array) // array.nbytes)
    for start in range(0, len(array), height):
        yield np.ascontiguousarray(array[start : start + height]).reshape(-1).view(np.uint8).data
        release()


def _coalesced(array: Array) -> Array:
    """The same elements in the same order with as few axes as possible: neighbours that one stride spans are merged."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(array.shape, array.strides):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            size *= axes.pop()[0]
        axes.append((size, stride))
    shape, strides = zip(*axes)
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=False)


def joined(pieces: Iterable[Piece]) -> bytes:
    """The pieces in memory."""
    memory = io.BytesIO()
    for piece in pieces:
        for block in blocks(piece, lambda: None):
            memory.write(block)
    return memory.getvalue()


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
    """Write a model to a temporary file beside `path`, which replaces `path` when the stage is committed.

    Args:
        path: a file, or a link to one, that may exist.
        store: knows the payloads.
        skeleton: the model, with references to them.
        edited: whether it is another one than was read.
        external_data: whether large payloads go to a data file. None: those that lay in one do, and all do when the
            model file would be larger than 2 GB.
        link_data: refer to payloads in the files of the store instead of copying them.

    Raises:
        OptionError: `path` cannot be written.
        ModelError: the source has changed since it was opened.
    """
    with writing(path):
        stage = Staged(target_of(resolved(path)), store)
    try:
        stage._write(skeleton, edited, external_data, link_data)
        yield stage
    finally:
        stage._discard()


class Staged:
    """A model that is written, but not yet in its place.

    Attributes:
        path: the temporary model file; it can be opened and run like any other.
        target: the file that `commit` makes of it.
        data: the data file beside the model, already under its final name; None when all weights are in the model.
        size: bytes of both.
    """

    def __init__(self, target: Path, store: Store) -> None:
        self.target = target
        self.path = temporary(target)
        self._replaces = target.exists()  # what appears meanwhile is somebody else's
        self.data: Path | None = None
        self.size = 0
        self._store = store
        self._made: dict[Path, int] = {}  # what goes unless committed, by its inode
        self._syncs: list[_Sync] = []
        self._held = contextlib.ExitStack()  # keeps other runs from removing the data file

    def commit(self) -> None:
        """Put the model in its place.

        Raises:
            ModelError: the source has changed since it was opened; nothing is put in place.
            OptionError: the target cannot be written, or appeared meanwhile.
        """
        self._store.check_unchanged()
        stale = self._stale_data()
        with writing(self.target):
            for sync in self._syncs:
                sync.wait()
            if self.data is not None and not self.data.exists():
                raise OptionError(f"'{self.data}' was removed, perhaps by another run: start again")
            ours = self.path.stat().st_ino
            put(self.path, self.target, replaces=self._replaces)
            self._made.clear()
            sync_folder(self.target.parent)
        for path in stale:
            with contextlib.suppress(OSError):
                if self.target.stat().st_ino == ours:  # and not, since then, a model of another run that needs it
                    _remove_unheld(path)

    def _write(self, skeleton: ModelProto, edited: bool, external_data: bool | None, link_data: bool) -> None:
        self._store.check_unchanged()
        with writing(self.target):
            if not external_data and (external_data is False or not self._store.external):
                pieces = self._store.inlined(skeleton, edited=edited)
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
        """The pieces of the model file, after the data file that it refers to has been written."""
        store, model = self._store, skeleton.SerializeToString()
        pieces: list[Piece] = []
        offsets: dict[tuple[str, int, int | None], int] = {}
        end = 0

        def stays_inline(location: str) -> bool:
            return not all_external and location == store.own.location

        def lay_out(tensor: TensorProto) -> None:
            nonlocal end
            place = _external(tensor)
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
            place = location, offset, _ = _external(tensor)
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
        """Write the data file; it is named after its contents, so no model ever finds another one's data in it."""
        if not _is_text(self.target.name):
            raise OptionError(f"the data file of '{self.target}' needs a name in UTF-8, since ONNX stores it as text")
        beside = temporary(self.target)
        digest = self._write_file(beside, pieces, digest=True)
        self.data = self.target.with_name(f"{self.target.name}.{digest[:16]}.data")
        present = self.data.exists()
        self._held.callback(os.close, _held(beside))
        os.replace(beside, self.data)
        inode = self._made.pop(beside)
        if not present:
            self._made[self.data] = inode
        sync_folder(self.target.parent)
        return self.data.name

    def _write_file(self, path: Path, pieces: Sequence[Piece], *, digest: bool = False) -> str:
        """Write pieces one after the other, and start to put them onto the disk, which `commit` waits for.

        Returns:
            the SHA-256 of the file in hexadecimals if asked for.
        """
        with open(created(path, self.target), "wb", buffering=LARGE) as file:
            self._made[path] = os.fstat(file.fileno()).st_ino
            _reserve(file.fileno(), sum(piece.nbytes for piece in pieces))
            sync = _Sync(os.dup(file.fileno()))
            self._syncs.append(sync)
            for piece in pieces:
                if isinstance(piece, Extent) and piece.source.path and piece.nbytes >= LARGE:
                    file.flush()
                    _copy(piece, file.fileno(), sync.grown)
                else:
                    for block in blocks(piece, self._store.release):
                        file.write(block)
                        sync.grown(len(block))
            file.flush()
            sync.finish()
            self.size += file.tell()
            return _sha256(file.fileno()) if digest else ""

    def _stale_data(self) -> list[Path]:
        """The data file of the model that will be replaced, if it is one that we wrote and nobody needs."""
        ours = re.compile(re.escape(self.target.name) + r"\.[0-9a-f]{16}\.data")
        try:
            _, replaced = read(self.target)
        except ModelError:
            return []
        unneeded = replaced.paths - self._store.paths - {self.data}
        return [path for path in unneeded if ours.fullmatch(path.name) and path.parent == self.target.parent]

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
    """Puts a file onto the disk while it is being written, and what is left while the model is validated.

    Closes the file.
    """

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

    def grown(self, nbytes: int) -> None:
        """So many bytes more were written."""
        self._waiting += nbytes
        if self._waiting >= SYNCED:
            self._waiting = 0
            self._wake.set()

    def finish(self) -> None:
        """Nothing more will be written."""
        self._whole = True
        self._wake.set()

    def wait(self) -> None:
        """Raises: OSError, if the file is not on the disk."""
        self.finish()
        self.join()
        if self._error is not None:
            raise self._error


def _reserve(fd: int, nbytes: int) -> None:
    """Have room for a file before it is written: a full disk is known at once, and the system lays it out in one go.

    Raises:
        OSError: there is no room.
    """
    if nbytes >= LARGE and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            if error.errno not in CANNOT_RESERVE:
                raise


def _copy(extent: Extent, target: int, grown: Callable[[int], None]) -> None:
    """Append a stretch of a file to another one, and tell how it grows; the system does it, or else we."""
    at, end = extent.offset, extent.offset + extent.nbytes
    with extent.source.reopened() as source:
        for copy in COPIERS:
            try:
                while at < end:
                    copied = copy(source, target, at, min(end - at, SYNCED))
                    if copied == 0:
                        raise ModelError(f"{extent.source} was cut short while it was being read: start again")
                    at += copied
                    grown(copied)
                return
            except OSError as error:
                if error.errno not in CANNOT_COPY or copy is COPIERS[-1]:
                    raise


def _copy_by_reading(source: int, target: int, offset: int, count: int) -> int:
    return os.write(target, os.pread(source, min(count, BLOCK), offset))


# (source, target, offset in the source, count) → bytes copied to the target's position; the fastest first.
COPIERS: list[Callable[..., int]] = [_copy_by_reading]
if hasattr(os, "sendfile"):
    COPIERS.insert(0, lambda source, target, offset, count: os.sendfile(target, source, offset, count))
if hasattr(os, "copy_file_range"):
    COPIERS.insert(0, lambda source, target, offset, count: os.copy_file_range(source, target, count, offset))
CANNOT_RESERVE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV}
CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTSOCK, errno.EPERM}


def _held(path: Path) -> int:
    """A descriptor that says, while it is open, that the file is needed, also under another name."""
    fd = os.open(path, os.O_RDONLY)
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def _remove_unheld(path: Path) -> None:
    """Remove a data file, unless another run has just written the same and will refer to it.

    Raises:
        OSError: it is held, or cannot be removed.
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


def _is_text(name: str) -> bool:
    """Whether a file name can be stored in a model."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
