"""python -m onnx_fcn."""

import sys

from onnx_fcn.cli import main

sys.exit(main())
