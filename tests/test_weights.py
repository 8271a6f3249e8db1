"""Weights of a converted file are exchanged on disk: whole or not at all, and the geometry stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from perceptron import weights

import onnx_fcn
from onnx_fcn import ModelError, OptionError, ValidationError
from onnx_fcn.model.document import Document
from onnx_fcn.model.metadata import fingerprint

DIGITS = Path(__file__).parent.parent / "fixtures/digits_unpadded.onnx"
IMAGE = np.random.default_rng(0).random((1, 1, 36, 40), np.float32)
LAST = ("10.weight", "10.bias")


@pytest.fixture(params=[False, True], ids=["inline", "external"])
def converted(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The digit classifier, converted; its kernel of 82 kB in the file or beside it."""
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "out.onnx"
    onnx_fcn.convert(DIGITS, path, validate=False, external_data=request.param)
    return path


@pytest.fixture
def inline(tmp_path: Path) -> Path:
    onnx_fcn.convert(DIGITS, tmp_path / "out.onnx", validate=False)
    return tmp_path / "out.onnx"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def scores(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": IMAGE})[0])


def doubled(path: Path, *names: str) -> dict[str, np.ndarray]:
    old = weights(path)
    return {name: 2 * old[name] for name in names}


def extended(path: Path, change: Callable[[ModelProto], object]) -> Path:
    """A converted file with another graph, signed as if the converter had written it."""
    model = onnx.load(path)
    change(model)
    entry = next(e for e in model.metadata_props if e.key == "onnx_fcn.graph")
    entry.value = fingerprint(model.graph)
    path.write_bytes(model.SerializeToString())
    return path


def with_weight(path: Path, array: np.ndarray, name: str = "extra") -> Path:
    return extended(path, lambda model: model.graph.initializer.append(numpy_helper.from_array(array, name)))


def with_nodes(path: Path, *nodes: onnx.NodeProto, **initializers: np.ndarray) -> Path:
    def change(model: ModelProto) -> None:
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in initializers.items())

    return extended(path, change)


def refusal(path: Path, new: dict[str, Any]) -> str:
    """What is said about weights that are not accepted; nothing is written."""
    before = contents(path.parent)
    with pytest.raises(OptionError) as refused:
        onnx_fcn.replace_weights(path, new, path)
    assert contents(path.parent) == before
    return str(refused.value)


# What changes, and what stays -----------------------------------------------------------------------------------------


def test_the_last_layer_is_exchanged(converted: Path, tmp_path: Path) -> None:
    before, old = contents(converted.parent), weights(converted)
    onnx_fcn.replace_weights(converted, doubled(converted, *LAST), tmp_path / "new.onnx")
    assert contents(converted.parent) == before
    new = weights(tmp_path / "new.onnx")
    assert list(new) == list(old)
    for name, array in old.items():
        assert new[name].tobytes() == (array * 2 if name in LAST else array).tobytes()
    assert np.array_equal(scores(tmp_path / "new.onnx"), 2 * scores(converted))
    assert onnx_fcn.read_geometry(tmp_path / "new.onnx") == onnx_fcn.read_geometry(converted)
    assert onnx.load(tmp_path / "new.onnx").metadata_props == onnx.load(converted).metadata_props
    with pytest.raises(ValidationError, match="not the same network"):
        onnx_fcn.validate(DIGITS, tmp_path / "new.onnx")


@pytest.mark.parametrize("names", [("7.weight",), LAST, (*LAST, "7.weight")], ids=["large", "small", "both"])
def test_a_file_is_changed_in_place(converted: Path, names: tuple[str, ...]) -> None:
    """Also if the data file stays the same, and without leaving the old one behind."""
    files, old, geometry = len(contents(converted.parent)), weights(converted), onnx_fcn.read_geometry(converted)
    onnx_fcn.replace_weights(converted, doubled(converted, *names), converted)
    assert len(contents(converted.parent)) == files
    new = weights(converted)
    for name, array in old.items():
        assert new[name].tobytes() == (array * 2 if name in names else array).tobytes()
    assert onnx_fcn.read_geometry(converted) == geometry
    assert scores(converted).shape == (1, 11, 3, 4)


def test_the_same_values_give_the_same_bytes(converted: Path) -> None:
    """All of them at once, and after other values."""
    before, old = contents(converted.parent), weights(converted)
    onnx_fcn.replace_weights(converted, old, converted)
    assert contents(converted.parent) == before
    onnx_fcn.replace_weights(converted, {name: array + 1 for name, array in old.items()}, converted)
    assert contents(converted.parent) != before
    onnx_fcn.replace_weights(converted, old, converted)
    assert contents(converted.parent) == before


def test_a_zero_may_change_its_sign(inline: Path) -> None:
    with_weight(inline, np.zeros(2, np.float32))
    onnx_fcn.replace_weights(inline, {"extra": -np.zeros(2, np.float32)}, inline)
    assert np.signbit(weights(inline)["extra"]).all()


@pytest.mark.parametrize("external", [False, True])
def test_the_data_file_can_be_chosen(converted: Path, tmp_path: Path, external: bool) -> None:
    out = tmp_path / "elsewhere" / "new.onnx"
    out.parent.mkdir()
    onnx_fcn.replace_weights(converted, doubled(converted, "7.weight"), out, external_data=external)
    assert len(contents(out.parent)) == 1 + external
    assert np.array_equal(weights(out)["7.weight"], doubled(converted, "7.weight")["7.weight"])


def test_a_model_in_memory(inline: Path, tmp_path: Path) -> None:
    model = onnx.load(inline)
    before = model.SerializeToString()
    onnx_fcn.replace_weights(model, doubled(inline, *LAST), tmp_path / "new.onnx")
    assert model.SerializeToString() == before
    assert np.array_equal(scores(tmp_path / "new.onnx"), 2 * scores(inline))


def test_other_weights_are_not_read(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    array = Document.array
    monkeypatch.setattr(Document, "array", lambda self, tensor: (read.append(tensor.name), array(self, tensor))[1])
    onnx_fcn.replace_weights(converted, doubled(converted, *LAST), tmp_path / "new.onnx")
    assert read == list(LAST)


def test_a_weight_that_several_nodes_read_is_exchanged_for_all(inline: Path) -> None:
    with_nodes(inline, helper.make_node("Neg", ["10.bias"], ["negative"]), helper.make_node("Abs", ["10.bias"], ["a"]))
    onnx_fcn.replace_weights(inline, doubled(inline, "10.bias"), inline)
    onnx_fcn.read_geometry(inline)


def test_the_tensor_of_a_constant_is_exchanged(inline: Path) -> None:
    """The last kernel becomes a Constant node, whose other attributes and place stay."""

    def change(model: ModelProto) -> None:
        kernel = next(t for t in model.graph.initializer if t.name == "10.weight")
        node = helper.make_node("Constant", [], ["10.weight"], "kernel", doc_string="kept", value=kernel)
        model.graph.initializer.remove(kernel)
        model.graph.node.insert(0, node)

    kernel = doubled(inline, "10.weight")["10.weight"]
    before = scores(inline)
    geometry, content = onnx_fcn.read_geometry(extended(inline, change)), inline.read_bytes()
    onnx_fcn.replace_weights(inline, {"10.weight": kernel, **doubled(inline, "10.bias")}, inline)
    assert np.array_equal(scores(inline), 2 * before)
    assert onnx_fcn.read_geometry(inline) == geometry
    assert onnx.load(inline).graph.node[0].doc_string == "kept"
    onnx_fcn.replace_weights(inline, {"10.weight": kernel / 2, "10.bias": weights(inline)["10.bias"] / 2}, inline)
    assert inline.read_bytes() == content


def test_a_weight_that_is_declared_as_an_input(inline: Path) -> None:
    def change(model: ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("10.bias", TensorProto.FLOAT, [11]))

    geometry = onnx_fcn.read_geometry(extended(inline, change))
    onnx_fcn.replace_weights(inline, doubled(inline, *LAST), inline)
    assert onnx_fcn.read_geometry(inline) == geometry
    assert [len(i.type.tensor_type.shape.dim) for i in onnx.load(inline).graph.input] == [4, 1]


# Types ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (np.float32, np.float64),
        (np.float32, np.float16),
        (np.float32, ">f8"),
        (np.float32, ml_dtypes.bfloat16),
        (np.float16, np.float32),
        (np.float64, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.float32, np.float32),
        (np.int8, np.int8),
        (np.uint8, np.uint8),
        (np.int64, np.int64),
        (np.bool_, np.bool_),
        (ml_dtypes.int4, ml_dtypes.int4),
        (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        (np.complex64, np.complex64),
    ],
    ids=lambda dtype: str(np.dtype(dtype)),
)
def test_types_that_fit(inline: Path, stored: Any, given: Any) -> None:
    """Floats are rounded to the type of the weight."""
    with_weight(inline, np.zeros((2, 3), stored))
    new = np.array([[1, 0, 1], [0, 1, 0]], np.float64) / (3 if np.dtype(given).kind == "f" else 1)
    new = new.astype(given)
    onnx_fcn.replace_weights(inline, {"extra": new}, inline)
    found = weights(inline)["extra"]
    assert found.dtype == stored
    assert found.tobytes() == new.astype(stored).tobytes()
    assert any(found.tobytes())


@pytest.mark.parametrize(
    ("stored", "given", "wanted"),
    [
        (np.float32, np.int64, "an array of floats"),
        (np.float32, np.bool_, "an array of floats"),
        (np.float16, np.complex64, "an array of floats"),
        (np.float32, np.dtype("U1"), "an array of floats"),
        (np.int8, np.float32, "its values as an array of int8"),
        (np.int8, np.int64, "its values as an array of int8"),
        (np.int8, np.uint8, "its values as an array of int8"),
        (np.int64, np.int32, "its values as an array of int64"),
        (ml_dtypes.float8_e4m3fn, np.float32, "its values as an array of float8_e4m3fn"),
        (ml_dtypes.int4, np.int8, "its values as an array of int4"),
    ],
    ids=lambda dtype: dtype if isinstance(dtype, str) else str(np.dtype(dtype)),
)
def test_types_that_do_not_fit(inline: Path, stored: Any, given: Any, wanted: str) -> None:
    with_weight(inline, np.zeros(3, stored))
    said = refusal(inline, {"extra": np.zeros(3, given)})
    assert said == (f"'extra' is of the type {np.dtype(stored)}, which {np.dtype(given)} cannot replace: pass {wanted}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(inline: Path, value: float) -> None:
    bias = np.zeros(11)
    bias[3] = value
    assert refusal(inline, {"10.bias": bias}) == "the array for '10.bias' has NaN or infinite values"


def test_values_that_are_too_large_for_the_type(inline: Path) -> None:
    with_weight(inline, np.zeros(3, np.float16))
    said = refusal(inline, {"extra": np.array([0, -70000.0, 1])})
    assert said == "the array for 'extra' has values up to 7e+04, which float16 cannot represent"


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_file_that_was_not_converted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="onnx_fcn did not convert it"):
        onnx_fcn.replace_weights(DIGITS, {"10.bias": np.zeros(11)}, tmp_path / "new.onnx")
    assert not os.listdir(tmp_path)


def test_nothing_to_replace(inline: Path) -> None:
    assert refusal(inline, {}) == "there is nothing to replace: pass arrays by the names of the weights"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("10.wight", "there is no weight '10.wight' among the 8 of the model: did you mean '10.weight' or "),
        ("head", "there is no weight 'head' among the 8 of the model"),
        ("image", "'image' is an input of the model, and no weight"),
        ("scores", "'scores' is not a stored weight, but computed by Conv 'scores/Conv', which reads '10.weight' and "),
        ("/8/Relu_output_0", "'/8/Relu_output_0' is not a stored weight, but computed by Relu '/8/Relu'"),
    ],
)
def test_names_of_no_weight(inline: Path, name: str, said: str) -> None:
    answer = refusal(inline, {"10.bias": np.ones(11), name: np.zeros(11)})
    assert answer.startswith(said)
    assert said.endswith(" ") or answer == said


def test_weights_that_are_stored_otherwise(inline: Path) -> None:
    """Computed ones, plain numbers of a Constant, sparse ones, those of a branch, and strings."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "inner")],
    )
    with_nodes(
        inline,
        helper.make_node("ConstantOfShape", ["size"], ["zeros"], "fill"),
        helper.make_node("Constant", [], ["numbers"], "listed", value_floats=[1.0, 2.0]),
        helper.make_node("If", ["yes"], ["either"], then_branch=branch, else_branch=branch),
        size=np.array([3]),
        yes=np.array(True),
    )

    def change(model: ModelProto) -> None:
        values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
        model.graph.sparse_initializer.add(values=values, indices=numpy_helper.from_array(np.zeros(1, int)), dims=[4])
        model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"w"]))

    extended(inline, change)
    for name, said in {
        "zeros": "'zeros' is not a stored weight, but computed by ConstantOfShape 'fill', which reads 'size'",
        "numbers": "'numbers' is not stored as a tensor, but as numbers in Constant 'listed': it cannot be exchanged",
        "sparse": "'sparse' is stored as a sparse tensor, which cannot be exchanged",
        "inner": "'inner' is stored in a branch or a loop of the model, where weights cannot be exchanged",
        "words": "'words' holds no numbers, so it cannot be exchanged",
    }.items():
        assert refusal(inline, {name: np.zeros(1)}) == said


def test_another_shape(inline: Path) -> None:
    said = "'10.weight' has the shape (11, 64, 1, 1), but the array for it has {}: only the values can be exchanged"
    assert refusal(inline, {"10.weight": np.zeros((11, 64))}) == said.format("(11, 64)")
    assert refusal(inline, {"10.weight": np.float64(1)}) == said.format("()")


def test_what_is_no_array(inline: Path) -> None:
    said = refusal(inline, {"10.bias": [0.0] * 11})
    assert said == (
        "the value for '10.bias' is of the type list, and not a numpy array: convert it, in torch with "
        "tensor.detach().cpu().numpy()"
    )


PLACING = """ <ir_version: 8, opset_import: ["": 17]> resizing (float[N,1,28,28] image) => (float[N] y) {
    dims = Shape (image)
    sizes = Mul (dims, factors)
    bright = Mul (image, contrast)
    [resize] larger = Resize (bright, , , sizes)
    [pad] padded = Pad (larger, pads, fill)
    chosen = Cast <to = 7> (padded)
    [choose] entries = Gather (table, chosen)
    [look] entry = Gather (table, index)
    like = Shape (table)
    [reshape] turned = Reshape (entries, like)
    [zeros] zeros = ConstantOfShape (size)
    [if] either = If (yes) <
        then_branch = then () => (float[1] flat) { [flatten] flat = Reshape (table, row) },
        else_branch = otherwise () => (float[1] same) { same = Identity (table) }
    >
}"""


def test_values_that_decide_places_stay(inline: Path) -> None:
    """However they reach the node that reads them. What only the image gets through them, or their shape, is free."""
    arrays = {
        "factors": np.array([1, 1, 2, 2]),
        "contrast": np.array(1.5, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "fill": np.array(0.5, np.float32),
        "table": np.arange(6, dtype=np.float32).reshape(3, 2),
        "index": np.array([1]),
        "size": np.array([3]),
        "row": np.array([-1]),
        "yes": np.array(True),
    }
    with_nodes(inline, *onnx.parser.parse_model(PLACING).graph.node, **arrays)
    onnx_fcn.replace_weights(inline, arrays, inline)
    onnx_fcn.replace_weights(inline, {name: arrays[name] + 1 for name in ("contrast", "fill", "table")}, inline)
    for name, reader in {
        "factors": "Resize 'resize'",
        "pads": "Pad 'pad'",
        "index": "Gather 'look'",
        "size": "ConstantOfShape 'zeros'",
        "row": "Reshape 'flatten'",
    }.items():
        assert refusal(inline, {name: arrays[name] + 1}) == (
            f"'{name}' cannot be exchanged, since {reader} reads a shape or places from it: with other values the "
            "geometry of the file would be wrong"
        )


def test_a_graph_that_goes_in_circles(inline: Path) -> None:
    """And a node without a name or a result, whose operands stay."""
    with_nodes(
        inline,
        helper.make_node("Range", ["start", "one", "two"], []),
        helper.make_node("Neg", ["one"], ["two"]),
        helper.make_node("Abs", ["two"], ["one"]),
        start=np.array(0),
    )
    onnx_fcn.replace_weights(inline, doubled(inline, *LAST), inline)
    assert "since Range '' reads" in refusal(inline, {"start": np.array(1)})


@pytest.mark.parametrize("call", ["fsync", "replace", "replace the model"])
def test_failures_while_writing_leave_the_old_file(converted: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Also after the new data file is in its place."""
    before, new = contents(converted.parent), doubled(converted, "7.weight")
    replace = os.replace

    def fail(*paths: Any) -> None:
        if call == "replace the model" and paths[1] != converted:
            replace(*paths)
        else:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call.split()[0], fail)
    with pytest.raises(OptionError, match=r"cannot write '.*out.onnx': no space left on device"):
        onnx_fcn.replace_weights(converted, new, converted)
    assert contents(converted.parent) == before


def test_an_output_that_cannot_be_written(inline: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no directory"):
        onnx_fcn.replace_weights(inline, doubled(inline, *LAST), tmp_path / "none" / "new.onnx")
