"""What is taken as a model: a file, a proto, or an object of another package that stands for one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from onnx import ModelProto

from onnx_fcn.errors import ModelError, in_one_line

__all__ = ["Model", "Source", "as_model"]


#: A file, or a model in memory.
Model = str | os.PathLike[str] | ModelProto


class Program(Protocol):
    """A `torch.onnx.ONNXProgram`."""

    @property
    def model_proto(self) -> ModelProto:
        """The model."""


class Intermediate(Protocol):
    """An `onnx_ir.Model`."""

    @property
    def opset_imports(self) -> Mapping[str, int]:
        """The versions of the operators."""


#: A `Model`, an `onnx_graphsurgeon.Graph`, which has no types, or another package's.
Source = Model | Program | Intermediate


def as_model(source: Source) -> Model:
    """The file or proto that an object stands for.

    Raises:
        ModelError: if the other package cannot make a proto of it.
        TypeError: if it is none of these.
    """
    try:
        model: Model = _exported(source)
    except Exception as error:  # whatever that package raises
        name = f"{type(source).__module__.partition('.')[0]}.{type(source).__qualname__}"
        raise ModelError(f"the {name} does not become a model: {in_one_line(error)}") from error
    if not isinstance(model, str | os.PathLike | ModelProto):
        raise TypeError(f"a model is a path, an onnx.ModelProto or an object that stands for one, not {type(model)}")
    return model


def _exported(source: Any) -> Any:
    # Whoever has such an object has imported its package.
    surgeon, intermediate = sys.modules.get("onnx_graphsurgeon"), sys.modules.get("onnx_ir")
    if surgeon is not None and isinstance(source, surgeon.Graph):
        return surgeon.export_onnx(source)
    if intermediate is not None and isinstance(source, intermediate.Model):
        return intermediate.serde.serialize_model(source)
    return getattr(source, "model_proto", source)
