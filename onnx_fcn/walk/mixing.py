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
from onnx_fcn.errors import ModelError
from onnx_fcn.lifting.program import Image
from onnx_fcn.model.agreement import difference, tolerance_of
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, static_dims
from onnx_fcn.model.sessions import random_values, session

__all__ = ["batches_taken"]


#: What becomes of the images of a larger batch.
Taken = Literal["one", "apart", "mixed"]


def batches_taken(document: Document, image: Image, outputs: Sequence[str]) -> Taken:
    """Does a network take another batch, and answer for each image in it as for that image alone?

    Args:
        document: the model.
        image: its image, with the batch that is known to work.
        outputs: the outputs that depend on it.

    Returns:
        ``"one"``: it does not run with another batch; ``"apart"``: the images do not affect each other; ``"mixed"``:
        they do.
    """
    assert image.batch is not None
    count = 2 if image.shape[image.batch] != 2 else 3
    random, together = np.random.default_rng(0), {}
    for declared in data_inputs(document.proto.graph):
        dims = static_dims(declared)
        if declared.name == image.name:
            dims = [None if k == image.batch else d for k, d in enumerate(image.shape)]
        shape = [(count if k == 0 else 1) if d is None else d for k, d in enumerate(dims)]
        together[declared.name] = random_values(declared, shape, random)
    names = [o.name for o in document.proto.graph.output]
    first = {i.name for i in data_inputs(document.proto.graph) if i.name == image.name or static_dims(i)[:1] == [None]}
    try:
        run = session(document)
        whole = dict(zip(names, run(together)))
        for k in (0, count - 1):
            alone = dict(zip(names, run({n: v[k : k + 1] if n in first else v for n, v in together.items()})))
            if not all(_holds(whole[n], alone[n], k, count, tolerance_of(document)) for n in outputs):
                return "mixed"
    except ModelError:
        return "one"
    return "apart"


def _holds(whole: Array, alone: Array, k: int, count: int, tolerance: float) -> bool:
    """Is the answer `alone` that of image `k` out of `count`, whichever axis the batch is on?"""
    if whole.size != count * alone.size:
        return False
    for axis, size in enumerate(whole.shape):
        if size % count == 0:
            shape = (*whole.shape[:axis], count, size // count, *whole.shape[axis + 1 :])
            part = whole.reshape(shape).take(k, axis).reshape(alone.shape)
            if difference(part, alone) <= tolerance:
                return True
    return False
