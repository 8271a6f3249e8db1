"""How well a class map agrees with the truth: which class was taken for which, and the usual measures of that.

With n[i, j] pixels of class i that were predicted as class j, and t[i] = Σ_j n[i, j] pixels of class i, Long,
Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015, section 5) define

    pixel accuracy   Σ_i n[i, i] / Σ_i t[i]
    mean accuracy    mean over i of n[i, i] / t[i], which is the recall of class i
    mean IU          mean over i of n[i, i] / (t[i] + Σ_j n[j, i] - n[i, i]), intersection over union

The means are over the classes in the truth: a picture without a class says nothing about its recall.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError

__all__ = ["MOST_CLASSES", "Confusion"]


#: More classes have a matrix that no memory needs to hold: half a gigabyte.
MOST_CLASSES = 1 << 13


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of a class map, or the sum of several.

    Attributes:
        matrix: (K, K): numbers of pixels, rows the truth, columns the prediction. int64, or float64 of weighted ones.
    """

    matrix: Array

    @classmethod
    def of(
        cls, truth: Array, predicted: Array, classes: int, ignore: int | None = None, *, weights: Array | None = None
    ) -> Confusion:
        """The confusion of two arrays of class indices, of any equal shape.

        Args:
            truth: the true class of each pixel.
            predicted: the class that was found there.
            classes: the number of classes, K.
            ignore: the number in `truth` of pixels that do not count.
            weights: how many pixels each stands for; by default one.

        Raises:
            OptionError: if the shapes differ, or a number is no class.
        """
        if truth.shape != predicted.shape:
            raise OptionError(f"the truth has the shape {truth.shape}, and the prediction {predicted.shape}")
        if not 0 < classes <= MOST_CLASSES:
            raise OptionError(f"a confusion matrix has from 1 to {MOST_CLASSES} classes, not {classes}")
        counted = np.ones(truth.shape, bool) if ignore is None else truth != ignore
        rows, columns = truth[counted], predicted[counted]
        for what, values in (("truth", rows), ("prediction", columns)):
            if len(values) and not 0 <= values.min() <= values.max() < classes:
                wrong = int(values.min() if values.min() < 0 else values.max())
                raise OptionError(f"the {what} contains {wrong}, and classes are numbered from 0 to {classes - 1}")
        pairs = rows.astype(np.int64) * classes + columns.astype(np.int64)
        counts = np.bincount(pairs, None if weights is None else weights[counted], classes * classes)
        return cls(counts.reshape(classes, classes).astype(np.int64 if weights is None else np.float64))

    def __add__(self, other: Confusion) -> Confusion:
        """The confusion of both sets of pixels."""
        if self.matrix.shape != other.matrix.shape:
            raise OptionError(f"confusions of {len(self.matrix)} and {len(other.matrix)} classes cannot be added")
        return Confusion(self.matrix + other.matrix)

    @property
    def pixels(self) -> int:
        """Number of pixels that count."""
        return int(self.matrix.sum())

    @property
    def accuracy(self) -> float:
        """Pixel accuracy: the share of pixels whose class is right; NaN without pixels."""
        return float(_ratio(np.trace(self.matrix), self.matrix.sum()))

    @property
    def iou(self) -> Array:
        """Intersection over union of each class, (K,); NaN for a class that is in neither."""
        hits = np.diag(self.matrix)
        return _ratio(hits, self.matrix.sum(axis=1) + self.matrix.sum(axis=0) - hits)

    @property
    def recall(self) -> Array:
        """The share of each class' pixels that was found, (K,); NaN for a class that is not in the truth."""
        return _ratio(np.diag(self.matrix), self.matrix.sum(axis=1))

    @property
    def mean_iou(self) -> float:
        """The mean intersection over union of the classes in the truth; NaN without pixels."""
        return self._mean(self.iou)

    @property
    def mean_recall(self) -> float:
        """The mean recall of the classes in the truth; NaN without pixels."""
        return self._mean(self.recall)

    def _mean(self, values: Array) -> float:
        present = self.matrix.sum(axis=1) > 0
        return float(values[present].mean()) if present.any() else float("nan")


def _ratio(part: Array, whole: Array) -> Array:
    """part/whole in float64; NaN where the whole is 0."""
    ratio: Array = np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
    return ratio
