"""Class activation maps: the layers after a pooling at each cell of the map, whose mean over a window is its score.

The networks pad nothing, so the scores are those of the original on crops, which numpy cuts out; numpy also takes the
mean, or the maximum, of the cells in each window.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dask.array
import exports
import law
import numpy as np
import onnx
import pytest
from mutations import mutants
from onnx import ModelProto
from test_forms import TRUNK, answers, attribute, close, edited, images, made, operator, plain, spelled
from test_mutations import Judged, sampled
from test_mutations import answers as answers_of

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import OptionError, ValidationError
from onnx_fcn.cli import main

Array = np.ndarray

WEIGHTS: dict[str, Any] = {
    "k": (6, 3, 3, 3), "w": (6, 7), "b": (7,), "v": (7, 6, 1, 1), "u": (6, 2, 1, 1), "t": (2, 6, 1, 1), "two": (12, 7),
    "z": (6, 6, 2, 2), "flat": (72, 7), "s": [0, 6, -1], "axes": [2, 3], "cells": 12.0, "q": law.positive("q", 6),
    "r": (6, 6, 2),
}  # fmt: skip
DENSE = "d = Gemm (f, w, b)"
MEAN = f"g = GlobalAveragePool (m)  f = Flatten (g)  {DENSE}"
EACH = "c1 = Conv (m, v, b)"
GATE = "p = GlobalAveragePool (m)  e = Conv (p, t)  h = Relu (e)  i = Conv (h, u)  a = Sigmoid (i)  n = Mul (m, a)"

#: Heads with a mean over all positions, and only affine layers after it.
MEANS = {
    "pooled": f"{MEAN}  y = Identity (d)",
    "by a kernel as large as the map": "g = AveragePool <kernel_shape = [4, 3]> (m)  f = Flatten (g)  y = Gemm (f, w)",
    "reduced": "g = ReduceMean <axes = [2, 3], keepdims = 0> (m)  o = MatMul (g, w)  y = Add (o, b)",
    "one axis after the other": "h = ReduceMean <axes = [3], keepdims = 0> (m)  "
    "f = ReduceMean <axes = [2], keepdims = 0> (h)  y = Gemm (f, w)",
    "with a layer between the axes": "h = ReduceMean <axes = [3], keepdims = 0> (m)  o = Conv (h, r)  "
    "f = ReduceMean <axes = [2], keepdims = 0> (o)  y = Gemm (f, w)",
    "a sum, divided": "g = ReduceSum <keepdims = 0> (m, axes)  f = Div (g, cells)  y = Gemm (f, w)",
    "of flat positions": "o = Reshape (m, s)  f = ReduceMean <axes = [2], keepdims = 0> (o)  y = Gemm (f, w)",
    "channels last": "o = Transpose <perm = [0, 2, 3, 1]> (m)  f = ReduceMean <axes = [1, 2], keepdims = 0> (o)  "
    "y = Gemm (f, w)",
    "a convolution": "g = GlobalAveragePool (m)  o = Conv (g, v, b)  y = Flatten (o)",
    "normalised": "g = GlobalAveragePool (m)  f = Flatten (g)  n = BatchNormalization (f, q, q, q, q)  y = Gemm (n, w)",
    "a layer at each position, then the mean": f"{EACH}  h = Tanh (c1)  g = GlobalAveragePool (h)  y = Flatten (g)",
    "two means": "g = GlobalAveragePool (m)  h = GlobalAveragePool (c)  o = Concat <axis = 1> (g, h)  f = Flatten (o)  "
    "y = MatMul (f, two)",
}

#: Heads with a maximum over all positions, and nothing after it.
MAXIMA = {
    "pooled": f"{EACH}  g = GlobalMaxPool (c1)  y = Flatten (g)",
    "by a kernel as large as the map": f"{EACH}  g = MaxPool <kernel_shape = [4, 3]> (c1)  y = Flatten (g)",
    "reduced": f"{EACH}  y = ReduceMax <axes = [2, 3], keepdims = 0> (c1)",
}

PROBABILITIES = ("Softmax", "LogSoftmax", "Sigmoid")


def network(
    head: str = MEANS["pooled"], *, outputs: str = "y", image: str = "float[N,3,9,7] x", trunk: str = TRUNK
) -> ModelProto:
    """A network with windows of 9×7 pixels, every 2, and a last map of 4×3 cells."""
    body = f"{trunk}  {head}"
    used = {name: value for name, value in WEIGHTS.items() if re.search(rf"[(,] ?{name}[,)]", body)}
    return law.model(body, image=image, outputs=outputs, **used)


def over_windows(cells: Array, kind: str, rate: int = 1) -> Array:
    """(N, K, *cells) → (N, K, *windows): the mean or the maximum of the 4×3 cells of each window."""
    shown = np.lib.stride_tricks.sliding_window_view(cells.astype(np.float64), (3 * rate + 1, 2 * rate + 1), (2, 3))
    windows = shown[..., ::rate, ::rate]
    return windows.mean((-2, -1)) if kind == "mean" else windows.max((-2, -1))


HEADS = [("mean", h) for h in MEANS] + [("max", h) for h in MAXIMA]


@pytest.mark.parametrize(("kind", "name"), HEADS, ids=[f"{kind}: {name}" for kind, name in HEADS])
def test_cells_of_a_window_pool_to_its_score(kind: str, name: str) -> None:
    original = network({"mean": MEANS, "max": MAXIMA}[kind][name])
    converted = made(original, cam=True)
    assert not {"GlobalAveragePool", "AveragePool", "ReduceMean", "MaxPool"} & {n.op_type for n in converted.graph.node}
    for image in images(original):
        (cells,) = answers(converted, image)
        pooled = over_windows(cells, kind) if "between" not in name else cells_between(cells)
        close(pooled, plain(original, image)[0])


def cells_between(cells: Array) -> Array:
    """The means of windows whose rows a convolution over two of them has made one less."""
    return np.lib.stride_tricks.sliding_window_view(cells.astype(np.float64), (3, 3), (2, 3)).mean((-2, -1))


def test_each_cell_is_the_layer_at_that_cell() -> None:
    original = network()
    features = onnx_fcn.convert(original, outputs=["m"], validate=False).to_proto()
    w, b = (onnx.numpy_helper.to_array(t) for n in "wb" for t in original.graph.initializer if t.name == n)
    for image in images(original):
        (m,) = law.session(features)({"x": image})
        close(answers(made(original, cam=True), image)[0], np.einsum("nchw,co->nohw", m, w) + b[:, None, None])


@pytest.mark.parametrize("closing", PROBABILITIES)
@pytest.mark.parametrize("head", [MEANS["pooled"], MAXIMA["pooled"]], ids=["mean", "max"])
def test_closing_probabilities_are_left_out_with_a_note(head: str, closing: str) -> None:
    scores = network(head)
    original = network(head.replace("y = ", "o = ") + f"  y = {closing} (o)")
    conversion, others = onnx_fcn.convert(original, cam=True), onnx_fcn.convert(original, cam=True, logits=True)
    for image in images(original):
        want = answers(made(scores, cam=True), image)[0]
        for each in (conversion, others):
            close(answers(each.to_proto(), image)[0], want)
    note = "'y' has scores instead of probabilities, as with --logits: a mean of probabilities is not that of the mean."
    assert note in conversion.report.caveats
    assert note not in others.report.caveats


def test_in_between_operators_dilate() -> None:
    original = network()
    (coarse,), (fine,) = ([made(original, cam=True, **o)] for o in ({}, {"output_stride": 1}))
    for image in images(original):
        cells = answers(fine, image)[0]
        close(cells[..., ::2, ::2], answers(coarse, image)[0])
        close(over_windows(cells, "mean", rate=2), plain(original, image, (1, 1))[0])


@pytest.mark.parametrize(
    "given",
    [{"image": "float16[N,3,9,7] x"}, {"image": "float[2,3,9,7] x"},
     {"head": f"{MEAN}  y = Identity (d)  z = Relu (m)"},
     {"head": f"{GATE}  {MEAN.replace('(m)', '(n)')}  y = Identity (d)"}],
    ids=["fp16", "a fixed batch", "a map beside", "a gate"],
)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [{}, {"full_size": True}, {"argmax": True}, {"full_size": True, "argmax": True}, {"output_stride": 1},
     {"slide": ["width"]}, {"head": "folded"}],
    ids=str,
)  # fmt: skip
def test_a_written_file_is_verified(given: dict[str, str], options: dict[str, Any], tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(network(**given, outputs="y, z" if " z = " in given.get("head", "") else "y"), source)
    report = onnx_fcn.convert(source, out, cam=True, **options).report
    assert onnx_fcn.validate(source, out).passed
    geometry = onnx_fcn.read_geometry(out)
    assert geometry == report.geometry
    form = " ".join(["cam", *(w for w, key in (("full-size", "full_size"), ("argmax", "argmax")) if key in options)])
    assert geometry.of("y").form == report.to_dict()["geometry"]["y"]["form"] == form
    assert f"\nform     {form}: the answer of each cell; " in str(report)
    entry = next(p.value for p in onnx.load(out).metadata_props if p.key == "onnx_fcn.asked")
    assert json.loads(entry)["cam"] is True
    command = [str(source), str(tmp_path / "cli.onnx"), "--quiet", *spelled({"cam": True, **options})]
    assert main(command) == 0
    assert out.read_bytes() == (tmp_path / "cli.onnx").read_bytes()
    assert main(["--verify", str(source), str(out), "--quiet"]) == 0


@pytest.mark.parametrize("head", [MEAN, f"{GATE}  {MEAN.replace('(m)', '(n)')}"], ids=["local", "gated"])
def test_a_cell_lies_where_the_map_has_it(head: str) -> None:
    original = network(f"{head}  y = Identity (d)")
    cam, features = (
        onnx_fcn.convert(original, **options).report.geometry.of()
        for options in ({"cam": True}, {"outputs": ["n" if "(n)" in head else "m"]})
    )
    for key in ("window", "stride", "offset", "field", "count", "inner", "exactness", "layout"):
        assert getattr(cam, key) == getattr(features, key)
    assert (cam.window, cam.offset, cam.grid(20, 15).shape) == ((3, 3), (0, 0), (9, 7))


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_an_export_of_torch(dynamo: bool, tmp_path: Path) -> None:
    """A residual network with gates: its mean at the native size, its tiles, and its class map."""
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    exports.export(exports.se_resnet_small(), source, 64, dynamo=dynamo, opset=18)
    report = onnx_fcn.convert(source, out, cam=True).report
    assert (report.stride, report.outputs[0].after[1], report.geometry.of().exactness) == ((16, 16), 10, "context")
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    (cells,), (scores,) = (law.session(onnx.load(path))({"image": image}) for path in (out, source))
    assert cells.shape == (2, 10, 4, 4)
    close(cells.mean((2, 3)), scores, 1e-4)


@pytest.mark.parametrize("trunk", [TRUNK, TRUNK.replace("]>", "], pads = [1, 1, 1, 1]>")], ids=["unpadded", "padded"])
def test_commands_on_images_take_it_for_a_map(trunk: str, tmp_path: Path) -> None:
    """On tiles, on dask arrays, and as a heat map."""
    out, found = tmp_path / "out.onnx", tmp_path / "found.npy"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3)).astype(np.uint8)
    image = pixels.transpose(2, 0, 1).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "pixels.npy", pixels)
    onnx_fcn.convert(network(trunk=trunk), out, cam=True)
    (cells,) = law.session(onnx.load(out))({"x": image[None]})
    onnx_fcn.apply(out, tmp_path / "image.npy", found, tile=24)
    close(np.load(found), cells[0])
    close(onnx_fcn.dask.apply(out, dask.array.from_array(image), tile=24).compute(scheduler="sync"), cells[0])
    words = [
        str(out),
        str(tmp_path / "pixels.npy"),
        str(tmp_path / "heat.npy"),
        "--class",
        "3",
        "--scale",
        "1",
        "--quiet",
    ]
    assert main(["heatmap", *words]) == 0
    assert np.load(tmp_path / "heat.npy").shape[-2:] == (60, 50)
    onnx_fcn.convert(network(trunk=trunk), out, cam=True, argmax=True)
    onnx_fcn.apply(out, tmp_path / "image.npy", tmp_path / "best.npy", tile=24)
    np.testing.assert_array_equal(np.load(tmp_path / "best.npy"), cells[0].argmax(0))


WHY = " no class activation map, whose mean or maximum over a window would be its score: "
WITHOUT = " (leave --cam out: the plain map, or a finer one by --output-stride, has the scores of windows"

REFUSED = {
    "a hidden layer": (
        "g = GlobalAveragePool (m)  f = Flatten (g)  o = Gemm (f, w)  [hidden] h = Relu (o)  y = Neg (h)",
        f"'y' has{WHY}Relu 'hidden' after the mean is not known to be affine{WITHOUT})"),
    "a relu between the axes": (
        "h = ReduceMean <axes = [3], keepdims = 0> (m)  [between] o = Relu (h)  "
        "f = ReduceMean <axes = [2], keepdims = 0> (o)  y = Gemm (f, w)",
        f"'y' has{WHY}Relu 'between' after the mean is not known to be affine{WITHOUT})"),
    "a product of means": (
        "g = GlobalAveragePool (m)  f = Flatten (g)  [square] h = Mul (f, f)  y = Gemm (h, w)",
        f"'y' has{WHY}Mul 'square' after the mean is not known to be affine{WITHOUT})"),
    "a rounded mean": (
        f"{MEAN}  [whole] y = Cast <to = 6> (d)",
        f"'y' has{WHY}Cast 'whole' after the mean is not known to be affine{WITHOUT})"),
    "a quotient of means": (
        "g = GlobalAveragePool (m)  f = Flatten (g)  [inverse] h = Div (cells, f)  y = Gemm (h, w)",
        f"'y' has{WHY}Div 'inverse' after the mean is not known to be affine{WITHOUT})"),
    "a layer after a maximum": (
        "g = GlobalMaxPool (m)  f = Flatten (g)  [scores] y = Gemm (f, w)",
        f"'y' has{WHY}Gemm 'scores' after the maximum does more than move values{WITHOUT})"),
    "a dense layer on all positions": (
        "f = Flatten (m)  [scores] y = Gemm (f, flat)",
        f"'y' has{WHY}Gemm 'scores' takes all positions together, and is no mean or maximum of floats{WITHOUT})"),
    "another norm": (
        "[norm] g = GlobalLpPool (m)  f = Flatten (g)  y = Gemm (f, w)",
        f"'y' has{WHY}GlobalLpPool 'norm' takes all positions together, and is no mean or maximum of floats"
        f"{WITHOUT})"),
    "a mean beside a maximum": (
        "g = GlobalAveragePool (m)  h = GlobalMaxPool (m)  [both] o = Concat <axis = 1> (g, h)  f = Flatten (o)  "
        "y = MatMul (f, two)",
        f"'y' has{WHY}Concat 'both' joins poolings of different kinds, or of different maps{WITHOUT})"),
    "means of different maps": (
        "e = Conv (m, z)  g = GlobalAveragePool (m)  h = GlobalAveragePool (e)  [both] o = Concat <axis = 1> (g, h)  "
        "f = Flatten (o)  y = MatMul (f, two)",
        f"'y' has{WHY}Concat 'both' joins poolings of different kinds, or of different maps{WITHOUT})"),
    "a mean beside a dense layer": (
        f"{MEAN}  f1 = Flatten (m)  o = MatMul (f1, flat)  [both] y = Add (d, o)",
        f"'y' has{WHY}MatMul 'o' takes all positions together, and is no mean or maximum of floats{WITHOUT})"),
    "a maximum of one axis, a mean of the other": (
        "h = ReduceMax <axes = [3], keepdims = 0> (m)  [mean] f = ReduceMean <axes = [2], keepdims = 0> (h)  "
        "y = Gemm (f, w)",
        f"'y' has{WHY}ReduceMean 'mean' pools in another way than the pooling before it{WITHOUT})"),
    "a part of the positions": (
        "[some] g = AveragePool <kernel_shape = [3, 3], strides = [3, 3]> (m)  f = Flatten (g)  y = Gemm (f, w)",
        f"the network has{WHY}AveragePool 'some' does not pool exactly the positions of the map{WITHOUT})"),
    "features of all positions": (
        "y = Flatten (m)", f"'y' has{WHY}it is not pooled over all positions{WITHOUT})"),
    "the mean of one axis": (
        "g = ReduceMean <axes = [2], keepdims = 0> (m)  y = Flatten (g)",
        f"'y' has{WHY}it is not pooled over all positions{WITHOUT})"),
    "one of two outputs": (
        f"{MEAN}  y = Identity (d)  [other] z = Relu (d)",
        f"'z' has{WHY}Relu 'other' after the mean is not known to be affine{WITHOUT}, or choose other outputs with "
        "--outputs)"),
    "no head": (
        "y = Relu (m)",
        "the network answers for each position already, without a head, so its maps cannot become 'cam'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, message = REFUSED[name]
    original, source, out = network(head, outputs="y, z" if " z = " in head else "y"), tmp_path / "m", tmp_path / "out"
    with pytest.raises(OptionError) as refusal:
        onnx_fcn.convert(original, cam=True)
    assert str(refusal.value) == message
    onnx.save(original, source)
    assert main([str(source), str(out), "--cam"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


CONTRADICTIONS = [
    ({"reduce": "mean"}, "--reduce and --cam contradict each other"),
    ({"keep_size": True}, "--keep-size and --cam contradict each other"),
    ({"windows": True}, "--windows and --cam contradict each other"),
    ({"output_stride": 4}, "--cam answers at every cell of the network's map, and takes no coarser --output-stride"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS, ids=[m for _, m in CONTRADICTIONS])
def test_contradictions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        onnx_fcn.convert(network(), cam=True, **options)


@pytest.mark.parametrize("head", [MEANS["pooled"], MEANS["normalised"], MAXIMA["pooled"]], ids=["mean", "bn", "max"])
def test_every_fault_is_rejected(head: str) -> None:
    original = network(head)
    conversion = onnx_fcn.convert(original, cam=True)
    converted = conversion.to_proto()
    judges = sampled(converted, conversion.report.window)
    judged = Judged(original, converted, judges, [answers_of(converted, image) for image in judges])
    changes = {what: judged.change(mutant) for what, mutant in mutants(converted)}
    assert sum(change is None for change in changes.values()) > 15
    assert {what: change for what, change in changes.items() if (change or 0) > judged.rounding} == {}


def test_cells_that_no_maximum_shows_are_compared() -> None:
    """A fault in small answers only, where the largest of each window stay."""
    original = network(MAXIMA["pooled"])
    converted = made(original, cam=True)
    faulty = ModelProto()
    faulty.CopyFrom(converted)
    last = faulty.graph.node[-1]
    last.output[0] = "right"
    faulty.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(-0.5), "least"))
    faulty.graph.node.append(onnx.helper.make_node("Max", ["right", "least"], ["y"]))
    with pytest.raises(ValidationError, match="a cell of the map"):
        onnx_fcn.validate(original, faulty)


def test_a_plain_map_is_no_activation_map() -> None:
    original = network()
    cam, mean = made(original, cam=True), made(original)
    asked = next(p for p in cam.metadata_props if p.key == "onnx_fcn.asked")
    mean.metadata_props.append(asked)
    with pytest.raises(ValidationError):
        onnx_fcn.validate(original, mean)
    best = made(original, cam=True, argmax=True)
    for fault in (operator("ArgMin"), attribute("axis", 3)):
        with pytest.raises(ValidationError):
            onnx_fcn.validate(original, edited(best, "ArgMax", fault))


def test_outputs_of_different_strides_are_asked_for_alone() -> None:
    """On the grid of both, not all cells would be those of the coarser one."""
    model = law.model(
        "m = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k)  g = GlobalAveragePool (m)  f = Flatten (g)  "
        "y = MatMul (f, w)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)  h = GlobalAveragePool (p)  "
        "e = Flatten (h)  z = MatMul (e, v)",
        image="float[N,3,16,16] x", outputs="y, z", k=(4, 3, 3, 3), w=(4, 5), v=(4, 5),
    )  # fmt: skip
    with pytest.raises(OptionError, match=r"'z' pools a map with larger strides than another output.*--outputs z"):
        onnx_fcn.convert(model, cam=True)
    coarse = onnx_fcn.convert(model, cam=True, outputs=["z"]).report.geometry.of()
    finer = onnx_fcn.convert(model, cam=True, outputs=["z"], output_stride=2).report.geometry.of()
    assert (coarse.stride, finer.stride) == ((4, 4), (2, 2))
    assert coarse.grid(32, 32).pixel_of(3, 3) == finer.grid(32, 32).pixel_of(6, 6)
