"""The command `fit`: train another last layer on dense labels, with a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

from onnx_fcn.cli.arguments import (
    PREPROCESSING,
    add_preprocessing,
    add_providers,
    count,
    names_in_order,
    preprocessing,
    seed,
    size,
    stride,
)
from onnx_fcn.cli.output import json_file
from onnx_fcn.fitting.fit import fit
from onnx_fcn.fitting.labels import BOXES
from onnx_fcn.fitting.sampling import Progress
from onnx_fcn.tables import Table

__all__ = ["run"]


EPILOG = f"""\
Images and labels are files, or folders of files with equal names. Labels are masks of class numbers (PNG in grey or
with a palette, .npy, TIFF, zarr), GeoJSON as QuPath exports it, COCO, or CSV with the columns image,x,y,label.

maps that the layer can read (--at):
  auto         the best of the following, and of several strides together, by folds over images
  last         what the original's last layer reads: good for whole objects
  cut          the last feature map
  stride:8,16  the last maps with 8 and with 16 pixels between their cells, together
  NAME,…       tensors of the original

{PREPROCESSING}
Without a preset, pixels of a picture become pixel/255, and everything else stays unchanged. The trained file stores
what was used, and the names of the classes. The exit codes are the same as for onnx-fcn.

example:
  onnx-fcn fit model.onnx images/ labels/ trained.onnx --preprocess imagenet
  onnx-fcn segment trained.onnx photo.jpg classes.png
"""


def run(words: Sequence[str]) -> list[Table]:
    """Run `fit …`; returns its report.

    Raises:
        FcnError: as `onnx_fcn.fit` does.
    """
    given = _parse(words)
    with json_file(given.json, (given.model, given.trained)) as write_json, _bar(given.quiet) as progress:
        fitted = fit(
            given.model,
            given.images,
            given.labels,
            given.trained,
            at=given.at,
            names=given.names or (),
            ignore=given.ignore,
            boxes=given.boxes,
            samples=given.samples,
            balance=given.balance,
            folds=given.folds,
            held_out=None if given.held_out is None else tuple(given.held_out),
            preprocess=preprocessing(given, given.scale),
            level=given.level,
            output_stride=given.output_stride,
            full_size=given.full_size,
            argmax=given.argmax,
            output_name=given.output,
            input=given.input,
            input_size=given.input_size,
            tile=given.tile,
            providers=given.providers,
            external_data=True if given.external_data else None,
            seed=given.seed,
            progress=progress,
        )
        write_json(fitted.to_dict())
    return [] if given.quiet or given.json == "-" else fitted.tables(verbose=given.verbose)


def _ignored(text: str) -> int | None:
    """A number in masks; None for ``none``."""
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a whole number nor 'none'") from None


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="onnx-fcn fit",
        description="Train another last layer on labelled pixels: a classifier becomes a segmenter.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="the classifier, not a converted one")
    parser.add_argument("images", help="an image, or a folder of images")
    parser.add_argument("labels", help="the labels of the image, or a folder of labels")
    parser.add_argument("trained", nargs="?", help="the file to write; without it the command only reports")
    labels = parser.add_argument_group("labels")
    labels.add_argument("--names", type=names_in_order, metavar="NAME,…", help="names of the classes 0, 1, … of masks")
    labels.add_argument(
        "--ignore", type=_ignored, default=255, metavar="N|none", help="the number without a label (default: 255)"
    )
    labels.add_argument("--boxes", choices=BOXES, default="centre", help="what a box labels (default: its centre)")
    labels.add_argument("--level", type=int, default=0, metavar="N", help="level of an image pyramid; 0 is the finest")
    training = parser.add_argument_group("training")
    training.add_argument("--at", default="auto", metavar="MAPS", help="the maps that the layer reads (default: auto)")
    training.add_argument(
        "--samples", type=count, default=2000, metavar="N", help="most pixels of each class and image (default: 2000)"
    )
    training.add_argument(
        "--balance",
        choices=("balanced", "none"),
        default="balanced",
        help="the same weight for all classes (default), or for all pixels",
    )
    training.add_argument("--folds", type=int, default=5, metavar="N", help="folds over images (default: 5)")
    training.add_argument(
        "--held-out", nargs=2, metavar=("IMAGES", "LABELS"), help="images and labels to test on, not to train on"
    )
    training.add_argument("--seed", type=seed, default=0, metavar="N", help="of everything random (default: 0)")
    network = parser.add_argument_group("network")
    network.add_argument("--output", metavar="NAME", help="the output to replace, if there are several")
    network.add_argument("--input", metavar="NAME", help="the input that is the image, if there are several")
    network.add_argument("--input-size", type=size, metavar="224", help="the native size; also 224x320")
    network.add_argument("--output-stride", type=stride, metavar="S|SxS", help="pixels between answers")
    network.add_argument("--full-size", action="store_true", help="scores at the resolution of the image")
    network.add_argument("--argmax", action="store_true", help="the best class instead of the scores")
    network.add_argument("--external-data", action="store_true", help="weights in a file beside the model")
    add_preprocessing(parser, "scale")
    add_providers(parser)
    parser.add_argument(
        "--tile", type=count, metavar="N", help="pixels of the crops that are run at once; the result is the same"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report for scripts; - for stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="report every candidate and every check")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser.parse_intermixed_args(words[1:])


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Progress | None]:
    """A progress bar with what is being done, if standard error is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield show
