"""Converted files in the tools that people deploy them with. Each is skipped where it is not installed.

pip install 'onnx-fcn[consumers]' && pytest -m slow tests/test_consumers.py -rP

`-rP` shows the difference that each test measured, relative to the largest answer.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
import tools
import torch

import onnx_fcn

pytestmark = pytest.mark.slow

Array = np.ndarray

#: How far answers may be from onnxruntime's, relative to the largest: other runtimes add the same products in other
#: orders. Sums of n terms differ by about √n·ε then, 4e-6 for the 4608 of a convolution of ResNet-18, and the
#: differences of twenty layers add up.
ROUNDING = 1e-4

#: What coarser arithmetic adds in each layer, as a share of the deviation of its answers. In half precision weights and
#: activations round to 11 bits: by 2^-11 at most, by 0.6 of that in the mean square, twice. In 8 bits they round by
#: 1/√12 of a step in the mean square, which is 1/255 of a range: ten deviations of activations, eight of weights.
#: What they allow is 0.13 for ResNet-18 at most; maps that are one cell off differ by 0.45 and more.
HALF, EIGHT_BITS = 4e-4, 1.4e-2


def pooled() -> torch.nn.Module:
    """Convolutions, a mean over all positions, a dense layer."""
    return exports.resnet18()


def dense() -> torch.nn.Module:
    """Convolutions, and dense layers over all positions."""
    return exports.lenet()


def normalised() -> torch.nn.Module:
    """Dense layers too; what its convolutions answer is normalised over neighbouring channels."""
    return exports.alexnet_small()


#: The native size of each, and a larger one, whose distance from it no stride divides.
SIZES = {pooled: (64, (107, 161)), dense: (32, (107, 161)), normalised: (227, (291, 355))}

#: A network, and how it is converted.
FILES: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "map": (pooled, {}),
    "dense layers": (dense, {}),
    "normalised": (normalised, {}),
    "normalised, fixed": (normalised, {"fix_size": (291, 355), "batch": 1}),
    "native size": (pooled, {"keep_size": True}),
    "mean": (pooled, {"reduce": "mean"}),
    "means that dilate": (pooled, {"output_stride": 8, "portable": True}),
    "poolings that dilate": (dense, {"output_stride": 1, "portable": True}),
    "full size": (pooled, {"full_size": True}),
    "full size, fixed": (pooled, {"full_size": True, "fix_size": (107, 161), "batch": 1}),
}


@functools.cache
def original(build: Callable[[], torch.nn.Module], folder: Path) -> Path:
    torch.manual_seed(0)
    return exports.export(build(), folder / f"original_{build.__name__}.onnx", SIZES[build][0], dynamo=False, opset=17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("consumers")


def made(name: str, folder: Path) -> tuple[Path, Path]:
    """(the original, its conversion)."""
    build, how = FILES[name]
    path = folder / f"{name.replace(' ', '_').replace(',', '')}.onnx"
    if not path.exists():
        onnx_fcn.convert(original(build, folder), path, validate=False, **how)
    return original(build, folder), path


def sizes(name: str) -> list[tuple[int, int]]:
    """The sizes that a file takes."""
    native, larger = SIZES[FILES[name][0]]
    return [(native, native)] if name == "native size" else [larger] if "fixed" in name else [(native, native), larger]


def image_of(path: Path, size: tuple[int, int]) -> Array:
    """The same noise each time, in as many channels as the file takes."""
    channels = law.dims_of(onnx.load(path).graph.input[0])[1]
    return law.random("image", 1, channels or 1, *size).astype(np.float32)


def rounded(source: Path, layer: float) -> float:
    """How far answers of a network may be off that rounds by so much in each layer: twice the deviation of the sum."""
    layers = sum(n.op_type in ("Conv", "Gemm") for n in onnx.load(source).graph.node)
    return float(2 * layer * np.sqrt(layers))


def difference(got: Array, want: Array) -> float:
    """The largest, relative to the largest answer."""
    assert got.shape == want.shape
    found = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"{found:.1e} at {got.shape[2:] or 'one answer'}")
    return found


# Runtimes -------------------------------------------------------------------------------------------------------------


def onnxruntime_(path: Path, image: Array) -> Array:
    """As it is written, without optimisation: what the others are compared with."""
    (answers,) = law.session(onnx.load(path))({"image": image})
    return answers


def openvino(path: Path, image: Array) -> Array:
    core = pytest.importorskip("openvino").Core()
    model = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(model(image)[0])


def opencv(path: Path, image: Array) -> Array:
    cv2 = pytest.importorskip("cv2")
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(image)
    return np.asarray(network.forward())


#: MNN's hint about Winograd's algorithm (`Interpreter::WINOGRAD_MEMORY_LEVEL`), and its value for none.
NO_WINOGRAD = "runtime.set_hint(3, 0)"


def mnn(path: Path, image: Array, hint: str = NO_WINOGRAD) -> Array:
    pytest.importorskip("MNN")
    target, model = path.with_suffix(".mnn"), onnx.load(path)
    words = ["x", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(target), "--bizCode", "x"]
    convert = f"import _tools; _tools.mnnconvert({words})"  # its own command waits for a server
    subprocess.run([sys.executable, "-c", convert], check=True, capture_output=True)
    names = [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    # It may crash: that ends another process.
    np.save(path.with_suffix(".in.npy"), image)
    program = (
        "import sys, numpy, MNN.nn as nn, MNN.expr as F\n"
        "runtime = nn.create_runtime_manager(({'precision': 'high', 'backend': 0, 'numThread': 1},))\n"
        f"{hint}\n"
        f"net = nn.load_module_from_file({str(target)!r}, {names[0]}, {names[1]}, runtime_manager=runtime)\n"
        f"x = numpy.load({str(path.with_suffix('.in.npy'))!r})\n"
        "y = F.convert(net.forward([F.const(x, list(x.shape), F.NCHW, F.float)])[0], F.NCHW)\n"
        f"numpy.save({str(path.with_suffix('.out.npy'))!r}, numpy.array(y.read()))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    found: Array = np.load(path.with_suffix(".out.npy"))
    return found


@pytest.fixture
def _onnx2torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx2torch, without torchvision."""
    tools.stand_in_for_torchvision(monkeypatch)


def pytorch(path: Path, image: Array) -> Array:
    onnx2torch = pytest.importorskip("onnx2torch")
    with torch.no_grad(), warnings.catch_warnings():
        # Its Slice indexes by a list of slices. torch warns that lists will mean something else, but takes these.
        about = "Using a non-tuple sequence for multidimensional indexing"
        warnings.filterwarnings("ignore", about, UserWarning, r"onnx2torch\.node_converters\.slice")
        found: Array = onnx2torch.convert(str(path)).eval()(torch.from_numpy(image)).numpy()
    return found


def tract(path: Path, image: Array) -> Array:
    """With the size of the image: with open sizes it is given up early where a network computes with them."""
    library = pytest.importorskip("tract")
    model = library.onnx().load(str(path))
    model.set_input_fact(0, ",".join(map(str, image.shape)) + ",f32")
    found: Array = model.into_model().into_runnable().run([image])[0].to_numpy()
    return found


#: What each does not take: (runtime, file): why.
KNOWN: Mapping[tuple[str, str], str] = {
    ("opencv", "full size"): "OpenCV 4 does not take a Shape of an image of any size: fix the size",
    ("opencv", "normalised"): "OpenCV 4 does not take this Shape either; it refuses the original, too, for an If",
}


@pytest.mark.usefixtures("_onnx2torch")
@pytest.mark.parametrize("runtime", [openvino, opencv, mnn, pytorch, tract], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_runtime_answers_as_onnxruntime_does(
    runtime: Callable[[Path, Array], Array], name: str, folder: Path
) -> None:
    _, path = made(name, folder)
    for size in sizes(name):
        image = image_of(path, size)
        if (runtime.__name__, name) in KNOWN:
            with pytest.raises(pytest.importorskip("cv2").error, match=r"!isDynamicShape|== maskTotal"):
                runtime(path, image)
        else:
            assert difference(runtime(path, image), onnxruntime_(path, image)) <= ROUNDING, size


@pytest.mark.parametrize("name", ["map", "dense layers"])
def test_how_far_off_is_the_algorithm_of_winograd_in_mnn(name: str, folder: Path) -> None:
    """By default MNN convolves large maps by it, in large tiles. That rounds the trunk of the original as much."""
    source, path = made(name, folder)
    model = onnx.load(source)
    head = next(n for n in model.graph.node if n.op_type in ("GlobalAveragePool", "Flatten"))
    trunk = law.trunk_of(model, [head.input[0]])
    trunk.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(head.input[0], 1, [None] * 4))
    onnx.save(trunk, of_trunk := folder / f"trunk_{path.name}")
    image = image_of(path, sizes(name)[1])
    in_trunk, in_map = (difference(mnn(p, image, ""), onnxruntime_(p, image)) for p in (of_trunk, path))
    assert in_trunk > ROUNDING, "it no longer rounds more: take NO_WINOGRAD out of the tests and of the documentation"
    assert difference(mnn(of_trunk, image), onnxruntime_(of_trunk, image)) <= ROUNDING
    assert in_map <= in_trunk


@pytest.mark.parametrize("runtime", [opencv, mnn], ids=lambda f: f.__name__)
def test_poolings_that_dilate_are_why_there_are_portable_files(
    runtime: Callable[[Path, Array], Array], folder: Path
) -> None:
    """These runtimes take a MaxPool with dilations, and ignore them."""
    build, how = FILES["poolings that dilate"]
    path = folder / "dilated.onnx"
    onnx_fcn.convert(original(build, folder), path, validate=False, output_stride=how["output_stride"])
    image = image_of(path, SIZES[build][1])
    assert runtime(path, image).shape != onnxruntime_(path, image).shape


# Tools that write another file ----------------------------------------------------------------------------------------


def onnxsim(source: Path, path: Path) -> None:
    model, right = pytest.importorskip("onnxsim").simplify(onnx.load(source))
    assert right
    onnx.save(model, path)


def onnxslim(source: Path, path: Path) -> None:
    onnx.save(pytest.importorskip("onnxslim").slim(onnx.load(source)), path)


def onnxoptimizer(source: Path, path: Path) -> None:
    onnx.save(pytest.importorskip("onnxoptimizer").optimize(onnx.load(source)), path)


def polygraphy(source: Path, path: Path) -> None:
    pytest.importorskip("polygraphy")
    words = ["surgeon", "sanitize", str(source), "--fold-constants", "-o", str(path)]
    program = f"import sys; sys.argv = ['polygraphy', *{words}]; from polygraphy.tools import main; main()"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert path.exists(), ran.stderr[-500:]


def onnxconverter(source: Path, path: Path) -> None:
    """Half precision, by the package that onnxruntime's own converter comes from."""
    float16 = pytest.importorskip("onnxconverter_common.float16")
    with warnings.catch_warnings():
        # It takes numbers below 1e-7, the last that half precision has but one, for that.
        warnings.filterwarnings("ignore", "the float32 number .* will be truncated to -?1e-07", UserWarning)
        onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def onnxscript(source: Path, path: Path) -> None:
    onnx.save(pytest.importorskip("onnxscript.optimizer").optimize(onnx.load(source)), path)


#: A tool, and what the file that it writes adds in each layer; 0 if it rounds as before.
TOOLS: dict[str, tuple[Callable[[Path, Path], None], float]] = {
    "onnxsim": (onnxsim, 0),
    "onnxslim": (onnxslim, 0),
    "onnxoptimizer": (onnxoptimizer, 0),
    "onnxscript": (onnxscript, 0),
    "polygraphy": (polygraphy, 0),
    "optimised, basic": (functools.partial(tools.optimised, level="BASIC"), 0),
    "optimised, extended": (functools.partial(tools.optimised, level="EXTENDED"), 0),
    "optimised, all": (functools.partial(tools.optimised, level="ALL"), 0),
    "half precision": (tools.half, HALF),
    "half precision, onnxconverter-common": (onnxconverter, HALF),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", FILES)
def test_a_tool_keeps_the_network(tool: str, name: str, folder: Path) -> None:
    """What it makes answers alike, is verified, and is read again with the stamp."""
    write, layer = TOOLS[tool]
    source, path = made(name, folder)
    allowed = rounded(source, layer) if layer else ROUNDING
    target = written(tool, path)
    write(path, target)
    for size in sizes(name):
        image = image_of(path, size)
        assert difference(onnxruntime_(target, image), onnxruntime_(path, image)) <= allowed, size
    stamped(source, path, target, name)


def written(tool: str, path: Path) -> Path:
    """Where a tool writes."""
    return path.with_name(f"{tool.replace(' ', '_').replace(',', '')}_{path.name}")


def made_as(target: Path, name: str) -> dict[str, Any]:
    """The options that say what the answers of a file are, if a tool has removed its metadata."""
    if any(e.key.startswith("onnx_fcn.") for e in onnx.load(target).metadata_props):
        return {}
    return {key: value for key, value in FILES[name][1].items() if key not in ("fix_size", "batch", "portable")}


def stamped(source: Path, path: Path, target: Path, name: str, **how: Any) -> None:
    """What a tool made of a file is verified and stamped, and says then where its answers are, as the file does."""
    found = onnx_fcn.validate(source, target, stamp=True, **made_as(target, name), **how)
    assert found.passed
    print(f"verified: {max(c.error for c in found.checks if c.tolerance is not None):.1e}")
    assert onnx_fcn.read_geometry(target) == onnx_fcn.read_geometry(path)


def noises(path: Path, name: str) -> Iterator[dict[str, Array]]:
    """Images to calibrate on, of each size that a file takes."""
    for size in sizes(name):
        for seed in range(4):
            channels = image_of(path, size).shape[1]
            yield {"image": law.random(f"calibration {seed}", 1, channels, *size).astype(np.float32)}


@pytest.mark.parametrize("name", FILES)
def test_a_statically_quantised_file(name: str, folder: Path) -> None:
    """Calibrated at every size that the file takes, right at each, verified at each, and stamped by the largest."""
    source, path = made(name, folder)
    target, allowed = written("static", path), rounded(source, EIGHT_BITS)
    tools.static(path, target, noises(path, name))
    for size in sizes(name):
        image = image_of(path, size)
        assert difference(onnxruntime_(target, image), onnxruntime_(path, image)) <= allowed, size
        assert onnx_fcn.validate(source, target, data=image, tolerance=allowed, **made_as(target, name)).passed
    stamped(source, path, target, name, data=image, tolerance=allowed)


@pytest.mark.parametrize("name", FILES)
def test_a_dynamically_quantised_file(name: str, folder: Path) -> None:
    source, path = made(name, folder)
    target, allowed = written("dynamic", path), rounded(source, EIGHT_BITS)
    tools.dynamic(path, target)
    for size in sizes(name):
        image = image_of(path, size)
        assert difference(onnxruntime_(target, image), onnxruntime_(path, image)) <= allowed, size
    stamped(source, path, target, name, tolerance=allowed)


@pytest.mark.parametrize("name", [name for name in FILES if "fixed" not in name])
def test_sizes_and_batches_that_onnxruntime_fixes(name: str, folder: Path) -> None:
    """Each size that the file takes, and a batch of two: answers are the same, and the output says their shape."""
    source, path = made(name, folder)
    for size in sizes(name):
        image = image_of(path, size)
        tools.with_shape(path, target := written("fixed", path), *image.shape)
        want, got = onnxruntime_(path, image), onnxruntime_(target, image)
        assert difference(got, want) == 0, size
        assert tuple(law.dims_of(onnx.load(target).graph.output[0])) == got.shape
        stamped(source, path, target, name)
        pair = np.concatenate([image, -image])
        tools.with_batch(path, target, 2)
        assert difference(onnxruntime_(target, pair), onnxruntime_(path, pair)) == 0
        stamped(source, path, target, name)
