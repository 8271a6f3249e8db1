"""The storage of a model: where its payloads are, and how they get from there into another file.

`read` opens a model as a skeleton and a `Store`. The store knows the payload of every reference in the skeleton: an
extent of a memory-mapped file, or an array that is not stored yet, perhaps a permuted view on such a map. `staged` is
the inverse, and streams: the system copies extents from file to file, and permuted views are put in order a band at
a time, so that a few megabytes of memory suffice for weights of any size.

    skeleton, store = read("model.onnx")
    store.refer(tensor, array)                     # gives a tensor of the skeleton these values
    with staged("out.onnx", store, skeleton, edited=True) as stage:
        stage.commit()

A model is written next to its target, and replaces it atomically when the stage is committed. Its data file is named
after its contents, so it can be in place earlier: no other model refers to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from onnx_fcn._types import Array
from onnx_fcn.errors import ModelError
from onnx_fcn.model import wire
from onnx_fcn.model.sources import IN_MEMORY, Extent, Piece, Source, Values, location_of, open_external

__all__ = ["ALIGNMENT", "COMPUTED", "LARGE", "LARGEST_FILE", "PAGE", "Store", "Substitute", "read"]


LARGEST_FILE = 2**31 - 64  # bytes; onnxruntime and the checker refuse a model file of 2**31 - 2
PAGE = 4096
ALIGNMENT = 64  # bytes; of tensors smaller than LARGE
LARGE = 1 << 20  # bytes; a larger tensor starts on a page of its own in a data file
COMPUTED = "\0computed"  # the location of a weight that is not stored yet; no file can have this name

# Files that are passed instead of a model: how such a file begins, and what it is.
LOOKALIKES = {
    b"PK\x03\x04": "a zip archive, perhaps a PyTorch checkpoint or a Keras model: export the network as ONNX, with "
    "torch.onnx.export or tf2onnx",
    b"\x80\x02": "a Python pickle, perhaps a PyTorch checkpoint: export the network with torch.onnx.export",
    b"\x89HDF": "an HDF5 file, perhaps of Keras: export the network with tf2onnx or keras.Model.export",
    b"\x93NUMPY": "an array of numpy: pass the model, and images with --data",
    b"\x89PNG": "an image: pass the model",
    b"\xff\xd8\xff": "an image: pass the model",
    b"ftrt": "an engine of TensorRT: start from the ONNX file that it was built from",
    b"\x1f\x8b": "gzip-compressed data: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"<?xml": "XML, perhaps of OpenVINO: start from the ONNX file that it was made from",
    b"<": "a web page: download the file itself",
}
# Formats with a mark at another offset: the offset, the mark, and what such a file is.
INNER_MARKS = [
    (4, b"TFL3", "a TensorFlow Lite model: convert it with tf2onnx"),
    (4, b"ORTM", "a model in onnxruntime's own format: start from the ONNX file that it was made from"),
    (8, b'{"', "a safetensors file, which has weights only: export the network with torch.onnx.export"),
]
TEXT = 200  # bytes at the beginning of a file that show whether it is text
NO_GRAPH = "it has no graph, so it may be another format of protobuf, such as TensorFlow's: convert it with tf2onnx"


def read(source: str | os.PathLike[str] | ModelProto) -> tuple[ModelProto, Store]:
    """The skeleton of a model file, or of a copy of a model in memory, and the store with its payloads.

    Raises:
        ModelError: if there is no such file, or the model is malformed or does not match its external data.
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
    except Exception:  # those of protobuf have no common base
        kind = _lookalike(own.data) or "a message in it cannot be parsed"
        raise ModelError(f"{own} is not an ONNX model, or damaged: {kind}") from None
    if not proto.HasField("graph"):
        raise ModelError(f"{own} is not an ONNX model: {_lookalike(own.data) or NO_GRAPH}")
    store = Store(own, skeleton.references)
    wire.rewrite(proto.SerializeToString(), store.admit)
    return proto, store


def _lookalike(data: Any) -> str:
    """What a file that is not a model seems to be; empty if unknown."""
    start = bytes(data[:TEXT]).lstrip()
    kinds = [kind for mark, kind in LOOKALIKES.items() if start.startswith(mark)]
    kinds += [kind for at, mark, kind in INNER_MARKS if data[at : at + len(mark)] == mark]
    text = start.decode(errors="replace").strip()
    if len(text) > 1 and all((c.isprintable() and c != "\ufffd") or c.isspace() for c in text):
        kinds.append(f"text, which begins with {text.splitlines()[0][:40]!r}: pass the model file itself")
    return f"it looks like {kinds[0]}" if kinds else ""


class Store:
    """Where the payloads of one model are: in its file, in external data files, or in arrays that are not stored yet.

    Attributes:
        own: the file of the model, or its bytes.
        sources: all mapped files, `own` included, by the location in the references.
        path: the file, with symbolic links resolved; None for a model in memory.
        folder: the folder of external data; None for a model in memory.
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
        """Raises ModelError if a file was changed since it was opened."""
        for source in self.sources.values():
            source.check_unchanged()

    def release(self) -> None:
        """Release the pages of all maps that have been read."""
        for source in self.sources.values():
            source.release()

    def admit(self, tensor: TensorProto) -> None:
        """Open the file of an external tensor of the model.

        Raises:
            ModelError: if the file cannot be opened, or does not contain the tensor.
        """
        location, _, _ = location_of(tensor)
        if location not in self.sources:
            if self.folder is None:
                raise ModelError(
                    f"tensor '{tensor.name}' of {self} is stored in '{location}', but a model in memory has no "
                    "folder: pass the path of the model instead"
                )
            self.sources[location] = open_external(self.folder, location, tensor.name)
        self.payload(tensor)

    def payload(self, tensor: TensorProto) -> Values:
        """The extent or the array with the bytes of an external tensor.

        Raises:
            ModelError: if the stored bytes do not match the tensor's type and shape.
        """
        location, offset, length = location_of(tensor)
        if location == COMPUTED and offset < len(self._computed):
            return self._computed[offset]
        if tensor.data_type not in wire.BITS:
            raise ModelError(f"tensor '{tensor.name}' of type {tensor.data_type} cannot be stored externally")
        if any(size < 0 for size in tensor.dims):
            raise ModelError(f"tensor '{tensor.name}' has a negative dimension: {list(tensor.dims)}")
        expected = wire.payload_bytes(tensor.dims, tensor.data_type)
        if expected >= 1 << 63:  # written out, it may have more digits than Python converts
            raise ModelError(f"tensor '{tensor.name}' is declared with more bytes than any file has")
        if length is not None and length != expected:
            raise ModelError(f"tensor '{tensor.name}' takes {expected} bytes, but {length} are stored in '{location}'")
        source = self.sources[location]
        if offset + expected > len(source.data):
            raise ModelError(
                f"tensor '{tensor.name}' is stored at bytes {offset} to {offset + expected} of {source}, "
                f"which has {len(source.data)}: is it incomplete?"
            )
        return Extent(source, offset, expected)

    def array(self, tensor: TensorProto) -> Array:
        """The values of an external tensor; a view of the stored bytes, unless its type packs elements."""
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
        """Make a tensor a reference to this array: to its bytes in a mapped file, or else to the array in memory."""
        for source in self.sources.values():
            if (offset := source.offset_of(array)) is not None:
                wire.refer(tensor, source.location, offset, array.nbytes)
                return
        wire.refer(tensor, COMPUTED, len(self._computed), array.nbytes)
        self._computed.append(array)

    def inline(self, tensor: TensorProto) -> Substitute:
        """A tensor with its payload embedded, in the field in which it was read."""
        payload = self.payload(tensor)
        location, offset, _ = location_of(tensor)
        number = self._fields.get((offset, payload.nbytes)) if location == self.own.location else None
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        return tensor, number or wire.RAW_DATA, payload

    def embed(self, tensor: TensorProto) -> Substitute:
        """`inline` for a payload that is not in a file; None for the others, which stay references."""
        return self.inline(tensor) if location_of(tensor)[0] in (IN_MEMORY, COMPUTED) else None

    def pieces(self, skeleton: ModelProto, *, edited: bool) -> list[Piece]:
        """The pieces of the whole model, payloads embedded; without edits, the unchanged file."""
        if not edited and not self.external:
            return [Extent(self.own, 0, len(self.own.data))]
        return wire.rewrite(skeleton.SerializeToString(), self.inline)


Substitute: TypeAlias = "tuple[TensorProto, int, Values] | TensorProto | None"
