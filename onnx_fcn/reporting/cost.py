"""The cost of the original and of the converted network on images of any size, as counted by `model.cost`.

Sizes are exact: the walk counts the cells of maps (`Axis.count`), and shape inference fills in the tensors between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import GraphProto, ModelProto

from onnx_fcn.errors import OptionError
from onnx_fcn.geometry import Answers, Geometry
from onnx_fcn.lifting.lifted import BATCH, Lifted
from onnx_fcn.lifting.program import Image, Walk, upstream
from onnx_fcn.lifting.regions import Region, together_of
from onnx_fcn.model.cost import Dims, Program, Tensor, tensor_of, tensors_in, total
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import static_dims
from onnx_fcn.walk.cut import find_cut
from onnx_fcn.walk.regions import live_bytes
from onnx_fcn.walk.shapes import native_types

__all__ = [
    "ImageCost",
    "NativeCost",
    "Part",
    "Sizes",
    "advice_on_windows",
    "along_axes",
    "costs_of",
    "native_cost",
    "tensors_at",
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
    original: Document, document: Document, walk: Walk, geometry: Geometry, sizes: Sizes = ()
) -> tuple[NativeCost, tuple[ImageCost, ...]]:
    """The cost of the original at its native size, and of the converted network at that and other sizes.

    Args:
        original: the model as opened.
        document: the model after the edit.
        walk: the walk.
        geometry: where the answers are.
        sizes: image sizes, in pixels; by default 1.5, 2 and 4 times the native size. If nothing slides, there are no
            costs but that of the original.

    Raises:
        OptionError: if an image is too small, or has another number of axes.
    """
    native = native_cost(original, walk)
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
    rows, program, repeated = [], Program(document.proto.graph), _repeated(original, walk)
    most = 1 if walk.region is None else walk.region.together
    for size in dict.fromkeys((geometry.window, *chosen)):
        windows, tensors = answers.grid(*size).shape, tensors_at(document, walk, program, size)
        tensors |= _of_windows(walk, windows)
        together = together_of(math.prod(windows), most)
        has_windows = walk.has_head and not walk.unpooled
        crops = math.prod(windows) * native.macs if has_windows and native.macs is not None else None
        once = [count for name, count in program.macs(tensors).items() if name not in repeated]
        head = native.head.macs
        each = [] if walk.region is None else [None if head is None else math.prod(windows) * head]
        live = program.peak(tensors, {name: together * each_window for name, each_window in repeated.items()})
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
            found[made] = replace(x, dims=tuple(x.dims[k] for k in node.attrs["perm"]))
        elif node.op in firsts:
            found[made] = replace(x, dims=firsts[node.op])
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
    native = native_cost(original, walk)
    if not native.macs or native.trunk.macs is None:
        return what
    share = native.trunk.macs / native.macs
    before = "nearly all" if share > 0.995 else f"{share:.0%}" if share >= 0.01 else "less than 1%"
    least = f"at least {1 - share:.0%}" if share <= 0.995 else "as little as 1%"
    cost = f"{least} of the work of" if native.head.macs else "far less work than"
    cost = "nearly as much work as" if share < LITTLE else cost
    return f"{what}: {before} of the work comes before, and is done once, so a large image takes {cost} its crops"


def native_cost(original: Document, walk: Walk) -> NativeCost:
    """The cost of the original at its native size."""
    program, cut = Program(original.proto.graph), find_cut(walk)
    tensors = tensors_at(original, walk, program)
    if unknown := [n for n in program.needed if tensors.get(n, Tensor()).dims is None]:  # behind what was refused
        types = native_types(original, _native(walk))
        tensors = tensors | {n: tensor_of(types[n]) for n in unknown if n in types}
    macs = program.macs(tensors)
    slots = set() if cut is None else upstream(walk, cut.name)
    before = {o for k in slots for o in walk.slots[k].node.outputs}
    parts = [[names[0] for names in program.makes if (names[0] in before) == inside] for inside in (True, False)]
    trunk, head = (Part(len(names), total(macs.get(name, 0) for name in names)) for names in parts)
    return NativeCost(batch_of(walk), total(macs.values()), program.peak(tensors), trunk, head)


def _native(walk: Walk) -> Image:
    """The image of the walk, with the batch that costs are for."""
    return walk.image.with_batch(batch_of(walk))


def batch_of(walk: Walk) -> int:
    """The number of images in a run: one, unless the graph has a batch built in."""
    return 1 if walk.batch == BATCH else walk.batch


def along_axes(size: int | Sequence[int], axes: int) -> Dims:
    """The size of an image along all of its axes.

    Raises:
        OptionError: if the size has another number of axes.
    """
    given = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(given) != axes:
        times = "×".join(map(str, given))
        raise OptionError(f"{times} is not a size of an image with {axes} axes")
    return given


def _larger(window: Dims, answers: Answers) -> Iterator[Dims]:
    """Sizes of larger images, by whole strides."""
    for factor in FACTORS:
        steps = [(native, math.ceil(stride)) for native, stride in zip(window, answers.stride)]
        larger = (native + max(round((factor - 1) * native / step), 1) * step for native, step in steps)
        yield tuple(held or n for held, n in zip(answers.held or (None,) * len(window), larger))


def tensors_at(document: Document, walk: Walk, program: Program, size: Dims | None = None) -> dict[str, Tensor]:
    """Types and shapes of the tensors that a program needs; shape inference runs if the walk does not know them all.

    Args:
        document: the original, or the converted model if a size is given.
        walk: the walk.
        program: the document's program.
        size: the image size, in pixels; None for the original at its native size.
    """
    batch, image = batch_of(walk), walk.image
    if size is None:
        known = {n: Tensor(f.elem_type, _logical(f, batch)) for n, f in _maps(walk)}
    else:
        facts = {**{f.map: f for _, f in _maps(walk)}, **{f.map: f for f in walk.results.values() if not f.is_live}}
        mapped = {walk.renamed.get(n, n): f for n, f in facts.items() if f.folded is None}
        known = {n: Tensor(f.elem_type, _physical(f, size, batch)) for n, f in mapped.items()}
    known[image.name] = Tensor(image.elem_type, _image(walk, size or image.size))
    stored = {t.name: Tensor(t.data_type, tuple(t.dims)) for t in document.proto.graph.initializer}
    if program.needed <= known.keys() | stored.keys():
        return known | stored
    model = ModelProto()
    model.CopyFrom(document.proto)
    _declare(model.graph, known, walk, batch)
    return tensors_in(model) | stored


def _maps(walk: Walk) -> list[tuple[str, Lifted]]:
    return [(name, fact) for name, fact in walk.facts.items() if isinstance(fact, Lifted)]


def _logical(fact: Lifted, batch: int) -> Dims:
    """The shape of the tensor in the original, at the native size."""
    return tuple(math.prod(batch if a is fact.batch else a.size for a in group) for group in fact.layout)


def _physical(fact: Lifted, size: Dims, batch: int) -> Dims:
    """The shape of the map for an image of this size."""
    return (batch, fact.width, *(a.window if a.image is None else a.count(size[a.image]) for a in fact.space))


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
