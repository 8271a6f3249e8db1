"""Turn any ONNX classifier into a fully convolutional network, and prove that it is the same network.

A classifier is a convolutional trunk, a flatten, and fully connected layers; and a fully connected layer *is* a
convolution, whose kernel covers the whole map. Written so, the same weights answer at every position of a larger
image, and all windows share the trunk's work:

    import onnx_fcn

    conversion = onnx_fcn.convert("model.onnx", "out.onnx")
    print(conversion.report)

Everything public is listed here.
"""

from onnx_fcn._version import __version__
from onnx_fcn.convert import Conversion, convert, inspect, validate
from onnx_fcn.errors import Diagnostic, FcnError, ModelError, OptionError, UnsupportedModel, ValidationError
from onnx_fcn.geometry import Answers, Field, Geometry, Grid
from onnx_fcn.metadata import read_geometry
from onnx_fcn.report import Report
from onnx_fcn.validate import Check, Validation

__all__ = [
    "Answers",
    "Check",
    "Conversion",
    "Diagnostic",
    "FcnError",
    "Field",
    "Geometry",
    "Grid",
    "ModelError",
    "OptionError",
    "Report",
    "UnsupportedModel",
    "Validation",
    "ValidationError",
    "__version__",
    "convert",
    "inspect",
    "read_geometry",
    "validate",
]
