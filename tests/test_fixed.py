"""`--fix-size` and `--batch`: the same network for images of one size, with a number for every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, shape_inference
from onnxruntime.tools.mobile_helpers import usability_checker

import onnx_fcn
import onnx_fcn.conversion.fixing
from onnx_fcn import OptionError, ValidationError
from onnx_fcn.cli import main

ROOT = Path(__file__).parent.parent
ORIGINAL = ROOT / "fixtures/digits_padded.onnx"

#: Operators that read sizes, or compute with them.
OF_SIZES = {"Shape", "Size", "ConstantOfShape", "Range", "NonZero"}


def dims(model: ModelProto) -> list[list[int | str]]:
    """The declared sizes of all inputs and outputs."""
    values = (*model.graph.input, *model.graph.output)
    return [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values]


def operators(model: ModelProto) -> set[str]:
    return {n.op_type for n in model.graph.node}


def agree(fixed: ModelProto, free: ModelProto, shape: tuple[int, ...]) -> None:
    """Both answer an image of this size alike."""
    (name,) = (i.name for i in fixed.graph.input)
    image = law.random("image", *shape).astype(np.float32)
    for got, want in zip(*(law.session(m)({name: image}) for m in (fixed, free))):
        assert got.shape == want.shape
        assert np.abs(got.astype(np.float64) - want).max() <= 1e-5 * np.abs(want).max()


FORMS: dict[str, dict[str, Any]] = {
    "map": {},
    "mean": {"reduce": "mean"},
    "full size": {"full_size": True},
    "classes at full size": {"full_size": True, "argmax": True},
    "answers in between": {"output_stride": 1, "portable": True},
    "folded": {"head": "folded"},
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_form_at_a_size(name: str, batch: int) -> None:
    fixed, free = (
        onnx_fcn.convert(ORIGINAL, **FORMS[name], **more).to_proto()
        for more in ({"fix_size": (61, 90), "batch": batch}, {"validate": False})
    )
    assert all(isinstance(n, int) for sizes in dims(fixed) for n in sizes)
    assert dims(fixed)[0] == [batch, 1, 61, 90]
    assert not operators(fixed) & OF_SIZES
    agree(fixed, free, (batch, 1, 61, 90))


def test_a_free_batch_stays_free() -> None:
    fixed = onnx_fcn.convert(ORIGINAL, fix_size=64, full_size=True).to_proto()
    assert dims(fixed) == [["batch", 1, 64, 64], ["batch", 11, 64, 64]]
    assert "Shape" not in operators(fixed)
    agree(fixed, onnx_fcn.convert(ORIGINAL, full_size=True, validate=False).to_proto(), (5, 1, 64, 64))


def test_only_the_batch() -> None:
    fixed = onnx_fcn.convert(ORIGINAL, batch=2).to_proto()
    assert dims(fixed) == [[2, 1, "height", "width"], [2, 11, "(height - 28) // 4 + 1", "(width - 28) // 4 + 1"]]
    agree(fixed, onnx_fcn.convert(ORIGINAL, validate=False).to_proto(), (2, 1, 64, 37))


def test_only_a_batch_without_a_name() -> None:
    """Channels have no name either, but a number."""
    original = onnx.load(ORIGINAL)
    for value in (*original.graph.input, *original.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    fixed = onnx_fcn.convert(original, batch=2).to_proto()
    assert dims(fixed) == [[2, 1, "height", "width"], [2, 11, "(height - 28) // 4 + 1", "(width - 28) // 4 + 1"]]


def test_the_native_size_for_accelerators() -> None:
    fixed = onnx_fcn.convert(ORIGINAL, keep_size=True, batch=1).to_proto()
    assert dims(fixed) == [[1, 1, 28, 28], [1, 11]]
    assert not operators(fixed) & OF_SIZES


class Gated(torch.nn.Module):
    """A gate and a reshape that read the shape of their map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.gate = torch.nn.Linear(8, 8)
        self.last = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        gate = torch.sigmoid(self.gate(x.mean((2, 3)))).view(x.shape[0], -1, 1, 1)
        x = torch.nn.functional.interpolate(x * gate, scale_factor=2.0)
        return self.last(x.flatten(2).mean(2))


@pytest.mark.parametrize(("dynamo", "opset"), [(False, 17), (True, 18)], ids=["torchscript", "dynamo"])
def test_shapes_that_the_network_reads(dynamo: bool, opset: int, tmp_path: Path) -> None:
    source = exports.export(Gated().eval(), tmp_path / "m.onnx", 32, dynamo=dynamo, opset=opset)
    fixed, free = (
        onnx_fcn.convert(source, **more).to_proto() for more in ({"fix_size": 48, "batch": 1}, {"validate": False})
    )
    assert not operators(fixed) & OF_SIZES
    agree(fixed, free, (1, 3, 48, 48))


def test_geometry_and_metadata_stay(tmp_path: Path) -> None:
    onnx_fcn.convert(ORIGINAL, tmp_path / "free.onnx", validate=False)
    onnx_fcn.convert(ORIGINAL, tmp_path / "fixed.onnx", fix_size=(96, 128), batch=1)
    assert onnx_fcn.read_geometry(tmp_path / "fixed.onnx") == onnx_fcn.read_geometry(tmp_path / "free.onnx")
    assert onnx_fcn.validate(ORIGINAL, tmp_path / "fixed.onnx").passed
    page = np.load(ROOT / "fixtures/digits_page.npy")
    np.save(tmp_path / "page.npy", page[:312, :448])
    for name in ("free", "fixed"):
        onnx_fcn.apply(tmp_path / f"{name}.onnx", tmp_path / "page.npy", tmp_path / f"{name}.npy")
    free, fixed = (np.load(tmp_path / f"{name}.npy") for name in ("free", "fixed"))
    assert np.abs(free - fixed).max() <= 1e-5 * np.abs(free).max()


def test_the_report_of_tiles_of_the_only_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_fcn.convert(ORIGINAL, tmp_path / "fixed.onnx", fix_size=(96, 128), validate=False)
    np.save(tmp_path / "page.npy", np.load(ROOT / "fixtures/digits_page.npy")[:, :448])
    assert main(["apply", *(str(tmp_path / name) for name in ("fixed.onnx", "page.npy", "map.npy"))]) == 0
    assert " of 96×128 pixels, " in capsys.readouterr().out


def test_what_takes_one_image_names_the_option_that_fixed_the_batch(tmp_path: Path) -> None:
    onnx_fcn.convert(ORIGINAL, tmp_path / "fixed.onnx", batch=2, validate=False)
    with pytest.raises(OptionError, match="takes 2 images at once: convert the original without --batch, or with"):
        onnx_fcn.DenseModel(tmp_path / "fixed.onnx")


def test_an_image_that_crops_of_the_only_size_cannot_cover(tmp_path: Path) -> None:
    onnx_fcn.convert(ORIGINAL, tmp_path / "fixed.onnx", fix_size=(96, 128), batch=1, validate=False)
    np.save(tmp_path / "page.npy", np.load(ROOT / "fixtures/digits_page.npy"))
    with pytest.raises(OptionError, match=r"takes images with a width of 128 pixels only, .* cannot cover 454: add"):
        onnx_fcn.apply(tmp_path / "fixed.onnx", tmp_path / "page.npy", tmp_path / "map.npy")


def test_the_report(tmp_path: Path) -> None:
    report = onnx_fcn.convert(ORIGINAL, tmp_path / "fixed.onnx", fix_size=(96, 128), batch=1).report
    text = report.text()
    assert "'image' (batch, 1, 28, 28) → (1, 1, 96, 128)" in text
    assert "the conversion before its size or batch was fixed" in text


NETWORKS = {
    "AlexNet": (exports.alexnet, 224),
    "VGG": (exports.vgg16, 224),
    "ResNet": (exports.resnet18, 64),
    "MobileNetV2": (exports.mobilenet_v2, 96),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_node_runs_on_a_phone(name: str, tmp_path: Path) -> None:
    """By onnxruntime's own checker for NNAPI and CoreML, at the native size and at a larger one."""
    build, native = NETWORKS[name]
    source = exports.export(build().eval(), tmp_path / "m.onnx", native, dynamo=False, opset=17)
    for how in ({"keep_size": True, "batch": 1}, {"fix_size": native + 64, "batch": 1}):
        onnx_fcn.convert(source, tmp_path / "fixed.onnx", validate=False, **how)
        model = shape_inference.infer_shapes(onnx.load(tmp_path / "fixed.onnx"))
        core_ml = Path(usability_checker.__file__).with_name("coreml_supported_neuralnetwork_ops.md")
        for found in (
            usability_checker.check_nnapi_partitions(model, True),
            usability_checker.check_coreml_partitions(model, True, core_ml.name),
        ):
            assert found.num_supported_nodes == found.num_nodes == len(model.graph.node), found.unsupported_ops


def test_a_wrong_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose fixed values are not those of the free one is never written."""
    make = onnx_fcn.conversion.fixing.fixed

    def wrong(document: Any, sizes: Any) -> Any:
        edit = make(document, sizes)
        (weight,) = (w for n, w in edit.initializers.items() if w.array.size == 8)  # the amounts of a Pad
        weight.array[2] += 1  # in front
        return edit

    monkeypatch.setattr(onnx_fcn.conversion.fixing, "fixed", wrong)
    with pytest.raises(ValidationError, match="differ by"):
        onnx_fcn.convert(ORIGINAL, full_size=True, fix_size=61, batch=1)


def test_a_batch_that_became_a_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What depends on a free batch is right in the batches that it was computed for."""
    monkeypatch.setattr("onnx_fcn.model.fixing.FREE_BATCHES", (2, 2))
    with pytest.raises(ValidationError, match="fails on the images that it takes"):
        onnx_fcn.convert(ORIGINAL, head="folded", fix_size=64)


def test_a_file_of_one_batch_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make = onnx_fcn.conversion.fixing.in_batches_of

    def wrong(document: Any, *others: Any) -> Any:
        edit = make(document, *others)
        edit.inputs["image"].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        return edit

    assert "fixed" in {c.kind for c in onnx_fcn.convert(ORIGINAL, batch=2).report.validation.checks}
    monkeypatch.setattr(onnx_fcn.conversion.fixing, "in_batches_of", wrong)
    with pytest.raises(ValidationError, match="fails on the images that it takes"):
        onnx_fcn.convert(ORIGINAL, batch=2)


@pytest.mark.parametrize(("options", "message"), [
    ({"fix_size": 20}, "--fix-size 20×20 does not fit: the network has a window with a height of 28 pixels"),
    ({"fix_size": 64, "keep_size": True}, "does not fit: the network keeps its height of 28 pixels"),
    ({"fix_size": (64, 64, 64)}, "64×64×64 is not a size of an image with 2 axes"),
    ({"fix_size": 64.5}, "the size to fix 64.5 is not a size in pixels"),
    ({"fix_size": "64"}, "the size to fix '64' is not a size in pixels"),
    ({"batch": 0}, "a batch is a number of images from 1 to 2147483647, not 0"),
    ({"batch": 1.5}, "a batch is a number of images from 1 to 2147483647, not 1.5"),
])  # fmt: skip
def test_what_does_not_fit(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        onnx_fcn.convert(ORIGINAL, tmp_path / "out.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_the_file_fixes_already() -> None:
    original = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", image="float[1,2,6,6] x", opset=17,
        k=(3, 2, 3, 3), w=(48, 4))  # fmt: skip
    with pytest.raises(OptionError, match="takes 1 images at once, not 2: --dynamic-batch makes that dynamic first"):
        onnx_fcn.convert(original, batch=2)
    assert dims(onnx_fcn.convert(original, batch=2, dynamic_batch=True, fix_size=9).to_proto())[0] == [2, 2, 9, 9]


def test_another_input_of_open_sizes() -> None:
    """They are not 1 because nobody said what they are."""
    body = "c = Conv (x, k)  g = ReduceMean <axes = [1]> (gain)  m = Mul (c, g)  f = Flatten (m)  y = MatMul (f, w)"
    kernels = {"k": (2, 1, 5, 5), "w": (1152, 4)}
    for channels in ("K", "3"):
        original = law.model(body, image=f"float[N,1,28,28] x, float[N,{channels},1,1] gain", opset=17, **kernels)
        if channels == "3":
            assert dims(onnx_fcn.convert(original, fix_size=40, batch=2).to_proto())[:2] == [
                [2, 1, 40, 40],
                [2, 3, 1, 1],
            ]
            continue
        with pytest.raises(OptionError, match="input 'gain' has sizes that are open, too"):
            onnx_fcn.convert(original, fix_size=40, batch=2)


def test_another_input_whose_first_axis_is_no_batch() -> None:
    body = "c = Conv (x, k)  g = ReduceMean <axes = [0]> (gain)  m = Mul (c, g)  f = Flatten (m)  y = MatMul (f, w)"
    original = law.model(body, image="float[N,1,28,28] x, float[T,1,1,1] gain", opset=17, k=(2, 1, 5, 5), w=(1152, 4))
    assert dims(onnx_fcn.convert(original, batch=2).to_proto())[:2] == [[2, 1, "height", "width"], ["T", 1, 1, 1]]
    with pytest.raises(OptionError, match="input 'gain' has sizes that are open, too"):
        onnx_fcn.convert(original, fix_size=40, batch=2)


def test_the_images_of_a_user_are_compared_if_they_have_the_only_size() -> None:
    kinds = [
        [c.kind for c in onnx_fcn.convert(ORIGINAL, fix_size=64, batch=1, data=data).report.validation.checks]
        for data in (None, np.ones((1, 1, 64, 64), np.float32), np.ones((1, 1, 60, 64), np.float32))
    ]
    assert [found.count("fixed") for found in kinds] == [1, 2, 1]


ATTENTION = (
    "p = Conv <strides = [4, 4]> (x, k)  q = Reshape (p, s)  t = Transpose <perm = [0, 2, 1]> (q)  a = MatMul (t, q)  "
    "b = MatMul (a, t)  m = ReduceMean <axes = [1], keepdims = 0> (b)  y = MatMul (m, w)"
)


@pytest.mark.parametrize("size", [16, (16, 16), 99])
def test_a_size_of_a_network_that_cannot_slide(size: int | tuple[int, int]) -> None:
    """Another size than its own is not passed over in silence."""
    original = law.model(ATTENTION, image="float[N,1,16,16] x", k=(4, 1, 4, 4), s=[0, 4, -1], w=(4, 3))
    with pytest.raises(OptionError, match="cannot slide, so it keeps its size: leave --fix-size out"):
        onnx_fcn.convert(original, keep_size=True, fix_size=size)
    named = onnx_fcn.convert(original, keep_size=True, input_size=16, fix_size=16, batch=2).to_proto()
    assert dims(named) == [[2, 1, 16, 16], [2, 3]]
    with pytest.raises(OptionError, match="--fix-size 99×99 does not fit: the network keeps its height of 16 pixels"):
        onnx_fcn.convert(original, keep_size=True, input_size=16, fix_size=99)


@pytest.mark.parametrize("words", ["--fix-size 0", "--fix-size 12by12", "--batch 0", "--batch many"])
def test_bad_values(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(ORIGINAL), "out.onnx", *words.split()]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) < 200
