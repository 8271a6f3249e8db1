"""Whatever its operands are, a rule refuses what it cannot lift, and raises nothing else.

Every operator with a rule has rows in `test_rules.py`. Each node of these networks is given operands of other kinds, of
the same shapes: computed from the image, an input beside it, a constant, left out. Then the network is lifted.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Sequence

import fresh
import law
import numpy as np
import onnx
import pytest
from law import Array
from onnx import ModelProto, NodeProto, helper, numpy_helper
from test_rules import ROWS

import onnx_fcn
from onnx_fcn.errors import FcnError, UnsupportedModel
from onnx_fcn.lifting import registry
from onnx_fcn.model.document import Document
from onnx_fcn.walk.images import Request
from onnx_fcn.walk.search import explored

#: What an operand may be.
KINDS = ("as it is", "lifted", "beside the image", "constant", "left out")


def nodes() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """For each operator, the (row, first output) of nodes of it, with other numbers of operands first."""
    found: dict[tuple[str, str], dict[int, tuple[str, str]]] = {}
    for case in ROWS.values():
        for node in case.model(case.opsets[-1]).graph.node:
            found.setdefault((node.domain, node.op_type), {}).setdefault(len(node.input), (case.name, node.output[0]))
    return {op: list(by_count.values()) for op, by_count in found.items()}


NODES = nodes()


def values_of(model: ModelProto) -> dict[str, Array]:
    """The value of every tensor for one image of the native size."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    outputs = {o.name for o in model.graph.output}
    inside = [v for v in inferred.value_info if v.name not in outputs and v.type.HasField("tensor_type")]
    everything = ModelProto()
    everything.CopyFrom(model)
    everything.graph.output.extend(inside)
    feeds = {i.name: law.noise(i, 1, (-2, 2)) for i in law.data_inputs(model)}
    values = dict(zip([o.name for o in everything.graph.output], law.session(everything)(feeds)))
    return values | feeds | {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def changed(model: ModelProto, output: str, kinds: Sequence[str], values: dict[str, Array]) -> ModelProto | None:
    """The network with other operands for the node that makes `output`; None where their values are not known."""
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    place = next(k for k, n in enumerate(graph.node) if n.output[0] == output)
    node, front = graph.node[place], []
    for k, (name, kind) in enumerate(zip(list(node.input), kinds)):
        if kind == "as it is" or (not name and kind != "left out"):
            continue
        if kind == "left out":
            node.input[k] = ""
            continue
        if name not in values:
            return None
        value, node.input[k] = np.asarray(values[name]), f"operand{k}"
        if kind == "constant":
            graph.initializer.append(numpy_helper.from_array(value, f"operand{k}"))
        elif kind == "beside the image":
            elem_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(helper.make_tensor_value_info(f"operand{k}", elem_type, value.shape))
        else:
            front += from_image(graph.input[0], value, f"operand{k}")
            size = int(np.prod([d.dim_value or 1 for d in graph.input[0].type.tensor_type.shape.dim]))
            weight = np.ones((size, value.size), np.float32) / size
            graph.initializer.append(numpy_helper.from_array(weight, f"operand{k}/weight"))
            graph.initializer.append(numpy_helper.from_array(np.array(value.shape, np.int64), f"operand{k}/shape"))
    while node.input and not node.input[-1]:
        node.input.pop()
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *rest])
    for declared in graph.output:
        declared.type.tensor_type.ClearField("shape")
    return made


def from_image(image: onnx.ValueInfoProto, value: Array, name: str) -> list[NodeProto]:
    """Nodes that compute a tensor of that shape and type from an image of a batch of one."""
    elem_type = helper.np_dtype_to_tensor_dtype(value.dtype)
    return [
        helper.make_node("Cast", [image.name], [f"{name}/float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Flatten", [f"{name}/float"], [f"{name}/flat"]),
        helper.make_node("MatMul", [f"{name}/flat", f"{name}/weight"], [f"{name}/features"]),
        helper.make_node("Reshape", [f"{name}/features", f"{name}/shape"], [f"{name}/shaped"]),
        helper.make_node("Cast", [f"{name}/shaped"], [name], to=elem_type),
    ]


def fixed(model: ModelProto) -> ModelProto:
    """The network for one image at a time, so that shapes may be literals."""
    made = ModelProto()
    made.CopyFrom(model)
    for declared in law.data_inputs(made):
        for dim in declared.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    return made


@functools.cache
def prepared(name: str) -> tuple[ModelProto, dict[str, Array]]:
    """The network of a row, and its values."""
    case = ROWS[name]
    model = fixed(case.model(case.opsets[-1]))
    return model, values_of(model)


def check(name: str, output: str, kinds: Sequence[str]) -> None:
    """The network with other operands for one node is lifted or refused."""
    model, values = prepared(name)
    network = changed(model, output, kinds, values)
    if network is not None:
        with contextlib.suppress(FcnError):
            explored(Document.open(network), Request(input=network.graph.input[0].name))


@pytest.mark.parametrize("operator", registry.operators(), ids=lambda op: ".".join(filter(None, op)))
def test_one_operand_of_another_kind(operator: tuple[str, str]) -> None:
    for name, output in NODES[operator]:
        count = len(operands_of(name, output))
        for k, kind in itertools.product(range(count), KINDS[1:]):
            kinds = [kind if j == k else "as it is" for j in range(count)]
            try:
                check(name, output, kinds)
            except Exception as error:
                raise AssertionError(f"'{output}' of '{name}' with operands {kinds}: {error}") from error


@pytest.mark.parametrize(("count", "steps"), [("", "none"), ("n", "2**62"), ("n", "nested")])
def test_a_constant_of_a_loop_without_end(count: str, steps: str) -> None:
    """It would be computed for ever, as the runtime would."""
    body = "{ d = Identity (c)  o = Add (s, s) }"
    if steps == "nested":
        inner = "o = Loop (m, c, s) <body = k (int64 j, bool e, float[72,5] t) => (bool g, float[72,5] q) "
        body = "{ d = Identity (c)  " + inner + "{ g = Identity (e)  q = Add (t, t) }> }"
    network = law.model(
        f"v = Loop ({count}, yes, w) <body = l (int64 i, bool c, float[72,5] s) => (bool d, float[72,5] o) {body}>"
        "f = Flatten (x)  y = MatMul (f, v)",
        n=np.int64(1 << 62 if steps == "2**62" else 3), m=np.int64(3), yes=True, w=(72, 5), outputs="float[N,5] y",
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="'v' is computed by a loop that is not known to end within 10000 steps"):
        onnx_fcn.inspect(network)


@pytest.mark.parametrize("count", [150, pytest.param(5_000, marks=pytest.mark.slow)])
def test_all_operands_of_any_kind(count: int) -> None:
    """Drawn anew in every run."""
    everything = sorted({node for found in NODES.values() for node in found})
    for seed in fresh.seeds(count):
        random = np.random.default_rng(seed)
        name, output = everything[random.integers(len(everything))]
        kinds = [str(random.choice(KINDS)) for _ in operands_of(name, output)]
        with fresh.told(seed, f"'{output}' of '{name}' with operands {kinds}"):
            check(name, output, kinds)


def operands_of(name: str, output: str) -> Sequence[str]:
    """The operands of the node of a row that makes a tensor."""
    return next(n.input for n in prepared(name)[0].graph.node if n.output[0] == output)
