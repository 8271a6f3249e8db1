"""The commands that draw: `heatmap`, `segment` and `page`.

Each reads a converted model and a picture, and writes files whose suffixes give the format: pictures, the numbers as
.npy, the findings as .json, the page as .html. A file is written whole or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fcn.cli.arguments import PREPROCESSING, add_network, add_preprocessing, count, number, numbers, preprocessing
from onnx_fcn.errors import OptionError
from onnx_fcn.files import drafted, target_of
from onnx_fcn.images.image import open_image, pixels_of
from onnx_fcn.running.dense_model import ACTIVATIONS, DenseModel, DenseResult, Detection, detect, ranking
from onnx_fcn.tables import Table, pixels, size_text

__all__ = ["run"]


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")

#: Boxes of one class beyond which a heat map is hard to read.
BOXES = 20

ABOUT = {
    "heatmap": "Show where a class is: a heat map over the picture, with the windows in which it was found.",
    "segment": "Show the best class at every pixel, with a legend.",
    "page": "Write a page to explore the answers: one HTML file that works offline.",
}

#: What a command writes, for the end of its help text.
WRITES = {
    "heatmap": "The suffix of an output gives its format: .png, .jpg, .webp, .pdf or .svg for the picture,\n"
    ".npy for the scores at every pixel, .json for the windows that were found. Without --class the heat\n"
    "map shows the class with the highest score.",
    "segment": "The suffix of an output gives its format: .png, .jpg, .webp, .pdf or .svg for the picture,\n"
    ".npy for the class at every pixel, .json for the share of each class.",
    "page": "The output is an .html file.",
}

DEFAULT = "The default is unit, or raw for networks that read integers."

#: The files that a command writes, and rows of its report.
Shown = tuple[dict[Path, bytes], Sequence[tuple[str, ...]]]


@dataclass(frozen=True)
class View:
    """A picture and its answers at one or more sizes, the input of all three commands."""

    model: DenseModel
    name: str
    pixels: np.ndarray[Any, Any]
    results: Sequence[DenseResult]

    @property
    def first(self) -> DenseResult:
        return self.results[0]

    @property
    def activation(self) -> str:
        """What the scores are, in words."""
        return {"softmax": "softmax of the scores", "sigmoid": "sigmoid of the scores"}.get(
            self.first.activation, "score"
        )

    def class_text(self, index: int) -> str:
        """A class by its name and number, or by its number if it has no name."""
        label = self.first.labels[index]
        return f"class {index}" if label == str(index) else f"{label} (class {index})"

    def segment_text(self, index: int) -> str:
        """A class of a class map, by its name and number."""
        return self.first.names[index] if self.first.is_single else self.class_text(index)

    def rows(self) -> list[tuple[str, ...]]:
        """What was read and run, as rows of a table."""
        shape, geometry = self.first.map.shape, self.model.answers
        sizes = [size_text(r.grid.size) for r in self.results]
        read = "" if sizes == [size_text(self.first.size)] else f", read at {' and '.join(sizes)}"
        enlarged = " (enlarged: it is smaller than a window)" if self.is_enlarged else ""
        windows = (
            f"{size_text(self.model.window)} windows every {pixels([float(n) for n in geometry.stride], square=True)}"
        )
        return [
            ("picture", f"{self.name}, {size_text(self.first.size)} pixels{read}{enlarged}"),
            ("answers", f"'{self.model.output}', {size_text(shape)}: {windows}; {self.activation}"),
        ]

    @property
    def is_enlarged(self) -> bool:
        """Was the picture too small for a single window?"""
        return any(have < window for have, window in zip(self.first.size, self.model.window))


def run(arguments: Sequence[str]) -> Sequence[Table]:
    """Run one of the commands, named by the first argument; returns its report.

    Raises:
        FcnError: if it fails.
        SystemExit: if the arguments are invalid, or ask for help.
    """
    command = arguments[0]
    given = _parser(command).parse_args(arguments[1:])
    outputs = _outputs(given)
    view = _view(given)
    show = {"heatmap": _heatmap, "segment": _segment, "page": _page}[command]
    files, rows = show(given, view, outputs)
    _write(files)
    return [] if given.quiet else [Table("", (), (*view.rows(), *rows, ("written", ", ".join(map(str, outputs)))))]


def _view(given: argparse.Namespace) -> View:
    model = DenseModel(
        given.model,
        output=given.output,
        preprocess=preprocessing(given, given.pixel_scale),
        labels=given.labels,
        activation=given.activation,
        providers=given.providers,
    )
    if len(model.window) != 2:
        axes = "1 axis" if len(model.window) == 1 else f"{len(model.window)} axes"
        raise OptionError(f"the network reads images with {axes}, and pictures have two")
    by_size: dict[tuple[int, ...], DenseResult] = {}
    with contextlib.closing(open_image(given.picture, 2, model.channels)) as image:
        for scale in given.scale:
            result = model.run(image, scale)
            by_size.setdefault(result.grid.size, result)
    picture = pixels_of(given.picture, model.channels)
    if model.channels == 1 and (own := pixels_of(given.picture)).shape[:2] == picture.shape[:2]:
        picture = own  # in its own colours
    results = list(by_size.values())
    if not all(np.isfinite(r.map).all() for r in results):
        raise OptionError("the network's scores are not all finite: it may need another --preprocess")
    return View(model, str(given.picture), picture, [replace(r, activation=results[0].activation) for r in results])


def _heatmap(given: argparse.Namespace, view: View, outputs: Sequence[Path]) -> Shown:
    first = view.first
    peaks = np.max([r.probabilities.reshape(len(r.map), -1).max(axis=1) for r in view.results], axis=0)
    chosen = [first.class_index(name) for name in given.classes or ()] or ranking(view.results)[: given.top or 1]
    found = {k: _best_windows(view, k, given.threshold, given.boxes) for k in chosen}
    heat = np.stack([np.max([r.at_pixels(r.probabilities[k]) for r in view.results], axis=0) for k in chosen])
    files = {}
    for output in outputs:
        if _kind(output) == "npy":
            files[output] = _npy(heat)
        elif _kind(output) == "json":
            classes = [
                {
                    "class": k,
                    "label": first.labels[k],
                    "peak": float(peaks[k]),
                    "windows": [_entry(d) for d in found[k]],
                }
                for k in chosen
            ]
            files[output] = _json(view, classes=classes)
        else:
            from onnx_fcn.viewing.drawing import Panel, encode, heat_map, to_rgb

            panels = [
                Panel(f"{view.class_text(k)}, best {peaks[k]:.2f}{_windows(found[k])}", values, found[k])
                for k, values in zip(chosen, heat)
            ]
            title = f"{Path(view.name).name} · {size_text(view.model.window)} windows"
            files[output] = encode(heat_map(to_rgb(view.pixels), panels, title, view.activation), _kind(output))
    rows = [(view.class_text(k), f"best {peaks[k]:.3f} in {_place(found[k][0])}{_windows(found[k])}") for k in chosen]
    return files, rows


def _best_windows(view: View, index: int, threshold: float, count: int) -> list[Detection]:
    """The windows of a class above the threshold, and at least the best one."""
    return detect(view.results, index, count, threshold=threshold) or detect(view.results, index)


def _segment(given: argparse.Namespace, view: View, outputs: Sequence[Path]) -> Shown:
    if len(view.results) > 1:
        raise OptionError("a class map has one size: give one --scale")
    first = view.first
    classes = first.classes_at_pixels()
    names = replace(first, labels=first.names)
    background = None if given.background is None else names.class_index(given.background)
    found, counts = np.unique(classes, return_counts=True)
    shares = [(int(found[k]), float(counts[k] / classes.size)) for k in np.argsort(-counts, kind="stable")]
    files = {}
    for output in outputs:
        if _kind(output) == "npy":
            files[output] = _npy(classes.astype(np.min_scalar_type(len(first.names) - 1)))
        elif _kind(output) == "json":
            values = [{"class": k, "label": first.names[k], "share": share} for k, share in shares]
            files[output] = _json(view, classes=values)
        else:
            from onnx_fcn.viewing.drawing import class_map, encode, to_rgb

            title = f"{Path(view.name).name} · the best class of each {size_text(view.model.window)} window"
            figure = class_map(to_rgb(view.pixels), classes, first.names, title, background)
            files[output] = encode(figure, _kind(output))
    rows = [(view.segment_text(k), f"{share:.1%} of the picture") for k, share in shares[:5]]
    return files, [*rows, ("…", f"{len(shares) - 5} more")] if len(shares) > 5 else rows


def _page(given: argparse.Namespace, view: View, outputs: Sequence[Path]) -> Shown:
    from onnx_fcn.viewing.page import page

    if len(view.results) > 1:
        raise OptionError("a page has one size: give one --scale")
    chosen = None if given.classes is None else view.first.class_index(given.classes[-1])
    text = page(view.first, view.pixels, Path(view.name).name, view.activation, chosen)
    return dict.fromkeys(outputs, text.encode()), []


def _outputs(given: argparse.Namespace) -> list[Path]:
    """The files to write.

    Raises:
        OptionError: if one has an unknown suffix, or is also an input.
    """
    allowed = (".html", ".htm") if given.command == "page" else (*PICTURES, ".npy", ".json")
    read = {os.path.realpath(p) for p in (given.model, given.picture, given.labels) if p is not None}
    outputs = [Path(p) for p in given.outputs]
    for path in outputs:
        if path.suffix.lower() not in allowed:
            raise OptionError(f"cannot write '{path}': its suffix must be one of {', '.join(allowed)}")
        if os.path.realpath(path) in read:
            raise OptionError(f"cannot write '{path}': it is an input")
        target_of(path)
    return outputs


def _write(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: each is written beside its target before the first is renamed."""
    with contextlib.ExitStack() as stack:
        drafts = [(stack.enter_context(drafted(path)), content) for path, content in files.items()]
        for draft, content in drafts:
            draft.write(content)
        for draft, _ in drafts:
            draft.commit()


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _npy(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _json(view: View, **more: Any) -> bytes:
    model, first = view.model, view.first
    values = {
        "version": 1,
        "picture": view.name,
        "size": first.size,
        "read_at": [r.grid.size for r in view.results],
        "output": model.output,
        "window": model.window,
        "stride": model.answers.stride,
        "grids": [r.grid.shape for r in view.results],
        "activation": first.activation,
        **more,
    }
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _entry(found: Detection) -> dict[str, Any]:
    return {"box": [round(edge, 2) for edge in found.box], "score": found.score, "cell": found.cell}


def _place(found: Detection) -> str:
    """A box in words: its range along each axis."""
    left, top, right, bottom = (round(edge) for edge in found.box)
    return f"x {left}–{right}, y {top}–{bottom}"


def _windows(found: Sequence[Detection]) -> str:
    return f", {len(found)} windows" if len(found) > 1 else ""


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"onnx-fcn {command}",
        description=ABOUT[command],
        epilog=f"{WRITES[command]}\n\n{PREPROCESSING}\n{DEFAULT}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
    parser.add_argument("model", help="a converted model")
    parser.add_argument("picture", help="a picture, or an array (height, width[, channels]) in .npy")
    parser.add_argument("outputs", nargs="+", metavar="output", help="the files to write")
    if command in ("heatmap", "page"):
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
    if command == "segment":
        parser.add_argument("--background", metavar="CLASS", help="a class to leave uncoloured")
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    add_preprocessing(parser, "pixel-scale")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="auto", help="how scores become probabilities")
    parser.add_argument(
        "--scale", type=numbers, default=(1.0,), metavar="F[,F…]", help="factors by which to resize the picture first"
    )
    add_network(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser
