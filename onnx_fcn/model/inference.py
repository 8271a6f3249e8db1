"""Types and shapes of tensors, as far as onnx infers them."""

from __future__ import annotations

import onnx
from onnx import ModelProto, TypeProto

__all__ = ["declared_types", "dims_in", "infer_types"]


def infer_types(model: ModelProto, *, values: bool = True) -> dict[str, TypeProto.Tensor] | None:
    """The type of each tensor, inferred from those that the model declares; None if onnx fails to infer them.

    Args:
        model: a model or its skeleton. All its declarations are trusted: after a change of a size, clear the others.
        values: also compute the values that shapes are computed from.
    """
    try:
        return declared_types(onnx.shape_inference.infer_shapes(model, data_prop=values))
    except Exception:  # it refuses some valid models, and its exceptions have no common base
        return None


def declared_types(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """The type of each tensor that the model declares."""
    graph = model.graph
    return {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}


def dims_in(kind: TypeProto.Tensor) -> tuple[int | None, ...] | None:
    """The shape of a type, with None for symbolic axes; None if the type has no shape."""
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
