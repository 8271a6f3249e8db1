"""Class activation maps: what follows a pooling over all positions, computed at each cell of the map instead.

A mean may be exchanged with layers that are affine, and a maximum with layers that only move values:

    layer(mean over cells of x)  =  mean over cells of layer(x)

So if nothing else follows the pooling, it is left out, and the score of a window is the mean, or the maximum, of the
answers of its cells: they say where in the window the score comes from (Zhou et al., "Learning Deep Features for
Discriminative Localization", 2016). Layers before the pooling may be of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from onnx_fcn.errors import OptionError
from onnx_fcn.lifting.lifted import Axis, Lifted, atoms_of
from onnx_fcn.lifting.program import Slot, Unpooled, Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.operators import AFFINE, CARRYING, SUMS
from onnx_fcn.walk.forms import FLOATS
from onnx_fcn.walk.passes import walked

__all__ = ["activations"]


#: What operators over all positions compute from them: a sum is a mean of larger values.
KINDS = {
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"), "mean"),
    **dict.fromkeys(("GlobalMaxPool", "MaxPool", "ReduceMax"), "max"),
}

#: Operators that only move values, and so may follow a maximum.
MOVING = CARRYING | {"Dropout", "Split"}

#: Operators that are affine in each operand that depends on the image, and in all of them together.
JOINTLY = MOVING | {"Add", "Mean", "Neg", "ReduceMean", "ReduceSum", "Sub", "Sum"}

#: Operators that are affine in one operand if the others do not depend on the position.
SINGLY = JOINTLY | AFFINE | SUMS | {"Einsum"}

#: What is wrong with an operator after a pooling of each kind.
WRONG = {"mean": "after the mean is not known to be affine", "max": "after the maximum does more than move values"}

NOTHING = "no class activation map, whose mean or maximum over a window would be its score"
INSTEAD = "leave --cam out: the plain map, or a finer one by --output-stride, has the scores of windows"


@dataclass(frozen=True)
class Window:
    """The window of a pooling along one axis of the image, in cells of the map."""

    image: int | None
    cells: int
    rate: int
    stride: Fraction
    window_stride: Fraction


@dataclass(frozen=True)
class Pooled:
    """What a tensor is computed from in ways that a pooling may be exchanged with.

    Attributes:
        kind: ``mean`` or ``max``.
        windows: those that were pooled.
        slots: the names of the poolings.
        reads: the tensors that they read.
    """

    kind: str
    windows: frozenset[Window] = frozenset()
    slots: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()


def activations(document: Document, walk: Walk) -> Walk:
    """The walk with what follows the pooling of the head at each cell of the map that it pools.

    Raises:
        OptionError: if the head has no such pooling, or what follows it may not be exchanged with it.
    """
    options = walk.options
    if options.apart is not None:
        raise OptionError("--cam answers at every cell of the network's map, and takes no coarser --output-stride")
    left_out = frozenset(slot for pooled in _pooled(walk).values() for slot in pooled.slots)
    stride = options.output_stride if options.asked else ()
    again = walked(document, walk.image, replace(options, output_stride=stride, left_out=left_out))
    if not again.succeeded:
        cause = next(iter(again.causes.values()))
        raise OptionError(f"the network has {NOTHING}: {cause.op} '{cause.node}' {cause.reason} ({INSTEAD})")
    for name, pooled in _pooled(again).items():
        windows = {w.image: w for w in pooled.windows}
        space = tuple(_with_window(a, windows.get(a.image)) for a in again.results[name].space)
        again.unpooled[name] = Unpooled(pooled.kind, pooled.reads, space)
        if not options.asked and any(a.rate > 1 for a in space):
            raise OptionError(
                f"'{name}' pools a map with larger strides than another output, so not all cells of a common grid "
                f"would be its own: choose one output with --outputs, such as --outputs {name}"
            )
    return again


def _with_window(axis: Axis, window: Window | None) -> Axis:
    return axis if window is None else replace(axis, atoms=atoms_of(window.cells, "w"), rate=window.rate)


def _pooled(walk: Walk) -> dict[str, Pooled]:
    """The pooling that each answer is computed from, whether it is left out or not.

    Raises:
        OptionError: if one is not computed from a pooling alone.
    """
    found, pooled = _poolings(walk), {}
    for name in walk.contracted:
        fact = walk.facts.get(name)
        if not isinstance(fact, Lifted):
            continue
        made = found.get(name)
        if made is None or fact.is_live:
            made = "it is not pooled over all positions"
        if isinstance(made, str):
            others = ", or choose other outputs with --outputs" if len(walk.outputs) > 1 else ""
            raise OptionError(f"'{name}' has {NOTHING}: {made} ({INSTEAD}{others})")
        pooled[name] = made
    return pooled


def _poolings(walk: Walk) -> dict[str, Pooled | str]:
    """For each tensor that is computed from contracted windows, their pooling, or why there is none, as a clause."""
    found: dict[str, Pooled | str] = {}
    for slot in walk.slots:
        made = _through(walk, slot, found)
        if made is not None:
            found |= {name: made for name in slot.node.outputs if name}
    return found


def _through(walk: Walk, slot: Slot, found: dict[str, Pooled | str]) -> Pooled | str | None:
    """The pooling that the result of a node comes from, or why there is none; None if no window was contracted yet."""
    result = walk.facts.get(slot.node.outputs[0])
    lifted = {n: f for n, f in zip(slot.node.inputs, slot.operands) if isinstance(f, Lifted)}
    if not isinstance(result, Lifted) or not lifted:
        return None
    before = [found[name] for name in lifted if name in found]
    if (why := next((b for b in before if isinstance(b, str)), None)) is not None:
        return why
    poolings = [b for b in before if isinstance(b, Pooled)]
    what = f"{slot.node.op} '{slot.name}'"
    if windows := frozenset().union(*(_contracted(f, result) for f in lifted.values())):
        kind = KINDS.get(slot.node.op)
        if kind is None or len(lifted) > 1 or result.elem_type not in FLOATS:
            return f"{what} takes all positions together, and is no mean or maximum of floats"
        earlier = poolings[0] if poolings else Pooled(kind)
        if earlier.kind != kind:
            return f"{what} pools in another way than the pooling before it"
        return Pooled(kind, earlier.windows | windows, earlier.slots | {slot.name}, earlier.reads | {*lifted})
    if not poolings:
        return None
    first = poolings[0]
    if len(before) < len(lifted):
        return f"{what} joins what is pooled with what is not"
    if len({(p.kind, p.windows) for p in poolings}) > 1:
        return f"{what} joins poolings of different kinds, or of different maps"
    if not _may_follow(slot, first.kind) or result.elem_type not in FLOATS:
        return f"{what} {WRONG[first.kind]}"
    slots, reads = (frozenset().union(*names) for names in zip(*((p.slots, p.reads) for p in poolings)))
    return replace(first, slots=slots, reads=reads)


def _contracted(x: Lifted, result: Lifted) -> frozenset[Window]:
    """The windows of an operand, along the axes of the image, that its result has as one cell."""
    left = {a.image for a in result.space if a.atoms}
    gone = [a for a in x.space if a.atoms and a.image is not None and a.image not in left]
    return frozenset(Window(a.image, a.window, a.rate, a.stride, a.window_stride) for a in gone)


def _may_follow(slot: Slot, kind: str) -> bool:
    """May this operator be exchanged with a pooling before it?"""
    mapped = [k for k, f in enumerate(slot.operands) if isinstance(f, Lifted)]
    if slot.node.domain not in (None, "", "ai.onnx"):
        return False
    if kind == "max":
        return slot.node.op in MOVING
    if slot.node.op == "Div":
        return mapped == [0]
    return slot.node.op in (JOINTLY if len(mapped) > 1 else SINGLY)
