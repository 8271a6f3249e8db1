"""Spellings that every runtime reads alike: explicit poolings, dilated means as convolutions, `--portable`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

import onnx_fcn
from onnx_fcn.cli import main

POOLED = (
    "a = Conv <strides = [2, 2]> (x, k)  m = {pool}  c = Conv (m, l)  r = Relu (c)  {head}  f = Flatten (g)  "
    "y = MatMul (f, w)"
)
MAX = "MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (a)"
HEADS = {"mean": "g = GlobalAveragePool (r)", "maximum": "g = GlobalMaxPool (r)"}
DILATED = (
    "dilates MaxPool: OpenCV 4, MNN and ncnn do not, and some ignore it silently; --portable writes slices instead."
)


def network(head: str, opset: int = 17, pool: str = MAX) -> ModelProto:
    return law.model(
        POOLED.format(pool=pool, head=HEADS[head]),
        image="float[N,2,33,29] x", opset=opset, k=(4, 2, 3, 3), l=(6, 4, 3, 3), w=(6, 5),
    )  # fmt: skip


def poolings(model: ModelProto) -> list[dict[str, list[int]]]:
    nodes = [n for n in model.graph.node if n.op_type in ("AveragePool", "LpPool", "MaxPool")]
    return [{a.name: list(a.ints) for a in node.attribute} for node in nodes]


def is_dilated(pooling: dict[str, list[int]]) -> bool:
    along = zip(pooling["kernel_shape"], pooling.get("dilations", [1] * len(pooling["kernel_shape"])))
    return any(kernel > 1 and rate > 1 for kernel, rate in along)


@pytest.mark.parametrize("form", [{}, {"reduce": "mean"}, {"full_size": True}, {"keep_size": True}, {"head": "folded"}])
@pytest.mark.parametrize("head", HEADS)
def test_a_pooling_states_its_strides_and_pads(head: str, form: dict[str, Any]) -> None:
    converted = onnx_fcn.convert(network(head), **form).to_proto()
    assert len(poolings(converted)) >= 2
    for pooling in poolings(converted):
        assert len(pooling["strides"]) == 2
        assert len(pooling["pads"]) == 4


@pytest.mark.parametrize("opset", [11, 17, 19, 22])
def test_a_dilated_mean_is_a_convolution(opset: int) -> None:
    converted = onnx_fcn.convert(network("mean", opset), output_stride=2).to_proto()
    averages = [n for n in converted.graph.node if n.op_type == "AveragePool"]
    assert averages == []


@pytest.mark.parametrize("opset", [11, 17, 22])
@pytest.mark.parametrize("head", HEADS)
def test_portable_answers_are_the_same(head: str, opset: int) -> None:
    """Bit for bit: a maximum does not round."""
    original, image = network(head, opset), {"x": law.random("x", 2, 2, 61, 70).astype(np.float32)}
    dilated, sliced = (onnx_fcn.convert(original, output_stride=2, portable=portable) for portable in (False, True))
    assert any(map(is_dilated, poolings(dilated.to_proto()))) == (head == "maximum")
    assert not any(map(is_dilated, poolings(sliced.to_proto())))
    want, got = (law.session(made.to_proto())(image)[0] for made in (dilated, sliced))
    assert np.array_equal(got, want)
    assert [DILATED in caveat for caveat in dilated.report.caveats].count(True) == (head == "maximum")
    assert not any("dilates" in caveat for caveat in sliced.report.caveats)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_dilated_maximum(data: st.DataObject) -> None:
    kernel, strides, rates = ([data.draw(st.integers(1, 3)) for _ in range(2)] for _ in range(3))
    pads = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    pool = f"MaxPool <kernel_shape = {kernel}, strides = {strides}, dilations = {rates}, pads = {pads}> (a)"
    original = network("mean", pool=pool)
    image = {"x": law.random("x", 1, 2, 50, 43).astype(np.float32)}
    plain, sliced = (onnx_fcn.convert(original, portable=portable).to_proto() for portable in (False, True))
    assert not any(map(is_dilated, poolings(sliced)))
    assert np.array_equal(law.session(sliced)(image)[0], law.session(plain)(image)[0])


def test_a_maximum_that_rounds_up_stays_dilated_and_is_named() -> None:
    pool = "MaxPool <kernel_shape = [2, 2], strides = [2, 2], dilations = [2, 2], ceil_mode = 1> (a)"
    conversion = onnx_fcn.convert(network("mean", pool=pool), portable=True)
    assert any("dilates MaxPool: OpenCV 4, MNN and ncnn do not" in c for c in conversion.report.caveats)


def test_the_command_and_a_verification(tmp_path: Path) -> None:
    onnx.save(network("maximum"), tmp_path / "model.onnx")
    model, out = str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx")
    assert main([model, out, "--output-stride", "2", "--portable"]) == 0
    assert not any(map(is_dilated, poolings(onnx.load(out))))
    assert main(["--verify", model, out]) == 0
