"""The pipeline, readable top to bottom: open, lift, assemble, validate, save."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import onnx

from onnx_fcn._types import Array
from onnx_fcn.checking.checks import Validation
from onnx_fcn.checking.claims import claimed_image, claims_of
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.checking.data import load_data
from onnx_fcn.checking.heads import head_in, prove_head
from onnx_fcn.checking.signature import check_signature
from onnx_fcn.checking.validation import run_checks
from onnx_fcn.errors import FcnError, ModelError, OptionError, UnsupportedModel, ValidationError
from onnx_fcn.geometry import Grid
from onnx_fcn.lifting.program import Walk
from onnx_fcn.model.agreement import is_rounded
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.metadata import asked_of, fingerprint, metadata_of
from onnx_fcn.model.sessions import session
from onnx_fcn.reporting.cost import Sizes, advice_on_windows, native_cost
from onnx_fcn.reporting.description import describe
from onnx_fcn.reporting.report import Report
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.assemble import assemble
from onnx_fcn.walk.forms import form
from onnx_fcn.walk.given import Given, Source, ordered
from onnx_fcn.walk.heads import Head, with_head
from onnx_fcn.walk.images import Request, Size, size_of
from onnx_fcn.walk.lift import answering, lift
from onnx_fcn.walk.mixing import check_freed

__all__ = ["Conversion", "Progress", "accepted", "blaming_model", "compare", "convert", "inspect", "validate"]


#: Called with a few words before each step that may take seconds.
Progress = Callable[[str], None]

#: A possible cause of differences in quantised models: without VNNI, onnxruntime adds pairs of products in 16 bits.
#: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
SATURATION = (
    "; if this processor has no VNNI, onnxruntime's sums of 8-bit products saturate, differently in each operator: "
    "quantise with reduce_range=True or unsigned weights, or convert before quantising"
)


@dataclass
class Conversion:
    """A converted model.

    Attributes:
        report: what was found, done and measured.
    """

    report: Report
    _document: Document

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, whole or not at all.

        Raises:
            OptionError: if the path cannot be written.
            ModelError: if the source has changed since it was read.
        """
        self._document.save(path)

    def grid(self, *size: int, output: str | None = None) -> Grid:
        """Where the answers of an output, by default the first, are on an image of this size: (height, width).

        Raises:
            OptionError: if the image is too small, or there is no such output.
        """
        return self.report.geometry.grid(*size, output=output)

    def to_proto(self) -> onnx.ModelProto:
        """The model in memory, with its weights."""
        return self._document.to_proto()


def convert(
    source: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    input_size: Size | None = None,
    input: str | None = None,
    dynamic_batch: bool = False,
    sizes: Sizes = (),
    head: Literal["conv", "folded"] = "conv",
    output_stride: int | Sequence[int] | None = None,
    outputs: Sequence[str] = (),
    logits: bool = False,
    cam: bool = False,
    reduce: Literal["mean", "max"] | None = None,
    full_size: bool = False,
    argmax: bool = False,
    keep_size: bool = False,
    windows: bool = False,
    window_stride: int | None = None,
    slide: Sequence[str] = (),
    context: Literal["attention"] | None = None,
    portable: bool = False,
    external_data: bool | None = None,
    link_data: bool = False,
    validate: bool = True,
    data: Mapping[str, Array] | Array | str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Turn a classifier into a fully convolutional network.

    Args:
        source: a model file, or a model.
        output: where to write the result; nothing is written if None.
        input_size: the image size that the network was made for, (height, width) or one number for a square, if the
            file does not declare it.
        input: the name of the input that is the image, if there are several.
        dynamic_batch: make a static batch dynamic.
        sizes: image sizes to report the cost for, each (height, width) or one number for a square; by default 1.5, 2
            and 4 times the native size.
        head: ``"conv"``, or ``"folded"``: with the batch folded into a spatial axis around the head, which is faster
            for batches of small images, and takes 4·C·k² bytes per cell for a window of k×k cells and C channels.
        output_stride: pixels between answers, or one number for each axis that slides, such as (4, 16); has to divide
            the stride of the network, or to be a multiple of it. If it is less, operators that would stride further
            dilate instead (à trous), so that every r-th answer is one of the map without this option; if it is more,
            the head is computed for every r-th window only.
        outputs: names of outputs, or of other tensors of the graph, to answer with; by default all outputs.
        logits: drop a closing Softmax, LogSoftmax or Sigmoid.
        cam: the class activation map: the layers after a pooling over all positions at each cell of the map that it
            pools, so that the mean, or the maximum, of a window is its score. A closing Softmax, LogSoftmax or Sigmoid
            is dropped.
        reduce: the mean or the maximum of the map instead of the map: the original's shapes, for images of any size.
        full_size: the map at the resolution of the image, each answer in the middle of its window.
        argmax: the best class instead of the scores: uint8 up to 256 classes, otherwise int64.
        keep_size: keep the native size and the shapes of the outputs, with convolutions in place of dense layers. The
            network need not slide.
        windows: run what cannot slide, such as attention, unchanged on every window of the last map that does. A
            network that slides is converted as without this option.
        window_stride: pixels between these windows, a multiple of the distance at which the map has them; by default
            the stride that the network has at its last map, or half a window if it has none.
        slide: the axes of the image that slide, such as ``("width",)``; the others keep their size, and padding along
            them is that of the original. An axis has its first letter as a name, too, and what the file calls it. By
            default all slide, but for those that a dense output has not, such as the height of a line of text.
        context: ``"attention"``: let attention in the trunk see the whole of a larger image, as squeeze-and-excite
            does. Answers then depend on the whole image. A network that slides is converted as without this option.
        portable: use only operators that all common runtimes read alike: a MaxPool that dilates becomes the maximum of
            slices. The report names those that some ignore.
        external_data: store large weights in a file beside the model (True) or within it (False); None: as the source
            does. A model of more than 2 GB is always stored with external data.
        link_data: with external data, refer to unchanged weights in the source's files, which must then stay in place.
        validate: compare with the original in onnxruntime before anything is written.
        data: further images to validate on: an array, arrays by input name, or an .npy or .npz file of them.
        seed: of the random images that the validation uses.
        progress: called with a few words before each step that may take seconds.

    Raises:
        ModelError: if the source is not a usable model.
        UnsupportedModel: if it cannot become fully convolutional; with every root cause.
        ValidationError: if the numbers disagree; nothing was written.
        OptionError: if the options contradict each other or the model.
    """
    clock = Clock(progress)
    if head not in ("conv", "folded"):
        raise OptionError(f"there is no head '{head}': it is 'conv' or 'folded'")
    asked = Asked(
        folds=head == "folded",
        output_stride=output_stride,
        outputs=tuple(outputs),
        logits=logits,
        cam=cam,
        reduce=reduce or "",
        full_size=full_size,
        argmax=argmax,
        keep_size=keep_size,
        windows=windows,
        window_stride=window_stride,
        slide=tuple(name.lower() for name in slide),
        context=context or "",
        portable=portable,
    )
    request = Request(
        input=input,
        size=size_of(input_size),
        folds=asked.folds,
        declared_batch=asked.keeps_shape and not dynamic_batch,
        windows=windows,
        window_stride=window_stride,
        slide=asked.slide,
        keeps_size=keep_size,
        attention=asked.context == "attention",
        portable=portable,
    )
    _check_paths(source, output)
    with clock("open"):
        given = Given.open(source, asked)
        original = given.selected
        document = original.copy()
    with clock("lift"), blaming_model(given):
        lifted = lift(document, request, partial(advice_on_windows, original))
        if lifted.standing is not None and (dynamic_batch or asked.folds):
            option = "--dynamic-batch" if dynamic_batch else "--head folded"
            raise OptionError(f"the network cannot slide, so its batch stays as it is: leave {option} out")
        asked = asked.needed(windows=lifted.region is not None, attention=lifted.options.attention)
        walk = answering(document, lifted, asked)
    images = load_data(data, original, walk.image, walk.held)
    with clock("assemble"), blaming_model(given):
        document.commit(assemble(document, walk, dynamic_batch=dynamic_batch))
        if dynamic_batch:
            check_freed(document, original, walk)
    name = "" if isinstance(source, onnx.ModelProto) else os.fspath(source)
    with clock("describe"):
        dropped = () if logits else tuple(given.logits)
        attention = context == "attention"
        report = describe(
            original, document, walk, source=name, sizes=sizes, windows=windows, attention=attention, dropped=dropped
        )
    source_graph = fingerprint(given.whole.proto.graph)
    entries = metadata_of(report.geometry, source_graph, document.proto.graph, asked.to_json(), labels=report.classes)
    document.commit(Edit(metadata=entries))
    conversion, macs = Conversion(report, document), report.native.macs
    if output is None:
        if validate:
            with clock("validate"):
                report.validation = compare(given, walk, document, document, seed, images, clock.say, macs)
    else:
        stage = document.staged(output, external_data=external_data, link_data=link_data)
        with clock("write"), stage as staged:
            if validate:
                with clock("validate"):
                    written = Document.open(staged.path)
                    report.validation = compare(given, walk, document, written, seed, images, clock.say, macs)
            original.check_unchanged()
            staged.commit()
        report.output, report.output_bytes = os.fspath(output), staged.size
        report.data = None if staged.data is None else os.fspath(staged.data)
    report.seconds = clock.seconds
    return conversion


def inspect(
    source: Source,
    *,
    input_size: Size | None = None,
    input: str | None = None,
    dynamic_batch: bool = False,
    sizes: Sizes = (),
) -> Report:
    """The report of a conversion without carrying it out: nothing is validated or written.

    Raises:
        ModelError: if the source is not a usable model.
        UnsupportedModel: if it cannot become fully convolutional; with every root cause.
        OptionError: if the options contradict the model.
    """
    return convert(
        source, input_size=input_size, input=input, dynamic_batch=dynamic_batch, sizes=sizes, validate=False
    ).report


def validate(
    original: Source,
    converted: Source,
    *,
    input_size: Size | None = None,
    input: str | None = None,
    data: Mapping[str, Array] | Array | str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Validation:
    """Compare any converted model with its original, also after another tool has optimised it.

    The size of the image and the options of the conversion (an output stride, a form of the answers) are read from the
    metadata of the converted model. What these state about the answers is checked, too.

    Raises:
        ModelError: if one of them is not a usable model, or the second has other inputs than a conversion of the first,
            or lacks one of its outputs.
        UnsupportedModel: if the original cannot become fully convolutional.
        ValidationError: if the numbers disagree.
    """
    judged = Document.open(converted)
    ordered(judged)
    head = head_in(judged)
    with _blaming_metadata(judged):
        asked = Asked.from_json(asked_of(judged.proto))
        given = Given.open(original, asked)
    source = given.selected
    document = source.copy()
    plain = asked if head is None else asked.as_map
    request = Request(
        input=input,
        size=size_of(input_size),
        folds=asked.folds,
        declared_batch=asked.keeps_shape,
        windows=asked.windows,
        window_stride=asked.window_stride,
        slide=asked.slide,
        keeps_size=plain.keep_size,
        attention=asked.context == "attention",
        portable=asked.portable,
    )
    with blaming_model(given):
        walk = _lifted_as_claimed(document, request, judged)
        with _blaming_metadata(judged):
            walk = answering(document, walk, plain)
        document.commit(assemble(document, walk))
    images = load_data(data, source, walk.image, walk.held)
    macs = native_cost(source, walk).macs
    try:
        if head is not None:
            comparison = Comparison(given, walk, document, document, seed, progress or _silent, macs)
            return _compare_head(comparison, head, asked, request, judged, images)
        check_signature(document, judged, walk)
        return compare(given, walk, document, judged, seed, images, progress or _silent, macs)
    except ValidationError as error:
        made_of = claims_of(judged.proto).get("source")
        if made_of is None or made_of == fingerprint(given.whole.proto.graph):
            raise
        reason = f"the metadata of the second model say that it was made from another model, and {error}"
        raise ValidationError(reason, error.report) from None


def _compare_head(
    c: Comparison, head: Head, asked: Asked, request: Request, judged: Document, data: dict[str, Array] | None
) -> Validation:
    """Compare a file with a trained head with that layer on the features of the original.

    If operators dilate, its maps are those of the plain conversion, which is compared with the original first.

    Raises:
        ModelError: if the original has no such maps.
        ValidationError: if the numbers disagree.
    """
    document = c.given.selected.copy()
    with _blaming_metadata(judged):
        walk = answering(document, _lifted_as_claimed(document, request, judged), asked.as_map)
        walk = with_head(document, walk, head)
        form(walk, asked)
    document.commit(assemble(document, walk))
    check_signature(document, judged, walk)
    if asked.output_stride is not None:
        accepted(run_checks(c, data), c.given)
    return accepted(prove_head(c, walk, head, judged, data), c.given)


def accepted(validation: Validation, given: Given) -> Validation:
    """The validation, if all checks passed.

    Raises:
        ValidationError: if one did not.
    """
    if validation.passed:
        return validation
    if validation.is_same_network:
        raise ValidationError(f"the converted model is not what it says: {validation.failure()}", validation)
    if any(c.kind == "fit" for c in validation.checks):
        raise ValidationError(f"the file does not answer as trained: {validation.failure()}", validation)
    hint = SATURATION if is_rounded(given.selected) else ""
    raise ValidationError(f"the converted model is not the same network: {validation.failure()}{hint}", validation)


def _lifted_as_claimed(document: Document, request: Request, judged: Document) -> Walk:
    """Lift an original by the image and the size that the metadata of the converted model name, unless the user does.

    What does not fit is a false claim, which the comparison finds.
    """
    image, size = claimed_image(judged.proto)
    claimed = replace(request, input=request.input or image, size=request.size or size)
    if claimed != request:
        with suppress(ModelError, OptionError, UnsupportedModel):
            return lift(document, claimed)
    return lift(document, request)


@contextmanager
def _blaming_metadata(judged: Document) -> Iterator[None]:
    """Blame the metadata of the converted model, which the options come from, for an option that does not fit.

    Raises:
        ModelError: if one does not fit the original.
    """
    try:
        yield
    except OptionError:
        asked = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in asked_of(judged.proto).items())
        what = f"name the options {asked}, which do" if asked else "name maps that do"
        raise ModelError(
            f"the metadata of the converted model {what} not fit the original: compare it with the model that it was "
            "made from"
        ) from None


def compare(
    given: Given,
    walk: Walk,
    lifted: Document,
    judged: Document,
    seed: int,
    data: dict[str, Array] | None,
    progress: Progress,
    macs: int | None,
) -> Validation:
    return accepted(run_checks(Comparison(given, walk, lifted, judged, seed, progress, macs), data), given)


@contextmanager
def blaming_model(given: Given) -> Iterator[None]:
    """If something fails unexpectedly, ask onnxruntime whether the model is to blame: the checker misses many faults.

    Raises:
        ModelError: if onnxruntime rejects the model, too. Otherwise the failure is a bug here, and propagates.
    """
    try:
        yield
    except FcnError:
        raise
    except Exception:  # any: it propagates, unless onnxruntime blames the model
        session(given.file)
        raise


def _check_paths(source: Source, output: str | os.PathLike[str] | None) -> None:
    if output is None or isinstance(source, onnx.ModelProto):
        return
    if os.path.realpath(source) == os.path.realpath(output):
        raise OptionError(f"'{os.fspath(output)}' is the model itself: write the result to another file")


def _silent(_: str) -> None:
    return None


@dataclass
class Clock:
    """Times the stages and reports progress."""

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, words: str) -> None:
        """Report what is being done."""
        if self.progress is not None:
            self.progress(words)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time one stage, without the stages in it."""
        self.say(stage)
        start, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - before
            self.seconds[stage] = time.perf_counter() - start - within
