"""From a document to a finished walk, with the output stride and the form of answers that are requested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from onnx_fcn.errors import Diagnostic, OptionError, UnsupportedModel
from onnx_fcn.geometry import SIZE_NAMES
from onnx_fcn.lifting.program import Walk
from onnx_fcn.lifting.refusals import OF_FAULTS
from onnx_fcn.lifting.regions import Region
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, static_dims
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.cut import find_cut
from onnx_fcn.walk.forms import finish
from onnx_fcn.walk.images import FEW, Request, images, written_size
from onnx_fcn.walk.passes import walked
from onnx_fcn.walk.regions import on_windows, plans
from onnx_fcn.walk.search import causes_of, explored
from onnx_fcn.walk.shapes import is_consistent
from onnx_fcn.walk.standing import in_place

__all__ = ["answering", "lift"]


#: Refusals of networks that may slide along some axes of the image: they treat the positions along another in their own
#: ways, or mix them.
ALONG_AXES = frozenset({"per-position", "not-spatial", "not-channels"})


def lift(document: Document, request: Request, advise: Callable[[Walk, Region], str] | None = None) -> Walk:
    """Lift a whole model, with answers at its own stride.

    Args:
        document: the model.
        request: what the user said about its image.
        advise: what to say if it is refused, and a part of it could run on every window.

    Raises:
        UnsupportedModel: if it cannot slide, and is not to be left standing; with every root cause for the likeliest
            reading of its inputs.
        OptionError: if the request does not fit the model.
    """
    _check_channels(document, request)
    walk, causes = explored(document, request)
    if walk is None:
        raise UnsupportedModel(causes)
    if not causes:
        if request.window_stride is not None:
            raise OptionError(
                "everything in the network slides, so no windows are cut, and --window-stride does not apply: "
                "--output-stride gives answers in between"
            )
        return walk
    if request.windows:
        return on_windows(document, request, walk, causes)
    if request.keeps_size and (still := in_place(document, request, walk, causes)) is not None:
        return still
    raise UnsupportedModel(causes, "" if advise is None else _advice(document, request, walk, causes, advise))


def _advice(
    document: Document,
    request: Request,
    walk: Walk,
    causes: Sequence[Diagnostic],
    advise: Callable[[Walk, Region], str],
) -> str:
    """What to say to whoever gave a refused network: that it slides along one axis, or on windows.

    Nothing if that is no remedy, or it may be damaged.
    """
    if not OF_FAULTS.isdisjoint(d.code for d in causes):
        return ""
    if not request.slide and {d.code for d in causes} <= ALONG_AXES:
        words = SIZE_NAMES[len(walk.image.space)]
        for word in words if len(words) > 1 else ():
            if not explored(document, replace(request, slide=(word,)))[1]:
                return f"--slide {word} converts it for images of any {word}"
    planned = (p for p in plans(document, request, walk, causes) if isinstance(p, tuple))
    return next((advise(*p) for p in planned if is_consistent(document, p[0].image)), "")


def answering(document: Document, walk: Walk, asked: Asked) -> Walk:
    """The walk of a lifted model with the requested output stride and form of answers.

    Raises:
        UnsupportedModel: if an output cannot have them.
        OptionError: if the strides of the network do not allow it, or the form does not apply to any output.
    """
    if asked.output_stride is not None:
        walk = _spaced(document, walk, asked.output_stride)
    finish(walk, asked)
    return walk


def _spaced(document: Document, walk: Walk, output_stride: int) -> Walk:
    """The walk with answers `output_stride` pixels apart, of a model that was lifted at its own stride.

    For closer answers operators dilate; for answers that are further apart the head steps over windows of the cut.

    Raises:
        UnsupportedModel: if something in it cannot dilate.
        OptionError: if `output_stride` neither divides the strides of the network nor is a multiple of them.
    """
    own, stride = _check_stride(walk, output_stride), Fraction(output_stride)
    if stride == own:
        return walk
    region, cut = walk.region, find_cut(walk)
    if region is not None:
        closer = tuple(min(s, stride) for s in region.stride)
        region = replace(region, stride=closer if stride < own else (stride,) * len(closer))
    folds, head = walk.options.folds, walk.options.head
    if stride < own:
        spaced = walked(document, walk.image, folds=folds, output_stride=stride, region=region, head=head)
    else:
        assert cut is not None, "only a network with a head has a coarser stride"
        spaced = walked(document, walk.image, folds=folds, region=region, apart=(cut.name, stride), head=head)
    if not spaced.succeeded:
        raise UnsupportedModel(causes_of(spaced))
    _check_spaced(walk, spaced, output_stride, coarser=stride > own)
    return spaced


def _check_stride(walk: Walk, output_stride: int) -> Fraction:
    """The largest stride of all answers, which `output_stride` has to divide, or to be a multiple of.

    Raises:
        OptionError: if it is neither.
    """
    axes = [a for f in walk.results.values() for a in f.space if a.image is not None and a.image not in walk.held]
    strides = sorted({a.stride for a in axes})
    if not strides:
        raise OptionError("no answer depends on the position, so --output-stride does not apply")
    slides = walk.has_head and find_cut(walk) is not None
    if slides and not any(output_stride % s for s in strides):
        return strides[-1]
    if any(s % output_stride and output_stride % s for s in strides) or output_stride > strides[-1]:
        stride = int(strides[-1])
        fit = ", ".join(str(n) for n in range(1, stride + 1) if not any(s % n and n % s for s in strides))
        apart = f"{' and '.join(map(str, strides))} {'pixel' if strides == [1] else 'pixels'} apart"
        coarser = f", or a multiple of {stride}" if slides and not any(stride % s for s in strides) else ""
        raise OptionError(
            f"the answers lie {apart}, which --output-stride {output_stride} does not divide: use {fit}{coarser}"
        )
    return strides[-1]


def _check_spaced(plain: Walk, spaced: Walk, output_stride: int, *, coarser: bool) -> None:
    """Raises UnsupportedModel if an answer did not come out at the requested stride."""
    for name, fact in spaced.results.items():
        for axis, was in zip(fact.space, plain.results[name].space):
            wanted = Fraction(output_stride) if coarser else min(was.stride, output_stride)
            if axis.image is not None and axis.image not in plain.held and axis.stride != wanted:
                raise UnsupportedModel(
                    [
                        Diagnostic(
                            "output-stride",
                            name,
                            "output",
                            f"has answers {axis.stride} pixels apart, not {wanted}: "
                            "the strides before it cannot be divided so",
                            "another --output-stride, or none",
                        )
                    ]
                )


def _check_channels(document: Document, request: Request) -> None:
    """Raises OptionError if one number of the requested size is that of the channels.

    A size that also works as given is accepted, unless that number is one of the few channels of pictures.
    """
    given = request.size or ()
    for declared in data_inputs(document.proto.graph):
        shape = static_dims(declared)
        for axis, channels, size in ((1, given[:1], given[1:]), (-1, given[-1:], given[:-1])):
            if not size or len(given) != len(shape) - 1 or shape[axis] not in channels:
                continue
            if shape[axis] not in FEW and any(images(document, request)) and not explored(document, request)[1]:
                continue
            other = replace(request, size=size)
            if any(images(document, other)) and not explored(document, other)[1]:
                long, short = written_size(given), written_size(size)
                raise OptionError(
                    f"--input-size {long} includes the channels of input '{declared.name}', which are not a size in "
                    f"pixels: give --input-size {short}"
                )
