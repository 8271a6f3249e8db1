"""Files of labels as text: JSON, and coordinates in it, with errors as sentences."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError, reason_of
from onnx_fcn.images.stored import check_room

__all__ = ["LIMIT", "PARSED", "check_places", "places_of", "read_bytes", "read_json"]


#: Coordinates and sizes are below this number of pixels.
LIMIT = 2**31

#: Bytes of Python objects for a byte of text, at most.
PARSED = 20


def read_bytes(path: str) -> bytes:
    """The content of a file that is parsed as a whole.

    Raises:
        OptionError: if it cannot be read, or needs more memory than is free.
    """
    try:
        check_room(f"'{path}'", PARSED * os.path.getsize(path), "parsing it")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise OptionError(f"'{path}' cannot be read: {reason_of(error)}") from None


def read_json(path: str) -> Any:
    """The content of a JSON file.

    Raises:
        OptionError: if it is not JSON, or cannot be read.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise OptionError(f"'{path}' is not JSON: line {error.lineno} cannot be read") from None
    except RecursionError:
        raise OptionError(f"'{path}' is nested too deeply to be labels") from None
    except ValueError:  # not UTF-8, or a number of thousands of digits
        raise OptionError(f"'{path}' is not JSON: it contains what is neither text nor a number") from None


def places_of(positions: Any, where: str, least: int = 1) -> Array:
    """A list of positions [x, y] as places (count, rows and columns); what follows y is ignored.

    Raises:
        OptionError: if it is something else, or has fewer positions than `least`; if a coordinate is no pixel.
    """
    try:
        places = np.asarray(positions, np.float64)
    except (TypeError, ValueError, OverflowError):
        places = np.empty(0)
    if places.ndim != 2 or places.shape[1] < 2 or len(places) < least:
        raise OptionError(f"{where} has coordinates that are not a list of positions [x, y]")
    places = places[:, 1::-1]
    check_places(places, where)
    return places


def check_places(places: Array, where: str) -> None:
    """Raises OptionError if a coordinate is no pixel that an image can have."""
    wrong = places[~(np.abs(places) < LIMIT)]
    if wrong.size:
        raise OptionError(f"{where} has the coordinate {wrong.flat[0]:g}, which is not a pixel of an image")
