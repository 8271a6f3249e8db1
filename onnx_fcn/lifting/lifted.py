"""A tensor of the original network at every window position at once, and the algebra of its layout.

A `Lifted` fact states: *this physical map represents that original tensor, at every position of the window.*

The map is always channels-first, (N, C, *space). Each of its axes is a product of **atoms** (factors); the **layout**
states how the axes of the original tensor group the same atoms, in order. It is einops' notation with atoms instead of
letters:

    n c h w         a feature map, unchanged
    n (c h w)       after Flatten
    n (h w c)       after a channels-last Flatten
    n g c' h w      after a Reshape that splits the channels

Flatten, Reshape, Transpose, Squeeze and Unsqueeze only regroup atoms, so they cost no node. Atoms of size 1 vanish,
so they need no special case.

The part of the map that one original tensor covers, its *window*, is the product of the atoms along each spatial
axis. Window p along an axis starts at cell p·window_stride/stride, and its cells are `rate` apart:

    original tensor at position p, along an axis  =  map[p·window_stride/stride + rate·(0 … window - 1)]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import onnx

from onnx_fcn._types import record
from onnx_fcn.errors import Unsupported
from onnx_fcn.geometry import Count, Field, Inner, Taps

__all__ = ["BATCH", "Atom", "Axis", "Lifted", "atoms_of", "axis_of", "dim_of", "dims_of", "lcm", "spelled"]


#: Types of the numbers of classes.
INDICES = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})

#: The batch that shapes are first evaluated with: a prime of which no literal in a real network is a multiple, so every
#: multiple of it comes from the batch.
BATCH = 7919

#: The image itself: each cell sees one pixel, every pixel has a cell, and nothing is padded.
PIXEL, EVERY_PIXEL, ALL_INNER = Field(), Count(), Inner()


@dataclass(eq=False, slots=True)
class Atom:
    """A factor of an axis. Atoms compare by identity: two of the same size are different factors."""

    size: int
    name: str = "k"

    def split(self, outer: int) -> tuple[Atom, Atom]:
        """(outer, inner) factors of this atom, row-major."""
        return Atom(outer, self.name + "'"), Atom(self.size // outer, self.name + "''")

    @staticmethod
    def product(atoms: Iterable[Atom]) -> int:
        """The product of the sizes of atoms."""
        size = 1
        for atom in atoms:
            size *= atom.size
        return size


@record
class Axis:
    """One spatial axis of a map.

    Attributes:
        atoms: the factors of the window along it; empty once the window is contracted.
        local: the pixels that each cell sees by itself, without context; its stride is input pixels per cell.
        window_stride: input pixels between neighbouring windows: the coarsest stride so far.
        rate: cells of the map between neighbouring cells of the window (à trous).
        image: the spatial axis of the image that it runs along. None for an axis that every window has whole: features
            that operators slide along, such as the bands of a spectrogram, or one cell that only makes up the rank, as
            in 1-D networks written with 2-D operators. Its geometry never changes, and padding it is exact.
        count: cells of the map for an image of any size.
        inner: the cells that do not depend on what surrounds the image.
        whole: whether each cell depends on the whole image, by context.
        held: whether the image keeps its size along it: then there is one window, and padding is at its own border.
        mirror: if padding repeats or reflects the map, the pixels by which a cell's sources may be further inside than
            the cell.
    """

    atoms: tuple[Atom, ...]
    local: Field = PIXEL
    window_stride: Fraction = Fraction(1)
    rate: int = 1
    image: int | None = None
    count: Count = EVERY_PIXEL
    inner: Inner = ALL_INNER
    mirror: Fraction = Fraction(0)
    held: bool = False
    whole: bool = False

    @property
    def field(self) -> Field:
        """The pixels that each cell depends on."""
        return self.local.everywhere() if self.whole else self.local

    @property
    def slides(self) -> bool:
        """Are there windows at other places along it?"""
        return self.image is not None and not self.held

    @property
    def stride(self) -> Fraction:
        """Input pixels per cell."""
        return Fraction(self.local.stride)

    @property
    def window(self) -> int:
        """Cells of the original tensor along this axis."""
        return Atom.product(self.atoms)

    @property
    def step(self) -> int:
        """Cells of the map between neighbouring windows."""
        return int(self.window_stride / self.stride)

    @property
    def extent(self) -> int:
        """Cells of the map that one window spans."""
        return (self.window - 1) * self.rate + 1

    def contracted(self, first: int = 0, last: int | None = None) -> Axis:
        """The axis after its window, or cells first … last of the window, became one cell."""
        if self.image is None:
            return replace(self, atoms=())
        cells = (self.window if last is None else last + 1) - first
        local = self.local.slid(cells, self.step, self.rate, -first * self.rate)
        count = self.count.slid(self.extent, self.step)
        inner = self._inner(count, lambda: self.inner.slid(count, cells, self.step, self.rate, -first * self.rate))
        return replace(self, atoms=(), local=local, rate=1, count=count, inner=inner)

    def unpooled(self) -> Axis:
        """The axis with each cell of a window by itself, instead of one for the window."""
        return replace(self, atoms=(), rate=1)

    def _inner(self, count: Count, found: Callable[[], Inner]) -> Inner:
        """The inner cells of a result: all of them, if the image never continues along this axis."""
        return Inner(0, count) if self.held else found()

    def _made(self, window: int, name: str, local: Field, count: Count, inner: Inner, rate: int = 1) -> Axis:
        """The axis of an operator's result: its window, and the geometry of its cells."""
        atoms = atoms_of(window, name)
        if self.image is None:
            return replace(self, atoms=atoms)
        window_stride = self.window_stride
        if window_stride != local.stride:
            window_stride = lcm(window_stride, Fraction(local.stride))
        return Axis(atoms, local, window_stride, rate, self.image, count, inner, self.mirror, self.held, self.whole)

    def slid(
        self,
        window: int,
        name: str,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        pads: tuple[int, int] = (0, 0),
        *,
        ceil: bool = False,
        rate: int = 1,
    ) -> Axis:
        """The axis after an operator slid along the map; the parameters are in cells of the map."""
        local = self.local.slid(kernel, stride, dilation, pads[0])
        count = self.count.slid(kernel, stride, dilation, *pads, ceil=ceil)
        inner = self._inner(count, lambda: self.inner.slid(count, kernel, stride, dilation, pads[0]))
        return self._made(window, name, local, count, inner, rate)

    def resampled(self, window: int, name: str, taps: Taps, add: int = 0) -> Axis:
        """The axis after the map was resampled, with `add` cells more than the scale gives."""
        count = self.count.resampled(taps.scale, add)
        inner = self._inner(count, lambda: self.inner.resampled(count, taps))
        return self._made(window, name, self.local.resampled(taps), count, inner)

    def finer(self, factor: int, window: int, name: str) -> Axis:
        """The axis after each cell of the map became `factor` cells."""
        return self.resampled(window, name, Taps(Fraction(factor)))

    def shortened(self, count: Count) -> Axis:
        """The axis cropped to the first `count` cells, which contain all windows."""
        return replace(self, count=count, inner=Inner(self.inner.front, self.inner.behind.at_most(count)))

    def mirrored(self, inside: int) -> Axis:
        """The axis after cells beyond the edge are made from others, up to `inside` cells further inside."""
        return self if self.image is None else replace(self, mirror=self.mirror + inside * self.stride)

    def is_parallel(self, other: Axis) -> bool:
        """Is all that is known of two axes the same, but for their names and where they are in the image?

        Rows and columns usually are. Then what an operator makes of one is found out once, and stored once.
        """
        return (
            self.local is other.local
            and self.count is other.count
            and self.inner is other.inner
            and self.window == other.window
            and self.window_stride == other.window_stride
            and self.rate == other.rate
            and self.mirror == other.mirror
            and self.held == other.held
            and self.whole == other.whole
            and (self.image is None) == (other.image is None)
        )

    def parallel(self, made: Axis, atoms: tuple[Atom, ...]) -> Axis:
        """What an operator makes of this axis, if it makes `made` of a parallel one."""
        image, held = self.image, self.held
        return Axis(
            atoms,
            made.local,
            made.window_stride,
            made.rate,
            image,
            made.count,
            made.inner,
            made.mirror,
            held,
            made.whole,
        )

    def joined(self, other: Axis) -> Axis:
        """The axis of a map made from several that have the same cells."""
        same = self.window_stride == other.window_stride
        return Axis(
            self.atoms,
            self.local.joined(other.local),
            self.window_stride if same else lcm(self.window_stride, other.window_stride),
            self.rate,
            self.image,
            self.count.joined(other.count),
            self.inner.joined(other.inner),
            max(self.mirror, other.mirror),
            self.held,
            self.whole or other.whole,
        )


def axis_of(axis: int, rank: int) -> int:
    """An axis of a tensor with so many as a non-negative number.

    Raises:
        Unsupported: if there is no such axis.
    """
    if not -rank <= axis < rank:
        raise Unsupported(f"refers to axis {axis} of a tensor with {rank} axes")
    return axis % rank


def dim_of(size: int) -> str:
    """Format a size for a message: the batch that shapes are evaluated with is N, and its multiples are 9·N."""
    if size % BATCH or not size:
        return str(size)
    return "N" if size == BATCH else f"{size // BATCH}·N"


def dims_of(shape: Iterable[int]) -> str:
    """Format a shape for a message, such as N×256×6×6."""
    return "×".join(map(dim_of, shape)) or "a scalar"


def spelled(layout: Iterable[Sequence[Atom]], batch: Atom) -> str:
    """Write the axes of a tensor as products of atoms, such as ``n (c256 h6 w6)``."""

    def spell(group: Sequence[Atom]) -> str:
        inner = " ".join(f"{a.name}{'' if a is batch else dim_of(a.size)}" for a in group)
        return inner if len(group) == 1 else f"({inner})"

    return " ".join(map(spell, layout)) or "scalar"


def lcm(a: Fraction, b: Fraction) -> Fraction:
    """Least common multiple of two rationals: lcm of the numerators over gcd of the denominators, in lowest terms."""
    return Fraction(math.lcm(a.numerator, b.numerator), math.gcd(a.denominator, b.denominator))


def atoms_of(size: int, name: str) -> tuple[Atom, ...]:
    """One atom of this size, or none for size 1."""
    return (Atom(size, name),) if size != 1 else ()


@record
class Lifted:
    """A physical map (N, C, *space) that represents an original tensor at every window position.

    Attributes:
        map: name of the physical tensor.
        batch: the atom of the batch; its size is the batch that the walk evaluates shapes with.
        channels: atoms of the physical channel axis, outermost first.
        space: the spatial axes of the map.
        layout: for each axis of the original tensor, its atoms, outermost first.
        elem_type: `onnx.TensorProto.DataType`.
        origins: slots of the window reductions and contractions that this value descends from.
        padding: slot of a Pad that no sliding operator has consumed yet.
        unfolded: slot that needed all positions of the window at once and made them channels.
        folded: if the batch and the grid are on one axis, (1, C, 1, N·grid), the tensor that contains their sizes,
            as (_, N, *grid).
    """

    map: str
    batch: Atom
    channels: tuple[Atom, ...]
    space: tuple[Axis, ...]
    layout: tuple[tuple[Atom, ...], ...]
    elem_type: int
    origins: frozenset[int] = frozenset()
    padding: int | None = None
    unfolded: int | None = None
    folded: str | None = None

    # Queries ----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the original tensor at the native size, with the walk's batch."""
        return tuple(Atom.product(group) for group in self.layout)

    @property
    def is_empty(self) -> bool:
        """Has the original tensor an axis of size 0?"""
        return any(atom.size == 0 for group in self.layout for atom in group)

    @property
    def dims(self) -> str:
        """The shape for messages, such as N×256×6×6: users do not know the walk's batch."""
        return "×".join(map(self._dim, self.layout)) or "a scalar"

    def _dim(self, group: tuple[Atom, ...]) -> str:
        rest = Atom.product(a for a in group if a is not self.batch)
        return dim_of(rest) if self.batch not in group else "N" if rest == 1 else f"{dim_of(rest)}·N"

    @property
    def rank(self) -> int:
        """Number of axes of the original tensor."""
        return len(self.layout)

    @property
    def width(self) -> int:
        """Number of physical channels."""
        return Atom.product(self.channels)

    @property
    def window(self) -> tuple[int, ...]:
        """Cells of the original tensor along each spatial axis of the map."""
        return tuple(axis.window for axis in self.space)

    @property
    def is_live(self) -> bool:
        """Has it a window of more than one cell of the image?"""
        return any(axis.atoms and axis.image is not None for axis in self.space)

    def kernel(self, axes: Iterable[int]) -> tuple[list[int], list[int], list[int]]:
        """(kernel, strides, dilations) of an operator that covers the whole window along these spatial axes."""
        over = set(axes)
        live = [a if k in over and a.atoms else None for k, a in enumerate(self.space)]
        return (
            [a.window if a else 1 for a in live],
            [a.step if a else 1 for a in live],
            [a.rate if a else 1 for a in live],
        )

    def axis(self, axis: int) -> int:
        """Normalise an axis of the original tensor to a non-negative number.

        Raises:
            Unsupported: if the tensor has no such axis.
        """
        return axis_of(axis, self.rank)

    def space_of(self, atoms: Sequence[Atom]) -> int | None:
        """The spatial axis whose whole window is these atoms, in order; None if there is no such axis."""
        return next((k for k, a in enumerate(self.space) if a.atoms and a.atoms == tuple(atoms)), None)

    def place(self, atom: Atom) -> int:
        """The physical axis of an atom: 0 for the batch, 1 for the channels, 2 … for space."""
        if atom is self.batch:
            return 0
        return 1 if atom in self.channels else 2 + next(k for k, a in enumerate(self.space) if atom in a.atoms)

    @property
    def axes(self) -> list[tuple[Atom, ...]]:
        """The atoms of each axis of the map, (N, C, *space); a batch of one has none."""
        return [(self.batch,) if self.batch.size > 1 else (), self.channels, *(a.atoms for a in self.space)]

    @property
    def channels_in_order(self) -> list[Atom]:
        """The atoms of the channel axis in the order of the original tensor."""
        return [a for group in self.layout for a in group if a in self.channels]

    def placed(self, axes: Sequence[Sequence[Atom]]) -> list[list[int]]:
        """For each axis of the original tensor, those of these axes, given by their atoms, that are on it.

        Axes of size 1, which have no atoms, are matched in order.
        """
        places: list[list[int]] = []
        for group in self.layout:
            taken = {k for place in places for k in place}
            single = [k for k, atoms in enumerate(axes) if not atoms and k not in taken]
            found = [next(k for k, atoms in enumerate(axes) if atom in atoms) for atom in group]
            places.append(list(dict.fromkeys(found)) if group else single[:1])
        return places

    @property
    def order(self) -> list[int]:
        """The physical axis (0 the batch, 1 the channels, 2 … space) of each axis of a plain tensor."""
        return [k for place in self.placed(self.axes) for k in place]

    @property
    def is_plain(self) -> bool:
        """Is every axis of the original tensor one whole physical axis, in any order?"""
        axes = [(self.batch,), self.channels, *(a.atoms for a in self.space)]
        return all(not group or group in axes for group in self.layout)

    @property
    def is_channels_first(self) -> bool:
        """Is the original tensor (N, C, *window) as the map is (N, C, *space), all axes the image's and whole?"""
        space, layout = self.space, self.layout
        if len(layout) != 2 + len(space) or layout[1] != self.channels:
            return False
        if layout[0] != ((self.batch,) if self.batch.size > 1 else ()):
            return False
        for k, axis in enumerate(space, 2):
            if not axis.atoms or axis.image is None or layout[k] != axis.atoms:
                return False
        return True

    @property
    def is_per_position(self) -> bool:
        """Does it contain features of single positions (not an unfolded window), with the batch first?"""
        batch = self.batch.size == 1 or self.layout[:1] == ((self.batch,),)
        return batch and not any(axis.atoms for axis in self.space) and self.unfolded is None and self.folded is None

    @property
    def is_dense(self) -> bool:
        """Has each position of the window a value of its own: are positions on other axes than channels?

        The positions of several axes may be on one axis, such as (h w). An axis may be finer than that of the map, as
        after a pixel shuffle, (h r), or coarser. But a matrix with positions alone on axis 1, n (h w), contains a
        vector of features for each image, as n (c h w) does, unless it contains numbers of classes.
        """
        positions = {axis.atoms[0] for axis in self.space if axis.atoms and axis.slides}
        is_matrix = self.rank == 2 and self.width == 1 and positions == set(self.layout[1])
        if not positions or (is_matrix and self.elem_type not in INDICES):
            return False
        resized = any(len(axis.atoms) > 1 for axis in self.space)
        for group in self.layout:
            own = [a for a in group if a in positions or a is self.batch]
            if own and any(a in self.channels for a in group):
                resized = True
                if len(own) > 1 or group[0] not in positions:
                    return False
        return not resized or self.rank == 2 + len(self.space)

    @property
    def is_map(self) -> bool:
        """Are its axes the batch (or one), the channels, and whole axes of the map's space (or of one cell)?"""
        spatial = all(not g or self.space_of(g) is not None for g in self.layout[2:])
        return spatial and self.rank >= 2 and set(self.layout[1]) == set(self.channels)

    def covers_positions(self, axes: Iterable[int]) -> bool:
        """Do these axes of the original tensor contain all positions of the window, and not the batch?

        The window then has to be live along every axis of the image.
        """
        atoms = {a for k in axes for a in self.layout[k]}
        along = [axis.atoms for axis in self.space if axis.image is not None]
        return all(along) and atoms.issuperset(a for group in along for a in group) and self.batch not in atoms

    def is_channels(self, axis: int) -> bool:
        """Is this axis of the original tensor exactly the physical channel axis?"""
        return self.layout[axis] == self.channels

    def __str__(self) -> str:
        return spelled(self.layout, self.batch)

    # Transformations --------------------------------------------------------------------------------------------

    def on(self, name: str, elem_type: int | None = None) -> Lifted:
        """The same fact about another tensor, such as the result of an elementwise operator."""
        return Lifted(
            name,
            self.batch,
            self.channels,
            self.space,
            self.layout,
            self.elem_type if elem_type is None else elem_type,
            self.origins,
            self.padding,
            self.unfolded,
            self.folded,
        )

    def spaced(self, strides: Sequence[Fraction | None]) -> Lifted:
        """The same map with its windows so many pixels apart, along each axis of the image: whole cells.

        None leaves them as they are along that axis.
        """

        def apart(axis: Axis) -> Axis:
            stride = None if axis.image is None else strides[axis.image]
            if stride is None:
                return axis
            assert (stride / axis.stride).denominator == 1, "windows are whole cells apart"
            return replace(axis, window_stride=stride)

        return replace(self, space=tuple(map(apart, self.space)))

    def transposed(self, perm: Sequence[int]) -> Lifted:
        """Permute the axes: axis i of the result is axis perm[i]."""
        return replace(self, layout=tuple(self.layout[p] for p in perm))

    def squeezed(self, axes: Iterable[int] | None) -> Lifted:
        """Remove these axes of size 1, or all of them.

        Raises:
            Unsupported: if one of these axes is not of size 1.
        """
        gone = {k for k, g in enumerate(self.layout) if not g} if axes is None else {self.axis(a) for a in axes}
        for k in gone:
            if self.layout[k]:
                raise Unsupported(f"squeezes axis {k} of {self}, which is not of size 1")
        return replace(self, layout=tuple(g for k, g in enumerate(self.layout) if k not in gone))

    def unsqueezed(self, axes: Iterable[int]) -> Lifted:
        """Insert axes of size 1 at these places of the result."""
        axes = list(axes)
        rank = self.rank + len(axes)
        new, groups = {a % rank for a in axes}, iter(self.layout)
        return replace(self, layout=tuple(() if k in new else next(groups) for k in range(rank)))

    def reshaped(self, shape: Sequence[int]) -> Lifted:
        """Regroup into this shape in row-major order, splitting atoms if necessary.

        Raises:
            Unsupported: if the shape cuts across factors, so that the result is not a product of them, or splits the
                batch.
        """
        have, want = math.prod(self.shape), math.prod(shape)
        if have != want:
            reason = f"reshapes {self} ({self.dims}) to {dims_of(shape)}: not the same size"
            raise Unsupported(reason, needs="smaller" if have > want else "larger")
        fact = self._coalesced([a for group in self.layout for a in group])
        fact, groups = fact._cut([a for group in fact.layout for a in group], shape)
        return replace(fact, layout=groups).canonical()

    def canonical(self) -> Lifted:
        """Merge atoms that are neighbours both in an axis of the original and in one of the map."""
        fact = self
        for k in range(self.rank):
            fact = fact._coalesced(fact.layout[k], k)
        return fact

    def _coalesced(self, atoms: Sequence[Atom], axis: int | None = None) -> Lifted:
        """Merge the runs of these atoms that are also runs of a physical axis.

        The atoms are those of axis `axis` of the original tensor, or all of its atoms in order: the merged fact then
        has one single group (the result of a Reshape does not depend on the old axes).
        """
        follows: dict[Atom, Atom] = {}
        for run in (self.channels, *(a.atoms for a in self.space)):
            follows.update(itertools.pairwise(run))
        runs: list[list[Atom]] = []
        for atom in atoms:
            if runs and follows.get(runs[-1][-1]) is atom:
                runs[-1].append(atom)
            else:
                runs.append([atom])
        merged = {run[0]: Atom(Atom.product(run), run[0].name.rstrip("'")) for run in runs if len(run) > 1}
        gone = {a for run in runs for a in run[1:]}
        fact = self
        if axis is None:
            fact = replace(fact, layout=(tuple(atoms),))
        return fact._substituted({**dict.fromkeys(gone, ()), **{a: (m,) for a, m in merged.items()}})

    def _substituted(self, new: dict[Atom, tuple[Atom, ...]]) -> Lifted:
        if not new:
            return self

        def swap(atoms: tuple[Atom, ...]) -> tuple[Atom, ...]:
            return tuple(b for a in atoms for b in new.get(a, (a,)))

        return replace(
            self,
            channels=swap(self.channels),
            space=tuple(replace(a, atoms=swap(a.atoms)) for a in self.space),
            layout=tuple(swap(group) for group in self.layout),
        )

    def renamed(self, names: dict[Atom, Atom]) -> Lifted:
        """The same fact with other atoms of the same sizes."""
        fact = self._substituted({old: (new,) for old, new in names.items() if old is not new})
        return replace(fact, batch=names.get(self.batch, self.batch))

    def refined(self, axis: int, sizes: Sequence[int]) -> Lifted:
        """The same fact with the atoms of one axis split so that they have (at least) these row-major boundaries."""
        if [atom.size for atom in self.layout[axis]] == list(sizes):
            return self
        layout = list(self.layout)
        layout[axis] = ()
        fact, groups = replace(self, layout=tuple(layout))._cut(self.layout[axis], sizes)
        layout = list(fact.layout)
        layout[axis] = tuple(a for group in groups for a in group)
        return replace(fact, layout=tuple(layout))

    def _cut(self, atoms: Sequence[Atom], sizes: Sequence[int]) -> tuple[Lifted, tuple[tuple[Atom, ...], ...]]:
        """Cut a row of atoms into groups of these sizes, splitting atoms (of the map too) at boundaries."""
        fact, rest = self, list(atoms)
        groups: list[tuple[Atom, ...]] = []
        for size in sizes:
            group: list[Atom] = []
            left = size
            while left > 1:
                atom = rest.pop(0)
                if left % atom.size == 0:
                    group.append(atom)
                    left //= atom.size
                elif atom.size % left == 0 and atom is not self.batch:
                    outer, inner = atom.split(left)
                    fact = fact._substituted({atom: (outer, inner)})
                    group.append(outer)
                    rest.insert(0, inner)
                    left = 1
                else:
                    what = "the batch" if atom is self.batch else f"{atom.name} = {atom.size}"
                    raise Unsupported(
                        f"reads {self} as {dims_of(sizes)}, which cuts through {what}", code="reshape-cuts-axis"
                    )
            groups.append(tuple(group))
        return fact, tuple(groups)
