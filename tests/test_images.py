"""Images of all kinds: the same numbers wherever a file goes in, or a sentence that says what kind of picture it is."""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import law
import numpy as np
import onnx
import PIL.Image
import pytest
import tifffile
import zarr
from test_tiles import converted

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import DenseModel, OptionError, Preprocessing
from onnx_fcn.cli import main
from onnx_fcn.images.channels import LUMA
from onnx_fcn.images.identity import stamp
from onnx_fcn.images.image import open_image, pixels_of

SIZE = (36, 52)
PICTURE = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
GREY = np.asarray(PIL.Image.fromarray(PICTURE).convert("L"))


def network(folder: Path, channels: int, **how: Any) -> Path:
    model = law.model(
        "m = Conv <strides = [2, 2]> (x, k)  f = Flatten (m)  y = MatMul (f, w)",
        image=f"float[N,{channels},8,8] x",
        k=(4, channels, 4, 4),
        w=(36, 3),
    )
    return converted(folder, model, **how)


def tiled(model: Path, image: Path, **how: Any) -> np.ndarray:
    target = model.with_name("map.npy")
    target.unlink(missing_ok=True)
    onnx_fcn.apply(model, image, target, tile=12, **how)
    return np.load(target)


def oriented(number: int) -> Callable[[Path], object]:
    """As a camera stores it that was held in another way."""
    turns = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.swapaxes(0, 1),
        6: np.rot90,
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }

    def write(path: Path) -> None:
        stored = np.ascontiguousarray(turns[number](PICTURE))
        if path.suffix == ".tif":
            tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, 3, 1, number, True)], tile=(16, 16))
        else:
            exif = PIL.Image.Exif()
            exif[0x0112] = number
            PIL.Image.fromarray(stored).save(path, exif=exif)

    return write


def palette(path: Path) -> None:
    colours = np.unique(PICTURE.reshape(-1, 3), axis=0)
    places = (PICTURE[..., None, :] == colours).all(-1).argmax(-1).astype(np.uint8)
    image = PIL.Image.fromarray(places, "P") if path.suffix == ".png" else None
    if image is None:
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(colours)] = colours.T.astype(np.uint16) * 257
        tifffile.imwrite(path, places, photometric="palette", colormap=table)
    else:
        image.putpalette(colours.ravel().tolist())
        image.save(path)


def saved(mode: str) -> Callable[[Path], object]:
    return lambda path: PIL.Image.fromarray(PICTURE).convert(mode).save(path)


def alpha(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 256, (*SIZE, 1)).astype(np.uint8)
    return np.concatenate([pixels.reshape(*SIZE, -1), noise], axis=-1)


#: name: (file, how it is written, what it shows).
KINDS: dict[str, tuple[str, Callable[[Path], object], np.ndarray]] = {
    **{f"orientation {k}, png": ("p.png", oriented(k), PICTURE) for k in range(2, 9)},
    **{f"orientation {k}, tiff": ("p.tif", oriented(k), PICTURE) for k in range(1, 9)},
    "palette, png": ("p.png", palette, PICTURE),
    "palette, tiff": ("p.tif", palette, PICTURE),
    "rgba": ("p.png", lambda p: PIL.Image.fromarray(alpha(PICTURE)).save(p), PICTURE),
    "grey and alpha": ("p.png", lambda p: PIL.Image.fromarray(alpha(GREY)).save(p), GREY),
    "one bit": ("p.png", saved("1"), np.asarray(PIL.Image.fromarray(PICTURE).convert("1")).astype(np.uint8) * 255),
    "white is zero": ("p.tif", lambda p: tifffile.imwrite(p, 255 - GREY, photometric="miniswhite"), GREY),
    "white is zero, 16 bits": (
        "p.tif", lambda p: tifffile.imwrite(p, 65535 - GREY.astype(np.uint16) * 257, photometric="miniswhite"), GREY,
    ),
    "one bit, tiff": (
        "p.tif", lambda p: tifffile.imwrite(p, GREY > 90, photometric="minisblack"), (GREY > 90).astype(np.uint8) * 255,
    ),
    "one bit, white is zero": (
        "p.tif", lambda p: tifffile.imwrite(p, GREY > 90, photometric="miniswhite"), np.uint8(255) * (GREY <= 90),
    ),
    "16 bits, png": ("p.png", lambda p: PIL.Image.fromarray(GREY.astype(np.uint16) * 257).save(p), GREY),
    "16 bits, tiff": (
        "p.tif", lambda p: tifffile.imwrite(p, PICTURE.astype(np.uint16) * 257, photometric="rgb"), PICTURE,
    ),
    "rgba, tiff": (
        "p.tif", lambda p: tifffile.imwrite(p, alpha(PICTURE), photometric="rgb", extrasamples=["unassalpha"]), PICTURE,
    ),
    "planes, tiff": (
        "p.tif",
        lambda p: tifffile.imwrite(p, np.moveaxis(PICTURE, -1, 0), photometric="rgb", planarconfig="separate"),
        PICTURE,
    ),
    "inks, tiff": (
        "p.tif",
        lambda p: tifffile.imwrite(
            p, np.concatenate([255 - PICTURE, 0 * PICTURE[..., :1]], -1), photometric="separated", tile=(16, 16)
        ),
        PICTURE,
    ),
    "an array": ("p.npy", lambda p: np.save(p, PICTURE), PICTURE),
    "an array of grey": ("p.npy", lambda p: np.save(p, GREY), GREY),
    "an array of floats": ("p.npy", lambda p: np.save(p, GREY / np.float32(255)), GREY),
    "an array of yes and no": ("p.npy", lambda p: np.save(p, GREY > 90), (GREY > 90).astype(np.uint8) * 255),
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_all_commands_see_what_is_shown(name: str, channels: int, tmp_path: Path) -> None:
    file, write, shown = KINDS[name]
    write(tmp_path / file)
    path, picture = network(tmp_path, channels), shown.reshape(*SIZE, -1).astype(np.float32)
    if picture.shape[-1] != channels:
        picture = (picture @ LUMA)[..., None] if channels == 1 else picture.repeat(3, -1)
    expected = law.session(onnx.load(path))({"x": picture.transpose(2, 0, 1)[None] / np.float32(255)})[0][0]
    close: Any = {"rtol": 0, "atol": 2e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(pixels_of(tmp_path / file, channels), picture, atol=1e-3)
    np.testing.assert_allclose(DenseModel(path).run(tmp_path / file).map, expected, **close)
    np.testing.assert_allclose(tiled(path, tmp_path / file), expected, **close)
    if file == "p.npy":
        lazy = onnx_fcn.dask.apply(path, dask.array.from_array(np.load(tmp_path / file)), tile=12)
        np.testing.assert_allclose(lazy.compute(scheduler="sync"), expected, **close)


def test_regions_of_a_turned_picture(tmp_path: Path) -> None:
    for number in range(1, 9):
        oriented(number)(tmp_path / "p.tif")
        image = open_image(tmp_path / "p.tif", 2, 3)
        box = slice(3, 20), slice(11, 49)
        np.testing.assert_array_equal(image.read(box), PICTURE[box].transpose(2, 0, 1))
        image.close()


def test_fewer_bits_count_to_full_scale(tmp_path: Path) -> None:
    """4 bits become 8; 12 keep their numbers, as --scale is about these, and full scale is 4095."""
    tifffile.imwrite(tmp_path / "four.tif", GREY >> 4, bitspersample=4, photometric="minisblack")
    np.testing.assert_array_equal(pixels_of(tmp_path / "four.tif")[..., 0], (GREY >> 4) * 17)
    deep = GREY.astype(np.uint16) << 4
    tifffile.imwrite(tmp_path / "twelve.tif", deep, bitspersample=12, photometric="minisblack")
    np.testing.assert_allclose(pixels_of(tmp_path / "twelve.tif")[..., 0], deep * (255 / 4095), rtol=1e-5)
    path = network(tmp_path, 1)
    by_scale = tiled(path, tmp_path / "twelve.tif", preprocess=Preprocessing(1 / 4095))
    np.testing.assert_allclose(tiled(path, tmp_path / "twelve.tif"), by_scale, atol=1e-5 * np.abs(by_scale).max())


def test_bands_are_no_colours(tmp_path: Path) -> None:
    """As many as the network takes, in numbers as they are stored, for all commands; no others."""
    scene = np.random.default_rng(0).integers(0, 6000, (*SIZE, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "scene.tif", scene, photometric="minisblack", planarconfig="contig", tile=(16, 16))
    np.save(tmp_path / "scene.npy", scene)
    path = network(tmp_path, 5)
    expected = tiled(path, tmp_path / "scene.tif")
    for name in ("scene.tif", "scene.npy"):
        found = DenseModel(path).run(tmp_path / name).map
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    path = network(tmp_path, 3)
    tifffile.imwrite(tmp_path / "two.tif", scene[..., :2], photometric="minisblack", planarconfig="contig")
    for run in (lambda image: DenseModel(path).run(image), lambda image: tiled(path, image)):
        for name in ("scene.tif", "two.tif"):
            with pytest.raises(OptionError, match=r"has the shape .*, and the model takes images"):
                run(tmp_path / name)


def test_what_kind_of_picture_it_is(tmp_path: Path) -> None:
    oriented(1)(tmp_path / "p.png")
    path = network(tmp_path, 5)
    for run in (lambda image: DenseModel(path).run(image), lambda image: tiled(path, image)):
        with pytest.raises(
            OptionError, match=r"p.png' is a picture in RGB, and the model takes .* give one of 5 channels"
        ):
            run(tmp_path / "p.png")
    tifffile.imwrite(tmp_path / "lab.tif", PICTURE, photometric="cielab")
    with pytest.raises(
        OptionError, match="has colours of the kind CIELAB, which is not supported: save it in RGB or grey"
    ):
        pixels_of(tmp_path / "lab.tif")
    with pytest.raises(OptionError, match="does not exist"):
        pixels_of(tmp_path / "none.png")


# Files that are not what they say -------------------------------------------------------------------------------------


def huge_array(path: Path) -> None:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.encode() + b"x" * 1000)


def negative_array(path: Path) -> None:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (-30, -30), }".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.encode() + b"x" * 1000)


def huge_tile(path: Path) -> None:
    tifffile.imwrite(path, PICTURE, photometric="rgb", tile=(16, 16), compression="zlib")
    _retag(path, TileWidth=1 << 20, TileLength=1 << 20)


def more_rows(path: Path) -> None:
    tifffile.imwrite(path, PICTURE, photometric="rgb", rowsperstrip=8, compression="zlib")
    _retag(path, ImageLength=1 << 30)


def wider(path: Path) -> None:
    tifffile.imwrite(path, GREY > 90, photometric="minisblack")
    _retag(path, ImageWidth=1 << 30)


def cut(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tifffile.imwrite(path, PICTURE, photometric="rgb")
        path.write_bytes(path.read_bytes()[: size or -100])

    return write


def huge_chunk(path: Path) -> None:
    zarr.open_array(str(path), mode="w", shape=(1 << 40, 1 << 40), chunks=(1 << 40, 1 << 40), dtype="u1")


def huge_store(path: Path) -> None:
    zarr.open_array(str(path), mode="w", shape=(1 << 40, 60), chunks=(60, 60), dtype="u1")


def _retag(path: Path, **values: int) -> None:
    with tifffile.TiffFile(path) as file:
        places = {name: file.pages[0].tags[name] for name in values}
        data = bytearray(path.read_bytes())
        for name, tag in places.items():
            struct.pack_into("<H", data, tag.offset + 2, 4)
            struct.pack_into("<I", data, tag.offset + 8, values[name])
    path.write_bytes(data)


LIES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an array": (huge_array, "p.npy", "is cut short: its header declares 1000000×1000000 numbers"),
    "a negative array": (negative_array, "p.npy", "is cut short: its header declares -30×-30 numbers"),
    "a tile": (huge_tile, "p.tif", "cannot be read: one tile or strip takes .* GB are free|declares more pixels"),
    "rows": (more_rows, "p.tif", "declares more pixels than it has"),
    "columns": (wider, "p.tif", "is cut short: not all of its pixels are there"),
    "8 bytes": (cut(8), "p.tif", "contains no image|is damaged, cut short"),
    "200 bytes": (cut(200), "p.tif", "is cut short|is damaged, cut short"),
    "half of it": (cut(0), "p.tif", "is cut short: not all of its pixels are there"),
    "a chunk": (huge_chunk, "p.zarr", "cannot be read: one chunk takes .* GB are free|is damaged"),
    "a store": (huge_store, "p.zarr", "cannot be read: the whole image at once|has more than 1048576 tiles"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_a_file_says_of_itself_is_compared_with_what_is_there(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At once, and in one sentence without the words of a library."""
    write, file, says = LIES[name]
    write(tmp_path / file)
    path, before = network(tmp_path, 1), sorted(tmp_path.iterdir())
    for words in (["apply"], ["heatmap"]):
        capfd.readouterr()
        started = time.process_time()
        code = main([*words, str(path), str(tmp_path / file), str(tmp_path / "map.npy")])
        assert time.process_time() - started < 3
        out, err = capfd.readouterr()
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")
        assert re.search(says, err), err
        assert not re.search("index out of range|mmap|offset|<tifffile", err)
        assert sorted(tmp_path.iterdir()) == before


# What tells an image from another one ---------------------------------------------------------------------------------


def stores(path: Path, values: np.ndarray, kind: str) -> None:
    if kind == "group":
        group = zarr.open_group(str(path), mode="a")
        array = group["0"] if "0" in group else group.create_array("0", shape=SIZE, chunks=(16, 16), dtype="u1")
    else:
        array = zarr.open_array(str(path), mode="a", shape=SIZE, chunks=(16, 16), dtype="u1", zarr_format=int(kind))
    array[...] = values


@pytest.mark.parametrize("kind", ["2", "3", "group"])
@pytest.mark.parametrize("what", ["image", "mask"])
def test_a_change_of_any_chunk_is_noticed(kind: str, what: str, tmp_path: Path) -> None:
    path = network(tmp_path, 1)
    np.save(tmp_path / "image.npy", GREY)
    changed = GREY.copy()
    changed[-1, -1] ^= 1
    stores(tmp_path / "store.zarr", GREY, kind)
    image = tmp_path / ("store.zarr" if what == "image" else "image.npy")
    how: Any = {} if what == "image" else {"mask": tmp_path / "store.zarr"}

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnx_fcn.apply(path, image, tmp_path / "map.npy", tile=12, progress=stop, **how)
    stores(tmp_path / "store.zarr", changed, kind)
    with pytest.raises(OptionError, match=f"an unfinished map with another {what}: "):
        onnx_fcn.apply(path, image, tmp_path / "map.npy", tile=12, **how)


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "image.npy"
    np.save(file, GREY)
    known, before = file.stat(), stamp([file])
    assert stamp([file]) == before
    np.save(file, GREY ^ 1)
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert stamp([file]) != before
    (tmp_path / "loop").symlink_to(tmp_path)  # a folder in itself
    assert stamp([tmp_path]) == stamp([tmp_path])


def test_an_image_that_changes_meanwhile_gives_no_map(tmp_path: Path) -> None:
    path = network(tmp_path, 1)
    np.save(tmp_path / "image.npy", GREY)

    def meddle(done: int, _: int) -> None:
        if done == 3:
            np.save(tmp_path / "image.npy", 255 - GREY)

    with pytest.raises(OptionError, match=r"the image changed while the map was made, so .* remove .* to start over"):
        onnx_fcn.apply(path, tmp_path / "image.npy", tmp_path / "map.npy", tile=12, progress=meddle)
    assert not (tmp_path / "map.npy").exists()


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".zarr"])
def test_what_appears_under_the_name_of_a_map_stays(suffix: str, tmp_path: Path) -> None:
    """And so does the map: the same command finds all of it."""
    path, target = network(tmp_path, 1), tmp_path / f"map{suffix}"
    np.save(tmp_path / "image.npy", GREY)

    def appear(done: int, _: int) -> None:
        if done == 3:
            target.write_text("precious")

    with pytest.raises(OptionError, match="appeared while the map was made, and was not replaced: move it away"):
        onnx_fcn.apply(path, tmp_path / "image.npy", target, tile=12, progress=appear)
    assert target.read_text() == "precious"
    target.unlink()
    applied = onnx_fcn.apply(path, tmp_path / "image.npy", target, tile=12)
    assert applied.resumed == applied.tiles
