"""Damaged and hostile models: every case a number, the same folder of files each time.

    case(4711).write(folder)                       # folder/model.onnx, and the data beside it

A case is one of `seeds`, small networks that together have every kind of message of the format, after one to three
mutations. Of three kinds, since random bytes alone die in the parser:

    document   fields of the parsed model: other numbers, names of other things, messages that go, come twice or
               elsewhere; so cycles, duplicate names, unknown types and enum values, negative and huge dims, NaN weights
    wire       the same tree as bytes: lengths that lie, other field numbers and wire types, groups, deep nesting,
               fields by the hundred thousand, numbers without an end
    bytes      flips, cuts, blocks that are overwritten, repeated, or moved

External data may also be short, missing, elsewhere, a link, a directory or a pipe.
"""

from __future__ import annotations

import functools
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto, helper, numpy_helper
from perceptron import classifier

import onnx_fcn

FIXTURES = Path(__file__).parents[2] / "fixtures"
DATA = "weights.bin"


@dataclass
class Case:
    """Files of a folder, `model.onnx` among them, and what is done to that folder."""

    seed: str
    files: dict[str, bytes]
    applied: list[str] = field(default_factory=list)
    around: Callable[[Path], None] = lambda _: None

    def write(self, folder: Path) -> None:
        """Make the folder's files; what was there by these names is replaced."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        self.around(folder)

    def __str__(self) -> str:
        return f"{self.seed}: {', '.join(self.applied)}"


def case(number: int) -> Case:
    """The case of this number."""
    chance = random.Random(number)
    names = list(seeds())
    name = names[number % len(names)]
    made = Case(name, dict(seeds()[name]))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        mutate = chance.choice(KINDS)
        if DATA in made.files and chance.random() < 0.3:
            mutate = _surroundings
        mutate(made, chance)
    return made


# Seeds ----------------------------------------------------------------------------------------------------------------


@functools.cache
def seeds() -> dict[str, dict[str, bytes]]:
    """Small networks: each a folder's files."""
    made = {name: {"model.onnx": (FIXTURES / f"{name}.onnx").read_bytes()} for name in ("digits_padded",)}
    for name, model in _models().items():
        made[name] = {"model.onnx": model.SerializeToString()}
    converted = onnx_fcn.convert(_models()["plain"], validate=False).to_proto()
    made["converted"] = {"model.onnx": converted.SerializeToString()}
    made["external"] = _external(classifier())
    made["external trunk"] = _external(_models()["plain"])
    return made


def _models() -> dict[str, ModelProto]:
    """Networks that are converted without a complaint, but for `perceptron`."""
    dense = {"w": (36, 7), "b": (7,)}
    trunk = "m = Conv (x, k)"
    image = "float[N,6,6,5] x"
    made = {
        "plain": law.model(
            f"{trunk}  f = Flatten (m)  d = Gemm (f, w, b)  r = Relu (d)  y = MatMul (r, v)",
            k=(6, 6, 2, 2),
            v=(7, 5),
            **dense,
        ),
        "gated": law.model(
            """c = Conv <pads = [1, 1, 1, 1]> (x, k)  n = BatchNormalization (c, one, b, b, one)
            s = GlobalAveragePool (n)  g = Conv (s, k1)  a = Sigmoid (g)  q = Mul (n, a)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q)  m = ReduceMean <axes = [2, 3], keepdims = 0> (p)
            d = Gemm <transB = 1> (m, w)  y = Softmax (d)""",
            image=image,
            k=(6, 6, 3, 3),
            k1=(6, 6, 1, 1),
            one=np.ones(6, np.float32),
            b=(6,),
            w=(5, 6),
        ),
        "computed shapes": law.model(
            f"""{trunk}  s = Shape (m)  n = Gather (s, zero)  u = Unsqueeze (n, axes)  t = Concat <axis = 0> (u, rest)
            f = Reshape (m, t)  y = MatMul (f, w)""",
            outputs="float[N,7] y",
            k=(6, 6, 2, 2),
            w=(36, 7),
            zero=np.array(0, np.int64),
            axes=[0],
            rest=[-1],
        ),
        "channels last": law.model(
            "t = Transpose <perm = [0, 3, 1, 2]> (x)  m = Conv (t, k)  u = Transpose <perm = [0, 2, 3, 1]> (m)"
            "  f = Reshape (u, to)  y = MatMul (f, w)",
            image="float[N,5,4,6] x",
            k=(6, 6, 2, 2),
            w=(72, 7),
            to=[-1, 72],
        ),
        "signal": law.model(
            "m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, w)", image="float[N,2,9] x", k=(3, 2, 4), w=(18, 4)
        ),
        "constants": law.model(
            """z = Constant <value_floats = [0.1, 0.2, 0.3, 0.4, 0.5]> ()  m = Conv <auto_pad = "SAME_UPPER"> (x, k)
            f = Flatten (m)  d = MatMul (f, w)  y = Add (d, z)""",
            k=(6, 6, 2, 2),
            w=(72, 5),
        ),
        "quantised": law.model(
            """q = QuantizeLinear (x, s, zp)  e = DequantizeLinear (q, s, zp)  l = DequantizeLinear (k, s)
            m = Conv (e, l)  f = Flatten (m)  g = DequantizeLinear <axis = 1> (w, ws)  y = MatMul (f, g)""",
            k=np.arange(-72, 72, dtype=np.int8).reshape(6, 6, 2, 2),
            s=np.float32(0.02),
            zp=np.int8(3),
            w=np.arange(-90, 90, dtype=np.int8).reshape(36, 5),
            ws=np.linspace(0.01, 0.02, 5, dtype=np.float32),
        ),
        "branch": onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 13]> g (float[N,6,4,3] x) => (float[N,18] y)
            <bool yes = {1}> { y = If (yes) <then_branch = a () => (float[N,18] r) {
                r0 = MaxPool <kernel_shape = [3, 3]> (x)
                r1 = Concat <axis = 1> (r0, r0, r0)
                r = Flatten (r1) }, else_branch = b () => (float[N,72] q) { q = Flatten (x) }> }"""
        ),
        "perceptron": classifier(),
    }
    old = ModelProto()
    old.CopyFrom(made["plain"])
    old.ir_version = 3
    for tensor in old.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    made["weights as inputs"] = old
    made["functions"] = _with_function(made["plain"])
    return made


def _with_function(plain: ModelProto) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(plain)
    inputs = ["m", "w", "b", "v"]
    opset = helper.make_opsetid("", model.opset_import[0].version)
    model.functions.append(helper.make_function("own", "Head", inputs, ["y"], list(model.graph.node)[1:], [opset]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    del model.graph.node[1:]
    model.graph.node.append(helper.make_node("Head", inputs, ["y"], domain="own"))
    model.metadata_props.add(key="author", value="nobody")
    return model


def _external(model: ModelProto) -> dict[str, bytes]:
    """The model with all weights of two and more dims in a data file."""
    made, data = ModelProto(), bytearray()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if len(tensor.dims) > 1:
            payload = numpy_helper.to_array(tensor).tobytes()
            tensor.ClearField("raw_data")
            for key, value in (("location", DATA), ("offset", len(data)), ("length", len(payload))):
                tensor.external_data.add(key=key, value=str(value))
            tensor.data_location = TensorProto.EXTERNAL
            data += payload
    return {"model.onnx": made.SerializeToString(), DATA: bytes(data)}


# The parsed model -----------------------------------------------------------------------------------------------------

INTEGERS = [
    0,
    1,
    2,
    3,
    7,
    -1,
    -2,
    127,
    255,
    1000,
    7919,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
]
FLOATS = [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-45, 3.4e38, 1e300, 70000.0]
TEXTS = [
    "",
    "a\nb\x1b[2J",
    "\0",
    "x" * 100_000,
    "é",
    "../x",
    "%s%n",
    "NOTSET",
    "VALID",
    "SAME_LOWER",
    "[1]",
    "nan",
    "\N{SNOWMAN}",
]
OPERATORS = [
    "Add", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "DepthToSpace", "Dropout", "Einsum", "Expand", "Flatten", "GRU", "Gather", "GatherND", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "If", "InstanceNormalization", "LRN", "LSTM",
    "LayerNormalization", "Loop", "LpPool", "MatMul", "MaxPool", "Mean", "NonMaxSuppression", "NonZero", "OneHot",
    "Pad", "Range", "ReduceMax", "ReduceMean", "Reshape", "Resize", "Scan", "ScatterND", "SequenceConstruct",
    "Shape", "Size", "Slice", "Softmax", "SpaceToDepth", "Split", "Squeeze", "Sum", "Tile", "TopK", "Transpose",
    "Unsqueeze", "Upsample", "Where",
]  # fmt: skip


def _document(made: Case, chance: random.Random) -> None:
    """Change some fields of the parsed model; bytes that are no model any more are left to the others."""
    model = ModelProto()
    try:
        model.ParseFromString(made.files["model.onnx"])
    except Exception:
        return _bytes(made, chance)
    for _ in range(chance.choice((1, 1, 2, 4))):
        made.applied.append(chance.choice(DOCUMENT)(model, chance))
    try:
        made.files["model.onnx"] = model.SerializeToString()
    except Exception:  # a string field holds what cannot be written
        return _bytes(made, chance)
    return None


LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
Slot = tuple[Message, FieldDescriptor, int | None]


def _slots(message: Message, kinds: set[int]) -> list[Slot]:
    """All places below a message that hold a value of some types: (owner, field, index)."""
    found: list[Slot] = []
    waiting = [message]
    while waiting:
        owner = waiting.pop()
        for descriptor, value in owner.ListFields():
            values = list(value) if _repeats(descriptor) else [value]
            if descriptor.cpp_type in kinds:
                indices = range(len(values)) if _repeats(descriptor) else [None]
                found += [(owner, descriptor, k) for k in list(indices)[:64]]
            if descriptor.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                waiting += values
    return found


def _repeats(descriptor: FieldDescriptor) -> bool:
    return bool(descriptor.is_repeated)


def _get(slot: Slot) -> Any:
    owner, descriptor, index = slot
    value = getattr(owner, descriptor.name)
    return value if index is None else value[index]


def _set(slot: Slot, value: Any) -> None:
    owner, descriptor, index = slot
    if index is None:
        setattr(owner, descriptor.name, value)
    else:
        getattr(owner, descriptor.name)[index] = value


def _where(slot: Slot) -> str:
    owner, descriptor, index = slot
    return f"{owner.DESCRIPTOR.name}.{descriptor.name}" + ("" if index is None else f"[{index}]")


def _number(model: ModelProto, chance: random.Random) -> str:
    """Another number, or enum value."""
    integers = {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_ENUM,
    }
    slot = _any(_slots(model, integers), chance)
    if slot is None:
        return "no number"
    if slot[1].enum_type is not None:  # an unknown one is for the wire: protobuf does not take it from Python
        value = chance.choice([v.number for v in slot[1].enum_type.values])
    else:
        low, high = LIMITS.get(slot[1].cpp_type, (-(2**63), 2**63 - 1))
        value = chance.choice([*INTEGERS, _get(slot) + 1, _get(slot) - 1, chance.randrange(40)])
        value = min(high, max(low, value))
    _set(slot, value)
    return f"{_where(slot)} = {value}"


def _real(model: ModelProto, chance: random.Random) -> str:
    slot = _any(_slots(model, {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}), chance)
    if slot is None:
        return "no real number"
    value = chance.choice(FLOATS)
    if value == 1e300 and slot[1].cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        value = 1e38
    _set(slot, value)
    return f"{_where(slot)} = {value}"


def _text(model: ModelProto, chance: random.Random) -> str:
    """Another text: that of some other field, an operator, or an odd one."""
    slots = [s for s in _slots(model, {FieldDescriptor.CPPTYPE_STRING}) if s[1].type == FieldDescriptor.TYPE_STRING]
    slot = _any(slots, chance)
    if slot is None:
        return "no text"
    if slot[1].name == "op_type":
        value = chance.choice(OPERATORS)
    elif chance.random() < 0.7:
        value = _get(chance.choice([s for s in slots if s[1].name != "op_type"] or slots))
    else:
        value = chance.choice(TEXTS)
    if isinstance(value, bytes):
        return "text that is not UTF-8"
    _set(slot, value)
    return f"{_where(slot)} = {value[:20]!r}"


def _payload(model: ModelProto, chance: random.Random) -> str:
    """Other bytes of a weight or of a string attribute."""
    slots = [s for s in _slots(model, {FieldDescriptor.CPPTYPE_STRING}) if s[1].type == FieldDescriptor.TYPE_BYTES]
    slot = _any(slots, chance)
    if slot is None:
        return "no payload"
    value = bytes(_get(slot))
    value = chance.choice(
        [
            value[:-1],
            value[: len(value) // 2],
            b"",
            value + value,
            b"\xff" * len(value),
            bytes(len(value)),
            np.full(len(value) // 4 + 1, chance.choice(FLOATS[:7]), np.float32).tobytes()[: len(value)],
        ]
    )
    _set(slot, value)
    return f"{_where(slot)} of {len(value)} bytes"


def _gone(model: ModelProto, chance: random.Random) -> str:
    """A field less."""
    slot = _any(_slots(model, set(range(1, 11))), chance)
    if slot is None:
        return "nothing to remove"
    where, (owner, descriptor, index) = _where(slot), slot
    if index is None:
        owner.ClearField(descriptor.name)
    else:
        del getattr(owner, descriptor.name)[index]
    return f"no {where}"


def _again(model: ModelProto, chance: random.Random) -> str:
    """An element of a repeated field twice, or many times."""
    slot = _any([s for s in _slots(model, set(range(1, 11))) if s[2] is not None], chance)
    if slot is None:
        return "nothing to repeat"
    times = chance.choice((1, 1, 1, 3, 2000))
    if isinstance(value := _get(slot), Message) and value.ByteSize() * times > 4 << 20:
        times = 1
    values = getattr(slot[0], slot[1].name)
    try:
        for _ in range(times):
            values.append(value)
    except UnicodeDecodeError:  # a name that was damaged before
        return "nothing that protobuf repeats"
    return f"{_where(slot)} {times + 1} times"


def _moved(model: ModelProto, chance: random.Random) -> str:
    """A message in the place of another of its type, or its siblings in another order."""
    slots = _slots(model, {FieldDescriptor.CPPTYPE_MESSAGE})
    slot = _any(slots, chance)
    if slot is None:
        return "nothing to move"
    target = _get(slot)
    if slot[2] is not None and chance.random() < 0.3:
        siblings = list(getattr(slot[0], slot[1].name))
        copies = [type(s).FromString(s.SerializePartialToString()) for s in siblings]
        chance.shuffle(copies)
        for sibling, other in zip(siblings, copies):
            sibling.CopyFrom(other)
        return f"{_where(slot)} shuffled"
    other = chance.choice([s for s in slots if _get(s).DESCRIPTOR is target.DESCRIPTOR])
    copy = type(target).FromString(_get(other).SerializePartialToString())
    (target.MergeFrom if chance.random() < 0.2 else target.CopyFrom)(copy)
    return f"{_where(slot)} from {_where(other)}"


def _unexpected(model: ModelProto, chance: random.Random) -> str:
    """A value in a field that had none: by its type, with a plausible or an odd value."""
    owners = [model, *(_get(s) for s in _slots(model, {FieldDescriptor.CPPTYPE_MESSAGE}))]
    owner = chance.choice(owners)
    descriptor = chance.choice(list(owner.DESCRIPTOR.fields))
    kind = descriptor.cpp_type
    value: Any
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        value = None
    elif kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        value = 1.0
    elif kind == FieldDescriptor.CPPTYPE_STRING:
        value = b"x" if descriptor.type == FieldDescriptor.TYPE_BYTES else "x"
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        value = True
    else:
        value = 1
    if _repeats(descriptor):
        values = getattr(owner, descriptor.name)
        if value is None:
            values.add()
        else:
            values.append(value)
    elif value is None:
        getattr(owner, descriptor.name).SetInParent()
    else:
        setattr(owner, descriptor.name, value)
    return f"{owner.DESCRIPTOR.name}.{descriptor.name} where there was none"


def _cycle(model: ModelProto, chance: random.Random) -> str:
    """A node that reads what is computed from it."""
    nodes = [n for n in model.graph.node if n.input and n.output]
    if not nodes:
        return "no nodes"
    reader, writer = (chance.choice(nodes) for _ in range(2))
    try:
        reader.input[chance.randrange(len(reader.input))] = writer.output[0]
    except UnicodeError:
        return "a name that is not UTF-8"
    return f"{reader.op_type} reads {writer.op_type}"


def _nested(model: ModelProto, chance: random.Random) -> str:
    """The graph as the body of a node, of a node, of a node …"""
    graph = model.graph
    if graph.ByteSize() > 20_000:
        return "too large to nest"
    depth = chance.choice((2, 10, 20))
    outputs, condition = [o.name for o in graph.output], [i.name for i in graph.input][:1]
    try:
        helper.make_node("If", condition, outputs)
    except UnicodeError:
        return "a name that is not UTF-8"
    for _ in range(depth):
        inner = onnx.GraphProto()
        inner.CopyFrom(graph)
        del graph.node[:]
        del graph.initializer[:]
        node = helper.make_node(chance.choice(("If", "Loop", "Scan")), condition, outputs)
        node.attribute.add(name=chance.choice(("then_branch", "body")), type=onnx.AttributeProto.GRAPH).g.CopyFrom(
            inner
        )
        if node.op_type == "If":
            node.attribute.add(name="else_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
            if inner.ByteSize() > 200_000:
                graph.node.append(node)
                break
        try:
            graph.node.append(node)
        except DecodeError:  # protobuf's own limit on depth
            return "graphs as deep as protobuf takes them"
    return f"graphs {depth} deep"


def _any(slots: list[Slot], chance: random.Random) -> Slot | None:
    return chance.choice(slots) if slots else None


DOCUMENT = (
    _number,
    _number,
    _number,
    _real,
    _text,
    _text,
    _payload,
    _gone,
    _again,
    _moved,
    _moved,
    _unexpected,
    _cycle,
    _nested,
)


# The wire format ------------------------------------------------------------------------------------------------------


@dataclass
class Field:
    """One field of a message as it lies in the file: [start, end), its value at [value, end)."""

    number: int
    wire: int
    start: int
    value: int
    end: int
    path: tuple[Field, ...]


def _fields(data: bytes) -> list[Field]:
    """All fields of a file, nested ones among them, as far as they can be told; at most some thousand."""
    found: list[Field] = []

    def walk(start: int, end: int, path: tuple[Field, ...]) -> bool:
        at, mine = start, []
        while at < end:
            tag, value = _varint(data, at, end)
            number, wire = tag >> 3, tag & 7
            stop = value
            if wire == 0:
                _, stop = _varint(data, value, end)
            elif wire == 2:
                length, value = _varint(data, value, end)
                stop = value + length
            elif wire in (1, 5):
                stop = value + (8 if wire == 1 else 4)
            else:
                return False
            if not 0 < number < 100 or stop > end or value < 0 or stop < 0:
                return False
            mine.append(Field(number, wire, at, value, stop, path))
            at = stop
        found.extend(mine)
        for inner in mine:
            if inner.wire == 2 and 1 < inner.end - inner.value < 50_000 and len(path) < 12 and len(found) < 4_000:
                walk(inner.value, inner.end, (*path, inner))
        return True

    walk(0, len(data), ())
    return found


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return 0, -1


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _replaced(data: bytes, place: Field, new: bytes) -> bytes:
    """The file with another field in the place of one; the lengths around it are corrected."""
    start, end = place.start, place.end
    for outer in reversed(place.path):
        body = data[outer.value : start] + new + data[end : outer.end]
        new = _encoded(outer.number << 3 | 2) + _encoded(len(body)) + body
        start, end = outer.start, outer.end
    return data[:start] + new + data[end:]


def _wire(made: Case, chance: random.Random) -> None:
    """Change one field of the tree of bytes."""
    data = made.files["model.onnx"]
    places = _fields(data)
    if not places:
        return _bytes(made, chance)
    place = chance.choice(places)
    value = data[place.value : place.end]
    tag = _encoded(place.number << 3 | place.wire)
    length = _encoded(len(value))
    made.applied.append(name := chance.choice(list(WIRE)))
    new = WIRE[name](place, tag, length, value, chance)
    made.files["model.onnx"] = (
        data[: place.start] + new + data[place.end :] if name == "a length that lies" else _replaced(data, place, new)
    )
    return None


def _lying(place: Field, tag: bytes, length: bytes, value: bytes, chance: random.Random) -> bytes:
    lie = chance.choice([0, len(value) - 1, len(value) + 1, len(value) * 2 + 1, 2**31 - 1, 2**32, 2**63, 2**64 - 1])
    return _encoded(place.number << 3 | 2) + _encoded(max(0, lie)) + value


def _with_length(place: Field, tag: bytes, length: bytes, value: bytes) -> bytes:
    return tag + (length if place.wire == 2 else b"") + value


WIRE: dict[str, Callable[[Field, bytes, bytes, bytes, random.Random], bytes]] = {
    "a length that lies": _lying,
    "another field number": lambda p, t, n, v, c: _with_length(p, _encoded(c.randrange(1, 30) << 3 | p.wire), n, v),
    "a field number of 0": lambda p, t, n, v, c: _with_length(p, bytes([p.wire]), n, v),
    "another wire type": lambda p, t, n, v, c: _with_length(p, _encoded(p.number << 3 | c.randrange(8)), n, v),
    "twice": lambda p, t, n, v, c: 2 * _with_length(p, t, n, v),
    "no value": lambda p, t, n, v, c: _encoded(p.number << 3 | 2) + b"\0",
    "a hundred thousand empty ones": lambda p, t, n, v, c: 100_000 * (_encoded(p.number << 3 | 2) + b"\0"),
    "a hundred thousand numbers": lambda p, t, n, v, c: 100_000 * (_encoded(p.number << 3) + b"\1"),
    "a number without an end": lambda p, t, n, v, c: _encoded(p.number << 3) + b"\xff" * c.choice((9, 10, 11, 5000)),
    "a large number": lambda p, t, n, v, c: _encoded(p.number << 3) + _encoded(c.choice((2**31, 2**63, 2**64 - 1))),
    "a number in twelve bytes": lambda p, t, n, v, c: _encoded(p.number << 3) + b"\x80" * 9 + b"\1",
    "nested in itself": lambda p, t, n, v, c: _deep(p.number, v, c.choice((2, 90, 101, 5_000))),
    "nested graphs": lambda p, t, n, v, c: _alternating(p, v, c.choice((5, 24, 32, 200))),
    "groups": lambda p, t, n, v, c: _groups(p.number, v, c.choice((1, 99, 101, 20_000))),
    "a group without an end": lambda p, t, n, v, c: _encoded(p.number << 3 | 3) + v,
    "not UTF-8": lambda p, t, n, v, c: _encoded(p.number << 3 | 2) + b"\2\xff\xfe",
    "an unknown enum value": lambda p, t, n, v, c: (
        _encoded(p.number << 3) + _encoded(c.choice((29, 99, 2**31 - 1, 2**64 - 3)))
    ),
}


def _deep(number: int, value: bytes, depth: int) -> bytes:
    for _ in range(depth):
        value = _encoded(number << 3 | 2) + _encoded(len(value)) + value
    return value


def _alternating(place: Field, value: bytes, depth: int) -> bytes:
    """Graph ⟩ node ⟩ attribute ⟩ graph …, as subgraphs lie in one another."""
    for _ in range(depth):
        for number in (6, 5, 1):
            value = _encoded(number << 3 | 2) + _encoded(len(value)) + value
    return _encoded(place.number << 3 | 2) + _encoded(len(value)) + value


def _groups(number: int, value: bytes, depth: int) -> bytes:
    return depth * _encoded(number << 3 | 3) + depth * _encoded(number << 3 | 4)


# Bytes ----------------------------------------------------------------------------------------------------------------


def _bytes(made: Case, chance: random.Random) -> None:
    """Damage as transfers and disks do it; most of it near the beginning, where the graph is."""
    name = DATA if DATA in made.files and chance.random() < 0.2 else "model.onnx"
    data = bytearray(made.files[name])
    if not data:
        return
    at = chance.randrange(min(len(data), chance.choice((50, 2_000, 1 << 20))))
    length = chance.choice((1, 4, 100, 4096))
    kind = chance.choice(("flip", "flip", "cut", "zeros", "noise", "insert", "delete", "repeat"))
    if kind == "flip":
        for _ in range(chance.choice((1, 3, 30))):
            data[chance.randrange(at, len(data))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[chance.choice((at, len(data) - 1, chance.randrange(len(data)))) :]
    elif kind == "zeros":
        data[at : at + length] = bytes(length)
    elif kind == "noise":
        data[at : at + length] = chance.randbytes(length)
    elif kind == "insert":
        data[at:at] = chance.randbytes(length)
    elif kind == "delete":
        del data[at : at + length]
    else:
        data[at:at] = data[at : at + length]
    made.files[name] = bytes(data)
    made.applied.append(f"{kind} at byte {at} of {name}")


# The folder -----------------------------------------------------------------------------------------------------------


def _surroundings(made: Case, chance: random.Random) -> None:
    """External data that is not what it should be."""
    name = chance.choice(list(SURROUNDINGS))
    made.applied.append(f"data {name}")
    if name in ENTRIES:
        model = ModelProto()
        try:
            model.ParseFromString(made.files["model.onnx"])
        except Exception:
            return
        entries = [e for t in model.graph.initializer for e in t.external_data]
        if entries:
            key = chance.choice(("location", "offset", "length"))
            chance.choice([e for e in entries if e.key == key] or entries).value = chance.choice(ENTRIES[name])
            made.files["model.onnx"] = model.SerializeToString()
        return
    made.around = SURROUNDINGS[name]


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def around(folder: Path) -> None:
        (folder / DATA).unlink()
        make(folder / DATA)

    return around


ENTRIES = {
    "elsewhere": [
        "../weights.bin",
        "/etc/passwd",
        "./././weights.bin",
        "a/../weights.bin",
        "model.onnx",
        ".",
        "",
        "nowhere",
    ],
    "at odd bytes": ["-1", "1e3", "0x10", " 0", "", "9" * 30, "١٢", "4096", str(2**63), "1"],
}
SURROUNDINGS: dict[str, Callable[[Path], None]] = {
    "missing": _instead(lambda path: None),
    "short": lambda folder: os.truncate(folder / DATA, 100),
    "empty": lambda folder: os.truncate(folder / DATA, 0),
    "a directory": _instead(lambda path: path.mkdir()),
    "a pipe": _instead(os.mkfifo),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a link to a device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a link out of the folder": _instead(lambda path: path.symlink_to("../../outside")),
    "a link to the model": _instead(lambda path: path.symlink_to("model.onnx")),
    "not readable": lambda folder: (folder / DATA).chmod(0),
    **dict.fromkeys(ENTRIES, lambda _: None),
}
KINDS = (_document, _document, _document, _wire, _wire, _bytes)


def metadata(number: int) -> ModelProto:
    """A converted model whose `metadata_props` are changed, while its graph is what they were written for."""
    chance = random.Random(number)
    model = ModelProto.FromString(seeds()["converted"]["model.onnx"])
    entry = chance.choice([e for e in model.metadata_props if e.key not in ("onnx_fcn.graph", "onnx_fcn.format")])
    text = bytearray(entry.value.encode())
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(text) + 1)
        new = chance.choice(JSON).encode()
        text[at : at + chance.choice((0, 1, 1, 2, 10))] = new
    if chance.random() < 0.3:
        text = bytearray(chance.choice(JSON).encode())
    entry.value = text.decode("utf-8", "replace")
    return model


JSON = [
    "", "0", "-1", "1", "9" * 30, "9" * 5_000, "1e999", "-1e999", "NaN", "Infinity", "null", "true", "[]", "{}", '""',
    '"exact"', "[" * 2_000, "[" * 100_000, "[1,2]", "[[1,0,0],[1,0,0]]", "[0,0]", "[[[1,0,0]]]", ",", "]", "}", ":",
    "0.5", '{"window": [1, 1]}', "1e308", "-0", '"window":', '\\u0000', '"cells": null,',
]  # fmt: skip
