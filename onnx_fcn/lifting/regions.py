"""What cannot slide, as a value: the part of a network that runs unchanged on every window.

JAX does the same with an operator without a batching rule, where a caller allows it: `jax.lax.map` runs it on one
example at a time. Here the operators from one map to the outputs are a **region**. It obeys the law trivially, shares
all work before that map, and is a node of the program like any other, so that its rule emits what runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from onnx import NodeProto

from onnx_fcn._types import Array

__all__ = ["STEP", "Region", "RegionOutput", "together_of"]


#: What a step costs beside its windows, in windows: about as much as was measured for small networks (LeViT).
STEP = 0.25


@dataclass(frozen=True)
class RegionOutput:
    """A result of a region, for one window.

    Attributes:
        name: the tensor in the original.
        shape: its shape at the native size, with the batch that the walk evaluates shapes with.
        batch: the axis of the batch; None if it has none.
        elem_type: `onnx.TensorProto.DataType`.
    """

    name: str
    shape: tuple[int, ...]
    batch: int | None
    elem_type: int


def together_of(count: int, most: int) -> int:
    """How many of `count` windows run together, at most `most`: as many as cost least, the last step filled up."""
    return min(range(1, most + 1), key=lambda size: -(-count // size) * (size + STEP))


@dataclass(frozen=True)
class Region:
    """The nodes between a map and the outputs.

    Attributes:
        cut: the map that windows are taken from, by its name in the original.
        nodes: in order, everything that is computed from the cut; before them, copies of the nodes that compute with
            the size of a map, which is that of a window here.
        copied: the tensors that these copies make.
        sizes: the tensors that the copies start from, such as the shape of the image: their values at the native size.
        outside: the other tensors that the nodes read; they are the same for all windows.
        outputs: what comes out.
        covers: the indices of the nodes in the graph that the region takes the place of.
        stride: pixels between windows, along each axis of the image.
        together: the most windows that run at a time, in one batch.
    """

    cut: str
    nodes: tuple[NodeProto, ...]
    copied: frozenset[str]
    sizes: Mapping[str, Array]
    outside: tuple[str, ...]
    outputs: tuple[RegionOutput, ...]
    covers: frozenset[int]
    stride: tuple[Fraction, ...]
    together: int = 1
