"""What is said of one node or tensor: what the walk found, and what the converted model has in its place."""

from __future__ import annotations

import json
from pathlib import Path

import law
import onnx
import pytest

import onnx_fcn
from onnx_fcn import Diagnostic, Explanation, OptionError, UnsupportedModel, explain
from onnx_fcn.reporting.explanation import Operand

DIGITS = Path(__file__).parent.parent / "fixtures/digits_unpadded.onnx"

#: A gate that sees the whole image, a shape that is computed, a node that nothing needs, and two outputs.
GATED = law.model(
    "[squeeze] p = GlobalAveragePool (x)  [excite] g = Conv (p, v)  [gate] m = Mul (x, g)  [shape] s = Shape (m)  "
    "[first] n = Gather (s, zero)  [target] t = Concat <axis = 0> (n, rest)  [flatten] f = Reshape (m, t)  "
    "[double] d = Mul (q, q)  [dense] h = Gemm (f, w)  [shift] y = Add (h, d)  [other] z = Gemm (f, u)  "
    "[idle] i = Relu (q)",
    image="float[N,6,4,3] x, float[N,5] q",
    outputs="y, z",
    v=(6, 6, 1, 1),
    w=(72, 5),
    u=(72, 2),
    zero=[0],
    rest=[-1],
)

ATTENTION = law.model(
    "[stem] a = Conv (x, k)  [tokens] t = Reshape (a, s)  [turn] u = Transpose <perm = [0, 2, 1]> (t)  "
    "[affinity] m = MatMul (u, t)  [mix] y = Relu (m)",
    k=(6, 6, 1, 1),
    s=[0, 6, 12],
)


def test_a_dense_layer() -> None:
    told = explain(DIGITS, "/7/Gemm")
    assert (told.node, told.op, told.part, told.becomes, told.causes) == ("/7/Gemm", "Gemm", "head", "Conv 4×4", ())
    assert [(o.name, o.fact, o.layout) for o in told.reads] == [
        ("/6/Flatten_output_0", "map", "n (c20 h4 w4)"),
        ("7.weight", "constant", ""),
        ("7.bias", "constant", ""),
    ]
    assert told.makes == (
        Operand(
            "/7/Gemm_output_0",
            "map",
            layout="n o64",
            map="/7/Gemm_output_0",
            channels=64,
            window=(1, 1),
            stride=(4, 4),
            field=(28, 28),
            start=(0, 0),
            cells=("(height - 28) // 4 + 1", "(width - 28) // 4 + 1"),
        ),
    )


def test_a_tensor_is_on_the_map_that_the_converted_model_has(tmp_path: Path) -> None:
    told = explain(DIGITS, "/6/Flatten_output_0")
    assert (told.op, told.becomes) == ("Flatten", "no node: it only regroups the axes")
    assert (told.makes[0].map, told.makes[0].window) == ("/5/MaxPool_output_0", (4, 4))
    onnx_fcn.convert(DIGITS, tmp_path / "out.onnx", validate=False)
    made = {name for node in onnx.load(tmp_path / "out.onnx").graph.node for name in node.output}
    for node in onnx.load(DIGITS).graph.node:
        (operand,) = explain(DIGITS, node.output[0]).makes
        assert operand.map in made


@pytest.mark.parametrize(
    ("name", "part", "becomes"),
    [
        ("squeeze", "context", "GlobalAveragePool, unchanged"),
        ("excite", "context", "stays unchanged"),
        ("gate", "trunk", "Mul, unchanged"),
        ("first", "constant", "nothing: no longer read"),
        ("flatten", "head", "no node: it only regroups the axes"),
        ("double", "beside", "stays unchanged"),
        ("dense", "head", "Conv 4×3"),
        ("idle", "unused", "stays"),
        ("x", "image", "stays"),
        ("q", "beside", "stays"),
        ("w", "constant", "stays"),
    ],
)
def test_parts(name: str, part: str, becomes: str) -> None:
    told = explain(GATED, name)
    assert (told.part, told.becomes) == (part, becomes)
    assert str(told).count("\n") >= 1


def test_what_sizes_are_computed() -> None:
    told = explain(GATED, "flatten")
    assert told.reads[1] == Operand("t", "constant", value="[N, -1]")
    assert told.makes[0].field == told.makes[0].start == (None, None)
    assert "field    the whole image" in str(told)


def test_an_output_stride() -> None:
    """What strides further dilates, and the explanation is of that."""
    told = [explain(DIGITS, "/3/Conv", output_stride=stride).becomes for stride in (None, 2, 1)]
    assert told == ["Conv 5×5, unchanged", "Conv 5×5, unchanged", "Conv 5×5, with dilations rewritten"]
    assert [explain(DIGITS, "/7/Gemm", output_stride=s).makes[0].stride for s in (None, 2, 1)] == [
        (4, 4),
        (2, 2),
        (1, 1),
    ]
    with pytest.raises(OptionError, match="--output-stride 3 does not divide"):
        explain(DIGITS, "/7/Gemm", output_stride=3)


def test_a_network_without_a_head() -> None:
    model = law.model("[slide] c = Conv <kernel_shape = [2, 2], strides = [2, 2]> (x, k)  y = Relu (c)", k=(2, 6, 2, 2))
    told = explain(model, "slide")
    assert (told.part, told.becomes, told.makes[0].cells) == (
        "network", "Conv 2×2, unchanged", ("(height - 2) // 2 + 1", "(width - 2) // 2 + 1"),
    )  # fmt: skip


def test_attributes_that_change_are_named() -> None:
    model = law.model(
        '[stem] c = Conv <auto_pad = "SAME_UPPER"> (x, k)  f = Flatten (c)  y = Gemm (f, w)',
        k=(6, 6, 3, 3), w=(72, 5),
    )  # fmt: skip
    assert explain(model, "stem").becomes == "Conv 3×3, with auto_pad, kernel_shape, pads rewritten"


def test_a_refusal() -> None:
    told = explain(ATTENTION, "affinity")
    (cause,) = told.causes
    assert (told.part, cause.code, cause.node) == ("refused", "product-of-maps", "affinity")
    assert "why      multiplies positions with positions" in str(told)
    after = explain(ATTENTION, "y")
    assert (after.node, after.part, after.causes) == ("mix", "blocked", (cause,))
    assert "because  MatMul 'affinity': multiplies positions" in str(after)
    before = explain(ATTENTION, "stem")
    assert (before.part, before.causes) == ("reached", ())
    assert (before.makes[0].layout, before.makes[0].map) == ("n c6 h4 w3", None)
    assert isinstance(cause, Diagnostic)


def test_nothing_to_explain() -> None:
    with pytest.raises(OptionError, match="no node or tensor '/7/Gem': did you mean '/7/Gemm' or"):
        explain(DIGITS, "/7/Gem")
    with pytest.raises(OptionError, match=r"no node or tensor '§'$"):
        explain(DIGITS, "§")
    with pytest.raises(UnsupportedModel, match="before opset 7 operators have other meanings"):
        explain(law.model("y = Relu (x)", opset=6), "y")


def test_json_and_text() -> None:
    told = explain(DIGITS, "scores")
    assert isinstance(told, Explanation)
    again = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert list(again) == [
        "version", "generator", "name", "node", "op", "part", "becomes", "reads", "makes", "causes",
    ]  # fmt: skip
    assert list(again["makes"][0]) == [
        "name", "fact", "layout", "map", "channels", "window", "stride", "field", "start", "cells", "value",
    ]  # fmt: skip
    refused = explain(ATTENTION, "affinity").to_dict()["causes"]
    assert list(refused[0]) == ["code", "node", "op", "reason", "hint"]
    assert all(len(line) <= 110 for line in str(explain(ATTENTION, "affinity")).splitlines())
    assert (
        str(told)
        == """\
node     Gemm '/10/Gemm'
part     head: it comes after the cut
becomes  Conv 1×1
reads    '/8/Relu_output_0', n o64
reads    '10.weight', constant
reads    '10.bias', constant
makes    'scores', n o11
map      'scores', 11 channels, one cell a window
stride   4 pixels a cell
field    28×28 pixels, from 0 on
cells    (height - 28) // 4 + 1, (width - 28) // 4 + 1"""
    )
