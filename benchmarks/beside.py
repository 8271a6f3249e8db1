"""One large image beside what people do instead: the network made dense by hand in torch, its crops there, and 8 bits.

Made dense by hand means: the pooling over the window slides, and dense layers become convolutions. Everything runs in
turns, in one process, with as many threads. Crops are cut in advance, and one batch stands for all.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import onnx_fcn
from benchmarks import Record, Say
from benchmarks.architectures import WINDOW, Classifier, build, export
from benchmarks.dense import STRIDE, Run, crops_of, interleaved, session_of

__all__ = ["NETWORKS", "beside"]

NETWORKS = ("ResNet-18", "MobileNetV2", "VGG-11")
BATCH = 32  # crops at once
IMAGES = 4  # that 8 bits are calibrated on, and as many to compare


def by_hand(network: Classifier) -> nn.Module:
    """The same network with an answer for every window: (N, C, H, W) → (N, classes, rows, columns)."""
    cells = WINDOW // STRIDE
    pooled = network.pool.output_size == 1
    layers: list[nn.Module] = [network.trunk, *([nn.AvgPool2d(cells, 1)] if pooled else [])]
    kernel = 1 if pooled else cells
    head = network.head if isinstance(network.head, nn.Sequential) else [network.head]
    for layer in head:
        if isinstance(layer, nn.Linear):
            sliding = nn.Conv2d(layer.in_features // kernel**2, layer.out_features, kernel)
            sliding.weight.data = layer.weight.data.view_as(sliding.weight)
            sliding.bias = layer.bias
            layer, kernel = sliding, 1
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def beside(folder: Path, network: str, sizes: Sequence[int], rounds: int, say: Say) -> Iterator[Record]:
    """One image of each size in torch and in onnxruntime: a record for each."""
    original = export(network, folder / "original.onnx", dynamo=False)
    converted, fast = folder / "converted.onnx", folder / "fast.onnx"
    onnx_fcn.convert(original, converted, validate=False)
    say(f"{network}: 8 bits")
    quantized = _quantized(converted, fast, folder / "images")
    model = build(network)
    dense = by_hand(model)
    for size in sizes:
        image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
        pixels = torch.from_numpy(image)
        run = session_of(converted)(image)
        want = run()
        with torch.inference_mode():
            apart = float(np.abs(dense(pixels).numpy() - want).max() / np.abs(want).max())
        windows = prod(want.shape[2:])
        crops = torch.from_numpy(crops_of(image, min(BATCH, windows)))
        runs: dict[str, Run] = {
            "onnxruntime": run,
            "torch": _in_torch(dense, pixels),
            "channels last": _in_torch(_channels_last(network), pixels.to(memory_format=torch.channels_last)),
        }
        if (compiled := _compiled(dense, pixels)) is not None:
            runs["compiled"] = compiled
        if quantized is not None:
            runs["8 bits"] = session_of(fast)(image)
        times = interleaved(runs, rounds, f"{network}, {size}×{size}", say)
        each = interleaved({"crops": _in_torch(model, crops)}, 1, f"{network}: {len(crops)} crops", say)["crops"]
        yield {
            "network": network,
            "size": size,
            "windows": windows,
            "seconds": times | {"crops": each * windows / len(crops)},
            "apart": apart,
            "agreement": quantized,
            "rounds": rounds,
        }
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    gc.collect()


def _in_torch(network: nn.Module, image: Tensor) -> Run:
    def run() -> Tensor:
        with torch.inference_mode():
            return network(image)

    return run


def _channels_last(network: str) -> nn.Module:
    return by_hand(build(network)).to(memory_format=torch.channels_last)


def _compiled(network: nn.Module, image: Tensor) -> Run | None:
    """The network compiled by torch; None where it has no compiler."""
    run = _in_torch(torch.compile(network), image)
    try:
        run()
    except Exception:  # of any of its back ends
        return None
    return run


def _quantized(converted: Path, fast: Path, images: Path) -> float | None:
    """Write the file in 8 bits; the share of cells with the same best class, None if it is refused."""
    images.mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    for k in range(2 * IMAGES):
        np.save(images / f"{k}.npy", random.integers(0, 256, (448, 512, 3), np.uint8))
    try:
        return onnx_fcn.quantize(converted, images, fast, agreement=0.5).agreement
    except onnx_fcn.ValidationError:
        return None
