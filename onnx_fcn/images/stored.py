"""An array in a file or in memory that is read in parts, and errors of libraries as sentences.

The size that a file declares is compared with the file's own size before anything is read: a header of some bytes may
declare any number of pixels.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fcn import memory
from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError, reason_of
from onnx_fcn.images.placement import Placed

__all__ = [
    "MODES",
    "TIFF_SIGNATURES",
    "Box",
    "Picture",
    "Stored",
    "check_room",
    "errors_as_sentences",
    "missing_package",
    "size_text",
    "white_of",
]


Box = tuple[slice, ...]

#: A file, the folder of a zarr store, an array (height, width) or (height, width, channels), or a `PIL.Image.Image`.
Picture = str | os.PathLike[str] | Any

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Import name of a package → its name, and the extra that installs it.
EXTRAS = {
    "PIL": ("Pillow", "view"),
    "matplotlib": ("matplotlib", "view"),
    "rasterio": ("rasterio", "geo"),
    "sklearn": ("scikit-learn", "fit"),
}


@dataclass(frozen=True)
class Stored:
    """An array that is read in parts.

    Attributes:
        name: its name in messages.
        shape: shape of the whole array.
        dtype: type of what `fetch` returns.
        fetch: reads a part.
        white: the number for white, or for full scale.
        samples: the axis of colours or bands, if the file names one.
        tone: what the samples are (`channels`); empty if unknown.
        alpha: number of samples at the end that are not colours.
        rank: number of axes of the image, if the format has only one.
        files: the files that it is read from.
        placed: where its pixels lie, and which of its axes these are; None if the file does not say it.
        close: closes them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fetch: Callable[[Box], Array]
    white: float
    samples: int | None = None
    tone: str = ""
    alpha: int = 0
    rank: int | None = None
    files: tuple[str, ...] = ()
    placed: Placed | None = None
    close: Callable[[], None] = lambda: None


@contextlib.contextmanager
def errors_as_sentences(name: str) -> Iterator[None]:
    """Turns a library's error about a file into one sentence: its own words mean nothing to the user."""
    logger = logging.getLogger("tifffile")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OptionError, MemoryError):
        raise
    except ImportError as error:
        raise missing_package(f"reading {name}", error) from None
    except FileNotFoundError:
        raise OptionError(f"{name} does not exist") from None
    except Exception as error:  # each library has its own
        if isinstance(error, ValueError) and "requires the 'imagecodecs' package" in str(error):
            raise missing_package(f"reading {name}", ImportError(name="imagecodecs")) from None
        reason = "it is damaged, cut short, or in an unknown format"
        if isinstance(error, OSError) and error.strerror:
            reason = reason_of(error)
        raise OptionError(f"{name} cannot be read as an image: {reason}") from None
    finally:
        logger.setLevel(before)


def missing_package(what: str, error: ImportError) -> OptionError:
    """The error for a package that is not installed."""
    package = (error.name or "a package").partition(".")[0]
    called, extra = EXTRAS.get(package, (package, "tiles"))
    return OptionError(f"{what} needs {called}, which is not installed: pip install 'onnx-fcn[{extra}]'")


def check_room(name: str, nbytes: int, what: str) -> None:
    """Raises OptionError if reading needs more memory at once than is free."""
    if nbytes > (free := memory.available()):
        takes = f"{what} takes {min(nbytes, 10**30) / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        raise OptionError(f"{name} cannot be read: {takes}")


def white_of(dtype: np.dtype[Any]) -> float:
    """Full scale: the largest value of an unsigned integer type, 1 for every other type."""
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


#: Pillow's modes that stay grey or carry alpha, and what they are converted to. All others become RGB.
MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA"}


def size_text(shape: Sequence[int]) -> str:
    """(224, 256) → 224×256."""
    return "×".join(map(str, shape))
