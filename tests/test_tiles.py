"""Images larger than memory: tiles are exact, whatever is read and written, and a run that was stopped goes on."""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fresh
import hypothesis
import law
import numpy as np
import onnx
import PIL.Image
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, Phase, assume, given, settings
from layers import HEAD, cases

import onnx_fcn
from onnx_fcn import OptionError, Preprocessing, memory
from onnx_fcn.cli import main
from onnx_fcn.geometry import Count, Inner, Taps
from onnx_fcn.running.network import lean_options
from onnx_fcn.tiles.choice import LEAST, OVERHEAD, SHARE, choose_tile
from onnx_fcn.tiles.maps import Journal
from onnx_fcn.tiles.tiled import Tiled, open_tiled
from onnx_fcn.tiles.tiling import tiling_of

ROOT = Path(__file__).parent.parent

#: Convolutions of other sizes sum in another order, and the mean of a window is one of up to some thousand cells.
ROUNDING = 4e-6


def once(model: Path, image: np.ndarray) -> np.ndarray:
    """What one pass gives: (C, *space) → the map."""
    run = law.session(onnx.load(model))
    return run({onnx.load(model).graph.input[0].name: image[None]})[0][0]


def assert_same(found: np.ndarray, expected: np.ndarray, least: float = 0) -> None:
    """The same but for rounding; answers count as no less than `least`."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * max(np.abs(expected).max(), least))


def read(path: Path) -> np.ndarray:
    if path.suffix == ".zarr":
        return zarr.open(str(path), mode="r")["0"][:]
    return tifffile.imread(path) if path.suffix == ".tif" else np.load(path)


def converted(folder: Path, model: onnx.ModelProto, **how: Any) -> Path:
    onnx_fcn.convert(model, folder / "out.onnx", validate=False, **how)
    return folder / "out.onnx"


def noise(*shape: int) -> np.ndarray:
    return law.random("image", *shape).astype(np.float32)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return converted(tmp_path, onnx.load(ROOT / "fixtures/digits_padded.onnx"))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A picture of digits, 203×151 pixels."""
    np.save(tmp_path / "page.npy", np.load(ROOT / "fixtures/digits_page.npy")[:203, :151])
    return tmp_path / "page.npy"


# Exact tiles ----------------------------------------------------------------------------------------------------------


#: Networks whose tiles are compared with one pass, the same ones every time.
EXAMPLES = 60


@settings(max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_tiles_are_one_pass(tmp_path_factory: pytest.TempPathFactory, case: Any) -> None:
    """Padded and unpadded, at odd sizes, tiles and strides, rounding up, made finer and coarser, with a head or not."""
    check_tiles(case, tmp_path_factory.mktemp("tiles"))


@pytest.mark.parametrize("examples", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_tiles_of_other_networks(tmp_path_factory: pytest.TempPathFactory, examples: int) -> None:
    """Drawn anew in every run."""
    seed, count = fresh.examples(examples)

    @hypothesis.seed(seed)
    @settings(
        max_examples=count, derandomize=False, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases())
    def agree(case: Any) -> None:
        check_tiles(case, tmp_path_factory.mktemp("tiles"))

    with fresh.told(seed, count=count):
        agree()


def check_tiles(case: tuple[onnx.ModelProto, tuple[int, ...], int], folder: Path) -> None:
    """The map of an image is the same by tiles and in one pass."""
    model, size, tile = case
    native = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    try:
        path = converted(folder, model)
        once(path, noise(2, *native))  # reflecting takes more cells than are reflected
        expected = once(path, noise(2, *size))
    except (onnx_fcn.UnsupportedModel, OptionError):
        assume(False)
    except Exception as error:
        assert "onnxruntime" in type(error).__module__  # noqa: PT017
        assume(False)
    np.save(folder / "image.npy", noise(2, *size))
    try:
        onnx_fcn.apply(path, folder / "image.npy", folder / "map.npy", tile=tile)
    except OptionError as error:  # answers at fractions of a pixel are never tiled; a pool of the whole map is a gate
        assume(not any(words in str(error) for words in (" pixels apart", "sees the whole image")))
        # A block of DepthToSpace in place of the one cell along an axis belongs to the answer: the axis stays.
        stays = any(onnx_fcn.read_geometry(path).of().held) and any(
            n.op_type == "DepthToSpace" for n in model.graph.node
        )
        assume(not (stays and "other axes than a batch" in str(error)))
        raise
    # Of drawn networks some answer with means of noise that cancel: these are as exact as the noise, of deviation 1.
    assert_same(np.load(folder / "map.npy"), expected, least=1e-2)


REFLECTS = {
    "behind a stride": "c = Conv <strides = [3, 1], pads = [2, 0, 0, 0]> (x, k)  m = MaxPool <kernel_shape = [2, 1]> "
    '(c)  p = Pad <mode = "reflect"> (m, end)  y = Relu (p)',
    "behind a crop": "a = Conv <pads = [2, 0, 1, 0]> (x, k)  c = Slice (a, zero, five, axis)  "
    'p = Pad <mode = "reflect"> (c, both)  y = Conv (p, k)',
    "twice": 'a = Pad <mode = "reflect"> (x, both)  c = Conv (a, k)  p = Pad <mode = "reflect"> (c, both)  '
    "y = Conv (p, k)",
    "the edge": 'c = Slice (x, zero, five, axis)  p = Pad <mode = "edge"> (c, both)  y = Conv (p, k)',
}


@pytest.mark.parametrize("name", REFLECTS)
@pytest.mark.parametrize("size", [20, 21, 22, 23, 41])
def test_what_padding_reflects_lies_within_the_tile(name: str, size: int, tmp_path: Path) -> None:
    model = law.model(
        REFLECTS[name],
        image="float[N,2,9,4] x",
        k=(2, 2, 4, 1),
        end=[0, 0, 0, 0, 0, 0, 1, 0],
        both=[0, 0, 2, 0, 0, 0, 2, 0],
        zero=[0],
        five=[-5],
        axis=[2],
    )
    path = converted(tmp_path, model)
    image = noise(2, size, 9)
    np.save(tmp_path / "image.npy", image)
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=3)
    assert_same(np.load(tmp_path / "map.npy"), once(path, image))


def forgotten_crop(patch: pytest.MonkeyPatch) -> None:
    """Cells that are cut off at the end come back with the next padding."""
    slid = Inner.slid

    def wrong(inner: Inner, count: Count, kernel: int, stride: int = 1, dilation: int = 1, begin: int = 0) -> Inner:
        made = slid(inner, count, kernel, stride, dilation, begin)
        return made if kernel > 1 else Inner(made.front, inner.behind.slid(kernel, stride, dilation, begin))

    patch.setattr(Inner, "slid", wrong)


def forgotten_front(patch: pytest.MonkeyPatch) -> None:
    """What lies behind padding sees none of it."""
    slid = Inner.slid
    patch.setattr(Inner, "slid", lambda inner, *sizes: Inner(inner.front, slid(inner, *sizes).behind))


def forgotten_tap(patch: pytest.MonkeyPatch) -> None:
    """A resize reads a cell less than it does."""
    resampled = Inner.resampled

    def wrong(inner: Inner, count: Count, taps: Taps) -> Inner:
        return resampled(inner, count, replace(taps, last=taps.last - 2 * taps.scale.numerator))

    patch.setattr(Inner, "resampled", wrong)


def forgotten_branch(patch: pytest.MonkeyPatch) -> None:
    """Of branches that meet only one is seen."""
    patch.setattr(Inner, "joined", lambda inner, _: inner)


#: Faults in the account of inner cells, and the kinds of layers that are drawn to find them.
ACCOUNTS = {
    forgotten_crop: ("Conv", "Crop", "Pad", "Shift", "Slice"),
    forgotten_front: ("Conv", "Pad", "MaxPool", "SAME"),
    forgotten_tap: ("Conv", "Resize", "Sized"),
    forgotten_branch: ("Branch", "Conv", "Meeting"),
}


@pytest.mark.parametrize("plant", ACCOUNTS, ids=lambda plant: plant.__name__)
def test_a_wrong_account_of_inner_cells_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)

    @settings(max_examples=EXAMPLES, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=cases(ACCOUNTS[plant]))
    def agree(case: Any) -> None:
        test_tiles_are_one_pass.hypothesis.inner_test(tmp_path_factory, case)

    with pytest.raises((AssertionError, OptionError), match=r"Mismatched elements|is not the map that was begun"):
        agree()


@pytest.mark.parametrize("tile", [3, 9, 2048])
def test_cells_may_need_pixels_that_they_do_not_see(tile: int, tmp_path: Path) -> None:
    """With kernel 1 and stride 3 a cell sees one pixel of three, and is not there before the third is."""
    body = (
        'a = Conv <auto_pad = "SAME_UPPER"> (x, k)  b = Conv <auto_pad = "SAME_UPPER", strides = [3]> (a, l)  '
        'y = Conv <auto_pad = "SAME_UPPER", strides = [3]> (b, m)'
    )
    model = law.model(body, image="float[N,2,8] x", opset=18, k=(2, 2, 4), l=(2, 2, 3), m=(2, 2, 1))
    path = converted(tmp_path, model)
    for pixels in range(8, 40):
        np.save(tmp_path / "image.npy", noise(2, pixels))
        (tmp_path / "map.npy").unlink(missing_ok=True)
        onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=tile)
        assert_same(np.load(tmp_path / "map.npy"), once(path, noise(2, pixels)))


@pytest.mark.parametrize("name", ["digits_padded", "digits_unpadded"])
@pytest.mark.parametrize("suffix", [".npy", ".tif", ".zarr"])
def test_a_page_of_digits(name: str, suffix: str, tmp_path: Path, page: Path) -> None:
    path = converted(tmp_path, onnx.load(ROOT / f"fixtures/{name}.onnx"))
    seen: list[tuple[int, int]] = []
    applied = onnx_fcn.apply(
        path,
        page,
        tmp_path / f"map{suffix}",
        tile=50,
        batch=3,
        preprocess=Preprocessing(1 / 255),
        progress=lambda *done: seen.append(done),
    )
    image = np.load(page)[None] / np.float32(255)
    assert_same(read(tmp_path / f"map{suffix}"), once(path, image))
    assert (applied.size, applied.tiles, applied.tile) == ((203, 151), 12, 50)
    assert applied.exact
    assert seen == [(k, 12) for k in range(13)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["out.onnx", "page.npy", f"map{suffix}"])


def test_crops_are_no_larger_than_they_must_be(digits: Path) -> None:
    """Whole strides, and the receptive field on the side where the image goes on."""
    answers = onnx_fcn.read_geometry(digits).of()
    field, tiling = answers.field[0], tiling_of(answers, (28, 28), (1000, 1000), 100)
    for cut in tiling.axes[0]:
        assert cut.pixels.start % 4 == 0
        before = cut.cells.start * 4 + field.start - cut.pixels.start
        behind = cut.pixels.stop - ((cut.cells.stop - 1) * 4 + field.end)
        assert 0 <= before < 4 or cut.pixels.start == 0 or cut.pixels.stop == 1000
        assert 0 <= behind < 4 or cut.pixels.stop == 1000
    assert sum(cut.cells.stop - cut.cells.start for cut in tiling.axes[0]) == tiling.shape[0]


def test_best_classes(tmp_path: Path, page: Path) -> None:
    path = converted(tmp_path, onnx.load(ROOT / "fixtures/digits_padded.onnx"), argmax=True)
    applied = onnx_fcn.apply(path, page, tmp_path / "map.npy", tile=60, preprocess=Preprocessing(1 / 255))
    assert (applied.dtype, applied.shape) == ("uint8", (44, 31))
    assert np.array_equal(np.load(tmp_path / "map.npy"), once(path, np.load(page)[None] / np.float32(255)))


GATED = law.model(
    "a = Conv <pads = [1, 1, 1, 1]> (x, k)  m = GlobalAveragePool (a)  s = Sigmoid (m)  b = Mul (a, s)  "
    + HEAD.format("b"),
    image="float[N,1,12,12] x",
    k=(1, 1, 3, 3),
)

#: What depends on the size of the image or on its other end, and why.
INEXACT = {
    "context": (GATED, "'m' sees the whole image"),
    "wrapped": (
        law.model(
            'p = Pad <mode = "wrap"> (x, pads)  c = Conv (p, k)  ' + HEAD.format("c"),
            image="float[N,1,12,12] x",
            opset=19,
            pads=[0, 0, 1, 1, 0, 0, 1, 1],
            k=(1, 1, 3, 3),
        ),
        "pads with pixels from the other end",
    ),
}


@pytest.mark.parametrize("name", INEXACT)
def test_what_cannot_be_exact_is_refused_or_asked_for(name: str, tmp_path: Path) -> None:
    model, reason = INEXACT[name]
    path = converted(tmp_path, model)
    np.save(tmp_path / "image.npy", noise(1, 40, 48))
    with pytest.raises(OptionError, match=f"tiles cannot be exact: .*{reason}.*--approximate"):
        onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy")
    applied = onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=12, approximate=True)
    assert not applied.exact
    expected = once(path, noise(1, 40, 48))
    assert np.load(tmp_path / "map.npy").shape == expected.shape
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "one.npy", approximate=True)  # a tile for the whole image
    assert_same(np.load(tmp_path / "one.npy"), expected)


def test_an_upsampling_steps_with_its_coarsest_stride(tmp_path: Path) -> None:
    """The cells of the last map lie 2 pixels apart, but those that it is made of 8."""
    model = law.model(
        "a = Conv <strides = [2, 2]> (x, k)  b = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (a)  "
        'c = Resize <mode = "nearest"> (b, , s)  d = Add (a, c)  ' + HEAD.format("d"),
        image="float[N,2,16,16] x",
        opset=18,
        k=(2, 2, 2, 2),
        s=np.array([1, 1, 4, 4], np.float32),
    )
    path = converted(tmp_path, model)
    assert onnx_fcn.read_geometry(path).stride == (8, 8)
    np.save(tmp_path / "image.npy", noise(2, 64, 40))
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=10)
    assert_same(np.load(tmp_path / "map.npy"), once(path, noise(2, 64, 40)))


@pytest.mark.parametrize("tile", [1, 6, 13])
def test_a_cell_of_a_coarser_map_is_there_only_with_the_rest_of_its_stride(tile: int, tmp_path: Path) -> None:
    """⌊n/2⌋ cells: in a crop that ends with what the last one sees it would be missing, and padded instead."""
    model = law.model(
        "a = Conv <strides = [3, 3], pads = [1, 1, 0, 0]> (x, k)  "
        'b = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (a, , s)  '
        "y = Conv <pads = [1, 1, 1, 1]> (b, m)",
        image="float[N,2,14,15] x",
        opset=18,
        k=(2, 2, 1, 1),
        s=np.array([1, 1, 0.5, 0.5], np.float32),
        m=(2, 2, 2, 2),
    )
    path = converted(tmp_path, model)
    np.save(tmp_path / "image.npy", noise(2, 50, 47))
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=tile)
    assert_same(np.load(tmp_path / "map.npy"), once(path, noise(2, 50, 47)))


def test_too_many_tiles_are_refused_before_any_is_listed(
    digits: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of 2³¹ columns by its header took half a minute: as many of the usual size as are just allowed."""
    monkeypatch.setattr("onnx_fcn.tiles.tiled.MOST_TILES", 4)
    monkeypatch.setattr("onnx_fcn.tiles.tiled.tiling_of", lambda *_, **__: pytest.fail("tiles were listed"))
    with pytest.raises(OptionError, match="has more than 4 tiles of 24 along an axis"):
        onnx_fcn.apply(digits, page, tmp_path / "map.npy", tile=24)


CROPPED = {
    "slice at the end": ("d = Slice (c, s, e, a)", {"s": [0], "e": [-2], "a": [2]}),
    "slice with a step": ("d = Slice (c, s, e, a, t)", {"s": [1], "e": [-1], "a": [2], "t": [2]}),
    "slice at the beginning": ("d = Slice (c, s, e, a)", {"s": [2], "e": [999], "a": [2]}),
    "negative padding": ("d = Pad (c, p)", {"p": [0, 0, 0, 0, 0, 0, -2, -2]}),
}


@pytest.mark.parametrize("name", CROPPED)
def test_what_is_padded_behind_a_crop_is_no_part_of_a_tile(name: str, tmp_path: Path) -> None:
    """A tile's own map loses its last cells too, so that its padding comes nearer than any field says."""
    crop, values = CROPPED[name]
    model = law.model(
        f"c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  {crop}  y = Conv <pads = [1, 1, 1, 1]> (d, l)",
        image="float[N,2,24,24] x",
        opset=18,
        k=(2, 2, 3, 3),
        l=(2, 2, 3, 3),
        **values,
    )
    path = converted(tmp_path, model)
    np.save(tmp_path / "image.npy", noise(2, 97, 77))
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=16)
    assert_same(np.load(tmp_path / "map.npy"), once(path, noise(2, 97, 77)))


def test_sizes_that_a_resize_reads_are_its_scale_so_that_tiles_are_exact(tmp_path: Path) -> None:
    model = law.model(
        "a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  e = Shape (x)  b = Resize (a, , , e)  "
        "c = Add (b, x)  " + HEAD.format("c"),
        image="float[N,1,12,12] x",
        opset=18,
    )
    path = converted(tmp_path, model)
    np.save(tmp_path / "image.npy", noise(1, 41, 47))
    onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=8)
    assert_same(np.load(tmp_path / "map.npy"), once(path, noise(1, 41, 47)))


# What is read ---------------------------------------------------------------------------------------------------------

COLOURS = law.model(
    "c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  " + HEAD.format("c"),
    image="float[N,3,12,12] x",
    k=(2, 3, 3, 3),
)

PICTURE = np.random.default_rng(0).integers(0, 256, (90, 71, 3)).astype(np.uint8)


def write_group(path: Path) -> None:
    group = zarr.open_group(str(path), mode="w")
    for level, picture in enumerate((np.zeros((9, 9, 3), np.uint8), PICTURE)):
        made = group.create_array(str(level), shape=picture.shape, chunks=(16, 16, 3), dtype=np.uint8)
        made[:] = picture


def write_pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        how: Any = {"tile": (32, 32), "compression": "lzw", "photometric": "rgb"}
        file.write(np.zeros((180, 142, 3), np.uint8), subifds=1, **how)
        file.write(PICTURE, subfiletype=1, **how)


def write_zarr(path: Path, zarr_format: int) -> None:
    how: Any = {"shape": PICTURE.shape, "chunks": (20, 30, 3), "dtype": np.uint8, "zarr_format": zarr_format}
    zarr.open_array(str(path), mode="w", **how)[:] = PICTURE


#: name: (suffix, how a picture is written, the level that it is).
FORMATS: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "npy": (".npy", lambda p: np.save(p, PICTURE), 0),
    "npy, channels first": (".npy", lambda p: np.save(p, PICTURE.transpose(2, 0, 1)), 0),
    "npy, as a batch": (".npy", lambda p: np.save(p, PICTURE.transpose(2, 0, 1)[None]), 0),
    "npy, column by column": (".npy", lambda p: np.save(p, np.asfortranarray(PICTURE)), 0),
    "png": (".png", lambda p: PIL.Image.fromarray(PICTURE).save(p), 0),
    "tiff": (".tif", lambda p: tifffile.imwrite(p, PICTURE, photometric="rgb"), 0),
    "tiff, big-endian": (
        ".tif",
        lambda p: tifffile.imwrite(p, PICTURE.astype(np.uint16), byteorder=">", photometric="rgb"),
        0,
    ),
    "tiff, compressed strips": (
        ".tif",
        lambda p: tifffile.imwrite(p, PICTURE, photometric="rgb", compression="zlib", rowsperstrip=16),
        0,
    ),
    "tiff, planes": (
        ".tif",
        lambda p: tifffile.imwrite(
            p, PICTURE.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(16, 16)
        ),
        0,
    ),
    "bigtiff pyramid": (".tif", write_pyramid, 1),
    "zarr 2": (".zarr", lambda p: write_zarr(p, 2), 0),
    "zarr 3": (".zarr", lambda p: write_zarr(p, 3), 0),
    "zarr pyramid": (".zarr", write_group, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    suffix, write, level = FORMATS[name]
    path = converted(tmp_path, COLOURS)
    write(tmp_path / f"image{suffix}")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    how: Any = {"tile": 22, "level": level, "preprocess": Preprocessing(1 / 255, mean, std)}
    onnx_fcn.apply(path, tmp_path / f"image{suffix}", tmp_path / "map.npy", **how)
    seen = ((PICTURE / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
    assert_same(np.load(tmp_path / "map.npy"), once(path, seen))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound(width: int, channels: int, tmp_path: Path) -> None:
    """Samples of 8, 16, 24 and 32 bits."""
    body = "c = Conv <strides = [4], pads = [3, 3]> (x, k)  " + HEAD.format("c")
    path = converted(tmp_path, law.model(body, image=f"float[N,{channels},64] x", k=(2, channels, 9)))
    top = 1 << (8 * width - 1)
    samples = np.random.default_rng(0).integers(-top, top, (1001, channels))
    stored = samples + top if width == 1 else samples  # 8 bits have no sign
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(stored.astype("<i8").view(np.uint8).reshape(1001, channels, 8)[..., :width].tobytes())
    onnx_fcn.apply(path, tmp_path / "sound.wav", tmp_path / "map.npy", tile=100, preprocess=Preprocessing(1 / top))
    assert_same(np.load(tmp_path / "map.npy"), once(path, (stored.T / top).astype(np.float32)))


def test_channels_last_volumes_and_integers(tmp_path: Path) -> None:
    """An input (N, D, H, W, C) of bytes, cast inside."""
    body = (
        "f = Cast <to = 1> (x)  t = Transpose <perm = [0, 4, 1, 2, 3]> (f)  "
        "c = Conv <strides = [2, 2, 1], pads = [1, 0, 1, 1, 0, 1]> (t, k)  " + HEAD.format("c")
    )
    model = law.model(body, image="uint8[N,6,8,7,2] x", k=np.float32(law.random("k", 3, 2, 3, 3, 3)))
    path = converted(tmp_path, model)
    volume = np.random.default_rng(0).integers(0, 256, (21, 30, 17, 2)).astype(np.uint8)
    np.save(tmp_path / "volume.npy", volume)
    onnx_fcn.apply(path, tmp_path / "volume.npy", tmp_path / "map.zarr", tile=9)
    assert_same(read(tmp_path / "map.zarr"), once(path, volume))
    np.save(tmp_path / "floats.npy", volume.astype(np.float32))
    with pytest.raises(OptionError, match=r"pixels of type float32, but the model takes uint8"):
        onnx_fcn.apply(path, tmp_path / "floats.npy", tmp_path / "no.npy")


@pytest.mark.parametrize("scale", [1, 3])
def test_a_mask_leaves_out_what_it_covers(scale: int, tmp_path: Path, digits: Path, page: Path) -> None:
    """The same answers, whatever the tiles: those with a pixel outside of the mask in their window."""
    mask = np.zeros((203 // scale, 151 // scale), np.uint8)
    mask[: 120 // scale, 30 // scale :] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    how: Any = {"mask": tmp_path / "mask.png", "preprocess": Preprocessing(1 / 255)}
    whole = onnx_fcn.apply(digits, page, tmp_path / "whole.npy", **how)
    parts = onnx_fcn.apply(digits, page, tmp_path / "parts.npy", tile=24, **how)
    assert (whole.skipped, parts.skipped > 5) == (0, True)
    maps = np.load(tmp_path / "whole.npy"), np.load(tmp_path / "parts.npy")
    np.testing.assert_allclose(*maps, rtol=0, atol=1e-5, equal_nan=True)
    expected = once(digits, np.load(page)[None] / np.float32(255))
    left_out = np.isnan(maps[0])
    assert_same(maps[0][~left_out], expected[~left_out])
    if scale == 1:
        windows = onnx_fcn.read_geometry(digits).grid(203, 151).boxes
        inside = [mask[top:bottom, left:right].all() for left, top, right, bottom in windows.reshape(-1, 4)]
        assert np.array_equal(left_out[0].ravel(), inside)


# Stopping and going on ------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, onnx_fcn
def stop(done, total):
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
onnx_fcn.apply(*sys.argv[1:], tile=50, preprocess=onnx_fcn.Preprocessing(1 / 255), progress=stop)
"""


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".zarr"])
def test_a_run_that_was_killed_goes_on(suffix: str, tmp_path: Path, digits: Path, page: Path) -> None:
    target = tmp_path / f"map{suffix}"
    command = [sys.executable, "-c", KILLED, str(digits), str(page), str(target)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    journal = tmp_path / f"map{suffix}.journal"
    with journal.open("a") as file:
        file.write("1")  # of a line that was never finished
    for how, what in (({"tile": 48}, "tile"), ({"preprocess": "raw"}, "preprocessing"), ({"approximate": True}, None)):
        wanted: Any = {"tile": 50, "preprocess": Preprocessing(1 / 255), **how}
        if what is not None:
            with pytest.raises(OptionError, match=f"an unfinished map with another {what}: "):
                onnx_fcn.apply(digits, page, target, **wanted)
    applied = onnx_fcn.apply(digits, page, target, tile=50, preprocess=Preprocessing(1 / 255))
    assert (applied.resumed, applied.tiles) == (7, 12)
    assert_same(read(target), once(digits, np.load(page)[None] / np.float32(255)))
    assert not journal.exists()
    assert not (tmp_path / f"map{suffix}.partial").exists()


def stopped(*arguments: Any, after: int = 3, **how: Any) -> None:
    def stop(done: int, _: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnx_fcn.apply(*arguments, progress=stop, **how)


def test_another_image_or_model_is_no_continuation(tmp_path: Path, digits: Path, page: Path) -> None:
    target = tmp_path / "map.npy"
    stopped(digits, page, target, tile=50)
    os.utime(page, ns=(1, 1))
    with pytest.raises(OptionError, match="an unfinished map with another image: give the same again to resume, or"):
        onnx_fcn.apply(digits, page, target, tile=50)
    other = onnx.load(digits)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    onnx.save(other, digits)
    with pytest.raises(OptionError, match="another model and another image"):
        onnx_fcn.apply(digits, page, target, tile=50)
    (tmp_path / "map.npy.partial").unlink()  # what was begun is gone: a new beginning
    assert onnx_fcn.apply(digits, page, target, tile=50).resumed == 0


def test_two_runs_do_not_write_one_map(tmp_path: Path, digits: Path, page: Path) -> None:
    journal = Journal(tmp_path / "map.npy.journal")
    with pytest.raises(OptionError, match="another run is writing"):
        onnx_fcn.apply(digits, page, tmp_path / "map.npy")
    journal.close()
    assert onnx_fcn.apply(digits, page, tmp_path / "map.npy").tiles == 1


def test_a_foreign_journal_is_left_alone(tmp_path: Path, digits: Path, page: Path) -> None:
    for text in ("monday: slept\n", "monday: slept", "[]\n"):
        (tmp_path / "map.npy.journal").write_text(text)
        with pytest.raises(OptionError, match="is not the journal of an unfinished map"):
            onnx_fcn.apply(digits, page, tmp_path / "map.npy")
        assert (tmp_path / "map.npy.journal").read_text() == text


def test_a_disk_that_is_full(tmp_path: Path, digits: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known beforehand, or what was written is kept."""
    target = tmp_path / "map.npy"
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(OptionError, match=r"the map takes 0.00 GB, and 0.00 GB are free"):
            onnx_fcn.apply(digits, page, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "page.npy"]
    with monkeypatch.context() as patch:
        synced, left = os.fsync, [5]

        def full(descriptor: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            synced(descriptor)

        patch.setattr("os.fsync", full)
        with pytest.raises(OptionError, match=r"cannot write '.*map.npy': No space left on device"):
            onnx_fcn.apply(digits, page, target, tile=50)
    applied = onnx_fcn.apply(digits, page, target, tile=50)
    assert applied.resumed == 2
    assert_same(np.load(target), once(digits, np.load(page)[None] / np.float32(255)))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio, with affine 3
def test_the_documentation_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(ROOT / "docs/tiles.md"), module_relative=False, encoding="utf-8")
    assert (found.failed, found.attempted > 12) == (0, True)


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "count"), [("2G", 2 << 30), ("1.5 GiB", 3 << 29), ("500M", 500 << 20), ("7", 7)])
def test_amounts_of_memory(text: str, count: int) -> None:
    assert memory.parse_bytes(text) == count


@pytest.mark.parametrize("limit", [1 << 30, 3 << 30, 1 << 40])
def test_tiles_are_as_large_as_fits(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a network that takes 200 bytes a pixel, and 300 MB with its weights; none is run that would not fit."""
    peak = [300 << 20]

    def run(tile: int) -> None:
        peak[0] = (300 << 20) + 200 * (tile + 475) ** 2

    monkeypatch.setattr(memory, "resident", lambda *, reset=False: (300 << 20, peak[0]))
    tile = memory.largest_tile(lambda t: (run(t), None)[1], lambda t: (t + 475) ** 2, limit, 9000)
    assert peak[0] <= limit
    if limit < 1 << 40:
        run(tile)
        assert 0.8 * limit < peak[0] <= 0.9 * limit
    else:
        assert tile == 9000
    with pytest.raises(
        OptionError, match=r"the process takes 0.3. GB with the smallest tile, and --memory allows 0.20 GB"
    ):
        memory.largest_tile(lambda t: (run(t), None)[1], lambda t: (t + 475) ** 2, 200 << 20, 9000)


def test_a_limit_of_memory(tmp_path: Path, digits: Path, page: Path) -> None:
    """Chosen once: a run that goes on keeps its tiles."""
    target = tmp_path / "map.npy"
    assert onnx_fcn.apply(digits, page, target, memory="16G", preprocess=Preprocessing(1 / 255)).tile == 203
    assert_same(np.load(target), once(digits, np.load(page)[None] / np.float32(255)))
    target.unlink()
    stopped(digits, page, target, tile=50)
    assert onnx_fcn.apply(digits, page, target, memory="16G").tile == 50


@pytest.mark.parametrize("memory", [None, "16G"])
def test_memory_is_kept_from_tile_to_tile_without_a_limit(
    tmp_path: Path, digits: Path, page: Path, memory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arena never shrinks: the sizes that are tried below a limit would add up. Threads never spin between tiles."""
    made = []

    def options(*given: Any, **more: Any) -> Any:
        made.append(lean_options(*given, **more))
        return made[-1]

    monkeypatch.setattr("onnx_fcn.tiles.tiled.lean_options", options)
    onnx_fcn.apply(digits, page, tmp_path / "map.npy", memory=memory)
    assert [o.enable_cpu_mem_arena for o in made] == [memory is None]
    assert [o.get_session_config_entry("session.intra_op.allow_spinning") for o in made] == ["0"]


WIDE = law.model(
    "a = Conv <pads = [1, 1, 1, 1]> (x, k)  b = Conv <dilations = [40, 40], pads = [80, 80, 80, 80]> (a, m)  "
    "c = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (b)  " + HEAD.format("c"),
    image="float[N,1,16,16] x",
    k=(8, 1, 3, 3),
    m=(2, 8, 5, 5),
)


@pytest.mark.parametrize("size", [(500, 700), (3000, 2500), (20000, 30000), (2100, 90000)])
@pytest.mark.parametrize("free", [1 << 20, 100 << 20, 1 << 30, 1 << 50])
def test_the_default_tile(size: tuple[int, int], free: int, tmp_path: Path) -> None:
    """The smallest one that costs little more than one pass, or the largest one that there is memory for."""
    tiled = open_tiled(converted(tmp_path, WIDE))
    tile = choose_tile(tiled, size, 2, free)

    def taken(tile: int) -> int:
        count = tiled.activations(tiled.tiling(size, tile).largest_crop.crop, 2)
        assert count is not None
        return count

    if taken(tile) <= SHARE * free:
        if tile < min(LEAST[2], max(size)):  # which was too much
            assert taken(2 * tile) > SHARE * free
        elif tiled.tiling(size, tile).overhead > OVERHEAD:
            assert taken(tile + tile // 2) > SHARE * free
        elif tile > LEAST[2]:
            assert tiled.tiling(size, tile * 2 // 3).overhead > OVERHEAD
    else:
        assert (free, tile) == (1 << 20, 4)
    assert tile <= max(size)


def test_activations_are_counted_on_the_converted_file_alone(tmp_path: Path) -> None:
    """As the report counts them on its walk; with shapes that another tool left out of the file."""
    report = onnx_fcn.convert(WIDE, tmp_path / "out.onnx", sizes=[(300, 400)], validate=False).report
    tiled = open_tiled(tmp_path / "out.onnx")
    assert tiled.activations((300, 400), 1) == report.costs[-1].activations
    assert tiled.activations((300, 400), 3) == 3 * (tiled.activations((300, 400), 1) or 0)


def test_where_activations_are_not_known_tiles_are_of_the_usual_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tiled, "activations", lambda *_: None)
    assert choose_tile(open_tiled(converted(tmp_path, WIDE)), (20000, 20000), 1, 1 << 50) == LEAST[2]


def test_a_run_that_goes_on_keeps_the_default_tile(
    tmp_path: Path, digits: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """However much memory is free by then."""
    target = tmp_path / "map.npy"
    monkeypatch.setitem(LEAST, 2, 40)
    monkeypatch.setattr(memory, "available", lambda: 2_000_000)
    stopped(digits, page, target)
    tile = json.loads((tmp_path / "map.npy.journal").read_text().splitlines()[0])["tile"]
    monkeypatch.setattr(memory, "available", lambda: 1 << 40)
    code, out, err = command(capfd, "apply", digits, page, target)
    assert (code, err) == (0, "")
    assert re.search(rf"^tiles +\d+ of {tile} pixels, \d+% more pixels than in one pass, 3 done before$", out, re.M)
    assert "network  gets pixel/255" in out
    assert_same(np.load(target), once(digits, np.load(page)[None] / np.float32(255)))
    target.unlink()
    applied = onnx_fcn.apply(digits, page, target)
    assert applied.tile > tile
    assert applied.overhead <= OVERHEAD


def test_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says, or the limit of a container; else what the documentation says is assumed."""
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
    monkeypatch.setattr(memory, "resident", lambda: (1 << 30, 2 << 30))
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory.available() == memory.ASSUMED
    (tmp_path / "meminfo").write_text("MemTotal:       24000000 kB\nMemAvailable:    8388608 kB\n")
    assert memory.available() == 8 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == 8 << 30
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    assert memory.available() == 2 << 30
    (tmp_path / "memory.max").unlink()
    (tmp_path / "meminfo").write_text("MemTotal: 24000000 kB\n")  # of an old kernel
    monkeypatch.setattr(os, "sysconf_names", {"SC_AVPHYS_PAGES": 86})
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available() == 4 << 30


# The command ----------------------------------------------------------------------------------------------------------


def command(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capfd.readouterr()
    return main([*map(str, words)]), *capfd.readouterr()


def test_the_command(tmp_path: Path, digits: Path, page: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "map.tif"
    code, out, err = command(capfd, "apply", digits, page, target, "--tile", "100", "--scale", "1/255")
    assert (code, err) == (0, "")
    assert "map    " in out
    assert "11×44×31 of float32" in out
    assert "4 of 100 pixels" in out
    assert "yes: as in one pass" in out
    assert_same(tifffile.imread(target), once(digits, np.load(page)[None] / np.float32(255)))
    assert command(capfd, "apply", digits, page, tmp_path / "map.npy", "-q") == (0, "", "")


Files = dict[str, Path]

#: words after `apply`, with files by name: (exit code, what it says).
MISTAKES: dict[str, tuple[int, str]] = {
    "none.onnx page.npy map.npy": (1, "'{none.onnx}' does not exist"),
    "page.npy page.npy map.npy": (1, "'{page.npy}' is not an ONNX model"),
    "plain.onnx page.npy map.npy": (1, "onnx_fcn did not convert it"),
    "full.onnx page.npy map.npy": (2, "was made with --full-size, which is not a map"),
    "mean.onnx page.npy map.npy": (2, "was made with --reduce mean, which is not a map"),
    "out.onnx none.npy map.npy": (2, "'{none.npy}' does not exist"),
    "out.onnx text.png map.npy": (2, "'{text.png}' is not an image: TIFF, PNG, JPEG"),
    "out.onnx torn.png map.npy": (2, "'{torn.png}' cannot be read as an image: "),
    "out.onnx torn.npy map.npy": (2, "'{torn.npy}' is cut short: its header declares 60×60 numbers"),
    "out.onnx torn.tif map.npy": (2, "'{torn.tif}' contains no image"),
    "out.onnx folder map.npy": (2, "'{folder}' is a folder, but not a zarr store"),
    "out.onnx bands.npy map.npy": (2, "has the shape (30, 30, 5), and the model takes images with 2 axes"),
    "out.onnx alpha.npy map.npy": (2, "and 1 channel; if one channel is alpha, remove it"),
    "out.onnx small.npy map.npy": (2, "an image of 9×40 pixels is too small for an answer, whose window is 28×28"),
    "out.onnx words.npy map.npy": (2, "contains values of type <U1, which are not pixels"),
    "out.onnx page.npy map.jpg": (2, "is not the name of a map: it must end in .npy, .tif, .tiff or .zarr"),
    "out.onnx page.npy page.npy": (2, "'{page.npy}' exists: remove it, or write to another name"),
    "out.onnx page.npy none/map.npy": (2, "there is no folder"),
    "out.onnx page.npy map.npy --level 1": (2, "is not a pyramid, so it has no level 1"),
    "out.onnx page.npy map.npy --tile 0": (2, "--tile is an integer of at least 1, not 0"),
    "out.onnx page.npy map.npy --memory lots": (2, "'lots' is not an amount of memory, such as 2G"),
    "out.onnx page.npy map.npy --memory 1M": (2, "GB with the smallest tile, and --memory allows 0.00 GB"),
    "out.onnx page.npy map.npy --mean 1,2,3": (2, "(1, 2, 3) is for 3 channels, and the network reads 1: give --mean"),
    "out.onnx page.npy map.npy --std 0": (2, "neither scale nor std is zero"),
    "out.onnx page.npy map.npy --mask alpha.png": (
        2,
        "has an alpha channel, which a mask cannot have: save it in grey",
    ),
    "out.onnx page.npy map.npy --output logits": (2, "the model has no output 'logits' with a grid of answers"),
    "out.onnx page.npy map.npy --tile 9 --memory 2G": (2, "not allowed with argument"),
    "out.onnx page.npy map.npy --scale half": (2, "'half' is not a number"),
    "two.onnx page.npy map.npy": (2, "the model takes 2 images at a time, not 1: give --batch 2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    plain = onnx.load(ROOT / "fixtures/digits_padded.onnx")
    onnx.save(plain, folder / "plain.onnx")
    onnx_fcn.convert(plain, folder / "out.onnx", validate=False)
    onnx_fcn.convert(plain, folder / "full.onnx", validate=False, full_size=True)
    onnx_fcn.convert(plain, folder / "mean.onnx", validate=False, reduce="mean")
    two = onnx.load(ROOT / "fixtures/digits_unpadded.onnx")
    two.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx_fcn.convert(two, folder / "two.onnx", validate=False)
    np.save(folder / "page.npy", np.zeros((60, 60), np.uint8))
    np.save(folder / "small.npy", np.zeros((9, 40), np.uint8))
    np.save(folder / "words.npy", np.full((60, 60), "a"))
    np.save(folder / "bands.npy", np.zeros((30, 30, 5), np.uint8))
    np.save(folder / "alpha.npy", np.zeros((30, 30, 4), np.uint8))
    PIL.Image.fromarray(np.zeros((30, 30, 4), np.uint8)).save(folder / "alpha.png")
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60)).astype(np.uint8)).save(folder / "whole.png")
    (folder / "torn.png").write_bytes((folder / "whole.png").read_bytes()[:900])
    (folder / "torn.npy").write_bytes((folder / "page.npy").read_bytes()[:900])
    (folder / "torn.tif").write_bytes(b"II*\0\x08\0\0\0")
    (folder / "text.png").write_text("no picture")
    (folder / "folder").mkdir()
    return folder


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_sentence(words: str, shelf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in shelf.iterdir())
    code, sentence = MISTAKES[words]
    given = [str(shelf / w) if "." in w or w == "folder" else w for w in words.split()]
    found, out, err = command(capfd, "apply", *given)
    for name in [w for w in words.split() if f"{{{w}}}" in sentence]:
        sentence = sentence.replace(f"{{{name}}}", str(shelf / name))
    assert sentence in err
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert "error: " in err
    assert sorted(p.name for p in shelf.iterdir()) == before


def test_a_fixed_batch_is_filled(shelf: Path, tmp_path: Path) -> None:
    """The last run of an odd number of tiles too."""
    np.save(tmp_path / "page.npy", noise(60, 95))
    applied = onnx_fcn.apply(shelf / "two.onnx", tmp_path / "page.npy", tmp_path / "map.npy", tile=24, batch=2)
    assert applied.tiles == 6
    onnx_fcn.apply(shelf / "two.onnx", tmp_path / "page.npy", tmp_path / "one.npy", batch=2)
    assert_same(np.load(tmp_path / "map.npy"), np.load(tmp_path / "one.npy"))


@pytest.mark.parametrize(
    ("package", "image", "target"),
    [
        ("tifffile", "i.tif", "m.npy"),
        ("zarr", "i.npy", "m.zarr"),
        ("tifffile", "i.npy", "m.tif"),
        ("PIL", "i.png", "m.npy"),
    ],
)
def test_a_package_that_is_missing(
    package: str, image: str, target: str, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, extra = {"PIL": ("Pillow", "view")}.get(package, (package, "tiles"))
    picture = np.zeros((60, 60), np.uint8)
    np.save(tmp_path / "i.npy", picture)
    tifffile.imwrite(tmp_path / "i.tif", picture)
    PIL.Image.fromarray(picture).save(tmp_path / "i.png")
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=rf"needs {called}, which is not installed: .*'onnx-fcn\[{extra}\]'"):
        onnx_fcn.apply(digits, tmp_path / image, tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.npy", "i.png", "i.tif", "out.onnx"]


BIG = """
import sys, onnx_fcn
print(onnx_fcn.apply(*sys.argv[1:4], memory=sys.argv[4], preprocess=onnx_fcn.Preprocessing(1 / 255)).tiles)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not memory.STATUS.exists(), reason="the peak of memory is Linux's")
@pytest.mark.parametrize("limit", ["400M", "1G"])
def test_a_picture_of_20000_pixels(limit: str, tmp_path: Path, digits: Path) -> None:
    """The whole process stays below the limit."""
    strip = np.random.default_rng(0).integers(0, 256, (1000, 20000), np.uint8)
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint8, (20000, 20000))
    for k in range(20):
        image[1000 * k : 1000 * (k + 1)] = np.roll(strip, 37 * k, 1)
    image.flush()
    command = [sys.executable, "-c", BIG, str(digits), str(tmp_path / "image.npy"), str(tmp_path / "map.npy"), limit]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    tiles, peak = map(int, done.stdout.split())
    assert tiles > 80
    assert peak << 10 < memory.parse_bytes(limit)
    answers = np.load(tmp_path / "map.npy", mmap_mode="r")
    rows, columns = slice(2036, 2060), slice(996, 1040)  # across a seam
    crop = image[4 * 2000 : 4 * 2100, 4 * 960 : 4 * 1080]
    expected = once(digits, crop[None] / np.float32(255))
    assert_same(answers[:, rows, columns], expected[:, 36:60, 36:80])
