"""The verdict on two models."""

from __future__ import annotations

from onnx_fcn._types import Array
from onnx_fcn.checking.checks import Validation
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.checking.validation import run_checks
from onnx_fcn.errors import ValidationError
from onnx_fcn.model.agreement import is_rounded
from onnx_fcn.walk.given import Given

__all__ = ["CALIBRATED", "accepted", "compare"]


#: A possible cause of differences in quantised models: without VNNI, onnxruntime adds pairs of products in 16 bits.
#: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
SATURATION = (
    "; if this processor has no VNNI, onnxruntime's sums of 8-bit products saturate, differently in each operator: "
    "quantise with reduce_range=True or unsigned weights, or convert before quantising"
)


#: What to do about a file that was calibrated.
CALIBRATED = (
    "; it rounds within ranges that were found on example images, and random ones may lie beyond them: compare on "
    "images like those by --data, and allow what they are apart by --tolerance"
)


def compare(comparison: Comparison, data: dict[str, Array] | None) -> Validation:
    """Compare two models on random images, and on the user's own.

    Raises:
        ValidationError: if the numbers disagree.
        ModelError: if onnxruntime cannot run the original.
    """
    hint = CALIBRATED if comparison.is_calibrated and data is None else ""
    return accepted(run_checks(comparison, data), comparison.given, hint)


def accepted(validation: Validation, given: Given, hint: str = "") -> Validation:
    """The validation, if all checks passed; if not, the hint ends the sentence.

    Raises:
        ValidationError: if one did not.
    """
    if validation.passed:
        return validation
    if validation.is_same_network:
        raise ValidationError(f"the converted model is not what it says: {validation.failure()}", validation)
    if any(c.kind == "fit" for c in validation.checks):
        raise ValidationError(f"the file does not answer as trained: {validation.failure()}{hint}", validation)
    hint = SATURATION if is_rounded(given.selected) else hint
    raise ValidationError(f"the converted model is not the same network: {validation.failure()}{hint}", validation)
