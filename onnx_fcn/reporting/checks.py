"""A validation as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from onnx_fcn.checking.checks import Check, Validation
from onnx_fcn.tables import Table, size_text

__all__ = ["tables_of", "validation_dict"]


def validation_dict(validation: Validation) -> dict[str, Any]:
    """A validation as a JSON object: `passed`, the attributes of its `Check`s, and what was not compared."""
    checks = [asdict(c) | {"error": c.error if math.isfinite(c.error) else None} for c in validation.checks]
    return {"passed": validation.passed, "checks": checks, "uncovered": list(validation.uncovered)}


#: What each kind of check compares the answers with; "{}" is the number of windows.
QUESTIONS = {
    "native": "the original at its native size",
    "law": "the original head on {} of the feature map",
    "crops": "the original on {}",
    "trunk": "the original trunk on a crop, away from padding",
    "attention": "the original's map of the whole image, after attention",
    "dense": "the original's map, or that of a crop, away from padding",
    "phases": "the original trunk on the shifted image",
    "grid": "the predicted number of answers",
    "form": "the form of the answers",
    "fixed": "the conversion before its size or batch was fixed",
    "fit": "the trained layer on the original's features",
    "metadata": "the description of the answers in the metadata",
}


def tables_of(validation: Validation, *, verbose: bool = False) -> Iterator[Table]:
    """The tables of a validation: the worst check of each kind, and all checks if `verbose`."""
    is_fitted = any(c.kind == "fit" for c in validation.checks)
    right, wrong = ("it answers", "it does NOT answer") if is_fitted else ("it is", "it is NOT")
    verdict = f"{right if validation.passed else wrong} {'as trained' if is_fitted else 'the same network'}"
    rows = []
    for kind in QUESTIONS:
        checks = [c for c in validation.checks if c.kind == kind]
        if checks:
            rows.append(_worst(checks))
    rows += [("–", "not compared", words) for words in validation.uncovered]
    yield Table(f"Validation: {verdict}; largest difference from", (), tuple(rows))
    if verbose:
        headings = ("check", "image", "largest error", "", "")
        yield Table("Every check", headings, tuple(map(_check_row, validation.checks)))


def _worst(checks: Sequence[Check]) -> tuple[str, str, str]:
    """The largest error of checks of one kind, its limit, and what the answers were compared with."""
    worst = max(checks, key=lambda c: (not c.passed, -math.inf if math.isnan(c.error) else c.error))
    shown = checks if worst.passed else [worst]
    most = {c.size: c for c in sorted(shown, key=lambda c: c.compared)}.values()  # the most at each size
    total = sum(c.compared for c in most)
    noun = "crop" if worst.kind == "crops" else "window"
    question = QUESTIONS[worst.kind].format(f"{total} {noun}{'' if total == 1 else 's'}")
    shares = [c.top1 * c.compared for c in most if c.top1 is not None]
    same = sum(shares) / max(total, 1) if len(shares) == len(most) else None
    summary = _crop_summary(replace(worst, compared=total, top1=same))
    return f"{worst.error:.1e}", _limit(worst), ": ".join(filter(None, (question, summary)))


def _check_row(check: Check) -> tuple[str, ...]:
    subject = f"{check.kind}: '{check.subject}', batch {check.batch}"
    remarks = "; ".join(filter(None, (_crop_summary(check), check.note)))
    return subject, size_text(check.size), f"{check.error:.1e}", _limit(check), remarks


def _limit(check: Check) -> str:
    if check.tolerance is None:
        return "for information"
    return f"{'within' if check.passed else 'EXCEEDS'} {check.tolerance:.0e}"


def _crop_summary(check: Check) -> str:
    """The median error of crops that are compared for information, and the number with the same best class."""
    median = "" if check.tolerance is not None or check.median is None else f"median {check.median:.1e}"
    same = "" if check.top1 is None else f"same best class in {round(check.top1 * check.compared)}"
    return ", ".join(filter(None, (median, same if median or check.kind == "law" else "")))
