"""From a finished walk to its edit of the model.

New nodes take the places of those that they replace, so the order stays topological, and other nodes are not touched.
Nodes and weights that are no longer read go; those that were unused before stay, unless they depend on the image.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorShapeProto, ValueInfoProto

from onnx_fcn.errors import Diagnostic, UnsupportedModel
from onnx_fcn.geometry import SIZE_NAMES
from onnx_fcn.lifting.facts import Whole
from onnx_fcn.lifting.lifted import BATCH, Lifted
from onnx_fcn.lifting.program import BATCH_SIZE, Emission, Slot, Walk
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit, Weight
from onnx_fcn.model.graphs import stored_names
from onnx_fcn.model.nodes import Node

__all__ = ["assemble"]


#: The nodes that replace each node of the graph, by its index.
Nodes = dict[int, list[Node]]


def assemble(document: Document, walk: Walk, *, dynamic_batch: bool = False) -> Edit:
    """The edit that turns the document into the fully convolutional network of the walk.

    Raises:
        UnsupportedModel: if a node that stays would read a tensor that is gone.
    """
    _name_outputs(walk)
    graph = document.proto.graph
    walked = _emitted(walk)
    made = _with_ends(document, walk, {**walked, **_beside(document, walk, walked)})
    nodes = _needed(made, walk.outputs, set(walked))
    weights = {c.name: c.weight for slot in _slots(walk) for c in slot.constants}
    used = {name for node in _all(nodes) for name in node.reads} | set(walk.outputs)
    _check_complete(document, nodes, used, weights)
    gone = {t.name for t in graph.initializer} - used - _unused(document)
    names = _weight_names(walk, weights, used, gone)
    stored = {names.get(name, name): weight for name, weight in weights.items() if name in used}
    fills, initializers = _filled(stored)
    _rename_inputs(nodes, names)
    if fills:
        nodes[0] = [*fills, *nodes.get(0, [])]
    return Edit(
        nodes=_changed(document, nodes),
        initializers=initializers,
        removed_initializers=gone - set(initializers),
        inputs={} if walk.standing is not None else {walk.image.name: _input(document, walk, dynamic_batch)},
        outputs={o.name: _output(o, document, walk, dynamic_batch) for o in graph.output if o.name in walk.results},
        value_info=[],
    )


def _slots(walk: Walk) -> list[Slot]:
    """All slots: before the first node, of the nodes, after the last."""
    return [walk.prologue, *walk.slots, *walk.epilogue]


def _emitted(walk: Walk) -> Nodes:
    """For each node of the walk: the nodes emitted in its slot, or itself if it was not replaced."""
    made: Nodes = {}
    for slot in walk.slots:
        nodes = [_stored(e, slot) for e in slot.emissions] if slot.replaced else [slot.node]
        made.setdefault(slot.index, []).extend(nodes)
        made.update({k: [] for k in slot.covers - {slot.index}})
    return made


def _beside(document: Document, walk: Walk, walked: Iterable[int]) -> Nodes:
    """The nodes that no output needs, except those that depend on the image."""
    beside: Nodes = {}
    lost = {name for name, fact in walk.facts.items() if isinstance(fact, Lifted | Whole)}
    lost |= {o for slot in walk.slots for k in slot.covers for o in document.nodes[k].outputs if o}
    for k, node in enumerate(document.nodes):
        if k in walked:
            continue
        if lost.isdisjoint(node.reads):
            beside[k] = [node]
        else:
            lost |= set(filter(None, node.outputs))
    return beside


def _with_ends(document: Document, walk: Walk, made: Nodes) -> Nodes:
    """`made`, with the nodes emitted before the first node and after the last."""
    last = len(document.nodes) - 1
    if last < 0:
        return made
    front = [_stored(e, walk.prologue) for e in walk.prologue.emissions]
    back = [_stored(e, slot) for slot in walk.epilogue for e in slot.emissions]
    made = {**made, 0: [*front, *made.get(0, [])]}
    return {**made, last: [*made.get(last, []), *back]}


def _all(nodes: Nodes) -> Iterator[Node]:
    return itertools.chain.from_iterable(nodes.values())


def _needed(made: Nodes, outputs: Iterable[str], walked: set[int]) -> Nodes:
    """The nodes, without those of the walk that are no longer read."""
    live = _live(made, outputs, walked)
    return {k: [n for n in nodes if id(n) in live] for k, nodes in made.items()}


def _weight_names(walk: Walk, weights: dict[str, Weight], used: set[str], gone: set[str]) -> dict[str, str]:
    """The names under which new weights are stored, if these are not their own."""
    sources = {c.name: c.source for slot in [*walk.slots, *walk.epilogue] for c in slot.constants if c.source}
    return {**_shared(weights, sources), **_given_back(sources, used, gone)}


def _filled(weights: dict[str, Weight]) -> tuple[list[Node], dict[str, Weight]]:
    """ConstantOfShape nodes for large weights of a single value, and the weights that are stored nevertheless."""
    nodes: list[Node] = []
    stored: dict[str, Weight] = {}
    for name, weight in weights.items():
        if not _is_fill(weight):
            stored[name] = weight
            continue
        shape = f"{name}/shape"
        stored[shape] = Weight(np.array(weight.dims, np.int64), (len(weight.dims),), onnx.TensorProto.INT64)
        value = onnx.numpy_helper.from_array(np.ascontiguousarray(weight.array.reshape(-1)[:1]))
        nodes.append(Node("ConstantOfShape", "", [shape], [name], {"value": value}))
    return nodes, stored


def _rename_inputs(nodes: Nodes, names: dict[str, str]) -> None:
    """Make the nodes read weights by the names under which these are stored."""
    for made in nodes.values() if names else ():
        made[:] = [node.renamed(names) for node in made]


def _changed(document: Document, nodes: Nodes) -> dict[int, list[NodeProto]]:
    """The replacements of the nodes that do not stay unchanged."""
    changed: dict[int, list[NodeProto]] = {}
    for k, node in enumerate(document.nodes):
        made = nodes.get(k, [])
        if len(made) != 1 or made[0] is not node:
            changed[k] = [each.proto for each in made]
    return changed


def _name_outputs(walk: Walk) -> None:
    """Give the delivered maps the names of the outputs: rename tensors if possible, otherwise add an Identity."""
    delivered = {name: result.map for name, result in walk.results.items()}
    delivered |= {name: formed.tensor for name, formed in walk.formed.items()}
    taken = Counter(delivered.values())
    emissions = [e for slot in _slots(walk) for e in slot.emissions]
    produced = {name for e in emissions for name in e.node.outputs}
    untouched = {n for slot in walk.slots if not slot.replaced for n in slot.node.reads}
    renamed: dict[str, str] = {}
    for slot in walk.epilogue:
        name = slot.node.outputs[0]
        current = delivered[name]
        if current == name:
            continue
        if name in produced:  # the tensor with that name is still read on the way to the output
            renamed[name] = walk.fresh(f"{name}/map")
        if current in produced and taken[current] == 1 and current not in untouched and current not in delivered:
            renamed[current] = name
        else:
            current = renamed.get(current, current)
            alias = Node("Identity", name, [current], [f"{name}/alias"])
            slot.emissions += (Emission(alias),)
            renamed[f"{name}/alias"] = name
    if renamed:
        for emission in (e for slot in _slots(walk) for e in slot.emissions):
            emission.rename(renamed)
    walk.renamed.update(renamed)


def _stored(emission: Emission, slot: Slot) -> Node:
    """The node as it will be stored; a variation of the slot's own keeps everything that it does not change."""
    if not emission.varies or emission.node is slot.node:
        return emission.node
    inputs, outputs, attrs = emission.node.inputs, emission.node.outputs, emission.node.attrs
    changed = {
        k: v
        for k, v in attrs.items()
        if k not in slot.node.attrs or (slot.node.attrs[k] is not v and slot.node.attrs[k] != v)
    }
    removed = set(slot.node.attrs) - set(attrs)
    node = NodeProto()
    node.CopyFrom(slot.node.proto)
    del node.input[:], node.output[:]
    node.input.extend(inputs)
    node.output.extend(outputs)
    kept = [a for a in node.attribute if a.name not in changed and a.name not in removed]
    kept += [onnx.helper.make_attribute(k, v) for k, v in changed.items()]
    kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(kept)
    return Node.of(node)


def _live(made: Nodes, outputs: Iterable[str], in_walk: set[int]) -> set[int]:
    """Ids of the nodes that the outputs need, and of those that were not needed before either."""
    producer = {name: node for nodes in made.values() for node in nodes for name in node.outputs if name}
    found = {id(n) for k, nodes in made.items() if k not in in_walk for n in nodes}
    wanted = [
        *outputs,
        *(n for k, nodes in made.items() if k not in in_walk for node in nodes for n in node.reads),
    ]
    while wanted:
        node = producer.get(wanted.pop())
        if node is not None and id(node) not in found:
            found.add(id(node))
            wanted += node.reads
    return found


def _check_complete(document: Document, kept: Nodes, used: set[str], weights: dict[str, Weight]) -> None:
    """Raises UnsupportedModel if a node that stays reads a tensor that is gone."""
    graph = document.proto.graph
    have = stored_names(graph)
    have |= {i.name for i in graph.input} | set(weights)
    have |= {o for nodes in kept.values() for node in nodes for o in node.outputs}
    missing = used - have
    if not missing:
        return
    causes = [
        Diagnostic(
            "reads-lost-tensor",
            node.name or node.outputs[0],
            node.op,
            f"reads '{name}' at run time, which has another shape at every image size",
        )
        for nodes in kept.values()
        for node in nodes
        for name in node.reads
        if name in missing
    ]
    causes += [
        Diagnostic("reads-lost-tensor", o.name, "output", "is made of sizes, which are others at every image size")
        for o in graph.output
        if o.name in missing
    ]
    raise UnsupportedModel(causes)


def _unused(document: Document) -> set[str]:
    """Initializers that nothing read in the original."""
    graph = document.proto.graph
    used = {n for node in document.nodes for n in node.reads} | {o.name for o in graph.output}
    return {t.name for t in graph.initializer} - used


def _given_back(sources: dict[str, str], used: set[str], gone: set[str]) -> dict[str, str]:
    """New weights that take the name of the weight that only they were made from."""
    made = Counter(s for name, s in sources.items() if name in used)
    return {name: s for name, s in sources.items() if name in used and s in gone and made[s] == 1}


def _shared(weights: dict[str, Weight], sources: dict[str, str]) -> dict[str, str]:
    """Small new constants, such as the bounds of slices, under the name of the first equal one."""
    first: dict[tuple[object, ...], str] = {}
    names: dict[str, str] = {}
    for name, weight in weights.items():
        if name not in sources and weight.array.size <= 16:
            names[name] = first.setdefault((weight.dims, weight.elem_type, weight.array.tobytes()), name)
    return {name: same for name, same in names.items() if name != same}


def _is_fill(weight: Weight) -> bool:
    """Is this a large weight of a single value, which ConstantOfShape can make?"""
    return weight.array.size > 1024 and not any(weight.array.strides)


def _input(document: Document, walk: Walk, dynamic_batch: bool) -> ValueInfoProto:
    """The declaration of the image, with dynamic sizes unless these are kept."""
    declared = ValueInfoProto()
    declared.CopyFrom(next(i for i in document.proto.graph.input if i.name == walk.image.name))
    dims = declared.type.tensor_type.shape.dim
    if not walk.keeps_size:
        for k, (axis, name) in enumerate(zip(walk.image.space, SIZE_NAMES[len(walk.image.space)])):
            if k in walk.held:
                dims[axis].dim_value = walk.image.size[k]
            else:
                dims[axis].dim_param = name
    if walk.image.channels is not None:
        dims[walk.image.channels].dim_value = walk.image.shape[walk.image.channels]
    if walk.image.batch is not None:
        batch = dims[walk.image.batch]
        if dynamic_batch:
            batch.dim_param = "batch"
        elif walk.batch != BATCH and not batch.HasField("dim_value"):  # baked into the graph, whatever is declared
            batch.dim_value = walk.batch
    return declared


def _output(declared: ValueInfoProto, document: Document, walk: Walk, dynamic_batch: bool) -> ValueInfoProto:
    """The declaration of an output (N, C, *grid); numbers of cells are formulas of the image's size."""
    result = walk.results[declared.name]
    made = ValueInfoProto()
    made.CopyFrom(declared)
    shape = made.type.tensor_type.shape
    del shape.dim[:]
    if (formed := walk.formed.get(declared.name)) is not None:
        made.type.tensor_type.elem_type = formed.elem_type
        for size in formed.dims:
            dim = shape.dim.add()
            if size is None:
                dim.CopyFrom(_batch(document, walk, dynamic_batch))
            elif BATCH_SIZE in str(size):
                batch = _batch(document, walk, dynamic_batch)
                _set(dim, str(size).replace(BATCH_SIZE, batch.dim_param or str(batch.dim_value or "batch")))
            else:
                _set(dim, size)
        return made
    shape.dim.add().CopyFrom(_batch(document, walk, dynamic_batch))
    shape.dim.add().dim_value = result.width
    for axis in result.space:
        _set(shape.dim.add(), walk.cells(axis))
    return made


def _batch(document: Document, walk: Walk, dynamic_batch: bool) -> TensorShapeProto.Dimension:
    """The batch as the image declares it."""
    if walk.image.batch is None:
        return TensorShapeProto.Dimension(dim_value=1)
    batch: TensorShapeProto.Dimension = _input(document, walk, dynamic_batch).type.tensor_type.shape.dim[
        walk.image.batch
    ]
    return batch


def _set(dim: TensorShapeProto.Dimension, size: int | str) -> None:
    """Declare a size, or the formula for it."""
    if isinstance(size, int):
        dim.dim_value = size
    else:
        dim.dim_param = size
