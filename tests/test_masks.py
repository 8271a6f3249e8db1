"""Masks: the numbers that were stored, by region, or a sentence that says why they are no numbers of classes."""

from __future__ import annotations

import contextlib
import struct
import sys
import wave
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr
from test_images import LIES, oriented

from onnx_fcn import OptionError
from onnx_fcn.images import masks
from onnx_fcn.images.image import open_image
from onnx_fcn.images.masks import open_mask
from onnx_fcn.images.stored import Stored

SIZE = (37, 53)
RNG = np.random.default_rng(0)
FEW = RNG.integers(0, 4, SIZE).astype(np.uint8)
CODES = RNG.integers(0, 256, SIZE).astype(np.uint8)
YES = FEW > 1
COLOURS = RNG.integers(0, 256, (256, 3)).astype(np.uint8)


def grey(bits: int, codes: np.ndarray) -> Callable[[Path], object]:
    """A grey PNG of few bits, which Pillow does not write: its own for a palette, called grey."""

    def write(path: Path) -> None:
        rows = b"".join(
            b"\0" + np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)).tobytes()
            for row in codes
        )
        head = struct.pack(">IIBBBBB", codes.shape[1], codes.shape[0], bits, 0, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        data = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))

    return write


def palette(colours: np.ndarray, codes: np.ndarray = CODES, **how: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        picture = PIL.Image.fromarray(codes)
        picture.putpalette(colours.ravel().tolist())
        picture.save(path, **how)

    return write


def palette_tiff(path: Path) -> None:
    table = np.ascontiguousarray(COLOURS.T).astype(np.uint16) * 257
    tifffile.imwrite(path, CODES, photometric="palette", colormap=table, tile=(16, 16), compression="zlib")


def tiff(codes: np.ndarray, **how: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, codes, photometric=how.pop("photometric", "minisblack"), **how)


def store(path: Path) -> None:
    zarr.open_array(str(path), mode="w", shape=(1, 1, *SIZE), chunks=(1, 1, 16, 16), dtype="i4")[...] = CODES[
        None, None
    ]


def nameless(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, CODES)


DEEP = CODES.astype(np.uint16) * 200
KINDS: dict[str, tuple[str, Callable[[Path], object], np.ndarray]] = {
    "grey": ("m.png", lambda p: PIL.Image.fromarray(CODES).save(p), CODES),
    "one bit": ("m.png", lambda p: PIL.Image.fromarray(YES).save(p), YES),
    "grey of one bit": ("m.png", grey(1, YES.astype(np.uint8)), YES),
    "grey of two bits": ("m.png", grey(2, FEW), FEW),
    "grey of four bits": ("m.png", grey(4, FEW * 5), FEW * 5),
    "16 bits": ("m.png", lambda p: PIL.Image.fromarray(DEEP).save(p), DEEP),
    "palette": ("m.png", palette(COLOURS), CODES),
    "palette in grey": ("m.png", palette(np.full((256, 3), 7, np.uint8)), CODES),
    "palette of two bits": ("m.png", palette(COLOURS[:4], FEW, bits=2), FEW),
    "palette with a transparent colour": ("m.png", palette(COLOURS, transparency=3), CODES),
    "bitmap": ("m.bmp", palette(COLOURS), CODES),
    "no suffix": ("mask", nameless, CODES),
    "array": ("m.npy", lambda p: np.save(p, CODES.astype(np.int64) - 100), CODES.astype(int) - 100),
    "array of yes and no": ("m.npy", lambda p: np.save(p, YES), YES),
    "array with axes of one": ("m.npy", lambda p: np.save(p, CODES[None, None]), CODES),
    "array by columns": ("m.npy", lambda p: np.save(p, np.asfortranarray(CODES)), CODES),
    "tiff": ("m.tif", tiff(CODES), CODES),
    "tiff in tiles": ("m.tif", tiff(DEEP, tile=(16, 16), compression="zlib", bigtiff=True), DEEP),
    "tiff by difference": ("m.tif", tiff(CODES, rowsperstrip=5, compression="lzw", predictor=2), CODES),
    "tiff of one bit": ("m.tif", tiff(YES), YES),
    "tiff of four bits": ("m.tif", tiff(FEW, bitspersample=4), FEW),
    "tiff of twelve bits": ("m.tif", tiff(DEEP >> 4, bitspersample=12), DEEP >> 4),
    "tiff, white is zero": ("m.tif", tiff(CODES, photometric="miniswhite"), CODES),
    "tiff of one bit, white is zero": ("m.tif", tiff(YES, photometric="miniswhite"), YES),
    "tiff of signed numbers": ("m.tif", tiff(CODES.astype(np.int16) - 9), CODES.astype(int) - 9),
    "tiff with a palette": ("m.tif", palette_tiff, CODES),
    "zarr": ("m.zarr", store, CODES),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_mask_is_read_as_it_is_stored(name: str, tmp_path: Path) -> None:
    file, write, codes = KINDS[name]
    write(tmp_path / file)
    with contextlib.closing(open_mask(tmp_path / file, 2)) as mask:
        assert mask.name == f"'{tmp_path / file}'"
        assert mask.size == SIZE
        found = mask.read((slice(0, SIZE[0]), slice(0, SIZE[1])))
        assert found.dtype.kind in "iu"
        np.testing.assert_array_equal(found, codes)
        box = slice(3, 20), slice(11, 49)
        np.testing.assert_array_equal(mask.read(box), codes[box])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("number", range(2, 9))
def test_a_mask_is_turned_as_its_image_is(suffix: str, number: int, tmp_path: Path) -> None:
    oriented(number)(tmp_path / f"image.{suffix}")
    with contextlib.closing(open_image(tmp_path / f"image.{suffix}", 2, 3)) as image:
        shown = image.whole()[0].astype(np.uint8)
    stored: Any = np.zeros_like(shown)
    if suffix == "tif":
        pixels = tifffile.imread(tmp_path / "image.tif")[..., 0]
        tifffile.imwrite(tmp_path / "m.tif", pixels, photometric="minisblack", extratags=[(274, 3, 1, number, True)])
    else:
        with PIL.Image.open(tmp_path / "image.png") as picture:
            stored, exif = np.asarray(picture)[..., 0], picture.getexif()
        PIL.Image.fromarray(stored).save(tmp_path / "m.png", exif=exif)
    with contextlib.closing(open_mask(tmp_path / f"m.{suffix}", 2)) as mask:
        box = slice(3, 20), slice(11, 36)
        np.testing.assert_array_equal(mask.read(box), shown[box])


@pytest.mark.parametrize("shape", [(40,), (6, 7, 8)])
@pytest.mark.parametrize("suffix", [".npy", ".tif", ".zarr"])
def test_masks_of_sound_and_volumes(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    codes, path = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16), tmp_path / f"m{suffix}"
    if suffix == ".npy":
        np.save(path, codes)
    elif suffix == ".zarr":
        zarr.open_array(str(path), mode="w", shape=shape, chunks=(4,) * len(shape), dtype="u2")[...] = codes
    else:
        tifffile.imwrite(path, codes if len(shape) > 1 else codes[None], photometric="minisblack")
    with contextlib.closing(open_mask(path, len(shape))) as mask:
        box = (slice(2, 5),) * len(shape)
        assert mask.size == shape
        np.testing.assert_array_equal(mask.read(box), codes[box])


def test_a_level_of_a_pyramid(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "m.tif") as file:
        file.write(np.tile(CODES, (2, 2)), subifds=1, photometric="minisblack", tile=(16, 16))
        file.write(CODES, subfiletype=1, photometric="minisblack", tile=(16, 16))
    group = zarr.open_group(str(tmp_path / "m.zarr"), mode="w")
    for level, codes in enumerate((np.tile(CODES, (2, 2)), CODES)):
        group.create_array(str(level), shape=codes.shape, chunks=(16, 16), dtype="u1")[...] = codes
    for name in ("m.tif", "m.zarr"):
        with contextlib.closing(open_mask(tmp_path / name, 2, 1)) as mask:
            np.testing.assert_array_equal(mask.read((slice(0, 9), slice(5, 20))), CODES[:9, 5:20])
        with pytest.raises(OptionError, match=r"no level"):
            open_mask(tmp_path / name, 2, 2)
    np.save(tmp_path / "m.npy", CODES)
    with pytest.raises(OptionError, match=r"m.npy' is not a pyramid, so it has no level 1"):
        open_mask(tmp_path / "m.npy", 2, 1)


def sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(200))


def picture(mode: str, **how: Any) -> Callable[[Path], object]:
    return lambda path: PIL.Image.fromarray(CODES).convert(mode).save(path, **how)


RGB = CODES[..., None].repeat(3, -1)
WORDS = "is not a mask: its pixels are colours, which are not class numbers: save it in grey or with a palette$"
NUMBERS = (
    r"has the shape \(37, 53, 3\): a mask of an image with 2 axes has one number at each pixel, and no axis of channels"
)
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "colours": ("m.png", picture("RGB"), WORDS),
    "colours and alpha": ("m.png", picture("RGBA"), WORDS),
    "colours in a bitmap": ("m.bmp", picture("RGB"), WORDS),
    "colours in TIFF": ("m.tif", lambda p: tifffile.imwrite(p, RGB, photometric="rgb"), WORDS),
    "planes of colours": (
        "m.tif",
        lambda p: tifffile.imwrite(p, RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        WORDS,
    ),
    "grey and alpha": (
        "m.png", picture("LA"), "is not a mask: its pixels have alpha, which is not a class number: save it without$",
    ),
    "bands": (
        "m.tif", lambda p: tifffile.imwrite(p, RGB, photometric="minisblack", planarconfig="contig"), NUMBERS,
    ),
    "an array of colours": ("m.npy", lambda p: np.save(p, RGB), NUMBERS),
    "an array with one axis": ("m.npy", lambda p: np.save(p, CODES[0]), r"has the shape \(53,\): a mask of an image"),
    "no axes": ("m.npy", lambda p: np.save(p, np.uint8(3)), r"has the shape \(\): a mask of an image with 2 axes"),
    "no pixels": ("m.npy", lambda p: np.save(p, CODES[:0]), r"has no pixels: its shape is \(0, 53\)"),
    "floats": (
        "m.npy", lambda p: np.save(p, CODES.astype(np.float32)),
        "contains float32, and class numbers are integers, so floats are refused even if they are whole: save it as "
        "uint8 or int32$",
    ),
    "floats in TIFF": ("m.tif", lambda p: tifffile.imwrite(p, CODES.astype(np.float64)), "contains float64, and class"),
    "complex": ("m.npy", lambda p: np.save(p, CODES + 1j), "contains complex128, and class numbers are integers: "),
    "jpeg": ("m.jpg", picture("L"), "is JPEG, which may return other numbers than it was given: save it as PNG"),
    "gif": ("m.gif", palette(COLOURS), "is GIF, which may return other numbers"),
    "webp": ("m.webp", picture("L", lossless=True), "is WEBP, which may return other numbers"),
    "jpeg in TIFF": (
        "m.tif", lambda p: tifffile.imwrite(p, CODES, photometric="minisblack", compression="jpeg"),
        "is compressed as JPEG, which changes numbers: choose another compression$",
    ),
    "sound": ("m.wav", sound, "is sound, which contains no class numbers: save the mask as .npy$"),
    "text": ("m.txt", lambda p: p.write_text("0 1 2"), "is not an image: TIFF, PNG, JPEG"),
    "nothing": ("m.png", lambda p: None, "does not exist$"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mask(name: str, tmp_path: Path) -> None:
    file, write, says = REFUSED[name]
    write(tmp_path / file)
    with pytest.raises(OptionError, match=says) as refused:
        open_mask(tmp_path / file, 2)
    assert file in str(refused.value)


@pytest.mark.parametrize("name", [name for name in LIES if name not in ("a store",)])
def test_what_a_mask_says_of_itself_is_compared_with_what_is_there(name: str, tmp_path: Path) -> None:
    write, file, says = LIES[name]
    write(tmp_path / file)
    with pytest.raises(OptionError, match=f"{says}|is not a mask: its pixels are colours"):
        open_mask(tmp_path / file, 2)


def test_a_mask_that_is_damaged_inside(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", CODES, photometric="minisblack", tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        offset = file.pages[0].dataoffsets[-1]
    data = bytearray((tmp_path / "m.tif").read_bytes())
    data[offset : offset + 8] = b"\xff" * 8
    (tmp_path / "m.tif").write_bytes(data)
    with contextlib.closing(open_mask(tmp_path / "m.tif", 2)) as mask:
        mask.read((slice(0, 16), slice(0, 16)))
        with pytest.raises(OptionError, match=r"m.tif' cannot be read as an image: it is damaged"):
            mask.read((slice(32, 37), slice(48, 53)))


def test_a_refused_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    floats = np.zeros(SIZE)
    found = Stored("'m'", SIZE, floats.dtype, lambda box: floats[box], 1.0, close=lambda: closed.append(True))
    monkeypatch.setattr(masks, "open_stored", lambda *_, **__: found)
    with pytest.raises(OptionError, match="'m' contains float64"):
        open_mask(tmp_path, 2)
    assert closed == [True]


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.fromarray(CODES).save(tmp_path / "m.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(OptionError, match=r"m.png' needs Pillow, which is not installed: pip install"):
        open_mask(tmp_path / "m.png", 2)
