"""How the inputs are read: which axes are positions, where the network says it, where only the shape does, or nothing.

Each answer of a converted network is the original's on its crop, whatever the layout; nothing pads here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnx_fcn
from onnx_fcn import OptionError, UnsupportedModel
from onnx_fcn.lifting.program import Image, Options, Walk
from onnx_fcn.model.document import Document
from onnx_fcn.walk import search
from onnx_fcn.walk.images import written_size

CONFIRMS = "so the file does not say which of its axes are positions"


def dense(*shape: int | str, flatten: str = "f = Flatten (x)", **given: Any) -> ModelProto:
    """A dense layer on the image itself."""
    size = int(np.prod([n for n in shape if isinstance(n, int)]))
    image = f"float[{','.join(map(str, shape))}] x"
    return law.model(f"{flatten}  y = MatMul (f, w)", image=image, outputs="float[N,4] y", w=(size, 4), **given)


def free(model: ModelProto, **names: int) -> ModelProto:
    """The model with some axes of its image open."""
    for name, axis in names.items():
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return model


def axes_of(model: ModelProto, **options: Any) -> tuple[str, tuple[int, ...], list[str]]:
    """How an image is read, and whether that was assumed; the law holds."""
    conversion = onnx_fcn.convert(model, validate=False, **options)
    report = conversion.report
    space = [k for k, letter in enumerate(report.axes) if letter not in "NC"]
    converted = conversion.to_proto()
    batch = law.dims_of(converted.graph.input[0])[0] if report.axes[0] == "N" else None
    law.check(model, converted, space=space, batch=batch)
    return report.axes, report.window, [c for c in report.caveats if CONFIRMS in c]


SHAPES = {
    "NHWC": [(10, 10, 3), (12, 9, 1), (9, 12, 4), (5, 4, 3), (3, 3, 24)],
    "NCHW": [(3, 10, 10), (1, 12, 9), (3, 4, 20), (24, 3, 3), (64, 4, 2), (6, 6, 6)],
    "NDHWC": [(4, 8, 8, 3)],
    "NCDHW": [(1, 4, 8, 8), (5, 4, 4, 4)],
}


@pytest.mark.parametrize(("axes", "shape"), [(axes, shape) for axes in SHAPES for shape in SHAPES[axes]])
def test_a_shape_suggests_its_axes(axes: str, shape: tuple[int, ...]) -> None:
    """Where a dense layer reads the image itself. That it was assumed is said."""
    found, _, (caveat,) = axes_of(dense("N", *shape))
    assert found == axes
    assert f"(N, {', '.join(map(str, shape))}) is read as (batch, " in caveat
    assert "; --input-size " in caveat


THIN = {
    "NCHW": [(24, 1, 1), (1, 1, 24), (1, 24, 1), (2, 1, 24)],
    "NCW": [(1, 24)],
    "NWC": [(24, 1)],
}


@pytest.mark.parametrize(("axes", "shape"), [(axes, shape) for axes in THIN for shape in THIN[axes]])
def test_an_axis_of_length_1_has_no_positions(axes: str, shape: tuple[int, ...]) -> None:
    """What slides along none is likelier; where every reading does, proportions say nothing: ONNX's order counts."""
    found, window, (caveat,) = axes_of(dense("N", *shape))
    assert found == axes
    assert f"; --input-size {'x'.join(map(str, window))} confirms a window of " in caveat


@pytest.mark.parametrize(("axes", "shape"), [("HWC", (10, 9, 3)), ("HWC", (8, 9, 1)), ("CHW", (3, 10, 9))])
def test_a_picture_without_a_batch(axes: str, shape: tuple[int, ...]) -> None:
    """Its first axis cannot be a batch, since the network makes one row of all of it."""
    row = {"flatten": "f = Reshape (x, s)", "s": [1, -1]}
    found, window, (caveat,) = axes_of(dense(*shape, **row))
    assert found == axes
    assert f"which looks most like a picture; --input-size {window[0]}x{window[1]} confirms" in caveat
    assert axes_of(dense(*shape, **row), input_size=window) == (axes, window, [])


def test_what_may_be_a_picture_without_a_batch_is_asked() -> None:
    with pytest.raises(UnsupportedModel, match=r"\(9, 16, 5\).*with --input-size, such as 16x5 or 9x16\)$") as refused:
        onnx_fcn.inspect(dense(9, 16, 5, flatten="f = Reshape (x, s)", s=[1, -1]))
    assert [d.code for d in refused.value.diagnostics] == ["no-positions"]


def test_what_was_said_is_not_offered_again() -> None:
    """A number for all axes leaves it open which these are; a size for each leaves nothing, or what no size can say."""
    (caveat,) = axes_of(dense("N", 28, 28), input_size=28)[2]
    assert caveat.endswith("; --input-size 28x28 confirms a window of 28×28 pixels.")
    assert axes_of(dense("N", 28, 28), input_size=(28, 28)) == ("NHW", (28, 28), [])
    (caveat,) = axes_of(dense("N", 6, 6, 6), input_size=6)[2]
    assert (
        "; --input-size 6x6 confirms a window of 6×6 pixels, or --input-size 6x6x6 chooses another reading, or"
        in caveat
    )
    (caveat,) = axes_of(dense("N", 6, 6, 6), input_size=(6, 6))[2]
    assert caveat.endswith(
        "; (batch, height, width, channels) has the same size: if it is that, give the model an input with the "
        "channels first, and transpose it inside."
    )


OFFERED = [(10, 10, 3), (1, 12, 9), (6, 6, 6), (3, 3, 3), (1, 1, 24), (24, 1, 1), (1, 24), (24, 1), (2, 4, 4, 3)]


@pytest.mark.parametrize("shape", OFFERED)
def test_every_size_that_is_offered_chooses_what_it_says(shape: tuple[int, ...]) -> None:
    """The first confirms the window, and each of the others is that of another reading."""
    _, window, (caveat,) = axes_of(dense("N", *shape))
    own, *others = re.findall(r"\b\d+(?:x\d+)*\b", caveat.partition("; ")[2].replace("×", " "))
    for size in [own, *(o for o in others if "x" in o)]:
        found = onnx_fcn.inspect(dense("N", *shape), input_size=tuple(map(int, size.split("x")))).window
        assert (written_size(found), found == window) == (size, size == own)


def test_a_batch_of_one_offers_no_more() -> None:
    caveats = [onnx_fcn.inspect(dense(batch, 3, 10, 10)).caveats[0].partition("; ")[2] for batch in ("N", 1)]
    assert caveats[0] == caveats[1]


@pytest.mark.parametrize("shape", [(9, 16), (9, 3), (8, 8), (1, 1), (3, 28)])
def test_every_size_that_is_asked_for_is_taken(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedModel) as refused:
        onnx_fcn.inspect(dense("N", *shape))
    sizes = refused.value.diagnostics[0].hint.partition("such as ")[2].split(" or ")
    for size in sizes:
        assert (
            written_size(onnx_fcn.inspect(dense("N", *shape), input_size=tuple(map(int, size.split("x")))).window)
            == size
        )
    assert sizes


def test_another_input_is_named_where_there_is_one() -> None:
    body = "f = Flatten (x)  d = MatMul (f, w)  y = Add (d, t)"
    model = law.model(body, image="float[N,9,16] x, float[N,4] t", outputs="float[N,4] y", w=(144, 4))
    with pytest.raises(
        UnsupportedModel, match="such as 16 or 9 or 9x16; if another input is the image, name it with --inp"
    ):
        onnx_fcn.inspect(model)


def test_a_batch_of_so_many_is_no_picture() -> None:
    """A mean over the first axis, whatever its length, is one over the images of a batch, and no colours."""
    model = law.model(
        "f = Flatten (x)  z = MatMul (f, w)  y = ReduceMean <axes = [0]> (z)", image="float[3,9,8] x", w=(72, 4)
    )
    with pytest.raises(UnsupportedModel, match=r"'y': reduces over the batch: axes \[0\] of n o4"):
        onnx_fcn.inspect(model)


def test_an_open_axis_in_front_is_a_batch() -> None:
    """Height and width the wrong way round do not make it the height."""
    assert axes_of(dense("N", 8, 12), input_size=(8, 12))[0] == "NHW"
    with pytest.raises(OptionError, match=r"--input-size 12×8 does not fit input 'x' of shape \(N, 8, 12\)"):
        onnx_fcn.inspect(dense("N", 8, 12), input_size=(12, 8))


INSIDE = "r = Reshape (x, s)  c = Conv (r, k)  f = Flatten (c)  y = MatMul (f, w)"


@pytest.mark.parametrize("shape", [("N", 48), (1, 48)])
def test_a_network_that_makes_its_image_of_a_row(shape: tuple[int | str, ...], tmp_path: Path) -> None:
    """It is what it makes that can slide, as it says."""
    image = f"float[{shape[0]},{shape[1]}] x"
    model = law.model(INSIDE, image=image, s=[-1, 1, 8, 6], k=(5, 1, 2, 2), w=(175, 4))
    says = r"input 'x': it is a row \(., 48\) that Reshape 'r' turns into an image, .* \(make 'r' the input, as onnx"
    with pytest.raises(UnsupportedModel, match=says) as refused:
        onnx_fcn.inspect(model)
    assert [d.code for d in refused.value.diagnostics] == ["row-of-pixels"]
    with pytest.raises(OptionError, match="Reshape 'r' turns the row into an image: make 'r' the input, as onnx"):
        onnx_fcn.inspect(model, input_size=(8, 6))
    onnx.save(model, tmp_path / "row.onnx")
    onnx.utils.extract_model(tmp_path / "row.onnx", tmp_path / "image.onnx", ["r"], ["y"])
    assert onnx_fcn.convert(tmp_path / "image.onnx").report.window == (8, 6)


def test_a_signal_in_a_row_slides() -> None:
    body = INSIDE.replace("Conv", "Conv <kernel_shape = [2]>")
    model = law.model(body, image="float[N,48] x", s=[-1, 1, 48], k=(5, 1, 2), w=(235, 4))
    assert axes_of(model) == ("NW", (48,), [])


ROWS = [
    (3072, (3, 32, 32), r"an input \(N, 3, 32, 32\), and flatten it inside$"),
    (784, (28, 28), r"shape \(N, 784\): the pixels .* an input \(N, 1, 28, 28\), and flatten it inside$"),
    (784, 28, r"an input \(N, 1, 28, 28\), and"),
    (432, (12, 12), r"an input \(N, 3, 12, 12\) or \(N, 12, 12, 3\), and"),
    (784, (30, 30), r"give the size that the network was made for, not that of your images$"),
]


@pytest.mark.parametrize(("values", "size", "says"), ROWS)
def test_pixels_in_a_row_are_no_picture(values: int, size: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        onnx_fcn.inspect(dense("N", values), input_size=size)


SAID: list[tuple[tuple[int | str, ...], Any, str, bool]] = [
    (("N", 10, 10, 3), (10, 10), "NHWC", False),
    (("N", 10, 10, 3), 10, "NHWC", False),
    (("N", 10, 10, 3), (10, 3), "NCHW", False),
    (("N", 6, 6, 6), 6, "NCHW", True),
    (("N", 5, 6, 7), (5, 6, 7), "NDHW", False),
    (("N", 9, 16), 9, "NWC", False),
    (("N", 9, 16), 16, "NCW", False),
    (("N", 9, 16), (9, 16), "NHW", False),
    (("N", 8, 8), 8, "NHW", True),
    (("N", 8, 8), (8, 8), "NHW", False),
    ((1, 9, 16), (9, 16), "CHW", False),
    ((9, 16, 3), (9, 16), "HWC", False),
    (("N", 20), 20, "NW", False),
]


@pytest.mark.parametrize(("shape", "size", "axes", "assumed"), SAID)
def test_a_size_decides_on_the_axes(shape: tuple[int | str, ...], size: Any, axes: str, assumed: bool) -> None:
    """And nothing is assumed, unless it fits in several ways."""
    flatten = "f = Flatten (x)" if shape[0] == "N" else "f = Reshape (x, s)"
    given = {} if shape[0] == "N" else {"s": [1, -1]}
    found, _, caveats = axes_of(dense(*shape, flatten=flatten, **given), input_size=size)
    assert (found, bool(caveats)) == (axes, assumed)


def test_a_literal_batch_of_one_is_no_reason_against_a_size() -> None:
    model = dense(1, 9, 16, flatten="f = Reshape (x, s)", s=[1, -1])
    assert axes_of(model, input_size=9)[0] == "NWC"


UNDECIDED: list[tuple[tuple[int | str, ...], str]] = [
    (("N", 9, 16), r"\(N, 9, 16\).*with --input-size, such as 16 or 9 or 9x16\)$"),
    (("N", 8, 8), r"\(N, 8, 8\).*with --input-size, such as 8x8\)$"),
    (("N", 784), r"\(N, 784\).*\(N, channels, height, width\), and flatten that inside; .* --input-size 784"),
]


@pytest.mark.parametrize(("shape", "says"), UNDECIDED)
def test_a_shape_that_suggests_nothing_is_refused(shape: tuple[int | str, ...], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says) as refused:
        onnx_fcn.inspect(dense(*shape))
    assert [d.code for d in refused.value.diagnostics] == ["no-positions"]


def test_a_number_for_each_channel_decides_too() -> None:
    """Channels last, the normalisation would be one of rows: nothing is assumed, whatever the shape suggests."""
    body = "b = BatchNormalization (x, s, s, s, v)  f = Flatten (b)"
    given: dict[str, Any] = {name: np.ones(10, np.float32) for name in "sv"}
    assert axes_of(dense("N", 10, 10, 3, flatten=body, **given)) == ("NCHW", (10, 3), [])


@pytest.mark.parametrize("size", [0, -3, (8, 0), (), "8x8", 8.5, (8.0, 8), [[8]]])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(OptionError, match="is not a size in pixels, such as"):
        onnx_fcn.inspect(dense("N", 10, 10, 3), input_size=size)


# Axes that the file leaves open ---------------------------------------------------------------------------------------

POOLED = "m = Conv <strides = [2, 2]> (x, k)  g = GlobalAveragePool (m)  f = Flatten (g)  y = MatMul (f, w)"
HEADED = "m = Conv <strides = [2, 2]> (x, k)  f = Flatten (m)  y = MatMul (f, w)"
GROUPED = "m = Conv <strides = [2, 2], group = 3> (x, k)  f = Flatten (m)  y = MatMul (f, w)"
LAST = "t = Transpose <perm = [0, 3, 1, 2]> (x)  m = Conv <strides = [2, 2]> (t, k)  f = Flatten (m)  y = MatMul (f, w)"
QUANTISED = "q = DequantizeLinear (i, scale)  m = Conv <strides = [2, 2]> (x, q)  f = Flatten (m)  y = MatMul (f, w)"


@pytest.mark.parametrize(
    ("body", "kernel", "head", "names", "size"),
    [
        (POOLED, (6, 3, 2, 2), 6, {"c": 1}, None),
        (POOLED, (6, 3, 2, 2), 6, {"c": 1, "h": 2, "w": 3}, 16),
        (HEADED, (6, 3, 2, 2), 384, {"c": 1, "h": 2, "w": 3}, (16, 16)),
        (HEADED, (6, 3, 2, 2), 384, {"c": 1, "h": 2, "w": 3}, None),
        (GROUPED, (6, 1, 2, 2), 384, {"c": 1}, None),
        (QUANTISED, (6, 3, 2, 2), 384, {"c": 1}, None),
        (LAST, (6, 3, 2, 2), 384, {"h": 1, "w": 2, "c": 3}, 16),
        ("f = Flatten (x)  y = MatMul (f, w)", (6, 3, 2, 2), 768, {"c": 1}, (16, 16)),
        ("f = Flatten (x)  y = MatMul (f, w)", (6, 3, 2, 2), 768, {"c": 3}, (3, 16)),
    ],
)
def test_the_first_layer_knows_the_channels(
    body: str, kernel: Sequence[int], head: int, names: dict[str, int], size: Any
) -> None:
    given: dict[str, Any] = {"k": tuple(kernel), "w": (head, 5)}
    if body == QUANTISED:
        given = {"i": np.ones(kernel, np.int8), "scale": np.float32(0.1), "w": (head, 5)}
    shape = "N,16,16,3" if body == LAST else "N,3,16,16"
    declared = law.model(body, image=f"float[{shape}] x", **given)
    opened = free(onnx.ModelProto.FromString(declared.SerializeToString()), **names)
    size = size or ((16, 16) if body == POOLED else None)
    found = onnx_fcn.convert(opened, input_size=size).to_proto()
    wanted = onnx_fcn.convert(declared, input_size=size).to_proto()
    assert found.graph.input == wanted.graph.input
    assert found.graph.node == wanted.graph.node


OPEN: list[tuple[tuple[int, ...], dict[str, int], str, str]] = [
    ((3, 9, 8), {"c": 1}, "NCHW", r"The shape (N, c, 9, 8) of 'x' leaves its channels open: 3 is assumed, as MatMul"),
    ((9, 8, 3), {"c": 3}, "NHWC", r"leaves its channels open: 3 is assumed, as MatMul 'y' reads 216 values."),
    ((3, 9, 8), {"w": 3}, "NCHW", r"leaves its width open: 8 is assumed, as MatMul 'y' reads 216 values."),
    ((3, 16, 16), {"h": 2, "w": 3}, "NCHW", r"leaves its height and width open: 16 and 16 are assumed, as MatMul"),
]


@pytest.mark.parametrize(("shape", "names", "axes", "says"), OPEN)
def test_what_a_dense_layer_tells_is_said(shape: tuple[int, ...], names: dict[str, int], axes: str, says: str) -> None:
    """One axis alone is what it leaves; of several, the first usual size fits."""
    report = onnx_fcn.inspect(free(dense("N", *shape), **names))
    assert (report.axes, [c for c in report.caveats if says in c]) == (axes, list(report.caveats[1:]))
    told = onnx_fcn.inspect(free(dense("N", *shape), **names), input_size=report.window)
    assert (told.axes, len(told.caveats)) == (axes, int("c" in names))


@pytest.mark.parametrize(
    ("shape", "names", "such"), [((3, 8, 9), {"h": 2, "w": 3}, "8x9"), ((6, 24), {"c": 1, "l": 2}, "12x12")]
)
def test_a_size_that_many_images_have_is_asked_for(shape: tuple[int, ...], names: dict[str, int], such: str) -> None:
    values = np.prod(shape)
    says = f", so the file .* and MatMul 'y' reads {values} values, which fits many sizes: .* such as {such}$"
    with pytest.raises(OptionError, match=says):
        onnx_fcn.inspect(free(dense("N", *shape), **names))


@pytest.mark.parametrize("names", [{"w": 3}, {"h": 2, "w": 3}])
def test_a_weight_of_nothing_tells_nothing(names: dict[str, int]) -> None:
    model = free(dense("N", 3, 8, 9), **names)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros((0, 4), np.float32), "w"))
    with pytest.raises(OptionError, match="none of the usual sizes"):
        onnx_fcn.inspect(model)


UNSIZED = {
    "no rule": "m = ReduceMean <axes = [2], keepdims = 0> (c)  "
    "t = Transpose <perm = [2, 0, 1]> (m)  y = LSTM <hidden_size = 2> (t, a, b)",
    "product": "f = Flatten <axis = 3> (c)  t = Transpose (f)  m = MatMul (f, t)  y = ReduceMax (m)",
    "no size": "f = Flatten (c)  y = MatMul (f, w)",
    "no literal": "f = Reshape (c, to)  y = MatMul (f, w)",
}


@pytest.mark.parametrize("name", UNSIZED)
def test_a_size_is_not_looked_for_where_none_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that no other size avoids ends the search; one that larger images share halves it."""
    walked, sizes = search.walked, []

    def counted(document: Document, image: Image, options: Options) -> Walk:
        sizes.append(image.size)
        return walked(document, image, options)

    monkeypatch.setattr(search, "walked", counted)
    weight = {"w": (6 * 7 * 911, 5)}
    given: dict[str, Any] = {"no rule": {"a": (1, 8, 6), "b": (1, 8, 2)}, "no size": weight}
    given["no literal"] = {"to": [1, 6 * 7 * 911], **weight}
    body = f"c = Conv (x, k)  {UNSIZED[name]}"
    model = free(law.model(body, image="float[1,3,9,913] x", k=(6, 3, 3, 3), **given.get(name, {})), h=2, w=3)
    with pytest.raises(OptionError, match="its head takes none of the usual sizes"):
        onnx_fcn.inspect(model)
    assert len(sizes) < 25


def test_a_convolution_leaves_nothing_to_assume() -> None:
    assert not onnx_fcn.inspect(
        free(law.model(HEADED, image="float[N,3,8,8] x", k=(6, 3, 2, 2), w=(96, 5)), c=1)
    ).caveats


def test_a_number_of_pixels_is_that_of_all_axes() -> None:
    """In every function that takes a size."""
    model = free(law.model(POOLED, image="float[N,3,16,16] x", k=(6, 3, 2, 2), w=(6, 5)), h=2, w=3)
    assert onnx_fcn.inspect(model, input_size=12).window == (12, 12)
    assert onnx_fcn.explain(model, "m", input_size=12).makes[0].window == (6, 6)
    converted = onnx_fcn.convert(model, input_size=12, validate=False).to_proto()
    assert onnx_fcn.validate(model, converted, input_size=12).passed
    assert onnx_fcn.validate(model, converted).passed  # the converted model says it
    volume = "g = GlobalAveragePool (x)  f = Flatten (g)  y = MatMul (f, w)"
    model = free(law.model(volume, image="float[N,3,8,8,8] x", w=(3, 5)), d=2, h=3, w=4)
    assert onnx_fcn.inspect(model, input_size=6).window == (6, 6, 6)


ASKED = {
    "open": (POOLED, {"h": 2, "w": 3}, r"shape \(N, 3, h, w\), .* takes any size: .* such as 224x224$"),
    "all open": (POOLED, {"c": 1, "h": 2, "w": 3}, r"shape \(N, c, h, w\), .* any size: .* such as 224x224$"),
    "one open": (POOLED, {"w": 3}, r"shape \(N, 3, 16, w\), .* takes any size: .* such as 16x224$"),
    "resized": (
        f'r = Resize <mode = "linear"> (x, "", "", to)  {HEADED.replace("(x", "(r")}',
        {"h": 2, "w": 3},
        "takes any size, as Resize 'r' makes each 16×16 pixels: give it with --input-size, such as 16x16",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_size_that_is_missing_is_asked_for(name: str) -> None:
    body, names, says = ASKED[name]
    given: dict[str, Any] = {"to": [1, 3, 16, 16]} if name == "resized" else {}
    model = law.model(body, image="float[1,3,16,16] x", k=(6, 3, 2, 2), w=(384 if given else 6, 5), **given)
    free(model, **names)
    if name != "resized":
        free(model, N=0)
    with pytest.raises(OptionError, match=says):
        onnx_fcn.inspect(model)


# What is no picture ---------------------------------------------------------------------------------------------------


def test_a_flip_of_the_image_has_nothing_to_do_with_embeddings() -> None:
    body = "e = Slice (x, end, front, axis, step)  m = Conv (e, k)  f = Flatten (m)  y = MatMul (f, w)"
    order = {"end": [-1], "front": [-99], "axis": [3], "step": [-1]}
    model = law.model(body, k=(5, 6, 2, 2), w=(30, 7), **order)
    with pytest.raises(
        UnsupportedModel, match="an operator that flips or shuffles each window cannot slide: apply it to the images"
    ):
        onnx_fcn.inspect(law.behind_a_trunk(model))


def test_colours_are_no_depth() -> None:
    """As many slices as a picture has colours, which a convolution takes for channels: only a size makes them slide."""
    body = "r = Reshape (x, s)  a = Add (r, b)  m = Conv (a, k)  f = Reshape (m, t)  y = MatMul (f, w)"
    given = {"s": [1, 3, 8, 8], "b": (3, 1, 1), "k": (6, 3, 3, 3), "t": [1, 216], "w": (216, 4)}
    model = law.model(body, image="float[sequence,1,3,8,8] x", **given)
    says = (
        r"axis 2 of its shape \(sequence, 1, 3, 8, 8\) .*\(N, 3, height, width\) without .*; .* give --input-size 3x8x8"
    )
    with pytest.raises(UnsupportedModel, match=says):
        onnx_fcn.inspect(model)
    assert onnx_fcn.convert(model, input_size=(3, 8, 8)).report.axes == "NCDHW"
