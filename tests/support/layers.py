"""Networks of layers that slide, pad, cut off and change the resolution in any order, drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import law
import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st

__all__ = ["HEAD", "KINDS", "cases"]


HEAD = "g = GlobalAveragePool ({0})  y = Flatten (g)"

#: What slides, pads, cuts off, makes coarser and finer, and meets again.
KINDS = (
    *("Conv", "Conv", "SAME", "MaxPool", "AveragePool", "Pad", "Crop", "Shift", "Slice"),
    *("Resize", "Resize", "Sized", "Up", "Depth", "Branch", "Meeting"),
)


def layer(draw: st.DrawFn, k: int, rank: int, kinds: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A layer that reads a{k} and makes a{k+1}, and its weights."""

    def ints(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kind = draw(st.sampled_from(kinds))
    x, y, kernel = f"a{k}", f"a{k + 1}", ints(1, 4)
    if kind == "Conv":
        how = f"dilations = {ints(1, 2)}, strides = {ints(1, 3)}, pads = {ints(0, 2) + ints(0, 2)}"
        return f"{y} = Conv <{how}> ({x}, w{k})  ", {f"w{k}": (2, 2, *kernel)}
    if kind == "SAME":
        mode = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
        return f'{y} = Conv <auto_pad = "{mode}", strides = {ints(1, 3)}> ({x}, w{k})  ', {f"w{k}": (2, 2, *kernel)}
    if kind == "Pad":
        mode, pads = draw(st.sampled_from(["reflect", "edge", "constant"])), ints(0, 3) + ints(0, 3)
        pad = f'p{k} = Pad <mode = "{mode}"> ({x}, pads{k})  {y} = Conv ({x.replace(x, f"p{k}")}, w{k})  '
        zeros = [0, 0]
        return pad, {f"w{k}": (2, 2, *kernel), f"pads{k}": [*zeros, *pads[:rank], *zeros, *pads[rank:]]}
    if kind == "Crop":
        crops = [0, 0, *(-n for n in ints(0, 2)), 0, 0, *(-n for n in ints(0, 2))]
        return f"{y} = Pad ({x}, crops{k})  ", {f"crops{k}": crops}
    if kind == "Shift":  # cells go on one side and come on the other
        shifts = [0, 0, *ints(-2, 2), 0, 0, *ints(-2, 2)]
        return f"{y} = Pad ({x}, shifts{k})  ", {f"shifts{k}": shifts}
    if kind == "Sized":  # by a size that is computed
        mode = draw(st.sampled_from(["nearest", "linear"][: 1 + (rank == 2)]))
        sized = f'e{k} = Shape ({x})  f{k} = Mul (e{k}, times{k})  {y} = Resize <mode = "{mode}"> ({x}, , , f{k})  '
        return sized, {f"times{k}": [1, 1, *[draw(st.sampled_from([2, 1, 4]))] * rank]}
    if kind == "Depth" and rank == 2:
        mode = draw(st.sampled_from(["DCR", "CRD"]))
        body = f'd{k} = Conv ({x}, w{k})  {y} = DepthToSpace <blocksize = 2, mode = "{mode}"> (d{k})  '
        return body, {f"w{k}": (8, 2, *kernel)}
    if kind == "Meeting":  # kernels, pads and operators of their own; as many cells at some sizes alone
        strides, size = ints(1, 3), ints(1, 3)
        pads = [draw(st.integers(0, n - 1)) for n in size * 2]
        pool = f"kernel_shape = {size}, strides = {strides}, pads = {pads}"
        how = f"strides = {strides}, pads = {ints(0, 2) + ints(0, 2)}"
        join = draw(st.sampled_from(["Add (m{0}, n{0})", "Mul (n{0}, m{0})", "Max (m{0}, n{0})"])).format(k)
        body = f"m{k} = MaxPool <{pool}> ({x})  n{k} = Conv <{how}> ({x}, w{k})  {y} = {join}  "
        return body, {f"w{k}": (2, 2, *kernel)}
    if kind == "Slice":
        values = {"starts": ints(0, 2), "ends": [-n or 999 for n in ints(0, 3)], "steps": ints(1, 2)}
        slices = {f"{name}{k}": value for name, value in {**values, "axes": list(range(2, 2 + rank))}.items()}
        return f"{y} = Slice ({x}, starts{k}, ends{k}, axes{k}, steps{k})  ", slices
    if kind == "Up":
        how = f"strides = {ints(1, 3)}, pads = {ints(0, 1) + ints(0, 1)}"
        return f"{y} = ConvTranspose <{how}> ({x}, w{k})  ", {f"w{k}": (2, 2, *kernel)}
    if kind == "Branch":  # as many cells at some sizes alone
        strides, same = ints(1, 3), 'auto_pad = "SAME_UPPER"'
        body = "".join(f"{n}{k} = Conv <{same}, strides = {strides}> ({x}, {n}w{k})  " for n in "mn")
        return f"{body}{y} = Add (m{k}, n{k})  ", {f"mw{k}": (2, 2, *kernel), f"nw{k}": (2, 2, *[1] * rank)}
    if kind == "Resize":
        mode = draw(st.sampled_from(["nearest", "linear", "cubic"][: 2 + (rank == 2)]))
        where = draw(st.sampled_from(["half_pixel", "asymmetric", "half_pixel_symmetric", "pytorch_half_pixel"]))
        scales = [2.0, 0.5, 4.0, 1.0]  # by others weights are rounded
        scales += [3.0, 1.5, 1 / 3, 0.75, 1.2, 5 / 7] if mode == "nearest" else []
        each = [draw(st.sampled_from(scales)) for _ in range(rank)]
        rounding = draw(st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]))
        how = f'mode = "{mode}", coordinate_transformation_mode = "{where}", nearest_mode = "{rounding}"'
        if mode != "nearest":
            how += f", antialias = {draw(st.integers(0, 1))}, exclude_outside = {int(mode == 'cubic')}"
        factors = np.array([1, 1, *each], np.float32)
        return f"{y} = Resize <{how}> ({x}, , s{k})  ", {f"s{k}": factors}
    ceil = draw(st.integers(0, 1))
    pads = [draw(st.integers(0, n - 1)) for n in kernel * 2]
    how = f"kernel_shape = {kernel}, strides = {ints(1, 3)}, pads = {pads}, ceil_mode = {ceil}"
    return f"{y} = {kind} <{how}> ({x})  ", {}


@st.composite
def cases(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> tuple[onnx.ModelProto, tuple[int, ...], int]:
    """(a network of these kinds of layers, the size of an image, a tile)."""
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    made = [layer(draw, k, rank, kinds) for k in range(draw(st.integers(1, 4)))]
    head = HEAD if draw(st.booleans()) else "y = Relu ({0})"
    native = draw(st.lists(st.integers(8, 20), min_size=rank, max_size=rank))
    image = f"float[N,2,{','.join(map(str, native))}] a0"
    body, weights = "", dict[str, Any]()
    try:
        for k, (text, values) in enumerate(made):
            if k and "= Slice " in text:  # where nothing is left, onnx's inference of a Slice ends the process
                before = law.model(f"{body} z = Identity (a{k})", image=image, outputs="z", opset=19, **weights)
                assume(all(d.dim_value > 0 for d in before.graph.output[0].type.tensor_type.shape.dim[2:]))
            body, weights = body + text, {**weights, **values}
        model = law.model(body + head.format(f"a{len(made)}"), image=image, opset=19, **weights)
    except Exception:  # its layers do not fit the image
        assume(False)
    larger = tuple(n + draw(st.integers(0, 60)) for n in native)
    return model, larger, draw(st.integers(6, 60))
