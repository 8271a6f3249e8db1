"""Does a file with another head answer the layer on the original's features? onnxruntime runs both.

    native   at the native size, on features that the file gives as it was given
    larger   on larger images, on features that the original's trunk gives there
    head     on larger images, if the layer is behind the cut, on features of the original's head on windows of the cut
    crops    on larger images, on features that the original gives for crops of the native size

Everything but the features is computed by numpy, in double precision. Crops are compared where no padding is seen, as
the larger image has pixels there. If operators dilate, the original has one phase of a map only: that is compared with
the map of the plain conversion, which is validated on its own, and the layer is computed on the latter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.checking.cases import (
    batches_of,
    fed_cut,
    native_cases,
    offsets_of,
    period_of,
    positions_of,
    sample_cells,
    size_in,
    uneven_case,
    wide_case,
)
from onnx_fcn.checking.checks import NONE_LARGER, Check, Validation
from onnx_fcn.checking.comparison import Case, Comparison, LargerImage
from onnx_fcn.checking.judging import form_difference, metadata_checks
from onnx_fcn.checking.reference import interior, reference_map
from onnx_fcn.checking.sizes import remainders
from onnx_fcn.errors import ModelError, ValidationError
from onnx_fcn.geometry import interpolate
from onnx_fcn.lifting.lifted import Axis, Lifted
from onnx_fcn.lifting.program import Walk
from onnx_fcn.lifting.windows import original_at, physical_of, windows_of
from onnx_fcn.model.agreement import Scale, difference
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import data_inputs
from onnx_fcn.model.metadata import trained_in
from onnx_fcn.model.sessions import dtype_of, extract, session, with_outputs
from onnx_fcn.tables import size_text
from onnx_fcn.walk.cut import Cut
from onnx_fcn.walk.fields import geometry_of, sliding
from onnx_fcn.walk.heads import Head, finest_of, map_at, middles_of

__all__ = ["head_in", "prove_head"]


#: Images, beside the native ones: their remainders are spread over a period.
IMAGES = 3


def prove_head(
    c: Comparison, fitted: Walk, head: Head, judged: Document, data: Mapping[str, Array] | None = None
) -> Validation:
    """Compare a file with another head with that layer on the features of the original.

    Args:
        c: the original beside its plain conversion.
        fitted: the walk of the original with the head.
        head: the layer.
        judged: the file.
        data: further images of the native size; the only ones, of any size, for a file that was calibrated.

    Raises:
        ModelError: if onnxruntime cannot run the original.
        ValidationError: if it cannot run the file.
    """
    proof, only = _Proof(c, fitted, head, judged), data if c.is_calibrated else None
    checks, uncovered = [*proof.native(data)], tuple[str, ...]()
    if only is not None and size_in(c, only) == c.walk.image.size:
        uncovered = (NONE_LARGER,)
    elif not c.walk.keeps_size:
        checks += proof.larger(only)
    return Validation((*checks, *metadata_checks(judged.proto, geometry_of(fitted), c.tolerance)), uncovered)


def head_in(document: Document) -> Head | None:
    """The trained head of a file, with its weights; None if it has none.

    Raises:
        ModelError: if the metadata name nodes or weights that the file does not have.
    """
    trained = trained_in(document.proto)
    if trained is None:
        return None
    nodes = {node.name: node for node in document.proto.graph.node}
    weights = {t.name: t for t in document.proto.graph.initializer}
    kernels, bias = [], None
    for name in trained.nodes:
        inputs = list(nodes[name].input) if name in nodes and nodes[name].op_type == "Conv" else []
        if not 2 <= len(inputs) <= 3 or not weights.keys() >= set(inputs[1:]):
            raise ModelError(
                f"the metadata name '{name}' as a trained layer, but the file has no such Conv: compare the file as "
                "fit wrote it, before another tool renames its nodes"
            )
        values = [document.array(weights[n]).astype(np.float64) for n in inputs[1:]]
        kernels.append(values[0])
        bias = values[1] if len(values) > 1 else bias
    if bias is None:
        raise ModelError("the trained layer has no bias: fit the model again")
    if any(k.ndim < 3 or len(k) != len(bias) for k in kernels) or bias.ndim != 1:
        raise ModelError("the weights of the trained layer do not fit each other: fit the model again")
    return Head(trained.output, trained.tensors, tuple(kernels), bias)


def _layer_of(head: Head, facts: Sequence[Lifted], native: Sequence[int], maps: Sequence[Array]) -> Array:
    """The layer on the lifted maps (N, C, *space) of one image: (N, K, *cells of the finest)."""
    finest = finest_of(facts)
    parts = [_on_cells(x, kernel, m) for x, kernel, m in zip(facts, head.kernels, maps)]
    axes, cells = facts[finest].space, parts[finest].shape[2:]
    answers: Array = np.zeros(parts[finest].shape) + head.bias.reshape(-1, *[1] * len(cells))
    middles = [middles_of(x, native) for x in facts]
    for x, part, middle in zip(facts, parts, middles):
        places = []
        apart = [f - c for f, c in zip(middles[finest], middle)]
        for fine, own, distance, count, have in zip(axes, x.space, apart, cells, part.shape[2:]):
            first = float(distance / own.stride)
            places.append(np.clip(first + np.arange(count) * float(fine.stride / own.stride), 0, have - 1))
        answers += interpolate(part, places)
    return answers


def _on_cells(x: Lifted, kernel: Array, values: Array) -> Array:
    """A kernel at every cell, or over every window: (N, C, *space) → (N, K, *cells)."""
    kernel, values = kernel.astype(np.float64), values.astype(np.float64)
    rank = len(x.space)
    if kernel.shape[2:] != x.window or not x.is_live:
        return np.moveaxis(np.tensordot(kernel.reshape(len(kernel), -1), values, (1, 1)), 0, 1)
    axes = [1, *range(2 + rank, 2 + 2 * rank)]
    return np.moveaxis(np.tensordot(kernel, windows_of(x, values), (range(1, 2 + rank), axes)), 0, 1)


def _is_denser(axis: Axis, native: Sequence[int]) -> bool:
    """Has a map cells between those of the original along an axis, since operators dilate that strode?"""
    return axis.rate > 1 or (axis.image is not None and axis.count(native[axis.image]) > axis.extent)


class _Proof:
    """The comparison of one file, with the sessions that it needs."""

    def __init__(self, c: Comparison, fitted: Walk, head: Head, judged: Document) -> None:
        self.c, self.walk, self.head, self.judged = c, fitted, head, judged
        self.facts = [map_at(c.walk, n) for n in head.tensors]
        self.is_dilated = any(_is_denser(a, c.walk.image.size) for f in self.facts for a in f.space)
        self.formed = fitted.formed.get(head.output)
        self.fact = fitted.results[head.output]
        self.answers = geometry_of(fitted).of(head.output)
        map_name = fitted.renamed.get(self.fact.map, self.fact.map)
        self.types = {i.name: dtype_of(i) for i in data_inputs(judged.proto.graph)}
        self.asked = [head.output] if self.formed is None else [head.output, map_name]

    def native(self, data: Mapping[str, Array] | None) -> Iterator[Check]:
        """Images of the native size, in every batch that the original takes."""
        c, head = self.c, self.head
        made = {o for node in c.given.file.proto.graph.node for o in node.output}
        if made.issuperset(head.tensors):
            names = [o.name for o in c.given.file.proto.graph.output]
            run = session(c.given.file, with_outputs(c.given.file, [n for n in head.tensors if n not in names]))
            order = [*names, *(n for n in head.tensors if n not in names)]
        else:  # within a local function
            run, order = session(c.original, extract(c.original.proto, list(c.inputs), list(head.tensors))), []
        cases = native_cases(c, data, None, batches_of(c), negated=True)
        if c.is_calibrated and data is not None:  # the only images that are like those
            cases = cases[-1:] if size_in(c, data) == c.walk.image.size else []
        for case in cases:
            c.progress(f"original at the native size, batch {case.batch}")
            try:
                found = dict(zip(order or head.tensors, run(case.feeds)))
            except ModelError:
                if case is cases[0]:
                    raise
                continue  # another batch is built into the graph
            maps = [physical_of(f, found[n]) for f, n in zip(self.facts, head.tensors)]
            if self.is_dilated:
                plain, maps = maps, self._converted(case)
                yield from self._first_phases(case, maps, plain)
            yield from self._judge(case, self._want(maps))[0]

    def _converted(self, case: Case) -> list[Array]:
        """The maps of the plain conversion."""
        names = [self.c.walk.renamed.get(f.map, f.map) for f in self.facts]
        return session(self.c.lifted, extract(self.c.lifted.proto, list(self.c.inputs), names))(case.feeds)

    def _first_phases(self, case: Case, maps: Sequence[Array], plain: Sequence[Array]) -> Iterator[Check]:
        """Is the first phase of each dilated map the original's map?"""
        for name, fact, have, want in zip(self.head.tensors, self.facts, maps, plain):
            index: list[Any] = [slice(None, a.extent, a.rate) for a in fact.space]
            apart = difference(have[(..., *index)], want)
            yield Check("phases", name, case.size, case.batch, want.size, apart, self.c.tolerance)

    def larger(self, only: Mapping[str, Array] | None = None) -> Iterator[Check]:
        """Larger images, or `only` these: the layer on features of the original's trunk, and on those of its crops."""
        c, cut = self.c, fed_cut(self.c)
        if cut is None:
            return
        spread = remainders(period_of(c, cut), IMAGES, c.random)
        cases: list[Case] = [wide_case(c, cut, spread[0], only)]
        if only is None:
            cases += [wide_case(c, cut, spread[1], None), uneven_case(c, spread[2])]
        for case in cases:
            checks, got = self._judge(case, self._want_at(case))
            yield from checks
            if isinstance(case, LargerImage) and not self.is_dilated:
                yield from self._crops(case, got)
                if not self.fact.is_live:
                    yield from self._heads(case, cut, got)

    def _want(self, maps: Sequence[Array]) -> Array:
        """The layer on features, as the output lies: without axes that only make up the rank."""
        want = _layer_of(self.head, self.facts, self.c.walk.image.size, maps)
        finest = self.facts[finest_of(self.facts)]
        kept = [k for k, a in enumerate(finest.space) if a.image is not None]
        want = want[(slice(None), slice(None), *(slice(None) if k in kept else 0 for k in range(len(finest.space))))]
        order = sorted(range(len(kept)), key=lambda k: finest.space[kept[k]].image or 0)
        return want.transpose([0, 1, *(2 + k for k in order)])

    def _want_at(self, case: Case) -> Array | None:
        """The layer on a larger image; None if the original's trunk does not run there, or a map is behind the cut."""
        if self.is_dilated:
            return self._want(self._converted(case))
        maps = []
        for name, fact in zip(self.head.tensors, self.facts):
            found = reference_map(self.c, Cut(name, fact), case.feeds) if fact.is_live and fact.is_plain else None
            if found is None:
                return None
            maps.append(found)
        return self._want(maps)

    def _run(self, case: Case) -> tuple[Array, Array | None]:
        """The map that the file computes for an image, and what it answers if that is more than the map."""
        c, size = self.c, size_text(case.size)
        c.progress(f"trained model at {size}, batch {case.batch}")
        try:
            run = session(self.judged, with_outputs(self.judged, self.asked[1:]))
            answers = run({name: values.astype(self.types[name], copy=False) for name, values in case.feeds.items()})
        except ModelError as reason:
            raise ValidationError(f"the trained model fails at {size}: {reason}") from None
        return answers[-1], None if self.formed is None else answers[0]

    def _judge(self, case: Case, want: Array | None) -> tuple[list[Check], Array]:
        """The checks of one image, and the map of the file."""
        name, tolerance = self.head.output, self.c.tolerance
        have, formed = self._run(case)
        counts = tuple(a.count(case.size[a.image or 0]) for a in sliding(self.fact))
        agrees = have.shape[2:] == counts
        note = "" if agrees else f"is a grid of {have.shape[2:]} instead of {counts}"
        checks = [Check("grid", name, case.size, case.batch, 1, 0.0 if agrees else float("inf"), tolerance, note)]
        if want is not None:
            note = "" if have.shape == want.shape else f"has the shape {have.shape} instead of {want.shape}"
            cells, apart = want.size // (want.shape[0] * want.shape[1]), self._apart(have, want)
            checks.append(Check("fit", name, case.size, case.batch, cells, apart, tolerance, note))
        if self.formed is not None and formed is not None:
            form = self.formed.form
            apart = form_difference(form, have.astype(np.float64), formed, self.answers, case.size)
            checks.append(Check("form", name, case.size, case.batch, formed.size, apart, tolerance, form))
        return checks, have

    def _crops(self, wide: LargerImage, got: Array) -> Iterator[Check]:
        """Cells whose field has no padding, beside the layer on the original's features for the crop."""
        c, native, axes = self.c, self.c.walk.image.size, sliding(self.fact)
        inside = interior(self.fact, native, cells=[a.count(native[a.image or 0]) for a in axes])
        if not inside.any():
            return
        run = session(c.original, extract(c.original.proto, list(c.inputs), list(self.head.tensors)))
        periods = [int(a.window_stride) for a in axes]
        crops = sample_cells([(n - m) // p + 1 for n, m, p in zip(wide.size, native, periods)], c.random)
        errors = []
        for crop in crops:
            offsets = [n * p for n, p in zip(crop, periods)]
            index: list[slice] = [slice(None)] * len(c.walk.image.shape)
            for axis, offset, extent in zip(c.walk.image.space, offsets, native):
                index[axis] = slice(offset, offset + extent)
            image = np.ascontiguousarray(wide.feeds[c.walk.image.name][tuple(index)])
            found = run({**wide.feeds, c.walk.image.name: image})
            want = self._want([physical_of(f, v) for f, v in zip(self.facts, found)])
            have = self._part(got, offsets, want)
            errors.append(self._apart(*(np.moveaxis(m, (0, 1), (-2, -1))[inside] for m in (have, want))))
        compared, what = len(errors) * int(inside.sum()), f"{len(errors)} crops"
        yield Check("fit", self.head.output, wide.size, wide.batch, compared, max(errors), c.tolerance, what)

    def _heads(self, wide: LargerImage, cut: Cut, got: Array) -> Iterator[Check]:
        """Cells beside the layer on the features of the original's head on their windows of the cut."""
        c = self.c
        seen = reference_map(c, cut, wide.feeds)
        if seen is None:  # the original's trunk runs at no other size
            (seen,) = session(c.lifted, extract(c.lifted.proto, list(c.inputs), [cut.fact.map]))(wide.feeds)
        part = extract(c.original.proto, [cut.name, *c.inputs], list(self.head.tensors), {cut.name: seen.dtype})
        run, native = session(c.original, part), native_cases(c, None, None, [wide.batch], negated=False)[0].feeds
        wide.map, errors = seen, []
        for position in positions_of(c, wide):
            window = original_at(cut.fact, seen, position).astype(seen.dtype)
            found = run({**native, cut.name: window})
            want = self._want([physical_of(f, v) for f, v in zip(self.facts, found)])
            at = offsets_of(wide, position)
            errors.append(self._apart(self._part(got, [at.get(a.image, 0) for a in sliding(self.fact)], want), want))
        what = f"{len(errors)} windows"
        yield Check("fit", self.head.output, wide.size, wide.batch, len(errors), max(errors), c.tolerance, what)

    def _part(self, got: Array, offsets: Sequence[int], like: Array) -> Array:
        """The answers on a crop that begins at these pixels, among those of the whole image."""
        starts = [int(offset / a.stride) for offset, a in zip(offsets, sliding(self.fact))]
        index: list[Any] = [slice(s, s + n) for s, n in zip(starts, like.shape[2:])]
        part: Array = got[(..., *index)]
        return part

    def _apart(self, have: Array, want: Array) -> float:
        """How far answers are from the layer; sums of products are compared at the size of the bias at least."""
        if have.shape != want.shape:
            return float("inf")
        return difference(have, want.astype(have.dtype), Scale(float(np.abs(self.head.bias).max(initial=0.0))))
