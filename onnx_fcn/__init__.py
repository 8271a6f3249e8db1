"""Turn any ONNX classifier into a fully convolutional network, and prove that it is the same network.

A classifier is a convolutional trunk, a flatten, and fully connected layers. A fully connected layer *is* a
convolution whose kernel covers the whole map. Written as a convolution, the same weights answer at every position of a
larger image, and all windows share the trunk's work:

    import onnx_fcn

    conversion = onnx_fcn.convert("model.onnx", "out.onnx")
    print(conversion.report)

Everything public is listed here, and imported at its first use, so that a pipeline that only reads a geometry does not
import the converter.
"""

import sys

if sys.argv[:1] == ["-m"] and "onnx_fcn" in sys.orig_argv:  # about to import __main__, which explains this call
    from onnx_fcn.process import end_at_once

    end_at_once()

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnx_fcn.model.version import __version__

if TYPE_CHECKING:
    from onnx_fcn.checking.checks import Check, Validation
    from onnx_fcn.conversion.converting import Conversion, convert, inspect
    from onnx_fcn.conversion.verifying import validate
    from onnx_fcn.errors import Diagnostic, FcnError, ModelError, OptionError, UnsupportedModel, ValidationError
    from onnx_fcn.fitting.fit import fit
    from onnx_fcn.fitting.fitted import Fitted, Tested
    from onnx_fcn.fitting.weights import replace_weights
    from onnx_fcn.geometry import Answers, Field, Geometry, Grid
    from onnx_fcn.images.placement import Placement
    from onnx_fcn.model.metadata import read_geometry
    from onnx_fcn.reporting.explanation import Explanation, explain
    from onnx_fcn.reporting.report import Report
    from onnx_fcn.running.confusion import Confusion
    from onnx_fcn.running.dense_model import DenseModel, DenseResult, Detection, detect
    from onnx_fcn.running.fidelity import Fidelity
    from onnx_fcn.running.preprocess import Preprocessing
    from onnx_fcn.running.quantizing import Quantized, quantize
    from onnx_fcn.tiles.application import Applied, apply

__all__ = [
    "Answers",
    "Applied",
    "Check",
    "Confusion",
    "Conversion",
    "DenseModel",
    "DenseResult",
    "Detection",
    "Diagnostic",
    "Explanation",
    "FcnError",
    "Fidelity",
    "Field",
    "Fitted",
    "Geometry",
    "Grid",
    "ModelError",
    "OptionError",
    "Placement",
    "Preprocessing",
    "Quantized",
    "Report",
    "Tested",
    "UnsupportedModel",
    "Validation",
    "ValidationError",
    "__version__",
    "apply",
    "convert",
    "detect",
    "explain",
    "fit",
    "inspect",
    "quantize",
    "read_geometry",
    "replace_weights",
    "validate",
]

_HOMES = {
    "checking.checks": (
        "Check",
        "Validation",
    ),
    "conversion.converting": (
        "Conversion",
        "convert",
        "inspect",
    ),
    "conversion.verifying": ("validate",),
    "errors": (
        "Diagnostic",
        "FcnError",
        "ModelError",
        "OptionError",
        "UnsupportedModel",
        "ValidationError",
    ),
    "fitting.fit": ("fit",),
    "fitting.fitted": (
        "Fitted",
        "Tested",
    ),
    "fitting.weights": ("replace_weights",),
    "geometry": (
        "Answers",
        "Field",
        "Geometry",
        "Grid",
    ),
    "images.placement": ("Placement",),
    "model.metadata": ("read_geometry",),
    "reporting.explanation": (
        "Explanation",
        "explain",
    ),
    "reporting.report": ("Report",),
    "running.confusion": ("Confusion",),
    "running.dense_model": (
        "DenseModel",
        "DenseResult",
        "Detection",
        "detect",
    ),
    "running.fidelity": ("Fidelity",),
    "running.preprocess": ("Preprocessing",),
    "running.quantizing": (
        "Quantized",
        "quantize",
    ),
    "tiles.application": (
        "Applied",
        "apply",
    ),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'onnx_fcn' has no attribute '{name}'")
    value = getattr(import_module(f"onnx_fcn.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
