"""Class maps along the edges of the picture: a guided filter of each class's probabilities.

The answers are a stride apart, and the borders of classes lie between them. The picture knows where: He, Sun, Tang,
"Guided Image Filtering" (ECCV 2010; IEEE TPAMI 35, 2013) make a map p linear in the picture I in every window w,

    q = a·I + b,   a = (mean(I·p) - mean(I)·mean(p)) / (var(I) + eps),   b = mean(p) - a·mean(I)     (eq. 5, 6)

with the least squared distance from p, and average a and b over all windows of a pixel (eq. 8). So q has an edge where
I has one, and only there. Means over windows are differences of cumulative sums: a large radius costs no more.
"""

from __future__ import annotations

import math

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.images.channels import LUMA
from onnx_fcn.running.dense_model import HALF, DenseResult

__all__ = ["Guide", "radius_of", "refined_classes"]


#: Variances of the picture, from 0 to 1, below this are no edges: a contrast of 3 %.
EPSILON = 1e-3


class Guide:
    """A picture whose edges guide a filter.

    Attributes:
        grey: the picture, (H, W) from 0 to 1.
        radius: half the side of a window, in pixels, without its centre.
    """

    def __init__(self, picture: Array, radius: int, epsilon: float = EPSILON) -> None:
        """`picture` is (H, W, 3) from 0 to 255."""
        self.grey = (picture @ LUMA) / np.float32(255)
        self.radius = radius
        self._mean = box_mean(self.grey, radius)
        self._spread = box_mean(self.grey * self.grey, radius) - self._mean**2 + np.float32(epsilon)

    def filtered(self, values: Array) -> Array:
        """A map (H, W) with the edges of the picture; a constant map stays as it is."""
        mean = box_mean(values, self.radius)
        slope = (box_mean(self.grey * values, self.radius) - self._mean * mean) / self._spread
        offset = mean - slope * self._mean
        refined: Array = box_mean(slope, self.radius) * self.grey + box_mean(offset, self.radius)
        return refined


def box_mean(values: Array, radius: int) -> Array:
    """The mean over the window of each pixel, as far as it lies in the picture: (H, W) in float32."""
    return _mean_down(_mean_down(values, radius).T, radius).T


def _mean_down(values: Array, radius: int) -> Array:
    """The means over windows along the first axis."""
    size = len(values)
    reach, rows = min(radius, size - 1), np.arange(size)
    sums = np.cumsum(values, axis=0, dtype=np.float64)
    means = np.concatenate([sums[reach:], np.broadcast_to(sums[-1:], (reach, *sums.shape[1:]))])
    means[reach + 1 :] -= sums[: size - reach - 1]
    means /= (np.minimum(rows + reach, size - 1) - np.maximum(rows - reach, 0) + 1)[:, None]
    return means.astype(np.float32)


def radius_of(result: DenseResult) -> int:
    """The radius for a picture's answers: one stride, in pixels of the picture, since a border is that uncertain."""
    strides = [float(stride) / scale for stride, scale in zip(result.grid.answers.stride, result.scale)]
    return max(math.ceil(max(strides)), 1)


def refined_classes(result: DenseResult, picture: Array, radius: int) -> Array:
    """The best class at each pixel, (H, W), of probabilities that follow the edges of the picture.

    Of the classes that are the best of some cell; one is in memory at a time. For a single score: 1 where it is at
    least one half, and 0 elsewhere.

    Args:
        result: the answers.
        picture: (H, W, 3) from 0 to 255.
        radius: that of the filter, in pixels.

    Raises:
        OptionError: if the model gives the best class only, or a single score is not a probability.
    """
    guide, probabilities, candidates = Guide(picture, radius), result.probabilities, np.unique(result.classes)
    if result.is_single:
        present: Array = (guide.filtered(result.at_pixels(probabilities[0])) >= HALF).astype(np.int64)
        return present
    classes, best = np.zeros(result.size, np.int64), np.full(result.size, -np.inf, np.float32)
    for index in candidates:
        values = guide.filtered(result.at_pixels(probabilities[index]))
        better = values > best
        classes[better], best[better] = index, values[better]
    return classes
