"""Runs both models: the original on images, crops and windows, the converted one on the same images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.checking.cases import (
    BATCHES,
    amplify,
    batches_of,
    cell_at,
    crop_feeds,
    has_crop,
    own_scale,
    random_feeds,
    sample_cells,
    shake,
    takes_batches,
)
from onnx_fcn.checking.comparison import Answers, Case, Comparison, LargerImage, Run
from onnx_fcn.errors import ModelError, ValidationError
from onnx_fcn.lifting.windows import batch_axis, original_at, window_of
from onnx_fcn.model.graphs import data_inputs
from onnx_fcn.model.sessions import dtype_of, extract, session, with_outputs
from onnx_fcn.tables import size_text
from onnx_fcn.walk.cut import Cut

__all__ = ["ask_cells", "ask_converted", "ask_crops", "ask_head", "ask_original", "head_in_batches", "original_runner"]


#: Budgets, in multiply-accumulates, for crops that need not agree: if trunks differ, so that maps are compared on them,
#: and if they are the same. Then the maps of one crop show that the trunk treats all places alike.
CROPS_BUDGET, SPARE_BUDGET = 12e9, 5e8

#: Crops of a long image whose feature maps are compared if the answers of crops need not agree.
FAR_CROPS = 2


def ask_original(c: Comparison, cases: list[Case], ask: Callable[[Case], None]) -> None:
    """Ask the original at the native size; batches that it does not run are dropped."""
    for case in list(cases):
        c.progress(f"original at the native size, batch {case.batch}")
        try:
            ask(case)
        except ModelError:
            if case is cases[0] or case.note:
                raise
            cases.remove(case)  # another batch is built into the graph


def original_runner(c: Comparison, trunk: Cut | None = None) -> Callable[[Case], None]:
    """A function that asks the file as it was given.

    For tensors that are not among its outputs it asks the network in the file that was lifted.
    """
    file, closed = c.given.file, c.given.logits
    inner = [*c.hidden, *closed, *closed.values(), *([trunk.name] if trunk is not None else [])]
    outputs = {o.name for o in file.proto.graph.output}
    inner += [name for name in c.names if name not in outputs]  # tensors that were asked for
    inner = list(dict.fromkeys(inner))
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


def ask_crops(
    c: Comparison, wide: LargerImage, inner: Case, ask: Callable[[Case], None], *, shared: bool = False
) -> None:
    """Ask the original on crops of a larger image: on all crops if they decide, otherwise on as many as affordable.

    The answers on the last crop of a wide image, `inner`, are known. With `shared`, both models have the same trunk.
    """
    budget = SPARE_BUDGET if shared else CROPS_BUDGET
    affordable = 1 if c.macs is None else max(1, int(budget / max(c.macs, 1)))
    known = wide.inner is not None
    if not any(c.exact.values()):
        crops = affordable if known else min(affordable, FAR_CROPS) if wide.trunk is not None else 0
    else:
        crops = len(wide.positions)
    others = wide.positions[max(0, len(wide.positions) - crops) : len(wide.positions) - known]
    others = [p for p in others if has_crop(c, wide, p)]
    for k, position in enumerate(others):
        c.progress(f"crops at {size_text(wide.size)}: {k + 1} of {len(others)}")
        wide.crops.append(Case(c.walk.image.size, wide.batch, crop_feeds(c, wide, position)))
        ask(wide.crops[-1])
    wide.crops += [inner] if known else []


def ask_head(c: Comparison, larger: Sequence[LargerImage]) -> None:
    """Ask the original head on windows of feature maps, and on the same windows of the first map after a change."""
    fact, first = larger[0].cut.fact, larger[0]
    shakes = c.affine and first.map.dtype == np.float32
    asked = [(w.map, w) for w in larger] + ([(shake(c, first.map), first)] if shakes else [])
    windows = [(original_at(fact, m, p).astype(m.dtype), w.feeds) for m, w in asked for p in w.positions]
    c.progress(f"head on {len(windows)} windows")
    answers = iter(_run_head(c, first.cut, windows))
    for wide in larger:
        wide.windows = [next(answers) for _ in wide.positions]
    others = list(answers)
    for name in c.affine if shakes else ():
        c.scales[name] = own_scale([w[name] for w in first.windows], [w[name] for w in others])


def ask_cells(c: Comparison, wide: LargerImage) -> None:
    """Ask the original head on windows filled with one cell of the map, if some output answers for its cells.

    The mean and the maximum of equal cells are one cell, so the answer for such a window is that for its cell.
    """
    cut = wide.cut
    if not any(cells.reads == {cut.name} for cells in c.walk.unpooled.values()):
        return
    space, windows = cut.fact.space, []
    places = sample_cells([1 if a.image is None else n for a, n in zip(space, wide.map.shape[2:])], c.random)
    for place in places:
        cell = wide.map[(..., *(slice(None) if a.image is None else slice(p, p + 1) for a, p in zip(space, place)))]
        filled = np.broadcast_to(cell, (*cell.shape[:2], *(a.extent for a in space)))
        windows.append((original_at(cut.fact, filled, [0] * len(space)).astype(cell.dtype), wide.feeds))
    answers = _run_head(c, cut, windows)
    wide.cells = [({a.image: p for a, p in zip(space, place)}, found) for place, found in zip(places, answers)]


def _run_head(c: Comparison, cut: Cut, windows: Sequence[tuple[Array, Mapping[str, Array]]]) -> list[Answers]:
    """Run the original head on windows, each with its other inputs; in one batch if the batch is free.

    Where the converted head runs windows together, one by one: that they change nothing for each other has to show.
    """
    image, types = c.walk.image, {cut.name: windows[0][0].dtype}
    head = session(c.original, extract(c.original.proto, [cut.name, *c.inputs], c.of_head, types))
    axis = batch_axis(cut.fact)
    if takes_batches(c, cut) and axis is not None and c.walk.region is None:
        images = random_feeds(c, image.size, len(windows))  # a head may read its batch from the image
        with contextlib.suppress(ModelError):
            stack = np.concatenate([window for window, _ in windows], axis)
            answers = dict(zip(c.of_head, head({**images, cut.name: stack})))
            split = {n: np.split(answers[n], len(windows), batch_axis(f) or 0) for n, f in c.facts.items()}
            return [{n: split[n][k] for n in c.facts} for k in range(len(windows))]
    native = {image.name: random_feeds(c, image.size, batches_of(c)[0])[image.name]}
    return [dict(zip(c.of_head, head({**feeds, **native, cut.name: window}))) for window, feeds in windows]


def head_in_batches(c: Comparison, wide: LargerImage) -> Iterator[Case]:
    """Both heads on several windows at once, to show that no head mixes its batch.

    A head that runs on every window gets whole maps, and its last answers are taken.
    Yields nothing if the original's head does not run on a batch.

    Raises:
        ValidationError: if only the converted head does not.
    """
    cut, size = wide.cut, c.walk.image.size
    positions = [wide.positions[k % len(wide.positions)] for k in range(BATCHES)]
    at = [0] * len(positions[0]) if c.walk.region is None else wide.positions[-1]
    maps = [wide.map[window_of(cut.fact, p)] for p in positions] if c.walk.region is None else [wide.map] * BATCHES
    stack = np.concatenate(maps)
    case = Case(size, BATCHES, {}, "the head alone")
    if not c.rounds:
        stack, case.loud = amplify(stack, 0), True
        if stack.dtype.kind == "f" and c.walk.region is None:  # units that are off for all of them are on for others
            stack = np.concatenate([stack, -stack])
            case.batch = len(stack)
    windows = [original_at(cut.fact, stack[k : k + 1], at) for k in range(len(stack))]
    c.progress(f"heads, batch {case.batch}")
    try:
        head = session(c.original, extract(c.original.proto, [cut.name], c.of_head, {cut.name: stack.dtype}))
        case.expected = dict(zip(c.of_head, head({cut.name: np.concatenate(windows, batch_axis(cut.fact) or 0)})))
    except ModelError:  # another batch is built into the graph
        return
    outputs = [c.maps.get(n, n) for n in c.of_head]
    try:
        made = c.walk.renamed.get(cut.fact.map, cut.fact.map)
        head = session(c.converted, extract(c.converted.proto, [made], outputs, {made: stack.dtype}))
        case.got = _restore_batch(c, dict(zip(c.of_head, head({made: stack}))))
        if c.walk.region is not None:
            case.got |= {n: _only(case.got[n], cell_at(c.facts[n], cut, at)) for n in case.got if n in c.facts}
    except ModelError as error:
        raise ValidationError(f"the converted model fails on a batch of {case.batch}: {error}") from None
    yield case


def _only(answers: Array, cell: Sequence[int]) -> Array:
    """One cell of a map: (N, C, *grid) → (N, C, 1, …)."""
    index: list[Any] = [slice(p, p + 1) for p in cell]
    only: Array = answers[(..., *index)]
    return only


def ask_converted(c: Comparison, run: Run) -> None:
    """Ask the converted model for its answers, and for its maps of larger images if these are needed.

    Raises:
        ValidationError: if the converted model does not load or run.
        ModelError: if the original does not run either.
    """
    cases = [case for case in (*run.cases, *run.larger, *run.others) if c.limits.allow(case.size)]
    asked = [name for wide in run.larger for name in _maps_of(c, wide)]
    extras = [n for n in dict.fromkeys([*(c.maps.get(n, n) for n in c.names), *asked]) if n not in c.outputs]
    where = ""
    try:
        judge = session(c.converted, with_outputs(c.converted, extras if c.is_own_result else []))
        types = {i.name: dtype_of(i) for i in data_inputs(c.converted.proto.graph)}
        # Another tool may have removed the maps that outputs are computed from: the walk's result gives them then.
        maps = judge if c.is_own_result or not extras else session(c.lifted, with_outputs(c.lifted, extras))
        for case in cases:
            where = f" at {size_text(case.size)}"
            c.progress(f"converted model{where}, batch {case.batch}")
            judged = judge({name: values.astype(types[name], copy=False) for name, values in case.feeds.items()})
            answers = dict(zip([*c.outputs, *extras], judged if maps is judge else maps(case.feeds)))
            answers |= zip(c.outputs, judged)
            if isinstance(case, LargerImage):
                named = _maps_of(c, case)
                case.map = case.map if case.has_map else answers[named[0]]
                _check_window(case, where)
                case.found = None if case.trunk is None else answers[_name_of(c, case.trunk)]
                case.seen = None if case.attended is None else answers[_name_of(c, case.attended)]
            case.formed = {name: answers[name] for name in c.walk.formed}
            case.got = _restore_batch(c, {name: answers[c.maps.get(name, name)] for name in c.names})
    except ModelError as error:
        original_runner(c)(run.cases[0])  # raises ModelError if the original does not run either
        raise ValidationError(f"the converted model fails{where}: {error}") from None


def _check_window(wide: LargerImage, where: str) -> None:
    """Raises ValidationError if the map of a larger image has no window, as that of a network with other strides."""
    if any(n < 1 for n in wide.grid):
        cells, window = (size_text(n) for n in (wide.map.shape[2:], [a.extent for a in wide.cut.fact.space]))
        raise ValidationError(
            f"the converted model is not the same network: its feature map{where} has {cells} cells, and one window "
            f"of '{wide.cut.name}' takes {window}"
        )


def _maps_of(c: Comparison, wide: LargerImage) -> list[str]:
    """Tensors of the converted model that a larger image needs: maps of the cut, of the trunk, and after attention."""
    maps = [None if wide.has_map else wide.cut, wide.trunk, wide.attended]
    return [_name_of(c, found) for found in maps if found is not None]


def _name_of(c: Comparison, found: Cut) -> str:
    return c.walk.renamed.get(found.fact.map, found.fact.map)


def _restore_batch(c: Comparison, answers: Answers) -> Answers:
    """The answers with (1, C, 1, N·grid) restored to (N, C, *grid), if the batch was folded around the head."""
    shape = next((list(answers[n].shape) for n in c.facts if n not in c.hidden and answers[n].ndim > 2), [])
    for name, fact in c.hidden.items():
        if fact.folded:
            grid = [1] * len(fact.space) if c.walk.keeps_size else shape[2:]  # in the original's shapes there is none
            answers[name] = np.moveaxis(answers[name].reshape(fact.width, -1, *grid), 0, 1)
    return answers
