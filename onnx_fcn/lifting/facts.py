"""The kinds of fact that a tensor may have.

Lifted: a map that represents the original tensor at every position. Known: independent of the image, such as weights,
constants, and everything computed from them and from shapes. Unmapped: depends on the image but not on the position,
such as a second input or a squeeze-and-excite gate. Whole: relates positions of the whole image to each other. Blocked:
depends on something refused; only root causes are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx_fcn._types import record
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, axis_of, dims_of, spelled

__all__ = ["KINDS", "Blocked", "Extent", "Fact", "Known", "Shared", "Unmapped", "Whole"]


@record
class Known:
    """A tensor whose value does not depend on the image. `sized`: computed from the shape of a mapped tensor."""

    name: str
    sized: bool = False


@record
class Unmapped:
    """A tensor that is the same for all positions.

    `spread`: the tensor that it expands. `context`: it was computed from the whole image. `even`: axes, counted from
    the end, along which all elements are equal, since it was computed from what was spread.
    """

    name: str
    spread: str | None = None
    context: bool = False
    even: frozenset[int] = frozenset()


@record
class Extent:
    """Where the size of a factor is read at run time: axis `place` of `map`. `axis`: of the map; None for the batch."""

    map: str
    place: int
    axis: Axis | None = None


@dataclass(frozen=True)
class Whole:
    """A tensor of the whole image on the axes of the original, such as scores between positions: see `lifting.whole`.

    Attributes:
        name: the tensor.
        batch: the number of images.
        layout: for each axis, its atoms, outermost first.
        extents: of atoms whose size depends on the image.
        elem_type: `onnx.TensorProto.DataType`.
    """

    name: str
    batch: Atom
    layout: tuple[tuple[Atom, ...], ...]
    extents: Mapping[Atom, Extent]
    elem_type: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape at the native size, with the walk's batch."""
        return tuple(Atom.product(group) for group in self.layout)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.layout)

    def axis(self, axis: int) -> int:
        """Normalise an axis to a non-negative number.

        Raises:
            Unsupported: if the tensor has no such axis.
        """
        return axis_of(axis, self.rank)

    @property
    def has_positions(self) -> bool:
        """Has it an axis of positions?"""
        return any(a in self.extents and self.extents[a].axis is not None for group in self.layout for a in group)

    @property
    def counts(self) -> list[int]:
        """The numbers of positions at the native size of the maps that it was computed from."""
        maps: dict[str, int] = {}
        for atom, extent in self.extents.items():
            if extent.axis is not None:
                maps[extent.map] = maps.get(extent.map, 1) * atom.size
        return list(maps.values())

    @property
    def dims(self) -> str:
        """The shape for messages."""
        return dims_of(self.shape)

    def __str__(self) -> str:
        return spelled(self.layout, self.batch)


@record
class Blocked:
    """A consequence of the refusals at the slots `causes`; `origins`: the reductions that it descends from."""

    origins: frozenset[int] = frozenset()
    causes: frozenset[int] = frozenset()


Fact = Lifted | Known | Unmapped | Whole | Blocked

#: Facts that are the same at every position: a node can keep reading such an operand unchanged.
Shared = Known | Unmapped

#: How messages describe an operand, by the type of its fact.
KINDS: dict[type, str] = {
    Lifted: "depends on the position",
    Known: "is a constant",
    Unmapped: "depends on the image, but not on the position",
    Whole: "relates positions to each other",
}
