"""How far two answers agree, and where one window's answer stands on a map: numpy only, and what facts mean.

`original_at` is the sentence that every rule obeys, as an array: the original tensor at one position of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_fcn.document import Document
from onnx_fcn.known import Array
from onnx_fcn.lifted import Atom, Lifted

__all__ = [
    "ROUNDED_TOLERANCE",
    "Scale",
    "as_physical",
    "batch_axis",
    "difference",
    "is_rounded",
    "original_at",
    "shaped_difference",
    "tolerance_of",
    "unusual",
    "window_of",
]

#: Largest difference allowed, relative to the largest answer. A Conv and a Gemm add the same products in another
#: order: n of them differ by about √n·ε, which is 2e-5 for the 25,088 inputs of VGG's first dense layer; several
#: layers and a cancellation of large terms may add a digit.
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4, np.dtype(np.float16): 2e-2}

#: A network that rounds its activations to 8 or 16 bits may round one of them the other way: one step of many.
ROUNDED_TOLERANCE = 2e-2

#: How many times the smallest normal number an answer has to be to be compared relatively: below, digits go missing.
SMALLEST_SCALE = 16


@dataclass(frozen=True)
class Scale:
    """What a difference is relative to: the largest of all answers, unless more is known.

    Attributes:
        least: answers below it are compared absolutely.
        own: for each answer, of one image, how large it counts as where that is less; None where it is not known.
    """

    least: float = 0.0
    own: Array | None = None

    def of(self, want: Array, largest: float) -> Array | float:
        """The scale of each of these answers, of which this is the largest."""
        if self.own is None:
            return max(largest, self.least)
        own = self.own.reshape(want.shape) if self.own.size == want.size else self.own
        try:
            each = np.maximum(np.broadcast_to(own, want.shape), np.abs(want))
        except ValueError:  # the batch is within another axis
            return max(largest, self.least)
        return np.maximum(np.minimum(np.where(np.isfinite(each), each, largest), largest), self.least)


def is_rounded(document: Document) -> bool:
    """Does a model round activations to integers?"""
    operators = {n.op_type for n in document.proto.graph.node}
    return any("Quantize" in o or "Integer" in o or o.startswith("QLinear") or o == "QGemm" for o in operators)


def tolerance_of(document: Document) -> float:
    """The tolerance of the coarsest arithmetic in a model."""
    graph = document.proto.graph
    types = {t.data_type for t in graph.initializer} | {i.type.tensor_type.elem_type for i in graph.input}
    casts = {a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    if is_rounded(document) or (types | casts) & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return ROUNDED_TOLERANCE
    return TOLERANCE[np.dtype(np.float32)]


def original_at(fact: Lifted, physical: Array, position: Sequence[int]) -> Array:
    """The original tensor at one position of the window, out of a map (N, C, *space): what `Lifted` means."""
    rates: list[Any] = [slice(None, None, axis.rate) for axis in fact.space]
    window: Array = physical[window_of(fact, position)][(..., *rates)]
    atoms = [fact.batch, *fact.channels, *(a for axis in fact.space for a in axis.atoms)]
    order = [a for group in fact.layout for a in group]
    batch = physical.shape[0]
    seen: Array = window.reshape([batch, *(a.size for a in atoms[1:])])
    if fact.batch not in order:
        order = [fact.batch, *order]
    seen = seen.transpose([atoms.index(a) for a in order])
    if batch > 1 and fact.batch not in (a for group in fact.layout for a in group):
        return seen.reshape(-1)
    return seen.reshape([_size(group, fact.batch, batch) for group in fact.layout])


def window_of(fact: Lifted, position: Sequence[int]) -> tuple[slice, ...]:
    """Where a window lies in a map (N, C, *space)."""
    starts = [p * axis.step for axis, p in zip(fact.space, position)]
    return (slice(None), slice(None), *(slice(s, s + axis.extent) for s, axis in zip(starts, fact.space)))


def _size(group: tuple[Atom, ...], batch: Atom, count: int) -> int:
    return int(np.prod([count if a is batch else a.size for a in group]))


def as_physical(fact: Lifted, original: Array) -> Array | None:
    """A whole map with the axes of the original as (N, C, *space); None where its layout is not plain."""
    axes = [(fact.batch,) if fact.batch.size > 1 else (), fact.channels, *(a.atoms for a in fact.space)]
    if len(axes) != fact.rank or len(set(axes)) < len(axes) or set(axes) != set(fact.layout):
        return None
    return original.transpose([fact.layout.index(group) for group in axes])


def difference(have: Array, want: Array, scale: Scale = Scale()) -> float:
    """Largest difference relative to its scale; infinite where NaN or infinity stand at other places."""
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


def unusual(have: Array, want: Array) -> str:
    """What is to be said of NaN and infinities in two answers of one shape; nothing where all are finite."""
    if have.dtype.kind not in "fc" or want.dtype.kind not in "fc":
        return ""
    infinite = np.isinf(have) | np.isinf(want)
    other = (np.isnan(have) != np.isnan(want)) | (infinite & (have != want))
    if other.any():
        words = "answers are NaN or infinite where the original's are not, or the other way round"
        return f"{int(other.sum())} of {want.size} {words}"
    expected = ~np.isfinite(want)
    if expected.all() and want.size:
        return "every answer of the original is NaN or infinite: only where they stand was compared"
    return (
        f"{expected.sum()} of {want.size} answers are NaN or infinite in the original as well" if expected.any() else ""
    )


def shaped_difference(have: Array, want: Array, scale: Scale = Scale()) -> float:
    """The same for answers of other shapes; infinite where there are more or fewer numbers."""
    return difference(have.reshape(want.shape), want, scale) if have.size == want.size else float("inf")


def batch_axis(fact: Lifted) -> int | None:
    """The axis of the original tensor that is the batch and nothing else."""
    return next((k for k, group in enumerate(fact.layout) if group == (fact.batch,)), None)
