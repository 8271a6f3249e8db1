"""Formats of files that are read by region: sound, and stores in the layouts that others write."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from onnx_fcn.errors import OptionError
from onnx_fcn.images.image import open_image

SAMPLES = np.random.default_rng(0).uniform(-1, 1, (601, 2))
PIXELS = np.random.default_rng(1).integers(0, 256, (40, 50), np.uint8)


def wav(samples: np.ndarray, code: int, width: int, order: str = "<", magic: bytes = b"RIFF", **chunks: bytes) -> bytes:
    """A file of these samples, (samples, channels), as bytes of a sample; extensible if `code` is 0xFFFE."""
    channels, data = samples.shape[1], samples.tobytes()
    block = channels * width
    form = struct.pack(f"{order}HHIIHH", code, channels, 16000, 16000 * block, block, 8 * width)
    if code == 0xFFFE:
        form += struct.pack(f"{order}HHIH", 22, 8 * width, 3, 3) + bytes(14)
    parts = {b"fmt ": form, **{k.encode(): v for k, v in chunks.items()}, b"data": data}
    size = 0xFFFFFFFF if magic == b"RF64" else len(data)
    body = b""
    for kind, content in parts.items():
        declared = size if kind == b"data" else len(content)
        body += kind + struct.pack(f"{order}I", declared) + content + b"\0" * (len(content) % 2)
    return magic + struct.pack(f"{order}I", 4 + len(body)) + b"WAVE" + body


def ds64(samples: np.ndarray) -> bytes:
    return struct.pack("<QQQI", 0, samples.nbytes, len(samples), 0)


def in_24_bits(order: str) -> np.ndarray:
    whole = (SAMPLES * (1 << 23)).astype(f"{order}i4").view(np.uint8).reshape(601, 2, 4)
    return np.ascontiguousarray(whole[..., :3] if order == "<" else whole[..., 1:])


#: A file, and what it is read as.
SOUND: dict[str, tuple[bytes, np.ndarray]] = {
    "floats": (wav(SAMPLES.astype("<f4"), 3, 4), SAMPLES.astype(np.float32)),
    "doubles": (wav(SAMPLES.astype("<f8"), 3, 8), SAMPLES),
    "extensible floats": (wav(SAMPLES.astype("<f4"), 0xFFFE, 4), SAMPLES.astype(np.float32)),
    "a chunk of odd length before": (wav(SAMPLES.astype("<f4"), 3, 4, LIST=b"abc"), SAMPLES.astype(np.float32)),
    "most significant byte first": (
        wav((SAMPLES * 32767).astype(">i2"), 1, 2, ">", b"RIFX"),
        (SAMPLES * 32767).astype(np.int16),
    ),
    "beyond 4 GB": (
        wav(SAMPLES.astype("<f4"), 3, 4, magic=b"RF64", ds64=ds64(SAMPLES.astype("<f4"))),
        SAMPLES.astype(np.float32),
    ),
    "24 bits": (wav(in_24_bits("<"), 1, 3), (SAMPLES * (1 << 23)).astype(np.int32)),
    "24 bits, most significant first": (
        wav(in_24_bits(">"), 1, 3, ">", b"RIFX"),
        (SAMPLES * (1 << 23)).astype(np.int32),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound(name: str, tmp_path: Path) -> None:
    content, want = SOUND[name]
    (tmp_path / "a.wav").write_bytes(content)
    with contextlib.closing(open_image(tmp_path / "a.wav", 1, 2)) as image:
        assert (image.size, image.dtype) == ((601,), want.dtype)
        np.testing.assert_array_equal(image.whole(), want.T)
        np.testing.assert_array_equal(image.read((slice(100, 333),)), want[100:333].T)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (wav(SAMPLES.astype("<f4"), 3, 4)[:-5], "is cut short: its header declares 601 samples"),
        (wav(SAMPLES.astype("<i2"), 2, 2), "is sound in format 2 with 16 bits, and integers .* and floats are read"),
        (wav(SAMPLES.astype("<f4"), 3, 4)[:30], "contains no sound"),
        (b"RIFF\x24\0\0\0WAVE", "contains no sound"),
    ],
)
def test_sound_that_is_not_read(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(OptionError, match=says):
        open_image(tmp_path / "a.wav", 1, 2)


def multiscales(*paths: str) -> dict[str, Any]:
    return {"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": path} for path in paths]}]}


def pyramid(group: zarr.Group, *paths: str) -> None:
    """The picture, and every second pixel of it, …"""
    for level, path in enumerate(paths):
        pixels = PIXELS[:: 1 << level, :: 1 << level]
        group.create_array(path, shape=pixels.shape, chunks=(16, 16), dtype="u1")[...] = pixels


def read(path: Path, level: int = 0) -> np.ndarray:
    with contextlib.closing(open_image(path, 2, 1, level)) as image:
        pixels: np.ndarray = image.whole()[0]
        return pixels


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_by_the_paths_in_the_metadata(version: str, tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "m.zarr"), mode="w", zarr_format=2 if version == "0.4" else 3)
    pyramid(group, "scale0/image", "scale1/image")
    said = multiscales("scale0/image", "scale1/image")
    group.attrs.update(said if version == "0.4" else {"ome": said})
    for level in (0, 1):
        np.testing.assert_array_equal(read(tmp_path / "m.zarr", level), PIXELS[:: 1 << level, :: 1 << level])
    with pytest.raises(OptionError, match=r"m.zarr' has no level 2: its levels are 0 to 1"):
        read(tmp_path / "m.zarr", 2)


@pytest.mark.parametrize("lists", [True, False])
def test_a_collection_of_one_image(lists: bool, tmp_path: Path) -> None:
    """As bioformats2raw writes it, with or without the list of its images."""
    root = zarr.open_group(str(tmp_path / "m.zarr"), mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    if lists:
        root.create_group("OME").attrs["series"] = ["0"]
    image = root.create_group("0")
    pyramid(image, "0", "1")
    image.attrs.update(multiscales("0", "1"))
    np.testing.assert_array_equal(read(tmp_path / "m.zarr"), PIXELS)
    np.testing.assert_array_equal(read(tmp_path / "m.zarr", 1), PIXELS[::2, ::2])


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"plate": {}}, r"is a plate of many images: give the path of one, such as .*m.zarr/A/1/0"),
        ({"well": {}}, r"is a well of many images: give the path of one"),
        ({"bioformats2raw.layout": 3}, r"contains 2 images: give the path of one, such as .*m.zarr/0"),
        ({"multiscales": [{}, {}]}, r"describes 2 images in one group: give the path of an array in it"),
        (multiscales("elsewhere"), r"is a group whose arrays are no levels of an image: .* such as .*m.zarr/other"),
        ({}, r"is a group whose arrays are no levels of an image: .* such as .*m.zarr/other"),
    ],
)
def test_stores_without_one_image(said: dict[str, Any], says: str, tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "m.zarr"), mode="w")
    root.attrs.update(said)
    pyramid(root, "other")
    if "bioformats2raw.layout" in said:
        root.create_group("0")
        root.create_group("1")
    with pytest.raises(OptionError, match=says):
        read(tmp_path / "m.zarr")
