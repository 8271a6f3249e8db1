"""A sum over features at every position: Σ_k x[…, k, …]·W[*s, k, o], as a convolution of the map.

The summed axis of the original tensor consists of channels of the map and of whole axes of its window. With the kept
channels before the summed ones, the shapes are

    x       (N, outer·inner, *space)
    W       (*S, K, O)                            S runs along outer; K along inner and window, in some order
    kernel  (outer·added·O, inner, *window)       one group per outer channel
    y       (N, outer·added·O, *grid)             the window is one cell

where `added` are the factors of S that x lacks. Every step below states the shapes that it produces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.facts import Known
from onnx_fcn.lifting.folding import fold_batch
from onnx_fcn.lifting.layouts import CONVOLVED, arrange, padding_refusal, unfold
from onnx_fcn.lifting.lifted import Atom, Lifted, atoms_of, dim_of, dims_of
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.weights import View, kernel

__all__ = ["contract"]


@dataclass(frozen=True)
class Factors:
    """The atoms that the axes of a weight (*S, K, O) and the channels of its map run along.

    Attributes:
        stack: the atoms of each axis of S.
        added: the atoms of S that the map lacks and the result gets.
        summed: the atoms of K.
        outputs: the atoms of O.
        outer: the kept channels.
        inner: the summed channels.
        window: the part of the window that is summed over.
    """

    stack: Sequence[tuple[Atom, ...]]
    added: Sequence[Atom]
    summed: Sequence[Atom]
    outputs: Sequence[Atom]
    outer: Sequence[Atom]
    inner: Sequence[Atom]
    window: Sequence[Atom]

    @property
    def channels(self) -> tuple[Atom, ...]:
        """The channels of the result."""
        return (*self.outer, *self.added, *self.outputs)

    @property
    def matrix(self) -> tuple[int, int]:
        """The first two dims of the kernel: outputs and inputs at one cell."""
        return Atom.product(self.channels), Atom.product(self.inner)

    def arrange_weight(self, w: Array) -> Array:
        """(*S, K, O) -> (*outer, *added, O, *inner, *window), as a view."""
        names = [*(a for atoms in self.stack for a in atoms), *self.summed, None]
        w = w.reshape(*(a.size for a in names if a is not None), w.shape[-1])  # one axis per atom, and O
        own = [a for a in (*self.outer, *self.added) if a in names]
        w = w.transpose([names.index(a) for a in (*own, None, *self.inner, *self.window)])
        lacking = tuple(k for k, atom in enumerate(self.outer) if atom not in own)
        w = np.expand_dims(w, lacking)  # kept channels that share one weight
        outer = [a.size for a in self.outer]
        return np.broadcast_to(w, (*outer, *w.shape[len(outer) :]))


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
        axis: the axis of the original tensor to sum over.
        weight: its weight.
        view: turns the weight's array into (*S, K, O); S aligns, from the right, with the axes before the last two.
        bias: (O,), added per output.
        emit: emits the convolution, `emit(x, kernel, **attributes) -> name`, if it is not a Conv of floats.

    Raises:
        Unsupported: if the weight does not fit the axis or differs between positions, if it sums over the batch, a part
            of a window or a padded one, or if kernels would be too large.
    """
    stack, outputs = _check_weight(site, x, axis, weight, view)
    axis -= x.rank  # counted from the right, since axes of S may be inserted before it
    x, stacked, added = _align_stack(x, stack)
    x, window = _sum_window(site, x, axis)
    multiplies = emit is None and x.elem_type not in CONVOLVED
    if multiplies:  # (N, C, *space) -> (N, C·window, *grid)
        x, window = unfold(site, x, window), []
    elif window and site.folds and emit is None and set(x.channels) <= set(x.layout[axis]):
        x, window = fold_batch(site, x, window), []  # (N, C, *space) -> (1, window·C, 1, N·grid)
    factors = _factors(x, axis, stacked, added, outputs, window)
    x = arrange(site, x, [*factors.outer, *factors.inner])  # (N, C, *space) -> (N, outer·inner, *space)
    sizes, strides, rates = x.kernel(window)
    # (*S, K, O) -> (outer·added·O, inner, *window)
    w = kernel(site, weight, lambda w: factors.arrange_weight(view(w)), (*factors.matrix, *sizes))
    bias = _repeat_bias(site, bias, Atom.product([*factors.outer, *added]))  # (O,) -> (outer·added·O,)
    groups = Atom.product(factors.outer)
    attrs: dict[str, Any] = {"kernel_shape": sizes, "strides": strides, "dilations": rates, "group": groups}
    if emit is not None:
        y = emit(x, w, **attrs)
    elif multiplies:
        y = _multiply(site, x, w, bias, factors.matrix)
    else:
        y = site.emit([x, w, *([bias] if bias is not None else [])], "Conv", **attrs)
    made, inputs = factors.matrix
    site.note("dense", x, sizes, inputs=inputs, outputs=made, groups=groups, weight=weight.name)
    return _result(x, axis, factors, window, y)


def _check_weight(site: Site, x: Lifted, axis: int, weight: Known, view: View) -> tuple[list[int], int]:
    """The sizes S and O of a weight (*S, K, O).

    Raises:
        Unsupported: if the weight does not fit the summed axis, or that axis contains the batch.
    """
    stub = np.broadcast_to(np.int8(0), site.weight_shape(weight))
    if view(stub).ndim < 2:
        raise Unsupported(f"its weight has the shape {dims_of(stub.shape)}, which is not a matrix", code="rank")
    if not 0 <= axis < x.rank:
        raise Unsupported(f"multiplies {x} ({x.dims}), which has no axis to sum over", code="rank")
    *stack, inputs, outputs = view(stub).shape
    if x.shape[axis] != inputs:
        given = f"{dim_of(x.shape[axis])} along axis {axis} of {x}"
        reason = f"its weight expects {dim_of(inputs)} values, but gets {given}"
        raise Unsupported(reason, code="dense-size", needs="smaller" if x.shape[axis] > inputs else "larger")
    if x.batch in x.layout[axis]:
        raise Unsupported(f"sums over the batch: axis {axis} of {x}", code="batch")
    return stack, outputs


def _align_stack(x: Lifted, stack: Sequence[int]) -> tuple[Lifted, list[tuple[Atom, ...]], list[Atom]]:
    """Align the stacked matrices of a weight (*S, K, O) with the axes of x before its last two.

    Returns the refined x, the atoms of each stacked axis, and those atoms that x lacks and the result gets.
    """
    if stack and len(stack) > x.rank - 2:
        x = replace(x, layout=((),) * (len(stack) + 2 - x.rank) + x.layout)
    stacked: list[tuple[Atom, ...]] = []
    added: list[Atom] = []
    for axis, size in enumerate(stack, x.rank - 2 - len(stack)):
        if size == 1:
            stacked.append(())
        elif not x.layout[axis]:
            atoms = atoms_of(size, "s")
            added += atoms
            stacked.append(atoms)
            x = replace(x, layout=(*x.layout[:axis], atoms, *x.layout[axis + 1 :]))
        elif x.shape[axis] == size and all(a in x.channels for a in x.layout[axis]):
            stacked.append(x.layout[axis])
        else:
            raise Unsupported(
                f"has a different weight for each part of axis {axis} of {x}, which does not consist of channels",
                code="weight-per-position",
            )
    return x, stacked, added


def _sum_window(site: Site, x: Lifted, axis: int) -> tuple[Lifted, list[int]]:
    """The axes of the map whose window is summed over. The returned x then originates from this node.

    Raises:
        Unsupported: if only a part of a window is summed over, or it is padded.
    """
    summed = x.layout[axis]
    window = [k for k, a in enumerate(x.space) if a.atoms and all(atom in summed for atom in a.atoms)]
    if any(atom in summed for k, a in enumerate(x.space) if k not in window for atom in a.atoms):
        raise Unsupported(f"sums over a part of a window: axis {axis} of {x}", code="dense-partial-window")
    if not window:
        return x, window
    if x.padding is not None:
        raise padding_refusal(site, x)
    return replace(x, origins=site.record_reduction(x, contextable=False)), window


def _factors(
    x: Lifted,
    axis: int,
    stack: Sequence[tuple[Atom, ...]],
    added: Sequence[Atom],
    outputs: int,
    window: Iterable[int],
) -> Factors:
    """The atoms that each axis of the weight runs along, for the map as it enters the convolution."""
    summed = x.layout[axis]
    return Factors(
        stack=stack,
        added=added,
        summed=summed,
        outputs=atoms_of(outputs, "o"),
        outer=[a for a in x.channels if a not in summed],
        inner=[a for a in x.channels if a in summed],
        window=[atom for k in window for atom in x.space[k].atoms],
    )


def _repeat_bias(site: Site, bias: Known | None, times: int) -> Known | None:
    """Repeat a bias (O,) for each of the groups: (times·O,)."""
    if bias is None or times == 1:
        return bias
    value = np.tile(site.value(bias), times)
    return site.record_constant(site.constant(value), value)


def _multiply(site: Site, x: Lifted, w: str, bias: Known | None, dims: tuple[int, int]) -> str:
    """A 1×1 convolution in a type that onnxruntime does not convolve: a MatMul with the channels last."""
    if x.width != dims[1]:
        raise Unsupported("multiplies groups of channels in a type that onnxruntime does not convolve", code="dtype")
    # (O, C, 1, …) -> (O, C) -> (C, O)
    matrix = site.emit([site.emit([w, np.array(dims, np.int64)], "Reshape")], "Transpose", perm=[1, 0])

    def emit(name: str) -> str:
        y = site.emit([name, matrix], "MatMul")
        return y if bias is None else site.emit([y, bias], "Add")

    return site.with_axis_last(x.map, 1, 2 + len(x.space), emit)


def _result(x: Lifted, axis: int, factors: Factors, window: Sequence[int], name: str) -> Lifted:
    """(…, K, …) -> (…, O, …): the outputs replace the summed axis, and the window is one cell."""
    layout = list(x.layout)
    layout[axis] = tuple(factors.outputs)
    space = tuple(a.contracted() if k in window else a for k, a in enumerate(x.space))
    return replace(x, map=name, channels=factors.channels, space=space, layout=tuple(layout)).canonical()
