"""From answers to checks: how far the converted model's answers are from the original's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from onnx_fcn._types import Array
from onnx_fcn.checking.cases import cell_at, offsets_of, ratios_of, sample_cells
from onnx_fcn.checking.checks import Check
from onnx_fcn.checking.claims import claims_of, false_claims
from onnx_fcn.checking.comparison import LEAST_BOUNDED, Case, Comparison, LargerImage, Run
from onnx_fcn.checking.dense import dense_checks
from onnx_fcn.checking.reference import crop_difference, fits, interior, trunk_of
from onnx_fcn.errors import ModelError
from onnx_fcn.geometry import KEEP_SIZE, Answers, Geometry, interpolate
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.windows import as_physical, of_size, original_at
from onnx_fcn.model.agreement import Scale, describe_nonfinite, difference, shaped_difference
from onnx_fcn.model.sessions import extract, session
from onnx_fcn.tables import size_text
from onnx_fcn.walk.fields import geometry_of, sliding

__all__ = ["all_checks", "form_difference", "metadata_checks"]


def all_checks(c: Comparison, run: Run) -> Iterator[Check]:
    """Every check of a run, in the order of the report."""
    for case in run.cases:
        yield from _native_checks(c, case)
    for case in (*run.cases, *run.larger, *run.others):
        yield from _form_checks(c, case)
    has_head = c.walk.has_head
    for wide in run.larger:
        if has_head:
            yield from _wide_checks(c, wide)
            yield from _trunk_checks(c, wide)
        yield from dense_checks(c, wide)
    if c.walk.attention and run.larger:
        yield from _attention_checks(c, run)
    for wide in run.larger[:1]:
        yield from _phase_checks(c, wide)
    for case in (*run.larger, *run.others):
        yield from _grid_checks(c, case)
    yield from metadata_checks(c.converted.proto, geometry_of(c.walk), c.tolerance)


def _phase_checks(c: Comparison, wide: LargerImage) -> Iterator[Check]:
    """Is each phase of a dilated map the original's map of the shifted image?

    Phase 0 is compared everywhere. The others are compared only at cells without padding in their field: shifting moves
    the border of the image.
    """
    cut, image = wide.cut, c.walk.image
    rates = [axis.rate for axis in cut.fact.space]
    if max(rates, default=1) == 1 or cut.name == image.name or not fits(c.walk, cut, wide.size):
        return
    try:
        trunk = session(c.original, trunk_of(c, cut))
    except ModelError:
        return  # the trunk has another input
    for phase in sample_cells(rates, c.random):
        if any((p * a.stride).denominator != 1 for p, a in zip(phase, cut.fact.space)):
            continue  # no image is shifted by a part of a pixel
        index, ends = [slice(None)] * len(image.shape), list(wide.size)
        for axis, p in zip(cut.fact.space, phase):
            if axis.image is not None and p:  # a whole stride smaller, so that what depends on the size does not change
                start, period = int(p * axis.stride), int(axis.rate * axis.stride)
                ends[axis.image] += start - period
                index[image.space[axis.image]] = slice(start, ends[axis.image])
        c.progress(f"phase {size_text(phase)} of the feature map")
        feeds = {**wide.feeds, image.name: np.ascontiguousarray(wide.feeds[image.name][tuple(index)])}
        try:
            want = as_physical(cut.fact, trunk(feeds)[0])
        except ModelError:
            continue  # a size is built into the original's trunk
        if want is None:
            continue
        slices: list[Any] = [slice(p, None, r) for p, r in zip(phase, rates)]
        have = wide.map[(..., *slices)]
        both: list[Any] = [slice(min(m, n)) for m, n in zip(have.shape[2:], want.shape[2:])]
        have, want = have[(..., *both)], want[(..., *both)]
        if any(phase):
            inside = interior(cut.fact, ends, phase, have.shape[2:])
            have, want = (m.transpose(*range(2, m.ndim), 0, 1)[inside] for m in (have, want))
        if want.size:
            cells = want.size // (want.shape[1] * want.shape[0]) if not any(phase) else len(want)
            yield Check(
                "phases", cut.name, wide.size, wide.batch, cells, difference(have, want), c.tolerance,
                f"phase {size_text(phase)}",
            )  # fmt: skip


def _grid_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """On an image with pixels left over after the last window, is the number of answers the reported one?

    Wrong padding at the far end, and sizes that are wrongly rounded up, show only there.
    """
    for name, said in c.answers.items():
        fact, shape = c.walk.results[name], case.got[name].shape
        counts = {a.image: count(case.size[a.image or 0]) for a, count in zip(sliding(fact), said.count)}
        have, want = shape[2:], tuple(counts.get(a.image, a.window) for a in fact.space)
        agrees = have == want and len(shape) == 2 + len(fact.space)
        note = "" if agrees else f"is a grid of {have} instead of {want}"
        yield Check("grid", name, case.size, case.batch, 1, 0.0 if agrees else np.inf, c.tolerance, note)


def metadata_checks(judged: ModelProto, geometry: Geometry, tolerance: float) -> Iterator[Check]:
    """Do the metadata of the judged file describe its answers correctly? No check if there are no metadata."""
    claims = claims_of(judged)
    if not claims:
        return
    wrong = list(false_claims(claims, geometry))
    for subject, sentence in wrong:
        yield Check("metadata", subject, (), 1, 1, np.inf, tolerance, sentence)
    if not wrong:
        yield Check("metadata", geometry.image, (), 1, len(geometry.outputs), 0.0, tolerance)


def _native_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """Is the answer at the native size the same?

    A dilated network that pads has more than one answer at the native size, with windows that reach beyond the image;
    the first answer is the original's.
    """
    for name, want in case.expected.items() if case.got else ():
        have, fact = c.over_windows(name, case.got[name]), {**c.facts, **c.dense}.get(name)
        note = "; ".join(filter(None, (case.note, c.note_of(name))))
        if fact is not None and not c.walk.keeps_size and have.shape[1:] == (fact.width, *_grid_at(fact, case.size)):
            have = original_at(fact, have, [0] * len(fact.space))
        if have.size != want.size or (fact is None and have.shape != want.shape):
            error, note = np.inf, f"has shape {case.got[name].shape}, but the original has {want.shape}"
        else:
            error = difference(have.reshape(want.shape), want, c.scale_of(name, case))
            note = "; ".join(filter(None, (note, describe_nonfinite(have.reshape(want.shape), want))))
        yield Check("native", name, case.size, case.batch, want.size, error, c.tolerance, note)
    for name, want in case.probabilities.items():
        logits = case.logits[name]
        tensor = c.given.logits[name]
        closing = extract(c.given.whole.proto, [tensor], [name], {tensor: logits.dtype})
        (have,) = session(c.given.whole, closing)({tensor: logits})
        error, note = difference(have, want, Scale(LEAST_BOUNDED)), "what was left out after it"
        yield Check("native", name, case.size, case.batch, want.size, error, c.tolerance, note)


def _grid_at(fact: Lifted, size: Sequence[int]) -> tuple[int, ...]:
    """The number of answers of an output along each axis, on an image of this size."""
    return tuple(a.window if a.image is None else a.count(size[a.image]) for a in fact.space)


def _form_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """Is what the converted model computes from its maps what numpy computes for this form?"""
    for name, have in case.formed.items():
        formed, fact = c.walk.formed[name], c.walk.results[name]
        if formed.form == "cam":
            continue  # it is the map, which is compared over windows
        if formed.form == KEEP_SIZE:
            if have.shape != case.expected[name].shape:
                note = f"has shape {have.shape}, but the original has {case.expected[name].shape}"
                yield Check("form", name, case.size, case.batch, 0, np.inf, c.tolerance, note)
            continue
        scores = case.got[name].astype(np.float64)
        if not _is_map_of(fact, scores):
            error = np.inf
        elif formed.form == "map":  # of a dense output, on the axes of the original
            scores = original_at(of_size(fact, scores.shape[2:]), scores, [0] * len(fact.space))
            error = difference(have, scores) if have.shape == scores.shape else np.inf
        elif formed.form in ("mean", "max"):  # in the original's shape
            axes = tuple(range(2, scores.ndim))
            scores = scores.mean(axes, keepdims=True) if formed.form == "mean" else scores.max(axes, keepdims=True)
            scores = original_at(fact, scores, [0] * len(axes))
            error = difference(have, scores) if have.shape == scores.shape else np.inf
        else:
            error = form_difference(formed.form, scores, have, c.answers[name], case.size)
        yield Check("form", name, case.size, case.batch, have.size, error, c.tolerance, formed.form)


def _is_map_of(fact: Lifted, values: Array) -> bool:
    """Has a map the axes and the channels of a fact?"""
    if values.ndim != 2 + len(fact.space) or values.shape[1] != fact.width:
        return False
    return all(axis.atoms or n == 1 for axis, n in zip(fact.space, values.shape[2:]) if axis.image is None)


def form_difference(form: str, scores: Array, have: Array, answers: Answers, size: Sequence[int]) -> float:
    """How far the answers of a form are from the same computation on a map (N, K, *cells) in numpy."""
    axes, words = tuple(range(2, scores.ndim)), form.split()
    if "mean" in words or "max" in words:
        scores = scores.mean(axes) if "mean" in words else scores.max(axes)
    if "full-size" in words:
        grid = answers.grid(*size)
        scores = interpolate(scores, [grid.cells_at(k, np.arange(n)) for k, n in enumerate(size)])
    if "argmax" in words:
        return _gap_to_best(scores, have)
    return difference(have, scores) if have.shape == scores.shape else float("inf")


def _gap_to_best(scores: Array, chosen: Array) -> float:
    """How far the chosen classes' scores are below the best ones, relative to the largest; classes are axis 1."""
    if chosen.shape != scores.shape[:1] + scores.shape[2:] or chosen.max(initial=0) >= scores.shape[1]:
        return float("inf")
    of_chosen = np.take_along_axis(scores, np.expand_dims(chosen.astype(np.int64), 1), 1)[:, 0]
    return difference(of_chosen, scores.max(1))


def _wide_checks(c: Comparison, wide: LargerImage) -> Iterator[Check]:
    """Is every cell the original head on its window? And the original network on its crop?"""
    cut = wide.cut
    for name, fact in c.facts.items():
        answer = c.over_windows(name, wide.got[name])
        by_image = {a.image: -(-w // r) for a, w, r in zip(cut.fact.space, wide.grid, ratios_of(fact, cut))}
        grid = tuple(a.window if a.image is None else by_image.get(a.image, 1) for a in fact.space)
        said = _grid_at(fact, wide.size)  # more than whole windows if an output leaves cells of its window unread
        if answer.shape[1:] != (fact.width, *said) or any(n < windows for n, windows in zip(said, grid)):
            note = f"has shape {answer.shape}, but there are {grid} windows with {fact.width} channels"
            yield Check("law", name, wide.size, wide.batch, 0, np.inf, c.tolerance, note)
            continue
        cells = [original_at(fact, answer, cell_at(fact, cut, at)) for at in wide.positions]
        scale = c.scale_of(name, wide)
        law = max(shaped_difference(cell, want[name], scale) for cell, want in zip(cells, wide.windows))
        same = [_has_best_of(cell, want[name]) for cell, want in zip(cells, wide.windows)] if c.is_coarser else []
        yield Check(
            "law", name, wide.size, wide.batch, len(wide.windows), law, c.tolerance, c.note_of(name),
            top1=float(np.mean(same)) if same and _are_scores(c, name, [w[name] for w in wide.windows]) else None,
        )  # fmt: skip
        yield from _cell_checks(c, name, wide)
        if wide.crops and (wide.inner is not None or c.exact[name]):
            yield _crops_check(c, name, wide, _with_crops(wide, cells))


def _cell_checks(c: Comparison, name: str, wide: LargerImage) -> Iterator[Check]:
    """Is a cell of an output that answers for cells the original head on a window filled with that cell?

    If there is another number of cells, the check of the grid says so.
    """
    cells = c.walk.unpooled.get(name)
    if cells is None or cells.reads != {wide.cut.name} or not wide.cells:
        return
    fact, errors = c.walk.results[name], []
    if wide.got[name].shape[1:] != (fact.width, *_grid_at(fact, wide.size)):
        return
    for place, want in wide.cells:
        at: list[Any] = [slice(place[a.image], place[a.image] + 1) for a in fact.space]
        have = original_at(fact, wide.got[name][(..., *at)], [0] * len(at))
        errors.append(difference(have, want[name]))
    note = "a window filled with one cell"
    yield Check("law", name, wide.size, wide.batch, len(errors), max(errors), c.tolerance, note)


def _with_crops(wide: LargerImage, values: Sequence[Any]) -> Sequence[Any]:
    """From one value for each position, the values of those with a crop: the last ones."""
    return values[len(values) - len(wide.crops) :]


def _trunk_checks(c: Comparison, wide: LargerImage) -> Iterator[Check]:
    """Are cells of the trunk's map, without padding in their field, those of the original on a crop?

    On a crop, which has the native size, the original's trunk always runs.
    """
    if wide.trunk is None or wide.found is None or not wide.crops:
        return
    fact, size = wide.trunk.fact, c.walk.image.size
    inside, errors, cells = interior(fact, size), [], 0
    for position, crop in zip(_with_crops(wide, wide.positions), wide.crops):
        want = None if crop.within is None else as_physical(fact, crop.within)
        if want is None:
            continue
        errors.append(crop_difference(fact, wide.found, offsets_of(wide, position), want, inside))
        cells += int(inside.sum()) if np.isfinite(errors[-1]) else 0
    if errors:
        yield Check("trunk", wide.trunk.name, wide.size, wide.batch, cells, max(errors), c.tolerance)


def _attention_checks(c: Comparison, run: Run) -> Iterator[Check]:
    """Is the map that attention contributes to the one that the original's nodes give on the whole image?

    No crop shows that. If these nodes do not run on the wide image, which is larger along all axes, the check fails.
    """
    for wide in run.larger:
        if wide.attended is not None and wide.seen is not None and wide.wanted is not None:
            error = difference(wide.seen, wide.wanted) if wide.seen.shape == wide.wanted.shape else np.inf
            cells = math.prod(wide.seen.shape[2:])
            yield Check("attention", wide.attended.name, wide.size, wide.batch, cells, error, c.tolerance)
    wide = run.larger[0]
    missing = [n for n in c.dense if n not in wide.dense and c.walk.attention & c.walk.upstream(n)]
    missing += [wide.attended.name] if wide.attended is not None and wide.wanted is None else []
    for name in missing:
        note = "the original's nodes do not run on a larger image"
        yield Check("attention", name, wide.size, wide.batch, 0, np.inf, c.tolerance, note)


def _crops_check(c: Comparison, name: str, wide: LargerImage, cells: Sequence[Array]) -> Check:
    """How far cells are from the original's answers on their crops."""
    tolerance, why = c.tolerance if c.exact[name] else None, ""
    if tolerance is None and name in c.answers:
        why = c.answers[name].reason
    wanted = [crop.expected[name] for crop in wide.crops]
    scale = c.scale_of(name, wide)
    errors = [shaped_difference(cell, want, scale) for cell, want in zip(cells, wanted)]
    scores = _are_scores(c, name, wanted)
    same = [_has_best_of(cell, want) for cell, want in zip(cells, wanted)] if scores else []
    return Check(
        "crops", name, wide.size, wide.batch, len(errors), max(errors), tolerance, why,
        median=float(np.median(errors)), top1=float(np.mean(same)) if scores else None,
    )  # fmt: skip


def _are_scores(c: Comparison, name: str, answers: Sequence[Array]) -> bool:
    """Are answers the scores of several classes?"""
    return all(a.ndim == 2 and a.shape[1] > 1 for a in answers) and name in c.outputs


def _has_best_of(scores: Array, want: Array) -> bool:
    """Have scores the same class with the largest score as others, (N, classes)? Not if their number differs."""
    return scores.size == want.size and np.array_equal(scores.reshape(want.shape).argmax(axis=1), want.argmax(axis=1))
