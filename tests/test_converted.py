"""Converted files of all layouts, types and forms: the same answers in one pass and in tiles, whatever was renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array
import law
import numpy as np
import onnx
import onnxruntime
import pytest
from test_tiles import assert_same, converted, noise, once

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import DenseModel, ModelError, OptionError, Preprocessing
from onnx_fcn.running.network import open_converted
from onnx_fcn.running.preprocess import changed

HEAD = "m = Conv <strides = [2, 2], pads = [1, 0, 1, 1]> ({0}, k)  f = Flatten (m)  y = MatMul (f, w)"
WEIGHTS: dict[str, Any] = {"k": (4, 3, 3, 3), "w": (4 * 36, 5)}

#: layout: (body, image, weights, the shape of an image of 31×40, 90 or 21×13×17 pixels).
LAYOUTS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "NCHW": (HEAD.format("x"), "float[N,3,12,13] x", WEIGHTS, (1, 3, 31, 40)),
    "NHWC": (
        "t = Transpose <perm = [0, 3, 1, 2]> (x)  " + HEAD.format("t"),
        "float[N,12,13,3] x",
        WEIGHTS,
        (1, 31, 40, 3),
    ),
    "CHW": ("t = Unsqueeze (x, z)  " + HEAD.format("t"), "float[3,12,13] x", {**WEIGHTS, "z": [0]}, (3, 31, 40)),
    "NHW": (
        "t = Unsqueeze (x, z)  " + HEAD.format("t"),
        "float[N,12,13] x",
        {"k": (4, 1, 3, 3), "w": WEIGHTS["w"], "z": [1]},
        (1, 31, 40),
    ),
    "NCW": (
        "m = Conv <strides = [3], pads = [4, 2]> (x, k)  f = Flatten (m)  y = MatMul (f, w)",
        "float[N,2,33] x",
        {"k": (4, 2, 7), "w": (44, 5)},
        (1, 2, 90),
    ),
    "NCDHW": (
        "m = Conv <strides = [2, 1, 2], pads = [1, 1, 1, 0, 1, 0]> (x, k)  f = Flatten (m)  y = MatMul (f, w)",
        "float[N,2,8,5,7] x",
        {"k": (3, 2, 3, 3, 3), "w": (3 * 4 * 5 * 3, 5)},
        (1, 2, 21, 13, 17),
    ),
}  # fmt: skip


def made(layout: str, **how: Any) -> onnx.ModelProto:
    body, image, weights, _ = LAYOUTS[layout]
    return onnx_fcn.convert(law.model(body, image=image, opset=18, **weights), validate=False, **how).to_proto()


def renamed(model: onnx.ModelProto, *, keep: bool = False) -> onnx.ModelProto:
    """The model as another tool may leave it: other names of sizes or none, and no shapes in between."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]
    for tensor in (*changed.graph.input, *changed.graph.output):
        for k, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if dim.HasField("dim_param"):
                dim.ClearField("dim_param")
                if keep:
                    dim.dim_param = f"width{k}"
    return changed


@pytest.mark.parametrize("keep", [True, False], ids=["renamed", "nameless"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_axes_do_not_need_names(layout: str, keep: bool, tmp_path: Path) -> None:
    model, shape = made(layout), LAYOUTS[layout][3]
    image = noise(*shape)
    (expected,) = law.session(model)({"x": image})
    changed = renamed(model, keep=keep)
    onnx.save(changed, tmp_path / "out.onnx")
    assert onnx_fcn.read_geometry(changed).layout == layout
    found = open_converted(tmp_path / "out.onnx")
    assert (found.image, found.layout, found.width) == ("x", layout, 5)
    assert_same(DenseModel(changed).run_tensor(image).map, expected[0])
    plain = np.moveaxis(image, layout.index("C"), 0) if "C" in layout else image
    plain = plain.reshape(found.channels, *found.size_of(image))
    np.save(tmp_path / "image.npy", plain)
    onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", tile=8)
    assert_same(np.load(tmp_path / "map.npy"), expected[0])
    tiled = onnx_fcn.dask.apply(tmp_path / "out.onnx", dask.array.from_array(plain), tile=12)
    assert_same(tiled.compute(scheduler="sync"), expected[0])


def test_metadata_that_contradicts_the_graph_is_refused(tmp_path: Path) -> None:
    def entry(model: onnx.ModelProto, key: str) -> onnx.StringStringEntryProto:
        return next(e for e in model.metadata_props if e.key == f"onnx_fcn.{key}")

    def refused(words: str, change: Any) -> None:
        model = made("NCHW")
        change(model)
        onnx.save(model, tmp_path / "out.onnx")
        np.save(tmp_path / "image.npy", noise(3, 40, 50))
        for run in (
            lambda: onnx_fcn.read_geometry(tmp_path / "out.onnx"),
            lambda: DenseModel(model),
            lambda: onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy"),
        ):
            with pytest.raises(ModelError, match=f"{words}.*convert the original again"):
                run()

    refused("it lacks 'layout'", lambda m: m.metadata_props.remove(entry(m, "layout")))
    for text in ("NCW", "NCDHW", "NCHH", "NCHWX", "nchw", ""):
        refused(f"'{text}' is not a layout of 2 axes", lambda m, text=text: setattr(entry(m, "layout"), "value", text))
    refused("the axes of 'x' are CHW, but it has 4", lambda m: setattr(entry(m, "layout"), "value", "CHW"))
    refused("no input 'z', which its metadata calls", lambda m: setattr(entry(m, "image"), "value", "z"))
    refused("but it has 0", lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"))


def test_channels_have_to_be_known() -> None:
    model = made("NCHW")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    with pytest.raises(ModelError, match="'y' does not say how many channels it has: convert the original again"):
        DenseModel(model)


#: Networks without a head: their maps stay in the original's axes.
HEADLESS = {
    "NHWC": ("t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (t, k)  "
             "y = Transpose <perm = [0, 2, 3, 1]> (c)", "float[N,12,13,2] x", "NHWC"),
    "one channel": ("c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  s = ReduceSum <keepdims = 1> (c, one)  "
                    "y = Identity (s)", "float[N,2,12,13] x", "NCHW"),
    "a single cell across": ("y = Conv <strides = [2, 9], pads = [1, 1, 1, 1]> (x, k)", "float[N,2,12,4] x", "NCHW"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADLESS)
def test_maps_of_networks_without_a_head(name: str, tmp_path: Path) -> None:
    body, image, layout = HEADLESS[name]
    path = converted(tmp_path, law.model(body, image=image, opset=18, k=(3, 2, 3, 3), one=[1]))
    assert onnx_fcn.read_geometry(path).of().layout == layout
    values = noise(2, 31, 40)
    seen = values.transpose(1, 2, 0) if layout == "NHWC" else values
    expected = once(path, seen)
    expected = expected.transpose(2, 0, 1) if layout == "NHWC" else expected
    np.save(tmp_path / "image.npy", values)
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=10)
    assert_same(np.load(tmp_path / "map.npy"), expected)
    assert_same(DenseModel(path).run_tensor(seen[None]).map, expected)


# Forms and heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCW", "NCDHW"])
def test_folded_heads(layout: str, batch: int, tmp_path: Path) -> None:
    """The batch goes into a spatial axis around the head, and comes out again: tiles of a batch keep apart."""
    onnx.save(made(layout, head="folded"), tmp_path / "out.onnx")
    image = noise(*LAYOUTS[layout][3])
    (expected,) = law.session(made(layout))({"x": image})
    np.save(tmp_path / "image.npy", np.moveaxis(image, layout.index("C"), 1)[0])
    onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", tile=9, batch=batch)
    assert_same(np.load(tmp_path / "map.npy"), expected[0])
    assert_same(DenseModel(tmp_path / "out.onnx").run_tensor(image).map, expected[0])


@pytest.mark.parametrize("how", [{"argmax": True}, {"output_stride": 1}, {"output_stride": 1, "argmax": True}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forms_and_strides(layout: str, how: dict[str, Any], tmp_path: Path) -> None:
    try:
        model = made(layout, **how)
    except OptionError:
        pytest.skip("strides of its axes differ")
    onnx.save(model, tmp_path / "out.onnx")
    image = noise(*LAYOUTS[layout][3])
    (expected,) = law.session(model)({"x": image})
    plain = np.moveaxis(image, layout.index("C"), 0) if "C" in layout else image
    found = open_converted(tmp_path / "out.onnx")
    np.save(tmp_path / "image.npy", plain.reshape(found.channels, *found.size_of(image)))
    onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", tile=7)
    one = DenseModel(tmp_path / "out.onnx").run_tensor(image).map
    for values in (np.load(tmp_path / "map.npy"), one):
        if how.get("argmax"):
            assert np.array_equal(values, expected[0])
        else:
            assert_same(values, expected[0])


def test_one_of_several_outputs(tmp_path: Path) -> None:
    source = law.model(
        "m = Conv <strides = [2, 2]> (x, k)  f = Flatten (m)  y = MatMul (f, w)  z = MatMul (f, v)",
        image="float[N,3,12,13] x", outputs="y, z", k=(4, 3, 3, 3), w=(120, 5), v=(120, 2),
    )  # fmt: skip
    path = converted(tmp_path, source)
    image = noise(3, 31, 40)
    y, z = law.session(onnx.load(path))({"x": image[None]})
    np.save(tmp_path / "image.npy", image)
    for name, expected in (("y", y), ("z", z)):
        onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / f"{name}.npy", name=name, tile=8)
        assert_same(np.load(tmp_path / f"{name}.npy"), expected[0])
        assert_same(DenseModel(path, output=name).run_tensor(image[None]).map, expected[0])


def test_half_precision(tmp_path: Path) -> None:
    """Pixels are scaled in float32 and rounded once."""
    body, image, weights, _ = LAYOUTS["NCHW"]
    halves = {name: np.float16(law.random(name, *shape)) for name, shape in weights.items()}
    path = converted(tmp_path, law.model(body, image=image.replace("float", "float16"), opset=18, **halves))
    pixels = np.random.default_rng(0).integers(0, 256, (31, 40, 3)).astype(np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=8, preprocess="imagenet")
    one = DenseModel(path, preprocess="imagenet").run(pixels).map
    tiled = np.load(tmp_path / "map.npy")
    assert tiled.dtype == np.float16
    np.testing.assert_allclose(tiled, one, rtol=0, atol=2e-3 * np.abs(one).max())


# What pixels become ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["unit", "imagenet", "tf", "caffe", "raw", None])
@pytest.mark.parametrize("bits", [8, 16])
def test_presets_mean_the_same_everywhere(preset: str | None, bits: int, tmp_path: Path) -> None:
    """For a picture of 8 or 16 bits, and without a preset."""
    onnx.save(made("NHWC"), tmp_path / "out.onnx")
    pixels = np.random.default_rng(0).integers(0, 1 << bits, (31, 40, 3)).astype(f"uint{bits}")
    np.save(tmp_path / "image.npy", pixels)
    how: Any = {"tile": 8, "preprocess": preset}
    applied = onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", **how)
    lazy = onnx_fcn.dask.apply(tmp_path / "out.onnx", dask.array.from_array(pixels), **how).compute(scheduler="sync")
    assert preset is not None or str(applied.preprocess) == f"pixel/{(1 << bits) - 1}"
    expected = DenseModel(tmp_path / "out.onnx", preprocess=preset).run(pixels).map
    for found in (np.load(tmp_path / "map.npy"), lazy):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("how", "formula"),
    [
        ({}, "pixel/255"),
        ({"preprocess": "tf"}, "pixel/127.5 - 1"),
        ({"preprocess": "imagenet"}, "(pixel/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)"),
        ({"preprocess": changed("imagenet", std=0.5)}, "(pixel/255 - (0.485, 0.456, 0.406)) / 0.5"),
        ({"preprocess": "caffe"}, "pixel - (103.939, 116.779, 123.68), in the order BGR"),
        ({"preprocess": Preprocessing(2.0)}, "pixel·2"),
        ({"preprocess": Preprocessing(mean=0.5)}, "pixel/255 - 0.5"),
        ({"preprocess": Preprocessing(1.0, std=(1.0, 2.0, 4.0))}, "pixel / (1, 2, 4)"),
        ({"preprocess": changed("unit", scale=1 / 128, order="BGR")}, "pixel/128, in the order BGR"),
    ],
)
def test_numbers_change_a_preset(how: dict[str, Any], formula: str, tmp_path: Path) -> None:
    onnx.save(made("NCHW"), tmp_path / "out.onnx")
    np.save(tmp_path / "image.npy", np.zeros((31, 40, 3), np.uint8))
    applied = onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", **how)
    assert str(applied.preprocess) == formula


def test_presets_are_about_pictures(tmp_path: Path) -> None:
    onnx.save(made("NCHW"), tmp_path / "out.onnx")
    for dtype, what in (
        (np.float32, "floats are from 0 to 1, and these are from 2 to 2"),
        (np.int16, "these are int16"),
    ):
        np.save(tmp_path / "image.npy", np.full((31, 40, 3), 2, dtype))
        with pytest.raises(OptionError, match=what):
            onnx_fcn.apply(tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy", preprocess="imagenet")


# What they run on -----------------------------------------------------------------------------------------------------


def test_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach onnxruntime, and a map is not continued on others."""
    onnx.save(made("NCHW"), tmp_path / "out.onnx")
    np.save(tmp_path / "image.npy", noise(3, 31, 40))
    files = tmp_path / "out.onnx", tmp_path / "image.npy", tmp_path / "map.npy"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OptionError, match=r"has no provider 'Abacus': it has .*CPUExecutionProvider"):
        onnx_fcn.apply(*files, providers=["Abacus"])
    assert sorted(tmp_path.iterdir()) == before
    asked: list[Any] = []
    session = onnxruntime.InferenceSession

    def opened(*given: Any, providers: Any, **how: Any) -> Any:
        asked.append(providers)
        return session(*given, providers=["CPUExecutionProvider"], **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["Abacus", "CPUExecutionProvider"])

    def stop(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnx_fcn.apply(*files, tile=8, providers=["Abacus"], progress=stop)
    with pytest.raises(OptionError, match="an unfinished map with another provider: "):
        onnx_fcn.apply(*files, tile=8)
    onnx_fcn.apply(*files, tile=8, providers=["Abacus"])
    assert asked == [["Abacus"], ["CPUExecutionProvider"], ["Abacus"]]
