"""A batch that the file leaves open: what mixes its images is refused, and where one alone holds the report says why.

With a batch of 1 declared, the same networks convert: then an image is all that there is.
"""

from __future__ import annotations

from typing import Any

import law
import numpy as np
import onnx
import pytest

import onnx_fcn
from onnx_fcn import UnsupportedModel

IMAGE = "float[{},2,5,4] x"
SCORES = "c = Conv (x, k)  f = Flatten (c)  z = MatMul (f, w)"
WEIGHTS: dict[str, Any] = {"k": (6, 2, 2, 2), "w": (72, 5)}
ROWS: dict[str, Any] = {"at": [0], "first": [1], "last": [-1], "least": [-9999], "most": [9999]}

#: Networks that mix or choose images of a batch, the node that does, and what is said of it.
MIXES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mean": (f"{SCORES}  y = ReduceMean <axes = [0]> (z)", "y", {}),
    "mean of everything": (f"{SCORES}  y = ReduceMean (z)", "y", {}),
    "mean of maps": (
        "m = ReduceMean <axes = [0]> (x)  s = Sub (x, m)  " + SCORES.replace("(x", "(s") + "  y = Relu (z)",
        "m",
        {},
    ),
    "norm": (f"{SCORES}  n = ReduceL2 <axes = [0]> (z)  y = Sub (z, n)", "n", {}),
    "softmax": (f"{SCORES}  y = Softmax <axis = 0> (z)", "y", {}),
    "softmax behind a transpose": (f"{SCORES}  t = Transpose <perm = [1, 0]> (z)  y = Softmax (t)", "y", {}),
    "softmax of one row": (f"{SCORES}  r = Reshape (z, row)  y = Softmax (r)", "y", {"row": [1, -1]}),
    "best": (f"{SCORES}  y = ArgMax <axis = 0> (z)", "y", {}),
    "sums so far": (f"{SCORES}  y = CumSum (z, axis)", "y", {"axis": 0}),
    "twice": (f"{SCORES}  y = Concat <axis = 0> (z, z)", "y", {}),
    "twice, then convolved": (f"t = Concat <axis = 0> (x, x)  {SCORES.replace('(x', '(t')}  y = Relu (z)", "t", {}),
    "first": (f"{SCORES}  y = Gather <axis = 0> (z, axis)", "y", {"axis": 0}),
    "first one": (f"{SCORES}  y = Slice (z, at, first, at)", "y", ROWS),
    "back to front": (f"r = Slice (x, last, least, at, last)  {SCORES.replace('(x', '(r')}  y = Relu (z)", "r", ROWS),
    "norm of one row": (
        f"r = Reshape (x, row)  i = InstanceNormalization (r, one, none)  b = Reshape (i, back)  "
        f"{SCORES.replace('(x', '(b')}  y = Relu (z)",
        "r",
        {"row": [1, 2, -1], "back": [-1, 2, 5, 4], "one": np.ones(2, np.float32), "none": np.zeros(2, np.float32)},
    ),
}


def network(body: str, batch: int | str, **given: Any) -> onnx.ModelProto:
    """A network of which only those weights are stored that it reads."""
    given = {name: value for name, value in (WEIGHTS | given).items() if f"{name})" in body or f"{name}," in body}
    return law.model(body, image=IMAGE.format(batch), **given)


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_the_images_of_a_batch_is_refused(name: str) -> None:
    body, node, given = MIXES[name]
    with pytest.raises(
        UnsupportedModel, match="or declare its input with a batch of 1 to convert it for one"
    ) as refused:
        onnx_fcn.inspect(network(body, "N", **given))
    assert [(d.code, d.node) for d in refused.value.diagnostics] == [("batch", node)]


@pytest.mark.parametrize("name", sorted(MIXES.keys() - {"twice, then convolved"}))
def test_one_image_has_nothing_to_mix_with(name: str) -> None:
    body, _, given = MIXES[name]
    model = network(body, 1, **given)
    conversion = onnx_fcn.convert(model)
    assert conversion.report.validation is not None
    assert not any("batch" in c for c in conversion.report.caveats)


PINNED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "a literal of one": (
        "c = Conv (x, k)  f = Reshape (c, row)  y = MatMul (f, w)",
        {"row": [1, -1]},
        1,
        "the original runs with no other, as Reshape 'f' makes 1×72·N of N images.",
    ),
    "a literal of two": (
        "c = Conv (x, k)  f = Reshape (c, row)  y = MatMul (f, w)",
        {"row": [2, 72]},
        2,
        "the original runs with no other (Reshape 'f': ",
    ),
    "a weight that is expanded": (
        "c = Conv (x, k)  f = Reshape (c, row)  s = Shape (x)  n = Slice (s, at, first)  "
        "e = Concat <axis = 0> (n, to)  v = Unsqueeze (w, at)  u = Expand (v, e)  m = MatMul (f, u)  y = Flatten (m)",
        {"row": [0, 1, 72], "to": [72, 5], **ROWS},
        1,
        "no rule covers others (MatMul 'm': ",
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_a_batch_that_is_fixed_though_it_is_open_is_said(name: str) -> None:
    """An export that bakes the batch of its example into a network that takes no other, and the limit of a rule."""
    body, given, batch, says = PINNED[name]
    model = network(body, "N", **given)
    conversion = onnx_fcn.convert(model)
    law.check(model, conversion.to_proto(), batch=batch)
    (caveat,) = (c for c in conversion.report.caveats if "batch" in c)
    assert caveat.startswith(f"The batch is fixed at {batch}, though the file leaves it open: {says}")


def test_axes_in_another_order_mix_nothing() -> None:
    model = network(f"{SCORES}  y = Transpose <perm = [1, 0]> (z)", "N")
    conversion = onnx_fcn.convert(model)
    assert not conversion.report.caveats
    law.check(model, conversion.to_proto())


@pytest.mark.parametrize(("batch", "says"), [("N", "pads axis 0 of n o5"), (1, r"pads axis 0 of \(\) o5")])
def test_the_declared_batch_is_what_messages_speak_of(batch: int | str, says: str) -> None:
    """Where walks with several batches are refused at one node."""
    model = network(f"{SCORES}  y = Pad (z, pads)", batch, pads=[1, 0, 0, 0])
    with pytest.raises(UnsupportedModel, match=says):
        onnx_fcn.inspect(model)


def damaged(body: str, image: str, **weights: object) -> onnx.ModelProto:
    """A network whose batch has a name that is not UTF-8, which protobuf gives as bytes."""
    made = law.model(body, image=image, outputs="float[NNNN,5] y", **weights)
    return onnx.ModelProto.FromString(made.SerializeToString().replace(b"NNNN", b"\x96NNN"))


def test_a_batch_whose_name_is_not_utf8() -> None:
    """No sentence can contain it."""
    with pytest.raises(UnsupportedModel, match=r"nothing slides over its shape \(\?, 16, 96\)"):
        onnx_fcn.inspect(damaged("f = Flatten (x)  y = MatMul (f, w)", "float[NNNN,16,96] x", w=(1536, 5)))
    body = "a = Conv (x, v)  f = Flatten (a)  y = MatMul (f, w)"
    report = onnx_fcn.inspect(damaged(body, "float[NNNN,6,16,16] x", v=(4, 6, 3, 3), w=(784, 5)))
    assert report.image.before[0] is None
