"""The lifting rules, one file per family. Importing this package registers them all,
so whoever looks a rule up imports `rule_of` from here.

A rule is one small function: it reads the facts of its operands, asks its `Site` for nodes, and returns the facts of
its outputs. It refuses by raising `Unsupported`, with the numbers.
"""

from onnx_fcn.lifting.registry import rule_of
from onnx_fcn.rules import (
    channels,
    dense,
    elementwise,
    layout,
    normalization,
    quantization,
    reduction,
    resizing,
    sliding,
)

__all__ = [
    "channels",
    "dense",
    "elementwise",
    "layout",
    "normalization",
    "quantization",
    "reduction",
    "resizing",
    "rule_of",
    "sliding",
]
