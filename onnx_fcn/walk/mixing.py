"""Whether the images of a batch change each other's answers: the original is run in onnxruntime to find out.

If a walk succeeds with one batch only, the walk with a free batch shows which node is in the way, but not why. The
export may have baked in the batch of its example; a rule may be too narrow; or the network mixes the images, as a mean
along the batch does. Running several images together and each alone shows which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Diagnostic, ModelError, Unsupported, UnsupportedModel
from onnx_fcn.lifting.facts import Known, Unmapped
from onnx_fcn.lifting.lifted import BATCH
from onnx_fcn.lifting.program import Image, Slot, Walk
from onnx_fcn.model.agreement import difference, tolerance_of
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, declared_as, dim_name, static_dims
from onnx_fcn.model.operators import BROADCASTS, PER_IMAGE
from onnx_fcn.model.sessions import random_values, session, with_outputs

__all__ = ["Taken", "batches_taken", "check_freed", "keeps_apart", "mixed", "runs_with_its_batch"]


#: The mean difference, relative to the mean size, up to which two answers are about the same.
ABOUT = 0.1

#: How many times further apart than by a change of the last digits of the image answers may be by rounding on the way.
MANY = 100

#: How many times larger the values of loud images are.
LOUD = 100

#: What becomes of the images of a larger batch.
Taken = Literal["one", "apart", "mixed"]


def batches_taken(
    document: Document, image: Image, outputs: Sequence[str], most: int = 2, *, loud: bool = False
) -> Taken:
    """Does a network take another batch, and answer for each image in it as for that image alone?

    Args:
        document: the model.
        image: its image, with the batch that is known to work.
        outputs: the outputs that depend on it.
        most: the number of images in the other batch; one more if the known batch has as many.
        loud: with others of far larger values, which share the scales of a dynamic quantisation.

    Returns:
        ``"one"``: it does not run with another batch; ``"apart"``: the images do not affect each other; ``"mixed"``:
        they do.
    """
    try:
        return "apart" if mixed(document, image, outputs, most, loud=loud) is None else "mixed"
    except ModelError:
        return "one"


def runs_with_its_batch(document: Document, image: Image) -> bool:
    """Does a network run with as many images as this reading has?"""
    assert image.batch is not None
    try:
        session(document)(_batch_of(document, image, image.shape[image.batch], np.random.default_rng(0)))
    except ModelError:
        return False
    return True


def mixed(document: Document, image: Image, tensors: Sequence[str], most: int = 2, *, loud: bool = False) -> str | None:
    """The first of some tensors in which the images of a batch change each other; None if there is none.

    Args:
        document, image, most, loud: as for `batches_taken`.
        tensors: the tensors.

    Raises:
        ModelError: if the network does not run with another batch than the image has.
    """
    assert image.batch is not None
    count = most + (image.shape[image.batch] == most)
    random = np.random.default_rng(0)
    together, others = (_batch_of(document, image, count, random) for _ in range(2))
    if loud:
        others = {n: v * v.dtype.type(LOUD) if v.dtype.kind == "f" else v for n, v in others.items()}
    names = [o.name for o in document.proto.graph.output]
    names += [name for name in tensors if name not in names]
    first = _with_batch(document, image)
    run = session(document, with_outputs(document, names[len(document.proto.graph.output) :]))
    whole = dict(zip(names, run(together)))
    for k in (0, count - 1):
        among = {n: _replaced(others[n], v, k) if n in first else v for n, v in together.items()}
        again = dict(zip(names, run(among)))
        single = {n: v[k : k + 1] if n in first else v for n, v in together.items()}
        alone, nudged = (dict(zip(names, run(feeds))) for feeds in (single, {n: _nudged(v) for n, v in single.items()}))
        for name in tensors:
            apart = _size(nudged[name].astype(np.float64) - alone[name]) if alone[name].dtype.kind == "f" else 0.0
            if not _holds(whole[name], again[name], alone[name], k, count, tolerance_of(document), apart):
                return name
    return None


def _replaced(others: Array, images: Array, k: int) -> Array:
    """A batch of other images, with image `k` in its place."""
    return np.concatenate([others[:k], images[k : k + 1], others[k + 1 :]])


def _nudged(values: Array) -> Array:
    """Values that differ by about their last digit."""
    return values * values.dtype.type(1 + 2 * np.finfo(values.dtype).eps) if values.dtype.kind == "f" else values


def _size(values: Array) -> float:
    """The mean size of finite values."""
    finite = np.abs(values[np.isfinite(values)], dtype=np.float64)
    return float(finite.mean()) if finite.size else 0.0


def _batch_of(document: Document, image: Image, count: int, random: np.random.Generator) -> dict[str, Array]:
    """Random values for every input, for a batch of so many images."""
    values = {}
    for declared in data_inputs(document.proto.graph):
        dims = static_dims(declared)
        if declared.name == image.name:
            dims = [None if k == image.batch else d for k, d in enumerate(image.shape)]
        shape = [(count if k == 0 else 1) if d is None else d for k, d in enumerate(dims)]
        values[declared.name] = random_values(declared, shape, random)
    return values


def check_freed(converted: Document, original: Document, walk: Walk) -> None:
    """Refuse a network whose fixed batch was made dynamic if its images affect each other then.

    The original says nothing about other batches: nodes along the batch, and nodes that are right for one image only,
    such as a Squeeze without axes, stay as they were written.

    Args:
        converted: the network with a free batch.
        original: the network that was lifted.
        walk: its walk.

    Raises:
        UnsupportedModel: if images affect each other's answers, or it does not run with another batch.
    """
    image = walk.image
    if image.batch is None:
        return
    fixed = static_dims(declared_as(original.proto.graph, image.name))[image.batch]
    if fixed is None and walk.batch == BATCH:
        return
    fixed = walk.batch if fixed is None else fixed
    taken = batches_taken(converted, image.with_batch(fixed), list(walk.results), loud=True)
    if taken == "apart":
        return
    reason = (
        f"in another batch than {fixed}, its images change each other's answers"
        if taken == "mixed"
        else f"a batch of {fixed} is built into the network, and it does not run with another"
    )
    raise UnsupportedModel([Diagnostic("batch", image.name, "input", reason, "leave --dynamic-batch out")])


def keeps_apart(walk: Walk, slot: Slot) -> bool:
    """Does a node evidently compute each image of a batch, its first axis, by itself?"""
    node, attrs = slot.node, slot.node.attrs
    if not _keeps_batch_first(walk, slot):
        return False
    if node.op in PER_IMAGE or (node.op == "BatchNormalization" and not attrs.get("training_mode", 0)):
        return True
    if node.op == "Transpose":
        return bool(attrs.get("perm", [1])[0] == 0)
    if (axes := attrs.get("axes", attrs.get("axis"))) is not None:
        return _are_later(axes if isinstance(axes, list) else [axes])
    if node.op in ("Flatten", "LogSoftmax", "Softmax"):  # by default along a later axis, if there is one
        shape = walk.shape_of(node.outputs[0])
        return shape is not None and len(shape) > 1
    second = slot.operands[1] if len(slot.operands) > 1 else None
    if not isinstance(second, Known):
        return False
    if node.op in ("Gemm", "MatMul"):
        return not attrs.get("transA", 0)
    if node.op not in ("Reshape", "Squeeze", "Unsqueeze") and not node.op.startswith("Reduce"):
        return False
    try:
        value = walk.values[second.name].reshape(-1).tolist()
    except Unsupported:
        return False  # a constant that cannot be evaluated says nothing
    return value[:1] in ([0], [BATCH]) if node.op == "Reshape" else _are_later(value)


def _are_later(axes: Sequence[int]) -> bool:
    """Are these axes all behind the first? No axes stand for all of them."""
    return len(axes) > 0 and min(axes) > 0


def _keeps_batch_first(walk: Walk, slot: Slot) -> bool:
    """Do all operands that depend on the images have as many axes as the result, so that their first axes meet?"""
    if slot.node.op not in BROADCASTS:
        return True
    shapes = [walk.shape_of(name) for name in slot.node.outputs]
    shapes += [walk.shape_of(f.name) for f in slot.operands if isinstance(f, Unmapped)]
    return None not in shapes and len({len(shape) for shape in shapes if shape is not None}) == 1


def _with_batch(document: Document, image: Image) -> set[str]:
    """The inputs with a row for each image: their first axis is open, and does not have another name than the batch."""
    found, named = {image.name}, {}
    for declared in data_inputs(document.proto.graph):
        dims = declared.type.tensor_type.shape.dim
        axis = image.batch if declared.name == image.name else 0
        named[declared.name] = dim_name(dims[axis]) if dims else ""
        if static_dims(declared)[:1] == [None]:
            found.add(declared.name)
    batch = named[image.name]
    return {name for name in found if not (batch and named[name]) or named[name] == batch}


def _holds(whole: Array, again: Array, alone: Array, k: int, count: int, tolerance: float, rounding: float) -> bool:
    """Is the answer for image `k` out of `count` its own, whichever axis the batch is on?

    Args:
        whole: the answers for a batch.
        again: those for a batch of as many other images around it. The arithmetic is the same, so these agree but for
            rounding.
        alone: the answer for the image alone. Runtimes add in another order then, and a deep network may make much of
            that (`rounding`), so it only has to be about the same on average: one that computes with the size of the
            batch changes by factors.
        k: the number of the image.
        count: images in the batch.
        tolerance: the largest difference by rounding.
        rounding: by how much the answer changes, on average, if the last digits of the image do.
    """
    if whole.shape == alone.shape:
        return difference(again, whole) <= tolerance and _is_about(whole, alone, rounding)
    if whole.size != count * alone.size or whole.shape != again.shape:
        return False
    for axis, size in enumerate(whole.shape):
        if size % count == 0:
            shape = (*whole.shape[:axis], count, size // count, *whole.shape[axis + 1 :])
            own, same = (values.reshape(shape).take(k, axis).reshape(alone.shape) for values in (whole, again))
            if difference(same, own) <= tolerance and _is_about(own, alone, rounding):
                return True
    return False


def _is_about(a: Array, b: Array, rounding: float) -> bool:
    """Are two answers about the same on average, or as far apart as rounding explains?"""
    have, want = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(have), finite):
        return False
    return _size(have[finite] - want[finite]) <= max(ABOUT * _size(want), MANY * rounding)
