"""A photograph before and after: the classifier's own heat map, and layers that are trained on a few clicks.

Clicks are in the left part of the photograph, what is tested in its right part (see `china`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import onnx_fcn
from benchmarks import Record, Say, china
from onnx_fcn.fitting.fit import fit
from onnx_fcn.running.confusion import Confusion

__all__ = ["photograph"]

CLICKS = (3, 10, 20)  # of each class, at most

#: ImageNet's classes of such buildings: bell cote, boathouse, castle, church, dome, monastery, mosque, palace, stupa.
BUILDINGS = (442, 449, 483, 497, 538, 663, 668, 698, 832)


def photograph(folder: Path, model: Path, preprocessing: str, say: Say) -> Iterator[Record]:
    """What the classifier says about the photograph, and a record for each number of clicks."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    folder.mkdir()
    picture, image = load_sample_image(china.NAME), folder / "china.png"
    Image.fromarray(picture).save(image)
    truth = _truth(picture.shape[:2])
    say("the photograph as it is classified")
    onnx_fcn.convert(model, folder / "converted.onnx")
    result = onnx_fcn.DenseModel(folder / "converted.onnx", preprocess=preprocessing, activation="softmax").run(picture)
    building = result.at_pixels(result.probabilities[list(BUILDINGS)].sum(0)) >= 0.5
    yield {"clicks": 0, **_measures((truth != 0).astype(np.int64), (~building).astype(np.int64), 2, truth < 0)}
    for count in CLICKS:
        say(f"the photograph, {count} clicks of each class")
        clicks, trained = china.write_clicks(folder / "china.csv", count), folder / f"clicks-{count}.onnx"
        fitted = fit(model, image, clicks, trained, names=china.NAMES, preprocess=preprocessing)
        result = onnx_fcn.DenseModel(trained).run(picture)
        found = result.at_pixels(result.map).argmax(0)
        yield {
            "clicks": count,
            "taken": fitted.at,
            "c": fitted.c,
            "folds": fitted.scores[0].mean_iou if fitted.scores else float("nan"),
            "seconds": fitted.seconds,
            "notes": fitted.notes,
            **_measures(truth, found, len(china.NAMES), truth < 0),
            "all": {s.at: s.mean_iou for s in fitted.scores},
        }


def _truth(size: tuple[int, int]) -> np.ndarray:
    """The class of each pixel, -1 without one."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", size[::-1], 255)
    for name, corners in china.AREAS:
        ImageDraw.Draw(mask).polygon(corners, fill=china.NAMES.index(name))
    truth = np.asarray(mask).astype(np.int64)
    return np.where(truth == 255, -1, truth)


def _measures(truth: np.ndarray, found: np.ndarray, count: int, unlabelled: np.ndarray) -> Record:
    confusion = Confusion.of(truth[~unlabelled], found[~unlabelled], count)
    return {"accuracy": confusion.accuracy, "mean_iou": confusion.mean_iou, "iou": confusion.iou.tolist()}
