"""Names of classes and image sizes that exporters store in a model's metadata."""

from __future__ import annotations

import json
from pathlib import Path

import law
import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnx_fcn
from onnx_fcn import DenseModel, OptionError
from onnx_fcn.model.exported import class_names, image_size
from onnx_fcn.model.metadata import labels_in

ANIMALS = ("cat", "dog", "none")


def network(size: str = "32,32", **entries: str) -> ModelProto:
    made = law.model(
        "a = Conv <strides = [2, 2]> (x, k)  r = Relu (a)  g = GlobalAveragePool (r)  f = Flatten (g)  "
        "y = MatMul (f, w)",
        image=f"float[N,3,{size}] x", opset=17, k=(6, 3, 4, 4), w=(6, 3),
    )  # fmt: skip
    onnx.helper.set_model_props(made, entries)
    return made


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("names", "{0: 'cat', 1: 'dog', 2: 'none'}"),
        ("names", "{2: 'none', 0: 'cat', 1: 'dog'}"),
        ("names", "['cat', 'dog', 'none']"),
        ("labels", '["cat", "dog", "none"]'),
        ("class_names", "('cat', 'dog', 'none')"),
        ("id2label", '{"0": "cat", "1": "dog", "2": "none"}'),
    ],
)
def test_names_of_classes_are_the_labels(key: str, text: str) -> None:
    conversion = onnx_fcn.convert(network(**{key: text}))
    assert labels_in(conversion.to_proto()) == ANIMALS
    assert conversion.report.classes == ANIMALS
    assert "classes  3, named in the model: 'cat', 'dog', 'none'" in conversion.report.text()
    assert conversion.report.to_dict()["classes"] == ANIMALS


@pytest.mark.parametrize(
    "text",
    [
        "{0: 'cat', 1: 'dog'}",  # fewer than classes
        "{0: 'cat', 1: 'dog', 3: 'none'}",
        "{0: 'cat', 1: 'dog', 2: 5}",
        "cat,dog,none",
        "['cat', 'dog', 'no\\nne']",
        "[" * 100_000,
        "__import__('os').system('true')",
        "",
    ],
)
def test_names_that_are_not_those_of_the_classes_are_passed_over(text: str) -> None:
    conversion = onnx_fcn.convert(network(names=text), validate=False)
    assert conversion.report.classes == labels_in(conversion.to_proto()) == ()
    left_out = "The metadata name 2 classes, and the answers have 3 channels, so the names are left out."
    assert (left_out in conversion.report.caveats) == (text == "{0: 'cat', 1: 'dog'}")


def test_names_for_the_commands_on_pictures(tmp_path: Path) -> None:
    onnx_fcn.convert(network(names=json.dumps(ANIMALS)), tmp_path / "out.onnx")
    model = DenseModel(tmp_path / "out.onnx")
    result = model.run(np.zeros((40, 44, 3), np.uint8))
    assert model.labels == ANIMALS
    assert result.labels == ANIMALS


@pytest.mark.parametrize("text", ["[32, 32]", "32", "(32, 32)"])
def test_a_size_that_the_file_leaves_open(text: str) -> None:
    conversion = onnx_fcn.convert(network("H,W", imgsz=text))
    assert conversion.report.window == (32, 32)
    assert any(c.endswith("leaves its size open: the metadata say 32×32 pixels.") for c in conversion.report.caveats)


def test_what_the_file_or_the_user_says_comes_first() -> None:
    assert onnx_fcn.convert(network("24,24", imgsz="[32, 32]"), validate=False).report.window == (24, 24)
    conversion = onnx_fcn.convert(network("H,W", imgsz="[32, 32]"), input_size=24, validate=False)
    assert conversion.report.window == (24, 24)


@pytest.mark.parametrize("text", ["[0, 32]", "[32.5, 32]", "[1000000, 1000000]", "['a']", "[True, True]", "big"])
def test_a_size_that_is_none_is_passed_over(text: str) -> None:
    assert image_size(network(imgsz=text)) == ()
    with pytest.raises(OptionError, match="give it with --input-size"):
        onnx_fcn.convert(network("H,W", imgsz=text), validate=False)


def test_a_size_that_does_not_fit_where_the_nodes_tell_another() -> None:
    body = "c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)"
    original = law.model(body, image="float[N,1,H,W] x", opset=17, k=(2, 1, 5, 5), w=(128, 4))
    original.metadata_props.add(key="imgsz", value="[20, 20]")
    report = onnx_fcn.convert(original, validate=False).report
    assert report.window == (12, 12)
    assert "The metadata say 20×20 pixels, which the network does not take, so this was passed over." in report.caveats


def test_a_size_that_does_not_fit_is_passed_over() -> None:
    with pytest.raises(OptionError, match="give it with --input-size"):
        onnx_fcn.convert(network("H,W", imgsz="[2, 2]"), validate=False)


def test_without_metadata() -> None:
    assert class_names(network()) == image_size(network()) == ()
