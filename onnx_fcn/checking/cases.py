"""The images of a comparison, of the native size and larger, and the windows on them that are compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.checking.comparison import DEVIATIONS, FAR_WINDOWS, WINDOWS, Case, Comparison, LargerImage
from onnx_fcn.checking.limits import Limits
from onnx_fcn.checking.sizes import largest_factor, long_size, uneven_size, wide_size
from onnx_fcn.errors import OptionError
from onnx_fcn.lifting.lifted import BATCH, Lifted
from onnx_fcn.lifting.windows import batch_axis
from onnx_fcn.model.agreement import Scale
from onnx_fcn.model.graphs import static_dims
from onnx_fcn.model.operators import PLACES
from onnx_fcn.model.sessions import random_values
from onnx_fcn.tables import size_text
from onnx_fcn.walk.cut import Cut, cuts_of

__all__ = [
    "BATCHES",
    "amplify",
    "batches_of",
    "cell_at",
    "crop_feeds",
    "cropped",
    "fed_cut",
    "has_crop",
    "long_case",
    "native_cases",
    "offsets_of",
    "own_scale",
    "period_of",
    "periods_of",
    "positions_of",
    "random_feeds",
    "ratios_of",
    "sample_cells",
    "shake",
    "size_in",
    "takes_batches",
    "uneven_case",
    "wide_case",
]


#: Budget of a long image in multiply-accumulates. If the trunk computes with the places of cells, its arithmetic is not
#: the same everywhere: then a long image may always cost this many times the native one.
LONG_BUDGET, PLACES_FACTOR = 7e8, 3

#: The number of images in a batch, if the batch is free.
BATCHES = 3

#: How far the feature map is shaken, relative to its root mean square, to see how the answers respond: far more than
#: rounding does, and little enough to stay on the same side of most kinks.
SHAKE = 1e-2

#: An answer's scale is at least this many times its response to a change of the whole map (by the slope that the shake
#: shows): its rounding errors come from terms that may have cancelled.
MARGIN = 10


def fed_cut(c: Comparison) -> Cut | None:
    """The last map that the original can be fed with: one outside of branches. None if nothing slides."""
    named = {c.walk.image.name, *(o for node in c.original.proto.graph.node for o in node.output)}
    return None if c.walk.keeps_size else next((k for k in cuts_of(c.walk) if k.name in named), None)


def wide_case(c: Comparison, cut: Cut, remainder: Sequence[int], data: Mapping[str, Array] | None) -> LargerImage:
    """The larger image in `data`, or a random one with a few more windows and `remainder` pixels left over."""
    image, batch = c.walk.image, batches_of(c)[0]
    size = _taken(c, wide_size(image.size, period_of(c, cut), remainder, _most(c)))
    feeds = random_feeds(c, size, batch)
    if data is not None and (sizes := size_in(c, data)) != image.size:
        given = data[image.name]
        feeds, size = {**feeds, image.name: given[:batch].astype(feeds[image.name].dtype)}, sizes
    more = [
        (size[a.image] - image.size[a.image]) // a.window_stride if a.image is not None else 0 for a in cut.fact.space
    ]  # windows beyond the first
    return LargerImage(size, batch, feeds, cut=cut, inner=[s if s <= m else 0 for s, m in zip(steps_of(c, cut), more)])


def size_in(c: Comparison, data: Mapping[str, Array]) -> tuple[int, ...]:
    """The size of the images in the data; the native size if there are none.

    Raises:
        OptionError: if the judged file takes images of another size only.
    """
    image = c.walk.image
    given = data.get(image.name)
    size = image.size if given is None else tuple(given.shape[a] for a in image.space)
    if given is not None and not c.limits.allow(size):
        takes = size_text(c.limits.applied(size))
        raise OptionError(
            f"the data are images of {size_text(size)} pixels, but the converted model takes {takes} only"
        )
    return size


def long_case(c: Comparison, cut: Cut, remainder: Sequence[int]) -> LargerImage | None:
    """A random image that is long along one axis; None if the budget allows only one too short to show anything."""
    image, batch, period = c.walk.image, batches_of(c)[0], period_of(c, cut)
    free = [k for k in range(len(period)) if k not in c.walk.held and k not in c.limits.size]
    if not free:
        return None
    axis, further = free[int(c.random.integers(len(free)))], int(c.random.integers(max(period)))
    places = any(c.walk.slots[k].node.op in PLACES for k in c.walk.upstream(cut.name))
    affordable = max(LONG_BUDGET / c.macs if c.macs else math.inf, PLACES_FACTOR if places else 0)
    size = long_size(image.size, period, remainder, axis, further, min(_most(c), affordable))
    size = size and _taken(c, size)
    return None if size is None else LargerImage(size, batch, random_feeds(c, size, batch), cut=cut, most=FAR_WINDOWS)


def uneven_case(c: Comparison, remainder: Sequence[int]) -> Case:
    """A random image slightly larger than the native size, with `remainder` pixels left over."""
    size, batch = _taken(c, uneven_size(c.walk.image.size, remainder, _most(c))), batches_of(c)[0]
    return Case(size, batch, random_feeds(c, size, batch))


def period_of(c: Comparison, cut: Cut | None) -> tuple[int, ...]:
    """Whole pixels from one window to the next, of the cut and of every output, along each axis of the image."""
    periods = {} if cut is None else periods_of(cut)
    axes = [axis for fact in c.walk.results.values() for axis in fact.space]
    strides = [[math.ceil(a.window_stride) for a in axes if a.image == k] for k in range(len(c.walk.image.size))]
    return tuple(max(1, math.ceil(periods.get(k, 1)), *given) for k, given in enumerate(strides))


def _taken(c: Comparison, size: Sequence[int]) -> tuple[int, ...]:
    """A size of the image with the only one along the axes that take no other."""
    native = c.walk.image.size
    return c.limits.applied([native[k] if k in c.walk.held else n for k, n in enumerate(size)])


def _most(c: Comparison) -> float:
    """How many times larger than the native image an image may be."""
    image = c.walk.image
    return largest_factor(math.prod(n for k, n in enumerate(image.shape) if k != image.batch))


def native_cases(
    c: Comparison, data: Mapping[str, Array] | None, wide: LargerImage | None, batches: Sequence[int], *, negated: bool
) -> list[Case]:
    """Random images of the native size, and the given ones. The first is a crop of `wide`, and so serves two checks.

    With `negated`, the first image negated is added: other units are active on it.
    """
    size = c.walk.image.size
    cases = []
    for batch in batches:
        loud = batch > 1 and not c.rounds
        cases.append(Case(size, batch, random_feeds(c, size, batch, loud=loud), loud=loud))
    if wide is not None and wide.inner is not None:
        cases[0].feeds, cases[0].loud = crop_feeds(c, wide, wide.inner), False
    image = cases[0].feeds[c.walk.image.name]
    if negated and image.dtype.kind == "f":
        feeds = {**cases[0].feeds, c.walk.image.name: -image}
        cases.append(Case(size, cases[0].batch, feeds, "the image negated"))
    others = {n: v for n, v in cases[0].feeds.items() if n != c.walk.image.name and v.dtype.kind == "f"}
    if others and not c.rounds:  # their effect on the answers may be small
        feeds = {**cases[0].feeds, **{n: (v * DEVIATIONS[-1]).astype(v.dtype) for n, v in others.items()}}
        cases.append(Case(size, cases[0].batch, feeds, "the other inputs louder", loud=True))
    if data is not None and all(tuple(data[n].shape[1:]) == _shape(c, n, size, 1)[1:] for n in data):
        count = len(next(iter(data.values())))
        cases.append(Case(size, count, {**random_feeds(c, size, count), **data}, "given data"))
    return cases


def steps_of(c: Comparison, cut: Cut) -> list[int]:
    """Windows of the cut from one cell of the coarsest output to the next, along each axis."""
    return [max(k) for k in zip(*(ratios_of(f, cut) for f in c.facts.values()))] or [1] * len(cut.fact.space)


def positions_of(c: Comparison, wide: LargerImage) -> list[list[int]]:
    """The windows to compare: corners and some between. Windows with a crop come last, `inner` at the very end.

    The last windows of a dilated map, or of a map whose size is rounded up, may reach beyond the image: they have no
    crop.
    """
    steps = steps_of(c, wide.cut)
    cells = sample_cells([-(-w // s) for w, s in zip(wide.grid, steps)], c.random, wide.most)
    found = [[p * s for p, s in zip(cell, steps)] for cell in cells]
    ordered = sorted((p for p in found if p != wide.inner), key=lambda p: has_crop(c, wide, p))
    if wide.inner is None:  # the farthest last
        return sorted(ordered, key=lambda p: (has_crop(c, wide, p), sum(p)))
    return [*ordered, wide.inner]


def crop_feeds(c: Comparison, wide: LargerImage, position: Sequence[int]) -> dict[str, Array]:
    """The inputs, with the image cropped to one window."""
    return cropped(c, wide.feeds, offsets_of(wide, position))


def cropped(c: Comparison, feeds: Mapping[str, Array], offsets: Mapping[int | None, int]) -> dict[str, Array]:
    """The inputs, with the image cropped to the native size from these pixels on."""
    image = c.walk.image
    index = [slice(None)] * len(image.shape)
    for k, (axis, extent) in enumerate(zip(image.space, image.size)):
        index[axis] = slice(offsets.get(k, 0), offsets.get(k, 0) + extent)
    return {**feeds, image.name: np.ascontiguousarray(feeds[image.name][tuple(index)])}


def has_crop(c: Comparison, wide: LargerImage, position: Sequence[int]) -> bool:
    """Is a window inside the image?"""
    offsets = offsets_of(wide, position)
    return all(offsets.get(k, 0) + native <= n for k, (native, n) in enumerate(zip(c.walk.image.size, wide.size)))


def offsets_of(wide: LargerImage, position: Sequence[int]) -> dict[int | None, int]:
    """The first pixel of a window along each axis of the image."""
    return {a.image: int(p * a.window_stride) for a, p in zip(wide.cut.fact.space, position)}


def ratios_of(fact: Lifted, cut: Cut) -> list[int]:
    """Windows of the cut from one cell of a tensor to the next."""
    stride = {a.image: a.stride for a in fact.space}
    return [max(1, int(stride.get(a.image, a.window_stride) / a.window_stride)) for a in cut.fact.space]


def cell_at(fact: Lifted, cut: Cut, position: Sequence[int]) -> list[int]:
    """The cell of a tensor that answers for a window of the cut."""
    cells = zip(cut.fact.space, position, ratios_of(fact, cut))
    by_image = {axis.image: p // ratio for axis, p, ratio in cells}
    return [by_image.get(axis.image, 0) for axis in fact.space]


def periods_of(cut: Cut) -> dict[int | None, Fraction]:
    """Pixels from one window to the next without dilation, along each axis of the image."""
    return {a.image: max(a.window_stride, a.stride * a.rate) for a in cut.fact.space}


def sample_cells(grid: Sequence[int], random: np.random.Generator, most: int = WINDOWS) -> list[tuple[int, ...]]:
    """Cells of a grid: the corners, and some between; `most` in all, if there are not more corners."""
    corners = list(dict.fromkeys(itertools.product(*((0, n - 1) for n in grid))))
    others = [p for p in np.ndindex(*grid) if p not in set(corners)]
    chosen = random.permutation(len(others))[: max(0, most - len(corners))]
    return corners + [others[k] for k in sorted(chosen)]


def batches_of(c: Comparison) -> list[int]:
    """The batches to run: the only possible one, or 1 and `BATCHES`."""
    image = c.walk.image
    if image.batch is None:
        return [1]
    declared = static_dims(c.inputs[image.name])[image.batch]
    only = c.limits.batch if declared is None else declared
    if only is not None:
        return [only]
    return [1, BATCHES] if c.walk.batch == BATCH else [c.walk.batch]


def _shape(c: Comparison, name: str, size: Sequence[int], batch: int) -> tuple[int, ...]:
    """The shape of an input for a batch of images of this size."""
    image = c.walk.image
    if name == image.name:
        shape = list(image.shape)
        if image.batch is not None:
            shape[image.batch] = batch
        for axis, pixels in zip(image.space, size):
            shape[axis] = pixels
        return tuple(shape)
    dims = static_dims(c.inputs[name])
    return tuple((batch if k == 0 else 1) if d is None else d for k, d in enumerate(dims))


def amplify(images: Array, axis: int | None) -> Array:
    """A batch whose images have larger and larger values, so that faults before a large bias show.

    No image is close to zero, so that a fault in reading a single one shows too. Every third image is the one before
    it, negated: units that are off for one are on for the other, as far as they depend on the values alone, so that
    faults behind them show.
    """
    if axis is None or images.dtype.kind != "f":
        return images
    larger = np.empty_like(images)
    each, made = np.moveaxis(images, axis, 0), np.moveaxis(larger, axis, 0)
    sources = [each[k - (k % 3 == 2)] for k in range(len(each))]
    # one after the other, since they may be large: the deviation of all values is that within images and of their means
    means, variances = zip(*((np.mean(i, dtype=np.float64), np.var(i, dtype=np.float64)) for i in sources))
    least = np.sqrt(np.mean(variances) + np.var(means))
    for k, factor in enumerate(np.resize(np.array(DEVIATIONS) * [1, 1, -1], len(each))):
        made[k] = (sources[k] + np.sign(sources[k]) * least) * factor
    return larger


def random_feeds(c: Comparison, size: Sequence[int], batch: int, *, loud: bool = False) -> dict[str, Array]:
    """Random values for every input; with `loud`, the images of the batch are amplified (`amplify`)."""
    feeds = {}
    for name, declared in c.inputs.items():
        feeds[name] = random_values(declared, _shape(c, name, size, batch), c.random, c.deviation)
        if loud and name == c.walk.image.name:
            feeds[name] = amplify(feeds[name], c.walk.image.batch)
    return feeds


def shake(c: Comparison, feature_map: Array) -> Array:
    """A feature map (N, C, *space) with a little noise: one for each value, and as much for each channel as a whole.

    An average over many cells does not even out the latter.
    """
    shape = feature_map.shape
    noise = c.random.standard_normal(shape) + c.random.standard_normal((*shape[:2], *[1] * (len(shape) - 2)))
    with np.errstate(invalid="ignore", over="ignore"):  # a map that is not finite shows nothing
        mean_square = np.mean(np.square(feature_map, dtype=np.float64))
        changed: Array = (feature_map + SHAKE * np.sqrt(mean_square / 2) * noise).astype(feature_map.dtype)
    return changed


def own_scale(windows: Sequence[Array], changed: Sequence[Array]) -> Scale:
    """The scale of each answer, from its values on some windows and on the same windows after a `shake` of the map."""
    largest = np.max(np.abs(windows), axis=0)
    with np.errstate(invalid="ignore"):  # infinity stays infinity
        change = np.max(np.abs(np.subtract(changed, windows)), axis=0)
    return Scale(own=np.maximum(largest, MARGIN / SHAKE * change))


def takes_batches(c: Comparison, cut: Cut) -> bool:
    """Can the original head run on several windows at once?"""
    return (
        batches_of(c)[0] == 1
        and c.limits == Limits()
        and c.walk.batch == BATCH
        and len(c.inputs) == 1
        and not c.walk.context
        and batch_axis(cut.fact) is not None
        and all(batch_axis(f) is not None for f in c.facts.values())
    )
