"""Values that are computed from sizes: which of them a larger image changes."""

from __future__ import annotations

import numpy as np

from onnx_fcn.lifting.facts import Fact, Whole
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Slot, Walk

__all__ = ["grows"]


#: More axes than any tensor has.
MOST_AXES = 64


def grows(walk: Walk, name: str) -> bool:
    """Does a value that is computed from sizes depend on that of the image? A number of channels does not."""
    makers, waiting, seen = walk.makers, [name], set[int]()
    while waiting:
        k = makers.get(waiting.pop())
        if k is None or k in seen:
            continue
        seen.add(k)
        slot = walk.slots[k]
        made = makers.get(slot.node.inputs[0]) if slot.node.op in ("Gather", "Slice") else None
        if made is not None and walk.slots[made].node.op == "Shape":
            if _open_axes(walk.slots[made].operands[0]) & _taken(walk, slot):
                return True
        elif slot.node.op in ("Shape", "Size"):
            return True
        else:
            waiting += slot.node.reads
    return False


def _open_axes(x: Fact | None) -> set[int]:
    """The axes of a tensor whose sizes the image decides, or the number of images."""
    if isinstance(x, Lifted):
        open_atoms = {x.batch, *(a for axis in x.space if axis.image is not None for a in axis.atoms)}
    elif isinstance(x, Whole):
        open_atoms = {x.batch, *x.extents}
    else:
        return set(range(MOST_AXES))
    return {k for k, group in enumerate(x.layout) if open_atoms.intersection(group)}


def _taken(walk: Walk, slot: Slot) -> set[int]:
    """The axes whose sizes a Gather or a Slice takes from a shape."""
    axes = np.arange(walk.values[slot.node.inputs[0]].size)
    numbers = [walk.values[n].reshape(-1).tolist() for n in slot.node.inputs[1:] if n]
    if slot.node.op == "Gather":
        return set(axes[numbers[0]].tolist())
    starts, ends, *more = numbers or [slot.node.attrs["starts"], slot.node.attrs["ends"]]
    step = more[1][0] if len(more) > 1 else 1
    return set(axes[starts[0] : ends[0] : step].tolist())
