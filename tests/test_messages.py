"""The likeliest mistakes: each is answered by one sentence that names the thing, the reason and the next step.

Whole first lines are compared (and the causes of a refusal, line by line), so that whoever changes a sentence reads it.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import law
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import wording
from exports import quiet
from onnx import helper

from onnx_fcn.cli import main
from onnx_fcn.model import wire

FIXTURES = Path(__file__).parent.parent / "fixtures"
MODEL, USAGE = 1, 2
REFUSED = "this network cannot slide over a larger image, for one reason:"
SIZE = "give the size that the network was made for, not that of your images"


@dataclass(frozen=True)
class Mistake:
    """A command line, what it says after `error: `, its exit code, and what makes the file `bad`."""

    arguments: str
    code: int
    says: str
    make: Callable[[Path], object] = lambda path: None


def given(says: str, make: Callable[[Path], object]) -> Mistake:
    """A file that is no model that can be read, or a model that cannot be converted."""
    return Mistake("bad out.onnx", MODEL, says, make)


def foreign(kind: str, make: Callable[[Path], object]) -> Mistake:
    """A file of another kind."""
    return given(f"'bad' is not an ONNX model, or damaged: it looks like {kind}", make)


def refused(cause: str, make: Callable[[Path], object], advice: str = "") -> Mistake:
    """A model that cannot slide, and what to do about it."""
    return given(f"{REFUSED}\n  - {cause}{advice and chr(10)}{advice}", make)


def asked(options: str, says: str, make: Callable[[Path], object] = lambda path: None) -> Mistake:
    """A good model, and options that do not fit it."""
    return Mistake(f"model.onnx out.onnx {options}", USAGE, says, make)


# What is made ---------------------------------------------------------------------------------------------------------


def content(data: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode())


def written(text: str, opset: int = 13) -> Callable[[Path], object]:
    """A model in ONNX's text syntax."""
    model = f'<ir_version: 8, opset_import: ["": {opset}, "mine": 1]> g {text}'
    return lambda path: onnx.save(onnx.parser.parse_model(model), path)


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    """The good model, changed."""

    def make(path: Path) -> None:
        model = onnx.load("model.onnx")
        change(model)
        onnx.save(model, path)

    return make


def free_sizes(model: onnx.ModelProto) -> None:
    for k, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[k].dim_param = name
    pool = helper.make_node("GlobalAveragePool", [model.graph.node[0].output[0]], ["scores"])
    del model.graph.node[1:]
    model.graph.node.append(pool)


def checkpoint(legacy: bool) -> Callable[[Path], object]:
    weights = {"weight": torch.zeros(2, 2)}
    return lambda path: torch.save(weights, path, _use_new_zipfile_serialization=not legacy)


def safetensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


def saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"\x08\x01")


def optimised(path: Path, *, as_ort: bool) -> None:
    """As onnxruntime writes models."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    if as_ort:
        options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])


def blocked_layout(path: Path) -> None:
    """As onnxruntime's optimiser leaves a convolution on processors with wide vectors."""
    model = onnx.load("model.onnx")
    conv = model.graph.node[0]
    conv.domain = "com.microsoft.nchwc"
    model.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    onnx.save(model, path)


def vision_transformer(path: Path) -> None:
    class Transformer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = torch.nn.Conv2d(3, 16, 8, 8)
            self.encoder = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head = torch.nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.encoder(self.patches(x).flatten(2).transpose(1, 2))
            return self.head(tokens.mean(1))

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            Transformer().eval(),
            (torch.zeros(1, 3, 32, 32),),
            path,
            input_names=["image"],
            opset_version=17,
            dynamo=False,
        )


def recurrent(path: Path) -> None:
    body = "t = Transpose <perm = [2, 0, 1]> (x)  [lstm] h, last, c = LSTM <hidden_size = 4> (t, w, r)"
    given = {"w": (1, 16, 5), "r": (1, 16, 4), "axis": [0]}
    made = law.model(f"{body}  y = Squeeze (last, axis)", image="float[1,5,9] x", outputs="float[1,4] y", **given)
    onnx.save(made, path)


def detector(path: Path) -> None:
    body = """a = Conv (x, k)  b = Reshape (a, boxes)  m = ReduceMax <axes = [2]> (b)  s = Reshape (m, scores)
        [nms] y = NonMaxSuppression (b, s)"""
    given = {"k": (12, 3, 8, 8), "boxes": [1, 3, 4], "scores": [1, 1, 3]}
    onnx.save(law.model(body, image="float[1,3,8,8] x", outputs="int64[n,3] y", **given), path)


def weights_beside(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        onnx.save(onnx.load("model.onnx"), path, save_as_external_data=True, location="bad.data", size_threshold=9_000)
        damage(Path("bad.data"))

    return make


def larger_than_a_file(path: Path) -> None:
    """Weights of 2.4 GB, in a file that has holes for them."""
    model = onnx.load("model.onnx")
    huge = model.graph.initializer.add(name="huge", data_type=onnx.TensorProto.FLOAT, dims=[300, 1000, 2000])
    wire.refer(huge, "huge.data", 0, 4 * 300 * 1000 * 2000)
    with open("huge.data", "wb") as file:
        file.truncate(4 * 300 * 1000 * 2000)
    onnx.save(model, path)


# The table ------------------------------------------------------------------------------------------------------------

ZIP = (
    "a zip archive, perhaps a PyTorch checkpoint or a Keras model: export the network as ONNX, with torch.onnx.export "
)
ZIP += "or tf2onnx"
IMAGE_OF_8 = "(float[1,3,8,8] image) => (float[1,3,8,8] y)"

MISTAKES = {
    "no such file": Mistake("nowhere.onnx out.onnx", MODEL, "'nowhere.onnx' does not exist"),
    "a directory": Mistake("folder out.onnx", MODEL, "'folder' is a directory: pass the model file in it"),
    "a SavedModel": given("'bad' is a SavedModel of TensorFlow: convert it with tf2onnx", saved_model),
    "a pipe": given("'bad' is not a regular file", os.mkfifo),
    "empty": given("'bad' is empty: perhaps a download or an export was interrupted", content(b"")),
    "cut short": given(
        "'bad' is not an ONNX model, or damaged: 47546 bytes are missing at its end: perhaps a download or a "
        "copy was cut "
        "short",
        lambda path: path.write_bytes(Path("model.onnx").read_bytes()[:60_000]),
    ),
    "text": foreign("text, which begins with 'hello, world': pass the model file itself", content("hello, world\n")),
    "JSON": foreign("text, which begins with '{\"a\": 1}': pass the model file itself", content('{"a": 1}')),
    "a Git LFS pointer": foreign(
        "a Git LFS pointer: fetch the file itself with `git lfs pull`",
        content("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"),
    ),
    "a web page": foreign("a web page: download the file itself", content("\n <!DOCTYPE html>\n<html>")),
    "compressed": foreign("gzip-compressed data: unpack it first", content(gzip.compress(b"model"))),
    "a PyTorch checkpoint": foreign(ZIP, checkpoint(legacy=False)),
    "an old PyTorch checkpoint": foreign(
        "a Python pickle, perhaps a PyTorch checkpoint: export the network with torch.onnx.export",
        checkpoint(legacy=True),
    ),
    "a pickle": foreign(
        "a Python pickle, perhaps a PyTorch checkpoint: export the network with torch.onnx.export",
        content(pickle.dumps({}, protocol=2)),
    ),
    "safetensors": foreign(
        "a safetensors file, which has weights only: export the network with torch.onnx.export", safetensors
    ),
    "Keras": foreign(ZIP, keras),
    "HDF5": foreign(
        "an HDF5 file, perhaps of Keras: export the network with tf2onnx or keras.Model.export",
        content(b"\x89HDF\r\n\x1a\n"),
    ),
    "TensorFlow Lite": foreign(
        "a TensorFlow Lite model: convert it with tf2onnx", content(b"\x1c\0\0\0TFL3" + bytes(20))
    ),
    "a frozen graph": given(
        "'bad' is not an ONNX model: it has no graph, so it may be another format of protobuf, such as TensorFlow's: "
        "convert it with tf2onnx",
        content(b"\x0a\x1b\x0a\x05input\x12\x0bPlaceholder\x2a\x05\x0a\x05dtype"),
    ),
    "onnxruntime's own format": foreign(
        "a model in onnxruntime's own format: start from the ONNX file that it was made from",
        lambda path: optimised(path, as_ort=True),
    ),
    "OpenVINO": foreign(
        "XML, perhaps of OpenVINO: start from the ONNX file that it was made from",
        content('<?xml version="1.0"?><net>'),
    ),
    "TensorRT": foreign(
        "an engine of TensorRT: start from the ONNX file that it was built from", content(b"ftrt" + bytes(9))
    ),
    "an image": foreign("an image: pass the model", content(b"\x89PNG\r\n\x1a\n")),
    "an array": foreign(
        "an array of numpy: pass the model, and images with --data", lambda path: np.save(path.open("wb"), np.zeros(3))
    ),
    "external data missing": given(
        "the external data of tensor '3.weight', 'bad.data', is missing: put it into '{folder}', next to the model",
        weights_beside(Path.unlink),
    ),
    "external data cut short": given(
        "tensor '3.weight' is stored at bytes 0 to 20000 of '{folder}/bad.data', which has 1000: is it incomplete?",
        weights_beside(lambda path: os.truncate(path, 1_000)),
    ),
    "a newer ONNX": given(
        f"'bad' has the IR version 99, but the installed onnx reads up to {onnx.IR_VERSION}: upgrade onnx and "
        "onnxruntime",
        changed(lambda model: setattr(model, "ir_version", 99)),
    ),
    "a newer opset": refused(
        f"the model uses opset 99, and the installed onnx knows operators up to opset {onnx.defs.onnx_opset_version()} "
        "(upgrade onnx and onnxruntime)",
        changed(lambda model: setattr(model.opset_import[0], "version", 99)),
    ),
    "an opset too old": refused(
        "the model uses opset 6, and before opset 7 operators have other meanings (raise it first, with "
        "onnx.version_converter)",
        written(f"{IMAGE_OF_8} {{ y = Relu (image) }}", opset=6),
    ),
    "a misspelt operator": given(
        "'bad' is not a valid ONNX model: No Op registered for Konv with domain_version of 13 ==> Context: "
        "Bad node spec for "
        "node. Name: /0/Conv OpType: Konv",
        changed(lambda model: setattr(model.graph.node[0], "op_type", "Konv")),
    ),
    "converted before": refused(
        "the model is fully convolutional already: onnx_fcn converted it (pass the original)",
        lambda path: main(["model.onnx", str(path), "--no-validate", "-q"]),
    ),
    "optimised by onnxruntime": refused(
        "Conv '/0/Conv': there is no rule for com.microsoft.nchwc.Conv, so its meaning at every position is unknown "
        "(start from the model before onnxruntime optimised it)",
        blocked_layout,
    ),
    "an operator of one's own": refused(
        "Foo 'y': there is no rule for mine.Foo, so its meaning at every position is unknown "
        "(before the export, replace it with supported operators, or open an issue with the model)",
        written(f"{IMAGE_OF_8} {{ y = mine.Foo (image) }}"),
    ),
    "a transformer": refused(
        "MatMul '/encoder/self_attn/MatMul_1': multiplies positions with positions (attention, bilinear "
        "pooling): only a "
        "constant weight can become a convolution (it can only run on windows of the map before it)",
        vision_transformer,
        "--windows runs what comes after '/patches/Conv_output_0' on every window: 54% of the work comes before, and "
        "is done once, so a large image takes at least 46% of the work of its crops. --context attention lets "
        "attention see the whole of a larger image: everything is shared, and each answer depends on all of the image",
    ),
    "a recurrent network": refused(
        "LSTM 'lstm': there is no rule for LSTM, so its meaning at every position is unknown "
        "(recurrence runs along "
        "positions: it can only run on windows of the map before it)",
        recurrent,
        "--windows runs what comes after 't' on every window",
    ),
    "a detector": refused(
        "NonMaxSuppression 'nms': there is no rule for NonMaxSuppression, so its meaning at every position is unknown "
        "(a detector already finds objects anywhere: take the class scores before it as an output)",
        detector,
    ),
    "a sequence of images": refused(
        "input 'images' is a sequence or optional, and an image is a tensor (export the network with a "
        "tensor as its input)",
        written(
            "(seq(float[1,3,8,8]) images) => (float[1,3,8,8] y) { i = Constant <value_int = 0> () y = SequenceAt "
            "(images, i) }"
        ),
    ),
    "an optional image": refused(
        "input 'image' is a sequence or optional, and an image is a tensor (export the network with a tensor "
        "as its input)",
        written("(optional(float[1,3,8,8]) image) => (float[1,3,8,8] y) { y = OptionalGetElement (image) }", opset=18),
    ),
    "no input": refused(
        "the model has no inputs, and an image is a tensor (export the network with a tensor as its input)",
        written("() => (float[2] y) { y = Constant <value_floats = [1.0, 2.0]> () }"),
    ),
    "text as input": refused(
        "input 'x' is text, not an image", written("(string[N,3,8,8] x) => (string[N,3,8,8] y) { y = Identity (x) }")
    ),
    "a table of features": refused(
        "input 'x': nothing slides over its shape (N, 10), so the file does not say which of its axes are positions "
        "in an image (if it holds the pixels of an image in a row, give the model an input with axes for them, "
        "such as (N, channels, height, width), and flatten that inside; if it is a signal, give --input-size 10)",
        written("(float[N,10] x) => (float[N,10] y) { y = Relu (x) }"),
    ),
    "frames of features": refused(
        "input 'x': nothing slides over its shape (N, 9, 16), so the file does not say which of its axes are "
        "positions in an image (give the size of its window with --input-size, such as 16 or 9 or 9x16)",
        written("(float[N,9,16] x) => (float[N,144] y) { y = Flatten (x) }"),
    ),
    "no size in the file": Mistake(
        "bad out.onnx",
        USAGE,
        "input 'image' has shape (batch, 1, h, w), so the file does not say which size the network "
        "was made for, and its head takes any size: give it with --input-size, such as 224x224",
        changed(free_sizes),
    ),
    "a smaller size": asked(
        "--input-size 20x20", f"--input-size 20×20 does not fit input 'image' of shape {{shape}}: {SIZE}"
    ),
    "the size of one's images": asked(
        "--input-size 512x512", f"--input-size 512×512 does not fit input 'image' of shape {{shape}}: {SIZE}"
    ),
    "one size of two": asked(
        "--input-size 20", f"--input-size 20 does not fit input 'image' of shape {{shape}}: {SIZE}"
    ),
    "channels in the size": asked(
        "--input-size 1x28x28",
        "--input-size 1x28x28 includes the channels of input 'image', which are not a size in pixels: "
        "give --input-size 28x28",
    ),
    "other channels in the size": asked(
        "--input-size 3x28x28", f"--input-size 3×28×28 does not fit input 'image' of shape {{shape}}: {SIZE}"
    ),
    "a size with a comma": asked(
        "--input-size 28,28", "argument --input-size: '28,28' is not a size in pixels, such as 224x224"
    ),
    "another input": asked("--input picture", "the model has no input 'picture': its inputs are 'image'"),
    "output onto the model": Mistake(
        "model.onnx model.onnx", USAGE, "'model.onnx' is the model itself: write the result to another file"
    ),
    "no directory for the output": Mistake(
        "model.onnx nowhere/out.onnx",
        USAGE,
        "cannot write '{folder}/nowhere/out.onnx': there is no directory '{folder}/nowhere'",
    ),
    "a directory as output": Mistake("model.onnx folder", USAGE, "cannot write '{folder}/folder': it is a directory"),
    "more than 2 GB in one file": Mistake(
        "bad out.onnx --inline --no-validate",
        USAGE,
        "'{folder}/out.onnx' would be larger than 2 GB, which no single ONNX file can be: keep its weights "
        "in a data file",
        larger_than_a_file,
    ),
    "no data": asked("--data nowhere.npy", "'nowhere.npy' cannot be read: No such file or directory"),
    "a picture as data": asked(
        "--data bad", "'bad' is not an .npy or .npz file: write one with numpy.save", content(b"\x89PNG\r\n\x1a\n")
    ),
    "an empty archive as data": asked(
        "--data bad",
        "the data contains no array: pass one for an input, or several by the inputs' names",
        lambda path: np.savez(path.open("wb")),
    ),
    "one image without a batch": asked(
        "--data bad",
        "the data for 'image' has shape (28, 28), and the model takes (any, 1, ≥28, ≥28)",
        lambda path: np.save(path.open("wb"), np.zeros((28, 28), np.float32)),
    ),
    "channels last": asked(
        "--data bad",
        "the data for 'image' has shape (1, 28, 28, 1), and the model takes (any, 1, ≥28, ≥28)",
        lambda path: np.save(path.open("wb"), np.zeros((1, 28, 28, 1), np.float32)),
    ),
    "three files": Mistake("model.onnx out.onnx third.onnx", USAGE, "unrecognized arguments: third.onnx"),
    "an option for the output": Mistake(
        "model.onnx --output out.onnx", USAGE, "unrecognized arguments: --output out.onnx"
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "digits_unpadded.onnx", "model.onnx")
    Path("folder").mkdir()
    mistake.make(Path("bad"))
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    capfd.readouterr()
    code = main(mistake.arguments.split())
    out, err = capfd.readouterr()
    said = err[err.index("error: ") + len("error: ") :].rstrip("\n")
    wanted = mistake.says.replace("{folder}", os.path.realpath(tmp_path)).replace("{shape}", "(batch, 1, 28, 28)")
    assert (code, said, out) == (mistake.code, wanted, "")
    if "unrecognized arguments" not in said:
        assert wording.faults(said, outputs=1, given=[w for w in mistake.arguments.split() if w[0] == "-"]) == []
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_enough_mistakes() -> None:
    assert len(MISTAKES) >= 50
