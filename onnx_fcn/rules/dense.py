"""Dense layers: a fully connected layer *is* a convolution.

A dense layer that contracts an axis with window atoms becomes a Conv whose kernel is the window, with stride `step` and
dilation `rate` (see `contraction`). After it the window is one cell, and further dense layers are 1×1 Convs.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.bounds import UNFOLD_LIMIT
from onnx_fcn.lifting.facts import Fact, Known, Shared, Unmapped
from onnx_fcn.lifting.layouts import source_of
from onnx_fcn.lifting.lifted import Atom, Lifted
from onnx_fcn.lifting.refusals import RUN_THE_REST, product_of_maps
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
    operands: Callable[[Lifted, Shared | str], list[Any]],
) -> Lifted:
    """A convolution over features or flattened positions that does not slide. (N, C, d…) -> (N, M, 1 | d …)

    Args:
        site: the convolution.
        x: its input.
        weight: (M, C/groups, taps…).
        taps: the taps along the axes that the kernel covers, which are summed over like the channels; along the other
            axes the kernel has one tap.
        operands: lists its inputs for a map and a kernel.

    Raises:
        Unsupported: if it does not fit a dense layer.
    """
    outputs, groups = site.weight_shape(weight)[0], int(site.attr("group", 1))
    still = [k for k in range(2, x.rank) if k not in taps]
    seen = x.reshaped([x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]])
    summed = tuple(a for k in (1, *taps) for a in seen.layout[k + 1])
    # (N, d…, groups, 1, C/groups·taps…) · (groups, C/groups·taps…, M/groups)
    seen = replace(seen, layout=(seen.layout[0], *(seen.layout[k + 1] for k in still), seen.layout[1], (), summed))
    parts = any(a not in summed for a in seen.channels)
    if parts and site.op != "Conv":
        raise Unsupported(f"computes several features of {seen} separately", code="not-channels")
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
    """alpha·A·B + beta·C, where either factor is mapped. (N, K) -> (N, O)."""
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

    if alpha != 1.0 and site.producer(weight) is not None:  # it may be quantised: scale the answers, not the weight
        y = contract(site, x, axis, weight, lambda w: w.T if flip else w)
        y = y.on(site.emit([y, site.scalar(y, alpha)], "Mul"))
        return add_scaled(site, y, c, beta)
    outputs = site.weight_shape(weight)[0 if flip else 1]
    if axis == 1 and isinstance(c, Known) and _is_row(site.weight_shape(c), outputs):
        return contract(site, x, axis, weight, view, vector(site, c, outputs, beta))
    return add_scaled(site, contract(site, x, axis, weight, view), c, beta)


def _is_row(shape: tuple[int, ...], outputs: int) -> bool:
    return shape in ((), (1,), (outputs,), (1, 1), (1, outputs)) or (len(shape) == 2 and shape[1] == outputs)


def add_scaled(site: Site, y: Lifted, c: Fact | None, beta: float) -> Lifted:
    """Add beta·C to y, broadcast like an Add."""
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
def matmul(site: Site, a: Fact, b: Fact) -> Fact:
    """numpy.matmul, where either factor is mapped, or both in a sum over positions. (…, M, K)·(K, O) -> (…, M, O)."""
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
    if isinstance(a, Lifted) and isinstance(b, Lifted) and min(a.rank, b.rank) >= 2:
        rank = max(a.rank, b.rank)
        a, b = (f.unsqueezed(range(rank - f.rank)) for f in (a, b))
        # (…, M, K, 1) · (…, 1, K, O) -> (…, M, O)
        return sum_of_products(site, a.unsqueezed([rank]), b.unsqueezed([rank - 2]), [rank - 1])
    raise both_mapped(a, b)


def sum_of_products(site: Site, a: Lifted, b: Lifted, axes: Sequence[int]) -> Fact:
    """Σ a·b over some axes, of factors that broadcast: features at each position, or a map pooled by weights.

    Raises:
        Unsupported: if positions meet others, as in attention and bilinear pooling, or the products would be too many.
    """
    if not is_at_each_position(a, b, axes):
        return weighted_sum(site, a, b, axes)
    width = math.prod(
        max(Atom.product(t for t in f.layout[k] if t in f.channels) for f in (a, b)) for k in range(a.rank)
    )
    if width > UNFOLD_LIMIT:
        raise Unsupported(
            f"multiplies {width} pairs of features at each position (at most {UNFOLD_LIMIT})",
            code="too-many-products",
            hint=RUN_THE_REST,
        )
    return reduced(site, combine(site, [a, b], op="Mul"), "ReduceSum", axes, keepdims=False)


def is_at_each_position(a: Lifted, b: Lifted, axes: Sequence[int]) -> bool:
    """Are these axes features, and do two live factors have the same positions of the window on the others?

    Then no position meets another: what is computed at each is a product of features, and its sum.
    """
    first, second = ([_positions(f, k) for k in range(f.rank)] for f in (a, b))
    places = list(itertools.chain(*first))
    is_apart = first == second and len(places) == len(set(places)) and not any(first[k] for k in axes)
    return is_apart and a.is_live and a.unfolded is None and b.unfolded is None


def _positions(x: Lifted, axis: int) -> list[int]:
    """The axes of the image whose positions an axis of the original tensor consists of, outermost first."""
    places = (x.space[k - 2].image for atom in x.layout[axis] if (k := x.place(atom)) >= 2)
    return [image for image in places if image is not None]


def weighted_sum(site: Site, a: Lifted, b: Lifted, axes: Sequence[int]) -> Fact:
    """Σ a·b over axes that contain all positions, of factors that broadcast: a map, pooled by weights from the image.

    Raises:
        Unsupported: if positions are left, as in attention, or each factor has axes of its own, as in bilinear pooling.
    """
    live = [f for f in (a, b) if f.is_live]
    left = [(bool(g), bool(h)) for k, (g, h) in enumerate(zip(a.layout, b.layout)) if k not in axes]
    if not live or not all(f.covers_positions(axes) for f in live) or {(True, False), (False, True)} <= {*left}:
        raise both_mapped(a, b)
    return reduced(site, combine(site, [a, b], op="Mul"), "ReduceSum", axes, keepdims=False)


def both_mapped(a: Fact, b: Fact) -> Unsupported:
    """The refusal of a product of two values that both depend on the image."""
    live = any(isinstance(f, Lifted) and (f.is_live or f.unfolded is not None) for f in (a, b))
    return product_of_maps() if live else product_of_maps("two answers of the network")


@dataclass(frozen=True)
class Equation:
    """An equation of one mapped operand and at most one weight: the letters of their axes and of the result."""

    mapped: str
    weight: str
    result: str

    @property
    def alone(self) -> list[str]:
        """Axes of the map that are summed over and that the weight lacks."""
        return [t for t in self.mapped if t not in self.weight + self.result]

    @property
    def kept(self) -> list[str]:
        """Axes of the map that the weight lacks."""
        return [t for t in self.mapped if t not in self.weight]

    @property
    def shared(self) -> list[str]:
        """Axes along which each part of the map has its own weight."""
        return [t for t in self.mapped if t in self.weight and t in self.result]

    @property
    def summed(self) -> list[str]:
        """Axes along which products are summed."""
        return [t for t in self.mapped if t in self.weight and t not in self.result]

    @property
    def new(self) -> list[str]:
        """Axes of the weight that the map lacks."""
        return [t for t in self.weight if t not in self.mapped]


@lifts("Einsum")
def einsum(site: Site, *operands: Fact) -> Fact:
    """A sum of products of one mapped operand and at most one constant: a dense layer with its axes in any order.

    Two mapped operands may meet at each position, or be summed over all positions. A map may also be multiplied by a
    value that is the same for all positions, such as a gate.

    Raises:
        Unsupported: if it multiplies other maps, takes a diagonal, or sums over the weight alone.
    """
    if len(operands) == 2 and all(isinstance(f, Lifted) for f in operands):
        return _product_of_maps(site, [f for f in operands if isinstance(f, Lifted)])
    if len(operands) == 2 and any(isinstance(f, Unmapped) for f in operands):
        return _gated(site, operands)
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
        return _reorder(site, x, equation.mapped, equation.result)
    if not equation.summed:
        return _multiply(site, x, weight, equation)
    return _contract(site, x, weight, equation)


def _gated(site: Site, operands: Sequence[Fact]) -> Fact:
    """A sum of products of a map and a value that is the same for all positions: (…, own) · (own), summed over letters.

    The value stays as it is: the letters of the map are brought to the order in which it broadcasts.

    Raises:
        Unsupported: if the value has an axis where the map has positions.
    """
    x, gate = sorted(operands, key=lambda f: not isinstance(f, Lifted))
    assert isinstance(x, Lifted)
    assert isinstance(gate, Unmapped)
    sizes = source_of(site, gate)[1]
    terms, result = letters_of(site, [x.rank if f is x else len(sizes) for f in operands])
    _check_letters(site, terms, result)
    mapped, own = (terms[operands.index(f)] for f in (x, gate))
    if any(size > 1 and t in mapped and _positions(x, mapped.index(t)) for t, size in zip(own, sizes)):
        raise both_mapped(x, gate)
    letters = "".join(t for t in mapped if t not in own) + own
    x = x.transposed([mapped.index(t) for t in letters if t in mapped])
    x = x.unsqueezed([k for k, t in enumerate(letters) if t not in mapped])
    summed = "".join(t for t in letters if t not in result)
    y = _reorder(site, combine(site, [x, gate], op="Mul"), letters, result + summed)
    return reduced(site, y, "ReduceSum", range(len(result), y.rank), keepdims=False) if summed else y


def _product_of_maps(site: Site, factors: Sequence[Lifted]) -> Fact:
    """A sum of products of two maps, (kept…, summed…) each, with axes of size 1 for letters that one of them lacks."""
    terms, result = _letters(site, factors)
    _check_letters(site, terms, result)
    letters = result + "".join(dict.fromkeys(t for t in "".join(terms) if t not in result))
    a, b = (
        x.transposed([term.index(t) for t in letters if t in term]).unsqueezed(
            [k for k, t in enumerate(letters) if t not in term]
        )
        for x, term in zip(factors, terms)
    )
    return sum_of_products(site, a, b, range(len(result), len(letters)))


def _check_letters(site: Site, terms: Sequence[str], result: str) -> None:
    """Raises Unsupported if an equation takes a diagonal."""
    if any(len(set(t)) != len(t) for t in (*terms, result)):
        raise _not_dense(site, "takes a diagonal")


def _factors(site: Site, operands: Sequence[Fact]) -> tuple[Lifted, Known | None]:
    """The mapped operand, and the weight if there is one."""
    x, *more = sorted(operands, key=lambda f: not isinstance(f, Lifted))
    assert isinstance(x, Lifted)
    weight = next((f for f in more if isinstance(f, Known)), None)
    if len(more) > 1 or (more and weight is None):
        raise both_mapped(x, more[0]) if weight is None else _not_dense(site, "multiplies more than two factors")
    return x, weight


def _equation(site: Site, operands: Sequence[Fact], x: Lifted, weight: Known | None) -> Equation:
    """The node's equation.

    Raises:
        Unsupported: if it is not the equation of a dense layer.
    """
    terms, result = _letters(site, [f for f in operands if isinstance(f, Lifted | Known)])
    _check_letters(site, terms, result)
    mapped = terms[operands.index(x)]
    others = terms[operands.index(weight)] if weight is not None else ""
    if not set(others) <= set(mapped + result):
        raise _not_dense(site, "sums over its weight alone")
    return Equation(mapped, others, result)


def _multiply(site: Site, x: Lifted, weight: Known, equation: Equation) -> Lifted:
    """An elementwise product: (mapped…, new | 1) · (mapped… | 1, new) -> (mapped…, new)."""
    letters = [*equation.mapped, *equation.new]
    value = site.value(weight).transpose([equation.weight.index(t) for t in letters if t in equation.weight])
    value = np.expand_dims(value, tuple(k for k, t in enumerate(letters) if t not in equation.weight))
    factor = site.record_constant(site.constant(value, source=weight.name), value)
    x = x.unsqueezed(range(len(equation.mapped), len(letters)))
    return _reorder(site, combine(site, [x, factor], op="Mul"), letters, equation.result)


def _contract(site: Site, x: Lifted, weight: Known, equation: Equation) -> Lifted:
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
    return _reorder(site, y, [*kept, *shared, *new], equation.result)


def _not_dense(site: Site, why: str) -> Unsupported:
    return Unsupported(f"the equation '{site.attr('equation')}' {why}, so it is not a dense layer", code="einsum")


def _letters(site: Site, operands: Sequence[Lifted | Known]) -> tuple[list[str], str]:
    return letters_of(site, [f.rank if isinstance(f, Lifted) else len(site.weight_shape(f)) for f in operands])


def letters_of(site: Site, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with every ellipsis expanded."""
    equation = str(site.attr("equation")).replace(" ", "")
    left, arrow, result = equation.partition("->")
    dots = [rank - len(t.replace("...", "")) if "..." in t else 0 for rank, t in zip(ranks, left.split(","))]
    spare = [c for c in string.ascii_letters if c not in equation][: max(dots)]
    terms = [t.replace("...", "".join(spare[max(dots) - n :])) for t, n in zip(left.split(","), dots)]
    if not arrow:
        every = "".join(terms)
        result = "..." + "".join(sorted(t for t in set(every) - set(spare) if every.count(t) == 1))
    return terms, result.replace("...", "".join(spare))


def _reorder(site: Site, x: Lifted, letters: Sequence[str], result: str) -> Lifted:
    if sorted(letters) != sorted(result):
        raise _not_dense(site, "repeats an axis")
    return x.transposed([list(letters).index(t) for t in result])


@lifts("FusedGemm", domain="com.microsoft")
def fused_gemm(site: Site, a: Fact, b: Fact, c: Fact | None = None) -> Lifted:
    """A Gemm fused with its activation by onnxruntime's optimiser."""
    y = gemm(site, a, b, c)
    attrs = {
        k.removeprefix("activation_"): site.attr(k) for k in ("activation_alpha", "activation_beta", "activation_gamma")
    }
    return y.on(site.emit([y], str(site.attr("activation")), **attrs))


@lifts("FusedMatMul", domain="com.microsoft")
def fused_matmul(site: Site, a: Fact, b: Fact) -> Lifted:
    """alpha·A·B, where either factor may be transposed."""
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
