"""The lifting rules, one file per family. Importing this package registers them all.

A rule is one small function: it reads the facts of its operands, asks its `Site` for nodes, and returns the facts of
its outputs. It refuses by raising `Unsupported`, with the numbers.
"""

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
    "sliding",
]
