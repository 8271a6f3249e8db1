"""Which maps to read, and how strongly to penalise weights: by folds over images.

Scores are those of whole maps, although only some pixels of each class are sampled: every sample stands for as many
labelled pixels of its class and image as there are per sample, so that confusion matrices are estimates of those of all
labelled pixels (Horvitz, Thompson, 1952).

One hold-out chooses wrongly, and so does the best of many by a hair. So all folds together decide, and of what is
within one standard error of the best the simplest is taken: for each candidate the strongest penalty, and then the
fewest maps (Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", 1984, section 3.4.3). The folds of
a single image do not show how images vary, which is what fewer maps guard against: there the best maps are taken.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.candidates import Candidate, Feature, joined
from onnx_fcn.fitting.solver import distances, path, stratified
from onnx_fcn.running.confusion import Confusion

__all__ = ["Fold", "Samples", "Score", "extent_of", "folds_of", "scored", "searched"]


#: The most samples that layers are trained on while maps and penalties are searched; the last one takes all.
SEARCHED = 6000

#: The most numbers in the features of these samples, since those of all folds are in memory at once.
VALUES = 16_000_000

#: Weaker penalties that may do no better than the best so far, before the search for one ends.
PATIENCE = 2

#: The most maps that are combined.
MOST = 4


@dataclass(frozen=True)
class Samples:
    """Labelled pixels of all images, with their features.

    Attributes:
        features: (n, numbers) for each map, by its tensor's name.
        classes: (n,) from 0 on.
        images: (n,) the image of each.
        positions: (n, rank) in pixels.
        weights: (n,) how many labelled pixels each stands for.
        count: number of classes.
    """

    features: Mapping[str, Array]
    classes: Array
    images: Array
    positions: Array
    weights: Array
    count: int

    def of(self, candidate: Candidate, rows: Array | None = None) -> Array:
        """The features of some samples, or of all, for a candidate: (rows, numbers)."""
        maps = [self.features[name] for name in candidate.tensors]
        chosen = maps if rows is None else [values[rows] for values in maps]
        return chosen[0] if len(chosen) == 1 else np.concatenate(chosen, axis=1)

    def finite(self, names: Sequence[str]) -> tuple[Samples, str]:
        """The samples whose features are finite numbers, and a sentence about the others, if any.

        Nothing is to be learnt from NaN, as which images store pixels without data, or from what overflows.

        Args:
            names: those of the classes.

        Raises:
            OptionError: if no sample of a class is left.
        """
        finite = {name: np.isfinite(values).all(axis=1) for name, values in self.features.items()}
        kept = np.logical_and.reduce(list(finite.values()))
        if kept.all():
            return self, ""
        worst = min(finite, key=lambda name: int(finite[name].sum()))
        lost = f"the features '{worst}' are not finite numbers"
        for number in np.unique(self.classes):
            if not kept[self.classes == number].any():
                raise OptionError(
                    f"{lost} at any labelled pixel of class '{names[number]}': choose other maps with --at, or other "
                    "images or another preprocessing if they contain NaN or values that the network does not take"
                )
        left = replace(
            self,
            features={name: values[kept] for name, values in self.features.items()},
            classes=self.classes[kept],
            images=self.images[kept],
            positions=self.positions[kept],
            weights=self.weights[kept],
        )
        return left, f"{int((~kept).sum()):,} of {len(kept):,} samples are left out, since {lost} there"


@dataclass(frozen=True)
class Fold:
    """Rows to train on, and rows to test on."""

    train: Array
    test: Array


@dataclass(frozen=True)
class Score:
    """How well a candidate does on images that its layer was not trained on.

    Attributes:
        candidate: the maps.
        c: the chosen C.
        error: the standard error of `mean_iou`; NaN for a single fold.
        confusion: of the labelled pixels of all folds.
        mean_iou_by_c: `mean_iou` for every C that was tried.
    """

    candidate: Candidate
    c: float
    error: float
    confusion: Confusion
    mean_iou_by_c: Mapping[float, float]

    @property
    def mean_iou(self) -> float:
        """Intersection over union of all folds together, averaged over classes."""
        return self.confusion.mean_iou


def folds_of(samples: Samples, wanted: int, field: Sequence[float], seed: int) -> tuple[list[Fold], str]:
    """Folds by image, or by blocks of a single image; and a description of them.

    Every fold gets all classes, as far as that is possible.

    Args:
        samples: the labelled pixels.
        wanted: the number of folds; with fewer images each is left out in turn.
        field: pixels that a feature sees along each axis, the size of blocks.
        seed: of the assignment of images or blocks to folds.
    """
    images = np.unique(samples.images)
    if len(images) > 1:
        folds = _grouped(samples, samples.images, wanted, seed)
        what = f"{len(folds)} folds of {len(images)} images" if len(folds) < len(images) else "each image in turn"
        return folds, what
    folds = _grouped(samples, _blocks(samples, wanted, field), wanted, seed)
    apart = [_apart(samples, fold, field) for fold in folds]
    how = "" if all(apart) else ", whose features see each other"
    folds = [distant or fold for distant, fold in zip(apart, folds)]
    return folds, f"{len(folds)} folds of blocks of a single image{how}, which is optimistic"


def _blocks(samples: Samples, wanted: int, field: Sequence[float]) -> Array:
    """The block of each sample of a single image: of the field's size, or smaller ones.

    Blocks shrink until every class is in as many as there are folds, or each of its samples is in one of its own, since
    a fold that holds out all samples of a class says nothing about it.
    """
    first, extent = samples.positions.min(0), extent_of(samples)
    least = np.minimum(np.bincount(samples.classes, minlength=samples.count), wanted)
    sides = np.minimum(np.ceil(field), np.maximum(extent // 2, 1)).astype(np.int64)
    while True:
        _, groups = np.unique((samples.positions - first) // sides, axis=0, return_inverse=True)
        pairs = np.unique(np.stack([samples.classes, groups.reshape(-1)]), axis=1)
        if (np.bincount(pairs[0], minlength=samples.count) >= least).all() or (sides == 1).all():
            found: Array = groups.reshape(-1)
            return found
        sides = np.maximum(sides * 3 // 4, 1)


def extent_of(samples: Samples) -> Array:
    """Pixels from the first to the last labelled one, along each axis."""
    extent: Array = np.ptp(samples.positions, axis=0) + 1
    return extent


def _grouped(samples: Samples, groups: Array, wanted: int, seed: int) -> list[Fold]:
    """Folds of whole groups; those with fewer than two classes to train on are left out."""
    count = min(wanted, len(np.unique(groups)), int(np.bincount(samples.classes).max()))
    if count < 2:
        return []
    folds = [Fold(train, test) for train, test in stratified(samples.classes, groups, count, seed)]
    return [f for f in folds if len(np.unique(samples.classes[f.train])) > 1 and len(f.test)]


def _apart(samples: Samples, fold: Fold, field: Sequence[float]) -> Fold | None:
    """The fold without samples to train on that see what is tested; None if a class then loses half of its samples."""
    scaled = samples.positions / np.asarray(field)
    kept = fold.train[distances(scaled[fold.train], scaled[fold.test]) >= 1]
    before, after = (np.bincount(samples.classes[r], minlength=samples.count) for r in (fold.train, kept))
    return Fold(kept, fold.test) if (2 * after >= before).all() else None


def scored(samples: Samples, candidate: Candidate, folds: Sequence[Fold], balanced: bool, seed: int) -> Score:
    """The score of one candidate: all folds with one penalty after the other, the strongest first."""
    paths, most = [], min(SEARCHED, max(VALUES // candidate.numbers, 1))
    for number, fold in enumerate(folds):
        train = _thinned(fold.train, samples.classes[fold.train], most, np.random.default_rng((seed, number)))
        paths.append(path(samples.of(candidate, train), samples.classes[train], samples.count, balanced))
    found: dict[float, list[Confusion]] = {}
    means: dict[float, float] = {}
    for layers in zip(*paths):
        c = layers[0][0]
        found[c] = [
            Confusion.of(
                samples.classes[fold.test],
                layer(samples.of(candidate, fold.test)).argmax(1),
                samples.count,
                weights=samples.weights[fold.test],
            )
            for fold, (_, layer) in zip(folds, layers)
        ]
        means[c] = _sum(found[c]).mean_iou
        best = max(means, key=lambda c: means[c])
        if list(means).index(best) <= len(means) - 1 - PATIENCE:
            break
    chosen = min(c for c in means if means[c] >= means[best] - np.nan_to_num(_error(found[best])))
    return Score(candidate, chosen, _error(found[chosen]), _sum(found[chosen]), means)


def _sum(confusions: Sequence[Confusion]) -> Confusion:
    return functools.reduce(operator.add, confusions)


def _thinned(rows: Array, classes: Array, most: int, random: np.random.Generator) -> Array:
    """At most so many of the rows, whose classes these are: fewer of frequent classes, all of rare ones."""
    counts = np.bincount(classes)
    least = min(int(counts.max(initial=0)), most)
    while np.minimum(counts, least).sum() > most and least > 1:
        least -= max(least // 20, 1)
    parts = [rows[classes == k] for k in range(len(counts))]
    kept: Array = np.sort(np.concatenate([random.permutation(part)[:least] for part in parts]))
    return kept


def _error(confusions: Sequence[Confusion]) -> float:
    """The standard error of the mean IoU of all folds together: the jackknife over folds; NaN for a single fold.

    Efron, Stein, "The Jackknife Estimate of Variance", 1981, equation 1.1.
    """
    count = len(confusions)
    if count < 2:
        return math.nan
    without = np.array([_sum([*confusions[:k], *confusions[k + 1 :]]).mean_iou for k in range(count)])
    return float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))


def searched(
    samples: Samples,
    candidates: Sequence[Candidate],
    folds: Sequence[Fold],
    balanced: bool,
    seed: int,
    joins: Callable[[Sequence[str]], bool],
    said: Callable[[str], None],
) -> list[Score]:
    """The scores of all candidates, and of those maps together that promise most; the chosen one first.

    The best map is joined with the next finer and the next coarser one, as long as that gains.
    """
    scores: dict[tuple[str, ...], Score] = {}

    def score(candidate: Candidate) -> Score:
        if candidate.tensors not in scores:
            said(f"scoring {candidate.name}")
            scores[candidate.tensors] = scored(samples, candidate, folds, balanced, seed)
        return scores[candidate.tensors]

    for candidate in candidates:
        score(candidate)
    maps = sorted((c.features[0] for c in candidates if _is_map(c)), key=lambda f: f.stride)
    singles = [scores[(f.tensor,)] for f in maps]
    if len(maps) > 1:
        best = max(singles, key=lambda s: s.mean_iou)
        while len(best.candidate.features) < MOST:
            wider = [score(c) for c in map(joined, _wider(maps, best.candidate.features)) if joins(c.tensors)]
            better = max(wider, key=lambda s: s.mean_iou, default=best)
            if better.mean_iou <= best.mean_iou:
                break
            best = better
    ranked = sorted(scores.values(), key=lambda s: -s.mean_iou)
    if (
        len(np.unique(samples.images)) == 1
    ):  # its folds do not show how images vary, which is what fewer maps guard against
        return ranked
    least = ranked[0].mean_iou - np.nan_to_num(ranked[0].error)
    chosen = min((s for s in ranked if s.mean_iou >= least), key=lambda s: len(s.candidate.features))
    return [chosen, *(s for s in ranked if s is not chosen)]


def _is_map(candidate: Candidate) -> bool:
    """Does it read single cells of one feature map, which can be joined with others?"""
    (*more, first) = candidate.features
    return not more and first.fact.is_live and not first.covers


def _wider(maps: Sequence[Feature], have: Sequence[Feature]) -> list[tuple[Feature, ...]]:
    """The maps that are had with the next finer one, and with the next coarser one."""
    places = [k for k, f in enumerate(maps) if f in have]
    more = [k for k in (places[0] - 1, places[-1] + 1) if 0 <= k < len(maps)]
    return [(*have, maps[k]) for k in more]
