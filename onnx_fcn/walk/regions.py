"""Which part of a refused network runs on every window, and how far apart the windows are.

The region begins at the last map that was lifted and that all outputs are computed from (`walk.cut`), at the latest
with the image itself. Its nodes stay as they are. What they compute with the size of a map outside, such as the number
of class tokens from the shape of the image, they compute with the native size instead, which is that of a window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import onnx

from onnx_fcn.errors import Diagnostic, OptionError, Unsupported, UnsupportedModel
from onnx_fcn.lifting.facts import Known, Unmapped
from onnx_fcn.lifting.lifted import BATCH
from onnx_fcn.lifting.program import Image, Walk
from onnx_fcn.lifting.regions import Region, RegionOutput
from onnx_fcn.model.cost import Program, tensor_of
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import declared_as, names_used, needed_nodes, nodes_within, opset_of, static_dims
from onnx_fcn.model.inference import dims_in
from onnx_fcn.model.operators import RANDOM, SLIDING
from onnx_fcn.tables import pixels
from onnx_fcn.walk.cut import Cut, find_cut
from onnx_fcn.walk.images import Request, batches, images, leaves_batch_open, likeness
from onnx_fcn.walk.mixing import Taken, batches_taken, runs_with_its_batch
from onnx_fcn.walk.passes import walked
from onnx_fcn.walk.readings import APART, assumption
from onnx_fcn.walk.shapes import native_types

__all__ = ["live_bytes", "on_windows", "plans"]


#: Refusals for which windows are no remedy: images that change each other, answers that are maps already, inputs whose
#: axes are not known.
NO_REMEDY = frozenset(
    {"batch", "colours", "converted", "no-common-axis", "no-image", "no-positions", "opset", "random", "resized"}
)

#: Domains of operators that onnxruntime runs everywhere.
RUN_ANYWHERE = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

#: The first opset with what runs windows one after another.
SCANS = 9

#: The first opset that slices as many as are counted at run time.
SLICES = 10

#: The most windows that run together, where that is possible: more are hardly faster, and take more memory.
TOGETHER = 8

#: The bytes that may be live in windows that run together. With more, eight windows of 784 positions took a fifth more
#: time than two or three, on a processor with 2 MB of cache for each core and 36 MB for all.
LIVE = 16 << 20

#: How often the cells of a window may be halved after the cut.
DOUBLINGS = 6


def on_windows(document: Document, request: Request, refused: Walk, causes: Sequence[Diagnostic]) -> Walk:
    """The walk of a refused network whose last part runs on every window.

    Raises:
        UnsupportedModel: if that is not possible either, with the causes of the refusal.
        OptionError: if the distance of the windows does not suit the map that they are taken from.
    """
    reasons: list[Diagnostic] = []
    for planned in plans(document, request, refused, causes):
        if isinstance(planned, Diagnostic):
            reasons.append(planned)
            continue
        walk, region = planned
        taken = _batch_taken(document, walk)
        if taken == "mixed":
            reason = "on windows: the images of a batch change each other"
            raise UnsupportedModel([*causes, Diagnostic("batch", "", "", reason, APART)])
        if taken == "one":
            count = "other than one" if walk.batch == BATCH else str(walk.batch)
            reason = f"on windows: the original does not run with a batch of {count}"
            reasons.append(Diagnostic("batch", "", "", reason, APART))
            continue
        if _runs_together(document, walk, region):
            region = replace(region, together=_most_together(document, walk, region))
        found = walked(document, _noted(document, walk), region=region)
        if not found.succeeded:
            raise UnsupportedModel([*causes, *found.causes.values()])
        return found
    raise UnsupportedModel([*causes, *reasons[:1]])


def plans(
    document: Document, request: Request, refused: Walk, causes: Sequence[Diagnostic]
) -> Iterator[tuple[Walk, Region] | Diagnostic]:
    """The part of a refused network that would run on every window, and a walk of what comes before it.

    There may be one for each batch; the likeliest comes first. A diagnostic says why what comes after the last map
    cannot run on windows. There are none where windows are no remedy: for networks that mix images or are random,
    whose answers are maps already, or that read a table or a sequence without any map, since its axis need not be one
    of positions.

    Raises:
        OptionError: if the distance of the windows does not suit the map that they are taken from.
    """
    if any(d.code in NO_REMEDY for d in causes) or (opset_of(document.proto) or 1) < SCANS:
        return
    for walk in _candidates(document, request, refused):
        cut = find_cut(walk)
        if cut is None or (cut.name == walk.image.name and len(walk.image.shape) < 3):
            continue
        nodes = [document.proto.graph.node[k] for k in _beyond(document, cut.name)]
        if any(n.domain not in RUN_ANYWHERE or n.op_type in RANDOM for n in nodes):
            continue
        try:
            yield walk, region_of(document, walk, cut, request.window_stride)
        except Unsupported as refusal:
            yield Diagnostic(refusal.code, "", "", f"on windows: {refusal.reason}", refusal.hint)


def _batch_taken(document: Document, walk: Walk) -> Taken:
    """What becomes of the images of a batch, if the file leaves it open: see `batches_taken`.

    If the region has a batch built in, the question is whether the original runs with that.
    """
    if not leaves_batch_open(document, walk.image):
        return "apart"
    if walk.batch == BATCH:
        return batches_taken(document, walk.image, [o.name for o in document.proto.graph.output], TOGETHER)
    return "apart" if runs_with_its_batch(document, walk.image) else "one"


def _runs_together(document: Document, walk: Walk, region: Region) -> bool:
    """Can windows be images of a batch?

    It takes any number of them, then, reads nothing else of each image, and does not quantise all of them by one scale.
    """
    nodes = [node for top in region.nodes for node in (top, *nodes_within(top))]
    if any(node.op_type.startswith("DynamicQuantize") for node in nodes):
        return False
    known = all(isinstance(walk.facts.get(name), Known) for name in region.outside)
    apart = walk.batch == BATCH and leaves_batch_open(document, walk.image)
    return apart and known and (opset_of(document.proto) or 1) >= SLICES


def _most_together(document: Document, walk: Walk, region: Region) -> int:
    """The most windows that run together: not more than what `LIVE` bytes hold, since caches do not hold more."""
    return max(1, min(TOGETHER, LIVE // max(1, live_bytes(document, walk.image.with_batch(1), region))))


def live_bytes(document: Document, image: Image, region: Region) -> int:
    """The bytes that are live within a region, for one window of each image of this batch; 0 if they are not known."""
    graph = onnx.GraphProto(node=region.nodes, output=document.proto.graph.output)
    graph.input.add(name=region.cut)
    types = native_types(document, image)
    return Program(graph).peak({name: tensor_of(kind) for name, kind in types.items()}) or 0


def _noted(document: Document, walk: Walk) -> Image:
    """The image, with a note if its batch is open in the file and fixed in the region."""
    image = walk.image
    if walk.batch == BATCH or not leaves_batch_open(document, image):
        return image
    note = (
        f"The batch is fixed at {walk.batch}, though the file leaves it open: what runs on the windows has a shape of "
        "its own for this batch only."
    )
    return replace(image, assumed=(*image.assumed, note))


def _candidates(document: Document, request: Request, refused: Walk) -> Iterator[Walk]:
    """The walks of the likeliest reading: with the batch that the file declares or a free one, then with others."""
    image = _likeliest(document, request, refused)
    for batch in batches(document, image, declared=True):
        yield walked(document, image.with_batch(batch))


def _likeliest(document: Document, request: Request, refused: Walk) -> Image:
    """The reading of a refused network's image: the one that it slides over, otherwise the one that its shape suggests.

    Nothing slides before the windows in a network that cuts its image into patches by reshaping it, or adds coordinates
    to it: every reading runs on windows then, and only one means what the user means. A convolution behind them shows
    that the channels come first, but a walk does not reach it.
    """
    read = refused.image
    if any(slot.slides is not None for slot in refused.slots):
        return read
    named = replace(request, input=read.name)
    readings = [i for i in images(document, named) if None not in (i.batch, i.channels) and min(i.size) > 1]
    if not readings:
        return read
    chosen = max(readings, key=likeness)
    others = [i for i in readings if i.space != chosen.space]
    if others and not any(node.op_type in SLIDING for node in document.proto.graph.node):
        said = assumption(document, chosen, others, request, "looks most like a picture")
        chosen = replace(chosen, assumed=(said, *chosen.assumed))
    return chosen


def region_of(document: Document, walk: Walk, cut: Cut, stride: int | None) -> Region:
    """The region after a cut.

    Args:
        document: the model.
        walk: a walk of it that reached the cut.
        cut: the map that windows are taken from.
        stride: pixels between windows; None for the stride that the network has at its last map.

    Raises:
        Unsupported: if the region reads another map, or has results without a shape that is known in advance.
        OptionError: if the stride does not suit the cut.
    """
    nodes = document.proto.graph.node
    covers = _beyond(document, cut.name)
    own = {name for k in covers for name in nodes[k].output if name}
    read = list(dict.fromkeys(n for k in covers for n in names_used(nodes[k]) if n not in own and n != cut.name))
    copies, starts = _sized(walk, document, read)
    copied = {name for k in copies for name in nodes[k].output if name}
    read += [n for k in copies for n in names_used(nodes[k])]
    outside = tuple(dict.fromkeys(n for n in read if n not in (cut.name, *copied, *starts)))
    for name in outside:
        if not isinstance(walk.facts.get(name), Known | Unmapped):
            raise Unsupported(f"what comes after '{cut.name}' also reads '{name}'", code="several-maps")
    types = native_types(document, walk.image)
    outputs = tuple(_output(document, walk, name, types) for name in walk.outputs if name in own)
    made = [dims_in(types[n]) for k in sorted(covers) for n in nodes[k].output if n in types]
    return Region(
        cut.name,
        tuple(nodes[k] for k in (*copies, *sorted(covers))),
        frozenset(copied),
        {name: walk.values[name] for name in starts},
        outside,
        outputs,
        frozenset(covers),
        _strides(walk, cut, [d for d in made if d is not None], stride),
    )


def _beyond(document: Document, name: str) -> set[int]:
    """The nodes that the outputs need and that compute something from a tensor."""
    graph, reached, found = document.proto.graph, {name}, set()
    for k in sorted(needed_nodes(graph)):
        if not reached.isdisjoint(names_used(graph.node[k])):
            found.add(k)
            reached.update(filter(None, graph.node[k].output))
    return found


def _sized(walk: Walk, document: Document, names: Sequence[str]) -> tuple[list[int], list[str]]:
    """(the nodes, the tensors that they start from) which compute some tensors from the shapes of maps.

    Raises:
        Unsupported: if one counts the images of a batch in another way than by their number.
    """
    nodes = document.proto.graph.node
    makers = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    waiting = list(names)
    copies: set[int] = set()
    starts: list[str] = []
    while waiting:
        name = waiting.pop()
        fact = walk.facts.get(name)
        if not isinstance(fact, Known) or not fact.sized:
            continue
        k = makers.get(name)
        if k is not None and all(isinstance(walk.facts.get(n), Known) for n in names_used(nodes[k])):
            if k not in copies:
                copies.add(k)
                waiting += names_used(nodes[k])
        elif name not in starts:
            if walk.values[name].dtype.kind not in "iu" or BATCH in walk.values[name].shape:
                raise Unsupported(f"'{name}' counts the images of the batch", code="batch")
            starts.append(name)
    return sorted(copies), starts


def _inferred_or_declared(
    document: Document, walk: Walk, name: str, types: Mapping[str, onnx.TypeProto.Tensor]
) -> tuple[tuple[int | None, ...] | None, int]:
    """(shape, element type) of an output: what is inferred, or else what is declared, with the batch in its place."""
    graph = document.proto.graph
    declared = next(o for o in graph.output if o.name == name)
    inferred = types.get(name, declared.type.tensor_type)
    dims = dims_in(inferred)
    if dims is not None and None not in dims:
        return dims, inferred.elem_type
    stated, batch = static_dims(declared), None
    if walk.image.batch is not None:
        batch = static_dims(declared_as(graph, walk.image.name))[walk.image.batch]
    if stated and walk.image.batch is not None and stated[0] == batch:
        stated[0] = walk.batch
    return tuple(stated) or dims, declared.type.tensor_type.elem_type


def _output(document: Document, walk: Walk, name: str, types: Mapping[str, onnx.TypeProto.Tensor]) -> RegionOutput:
    """A result of the region.

    Raises:
        Unsupported: if its shape is not known before it runs, or has the batch on an axis with something else, or if
            it is text.
    """
    dims, kind = _inferred_or_declared(document, walk, name, types)
    if dims is None or None in dims or not kind or 0 in dims:
        raise Unsupported(f"the shape of '{name}' is not known before the network runs", code="unknown-shape")
    shape, count = tuple(d for d in dims if d is not None), walk.batch
    if kind == onnx.TensorProto.STRING:
        hint = "keep only the other outputs, with --outputs" if len(walk.outputs) > 1 else ""
        raise Unsupported(f"'{name}' is text, which no map consists of", code="text-output", hint=hint)
    if walk.image.batch is None or count == 1:
        single = walk.image.batch is not None and shape[:1] == (1,)
        return RegionOutput(name, shape, 0 if single else None, kind)
    own = [k for k, d in enumerate(shape) if d == count]
    others = [d for d in shape if d != count and d % count == 0] if count == BATCH else []
    if not own or others or (len(own) > 1 and (own[0] or count == BATCH)):
        raise Unsupported(f"'{name}' has no axis of its own for the images of a batch", code="batch")
    return RegionOutput(name, shape, own[0], kind)


def _strides(walk: Walk, cut: Cut, made: Sequence[Sequence[int | None]], asked: int | None) -> tuple[Fraction, ...]:
    """Pixels between windows, along each axis of the image.

    Raises:
        OptionError: if the cut does not have a window at every multiple of the requested stride.
    """
    axes = {a.image: a for a in cut.fact.space if a.image is not None}
    if asked is not None:
        closest = math.lcm(*(math.ceil(a.window_stride) for a in axes.values()))
        if any((Fraction(asked) / a.window_stride).denominator != 1 for a in axes.values()):
            raise OptionError(
                f"the map '{cut.name}', which windows are taken from, has one every {pixels([closest])} at the "
                f"closest: --window-stride takes a multiple of that, not {asked}"
            )
        return tuple(Fraction(asked) for _ in axes)
    sliding = [axes[k] for k in sorted(axes)]
    factor = _coarser([a.window for a in sliding], made, walk.batch)
    if factor == 1 and all(a.window_stride == 1 for a in sliding):  # nothing has strided
        return tuple(Fraction(max(n // 2, 1)) for n in walk.image.size)
    return tuple(a.window_stride * factor for a in sliding)


def _coarser(cells: Sequence[int], made: Sequence[Sequence[int | None]], batch: int) -> int:
    """How many times coarser than the window of the cut the last map after it is.

    A map is recognised by its shape, whatever makes it: neighbouring axes with the cells of the window divided by 2, 4,
    8 …, or one axis with their product, which is how transformers list positions. A map is only looked for if there is
    one of twice as many cells along each axis.

    Args:
        cells: those of a window of the cut.
        made: the shapes of the tensors that are computed from it, in order.
        batch: the number of images.
    """
    levels: list[list[tuple[int, ...]]] = [[tuple(cells)]]
    while len(levels) <= DOUBLINGS:
        factor = 1 << len(levels)
        sides = [{n // factor, -(-n // factor)} if n > 1 else {n} for n in cells]
        grids = [g for g in itertools.product(*sides) if all(m > 1 or n == 1 for m, n in zip(g, cells))]
        if not grids or not any(_is_map(dims, grids, batch, levels) for dims in made):
            break
        levels.append(grids)
    for dims in reversed(made):
        for k, grids in enumerate(levels):
            if _is_map(dims, grids, batch, levels[:k]):
                return 1 << k
    return 1


def _is_map(
    dims: Sequence[int | None],
    grids: Sequence[tuple[int, ...]],
    batch: int,
    finer: Sequence[Sequence[tuple[int, ...]]],
) -> bool:
    """Has a tensor a batch, channels and the cells of one of these grids?

    `finer`: the grids of finer maps. (N, C, positions) is a list of positions too, but transposed: not one of C.
    """
    if dims[:1] != (batch,):
        return False
    if len(dims) == 3 and len(grids[0]) > 1:
        own, counts = ({math.prod(grid) for grid in some} for some in (grids, itertools.chain(*finer)))
        return dims[1] in own and dims[2] not in counts and dims[1] != dims[2]
    rank = len(grids[0])
    return len(dims) == rank + 2 and any(tuple(dims[k : k + rank]) in grids for k in (1, 2))
