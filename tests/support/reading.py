"""Damaged and hostile inputs for the commands that read converted files: every case a number, the same each time.

    judge(4711)                                    # apply, heatmap, segment or page on what case 4711 is

A case is a converted network, whose metadata may be changed while its graph is what they were written for, an image of
any kind that is read, whole or damaged, perhaps a mask, and what a run that was stopped may have left behind. It passes
when the command ends with a sentence and its exit code, and no file is there that was not; or with its output.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import random
import shutil
import struct
import tempfile
import traceback
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import PIL.Image
import tifffile
import zarr

import onnx_fcn
from onnx_fcn.cli import main
from onnx_fcn.tiles.maps import START

BODY = "m = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)  f = Flatten (m)  l = MatMul (f, w)  {}"
SIZE = (40, 52)


@functools.cache
def models() -> dict[str, bytes]:
    """Converted networks of grey and colours, of scores, of one score and of class numbers."""
    made = {}
    for name, channels, last, classes in (
        ("grey", 1, "y = Identity (l)", 3),
        ("colours", 3, "y = LogSoftmax <axis = 1> (l)", 3),
        ("one", 1, "y = Sigmoid (l)", 1),
        ("numbers", 3, "y = ArgMax <axis = 1, keepdims = 0> (l)", 3),
    ):
        outputs = "int64[N] y" if name == "numbers" else "y"
        source = law.model(
            BODY.format(last),
            image=f"float[N,{channels},8,8] x",
            outputs=outputs,
            opset=13,
            k=(3, channels, 3, 3),
            w=(48, classes),
        )
        made[name] = onnx_fcn.convert(source, validate=False).to_proto().SerializeToString()
    return made


def _sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(4000))


def _store(path: Path, pixels: np.ndarray, **how: Any) -> None:
    zarr.open_array(str(path), mode="w", shape=pixels.shape, chunks=(16, 16, 3), dtype="u1", **how)[...] = pixels


def _pyramid(path: Path, pixels: np.ndarray) -> None:
    group = zarr.open_group(str(path), mode="w")
    for level in range(2):
        part = pixels[:: level + 1, :: level + 1]
        group.create_array(str(level), shape=part.shape, chunks=(16, 16, 3), dtype="u1")[...] = part


def _ome_zarr(path: Path, pixels: np.ndarray) -> None:
    _pyramid(path, pixels)
    axes = [*({"name": a, "type": "space", "unit": "micrometer"} for a in "yx"), {"name": "c", "type": "channel"}]
    steps = [{"type": "scale", "scale": [0.5, 0.5, 1]}, {"type": "translation", "translation": [3, 4, 0]}]
    several = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}]
    zarr.open_group(str(path)).attrs["ome"] = {"version": "0.5", "multiscales": several}


#: Tags of a GeoTIFF in UTM.
GEOTIFF = (
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 5.8e6, 0.0), True),
    (34735, 3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633), True),
)


def _palette(pixels: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels).quantize(16)


#: Images by name: how (40, 52, 3) bytes are written.
IMAGES: dict[str, Callable[[Path, np.ndarray], object]] = {
    "a.npy": lambda p, x: np.save(p, x),
    "b.npy": lambda p, x: np.save(p, np.asfortranarray(x[..., 0] / np.float32(255))),
    "c.npy": lambda p, x: np.save(p, x[..., 0].astype(">u2") * 257),
    "a.tif": lambda p, x: tifffile.imwrite(p, x, photometric="rgb"),
    "b.tif": lambda p, x: tifffile.imwrite(p, x, photometric="rgb", tile=(16, 16), compression="zlib"),
    "c.tif": lambda p, x: tifffile.imwrite(p, 255 - x[..., 0], photometric="miniswhite", rowsperstrip=8),
    "d.tif": lambda p, x: _palette(x).save(p),
    "e.tif": lambda p, x: tifffile.imwrite(p, x.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "f.tif": lambda p, x: PIL.Image.fromarray(x).save(p, tiffinfo={274: 6}, compression="tiff_lzw"),
    "g.tif": lambda p, x: tifffile.imwrite(p, x[..., 0] > 100, photometric="minisblack"),
    "h.tif": lambda p, x: tifffile.imwrite(p, x, photometric="rgb", bigtiff=True, byteorder=">"),
    "i.tif": lambda p, x: tifffile.imwrite(p, x[..., 0], photometric="minisblack", extratags=GEOTIFF),
    "j.tif": lambda p, x: tifffile.imwrite(p, x[..., 0], ome=True, metadata={"PhysicalSizeX": 2, "PhysicalSizeY": 3}),
    "a.png": lambda p, x: PIL.Image.fromarray(x).save(p),
    "b.png": lambda p, x: PIL.Image.fromarray(x).convert("LA").save(p),
    "c.png": lambda p, x: _palette(x).save(p),
    "d.png": lambda p, x: PIL.Image.fromarray(x[..., 0].astype(np.uint16) * 257).save(p),
    "a.jpg": lambda p, x: PIL.Image.fromarray(x).convert("CMYK").save(p),
    "b.jpg": lambda p, x: PIL.Image.fromarray(x).save(p, exif=_turned()),
    "a.gif": lambda p, x: _palette(x).save(p),
    "a.bmp": lambda p, x: PIL.Image.fromarray(x).save(p),
    "a.webp": lambda p, x: PIL.Image.fromarray(x).save(p),
    "a.zarr": lambda p, x: _store(p, x),
    "b.zarr": lambda p, x: _store(p, x, zarr_format=2),
    "c.zarr": _pyramid,
    "d.zarr": _ome_zarr,
    "a.wav": lambda p, _: _sound(p),
}


def _turned() -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    return exif


@functools.cache
def images() -> Path:
    """A folder of all images."""
    folder = Path(tempfile.mkdtemp(prefix="images-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    blocks = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    pixels = blocks.repeat(8, 0).repeat(8, 1)[: SIZE[0], : SIZE[1]]
    for name, write in IMAGES.items():
        write(folder / name, pixels)
    return folder


# Damage ---------------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 3, 7, 255, 256, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 0.5, -0.5, 10**30, -(10**30), 1 << 39, 1e308, float("nan"), float("inf"), True, None, "", "NCHW"),
    *([], {}, [1, 2], [[1, -8, 2]] * 5_000, [[1, 0, 1 << 39]] * 200, [[1 << 39, 0, 1]] * 200, "exact", "argmax"),
)


def _hostile_metadata(model: onnx.ModelProto, chance: random.Random) -> str:
    """Other values anywhere in an entry's tree, or no JSON at all."""
    entries = [e for e in model.metadata_props if e.key.removeprefix("onnx_fcn.") not in ("graph", "format", "asked")]
    entry = chance.choice(entries)
    try:
        tree = {"": json.loads(entry.value)}
    except ValueError:
        entry.value = chance.choice(("", "NHWC", "x" * 100_000, "[" * 100_000))
        return entry.key
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [tree]
    while waiting:
        at = waiting.pop()
        keys = list(at) if isinstance(at, dict) else range(len(at))
        places += [(at, key) for key in keys]
        waiting += [at[key] for key in keys if isinstance(at[key], (dict, list))]
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, key = chance.choice(places)
        at[key] = chance.choice(VALUES)
    if chance.random() < 0.1 and isinstance(tree[""], dict) and tree[""]:
        tree[""].pop(chance.choice(list(tree[""])), None)
    entry.value = json.dumps(tree[""])
    return entry.key


def _damaged(path: Path, chance: random.Random) -> str:
    """A file that is other than it was, or one file of a store."""
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        named = [p for p in inside if p.suffix == ".json" or p.name.startswith(".z")]
        path = chance.choice(named if chance.random() < 0.8 else inside)
    data = bytearray(path.read_bytes())
    kinds = [_bits, _cut, _noise]
    if path.suffix == ".tif":
        kinds += [_tag] * 5
    elif path.suffix in (".npy", ".json") or path.name.startswith(".z"):
        kinds += [_digits] * 4
    damage = chance.choice(kinds)
    damage(data, chance)
    path.write_bytes(data)
    return f"{damage.__name__} of {path.name}"


def _bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 3, 30))):
        if data:
            data[chance.randrange(min(len(data), chance.choice((64, 400, 1 << 20))))] ^= 1 << chance.randrange(8)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.choice((0, 8, 100, len(data) // 2, max(len(data) - 1, 0))) :]


def _noise(data: bytearray, chance: random.Random) -> None:
    at, length = chance.randrange(len(data) + 1), chance.choice((1, 4, 100))
    data[at : at + length] = chance.randbytes(length)


def _digits(data: bytearray, chance: random.Random) -> None:
    """Other numbers in a header that is text."""
    start = min(len(data), 2_000)
    places = [k for k in range(start) if chr(data[k]).isdigit()]
    if places:
        at = chance.choice(places)
        new = chance.choice((b"0", b"-1", b"1e9", b"9" * 9, b"9" * 30, b"null", b"1.5", b"[]"))
        data[at : at + 1] = new


def _tag(data: bytearray, chance: random.Random) -> None:
    """Another number, type or count in an entry of the first directory."""
    order = ">" if data[:2] == b"MM" else "<"
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, directory)
        struct.unpack_from(f"{12 * count}s", data, directory + 2)
    except struct.error:  # damaged before, or a BigTIFF
        count = 0
    if not count:
        return _bits(data, chance)
    for _ in range(chance.choice((1, 1, 2))):
        entry = directory + 2 + 12 * chance.randrange(count)
        kind = struct.unpack_from(f"{order}H", data, entry + 2)[0]
        field = chance.choice(("tag", "type", "count", "value", "value", "value"))
        number = chance.choice(NUMBERS)
        if field == "tag":
            struct.pack_into(
                f"{order}H", data, entry, chance.choice((256, 257, 258, 259, 262, 274, 277, 322, 324, 339))
            )
        elif field == "type":
            struct.pack_into(f"{order}H", data, entry + 2, number & 0xFFFF)
        elif field == "count":
            struct.pack_into(f"{order}I", data, entry + 4, number)
        else:
            struct.pack_into(
                f"{order}I" if kind == 4 else f"{order}H", data, entry + 8, number if kind == 4 else number & 0xFFFF
            )
    return None


# Cases ----------------------------------------------------------------------------------------------------------------


def judge(number: int) -> tuple[str, str]:
    """Run one case: (``done``, ``refused`` or ``FAILED``, what)."""
    chance = random.Random(number)
    folder = Path(tempfile.mkdtemp(prefix="reading-"))
    said: list[str] = []
    try:
        network = chance.choice(list(models()))
        model = onnx.ModelProto.FromString(models()[network])
        hostile = chance.random()
        if hostile < 0.4:
            said.append(_hostile_metadata(model, chance))
        (folder / "out.onnx").write_bytes(model.SerializeToString())
        image, mask = chance.choice(list(IMAGES)), chance.choice(list(IMAGES))
        for name in {image, mask}:
            copy = shutil.copytree if (images() / name).is_dir() else shutil.copy
            copy(images() / name, folder / name)
        if hostile > 0.2:
            said += [_damaged(folder / image, chance) for _ in range(chance.choice((1, 1, 2)))]
        words = _words(chance, folder, image, mask)
        case = f"{network} {' '.join(words)} ({', '.join(said)})"
        before = _state(folder)
        code, out, err = _run(folder, words)
        after = _state(folder)
        after = {k: v for k, v in after.items() if code or not k.startswith(words[3])}
        journal, partial = f"{words[3]}.journal", f"{words[3]}.partial"
        begun = before.get(journal, b"")
        if (
            journal in before
            and begun[: len(START)] == START[: len(begun)]
            and not (b"\n" in begun and partial in before)
        ):
            before = {k: v for k, v in before.items() if k not in (journal, partial) or k in after}  # it may go
        if len(after.get(f"{words[3]}.journal", b"").splitlines()) > 1:  # some tiles are done, and kept
            after = {k: v for k, v in after.items() if not k.startswith(f"{words[3]}.")}
            before = {k: v for k, v in before.items() if not k.startswith(f"{words[3]}.")}
        lines = err.splitlines()
        if (
            code not in (0, 1, 2)
            or (code and (len(lines) != 1 or not lines[0].startswith("error: ")))
            or (code and out)
        ):
            return "FAILED", f"{case}: exit {code}: {out} {err}"
        if {k: v for k, v in before.items() if code or not k.startswith("map.")} != after:
            return "FAILED", f"{case}: files changed: {set(before) ^ set(after)}"
        if code == 0:
            return ("done", "") if (folder / words[3]).exists() else ("FAILED", f"{case}: exit 0 without an output")
        return "refused", err
    except BaseException:
        return "FAILED", f"{said}: {traceback.format_exc()[-1200:]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _words(chance: random.Random, folder: Path, image: str, mask: str) -> list[str]:
    command = chance.choice(("apply", "apply", "heatmap", "segment", "page"))
    if command == "apply":
        words = [
            "apply",
            "out.onnx",
            image,
            chance.choice(("map.npy", "map.tif", "map.ome.tif", "map.zarr")),
            "--tile",
            "24",
            "-q",
        ]
        if chance.random() < 0.2:
            words += ["--mask", mask]
        if chance.random() < 0.1:
            words += ["--level", chance.choice(("0", "1", "2", "-1"))]
        if chance.random() < 0.1:
            _left_behind(chance, folder, words[3])
    else:
        suffix = {"page": (".html",)}.get(command, (".npy", ".json"))
        words = [command, "out.onnx", image, f"o{chance.choice(suffix)}", "-q"]
        if chance.random() < 0.2:
            words += ["--scale", chance.choice(("0.5", "1.5", "1e9", "1e-9", "1e300"))]
        if chance.random() < 0.2:
            words += ["--activation", chance.choice(("softmax", "sigmoid", "none"))]
    if chance.random() < 0.2:
        words += ["--preprocess", chance.choice(("unit", "imagenet", "tf", "raw"))]
    return words


def _left_behind(chance: random.Random, folder: Path, target: str) -> None:
    """A journal and a part of a map, of whatever kind."""
    journal = chance.choice(
        (
            b"",
            b"[]\n",
            b'{"onnx_fcn": 1}\n',
            b'{"onnx_fcn": "1", "tile": "x"}\n1\n',
            b'{"onnx_fcn": 1',
            b"\xff\xfe\n",
            b"[" * 9999,
        )
    )
    (folder / f"{target}.journal").write_bytes(journal)
    if chance.random() < 0.5:
        (folder / f"{target}.partial").write_bytes(b"nothing")


def _run(folder: Path, words: list[str]) -> tuple[int, str, str]:
    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        os.chdir(here)
    return code, out.getvalue(), err.getvalue()


def _state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
