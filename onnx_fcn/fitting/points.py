"""Labels as points in CSV: columns x, y and label, as many coordinates as the image has axes, and perhaps its name.

A fraction belongs to the pixel that contains it. Other columns are ignored.
"""

from __future__ import annotations

import array
import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np

from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.drawings import Drawing
from onnx_fcn.fitting.reading import LIMIT, read_bytes
from onnx_fcn.fitting.shapes import Points

__all__ = ["draw_csv"]


#: The columns of coordinates, the last axis of an image first.
COORDINATES = ("x", "y", "z")


def draw_csv(path: str, rank: int) -> dict[str | None, Drawing]:
    """The points in a file, by the names of images; under None, if the file has no such column.

    Rows without a label are counted.

    Raises:
        OptionError: if a column is missing, or a row is not valid.
    """
    rows = _rows(path)
    columns = _columns(path, next(rows, (1, []))[1], rank)
    axes = [columns[name] for name in reversed(COORDINATES[:rank])]
    found: dict[str | None, tuple[Drawing, array.array[float], array.array[int]]] = {}
    for line, row in rows:
        image = _cell(row, columns["image"]) if "image" in columns else None
        if image == "":
            raise OptionError(f"line {line} of '{path}' names no image")
        drawing, places, labels = found.setdefault(image, (Drawing(), array.array("d"), array.array("q")))
        if label := _cell(row, columns["label"]):
            places.extend(_place(path, line, row, axes))
            labels.append(drawing.label(label))
        else:
            drawing.unnamed += 1
    for drawing, places, labels in found.values():
        if labels:
            drawing.add(Points(np.array(places).reshape(-1, rank), np.array(labels)))
    return {image: drawing for image, (drawing, *_) in found.items()}


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, cells) of each row that is not empty."""
    try:
        reader = csv.reader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except UnicodeDecodeError:
        raise OptionError(f"'{path}' is not CSV: it is not text in UTF-8") from None
    except csv.Error:
        raise OptionError(
            f"'{path}' is not CSV: line {reader.line_num} cannot be read; is a quote left open?"
        ) from None


def _columns(path: str, header: Sequence[str], rank: int) -> dict[str, int]:
    """Where the columns are that are needed, and that of the image's name, if there is one."""
    columns = {name.strip().lower(): k for k, name in reversed(list(enumerate(header)))}
    needed = [*COORDINATES[:rank], "label"]
    for name in needed:
        if name not in columns:
            kind = "one axis" if rank == 1 else f"{rank} axes"
            raise OptionError(
                f"'{path}' has no column '{name}': for images with {kind}, its first line is {','.join(needed)}, or "
                f"{','.join(['image', *needed])}"
            )
    return {name: columns[name] for name in (*needed, "image") if name in columns}


def _cell(row: Sequence[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def _place(path: str, line: int, row: Sequence[str], axes: Sequence[int]) -> list[float]:
    """The coordinates in a row, in the order of the image's axes."""
    place = []
    for column in axes:
        try:
            place.append(float(_cell(row, column)))
        except ValueError:
            raise OptionError(f"line {line} of '{path}' has a coordinate that is not a number") from None
        if not abs(place[-1]) < LIMIT:
            raise OptionError(
                f"line {line} of '{path}' has the coordinate {place[-1]:g}, which is not a pixel of an image"
            )
    return place
