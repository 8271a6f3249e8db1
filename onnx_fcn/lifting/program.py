"""The program that a walk traverses, and the state of the walk: the image, the slots of the nodes, the facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from onnx_fcn._types import record
from onnx_fcn.errors import Diagnostic, Unsupported
from onnx_fcn.geometry import KEEP_SIZE, SIZE_NAMES
from onnx_fcn.lifting.constants import Values
from onnx_fcn.lifting.facts import Fact
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, atoms_of
from onnx_fcn.lifting.refusals import ABOUT_POSITIONS, product_of_maps
from onnx_fcn.lifting.regions import Region
from onnx_fcn.model.edit import Weight
from onnx_fcn.model.graphs import made_from
from onnx_fcn.model.nodes import Node

__all__ = [
    "BATCH_SIZE",
    "Change",
    "Constant",
    "Emission",
    "FormedOutput",
    "Image",
    "Options",
    "Rewind",
    "Slides",
    "Slot",
    "Standing",
    "Strides",
    "Unpooled",
    "Walk",
    "at_node",
]


@dataclass(frozen=True)
class Image:
    """How one input of the model is interpreted: which of its axes slide.

    Attributes:
        name: the input.
        shape: its native shape, with the batch that the walk evaluates shapes with.
        batch: the axis of the batch, or None.
        channels: the axis of the channels, or None.
        space: the axes that slide, in order.
        elem_type: `onnx.TensorProto.DataType`.
        assumed: sentences about its axes, their sizes and its batch that neither the file nor the user states.
        held: those of the axes `space`, by their place in it, that keep their size; None if the outputs decide.
    """

    name: str
    shape: tuple[int, ...]
    batch: int | None
    channels: int | None
    space: tuple[int, ...]
    elem_type: int
    assumed: tuple[str, ...] = ()
    held: frozenset[int] | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Native size, in pixels."""
        return tuple(self.shape[a] for a in self.space)

    @property
    def is_channels_first(self) -> bool:
        """Is the input a map (N, C, *space) as it stands?"""
        return (self.batch, self.channels, *self.space) == tuple(range(len(self.shape)))

    def with_batch(self, batch: int) -> Image:
        """The same image in a batch of so many."""
        return replace(self, shape=tuple(batch if k == self.batch else d for k, d in enumerate(self.shape)))

    def lifted(self, name: str) -> Lifted:
        """The fact of the image itself, once it lies channels-first in the tensor `name`."""
        letters = {1: "w", 2: "hw", 3: "dhw"}[len(self.space)]
        batch = Atom(1 if self.batch is None else self.shape[self.batch], "n")
        channels = () if self.channels is None else atoms_of(self.shape[self.channels], "c")
        space = tuple(
            Axis(atoms_of(self.shape[a], letter), image=k, held=self.held is not None and k in self.held)
            for k, (a, letter) in enumerate(zip(self.space, letters))
        )
        layout: list[tuple[Atom, ...]] = []
        for axis in range(len(self.shape)):
            if axis == self.batch:
                layout.append((batch,) if batch.size != 1 else ())
            elif axis == self.channels:
                layout.append(channels)
            else:
                layout.append(space[self.space.index(axis)].atoms)
        return Lifted(name, batch, channels, space, tuple(layout), self.elem_type)


@dataclass(slots=True)
class Emission:
    """A node that a rule emits. `varies`: a variation of the slot's own node, which keeps its other attributes."""

    node: Node
    varies: bool = False

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors that the node reads or makes other names."""
        self.node = self.node.renamed(names)


class Constant(NamedTuple):
    """A new initializer. `source`: the tensor that it is computed from, if it is of one."""

    name: str
    weight: Weight
    source: str = ""


@dataclass(slots=True)
class Slot:
    """One node of the program, and the nodes and constants with which its rule replaces it.

    There is one for every node, so what most of them have none of takes no memory.
    """

    node: Node
    index: int  # of the node in the main graph that contains it or that it was inlined from
    emissions: tuple[Emission, ...] = ()
    constants: tuple[Constant, ...] = ()
    repeated: int = 0  # bytes of repeated weights among the constants
    operands: tuple[Fact | None, ...] = ()
    replaced: bool = False  # its rule has run: the original node is removed, unless an emission varies it
    slides: Slides | None = None
    changes: tuple[Change, ...] = ()
    unfolded: bool = False  # an If whose branch was inlined after it
    covers: frozenset[int] = frozenset()  # of a region: all nodes of the graph that it takes the place of

    def settle(self) -> None:
        """Replace emissions that are just the node by the node itself, which takes no memory of its own."""
        node = self.node
        for emission in self.emissions:
            made = emission.node
            if emission.varies and (made.inputs, made.outputs, made.attrs) == (node.inputs, node.outputs, node.attrs):
                emission.node = node

    @property
    def own_names(self) -> set[str]:
        """The original names of the node and its outputs."""
        return {self.node.name, *self.node.outputs}

    @property
    def name(self) -> str:
        """The node's name, or that of its first output."""
        return self.node.name or next(filter(None, self.node.outputs), "")


@record
class Slides:
    """How the result of a sliding operator differs from what a single window would give.

    Attributes:
        pads: it pads the map or otherwise reads beyond the window, so neighbouring windows affect each other.
        strides: it makes the grid of windows coarser.
    """

    pads: bool
    strides: bool


@record
class Change:
    """How a node was converted, for the report.

    Attributes:
        kind: ``dense`` (a layer that became a Conv), ``window`` (a convolution or pooling over the whole window),
            ``unfold`` (window positions became channels), ``region`` (runs on every window) or ``context`` (sees the
            whole image).
        kernel: the window that it covers, along the axes of the map.
        inputs: number of input channels.
        outputs: number of output channels.
        groups: number of groups of channels.
        reads: the tensor that it reads, by its name in the original.
        layout: the layout of that tensor on the map, such as ``n (c256 h6 w6)``.
        weight: the name of its weight.
    """

    kind: str
    kernel: tuple[int, ...] = ()
    inputs: int = 0
    outputs: int = 0
    groups: int = 1
    reads: str = ""
    layout: str = ""
    weight: str = ""


class Rewind(Exception):
    """Raised if a reduced value meets a live map: these slots are context, and the walk returns to the first."""

    def __init__(self, slots: Iterable[int]) -> None:
        super().__init__()
        self.slots = frozenset(slots)


#: Pixels along each axis of the image, or None.
Strides = tuple[Fraction | None, ...]


@dataclass(frozen=True)
class Options:
    """The options of one walk.

    Attributes:
        output_stride: the coarsest stride along each axis of the image, in input pixels; beyond it operators dilate
            instead. None keeps the network's own; empty if all axes keep theirs.
        head: reductions that an earlier walk took for context, but that belong to the head.
        folds: fold the batch into a spatial axis around the head.
        asked: the user chose the output stride; otherwise it is the one that all answers share.
        apart: a map, and how far its windows are apart along each axis of the image, in input pixels; None for as
            close as they come.
        left_out: poolings that are left out, so that what follows them is computed at each cell of the map.
        attention: what relates positions to each other sees those of the whole image.
        portable: use only operators that all common runtimes read alike.
    """

    output_stride: Strides = ()
    head: frozenset[str] = frozenset()
    folds: bool = False
    asked: bool = False
    apart: tuple[str, Strides] | None = None
    left_out: frozenset[str] = frozenset()
    attention: bool = False
    portable: bool = False


@dataclass(frozen=True)
class Unpooled:
    """An output without its pooling: see `walk.cam`.

    Attributes:
        kind: ``mean`` or ``max``, of its cells in a window the answer for that window.
        reads: the tensors that were pooled.
        space: its axes, with the windows that the pooling covered.
    """

    kind: str
    reads: frozenset[str]
    space: tuple[Axis, ...]


#: In a formula of `FormedOutput.dims`, the size of the batch as the image declares it.
BATCH_SIZE = "{batch}"


@dataclass(frozen=True)
class FormedOutput:
    """An output that is computed from its map of answers: see `walk.forms`.

    Attributes:
        tensor: its name.
        dims: its shape; None for the batch, names and formulas for sizes that depend on the image.
        elem_type: `onnx.TensorProto.DataType`.
        form: a description, such as ``full-size argmax``.
    """

    tensor: str
    dims: tuple[int | str | None, ...]
    elem_type: int
    form: str


@dataclass(frozen=True)
class Standing:
    """What is to say of a network that cannot slide: see `walk.standing`.

    Attributes:
        cause: why it cannot.
        left: the dense layers that did not become convolutions, each with the reason.
    """

    cause: Diagnostic
    left: tuple[Diagnostic, ...]


@dataclass
class Walk:
    """The state of a walk, and its result when it has ended."""

    image: Image
    options: Options
    opsets: Mapping[str, int]
    values: Values
    slots: list[Slot]
    outputs: tuple[str, ...]
    shape_of: Callable[[str], tuple[int | None, ...] | None]  # shape of an unmapped tensor at the native size
    prologue: Slot
    region: Region | None = None  # the part that runs on every window
    standing: Standing | None = None  # it cannot slide: only dense layers are replaced
    epilogue: list[Slot] = field(default_factory=list)
    results: dict[str, Lifted] = field(default_factory=dict)  # the delivered outputs
    formed: dict[str, FormedOutput] = field(default_factory=dict)  # what is computed from these
    unpooled: dict[str, Unpooled] = field(default_factory=dict)  # those with an answer for each cell of a window
    renamed: dict[str, str] = field(default_factory=dict)  # maps that took the name of an output
    read: frozenset[str] = frozenset()  # tensors that are read by a node or are outputs
    facts: dict[str, Fact] = field(default_factory=dict)
    context: set[int] = field(default_factory=set)
    diagnostics: dict[int, Diagnostic] = field(default_factory=dict)
    needs: dict[int, str] = field(default_factory=dict)  # of these, if only a ``larger`` or ``smaller`` image may help
    products: dict[int, frozenset[int]] = field(default_factory=dict)  # a blocked product -> the slots at fault
    reductions: set[int] = field(default_factory=set)  # slots that may prove to be context
    attention: set[int] = field(default_factory=set)  # slots that relate positions of the whole image to each other
    weights: set[int] = field(default_factory=set)  # slots that weigh all positions of a map
    names: set[str] = field(default_factory=set)
    by_field: frozenset[str] = frozenset()  # outputs about what they see, although no window is live
    counts: dict[str, int] = field(default_factory=dict)  # for each hint, the last number used to make a name unique
    _upstream: dict[str, frozenset[int]] = field(default_factory=dict, init=False)  # as far as asked for

    @property
    def batch(self) -> int:
        """The batch that shapes are evaluated with."""
        return 1 if self.image.batch is None else self.image.shape[self.image.batch]

    @cached_property
    def makers(self) -> dict[str, int]:
        """The slot that makes each tensor."""
        return {name: k for k, slot in enumerate(self.slots) for name in slot.node.outputs if name}

    def upstream(self, name: str) -> frozenset[int]:
        """Slots that a tensor is computed from."""
        if name not in self._upstream:
            self._upstream[name] = frozenset(made_from([name], self.makers, lambda k: self.slots[k].node.reads))
        return self._upstream[name]

    def insert(self, position: int, slots: Sequence[Slot]) -> None:
        """Add slots before the one at this position."""
        self.slots[position:position] = slots
        self.__dict__.pop("makers", None)
        self._upstream.clear()

    def fresh(self, hint: str) -> str:
        """Return an unused tensor name."""
        name = hint
        while name in self.names:  # the search resumes where it ended
            self.counts[hint] = count = self.counts.get(hint, 1) + 1
            name = f"{hint}_{count}"
        self.names.add(name)
        return name

    def cells(self, axis: Axis) -> int | str:
        """The number of cells along an axis: a formula, such as ``(height - 224) // 32 + 1``, if it varies."""
        assert axis.image is not None, "every axis of an output is one of the image"
        if axis.image in self.held:
            return axis.count(self.image.size[axis.image])
        return axis.count.formula(SIZE_NAMES[len(self.image.space)][axis.image])

    @cached_property
    def contracted(self) -> tuple[str, ...]:
        """The outputs without an answer for each position; those that slide have one for each window."""
        facts = {name: self.facts.get(name) for name in self.outputs}
        return tuple(name for name, f in facts.items() if not (isinstance(f, Lifted) and f.is_dense))

    @cached_property
    def held(self) -> frozenset[int]:
        """The axes of the image that keep their size: by default those that a dense output of the original has not.

        A reader of text lines pools the height away, and has an answer for each step along the width. Were both to
        slide, there would be several rows of answers, and no axis for them.
        """
        if self.image.held is not None:
            return self.image.held
        held: set[int] = set()
        for fact in map(self.facts.get, self.outputs):
            if isinstance(fact, Lifted) and fact.is_dense:
                placed = {k for place in fact.placed(fact.axes) for k in place}
                held |= {a.image for k, a in enumerate(fact.space, 2) if a.image is not None and k not in placed}
        return frozenset(held)

    @property
    def has_head(self) -> bool:
        """Has the network an output that contracts its window? If not, it is fully convolutional."""
        return any(isinstance(self.facts.get(name), Lifted) for name in self.contracted)

    @property
    def answers(self) -> tuple[str, ...]:
        """The outputs that the cut is about: all of them, if none contracts its window."""
        return self.contracted if self.has_head else self.outputs

    @property
    def keeps_size(self) -> bool:
        """Does the result take images of the native size only?"""
        return self.standing is not None or any(formed.form == KEEP_SIZE for formed in self.formed.values())

    @property
    def succeeded(self) -> bool:
        """Whether nothing was refused."""
        return not self.diagnostics

    @property
    def causes(self) -> dict[int, Diagnostic]:
        """The root causes of a refusal, by slot. Attention replaces the causes before it: see `ABOUT_POSITIONS`."""
        found = dict(self.diagnostics)
        if self.options.attention:  # it is no cause then
            return dict(sorted(found.items()))
        for position, slots in sorted(self.products.items()):
            led = [k for k in slots if k in found and found[k].code in ABOUT_POSITIONS]
            if led:
                found = {k: d for k, d in found.items() if k not in led}
                found[position] = at_node(self.slots[position], product_of_maps())
        return dict(sorted(found.items()))


def at_node(slot: Slot, refusal: Unsupported) -> Diagnostic:
    """The diagnostic of a refusal at a node."""
    return Diagnostic(refusal.code, slot.name, slot.node.op, refusal.reason, refusal.hint)
