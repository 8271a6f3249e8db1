"""Context: what sees the whole image, whatever its size, and so is the same for all positions.

An operator that reduces over all positions of a live map is a head or context, and the rule says which it may be:

- What it makes has **no window left** (a global pooling, a ReduceMean over H and W). It cannot be told from a head
  yet, so the rule lifts it, with `site.reduces(x, contextable=True)` as the origin of the result. Where that meets a
  live map again the walk comes back, `site.is_context` holds, and the rule leaves it global (`keep_global`).
- What it makes **still has positions** (a normalisation by the statistics of all of them). It has met the map inside
  the operator already, so it is context at once, and the node stays: `all_positions`.
"""

from __future__ import annotations

from onnx_fcn.lifting.dilation import check_undilated, sparse
from onnx_fcn.lifting.facts import Unmapped
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.site import Site

__all__ = ["all_positions", "keep_global"]


def all_positions(site: Site, x: Lifted, does: str) -> None:
    """Say that an operator puts statistics of all positions of a live map back at each of them: they are context.

    A rule uses it before it emits the operator as it was. It does not where no window is left, nor where `site.is_head`
    says that the map is one of a head: there the statistics are of the window, unfolded.

    Raises:
        Unsupported: the map is dilated, and what the operator `does` would see more cells than the original's.
    """
    check_undilated(site, x, does)
    site.reduces(x, contextable=True)
    site.note_context(x)


def keep_global(site: Site, x: Lifted, op: str) -> Unmapped:
    """Pool the whole map, whatever its size: context, which is the same for all positions."""
    site.note_context(x)
    return Unmapped(site.emit([sparse(site, x)], op))
