"""The pipeline, readable top to bottom: open, lift, assemble, validate, save."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import onnx

from onnx_fcn._types import Array, Progress
from onnx_fcn.checking.checks import Validation
from onnx_fcn.checking.data import load_data
from onnx_fcn.conversion.blaming import blaming_model
from onnx_fcn.errors import OptionError
from onnx_fcn.files import check_other
from onnx_fcn.geometry import Grid
from onnx_fcn.model.collector import rarely_collected
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.metadata import metadata_of
from onnx_fcn.model.objects import Source, as_model
from onnx_fcn.reporting.cost import Sizes, advice_on_windows
from onnx_fcn.reporting.description import describe
from onnx_fcn.reporting.report import Report
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.assemble import assemble
from onnx_fcn.walk.given import Given
from onnx_fcn.walk.images import Request, Size, size_of
from onnx_fcn.walk.lift import answering, lift
from onnx_fcn.walk.mixing import check_freed

__all__ = ["Conversion", "convert", "inspect"]


#: In a batch: as many as fit into 32 bits, in which some runtimes count.
MOST_IMAGES = (1 << 31) - 1


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

    def to_graphsurgeon(self) -> Any:
        """An `onnx_graphsurgeon.Graph` of the model, with its weights, to be edited further.

        When it is exported, it has lost what graphsurgeon does not keep: metadata, so that `validate` has to stamp the
        file before `apply` reads it, comments (`doc_string`), and shapes and types of outputs that it does not know.
        """
        import onnx_graphsurgeon

        return onnx_graphsurgeon.import_onnx(self.to_proto())


@rarely_collected()
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
    fix_size: Size | None = None,
    batch: int | None = None,
    external_data: bool | None = None,
    link_data: bool = False,
    validate: bool = True,
    data: Mapping[str, Array] | Array | str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Turn a classifier into a fully convolutional network.

    Args:
        source: a model file, or a model: an `onnx.ModelProto`, `onnx_graphsurgeon.Graph`, `onnx_ir.Model` or
            `torch.onnx.ONNXProgram`.
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
        fix_size: the only size of images that the result shall take, (height, width) or one number for a square: every
            shape in it becomes numbers, as accelerators need it.
        batch: the only number of images that it shall take at once.
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
    asked = Asked.of(
        head=head,
        output_stride=output_stride,
        outputs=outputs,
        logits=logits,
        cam=cam,
        reduce=reduce,
        full_size=full_size,
        argmax=argmax,
        keep_size=keep_size,
        windows=windows,
        window_stride=window_stride,
        slide=slide,
        context=context,
        portable=portable,
    )
    request = Request.of(asked, input, size_of(input_size), free_batch=dynamic_batch)
    only_size = size_of(fix_size, "size to fix")
    if batch is not None and (type(batch) is not int or not 1 <= batch <= MOST_IMAGES):
        raise OptionError(f"a batch is a number of images from 1 to {MOST_IMAGES}, not {batch!r}")
    model = as_model(source)
    if output is not None:
        read = [data] if isinstance(data, str | os.PathLike) else []
        check_other(output, None if isinstance(model, onnx.ModelProto) else model, read)
    with clock("open"):
        given = Given.open(model, asked)
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
        free = document
        if only_size is not None or batch is not None:
            from onnx_fcn.conversion.fixing import with_fixed_dims

            document = with_fixed_dims(free, walk, only_size, batch)
    name = "" if isinstance(model, onnx.ModelProto) else os.fspath(model)
    with clock("describe"):
        dropped = () if logits else tuple(given.logits)
        attention = context == "attention"
        if only_size is not None and not walk.keeps_size:
            sizes = sizes or [only_size]
        report = describe(
            original, document, walk, source=name, sizes=sizes, windows=windows, attention=attention, dropped=dropped
        )
    entries = metadata_of(report.geometry, given.whole, document, asked.to_json(), labels=report.classes)
    document.commit(Edit(metadata=entries))
    conversion, macs = Conversion(report, document), report.native.macs

    def compared(judged: Document) -> Validation:
        """Compare a file with the original, or what it was fixed from with the original, and the file with that."""
        from onnx_fcn.checking.comparison import Comparison  # importing it takes as long as some conversions
        from onnx_fcn.conversion.comparing import compare
        from onnx_fcn.conversion.fixing import with_fixed_checks

        whole = judged if free is document else free
        comparison = Comparison(given, walk, free, whole, seed, clock.say, macs)
        validation = compare(comparison, images)
        return validation if free is document else with_fixed_checks(validation, comparison, judged, images)

    if output is None:
        if validate:
            with clock("validate"):
                report.validation = compared(document)
    else:
        stage = document.staged(output, external_data=external_data, link_data=link_data)
        with clock("write"), stage as staged:
            if validate:
                with clock("validate"):
                    report.validation = compared(Document.open(staged.path))
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
