"""Files as exporters write them: local functions, nodes out of order, weights as inputs, sizes left open.

Each is a small classifier without padding, so `law.check` compares every cell with the original on its crop.
"""

import law
import onnx
import pytest
from onnx import ModelProto, helper

import onnx_fcn


def classifier() -> ModelProto:
    """A convolution, a flatten and two dense layers."""
    return law.model(
        "m = Conv (x, k)  f = Flatten (m)  d = Gemm (f, w, b)  r = Relu (d)  y = MatMul (r, v)",
        k=(6, 6, 2, 2),
        w=(36, 7),
        b=(7,),
        v=(7, 5),
    )


def converted(model: ModelProto) -> ModelProto:
    return onnx_fcn.convert(model).to_proto()


def test_local_functions_on_the_way_are_inlined() -> None:
    model = classifier()
    head = [node for node in model.graph.node if node.op_type != "Conv"]
    inputs, opsets = ["m", "w", "b", "v"], [helper.make_opsetid("", model.opset_import[0].version)]
    inner = helper.make_function("own", "Inner", inputs, ["y"], head, opsets)
    call = helper.make_node("Inner", inputs, ["y"], domain="own")
    outer = helper.make_function("own", "Outer", inputs, ["y"], [call], [helper.make_opsetid("own", 1)])
    model.functions.extend([inner, outer])
    model.opset_import.append(helper.make_opsetid("own", 1))
    del model.graph.node[1:]
    model.graph.node.append(helper.make_node("Outer", inputs, ["y"], domain="own"))
    onnx.checker.check_model(model)
    result = converted(model)
    assert [node.op_type for node in result.graph.node] == ["Conv", "Conv", "Relu", "Conv"]
    law.check(classifier(), result)


def test_nodes_out_of_order_are_put_in_order() -> None:
    model = classifier()
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    law.check(classifier(), converted(model))


def test_nodes_that_no_output_needs_stay_where_they_are() -> None:
    """They are more than the others, and the output needs a node of its own behind the last one."""
    idle = "  ".join(f"i{k} = Relu (k)" for k in range(3))
    body = "m = Conv (x, k)  y = Transpose <perm = [0, 2, 3, 1]> (m)"
    model = law.model(f"{idle}  {body}  i3 = Relu (k)", k=(6, 6, 2, 2), outputs="y")
    head = law.model(f"{idle}  f = Flatten (x)  y = Softmax <axis = 1> (f)  i3 = Relu (k)", k=(6, 6, 2, 2))
    for original in (model, head):
        result = onnx_fcn.convert(original, input_size=(4, 3)).to_proto()
        assert [n.output[0] for n in result.graph.node if n.output[0].startswith("i")] == ["i0", "i1", "i2", "i3"]
    law.check(law.model("f = Flatten (x)  y = Softmax <axis = 1> (f)"), result)


def test_weights_that_are_inputs_stay_so() -> None:
    model = classifier()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = converted(model)
    assert result.ir_version == 3
    stored = {t.name for t in result.graph.initializer}
    assert stored <= {i.name for i in result.graph.input}
    images = [i for i in result.graph.input if i.name not in stored]
    del result.graph.input[:]
    result.graph.input.extend(images)
    result.ir_version = 8
    law.check(classifier(), result)


def test_the_head_says_which_size() -> None:
    body = "m = Conv <strides = [8, 8]> (x, k)  f = Flatten (m)  y = MatMul (f, w)"
    model = law.model(body, image="float[N,6,32,32] x", k=(6, 6, 8, 8), w=(96, 5))
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    report = onnx_fcn.inspect(model)
    assert report.window == (32, 32)


def test_a_head_that_takes_any_size_needs_to_be_told() -> None:
    model = law.model("m = Conv (x, k)  g = GlobalAveragePool (m)  y = Flatten (g)", k=(6, 6, 2, 2))
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    with pytest.raises(onnx_fcn.OptionError, match="takes any size: give it with --input-size"):
        onnx_fcn.inspect(model)
    assert onnx_fcn.inspect(model, input_size=(9, 7)).window == (9, 7)
