"""A conversion for images of one size, or in one batch: its dims, and the proof that only these were fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.checking.checks import Check, Validation
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.conversion.comparing import accepted
from onnx_fcn.errors import ModelError, OptionError, ValidationError
from onnx_fcn.geometry import SIZE_NAMES
from onnx_fcn.lifting.program import Walk
from onnx_fcn.memory import available
from onnx_fcn.model.agreement import difference, tolerance_of
from onnx_fcn.model.cost import activations_at
from onnx_fcn.model.document import Document
from onnx_fcn.model.fixing import fixed, in_batches_of, inputs_of
from onnx_fcn.model.graphs import data_inputs, declared_as, dim_name, static_dims
from onnx_fcn.model.sessions import session
from onnx_fcn.tables import bytes_of, size_text
from onnx_fcn.walk.images import along_axes

__all__ = ["with_fixed_checks", "with_fixed_dims"]


#: In place of a size that no option says.
OPEN = -1

#: Images in the batch of a comparison if it stays free: another number than those for which values became weights
#: (`model.fixing.FREE_BATCHES`), as one that depends on the batch is right for these.
CHECKED_BATCH = 1


def with_fixed_dims(document: Document, walk: Walk, size: tuple[int, ...] | None, batch: int | None) -> Document:
    """A copy of a conversion that takes images of one size, or in one batch, only.

    Args:
        document: the conversion, which stays as it is.
        walk: of the conversion.
        size: pixels along each axis of the image, or one number for all; None if the sizes stay free.
        batch: number of images; None if it stays free.

    Raises:
        OptionError: if it does not take images of this size, or in this batch; if another input has open sizes.
        ModelError: if onnxruntime does not run it on images of this size.
    """
    image, graph = walk.image, document.proto.graph
    declared = declared_as(graph, image.name)
    dims = static_dims(declared)
    if size is not None:
        if not image.space:
            raise OptionError(
                "the network cannot slide, so it keeps its size: leave --fix-size out, or give that size by "
                "--input-size, too, if the file leaves it open"
            )
        sizes = along_axes(size, len(image.size))
        _check_size(walk, sizes)
        for axis, pixels in zip(image.space, sizes):
            dims[axis] = pixels
    if batch is not None:
        if image.batch is None:
            raise OptionError("the network takes one image without an axis for a batch: leave --batch out")
        if dims[image.batch] not in (None, batch):
            raise OptionError(
                f"the model takes {dims[image.batch]} images at once, not {batch}: --dynamic-batch makes that dynamic "
                "first"
            )
        dims[image.batch] = batch
    document = document.copy()
    if any(d is None for k, d in enumerate(dims) if k != image.batch):
        assert batch is not None, "a size or a batch is fixed"
        assert image.batch is not None, "it has been fixed"
        document.commit(in_batches_of(document, image.name, image.batch, batch))
        return document
    shapes = {i.name: _in_batch(i, declared, image.batch, dims) for i in data_inputs(graph)}
    shapes[image.name] = dims
    if open_input := next((name for name, sizes in shapes.items() if OPEN in sizes), None):
        raise OptionError(
            f"input '{open_input}' has sizes that are open, too, and no option says what they shall be: fix them in "
            "the original, as onnxruntime.tools.make_dynamic_shape_fixed does"
        )
    _check_memory(document, walk, [CHECKED_BATCH if d is None else d for d in dims])
    document.commit(fixed(document, shapes))
    return document


def _in_batch(
    value: ValueInfoProto, image: ValueInfoProto, axis: int | None, dims: Sequence[int | None]
) -> list[int | None]:
    """The dims of another input for an image of these; None for a batch that stays free, `OPEN` for what is not known.

    The batch has the same name in both. Where it has none, it is what is open first.
    """
    name = None if axis is None else dim_name(image.type.tensor_type.shape.dim[axis])
    found: list[int | None] = list(static_dims(value))
    for k, dim in enumerate(value.type.tensor_type.shape.dim):
        if found[k] is None:
            is_batch = axis is not None and dim_name(dim) == name and (name or k == 0)
            found[k] = dims[axis] if is_batch and axis is not None else OPEN
    return found


def _check_memory(document: Document, walk: Walk, shape: Sequence[int]) -> None:
    """Raises OptionError if a run on images of this shape takes more memory than is free: it runs once."""
    needed, free = activations_at(document.proto, walk.image.name, shape), available()
    if needed is not None and needed > free:
        raise OptionError(
            f"a run on images of {size_text([shape[k] for k in walk.image.space])} takes {bytes_of(needed)} for maps, "
            f"and {bytes_of(free)} are free: fix a smaller size, or run larger images in tiles of one with `apply`"
        )


def _check_size(walk: Walk, size: tuple[int, ...]) -> None:
    """Raises OptionError if a conversion does not take images of this size."""
    native = walk.image.size
    keeps = set(range(len(native))) if walk.keeps_size else walk.held
    for k, (name, pixels, least) in enumerate(zip(SIZE_NAMES[len(native)], size, native)):
        if pixels < least or (k in keeps and pixels != least):
            have = "keeps its" if k in keeps else "has a window with a"
            raise OptionError(f"--fix-size {size_text(size)} does not fit: the network {have} {name} of {least} pixels")


def with_fixed_checks(
    validation: Validation, comparison: Comparison, judged: Document, images: Mapping[str, Array] | None
) -> Validation:
    """A validation of what a file was fixed from, with that of the file: does it answer the same at its only size?

    A file of which only the batch is fixed is run at the native size.

    Args:
        validation: of what it was fixed from.
        comparison: the same; its noise is what the answers were found to depend on.
        judged: the file.
        images: of the user, which are compared if they are of the only size, and as many as it takes.

    Raises:
        ValidationError: if it does not.
    """
    walk, free, graph = comparison.walk, comparison.converted, judged.proto.graph
    dims = {i.name: static_dims(i) for i in data_inputs(graph)}
    for axis, native in zip(walk.image.space, walk.image.size):  # those of a file of which only the batch is fixed
        dims[walk.image.name][axis] = dims[walk.image.name][axis] or native
    if any(d is None for sizes in dims.values() for d in sizes[1:]):
        return validation  # another input, of any size
    random = np.random.default_rng(comparison.seed)
    cases = [inputs_of(judged, dims, CHECKED_BATCH, random, comparison.deviation)]
    if images is not None and all(images[n].shape == v.shape for n, v in cases[0].items() if n in images):
        cases.append({**cases[0], **images})
    size = tuple(cases[0][walk.image.name].shape[axis] for axis in walk.image.space)
    names = [o.name for o in graph.output]
    try:
        have = list(map(session(judged), cases))
    except ModelError as error:
        raise ValidationError(f"the converted model fails on the images that it takes: {error}", validation) from None
    wanted = list(map(session(free), cases))
    checks = [
        Check("fixed", name, size, len(a) if a.ndim else 1, math.prod(a.shape), _apart(a, b), tolerance_of(free))
        for answers, others in zip(have, wanted)
        for name, a, b in zip(names, answers, others)
    ]
    return accepted(replace(validation, checks=(*validation.checks, *checks)), comparison.given)


def _apart(a: Array, b: Array) -> float:
    return difference(a, b) if a.shape == b.shape else math.inf
