"""Documents: nothing is lost, weights are streamed, and a target is the old file or the new one."""

import functools
import glob
import hashlib
import itertools
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from onnx_fcn import storage, wire
from onnx_fcn.document import Document, Edit, Staged, Weight, names_used
from onnx_fcn.errors import FcnError, ModelError, OptionError

BACKEND = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
RNG = np.random.default_rng(0)
DENSE = RNG.standard_normal((120, 98)).astype(np.float32)  # 47 kB
SECOND = RNG.standard_normal((120, 50)).astype(np.float32)
FLOAT = TensorProto.FLOAT


def value_info(name: str, shape: list[Any], elem_type: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, shape)


def classifier() -> ModelProto:
    """Two dense layers: x (N, 98) → y (N, 50)."""
    nodes = [
        helper.make_node("Gemm", ["x", "dense", "bias"], ["hidden"], name="first", transB=1),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "second"], ["y"], name="second"),
    ]
    weights = [
        numpy_helper.from_array(DENSE, "dense"),
        numpy_helper.from_array(np.arange(120, dtype=np.float32), "bias"),
        numpy_helper.from_array(SECOND, "second"),
    ]
    graph = helper.make_graph(nodes, "classifier", [value_info("x", ["N", 98])], [value_info("y", ["N", 50])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier().SerializeToString())
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The classifier with its weights in a data file."""
    path = tmp_path / "external" / "model.onnx"
    path.parent.mkdir()
    onnx.save(classifier(), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return path


def weights(path: Path) -> dict[str, np.ndarray]:
    """All initializers of a file, as onnx reads them."""
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def tensor(document: Document, name: str) -> TensorProto:
    return next(i for i in document.proto.graph.initializer if i.name == name)


def location(document: Document, name: str) -> dict[str, str]:
    return {e.key: e.value for e in tensor(document, name).external_data}


def run(document: Document, x: np.ndarray) -> np.ndarray:
    """The answer of onnxruntime, weights from the file."""
    model, folder = document.session_model()
    options = onnxruntime.SessionOptions()
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": x})
    return np.asarray(answer)


def answer(x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ DENSE.T + np.arange(120, dtype=np.float32), 0) @ SECOND


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".onnx_fcn-")]


# --- nothing is lost -------------------------------------------------------------------------------------------------


@functools.cache
def backend_models() -> dict[str, bytes]:
    """Every model of the ONNX backend suite: those that are stored, and those that are generated for each operator."""
    models = {path: Path(path).read_bytes() for path in glob.glob(f"{BACKEND}/**/*.onnx", recursive=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        models |= {case.name: case.model.SerializeToString() for case in load_model_tests(kind="node") if case.model}
    return models


def test_unedited_backend_models_save_byte_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    models = backend_models()
    assert len(models) > 1500  # 2024 with onnx 1.23
    for name, data in models.items():
        source.write_bytes(data)
        Document.open(source).save(target)
        assert target.read_bytes() == data, name


def test_rewritten_backend_models_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out through references, through protobuf, and in again; also from memory."""
    monkeypatch.setitem(wire.skeleton.__kwdefaults__, "threshold", 1)
    source = tmp_path / "in.onnx"
    count = 0
    for name, data in backend_models().items():
        source.write_bytes(data)
        original = ModelProto.FromString(data)
        for document in (Document.open(source), Document.open(original)):
            document.commit(Edit())
            count += b"\x70\x01" in document.proto.SerializeToString()
            assert document.to_proto() == original, name
            assert document.to_proto().SerializeToString() == original.SerializeToString(), name
    assert count > 100


def feature_rich() -> ModelProto:
    """One of everything that a careless round trip loses."""
    big = RNG.standard_normal((70, 70)).astype(np.float32)

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["hidden", f"{name}_w"], [f"{name}_out"], doc_string="in a branch")
        out = [value_info(f"{name}_out", [1, 70])]
        return helper.make_graph([node], name, [], out, [numpy_helper.from_array(big, f"{name}_w")], f"doc of {name}")

    nodes = [
        helper.make_node("Add", ["x", "bias"], ["biased"], name="add", doc_string="adds"),
        helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(big, "inner name")),
        helper.make_node("MatMul", ["biased", "constant"], ["hidden"], name="replaced"),
        helper.make_node("Own", ["hidden"], ["own_out"], domain="own", name="call"),
        helper.make_node("If", ["flag"], ["branched"], then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("Sum", ["branched", "own_out", ""], ["y"], name="sum"),
    ]
    nodes[0].metadata_props.add(key="node key", value="node value")
    nodes[3].overload = "v2"
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([3, 5]), "indices"), [10])
    image = value_info("x", ["batch", 70])
    image.doc_string = "the image"
    image.type.denotation = "IMAGE"
    image.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    image.metadata_props.add(key="input key", value="input value")
    output = value_info("y", ["batch", 70])
    output.doc_string = "the answer"
    initializers = [
        numpy_helper.from_array(np.ones(70, np.float32), "bias"),
        numpy_helper.from_array(big, "unused"),
        numpy_helper.from_array(big.astype(np.float16), "half"),
        numpy_helper.from_array(np.array([True]), "flag"),
        helper.make_tensor("in float_data", FLOAT, [70, 70], big.ravel()),
        helper.make_tensor("strings", TensorProto.STRING, [2], [b"a" * 20_000, b"b"]),
    ]
    initializers[0].doc_string = "the bias"
    initializers[1].metadata_props.add(key="tensor key", value="tensor value")
    body = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(big)),
        helper.make_node("Add", ["a", "c"], ["b"]),
    ]
    function = helper.make_function("own", "Own", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    function.overload, function.doc_string = "v2", "a local function"
    annotations = [onnx.TensorAnnotation(tensor_name=name) for name in ("biased", "half", "no such tensor")]
    for annotation in annotations:
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="bias")
    graph = helper.make_graph(
        nodes, "graph", [image, value_info("bias", [70])], [output], initializers, "doc of the graph",
        [value_info("biased", ["batch", 70]), value_info("stale", [1])], [sparse],
    )  # fmt: skip
    graph.quantization_annotation.extend(annotations)
    graph.metadata_props.add(key="graph key", value="graph value")
    opsets = [helper.make_opsetid(*o) for o in (("", 17), ("own", 1), ("com.microsoft", 1), ("ai.onnx.ml", 3))]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10, producer_name="maker")
    model.producer_version, model.domain, model.model_version, model.doc_string = "1.2", "org.example", 7, "documented"
    model.metadata_props.add(key="classes", value="cat,dog")
    model.training_info.add().algorithm.CopyFrom(branch("training"))
    return ModelProto.FromString(model.SerializeToString() + b"\xaa\x06\x07unknown")  # a field of the future, 101


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("external_data", [False, True])
def test_edit_changes_only_what_it_names(tmp_path: Path, in_memory: bool, external_data: bool) -> None:
    original = feature_rich()
    source = tmp_path / "in.onnx"
    source.write_bytes(original.SerializeToString())
    document = Document.open(original if in_memory else source)
    kernel = RNG.standard_normal((70, 80)).astype(np.float32)
    new_nodes = [
        helper.make_node("MatMul", ["biased", "kernel"], ["wide"], name="new"),
        helper.make_node("Slice", ["wide", "a", "b", "c"], ["hidden"], name="newer"),
    ]
    document.commit(
        Edit(
            nodes={2: new_nodes, 1: []},
            initializers={"kernel": Weight(kernel.T.copy().T, (70, 80), FLOAT)},
            inputs={"x": value_info("x", ["batch", "wider"])},
            outputs={"y": value_info("y", ["batch", 70, "columns"])},
            value_info=[value_info("wide", ["batch", 80])],
            metadata={"onnx_fcn": "1", "classes": "cat,dog,cow"},
            opset_imports={"": 18, "new.domain": 2},
        )
    )
    expected = original
    del expected.graph.node[1]
    expected.graph.node[1].CopyFrom(new_nodes[0])
    expected.graph.node.insert(2, new_nodes[1])
    expected.graph.initializer.append(numpy_helper.from_array(kernel, "kernel"))
    wider, columns = expected.graph.input[0].type.tensor_type.shape, expected.graph.output[0].type.tensor_type.shape
    wider.dim[1].dim_param = "wider"
    wider.dim[0].ClearField("denotation")
    expected.graph.input[0].type.ClearField("denotation")
    columns.dim.add(dim_param="columns")
    del expected.graph.value_info[:]
    expected.graph.value_info.append(value_info("wide", ["batch", 80]))
    expected.metadata_props[0].value = "cat,dog,cow"
    expected.metadata_props.add(key="onnx_fcn", value="1")
    expected.opset_import[0].version = 18
    expected.opset_import.add(domain="new.domain", version=2)

    document.save(tmp_path / "out.onnx", external_data=external_data)
    saved = onnx.load(tmp_path / "out.onnx")
    if external_data:  # in the form that onnx leaves it in
        for found in [*saved.graph.initializer, *expected.graph.initializer]:
            found.ClearField("data_location")
            found.raw_data = found.raw_data or np.asarray(found.float_data, np.float32).tobytes()
            found.ClearField("float_data")
        for model in (saved, expected):
            strip_locations(model)
    for field, _ in expected.ListFields():
        assert getattr(saved, field.name) == getattr(expected, field.name), field.name
    for field, _ in expected.graph.ListFields():
        assert getattr(saved.graph, field.name) == getattr(expected.graph, field.name), field.name
    assert saved == expected
    assert b"\xaa\x06\x07unknown" in (tmp_path / "out.onnx").read_bytes()
    if not external_data:
        assert (tmp_path / "out.onnx").read_bytes() == expected.SerializeToString()
        assert document.to_proto() == expected


def strip_locations(model: ModelProto) -> None:
    """`onnx.load` marks tensors that it has read from a data file as DEFAULT, which is the same as no mark."""
    graphs = [model.graph]
    nodes = [*model.graph.node, *model.functions[0].node]
    graphs += [a.g for node in nodes for a in node.attribute if a.type == AttributeProto.GRAPH]
    tensors = [i for graph in graphs for i in graph.initializer]
    for found in [*tensors, *(a.t for node in nodes for a in node.attribute if a.type == AttributeProto.TENSOR)]:
        found.ClearField("data_location")


def test_annotations_of_tensors_that_vanish_go_with_them() -> None:
    document = Document.open(feature_rich())
    document.commit(Edit(nodes={0: [helper.make_node("Add", ["x", "bias"], ["renamed"])]}))
    names = [a.tensor_name for a in document.proto.graph.quantization_annotation]
    assert names == ["half", "no such tensor"]


def test_initializers_are_declared_as_inputs_before_ir_version_4() -> None:
    model = classifier()
    model.ir_version = 3
    model.graph.input.extend(value_info(i.name, list(i.dims)) for i in model.graph.initializer)
    model.graph.input[1].doc_string = "learned"
    document = Document.open(model)
    document.check()
    kernel = np.zeros((120, 98, 1, 1), np.float32)
    document.commit(
        Edit(
            nodes={0: [helper.make_node("Conv", ["x", "dense", "fresh"], ["hidden"])]},
            initializers={
                "dense": Weight(kernel, kernel.shape, FLOAT),
                "fresh": Weight(np.zeros(120, np.float32), (120,), FLOAT),
            },
            removed_initializers={"bias"},
        )
    )
    document.check()
    graph = document.proto.graph
    assert [i.name for i in graph.input] == ["x", "dense", "second", "fresh"]
    assert [d.dim_value for d in graph.input[1].type.tensor_type.shape.dim] == [120, 98, 1, 1]
    assert graph.input[1].doc_string == "learned"
    assert [i.name for i in graph.initializer] == ["dense", "second", "fresh"]
    assert document.proto.ir_version == 3


# --- weights ---------------------------------------------------------------------------------------------------------


def test_arrays_are_views_on_the_file(source: Path) -> None:
    document = Document.open(source)
    dense = document.array(tensor(document, "dense"))
    assert np.array_equal(dense, DENSE)
    assert dense.dtype == np.float32
    assert not dense.flags.writeable
    assert not dense.flags.owndata
    assert document.size == source.stat().st_size
    assert document.path == source
    assert not document.external
    assert location(document, "dense")["location"] == "model.onnx"
    assert not tensor(document, "bias").external_data
    del document  # the map lives as long as a view on it
    assert np.array_equal(dense, DENSE)


ELEM_TYPES = [t for t in wire.BITS if t not in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)]


def sample(elem_type: int, shape: tuple[int, ...]) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if np.dtype(dtype).itemsize > 1 or elem_type == TensorProto.BOOL:
        return RNG.integers(0, 2, shape).astype(dtype)
    return RNG.integers(0, 1 << min(wire.BITS[elem_type], 7), shape, np.uint8).view(dtype)


@pytest.mark.parametrize("elem_type", ELEM_TYPES)
def test_weights_of_every_type_keep_their_bytes(tmp_path: Path, elem_type: int) -> None:
    array = sample(elem_type, (182, 721))
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(array, "typed"))
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    document = Document.open(tmp_path / "in.onnx")
    found = document.array(tensor(document, "typed"))
    assert found.dtype == array.dtype
    assert np.array_equal(found.view(np.uint8), array.view(np.uint8))
    document.commit(
        Edit(
            initializers={
                "transposed": Weight(found.T, (721, 182), elem_type),
                "reshaped": Weight(found, (14, 13, 721), elem_type),
                "small": Weight(found[:3, ::2], (3, 361), elem_type),
            }
        )
    )
    document.save(tmp_path / "out.onnx")
    stored = {i.name: i for i in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for name, expected in (
        ("transposed", array.T),
        ("reshaped", array.reshape(14, 13, 721)),
        ("small", array[:3, ::2]),
    ):
        assert stored[name].raw_data == numpy_helper.from_array(np.ascontiguousarray(expected)).raw_data
        assert tuple(stored[name].dims) == expected.shape
        assert document.array(tensor(document, name)).tobytes() == expected.tobytes()


def test_same_bytes_are_not_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = Document.open(source)
    before = location(document, "dense")
    dense = document.array(tensor(document, "dense"))
    document.commit(
        Edit(
            initializers={
                "kernel": Weight(dense.reshape(120, 2, 7, 7), (120, 2, 7, 7), FLOAT),
                "unmerged": Weight(dense, (120, 98, 1, 1), FLOAT),
                "rows": Weight(dense[10:70], (60, 98), FLOAT),
            },
            removed_initializers={"dense"},
        )
    )
    assert location(document, "kernel") == location(document, "unmerged") == before
    offset = int(before["offset"]) + 10 * 98 * 4
    assert location(document, "rows") == {"location": "model.onnx", "offset": str(offset), "length": str(60 * 98 * 4)}
    saved = source.with_name("out.onnx")
    document.save(saved)
    found = weights(saved)
    assert np.array_equal(found["kernel"], DENSE.reshape(120, 2, 7, 7))
    assert np.array_equal(found["unmerged"], DENSE.reshape(120, 98, 1, 1))
    assert np.array_equal(found["rows"], DENSE[10:70])
    assert "dense" not in found


def permutations() -> list[np.ndarray]:
    array = np.arange(7 * 8 * 9 * 40, dtype=np.uint32).reshape(7, 8, 9, 40)
    views = [array.transpose(axes) for axes in itertools.permutations(range(4))]
    views += [
        array[:, ::2], array[::-1, :, ::-1], array[1:, :, 2:5].T, array[:, :1].transpose(2, 3, 1, 0),
        np.broadcast_to(array[0, 0, 0], (30, 40)), np.broadcast_to(array[:, :, :, :1], (7, 8, 9, 5)), array[0, 0, :, 3],
        array.reshape(56, 360).T, array[3].reshape(8, 360)[:, ::-1],
    ]  # fmt: skip
    return views


@pytest.mark.parametrize(
    ("band", "tile", "chunk"), [(48 << 20, 32 << 10, 2 << 20), (20_000, 300, 500), (3_000, 64, 10_000), (500, 1, 1)]
)
def test_permuted_arrays_are_streamed_in_order(
    monkeypatch: pytest.MonkeyPatch, band: int, tile: int, chunk: int
) -> None:
    for name, value in (("BAND", band), ("TILE", tile), ("CHUNK", chunk), ("BLOCK", 4 * chunk)):
        monkeypatch.setattr(storage, name, value)
    for view in permutations():
        blocks = [bytes(block) for block in storage.blocks(view, lambda: None)]
        assert b"".join(blocks) == view.tobytes(), (view.shape, view.strides)
        assert max(map(len, blocks)) <= max(band, 4 * chunk)


def test_permuted_weight_takes_a_band_of_memory(tmp_path: Path) -> None:
    """64 MB, transposed: interleaved rows are gathered without ever holding them all."""
    import tracemalloc

    elements = 4096 * 4096
    with open(tmp_path / "data", "wb") as file:
        file.truncate(elements * 4)
    model = classifier()
    wide = model.graph.initializer.add(name="wide", data_type=FLOAT, dims=[4096, 4096])
    wire.refer(wide, "data", 0, elements * 4)
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    document = Document.open(tmp_path / "in.onnx")
    array = document.array(tensor(document, "wide"))
    document.commit(Edit(initializers={"wide": Weight(array.T, (4096, 4096), FLOAT)}))
    tracemalloc.start()
    document.save(tmp_path / "out.onnx", external_data=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < storage.BAND + 2 * storage.CHUNK + (4 << 20)


def test_weight_that_contradicts_its_declaration_is_our_bug(source: Path) -> None:
    document = Document.open(source)
    for weight in (Weight(DENSE, (120, 97), FLOAT), Weight(DENSE, (120, 98), TensorProto.FLOAT16)):
        with pytest.raises(ValueError, match="'w'"):
            document.commit(Edit(initializers={"w": weight}))


def test_values_that_contradict_their_shape_are_refused() -> None:
    model = classifier()
    model.graph.initializer[0].dims[0] = 7
    document = Document.open(model)
    with pytest.raises(ModelError, match="'dense' do not fit"):
        document.array(tensor(document, "dense"))


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inline", "external", "memory"])
def test_sessions_open_the_skeleton(source: Path, external: Path, kind: str) -> None:
    document = Document.open({"inline": source, "external": external, "memory": classifier()}[kind])
    model, folder = document.session_model()
    assert (len(model) < 2_000) == bool(folder) == (kind != "memory")
    x = RNG.standard_normal((3, 98)).astype(np.float32)
    assert np.allclose(run(document, x), answer(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("external_data", [False, True])
def test_staged_files_run_before_they_are_committed(source: Path, external_data: bool) -> None:
    document = Document.open(source)
    dense = document.array(tensor(document, "dense"))
    document.commit(
        Edit(
            nodes={0: [helper.make_node("Gemm", ["x", "turned", "bias"], ["hidden"])]},
            initializers={"turned": Weight(dense.T, (98, 120), FLOAT)},
            removed_initializers={"dense"},
        )
    )
    x = RNG.standard_normal((2, 98)).astype(np.float32)
    assert np.allclose(run(document, x), answer(x), rtol=1e-4, atol=1e-3)
    with document.staged(source.with_name("out.onnx"), external_data=external_data) as staged:
        assert not staged.target.exists()
        document = Document.open(staged.path)
        document.check()
        assert len(document.session_model()[0]) < 2_000
        assert np.allclose(run(document, x), answer(x), rtol=1e-4, atol=1e-3)
        assert staged.size == document.size
        staged.commit()
    assert np.allclose(run(Document.open(staged.target), x), answer(x), rtol=1e-4, atol=1e-3)


def test_part_of_a_document_runs_too(source: Path) -> None:
    document = Document.open(source)
    part = ModelProto()
    part.CopyFrom(document.proto)
    del part.graph.node[:2]
    part.graph.input[0].CopyFrom(value_info("active", ["N", 120]))
    model, folder = document.session_model(part)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = RNG.standard_normal((2, 120)).astype(np.float32)
    assert np.allclose(session.run(None, {"active": x})[0], x @ SECOND, rtol=1e-4, atol=1e-3)


# --- order and validity ----------------------------------------------------------------------------------------------


def test_sorted_models_need_no_order(source: Path) -> None:
    assert Document.open(source).sorted_order() is None
    assert Document.open(feature_rich()).sorted_order() is None


def test_reversed_nodes_are_put_in_order() -> None:
    count = 3_000  # a recursive sort dies of it
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in reversed(range(count))]
    graph = helper.make_graph(nodes, "g", [value_info("t0", [1])], [value_info(f"t{count}", [1])])
    document = Document.open(helper.make_model(graph, ir_version=9))
    with pytest.raises(ModelError, match="must be topologically sorted"):
        document.check()
    order = document.sorted_order()
    assert order == list(reversed(range(count)))
    replacement = helper.make_node("Abs", ["t0"], ["t1"])
    document.commit(Edit(order=order, nodes={count - 1: [replacement]}))
    document.check()
    assert [n.output[0] for n in document.proto.graph.node] == [f"t{i + 1}" for i in range(count)]
    assert document.proto.graph.node[0].op_type == "Abs"


def test_order_sees_what_subgraphs_take_from_outside() -> None:
    inner = helper.make_node("Add", ["outside", "inside"], ["o"])
    body = helper.make_graph(
        [inner], "body", [], [value_info("o", [1])], [numpy_helper.from_array(np.ones(1, np.float32), "inside")]
    )
    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body),
        helper.make_node("Relu", ["x"], ["outside"]),
    ]
    assert set(names_used(nodes[0])) == {"flag", "outside"}
    inputs = [value_info("x", [1]), value_info("flag", [], TensorProto.BOOL)]
    document = Document.open(helper.make_model(helper.make_graph(nodes, "g", inputs, [value_info("y", [1])])))
    assert document.sorted_order() == [1, 0]


def test_cycles_are_refused() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["b"])]
    document = Document.open(helper.make_model(helper.make_graph(nodes, "g", [value_info("x", [1])], [])))
    with pytest.raises(ModelError, match=r"depend on themselves: .*'one'"):
        document.sorted_order()


def test_check_reports_one_sentence(source: Path) -> None:
    document = Document.open(source)
    document.check()
    document.commit(Edit(nodes={1: [helper.make_node("NoSuchOperator", ["hidden"], ["active"])]}))
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*NoSuchOperator") as caught:
        document.check()
    assert "\n" not in str(caught.value)


def test_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(classifier().SerializeToString().replace(b"active", b"a\xff\xfeive"))
    with pytest.raises(ModelError, match="not UTF-8"):
        Document.open(path).check()


def test_graph_is_a_view(source: Path) -> None:
    document = Document.open(source)
    assert [n.op for n in document.graph.nodes] == ["Gemm", "Relu", "MatMul"]
    assert document.graph is document.graph
    document.commit(Edit(nodes={1: [helper.make_node("Abs", ["hidden"], ["active"])]}))
    assert [n.op for n in document.graph.nodes] == ["Gemm", "Abs", "MatMul"]


# --- what cannot be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\x08\x09", "has no graph"),
        (classifier().SerializeToString()[:30_000], "bytes are missing at its end"),
        (np.random.default_rng(1).bytes(5_000), "is not an ONNX model"),
        (b"PK\x03\x04rest", "zip archive.*torch.onnx.export"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite.*tf2onnx"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
    ],
    ids=["empty", "no graph", "cut", "random", "zip", "pickle", "tflite", "hdf5", "gzip", "lfs", "html"],
)
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=complaint) as caught:
        Document.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, complaint in (
        ("nowhere.onnx", "does not exist"),
        ("", "is a directory"),
        ("pipe", "not a regular file"),
        ("n\0l", "cannot be opened"),
        ("n" * 300, "cannot be opened: file name too long"),
    ):
        with pytest.raises(ModelError, match=complaint):
            Document.open(os.path.join(tmp_path, name))


def with_data(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    data = model.graph.initializer[0].external_data
    kept = {e.key: e.value for e in data} | entries
    del data[:]
    for key, value in kept.items():
        data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"location": "missing.bin"}, "'missing.bin', is missing: it belongs into"),
        ({"location": "../model.onnx"}, "outside of the model's folder"),
        ({"location": "nested/../../model.onnx"}, "outside of the model's folder"),
        ({"location": "/etc/passwd"}, "is not a relative path"),
        ({"location": ""}, "is not a relative path"),
        ({"location": "."}, "is a directory"),
        ({"location": "out"}, "outside of the model's folder"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "\0computed"}, "is not a relative path"),
        ({"location": "empty"}, "which has 0"),
        ({"offset": "60000"}, "is it incomplete"),
        ({"offset": "-1"}, "says that it is stored at"),
        ({"offset": "١"}, "says that it is stored at"),
        ({"offset": "9" * 5000}, "says that it is stored at"),
        ({"length": "1e9"}, "says that it is stored at"),
        ({"length": "47000"}, "takes 47040 bytes, but 47000 are stored"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_external_data_that_is_not_as_it_says_is_refused(
    external: Path, entries: dict[str, str], complaint: str
) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(100_000))
    (external.parent / "out").symlink_to("../secret")
    (external.parent / "empty").touch()
    os.mkfifo(external.parent / "pipe")
    with_data(external, **entries)
    with pytest.raises(ModelError, match=complaint):
        Document.open(external)


def test_external_data_of_a_model_in_memory_needs_its_path(external: Path) -> None:
    with pytest.raises(ModelError, match="pass the path"):
        Document.open(onnx.load(external, load_external_data=False))


def test_external_data_with_a_hostile_shape_is_refused(external: Path) -> None:
    for dims in ([-120, -98], [2**40, 2**40], [120, 980]):
        model = onnx.load(external, load_external_data=False)
        model.graph.initializer[0].dims[:] = dims
        del model.graph.initializer[0].external_data[1:]
        path = external.with_name("hostile.onnx")
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"negative dimension|is it incomplete"):
            Document.open(path)


def test_model_that_names_itself_as_its_data_reads_its_own_bytes(tmp_path: Path) -> None:
    model = classifier()
    own = model.graph.initializer.add(name="own", data_type=TensorProto.UINT8, dims=[2, 8])
    wire.refer(own, "in.onnx", 0, 16)
    data = model.SerializeToString()
    (tmp_path / "in.onnx").write_bytes(data)
    document = Document.open(tmp_path / "in.onnx")
    assert document.array(tensor(document, "own")).tobytes() == data[:16]
    document.commit(Edit())
    document.save(tmp_path / "out.onnx")
    assert weights(tmp_path / "out.onnx")["own"].tobytes() == data[:16]


# --- external data ---------------------------------------------------------------------------------------------------


def check_same(path: Path) -> None:
    found = weights(path)
    assert np.array_equal(found["dense"], DENSE)
    assert np.array_equal(found["second"], SECOND)


def test_external_stays_external(external: Path, tmp_path: Path) -> None:
    document = Document.open(external)
    assert document.external
    assert document.size == external.stat().st_size + (external.parent / "weights.bin").stat().st_size
    assert np.array_equal(document.array(tensor(document, "dense")), DENSE)
    document.check()
    with document.staged(tmp_path / "out.onnx") as staged:
        assert staged.data is not None
        staged.commit()
    digest = hashlib.sha256(staged.data.read_bytes()).hexdigest()[:16]
    assert staged.data == tmp_path / f"out.onnx.{digest}.data"
    assert staged.size == staged.target.stat().st_size + staged.data.stat().st_size
    check_same(staged.target)


def test_external_can_come_inline_and_go_out_again(external: Path, tmp_path: Path) -> None:
    Document.open(external).save(tmp_path / "inline.onnx", external_data=False)
    assert not Document.open(tmp_path / "inline.onnx").external
    check_same(tmp_path / "inline.onnx")
    Document.open(tmp_path / "inline.onnx").save(tmp_path / "again.onnx", external_data=True)
    assert Document.open(tmp_path / "again.onnx").external
    check_same(tmp_path / "again.onnx")
    assert len(os.listdir(tmp_path)) == 4


def test_small_models_have_nothing_to_put_into_a_data_file(tmp_path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value_info("x", [1])], [])
    with Document.open(helper.make_model(graph)).staged(tmp_path / "out.onnx", external_data=True) as staged:
        assert staged.data is None


def test_large_tensors_are_aligned_and_stored_once(tmp_path: Path) -> None:
    model = classifier()
    big = RNG.standard_normal((600, 500)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(big, "big"))
    document = Document.open(model)
    shared = document.array(tensor(document, "big"))
    document.commit(Edit(initializers={"shared": Weight(shared, (500, 600), FLOAT)}))
    document.save(tmp_path / "out.onnx", external_data=True)
    saved = Document.open(tmp_path / "out.onnx")
    assert int(location(saved, "big")["offset"]) % 4096 == 0
    assert location(saved, "big") == location(saved, "shared")
    assert np.array_equal(saved.array(tensor(saved, "shared")), big.reshape(500, 600))
    assert saved.size < big.nbytes + 200_000


def test_weights_can_be_linked(external: Path, tmp_path: Path) -> None:
    document = Document.open(external)
    dense = document.array(tensor(document, "dense"))
    document.commit(Edit(initializers={"dense": Weight(dense.T, (98, 120), FLOAT)}))
    with document.staged(tmp_path / "out.onnx", link_data=True) as staged:
        assert staged.data is not None
        assert staged.data.stat().st_size == DENSE.nbytes
        staged.commit()
    saved = Document.open(tmp_path / "out.onnx")
    assert location(saved, "second")["location"] == "external/weights.bin"
    found = weights(tmp_path / "out.onnx")
    assert np.array_equal(found["dense"], DENSE.T)
    assert np.array_equal(found["second"], SECOND)
    (external.parent / "beneath").mkdir()
    with pytest.raises(OptionError, match="copy them"):
        document.save(external.parent / "beneath" / "out.onnx", link_data=True)


def test_weights_can_be_linked_into_a_model_file(source: Path) -> None:
    out = source.with_name("out.onnx")
    with Document.open(source).staged(out, external_data=True, link_data=True) as staged:
        assert staged.data is None
        staged.commit()
    assert out.stat().st_size < 2_000
    check_same(out)


def test_models_over_the_limit_go_external_by_themselves(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGEST_FILE", 60_000)
    out = source.with_name("out.onnx")
    document = Document.open(source)
    with document.staged(out) as staged:
        assert staged.data is not None
        staged.commit()
    check_same(out)
    with pytest.raises(OptionError, match="larger than 2 GB"):
        document.save(out, external_data=False)
    check_same(out)


def test_data_file_that_is_replaced_goes_but_no_other(source: Path) -> None:
    out = source.with_name("out.onnx")
    folder = source.parent
    (folder / "out.onnx.0123456789abcdef.data").write_bytes(b"not of the model that is replaced")
    (folder / "out.onnx.data").write_bytes(b"of somebody else")
    document = Document.open(source)
    document.save(out, external_data=True)
    (first,) = set(os.listdir(folder)) - {
        "model.onnx", "out.onnx", "out.onnx.data", "out.onnx.0123456789abcdef.data", "external"
    }  # fmt: skip
    document.save(out, external_data=True)
    assert (folder / first).exists()
    document.commit(Edit(removed_initializers={"second"}))
    document.save(out, external_data=True)
    assert not (folder / first).exists()
    document.save(out, external_data=False)
    assert sorted(os.listdir(folder)) == ["model.onnx", "out.onnx", "out.onnx.0123456789abcdef.data", "out.onnx.data"]


def test_data_file_in_place_is_kept_when_a_stage_is_dropped(source: Path) -> None:
    out = source.with_name("out.onnx")
    document = Document.open(source)
    with document.staged(out, external_data=True) as staged:
        assert staged.data is not None
        assert staged.data.exists()
    assert os.listdir(source.parent) == ["model.onnx"]
    document.save(out, external_data=True)
    with document.staged(out, external_data=True):
        pass
    check_same(out)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_same_input_gives_the_same_bytes(source: Path) -> None:
    folder = source.parent
    saved: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        document = Document.open(source)
        dense = document.array(tensor(document, "dense"))
        document.commit(Edit(initializers={"turned": Weight(dense.T, (98, 120), FLOAT)}, metadata={"a": "b"}))
        document.save(folder / name / "out.onnx", external_data=True)
        saved.append({path.name: path.read_bytes() for path in (folder / name).iterdir()})
    assert saved[0] == saved[1]
    assert len(saved[0]) == 2


@pytest.mark.parametrize("copiers", [1, 2, 3])
def test_every_way_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copiers: int) -> None:
    """The slower ones take over where the faster ones cannot, as between file systems."""

    def refuse(*_: int) -> int:
        raise OSError(18, "Invalid cross-device link")

    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3_000_000, dtype=np.int32).reshape(3, -1), "big"))
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    available: list[Callable[..., int]] = [*[refuse] * (3 - copiers), *storage.COPIERS[-copiers:]]
    monkeypatch.setattr(storage, "COPIERS", available)
    Document.open(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()


class Deliberate(Exception):
    """What a validation raises."""


@pytest.mark.parametrize("external_data", [False, True])
def test_dropped_stage_leaves_the_old_file(source: Path, external_data: bool) -> None:
    out = source.with_name("out.onnx")
    out.write_bytes(b"old")
    document = Document.open(source)
    with pytest.raises(Deliberate), document.staged(out, external_data=external_data):
        raise Deliberate
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(source.parent)) == ["model.onnx", "out.onnx"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "copy_file_range"])
def test_failures_while_writing_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(500_000), "big"))
    model.graph.initializer[-1].dims[:] = [500, 1000]
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    document = Document.open(tmp_path / "in.onnx")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr(Staged, "_write_file", full)
    elif call == "copy_file_range":
        monkeypatch.setattr(storage, "COPIERS", [full])
    else:
        monkeypatch.setattr(os, call, full)
    for external_data in (False, True):
        with pytest.raises(OptionError, match=r"cannot write '.*out.onnx': no space left on device"):
            document.save(out, external_data=external_data)
        assert out.read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["in.onnx", "out.onnx"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_is_said_in_one_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, *mode: real("/dev/full" if flags & os.O_CREAT else path, flags & ~os.O_EXCL)
    )
    with pytest.raises(OptionError, match="no space left on device"):
        Document.open(source).save(source.with_name("out.onnx"))


def test_targets_that_cannot_be_written_are_refused(source: Path) -> None:
    os.mkfifo(source.with_name("pipe"))
    document = Document.open(source)
    for target, complaint in (
        (source.parent, "is a directory"),
        (source.with_name("pipe"), "not a regular file"),
        (source.parent / "nowhere" / "out.onnx", "there is no directory"),
        (source / "out.onnx", "there is no directory"),
        (source.with_name("n" * 300), "file name too long"),
        (source.with_name("n\0l"), "null"),
    ):
        with pytest.raises(OptionError, match=complaint):
            document.save(target)
    assert sorted(os.listdir(source.parent)) == ["model.onnx", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_missing_permission_is_said_in_one_sentence(source: Path) -> None:
    document = Document.open(source)
    out = source.with_name("out.onnx")
    out.write_bytes(b"old")
    out.chmod(0o444)
    with pytest.raises(OptionError, match="permission"):
        document.save(out)
    source.parent.chmod(0o555)
    with pytest.raises(OptionError, match="permission denied"):
        document.save(source.with_name("new.onnx"))
    source.parent.chmod(0o755)
    source.chmod(0)
    with pytest.raises(ModelError, match="permission denied"):
        Document.open(source)


def test_new_files_follow_the_umask_and_old_ones_keep_their_mode(source: Path) -> None:
    document = Document.open(source)
    before = os.umask(0o027)
    try:
        with document.staged(source.with_name("new.onnx"), external_data=True) as staged:
            staged.commit()
        old = source.with_name("old.onnx")
        old.touch()
        old.chmod(0o664)
        document.save(old)
    finally:
        os.umask(before)
    assert staged.data is not None
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (staged.target, staged.data, old)]
    assert modes == [0o640, 0o640, 0o664]


def test_links_stay_links(source: Path) -> None:
    real = source.with_name("real")
    real.mkdir()
    link = source.with_name("link.onnx")
    link.symlink_to("real/out.onnx")
    for _ in range(2):
        Document.open(source).save(link)
        assert link.is_symlink()
        assert (real / "out.onnx").read_bytes() == source.read_bytes()
    assert os.listdir(real) == ["out.onnx"]


def test_linked_source_is_opened_where_it_is(source: Path) -> None:
    link = source.with_name("elsewhere") / "link.onnx"
    link.parent.mkdir()
    link.symlink_to(source)
    document = Document.open(link)
    assert document.path == source
    x = RNG.standard_normal((1, 98)).astype(np.float32)
    assert np.allclose(run(document, x), answer(x), rtol=1e-4, atol=1e-3)


def test_output_onto_the_source_is_safe(source: Path) -> None:
    document = Document.open(source)
    dense = document.array(tensor(document, "dense"))
    document.commit(Edit(initializers={"turned": Weight(dense.T, (98, 120), FLOAT)}, removed_initializers={"second"}))
    document.save(source)
    found = weights(source)
    assert np.array_equal(found["dense"], DENSE)
    assert np.array_equal(found["turned"], DENSE.T)
    assert np.array_equal(dense, DENSE)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: os.replace(path.with_name("other"), path),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    ],
    ids=["touched", "replaced", "removed", "grown"],
)
def test_changed_source_is_refused(source: Path, change: Callable[[Path], None]) -> None:
    out = source.with_name("out.onnx")
    out.write_bytes(b"old")
    source.with_name("other").write_bytes(source.read_bytes())
    document = Document.open(source)
    document.check_unchanged()
    with document.staged(out) as staged:
        change(source)
        with pytest.raises(ModelError, match=r"was changed|has gone"):
            staged.commit()
    assert out.read_bytes() == b"old"
    assert not leftovers(source.parent)


def test_source_that_was_cut_short_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "big"))
    path.write_bytes(model.SerializeToString())
    document = Document.open(path)
    os.truncate(path, 2_000_000)
    with pytest.raises(ModelError, match="was changed"):
        document.save(tmp_path / "out.onnx")


def test_stale_temporary_files_are_harmless(source: Path) -> None:
    (source.parent / ".onnx_fcn-00000000.tmp").write_bytes(b"left by a killed run")
    Document.open(source).save(source.with_name("out.onnx"))
    assert leftovers(source.parent) == [".onnx_fcn-00000000.tmp"]


def test_two_runs_at_once_onto_one_output(source: Path) -> None:
    """A reader always finds a whole model; with unique data names, two writers never mix."""
    out = source.with_name("out.onnx")
    wrong: list[BaseException] = []

    def write(scale: float) -> None:
        try:
            document = Document.open(source)
            turned = DENSE * np.float32(scale)
            document.commit(Edit(initializers={n: Weight(turned, (120, 98), FLOAT) for n in ("dense", "twin")}))
            while time.monotonic() < deadline:
                document.save(out, external_data=scale == 2)
        except BaseException as error:
            wrong.append(error)

    Document.open(source).save(out)
    deadline = time.monotonic() + 2
    threads = [threading.Thread(target=write, args=(scale,)) for scale in (2, 3)]
    for thread in threads:
        thread.start()
    reads = 0
    while any(thread.is_alive() for thread in threads):
        try:
            found = weights(out)
        except (OSError, onnx.checker.ValidationError):
            continue  # the data file of a model that was replaced since
        if "twin" in found:
            assert np.array_equal(found["dense"], found["twin"])
            assert np.isclose(found["dense"] / DENSE, 2).all() or np.isclose(found["dense"] / DENSE, 3).all()
        reads += 1
    assert not wrong
    assert reads
    assert not leftovers(source.parent)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    """Such a name cannot be written into a model: sessions get the weights themselves."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    path.write_bytes(classifier().SerializeToString())
    document = Document.open(path)
    x = RNG.standard_normal((1, 98)).astype(np.float32)
    assert np.allclose(run(document, x), answer(x), rtol=1e-4, atol=1e-3)
    document.commit(Edit())
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.onnx"))
    document.save(out)
    check_same(out)
    with pytest.raises(OptionError, match="UTF-8"):
        document.save(out, external_data=True)
    assert not leftovers(tmp_path)


def test_document_of_a_proto_is_a_copy() -> None:
    model = classifier()
    before = model.SerializeToString()
    document = Document.open(model)
    document.commit(Edit(nodes={0: []}, removed_initializers={"dense"}))
    assert model.SerializeToString() == before
    assert document.path is None
    assert document.folder is None
    assert document.size == len(before)


def test_bits_that_flip_are_a_document_or_refused(source: Path) -> None:
    data = source.read_bytes()
    rng = np.random.default_rng(2)
    path = source.with_name("flipped.onnx")
    graph_bytes = [*range(120), *range(len(data) - 400, len(data))]
    refused = 0
    start = time.monotonic()
    for _ in range(500):
        flipped = bytearray(data)
        for at in rng.choice(graph_bytes, rng.integers(1, 4)):
            flipped[at] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            document = Document.open(path)
            document.sorted_order()
            document.check()
            for initializer in document.proto.graph.initializer:
                document.array(initializer)
            assert document.graph is not None
        except FcnError:
            refused += 1
    assert 50 < refused < 500
    assert time.monotonic() - start < 30
