"""The lifting rules, one file per family.

Importing this package registers all rules, so import `rule_of` from here.

A rule is one small function: it reads the facts of its operands, emits nodes through its `Site`, and returns the facts
of its outputs. It refuses a node by raising `Unsupported` with a message that gives the numbers.
"""

from onnx_fcn.lifting.registry import rule_of
from onnx_fcn.rules import (
    channels,
    classical,
    dense,
    elementwise,
    layout,
    normalization,
    quantization,
    reduction,
    regions,
    resizing,
    sliding,
)

__all__ = [
    "channels",
    "classical",
    "dense",
    "elementwise",
    "layout",
    "normalization",
    "quantization",
    "reduction",
    "regions",
    "resizing",
    "rule_of",
    "sliding",
]
