"""Which answers are requested: a selection of the outputs, or the logits before a closing Softmax.

The selection is made in the original: lifting and validation both work on the network that remains.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto, helper

from onnx_fcn.errors import OptionError
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.graphs import names_used, needed_nodes
from onnx_fcn.model.operators import PROBABILITIES, THROUGH
from onnx_fcn.walk.asked import Asked

__all__ = ["select"]


def select(document: Document, asked: Asked) -> dict[str, str]:
    """Reduce a model, in place, to the requested answers.

    Returns the outputs whose closing probabilities were dropped, each with the tensor of its logits.

    Raises:
        OptionError: if it has no such output, or none that closes with probabilities.
    """
    if asked.outputs:
        _keep(document, asked.outputs)
    return _drop_probabilities(document) if asked.logits else {}


def _keep(document: Document, wanted: Sequence[str]) -> None:
    names = [o.name for o in document.proto.graph.output]
    if unknown := [name for name in wanted if name not in names]:
        raise OptionError(f"the model has no output '{unknown[0]}': its outputs are {', '.join(map(repr, names))}")
    graph = document.proto.graph
    before = needed_nodes(document.proto.graph)
    document.commit(Edit(removed_outputs=set(names) - set(wanted)))
    gone = before - needed_nodes(document.proto.graph)
    weights = {n for k in gone for n in names_used(graph.node[k])} & {t.name for t in graph.initializer}
    weights -= {n for k, node in enumerate(graph.node) if k not in gone for n in names_used(node)}
    weights -= {o.name for o in graph.output}
    document.commit(Edit(nodes={k: [] for k in gone}, removed_initializers=weights))


def _drop_probabilities(document: Document) -> dict[str, str]:
    graph = document.proto.graph
    producers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[str, list[int]] = {}
    for reading, node in enumerate(graph.node):
        for name in names_used(node):
            readers.setdefault(name, []).append(reading)
    edited: dict[int, list[NodeProto]] = {}
    logits: dict[str, str] = {}
    for output in graph.output:
        closing: set[int] = set()
        k = producers.get(output.name)
        while k is not None and graph.node[k].op_type in THROUGH:
            closing.add(k)
            k = producers.get(graph.node[k].input[0])
        if k is None or graph.node[k].op_type not in PROBABILITIES or graph.node[k].domain not in ("", "ai.onnx"):
            continue
        node = graph.node[k]
        if others := [j for j in readers.get(node.output[0], ()) if j not in closing]:
            reader = graph.node[others[0]]
            raise OptionError(
                f"the {node.op_type} before '{output.name}' is read by '{reader.name or reader.output[0]}' too, "
                "which needs probabilities: leave --logits out, or choose other outputs with --outputs"
            )
        logits[output.name] = node.input[0]
        edited[k] = [helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name)]
    if not edited:
        raise OptionError(
            "no output closes with a Softmax, LogSoftmax or Sigmoid, so there are no probabilities to drop: leave "
            "--logits out"
        )
    document.commit(Edit(nodes=edited))
    return logits
