"""onnxruntime against the original: is it the same network?

Questions, of which all but the third decide:

    native   at the native size, is the answer the same?
    law      on a larger image, is every cell the original head on its window of the feature map?
    crops    on a larger image, is every cell the original network on its crop of the image?
    phases   where operators dilate instead of striding, is each phase of the map that of the original's trunk?
    grid     on an image with pixels left over, are there as many answers as was said?
    form     where the answers are more than the map, is that what they were to be?

The law holds for every network. The last holds only where nothing pads and nothing sees the whole image: a crop sees
zeros beyond its border where the large image has pixels. So crops are measured always, and decide only then.

Outputs that saturate (a softmax is 0 or 1 for most inputs) would hide faults, so what enters them is compared too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fcn.agreement import (
    as_physical,
    batch_axis,
    difference,
    original_at,
    shaped_difference,
    unusual,
    window_of,
)
from onnx_fcn.cases import (
    BATCHES,
    DEVIATIONS,
    Answers,
    Case,
    Comparison,
    Wide,
    batches_of,
    cropped,
    has_crop,
    louder,
    native_cases,
    own_scale,
    periods_of,
    positions_of,
    random_feeds,
    ratios_of,
    same_trunk,
    sampled,
    shaken,
    takes_batches,
    wide_case,
)
from onnx_fcn.errors import ModelError, ValidationError
from onnx_fcn.geometry import interpolated
from onnx_fcn.known import Array
from onnx_fcn.lifted import Lifted
from onnx_fcn.lifting import Cut, upstream
from onnx_fcn.sessions import extract, session, with_outputs

__all__ = ["Check", "Comparison", "Validation", "run_checks"]

#: Multiply-accumulates that crops may take which need not agree: enough to see by how much they do not.
CROPS_BUDGET = 20e9


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        kind: ``native``, ``law``, ``crops``, ``phases``, ``form`` or ``grid``.
        subject: what was compared, such as an output's name.
        size: the size of the image, in pixels.
        batch: images at once.
        compared: windows, or elements.
        error: largest difference relative to the largest answer; NaN where it could not be measured.
        tolerance: the largest error allowed; None for what is only information.
        note: a sentence.
        median: of crops, the error of the median window; None for other checks.
        top1: of crops, the share of windows whose largest answer is the same one; None where that means nothing.
    """

    kind: str
    subject: str
    size: tuple[int, ...]
    batch: int
    compared: int
    error: float
    tolerance: float | None
    note: str = ""
    median: float | None = None
    top1: float | None = None

    @property
    def passed(self) -> bool:
        """Within its tolerance, or only information."""
        return self.tolerance is None or self.error <= self.tolerance


@dataclass(frozen=True)
class Validation:
    """All comparisons of two models."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Did everything that decides hold?"""
        return all(c.passed for c in self.checks)

    def worst(self, kind: str) -> float | None:
        """The largest error of one kind of check; None where there was none."""
        errors = [c.error for c in self.checks if c.kind == kind]
        return max(errors) if errors else None

    def failure(self) -> str:
        """One sentence about the worst failure."""
        worst = max((c for c in self.checks if not c.passed), key=lambda c: np.nan_to_num(c.error, nan=np.inf))
        size = "×".join(map(str, worst.size))
        what = {
            "native": "the answer at the native size",
            "law": "a cell of the map and the original head on its window",
            "crops": "a cell of the map and the original network on its crop",
            "phases": "a phase of the map and the original trunk on the shifted image",
            "grid": "the number of answers",
            "form": "the answers and what they were to become of the map",
        }[worst.kind]
        reason = f"differ by {worst.error:.2g} (allowed {worst.tolerance:.2g})"
        if not math.isfinite(worst.error):
            reason = worst.note or "NaN or infinities stand at other places, or numbers where there were some"
        elif worst.note:
            reason += f"; {worst.note}"
        return f"{what} of '{worst.subject}' at {size}: {reason}"


def run_checks(comparison: Comparison, data: Mapping[str, Array] | None = None) -> Validation:
    """Compare two models on random images, and on the user's own.

    One model is open at a time, so that the weights of one only are mapped. What both share needs no second run: where
    the trunk is node for node and byte for byte the original's, its map of the larger image is taken from the
    converted model, and only the head is run in batches.

    Raises:
        ModelError: onnxruntime cannot run the original.
        ValidationError: it cannot run the converted model.
    """
    for deviation in DEVIATIONS:
        comparison.deviation = deviation
        cases, wide, checks = _compared(comparison, data)
        if not all(check.passed for check in checks) or _tell_apart(comparison, cases, wide):
            break
    return Validation(tuple(checks))


def _compared(c: Comparison, data: Mapping[str, Array] | None) -> tuple[list[Case], Wide | None, list[Check]]:
    """All that was compared on random images of one deviation."""
    wide = wide_case(c, data)
    shared = wide is not None and c.is_ours and same_trunk(c, wide.cut)
    batched = wide is not None and shared and takes_batches(c, wide.cut)
    cases = native_cases(c, data, wide, batches_of(c)[:1] if batched else batches_of(c))
    if wide is not None and not shared:
        c.progress(f"feature map at {_spelled(wide.size)}")
        wide.map = _feature_map(c, wide.cut, wide.feeds)
    try:
        _ask_converted(c, cases, wide, with_map=shared)
    except ModelError as error:
        _ask_original(c, cases[:1])  # which may be the one that does not run
        raise ValidationError(f"the converted model fails: {error}") from None
    if wide is not None and c.state.has_head:
        wide.positions = positions_of(c, wide)
    _ask_original(c, cases)
    if wide is not None and c.state.has_head:
        _ask_crops(c, wide, cases[0])
        _ask_head(c, wide)
        if batched:
            cases += _head_in_batches(c, wide)
    checks = [check for case in cases for check in _native_checks(c, case)]
    for case in [*cases, *([wide] if wide is not None else [])]:
        checks += _form_checks(c, case)
    if wide is not None and c.state.has_head:
        checks += _wide_checks(c, wide)
    if wide is not None:
        checks += _phase_checks(c, wide)
        if not shared and wide.cut.name != c.state.image.name:
            checks += _grid_checks(c)
    return cases, wide, checks


def _tell_apart(c: Comparison, cases: Sequence[Case], wide: Wide | None) -> bool:
    """Do answers differ between windows, or images, by more than is allowed? Else a fault might not show."""
    found = wide.windows if wide is not None and wide.windows else [case.expected for case in cases]
    pairs = [(each[name], found[0][name]) for each in found[1:] for name in found[0] if name in each]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape]
    return not pairs or any(difference(a, b) > c.tolerance for a, b in pairs)


def _feature_map(c: Comparison, cut: Cut, feeds: Mapping[str, Array]) -> Array:
    """The cut's map of an image (N, C, *space): of the original trunk, or of the lifted one where sizes are baked."""
    image = c.state.image.name
    name = c.state.renamed.get(cut.fact.map, cut.fact.map)
    lifted = extract(c.lifted.proto, [image], [name])
    size = [feeds[image].shape[k] for k in c.state.image.space]
    if cut.name != image and _pads_alike(c, cut, size):
        with contextlib.suppress(ModelError):
            seen = session(c.original, extract(c.original.proto, [image], [cut.name]))(feeds)[0]
            physical = as_physical(cut.fact, seen)
            cells = tuple(a.extent if a.image is None else a.count(size[a.image]) for a in cut.fact.space)
            if physical is not None and physical.shape[2:] == cells:  # at other sizes the original may pad otherwise
                return physical
    return feeds[image] if name == image else session(c.lifted, lifted)(feeds)[0]


def _phase_checks(c: Comparison, wide: Wide) -> Iterator[Check]:
    """Is each phase of a dilated map the original's map of the shifted image?

    Phase 0 is, everywhere. The others are where no padding is seen: shifting moves the border of the image.
    """
    cut, image = wide.cut, c.state.image
    rates = [axis.rate for axis in cut.fact.space]
    if max(rates, default=1) == 1 or cut.name == image.name or not _pads_alike(c, cut, wide.size):
        return
    try:
        trunk = session(c.original, extract(c.original.proto, [image.name], [cut.name]))
    except ModelError:
        return  # it has another input
    for phase in sampled(rates, c.random):
        index, ends = [slice(None)] * len(image.shape), list(wide.size)
        for axis, p in zip(cut.fact.space, phase):
            if axis.image is not None and p:  # smaller by a whole stride: what depends on the size stays the same
                start, period = int(p * axis.stride), int(axis.rate * axis.stride)
                ends[axis.image] += start - period
                index[image.space[axis.image]] = slice(start, ends[axis.image])
        c.progress(f"phase {_spelled(phase)} of the feature map")
        feeds = {**wide.feeds, image.name: np.ascontiguousarray(wide.feeds[image.name][tuple(index)])}
        try:
            want = as_physical(cut.fact, trunk(feeds)[0])
        except ModelError:
            continue  # a size is baked into the original's trunk
        if want is None:
            continue
        slices: list[Any] = [slice(p, None, r) for p, r in zip(phase, rates)]
        have = wide.map[(..., *slices)]
        both: list[Any] = [slice(min(m, n)) for m, n in zip(have.shape[2:], want.shape[2:])]
        have, want = have[(..., *both)], want[(..., *both)]
        if any(phase):
            inside = _inside(cut.fact, ends, phase, have.shape[2:])
            have, want = (m.transpose(*range(2, m.ndim), 0, 1)[inside] for m in (have, want))
        if want.size:
            cells = want.size // (want.shape[1] * want.shape[0]) if not any(phase) else len(want)
            yield Check(
                "phases", cut.name, wide.size, wide.batch, cells, difference(have, want), c.tolerance,
                f"phase {_spelled(phase)}",
            )  # fmt: skip


def _grid_checks(c: Comparison) -> Iterator[Check]:
    """On an image with pixels behind the last window, is the number of answers what it is said to be?

    Padding at the far end, and sizes that are rounded up, show there alone.
    """
    if not c.state.has_head:
        return
    native = c.state.image.size
    strides = [max([math.ceil(a.stride[k]) for a in c.answers.values()], default=1) for k in range(len(native))]
    size = tuple(n + s - 1 for n, s in zip(native, strides))
    batch = batches_of(c)[0]
    tensors = [c.maps.get(name, name) for name in c.answers]
    extra = [t for t in tensors if t not in c.outputs]
    if extra and not c.is_ours:
        return
    c.progress(f"converted model at {_spelled(size)}")
    try:
        answers = session(c.converted, with_outputs(c.converted, extra))(random_feeds(c, size, batch))
    except ModelError as error:
        raise ValidationError(f"the converted model fails at {_spelled(size)}: {error}") from None
    found = dict(zip([*c.outputs, *extra], answers))
    for (name, said), tensor in zip(c.answers.items(), tensors):
        have, want = found[tensor].shape[2:], tuple(count(n) for count, n in zip(said.count, size))
        note = "" if have == want else f"is a grid of {have} where {want} was said"
        yield Check("grid", name, size, batch, 1, 0.0 if have == want else np.inf, c.tolerance, note)


def _inside(fact: Lifted, ends: Sequence[int], phase: Sequence[int], cells: Sequence[int]) -> Array:
    """Which cells of one phase see neither padding of the image nor of the shifted one, which has these ends."""
    inside = np.ones(tuple(cells), bool)
    for k, (axis, p, count) in enumerate(zip(fact.space, phase, cells)):
        if not axis.field.is_local:
            return np.zeros_like(inside)
        if axis.image is None:
            continue
        first = float(axis.field.start) + (p + axis.rate * np.arange(count)) * float(axis.stride)
        seen = (first >= float(p * axis.stride)) & (first + float(axis.field.size) <= ends[axis.image])
        inside &= seen.reshape([-1 if j == k else 1 for j in range(len(cells))])
    return inside


def _pads_alike(c: Comparison, cut: Cut, size: Sequence[int]) -> bool:
    """Does the original's trunk pad an image of this size as one of the native size? `auto_pad` reads the size."""
    attributes = (a for k in upstream(c.state, cut.name) for a in c.state.seats[k].proto.attribute)
    if not any(a.name == "auto_pad" and a.s.startswith(b"SAME") for a in attributes):
        return True
    periods = periods_of(cut)
    return all((n - m) % periods.get(k, 1) == 0 for k, (n, m) in enumerate(zip(size, c.state.image.size)))


def _ask_original(c: Comparison, cases: list[Case]) -> None:
    """The original's answers at the native size; batches that it does not run are dropped."""
    run = session(c.original, with_outputs(c.original, c.hidden))
    for case in list(cases):
        c.progress(f"original at the native size, batch {case.batch}")
        try:
            case.expected = dict(zip(c.names, run(case.feeds)))
        except ModelError:
            if case is cases[0] or case.note:
                raise
            cases.remove(case)  # the graph bakes another batch


def _ask_crops(c: Comparison, wide: Wide, inner: Case) -> None:
    """The original's answers for crops of the larger image: all where they decide; the last of them is known."""
    affordable = 1 if c.macs is None else max(1, int(CROPS_BUDGET / max(c.macs, 1)))
    crops = len(wide.positions) if any(c.exact.values()) else affordable
    others = [p for p in wide.positions[-crops:-1] if has_crop(c, wide, p)]
    if others:
        run = session(c.original, with_outputs(c.original, c.hidden))
    for k, position in enumerate(others):
        c.progress(f"crops at {_spelled(wide.size)}: {k + 1} of {len(others)}")
        wide.crops.append(dict(zip(c.names, run(cropped(c, wide, position)))))
    wide.crops.append(inner.expected)


def _ask_head(c: Comparison, wide: Wide) -> None:
    """The original head's answers for windows of the feature map, and what a change of the map makes of them."""
    cut = wide.cut
    maps = [wide.map, *([shaken(c, wide.map)] if c.affine and wide.map.dtype == np.float32 else [])]
    windows = [original_at(cut.fact, m, p).astype(m.dtype) for m in maps for p in wide.positions]
    c.progress(f"head on {len(wide.positions)} windows at {_spelled(wide.size)}")
    answers = _head_on(c, wide, windows)
    wide.windows, others = answers[: len(wide.positions)], answers[len(wide.positions) :]
    for name in c.affine if others else ():
        c.scales[name] = own_scale([w[name] for w in wide.windows], [w[name] for w in others])


def _head_on(c: Comparison, wide: Wide, windows: Sequence[Array]) -> list[Answers]:
    """The original head's answers for some windows, all at once where the batch is free."""
    cut, image = wide.cut, c.state.image
    head = session(c.original, extract(c.original.proto, [cut.name, *c.inputs], c.names))
    axis = batch_axis(cut.fact)
    if takes_batches(c, cut) and axis is not None:
        images = random_feeds(c, image.size, len(windows))  # a head may read its batch off the image
        with contextlib.suppress(ModelError):
            answers = dict(zip(c.names, head({**images, cut.name: np.concatenate(windows, axis)})))
            split = {n: np.split(answers[n], len(windows), batch_axis(f) or 0) for n, f in c.facts.items()}
            return [{n: split[n][k] for n in c.facts} for k in range(len(windows))]
    feeds = {**wide.feeds, image.name: random_feeds(c, image.size, wide.batch)[image.name]}
    return [dict(zip(c.names, head({**feeds, cut.name: window}))) for window in windows]


def _head_in_batches(c: Comparison, wide: Wide) -> Iterator[Case]:
    """Both heads on several windows at once: no batch is mixed. None where the original's does not run so."""
    cut, size = wide.cut, c.state.image.size
    positions = [wide.positions[k % len(wide.positions)] for k in range(BATCHES)]
    case = Case(size, BATCHES, {}, "the head alone, behind the same trunk")
    stack = np.concatenate([wide.map[window_of(cut.fact, p)] for p in positions])
    if not c.rounds:
        stack, case.loud = louder(stack, 0), True
    first = [0] * len(positions[0])
    windows = [original_at(cut.fact, stack[k : k + 1], first) for k in range(len(stack))]
    c.progress(f"heads, batch {BATCHES}")
    try:
        head = session(c.original, extract(c.original.proto, [cut.name], c.names))
        case.expected = dict(zip(c.names, head({cut.name: np.concatenate(windows, batch_axis(cut.fact) or 0)})))
    except ModelError:  # the graph bakes another batch
        return
    outputs = [c.maps.get(n, n) for n in c.names]
    try:
        head = session(c.converted, extract(c.converted.proto, [cut.fact.map], outputs))
        case.got = _unfolded(c, dict(zip(c.names, head({cut.fact.map: stack}))))
    except ModelError as error:
        raise ValidationError(f"the converted model fails on a batch of {BATCHES}: {error}") from None
    yield case


def _ask_converted(c: Comparison, cases: Sequence[Case], wide: Wide | None, *, with_map: bool) -> None:
    """The converted model's answers, and its feature map of the larger image if that is asked for."""
    extra = dict.fromkeys(c.maps.values())
    if wide is not None and with_map:
        extra[wide.cut.fact.map] = None
    extras = [n for n in extra if n not in c.outputs]
    run = session(c.converted, with_outputs(c.converted, extras if c.is_ours else []))
    # the maps behind another tool's outputs may be gone: they are ours then, and its outputs have to be made of these
    maps = run if c.is_ours or not extras else session(c.lifted, with_outputs(c.lifted, extras))
    for case in [*cases, *([wide] if wide is not None else [])]:
        c.progress(f"converted model at {_spelled(case.size)}, batch {case.batch}")
        judged = run(case.feeds)
        answers = dict(zip([*c.outputs, *extras], judged if maps is run else maps(case.feeds)))
        answers |= zip(c.outputs, judged)
        if isinstance(case, Wide) and with_map:
            case.map = answers[case.cut.fact.map]
        case.finals = {name: answers[name] for name in c.state.finals}
        case.got = _unfolded(c, {name: answers[c.maps.get(name, name)] for name in c.names})


def _unfolded(c: Comparison, answers: Answers) -> Answers:
    """The answers with (1, C, 1, N·grid) as (N, C, *grid), where the batch was folded around the head."""
    shape = next((list(answers[n].shape) for n in c.state.results if answers[n].ndim > 2), [])
    for name, fact in c.hidden.items():
        if fact.folded:
            answers[name] = np.moveaxis(answers[name].reshape(fact.width, shape[0], *shape[2:]), 0, 1)
    return answers


def _native_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """Is the answer at the native size the same?

    A dilated network that pads has answers in between at the native size too, whose windows reach beyond the image;
    the first is the original's.
    """
    for name, want in case.expected.items():
        have, fact, note = case.got[name], c.facts.get(name), case.note
        if fact is not None and c.state.has_head and have.shape[1:] == (fact.width, *_grid_at(fact, case.size)):
            have = original_at(fact, have, [0] * len(fact.space))
        if have.size != want.size:
            error, note = np.inf, f"has shape {case.got[name].shape} where the original has {want.shape}"
        else:
            error = difference(have.reshape(want.shape), want, c.scale_of(name, case))
            note = "; ".join(filter(None, (note, unusual(have.reshape(want.shape), want))))
        yield Check("native", name, case.size, case.batch, want.size, error, c.tolerance, note)


def _grid_at(fact: Lifted, size: Sequence[int]) -> tuple[int, ...]:
    """Answers of an output on an image of this size."""
    return tuple(1 if a.image is None else a.count(size[a.image]) for a in fact.space)


def _form_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """Is what the converted model makes of its maps what the form says, in numpy's words?"""
    for name, have in case.finals.items():
        final, fact = c.state.finals[name], c.state.results[name]
        if final.form == "keep-size":
            if have.shape != case.expected[name].shape:
                note = f"has shape {have.shape} where the original has {case.expected[name].shape}"
                yield Check("form", name, case.size, case.batch, 0, np.inf, c.tolerance, note)
            continue
        scores = case.got[name].astype(np.float64)
        axes, words = tuple(range(2, scores.ndim)), final.form.split()
        if "mean" in words or "max" in words:
            scores = scores.mean(axes) if "mean" in words else scores.max(axes)
        if "full-size" in words:
            grid = c.answers[name].grid(*case.size)
            scores = interpolated(scores, [grid.cells_at(k, np.arange(n)) for k, n in enumerate(case.size)])
        if "argmax" in words:
            error = _below_the_best(scores, have)
        else:
            if final.form in ("mean", "max"):  # in the original's shape
                scores = original_at(fact, scores.reshape(*scores.shape, *[1] * len(axes)), [0] * len(axes))
            error = difference(have, scores) if have.shape == scores.shape else np.inf
        yield Check("form", name, case.size, case.batch, have.size, error, c.tolerance, final.form)


def _below_the_best(scores: Array, chosen: Array) -> float:
    """How far the chosen classes' scores are below the best ones, relative to the largest; classes are axis 1."""
    if chosen.shape != scores.shape[:1] + scores.shape[2:] or chosen.max(initial=0) >= scores.shape[1]:
        return float("inf")
    of_chosen = np.take_along_axis(scores, np.expand_dims(chosen.astype(np.int64), 1), 1)[:, 0]
    return difference(of_chosen, scores.max(1))


def _wide_checks(c: Comparison, wide: Wide) -> Iterator[Check]:
    """Is every cell the original head on its window? Is it the original on its crop?"""
    cut = wide.cut
    for name, fact in c.facts.items():
        answer = wide.got[name]
        by_image = {a.image: -(-w // r) for a, w, r in zip(cut.fact.space, wide.grid, ratios_of(fact, cut))}
        grid = tuple(by_image.get(a.image, 1) for a in fact.space)
        if answer.shape[1:] != (fact.width, *grid):
            note = f"has shape {answer.shape} where there are {grid} windows with {fact.width} channels"
            yield Check("law", name, wide.size, wide.batch, 0, np.inf, c.tolerance, note)
            continue
        cells = [_cell(fact, answer, at, cut) for at in wide.positions]
        law = max(
            shaped_difference(cell, want[name], c.scale_of(name, wide)) for cell, want in zip(cells, wide.windows)
        )
        yield Check("law", name, wide.size, wide.batch, len(wide.windows), law, c.tolerance)
        yield _crops_check(c, name, wide, cells[-len(wide.crops) :])


def _crops_check(c: Comparison, name: str, wide: Wide, cells: Sequence[Array]) -> Check:
    """How far cells agree with the original on their crops."""
    tolerance, why = c.tolerance if c.exact[name] else None, ""
    if tolerance is None and name in c.answers:
        why = c.answers[name].reason
    wanted = [crop[name] for crop in wide.crops]
    errors = [shaped_difference(cell, want, c.scale_of(name, wide)) for cell, want in zip(cells, wanted)]
    scores = all(want.ndim == 2 and want.shape[1] > 1 for want in wanted) and name in c.outputs
    same = [np.array_equal(_best(cell, want), _best(want, want)) for cell, want in zip(cells, wanted)] if scores else []
    return Check(
        "crops", name, wide.size, wide.batch, len(errors), max(errors), tolerance, why,
        median=float(np.median(errors)), top1=float(np.mean(same)) if scores else None,
    )  # fmt: skip


def _best(scores: Array, like: Array) -> Array:
    """The class with the largest score."""
    best: Array = scores.reshape(like.shape).argmax(axis=1)
    return best


def _spelled(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


def _cell(fact: Lifted, answer: Array, at: Sequence[int], cut: Cut) -> Array:
    """The original tensor at one window of the cut."""
    ratios = ratios_of(fact, cut)
    by_image = {a.image: p // r for a, p, r in zip(cut.fact.space, at, ratios)}
    return original_at(fact, answer, [by_image.get(a.image, 0) for a in fact.space])
