"""The page about training: its code is run, in PyTorch, and what it prints is compared."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import tools

import onnx_fcn

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/training.md"


def section(title: str) -> str:
    """A section of the page."""
    return PAGE.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def _onnx2torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx2torch, without torchvision."""
    tools.stand_in_for_torchvision(monkeypatch)
    pytest.importorskip("onnx2torch", reason="onnx2torch is not installed")


@pytest.mark.slow
@pytest.mark.usefixtures("_onnx2torch")
def test_more_of_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four lines of a bad scan teach the network to read the other four, and the file is still a converted one."""
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    text, out = section("Train more of it"), io.StringIO()
    with contextlib.redirect_stdout(out):
        exec("\n".join(blocks("python", text)), seen := {})
    (shown,) = blocks("text", text)
    number = re.compile(r"\d\.\d\d")
    assert number.sub("", out.getvalue()) == number.sub("", shown)
    before, after = map(float, number.findall(out.getvalue()))
    assert np.allclose([before, after], list(map(float, number.findall(shown))), atol=0.05)
    assert before < 0.2
    assert after > 0.8
    assert np.abs(seen["after"] - seen["expected"]).max() <= 1e-4
    onnx_fcn.convert(ROOT / "fixtures/digits_unpadded.onnx", "again.onnx", validate=False)
    assert onnx_fcn.read_geometry("out.onnx") == onnx_fcn.read_geometry("again.onnx")
    old, new = onnx.load("again.onnx"), onnx.load("out.onnx")
    assert all(a.raw_data != b.raw_data for a, b in zip(old.graph.initializer, new.graph.initializer))
    for model in (old, new):
        del model.graph.initializer[:]
    assert old == new
