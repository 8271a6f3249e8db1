"""Context: values that see the whole image, whatever its size, and so are the same for all positions.

An operator that reduces over all positions of a live map is a head or context. The rule declares which it may be:

- The result has **no window left** (a global pooling, a ReduceMean over H and W). It cannot be distinguished from a
  head yet, so the rule lifts it, with `site.record_reduction(x, contextable=True)` as the origin of the result. If the
  result meets a live map again, the walk rewinds, `site.is_context` is true, and the rule leaves it global
  (`keep_global`).
- The result **still has positions** (a normalisation by the statistics of all of them). It has already met the map
  inside the operator, so it is context immediately, and the node stays: `all_positions`.
- The result **weighs the positions** against each other (a softmax over all of them). The weighted sum of a map that
  follows is a gate or the pooling of a head, and only what follows the sum tells which. It is context at first:
  `weigh_positions`. If nothing slides over what is computed from the weights, and none of it proves to be context, the
  walk is repeated with `site.is_head` true: the weights are then those of the positions of the window.
"""

from __future__ import annotations

from onnx_fcn.lifting.dilation import check_undilated, undilate
from onnx_fcn.lifting.facts import Unmapped
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.site import Site

__all__ = ["all_positions", "keep_global", "pooled_globally", "weigh_positions"]


def all_positions(site: Site, x: Lifted, does: str) -> None:
    """Record an operator as context: it applies statistics of all positions of a live map at each of them.

    A rule calls it before it emits the operator unchanged. It does not if no window is left, or if `site.is_head` is
    true: the statistics are then those of the window, unfolded.

    Raises:
        Unsupported: if the map is dilated, so that what the operator `does` would see more cells than in the original.
    """
    check_undilated(site, x, does)
    site.record_reduction(x, contextable=True)
    site.note_context(x)


def weigh_positions(site: Site, x: Lifted, does: str) -> None:
    """Record an operator that weighs all positions of a live map: context, unless it proves to be a part of the head.

    Raises:
        Unsupported: if the map is dilated, as for `all_positions`.
    """
    all_positions(site, x, does)
    site.record_weights()


def keep_global(site: Site, x: Lifted, op: str) -> Unmapped:
    """Pool the whole map, whatever its size: the result is context, the same for all positions."""
    site.note_context(x)
    return pooled_globally(site, undilate(site, x), op)


def pooled_globally(site: Site, x: Lifted, op: str | None = None) -> Unmapped:
    """(N, C, *space) → (N, C, 1, …), by default by the node itself.

    It has as many axes as in the original: a map that slid along features has more.
    """
    name, rank = site.emit([x], op), 2 + len(x.space)
    return Unmapped(site.squeeze(name, range(x.rank, rank)) if rank > x.rank else name)
