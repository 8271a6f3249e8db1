"""From a document to a finished walk, with the output stride and the form of answers that are requested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from onnx_fcn.walk.cam import activations
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


#: What to say beside the advice on windows if attention may see the whole image instead.
ATTENTION_ADVICE = (
    "--context attention lets attention see the whole of a larger image: everything is shared, and each answer depends "
    "on all of the image"
)


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
    plain = replace(request, attention=False)
    walk, causes = explored(document, plain)
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
    whole, reasons = explored(document, replace(request, attention=True)) if _multiplies(causes) else (walk, causes)
    if request.attention and whole is not None and not reasons:
        return whole
    advice = "" if advise is None else _advice(document, plain, walk, causes, advise)
    if request.attention:
        raise UnsupportedModel(reasons, advice)
    raise UnsupportedModel(causes, f"{advice}. {ATTENTION_ADVICE}" if advice and not reasons else advice)


def _multiplies(causes: Sequence[Diagnostic]) -> bool:
    """Is a network refused for a product of positions with positions?"""
    return any(d.code == "product-of-maps" for d in causes)


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
        walk = _spaced(document, walk, asked.output_strides)
    if asked.cam:
        walk = activations(document, walk)
    finish(walk, asked)
    return walk


def _spaced(document: Document, walk: Walk, requested: tuple[int, ...]) -> Walk:
    """The walk with answers so many pixels apart, of a model that was lifted at its own stride.

    For closer answers operators dilate; for answers that are further apart the head steps over windows of the cut.

    Raises:
        UnsupportedModel: if something in it cannot dilate.
        OptionError: if a requested stride neither divides the strides of the network nor is a multiple of them.
    """
    strides = _strides(walk)
    own = {k: found[-1] for k, found in strides.items()}
    asked = _along_axes(walk, own, requested)
    _check_strides(walk, strides, asked, requested)
    closer = {k: s for k, s in asked.items() if s < own[k]}
    further = {k: s for k, s in asked.items() if s > own[k]}
    if not closer and not further:
        return walk
    axes, apart = range(len(walk.image.space)), None
    if further:
        cut = find_cut(walk)
        assert cut is not None, "only a network with a head has a coarser stride"
        apart = cut.name, tuple(further.get(k) for k in axes)
    region = walk.region
    if region is not None:
        between = (further.get(k, min(s, closer.get(k, s))) for k, s in enumerate(region.stride))
        region = replace(region, stride=tuple(between))
    finer = tuple(None if k in further else asked.get(k) for k in axes) if closer else ()
    options = replace(walk.options, output_stride=finer, asked=bool(finer), apart=apart)
    spaced = walked(document, walk.image, options, region)
    if not spaced.succeeded:
        raise UnsupportedModel(causes_of(spaced))
    _check_spaced(walk, spaced, closer, further)
    return spaced


def _strides(walk: Walk) -> dict[int, list[Fraction]]:
    """The strides of all answers along each axis of the image that slides, the largest last.

    Raises:
        OptionError: if there are none.
    """
    every = [a for f in walk.results.values() for a in f.space]
    sliding = [(a.image, a.stride) for a in every if a.image is not None and a.image not in walk.held]
    if not sliding:
        raise OptionError("no answer depends on the position, so --output-stride does not apply")
    axes = sorted({k for k, _ in sliding})
    return {k: sorted({stride for image, stride in sliding if image == k}) for k in axes}


def _along_axes(walk: Walk, own: Mapping[int, Fraction], requested: tuple[int, ...]) -> dict[int, Fraction]:
    """The requested stride along each axis of the image.

    One number is meant for all axes: those along which the answers are closer keep their stride, unless all are.

    Raises:
        OptionError: if there are several numbers, but not one for each axis.
    """
    if len(requested) == len(own):
        return dict(zip(own, map(Fraction, requested)))
    if len(requested) > 1:
        names = ", ".join(SIZE_NAMES[len(walk.image.space)][k] for k in own)
        raise OptionError(
            f"--output-stride {written_size(requested)} has {len(requested)} numbers, but answers slide along {names}"
        )
    stride = Fraction(requested[0])
    return {k: stride if stride > max(own.values()) else min(stride, s) for k, s in own.items()}


def _check_strides(
    walk: Walk, strides: Mapping[int, list[Fraction]], asked: Mapping[int, Fraction], requested: tuple[int, ...]
) -> None:
    """Raises OptionError if a requested stride neither divides the strides of its axis nor is a multiple of them."""
    slides = walk.has_head and find_cut(walk) is not None
    for k, stride in asked.items():
        own = strides[k]
        multiple = slides and not any(stride % s for s in own)
        if multiple or (stride <= own[-1] and not any(s % stride and stride % s for s in own)):
            continue
        most = int(own[-1])
        fit = ", ".join(str(n) for n in range(1, most + 1) if not any(s % n and n % s for s in own))
        along = f" along the {SIZE_NAMES[len(walk.image.space)][k]}" if len(requested) > 1 else ""
        apart = f"{' and '.join(map(str, own))} {'pixel' if own == [1] else 'pixels'} apart{along}"
        coarser = f", or a multiple of {most}" if slides and not any(most % s for s in own) else ""
        raise OptionError(
            f"the answers lie {apart}, which --output-stride {written_size(requested)} does not divide: "
            f"use {fit}{coarser}{' there' if along else ''}"
        )


def _check_spaced(plain: Walk, spaced: Walk, closer: Mapping[int, Fraction], further: Mapping[int, Fraction]) -> None:
    """Raises UnsupportedModel if an answer did not come out at the requested stride."""
    for name, fact in spaced.results.items():
        for axis, was in zip(fact.space, plain.results[name].space):
            image = -1 if axis.image is None else axis.image
            wanted = further.get(image, min(was.stride, closer.get(image, was.stride)))
            if axis.stride != wanted:
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
