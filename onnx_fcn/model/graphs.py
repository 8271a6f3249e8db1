"""Questions about a graph: which names a node reads, which nodes the outputs need, what the inputs are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorShapeProto, ValueInfoProto

__all__ = [
    "data_inputs",
    "declared_as",
    "dim_name",
    "dims_in_words",
    "distinguish",
    "graphs_within",
    "made_from",
    "names_used",
    "needed_nodes",
    "nodes_within",
    "opset_of",
    "rename",
    "static_dims",
    "stored_names",
    "subgraphs",
    "tensor_names",
]


def opset_of(model: ModelProto) -> int | None:
    """The version of ONNX's own operators that a model imports; None if it imports none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def names_used(node: NodeProto) -> list[str]:
    """The names of all tensors that a node reads, including those that its subgraphs read from outside."""
    names = [name for name in node.input[:] if name]  # a slice: iterating over a repeated field is twice as slow
    for graph in subgraphs(node):
        inside = tensor_names(graph)
        inner = [name for node in graph.node for name in names_used(node)]
        names += [name for name in (*inner, *(o.name for o in graph.output)) if name not in inside]
    return names


def nodes_within(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes of a node's subgraphs, at any depth."""
    for graph in subgraphs(node):
        for inner in graph.node:
            yield inner
            yield from nodes_within(inner)


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among the attributes of a node."""
    found: list[GraphProto] = []
    for attribute in node.attribute[:]:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found += attribute.graphs
    return found


def graphs_within(graph: GraphProto) -> Iterator[GraphProto]:
    """The subgraphs of a graph's nodes, at any depth."""
    for node in graph.node:
        for inner in subgraphs(node):
            yield inner
            yield from graphs_within(inner)


def distinguish(node: NodeProto, taken: set[str]) -> None:
    """Rename the tensors of a node's subgraphs whose names are taken, and add all of their names to `taken`."""
    for graph in subgraphs(node):
        new = {}
        for name in sorted(tensor_names(graph) - {""}):
            others = (f"{name}_{k}" for k in itertools.count(2))
            new[name] = next(n for n in itertools.chain([name], others) if n not in taken)
            taken.add(new[name])
        rename(graph, {old: name for old, name in new.items() if old != name})
        for inner in graph.node:
            distinguish(inner, taken)


def rename(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors wherever a graph defines or reads them; `new` maps old names to new ones."""
    for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        named.name = new.get(named.name, named.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for inner in subgraphs(node):
            hidden = tensor_names(inner)
            rename(inner, {old: name for old, name in new.items() if old not in hidden})


def tensor_names(graph: GraphProto) -> set[str]:
    """The names of all tensors that a graph defines."""
    names = {value.name for value in graph.input}
    names.update(initializer.name for initializer in graph.initializer)
    names.update(sparse.values.name for sparse in graph.sparse_initializer)
    names.update(name for node in graph.node for name in node.output)
    return names


def data_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that are not initializers (before IR version 4, initializers are listed as inputs too)."""
    stored = stored_names(graph)
    return [i for i in graph.input if i.name not in stored and i.type.HasField("tensor_type")]


def declared_as(graph: GraphProto, name: str) -> ValueInfoProto:
    """The declaration of an input."""
    inputs: Sequence[ValueInfoProto] = graph.input
    return next(i for i in inputs if i.name == name)


def static_dims(declared: ValueInfoProto) -> list[int | None]:
    """Declared dims; None for symbolic dims and those below 1."""
    return [d.dim_value if d.dim_value > 0 else None for d in declared.type.tensor_type.shape.dim]


def needed_nodes(graph: GraphProto, outputs: Iterable[str] | None = None, given: Collection[str] = ()) -> set[int]:
    """Indices of the nodes that compute `outputs`, by default the graph's, if the tensors `given` are known."""
    nodes = graph.node
    makers = {name: k for k, node in enumerate(nodes) for name in node.output if name and name not in given}
    wanted = [o.name for o in graph.output] if outputs is None else outputs
    return made_from(wanted, makers, lambda k: names_used(nodes[k]))


def made_from(names: Iterable[str], makers: Mapping[str, int], reads: Callable[[int], Iterable[str]]) -> set[int]:
    """All that tensors are computed from: `makers` has the number of what makes each, `reads` tells what that reads."""
    waiting, found = list(names), set[int]()
    while waiting:
        k = makers.get(waiting.pop())
        if k is not None and k not in found:
            found.add(k)
            waiting += reads(k)
    return found


def dims_in_words(declared: ValueInfoProto) -> str:
    """A declared shape with the names of symbolic dims: ``(batch, 3, height, width)``."""
    dims = declared.type.tensor_type.shape.dim
    return f"({', '.join(str(d.dim_value) if d.dim_value > 0 else dim_name(d) or '?' for d in dims)})"


def dim_name(dim: TensorShapeProto.Dimension) -> str:
    """The name of a symbolic dim; empty if it has none, or one that is not UTF-8, which protobuf gives as bytes."""
    name: str | bytes = dim.dim_param
    return name if isinstance(name, str) else ""


def stored_names(graph: GraphProto) -> set[str]:
    """Names of the initializers, sparse ones included; they may be listed as inputs too."""
    return {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
