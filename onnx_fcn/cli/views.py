"""The commands `heatmap` and `page`: where a class is, and a page to explore all answers on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fcn.cli.arguments import count, number
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
from onnx_fcn.running.dense_model import Detection, detect, ranking
from onnx_fcn.tables import Table, size_text

__all__ = ["run"]


#: Boxes of one class beyond which a heat map is hard to read.
BOXES = 20

ABOUT = {
    "heatmap": "Show where a class is: a heat map over the picture, with the windows in which it was found.",
    "page": "Write a page to explore the answers: one HTML file that works offline.",
}

#: What a command writes, for the end of its help text.
WRITES = {
    "heatmap": "The suffix of an output gives its format: .png, .jpg, .webp, .pdf or .svg for the picture,\n"
    ".npy for the scores at every pixel, .json for the windows that were found, .geojson for these as\n"
    "rectangles, for QuPath, QGIS and others. Without --class the heat\n"
    "map shows the class with the highest score.",
    "page": "The output is an .html file.",
}


def run(arguments: Sequence[str]) -> Sequence[Table]:
    """Run one of the commands, named by the first argument; returns its report.

    Raises:
        FcnError: if it fails.
        SystemExit: if the arguments are invalid, or ask for help.
    """
    command = arguments[0]
    given = _parser(command).parse_intermixed_args(arguments[1:])
    outputs = outputs_of(given, (".html", ".htm")) if command == "page" else outputs_of(given)
    view = view_of(given)
    files, rows = {"heatmap": _heatmap, "page": _page}[command](given, view, outputs)
    write(files)
    return [] if given.quiet else [report_of(view, rows, outputs)]


def _heatmap(given: argparse.Namespace, view: View, outputs: Sequence[Path]) -> Shown:
    first = view.first
    peaks = np.max([r.probabilities.reshape(len(r.map), -1).max(axis=1) for r in view.results], axis=0)
    chosen = [first.class_index(name) for name in given.classes or ()] or ranking(view.results)[: given.top or 1]
    found = {k: _best_windows(view, k, given.threshold, given.boxes) for k in chosen}
    heat = np.stack([np.max([r.at_pixels(r.probabilities[k]) for r in view.results], axis=0) for k in chosen])
    files = {}
    for output in outputs:
        if kind_of(output) == "npy":
            files[output] = npy_of(heat)
        elif kind_of(output) == "json":
            classes = [
                {
                    "class": k,
                    "label": first.labels[k],
                    "peak": float(peaks[k]),
                    "windows": [_entry(d) for d in found[k]],
                }
                for k in chosen
            ]
            files[output] = json_of(view, classes=classes)
        elif kind_of(output) == "geojson":
            from onnx_fcn.viewing.features import geojson, windows

            files[output] = geojson(windows((d for k in chosen for d in found[k]), first.labels))
        else:
            from onnx_fcn.viewing.drawing import Panel, encode, heat_map, to_rgb

            panels = [
                Panel(f"{view.class_text(k)}, best {peaks[k]:.2f}{_windows(found[k])}", values, found[k])
                for k, values in zip(chosen, heat)
            ]
            title = f"{Path(view.name).name} · {size_text(view.model.window)} windows"
            files[output] = encode(heat_map(to_rgb(view.pixels), panels, title, view.activation), kind_of(output))
    rows = [(view.class_text(k), f"best {peaks[k]:.3f} in {_place(found[k][0])}{_windows(found[k])}") for k in chosen]
    return files, rows


def _best_windows(view: View, index: int, threshold: float, count: int) -> list[Detection]:
    """The windows of a class above the threshold, and at least the best one."""
    return detect(view.results, index, count, threshold=threshold) or detect(view.results, index)


def _page(given: argparse.Namespace, view: View, outputs: Sequence[Path]) -> Shown:
    from onnx_fcn.viewing.page import page

    if len(view.results) > 1:
        raise OptionError("a page has one size: give one --scale")
    chosen = None if given.classes is None else view.first.class_index(given.classes[-1])
    text = page(view.first, view.pixels, Path(view.name).name, view.activation, chosen)
    return dict.fromkeys(outputs, text.encode()), []


def _entry(found: Detection) -> dict[str, Any]:
    return {"box": [round(edge, 2) for edge in found.box], "score": found.score, "cell": found.cell}


def _place(found: Detection) -> str:
    """A box in words: its range along each axis."""
    left, top, right, bottom = (round(edge) for edge in found.box)
    return f"x {left}–{right}, y {top}–{bottom}"


def _windows(found: Sequence[Detection]) -> str:
    return f", {len(found)} windows" if len(found) > 1 else ""


def _parser(command: str) -> argparse.ArgumentParser:
    parser = new_parser(command, ABOUT[command], WRITES[command])
    several = "; may be repeated" if command == "heatmap" else " of the class shown first"
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--class", dest="classes", action="append", metavar="CLASS", help=f"name or number{several}")
    if command == "heatmap":
        which.add_argument("--top", type=count, metavar="N", help="the N classes with the highest scores")
        parser.add_argument(
            "--threshold", type=number, default=0.5, metavar="P", help="lowest probability of a window (default: 0.5)"
        )
        parser.add_argument(
            "--boxes",
            type=count,
            default=BOXES,
            metavar="N",
            help=f"largest number of windows to draw for a class (default: {BOXES})",
        )
    add_reading(parser)
    return parser
