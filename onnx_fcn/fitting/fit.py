"""Training another last layer on dense labels: a classifier in, a segmenter out.

    open the network, convert and validate it  →  the labelled pixels that are taken, and their features
    →  folds choose maps and penalty  →  the layer on all samples  →  the trained file, compared with the original

The trunk is computed once for each image, for all windows at once, and stays as it is.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from onnx_fcn.errors import OptionError
from onnx_fcn.files import target_of
from onnx_fcn.fitting import solver
from onnx_fcn.fitting.candidates import Candidate, among
from onnx_fcn.fitting.fitted import Fitted, Tested
from onnx_fcn.fitting.network import Network, open_network, output_of
from onnx_fcn.fitting.sampling import Data, Progress, Sampler
from onnx_fcn.fitting.search import Samples, Score, extent_of, folds_of, searched
from onnx_fcn.model.objects import Model, Source, as_model
from onnx_fcn.model.version import __version__
from onnx_fcn.running.confusion import Confusion
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.heads import Head, can_join
from onnx_fcn.walk.images import Size, width_of, written_size

__all__ = ["fit"]


PathLike = str | os.PathLike[str]

#: The largest seed that scikit-learn takes.
LARGEST_SEED = 2**32 - 1

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
    output_stride: int | Sequence[int] | None = None,
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
        model: the classifier, as `convert` takes it; not a converted one, whose maps are not known.
        images: an image, or a folder of images, as `apply` reads them.
        labels: masks of class numbers (PNG, .npy, TIFF, zarr), GeoJSON, COCO or CSV; or a folder of them, with the
            names of the images.
        output: the file to write; nothing is written if None.
        at: the maps that the layer reads: ``auto`` (by folds), ``last`` (what the original's last layer reads), ``cut``
            (the last feature map), ``stride:8,16`` (the last maps of these strides), or names of tensors.
        names: the names of the classes: the class with number k in a mask has name k. By default those in the labels.
        ignore: the number in masks of pixels without a label.
        boxes: what a box in COCO labels: its centre, since it is an object's window, or all its pixels (``fill``).
        samples: the most pixels of each class and image that are taken, at random.
        balance: ``balanced`` gives all classes the same weight, which is right for maps; ``none`` weighs pixels alike,
            as calibrated probabilities need.
        folds: number of folds over images; each image is left out in turn if there are fewer.
        held_out: images and labels to test on, which are not trained on.
        preprocess: how pixels become the network's input, as of `apply`; stored in the trained file.
        level: level of image pyramids; 0 is the finest.
        output_stride: pixels between answers, fewer than the network strides, as of `convert`.
        full_size: the scores at the resolution of the image.
        argmax: the best class instead of the scores.
        output_name: the output whose last layer is replaced, if there are several.
        input: the name of the input that is the image, if there are several.
        input_size: the image size that the network was made for, if the file does not declare it.
        tile: pixels of the crops that features are computed on; they do not change the result.
        providers: execution providers of onnxruntime; the CPU by default.
        external_data: as of `convert`.
        seed: of everything random: the same seed gives the same bytes.
        progress: called with what is being done, how much of it is done, and of how much.

    Raises:
        ModelError: if the model cannot be used.
        UnsupportedModel: if it cannot become fully convolutional.
        OptionError: if labels, images and options do not fit each other.
        ValidationError: if the trained file does not answer as the layer on the original's features.
    """
    begun, say, given = time.perf_counter(), progress or _silent, as_model(model)
    _check(samples, folds, seed, level, balance)
    for files in ((images, labels), *([held_out] if held_out is not None else [])):
        _check_files(files)
    if output is not None:
        _check_target(output, given, images, labels, *(held_out or ()))
    wanted = () if output_name is None else (output_name,)
    asked = Asked(output_stride=output_stride, outputs=wanted, full_size=full_size, argmax=argmax)
    network = open_network(
        given, input=input, input_size=input_size, asked=asked, seed=seed, progress=lambda words: say(words, 0, 0)
    )
    _check_outputs(network)
    image = network.walk.image
    reading = functools.partial(
        Data.open,
        say=say,
        rank=len(image.size),
        channels=width_of(image) or 1,
        level=level,
        ignore=ignore,
        boxes=boxes,
    )
    data = reading(images, labels, (names,) if isinstance(names, str) else names)
    tests = None if held_out is None else reading(*held_out, (), trained=data)
    candidates, refused = among(network, at)
    if at != "auto":
        _check_stride(candidates[0], asked)
    network.validate()
    sampler = Sampler(network, candidates, preprocess, samples, seed, tile, providers or ())
    limited = sampler.limit(data)
    taken, lost = sampler.take(data, say).finite(data.classes.names)
    candidates, untested = _testable(taken, candidates)
    trained = _trained(network, taken, candidates, folds, balance == "balanced", seed, say)
    tested, unseen = None, ""
    if tests is not None:
        seen, unseen = sampler.take(tests, say).finite(data.classes.names)
        tested = trained.tested(seen)
    doubts = (*trained.doubts(data, named=at != "auto"), *_outside(sampler.beyond(trained.maps, data, taken), taken))
    doubts = (*doubts, *_closer(trained.maps, asked))
    say("comparing with the original", 0, 0)
    notes = (*data.notes, limited, lost, *doubts, *refused, *untested, *_of_held_out(tests, unseen))
    head, formula = _head(network, trained), sampler.formula
    written = network.write(
        head,
        output,
        _described(trained, taken, balance, seed),
        labels=data.classes.names,
        preprocessing=None if formula is None else formula.to_json(),
        external_data=external_data,
    )
    return Fitted(
        path=None if output is None else os.fspath(output),
        size=written.size,
        output=head.output,
        at=trained.maps.name,
        tensors=trained.maps.tensors,
        c=trained.c,
        names=data.classes.names,
        pixels=tuple(data.counts.tolist()),
        samples=len(taken.classes),
        images=len(data.labelled),
        folds=trained.folds,
        scores=tuple(map(Tested.of, trained.scores)),
        held_out=tested,
        preprocessing=formula,
        balance=balance,
        notes=tuple(filter(None, notes)),
        geometry=written.geometry,
        validation=written.validation,
        seconds=time.perf_counter() - begun,
        _document=written.document,
    )


@dataclass(frozen=True)
class Trained:
    """The layer on all samples, and how its maps and its penalty were chosen.

    Attributes:
        maps: what it reads.
        c: C, the inverse of the penalty on weights.
        layer: its weights.
        scores: of every candidate on the folds, the chosen one first; empty if nothing can be held out.
        folds: what the folds are, in words; empty if there are none.
    """

    maps: Candidate
    c: float
    layer: solver.Layer
    scores: tuple[Score, ...]
    folds: str

    def tested(self, seen: Samples) -> Confusion:
        """Its confusion on images that it was not trained on."""
        best = self.layer(seen.of(self.maps)).argmax(1)
        return Confusion.of(seen.classes, best, seen.count, weights=seen.weights)

    def doubts(self, data: Data, *, named: bool) -> Iterator[str]:
        """Sentences about what is not certain; `named` if the user chose the maps."""
        for index, (name, pixels) in enumerate(zip(data.classes.names, data.counts)):
            if pixels < FEW:
                yield f"class '{name}' has {pixels} labelled {'pixel' if pixels == 1 else 'pixels'}: too few to tell"
            elif len(data.labelled) > 1 and data.images_with(index) == 1:
                yield f"class '{name}' is labelled in one image only, so nothing shows how it does on others"
        if not self.scores:
            taken = "" if named else ", and which maps are best: --at names them"
            yield f"there are too few labels to hold any out, so nothing shows how good the layer is{taken}"
        elif rivals := self._rivals():
            yield f"the labels are too few to tell {self.maps.name} from {', '.join(rivals)}: --at names one"
        if not self.layer.converged:
            yield "the training was stopped before its end, which changes little: fewer features need fewer steps"

    def _rivals(self) -> list[str]:
        """Candidates of as many maps that are within a standard error of the chosen one."""
        best, *others = self.scores
        error = np.nan_to_num(best.error, nan=1.0)
        close = [s.candidate for s in others if abs(s.mean_iou - best.mean_iou) <= error]
        return [c.name for c in close if len(c.features) == len(self.maps.features)]


def _trained(
    network: Network,
    taken: Samples,
    candidates: Sequence[Candidate],
    folds: int,
    balanced: bool,
    seed: int,
    say: Progress,
) -> Trained:
    """Choose maps and penalty by folds, and train on all samples; the first candidate if nothing can be held out."""
    folded, what = folds_of(taken, folds, _field(candidates), seed)
    maps, c, scores = candidates[0], 1.0, []
    if folded:
        joins = functools.partial(can_join, network.walk)
        scores = searched(taken, candidates, folded, balanced, seed, joins, lambda words: say(words, 0, 0))
        maps, c = scores[0].candidate, scores[0].c
    say(f"training on {maps.name}", 0, 0)
    layer = solver.trained(taken.of(maps), taken.classes, taken.count, balanced, c)
    return Trained(maps, c, layer, tuple(scores), what if scores else "")


def _silent(what: str, done: int, total: int) -> None:
    return None


def _check(samples: int, folds: int, seed: int, level: int, balance: str) -> None:
    """Raises OptionError if an option is out of range, or scikit-learn is missing."""
    for option, value, least in (("samples", samples, 1), ("folds", folds, 2), ("seed", seed, 0), ("level", level, 0)):
        if value < least:
            raise OptionError(f"--{option} is an integer of at least {least}, not {value}")
    if seed > LARGEST_SEED:
        raise OptionError(f"--seed is at most {LARGEST_SEED}, not {seed}")
    if balance not in ("balanced", "none"):
        raise OptionError(f"classes are 'balanced', or not ('none'), and not '{balance}'")
    solver.check_installed()


def _check_files(files: Sequence[PathLike]) -> None:
    """Raises OptionError if these are not the paths of images and of their labels."""
    if isinstance(files, str) or len(files) != 2 or not all(isinstance(path, str | os.PathLike) for path in files):
        raise OptionError("images and labels are a file or a folder each: write arrays as .npy files first")


def _check_target(output: PathLike, model: Model, *inputs: PathLike) -> None:
    """Raises OptionError if the trained file cannot be written, or is one of the files that are read."""
    target_of(Path(output))
    target = os.path.realpath(output)
    if not isinstance(model, onnx.ModelProto) and os.path.realpath(model) == target:
        raise OptionError(f"'{os.fspath(output)}' is the model itself: write the trained file to another one")
    read = {os.path.realpath(path) for path in inputs}
    if target in read or (os.path.exists(target) and os.path.dirname(target) in read):
        raise OptionError(f"'{os.fspath(output)}' is among the images or labels: write the trained file to another one")


def _check_outputs(network: Network) -> None:
    """Raises OptionError if the network has several outputs."""
    if len(network.walk.outputs) > 1:
        outputs = ", ".join(map(repr, network.walk.outputs))
        raise OptionError(f"the model has several outputs, {outputs}: name the one to replace with --output")


def _finer(maps: Candidate, asked: Asked) -> str:
    """Pixels between the answers of a layer on these maps, if they are fewer than was asked for; else nothing."""
    own = [min(along) for along in zip(*(f.stride for f in maps.features))]
    wanted = asked.output_strides * (len(own) if len(asked.output_strides) == 1 else 1)
    return "x".join(f"{float(s):g}" for s in dict.fromkeys(own)) if any(w > s for w, s in zip(wanted, own)) else ""


def _check_stride(maps: Candidate, asked: Asked) -> None:
    """Raises OptionError if answers further apart than the cells of the chosen maps are asked for."""
    if own := _finer(maps, asked):
        raise OptionError(
            f"--output-stride {written_size(asked.output_strides)} is more than the {own} pixels between the cells of "
            f"{maps.name}, and a trained layer has an answer at every cell: leave it out, or choose coarser maps"
        )


def _closer(maps: Candidate, asked: Asked) -> Iterator[str]:
    """A sentence if the maps that folds chose have answers closer to each other than was asked for."""
    if own := _finer(maps, asked):
        yield f"answers are {own} pixels apart, closer than --output-stride asks: {maps.name} is the best by folds"


def _field(candidates: Sequence[Candidate]) -> list[float]:
    """Pixels that features see, along each axis."""
    axes = zip(*(f.axes for c in candidates for f in c.features))
    return [float(max(a.field.size for a in along)) for along in axes]


def _testable(taken: Samples, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """The candidates that a single image can test, and sentences about those that see all of its labels at once."""
    extent = int(extent_of(taken).max())
    if len(candidates) == 1 or len(np.unique(taken.images)) > 1:
        return list(candidates), []
    fields = [min(float(a.field.size) for f in c.features for a in f.axes) for c in candidates]
    kept = [c for c, field in zip(candidates, fields) if field <= extent]
    if not kept:
        return list(candidates), []
    reason = f"pixels at once, and the labels of the single image are within {extent}"
    return kept, [f"{c.name} is not tried: it sees {f:g} {reason}" for c, f in zip(candidates, fields) if f > extent]


def _of_held_out(tests: Data | None, unseen: str) -> list[str]:
    """Sentences about held-out images; `unseen` is about samples that were left out."""
    return [] if tests is None else [f"held-out images: {note}" for note in (*tests.notes, unseen) if note]


def _outside(beyond: int, taken: Samples) -> Iterator[str]:
    """A sentence if samples are beyond the outermost cells of the finest map."""
    if beyond:
        of = f"{beyond:,} of {len(taken.classes):,} samples"
        yield f"{of} lie outside the outermost answers, near the border: each gets the features of the nearest answer"


def _head(network: Network, trained: Trained) -> Head:
    """The trained layer as a head: its weights divided among the maps."""
    maps, kernels, start = trained.maps, [], 0
    for feature in maps.features:
        fact = feature.fact
        taps = fact.window if feature.covers else (1,) * len(fact.space)
        part = trained.layer.weights[:, start : start + feature.numbers]
        kernels.append(part.reshape(len(part), fact.width, *taps))
        start += feature.numbers
    return Head(output_of(network, maps.tensors), maps.tensors, tuple(kernels), trained.layer.bias)


def _described(trained: Trained, taken: Samples, balance: str, seed: int) -> dict[str, Any]:
    """What the metadata of the trained file say about its training."""
    return {
        "at": trained.maps.name,
        "c": trained.c,
        "balance": balance,
        "samples": len(taken.classes),
        "seed": seed,
        "mean_iou": round(trained.scores[0].mean_iou, 6) if trained.scores else None,
        "versions": {"onnx_fcn": __version__, "scikit-learn": solver.version()},
    }
