"""What a rule may do to the graph: emit nodes in the seat of its own, bring a map into the form that an operator needs.

    emit       a node, or a variation of the seat's own
    arrange    channels in a given order of atoms: at most one Gather(axis=1) with a constant index, free of H and W
    settle     channels in the logical order of the original tensor
    unfold     window positions become channels: exact for whatever wants all positions of a window at once
    apart      an operator on what is at each position by itself: positions join the batch
    spatial    which physical axis each spatial axis of the original lies on
    grouped    an operator along some of the channels only
    across     an operator that slides along channels, at every cell of a map

Every spelling that depends on the opset version is in `emitter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.bounds import REPEAT_LIMIT, UNFOLD_KERNEL, UNFOLD_LIMIT, megabytes
from onnx_fcn.lifting.emitter import RAISE_OPSET, Emitter, Operand
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.lifted import Atom, Axis, Lifted, atoms_of
from onnx_fcn.lifting.program import Change, Image, Rewind, Slides
from onnx_fcn.lifting.refusals import RUN_THE_REST

__all__ = ["Site"]


#: Types that onnxruntime convolves and averages; for others (double among them) the same is spelled in other operators.
CONVOLVED = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


class Site(Emitter):
    """One node under conversion: what its rule reads, and where the nodes go that it emits."""

    # The ends of the walk -----------------------------------------------------------------------------------------

    def begin(self, image: Image) -> Lifted:
        """The image as a map: one Transpose where it is not channels-first."""
        if image.is_channels_first:
            return image.lifted(image.name)
        order = [image.batch, image.channels, *image.space]
        name = self.emit([image.name], "Transpose", perm=[k for k in order if k is not None])
        missing = [k for k, axis in enumerate(order) if axis is None]
        if [k for k in order if k is not None] == sorted(k for k in order if k is not None):
            self._seat.emissions.pop()
            name = image.name
        return image.lifted(self.unsqueeze(name, missing) if missing else name)

    def deliver(self, x: Lifted) -> Lifted:
        """An output as (N, C, *grid), its axes in the order of the image's.

        A network without any dense layer or pooling of its window is fully convolutional already: its maps stay as
        they are.
        """
        if x.is_plain and x.rank == 2 + len(x.space) and not self._walk.has_head:
            if any(a.grid > a.stride for a in x.space):
                raise Unsupported(
                    f"answers with a map that was made finer again ({x}): this is no classifier, it has no head",
                    code="decoder-output",
                    hint="a network that answers per pixel needs no conversion, only dynamic input sizes",
                )
            return x.on(self.materialise(x))
        x = self.settle(self.unfold(self.unfurled(x)))
        extra = [k for k, a in enumerate(x.space) if a.image is None]
        name = self.squeeze(x.map, [2 + k for k in extra]) if extra else x.map
        kept = [a for a in x.space if a.image is not None]
        order = sorted(range(len(kept)), key=lambda k: kept[k].image or 0)
        if order != list(range(len(kept))):
            name = self.emit([name], "Transpose", perm=[0, 1, *(2 + k for k in order)])
        return replace(x, map=name, space=tuple(kept[k] for k in order))

    # Reading ------------------------------------------------------------------------------------------------------

    def has_output(self, index: int) -> bool:
        """Does anything read this output?"""
        return index < len(self.outputs) and self.outputs[index] in self._walk.read

    def ints(self, fact: Fact | None) -> list[int] | None:
        """A constant operand as a list of integers; None where it is absent."""
        return None if fact is None else [int(v) for v in self.value(fact).reshape(-1)]

    def axes(self, fact: Fact | None) -> list[int] | None:
        """The axes of Squeeze, Unsqueeze and Reduce: an attribute in early opsets, an operand in later ones."""
        return self.ints(fact) if fact is not None else self.attr("axes")

    def producer(self, fact: Known) -> onnx.NodeProto | None:
        """The node that computes a constant; None for initializers."""
        return self._walk.values.producer(fact.name)

    def stated(self, name: str, value: Array) -> Known:
        """A new constant whose value other rules may ask for."""
        self._walk.values.set(name, value)
        return Known(name)

    def elem_type_of(self, fact: Fact | None) -> int:
        """Element type of an operand."""
        if isinstance(fact, Lifted):
            return fact.elem_type
        if isinstance(fact, Known):
            return int(onnx.helper.np_dtype_to_tensor_dtype(self.value(fact).dtype))
        raise Unsupported("the type of an operand is not known", code="unknown-type")

    def type_attr(self, name: str, default: int = 0) -> int:
        """An attribute that names an element type (graphsurgeon shows these as numpy types)."""
        return int(next((a.i for a in self._seat.proto.attribute if a.name == name and a.i), default))

    def weight_shape(self, fact: Known) -> tuple[int, ...]:
        """Shape of a weight, without dequantising or casting it."""
        node = self.producer(fact)
        if node is not None and node.op_type in ("DequantizeLinear", "Cast") and node.input:
            return self.weight_shape(Known(node.input[0]))
        return tuple(self.value(fact).shape)

    def known(self, value: Array, *, at_run_time: str | None = None) -> Known:
        """A value that is computed from sizes.

        Args:
            value: as it is at the native size.
            at_run_time: the tensor that has it at any size.
        """
        if at_run_time is not None:
            self._aliases[at_run_time] = self.outputs[0]
        self._walk.values.set(self.outputs[0], value)
        return Known(self.outputs[0], sized=True)

    def shape_of(self, fact: Unmapped) -> tuple[int, ...]:
        """Shape of an unmapped tensor at the native size.

        Raises:
            Unsupported: shape inference does not know it.
        """
        shape = self._walk.shape_of(fact.name)
        if shape is None or any(d is None for d in shape):
            raise Unsupported(f"the shape of '{fact.name}' is not known", code="unknown-shape")
        return tuple(d for d in shape if d is not None)

    # Context and bookkeeping --------------------------------------------------------------------------------------

    @property
    def is_head(self) -> bool:
        """Has what seemed to be context turned out to lie beyond the cut?"""
        return self._seat.name in self._walk.options.head

    @property
    def is_context(self) -> bool:
        """Has this reduction turned out to be context, which stays global?"""
        return self.position in self._walk.context

    def stride(self, axis: Axis, stride: int) -> tuple[int, int]:
        """(cells to step on the map, rate of the result): beyond the wanted output stride operators dilate."""
        target = self._walk.options.output_stride
        if target is None:
            return stride, 1
        room, step = target / axis.stride, stride * axis.rate
        step = math.gcd(step, int(room)) if room.denominator == 1 else 1
        return step, stride * axis.rate // step

    def keep_global(self, x: Lifted, op: str) -> Unmapped:
        """Pool the whole map, whatever its size: context, which is the same for all positions."""
        self.note_context(x)
        return Unmapped(self.emit([self.sparse(x)], op))

    def sparse(self, x: Lifted) -> Lifted:
        """The cells that the map has without dilation: every rate-th. What is global has to see those alone."""
        axes = [k for k, a in enumerate(x.space) if a.rate > 1]
        if not axes:
            return x
        zeros, most = [0] * len(axes), [np.iinfo(np.int64).max] * len(axes)
        name = self.slice(x.map, zeros, most, [2 + k for k in axes], [x.space[k].rate for k in axes])
        rates = {k: x.space[k].rate for k in axes}
        space = tuple(a.slid(a.window, "w", 1, rates[k]) if k in axes else a for k, a in enumerate(x.space))
        return replace(x, map=name, space=tuple(replace(a, atoms=b.atoms) for a, b in zip(space, x.space)))

    def undilated(self, x: Lifted, does: str) -> None:
        """Make sure that a map is not dilated.

        Raises:
            Unsupported: it is; the operator `does` something that is about neighbouring cells or about all of them.
        """
        if any(a.rate > 1 for a in x.space):
            raise self.dilated(does)

    def dilated(self, does: str) -> Unsupported:
        """The refusal of an operator that `does` something which cannot be done to a dilated map."""
        if self._walk.options.asked:
            return Unsupported(
                f"{does}, which a map with answers in between would change",
                code="rate",
                hint="a coarser --output-stride keeps the maps before it as they are",
            )
        several = len(self._walk.outputs) > 1
        return Unsupported(
            f"{does}, where the answers of all branches lie on one grid only if the map before it dilates",
            code="rate",
            hint="take the outputs with other strides apart, with --outputs" if several else RUN_THE_REST,
        )

    def level(self, maps: Sequence[Lifted]) -> list[Lifted]:
        """Maps that meet, cut to the cells that all of them have.

        Branches that stride or pad in different ways, such as a convolution 3/2 beside a shortcut 1/2, have as many
        cells at the native size, and at some other sizes one has more. At the native size plus whole strides they have
        as many again, and counts never fall; so all windows lie within the smallest map, and the surplus goes.

        Raises:
            Unsupported: now one of them is the smallest and now another; or the opset cannot cut at run time.
        """
        apart = [k for k, axes in enumerate(zip(*(m.space for m in maps))) if len({a.count for a in axes}) > 1]
        maps = [self.unfurled(m) for m in maps] if apart else list(maps)
        for k in apart:
            counts = [m.space[k].count for m in maps]
            if len({count.rate for count in counts}) > 1:
                continue  # their cells lie at different strides, which is refused where they are joined
            least = next((m for m in maps if all(m.space[k].count.beyond(count)[1] <= 0 for count in counts)), None)
            if least is None:
                raise Unsupported(
                    "joins maps of which now one and now the other has more cells, by the size of the image",
                    code="counts-meet",
                )
            maps = [self._shortened(m, k, least) for m in maps]
        return maps

    def _shortened(self, x: Lifted, k: int, like: Lifted) -> Lifted:
        """A map without the cells along one axis that a smaller one does not have."""
        count = like.space[k].count
        fewest, most = x.space[k].count.beyond(count)
        if most == 0:
            return x
        if fewest == most:
            name = self.slice(x.map, [0], [-most], [2 + k])
        elif self.opset < 10:
            raise Unsupported(
                "joins maps that have as many cells at the native size alone, and cutting them at other sizes takes "
                "opset 10",
                code="opset",
                hint=RAISE_OPSET,
            )
        else:
            cells = self.slice(self.emit([like], "Shape"), [2 + k], [3 + k], [0])
            at: list[Operand] = [x, np.array([0]), cells, np.array([2 + k])]
            name = self.emit(at, "Slice")
        return replace(x, map=name, space=tuple(a.shortened(count) if j == k else a for j, a in enumerate(x.space)))

    def reduces(self, x: Lifted, *, contextable: bool) -> frozenset[int]:
        """The origins of a value that contracts the window here."""
        if contextable and not self.is_head:
            self._walk.reductions.add(self.position)
        return x.origins | {self.position}

    def note_context(self, x: Lifted) -> None:
        """Say that this operator sees the whole image, whatever its size."""
        self._walk.context.add(self.position)
        self.note("context", x, x.window)

    def note(self, kind: str, x: Lifted, kernel: Sequence[int] = (), **numbers: Any) -> None:
        """Say what becomes of this node, which reads x, for the report: see `Change`."""
        reads = next((t.name for t, f in zip(self.node.inputs, self._seat.operands) if isinstance(f, Lifted)), "")
        self._seat.changes.append(Change(kind, tuple(kernel), reads=reads, layout=str(x), **numbers))

    def repeats(self, size: int) -> int:
        """Note that a repeated weight, or a kernel that copies, takes so many bytes; how many all take so far."""
        self._seat.repeated += size
        return sum(seat.repeated for seat in (*self._walk.seats, *self._walk.epilogue))

    def note_sliding(self, *, pads: bool, strides: bool) -> None:
        """Say how this operator's result differs from what a single window would see."""
        self._seat.slides = Slides(pads, strides)

    def check_meeting(self, facts: Iterable[Fact | None]) -> None:
        """Rewind when a value that was reduced over the window meets a map on which the window is still live."""
        lifted = [f for f in facts if isinstance(f, Lifted)]
        live = {a.image for f in lifted for a in f.space if a.atoms}
        for fact in lifted:
            missing = any(not a.atoms and a.image in live for a in fact.space)
            if missing and fact.origins and fact.origins <= self._walk.reductions:
                raise Rewind(fact.origins)

    # Naming -------------------------------------------------------------------------------------------------------

    def named(self, facts: Sequence[Fact]) -> list[Fact]:
        """Give the maps that this seat emitted the names of the node's outputs."""
        made = {o.name: o for e in self._seat.emissions for o in e.node.outputs if o.name}
        renamed = dict(self._aliases)
        result: list[Fact] = []
        for name, fact in zip(self.outputs, facts):
            if isinstance(fact, Lifted | Unmapped):
                old = fact.map if isinstance(fact, Lifted) else fact.name
                if name and old in made and old not in renamed and name not in renamed.values():
                    renamed[old] = name
            result.append(fact)
        for emission in self._seat.emissions:
            for tensor in [*emission.node.inputs, *emission.node.outputs]:
                tensor.name = renamed.get(tensor.name, tensor.name)

        def again(fact: Fact) -> Fact:
            if isinstance(fact, Lifted):
                return replace(fact, map=renamed.get(fact.map, fact.map))
            return replace(fact, name=renamed.get(fact.name, fact.name)) if isinstance(fact, Unmapped) else fact

        return [again(f) for f in result]

    # Bringing maps into form --------------------------------------------------------------------------------------

    def arrange(self, x: Lifted, channels: Sequence[Atom]) -> Lifted:
        """The map with its channels in this order of atoms; atoms that it lacks are repeated along."""
        channels = tuple(channels)
        if channels == x.channels:
            return x
        kept = [a for a in channels if a in x.channels]
        if set(kept) != set(x.channels):
            raise AssertionError("arrange drops channels")
        index = np.arange(x.width, dtype=np.int64).reshape([a.size for a in x.channels])
        index = index.transpose([x.channels.index(a) for a in kept])
        index = index.reshape([a.size if a in kept else 1 for a in channels])
        index = np.broadcast_to(index, [a.size for a in channels]).reshape(-1)
        if np.array_equal(index, np.arange(x.width)):
            return replace(x, channels=channels)
        return replace(x, map=self.emit([x, index], "Gather", axis=1), channels=channels)

    def settle(self, x: Lifted) -> Lifted:
        """The map with its channels in the logical order of the original tensor."""
        order = [a for group in x.layout for a in group if a in x.channels]
        return self.arrange(x, order).canonical()

    def unfold(self, x: Lifted, axes: Iterable[int] | None = None) -> Lifted:
        """Window positions become channels, behind those that are there: (N, C, *space) -> (N, C·window, *grid).

        A depthwise Conv with one-hot kernels, which copies; other types than floats are sliced and concatenated.
        """
        axes = [k for k, a in enumerate(x.space) if a.atoms and (axes is None or k in axes)]
        if not axes:
            return x
        if x.padding is not None:
            raise self.padded(x)
        moved = tuple(atom for k in axes for atom in x.space[k].atoms)
        channels = x.width * Atom.product(moved)
        if channels > UNFOLD_LIMIT:
            raise Unsupported(
                f"wants all positions of the window at once, which takes {channels} channels (at most {UNFOLD_LIMIT})",
                code="unfold-too-large",
                hint=RUN_THE_REST,
            )
        if x.elem_type in CONVOLVED:
            window, strides, rates = x.kernel(axes)
            taps = math.prod(window)
            if channels * taps > UNFOLD_KERNEL:
                size = "×".join(map(str, window))
                raise Unsupported(
                    f"wants all positions of the window at once, {size} of {x.width} channels, and the kernel that "
                    f"copies them has {channels * taps:,} values (at most {UNFOLD_KERNEL:,})",
                    code="unfold-too-large",
                    hint=RUN_THE_REST,
                )
            total = self.repeats(channels * taps * self.dtype(x.elem_type).itemsize)
            if total > REPEAT_LIMIT:
                raise Unsupported(
                    "wants all positions of the window at once, and the kernels that copy them, with the weights that "
                    f"are repeated, would take {megabytes(total)} (at most {megabytes(REPEAT_LIMIT)})",
                    code="unfold-too-large",
                    hint=RUN_THE_REST,
                )
            kernel = np.tile(np.eye(taps, dtype=self.dtype(x.elem_type)), (x.width, 1)).reshape(-1, 1, *window)
            name = self.emit([x, kernel], "Conv", kernel_shape=window, strides=strides, dilations=rates, group=x.width)
            order = (*x.channels, *moved)
        else:
            name = self.emit(self.cells(x, axes), "Concat", axis=1)
            order = (*moved, *x.channels)
        self.note("unfold", x, x.kernel(axes)[0], inputs=x.width, outputs=channels)
        space = tuple(a.contracted() if k in axes else a for k, a in enumerate(x.space))
        origins = self.reduces(x, contextable=False)
        return replace(x, map=name, channels=order, space=space, origins=origins, unfolded=self.position)

    def cells(self, x: Lifted, axes: Sequence[int]) -> list[str]:
        """For each cell of the window along these axes, row-major, the map of that cell of all windows."""
        space = [x.space[k] for k in axes]
        names = []
        for at in np.ndindex(*(a.window for a in space)):
            left = [(a.window - 1 - p) * a.rate for a, p in zip(space, at)]
            starts, ends = [p * a.rate for a, p in zip(space, at)], [-n if n else np.iinfo(np.int64).max for n in left]
            names.append(self.slice(x.map, starts, ends, [k + 2 for k in axes], [a.step for a in space]))
        return names

    def spatial(self, x: Lifted, first: int = 2) -> tuple[Lifted, list[int]]:
        """The spatial axes of the original tensor (from `first`) as axes of the map, adding axes of length 1.

        Returns the map and, for each of them, its spatial axis of the map.

        Raises:
            Unsupported: one of them is no spatial axis of the map as a whole.
        """
        found: list[int | None] = []
        for k in range(first, x.rank):
            group = x.layout[k]
            axis = x.space_of(group) if group else None
            if group and axis is None:
                raise Unsupported(
                    f"slides along axis {k} of {x} ({x.dims}), which is no axis of the image",
                    code="not-spatial",
                    hint=RUN_THE_REST,
                )
            found.append(axis)
        free = [k for k, a in enumerate(x.space) if not a.atoms]
        missing = found.count(None) - len(free)
        if missing > 0:
            rank = len(x.space)
            x = replace(
                x,
                map=self.unsqueeze(x.map, [2 + rank + k for k in range(missing)]),
                space=(*x.space, *[Axis(())] * missing),
            )
            free += range(rank, rank + missing)
        return x, [free.pop(0) if axis is None else axis for axis in found]

    def rearranged(self, x: Lifted) -> Lifted:
        """The map whose axes are those of the original where that has moved factors between space and depth.

        A pixel shuffle or a nearest upsampling, however it is written, ends as (h r): cells that lie among the
        channels. A space-to-depth ends with the inner factor of an axis among the channels of the original. Both are
        layouts until an operator slides along such an axis, or joins it with another.
        """
        if x.rank != 2 + len(x.space):
            return x
        for k, axis in enumerate(x.space):
            group = next((g for g in x.layout if g and axis.atoms and g[0] is axis.atoms[0]), ())
            lead = next(
                (m for m, (a, b) in enumerate(zip(group, axis.atoms)) if a is not b), min(len(group), len(axis.atoms))
            )
            inner, extra = axis.atoms[lead:], group[lead:]
            if extra and not inner and all(a in x.channels for a in extra):
                x = self._interleaved(x, k, extra)
            elif inner and not extra and lead:
                x = self._deepened(x, k, inner)
        return x

    def _interleaved(self, x: Lifted, k: int, atoms: tuple[Atom, ...]) -> Lifted:
        """Depth to space along one axis: these channels become the inner factor of its cells."""
        self.undilated(x, "makes the map finer")
        others = tuple(a for a in x.channels if a not in atoms)
        x = self.arrange(x, (*atoms, *others))
        rank, size = 2 + len(x.space), Atom.product(atoms)
        # (N, t·C, …, H, …) -> (N, H, t·C, …) -> (N, H·t, C, …): with the axis in front nothing depends on the size
        perm = [0, 2 + k, 1, *(j for j in range(2, rank) if j != 2 + k)]
        target = [0, -1, Atom.product(others), *[0] * (rank - 3)]
        seen = self.emit([self.emit([x], "Transpose", perm=perm), np.array(target, np.int64)], "Reshape")
        name = self.emit([seen], "Transpose", perm=[perm.index(j) for j in range(rank)])
        axis = x.space[k]
        finer = replace(axis.finer(size, axis.window * size, axis.atoms[0].name), atoms=(*axis.atoms, *atoms))
        space = tuple(finer if j == k else a for j, a in enumerate(x.space))
        return replace(x, map=name, channels=others, space=space).canonical()

    def _deepened(self, x: Lifted, k: int, atoms: tuple[Atom, ...]) -> Lifted:
        """Space to depth along one axis: the inner factor of its cells becomes channels, by one-hot kernels."""
        axis, size = x.space[k], Atom.product(atoms)
        target = self._walk.options.output_stride
        if axis.rate != 1 or (target is not None and axis.stride * size > target):
            raise self.dilated("moves cells of the map to its channels")
        window = [size if j == k else 1 for j in range(len(x.space))]
        kernel = np.tile(np.eye(size, dtype=self.dtype(x.elem_type)), (x.width, 1)).reshape(-1, 1, *window)
        name = self.emit([x, kernel], "Conv", kernel_shape=window, strides=window, group=x.width)
        coarser = axis.slid(axis.window // size, axis.atoms[0].name, size, size)
        coarser = replace(coarser, atoms=axis.atoms[: -len(atoms)])
        self.note_sliding(pads=False, strides=True)
        space = tuple(coarser if j == k else a for j, a in enumerate(x.space))
        return replace(x, map=name, channels=(*x.channels, *atoms), space=space)

    def feature_map(self, x: Lifted) -> Lifted:
        """The map for an operator that slides: channels settled and alone on axis 1, nothing else left over.

        Raises:
            Unsupported: axis 1 of the original tensor is not the channels.
        """
        x = self.rearranged(x)
        several = [a for a in x.layout[0] if a is not x.batch] if x.rank and x.batch in x.layout[0] else []
        if several and set(several) <= set(x.channels):
            raise Unsupported(
                f"sees the {Atom.product(several)} images, patches or channels of each sample as images of their own",
                code="several-images",
                hint="convert the network that answers for one of them",
            )
        if x.rank < 2 or (x.batch.size > 1 and x.layout[0] != (x.batch,)) or set(x.layout[1]) != set(x.channels):
            raise Unsupported(
                f"wants the channels on axis 1, but the layout here is {x} ({x.dims})",
                code="not-channels",
                hint=RUN_THE_REST,
            )
        if x.batch.size == 1 and x.layout[0]:
            raise Unsupported(f"wants the batch on axis 0, but the layout here is {x}", code="not-channels")
        return self.arrange(x, x.layout[1])

    def grouped(
        self, x: Lifted, atoms: Sequence[Atom], emit: Callable[[str, int], str], result: Sequence[Atom] | None = None
    ) -> Lifted:
        """An operator along some channel atoms: `emit(tensor, axis)` gets them as one axis of its own.

        `result` are the atoms that the operator leaves of them, by default the same. The layout is the caller's.
        """
        return self.grouped_many(x, atoms, lambda t, axis: [emit(t, axis)], result)[0]

    def grouped_many(
        self,
        x: Lifted,
        atoms: Sequence[Atom],
        emit: Callable[[str, int], list[str]],
        result: Sequence[Atom] | None = None,
    ) -> list[Lifted]:
        """Likewise for an operator with several outputs."""
        atoms = tuple(atoms)
        result = atoms if result is None else tuple(result)
        others = tuple(a for a in x.channels if a not in atoms)
        x = self.arrange(x, (*others, *atoms))
        outer, inner = Atom.product(others), Atom.product(atoms)
        if outer == 1:
            return [replace(x, map=name, channels=(*others, *result)) for name in emit(x.map, 1)]
        target = self.shape_with(x, outer * Atom.product(result))
        seen = self.emit([x, np.array([0, outer, inner, -1], np.int64)], "Reshape")
        names = [self.emit([made, target], "Reshape") for made in emit(seen, 2)]
        return [replace(x, map=name, channels=(*others, *result)) for name in names]

    def apart(self, x: Lifted, shape: Sequence[int], emit: Callable[[Lifted], str]) -> Lifted:
        """An operator on what is at each position by itself: (N, d…) -> (N, *shape).

        `emit` gets the original tensor, with the positions of all images as its batch.
        """
        x = self.settle(x)
        rank = 2 + len(x.space)
        last = self.emit([x], "Transpose", perm=[0, *range(2, rank), 1])
        rows = self.emit([last, np.array([-1, *x.shape[1:]], np.int64)], "Reshape")
        grid: list[Operand] = [self.slice(self.emit([last], "Shape"), [0], [-1], [0]), np.array([math.prod(shape)])]
        made = self.emit([emit(x.on(rows)), self.emit(grid, "Concat", axis=0)], "Reshape")
        name = self.emit([made], "Transpose", perm=[0, rank - 1, *range(1, rank - 1)])
        atoms = [atoms_of(size, "p") for size in shape]
        return replace(x, map=name, channels=tuple(a for g in atoms for a in g), layout=(x.layout[0], *atoms))

    def across(self, x: Lifted, axes: Sequence[int], sizes: Sequence[int], emit: Callable[[str], str]) -> Lifted:
        """An operator along axes of the original that are channels, at every cell by itself: these become `sizes` long.

        `emit` gets (N, the other channels, *axes, cells), whatever the size of the image.
        """
        along = [x.layout[k] for k in axes]
        others = tuple(a for a in x.channels if not any(a in group for group in along))
        x = self.arrange(x, (*others, *(a for group in along for a in group)))
        made = [atoms_of(size, "c") for size in sizes]
        seen = [0, Atom.product(others), *map(Atom.product, along), -1]
        name = emit(self.emit([x, np.array(seen, np.int64)], "Reshape"))
        target = self.shape_with(x, Atom.product(others) * math.prod(sizes))
        layout = [made[axes.index(k)] if k in axes else group for k, group in enumerate(x.layout)]
        return replace(
            x,
            map=self.emit([name, target], "Reshape"),
            channels=(*others, *(a for group in made for a in group)),
            layout=tuple(layout),
        )

    def as_channels(self, x: Lifted, axes: Iterable[int]) -> tuple[Lifted, tuple[Atom, ...]]:
        """The map on which these axes of the original tensor are channels, unfolded where need be, and their atoms.

        Raises:
            Unsupported: the batch is among them.
        """
        axes, x = list(axes), self.rearranged(x)
        wanted = {a for k in axes for a in x.layout[k]}
        if x.batch in wanted:
            raise Unsupported(f"works along the batch: axes {axes} of {x}", code="batch")
        x = self.unfold(x, [k for k, a in enumerate(x.space) if wanted & set(a.atoms)])
        return x, tuple(a for k in axes for a in x.layout[k])

    def filled(self, name: Operand, channels: int, like: Lifted) -> str:
        """A tensor (N | 1, C, 1, …), repeated over the batch and the positions of a map."""
        if self.opset < 8:
            raise Unsupported("repeats a value over the map, which takes opset 8", code="opset", hint=RAISE_OPSET)
        return self.emit([name, self.shape_with(like, channels)], "Expand")

    def shape_with(self, x: Lifted, channels: int) -> str:
        """The shape of a map with another number of channels, (N, channels, *space), as a tensor."""
        shape = self.emit([x], "Shape")
        batch, space = self.slice(shape, [0], [1], [0]), self.slice(shape, [2], [np.iinfo(np.int64).max], [0])
        return self.emit([batch, np.array([channels], np.int64), space], "Concat", axis=0)

    def materialise(self, x: Lifted) -> str:
        """A tensor with the axes of the original in their order, at whatever size the image has.

        Raises:
            Unsupported: its layout merges or splits axes of the map.
        """
        order = [a for group in x.layout for a in group if a in x.channels]
        x = self.arrange(x, order)
        if not x.is_plain or x.rank != 2 + len(x.space):
            raise Unsupported(f"needs the tensor as it was, but the layout here is {x}", code="not-plain")
        perm = x.order
        return x.map if perm == sorted(perm) else self.emit([x], "Transpose", perm=perm)

    def source_of(self, fact: Unmapped) -> tuple[str, tuple[int, ...]]:
        """(tensor, native shape) of a value that is the same for all positions, before it was repeated over them."""
        name, shape = fact.name, self.shape_of(fact)
        if fact.spread is not None:
            source = self.shape_of(Unmapped(fact.spread))
            source = (1,) * (len(shape) - len(source)) + source
            if all(s in (1, d) for s, d in zip(source, shape)):
                return fact.spread, source
        return name, shape

    def spread(self, fact: Unmapped, like: Lifted) -> Lifted:
        """A tensor that is the same for all positions, as a map of one cell that broadcasts: (N, C, 1, …)."""
        name, shape = self.source_of(fact)
        batch_axis = next((k for k, d in enumerate(shape) if d == self.batch and self.batch > 1), None)
        if batch_axis is None and self.batch == 1 and shape and shape[0] == 1:
            batch_axis = 0
        channels = [d for k, d in enumerate(shape) if k != batch_axis]
        if batch_axis not in (None, 0):
            perm = [batch_axis, *(k for k in range(len(shape)) if k != batch_axis)]
            name = self.emit([name], "Transpose", perm=perm)
        target = [1 if batch_axis is None else -1, int(np.prod(channels)), *[1] * len(like.space)]
        is_map = len(shape) == len(target) and max(shape[2:]) == 1 and (batch_axis == 0 or shape[0] == 1)
        if not is_map:
            name = self.emit([name, np.array(target, np.int64)], "Reshape")
        atoms = [atoms_of(d, "u") for d in channels]
        layout = [*atoms]
        if batch_axis is not None:
            layout.insert(batch_axis, (like.batch,) if like.batch.size > 1 else ())
        space = tuple(replace(a, atoms=()) for a in like.space)
        flat = tuple(a for group in atoms for a in group)
        return Lifted(name, like.batch, flat, space, tuple(layout), like.elem_type)

    # The batch in a spatial axis ---------------------------------------------------------------------------------

    @property
    def folds(self) -> bool:
        """Is the batch to be folded into a spatial axis around the head?"""
        return self._walk.options.folds

    def folded(self, x: Lifted, axes: Sequence[int]) -> Lifted:
        """The window as channels, and batch and grid on one axis: (N, C, *space) -> (1, k·C, 1, N·grid).

        onnxruntime convolves one image at a time, and so reads the weights of a head once for each image of a batch;
        with the batch along a spatial axis it multiplies all at once.
        """
        rank = 2 + len(x.space)
        front = self.emit([x], "Transpose", perm=[1, 0, *range(2, rank)])
        moved = tuple(atom for k in axes for atom in x.space[k].atoms)
        cells = self.emit(self.cells(x.on(front), axes), "Concat", axis=0)
        target = np.array([1, x.width * Atom.product(moved), *[1] * (rank - 3), -1], np.int64)
        name, shape = self.emit([cells, target], "Reshape"), self.emit([cells], "Shape")
        space = tuple(a.contracted() if k in axes else a for k, a in enumerate(x.space))
        return replace(x, map=name, channels=(*moved, *x.channels), space=space, folded=shape)

    def unfurled(self, x: Lifted) -> Lifted:
        """The map with its batch and its grid on axes of their own again."""
        if x.folded is None:
            return x
        sizes: list[Operand] = [
            np.array([x.width], np.int64),
            self.slice(x.folded, [1], [np.iinfo(np.int64).max], [0]),
        ]
        seen = self.emit([x, self.emit(sizes, "Concat", axis=0)], "Reshape")
        rank = 2 + len(x.space)
        return replace(x, map=self.emit([seen], "Transpose", perm=[1, 0, *range(2, rank)]), folded=None)

    def alike(self, operands: Sequence[Fact | None]) -> list[Fact | None]:
        """Operands that one node can read together: all of them folded, or none."""
        mapped = [f for f in operands if isinstance(f, Lifted)]
        alone = all(f.folded for f in mapped) and not any(isinstance(f, Unmapped) for f in operands)
        keeps = alone and self.op not in ("Shape", "Size")
        return [self.unfurled(f) if isinstance(f, Lifted) and not keeps else f for f in operands]

    def padded(self, x: Lifted) -> Unsupported:
        """The refusal of a Pad that nothing slides after."""
        assert x.padding is not None
        return Unsupported(
            f"reads the padding that '{self._walk.seats[x.padding].name}' puts around each window, while a larger "
            "image is padded only around its own border",
            code="pad-then-flatten",
            hint="pad inside the convolution or pooling before it",
        )

    # Poolings of the window ---------------------------------------------------------------------------------------

    def pool(self, x: Lifted, largest: bool, over: Sequence[int]) -> str:
        """The mean or the maximum of the window along some axes, at every position of the grid.

        Dilated means before opset 19 are depthwise convolutions.
        """
        if not largest and x.elem_type not in CONVOLVED:
            cells = self.cells(x, over)
            return self.emit([self.emit(cells, "Sum"), self.scalar(x, len(cells))], "Div")
        kernel, strides, rates = x.kernel(over)
        attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
        dilated = any(r > 1 and n > 1 for r, n in zip(rates, kernel))
        if dilated and not largest and self.opset < 19:
            weights = np.full((x.width, 1, *kernel), 1 / math.prod(kernel), self.dtype(x.elem_type))
            return self.emit([x, weights], "Conv", dilations=rates, group=x.width, **attrs)
        if dilated:
            if self.opset < 10:
                raise Unsupported("poolings cannot be dilated before opset 10", code="rate")
            attrs["dilations"] = rates
        return self.emit([x], "MaxPool" if largest else "AveragePool", **attrs)
