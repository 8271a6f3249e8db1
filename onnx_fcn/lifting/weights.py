"""Dense weight → convolution kernel: the same numbers, reordered once according to the layout.

A dense layer computes y[o] = Σ_k x[k]·W[k, o], where k runs over channels and window cells in the order in which the
exporter flattened them. As a convolution it is

    kernel[o, c, i, j] = W[k(c, i, j), o]

so a kernel is a reshape and a transpose of the weight and needs no arithmetic. For a weight (O, C·h·w) as torch stores
it, the bytes are the same and only `dims` change.

Weights that are stored in another type keep it: the integers before a DequantizeLinear, or the half floats before a
Cast, are reordered, and the operator is repeated after them. (Folding quantised weights into floats changes the
answers by percents once the runtime fuses the rest.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.bounds import REPEAT_LIMIT, megabytes
from onnx_fcn.lifting.constants import VIEWS
from onnx_fcn.lifting.facts import Known
from onnx_fcn.lifting.refusals import RUN_THE_REST
from onnx_fcn.lifting.site import Site

__all__ = ["View", "kernel", "vector"]


#: A reshape, transpose or slice of a weight, as a numpy view.
View = Callable[[Array], Array]


def kernel(site: Site, weight: Known, view: View, dims: Sequence[int]) -> str:
    """Add a weight as a convolution kernel.

    Args:
        site: the site that needs the kernel.
        weight: the constant.
        view: turns the weight's array into one whose row-major order is the kernel's.
        dims: the kernel's dims, outputs first.

    Returns:
        The name of the kernel's tensor.

    Raises:
        Unsupported: if repeated weights would take more than `REPEAT_LIMIT`.
    """
    node = site.producer(weight)
    if node is not None and node.op_type == "Cast" and node.input:
        stored = kernel(site, Known(node.input[0]), view, dims)
        return site.emit([stored], "Cast", to=next(a.i for a in node.attribute if a.name == "to"))
    if node is not None and node.op_type in VIEWS and node.input and _is_stored_otherwise(site, weight):
        look, inputs = VIEWS[node.op_type], [site.value(Known(i)) for i in node.input[1:]]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return kernel(site, Known(node.input[0]), lambda w: view(look([w, *inputs], attributes)), dims)
    if node is not None and node.op_type == "DequantizeLinear" and len(node.input) > 1:
        made = _dequantize(site, list(node.input), {a.name: a.i for a in node.attribute}, view, dims)
        if made is not None:
            return made
    return _store(site, weight, view, dims)


def _store(site: Site, weight: Known, view: View, dims: Sequence[int]) -> str:
    """Add a weight in another layout as a constant; a repeated one counts towards `REPEAT_LIMIT`."""
    value = site.value(weight)
    array = view(value)
    if array.size > value.size:
        total = site.record_repeated(array.nbytes)
        if total > REPEAT_LIMIT:
            raise Unsupported(
                f"its weight would be repeated {array.size // value.size} times, for each channel or position that it "
                f"does not sum over, to {megabytes(array.nbytes)}; all repeated weights would take "
                f"{megabytes(total)} (at most {megabytes(REPEAT_LIMIT)})",
                code="weight-too-large",
                hint=RUN_THE_REST,
            )
    return site.constant(array, dims, source=weight.name)


def _is_stored_otherwise(site: Site, weight: Known) -> bool:
    """Does the chain of views that makes a weight begin at a Cast or DequantizeLinear?"""
    node = site.producer(weight)
    while node is not None and node.op_type in VIEWS and node.input:
        node = site.producer(Known(node.input[0]))
    return node is not None and node.op_type in ("Cast", "DequantizeLinear")


def _dequantize(
    site: Site, inputs: list[str], attributes: dict[str, int], view: View, dims: Sequence[int]
) -> str | None:
    """Emit the reordered integers with the same DequantizeLinear, per output channel if the scale is.

    Returns None if the scales run along another axis than the outputs.
    """
    stored = Known(inputs[0])
    shape, scale = site.weight_shape(stored), site.value(Known(inputs[1]))
    if attributes.get("block_size"):
        return None
    operands: list[Known | Array] = [Known(i) for i in inputs[1:] if i]
    axis_attr: dict[str, Any] = {}
    if scale.size > 1:
        axis = attributes.get("axis", 1) % len(shape)
        # to find where the scales go, reorder their indices, which vary along one axis only
        index = np.broadcast_to(
            np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape
        )
        laid = view(index)
        varies = [k for k, (stride, size) in enumerate(zip(laid.strides, laid.shape)) if stride and size > 1]
        if varies != [0] or laid.shape[0] != dims[0]:
            return None
        order = laid.reshape(laid.shape[0], -1)[:, 0]
        operands = [site.value(Known(i))[order] for i in inputs[1:] if i]
        axis_attr["axis"] = 0
    return site.emit([_store(site, stored, view, dims), *operands], "DequantizeLinear", **axis_attr)


def vector(site: Site, bias: Known, size: int, factor: float = 1.0) -> Known | None:
    """A bias () | (1,) | (O,) | (1, O) | (N, O) with equal rows, as (O,), times a factor; None if it is zero.

    Raises:
        Unsupported: if its rows differ, so that it is not the same for every image.
    """
    shape = site.weight_shape(bias)
    if shape == (size,) and factor == 1.0:
        return bias
    value = site.fixed_value(bias)
    if value.ndim == 2 and value.shape[0] > 1:
        if np.any(value != value[:1]):
            raise Unsupported("adds a bias that differs between the images of a batch", code="bias-per-image")
        value = value[:1]
    value = np.broadcast_to(value.reshape(-1) if value.size == size else value.reshape(1), (size,))
    if factor != 1.0:
        value = (value * np.asarray(factor, value.dtype)).astype(value.dtype)
    if not np.any(value):
        return None
    value = np.ascontiguousarray(value)
    return site.record_constant(site.constant(value, source=bias.name), value)
