"""The protobuf wire format of a model: find the weights' bytes without reading them, and put them back.

A model file is a small graph with large weights embedded in it. `skeleton` walks the nested messages of the file and
replaces each large payload by an external-data reference to its place:

    ModelProto ⟩ GraphProto ⟩ TensorProto { dims, name, raw_data = 411 MB }
    ModelProto ⟩ GraphProto ⟩ TensorProto { dims, name, external_data = (location, offset, length) }

The skeleton is an ordinary serialized `ModelProto` of a few kilobytes. Messages that cannot contain a large payload are
not entered; every other byte is copied unchanged, even in fields that this package does not know. `rewrite` is the
inverse: it replaces the tensors that are stored elsewhere, and returns a list of pieces to write one after the other. A
piece is anything with a number of bytes, so payloads can be streamed from where they are.

Both use the same mechanism: `_Walk` finds the relevant tensors as a tree of messages, `_splice` inserts new bodies and
corrects the length of every message around them.

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnx_fcn.errors import ModelError

__all__ = [
    "BITS",
    "RAW_DATA",
    "SHAPES",
    "THRESHOLD",
    "Payload",
    "Reference",
    "Skeleton",
    "payload_bytes",
    "refer",
    "rewrite",
    "skeleton",
]


Buffer = Any  # bytes, or a memoryview on a memory map
Payload = Any  # anything with `nbytes`: a memoryview from this module, or what `substitute` gives to `rewrite`

THRESHOLD = 16 * 1024  # bytes; a session maps every reference on its own: below 8–16 kB copying is cheaper
MOST_REFERENCES = 10_000  # and the kernel allows a process some 65,000 maps
MOST_FIELDS = 5_000_000  # walked, not skipped; bounds the time that a malformed file can cost to a few seconds
MOST_TENSOR_FIELDS = 1_000  # a tensor with more, such as one field per number, is left to protobuf
FAR = 1 << 20  # bytes
DEEPEST = 100  # protobuf's own limit

VARINT, I64, LEN, START_GROUP, END_GROUP, I32 = range(6)

# How messages that contain tensors are nested: field number → kind of message (onnx.proto).
CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
OP_TYPE = 4  # of a node
TENSOR = 5  # of an attribute
DIMS, DATA_TYPE, SEGMENT, FLOAT_DATA, RAW_DATA, DOUBLE_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 3, 4, 9, 10, 13, 14
PAYLOADS = {FLOAT_DATA, 5, 6, 7, RAW_DATA, DOUBLE_DATA, 11}

_WIDTHS = {
    2: "UINT2 INT2",
    4: "UINT4 INT4 FLOAT4E2M1",
    6: "FLOAT6E2M3 FLOAT6E3M2",
    8: "UINT8 INT8 BOOL FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
    16: "UINT16 INT16 FLOAT16 BFLOAT16",
    32: "UINT32 INT32 FLOAT",
    64: "UINT64 INT64 DOUBLE COMPLEX64",
    128: "COMPLEX128",
}
# Bits of an element, of the types that the installed onnx knows.
BITS = {
    TensorProto.DataType.Value(name): bits
    for bits, names in _WIDTHS.items()
    for name in names.split()
    if name in dict(TensorProto.DataType.items())
}
# A payload of fixed-width numbers in one chunk has the same bytes as raw_data.
SAME_AS_RAW = {
    FLOAT_DATA: {TensorProto.FLOAT, TensorProto.COMPLEX64},
    DOUBLE_DATA: {TensorProto.DOUBLE, TensorProto.COMPLEX128},
}
SHAPES = {TensorProto.INT32, TensorProto.INT64}


@dataclass(frozen=True)
class Reference:
    """A payload that is stored elsewhere.

    Attributes:
        offset: in bytes.
        length: in bytes.
        field: the number of the field of its tensor that contained it, and that it returns to.
    """

    offset: int
    length: int
    field: int


@dataclass(frozen=True)
class Skeleton:
    """A serialized model without its large payloads, and references to these in no particular order."""

    model: bytes
    references: tuple[Reference, ...]


def skeleton(
    data: Buffer,
    location: str,
    *,
    threshold: int = THRESHOLD,
    most_references: int = MOST_REFERENCES,
    release: Callable[[], None] = lambda: None,
) -> Skeleton:
    """The model in `data` with every large payload replaced by a reference into `location`.

    Only what every reader of the skeleton understands is referenced. The rest stays inline: strings, segments, sparse
    values, training information, numbers that are not stored in their own type, a payload given twice, tensors that
    are stored elsewhere already or whose size contradicts their shape, and vectors of integers, which shape inference
    and sessions read as shapes.

    Args:
        data: the file.
        location: the name of the file in the references.
        threshold: bytes of the smallest payload to leave out.
        most_references: how many to leave out at most, the largest first.
        release: called after the walk has jumped far ahead: the pages of `data` before it need not stay in memory.

    Raises:
        ModelError: if `data` is not in the wire format.
    """
    walk = _Walk(data, lambda start, end: end - start >= threshold, release)
    root = walk.model()
    found = [(tensor, place) for tensor in walk.candidates(root) if (place := walk.payload(tensor, threshold))]
    found.sort(key=lambda candidate: -candidate[1].reference.length)
    bodies: dict[int, list[Payload]] = {}
    for tensor, place in found[:most_references]:
        reference = TensorProto()
        refer(reference, location, place.reference.offset, place.reference.length)
        bodies[tensor.start] = [
            memoryview(data)[tensor.start : place.tag],
            memoryview(data)[place.end : tensor.end],
            memoryview(reference.SerializeToString()),
        ]
    model = bytearray()
    for count, piece in enumerate(_splice(data, root, bodies) or [memoryview(data)]):
        model += piece
        if count % 16 == 0:
            release()
    return Skeleton(bytes(model), tuple(place.reference for _, place in found[:most_references]))


def rewrite(
    model: bytes, substitute: Callable[[TensorProto], tuple[TensorProto, int, Payload] | TensorProto | None]
) -> list[Payload]:
    """The pieces of `model` with its externally stored tensors replaced.

    Args:
        model: a model serialized by protobuf, which encodes every field in the one canonical way.
        substitute: returns what replaces such a tensor: a tensor, or (a tensor, the field of its payload, the
            payload), or None to leave it unchanged.
    """
    marks = _positions(model, TensorProto(data_location=TensorProto.EXTERNAL).SerializeToString())
    if not marks(0, len(model)):
        return [memoryview(model)]
    walk = _Walk(model, marks)
    root = walk.model()
    bodies: dict[int, list[Payload]] = {}
    for leaf in walk.tensors(root):
        tensor = TensorProto.FromString(model[leaf.start : leaf.end])
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        match substitute(tensor):
            case TensorProto() as other:
                bodies[leaf.start] = [memoryview(other.SerializeToString())]
            case (other, field, payload):
                bodies[leaf.start] = _with_payload(other, field, payload)
    return _splice(model, root, bodies) or [memoryview(model)]


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Make `tensor` a reference to bytes that are stored elsewhere."""
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = TensorProto.EXTERNAL


def payload_bytes(dims: Sequence[int], elem_type: int) -> int:
    """The size of a payload in bytes; elements narrower than a byte are packed."""
    return (math.prod(dims) * BITS[elem_type] + 7) // 8


@dataclass(frozen=True)
class _Message:
    """A message on the path to a tensor: its body is [start, end), its length is encoded at `head`."""

    kind: str
    number: int
    head: int
    start: int
    end: int
    inner: tuple[_Message, ...]


@dataclass(frozen=True)
class _Place:
    """The position of a payload in its tensor, and of the tag before it."""

    tag: int
    end: int
    reference: Reference


class _Walk:
    """One walk over a serialized model; it enters a message if `worth(start, end)` is true."""

    def __init__(
        self, data: Buffer, worth: Callable[[int, int], bool], release: Callable[[], None] = lambda: None
    ) -> None:
        self.data = memoryview(data)
        self.worth, self.release = worth, release
        self.left = MOST_FIELDS

    def model(self) -> _Message:
        """The tree of messages."""
        end = len(self.data)
        return _Message("Model", 0, 0, 0, end, self.inner("Model", 0, end, 1))

    def inner(self, kind: str, start: int, end: int, depth: int) -> tuple[_Message, ...]:
        """The messages inside a message that `worth` selects."""
        if depth > DEEPEST:
            raise ModelError(f"messages are nested more than {DEEPEST} deep at byte {start}")
        children, worth = CHILDREN.get(kind, {}), self.worth
        return tuple(
            _Message(children[number], number, head, body, stop, self.inner(children[number], body, stop, depth + 1))
            for number, wire, _, head, body, stop in self.fields(start, end)
            if wire == LEN and number in children and worth(body, stop)
        )

    def tensors(self, message: _Message) -> Iterator[_Message]:
        """Every tensor of the tree, in order."""
        if message.kind == "Tensor":
            yield message
        for inner in message.inner:
            yield from self.tensors(inner)

    def candidates(self, message: _Message) -> Iterator[_Message]:
        """The tensors that a reference may replace: initializers, and values of Constant nodes."""
        for inner in message.inner:
            if inner.kind not in ("Tensor", "SparseTensor", "Training"):
                yield from self.candidates(inner)
            elif message.kind == "Graph" and inner.kind == "Tensor":
                yield inner
        if message.kind == "Node" and self.values(message, OP_TYPE) == [b"Constant"]:
            for attribute in message.inner:
                # Protobuf merges two tensors into one.
                if len(self.values(attribute, TENSOR)) == 1:
                    yield from (inner for inner in attribute.inner if inner.number == TENSOR)

    def values(self, message: _Message, number: int) -> list[memoryview]:
        """All values of one field of a message."""
        fields = self.fields(message.start, message.end)
        return [self.data[start:end] for found, *_, start, end in fields if found == number]

    def payload(self, tensor: _Message, threshold: int) -> _Place | None:
        """The payload of a tensor; None if a reference cannot replace it."""
        dims: list[int] = []
        elem_type = 0
        places: list[_Place] = []
        for count, (number, wire, tag, _, start, end) in enumerate(self.fields(tensor.start, tensor.end)):
            if count > MOST_TENSOR_FIELDS or number in (SEGMENT, EXTERNAL_DATA, DATA_LOCATION):
                return None
            if number == DIMS:
                while start < end:
                    value, start = self.varint(start, end)
                    dims.append(value)
            elif number == DATA_TYPE and wire == VARINT:
                elem_type, _ = self.varint(start, end)
            elif number in PAYLOADS:
                if wire != LEN or places:
                    return None
                places.append(_Place(tag, end, Reference(start, end - start, number)))
        if not places or elem_type not in BITS or (len(dims) <= 1 and elem_type in SHAPES):
            return None
        (place,) = places
        length, field = place.reference.length, place.reference.field
        raw = field == RAW_DATA or elem_type in SAME_AS_RAW.get(field, ())
        return place if raw and length >= threshold and length == payload_bytes(dims, elem_type) else None

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int, int]]:
        """(number, wire type, start of the tag, of the length, of the value, end) of each field in [start, end)."""
        data, varint = self.data, self.varint
        at = start
        while at < end:
            tag_at = at
            tag = data[at]
            if tag < 0x80:
                at += 1
            else:
                tag, at = varint(at, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise ModelError(f"field number {number} at byte {tag_at}")
            self.left -= 1
            if self.left < 0:
                raise ModelError(f"more than {MOST_FIELDS:,} fields")
            head = value = at
            if wire == LEN:
                if at < end and data[at] < 0x80:  # as of most fields
                    length, value = data[at], at + 1
                else:
                    length, value = varint(at, end)
                at = value + length
                if length > FAR:
                    self.release()
            elif wire == VARINT:
                _, at = varint(at, end)
            elif wire == I32:
                at += 4
            elif wire == I64:
                at += 8
            elif wire == START_GROUP:
                at = self.group(number, at, end)
            else:
                raise ModelError(f"wire type {wire} at byte {tag_at}")
            if at > end == len(data):
                raise ModelError(f"{at - end} bytes are missing at its end: perhaps a download or a copy was cut short")
            if at > end:
                raise ModelError(f"the field at byte {tag_at} reaches {at - end} bytes beyond its message")
            yield number, wire, tag_at, head, value, at

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Decode a varint, seven bits per byte and at most ten bytes: (the number, where it ends)."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ModelError(f"the message ends within a number at byte {at}")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ModelError(f"a number of more than ten bytes before byte {at}")

    def group(self, number: int, at: int, end: int) -> int:
        """Skip a group, a deprecated way of nesting: from after its start tag to after the matching end tag."""
        open_groups = [number]
        while open_groups:
            tag, after = self.varint(at, end)
            if tag & 7 == END_GROUP:
                if tag >> 3 != open_groups.pop():
                    raise ModelError(f"a group ends at byte {at} that did not begin")
                at = after
            elif tag & 7 == START_GROUP:
                open_groups.append(tag >> 3)
                if len(open_groups) > DEEPEST:
                    raise ModelError(f"groups are nested more than {DEEPEST} deep at byte {at}")
                at = after
            else:
                at = next(self.fields(at, end))[-1]
        return at


def _splice(data: Buffer, message: _Message, bodies: Mapping[int, list[Payload]]) -> list[Payload]:
    """The pieces of a message with new bodies for some of its tensors; empty if nothing in it changes."""
    if message.start in bodies and message.kind == "Tensor":
        return bodies[message.start]
    view, pieces, at = memoryview(data), list[Payload](), message.start
    for inner in message.inner:
        if body := _splice(data, inner, bodies):
            pieces += [view[at : inner.head], memoryview(_encode(sum(piece.nbytes for piece in body))), *body]
            at = inner.end
    return [*pieces, view[at : message.end]] if pieces else []


def _with_payload(tensor: TensorProto, field: int, payload: Payload) -> list[Payload]:
    """The pieces of a tensor with a payload, at the place where protobuf would write it: fields in ascending order."""
    body = tensor.SerializeToString()
    walk = _Walk(body, lambda start, end: False)
    at = next((tag for number, _, tag, *_ in walk.fields(0, len(body)) if number > field), len(body))
    head = _encode(field << 3 | LEN) + _encode(payload.nbytes)
    return [memoryview(body)[:at], memoryview(head), payload, memoryview(body)[at:]]


def _positions(data: bytes, mark: bytes) -> Callable[[int, int], bool]:
    """A function that tests whether `mark` occurs in data[start:end]."""
    found, at = list[int](), data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    found.append(len(data) + 1)
    return lambda start, end: found[bisect_left(found, start)] < end


def _encode(value: int) -> bytes:
    """A number as a varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
