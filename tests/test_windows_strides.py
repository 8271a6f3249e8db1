"""How far apart windows are: as the network strides, further, closer, anywhere on an image; and random networks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fresh
import hypothesis
import law
import numpy as np
import onnx
import onnxruntime
import pytest
import test_random
from hypothesis import strategies as st
from law import Array
from networks import BATCH, Network, networks
from onnx import helper, numpy_helper
from test_windows import ATTENTION, CASES, SCORES, Case, case, obeys

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import OptionError, UnsupportedModel, ValidationError

# Where nothing slides before the windows ------------------------------------------------------------------------------


PATCHED = f"""
    r = Reshape (x, cut)  s = Transpose <perm = [0, 2, 4, 1, 3, 5]> (r)  l = Reshape (s, list)  e = MatMul (l, embed)
    p = Add (e, places)  {ATTENTION}  {SCORES}
"""


def patched(patch: int) -> Case:
    """An image of 16×12 pixels that is cut into patches by reshaping it; nothing slides over it."""
    rows, columns, values = 16 // patch, 12 // patch, 3 * patch * patch
    weights = {"cut": [0, 3, rows, patch, columns, patch], "list": [0, rows * columns, values], "embed": (values, 6),
               "places": (1, rows * columns, 6)}  # fmt: skip
    stride = (2, 2) if patch == 2 else (8, 6)
    return case(
        PATCHED, image="float[N,3,16,12] x", weights=weights, cut="x", window=(16, 12), step=stride, stride=stride
    )


PIXELS = case(
    f"t = Reshape (x, flat)  p = Transpose <perm = [0, 2, 1]> (t)  {ATTENTION}  {SCORES}", image="float[N,6,8,7] x",
    weights={"flat": [0, 6, 56]}, cut="x", window=(8, 7), step=(4, 3), stride=(4, 3),
)  # fmt: skip


@pytest.mark.parametrize("known", [patched(2), patched(4), PIXELS], ids=["patches of 2", "patches of 4", "pixels"])
def test_nothing_slides_before_the_windows(known: Case) -> None:
    """The patches that are found are those of twice as many pixels; otherwise windows are half a window apart."""
    original = known.model()
    with pytest.raises(UnsupportedModel, match="--windows runs"):
        onnx_fcn.convert(original)
    conversion = onnx_fcn.convert(original, windows=True)
    assert conversion.report.stride == known.stride
    obeys(known, original, conversion.to_proto(), more=(2, 1))
    (caveat,) = (c for c in conversion.report.caveats if c.startswith("Nothing slides over 'x'"))
    confirmed = "x".join(map(str, known.window))
    assert f"--input-size {confirmed} confirms" in caveat
    told = onnx_fcn.convert(original, windows=True, input_size=known.window)
    assert told.report.window == known.window
    assert not any("confirms" in c for c in told.report.caveats)


def test_the_size_decides_what_the_axes_are() -> None:
    """(N, 6, 8, 7) with windows of 6×8 pixels has its channels last; the network runs on windows of that as well."""
    known = Case(PIXELS.build, cut="x", window=(6, 8), step=(3, 4), stride=(3, 4), space=(1, 2), axes=(1, 2))
    original = known.model()
    conversion = onnx_fcn.convert(original, windows=True, input_size=(6, 8))
    assert (conversion.report.axes, conversion.report.stride) == ("NHWC", (3, 4))
    obeys(known, original, conversion.to_proto())


def test_coordinates_of_pixels_as_channels() -> None:
    known = case(
        "v = Concat <axis = 1> (x, xy)  m = Conv <strides = [2, 2]> (v, k)  f = Flatten (m)  y = MatMul (f, w)",
        image="float[1,3,9,7] x", weights={"k": (6, 5, 3, 3), "xy": (1, 2, 9, 7), "w": (72, 5)}, cut="x",
        window=(9, 7), step=(2, 2), batches=(1,),
    )  # fmt: skip
    original = known.model()
    conversion = onnx_fcn.convert(original, windows=True)
    assert conversion.report.stride == (2, 2)
    obeys(known, original, conversion.to_proto())


def test_a_convolution_behind_the_cut_shows_the_channels() -> None:
    """A wrong reading may get further than the right one before it is refused."""
    original = law.model(
        "v = Concat <axis = 1> (x, xy)  c = Conv <strides = [2, 2]> (v, k)  r = Relu (c)  g = GlobalAveragePool (r)  "
        "f = Flatten (g)  y = MatMul (f, w)",
        image="float[1,3,16,16] x", k=(6, 5, 4, 4), xy=(1, 2, 16, 16), w=(6, 5),
    )  # fmt: skip
    report = onnx_fcn.convert(original, windows=True).report
    assert (report.axes, report.window, report.caveats) == ("NCHW", (16, 16), ())


# Strides --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize(
    "name", ["embedded positions", "a trunk that pads, pools and joins", "a map that is finer than its windows"]
)
def test_windows_further_apart(name: str, times: int) -> None:
    known = CASES[name]
    original, stride = known.model(), 2 * times
    conversion = onnx_fcn.convert(original, windows=True, window_stride=stride)
    assert conversion.report.stride == (stride, stride)
    further = replace(known, step=tuple(times * n for n in known.step), stride=(stride, stride))
    obeys(further, original, conversion.to_proto())


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_windows_closer_together(stride: int) -> None:
    """Of an image, windows may be any distance apart."""
    original = patched(4).model()
    conversion = onnx_fcn.convert(original, windows=True, window_stride=stride)
    closer = replace(patched(4), step=(stride, stride), stride=(stride, stride))
    obeys(closer, original, conversion.to_proto())


def test_a_stride_that_axes_share() -> None:
    """Axes of the map have strides of their own: windows may be as far apart as a multiple of all."""
    known = CASES["a volume"]
    original = known.model()
    conversion = onnx_fcn.convert(original, windows=True, window_stride=4)
    obeys(replace(known, step=(2, 4, 2), stride=(4, 4, 4)), original, conversion.to_proto(), more=(2, 1, 1))
    with pytest.raises(OptionError, match=r"'m'.* has one every 2 pixels .*takes a multiple of that, not 3"):
        onnx_fcn.convert(original, windows=True, window_stride=3)


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_a_stride_that_the_map_has_not(stride: int) -> None:
    original = CASES["embedded positions"].model()
    with pytest.raises(OptionError, match=f"'m'.* has one every 2 pixels .*takes a multiple of that, not {stride}"):
        onnx_fcn.convert(original, windows=True, window_stride=stride)


@pytest.mark.parametrize(
    "name", ["embedded positions", "a class token, repeated for the images of the batch", "an LSTM along the positions",
             "channels last", "two strides of the trunk"]
)  # fmt: skip
@pytest.mark.parametrize("stride", [1, 2])
def test_answers_in_between(name: str, stride: int) -> None:
    """The trunk dilates, and the windows are those of every phase: each answer is that of its crop, as nothing pads."""
    known = CASES.get(name, TWICE)
    original = known.model()
    converted = onnx_fcn.convert(original, windows=True, output_stride=stride).to_proto()
    image = law.data_inputs(original)[0]
    window = tuple(law.dims_of(image)[k] or 0 for k in known.space)
    obeys(
        Case(known.build, "x", window, (stride, stride), (stride, stride), known.space, known.space),
        original,
        converted,
    )


#: Its output stride may be that of either convolution, or finer.
TWICE = case(
    f"a = Conv <strides = [2, 2]> (x, k)  b = Relu (a)  m = Conv <strides = [2, 2]> (b, k2)  t = Reshape (m, flat)  "
    f"p = Transpose <perm = [0, 2, 1]> (t)  {ATTENTION}  {SCORES}", image="float[N,3,11,15] x",
    weights={"k2": (6, 6, 3, 3), "flat": [0, 6, 6]},
)  # fmt: skip


def test_answers_in_between_of_windows_that_are_further_apart() -> None:
    known = CASES["embedded positions"]
    original = known.model()
    converted = onnx_fcn.convert(original, windows=True, window_stride=4, output_stride=1).to_proto()
    obeys(Case(known.build, "x", (9, 7), (1, 1), (1, 1), axes=(2, 3)), original, converted)


def test_options_that_contradict_each_other() -> None:
    original = CASES["embedded positions"].model()
    with pytest.raises(OptionError, match="--windows cuts: give that, too"):
        onnx_fcn.convert(original, window_stride=2)
    with pytest.raises(OptionError, match="--head folded and --windows contradict each other"):
        onnx_fcn.convert(original, windows=True, head="folded")
    with pytest.raises(OptionError, match="--output-stride 3 does not divide: use 1, 2"):
        onnx_fcn.convert(original, windows=True, output_stride=3)


# Networks that slide --------------------------------------------------------------------------------------------------

DIGITS = Path(__file__).parent.parent / "fixtures/digits_padded.onnx"


def test_a_network_that_slides_is_converted_as_without(tmp_path: Path) -> None:
    onnx_fcn.convert(DIGITS, tmp_path / "plain.onnx")
    report = onnx_fcn.convert(DIGITS, tmp_path / "windows.onnx", windows=True).report
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "windows.onnx").read_bytes()
    assert any("no windows were cut: --windows changed nothing" in c for c in report.caveats)
    with pytest.raises(OptionError, match="everything in the network slides, so no windows are cut"):
        onnx_fcn.convert(DIGITS, windows=True, window_stride=4)


# Random networks ------------------------------------------------------------------------------------------------------


STATE = onnxruntime.capi.onnxruntime_pybind11_state

#: As in test_random: pools of drawn networks may pad by less than 0, or a kernel is missing.
UNRUNNABLE = (STATE.Fail, STATE.RuntimeException, STATE.InvalidGraph, STATE.NotImplemented)


@st.composite
def unsliding(draw: st.DrawFn) -> Network:
    """A random trunk, and a head behind its last map that no rule lifts."""
    drawn = draw(networks())
    hypothesis.assume(drawn.slides and drawn.original.opset_import[0].version >= 9)
    hypothesis.assume(drawn.original.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
    kind = draw(st.sampled_from(["attention", "gram", "LSTM"]))
    image = drawn.original.graph.input[0]
    cut = helper.make_tensor_value_info(drawn.cut, image.type.tensor_type.elem_type, None)
    made = law.part(drawn.original, drawn.original.graph.input, [cut])
    made.graph.ClearField("output")
    trunk = law.part(drawn.original, drawn.original.graph.input, [cut])
    try:
        (values,) = law.session(trunk)(test_random.noise(drawn, drawn.size))
    except UNRUNNABLE:
        hypothesis.reject()
    channels, positions = values.shape[1], math.prod(values.shape[2:])
    hypothesis.assume(positions > 1)
    graph = made.graph

    def weight(name: str, value: Array) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def node(op: str, *operands: str, **attributes: Any) -> str:
        output = f"h{len(graph.node)}"
        graph.node.append(helper.make_node(op, operands, [output], **attributes))
        return output

    flat = node("Reshape", drawn.cut, weight("flat", np.array([0, channels, positions])))
    if kind == "LSTM":
        steps = node("Transpose", flat, perm=[2, 0, 1])
        wi, wr = (weight(n, law.random(n, 1, 16, k).astype(np.float32)) for n, k in (("wi", channels), ("wr", 4)))
        graph.node.append(helper.make_node("LSTM", [steps, wi, wr], ["", "state"], hidden_size=4))
        node("Reshape", node("Transpose", "state", perm=[1, 0, 2]), weight("row", np.array([0, 4])))
    else:
        rows = node("Transpose", flat, perm=[0, 2, 1])
        if kind == "gram":
            node("Reshape", node("MatMul", flat, rows), weight("row", np.array([0, channels * channels])))
        else:
            weights = node("Softmax", node("MatMul", rows, flat), axis=2)
            node("Reshape", node("MatMul", weights, rows), weight("row", np.array([0, positions * channels])))
    graph.node[-1].output[0] = "y"
    batch = drawn.batch if drawn.fixed else BATCH
    graph.output.append(helper.make_tensor_value_info("y", image.type.tensor_type.elem_type, [batch, None]))
    onnx.checker.check_model(made)
    apart = math.lcm(*drawn.grid) * draw(st.sampled_from([1, 1, 2]))
    step = tuple(n * apart // g for n, g in zip(drawn.step, drawn.grid))
    return replace(drawn, original=made, classes="", step=step, grid=(apart,) * len(step))


def outcome(network: Network) -> str:
    """Convert a network and check the law: ``distinct``, ``alike`` (no window differs), or what it is instead."""
    try:
        original = law.session(network.original)
        original(test_random.noise(network, network.size))
    except UNRUNNABLE:
        hypothesis.reject()
    how: dict[str, Any] = {"windows": True, "window_stride": network.grid[0], "input_size": network.size}
    try:
        conversion = onnx_fcn.convert(network.original, **how)
    except UnsupportedModel as refused:
        return refused.diagnostics[0].code
    except OptionError as error:  # "attention" of a single feature is a weighted sum
        return "slides" if "everything in the network slides" in str(error) else str(error)
    except ValidationError:  # if the law holds, it was a false alarm: far out, sizes round
        conversion = onnx_fcn.convert(network.original, **how, validate=False)
    at = conversion.report.cut
    if at is None or (at.name[0] != "h" and at.name != network.cut):  # of one axis, the list of positions is the map
        return "another cut"  # a trunk that is refused begins to run on windows where it is
    run = law.session(conversion.to_proto())
    test_random.check_native(network, original, run)
    size = tuple(n + m * p + e for n, m, p, e in zip(network.size, test_random.MORE, network.grid, network.extra))
    feeds = test_random.noise(network, size)
    got = run(feeds)
    test_random.check_shapes(network, conversion, size, got)
    law.check_formulas(conversion.to_proto(), feeds, got)
    test_random.check_law(network, feeds, got, sampled=False)
    if network.exact:
        test_random.check_crops(network, conversion, feeds, got, sampled=False)
    return "distinct" if test_random.ranges(got[0]) > test_random.DISTINCT * 1e-4 else "alike"


def test_law_of_random_networks() -> None:
    check_shares(test_random.run(30, drawn=unsliding(), judge=outcome))


@pytest.mark.parametrize("examples", [5, pytest.param(1000, marks=pytest.mark.slow)])
def test_law_of_other_networks(examples: int) -> None:
    """Drawn anew in every run."""
    seed, count = fresh.examples(examples)
    with fresh.told(seed, count=count):
        tally = test_random.run(count, seed=seed, drawn=unsliding(), judge=outcome)
        if count >= 1000:  # of a few, shares say nothing
            check_shares(tally)


def check_shares(tally: Counter[str]) -> None:
    """Few slide after all, nearly all others run on windows, and most of these tell a misplaced window."""
    converted, slide = tally["distinct"] + tally["alike"], tally["slides"]
    assert slide < 0.2 * tally.total(), tally
    assert converted > 0.9 * (tally.total() - slide), tally
    assert tally["distinct"] > 0.75 * converted, tally
