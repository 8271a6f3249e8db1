"""What the commands that draw share: the picture and its answers, the files that they write, and common options.

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

from onnx_fcn.cli.arguments import PREPROCESSING, add_network, add_preprocessing, numbers, preprocessing
from onnx_fcn.errors import OptionError
from onnx_fcn.files import drafted, target_of
from onnx_fcn.images.image import open_image, pixels_of
from onnx_fcn.running.dense_model import ACTIVATIONS, DenseModel, DenseResult
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tables import Table, pixels, size_text

__all__ = [
    "Shown",
    "View",
    "add_reading",
    "json_of",
    "kind_of",
    "new_parser",
    "npy_of",
    "outputs_of",
    "report_of",
    "view_of",
    "write",
]


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")

DEFAULT = "The default is what the file says; if it says nothing, unit, or raw for networks that read integers."

#: The files that a command writes, and rows of its report.
Shown = tuple[dict[Path, bytes], Sequence[tuple[str, ...]]]


@dataclass(frozen=True)
class View:
    """A picture and its answers at one or more sizes, the input of every command.

    `formula` is for stored numbers; `numbers` says what these are, if they are not brightnesses.
    """

    model: DenseModel
    name: str
    pixels: np.ndarray[Any, Any]
    results: Sequence[DenseResult]
    formula: Preprocessing
    numbers: str = ""

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
            ("network", f"gets {self.formula}{self.numbers}"),
            ("answers", f"'{self.model.output}', {size_text(shape)}: {windows}; {self.activation}"),
        ]

    @property
    def is_enlarged(self) -> bool:
        """Was the picture too small for a single window?"""
        return any(have < window for have, window in zip(self.first.size, self.model.window))


def view_of(given: argparse.Namespace) -> View:
    """The picture and its answers at each of the sizes that are asked for.

    Raises:
        ModelError: if the model cannot be used, or does not run.
        OptionError: if the picture or an option does not fit it, or its scores are not finite.
    """
    model = DenseModel(
        given.model,
        output=given.output,
        preprocess=preprocessing(given, given.pixel_scale, full_scale=255),
        labels=given.labels,
        activation=given.activation,
        providers=given.providers,
    )
    if len(model.window) != 2:
        axes = "1 axis" if len(model.window) == 1 else f"{len(model.window)} axes"
        raise OptionError(f"the network reads images with {axes}, and pictures have two")
    by_size: dict[tuple[int, ...], DenseResult] = {}
    with contextlib.closing(open_image(given.picture, 2, model.channels)) as image:
        formula = model.formula(image)
        for scale in given.scale:
            result = model.run(image, scale)
            by_size.setdefault(result.grid.size, result)
        kind = image.dtype
    are_numbers = model.takes_stored and kind.kind != "u"
    shown = _by_own_range if are_numbers else pixels_of
    picture = shown(given.picture, model.channels)
    if model.channels == 1 and (own := shown(given.picture, None)).shape[:2] == picture.shape[:2]:
        picture = own  # in its own colours
    results = list(by_size.values())
    if not all(np.isfinite(r.map).all() for r in results):
        raise OptionError("the network's scores are not all finite: it may need another --preprocess")
    results = [replace(r, activation=results[0].activation) for r in results]
    numbers = f" of {kind} as it is stored" if are_numbers else ""
    return View(model, str(given.picture), picture, results, formula, numbers)


def _by_own_range(source: str, channels: int | None) -> np.ndarray[Any, Any]:
    """Numbers that are not brightnesses as a picture to draw on: (H, W, C) in float32, from 0 to 255.

    Raises:
        OptionError: if it cannot be read.
    """
    with contextlib.closing(open_image(source, 2, channels)) as image:
        values = np.moveaxis(image.whole(), 0, -1).astype(np.float32)
    low, high = values.min(), values.max()
    values -= low
    values *= np.float32(255 / (high - low)) if high > low else 0
    return values


def outputs_of(
    given: argparse.Namespace, allowed: Sequence[str] = (*PICTURES, ".npy", ".json", ".geojson")
) -> list[Path]:
    """The files to write.

    Raises:
        OptionError: if one has an unknown suffix, or is also an input.
    """
    inputs = given.model, given.picture, given.labels, getattr(given, "truth", None)
    read = {os.path.realpath(p) for p in inputs if p is not None}
    outputs = [Path(p) for p in given.outputs]
    for path in outputs:
        if path.suffix.lower() not in allowed:
            raise OptionError(f"cannot write '{path}': its suffix must be one of {', '.join(allowed)}")
        if os.path.realpath(path) in read:
            raise OptionError(f"cannot write '{path}': it is an input")
        target_of(path)
    return outputs


def write(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: each is written beside its target before the first is renamed."""
    with contextlib.ExitStack() as stack:
        drafts = [(stack.enter_context(drafted(path)), content) for path, content in files.items()]
        for draft, content in drafts:
            draft.write(content)
        for draft, _ in drafts:
            draft.commit()


def kind_of(path: Path) -> str:
    """The format of a file: its suffix."""
    return path.suffix.lower().removeprefix(".")


def npy_of(values: np.ndarray[Any, Any]) -> bytes:
    """An array as a .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def json_of(view: View, **more: Any) -> bytes:
    """What was read and found as a .json file."""
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
        "preprocessing": str(view.formula),
        **more,
    }
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def report_of(view: View, rows: Sequence[tuple[str, ...]], outputs: Sequence[Path]) -> Table:
    """The report of a command."""
    return Table("", (), (*view.rows(), *rows, ("written", ", ".join(map(str, outputs)))))


def new_parser(command: str, about: str, writes: str) -> argparse.ArgumentParser:
    """A parser for a model, a picture, and the files to write."""
    parser = argparse.ArgumentParser(
        prog=f"onnx-fcn {command}",
        description=about,
        epilog=f"{writes}\n\n{PREPROCESSING}\n{DEFAULT}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a converted model")
    parser.add_argument("picture", help="a picture, or an array (height, width[, channels]) in .npy")
    parser.add_argument("outputs", nargs="+", metavar="output", help="the files to write")
    return parser


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Options for how the picture is read and run."""
    parser.add_argument(
        "--labels", metavar="FILE", help="names of the classes, one per line (default: those in the model)"
    )
    add_preprocessing(parser, "pixel-scale")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="auto", help="how scores become probabilities")
    parser.add_argument(
        "--scale", type=numbers, default=(1.0,), metavar="F[,F…]", help="factors by which to resize the picture first"
    )
    add_network(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
