"""A converted file in 8 bits: onnxruntime's static quantisation, calibrated on whole images, and proved on others.

A map has answers that no single window has, so a file that is calibrated on windows alone is far off on large images.
It is calibrated on whole images and on windows of the native size here, and compared with the float file on images that
it was not calibrated on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from onnx import GraphProto

from onnx_fcn._types import Array, Progress
from onnx_fcn.errors import ModelError, OptionError, ValidationError, in_one_line, reason_of
from onnx_fcn.files import check_other, target_of, writing
from onnx_fcn.images.folders import files_of
from onnx_fcn.images.image import Image, open_image
from onnx_fcn.model.agreement import is_rounded
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.metadata import PREFIX, fingerprint
from onnx_fcn.running.fidelity import Ends, Fidelity, Tally, outputs_of
from onnx_fcn.running.network import Converted, open_converted, run_session
from onnx_fcn.running.preprocess import Preprocessing, are_unit, for_training
from onnx_fcn.running.ranges import ranges
from onnx_fcn.tables import size_text

__all__ = ["Quantized", "quantize"]


#: The most pixels of a larger image that are read: a square, or a cube, in its middle; but one and a half windows along
#: each axis, and a second answer, in any case.
MOST_PIXELS = 1 << 20

FORMAT = 1  # of the report as JSON: increases if a key changes its meaning

#: Times that the largest image is run, to say how long it takes.
RUNS = 3

#: Operators with weights that onnxruntime quantises.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

#: What Linux says about the processor.
CPUINFO = Path("/proc/cpuinfo")

#: One call of onnxruntime's tools at a time: where their temporary files are is a setting of the process.
TOOLS = threading.Lock()

#: From how many bytes on weights do not fit into one file.
LARGE = 2 * 10**9


@dataclass(frozen=True)
class Quantized:
    """A quantised file, and how it compares with the float one.

    Attributes:
        path: the file.
        calibrated: number of images that it was calibrated on.
        compared: the other images: (file, `error`, `agreement`), each of the output that is the worst there.
        outputs: how each output compares, over all of these images.
        size: pixels of the largest of them.
        seconds: for that image, of the float file and of the quantised one; the medians of `RUNS`.
        nbytes: bytes of both files.
        wide_sums: whether this processor adds products of 8 bits in 32; None if that is not known.
    """

    path: str
    calibrated: int
    compared: tuple[tuple[str, float | None, float], ...]
    outputs: tuple[Fidelity, ...]
    size: tuple[int, ...]
    seconds: tuple[float, float]
    nbytes: tuple[int, int]
    wide_sums: bool | None

    @property
    def weight_bits(self) -> int:
        """Bits of a weight: 7 unless this processor is known to add products of 8 bits in 32."""
        return 8 if self.wide_sums else 7

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object; docs/deploying.md has its keys."""
        return {
            "version": FORMAT,
            "path": self.path,
            "bytes": {"before": self.nbytes[0], "after": self.nbytes[1]},
            "weight_bits": self.weight_bits,
            "wide_sums": self.wide_sums,
            "calibrated": self.calibrated,
            "compared": [{"image": file, "error": error, "agreement": same} for file, error, same in self.compared],
            "agreement": self.agreement,
            "recall": self.recall,
            "noise": self.noise,
            "error": self.error,
            "outputs": [each.to_dict() for each in self.outputs],
            "size": self.size,
            "seconds": {"before": self.seconds[0], "after": self.seconds[1]},
        }

    @property
    def worst(self) -> Fidelity:
        """The output with the least agreement."""
        return min(self.outputs, key=lambda f: 1.0 if f.agreement is None else f.agreement)

    @property
    def agreement(self) -> float:
        """The share of all cells with the same best class, of the output where it is the least."""
        return min(f.agreement for f in self.outputs if f.agreement is not None)

    @property
    def recall(self) -> float | None:
        """The least share of the cells of one class that keep it; None if every class has too few cells."""
        return min((f.recall for f in self.outputs if f.recall is not None), default=None)

    @property
    def noise(self) -> float | None:
        """The most noise of the scores of an output, relative to their spread; None if all answers are classes."""
        return max((f.noise for f in self.outputs if f.noise is not None), default=None)

    @property
    def error(self) -> float | None:
        """The largest difference of a score, relative to the largest one of its image; None if there are no scores."""
        return max((f.error for f in self.outputs if f.error is not None), default=None)


def quantize(
    model: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    agreement: float = 0.98,
    preprocess: str | Preprocessing | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantise a converted file to 8 bits, with a scale for each channel of weights (QDQ), all but its last layer.

    Every other image is calibrated on, whole and in a window of the native size; the others are compared. Both have to
    contain one at least that is larger than a window, unless the file takes none. Every output has to be faithful by
    three measures: the share of all cells with the same best class, that share of the cells of each class alone, and
    the noise of the scores. A cell of one score has two classes: above, and not above, the middle between the smallest
    and the largest one.

    Args:
        model: a converted file.
        images: a folder of at least two images like those that it will be used on.
        output: the file to write.
        agreement: the least share of cells with the same best class.
        preprocess: as of `apply`, by default what the file says; stored in the quantised file, whose ranges are valid
            for it alone.
        progress: called with a few words before each step that may take seconds.

    Raises:
        ModelError: if onnx_fcn did not convert the model, or onnxruntime does not quantise it.
        OptionError: if there are too few images, or too few larger ones; if one cannot be read, or the output written.
        ValidationError: if fewer cells agree, a class keeps less than half of its cells, or the scores are off by more
            than 0.3 of their spread; nothing is written.
    """
    say = progress or (lambda _: None)
    if not 0 < agreement <= 1:
        raise OptionError(f"the agreement is a share of the cells, above 0 and at most 1, not {agreement!r}")
    check_other(output, model)
    converted = open_converted(model)
    source = Document.open(model)
    if is_rounded(source):
        raise OptionError(f"'{os.fspath(model)}' is quantised already")
    if converted.image_type.kind != "f" or converted.others:
        raise OptionError("only a model that reads an image of floats, and nothing else, can be quantised")
    files = files_of(os.fspath(images), images=True)
    check_other(output, others=[*source.files, *files])
    if len(files) < 2:
        raise OptionError(
            f"'{os.fspath(images)}' has one image only: one at least is calibrated on, and one compared: give several"
        )
    wide = _has_wide_sums()
    calibrated, others = _split(converted, files)
    formula = None if preprocess is None else _formula_of(converted, files, preprocess)
    with _folder_beside(output) as folder:
        made = Path(folder, "quantized.onnx")
        feeds = partial(_feeds, converted, calibrated, preprocess, say)
        _quantized(source, converted, made, feeds, say, narrow=not wide)
        document = Document.open(made)
        kept = {e.key: e.value for e in source.proto.metadata_props}
        kept[f"{PREFIX}graph"] = fingerprint(document.proto.graph)
        if formula is not None:
            kept[f"{PREFIX}preprocessing"] = json.dumps(formula.to_json())
        document.commit(Edit(metadata=kept))
        with document.staged(output) as staged:
            compared, outputs, size, seconds = _compared(converted, source, staged.path, others, preprocess, say)
            found = Quantized(
                os.fspath(output),
                len(calibrated),
                compared,
                outputs,
                size,
                seconds,
                (source.size, staged.size),
                wide,
            )
            _check(found, agreement)
            source.check_unchanged()
            staged.commit()
    return found


def _check(found: Quantized, agreement: float) -> None:
    """Raises ValidationError about the worst output that is not faithful, if there is one."""
    for each in (found.worst, *found.outputs):
        if fault := each.fault(agreement):
            where = f"of output '{each.output}', " if len(found.outputs) > 1 else ""
            raise ValidationError(where + fault, found)


def _quantized(
    source: Document,
    converted: Converted,
    path: Path,
    feeds: Callable[[str], Iterator[dict[str, Array]]],
    say: Progress,
    *,
    narrow: bool,
) -> None:
    """Write a file that onnxruntime quantises.

    Args:
        source: the file in floats.
        converted: the same, as a network.
        path: where to write it; other files are written beside it.
        feeds: gives what the network reads of each image, as often as it is called with what is being done.
        say: told what is being done.
        narrow: whether weights get 7 bits.

    Raises:
        ModelError: if it does not.
        OptionError: if an image cannot be read, or there is not enough memory.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    first = iter([next(feeds("reading images"))])

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """One image: onnxruntime asks for it, although all ranges are given."""

        def get_next(self) -> dict[str, Array] | None:
            return next(first, None)

    large = source.size > LARGE
    plain, prepared = path.with_name("plain.onnx"), path.with_name("prepared.onnx")
    say("preparing the network")
    source.save(plain, external_data=large)
    with _onnxruntime_quantises(path.parent):
        quant_pre_process(plain, prepared, skip_symbolic_shape=True, save_as_external_data=large)
    kept = ranges(prepared, feeds, lambda given: converted.size_of(given[converted.image]))
    overrides = {name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in kept.items()}
    in_floats = _last_layers(Document.open(prepared).proto.graph)
    say("rounding weights")
    with _onnxruntime_quantises(path.parent):
        quantize_static(
            prepared,
            path,
            Reader(),
            nodes_to_exclude=in_floats,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=narrow,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
            extra_options={"TensorQuantOverrides": overrides},
        )


def _last_layers(graph: GraphProto) -> list[str]:
    """The names of the layers with weights next to each output, which stay in floats.

    They cost little beside the others, and their answers would be rounded to 255 values within the range of the images
    that were calibrated on: scores beyond would be cut off.
    """
    makers = {name: node for node in graph.node for name in node.output}
    found, left = [], [output.name for output in graph.output]
    while left:
        node = makers.pop(left.pop(), None)
        if node is not None and node.op_type in LAYERS:
            found.append(node.name)
        elif node is not None:
            left.extend(node.input)
    return found


@contextlib.contextmanager
def _onnxruntime_quantises(folder: Path) -> Iterator[None]:
    """Around calls of onnxruntime's tools alone: without advice about them, and with their failures in a sentence.

    The copies of the model that they make are in `folder`, too: they ask `tempfile` where, and take no folder.

    Raises:
        ModelError: if they fail.
        OptionError: if they cannot write.
    """
    import logging

    root = logging.getLogger()
    with TOOLS:
        before, place = root.level, tempfile.tempdir
        root.setLevel(logging.CRITICAL)
        tempfile.tempdir = os.fspath(folder)
        try:
            yield
        except MemoryError:  # no fault of the model
            raise
        except OSError as error:
            raise OptionError(f"cannot write copies of the model beside the output: {reason_of(error)}") from None
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError(f"onnxruntime does not quantise the model: {in_one_line(error)}") from error
        finally:
            root.setLevel(before)
            tempfile.tempdir = place


@contextlib.contextmanager
def _folder_beside(output: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary folder beside the output, for several copies of the model: the system's is often in memory.

    Raises:
        OptionError: if the output cannot be written.
    """
    target = target_of(output)
    with writing(output):
        folder = tempfile.TemporaryDirectory(prefix=".onnx_fcn-", dir=target.parent)
    with folder as name:
        yield name


def _split(converted: Converted, files: Sequence[str]) -> tuple[list[str], list[str]]:
    """The images to calibrate on, and those to compare: every other one of the larger ones, and of the windows.

    Windows say nothing about the values of larger maps, so one larger image at least is in both, unless the file takes
    none.

    Raises:
        OptionError: if there are too few images that are larger, or one cannot be read.
    """
    cells = converted.answers.grid(*converted.native).shape
    fixed = [only for only in converted.fixed if only is not None]
    takes_larger = len(fixed) < converted.rank or converted.answers.grid(*fixed).shape != cells
    larger: list[str] = []
    windows: list[str] = []
    for file in files:
        with contextlib.closing(open_image(file, converted.rank, converted.channels)) as image:
            shape = converted.answers.grid(*_bounded(image, converted)).shape
        (larger if shape != cells else windows).append(file)
    if takes_larger and len(larger) < 2:
        count = "one of the images is" if larger else "none of the images is"
        raise OptionError(
            f"{count} enough larger than the window of {size_text(converted.native)} pixels to have more answers than "
            "it: two at least have to be, one to calibrate on and one to compare"
        )
    calibrated = {*larger[::2], *windows[1::2]}
    return [file for file in files if file in calibrated], [file for file in files if file not in calibrated]


def _formula_of(converted: Converted, files: Sequence[str], wanted: str | Preprocessing) -> Preprocessing:
    """What the quantised file stores about the pixels, as a trained one does: bytes and floats of a picture are alike.

    Raises:
        OptionError: if it is another formula for some of the images.
    """
    kinds: dict[tuple[np.dtype[Any], float], str] = {}
    are_unit_floats = True
    for file in files:
        with contextlib.closing(open_image(file, converted.rank, converted.channels)) as image:
            kinds.setdefault((image.dtype, image.white), image.name)
            if image.dtype.kind == "f":
                pixels = image.read(_middle(image.size, _bounded(image, converted)))
                are_unit_floats = are_unit_floats and are_unit(pixels)
    how = (converted.rank, converted.channels, False, are_unit_floats)
    formulas = [for_training(wanted, dtype, white, *how) for dtype, white in kinds]
    for formula, name in zip(formulas, kinds.values()):
        if formula != formulas[0]:
            raise OptionError(
                f"{name} has other numbers than the images before it: some are pictures and some are not, or their "
                "full scales differ, so give a formula for pixels from 0 to 255 with --preprocess"
            )
    return formulas[0]


def _feeds(
    converted: Converted, files: Sequence[str], preprocess: str | Preprocessing | None, say: Progress, what: str
) -> Iterator[dict[str, Array]]:
    """What the network reads of each image: all of it, and a window of the native size in its middle.

    `what` is being done with them, and said.
    """
    for k, file in enumerate(files):
        say(f"{what}: image {k + 1} of {len(files)}")
        images = _read(converted, file, preprocess)
        size = images.shape[2:]
        window = tuple(only or n for n, only in zip(converted.native, converted.fixed))
        for part in dict.fromkeys((window, size)):
            yield {converted.image: converted.arrange(images[(slice(None), slice(None), *_middle(size, part))])}


def _read(converted: Converted, file: str, preprocess: str | Preprocessing | None) -> Array:
    """A batch of an image, (N, C, *space), as the network reads it; of a large one, the pixels in its middle.

    Raises:
        OptionError: if it cannot be read, is too small, or contains numbers that are not finite.
    """
    with contextlib.closing(open_image(file, converted.rank, converted.channels)) as image:
        part = _bounded(image, converted)
        formula = converted.preprocessing_for(preprocess, image.dtype, image.white, image.name)
        pixels = formula(image.read(_middle(image.size, part)))
        if not np.isfinite(pixels).all():
            raise OptionError(f"{image.name} contains NaN or infinities, which 8 bits do not hold: leave it out")
    return np.repeat(pixels[None], converted.batch or 1, axis=0)


def _bounded(image: Image, converted: Converted) -> tuple[int, ...]:
    """The size of an image, or of as much of it as is read.

    Raises:
        OptionError: if it is too small.
    """
    converted.answers.grid(*image.size)  # raises if it is smaller than a window
    side = int(MOST_PIXELS ** (1 / len(image.size)))
    more = [m + max(math.ceil(s), m // 2) for m, s in zip(converted.native, converted.answers.stride)]
    part = [min(n, max(side, m)) for n, m in zip(image.size, more)]
    size = tuple(only or n for n, only in zip(part, converted.fixed))
    if any(n < m for n, m in zip(image.size, size)):
        raise OptionError(
            f"{image.name} has {size_text(image.size)} pixels, fewer than the {size_text(size)} to which the size of "
            "the file was fixed: leave it out"
        )
    return size


def _middle(size: Sequence[int], part: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(size, part))


def _compared(
    converted: Converted,
    source: Document,
    path: Path,
    files: Sequence[str],
    preprocess: str | Preprocessing | None,
    say: Progress,
) -> tuple[tuple[tuple[str, float | None, float], ...], tuple[Fidelity, ...], tuple[int, ...], tuple[float, float]]:
    """Of each image, (file, error, agreement); the outputs over all images; the size of the largest one, and the
    seconds that both files take for it.

    Raises:
        OptionError: if an image cannot be read, or an output is the same everywhere.
    """
    outputs = outputs_of(source.proto)
    names = [output.name for output in outputs]
    before, after = (each.session().inference for each in (converted, open_converted(path)))

    def run(session: Any, pixels: Array, wanted: Sequence[str] = names) -> list[Array]:
        return run_session(session, wanted, {converted.image: converted.arrange(pixels)}, pixels.shape[2:])

    sides = {output.name: Ends() for output in outputs if output.has_sides}
    for k, file in enumerate(files if sides else ()):
        say(f"looking for the smallest and the largest score on image {k + 1} of {len(files)}")
        for ends, values in zip(sides.values(), run(before, _read(converted, file, preprocess), list(sides))):
            ends.add(values)
    middles = {name: ends.middle for name, ends in sides.items()}
    tallies = [Tally(output, middles.get(output.name, 0.0), converted.batch or 1) for output in outputs]
    found, largest = [], np.zeros(0)
    for k, file in enumerate(files):
        say(f"comparing on image {k + 1} of {len(files)}")
        pixels = _read(converted, file, preprocess)
        each = [tally.add(*pair) for tally, *pair in zip(tallies, run(before, pixels), run(after, pixels))]
        error = max((error for error, _ in each if error is not None), default=None)
        found.append((file, error, min(same for _, same in each if same is not None)))
        largest = pixels if pixels.size > largest.size else largest
    say("measuring the time")

    def seconds(session: Any) -> float:
        start = time.perf_counter()
        run(session, largest)
        return time.perf_counter() - start

    times = [median(seconds(session) for _ in range(RUNS)) for session in (before, after)]
    return tuple(found), tuple(tally.result() for tally in tallies), largest.shape[2:], (times[0], times[1])


def _has_wide_sums() -> bool | None:
    """Does this processor sum products of 8 bits in 32? Without VNNI, x86 adds pairs of them in 16, which saturates.

    None if that is not known: only Linux has a file that says it.
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i386", "i686"):
        return True
    try:
        return "vnni" in CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
