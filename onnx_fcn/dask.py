"""Converted networks on dask arrays: the tiles of `onnx_fcn.apply`, on all workers of dask.

    import dask.array, onnx_fcn.dask

    answers = onnx_fcn.dask.apply("out.onnx", dask.array.from_zarr("scene.zarr"))
    answers.to_zarr("map.zarr")

Evaluation is lazy, and dask decides where tiles run. Each worker process opens the model once. `map_overlap` is not
used: it adds the halo to both sides of chunks of one size; here each tile is a slice of the array that begins at a
multiple of the network's strides, and ends at the end of the image.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import Reading, reading_of
from onnx_fcn.images.stored import missing_package, white_of
from onnx_fcn.running.network import CPU
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tiles.choice import LEAST
from onnx_fcn.tiles.tiled import Run, Tiled, open_tiled

__all__ = ["apply"]


#: Threads of a worker wait for the first of them to open the model.
OPENING = threading.Lock()


def apply(
    model: str | os.PathLike[str],
    array: Any,
    *,
    name: str | None = None,
    tile: int | None = None,
    preprocess: str | Preprocessing | None = None,
    providers: Sequence[str] | None = None,
    approximate: bool = False,
) -> Any:
    """The map of a dask array, as a dask array: (channels, *cells), or (*cells,) of best classes, a tile a chunk.

    Args:
        model: a file that `convert` wrote, at a path that all workers can read.
        array: (*space), (*space, channels) or (channels, *space).
        name, preprocess, providers, approximate: as in `onnx_fcn.apply`.
        tile: pixels from tile to tile along each axis; by default 2048 for pictures, 160 for volumes, and 2²² for
            signals, since the memory of the workers is unknown.

    Raises:
        ModelError: if the model cannot be used; when the result is computed, if it does not run.
        OptionError: if an argument does not fit the model, tiles cannot be exact, or dask is missing.
    """
    try:
        import dask.array
        from dask.delayed import delayed
    except ImportError as error:
        raise missing_package("onnx_fcn.dask", error) from None

    if tile is not None and tile < 1:
        raise OptionError(f"a tile is an integer of at least 1 pixel, not {tile}")
    _check_array(array, dask.array.Array)
    tiled = open_tiled(os.path.abspath(model), name)
    network = tiled.network
    if network.batch not in (None, 1):
        raise OptionError(
            f"the model takes {network.batch} images at a time: convert the original without --batch, or with "
            "--dynamic-batch"
        )
    if array.dtype.kind == "b":  # black and white, as in files
        array = dask.array.where(array, np.uint8(255), np.uint8(0))
    reading = reading_of(array.shape, network.rank, network.channels, "the array")
    formula = tiled.network.preprocessing_for(preprocess, array.dtype, white_of(array.dtype), "the array")
    image = reading.arrange(array)
    tiling = tiled.tiling(image.shape[1:], tile or LEAST[network.rank], approximate=approximate)
    answer = delayed(_answer, pure=True)
    blocks = np.empty([len(cuts) for cuts in tiling.axes], object)
    for part in tiling:
        crop = image[(slice(None), *part.pixels)]
        values = answer(tiled, formula, tuple(providers or CPU), reading, crop, part.kept)
        shape = network.map_shape(part.shape)
        block = dask.array.from_delayed(values, shape, network.output_type)  # type: ignore[no-untyped-call]
        blocks[np.unravel_index(part.number, blocks.shape)] = block
    return dask.array.block(blocks.tolist())  # type: ignore[no-untyped-call]


def _check_array(array: Any, kind: type[Any]) -> None:
    """Raises OptionError if it is not a dask array of a known, non-empty shape."""
    if not isinstance(array, kind):
        raise OptionError(f"onnx_fcn.dask.apply takes a dask array, not {type(array).__name__}")
    if any(math.isnan(n) for n in array.shape):
        raise OptionError(
            f"the array has the shape {array.shape}, since the sizes of its chunks are unknown: "
            "call array.compute_chunk_sizes() first"
        )
    if 0 in array.shape:
        raise OptionError(f"the array has no pixels: its shape is {array.shape}")


def _answer(
    tiled: Tiled,
    preprocess: Preprocessing,
    providers: tuple[str, ...],
    reading: Reading,
    crop: Array,
    kept: tuple[slice, ...],
) -> Array:
    """The answers of one tile, on a worker."""
    with OPENING:
        run = _runner(tiled, preprocess, providers)
    (answers,) = run([reading.mix(crop)])
    return np.ascontiguousarray(answers[(..., *kept)])


@functools.lru_cache(maxsize=2)
def _runner(tiled: Tiled, preprocess: Preprocessing, providers: tuple[str, ...]) -> Run:
    """The session of this process."""
    return tiled.runner(preprocess, providers)
