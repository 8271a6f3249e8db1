"""`validate` after the tools that people use on converted files, and the stamp that makes such files usable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import pytest
import tools
from onnx import ModelProto, numpy_helper

import onnx_fcn
from onnx_fcn import ModelError, OptionError, ValidationError
from onnx_fcn.cli import main
from onnx_fcn.reporting.checks import tables_of

FIXTURES = Path(__file__).parent.parent / "fixtures"
ORIGINAL = FIXTURES / "digits_padded.onnx"


def page() -> np.ndarray:
    """The page of digits, as the network reads it: (1, 1, H, W) from 0 to 1."""
    return np.load(FIXTURES / "digits_page.npy").astype(np.float32)[None, None] / 255


def crops() -> Iterator[dict[str, np.ndarray]]:
    """The page, and windows of it."""
    pixels = page()
    yield {"image": pixels}
    for y in range(0, 280, 56):
        for x in range(0, 420, 56):
            yield {"image": np.ascontiguousarray(pixels[..., y : y + 28, x : x + 28])}


def static(source: Path, path: Path) -> None:
    tools.static(source, path, crops())


#: Tools, whether what they make has to be compared on images that it was calibrated for, and how far its map is from
#: that of the file before, relative to the largest score.
TOOLS: dict[str, tuple[Callable[[Path, Path], None], bool, float]] = {
    "half precision": (tools.half, False, 2e-3),
    "half precision, inputs too": (tools.wholly_half, False, 2e-3),
    "optimised": (tools.optimised, False, 1e-5),
    "dynamically quantised": (tools.dynamic, False, 3e-2),
    "statically quantised": (static, True, 3e-2),
    "without metadata": (tools.bare, False, 0),
}


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    onnx_fcn.convert(ORIGINAL, tmp_path / "out.onnx", validate=False)
    return tmp_path / "out.onnx"


def other_weights(path: Path, factor: float = 1.2) -> None:
    """Make the kernels of a file larger."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))
    onnx.save(model, path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TOOLS)
def test_the_stamp_of_what_a_tool_made(name: str, converted: Path, tmp_path: Path) -> None:
    """It is refused before it is verified, and read like the file before after that."""
    tool, is_calibrated, rounding = TOOLS[name]
    made = tmp_path / "made.onnx"
    tool(converted, made)
    with pytest.raises(ModelError, match="by onnx-fcn --verify ORIGINAL FILE --stamp"):
        onnx_fcn.read_geometry(made)
    data = page() if is_calibrated else None
    assert onnx_fcn.validate(ORIGINAL, made, data=data, stamp=True).passed
    assert onnx_fcn.read_geometry(made) == onnx_fcn.read_geometry(converted)
    for path in (converted, made):
        np.save(tmp_path / "page.npy", page()[0, 0].astype(np.float32))
        onnx_fcn.apply(path, tmp_path / "page.npy", path.with_suffix(".npy"), tile=96)
    want, got = (np.load(path.with_suffix(".npy")).astype(np.float32) for path in (converted, made))
    assert np.abs(got - want).max() <= rounding * np.abs(want).max()
    assert onnx_fcn.validate(ORIGINAL, made, data=data).worst("metadata") == 0


def test_other_weights_are_found_in_coarser_arithmetic(converted: Path, tmp_path: Path) -> None:
    tools.half(converted, made := tmp_path / "made.onnx")
    other_weights(made)
    before = made.read_bytes()
    with pytest.raises(ValidationError, match=r"not the same network: .* \(allowed 0.02\)"):
        onnx_fcn.validate(ORIGINAL, made, stamp=True)
    assert made.read_bytes() == before


def test_a_calibrated_file_is_compared_on_images_like_its_own(converted: Path, tmp_path: Path) -> None:
    static(converted, made := tmp_path / "made.onnx")
    with pytest.raises(ValidationError, match="random ones may lie beyond them: compare on images"):
        onnx_fcn.validate(ORIGINAL, made)
    found = onnx_fcn.validate(ORIGINAL, made, data=page())
    (law,) = [c for c in found.checks if c.kind == "law"]
    assert law.top1 is not None
    assert law.top1 >= 0.9
    window = np.ascontiguousarray(page()[..., 28:56, 28:56])
    assert "larger images, of which none was given" in onnx_fcn.validate(ORIGINAL, made, data=window).uncovered
    other_weights_of_static = tmp_path / "other.onnx"
    model = onnx.load(made)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    onnx.save(model, other_weights_of_static)
    with pytest.raises(ValidationError, match="not the same network"):
        onnx_fcn.validate(ORIGINAL, other_weights_of_static, data=page())


def test_no_stamp_of_a_calibrated_file_by_native_images_alone(tmp_path: Path) -> None:
    """One window has one answer, whatever the stride."""
    original, other, made = FIXTURES / "digits_unpadded.onnx", tmp_path / "other.onnx", tmp_path / "made.onnx"
    onnx_fcn.convert(original, other, output_stride=2, validate=False)
    tools.bare(other, tmp_path / "bare.onnx")
    static(tmp_path / "bare.onnx", made)
    before = made.read_bytes()
    window = np.ascontiguousarray(page()[..., 28:56, 28:56])
    assert onnx_fcn.validate(original, made, data=window, tolerance=0.1).passed
    with pytest.raises(OptionError, match="images of the native size alone do not show where"):
        onnx_fcn.validate(original, made, data=window, tolerance=0.1, stamp=True)
    with pytest.raises(ValidationError):
        onnx_fcn.validate(original, made, data=page(), tolerance=0.1, stamp=True)
    assert made.read_bytes() == before
    assert onnx_fcn.validate(original, made, data=page(), tolerance=0.1, output_stride=2, stamp=True).passed


def test_a_tolerance(converted: Path, tmp_path: Path) -> None:
    other_weights(converted, 1.01)
    with pytest.raises(ValidationError, match=r"\(allowed 0.0002\)"):
        onnx_fcn.validate(ORIGINAL, converted)
    assert onnx_fcn.validate(ORIGINAL, converted, tolerance=0.1).passed
    with pytest.raises(OptionError, match="a tolerance is a share of the largest answer, between 0 and 1, not 2"):
        onnx_fcn.validate(ORIGINAL, converted, tolerance=2)


# Sizes and batches that another tool fixed ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(120, 90), (28, 28), (31, 200)])
def test_a_size_that_another_tool_fixed(size: tuple[int, int], converted: Path, tmp_path: Path) -> None:
    tools.with_shape(converted, made := tmp_path / "made.onnx", 1, 1, *size)
    found = onnx_fcn.validate(ORIGINAL, made)
    assert {c.size for c in found.checks if c.size} == {size}
    assert ("larger images, which the file does not take" in found.uncovered) == (size == (28, 28))
    other_weights(made)
    with pytest.raises(ValidationError, match="not the same network"):
        onnx_fcn.validate(ORIGINAL, made)


def test_data_of_another_size_than_the_only_one(converted: Path, tmp_path: Path) -> None:
    tools.with_shape(converted, made := tmp_path / "made.onnx", 1, 1, 120, 90)
    assert onnx_fcn.validate(ORIGINAL, made, data=page()[..., :120, :90]).passed
    with pytest.raises(OptionError, match="images of 60×90 pixels, but the converted model takes 120×90 only"):
        onnx_fcn.validate(ORIGINAL, made, data=page()[..., :60, :90])


def test_a_size_smaller_than_a_window(converted: Path, tmp_path: Path) -> None:
    tools.with_shape(converted, made := tmp_path / "made.onnx", 1, 1, 20, 90)
    with pytest.raises(ModelError, match="takes images of 20×90 pixels, and the first one's are 28×28"):
        onnx_fcn.validate(ORIGINAL, made)


@pytest.mark.parametrize("options", [{}, {"keep_size": True}, {"reduce": "mean"}, {"full_size": True}], ids=str)
def test_a_batch_that_another_tool_fixed(options: dict[str, Any], tmp_path: Path) -> None:
    onnx_fcn.convert(ORIGINAL, tmp_path / "out.onnx", validate=False, **options)
    tools.with_batch(tmp_path / "out.onnx", tmp_path / "made.onnx", 2)
    found = onnx_fcn.validate(ORIGINAL, tmp_path / "made.onnx").checks
    assert {c.batch for c in found if c.kind == "native"} == {2}


def test_batches_without_an_image_in_common(tmp_path: Path) -> None:
    original = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", image="float[1,2,6,6] x", opset=17,
        k=(3, 2, 3, 3), w=(48, 4))  # fmt: skip
    made = onnx_fcn.convert(original, dynamic_batch=True, validate=False).to_proto()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(ModelError, match=r"takes 4 images at once, and the first one 1, .*: fix the batch to 1"):
        onnx_fcn.validate(original, made)


# Metadata that another tool removed -----------------------------------------------------------------------------------


def stripped(**options: Any) -> ModelProto:
    model = onnx_fcn.convert(ORIGINAL, validate=False, **options).to_proto()
    del model.metadata_props[:]
    return model


@pytest.mark.parametrize("options", [{"full_size": True}, {"argmax": True}, {"keep_size": True}, {"output_stride": 2}],
    ids=str)  # fmt: skip
def test_options_say_how_a_file_without_metadata_was_made(options: dict[str, Any]) -> None:
    made = stripped(**options)
    with pytest.raises((ModelError, ValidationError), match="no metadata of onnx_fcn, so it was taken for a plain map"):
        onnx_fcn.validate(ORIGINAL, made)
    assert onnx_fcn.validate(ORIGINAL, made, **options).passed


def test_an_unknown_head() -> None:
    with pytest.raises(OptionError, match="there is no head 'dense': it is 'conv' or 'folded'"):
        onnx_fcn.validate(ORIGINAL, stripped(), head="dense")


def test_options_beside_metadata(converted: Path) -> None:
    with pytest.raises(OptionError, match="say how it was made: leave --head, --full-size out"):
        onnx_fcn.validate(ORIGINAL, converted, full_size=True, head="folded")


# The stamp ------------------------------------------------------------------------------------------------------------


def test_a_stamp_leaves_weights_and_labels_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    onnx_fcn.convert(ORIGINAL, path, validate=False, external_data=True)
    (data,) = tmp_path.glob("*.data")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Relu":  # another graph that computes the same
            node.op_type = "LeakyRelu"
            node.attribute.append(onnx.helper.make_attribute("alpha", 0.0))
    model.metadata_props.add(key="onnx_fcn.labels", value='["a", "b"]')
    model.metadata_props.add(key="made.by", value="another tool")
    onnx.save(model, path)
    before = data.stat()
    assert onnx_fcn.validate(ORIGINAL, path, stamp=True).passed
    after = data.stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (after.st_ino, after.st_mtime_ns, after.st_size)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, data.name])
    entries = {e.key: e.value for e in onnx.load(path).metadata_props}
    assert (entries["onnx_fcn.labels"], entries["made.by"]) == ('["a", "b"]', "another tool")
    assert onnx_fcn.read_geometry(path).of().window == (28, 28)


def test_a_trained_file_after_another_tool(tmp_path: Path) -> None:
    """Its features are those of the original; its layer is the file's own."""
    original, trained, made = FIXTURES / "digits_unpadded.onnx", tmp_path / "trained.onnx", tmp_path / "made.onnx"
    onnx_fcn.fit(original, FIXTURES / "digits_page.npy", FIXTURES / "digits_clicks.csv").save(trained)
    for change in (tools.half, tools.wholly_half):
        change(trained, made)
        assert onnx_fcn.validate(original, made).passed
    other_weights(made)
    with pytest.raises(ValidationError, match="does not answer as trained"):
        onnx_fcn.validate(original, made)
    (tmp_path / "images").mkdir()
    for k, part in enumerate(np.array_split(np.load(FIXTURES / "digits_page.npy"), 2)):
        np.save(tmp_path / f"images/{k}.npy", part)
    onnx_fcn.quantize(trained, tmp_path / "images", made, agreement=0.5)
    with pytest.raises(ValidationError, match=r"does not answer as trained: .* compare on images like those by --data"):
        onnx_fcn.validate(original, made)
    found = onnx_fcn.validate(original, made, data=page(), tolerance=0.1, stamp=True)
    assert {c.size for c in found.checks if c.kind == "fit"} == {page().shape[2:]}
    with pytest.raises(ValidationError):
        onnx_fcn.validate(original, made, data=page(), tolerance=1e-4)


def test_the_original_is_never_stamped(tmp_path: Path) -> None:
    """At its native size it gives the answers of a conversion that keeps it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(ORIGINAL.read_bytes())
    with pytest.raises(ModelError, match="the second model is the original itself, which was not converted"):
        onnx_fcn.validate(ORIGINAL, path, keep_size=True, stamp=True)
    assert path.read_bytes() == ORIGINAL.read_bytes()


@pytest.mark.parametrize(("made", "said"), [({"reduce": "mean"}, {"keep_size": True}), ({}, {"slide": ["height"]})])
def test_options_do_not_describe_a_file_that_takes_other_sizes(
    made: dict[str, Any], said: dict[str, Any], tmp_path: Path
) -> None:
    onnx_fcn.convert(ORIGINAL, tmp_path / "out.onnx", validate=False, **made)
    tools.bare(tmp_path / "out.onnx", tmp_path / "bare.onnx")
    before = (tmp_path / "bare.onnx").read_bytes()
    with pytest.raises(OptionError, match="takes images of any size, and made as the options say, it would keep its"):
        onnx_fcn.validate(ORIGINAL, tmp_path / "bare.onnx", stamp=True, **said)
    assert (tmp_path / "bare.onnx").read_bytes() == before
    assert onnx_fcn.validate(ORIGINAL, tmp_path / "bare.onnx", stamp=True, **made).passed


def test_windows_of_all_sizes_are_counted_together(converted: Path, tmp_path: Path) -> None:
    tools.half(converted, tmp_path / "half.onnx")
    found = onnx_fcn.validate(ORIGINAL, tmp_path / "half.onnx")
    row = next(row for row in next(tables_of(found)).rows if "original head" in row[2])
    assert row[2].endswith(f"same best class in {row[2].split(' on ')[1].split()[0]}"), row


def test_only_a_file_is_stamped() -> None:
    with pytest.raises(OptionError, match="only a file can be stamped"):
        onnx_fcn.validate(ORIGINAL, stripped(), stamp=True)


@pytest.mark.parametrize(("words", "message"), [
    ("m.onnx o.onnx --stamp", "--stamp is for --verify"),
    ("m.onnx o.onnx --tolerance 0.1", "--tolerance is for --verify"),
    ("--verify m.onnx o.onnx --tolerance 0", "'0' is not a number between 0 and 1"),
    ("--verify m.onnx o.onnx --tolerance much", "'much' is not a number between 0 and 1"),
    ("--verify m.onnx o.onnx --fix-size 64", "--verify converts nothing"),
    ("--verify m.onnx o.onnx --portable", "--verify converts nothing"),
])  # fmt: skip
def test_options_that_do_not_fit(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_on_the_command_line(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools.half(converted, made := tmp_path / "made.onnx")
    assert main(["--verify", str(ORIGINAL), str(made), "--stamp", "--tolerance", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "within 1e-02" in said
    assert "same best class in" in said
    assert onnx_fcn.read_geometry(made) == onnx_fcn.read_geometry(converted)


def test_a_map_that_has_no_window_of_another_stride(tmp_path: Path) -> None:
    """The operators of a file with other dilations have the same names, but its maps have too few cells."""
    bare = tmp_path / "bare.onnx"
    onnx_fcn.convert(ORIGINAL, bare, output_stride=2, validate=False)
    model = onnx.load(bare)
    del model.metadata_props[:]
    onnx.save(model, bare)
    before = bare.read_bytes()
    with pytest.raises(
        ValidationError, match=r"not the same network: its feature map at .* cells, .*as the options say"
    ):
        onnx_fcn.validate(ORIGINAL, bare, output_stride=1, stamp=True)
    assert bare.read_bytes() == before
    assert onnx_fcn.validate(ORIGINAL, bare, output_stride=2, stamp=True).passed
