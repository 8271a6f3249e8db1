"""What a report is made from: tensors, the cut, layers, the difference of two graphs, an example."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Difference", "Dim", "Example", "Layer", "Map", "Tensor"]


Dim = int | str | None


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, and its shape in the original and in the result (None for unknown sizes).

    The `stride` of an output is the number of pixels between its answers, along each axis of the image.
    """

    name: str
    before: tuple[Dim, ...] | None
    after: tuple[Dim, ...] | None
    stride: tuple[float, ...] = ()


@dataclass(frozen=True)
class Map:
    """The cut: the feature map that all answers are computed from.

    Attributes:
        name: the tensor in the original.
        channels: the number of its channels.
        window: the number of its cells that one answer is computed from, along each axis.
        stride: pixels per cell.
    """

    name: str
    channels: int
    window: tuple[int, ...]
    stride: tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """A node that handled one window in the original, and answers at every position in the result.

    Attributes:
        kind: ``dense``, ``window`` (a convolution or pooling over the whole window), ``unfold`` (window positions
            became channels) or ``region`` (several nodes, which run on every window).
        node: its name in the original; of a region, that of its first node.
        was: its operator; of a region, the number of its nodes.
        becomes: the operator that replaces it, or several, joined by " + ".
        kernel: cells of the map that it covers; all 1 after the first dense layer.
        inputs: channels that it reads, in each group.
        outputs: channels that it produces.
        groups: groups of channels.
        reads: the map that it reads.
        layout: how the exporter flattened that map: ``n (c256 h6 w6)`` is channels first.
        weight: the name of its weight.
        same_bytes: whether the kernel has the same bytes as the weight; otherwise its layout changed. None without a
            weight.
    """

    kind: str
    node: str
    was: str
    becomes: str
    kernel: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int
    reads: str
    layout: str
    weight: str
    same_bytes: bool | None


@dataclass(frozen=True)
class Difference:
    """What changed in the main graph: nodes by operator, and initializers by name.

    Attributes:
        kept: nodes that are unchanged.
        changed: nodes with the same operator and place, but other inputs or attributes.
        removed, added: nodes of the original only, and of the result only.
        reshaped: initializers with other dims and the same bytes.
        rewritten: initializers with other values, or the same values in another order.
        removed_initializers, added_initializers: initializers of the original only, and of the result only.
    """

    kept: dict[str, int]
    changed: dict[str, int]
    removed: dict[str, int]
    added: dict[str, int]
    reshaped: tuple[str, ...]
    rewritten: tuple[str, ...]
    removed_initializers: tuple[str, ...]
    added_initializers: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """An image size in pixels, its grid of answers, and the number of answers that no padding reaches."""

    size: tuple[int, ...]
    answers: tuple[int, ...]
    interior: int
