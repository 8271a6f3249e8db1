"""Running a converted network over images of any size: tile by tile, in bounded memory, as if in one pass.

    open the model, the image, the mask  →  tiles  →  for each: read its crop, run, keep its cells, write them

Errors in the arguments and files are found before the first tile. An interrupted run resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnx_fcn import memory as ram
from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.geometry import Answers
from onnx_fcn.images.image import Image, open_image
from onnx_fcn.images.placement import Placement
from onnx_fcn.model.version import __version__
from onnx_fcn.running.network import CPU, Converted
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tiles.choice import LEAST, choose_tile
from onnx_fcn.tiles.description import fill_of, layer_of
from onnx_fcn.tiles.formats import Format, format_of
from onnx_fcn.tiles.maps import Journal, MapFile
from onnx_fcn.tiles.tiled import Run, Tiled, open_tiled
from onnx_fcn.tiles.tiling import Tile, Tiling

__all__ = ["Applied", "Progress", "apply"]


PathLike = str | os.PathLike[str]

#: With --memory, tiles grow up to this many times the halo; beyond that the halo costs next to nothing.
HALOS = 32

#: Called before the first tile and after each: (tiles done, all tiles).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Applied:
    """The result of `apply`.

    Attributes:
        path: the map.
        shape: (channels, *cells), or (*cells,) of best classes.
        dtype: type of its values.
        size: size of the image, in pixels.
        preprocess: the formula applied to its pixels.
        tile: pixels from tile to tile, at most.
        only: the size of each crop, if the file takes images of one size only; None otherwise.
        tiles: number of tiles.
        overhead: extra cost over one pass, as a share of its pixels: crops overlap.
        resumed: number of tiles that an earlier run had completed.
        skipped: number of tiles that the mask covers entirely.
        exact: is the map what one pass gives?
        placement: where the cells lie; None if the image does not say where it lies.
        seconds: duration.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: tuple[int, ...]
    preprocess: Preprocessing
    tile: int
    only: tuple[int, ...] | None
    tiles: int
    overhead: float
    resumed: int
    skipped: int
    exact: bool
    placement: Placement | None
    seconds: float


def apply(
    model: PathLike,
    image: PathLike,
    output: PathLike,
    *,
    name: str | None = None,
    tile: int | None = None,
    batch: int = 1,
    memory: int | str | None = None,
    mask: PathLike | None = None,
    level: int = 0,
    preprocess: str | Preprocessing | None = None,
    providers: Sequence[str] | None = None,
    approximate: bool = False,
    cog: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Run a converted model over an image of any size; the map is what one pass over the whole image gives.

    If the process is stopped, the same call resumes the run.

    Args:
        model: a file that `convert` wrote.
        image: TIFF, PNG, .npy, .wav, or a zarr store: (*space), (*space, channels) or (channels, *space).
        output: the map (channels, *cells), a new file: .npy, .tif or .ome.tif, or a zarr store of that name. It lies
            where the image lies: a .tif is a GeoTIFF if the image is one, and a .zarr is an OME-Zarr group.
        name: the output of the model; by default the first.
        tile: pixels from tile to tile along each axis. By default it depends on the network, the image and the free
            memory: at least 2048 for pictures, and large enough that tiles cost little more than one pass.
        batch: number of tiles per run.
        memory: the resident memory that the process may use, in bytes or as "2G": tiles become as large as fits.
        mask: an image of the same scene at any resolution: answers whose window it covers entirely, with values
            other than 0, are left out. They are NaN; in integer maps -1, or the largest number if unsigned.
        level: level of an image pyramid; 0 is the finest.
        preprocess: what the network was trained on: the name of a preset, which is for pixels from 0 to 255, or a
            formula. By default it is what the model says; if it says nothing, pictures get ``unit``, and everything
            else stays unchanged.
        providers: execution providers of onnxruntime; the CPU by default.
        approximate: allow tiles even if an answer depends on the whole image: it will depend on its tile.
        cog: write a cloud-optimized GeoTIFF, with overviews; the image has to be a GeoTIFF.
        progress: called with the number of tiles done and of all tiles.

    Raises:
        ModelError: if the model cannot be used, or does not run.
        OptionError: if an argument does not fit the model or another one, or a file cannot be read or written.
    """
    begun = time.perf_counter()
    limit = _memory_limit(tile, memory, batch, level)
    target = MapFile(output)
    tiled = open_tiled(model, name)
    network = tiled.network
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(contextlib.closing(open_image(image, network.rank, network.channels, level)))
        formula = network.preprocessing_for(preprocess, source.dtype, source.white, source.name)
        cells = tiled.tiling(source.size, tile or LEAST[network.rank], approximate=approximate).shape
        layer = layer_of(network, cells, source.placement)
        form = format_of(target.path, layer, cog=cog)
        if network.batch not in (None, batch):
            raise OptionError(
                f"the model takes {network.batch} images at a time, not {batch}: give --batch {network.batch}"
            )
        left_out = None if mask is None else Mask.open(opened, mask, network, source.size)
        job = Job(tiled, formula, source, left_out, batch, approximate, tuple(providers or CPU), limit is None)
        job.run  # noqa: B018  (a model that onnxruntime cannot load is refused before anything is written)
        journal = opened.enter_context(contextlib.closing(Journal(target.journal)))
        if tile is None:
            tile = journal.tile if _resumes(target, journal) else None
        if tile is None:
            tile = job.choose_tile() if limit is None else job.largest_tile(limit)
        tiling = job.tiling(tile)
        asked = {"level": level, "tile": tile, "cog": cog}
        resumed, skipped = _make_map(job, tiling, asked, target, form, journal, progress)
    return Applied(
        path=str(output),
        shape=layer.shape,
        dtype=str(layer.dtype),
        size=source.size,
        preprocess=formula,
        tile=tile,
        only=tiling.largest_crop.crop if any(network.fixed) else None,
        tiles=len(tiling),
        overhead=tiling.overhead,
        resumed=resumed,
        skipped=skipped,
        exact=not tiled.obstacle,
        placement=layer.placement,
        seconds=time.perf_counter() - begun,
    )


def _memory_limit(tile: int | None, memory: int | str | None, batch: int, level: int) -> int | None:
    """The limit of memory in bytes; None if there is none.

    Raises:
        OptionError: if a number is out of range, or two options contradict each other.
    """
    if tile is not None and memory is not None:
        raise OptionError("--tile and --memory contradict each other: --memory chooses the tile size")
    if level < 0:
        raise OptionError(f"--level is an integer of at least 0, not {level}")
    for option, value in (("tile", tile), ("batch", batch)):
        if value is not None and value < 1:
            raise OptionError(f"--{option} is an integer of at least 1, not {value}")
    return None if memory is None else parse_memory(memory)


def _resumes(target: MapFile, journal: Journal) -> bool:
    """Is there an unfinished map at the target?"""
    return journal.header is not None and target.partial.exists()


def _make_map(
    job: Job,
    tiling: Tiling,
    asked: Mapping[str, Any],
    target: MapFile,
    form: Format,
    journal: Journal,
    progress: Progress | None,
) -> tuple[int, int]:
    """Make a map, or complete one; returns the number of tiles already done, and of tiles that the mask leaves out.

    Raises:
        OptionError: if the journal is of another map, or a file changed meanwhile.
    """
    identity = job.identity()
    header = {**identity, **asked}
    if resumes := _resumes(target, journal):
        journal.check(header)
    else:
        target.create(form, job.network.map_shape(tiling.chunk))
    try:
        if not resumes:
            with target.writing():
                journal.begin(header)
        resumed = len(journal.done)
        skipped = _carry_out(job, tiling, target, form, journal, progress)
    except BaseException:
        if not journal.done:  # there is nothing to resume
            target.discard()
            journal.discard()
        raise
    if changed := [what for what, before in identity.items() if job.identity()[what] != before]:
        raise OptionError(
            f"the {' and the '.join(changed)} changed while the map was made, so '{target.partial}' mixes both "
            f"states: remove '{target.journal}' to start over"
        )
    target.finish(form)
    return resumed, skipped


def _carry_out(
    job: Job, tiling: Tiling, target: MapFile, form: Format, journal: Journal, progress: Progress | None
) -> int:
    """Run the tiles that are not done yet; returns the number of tiles left out."""
    left_out = 0
    grown = target.open(form)
    with contextlib.closing(grown):
        if progress is not None:
            progress(len(journal.done), len(tiling))
        for tile, values in job.results(tile for tile in tiling if tile.number not in journal.done):
            left_out += values is None
            with target.writing():
                grown.write(job.box(tile), job.fill(tile) if values is None else values)
                journal.add(tile.number)
            ram.release()
            if progress is not None:
                progress(len(journal.done), len(tiling))
    return left_out


@dataclass
class Job:
    """A network, an image, and how the network is run on it.

    With an `arena`, memory is kept from tile to tile; not below a limit, where tiles of growing sizes are measured.
    """

    tiled: Tiled
    preprocess: Preprocessing
    image: Image
    mask: Mask | None
    batch: int
    approximate: bool
    providers: tuple[str, ...]
    arena: bool

    @property
    def network(self) -> Converted:
        """The converted file."""
        return self.tiled.network

    def tiling(self, tile: int) -> Tiling:
        """The tiles of the image."""
        return self.tiled.tiling(self.image.size, tile, approximate=self.approximate)

    def identity(self) -> dict[str, Any]:
        """What determines the map, as recorded in the journal."""
        return {
            "onnx_fcn": __version__,
            "model": self.tiled.digest(),
            "output": self.network.output,
            "image": self.image.identity(),
            "mask": None if self.mask is None else self.mask.image.identity(),
            "preprocessing": asdict(self.preprocess),
            "provider": self.providers,
        }

    @functools.cached_property
    def run(self) -> Run:
        """The session; opened before tiles are measured, since weights are not a cost of a tile."""
        return self.tiled.runner(self.preprocess, self.providers, arena=self.arena)

    def results(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, Array | None]]:
        """Each tile with its answers, (C, *cells); None if all of them are left out.

        Tiles whose crops have the same size run together, up to the batch.
        """
        waiting: list[tuple[Tile, Array | None]] = []
        for tile in tiles:
            wanted = None if self.mask is None else self.mask.wanted(tile)
            if wanted is not None and not wanted.any():
                yield tile, None
                continue
            if waiting and (len(waiting) == self.batch or waiting[0][0].crop != tile.crop):
                yield from self._together(waiting)
                waiting = []
            waiting.append((tile, wanted))
        if waiting:
            yield from self._together(waiting)

    def _together(self, waiting: Sequence[tuple[Tile, Array | None]]) -> Iterator[tuple[Tile, Array]]:
        crops = [self.image.read(tile.pixels) for tile, _ in waiting]
        if self.network.batch is not None:
            crops += crops[-1:] * (self.network.batch - len(crops))
        for (tile, wanted), answers in zip(waiting, self.run(crops)):
            kept = answers[(..., *tile.kept)]
            yield tile, kept if wanted is None else np.where(wanted, kept, fill_of(kept.dtype)).astype(kept.dtype)

    def fill(self, tile: Tile) -> Array:
        """The values of a tile that is left out."""
        dtype = self.network.output_type
        return np.full(self.network.map_shape(tile.shape), fill_of(dtype), dtype)

    def box(self, tile: Tile) -> tuple[slice, ...]:
        """The index of a tile's answers in the map."""
        return tile.cells if self.network.width is None else (slice(0, self.network.width), *tile.cells)

    def choose_tile(self) -> int:
        """The tile size if neither it nor a limit of memory is given."""
        size, free = self.image.size, ram.available()
        return choose_tile(self.tiled, size, self.batch, free, approximate=self.approximate)

    def largest_tile(self, limit: int) -> int:
        """The largest tile whose run stays below a limit of memory, and that is still worthwhile."""
        halo = max(math.ceil(f.size - f.stride) if f.is_local else 0 for f in self.network.answers.field)
        most = min(max(self.image.size), max(LEAST[self.network.rank], HALOS * halo))

        def run(tile: int) -> None:
            crop = self.image.read(self.tiling(tile).largest_crop.pixels)
            self.run([crop] * self.batch)

        return ram.largest_tile(run, lambda tile: math.prod(self.tiling(tile).largest_crop.crop), limit, most)


@dataclass(frozen=True)
class Mask:
    """What to leave out of an image: pixels that are not 0 in an image of the same scene, at any resolution."""

    image: Image
    answers: Answers
    size: tuple[int, ...]

    @classmethod
    def open(cls, opened: contextlib.ExitStack, path: PathLike, network: Converted, size: tuple[int, ...]) -> Mask:
        """The mask in a file, for an image of this size; closed with the stack.

        Raises:
            OptionError: if it cannot be read as a mask.
        """
        covering = opened.enter_context(contextlib.closing(open_image(path, network.rank, 1)))
        if covering.has_alpha:
            raise OptionError(f"{covering.name} has an alpha channel, which a mask cannot have: save it in grey")
        return cls(covering, network.answers, size)

    def wanted(self, tile: Tile) -> Array:
        """Which cells of a tile have a window that the mask does not cover entirely."""
        spans = [self._spans(axis, cells) for axis, cells in enumerate(tile.cells)]
        box = tuple(slice(int(first.min()), int(behind.max())) for first, behind in spans)
        free = (self.image.read(box)[0] == 0).astype(np.int32)
        for axis, ((first, behind), part) in enumerate(zip(spans, box)):  # sums over windows, axis by axis
            sums = np.insert(free.cumsum(axis, dtype=np.int32), 0, 0, axis)
            free = sums.take(behind - part.start, axis) - sums.take(first - part.start, axis)
        wanted: Array = free > 0
        return wanted

    def _spans(self, axis: int, cells: slice) -> tuple[Array, Array]:
        """The first pixel of the mask in each cell's window, and the one after the last."""
        size, own = self.size[axis], self.image.size[axis]
        begin = float(self.answers.offset[axis]) + np.arange(cells.start, cells.stop) * float(self.answers.stride[axis])
        first = np.clip(np.floor(begin * own / size), 0, own - 1).astype(np.int64)
        behind = np.clip(np.ceil((begin + float(self.answers.window[axis])) * own / size), first + 1, own)
        return first, behind.astype(np.int64)


def parse_memory(memory: int | str) -> int:
    """2G → bytes. Raises OptionError if it is not an amount of memory."""
    try:
        return memory if isinstance(memory, int) else ram.parse_bytes(memory)
    except ValueError as error:
        raise OptionError(str(error)) from None
