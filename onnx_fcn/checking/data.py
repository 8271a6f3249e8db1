"""The user's own data, read and converted to the type of the model's inputs."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from zipfile import BadZipFile

import numpy as np
from onnx import ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.lifting.program import Image
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, static_dims
from onnx_fcn.model.sessions import dtype_of

__all__ = ["load_data"]


def load_data(
    data: Mapping[str, Array] | Array | str | os.PathLike[str] | None,
    document: Document,
    image: Image,
    held: Collection[int] = (),
) -> dict[str, Array] | None:
    """The user's images by input name, with a type and a shape that the model accepts.

    Along the axes of the image that are `held` they have the native size.

    Raises:
        OptionError: if the file cannot be read, or does not fit the inputs.
    """
    if data is None:
        return None
    if isinstance(data, str | os.PathLike):
        data = _read(data)
    if not isinstance(data, np.ndarray | Mapping):
        raise OptionError(f"the data is an array, arrays by the inputs' names, or a file of them, not {type(data)}")
    arrays = {image.name: data} if isinstance(data, np.ndarray) else dict(data)
    if not arrays:
        raise OptionError("the data contains no array: pass one for an input, or several by the inputs' names")
    inputs = {i.name: i for i in data_inputs(document.proto.graph)}
    if unknown := set(arrays) - set(inputs):
        raise OptionError(f"the model has no input '{min(unknown)}': its inputs are {', '.join(map(repr, inputs))}")
    return {name: _fit(array, inputs[name], image, held) for name, array in arrays.items()}


def _read(path: str | os.PathLike[str]) -> Mapping[str, Array] | Array:
    """The array in an .npy file, or the arrays in an .npz file by name."""
    try:
        with open(path, "rb") as file:
            if not file.read(6).startswith((b"\x93NUMPY", b"PK")):
                raise OptionError(f"'{os.fspath(path)}' is not an .npy or .npz file: write one with numpy.save")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise OptionError(f"'{os.fspath(path)}' cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, BadZipFile) as error:
        raise OptionError(f"'{os.fspath(path)}' is not an .npy or .npz file of numbers: {error}") from None


def _fit(array: Array, declared: ValueInfoProto, image: Image, held: Collection[int]) -> Array:
    """The user's data for one input, in its type. Axes that slide may be longer than declared, the others may not.

    Raises:
        OptionError: if the type or the shape does not fit.
    """
    wanted = dtype_of(declared)
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise OptionError(f"the data for '{declared.name}' is {array.dtype}, and the model takes {wanted}")
    slides = [axis for k, axis in enumerate(image.space) if k not in held]
    space = slides if declared.name == image.name else ()
    known = image.space if declared.name == image.name else ()
    least = [image.shape[k] if k in known else d for k, d in enumerate(static_dims(declared))]
    fits = len(least) == array.ndim and array.size > 0
    if not fits or any(n < m if k in space else n != m for k, (n, m) in enumerate(zip(array.shape, least)) if m):
        shape = ", ".join(f"≥{d}" if k in space else "any" if d is None else str(d) for k, d in enumerate(least))
        raise OptionError(f"the data for '{declared.name}' has shape {array.shape}, and the model takes ({shape})")
    return array.astype(wanted, copy=False)
