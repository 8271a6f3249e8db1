"""Whole networks, from the exporter's file to the answers for a larger image.

Nothing here asks the package whether it is right. At the native size onnxruntime runs the original file; on a larger
image torch does what the law says: the trunk on all of it, then the head on every window of the map. For the trained
classifiers the task itself is the judge: every digit of a page is found, where it is and as what it is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import exports
import law
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

import onnx_fcn
from onnx_fcn import Check, Report

Session = Callable[[np.ndarray], np.ndarray]

#: Relative to the largest answer. Either engine differs from double precision by 2e-5 behind ResNet-50's 53 layers.
ROUNDING = 1e-4

#: Neighbouring windows differ by more than that many times: none passes for another.
DISTINCT = 100 * ROUNDING


@dataclass(frozen=True)
class Network:
    """What is known of a network in exports.py.

    Attributes:
        native: height and width of its images.
        stride: pixels between answers.
        window: cells of the last feature map that an answer sees, along each axis.
        larger: height and width of a larger image,
        answers: and its rows and columns of answers.
        head: what everything behind the last feature map becomes, as `written`.
        pads: does the trunk pad? Then crops of an image have other answers.
        context: reductions that see the whole image.
        rewritten: operators that the trunk reshapes its maps with and the converted one does not, since the size is in
            them: to shuffle channels, or to see them along an axis that slides.
    """

    native: int
    stride: int
    window: int
    larger: tuple[int, int]
    answers: tuple[int, int]
    head: str
    pads: bool = True
    context: int = 0
    rewritten: tuple[str, ...] = ()


NETWORKS = {
    "lenet": Network(
        32, 4, 5, (45, 66), (4, 9), "Conv 5×5 16→120, Relu, Conv 1×1 120→84, Relu, Conv 1×1 84→10", pads=False
    ),
    "alexnet": Network(
        224, 32, 6, (288, 352), (3, 5),
        "Dropout, Conv 6×6 256→4096, Relu, Dropout, Conv 1×1 4096→4096, Relu, Dropout, Conv 1×1 4096→1000",
    ),
    "alexnet_small": Network(
        227, 32, 6, (291, 355), (3, 5), "Conv 6×6 32→512, Relu, Conv 1×1 512→512, Relu, Conv 1×1 512→100",
        rewritten=("If", "Squeeze", "Unsqueeze"),
    ),
    "vgg16": Network(
        224, 32, 7, (256, 300), (2, 3),
        "Dropout, Conv 7×7 512→4096, Relu, Dropout, Conv 1×1 4096→4096, Relu, Dropout, Conv 1×1 4096→1000",
    ),
    "resnet18": Network(224, 32, 7, (256, 300), (2, 4), "AveragePool 7×7, Conv 1×1 512→1000"),
    "resnet50": Network(224, 32, 7, (256, 300), (2, 4), "AveragePool 7×7, Conv 1×1 2048→1000"),
    "squeezenet": Network(224, 16, 13, (240, 270), (2, 4), "AveragePool 13×13"),
    "mobilenet_v2": Network(224, 32, 7, (256, 300), (2, 4), "AveragePool 7×7, Conv 1×1 1280→1000"),
    "densenet_small": Network(64, 8, 8, (76, 93), (2, 4), "AveragePool 8×8, Conv 1×1 46→10"),
    "shufflenet_small": Network(64, 16, 4, (90, 120), (3, 5), "AveragePool 4×4, Conv 1×1 96→10",
                                rewritten=("Reshape", "Shape", "Transpose")),
    "se_resnet_small": Network(64, 16, 4, (90, 120), (3, 5), "AveragePool 4×4, Conv 1×1 64→10", context=3),
}  # fmt: skip

FAST = [
    ("lenet", "torchscript", 13), ("lenet", "dynamo", 18),
    ("alexnet", "torchscript", 9), ("alexnet", "torchscript", 17), ("alexnet", "dynamo", 18),
    ("alexnet_small", "torchscript", 9), ("alexnet_small", "torchscript", 17),
    ("resnet18", "torchscript", 13), ("resnet18", "dynamo", 18),
    ("squeezenet", "torchscript", 13),
    ("densenet_small", "torchscript", 13),
    ("shufflenet_small", "torchscript", 13), ("shufflenet_small", "dynamo", 18),
    ("se_resnet_small", "torchscript", 13), ("se_resnet_small", "dynamo", 18),
]  # fmt: skip
SLOW = [
    ("alexnet", "torchscript", 13),
    ("alexnet_small", "dynamo", 18),
    ("squeezenet", "dynamo", 18),
    ("mobilenet_v2", "torchscript", 13), ("mobilenet_v2", "dynamo", 18),
    ("densenet_small", "dynamo", 18),
    ("resnet50", "torchscript", 13), ("resnet50", "dynamo", 18),
    ("vgg16", "torchscript", 13), ("vgg16", "dynamo", 18),
]  # fmt: skip
CASES = [*FAST, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)]


@dataclass
class Case:
    """A network in torch, exported, and converted."""

    network: Network
    model: nn.Sequential
    source: Path
    output: Path
    report: Report

    @cached_property
    def before(self) -> ModelProto:
        return onnx.load(self.source)

    @cached_property
    def after(self) -> ModelProto:
        return onnx.load(self.output)

    @cached_property
    def original(self) -> Session:
        return session(self.source)

    @cached_property
    def converted(self) -> Session:
        return session(self.output)


@lru_cache(maxsize=1)  # the next may weigh half a gigabyte
def built(name: str) -> nn.Sequential:
    return getattr(exports, name)()


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name, exporter, opset = request.param
    network, model, folder = NETWORKS[name], built(name), tmp_path_factory.mktemp(name)
    source, output = folder / "model.onnx", folder / "out.onnx"
    how = {"dynamo": exporter == "dynamo", "opset": opset, "dropout": "Dropout" in network.head}
    exports.export(model, source, network.native, **how)
    report = onnx_fcn.convert(source, output).report
    yield Case(network, model, source, output, report)
    shutil.rmtree(folder)


def session(path: Path) -> Session:
    """A file to call as its users do: images in, scores out."""
    made = onnxruntime.InferenceSession(path)
    return lambda images: made.run(["scores"], {"image": images})[0]


# The graph ------------------------------------------------------------------------------------------------------------


def written(model: ModelProto) -> list[str]:
    """The operators of a network, with their kernels: `Relu`, `AveragePool 7×7`, `Conv 6×6 256→4096`."""
    dims = {t.name: t.dims for t in model.graph.initializer}

    def words(node: NodeProto) -> Iterator[str]:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.name == "kernel_shape":
                yield "×".join(map(str, attribute.ints))
        if node.op_type == "Conv":
            yield "{1}→{0}".format(*dims[node.input[1]])

    return [" ".join(words(node)) for node in model.graph.node if node.op_type != "Constant"]


def floats(model: ModelProto) -> dict[str, TensorProto]:
    return {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def halves(case: Case) -> tuple[list[str], list[str]]:
    """(trunk, head) of the converted network."""
    nodes = written(case.after)
    cut = len(nodes) - len(case.network.head.split(", "))
    return nodes[:cut], nodes[cut:]


def test_the_head_consists_of_convolutions_and_poolings(case):
    assert ", ".join(halves(case)[1]) == case.network.head


def test_the_trunk_is_as_it_was(case):
    trunk, _ = halves(case)
    if gone := case.network.rewritten:
        assert set(gone).intersection(written(case.before))
        assert not set(gone).intersection(trunk)
    else:
        assert trunk == written(case.before)[: len(trunk)]


def test_every_weight_keeps_its_bytes(case):
    """(O, C·h·w) is stored as (O, C, h, w) is: only the dims of a dense weight change."""
    before, after = floats(case.before), floats(case.after)
    assert [name for name, t in before.items() if name not in after or after[name].raw_data != t.raw_data] == []


def test_names_stay_and_sizes_become_free(case):
    before, after = case.before.graph, case.after.graph
    assert [v.name for v in (*after.input, *after.output)] == ["image", "scores"]
    assert shape(after.input[0]) == [*shape(before.input[0])[:2], "height", "width"]
    *answer, rows, columns = shape(after.output[0])
    size = dict(zip(("height", "width"), case.network.larger))
    assert answer == shape(before.output[0])
    assert (eval(rows, {}, size), eval(columns, {}, size)) == case.network.answers


# The numbers ----------------------------------------------------------------------------------------------------------


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    """The same answers (N, K, rows, columns), but for rounding; and no two windows are alike."""
    assert got.shape == want.shape
    largest = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * largest)
    for axis in (2, 3):
        steps = np.abs(np.diff(want, axis=axis)).max(axis=1)
        assert (steps > DISTINCT * largest).all(), "neighbouring windows look alike"


@torch.inference_mode()
def by_window(model: nn.Sequential, images: Tensor, window: int) -> np.ndarray:
    """The head's answers for every window of the trunk's map: (N, K, rows, columns)."""
    cut = next(k for k, layer in enumerate(model) if isinstance(layer, nn.AdaptiveAvgPool2d | nn.Flatten))
    trunk, head = model[:cut], model[cut:]
    windows = trunk(images).unfold(2, window, 1).unfold(3, window, 1)  # (N, C, rows, columns, window, window)
    windows = windows.permute(0, 2, 3, 1, 4, 5)
    answers = head(windows.flatten(0, 2)).unflatten(0, windows.shape[:3])
    return answers.permute(0, 3, 1, 2).numpy()


@pytest.mark.parametrize("batch", [1, 3])
def test_at_the_native_size_the_answer_is_the_same(case, batch):
    images = exports.noise(case.model, batch, case.network.native).numpy()
    assert_same(case.converted(images), case.original(images)[:, :, None, None])


def test_every_cell_is_the_head_on_its_window(case):
    network = case.network
    images = exports.noise(case.model, 2, network.larger)
    want = by_window(case.model, images, network.window)
    assert want.shape[2:] == network.answers
    assert_same(case.converted(images.numpy()), want)


def test_the_report_says_what_was_found(case):
    network, report = case.network, case.report
    assert report.window == (network.native,) * 2
    assert report.stride == (network.stride,) * 2
    assert report.cut.window == (network.window,) * 2
    kernels = [f"{layer.becomes} {'×'.join(map(str, layer.kernel))}" for layer in report.layers]
    assert kernels == [" ".join(op.split()[:2]) for op in network.head.split(", ") if "×" in op]
    assert [op for _, op in report.context] == ["ReduceMean"] * network.context
    short, full = (" ".join(text.split()) for text in (str(report), report.text(verbose=True)))
    assert full.count("sees the whole image") == network.context
    assert short.count("see the whole image: every answer depends on all of it") == (network.context > 0)


def crops(report: Report) -> list[Check]:
    """Comparisons with the original on crops of the image."""
    return [check for check in report.validation.checks if check.kind == "crops"]


def test_the_validation_relies_on_crops_only_where_nothing_pads(case):
    pads = case.network.pads
    assert {check.kind for check in case.report.validation.checks} >= {"native", "law", "crops"}
    assert case.report.validation.passed
    for check in crops(case.report):
        assert (check.tolerance is None, check.note != "", check.error > DISTINCT) == (pads, pads, pads)


# Channels last --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_channels_last(opset, tmp_path):
    source, output = exports.keras_style(tmp_path / "model.onnx", opset), tmp_path / "out.onnx"
    onnx_fcn.convert(source, output)
    before, after = onnx.load(source), onnx.load(output)
    law.check(before, after, space=(1, 2), stride=4)
    assert ", ".join(written(after)).startswith(
        "Transpose, Conv 3×3 3→8, Relu, MaxPool 2×2, Conv 3×3 8→16, Relu, MaxPool 2×2, "
        "Conv 6×6 16→32, Add, Relu, Conv 1×1 32→10, Add, "
    )
    assert shape(after.graph.input[0]) == ["batch", "height", "width", 3]
    assert shape(after.graph.output[0]) == ["batch", 10, "(height - 30) // 4 + 1", "(width - 30) // 4 + 1"]

    weights = [numpy_helper.to_array(t) for t in floats(before).values() if list(t.dims) == [6 * 6 * 16, 32]]
    kernels = [numpy_helper.to_array(t) for t in floats(after).values() if list(t.dims) == [32, 16, 6, 6]]
    np.testing.assert_array_equal(kernels, [w.reshape(6, 6, 16, 32).transpose(3, 2, 0, 1) for w in weights])


# Local response normalisation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "across", "free", "exporter", "opset"),
    [
        (1, 5, True, "torchscript", 9),
        (1, 2, False, "torchscript", 17),
        (2, 4, False, "torchscript", 9),
        (2, 3, True, "torchscript", 13),
        (2, 2, True, "torchscript", 17),
        (2, 5, True, "dynamo", 18),
        (3, 4, True, "torchscript", 11),
        (3, 3, False, "torchscript", 17),
        pytest.param(1, 3, True, "dynamo", 20, marks=pytest.mark.slow),
        pytest.param(2, 4, False, "dynamo", 20, marks=pytest.mark.slow),
        pytest.param(3, 5, True, "dynamo", 18, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_local_response_normalisation(rank, across, free, exporter, opset, tmp_path):
    """torch writes a mean across channels: an axis more, a Pad along it, a pooling. Nothing pads, so crops agree."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    window, larger = (9, 11, 7)[:rank], (15, 13, 12)[:rank]
    cells = np.prod([(n - 1) // 2 - 2 for n in window])
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(3, 6, 3, stride=2), nn.ReLU(), nn.LocalResponseNorm(across, alpha=2.0, k=0.5),
        conv(6, 4, 3), nn.Flatten(), nn.Linear(4 * int(cells), 5),
    ).eval()  # fmt: skip
    source, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    exports.export(model, source, window, dynamo=exporter == "dynamo", opset=opset, dynamic_batch=free)
    onnx_fcn.convert(source, output)
    images = exports.noise(model, 3 if free else 1, larger)
    crops = images
    for k, size in enumerate(window):
        crops = crops.unfold(2 + k, size, 2)  # (N, C, *grid, *window)
    grid = crops.shape[2 : 2 + rank]
    each = crops.movedim(1, 1 + rank).flatten(0, rank)
    want = model(each).unflatten(0, (len(images), *grid)).movedim(-1, 1).numpy()
    got = session(output)(images.numpy())
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING * np.abs(want).max())


# Digits ---------------------------------------------------------------------------------------------------------------

FIXTURES = Path(__file__).parent.parent / "fixtures"
STEP, WINDOW = 4, 28


@dataclass(frozen=True)
class Reading:
    """What a digit classifier says to the page: (rows, columns, 11), converted and on every crop."""

    answers: np.ndarray
    of_crops: np.ndarray
    report: Report


@pytest.fixture(scope="module", params=["unpadded", "padded"])
def reading(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    source, output = FIXTURES / f"digits_{request.param}.onnx", tmp_path_factory.mktemp("digits") / "out.onnx"
    report = onnx_fcn.convert(source, output).report
    original, converted = session(source), session(output)
    page = np.load(FIXTURES / "digits_page.npy").astype(np.float32) / 255
    answers = np.moveaxis(converted(page[None, None])[0], 0, -1)
    windows = np.lib.stride_tricks.sliding_window_view(page, (WINDOW, WINDOW))[::STEP, ::STEP]
    of_crops = np.stack([original(row[:, None]) for row in windows])
    return Reading(answers, of_crops, report)


def peaks(answers: np.ndarray) -> np.ndarray:
    """The digits, the surest first, each where it is surest: (label, left, top) in pixels.

    Half a window around each, no other is looked for: non-maximum suppression.
    """
    shares = np.exp(answers - answers.max(axis=-1, keepdims=True))
    digits = (shares / shares.sum(axis=-1, keepdims=True))[..., :10]
    sure, near, found = digits.max(axis=-1), WINDOW // 2 // STEP, []
    while sure.max() > 0.5:
        row, column = np.unravel_index(sure.argmax(), sure.shape)
        found.append((digits[row, column].argmax(), column * STEP, row * STEP))
        sure[max(0, row - near) : row + near + 1, max(0, column - near) : column + near + 1] = 0
    return np.array(found)


def test_all_digits_of_the_page_are_found(reading):
    boxes = json.loads((FIXTURES / "digits_page.json").read_text())
    corners = np.array([(box["left"], box["top"]) for box in boxes])
    labels, places = np.split(peaks(reading.answers), [1], axis=1)
    distance = np.abs(places[:, None] - corners).max(axis=-1)
    nearest = distance.argmin(axis=1)
    assert sorted(nearest) == list(range(96))
    assert distance.min(axis=1).max() <= STEP
    assert [box["label"] for box in boxes] == labels[np.argsort(nearest), 0].tolist()


def test_cells_are_crops_where_nothing_pads(reading):
    check, *_ = crops(reading.report)  # on a wide image, and where they decide on a long one
    assert reading.answers.shape == reading.of_crops.shape == (72, 107, 11)
    difference = np.abs(reading.answers - reading.of_crops).max(axis=-1) / np.abs(reading.of_crops).max()
    if "unpadded" in reading.report.source:
        assert difference.max() < ROUNDING
        assert check.tolerance is not None
    else:
        assert difference.min() > ROUNDING  # not one cell is its crop
        assert check.tolerance is None
        assert "pad: a crop sees padding where the larger image has pixels" in check.note


def test_the_command_line_does_the_same(tmp_path):
    command = [sys.executable, "-m", "onnx_fcn", FIXTURES / "digits_padded.onnx", tmp_path / "out.onnx"]
    subprocess.run(command, cwd=FIXTURES.parent, check=True, stdout=subprocess.DEVNULL)
