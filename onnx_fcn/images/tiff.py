"""TIFF: the first image in a file, or a level of its pyramid, by region, and what its numbers mean.

Uncompressed pixels are memory-mapped; otherwise the tiles or strips of a region are decoded. Numbers become those of
the picture that is shown: turned by the orientation, inverted if white is zero, looked up in the palette, and scaled to
full range if they have fewer than 8 bits. For masks they are only turned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import GREY, NUMBERS, RGB
from onnx_fcn.images.placement import placed_by_tiff
from onnx_fcn.images.stored import Stored, check_room, white_of

__all__ = ["open_tiff"]


Box = tuple[slice, ...]

#: Photometric interpretations (TIFF 6.0 and its extensions).
WHITE_IS_ZERO, BLACK_IS_ZERO, COLOURS, PALETTE, MASK, CMYK, YCBCR, LINEAR = 0, 1, 2, 3, 4, 5, 6, 34892

#: Compressions whose decoders always return RGB: all kinds of JPEG, WebP, JPEG XL.
TO_RGB = (6, 7, 33007, 34892, 50001, 50002)

#: Compressions that return other numbers than they were given: JPEG.
LOSSY = (6, 7, 33007, 34892)

#: Extra samples that are alpha, associated or not.
ALPHA = (1, 2)

#: Orientation → (rows from the bottom, columns from the right, then transposed).
ORIENTATIONS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


def open_tiff(name: str, level: int, *, shown: bool = True) -> Stored:
    """The first image in a file, at a level of its pyramid: what it shows, or the numbers that it stores.

    Raises:
        OptionError: if there is no such level, the kind of colours is not supported, or the file is cut short.
    """
    import tifffile

    with tifffile.TiffFile(name) as file:
        if not file.series:
            raise OptionError(f"'{name}' contains no image")
        levels = file.series[0].levels
        if level >= len(levels):
            raise OptionError(f"'{name}' has {len(levels)} levels, so there is no level {level}: the finest is 0")
        chosen = levels[level]
        shape, dtype, offset, axes = tuple(map(int, chosen.shape)), chosen.dtype, chosen.dataoffset, chosen.axes
        page: Any = chosen.keyframe
        if dtype is None:
            raise OptionError(f"'{name}' has pixels of a type that numpy does not have")
        files = _complete_files(name, chosen, offset)
        kind = dtype.newbyteorder(file.byteorder)
        placed = placed_by_tiff(file, level)
    if offset is not None:

        def mapped(box: Box) -> Array:
            return np.array(np.memmap(name, kind, "r", offset, shape)[box], dtype)

        found = Stored(f"'{name}'", shape, dtype, mapped, white_of(dtype), files=files)
    else:
        import zarr

        store = tifffile.imread(name, aszarr=True, series=0, level=level)
        array: Any = zarr.open(store, mode="r")
        check_room(f"'{name}'", math.prod(array.chunks) * dtype.itemsize, "one tile or strip")

        def decoded(box: Box) -> Array:
            return np.asarray(array[box])

        found = Stored(f"'{name}'", shape, dtype, decoded, white_of(dtype), files=files, close=store.close)
    try:
        samples = axes.index("S") if "S" in axes else None
        read = _as_shown if shown else _as_stored
        return _turn_upright(read(replace(found, samples=samples, placed=placed), page), page, axes)
    except BaseException:
        found.close()
        raise


def _complete_files(name: str, series: Any, offset: int | None) -> tuple[str, ...]:
    """The files that contain the pixels. Raises OptionError if one of them is cut short."""
    pages = [page for page in series.pages if page is not None]
    files = {page.parent.filehandle.path: page.parent.filehandle.size for page in pages}
    if offset is not None:
        ends = [(pages[0], offset + math.prod(series.shape) * series.dtype.itemsize)]
    else:
        ends = [(page, at + count) for page in pages for at, count in zip(page.dataoffsets, page.databytecounts)]
        if any(math.prod(page.chunked) > len(page.dataoffsets) for page in pages):
            raise OptionError(
                f"'{name}' declares more pixels than it has: its tiles or strips do not make {series.shape}"
            )
        if any(page.compression == 1 and 8 * sum(page.databytecounts) < _bits(page) for page in pages):
            raise OptionError(f"'{name}' is cut short: not all of its pixels are there")
    if any(end > files[page.parent.filehandle.path] for page, end in ends):
        raise OptionError(f"'{name}' is cut short: not all of its pixels are there")
    return tuple(sorted(files))


def _bits(page: Any) -> int:
    """Bits of the pixels of an uncompressed page; 0 if it omits parts on purpose."""
    return 0 if 0 in page.databytecounts else math.prod(page.shape) * int(page.bitspersample)


def _as_shown(found: Stored, page: Any) -> Stored:
    """The numbers of the picture that is shown."""
    photometric, bits = int(page.photometric), int(page.bitspersample)
    extras = tuple(map(int, page.extrasamples or ()))
    count = 1 if found.samples is None else found.shape[found.samples]
    if found.dtype.kind == "b":
        found = _map_pixels(found, lambda part: part * np.uint8(255), np.uint8, 255.0)
    elif found.dtype.kind == "u" and photometric != PALETTE and bits < 8 * found.dtype.itemsize:
        top = (1 << bits) - 1
        if bits < 8:
            full = np.rint(np.arange(top + 1) * (255 / top)).astype(np.uint8)
            found = _map_pixels(found, lambda part: full[part], np.uint8, 255.0)
        else:
            found = replace(found, white=float(top))
    if photometric == WHITE_IS_ZERO:
        if found.dtype.kind != "u":
            raise OptionError(f"{found.name} says that white is zero, but {found.dtype} has no black: save it in grey")
        white = found.dtype.type(found.white)
        found = _map_pixels(found, lambda part: white - part, found.dtype, found.white)
    if photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, MASK):
        if count == 1:
            return replace(found, tone=GREY)
        if count == 2 and extras[-1:] and extras[-1] in ALPHA:
            return replace(found, tone=GREY, alpha=1)
        return replace(found, tone=NUMBERS)
    if photometric == PALETTE:
        return _palette_to_rgb(found, page)
    if photometric in (COLOURS, LINEAR) or (photometric == YCBCR and int(page.compression) in TO_RGB):
        return replace(found, tone=RGB if count >= 3 else GREY, alpha=max(count - 3, 0))
    if photometric == CMYK and count == 4 and found.dtype.kind == "u":
        return _cmyk_to_rgb(found)
    if photometric == CMYK and count > 4:
        return replace(found, tone=NUMBERS)  # more than four inks
    kind = getattr(page.photometric, "name", str(photometric))
    raise OptionError(f"{found.name} has colours of the kind {kind}, which is not supported: save it in RGB or grey")


def _as_stored(found: Stored, page: Any) -> Stored:
    """The numbers that are stored: grey, or indices of a palette; colours are only named as such."""
    if int(page.compression) in LOSSY:
        raise OptionError(f"{found.name} is compressed as JPEG, which changes numbers: choose another compression")
    single = int(page.photometric) in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE, MASK)
    alpha = sum(int(extra) in ALPHA for extra in page.extrasamples or ())
    return replace(found, tone=GREY if single else RGB, alpha=alpha)


def _map_pixels(found: Stored, change: Callable[[Array], Array], dtype: Any, white: float) -> Stored:
    return replace(found, fetch=lambda box: change(found.fetch(box)), dtype=np.dtype(dtype), white=white)


def _palette_to_rgb(found: Stored, page: Any) -> Stored:
    """Palette indices → RGB in bytes, along a new last axis."""
    if page.colormap is None or found.samples is not None or found.dtype.kind != "u":
        raise OptionError(f"{found.name} declares a palette that it does not contain: save it in RGB")
    palette = np.ascontiguousarray((np.asarray(page.colormap) >> 8).astype(np.uint8).T)

    def fetch(box: Box) -> Array:
        return palette[found.fetch(box[:-1]), box[-1]]

    axis = len(found.shape)
    return replace(
        found, shape=(*found.shape, 3), dtype=np.dtype(np.uint8), fetch=fetch, white=255.0, samples=axis, tone=RGB
    )


def _cmyk_to_rgb(found: Stored) -> Stored:
    """Inks (CMYK) → RGB: what they leave of white."""
    axis = found.samples
    assert axis is not None, "four samples have an axis"

    def fetch(box: Box) -> Array:
        whole = tuple(slice(None) if k == axis else part for k, part in enumerate(box))
        left = found.white - np.moveaxis(found.fetch(whole), axis, -1).astype(np.float64)
        shown = np.rint(left[..., :3] * left[..., 3:] / found.white).astype(found.dtype)
        return np.moveaxis(shown[..., box[axis]], -1, axis)

    shape = tuple(3 if k == axis else n for k, n in enumerate(found.shape))
    return replace(found, shape=shape, fetch=fetch, tone=RGB)


def _turn_upright(found: Stored, page: Any, axes: str) -> Stored:
    """The picture, turned by its orientation."""
    tag = page.tags.get(274)
    known = ORIENTATIONS.get(tag.value) if tag is not None and isinstance(tag.value, int) else None
    if known is None or "Y" not in axes or "X" not in axes:
        return found
    up, left, swapped = known
    rows, columns = axes.index("Y"), axes.index("X")
    height, width = found.shape[rows], found.shape[columns]

    def fetch(box: Box) -> Array:
        part = list(box)
        if swapped:
            part[rows], part[columns] = part[columns], part[rows]
        for axis, mirrored, size in ((rows, up, height), (columns, left, width)):
            if mirrored:
                start, stop, _ = part[axis].indices(size)
                part[axis] = slice(size - stop, size - start)
        pixels = found.fetch(tuple(part))
        pixels = np.flip(pixels, tuple(axis for axis, mirrored in ((rows, up), (columns, left)) if mirrored))
        turned: Array = pixels.swapaxes(rows, columns) if swapped else pixels
        return turned

    shape = list(found.shape)
    if swapped:
        shape[rows], shape[columns] = width, height
    return replace(found, shape=tuple(shape), fetch=fetch, placed=None)  # places are those of the stored rows
