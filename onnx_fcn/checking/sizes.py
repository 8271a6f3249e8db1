"""At which sizes two models are compared: what has to show there, for as few pixels as possible.

    wide      some windows more along each axis, another number along each, and pixels left over behind the last
    long      one axis as far out as can be afforded: what is not periodic shows there, and what a size is read into
    uneven    hardly larger than the native size, with other pixels left over

A map strides, so sizes that are multiples of the stride are all alike: what is rounded, padded or resized in the wrong
way shows at others. Each of these images has another remainder along each axis, and over the seeds all are met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["largest_factor", "long_size", "remainders", "uneven_size", "wide_size"]


Size = tuple[int, ...]

#: Values of an image that are no burden, whatever the native size: 4 MB of floats.
FEW_VALUES = 1 << 20

#: How many times the values of a native image may be exceeded that is larger than that.
FACTOR = 8

#: Periods out that a long image reaches at least where it can be afforded.
FAR = 40

#: Below so many windows a long image tells nothing that a wide one does not.
NEAR = 4


def largest_factor(values: int) -> float:
    """How many times larger than the native image, of so many values, an image may be."""
    return max(float(FACTOR), FEW_VALUES / max(values, 1))


def remainders(period: Sequence[int], images: int, random: np.random.Generator) -> list[Size]:
    """Pixels left over behind the last period, for some images: spread over a period along each axis, and never none.

    Over many draws each image meets every remainder along every axis; the native size is the one without.
    """
    first = [int(random.integers(max(p - 1, 1))) for p in period]
    spread = [max(p - 1, 1) for p in period]
    return [
        tuple(0 if p == 1 else 1 + (f + k * s // images) % s for p, f, s in zip(period, first, spread))
        for k in range(images)
    ]


def wide_size(native: Sequence[int], period: Sequence[int], remainder: Sequence[int], most: float) -> Size:
    """A size with a few periods more along each axis, of at most so many times the native pixels.

    Where not even one period more can be afforded, it is the native size and what is left of the remainder.
    """
    more = [(2, 1, 1), (1, 1, 1)] if len(native) > 1 else [(3,), (1,)]
    for periods in more:
        size = tuple(n + m * p + r for n, m, p, r in zip(native, periods, period, remainder))
        if math.prod(size) <= most * math.prod(native):
            return size
    return uneven_size(native, remainder, most)


def uneven_size(native: Sequence[int], remainder: Sequence[int], most: float) -> Size:
    """The native size and pixels left over, or as many of them as can be afforded."""
    room = most ** (1 / len(native))
    return tuple(n + min(r, int(n * room) - n) for n, r in zip(native, remainder))


def long_size(
    native: Sequence[int], period: Sequence[int], remainder: Sequence[int], axis: int, more: int, most: float
) -> Size | None:
    """A size with that many more periods along one axis, `FAR` or more, or as many as can be afforded.

    None where that is next to nothing.
    """
    thin = [n + r for n, r in zip(native, remainder)]
    others = math.prod(n for k, n in enumerate(thin) if k != axis)
    longest = int(most * math.prod(native) / max(others, 1))
    periods = min(FAR + more, (longest - thin[axis]) // period[axis])
    if periods < NEAR:
        return None
    thin[axis] += periods * period[axis]
    return tuple(thin)
