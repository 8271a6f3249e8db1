"""Operators that change the resolution of a map: Resize, Upsample, DepthToSpace and SpaceToDepth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.geometry import Taps
from onnx_fcn.lifting.dilation import check_undilated
from onnx_fcn.lifting.facts import Fact
from onnx_fcn.lifting.layouts import arrange, drop_spent, move_factors
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, atoms_of, dim_of
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site

#: The largest denominator of a scale that is given as a float: the positions of windows repeat after this many cells.
LARGEST_DENOMINATOR = 64

#: Cells along an axis up to which onnxruntime's single-precision results are compared with the exact fraction.
FARTHEST = 1 << 18

#: Codes of refusals of scales that would be others for images of other sizes.
DEPENDS_ON_SIZE = frozenset({"rounding", "align-corners", "half-pixel-symmetric", "one-cell"})

#: Coordinate shifts: cell j of the result is at (j + a)/scale - b of the map, with these (a, b) in halves.
SHIFTS = {
    "half_pixel": (1, 1),
    "half_pixel_symmetric": (1, 1),
    "pytorch_half_pixel": (1, 1),
    "tf_half_pixel_for_nn": (1, 0),
    "asymmetric": (0, 0),
}


@lifts("Resize", "Upsample")
def resize(site: Site, x: Lifted, *operands: Fact | None) -> Lifted:
    """Sizes become scales, and parameters that depend on the size keep their value at the native size.

    If no size changes there, onnxruntime copies for any mode and scales, so the operator is removed. An axis with the
    scale 1 does not change either. Otherwise, by mode and coordinate transformation:

        ==========================================  ================================================================
        nearest; scale 2ⁿ, or whole and asymmetric  exact at every size
        nearest; any other scale p/q                exact up to 262,144 cells, or refused: the source of each cell is
                                                    computed in single precision, as in onnxruntime, and has to repeat
                                                    every p cells (it does not for 6/5 or 1/7)
        linear, cubic, antialias                    exact for the scale 2ⁿ; for others the weights of cell j are
                                                    rounded to about j·2⁻²⁴ of a cell, as in the original
        half_pixel_symmetric                        half_pixel, which is the same if the resized size is whole, as it
                                                    has to be at the native size; otherwise refused, and also if
                                                    nearest cells are on the border between two, unless the scale is 2ⁿ
        pytorch_half_pixel                          half_pixel; refused if the native result is one cell
        align_corners, tf_crop_and_resize           refused: the coordinates depend on the end of the map (see below)
        scales                                      fractions with a denominator of at most 64; others are refused
        sizes, including computed ones              their scale at the native size, or those of an earlier map (below)
        keep_aspect_ratio_policy                    one scale for all axes; refused if it does not give whole sizes
        exclude_outside, clamped coordinates        treated as padding: a cell that reads beyond its window sees more
                                                    of a larger image
        ==========================================  ================================================================

    Where a scale is refused, or what was resized meets a map with other strides or counts, sizes may be those of an
    earlier map that this one was made of: 7 cells, of which a stride of 2 left 3. The result then has the size of that
    map for images of any size, and is context, since a cell's source depends on where the map ends. A part of the map
    (tf_crop_and_resize) stays refused.

    Sources: ONNX, operators Resize-11 to Resize-19; onnxruntime, `UpsampleBase` and `Upsample::BaseCompute`.
    """
    x = move_factors(site, x)
    scales, sizes = _targets(site, x, operands)
    if sizes == list(x.shape):
        return x
    x = drop_spent(site, arrange(site, x, x.channels_in_order))
    earlier = _of_this_size(site, x, operands, sizes) if site.is_context else None
    if earlier is not None:
        return _to_size_of(site, x, earlier)
    try:
        return _by_scales(site, x, operands, scales, sizes)
    except Unsupported as refusal:
        earlier = _of_this_size(site, x, operands, sizes) if refusal.code in DEPENDS_ON_SIZE else None
        if earlier is None:
            raise
        return _to_size_of(site, x, earlier)


def _by_scales(
    site: Site, x: Lifted, operands: tuple[Fact | None, ...], scales: Sequence[Fraction], sizes: Sequence[int]
) -> Lifted:
    """The map resized by the same scales for images of any size."""
    physical = [Fraction(1)] * (2 + len(x.space))
    space, layout = list(x.space), list(x.layout)
    pads = False
    for axis, (scale, size) in enumerate(zip(scales, sizes)):
        if scale == 1:
            continue
        k = x.space_of(x.layout[axis])
        if k is None:
            raise Unsupported(f"resizes axis {axis} of {x}, which is not an axis of the image", code="not-spatial")
        cells = x.space[k]
        check_undilated(site, x, "resizes the map")
        physical[2 + k] = scale
        sampling = _sampling(site, scale, cells, size)
        space[k] = cells.resampled(size, cells.atoms[0].name, sampling.taps)
        layout[axis] = space[k].atoms
        pads |= cells.slides and sampling.reads_beyond(cells.window, size)
    coarser = any(p < 1 and axis.slides for p, axis in zip(physical[2:], x.space))
    site.note_sliding(pads=pads, strides=coarser)
    name = _emit(site, x, operands, physical)
    return replace(x, map=name, space=tuple(space), layout=tuple(layout))


@dataclass(frozen=True)
class Sampling:
    """How the cells along one axis are computed.

    Attributes:
        scale: cells of the result per cell of the map.
        shifts: see `SHIFTS`.
        rounding: of a nearest cell: ``floor``, ``ceil``, ``round_prefer_floor``, ``round_prefer_ceil``; empty for
            interpolations.
        support: cells that an interpolation reaches to either side.
        antialias: whether it reaches further if the map becomes coarser.
    """

    scale: Fraction
    shifts: tuple[int, int]
    rounding: str = ""
    support: int = 1
    antialias: bool = False

    @property
    def taps(self) -> Taps:
        """The cells that each cell is computed from. Its coordinate is (2·q·j + c)/(2·p), for a scale of p/q."""
        p, q = self.scale.numerator, self.scale.denominator
        c = self.shifts[0] * q - self.shifts[1] * p
        if self.rounding:
            nearest = {"floor": c, "ceil": c + 2 * p - 1, "round_prefer_floor": c + p - 1, "round_prefer_ceil": c + p}
            return Taps(self.scale, nearest[self.rounding], nearest[self.rounding])
        if self.antialias:
            support = 2 * self.support * max(p, q)
            return Taps(self.scale, c + 2 * p - support, c + support)
        if self.support == 1:  # ⌊x⌋ and ⌈x⌉
            return Taps(self.scale, c, c + 2 * p - 1)
        return Taps(self.scale, c - 2 * p * (self.support - 1), c + 2 * p * self.support)

    @property
    def is_ambiguous(self) -> bool:
        """Whether coordinates are on the border between two cells, where single precision may round to either side.

        Scales of 2ⁿ are never ambiguous: they only change exponents.
        """
        p, q = self.scale.numerator, self.scale.denominator
        if p & (p - 1) == 0 and q & (q - 1) == 0:
            return False
        c = self.shifts[0] * q - self.shifts[1] * p
        border = 0 if self.rounding in ("floor", "ceil") else p
        return any((2 * q * j + c) % (2 * p) == border for j in range(p))

    def reads_beyond(self, window: int, cells: int) -> bool:
        """Whether some of the cells would be computed from cells outside the window, if these existed."""
        return self.taps.cells(0)[0] < 0 or self.taps.cells(cells - 1)[1] >= window

    def check(self) -> None:
        """Compare onnxruntime's single-precision arithmetic with the exact fraction.

        Scales of 2ⁿ need no comparison: they only change exponents.

        Raises:
            Unsupported: if the number of cells or the source of some cell differs.
        """
        p, q = self.scale.numerator, self.scale.denominator
        if p & (p - 1) == 0 and q & (q - 1) == 0:
            return
        cells, factor = np.arange(FARTHEST), np.float32(float(self.scale))
        counted = (cells.astype(np.float32) * factor).astype(np.int64)
        self._compare(counted, cells * p // q, "a map of {0} cells becomes {1} cells instead of {2}")
        if self.rounding:
            a, b = (np.float32(half / 2) for half in self.shifts)
            found = _rounded((cells.astype(np.float32) + a) / factor - b, self.rounding)
            expected = (2 * q * cells + self.taps.first) // (2 * p)
            self._compare(found, expected, "cell {0} is a copy of cell {1} instead of {2}")

    def _compare(self, found: Array, expected: Array, words: str) -> None:
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            where = words.format(wrong[0], found[wrong[0]], expected[wrong[0]])
            raise Unsupported(
                f"resizes by {self.scale}, which single precision cannot represent: in onnxruntime {where}, so "
                "windows of a larger image would be resized in different ways",
                code="rounding",
                hint="a scale such as 2, 3 or 1/2 repeats exactly",
            )


def _rounded(x: Array, mode: str) -> Array:
    """The nearest cell as onnxruntime computes it; std::round rounds halves away from zero."""
    if mode in ("floor", "ceil"):
        return np.asarray(np.floor(x) if mode == "floor" else np.ceil(x), np.int64)
    away = np.trunc(x + np.copysign(np.float64(0.5), x))
    halves = (x == np.trunc(x) + np.float32(0.5)) if mode == "round_prefer_floor" else np.zeros(x.shape, bool)
    return np.asarray(np.where(halves, np.floor(x), away), np.int64)


def _sampling(site: Site, scale: Fraction, cells: Axis, size: int) -> Sampling:
    """How an axis of the map is resized to `size` cells at the native size.

    Raises:
        Unsupported: if the resizing depends on the size of the image.
    """
    mode, early = str(site.attr("mode", "nearest")), _is_early(site)
    transform = "asymmetric" if early else str(site.attr("coordinate_transformation_mode", "half_pixel"))
    if transform not in SHIFTS:
        raise Unsupported("interpolates between corners, whose positions depend on the size", code="align-corners")
    if transform == "half_pixel_symmetric" and (cells.window * scale).denominator > 1:
        raise Unsupported(
            f"resizes {cells.window} cells to {float(cells.window * scale):g}, and shifts them by the fraction that is "
            "cut off (half_pixel_symmetric), which depends on the image size",
            code="half-pixel-symmetric",
        )
    if transform == "pytorch_half_pixel" and size == 1:
        raise Unsupported(
            f"resizes {cells.window} cells to one, which pytorch_half_pixel places differently from the first of "
            "several cells",
            code="one-cell",
        )
    if mode == "nearest":
        rounding = str(site.attr("nearest_mode", "round_prefer_floor"))
        if early:  # how onnxruntime rounds for operators that do not specify it
            rounding = "ceil" if scale < 1 else "floor"
        sampling = Sampling(scale, SHIFTS[transform], rounding)
        if transform == "half_pixel_symmetric" and sampling.is_ambiguous:
            raise Unsupported(
                f"resizes by {scale}, where the nearest cell is on the border between two, and which one onnxruntime "
                "takes depends on the size of the map (half_pixel_symmetric)",
                code="rounding",
                hint="export it with half_pixel, which gives the same network",
            )
    else:
        support = 2 if mode == "cubic" else 1
        sampling = Sampling(scale, SHIFTS[transform], "", support, bool(site.attr("antialias", 0)))
    sampling.check()
    return sampling


def _of_this_size(site: Site, x: Lifted, operands: Sequence[Fact | None], sizes: Sequence[int]) -> Lifted | None:
    """The last map that x was made of with the size that a resize of x gives; None if there is none.

    Args:
        x: the map that is resized.
        sizes: the shape of the result on the axes of the original tensor.
    """
    by_sizes = len(operands) > 2 and operands[2] is not None
    stretches = str(site.attr("keep_aspect_ratio_policy", "stretch")) == "stretch"
    crops = str(site.attr("coordinate_transformation_mode", "half_pixel")) == "tf_crop_and_resize"
    if not by_sizes or not stretches or crops:
        return None
    check_undilated(site, x, "resizes the map")
    resized = {x.space_of(group): size for group, size in zip(x.layout, sizes) if Atom.product(group) != size}
    if None in resized:
        return None
    wanted = [resized.get(k, axis.window) for k, axis in enumerate(x.space)]
    return next((y for y in site.maps_before() if _is_source(y, x, wanted)), None)


def _is_source(y: Lifted, x: Lifted, sizes: Sequence[int]) -> bool:
    """Has a map that x was made of these numbers of cells in a window, and are they as close together, or closer?"""
    if y.padding is not None or y.folded is not None or len(y.space) != len(x.space):
        return False
    for fine, coarse, size in zip(y.space, x.space, sizes):
        if (fine.image, fine.window, fine.rate) != (coarse.image, size, 1) or fine.stride > coarse.stride:
            return False
    return True


def _to_size_of(site: Site, x: Lifted, y: Lifted) -> Lifted:
    """(N, C, *space) resized to the cells of another map, whatever their number: context."""
    site.note_context(x)
    rank = 2 + len(x.space)
    shapes = site.emit([site.emit([x], "Shape"), site.emit([y], "Shape")], "Concat", axis=0)
    sizes = site.emit([shapes, np.array([0, 1, *range(rank + 2, 2 * rank)])], "Gather", axis=0)
    atoms = {fine.atoms: atoms_of(size.window, "r") for fine, size in zip(x.space, y.space)}
    space = tuple(replace(size, atoms=atoms[fine.atoms]) for fine, size in zip(x.space, y.space))
    layout = tuple(atoms.get(group, group) for group in x.layout)
    return replace(x, map=site.resize_to(x, sizes), space=space, layout=layout)


def _is_early(site: Site) -> bool:
    """Whether the operator specifies neither coordinates nor rounding, and has the scales as its first parameter."""
    return site.op == "Upsample" or site.opset < 11


def _targets(site: Site, x: Lifted, operands: tuple[Fact | None, ...]) -> tuple[list[Fraction], list[int]]:
    """The scale and the native size of the result, for each axis of the original tensor.

    Raises:
        Unsupported: if they are not given, or a scale is not a fraction that gives whole sizes.
    """
    places = [x.axis(a) for a in site.attr("axes") or range(x.rank)]
    scale_at = 0 if _is_early(site) else 1
    by_scale = operands[scale_at] if len(operands) > scale_at else None
    given = site.attr("scales") if not operands else None
    if by_scale is not None and site.value(by_scale).size:
        given = site.value(by_scale).reshape(-1).tolist()
    scales, sizes = [Fraction(1)] * x.rank, list(x.shape)
    if given is not None:
        for axis, scale in zip(places, given):
            sizes[axis] = int(np.float32(scale) * np.float32(x.shape[axis]))
            scales[axis] = Fraction(float(scale)).limit_denominator(LARGEST_DENOMINATOR)
        if sizes != list(x.shape):
            _check_fractions(given, [scales[axis] for axis in places])
        return scales, sizes
    if len(operands) <= 2 or operands[2] is None:
        raise Unsupported("has neither scales nor sizes", code="resize")
    wanted = dict(zip(places, site.ints(operands[2]) or []))
    exact = {axis: Fraction(size, x.shape[axis]) for axis, size in wanted.items()}
    policy = str(site.attr("keep_aspect_ratio_policy", "stretch"))
    if policy != "stretch":
        shared = min(exact.values()) if policy == "not_larger" else max(exact.values())
        exact = dict.fromkeys(exact, shared)
    for axis, scale in exact.items():
        scales[axis] = scale
        if (x.shape[axis] * scale).denominator > 1:
            raise Unsupported(
                f"keeps the aspect ratio by scaling {dim_of(x.shape[axis])} cells by {scale}, which does not give a "
                "whole number of cells",
                code="aspect-ratio",
                hint="resize to sizes with the aspect ratio of the map",
            )
        sizes[axis] = int(x.shape[axis] * scale)
    return scales, sizes


def _check_fractions(given: Sequence[float], scales: Sequence[Fraction]) -> None:
    """Raises Unsupported if a scale is not the single-precision value of its fraction."""
    for scale, fraction in zip(given, scales):
        if np.float32(scale) != np.float32(float(fraction)):
            raise Unsupported(
                f"resizes by {scale:g}, which is not a fraction with a denominator of at most {LARGEST_DENOMINATOR}: "
                "no two windows of a larger image would be resized in the same way",
                code="irrational-scale",
                hint="a scale such as 2 or 1/2 repeats",
            )


def _emit(site: Site, x: Lifted, operands: tuple[Fact | None, ...], scales: list[Fraction]) -> str:
    """Emit the operator with scales."""
    factors = np.array([float(s) for s in scales], np.float32)
    if not operands:
        return site.emit([x], scales=factors.tolist())
    attrs: dict[str, Any] = {"axes": None, "keep_aspect_ratio_policy": None}
    if site.attr("coordinate_transformation_mode") == "half_pixel_symmetric":
        attrs["coordinate_transformation_mode"] = "half_pixel"
    return site.resize(x, factors, **attrs)


@lifts("DepthToSpace")
def depth_to_space(site: Site, x: Lifted) -> Lifted:
    """(N, C·b·b, H, W) -> (N, C, H·b, W·b): a change of layout."""
    size = int(site.attr("blocksize"))
    n, c, h, w = x.shape
    depth = c // size**2
    if site.attr("mode", "DCR") == "CRD":
        seen, perm = [n, depth, size, size, h, w], [0, 1, 4, 2, 5, 3]
    else:
        seen, perm = [n, size, size, depth, h, w], [0, 3, 4, 1, 5, 2]
    return move_factors(site, x.reshaped(seen).transposed(perm).reshaped([n, depth, h * size, w * size]))


@lifts("SpaceToDepth")
def space_to_depth(site: Site, x: Lifted) -> Lifted:
    """(N, C, H·b, W·b) -> (N, b·b·C, H, W) or (N, C·b·b, H, W): a change of layout."""
    size = int(site.attr("blocksize"))
    n, c, h, w = x.shape
    seen = x.reshaped([n, c, h // size, size, w // size, size])
    seen = seen.transposed([0, 1, 3, 5, 2, 4] if site.attr("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4])
    return seen.reshaped([n, c * size**2, h // size, w // size])
