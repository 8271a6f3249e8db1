"""Networks that cannot slide: their dense layers become convolutions where they stand.

A network that keeps all sizes need not slide: attention between positions, a recurrence, or an image in one row stay as
they are. No tensor is a map, so every node is left unchanged, except for products with a constant matrix. With the
features on axis 1, each of these is a convolution with a single tap:

    x -> Transpose -> (M, K, …) -> Unsqueeze -> (M, K, …, 1) -> Conv -> Squeeze -> Transpose -> (…, O)

If a feature map (N, C, H, W) is flattened before the layer, the kernel covers that map, and the weight is reshaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnx_fcn.errors import Diagnostic, OptionError, Unsupported
from onnx_fcn.lifting.facts import Fact, Known, Unmapped
from onnx_fcn.lifting.layouts import CONVOLVED
from onnx_fcn.lifting.lifted import BATCH, dims_of
from onnx_fcn.lifting.program import Change, Image, Options, Slot, Standing, Walk
from onnx_fcn.lifting.site import Site
from onnx_fcn.lifting.weights import kernel, vector
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import nodes_within
from onnx_fcn.model.inference import dims_in
from onnx_fcn.model.operators import CHANNELS_FIRST, FACTORS, GLOBAL, PER_IMAGE, PRODUCTS, RANDOM, RESHAPES, SLIDING
from onnx_fcn.walk.ends import named
from onnx_fcn.walk.images import Request, batches, leaves_batch_open
from onnx_fcn.walk.mixing import batches_taken, runs_with_its_batch
from onnx_fcn.walk.passes import program
from onnx_fcn.walk.shapes import native_types

__all__ = ["in_place"]


#: Codes of refusals that are not about sliding.
UNREADABLE = frozenset({"converted", "opset", "random"})

#: Operators that may be dense layers.
LAYERS = PRODUCTS | {"Einsum"}

#: The domains of ONNX's own operators.
STANDARD = ("", "ai.onnx")

#: Operators whose results are feature maps (N, C, H, W), if they have four axes.
MAPPING = SLIDING | CHANNELS_FIRST | GLOBAL.keys() | {"ConvTranspose"}

#: The axes of what a convolution of images reads: (N, C, H, W).
AXES = 4

Types = Mapping[str, onnx.TypeProto.Tensor]

#: The names of the kernels made so far, by their weight, whether that is (K, O), and their dims.
Kernels = dict[tuple[str, bool, tuple[int, ...]], str]


@dataclass(frozen=True)
class Layer:
    """A dense layer: alpha·x·weight + beta·added.

    Attributes:
        x: the tensor that it reads.
        weight: its weight, a matrix.
        flip: whether the weight is (K, O), rather than (O, K).
        perm: the order of the axes of x that puts its features on axis 1.
        back: the order of the axes (position, outputs, positions…) that gives the result.
        alpha: the factor of the product.
        beta: the factor of what is added.
        added: what is added, if anything.
    """

    x: str
    weight: Known
    flip: bool
    perm: tuple[int, ...]
    back: tuple[int, ...]
    alpha: float = 1.0
    beta: float = 1.0
    added: Fact | None = None


def in_place(document: Document, request: Request, refused: Walk, causes: Sequence[Diagnostic]) -> Walk | None:
    """The walk of a network that cannot slide, with its dense layers as convolutions; None if it does not run, either.

    Args:
        document: the model.
        request: what the user said about its image.
        refused: the walk of its likeliest reading.
        causes: why that was refused.

    Raises:
        OptionError: if no dense layer can become a convolution.
    """
    image = _still(document, request, refused.image)
    if image is None or any(d.code in UNREADABLE for d in causes):
        return None
    walk, types = program(document, image, Options()), native_types(document, image)
    walk.facts[image.name] = Unmapped(image.name)
    kernels: Kernels = {}
    left = []
    for position, slot in enumerate(walk.slots):
        slot.operands = tuple(walk.facts[n] if n else None for n in slot.node.inputs)
        is_known = slot.node.op not in RANDOM and all(
            isinstance(walk.facts.get(name), Known) for name in slot.node.reads
        )
        walk.facts.update({name: Known(name) if is_known else Unmapped(name) for name in slot.node.outputs if name})
        try:
            if not is_known:
                _convert(Site(walk, position, slot), slot, types, kernels)
        except Unsupported as refusal:
            left.append(Diagnostic(refusal.code, slot.name, slot.node.op, refusal.reason, refusal.hint))
    if not any(slot.changes for slot in walk.slots):
        why = "".join(f": {d.op} '{d.node}' {d.reason}" for d in left[:1])
        raise OptionError(f"the network has no dense layer that --keep-size could replace by a convolution{why}")
    walk.standing = Standing(causes[0], tuple(left))
    return walk


def _still(document: Document, request: Request, reading: Image) -> Image | None:
    """The image with a batch that the network runs with, and with positions only if the user gave its size.

    None if there is no such batch.
    """
    if request.size is None:
        reading = replace(reading, channels=None, space=())
    for batch in batches(document, reading, declared=True):
        image = replace(reading.with_batch(batch), assumed=())
        if not leaves_batch_open(document, image) or _takes(document, image, batch):
            return image
    return None


def _takes(document: Document, image: Image, batch: int) -> bool:
    """Does the network run with this batch; if it is the one that stands for any, does it run with several?"""
    if batch != BATCH:
        return runs_with_its_batch(document, image)
    return batches_taken(document, image.with_batch(1), [o.name for o in document.proto.graph.output]) != "one"


def _convert(site: Site, slot: Slot, types: Types, kernels: Kernels) -> None:
    """Replace a dense layer by a convolution; leave every other node unchanged.

    Raises:
        Unsupported: if it is a dense layer, or contains one, but cannot be replaced.
    """
    if any(node.op_type in LAYERS for node in nodes_within(slot.node.proto)):
        raise Unsupported("has dense layers in its subgraph, where nothing is replaced", code="subgraph")
    layer = _layer(site, slot, types)
    if layer is None:
        return
    y, added = _convolved(site, slot, layer, types, kernels)
    scalar = site.dtype(types[layer.x].elem_type)
    if layer.alpha != 1.0:
        y = site.emit([y, np.array(layer.alpha, scalar)], "Mul")
    if added is not None and layer.beta != 1.0:
        added = Unmapped(site.emit([added, np.array(layer.beta, scalar)], "Mul"))
    if added is not None:
        y = site.emit([y, added], "Add")
    slot.replaced = True
    named(site, [Unmapped(y)])


def _layer(site: Site, slot: Slot, types: Types) -> Layer | None:
    """The dense layer that a node is; None if it is none.

    Raises:
        Unsupported: if there is no convolution like it.
    """
    if slot.node.op not in LAYERS:
        return None
    factors = [slot.operands[k] for k in FACTORS.get(site.op, (0, 1)) if k < len(slot.operands)]
    if sum(isinstance(f, Known) for f in factors) != 1:
        return None
    if site.op not in ("Gemm", "MatMul") or slot.node.domain not in STANDARD:
        raise Unsupported("is neither a Gemm nor a MatMul", code="no-rule")
    on_right = isinstance(factors[1], Known)
    x, weight = factors if on_right else reversed(factors)
    assert isinstance(x, Unmapped), "one of the factors depends on the image"
    assert isinstance(weight, Known), "the other one is constant"
    rank = _rank_of(x.name, types)
    if len(shape := site.weight_shape(weight)) != 2:
        raise Unsupported(f"has a weight of shape {dims_of(shape)}, which is not a matrix", code="rank")
    if site.op == "MatMul":
        perm = _features_second(rank, rank - 1 if on_right else rank - 2)
        return Layer(x.name, weight, on_right, perm, tuple(np.argsort(perm).tolist()))
    flips = site.flag("transB" if on_right else "transA")
    turned = site.flag("transA" if on_right else "transB")
    perm = _features_second(rank, 0 if turned == on_right else 1)  # x is (M, K), or (K, M) in W·x
    alpha, beta = float(site.attr("alpha", 1.0)), float(site.attr("beta", 1.0))
    added = slot.operands[2] if len(slot.operands) > 2 and beta else None
    return Layer(x.name, weight, flips != on_right, perm, (0, 1) if on_right else (1, 0), alpha, beta, added)


def _rank_of(x: str, types: Types) -> int:
    """The number of axes of what a dense layer reads.

    Raises:
        Unsupported: if no convolution takes it.
    """
    dims = dims_in(types[x]) if x in types else None
    if dims is None:
        raise Unsupported("reads a tensor whose number of axes is not known before it runs", code="unknown-shape")
    if not 2 <= len(dims) <= AXES:
        raise Unsupported(f"reads a tensor with {len(dims)} axes, and a convolution takes up to {AXES}", code="rank")
    if types[x].elem_type not in CONVOLVED:
        name = onnx.TensorProto.DataType.Name(types[x].elem_type)
        raise Unsupported(f"computes with {name}, which onnxruntime does not convolve", code="dtype")
    return len(dims)


def _features_second(rank: int, axis: int) -> tuple[int, ...]:
    """The order of axes that puts one of them on axis 1, and keeps the order of the others."""
    first, *others = (k for k in range(rank) if k != axis)
    return (first, axis, *others)


def _convolved(site: Site, slot: Slot, layer: Layer, types: Types, kernels: Kernels) -> tuple[str, Fact | None]:
    """(the product of a layer as a convolution, what is left to add)."""
    outputs, inputs = site.weight_shape(layer.weight)[:: -1 if layer.flip else 1]
    bias, added = None, layer.added
    rows = ((), (1,), (outputs,), (1, 1), (1, outputs)) if layer.alpha == 1.0 and layer.back == (0, 1) else ()
    if isinstance(added, Known) and site.weight_shape(added) in rows:
        bias, added = vector(site, added, outputs, layer.beta), None
    flattened = _flattened(site, layer, inputs, types)
    reads, dims = flattened or (layer.x, (inputs, 1, 1))
    key = (layer.weight.name, layer.flip, (outputs, *dims))
    if key not in kernels:
        kernels[key] = kernel(site, layer.weight, lambda w: w.T if layer.flip else w, key[2])
    rank = len(layer.perm)
    spare = list(range(rank, AXES))
    x = reads if flattened else _in_order(site, reads, layer.perm)
    if spare and not flattened:
        x = site.unsqueeze(x, spare)
    y = site.emit([x, kernels[key], *([bias] if bias is not None else [])], "Conv", kernel_shape=list(dims[1:]))
    y = site.squeeze(y, spare) if spare else y
    layout = f"n (c{dims[0]} h{dims[1]} w{dims[2]})"
    change = Change("dense", dims[1:], dims[0], outputs, reads=reads, layout=layout, weight=layer.weight.name)
    slot.changes += (change,)
    return _in_order(site, y, layer.back), added


def _in_order(site: Site, name: str, perm: Sequence[int]) -> str:
    return name if list(perm) == sorted(perm) else site.emit([name], "Transpose", perm=list(perm))


def _flattened(site: Site, layer: Layer, inputs: int, types: Types) -> tuple[str, tuple[int, ...]] | None:
    """(name, (C, H, W)) of the feature map (N, C, H, W) that a layer reads flattened; None if it reads another tensor.

    Whatever steps flatten it, values keep their order. So a row for each of its images has all values of that image.
    """
    rows = dims_in(types[layer.x])
    if rows is None or layer.perm != (0, 1):
        return None
    name = layer.x
    while (node := site.producer(Known(name))) is not None and node.op_type in RESHAPES and node.domain in STANDARD:
        name = node.input[0]
    dims = dims_in(types[name]) if name in types else None
    if dims is None or None in dims or len(dims) != AXES or not _is_map(site, name):
        return None
    count, *image = (d for d in dims if d is not None)
    return (name, tuple(image)) if count == rows[0] and math.prod(image) == inputs else None


def _is_map(site: Site, name: str) -> bool:
    """Is a tensor the result of an operator on maps, or computed from one value by value?"""
    waiting, seen = [name], {name}
    while waiting:
        node = site.producer(Known(waiting.pop()))
        if node is None or node.op_type not in PER_IMAGE | MAPPING or node.domain not in STANDARD:
            continue
        if node.op_type in MAPPING:
            return True
        waiting += set(node.input) - seen
        seen |= set(node.input)
    return False
