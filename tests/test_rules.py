"""Every rule obeys the law, in every configuration: one table, a row for each spelling.

A row is a network in ONNX's text syntax on an image or feature map `x` (N, 6, 4, 3), no two dims of which are alike:

    row("softmax of classes", "f = Flatten (x)  d = MatMul (f, w)  y = Softmax (d)", opset=(7, 13), w=(72, 5))

At the last of its opsets it stands behind a strided convolution, so that map and image differ; at the others as it is.
Weights are keywords (a tuple is a shape, filled at random), and so are the image, the outputs where onnx cannot infer
their types, and what the law has to know of the network: the feature map that something pads before (`cut`), the pixels
between windows (`stride`); see `law.py`. A new operator is one more row: a test fails for any that has none.

Refusals are a second table, and deliberate faults, each with the row that catches it, a third.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import law
import numpy as np
import pytest
import wording
from law import positive
from onnx import helper, numpy_helper

import onnx_fcn
import onnx_fcn.rules
from onnx_fcn import UnsupportedModel
from onnx_fcn.lifting import facts, registry
from onnx_fcn.lifting.site import Site
from onnx_fcn.rules import contraction, dense, reduction

NEWEST = law.newest_opset()


@dataclass(frozen=True)
class Row:
    """One network, at some opsets.

    Attributes:
        name: what is special about it.
        body: its nodes.
        opsets: versions at which the body means the same.
        given: the rest of `law.model`.
        how: the rest of `law.check`.
        trunk: can it stand behind a convolution?
    """

    name: str
    body: str
    opsets: tuple[int, ...]
    given: dict[str, Any]
    how: dict[str, Any]
    trunk: bool

    def model(self, opset: int) -> law.ModelProto:
        return law.model(self.body, opset=opset, **self.given)

    def check(self, opset: int, *, trunk: bool) -> None:
        """Convert it and check the law."""
        original, how = self.model(opset), dict(self.how)
        size = law.native_size(original, **({"space": how["space"]} if "space" in how else {}))
        if trunk:
            original, how["stride"] = law.behind_a_trunk(original), 2 * np.array(how.get("stride", 1))
            size = None  # the convolution says which axes slide
        law.check(original, onnx_fcn.convert(original, input_size=size, validate=False).to_proto(), **how)


ROWS: dict[str, Row] = {}
HOW = ("batch", "cut", "context", "space", "stride", "step", "between")


def row(name: str, body: str, *, opset: int | Sequence[int] = 13, trunk: bool = True, **rest: Any) -> None:
    """Add a row to the table."""
    assert name not in ROWS, name
    opsets = (opset,) if isinstance(opset, int) else tuple(opset)
    how = {k: rest.pop(k) for k in HOW if k in rest}
    ROWS[name] = Row(name, body, opsets, rest, how, trunk)


# fmt: off

# Layout: what only regroups -------------------------------------------------------------------------------------------

row("flatten", "f = Flatten (x)  y = Gemm <transB = 1> (f, w, b)",
    opset=(7, 9, 11, 13, 17, 18, 21, NEWEST), w=(5, 72), b=(5,))
row("flatten from a negative axis", "f = Flatten <axis = -3> (x)  y = MatMul (f, w)", w=(72, 5))
row("flatten from axis 0", "f = Flatten <axis = 0> (x)  y = MatMul (f, w)", image="float[1,6,4,3] x", w=(72, 5))
row("flatten to features of channels", "f = Flatten <axis = 2> (x)  d = MatMul (f, w)  y = Reshape (d, s)",
    w=(12, 5), s=[-1, 30])
row("flatten to features of rows", "f = Flatten <axis = 3> (x)  d = MatMul (f, w)  y = Reshape (d, s)",
    w=(3, 5), s=[-1, 120])
row("flatten to single numbers", "f = Flatten <axis = 4> (x)  r = Reshape (f, s)  y = MatMul (r, w)",
    s=[-1, 72], w=(72, 5))
row("flatten is the output", "r = Relu (x)  y = Flatten (r)")
row("reshape 0, -1", "f = Reshape (x, s)  y = MatMul (f, w)", opset=(7, 13), s=[0, -1], w=(72, 5))
row("reshape -1, features", "f = Reshape (x, s)  y = MatMul (f, w)", s=[-1, 72], w=(72, 5))
row("reshape allowzero", "f = Reshape <allowzero = 1> (x, s)  y = MatMul (f, w)", opset=(14, 21), s=[-1, 72], w=(72, 5))
row("reshape with the batch baked", "f = Reshape (x, s)  y = MatMul (f, w)",
    image="float[2,6,4,3] x", s=[2, -1], w=(72, 5))
row("reshape with a batch of 1 baked", "f = Reshape (x, s)  y = MatMul (f, w)",
    image="float[1,6,4,3] x", s=[1, 72], w=(72, 5))
row("reshape splits the channels", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1, 3, 4]> (r)  f = Flatten (t)  "
    "y = MatMul (f, w)", s=[0, 2, 3, 4, 3], w=(72, 5))
row("reshape splits an axis of the window", "r = Reshape (x, s)  t = Transpose <perm = [0, 3, 1, 2, 4]> (r)  "
    "f = Flatten (t)  y = MatMul (f, w)", s=[0, 6, 2, 2, 3], w=(72, 5))
row("reshape of an output", "f = Flatten (x)  d = MatMul (f, w)  y = Reshape (d, s)", w=(72, 10), s=[-1, 2, 5])
row("reshape to Shape, attributes", "s = Shape (x)  n = Gather (s, zero)  u = Unsqueeze <axes = [0]> (n)  "
    "t = Concat <axis = 0> (u, rest)  f = Reshape (x, t)  y = MatMul (f, w)",
    opset=(7, 11), zero=0, rest=[-1], w=(72, 5), outputs="float[N,5] y")
row("reshape to Shape, operands", "s = Shape (x)  n = Gather (s, zero)  u = Unsqueeze (n, axes)  "
    "t = Concat <axis = 0> (u, rest)  f = Reshape (x, t)  y = MatMul (f, w)",
    opset=(13, 21), zero=0, axes=[0], rest=[-1], w=(72, 5), outputs="float[N,5] y")
row("reshape to products of Shape", "s = Shape (x)  a = Slice (s, one, four)  p = ReduceProd <axes = [0]> (a)  "
    "n = Slice (s, zero, one)  t = Concat <axis = 0> (n, p)  i = Cast <to = 6> (t)  j = Cast <to = 7> (i)  "
    "f = Reshape (x, j)  y = MatMul (f, w)", zero=[0], one=[1], four=[4], w=(72, 5), outputs="float[N,5] y")
row("reshape to a part of Shape", "n = Shape <start = 0, end = 1> (x)  t = Concat <axis = 0> (n, rest)  "
    "f = Reshape (x, t)  y = MatMul (f, w)", opset=(15, 21), rest=[72], w=(72, 5))
row("reshape to Size over batch", "s = Shape (x)  n = Gather (s, zero)  a = Size (x)  k = Div (a, n)  "
    "u = Unsqueeze (n, axes)  v = Unsqueeze (k, axes)  t = Concat <axis = 0> (u, v)  f = Reshape (x, t)  "
    "y = MatMul (f, w)", zero=0, axes=[0], w=(72, 5), outputs="float[N,5] y")
row("transpose to channels last", "t = Transpose <perm = [0, 2, 3, 1]> (x)  f = Flatten (t)  "
    "y = Gemm <transB = 1> (f, w, b)", opset=(7, 13), w=(5, 72), b=(5,))
row("transpose to CWH", "t = Transpose <perm = [0, 1, 3, 2]> (x)  f = Flatten (t)  y = MatMul (f, w)", w=(72, 5))
row("transpose to WHC", "t = Transpose <perm = [0, 3, 2, 1]> (x)  f = Flatten (t)  y = MatMul (f, w)", w=(72, 5))
row("transpose to HCW", "t = Transpose <perm = [0, 2, 1, 3]> (x)  f = Flatten (t)  y = MatMul (f, w)", w=(72, 5))
row("transpose reversed", "t = Transpose (x)  f = Reshape (t, s)  y = Gemm <transA = 1> (f, w)",
    image="float[2,6,4,3] x", s=[72, 2], w=(72, 5))
row("transpose of features", "f = Flatten (x)  t = Transpose (f)  y = Gemm <transA = 1> (t, w)", w=(72, 5))
row("squeeze by attribute", "p = GlobalAveragePool (x)  q = Squeeze <axes = [2, 3]> (p)  y = MatMul (q, w)",
    opset=(7, 11), w=(6, 5))
row("squeeze by operand", "p = GlobalAveragePool (x)  q = Squeeze (p, axes)  y = MatMul (q, w)",
    opset=(13, 21), axes=[-1, -2], w=(6, 5))
row("squeeze everything", "p = GlobalAveragePool (x)  y = Squeeze (p)",
    image="float[2,6,4,3] x", outputs="float[2,6] y")
row("unsqueeze by attribute", "f = Flatten (x)  u = Unsqueeze <axes = [1, 3]> (f)  "
    "t = Transpose <perm = [0, 1, 3, 2]> (u)  y = MatMul (t, w)", opset=(7, 11), w=(72, 5))
row("unsqueeze by operand", "f = Flatten (x)  u = Unsqueeze (f, axes)  y = MatMul (u, w)",
    opset=(13, 21), axes=[-2, 1], w=(72, 5))
row("expand", "p = GlobalAveragePool (x)  q = Squeeze (p, axes)  e = Expand (q, s)  f = Flatten (e)  y = MatMul (f, w)",
    axes=[2], s=[1, 6, 5], w=(30, 7))
row("tile", "f = Flatten (x)  d = MatMul (f, w)  t = Tile (d, n)  y = MatMul (t, v)",
    opset=(7, 13), w=(72, 5), n=[1, 3], v=(15, 7))
row("tile of a map", "t = Tile (x, n)  f = Flatten (t)  y = MatMul (f, w)", n=[1, 2, 1, 1], w=(144, 5))
row("identity", "i = Identity (x)  f = Flatten (i)  y = Identity (f)")
row("dropout", "a = Dropout (x)  f = Flatten (a)  b = Dropout (f)  y = MatMul (b, w)", opset=(7, 10, 13), w=(72, 5))
row("dropout that is off", "f = Flatten (x)  d = Dropout (f, ratio, off)  y = MatMul (d, w)", opset=(12, 13), w=(72, 5),
    ratio=0.5, off=np.array(False))
row("dropout with a ratio", "f = Flatten (x)  d = Dropout (f, ratio)  y = MatMul (d, w)",
    opset=(12, 22), ratio=0.5, w=(72, 5))
row("cast", "h = Cast <to = 10> (x)  f = Flatten (h)  g = Cast <to = 1> (f)  y = MatMul (g, w)",
    opset=(9, 13, 19), w=(72, 5))
row("cast like", "h = Cast <to = 11> (x)  f = Flatten (h)  g = CastLike (f, w)  y = MatMul (g, w)",
    opset=(15, 19), w=(72, 5))

# The image ------------------------------------------------------------------------------------------------------------

row("channels-last image", "t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv (t, k)  "
    "b = Transpose <perm = [0, 2, 3, 1]> (c)  f = Reshape (b, s)  d = MatMul (f, w)  y = Softmax (d)",
    image="float[N,6,5,2] x", space=(1, 2), trunk=False, k=(6, 2, 3, 3), s=[-1, 72], w=(72, 5))
row("channels-last image, seen by pixels first", "t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv (t, k)  "
    "p = GlobalMaxPool (c)  y = Flatten (p)", image="float[N,6,5,3] x", space=(1, 2), trunk=False, k=(7, 3, 1, 1))
row("grey image without channels", "u = Unsqueeze (x, axes)  c = Conv (u, k)  f = Flatten (c)  y = MatMul (f, w)",
    image="float[N,6,5] x", space=(1, 2), trunk=False, axes=[1], k=(6, 1, 3, 3), w=(72, 5))
row("image without a batch", "u = Unsqueeze (x, axes)  c = Conv (u, k)  f = Flatten (c)  y = MatMul (f, w)",
    image="float[2,6,5] x", space=(1, 2), trunk=False, axes=[0], k=(6, 2, 3, 3), w=(72, 5))
row("one axis", "c = Conv <strides = [2]> (x, k)  f = Flatten (c)  y = MatMul (f, w)",
    image="float[N,2,9] x", space=(2,), stride=2, k=(6, 2, 3), w=(24, 5))
row("one axis written as two", "u = Unsqueeze (x, axes)  c = Conv (u, k)  r = Relu (c)  q = Squeeze (r, axes)  "
    "f = Flatten (q)  y = MatMul (f, w)", image="float[N,2,6] x", space=(2,), axes=[2], k=(6, 2, 1, 3), w=(24, 5))
row("three axes", "c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)",
    image="float[N,2,4,5,3] x", space=(2, 3, 4), k=(5, 2, 2, 3, 2), w=(5 * 3 * 3 * 2, 7))
row("three axes pooled", "c = Conv (x, k)  p = GlobalMaxPool (c)  f = Flatten (p)  y = MatMul (f, w)",
    image="float[N,2,4,5,3] x", space=(2, 3, 4), k=(6, 2, 2, 3, 2), w=(6, 7))
row("half floats", "f = Flatten (x)  y = Gemm (f, w, b)", image="float16[N,6,4,3] x", w=(72, 5), b=(5,))
row("double floats", "f = Flatten (x)  y = Gemm (f, w, b)", image="double[N,6,4,3] x", trunk=False, w=(72, 5), b=(5,))
row("bytes", "c = Cast <to = 1> (x)  f = Flatten (c)  y = MatMul (f, w)",
    image="uint8[N,6,4,3] x", between=(0, 255), trunk=False, w=(72, 5))

# Dense: what becomes a convolution ------------------------------------------------------------------------------------

row("gemm", "f = Flatten (x)  y = Gemm (f, w, b)", opset=(7, 13), w=(72, 5), b=(5,))
row("gemm alpha beta", "f = Flatten (x)  y = Gemm <alpha = 0.5, beta = 3.0> (f, w, b)",
    opset=(7, 13), w=(72, 5), b=(5,))
row("gemm alpha beta, scalar bias", "f = Flatten (x)  y = Gemm <alpha = 0.5, beta = 3.0, transB = 1> (f, w, b)",
    w=(5, 72), b=0.7)
row("gemm without bias", "f = Flatten (x)  y = Gemm (f, w)", opset=(11, 13), w=(72, 5))
row("gemm with an empty bias", 'f = Flatten (x)  y = Gemm (f, w, "")', w=(72, 5))
row("gemm scalar bias", "f = Flatten (x)  y = Gemm (f, w, b)", w=(72, 5), b=0.7)
row("gemm bias (1,)", "f = Flatten (x)  y = Gemm (f, w, b)", w=(72, 5), b=(1,))
row("gemm bias (1, O)", "f = Flatten (x)  y = Gemm (f, w, b)", w=(72, 5), b=(1, 5))
row("gemm bias that masks", "f = Flatten (x)  d = Gemm (f, w, b)  y = Relu (d)",
    w=(72, 5), b=np.float32([[-np.inf, 0, 1, 2, 3]]))
row("gemm bias (N, 1)", "f = Flatten (x)  y = Gemm (f, w, b)",
    image="float[2,6,4,3] x", w=(72, 5), b=np.full((2, 1), 0.7, np.float32))
row("gemm bias (N, O)", "f = Flatten (x)  y = Gemm (f, w, b)",
    image="float[2,6,4,3] x", w=(72, 5), b=np.tile(positive("b", 5), (2, 1)))
row("gemm transA", "f = Flatten (x)  t = Transpose (f)  y = Gemm <transA = 1, transB = 1> (t, w, b)", w=(5, 72), b=(5,))
row("gemm weight on the left", "f = Flatten (x)  y = Gemm <transB = 1> (w, f, b)", w=(5, 72), b=(5, 1))
row("gemm transposed weight on the left", "f = Flatten (x)  y = Gemm <transA = 1, transB = 1, alpha = 2.0> (w, f)",
    w=(72, 5))
row("gemm adds a map", "f = Flatten (x)  h = Gemm (f, w)  y = Gemm <beta = 0.5> (f, v, h)", w=(72, 5), v=(72, 5))
row("gemm of groups, scaled bias", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "e = Gemm <transB = 1, beta = 2.0> (r, v, b)  y = Reshape (e, t)",
    w=(72, 6), s=[-1, 3], v=(5, 3), b=(5,), t=[-1, 10])
row("gemm of gemm", "f = Flatten (x)  d = Gemm (f, w, b)  r = Relu (d)  y = Gemm <transB = 1> (r, v, c)",
    w=(72, 7), b=(7,), v=(5, 7), c=(5,))
row("matmul", "f = Flatten (x)  y = MatMul (f, w)", opset=(7, 9, 13, NEWEST), w=(72, 5))
for op in ("Add", "Sub"):
    row(f"matmul, {op} bias", f"f = Flatten (x)  d = MatMul (f, w)  y = {op} (d, b)", opset=(7, 13), w=(72, 5), b=(5,))
    row(f"matmul, bias {op}", f"f = Flatten (x)  d = MatMul (f, w)  y = {op} (b, d)", w=(72, 5), b=(1, 5))
row("matmul weight on the left", "f = Reshape (x, s)  y = MatMul (w, f)", s=[-1, 72, 1], w=(5, 72))
row("matmul of a vector", "f = Flatten (x)  y = MatMul (f, w)", w=(72,))
row("matmul of a vector on the left", "f = Reshape (x, s)  m = MatMul (w, f)  y = MatMul (m, v)",
    s=[0, 6, 12], w=(6,), v=(12, 5))
row("matmul rank 3", "f = Reshape (x, s)  y = MatMul (f, w)", s=[0, 1, 72], w=(1, 72, 5))
row("matmul of each group", "f = Reshape (x, s)  y = MatMul (f, w)", s=[0, 2, 1, 36], w=(2, 36, 5))
row("matmul of each channel", "f = Reshape (x, s)  y = MatMul (f, w)", s=[0, 6, 1, 12], w=(6, 12, 5))
row("matmul, several weights on one", "f = Reshape (x, s)  y = MatMul (f, w)", s=[0, 1, 1, 72], w=(3, 72, 5))
row("matmul of pixels", "t = Transpose <perm = [0, 2, 3, 1]> (x)  d = MatMul (t, w)  r = Relu (d)  f = Flatten (r)  "
    "y = MatMul (f, v)", w=(6, 7), v=(84, 5))
row("matmul of pixels as rows", "t = Transpose <perm = [0, 2, 3, 1]> (x)  p = Reshape (t, s)  d = MatMul (p, w)  "
    "r = Relu (d)  q = Reshape (r, back)  y = MatMul (q, v)", s=[-1, 6], w=(6, 7), back=[-1, 84], v=(84, 5))
row("matmul along the height", "t = Transpose <perm = [0, 1, 3, 2]> (x)  d = MatMul (t, w)  f = Flatten (d)  "
    "y = MatMul (f, v)", w=(4, 7), v=(6 * 3 * 7, 5))
row("matmul then matmul", "f = Flatten (x)  d = MatMul (f, w)  s = Sigmoid (d)  y = MatMul (s, v)", w=(72, 7), v=(7, 5))
row("einsum", 'f = Flatten (x)  y = Einsum <equation = "nk,ko->no"> (f, w)', opset=(12, 13), w=(72, 5))
row("einsum transposed", 'f = Flatten (x)  y = Einsum <equation = "ok, nk -> no"> (w, f)', w=(5, 72))
row("einsum of a map", 'y = Einsum <equation = "nchw,chwo->no"> (x, w)', w=(6, 4, 3, 5))
row("einsum of channels", 'd = Einsum <equation = "nchw,kc->nhwk"> (x, w)  f = Flatten (d)  y = MatMul (f, v)',
    w=(7, 6), v=(84, 5))
row("einsum of each channel", 'd = Einsum <equation = "nchw,chwo->nco"> (x, w)  f = Flatten (d)  y = MatMul (f, v)',
    w=(6, 4, 3, 2), v=(12, 5))
row("einsum with an ellipsis", "t = Transpose <perm = [0, 2, 3, 1]> (x)  "
    'd = Einsum <equation = "kc, ...c -> ...k"> (w, t)  f = Flatten (d)  y = MatMul (f, v)', w=(7, 6), v=(84, 5))
row("einsum with its result implied", 'f = Flatten (x)  y = Einsum <equation = "nk,ko"> (f, w)', w=(72, 5))
row("einsum that sums over the map", 'y = Einsum <equation = "nchw,ck->nk"> (x, w)', w=(6, 5))
row("einsum that scales", 'd = Einsum <equation = "nchw,c->nhwc"> (x, w)  f = Flatten (d)  y = MatMul (f, v)',
    w=(6,), v=(72, 5))
row("einsum that scales positions", 'd = Einsum <equation = "nchw,wh->nchw"> (x, w)  f = Flatten (d)  '
    "y = MatMul (f, v)", w=(3, 4), v=(72, 5))
row("einsum, outer product with weights", 'p = GlobalMaxPool (x)  f = Flatten (p)  d = Einsum <equation = "nc,k->nkc"> '
    "(f, w)  y = Flatten (d)", w=(5,))
row("einsum of two maps at each position", 'a = Sigmoid (x)  d = Einsum <equation = "nchw,nkhw->nckhw"> (x, a)  '
    "r = Reshape (d, s)  m = Conv (r, k)  f = Flatten (m)  y = MatMul (f, w)",
    opset=(12, 13), s=[0, 36, 4, 3], k=(5, 36, 2, 2), w=(30, 7), outputs="float[N,7] y")
row("einsum that sums products of features", 'a = Sigmoid (x)  t = Transpose <perm = [0, 2, 3, 1]> (a)  '
    'd = Einsum <equation = "nchw,nhwc->nhw"> (x, t)  u = Unsqueeze <axes = [1]> (d)  m = Conv (u, k)  '
    "f = Flatten (m)  y = MatMul (f, w)", opset=12, k=(5, 1, 2, 2), w=(30, 7))
row("einsum of a map with itself", 'd = Einsum <equation = "nchw,nchw->nwh"> (x, x)  f = Flatten (d)  '
    "y = MatMul (f, w)", w=(12, 5))
row("matmul of two maps at each position", "a = Transpose <perm = [0, 2, 3, 1]> (x)  u = Unsqueeze (a, three)  "
    "b = Sigmoid (a)  v = Unsqueeze (b, four)  d = MatMul (u, v)  q = Squeeze (d, last)  r = Unsqueeze (q, one)  "
    "m = Conv (r, k)  f = Flatten (m)  y = MatMul (f, w)",
    one=[1], three=[3], four=[4], last=[3, 4], k=(2, 1, 2, 2), w=(12, 7), outputs="float[N,7] y")
row("attention between features of each position", "a = Transpose <perm = [0, 2, 3, 1]> (x)  q = Reshape (a, s)  "
    "k = Tanh (q)  t = Transpose <perm = [0, 1, 2, 4, 3]> (k)  b = MatMul (q, t)  c = Softmax <axis = -1> (b)  "
    "d = MatMul (c, q)  r = Reshape (d, o)  m = Transpose <perm = [0, 3, 1, 2]> (r)  f = Flatten (m)  "
    "y = MatMul (f, w)", s=[0, 4, 3, 2, 3], o=[0, 4, 3, 6], w=(72, 5), outputs="float[N,5] y")
row("einsum that only permutes", 't = Einsum <equation = "nchw->nhwc"> (x)  f = Flatten (t)  y = MatMul (f, w)',
    w=(72, 5))

# Weights --------------------------------------------------------------------------------------------------------------

row("weight from a Constant", "p = GlobalAveragePool (x)  f = Flatten (p)  "
    "w = Constant <value = float[6, 2] {1, -2, 3, 0.5, -1, 4, 2, 2, -3, 0, 1, 0.25}> ()  y = MatMul (f, w)")
row("weight of an Identity", "f = Flatten (x)  i = Identity (w)  y = Gemm (f, i)", w=(72, 5))
row("weight transposed", "f = Flatten (x)  t = Transpose (w)  y = MatMul (f, t)", w=(5, 72))
row("weight cast", "f = Flatten (x)  c = Cast <to = 1> (w)  y = MatMul (f, c)",
    w=law.random("w", 72, 5).astype(np.float16))
row("weight reshaped", "f = Flatten (x)  r = Reshape (w, s)  y = MatMul (f, r)", w=(6, 4, 3, 5), s=[72, 5])
row("weight computed", "f = Flatten (x)  n = ReduceL2 <axes = [1]> (v)  q = Div (v, n)  w = Mul (q, g)  "
    "y = Gemm <transB = 1> (f, w)", v=(5, 72), g=(5, 1))
row("weight filled", "f = Flatten (x)  w = ConstantOfShape <value = float[1] {0.25}> (s)  y = MatMul (f, w)", s=[72, 5])
row("weight shared by layers", "f = Flatten (x)  a = MatMul (f, w)  r = Relu (f)  b = MatMul (r, w)  y = Sub (a, b)",
    w=(72, 5))
row("weight tied", "f = Flatten (x)  a = MatMul (f, w)  r = Relu (a)  y = Gemm <transB = 1> (r, w)", w=(72, 5))
row("weight listed as an input", "f = Flatten (x)  y = Gemm (f, w, b)",
    opset=(7, 8), image="float[N,6,4,3] x, float[72,5] w, float[5] b", ir_version=3, trunk=False, w=(72, 5), b=(5,))

# Convolutions ---------------------------------------------------------------------------------------------------------

HEAD = "f = Flatten (m)  y = MatMul (f, w)"
DENSE = "f = Flatten (x)  d = MatMul (f, w)"
row("conv", f"m = Conv (x, k, b)  {HEAD}", opset=(7, 11, 13, 22), k=(5, 6, 2, 2), b=(5,), w=(30, 7))
row("conv strided", f"m = Conv <strides = [2, 3]> (x, k)  {HEAD}",
    image="float[N,6,7,8] x", stride=(2, 3), k=(5, 6, 3, 2), w=(45, 7))
row("conv groups", f"m = Conv <group = 2> (x, k)  {HEAD}", k=(4, 3, 2, 2), w=(24, 7))
row("conv depthwise", f"m = Conv <group = 6> (x, k)  {HEAD}", k=(12, 1, 2, 2), w=(72, 7))
row("conv dilated", f"m = Conv <dilations = [2, 1]> (x, k)  {HEAD}", k=(5, 6, 2, 2), w=(20, 7))
row("conv padded", f"m = Conv <pads = [1, 0, 2, 1]> (x, k)  {HEAD}", cut="m", k=(5, 6, 3, 2), w=(5 * 5 * 3, 7))
row("conv auto_pad VALID", f'm = Conv <auto_pad = "VALID"> (x, k)  {HEAD}', k=(5, 6, 2, 2), w=(30, 7))
row("pool auto_pad VALID that need not round up", 'm = MaxPool <kernel_shape = [2, 2], '
    f'auto_pad = "VALID", ceil_mode = 1> (x)  {HEAD}', w=(36, 7))
for mode in ("SAME_UPPER", "SAME_LOWER"):
    row(f"conv auto_pad {mode}", f'm = Conv <auto_pad = "{mode}"> (x, k)  {HEAD}', cut="m", k=(5, 6, 3, 2), w=(60, 7))
    row(f"conv auto_pad {mode} strided", f'm = Conv <auto_pad = "{mode}", strides = [2, 2]> (x, k)  {HEAD}',
        image="float[N,6,7,6] x", cut="m", stride=2, k=(5, 6, 3, 3), w=(60, 7))
row("conv covers the map", "y = Conv (x, k, b)", k=(5, 6, 4, 3), b=(5,))
row("conv covers the map, then flatten", "c = Conv (x, k)  r = Relu (c)  f = Flatten (r)  y = MatMul (f, w)",
    k=(5, 6, 4, 3), w=(5, 7))
row("conv covers more than the map", "c = Conv <pads = [2, 1, 1, 1]> (x, k)  f = Flatten (c)  y = MatMul (f, w)",
    k=(5, 6, 7, 5), w=(5, 7))
row("conv meets its padding", "c = Conv <pads = [1, 1, 1, 1], strides = [4, 4]> (x, k)  f = Flatten (c)  "
    "y = MatMul (f, w)", k=(5, 6, 3, 3), w=(5, 7))
row("conv dilated meets its padding", "c = Conv <pads = [1, 0, 1, 0], dilations = [2, 2], strides = [2, 1]> (x, k)  "
    "f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 3, 2), w=(5, 7))
row("conv of pooled features", "p = GlobalAveragePool (x)  c = Conv (p, k, b)  h = HardSwish (c)  f = Flatten (h)  "
    "y = MatMul (f, w)", opset=14, k=(5, 6, 1, 1), b=(5,), w=(5, 7))
# features as an axis of space: (N, 5, 8) -> (N, 1, 5, 8); whatever pads only that axis is exact
BANDS = "c = Conv (x, k)  a = Relu (c)  u = Unsqueeze (a, one)"
SOUND = {"image": "float[N,6,9] x", "space": (2,), "one": [1], "k": (5, 6, 2)}
row("conv along features", f"{BANDS}  m = Conv <pads = [1, 0, 2, 0], strides = [2, 1]> (u, v)  {HEAD}",
    v=(4, 1, 3, 2), w=(84, 7), **SOUND)
row("conv along features, after the position", "c = Conv (x, k)  t = Transpose <perm = [0, 2, 1]> (c)  "
    f"u = Unsqueeze (t, one)  m = Conv <pads = [0, 2, 0, 1], dilations = [1, 2]> (u, v)  {HEAD}",
    v=(4, 1, 2, 3), w=(4 * 7 * 4, 7), **SOUND)
row("conv along features, pooled", f"{BANDS}  n = Conv <pads = [1, 0, 1, 0]> (u, v)  m = GlobalAveragePool (n)  {HEAD}",
    v=(4, 1, 3, 2), w=(4, 7), **SOUND)
row("conv along features, mean over them", f"{BANDS}  n = Conv <pads = [1, 0, 1, 0]> (u, v)  "
    f"m = ReduceMean <axes = [2]> (n)  {HEAD}", v=(4, 1, 3, 2), w=(28, 7), **SOUND)
row("conv along features, which become channels", f"{BANDS}  n = Conv <pads = [1, 0, 1, 0]> (u, v)  "
    f"r = Reshape (n, s)  m = Conv (r, l)  {HEAD}", v=(4, 1, 3, 2), s=[0, 20, -1], l=(3, 20, 2), w=(18, 7), **SOUND)
row("conv along features, joined with a map from before", f"{BANDS}  n = Conv <pads = [1, 0, 1, 0]> (u, v)  "
    f"d = Add (u, n)  e = Mul (d, g)  i = Add (e, h)  m = Conv (i, l)  {HEAD}",
    v=(1, 1, 3, 1), g=(5, 1), h=(3, 1, 1), l=(4, 3, 2, 2), w=(4 * 4 * 7, 7), **SOUND)
row("conv along features, which meet their mean", f"{BANDS}  n = Conv <pads = [1, 0, 1, 0]> (u, v)  "
    f"o = ReduceMean <axes = [2]> (n)  d = Sub (n, o)  m = Conv (d, l)  {HEAD}",
    v=(2, 1, 3, 1), l=(4, 2, 2, 2), w=(4 * 4 * 7, 7), **SOUND)
row("conv along features, normalised", f"{BANDS}  n = Conv <pads = [0, 1, 0, 1]> (t, v)  "
    f"d = LayerNormalization (n, g, h)  m = Conv (d, l)  {HEAD}".replace("(t, v)", "(z, v)").replace(
        "n = Conv", "z = Transpose <perm = [0, 1, 3, 2]> (u)  n = Conv"),
    opset=17, v=(2, 1, 1, 3), g=(5,), h=(5,), l=(4, 2, 2, 2), w=(4 * 4 * 7, 7), **SOUND)
row("conv along features, then pools", f"{BANDS}  n = Conv (u, v)  o = MaxPool <kernel_shape = [2, 1], "
    "strides = [2, 1], ceil_mode = 1> (n)  d = AveragePool <kernel_shape = [2, 1], pads = [1, 0, 1, 0]> (o)  "
    f"m = LpPool <kernel_shape = [2, 2]> (d)  {HEAD}", v=(2, 1, 1, 1), w=(2 * 3 * 7, 7), **SOUND)
row("conv along features, resized, padded", f"{BANDS}  n = Conv (u, v)  o = Resize <mode = \"nearest\", "
    "coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"floor\"> (n, , scales)  d = Pad (o, pads)  "
    f"m = Conv (d, l)  {HEAD}", v=(2, 1, 1, 1), scales=np.float32([1, 1, 2, 1]), pads=[0, 0, 1, 0, 0, 0, 2, 0],
    l=(3, 2, 4, 2), w=(3 * 10 * 7, 7), **SOUND)
row("conv along features, transposed", f"{BANDS}  m = ConvTranspose <strides = [2, 1], pads = [1, 0, 1, 0]> (u, v)  "
    f"{HEAD}", v=(1, 3, 3, 1), w=(3 * 9 * 8, 7), **SOUND)
row("conv along features covers the positions", f"{BANDS}  m = Conv <pads = [1, 1, 1, 1], strides = [2, 9]> (u, v)  "
    f"{HEAD}", v=(3, 1, 3, 10), w=(9, 7), **SOUND)
row("conv along features of positions", f"{BANDS}  m = Conv <pads = [1, 0, 0, 2, 0, 0], strides = [2, 1, 1]> (u, v)  "
    f"{HEAD}", one=[1], k=(5, 6, 1, 2), v=(4, 1, 3, 2, 1), w=(4 * 3 * 3 * 2, 7))
row("conv along features, softmax of the positions of each", "c = Conv (x, k)  "
    "t = Transpose <perm = [0, 2, 1]> (c)  u = Unsqueeze (t, one)  n = Conv <pads = [0, 1, 0, 1]> (u, v)  "
    f"q = Softmax <axis = 2> (n)  m = Conv (q, l)  {HEAD}", cut="q", v=(2, 1, 1, 3), l=(4, 2, 2, 2), w=(4 * 7 * 4, 7),
    **SOUND)
# features that are used up, so that the map has an axis more than the original: (N, 4, 1, 4, 2) for (N, 4, 4, 2)
SPENT = "c = Conv (x, k)  u = Unsqueeze (c, one)  n = Conv (u, v)  s = Squeeze (n, two)"
USED = {"one": [1], "two": [2], "k": (5, 6, 1, 2), "v": (4, 1, 5, 1, 1)}
row("conv along all features, LRN", f"{SPENT}  m = LRN <size = 3> (s)  {HEAD}", opset=(13, 21), w=(32, 7), **USED)
row("conv along all features, resized", f'{SPENT}  m = Resize <mode = "cubic"> (s, "", scales)  {HEAD}',
    cut="m", step=2, scales=np.float32([1, 1, 2, 2]), w=(128, 7), **USED)
row("conv along all features, transposed", f"{SPENT}  m = ConvTranspose <strides = [2, 2]> (s, t)  {HEAD}",
    t=(4, 3, 2, 2), w=(96, 7), **USED)
row("conv along all features, then others", f"{SPENT}  p = MaxPool <kernel_shape = [2, 1]> (s)  "
    f"m = Conv (p, t)  {HEAD}", t=(3, 4, 2, 2), w=(6, 7), **USED)
row("conv of one axis of the window", "c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 4, 1), w=(15, 7))
row("conv transposed", f"m = ConvTranspose <strides = [2, 2]> (x, k)  {HEAD}",
    opset=(7, 11, 13), k=(6, 2, 2, 2), w=(2 * 8 * 6, 7))
row("conv transposed, padded",
    f"m = ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 1], output_padding = [1, 0]> (x, k, b)  {HEAD}",
    cut="m", step=2, k=(6, 2, 3, 3), b=(2,), w=(2 * 8 * 6, 7))
row("conv transposed, groups", f"m = ConvTranspose <group = 2> (x, k)  {HEAD}",
    cut="m", k=(6, 2, 2, 2), w=(4 * 5 * 4, 7))

# Poolings that slide along channels, and along no axis of the image

row("mean across channels, as torch normalises", "q = Mul (x, x)  u = Reshape (q, up)  p = Pad (u, pads)  "
    "a = AveragePool <kernel_shape = [3, 1, 1]> (p)  v = Squeeze (a, one)  m = Mul (v, half)  d = Div (x, m)  "
    "f = Flatten (d)  y = MatMul (f, w)",
    opset=(13, 19, NEWEST), up=[0, 1, 6, 4, -1], pads=[0, 0, 1, 0, 0, 0, 0, 1, 0, 0], one=[1], half=np.float32(0.5),
    between=(0.5, 1.5), w=(72, 5))
row("mean across channels, padded inside", "u = Unsqueeze <axes = [1]> (x)  "
    "a = AveragePool <kernel_shape = [4, 1, 1], pads = [1, 0, 0, 2, 0, 0], count_include_pad = 1> (u)  "
    "f = Flatten (a)  y = MatMul (f, w)", opset=(7, 11), w=(72, 5))
row("mean across channels, same", "u = Unsqueeze <axes = [1]> (x)  "
    """a = AveragePool <kernel_shape = [3, 1, 1], auto_pad = "SAME_UPPER"> (u)  f = Flatten (a)  y = MatMul (f, w)""",
    opset=(7, 11), w=(72, 5))
row("mean across channels, axes merged", "u = Reshape (x, s)  a = AveragePool <kernel_shape = [3, 1]> (u)  "
    "v = Reshape (a, t)  c = Conv (v, k)  f = Flatten (c)  y = MatMul (f, w)",
    s=[0, 1, 6, 12], t=[0, 4, 4, 3], k=(5, 4, 2, 2), w=(30, 7))
row("maximum of pairs of channels", "u = Unsqueeze (x, one)  "
    "m = MaxPool <kernel_shape = [2, 1, 1], strides = [2, 1, 1]> (u)  v = Squeeze (m, one)  c = Conv (v, k)  "
    "f = Flatten (c)  y = MatMul (f, w)", opset=(13, NEWEST), one=[1], k=(5, 3, 2, 2), w=(30, 7))
row("maximum of every second channel, rounded up", "u = Unsqueeze (x, one)  "
    "m = MaxPool <kernel_shape = [2, 1, 1], strides = [3, 1, 1], dilations = [2, 1, 1], ceil_mode = 1> (u)  "
    "f = Flatten (m)  y = MatMul (f, w)", one=[1], w=(24, 7))
row("mean of all channels, as a pooling", "u = Unsqueeze (x, one)  a = AveragePool <kernel_shape = [6, 1, 1]> (u)  "
    "f = Flatten (a)  y = MatMul (f, w)", one=[1], w=(12, 7))
row("norm across the channels of groups", "u = Reshape (x, s)  p = LpPool <kernel_shape = [2, 1, 1]> (u)  "
    "f = Flatten (p)  y = MatMul (f, w)", s=[0, 2, 3, 4, 3], w=(48, 7))
row("mean along two axes of channels", "u = Reshape (x, s)  p = AveragePool <kernel_shape = [2, 2, 1]> (u)  "
    "f = Flatten (p)  y = MatMul (f, w)", s=[0, 1, 2, 3, 12], w=(24, 7))

# Convolutions that slide along no axis: dense layers

row("convolution of features", "f = Flatten (x)  r = Reshape (f, s)  c = Conv (r, k, b)  y = Flatten (c)",
    opset=(7, 13), s=[0, 72, 1, 1], k=(5, 72, 1, 1), b=(5,))
row("convolution of features, padded", "t = Transpose <perm = [0, 2, 3, 1]> (x)  f = Flatten (t)  r = Reshape (f, s)  "
    "c = Conv <pads = [1, 1, 1, 1]> (r, k, b)  y = Flatten (c)", s=[0, 72, 1, 1], k=(5, 72, 3, 3), b=(5,))
row("convolution of each position of a sequence", "r = Reshape (x, s)  c = Conv (r, k, b)  f = Flatten (c)  "
    "y = MatMul (f, w)", s=[0, 6, 12], k=(5, 6, 1), b=(5,), w=(60, 7))
row("convolution over a sequence", "r = Reshape (x, s)  c = Conv (r, k, b)  y = Flatten (c)",
    s=[0, 6, 12], k=(5, 6, 12), b=(5,))
row("convolution over a sequence, grouped", "r = Reshape (x, s)  c = Conv <group = 3> (r, k, b)  y = Flatten (c)",
    s=[0, 6, 12], k=(9, 2, 12), b=(9,))
row("convolution along features", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "c = Conv <pads = [1, 1], strides = [2]> (r, k, b)  y = Flatten (c)", w=(72, 30), s=[0, 3, 10], k=(4, 3, 3), b=(4,))
row("pooling along features", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "p = MaxPool <kernel_shape = [2], strides = [2]> (r)  y = Flatten (p)", w=(72, 10), s=[0, 1, 10])
row("channel attention of features", "p = GlobalAveragePool (x)  q = Squeeze (p, last)  "
    "t = Transpose <perm = [0, 2, 1]> (q)  c = Conv <pads = [1, 1]> (t, k)  g = Sigmoid (c)  m = Mul (t, g)  "
    "f = Flatten (m)  y = MatMul (f, w)", last=[3], k=(1, 1, 3), w=(6, 5))
row("pooling of a sequence", "r = Reshape (x, s)  p = AveragePool <kernel_shape = [12]> (r)  f = Flatten (p)  "
    "y = MatMul (f, w)", s=[0, 6, 12], w=(6, 5))

# Poolings -------------------------------------------------------------------------------------------------------------

POOLS = {"MaxPool": (7, 8, 10, 13, 22), "AveragePool": (7, 10, 13, 19, 22), "LpPool": (7, 11, 18, 22)}
for op, opsets in POOLS.items():
    row(f"{op}", f"m = {op} <kernel_shape = [2, 2]> (x)  {HEAD}", opset=opsets, w=(36, 7))
    row(f"{op} strided", f"m = {op} <kernel_shape = [3, 2], strides = [2, 2]> (x)  {HEAD}",
        image="float[N,6,7,6] x", stride=2, opset=opsets, w=(6 * 3 * 3, 7))
    row(f"{op} padded", f"m = {op} <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 1]> (x)  {HEAD}",
        image="float[N,6,6,7] x", cut="m", stride=2, opset=opsets, w=(6 * 3 * 4, 7))
    row(f"{op} auto_pad", f'm = {op} <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)  {HEAD}',
        image="float[N,6,6,7] x", cut="m", stride=2, opset=opsets, w=(6 * 3 * 4, 7))
    row(f"{op} covers the map", f"p = {op} <kernel_shape = [4, 3]> (x)  f = Flatten (p)  y = MatMul (f, w)",
        opset=opsets, w=(6, 7))
    row(f"{op} covers the map and its padding",
        f"p = {op} <kernel_shape = [5, 5], strides = [5, 5], pads = [0, 0, 1, 2]> (x)  f = Flatten (p)  "
        "y = MatMul (f, w)", opset=opsets, w=(6, 7))
for op, opset in (("MaxPool", 10), ("AveragePool", 10), ("LpPool", 22)):
    row(f"{op} ceil_mode", f"m = {op} <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)  {HEAD}",
        image="float[N,6,7,5] x", cut="m", stride=2, opset=opset, w=(6 * 4 * 3, 7))
for op, opsets in {"MaxPool": (10, 13), "AveragePool": (19, 22), "LpPool": (18, 22)}.items():
    row(f"{op} dilated", f"m = {op} <kernel_shape = [2, 2], dilations = [2, 1]> (x)  {HEAD}",
        opset=opsets, w=(6 * 2 * 2, 7))
row("AveragePool counts its padding",
    f"m = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)  {HEAD}",
    cut="m", opset=(7, 19), w=(72, 7))
row("AveragePool counts its padding and covers the map",
    "p = AveragePool <kernel_shape = [5, 5], strides = [5, 5], pads = [0, 0, 1, 2], count_include_pad = 1> (x)  "
    "f = Flatten (p)  y = MatMul (f, w)", opset=(7, 19), w=(6, 7))
row("LpPool of order 1", f"m = LpPool <kernel_shape = [2, 2], p = 1> (x)  {HEAD}", w=(36, 7))
for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    row(op, f"p = {op} (x)  f = Flatten (p)  y = MatMul (f, w)", opset=(7, 13, 21), w=(6, 7))
row("GlobalLpPool of order 1", "y = GlobalLpPool <p = 1> (x)")
row("pad then conv", f"p = Pad <pads = [0, 0, 1, 0, 0, 0, 1, 2]> (x)  m = Conv (p, k)  {HEAD}",
    opset=(7, 10), cut="m", k=(5, 6, 3, 3), w=(60, 7))
row("pad by operand then conv", f"p = Pad (x, pads, value)  m = Conv (p, k)  {HEAD}",
    opset=(11, 13, 21), cut="m", pads=[0, 0, 1, 0, 0, 0, 1, 2], value=0.5, k=(5, 6, 3, 3), w=(60, 7))
row("pad some axes then conv", f'p = Pad (x, pads, "", axes)  m = Conv (p, k)  {HEAD}',
    opset=18, cut="m", pads=[1, 1], axes=[2], k=(5, 6, 3, 1), w=(60, 7))
row("pad by reflection then conv", f'p = Pad <mode = "reflect"> (x, pads)  m = Conv (p, k)  {HEAD}',
    cut="m", pads=[0, 0, 1, 1, 0, 0, 1, 1], k=(5, 6, 3, 3), w=(60, 7))
row("pad of channels", f"m = Pad (x, pads)  {HEAD}", pads=[0, 1, 0, 0, 0, 2, 0, 0], w=(9 * 12, 7))
row("pad of a part of the channels", f"r = Reshape (x, split)  p = Pad (r, pads, value)  m = Reshape (p, join)  {HEAD}",
    split=[0, 2, 3, 4, 3], pads=[0, 0, 1, 0, 0, 0, 0, 2, 0, 0], value=np.float32(2), join=[0, 12, 4, 3], w=(144, 7))
row("pad of several axes, one of them a part of the channels", f"r = Reshape (x, split)  p = Pad (r, pads)  "
    f"m = Reshape (p, join)  {HEAD}", split=[0, 2, 3, 4, 3], pads=[0, 1, 0, -1, 0, 0, 0, 1, 0, 0], join=[0, 12, 3, 3],
    w=(108, 7))
row("pad of features", "f = Flatten (x)  d = MatMul (f, w)  p = Pad (d, pads, value)  y = MatMul (p, v)",
    w=(72, 5), pads=[0, 1, 0, 1], value=1.0, v=(7, 4))
row("pad that crops", f"m = Pad (x, pads)  {HEAD}", pads=[0, 0, -1, 0, 0, 0, -1, -1], w=(6 * 2 * 2, 7))

# Finer and coarser maps -----------------------------------------------------------------------------------------------

row("Resize twice as fine", f'm = Resize (x, "", scales)  {HEAD}',
    opset=(13, 18, 21), scales=np.float32([1, 1, 2, 2]), w=(288, 5))
row("Resize before opset 11", f"m = Resize (x, scales)  {HEAD}", opset=10, scales=np.float32([1, 1, 2, 2]), w=(288, 5))
row("Resize to sizes", f'm = Resize (x, "", "", sizes)  {HEAD}',
    opset=(13, 19), image="float[1,6,4,3] x", sizes=[1, 6, 8, 9], w=(432, 5))
row("Resize to sizes at run time", "s = Shape (x)  a = Slice (s, zero, two)  t = Concat <axis = 0> (a, sizes)  "
    f'm = Resize (x, "", "", t)  {HEAD}', zero=[0], two=[2], sizes=[8, 9], w=(432, 5), outputs="float[N,5] y")
row("Resize some axes", f'm = Resize <axes = [3]> (x, "", scales)  {HEAD}',
    opset=18, scales=np.float32([3]), w=(216, 5))
row("Resize twice as coarse",
    f'm = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, "", scales)  {HEAD}',
    image="float[N,6,8,6] x", stride=2, scales=np.float32([1, 1, 0.5, 0.5]), w=(72, 5))
row("Resize between cells", f'm = Resize <mode = "linear"> (x, "", scales)  {HEAD}',
    cut="m", step=2, scales=np.float32([1, 1, 2, 2]), w=(288, 5))
row("Resize that copies at the native size", "s = Shape (x)  a = Slice (s, zero, two)  "
    f't = Concat <axis = 0> (a, sizes)  m = Resize <mode = "linear"> (x, "", "", t)  {HEAD}',
    zero=[0], two=[2], sizes=[4, 3], w=(72, 5), outputs="float[N,5] y")
row("Resize symmetric about the middle", 'm = Resize <coordinate_transformation_mode = "half_pixel_symmetric"> '
    f'(x, "", scales)  {HEAD}', opset=19, image="float[N,6,4,6] x", stride=2, scales=np.float32([1, 1, 0.5, 0.5]),
    w=(36, 5))
row("Resize that keeps the aspect ratio", 'm = Resize <keep_aspect_ratio_policy = "not_larger", axes = [2, 3]> '
    f'(x, "", "", sizes)  {HEAD}', opset=18, image="float[N,6,4,6] x", sizes=[20, 12], w=(576, 5))
row("Resize by three", f'm = Resize <mode = "nearest"> (x, "", scales)  {HEAD}', scales=np.float32([1, 1, 3, 3]),
    w=(648, 5))
row("Resize, then a conv of stride 2", f'r = Resize (x, "", scales)  m = Conv <strides = [2, 2]> (r, k)  {HEAD}',
    scales=np.float32([1, 1, 2, 2]), k=(5, 6, 2, 2), w=(60, 7))
row("Upsample by attribute", f"m = Upsample <scales = [1.0, 1.0, 2.0, 3.0]> (x)  {HEAD}", opset=7, w=(432, 5))
row("Upsample by operand", f"m = Upsample (x, scales)  {HEAD}", opset=9, scales=np.float32([1, 1, 2, 3]), w=(432, 5))
for mode in ("DCR", "CRD"):
    row(f"DepthToSpace {mode}", f'm = DepthToSpace <blocksize = 2, mode = "{mode}"> (x)  {HEAD}',
        opset=(11, 13), image="float[N,8,4,3] x", w=(96, 5))
    row(f"DepthToSpace {mode}, then a conv", f'd = DepthToSpace <blocksize = 2, mode = "{mode}"> (x)  '
        f"m = Conv (d, k)  {HEAD}", image="float[N,8,4,3] x", k=(3, 2, 3, 2), w=(90, 5))
row("SpaceToDepth", f"m = SpaceToDepth <blocksize = 2> (x)  {HEAD}", opset=(7, 13), image="float[N,3,4,6] x", w=(72, 5))
row("SpaceToDepth, then a conv", f"d = SpaceToDepth <blocksize = 2> (x)  m = Conv (d, k)  {HEAD}",
    image="float[N,3,6,8] x", stride=2, k=(5, 12, 2, 2), w=(30, 7))

# Reductions -----------------------------------------------------------------------------------------------------------

REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
              "ReduceProd", "ReduceSum", "ReduceSumSquare")
for op in REDUCTIONS:
    # ReduceSum took its axes as an operand five versions before the others did
    before, after = ((7, 11), (13, 18)) if op == "ReduceSum" else ((7, 11, 13), (18, 20))
    on = {"between": (0.5, 1.5)}  # logarithms and products
    row(f"{op} of the window", f"p = {op} <axes = [2, 3]> (x)  f = Flatten (p)  y = MatMul (f, w)",
        opset=before, w=(6, 7), **on)
    row(f"{op} of the window, not kept", f"y = {op} <axes = [-2, -1], keepdims = 0> (x)", opset=before, **on)
    row(f"{op} of channels", f"m = {op} <axes = [1]> (x)  {HEAD}", opset=before, w=(12, 7), **on)
    row(f"{op} of everything", f"y = {op} <axes = [1, 2, 3], keepdims = 0> (x)", opset=before, **on)
    row(f"{op} of features", f"f = Flatten (x)  a = Abs (f)  d = MatMul (a, w)  y = {op} <axes = [1]> (d)",
        opset=before[1:], w=positive("w", 72, 5), **on)
    row(f"{op} of rows", f"m = {op} <axes = [3], keepdims = 0> (x)  {HEAD}", opset=before[1:], w=(24, 7), **on)
    row(f"{op} of groups", f"r = Reshape (x, s)  m = {op} <axes = [2], keepdims = 0> (r)  {HEAD}",
        opset=before[1:], s=[0, 2, 3, 4, 3], w=(24, 7), **on)
    row(f"{op} of the window, operand", f"p = {op} <keepdims = 0> (x, axes)  y = MatMul (p, w)",
        opset=after, axes=[2, 3], w=(6, 7), **on)
    row(f"{op} of channels, operand", f"m = {op} (x, axes)  {HEAD}", opset=after, axes=[1], w=(12, 7), **on)
row("maximum of integers", "i = Cast <to = 6> (x)  p = ReduceMax <axes = [2, 3], keepdims = 0> (i)  "
    "y = Cast <to = 1> (p)", opset=(12, 13), between=(-99, 99))
row("count of positions", "g = Greater (x, zero)  i = Cast <to = 7> (g)  p = ReduceSum <keepdims = 0> (i, axes)  "
    "y = Cast <to = 1> (p)", opset=(13, 18), zero=0.0, axes=[2, 3])
row("reduce nothing", f"m = ReduceSum <noop_with_empty_axes = 1> (x)  {HEAD}", w=(72, 7))
row("ReduceMean channels last", "t = Transpose <perm = [0, 2, 3, 1]> (x)  "
    "p = ReduceMean <axes = [1, 2], keepdims = 0> (t)  y = MatMul (p, w)", w=(6, 5))
row("mean and deviation of the window", "n = ReduceMean <axes = [2, 3]> (x)  d = Sub (x, n)  s = Mul (d, d)  "
    "v = ReduceMean <axes = [2, 3]> (s)  r = Sqrt (v)  c = Concat <axis = 1> (n, r)  f = Flatten (c)  "
    "y = MatMul (f, w)", w=(12, 5))
row("deviation from the mean of all windows", "n = ReduceMean <axes = [2, 3]> (x)  d = Sub (x, n)  s = Mul (d, d)  "
    "v = ReduceMean <axes = [2, 3]> (s)  r = Sqrt (v)  f = Flatten (r)  y = MatMul (f, w)", cut="d", w=(6, 5))
row("mean and maximum joined", "a = GlobalAveragePool (x)  b = GlobalMaxPool (x)  c = Concat <axis = 1> (a, b)  "
    "f = Flatten (c)  y = MatMul (f, w)", w=(12, 5))
for op in ("ArgMax", "ArgMin"):
    row(f"{op} of classes", f"f = Flatten (x)  d = MatMul (f, w)  y = {op} <axis = 1> (d)",
        opset=(7, 11, 13), w=(72, 50))
    row(f"{op} of classes, not kept", f"f = Flatten (x)  d = MatMul (f, w)  y = {op} <axis = -1, keepdims = 0> (d)",
        opset=(11, 13), w=(72, 50))
    row(f"{op} of positions", f"r = Reshape (x, s)  y = {op} <axis = 2> (r)", s=[0, 6, 12])
row("ArgMax, the last", "r = Round (x)  f = Flatten (r)  y = ArgMax <axis = 1, select_last_index = 1> (f)")
row("TopK of classes", "f = Flatten (x)  d = MatMul (f, w)  y, z = TopK (d, k)",
    opset=(10, 11, 13), outputs="y, z", w=(72, 9), k=[4])
row("TopK by attribute", "f = Flatten (x)  d = MatMul (f, w)  y, z = TopK <k = 4, axis = 1> (d)",
    opset=(7, 9), outputs="y, z", w=(72, 9))
row("TopK smallest", "f = Flatten (x)  y, z = TopK <largest = 0> (f, k)", outputs="y, z", k=[4])
row("TopK of groups", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  y, z = TopK (r, k)",
    outputs="y, z", w=(72, 10), s=[0, 2, 5], k=[2])

# Normalisations -------------------------------------------------------------------------------------------------------

BN = {name: positive(name, 6) for name in ("scale", "shift", "mean", "var")}
BN5, BN72 = ({name: positive(name, size) for name in BN} for size in (5, 72))
row("batch norm of a map", f"m = BatchNormalization (x, scale, shift, mean, var)  {HEAD}",
    opset=(7, 9, 14, 15), w=(72, 5), **BN)
row("batch norm of features", "f = Flatten (x)  d = MatMul (f, w)  "
    "n = BatchNormalization <epsilon = 0.1> (d, scale, shift, mean, var)  y = Relu (n)",
    opset=(7, 9, 14, 15), w=(72, 5), **BN5)
row("batch norm of a flattened map", "f = Flatten (x)  n = BatchNormalization (f, scale, shift, mean, var)  "
    "y = MatMul (n, w)", opset=(9, 15), w=(72, 5), **BN72)
row("batch norm of groups", "r = Reshape (x, s)  n = BatchNormalization (r, scale, shift, mean, var)  "
    "f = Flatten (n)  y = MatMul (f, w)", s=[0, 2, 3, 4, 3], w=(72, 5), **{name: positive(name, 2) for name in BN})
row("ImageScaler", f"m = ImageScaler <scale = 0.5, bias = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]> (x)  {HEAD}",
    opset=7, w=(72, 5), outputs="float[N,5] y")
row("LRN", f"m = LRN <size = 3, alpha = 0.5, bias = 2.0> (x)  {HEAD}", opset=(7, 13), w=(72, 5))
MVN = "MeanVarianceNormalization"
row("mean and variance of channels", f"m = {MVN} <axes = [1]> (x)  {HEAD}", opset=(9, 13, 18, NEWEST), w=(72, 5))
row("mean and variance far from zero", f"m = {MVN} <axes = [1]> (x)  {HEAD}", opset=(9, 13), trunk=False, w=(72, 5),
    between=(29, 31))
row("mean and variance of positions", f"m = {MVN} <axes = [2, 3]> (x)  {HEAD}", opset=(9, 13, 18), cut="m", w=(72, 5))
row("mean and variance of one image", f"m = {MVN} (x)  {HEAD}", image="float[1,6,4,3] x", opset=9, cut="m", w=(72, 5))
row("CenterCropPad", "m = CenterCropPad <axes = [2, 3]> (x, s)  f = Flatten (m)  y = MatMul (f, w)", opset=(18, NEWEST),
    s=[2, 3], w=(36, 5))
for op in ("Softmax", "LogSoftmax", "Hardmax"):
    row(f"{op} of classes", f"f = Flatten (x)  d = MatMul (f, w)  y = {op} <axis = 1> (d)",
        opset=(7, 11, 13), w=(72, 5))
    row(f"{op} by default", f"f = Flatten (x)  d = MatMul (f, w)  y = {op} (d)", opset=(7, 11, 13), w=(72, 5))
    row(f"{op} of channels", f"m = {op} <axis = 1> (x)  {HEAD}", opset=13, w=(72, 5))
    row(f"{op} of channels and positions", f"m = {op} <axis = 1> (x)  {HEAD}", opset=(7, 11), w=(72, 5))
    row(f"{op} of positions", f"m = {op} <axis = 2> (x)  {HEAD}", opset=(11, 13), w=(72, 5))
    row(f"{op} of groups", f"f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  y = {op} <axis = 1> (r)",
        opset=(11, 13), w=(72, 10), s=[0, 2, 5])
    row(f"{op} of the last axis of groups", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
        f"y = {op} <axis = -1> (r)", opset=(11, 13), w=(72, 10), s=[0, 2, 5])
    row(f"{op} of a pooled map", f"p = GlobalAveragePool (x)  s = {op} <axis = 1> (p)  y = Flatten (s)", opset=(11, 13))
for p in (1, 2):
    row(f"LpNormalization {p}", f"f = Flatten (x)  d = MatMul (f, w)  y = LpNormalization <axis = 1, p = {p}> (d)",
        opset=(7, 22), w=(72, 5))
row("LpNormalization of groups", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  y = LpNormalization (r)",
    w=(72, 10), s=[0, 2, 5])
row("divided by the norm", "f = Flatten (x)  d = MatMul (f, w)  n = ReduceL2 <axes = [1]> (d)  y = Div (d, n)",
    w=(72, 5))
row("layer norm of features", "f = Flatten (x)  d = MatMul (f, w)  y = LayerNormalization (d, scale, shift)",
    opset=17, w=(72, 5), scale=(5,), shift=(5,))
row("layer norm without shift", "f = Flatten (x)  d = MatMul (f, w)  y = LayerNormalization <epsilon = 0.1> (d, scale)",
    opset=17, w=(72, 5), scale=(5,))
row("layer norm of a flattened map", "f = Flatten (x)  n = LayerNormalization <axis = 1> (f, scale, shift)  "
    "y = MatMul (n, w)", opset=17, w=(72, 5), scale=(72,), shift=(72,))
row("layer norm of a map", f"m = LayerNormalization <axis = 1> (x, scale, shift)  {HEAD}",
    opset=17, w=(72, 5), scale=(6, 4, 3), shift=(6, 4, 3))
row("layer norm of pixels", "t = Transpose <perm = [0, 2, 3, 1]> (x)  n = LayerNormalization (t, scale, shift)  "
    "f = Flatten (n)  y = MatMul (f, w)", opset=17, w=(72, 5), scale=(6,), shift=(6,))
row("layer norm of groups", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "y = LayerNormalization <axis = 1> (r, scale, shift)",
    opset=17, w=(72, 10), s=[0, 2, 5], scale=(2, 5), shift=(2, 5))
row("RMS norm of features", "f = Flatten (x)  d = MatMul (f, w)  y = RMSNormalization (d, scale)",
    opset=23, w=(72, 5), scale=(5,))
row("RMS norm of a map", f"m = RMSNormalization <axis = 1, epsilon = 0.1> (x, scale)  {HEAD}",
    opset=23, w=(72, 5), scale=(6, 4, 3))
row("instance norm is context", f"m = InstanceNormalization (x, scale, shift)  {HEAD}",
    cut="m", scale=(6,), shift=(6,), w=(72, 5))
row("instance norm of groups is context", "r = Reshape (x, s)  n = InstanceNormalization (r, scale, shift)  "
    f"t = Shape (x)  m = Reshape (n, t)  {HEAD}",
    cut="m", s=[0, 2, -1], scale=(2,), shift=(2,), w=(72, 5), outputs="float[N,5] y")
row("instance norm of features", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "n = InstanceNormalization (r, scale, shift)  y = Flatten (n)", w=(72, 10), s=[0, 2, 5], scale=(2,), shift=(2,))
row("instance norm of flattened positions", "r = Reshape (x, s)  n = InstanceNormalization (r, scale, shift)  "
    "f = Flatten (n)  y = MatMul (f, w)", s=[0, 6, 12], scale=(6,), shift=(6,), w=(72, 5))
row("instance norm in one of two heads", "n = InstanceNormalization (x, scale, shift)  f = Flatten (n)  "
    "y = MatMul (f, w)  g = Flatten (x)  z = MatMul (g, w)", outputs="y, z", scale=(6,), shift=(6,), w=(72, 5))
row("group norm is context", f"m = GroupNormalization <num_groups = 2> (x, scale, shift)  {HEAD}",
    opset=21, cut="m", scale=(6,), shift=(6,), w=(72, 5), outputs="float[N,5] y")
row("group norm in one of two heads", "n = GroupNormalization <num_groups = 2> (x, scale, shift)  f = Flatten (n)  "
    "y = MatMul (f, w)  g = Flatten (x)  z = MatMul (g, w)",
    opset=21, outputs="float[N,5] y, float[N,5] z", scale=(6,), shift=(6,), w=(72, 5))
row("group norm of features", "f = Flatten (x)  d = MatMul (f, w)  "
    "y = GroupNormalization <num_groups = 2> (d, scale, shift)",
    opset=21, w=(72, 10), scale=(10,), shift=(10,), outputs="float[N,10] y")

# One value in, one out ------------------------------------------------------------------------------------------------

#: Activation: (first opset, image values that it takes, attributes).
UNARY: dict[str, tuple[int, tuple[float, float], str]] = {
    "Abs": (7, (-2, 2), ""),
    "Acos": (7, (-0.9, 0.9), ""),
    "Acosh": (9, (1.5, 3), ""),
    "Asin": (7, (-0.9, 0.9), ""),
    "Asinh": (9, (-2, 2), ""),
    "Atan": (7, (-2, 2), ""),
    "Atanh": (9, (-0.9, 0.9), ""),
    "Ceil": (7, (-9, 9), ""),
    "Celu": (12, (-2, 2), "<alpha = 0.5>"),
    "Cos": (7, (-2, 2), ""),
    "Cosh": (9, (-2, 2), ""),
    "Elu": (7, (-2, 2), "<alpha = 0.5>"),
    "Erf": (9, (-2, 2), ""),
    "Exp": (7, (-2, 2), ""),
    "Floor": (7, (-9, 9), ""),
    "Gelu": (20, (-2, 2), '<approximate = "tanh">'),
    "HardSigmoid": (7, (-2, 2), "<alpha = 0.3>"),
    "HardSwish": (14, (-4, 4), ""),
    "LeakyRelu": (7, (-2, 2), "<alpha = 0.3>"),
    "Log": (7, (0.1, 2), ""),
    "Mish": (18, (-2, 2), ""),
    "Neg": (7, (-2, 2), ""),
    "Reciprocal": (7, (0.5, 2), ""),
    "Relu": (7, (-2, 2), ""),
    "Round": (11, (-9, 9), ""),
    "Selu": (7, (-2, 2), ""),
    "Shrink": (9, (-2, 2), "<lambd = 0.1, bias = 0.2>"),
    "Sigmoid": (7, (-2, 2), ""),
    "Sign": (9, (-2, 2), ""),
    "Sin": (7, (-2, 2), ""),
    "Sinh": (9, (-2, 2), ""),
    "Softplus": (7, (-2, 2), ""),
    "Softsign": (7, (-2, 2), ""),
    "Sqrt": (7, (0.1, 2), ""),
    "Swish": (24, (-2, 2), ""),
    "Tan": (7, (-1, 1), ""),
    "Tanh": (7, (-2, 2), ""),
    "ThresholdedRelu": (10, (-2, 2), "<alpha = 0.1>"),
    "com.microsoft.Gelu": (13, (-2, 2), ""),
    "com.microsoft.QuickGelu": (13, (-2, 2), "<alpha = 1.2>"),
}
for op, (first, between, attributes) in UNARY.items():
    row(op, f"m = {op} {attributes} (x)  y = Flatten (m)  a = GlobalAveragePool (x)  f = Flatten (a)  "
        f"z = {op} {attributes} (f)",
        opset=sorted({first, max(first, 13)}), outputs="float[N,72] y, float[N,6] z", between=between)
for op, attributes in {"Affine": "alpha = 0.5, beta = 0.1", "ScaledTanh": "alpha = 1.5, beta = 0.7"}.items():
    row(op, f"m = {op} <{attributes}> (x)  {HEAD}", opset=7, w=(72, 5), outputs="float[N,5] y")
row("Clip by attributes", f"m = Clip <min = -0.5, max = 1.0> (x)  {HEAD}", opset=(7, 10), w=(72, 5))
row("Clip by operands", f"m = Clip (x, low, high)  {HEAD}", opset=(11, 13), low=-0.5, high=1.0, w=(72, 5))
row("Clip from above", f'm = Clip (x, "", high)  {HEAD}', high=0.5, w=(72, 5))
row("Clip of features", "f = Flatten (x)  d = MatMul (f, w)  y = Clip (d, zero, six)", w=(72, 5), zero=0.0, six=6.0)
row("IsInf", "s = Sub (x, x)  r = Div (x, s)  i = IsInf (r)  c = Cast <to = 1> (i)  g = Greater (x, s)  "
    "d = Cast <to = 1> (g)  e = Add (c, d)  y = Flatten (e)", opset=(10, 20))
row("IsNaN", "s = Log (x)  i = IsNaN (s)  y = Flatten (i)")
row("Not", "g = Greater (x, zero)  i = Not (g)  y = Flatten (i)", zero=0.0)
row("BitwiseNot", "g = Cast <to = 6> (x)  i = BitwiseNot (g)  y = Flatten (i)", opset=18, between=(-9, 9))
row("PRelu one slope", f"m = PRelu (x, slope)  {HEAD}", opset=(7, 9, 16), slope=(1,), w=(72, 5))
row("PRelu a slope per channel", f"m = PRelu (x, slope)  {HEAD}", opset=(7, 9, 16), slope=(6, 1, 1), w=(72, 5))
row("PRelu a slope per feature", "f = Flatten (x)  d = MatMul (f, w)  y = PRelu (d, slope)",
    opset=(9, 16), w=(72, 5), slope=(5,))

# Several values in, one out -------------------------------------------------------------------------------------------

BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
for op in BINARY:
    opset = 8 if op in ("Max", "Min", "Sum", "Mean") else 7
    c6, c5 = positive("c", 6, 1, 1), positive("c", 5)
    row(f"{op} a constant per channel", f"m = {op} (x, c)  {HEAD}", opset=(opset, 13), c=c6, w=(72, 5))
    row(f"{op} to a constant per channel", f"m = {op} (c, x)  {HEAD}", c=c6[None], w=(72, 5), between=(0.5, 1.5))
    row(f"{op} a number", f"m = {op} (x, c)  {HEAD}", c=0.7, w=(72, 5))
    row(f"{op} a constant per feature", f"f = Flatten (x)  d = MatMul (f, w)  y = {op} (d, c)",
        opset=(opset, 13), w=(72, 5), c=c5)
    row(f"{op} to a constant per feature", f"f = Flatten (x)  y = {op} (c, f)",
        c=positive("c", 1, 72), between=(0.5, 1.5))
    row(f"{op} maps", f"a = Sigmoid (x)  m = {op} (x, a)  {HEAD}", opset=(opset, 13), w=(72, 5))
    row(f"{op} features", f"f = Flatten (x)  a = MatMul (f, w)  b = MatMul (f, v)  e = Exp (b)  y = {op} (a, e)",
        w=(72, 5), v=(72, 5))
row("Add three constants", "f = Flatten (x)  d = MatMul (f, w)  y = Sum (d, a, b)",
    opset=8, w=(72, 5), a=(5,), b=(1, 5))
row("Pow", f"m = Pow (x, c)  {HEAD}", opset=(7, 13), c=2.0, w=(72, 5))
row("Pow per channel", f"m = Pow (x, c)  {HEAD}", c=positive("c", 6, 1, 1), w=(72, 5), between=(0.5, 2))
row("Mod", f"m = Mod <fmod = 1> (x, c)  {HEAD}", opset=(10, 13), c=0.7, w=(72, 5))
row("residual", "f = Flatten (x)  d = MatMul (f, w)  r = Relu (d)  e = MatMul (r, v)  a = Add (d, e)  "
    "y = MatMul (a, u)", w=(72, 7), v=(7, 7), u=(7, 5))
row("residual of a map", f"c = Conv (x, k)  m = Add (x, c)  {HEAD}", k=(6, 6, 1, 1), w=(72, 5))
row("residual of a channels-last map", "t = Transpose <perm = [0, 2, 3, 1]> (x)  d = MatMul (t, w)  a = Add (d, t)  "
    "f = Flatten (a)  y = MatMul (f, v)", w=(6, 6), v=(72, 5))
row("gated", "f = Flatten (x)  a = MatMul (f, w)  b = MatMul (f, v)  s = Sigmoid (b)  y = Mul (a, s)",
    w=(72, 5), v=(72, 5))
row("a gate of one feature", "f = Flatten (x)  a = MatMul (f, w)  b = MatMul (f, v)  y = Mul (a, b)",
    w=(72, 5), v=(72, 1))
row("features against groups", "f = Flatten (x)  a = MatMul (f, w)  b = MatMul (f, v)  r = Reshape (a, s)  "
    "q = Unsqueeze (b, axes)  p = Mul (r, q)  y = Flatten (p)", w=(72, 10), v=(72, 2), s=[0, 2, 5], axes=[2])
row("a constant per feature of a flattened map", "f = Flatten (x)  a = Mul (f, c)  b = Add (a, d)  y = MatMul (b, w)",
    c=(72,), d=(72,), w=(72, 5))
row("a constant per element of a map", f"m = Mul (x, c)  {HEAD}", c=(6, 4, 3), w=(72, 5))
row("a constant per channel of a channels-last map", "t = Transpose <perm = [0, 2, 3, 1]> (x)  a = Mul (t, c)  "
    "f = Flatten (a)  y = MatMul (f, w)", c=(6,), w=(72, 5))
row("a constant that adds axes", "f = Flatten (x)  d = MatMul (f, w)  y = Add (d, c)",
    image="float[1,6,4,3] x", w=(72, 5), c=(3, 1, 5))
row("an outer product with a constant", "f = Flatten (x)  d = MatMul (f, w)  u = Unsqueeze (d, axes)  p = Mul (u, c)  "
    "y = Flatten (p)", w=(72, 5), axes=[2], c=(4,))
row("mean subtracted", "f = Flatten (x)  d = MatMul (f, w)  n = ReduceMean <axes = [1]> (d)  y = Sub (d, n)", w=(72, 5))
row("mean of the window subtracted", "n = ReduceMean <axes = [2, 3]> (x)  d = Sub (x, n)  f = Flatten (d)  "
    "y = MatMul (f, w)", cut="d", w=(72, 5))
for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    first = {"Equal": 11, "GreaterOrEqual": 12, "LessOrEqual": 12}.get(op, 9)
    row(op, f"r = Round (x)  b = {op} (r, c)  y = Flatten (b)", opset=(max(first, 11), 13), c=0.0)
    row(f"{op} features", "f = Flatten (x)  a = MatMul (f, w)  b = MatMul (f, v)  c = Round (a)  d = Round (b)  "
        f"y = {op} (c, d)", opset=(max(first, 11), 13), w=(72, 5), v=(72, 5))
for op in ("And", "Or", "Xor"):
    row(op, f"g = Greater (x, zero)  c = Conv (x, k)  l = Greater (c, zero)  b = {op} (g, l)  y = Flatten (b)",
        zero=0.0, k=(6, 6, 1, 1))
for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    row(op, f"a = Cast <to = 6> (x)  b = {op} (a, c)  y = Flatten (b)",
        opset=18, between=(-99, 99), c=np.arange(6, dtype=np.int32).reshape(6, 1, 1) + 90)
row("BitShift", 'a = Cast <to = 2> (x)  b = BitShift <direction = "RIGHT"> (a, c)  y = Flatten (b)',
    opset=11, between=(0, 255), c=np.arange(6, dtype=np.uint8).reshape(6, 1, 1))
row("Where", f"g = Greater (x, zero)  m = Where (g, x, c)  {HEAD}", opset=(9, 16), zero=0.0, c=(6, 1, 1), w=(72, 5))
row("Where on constants", f"g = Greater (x, zero)  m = Where (g, a, b)  {HEAD}",
    zero=0.0, a=(6, 1, 1), b=0.3, w=(72, 5))
row("Where by a constant", "f = Flatten (x)  d = MatMul (f, w)  y = Where (mask, d, low)",
    w=(72, 5), mask=np.arange(5) % 2 == 0, low=-3.0)
row("outer product of features", "f = Flatten (x)  d = MatMul (f, w)  a = Unsqueeze (d, i)  b = Unsqueeze (d, j)  "
    "m = Mul (a, b)  g = Flatten (m)  y = MatMul (g, v)", w=(72, 5), i=[1], j=[2], v=(25, 7))
row("outer product of positions", "r = Reshape (x, s)  a = Unsqueeze (r, i)  b = Unsqueeze (r, j)  m = Sub (a, b)  "
    "n = Abs (m)  y = ReduceMax <axes = [2], keepdims = 0> (n)", s=[0, 6, 12], i=[2], j=[3])
row("sum with its transpose", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "t = Transpose <perm = [0, 2, 1]> (r)  y = Add (r, t)", w=(72, 9), s=[0, 3, 3])
row("per-image values", "f = Flatten (x)  d = MatMul (f, w)  g = MatMul (e, v)  y = Mul (d, g)",
    image="float[N,6,4,3] x, float[N,2] e", w=(72, 5), v=(2, 5))
row("per-image values joined", "f = Flatten (x)  d = MatMul (f, w)  c = Concat <axis = 1> (d, e)  y = MatMul (c, v)",
    image="float[N,6,4,3] x, float[N,2] e", w=(72, 5), v=(7, 3))

# Join, cut and choose -------------------------------------------------------------------------------------------------

row("Concat of maps", f"a = Relu (x)  b = Conv (x, k)  m = Concat <axis = 1> (a, b)  {HEAD}",
    opset=(7, 13), k=(2, 6, 1, 1), w=(96, 5))
row("Concat of features", "f = Flatten (x)  a = MatMul (f, w)  b = MatMul (f, v)  y = Concat <axis = 1> (b, a)",
    w=(72, 5), v=(72, 2))
row("Concat of three", "f = Flatten (x)  a = MatMul (f, w)  b = Relu (a)  c = Concat <axis = -1> (a, b, a)  "
    "y = MatMul (c, v)", w=(72, 5), v=(15, 4))
row("Concat of one", "f = Flatten (x)  c = Concat <axis = 1> (f)  y = MatMul (c, w)", w=(72, 5))
row("Concat of flattened maps", "a = Flatten (x)  p = MaxPool <kernel_shape = [2, 2]> (x)  b = Flatten (p)  "
    "c = Concat <axis = 1> (a, b)  y = MatMul (c, w)", w=(108, 5))
row("Concat with pooled features", "f = Flatten (x)  p = GlobalAveragePool (x)  q = Flatten (p)  "
    "c = Concat <axis = 1> (f, q)  y = MatMul (c, w)", w=(78, 5))
row("Concat of a new axis", "f = Flatten (x)  a = MatMul (f, w)  b = MatMul (f, v)  c = Unsqueeze (a, axes)  "
    "d = Unsqueeze (b, axes)  y = Concat <axis = 2> (c, d)", w=(72, 5), v=(72, 5), axes=[2])
row("Concat with a constant", "f = Flatten (x)  d = MatMul (f, w)  y = Concat <axis = 1> (d, c)",
    image="float[1,6,4,3] x", w=(72, 5), c=(1, 2))
row("Concat with its transpose", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "t = Transpose <perm = [0, 2, 1]> (r)  y = Concat <axis = 1> (r, t)", w=(72, 9), s=[0, 3, 3])
row("Concat of groups", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  n = Neg (r)  "
    "c = Concat <axis = 2> (r, n)  y = Flatten (c)", w=(72, 10), s=[0, 2, 5])
for form, opset, sizes in (("<split = [2, 4], axis = 1>", (7, 11), ""), ("<axis = 1>", (13, 18), ", sizes")):
    rest = {"sizes": [2, 4]} if sizes else {}
    row(f"Split of a map {form}", f"a, b = Split {form} (x{sizes})  f = Flatten (a)  y = MatMul (f, w)  "
        "g = Flatten (b)  z = MatMul (g, v)", opset=opset, outputs="y, z", w=(24, 5), v=(48, 7), **rest)
    row(f"Split of features {form}", f"f = Flatten (x)  d = MatMul (f, w)  y, z = Split {form} (d{sizes})",
        opset=opset, outputs="y, z", w=(72, 6), **rest)
row("Split evenly", "f = Flatten (x)  d = MatMul (f, w)  a, b = Split <axis = 1> (d)  s = Sigmoid (b)  y = Mul (a, s)",
    opset=(7, 11, 13), w=(72, 10))
row("Split by a count", "f = Flatten (x)  d = MatMul (f, w)  y, z = Split <axis = 1, num_outputs = 2> (d)",
    opset=(18, 21), outputs="y, z", w=(72, 5))
row("Slice by attributes", "s = Slice <starts = [1], ends = [5], axes = [1]> (x)  f = Flatten (s)  d = MatMul (f, w)  "
    "y = Slice <starts = [1], ends = [1000], axes = [1]> (d)", opset=(7, 9), w=(48, 5))
row("Slice by operands", "s = Slice (x, one, five, axes)  f = Flatten (s)  d = MatMul (f, w)  "
    "y = Slice (d, one, end, axes)", opset=(10, 13), one=[1], five=[5], end=[2**63 - 1], axes=[1], w=(48, 5))
row("Slice with steps", "f = Flatten (x)  d = MatMul (f, w)  y = Slice (d, start, end, axes, steps)",
    start=[1], end=[9], axes=[1], steps=[3], w=(72, 9))
row("Slice backwards", "f = Flatten (x)  d = MatMul (f, w)  y = Slice (d, start, end, axes, steps)",
    start=[-1], end=[-100], axes=[1], steps=[-2], w=(72, 9))
row("Slice of the window", f"m = Slice (x, starts, ends, axes)  {HEAD}",
    starts=[1, 0], ends=[4, -1], axes=[2, 3], w=(36, 5))
for end, width in ((2**63 - 1, 6), (2**63 - 1, 7), (-1, 6), (-1, 7)):
    row(f"Slice every other cell up to {end} of {width} before a padding",
        f"s = Slice (x, zero, end, axis, two)  m = Conv <pads = [1, 1, 1, 1]> (s, k)  {HEAD}",
        image=f"float[N,6,4,{width}] x", cut="m", zero=[0], end=[end], axis=[3], two=[2], k=(5, 6, 3, 3),
        w=(20 * len(range(width)[:end:2]), 5))
row("Slice every other cell", f"m = Slice (x, starts, ends, axes, steps)  {HEAD}",
    image="float[N,6,7,6] x", stride=2, starts=[0, 1], ends=[7, 6], axes=[2, 3], steps=[2, 2], w=(72, 5))
row("Slice of one cell", f"m = Slice (x, starts, ends, axes)  {HEAD}",
    starts=[2, 1], ends=[3, 2], axes=[2, 3], w=(6, 5))
row("Gather of features", "f = Flatten (x)  d = MatMul (f, w)  y = Gather <axis = 1> (d, index)",
    w=(72, 9), index=[7, 0, 3, 3])
row("Gather of one feature", "f = Flatten (x)  d = MatMul (f, w)  y = Gather <axis = 1> (d, index)",
    w=(72, 9), index=-2)
row("Gather of a table", "f = Flatten (x)  d = MatMul (f, w)  y = Gather <axis = 1> (d, index)",
    w=(72, 9), index=np.array([[7, 0, 3], [-1, 2, 8]]))
row("CumSum", "f = Flatten (x)  d = MatMul (f, w)  y = CumSum (d, axis)", opset=(11, 14), w=(72, 5), axis=1)
row("CumSum of groups", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  "
    "y = CumSum <exclusive = 1, reverse = 1> (r, axis)", w=(72, 10), s=[0, 5, 2], axis=np.int32(-2))
row("Gather of channels", f"m = Gather <axis = 1> (x, index)  {HEAD}", index=[5, 0, 3, 1], w=(48, 5))
row("GatherND of features", "f = Flatten (x)  d = MatMul (f, w)  t = Transpose (d)  g = GatherND (t, index)  "
    "y = Transpose (g)", opset=(11, 13), w=(72, 9), index=[[7], [0], [3]])
row("Gather of rows", f"m = Gather <axis = 2> (x, index)  {HEAD}", index=[3, 0], w=(36, 5))
row("Gather of one position", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1]> (r)  "
    "g = Gather <axis = 1> (t, index)  y = MatMul (g, w)", s=[0, 6, 12], index=7, w=(6, 5))

# Quantised ------------------------------------------------------------------------------------------------------------

def integers(name: str, *shape: int) -> np.ndarray:
    """Weights of 7 bits: on processors without VNNI, onnxruntime adds pairs of products in 16 bits, which saturate."""
    return np.random.default_rng(len(name)).integers(-63, 64, shape).astype(np.int8)


Q = {"s": 0.02, "z": np.int8(3), "u": 0.05, "o": np.int8(-4)}
row("quantised activations", "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  f = Flatten (d)  "
    "m = MatMul (f, w)  r = QuantizeLinear (m, u, o)  y = DequantizeLinear (r, u, o)",
    opset=(10, 13, 19, 21), w=(72, 5), **Q)
row("quantised weight", "f = Flatten (x)  w = DequantizeLinear (k, s)  y = MatMul (f, w)",
    opset=(10, 13, 21), k=integers("k", 72, 5), s=0.02)
row("quantised weight, laid out", "t = Transpose <perm = [0, 2, 3, 1]> (x)  f = Flatten (t)  "
    "w = DequantizeLinear (k, s)  y = Gemm <transB = 1, alpha = 2.0> (f, w, b)", k=integers("k", 5, 72), s=0.02, b=(5,))
row("quantised weight per channel", "f = Flatten (x)  w = DequantizeLinear <axis = 0> (k, s, z)  "
    "y = Gemm <transB = 1> (f, w)", k=integers("k", 5, 72), s=positive("s", 5), z=integers("z", 5))
row("quantised weight per channel, last", "f = Flatten (x)  w = DequantizeLinear <axis = 1> (k, s)  y = MatMul (f, w)",
    k=integers("k", 72, 5), s=positive("s", 5))
row("quantised weight per input", "f = Flatten (x)  w = DequantizeLinear <axis = 0> (k, s)  y = MatMul (f, w)",
    k=integers("k", 72, 5), s=positive("s", 72))
row("quantised weight, transposed", "f = Flatten (x)  d = DequantizeLinear <axis = 0> (k, s)  w = Transpose (d)  "
    "y = MatMul (f, w)", k=integers("k", 5, 72), s=positive("s", 5))
row("quantised bias", "f = Flatten (x)  w = DequantizeLinear (k, s)  b = DequantizeLinear (c, u)  y = Gemm (f, w, b)",
    k=integers("k", 72, 5), s=0.02, c=np.arange(-2, 3, dtype=np.int32) * 100, u=0.01)
row("quantised per channel", "q = QuantizeLinear <axis = 1> (x, s, z)  d = DequantizeLinear <axis = 1> (q, s, z)  "
    "f = Flatten (d)  y = MatMul (f, w)",
    opset=(13, 21), s=positive("s", 6) / 20, z=np.arange(6, dtype=np.int8), w=(72, 5))
row("quantised between reshapes", "q = QuantizeLinear (x, s, z)  f = Flatten (q)  d = DequantizeLinear (f, s, z)  "
    "y = MatMul (d, w)", w=(72, 5), s=0.02, z=np.uint8(128))

U = "q = QuantizeLinear (x, s, z)"
V = {"s": 0.02, "z": np.uint8(120), "t": 0.01, "zero": np.int8(0), "u": 0.05, "o": np.uint8(131)}
row("QLinearConv", f"{U}  c = QLinearConv (q, s, z, k, t, zero, u, o, b)  m = DequantizeLinear (c, u, o)  {HEAD}",
    opset=(10, 13), k=integers("k", 5, 6, 2, 2), b=np.arange(5, dtype=np.int32) * 99, w=(30, 7), **V)
row("QLinearConv of features", f"{U}  f = Reshape (q, d)  c = QLinearConv (f, s, z, k, t, zero, u, o, b)  "
    "y = Flatten (c)", d=[0, 72, 1, 1], k=integers("k", 5, 72, 1, 1), b=np.arange(5, dtype=np.int32) * 99, **V)
row("QLinearConv covers the map", f"{U}  c = QLinearConv (q, s, z, k, t, zero, u, o)  y = Flatten (c)",
    k=integers("k", 5, 6, 4, 3), **V)
row("QLinearMatMul", f"{U}  f = Flatten (q)  y = QLinearMatMul (f, s, z, k, t, zero, u, o)",
    opset=(10, 13, 21), k=integers("k", 72, 5), **V)
row("QLinearMatMul per column", f"{U}  f = Flatten (q)  y = QLinearMatMul (f, s, z, k, t, zero, u, o)",
    k=integers("k", 72, 5), **V | {"t": positive("t", 5) / 99, "zero": np.zeros(5, np.int8)})
row("MatMulInteger", f"{U}  f = Flatten (q)  y = MatMulInteger (f, k, z)",
    k=integers("k", 72, 5), s=0.02, z=np.uint8(120))
row("MatMulInteger with zero points", f"{U}  f = Flatten (q)  y = MatMulInteger (f, k, z, zero)",
    k=integers("k", 72, 5), s=0.02, z=np.uint8(120), zero=np.arange(5, dtype=np.int8))
row("ConvInteger", f"{U}  c = ConvInteger (q, k, z)  m = Cast <to = 1> (c)  {HEAD}",
    k=integers("k", 5, 6, 2, 2), s=0.02, z=np.uint8(120), w=(30, 7))
row("dynamic quantisation is context", "q, s, z = DynamicQuantizeLinear (x)  f = Flatten (q)  "
    "i = MatMulInteger (f, k, z)  c = Cast <to = 1> (i)  t = Mul (s, u)  d = Mul (c, t)  y = Add (d, b)",
    opset=(11, 13), cut="q", context=("s", "z"), k=integers("k", 72, 5), u=0.01, b=(5,))
row("QGemm", f"{U}  f = Flatten (q)  y = com.microsoft.QGemm <transB = 1> (f, s, z, k, t, zero, b, u, o)",
    outputs="uint8[N,5] y", k=integers("k", 5, 72), b=np.arange(5, dtype=np.int32) * 99, **V)
row("QGemm to floats", f"{U}  f = Flatten (q)  y = com.microsoft.QGemm (f, s, z, k, t, zero, b)",
    outputs="float[N,5] y", k=integers("k", 72, 5), b=np.arange(5, dtype=np.int32) * 99,
    **{k: v for k, v in V.items() if k not in "uo"})
row("QLinear arithmetic", f"{U}  a = com.microsoft.QLinearSigmoid (q, s, z, v, n)  "
    "b = com.microsoft.QLinearLeakyRelu <alpha = 0.2> (q, s, z, s, z)  "
    "c = com.microsoft.QLinearMul (a, v, n, b, s, z, s, z)  e = com.microsoft.QLinearAdd (c, s, z, q, s, z, u, o)  "
    f"m = com.microsoft.DequantizeLinear (e, u, o)  {HEAD}",
    v=1 / 256, n=np.uint8(0), w=(72, 5), outputs="float[N,5] y", **{k: v for k, v in V.items() if k in "szuo"})
row("QLinearGlobalAveragePool", "q = com.microsoft.QuantizeLinear (x, s, z)  "
    "p = com.microsoft.QLinearGlobalAveragePool (q, s, z, u, o)  y = Flatten (p)",
    outputs="uint8[N,6] y", s=0.02, z=np.uint8(120), u=0.01, o=np.uint8(131))
W = {k: v for k, v in V.items() if k in "szo"} | {"u": 0.0137}  # no mean of whole numbers lies halfway between two
row("QLinearAveragePool", f"{U}  p = com.microsoft.QLinearAveragePool <kernel_shape = [2, 2]> (q, s, z, u, o)  "
    f"m = DequantizeLinear (p, u, o)  {HEAD}", w=(36, 5), outputs="float[N,5] y", **W)
row("QLinearAveragePool of a sequence", f"{U}  r = Reshape (q, d)  "
    "p = com.microsoft.QLinearAveragePool <kernel_shape = [12]> (r, s, z, u, o)  y = Flatten (p)",
    d=[0, 6, 12], outputs="uint8[N,6] y", **W)
row("QLinearAveragePool along features", "f = Flatten (x)  m = MatMul (f, w)  r = Reshape (m, d)  "
    "q = QuantizeLinear (r, s, z)  p = com.microsoft.QLinearAveragePool <kernel_shape = [3], strides = [3]> "
    "(q, s, z, s, z)  i = DequantizeLinear (p, s, z)  y = Flatten (i)", w=(72, 9), d=[0, 1, 9],
    outputs="float[N,3] y", s=0.2, z=np.uint8(120))
row("quantised residual, pooled", f"{U}  c = QLinearConv (q, s, z, k, t, zero, u, o)  "
    "e = com.microsoft.QLinearAdd (c, u, o, q, s, z, u, o)  "
    "p = com.microsoft.QLinearGlobalAveragePool (e, u, o, v, o)  f = Flatten (p)  "
    "y = com.microsoft.QGemm <transB = 1> (f, v, o, h, t, zero, b, s, z)", outputs="uint8[N,5] y",
    v=0.0137, k=integers("k", 6, 6, 1, 1), h=integers("h", 5, 6), b=np.arange(5, dtype=np.int32) * 99, **V)
row("QLinearConcat", f"{U}  r = com.microsoft.QLinearConcat <axis = 1> (u, o, q, s, z, q, s, z)  "
    f"m = DequantizeLinear (r, u, o)  {HEAD}", w=(144, 5), outputs="float[N,5] y", **W)
row("QLinearSoftmax", f"{U}  f = Flatten (q)  r = com.microsoft.QLinearSoftmax <axis = 1, opset = 13> (f, s, z, u, o)  "
    "y = DequantizeLinear (r, u, o)", outputs="float[N,72] y", **W | {"u": 1 / 256, "o": np.uint8(0)})
row("quantised gate", f"{U}  p = com.microsoft.QLinearGlobalAveragePool (q, s, z, s, z)  "
    "g = com.microsoft.QLinearSigmoid (p, s, z, v, n)  h = com.microsoft.QLinearMul (q, s, z, g, v, n, s, z)  "
    f"c = QLinearConv (h, s, z, k, t, zero, u, o)  m = DequantizeLinear (c, u, o)  {HEAD}",
    cut="c", v=1 / 256, n=np.uint8(0), k=integers("k", 5, 6, 2, 2), w=(30, 7), outputs="float[N,7] y", **V)
NBITS = "K = 72, N = 5, bits = 4, block_size = 16"
row("MatMulNBits", f"f = Flatten (x)  y = com.microsoft.MatMulNBits <{NBITS}> (f, k, s)",
    outputs="float[N,5] y", k=integers("k", 5, 5, 8).view(np.uint8), s=positive("s", 25))
row("MatMulNBits with zero points", f"f = Flatten (x)  y = com.microsoft.MatMulNBits <{NBITS}> (f, k, s, z)",
    outputs="float[N,5] y", k=integers("k", 5, 5, 8).view(np.uint8), s=positive("s", 25),
    z=integers("z", 15).view(np.uint8))

# Fused by onnxruntime -------------------------------------------------------------------------------------------------

row("FusedConv", f'm = com.microsoft.FusedConv <activation = "LeakyRelu", activation_params = [0.2]> (x, k, b)  {HEAD}',
    k=(5, 6, 2, 2), b=(5,), w=(30, 7), outputs="float[N,7] y")
row("FusedGemm", "f = Flatten (x)  "
    'y = com.microsoft.FusedGemm <activation = "LeakyRelu", activation_alpha = 0.2, transB = 1> (f, w, b)',
    w=(5, 72), b=(5,), outputs="float[N,5] y")
row("FusedMatMul", "f = Flatten (x)  y = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (f, w)",
    w=(5, 72), outputs="float[N,5] y")
row("FusedMatMul transposed", "f = Reshape (x, s)  a = com.microsoft.FusedMatMul <transA = 1> (f, w)  y = Flatten (a)",
    s=[0, 72, 1], w=(72, 5), outputs="float[N,5] y")
for op in ("BiasGelu", "FastGelu"):
    row(op, f"f = Flatten (x)  d = MatMul (f, w)  y = com.microsoft.{op} (d, b)",
        w=(72, 5), b=(5,), outputs="float[N,5] y")

# Whole heads, outputs, context ----------------------------------------------------------------------------------------

row("several outputs", "f = Flatten (x)  y = MatMul (f, w)  z = Softmax (y)  r = Relu (f)  q = MatMul (r, v)",
    outputs="y, z, q", w=(72, 5), v=(72, 7))
row("an output that is read again", "f = Flatten (x)  y = MatMul (f, w)  z = Relu (y)  q = MatMul (z, v)",
    outputs="q, y, z", w=(72, 7), v=(7, 5))
row("features and answers", "p = GlobalAveragePool (x)  y = Flatten (p)  z = MatMul (y, w)", outputs="z, y", w=(6, 5))
row("two heads on two maps", "f = Flatten (x)  y = MatMul (f, w)  c = Conv (x, k)  g = Flatten (c)  z = MatMul (g, v)",
    outputs="y, z", w=(72, 5), k=(5, 6, 2, 2), v=(30, 7))
row("an MLP", "f = Flatten (x)  a = Gemm (f, w, b)  r = Relu (a)  e = Dropout (r)  g = Gemm (e, v, c)  "
    "y = Softmax <axis = 1> (g)", opset=(7, 11, 13), w=(72, 7), b=(7,), v=(7, 5), c=(5,))
row("maxout", "f = Flatten (x)  d = MatMul (f, w)  r = Reshape (d, s)  y = ReduceMax <axes = [2], keepdims = 0> (r)",
    w=(72, 10), s=[0, 5, 2])
row("gated linear unit", "f = Flatten (x)  d = MatMul (f, w)  a = Slice (d, zero, five, one)  "
    "b = Slice (d, five, ten, one)  s = Sigmoid (b)  y = Mul (a, s)", w=(72, 10), zero=[0], five=[5], ten=[10], one=[1])
row("cosine classifier", "f = Flatten (x)  n = ReduceL2 <axes = [1]> (f)  d = Div (f, n)  "
    "a = ReduceL2 <axes = [1]> (v)  b = Div (v, a)  y = Gemm <transB = 1, alpha = 16.0> (d, b)", v=(5, 72))
row("mixture of experts", "f = Flatten (x)  a = MatMul (f, w)  s = Softmax (a)  r = Unsqueeze (s, axes)  "
    "b = MatMul (f, v)  e = Reshape (b, t)  p = Mul (e, r)  y = ReduceSum <keepdims = 0> (p, two)",
    w=(72, 4), axes=[1], v=(72, 20), t=[0, 5, 4], two=[2])
row("channel shuffle", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1, 3, 4]> (r)  q = Reshape (t, u)  "
    "c = Conv <group = 2> (q, k)  f = Flatten (c)  y = MatMul (f, w)",
    s=[-1, 2, 3, 4, 3], u=[-1, 6, 4, 3], k=(4, 3, 2, 2), w=(24, 5))
row("channel shuffle twice", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1, 3, 4]> (r)  q = Reshape (t, u)  "
    "p = Reshape (q, s)  o = Transpose <perm = [0, 2, 1, 3, 4]> (p)  m = Reshape (o, u)  c = Conv (m, k)  "
    "f = Flatten (c)  y = MatMul (f, w)", s=[-1, 2, 3, 4, 3], u=[-1, 6, 4, 3], k=(4, 6, 2, 2), w=(24, 5))
row("If by a constant", "p = GlobalAveragePool (x)  c = Constant <value = bool[1] {1}> ()  "
    "r = If (c) <then_branch = t () => (a) { a = Squeeze (p, axes) }, else_branch = e () => (b) { b = Identity (p) }>  "
    "y = MatMul (r, w)", axes=[2, 3], w=(6, 5), outputs="float[N,5] y")
row("If by a constant chooses a weight", "c = Constant <value = bool {0}> ()  "
    "v = If (c) <then_branch = t () => (a) { a = Identity (w) }, else_branch = e () => (b) { b = Neg (w) }>  "
    "f = Flatten (x)  y = MatMul (f, v)", w=(72, 5), outputs="float[N,5] y")
row("If by a constant within an If", "yes = Constant <value = bool {1}> ()  no = Constant <value = bool {0}> ()  "
    "v = If (no) <then_branch = t () => (a) { a = Identity (w) }, else_branch = e () => (b) { "
    "b = If (yes) <then_branch = i () => (d) { d = Add (w, u) }, else_branch = j () => (g) { g = Identity (u) }> }>  "
    "f = Flatten (x)  y = MatMul (f, v)", w=(72, 5), u=(72, 1), outputs="float[N,5] y")
row("Ifs by constants, whose branches use the same names", "c = Constant <value = bool {1}> ()  "
    "v = If (c) <then_branch = t () => (a) { k = Neg (w)  a = Neg (k) }, else_branch = e () => (b) { b = Neg (w) }>  "
    "z = If (c) <then_branch = t () => (a) { k = Abs (u)  a = Neg (k) }, else_branch = e () => (b) { b = Neg (u) }>  "
    "f = Flatten (x)  d = MatMul (f, v)  y = MatMul (d, z)", w=(72, 5), u=(5, 7), outputs="float[N,7] y")
row("Ifs of maps, whose branches use the same names", "c = Constant <value = bool {1}> ()  "
    "v = If (c) <then_branch = t () => (a) { k = Neg (x)  a = Relu (k) }, else_branch = e () => (b) { b = Neg (x) }>  "
    "z = If (c) <then_branch = t () => (a) { k = Abs (v)  a = Sqrt (k) }, else_branch = e () => (b) { b = Neg (v) }>  "
    "f = Flatten (z)  y = MatMul (f, w)", w=(72, 5), outputs="float[N,5] y")
row("Loop over constants", "v = Loop (n, yes, w) <body = l (int64 i, bool c, float[72,5] s) => (bool d, float[72,5] o) "
    "{ d = Identity (c)  o = Add (s, u) }>  f = Flatten (x)  y = MatMul (f, v)",
    n=3, yes=True, w=(72, 5), u=(5,), outputs="float[N,5] y")
GATE = "p = GlobalAveragePool (x)  a = Conv (p, v)  r = Relu (a)  b = Conv (r, u)  g = Sigmoid (b)"
row("squeeze and excite", f"{GATE}  m = Mul (x, g)  {HEAD}", cut="m", v=(2, 6, 1, 1), u=(6, 2, 1, 1), w=(72, 5))
row("squeeze and excite, fused convolutions", 'p = GlobalAveragePool (x)  '
    'r = com.microsoft.FusedConv <activation = "Relu"> (p, v, c)  g = com.microsoft.FusedConv '
    f'<activation = "Sigmoid"> (r, u)  m = Mul (x, g)  {HEAD}', cut="m", v=(2, 6, 1, 1), c=(2,), u=(6, 2, 1, 1),
    w=(72, 5), outputs="float[N,5] y")
for layer in ('FusedGemm <activation = "Relu"> (q, v)', "FusedMatMul <alpha = 2.0> (q, v)",
              "FusedMatMul <transB = 1> (q, t)"):
    row(f"squeeze and excite by {layer}", f"p = GlobalAveragePool (x)  q = Flatten (p)  r = com.microsoft.{layer}  "
        "e = com.microsoft.Gelu (r)  b = Gemm (e, u)  s = Sigmoid (b)  g = Unsqueeze (s, axes)  "
        f"m = Mul (x, g)  {HEAD}", cut="m", v=(6, 2), t=(2, 6), u=(2, 6), axes=[2, 3], w=(72, 5),
        outputs="float[N,5] y")
row("feature maps scaled and shifted by a second input", "d = Gemm (t, v)  a, b = Split <axis = 1> (d)  "
    f"g = Unsqueeze (a, axes)  e = Unsqueeze (b, axes)  s = Mul (x, g)  m = Add (s, e)  {HEAD}",
    image="float[N,6,4,3] x, float[N,4] t", v=(4, 12), axes=[2, 3], w=(72, 5))
row("squeeze and excite, pooled head", f"{GATE}  m = Mul (g, x)  h = GlobalAveragePool (m)  f = Flatten (h)  "
    "y = MatMul (f, w)", cut="m", v=(2, 6, 1, 1), u=(6, 2, 1, 1), w=(6, 5))
row("squeeze and excite, dense", "p = ReduceMean <axes = [2, 3], keepdims = 0> (x)  a = Gemm (p, v, c)  r = Relu (a)  "
    f"b = Gemm (r, u)  g = Sigmoid (b)  q = Reshape (g, s)  m = Mul (x, q)  {HEAD}",
    cut="m", v=(6, 2), c=(2,), u=(2, 6), s=[-1, 6, 1, 1], w=(72, 5))
row("squeeze and excite, channels last", "t = Transpose <perm = [0, 2, 3, 1]> (x)  "
    "p = ReduceMean <axes = [1, 2], keepdims = 1> (t)  a = MatMul (p, v)  g = Sigmoid (a)  e = Mul (t, g)  "
    f"m = Transpose <perm = [0, 3, 1, 2]> (e)  {HEAD}", cut="m", v=(6, 6), w=(72, 5))
row("squeeze and excite, expanded", "p = GlobalAveragePool (x)  a = Conv (p, v)  g = Sigmoid (a)  s = Shape (x)  "
    f"e = Expand (g, s)  m = Mul (x, e)  {HEAD}", cut="m", v=(6, 6, 1, 1), w=(72, 5))
row("attention over channels and positions", f"{GATE}  n = Mul (x, g)  h = ReduceMean <axes = [1]> (n)  "
    "i = ReduceMax <axes = [1]> (n)  j = Concat <axis = 1> (h, i)  o = Conv <pads = [1, 1, 1, 1]> (j, t)  "
    f"l = Sigmoid (o)  m = Mul (n, l)  {HEAD}", cut="m", v=(2, 6, 1, 1), u=(6, 2, 1, 1), t=(1, 2, 3, 3), w=(72, 5))
SPP = "a = MaxPool <kernel_shape = [4, 6]> (x)  b = MaxPool <kernel_shape = [2, 3], strides = [2, 3]> (x)"
row("pyramid of poolings", f"{SPP}  f = Flatten (a)  g = Flatten (b)  c = Concat <axis = 1> (f, g)  y = MatMul (c, w)",
    opset=(10, 13), image="float[N,6,4,6] x", w=(30, 5))
for op, opsets in {"MaxPool": (10, 13), "AveragePool": (9, 13, 19), "LpPool": (18, 22)}.items():
    row(f"a head behind {op} strided, another not", "f = Flatten (x)  y = MatMul (f, w)  "
        f"p = {op} <kernel_shape = [2, 2], strides = [2, 2]> (x)  c = Conv (p, k)  g = Flatten (c)  z = MatMul (g, v)",
        opset=opsets, outputs="y, z", image="float[N,6,4,6] x", w=(144, 5), k=(5, 6, 2, 2), v=(10, 7))
row("a flattened map beside answers", "c = Conv (x, k)  y = Flatten (c)  f = Flatten (x)  z = MatMul (f, w)",
    outputs="y, z", k=(5, 6, 2, 2), w=(72, 7))
row("generalised mean", "a = Clip (x, low)  b = Pow (a, three)  p = GlobalAveragePool (b)  c = Pow (p, third)  "
    "f = Flatten (c)  y = MatMul (f, w)", low=1e-6, three=3.0, third=1 / 3, w=(6, 5))
row("mean image, the same everywhere", "m = Sub (x, c)  n = Conv (m, k)  f = Flatten (n)  y = MatMul (f, w)",
    c=np.broadcast_to(positive("c", 6, 1, 1), (1, 6, 4, 3)), k=(5, 6, 2, 2), w=(30, 5))
row("one image slides, the other does not", "f = Flatten (x)  d = MatMul (f, w)  g = Flatten (t)  e = MatMul (g, w)  "
    "a = Sub (d, e)  y = Abs (a)", image="float[N,6,4,3] x, float[N,6,4,3] t", w=(72, 5))
row("pixel shuffle by reshapes", "r = Reshape (x, s)  t = Transpose <perm = [0, 1, 4, 2, 5, 3]> (r)  "
    f"q = Reshape (t, u)  m = Conv (q, k)  {HEAD}",
    image="float[N,8,4,3] x", s=[-1, 2, 2, 2, 4, 3], u=[-1, 2, 8, 6], k=(3, 2, 3, 2), w=(90, 5))
row("channel attention by a conv over channels", "p = GlobalAveragePool (x)  q = Squeeze (p, three)  "
    "t = Transpose <perm = [0, 2, 1]> (q)  c = Conv <pads = [1, 1]> (t, k)  r = Transpose <perm = [0, 2, 1]> (c)  "
    f"u = Unsqueeze (r, three)  g = Sigmoid (u)  m = Mul (x, g)  {HEAD}", cut="m", three=[3], k=(1, 1, 3), w=(72, 5))
row("PRelu a slope per element", f"m = PRelu (x, slope)  {HEAD}", slope=(6, 4, 3), w=(72, 5))
row("reduction over a batch of one", "f = Flatten (x)  d = MatMul (f, w)  y = ReduceL2 <axes = [0]> (d)",
    image="float[1,6,4,3] x", w=(72, 5))
row("reshape bakes a batch of one into a free one", "f = Reshape (x, s)  y = MatMul (f, w)",
    batch=1, s=[1, 72], w=(72, 5))
row("reshape bakes a batch into a free one", "f = Reshape (x, s)  y = MatMul (f, w)", batch=2, s=[2, 72], w=(72, 5))

# Branches beyond the cut: what strides there dilates, so that all answers have one grid -------------------------------

TWO = "f = Flatten (x)  y = MatMul (f, w)"
row("two convs beyond the cut", f"{TWO}  a = Conv <strides = [2, 2]> (x, k)  b = Conv <strides = [2, 1]> (a, l)  "
    "g = Flatten (b)  z = MatMul (g, v)",
    outputs="y, z", image="float[N,6,9,7] x", w=(378, 5), k=(4, 6, 3, 3), l=(3, 4, 2, 2), v=(12, 4))
row("two pools beyond the cut", f"{TWO}  a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  "
    "b = AveragePool <kernel_shape = [2, 2]> (a)  g = Flatten (b)  z = MatMul (g, v)",
    opset=(10, 18, 19), outputs="y, z", image="float[N,6,8,6] x", w=(288, 5), v=(36, 4))
for op in ("GlobalAveragePool", "GlobalMaxPool"):
    row(f"{op} beyond the cut", f"{TWO}  a = Conv <strides = [2, 2]> (x, k)  p = {op} (a)  z = Flatten (p)",
        opset=(10, 19), outputs="y, z", image="float[N,6,9,7] x", w=(378, 5), k=(4, 6, 3, 3))
row("every other cell beyond the cut", f"{TWO}  a = Slice (x, starts, ends, axes, steps)  g = Flatten (a)  "
    "z = MatMul (g, v)",
    outputs="y, z", image="float[N,6,8,6] x", w=(288, 5), starts=[0, 1], ends=[8, 6], axes=[2, 3], steps=[2, 2],
    v=(72, 4))
row("all positions beyond the cut", f"{TWO}  a = Conv <strides = [2, 2]> (x, k)  z = Flatten (a)",
    outputs="y, z", image="float[N,6,7,5] x", w=(210, 5), k=(4, 6, 3, 3))
row("all integers beyond the cut", f"{TWO}  a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  "
    "q = QuantizeLinear (a, s, u)  z = Flatten (q)",
    outputs="y, z", image="float[N,6,4,6] x", w=(144, 5), s=0.02, u=np.uint8(128))
row("a gate beyond the cut", f"{TWO}  a = Conv <strides = [2, 2]> (x, k)  p = GlobalAveragePool (a)  g = Sigmoid (p)  "
    "m = Mul (a, g)  q = Flatten (m)  z = MatMul (q, v)",
    outputs="y, z", image="float[N,6,7,5] x", w=(210, 5), k=(4, 6, 3, 3), v=(24, 3))
row("a pooling that is gate and head", "p = GlobalAveragePool (x)  a = Conv (p, u)  g = Sigmoid (a)  m = Mul (x, g)  "
    "f = Flatten (m)  y = MatMul (f, w)  q = Flatten (p)  z = MatMul (q, v)",
    outputs="y, z", u=(6, 6, 1, 1), w=(72, 5), v=(6, 3))

# Blocks of well-known trunks and heads --------------------------------------------------------------------------------

row("ResNet block", "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k)  "
    "b = BatchNormalization (a, scale, shift, mean, var)  r = Relu (b)  s = Conv <strides = [2, 2]> (x, l)  "
    f"e = Add (r, s)  m = Relu (e)  {HEAD}",
    image="float[N,6,7,5] x", cut="m", stride=2, k=(5, 6, 3, 3), l=(5, 6, 1, 1), w=(60, 7), **BN5)
row("ConvNeXt block", "p = Conv <group = 6, pads = [1, 1, 1, 1]> (x, k, b)  t = Transpose <perm = [0, 2, 3, 1]> (p)  "
    "n = LayerNormalization (t, scale, shift)  d = MatMul (n, v)  e = Add (d, c)  g = Gelu (e)  h = MatMul (g, u)  "
    f"i = Mul (h, gamma)  r = Transpose <perm = [0, 3, 1, 2]> (i)  m = Add (x, r)  {HEAD}",
    opset=20, cut="m", k=(6, 1, 3, 3), b=(6,), scale=(6,), shift=(6,), v=(6, 12), c=(12,), u=(12, 6), gamma=(6,),
    w=(72, 5))
row("U-Net block", 'a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  u = Resize (a, "", scales)  '
    f"m = Concat <axis = 1> (x, u)  {HEAD}",
    image="float[N,6,4,6] x", cut="m", stride=2, step=2, scales=np.float32([1, 1, 2, 2]), w=(288, 5))
row("U-Net block, sizes at run time", "a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  s = Shape (x)  "
    f'u = Resize (a, "", "", s)  m = Concat <axis = 1> (x, u)  {HEAD}',
    image="float[N,6,4,6] x", cut="m", stride=2, step=2, w=(288, 5))
row("ASPP's image branch", "p = GlobalAveragePool (x)  a = Conv (p, v)  s = Shape (x)  i = Shape (a)  "
    "h = Slice (s, two, four)  n = Slice (i, zero, two)  t = Concat <axis = 0> (n, h)  "
    f'u = Resize <mode = "linear"> (a, "", "", t)  c = Concat <axis = 1> (x, u)  m = Conv (c, k)  {HEAD}',
    cut="m", v=(2, 6, 1, 1), zero=[0], two=[2], four=[4], k=(5, 8, 2, 2), w=(30, 7), outputs="float[N,7] y")
BACK_AGAIN = ("a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)  s = Shape (x)  "
              'r = Resize <mode = "{}", nearest_mode = "floor", coordinate_transformation_mode = "{}"{}> '
              "(a, {}, {}, {})  n = Mul (x, r)  m = Conv (n, k)  f = Flatten (m)  y = MatMul (f, w)")
for mode, corners, width in (("nearest", "asymmetric", 7), ("linear", "half_pixel", 5), ("linear", "align_corners", 6)):
    row(f"a gate back to the size that it was pooled from: {mode}, {corners}, from a width of {width}",
        BACK_AGAIN.format(mode, corners, "", '""', '""', "s"), cut="m",
        image=f"float[N,6,8,{width}] x", k=(5, 6, 1, 1), w=(40 * width, 5), outputs="float[N,5] y")
row("a gate back to the size that it was pooled from, early",
    BACK_AGAIN.format("nearest", "asymmetric", "", "none", "none", "s"), opset=11, cut="m",
    image="float[N,6,8,7] x", none=np.float32([]), k=(5, 6, 1, 1), w=(280, 5), outputs="float[N,5] y")
row("a gate back to the size that it was pooled from, by axes",
    BACK_AGAIN.format("nearest", "asymmetric", ", axes = [3, 2]", '""', '""', "t").replace("s = Shape (x)",
    "h = Shape <start = 2, end = 3> (x)  v = Shape <start = 3, end = 4> (x)  t = Concat <axis = 0> (v, h)"),
    opset=(18, 21), cut="m", image="float[N,6,9,7] x", k=(5, 6, 1, 1), w=(315, 5), outputs="float[N,5] y")
row("a gate back to the size that it was pooled from, channels last",
    "a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)  s = Shape (x)  p = Gather (s, last)  "
    "t = Transpose <perm = [0, 2, 3, 1]> (a)  "
    'r = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (t, "", "", p)  '
    "u = Transpose <perm = [0, 2, 3, 1]> (x)  n = Mul (u, r)  m = Transpose <perm = [0, 3, 1, 2]> (n)  "
    "f = Flatten (m)  y = MatMul (f, w)",
    cut="m", last=[0, 2, 3, 1], image="float[N,6,8,7] x", w=(336, 5), outputs="float[N,5] y")
row("context joined to the map", "p = GlobalAveragePool (x)  s = Shape (x)  e = Expand (p, s)  "
    f"c = Concat <axis = 1> (x, e)  m = Conv (c, k)  {HEAD}", cut="m", k=(5, 12, 2, 2), w=(30, 7))
for name, made in {
    "resized, then a sigmoid": 'e = Resize (p, "", "", s)  g = Sigmoid (e)',
    "a conv, resized, then a sigmoid": 'a = Conv (p, v)  e = Resize <mode = "linear"> (a, "", "", s)  g = Sigmoid (e)',
    "resized, then a conv": 'e = Resize <mode = "linear"> (p, "", "", s)  a = Conv (e, v, b)  g = Relu (a)',
    "expanded, then a conv": "e = Expand (p, s)  g = Conv (e, v, b)",
    "expanded, then a conv and a sum with what was not": "e = Expand (p, s)  a = Conv (e, v, b)  g = Add (a, p)",
    "expanded, normalised": "e = Expand (p, s)  g = BatchNormalization (e, b, b, b, b)",
    "of one channel, expanded over all": "a = Conv (p, u)  e = Expand (a, s)  g = Sigmoid (e)",
    "expanded, with a conv that strides, expanded again":
        "e = Expand (p, s)  a = Conv <strides = [9, 9]> (e, v)  g = Expand (a, s)",
    "tiled in vain": "e = Expand (p, s)  a = Tanh (e)  g = Tile (a, ones)",
}.items():
    given = {"v": (6, 6, 1, 1), "u": (1, 6, 1, 1), "b": np.float32([1, 2, 3, 4, 5, 6]), "ones": [1, 1, 1, 1]}
    given = {k: v for k, v in given.items() if f", {k})" in made or f", {k}," in made}
    row(f"gate {name}", f"p = GlobalAveragePool (x)  s = Shape (x)  {made}  n = Mul (x, g)  m = Conv (n, k)  {HEAD}",
        cut="m", k=(5, 6, 2, 2), w=(30, 7), outputs="float[N,7] y", **given)
row("context joined to the map after a conv", "p = GlobalAveragePool (x)  s = Shape (x)  e = Expand (p, s)  "
    f"a = Conv (e, v)  r = Relu (a)  c = Concat <axis = 1> (x, r)  m = Conv (c, k)  {HEAD}", cut="m", v=(4, 6, 1, 1),
    k=(5, 10, 2, 2), w=(30, 7), outputs="float[N,7] y")
row("gate of flattened positions", "r = Reshape (x, s)  p = ReduceMean <axes = [2]> (r)  g = Sigmoid (p)  "
    f"u = Unsqueeze (g, axes)  n = Mul (x, u)  m = Conv (n, k)  {HEAD}",
    cut="m", s=[0, 0, -1], axes=[3], k=(5, 6, 2, 2), w=(30, 7))
row("gate of flattened positions, channels last", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1]> (r)  "
    "p = ReduceMax <axes = [1], keepdims = 0> (t)  g = Sigmoid (p)  u = Unsqueeze (g, axes)  n = Mul (x, u)  "
    f"m = Conv (n, k)  {HEAD}", cut="m", s=[0, 0, -1], axes=[2, 3], k=(5, 6, 2, 2), w=(30, 7))
row("gate over axes that are computed", "a = Reshape (axes, s)  p = ReduceMean (x, a)  g = Sigmoid (p)  "
    f"n = Mul (x, g)  m = Conv (n, k)  {HEAD}", opset=18, cut="m", axes=[2, 3], s=[-1], k=(5, 6, 2, 2), w=(30, 7),
    outputs="float[N,7] y")
for name, weighs in {
    "channels": 'm = Einsum <equation = "nchw,nc->nchw"> (x, g)',
    "channels, last": 'd = Einsum <equation = "nc,nchw->nwhc"> (g, x)  m = Transpose <perm = [0, 3, 2, 1]> (d)',
    "channels, and sums them": 'd = Einsum <equation = "nchw,nc->nhw"> (x, g)  m = Unsqueeze <axes = [1]> (d)',
    "by more channels": 'd = Einsum <equation = "nchw,nk->nckhw"> (x, g)  m = ReduceMax <axes = [1], keepdims = 0> (d)',
    "by a sum of its own": 'd = Einsum <equation = "nk,nchw->nhwc"> (g, x)  m = Transpose <perm = [0, 3, 1, 2]> (d)',
}.items():
    width = 12 if "Unsqueeze" in weighs else 72
    row(f"gate that weighs {name}, by an einsum", f"p = ReduceMean <axes = [2, 3], keepdims = 0> (x)  g = Sigmoid (p)  "
        f"{weighs}  {HEAD}", opset=12, cut="m", w=(width, 5))
row("gate that an einsum with a gate makes", "p = ReduceMean <axes = [2, 3], keepdims = 0> (x)  g = Sigmoid (p)  "
    'q = Einsum <equation = "nchw,nc->cn"> (x, g)  t = Transpose <perm = [1, 0]> (q)  r = Sigmoid (t)  '
    f'n = Einsum <equation = "nchw,nc->nchw"> (x, r)  m = Conv (n, k)  {HEAD}', cut="m", k=(5, 6, 2, 2), w=(30, 7))
row("gate for a batch of one, by an einsum", "p = ReduceMean <axes = [2, 3], keepdims = 0> (x)  g = Sigmoid (p)  "
    f'm = Einsum <equation = "nchw,nc->nchw"> (x, g)  {HEAD}', image="float[1,6,4,3] x", cut="m", w=(72, 5))
row("gate by an einsum", 'p = Einsum <equation = "nchw->nc"> (x)  g = Sigmoid (p)  u = Unsqueeze (g, axes)  '
    f"n = Mul (x, u)  m = Conv (n, k)  {HEAD}", cut="m", axes=[2, 3], k=(5, 6, 2, 2), w=(30, 7))
for name, steps in {
    "axes kept": "a = ReduceMean <axes = [3]> (x)  u = ReduceMean <axes = [2]> (a)",
    "rows first": "a = ReduceSum <axes = [2]> (x)  u = ReduceSum <axes = [3]> (a)",
    "of two kinds": "a = ReduceMax <axes = [3]> (x)  u = ReduceMean <axes = [2]> (a)",
    "axes removed": "a = ReduceMin <axes = [3], keepdims = 0> (x)  b = ReduceL2 <axes = [2], keepdims = 0> (a)  "
        "u = Unsqueeze <axes = [2, 3]> (b)",
    "channels last": "t = Transpose <perm = [0, 2, 3, 1]> (x)  a = ReduceMean <axes = [1], keepdims = 0> (t)  "
        "b = ReduceLogSumExp <axes = [1], keepdims = 0> (a)  u = Unsqueeze <axes = [2, 3]> (b)",
    "a step and a global pooling": "a = ReduceMean <axes = [3]> (x)  u = GlobalAveragePool (a)",
}.items():
    row(f"gate in steps, {name}", f"{steps}  g = Sigmoid (u)  n = Mul (x, g)  m = Conv (n, k)  {HEAD}",
        opset=11, cut="m", k=(5, 6, 2, 2), w=(30, 7))
row("gate in steps, at opset 18", "a = ReduceMean (x, three)  u = ReduceMean (a, two)  g = Sigmoid (u)  "
    f"n = Mul (x, g)  m = Conv (n, k)  {HEAD}", opset=18, cut="m", two=[2], three=[3], k=(5, 6, 2, 2), w=(30, 7))
row("gate in three steps", "a = ReduceMean <axes = [4]> (x)  b = ReduceMax <axes = [3]> (a)  "
    f"u = ReduceMean <axes = [2]> (b)  g = Sigmoid (u)  m = Mul (x, g)  {HEAD}",
    image="float[N,6,4,3,2] x", cut="m", space=(2, 3, 4), w=(144, 5))
row("pooling in steps as a head", "a = ReduceMean <axes = [3]> (x)  u = ReduceMax <axes = [2]> (a)  f = Flatten (u)  "
    "y = MatMul (f, w)", w=(6, 5))
row("gate by ReduceLogSumExp of many channels", "p = ReduceLogSumExp <axes = [2, 3]> (x)  g = Sigmoid (p)  "
    f"n = Mul (x, g)  m = MaxPool <kernel_shape = [9, 9], strides = [9, 9]> (n)  {HEAD}",
    image="float[N,512,9,27] x", trunk=False, cut="m", stride=9, w=(1536, 5))
FLAT = {"flat": [0, 1, -1], "all": [0, 6, -1], "one": [1], "three": [3], "vector": [-1, 6, 1, 1]}
WEIGHTS = "a = Conv (x, q)  b = Reshape (a, flat)  s = Softmax <axis = 2> (b)"  # (N, 1, H·W)
BACK = "h = Shape (a)  z = Reshape (s, h)"  # (N, 1, H, W)
SUMS = {
    "by MatMul": "r = Reshape (x, all)  t = Transpose <perm = [0, 2, 1]> (s)  c = MatMul (r, t)",
    "by MatMul, weights first": "r = Reshape (x, all)  t = Transpose <perm = [0, 2, 1]> (r)  c = MatMul (s, t)",
    "by MatMul of four axes": "r = Reshape (x, all)  o = Unsqueeze <axes = [1]> (r)  t = Unsqueeze <axes = [3]> (s)  "
        "c = MatMul (o, t)",
    "by ReduceSum": f"{BACK}  e = Mul (x, z)  c = ReduceSum <axes = [2, 3], keepdims = 0> (e)",
    "in steps": f"{BACK}  e = Mul (x, z)  d = ReduceSum <axes = [2]> (e)  c = ReduceSum <axes = [3], keepdims = 0> (d)",
    "by Einsum": 'r = Reshape (x, all)  c = Einsum <equation = "ncp,nop->nco"> (r, s)',
    "by Einsum of four axes": f'{BACK}  c = Einsum <equation = "nohw,nchw->oc"> (z, x)',
}
for name, sums in SUMS.items():
    one = {"image": "float[1,6,4,3] x"} if "->oc" in sums else {}
    row(f"attention pooling {name}", f"{WEIGHTS}  {sums}  f = Reshape (c, features)  y = MatMul (f, w)",
        opset=12, q=(1, 6, 1, 1), features=[-1, 6], w=(6, 5), outputs="float[N,5] y", **FLAT, **one)
    row(f"global context {name}", f"{WEIGHTS}  {sums}  v = Reshape (c, vector)  l = Conv (v, u)  m = Add (x, l)  "
        f"n = Conv (m, k)  g = Relu (n)  {HEAD.replace('(m)', '(g)')}", opset=12, cut="n", q=(1, 6, 1, 1),
        u=(6, 6, 1, 1), k=(5, 6, 2, 2), w=(30, 7), outputs="float[N,7] y", **FLAT, **one)
row("global context and attention pooling", f"{WEIGHTS}  {SUMS['by MatMul']}  v = Reshape (c, vector)  "
    "g = Sigmoid (v)  m = Mul (x, g)  i = Conv (m, q)  j = Reshape (i, flat)  o = Softmax <axis = 2> (j)  "
    "p = Shape (i)  e = Reshape (o, p)  d = Mul (m, e)  f = ReduceSum <axes = [2, 3], keepdims = 0> (d)  "
    "y = MatMul (f, w)", opset=12, cut="m", q=(1, 6, 1, 1), w=(6, 5), outputs="float[N,5] y", **FLAT)
row("global context of several heads", "a = Conv (x, q)  b = Reshape (a, heads)  s = Softmax <axis = 3> (b)  "
    "r = Reshape (x, parts)  t = Transpose <perm = [0, 1, 3, 2]> (r)  c = MatMul (s, t)  v = Reshape (c, vector)  "
    f"g = Sigmoid (v)  m = Mul (x, g)  {HEAD}",
    cut="m", q=(2, 6, 1, 1), heads=[0, 2, 1, -1], parts=[0, 2, 3, -1], w=(72, 5), outputs="float[N,5] y", **FLAT)
row("attention pooling of several heads", "a = Conv (x, q)  b = Reshape (a, heads)  s = Softmax <axis = 3> (b)  "
    "r = Reshape (x, parts)  t = Transpose <perm = [0, 1, 3, 2]> (r)  c = MatMul (s, t)  f = Reshape (c, features)  "
    "y = MatMul (f, w)", q=(2, 6, 1, 1), heads=[0, 2, 1, -1], parts=[0, 2, 3, -1], features=[-1, 6], w=(6, 5),
    outputs="float[N,5] y")
row("positions weighed by a softmax, and convolved", f"{WEIGHTS}  {BACK}  e = Mul (x, z)  m = Conv (e, k)  {HEAD}",
    opset=12, cut="m", q=(1, 6, 1, 1), k=(5, 6, 2, 2), w=(30, 7), outputs="float[N,7] y", **FLAT)
row("positions weighed by a softmax before a dense layer", f"{WEIGHTS}  {BACK}  m = Mul (x, z)  {HEAD}",
    opset=12, q=(1, 6, 1, 1), w=(72, 7), outputs="float[N,7] y", **FLAT)
row("values weighed by a softmax of all of them, and convolved", "b = Flatten (x)  s = Softmax <axis = 1> (b)  "
    f"h = Shape (x)  z = Reshape (s, h)  m = Conv (z, k)  {HEAD}", opset=(11, 13), cut="m", k=(5, 6, 2, 2), w=(30, 7),
    outputs="float[N,7] y")
row("global context by a logarithm of sums", "a = Conv (x, q)  b = ReduceLogSumExp <axes = [2, 3]> (a)  "
    f"d = Sub (a, b)  s = Exp (d)  e = Mul (x, s)  c = ReduceSum <axes = [2, 3]> (e)  m = Add (x, c)  {HEAD}",
    opset=12, cut="m", q=(1, 6, 1, 1), w=(72, 5))
MIXED = {"image": "float[1,6,4,3] x", "outputs": "float[1,7] y", "v": (6, 4), "w": (30, 7)}
EXPERTS = "p = GlobalAveragePool (x)  f = Flatten (p)  d = MatMul (f, v)  r = Sigmoid (d)  e = MatMul (r, experts)"
row("kernel mixed from experts by the image", f"{EXPERTS}  k = Reshape (e, dims)  m = Conv (x, k)  "
    "g = Flatten (m)  y = MatMul (g, w)", cut="m", experts=(4, 120), dims=[5, 6, 2, 2], **MIXED)
row("kernel for each channel, mixed by the image", f"{EXPERTS}  k = Reshape (e, dims)  h = Shape (x)  "
    "i = Reshape (x, h)  c = Conv <group = 6, pads = [1, 1, 1, 1]> (i, k)  t = Transpose <perm = [1, 0, 2, 3]> (c)  "
    "m = Reshape (t, h)  g = Flatten (m)  y = MatMul (g, w)", cut="m", experts=(4, 54), dims=[6, 1, 3, 3],
    **MIXED | {"w": (72, 7)})
row("kernel from another input", f"m = Conv (x, k)  {HEAD}", image="float[1,6,4,3] x, float[5,6,2,2] k", trunk=False,
    w=(30, 7))
row("two gates in a row", f"{GATE}  n = Mul (x, g)  h = GlobalAveragePool (n)  i = Conv (h, v)  j = Conv (i, u)  "
    f"l = Sigmoid (j)  m = Mul (n, l)  {HEAD}", cut="m", v=(2, 6, 1, 1), u=(6, 2, 1, 1), w=(72, 5))
row("gates before and behind pads that are computed", f"{GATE}  n = Mul (x, g)  s = Shape (n)  z = Sub (s, s)  "
    "e = Add (z, ends)  d = Concat <axis = 0> (z, e)  o = Pad (n, d)  l = Conv (o, k)  q = GlobalAveragePool (l)  "
    f"i = Conv (q, t)  h = Sigmoid (i)  m = Mul (l, h)  {HEAD}", cut="m", v=(2, 6, 1, 1), u=(6, 2, 1, 1),
    ends=[0, 0, 1, 1], k=(5, 6, 2, 2), t=(5, 5, 1, 1), w=(60, 7), outputs="float[N,7] y")
row("a gate from an earlier map", f"{GATE}  c = Conv (x, k)  m = Mul (c, g)  {HEAD}",
    cut="m", v=(2, 6, 1, 1), u=(6, 2, 1, 1), k=(6, 6, 2, 2), w=(36, 5))
row("a gate on pooled features", "p = GlobalAveragePool (x)  f = Flatten (p)  d = MatMul (f, w)  g = Sigmoid (d)  "
    "e = Mul (f, g)  y = MatMul (e, v)", w=(6, 6), v=(6, 5))
row("spatial attention", f"c = Conv (x, k)  g = Sigmoid (c)  m = Mul (x, g)  {HEAD}", k=(1, 6, 1, 1), w=(72, 5))
row("attention pooling", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1]> (r)  l = MatMul (t, q)  "
    "a = Softmax <axis = 1> (l)  e = Mul (t, a)  p = ReduceSum <keepdims = 0> (e, one)  y = MatMul (p, w)",
    s=[0, 6, -1], q=(6, 1), one=[1], w=(6, 5))
row("channels normalised", f"n = ReduceL2 <axes = [1]> (x)  m = Div (x, n)  {HEAD}", w=(72, 5))
row("rows centred", f"n = ReduceMean <axes = [3]> (x)  m = Sub (x, n)  {HEAD}", w=(72, 5))
row("pixels classified, the best taken", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1]> (r)  "
    "d = MatMul (t, w)  y = ReduceMax <axes = [1], keepdims = 0> (d)", s=[0, 6, -1], w=(6, 5))
row("a flattened map cut in two", "f = Flatten (x)  a, b = Split <axis = 1> (f)  c = Mul (a, b)  y = MatMul (c, w)",
    w=(36, 5))
row("a part of a flattened map", "f = Flatten (x)  a = Slice (f, start, end, one)  y = MatMul (a, w)",
    start=[5], end=[41], one=[1], w=(36, 5))
row("a flattened map shuffled", "f = Flatten (x)  a = Gather <axis = 1> (f, index)  y = MatMul (a, w)",
    index=np.random.default_rng(0).permutation(72), w=(72, 5))
row("channels-last image of bytes", "c = Cast <to = 1> (x)  a = Sub (c, mean)  b = Div (a, deviation)  "
    f"t = Transpose <perm = [0, 3, 1, 2]> (b)  m = Conv (t, k)  {HEAD}",
    image="uint8[N,6,5,2] x", between=(0, 255), space=(1, 2), trunk=False, mean=(2,),
    deviation=positive("deviation", 2), k=(6, 2, 3, 3), w=(72, 5))
row("flipped", "a = Slice (x, start, end, axes, steps)  f = Flatten (a)  y = MatMul (f, w)",
    start=[-1], end=[-100], axes=[3], steps=[-1], w=(72, 5))
for op in ("Add", "Mul", "Concat <axis = 1>"):
    row(f"{op} of a second image", f"m = {op} (x, e)  {HEAD}",
        image="float[N,6,4,3] x, float[N,6,4,3] e", w=(144 if "Concat" in op else 72, 5))
row("constant positions joined", f"m = Concat <axis = 1> (x, c)  {HEAD}",
    image="float[1,6,4,3] x", c=np.float32(np.mgrid[:4, :3])[None], w=(96, 5))
row("a side input without a batch", f"{DENSE}  y = Mul (d, e)", image="float[N,6,4,3] x, float[5] e", w=(72, 5))
row("a side input of higher rank", f"{DENSE}  a = Add (d, e)  y = Transpose <perm = [1, 0, 2]> (a)",
    image="float[N,6,4,3] x, float[2,1,5] e", w=(72, 5))
row("a mask for the image", f"m = Mul (x, e)  {HEAD}", image="float[N,6,4,3] x, float[N,1,4,3] e", w=(72, 5))
row("a second image, flattened", "f = Flatten (x)  g = Flatten (e)  c = Concat <axis = 1> (f, g)  y = MatMul (c, w)",
    image="float[N,6,4,3] x, float[N,2,4,3] e", w=(96, 5))
for op, attributes in (("MaxPool", ""), ("AveragePool", ""), ("AveragePool", ", count_include_pad = 1")):
    row(f"{op} of pooled features{attributes}", "p = GlobalAveragePool (x)  "
        f"c = {op} <kernel_shape = [3, 3], pads = [1, 1, 1, 1]{attributes}> (p)  y = Flatten (c)")
row("padded conv of pooled features", "p = GlobalAveragePool (x)  c = Conv <pads = [1, 1, 1, 1]> (p, k)  "
    "y = Flatten (c)", k=(5, 6, 3, 3))
row("MaxPool of columns", f"m = MaxPool <kernel_shape = [4, 1], strides = [4, 1]> (x)  {HEAD}",
    stride=(4, 1), w=(18, 5))
row("AveragePool counts its padding, ceil_mode",
    "m = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1, "
    f"count_include_pad = 1> (x)  {HEAD}", image="float[N,6,6,5] x", cut="m", stride=2, opset=(10, 19), w=(72, 5))
row("pad of a channels-last map", "t = Transpose <perm = [0, 2, 3, 1]> (x)  p = Pad (t, pads)  "
    f"u = Transpose <perm = [0, 3, 1, 2]> (p)  m = Conv (u, k)  {HEAD}",
    cut="m", pads=[0, 1, 2, 0, 0, 1, 0, 0], k=(5, 6, 3, 3), w=(60, 7))
row("doubles between floats", "a = Cast <to = 11> (x)  f = Flatten (a)  d = MatMul (f, w)  y = Cast <to = 1> (d)",
    w=law.random("w", 72, 5))

WIDTH = "s = Shape (x)  n = Gather (s, three)  v = Cast <to = 1> (n)"
BESIDE = {"image": "float[N,6,4,3] x, float[N,5] e", "outputs": "float[N,5] y", "three": 3, "w": (72, 5)}
COORDINATES = f"{WIDTH}  r = Range (zero, v, one)  g = Div (r, v)  q = Reshape (g, wide)"
row("coordinates that only the head reads", f"{COORDINATES}  c = Mul (x, q)  f = Flatten (c)  y = MatMul (f, w)",
    three=3, zero=0.0, one=1.0, wide=[1, 1, 1, -1], w=(72, 5))
row("another input over the width", f"{WIDTH}  q = Div (e, v)  {DENSE}  y = Add (d, q)", **BESIDE)
row("another input times the sum of coordinates", f"{WIDTH}  r = Range (zero, v, one)  t = ReduceSum (r)  "
    f"q = Mul (e, t)  {DENSE}  y = Add (d, q)", **BESIDE, zero=0.0, one=1.0)
row("another input times a width for each image",
    "s = Shape (x)  n = Slice (s, at, behind)  b = Slice (s, start, one)  o = Concat <axis = 0> (b, one)  "
    "v = Cast <to = 1> (n)  g = Expand (v, o)  q = Div (e, g)  "
    f"{DENSE}  y = Add (d, q)", **BESIDE, at=[3], behind=[4], start=[0], one=[1])
row("another input times the number of images", "s = Shape (x)  n = Gather (s, three)  v = Cast <to = 1> (n)  "
    f"q = Mul (e, v)  {DENSE}  y = Add (d, q)", **BESIDE | {"three": 0})
row("another input joined along channels that it is repeated to", "s = Shape (x)  r = Reshape (e, t)  "
    "g = Expand (r, s)  c = Concat <axis = 1> (x, g)  f = Flatten (c)  y = MatMul (f, w)",
    image="float[N,6,4,3] x, float[N,1] e", outputs="float[N,5] y", t=[-1, 1, 1, 1], w=(144, 5))

# Sequences of tensors, which are rewritten before the walk ------------------------------------------------------------

row("a sequence of equal parts", "q = SplitToSequence <axis = 1> (x, four)  a = SequenceAt (q, one)  "
    "b = SequenceAt (q, zero)  r = Relu (a)  s = SequenceConstruct (r, b)  c = ConcatFromSequence <axis = 1> (s)  "
    "f = Flatten (c)  y = MatMul (f, w)", opset=(11, 13, 18, NEWEST), four=4, one=1, zero=0, w=(72, 5))
row("a sequence of parts of these sizes", "q = SplitToSequence <axis = -3, keepdims = 0> (x, sizes)  "
    "a = SequenceAt (q, last)  b = SequenceAt (q, one)  c = Concat <axis = 1> (a, b)  f = Flatten (c)  "
    "y = MatMul (f, w)", opset=(11, 13), sizes=[1, 2, 3], last=-1, one=np.int32(1), w=(60, 5))
row("a sequence of one part", "q = SplitToSequence <axis = 1> (x, ten)  a = SequenceAt (q, zero)  f = Flatten (a)  "
    "y = MatMul (f, w)", ten=10, zero=0, w=(72, 5))
row("a sequence of channels", "q = SplitToSequence <axis = 1> (x)  a = SequenceAt (q, four)  b = SequenceAt (q, one)  "
    "c = Sub (a, b)  f = Flatten (c)  y = MatMul (f, w)", opset=(11, 13), four=4, one=1, w=(12, 5))
row("a sequence of channels without their axis", "q = SplitToSequence <axis = 1, keepdims = 0> (x)  "
    "a = SequenceAt (q, four)  b = SequenceAt (q, one)  s = SequenceConstruct (a, b)  "
    "c = ConcatFromSequence <axis = 1, new_axis = 1> (s)  f = Flatten (c)  y = MatMul (f, w)",
    opset=(11, 13), four=4, one=1, w=(24, 5))
row("a sequence of features", f"{DENSE}  q = SplitToSequence <axis = -1> (d, two)  a = SequenceAt (q, last)  "
    "b = SequenceAt (q, zero)  s = SequenceConstruct (a, b, a)  y = ConcatFromSequence <axis = -1> (s)",
    opset=(11, 13), two=2, last=-1, zero=0, w=(72, 5))
row("a stack of scores", f"{DENSE}  e = Relu (d)  s = SequenceConstruct (d, e)  "
    "y = ConcatFromSequence <axis = -1, new_axis = 1> (s)", opset=(11, 13), w=(72, 5))
row("a sequence of rows", "q = SplitToSequence <axis = 2> (x, sizes)  a = SequenceAt (q, one)  f = Flatten (a)  "
    "y = MatMul (f, w)", sizes=[1, 3], one=1, w=(54, 5))
row("a sequence with insertions and erasures", "e = SequenceEmpty ()  a = SequenceInsert (e, x)  r = Relu (x)  "
    "b = SequenceInsert (a, r)  n = Neg (x)  c = SequenceInsert (b, n, zero)  d = SequenceErase (c, last)  "
    "g = SequenceInsert (d, r)  h = SequenceErase (g)  k = SequenceInsert (h, r, one)  "
    "z = ConcatFromSequence <axis = 1> (k)  f = Flatten (z)  y = MatMul (f, w)", zero=0, last=-2, one=1,
    outputs="float[N,5] y", w=(216, 5))
row("the last element of a sequence by its length", "q = SplitToSequence <axis = 1> (x, two)  n = SequenceLength (q)  "
    "k = Sub (n, one)  a = SequenceAt (q, k)  f = Flatten (a)  y = MatMul (f, w)", two=2, one=1, w=(24, 5))
row("a sequence of a map and a gate", "c = Conv <pads = [1, 1, 1, 1]> (x, k)  p = GlobalAveragePool (c)  "
    "g = Sigmoid (p)  s = SequenceConstruct (c, g)  a = SequenceAt (s, zero)  b = SequenceAt (s, one)  "
    "m = Mul (a, b)  f = Flatten (m)  y = MatMul (f, w)", cut="m", k=(6, 6, 3, 3), zero=0, one=1, w=(72, 5))
row("a shape as a sequence", "s = Shape (x)  n = Gather (s, zero)  q = SequenceConstruct (n, rest)  "
    "t = ConcatFromSequence <axis = 0, new_axis = 1> (q)  f = Reshape (x, t)  y = MatMul (f, w)",
    zero=0, rest=72, w=(72, 5), outputs="float[N,5] y")
row("a sequence of sequences' parts", "q = SplitToSequence <axis = 1> (x, three)  a = SequenceAt (q, one)  "
    "p = SplitToSequence <axis = 1> (a, two)  b = SequenceAt (p, one)  f = Flatten (b)  y = MatMul (f, w)",
    three=3, one=1, two=2, w=(12, 5))

# Classical models behind a network: ai.onnx.ml ------------------------------------------------------------------------

POOLED = "p = GlobalAveragePool (x)  f = Flatten (p)"


def listed(name: str, *shape: int, scale: float = 1.0) -> str:
    """Random numbers as an attribute."""
    return "[" + ", ".join(f"{scale * v:.4f}" for v in law.random(name, *shape).reshape(-1)) + "]"


def quoted(text: str) -> str:
    """A string as an attribute."""
    return f'"{text}"'


def linear(op: str, rows: int, *attributes: str, features: int = 6) -> str:
    """A linear model whose best class is not the same for all windows."""
    given = [f"coefficients = {listed('w', rows, features)}", f"intercepts = {listed('b', rows, scale=0.01)}"]
    return f"ai.onnx.ml.{op} <{', '.join([*given, *attributes])}>"


row("Scaler", f"{POOLED}  y = ai.onnx.ml.Scaler <offset = {listed('o', 6)}, scale = {listed('s', 6)}> (f)",
    opset=(9, 13, NEWEST), outputs="float[N,6] y")
row("Scaler by one number", f"{POOLED}  y = ai.onnx.ml.Scaler <offset = [0.5], scale = [3.0]> (f)",
    outputs="float[N,6] y")
row("Scaler of pixels", "f = Flatten (x)  s = ai.onnx.ml.Scaler <offset = [0.5], scale = [3.0]> (f)  "
    "y = MatMul (s, w)", w=(72, 5), outputs="float[N,5] y")
row("Scaler of doubles", f"{POOLED}  d = Cast <to = 11> (f)  "
    f"y = ai.onnx.ml.Scaler <offset = {listed('o', 6)}, scale = {listed('s', 6)}> (d)", outputs="float[N,6] y")
row("Scaler of integers", f"{POOLED}  m = Mul (f, ten)  d = Cast <to = 7> (m)  "
    f"y = ai.onnx.ml.Scaler <offset = {listed('o', 6)}, scale = {listed('s', 6)}> (d)",
    ten=10.0, outputs="float[N,6] y")
for norm in ("MAX", "L1", "L2"):
    row(f"Normalizer {norm}", f"{POOLED}  y = ai.onnx.ml.Normalizer <norm = {quoted(norm)}> (f)", opset=(9, 13, NEWEST),
        outputs="float[N,6] y")
    row(f"Normalizer {norm} of zeros", f"m = Sub (x, c)  r = Relu (m)  p = GlobalMaxPool (r)  f = Flatten (p)  "
        f"y = ai.onnx.ml.Normalizer <norm = {quoted(norm)}> (f)", image="float[N,2,3,2] x", c=1.5,
        outputs="float[N,2] y", trunk=False)
row("Normalizer of pixels", "f = Flatten (x)  n = ai.onnx.ml.Normalizer (f)  y = MatMul (n, w)",
    w=(72, 5), outputs="float[N,5] y")
row("LinearRegressor", f"{POOLED}  y = {linear('LinearRegressor', 1)} (f)", opset=(9, 13, NEWEST),
    outputs="float[N,1] y")
row("LinearRegressor without intercepts", f"{POOLED}  "
    f"y = ai.onnx.ml.LinearRegressor <targets = 2, coefficients = {listed('w', 2, 6)}> (f)", outputs="float[N,2] y")
row("LinearRegressor of pixels", f"f = Flatten (x)  y = {linear('LinearRegressor', 3, 'targets = 3', features=72)} (f)",
    outputs="float[N,3] y")
for transform in ("NONE", "SOFTMAX", "LOGISTIC"):
    after = f"post_transform = {quoted(transform)}"
    row(f"LinearRegressor {transform}", f"{POOLED}  y = {linear('LinearRegressor', 3, 'targets = 3', after)} (f)",
        opset=(9, 13), outputs="float[N,3] y")
    row(f"LinearClassifier {transform}", f"{POOLED}  "
        f"z, y = {linear('LinearClassifier', 3, 'classlabels_ints = [7, 2, 5]', after)} (f)",
        opset=(9, 13, NEWEST), outputs="int64[N] z, float[N,3] y")
    row(f"LinearClassifier {transform} of two classes", f"{POOLED}  "
        f"z, y = {linear('LinearClassifier', 2, 'classlabels_ints = [0, 1]', after)} (f)",
        outputs="int64[N] z, float[N,2] y")
    if transform != "SOFTMAX":
        row(f"LinearClassifier {transform} of one score", f"{POOLED}  "
            f"z, y = {linear('LinearClassifier', 1, 'classlabels_ints = [4, 3]', after)} (f)",
            outputs="int64[N] z, float[N,2] y")
row("LinearClassifier of integers", f"{POOLED}  m = Mul (f, ten)  i = Cast <to = 7> (m)  "
    f"z, y = {linear('LinearClassifier', 3, 'classlabels_ints = [7, 2, 5]')} (i)",
    ten=10.0, outputs="int64[N] z, float[N,3] y")
NAMES = 'classlabels_strings = ["no", "yes"]'
LOGISTIC = 'post_transform = "LOGISTIC"'
row("LinearClassifier of pixels, with names of its classes", "f = Flatten (x)  "
    f"z, y = {linear('LinearClassifier', 2, NAMES, features=72)} (f)",
    outputs="float[N,2] y")
row("Binarizer", f"{POOLED}  y = ai.onnx.ml.Binarizer <threshold = 0.1> (f)", opset=(9, 13, NEWEST),
    outputs="float[N,6] y")
row("Binarizer of a map", "m = ai.onnx.ml.Binarizer (x)  f = Flatten (m)  y = MatMul (f, w)",
    w=(72, 5), outputs="float[N,5] y")
row("ArrayFeatureExtractor", f"{POOLED}  y = ai.onnx.ml.ArrayFeatureExtractor (f, i)", opset=(9, 13),
    i=[4, 0, 1], outputs="float[N,3] y")
row("ArrayFeatureExtractor of columns", "m = ai.onnx.ml.ArrayFeatureExtractor (x, i)  f = Flatten (m)  "
    "y = MatMul (f, w)", i=[1, 2], w=(48, 5), outputs="float[N,5] y")
for shape, given in (("the best class", "axis = 1, keepdims = 0"), ("the best class in a column", "axis = 1")):
    row(f"ArrayFeatureExtractor of labels by {shape}", f"{POOLED}  d = MatMul (f, w)  a = ArgMax <{given}> (d)  "
        "e = ai.onnx.ml.ArrayFeatureExtractor (labels, a)  y = Reshape (e, s)",
        w=(6, 3), labels=[7, 2, 5], s=[-1], outputs="int64[N] y")
row("LinearClassifier of large scores", f"{POOLED}  s = ai.onnx.ml.Scaler <offset = [0.0], scale = [60.0]> (f)  "
    f"z, c = {linear('LinearClassifier', 3, 'classlabels_ints = [0, 1, 2]', LOGISTIC)} (s)  "
    'y = ai.onnx.ml.Normalizer <norm = "L1"> (c)', outputs="int64[N] z, float[N,3] y")
row("LinearClassifier behind a Scaler", f"{POOLED}  s = ai.onnx.ml.Scaler <offset = [0.5], scale = [3.0]> (f)  "
    f"z, c = {linear('LinearClassifier', 3, 'classlabels_ints = [0, 1, 2]', LOGISTIC)} (s)  "
    'y = ai.onnx.ml.Normalizer <norm = "L1"> (c)', outputs="float[N,3] y")

# Refusals -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A network that cannot slide, and its root causes: (code, node, a part of the reason) of each."""

    name: str
    body: str
    causes: tuple[tuple[str, str, str], ...]
    given: dict[str, Any]
    trunk: bool  # does it stand behind a convolution?


REFUSALS: list[Refusal] = []


def refusal(name: str, body: str, *causes: tuple[str, str, str], trunk: bool = True, **given: Any) -> None:
    REFUSALS.append(Refusal(name, body, causes, given, trunk))


refusal("an operator without a rule", f"{DENSE}  [some] y = Compress <axis = 1> (d, mask)",
    ("no-rule", "some", "no rule for Compress"), w=(72, 5), mask=np.arange(5) % 2 == 0)
refusal("an operator of another domain without a rule", f"{DENSE}  y = com.microsoft.Inverse (d)",
    ("no-rule", "y", "no rule for com.microsoft.Inverse"), w=(72, 5), outputs="float[N,5] y")
refusal("images of a batch as a sequence", "[split] q = SplitToSequence <axis = 0> (x, one)  a = SequenceAt (q, zero)  "
    "f = Flatten (a)  y = MatMul (f, w)", ("no-rule", "split", "no rule for SplitToSequence"),
    one=1, zero=0, w=(72, 5), outputs="float[1,5] y")
refusal("images of a batch as a sequence of known parts", "q = SplitToSequence <axis = 0> (x, sizes)  "
    "a = SequenceAt (q, zero)  f = Flatten (a)  y = MatMul (f, w)", ("batch", "q/0", "selects images of the batch"),
    image="float[2,6,4,3] x", sizes=[1, 1], zero=0, w=(72, 5), outputs="float[1,5] y")
refusal("a sequence that a branch makes", f"{DENSE}  m = ReduceMax <keepdims = 0> (x)  c = Greater (m, zero)  "
    "[make] s = SequenceConstruct (d, d)  "
    "[if] q = If (c) <then_branch = t () => (seq(float[N,5]) a) { a = Identity (s) },  "
    "else_branch = o () => (seq(float[N,5]) b) { b = SequenceErase (s) }>  y = SequenceAt (q, one)",
    ("no-rule", "make", "no rule for SequenceConstruct"),
    outputs="float[N,5] y", opset=16, w=(72, 5), zero=0.0, one=np.int64(0))
refusal("a Scaler with a number too few", f"{POOLED}  "
    f"y = ai.onnx.ml.Scaler <offset = {listed('o', 5)}, scale = {listed('s', 5)}> (f)",
    ("attribute", "y", "5 offsets and 5 scales for 6 features"), outputs="float[N,6] y")
refusal("a Scaler of a map", "y = ai.onnx.ml.Scaler <offset = [1.0], scale = [2.0]> (x)",
    ("rank", "y", "not a table of features"), outputs="float[N,6,4,3] y")
refusal("an unknown norm", f"{POOLED}  y = ai.onnx.ml.Normalizer <norm = {quoted('L3')}> (f)",
    ("attribute", "y", "its norm is L3"), outputs="float[N,6] y")
refusal("labels that are strings", f"{POOLED}  z, y = {linear('LinearClassifier', 2, NAMES)} (f)",
    ("strings", "z", "labels that are strings"), outputs="string[N] z, float[N,2] y")
refusal("a linear model with too few coefficients", f"{POOLED}  y = {linear('LinearRegressor', 1, features=5)} (f)",
    ("attribute", "y", "5 coefficients for 1 × 6 features"), outputs="float[N,1] y")
refusal("a linear model with too few labels", f"{POOLED}  "
    f"z, y = {linear('LinearClassifier', 3, 'classlabels_ints = [0, 1]')} (f)",
    ("attribute", "z", "2 labels for 3 scores"), outputs="int64[N] z, float[N,3] y")
SOFTMAX, PROBIT = (f"post_transform = {quoted(name)}" for name in ("SOFTMAX", "PROBIT"))
for op, attribute in (("LinearRegressor", "targets = 1"), ("LinearClassifier", "classlabels_ints = [0, 1]")):
    names = "y" if op == "LinearRegressor" else "z, y"
    refusal(f"SOFTMAX of a single score, {op}", f"{POOLED}  "
        f"{names} = {linear(op, 1, attribute, SOFTMAX)} (f)",
        ("attribute", names[0], "applies SOFTMAX to a single score"), outputs="float[N,2] y")
refusal("a transform of scores that is not understood", f"{POOLED}  "
    f"y = {linear('LinearRegressor', 2, 'targets = 2', PROBIT)} (f)",
    ("attribute", "y", "its post_transform is PROBIT"), outputs="float[N,2] y")
refusal("intercepts that do not fit", f"{POOLED}  y = {linear('LinearRegressor', 2, 'targets = 3')} (f)",
    ("attribute", "y", "2 intercepts for 3 targets"), outputs="float[N,3] y")
refusal("two root causes, and what follows from them", f"{DENSE}  [one] a = GatherElements (d, i)  b = Relu (a)  "
    "e = MatMul (f, v)  [two] c = GatherElements (e, i)  y = Add (b, c)",
    ("no-rule", "one", "GatherElements"), ("no-rule", "two", "GatherElements"), w=(72, 5), v=(72, 5),
    i=np.zeros((2, 5), np.int64))
refusal("recurrence over rows", "t = Transpose <perm = [2, 0, 1, 3]> (x)  r = Reshape (t, s)  "
    "[rnn] a, h = LSTM <hidden_size = 2> (r, w, v)  y = Transpose (h)",
    ("no-rule", "rnn", "LSTM"), s=[4, -1, 18], w=(1, 8, 18), v=(1, 8, 2))
refusal("pad, then flatten", "[pad] p = Pad (x, pads)  f = Flatten (p)  [fc] y = MatMul (f, w)",
    ("pad-then-flatten", "fc", "the padding that 'pad' adds around each window"), pads=[0, 0, 1, 1, 0, 0, 1, 1],
    w=(180, 5))
refusal("pad, then pool", "[pad] p = Pad (x, pads)  [gap] g = GlobalAveragePool (p)  y = Flatten (g)",
    ("pad-then-flatten", "gap", "the padding that 'pad' adds around each window"), pads=[0, 0, 1, 1, 0, 0, 1, 1])
refusal("padding beyond the cut", "f = Flatten (x)  y = MatMul (f, w)  [aux] c = Conv <pads = [1, 1, 1, 1]> (x, k)  "
    "g = Flatten (c)  z = MatMul (g, v)",
    ("padding-beyond-cut", "aux", "after 'x'"), outputs="y, z", w=(72, 5), k=(2, 6, 3, 3), v=(24, 7))
refusal("attention over positions", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1]> (r)  "
    "[qk] a = MatMul (t, r)  b = Softmax (a)  c = MatMul (b, t)  f = Flatten (c)  y = MatMul (f, w)",
    ("product-of-maps", "qk", "positions with positions"), s=[0, 6, 12], w=(72, 5))
refusal("attention behind a class token", "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1]> (r)  p = Shape (x)  "
    "n = Slice (p, zero, one)  e = Concat <axis = 0> (n, token_shape)  k = Expand (token, e)  "
    "u = Concat <axis = 1> (k, t)  v = Transpose <perm = [0, 2, 1]> (u)  [qk] a = MatMul (u, v)  b = Softmax (a)  "
    "c = MatMul (b, u)  f = Flatten (c)  y = MatMul (f, w)",
    ("product-of-maps", "qk", "positions with positions"), s=[0, 6, 12], w=(78, 5), zero=[0], one=[1],
    token_shape=[1, 6], token=(1, 1, 6))
# of these windows not even the embedding could be added
LARGE = "r = Reshape (x, s)  t = Transpose <perm = [0, 2, 1]> (r)  [embed] e = Add (t, c)"
ATTENDS = {"image": "float[N,300,12,12] x", "s": [0, 300, 144], "c": (144, 300), "w": (300, 5)}
refusal("attention behind an embedding", f"{LARGE}  u = Transpose <perm = [0, 2, 1]> (e)  [qk] a = MatMul (e, u)  "
    "b = Softmax (a)  [av] m = MatMul (b, e)  g = ReduceMean <axes = [1], keepdims = 0> (m)  y = MatMul (g, w)",
    ("product-of-maps", "qk", "positions with positions"), **ATTENDS)
refusal("fused attention behind an embedding", f"{LARGE}  [fused] m = com.microsoft.MultiHeadAttention <num_heads = 2> "
    "(e, e, e)  g = ReduceMean <axes = [1], keepdims = 0> (m)  y = MatMul (g, w)",
    ("product-of-maps", "fused", "positions with positions"), outputs="float[N,5] y", **ATTENDS)
refusal("an embedding without attention", f"{LARGE}  g = ReduceMean <axes = [1], keepdims = 0> (e)  y = MatMul (g, w)",
    ("unfold-too-large", "embed", "all positions of the window at once"), **ATTENDS)
refusal("attention between words", f"{DENSE}  i = ArgMax <axis = 1, keepdims = 0> (d)  [embed] e = Gather (table, i)  "
    "u = Unsqueeze (e, one)  v = Unsqueeze (e, two)  [qk] a = MatMul (u, v)  y = Softmax (a)",
    ("product-of-maps", "qk", "positions with positions"), w=(72, 5), table=(5, 3), one=[1], two=[2],
    outputs="float[N,1,1] y")
refusal("a dense layer along positions", "r = Reshape (x, s)  [mix] m = MatMul (r, v)  [join] e = Add (r, m)  "
    "g = ReduceMean <axes = [2], keepdims = 0> (e)  y = MatMul (g, w)",
    ("mixes-positions", "mix", "mixes the positions of a window, and Add 'join', after it"),
    image="float[N,300,12,12] x", s=[0, 300, 144], v=(144, 144), w=(300, 5))
refusal("auto_pad of a pooling that cuts off a cell", "[stem] m = AveragePool <kernel_shape = [1, 1], "
    f"auto_pad = \"SAME_UPPER\", strides = [3, 1]> (x)  {HEAD}",
    ("padding", "stem", "auto_pad with a kernel of 1 and a stride of 3, where onnxruntime cuts off cells"),
    image="float[N,6,6,3] x", w=(36, 5), outputs="float[N,5] y")
refusal("auto_pad of a pooling that dilates", "[stem] m = MaxPool <kernel_shape = [2, 2], auto_pad = \"SAME_UPPER\", "
    f"dilations = [2, 1]> (x)  {HEAD}", ("padding", "stem", "onnxruntime pads for the kernel without its gaps"),
    w=(54, 5), outputs="float[N,5] y")
for op in ("AveragePool", "MaxPool"):
    refusal(f"{op} with auto_pad VALID that rounds up", f"[stem] m = {op} <kernel_shape = [2, 2], strides = [2, 2], "
        f"auto_pad = \"VALID\", ceil_mode = 1> (x)  {HEAD}",
        ("padding", "stem", "auto_pad VALID and rounds its size up"), w=(24, 5), outputs="float[N,5] y")
refusal("auto_pad that cuts off cells", f'[stem] m = Conv <auto_pad = "SAME_UPPER", strides = [4, 1]> (x, k)  {HEAD}',
    ("padding", "stem", "auto_pad with a kernel of 1 and a stride of 4, where onnxruntime cuts off cells"),
    k=(5, 6, 1, 1), w=(15, 7))
refusal("a weight that is repeated too often", "r = Reshape (x, s)  [mix] m = MatMul (r, v)  y = Flatten (m)",
    ("weight-too-large", "mix", "repeated 2000 times, for each channel or position that it does not sum over, to "
    "295 MB; all repeated weights would take 295 MB (at most 268 MB)"),
    image="float[N,2000,12,12] x", s=[0, 2000, 144], v=(144, 256))
refusal("weights that are repeated too often together", "r = Reshape (x, s)  [one] m = MatMul (r, v)  g = Relu (m)  "
    "[two] o = MatMul (g, w)  y = Flatten (o)",
    ("weight-too-large", "two", "to 147 MB; all repeated weights would take 295 MB (at most 268 MB)"),
    image="float[N,1000,12,12] x", s=[0, 1000, 144], v=(144, 256), w=(256, 144))
refusal("product of answers", f"{DENSE}  u = Unsqueeze (d, one)  v = Unsqueeze (d, two)  [outer] p = MatMul (v, u)  "
    "y = Flatten (p)", ("product-of-maps", "outer", "two answers of the network"), w=(72, 5), one=[1], two=[2])
refusal("a gate that is padded", "p = GlobalAveragePool (x)  s = Shape (x)  e = Expand (p, s)  "
    f"g = Conv <pads = [1, 1, 1, 1]> (e, v)  [mul] n = Mul (x, g)  [conv] m = Conv (n, k)  {HEAD}",
    ("per-position", "mul", "treats the positions of a window in different ways"), v=(6, 6, 3, 3), k=(5, 6, 2, 2),
    w=(30, 7), outputs="float[N,7] y")
refusal("positional embedding", f"[add] e = Add (x, c)  [conv] m = Conv (e, k)  {HEAD}",
    ("per-position", "add", "Conv 'conv' slides"), c=(6, 4, 3), k=(5, 6, 2, 2), w=(30, 7))
GRID = "s = Shape (x)  n = Gather (s, three)  v = Cast <to = 1> (n)  {}  g = Div (r, v)  q = Reshape (g, wide)"
for _made, _from in {
    "Range": "r = Range (zero, v, step)",
    "NonZero": "u = Unsqueeze (n, at)  o = ConstantOfShape <value = int64[1] {1}> (u)  z = NonZero (o)  "
    "l = Squeeze (z, at)  r = Cast <to = 1> (l)",
    "CumSum": "u = Unsqueeze (n, at)  o = ConstantOfShape <value = float[1] {1}> (u)  r = CumSum (o, none)",
}.items():
    refusal(f"coordinates by {_made}",
        f"{GRID.format(_from)}  [add] e = Add (x, q)  [conv] m = Conv (e, kernel)  {HEAD}",
        ("per-position", "add", "Conv 'conv' slides"), three=3, at=[0], none=0, zero=0.0, step=1.0,
        wide=[1, 1, 1, -1], kernel=(5, 6, 2, 2), w=(30, 7))
refusal("flip of the image", f"[flip] e = Slice (x, end, front, axis, step)  [conv] m = Conv (e, k)  {HEAD}",
    ("per-position", "flip", "Conv 'conv' slides"), k=(5, 6, 2, 2), w=(30, 7), end=[-1], front=[-99],
    axis=[3], step=[-1])
refusal("several images a sample", "r = Reshape (x, s)  [conv] c = Conv (r, k)  f = Flatten (c)  d = MatMul (f, w)  "
    "y = Reshape (d, t)", ("several-images", "conv", "treats the 2 images, patches or channels of each sample"),
    image="float[N,2,3,4,4] x", s=[-1, 3, 4, 4], k=(5, 3, 2, 2), w=(45, 7), t=[-1, 14])
refusal("softmax over positions, then a conv", f"[soft] e = Softmax <axis = 2> (x)  [conv] m = Conv (e, k)  {HEAD}",
    ("per-position", "soft", "Conv 'conv' slides"), k=(5, 6, 2, 2), w=(30, 7))
refusal("reshape across the batch", "[cut] r = Reshape (x, s)  y = MatMul (r, w)",
    ("reshape-size", "cut", "not divisible"), s=[-1, 48], w=(48, 5), outputs="float[M,5] y")
refusal("reshape of two images to one", "r = Reshape (x, s)  [fc] y = MatMul (r, w)",
    ("batch", "fc", "sums over the batch"), image="float[2,6,4,3] x", s=[-1, 144], w=(144, 5))
refusal("reduction over the batch", f"{DENSE}  [mean] y = ReduceMean <axes = [0]> (d)",
    ("batch", "mean", "over the batch"), image="float[2,6,4,3] x", w=(72, 5))
refusal("reduction over a free batch", f"{DENSE}  [norm] y = ReduceL2 <axes = [0]> (d)",
    ("batch", "norm", "over the batch"), w=(72, 5))
refusal("the mean of a batch in front of everything", "[mean] m = ReduceMean <axes = [0]> (x)  c = Sub (x, m)  "
    f"{DENSE.replace('(x)', '(c)')}  y = Relu (d)",
    ("batch", "mean", "reduces over the batch: axes [0] of n c6 h4 w3"), image="float[2,6,4,3] x", trunk=False,
    w=(72, 5))
refusal("softmax over the batch", f"{DENSE}  [soft] y = Softmax <axis = 0> (d)",
    ("batch", "soft", "along the batch"), image="float[2,6,4,3] x", w=(72, 5))
refusal("instance normalisation over the images", "t = Transpose <perm = [1, 0, 2, 3]> (x)  "
    "[norm] n = InstanceNormalization (t, a, b)  u = Transpose <perm = [1, 0, 2, 3]> (n)  f = Flatten (u)  "
    "y = MatMul (f, w)", ("not-channels", "norm", "expects the batch on axis 0"), image="float[2,6,4,3] x", w=(72, 5),
    a=(2,), b=(2,))
refusal("one image of the batch", f"{DENSE}  [first] y = Gather <axis = 0> (d, i)",
    ("batch", "first", "images of the batch"), image="float[2,6,4,3] x", w=(72, 5), i=0)
refusal("another constant for each image", f"{DENSE}  [add] y = Add (d, c)",
    ("constant-per-image", "add", "differs between the images"), image="float[2,6,4,3] x", w=(72, 5), c=(2, 5))
refusal("another bias for each image", "f = Flatten (x)  [fc] y = Gemm (f, w, c)",
    ("bias-per-image", "fc", "differs between the images"), image="float[2,6,4,3] x", w=(72, 5), c=(2, 5))
refusal("indices of a pooling", "[pool] p, i = MaxPool <kernel_shape = [2, 2]> (x)  f = Flatten (p)  "
    "y = MatMul (f, w)  z = Flatten (i)", ("indices", "pool", "indices"), outputs="y, z", w=(36, 5))
refusal("mask of a dropout", "[drop] p, i = Dropout (x)  f = Flatten (p)  y = MatMul (f, w)  z = Flatten (i)",
    ("dropout-mask", "drop", "mask"), outputs="y, z", w=(72, 5))
refusal("dropout in training", "[drop] d = Dropout (x, ratio, on)  f = Flatten (d)  y = MatMul (f, w)",
    ("training", "drop", "at random, as in training"), w=(72, 5), ratio=0.5, on=np.array(True))
refusal("batch normalisation in training", "[norm] c, m, v = BatchNormalization <training_mode = 1> (x, g, b, q, s)  "
    "f = Flatten (c)  y = MatMul (f, w)", ("training", "norm", "statistics of the current batch"), opset=15,
    g=(6,), b=(6,), q=(6,), s=positive("s", 6), w=(72, 5))
refusal("batch normalisation that gives its statistics", "[norm] c, m, v, d, e = BatchNormalization (x, g, b, q, s)  "
    "f = Flatten (c)  y = MatMul (f, w)", ("training", "norm", "statistics of the current batch"), opset=13,
    g=(6,), b=(6,), q=(6,), s=positive("s", 6), w=(72, 5))
refusal("noise", "[noise] n = RandomNormal <shape = [1, 6, 4, 3]> ()  a = Add (x, n)  f = Flatten (a)  "
    "y = MatMul (f, w)", ("random", "noise", "other values in every run"), w=(72, 5))
refusal("kernel from the image", "p = GlobalAveragePool (x)  r = Reshape (p, s)  [dynamic] c = ConvTranspose (x, r)  "
    "f = Flatten (c)  y = MatMul (f, w)",
    ("not-constant", "dynamic", "depend on the image"), image="float[1,6,4,3] x", s=[6, 1, 1, 1], w=(12, 5))
refusal("kernel for each image", "p = GlobalAveragePool (x)  q = Flatten (p)  d = MatMul (q, v)  "
    "r = Reshape (d, dims)  i = Reshape (x, joined)  [dynamic] c = Conv <group = 2> (i, r)  "
    "f = Reshape (c, split)  y = MatMul (f, w)",
    ("kernel-per-image", "dynamic", "each image of a batch with a kernel of its own"), image="float[2,6,4,3] x",
    v=(6, 6), dims=[2, 6, 1, 1], joined=[1, 12, 4, 3], split=[2, 12], w=(12, 5))
refusal("kernels of all images", "p = GlobalAveragePool (x)  q = Flatten (p)  d = MatMul (q, v)  "
    "r = Reshape (d, dims)  [dynamic] c = Conv (x, r)  m = ReduceMean <axes = [1]> (c)  f = Flatten (m)  "
    "y = MatMul (f, w)", ("batch", "dynamic", "each image of a batch with a kernel of its own"),
    v=(6, 6), dims=[-1, 6, 1, 1], w=(12, 5))
refusal("kernel from the window", "p = GlobalAveragePool (x)  r = Reshape (p, s)  a = Flatten (x)  d = MatMul (a, v)  "
    "u = Unsqueeze <axes = [2, 3]> (d)  [dynamic] c = Conv (u, r)  y = Flatten (c)",
    ("not-constant", "dynamic", "depend on the image"), image="float[1,6,4,3] x", opset=11, s=[1, 6, 1, 1], v=(72, 6))
refusal("channels with channels", "q = Reshape (x, s)  k = Transpose <perm = [0, 2, 1]> (q)  [gram] g = MatMul (q, k)  "
    "f = Flatten (g)  y = MatMul (f, w)", ("product-of-maps", "gram", "bilinear pooling"), s=[0, 6, 12], w=(36, 5))
refusal("channels with channels, by Einsum", "q = Reshape (x, s)  k = Relu (q)  "
    '[gram] g = Einsum <equation = "ncp,ndp->ncd"> (q, k)  f = Flatten (g)  y = MatMul (f, w)',
    ("product-of-maps", "gram", "bilinear pooling"), s=[0, 6, 12], w=(36, 5))
refusal("a map with its transpose at each position", 'a = Transpose <perm = [0, 1, 3, 2]> (x)  '
    '[meet] d = Einsum <equation = "nchw,nchw->nhw"> (x, a)  f = Flatten (d)  y = MatMul (f, w)',
    ("product-of-maps", "meet", "positions with positions"), image="float[N,6,4,4] x", w=(16, 5))
refusal("too many products of features", 'a = Sigmoid (x)  [outer] d = Einsum <equation = "nchw,nkhw->nckhw"> (x, a)  '
    "f = Flatten (d)  y = MatMul (f, w)",
    ("too-many-products", "outer", "multiplies 90000 pairs of features at each position (at most 40000)"),
    image="float[N,300,2,2] x", w=(360000, 2))
refusal("an einsum of maps along a diagonal", "q = Reshape (x, s)  "
    '[diagonal] g = Einsum <equation = "nii,nii->n"> (q, q)  '
    "y = Relu (g)", ("einsum", "diagonal", "takes a diagonal"), image="float[N,4,2,2] x", s=[0, 4, 4],
    outputs="float[N] y")
refusal("limits from the image", f'{DENSE}  m = ReduceMax <keepdims = 0> (x)  [clip] y = Clip (d, "", m)',
    ("not-constant", "clip", "depend on the position"), image="float[1,6,4,3] x", w=(72, 5))
refusal("table looked up by answers", f"{DENSE}  i = ArgMax <axis = 1> (d)  [embed] y = Gather (e, i)",
    ("lookup", "embed", "looks up a table"), w=(72, 5), e=(5, 3))
refusal("maps of different strides", "a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  "
    "b = Slice (x, zero, two, axes)  [join] c = Add (a, b)  f = Flatten (c)  y = MatMul (f, w)",
    ("strides-meet", "join", "every 2 and every 4 pixels"), image="float[N,6,4,5] x", zero=[0, 0], two=[2, 2],
    axes=[2, 3], w=(24, 5))
refusal("a part of a map, to the size of an earlier one",
    "a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)  "
    '[up] r = Resize <coordinate_transformation_mode = "tf_crop_and_resize", mode = "linear"> (a, part, "", sizes)  '
    "m = Mul (x, r)  f = Flatten (m)  y = MatMul (f, w)",
    ("align-corners", "up", "between corners"), part=np.float32([0, 0, 0, 0, 1, 1, 0.5, 0.5]), sizes=[1, 6, 8, 7],
    image="float[1,6,8,7] x", w=(336, 5))
refusal("corners aligned, to a literal size that no map had",
    '[up] r = Resize <coordinate_transformation_mode = "align_corners", mode = "linear"> (x, "", "", sizes)  '
    "f = Flatten (r)  y = MatMul (f, w)",
    ("align-corners", "up", "between corners"), sizes=[1, 6, 8, 6], image="float[1,6,4,3] x", w=(288, 5))
refusal("corners aligned",
    '[up] r = Resize <coordinate_transformation_mode = "align_corners", mode = "linear"> (x, "", scales)  '
    "f = Flatten (r)  y = MatMul (f, w)",
    ("align-corners", "up", "between corners"), scales=np.float32([1, 1, 2, 2]), w=(288, 5))
SCALED = ('[up] r = Resize <coordinate_transformation_mode = "{}", mode = "{}", nearest_mode = "floor"> '
          '(x, "", scales)  '
          "f = Flatten (r)  y = MatMul (f, w)")
refusal("a scale that single floats do not hold", SCALED.format("asymmetric", "nearest"),
    ("rounding", "up",
     "resizes by 6/5, which single precision cannot represent: in onnxruntime cell 18 is a copy of cell 14"),
    image="float[N,6,5,5] x", scales=np.float32([1, 1, 1.2, 1.2]), w=(216, 5))
refusal("a scale that is no fraction", SCALED.format("half_pixel", "linear"),
    ("irrational-scale", "up", "resizes by 1.4142, which is not a fraction with a denominator of at most 64"),
    image="float[N,6,5,5] x", scales=np.float32([1, 1, 1.4142, 1.4142]), w=(294, 5))
refusal("a shift by what is cut off", SCALED.format("half_pixel_symmetric", "linear"),
    ("half-pixel-symmetric", "up", "resizes 5 cells to 2.5"), image="float[N,6,5,4] x", opset=19,
    scales=np.float32([1, 1, 0.5, 0.5]), w=(24, 5))
refusal("nearest cells on a border that floats do not tell", SCALED.format("half_pixel_symmetric", "nearest"),
    ("rounding", "up", "by 1/3, where the nearest cell is on the border between two"), image="float[N,6,9,9] x",
    opset=19, scales=np.float32([1, 1, 1 / 3, 1 / 3]), w=(54, 5))
refusal("a map of no cells", '[crop] c = Pad (x, pads)  r = Resize (c, "", "", sizes)  f = Flatten (r)  '
    "y = MatMul (f, w)", ("empty", "crop", "without any values"), pads=[0, 0, -2, 0, 0, 0, -2, 0], sizes=[1, 6, 4, 3],
    image="float[1,6,4,3] x", w=(72, 5))
refusal("an aspect ratio that gives no whole size", '[up] r = Resize <keep_aspect_ratio_policy = "not_larger", '
    'axes = [2, 3]> (x, "", "", sizes)  f = Flatten (r)  y = MatMul (f, w)',
    ("aspect-ratio", "up", "keeps the aspect ratio by scaling 5 cells"), image="float[N,6,4,5] x", opset=18,
    sizes=[6, 20], w=(288, 5))
refusal("an einsum of three factors", 'f = Flatten (x)  [product] y = Einsum <equation = "nk,kr,ro->no"> (f, w, v)',
    ("einsum", "product", "more than two factors"), w=(72, 4), v=(4, 5))
refusal("an einsum along a diagonal", f'{DENSE}  r = Reshape (d, s)  [diagonal] y = Einsum <equation = "nii->ni"> (r)',
    ("einsum", "diagonal", "takes a diagonal"), w=(72, 9), s=[0, 3, 3])
refusal("a conv along flattened positions", "r = Reshape (x, s)  [conv] c = Conv (r, k)  y = Flatten (c)",
    ("not-spatial", "conv", "slides along axis 2 of n c6 (h4 w3) (N×6×12)"), s=[0, 6, 12], k=(2, 6, 3))
refusal("a conv along two kinds of features", "r = Reshape (x, s)  [conv] c = Conv (r, k)  y = Flatten (c)",
    ("not-spatial", "conv", "beside the 3 axes of the map"), s=[0, 1, 3, 2, 4, 3], k=(2, 1, 2, 2, 2, 2))
refusal("a part of the window reduced", "r = Reshape (x, s)  [half] y = ReduceMax <axes = [2], keepdims = 0> (r)",
    ("reduce-partial-window", "half", "a part of an axis of the image"), s=[0, 6, 2, 2, 3])
refusal("a part of the window contracted", "r = Reshape (x, s)  [fc] m = MatMul (r, w)  y = Flatten (m)",
    ("dense-partial-window", "fc", "a part of a window"), s=[0, 12, 6], w=(6, 5))
refusal("another weight for each row", "r = Reshape (x, s)  [rows] m = MatMul (r, w)  y = Flatten (m)",
    ("weight-per-position", "rows", "a different weight for each part"), s=[0, 6, 4, 1, 3], w=(4, 3, 5))
refusal("a table beside an image that cannot slide",
    f"{DENSE}  r = Reshape (d, s)  [det] a = Det (r)  g = Flatten (e)  h = MatMul (g, v)  y = Add (a, h)",
    ("no-rule", "det", "Det"), image="float[N,6,4,3] x, float[N,2,4,3] e", w=(72, 4), v=(24, 1), s=[0, 1, 2, 2])
refusal("a window of too many values", "y = Flatten (x)",
    ("unfold-too-large", "y", "48384 channels"), image="float[N,64,28,27] x")
refusal("a kernel of too many values", "y = Flatten (x)",
    ("unfold-too-large", "y", "65×65 of 2 channels, but the kernel that copies them would have 35,701,250 values"),
    image="float[N,2,65,65] x")
refusal("a branch that the image chooses", f"{DENSE}  m = ReduceMax <keepdims = 0> (x)  c = Greater (m, zero)  "
    "[if] y = If (c) <then_branch = t () => (float[N,5] a) { a = Relu (d) },  "
    "else_branch = e () => (float[N,5] b) { b = Neg (d) }>",
    ("no-rule", "if", "If"), outputs="float[N,5] y", w=(72, 5), zero=0.0)

# fmt: on

# Faults ---------------------------------------------------------------------------------------------------------------


def kernel_order(patch: pytest.MonkeyPatch) -> None:
    """The weight of a channels-last flatten keeps its order."""
    kernel = contraction.kernel
    patch.setattr(contraction, "kernel", lambda site, weight, view, dims: kernel(site, weight, lambda w: w, dims))


def softmax_axis(patch: pytest.MonkeyPatch) -> None:
    """Softmax runs along the columns of the grid."""
    softmax = Site.softmax
    patch.setattr(Site, "softmax", lambda self, name, axis, rank, op: softmax(self, name, rank - 1, rank, op))


def pooling_kind(patch: pytest.MonkeyPatch) -> None:
    """A mean is a maximum."""
    pool = reduction.pool_window
    patch.setattr(reduction, "pool_window", lambda site, x, largest, over: pool(site, x, not largest, over))


def bias_broadcast(patch: pytest.MonkeyPatch) -> None:
    """A bias (1,) goes to the first output alone."""

    def alone(site: Site, bias: facts.Known, size: int, factor: float = 1.0) -> facts.Known:
        value = site.value(bias).reshape(-1)[:size]
        value = ((np.arange(size) == 0) * factor * value).astype(value.dtype)
        return site.record_constant(site.constant(value), value)

    patch.setattr(dense, "vector", alone)


def alpha_beta(patch: pytest.MonkeyPatch) -> None:
    """Gemm does not scale."""
    attr = Site.attr
    patch.setattr(Site, "attr", lambda self, name, default=None:
        default if name in ("alpha", "beta") else attr(self, name, default))  # fmt: skip


FAULTS = {
    kernel_order: "transpose to channels last",
    softmax_axis: "Softmax of classes",
    pooling_kind: "GlobalAveragePool",
    bias_broadcast: "gemm bias (1,)",
    alpha_beta: "gemm alpha beta",
}

# The tests ------------------------------------------------------------------------------------------------------------

CASES = [
    pytest.param(case, opset, case.trunk and opset == case.opsets[-1], id=f"{case.name}, opset {opset}")
    for case in ROWS.values()
    for opset in case.opsets
]


@pytest.mark.parametrize(("case", "opset", "trunk"), CASES)
def test_law(case: Row, opset: int, trunk: bool) -> None:
    case.check(opset, trunk=trunk)


def test_every_operator_has_a_row() -> None:
    graphs = [case.model(case.opsets[-1]).graph for case in ROWS.values()]
    covered = {(node.domain, node.op_type) for graph in graphs for node in graph.node}
    assert set(registry.operators()) <= covered


def test_a_fully_convolutional_network_keeps_its_maps() -> None:
    original = law.model("c = Conv <pads = [1, 1, 1, 1]> (x, k)  y = Relu (c)", k=(5, 6, 3, 3))
    converted = onnx_fcn.convert(original, validate=False).to_proto()
    image = {"x": law.random("x", 2, 6, 7, 9).astype(np.float32)}
    expected, answer = law.session(law.trunk_of(original, ["y"]))(image), law.session(converted)(image)
    law.agree(answer[0], expected[0], "output 'y'")


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_refusal(case: Refusal) -> None:
    model = law.model(case.body, **case.given)
    with pytest.raises(UnsupportedModel) as refused:
        onnx_fcn.convert(law.behind_a_trunk(model) if case.trunk else model, validate=False)
    found = refused.value.diagnostics
    assert (
        wording.faults(str(refused.value), outputs=len(law.model(case.body, **case.given).graph.output), given=()) == []
    )
    assert [(d.code, d.node) for d in found] == [(code, node) for code, node, _ in case.causes]
    for diagnostic, (*_, reason) in zip(found, case.causes):
        assert reason in diagnostic.reason


def test_an_image_is_not_taken_for_a_volume() -> None:
    """Nothing before the finer map tells channels from a depth: the first reading succeeds, with 2 colours."""
    model = law.model('a = Relu (x)  y = Resize (a, "", s)', s=np.float32([1, 1, 2, 2]), image="float[N,2,6,8] x")
    conversion = onnx_fcn.convert(model)
    assert (conversion.report.axes, conversion.report.window) == ("NCHW", (6, 8))


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that obeys the law breaks it once the fault is planted, and the test says where the numbers are wrong."""
    case = ROWS[FAULTS[plant]]
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="is right, at"):
        case.check(case.opsets[-1], trunk=True)


@pytest.mark.parametrize("mode", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_a_shape_of_a_transposed_convolution_is_frozen_as_padding(mode: str) -> None:
    """Of an odd padding the larger half lies in front, unless SAME_UPPER says otherwise: natively it shows."""
    body = (
        f'r = ConvTranspose <strides = [2, 2], auto_pad = "{mode}", output_shape = [8, 6]> (x, k)  '
        "m = Conv (r, v)  f = Flatten (m)  y = MatMul (f, w)"
    )
    model = law.model(body, image="float[N,6,4,3] x", k=(6, 5, 3, 3), v=(4, 5, 2, 2), w=(140, 7))
    image = law.random("image", 2, 6, 4, 3).astype(np.float32)
    converted = onnx_fcn.convert(model, validate=False).to_proto()
    got, want = (law.session(m)({"x": image})[0] for m in (converted, model))
    law.agree(got.reshape(want.shape), want, mode)


@pytest.mark.parametrize("indices", ["linear", "coordinates"])
@pytest.mark.parametrize("stored", ["initializer", "Constant"])
def test_sparse_weights(stored: str, indices: str) -> None:
    """Most elements of a weight are zero, and not stored: of a dense layer, and of one that stays as it is."""
    model = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 3, 2), w=(20, 7))
    for tensor in list(model.graph.initializer):
        value = numpy_helper.to_array(tensor) * (np.arange(np.prod(tensor.dims)).reshape(tensor.dims) % 3 == 0)
        places = np.argwhere(value) if indices == "coordinates" else np.flatnonzero(value)
        values = numpy_helper.from_array(value[value != 0], tensor.name)
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64)), tensor.dims)
        if stored == "initializer":
            model.graph.sparse_initializer.append(sparse)
        else:
            model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], sparse_value=sparse))
    model.graph.ClearField("initializer")
    converted = onnx_fcn.convert(model).to_proto()
    images = law.random("images", 2, 6, 6, 5).astype(np.float32)
    expected = law.by_window(law.session(model), {"x": images}, "x", (4, 3), (2, 3), (1, 1))
    law.compare(converted, law.session(converted)({"x": images}), expected, 2)
