"""Dense layers: a fully connected layer *is* a convolution.

One that contracts an axis with window atoms in it becomes a Conv whose kernel is the window, of stride `step` and
dilation `rate` (see `contraction`); afterwards the window is one cell, and a dense layer is a 1×1 Conv.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.refusals import product_of_maps
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.weights import vector
from onnx_fcn.rules.broadcasting import combine
from onnx_fcn.rules.contraction import contract
from onnx_fcn.rules.reduction import reduced


def standing_convolution(
    site: Site,
    x: Lifted,
    weight: Known,
    taps: Mapping[int, range],
    operands: Callable[[Lifted, Known | str], list[Any]],
) -> Lifted:
    """A convolution that slides along no axis, over features or flattened positions. (N, C, d…) -> (N, M, 1 | d …)

    Args:
        site: the convolution.
        x: its input.
        weight: (M, C/groups, taps…).
        taps: the taps along the axes that the kernel covers, which are summed over as the channels are; along the
            others it has one.
        operands: lists its inputs for a map and a kernel.
    """
    outputs, groups = site.weight_shape(weight)[0], int(site.attr("group", 1))
    still = [k for k in range(2, x.rank) if k not in taps]
    seen = x.reshaped([x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]])
    summed = tuple(a for k in (1, *taps) for a in seen.layout[k + 1])
    # (N, d…, groups, 1, C/groups·taps…) · (groups, C/groups·taps…, M/groups)
    seen = replace(seen, layout=(seen.layout[0], *(seen.layout[k + 1] for k in still), seen.layout[1], (), summed))
    parts = any(a not in summed for a in seen.channels)
    if parts and site.op != "Conv":
        raise Unsupported(f"has a part for each of several features of {seen}", code="not-channels")
    cuts: Any = (..., *(slice(taps[k].start, taps[k].stop) if k in taps else slice(None) for k in range(2, x.rank)))

    def view(w: Array) -> Array:
        cut: Array = w[cuts]
        return cut.reshape(groups, outputs // groups, -1).swapaxes(1, 2)

    def emit(x: Lifted, kernel: str, **attrs: Any) -> str:
        given = operands(x, kernel)
        return site.emit(given[:2] if parts else given, pads=None, auto_pad=None, **attrs)

    y = contract(site, seen, seen.rank - 1, weight, view, emit=emit)
    left = dict(zip(still, y.layout[1:]))
    layout = (y.layout[0], y.layout[-3] + y.layout[-1], *(left.get(k, ()) for k in range(2, x.rank)))
    y = replace(y, layout=layout).canonical()
    bias = operands(y, "")[2] if parts else None
    if bias is None:
        return y
    value = site.value(bias).reshape(-1, *[1] * (x.rank - 2))
    return combine(site, [y, site.record_constant(site.constant(value), value)], op="Add")


@lifts("Gemm")
def gemm(site: Site, a: Fact, b: Fact, c: Fact | None = None) -> Lifted:
    """alpha·A·B + beta·C, with either factor mapped. (N, K) -> (N, O)."""
    alpha, beta = float(site.attr("alpha", 1.0)), float(site.attr("beta", 1.0))
    trans_a, trans_b = site.flag("transA"), site.flag("transB")
    if isinstance(a, Lifted) and isinstance(b, Known):
        x, axis, weight, flip = a.transposed([1, 0]) if trans_a else a, 1, b, trans_b
    elif isinstance(b, Lifted) and isinstance(a, Known):  # W·X: the weight on the left
        x, axis, weight, flip = b.transposed([1, 0]) if trans_b else b, 0, a, not trans_a
    else:
        raise both_mapped(a, b)
    if x.rank != 2:
        raise Unsupported(f"multiplies {x}, which is not a matrix", code="rank")

    def view(w: Array) -> Array:
        w = w.T if flip else w
        return w if alpha == 1.0 or w.dtype == np.int8 else (w * np.asarray(alpha, w.dtype)).astype(w.dtype)

    if alpha != 1.0 and site.producer(weight) is not None:  # possibly quantised: scale the answers, not the weight
        y = contract(site, x, axis, weight, lambda w: w.T if flip else w)
        y = y.on(site.emit([y, site.scalar(y, alpha)], "Mul"))
        return added(site, y, c, beta)
    outputs = site.weight_shape(weight)[0 if flip else 1]
    if axis == 1 and isinstance(c, Known) and _is_row(site.weight_shape(c), outputs):
        return contract(site, x, axis, weight, view, vector(site, c, outputs, beta))
    return added(site, contract(site, x, axis, weight, view), c, beta)


def _is_row(shape: tuple[int, ...], outputs: int) -> bool:
    return shape in ((), (1,), (outputs,), (1, 1), (1, outputs)) or (len(shape) == 2 and shape[1] == outputs)


def added(site: Site, y: Lifted, c: Fact | None, beta: float) -> Lifted:
    """+ beta·C, broadcast like an Add."""
    if c is None or beta == 0.0:
        return y
    if beta != 1.0:
        if isinstance(c, Known):
            value = site.value(c)
            name = site.constant((value * np.asarray(beta, value.dtype)).astype(value.dtype), source=c.name)
            c = site.record_constant(name, value * np.asarray(beta, value.dtype))
        elif isinstance(c, Lifted):
            c = c.on(site.emit([c, site.scalar(c, beta)], "Mul"))
        else:
            c = Unmapped(site.emit([c, site.scalar(y, beta)], "Mul"))
    return combine(site, [y, c], op="Add")


@lifts("MatMul")
def matmul(site: Site, a: Fact, b: Fact) -> Lifted:
    """numpy.matmul with either factor mapped. (…, M, K)·(K, O) -> (…, M, O)."""
    if isinstance(a, Lifted) and isinstance(b, Known):
        if len(site.weight_shape(b)) == 1:
            y = contract(site, a, a.rank - 1, b, lambda w: w[:, None])
            return replace(y, layout=y.layout[:-1])
        return contract(site, a, a.rank - 1, b, lambda w: w)
    if isinstance(b, Lifted) and isinstance(a, Known):
        if len(site.weight_shape(a)) == 1:
            y = contract(site, b, max(b.rank - 2, 0), a, lambda w: w[:, None])
            return replace(y, layout=tuple(g for k, g in enumerate(y.layout) if k != max(b.rank - 2, 0)))
        return contract(site, b, max(b.rank - 2, 0), a, lambda w: w.swapaxes(-1, -2))
    raise both_mapped(a, b)


def both_mapped(a: Fact, b: Fact) -> Unsupported:
    """The refusal of a product of two values that both depend on the image."""
    live = any(isinstance(f, Lifted) and (f.is_live or f.unfolded is not None) for f in (a, b))
    return product_of_maps() if live else product_of_maps("two answers of the network")


@dataclass(frozen=True)
class Equation:
    """An equation of one mapped operand and at most one weight, as the letters of their axes and of the result's."""

    mapped: str
    weight: str
    result: str

    @property
    def alone(self) -> list[str]:
        """Axes of the map that are summed over by themselves."""
        return [t for t in self.mapped if t not in self.weight + self.result]

    @property
    def kept(self) -> list[str]:
        """Axes of the map that the weight does not have."""
        return [t for t in self.mapped if t not in self.weight]

    @property
    def shared(self) -> list[str]:
        """Axes along which each part of the map has a weight of its own."""
        return [t for t in self.mapped if t in self.weight and t in self.result]

    @property
    def summed(self) -> list[str]:
        """Axes along which products are summed."""
        return [t for t in self.mapped if t in self.weight and t not in self.result]

    @property
    def new(self) -> list[str]:
        """Axes of the weight that the map does not have."""
        return [t for t in self.weight if t not in self.mapped]


@lifts("Einsum")
def einsum(site: Site, *operands: Fact) -> Fact:
    """A sum of products with one mapped operand and at most one constant: a dense layer with its axes in any order.

    Raises:
        Unsupported: it multiplies maps, takes a diagonal, or sums over the weight alone.
    """
    x, weight = _factors(site, operands)
    equation = _equation(site, operands, x, weight)
    if equation.alone:
        axes = [equation.mapped.index(t) for t in equation.alone]
        left = replace(equation, mapped="".join(t for t in equation.mapped if t not in equation.alone))
        fact = reduced(site, x, "ReduceSum", axes, keepdims=False)
        if not isinstance(fact, Lifted):  # context
            if weight is None:
                return Unmapped(site.emit([fact], equation=f"{left.mapped}->{left.result}"))
            return Unmapped(site.emit([fact, weight], equation=f"{left.mapped},{left.weight}->{left.result}"))
        x, equation = fact, left
    if weight is None:
        return _ordered(site, x, equation.mapped, equation.result)
    if not equation.summed:
        return _multiplied(site, x, weight, equation)
    return _contracted(site, x, weight, equation)


def _factors(site: Site, operands: Sequence[Fact]) -> tuple[Lifted, Known | None]:
    """The mapped operand and the weight."""
    x, *more = sorted(operands, key=lambda f: not isinstance(f, Lifted))
    assert isinstance(x, Lifted)
    weight = next((f for f in more if isinstance(f, Known)), None)
    if len(more) > 1 or (more and weight is None):
        raise both_mapped(x, more[0]) if weight is None else _no_dense_layer(site, "multiplies more than two factors")
    return x, weight


def _equation(site: Site, operands: Sequence[Fact], x: Lifted, weight: Known | None) -> Equation:
    """The node's equation, which has to be a dense layer's."""
    terms, result = _letters(site, [f for f in operands if isinstance(f, Lifted | Known)])
    if any(len(set(t)) != len(t) for t in (*terms, result)):
        raise _no_dense_layer(site, "takes a diagonal")
    mapped = terms[operands.index(x)]
    others = terms[operands.index(weight)] if weight is not None else ""
    if not set(others) <= set(mapped + result):
        raise _no_dense_layer(site, "sums over its weight alone")
    return Equation(mapped, others, result)


def _multiplied(site: Site, x: Lifted, weight: Known, equation: Equation) -> Lifted:
    """An elementwise product: (mapped…, new | 1) · (mapped… | 1, new) -> (mapped…, new)."""
    letters = [*equation.mapped, *equation.new]
    value = site.value(weight).transpose([equation.weight.index(t) for t in letters if t in equation.weight])
    value = np.expand_dims(value, tuple(k for k, t in enumerate(letters) if t not in equation.weight))
    factor = site.record_constant(site.constant(value, source=weight.name), value)
    x = x.unsqueezed(range(len(equation.mapped), len(letters)))
    return _ordered(site, combine(site, [x, factor], op="Mul"), letters, equation.result)


def _contracted(site: Site, x: Lifted, weight: Known, equation: Equation) -> Lifted:
    """A dense layer: (kept…, shared…, 1, summed) · (shared…, summed, new) -> (kept…, shared…, 1, new)."""
    kept, shared, summed, new = equation.kept, equation.shared, equation.summed, equation.new
    stack = len(kept) + len(shared)
    x = x.transposed([equation.mapped.index(t) for t in (*kept, *shared, *summed)])
    # (kept…, shared…, summed…) -> (kept…, shared…, 1, summed)
    x = replace(x, layout=(*x.layout[:stack], (), tuple(atom for group in x.layout[stack:] for atom in group)))
    order = [equation.weight.index(t) for t in (*shared, *summed, *new)]
    first, second = len(shared), len(shared) + len(summed)

    def view(w: Array) -> Array:
        """The weight -> (shared…, summed, new)."""
        w = w.transpose(order)
        return w.reshape(*w.shape[:first], math.prod(w.shape[first:second]), math.prod(w.shape[second:]))

    y = contract(site, x, x.rank - 1, weight, view)
    # (kept…, shared…, 1, new) -> (kept…, shared…, new…)
    sizes = dict(zip(equation.weight, site.weight_shape(weight)))
    y = y.reshaped([*y.shape[:stack], *(sizes[t] for t in new)])
    return _ordered(site, y, [*kept, *shared, *new], equation.result)


def _no_dense_layer(site: Site, why: str) -> Unsupported:
    return Unsupported(f"the equation '{site.attr('equation')}' {why}, so it is not a dense layer", code="einsum")


def _letters(site: Site, operands: Sequence[Lifted | Known]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with every ellipsis spelled out."""
    equation = str(site.attr("equation")).replace(" ", "")
    left, arrow, result = equation.partition("->")
    ranks = [f.rank if isinstance(f, Lifted) else len(site.weight_shape(f)) for f in operands]
    dots = [rank - len(t.replace("...", "")) if "..." in t else 0 for rank, t in zip(ranks, left.split(","))]
    spare = [c for c in string.ascii_letters if c not in equation][: max(dots)]
    terms = [t.replace("...", "".join(spare[max(dots) - n :])) for t, n in zip(left.split(","), dots)]
    if not arrow:
        every = "".join(terms)
        result = "..." + "".join(sorted(t for t in set(every) - set(spare) if every.count(t) == 1))
    return terms, result.replace("...", "".join(spare))


def _ordered(site: Site, x: Lifted, letters: Sequence[str], result: str) -> Lifted:
    if sorted(letters) != sorted(result):
        raise _no_dense_layer(site, "repeats an axis")
    return x.transposed([list(letters).index(t) for t in result])


@lifts("FusedGemm", domain="com.microsoft")
def fused_gemm(site: Site, a: Fact, b: Fact, c: Fact | None = None) -> Lifted:
    """A Gemm with its activation, as onnxruntime's optimiser writes it."""
    y = gemm(site, a, b, c)
    attrs = {
        k.removeprefix("activation_"): site.attr(k) for k in ("activation_alpha", "activation_beta", "activation_gamma")
    }
    return y.on(site.emit([y], str(site.attr("activation")), **attrs))


@lifts("FusedMatMul", domain="com.microsoft")
def fused_matmul(site: Site, a: Fact, b: Fact) -> Lifted:
    """alpha·A·B, either factor transposed."""
    if (
        not isinstance(a, Lifted)
        or not isinstance(b, Known)
        or site.attr("transBatchA", 0)
        or site.attr("transBatchB", 0)
    ):
        raise both_mapped(a, b)
    flip, alpha = site.flag("transB"), float(site.attr("alpha", 1.0))
    y = contract(
        site, a, a.rank - 2 if site.flag("transA") else a.rank - 1, b, lambda w: w.swapaxes(-1, -2) if flip else w
    )
    if site.flag("transA"):
        y = y.transposed([*range(y.rank - 2), y.rank - 1, y.rank - 2])
    return y if alpha == 1.0 else y.on(site.emit([y, site.scalar(y, alpha)], "Mul"))


@lifts("BiasGelu", "FastGelu", domain="com.microsoft")
def bias_gelu(site: Site, x: Lifted, bias: Fact | None = None) -> Lifted:
    """Gelu(x + bias)."""
    y = x if bias is None else combine(site, [x, bias], op="Add")
    return y.on(site.emit([y], "FastGelu" if site.op == "FastGelu" else "Gelu", domain="com.microsoft"))
