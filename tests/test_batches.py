"""Which batches a result takes: each image has the answer that it has alone, or the batch is refused.

A batch that the file fixes may be freed: the original says nothing of others, so that its answers for single images
decide. One that the file leaves open may be mixed where no rule looks, such as behind the pooling of a gate.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import law
import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnx_fcn
from onnx_fcn import UnsupportedModel
from onnx_fcn.lifting.constants import Values
from onnx_fcn.lifting.lifted import BATCH
from onnx_fcn.model.nodes import Node
from onnx_fcn.walk import mixing

TRUNK = "c = Conv <strides = [2, 2]> (x, k)  m = Relu (c)"
HEAD = "f = Flatten (r)  y = MatMul (f, w)"

#: Gates that mix the images of a batch: between the pooling of the gate and what it is multiplied with.
MIXED = {
    "a softmax over the images": ("[mix] s = Softmax <axis = 0> (g)", {}),
    "a softmax over them, transposed": ("t = Transpose <perm = [1, 0, 2, 3]> (g)  [mix] u = Softmax <axis = 1> (t)  "
        "s = Transpose <perm = [1, 0, 2, 3]> (u)", {}),
    "a mean over them": ("[mix] s = ReduceMean <axes = [0]> (g)", {}),
    "a sum up to each": ("[mix] s = CumSum (g, zero)", {"zero": 0}),
    "the first of them": ("[mix] s = Slice (g, begin, end)", {"begin": [0], "end": [1]}),
    "a softmax over them as the only axis": ("p = ReduceMean <axes = [1, 2, 3], keepdims = 0> (g)  "
        "[mix] q = Softmax (p)  s = Unsqueeze (q, last)", {"last": [1, 2, 3]}),
    "a sum over no axes, which are all": ("[mix] s = ReduceSum (g, none)", {"none": np.zeros(0, np.int64)}),
    "differences of all pairs": ("p = Squeeze (g, last)  u = Unsqueeze (p, one)  [mix] d = Sub (p, u)  a = Abs (d)  "
        "q = ReduceSum <keepdims = 0> (a, one)  s = Unsqueeze (q, last)", {"one": [1], "last": [2, 3]}),
    "a sum over them behind an axis of a constant": ("d = Add (g, five)  [mix] q = ReduceSum (d, one)  "
        "s = Squeeze (q, zero)", {"five": (1, 1, 1, 1, 1), "one": [1], "zero": [0]}),
    "a sum over them behind an axis of a weight": ("p = Squeeze (g, last)  d = MatMul (p, v)  "
        "[mix] q = ReduceSum (d, one)  s = Reshape (q, t)",
        {"v": (1, 6, 6), "one": [1], "last": [2, 3], "t": [0, 6, 1, 1]}),
}  # fmt: skip


def network(batch: str, gate: str, **given: Any) -> ModelProto:
    body = f"{TRUNK}  g = GlobalAveragePool (m)  {gate}  r = Mul (m, s)  {HEAD}"
    return law.model(body, image=f"float[{batch},3,9,7] x", k=(6, 3, 3, 3), w=(72, 5), **given)


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", MIXED)
def test_a_gate_that_mixes_the_images_of_an_open_batch(name: str) -> None:
    gate, given = MIXED[name]
    with pytest.raises(UnsupportedModel, match=r"'mix': gives '.', in which the images of a batch change each"):
        onnx_fcn.inspect(network("N", gate, **given))


def test_a_gate_that_mixes_them_inside_a_branch() -> None:
    """No tensor of a branch can be asked for, but what the network answers can."""
    original = network("N", "s = Softmax <axis = 0> (g)")
    (place,) = (k for k, node in enumerate(original.graph.node) if node.op_type == "Softmax")
    outputs = [onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)]
    branches = [onnx.helper.make_graph([onnx.helper.make_node(op, ["g"], ["t"], **given)], op, [], outputs)
        for op, given in (("Softmax", {"axis": 0}), ("Neg", {}))]  # fmt: skip
    branch = onnx.helper.make_node("If", ["yes"], ["s"], then_branch=branches[0], else_branch=branches[1])
    original.graph.node[place].CopyFrom(branch)
    original.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    with pytest.raises(UnsupportedModel, match="the images of a batch change each other"):
        onnx_fcn.inspect(original)


@pytest.mark.parametrize("batch", ["1", "2"])
@pytest.mark.parametrize("name", MIXED)
def test_a_gate_that_would_mix_the_images_of_a_freed_batch(name: str, batch: str) -> None:
    gate, given = MIXED[name]
    original = network(batch, gate, **given)
    assert onnx_fcn.convert(original).report.geometry.exactness == {"y": "context"}
    with pytest.raises(
        UnsupportedModel,
        match=rf"in another batch than {batch}, its images change each other's answers \(leave --dynamic",
    ):
        onnx_fcn.convert(original, dynamic_batch=True, validate=False)


def test_a_gate_of_each_image() -> None:
    gate = "h = Conv (g, one)  s = Sigmoid (h)"
    for batch, freed in (("N", False), ("1", True), ("2", True)):
        original = network(batch, gate, one=(6, 6, 1, 1))
        converted = law.session(onnx_fcn.convert(original, dynamic_batch=freed).to_proto())
        image = law.noise(original.graph.input[0], 3, (-2, 2), [3, 3, 9, 7])
        (whole,) = converted({"x": image})
        for k in range(3):
            close(whole[k : k + 1], converted({"x": image[k : k + 1]})[0])


@pytest.mark.parametrize(
    ("beside", "made", "given"),
    [
        ("float[5] v", "e = Relu (v)", {}),
        ("float[M,5] v", "e = ReduceSum <keepdims = 0> (v, first)", {"first": [0]}),
        ("float[N,5] v", "e = Relu (v)", {}),
        ("float[1] v", "e = Reshape (v, none)", {"none": np.zeros(0, np.int64)}),
    ],
    ids=["the same for all", "as many rows as it likes", "a row for each", "a scalar"],
)
def test_an_input_beside_the_image(beside: str, made: str, given: dict[str, Any]) -> None:
    body = f"{TRUNK}  f = Flatten (m)  d = MatMul (f, w)  {made}  y = Add (d, e)"
    original = law.model(body, image=f"float[N,3,9,7] x, {beside}", k=(6, 3, 3, 3), w=(72, 5), **given)
    assert onnx_fcn.convert(original).report.validation.passed


@pytest.mark.parametrize("form", [{"reduce": "mean"}, {"reduce": "max"}, {"keep_size": True}])
@pytest.mark.parametrize("flat", [[1, -1], [1, 72]])
def test_answers_in_the_original_s_shape_of_a_freed_batch(form: dict[str, Any], flat: list[int]) -> None:
    """The batch of one that a Reshape bakes is the first axis of the answers."""
    body = f"{TRUNK}  r = Reshape (m, s)  d = MatMul (r, w)  y = Softmax (d)"
    original = law.model(body, image="float[1,3,9,7] x", k=(6, 3, 3, 3), w=(72, 5), s=flat)
    converted = onnx_fcn.convert(original, dynamic_batch=True, **form).to_proto()
    onnx.checker.check_model(converted, full_check=True)
    assert law.dims_of(converted.graph.output[0]) == [None, 5]
    image = law.noise(original.graph.input[0], 3, (-2, 2), [3, 3, 9, 7])
    alone = [law.session(original)({"x": image[k : k + 1]})[0] for k in range(3)]
    close(law.session(converted)({"x": image})[0], np.concatenate(alone))


def test_a_freed_batch_that_the_shape_of_the_answers_has_no_axis_for() -> None:
    body = f"{TRUNK}  r = Reshape (m, s)  t = MatMul (w, r)  y = Reshape (t, u)"
    given = {"s": [72, 1], "w": (5, 72), "u": [5]}
    original = law.model(body, image="float[1,3,9,7] x", k=(6, 3, 3, 3), **given)
    assert law.dims_of(onnx_fcn.convert(original, keep_size=True).to_proto().graph.output[0]) == [5]
    with pytest.raises(UnsupportedModel, match="a batch of 1 is built into the network, and it does not run with"):
        onnx_fcn.convert(original, keep_size=True, dynamic_batch=True, validate=False)


@pytest.mark.parametrize(("batch", "freed"), [("N", False), ("1", True)])
def test_answers_of_another_rank_for_one_image(batch: str, freed: bool) -> None:
    """A Squeeze without axes removes the batch of one image, and no other."""
    body = f"{TRUNK}  g = GlobalAveragePool (m)  s = Squeeze (g)  y = MatMul (s, v)"
    original = law.model(body, image=f"float[{batch},3,9,7] x", outputs="float[L] y", k=(6, 3, 3, 3), v=(6, 5))
    assert onnx_fcn.convert(original, dynamic_batch=freed).report.validation.passed
    for form in ({"reduce": "mean"}, {"keep_size": True}):
        with pytest.raises(UnsupportedModel, match="another rank for one image than for several, as Squeeze 's' with"):
            onnx_fcn.convert(original, dynamic_batch=freed, **form, validate=False)
    if batch == "1":
        assert onnx_fcn.convert(original, keep_size=True).report.validation.passed


def test_rounding_is_not_mixing() -> None:
    """Other images around it leave an image's answer as it is; alone it may differ by what rounding explains."""
    whole, again, alone = np.array([[0.5], [0.2]]), np.array([[0.5], [0.9]]), np.array([[0.3]])
    assert not mixing._holds(whole, again, alone, 0, 2, 2e-4, 0.0)
    assert mixing._holds(whole, again, alone, 0, 2, 2e-4, 0.01)
    assert mixing._holds(whole, again, np.array([[0.49]]), 0, 2, 2e-4, 0.0)
    assert not mixing._holds(whole, np.array([[0.4], [0.9]]), np.array([[0.5]]), 0, 2, 2e-4, 0.01)


def test_a_scale_that_images_share_keeps_the_batch_fixed() -> None:
    """An image beside a far brighter one loses its digits: images of the same brightness do not show it."""
    model = law.model(
        f"{TRUNK}  g = GlobalAveragePool (m)  f = Flatten (g)  q, scale, zero = DynamicQuantizeLinear (f)  "
        "d = DequantizeLinear (q, scale, zero)  y = MatMul (d, w)",
        image="float[1,3,32,32] x", opset=13, k=(6, 3, 4, 4), w=(6, 5),
    )  # fmt: skip
    assert onnx_fcn.convert(model).report.context
    with pytest.raises(UnsupportedModel, match="in another batch than 1, its images change each other's answers"):
        onnx_fcn.convert(model, dynamic_batch=True)


# Values that a network computes for each image ------------------------------------------------------------------------

#: What the images have in common, (N, 2, 3), and what depends on their number.
COMPUTED = {
    "Add": (["v", "row"], {}),
    "ArgMax": (["v"], {"axis": 0}),
    "Concat": (["v", "v"], {"axis": 0}),
    "CumSum": (["v", "one"], {}),
    "CumSum over the images": (["v", "zero"], {}),
    "Expand": (["v", "shape"], {}),
    "Flatten": (["v"], {}),
    "Log": (["v"], {}),
    "Log of the size": (["size"], {}),
    "MatMul": (["v", "matrix"], {}),
    "Reshape": (["v", "flat"], {}),
    "Reshape of the images": (["v", "mixed"], {}),
    "ReduceMax": (["v", "zeros"], {}),
    "ReduceMean": (["v", "zeros"], {}),
    "ReduceSum": (["v", "zeros"], {}),
    "ReduceSum of each": (["v", "ones"], {}),
    "Shape": (["v"], {}),
    "Sin": (["v"], {}),
    "Size": (["v"], {}),
    "Slice of later images": (["v", "five", "end", "zeros"], {}),
    "Softmax": (["v"], {"axis": 0}),
    "Split": (["v"], {"axis": 1, "num_outputs": 2}),
    "Tile": (["v", "twice"], {}),
    "Transpose": (["v"], {"perm": [1, 0, 2]}),
    "Trilu from a later image": (["v", "below"], {}),
}


@pytest.mark.parametrize("what", COMPUTED)
def test_a_value_that_is_the_same_for_each_image(what: str) -> None:
    """It is evaluated for a few images, and no other value is."""
    inputs, attributes = COMPUTED[what]
    outputs = ["y", "z"] if what == "Split" else ["y"]
    node = onnx.helper.make_node(what.split()[0], inputs, outputs, **attributes)
    one = np.sign(law.random("value", 1, 2, 3)).astype(np.float32) * np.float32([0.5, -1, 2])
    constants = {
        "row": np.float32([1, 2, 3]), "zero": np.array(0), "one": np.array(1), "zeros": np.array([0]),
        "ones": np.array([1]), "shape": np.array([BATCH, 2, 3]), "flat": np.array([-1, 6]),
        "five": np.array([5]), "end": np.array([2**40]), "below": np.array(-9),
        "twice": np.array([1, 2, 1]), "mixed": np.array([3, -1]),
        "matrix": law.random("matrix", 3, 4).astype(np.float32),
    }  # fmt: skip
    computed = []
    for value in (np.broadcast_to(one, (BATCH, 2, 3)), np.tile(one, (BATCH, 1, 1))):
        values = Values([Node.of(node)], {}, onnx.numpy_helper.to_array, {"": 20})
        for name, given in {**constants, "v": value, "size": np.maximum(value, 0)}.items():
            values.set(name, given)
        computed.append(values["y"])
    few, all_of_them = computed
    assert few.shape == all_of_them.shape
    assert few.dtype == all_of_them.dtype
    np.testing.assert_allclose(few, all_of_them, rtol=1e-5)


def test_a_value_for_each_image_takes_the_memory_of_one() -> None:
    """Positions that are counted for each image, as torch's exporter writes them (EdgeNeXt)."""
    model = law.model(
        "c = Conv <strides = [2, 2]> (x, k)  n = Shape <start = 0, end = 1> (x)  t = Concat <axis = 0> (n, cells)  "
        "o = Expand (unit, t)  i = CumSum (o, two)  j = CumSum (o, three)  b = Concat <axis = 1> (i, j)  s = Sin (b)  "
        "p = Conv (s, q)  a = Add (c, p)  g = GlobalAveragePool (a)  f = Flatten (g)  y = MatMul (f, w)",
        image="float[N,3,80,80] x", opset=15, k=(8, 3, 2, 2), cells=[1, 40, 40], unit=np.ones((1, 1, 1, 1), np.float32),
        two=np.array(2), three=np.array(3), q=(8, 2, 1, 1), w=(8, 5),
    )  # fmt: skip
    tracemalloc.start()
    conversion = onnx_fcn.convert(model, windows=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * BATCH * 40 * 40  # one value for each
    assert conversion.to_proto().graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
