"""Damaged and hostile models: converted or refused, in bounded time and memory, and no file is touched.

The rows are what once went wrong, the smallest of each; `fuzz.py` runs the thousands that found them.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from pathlib import Path

import fresh
import fuzz
import law
import numpy as np
import onnx
import pytest
from damaged import DATA, seeds
from onnx import ModelProto, helper, numpy_helper
from perceptron import value_info

import onnx_fcn
from onnx_fcn import FcnError, ModelError, UnsupportedModel

MOST_WRONG = 0.002  # of the cases: answers of a damaged network that overflow differ with the order of a sum


def test_some_hundred_cases() -> None:
    check(range(300))


@pytest.mark.slow
def test_ten_thousand_cases() -> None:
    check(range(10_000))


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_inputs_of_the_commands_that_read(count: int) -> None:
    """Drawn anew in every run; a failure says the numbers of its cases, each of which is a seed."""
    numbers = fresh.seeds(count)
    outcomes = list(fuzz.campaign(numbers, inputs=True))
    assert sorted(o.number for o in outcomes) == list(numbers)
    assert [o for o in outcomes if o.kind == "FAILED"] == []
    kinds = collections.Counter(o.kind for o in outcomes)
    assert len(numbers) < 50 or min(kinds["done"], kinds["refused"]) > len(numbers) / 20


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_other_cases(count: int) -> None:
    """Drawn anew in every run; a failure says the numbers of its cases, each of which is a seed."""
    numbers = fresh.seeds(count)
    outcomes = list(fuzz.campaign(numbers))
    assert sorted(o.number for o in outcomes) == list(numbers)
    assert [o for o in outcomes if o.kind == "FAILED"] == []


def check(numbers: range) -> None:
    outcomes = list(fuzz.campaign(numbers))
    assert sorted(o.number for o in outcomes) == list(numbers)
    assert [o for o in outcomes if o.kind == "FAILED"] == []
    kinds = collections.Counter(o.kind for o in outcomes)
    assert kinds["ValidationError"] <= MOST_WRONG * len(numbers)
    assert kinds["converted"] > len(numbers) / 20  # much damage does not matter, and then it is converted
    assert kinds["UnsupportedModel"] + kinds["OptionError"] > len(numbers) / 40  # as much lies deep


def test_a_crash_is_seen_and_known_by_its_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that dies is one failed case; the next one goes on behind it."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        """import os, signal, sys
for number in sys.argv[2:]:
    if number == "3":
        os.kill(os.getpid(), signal.SIGSEGV)
    print(number, "converted", "0.1", "", sep="\\t", flush=True)
"""
    )
    monkeypatch.setattr(fuzz, "__file__", str(worker))
    outcomes = list(fuzz.campaign(range(6)))
    assert [o.number for o in outcomes] == list(range(6))
    assert [(o.number, o.what) for o in outcomes if o.kind == "FAILED"] == [(3, "the process ended with -11: ")]


# Rows -----------------------------------------------------------------------------------------------------------------


def plain() -> ModelProto:
    return ModelProto.FromString(seeds()["plain"]["model.onnx"])


def node(model: ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op)


def weight(model: ModelProto, name: str, value: np.ndarray) -> None:
    next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(value, name))


def image_of_three_axes(model: ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[0]


def kernel_of_another_rank(model: ModelProto) -> None:
    node(model, "Conv").attribute.append(helper.make_attribute("strides", [1, 1, 1]))


def weight_that_is_no_matrix(model: ModelProto) -> None:
    weight(model, "w", np.zeros(36, np.float32))


def dense_layer_on_a_map(model: ModelProto) -> None:
    """Neither 0 nor 1: onnxruntime drops these axes, where every other nonzero value would keep them."""
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=1000),
            helper.make_node("Gemm", ["m", "w"], ["y"], transB=1),
        ]
    )
    weight(model, "w", np.ones((5, 6), np.float32))


def repeats_too_many(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(7, np.int64), "counts"))
    node(model, "Flatten").CopyFrom(helper.make_node("Tile", ["m", "counts"], ["f"]))


def quantised_along_another_axis(model: ModelProto) -> None:
    weight(model, "w", np.ones((36, 7), np.int8))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(7, np.float32), "scale"))
    node(model, "Gemm").input[1] = "real"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w", "scale"], ["real"], axis=0))


def hundred_thousand_axes(model: ModelProto) -> None:
    for _ in range(100_000):
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_param="n")


def hundred_thousand_numbers(model: ModelProto) -> None:
    node(model, "Flatten").CopyFrom(helper.make_node("Transpose", ["m"], ["f"], perm=[1] * 100_000))


def larger_than_any_image(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**62


def second_input_larger_than_any(model: ModelProto) -> None:
    model.graph.input.append(value_info("mask", ["N", 2**40]))


def batch_of_too_many(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40


def image_of_no_type(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UNDEFINED


def call_of_too_many(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 13)]
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Act", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node(model, "Relu").CopyFrom(helper.make_node("Act", ["d", "d", "d"], ["r"], domain="own"))


def names_with_escape_sequences(model: ModelProto) -> None:
    node(model, "Flatten").CopyFrom(helper.make_node("Konv\n\x1b[2J", ["m"], ["f"], domain="a\nb"))
    model.opset_import.append(helper.make_opsetid("a\nb", 1))


def endless_name(model: ModelProto) -> None:
    node(model, "Flatten").CopyFrom(helper.make_node("NonZero", ["m"], ["f"], name="f" * 1_000_000))


def cycle(model: ModelProto) -> None:
    node(model, "Conv").input[0] = "y"


HOSTILE: dict[Callable[[ModelProto], None], tuple[type[FcnError], str]] = {
    image_of_three_axes: (FcnError, "slides along|rank"),
    kernel_of_another_rank: (UnsupportedModel, "slides along 2 axes with a kernel of 2, strides of 3"),
    weight_that_is_no_matrix: (FcnError, "no matrix|onnxruntime does not load the model"),
    dense_layer_on_a_map: (UnsupportedModel, "its attribute keepdims is 1000, but must be 0 or 1"),
    repeats_too_many: (UnsupportedModel, "repeats the 4 axes of"),
    quantised_along_another_axis: (UnsupportedModel, "'real' cannot be evaluated"),
    hundred_thousand_axes: (UnsupportedModel, "input 'x' has 100004 axes, and an image has 2 to 5"),
    hundred_thousand_numbers: (UnsupportedModel, r"permutes 4 axes by \[1, 1.* … .*1\]"),
    batch_of_too_many: (
        ModelError,
        r"'x' has the shape \(1099511627776, .*, with more values than the 1,073,741,824 that",
    ),
    larger_than_any_image: (ModelError, "input 'x' has .* values for one image, more than"),
    second_input_larger_than_any: (ModelError, "input 'mask' has 1099511627776 values"),
    image_of_no_type: (ModelError, "input 'x' holds values of type 0, which ONNX does not know"),
    call_of_too_many: (ModelError, "local functions of .* cannot be inlined"),
    names_with_escape_sequences: (FcnError, r"\\n\\x1b\[2J|a\\nb"),
    endless_name: (UnsupportedModel, "NonZero 'fff.* … fff"),
    cycle: (ModelError, "its nodes depend on themselves: "),
}


@pytest.mark.parametrize("damage", HOSTILE, ids=lambda f: f.__name__.replace("_", " "))
def test_hostile_models_are_refused(damage: Callable[[ModelProto], None], tmp_path: Path) -> None:
    model = plain()
    damage(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    kind, says = HOSTILE[damage]
    started = time.process_time()
    with pytest.raises(kind, match=says) as refused:
        onnx_fcn.convert(tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert time.process_time() - started < 10
    lines = str(refused.value).splitlines()
    assert all(len(line) < 2_100 and line.isprintable() for line in lines)
    assert len(lines) == 1 + isinstance(refused.value, UnsupportedModel)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    model = plain()
    model.graph.name = "graph of this name"
    damaged = model.SerializeToString().replace(b"graph of this name", b"graph \xff\xfe this name")
    (tmp_path / "model.onnx").write_bytes(damaged)
    with pytest.raises(ModelError, match="a name in it is not UTF-8 text"):
        onnx_fcn.convert(tmp_path / "model.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_an_empty_entry_of_external_data(tmp_path: Path, key: str) -> None:
    model = ModelProto.FromString(seeds()["external trunk"]["model.onnx"])
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == key).value = ""
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / DATA).write_bytes(seeds()["external trunk"][DATA])
    with pytest.raises(ModelError, match=r"is not a relative path|is '', not a number of bytes"):
        onnx_fcn.convert(tmp_path / "model.onnx")


def test_many_operands_take_seconds() -> None:
    parts = ", ".join(["i"] * 2_000)
    body = f"i = Conv (x, k)  c = Concat <axis = 1> ({parts})  m = ReduceMean <axes = [2, 3], keepdims = 0> (c)"
    model = law.model(f"{body}  y = Relu (m)", k=(6, 6, 2, 2))
    started = time.process_time()
    onnx_fcn.inspect(model)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "stored",
    [
        "[" * 100_000, "1", "null", "[1, 2]", '"window"', "9" * 5_000,
        '{"window": [1e999, 1]}', '{"stride": [0, 0]}', '{"stride": ["4", "4"]}',
        '{"cells": [[[1, 0, 0]], [[1, 0, 0]]]}',
        '{"cells": [[[1, 0.5, 1]], []]}', '{"exactness": "surely"}', '{"field": [null]}', '{"offset": [true, 0]}',
        '{"window": [1]}', '{"window": []}', '{"padding": [null, null]}', '{"window": [1e9, 1e9]}', '{"window": "66"}',
        '{"stride": [-1, 1]}', '{"stride": [2, 2]}', '{"stride": [NaN, 1]}', '{"offset": [1e300, 0]}', '{"reason": 7}',
        '{"context": "abc"}', '{"form": null}', '{"layout": 5}', '{"layout": "NCWW"}', '{"field": [null, null]}',
        '{"cells": [[[1, 1000000000000, 1]], [[1, -5, 1]]]}', '{"cells": [[[1000, 0, 1]], [[1, -5, 1]]]}',
        '{"cells": [[[1, -1000000000000, 1]], [[1, -5, 1]]]}', '{"cells": [[[-1, 0, 1]], [[1, -5, 1]]]}',
        '{"cells": {"0": 1}}', '{"cells": [[[1, 0]], [[1, 0, 1]]]}', '{"cells": [' + "[" * 900 + "]" * 900 + ", []]}",
        '{"cells": [' + str([[1, -5, 4]] * 5_000) + ", [[1, -5, 1]]]}",
        '{"cells": [' + str([[1 << 39, 0, 1 << 39]] * 256) + ", [[1, -5, 1]]]}",
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_metadata_that_is_no_geometry(stored: str) -> None:
    """Of the right graph, but with other values: refused, rather than a grid of nonsense."""
    import json

    model = ModelProto.FromString(seeds()["converted"]["model.onnx"])
    entry = next(e for e in model.metadata_props if e.key.startswith("onnx_fcn.output."))
    fuzz.use(onnx_fcn.read_geometry(model))
    entry.value = json.dumps(json.loads(entry.value) | json.loads(stored)) if stored.startswith("{") else stored
    with pytest.raises(ModelError, match="the geometry in the metadata cannot be read"):
        onnx_fcn.read_geometry(model)


def test_a_report_is_text_for_a_terminal() -> None:
    model = plain()
    node(model, "Gemm").name = "dense\n\x1b[2J" + "e" * 10_000
    lines = str(onnx_fcn.inspect(model)).splitlines()
    assert any("dense\\n\\x1b[2J" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_metadata_that_is_not_text(tmp_path: Path) -> None:
    model = ModelProto.FromString(seeds()["converted"]["model.onnx"])
    model.metadata_props.add(key="another key", value="another value")
    path = tmp_path / "model.onnx"
    for text in (b"another key", b"another value"):
        path.write_bytes(model.SerializeToString().replace(text, b"\xff" * len(text)))
        assert onnx_fcn.read_geometry(path) == onnx_fcn.read_geometry(model)
    path.write_bytes(model.SerializeToString().replace(b"onnx_fcn.window", b"onnx_fcn.windo\xff"))
    with pytest.raises(ModelError, match="cannot be read"):
        onnx_fcn.read_geometry(path)
