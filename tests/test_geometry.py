"""Geometry: published receptive fields, pixels poked one at a time, and the grids that onnxruntime answers with."""

from __future__ import annotations

import doctest
import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import law
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import onnx_fcn
from onnx_fcn import Field, Geometry, ModelError, OptionError, read_geometry
from onnx_fcn.checking import reference
from onnx_fcn.geometry import Count, Inner
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted

FIXTURES = Path(__file__).parent.parent / "fixtures"


# Published values -----------------------------------------------------------------------------------------------------


def padding(pad: int | str) -> dict[str, object]:
    """TF-Slim's SAME and VALID, or so many pixels on all sides."""
    return {"pads": [pad] * 4} if isinstance(pad, int) else {"auto_pad": {"SAME": "SAME_UPPER"}.get(pad, pad)}


class Net:
    """A network as its paper or its code defines it, with as few channels as it can have: geometry needs no more."""

    def __init__(self, size: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels = {"image": 1}
        self.size = size

    def node(self, op: str, *inputs: str, channels: int, **attrs: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attrs))
        self.channels[name] = channels
        return name

    def weight(self, *shape: int) -> str:
        name = "w" + "x".join(map(str, shape))
        self.weights[name] = np.ones(shape, np.float32)
        return name

    def conv(self, x: str, kernel: int | tuple[int, int], stride: int = 1, pad: int | str = "SAME") -> str:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight = self.weight(1, self.channels[x], height, width)
        return self.node("Conv", x, weight, channels=1, strides=[stride] * 2, **padding(pad))

    def pool(self, x: str, kernel: int, stride: int, pad: int | str = "SAME", op: str = "MaxPool") -> str:
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        return self.node(op, x, channels=self.channels[x], **shape, **padding(pad))

    def chain(self, x: str, *kernels: int | tuple[int, int], stride: int = 1, pad: int | str = "SAME") -> str:
        """1×1, 3×3 … convolutions; the last one has the stride, and the padding that goes with it."""
        *first, last = kernels
        return self.conv(functools.reduce(self.conv, first, x), last, stride, pad)

    def concat(self, *parts: str) -> str:
        return self.node("Concat", *parts, channels=sum(self.channels[p] for p in parts), axis=1)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b, channels=1)

    def with_head(self, x: str, *, cells: int | None = None) -> onnx.ModelProto:
        """A classifier: global pooling and one dense layer, or two dense layers on cells×cells."""
        if cells is None:
            x = self.node("GlobalAveragePool", x, channels=self.channels[x])
        x = self.node("Flatten", x, channels=self.channels[x] * (cells or 1) ** 2)
        for outputs in (2, 2):
            x = self.node("Gemm", x, self.weight(self.channels[x], outputs), channels=outputs)
        self.nodes[-1].output[0] = "scores"
        image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, self.size, self.size])
        scores = helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 2])
        tensors = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", [image], [scores], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def vgg_16(net: Net) -> str:
    """Simonyan and Zisserman 2014, configuration D."""
    x = "image"
    for depth in (2, 2, 3, 3, 3):
        x = net.pool(functools.reduce(net.conv, [3] * depth, x), 2, 2)
    return x


def alexnet_v2(net: Net) -> str:
    """Krizhevsky 2014, as TF-Slim has it."""
    x = net.pool(net.conv("image", 11, 4, "VALID"), 3, 2, "VALID")
    x = net.pool(net.conv(x, 5), 3, 2, "VALID")
    return net.pool(net.chain(x, 3, 3, 3), 3, 2, "VALID")


def torchvision_alexnet(net: Net) -> str:
    x = net.pool(net.conv("image", 11, 4, 2), 3, 2, 0)
    x = net.pool(net.conv(x, 5, 1, 2), 3, 2, 0)
    return net.pool(net.chain(x, 3, 3, 3), 3, 2, 0)


def slim_resnet(net: Net, *units: int) -> str:
    """He et al. 2015, as TF-Slim has it: the last unit of a block has the stride."""
    x = net.pool(net.conv("image", 7, 2, 3), 3, 2)
    for block, count in enumerate(units):
        for unit in range(count):
            stride = 2 if unit == count - 1 and block < 3 else 1
            shortcut = net.conv(x, 1, stride) if stride == 2 or unit == 0 else x
            x = net.add(shortcut, net.conv(net.conv(net.conv(x, 1), 3, stride, 1), 1))
    return x


def torchvision_resnet(net: Net, kernels: Sequence[int], *units: int) -> str:
    """The first unit of a block has the stride, in its first 3×3 convolution."""
    x = net.pool(net.conv("image", 7, 2, 3), 3, 2, 1)
    for block, count in enumerate(units):
        for unit in range(count):
            stride = 2 if unit == 0 and block > 0 else 1
            shortcut, strides = net.conv(x, 1, stride) if unit == 0 else x, [1] * len(kernels)
            strides[kernels.index(3)] = stride
            for kernel, step in zip(kernels, strides):
                x = net.conv(x, kernel, step, kernel // 2)
            x = net.add(shortcut, x)
    return x


def mobilenet_v1(net: Net) -> str:
    """Howard et al. 2017."""
    x = net.conv("image", 3, 2)
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        x = net.conv(net.conv(x, 3, stride), 1)
    return x


def towers(net: Net, x: str, *chains: Sequence[int | tuple[int, int]], stride: int = 1, pad: str = "SAME") -> str:
    """An Inception module: chains of convolutions, and a 3×3 pooling."""
    pool = net.pool(x, 3, stride, pad)
    return net.concat(
        *(net.chain(x, *c, stride=stride, pad=pad) for c in chains), pool if stride > 1 else net.conv(pool, 1)
    )


LOW, WIDE, SMALL_LOW, SMALL_WIDE = (7, 1), (1, 7), (3, 1), (1, 3)


def inception_v2(net: Net) -> str:
    """Ioffe and Szegedy 2015, as TF-Slim has it."""
    x = net.pool(net.conv("image", 7, 2), 3, 2)
    x = net.pool(net.chain(x, 1, 3), 3, 2)
    for block, modules in enumerate((2, 4, 2)):
        if block > 0:
            x = towers(net, x, (1, 3), (1, 3, 3), stride=2)
        for _ in range(modules):
            x = towers(net, x, (1,), (1, 3), (1, 3, 3))
    return x


def inception_stem(net: Net) -> str:
    x = net.conv(net.chain("image", 3, stride=2, pad="VALID"), 3, 1, "VALID")
    x = net.pool(net.conv(x, 3), 3, 2, "VALID")
    return net.pool(net.conv(net.conv(x, 1), 3, 1, "VALID"), 3, 2, "VALID")


def inception_v3(net: Net) -> str:
    """Szegedy et al. 2015, as TF-Slim has it."""
    x = inception_stem(net)
    for _ in range(3):
        x = towers(net, x, (1,), (1, 5), (1, 3, 3))
    x = towers(net, x, (3,), (1, 3, 3), stride=2, pad="VALID")
    for _ in range(4):
        x = towers(net, x, (1,), (1, WIDE, LOW), (1, LOW, WIDE, LOW, WIDE))
    x = towers(net, x, (1, 3), (1, WIDE, LOW, 3), stride=2, pad="VALID")
    for _ in range(2):
        x = towers(net, x, (1,), (1, SMALL_WIDE), (1, SMALL_LOW), (1, 3, SMALL_WIDE), (1, 3, SMALL_LOW))
    return x


def inception_v4(net: Net) -> str:
    """Szegedy et al. 2016, as TF-Slim has it."""
    x = net.conv(net.conv(net.conv("image", 3, 2, "VALID"), 3, 1, "VALID"), 3)
    x = net.concat(net.pool(x, 3, 2, "VALID"), net.conv(x, 3, 2, "VALID"))
    x = net.concat(*(net.chain(x, *c, 3, pad="VALID") for c in [(1,), (1, WIDE, LOW)]))
    x = net.concat(net.conv(x, 3, 2, "VALID"), net.pool(x, 3, 2, "VALID"))
    for _ in range(4):
        x = towers(net, x, (1,), (1, 3), (1, 3, 3))
    x = towers(net, x, (3,), (1, 3, 3), stride=2, pad="VALID")
    for _ in range(7):
        x = towers(net, x, (1,), (1, WIDE, LOW), (1, LOW, WIDE, LOW, WIDE))
    x = towers(net, x, (1, 3), (1, WIDE, LOW, 3), stride=2, pad="VALID")
    for _ in range(3):
        deep = (1, SMALL_LOW, SMALL_WIDE)
        x = towers(net, x, (1,), (1, SMALL_WIDE), (1, SMALL_LOW), (*deep, SMALL_WIDE), (*deep, SMALL_LOW))
    return x


def inception_resnet_v2(net: Net) -> str:
    """Szegedy et al. 2016, as TF-Slim has it."""

    def residual(x: str, *chains: Sequence[int | tuple[int, int]]) -> str:
        return net.add(x, net.conv(net.concat(*(net.chain(x, *c) for c in chains)), 1))

    x = net.conv(towers(net, inception_stem(net), (1,), (1, 5), (1, 3, 3)), 1)
    for _ in range(10):
        x = residual(x, (1,), (1, 3), (1, 3, 3))
    x = net.conv(towers(net, x, (3,), (1, 3, 3), stride=2, pad="VALID"), 1)
    for _ in range(20):
        x = residual(x, (1,), (1, WIDE, LOW))
    x = net.conv(towers(net, x, (1, 3), (1, 3), (1, 3, 3), stride=2, pad="VALID"), 1)
    for _ in range(10):
        x = residual(x, (1,), (1, SMALL_WIDE, SMALL_LOW))
    return x


#: The network, its native size, and size, stride and padding of its last map. Araujo et al. 2019, table 1, and for
#: torchvision's networks their recursion by hand.
PUBLISHED: dict[str, tuple[Callable[[Net], str], int, tuple[int, int, int]]] = {
    "VGG-16": (vgg_16, 224, (212, 32, 90)),
    "AlexNet-v2": (alexnet_v2, 224, (195, 32, 64)),
}
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
for depth, values in {50: (483, 32, 239), 101: (1027, 32, 511), 152: (1507, 32, 751), 200: (1763, 32, 879)}.items():
    PUBLISHED[f"ResNet-v1-{depth}"] = (lambda net, depth=depth: slim_resnet(net, *UNITS[depth])), 224, values
for depth, values in {50: (427, 32, 213), 101: (971, 32, 485), 152: (1451, 32, 725)}.items():
    PUBLISHED[f"torchvision ResNet-{depth}"] = (
        (lambda net, depth=depth: torchvision_resnet(net, (1, 3, 1), *UNITS[depth])), 224, values
    )  # fmt: skip
PUBLISHED |= {
    "ResNet-v1-50 at 321": ((lambda net: slim_resnet(net, *UNITS[50])), 321, (483, 32, 241)),
    "torchvision ResNet-18": ((lambda net: torchvision_resnet(net, (3, 3), 2, 2, 2, 2)), 224, (435, 32, 217)),
    "torchvision AlexNet": (torchvision_alexnet, 224, (195, 32, 66)),
    "MobileNet-v1": (mobilenet_v1, 224, (315, 32, 126)),
    "Inception-v2": (inception_v2, 224, (699, 32, 318)),
    "Inception-v3": (inception_v3, 299, (1311, 32, 618)),
    "Inception-v4": (inception_v4, 299, (2071, 32, 998)),
    "Inception-ResNet-v2": (inception_resnet_v2, 299, (3039, 32, 1482)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_receptive_fields(name: str) -> None:
    build, size, (pixels, stride, padding) = PUBLISHED[name]
    net = Net(size)
    last = build(net)
    report = onnx_fcn.inspect(net.with_head(last))
    assert report.field(last) == (Field(pixels, stride, -padding),) * 2
    assert [f.padding for f in report.field(last)] == [padding] * 2
    assert report.field("image") == (Field(1, 1, 0),) * 2


@pytest.mark.parametrize(
    ("build", "cells", "pixels", "centre", "formula"),
    [
        (vgg_16, 7, 404, 111.5, "(height - 224) // 32 + 1"),
        (torchvision_alexnet, 6, 355, 111, "(height - 223) // 32 + 1"),
        (PUBLISHED["torchvision ResNet-50"][0], None, 619, 96, "(height - 193) // 32 + 1"),
    ],
)
def test_what_an_answer_sees(
    build: Callable[[Net], str], cells: int | None, pixels: int, centre: float, formula: str
) -> None:
    """VGG-16's 404 pixels are DeepLab's figure (Chen et al. 2014)."""
    net = Net(224)
    report = onnx_fcn.inspect(net.with_head(build(net), cells=cells))
    answers = report.geometry.of("scores")
    assert [f.size for f in report.field("scores")] == [f.size for f in answers.field] == [pixels] * 2
    assert (answers.window, answers.stride, answers.offset, answers.exactness) == (
        (224,) * 2,
        (32,) * 2,
        (0, 0),
        "padded",
    )
    assert answers.formulas()[0] == formula
    assert answers.grid(224, 256).shape == (1, 2)
    assert [f.centre for f in answers.field] == [centre] * 2


def test_a_network_without_an_image_of_its_own_says_so() -> None:
    with pytest.raises(OptionError, match=r"no tensor 'imgae' .* did you mean 'image'\?"):
        onnx_fcn.inspect(Net(8).with_head("image")).field("imgae")


# Small networks -------------------------------------------------------------------------------------------------------

IMAGE = "float[N,1,12,11] x"
HEAD = "g = GlobalAveragePool (c)  y = Flatten (g)"


def network(body: str, image: str = IMAGE, outputs: str = "y", **weights: object) -> onnx.ModelProto:
    """A network of positive weights, in which nothing cancels."""
    made = {n: np.ones(s, np.float32) if isinstance(s, tuple) else s for n, s in weights.items()}
    return law.model(body, image=image, outputs=outputs, opset=18, **made)


def conv(name: str, x: str, attrs: str = "", weight: str = "k") -> str:
    return f"{name} = Conv <{attrs}> ({x}, {weight})  " if attrs else f"{name} = Conv ({x}, {weight})  "


#: name: (network, exactness). Each is small enough to poke every pixel of its image.
POKED: dict[str, tuple[onnx.ModelProto, str]] = {
    "a convolution": (network(conv("c", "x") + HEAD, k=(1, 1, 3, 3)), "exact"),
    "stride 2": (network(conv("c", "x", "strides = [2, 2]") + HEAD, k=(1, 1, 3, 3)), "exact"),
    "padding": (network(conv("c", "x", "pads = [1, 1, 1, 1]") + HEAD, k=(1, 1, 3, 3)), "padded"),
    "asymmetric padding": (
        network(conv("c", "x", "pads = [2, 0, 1, 1], strides = [2, 3]") + HEAD, k=(1, 1, 3, 4)),
        "padded",
    ),
    "auto_pad": (
        network(conv("c", "x", 'auto_pad = "SAME_UPPER", strides = [2, 2]') + HEAD, k=(1, 1, 3, 3)),
        "padded",
    ),
    "auto_pad in front": (
        network(conv("c", "x", 'auto_pad = "SAME_LOWER", strides = [2, 2]') + HEAD, k=(1, 1, 4, 3)),
        "padded",
    ),
    "padding that no answer sees": (
        network(conv("p", "x", "pads = [1, 1, 1, 1]") + "c = Slice (p, one, end, axes)  " + HEAD,
                k=(1, 1, 3, 3), one=[1, 1], end=[-1, -1], axes=[2, 3]), "exact",
    ),
    "pooling": (network("c = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (x)  " + HEAD), "exact"),
    "ceil": (
        network("c = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)  " + HEAD),
        "padded",
    ),
    "an average, ceil": (
        network("c = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)  " + HEAD),
        "padded",
    ),
    "dilation": (
        network(conv("d", "x") + conv("c", "d", "dilations = [3, 2], pads = [3, 2, 3, 2]") + HEAD,
                k=(1, 1, 3, 3)),
        "padded",
    ),
    "branches": (
        network(conv("a", "x", "pads = [1, 1, 1, 1]") + conv("b", "x", "pads = [2, 2, 2, 2]", "l")
                + "c = Concat <axis = 1> (a, b, x)  " + HEAD, k=(1, 1, 3, 3), l=(1, 1, 5, 5)),
        "padded",
    ),
    "a residual": (
        network(conv("a", "x", "pads = [1, 1, 1, 1]") + "c = Add (a, x)  " + HEAD, k=(1, 1, 3, 3)),
        "padded",
    ),
    "a Pad": (
        network("p = Pad (x, pads)  " + conv("c", "p", "strides = [2, 2]") + HEAD,
                pads=[0, 0, 2, 1, 0, 0, 1, 1], k=(1, 1, 3, 3)),
        "padded",
    ),
    "a dense layer": (
        network(conv("c", "x", "strides = [3, 2], pads = [1, 1, 0, 0]") + "f = Flatten (c)  y = MatMul (f, w)",
                k=(2, 1, 3, 3), w=(40, 1)),
        "padded",
    ),
    "two scales of stride": (
        network(conv("a", "x", "strides = [2, 2]") + conv("c", "a", "strides = [2, 1]") + HEAD,
                k=(1, 1, 3, 3)), "exact",
    ),
    "a stride beyond the cut": (  # dilates instead, so that both outputs lie on one grid
        network(
            conv("c", "x", "strides = [2, 1], pads = [1, 1, 1, 0]")
            + "d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)  g = GlobalAveragePool (d)  y = Flatten (g)  "
            + "h = GlobalMaxPool (c)  z = Flatten (h)",
            outputs="y, z", k=(1, 1, 3, 3),
        ),
        "padded",
    ),
    "one dimension": (
        network(conv("c", "x", "strides = [2], pads = [1, 0]") + HEAD, "float[N,1,15] x", k=(1, 1, 3)),
        "padded",
    ),
    "three dimensions": (
        network(conv("c", "x", "strides = [1, 2, 2], pads = [1, 0, 0, 1, 0, 0]") + HEAD, "float[N,1,4,5,6] x",
                k=(1, 1, 3, 3, 2)),
        "padded",
    ),
}  # fmt: skip

#: Fields of these hold what is reached, and may hold a little more.
RESAMPLED = {
    "nearest": network("p = Resize <mode = \"nearest\"> (x, , s)  " + conv("c", "p", "strides = [4, 4]") + HEAD,
                       s=np.array([1, 1, 2, 2], np.float32), k=(1, 1, 3, 3)),
    "linear": network("p = Resize <mode = \"linear\"> (x, , s)  " + conv("c", "p", "strides = [4, 4]") + HEAD,
                      s=np.array([1, 1, 2, 2], np.float32), k=(1, 1, 3, 3)),
    "pixel shuffle": network(
        conv("a", "x", weight="m") + "p = DepthToSpace <blocksize = 2> (a)  "
        + conv("c", "p", "strides = [2, 2]") + HEAD,
        m=(4, 1, 1, 1), k=(1, 1, 3, 3),
    ),
    "finer and coarser": network(
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  t = ConvTranspose <strides = [2, 2]> (p, k)  "
        + conv("c", "t", "strides = [2, 2]") + HEAD, k=(1, 1, 3, 3)),
}  # fmt: skip


def converted(model: onnx.ModelProto) -> tuple[onnx_fcn.Conversion, Callable[[np.ndarray], np.ndarray]]:
    conversion = onnx_fcn.convert(model, validate=False)
    run = law.session(conversion.to_proto())
    return conversion, lambda image: run({"x": image})[0]


def poked(model: onnx.ModelProto, native: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The answers that each pixel of a larger image reaches, and those that `Grid.fields` says."""
    conversion, run = converted(model)
    size = tuple(n + more for n, more in zip(native, (7, 5, 2)))
    grid = conversion.grid(*size)
    first, behind = np.split(grid.fields, 2, axis=-1)
    reached, told = [], []
    for pixel in np.ndindex(*size):
        image = np.zeros((1, 1, *size), np.float32)
        image[0, 0][pixel] = 1
        reached.append(run(image)[0].any(axis=0))
        told.append(np.all((first <= pixel[::-1]) & (pixel[::-1] < behind), axis=-1))
    return np.array(reached), np.array(told)


@pytest.mark.parametrize("name", POKED)
def test_a_pixel_reaches_the_cells_whose_field_it_is_in(name: str) -> None:
    model, exactness = POKED[name]
    reached, told = poked(model, law.dims_of(model.graph.input[0])[2:])
    assert np.array_equal(reached, told)
    assert onnx_fcn.inspect(model).geometry.exactness["y"] == exactness


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_pixel_reaches_no_cell_beyond_its_field_behind_an_upsampling(name: str) -> None:
    reached, told = poked(RESAMPLED[name], (12, 11))
    assert not (reached & ~told).any()
    extra = told.sum(axis=0) / np.maximum(reached.sum(axis=0), 1)
    assert extra.max() < 1.6


GATED = network(
    conv("a", "x", "pads = [1, 1, 1, 1]") + "m = GlobalAveragePool (a)  s = Sigmoid (m)  b = Mul (a, s)  "
    + conv("c", "b") + HEAD, k=(1, 1, 3, 3),
)  # fmt: skip


def test_context_sees_the_whole_image() -> None:
    conversion, run = converted(GATED)
    answers = conversion.report.geometry.of()
    assert (answers.exactness, answers.context) == ("context", ("m",))
    assert not any(f.is_local for f in conversion.report.field("y"))
    assert conversion.report.field("a") == (Field(3, 1, -1),) * 2
    assert conversion.report.field("b")[0].size == math.inf
    assert np.isinf(conversion.grid(20, 20).fields).all()
    assert not conversion.grid(20, 20).interior.any()
    image = np.ones((1, 1, 20, 20), np.float32)
    before = run(image)
    image[0, 0, 0, 0] = 9
    assert (run(image) != before).all()
    assert "field    the whole image" in conversion.report.text(verbose=True)
    assert "exact    no, context: 'm' sees the whole image" in str(conversion.report)
    json.dumps(conversion.report.to_dict(), allow_nan=False)


def test_branches_that_are_not_aligned_are_told() -> None:
    apart = network(
        "a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  "
        + conv("b", "x", "strides = [2, 2], pads = [1, 1, 1, 0]") + "c = Add (a, b)  " + HEAD,
        "float[N,1,12,12] x", k=(1, 1, 3, 2),
    )  # fmt: skip
    (told,) = [c for c in onnx_fcn.inspect(apart).caveats if "aligned" in c]
    assert "joins 'a', whose first cell is at pixel 0.5 with 'b', whose first cell is at pixel 0:" in told


def test_the_size_that_auto_pad_was_resolved_at_is_told() -> None:
    net = Net(64)
    caveats = onnx_fcn.inspect(net.with_head(mobilenet_v1(net))).caveats
    assert sum("and 26 more pad by auto_pad" in c and "that of 64×64 pixels" in c for c in caveats) == 1


def test_whether_there_is_an_interior_is_known_without_making_it() -> None:
    """A damaged network may have a window of gigabytes."""
    for front, window, rate, add in itertools.product((0, 1, 3, 5), (1, 2, 4, 7), (1, 2), (0, -3, -6)):
        inner = Inner(front, Count(((1, add, 1),)))
        axis = Axis((Atom(window, "h"),), Field(3, 1, -1), rate=rate, image=0, inner=inner)
        fact = Lifted("x", Atom(1, "n"), (), (axis,), ((), (), axis.atoms), 1)
        assert reference._has_interior(fact, [window]) == bool(reference.interior(fact, [window]).any())
    huge = replace(axis, atoms=(Atom(1 << 40, "h"),), inner=Inner())
    assert reference._has_interior(replace(fact, space=(huge,)), [1 << 40])


def test_no_padding_reaches_the_interior(tmp_path: Path) -> None:
    """Whatever surrounds the image, answers in the interior of its grid stay as they are, and only those."""
    conversion = onnx_fcn.convert(FIXTURES / "digits_padded.onnx", tmp_path / "out.onnx", validate=False)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).random((1, 1, 61, 72), np.float32)
    (alone,) = session.run(None, {"image": image})
    (around,) = session.run(None, {"image": np.pad(image, [(0, 0), (0, 0), (8, 8), (8, 8)], constant_values=0.5)})
    grid = conversion.grid(61, 72)
    rows, columns = grid.shape
    same = np.abs(alone - around[..., 2 : 2 + rows, 2 : 2 + columns]).max(axis=(0, 1)) < 1e-5
    assert np.array_equal(same, grid.interior)
    assert 0 < grid.interior.sum() < rows * columns


# How many cells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*POKED, *RESAMPLED])
def test_onnxruntime_answers_with_as_many_cells(name: str) -> None:
    model = POKED[name][0] if name in POKED else RESAMPLED[name]
    conversion, run = converted(model)
    native = law.dims_of(model.graph.input[0])[2:]
    answers = conversion.report.geometry.of()
    for more in range(-4, 25):
        size = [n + more for n in native]
        if any(n < least for n, least in zip(size, answers.least)):
            with pytest.raises(OptionError, match="too small for an answer"):
                conversion.grid(*size)
            continue
        got = run(np.zeros((1, 1, *size), np.float32)).shape[2:]
        assert conversion.grid(*size).shape == got
        names = dict(zip({1: ["length"], 2: ["height", "width"], 3: ["depth", "height", "width"]}[len(size)], size))
        assert tuple(eval(f, {}, names) for f in answers.formulas()) == got


@pytest.mark.parametrize("name", ["digits_unpadded", "digits_padded"])
def test_fixtures_answer_with_as_many_cells(name: str, tmp_path: Path) -> None:
    conversion = onnx_fcn.convert(FIXTURES / f"{name}.onnx", tmp_path / "out.onnx", validate=False)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    for height in range(28, 61):
        (scores,) = session.run(None, {"image": np.zeros((1, 1, height, 89 - height), np.float32)})
        assert scores.shape[2:] == conversion.grid(height, 89 - height).shape


steps = st.tuples(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3), st.booleans()
)


few = st.integers(1, 12)


@given(few, few, st.integers(-40, 40), st.integers(-40, 40), st.booleans())
def test_the_surplus_of_one_count_over_another(multiply: int, divide: int, a: int, b: int, twice: bool) -> None:
    """By the closed form where there is one step, and by a whole period where there are more."""
    counts = [Count(((multiply, add, divide),)) for add in (a, b)]
    if twice:
        counts = [count.then(2, 1, 3) for count in counts]
    surplus = [counts[0](n) - counts[1](n) for n in range(1000, 1000 + 3 * divide)]  # where none is short of pixels
    assert counts[0].beyond(counts[1]) == (min(surplus), max(surplus))


@given(st.lists(steps | st.integers(2, 3), max_size=6))
def test_counts_compose_exactly(chain: list[tuple[int, int, int, int, int, bool] | int]) -> None:
    """One formula says what step after step says, at every size at which every step has room for its kernel."""
    count, one_by_one = Count(), []
    for step in chain:
        if isinstance(step, int):
            count = count.resampled(Fraction(step))
            one_by_one.append(lambda n, k=step: n * k)
        else:
            kernel, stride, dilation, begin, end, ceil = step
            ceil = ceil and end < kernel  # as onnxruntime demands of poolings
            count = count.slid(kernel, stride, dilation, begin, end, ceil=ceil)
            one_by_one.append(lambda n, s=(*step[:5], ceil): slid(n, *s))
    assert len(count.steps) <= 1 + sum(isinstance(step, int) for step in chain)
    for pixels in range(1, 60):
        cells = pixels
        for step in one_by_one:
            cells = step(cells) if cells > 0 else 0
        if cells > 0:
            assert count(pixels) == cells == eval(count.formula("height"), {}, {"height": pixels})


def slid(cells: int, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil: bool) -> int:
    """Output cells, as ONNX defines them."""
    room = cells + begin + end - (kernel - 1) * dilation - 1
    if room < 0:
        return 0
    made = (math.ceil if ceil else math.floor)(Fraction(room, stride)) + 1
    return made - 1 if ceil and (made - 1) * stride >= cells + begin else made


# Grids ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx_fcn.Conversion, Path]:
    path = tmp_path_factory.mktemp("digits") / "out.onnx"
    return onnx_fcn.convert(FIXTURES / "digits_unpadded.onnx", path, validate=False), path


def test_boxes_are_the_windows(digits: tuple[onnx_fcn.Conversion, Path]) -> None:
    """An unpadded network: every answer is the original's for the crop of its box, wherever the image ends."""
    conversion, path = digits
    grid = conversion.grid(50, 63)
    assert (grid.shape, grid.boxes.shape, grid.remainder) == ((6, 9), (6, 9, 4), (2, 3))
    assert grid.boxes[0, 0].tolist() == [0, 0, 28, 28]
    assert grid.boxes[2, 5].tolist() == [20, 8, 48, 36]  # left, top, right, bottom
    assert grid.interior.all()
    image = np.random.default_rng(0).random((1, 1, 50, 63), np.float32)
    (answers,) = onnxruntime.InferenceSession(path).run(None, {"image": image})
    original = onnxruntime.InferenceSession(FIXTURES / "digits_unpadded.onnx")
    for cell in np.ndindex(*grid.shape):
        left, top, right, bottom = grid.boxes[cell]
        (crop,) = original.run(None, {"image": np.ascontiguousarray(image[..., top:bottom, left:right])})
        np.testing.assert_allclose(answers[(0, slice(None), *cell)], crop[0], atol=1e-4)


def test_cells_and_pixels(digits: tuple[onnx_fcn.Conversion, Path]) -> None:
    grid = digits[0].grid(50, 63)
    assert [float(v) for v in grid.pixel_of(2, 5)] == [20 + 13.5, 8 + 13.5]
    rows, columns = np.indices(grid.shape)
    assert all(np.array_equal(a, b) for a, b in zip(grid.cell_at(*grid.pixel_of(rows, columns)), (rows, columns)))
    assert [int(v) for v in grid.cell_at(0, 0)] == [0, 0]
    assert [int(v) for v in grid.cell_at(62, 49)] == [5, 8]
    assert [int(v) for v in grid.cell_at(34, 22)] == [2, 5]


def test_sizes(digits: tuple[onnx_fcn.Conversion, Path]) -> None:
    geometry = digits[0].report.geometry
    assert (geometry.window, geometry.stride, geometry.of().least) == ((28, 28), (4, 4), (28, 28))
    assert geometry.of().fitted(50, 63) == (48, 60)
    assert geometry.grid(48, 60).remainder == (0, 0)
    with pytest.raises(
        OptionError, match="27×40 pixels is too small for an answer, whose window is 28×28: the smallest"
    ):
        geometry.grid(27, 40)
    with pytest.raises(OptionError, match="40 is not a size of an image with 2 axes"):
        geometry.grid(40)
    with pytest.raises(OptionError, match="the outputs with one are 'scores'"):
        geometry.grid(40, 40, output="boxes")


def test_the_page_reads_pi(digits: tuple[onnx_fcn.Conversion, Path]) -> None:
    """The answers whose windows lie on the digits of the page say what the digits are."""
    conversion, path = digits
    page = np.load(FIXTURES / "digits_page.npy")
    boxes = json.loads((FIXTURES / "digits_page.json").read_text())
    (scores,) = onnxruntime.InferenceSession(path).run(None, {"image": page[None, None].astype(np.float32) / 255})
    grid = conversion.grid(*page.shape)
    assert scores.shape[2:] == grid.shape
    sides = np.array([[box[k] for k in ("left", "top", "right", "bottom")] for box in boxes])
    middles = (sides[:, :2] + sides[:, 2:] - 1) / 2
    rows, columns = grid.cell_at(middles[:, 0], middles[:, 1])
    assert np.abs(grid.boxes[rows, columns] - sides).max() <= 2  # half a stride
    right = scores[0].argmax(axis=0)[rows, columns] == [box["label"] for box in boxes]
    assert (
        right.sum() >= 95
    )  # as fixtures/README.md states of its own windows: 96 of 96, give or take one in the balance


def test_an_image_that_is_too_small(digits: tuple[onnx_fcn.Conversion, Path]) -> None:
    """onnxruntime says what the documentation quotes; a pooling that is the last node just has no answers."""
    quoted = (FIXTURES.parent / "docs/geometry.md").read_text("utf-8")
    assert "Invalid input shape: {2,7}" in quoted
    assert "an image of 20×40 pixels is too small for an answer, whose window is 28×28" in quoted
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(digits[1], options)
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT.*Invalid input shape: \{2,7\}"):
        session.run(None, {"image": np.zeros((1, 1, 20, 40), np.float32)})
    pooled = law.model(
        "a = Conv (x, k)  p = GlobalAveragePool (a)  y = Flatten (p)", image="float[N,6,9,9] x", k=(6, 6, 2, 2)
    )
    answers = law.session(onnx_fcn.convert(pooled, validate=False).to_proto())(
        {"x": np.zeros((1, 6, 8, 9), np.float32)}
    )
    assert answers[0].shape == (1, 6, 0, 1)


@pytest.mark.parametrize("page", ["answers", "geometry", "report"])
def test_the_documentation_is_true(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    monkeypatch.chdir(tmp_path)
    tried = doctest.testfile(str(FIXTURES.parent / f"docs/{page}.md"), module_relative=False, encoding="utf-8")
    assert (tried.failed, tried.attempted > 3) == (0, True)


# In the file ----------------------------------------------------------------------------------------------------------


def test_the_file_knows_its_geometry(digits: tuple[onnx_fcn.Conversion, Path]) -> None:
    conversion, path = digits
    assert read_geometry(path) == conversion.report.geometry
    stored = {e.key: e.value for e in onnx.load(path).metadata_props}
    assert stored["onnx_fcn.window"] == "[28, 28]"
    assert json.loads(stored["onnx_fcn.output.scores"])["formula"] == [
        "(height - 28) // 4 + 1",
        "(width - 28) // 4 + 1",
    ]


@pytest.mark.parametrize("model", [GATED, POKED["one dimension"][0], POKED["padding"][0], RESAMPLED["linear"]])
def test_what_is_read_is_what_was_written(model: onnx.ModelProto) -> None:
    conversion = onnx_fcn.convert(model, validate=False)
    assert read_geometry(conversion.to_proto()) == conversion.report.geometry


def test_external_data_has_the_same_geometry(tmp_path: Path) -> None:
    for external in (False, True):
        onnx_fcn.convert(FIXTURES / "digits_padded.onnx", tmp_path / f"{external}.onnx", external_data=external)
    assert read_geometry(tmp_path / "True.onnx") == read_geometry(tmp_path / "False.onnx")


def test_stale_and_foreign_metadata_is_not_believed(digits: tuple[onnx_fcn.Conversion, Path]) -> None:
    with pytest.raises(ModelError, match="onnx_fcn did not convert it"):
        read_geometry(FIXTURES / "digits_unpadded.onnx")
    model = onnx.load(digits[1])
    pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
    next(a for a in pool.attribute if a.name == "strides").ints[:] = [1, 1]
    with pytest.raises(ModelError, match="belongs to another graph"):
        read_geometry(model)
    model = onnx.load(digits[1])
    next(e for e in model.metadata_props if e.key == "onnx_fcn.format").value = "99"
    with pytest.raises(ModelError, match="in format 99"):
        read_geometry(model)
    model = onnx.load(digits[1])
    next(e for e in model.metadata_props if e.key == "onnx_fcn.output.scores").value = "{}"
    with pytest.raises(ModelError, match="cannot be read"):
        read_geometry(model)


def test_outputs_of_one_formula_share_its_name() -> None:
    model = law.model("f = Flatten (x)  y = Gemm (f, w)  z = Gemm (f, v)", outputs="y, z", w=(72, 5), v=(72, 2))
    conversion = onnx_fcn.convert(model, input_size=(4, 3), validate=False)
    dims = [[d.dim_param for d in o.type.tensor_type.shape.dim[2:]] for o in conversion.to_proto().graph.output]
    assert dims == [["height - 3", "width - 2"]] * 2
    geometry = conversion.report.geometry
    assert isinstance(geometry, Geometry)
    assert geometry.exactness == {"y": "exact", "z": "exact"}
    assert list(itertools.chain(*(a.formulas() for a in geometry.outputs.values()))) == dims[0] + dims[1]


# Cells that do not know where the image ends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pads", "strides", "inner"),
    [
        ("pads = [1, 1, 1, 1]", [2, 2], (1, 6)),  # cells 1 … 5 of an image of 13
        ("pads = [0, 0, 2, 2]", [1, 1], (0, 11)),
        ("pads = [0, 0, 0, 0]", [3, 3], (0, 4)),
    ],
)
def test_inner_cells_see_no_padding(pads: str, strides: list[int], inner: tuple[int, int]) -> None:
    model = law.model(
        f"y = Conv <{pads}, strides = {strides}> (x, k)",
        image="float[N,1,13,13] x",
        k=(1, 1, 3, 3),
        outputs="float[N,1,A,B] y",
    )
    answers = onnx_fcn.inspect(model).geometry.of()
    assert [(i.front, i.behind(13)) for i in answers.inner] == [inner, inner]
    interior = answers.grid(13, 13).interior
    assert interior.sum() == (inner[1] - inner[0]) ** 2


def test_padding_behind_a_crop_is_no_part_of_the_image() -> None:
    """The field lies within the window, and yet the first answer sees a zero that a larger image would not have."""
    model = law.model(
        "a = Slice (x, starts, ends, axes)  b = Conv <pads = [1, 1, 1, 1]> (a, k)  f = Flatten (b)  y = MatMul (f, w)",
        image="float[N,1,12,12] x",
        starts=[2, 2],
        ends=[-2, -2],
        axes=[2, 3],
        k=(1, 1, 3, 3),
        w=(64, 5),
    )
    report = onnx_fcn.inspect(model)
    assert report.geometry.of().exactness == "padded"
    assert report.geometry.of().field[0].start >= 0


MEETING = (
    "r = Relu (x)  a = Conv <{}, strides = [2, 2]> (r, k)  b = Conv <{}, strides = [2, 2]> (r, v)  c = Add (a, b)  "
)


@pytest.mark.parametrize(
    "pads",
    [('auto_pad = "SAME_UPPER"',) * 2, ("pads = [0, 0, 1, 1]", "pads = [0, 0, 0, 0]")],
    ids=["auto_pad", "explicit"],
)
@pytest.mark.parametrize(
    "head", ["m = GlobalAveragePool (c)  f = Flatten (m)", "f = Flatten (c)"], ids=["pooled", "flat"]
)
def test_branches_that_meet_at_some_sizes_alone_run_at_every_size(pads: tuple[str, str], head: str) -> None:
    """A 3×3/2 convolution beside a 1×1/2 shortcut, as TensorFlow pads them: ⌊n/2⌋ cells beside ⌈n/2⌉."""
    model = law.model(
        MEETING.format(*pads) + f"{head}  y = MatMul (f, w)",
        image="float[N,2,16,16] x",
        k=(3, 2, 3, 3),
        v=(3, 2, 1, 1),
        w=(3 if "m" in head else 192, 5),
    )
    conversion = onnx_fcn.convert(model)
    run = law.session(conversion.to_proto())
    for more in range(10):
        size = (16 + more, 25 - more)
        scores = run({"x": law.random("image", 1, 2, *size).astype(np.float32)})[0]
        assert scores.shape[2:] == conversion.grid(*size).shape


@pytest.mark.parametrize("opset", [8, 9])
def test_branches_are_cropped_at_run_time_from_opset_9_on(opset: int) -> None:
    """Slice takes operands from opset 10 on; in opset 9 a Gather crops."""
    body = MEETING.format('auto_pad = "SAME_UPPER"', 'auto_pad = "SAME_UPPER"') + "f = Flatten (c)  y = Gemm (f, w, d)"
    model = law.model(body, image="float[N,2,16,16] x", opset=opset, k=(3, 2, 3, 3), v=(3, 2, 1, 1), w=(192, 5), d=(5,))
    if opset == 8:
        with pytest.raises(
            onnx_fcn.UnsupportedModel,
            match=r"equally many cells at the native size only.*requires opset 9.*raise the opset",
        ):
            onnx_fcn.convert(model)
        return
    conversion = onnx_fcn.convert(model)
    run = law.session(conversion.to_proto())
    assert "Gather" in {n.op_type for n in conversion.to_proto().graph.node}
    for more in range(6):
        scores = run({"x": law.random("image", 2, 2, 16 + more, 25 - more).astype(np.float32)})[0]
        assert scores.shape[2:] == conversion.grid(16 + more, 25 - more).shape


@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_windows_that_reach_beyond_the_image_are_said(ceil_mode: int) -> None:
    """No padding reaches their answers, and no crop has them."""
    pooled = f"MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = {ceil_mode}> (c)"
    model = law.model(
        f"c = Conv (x, k)  p = {pooled}  f = Flatten (p)  y = MatMul (f, w)",
        image="float[N,3,10,10] x", k=(4, 3, 3, 3), w=(64, 5),
    )  # fmt: skip
    report = onnx_fcn.convert(model).report
    grid = report.geometry.grid(11, 11)
    assert (grid.answers.exactness, grid.shape) == ("exact", (1 + ceil_mode,) * 2)
    assert (min(grid.remainder) < 0, int(grid.interior.sum())) == (bool(ceil_mode), 1)
    assert [c.partition(":")[0] for c in report.caveats] == ["'p' rounds up (ceil_mode)"] * ceil_mode
