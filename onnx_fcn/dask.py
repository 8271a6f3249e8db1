"""Converted networks on dask arrays: the same tiles as `onnx_fcn.apply`, on as many machines as there are.

    import dask.array, onnx_fcn.dask

    answers = onnx_fcn.dask.apply("out.onnx", dask.array.from_zarr("scene.zarr"))
    answers.to_zarr("map.zarr")

Nothing runs before the result is computed, where and how is dask's affair. Each worker process opens the model once.
`map_overlap` is not used: it would give each chunk the halo on both sides, from chunks of one size; here each tile is
a slice of the array that begins where the network's own strides do, and ends with the image where that ends.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_fcn.errors import OptionError
from onnx_fcn.tiles.application import TILE, numbers
from onnx_fcn.tiles.converted import Converted, Pixels, Runner, open_converted
from onnx_fcn.tiles.images import missing, order_of

__all__ = ["apply"]

Array = np.ndarray[Any, Any]

#: Threads of a worker wait for the first of them to open the model.
OPENING = threading.Lock()


def apply(
    model: str | os.PathLike[str],
    array: Any,
    *,
    name: str | None = None,
    tile: int = TILE,
    scale: float = 1.0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    approximate: bool = False,
) -> Any:
    """The map of a dask array, as a dask array: (channels, *cells), or (*cells,) of best classes, a tile a chunk.

    Args:
        model: a file that `convert` wrote, at a path that all workers can read.
        array: (*space), (*space, channels) or (channels, *space).
        name, tile, scale, mean, std, approximate: as in `onnx_fcn.apply`.

    Raises:
        ModelError: the model cannot be used; where it does not run, when the result is computed.
        OptionError: an argument does not fit the model; tiles cannot be exact; dask is missing.
    """
    try:
        import dask.array
        from dask.delayed import delayed
    except ImportError as error:
        raise missing("onnx_fcn.dask", error) from None

    if not isinstance(array, dask.array.Array):
        raise OptionError(f"onnx_fcn.dask.apply takes a dask array, not {type(array).__name__}")
    if tile < 1:
        raise OptionError(f"a tile is a whole number of pixels from 1 on, not {tile}")
    converted = open_converted(os.path.abspath(model), name)
    if converted.batch not in (None, 1):
        raise OptionError(f"the model takes {converted.batch} images at a time: convert it with --dynamic-batch")
    pixels = Pixels(scale, numbers(mean), numbers(std))
    order = order_of(array.shape, converted.rank, converted.channels, "the array")
    converted.check(pixels, array.dtype, "the array")
    index = tuple(slice(None) if k in order else 0 for k in range(array.ndim))
    kept = sorted(order)
    image = array[index].transpose([kept.index(k) for k in order])
    if len(order) == converted.rank:
        image = image[None]
    tiling = converted.tiling(image.shape[1:], tile, approximate=approximate)
    answer = delayed(_answer, pure=True)
    blocks = np.empty([len(cuts) for cuts in tiling.axes], object)
    for part in tiling:
        crop = image[(slice(None), *part.pixels)]
        values = answer(converted, pixels, crop, part.kept)
        shape = converted.map_shape(part.shape)
        block = dask.array.from_delayed(values, shape, converted.output_type)  # type: ignore[no-untyped-call]
        blocks[np.unravel_index(part.number, blocks.shape)] = block
    return dask.array.block(blocks.tolist())  # type: ignore[no-untyped-call]


def _answer(converted: Converted, pixels: Pixels, crop: Array, kept: tuple[slice, ...]) -> Array:
    """The answers of one tile, on a worker."""
    with OPENING:
        run = _runner(converted)
    (answers,) = run([crop], pixels)
    return np.ascontiguousarray(answers[(..., *kept)])


@functools.lru_cache(maxsize=2)
def _runner(converted: Converted) -> Runner:
    """The session of this process."""
    return converted.runner()
