"""Operators that make a map finer or coarser: Resize, Upsample, and cells that move between space and depth."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from onnx_fcn.errors import Unsupported
from onnx_fcn.interpret import Fact, Known, lifts
from onnx_fcn.lifted import Lifted
from onnx_fcn.site import Operand, Site


@lifts("Resize", "Upsample")
def resize(site: Site, x: Lifted, *operands: Fact) -> Lifted:
    """Sizes become scales, frozen at the native size; sizes that are read off another map at run time stay so."""
    x = site.rearranged(x)
    scales, sizes = _targets(site, x, operands)
    mode = str(site.attr("mode", "nearest"))
    if str(site.attr("coordinate_transformation_mode", "half_pixel")) in ("align_corners", "tf_crop_and_resize"):
        raise Unsupported("interpolates between corners, which lie elsewhere at every image size", code="align-corners")
    x = site.arrange(x, [a for group in x.layout for a in group if a in x.channels])
    physical = [Fraction(1)] * (2 + len(x.space))
    space, layout = list(x.space), list(x.layout)
    for axis, (scale, size) in enumerate(zip(scales, sizes)):
        if scale == 1:
            continue
        k = x.space_of(x.layout[axis])
        if k is None:
            raise Unsupported(f"resizes axis {axis} of {x}, which is no axis of the image", code="not-spatial")
        cells = x.space[k]
        site.undilated(x, "resizes the map")
        physical[2 + k] = scale
        field = cells.field.resampled(scale, *_reach(site, scale, mode))
        space[k] = cells.made(size, cells.atoms[0].name, field, cells.count.resampled(scale))
        layout[axis] = space[k].atoms
    site.note_sliding(pads=mode != "nearest", strides=any(p < 1 for p in physical))
    name = _emit(site, x, operands, physical)
    return replace(x, map=name, space=tuple(space), layout=tuple(layout))


def _reach(site: Site, scale: Fraction, mode: str) -> tuple[Fraction, Fraction, Fraction]:
    """(shift, before, after): cell j lies at j/scale + shift, and is made of the cells this far before and after."""
    zero, half = Fraction(0), Fraction(1, 2)
    transform = str(site.attr("coordinate_transformation_mode", "half_pixel"))
    centred = site.op == "Resize" and site.opset >= 11 and transform != "asymmetric"
    shift = half / scale - half if centred else zero
    if mode == "nearest":
        part = 1 - Fraction(1, scale.numerator)  # the largest fraction of j/scale
        floors = not centred and str(site.attr("nearest_mode", "floor")) == "floor"
        if floors or scale.denominator > 1:
            return shift, part if floors else Fraction(1), zero if floors else Fraction(1)
        return shift, part / 2 if centred else part, part / 2 if centred else part
    taps = Fraction(2 if mode == "cubic" else 1)
    reach = taps / min(scale, Fraction(1)) if site.attr("antialias", 0) else taps
    return shift, reach, reach


def _targets(site: Site, x: Lifted, operands: tuple[Fact, ...]) -> tuple[list[Fraction], list[int]]:
    """For each axis of the original tensor, the scale and the native size of the result."""
    places = [x.axis(a) for a in site.attr("axes") or range(x.rank)]
    scale_at = 0 if site.op == "Upsample" or site.opset < 11 else 1
    by_scale = operands[scale_at] if len(operands) > scale_at else None
    given = site.attr("scales") if not operands else None
    if by_scale is not None and site.value(by_scale).size:
        given = site.value(by_scale).reshape(-1).tolist()
    scales, sizes = [Fraction(1)] * x.rank, list(x.shape)
    if given is not None:
        for axis, scale in zip(places, given):
            scales[axis] = Fraction(float(scale)).limit_denominator(4096)
            sizes[axis] = int(np.floor(x.shape[axis] * float(scale)))
    elif len(operands) > 2 and operands[2] is not None:
        for axis, size in zip(places, site.ints(operands[2]) or []):
            scales[axis], sizes[axis] = Fraction(size, x.shape[axis]), size
    else:
        raise Unsupported("neither scales nor sizes are given", code="resize")
    return scales, sizes


def _emit(site: Site, x: Lifted, operands: tuple[Fact, ...], scales: list[Fraction]) -> str:
    """Emit the operator with scales, or as it is where it reads its sizes at run time."""
    sizes = operands[2] if len(operands) > 2 else None
    natural = x.is_plain and list(x.layout) == [
        (x.batch,) if x.batch.size > 1 else (),
        x.channels,
        *(a.atoms for a in x.space),
    ]
    if isinstance(sizes, Known) and sizes.sized and natural and _is_read(site, sizes, scales):
        inputs: list[Operand] = [x, *operands[:2], sizes.name]
        return site.emit(inputs)
    factors = np.array([float(s) for s in scales], np.float32)
    if not operands:
        return site.emit([x], scales=factors.tolist())
    if site.op == "Upsample" or site.opset < 11:
        return site.emit([x, factors])
    empty: Operand = np.zeros(0, np.float32) if site.opset < 13 else None
    return site.emit([x, empty, factors], axes=None, keep_aspect_ratio_policy=None)


def _is_read(site: Site, sizes: Known, scales: list[Fraction]) -> bool:
    """Are the sizes of all axes that change read off a map, as a U-Net does to meet another one?"""
    moving = site.depends_on_size(sizes)
    return len(moving) == len(scales) and all(m for m, scale in zip(moving, scales) if scale != 1)


@lifts("DepthToSpace")
def depth_to_space(site: Site, x: Lifted) -> Lifted:
    """(N, C·b·b, H, W) -> (N, C, H·b, W·b): a layout."""
    size = int(site.attr("blocksize"))
    n, c, h, w = x.shape
    depth = c // size**2
    if site.attr("mode", "DCR") == "CRD":
        seen, perm = [n, depth, size, size, h, w], [0, 1, 4, 2, 5, 3]
    else:
        seen, perm = [n, size, size, depth, h, w], [0, 3, 4, 1, 5, 2]
    return site.rearranged(x.reshaped(seen).transposed(perm).reshaped([n, depth, h * size, w * size]))


@lifts("SpaceToDepth")
def space_to_depth(site: Site, x: Lifted) -> Lifted:
    """(N, C, H·b, W·b) -> (N, b·b·C, H, W), or (N, C·b·b, H, W): a layout."""
    size = int(site.attr("blocksize"))
    n, c, h, w = x.shape
    seen = x.reshaped([n, c, h // size, size, w // size, size])
    seen = seen.transposed([0, 1, 3, 5, 2, 4] if site.attr("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4])
    return seen.reshaped([n, c * size**2, h // size, w // size])
