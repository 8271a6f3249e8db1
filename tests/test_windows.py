"""What cannot slide runs on every window: each cell is the original's answer, from the last map that slides on.

The oracle is the law of `law.py`, with nothing of the package: onnxruntime, or torch, runs the trunk on the larger
image, numpy cuts the windows out of its map, and the original's own nodes answer for each of them. What these compute
from the shape of the image they compute from that of an image of the native size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

import onnx_fcn
from onnx_fcn import UnsupportedModel

#: A trunk without padding: windows of 9×7 pixels, a map of 6 channels and 4×3 cells.
IMAGE = "float[N,3,9,7] x"
TRUNK = "c = Conv <strides = [2, 2]> (x, k)  m = Relu (c)"
STEM: dict[str, Any] = {"k": (6, 3, 3, 3)}

#: The positions of the map as a list, (N, 12, 6).
POSITIONS = "t = Reshape (m, flat)  u = Transpose <perm = [0, 2, 1]> (t)"
FLAT: dict[str, Any] = {"flat": [0, 6, 12]}

#: Attention between the positions of `p`: (N, positions, 6) -> `o` of that shape.
ATTENTION = """
    q = MatMul (p, wq)  kk = MatMul (p, wk)  kt = Transpose <perm = [0, 2, 1]> (kk)  aff = MatMul (q, kt)
    soft = Softmax <axis = 2> (aff)  o = MatMul (soft, p)
"""
HEADS: dict[str, Any] = {"wq": (6, 6), "wk": (6, 6)}

#: Scores of the first position, which is the class token if there is one.
SCORES = "g = Gather <axis = 1> (o, first)  y = MatMul (g, w)"
CLASSES: dict[str, Any] = {"first": np.array(0), "w": (6, 5)}

ATTENDED: dict[str, Any] = {**STEM, **FLAT, **HEADS, **CLASSES}


@dataclass(frozen=True)
class Case:
    """A network that cannot slide, and what is known of it.

    Attributes:
        build: makes it, of an opset.
        cut: the last map that slides; the image, if nothing does.
        window: cells of the cut.
        step: cells of the cut between neighbouring windows.
        stride: pixels between neighbouring windows.
        space: the axes of the image that slide.
        axes: the axes of the cut that slide; by default those after the channels.
        batches: the numbers of images that it takes.
        opset: the one that it is written in.
    """

    build: Callable[[int], ModelProto]
    cut: str = "m"
    window: tuple[int, ...] = (4, 3)
    step: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (2, 2)
    space: tuple[int, ...] = (2, 3)
    axes: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1, 2)
    opset: int = 13

    def model(self) -> ModelProto:
        return self.build(self.opset)


def case(body: str, *, image: str = IMAGE, outputs: str = "y", weights: dict[str, Any], **known: Any) -> Case:
    """A network in ONNX's text syntax, with those weights of the attention and of its trunk that it reads."""
    stated = {name: value for name, value in {**ATTENDED, **weights}.items() if reads(body, name)}
    return Case(lambda opset: law.model(body, image=image, outputs=outputs, opset=opset, **stated), **known)


def reads(body: str, name: str) -> bool:
    return name in body.replace("(", " ").replace(")", " ").replace(",", " ").split()


TOKEN = f"""
    {TRUNK}  s = Shape (x)  n = Gather (s, zero)  e = Concat <axis = 0> (n, one)  cls = Expand (token, e)
    {POSITIONS}  v = Concat <axis = 1> (cls, u)  p = Add (v, places)  {ATTENTION}  {SCORES}
"""
TOKENS: dict[str, Any] = {"zero": [0], "one": [1, 6], "token": (1, 1, 6), "places": (1, 13, 6)}

EMBEDDED = f"{TRUNK}  {POSITIONS}  p = Add (u, places)  {ATTENTION}  {SCORES}"
PLACES: dict[str, Any] = {"places": (1, 12, 6)}

LSTM = "h, l = LSTM <hidden_size = 4> (r, wi, wr)"
GRU = "h, l = GRU <hidden_size = 4> (r, wi, wr)"

CASES: dict[str, Case] = {
    "a class token, repeated for the images of the batch": case(TOKEN, weights=TOKENS),
    "embedded positions": case(EMBEDDED, weights=PLACES),
    "products of a map with itself": case(
        f"{TRUNK}  {POSITIONS}  a = MatMul (t, u)  f = Flatten (a)  y = MatMul (f, w)", weights={"w": (36, 5)}),
    "positions weighted by the map": case(
        f"{TRUNK}  {POSITIONS}  z = Conv (m, v)  zt = Reshape (z, rows)  a = Softmax <axis = 2> (zt)  "
        "o = MatMul (a, u)  f = Flatten (o)  y = MatMul (f, w)",
        weights={"v": (2, 6, 1, 1), "rows": [0, 2, 12], "w": (12, 5)}),
    "an LSTM along the positions": case(
        f"{TRUNK}  t = Reshape (m, flat)  r = Transpose <perm = [2, 0, 1]> (t)  {LSTM}  f = Squeeze (l, zero)  "
        "y = MatMul (f, w)", weights={"wi": (1, 16, 6), "wr": (1, 16, 4), "zero": [0], "w": (4, 5)}),
    "a GRU that answers at each step, with the batch between": case(
        f"{TRUNK}  t = Reshape (m, flat)  r = Transpose <perm = [2, 0, 1]> (t)  {GRU}  y = Squeeze (h, one)",
        weights={"wi": (1, 12, 6), "wr": (1, 12, 4), "one": [1]}),
    "a norm with scales for each position, and a padded convolution": case(
        f"{TRUNK}  l = LayerNormalization <axis = 1> (m, scales)  d = Conv <pads = [1, 1, 1, 1]> (l, k2)  "
        "f = Flatten (d)  y = MatMul (f, w)", opset=17,
        weights={"scales": (6, 4, 3), "k2": (4, 6, 3, 3), "w": (48, 5)}),
    "coordinates as channels of the map": case(
        f"{TRUNK}  v = Concat <axis = 1> (m, xy)  d = Conv (v, k2)  f = Flatten (d)  y = MatMul (f, w)",
        image="float[1,3,9,7] x", weights={"xy": (1, 2, 4, 3), "k2": (4, 8, 2, 2), "w": (24, 5)}, batches=(1,)),
    "padding behind the map that two outputs share": case(
        f"{TRUNK}  d = Conv <pads = [1, 1, 1, 1]> (m, k2)  f = Flatten (d)  y = MatMul (f, w)  e = Flatten (m)  "
        "z = MatMul (e, v)", outputs="y, z", weights={"k2": (4, 6, 3, 3), "w": (48, 5), "v": (72, 3)}),
    "a signal": case(
        f"m = Conv <strides = [3]> (x, k)  t = Identity (m)  p = Transpose <perm = [0, 2, 1]> (t)  {ATTENTION}  "
        f"{SCORES}", image="float[N,2,20] x", weights={"k": (6, 2, 5)}, window=(6,), step=(1,),
        stride=(3,), space=(2,)),
    "a volume": case(
        f"m = Conv <strides = [2, 1, 2]> (x, k)  t = Reshape (m, flat)  p = Transpose <perm = [0, 2, 1]> (t)  "
        f"{ATTENTION}  {SCORES}", image="float[N,2,7,4,5] x", weights={"k": (6, 2, 3, 2, 3), "flat": [0, 6, 18]},
        window=(3, 3, 2), step=(1, 1, 1), stride=(2, 1, 2), space=(2, 3, 4)),
    "channels last": case(
        f"b = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv <strides = [2, 2]> (b, k)  m = Relu (c)  "
        f"l = Transpose <perm = [0, 2, 3, 1]> (m)  p = Reshape (l, flat)  {ATTENTION}  {SCORES}",
        image="float[N,9,7,3] x", weights={"flat": [0, 12, 6]}, space=(1, 2)),
    "channels last at the cut": case(
        f"b = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv <strides = [2, 2]> (b, k)  "
        f"l = Transpose <perm = [0, 2, 3, 1]> (c)  m = Relu (l)  p = Reshape (m, flat)  {ATTENTION}  {SCORES}",
        image="float[N,9,7,3] x", weights={"flat": [0, 12, 6]}, space=(1, 2), axes=(1, 2)),
    "outputs of two ranks": case(
        f"{EMBEDDED}  z = MatMul (o, v)", outputs="y, z", weights={**PLACES, "v": (6, 7)}),
    "one output that could slide, and one that is the same for all": case(
        f"{EMBEDDED}  f = Flatten (m)  z = MatMul (f, v)", outputs="y, z", weights={**PLACES, "v": (72, 3)}),
    "an answer without an axis for the batch": case(
        f"{EMBEDDED.replace('y =', 'a =')}  y = Squeeze (a, zero)", image="float[1,3,9,7] x",
        weights={**PLACES, "zero": [0]}, batches=(1,)),
    "an answer that is one number": case(
        f"{EMBEDDED.replace('y =', 'a =')}  y = ReduceMax <keepdims = 0> (a)", image="float[1,3,9,7] x", weights=PLACES,
        batches=(1,)),
    "an image without a batch": case(
        f"i = Unsqueeze (x, zero)  {EMBEDDED.replace('(x,', '(i,').replace('y =', 'a =')}  y = Squeeze (a, zero)",
        image="float[3,9,7] x", weights={**PLACES, "zero": [0]}, space=(1, 2), batches=(1,)),
    "a baked batch of two": case(
        EMBEDDED, image="float[2,3,9,7] x", weights={**PLACES, "flat": [2, 6, 12]}, batches=(2,)),
    "the batch on the last axis": case(
        f"{EMBEDDED.replace('y =', 'a =')}  y = Transpose <perm = [1, 0]> (a)", weights=PLACES),
    "one score for each image": case(
        f"{EMBEDDED.replace('y =', 'a =')}  y = Gather <axis = 1> (a, first)", weights=PLACES),
    "another input, which is the same for all windows": case(
        f"{EMBEDDED.replace('y =', 'a =')}  d = MatMul (e, v)  y = Add (a, d)", image=f"{IMAGE}, float[N,4] e",
        weights={**PLACES, "v": (4, 5)}),
    "another input, for each position": case(
        f"{TRUNK}  {POSITIONS}  p = Add (u, e)  {ATTENTION}  {SCORES}", image=f"{IMAGE}, float[N,12,6] e", weights={}),
    "a weight that the trunk reads too": case(
        f"c = Conv <strides = [2, 2]> (x, k)  b = Mul (c, wk)  m = Relu (b)  {POSITIONS}  p = Mul (u, wk)  "
        "kt = Transpose <perm = [0, 2, 1]> (p)  a = MatMul (p, kt)  o = MatMul (a, p)  f = Flatten (o)  "
        "y = MatMul (f, w)", weights={"wk": np.array([1.5], np.float32), "w": (72, 5)}),
    "a trunk that pads, pools and joins": case(
        f"c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  b = MaxPool <kernel_shape = [3, 3], "
        f"strides = [1, 1], pads = [1, 1, 1, 1]> (c)  m = Add (b, c)  t = Reshape (m, flat)  "
        f"p = Transpose <perm = [0, 2, 1]> (t)  {ATTENTION}  {SCORES}", weights={"flat": [0, 6, 20]}, window=(5, 4)),
    "a map that is finer than its windows": case(
        f'{TRUNK.replace("m =", "b =")}  m = Resize <mode = "nearest"> (b, , scales)  t = Reshape (m, flat)  '
        f"p = Transpose <perm = [0, 2, 1]> (t)  {ATTENTION}  {SCORES}",
        weights={"scales": np.float32([1, 1, 2, 2]), "flat": [0, 6, 48]}, window=(8, 6), step=(2, 2)),
    "half floats": case(EMBEDDED, image="float16[N,3,9,7] x", weights=PLACES),
    "the best class": case(
        f"{EMBEDDED.replace('y =', 'a =')}  y = ArgMax <axis = 1, keepdims = 0> (a)  z, i = TopK (a, two)",
        outputs="y, z, i", weights={**PLACES, "two": [2]}),
    "truth values": case(
        f"{EMBEDDED.replace('y =', 'a =')}  y = Greater (a, nothing)", weights={**PLACES, "nothing": 0.0}),
    "an output that another one is computed from": case(
        f"{EMBEDDED}  z = Softmax <axis = 1> (y)", outputs="y, z", weights=PLACES),
    "the map as an output": case(f"{EMBEDDED}  z = Identity (m)", outputs="y, z", weights=PLACES),
    "another input, for one image and all": case(
        f"{TRUNK}  {POSITIONS}  p = Mul (u, e)  {ATTENTION}  {SCORES}", image=f"{IMAGE}, float[1,12,1] e", weights={}),
    "a gate that sees the whole image": case(
        f"c = Conv <strides = [2, 2]> (x, k)  l = GlobalAveragePool (c)  d = Sigmoid (l)  m = Mul (c, d)  {POSITIONS}  "
        f"p = Identity (u)  {ATTENTION}  {SCORES}", weights={}),
    "an image that is one pixel wide": case(
        f"m = Conv <strides = [2, 1]> (x, k)  t = Reshape (m, flat)  p = Transpose <perm = [0, 2, 1]> (t)  "
        f"{ATTENTION}  {SCORES}", image="float[N,3,9,1] x", weights={"k": (6, 3, 3, 1), "flat": [0, 6, 4]},
        window=(4, 1), stride=(2, 1)),
    "one image of one channel": case(
        f"{TRUNK}  t = Reshape (m, flat)  u = Transpose <perm = [0, 2, 1]> (t)  p = MatMul (u, up)  {ATTENTION}  "
        f"{SCORES}", image="float[1,1,9,7] x", weights={"k": (1, 1, 3, 3), "flat": [1, 1, 12], "up": (1, 6)},
        batches=(1,)),
    "one image with its channels last": case(
        f"b = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv <strides = [2, 2]> (b, k)  "
        f"l = Transpose <perm = [0, 2, 3, 1]> (c)  m = Relu (l)  p = Reshape (m, flat)  {ATTENTION}  {SCORES}",
        image="float[1,9,7,3] x", weights={"flat": [0, 12, 6]}, space=(1, 2), axes=(1, 2), batches=(1,)),
    "padding and a resize on each window": case(
        f'{TRUNK}  l = LayerNormalization <axis = 1> (m, scales)  r = Resize <mode = "linear"> (l, , up)  '
        "d = Conv <pads = [1, 1, 1, 1]> (r, k2)  f = Flatten (d)  y = MatMul (f, w)", opset=17,
        weights={"scales": (6, 4, 3), "up": np.float32([1, 1, 2, 2]), "k2": (2, 6, 3, 3), "w": (96, 5)}),
    "the size of the image as a number": case(
        f"s = Shape (x)  h = Gather (s, side)  hf = Cast <to = 1> (h)  {TRUNK}  {POSITIONS}  p = Div (u, hf)  "
        f"{ATTENTION}  {SCORES}", weights={"side": [2]}),
    "a branch that reads the map": case(
        f"{TRUNK}  {POSITIONS}  r = ReduceMax <keepdims = 0> (u)  big = Greater (r, limit)  "
        "a = If (big) <then_branch = yes () => (float[N,6,6] b) { b = MatMul (t, u) }, "
        "else_branch = no () => (float[N,6,6] d) { e = MatMul (t, u)  d = Neg (e) }>  f = Flatten (a)  "
        "y = MatMul (f, w)", image="float[1,3,9,7] x", weights={"limit": 1.5, "w": (36, 5)}, batches=(1,)),
    "a shape that is computed": case(
        f"{TRUNK}  s = Shape (m)  n = Gather (s, zero)  to = Concat <axis = 0> (n, rest)  d = Reshape (m, to)  "
        f"t = Reshape (d, flat)  p = Transpose <perm = [0, 2, 1]> (t)  {ATTENTION}  {SCORES}",
        weights={"zero": [0], "rest": [6, -1]}),
    "a fused operator, behind which shapes are only declared": case(
        f"{TRUNK}  {POSITIONS}  p = com.microsoft.SkipLayerNormalization (u, u, gamma, beta)  {ATTENTION}  {SCORES}",
        outputs="float[N,5] y", weights={"gamma": (6,), "beta": (6,)}),
    "a number of pixels that divides": case(
        f"{TRUNK}  s = Shape (c)  h = Gather (s, side)  hf = Cast <to = 1> (h)  {POSITIONS}  p = Div (u, hf)  "
        f"{ATTENTION}  {SCORES}", weights={"side": [2]}),
}  # fmt: skip


def obeys(known: Case, original: ModelProto, converted: ModelProto, *, more: Sequence[int] = (3, 2, 1)) -> None:
    """Every cell is the original from the cut on, on its window of the map of an image with pixels left over."""
    onnx.checker.check_model(converted, full_check=True)
    for name in ("input", "output"):
        assert [v.name for v in getattr(converted.graph, name)] == [v.name for v in getattr(original.graph, name)]
    image, *others = law.data_inputs(original)
    run = law.session(converted)
    cut = helper.make_tensor_value_info(known.cut, image.type.tensor_type.elem_type, None)
    if known.cut == image.name:
        head = law.session(original)
    else:
        trunk = law.session(law.trunk_of(original, [known.cut]))
        head = law.session(law.part(original, [cut, *original.graph.input], original.graph.output))
    for batch in known.batches:
        native = {i.name: law.noise(i, batch, (-2, 2)) for i in (image, *others)}
        dims = list(native[image.name].shape)
        for axis, n, pixels in zip(known.space, more, known.stride):
            dims[axis] += n * pixels + pixels - 1
        larger = {**native, image.name: law.noise(image, batch, (-2, 2), dims)}
        for feeds in (native, larger):
            values = feeds[image.name] if known.cut == image.name else trunk({image.name: feeds[image.name]})[0]
            axes = known.axes or range(2, 2 + len(known.window))
            at = {**native, known.cut: values}
            expected = law.by_window(head, at, known.cut, known.window, axes, known.step)
            answers = run(feeds)
            law.check_formulas(converted, feeds, answers)
            law.compare(converted, answers, expected, batch)


@pytest.mark.parametrize("name", CASES)
def test_law(name: str) -> None:
    known = CASES[name]
    original = known.model()
    with pytest.raises(UnsupportedModel, match="--windows"):
        onnx_fcn.convert(original)
    conversion = onnx_fcn.convert(original, windows=True)
    assert conversion.report.stride == known.stride
    obeys(known, original, conversion.to_proto())


@pytest.mark.parametrize("opset", [9, 10, 11, 17, 20])
def test_law_in_other_opsets(opset: int) -> None:
    known = CASES["a class token, repeated for the images of the batch"]
    original = known.build(opset)
    obeys(known, original, onnx_fcn.convert(original, windows=True).to_proto())


def test_an_opset_without_scans() -> None:
    """Opset 8 has a Scan, but of another kind: with a batch of its own."""
    original = CASES["products of a map with itself"].build(8)
    for windows in (False, True):
        with pytest.raises(UnsupportedModel) as refused:
            onnx_fcn.convert(original, windows=windows)
        assert "--windows runs" not in str(refused.value)
        assert "multiplies positions with positions" in str(refused.value)


def test_names_that_the_converted_network_would_make() -> None:
    """Tensors of the original may have any names; and nodes need none."""
    known = CASES["embedded positions"]
    original = known.model()
    taken = {"q": "y/window/place", "kk": "y/window/Gather", "kt": "o/of a window", "aff": "y/window/constant",
             "u": "m/2", "places": "y/window/Add", "wq": "soft/of a window"}  # fmt: skip
    for node in original.graph.node:
        node.ClearField("name")
        for names in (node.input, node.output):
            names[:] = [taken.get(n, n) for n in names]
    for tensor in original.graph.initializer:
        tensor.name = taken.get(tensor.name, tensor.name)
    obeys(known, original, onnx_fcn.convert(original, windows=True).to_proto())


def test_an_output_that_is_left_out() -> None:
    """As exporters write an LSTM of which only the last state is read."""
    known = CASES["an LSTM along the positions"]
    original = known.model()
    next(n for n in original.graph.node if n.op_type == "LSTM").output[0] = ""
    obeys(known, original, onnx_fcn.convert(original, windows=True).to_proto())


def test_weights_that_are_declared_as_inputs() -> None:
    """As IR version 3 had it: they may be replaced when the network runs, and are still the same for all windows."""
    known = CASES["embedded positions"]
    original = known.model()
    for tensor in original.graph.initializer:
        original.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    obeys(known, original, onnx_fcn.convert(original, windows=True).to_proto())


def test_one_output_of_two() -> None:
    """What only the other one needs is not run."""
    known = CASES["outputs of two ranks"]
    original = known.model()
    converted = onnx_fcn.convert(original, windows=True, outputs=["y"]).to_proto()
    del original.graph.output[1]
    obeys(known, original, converted)
    assert "v" not in {t.name for t in converted.graph.initializer}


def test_a_function_of_the_file() -> None:
    """A local function is inlined on the path of the image, and within the windows."""
    known = CASES["embedded positions"]
    original = known.model()
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=2)]
    opset = helper.make_opsetid("", known.opset)
    original.functions.append(helper.make_function("own", "Weights", ["a"], ["b"], body, [opset]))
    original.opset_import.append(helper.make_opsetid("own", 1))
    node = next(n for n in original.graph.node if n.op_type == "Softmax")
    node.op_type, node.domain = "Weights", "own"
    del node.attribute[:]
    obeys(known, original, onnx_fcn.convert(original, windows=True).to_proto())


def test_a_batch_that_only_the_region_has_built_in() -> None:
    """The file leaves it open, and its trunk takes any: the batch is fixed at the one that the original runs with."""
    known = CASES["a baked batch of two"]
    original = known.model()
    original.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    original.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    conversion = onnx_fcn.convert(original, windows=True)
    assert any(c.startswith("The batch is fixed at 2") for c in conversion.report.caveats)
    obeys(known, known.model(), conversion.to_proto())


def test_a_batch_that_is_made_free() -> None:
    known = Case(CASES["embedded positions"].build)
    original = known.model()
    original.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    original.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed = onnx_fcn.convert(original, windows=True).to_proto()
    assert law.dims_of(fixed.graph.input[0])[0] == 1
    free = onnx_fcn.convert(original, windows=True, dynamic_batch=True).to_proto()
    obeys(known, CASES["embedded positions"].model(), free)


# Real exports ---------------------------------------------------------------------------------------------------------

WIDTH = 8


class Split(nn.Module):
    """A trunk and what runs on its windows, so that torch can run either alone."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.trunk(x))
        return scores


class Transformer(nn.Module):
    """A class token and positions, as in ViT (Dosovitskiy et al., 2020), on a map of 4×3 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 13, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=True)
        self.scores = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        scores: Tensor = self.scores(self.block(x + self.places)[:, 0])
        return scores


class Recurrent(nn.Module):
    """An LSTM in both directions along the rows of a map of 4×3 cells, as texts are read."""

    def __init__(self) -> None:
        super().__init__()
        self.states = nn.LSTM(WIDTH * 3, 6, bidirectional=True)
        self.scores = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.states(x.permute(2, 0, 1, 3).flatten(2))
        scores: Tensor = self.scores(states[-1])
        return scores


class Merging(nn.Module):
    """Positions of 4×4 cells merged two by two, and attention: the stages of Swin (Liu et al., 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.merge, self.three, self.scores = (
            nn.Linear(4 * WIDTH, WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        q, k, v = self.three(self.merge(x).flatten(1, 2)).chunk(3, -1)
        scores: Tensor = self.scores((torch.softmax(q @ k.transpose(1, 2), -1) @ v).mean(1))
        return scores


def patches(size: int) -> nn.Module:
    return nn.Conv2d(3, WIDTH, size, size)


def convolutions() -> nn.Module:
    """Two convolutions that stride, pad nothing, and leave 4×3 cells of 21×17 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, 2),
    )  # fmt: skip


#: name: (trunk, head, pixels, cells of the trunk's map, cells between windows, pixels between windows).
Exported = tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, int], tuple[int, int], int, int]
EXPORTED: dict[str, Exported] = {
    "ViT": (lambda: patches(4), Transformer, (16, 12), (4, 3), 1, 4),
    "hybrid": (convolutions, Transformer, (21, 17), (4, 3), 1, 4),
    "CRNN": (convolutions, Recurrent, (21, 17), (4, 3), 1, 4),
    "Swin": (lambda: patches(2), Merging, (8, 8), (4, 4), 2, 4),
}

#: How torch writes a network: (dynamo, opset, a free batch).
EXPORTERS = {"a fixed batch": (False, 17, False), "a free batch": (False, 17, True), "dynamo": (True, 18, True)}


def network(name: str) -> nn.Module:
    trunk, head, *_ = EXPORTED[name]
    torch.manual_seed(0)
    return Split(trunk(), head()).eval()


def exported(model: nn.Module, path: Path, size: tuple[int, ...], how: str) -> ModelProto:
    dynamo, opset, free = EXPORTERS[how]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1", UserWarning)
        exports.export(model, path, size, dynamo=dynamo, opset=opset, dynamic_batch=free)
    return onnx.load(path)


def cases_of_exports() -> Iterator[Any]:
    for name in EXPORTED:
        for how in EXPORTERS:
            if (name, how) == ("CRNN", "dynamo"):
                continue  # torch.export refuses an LSTM of any number of images
            yield pytest.param(name, how, marks=[pytest.mark.slow] if how == "dynamo" and name != "ViT" else [])


@pytest.mark.parametrize(("name", "how"), list(cases_of_exports()))
def test_exports(name: str, how: str, tmp_path: Path) -> None:
    _, _, size, window, step, stride = EXPORTED[name]
    model = network(name)
    original = exported(model, tmp_path / "model.onnx", size, how)
    conversion = onnx_fcn.convert(tmp_path / "model.onnx", tmp_path / "out.onnx", windows=True)
    assert conversion.report.window == size
    assert conversion.report.stride == (stride, stride)
    converted = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(converted, full_check=True)
    run = law.session(converted)

    def head(feeds: dict[str, law.Array]) -> list[law.Array]:
        return [model.head(torch.from_numpy(feeds["map"])).numpy()]

    for batch in [1, 2] if law.dims_of(original.graph.input[0])[0] is None else [1]:
        for more in ((0, 0), (2 * stride + 3, stride + 1)):
            image = torch.randn(batch, 3, *(n + m for n, m in zip(size, more)))
            with torch.no_grad():
                features = {"map": model.trunk(image).numpy()}
                expected = law.by_window(head, features, "map", window, (2, 3), (step, step))
            law.compare(converted, run({"image": image.numpy()}), expected, batch)


def test_a_weight_as_an_output() -> None:
    original = case(EMBEDDED, outputs="y, float[1,12,6] places", weights=PLACES).model()
    converted = onnx_fcn.convert(original, windows=True).to_proto()
    image = law.noise(original.graph.input[0], 1, (-2, 2), [None, 3, 13, 12])
    _, places = law.session(converted)({"x": image})
    stored = next(t for t in original.graph.initializer if t.name == "places")
    assert np.array_equal(places, onnx.numpy_helper.to_array(stored))
