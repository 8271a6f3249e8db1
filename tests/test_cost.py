"""Costs: published numbers, torch's own layers counted by hooks, and the tensors that onnxruntime really makes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_rules import ROWS
from torch import nn

import onnx_fcn
from onnx_fcn import OptionError
from onnx_fcn.model.cost import Program, Tensor, macs_of

FIXTURES = Path(__file__).parent.parent / "fixtures"


# Published values -----------------------------------------------------------------------------------------------------

#: Multiply-accumulates at 224×224, as torchvision's documentation of its weights gives them, in full.
PUBLISHED = {
    "alexnet": (exports.alexnet, 714_188_480),
    "vgg16": (exports.vgg16, 15_470_264_320),
    "resnet50": (exports.resnet50, 4_089_184_256),
}


def hooked(model: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates, as the layers themselves see their operands."""
    found = []

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            found.append(output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size))
        elif isinstance(layer, nn.Linear):
            found.append(output.numel() * layer.in_features)

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    model(image)
    for hook in hooks:
        hook.remove()
    return sum(found)


def weightless(model: nn.Module, path: Path) -> onnx.ModelProto:
    """The graph that torch exports, with weights that are computed when it runs: one number, many times."""
    with exports.quiet():
        torch.onnx.export(
            model, (torch.zeros(1, 3, 224, 224),), path, input_names=["image"], output_names=["scores"],
            dynamo=False, opset_version=17, export_params=False, do_constant_folding=False,
            dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
        )  # fmt: skip
    made = onnx.load(path)
    weights = list(made.graph.input)[1:]
    del made.graph.input[1:]
    for weight in weights:
        dims = [d.dim_value for d in weight.type.tensor_type.shape.dim]
        shape = f"{weight.name}/shape"
        made.graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [len(dims)], dims))
        made.graph.node.insert(0, helper.make_node("ConstantOfShape", [shape], [weight.name]))
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, published = PUBLISHED[name]
    monkeypatch.setattr(exports, "scaled", lambda build, size: build())  # weights are not looked at
    with torch.device("meta"):
        model = build().eval()
        assert hooked(model, torch.zeros(1, 3, 224, 224)) == published
        trunk = model[: next(k for k, layer in enumerate(model) if isinstance(layer, nn.AdaptiveAvgPool2d))]
        of_trunk = {size: hooked(trunk, torch.zeros(1, 3, size, size)) for size in (224, 256, 1024)}
    report = onnx_fcn.inspect(weightless(model.to_empty(device="cpu"), tmp_path / "model.onnx"), sizes=[256, 1024])
    of_head = published - of_trunk[224]
    assert (report.native.trunk.macs, report.native.head.macs) == (of_trunk[224], of_head)
    assert report.native.macs == published
    assert [cost.size for cost in report.costs] == [(224, 224), (256, 256), (1024, 1024)]
    for cost in report.costs:
        cells = (cost.size[0] - 224) // 32 + 1
        assert cost.answers == (cells, cells)
        assert cost.macs == of_trunk[cost.size[0]] + of_head * cells**2
        assert cost.crops == published * cells**2
        assert cost.ratio == cost.crops / cost.macs


# What onnxruntime makes -----------------------------------------------------------------------------------------------

#: Rows of `test_rules` in which sizes are not what a chain of convolutions would have.
EXECUTED = (
    "flatten", "flatten is the output", "reshape with the batch baked", "conv auto_pad SAME_UPPER strided",
    "conv dilated meets its padding", "conv transposed, groups", "MaxPool padded", "pad by reflection then conv",
    "Resize to sizes at run time", "Resize, then a conv of stride 2", "TopK of groups", "squeeze and excite",
    "QLinearConv", "FusedConv", "QGemm", "If by a constant", "two convs beyond the cut", "a second image, flattened",
    "pad of a channels-last map", "matmul of pixels as rows",
)  # fmt: skip


def executed(model: onnx.ModelProto, size: tuple[int, ...], batch: int) -> dict[str, np.ndarray]:
    """Every tensor that a run makes, and the inputs; the image is the first."""
    image, *others = law.data_inputs(model)
    free = iter(size)
    shapes = [[next(free) if d is None and k else d or batch for k, d in enumerate(law.dims_of(image))]]
    shapes += [[d or batch for d in law.dims_of(other)] for other in others]
    feeds = {i.name: np.ones(shape, law.numpy_type(i)) for i, shape in zip((image, *others), shapes)}
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    known = {o.name for o in model.graph.output}
    names = [n for node in model.graph.node for n in node.output if n and n not in known]
    everything.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return feeds | dict(zip([o.name for o in everything.graph.output], law.session(everything)(feeds)))


def worst_node(model: onnx.ModelProto, tensors: dict[str, np.ndarray]) -> int:
    """Bytes that are live at the worst node: each tensor from the node that makes it to the last that reads it."""
    inputs = {i.name for i in law.data_inputs(model)}
    nodes, varying = [], set(inputs)
    for node in model.graph.node:
        if varying & set(node.input):
            nodes.append(node)
            varying |= set(node.output) - {""}
    born = dict.fromkeys(inputs, 0) | {n: k for k, node in enumerate(nodes) for n in node.output if n}
    dies = dict(born) | {n: k for k, node in enumerate(nodes) for n in node.input if n in born}
    dies |= {o.name: len(nodes) for o in model.graph.output}
    return max(sum(tensors[n].nbytes for n in born if born[n] <= k <= dies[n]) for k in range(len(nodes)))


@pytest.mark.parametrize("name", EXECUTED)
def test_activations_are_those_of_a_run(name: str) -> None:
    original = law.behind_a_trunk(ROWS[name].model(ROWS[name].opsets[-1]))
    window = onnx_fcn.inspect(original).window
    size = tuple(n + 6 + 2 * k for k, n in enumerate(window))
    conversion = onnx_fcn.convert(original, sizes=[size], validate=False)
    model, cost = conversion.to_proto(), conversion.report.costs[-1]
    tensors = executed(model, size, conversion.report.native.batch)
    assert cost.size == size
    assert cost.activations == worst_node(model, tensors)
    assert tensors[model.graph.output[0].name].shape[2:] == cost.answers


def test_a_folded_head_takes_the_memory_of_its_reshapes() -> None:
    conversion = onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", head="folded", sizes=[(40, 52)], validate=False)
    tensors = executed(conversion.to_proto(), (40, 52), 1)
    assert conversion.report.costs[1].activations == worst_node(conversion.to_proto(), tensors)


# Counting, by hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "shapes", "macs"),
    [
        ("y = Conv <group = 2, dilations = [2, 2]> (x, w)", {"y": (1, 6, 5, 5), "w": (6, 4, 3, 3)}, 150 * 36),
        ("y = Conv (x, w)", {"y": (2, 6, 5), "w": (6, 4, 3)}, 60 * 12),
        ("y = Conv (x, w)", {"y": (1, 2, 3, 4, 5), "w": (2, 3, 1, 2, 3)}, 120 * 18),
        ("y = QLinearConv (x, s, z, w, s, z, s, z)", {"y": (1, 6, 5, 5), "w": (6, 4, 3, 3)}, 150 * 36),
        ("y = ConvTranspose <strides = [2, 2]> (x, w)", {"x": (1, 4, 5, 5), "w": (4, 6, 2, 2)}, 100 * 24),
        ("y = Gemm <transB = 1> (x, w)", {"x": (2, 30), "y": (2, 5)}, 10 * 30),
        ("y = Gemm <transA = 1> (x, w)", {"x": (30, 2), "y": (2, 5)}, 10 * 30),
        ("y = MatMul (x, w)", {"x": (2, 7, 30), "y": (2, 7, 5)}, 70 * 30),
        ("y = MatMul (x, w)", {"x": (30,), "y": (5,)}, 150),
        ("y = com.microsoft.FusedMatMul <transA = 1> (x, w)", {"x": (2, 30, 7), "y": (2, 7, 5)}, 70 * 30),
        ("y = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0]> (x)", {"x": (2, 3)}, 2 * 3),
        ("y = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0]> (x)", {}, None),
        ('y = Einsum <equation = "nchw, oc -> nohw"> (x, w)', {"x": (2, 3, 4, 5), "w": (6, 3)}, 120 * 6),
        ('y = Einsum <equation = "nchw -> nhwc"> (x)', {"x": (2, 3, 4, 5)}, 0),
        ("y = MaxPool <kernel_shape = [2, 2]> (x)", {"x": (1, 4, 4, 4), "y": (1, 4, 3, 3)}, 0),
        ("y = Conv (x, w)", {"w": (6, 4, 3, 3)}, None),
        ("y = Einsum <equation = '...c, oc -> ...o'> (x, w)".replace("'", '"'), {"x": (2, 3), "w": (6, 3)}, None),
        ("y = If <then_branch = b () => (c) { c = Conv (x, w) }, else_branch = b () => (c) { c = Relu (x) }> (k)",
         {"y": (1, 6, 5, 5), "w": (6, 4, 3, 3)}, None),
    ],
)  # fmt: skip
def test_macs_of_a_node(node: str, shapes: dict[str, tuple[int, ...]], macs: int | None) -> None:
    graph = onnx.parser.parse_graph(f"g (float x, float w) => (float y) {{ {node} }}")
    assert macs_of(graph.node[0], {name: Tensor(TensorProto.FLOAT, dims) for name, dims in shapes.items()}) == macs


def test_peak_by_hand() -> None:
    """Where a branch joins, three tensors are live; what is made of constants is no activation."""
    graph = onnx.parser.parse_graph("""g (float x, float16 z) => (float y) <float[9] w = {1}> {
        v = Neg (w)  a = Relu (x)  b = Cast (z)  c = Add (a, b)  d = Mul (a, v)  y = Add (c, d) }""")
    sizes = {"x": 10, "a": 20, "b": 30, "c": 40, "d": 50, "y": 60}
    tensors = {name: Tensor(TensorProto.FLOAT, (size,)) for name, size in sizes.items()}
    tensors["z"] = Tensor(TensorProto.FLOAT16, (8,))
    assert Program(graph).peak(tensors) == 4 * (40 + 50 + 60)  # c, d and y at the last node
    assert Program(graph).peak(tensors | {"y": Tensor(TensorProto.FLOAT, (1,))}) == 4 * (20 + 40 + 50)
    assert Program(graph).peak(tensors | {"d": Tensor(TensorProto.FLOAT)}) is None
    huge = {name: Tensor(TensorProto.FLOAT, (size << 60,)) for name, size in sizes.items()}
    assert Program(graph).peak(huge | {"z": tensors["z"]}) == (4 * (40 + 50 + 60) << 60)


def test_what_is_reshaped_has_no_more_elements() -> None:
    graph = onnx.parser.parse_graph("g (float x, int64[n] s) => (float y) { a = Reshape (x, s)  y = Slice (a, s, s) }")
    tensors = {"x": Tensor(TensorProto.FLOAT, (10,)), "s": Tensor(TensorProto.INT64, (2,))}
    assert Program(graph).peak(tensors) == 4 * (10 + 10) + 8 * 2
    assert Program(graph).peak({"s": tensors["s"]}) is None


def test_tensors_of_one_form_are_computed_once() -> None:
    graph = onnx.parser.parse_graph("""g (float x) => (float y) <float[3, 3, 1, 1] w = {1}, float[3, 3, 3, 3] v = {1}> {
        a = Conv (x, w)  b = Conv (a, w)  c = Conv <pads = [1, 1, 1, 1]> (b, v)  d = Relu (c)  y = Add (d, a) }""")
    weights = {"w": Tensor(TensorProto.FLOAT, (3, 3, 1, 1)), "v": Tensor(TensorProto.FLOAT, (3, 3, 3, 3))}
    program = Program(graph, dict.fromkeys("xabcdy", "map") | weights)
    assert program.needed == {"map", *weights.values()}
    for cells in (4, 9):
        made = Tensor(TensorProto.FLOAT, (1, 3, cells, cells))
        by_name = {**dict.fromkeys("xabcdy", made), **weights}
        by_form = {"map": made, **{weight: weight for weight in weights.values()}}
        counts = {"a": 9 * cells**2, "b": 9 * cells**2, "c": 81 * cells**2}
        assert program.macs(by_form) == Program(graph).macs(by_name) == counts
        assert program.peak(by_form) == Program(graph).peak(by_name) == 3 * 12 * cells**2


def test_no_number_overflows() -> None:
    report = onnx_fcn.inspect(FIXTURES / "digits_unpadded.onnx", sizes=[10**7])
    cells = (10**7 - 28) // 4 + 1
    assert report.costs[-1].crops == report.native.macs * cells**2 > 2**63 // 10


def test_sizes() -> None:
    report = onnx_fcn.inspect(FIXTURES / "digits_unpadded.onnx")
    assert [cost.size for cost in report.costs] == [(28, 28), (44, 44), (56, 56), (112, 112)]
    chosen = onnx_fcn.inspect(FIXTURES / "digits_unpadded.onnx", sizes=[64, (50, 63), 64]).costs
    assert [(cost.size, cost.answers) for cost in chosen] == [
        ((28, 28), (1, 1)), ((64, 64), (10, 10)), ((50, 63), (6, 9)),
    ]  # fmt: skip
    with pytest.raises(OptionError, match="an image of 20×20 pixels is too small for an answer, whose window is 28×28"):
        onnx_fcn.inspect(FIXTURES / "digits_unpadded.onnx", sizes=[20])
    with pytest.raises(OptionError, match="64×64×64 is not a size of an image with 2 axes"):
        onnx_fcn.inspect(FIXTURES / "digits_unpadded.onnx", sizes=[(64, 64, 64)])


def test_a_fully_convolutional_network_has_no_crops() -> None:
    report = onnx_fcn.inspect(law.model("c = Conv <pads = [1, 1, 1, 1]> (x, k)  y = Sigmoid (c)", k=(2, 6, 3, 3)))
    assert [(cost.macs, cost.crops, cost.ratio) for cost in report.costs[:1]] == [(12 * 2 * 54, None, None)]


def test_a_model_that_keeps_its_size_has_one_cost() -> None:
    kept = onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", keep_size=True, validate=False).report
    assert ([cost.size for cost in kept.costs], kept.example) == ([(28, 28)], None)
    with pytest.raises(OptionError, match="keeps its size"):
        onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", keep_size=True, sizes=[64], validate=False)


@pytest.mark.parametrize("options", [{"reduce": "mean"}, {"argmax": True}, {"output_stride": 2}])
@pytest.mark.parametrize("name", ["digits_unpadded", "digits_padded"])
def test_costs_of_other_answers(name: str, options: dict[str, Any]) -> None:
    conversion = onnx_fcn.convert(FIXTURES / f"{name}.onnx", **options, sizes=[(40, 52)], validate=False)
    tensors = executed(conversion.to_proto(), (40, 52), 1)
    assert conversion.report.costs[1].activations == worst_node(conversion.to_proto(), tensors)
