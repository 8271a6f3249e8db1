"""Which tile is taken where none is asked for: large enough to cost little more than one pass, as far as memory goes.

Crops overlap, so tiles cost more than one pass by

    overhead = pixels of all crops / pixels of the image - 1

which falls as tiles grow. The activations that a tile takes are counted on the graph beforehand (`cost`), and may have
a share of the memory that is free. So the tile is the smallest one, from `LEAST` on, whose overhead is at most
`OVERHEAD`; where its activations are too many, the largest one that has room, if need be below `LEAST` too.

Tiles divide the image evenly: none is larger than it must be for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_fcn.tiles.tiled import Tiled

__all__ = ["LEAST", "OVERHEAD", "SHARE", "chosen_tile"]


#: The smallest tile by the number of axes, in pixels along each: some four million of them, so that what is done once a
#: tile does not count.
LEAST = {1: 1 << 22, 2: 2048, 3: 160}

#: What tiles may cost more than one pass.
OVERHEAD = 0.08

#: Of the memory that is free, for activations. Processes were measured at 0.9 to 1.5 times what is counted: runtimes
#: fuse some operators, and lay out the operands of others anew.
SHARE = 0.5


def chosen_tile(tiled: Tiled, size: Sequence[int], batch: int, free: int, *, approximate: bool = False) -> int:
    """The tile for an image, in pixels along each axis.

    Args:
        tiled: the model.
        size: of the image.
        batch: tiles that are run at a time.
        free: bytes of memory.
        approximate: as in `Tiled.tiling`.
    """

    def overhead(tile: int) -> float:
        return tiled.tiling(size, tile, approximate=approximate).overhead

    def activations(tile: int) -> int | None:
        return tiled.activations(tiled.tiling(size, tile, approximate=approximate).largest_crop.crop, batch)

    least = min(LEAST[len(size)], max(size))
    tiles = [least, *_dividing(tiled, size, least)]
    tiles = tiles[: _first(lambda k: overhead(tiles[k]) <= OVERHEAD, len(tiles)) + 1]
    if activations(least) is None:
        return least
    stride = max(int(s) for s in tiled.network.answers.stride)
    while (needed := activations(tiles[0])) is not None and needed > SHARE * free and tiles[0] > stride:
        tiles = [max(tiles[0] // 2, stride)]
    too_many = _first(lambda k: (activations(tiles[k]) or 0) > SHARE * free, len(tiles))
    return tiles[max(too_many - 1, 0)]


def _dividing(tiled: Tiled, size: Sequence[int], least: int) -> list[int]:
    """Tiles that divide the map evenly along some axis, from the smallest on; the last one has all of it."""
    found = set()
    for stride, cells in zip(tiled.network.answers.stride, tiled.network.answers.grid(*size).shape):
        step = max(int(stride), 1)
        found |= {-(-cells // parts) * step for parts in range(1, cells * step // least + 2)}
    return sorted(tile for tile in found if tile > least)


def _first(holds: Callable[[int], bool], count: int) -> int:
    """The first number below `count` from which on something holds; `count` where it never does."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
