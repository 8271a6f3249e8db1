"""onnxruntime against the original: is it the same network?

Questions, of which all decide but the third, where something pads:

    native    at the native size, is the answer that of the file as it was given?
    law       on larger images, is every cell the original head on its window of the feature map?
    crops     on larger images, is every cell the original network on its crop of the image?
    trunk     on larger images, are cells of the feature map that no padding reaches those of the original on a crop?
    phases    where operators dilate instead of striding, is each phase of the map that of the original's trunk?
    grid      on images with pixels left over, are there as many answers as was said?
    form      where the answers are more than the map, is that what they were to be?
    metadata  does the file say of its answers what the walk of the original does?

The law holds for every network. That cells are crops holds only where nothing pads and nothing sees the whole image: a
crop sees zeros beyond its border where the large image has pixels. So crops are measured always, and decide only then.

Outputs that saturate (a softmax is 0 or 1 for most inputs) would hide faults, so what enters them is compared too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import NodeProto

from onnx_fcn.agreement import (
    Scale,
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
    LEAST_BOUNDED,
    Answers,
    Case,
    Comparison,
    Wide,
    batches_of,
    cropped,
    fed_cut,
    has_crop,
    largest_of,
    long_case,
    louder,
    native_cases,
    offsets_of,
    own_scale,
    period_of,
    positions_of,
    random_feeds,
    ratios_of,
    sampled,
    shaken,
    takes_batches,
    uneven_case,
    wide_case,
)
from onnx_fcn.checks import Check, Validation
from onnx_fcn.claims import claims_of, false_claims
from onnx_fcn.document import nodes_within
from onnx_fcn.errors import ModelError, ValidationError
from onnx_fcn.geometry import interpolated
from onnx_fcn.interpret import EVALUATION, RANDOM
from onnx_fcn.known import Array
from onnx_fcn.lifted import Lifted
from onnx_fcn.lifting import Cut
from onnx_fcn.placement import geometry_of, sliding
from onnx_fcn.reference import fits, interior, interior_map, reference_map, same_trunk, trunk_of
from onnx_fcn.sessions import extract, session, with_outputs
from onnx_fcn.sizes import remainders

__all__ = ["Check", "Comparison", "Validation", "run_checks"]

#: Multiply-accumulates that crops may take which need not agree: enough to see by how much they do not.
CROPS_BUDGET = 12e9

#: Multiply-accumulates of a native image up to which another one is run that only counts the answers.
UNEVEN_BUDGET = 1e9

#: Crops of a long image whose maps are compared where those of the answers need not agree.
FAR_CROPS = 2


def run_checks(comparison: Comparison, data: Mapping[str, Array] | None = None) -> Validation:
    """Compare two models on random images, and on the user's own.

    One model is open at a time, so that the weights of one only are mapped. What both share needs no second run: where
    the trunk is node for node and byte for byte the original's, its map of a larger image is taken from the
    converted model, and only the head is run in batches.

    Raises:
        ModelError: onnxruntime cannot run the original, or it answers something else every time.
        ValidationError: onnxruntime cannot run the converted model.
    """
    for deviation in DEVIATIONS:
        comparison.deviation = deviation
        run = _compared(comparison, data)
        if not all(check.passed for check in run.checks):
            _check_repeatable(comparison, run.cases[0])
            break
        if _tell_apart(comparison, run):
            break
    return Validation(tuple(run.checks), tuple(run.uncovered))


@dataclass
class Run:
    """Images of one deviation, what was compared on them, and what was not, in sentences."""

    cases: list[Case] = field(default_factory=list)
    wides: list[Wide] = field(default_factory=list)
    others: list[Case] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)


def _compared(c: Comparison, data: Mapping[str, Array] | None) -> Run:
    """All that is compared on random images of one deviation."""
    cut = fed_cut(c)
    shared = cut is not None and c.is_ours and same_trunk(c, cut)
    batched = cut is not None and c.is_ours and takes_batches(c, cut)
    run = Run()
    _enlarge(c, cut, data, run, shared=shared)
    wide = run.wides[0] if run.wides else None
    batches = batches_of(c)[:1] if shared and batched else batches_of(c)
    run.cases = native_cases(c, data, wide, batches, negated=not batched)
    _ask_converted(c, run)
    heads = run.wides if c.state.has_head else []
    for each in heads:
        each.positions = positions_of(c, each)
    ask = _original(c, None if wide is None else wide.trunk)
    _ask_original(c, run.cases, ask)
    for each in heads:
        _ask_crops(c, each, run.cases[0], ask)
    if heads:
        _ask_head(c, heads)
    if heads and batched:
        run.cases += _head_in_batches(c, heads[0])
    _scale_single(c, run)
    run.checks = list(_all_checks(c, run))
    return run


def _all_checks(c: Comparison, run: Run) -> Iterator[Check]:
    for case in run.cases:
        yield from _native_checks(c, case)
    for case in (*run.cases, *run.wides, *run.others):
        yield from _form_checks(c, case)
    has_head = c.state.has_head
    for wide in run.wides:
        if has_head:
            yield from _wide_checks(c, wide)
            yield from _trunk_checks(c, wide)
    for wide in run.wides[:1]:
        yield from _phase_checks(c, wide)
    for case in (*run.wides, *run.others):
        yield from _grid_checks(c, case)
    yield from _metadata_checks(c)


def _enlarge(c: Comparison, cut: Cut | None, data: Mapping[str, Array] | None, run: Run, *, shared: bool) -> None:
    """Larger images: a wide one, a long one, one that is hardly larger; with the original's map where that is known.

    Where the original's trunk means something else on an image with pixels left over, the wide one has none.
    """
    if c.keeps_size:
        return
    for_wide, for_long, for_uneven = remainders(period_of(c, cut), 3, c.random)
    costly = c.macs is not None and c.macs > UNEVEN_BUDGET
    if cut is not None:
        wide = wide_case(c, cut, for_wide, data)
        if not shared and not _find_map(c, wide):
            even = wide_case(c, cut, [0] * len(for_wide), data)
            if even.size != wide.size and _find_map(c, even):
                wide, costly = even, False
        long = long_case(c, cut, for_long)
        if long is not None and not shared:
            _find_map(c, long)
        run.wides = [w for w in (wide, long) if w is not None]
        trunk = interior_map(c.state, cut) if c.is_ours and not all(c.exact.values()) else None
        for each in run.wides:
            each.trunk = trunk
        if all(n < m + p for n, m, p in zip(wide.size, c.state.image.size, period_of(c, cut))):
            pixels = "×".join(map(str, period_of(c, cut)))
            run.uncovered.append(f"images with a second window along each axis, which begins {pixels} pixels on")
        if long is None:
            run.uncovered.append("images much longer than the native size, which would take too long")
    if not costly:
        run.others = [uneven_case(c, for_uneven)]


def _find_map(c: Comparison, wide: Wide) -> bool:
    """Take the feature map of a larger image from the original's trunk, if that means the same there."""
    c.progress(f"feature map at {_spelled(wide.size)}")
    found = reference_map(c, wide.cut, wide.feeds)
    if found is not None:
        wide.map, wide.has_map = found, True
    return wide.has_map


def _check_repeatable(c: Comparison, case: Case) -> None:
    """Raises: ModelError, if the original itself answers something else when it is asked again."""
    run = session(c.given.file)
    apart = max(difference(a, b) for a, b in zip(run(case.feeds), run(case.feeds)))
    if apart > c.tolerance:
        nodes = [f"{n.op_type} '{n.name or n.output[0]}'" for n in _random_nodes(c.given.file.proto.graph.node)]
        whose = f" ({', '.join(nodes[:3])})" if nodes else ""
        raise ModelError(f"the model is random{whose}: on one image two runs differ by {apart:.2g}; {EVALUATION}")


def _random_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes that may answer something else every time, in subgraphs too."""
    for node in (inner for outer in nodes for inner in (outer, *nodes_within(outer))):
        if node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) == 3 and node.input[2]):
            yield node


def _tell_apart(c: Comparison, run: Run) -> bool:
    """Do answers differ between windows, or images, by more than is allowed? Else a fault might not show."""
    found = run.wides[0].windows if run.wides and run.wides[0].windows else [case.expected for case in run.cases]
    pairs = [(each[name], found[0][name]) for each in found[1:] for name in found[0] if name in each]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape]
    return not pairs or any(difference(a, b) > c.tolerance for a, b in pairs)


def _phase_checks(c: Comparison, wide: Wide) -> Iterator[Check]:
    """Is each phase of a dilated map the original's map of the shifted image?

    Phase 0 is, everywhere. The others are where no padding is seen: shifting moves the border of the image.
    """
    cut, image = wide.cut, c.state.image
    rates = [axis.rate for axis in cut.fact.space]
    if max(rates, default=1) == 1 or cut.name == image.name or not fits(c.state, cut, wide.size):
        return
    try:
        trunk = session(c.original, trunk_of(c, cut))
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
            inside = interior(cut.fact, ends, phase, have.shape[2:])
            have, want = (m.transpose(*range(2, m.ndim), 0, 1)[inside] for m in (have, want))
        if want.size:
            cells = want.size // (want.shape[1] * want.shape[0]) if not any(phase) else len(want)
            yield Check(
                "phases", cut.name, wide.size, wide.batch, cells, difference(have, want), c.tolerance,
                f"phase {_spelled(phase)}",
            )  # fmt: skip


def _grid_checks(c: Comparison, case: Case) -> Iterator[Check]:
    """On an image with pixels behind the last window, is the number of answers what it is said to be?

    Padding at the far end, and sizes that are rounded up, show there alone.
    """
    for name, said in c.answers.items():
        fact, shape = c.state.results[name], case.got[name].shape
        counts = {a.image: count(case.size[a.image or 0]) for a, count in zip(sliding(fact), said.count)}
        cells: list[int | None] = [None, None, *(counts.get(a.image, 1) for a in fact.space)]
        if fact.is_live:
            cells = [cells[k] for k in fact.order]
        have = tuple(n for n, cell in zip(shape, cells) if cell is not None)
        want = tuple(cell for cell in cells if cell is not None)
        agrees = have == want and len(shape) == len(cells)
        note = "" if agrees else f"is a grid of {have} where {want} was said"
        yield Check("grid", name, case.size, case.batch, 1, 0.0 if agrees else np.inf, c.tolerance, note)


def _metadata_checks(c: Comparison) -> Iterator[Check]:
    """Is all that the judged file's metadata say of its answers so? Nothing where they say nothing."""
    claims, geometry = claims_of(c.converted.proto), geometry_of(c.state)
    if not claims:
        return
    wrong = list(false_claims(claims, geometry))
    for subject, sentence in wrong:
        yield Check("metadata", subject, (), 1, 1, np.inf, c.tolerance, sentence)
    if not wrong:
        yield Check("metadata", geometry.image, (), 1, len(geometry.outputs), 0.0, c.tolerance)


def _ask_original(c: Comparison, cases: list[Case], ask: Callable[[Case], None]) -> None:
    """The original's answers at the native size; batches that it does not run are dropped."""
    for case in list(cases):
        c.progress(f"original at the native size, batch {case.batch}")
        try:
            ask(case)
        except ModelError:
            if case is cases[0] or case.note:
                raise
            cases.remove(case)  # the graph bakes another batch


def _original(c: Comparison, trunk: Cut | None = None) -> Callable[[Case], None]:
    """What asks the file as it was given; for what is not among its outputs, the network in it that was lifted."""
    file, closed = c.given.file, c.given.logits
    inner = list(dict.fromkeys([*c.hidden, *closed, *closed.values(), *([trunk.name] if trunk is not None else [])]))
    untouched = file is c.original
    names = [o.name for o in file.proto.graph.output] + (inner if untouched else [])
    run = session(file, with_outputs(file, inner) if untouched else None)
    within = None
    if inner and not untouched:
        within = session(c.original, extract(c.original.proto, list(c.inputs), inner))

    def ask(case: Case) -> None:
        answers = dict(zip(names, run(case.feeds)))
        case.probabilities = {name: answers[name] for name in closed}
        if within is not None:
            answers |= zip(inner, within(case.feeds))
        case.expected = {name: answers[name] for name in c.names}
        case.logits = {name: answers[tensor] for name, tensor in closed.items()}
        case.within = None if trunk is None else answers[trunk.name]

    return ask


def _ask_crops(c: Comparison, wide: Wide, inner: Case, ask: Callable[[Case], None]) -> None:
    """The original on crops of a larger image: on all where they decide; the last of a wide one's is known."""
    affordable = 1 if c.macs is None else max(1, int(CROPS_BUDGET / max(c.macs, 1)))
    known = wide.inner is not None
    if not any(c.exact.values()):
        crops = affordable if known else min(affordable, FAR_CROPS) if wide.trunk is not None else 0
    else:
        crops = len(wide.positions)
    others = wide.positions[max(0, len(wide.positions) - crops) : len(wide.positions) - known]
    others = [p for p in others if has_crop(c, wide, p)]
    for k, position in enumerate(others):
        c.progress(f"crops at {_spelled(wide.size)}: {k + 1} of {len(others)}")
        wide.crops.append(Case(c.state.image.size, wide.batch, cropped(c, wide, position)))
        ask(wide.crops[-1])
    wide.crops += [inner] if known else []


def _ask_head(c: Comparison, wides: Sequence[Wide]) -> None:
    """The original head's answers for windows of feature maps, and what a change of the first map makes of them."""
    fact, first = wides[0].cut.fact, wides[0]
    shakes = c.affine and first.map.dtype == np.float32
    asked = [(w.map, w) for w in wides] + ([(shaken(c, first.map), first)] if shakes else [])
    windows = [(original_at(fact, m, p).astype(m.dtype), w.feeds) for m, w in asked for p in w.positions]
    c.progress(f"head on {len(windows)} windows")
    answers = iter(_head_on(c, first.cut, windows))
    for wide in wides:
        wide.windows = [next(answers) for _ in wide.positions]
    others = list(answers)
    for name in c.affine if shakes else ():
        c.scales[name] = own_scale([w[name] for w in first.windows], [w[name] for w in others])


def _scale_single(c: Comparison, run: Run) -> None:
    """An answer of one number has no others of its image beside it that tell its size: those for other images do.

    Else one that is next to zero by chance would have to be right to more digits than its terms have.
    """
    quiet = [case for case in run.cases if not case.loud]
    for name in c.names:
        if all(case.expected[name].size == case.batch for case in quiet):
            answers = [case.expected for case in quiet] + [window for wide in run.wides for window in wide.windows]
            scale = c.scales.get(name, Scale())
            usual = float(np.median([largest_of(each[name]) for each in answers]))
            c.scales[name] = replace(scale, least=max(scale.least, usual))


def _head_on(c: Comparison, cut: Cut, windows: Sequence[tuple[Array, Mapping[str, Array]]]) -> list[Answers]:
    """The original head's answers for windows, each with its other inputs; all at once where the batch is free."""
    image, types = c.state.image, {cut.name: windows[0][0].dtype}
    head = session(c.original, extract(c.original.proto, [cut.name, *c.inputs], c.names, types))
    axis = batch_axis(cut.fact)
    if takes_batches(c, cut) and axis is not None:
        images = random_feeds(c, image.size, len(windows))  # a head may read its batch off the image
        with contextlib.suppress(ModelError):
            stack = np.concatenate([window for window, _ in windows], axis)
            answers = dict(zip(c.names, head({**images, cut.name: stack})))
            split = {n: np.split(answers[n], len(windows), batch_axis(f) or 0) for n, f in c.facts.items()}
            return [{n: split[n][k] for n in c.facts} for k in range(len(windows))]
    native = {image.name: random_feeds(c, image.size, batches_of(c)[0])[image.name]}
    return [dict(zip(c.names, head({**feeds, **native, cut.name: window}))) for window, feeds in windows]


def _head_in_batches(c: Comparison, wide: Wide) -> Iterator[Case]:
    """Both heads on several windows at once: no batch is mixed. None where the original's does not run so."""
    cut, size = wide.cut, c.state.image.size
    positions = [wide.positions[k % len(wide.positions)] for k in range(BATCHES)]
    stack = np.concatenate([wide.map[window_of(cut.fact, p)] for p in positions])
    case = Case(size, BATCHES, {}, "the head alone")
    if not c.rounds:
        stack, case.loud = louder(stack, 0), True
    first = [0] * len(positions[0])
    windows = [original_at(cut.fact, stack[k : k + 1], first) for k in range(len(stack))]
    c.progress(f"heads, batch {BATCHES}")
    try:
        head = session(c.original, extract(c.original.proto, [cut.name], c.names, {cut.name: stack.dtype}))
        case.expected = dict(zip(c.names, head({cut.name: np.concatenate(windows, batch_axis(cut.fact) or 0)})))
    except ModelError:  # the graph bakes another batch
        return
    outputs = [c.maps.get(n, n) for n in c.names]
    try:
        head = session(c.converted, extract(c.converted.proto, [cut.fact.map], outputs, {cut.fact.map: stack.dtype}))
        case.got = _unfolded(c, dict(zip(c.names, head({cut.fact.map: stack}))))
    except ModelError as error:
        raise ValidationError(f"the converted model fails on a batch of {BATCHES}: {error}") from None
    yield case


def _ask_converted(c: Comparison, run: Run) -> None:
    """The converted model's answers, and its maps of larger images where these are asked for.

    Raises:
        ValidationError: it does not load or run.
        ModelError: the original does not run either.
    """
    cases = [*run.cases, *run.wides, *run.others]
    asked = [name for wide in run.wides for name in _maps_of(c, wide)]
    extras = [n for n in dict.fromkeys([*c.maps.values(), *asked]) if n not in c.outputs]
    where = ""
    try:
        judge = session(c.converted, with_outputs(c.converted, extras if c.is_ours else []))
        # the maps behind another tool's outputs may be gone: they are ours then, and its outputs are made of these
        maps = judge if c.is_ours or not extras else session(c.lifted, with_outputs(c.lifted, extras))
        for case in cases:
            where = f" at {_spelled(case.size)}"
            c.progress(f"converted model{where}, batch {case.batch}")
            judged = judge(case.feeds)
            answers = dict(zip([*c.outputs, *extras], judged if maps is judge else maps(case.feeds)))
            answers |= zip(c.outputs, judged)
            if isinstance(case, Wide):
                named = _maps_of(c, case)
                case.map = case.map if case.has_map else answers[named[0]]
                case.found = None if case.trunk is None else answers[named[-1]]
            case.finals = {name: answers[name] for name in c.state.finals}
            case.got = _unfolded(c, {name: answers[c.maps.get(name, name)] for name in c.names})
    except ModelError as error:
        _original(c)(run.cases[0])  # which may be the one that does not run
        raise ValidationError(f"the converted model fails{where}: {error}") from None


def _maps_of(c: Comparison, wide: Wide) -> list[str]:
    """Tensors of the converted model that are wanted of a larger image: the cut, and that of the trunk."""
    facts = [*([] if wide.has_map else [wide.cut.fact]), *([wide.trunk.fact] if wide.trunk is not None else [])]
    return [c.state.renamed.get(f.map, f.map) for f in facts]


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
        if have.size != want.size or (fact is None and have.shape != want.shape):
            error, note = np.inf, f"has shape {case.got[name].shape} where the original has {want.shape}"
        else:
            error = difference(have.reshape(want.shape), want, c.scale_of(name, case))
            note = "; ".join(filter(None, (note, unusual(have.reshape(want.shape), want))))
        yield Check("native", name, case.size, case.batch, want.size, error, c.tolerance, note)
    for name, want in case.probabilities.items():
        logits = case.logits[name]
        tensor = c.given.logits[name]
        closing = extract(c.given.whole.proto, [tensor], [name], {tensor: logits.dtype})
        (have,) = session(c.given.whole, closing)({tensor: logits})
        error, note = difference(have, want, Scale(LEAST_BOUNDED)), "what was left out behind it"
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
        said = _grid_at(fact, wide.size)  # more than whole windows where an output leaves cells of its window unread
        if answer.shape[1:] != (fact.width, *said) or any(n < windows for n, windows in zip(said, grid)):
            note = f"has shape {answer.shape} where there are {grid} windows with {fact.width} channels"
            yield Check("law", name, wide.size, wide.batch, 0, np.inf, c.tolerance, note)
            continue
        cells = [_cell(fact, answer, at, cut) for at in wide.positions]
        scale = c.scale_of(name, wide)
        law = max(shaped_difference(cell, want[name], scale) for cell, want in zip(cells, wide.windows))
        yield Check("law", name, wide.size, wide.batch, len(wide.windows), law, c.tolerance)
        if wide.crops and (wide.inner is not None or c.exact[name]):
            yield _crops_check(c, name, wide, _of_crops(wide, cells))


def _of_crops(wide: Wide, of_positions: Sequence[Any]) -> Sequence[Any]:
    """Of what there is for each position, that of those with a crop."""
    return of_positions[len(of_positions) - len(wide.crops) :]


def _trunk_checks(c: Comparison, wide: Wide) -> Iterator[Check]:
    """Are cells of a map of the trunk that see no padding the original's on a crop, which knows no other size?"""
    if wide.trunk is None or wide.found is None or not wide.crops:
        return
    fact, size = wide.trunk.fact, c.state.image.size
    inside, errors, cells = interior(fact, size), [], 0
    for position, crop in zip(_of_crops(wide, wide.positions), wide.crops):
        want = None if crop.within is None else as_physical(fact, crop.within)
        if want is None:
            continue
        offsets = offsets_of(wide, position)
        starts = [int(offsets.get(a.image, 0) / a.stride) for a in fact.space]
        slices: list[Any] = [slice(s, s + a.extent, a.rate) for s, a in zip(starts, fact.space)]
        have = wide.found[(..., *slices)]
        if have.shape != want.shape:
            errors.append(float("inf"))
            continue
        have, want = (m.transpose(*range(2, m.ndim), 0, 1)[inside] for m in (have, want))
        errors.append(difference(have, want))
        cells += len(want)
    if errors:
        yield Check("trunk", wide.trunk.name, wide.size, wide.batch, cells, max(errors), c.tolerance)


def _crops_check(c: Comparison, name: str, wide: Wide, cells: Sequence[Array]) -> Check:
    """How far cells agree with the original on their crops."""
    tolerance, why = c.tolerance if c.exact[name] else None, ""
    if tolerance is None and name in c.answers:
        why = c.answers[name].reason
    wanted = [crop.expected[name] for crop in wide.crops]
    scale = c.scale_of(name, wide)
    errors = [shaped_difference(cell, want, scale) for cell, want in zip(cells, wanted)]
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
