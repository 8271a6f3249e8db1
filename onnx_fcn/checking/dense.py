"""Dense outputs on larger images: is every cell the original's?

The original's nodes give the map of a larger image if they mean the same there (`checking.reference`). On a crop of the
native size they always do: there, cells that see no padding have to agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from onnx_fcn.checking.cases import cropped
from onnx_fcn.checking.checks import Check
from onnx_fcn.checking.comparison import Case, Comparison, LargerImage
from onnx_fcn.checking.reference import crop_difference, interior, reference_map
from onnx_fcn.lifting.lifted import lcm
from onnx_fcn.lifting.windows import whole_map
from onnx_fcn.model.agreement import difference
from onnx_fcn.walk.cut import Cut

__all__ = ["ask_dense", "dense_checks", "unseen"]


def ask_dense(c: Comparison, wide: LargerImage, ask: Callable[[Case], None]) -> None:
    """Ask the original for the dense outputs of a larger image, and for those of its farthest crop."""
    found = {name: reference_map(c, Cut(name, fact), wide.feeds) for name, fact in c.dense.items()}
    wide.dense = {name: values for name, values in found.items() if values is not None}
    wide.offset = _farthest(c, wide)
    wide.crop = Case(c.walk.image.size, wide.batch, cropped(c, wide.feeds, wide.offset))
    ask(wide.crop)


def _farthest(c: Comparison, wide: LargerImage) -> dict[int | None, int]:
    """The last pixels at which a crop can begin, so that its cells are among those of the larger image."""
    steps: dict[int | None, Fraction] = {}
    for axis in (axis for fact in c.dense.values() for axis in fact.space):
        steps[axis.image] = lcm(steps.get(axis.image, Fraction(1)), axis.window_stride)
    rooms = [n - native for n, native in zip(wide.size, c.walk.image.size)]
    return {k: int(room // steps.get(k, 1) * steps.get(k, 1)) for k, room in enumerate(rooms)}


def dense_checks(c: Comparison, wide: LargerImage) -> Iterator[Check]:
    """The dense outputs of a larger image against the original's, on the whole image and on a crop."""
    for name, fact in c.dense.items():
        have = wide.got[name]
        if (want := wide.dense.get(name)) is not None:
            error = difference(have, want) if have.shape == want.shape else math.inf
            yield Check("dense", name, wide.size, wide.batch, math.prod(want.shape[2:]), error, c.tolerance)
        inside = interior(fact, c.walk.image.size)
        if wide.crop is None or not inside.any():
            continue
        want = whole_map(fact, wide.crop.expected[name], fact.window)
        error = crop_difference(fact, have, wide.offset, want, inside)
        note = "a crop, away from padding"
        yield Check("dense", name, wide.size, wide.batch, int(inside.sum()), error, c.tolerance, note)


def unseen(c: Comparison, wide: LargerImage) -> Iterator[str]:
    """Sentences about dense outputs of which nothing was compared on a larger image."""
    for name, fact in c.dense.items():
        if name not in wide.dense and not interior(fact, c.walk.image.size).any():
            yield f"cells of '{name}' on larger images: the original does not run there, and all see padding"
