"""The default tile size: large enough to cost little more than one pass, as far as memory allows.

Crops overlap, so tiles cost more than one pass by

    overhead = pixels of all crops / pixels of the image - 1

which falls as tiles grow. The activations of a tile are computed from the graph beforehand (`cost`), and may take a
share of the free memory. So the tile is the smallest one, from `LEAST` up, whose overhead is at most `OVERHEAD`; if its
activations do not fit, the largest one that fits, if necessary smaller than `LEAST`.

Tiles divide the image evenly: none is larger than their number requires.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_fcn.tiles.tiled import Tiled

__all__ = ["LEAST", "OVERHEAD", "SHARE", "choose_tile"]


#: The smallest tile by the number of axes, in pixels along each: about four million pixels, so that costs per tile are
#: negligible.
LEAST = {1: 1 << 22, 2: 2048, 3: 160}

#: The largest extra cost of tiles over one pass.
OVERHEAD = 0.08

#: Share of the free memory for activations. Processes were measured at 0.7 to 1.7 times the computed bytes: runtimes
#: fuse some operators, copy the operands of others into another layout, and keep memory that is in pieces.
SHARE = 0.4


def choose_tile(tiled: Tiled, size: Sequence[int], batch: int, free: int, *, approximate: bool = False) -> int:
    """The tile for an image, in pixels along each axis.

    Args:
        tiled: the model.
        size: size of the image.
        batch: number of tiles per run.
        free: bytes of free memory.
        approximate: as in `Tiled.tiling`.
    """

    def overhead(tile: int) -> float:
        return tiled.tiling(size, tile, approximate=approximate).overhead

    def activations(tile: int) -> int | None:
        return tiled.activations(tiled.tiling(size, tile, approximate=approximate).largest_crop.crop, batch)

    least = min(LEAST[len(size)], max(size))
    tiles = [least, *_dividing_tiles(tiled, size, least)]
    tiles = tiles[: _first(lambda k: overhead(tiles[k]) <= OVERHEAD, len(tiles)) + 1]
    if activations(least) is None:
        return least
    stride = max(int(s) for s in tiled.network.answers.stride)
    while (needed := activations(tiles[0])) is not None and needed > SHARE * free and tiles[0] > stride:
        tiles = [max(tiles[0] // 2, stride)]
    too_many = _first(lambda k: (activations(tiles[k]) or 0) > SHARE * free, len(tiles))
    return tiles[max(too_many - 1, 0)]


def _dividing_tiles(tiled: Tiled, size: Sequence[int], least: int) -> list[int]:
    """Tiles that divide the map evenly along some axis, in ascending order; the last one covers all of it."""
    found = set()
    for stride, cells in zip(tiled.network.answers.stride, tiled.network.answers.grid(*size).shape):
        step = max(int(stride), 1)
        found |= {-(-cells // parts) * step for parts in range(1, cells * step // least + 2)}
    return sorted(tile for tile in found if tile > least)


def _first(holds: Callable[[int], bool], count: int) -> int:
    """The first number below `count` for which a monotonic condition holds; `count` if it never does."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
