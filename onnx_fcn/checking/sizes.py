"""The sizes at which two models are compared: they show every kind of fault with as few pixels as possible.

    wide      a few more windows, another number along each axis, and pixels left over after the last
    long      one axis as long as the budget allows: shows what is not periodic, and what depends on a size
    uneven    slightly larger than the native size, with other pixels left over

Sizes that are multiples of the stride all behave alike; wrong rounding, padding or resizing shows at the others. Each
of these images has another remainder along each axis, and the seeds together cover all remainders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["largest_factor", "long_size", "remainders", "uneven_size", "wide_size"]


Size = tuple[int, ...]

#: Values of an image that any native size may be enlarged to: 4 MB of floats.
FEW_VALUES = 1 << 20

#: How many times larger than the native image an image may be if it exceeds `FEW_VALUES`; and the least factor, which
#: is left of it where `MANY_VALUES` would be exceeded: a Resize whose windows repeat only after a whole image, one of 4
#: megapixels, would be compared on 32.
FACTOR, LEAST_FACTOR = 8, 2

#: Values of an image that no native size is enlarged beyond, except by `LEAST_FACTOR`: 32 MB of floats.
MANY_VALUES = 1 << 23

#: The least number of extra periods of a long image, if the budget allows.
FAR = 40

#: With fewer extra periods a long image shows nothing that a wide one does not.
NEAR = 4


def largest_factor(values: int) -> float:
    """How many times larger than the native image, which has this many values, an image may be."""
    values = max(values, 1)
    return max(FEW_VALUES / values, min(FACTOR, max(LEAST_FACTOR, MANY_VALUES / values)))


def remainders(period: Sequence[int], images: int, random: np.random.Generator) -> list[Size]:
    """Pixels left over after the last period, for each of some images: spread over a period along each axis, never 0.

    Over many draws each image gets every remainder along every axis; only the native size has none.
    """
    first = [int(random.integers(max(p - 1, 1))) for p in period]
    spread = [max(p - 1, 1) for p in period]
    return [
        tuple(0 if p == 1 else 1 + (f + k * s // images) % s for p, f, s in zip(period, first, spread))
        for k in range(images)
    ]


def wide_size(native: Sequence[int], period: Sequence[int], remainder: Sequence[int], most: float) -> Size:
    """A size with a few more periods along each axis, of at most `most` times the native pixels.

    If not even one more period fits, it is the native size and as much of the remainder as fits.
    """
    more = [(2, 1, 1), (1, 1, 1)] if len(native) > 1 else [(3,), (1,)]
    for periods in more:
        size = tuple(n + m * p + r for n, m, p, r in zip(native, periods, period, remainder))
        if math.prod(size) <= most * math.prod(native):
            return size
    return uneven_size(native, remainder, most)


def uneven_size(native: Sequence[int], remainder: Sequence[int], most: float) -> Size:
    """The native size plus the remainder, or as much of it as `most` times the native pixels allow."""
    room = most ** (1 / len(native))
    return tuple(n + min(r, int(n * room) - n) for n, r in zip(native, remainder))


def long_size(
    native: Sequence[int], period: Sequence[int], remainder: Sequence[int], axis: int, more: int, most: float
) -> Size | None:
    """A size with `FAR` + `more` further periods along one axis, or as many as `most` allows.

    None if fewer than `NEAR` fit.
    """
    thin = [n + r for n, r in zip(native, remainder)]
    others = math.prod(n for k, n in enumerate(thin) if k != axis)
    longest = int(most * math.prod(native) / max(others, 1))
    periods = min(FAR + more, (longest - thin[axis]) // period[axis])
    if periods < NEAR:
        return None
    thin[axis] += periods * period[axis]
    return tuple(thin)
