"""From a document to a finished walk, and to the one whose answers are as close and in the form that is asked for."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from onnx_fcn.errors import Diagnostic, OptionError, UnsupportedModel
from onnx_fcn.lifting.program import Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, static_dims
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.forms import finish
from onnx_fcn.walk.images import FEW, Request, images, written_size
from onnx_fcn.walk.passes import walked
from onnx_fcn.walk.search import causes_of, explored

__all__ = ["answering", "dilated", "lift"]


def lift(document: Document, request: Request) -> Walk:
    """Lift a whole model, to answers at its own stride.

    Raises:
        UnsupportedModel: it cannot slide; with every root cause of the likeliest reading of its inputs.
        OptionError: the request does not fit the model.
    """
    _check_channels(document, request)
    state, causes = explored(document, request)
    if state is None or causes:
        raise UnsupportedModel(causes)
    return state


def answering(document: Document, state: Walk, asked: Asked) -> Walk:
    """The walk of a lifted model whose answers are as close, and in the form, that is asked for.

    Raises:
        UnsupportedModel: an answer cannot be.
        OptionError: the network's strides do not divide so, or it has nothing that the form is about.
    """
    if asked.output_stride is not None:
        state = dilated(document, state, asked.output_stride)
    finish(state, asked)
    return state


def dilated(document: Document, state: Walk, output_stride: int) -> Walk:
    """The walk whose answers lie so many pixels apart, of a model that was lifted at its own stride.

    Raises:
        UnsupportedModel: something in it cannot dilate.
        OptionError: the network's strides do not divide so.
    """
    if _check_stride(state, output_stride) == output_stride:
        return state
    dense = walked(document, state.image, folds=state.options.folds, output_stride=Fraction(output_stride))
    if not dense.succeeded:
        raise UnsupportedModel(causes_of(dense))
    _check_dense(state, dense, output_stride)
    return dense


def _check_stride(state: Walk, output_stride: int) -> Fraction:
    """The largest stride of all answers, which the wanted one has to divide.

    Raises:
        OptionError: it does not.
    """
    if output_stride < 1:
        raise OptionError(f"--output-stride is a number of pixels from 1 on, not {output_stride}")
    strides = sorted({a.stride for f in state.results.values() for a in f.space if a.image is not None})
    if not strides:
        raise OptionError("no answer depends on the position, so there is no --output-stride")
    if any(s % output_stride and output_stride % s for s in strides) or output_stride > strides[-1]:
        stride = int(strides[-1])
        fit = ", ".join(str(n) for n in range(1, stride + 1) if not any(s % n and n % s for s in strides))
        apart = f"{' and '.join(map(str, strides))} {'pixel' if strides == [1] else 'pixels'} apart"
        raise OptionError(f"the answers lie {apart}, which --output-stride {output_stride} does not divide: use {fit}")
    return strides[-1]


def _check_dense(plain: Walk, dense: Walk, output_stride: int) -> None:
    """Did every answer come out at the stride that was asked for?"""
    for name, fact in dense.results.items():
        for axis, was in zip(fact.space, plain.results[name].space):
            if axis.image is not None and axis.stride != min(was.stride, output_stride):
                raise UnsupportedModel(
                    [
                        Diagnostic(
                            "output-stride",
                            name,
                            "output",
                            f"lies {axis.stride} pixels apart where {min(was.stride, output_stride)} were asked for: "
                            "the strides of its network do not divide into it",
                            "another --output-stride, or none",
                        )
                    ]
                )


def _check_channels(document: Document, request: Request) -> None:
    """Raises: OptionError, if one number of the size is that of the channels.

    Where the size holds as it was said too, it is, unless the channels are as few as those of pictures.
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
                    f"--input-size {long} names the channels of input '{declared.name}' too, which are no size in "
                    f"pixels: it is --input-size {short}"
                )
