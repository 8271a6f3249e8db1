"""Operators that make a map finer or coarser: Resize, Upsample, and cells that move between space and depth."""

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
from onnx_fcn.lifting.layouts import arrange, move_factors
from onnx_fcn.lifting.lifted import Axis, Lifted, dim_of
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site

#: The largest denominator of a scale that is written as a float: after so many cells windows lie alike again.
LARGEST_DENOMINATOR = 64

#: Cells along an axis up to which onnxruntime's single floats are compared with the fraction that they stand for.
FARTHEST = 1 << 18

#: How coordinates are shifted: cell j of the result lies at (j + a)/scale - b of the map, with these (a, b) in halves.
SHIFTS = {
    "half_pixel": (1, 1),
    "half_pixel_symmetric": (1, 1),
    "pytorch_half_pixel": (1, 1),
    "tf_half_pixel_for_nn": (1, 0),
    "asymmetric": (0, 0),
}


@lifts("Resize", "Upsample")
def resize(site: Site, x: Lifted, *operands: Fact | None) -> Lifted:
    """Sizes become scales, and whatever depends on the size is what it is at the native size.

    Where no size changes there, onnxruntime copies, whatever the mode and the scales are, and so the operator goes.
    Along an axis with the scale 1 nothing changes either. Otherwise, by mode and coordinate transformation:

        ==========================================  ================================================================
        nearest; scale 2ⁿ, or whole and asymmetric  exact at every size
        nearest; any other scale p/q                exact up to 262,144 cells, or refused: the source of each cell is
                                                    computed in single floats, as onnxruntime does, and has to repeat
                                                    every p cells (it does not for 6/5 or 1/7)
        linear, cubic, antialias                    exact for the scale 2ⁿ; for others the weights of cell j are
                                                    rounded to about j·2⁻²⁴ of a cell, as in the original
        half_pixel_symmetric                        half_pixel, which it is wherever the resized size is whole, as it
                                                    has to be at the native size; refused elsewhere, and where nearest
                                                    cells lie on the border between two, unless the scale is 2ⁿ
        pytorch_half_pixel                          half_pixel; refused where the native result is one cell
        align_corners, tf_crop_and_resize           refused: the coordinates hang on where the map ends
        scales                                      fractions up to a denominator of 64; refused beyond
        sizes, also computed ones                   their scale at the native size
        keep_aspect_ratio_policy                    one scale for all axes; refused where it does not give whole sizes
        exclude_outside, clamped coordinates        padding: a cell that reads beyond its window sees more of a larger
                                                    image
        ==========================================  ================================================================

    Sources: ONNX, operators Resize-11 to Resize-19; onnxruntime, `UpsampleBase` and `Upsample::BaseCompute`.
    """
    x = move_factors(site, x)
    scales, sizes = _targets(site, x, operands)
    if sizes == list(x.shape):
        return x
    x = arrange(site, x, x.channels_in_order)
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
        pads |= sampling.reads_beyond(cells.window, size)
    site.note_sliding(pads=pads, strides=any(p < 1 for p in physical))
    name = _emit(site, x, operands, physical)
    return replace(x, map=name, space=tuple(space), layout=tuple(layout))


@dataclass(frozen=True)
class Sampling:
    """How the cells along one axis are computed.

    Attributes:
        scale: cells of the result for one of the map.
        shifts: see `SHIFTS`.
        rounding: of a nearest cell: ``floor``, ``ceil``, ``round_prefer_floor``, ``round_prefer_ceil``; empty for
            interpolations.
        support: cells that an interpolation reaches to either side.
        antialias: whether it reaches further where the map is made coarser.
    """

    scale: Fraction
    shifts: tuple[int, int]
    rounding: str = ""
    support: int = 1
    antialias: bool = False

    @property
    def taps(self) -> Taps:
        """Which cells each cell is made of. Its coordinate is (2·q·j + c)/(2·p), for a scale of p/q."""
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
        """Do nearest cells lie on the border between two, and single floats not tell on which side?

        Scales of 2ⁿ only change exponents.
        """
        p, q = self.scale.numerator, self.scale.denominator
        if p & (p - 1) == 0 and q & (q - 1) == 0:
            return False
        c = self.shifts[0] * q - self.shifts[1] * p
        border = 0 if self.rounding in ("floor", "ceil") else p
        return any((2 * q * j + c) % (2 * p) == border for j in range(p))

    def reads_beyond(self, window: int, cells: int) -> bool:
        """Would some of the cells be made of others than those of a window, if there were any?"""
        return self.taps.cells(0)[0] < 0 or self.taps.cells(cells - 1)[1] >= window

    def check(self) -> None:
        """Compare onnxruntime's arithmetic, in single floats, with the fraction.

        Scales of 2ⁿ need no comparison: they only change exponents.

        Raises:
            Unsupported: some cells come from elsewhere, or there are more or fewer of them.
        """
        p, q = self.scale.numerator, self.scale.denominator
        if p & (p - 1) == 0 and q & (q - 1) == 0:
            return
        cells, factor = np.arange(FARTHEST), np.float32(float(self.scale))
        counted = (cells.astype(np.float32) * factor).astype(np.int64)
        self._compare(counted, cells * p // q, "a map of {0} cells gets {1} cells, and not {2}")
        if self.rounding:
            a, b = (np.float32(half / 2) for half in self.shifts)
            found = _rounded((cells.astype(np.float32) + a) / factor - b, self.rounding)
            said = (2 * q * cells + self.taps.first) // (2 * p)
            self._compare(found, said, "cell {0} is a copy of cell {1}, and not of {2}")

    def _compare(self, found: Array, said: Array, words: str) -> None:
        wrong = np.flatnonzero(found != said)
        if len(wrong):
            where = words.format(wrong[0], found[wrong[0]], said[wrong[0]])
            raise Unsupported(
                f"resizes by {self.scale}, which single floats do not hold: in onnxruntime {where}, so that windows "
                "of a larger image would be resized in different ways",
                code="rounding",
                hint="a scale such as 2, 3 or 1/2 repeats exactly",
            )


def _rounded(x: Array, mode: str) -> Array:
    """The nearest cell as onnxruntime finds it; std::round takes halves away from zero."""
    if mode in ("floor", "ceil"):
        return np.asarray(np.floor(x) if mode == "floor" else np.ceil(x), np.int64)
    away = np.trunc(x + np.copysign(np.float64(0.5), x))
    halves = (x == np.trunc(x) + np.float32(0.5)) if mode == "round_prefer_floor" else np.zeros(x.shape, bool)
    return np.asarray(np.where(halves, np.floor(x), away), np.int64)


def _sampling(site: Site, scale: Fraction, cells: Axis, size: int) -> Sampling:
    """How an axis of that many cells is resized.

    Raises:
        Unsupported: in a way that depends on the size of the image.
    """
    mode, early = str(site.attr("mode", "nearest")), _is_early(site)
    transform = "asymmetric" if early else str(site.attr("coordinate_transformation_mode", "half_pixel"))
    if transform not in SHIFTS:
        raise Unsupported("interpolates between corners, which lie elsewhere at every image size", code="align-corners")
    if transform == "half_pixel_symmetric" and (cells.window * scale).denominator > 1:
        raise Unsupported(
            f"resizes {cells.window} cells to {float(cells.window * scale):g}, and shifts them by what is cut off "
            "(half_pixel_symmetric), which is another amount at every image size",
            code="half-pixel-symmetric",
        )
    if transform == "pytorch_half_pixel" and size == 1:
        raise Unsupported(
            f"resizes {cells.window} cells to one, which lies elsewhere than the first of several (pytorch_half_pixel)",
            code="one-cell",
        )
    if mode == "nearest":
        rounding = str(site.attr("nearest_mode", "round_prefer_floor"))
        if early:  # onnxruntime's reading of operators that do not say how they round
            rounding = "ceil" if scale < 1 else "floor"
        sampling = Sampling(scale, SHIFTS[transform], rounding)
        if transform == "half_pixel_symmetric" and sampling.is_ambiguous:
            raise Unsupported(
                f"resizes by {scale}, where nearest cells lie on the border between two, and onnxruntime takes now one "
                "and now the other, by the size of the map (half_pixel_symmetric)",
                code="rounding",
                hint="with half_pixel it is the same network",
            )
    else:
        support = 2 if mode == "cubic" else 1
        sampling = Sampling(scale, SHIFTS[transform], "", support, bool(site.attr("antialias", 0)))
    sampling.check()
    return sampling


def _is_early(site: Site) -> bool:
    """Is it an operator that does not say where cells lie, or how it rounds, and whose first operand is the scales?"""
    return site.op == "Upsample" or site.opset < 11


def _targets(site: Site, x: Lifted, operands: tuple[Fact | None, ...]) -> tuple[list[Fraction], list[int]]:
    """For each axis of the original tensor, the scale and the native size of the result."""
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
        raise Unsupported("neither scales nor sizes are given", code="resize")
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
                f"keeps the aspect ratio of {dim_of(x.shape[axis])} cells by a scale of {scale}, which does not give "
                "a whole number of them",
                code="aspect-ratio",
                hint="resize to sizes that have the ratio of the map",
            )
        sizes[axis] = int(x.shape[axis] * scale)
    return scales, sizes


def _check_fractions(given: Sequence[float], scales: Sequence[Fraction]) -> None:
    """Raises: Unsupported, if a scale is not the float of its fraction."""
    for scale, fraction in zip(given, scales):
        if np.float32(scale) != np.float32(float(fraction)):
            raise Unsupported(
                f"resizes by {scale:g}, which is not a fraction with a "
                f"denominator of at most {LARGEST_DENOMINATOR}: no "
                "two windows of a larger image would be resized alike",
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
    """(N, C·b·b, H, W) -> (N, C, H·b, W·b): a layout."""
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
    """(N, C, H·b, W·b) -> (N, b·b·C, H, W), or (N, C·b·b, H, W): a layout."""
    size = int(site.attr("blocksize"))
    n, c, h, w = x.shape
    seen = x.reshaped([n, c, h // size, size, w // size, size])
    seen = seen.transposed([0, 1, 3, 5, 2, 4] if site.attr("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4])
    return seen.reshaped([n, c * size**2, h // size, w // size])
