"""What a judged file takes: other tools fix the batch, or the size of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx_fcn.errors import ModelError
from onnx_fcn.lifting.program import Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs, static_dims
from onnx_fcn.tables import size_text

__all__ = ["Limits", "limits_of"]


@dataclass(frozen=True)
class Limits:
    """The images that a file takes, where it takes fewer than a conversion of the original does.

    Attributes:
        batch: the only number of images; None if that of the conversion.
        size: the only size along some axes of the image, in pixels.
    """

    batch: int | None = None
    size: Mapping[int, int] = field(default_factory=dict)

    def applied(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of an image that the file takes, from one that a conversion takes."""
        return tuple(self.size.get(k, n) for k, n in enumerate(size))

    def allow(self, size: Sequence[int]) -> bool:
        """Does the file take images of a size?"""
        return self.applied(size) == tuple(size)


def limits_of(judged: Document, original: Document, walk: Walk) -> Limits:
    """What a file takes, beside the original and its walk.

    Raises:
        ModelError: if the original cannot be compared with it: it takes other batches, or only larger images.
    """
    image = walk.image
    declared = next((i for i in data_inputs(judged.proto.graph) if i.name == image.name), None)
    given = next(i for i in data_inputs(original.proto.graph) if i.name == image.name)
    dims = () if declared is None else static_dims(declared)
    if len(dims) != len(image.shape):
        return Limits()  # the signature says what is wrong
    free = () if walk.keeps_size else (k for k in range(len(image.space)) if k not in walk.held)
    size = {k: n for k in free if (n := dims[image.space[k]]) is not None}
    if any(n < image.size[k] for k, n in size.items()):
        taken = size_text([dims[a] or n for a, n in zip(image.space, image.size)])
        raise ModelError(
            f"the second model takes images of {taken} pixels, and the first one's are {size_text(image.size)}: fix a "
            "size from that of the first on"
        )
    batch = None if image.batch is None else dims[image.batch]
    own = None if image.batch is None else static_dims(given)[image.batch]
    if batch is not None and own not in (None, batch):
        raise ModelError(
            f"the second model takes {batch} images at once, and the first one {own}, so that they have no image in "
            f"common: fix the batch to {own}"
        )
    return Limits(batch if own is None else None, size)
