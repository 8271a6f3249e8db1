"""An output that is a weight, or is computed from weights alone, stays as it was, whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnx_fcn
from onnx_fcn import UnsupportedModel, ValidationError

DENSE = "f = Flatten (x)  y = Gemm <transB = 1> (f, w, b)"

#: What else the network gives, and where that comes from.
CONSTANTS = {
    "the weight of the dense layer": (DENSE, "float[5,72] w"),
    "its bias": (DENSE, "float[1,5] b"),
    "a weight that nothing reads": (DENSE, "float[2,3] other"),
    "a weight through an Identity": (f"{DENSE}  z = Identity (w)", "float[5,72] z"),
    "a single number": (f"{DENSE}  z = Constant <value_float = 2.5> ()", "float z"),  # as CLIP's scale of logits
    "a single number in a row": (f"{DENSE}  z = Constant <value = float[1] {{2.5}}> ()", "float[1] z"),
    "a constant": (f"{DENSE}  z = Constant <value = float[3] {{1, 2, 3}}> ()", "float[3] z"),
    "a weight that is laid out first": ("f = Flatten (x)  z = Transpose (w)  y = Gemm (f, z, b)", "float[72,5] z"),
    "the addend of an Add": ("f = Flatten (x)  d = Gemm <transB = 1> (f, w)  y = Add (d, b)", "float[1,5] b"),
    "the factor of channels": (f"m = Mul (x, s)  {DENSE.replace('(x)', '(m)')}", "float[6,1,1] s"),
    "the kernel that covers the map": ("c = Conv (x, k)  y = Flatten (c)", "float[5,6,4,3] k"),
}

FORMS: dict[str, dict[str, Any]] = {
    "map": {},
    "one answer": {"reduce": "mean"},
    "the best class": {"argmax": True},
    "at the native size": {"keep_size": True},
    "folded": {"head": "folded"},
}


def network(body: str, constant: str) -> ModelProto:
    return law.model(
        body, outputs=f"float[N,5] y, {constant}", w=(5, 72), b=(1, 5), other=(2, 3), s=(6, 1, 1), k=(5, 6, 4, 3)
    )


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "map") for name in CONSTANTS), *(("the weight of the dense layer", form) for form in list(FORMS)[1:])],
)
def test_it_stays_as_it_was(name: str, form: str, tmp_path: Path) -> None:
    original = network(*CONSTANTS[name])
    onnx_fcn.convert(original, tmp_path / "out.onnx", input_size=(4, 3), **FORMS[form])
    converted = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(converted, full_check=True)
    assert converted.graph.output[1] == original.graph.output[1]
    size = (4, 3) if form == "at the native size" else (7, 9)
    (_, want), (_, got) = (
        law.session(m)({"x": law.random("x", 1, 6, *s).astype(np.float32)})
        for m, s in ((original, (4, 3)), (converted, size))
    )
    assert got.shape == want.shape
    assert np.array_equal(got, want)


def test_one_that_is_made_of_sizes_which_a_larger_image_has_none_of() -> None:
    """A flattened map has a shape of its own at each position; that of all of them is no shape of the original."""
    with pytest.raises(UnsupportedModel, match="output 'z': is made of sizes, which are others at every image size"):
        onnx_fcn.convert(network(f"{DENSE}  z = Shape (f)", "int64[2] z"), input_size=(4, 3), validate=False)


def test_validation_rejects_one_of_another_shape() -> None:
    original = network(*CONSTANTS["its bias"])
    wrong = onnx_fcn.convert(original, input_size=(4, 3), validate=False).to_proto()
    bias = next(t for t in wrong.graph.initializer if t.name == "b")
    del bias.dims[0]
    with pytest.raises(ValidationError, match=r"'b' at 4×3: has shape \(5,\), but the original has \(1, 5\)"):
        onnx_fcn.validate(original, wrong, input_size=(4, 3))
