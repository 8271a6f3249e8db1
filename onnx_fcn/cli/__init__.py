"""The command line: arguments in, exit codes out."""

from onnx_fcn.cli.convert import main

__all__ = ["main"]
