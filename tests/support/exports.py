"""Networks as their authors published them, as torch's exporters and as Keras's write them, for tests from end to end.

    export(alexnet(), tmp_path / "alexnet.onnx", 224, dynamo=False, opset=13)

Each network is in eval mode, its weights are random but the same every time; nothing is downloaded. `scaled` sees to it
that answers are of order one and differ from window to window, however deep the network: with weights as torch leaves
them, all windows look alike some twenty layers on, and a wrong kernel would pass for a right one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

# Sizes of an image: of each of its axes, or one number for a square.
Size = int | tuple[int, ...]


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    size: Size,
    *,
    dynamo: bool,
    opset: int,
    dynamic_batch: bool = True,
    dropout: bool = False,
) -> Path:
    """Write a network as ONNX, without a word: `image` (N, C, height, width …) in, `scores` out.

    dynamo: through torch.export, opset 18 or later; else through torchscript, opset 9 to 20.
    dynamic_batch: N is free; else it is 1.
    dropout: a Dropout before each dense layer; torch's exporters drop them in eval mode, other writers keep them.
    """
    options: dict[str, Any] = {}
    if dynamic_batch and dynamo:
        options["dynamic_shapes"] = [{0: torch.export.Dim("batch")}]
    elif dynamic_batch:
        options["dynamic_axes"] = {"image": {0: "batch"}, "scores": {0: "batch"}}
    image = noise(model, 2 if dynamic_batch else 1, size)  # torch.export takes a batch of 1 for a constant
    with quiet():
        torch.onnx.export(
            model,
            (image,),
            path,
            input_names=["image"],
            output_names=["scores"],
            opset_version=opset,
            dynamo=dynamo,
            external_data=False,
            verbose=False,
            **options,
        )
    if dropout:
        insert_dropout(path)
    return Path(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """At each call, both exporters warn of changes to come in torch, and dynamo's logs that torchvision is missing.

    torchscript's warns too where a layer reads the size of its map, and of constants that it does not fold.
    """
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
            warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", "Constant folding", UserWarning)
            warnings.filterwarnings("ignore", "This model contains a squeeze operation", UserWarning)
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        registration.setLevel(level)


def insert_dropout(path: str | os.PathLike[str]) -> None:
    """Put a Dropout before every dense layer of a file."""
    model = onnx.load(path)
    nodes = []
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            kept = f"{node.output[0]}_dropout"
            nodes.append(helper.make_node("Dropout", [node.input[0]], [kept], name=kept))
            node.input[0] = kept
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def noise(model: nn.Module, count: int, size: Size) -> Tensor:
    """Images that this model takes: (count, C, height, width), or with another number of axes."""
    space = (size, size) if isinstance(size, int) else size
    channels = next(model.parameters()).shape[1]
    return torch.randn(count, channels, *space, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def scaled(build: Callable[[], nn.Module], size: Size) -> nn.Module:
    """Build a network and scale each of its layers in turn, so that their outputs on noise have deviation 1.

    Channels of convolutions are centred too, for what stands out of a mean shrinks with depth: data-dependent
    initialisation (Krähenbühl et al., 2016). Batch normalisations take the statistics of the same noise, and their own
    scales and shifts at random, as training would leave them.
    """

    def scale(layer: nn.Module, _: object, y: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            mean = y.mean((0, 2, 3))
            layer.bias -= mean
            y = y - mean[:, None, None]
        deviation = y.std()
        for parameter in layer.parameters():
            parameter /= deviation
        return y / deviation

    torch.manual_seed(0)
    model = build().eval()
    handles = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_hook(scale))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.train().momentum = 1
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    model(noise(model, 4, size))
    for handle in handles:
        handle.remove()
    return model.eval()


def lenet() -> nn.Module:
    """LeNet-5 (LeCun et al., 1998), with today's activations and pools; for 32×32."""
    return scaled(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        ),
        32,
    )  # fmt: skip


def alexnet() -> nn.Module:
    """AlexNet ("One weird trick", Krizhevsky, 2014), as in torchvision; for 224×224."""
    return scaled(
        lambda: nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d(6), nn.Flatten(),
            nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(),
            nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
        ),
        224,
    )  # fmt: skip


def alexnet_small() -> nn.Module:
    """AlexNet as it was first published (Krizhevsky et al., 2012), with an eighth of its width; for 227×227.

    With two groups, and local response normalisation. Its α is larger than theirs, on whose images sums of squares are
    larger: here it would hardly show.
    """
    norm = {"size": 5, "alpha": 1.0, "beta": 0.75, "k": 2.0}
    return scaled(
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 11, stride=4), nn.ReLU(), nn.LocalResponseNorm(**norm), nn.MaxPool2d(3, 2),
            nn.Conv2d(12, 32, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(**norm), nn.MaxPool2d(3, 2),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(48, 32, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Flatten(), nn.Linear(1152, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 100),
        ),
        227,
    )  # fmt: skip


def vgg16() -> nn.Module:
    """VGG-16 (Simonyan and Zisserman, 2014, configuration D); for 224×224; 138 million weights."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        channels = 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(),
            nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 1000),
        )  # fmt: skip

    return scaled(build, 224)


def conv_bn(channels: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, and its batch normalisation: what every later network is built of."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


def pooled(channels: int, classes: int) -> list[nn.Module]:
    """The head of a network with global pooling."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


class Residual(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: list[nn.Module], shortcut: list[nn.Module]) -> None:
        super().__init__()
        self.body, self.shortcut = nn.Sequential(*body), nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """Channels gated by what the whole image holds (Hu et al., 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


def basic(channels: int, width: int, stride: int) -> list[nn.Module]:
    """Two 3×3: the body of a shallow ResNet's block."""
    return [*conv_bn(channels, width, 3, stride), nn.ReLU(), *conv_bn(width, width, 3)]


def bottleneck(channels: int, width: int, stride: int) -> list[nn.Module]:
    """1×1, 3×3, 1×1: the body of a deep ResNet's block."""
    narrow = width // 4
    return [
        *conv_bn(channels, narrow), nn.ReLU(), *conv_bn(narrow, narrow, 3, stride), nn.ReLU(), *conv_bn(narrow, width)
    ]  # fmt: skip


def gated(channels: int, width: int, stride: int) -> list[nn.Module]:
    """A basic body with squeeze and excitation."""
    return [*basic(channels, width, stride), SqueezeExcite(width)]


def resnet(
    body: Callable[[int, int, int], list[nn.Module]], stages: list[tuple[int, int]], stem: int, classes: int
) -> nn.Module:
    """A ResNet (He et al., 2015) of `stages` (channels, blocks)."""
    layers = [*conv_bn(3, stem, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    channels = stem
    for stage, (width, count) in enumerate(stages):
        for block in range(count):
            stride = 2 if stage and not block else 1
            shortcut = [] if channels == width else conv_bn(channels, width, 1, stride)
            layers.append(Residual(body(channels, width, stride), shortcut))
            channels = width
    return nn.Sequential(*layers, *pooled(channels, classes))


def resnet18() -> nn.Module:
    """ResNet-18; for 224×224, stride 32."""
    return scaled(lambda: resnet(basic, [(64, 2), (128, 2), (256, 2), (512, 2)], 64, 1000), 224)


def resnet50() -> nn.Module:
    """ResNet-50; for 224×224, stride 32."""
    return scaled(lambda: resnet(bottleneck, [(256, 3), (512, 4), (1024, 6), (2048, 3)], 64, 1000), 224)


def se_resnet_small() -> nn.Module:
    """A small SE-ResNet; for 64×64, stride 16. Its gates see the whole image: they are context."""
    return scaled(lambda: resnet(gated, [(16, 1), (32, 1), (64, 1)], 16, 10), 64)


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1×1 and 3×3 side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al., 2016); for 224×224, stride 16. No dense layer, and pools that overhang."""
    return scaled(
        lambda: nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
            nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ),
        224,
    )  # fmt: skip


class Inverted(nn.Module):
    """Expand, depthwise, project; added to its input where the shapes agree."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        expand = [*conv_bn(channels, wide), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(*expand, *conv_bn(wide, wide, 3, stride, wide), nn.ReLU6(), *conv_bn(wide, width))
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler et al., 2018); for 224×224, stride 32."""

    def build() -> nn.Module:
        layers = [*conv_bn(3, 32, 3, 2), nn.ReLU6()]
        channels = 32
        # Table 2 of the paper: expansion, channels, blocks, stride of the first
        for expansion, width, count, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
        ):  # fmt: skip
            for block in range(count):
                layers.append(Inverted(channels, width, 1 if block else stride, expansion))
                channels = width
        return nn.Sequential(*layers, *conv_bn(320, 1280), nn.ReLU6(), *pooled(1280, 1000))

    return scaled(build, 224)


class GatedInverted(nn.Module):
    """Expand, depthwise, squeeze and excite, project, with SiLU; added to its input where the shapes agree."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * 4
        self.body = nn.Sequential(
            *conv_bn(channels, wide), nn.SiLU(), *conv_bn(wide, wide, kernel, stride, wide), nn.SiLU(),
            SqueezeExcite(wide), *conv_bn(wide, width),
        )  # fmt: skip
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def efficientnet_small() -> nn.Module:
    """A small EfficientNet (Tan and Le, 2019), gated inside its inverted blocks; for 64×64, stride 16."""
    return scaled(
        lambda: nn.Sequential(
            *conv_bn(3, 8, 3, 2), nn.SiLU(),
            GatedInverted(8, 12, 3, 2), GatedInverted(12, 12, 3, 1), GatedInverted(12, 16, 5, 2),
            GatedInverted(16, 24, 3, 2), GatedInverted(24, 24, 5, 1),
            *conv_bn(24, 64), nn.SiLU(), *pooled(64, 10),
        ),
        64,
    )  # fmt: skip


class Dense(nn.Module):
    """Normalise, activate, convolve, and keep the input beside the result."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, growth, 3, padding=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet_small() -> nn.Module:
    """A small DenseNet (Huang et al., 2016), whose normalisations fold into no convolution; for 64×64, stride 8."""
    growth = 8

    def block(channels: int) -> list[nn.Module]:
        return [Dense(channels + growth * layer, growth) for layer in range(3)]

    def transition(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]

    return scaled(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            *block(16), *transition(40), *block(20), *transition(44), *block(22),
            nn.BatchNorm2d(46), nn.ReLU(), *pooled(46, 10),
        ),
        64,
    )  # fmt: skip


class Shuffle(nn.Module):
    """Half of the channels pass, half are convolved, then both are interleaved (Ma et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            *conv_bn(half, half), nn.ReLU(), *conv_bn(half, half, 3, groups=half), *conv_bn(half, half), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        passed, convolved = x.chunk(2, 1)
        x = torch.cat([passed, self.body(convolved)], 1)
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def shufflenet_small() -> nn.Module:
    """A small ShuffleNetV2, whose shuffles reshape every map; for 64×64, stride 16."""
    return scaled(
        lambda: nn.Sequential(
            *conv_bn(3, 24, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
            Shuffle(24), Shuffle(24), *conv_bn(24, 48, 3, 2), nn.ReLU(),
            Shuffle(48), Shuffle(48), *conv_bn(48, 96, 3, 2), nn.ReLU(), *pooled(96, 10),
        ),
        64,
    )  # fmt: skip


def keras_style(path: str | os.PathLike[str], opset: int = 13) -> Path:
    """A channels-last classifier of 32×32 images as converters from TensorFlow write it before they optimise.

    `image` (N, 32, 32, 3) in, `scores` (N, 10) out; opset 9 or later. Every Conv and MaxPool stands between two
    Transposes, and what the first dense layer reads is n (h w c).
    """
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(*shape: int) -> str:
        fan_in = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        return constant(rng.normal(0, fan_in**-0.5, shape).astype(np.float32))

    def bias(width: int) -> str:
        return constant(rng.normal(0, 0.1, width).astype(np.float32))

    def constant(value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value, f"constant_{len(weights)}"))
        return weights[-1].name

    def node(op: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        output = output or f"{op.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def channels_first(op: str, x: str, *inputs: str, **attributes: object) -> str:
        x = node("Transpose", x, perm=[0, 3, 1, 2])
        return node("Transpose", node(op, x, *inputs, **attributes), perm=[0, 2, 3, 1])

    x = "image"
    for channels, width in ((3, 8), (8, 16)):
        x = node("Relu", channels_first("Conv", x, weight(width, channels, 3, 3), bias(width)))
        x = channels_first("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = node("Reshape", x, constant(np.array([-1, 6 * 6 * 16])))
    x = node("Relu", node("Add", node("MatMul", x, weight(6 * 6 * 16, 32)), bias(32)))
    x = node("Add", node("MatMul", x, weight(32, 10)), bias(10))
    node("Softmax", x, axis=1, output="scores")

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 32, 32, 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "keras_style", [image], [scores], weights)
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, path)
    return Path(path)
