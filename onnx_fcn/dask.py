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

from onnx_fcn.converted import CPU
from onnx_fcn.errors import OptionError
from onnx_fcn.preprocess import Preprocessing
from onnx_fcn.tiles.choice import LEAST
from onnx_fcn.tiles.images import missing, order_of
from onnx_fcn.tiles.tiled import Run, Tiled, open_tiled

__all__ = ["apply"]

Array = np.ndarray[Any, Any]

#: Threads of a worker wait for the first of them to open the model.
OPENING = threading.Lock()


def apply(
    model: str | os.PathLike[str],
    array: Any,
    *,
    name: str | None = None,
    tile: int | None = None,
    preprocess: str | Preprocessing | None = None,
    scale: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    channel_order: str | None = None,
    providers: Sequence[str] | None = None,
    approximate: bool = False,
) -> Any:
    """The map of a dask array, as a dask array: (channels, *cells), or (*cells,) of best classes, a tile a chunk.

    Args:
        model: a file that `convert` wrote, at a path that all workers can read.
        array: (*space), (*space, channels) or (channels, *space).
        name, preprocess, scale, mean, std, channel_order, providers, approximate: as in `onnx_fcn.apply`.
        tile: pixels from tile to tile along each axis; by default 2048 for pictures, 160 for volumes, and 2²² for
            signals, since what memory the workers have is not known here.

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
    if tile is not None and tile < 1:
        raise OptionError(f"a tile is a whole number of pixels from 1 on, not {tile}")
    tiled = open_tiled(os.path.abspath(model), name)
    network = tiled.network
    if network.batch not in (None, 1):
        raise OptionError(f"the model takes {network.batch} images at a time: convert it with --dynamic-batch")
    order = order_of(array.shape, network.rank, network.channels, "the array")
    numbers = {"scale": scale, "mean": mean, "std": std, "order": channel_order}
    formula = tiled.preprocessing(preprocess, array.dtype, "the array", **numbers)
    index = tuple(slice(None) if k in order else 0 for k in range(array.ndim))
    kept = sorted(order)
    image = array[index].transpose([kept.index(k) for k in order])
    if len(order) == network.rank:
        image = image[None]
    tiling = tiled.tiling(image.shape[1:], tile or LEAST[network.rank], approximate=approximate)
    answer = delayed(_answer, pure=True)
    blocks = np.empty([len(cuts) for cuts in tiling.axes], object)
    for part in tiling:
        crop = image[(slice(None), *part.pixels)]
        values = answer(tiled, formula, tuple(providers or CPU), crop, part.kept)
        shape = network.map_shape(part.shape)
        block = dask.array.from_delayed(values, shape, network.output_type)  # type: ignore[no-untyped-call]
        blocks[np.unravel_index(part.number, blocks.shape)] = block
    return dask.array.block(blocks.tolist())  # type: ignore[no-untyped-call]


def _answer(
    tiled: Tiled, preprocess: Preprocessing, providers: tuple[str, ...], crop: Array, kept: tuple[slice, ...]
) -> Array:
    """The answers of one tile, on a worker."""
    with OPENING:
        run = _runner(tiled, preprocess, providers)
    (answers,) = run([crop])
    return np.ascontiguousarray(answers[(..., *kept)])


@functools.lru_cache(maxsize=2)
def _runner(tiled: Tiled, preprocess: Preprocessing, providers: tuple[str, ...]) -> Run:
    """The session of this process."""
    return tiled.runner(preprocess, providers)
