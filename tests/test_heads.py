"""Another head on the maps of a network: it is that layer on the original's features, at every size and in tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from law import model

import onnx_fcn
from onnx_fcn import ModelError, OptionError, ValidationError
from onnx_fcn.fitting.candidates import among, joined, usable
from onnx_fcn.fitting.network import Network, open_network, output_of
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tiles.tiled import open_tiled
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.heads import Head, can_join

#: Networks with maps of several strides: `a`, `c` and `e` are maps, and `f` is what the last layer reads.
PADDED = """
    a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1)  b = Relu (a)
    c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (b, w2)  d = Relu (c)
    e = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
    f = Flatten (e)  y = Gemm (f, w3, w4)
"""
SAME = PADDED.replace("pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER"')
UNPADDED = PADDED.replace(", pads = [1, 1, 1, 1]", "")
POOLED = PADDED.replace("f = Flatten (e)", "p = GlobalAveragePool (e)  f = Flatten (p)")
LAST = """
    t = Transpose <perm = [0, 3, 1, 2]> (x)
    a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (t, w1)  b = Transpose <perm = [0, 2, 3, 1]> (a)
    u = Relu (b)  v = Transpose <perm = [0, 3, 1, 2]> (u)
    d = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (v, w2)  c = Transpose <perm = [0, 2, 3, 1]> (d)
    p = ReduceMean <axes = [1, 2], keepdims = 0> (c)  f = Relu (p)  y = MatMul (f, w3)
"""
SOUND = """
    a = Conv <strides = [3], pads = [2, 2]> (x, w1)  b = Relu (a)
    c = Conv <strides = [2], pads = [1, 1]> (b, w2)  e = Relu (c)
    p = ReduceMean <axes = [2], keepdims = 0> (e)  f = Relu (p)  y = Gemm (f, w3)
"""
SOLID = """
    a = Conv <strides = [2, 2, 2], pads = [1, 1, 1, 1, 1, 1]> (x, w1)  b = Relu (a)
    c = MaxPool <kernel_shape = [2, 2, 2], strides = [2, 2, 2]> (b)
    e = Relu (c)
    f = Flatten (e)  y = Gemm (f, w3)
"""
PLANE = {"w1": (6, 3, 3, 3), "w2": (8, 6, 3, 3), "w4": (5,)}

NETWORKS: dict[str, dict[str, Any]] = {
    "padded": {"body": PADDED, "image": "float[N,3,32,40] x", **PLANE, "w3": (8 * 4 * 5, 5)},
    "unpadded": {"body": UNPADDED, "image": "float[N,3,35,43] x", **PLANE, "w3": (8 * 4 * 5, 5)},
    "same": {"body": SAME, "image": "float[N,3,33,42] x", **PLANE, "w3": (8 * 4 * 5, 5)},
    "pooled": {"body": POOLED, "image": "float[N,3,32,40] x", **PLANE, "w3": (8, 5)},
    "half": {"body": PADDED, "image": "float16[N,3,32,40] x", **PLANE, "w3": (8 * 4 * 5, 5)},
    "batch of one": {"body": PADDED, "image": "float[1,3,32,40] x", **PLANE, "w3": (8 * 4 * 5, 5)},
    "channels last": {
        "body": LAST, "image": "float[N,32,40,3] x", "w1": (6, 3, 3, 3), "w2": (8, 6, 3, 3), "w3": (8, 5),
    },
    "sound": {"body": SOUND, "image": "float[N,2,64] x", "w1": (6, 2, 5), "w2": (8, 6, 3), "w3": (8, 5)},
    "solid": {"body": SOLID, "image": "float[N,1,12,16,12] x", "w1": (6, 1, 3, 3, 3), "w3": (6 * 3 * 4 * 3, 5)},
}  # fmt: skip


def network(name: str, **asked: Any) -> Network:
    return open_network(model(**NETWORKS[name]), asked=Asked(**asked))


def head_on(found: Network, *tensors: str, covers: bool = False, classes: int = 3, seed: int = 0) -> Head:
    """Random weights for a layer on these maps."""
    random, features = np.random.default_rng(seed), [usable(found, t, covers=covers) for t in tensors]
    taps = [f.fact.window if f.covers else (1,) * len(f.fact.space) for f in features]
    kernels = [random.standard_normal((classes, f.fact.width, *t)) for f, t in zip(features, taps)]
    return Head(
        output_of(found, tensors),
        tensors,
        tuple(k / np.sqrt(k[0].size) for k in kernels),
        random.standard_normal(classes),
    )


def run(path: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": image})[0]


def image_of(path: Path, *size: int, seed: int = 0) -> np.ndarray:
    """A random image of this size in the layout that the file reads."""
    geometry = onnx_fcn.read_geometry(path)
    declared = next(i for i in onnx.load(path).graph.input if i.name == "x").type.tensor_type
    sizes = dict(zip([a for a in geometry.layout if a not in "NC"], size)) | {"N": 1}
    shape = [sizes.get(a) or declared.shape.dim[k].dim_value for k, a in enumerate(geometry.layout)]
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type))


CHOICES = [("c",), ("a",), ("a", "c")]


@pytest.mark.parametrize("tensors", CHOICES, ids="+".join)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_file_is_the_layer_on_the_features(name: str, tensors: tuple[str, ...], tmp_path: Path) -> None:
    found = network(name)
    written = found.write(head_on(found, *tensors), tmp_path / "out.onnx", {})
    checks = written.validation.checks
    assert written.validation.passed
    kinds = {check.kind for check in checks}
    assert {"fit", "grid", "metadata"} <= kinds
    larger = [c for c in checks if c.kind == "fit" and c.size != found.walk.image.size]
    assert larger, "larger images are compared too"
    again = onnx_fcn.validate(model(**NETWORKS[name]), tmp_path / "out.onnx")
    assert [c.kind for c in again.checks] == [c.kind for c in checks]


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "channels last"])
def test_the_last_layer_is_replaced(name: str, tmp_path: Path) -> None:
    """The new layer reads what the last one read: the whole window, as the original."""
    found = network(name)
    (candidate,), _ = among(found, "last")
    (feature,) = candidate.features
    assert feature.tensor == "f"
    head = head_on(found, "f", covers=True)
    written = found.write(head, tmp_path / "out.onnx", {})
    notes = [c.note for c in written.validation.checks if c.kind == "fit" and c.size != found.walk.image.size]
    assert any("windows" in note for note in notes)
    assert any("crops" in note for note in notes) == (name == "unpadded")
    answers = onnx_fcn.read_geometry(tmp_path / "out.onnx").of()
    assert answers.window == found.walk.image.size
    assert answers.offset == (0,) * len(answers.window)


def test_a_layer_over_the_window_reads_it_in_the_order_of_the_map(tmp_path: Path) -> None:
    """(K, C, h, w), whatever the order of the flatten."""
    found = network("padded")
    head = head_on(found, "f", covers=True)
    found.write(head, tmp_path / "out.onnx", {})
    image = image_of(tmp_path / "out.onnx", 32, 40)
    graph = model(**NETWORKS["padded"])
    graph.graph.output.append(onnx.ValueInfoProto(name="e"))
    values = onnxruntime.InferenceSession(graph.SerializeToString()).run(["e"], {"x": image})[0]
    want = np.einsum("kcij,ncij->nk", head.kernels[0], values) + head.bias
    np.testing.assert_allclose(run(tmp_path / "out.onnx", image)[..., 0, 0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 40), (48, 56), (61, 75)], ids=str)
def test_skips_are_torch_interpolations(size: tuple[int, int], tmp_path: Path) -> None:
    """Where both maps have their cells in the middle of equal squares, it is bilinear interpolation as torch has it."""
    body = """
        a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  b = Relu (a)
        c = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (b)  e = Relu (c)  f = Flatten (e)  y = Gemm (f, w)
    """
    given = model(body, image="float[N,3,32,40] x", w=(3 * 4 * 5, 5))
    found = open_network(given)
    head = head_on(found, "b", "e")
    found.write(head, tmp_path / "out.onnx", {})
    pixels = image_of(tmp_path / "out.onnx", *size)
    fine = torch.nn.functional.relu(torch.nn.functional.max_pool2d(torch.tensor(pixels), 2))
    coarse = torch.nn.functional.avg_pool2d(fine, 4)
    kernels = [torch.tensor(k.astype(np.float32)) for k in head.kernels]
    scores = [torch.nn.functional.conv2d(m, k) for m, k in zip((fine, coarse), kernels)]
    large = torch.nn.functional.interpolate(scores[1], scale_factor=4, mode="bilinear")
    rows, columns = fine.shape[2:]
    missing = (rows - large.shape[2], columns - large.shape[3])  # the last answer goes on to the border
    large = torch.nn.functional.pad(large, (0, max(missing[1], 0), 0, max(missing[0], 0)), mode="replicate")
    want = scores[0] + large[..., :rows, :columns] + torch.tensor(head.bias.astype(np.float32)).reshape(-1, 1, 1)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", pixels), want.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tensors", CHOICES, ids="+".join)
@pytest.mark.parametrize("name", ["padded", "unpadded", "same", "channels last", "sound", "solid"])
def test_tiles_are_one_pass(name: str, tensors: tuple[str, ...], tmp_path: Path) -> None:
    found = network(name)
    found.write(head_on(found, *tensors), tmp_path / "out.onnx", {})
    tiled = open_tiled(tmp_path / "out.onnx")
    size = tuple(2 * n + 5 + k for k, n in enumerate(found.walk.image.size))
    image = np.random.default_rng(3).standard_normal((tiled.network.channels, *size)).astype(np.float32)
    run = tiled.runner(Preprocessing(scale=1.0))
    whole = run([image])[0]
    for tile in (1, 9, 24):
        tiles = list(tiled.tiling(size, tile))
        for each in tiles if len(tiles) < 60 else np.random.default_rng(tile).permutation(tiles)[:60].tolist():
            part = run([image[(..., *each.pixels)]])[0][(..., *each.kept)]
            np.testing.assert_allclose(part, whole[(..., *each.cells)], rtol=1e-4, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("asked", [{"full_size": True}, {"argmax": True}, {"full_size": True, "argmax": True}], ids=str)
@pytest.mark.parametrize("tensors", [*CHOICES, ("f",)], ids="+".join)
def test_forms(asked: dict[str, Any], tensors: tuple[str, ...], tmp_path: Path) -> None:
    found = network("padded", **asked)
    written = found.write(head_on(found, *tensors, covers=tensors == ("f",)), tmp_path / "out.onnx", {})
    assert {"form", "fit"} <= {c.kind for c in written.validation.checks}
    assert onnx_fcn.validate(model(**NETWORKS["padded"]), tmp_path / "out.onnx").passed
    if asked.get("full_size"):
        shape = run(tmp_path / "out.onnx", image_of(tmp_path / "out.onnx", 51, 47)).shape
        assert shape[-2:] == (51, 47)


@pytest.mark.parametrize("tensors", [*CHOICES, ("f",)], ids="+".join)
@pytest.mark.parametrize("stride", [4, 2])
def test_output_strides(stride: int, tensors: tuple[str, ...], tmp_path: Path) -> None:
    found = network("padded", output_stride=stride)
    written = found.write(head_on(found, *tensors, covers=tensors == ("f",)), tmp_path / "out.onnx", {})
    own = {"a": 2, "c": 4, "f": 8}
    assert set(written.geometry.of().stride) == {min(stride, *(own[t] for t in tensors))}
    dilated = "f" in tensors or (stride < 4 and "c" in tensors)
    assert ("phases" in {c.kind for c in written.validation.checks}) == dilated
    assert onnx_fcn.validate(model(**NETWORKS["padded"]), tmp_path / "out.onnx").passed


@pytest.mark.parametrize("what", ["an addition", "the trunk", "the triangle"])
def test_a_wrong_file_is_found(what: str, tmp_path: Path) -> None:
    found = network("padded")
    found.write(head_on(found, "a", "c"), tmp_path / "out.onnx", {})
    changed = onnx.load(tmp_path / "out.onnx")
    weights = {t.name: t for t in changed.graph.initializer}
    if what == "an addition":
        last = next(n for n in changed.graph.node if "y" in n.output)
        last.output[0] = "y/map"
        changed.graph.node.append(onnx.helper.make_node("Add", ["y/map", "one"], ["y"]))
        changed.graph.initializer.append(onnx.numpy_helper.from_array(np.full(1, 0.01, np.float32), "one"))
    else:
        up = next(n for n in changed.graph.node if n.op_type == "ConvTranspose")
        tensor = weights[{"the trunk": "w2", "the triangle": up.input[1]}[what]]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[..., :-1] = values[..., 1:].copy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(changed, tmp_path / "changed.onnx")
    with pytest.raises(ValidationError, match=r"does not answer as trained: .*the trained layer on the original's"):
        onnx_fcn.validate(model(**NETWORKS["padded"]), tmp_path / "changed.onnx")


def test_metadata_that_are_wrong(tmp_path: Path) -> None:
    """The answers are right, so it is the description that is blamed."""
    found = network("padded")
    found.write(head_on(found, "c"), tmp_path / "out.onnx", {})
    changed = onnx.load(tmp_path / "out.onnx")
    entry = next(e for e in changed.metadata_props if e.key == "onnx_fcn.output.y")
    entry.value = json.dumps({**json.loads(entry.value), "offset": [1, 1]})
    onnx.save(changed, tmp_path / "changed.onnx")
    with pytest.raises(ValidationError, match=r"the converted model is not what it says: .*the offset is given as"):
        onnx_fcn.validate(model(**NETWORKS["padded"]), tmp_path / "changed.onnx")


def test_own_images_are_compared_too(tmp_path: Path) -> None:
    found = network("padded")
    found.write(head_on(found, "c"), tmp_path / "out.onnx", {})
    image = image_of(tmp_path / "out.onnx", 32, 40, seed=5)
    validation = onnx_fcn.validate(model(**NETWORKS["padded"]), tmp_path / "out.onnx", data=image)
    plain = onnx_fcn.validate(model(**NETWORKS["padded"]), tmp_path / "out.onnx")
    assert len(validation.checks) == len(plain.checks) + 2


def test_metadata_that_do_not_fit(tmp_path: Path) -> None:
    found = network("padded")
    found.write(head_on(found, "c"), tmp_path / "out.onnx", {})

    def changed(**values: Any) -> Path:
        proto = onnx.load(tmp_path / "out.onnx")
        entry = next(e for e in proto.metadata_props if e.key == "onnx_fcn.fit")
        entry.value = json.dumps({**json.loads(entry.value), **values})
        onnx.save(proto, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    original = model(**NETWORKS["padded"])
    for values, match in (
        ({"nodes": ["no such node"]}, "as a trained layer, but the file has no such Conv: compare the file as fit"),
        ({"nodes": []}, "does not name one node for each map"),
        ({"tensors": 5}, "is not a list"),
        ({"tensors": ["zzz"]}, "do not fit the original"),
        ({"tensors": ["a"]}, "do not fit the original"),
        ({"output": "z"}, "do not fit|is not a conversion"),
        ({"output": ""}, "what the metadata|cannot be read"),
    ):
        with pytest.raises(ModelError, match=match):
            onnx_fcn.validate(original, changed(**values))


def test_a_trained_file_does_not_fit_another_model(tmp_path: Path) -> None:
    found = network("padded")
    found.write(head_on(found, "c"), tmp_path / "out.onnx", {})
    other = model(**NETWORKS["padded"])
    tensor = next(t for t in other.graph.initializer if t.name == "w2")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), "w2"))
    with pytest.raises(ValidationError, match="the trained layer on the original's features"):
        onnx_fcn.validate(other, tmp_path / "out.onnx")


def test_what_cannot_be_read() -> None:
    found = network("padded")
    for at, match in (
        ("cc", "the model has no tensor 'cc': did you mean 'c'"),
        ("zzz", "the model has no tensor 'zzz': its last maps are"),
        ("w1", "'w1' does not depend on the position"),
        ("stride:3", "has a stride of 3 pixels: the strides are"),
        ("c,c", "--at names each map once"),
    ):
        with pytest.raises(OptionError, match=match):
            among(found, at)
    gate = """
        a = Conv <strides = [2, 2]> (x, w1)  g = GlobalAveragePool (a)  s = Sigmoid (g)  c = Mul (a, s)
        p = GlobalAveragePool (c)  f = Flatten (p)  l = Gemm (f, w3)  y = Softmax (l)
    """
    gated = open_network(model(gate, image="float[N,3,32,40] x", w1=(6, 3, 3, 3), w3=(6, 5)))
    with pytest.raises(OptionError, match=r"'c' depends on the whole image.*choose an earlier map with --at"):
        among(gated, "c")
    pool = "a = Conv <strides = [2, 2]> (x, w1)  b = Relu (a)  p = GlobalMaxPool (b)  y = Flatten (p)"
    flat = open_network(model(pool, image="float[N,3,32,40] x", w1=(6, 3, 3, 3)))
    with pytest.raises(OptionError, match=r"ends with GlobalMaxPool.*--at cut"):
        among(flat, "last")


def test_a_map_of_one_native_cell_is_where_it_looks(tmp_path: Path) -> None:
    """28 → 14 → 7 → 3 → 1 cells: the last map is in the middle of what it sees, which is not that of the window."""
    body = "".join(f"m{k} = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m{k - 1})  " for k in range(2, 5))
    given = model(
        f"m0 = Conv <pads = [1, 1, 1, 1]> (x, w1)  m1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m0)  {body}"
        "f = Flatten (m4)  y = Gemm (f, w2)",
        image="float[N,1,28,28] x", w1=(4, 1, 3, 3), w2=(4, 3),
    )  # fmt: skip
    found = open_network(given)
    found.write(head_on(found, "m4"), tmp_path / "out.onnx", {})
    answers = onnx_fcn.read_geometry(tmp_path / "out.onnx").of()
    field = found.map_at("m4").space[0].field
    assert (answers.offset[0], answers.window[0]) == (field.start, field.size)
    assert answers.grid(60, 60).pixel_of(0, 0)[0] == float(field.centre) != 13.5
    assert onnx_fcn.validate(given, tmp_path / "out.onnx").passed


@pytest.mark.parametrize("asked", [{}, {"full_size": True}], ids=str)
def test_one_axis_written_as_two(asked: dict[str, Any], tmp_path: Path) -> None:
    given = model(
        "z = Unsqueeze (x, ax)  a = Conv <strides = [1, 3], pads = [0, 2, 0, 2]> (z, w1)  b = Relu (a)"
        "p = GlobalAveragePool (b)  f = Flatten (p)  y = MatMul (f, w3)",
        image="float[N,1,64] x", ax=[2], w1=(6, 1, 1, 5), w3=(6, 5),
    )  # fmt: skip
    found = open_network(given, asked=Asked(**asked))
    written = found.write(head_on(found, "b"), tmp_path / "out.onnx", {})
    assert written.geometry.of().layout == ("" if asked else "NCW")
    assert onnx_fcn.validate(given, tmp_path / "out.onnx").passed


def test_maps_that_cannot_be_joined() -> None:
    """In opset 8 a map cannot be cropped at run time."""
    early = open_network(model(**{**NETWORKS["padded"], "opset": 8}))
    assert not can_join(early.walk, ("a", "c"))
    assert can_join(network("padded").walk, ("a", "c"))
    with pytest.raises(OptionError, match=r"the maps 'a', 'c' cannot be combined: .*requires opset 9"):
        early.write(head_on(early, "a", "c"), None, {})


def test_candidates_of_every_stride() -> None:
    found = network("padded")
    candidates, refused = among(found, "auto")
    assert [(c.name, c.tensors) for c in candidates] == [("last", ("f",)), ("cut", ("e",)), ("stride 4", ("d",))]
    assert not refused
    expanded = """
        a = Conv <strides = [4, 4]> (x, w1)  b = Conv (a, w2)  c = Relu (b)
        d = Conv <strides = [2, 2]> (c, w3)  e = Relu (d)  f = Flatten (e)  y = Gemm (f, w4)
    """
    weights = {"w1": (4, 3, 4, 4), "w2": (24, 4, 1, 1), "w3": (6, 24, 2, 2), "w4": (6 * 4 * 5, 5)}
    narrow = open_network(model(expanded, image="float[N,3,32,40] x", **weights))
    assert among(narrow, "stride:4")[0][0].tensors == ("a",), "what follows is computed from it cell by cell"
    both, _ = among(found, "stride:4,2")
    assert both[0].tensors == ("b", "d")
    assert both[0].name == "stride 2+4"
    assert joined([usable(found, "d"), usable(found, "b")]).numbers == 14
