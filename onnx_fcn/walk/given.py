"""A model as it was given, and the network in it that is lifted.

The lifted network has its nodes in order, its local functions inlined, tensors instead of sequences, and only the
requested outputs. The answers to be reproduced are those of the untouched file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import onnx

from onnx_fcn.errors import ModelError
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.graphs import data_inputs, nodes_within, opset_of
from onnx_fcn.model.objects import Model
from onnx_fcn.model.operators import ATTENTION, RANDOM
from onnx_fcn.model.sessions import is_builtin
from onnx_fcn.rules import rule_of
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.outputs import select
from onnx_fcn.walk.sequences import without_sequences

__all__ = ["Given", "ordered"]


@dataclass(frozen=True)
class Given:
    """What a user gave, and the network in it that is lifted.

    Attributes:
        file: the untouched model, whose answers are to be reproduced.
        whole: the model ready to be lifted; the same object as `file` if that was ready.
        selected: the model reduced to the requested outputs; the same object as `whole` if these are all.
        logits: outputs whose closing Softmax was dropped, each with the tensor of its logits.
    """

    file: Document
    whole: Document
    selected: Document
    logits: dict[str, str]

    @classmethod
    def open(cls, source: Model, asked: Asked) -> Given:
        """Open a model.

        Raises:
            ModelError: if it is not a usable model.
            OptionError: if it has no such outputs, or none that closes with probabilities.
        """
        file = Document.open(source)
        whole = _ready(file)
        if asked.is_whole:
            return cls(file, whole, whole, {})
        selected = whole.copy()
        return cls(file, whole, selected, select(selected, asked))


def ordered(file: Document) -> Document:
    """The same model with its nodes in topological order, as onnx requires; itself if they are.

    Raises:
        ModelError: if it is not valid even so.
    """
    order = file.sorted_order()
    if order is not None:
        file = file.copy()
        file.commit(Edit(order=order))
    file.check()
    return file


def _ready(file: Document) -> Document:
    """The same model with its nodes in order, functions on the path of the image inlined, tensors instead of
    sequences, and no name used twice.

    Raises:
        ModelError: if it is not a usable model.
    """
    document = ordered(file)
    if functions := _functions_on_the_way(document):
        document = document.copy()
        document.inline(functions)
    document = without_sequences(document)
    for operator in _defined_by_others(document):
        parts = document.copy()
        with contextlib.suppress(ModelError):  # an operator that ONNX cannot inline is refused as one without a rule
            parts.inline([operator], of_schemas=True)
            document = parts
    if document.has_repeated_names():
        document = document.copy()
        document.distinguish_names()
    return document


def _defined_by_others(document: Document) -> list[tuple[str, str]]:
    """Operators on the path of the image without a rule that ONNX defines by other operators, which may have one.

    Attention and random operators are left alone, so that a refusal names them.
    """
    version = opset_of(document.proto) or 1
    way = _on_the_way(document, ends=("Shape", "Size"))  # values computed from sizes are evaluated instead
    found = []
    for domain, operator in dict.fromkeys((node.domain, node.op_type) for node in way):
        if domain not in ("", "ai.onnx") or operator in ATTENTION | RANDOM or rule_of("", operator):
            continue
        with contextlib.suppress(onnx.defs.SchemaError):  # a newer operator than the installed onnx knows
            schema: Any = onnx.defs.get_schema(operator, version, "")
            if schema.has_function or schema.has_context_dependent_function:
                found.append((domain, operator))
    return found


def _on_the_way(document: Document, ends: Collection[str] = ()) -> Iterator[onnx.NodeProto]:
    """The nodes that depend on the inputs, and the nodes within them; operators in `ends` stop the dependence."""
    reached = {i.name for i in data_inputs(document.proto.graph)}
    for node in document.nodes:
        if not reached.isdisjoint(node.reads):
            if node.op not in ends:
                reached.update(node.outputs)
            yield node.proto
            yield from nodes_within(node.proto)


def _functions_on_the_way(document: Document) -> list[tuple[str, str]]:
    """Local functions on the path of the inputs, and the functions that these call.

    A function with the name of an onnxruntime operator is left alone: onnxruntime runs its operator instead.
    """
    opsets = {o.domain: o.version for o in document.proto.opset_import}
    functions = document.proto.functions
    known: dict[tuple[str, str], list[onnx.NodeProto]] = {}  # bodies; those of all overloads together
    for function in functions:
        if not is_builtin(function.domain, function.name, opsets):
            known.setdefault((function.domain, function.name), []).extend(function.node)
    if not known:
        return []
    wanted = [(n.domain, n.op_type) for n in _on_the_way(document)]
    found: dict[tuple[str, str], None] = {}
    while wanted:
        key = wanted.pop()
        if key in known and key not in found:
            found[key] = None
            wanted += [(n.domain, n.op_type) for node in known[key] for n in (node, *nodes_within(node))]
    return list(found)
