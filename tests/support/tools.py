"""Tools that write another file from an ONNX file, as people use them before they deploy it. None needs torch."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_dim_param_fixed, make_input_shape_fixed
from onnxruntime.transformers.float16 import convert_float_to_float16

Feed = Mapping[str, np.ndarray]


def half(source: Path, path: Path) -> None:
    """Half precision, between inputs and outputs in single."""
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def wholly_half(source: Path, path: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=False), path)


def optimised(source: Path, path: Path, level: str = "EXTENDED") -> None:
    """What onnxruntime makes of a file when it loads it; at level ALL for the processor that it runs on."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # of level ALL it warns that the file is for this processor
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def dynamic(source: Path, path: Path) -> None:
    """8 bits, with ranges that are found in each run."""
    quantize_dynamic(source, path)


def static(source: Path, path: Path, feeds: Iterable[Feed]) -> None:
    """8 bits, with ranges that are found on these images."""
    quantize_static(source, path, Feeds(feeds), quant_format=QuantFormat.QDQ, per_channel=True)


class Feeds(CalibrationDataReader):
    """Images to calibrate on, one after another."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def bare(source: Path, path: Path) -> None:
    """Without metadata."""
    model = onnx.load(source)
    del model.metadata_props[:]
    onnx.save(model, path)


def with_shape(source: Path, path: Path, *shape: int) -> None:
    """Images of this shape only."""
    model = onnx.load(source)
    make_input_shape_fixed(model.graph, "image", list(shape))
    fix_output_shapes(model)
    onnx.save(model, path)


def with_batch(source: Path, path: Path, batch: int) -> None:
    """So many images at once only."""
    model = onnx.load(source)
    make_dim_param_fixed(model.graph, "batch", batch)
    onnx.save(model, path)


def stand_in_for_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI's torchvision cannot be imported beside a torch for CPUs only.

    onnx2torch imports it for two operators of detectors alone, NonMaxSuppression and RoiAlign.
    """
    for name in ("torchvision", "torchvision.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["torchvision.ops"], "roi_align", None, raising=False)
