"""Another head on a network: a linear layer on one or several of its maps, as a fully convolutional network.

    y(p) = bias + Σ_k kernel_k · x_k(p)

x_k(p) is map k at pixel p. A kernel has one tap, or it covers the whole window, as that of the dense layer after a
flatten does. The finest map gives the grid of the answers; the others are interpolated: linearly between the middles of
their cells, and constantly beyond the outermost ones. These are the skips of Long, Shelhamer, Darrell, "Fully
Convolutional Networks for Semantic Segmentation", 2015, with their fixed bilinear upsampling. As a layer is linear, it
does not matter whether maps or answers are interpolated: the answers are, which have fewer channels.

Interpolation by a factor r that is shifted by d cells is a transposed convolution with a triangle as its kernel,

    y[i] = Σ_j x[j] · max(0, 1 - |i + d - r·j| / r)

which is exact for any shift, where Resize knows a few, and computes no coordinates.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError, Unsupported, did_you_mean
from onnx_fcn.geometry import Taps
from onnx_fcn.lifting.emitter import Operand
from onnx_fcn.lifting.layouts import crop_to_common
from onnx_fcn.lifting.lifted import Axis, Lifted, atoms_of
from onnx_fcn.lifting.program import Slot, Walk
from onnx_fcn.lifting.site import Site
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.nodes import Node
from onnx_fcn.walk.cut import cuts_of
from onnx_fcn.walk.ends import on_grid
from onnx_fcn.walk.forms import FLOATS

__all__ = ["Head", "can_join", "finest_of", "map_at", "middles_of", "with_head"]


@dataclass(frozen=True)
class Head:
    """A linear layer on maps of a network.

    Attributes:
        output: the name of its output.
        tensors: the maps, by their names in the original.
        kernels: (K, C, *taps) for each map, with C the channels of the lifted map and K the classes.
        bias: (K,).
    """

    output: str
    tensors: tuple[str, ...]
    kernels: tuple[Array, ...]
    bias: Array


def with_head(document: Document, walk: Walk, head: Head) -> Walk:
    """The walk of a model with this head as its only output, which is declared in the document.

    Args:
        document: the model that was walked; it is changed in place.
        walk: a finished walk that was not assembled.
        head: the layer.

    Raises:
        OptionError: if there is no such map, or they cannot be combined.
    """
    maps = [map_at(walk, name) for name in head.tensors]
    for name, x, kernel in zip(head.tensors, maps, head.kernels):
        if kernel.shape[1:] not in {(x.width, *[1] * len(x.space)), (x.width, *x.window)}:
            raise OptionError(f"a kernel of {kernel.shape} does not fit the map '{name}' with {x.width} channels")
    names = [o.name for o in document.proto.graph.output]
    declared = onnx.helper.make_tensor_value_info(head.output, maps[0].elem_type, None)
    document.commit(Edit(removed_outputs=set(names), added_outputs=[declared]))
    node = Node("Head", head.output, head.tensors, [head.output])
    slot = Slot(node, walk.slots[-1].index, operands=tuple(maps), replaced=True)
    slots, outputs = [*walk.slots, slot], (head.output,)
    by_field = frozenset(outputs if has_place(maps[finest_of(maps)]) else ())
    made = replace(walk, by_field=by_field, slots=slots, outputs=outputs, epilogue=[], results={}, formed={})
    made.names.add(head.output)
    _give_way(walk, head.output)
    site = Site(made, len(walk.slots), slot)
    try:
        fact = on_grid(site, _joined(site, maps, head, walk.image.size))
        fact = _as_map(fact, fact.map, fact.width, fact.space)  # without made-up axes
    except Unsupported as refusal:
        raise OptionError(f"the maps {', '.join(map(repr, head.tensors))} cannot be combined: {refusal}") from None
    made.facts[head.output] = fact
    end = Node("Output", head.output, outputs=[head.output])
    made.epilogue.append(Slot(end, len(made.slots), replaced=True, operands=(fact,)))
    made.results[head.output] = fact
    return made


def can_join(walk: Walk, tensors: Sequence[str]) -> bool:
    """Can a layer read these maps together? Not if their cells do not share a grid, or the opset cannot crop."""
    maps = [map_at(walk, name) for name in tensors]
    kernels = tuple(np.zeros((1, x.width, *[1] * len(x.space))) for x in maps)
    node = Node("Head", "head", outputs=["head"])
    scratch = replace(walk, names=set(walk.names), counts={})
    site = Site(scratch, len(walk.slots), Slot(node, 0))
    try:
        _joined(site, maps, Head("head", tuple(tensors), kernels, np.zeros(1)), walk.image.size)
    except Unsupported:
        return False
    return True


def _give_way(walk: Walk, name: str) -> None:
    """Rename a tensor of the original whose name the head takes; it is not needed any more."""
    if any(name in slot.node.outputs for slot in walk.slots):
        other = walk.fresh(f"{name}/before")
        for emission in (e for slot in walk.slots for e in slot.emissions):
            emission.rename({name: other})


def map_at(walk: Walk, name: str) -> Lifted:
    """The map of a tensor.

    Raises:
        OptionError: if there is no such tensor, or it is not a map.
    """
    fact = walk.facts.get(name)
    if fact is None:
        known = [n for n, f in walk.facts.items() if isinstance(f, Lifted)]
        hint = did_you_mean(name, known) or f": its last maps are {_last(walk)}"
        raise OptionError(f"the model has no tensor '{name}'{hint}")
    if not isinstance(fact, Lifted):
        raise OptionError(f"'{name}' does not depend on the position, so no layer can read it at every pixel")
    return fact


def _last(walk: Walk) -> str:
    return ", ".join(repr(cut.name) for cut in itertools.islice(cuts_of(walk), 5)) or "not usable"


def finest_of(maps: Sequence[Lifted]) -> int:
    """The index of the map with the smallest strides, on whose cells the answers are."""
    return min(range(len(maps)), key=lambda k: tuple(a.stride for a in maps[k].space))


def _joined(site: Site, maps: Sequence[Lifted], head: Head, native: Sequence[int]) -> Lifted:
    """The sum of the layers on all maps, on the cells of the finest, with its middles in the middle of their fields."""
    finest = finest_of(maps)
    parts = [
        _layer(site, x, kernel, head.bias if k == finest else None)
        for k, (x, kernel) in enumerate(zip(maps, head.kernels))
    ]
    middles = [middles_of(x, native) for x in maps]
    main, own = parts.pop(finest), middles.pop(finest)
    others = [_onto(site, x, main, [f - c for f, c in zip(own, middle)]) for x, middle in zip(parts, middles)]
    if not others:
        return main
    same = crop_to_common(site, [main, *others])
    space = tuple(functools.reduce(Axis.joined, axes) for axes in zip(*(x.space for x in same)))
    space = tuple(
        replace(a, atoms=own.atoms, local=a.local.around(own.local.centre)) for a, own in zip(space, main.space)
    )
    return replace(main, map=site.emit(same, "Sum"), space=space)


def _layer(site: Site, x: Lifted, kernel: Array, bias: Array | None) -> Lifted:
    """A layer on one map: (N, C, *space) → (N, K, *space), or (N, K, *grid) if the kernel covers the window."""
    if x.elem_type not in FLOATS:
        raise Unsupported("its numbers are rounded to integers: take the model before its quantisation", code="type")
    covers = kernel.shape[2:] == x.window and x.is_live
    taps, strides, dilations = x.kernel(range(len(x.space)) if covers else ())
    kind = site.dtype(x.elem_type)
    with np.errstate(over="ignore"):
        weights = [values.astype(kind) for values in (kernel, bias) if values is not None]
    if not all(np.isfinite(values).all() for values in weights):
        raise Unsupported(
            f"its features are so small, or vary so little, that their weights are beyond the range of {kind.name}: "
            "choose other maps, or take the network in float32",
            code="type",
        )
    operands: list[Operand] = [x, *weights]
    name = site.emit(operands, "Conv", kernel_shape=taps, strides=strides, dilations=dilations)
    space = tuple(a.contracted() if covers and a.atoms else a for a in x.space)
    return _as_map(x, name, len(kernel), space)


def _as_map(x: Lifted, name: str, width: int, space: tuple[Axis, ...]) -> Lifted:
    """The fact of a map (N, width, *space)."""
    channels = atoms_of(width, "k")
    layout = ((x.batch,) if x.batch.size > 1 else (), channels, *(a.atoms for a in space))
    return replace(x, map=name, channels=channels, space=space, layout=layout)


def has_place(fact: Lifted) -> bool:
    """Does a tensor have axes of the image, so that its cells are where they look? Otherwise it is about windows."""
    return fact.is_dense or fact.rank == 2 + len(fact.space)


def middles_of(fact: Lifted, native: Sequence[int]) -> tuple[Fraction, ...]:
    """The pixel in the middle of cell 0 along each axis of the map: of its field, or of a native window."""
    axes = [(a, None if a.image is None else native[a.image]) for a in fact.space]
    by_field = has_place(fact)
    return tuple(
        Fraction(0) if n is None else Fraction(a.local.centre) if by_field else Fraction(n - 1, 2) for a, n in axes
    )


@dataclass(frozen=True)
class Interpolation:
    """The interpolation of a map along one axis onto the cells of a finer one.

    Attributes:
        factor: cells of the result per cell of the map, r.
        shift: how many cells of the result its cell 0 is after cell 0 of the map, d.
        front: cells of padding before the map.
        back: cells of padding after the map.
    """

    factor: int
    shift: Fraction
    front: int
    back: int

    @classmethod
    def between(cls, coarse: Axis, fine: Axis, apart: Fraction) -> Interpolation:
        """The interpolation of one axis onto another, whose cell 0 is so many pixels after that of the first.

        Raises:
            Unsupported: if the stride of one is no multiple of the other's.
        """
        factor = coarse.stride / fine.stride
        if factor.denominator != 1:
            raise Unsupported(
                f"the stride of one, {coarse.stride} pixels, is no multiple of the other's, {fine.stride}", code="grid"
            )
        shift = apart / fine.stride
        _, most = fine.count.beyond(coarse.count.then(int(factor), 0, 1))
        front = max(0, math.ceil(-shift / factor))
        return cls(int(factor), shift, front, max(0, math.ceil((most - 1 + shift) / factor) + 1))

    @property
    def is_identity(self) -> bool:
        """Are the cells the same?"""
        return self.factor == 1 and self.shift == 0

    @property
    def begin(self) -> int:
        """Cells of the transposed convolution before the first cell of the result."""
        return math.ceil(self.front * self.factor + self.shift) + self.factor - 1

    @property
    def triangle(self) -> Array:
        """The kernel: tap m is max(0, 1 - |m - begin + front·r + d| / r)."""
        offset = float(self.front * self.factor + self.shift - self.begin)
        span = 2 * self.factor - (self.shift.denominator == 1)
        weights: Array = np.maximum(0, 1 - np.abs(np.arange(span) + offset) / self.factor)
        return weights

    def applied(self, axis: Axis) -> Axis:
        """The axis of the result."""
        span, begin = len(self.triangle), self.begin
        padded = axis.slid(1, "w", 1, pads=(self.front, self.back)).mirrored(max(self.front, self.back))
        taps = Taps(Fraction(self.factor), 2 * (begin - span + self.factor), 2 * begin)
        return padded.resampled(1, "w", taps, span - self.factor - begin)


def _onto(site: Site, x: Lifted, fine: Lifted, apart: Sequence[Fraction]) -> Lifted:
    """A map (N, K, *space) on the cells of a finer one, or on more at its end.

    `apart`: pixels from the middle of its cell 0 to that of the finer map's.
    """
    if [a.image for a in x.space] != [a.image for a in fine.space]:
        raise Unsupported("their axes run along different axes of the image", code="grid")
    plans = [Interpolation.between(a, b, d) for a, b, d in zip(x.space, fine.space, apart)]
    if all(p.is_identity for p in plans):
        return replace(x, space=tuple(replace(a, atoms=b.atoms) for a, b in zip(x.space, fine.space)))
    name = x.map
    if any(p.front or p.back for p in plans):
        name = site.pad_edges(name, [0, 0, *(p.front for p in plans)], [0, 0, *(p.back for p in plans)])
    taps = functools.reduce(np.multiply.outer, [p.triangle for p in plans])
    kernel = np.broadcast_to(taps, (x.width, 1, *taps.shape)).astype(site.dtype(x.elem_type))
    pads = [*(p.begin for p in plans), *[0] * len(plans)]
    strides = [p.factor for p in plans]
    name = site.emit([name, kernel], "ConvTranspose", strides=strides, pads=pads, group=x.width)
    site.note_sliding(pads=True, strides=False)
    space = tuple(replace(p.applied(a), atoms=b.atoms) for p, a, b in zip(plans, x.space, fine.space))
    return _as_map(x, name, x.width, space)
