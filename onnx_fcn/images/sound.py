"""WAV: integers of 8 to 32 bits and floats, by region, of any length.

The chunks of a RIFF file are its format, its samples, and others that say nothing about these. RIFX is the same with
the most significant byte first; RF64 has sizes beyond 4 GB in a chunk of its own (EBU Tech 3306).
"""

from __future__ import annotations

import os
import struct
from typing import Literal

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import NUMBERS
from onnx_fcn.images.stored import Box, Stored, white_of

__all__ = ["SOUND", "from_wav"]


#: What sound files begin with.
SOUND = (b"RIFF", b"RIFX", b"RF64")

#: Formats of samples: integers, floats, and one that is named further on.
INTEGERS, FLOATS, EXTENSIBLE = 1, 3, 0xFFFE

#: The size of a chunk that is not known, or beyond 4 GB.
UNKNOWN = 0xFFFFFFFF

#: (format, bytes of a sample) → the numbers that it is read as.
TYPES = {
    (INTEGERS, 1): np.uint8,
    (INTEGERS, 2): np.int16,
    (INTEGERS, 3): np.int32,
    (INTEGERS, 4): np.int32,
    (FLOATS, 4): np.float32,
    (FLOATS, 8): np.float64,
}


def from_wav(name: str) -> Stored:
    """Sound as (samples, channels), in the numbers that are stored.

    Raises:
        OptionError: if its samples are compressed, or not all there.
    """
    with open(name, "rb") as file:
        order: Literal["<", ">"] = ">" if file.read(12)[:4] == b"RIFX" else "<"
        there = os.fstat(file.fileno()).st_size
        form, long_size, offset = b"", 0, 0
        while len(head := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}4sI", head)
            if kind == b"data":
                offset = file.tell()
                break
            chunk = file.read(min(size, 1 << 16))
            if kind == b"fmt ":
                form = chunk
            elif kind == b"ds64":
                (long_size,) = struct.unpack_from(f"{order}Q", chunk, 8)
            file.seek(size - len(chunk) + size % 2, os.SEEK_CUR)  # chunks begin at even places
    if len(form) < 16 or not offset:
        raise OptionError(f"'{name}' contains no sound")
    code, channels, _, _, block, _ = struct.unpack_from(f"{order}HHIIHH", form)
    if code == EXTENSIBLE and len(form) >= 26:
        (code,) = struct.unpack_from(f"{order}H", form, 24)
    width = block // max(channels, 1)
    if (code, width) not in TYPES or block != width * channels:
        raise OptionError(
            f"'{name}' is sound in format {code} with {8 * width} bits, and integers of 8 to 32 bits and floats are "
            "read: save it as such"
        )
    if size == UNKNOWN:
        size = long_size or there - offset
    if offset + size > there:
        raise OptionError(f"'{name}' is cut short: its header declares {size // block} samples")
    dtype, count = np.dtype(TYPES[code, width]), size // block

    def fetch(box: Box) -> Array:
        start, stop, _ = box[0].indices(count)
        data = np.fromfile(name, np.uint8, (stop - start) * block, offset=offset + start * block)
        samples = data.reshape(stop - start, channels, width)[:, box[1]]
        if width == 3:  # the sign goes into a fourth byte, which is the most significant one
            top = samples[..., -1:] if order == "<" else samples[..., :1]
            sign = np.where(top > 127, 255, 0).astype(np.uint8)
            samples = np.concatenate([samples, sign] if order == "<" else [sign, samples], axis=-1)
        numbers = np.ascontiguousarray(samples).view(dtype.newbyteorder(order))[..., 0]
        return numbers.astype(dtype)

    return Stored(f"'{name}'", (count, channels), dtype, fetch, white_of(dtype), 1, NUMBERS, rank=1, files=(name,))
