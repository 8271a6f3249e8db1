"""Arrays, stores and pictures as stored images.

All are read as the numbers that are shown, or, for masks, as those that are stored (`shown=False`).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import GREY, RGB
from onnx_fcn.images.placement import placed_by_ngff
from onnx_fcn.images.stored import MODES, Box, Stored, check_room, missing_package, size_text, white_of

__all__ = ["from_npy", "from_numbers", "from_object", "from_picture", "from_zarr"]


#: Formats of pictures that return the numbers they were given. Others lose some, scale them, or sort the palette anew.
NUMBERED = ("BMP", "PNG")

#: Pillow's modes with one number a pixel, which is grey or an index of the palette.
SINGLE = ("1", "L", "P", "I", "I;16", "I;16B", "LA")


def from_numbers(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fetch: Callable[[Box], Array],
    *,
    shown: bool = True,
    **more: Any,
) -> Stored:
    """Numbers whose meaning follows from their dtype alone; True is shown as white and False as black."""
    if dtype.kind != "b" or not shown:
        return Stored(name, shape, dtype, fetch, white_of(dtype), **more)
    kind = np.dtype(np.uint8)
    return Stored(name, shape, kind, lambda box: fetch(box) * np.uint8(255), white_of(kind), **more)


def from_npy(name: str, *, shown: bool = True) -> Stored:
    """Mapped anew for each region: with one mapping, every page ever read would count as resident memory."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with open(name, "rb") as file:
        shape, by_columns, dtype = headers[np.lib.format.read_magic(file)](file)
        offset = file.tell()
        there = file.seek(0, os.SEEK_END)
    if dtype.hasobject:
        raise OptionError(f"'{name}' contains Python objects, not pixels")
    if min(shape, default=0) < 0 or offset + math.prod(shape) * dtype.itemsize > there:
        raise OptionError(f"'{name}' is cut short: its header declares {size_text(shape)} numbers")
    order: Literal["F", "C"] = "F" if by_columns else "C"

    def fetch(box: Box) -> Array:
        return np.array(np.memmap(name, dtype, "r", offset, shape, order)[box])

    if 0 in shape:
        raise OptionError(f"'{name}' has no pixels: its shape is {shape}")
    return from_numbers(f"'{name}'", shape, dtype, fetch, shown=shown, files=(name,))


def from_zarr(name: str, level: int, *, shown: bool = True) -> Stored:
    """An array of a zarr store, or a level of a group of arrays."""
    import zarr

    try:
        store: Any = zarr.open(name, mode="r")
    except FileNotFoundError:
        raise OptionError(f"'{name}' is a folder, but not a zarr store") from None
    placed = None
    if not hasattr(store, "shape"):
        image = _image_in(name, store)
        paths = _levels(name, image)
        if level >= len(paths):
            raise OptionError(f"'{name}' has no level {level}: its levels are 0 to {len(paths) - 1}")
        placed = placed_by_ngff(image.attrs, paths[level])
        store = image[paths[level]]
    elif level:
        raise OptionError(f"'{name}' is not a pyramid, so it has no level {level}")
    dtype = np.dtype(store.dtype)
    check_room(f"'{name}'", math.prod(store.chunks) * dtype.itemsize, "one chunk")
    more: Any = {"shown": shown, "files": (name,), "placed": placed}
    return from_numbers(f"'{name}'", tuple(store.shape), dtype, lambda box: np.asarray(store[box]), **more)


def _image_in(name: str, group: Any) -> Any:
    """The group of the levels of an image: this one, or the only image of a collection (bioformats2raw's layout)."""
    attributes = dict(group.attrs)
    about = attributes.get("ome", attributes)
    for kind, example in (("plate", "A/1/0"), ("well", "0")):
        if kind in about:
            raise OptionError(f"'{name}' is a {kind} of many images: give the path of one, such as {name}/{example}")
    if "bioformats2raw.layout" not in about:
        return group
    listed = dict(group["OME"].attrs) if "OME" in group else {}
    paths = listed.get("ome", listed).get("series") or [str(k) for k in range(len(group)) if str(k) in group]
    if len(paths) != 1:
        raise OptionError(f"'{name}' contains {len(paths)} images: give the path of one, such as {name}/0")
    return group[str(paths[0])]


def _levels(name: str, group: Any) -> list[str]:
    """The paths of the levels of an image, the finest first: by the metadata of OME-Zarr, or 0, 1, …"""
    attributes = dict(group.attrs)
    several = attributes.get("ome", attributes).get("multiscales") or []
    if len(several) > 1:
        raise OptionError(f"'{name}' describes {len(several)} images in one group: give the path of an array in it")
    if several:
        paths = [str(each["path"]) for each in several[0]["datasets"]]
    else:  # as other software writes pyramids
        paths = list(itertools.takewhile(lambda path: path in group, map(str, itertools.count())))
    if not paths or any(path not in group or not hasattr(group[path], "shape") for path in paths):
        arrays = sorted(group.array_keys())
        hint = f", such as {name}/{arrays[0]}" if arrays else ""
        raise OptionError(f"'{name}' is a group whose arrays are no levels of an image: give the path of one{hint}")
    return paths


def from_picture(name: str, *, shown: bool = True) -> Stored:
    """PNG, JPEG and every other format that Pillow reads. They are not stored by region, so all of it is decoded."""
    import PIL.Image

    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None  # free memory is the limit
    try:
        with PIL.Image.open(name) as file:
            check_room(f"'{name}'", 2 * math.prod(file.size) * max(len(file.getbands()), 3), "decoding it")
            return _decode(f"'{name}'", file, (name,)) if shown else _decode_numbers(name, file)
    except PIL.UnidentifiedImageError:
        raise OptionError(f"'{name}' is not an image: TIFF, PNG, JPEG, .npy, .wav and zarr stores are read") from None
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def from_object(picture: Any) -> Stored:
    """A Pillow image."""
    try:
        import PIL.Image
    except ImportError as error:
        raise missing_package("a picture that is neither a file nor an array", error) from None
    if not isinstance(picture, PIL.Image.Image):
        kind = type(picture).__name__
        raise OptionError(f"expected a file, an array or a Pillow image, got {kind}")
    return _decode("the picture", picture, ())


def _decode(name: str, picture: Any, files: tuple[str, ...]) -> Stored:
    """Grey or RGB, turned by the EXIF orientation."""
    import PIL.ImageOps

    upright: Any = PIL.ImageOps.exif_transpose(picture)
    if upright.mode in ("I", "F"):
        pixels, tone = np.asarray(upright), GREY
    elif upright.mode.startswith("I;16"):
        pixels, tone = np.asarray(upright).astype(np.uint16), GREY
    else:
        mode = MODES.get(upright.mode, "RGB")
        pixels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
        tone = GREY if mode in ("L", "LA") else RGB
    alpha = int(upright.mode in MODES and MODES[upright.mode] in ("LA", "RGBA"))
    samples = 2 if pixels.ndim == 3 else None
    shape, dtype = pixels.shape, pixels.dtype
    return from_numbers(
        name, shape, dtype, lambda box: pixels[box], samples=samples, tone=tone, alpha=alpha, files=files
    )


def _decode_numbers(name: str, picture: Any) -> Stored:
    """The numbers that a picture stores, grey or indices of its palette, turned by the EXIF orientation."""
    import PIL.ImageOps

    if picture.format not in NUMBERED:
        raise OptionError(
            f"'{name}' is {picture.format}, which may return other numbers than it was given: save it as PNG or TIFF"
        )
    mode, step = picture.mode, _step_of(name, picture)
    pixels = np.asarray(PIL.ImageOps.exif_transpose(picture))
    if step > 1:
        pixels = pixels // np.uint8(step)
    more: Any = {"tone": GREY if mode in SINGLE else RGB, "alpha": int(mode in ("LA", "RGBA")), "files": (name,)}
    more["samples"] = 2 if pixels.ndim == 3 else None
    return from_numbers(f"'{name}'", pixels.shape, pixels.dtype, lambda box: pixels[box], shown=False, **more)


def _step_of(name: str, picture: Any) -> int:
    """Pillow scales the 2 and 4 bits of a grey PNG to a byte: the difference between neighbouring numbers then."""
    if picture.format != "PNG" or picture.mode != "L":
        return 1
    with open(name, "rb") as file:
        bits = file.read(25)[24]  # in IHDR, which is first
    return 255 // ((1 << bits) - 1) if bits in (2, 4) else 1
