"""Shapes of tensors at the native size."""

from __future__ import annotations

import numpy as np
import onnx

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.constants import Values
from onnx_fcn.lifting.facts import Fact, Known
from onnx_fcn.lifting.program import Image
from onnx_fcn.model.document import Document
from onnx_fcn.model.graphs import static_dims
from onnx_fcn.model.inference import dims_in, infer_types
from onnx_fcn.model.operators import SHAPED_BY_VALUES, STAND_INS

__all__ = ["Shapes"]


class Shapes:
    """Shapes of tensors at the native size, inferred on demand.

    Values that the walk has evaluated so far, such as the target of a Reshape, are put in as constants: inference alone
    does not get past them. So an open shape is inferred again once the walk has evaluated more of them.
    """

    def __init__(self, document: Document, image: Image, facts: dict[str, Fact], values: Values) -> None:
        self._document, self._image, self._facts, self._values = document, image, facts, values
        self._shapes: dict[str, tuple[int | None, ...]] = {}
        self._computed = self._computed_operands()
        self._put_in: frozenset[str] | None = None  # those that were known at the last inference

    def __call__(self, name: str) -> tuple[int | None, ...] | None:
        shape = self._shapes.get(name)
        if shape is None or None in shape:
            known = frozenset(n for n in self._computed if isinstance(self._facts.get(n), Known))
            if known != self._put_in:
                self._put_in = known
                self._shapes = self._inferred()
        return self._shapes.get(name)

    def _computed_operands(self) -> frozenset[str]:
        """Operands that determine the shape of a result, and are not stored."""
        graph = self._document.proto.graph
        shaping = {name for node in graph.node if node.op_type in SHAPED_BY_VALUES for name in node.input[1:]}
        return frozenset(shaping - {t.name for t in graph.initializer})

    def _evaluate(self, graph: onnx.GraphProto) -> None:
        """Put in, as initializers, the values that shapes are computed from."""
        assert self._put_in is not None
        for node in graph.node:
            for k, name in enumerate(node.input[1:], 1):
                if node.op_type in SHAPED_BY_VALUES and name in self._put_in:
                    try:
                        value = self._values[name]
                    except Unsupported:
                        continue
                    node.input[k] = f"{name}/value"
                    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), node.input[k]))

    def _stand_in(self, graph: onnx.GraphProto) -> None:
        """Replace operators that onnx has no shape inference for by similar ones."""
        for node in graph.node:
            if node.domain == "com.microsoft" and node.op_type in STAND_INS:
                node.op_type, operands = STAND_INS[node.op_type]
                node.domain = ""
                node.input[:] = node.input[operands]

    def _inferred(self) -> dict[str, tuple[int | None, ...]]:
        model = onnx.ModelProto()
        model.CopyFrom(self._document.proto)
        del model.graph.value_info[:]
        batch = 1 if self._image.batch is None else self._image.shape[self._image.batch]
        image = next(i for i in model.graph.input if i.name == self._image.name)
        stated = (None, static_dims(image)[self._image.batch or 0])  # an input with another first axis has no batch
        for declared in model.graph.input:
            shape = declared.type.tensor_type.shape
            for k, dim in enumerate(shape.dim):
                if declared.name == self._image.name:
                    dim.dim_value = self._image.shape[k]
                elif k == 0 and self._image.batch is not None and (dim.dim_value or None) in stated:
                    dim.dim_value = batch
        self._evaluate(model.graph)
        self._stand_in(model.graph)
        for declared in model.graph.output:
            declared.type.tensor_type.ClearField("shape")
        shapes = {name: dims_in(kind) for name, kind in (infer_types(model) or {}).items()}
        return {name: shape for name, shape in shapes.items() if shape is not None}
