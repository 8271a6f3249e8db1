"""How faithful the answers of a rounded file are to those of the file that it was made from, output by output.

The share of cells with the same best class is what users know, but a background class, or one channel that is seldom
high, may hide a file that answers nothing. Two measures go with it that no such file passes: the least share of the
cells of one class that keep it, and the noise of the scores, relative to their spread. The noise is the inverse of the
ratio of signal to noise that onnxruntime computes (`qdq_loss_debug`), with each channel's mean taken off the signal: an
answer that is always the same has a noise of 1 at least.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.model.agreement import difference
from onnx_fcn.running.network import converted_in
from onnx_fcn.tables import percent

__all__ = ["COUNTED", "LEAST_RECALL", "MOST_NOISE", "Ends", "Fidelity", "Output", "Tally", "outputs_of"]


#: The least share of the cells of a class that keep it. Good files keep more than 0.85 of each; one that always answers
#: the same keeps nothing of all classes but one.
LEAST_RECALL = 0.5

#: From how many cells on a class is judged: with fewer, a few that were undecided before say too much.
COUNTED = 20

#: The most noise of the scores, relative to their spread: a signal 10 dB above the noise. Good files are at 0.02 to
#: 0.1, one that always answers the same is at 1 or more, and one with the opposite sign at 2.
MOST_NOISE = 0.3

#: A spread below this many times the largest score is none: floats have seven digits.
LEAST_SPREAD = 1e-6

#: Types of scores.
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Output:
    """An output as it is compared.

    Attributes:
        name: its name.
        is_map: has it a cell for each position of the image?
        channels: the axis of the scores of the classes; None if a cell has one score, or a class.
        tells_classes: are the answers classes, not scores?
    """

    name: str
    is_map: bool
    channels: int | None
    tells_classes: bool

    @property
    def has_sides(self) -> bool:
        """Has a cell one score? Its classes are then above, and not above, the middle of all scores."""
        return self.is_map and self.channels is None and not self.tells_classes


@dataclass(frozen=True)
class Fidelity:
    """How one output of a rounded file compares with that of the file before, over all cells of all images.

    Attributes:
        output: its name.
        has_sides: whether a cell has one score. It then has two classes: 1 above the middle between the smallest and
            the largest score, and 0.
        agreement: the share of the cells with the same best class; None for scores that are no map.
        recall: the least share of the cells of one class that keep it, over the classes with at least `COUNTED`; None
            if there are none.
        weakest: that class.
        noise: the root mean square of the differences of scores, relative to their spread, which is the standard
            deviation around the mean of each channel; None if the answers are classes.
        error: the largest difference of a score, relative to the largest score of its image; None if the answers are
            classes.
    """

    output: str
    has_sides: bool
    agreement: float | None
    recall: float | None
    weakest: int | None
    noise: float | None
    error: float | None

    def to_dict(self) -> dict[str, Any]:
        """The measures as a JSON object."""
        names = ("agreement", "recall", "weakest", "noise", "error")
        return {"name": self.output, **{name: getattr(self, name) for name in names}}

    def fault(self, agreement: float) -> str:
        """Why the file is not faithful, and what to do, as a sentence; empty if it is.

        Args:
            agreement: the least share of the cells with the same best class.
        """
        if self.agreement is not None and self.agreement < agreement:
            return (
                f"only {percent(self.agreement, agreement)} of the cells {self.same}, and "
                f"{percent(agreement, self.agreement)} are asked for: calibrate on more images, or allow less by "
                "--agreement"
            )
        if self.recall is not None and self.recall < LEAST_RECALL:
            return (
                f"only {percent(self.recall, LEAST_RECALL)} of the cells {self.kept}, and "
                f"{percent(LEAST_RECALL, self.recall)} is the least: calibrate on more images that show them"
            )
        if self.noise is not None and not self.noise <= MOST_NOISE:
            return (
                f"the scores are off by {self.noise:.3g} of their spread (root mean square), and {MOST_NOISE:g} is the "
                "most: calibrate and compare on more images, as different as those that it will be used on"
            )
        return ""

    @property
    def same(self) -> str:
        """What cells that agree have in common, in words."""
        same = "are on the same side of the middle of the scores" if self.has_sides else "have the same best class"
        return f"{same} as before"

    @property
    def kept(self) -> str:
        """Which cells have the least recall, and what that is a share of, in words."""
        if not self.has_sides:
            return f"of class {self.weakest} keep it"
        return f"{'above' if self.weakest else 'below'} the middle of the scores stay there"


class Tally:
    """What is counted of one output, image by image.

    Args:
        output: the output.
        middle: between its smallest and its largest score, if a cell has one.
        batch: how often each image is in a batch.
    """

    def __init__(self, output: Output, middle: float = 0.0, batch: int = 1) -> None:
        self.output = output
        self._middle, self._least = middle, COUNTED * batch
        self._cells: Counter[int] = Counter()
        self._kept: Counter[int] = Counter()
        self._same: list[tuple[int, int]] = []  # of each image: cells that agree, and all
        self._errors: list[float] = []
        self._largest = self._noise = 0.0
        self._moments: list[_Moments] = []

    def add(self, want: Array, have: Array) -> tuple[float | None, float | None]:
        """Count an image; returns its own (error, agreement)."""
        assert want.shape == have.shape, "a rounded file has the shapes of the file before"
        output, error, agreement = self.output, None, None
        if output.is_map or output.tells_classes:
            before, after = self._classes(want), self._classes(have)
            kept = before == after
            if output.is_map:
                self._cells.update(before.ravel().tolist())
                self._kept.update(before[kept].tolist())
            self._same.append((int(kept.sum()), kept.size))
            agreement = _share(self._same[-1:])
        if not output.tells_classes:
            error = difference(have, want)
            self._errors.append(error)
            self._add_scores(self._by_channel(want), self._by_channel(have))
        return error, agreement

    def result(self) -> Fidelity:
        """All images together.

        Raises:
            OptionError: if a map is the same everywhere, so that nothing was compared.
        """
        output = self.output
        if output.is_map and (len(self._cells) == 1 if output.tells_classes else not self._has_spread()):
            raise OptionError(
                f"output '{output.name}' is the same at every cell of the images compared, so that a dead file would "
                "agree, too: give images that it tells apart"
            )
        shares = {k: self._kept[k] / n for k, n in sorted(self._cells.items()) if n >= self._least}
        weakest = min(shares, key=shares.__getitem__) if shares else None
        return Fidelity(
            output.name,
            output.has_sides,
            _share(self._same) if self._same else None,
            None if weakest is None else shares[weakest],
            weakest,
            self._relative_noise() if self._errors else None,
            max(self._errors, default=None),
        )

    def _classes(self, values: Array) -> Array:
        """The best class at each cell."""
        classes = values
        if self.output.channels is not None:
            classes = values.argmax(self.output.channels)
        elif not self.output.tells_classes:
            classes = (values > self._middle).astype(np.uint8)
        return classes

    def _by_channel(self, values: Array) -> Array:
        """(channels, answers)."""
        axis = self.output.channels
        return values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)

    def _add_scores(self, want: Array, have: Array) -> None:
        """Count the differences of scores, and their spread; a channel at a time, since maps may be large."""
        self._moments = self._moments or [_Moments() for _ in want]
        for moments, a, b in zip(self._moments, want, have):
            finite = np.isfinite(a)
            before, after = a[finite].astype(np.float64), b[finite].astype(np.float64)
            if before.size:
                moments.add(before)
                self._largest = max(self._largest, float(np.abs(before).max()))
                apart = after - before
                self._noise += float(np.square(apart[np.isfinite(apart)]).sum())  # the error is infinite beyond

    def _has_spread(self) -> bool:
        count, squares = sum(m.count for m in self._moments), sum(m.squares for m in self._moments)
        return squares > count * (LEAST_SPREAD * self._largest) ** 2

    def _relative_noise(self) -> float:
        """The noise; of what is no map and has no spread, the error."""
        error = max(self._errors)
        if math.isinf(error) or not self._has_spread():
            return error
        return math.sqrt(self._noise / sum(m.squares for m in self._moments))


@dataclass
class Ends:
    """The smallest and the largest of the scores that are finite."""

    low: float = math.inf
    high: float = -math.inf

    def add(self, values: Array) -> None:
        """Look at more scores."""
        values = values[np.isfinite(values)]
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def middle(self) -> float:
        """Between both."""
        return (self.low + self.high) / 2


@dataclass
class _Moments:
    """The mean of numbers and the sum of their squared distances from it, from parts (Chan, Golub and LeVeque)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Array) -> None:
        mean = float(values.mean())
        apart, count = mean - self.mean, self.count + values.size
        self.squares += float(np.square(values - mean).sum()) + apart**2 * self.count * values.size / count
        self.mean += apart * values.size / count
        self.count = count


def outputs_of(model: ModelProto) -> tuple[Output, ...]:
    """The outputs of a converted model, in the order of its graph."""
    return tuple(_output(model, declared) for declared in model.graph.output)


def _output(model: ModelProto, declared: ValueInfoProto) -> Output:
    name = declared.name
    try:
        found = converted_in(model, model, name)
    except OptionError:  # it is no map
        is_float = declared.type.tensor_type.elem_type in FLOATS
        return Output(name, is_map=False, channels=None, tells_classes=not is_float)
    layout = found.answers.layout
    channels = layout.index("C") if "C" in layout and (found.width or 1) > 1 else None
    return Output(name, True, channels, found.tells_classes)


def _share(counts: Sequence[tuple[int, int]]) -> float:
    """(some, all) of each image → the share of all."""
    whole = sum(n for _, n in counts)
    return sum(n for n, _ in counts) / whole if whole else 1.0
