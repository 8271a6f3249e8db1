"""What was found, done and measured: a value, and its texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnx_fcn.document import Document
from onnx_fcn.interpret import Walk


@dataclass
class Report:
    validation: Any = None
    output: str | None = None
    output_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def describe(original: Document, document: Document, state: Walk) -> Report:
    return Report()
