"""The same network for images of one size: numbers in place of names, and of what is computed from shapes.

Tensors that are computed from nothing but shapes and weights are the same for all images of one size. onnxruntime
computes them once, and they become weights; then nothing reads a shape any more, which many compilers for accelerators
require.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit, Weight
from onnx_fcn.model.graphs import data_inputs, declared_as, dim_name, names_used, needed_nodes, stored_names, subgraphs
from onnx_fcn.model.operators import RANDOM
from onnx_fcn.model.sessions import random_values, session, with_outputs

__all__ = ["fixed", "in_batches_of", "inputs_of"]


#: Batches that are run if the batch stays free: what differs between them depends on it.
FREE_BATCHES = (2, 3)

#: The most bytes of a computed tensor that becomes a weight; a larger one stays computed, as it would grow the file.
LARGEST_FOLDED = 1 << 18


def fixed(document: Document, dims: Mapping[str, Sequence[int | None]]) -> Edit:
    """The edit that fixes the dims of all inputs, and of everything that follows from them.

    Args:
        document: the model.
        dims: for each input the dims to declare; None for a batch that stays free.

    Raises:
        ModelError: if onnxruntime does not run the model on inputs of these sizes.
    """
    graph = document.proto.graph
    free = any(None in d for d in dims.values())
    names = list(_of_shapes(document.proto))
    outputs = [o.name for o in graph.output]
    run = session(document, with_outputs(document, names))
    found = [
        dict(zip([*outputs, *names], run(inputs_of(document, dims, batch))))
        for batch in (FREE_BATCHES if free else FREE_BATCHES[:1])
    ]
    values = {n: found[0][n] for n in names if all(_equal(found[0][n], each[n]) for each in found)}
    values = {n: v for n, v in values.items() if v.nbytes <= LARGEST_FOLDED}
    needed = needed_nodes(graph, outputs, values)
    used = {n for k in needed for n in names_used(graph.node[k])} | set(outputs)
    return Edit(
        nodes={k: [] for k in range(len(graph.node)) if k not in needed},
        initializers={n: _weight(v) for n, v in values.items() if n in used},
        removed_initializers={t.name for t in graph.initializer} - used,
        inputs={i.name: _declared(i, dims[i.name]) for i in data_inputs(graph)},
        outputs={o.name: _declared(o, _shape([each[o.name] for each in found])) for o in graph.output},
        value_info=[],
    )


def in_batches_of(document: Document, image: str, axis: int, batch: int) -> Edit:
    """The edit that declares a number wherever inputs and outputs have the batch of an image.

    Args:
        document: the model.
        image: the name of the input.
        axis: that of its batch. If this has no name there, as some exporters leave it, it is also what is open and has
            none in an output; of other inputs nothing is known then, and they stay as they are.
        batch: the number of images.
    """
    graph = document.proto.graph
    name = dim_name(declared_as(graph, image).type.tensor_type.shape.dim[axis])

    def declared(value: ValueInfoProto, places: Collection[int] | None = None) -> ValueInfoProto:
        made = ValueInfoProto()
        made.CopyFrom(value)
        for k, dim in enumerate(made.type.tensor_type.shape.dim):
            is_open = not dim.HasField("dim_value")
            if is_open and dim_name(dim) == name and (name or places is None or k in places):
                dim.dim_value = batch
        return made

    return Edit(
        inputs={i.name: declared(i, {axis} if i.name == image else ()) for i in data_inputs(graph)},
        outputs={o.name: declared(o) for o in graph.output},
    )


def inputs_of(
    document: Document,
    dims: Mapping[str, Sequence[int | None]],
    batch: int,
    random: np.random.Generator | None = None,
    deviation: float = 1.0,
) -> dict[str, Array]:
    """Random values for all inputs, of these dims and so many images; noise of this standard deviation."""
    random, inputs = random or np.random.default_rng(0), data_inputs(document.proto.graph)
    shapes = {name: [batch if d is None else d for d in sizes] for name, sizes in dims.items()}
    return {i.name: random_values(i, shapes[i.name], random, deviation) for i in inputs}


def _of_shapes(model: ModelProto) -> Iterator[str]:
    """The tensors that are computed from shapes and weights alone, and constants among the nodes."""
    graph = model.graph
    constant = stored_names(graph) | {""}
    outputs, known = {o.name for o in graph.output}, set(constant)
    for node in graph.node:
        if node.op_type == "Constant":  # some compilers read weights only
            constant |= set(node.output)
            known |= set(node.output)
            yield from node.output
            continue
        if subgraphs(node) or node.op_type in RANDOM or outputs & set(node.output):
            continue
        if node.op_type in ("Shape", "Size") or known.issuperset(node.input):
            known |= set(node.output)
            if not constant.issuperset(node.input):
                yield from filter(None, node.output)


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _weight(values: Array) -> Weight:
    return Weight(values, values.shape, onnx.helper.np_dtype_to_tensor_dtype(values.dtype))


def _shape(found: Sequence[Array]) -> list[int | None]:
    """The shape of an output; None along an axis where it depends on the batch."""
    return [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*(values.shape for values in found))]


def _declared(value: ValueInfoProto, dims: Sequence[int | None]) -> ValueInfoProto:
    """The declaration of an input or output with these dims; the name of a free one stays."""
    kind = value.type.tensor_type
    old = [dim_name(d) for d in kind.shape.dim] + [""] * len(dims)
    shape = [old[k] or "N" if d is None else d for k, d in enumerate(dims)]
    return onnx.helper.make_tensor_value_info(value.name, kind.elem_type, shape)
