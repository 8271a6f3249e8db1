"""Is the converted model the same network as the original? onnxruntime runs both.

All questions decide, except the third if something pads:

    native    at the native size, is the answer that of the file as it was given?
    law       on larger images, is every cell the original head on its window of the feature map?
    crops     on larger images, is every cell the original network on its crop of the image?
    trunk     on larger images, are cells of the feature map that no padding reaches those of the original on a crop?
    dense     on larger images, are cells of an output with an answer for each position the original's?
    attention on larger images, is the map that attention contributes to what the original's nodes give there?
    phases    if operators dilate instead of striding, is each phase of the map that of the original's trunk?
    grid      on images with pixels left over, is the number of answers the reported one?
    form      if the answers are more than the map, are they what the form says?
    metadata  do the metadata describe the answers as the walk of the original does?

The law holds for every network. Cells equal crops only if nothing pads and nothing sees the whole image: beyond the
border of a crop there are zeros, and in the large image there are pixels. So crops are always measured, but decide only
in that case.

If an output answers for the cells of a window (`walk.cam`), their mean or maximum is compared as the answer for the
window. Single cells are compared with the original head on a window that is filled with this cell.

Outputs that saturate (a softmax is 0 or 1 for most inputs) would hide faults, so what enters them is compared too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from onnx_fcn._types import Array
from onnx_fcn.checking.asking import (
    ask_cells,
    ask_converted,
    ask_crops,
    ask_head,
    ask_original,
    head_in_batches,
    original_runner,
)
from onnx_fcn.checking.cases import (
    batches_of,
    fed_cut,
    long_case,
    native_cases,
    period_of,
    positions_of,
    size_in,
    takes_batches,
    uneven_case,
    wide_case,
)
from onnx_fcn.checking.checks import NONE_LARGER, Validation
from onnx_fcn.checking.comparison import DEVIATIONS, Case, Comparison, LargerImage, Run, largest_of
from onnx_fcn.checking.dense import ask_dense, unseen
from onnx_fcn.checking.judging import all_checks
from onnx_fcn.checking.reference import attended_map, interior_map, reference_map
from onnx_fcn.checking.sizes import remainders
from onnx_fcn.checking.trunks import same_trunk
from onnx_fcn.errors import ModelError
from onnx_fcn.lifting.refusals import EVALUATION
from onnx_fcn.model.agreement import Scale, difference
from onnx_fcn.model.graphs import nodes_within
from onnx_fcn.model.operators import RANDOM
from onnx_fcn.model.sessions import session
from onnx_fcn.tables import size_text
from onnx_fcn.walk.cut import Cut

__all__ = ["run_checks"]


#: Up to this many multiply-accumulates of a native image, an uneven image is run only to count its answers.
UNEVEN_BUDGET = 1e9


def run_checks(comparison: Comparison, data: Mapping[str, Array] | None = None) -> Validation:
    """Compare two models on random images, and on the user's own.

    One model is open at a time, so that only its weights are mapped. What both share needs no second run: if the
    trunk is node for node and byte for byte the original's, its map of a larger image is taken from the converted
    model, and only the head is run in batches.

    Raises:
        ModelError: if onnxruntime cannot run the original, or two runs of the original differ.
        ValidationError: if onnxruntime cannot run the converted model.
    """
    for deviation in DEVIATIONS:
        comparison.deviation = deviation
        run = _compare(comparison, data)
        if not all(check.passed for check in run.checks):
            _check_repeatable(comparison, run.cases[0])
            break
        if _answers_vary(comparison, run):
            break
    return Validation(tuple(run.checks), tuple(run.uncovered))


def _compare(c: Comparison, data: Mapping[str, Array] | None) -> Run:
    """Compare both models on random images of one deviation."""
    cut = fed_cut(c)
    shared = cut is not None and c.is_own_result and same_trunk(c, cut)
    batched = cut is not None and c.is_own_result and takes_batches(c, cut)
    run = Run()
    _enlarge(c, cut, data, run, shared=shared)
    wide = run.larger[0] if run.larger else None
    batches = batches_of(c)[:1] if shared and batched else batches_of(c)
    run.cases = native_cases(c, data, wide, batches, negated=not batched)
    if c.is_calibrated and data is not None:
        run.cases = run.cases[:1] if run.larger else run.cases[-1:]  # the only images that are like those
    if not c.limits.allow(c.walk.image.size):
        del run.cases[1:]  # the crop of the larger image, which only the original is asked for
    ask_converted(c, run)
    heads = run.larger if c.walk.has_head else []
    for each in heads:
        each.positions = positions_of(c, each)
    ask = original_runner(c, None if wide is None else wide.trunk)
    ask_original(c, run.cases, ask)
    for each in heads:
        ask_crops(c, each, run.cases[0], ask, shared=shared)
    for each in run.larger if c.dense else ():
        ask_dense(c, each, ask)
    run.uncovered += unseen(c, wide) if wide is not None else ()
    if heads:
        ask_head(c, heads)
        ask_cells(c, heads[0])
    if heads and batched:
        run.cases += head_in_batches(c, heads[0])
    _scale_single(c, run)
    run.checks = list(all_checks(c, run))
    return run


def _enlarge(c: Comparison, cut: Cut | None, data: Mapping[str, Array] | None, run: Run, *, shared: bool) -> None:
    """Add the larger images to a run: a wide, a long and an uneven one, with the original's map if its trunk gives it.

    If the original's trunk means something else on an image with pixels left over, the wide image has none.
    """
    if c.walk.keeps_size:
        return
    only = [native if k in c.walk.held else c.limits.size.get(k) for k, native in enumerate(c.walk.image.size)]
    only_given = c.is_calibrated and data is not None
    if only == list(c.walk.image.size):
        run.uncovered.append("larger images, which the file does not take")
        return
    if only_given and size_in(c, data or {}) == c.walk.image.size:
        run.uncovered.append(NONE_LARGER)
        return
    for_wide, for_long, for_uneven = remainders(period_of(c, cut), 3, c.random)
    costly = c.macs is not None and c.macs > UNEVEN_BUDGET
    if cut is not None:
        wide = wide_case(c, cut, for_wide, data)
        if not shared and not _find_map(c, wide):
            even = wide_case(c, cut, [0] * len(for_wide), data)
            if even.size != wide.size and _find_map(c, even):
                wide, costly = even, False
        long = None if only_given else long_case(c, cut, for_long)
        if long is not None and not shared:
            _find_map(c, long)
        run.larger = [w for w in (wide, long) if w is not None]
        trunk = interior_map(c.walk, cut) if c.is_own_result and not all(c.exact.values()) else None
        attended = attended_map(c.walk, cut) if c.is_own_result else None
        for each in run.larger:
            each.trunk, each.attended = trunk, attended
            if attended is not None:
                each.wanted = each.map if each.has_map and attended == cut else reference_map(c, attended, each.feeds)
        if all(n < m + p for n, m, p in zip(wide.size, c.walk.image.size, period_of(c, cut))):
            pixels = "×".join(map(str, period_of(c, cut)))
            run.uncovered.append(f"images with a second window along each axis, which begins {pixels} pixels on")
        if long is None and None in only and not only_given:
            run.uncovered.append("images much longer than the native size, which would take too long")
    if not costly and (None in only or not run.larger):
        run.others = [uneven_case(c, for_uneven)]


def _find_map(c: Comparison, wide: LargerImage) -> bool:
    """Take the feature map of a larger image from the original's trunk, if it means the same there."""
    c.progress(f"feature map at {size_text(wide.size)}")
    found = reference_map(c, wide.cut, wide.feeds)
    if found is not None:
        wide.map, wide.has_map = found, True
    return wide.has_map


def _check_repeatable(c: Comparison, case: Case) -> None:
    """Raises ModelError if two runs of the original differ by more than the tolerance."""
    run = session(c.given.file)

    def numbers() -> list[Array]:
        """The outputs that are not names of classes, or maps of them."""
        return [a for a in run(case.feeds) if isinstance(a, np.ndarray) and a.dtype.kind in "biuf"]

    apart = max(map(difference, numbers(), numbers()), default=0.0)
    if apart > c.tolerance:
        nodes = [f"{n.op_type} '{n.name or n.output[0]}'" for n in _random_nodes(c.given.file.proto.graph.node)]
        whose = f" ({', '.join(nodes[:3])})" if nodes else ""
        raise ModelError(f"the model is random{whose}: on one image two runs differ by {apart:.2g}; {EVALUATION}")


def _random_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes whose results may differ from run to run, in subgraphs too."""
    for node in (inner for outer in nodes for inner in (outer, *nodes_within(outer))):
        if node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) == 3 and node.input[2]):
            yield node


def _answers_vary(c: Comparison, run: Run) -> bool:
    """Do answers differ between windows, or images, by more than the tolerance? Otherwise a fault might not show."""
    found = run.larger[0].windows if run.larger and run.larger[0].windows else [case.expected for case in run.cases]
    pairs = [(each[name], found[0][name]) for each in found[1:] for name in found[0] if name in each]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape]
    return not pairs or any(difference(a, b) > c.tolerance for a, b in pairs)


def _scale_single(c: Comparison, run: Run) -> None:
    """Scale an output of one number per image by its answers for other images.

    Otherwise an answer that is close to zero by chance would have to be right to more digits than its terms have.
    """
    quiet = [case for case in run.cases if not case.loud]
    for name in c.names:
        if all(case.expected[name].size == case.batch for case in quiet):
            answers = [case.expected for case in quiet] + [window for wide in run.larger for window in wide.windows]
            scale = c.scales.get(name, Scale())
            usual = float(np.median([largest_of(a[name]) for a in answers if name in a]))  # no window has a constant
            c.scales[name] = replace(scale, least=max(scale.least, usual))
