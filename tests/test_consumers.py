"""Converted files in the tools that people deploy them with. Each is skipped where it is not installed.

pip install 'onnx-fcn[consumers]' && pytest -m slow tests/test_consumers.py
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
import torch

import onnx_fcn

pytestmark = pytest.mark.slow

Array = np.ndarray

#: A larger size, whose distance from the native one no stride divides.
LARGER = 107, 161

#: Relative to the largest answer: other runtimes sum in other orders, some by Winograd's algorithm.
ROUNDING = 1e-4


def pooled() -> torch.nn.Module:
    """Convolutions, a mean over all positions, a dense layer."""
    return exports.resnet18().eval()


def dense() -> torch.nn.Module:
    """Convolutions, and dense layers over all positions."""
    return exports.alexnet_small().eval()


#: The native size of each.
NATIVE = {pooled: 64, dense: 227}

#: A network, and how it is converted.
FILES: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "map": (pooled, {}),
    "dense layers": (dense, {}),
    "native size": (pooled, {"keep_size": True}),
    "mean": (pooled, {"reduce": "mean"}),
    "answers in between": (pooled, {"output_stride": 8, "portable": True}),
    "full size": (pooled, {"full_size": True}),
    "full size, fixed": (pooled, {"full_size": True, "fix_size": LARGER, "batch": 1}),
}


@functools.cache
def original(build: Callable[[], torch.nn.Module], folder: Path) -> Path:
    torch.manual_seed(0)
    return exports.export(build(), folder / f"{build.__name__}.onnx", NATIVE[build], dynamo=False, opset=17)


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
    native = NATIVE[FILES[name][0]]
    larger = LARGER if native < min(LARGER) else (291, 355)
    return [(native, native)] if name == "native size" else [larger] if "fixed" in name else [(native, native), larger]


# Runtimes -------------------------------------------------------------------------------------------------------------


def openvino(path: Path, image: Array) -> Array:
    core = pytest.importorskip("openvino").Core()
    model = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(model(image)[0])


def opencv(path: Path, image: Array) -> Array:
    cv2 = pytest.importorskip("cv2")
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(image)
    return np.asarray(network.forward())


def mnn(path: Path, image: Array) -> Array:
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
    """A stand-in for torchvision, which PyPI's cannot be beside a torch for CPUs; only detectors need it."""
    import test_training

    test_training._onnx2torch.__wrapped__(monkeypatch)  # type: ignore[attr-defined]


def pytorch(path: Path, image: Array) -> Array:
    onnx2torch = pytest.importorskip("onnx2torch")
    with torch.no_grad():
        found: Array = onnx2torch.convert(str(path)).eval()(torch.from_numpy(image)).numpy()
    return found


#: What each does not take: (runtime, file): why.
KNOWN: Mapping[tuple[str, str], str] = {
    ("opencv", "full size"): "OpenCV 4 does not take a Shape of an image of any size: fix the size",
}


@pytest.mark.usefixtures("_onnx2torch")
@pytest.mark.parametrize("runtime", [openvino, opencv, mnn, pytorch], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_runtime_answers_as_onnxruntime_does(
    runtime: Callable[[Path, Array], Array], name: str, folder: Path
) -> None:
    if (why := KNOWN.get((runtime.__name__, name))) is not None:
        pytest.skip(why)
    _, path = made(name, folder)
    run = law.session(onnx.load(path))
    for size in sizes(name):
        image = law.random("image", 1, 3, *size).astype(np.float32)
        (want,) = run({"image": image})
        got = runtime(path, image)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= ROUNDING * np.abs(want).max(), size


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


@pytest.mark.parametrize("tool", [onnxsim, onnxslim, onnxoptimizer, polygraphy], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_tool_keeps_the_network(tool: Callable[[Path, Path], None], name: str, folder: Path) -> None:
    """What it makes answers alike, is verified, and is read again with the stamp."""
    source, path = made(name, folder)
    target = path.with_name(f"{tool.__name__}_{path.name}")
    tool(path, target)
    before, after = (law.session(onnx.load(p)) for p in (path, target))
    for size in sizes(name):
        image = law.random("image", 1, 3, *size).astype(np.float32)
        (want,), (got,) = before({"image": image}), after({"image": image})
        assert np.abs(got - want).max() <= ROUNDING * np.abs(want).max()
    asked = {} if any(e.key.startswith("onnx_fcn.") for e in onnx.load(target).metadata_props) else dict(FILES[name][1])
    for key in ("fix_size", "batch", "portable"):
        asked.pop(key, None)  # not about the answers
    assert onnx_fcn.validate(source, target, stamp=True, **asked).passed
    assert onnx_fcn.read_geometry(target) == onnx_fcn.read_geometry(path)
