"""A model as a document: open it, look at it, commit a difference, save it. Its weights stay on disk.

The model is an `onnx.ModelProto` without its large payloads, a skeleton: each of them is a reference to its place in
a file, which is memory-mapped. Opening, shape inference, checking and rewriting never read a weight, `Document.array`
is a view on the map, and saving streams the payloads from file to file (see `storage`). `Document.nodes` are
its nodes as rules read them. `Document.commit` writes only an `Edit`, the difference, into the proto.

    document = Document.open("model.onnx")
    document.commit(Edit(nodes={7: [conv]}, initializers={"kernel": Weight(dense, (4096, 256, 6, 6), dtype)}))
    with document.staged("out.onnx") as staged:
        ...                                        # check the file staged.path
        staged.commit()

A reader of "out.onnx" always sees either the old file or the complete new one.
"""

from __future__ import annotations

import contextlib
import graphlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx.inliner
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.errors import ModelError
from onnx_fcn.model import payloads, staged, storage, wire
from onnx_fcn.model.edit import Edit, Weight
from onnx_fcn.model.graphs import (
    distinguish,
    graphs_within,
    made_from,
    nodes_within,
    opset_of,
    subgraphs,
    tensor_names,
)
from onnx_fcn.model.nodes import Node
from onnx_fcn.model.staged import Staged
from onnx_fcn.model.storage import Store

__all__ = ["Document"]


class Document:
    """A model whose weights stay on disk. Read `proto` freely, but change it only through `commit`.

    Attributes:
        proto: the skeleton.
        path: the file, with symbolic links resolved; None for a model in memory.
        folder: the folder of external data; None for a model in memory.
        size: bytes of the file and of its external data.
        external: whether weights came from external data files.
    """

    def __init__(self, skeleton: ModelProto, store: Store) -> None:
        self.proto = skeleton
        self.path, self.folder = store.path, store.folder
        self.size, self.external = store.size, store.external
        self._store = store
        self._nodes: list[Node] | None = None
        self._edited = False

    @classmethod
    def open(cls, source: str | os.PathLike[str] | ModelProto) -> Document:
        """Open a model file, or a copy of a model in memory.

        Raises:
            ModelError: if there is no such file, or the model is malformed or does not match its external data.
        """
        return cls(*storage.read(source))

    def copy(self) -> Document:
        """A copy to change independently; both read the same files."""
        skeleton = ModelProto()
        skeleton.CopyFrom(self.proto)
        copy = Document(skeleton, self._store)
        copy._edited, copy._nodes = self._edited, self._nodes
        return copy

    @property
    def files(self) -> set[Path]:
        """The files that the model is in: its own, and those of external data."""
        return self._store.paths

    def needed(self) -> set[int]:
        """Indices of the nodes that the outputs need."""
        makers = {name: k for k, node in enumerate(self.nodes) for name in node.outputs if name}
        return made_from((o.name for o in self.proto.graph.output), makers, lambda k: self.nodes[k].reads)

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the main graph, read once; copies share them."""
        if self._nodes is None:
            names: dict[str, str] = {}
            self._nodes = [Node.of(proto, names) for proto in self.proto.graph.node]
        return self._nodes

    def array(self, tensor: TensorProto) -> Array:
        """The values of a tensor of this document, read-only; a view on the memory map if they are stored in a file."""
        try:
            if tensor.data_location != TensorProto.EXTERNAL:
                array = _array(tensor)
            else:
                array = self._store.array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"the values of tensor '{tensor.name}' do not fit its type and shape: {error}") from None
        array.flags.writeable = False
        return array

    def check(self) -> None:
        """Run onnx.checker, without the weights.

        Raises:
            ModelError: if the model is not valid, with the checker's first complaint.
        """

        def empty(tensor: TensorProto) -> TensorProto:
            # The checker requires the bytes or their file; an empty tensor needs neither.
            return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0])

        if self.proto.ir_version > onnx.IR_VERSION:
            versions = f"{self.proto.ir_version}, but the installed onnx reads up to {onnx.IR_VERSION}"
            raise ModelError(f"{self._store} has the IR version {versions}: upgrade onnx and onnxruntime")
        graph = self.proto.graph
        declared = (*graph.input, *graph.output, *graph.initializer)
        try:
            onnx.checker.check_model(payloads.join(wire.rewrite(self.proto.SerializeToString(), empty)))
            # Protobuf gives a string that is not UTF-8 as bytes, which the checker lets pass.
            "".join((graph.name, *(value.name for value in declared)))
            "".join(t for node in self.nodes for t in (node.op, node.name, *node.inputs, *node.outputs))
        except onnx.checker.ValidationError as error:
            complaint = " ".join(str(error).split())
            raise ModelError(f"{self._store} is not a valid ONNX model: {complaint}") from None
        except (UnicodeDecodeError, TypeError):
            raise ModelError(f"{self._store} is not a valid ONNX model: a name in it is not UTF-8 text") from None
        inner = (n for node in self.nodes if node.has_subgraphs for n in nodes_within(node.proto))
        for node in itertools.chain((node.proto for node in self.nodes), inner):
            for attribute in node.attribute[:]:
                if attribute.ref_attr_name:  # the checker lets this pass
                    raise ModelError(
                        f"{self._store} is not a valid ONNX model: attribute '{attribute.name}' of {node.op_type} "
                        f"'{node.name or ''.join(node.output[:1])}' is that of a function around it, and there is none"
                    )

    def sorted_order(self) -> list[int] | None:
        """A topological order of the node indices; None if the nodes are sorted already.

        Raises:
            ModelError: if nodes depend on each other in a cycle.
        """
        nodes = self.nodes
        producer = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
        if all(producer.get(name, -1) < index for index, node in enumerate(nodes) for name in node.reads):
            return None
        needs = [sorted({producer[name] for name in node.reads if name in producer}) for node in nodes]
        try:
            return list(graphlib.TopologicalSorter(dict(enumerate(needs))).static_order())
        except graphlib.CycleError as error:
            cycle = " → ".join(f"'{nodes[index].name or nodes[index].outputs[0]}'" for index in error.args[1])
            raise ModelError(
                f"{self._store} is not a valid ONNX model: its nodes depend on themselves: {cycle}"
            ) from None

    def commit(self, edit: Edit) -> None:
        """Apply an edit to the proto."""
        self._edited = True
        graph = self.proto.graph
        before = tensor_names(graph) if graph.quantization_annotation else set()
        self._commit_nodes(edit)
        self._commit_initializers(edit)
        for declared, replacements in ((graph.input, edit.inputs), (graph.output, edit.outputs)):
            for old in declared:
                if new := replacements.get(old.name):
                    _replace_declaration(old, new)
        if edit.removed_outputs:
            _retain(graph.output, lambda declared: declared.name not in edit.removed_outputs)
        graph.output.extend(edit.added_outputs)
        if edit.value_info is not None:
            del graph.value_info[:]
            graph.value_info.extend(edit.value_info)
        if gone := before and before - tensor_names(graph):
            _retain(graph.quantization_annotation, lambda annotation: annotation.tensor_name not in gone)
        _put(self.proto.metadata_props, "key", "value", edit.metadata)
        _put(self.proto.opset_import, "domain", "version", edit.opset_imports)

    def inline(self, functions: Sequence[tuple[str, str]], *, of_schemas: bool = False) -> None:
        """Replace the calls of these functions by their bodies.

        Args:
            functions: (domain, name) of local functions; with `of_schemas`, of operators whose schemas have bodies.
            of_schemas: whether `functions` are operators.

        Raises:
            ModelError: if a call does not fit its function, or the body depends on a type that is not known.
        """
        self._edited, self._nodes = True, None
        declared = {value.name for value in self.proto.graph.value_info}
        if of_schemas:
            _complete(self.proto, set(functions))
        try:
            self.proto = onnx.inliner.inline_selected_functions(
                self.proto, list(functions), inline_schema_functions=of_schemas
            )
        except Exception as error:  # a RuntimeError, or pybind11's exception for one in C++
            complaint = " ".join(str(error).split())
            what = "operators" if of_schemas else "local functions"
            raise ModelError(f"the {what} of {self._store} cannot be inlined: {complaint}") from None
        if of_schemas:
            _retain(self.proto.graph.value_info, lambda value: value.name in declared)

    def has_repeated_names(self) -> bool:
        """Do two tensors in different graphs of the model have the same name, as in two branches?"""
        outer = (graph for node in self.nodes if node.has_subgraphs for graph in subgraphs(node.proto))
        graphs = [graph for each in outer for graph in (each, *graphs_within(each))]
        taken = tensor_names(self.proto.graph) if graphs else set()  # most models have none
        for graph in graphs:
            names = tensor_names(graph)
            if not taken.isdisjoint(names):
                return True
            taken |= names
        return False

    def distinguish_names(self) -> None:
        """Rename tensors of subgraphs so that every name in the model is unique."""
        self._edited, self._nodes = True, None
        taken = tensor_names(self.proto.graph)
        for node in self.proto.graph.node:
            distinguish(node, taken)

    def to_proto(self) -> ModelProto:
        """The whole model in memory."""
        model = ModelProto()
        model.ParseFromString(payloads.join(self._store.pieces(self.proto, edited=self._edited)))
        return model

    def session_model(self, model: ModelProto | None = None) -> tuple[bytes, str]:
        """What onnxruntime needs to run this document without copying its weights.

        Args:
            model: a part or a variant of `proto` to run instead.

        Returns:
            A serialized model, and the value for the session option
            ``session.model_external_initializers_file_folder_path``; empty if all weights are in the model.
        """
        serialized = (model or self.proto).SerializeToString()
        return payloads.join(wire.rewrite(serialized, self._store.embed)), str(self.folder or "")

    def release(self) -> None:
        """Release the pages of weights that have been read; they are read again when they are needed."""
        self._store.release()

    def check_unchanged(self) -> None:
        """Raises ModelError if a file was changed since it was opened, and weights with it."""
        self._store.check_unchanged()

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None, link_data: bool = False) -> None:
        """Write the model to `path`, atomically; see `staged`."""
        with self.staged(path, external_data=external_data, link_data=link_data) as staged:
            staged.commit()

    @contextlib.contextmanager
    def staged(
        self, path: str | os.PathLike[str], *, external_data: bool | None = None, link_data: bool = False
    ) -> Iterator[Staged]:
        """Write the model to a temporary file next to `path`, which replaces `path` when the stage is committed.

        Args:
            path: a file, or a link to one, that may exist.
            external_data: whether large weights go to a data file next to the model. None: weights that came from one
                do, and all do if the model file would otherwise be larger than 2 GB.
            link_data: refer to weights in the original's files, which have to stay, instead of copying them.

        Raises:
            OptionError: if `path` cannot be written.
            ModelError: if the source has changed since it was opened.
        """
        with staged.staged(
            path, self._store, self.proto, edited=self._edited, external_data=external_data, link_data=link_data
        ) as stage:
            yield stage

    def _commit_nodes(self, edit: Edit) -> None:
        graph = self.proto.graph
        if not edit.nodes and edit.order is None:
            return
        # What protobuf removes from a message keeps its memory as long as the message, so what can stays in place.
        first = min(edit.nodes, default=0) if edit.order is None else 0
        slots = graph.node[:]
        order = edit.order or range(first, len(slots))
        nodes = [node for index in order for node in edit.nodes.get(index, [slots[index]])]
        del graph.node[first:]
        graph.node.extend(nodes)
        if self._nodes is not None:  # most nodes have been read, and stay as they are
            kept = self._nodes
            made = {index: [Node.of(node) for node in nodes] for index, nodes in edit.nodes.items()}
            self._nodes = kept[:first] + [node for index in order for node in made.get(index, [kept[index]])]

    def _commit_initializers(self, edit: Edit) -> None:
        graph = self.proto.graph
        if edit.removed_initializers:
            for declared in (graph.initializer, graph.input):
                _retain(declared, lambda old: old.name not in edit.removed_initializers)
            _retain(graph.sparse_initializer, lambda old: old.values.name not in edit.removed_initializers)
        present = {initializer.name: initializer for initializer in graph.initializer}
        inputs = {value.name: value for value in graph.input}
        for name, weight in edit.initializers.items():
            tensor = self._tensor(name, weight)
            if name in present:
                present[name].CopyFrom(tensor)
            else:
                graph.initializer.append(tensor)
            # Until IR version 4 an initializer had to be declared as an input.
            if name in inputs or self.proto.ir_version < 4:
                value = onnx.helper.make_tensor_value_info(name, weight.elem_type, weight.dims)
                if name in inputs:
                    _replace_declaration(inputs[name], value)
                else:
                    graph.input.append(value)

    def _tensor(self, name: str, weight: Weight) -> TensorProto:
        """A new initializer; if it is large, a reference to its values."""
        array = weight.array
        if array.dtype != onnx.helper.tensor_dtype_to_np_dtype(weight.elem_type) or array.size != math.prod(
            weight.dims
        ):
            raise ValueError(f"weight '{name}': {array.dtype}{array.shape} is not {weight.elem_type}{weight.dims}")
        tensor = TensorProto(name=name, data_type=weight.elem_type, dims=weight.dims)
        if wire.BITS[weight.elem_type] < 8:
            array = np.frombuffer(onnx.numpy_helper.from_array(np.ascontiguousarray(array)).raw_data, np.uint8)
        if array.nbytes < wire.THRESHOLD or (len(weight.dims) < 2 and weight.elem_type in wire.SHAPES):
            tensor.raw_data = array.tobytes()
        else:
            self._store.refer(tensor, array)
        return tensor


def _complete(model: ModelProto, operators: Set[tuple[str, str]]) -> None:
    """Add what the bodies of these operators depend on: default attributes, and declarations of the weights."""
    version = opset_of(model) or 1
    for node in (n for outer in model.graph.node for n in (outer, *nodes_within(outer))):
        if (node.domain, node.op_type) in operators:
            given = {attribute.name for attribute in node.attribute}
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            defaults = ((name, a.default_value) for name, a in schema.attributes.items() if name not in given)
            node.attribute.extend(value for _, value in defaults if value.type != AttributeProto.UNDEFINED)
    declared = {value.name for value in model.graph.value_info}
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in model.graph.initializer
        if t.name not in declared
    )


#: Types whose elements numpy reads as they are stored.
_PLAIN: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT8: np.dtype("u1"),
}


def _array(tensor: TensorProto) -> Array:
    """The values of a tensor in the model: the usual ones without the conversions of onnx, which take far longer."""
    kind = _PLAIN.get(tensor.data_type) if tensor.HasField("raw_data") else None
    if kind is None:
        return onnx.numpy_helper.to_array(tensor)
    return np.frombuffer(tensor.raw_data, kind).reshape(tensor.dims[:])


def _replace_declaration(old: ValueInfoProto, new: ValueInfoProto) -> None:
    """Replace a declaration in place; its documentation stays, unless the new one has some."""
    merged = ValueInfoProto()
    merged.CopyFrom(new)
    if not new.doc_string and old.HasField("doc_string"):
        merged.doc_string = old.doc_string
    if not new.metadata_props:
        merged.metadata_props.extend(old.metadata_props)
    old.CopyFrom(merged)


def _retain(repeated: Any, keep: Callable[[Any], bool]) -> None:
    """Remove the elements of a repeated field for which `keep` is false."""
    for index in reversed(range(len(repeated))):
        if not keep(repeated[index]):
            del repeated[index]


def _put(repeated: Any, key: str, field: str, values: Mapping[str, Any]) -> None:
    """Set a field of the elements with these keys, the first of each; elements are added for new keys."""
    found = {getattr(entry, key): entry for entry in reversed(repeated)}
    for name, value in values.items():
        setattr(found[name] if name in found else repeated.add(**{key: name}), field, value)
