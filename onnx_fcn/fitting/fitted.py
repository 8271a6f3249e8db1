"""What a training gave: the layer, how good it is on images that it was not trained on, and the trained file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from onnx_fcn.checking.checks import Validation
from onnx_fcn.fitting.search import Score
from onnx_fcn.geometry import Geometry
from onnx_fcn.model.document import Document
from onnx_fcn.reporting.checks import tables_of, validation_dict
from onnx_fcn.running.confusion import Confusion
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tables import Table, bytes_of, pixels, plain

__all__ = ["Fitted", "Tested"]


#: Version of the report as JSON.
FORMAT = 1

#: Classes in the table of the terminal.
SHOWN = 12


@dataclass(frozen=True)
class Tested:
    """How well the layer on some maps does on images that it was not trained on.

    Attributes:
        at: the maps, such as ``cut`` or ``stride 8+16``.
        tensors: their names in the original.
        features: features for each place.
        c: the chosen C, the inverse of the penalty on weights.
        standard_error: the standard error of `mean_iou`; NaN for a single fold.
        confusion: of the labelled pixels of all folds.
        mean_iou_by_c: `mean_iou` for every C that was tried.
    """

    at: str
    tensors: tuple[str, ...]
    features: int
    c: float
    standard_error: float
    confusion: Confusion
    mean_iou_by_c: Mapping[float, float]

    @property
    def mean_iou(self) -> float:
        """Intersection over union of all folds together, averaged over classes."""
        return self.confusion.mean_iou

    @classmethod
    def of(cls, score: Score) -> Tested:
        """The result of a search for one candidate."""
        candidate = score.candidate
        return cls(
            candidate.name,
            candidate.tensors,
            candidate.numbers,
            score.c,
            score.error,
            score.confusion,
            score.mean_iou_by_c,
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "at": self.at,
            "tensors": self.tensors,
            "features": self.features,
            "c": self.c,
            "mean_iou_by_c": {f"{c:g}": _json(iou) for c, iou in self.mean_iou_by_c.items()},
            "standard_error": _json(self.standard_error),
            **_measures(self.confusion),
        }


@dataclass(frozen=True)
class Fitted:
    """The result of `fit`.

    Attributes:
        path: the trained file; None if none was written.
        size: bytes of that file.
        output: the name of its output.
        at: the maps that the layer reads, such as ``stride 8+16``.
        tensors: their names in the original.
        c: C, the inverse of the penalty on weights.
        names: the names of the classes.
        pixels: labelled pixels of each class.
        samples: pixels that the layer was trained on.
        images: number of images with labels.
        folds: what the folds are, in words; empty if nothing could be held out.
        scores: of every candidate on the folds, the chosen one first.
        held_out: of the trained layer on the held-out images; None if there are none.
        preprocessing: how pixels become the network's input.
        balance: ``balanced`` or ``none``.
        notes: sentences that a user should read.
        geometry: where the answers are.
        validation: the comparison of the trained file with the original.
        seconds: duration.
    """

    path: str | None
    size: int
    output: str
    at: str
    tensors: tuple[str, ...]
    c: float
    names: tuple[str, ...]
    pixels: tuple[int, ...]
    samples: int
    images: int
    folds: str
    scores: tuple[Tested, ...]
    held_out: Confusion | None
    preprocessing: Preprocessing | None
    balance: str
    notes: tuple[str, ...]
    geometry: Geometry
    validation: Validation
    seconds: float
    _document: Document = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trained model, whole or not at all.

        Raises:
            OptionError: if the path cannot be written.
        """
        self._document.save(path)

    def to_proto(self) -> onnx.ModelProto:
        """The trained model in memory, with its weights."""
        return self._document.to_proto()

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object; docs/training.md has its keys."""
        return {
            "version": FORMAT,
            "path": self.path,
            "output": self.output,
            "at": self.at,
            "tensors": self.tensors,
            "c": self.c,
            "balance": self.balance,
            "classes": [{"name": name, "pixels": count} for name, count in zip(self.names, self.pixels)],
            "images": self.images,
            "samples": self.samples,
            "folds": self.folds or None,
            "scores": [s.to_dict() for s in self.scores],
            "held_out": None if self.held_out is None else _measures(self.held_out),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
            "notes": self.notes,
            "validation": validation_dict(self.validation),
            "seconds": self.seconds,
        }

    def tables(self, *, verbose: bool = False) -> list[Table]:
        """The report as tables: every candidate and every check if `verbose`."""
        answers = self.geometry.of(self.output)
        stride = pixels([float(s) for s in answers.stride], square=True)
        labelled = ", ".join(f"{name} {count:,}" for name, count in zip(self.names[:SHOWN], self.pixels))
        more = f" and {len(self.names) - SHOWN} more classes" if len(self.names) > SHOWN else ""
        rows = [
            ("labels", f"{self.images} {'image' if self.images == 1 else 'images'}, pixels: {labelled}{more}"),
            ("network", f"gets {self.preprocessing}"),
            ("layer", f"reads {self.at}: {', '.join(map(repr, self.tensors))}; an answer every {stride}"),
            ("trained", f"on {self.samples:,} pixels, C = {self.c:g}, classes {self._balance()}"),
        ]
        tables = [Table("", (), tuple(rows))]
        if self.scores:
            tables.append(self._candidates(verbose))
            tables.append(_by_class(f"{self.at}, on {self.folds}", self.names, self.scores[0].confusion, verbose))
        if self.held_out is not None:
            tables.append(_by_class("held-out images", self.names, self.held_out, verbose))
        if self.notes:
            tables.append(Table("Notes", (), tuple(("–", note) for note in self.notes)))
        tables += tables_of(self.validation, verbose=verbose)
        if self.path is not None:
            tables.append(Table("", (), (("written", f"{self.path}, {bytes_of(self.size)}"),)))
        return tables

    def text(self, *, verbose: bool = False) -> str:
        """The report as plain text."""
        return plain(self.tables(verbose=verbose))

    def __str__(self) -> str:
        return self.text()

    def _balance(self) -> str:
        return "balanced, so scores are not calibrated probabilities" if self.balance == "balanced" else "not balanced"

    def _candidates(self, verbose: bool) -> Table:
        rows = []
        for k, score in enumerate(self.scores if verbose else self.scores[:SHOWN]):
            error = "" if math.isnan(score.standard_error) else f" ± {score.standard_error:.3f}"
            more = (f"{score.features}", f"{score.c:g}") if verbose else ()
            note = self._why() if k == 0 else ""
            rows.append((score.at, f"{score.mean_iou:.3f}{error}", f"{score.confusion.accuracy:.3f}", *more, note))
        headings = ("maps", "mean IoU", "pixels right", *(("features", "C") if verbose else ()), "")
        return Table(f"On {self.folds}", headings, tuple(rows))

    def _why(self) -> str:
        """Why the first candidate was taken."""
        if len(self.scores) == 1:
            return "as asked for"
        best = max(self.scores, key=lambda s: s.mean_iou)
        if best.mean_iou == self.scores[0].mean_iou:
            return "taken: the best"
        return f"taken: within a standard error of {best.at}, with fewer maps"


def _by_class(title: str, names: tuple[str, ...], confusion: Confusion, verbose: bool) -> Table:
    """IoU and recall of each class."""
    truth, rows = confusion.matrix.sum(1), []
    for k in range(len(names) if verbose else min(len(names), SHOWN)):
        others = confusion.matrix[k].astype(float)
        others[k] = 0
        taken = f"{names[int(others.argmax())]} ({others.max() / truth[k]:.1%})" if others.any() else "–"
        rows.append((names[k], _shown(confusion.iou[k]), _shown(confusion.recall[k]), taken))
    if len(rows) < len(names):
        rows.append(("…", f"{len(names) - len(rows)} more", "", ""))
    return Table(f"By class: {title}", ("class", "IoU", "recall", "most often taken for"), tuple(rows))


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _measures(confusion: Confusion) -> dict[str, Any]:
    return {
        "pixel_accuracy": _json(confusion.accuracy),
        "mean_iou": _json(confusion.mean_iou),
        "iou": [_json(v) for v in confusion.iou.tolist()],
        "recall": [_json(v) for v in confusion.recall.tolist()],
        "confusion": [[round(float(v)) for v in row] for row in confusion.matrix],
    }


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
