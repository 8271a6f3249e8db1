"""The command `apply`: run a converted model over an image of any size, with a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

from onnx_fcn.cli.arguments import PREPROCESSING, add_network, add_preprocessing, preprocessing
from onnx_fcn.tables import Table, size_text
from onnx_fcn.tiles.application import Applied, Progress, apply

__all__ = ["run"]


EPILOG = f"""\
The map is the same as from one pass over the whole image. If the command is stopped, the same command resumes the run.
Until the map is complete it is MAP.partial, with a journal beside it. The exit codes are the same as for onnx-fcn.

The map lies where the image lies: of a GeoTIFF, a .tif has its CRS, with cells as pixels; a .zarr is an OME-Zarr group
with scale and translation.

{PREPROCESSING}
The default is what the file says; if it says nothing, pixels of a picture become pixel/255, and everything else stays
unchanged.

example:
  onnx-fcn apply out.onnx slide.tif map.zarr --preprocess imagenet
"""


def run(words: Sequence[str]) -> list[Table]:
    """Run `apply …`; returns its report.

    Raises:
        FcnError: as `onnx_fcn.apply` does.
    """
    given = _parse(words)
    with _bar(given.quiet) as progress:
        applied = apply(
            given.model,
            given.image,
            given.map,
            name=given.output,
            tile=given.tile,
            batch=given.batch,
            memory=given.memory,
            mask=given.mask,
            level=given.level,
            preprocess=preprocessing(given, given.scale),
            providers=given.providers,
            approximate=given.approximate,
            cog=given.cog,
            progress=progress,
        )
    return [] if given.quiet else [_table(given.image, applied)]


def _table(image: str, applied: Applied) -> Table:
    kinds = [(applied.resumed, "done before"), (applied.skipped, "left out by the mask")]
    notes = "".join(f", {count} {what}" for count, what in kinds if count)
    cost = f"{max(applied.overhead, 0):.0%} more pixels than in one pass"
    rows = (
        ("image", f"{image}, {size_text(applied.size)} pixels"),
        ("network", f"gets {applied.preprocess}"),
        ("map", f"{applied.path}, {size_text(applied.shape)} of {applied.dtype}"),
        *([] if applied.placement is None else [("cells", str(applied.placement))]),
        (
            "tiles",
            f"{applied.tiles} of {size_text(applied.only or [applied.tile])} pixels, {cost}{notes}",
        ),
        ("exact", "yes: as in one pass" if applied.exact else "no: answers depend on their tile"),
        ("time", f"{applied.seconds:.2f} s"),
    )
    return Table("", (), rows)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="onnx-fcn apply",
        description="Run a converted model over an image of any size, tile by tile.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a converted model")
    parser.add_argument("image", help="TIFF, PNG, .npy, .wav, or a zarr store")
    parser.add_argument("map", help="the file to write: .zarr, .npy, .tif or .ome.tif")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tile", type=int, metavar="N", help="pixels from tile to tile (default: automatic)")
    size.add_argument("--memory", metavar="2G", help="make tiles as large as fit into this much memory")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="number of tiles per run")
    parser.add_argument(
        "--mask", metavar="FILE", help="an image, at any resolution, that is not 0 in the regions to skip"
    )
    parser.add_argument("--level", type=int, default=0, metavar="N", help="level of an image pyramid; 0 is the finest")
    add_preprocessing(parser, "scale")
    add_network(parser)
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="use tiles even if answers depend on the whole image: they then depend on their tile",
    )
    parser.add_argument("--cog", action="store_true", help="write a cloud-optimized GeoTIFF, with overviews")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser.parse_intermixed_args(words[1:])


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Progress | None]:
    """A progress bar with tiles, rate and time left, if standard error is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        """Tiles a second, or seconds a tile."""

        def render(self, task: Task) -> Text:
            if not task.speed:
                return Text("")
            return Text(f"{task.speed:.1f} tiles/s" if task.speed > 1 else f"{1 / task.speed:.1f} s/tile")

    columns = (TextColumn("tiles"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tiles", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
