"""A converted model and its geometry as one object: pictures in, answers and their windows out.

    model = onnx_fcn.DenseModel("out.onnx", preprocess="imagenet", labels="labels.txt")
    result = model.run("photo.jpg")
    for found in result.best("tabby cat", count=5):
        print(found.score, found.box)

A `DenseResult` contains the scores of every cell, as the network gave them and as probabilities, and the window of each
cell in the picture. A picture may be run at several sizes; `detect` finds the best windows over all the results.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import ModelError, OptionError, did_you_mean, reason_of
from onnx_fcn.geometry import Grid, interpolate
from onnx_fcn.images.image import Image, check_picture, open_image, resize
from onnx_fcn.images.stored import Picture
from onnx_fcn.model.metadata import read_geometry
from onnx_fcn.running.network import open_converted
from onnx_fcn.running.preprocess import PRESETS, Preprocessing, check_trained, is_picture, settled

__all__ = ["ACTIVATIONS", "HALF", "DenseModel", "DenseResult", "Detection", "detect", "ranking"]


#: Functions from scores to probabilities; ``auto`` chooses by the values.
ACTIVATIONS = ("auto", "softmax", "sigmoid", "none")

#: How far rounding in float16 may take a probability above 1.
ROUNDING = 1e-3

#: Larger values are not class indices.
MOST_CLASSES = 1 << 20

#: The most pixels along an axis that Pillow supports.
LARGEST = (1 << 31) - 1

#: The probability from which a single class is present.
HALF = 0.5

#: Windows of one class whose intersection over union is larger are one detection.
OVERLAP = 0.3


@dataclass(frozen=True)
class Detection:
    """One window in which a class was found.

    Attributes:
        box: (left, top, right, bottom) in pixels of the picture, clipped to it.
        score: the probability.
        index: the index of the class.
        label: the name of the class.
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
        map: the scores as the network gave them, (classes, rows, columns); or (rows, columns) with the class of each
            cell, if the model gives no scores.
        grid: where the cells are, in pixels of what the network read: the picture, perhaps resized.
        size: (height, width) of the picture.
        activation: how scores become probabilities: ``softmax``, ``sigmoid`` or ``none``.
        labels: the names of the classes.
        is_trained: was the last layer trained on pixels? Then there are answers between cells, too.
    """

    map: Array
    grid: Grid
    size: tuple[int, ...]
    activation: str
    labels: tuple[str, ...]
    is_trained: bool = False

    @property
    def scale(self) -> tuple[float, ...]:
        """Pixels that the network read per pixel of the picture, along each axis."""
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
            OptionError: if the model gives the best class only.
        """
        if self.map.ndim == len(self.size):
            raise OptionError(
                "the model gives the best class only, without scores: convert the original without --argmax, or with "
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
        """Is there a single score, for whether one class is present?"""
        return self.map.ndim > len(self.size) and len(self.map) == 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the numbers in `classes`: the labels, or "below 0.5" and "from 0.5 on" for a single score."""
        label = self.labels[0]
        return ("below 0.5", "from 0.5 on" if label == "0" else label) if self.is_single else self.labels

    @cached_property
    def classes(self) -> Array:
        """The best class of each cell: (rows, columns); for a single score, whether it is at least one half, as 0 or 1.

        Raises:
            OptionError: if a single score is not a probability.
        """
        if self.map.ndim == len(self.size):
            return self.map
        if self.is_single:
            (shares,) = self.probabilities
            if shares.min() < 0 or shares.max() > 1 + ROUNDING:
                raise OptionError(
                    "the single score is not a probability, so no threshold for it is known: "
                    "--activation sigmoid makes it one"
                )
            is_present: Array = (shares >= HALF).astype(np.int64)
            return is_present
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
        """The index of a class, from its name or number.

        Raises:
            OptionError: if there is no such class, or there are several.
        """
        found = [k for k, label in enumerate(self.labels) if label == name]
        found = found or [k for k, label in enumerate(self.labels) if label.lower() == str(name).lower()]
        if len(found) > 1:
            raise OptionError(f"classes {', '.join(map(str, found))} are all called '{name}': give the number")
        if found:
            return found[0]
        if str(name).isdecimal() and int(name) < len(self.labels):
            return int(name)
        hint = "" if str(name).isdecimal() else did_you_mean(str(name), self.labels)
        last = len(self.labels) - 1
        raise OptionError(f"there is no class '{name}' among the {last + 1}, numbered from 0 to {last}{hint}")

    def best(
        self, name: int | str, count: int = 1, *, threshold: float = -math.inf, overlap: float = OVERLAP
    ) -> list[Detection]:
        """The windows in which a class is most probable, as `detect` finds them."""
        return detect([self], name, count, threshold=threshold, overlap=overlap)

    def at_pixels(self, values: Array) -> Array:
        """Values of cells at the pixels of the picture: (..., rows, columns) → (..., height, width).

        Linear between the centres of windows, and constant beyond the outermost, as with ``--full-size``.
        """
        return interpolate(values, [self._cells_at_pixels(k, n) for k, n in enumerate(self.size)])

    def classes_at_pixels(self) -> Array:
        """The best class at every pixel: (height, width).

        It is that of the cell whose window's centre is nearest. If the last layer was trained on pixels, it is that of
        the scores interpolated between cells, as they were trained.
        """
        if self.is_trained and self.map.ndim > len(self.size) and not self.is_single:
            return self._best_between()
        nearest = [np.rint(self._cells_at_pixels(k, n)).astype(np.int64) for k, n in enumerate(self.size)]
        classes: Array = self.classes[np.ix_(*nearest)]
        return classes

    def _best_between(self) -> Array:
        """The class with the largest score at every pixel, in memory for two classes."""
        best, classes = self.at_pixels(self.map[0]), np.zeros(self.size, np.int64)
        for k in range(1, len(self.map)):
            scores = self.at_pixels(self.map[k])
            better = scores > best
            best[better], classes[better] = scores[better], k
        return classes

    def _cells_at_pixels(self, axis: int, pixels: int) -> Array:
        """Positions of the picture's pixels between the centres of the cells' windows, along an axis."""
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

    Greedy non-maximum suppression: of windows whose intersection over union exceeds `overlap` only the best is kept.

    Args:
        results: the results for one picture, for example at several sizes.
        name: the class, or its number.
        count: the largest number of windows.
        threshold: the least probability; by default there is no limit.
        overlap: intersection over union, from 0 to 1.

    Raises:
        OptionError: if there is no such class.
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
    """All classes, by their highest probability anywhere; if equal to two digits, the most localised first."""
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
        geometry: the geometry of all outputs.
        answers: the geometry of the chosen output.
        output: the name of that output.
        preprocess: how pixels become the network's input.
        channels: number of channels that the network reads.
        labels: the names of the classes, as they were given, or as the file has them; otherwise empty.
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
            output: the output to use; by default the first.
            preprocess: a preset's name, or the numbers. By default it is what the file says; if it says nothing,
                ``unit``, or ``raw`` if the network reads integers.
            labels: the names of the classes, or a text file with one per line; by default those in the model.
            activation: ``softmax``, ``sigmoid`` or ``none``; ``auto`` leaves scores unchanged if all are from 0 to 1,
                and otherwise treats them as logits: softmax, or sigmoid for a single class.
            providers: execution providers, as onnxruntime takes them; the CPU by default.
            session_options: an `onnxruntime.SessionOptions`.

        Raises:
            ModelError: if onnx_fcn did not convert the model, its labels do not fit its map, or onnxruntime does not
                load it.
            OptionError: if an option does not fit the model.
        """
        if activation not in ACTIVATIONS:
            raise OptionError(f"an activation is one of {', '.join(ACTIVATIONS)}, not '{activation}'")
        self._activation = activation
        self.geometry = read_geometry(source)
        self._converted = converted = open_converted(source, output)
        self.answers, self.output, self.channels = converted.answers, converted.output, converted.channels
        if converted.batch not in (None, 1):
            images = f"{converted.batch} images"
            raise OptionError(
                f"the model takes {images} at once: convert the original without --batch, or with --dynamic-batch"
            )
        if converted.tells_classes and converted.width not in (None, 1):
            raise OptionError(
                f"output '{self.output}' gives the numbers of {converted.width} classes for each window, without "
                "scores: choose another output, or convert the original with --outputs to take its scores"
            )
        self._session = converted.session(providers, session_options)
        wanted = converted.preprocessing if preprocess is None else preprocess
        self._has_default = wanted is None
        self._is_trained = preprocess is None and converted.is_trained
        if wanted is None:
            wanted = "unit" if converted.image_type.kind == "f" else "raw"
        self.preprocess = Preprocessing.named(wanted) if isinstance(wanted, str) else wanted
        self.labels, self._names_itself = converted.labels if labels is None else _labels(labels), labels is None
        if labels is None and converted.width is not None:
            self._check_labels(converted.width)

    @property
    def window(self) -> tuple[int, ...]:
        """The window of one answer: (height, width) in pixels."""
        return self.geometry.window

    def run(self, picture: Picture, scale: float = 1.0, *, feeds: Mapping[str, Array] | None = None) -> DenseResult:
        """The answers for a picture.

        Args:
            picture: a file, an array (height, width[, channels]) of unsigned integers or of floats from 0 to 1, a
                Pillow image, or an `Image`; any finite numbers, if the formula is about the numbers as they are stored.
                Grey and RGB are converted to what the network reads.
            scale: factor by which the picture is resized first; increased if it would be smaller than a window.
            feeds: values of the other inputs, by name.

        Raises:
            OptionError: if it is not a picture, or does not fit the network.
            ModelError: if onnxruntime does not run the model.
        """
        if self._converted.rank != 2:
            axes = "1 axis" if self._converted.rank == 1 else f"{self._converted.rank} axes"
            raise OptionError(f"the network reads images with {axes}, and pictures have two: see run_tensor")
        image = picture if isinstance(picture, Image) else open_image(picture, 2, self.channels)
        with contextlib.nullcontext() if image is picture else contextlib.closing(image):
            pixels = image.whole()
        formula = self.formula(image)
        self._check_pixels(image, pixels)
        if not 0 < scale < math.inf:
            raise OptionError(f"a scale is a positive number, not {scale:g}")
        scale = max(scale, *(w / n for w, n in zip(self.window, image.size)))
        if max(image.size) * scale > LARGEST:
            raise OptionError(
                f"{image.name} would have more than {LARGEST} pixels along an axis at a scale of {scale:g}"
            )
        seen = resize(np.moveaxis(pixels, 0, -1), [round(n * scale) for n in image.size], image.name)
        values = formula(np.moveaxis(seen, -1, 0))
        return self._run(self._converted.arrange(values[None]), image.size, feeds)

    def formula(self, image: Image) -> Preprocessing:
        """How the numbers of an image, brightnesses from 0 to `Image.white`, become the network's input.

        Bands of a scene in 16 bits or more are not brightnesses: without a scale they stay unchanged.

        Raises:
            OptionError: if the network was trained on other numbers than pictures have, and this is a picture.
        """
        if self._is_trained:
            check_trained(self.preprocess, image.dtype, 2, self.channels, image.name)
        is_scene = image.dtype.kind == "u" and not is_picture(image.dtype, 2, self.channels)
        if self._has_default and is_scene:
            return PRESETS["raw"]
        kind = image.dtype if is_scene else np.dtype(np.uint8)  # floats from 0 to 1 are a picture, too
        return settled(self.preprocess, kind, 2, self.channels, False).of_stored(image.white)

    @property
    def takes_stored(self) -> bool:
        """Is the formula about the numbers as they are stored? Then they need not be brightnesses."""
        return self.preprocess.full_scale is None and self.preprocess.scale is not None

    def _check_pixels(self, image: Image, pixels: Array) -> None:
        """Raises OptionError if the formula is not about such pixels."""
        if not (self.takes_stored and image.dtype.kind in "if"):
            check_picture(image, pixels)
        elif not np.isfinite(pixels).all():
            raise OptionError(
                f"{image.name} has pixels that are NaN or infinite, and no answer that sees one is defined: replace "
                "them, or use apply, whose map has NaN there"
            )

    def run_tensor(self, tensor: Array, *, feeds: Mapping[str, Array] | None = None) -> DenseResult:
        """The answers for one image of any number of axes, in the shape and with the values that the network reads.

        Raises:
            OptionError: if it has another shape than the network reads.
            ModelError: if onnxruntime does not run the model.
        """
        layout, known = self._converted.layout, {"N": 1, "C": self.channels}
        if tensor.ndim != len(layout) or any(known.get(letter, n) != n for letter, n in zip(layout, tensor.shape)):
            shape = ", ".join(str(known.get(letter, letter)) for letter in layout)
            raise OptionError(f"an array {tensor.shape} is not one image as the network reads it, ({shape})")
        return self._run(tensor.astype(self._converted.image_type), self._converted.size_of(tensor), feeds)

    def _run(self, tensor: Array, size: tuple[int, ...], feeds: Mapping[str, Array] | None) -> DenseResult:
        grid = self.answers.grid(*self._converted.size_of(tensor))
        if missing := [name for name in self._converted.others if name not in (feeds or {})]:
            raise OptionError(
                f"the network also reads '{missing[0]}': give its values in Python, by DenseModel.run(feeds=…)"
            )
        (scores,) = self._session.run_tensor(np.ascontiguousarray(tensor), feeds)
        if self._converted.tells_classes:
            scores = _class_numbers(scores, self._converted.rank, self.output)
        else:
            scores = scores.astype(np.float32)
        classes = max(int(scores.max()) + 1, len(self.labels)) if self._converted.tells_classes else len(scores)
        self._check_labels(classes)
        labels = self.labels or tuple(map(str, range(classes)))
        return DenseResult(scores, grid, size, self._activation_of(scores), labels, self._converted.is_trained)

    def _check_labels(self, classes: int) -> None:
        """Raises OptionError, or ModelError if the labels are the file's, if their number is another."""
        if len(self.labels) in (0, classes):
            return
        if self._names_itself:
            raise ModelError(
                f"the metadata of the model has the names of {len(self.labels)} classes, and output '{self.output}' "
                f"has {classes}: give other names with --labels"
            )
        raise OptionError(f"there are {len(self.labels)} labels for {classes} classes")

    def _activation_of(self, scores: Array) -> str:
        if self._converted.tells_classes:
            return "none"
        if self._activation != "auto":
            return self._activation
        if scores.min() >= 0 and scores.max() <= 1 + ROUNDING:
            return "none"  # probabilities: shares of one, or each on its own
        return "softmax" if len(scores) > 1 else "sigmoid"


def _class_numbers(values: Array, rank: int, output: str) -> Array:
    """Class indices of any type as integers (*cells).

    Raises:
        OptionError: if they are not class indices.
    """
    numbers = values if values.ndim == rank else values[0]
    if not (numbers.min() >= 0 and numbers.max() < MOST_CLASSES):
        raise OptionError(
            f"output '{output}' gives numbers of classes, but they are from {numbers.min():g} to {numbers.max():g}"
        )
    return np.rint(numbers).astype(np.int64) if numbers.dtype.kind == "f" else numbers


def _labels(given: Sequence[str] | str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of classes, from a list or from the lines of a file.

    Raises:
        OptionError: if the file cannot be read.
    """
    if not isinstance(given, (str, os.PathLike)):
        return tuple(given)
    try:
        lines = Path(given).read_text("utf-8-sig").split("\n")  # also \r\n; str.splitlines splits at more characters
    except OSError as error:
        raise OptionError(f"cannot read '{os.fspath(given)}': {reason_of(error)}") from None
    except ValueError:
        raise OptionError(f"cannot read '{os.fspath(given)}': it is not UTF-8 text") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)
