"""Size limits for what a rule creates."""

from __future__ import annotations

__all__ = ["REPEAT_LIMIT", "UNFOLD_KERNEL", "UNFOLD_LIMIT", "megabytes"]


#: Maximum number of channels of an unfolded window; beyond it a map of answers costs more than the answers are worth.
UNFOLD_LIMIT = 40_000

#: Maximum number of values of the kernel that unfolds a window: output channels × window positions.
UNFOLD_KERNEL = 1 << 24

#: Maximum bytes of all weights that a conversion repeats for groups of channels, together with the unfolding kernels.
REPEAT_LIMIT = 1 << 28


def megabytes(size: int) -> str:
    """Format a number of bytes for a message."""
    return f"{size / 1e6:,.0f} MB"
