"""Labels in COCO's JSON: polygons, run-length encodings and boxes, of many images in one file.

A box without a segmentation is an object's window, and labels the pixel in its middle, or all its pixels. Areas of
crowds have no label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.drawings import UNLABELLED, Drawing
from onnx_fcn.fitting.reading import LIMIT, places_of
from onnx_fcn.fitting.shapes import Area, Runs

__all__ = ["draw_coco", "is_coco"]


def is_coco(content: Any) -> bool:
    """Is the content of a JSON file COCO's?"""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def draw_coco(path: str, content: dict[str, Any], boxes: str) -> tuple[dict[str | None, Drawing], list[str]]:
    """What a file draws, by the names of images, and the names of its categories by their ids.

    Args:
        path: the file, for messages.
        content: its content.
        boxes: what a box labels, its ``centre`` or all of it (``fill``).

    Raises:
        OptionError: if it is not valid.
    """
    categories = {key: str(row.get("name", key)) for key, row in _rows(path, content, "categories")}
    files: dict[int | str, str] = {}
    drawings: dict[str | None, Drawing] = {}
    for key, row in _rows(path, content, "images"):
        file = row.get("file_name")
        if not isinstance(file, str) or file in drawings:
            raise OptionError(f"image {key} in '{path}' has no 'file_name', or that of another one")
        files[key], drawings[file] = file, Drawing(_size_of(row))
    for number, row in enumerate(content["annotations"], 1):
        where = f"annotation {number} in '{path}'"
        if not isinstance(row, dict):
            raise OptionError(f"{where} is not a COCO annotation")
        for key, known in (("image_id", files), ("category_id", categories)):
            if not isinstance(row.get(key), int | str) or row[key] not in known:
                raise OptionError(f"{where} has the {key} {row.get(key)!r:.40}, which is not listed")
        drawing = drawings[files[row["image_id"]]]
        label = UNLABELLED if row.get("iscrowd") else drawing.label(categories[row["category_id"]])
        _draw(drawing, row, label, boxes, where)
    order = sorted(categories, key=lambda key: (isinstance(key, str), key))
    return drawings, list(dict.fromkeys(categories[key] for key in order))


def _rows(path: str, content: dict[str, Any], table: str) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """(id, row) of each row of a table; ids are different."""
    seen = set()
    rows = content.get(table)
    for row in rows if isinstance(rows, list) else ():
        key = row.get("id") if isinstance(row, dict) else None
        if not isinstance(key, int | str) or key in seen:
            raise OptionError(f"'{path}' has a row in '{table}' without an id of its own")
        seen.add(key)
        yield key, row


def _size_of(row: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of an image, if it has them."""
    height, width = row.get("height"), row.get("width")
    if isinstance(height, int) and isinstance(width, int) and 0 < height < LIMIT and 0 < width < LIMIT:
        return height, width
    return None


def _draw(drawing: Drawing, row: dict[str, Any], label: int, boxes: str, where: str) -> None:
    """Draw an annotation: its segmentation, or else its box."""
    segmentation = row.get("segmentation")
    if isinstance(segmentation, dict):
        drawing.add(_runs_of(segmentation, drawing, label, where))
    elif isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2:
                raise OptionError(f"{where} has a polygon that is not a list [x, y, x, y, …]")
            pairs = list(zip(polygon[::2], polygon[1::2]))
            drawing.add(Area.of([places_of(pairs, where, 3)], label))
    else:
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            raise OptionError(f"{where} has neither a segmentation nor a box [x, y, width, height]")
        corner, extent = places_of([box[:2], box[2:]], where)
        if extent.min() < 0:
            raise OptionError(f"{where} has a box whose width or height is negative: {box}")
        if boxes == "fill":
            corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
            drawing.add(Area.of([corner + corners * extent], label))
        else:
            drawing.add_points((corner + extent / 2)[None], label)


def _runs_of(encoded: dict[str, Any], drawing: Drawing, label: int, where: str) -> Runs:
    """A run-length encoding: {"size": [height, width], "counts": list, or COCO's text}. All have the image's size."""
    shape, counts = encoded.get("size"), encoded.get("counts")
    if not isinstance(shape, list) or [isinstance(n, int) and 0 < n < LIMIT for n in shape] != [True, True]:
        raise OptionError(f"{where} has a run-length encoding without a size [height, width]")
    height, width = shape
    drawing.size = size = drawing.size or (height, width)
    if size != (height, width):
        raise OptionError(f"{where} has runs for {height}×{width} pixels, and its image has {size[0]}×{size[1]}")
    runs = _decoded(counts, where) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(n, int) and n >= 0 for n in runs):
        raise OptionError(f"{where} has a run-length encoding whose counts are not numbers of pixels")
    if sum(runs) != height * width:
        raise OptionError(f"{where} has runs of {_count(sum(runs))} pixels, and {height}×{width} are {height * width}")
    stops: Array = np.cumsum(np.array(runs, np.int64))
    return Runs(stops, height, label)


def _count(number: int) -> str:
    """A number of pixels; numbers that no image has are rounded."""
    return str(number) if number < LIMIT**2 else f"{number:.4g}"


def _decoded(text: str, where: str) -> list[int]:
    """COCO's compressed counts: 5 bits a letter, low ones first; from the fourth on, the change from two before."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise OptionError(f"{where} has a run-length encoding that is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more letters follow
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise OptionError(f"{where} has a run-length encoding that is cut short")
    return counts
