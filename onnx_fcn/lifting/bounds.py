"""How large what a rule makes may be."""

from __future__ import annotations

__all__ = ["REPEAT_LIMIT", "UNFOLD_KERNEL", "UNFOLD_LIMIT", "megabytes"]


#: Channels that an unfolded window may have; beyond it a map of answers costs more than the answers are worth.
UNFOLD_LIMIT = 40_000

#: Values of the kernel that unfolds a window: one for each channel that it makes, and each of its positions.
UNFOLD_KERNEL = 1 << 24

#: Bytes that all weights of a conversion may take that were repeated for groups of channels, with all such kernels.
REPEAT_LIMIT = 1 << 28


def megabytes(size: int) -> str:
    """Bytes, as messages say them."""
    return f"{size / 1e6:,.0f} MB"
