"""Brings maps into the form that an operator needs: channels in an order, windows as channels, axes in place.

arrange           channels in an order of atoms: at most one Gather(axis=1) with a constant index, free of H and W
settle            channels in the logical order of the original tensor
unfold            window positions become channels: exact for operators that need all positions of a window at once
at_each_position  an operator at each position separately: positions become the batch
drop_spent        axes of one cell that the original lacks are dropped
spatial_axes      the physical axis of each spatial axis of the original
features_to_space channels become an axis of space, which is not one of the image
grouped           an operator along some of the channels
along_channels    an operator that slides along channels, at every cell of a map
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.bounds import REPEAT_LIMIT, UNFOLD_KERNEL, UNFOLD_LIMIT, megabytes
from onnx_fcn.lifting.dilation import cell_maps, check_undilated, dilation_refusal, maximum_of_slices
from onnx_fcn.lifting.emitter import END, Operand
from onnx_fcn.lifting.facts import Unmapped
from onnx_fcn.lifting.folding import restore_batch
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, atoms_of
from onnx_fcn.lifting.refusals import RUN_THE_REST
from onnx_fcn.lifting.site import Site

__all__ = [
    "CONVOLVED",
    "along_channels",
    "arrange",
    "as_channels",
    "as_feature_map",
    "as_map",
    "at_each_position",
    "crop_to_common",
    "drop_spent",
    "expand_over",
    "features_to_space",
    "grouped",
    "grouped_many",
    "move_factors",
    "padding_refusal",
    "pool_window",
    "settle",
    "shape_with",
    "source_of",
    "spatial_axes",
    "unfold",
]

#: Types for which onnxruntime has Conv and AveragePool; for others (such as double) other operators do the same.
CONVOLVED = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})

#: The most axes that onnxruntime's poolings slide along.
MOST_AXES = 3


def arrange(site: Site, x: Lifted, channels: Sequence[Atom]) -> Lifted:
    """The map with its channels in this order of atoms; it is repeated along atoms that it lacks."""
    channels = tuple(channels)
    if channels == x.channels:
        return x
    kept = [a for a in channels if a in x.channels]
    if set(kept) != set(x.channels):
        raise AssertionError("arrange drops channels")
    index = np.arange(x.width, dtype=np.int64).reshape([a.size for a in x.channels])
    index = index.transpose([x.channels.index(a) for a in kept])
    index = index.reshape([a.size if a in kept else 1 for a in channels])
    index = np.broadcast_to(index, [a.size for a in channels]).reshape(-1)
    if np.array_equal(index, np.arange(x.width)):
        return replace(x, channels=channels)
    return replace(x, map=site.emit([x, index], "Gather", axis=1), channels=channels)


def settle(site: Site, x: Lifted) -> Lifted:
    """The map with its channels in the logical order of the original tensor."""
    return arrange(site, x, x.channels_in_order).canonical()


def unfold(site: Site, x: Lifted, axes: Iterable[int] | None = None) -> Lifted:
    """Make window positions channels, after the existing ones: (N, C, *space) -> (N, C·window, *grid).

    A depthwise Conv with one-hot kernels copies the values; types without Conv are sliced and concatenated.

    Raises:
        Unsupported: if the window is padded, or would become too many channels or too large kernels.
    """
    axes = [k for k, a in enumerate(x.space) if a.atoms and (axes is None or k in axes)]
    for k in reversed(axes):
        if x.space[k].image is None:
            x = _space_to_features(site, x, k)
            axes = [j - (j > k) for j in axes if j != k]
    if not axes:
        return x
    if x.padding is not None:
        raise padding_refusal(site, x)
    moved = tuple(atom for k in axes for atom in x.space[k].atoms)
    channels = x.width * Atom.product(moved)
    if channels > UNFOLD_LIMIT:
        raise Unsupported(
            f"needs all positions of the window at once, which makes {channels} channels (at most {UNFOLD_LIMIT})",
            code="unfold-too-large",
            needs="smaller",
            hint=RUN_THE_REST,
        )
    if x.elem_type in CONVOLVED:
        window, strides, rates = x.kernel(axes)
        taps = math.prod(window)
        if channels * taps > UNFOLD_KERNEL:
            size = "×".join(map(str, window))
            raise Unsupported(
                f"needs all positions of the window at once, {size} of {x.width} channels, but the kernel that "
                f"copies them would have {channels * taps:,} values (at most {UNFOLD_KERNEL:,})",
                code="unfold-too-large",
                needs="smaller",
                hint=RUN_THE_REST,
            )
        total = site.record_repeated(channels * taps * site.dtype(x.elem_type).itemsize)
        if total > REPEAT_LIMIT:
            raise Unsupported(
                "needs all positions of the window at once, but the kernels that copy them, together with the repeated "
                f"weights, would take {megabytes(total)} (at most {megabytes(REPEAT_LIMIT)})",
                code="unfold-too-large",
                needs="smaller",
                hint=RUN_THE_REST,
            )
        kernel = np.tile(np.eye(taps, dtype=site.dtype(x.elem_type)), (x.width, 1)).reshape(-1, 1, *window)
        name = site.emit([x, kernel], "Conv", kernel_shape=window, strides=strides, dilations=rates, group=x.width)
        order = (*x.channels, *moved)
    else:
        name = site.emit(cell_maps(site, x, axes), "Concat", axis=1)
        order = (*moved, *x.channels)
    site.note("unfold", x, x.kernel(axes)[0], inputs=x.width, outputs=channels)
    space = tuple(a.contracted() if k in axes else a for k, a in enumerate(x.space))
    origins = site.record_reduction(x, contextable=False)
    return replace(x, map=name, channels=order, space=space, origins=origins, unfolded=site.position)


def spatial_axes(site: Site, x: Lifted, first: int = 2) -> tuple[Lifted, list[int]]:
    """The spatial axes of the original tensor (from `first`) as axes of the map, to which it adds axes of length 1.

    Axes of one cell that only the map has are dropped.

    Returns the map and, for each of these axes, the spatial axis of the map.

    Raises:
        Unsupported: if one of them is not exactly a spatial axis of the map.
    """
    if first == 2 and x.is_channels_first:
        return x, [*range(len(x.space))]
    x = drop_spent(site, x)
    found: list[int | None] = []
    for k in range(first, x.rank):
        group = x.layout[k]
        axis = x.space_of(group) if group else None
        if group and axis is None:
            raise Unsupported(
                f"slides along axis {k} of {x} ({x.dims}), which is not an axis of the image",
                code="not-spatial",
                hint=RUN_THE_REST,
            )
        found.append(axis)
    free = [k for k, a in enumerate(x.space) if not a.atoms]
    missing = found.count(None) - len(free)
    if missing > 0:
        rank = len(x.space)
        x = replace(
            x,
            map=site.unsqueeze(x.map, [2 + rank + k for k in range(missing)]),
            space=(*x.space, *[Axis(())] * missing),
        )
        free += range(rank, rank + missing)
    return x, [free.pop(0) if axis is None else axis for axis in found]


def drop_spent(site: Site, x: Lifted) -> Lifted:
    """The map without axes of one cell that the original lacks: (N, C, 1, *space) -> (N, C, *space).

    Operators that slid along all of the features leave one, and some operators take as many axes as in the original,
    no more.
    """
    spent = [k for k, axis in enumerate(x.space) if not axis.atoms and axis.image is None]
    dropped = spent[: max(0, 2 + len(x.space) - x.rank)]
    if not dropped:
        return x
    space = tuple(axis for k, axis in enumerate(x.space) if k not in dropped)
    return replace(x, map=site.squeeze(x.map, [2 + k for k in dropped]), space=space)


def move_factors(site: Site, x: Lifted) -> Lifted:
    """Move factors of the map between space and depth where the original tensor has moved them.

    A pixel shuffle or a nearest upsampling, however it is written, gives an axis (h r) whose inner factor is among
    the map's channels. A space-to-depth puts the inner factor of a spatial axis among the channels of the original.
    Both are only layouts until an operator slides along such an axis, or joins it with another.
    """
    if x.rank != 2 + len(x.space) or x.is_channels_first:
        return x
    for k, axis in enumerate(x.space):
        group = next((g for g in x.layout if g and axis.atoms and g[0] is axis.atoms[0]), ())
        lead = next(
            (m for m, (a, b) in enumerate(zip(group, axis.atoms)) if a is not b), min(len(group), len(axis.atoms))
        )
        inner, extra = axis.atoms[lead:], group[lead:]
        if extra and not inner and all(a in x.channels for a in extra):
            x = _depth_to_space(site, x, k, extra)
        elif inner and not extra and lead:
            x = _space_to_depth(site, x, k, inner)
    return x


def _depth_to_space(site: Site, x: Lifted, k: int, atoms: tuple[Atom, ...]) -> Lifted:
    """Depth to space along one axis: these channels become the inner factor of the axis."""
    check_undilated(site, x, "makes the map finer")
    others = tuple(a for a in x.channels if a not in atoms)
    x = arrange(site, x, (*atoms, *others))
    rank, size = 2 + len(x.space), Atom.product(atoms)
    # (N, t·C, …, H, …) -> (N, H, t·C, …) -> (N, H·t, C, …): with the axis first, nothing depends on the size
    perm = [0, 2 + k, 1, *(j for j in range(2, rank) if j != 2 + k)]
    target = [0, -1, Atom.product(others), *[0] * (rank - 3)]
    seen = site.emit([site.emit([x], "Transpose", perm=perm), np.array(target, np.int64)], "Reshape")
    name = site.emit([seen], "Transpose", perm=[perm.index(j) for j in range(rank)])
    axis = x.space[k]
    finer = replace(axis.finer(size, axis.window * size, axis.atoms[0].name), atoms=(*axis.atoms, *atoms))
    space = tuple(finer if j == k else a for j, a in enumerate(x.space))
    return replace(x, map=name, channels=others, space=space).canonical()


def _space_to_depth(site: Site, x: Lifted, k: int, atoms: tuple[Atom, ...]) -> Lifted:
    """Space to depth along one axis: its inner factor becomes channels, by one-hot kernels."""
    axis, size = x.space[k], Atom.product(atoms)
    target = site.output_stride(axis)
    if axis.rate != 1 or (target is not None and axis.stride * size > target):
        raise dilation_refusal(site, "moves cells of the map to its channels")
    window = [size if j == k else 1 for j in range(len(x.space))]
    kernel = np.tile(np.eye(size, dtype=site.dtype(x.elem_type)), (x.width, 1)).reshape(-1, 1, *window)
    name = site.emit([x, kernel], "Conv", kernel_shape=window, strides=window, group=x.width)
    coarser = axis.slid(axis.window // size, axis.atoms[0].name, size, size)
    coarser = replace(coarser, atoms=axis.atoms[: -len(atoms)])
    site.note_sliding(pads=False, strides=axis.slides)
    space = tuple(coarser if j == k else a for j, a in enumerate(x.space))
    return replace(x, map=name, channels=(*x.channels, *atoms), space=space)


def features_to_space(site: Site, x: Lifted, axis: int) -> Lifted:
    """Make an axis of the original that consists of channels one of space: (N, C·B, *space) -> (N, C, *space, B).

    Every window has it whole, so it is no axis of the image.

    Raises:
        Unsupported: if onnxruntime slides along fewer axes than the map then has.
    """
    atoms = x.layout[axis]
    if len(x.space) >= MOST_AXES:
        raise Unsupported(
            f"slides along axis {axis} of {x} ({x.dims}), beside the {len(x.space)} axes of the map: onnxruntime "
            f"slides along at most {MOST_AXES}",
            code="not-spatial",
            hint=RUN_THE_REST,
        )
    others = tuple(a for a in x.channels if a not in atoms)
    x = arrange(site, x, (*others, *atoms))
    rank = 2 + len(x.space)
    target = [0, Atom.product(others), Atom.product(atoms), *[0] * (rank - 2)]
    # (N, C·B, *space) -> (N, C·B, 1, *space) -> (N, C, B, *space) -> (N, C, *space, B)
    seen = site.emit([site.unsqueeze(x.map, [2]), np.array(target, np.int64)], "Reshape")
    name = site.emit([seen], "Transpose", perm=[0, 1, *range(3, rank + 1), 2])
    return replace(x, map=name, channels=others, space=(*x.space, Axis(atoms)))


def _space_to_features(site: Site, x: Lifted, k: int) -> Lifted:
    """Make an axis of the map's space that is not one of the image channels again, the innermost ones."""
    rank, atoms = 2 + len(x.space), x.space[k].atoms
    target = [0, x.width * Atom.product(atoms), 1, *[0] * (rank - 3)]
    # (N, C, *space, B) -> (N, C, B, *space) -> (N, C·B, 1, *space) -> (N, C·B, *space)
    perm = [0, 1, 2 + k, *(j for j in range(2, rank) if j != 2 + k)]
    seen = site.emit([site.emit([x], "Transpose", perm=perm), np.array(target, np.int64)], "Reshape")
    space = tuple(a for j, a in enumerate(x.space) if j != k)
    return replace(x, map=site.squeeze(seen, [2]), channels=(*x.channels, *atoms), space=space)


def _move_features(site: Site, x: Lifted) -> Lifted:
    """Move features between channels and space: on axis 1 of the original they are channels, on later axes space.

    What slides first decides which axes are the image's, so features become space only after it. Positions that were
    unfolded are not features: nothing slides along them again.
    """
    for k in reversed(range(len(x.space))):
        atoms = x.space[k].atoms
        if atoms and x.space[k].image is None and x.rank > 1 and set(atoms) <= set(x.layout[1]):
            x = _space_to_features(site, x, k)
    for axis in range(2, x.rank) if site.has_slid and x.unfolded is None else ():
        if x.layout[axis] and set(x.layout[axis]) <= set(x.channels):
            x = features_to_space(site, x, axis)
    return x


def as_feature_map(site: Site, x: Lifted) -> Lifted:
    """The map for an operator that slides, with its channels settled and alone on axis 1.

    Raises:
        Unsupported: if axis 1 of the original tensor is not the channels, or axis 0 not the batch.
    """
    if x.is_channels_first:
        return x
    x = _move_features(site, move_factors(site, x))
    several = [a for a in x.layout[0] if a is not x.batch] if x.rank and x.batch in x.layout[0] else []
    if several and set(several) <= set(x.channels):
        raise Unsupported(
            f"treats the {Atom.product(several)} images, patches or channels of each sample as separate images",
            code="several-images",
            hint="convert the network for one of them",
        )
    if x.rank < 2 or (x.batch.size > 1 and x.layout[0] != (x.batch,)) or set(x.layout[1]) != set(x.channels):
        raise Unsupported(
            f"expects the channels on axis 1, but the layout here is {x} ({x.dims})",
            code="not-channels",
            hint=RUN_THE_REST,
        )
    if x.batch.size == 1 and x.layout[0]:
        raise Unsupported(f"expects the batch on axis 0, but the layout here is {x}", code="not-channels")
    return arrange(site, x, x.layout[1])


def grouped(
    site: Site, x: Lifted, atoms: Sequence[Atom], emit: Callable[[str, int], str], result: Sequence[Atom] | None = None
) -> Lifted:
    """Apply an operator along some channel atoms: `emit(tensor, axis)` receives them as one separate axis.

    `result`: the atoms of that axis after the operator, by default the same. The caller adapts the layout.
    """
    return grouped_many(site, x, atoms, lambda t, axis: [emit(t, axis)], result)[0]


def grouped_many(
    site: Site,
    x: Lifted,
    atoms: Sequence[Atom],
    emit: Callable[[str, int], list[str]],
    result: Sequence[Atom] | None = None,
) -> list[Lifted]:
    """`grouped` for an operator with several outputs."""
    atoms = tuple(atoms)
    result = atoms if result is None else tuple(result)
    others = tuple(a for a in x.channels if a not in atoms)
    x = arrange(site, x, (*others, *atoms))
    outer, inner = Atom.product(others), Atom.product(atoms)
    if outer == 1:
        return [replace(x, map=name, channels=(*others, *result)) for name in emit(x.map, 1)]
    target = shape_with(site, x, outer * Atom.product(result))
    seen = site.emit([x, np.array([0, outer, inner, -1], np.int64)], "Reshape")
    names = [site.emit([made, target], "Reshape") for made in emit(seen, 2)]
    return [replace(x, map=name, channels=(*others, *result)) for name in names]


def at_each_position(site: Site, x: Lifted, shape: Sequence[int], emit: Callable[[Lifted], str]) -> Lifted:
    """Apply an operator at each position separately: (N, d…) -> (N, *shape).

    `emit` receives the original tensor, with the positions of all images as its batch.
    """
    x = settle(site, x)
    rank = 2 + len(x.space)
    last = site.emit([x], "Transpose", perm=[0, *range(2, rank), 1])
    rows = site.emit([last, np.array([-1, *x.shape[1:]], np.int64)], "Reshape")
    grid: list[Operand] = [site.slice(site.emit([last], "Shape"), [0], [-1], [0]), np.array([math.prod(shape)])]
    made = site.emit([emit(x.on(rows)), site.emit(grid, "Concat", axis=0)], "Reshape")
    name = site.emit([made], "Transpose", perm=[0, rank - 1, *range(1, rank - 1)])
    atoms = [atoms_of(size, "p") for size in shape]
    return replace(x, map=name, channels=tuple(a for g in atoms for a in g), layout=(x.layout[0], *atoms))


def along_channels(
    site: Site, x: Lifted, axes: Sequence[int], sizes: Sequence[int], emit: Callable[[str], str]
) -> Lifted:
    """Apply an operator along axes of the original that are channels, at every cell separately.

    `emit` receives (N, other channels, *axes, cells) for an image of any size, and changes the axes to `sizes`.
    """
    along = [x.layout[k] for k in axes]
    others = tuple(a for a in x.channels if not any(a in group for group in along))
    x = arrange(site, x, (*others, *(a for group in along for a in group)))
    made = [atoms_of(size, "c") for size in sizes]
    seen = [0, Atom.product(others), *map(Atom.product, along), -1]
    name = emit(site.emit([x, np.array(seen, np.int64)], "Reshape"))
    target = shape_with(site, x, Atom.product(others) * math.prod(sizes))
    layout = [made[axes.index(k)] if k in axes else group for k, group in enumerate(x.layout)]
    return replace(
        x,
        map=site.emit([name, target], "Reshape"),
        channels=(*others, *(a for group in made for a in group)),
        layout=tuple(layout),
    )


def as_channels(site: Site, x: Lifted, axes: Iterable[int]) -> tuple[Lifted, tuple[Atom, ...]]:
    """The map with these axes of the original tensor as channels, unfolded if necessary, and their atoms.

    Raises:
        Unsupported: if the batch is among them.
    """
    axes, x = list(axes), move_factors(site, x)
    wanted = {a for k in axes for a in x.layout[k]}
    if x.batch in wanted:
        raise Unsupported(f"works along the batch: axes {axes} of {x}", code="batch")
    x = unfold(site, x, [k for k, a in enumerate(x.space) if wanted & set(a.atoms)])
    return x, tuple(a for k in axes for a in x.layout[k])


def expand_over(site: Site, name: Operand, channels: int, like: Lifted) -> str:
    """Expand a tensor (N | 1, C, 1, …) over the batch and the positions of a map."""
    return site.expand(name, shape_with(site, like, channels))


def shape_with(site: Site, x: Lifted, channels: int) -> str:
    """The shape of a map with another number of channels, (N, channels, *space), as a tensor."""
    shape = site.emit([x], "Shape")
    batch, space = site.slice(shape, [0], [1], [0]), site.slice(shape, [2], [END], [0])
    return site.emit([batch, np.array([channels], np.int64), space], "Concat", axis=0)


def source_of(site: Site, fact: Unmapped) -> tuple[str, tuple[int, ...]]:
    """(tensor, native shape) of a value that is the same for all positions, before its expansion over them.

    If it was computed after the expansion, this is the tensor itself, whose equal elements the shape counts as one.
    """
    name, shape = fact.name, site.shape_of(fact)
    if fact.spread is not None:
        source = site.shape_of(Unmapped(fact.spread))
        source = (1,) * (len(shape) - len(source)) + source
        if all(s in (1, d) for s, d in zip(source, shape)):
            return fact.spread, source
    return name, tuple(1 if k - len(shape) in fact.even else d for k, d in enumerate(shape))


def as_map(site: Site, fact: Unmapped, like: Lifted) -> Lifted:
    """A tensor that is the same for all positions, as a map of one cell that broadcasts: (N, C, 1, …)."""
    name, shape = source_of(site, fact)
    if name == fact.name and fact.even:
        axes = sorted(fact.even)
        name = site.slice(name, [0] * len(axes), [1] * len(axes), axes)
    batch_axis = next((k for k, d in enumerate(shape) if d == site.batch and site.batch > 1), None)
    if batch_axis is None and site.batch == 1 and shape and shape[0] == 1:
        batch_axis = 0
    channels = [d for k, d in enumerate(shape) if k != batch_axis]
    if batch_axis not in (None, 0):
        perm = [batch_axis, *(k for k in range(len(shape)) if k != batch_axis)]
        name = site.emit([name], "Transpose", perm=perm)
    target = [1 if batch_axis is None else -1, int(np.prod(channels)), *[1] * len(like.space)]
    is_map = len(shape) == len(target) and max(shape[2:]) == 1 and (batch_axis == 0 or shape[0] == 1)
    if not is_map:
        name = site.emit([name, np.array(target, np.int64)], "Reshape")
    atoms = [atoms_of(d, "u") for d in channels]
    layout = [*atoms]
    if batch_axis is not None:
        layout.insert(batch_axis, (like.batch,) if like.batch.size > 1 else ())
    space = tuple(replace(a, atoms=()) for a in like.space)
    flat = tuple(a for group in atoms for a in group)
    return Lifted(name, like.batch, flat, space, tuple(layout), like.elem_type)


def padding_refusal(site: Site, x: Lifted) -> Unsupported:
    """The refusal of a Pad that no sliding operator follows."""
    assert x.padding is not None
    return Unsupported(
        f"reads the padding that '{site.name_at(x.padding)}' adds around each window, while a larger "
        "image is padded only around its own border",
        code="pad-then-flatten",
        hint="pad inside the convolution or pooling before it",
    )


def pool_window(site: Site, x: Lifted, largest: bool, over: Sequence[int]) -> str:
    """The mean or the maximum of the window along some axes, at every position of the grid.

    A depthwise convolution computes the mean of a dilated window: before opset 19 AveragePool has no dilations, and
    later some runtimes ignore them.
    """
    if not largest and x.elem_type not in CONVOLVED:
        cells = cell_maps(site, x, over)
        return site.emit([site.emit(cells, "Sum"), site.scalar(x, len(cells))], "Div")
    op = "MaxPool" if largest else "AveragePool"
    kernel, strides, rates = x.kernel(over)
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    dilated = any(r > 1 and n > 1 for r, n in zip(rates, kernel))
    if dilated and not largest:
        weights = np.full((x.width, 1, *kernel), 1 / math.prod(kernel), site.dtype(x.elem_type))
        return site.emit([x, weights], "Conv", dilations=rates, group=x.width, **attrs)
    if dilated and site.is_portable:
        return maximum_of_slices(site, x, kernel, strides, rates, [0] * 2 * len(kernel))
    if dilated:
        site.check_dilates(op)
        attrs["dilations"] = rates
    return site.emit([x], op, **attrs)


def crop_to_common(site: Site, maps: Sequence[Lifted]) -> list[Lifted]:
    """Crop maps that meet to the cells that all of them have.

    Branches with different strides or padding, such as a convolution 3/2 beside a shortcut 1/2, have equally many
    cells at the native size, but at some other sizes one has more. At the native size plus whole strides the counts
    are equal again, and counts never decrease; so all windows are within the smallest map, and the rest is cropped.

    Raises:
        Unsupported: if the smallest map depends on the size of the image, or the opset cannot crop at run time.
    """
    spaces = enumerate(zip(*(m.space for m in maps)))
    uneven = [k for k, axes in spaces if len({a.count for a in axes}) > 1 and any(a.slides for a in axes)]
    maps = [restore_batch(site, m) for m in maps] if uneven else list(maps)
    for k in uneven:
        counts = [m.space[k].count for m in maps]
        if len({count.rate for count in counts}) > 1:
            continue  # their strides differ, which is refused when they are joined
        least = next((m for m in maps if all(m.space[k].count.beyond(count)[1] <= 0 for count in counts)), None)
        if least is None:
            raise Unsupported(
                "joins maps, but which of them has more cells depends on the size of the image",
                code="counts-meet",
            )
        maps = [_crop(site, m, k, least) for m in maps]
    return maps


def _crop(site: Site, x: Lifted, k: int, like: Lifted) -> Lifted:
    """Crop a map along one axis to the cells that a smaller one has."""
    count = like.space[k].count
    fewest, most = x.space[k].count.beyond(count)
    if most == 0:
        return x
    if fewest == most:
        name = site.slice(x.map, [0], [-most], [2 + k])
    else:
        cells = site.slice(site.emit([like], "Shape"), [2 + k], [3 + k], [0])
        why = "joins maps with equally many cells at the native size only, and cropping them at other sizes"
        name = site.slice_to(x, cells, 2 + k, why)
    return replace(x, map=name, space=tuple(a.shortened(count) if j == k else a for j, a in enumerate(x.space)))
