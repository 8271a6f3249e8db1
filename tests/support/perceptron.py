"""A small model to open and save: two dense layers, and what is expected of them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_fcn.model.document import Document

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
