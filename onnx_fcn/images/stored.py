"""Arrays as they lie in files and in memory, a part at a time: .npy, zarr, sound as .wav, TIFF, and pictures.

What a file is, its first bytes say. What it claims of itself is compared with what is there before anything is read:
a header of some bytes may speak of any number of pixels.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnx_fcn import memory
from onnx_fcn.errors import OptionError, reason_of
from onnx_fcn.images.channels import GREY, NUMBERS, RGB

__all__ = ["Picture", "Stored", "check_room", "missing", "sentence", "stored", "white_of"]

Array = np.ndarray[Any, Any]
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


def stored(source: Picture, level: int = 0) -> Stored:
    """The array in a file or in memory.

    Args:
        source: the file, the array, or an image of Pillow.
        level: of a pyramid; 0 is the finest.

    Raises:
        OptionError: it cannot be read, is no image, or has no such level; a package is missing.
    """
    if isinstance(source, np.ndarray):
        return _numbers("the array", source.shape, source.dtype, lambda box: source[box])
    if not isinstance(source, (str, os.PathLike)):
        return _object(source)
    name = os.fspath(source)
    with sentence(f"'{name}'"):
        return _opened(name, level)


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


def _opened(name: str, level: int) -> Stored:
    path = Path(name)
    if path.is_dir():
        return _zarr(name, level)
    with path.open("rb") as file:
        start = file.read(12)
    if start[:4] in TIFF_SIGNATURES:
        from onnx_fcn.images.tiff import tiff

        return tiff(name, level)
    if level:
        raise OptionError(f"'{name}' is no pyramid, so it has no level {level}")
    if start[:6] == b"\x93NUMPY":
        return _npy(name)
    if start[:4] in (b"RIFF", b"RIFX") and start[8:] == b"WAVE":
        return _wav(name)
    return _picture(name)


def _numbers(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fetch: Callable[[Box], Array], **more: Any
) -> Stored:
    """Numbers that nothing but their type says the meaning of; yes and no are white and black."""
    if dtype.kind != "b":
        return Stored(name, shape, dtype, fetch, white_of(dtype), **more)
    kind = np.dtype(np.uint8)
    return Stored(name, shape, kind, lambda box: fetch(box) * np.uint8(255), white_of(kind), **more)


def white_of(dtype: np.dtype[Any]) -> float:
    """Full scale: the largest of unsigned integers, and 1 of everything else."""
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


def _npy(name: str) -> Stored:
    """Mapped anew for each region: pages that were read once would count as memory until the end."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with open(name, "rb") as file:
        shape, by_columns, dtype = headers[np.lib.format.read_magic(file)](file)
        offset = file.tell()
        there = file.seek(0, os.SEEK_END)
    if dtype.hasobject:
        raise OptionError(f"'{name}' holds objects of Python, which are no pixels")
    if min(shape, default=0) < 0 or offset + math.prod(shape) * dtype.itemsize > there:
        raise OptionError(f"'{name}' is cut short: its header speaks of {_times(shape)} numbers, which are not there")
    order: Literal["F", "C"] = "F" if by_columns else "C"

    def fetch(box: Box) -> Array:
        return np.array(np.memmap(name, dtype, "r", offset, shape, order)[box])

    if 0 in shape:
        raise OptionError(f"'{name}' has no pixels: its shape is {shape}")
    return _numbers(f"'{name}'", shape, dtype, fetch, files=(name,))


def _zarr(name: str, level: int) -> Stored:
    import zarr

    try:
        store: Any = zarr.open(name, mode="r")
    except FileNotFoundError:
        raise OptionError(f"'{name}' is a folder, and no zarr store") from None
    if not hasattr(store, "shape"):  # a pyramid is a group of arrays, the finest first
        if str(level) not in store or not hasattr(store[str(level)], "shape"):
            raise OptionError(f"'{name}' is a group of arrays without a level '{level}'")
        store = store[str(level)]
    elif level:
        raise OptionError(f"'{name}' is no pyramid, so it has no level {level}")
    dtype = np.dtype(store.dtype)
    check_room(f"'{name}'", math.prod(store.chunks) * dtype.itemsize, "a chunk of it")
    return _numbers(f"'{name}'", tuple(store.shape), dtype, lambda box: np.asarray(store[box]), files=(name,))


def _wav(name: str) -> Stored:
    """Sound as (samples, channels), in integers as they are stored."""
    import wave

    file = wave.open(name, "rb")  # noqa: SIM115  (stays open as long as the image)
    channels, width = file.getnchannels(), file.getsampwidth()
    dtype = np.dtype({1: np.uint8, 2: np.int16, 3: np.int32, 4: np.int32}[width])

    def fetch(box: Box) -> Array:
        start, stop, _ = box[0].indices(file.getnframes())
        file.setpos(start)
        data = np.frombuffer(file.readframes(stop - start), np.uint8).reshape(stop - start, channels, width)
        if width == 3:  # the sign goes into a fourth byte
            data = np.concatenate([data, np.where(data[..., -1:] > 127, 255, 0).astype(np.uint8)], axis=-1)
        samples = np.ascontiguousarray(data).view(dtype.newbyteorder("<"))[..., 0]
        return samples[:, box[1]].astype(dtype)

    shape = (file.getnframes(), channels)
    white = white_of(dtype)
    return Stored(f"'{name}'", shape, dtype, fetch, white, 1, NUMBERS, rank=1, files=(name,), close=file.close)


# Pictures -------------------------------------------------------------------------------------------------------------

#: What Pillow decodes to what: grey or RGB, each perhaps with alpha. All else becomes RGB.
MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA"}


def _picture(name: str) -> Stored:
    """PNG, JPEG and whatever else Pillow reads; these have no regions, so the whole is decoded."""
    import PIL.Image

    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None  # what is too large the memory says
    try:
        with PIL.Image.open(name) as file:
            check_room(f"'{name}'", 2 * math.prod(file.size) * max(len(file.getbands()), 3), "decoding it")
            return _decoded(f"'{name}'", file, (name,))
    except PIL.UnidentifiedImageError:
        raise OptionError(f"'{name}' is not an image: TIFF, PNG, JPEG, .npy, .wav and zarr stores are read") from None
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _object(picture: Any) -> Stored:
    """An image of Pillow's."""
    try:
        import PIL.Image
    except ImportError as error:
        raise missing("a picture that is neither a file nor an array", error) from None
    if not isinstance(picture, PIL.Image.Image):
        raise OptionError(f"a {type(picture).__name__} is no picture: give a file, an array, or an image of Pillow")
    return _decoded("the picture", picture, ())


def _decoded(name: str, picture: Any, files: tuple[str, ...]) -> Stored:
    """Grey or RGB, turned as the EXIF data says."""
    import PIL.ImageOps

    upright: Any = PIL.ImageOps.exif_transpose(picture)
    if upright.mode in ("I", "F"):
        pixels, tone = np.asarray(upright), GREY
    elif upright.mode.startswith("I;16"):
        pixels, tone = np.asarray(upright).astype(np.uint16), GREY
    else:
        mode = MODES.get(upright.mode, "RGB")
        pixels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
        tone = GREY if mode in ("L", "LA") else RGB
    alpha = int(upright.mode in MODES and MODES[upright.mode] in ("LA", "RGBA"))
    samples = 2 if pixels.ndim == 3 else None
    shape, dtype = pixels.shape, pixels.dtype
    return _numbers(name, shape, dtype, lambda box: pixels[box], samples=samples, tone=tone, alpha=alpha, files=files)


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
