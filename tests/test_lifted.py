"""The layout algebra alone: regrouping a fact says the same as numpy does to the original tensor.

A physical map, here an array, stands for the original tensor at every position. `original` reads one position's tensor
off it as the docstring of `lifted.py` says; so whatever Reshape, Transpose, Squeeze and Unsqueeze make of the fact,
reading it must give what numpy makes of the tensor.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnx_fcn.errors import Unsupported
from onnx_fcn.geometry import Field
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, atoms_of, lcm

FLOAT = onnx.TensorProto.FLOAT
BATCH = 5


def fact(channels: int = 6, height: Axis | None = None, width: Axis | None = None) -> Lifted:
    """A feature map n c h w whose windows are 4 by 3 cells."""
    batch, depth = Atom(BATCH, "n"), atoms_of(channels, "c")
    space = (height or axis(4, "h"), width or axis(3, "w"))
    return Lifted("map", batch, depth, space, ((batch,), depth, *(a.atoms for a in space)), FLOAT)


def axis(
    window: int, name: str, *, stride: Fraction | int = 1, window_stride: Fraction | int = 1, rate: int = 1
) -> Axis:
    return Axis(atoms_of(window, name), Field(stride=Fraction(stride)), Fraction(window_stride), rate, image=0)


def physical(x: Lifted, positions: int = 3) -> np.ndarray:
    """A map of distinct numbers with room for that many windows along each axis."""
    extents = [a.extent + (positions - 1) * a.step for a in x.space]
    shape = (x.batch.size, x.width, *extents)
    return np.arange(np.prod(shape)).reshape(shape)


def original(x: Lifted, values: np.ndarray, position: tuple[int, ...]) -> np.ndarray:
    """The original at p: map[p·window_stride/stride + rate·(0 … window - 1)], atoms in the order of the layout."""
    cells = [p * a.step + a.rate * np.arange(a.window) for p, a in zip(position, x.space)]
    window = values[np.ix_(range(values.shape[0]), range(values.shape[1]), *cells)]
    atoms = [x.batch, *x.channels, *(atom for a in x.space for atom in a.atoms)]
    order = [atom for group in x.layout for atom in group]
    window = window.reshape([a.size for a in atoms])
    window = window.transpose([atoms.index(a) for a in (*order, *(a for a in atoms if a not in order))])
    return window.reshape(x.shape)


# Every chain of regroupings agrees with numpy -------------------------------------------------------------------------


@st.composite
def facts(draw: st.DrawFn) -> Lifted:
    def side(name: str) -> Axis:
        stride = draw(st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(2)]))
        window_stride = stride * draw(st.integers(1, 2))
        window, rate = draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.integers(1, 2))
        return axis(window, name, stride=stride, window_stride=window_stride, rate=rate)

    return fact(draw(st.sampled_from([1, 2, 6, 8, 12])), side("h"), side("w"))


@st.composite
def shapes(draw: st.DrawFn, size: int) -> list[int]:
    """A shape of this size."""
    dims = []
    while size > 1:
        dims.append(draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0])))
        size //= dims[-1]
    for _ in range(draw(st.integers(0, 2))):
        dims.insert(draw(st.integers(0, len(dims))), 1)
    return dims


@settings(deadline=None)  # a machine under load is slow, not wrong
@given(facts(), st.data())
def test_any_chain_is_what_numpy_does(x: Lifted, data: st.DataObject) -> None:
    values, position = physical(x), (1, 2)
    tensor = original(x, values, position)
    for _ in range(data.draw(st.integers(1, 5), label="length")):
        operator = data.draw(st.sampled_from(["reshape", "transpose", "squeeze", "unsqueeze", "canonical"]))
        if operator == "reshape":
            # the batch goes first, as it does in networks: Reshape does not split or move it
            rest = data.draw(shapes(tensor.size // BATCH))
            shape = [BATCH, *rest] if data.draw(st.booleans()) or not rest else [BATCH * rest[0], *rest[1:]]
            try:
                x = x.reshaped(shape)
            except Unsupported:
                return  # the boundary falls inside a factor: refused, never answered in another way than numpy's
            tensor = tensor.reshape(shape)
        elif operator == "transpose":
            perm = data.draw(st.permutations(range(x.rank)))
            x, tensor = x.transposed(perm), tensor.transpose(perm)
        elif operator == "squeeze":
            ones = [k for k, n in enumerate(tensor.shape) if n == 1]
            axes = data.draw(st.none() | (st.sets(st.sampled_from(ones)) if ones else st.just(set())))
            x, tensor = x.squeezed(axes), tensor.squeeze(None if axes is None else tuple(axes))
        elif operator == "unsqueeze":
            at = data.draw(st.integers(-tensor.ndim - 1, tensor.ndim))
            x, tensor = x.unsqueezed([at]), np.expand_dims(tensor, at)
        else:
            x = x.canonical()
        assert x.shape == tensor.shape
        np.testing.assert_array_equal(original(x, values, position), tensor)


@settings(deadline=None)
@given(facts(), st.data())
def test_a_reshape_back_restores_the_layout(x: Lifted, data: st.DataObject) -> None:
    """Factors that a Reshape split are one again, so that long chains do not shatter the axes."""
    try:
        there = x.reshaped([BATCH, *data.draw(shapes(int(np.prod(x.shape[1:]))))])
    except Unsupported:
        assume(False)
    back = there.reshaped(x.shape)
    assert [[a.size for a in group] for group in back.layout] == [[a.size for a in group] for group in x.layout]
    assert back.is_plain
    assert back.window == x.window


# What a layout looks like ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "spelling"),
    [
        (fact(), "n c6 h4 w3"),
        (fact().reshaped([BATCH, 72]), "n (c6 h4 w3)"),
        (fact().transposed([0, 2, 3, 1]).reshaped([BATCH, 72]), "n (h4 w3 c6)"),
        (fact().transposed([0, 2, 3, 1]).reshaped([BATCH * 12, 6]), "(n h4 w3) c6"),
        (fact().reshaped([BATCH, 2, 3, 4, 3]), "n c'2 c''3 h4 w3"),
        (fact().reshaped([BATCH, 2, 3, 12]).transposed([0, 2, 1, 3]).reshaped([BATCH, 6, 4, 3]), "n (c''3 c'2) h4 w3"),
        (fact().reshaped([BATCH, 2, 3, 4, 3]).reshaped([BATCH, 6, 12]), "n c6 (h4 w3)"),
        (fact(channels=1), "n () h4 w3"),
        (fact(channels=1).transposed([0, 2, 3, 1]).reshaped([BATCH, 12]), "n (h4 w3)"),
        (fact(height=axis(1, "h"), width=axis(1, "w")).squeezed(None), "n c6"),
        (fact().unsqueezed([1, -1]), "n () c6 h4 w3 ()"),
    ],
    ids=str,
)
def test_spelling(x: Lifted, spelling: str) -> None:
    assert str(x) == spelling


def test_questions_about_a_layout() -> None:
    x = fact()
    flat = x.reshaped([BATCH, 72])
    split = x.reshaped([BATCH, 2, 3, 4, 3])
    assert x.is_plain
    assert x.transposed([0, 2, 3, 1]).is_plain
    assert not flat.is_plain
    assert x.is_channels(1)
    assert not split.is_channels(1)
    assert [x.place(atom) for group in x.layout for atom in group] == [0, 1, 2, 3]
    assert [x.space_of(group) for group in x.layout] == [None, None, 0, 1]
    assert x.is_live
    assert not replace(x, space=tuple(a.contracted() for a in x.space)).is_live
    assert (x.axis(-1), flat.axis(-1)) == (3, 1)


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        (lambda: fact().reshaped([BATCH, 71]), "not the same size"),
        (lambda: fact().reshaped([BATCH, 4, 18]), "cuts through c = 6"),
        (lambda: fact().reshaped([72, BATCH]), "cuts through the batch"),
        (lambda: fact().squeezed([1]), "not of size 1"),
        (lambda: fact().axis(4), "4 axes"),
    ],
)
def test_refusals(attempt: object, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        attempt()


@settings(deadline=None)
@given(facts(), st.data())
def test_refined_has_the_boundaries(x: Lifted, data: st.DataObject) -> None:
    """Splitting the atoms of one axis changes no element, and puts a boundary wherever one was asked for."""
    flat = x.reshaped([BATCH, int(np.prod(x.shape[1:]))])
    sizes = data.draw(shapes(flat.shape[1]))
    try:
        finer = flat.refined(1, sizes)
    except Unsupported:
        assume(False)
    values = physical(x)
    np.testing.assert_array_equal(original(finer, values, (1, 1)), original(flat, values, (1, 1)))
    inner = {int(np.prod(sizes[k:])) for k in range(len(sizes) + 1)}
    atoms = [a.size for a in finer.layout[1]]
    assert inner <= {int(np.prod(atoms[k:])) for k in range(len(atoms) + 1)}


# Where windows lie ----------------------------------------------------------------------------------------------------


def test_kernel_of_the_window() -> None:
    """AlexNet's last map: a 6×6 window, one cell a window; behind a Resize ×2, two; à trous, spread."""
    alexnet = axis(6, "h", stride=32, window_stride=32)
    resized = axis(6, "w", stride=16, window_stride=32)
    dilated = axis(6, "w", stride=8, window_stride=8, rate=4)
    assert fact(256, alexnet, alexnet).kernel([0, 1]) == ([6, 6], [1, 1], [1, 1])
    assert fact(256, alexnet, resized).kernel([0, 1]) == ([6, 6], [1, 2], [1, 1])
    assert fact(256, alexnet, dilated).kernel([1]) == ([1, 6], [1, 1], [1, 4])
    assert [a.extent for a in (alexnet, resized, dilated)] == [6, 6, 21]


def test_an_axis_goes_on() -> None:
    half = axis(4, "h").slid(2, "h", 2, 2)
    assert (half.window, half.stride, half.window_stride, half.step) == (2, 2, 2, 1)
    finer = half.finer(2, 4, "h")  # back at every pixel, but windows still start at every other one
    assert (finer.stride, finer.window_stride, finer.step) == (1, 2, 2)
    done = finer.contracted()
    assert (done.window, done.stride, done.step, done.rate) == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("a", "b", "multiple"),
    [("2", "3", "6"), ("1/2", "1", "1"), ("3/2", "1", "3"), ("2/3", "1/2", "2"), ("4", "4", "4")],
)
def test_lcm(a: str, b: str, multiple: str) -> None:
    assert lcm(Fraction(a), Fraction(b)) == Fraction(multiple)
