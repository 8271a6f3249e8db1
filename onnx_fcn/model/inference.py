"""Types and shapes of tensors, as far as onnx infers them."""

from __future__ import annotations

import onnx
from onnx import ModelProto, TypeProto

__all__ = ["declared", "dims_in", "inferred"]


def inferred(model: ModelProto, *, values: bool = True) -> dict[str, TypeProto.Tensor] | None:
    """The type of each tensor, as it follows from those that the model declares; None where onnx infers nothing.

    Args:
        model: it, or its skeleton; what it declares is taken as given, so whoever changes a size clears the rest.
        values: compute the values that shapes are made of, too.
    """
    try:
        return declared(onnx.shape_inference.infer_shapes(model, data_prop=values))
    except Exception:  # it refuses some valid models, and its exceptions have no common base
        return None


def declared(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """The type of each tensor that the model declares."""
    graph = model.graph
    return {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}


def dims_in(kind: TypeProto.Tensor) -> tuple[int | None, ...] | None:
    """The shape that a type says, None for axes that it leaves open; None where it says none."""
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
