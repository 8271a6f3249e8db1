"""How far two answers agree, computed by numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnx_fcn._types import Array
from onnx_fcn.model.document import Document

__all__ = [
    "ROUNDED_TOLERANCE",
    "Scale",
    "describe_nonfinite",
    "difference",
    "is_calibrated",
    "is_rounded",
    "shaped_difference",
    "tolerance_of",
]


#: Largest difference allowed, relative to the largest answer. A Conv and a Gemm add the same n products in different
#: orders, so their sums differ by about √n·ε, which is 2e-5 for the 25,088 inputs of VGG's first dense layer; several
#: layers and a cancellation of large terms may add a digit.
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4, np.dtype(np.float16): 2e-2}

#: A network that rounds its activations to 8 or 16 bits may round one of them the other way: by one step.
ROUNDED_TOLERANCE = 2e-2

#: Answers below this many times the smallest normal number are not compared relatively: they have fewer digits.
SMALLEST_SCALE = 16


@dataclass(frozen=True)
class Scale:
    """What a difference is relative to: the largest of all answers, unless more is known.

    Attributes:
        least: answers below it are compared absolutely.
        own: the scale of each answer for one image, used if it is smaller than the largest answer; None if not known.
    """

    least: float = 0.0
    own: Array | None = None

    def of(self, want: Array, largest: float) -> Array | float:
        """The scale of each answer in `want`, the largest of which is `largest`."""
        if self.own is None:
            return max(largest, self.least)
        own = self.own.reshape(want.shape) if self.own.size == want.size else self.own
        try:
            each = np.maximum(np.broadcast_to(own, want.shape), np.abs(want))
        except ValueError:  # the batch is part of another axis
            return max(largest, self.least)
        return np.maximum(np.minimum(np.where(np.isfinite(each), each, largest), largest), self.least)


def is_rounded(document: Document) -> bool:
    """Does a model round activations to integers?"""
    operators = {n.op_type for n in document.proto.graph.node}
    return any("Quantize" in o or "Integer" in o or o.startswith("QLinear") or o == "QGemm" for o in operators)


def is_calibrated(document: Document) -> bool:
    """Does a model round activations within ranges that were found on example images?"""
    operators = {n.op_type for n in document.proto.graph.node}
    return any(o in ("QuantizeLinear", "QGemm") or o.startswith("QLinear") for o in operators)


def tolerance_of(document: Document) -> float:
    """The tolerance of the coarsest arithmetic in a model."""
    graph = document.proto.graph
    types = {t.data_type for t in graph.initializer} | {i.type.tensor_type.elem_type for i in graph.input}
    casts = {a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    if is_rounded(document) or (types | casts) & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return ROUNDED_TOLERANCE
    return TOLERANCE[np.dtype(np.float32)]


def difference(have: Array, want: Array, scale: Scale = Scale()) -> float:
    """The largest difference relative to its scale; infinite if NaN or infinities are at different places."""
    if want.size == 0:
        return 0.0
    if want.dtype.kind == "b":
        return float(np.mean(have != want))
    a, b = have.astype(np.float64), want.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(
        a[~finite & ~np.isnan(b)], b[~finite & ~np.isnan(b)]
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    kind = want.dtype if want.dtype in TOLERANCE else np.dtype(np.float32)
    least = SMALLEST_SCALE * float(np.finfo(kind).tiny)
    scales = np.maximum(scale.of(b, float(np.abs(b[finite]).max())), least)
    apart = np.subtract(a, b, out=np.zeros_like(b), where=finite)
    return float((np.abs(apart) / scales).max())


def describe_nonfinite(have: Array, want: Array) -> str:
    """A sentence about NaN and infinities in two answers of one shape; empty if all values are finite."""
    if have.dtype.kind not in "fc" or want.dtype.kind not in "fc":
        return ""
    infinite = np.isinf(have) | np.isinf(want)
    other = (np.isnan(have) != np.isnan(want)) | (infinite & (have != want))
    if other.any():
        words = "answers are NaN or infinite where the original's are not, or vice versa"
        return f"{int(other.sum())} of {want.size} {words}"
    expected = ~np.isfinite(want)
    if expected.all() and want.size:
        return "every answer of the original is NaN or infinite: only their places were compared"
    return (
        f"{expected.sum()} of {want.size} answers are NaN or infinite in the original as well" if expected.any() else ""
    )


def shaped_difference(have: Array, want: Array, scale: Scale = Scale()) -> float:
    """The `difference` of answers whose shapes may differ; infinite if the numbers of elements differ."""
    return difference(have.reshape(want.shape), want, scale) if have.size == want.size else float("inf")
