"""Today's networks in torch, with the layers and shapes of torchvision's and random weights, and their exports.

They are for measuring: what a file contains and what its layers cost do not depend on the weights.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "WINDOW", "Classifier", "build", "export"]

CLASSES, WINDOW = 1000, 224


class Sum(nn.Module):
    """A residual block: what it computes, added to a shortcut."""

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.shortcut, self.last = inner, shortcut or nn.Identity(), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x) + self.shortcut(x))


class Gate(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.of = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.of(x))


class Concat(nn.Module):
    """A dense layer: its new channels beside those that it read."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


class Classifier(nn.Module):
    """A trunk, and a head on its features."""

    def __init__(self, trunk: nn.Module, pool: int, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.pool, self.head = trunk, nn.AdaptiveAvgPool2d(pool), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.trunk(x)), 1))


def conv(width: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU):
    """Convolution, batch normalisation and activation."""
    layers = [nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


def resnet(blocks: tuple[int, ...], *, bottleneck: bool) -> Classifier:
    layers, width, factor = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64, 4 if bottleneck else 1
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        for block in range(count):
            stride, out = 2 if stage and not block else 1, inner * factor
            parts = (
                [conv(width, inner, 1), conv(inner, inner, 3, stride), conv(inner, out, 1, act=None)]
                if bottleneck
                else [conv(width, inner, 3, stride), conv(inner, out, 3, act=None)]
            )
            shortcut = conv(width, out, 1, stride, act=None) if stride > 1 or width != out else None
            layers.append(Sum(nn.Sequential(*parts), shortcut, nn.ReLU()))
            width = out
    return Classifier(nn.Sequential(*layers), 1, nn.Linear(width, CLASSES))


def vgg11() -> Classifier:
    layers: list[nn.Module] = []
    width = 3
    for out, count in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
        for _ in range(count):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES)]
    return Classifier(nn.Sequential(*layers), 7, nn.Sequential(*dense))


def inverted(width: int, out: int, expand: int, kernel: int, stride: int, act: type[nn.Module], gate: int) -> nn.Module:
    """An inverted residual block, with a gate of so many channels if it has one."""
    wide = width * expand
    parts = [conv(width, wide, 1, act=act)] if expand > 1 else []
    parts.append(conv(wide, wide, kernel, stride, groups=wide, act=act))
    parts += [Gate(wide, gate)] if gate else []
    inner = nn.Sequential(*parts, conv(wide, out, 1, act=None))
    return Sum(inner) if stride == 1 and width == out else inner


def mobilenet_v2() -> Classifier:
    layers, width = [conv(3, 32, 3, 2, act=nn.ReLU6)], 32
    for expand, out, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ):  # fmt: skip
        for block in range(count):
            layers.append(inverted(width, out, expand, 3, stride if not block else 1, nn.ReLU6, 0))
            width = out
    layers.append(conv(320, 1280, 1, act=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), 1, nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES)))


def efficientnet_b0() -> Classifier:
    layers, width = [conv(3, 32, 3, 2, act=nn.SiLU)], 32
    for expand, out, kernel, stride, count in (
        (1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3), (6, 112, 5, 1, 3), (6, 192, 5, 2, 4),
        (6, 320, 3, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            layers.append(inverted(width, out, expand, kernel, stride if not block else 1, nn.SiLU, width // 4))
            width = out
    layers.append(conv(320, 1280, 1, act=nn.SiLU))
    return Classifier(nn.Sequential(*layers), 1, nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES)))


def densenet121() -> Classifier:
    def before(width: int, out: int, kernel: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)]

    layers, width = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            layers.append(Concat(nn.Sequential(*before(width, 128, 1), *before(128, 32, 3))))
            width += 32
        if stage < 3:
            layers += [*before(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), 1, nn.Linear(width, CLASSES))


ARCHITECTURES: dict[str, Callable[[], Classifier]] = {
    "ResNet-18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "ResNet-50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "VGG-11": vgg11,
    "MobileNetV2": mobilenet_v2,
    "EfficientNet-B0": efficientnet_b0,
    "DenseNet-121": densenet121,
}


def build(name: str) -> Classifier:
    """A network in evaluation mode, always with the same weights; statistics that keep activations of order one."""
    torch.manual_seed(0)
    network = ARCHITECTURES[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # of one batch: its own statistics
    with torch.no_grad():
        network(torch.randn(4, 3, WINDOW, WINDOW))
    return network.eval()


def export(name: str, path: Path, *, dynamo: bool) -> Path:
    """Export a network, its batch dynamic."""
    image, how = torch.zeros(2, 3, WINDOW, WINDOW), {"input_names": ["image"], "output_names": ["scores"]}
    if dynamo:
        how |= {"dynamic_shapes": {"x": {0: "batch"}}, "external_data": False, "verbose": False}
    else:
        how["dynamic_axes"] = {"image": {0: "batch"}, "scores": {0: "batch"}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(build(name), (image,), str(path), dynamo=dynamo, **how)
    return path
