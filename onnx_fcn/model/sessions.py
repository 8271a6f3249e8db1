"""onnxruntime sessions that map the weights instead of copying them, and parts of models to run.

onnxruntime is imported with the first session: nothing else in the package needs it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.errors import ModelError
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import names_used, needed_nodes
from onnx_fcn.model.inference import declared_types, infer_types

__all__ = ["Run", "dtype_of", "element_types", "extract", "is_builtin", "random_values", "session", "with_outputs"]


Run = Callable[[Mapping[str, Array]], list[Array]]


def session(document: Document, model: ModelProto | None = None) -> Run:
    """A function `run(feeds) -> outputs` of a model, with its weights mapped from the document's files.

    Optimisations stay basic and weights are not repacked, so that they are not copied. Threads do not spin while they
    wait: sessions take turns, and those of one would keep the processor from the other.

    Args:
        document: the model.
        model: a part or a variant of it to run instead.

    Raises:
        ModelError: if onnxruntime does not load the model. The function raises it if onnxruntime does not run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # these keep their peak memory
    serialized, folder = document.session_model(model)
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        runner = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"onnxruntime does not load the model: {_message(error)}") from error
    names = {i.name for i in runner.get_inputs()}

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return list(runner.run(None, {k: v for k, v in feeds.items() if k in names}))
        except Exception as error:
            raise ModelError(f"onnxruntime does not run the model: {_message(error)}") from error

    return run


def _message(error: Exception) -> str:
    """Onnxruntime's message on one line, without its codes; if it is long, the start and the end of it."""
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    words = said or type(error).__name__
    return words if len(words) <= 400 else f"{words[:150]} … {words[-240:]}"


def dtype_of(declared: ValueInfoProto) -> np.dtype[Any]:
    """The type of a tensor's elements in numpy."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type))


def random_values(
    declared: ValueInfoProto, shape: Sequence[int], random: np.random.Generator, deviation: float = 1.0
) -> Array:
    """Random values for an input: noise of this standard deviation, bytes or booleans."""
    kind = dtype_of(declared)
    values: Array
    if kind.kind == "f" or str(kind) == "bfloat16":
        values = deviation * random.standard_normal(shape)
    else:
        small = kind.itemsize == 1 and kind.kind == "i"
        values = random.integers(0, 2 if kind.kind == "b" else 127 if small else 256, shape)
    return values.astype(kind)


def with_outputs(document: Document, names: Iterable[str]) -> ModelProto | None:
    """The model with these tensors as further outputs; None if there are none to add."""
    names = list(names)
    if not names:
        return None
    model = ModelProto()
    model.CopyFrom(document.proto)
    model.graph.output.extend(ValueInfoProto(name=n) for n in names)
    return model


def extract(
    model: ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    types: Mapping[str, np.dtype[np.generic]] | None = None,
) -> ModelProto:
    """The part of a model between these inputs and outputs, with no shapes declared.

    Args:
        model: the whole model.
        inputs: tensors of the model, or its inputs; those that the part does not need are left out.
        outputs: tensors of the model.
        types: of inputs whose type is known from their values. The others are declared, or inferred by onnx, which
            infers nothing after operators that it does not know.
    """
    graph = model.graph
    nodes = [graph.node[k] for k in sorted(needed_nodes(graph, outputs, inputs))]
    used = {n for node in nodes for n in names_used(node)} | set(outputs)
    made = ModelProto()
    made.CopyFrom(ModelProto(ir_version=model.ir_version))
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = graph.name or "part"
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(t for t in graph.initializer if t.name in used)
    made.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in used)
    stored = {t.name for t in made.graph.initializer}
    needed = [n for n in dict.fromkeys((*inputs, *(i.name for i in graph.input if i.name in stored))) if n in used]
    known = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    known |= {n: onnx.helper.np_dtype_to_tensor_dtype(kind) for n, kind in (types or {}).items()}
    if any(name not in known for name in needed):
        known = element_types(model) | known
    for name in needed:
        made.graph.input.append(onnx.helper.make_tensor_value_info(name, known.get(name, TensorProto.FLOAT), None))
    made.graph.output.extend(ValueInfoProto(name=o) for o in outputs)
    return made


def element_types(model: ModelProto) -> dict[str, int]:
    """Element types of a model's tensors, as far as onnx infers them."""
    stripped = ModelProto()
    stripped.CopyFrom(model)
    del stripped.graph.value_info[:]
    kinds = infer_types(stripped, values=False) or declared_types(stripped)
    return {name: kind.elem_type for name, kind in kinds.items()}


def is_builtin(domain: str, operator: str, opsets: Mapping[str, int]) -> bool:
    """Does onnxruntime run a built-in operator of this name, even if a local function has the same name?

    It does if it knows such an operator, for any overload; and in ONNX's own domain it never calls local functions.
    """
    if domain in ("", "ai.onnx"):
        return True
    since = _builtins().get((domain, operator))
    return since is not None and since <= opsets.get(domain, since)


@functools.cache
def _builtins() -> dict[tuple[str, str], int]:
    """(domain, name) of the operators that onnxruntime knows, with the first version of each."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], int] = {}
    for schema in state.get_all_operator_schema():
        key = schema.domain, schema.name
        found[key] = min(schema.since_version, found.get(key, schema.since_version))
    return found
