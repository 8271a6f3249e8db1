"""Training another last layer on dense labels: a classifier in, a segmenter out.

    open the network, convert and validate it  →  the labelled pixels that are taken, and their features
    →  folds choose maps and penalty  →  the layer on all samples  →  the trained file, compared with the original

The trunk is computed once for each image, over all its windows at once, and stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn._version import __version__
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting import solver
from onnx_fcn.fitting.candidates import Candidate, Feature, among
from onnx_fcn.fitting.choice import Chosen, census, draw
from onnx_fcn.fitting.classes import Classes, classes_of
from onnx_fcn.fitting.features import Extractor
from onnx_fcn.fitting.fitted import Fitted, Tested
from onnx_fcn.fitting.labels import Labelled, open_labels
from onnx_fcn.fitting.network import Network, free_name, open_network
from onnx_fcn.fitting.search import Samples, Score, confusion_of, folds_of, scored, searched
from onnx_fcn.images.image import Image, open_image
from onnx_fcn.running.confusion import Confusion
from onnx_fcn.running.preprocess import Preprocessing, settled
from onnx_fcn.tiles.tiled import Tiled
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.given import Source
from onnx_fcn.walk.heads import Head
from onnx_fcn.walk.images import Size

__all__ = ["Progress", "fit"]


PathLike = str | os.PathLike[str]

#: Called with what is being done, and how much of it is done: (words, done, of how many).
Progress = Callable[[str, int, int], None]

#: The most bytes of features that are kept.
MOST_BYTES = 2 << 30

#: Fewer labelled pixels of a class say little about it.
FEW = 3


def fit(
    model: Source,
    images: PathLike,
    labels: PathLike,
    output: PathLike | None = None,
    *,
    at: str | Sequence[str] = "auto",
    names: Sequence[str] = (),
    ignore: int | None = 255,
    boxes: Literal["centre", "fill"] = "centre",
    samples: int = 2000,
    balance: Literal["balanced", "none"] = "balanced",
    folds: int = 5,
    held_out: tuple[PathLike, PathLike] | None = None,
    preprocess: str | Preprocessing | None = None,
    level: int = 0,
    output_stride: int | None = None,
    full_size: bool = False,
    argmax: bool = False,
    output_name: str | None = None,
    input: str | None = None,
    input_size: Size | None = None,
    tile: int | None = None,
    providers: Sequence[str] | None = None,
    external_data: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fitted:
    """Train another last layer on labelled pixels, and write the network with it: a segmenter.

    Args:
        model: the classifier, a file or a model; not a converted one, which does not tell where its maps are.
        images: an image, or a folder of images, as `apply` reads them.
        labels: masks of class numbers (PNG, .npy, TIFF, zarr), GeoJSON, COCO or CSV; or a folder of them, with the
            names of the images.
        output: the file to write; nothing is written if None.
        at: the maps that the layer reads: ``auto`` (by folds), ``last`` (what the original's last layer reads), ``cut``
            (the last feature map), ``stride:8,16`` (the last maps of these strides), or names of tensors.
        names: the names of the classes: the class with number k in a mask has name k. By default those in the labels.
        ignore: the number in masks of pixels without a label.
        boxes: what a box in COCO labels: the pixel in its middle, since it is an object's window, or all its pixels.
        samples: the most pixels of each class and image that are taken, at random.
        balance: ``balanced`` gives all classes the same weight, which is right for maps; ``none`` weighs pixels alike,
            as calibrated probabilities need.
        folds: number of folds over images; each image is left out in turn if there are fewer.
        held_out: images and labels to test on, which are not trained on.
        preprocess: how pixels become the network's input, as of `apply`; stored in the trained file.
        level: level of image pyramids; 0 is the finest.
        output_stride: pixels between answers, as of `convert`.
        full_size: the scores at the resolution of the image.
        argmax: the best class instead of the scores.
        output_name: the output whose last layer is replaced, if there are several.
        input: the name of the input that is the image, if there are several.
        input_size: the image size that the network was made for, if the file does not declare it.
        tile: pixels of the crops that features are computed on; they do not change the result.
        providers: execution providers of onnxruntime; the CPU by default.
        external_data: as of `convert`.
        seed: of everything random: the same seed gives the same bytes.
        progress: called with what is being done.

    Raises:
        ModelError: if the model cannot be used.
        UnsupportedModel: if it cannot become fully convolutional.
        OptionError: if labels, images and options do not fit each other.
        ValidationError: if the trained file does not answer as the layer on the original's features.
    """
    begun, say = time.perf_counter(), progress or (lambda words, done, total: None)
    _check(samples, folds, balance)
    solver.check_installed()
    asked = Asked(
        output_stride=output_stride,
        outputs=() if output_name is None else (output_name,),
        full_size=full_size,
        argmax=argmax,
    )
    network = open_network(
        model, input=input, input_size=input_size, asked=asked, seed=seed, progress=lambda words: say(words, 0, 0)
    )
    if len(network.walk.outputs) > 1:
        outputs = ", ".join(map(repr, network.walk.outputs))
        raise OptionError(f"the model has several outputs, {outputs}: name the one to replace with --output")
    rank, notes = len(network.walk.image.size), list[str]()
    how: dict[str, Any] = {"ignore": ignore, "boxes": boxes, "rank": rank, "level": level, "note": notes.append}
    data = Data.open(images, labels, how, names, level, say)
    tests = None if held_out is None else Data.open(*held_out, how, data.classes.names if names else (), level, say)
    if tests is not None and tests.classes != data.classes:
        tests = replace(tests, classes=_same_classes(data.classes, tests.classes))
    candidates, refused = among(network, at)
    network.validate()
    features = {f.tensor: f for c in candidates for f in c.features}
    extract = Extractor(network, list(features.values()), tile, providers or ())
    formula = _Formula(preprocess, extract)
    most = _affordable(samples, data, features, notes)
    taken = data.taken(most, seed, formula, extract, features, say)
    folded, what = folds_of(taken, folds, _field(candidates), seed)
    notes += _doubts(data, taken, folded)
    scores = _scores(taken, candidates, folded, balance == "balanced", seed, say)
    chosen = scores[0].candidate if scores else candidates[0]
    strength = scores[0].strength if scores else 1.0
    say(f"training on {chosen.name}", 0, 0)
    layer = solver.trained(
        taken.of(chosen, np.arange(len(taken.classes))), taken.classes, taken.count, balance == "balanced", strength
    )
    if not layer.converged:
        notes.append("the training stopped before its end: fewer features or samples would need fewer steps")
    tested = None
    if tests is not None:
        seen = tests.taken(most, seed, formula, extract, features, say)
        tested = _tested(seen, chosen, layer)
    head = _head(network, chosen, layer)
    trained = {
        "at": chosen.name,
        "classes": list(data.classes.names),
        "c": strength,
        "balance": balance,
        "samples": len(taken.classes),
        "seed": seed,
        "onnx_fcn": __version__,
        "scikit-learn": solver.version(),
    } | ({"mean_iou": round(scores[0].mean_iou, 6)} if scores else {})
    say("comparing with the original", 0, 0)
    written = network.write(
        head,
        output,
        trained,
        labels=data.classes.names,
        preprocessing=formula.settled.to_json() if formula.settled is not None else None,
        external_data=external_data,
    )
    return Fitted(
        path=None if output is None else os.fspath(output),
        size=written.size,
        output=head.output,
        at=chosen.name,
        tensors=chosen.tensors,
        strength=strength,
        names=data.classes.names,
        pixels=tuple(int(n) for n in data.counts),
        samples=len(taken.classes),
        images=len(data.labelled),
        folds=what if scores else "",
        scores=tuple(Tested.of(s.candidate, s.strength, s.mean_iou, s.error, Confusion(s.confusion)) for s in scores),
        held_out=tested,
        preprocess=formula.settled,
        balance=balance,
        notes=(*notes, *(f"not tried: {r}" for r in refused)),
        geometry=written.geometry,
        validation=written.validation,
        seconds=time.perf_counter() - begun,
        _document=written.document,
    )


def _check(samples: int, folds: int, balance: str) -> None:
    """Raises OptionError if a number or a word is out of range."""
    for option, value, least in (("samples", samples, 1), ("folds", folds, 2)):
        if value < least:
            raise OptionError(f"--{option} is an integer of at least {least}, not {value}")
    if balance not in ("balanced", "none"):
        raise OptionError(f"classes are 'balanced', or not ('none'), and not '{balance}'")


@dataclass(frozen=True)
class Data:
    """Labelled images.

    Attributes:
        labelled: the images with labels.
        classes: the classes in them.
        sizes: pixels of each image.
        censuses: labelled pixels of each code, of each image.
        level: level of image pyramids.
    """

    labelled: list[Labelled]
    classes: Classes
    sizes: list[tuple[int, ...]]
    censuses: list[dict[int, int]]
    level: int

    @classmethod
    def open(
        cls, images: PathLike, labels: PathLike, how: dict[str, Any], names: Sequence[str], level: int, say: Progress
    ) -> Data:
        """The labelled images in these files.

        Raises:
            OptionError: if they do not fit each other, or have fewer than two classes.
        """
        labelled = open_labels(images, labels, **how)
        sizes, censuses = [], []
        for done, one in enumerate(labelled):
            say("reading labels", done, len(labelled))
            with contextlib.closing(open_image(one.image, how["rank"], None, level)) as image:
                sizes.append(image.size)
            how["note"].__self__.extend(one.labels.check(image.size))
            censuses.append(census(one, image.size))
        classes = classes_of(censuses, labelled, names)
        return cls(labelled, classes, sizes, censuses, level)

    @property
    def counts(self) -> Array:
        """Labelled pixels of each class in all images."""
        return np.array([sum(c.get(code, 0) for c in self.censuses) for code in self.classes.codes], np.int64)

    def taken(
        self,
        samples: int,
        seed: int,
        formula: _Formula,
        extract: Extractor,
        features: dict[str, Feature],
        say: Progress,
    ) -> Samples:
        """The labelled pixels that are taken, with their features."""
        drawn: list[Chosen] = []
        found: list[list[Array]] = []
        for done, (one, size) in enumerate(zip(self.labelled, self.sizes)):
            say("computing features", done, len(self.labelled))
            drawn.append(draw(one, size, self.classes, samples, seed))
            with contextlib.closing(formula.open(one, self.level)) as image:
                found.append(extract(image, formula.of(image), drawn[-1].positions))
        say("computing features", len(self.labelled), len(self.labelled))
        weights = [d.counts[d.classes] / np.bincount(d.classes, minlength=len(self.classes))[d.classes] for d in drawn]
        return Samples(
            {name: np.concatenate([f[k] for f in found]) for k, name in enumerate(features)},
            np.concatenate([d.classes for d in drawn]),
            np.repeat(np.arange(len(drawn)), [len(d.classes) for d in drawn]),
            np.concatenate([d.positions for d in drawn]),
            np.concatenate(weights),
            len(self.classes),
        )


class _Formula:
    """How the pixels of all images become the network's input."""

    def __init__(self, wanted: str | Preprocessing | None, extract: Extractor) -> None:
        self._wanted, self._network = wanted, extract.converted
        self._tiled = Tiled("", extract.converted, "")
        self.settled: Preprocessing | None = None

    def open(self, one: Labelled, level: int) -> Image:
        return open_image(one.image, self._network.rank, self._network.channels, level)

    def of(self, image: Image) -> Preprocessing:
        """The formula for the numbers of an image as they are stored.

        Raises:
            OptionError: if it is another formula than that of the first image.
        """
        network = self._network
        reads_integers = network.image_type.kind != "f"
        found = settled(self._wanted, image.dtype, network.rank, network.channels, reads_integers)
        if self.settled not in (None, found):
            raise OptionError(
                f"{image.name} has other numbers than the images before it: some are pictures and some are not, so "
                "give the formula with --preprocess"
            )
        self.settled = found
        return self._tiled.preprocessing(self._wanted, image.dtype, image.white, image.name)


def _same_classes(trained: Classes, found: Classes) -> Classes:
    """The classes of held-out images, numbered as those that are trained.

    Raises:
        OptionError: if they have a class that is not trained.
    """
    unknown = [name for name in found.names if name not in trained.names]
    if unknown:
        raise OptionError(f"the held-out labels have a class '{unknown[0]}', which is not trained")
    codes = dict(zip(found.names, found.codes))
    return Classes(tuple(codes.get(name, -2 - k) for k, name in enumerate(trained.names)), trained.names)


def _affordable(samples: int, data: Data, features: dict[str, Feature], notes: list[str]) -> int:
    """The pixels of each class and image whose features fit into memory."""
    each = 4 * sum(f.numbers for f in features.values())

    def total(most: int) -> int:
        return each * sum(min(most, n) for c in data.censuses for n in c.values())

    most = samples
    while total(most) > MOST_BYTES and most > 1:
        most = max(most * MOST_BYTES // total(most), 1) if total(most) > 2 * MOST_BYTES else most - max(most // 20, 1)
    if most < samples:
        notes.append(f"{most} pixels of each class and image were taken, as more features would exceed 2 GB")
    return most


def _field(candidates: Sequence[Candidate]) -> list[float]:
    """Pixels that the features see, along each axis."""
    from onnx_fcn.walk.fields import sliding

    axes = zip(*(sliding(f.fact) for c in candidates for f in c.features))
    return [float(max(a.field.size for a in along)) for along in axes]


def _doubts(data: Data, taken: Samples, folds: Sequence[Any]) -> Iterator[str]:
    """Sentences about classes with few labels."""
    for index, (name, pixels) in enumerate(zip(data.classes.names, data.counts)):
        images = len(np.unique(taken.images[taken.classes == index]))
        if pixels < FEW:
            yield f"class '{name}' has {pixels} labelled {'pixel' if pixels == 1 else 'pixels'}: too few to tell"
        elif images == 1 and len(data.labelled) > 1:
            yield f"class '{name}' is in one image only, so what folds say about it is no test"
    if not folds:
        yield "there are too few labels to hold any out, so nothing is known about how good the layer is"


def _scores(
    taken: Samples, candidates: Sequence[Candidate], folds: Any, balanced: bool, seed: int, say: Progress
) -> list[Score]:
    """The scores of all candidates, the chosen one first; empty if nothing can be held out."""
    if not folds:
        return []
    if len(candidates) == 1:
        say(f"scoring {candidates[0].name}", 0, 0)
        return [scored(taken, candidates[0], folds, balanced, seed)]
    return searched(taken, candidates, folds, balanced, seed, lambda words: say(words, 0, 0))


def _tested(seen: Samples, chosen: Candidate, layer: solver.Layer) -> Confusion:
    """The confusion of a layer on images that it was not trained on."""
    best = layer(seen.of(chosen, np.arange(len(seen.classes)))).argmax(1)
    return Confusion(confusion_of(seen.classes, best, seen.weights, seen.count))


def _head(network: Network, chosen: Candidate, layer: solver.Layer) -> Head:
    """The trained layer as a head: its weights split among the maps."""
    kernels, start = [], 0
    for feature in chosen.features:
        fact = feature.fact
        taps = fact.window if feature.covers else (1,) * len(fact.space)
        part = layer.weights[:, start : start + feature.numbers]
        start += feature.numbers
        kernels.append(part.reshape(len(part), fact.width, *taps))
    assert start == layer.weights.shape[1]
    return Head(free_name(network, "scores"), chosen.tensors, tuple(kernels), layer.bias)
