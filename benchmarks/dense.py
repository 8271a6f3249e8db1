"""What a fully convolutional network gains in onnxruntime: one large image, against its windows as batched crops.

The limit is the ratio of floating-point operations: the windows share the trunk's work. Weights are random; both
models are of one process, run in turns, and compared by their medians. Crops are cut in advance, and one batch stands
for all: windows ÷ batch × its time. `stride` is about answers in between.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import onnx
import onnxruntime

import onnx_fcn
from benchmarks import Record, Say
from benchmarks.files import alexnet, resnet50, vgg16, write
from onnx_fcn.model.document import Document
from onnx_fcn.model.sessions import extract
from onnx_fcn.walk.cut import cuts_of
from onnx_fcn.walk.images import Request
from onnx_fcn.walk.lift import lift

__all__ = ["NETWORKS", "STRIDE", "Run", "crops_of", "dense", "interleaved", "native", "session_of", "stride"]

NETWORKS = {"AlexNet": alexnet, "VGG-16": vgg16, "ResNet-50": resnet50}
WINDOW, STRIDE = 224, 32  # of all of them
BATCHES = (1, 8, 32)
OUTPUT_STRIDE = 8  # pixels between answers, where a finer grid is asked for
CAFFE = WINDOW + 7 * STRIDE  # an image with 8×8 windows, as in Caffe's notebook on net surgery

Run = Callable[[], object]


def dense(folder: Path, network: str, sizes: Sequence[int], rounds: int, say: Say) -> Iterator[Record]:
    """One image of each size against its windows: a record for each."""
    original = write(folder / "original.onnx", NETWORKS[network])
    converted = _converted(original, "conv")
    fcn, crops = session_of(converted), session_of(original)
    random = np.random.default_rng(0)
    for size in sizes:
        image = random.standard_normal((1, 3, size, size), np.float32)
        windows = prod(fcn(image)().shape[2:])
        batches = {b: crops_of(image, b) for b in BATCHES if b <= windows}
        runs = {"dense": fcn(image)} | {str(b): crops(batch) for b, batch in batches.items()}
        times = interleaved(runs, rounds, f"{network}, {size}×{size}", say)
        each = {b: times[str(b)] * windows / b for b in batches}
        cost = onnx_fcn.inspect(original, sizes=[size]).costs[-1]
        assert cost.macs
        assert cost.ratio
        flops = 2 * cost.macs
        yield {
            "network": network,
            "size": size,
            "windows": windows,
            "seconds": times["dense"],
            "gflops": flops / times["dense"] / 1e9,
            "limit": cost.ratio,
            "crops": {str(b): seconds for b, seconds in each.items()},
            "speedup": {str(b): seconds / times["dense"] for b, seconds in each.items()},
            "of_one": times["dense"] / times["1"],
            "rounds": rounds,
        }
    _remove(original, converted)


def native(folder: Path, network: str, batches: Sequence[int], rounds: int, say: Say) -> Iterator[Record]:
    """The whole network at its native size, against its original: a record for each batch."""
    original = write(folder / "original.onnx", NETWORKS[network])
    paths = {"original": original, "conv": _converted(original, "conv"), "folded": _converted(original, "folded")}
    sessions = {name: session_of(path) for name, path in paths.items()}
    random = np.random.default_rng(0)
    for batch in batches:
        images = random.standard_normal((batch, 3, WINDOW, WINDOW), np.float32)
        runs = {name: session(images) for name, session in sessions.items()}
        times = interleaved(runs, rounds, f"{network}, batch {batch}", say)
        ratios = {head: times[head] / times["original"] for head in ("conv", "folded")}
        yield {"network": network, "batch": batch, "seconds": times, "ratio": ratios, "rounds": rounds}
    _remove(*paths.values())


def stride(folder: Path, network: str, sizes: Sequence[int], rounds: int, say: Say) -> Iterator[Record]:
    """Answers every 8 pixels: by dilation, by fragments, and by the plain network on shifted images.

    Fragments (space to batch): wherever the plain network would stride beyond 8 pixels, all shifts of its map go on as
    a batch. Here they are at their best, since the answers are not put in order again.
    """
    original = write(folder / "original.onnx", NETWORKS[network])
    plain, dense = _converted(original, "conv"), folder / "dense.onnx"
    onnx_fcn.convert(original, dense, output_stride=OUTPUT_STRIDE, validate=False)
    parts = _parts(original, plain)
    run, run_dense, run_parts = session_of(plain), session_of(dense), [session_of(part) for part in parts]
    random = np.random.default_rng(0)
    shifts = range(0, STRIDE, OUTPUT_STRIDE)
    for size in sizes:
        image = random.standard_normal((1, 3, size, size), np.float32)
        passes = [run(np.ascontiguousarray(image[..., y:, x:])) for y in shifts for x in shifts]

        def shifted(passes: Sequence[Callable[[], np.ndarray]] = passes) -> list[np.ndarray]:
            return [run() for run in passes]

        def fragments(image: np.ndarray = image) -> np.ndarray:
            found = run_parts[0](image)()
            for part in run_parts[1:]:
                height, width = (n - 1 for n in found.shape[2:])
                found = np.concatenate([found[..., y : y + height, x : x + width] for y in (0, 1) for x in (0, 1)])
                found = part(found)()
            return found

        runs: dict[str, Run] = {
            "dilated": run_dense(image), "fragments": fragments, "shifted": shifted, "plain": run(image)
        }  # fmt: skip
        times = interleaved(runs, rounds, f"{network}, {size}×{size}, every {OUTPUT_STRIDE} pixels", say)
        answers = {"dilated": run_dense(image)().size, "fragments": fragments().size}
        answers["shifted"] = sum(part.size for part in shifted())
        each = {name: times[name] / count for name, count in answers.items()}  # fragments lose some at the border
        yield {
            "network": network,
            "size": size,
            "stride": OUTPUT_STRIDE,
            "answers": prod(run_dense(image)().shape[2:]),
            "seconds": times,
            "speedup": {name: each[name] / each["dilated"] for name in ("fragments", "shifted")},
            "of_plain": times["dilated"] / times["plain"],
            "rounds": rounds,
        }
    _remove(original, plain, dense, *parts)


def _parts(original: Path, plain: Path) -> list[Path]:
    """The plain network, cut at the last maps of 8 pixels a cell, of 16, and so on, that all answers come from."""
    walk = lift(Document.open(original), Request())
    maps = {int(cut.fact.space[0].stride): cut.fact.map for cut in reversed(list(cuts_of(walk)))}
    model = onnx.load(plain)
    names = [model.graph.input[0].name, *(maps[s] for s in sorted(maps) if OUTPUT_STRIDE <= s < STRIDE)]
    found = []
    for k, (first, last) in enumerate(itertools.pairwise([*names, model.graph.output[0].name])):
        part = extract(model, [first], [last])
        tensor = part.graph.input[0]
        tensor.CopyFrom(onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [None] * 4))
        for node in part.graph.node:
            node.input[:] = ["image" if name == first else name for name in node.input]
        found.append(original.with_name(f"part{k}.onnx"))
        onnx.save(part, found[-1])
    return found


def _converted(original: Path, head: Literal["conv", "folded"]) -> Path:
    path = original.with_name(f"{head}.onnx")
    onnx_fcn.convert(original, path, head=head, validate=False)
    return path


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def session_of(path: Path) -> Callable[[np.ndarray], Callable[[], np.ndarray]]:
    """A model: given an image, what runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads would slow the other model
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: lambda: session.run(None, {"image": image})[0]


def crops_of(image: np.ndarray, batch: int) -> np.ndarray:
    """The first windows of an image, as a batch."""
    windows = np.lib.stride_tricks.sliding_window_view(image[0], (WINDOW, WINDOW), (1, 2))[:, ::STRIDE, ::STRIDE]
    _, rows, columns, *_ = windows.shape
    return np.stack([windows[:, k // columns, k % columns] for k in range(min(batch, rows * columns))])


def interleaved(runs: Mapping[str, Run], rounds: int, what: str, say: Say) -> dict[str, float]:
    """Median seconds of each, all in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for name in 2 * order:  # onnxruntime plans its memory in the first run, and takes it in the second
        runs[name]()
    for k in range(rounds):
        say(f"{what}: round {k + 1} of {rounds}")
        for name in order:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
        order.reverse()  # nobody always follows the same one
    return {name: median(values) for name, values in seconds.items()}
