"""One reading walked to its end, and walked again for what only the end of a walk shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

import onnx

from onnx_fcn.errors import Diagnostic
from onnx_fcn.lifting.constants import Values, stored_in
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.program import Image, Options, Slot, Strides, Walk
from onnx_fcn.lifting.regions import Region
from onnx_fcn.model.document import Document
from onnx_fcn.model.nodes import Node
from onnx_fcn.walk.cut import (
    Cut,
    before_answers,
    find_cut,
    instead_of_padding,
    padded_beyond,
    pooling_weights,
    slots_of_head,
)
from onnx_fcn.walk.interpret import run
from onnx_fcn.walk.shapes import Shapes

__all__ = ["program", "walked"]


#: A walk at the network's own stride.
PLAIN = Options()


def walked(document: Document, image: Image, options: Options = PLAIN, region: Region | None = None) -> Walk:
    """Walk, and walk again with other options for what only the end of a walk shows.

    Args:
        document: the model.
        image: the reading of its inputs.
        options: those of the first walk.
        region: the part that runs on every window, if any.
    """
    while True:
        walk = run(program(document, image, options, region))
        if not (pooled := pooling_weights(walk)) <= options.head:
            options = replace(options, head=options.head | pooled)
            continue
        cut = find_cut(walk)
        if cut is None:
            return walk
        meet = any(d.code == "strides-meet" for d in walk.diagnostics.values())
        shared = _at_most(options.output_stride, max(a.stride for a in cut.fact.space), len(image.space))
        if meet and shared != options.output_stride:  # levels of a pyramid: bring them to the stride that they share
            options = replace(options, output_stride=shared)
            continue
        if not walk.succeeded or not walk.has_head:
            return walk
        own = before_answers(walk) - walk.upstream(cut.name)
        beyond = {walk.slots[k].name for k in walk.context & walk.reductions & own}
        if not beyond <= options.head:
            options = replace(options, head=options.head | beyond)
            continue
        strides = [s for k in slots_of_head(walk, cut) if (s := walk.slots[k].slides) is not None]
        if any(s.strides for s in strides) and shared != options.output_stride:
            options = replace(options, output_stride=shared)
            continue
        after = f"a branch of the head after '{cut.name}', the last map that all answers are computed from"
        _refuse(walk, cut, walk.attention & own, "attention-beyond-cut", f"relates positions in {after}")
        apart = "windows of a larger image would see each other where the original sees padding"
        _refuse(walk, cut, padded_beyond(walk, cut), "padding-beyond-cut", f"pads {after}: {apart}")
        return walk


def _refuse(walk: Walk, cut: Cut, slots: Iterable[int], code: str, reason: str) -> None:
    """Refuse operators after the cut."""
    for k in slots:
        slot = walk.slots[k]
        walk.diagnostics[k] = Diagnostic(code, slot.name, slot.node.op, reason, instead_of_padding(walk, cut))


def _at_most(strides: Strides, most: Fraction, axes: int) -> Strides:
    """Strides along so many axes, none of them coarser than `most`."""
    return tuple(most if s is None else min(s, most) for s in strides or (None,) * axes)


def program(document: Document, image: Image, options: Options, region: Region | None = None) -> Walk:
    """The nodes that the outputs need, with a fact for every tensor that no node computes."""
    graph, nodes = document.proto.graph, document.nodes
    initializers = stored_in(graph)
    needed = document.needed()
    covers = frozenset() if region is None else region.covers
    slots = [Slot(nodes[k], k) for k in sorted(needed - covers)]
    if region is not None:
        slots = sorted([*slots, _as_slot(region, graph)], key=lambda slot: slot.index)
    opsets = {o.domain: o.version for o in document.proto.opset_import}
    values = Values(nodes, initializers, document.array, opsets)
    facts: dict[str, Fact] = {name: Known(name) for name in initializers}
    for declared in graph.input:
        if declared.name not in facts and declared.name != image.name:
            facts[declared.name] = Unmapped(declared.name)
    names = {t for node in nodes for t in (*node.inputs, *node.outputs)} | set(initializers) | set(facts)
    prologue = Node("Input", image.name, outputs=[image.name])
    outputs = tuple(o.name for o in graph.output)
    shapes = Shapes(document, image, facts, values)
    slot = Slot(prologue, -1, replaced=True)
    read = frozenset(n for s in slots for n in s.node.reads) | set(outputs)
    names |= {image.name} | {node.name for node in nodes}
    return Walk(
        image, options, opsets, values, slots, outputs, shapes, slot, region, read=read, facts=facts, names=names
    )


def _as_slot(region: Region, graph: onnx.GraphProto) -> Slot:
    """A region as a node of the program, in the place of the last of its nodes: its operands have been computed there.

    Nothing is computed from its results: they are outputs.
    """
    reads, makes = [region.cut, *region.outside], [o.name for o in region.outputs]
    first = graph.node[min(region.covers)]
    name = first.name or first.output[0]
    return Slot(Node("Region", name, reads, makes), max(region.covers), covers=region.covers)
