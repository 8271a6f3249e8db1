"""The exceptions of the package, and the reasons of a refusal as data.

    FcnError                 everything that is not a bug of this package
    ├── ModelError           the file cannot be used: unreadable, not ONNX, invalid, external data missing
    ├── UnsupportedModel     a valid model that cannot become fully convolutional; carries every root cause
    ├── ValidationError      converted, but the numbers disagree with the original: where, and by how much
    └── OptionError          the request contradicts itself or the model

A broken invariant of the package itself is none of these, and shows its traceback.

Inside the package a rule that cannot continue raises `Unsupported`: a reason and a hint. The walk adds the node to make
a `Diagnostic`, and the boundary raises all diagnostics together as one `UnsupportedModel`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Diagnostic",
    "FcnError",
    "ModelError",
    "OptionError",
    "Unsupported",
    "UnsupportedModel",
    "ValidationError",
    "did_you_mean",
    "in_one_line",
    "printable",
    "reason_of",
]


#: The most letters of a message, or of one cause: names and shapes of a hostile model may have millions.
LONGEST = 2000


class FcnError(Exception):
    """Base of all errors that a user can cause or fix; the message is one clear sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ModelError(FcnError):
    """The source is not a usable ONNX model: unreadable, malformed, invalid, or parts of it are missing."""


class OptionError(FcnError):
    """An option contradicts another one or the model."""


class ValidationError(FcnError):
    """The converted model disagrees with the original; `report` contains the measurements.

    Nothing has been written when this is raised.
    """

    def __init__(self, message: str, report: object | None = None) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Diagnostic:
    """One root cause for a refusal.

    Attributes:
        code: a stable slug, such as ``no-rule`` or ``per-position-constant``.
        node: the name of the node, or of its first output if it has no name.
        op: the operator.
        reason: why, with the numbers.
        hint: what to do about it; may be empty.
    """

    code: str
    node: str
    op: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.op} '{self.node}': " if self.op else ""
        return printable(f"{where}{self.reason}" + (f" ({self.hint})" if self.hint else ""))


class UnsupportedModel(FcnError):
    """A valid model that cannot become fully convolutional.

    Attributes:
        diagnostics: every root cause, in the order of the graph; refusals that follow from another are left out.
        advice: what else could be done, as a sentence; may be empty.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic], advice: str = "") -> None:
        self.diagnostics, self.advice = tuple(diagnostics), printable(advice)
        causes = "\n".join(f"  - {d}" for d in self.diagnostics)
        count = "one reason" if len(self.diagnostics) == 1 else f"{len(self.diagnostics)} reasons"
        more = f"\n{self.advice}" if advice else ""
        Exception.__init__(self, f"this network cannot slide over a larger image, for {count}:\n{causes}{more}")


class Unsupported(Exception):
    """Raised by a rule: this node, with these facts, has no meaning at every position. It never leaves the package.

    `needs` says which native size might have one: no smaller or equal one, or no larger or equal one. None: any might.
    """

    def __init__(
        self,
        reason: str,
        *,
        code: str = "unsupported",
        hint: str = "",
        needs: Literal["larger", "smaller"] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.code, self.hint, self.needs = reason, code, hint, needs


def reason_of(error: OSError) -> str:
    """The system's message, as the end of a sentence."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def in_one_line(error: Exception) -> str:
    """Another library's message, on one line of limited length."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def printable(text: str) -> str:
    """A text as one line for a terminal: a model's names may contain line ends and escape sequences, or be huge."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} … {text[-300:]}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known ones that are similar; empty if there are none."""
    import difflib  # only needed here

    near = difflib.get_close_matches(name, dict.fromkeys(known), 3)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else ""
