"""Numbers at the ends of their range: infinities, NaN, denormals and half precision that overflows.

Where the original answers NaN or infinity the converted network has to, at the same places.
"""

from __future__ import annotations

from typing import Any

import law
import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnx_fcn
from onnx_fcn import Validation, ValidationError
from onnx_fcn.model.agreement import difference

WEIGHT = law.random("w", 36, 7).astype(np.float32)


def network(weight: np.ndarray = WEIGHT, kind: str = "float") -> ModelProto:
    """A convolution and a dense layer of this weight (36, 7)."""
    model = law.model(
        "m = Conv (x, k)  r = Relu (m)  f = Flatten (r)  y = Gemm (f, w, b)",
        image=f"{kind}[N,6,4,3] x",
        k=(6, 6, 2, 2),
        w=(36, 7),
        b=(7,),
    )
    stored = next(t for t in model.graph.initializer if t.name == "w")
    dtype = numpy_helper.to_array(stored).dtype
    with np.errstate(over="ignore"):
        stored.CopyFrom(numpy_helper.from_array(weight.astype(dtype), "w"))
    return model


def validated(model: ModelProto, **how: Any) -> Validation:
    validation = onnx_fcn.convert(model, **how).report.validation
    assert validation is not None
    return validation


def with_one(value: float) -> np.ndarray:
    weight = WEIGHT.copy()
    weight[3, 2] = value
    return weight


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_class_that_is_not_finite_is_so_in_the_map(value: float) -> None:
    """The others are compared as ever."""
    model = network(with_one(value))
    checks = validated(model).checks
    assert all(c.passed and np.isfinite(c.error) for c in checks)
    assert any(c.error > 0 for c in checks)
    converted = onnx_fcn.convert(model, validate=False).to_proto()
    (answers,) = law.session(converted)({"x": law.random("image", 1, 6, 7, 5).astype(np.float32)})
    finite = np.isfinite(answers).all(axis=(0, 2, 3))
    assert finite.tolist() == [k != 2 for k in range(7)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_at_another_place_is_found(value: float) -> None:
    """A converted network whose NaN lies in another class is not the same."""
    original, other = network(with_one(value)), WEIGHT.copy()
    other[3, 4] = value
    wrong = onnx_fcn.convert(network(other), validate=False).to_proto()
    with pytest.raises(ValidationError, match="NaN or infinite where the original"):
        onnx_fcn.validate(original, wrong)


@pytest.mark.parametrize(
    ("have", "want", "expected"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([np.nan, 1.0], [np.inf, 1.0], np.inf),
        ([1.0, np.nan], [np.nan, 1.0], np.inf),
        ([1.0, 1.0], [np.nan, 1.0], np.inf),
        ([np.inf, 1.5], [np.inf, 1.0], 0.5),
        ([3e38], [-3e38], 2.0),
    ],
)
def test_difference_of_what_is_not_finite(have: list[float], want: list[float], expected: float) -> None:
    assert difference(np.array(have, np.float32), np.array(want, np.float32)) == pytest.approx(expected)


def test_sums_that_overflow_either_way_are_refused_rather_than_believed() -> None:
    """∞ - ∞ depends on the order of a sum: the two networks differ, whoever is right."""
    with pytest.raises(ValidationError, match="NaN or infinite where the original"):
        onnx_fcn.convert(network((np.sign(WEIGHT) * 3e38).astype(np.float32)))


def test_denormal_weights_are_kept_bit_for_bit() -> None:
    tiny = (WEIGHT * 1e-42).astype(np.float32)
    assert 0 < np.abs(tiny[tiny != 0]).min() < np.finfo(np.float32).tiny
    converted = onnx_fcn.convert(network(tiny)).to_proto()
    kernel = next(numpy_helper.to_array(t) for t in converted.graph.initializer if t.dims == [7, 6, 3, 2])
    assert np.array_equal(kernel.reshape(7, 36).view(np.int32), tiny.T.view(np.int32))


@pytest.mark.parametrize("scale", [1.0, 60_000.0])
def test_half_precision_that_overflows(scale: float) -> None:
    """Weights of float16 beyond 65,504 are infinite in the original already; it is the same in the map."""
    model = network(WEIGHT * scale, "float16")
    stored = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w")
    assert np.isinf(stored).any() == (scale > 1)
    validation = validated(model)
    assert validation.passed
    assert {c.kind for c in validation.checks} == {"native", "law", "crops", "grid", "metadata"}


def test_images_that_are_not_finite() -> None:
    image = law.random("image", 2, 6, 4, 3).astype(np.float32)
    image[0, 2, 1, 1] = np.nan
    validation = validated(network(), data=image)
    assert any(c.note.startswith("given data") for c in validation.checks)
    assert validation.passed


def test_what_is_not_finite_is_told() -> None:
    """How many answers are not finite, where the original's are and where they are not."""
    image = law.random("image", 2, 6, 4, 3).astype(np.float32)
    image[:] = np.nan
    notes = [c.note for c in validated(network(), data=image).checks if "given data" in c.note]
    assert notes == ["given data; every answer of the original is NaN or infinite: only their places were compared"]
    original = network()
    spoiled = onnx_fcn.convert(original).to_proto()
    weight = spoiled.graph.initializer[0]
    values = numpy_helper.to_array(weight).copy()
    values[0] = np.inf
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(
        onnx_fcn.ValidationError, match=r"\d+ of \d+ answers are NaN or infinite where the original's are not"
    ):
        onnx_fcn.validate(original, spoiled)
