"""Random classifiers for hypothesis: a trunk, a boundary and a head, each drawn layer by layer.

What a network is goes with it, by construction and not by analysis: its last feature map (`cut`), the pixels between
its windows, whether a window's answer is that of its crop; and a trunk that means the same at any size. So the law can
be checked for all of them with nothing but onnxruntime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from drawn import Axis, Graph, Map
from heads import BOUNDARIES, HEAD_LAYERS, answered, gemm, nonlinear
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper
from trunks import LAYERS, activation, same

BATCH = "batch"


@dataclass(frozen=True)
class Network:
    """A classifier and what is known of it.

    Attributes:
        original: the classifier.
        reference: its trunk, from image to cut, at any size.
        cut: the last feature map, (N, C, *space).
        size: of its images, in pixels.
        space: the axes of the image that these are.
        window: cells of the cut along each axis, at that size.
        step: cells of the cut between neighbouring windows.
        grid: pixels between neighbouring windows.
        exact: nothing pads, and nothing sees more than its window.
        slides: is there an answer for every window? Else it has to be refused.
        vectors: the inputs beside the image, and their lengths.
        classes: the output that says which score of 'y' is the largest, or empty.
        batch: of its images.
        fixed: is the batch baked?
        extra: pixels, along each axis, that a larger image has beyond its windows.
        far: windows along each axis of a long image, of which one axis is long.
    """

    original: ModelProto
    reference: ModelProto
    cut: str
    size: tuple[int, ...]
    space: tuple[int, ...]
    window: tuple[int, ...]
    step: tuple[int, ...]
    grid: tuple[int, ...]
    exact: bool
    slides: bool
    vectors: dict[str, int]
    classes: str
    batch: int
    fixed: bool
    extra: tuple[int, ...]
    far: tuple[int, ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a failure."""
        printer.text(str(self))

    def __str__(self) -> str:
        """The graph, and the dims of its weights."""
        graph = self.original.graph
        weights = {t.name: list(t.dims) for t in graph.initializer}
        lines = [f"{' '.join(n.output)} = {n.op_type}({', '.join(n.input)}) {attributes(n)}" for n in graph.node]
        facts = {k: getattr(self, k) for k in ("cut", "size", "window", "step", "grid", "exact", "batch", "fixed")}
        opset = self.original.opset_import[0].version
        return "\n".join([f"opset {opset}, {facts}, weights {weights}", *lines])


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node, as values; of constants and branches only that they are there."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: type(v).__name__ if hasattr(v, "SerializeToString") else v for name, v in values.items()}


@st.composite
def networks(
    draw: Callable[[st.SearchStrategy[Any]], Any], layers: Sequence[Callable[[Graph, Map], Map]] = LAYERS
) -> Network:
    """A classifier with one to six of these layers in its trunk and one or two outputs."""
    g = Graph(draw)
    rank = g.pick(2, 2, 1, 3)
    size = tuple(draw(st.lists(st.integers(6, 14 if rank < 3 else 9), min_size=rank, max_size=rank, unique=True)))
    last = g.flag()
    channels = g.integer(1 + (last and rank == 1), 5)
    g.image = "image"
    dims = [*size, channels] if last else [channels, *size]
    x = Map(g.image, channels, tuple(Axis(n) for n in size))
    if last:
        x = replace(x, name=g.emit("Transpose", g.image, perm=[0, rank + 1, *range(1, rank + 1)]))
    if last or rank == 1:  # something has to tell the channels from the axes that slide, and sounds from tables
        x = replace(x, name=same(g, x))
    if g.flag():  # few kinds at a time, so that what is rare meets itself, and nothing else
        layers = draw(st.lists(st.sampled_from(layers), min_size=1, max_size=3))
    for layer in draw(st.lists(st.sampled_from(layers), max_size=6)):
        if math.prod(x.cells) * x.channels < 4000:
            x = layer(g, x)
    if not g.original:
        x = activation(g, x)
    cut, beyond, g.one_channel = x, len(g.reference), x.channels == 1
    count, classes = g.pick(1, 1, 2), ""
    f = g.pick(*BOUNDARIES)(g, x)
    for layer in draw(st.lists(st.sampled_from(HEAD_LAYERS), max_size=4)):
        f = layer(g, f)
    answered(g, f, "y")
    if count == 2 and g.kind == np.float32 and g.flag():
        keep = int(g.opset >= 13 and g.flag())
        g.emit("ArgMax", f.name, axis=1, keepdims=keep)
        g.original[-1].output[0] = classes = "z"
    elif count == 2:
        again = g.pick("same features", "same map")
        f = f if again == "same features" else g.pick(*BOUNDARIES)(g, x)
        answered(g, gemm(g, nonlinear(g, f)), "z")
    kind = helper.np_dtype_to_tensor_dtype(g.kind)
    batch, long = g.batch if g.fixed else BATCH, g.integer(0, rank - 1)
    outputs = [helper.make_tensor_value_info(name, kind, [batch, None]) for name in "yz"[:count]]
    if classes:
        outputs[1] = helper.make_tensor_value_info(classes, TensorProto.INT64, [batch, None][: 1 + keep])
    vectors = [helper.make_tensor_value_info(name, kind, [batch, n]) for name, n in g.inputs.items()]
    image = helper.make_tensor_value_info(g.image, kind, [batch, *dims])
    any_size = helper.make_tensor_value_info(g.image, kind, [None] * (1 + rank + 1))
    reference_cut = helper.make_tensor_value_info(cut.name, kind, [None] * cut.rank)
    original = model(g, g.original, [image, *vectors], outputs)
    reference = model(g, g.reference[:beyond], [any_size, *vectors], [reference_cut])
    return Network(
        original,
        reference,
        cut.name,
        size,
        tuple(range(1, rank + 1) if last else range(2, rank + 2)),
        tuple(a.cells for a in cut.space),
        tuple(int(a.grid / a.stride) for a in cut.space),
        tuple(int(a.grid) for a in cut.space),
        g.exact,
        g.slides,
        g.inputs,
        classes,
        g.batch,
        g.fixed,
        tuple(g.integer(0, min(int(a.grid), 24)) for a in cut.space),
        tuple(g.pick(2, 40) if k == long else 0 for k in range(rank)),
    )


def model(
    g: Graph, nodes: Sequence[NodeProto], inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
) -> ModelProto:
    """The nodes with the constants that they read, and the functions that they call."""
    read = {name for node in nodes for name in node.input}
    constants: list[NodeProto] = []
    for node in reversed(g.constants):
        if read & set(node.output):
            constants.insert(0, node)
            read |= set(node.input)
    made_of = {name for node in constants for name in node.output}
    weights = [w for w in g.weights if w.name in read - made_of]
    graph = helper.make_graph([*constants, *nodes], "g", inputs, outputs, weights)
    called = {(node.domain, node.op_type) for node in nodes}
    functions = [f for f in g.functions if (f.domain, f.name) in called]
    opsets = [helper.make_opsetid("", g.opset), *(helper.make_opsetid("own", 1) for f in functions[:1])]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    checker.check_model(made)
    return made
