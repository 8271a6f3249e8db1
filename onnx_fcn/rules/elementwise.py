"""Elementwise operators on one map, or on several operands that broadcast (see `broadcasting`)."""

from __future__ import annotations

from dataclasses import replace

import onnx

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.facts import Fact, Known
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.rules.broadcasting import combine

BOOL = onnx.TensorProto.BOOL


@lifts(
    *("Abs", "Acos", "Acosh", "Affine", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh"),
    *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "ScaledTanh", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
def unary(site: Site, x: Lifted) -> Lifted:
    """One value in, one value out: the operator stays, and applies at every position."""
    return x.on(site.emit([x]))


@lifts("Gelu", "QuickGelu", domain="com.microsoft")
def contributed_unary(site: Site, x: Lifted) -> Lifted:
    """One value in, one value out."""
    return x.on(site.emit([x]))


@lifts("IsInf", "IsNaN")
def predicate(site: Site, x: Lifted) -> Lifted:
    """One value in, one truth value out."""
    return x.on(site.emit([x]), BOOL)


@lifts("Cast")
def cast(site: Site, x: Lifted) -> Lifted:
    """Conversion to another type."""
    return x.on(site.emit([x]), site.type_attr("to"))


@lifts("CastLike")
def cast_like(site: Site, x: Fact, like: Fact) -> Fact:
    """Conversion to the type of another tensor."""
    if isinstance(x, Known) and isinstance(like, Lifted):
        value = site.value(x).astype(site.dtype(like.elem_type))
        return site.sized_output(value, at_run_time=site.emit([x], "Cast", to=like.elem_type))
    if not isinstance(x, Lifted):
        raise Unsupported("casts a per-image value to the type of a map", code="not-constant")
    if isinstance(like, Lifted):
        return x.on(site.emit([x], "Cast", to=like.elem_type), like.elem_type)
    if isinstance(like, Known):
        to = onnx.helper.np_dtype_to_tensor_dtype(site.value(like).dtype)
        return x.on(site.emit([x, like]), to)
    raise Unsupported("casts to an unknown type", code="not-constant")


@lifts("Clip")
def clip(site: Site, x: Fact, *limits: Fact | None) -> Lifted:
    """Values limited by two scalars."""
    if not isinstance(x, Lifted) or any(isinstance(f, Lifted) for f in limits):
        raise Unsupported("clips to limits that depend on the position", code="not-constant")
    return x.on(site.emit([x, *limits]))


@lifts("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Sum", "Mean", "Max", "Min", "PRelu", "BitShift")
@lifts("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
def arithmetic(site: Site, *operands: Fact) -> Lifted:
    """Operands that broadcast to one shape."""
    if not all(isinstance(f, Lifted) for f in operands):
        site.check_broadcasts()
    return combine(site, operands)


@lifts("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def comparison(site: Site, *operands: Fact) -> Lifted:
    """A truth value for each element."""
    return replace(combine(site, operands), elem_type=BOOL)


@lifts("Where")
def where(site: Site, condition: Fact, chosen: Fact, other: Fact) -> Lifted:
    """A choice for each element."""
    kinds = [f.elem_type for f in (chosen, other) if isinstance(f, Lifted)]
    made = combine(site, [condition, chosen, other])
    return replace(made, elem_type=kinds[0] if kinds else site.elem_type_of(chosen))
