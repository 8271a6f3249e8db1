"""Opening an image: the format is detected from the first bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from onnx_fcn.errors import OptionError
from onnx_fcn.images.formats import from_npy, from_numbers, from_object, from_picture, from_zarr
from onnx_fcn.images.sound import SOUND, from_wav
from onnx_fcn.images.stored import TIFF_SIGNATURES, Picture, Stored, errors_as_sentences
from onnx_fcn.images.tiff import open_tiff

__all__ = ["open_stored"]


def open_stored(source: Picture, level: int = 0, *, shown: bool = True) -> Stored:
    """The array in a file or in memory.

    Args:
        source: a file, an array, or a Pillow image.
        level: level of a pyramid; 0 is the finest.
        shown: read what is shown; otherwise a file's numbers as they are stored, such as the indices of a palette.

    Raises:
        OptionError: if it cannot be read, is not an image, or has no such level; if a package is missing.
    """
    if isinstance(source, np.ndarray):
        return from_numbers("the array", source.shape, source.dtype, lambda box: source[box])
    if not isinstance(source, (str, os.PathLike)):
        return from_object(source)
    name = os.fspath(source)
    with errors_as_sentences(f"'{name}'"):
        return _open(name, level, shown)


def _open(name: str, level: int, shown: bool) -> Stored:
    path = Path(name)
    if path.is_dir():
        return from_zarr(name, level, shown=shown)
    with path.open("rb") as file:
        start = file.read(12)
    if start[:4] in TIFF_SIGNATURES:
        return open_tiff(name, level, shown=shown)
    if level:
        raise OptionError(f"'{name}' is not a pyramid, so it has no level {level}")
    if start[:6] == b"\x93NUMPY":
        return from_npy(name, shown=shown)
    if start[:4] in SOUND and start[8:] == b"WAVE":
        return from_wav(name)
    return from_picture(name, shown=shown)
