"""A converted model and its geometry as one object: pictures in, answers at their places out.

    model = onnx_fcn.DenseModel("out.onnx", preprocess="imagenet", labels="labels.txt")
    result = model.run("photo.jpg")
    for found in result.best("tabby cat", count=5):
        print(found.score, found.box)

A `DenseResult` tells the scores of every cell, as the network gave them and as probabilities, and where in the picture
each cell's window is. A picture may be run at several sizes; `detect` looks for the best windows in all the results.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError, reason_of
from onnx_fcn.geometry import Grid, interpolate
from onnx_fcn.images.image import Image, check_picture, open_image, resized
from onnx_fcn.images.stored import Picture
from onnx_fcn.model.metadata import read_geometry
from onnx_fcn.running.network import open_converted
from onnx_fcn.running.preprocess import Preprocessing, chosen, is_picture

__all__ = ["ACTIVATIONS", "DenseModel", "DenseResult", "Detection", "detect", "ranking"]


#: What makes probabilities of scores; ``auto`` looks at the values.
ACTIVATIONS = ("auto", "softmax", "sigmoid", "none")

#: How far above 1 rounding in float16 may take a probability.
ROUNDING = 1e-3

#: Numbers of classes beyond this are none.
MOST_CLASSES = 1 << 20

#: Pixels along an axis that Pillow makes at most.
LARGEST = (1 << 31) - 1

#: From which probability on a single class is there.
HALF = 0.5

#: Windows of one class that share more of their union than this are one finding.
OVERLAP = 0.3


@dataclass(frozen=True)
class Detection:
    """One window that a class was found in.

    Attributes:
        box: (left, top, right, bottom) in pixels of the picture, cut at its border.
        score: the probability.
        index: the class.
        label: its name.
        cell: (row, column) of the answer.
    """

    box: tuple[float, ...]
    score: float
    index: int
    label: str
    cell: tuple[int, ...]


@dataclass(frozen=True)
class DenseResult:
    """The answers for one picture.

    Attributes:
        map: the scores as the network gave them, (classes, rows, columns); (rows, columns) with the class of each
            cell, where the model tells no more.
        grid: where the cells are, in pixels of what the network read: the picture, perhaps resized.
        size: of the picture, (height, width).
        activation: what makes probabilities of the scores: ``softmax``, ``sigmoid`` or ``none``.
        labels: the names of the classes.
    """

    map: Array
    grid: Grid
    size: tuple[int, ...]
    activation: str
    labels: tuple[str, ...]

    @property
    def scale(self) -> tuple[float, ...]:
        """Pixels that the network read for each pixel of the picture, along each axis."""
        return tuple(read / given for read, given in zip(self.grid.size, self.size))

    @property
    def boxes(self) -> Array:
        """The window of each cell: (rows, columns, 4) in pixels of the picture, left, top, right, bottom."""
        boxes: Array = self.grid.boxes / np.array(self.scale[::-1] * 2)
        return boxes

    @cached_property
    def probabilities(self) -> Array:
        """(classes, rows, columns), from 0 to 1 unless the activation is ``none``.

        Raises:
            OptionError: the model tells the best class only.
        """
        if self.map.ndim == len(self.size):
            raise OptionError(
                "the model tells the best class only, without scores: convert the original without --argmax, or with "
                "--outputs to take the scores that the class is chosen from"
            )
        if self.activation == "softmax":
            powers = np.exp(self.map - self.map.max(axis=0))
            shares: Array = powers / powers.sum(axis=0)
            return shares
        if self.activation == "sigmoid":
            rising: Array = 0.5 * (1 + np.tanh(self.map / 2))  # 1/(1 + exp(-x)), which does not overflow
            return rising
        return self.map

    @property
    def is_single(self) -> bool:
        """Is there a single score, which says whether one thing is there?"""
        return self.map.ndim > len(self.size) and len(self.map) == 1

    @property
    def names(self) -> tuple[str, ...]:
        """What the numbers in `classes` are called: the labels, or below and from one half on for a single score."""
        label = self.labels[0]
        return ("below 0.5", "from 0.5 on" if label == "0" else label) if self.is_single else self.labels

    @cached_property
    def classes(self) -> Array:
        """The best class of each cell: (rows, columns); for a single score, whether it is at least one half, as 0 or 1.

        Raises:
            OptionError: a single score is no probability.
        """
        if self.map.ndim == len(self.size):
            return self.map
        if self.is_single:
            (shares,) = self.probabilities
            if shares.min() < 0 or shares.max() > 1 + ROUNDING:
                raise OptionError(
                    "the single score is not a probability, so nothing says from which value on it means yes: "
                    "--activation sigmoid makes one of it"
                )
            there: Array = (shares >= HALF).astype(np.int64)
            return there
        best: Array = self.map.argmax(axis=0)
        return best

    def top(self, count: int = 5) -> tuple[Array, Array]:
        """The best classes of each cell, and their probabilities: each (count, rows, columns), the best first."""
        scores = self.probabilities
        count = min(count, len(scores))
        few = np.argpartition(-scores, count - 1, axis=0)[:count]
        order = np.argsort(-np.take_along_axis(scores, few, axis=0), axis=0, kind="stable")
        classes = np.take_along_axis(few, order, axis=0)
        return classes, np.take_along_axis(scores, classes, axis=0)

    def class_index(self, name: int | str) -> int:
        """The class of a name, or of its number.

        Raises:
            OptionError: there is no such class, or there are several.
        """
        found = [k for k, label in enumerate(self.labels) if label == name]
        found = found or [k for k, label in enumerate(self.labels) if label.lower() == str(name).lower()]
        if len(found) > 1:
            raise OptionError(f"classes {', '.join(map(str, found))} are all called '{name}': tell the number")
        if found:
            return found[0]
        if str(name).isdecimal() and int(name) < len(self.labels):
            return int(name)
        near = [] if str(name).isdecimal() else difflib.get_close_matches(str(name), self.labels, 3)
        hint = f"; do you mean {' or '.join(map(repr, near))}?" if near else ""
        last = len(self.labels) - 1
        raise OptionError(f"there is no class '{name}' among the {last + 1}, numbered from 0 to {last}{hint}")

    def best(
        self, name: int | str, count: int = 1, *, threshold: float = -math.inf, overlap: float = OVERLAP
    ) -> list[Detection]:
        """The windows in which a class is most probable, as `detect` finds them."""
        return detect([self], name, count, threshold=threshold, overlap=overlap)

    def at_pixels(self, values: Array) -> Array:
        """Values of cells at the pixels of the picture: (..., rows, columns) → (..., height, width).

        Linear between the middles of windows, and constant beyond the outermost, as with ``--full-size``.
        """
        return interpolate(values, [self._cells_at_pixels(k, n) for k, n in enumerate(self.size)])

    def classes_at_pixels(self) -> Array:
        """The best class of the cell whose window has its middle nearest to each pixel: (height, width)."""
        nearest = [np.rint(self._cells_at_pixels(k, n)).astype(np.int64) for k, n in enumerate(self.size)]
        classes: Array = self.classes[np.ix_(*nearest)]
        return classes

    def _cells_at_pixels(self, axis: int, pixels: int) -> Array:
        """Where the pixels of the picture lie between the middles of the cells' windows, along an axis."""
        return self.grid.cells_at(axis, (np.arange(pixels) + 0.5) * self.scale[axis] - 0.5)


def detect(
    results: Sequence[DenseResult],
    name: int | str,
    count: int = 1,
    *,
    threshold: float = -math.inf,
    overlap: float = OVERLAP,
) -> list[Detection]:
    """The windows in which a class is most probable, over all results for one picture, the best first.

    Greedy non-maximum suppression: of windows that share more of their union than `overlap` the best one counts.

    Args:
        results: of one picture at several sizes, say.
        name: the class, or its number.
        count: how many at most.
        threshold: the least probability; by default whatever there is.
        overlap: intersection over union, from 0 to 1.

    Raises:
        OptionError: there is no such class.
    """
    index, rank = results[0].class_index(name), len(results[0].size)
    scores = np.concatenate([r.probabilities[index].ravel() for r in results])
    ends = np.array(results[0].size[::-1])
    boxes = np.concatenate([r.boxes.reshape(-1, 2 * rank) for r in results])
    boxes = np.concatenate([boxes[:, :rank].clip(0, ends), boxes[:, rank:].clip(0, ends)], axis=1)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]
    found: list[Detection] = []
    while len(order) and len(found) < count:
        best = int(order[0])
        found.append(
            Detection(
                tuple(boxes[best].tolist()),
                float(scores[best]),
                index,
                results[0].labels[index],
                _cell(results, best),
            )
        )
        order = order[_overlap(boxes[order], boxes[best]) <= overlap]
    return found


def ranking(results: Sequence[DenseResult]) -> list[int]:
    """All classes, by the highest probability anywhere; of those that are equal to two digits the most local first."""
    cells = np.concatenate([r.probabilities.reshape(len(r.probabilities), -1) for r in results], axis=1)
    order = np.lexsort((cells.mean(axis=1), -cells.max(axis=1).round(2)))
    return [int(k) for k in order]


def _cell(results: Sequence[DenseResult], position: int) -> tuple[int, ...]:
    """The cell at a position in the concatenated cells of all results."""
    for result in results:
        cells = int(np.prod(result.grid.shape))
        if position < cells:
            break
        position -= cells
    return tuple(int(k) for k in np.unravel_index(position, result.grid.shape))


def _overlap(boxes: Array, box: Array) -> Array:
    """Intersection over union of boxes with one box; 1 with itself, however small it is."""
    rank = len(box) // 2
    shared = np.minimum(boxes[:, rank:], box[rank:]) - np.maximum(boxes[:, :rank], box[:rank])
    intersection = shared.clip(0).prod(axis=1)
    areas, area = (boxes[:, rank:] - boxes[:, :rank]).prod(axis=1), (box[rank:] - box[:rank]).prod()
    union = areas + area - intersection
    ratio: Array = np.where((boxes == box).all(axis=1), 1, intersection / np.maximum(union, 1e-9))
    return ratio


class DenseModel:
    """A model that onnx_fcn converted, ready to run on pictures of any size.

    Attributes:
        geometry: where its answers are.
        answers: the geometry of the output that is looked at.
        output: its name.
        preprocess: what becomes of pixels.
        channels: that the network reads.
        labels: the names of the classes; their numbers, unless they were given.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | onnx.ModelProto,
        *,
        output: str | None = None,
        preprocess: str | Preprocessing | None = None,
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
        activation: str = "auto",
        providers: Sequence[Any] | None = None,
        session_options: Any = None,
    ) -> None:
        """Load a model that `convert` wrote.

        Args:
            source: the file, or the model with its weights in it.
            output: the output to look at, where there are several; by default the first.
            preprocess: a preset's name, or the numbers; by default ``unit``, and ``raw`` where the network reads
                integers.
            labels: the names of the classes, or a text file with one on each line.
            activation: ``softmax``, ``sigmoid`` or ``none``; ``auto`` leaves scores that are all from 0 to 1 as they
                are, and takes others for logits: a softmax, or a sigmoid of a single class.
            providers: of onnxruntime, as it takes them; the CPU by default.
            session_options: an `onnxruntime.SessionOptions`.

        Raises:
            ModelError: it is no model that onnx_fcn converted, or onnxruntime does not load it.
            OptionError: an option does not fit the model.
        """
        if activation not in ACTIVATIONS:
            raise OptionError(f"an activation is {', '.join(ACTIVATIONS)}, not '{activation}'")
        self._activation = activation
        self.geometry = read_geometry(source)
        self._converted = converted = open_converted(source, output)
        self.answers, self.output, self.channels = converted.answers, converted.output, converted.channels
        if converted.batch not in (None, 1):
            images = f"{converted.batch} images"
            raise OptionError(f"the model takes {images} at once: convert the original with --dynamic-batch")
        if converted.tells_classes and converted.width not in (None, 1):
            raise OptionError(
                f"output '{self.output}' tells the numbers of {converted.width} classes for each window, and no "
                "scores: look at another output, or convert the original with --outputs to take its scores"
            )
        self._session = converted.session(providers, session_options)
        self._has_default = preprocess is None
        self.preprocess = chosen(preprocess, "unit" if converted.image_type.kind == "f" else "raw")
        self.labels = _labels(labels)

    @property
    def window(self) -> tuple[int, ...]:
        """Pixels that one answer is about: (height, width)."""
        return self.geometry.window

    def run(self, picture: Picture, scale: float = 1.0, *, feeds: Mapping[str, Array] | None = None) -> DenseResult:
        """The answers for a picture.

        Args:
            picture: a file, an array (height, width[, channels]) of unsigned integers or of floats from 0 to 1, an
                image of Pillow, or an `Image`. Grey and colours become each other as the network needs it.
            scale: how much larger than it is the network sees it; more where it is smaller than a window then.
            feeds: values of the other inputs, by name.

        Raises:
            OptionError: it is no picture, or does not fit the network.
            ModelError: onnxruntime does not run the model.
        """
        if self._converted.rank != 2:
            axes = "1 axis" if self._converted.rank == 1 else f"{self._converted.rank} axes"
            raise OptionError(f"the network reads images with {axes}, and pictures have two: see run_tensor")
        image = picture if isinstance(picture, Image) else open_image(picture, 2, self.channels)
        with contextlib.nullcontext() if image is picture else contextlib.closing(image):
            pixels = image.whole()
        check_picture(image, pixels)
        if not 0 < scale < math.inf:
            raise OptionError(f"a scale is a positive number, not {scale:g}")
        scale = max(scale, *(w / n for w, n in zip(self.window, image.size)))
        if max(image.size) * scale > LARGEST:
            raise OptionError(
                f"{image.name} would have more than {LARGEST} pixels along an axis at a scale of {scale:g}"
            )
        seen = resized(np.moveaxis(pixels, 0, -1), [round(n * scale) for n in image.size], image.name)
        values = self.formula(image)(np.moveaxis(seen, -1, 0))
        return self._run(self._converted.arranged(values[None]), image.size, feeds)

    def formula(self, image: Image) -> Preprocessing:
        """What becomes of the numbers of an image, which are brightnesses from 0 to `Image.white`.

        Bands of a scene in 16 bits and more, which are none, go in as they are unless something was asked for.
        """
        if self._has_default and image.dtype.kind == "u" and not is_picture(image.dtype, 2, self.channels):
            return chosen("raw", "raw")
        return replace(self.preprocess, scale=self.preprocess.scale * 255 / image.white)

    def run_tensor(self, tensor: Array, *, feeds: Mapping[str, Array] | None = None) -> DenseResult:
        """The answers for one image of any number of axes, in the shape and with the values that the network reads.

        Raises:
            OptionError: it has another shape than the network reads.
            ModelError: onnxruntime does not run the model.
        """
        layout, known = self._converted.layout, {"N": 1, "C": self.channels}
        if tensor.ndim != len(layout) or any(known.get(letter, n) != n for letter, n in zip(layout, tensor.shape)):
            shape = ", ".join(str(known.get(letter, letter)) for letter in layout)
            raise OptionError(f"an array {tensor.shape} is not one image as the network reads it: ({shape})")
        return self._run(tensor.astype(self._converted.image_type), self._converted.size_of(tensor), feeds)

    def _run(self, tensor: Array, size: tuple[int, ...], feeds: Mapping[str, Array] | None) -> DenseResult:
        grid = self.answers.grid(*self._converted.size_of(tensor))
        if missing := [name for name in self._converted.others if name not in (feeds or {})]:
            raise OptionError(
                f"the network reads also '{missing[0]}', whose values only DenseModel.run(feeds=…) can give"
            )
        (scores,) = self._session.run_tensor(np.ascontiguousarray(tensor), feeds)
        if self._converted.tells_classes:
            scores = _class_numbers(scores, self._converted.rank, self.output)
        else:
            scores = scores.astype(np.float32)
        classes = max(int(scores.max()) + 1, len(self.labels)) if self._converted.tells_classes else len(scores)
        if self.labels and len(self.labels) != classes:
            raise OptionError(f"there are {len(self.labels)} labels for {classes} classes")
        labels = self.labels or tuple(map(str, range(classes)))
        return DenseResult(scores, grid, size, self._activation_of(scores), labels)

    def _activation_of(self, scores: Array) -> str:
        if self._converted.tells_classes:
            return "none"
        if self._activation != "auto":
            return self._activation
        if scores.min() >= 0 and scores.max() <= 1 + ROUNDING:
            return "none"  # probabilities: shares of one, or each on its own
        return "softmax" if len(scores) > 1 else "sigmoid"


def _class_numbers(values: Array, rank: int, output: str) -> Array:
    """Numbers of classes, of whatever type, as integers (*cells).

    Raises:
        OptionError: they are none.
    """
    numbers = values if values.ndim == rank else values[0]
    if not (numbers.min() >= 0 and numbers.max() < MOST_CLASSES):
        raise OptionError(
            f"output '{output}' tells numbers of classes, and {numbers.min():g} to {numbers.max():g} are none"
        )
    return np.rint(numbers).astype(np.int64) if numbers.dtype.kind == "f" else numbers


def _labels(given: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Names of classes, from a list or from the lines of a file.

    Raises:
        OptionError: the file cannot be read.
    """
    if given is None:
        return ()
    if not isinstance(given, (str, os.PathLike)):
        return tuple(given)
    try:
        lines = Path(given).read_text("utf-8-sig").split("\n")  # also for \r\n; str.splitlines takes more for ends
    except OSError as error:
        raise OptionError(f"cannot read '{os.fspath(given)}': {reason_of(error)}") from None
    except ValueError:
        raise OptionError(f"cannot read '{os.fspath(given)}': it is not UTF-8 text") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)
