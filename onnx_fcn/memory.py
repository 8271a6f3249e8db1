"""How much memory is free, and the largest tile below a limit of memory: measured, since it is not known beforehand.

A tile is run, and the peak of resident memory gives the cost of its pixels. The cost of larger tiles is extrapolated
from that of small ones; a tile that would not fit is never run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from onnx_fcn.errors import OptionError

__all__ = ["available", "largest_tile", "parse_bytes", "release", "resident"]


#: Share of the limit that may be used: allocators fragment, and libraries keep some memory.
SHARE = 0.9

#: The first tile that is measured, in pixels along an axis.
FIRST = 256

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

#: Bytes assumed to be free if the system does not report it.
ASSUMED = 4 << 30

MEMORY = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def parse_bytes(text: str) -> int:
    """2G, 500M → bytes. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError(f"'{text}' is not an amount of memory, such as 2G")
    return int(float(found[1]) * UNITS[found[2].upper()])


def resident(*, reset: bool = False) -> tuple[int, int]:
    """(present, peak) resident memory of this process, in bytes; `reset` first resets the peak, if the system can.

    Raises:
        OptionError: if the system does not report it.
    """
    if STATUS.exists():
        if reset:
            with contextlib.suppress(OSError):
                CLEAR.write_text("5")
        values = dict(re.findall(r"(VmRSS|VmHWM):\s*(\d+) kB", STATUS.read_text()))
        return int(values["VmRSS"]) << 10, int(values["VmHWM"]) << 10
    try:
        import resource
    except ImportError:
        raise OptionError("this system does not report how much memory is used: give --tile instead") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1 << 10)
    return peak, peak


def available() -> int:
    """Bytes that are free for this process: what the system reports, limited by its control group.

    `ASSUMED` if neither is known.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) << 10)
    if not found and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in LIMITS:  # of a container
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            found.append(max(int(limit.read_text()) - resident()[0], 0))
    return min(found, default=ASSUMED)


def release() -> None:
    """Give memory that was freed back to the system.

    glibc keeps it in pieces too small for large tensors: without this a process grows from tile to tile.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)


def largest_tile(run: Callable[[int], None], pixels: Callable[[int], int], limit: int, most: int) -> int:
    """The largest tile, in pixels along an axis, whose run stays below a limit.

    Args:
        run: runs the most expensive tile of a size.
        pixels: the number of pixels of that tile.
        limit: bytes of the whole process.
        most: the largest tile that makes sense.

    Raises:
        OptionError: if not even the smallest tile fits.
    """
    allowed = SHARE * limit
    tile, base = min(FIRST, most), resident()[0]
    while True:
        resident(reset=True)
        run(tile)
        release()
        peak = resident()[1]
        cost = (peak - base) / pixels(tile)
        sizes = [*range(tile, min(2 * tile, most), max(tile // 32, 1)), min(2 * tile, most)]
        best = max((size for size in sizes if max(peak, base + cost * pixels(size)) <= allowed), default=0)
        if best == 2 * tile:
            tile = best
        elif best:
            return best
        elif tile > 1:
            tile = most = tile // 2
        else:
            raise OptionError(
                f"the process takes {peak / 2**30:.2f} GB with the smallest tile, and --memory allows "
                f"{limit / 2**30:.2f} GB, of which a tenth is kept free"
            )
