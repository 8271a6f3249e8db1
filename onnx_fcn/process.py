"""The process of a command: signals from its start on, and streams that are closed or full.

While modules are imported there are no files to remove yet, so an interruption ends the process at once
(`end_at_once`). Later it raises an exception, so that temporary files are removed (`Signals`); a library may turn it
into another exception, but `Signals.code` still says that it was an interruption. This module imports next to
nothing, not even typing: before it is there, a signal ends in a traceback of the interpreter.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["INTERRUPTED", "TERMINATED", "Signals", "end_at_once", "repair_streams", "silence"]


INTERRUPTED, TERMINATED = 130, 143

#: The signals that end a command, and its exit codes.
ENDS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


def end_at_once() -> None:
    """From now on a signal ends the process, without a message."""
    _handle(lambda number, _: os._exit(ENDS[signal.Signals(number)]))


class Signals:
    """From now on a signal raises an exception: KeyboardInterrupt for Ctrl-C, SystemExit for a termination.

    Attributes:
        code: the exit code for the signal that arrived; None before.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        _handle(self._raise)

    def _raise(self, number: int, _: Any) -> None:
        self.code = ENDS[signal.Signals(number)]
        sys.unraisablehook = lambda _: None  # it may be raised where no exception can propagate
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(TERMINATED)

    def done(self) -> None:
        """Ignore all further signals: the work is done."""
        _handle(signal.SIG_IGN)


def _handle(handler: Any) -> None:
    """Handle the signals that end a process, unless it was started with these ignored, as by `nohup`."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def repair_streams() -> None:
    """Redirect closed standard streams to the null device, so that no file that is opened takes their place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            while (opened := os.open(os.devnull, os.O_RDWR)) < descriptor:
                pass  # a lower descriptor was closed as well
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process
            setattr(sys, name, stream)


def silence(stream: Any) -> None:
    """Redirect a stream to the null device, with what it still buffers."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (AttributeError, OSError, ValueError):  # the stream has no descriptor
        return
