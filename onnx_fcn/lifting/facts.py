"""The kinds of fact that a tensor may have.

Lifted: a map that represents the original tensor at every position. Known: independent of the image, such as weights,
constants, and everything computed from them and from shapes. Unmapped: depends on the image but not on the position,
such as a second input or a squeeze-and-excite gate. Blocked: depends on something refused; only root causes are
reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_fcn.lifting.lifted import Lifted

__all__ = ["KINDS", "Blocked", "Fact", "Known", "Shared", "Unmapped"]


@dataclass(frozen=True)
class Known:
    """A tensor whose value does not depend on the image. `sized`: computed from the shape of a mapped tensor."""

    name: str
    sized: bool = False


@dataclass(frozen=True)
class Unmapped:
    """A tensor that is the same for all positions.

    `spread`: the tensor that it expands. `context`: it was computed from the whole image.
    """

    name: str
    spread: str | None = None
    context: bool = False


@dataclass(frozen=True)
class Blocked:
    """A consequence of the refusals at the slots `causes`; `origins`: the reductions that it descends from."""

    origins: frozenset[int] = frozenset()
    causes: frozenset[int] = frozenset()


Fact = Lifted | Known | Unmapped | Blocked

#: Facts that are the same at every position: a node can keep reading such an operand unchanged.
Shared = Known | Unmapped

#: How messages describe an operand, by the type of its fact.
KINDS: dict[type, str] = {
    Lifted: "depends on the position",
    Known: "is a constant",
    Unmapped: "depends on the image, but not on the position",
}
