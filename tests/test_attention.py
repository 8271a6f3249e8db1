"""Transformers and mixers as torch's exporters write them: the refusal names what mixes the positions, and only that.

What comes before it, such as an embedding's Add, the Concat of a class token or a table of words, is refused by itself
in a network without attention. These networks are large enough for that: their windows cannot become channels.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import wording
from exports import quiet
from torch import Tensor, nn

import onnx_fcn
from onnx_fcn import UnsupportedModel

WIDTH = 208  # with 14×14 positions more channels than a window may become


class Block(nn.Module):
    """Attention between positions, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.three, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        images, positions, _ = x.shape
        shape = (images, positions, 3, 2, WIDTH // 2)
        q, k, v = self.three(self.norm(x)).reshape(shape).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) * WIDTH**-0.5, -1) @ v
        joined: Tensor = x + self.out(a.transpose(1, 2).reshape(images, positions, WIDTH))
        return joined


class Patches(nn.Module):
    """Patches of 16×16 pixels as positions: (N, 3, 224, 224) -> (N, 196, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.conv(x).flatten(2).transpose(1, 2)
        return patches


class VisionTransformer(nn.Module):
    def __init__(self, *, token: bool) -> None:
        super().__init__()
        self.patches, self.block, self.head = Patches(), Block(), nn.Linear(WIDTH, 5)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if token else None
        self.places = nn.Parameter(torch.randn(1, 196 + token, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        scores: Tensor = self.head(self.block(x + self.places)[:, 0])
        return scores


class Windows(nn.Module):
    """Attention within windows of 7×7 positions, shifted: Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block, self.head = Patches(), Block(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.patches(x).reshape(-1, 14, 14, WIDTH), (-3, -3), (1, 2))
        x = x.reshape(-1, 2, 7, 2, 7, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 49, WIDTH)
        x = self.block(x).reshape(-1, 2, 2, 7, 7, WIDTH).permute(0, 1, 3, 2, 4, 5)
        scores: Tensor = self.head(x.reshape(-1, 196, WIDTH).mean(1))
        return scores


class Words(nn.Module):
    """A classifier of texts: BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.block, self.head = nn.Embedding(50, WIDTH), Block(), nn.Linear(WIDTH, 5)
        self.places = nn.Parameter(torch.randn(1, 12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.block(self.table(x) + self.places)[:, 0])
        return scores


class Mixer(nn.Module):
    """A dense layer along positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = Patches(), nn.Linear(196, 196), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        scores: Tensor = self.head(x.mean(1))
        return scores


ATTENTION = "multiplies positions with positions (attention"
IMAGE = torch.zeros(1, 3, 224, 224)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "a vision transformer": (lambda: VisionTransformer(token=True), IMAGE, ATTENTION),
    "one without a class token": (lambda: VisionTransformer(token=False), IMAGE, ATTENTION),
    "one with windows": (Windows, IMAGE, ATTENTION),
    "a transformer of words": (Words, torch.zeros(2, 12, dtype=torch.long), ATTENTION),
    "a mixer": (Mixer, IMAGE, "mixes the positions of a window"),
}


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize(("network", "image", "says"), NETWORKS.values(), ids=NETWORKS.keys())
def test_what_mixes_positions_is_the_cause(
    network: Callable[[], nn.Module], image: Tensor, says: str, dynamo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with quiet(), contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        opset, path = 18 if dynamo else 17, tmp_path / "model.onnx"
        torch.onnx.export(network().eval(), (image,), path, opset_version=opset, dynamo=dynamo, external_data=False)
    with pytest.raises(UnsupportedModel) as refused:
        onnx_fcn.convert(path)
    (cause,) = refused.value.diagnostics
    assert (cause.op, cause.reason[: len(says)]) == ("MatMul", says)
    assert wording.faults(str(refused.value), outputs=1, given=()) == []
    explanation = onnx_fcn.explain(path, cause.node)
    assert explanation.part == "refused"
    assert cause in explanation.causes
