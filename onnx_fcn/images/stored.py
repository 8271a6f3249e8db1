"""Arrays as they lie in files and in memory, a part at a time: .npy, zarr, sound as .wav, TIFF, and pictures.

What a file is, its first bytes say. What it claims of itself is compared with what is there before anything is read:
a header of some bytes may speak of any number of pixels.
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

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError, reason_of
from onnx_fcn.images import memory

__all__ = [
    "MODES",
    "TIFF_SIGNATURES",
    "Box",
    "Picture",
    "Stored",
    "check_room",
    "missing",
    "sentence",
    "times",
    "white_of",
]


Box = tuple[slice, ...]

#: A file, a folder of a zarr store, an array (height, width) or (height, width, channels), or a `PIL.Image.Image`.
Picture = str | os.PathLike[str] | Any

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Packages by their names in `import`: what they are called, and the extra that they come with.
EXTRAS = {"PIL": ("Pillow", "view"), "matplotlib": ("matplotlib", "view")}


@dataclass(frozen=True)
class Stored:
    """An array that is read by part.

    Attributes:
        name: how sentences call it.
        shape: of all of it.
        dtype: of what `fetch` gives.
        fetch: reads a part.
        white: the number that stands for white, or for full scale.
        samples: the axis of colours or bands, where the file says which it is.
        tone: what these are (`channels`); empty where nothing says it.
        alpha: how many of the samples, the last ones, are no colours.
        rank: axes of the image, where the file can hold no other.
        files: that it is read from.
        close: lets go of them.
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
    close: Callable[[], None] = lambda: None


@contextlib.contextmanager
def sentence(name: str) -> Iterator[None]:
    """Whatever a library says of a bad file, in one sentence; its own words mean nothing to who has the file."""
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
        raise missing(f"reading {name}", error) from None
    except FileNotFoundError:
        raise OptionError(f"{name} does not exist") from None
    except Exception as error:  # each library has its own
        if isinstance(error, ValueError) and "requires the 'imagecodecs' package" in str(error):
            raise missing(f"reading {name}", ImportError(name="imagecodecs")) from None
        reason = "it is damaged or cut short, or of a kind that is not known here"
        if isinstance(error, OSError) and error.strerror:
            reason = reason_of(error)
        raise OptionError(f"{name} cannot be read as an image: {reason}") from None
    finally:
        logger.setLevel(before)


def missing(what: str, error: ImportError) -> OptionError:
    """The sentence for a package that is not there."""
    package = (error.name or "a package").partition(".")[0]
    called, extra = EXTRAS.get(package, (package, "tiles"))
    return OptionError(f"{what} needs {called}, which is not installed: pip install 'onnx-fcn[{extra}]'")


def check_room(name: str, nbytes: int, what: str) -> None:
    """Raises OptionError: reading needs more memory at once than there is."""
    if nbytes > (free := memory.available()):
        takes = f"{what} takes {min(nbytes, 10**30) / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
        raise OptionError(f"{name} cannot be read: {takes}")


def white_of(dtype: np.dtype[Any]) -> float:
    """Full scale: the largest of unsigned integers, and 1 of everything else."""
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


#: What Pillow decodes to what: grey or RGB, each perhaps with alpha. All else becomes RGB.
MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA"}


def times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
