"""A class map compared with a mask of the truth: which number of the mask is which class, and what was confused.

The numbers of a mask are the indices of the classes. If all names are numbers, as those of a network that was fitted to
a mask with the numbers 1 and 2 are, they are these names instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.masks import open_mask
from onnx_fcn.running.confusion import Confusion
from onnx_fcn.tables import size_text

__all__ = ["IGNORE", "Truth", "compare", "numbers_of"]


#: The number of pixels without a truth, as in many data sets, unless a class has it.
IGNORE = 255

#: Pixels that are compared at once.
AT_ONCE = 1 << 22

#: The most digits of a name that is the number of a class.
DIGITS = 18


@dataclass(frozen=True)
class Truth:
    """What a comparison with a mask found.

    Attributes:
        mask: the file.
        ignore: the number of pixels that do not count; None if all do.
        ignored: how many there are.
        confusion: the confusion of the others.
    """

    mask: str
    ignore: int | None
    ignored: int
    confusion: Confusion

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The measures as a JSON object; null where there is none. The matrix is of the classes that it lists."""
        confusion = self.confusion
        present = np.flatnonzero(confusion.matrix.sum(axis=0) + confusion.matrix.sum(axis=1))
        measures = zip(present.tolist(), confusion.iou[present].tolist(), confusion.recall[present].tolist())
        return {
            "mask": self.mask,
            "ignore": self.ignore,
            "pixels": confusion.pixels,
            "ignored": self.ignored,
            "accuracy": confusion.accuracy,
            "mean_iou": confusion.mean_iou,
            "mean_recall": confusion.mean_recall,
            "classes": [
                {"class": k, "label": names[k], "iou": iou, "recall": None if np.isnan(recall) else recall}
                for k, iou, recall in measures
            ],
            "confusion": confusion.matrix[np.ix_(present, present)].tolist(),
        }


def numbers_of(names: Sequence[str]) -> dict[int, int]:
    """The number of each class in a mask → its index: the names if all are numbers, and the indices otherwise."""
    if all(name.isascii() and name.isdecimal() and len(name) <= DIGITS for name in names):
        by_name = {int(name): index for index, name in enumerate(names)}
        if len(by_name) == len(names):
            return by_name
    return {index: index for index in range(len(names))}


def compare(path: str | os.PathLike[str], classes: Array, names: Sequence[str], ignore: int | None = None) -> Truth:
    """Compare a class map with a mask of the truth.

    Args:
        path: the mask, of the size of the class map.
        classes: the index of the class of each pixel, (H, W).
        names: the names of all classes.
        ignore: the number of pixels that do not count; by default `IGNORE`, unless it is the number of a class.

    Raises:
        OptionError: if the mask cannot be read, has another size, contains a number of no class, or is ignored
            everywhere.
    """
    numbers = numbers_of(names)
    if ignore is None and IGNORE not in numbers:
        ignore = IGNORE
    total, ignored = None, 0
    with contextlib.closing(open_mask(path, classes.ndim)) as mask:
        if mask.size != classes.shape:
            raise OptionError(
                f"{mask.name} has {size_text(mask.size)} pixels, and the picture has {size_text(classes.shape)}: "
                "the truth is a mask of the picture's size"
            )
        rows = max(AT_ONCE // classes.shape[1], 1)
        for top in range(0, classes.shape[0], rows):
            part = slice(top, min(top + rows, classes.shape[0]))
            found = classes[part]
            stored = mask.read((part, slice(0, classes.shape[1])))
            counted = np.ones(stored.shape, bool) if ignore is None else stored != ignore
            truth = _indices(stored[counted], numbers, mask.name)
            confusion = Confusion.of(truth, found[counted], len(names))
            ignored += int(counted.size - counted.sum())
            total = confusion if total is None else total + confusion
    if total is None or not total.pixels:
        raise OptionError(f"{mask.name} contains nothing but {ignore}, which --ignore leaves out: no pixel has a truth")
    return Truth(os.fspath(path), ignore, ignored, total)


def _indices(stored: Array, numbers: Mapping[int, int], name: str) -> Array:
    """The indices of the classes that the numbers of a mask stand for.

    Raises:
        OptionError: if one stands for none.
    """
    different, places = np.unique(stored, return_inverse=True)
    if unknown := [int(n) for n in different if int(n) not in numbers]:
        text = ", ".join(map(str, unknown[:5])) + ", …" * (len(unknown) > 5)
        known = sorted(numbers)
        which = f"{known[0]} to {known[-1]}" if len(known) > 2 else " and ".join(map(str, known))
        raise OptionError(
            f"{name} contains {text}, and the numbers of the classes are {which}: --ignore {unknown[0]} leaves out "
            "pixels with that number"
        )
    indices: Array = np.array([numbers[int(n)] for n in different], np.int64)[places.reshape(stored.shape)]
    return indices
