"""The process of a command: what signals do to it from its first moment on, and streams that are closed or full.

While modules are imported there is nothing yet to be cleared away, so an interruption ends the process at once
(`ends_at_once`). Later it is an exception, which removes temporary files on its way (`Signals`); whatever that turns
into in the depths of a library, it was an interruption. Importing this takes next to no time.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

__all__ = ["INTERRUPTED", "TERMINATED", "Signals", "ends_at_once", "repair_streams", "silence"]


INTERRUPTED, TERMINATED = 130, 143

#: The signals that end a command, and its exit codes.
ENDS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


def ends_at_once() -> None:
    """From now on a signal ends the process, without a word."""
    _handle(lambda number, _: os._exit(ENDS[signal.Signals(number)]))


class Signals:
    """From now on a signal raises: KeyboardInterrupt for Ctrl-C, and SystemExit for a termination.

    Attributes:
        code: the exit code of the one that came; None while there was none.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        _handle(self._raise)

    def _raise(self, number: int, _: Any) -> None:
        self.code = ENDS[signal.Signals(number)]
        sys.unraisablehook = lambda _: None  # wherever it is raised
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(TERMINATED)

    def done(self) -> None:
        """The work is done: what comes now comes too late."""
        _handle(signal.SIG_IGN)


def _handle(handler: Any) -> None:
    """Handle the signals that end a process, unless whoever started it had them ignored, as `nohup` has."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def repair_streams() -> None:
    """Streams that were closed lead nowhere, so that no file that is opened takes their place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            while (opened := os.open(os.devnull, os.O_RDWR)) < descriptor:
                pass  # a lower one was closed as well
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process
            setattr(sys, name, stream)


def silence(stream: Any) -> None:
    """What is still to be written to a stream goes nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (AttributeError, OSError, ValueError):  # no stream of the system's
        return
