"""Quantised tensors: QuantizeLinear and DequantizeLinear around everything."""

from __future__ import annotations

from onnx_fcn.errors import Unsupported
from onnx_fcn.interpret import Fact, Known, lifts
from onnx_fcn.lifted import Lifted
from onnx_fcn.site import Site


@lifts("QuantizeLinear", "DequantizeLinear")
def linear(site: Site, x: Fact, scale: Fact, zero: Fact | None = None) -> Lifted:
    """Per tensor, or per channel where the scales run along the channels."""
    if not isinstance(x, Lifted) or not isinstance(scale, Known):
        raise Unsupported("its scale depends on the image", code="not-constant")
    scales = site.value(scale)
    if site.op == "QuantizeLinear":
        kind = site.elem_type_of(zero) if zero is not None else site.type_attr("output_dtype", 2)
    else:
        kind = site.elem_type_of(scale)
    operands = [x, scale, *([zero] if zero is not None else [])]
    if scales.size == 1:
        return x.on(site.emit(operands), kind)
    axis = x.axis(int(site.attr("axis", 1)))
    x, atoms = site.as_channels(x, [axis])
    if len(atoms) != len(x.channels):
        raise Unsupported(f"quantises axis {axis} of {x}, which is a part of the channels", code="not-channels")
    x = site.arrange(x, atoms)
    return x.on(site.emit([x, *operands[1:]], axis=1), kind)
