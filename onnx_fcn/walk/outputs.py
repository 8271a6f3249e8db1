"""Which answers are requested: some of the outputs, any tensor of the graph, or the logits before a closing Softmax.

The selection is made in the original: lifting and validation both work on the network that remains.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto, helper

from onnx_fcn.errors import OptionError, did_you_mean
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.graphs import names_used
from onnx_fcn.model.inference import declared_types, infer_types
from onnx_fcn.model.operators import PROBABILITIES, THROUGH
from onnx_fcn.walk.asked import Asked

__all__ = ["select"]


def select(document: Document, asked: Asked) -> dict[str, str]:
    """Reduce a model, in place, to the requested answers.

    Returns the outputs whose closing probabilities were dropped, each with the tensor of its logits.

    Raises:
        OptionError: if it has no such output or tensor, or none that closes with probabilities.
    """
    if asked.outputs:
        _keep(document, asked.outputs)
    if not asked.logits and not asked.cam:
        return {}
    logits = _drop_probabilities(document, "--logits" if asked.logits else "--cam")
    if asked.logits and not logits:
        raise OptionError(
            "no output closes with a Softmax, LogSoftmax or Sigmoid, so there are no probabilities to drop: leave "
            "--logits out"
        )
    return logits


def _keep(document: Document, wanted: Sequence[str]) -> None:
    graph = document.proto.graph
    names = [o.name for o in graph.output]
    inner = [name for name in dict.fromkeys(wanted) if name not in names]
    added = [_declared(document, name) for name in inner]
    before = document.needed()
    document.commit(Edit(removed_outputs=set(names) - set(wanted), added_outputs=added))
    gone = before - document.needed()
    weights = {n for k in gone for n in document.nodes[k].reads} & {t.name for t in graph.initializer}
    weights -= {n for k, node in enumerate(document.nodes) if k not in gone for n in node.reads}
    weights -= {o.name for o in graph.output}
    document.commit(Edit(nodes={k: [] for k in gone}, removed_initializers=weights))


def _declared(document: Document, name: str) -> ValueInfoProto:
    """The declaration of a tensor of the graph as an output.

    Raises:
        OptionError: if there is no such tensor, or onnx does not know its type.
    """
    graph = document.proto.graph
    made = [n for node in graph.node for n in node.output if n]
    if name not in made:
        outputs = ", ".join(repr(o.name) for o in graph.output)
        hint = did_you_mean(name, [*(o.name for o in graph.output), *made])
        raise OptionError(f"the model has no output '{name}', and no node makes it: the outputs are {outputs}{hint}")
    stripped = ModelProto()
    stripped.CopyFrom(document.proto)
    del stripped.graph.value_info[:]
    kind = (infer_types(stripped) or declared_types(document.proto)).get(name)
    if kind is None or not kind.elem_type:
        raise OptionError(f"'{name}' cannot be an output: its type is not known, or it is no tensor")
    return ValueInfoProto(name=name, type=TypeProto(tensor_type=kind))


def _drop_probabilities(document: Document, option: str) -> dict[str, str]:
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
                f"which needs probabilities: leave {option} out, or choose other outputs with --outputs"
            )
        logits[output.name] = node.input[0]
        edited[k] = [helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name)]
    document.commit(Edit(nodes=edited))
    return logits
