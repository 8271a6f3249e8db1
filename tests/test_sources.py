"""Objects of other packages in place of a file, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir
import pytest
import torch

import onnx_fcn
from onnx_fcn import ModelError, OptionError

DIGITS = Path(__file__).parent.parent / "fixtures" / "digits_padded.onnx"
IMAGE = {"image": law.random("image", 1, 1, 40, 44).astype(np.float32)}


def graphsurgeon() -> gs.Graph:
    return gs.import_onnx(onnx.load(DIGITS))


def intermediate() -> onnx_ir.Model:
    return onnx_ir.load(DIGITS)


@pytest.mark.parametrize("make", [graphsurgeon, intermediate], ids=lambda f: f.__name__)
def test_the_same_network(make: Callable[[], Any], tmp_path: Path) -> None:
    found = onnx_fcn.convert(make(), tmp_path / "out.onnx")
    assert found.report.validation.passed
    assert found.report.source == ""
    wanted = onnx_fcn.convert(DIGITS, validate=False)
    one, other = (law.session(c.to_proto())(IMAGE)[0] for c in (found, wanted))
    np.testing.assert_array_equal(one, other)
    assert onnx_fcn.validate(make(), found.to_graphsurgeon()).passed
    assert str(onnx_fcn.explain(make(), "scores")) == str(onnx_fcn.explain(DIGITS, "scores"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own
def test_a_program_that_torch_exported() -> None:
    torch.manual_seed(0)
    net = exports.lenet().eval()
    program = torch.onnx.export(net, (torch.rand(1, 1, 32, 32),), dynamo=True, verbose=False)
    assert onnx_fcn.convert(program).report.validation.passed


def test_only_a_file_is_stamped() -> None:
    with pytest.raises(OptionError, match="only a file can be stamped"):
        onnx_fcn.validate(DIGITS, graphsurgeon(), stamp=True)


def test_what_does_not_become_a_model() -> None:
    graph = graphsurgeon()
    graph.nodes[0].attrs["pads"] = object()
    with pytest.raises(ModelError, match=r"^the onnx_graphsurgeon\.Graph does not become a model: "):
        onnx_fcn.convert(graph)


@pytest.mark.parametrize("source", [None, 5, b"model.onnx"])
def test_what_is_no_model(source: Any) -> None:
    with pytest.raises(TypeError, match=r"a model is a path, an onnx\.ModelProto or an object that"):
        onnx_fcn.convert(source)


def test_graphsurgeon_and_back(tmp_path: Path) -> None:
    """Edited further, the file has lost its metadata, until it is verified and stamped."""
    graph = onnx_fcn.convert(DIGITS).to_graphsurgeon()
    (scores,) = graph.outputs
    graph.nodes.append(gs.Node("Identity", "last", inputs=[scores], outputs=[gs.Variable("answers", np.float32)]))
    onnx.save(gs.export_onnx(graph), tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="does not say where its answers are"):
        onnx_fcn.read_geometry(tmp_path / "out.onnx")
    assert onnx_fcn.validate(DIGITS, tmp_path / "out.onnx", stamp=True).passed
    assert onnx_fcn.read_geometry(tmp_path / "out.onnx") == onnx_fcn.convert(DIGITS, validate=False).report.geometry
