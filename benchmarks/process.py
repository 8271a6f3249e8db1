"""A whole process, measured from outside: wall time, processor time, peak memory.

A child's peak includes what its parent occupied when it was forked. So a bare interpreter stands between us and the
command: it is as small as a process gets, and nothing that we import or generate is counted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Failed", "Limits", "Usage", "measure", "wait_until_quiet"]

LAUNCHER = """
import json, os, resource, sys, time
memory = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ), 0)
seconds = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
print("\\n", json.dumps([code, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]), sep="")
"""
QUIET = 0.9  # of the time of all processors
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


@dataclass(frozen=True)
class Limits:
    """When a run is given up: after so many seconds, or when it wants so many bytes, mapped files aside."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Usage:
    """What one run took.

    Attributes:
        seconds: of wall time, start of the interpreter and imports included.
        cpu: seconds of processor time, of all threads.
        peak: bytes of resident memory, pages of mapped files included.
    """

    seconds: float
    cpu: float
    peak: int


class Failed(Exception):
    """The command did not succeed; says why in a few words."""


def measure(command: Sequence[str], limits: Limits) -> Usage:
    """Run a command once, on a file system that has nothing left to write.

    Raises:
        Failed: it exits with an error, or goes beyond the limits.
    """
    os.sync()
    launcher = [sys.executable, "-S", "-E", "-c", LAUNCHER, str(limits.memory), *command]
    child = subprocess.Popen(
        launcher, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        out, errors = child.communicate(timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        raise Failed(f"more than {limits.seconds:.0f} s") from None
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    code, seconds, cpu, peak = json.loads(out.splitlines()[-1])
    if code:
        said = [line.strip() for line in errors.splitlines() if line.strip()]
        raise Failed(said[-1][:100] if said else f"exit code {code}")
    return Usage(seconds, cpu, peak * UNIT)


def wait_until_quiet(patience: float) -> None:
    """Wait until others leave the processors alone, at most so many seconds; Linux only."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = _ticks()
        time.sleep(0.5)
        total, idle = (b - a for a, b in zip(before, _ticks()))
        if idle >= QUIET * total:
            return


def _ticks() -> tuple[int, int]:
    """What the processors have spent since the system started: in total, and idle or waiting for a disk."""
    try:
        spent = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0, 0
    return sum(spent), spent[3] + spent[4]
