"""The rule of a region: the operators after a map, unchanged, on every window of it.

It is not in the registry: a region is a node of a program only, so the walk calls it for the slot that covers one.

A Scan runs them on one window after another. Its body needs nothing of them, not even a free batch, and it holds the
values of one window at a time, so memory does not grow with the number of windows. Weights stay where they are: a body
reads tensors of the surrounding graph by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto

from onnx_fcn._types import Array
from onnx_fcn.lifting.facts import Fact, Shared
from onnx_fcn.lifting.lifted import BATCH, Atom, Lifted, atoms_of
from onnx_fcn.lifting.regions import RegionOutput
from onnx_fcn.lifting.site import Site
from onnx_fcn.model.graphs import rename

__all__ = ["windows"]


def windows(site: Site, x: Lifted, *others: Shared) -> Sequence[Fact]:
    """Every window of a map through the original's own nodes, and the answers in their places.

    (N, C, *cells) → places (P, A) of the windows → Scan: (N, C, *window) → (N, F) each → (P, N, F) → (N, F, *grid)
    """
    region = site.region
    x = x.spaced(region.stride)
    grid = _grid(site, x)
    ones = onnx.numpy_helper.from_array(np.ones(1, np.int64))
    places = site.emit([site.emit([grid], "ConstantOfShape", value=ones)], "NonZero")
    places = site.emit([places], "Transpose", perm=[1, 0])  # scan_input_axes=[1] crashes onnxruntime if there are none
    body = _body(site, x, dict(zip(region.outside, others)))
    count = len(region.outputs)
    made = site.emit_many([places], "Scan", outputs=count, body=body, num_scan_inputs=1)
    origins = site.record_reduction(x, contextable=False)
    answers = [replace(_answer(site, x, o, name, grid), origins=origins) for o, name in zip(region.outputs, made)]
    site.note("region", x, x.window, inputs=x.width, outputs=sum(y.width for y in answers))
    return answers


def _grid(site: Site, x: Lifted) -> str:
    """The number of windows along each axis of the map, (A,): (cells - extent) // step + 1."""
    cells = site.emit([site.emit([x.map], "Shape"), np.arange(2, 2 + len(x.space))], "Gather", axis=0)
    steps = np.array([a.step for a in x.space])
    room = site.emit([cells, np.array([a.extent for a in x.space]) - steps], "Sub")
    return room if max(steps) == 1 else site.emit([room, steps], "Div")


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


def _body(site: Site, x: Lifted, others: Mapping[str, Shared]) -> GraphProto:
    """Place (A,) → the answers of its window, (N, F) each."""
    region, body = site.region, _Body(site)
    place = site.fresh(f"{site.outputs[0]}/window/place")
    window = _window(body, x, place)
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
        [onnx.helper.make_tensor_value_info(place, TensorProto.INT64, [len(x.space)])],
        [onnx.helper.make_tensor_value_info(n, o.elem_type, [None, None]) for n, o in zip(made, region.outputs)],
        body.constants,
    )
    return graph


def _window(body: _Body, x: Lifted, place: str) -> str:
    """The window at a place: (N, C, *cells) → (N, C, *window)."""
    steps = np.array([a.step for a in x.space])
    starts, name = body.add("Mul", place, steps) if max(steps) > 1 else place, x.map
    for k, axis in enumerate(x.space):
        if axis.image is not None:
            cells = body.add("Add", body.add("Gather", starts, np.array([k])), axis.rate * np.arange(axis.window))
            name = body.add("Gather", name, cells, axis=2 + k)
    return name


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
