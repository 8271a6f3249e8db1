"""The kinds of fact that a tensor may have.

Lifted: a map that stands for the original tensor at every position. Known: independent of the image, such as weights,
constants, and whatever is computed from them and from shapes. Unmapped: data of the image that does not depend on the
position, such as a second input or a squeeze-and-excite gate. Blocked: depends on something refused; only root causes
are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_fcn.lifting.lifted import Lifted

__all__ = ["KINDS", "Blocked", "Fact", "Known", "Shared", "Unmapped"]


@dataclass(frozen=True)
class Known:
    """A tensor whose value does not depend on the image. `sized`: it is computed from the shape of a mapped tensor."""

    name: str
    sized: bool = False


@dataclass(frozen=True)
class Unmapped:
    """A tensor that is the same for all positions.

    `spread`: the tensor that it is an expansion of. `context`: it was computed from the whole image.
    """

    name: str
    spread: str | None = None
    context: bool = False


@dataclass(frozen=True)
class Blocked:
    """The consequence of refusals, which are those of the seats `causes`, and the reductions that it descends from."""

    origins: frozenset[int] = frozenset()
    causes: frozenset[int] = frozenset()


Fact = Lifted | Known | Unmapped | Blocked

#: What is the same at every position: an operand that a node can go on reading as it stands.
Shared = Known | Unmapped

#: What the facts that a rule may be given say of an operand.
KINDS: dict[type, str] = {
    Lifted: "depends on the position",
    Known: "is a constant",
    Unmapped: "depends on the image, but not on the position",
}
