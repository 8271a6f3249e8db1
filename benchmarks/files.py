"""Models to measure on, generated on the fly: real architectures with random weights, small to 3 GB.

Each is a function that describes a network to a `Network`, which is then written as the exporters do: `image` in,
`scores` out, weights as `raw_data` or in a data file. Nothing is downloaded, and no framework is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

__all__ = ["ARCHITECTURES", "FILES", "alexnet", "chain", "resnet50", "vgg16", "write"]

CLASSES = 1000


@dataclass
class Network:
    """A network while it is being described, layer by layer. A layer takes names of tensors and returns one."""

    nodes: list[NodeProto] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    integers: dict[str, list[int]] = field(default_factory=dict)
    serial: count[int] = field(default_factory=count)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{next(self.serial)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weight(self, *shape: int) -> str:
        name = f"weight_{next(self.serial)}"
        self.shapes[name] = shape
        return name

    def conv(self, x: str, channels: int, width: int, kernel: int, stride: int = 1, pad: int | None = None) -> str:
        pads = [kernel // 2 if pad is None else pad] * 4
        inputs = x, self.weight(width, channels, kernel, kernel), self.weight(width)
        return self.node("Conv", *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def conv_relu(self, x: str, *how: int) -> str:
        return self.node("Relu", self.conv(x, *how))

    def max_pool(self, x: str, kernel: int, stride: int, pad: int = 0) -> str:
        return self.node("MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def dense(self, x: str, features: int, width: int) -> str:
        """As torch stores it, (width, features): the bytes of a kernel."""
        return self.node("Gemm", x, self.weight(width, features), self.weight(width), transB=1)

    def dense_transposed(self, x: str, features: int, width: int) -> str:
        """As TensorFlow stores it, (features, width): the bytes have to be permuted."""
        return self.node("Add", self.node("MatMul", x, self.weight(features, width)), self.weight(width))

    def head(self, x: str, widths: list[int], dense: Callable[..., str]) -> str:
        """Dense layers with a Relu between each two."""
        *hidden, last = pairwise(widths)
        for features, width in hidden:
            x = self.node("Relu", dense(x, features, width))
        return dense(x, *last)


def alexnet(net: Network, x: str) -> str:
    for channels, width, kernel, stride, pad, pooled in (
        (3, 64, 11, 4, 2, True), (64, 192, 5, 1, 2, True), (192, 384, 3, 1, 1, False),
        (384, 256, 3, 1, 1, False), (256, 256, 3, 1, 1, True),
    ):  # fmt: skip
        x = net.conv_relu(x, channels, width, kernel, stride, pad)
        x = net.max_pool(x, 3, 2) if pooled else x
    return net.head(net.node("Flatten", x), [9216, 4096, 4096, CLASSES], net.dense)


def vgg_trunk(net: Network, x: str) -> str:
    channels = 3
    for width, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convs):
            x, channels = net.conv_relu(x, channels, width, 3), width
        x = net.max_pool(x, 2, 2)
    return x


def vgg16(net: Network, x: str, *, hidden: int = 4096) -> str:
    return net.head(net.node("Flatten", vgg_trunk(net, x)), [25088, hidden, hidden, CLASSES], net.dense)


def vgg16_channels_last(net: Network, x: str) -> str:
    """As converters from TensorFlow write it: the features that the first dense layer reads are (h w c)."""
    x = net.node("Transpose", vgg_trunk(net, net.node("Transpose", x, perm=[0, 3, 1, 2])), perm=[0, 2, 3, 1])
    net.integers["flat"] = [-1, 25088]
    return net.head(net.node("Reshape", x, "flat"), [25088, 4096, 4096, CLASSES], net.dense_transposed)


def resnet50(net: Network, x: str) -> str:
    """As exported for inference: batch normalisations folded."""
    x, channels = net.max_pool(net.conv_relu(x, 3, 64, 7, 2), 3, 2, 1), 64
    for stage, (width, blocks) in enumerate(((256, 3), (512, 4), (1024, 6), (2048, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            shortcut = x if block else net.conv(x, channels, width, 1, stride)
            inner = net.conv_relu(net.conv_relu(x, channels, width // 4, 1), width // 4, width // 4, 3, stride)
            x, channels = net.node("Relu", net.node("Add", net.conv(inner, width // 4, width, 1), shortcut)), width
    return net.dense(net.node("Flatten", net.node("GlobalAveragePool", x)), 2048, CLASSES)


def chain(nodes: int) -> Callable[[Network, str], str]:
    """A network of so many nodes: residual blocks of five, with a few channels."""

    def describe(net: Network, x: str) -> str:
        x = net.conv_relu(x, 3, 4, 3)
        for _ in range((nodes - 5) // 5):
            inner = net.conv(net.conv_relu(x, 4, 4, 3), 4, 4, 3)
            x = net.node("Relu", net.node("Add", inner, x))
        return net.dense(net.node("Flatten", net.node("GlobalAveragePool", x)), 4, 10)

    return describe


def write(
    path: Path,
    describe: Callable[[Network, str], str],
    image: tuple[int, int, int] = (3, 224, 224),
    *,
    external: bool = False,
) -> Path:
    """Write a network, its weights in a data file beside it if `external`."""
    net = Network()
    scores = describe(net, "image")
    net.nodes.append(helper.make_node("Identity", [scores], ["scores"], "scores"))
    declared = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *image])
    answer = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", None])
    model = helper.make_model_gen_version(
        helper.make_graph(net.nodes, path.stem, [declared], [answer]), opset_imports=[helper.make_opsetid("", 13)]
    )
    for name, values in net.integers.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    if external:
        _store_beside(model, net, path.with_suffix(".data"))
    else:
        _store_inside(model, net)
    path.write_bytes(model.SerializeToString())
    return path


def _values(net: Network) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Random weights that keep activations of order one: He's initialisation; biases are small."""
    random = np.random.default_rng(0)
    depth = max(1, sum(node.op_type == "Add" for node in net.nodes))

    def values(shape: tuple[int, ...]) -> np.ndarray:
        fan_in = {1: 10_000, 2: max(shape)}.get(len(shape), int(np.prod(shape[1:])))
        residual = depth if depth > 10 else 1  # each block adds its share
        return random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in / residual))

    return values


def _store_inside(model: ModelProto, net: Network) -> None:
    values = _values(net)
    for name, shape in net.shapes.items():
        model.graph.initializer.add(
            name=name, data_type=TensorProto.FLOAT, dims=shape, raw_data=values(shape).tobytes()
        )


def _store_beside(model: ModelProto, net: Network, data: Path) -> None:
    values = _values(net)
    with open(data, "wb") as file:
        for name, shape in net.shapes.items():
            tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": data.name, "offset": file.tell(), "length": 4 * int(np.prod(shape))}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            values(shape).tofile(file)


@dataclass(frozen=True)
class File:
    """A model to convert: what it is, and how to write it to a path."""

    title: str
    write: Callable[[Path], Path]


def _exported(name: str, *, dynamo: bool) -> File:
    """An architecture as torch exports it."""

    def write(path: Path) -> Path:
        from benchmarks.architectures import export  # torch takes seconds to import

        return export(name, path, dynamo=dynamo)

    return File(f"{name}, from torch's {'newer' if dynamo else 'older'} exporter", write)


#: Today's networks, of some hundred nodes.
ARCHITECTURES = {
    "resnet50": _exported("ResNet-50", dynamo=True),
    "densenet121": _exported("DenseNet-121", dynamo=True),
    "efficientnet_b0": _exported("EfficientNet-B0", dynamo=False),
    "mobilenet_v2": _exported("MobileNetV2", dynamo=False),
}

FILES = {
    **ARCHITECTURES,
    "vgg16": File("VGG-16, 553 MB", lambda path: write(path, vgg16)),
    "vgg16-channels-last": File(
        "VGG-16 channels-last: 411 MB to permute", lambda path: write(path, vgg16_channels_last, (224, 224, 3))
    ),
    "external": File(
        "VGG-16 with 17,408 hidden units: 3.1 GB in a data file",
        lambda path: write(path, lambda net, x: vgg16(net, x, hidden=17_408), external=True),
    ),
    "nodes-10k": File("10,000 nodes", lambda path: write(path, chain(10_000), (3, 32, 32))),
    "nodes-100k": File("100,000 nodes", lambda path: write(path, chain(100_000), (3, 32, 32))),
}
