"""The bytes of a weight, a few megabytes at a time, for any permutation of its axes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.model.sources import Extent, Piece

__all__ = ["BLOCK", "blocks", "join"]


BLOCK = 8 << 20  # bytes that are read before their pages are released
BAND = 48 << 20  # bytes of a permuted weight that are gathered at a time
TILE = 16 << 10  # bytes that are gathered in one step, so that source and target stay in the processor's cache
LINE = 64  # bytes of a cache line
CHUNK = 2 << 20  # bytes of a permuted weight that are written at a time


def blocks(payload: Piece, release: Callable[[], None]) -> Iterator[memoryview]:
    """The bytes of a payload, a few megabytes at a time; each block is valid until the next one.

    `release` is called to release the mapped pages that have been read.
    """
    if isinstance(payload, Extent):
        payload = payload.view()
    if isinstance(payload, memoryview):
        yield payload
    elif payload.flags.c_contiguous:
        flat = payload.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK].data
            release()
    else:
        if payload.itemsize <= 8:
            payload = payload.view(f"u{payload.itemsize}")  # numpy copies integers fastest
        yield from _permuted_blocks(_coalesce(payload), release)


def _permuted_blocks(array: Array, release: Callable[[], None]) -> Iterator[memoryview]:
    """The bytes of a strided array in C order; the source is read in its own order as far as memory allows.

    If rows follow each other in the source, they are copied a few at a time. If they are interleaved, as in a
    transposed matrix, a band of rows is gathered, then the axes within each row are put in order:

        (h, w, c, band of k) → (band of k, h, w, c) → (band of k, c, h, w)
    """
    row = array.nbytes // len(array)
    if row > BAND:
        for inner in array:
            yield from _permuted_blocks(_coalesce(inner), release)
        return
    order = [0, *sorted(range(1, array.ndim), key=lambda axis: -abs(array.strides[axis]))]
    if array.ndim == 1 or abs(array.strides[0]) >= abs(array.strides[order[1]]):
        yield from _row_blocks(array, release)
        return
    source = array.transpose(order)
    height = min(BAND // row, len(array))
    *outer, last = source.shape[1:]
    # Rows that are permuted later are padded by a cache line: at strides of powers of two few of them fit the cache.
    gap = LINE // array.itemsize if order != sorted(order) else 0
    buffer = np.empty((height, *outer, last + gap), array.dtype)[..., :last]
    step = max(1, TILE // (height * array.itemsize))
    read = 0
    for start in range(0, len(array), height):
        band = source[start : start + height]
        gathered = buffer[: len(band)]
        for index in np.ndindex(*outer):
            for at in range(0, last, step):
                tile = (slice(None), *index, slice(at, at + step))
                gathered[tile] = band[tile]
                read += abs(band.strides[-1]) * step
                if read >= BLOCK:
                    release()
                    read = 0
        yield from _row_blocks(gathered.transpose(np.argsort(order)), release)


def _row_blocks(array: Array, release: Callable[[], None]) -> Iterator[memoryview]:
    """The bytes of an array in C order, a few rows at a time."""
    height = max(1, CHUNK * len(array) // array.nbytes)
    for start in range(0, len(array), height):
        yield np.ascontiguousarray(array[start : start + height]).reshape(-1).view(np.uint8).data
        release()


def _coalesce(array: Array) -> Array:
    """The same elements in the same order, with adjacent axes merged if one stride spans them."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(array.shape, array.strides):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            size *= axes.pop()[0]
        axes.append((size, stride))
    shape, strides = zip(*axes)
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=False)


def join(pieces: Iterable[Piece]) -> bytes:
    """The bytes of all pieces."""
    pieces = list(pieces)
    whole = pieces[0].obj if len(pieces) == 1 and isinstance(pieces[0], memoryview) else None
    if isinstance(whole, bytes) and len(whole) == pieces[0].nbytes:
        return whole  # not copied
    memory = io.BytesIO()
    for piece in pieces:
        for block in blocks(piece, lambda: None):
            memory.write(block)
    return memory.getvalue()
