"""Dense layers: a fully connected layer *is* a convolution.

One that contracts an axis with window atoms in it becomes a Conv whose kernel is the window, of stride `step` and
dilation `rate`; afterwards the window is one cell, and a dense layer is a 1×1 Conv.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.folding import batch_folded
from onnx_fcn.lifting.layouts import CONVOLVED, arrange, padding_refused, unfold
from onnx_fcn.lifting.lifted import Atom, Lifted, atoms_of, counted, dims_of
from onnx_fcn.lifting.refusals import product_of_maps
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.weights import View, kernel, vector
from onnx_fcn.rules.elementwise import combine
from onnx_fcn.rules.reduction import reduced


def contract(
    site: Site,
    x: Lifted,
    axis: int,
    weight: Known,
    view: View,
    bias: Known | None = None,
    emit: Callable[..., str] | None = None,
) -> Lifted:
    """Σ_k x[…, k, …]·W[…, k, o]: the axis becomes the outputs.

    Args:
        site: the dense layer.
        x: its input.
        axis: the axis of the original tensor that is summed over.
        weight: its weight.
        view: makes the weight's array (*S, K, O); S aligns, from the right, with the axes before the last two.
        bias: (O,), added per output.
        emit: emits the convolution, `emit(x, kernel, **attributes) -> name`, where it is no Conv of floats.

    Raises:
        Unsupported: it contracts the batch, or a part of an axis of the image.
    """
    stub = np.broadcast_to(np.int8(0), site.weight_shape(weight))
    if view(stub).ndim < 2:
        raise Unsupported(f"its weight has the shape {dims_of(stub.shape)}, which is not a matrix", code="rank")
    if not 0 <= axis < x.rank:
        raise Unsupported(f"multiplies {x} ({x.dims}), which has no axis to sum over", code="rank")
    *stack, inputs, outputs = view(stub).shape
    if x.shape[axis] != inputs:
        given = f"{counted(x.shape[axis])} along axis {axis} of {x}"
        raise Unsupported(f"its weight takes {counted(inputs)} values, and it gets {given}", code="dense-size")
    if x.batch in x.layout[axis]:
        raise Unsupported(f"sums over the batch: axis {axis} of {x}", code="batch")
    axis -= x.rank
    if stack and len(stack) > x.rank - 2:
        x = replace(x, layout=((),) * (len(stack) + 2 - x.rank) + x.layout)
    x, stacked, added = _stack(x, stack)
    group = x.layout[axis]
    whole = [k for k, a in enumerate(x.space) if a.atoms and all(atom in group for atom in a.atoms)]
    for k, a in enumerate(x.space):
        if k not in whole and any(atom in group for atom in a.atoms):
            raise Unsupported(f"sums over a part of a window: axis {axis} of {x}", code="dense-partial-window")
    if x.padding is not None and whole:
        raise padding_refused(site, x)
    multiplies = emit is None and x.elem_type not in CONVOLVED
    if multiplies:
        x, whole = unfold(site, x, whole), []
    origins = site.reduces(x, contextable=False) if whole else x.origins
    if whole and site.folds and emit is None and all(a in group for a in x.channels):
        x, whole = batch_folded(site, x, whole), []
    inner = [a for a in x.channels if a in group]
    outer = [a for a in x.channels if a not in group]
    x = arrange(site, x, [*outer, *inner])
    new = atoms_of(outputs, "o")
    order = [*inner, *(atom for k in whole for atom in x.space[k].atoms)]

    def laid(w: Array) -> Array:
        """(*S, K, O) -> (*outer, *added, O, *inner, *window)."""
        w = view(w)
        w = w.reshape(*(a.size for atoms in stacked for a in atoms), *(a.size for a in group), outputs)
        names = [*(a for atoms in stacked for a in atoms), *group, None]
        have = [a for a in (*outer, *added) if a in names]
        w = w.transpose([names.index(a) for a in (*have, None, *order)])
        for k, atom in enumerate(outer):
            if atom not in have:
                w = np.expand_dims(w, k)
        sizes = [a.size for a in outer]
        return np.broadcast_to(w, (*sizes, *w.shape[len(sizes) :]))

    groups, channels = Atom.product(outer), Atom.product([*outer, *added]) * outputs
    window, strides, rates = x.kernel(whole)
    w = kernel(site, weight, laid, (channels, Atom.product(inner), *window))
    if bias is not None and channels != outputs:
        repeated = np.tile(site.value(bias), channels // outputs)
        bias = site.stated(site.constant(repeated), repeated)
    attrs: dict[str, Any] = {"kernel_shape": window, "strides": strides, "dilations": rates, "group": groups}
    if emit is not None:
        y = emit(x, w, **attrs)
    elif multiplies:
        y = _multiplied(site, x, w, bias, (channels, Atom.product(inner)))
    else:
        y = site.emit([x, w, *([bias] if bias is not None else [])], "Conv", **attrs)
    site.note("dense", x, window, inputs=Atom.product(inner), outputs=channels, groups=groups, weight=weight.name)
    layout = list(x.layout)
    layout[axis] = new
    space = tuple(a.contracted() if k in whole else a for k, a in enumerate(x.space))
    return replace(
        x, map=y, channels=(*outer, *added, *new), space=space, layout=tuple(layout), origins=origins
    ).canonical()


def _multiplied(site: Site, x: Lifted, w: str, bias: Known | None, dims: tuple[int, int]) -> str:
    """A 1×1 convolution of a type that onnxruntime does not convolve: the channels go last, and are multiplied."""
    if x.width != dims[1]:
        raise Unsupported("multiplies groups of channels in a type that onnxruntime does not convolve", code="dtype")
    matrix = site.emit([site.emit([w, np.array(dims, np.int64)], "Reshape")], "Transpose", perm=[1, 0])

    def emit(name: str) -> str:
        y = site.emit([name, matrix], "MatMul")
        return y if bias is None else site.emit([y, bias], "Add")

    return site.last(x.map, 1, 2 + len(x.space), emit)


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
    return combine(site, [y, site.stated(site.constant(value), value)], op="Add")


def _stack(x: Lifted, stack: Sequence[int]) -> tuple[Lifted, list[tuple[Atom, ...]], list[Atom]]:
    """Align the stacked matrices of a weight (*S, K, O) with the axes of x before its last two.

    Returns x refined, the atoms of each stacked axis, and those of them that x does not have and the result gets.
    """
    stacked: list[tuple[Atom, ...]] = []
    added: list[Atom] = []
    for k, size in enumerate(stack):
        axis = x.rank - 2 - len(stack) + k
        if size == 1:
            stacked.append(())
        elif not x.layout[axis]:
            atoms = atoms_of(size, "s")
            added += atoms
            stacked.append(atoms)
            layout = list(x.layout)
            layout[axis] = atoms
            x = replace(x, layout=tuple(layout))
        elif x.shape[axis] == size and all(a in x.channels for a in x.layout[axis]):
            stacked.append(x.layout[axis])
        else:
            raise Unsupported(
                f"has another weight for each part of axis {axis} of {x}, which is not channels",
                code="weight-per-position",
            )
    return x, stacked, added


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
            c = site.stated(name, value * np.asarray(beta, value.dtype))
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


@lifts("Einsum")
def einsum(site: Site, *operands: Fact) -> Fact:
    """A sum of products with one mapped operand and at most one constant: a dense layer with its axes in any order.

    Raises:
        Unsupported: it multiplies maps, takes a diagonal, or sums over the weight alone.
    """
    x, *more = sorted(operands, key=lambda f: not isinstance(f, Lifted))
    assert isinstance(x, Lifted)
    weight = next((f for f in more if isinstance(f, Known)), None)
    if len(more) > 1 or (more and weight is None):
        raise both_mapped(x, more[0]) if weight is None else _no_dense_layer(site, "multiplies more than two factors")
    terms, result = _letters(site, [f for f in operands if isinstance(f, Lifted | Known)])
    if any(len(set(t)) != len(t) for t in (*terms, result)):
        raise _no_dense_layer(site, "takes a diagonal")
    letters = terms[operands.index(x)]
    others = terms[operands.index(weight)] if weight is not None else ""
    if not set(others) <= set(letters + result):
        raise _no_dense_layer(site, "sums over its weight alone")
    alone = [k for k, t in enumerate(letters) if t not in others + result]
    if alone:
        reduced_map = reduced(site, x, "ReduceSum", alone, keepdims=False)
        letters = "".join(t for k, t in enumerate(letters) if k not in alone)
        if not isinstance(reduced_map, Lifted):  # context
            equation = ",".join([letters, others][: 1 + len(more)]) + "->" + result
            return Unmapped(site.emit([reduced_map, *more], equation=equation))
        x = reduced_map
    if weight is None:
        return _ordered(site, x, letters, result)
    shared = [t for t in letters if t in others and t in result]
    summed = [t for t in letters if t in others and t not in result]
    new = [t for t in others if t not in letters]
    kept = [t for t in letters if t not in others]
    if not summed:  # an elementwise product
        every = [*letters, *new]
        value = site.value(weight).transpose([others.index(t) for t in every if t in others])
        value = np.expand_dims(value, tuple(k for k, t in enumerate(every) if t not in others))
        factor = site.stated(site.constant(value, source=weight.name), value)
        y = combine(site, [x.unsqueezed(range(len(letters), len(every))), factor], op="Mul")
        return _ordered(site, y, every, result)
    # (kept…, shared…, 1, summed) · (shared…, summed, new) -> (kept…, shared…, 1, new)
    x = x.transposed([letters.index(t) for t in (*kept, *shared, *summed)])
    cut = len(kept) + len(shared)
    x = replace(x, layout=(*x.layout[:cut], (), tuple(atom for group in x.layout[cut:] for atom in group)))
    order = [others.index(t) for t in (*shared, *summed, *new)]

    def view(w: Array) -> Array:
        w = w.transpose(order)
        stack, rest = w.shape[: len(shared)], w.shape[len(shared) :]
        inputs, outputs = (int(np.prod(rest[k])) for k in (slice(0, len(summed)), slice(len(summed), None)))
        return w.reshape(*stack, inputs, outputs)

    y = contract(site, x, x.rank - 1, weight, view)
    sizes = dict(zip(others, site.weight_shape(weight)))
    y = y.reshaped([*y.shape[:cut], *(sizes[t] for t in new)])
    return _ordered(site, y, [*kept, *shared, *new], result)


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
