"""The last layer, trained by multinomial logistic regression; all of scikit-learn is here.

Features are standardised, since the penalty treats all alike. Their mean and deviation are folded into the layer, in
double precision:

    W · (x - mean) / std + b  =  (W / std) · x + (b - W · mean / std)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.images.stored import missing_package

__all__ = ["Layer", "check_installed", "distances", "path", "stratified", "trained", "version"]


#: What C is chosen from: C times the loss of a thousand samples is added to half the squared weights. That is the
#: loss that it multiplies however many samples there are, so that what was chosen on some holds for all.
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

THOUSAND = 1000

#: Iterations of L-BFGS at most, and where it stops, while C is searched and for the final layer.
SEARCH = {"max_iter": 200, "tol": 1e-3}
FINAL = {"max_iter": 2000, "tol": 1e-5}


@dataclass(frozen=True)
class Layer:
    """A linear layer on features as the network gives them: (features) → scores of the classes.

    Attributes:
        weights: (classes, features), in double precision.
        bias: (classes,).
        converged: did the optimiser find the minimum?
    """

    weights: Array
    bias: Array
    converged: bool

    def __call__(self, features: Array) -> Array:
        """(n, features) → (n, classes)."""
        scores: Array = features @ self.weights.T + self.bias
        return scores


#: A feature that varies by less than this share of its mean is constant, but for rounding, and is divided by 1.
VARIES = 1e-6


@dataclass(frozen=True)
class Standard:
    """The mean and the deviation of features, (features,) each: in single floats, so that what was used is folded."""

    mean: Array
    deviation: Array

    @classmethod
    def of(cls, features: Array) -> Standard:
        """Those of (n, features)."""
        mean = features.mean(0, dtype=np.float64).astype(np.float32)
        deviation = np.sqrt(np.square(features - mean).mean(0, dtype=np.float64)).astype(np.float32)
        return cls(mean, np.where(deviation > VARIES * np.abs(mean), deviation, np.float32(1)))

    def __call__(self, features: Array) -> Array:
        values: Array = (features - self.mean) / self.deviation
        return values

    def folded(self, weights: Array, bias: Array, converged: bool) -> Layer:
        """A layer on standardised features, as one on the features themselves."""
        scaled = weights / self.deviation.astype(np.float64)
        return Layer(scaled, bias - scaled @ self.mean.astype(np.float64), converged)


def path(features: Array, classes: Array, count: int, balanced: bool) -> Iterator[tuple[float, Layer]]:
    """Layers for every C of `CS`, each started from the one before."""
    yield from _trained(features, classes, count, balanced, CS, SEARCH)


def trained(features: Array, classes: Array, count: int, balanced: bool, c: float) -> Layer:
    """The layer for one C: features (n, numbers), classes (n,) from 0 to count - 1."""
    cs = [smaller for smaller in CS if smaller < c] + [c]
    return list(_trained(features, classes, count, balanced, cs, FINAL))[-1][1]


def _trained(
    features: Array, classes: Array, count: int, balanced: bool, cs: Sequence[float], limits: dict[str, Any]
) -> Iterator[tuple[float, Layer]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    standard = Standard.of(features)
    features = standard(features)
    model = LogisticRegression(warm_start=True, class_weight="balanced" if balanced else None, **limits)
    for c in cs:
        model.set_params(C=c * THOUSAND / len(features))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few clicks of many classes
            model.fit(features, classes)
        weights, bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
        if len(weights) == 1:  # two classes: the sigmoid of s is the softmax of (-s/2, s/2)
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        # a class that is not among the samples is never chosen
        every, shift = np.zeros((count, weights.shape[1])), np.full(count, -np.inf)
        every[model.classes_], shift[model.classes_] = weights, bias
        yield c, standard.folded(every, shift, int(np.max(model.n_iter_)) < limits["max_iter"])


def stratified(classes: Array, groups: Array, count: int, seed: int) -> list[tuple[Array, Array]]:
    """(train, test) rows of folds of whole groups, with the classes spread evenly over them."""
    from sklearn.model_selection import StratifiedGroupKFold

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has few samples
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(groups, classes, groups)
        return [(train, test) for train, test in folds]


def distances(points: Array, others: Array) -> Array:
    """How far each point (n, axes) is from the nearest of the others, along the axis where it is farthest."""
    from sklearn.neighbors import NearestNeighbors

    found: Array = NearestNeighbors(n_neighbors=1, metric="chebyshev").fit(others).kneighbors(points)[0][:, 0]
    return found


def check_installed() -> None:
    """Raises OptionError if scikit-learn is missing."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise missing_package("training", error) from None


def version() -> str:
    """The version of scikit-learn."""
    import sklearn

    return str(sklearn.__version__)
