"""What every message keeps to: it speaks of the user's model, command and options, and of nothing else."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Collection

from onnx_fcn.cli.convert import COMMANDS, main
from onnx_fcn.lifting.lifted import BATCH

#: Names of things in the code, which mean nothing to users.
INTERNAL = re.compile(
    r"\b(Atom|Blocked|Fact|Known|Lifted|Rewind|Slot|Unmapped|Unsupported|Walk|blocked|origins?|unmapped|unfold\w*)\b"
)

#: Files of a checkout, which an installed package has not got.
CHECKOUT = re.compile(r"docs/|\.md\b|\.py\b|Traceback")

#: What numpy, onnx and onnxruntime say where shapes do not fit.
FOREIGN = re.compile(r"cannot reshape array|could not be broadcast|GEMM|Dimension mismatch|not aligned|RuntimeError")

#: Options by which a model is read, and by which images are given with it, whatever it is to become; and those by
#: which a network that is refused is converted.
READING = frozenset({"--context", "--data", "--input", "--input-size", "--slide", "--windows"})


@functools.cache
def options(command: str = "") -> frozenset[str]:
    """The options of a command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main([*([command] if command else []), "--help"])
    return frozenset(re.findall(r"--[a-z][a-z-]*", said.getvalue()))


def every_option() -> frozenset[str]:
    """The options of all commands."""
    return options().union(*map(options, COMMANDS))


def batches(text: str) -> list[int]:
    """Multiples of the batch that shapes are evaluated with: no number of the user's."""
    numbers = (int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", text))
    return [n for n in numbers if n and n % BATCH == 0]


def faults(text: str, *, outputs: int = 2, given: Collection[str] | None = None) -> list[str]:
    """What a message about a model says that it should not.

    outputs: how many the model has.
    given: the options of the command that it answers; None where any might have been.
    """
    plain = re.sub(r"'[^']*'", "''", text)  # names are the model's
    found = [f"the batch that shapes are evaluated with: {n}" for n in batches(plain)]
    for pattern in (INTERNAL, CHECKOUT, FOREIGN):
        found += pattern.findall(plain)
    named = set(re.findall(r"--[a-z][a-z-]*", plain))
    found += sorted(named - every_option())
    if given is not None:
        helpful = {*given, *READING, *(["--outputs"] if outputs > 1 else [])}
        found += sorted(named & every_option() - helpful)
    if outputs < 2 and "one of the outputs" in plain:
        found.append("one of the outputs")
    return found
