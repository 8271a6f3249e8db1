"""Which labelled pixels are taken: at most some of each class and image, uniformly at random.

Every pixel has a random key, a function of the seed, the number of the image, and the pixel's place in it. The pixels
of a class with the smallest keys are taken. That is a random sample without replacement, made in one pass over the
image, with memory for one block and the sample; and it is the same however the image is divided into blocks. Keys are
outputs of SplitMix64 (Steele, Lea, Flood 2014), a bijection of the pixel's number, so no two are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.classes import Classes
from onnx_fcn.fitting.labels import Labelled
from onnx_fcn.images.stored import Box

__all__ = ["BLOCK", "Chosen", "census", "draw"]


#: Pixels of a block along each of two axes; blocks with fewer or more axes have no more pixels.
BLOCK = 2048

#: More codes than these are no classes.
MOST_CODES = 4096

#: The increment and multipliers of SplitMix64.
GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Chosen:
    """The labelled pixels of one image that are taken, by position.

    Attributes:
        positions: the pixels, (count, axes).
        classes: the index of the class of each, (count,).
        counts: the number of all labelled pixels of each class.
    """

    positions: Array
    classes: Array
    counts: Array


def census(labelled: Labelled, size: Sequence[int], block: int = BLOCK) -> dict[int, int]:
    """The number of pixels of each code in an image.

    Raises:
        OptionError: if there are too many codes for classes, or the labels cannot be read.
    """
    counts: dict[int, int] = {}
    for _, codes in _blocks(labelled, size, block):
        for code, number in _counted(codes):
            counts[code] = counts.get(code, 0) + number
        if len(counts) > MOST_CODES:
            raise OptionError(
                f"{labelled.labels.name} has more than {MOST_CODES} different values: it is an image, or it numbers "
                f"objects, and not classes"
            )
    return dict(sorted(counts.items()))


def draw(
    labelled: Labelled, size: Sequence[int], classes: Classes, samples: int, seed: int, block: int = BLOCK
) -> Chosen:
    """At most this many labelled pixels of each class in an image.

    Args:
        labelled: the image.
        size: its size.
        classes: the classes; their codes are all that occur.
        samples: the most pixels of each class.
        seed: another seed takes other pixels.
        block: pixels of a block along an axis, if there are two axes.

    Raises:
        OptionError: if the labels cannot be read, or have changed since the classes were found.
    """
    start = np.random.SeedSequence([seed, labelled.number]).generate_state(1, np.uint64)
    samplers = [_Sampler(samples) for _ in classes.codes]
    index = {code: k for k, code in enumerate(classes.codes)}
    for box, codes in _blocks(labelled, size, block):
        for code, _ in _counted(codes):
            if code not in index:
                raise OptionError(f"{labelled.labels.name} has changed: it did not have the class {code}")
            places = np.nonzero(codes == code)
            pixels = np.ravel_multi_index([p + s.start for p, s in zip(places, box)], tuple(size))
            samplers[index[code]].add(pixels, _keys(pixels, start))
    pixels = np.concatenate([sampler.pixels for sampler in samplers])
    which = np.repeat(np.arange(len(classes)), [len(sampler.pixels) for sampler in samplers])
    order = np.argsort(pixels)
    positions = np.stack(np.unravel_index(pixels[order], tuple(size)), axis=1).astype(np.int64)
    return Chosen(positions, which[order], np.array([sampler.seen for sampler in samplers], np.int64))


class _Sampler:
    """The pixels with the smallest keys."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0
        self.pixels, self.keys = np.empty(0, np.int64), np.empty(0, np.uint64)

    def add(self, pixels: Array, keys: Array) -> None:
        self.seen += len(pixels)
        if len(self.keys) == self.most:
            few = keys < self.keys.max()
            pixels, keys = pixels[few], keys[few]
        pixels, keys = np.concatenate([self.pixels, pixels]), np.concatenate([self.keys, keys])
        kept = np.argpartition(keys, self.most - 1)[: self.most] if len(keys) > self.most else slice(None)
        self.pixels, self.keys = pixels[kept], keys[kept]


def _counted(codes: Array) -> Iterator[tuple[int, int]]:
    """(code, number of pixels) of each code in a block."""
    labelled = codes[codes >= 0]
    if labelled.size and labelled.max() < MOST_CODES:
        numbers = np.bincount(labelled)
        found = np.flatnonzero(numbers)
        numbers = numbers[found]
    else:
        found, numbers = np.unique(labelled, return_counts=True)
    yield from zip(found.tolist(), numbers.tolist())


def _keys(pixels: Array, start: Array) -> Array:
    """Random numbers of 64 bits for the numbers of pixels: SplitMix64 from a state (1,)."""
    keys = start + (pixels.astype(np.uint64) + np.uint64(1)) * GOLDEN
    keys = (keys ^ (keys >> np.uint64(30))) * FIRST
    keys = (keys ^ (keys >> np.uint64(27))) * SECOND
    mixed: Array = keys ^ (keys >> np.uint64(31))
    return mixed


def _blocks(labelled: Labelled, size: Sequence[int], block: int) -> Iterator[tuple[Box, Array]]:
    """(box, codes) of the blocks that may have labels; then the file is closed."""
    if math.prod(size) >= 2**62:
        raise OptionError(f"{labelled.name} has too many pixels to choose from")
    edge = max(int(block ** (2 / len(size)) + 1e-9), 1)
    try:
        for box in labelled.labels.boxes(size, edge):
            yield box, labelled.labels.read(box)
    finally:
        labelled.labels.close()
