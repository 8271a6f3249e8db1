"""What exporters store in a model's metadata beside the graph: the names of its classes, and its image size.

There is no standard. Ultralytics writes ``names``, a Python dict such as ``{0: 'cat', 1: 'dog'}``, and ``imgsz``;
others write JSON under other keys. Anything that cannot be read is passed over, since no conversion depends on it.
"""

from __future__ import annotations

import ast
import math
from typing import Any

from onnx import ModelProto

from onnx_fcn.model.entries import MOST_LETTERS, MOST_VALUES, name_of, parse

__all__ = ["class_names", "image_size"]


#: Keys under which exporters store the names of the classes, and the size of the image; the first that can be read
#: counts.
NAMES = ("names", "labels", "class_names", "classes", "id2label")
SIZES = ("imgsz", "image_size", "input_size", "img_size")

#: The most pixels along an axis, and of an image, that are a size.
MOST_ALONG, MOST_PIXELS = 1 << 13, 1 << 24


def class_names(model: ModelProto) -> tuple[str, ...]:
    """The names of the classes in the order of the scores; empty if the metadata have none."""
    for key in NAMES:
        found = _names(_value(model, key))
        if found:
            return found
    return ()


def image_size(model: ModelProto) -> tuple[int, ...]:
    """The size of the image that the network was made for, (height, width) or one number for all axes; or empty."""
    for key in SIZES:
        value = _value(model, key)
        size = tuple(value) if isinstance(value, list | tuple) else (value,)
        if 1 <= len(size) <= 3 and all(type(n) is int and 0 < n <= MOST_ALONG for n in size):
            return size if math.prod(size) <= MOST_PIXELS else ()
    return ()


def _value(model: ModelProto, key: str) -> Any:
    """The value of an entry, as JSON or as a literal of Python; None if it is neither, or missing."""
    text = next((e.value for e in model.metadata_props if e.key == key), None)
    if not isinstance(text, str) or len(text) > MOST_LETTERS:
        return None
    for read in (parse, ast.literal_eval):
        try:
            return read(text)
        except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
            continue  # it is not of this kind
    return None


def _names(value: Any) -> tuple[str, ...]:
    """A list of names, or an object from the numbers 0, 1, … to names; empty for anything else."""
    if isinstance(value, dict):
        numbered = {str(key): name for key, name in value.items()}
        value = [numbered.get(str(k)) for k in range(len(numbered))] if len(numbered) == len(value) else None
    if not isinstance(value, list | tuple) or len(value) > MOST_VALUES:
        return ()
    try:
        return tuple(map(name_of, value))
    except ValueError:
        return ()
