"""Values that are the same along some of their axes, because they were spread over positions: after an operator, too.

A gate may be expanded over the map before its last layers: `conv1x1(gate.expand(-1, -1, H, W))`. All of its elements
along H and W are equal, so one of them stands for all, whatever the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.layouts import source_of
from onnx_fcn.lifting.site import Site
from onnx_fcn.model.operators import ELEMENTWISE

__all__ = ["even_axes"]


def even_axes(site: Site, operands: Sequence[Fact]) -> frozenset[int]:
    """The axes, counted from the end, along which the result of a node without maps is the same; if that is evident.

    Args:
        site: the node.
        operands: what it reads, without those that it leaves out.
    """
    spread = any(isinstance(f, Unmapped) and (f.spread is not None or f.even) for f in operands)
    if not spread or site.node.domain not in (None, "", "ai.onnx") or len(site.outputs) != 1:
        return frozenset()
    try:
        if site.op in ELEMENTWISE:
            return _where_all_are_one(site, operands)
        if site.op == "BatchNormalization" or (site.op == "Conv" and _reads_one_cell(site, operands[1])):
            rank = len(site.shape_of(Unmapped(site.outputs[0])))
            return _where_all_are_one(site, operands[:1]) & {*range(2 - rank, 0)}
    except Unsupported:  # the shape of something is not known
        return frozenset()
    return frozenset()


def _where_all_are_one(site: Site, operands: Sequence[Fact]) -> frozenset[int]:
    """The axes, counted from the end, along which all operands that broadcast have one element, or equal ones."""
    if any(isinstance(f, Known) and f.sized and site.weight_shape(f) for f in operands):
        return frozenset()  # it may have more elements for a larger image
    shapes = [source_of(site, f)[1] if isinstance(f, Unmapped) else _shape(site, f) for f in operands]
    made = site.shape_of(Unmapped(site.outputs[0]))
    return frozenset(k for k in range(-len(made), 0) if all(len(s) < -k or s[k] == 1 for s in shapes))


def _shape(site: Site, fact: Fact) -> tuple[int, ...]:
    assert isinstance(fact, Known)
    return site.weight_shape(fact)


def _reads_one_cell(site: Site, weight: Fact) -> bool:
    """Has a convolution a kernel of one tap, and no padding?"""
    taps = site.weight_shape(weight)[2:] if isinstance(weight, Known) else (0,)
    return set(taps) == {1} and not any(site.attr("pads") or ())
