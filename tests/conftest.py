"""The small model as a file, its weights in it or beside it; the same random examples in every run."""

import signal
from pathlib import Path

import hypothesis
import onnx
import pytest
from perceptron import classifier

hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts jobs in the background: tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
