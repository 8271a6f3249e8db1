"""The cost of the original and of the converted network on images of any size, as counted by `model.cost`.

Sizes are exact: the walk counts the cells of maps (`Axis.count`), and shape inference fills in the tensors between.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import onnx
from onnx import GraphProto, ModelProto

from onnx_fcn.errors import OptionError
from onnx_fcn.geometry import Answers, Count, Geometry, Steps
from onnx_fcn.lifting.lifted import BATCH, Lifted
from onnx_fcn.lifting.program import Image, Walk
from onnx_fcn.lifting.regions import Region, together_of
from onnx_fcn.model.cost import Dims, Program, Tensor, tensor_of, tensors_in, total
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import static_dims
from onnx_fcn.walk.cut import Cut, find_cut
from onnx_fcn.walk.images import along_axes
from onnx_fcn.walk.regions import live_bytes
from onnx_fcn.walk.shapes import native_types

__all__ = [
    "ImageCost",
    "NativeCost",
    "Part",
    "Sizes",
    "advice_on_windows",
    "costs_of",
    "native_cost",
]


#: Default image sizes, as multiples of the native size.
FACTORS = (1.5, 2, 4)

#: The share of the work before the windows up to which nothing to speak of is saved.
LITTLE = 0.05

#: Image sizes as users give them: (height, width), or one number for all axes.
Sizes = Sequence[int | Sequence[int]]


@dataclass(frozen=True)
class Part:
    """The trunk or the head: the number of nodes that depend on an input, and their MACs (None if unknown)."""

    nodes: int
    macs: int | None


@dataclass(frozen=True)
class NativeCost:
    """The cost of the original on an image of its native size.

    Attributes:
        batch: the number of images that all costs are for: one, or the batch that the graph has built in.
        macs: multiply-accumulates; None if a size is unknown before the network runs.
        activations: bytes of the tensors that are live at the worst node; None if a size is unknown.
        trunk: the nodes that the cut is computed from.
        head: all other nodes.
    """

    batch: int
    macs: int | None
    activations: int | None
    trunk: Part
    head: Part


@dataclass(frozen=True)
class ImageCost:
    """The cost of an image of one size on the converted network, and as crops.

    Attributes:
        size: the image size, in pixels.
        answers: the grid of answers for it.
        macs: multiply-accumulates of the converted network; None if a size is unknown before it runs.
        crops: multiply-accumulates of the original on the crops of the same windows; None if unknown, or if there are
            no windows.
        activations: bytes of the tensors of the converted network that are live at the worst node; None if unknown.
    """

    size: Dims
    answers: Dims
    macs: int | None
    crops: int | None
    activations: int | None

    @property
    def ratio(self) -> float | None:
        """MACs of the crops over MACs of the converted network; None if unknown."""
        return self.crops / self.macs if self.crops is not None and self.macs else None


def costs_of(
    original: Document, document: Document, walk: Walk, geometry: Geometry, cut: Cut | None, sizes: Sizes = ()
) -> tuple[NativeCost, tuple[ImageCost, ...]]:
    """The cost of the original at its native size, and of the converted network at that and other sizes.

    Args:
        original: the model as opened.
        document: the model after the edit.
        walk: the walk.
        geometry: where the answers are.
        cut: where the head begins.
        sizes: image sizes, in pixels; by default 1.5, 2 and 4 times the native size. If nothing slides, there are no
            costs but that of the original.

    Raises:
        OptionError: if an image is too small, or has another number of axes.
    """
    native = native_cost(original, walk, cut)
    if walk.standing is not None and sizes:
        raise OptionError("the network cannot slide, so it has no cost at other sizes")
    if walk.standing is not None:
        return native, ()
    answers = geometry.of()
    chosen = [along_axes(s, len(geometry.window)) for s in sizes]
    if walk.keeps_size and any(size != geometry.window for size in chosen):
        raise OptionError("the model keeps its size, so it has no cost at other sizes")
    if not chosen and not walk.keeps_size:
        chosen = list(_larger(geometry.window, answers))
    rows, sized, repeated = [], _converted(document, walk), _repeated(original, walk)
    most = 1 if walk.region is None else walk.region.together
    for size in dict.fromkeys((geometry.window, *chosen)):
        windows, tensors = answers.grid(*size).shape, sized.at(size)
        tensors |= _of_windows(walk, windows)
        together = together_of(math.prod(windows), most)
        has_windows = walk.has_head and not walk.unpooled
        crops = math.prod(windows) * native.macs if has_windows and native.macs is not None else None
        once = [count for name, count in sized.program.macs(tensors).items() if name not in repeated]
        head = native.head.macs
        each = [] if walk.region is None else [None if head is None else math.prod(windows) * head]
        live = sized.program.peak(tensors, {name: together * each_window for name, each_window in repeated.items()})
        rows.append(ImageCost(size, windows, total([*once, *each]), crops, live))
    return native, tuple(rows)


def _repeated(original: Document, walk: Walk) -> dict[str, int]:
    """The results of the node that runs a region on every window: the bytes that are live within it for one of them."""
    if walk.region is None:
        return {}
    live = live_bytes(original, _native(walk), walk.region)
    emissions = [e for slot in walk.slots if slot.covers for e in slot.emissions]
    return {o: live for e in emissions if e.node.op == "Scan" for o in e.node.outputs}


def _of_windows(walk: Walk, grid: Dims) -> dict[str, Tensor]:
    """The tensors around that node: onnx does not infer how many windows there are."""
    if walk.region is None:
        return {}
    found: dict[str, Tensor] = {}
    batch, count, most = batch_of(walk), math.prod(grid), walk.region.together
    facts = [f for o in walk.region.outputs if isinstance(f := walk.facts[o.name], Lifted)]
    firsts = {"NonZero": (len(grid), count), "Mul": (count, len(grid)), "ReduceSum": (count, 1)}
    firsts["Concat"] = (count + most, 1)
    rows: set[str] = set()
    for node in (e.node for slot in walk.slots if slot.covers for e in slot.emissions):
        made, x = node.outputs[0], found.get(node.inputs[0])
        if node.op == "Scan":
            rows = set(node.outputs)
            sizes = ((count, batch, fact.width) for fact in facts)
            found |= {o: Tensor(f.elem_type, dims) for o, f, dims in zip(node.outputs, facts, sizes)}
        elif node.op == "ConstantOfShape":  # one for every window, or for those that fill the last step
            found[made] = Tensor(onnx.TensorProto.INT64, (most, 1) if found else grid)
        elif x is None or x.dims is None:
            continue
        elif node.op == "Transpose":
            found[made] = x._replace(dims=tuple(x.dims[k] for k in node.attrs["perm"]))
        elif node.op in firsts:
            found[made] = x._replace(dims=firsts[node.op])
        elif node.inputs[0] in rows:  # without the windows that filled the last step
            rows.add(made)
            found[made] = x
    return found


def advice_on_windows(original: Document, walk: Walk, region: Region) -> str:
    """What `--windows` would do for a refused network, and what it would cost: the limit for large images.

    Args:
        original: the model.
        walk: a walk of what comes before the region.
        region: what would run on every window.
    """
    if region.cut == walk.image.name:
        return (
            "--windows runs the network on every window of a larger image: nothing slides before that, so it costs as "
            "much as crops do"
        )
    what = f"--windows runs what comes after '{region.cut}' on every window"
    native = native_cost(original, walk, find_cut(walk))
    if not native.macs or native.trunk.macs is None:
        return what
    share = native.trunk.macs / native.macs
    before = "nearly all" if share > 0.995 else f"{share:.0%}" if share >= 0.01 else "less than 1%"
    least = f"at least {1 - share:.0%}" if share <= 0.995 else "as little as 1%"
    cost = f"{least} of the work of" if native.head.macs else "far less work than"
    cost = "nearly as much work as" if share < LITTLE else cost
    return f"{what}: {before} of the work comes before, and is done once, so a large image takes {cost} its crops"


def native_cost(original: Document, walk: Walk, cut: Cut | None) -> NativeCost:
    """The cost of the original at its native size; the cut divides it."""
    sized = _unconverted(original, walk)
    program, tensors = sized.program, sized.at(walk.image.size)
    if unknown := [n for n in program.needed if tensors.get(n, Tensor()).dims is None]:  # behind what was refused
        types = native_types(original, _native(walk))
        tensors = tensors | {n: tensor_of(types[n]) for n in unknown if n in types}
    macs = program.macs(tensors)
    slots = set() if cut is None else walk.upstream(cut.name)
    before = {o for k in slots for o in walk.slots[k].node.outputs}
    parts = [[name for name in program.nodes if (name in before) == inside] for inside in (True, False)]
    trunk, head = (Part(len(names), total(macs.get(name, 0) for name in names)) for names in parts)
    return NativeCost(batch_of(walk), total(macs.values()), program.peak(tensors), trunk, head)


def _native(walk: Walk) -> Image:
    """The image of the walk, with the batch that costs are for."""
    return walk.image.with_batch(batch_of(walk))


def batch_of(walk: Walk) -> int:
    """The number of images in a run: one, unless the graph has a batch built in."""
    return 1 if walk.batch == BATCH else walk.batch


def _larger(window: Dims, answers: Answers) -> Iterator[Dims]:
    """Sizes of larger images, by whole strides."""
    for factor in FACTORS:
        steps = [(native, math.ceil(stride)) for native, stride in zip(window, answers.stride)]
        larger = (native + max(round((factor - 1) * native / step), 1) * step for native, step in steps)
        yield tuple(held or n for held, n in zip(answers.held or (None,) * len(window), larger))


class _Form(NamedTuple):
    """What determines the shape of a map at any size.

    Attributes:
        elem_type: `onnx.TensorProto.DataType`.
        width: the number of channels.
        space: for each axis the count of its cells and the axis of the image that it runs along, or its size.
    """

    elem_type: int
    width: int
    space: tuple[tuple[Steps, int] | int, ...]

    @classmethod
    def of(cls, fact: Lifted) -> _Form:
        space = [a.window if a.image is None else (a.count.steps, a.image) for a in fact.space]
        return cls(fact.elem_type, fact.width, tuple(space))

    def at(self, size: Dims, batch: int) -> Tensor:
        """The map for an image of this size."""
        cells = (s if isinstance(s, int) else Count(s[0])(size[s[1]]) for s in self.space)
        return Tensor(self.elem_type, (batch, self.width, *cells))


class _Sized:
    """The program of a model, and types and shapes of its tensors for an image of any size.

    Attributes:
        program: the program.
    """

    def __init__(self, document: Document, walk: Walk, maps: Iterable[tuple[str, _Form | Tensor]]) -> None:
        """Find the forms of the tensors.

        Args:
            document: the original, or the converted model.
            walk: the walk.
            maps: the forms of the tensors that the walk knows, by their names in the document.
        """
        graph, image = document.proto.graph, walk.image.name
        self._document, self._walk = document, walk
        self._maps = _shared((name, form) for name, form in maps if name != image)
        self._stored = _shared((t.name, Tensor(t.data_type, tuple(t.dims[:]))) for t in graph.initializer)
        self._forms = {*self._maps.values(), *self._stored.values()}
        self.program = Program(graph, {**self._maps, **self._stored}, document.nodes)
        unknown = any(isinstance(form, str) and form != image for form in self.program.needed)
        self._by_name = unknown or walk.region is not None
        if self._by_name:  # each tensor for itself
            self.program = Program(graph, nodes=document.nodes)

    def at(self, size: Dims) -> dict[Any, Tensor]:
        """The tensors for an image of this size, by their forms; shape inference runs if the walk does not know all."""
        walk, batch = self._walk, batch_of(self._walk)
        image = Tensor(walk.image.elem_type, _image(walk, size))
        forms = {form: form.at(size, batch) if isinstance(form, _Form) else form for form in self._forms}
        if not self._by_name:
            return {**forms, walk.image.name: image}
        known = {**{name: forms[form] for name, form in self._maps.items()}, walk.image.name: image}
        tensors = {**known, **self._stored}
        if self.program.needed <= tensors.keys():
            return tensors
        model = ModelProto()
        model.CopyFrom(self._document.proto)
        _declare(model.graph, known, walk, batch)
        return {**tensors_in(model), **self._stored}


def _converted(document: Document, walk: Walk) -> _Sized:
    """The program of the converted model."""
    facts = {**{f.map: f for _, f in _maps(walk)}, **{f.map: f for f in walk.results.values() if not f.is_live}}
    maps = ((walk.renamed.get(name, name), fact) for name, fact in facts.items() if fact.folded is None)
    return _Sized(document, walk, ((name, _Form.of(fact)) for name, fact in maps))


def _unconverted(original: Document, walk: Walk) -> _Sized:
    """The program of the original, whose image has its native size."""
    batch = batch_of(walk)
    return _Sized(original, walk, ((n, Tensor(f.elem_type, _logical(f, batch))) for n, f in _maps(walk)))


_Value = TypeVar("_Value", bound=Hashable)


def _shared(values: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    """A dict of these values, in which equal ones are one object."""
    first: dict[_Value, _Value] = {}
    return {name: first.setdefault(value, value) for name, value in values}


def _maps(walk: Walk) -> list[tuple[str, Lifted]]:
    return [(name, fact) for name, fact in walk.facts.items() if isinstance(fact, Lifted)]


def _logical(fact: Lifted, batch: int) -> Dims:
    """The shape of the tensor in the original, at the native size."""
    return tuple([math.prod([batch if a is fact.batch else a.size for a in group]) for group in fact.layout])


def _image(walk: Walk, size: Dims) -> Dims:
    """The shape of the image input at this size."""
    image, batch = walk.image, batch_of(walk)
    space = dict(zip(image.space, size))
    return tuple(batch if k == image.batch else space.get(k, d) for k, d in enumerate(image.shape))


def _declare(graph: GraphProto, tensors: Mapping[str, Tensor], walk: Walk, batch: int) -> None:
    """Declare the known type and shape of every tensor, and drop all other declarations."""
    known = {n: onnx.helper.make_tensor_value_info(n, t.elem_type, t.dims) for n, t in tensors.items() if t.elem_type}
    image = next(i for i in graph.input if i.name == walk.image.name)
    stated = (None, None if walk.image.batch is None else static_dims(image)[walk.image.batch])
    for declared in graph.input:
        if declared.name in known:
            declared.CopyFrom(known[declared.name])
            continue
        for dim, static in list(zip(declared.type.tensor_type.shape.dim, static_dims(declared)))[:1]:
            if walk.image.batch is not None and static in stated:  # other first axes of inputs are not batches
                dim.dim_value = batch
    for declared in graph.output:
        declared.type.tensor_type.ClearField("shape")
        if declared.name in known:
            declared.CopyFrom(known[declared.name])
    made = {name for node in graph.node for name in node.output} - {o.name for o in graph.output}
    del graph.value_info[:]
    graph.value_info.extend(value for name, value in known.items() if name in made)
