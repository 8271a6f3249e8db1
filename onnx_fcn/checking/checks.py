"""The result of comparing two models: each comparison as a value, and all of them together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["NONE_LARGER", "Check", "Validation"]


#: What a calibrated file is not compared on if all images that were given have the native size: then nothing shows how
#: far apart its answers are.
NONE_LARGER = "larger images, of which none was given"


#: What is compared with what, by the kind of check, as the subject of a sentence.
COMPARED = {
    "native": "the answer at the native size",
    "law": "a cell of the map and the original head on its window",
    "crops": "a cell of the map and the original network on its crop",
    "trunk": "a cell of the feature map, away from padding, and the original's for a crop",
    "attention": "the feature map and that of the original's nodes on the whole image",
    "dense": "a cell of the map and the original's",
    "phases": "a phase of the map and the original trunk on the shifted image",
    "grid": "the number of answers",
    "form": "the answers and what their form makes from the map",
    "fixed": "the answers and those of the conversion before its size or batch was fixed",
    "fit": "the answers and the trained layer on the original's features",
    "metadata": "what the metadata say",
}


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        kind: ``native``, ``law``, ``crops``, ``trunk``, ``attention``, ``dense``, ``phases``, ``form``, ``grid``,
            ``fixed``, ``fit`` or ``metadata``.
        subject: what was compared, such as an output's name.
        size: the size of the image, in pixels; empty where no image is needed.
        batch: the number of images.
        compared: the number of windows, or of elements.
        error: the largest difference relative to the largest answer; NaN if it could not be measured.
        tolerance: the largest error allowed; None if the check is only information.
        note: a sentence.
        median: of crops, the error of the median window; None for other checks.
        top1: of crops, and of windows if the judged file is coarser, the share with the same best class; None if the
            answers are not scores of classes.
    """

    kind: str
    subject: str
    size: tuple[int, ...]
    batch: int
    compared: int
    error: float
    tolerance: float | None
    note: str = ""
    median: float | None = None
    top1: float | None = None

    @property
    def passed(self) -> bool:
        """Is the error within its tolerance, or the check only information?"""
        return self.tolerance is None or self.error <= self.tolerance


@dataclass(frozen=True)
class Validation:
    """All comparisons of two models.

    Attributes:
        checks: in the order in which they were made.
        uncovered: what could not be compared, or would have taken too long, in words.
    """

    checks: tuple[Check, ...]
    uncovered: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Did all checks pass?"""
        return all(c.passed for c in self.checks)

    @property
    def is_same_network(self) -> bool:
        """Did all checks of the answers pass, leaving aside those of the metadata?"""
        return all(c.passed for c in self.checks if c.kind != "metadata")

    def worst(self, kind: str) -> float | None:
        """The largest error of one kind of check; None if there was no such check."""
        errors = [c.error for c in self.checks if c.kind == kind]
        return max(errors) if errors else None

    def failure(self) -> str:
        """One sentence about the worst failure."""
        worst = max((c for c in self.checks if not c.passed), key=lambda c: np.nan_to_num(c.error, nan=np.inf))
        where = f" at {'×'.join(map(str, worst.size))}" if worst.size else ""
        subject = f"{COMPARED[worst.kind]} of '{worst.subject}'{where}"
        if not math.isfinite(worst.error):
            return f"{subject}: {worst.note or 'NaN or infinities are at other places than in the original'}"
        verb = "differs" if worst.kind in ("native", "grid") else "differ"
        reason = f"{verb} by {worst.error:.2g} (allowed {worst.tolerance:.2g})"
        return f"{subject} {reason}" + (f"; {worst.note}" if worst.note else "")
