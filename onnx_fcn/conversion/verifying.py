"""Any converted file beside its original, also after another tool changed it; and the stamp of a file that passed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

import onnx

from onnx_fcn._types import Array, Progress
from onnx_fcn.checking.checks import NONE_LARGER, Validation
from onnx_fcn.checking.claims import claimed_image, claims_of
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.checking.data import load_data
from onnx_fcn.checking.heads import head_in, prove_head
from onnx_fcn.checking.limits import limits_of
from onnx_fcn.checking.signature import check_signature
from onnx_fcn.checking.validation import run_checks
from onnx_fcn.conversion.blaming import blaming_model
from onnx_fcn.conversion.comparing import CALIBRATED, accepted, compare
from onnx_fcn.errors import ModelError, OptionError, UnsupportedModel, ValidationError
from onnx_fcn.geometry import SIZE_NAMES
from onnx_fcn.lifting.program import Walk
from onnx_fcn.model.collector import rarely_collected
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.graphs import declared_as, static_dims
from onnx_fcn.model.metadata import asked_of, fingerprint, kept_entries, metadata_of
from onnx_fcn.model.objects import Model, Source, as_model
from onnx_fcn.reporting.cost import native_cost
from onnx_fcn.reporting.description import classes_of
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.assemble import assemble
from onnx_fcn.walk.fields import geometry_of
from onnx_fcn.walk.forms import form
from onnx_fcn.walk.given import Given, ordered
from onnx_fcn.walk.heads import Head, with_head
from onnx_fcn.walk.images import Request, Size, size_of
from onnx_fcn.walk.lift import answering, lift

__all__ = ["validate"]


@dataclass
class _Pair:
    """A file and its original.

    Attributes:
        judged: the file.
        given: the original.
        asked: what the file was made for.
        walk: a walk of the original that makes the same.
        lifted: the result of that walk.
        head: the trained head of the file; None if it has none.
        plain: beside a trained head, the walk of the plain conversion, and its result.
    """

    judged: Document
    given: Given
    asked: Asked
    walk: Walk
    lifted: Document
    head: Head | None
    plain: tuple[Walk, Document]


@rarely_collected()
def validate(
    original: Source,
    converted: Source,
    *,
    input_size: Size | None = None,
    input: str | None = None,
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
    tolerance: float | None = None,
    stamp: bool = False,
    data: Mapping[str, Array] | Array | str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Validation:
    """Compare any converted model with its original, also after another tool has changed it.

    The size of the image and the options of the conversion (an output stride, a form of the answers) are read from the
    metadata of the converted model. What these state about the answers is checked, too. If a tool has removed the
    metadata, the options say how the model was made, as those of `convert` do.

    A tool may have fixed the batch, or the size of the image along some axes: then it is compared in that batch and at
    that size. If it computes in half precision, or rounds to integers, answers may differ by as much as this does.

    Args:
        original: the original, as `convert` takes it.
        converted: the converted model.
        tolerance: the largest difference allowed, relative to the largest answer; by default that of the coarser
            arithmetic of both models.
        stamp: if it passes, write where its answers are into the file `converted`, so that everything that runs
            converted files takes it. Its weights stay as they are.
        data: further images to compare on: an array, arrays by input name, or an .npy or .npz file of them.
        seed: of the random images.
        progress: called with a few words before each step that may take seconds.

    Raises:
        ModelError: if one of them is not a usable model, or the second has other inputs than a conversion of the first,
            or lacks one of its outputs.
        UnsupportedModel: if the original cannot become fully convolutional.
        ValidationError: if the numbers disagree.
        OptionError: if an option contradicts the metadata; if the stamp cannot be written, or would say more than the
            images in `data` show.
    """
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise OptionError(f"a tolerance is a share of the largest answer, between 0 and 1, not {tolerance!r}")
    model = as_model(converted)
    if stamp and isinstance(model, onnx.ModelProto):
        raise OptionError("only a file can be stamped: pass the path of the converted model")
    options = Asked.of(
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
    )
    judged = Document.open(model)
    ordered(judged)
    pair = _paired(as_model(original), judged, options, input, size_of(input_size))
    _check_is_conversion(pair)
    validation = _compared(pair, tolerance, data, seed, progress or _silent)
    if stamp:
        if NONE_LARGER in validation.uncovered:
            raise OptionError(
                "images of the native size alone do not show where the answers for larger ones are, which a stamp "
                "says: give a larger image by --data"
            )
        _stamp(pair)
    return validation


def _paired(
    original: Model, judged: Document, options: Asked, input: str | None, size: tuple[int, ...] | None
) -> _Pair:
    """Lift the original as the file was made.

    Raises:
        ModelError: if the metadata of the file do not fit the original.
        UnsupportedModel: if the original cannot become fully convolutional.
        OptionError: if the metadata say how the file was made, and options say so, too.
    """
    head, is_bare = head_in(judged), _is_bare(judged)
    if not is_bare and options != Asked():
        named = ", ".join("--head" if k == "folds" else f"--{k.replace('_', '-')}" for k in options.to_json())
        raise OptionError(f"the metadata of the converted model say how it was made: leave {named} out")
    with _blaming_metadata(judged):
        asked = options if is_bare else Asked.from_json(asked_of(judged.proto))
        given = Given.open(original, asked)
    plain = asked if head is None else asked.as_map
    request = replace(Request.of(asked, input, size), keeps_size=plain.keep_size)

    def lifted() -> tuple[Walk, Document]:
        document = given.selected.copy()
        walk = _lifted_as_claimed(document, request, judged)
        with _blaming_metadata(judged):
            return answering(document, walk, plain), document

    with blaming_model(given):
        walk, document = lifted()
        document.commit(assemble(document, walk))
        first = walk, document
        if head is not None:
            walk, document = lifted()
            with _blaming_metadata(judged):
                walk = with_head(document, walk, head)
                form(walk, asked)
            document.commit(assemble(document, walk))
    return _Pair(judged, given, asked, walk, document, head, first)


def _compared(
    pair: _Pair,
    tolerance: float | None,
    data: Mapping[str, Array] | Array | str | os.PathLike[str] | None,
    seed: int,
    progress: Progress,
) -> Validation:
    """Compare the file with its original: a trained head with that layer on the original's features.

    Beside a head, if operators dilate, the maps are those of the plain conversion, which is compared with the original
    first.

    Raises:
        ModelError: if they cannot be compared.
        ValidationError: if the numbers disagree.
    """
    given, judged, (walk, document) = pair.given, pair.judged, pair.plain
    source = given.selected
    images = load_data(data, source, walk.image, walk.held)
    macs, limits = native_cost(source, walk, None).macs, limits_of(judged, source, walk)
    check_signature(pair.lifted, judged, pair.walk, _taken_for(pair))
    try:
        if pair.head is None:
            return compare(Comparison(given, walk, document, judged, seed, progress, macs, limits, tolerance), images)
        comparison = Comparison(given, walk, document, document, seed, progress, macs)
        if pair.asked.output_stride is not None:
            accepted(run_checks(comparison, images), given)
        comparison = Comparison(given, walk, document, judged, seed, progress, macs, limits, tolerance)
        hint = CALIBRATED if comparison.is_calibrated and images is None else ""
        return accepted(prove_head(comparison, pair.walk, pair.head, judged, images), given, hint)
    except ValidationError as error:
        made_of = claims_of(judged.proto).get("source")
        if made_of is None:
            raise ValidationError(f"{error}{_taken_for(pair)}", error.report) from None
        if made_of == fingerprint(given.whole.proto.graph):
            raise
        reason = f"the metadata of the second model say that it was made from another model, and {error}"
        raise ValidationError(reason, error.report) from None


def _stamp(pair: _Pair) -> None:
    """Write where the answers are into the file, whole or not at all; what it says beside that stays.

    Raises:
        ModelError: if the file has changed since it was read.
        OptionError: if it cannot be written.
    """
    judged = pair.judged
    entries = metadata_of(
        geometry_of(pair.walk),
        pair.given.whole,
        judged,
        pair.asked.to_json(),
        labels=classes_of(pair.given.selected, pair.walk),
    )
    judged.commit(Edit(metadata=entries | kept_entries(judged.proto)))
    if judged.path is not None:
        judged.save(judged.path, link_data=judged.external)


def _check_is_conversion(pair: _Pair) -> None:
    """Check what numbers do not show: a file may give the right ones at its native size, and not be what options say.

    Raises:
        ModelError: if it is the original, with its dense layers.
        OptionError: if it takes images of sizes that it would not, had it been made by these options.
    """
    walk, made, judged = pair.walk, pair.lifted, pair.judged
    graph = fingerprint(judged.proto.graph)
    if graph == fingerprint(pair.given.file.proto.graph) and graph != fingerprint(made.proto.graph):
        raise ModelError("the second model is the original itself, which was not converted: pass the converted model")
    if not _is_bare(judged):
        return
    name = walk.image.name
    if name not in {i.name for i in judged.proto.graph.input}:
        return  # said when the inputs are compared
    wanted, have = (static_dims(declared_as(d.proto.graph, name)) for d in (made, judged))
    for k, axis in enumerate(walk.image.space if len(wanted) == len(have) else ()):
        if wanted[axis] is not None and have[axis] is None:
            what = (
                f"made as the options say, it would keep its {SIZE_NAMES[len(walk.image.space)][k]} of {wanted[axis]}"
            )
            raise OptionError(f"the converted model takes images of any size, and {what}: other options describe it")


def _is_bare(judged: Document) -> bool:
    """Do the metadata say nothing about the answers?"""
    return not claims_of(judged.proto) and not asked_of(judged.proto)


def _taken_for(pair: _Pair) -> str:
    """What a file without metadata was taken for, as the end of a sentence about a failure; empty if it has some."""
    if not _is_bare(pair.judged):
        return ""
    if pair.asked == Asked():
        taken = "for a plain map: say with options how it was made, such as --full-size"
    else:
        taken = "as the options say, which may not be how it was made"
    return f"; the converted model has no metadata of onnx_fcn, so it was taken {taken}"


def _silent(_: str) -> None:
    return None


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
        if not claims_of(judged.proto):
            raise
        asked = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in asked_of(judged.proto).items())
        what = f"name the options {asked}, which do" if asked else "name maps that do"
        raise ModelError(
            f"the metadata of the converted model {what} not fit the original: compare it with the model that it was "
            "made from"
        ) from None
