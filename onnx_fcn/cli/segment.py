"""The command `segment`: the best class at every pixel, as a picture, as numbers, and compared with the truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.cli.view import (
    Shown,
    View,
    add_reading,
    json_of,
    kind_of,
    new_parser,
    npy_of,
    outputs_of,
    report_of,
    view_of,
    write,
)
from onnx_fcn.errors import OptionError
from onnx_fcn.running.truth import IGNORE, Truth, compare
from onnx_fcn.tables import Table, size_text
from onnx_fcn.viewing.drawing import class_map, encode, to_rgb
from onnx_fcn.viewing.features import areas, geojson
from onnx_fcn.viewing.refining import radius_of, refined_classes

__all__ = ["run"]


ABOUT = "Show the best class at every pixel, with a key of the classes."

#: What the command writes, for the end of its help text.
WRITES = """\
The suffix of an output gives its format: .png, .jpg, .webp, .pdf or .svg for the picture,
.npy for the class at every pixel, .json for the share of each class, and its agreement with the truth,
.geojson for the areas of the classes as polygons, for QuPath, QGIS and others."""

#: Classes whose shares are printed, if there is no truth to compare with.
PRINTED = 5


def run(arguments: Sequence[str]) -> Sequence[Table]:
    """Run `segment …`; returns its report.

    Raises:
        FcnError: if it fails.
        SystemExit: if the arguments are invalid, or ask for help.
    """
    given = _parser().parse_intermixed_args(arguments[1:])
    if given.ignore is not None and given.truth is None:
        raise OptionError("--ignore is a number in the truth: give --truth as well")
    outputs = outputs_of(given)
    view = view_of(given)
    files, rows = _segment(given, view, outputs)
    write(files)
    return [] if given.quiet else [report_of(view, rows, outputs)]


def _segment(given: argparse.Namespace, view: View, outputs: Sequence[Path]) -> Shown:
    if len(view.results) > 1:
        raise OptionError("a class map has one size: give one --scale")
    first, radius = view.first, radius_of(view.first) if given.refine else None
    classes = first.classes_at_pixels() if radius is None else refined_classes(first, to_rgb(view.pixels), radius)
    background = None
    if given.background is not None:
        background = replace(first, labels=first.names).class_index(given.background)
    truth = None if given.truth is None else compare(given.truth, classes, first.names, given.ignore)
    shares = _shares(classes)
    files = {}
    for output in outputs:
        if kind_of(output) == "npy":
            files[output] = npy_of(classes.astype(np.min_scalar_type(len(first.names) - 1)))
        elif kind_of(output) == "json":
            values: dict[str, Any] = {"refined": None if radius is None else {"radius": radius}}
            values["classes"] = [{"class": k, "label": first.names[k], "share": share} for k, share in shares.items()]
            values |= {} if truth is None else {"truth": truth.to_json(first.names)}
            files[output] = json_of(view, **values)
        elif kind_of(output) == "geojson":
            files[output] = geojson(areas(classes, first.names, background))
        else:
            of = "at every pixel" if first.is_trained else f"of each {size_text(view.model.window)} window"
            title = f"{Path(view.name).name} · the best class {of}"
            title += ", along the edges of the picture" * given.refine
            picture = to_rgb(view.pixels)
            figure = class_map(picture, classes, first.names, title, background, contours=given.contours)
            files[output] = encode(figure, kind_of(output))
    rows = _share_rows(view, shares) if truth is None else _truth_rows(view, shares, truth)
    if radius is not None:
        rows.append(("refined", f"along the edges of the picture, by a guided filter with a radius of {radius} pixels"))
    return files, rows


def _shares(classes: Array) -> dict[int, float]:
    """The share of the picture of each class in it, the largest first."""
    found, counts = np.unique(classes, return_counts=True)
    return {int(found[k]): float(counts[k] / classes.size) for k in np.argsort(-counts, kind="stable")}


def _class_text(view: View, index: int) -> str:
    return view.first.names[index] if view.first.is_single else view.class_text(index)


def _share_rows(view: View, shares: dict[int, float]) -> list[tuple[str, ...]]:
    rows = [(_class_text(view, k), f"{share:.1%} of the picture") for k, share in list(shares.items())[:PRINTED]]
    return [*rows, ("…", f"{len(shares) - PRINTED} more")] if len(shares) > PRINTED else list(rows)


def _truth_rows(view: View, shares: dict[int, float], truth: Truth) -> list[tuple[str, ...]]:
    """A row for each class in the picture or in the truth, and one for all."""
    confusion, rows = truth.confusion, []
    measured = np.isfinite(confusion.iou)
    for k in [*shares, *(int(k) for k in np.flatnonzero(measured) if k not in shares)]:
        agreement = f"IoU {confusion.iou[k]:.3f}" if measured[k] else "no pixel with a truth"
        rows.append((_class_text(view, k), f"{shares.get(k, 0):.1%} of the picture, {agreement}"))
    share = truth.ignored / (truth.ignored + confusion.pixels)
    ignored = f", {share:.1%} of the picture ignored" if truth.ignored else ""
    means = f"mean IoU {confusion.mean_iou:.3f}, pixel accuracy {confusion.accuracy:.3f}"
    return [*rows, ("truth", f"{truth.mask}: {means}{ignored}")]


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("segment", ABOUT, WRITES)
    parser.add_argument("--background", metavar="CLASS", help="a class to leave uncoloured")
    parser.add_argument("--contours", action="store_true", help="outline the classes on the picture in its own colours")
    parser.add_argument(
        "--refine", action="store_true", help="let the classes end at the edges of the picture, by a guided filter"
    )
    parser.add_argument(
        "--truth", metavar="FILE", help="a mask with the number of the true class at each pixel, to compare with"
    )
    parser.add_argument(
        "--ignore", type=int, metavar="N", help=f"the number of pixels without a truth (default: {IGNORE})"
    )
    add_reading(parser)
    return parser
