"""Quantised networks: Q/DQ pairs, operators on integers, and scales that are computed from the image.

Integers stay integers: a dense layer on integers becomes a convolution on integers. A *dynamic* scale is one number for
a map of any size, so it is context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.dilation import undilate
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.facts import Fact, Known, Shared, Unmapped
from onnx_fcn.lifting.layouts import arrange, as_channels, as_feature_map, spatial_axes
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.rules.broadcasting import combine
from onnx_fcn.rules.channels import concatenated
from onnx_fcn.rules.contraction import contract
from onnx_fcn.rules.normalization import softmaxed
from onnx_fcn.rules.reduction import reduced
from onnx_fcn.rules.sliding import pooling

MICROSOFT = "com.microsoft"
FLOAT = onnx.TensorProto.FLOAT


@lifts("QuantizeLinear", "DequantizeLinear")
@lifts("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def linear(site: Site, x: Fact, scale: Fact, zero: Shared | None = None) -> Lifted:
    """Per tensor, or per channel if the scales run along the channels."""
    if not isinstance(x, Lifted):
        raise Unsupported("its scale depends on the position", code="not-constant")
    operands = [x, scale, *([zero] if zero is not None else [])]
    if isinstance(scale, Unmapped):  # one scale for the whole map, from a DynamicQuantizeLinear
        return x.on(site.emit(operands), FLOAT if site.op == "DequantizeLinear" else onnx.TensorProto.UINT8)
    if site.op == "QuantizeLinear":
        kind = site.elem_type_of(zero) if zero is not None else site.type_attr("output_dtype", onnx.TensorProto.UINT8)
    else:
        kind = site.elem_type_of(scale)
    if site.value(scale).size == 1:
        return x.on(site.emit(operands), kind)
    axis = x.axis(int(site.attr("axis", 1)))
    x, atoms = as_channels(site, x, [axis])
    if len(atoms) != len(x.channels):
        raise Unsupported(f"quantises axis {axis} of {x}, which is only a part of the channels", code="not-channels")
    x = arrange(site, x, atoms)
    return x.on(site.emit([x, *operands[1:]], axis=1), kind)


@lifts("DynamicQuantizeLinear")
def dynamic(site: Site, x: Lifted) -> Sequence[Fact]:
    """X -> (integers, scale, zero point), with one scale for the whole map."""
    site.note_context(x)
    name, scale, zero = site.emit_many([x])
    return [x.on(name, onnx.TensorProto.UINT8), Unmapped(scale), Unmapped(zero)]


@lifts("MatMulInteger")
def integer_matmul(site: Site, a: Fact, b: Fact, a_zero: Shared | None = None, b_zero: Shared | None = None) -> Lifted:
    """Sums of products of integers.

    Emitted as a Conv of floats, which represent these integers exactly and their sums to 24 bits, since onnxruntime's
    ConvInteger is many times slower.
    """
    if not isinstance(a, Lifted) or not isinstance(b, Known):
        raise Unsupported("its weight depends on the image", code="not-constant")
    x = site.emit([a], "Cast", to=FLOAT)
    if a_zero is not None:
        x = site.emit([x, site.emit([a_zero], "Cast", to=FLOAT)], "Sub")
    zero: Array = np.zeros((), np.float32) if b_zero is None else np.asarray(site.value(b_zero), np.float32)

    def emit(x: Lifted, kernel: str, **attrs: Any) -> str:
        w = site.emit([kernel], "Cast", to=FLOAT)
        if np.any(zero):
            w = site.emit([w, zero.reshape(-1, *[1] * (1 + len(x.space))) if zero.size > 1 else zero], "Sub")
        return site.emit([site.emit([x, w], "Conv", **attrs)], "Cast", to=onnx.TensorProto.INT32)

    seen = a.on(x, FLOAT)
    return replace(contract(site, seen, a.rank - 1, b, lambda w: w, emit=emit), elem_type=onnx.TensorProto.INT32)


@lifts("QLinearMatMul")
def quantized_matmul(
    site: Site,
    a: Fact,
    a_scale: Shared,
    a_zero: Shared,
    b: Fact,
    b_scale: Shared,
    b_zero: Shared,
    y_scale: Shared,
    y_zero: Shared,
) -> Lifted:
    """(a, its scale and zero point, b, …, y's scale and zero point) as a QLinearConv."""
    if not isinstance(a, Lifted) or not isinstance(b, Known):
        raise Unsupported("its weight depends on the image", code="not-constant")

    def emit(x: Lifted, kernel: str, **attrs: Any) -> str:
        flat = [site.constant(site.value(f).reshape(-1)) if site.value(f).size > 1 else f for f in (b_scale, b_zero)]
        return site.emit([x, a_scale, a_zero, kernel, *flat, y_scale, y_zero], "QLinearConv", **attrs)

    return replace(contract(site, a, a.rank - 1, b, lambda w: w, emit=emit), elem_type=site.elem_type_of(y_zero))


@lifts("QGemm", domain=MICROSOFT)
def quantized_gemm(
    site: Site,
    a: Fact,
    a_scale: Shared,
    a_zero: Shared,
    b: Fact,
    b_scale: Shared,
    b_zero: Shared,
    c: Fact | None = None,
    y_scale: Shared | None = None,
    y_zero: Shared | None = None,
) -> Lifted:
    """A·B + C on integers, as a QLinearConv; if the result is float, as a Conv after DequantizeLinears."""
    if not isinstance(a, Lifted) or not isinstance(b, Known) or float(site.attr("alpha", 1.0)) != 1.0:
        raise Unsupported("its weight depends on the image, or is scaled", code="not-constant")
    x = a.transposed([1, 0]) if site.flag("transA") else a
    flip = site.flag("transB")

    def emit(x: Lifted, kernel: str, **attrs: Any) -> str:
        bias = [] if c is None else [site.constant(site.value(c).reshape(-1))]
        if y_scale is not None:
            inputs: list[Any] = [x, a_scale, a_zero, kernel, b_scale, b_zero, y_scale, y_zero, *bias]
            return site.emit(inputs, "QLinearConv", **attrs)
        scale = (site.value(a_scale) * site.value(b_scale)).astype(np.float32)
        exact = [
            site.emit([x, a_scale, a_zero], "DequantizeLinear"),
            site.emit([kernel, b_scale, b_zero], "DequantizeLinear"),
        ]
        if c is not None:
            exact.append(site.constant((site.value(c).reshape(-1) * scale).astype(np.float32)))
        return site.emit(exact, "Conv", **attrs)

    y = contract(site, x, 1, b, lambda w: w.T if flip else w, emit=emit)
    return replace(y, elem_type=FLOAT if y_zero is None else site.elem_type_of(y_zero))


@lifts("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def quantized_arithmetic(
    site: Site, a: Fact, a_scale: Shared, a_zero: Shared | None, b: Fact, *rest: Shared | None
) -> Lifted:
    """(a, scale, zero point, b, scale, zero point, y's scale and zero point)."""
    return combine(site, [a, b], emit=lambda pair: site.emit([pair[0], a_scale, a_zero, pair[1], *rest]))


@lifts("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def quantized_unary(site: Site, x: Lifted, *operands: Shared | None) -> Lifted:
    """Integers in, integers out."""
    return x.on(site.emit([x, *operands]))


@lifts("QLinearGlobalAveragePool", domain=MICROSOFT)
def quantized_global_pool(site: Site, x: Lifted, *operands: Shared | None) -> Fact:
    """The mean of integers over the window, between DequantizeLinear and QuantizeLinear."""
    first = 1 if site.attr("channels_last", 0) else 2
    if site.is_context and first == 2 and x.is_map:  # the node stays unchanged
        site.note_context(x)
        x, _order = spatial_axes(site, as_feature_map(site, undilate(site, x)))
        return Unmapped(site.emit([x, *operands]))
    return _in_floats(site, x, operands[:2], operands[2:], lambda f: _mean(site, f, first))


@lifts("QLinearAveragePool", domain=MICROSOFT)
def quantized_pool(site: Site, x: Lifted, *operands: Shared | None) -> Fact:
    """A mean of integers, between DequantizeLinear and QuantizeLinear if it is a reduction."""
    if site.attr("channels_last", 0):
        raise Unsupported("pools integers channels-last", code="not-channels")
    if x.is_map and not site.is_context:
        return pooling(site, x, "AveragePool", *operands)
    return _in_floats(site, x, operands[:2], operands[2:], lambda f: pooling(site, f, "AveragePool"))


@lifts("QLinearSoftmax", domain=MICROSOFT)
def quantized_softmax(site: Site, x: Lifted, *operands: Shared | None) -> Fact:
    """A softmax of integers, between DequantizeLinear and QuantizeLinear."""
    coerces = int(site.attr("opset")) < 13
    return _in_floats(site, x, operands[:2], operands[2:], lambda f: softmaxed(site, f, "Softmax", coerces=coerces))


@lifts("QLinearConcat", domain=MICROSOFT)
def quantized_concat(site: Site, y_scale: Shared, y_zero: Shared, *operands: Fact) -> Lifted:
    """(y's scale and zero point, then each operand with its scale and zero point)."""
    values, scales, zeros = operands[::3], operands[1::3], operands[2::3]
    if any(isinstance(f, Lifted) for f in (*scales, *zeros)):
        raise Unsupported("its scales depend on the position", code="not-constant")

    def emit(parts: list[Lifted]) -> str:
        triples = [f for triple in zip(parts, scales, zeros) for f in triple]
        return site.emit([y_scale, y_zero, *triples], axis=1)

    return replace(concatenated(site, values, emit), elem_type=site.elem_type_of(y_zero))


def _mean(site: Site, x: Lifted, first: int) -> Fact:
    return reduced(site, x, "ReduceMean", range(first, first + x.rank - 2), keepdims=True)


def _in_floats(
    site: Site, x: Lifted, given: Sequence[Shared | None], made: Sequence[Shared | None], rule: Callable[[Lifted], Fact]
) -> Fact:
    """Apply a rule for floats between DequantizeLinear and QuantizeLinear."""
    operands: list[Operand] = [x, *given]
    y = rule(x.on(site.emit(operands, "DequantizeLinear"), FLOAT))
    if isinstance(y, Lifted):
        return y.on(site.emit([y, *made], "QuantizeLinear"), x.elem_type)
    assert isinstance(y, Unmapped)
    return Unmapped(site.emit([y, *made], "QuantizeLinear"))


@lifts("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(site: Site, a: Fact, b: Fact, scales: Fact, zeros: Fact | None = None, *rest: Fact | None) -> Lifted:
    """A·B with B in blocks of 2 to 8 bits. The weight is dequantised exactly: (q - zero)·scale."""
    if not isinstance(a, Lifted) or any(f is not None for f in rest[:1]):
        raise Unsupported("its weight depends on the image, or is reordered", code="not-constant")
    bits, block = int(site.attr("bits", 4)), int(site.attr("block_size"))
    outputs, inputs = int(site.attr("N")), int(site.attr("K"))
    blocks = -(-inputs // block)
    q = _unpack(site.value(b).reshape(outputs, blocks, -1), bits)[..., :block].astype(np.float32)
    if zeros is None:
        zero: Array = np.full((outputs, blocks), 1 << (bits - 1), np.float32)
    else:
        packed = site.value(zeros)
        zero = (
            packed.reshape(outputs, blocks)
            if packed.dtype.kind == "f"
            else _unpack(packed.reshape(outputs, -1), bits)[:, :blocks]
        )
    scale = site.value(scales).reshape(outputs, blocks)
    w = ((q - zero.astype(np.float32)[..., None]) * scale.astype(np.float32)[..., None]).reshape(outputs, -1)[
        :, :inputs
    ]
    w = w.astype(scale.dtype)
    weight = site.record_constant(site.constant(w), w)
    y = contract(site, a, a.rank - 1, weight, lambda w: w.T)
    return y if len(rest) < 2 or rest[1] is None else combine(site, [y, rest[1]], op="Add")


def _unpack(packed: Array, bits: int) -> Array:
    """Unpack integers of a few bits from bytes, the lowest bits first, along the last axis."""
    each = 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * bits
    values = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)
