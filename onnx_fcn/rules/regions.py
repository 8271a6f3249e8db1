"""The rule of a region: the operators after a map, unchanged, on every window of it.

It is not in the registry: a region is a node of a program only, so the walk calls it for the slot that covers one.

A Scan runs them on one window after another, or on a few together where they take any batch. It holds the values of
one step at a time, so memory does not grow with the number of windows. Weights stay where they are: a body reads
tensors of the surrounding graph by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto

from onnx_fcn._types import Array
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.facts import Fact, Shared
from onnx_fcn.lifting.layouts import CONVOLVED
from onnx_fcn.lifting.lifted import BATCH, Atom, Lifted, atoms_of
from onnx_fcn.lifting.regions import STEP, RegionOutput
from onnx_fcn.lifting.site import Site
from onnx_fcn.model.graphs import rename

__all__ = ["windows"]


def windows(site: Site, x: Lifted, *others: Shared) -> Sequence[Fact]:
    """Every window of a map through the original's own nodes, and the answers in their places.

    (N, C, *cells) → first cells (P, 1) of the windows → Scan: (N, C, *window) → (N, F) each → (P, N, F) → (N, F, *grid)

    If windows run together, B at a time, the Scan goes over (K, B, 1) first cells: (B·N, C, *window) → (B·N, F) each.
    """
    region = site.region
    x = x.spaced(region.stride)
    shape = site.emit([x.map], "Shape")
    cells = site.emit([shape, np.arange(2, 2 + len(x.space))], "Gather", axis=0)
    grid, strides = _grid(site, x, cells), _strides(site, x, cells)
    steps = _first_cells(site, x, grid, strides)
    if region.together > 1:
        batch, count = (site.slice(s, [0], [1], [0]) for s in (shape, site.emit([steps], "Shape")))
        steps = _in_steps(site, steps, count, region.together)
    body = _body(site, x, dict(zip(region.outside, others)), _offsets(site, x, strides))
    made = site.emit_many([steps], "Scan", outputs=len(region.outputs), body=body, num_scan_inputs=1)
    origins = site.record_reduction(x, contextable=False)
    answers = []
    for output, name in zip(region.outputs, made):
        if region.together > 1:
            name = _one_by_one(site, name, count, batch, output)
        answers.append(replace(_answer(site, x, output, name, grid), origins=origins))
    site.note("region", x, x.window, inputs=x.width, outputs=sum(y.width for y in answers))
    return answers


def _grid(site: Site, x: Lifted, cells: str) -> str:
    """The number of windows along each axis of the map, (A,): (cells - extent) // step + 1."""
    steps = np.array([a.step for a in x.space])
    room = site.emit([cells, np.array([a.extent for a in x.space]) - steps], "Sub")
    return room if max(steps) == 1 else site.emit([room, steps], "Div")


def _strides(site: Site, x: Lifted, cells: str) -> list[Operand]:
    """How many cells further the next one along each axis is, (1,) each, if the cells of the map are one row."""
    strides: list[Operand] = [np.ones(1, np.int64)]
    for k in reversed(range(1, len(x.space))):
        size = site.slice(cells, [k], [k + 1], [0])
        strides.insert(0, size if len(strides) == 1 else site.emit([size, strides[0]], "Mul"))
    return strides


def _first_cells(site: Site, x: Lifted, grid: str, strides: Sequence[Operand]) -> str:
    """The first cell of each window, (P, 1), as its number in the row of all cells."""
    ones = onnx.numpy_helper.from_array(np.ones(1, np.int64))
    places = site.emit([site.emit([grid], "ConstantOfShape", value=ones)], "NonZero")
    places = site.emit([places], "Transpose", perm=[1, 0])  # scan_input_axes=[1] crashes onnxruntime if there are none
    apart = strides[0] if len(strides) == 1 else site.emit(list(strides), "Concat", axis=0)
    steps = np.array([a.step for a in x.space])
    if max(steps) > 1:
        apart = site.emit([apart, steps], "Mul")
    return site.reduce(site.emit([places, apart], "Mul"), "ReduceSum", [1])


def _offsets(site: Site, x: Lifted, strides: Sequence[Operand]) -> str:
    """How many cells after its first one each cell of a window is, (window,)."""
    *coarser, last = (axis.rate * np.arange(axis.window) for axis in x.space)
    total: Operand = last
    for k, cells in reversed([*enumerate(coarser)]):
        along = cells.reshape([-1, *[1] * (len(coarser) - k)])
        total = site.emit([site.emit([along, strides[k]], "Mul"), total], "Add")
    return site.emit([total, np.array([-1])], "Reshape")


def _in_steps(site: Site, firsts: str, count: str, most: int) -> str:
    """(P, 1) → (K, B, 1) with the B ≤ `most` that costs least (`together_of`); the first cell fills the last step."""
    sizes = np.arange(1, most + 1)
    steps = site.emit([site.emit([count], "Cast", to=TensorProto.FLOAT), sizes.astype(np.float32)], "Div")
    costs = site.emit([site.emit([steps], "Ceil"), (sizes + STEP).astype(np.float32)], "Mul")
    together = site.emit([sizes, site.emit([costs], "ArgMin", axis=0)], "Gather", axis=0)
    missing = site.emit([site.emit([np.zeros(1, np.int64), count], "Sub"), together], "Mod")
    zeros = onnx.numpy_helper.from_array(np.zeros(1, np.int64))
    fill = site.emit([site.emit([missing, np.array([1])], "Concat", axis=0)], "ConstantOfShape", value=zeros)
    shape = site.emit([np.array([-1]), together, np.array([1])], "Concat", axis=0)
    return site.emit([site.emit([firsts, fill], "Concat", axis=0), shape], "Reshape")


def _one_by_one(site: Site, name: str, count: str, batch: str, output: RegionOutput) -> str:
    """(K, B·N, F) → (P, N, F), without the windows that filled the last step."""
    features = math.prod(d for k, d in enumerate(output.shape) if k != output.batch)
    target = site.emit([np.array([-1]), batch, np.array([features])], "Concat", axis=0)
    return site.emit([site.emit([name, target], "Reshape"), np.array([0]), count, np.array([0])], "Slice")


def _answer(site: Site, x: Lifted, output: RegionOutput, name: str, grid: str) -> Lifted:
    """(P, N, F) → (N, F, *grid)."""
    letters = (f"o{chr(39) * k}" for k in range(len(output.shape)))
    batch = (x.batch,) if x.batch.size > 1 else ()
    layout = tuple(batch if k == output.batch else atoms_of(d, next(letters)) for k, d in enumerate(output.shape))
    channels = tuple(a for group in layout for a in group if a is not x.batch)
    shape = site.emit([np.array([0, Atom.product(channels)]), grid], "Concat", axis=0)
    name = site.emit([site.emit([name], "Transpose", perm=[1, 2, 0]), shape], "Reshape")
    return Lifted(name, x.batch, channels, tuple(a.contracted() for a in x.space), layout, output.elem_type)


class _Body:
    """The body of a Scan under construction: nodes, and constants with names that are used nowhere else."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, op: str, *operands: str | Array, **attributes: Any) -> str:
        """Add a node with one output, and return its name."""
        names = [o if isinstance(o, str) else self.constant(o) for o in operands]
        made = self._site.fresh(f"{self._site.outputs[0]}/window/{op}")
        self.nodes.append(onnx.helper.make_node(op, names, [made], name=made, **attributes))
        return made

    def constant(self, value: Array) -> str:
        """Add a constant, and return its name."""
        name = self._site.fresh(f"{self._site.outputs[0]}/window/constant")
        self.constants.append(onnx.numpy_helper.from_array(value, name))
        return name


def _body(site: Site, x: Lifted, others: Mapping[str, Shared], offsets: str) -> GraphProto:
    """First cell of a window, (1,) → its answers, (N, F) each; (B, 1) → (B·N, F) where windows run together."""
    region, body = site.region, _Body(site)
    first = site.fresh(f"{site.outputs[0]}/window/first")
    row = site.emit([_held_back(site, x), np.array([0, 0, -1])], "Reshape")
    window = _window(body, x, row, body.add("Add", first, offsets), together=region.together > 1)
    names = {region.cut: _as_original(body, x, window)}
    names |= {name: _size(body, x, value, window) for name, value in region.sizes.items()}
    names |= {name: fact.name for name, fact in others.items()}
    names |= {name: site.fresh(f"{name}/window") for name in (*region.copied, *(o.name for o in region.outputs))}
    original = GraphProto(node=region.nodes)
    rename(original, {old: new for old, new in names.items() if old != new})
    body.nodes += original.node
    made = [_as_row(body, o, names[o.name]) for o in region.outputs]
    graph: GraphProto = onnx.helper.make_graph(
        body.nodes,
        "window",
        [onnx.helper.make_tensor_value_info(first, TensorProto.INT64, [None, 1] if region.together > 1 else [1])],
        [onnx.helper.make_tensor_value_info(n, o.elem_type, [None, None]) for n, o in zip(made, region.outputs)],
        body.constants,
    )
    return graph


def _held_back(site: Site, x: Lifted) -> str:
    """The map, or in a quantised network its sum with nothing else.

    onnxruntime (1.32) moves a DequantizeLinear behind operators such as Reshape, and ends the process where only the
    body of a Scan reads the result. It moves none behind a Sum.
    """
    return site.emit([x], "Sum") if site.is_quantized and x.elem_type in CONVOLVED else x.map


def _window(body: _Body, x: Lifted, row: str, cells: str, *, together: bool) -> str:
    """The window that consists of these cells: (N, C, all cells) → (N, C, *window), or (B·N, C, *window) of several."""
    name = body.add("Gather", row, cells, axis=2)
    if together:  # (N, C, B, window) → (B, N, C, window)
        name = body.add("Transpose", name, perm=[2, 0, 1, 3])
    return body.add("Reshape", name, np.array([-1, x.width, *x.window]))


def _as_original(body: _Body, x: Lifted, window: str) -> str:
    """(N, C, *window) with the axes of the original tensor."""
    axes = x.axes
    if x.rank == len(axes):  # the batch has an axis, even if it is one image
        return window if x.order == sorted(x.order) else body.add("Transpose", window, perm=x.order)
    used = [axes.index(group) for group in x.layout if group]
    perm = [*used, *(k for k in range(len(axes)) if k not in used)]
    if perm != list(range(len(axes))):
        window = body.add("Transpose", window, perm=perm)
    if len(used) < max(len(perm), x.rank):
        window = body.add("Reshape", window, np.array([-1 if x.batch in g else Atom.product(g) for g in x.layout]))
    return window


def _size(body: _Body, x: Lifted, value: Array, window: str) -> str:
    """A value that the original computes from the shape of a map: its value at the native size, and the true batch."""
    of_batch = value % BATCH == 0 if x.batch.size == BATCH else np.zeros(value.shape, bool)
    of_batch &= value != 0
    if not of_batch.any():
        return body.constant(value)
    batch = body.add("Gather", body.add("Shape", window), np.array([0]))
    if not value.ndim:
        batch = body.add("Reshape", batch, np.zeros(0, np.int64))
    many = body.add("Mul", batch, np.where(of_batch, value // BATCH, 0))
    return body.add("Add", many, np.where(of_batch, 0, value))


def _as_row(body: _Body, output: RegionOutput, name: str) -> str:
    """A result as (N, F)."""
    if output.batch:
        rest = [k for k in range(len(output.shape)) if k != output.batch]
        name = body.add("Transpose", name, perm=[output.batch, *rest])
    return body.add("Reshape", name, np.array([1 if output.batch is None else 0, -1]))
