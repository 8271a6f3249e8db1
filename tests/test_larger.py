"""Validation rejects what shows on larger images only: not at the native size, and not at whole strides more.

Each fault is planted into a conversion that is right. It changes nothing at the native size, which is shown too; what
finds it is an image with pixels left over, a long one, the file as it was given, or its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import law
import numpy as np
import pytest
from mutations import with_attribute, with_size_factor, with_weight
from onnx import ModelProto, helper

import onnx_fcn
from onnx_fcn import ModelError, ValidationError
from onnx_fcn.checking.checks import Validation
from onnx_fcn.checking.claims import VALUES
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.checking.sizes import largest_factor, long_size, remainders, wide_size
from onnx_fcn.checking.validation import run_checks
from onnx_fcn.geometry import Count
from onnx_fcn.model import metadata
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.walk.asked import Asked
from onnx_fcn.walk.assemble import assemble
from onnx_fcn.walk.given import Given
from onnx_fcn.walk.images import Request
from onnx_fcn.walk.lift import lift

SEEDS = range(4)


@dataclass(frozen=True)
class Fault:
    """A fault that shows neither at the native size nor, mostly, at whole strides more.

    Attributes:
        original: a network.
        plant: makes the fault, in its conversion.
        says: of what the rejection speaks.
    """

    original: ModelProto
    plant: Callable[[ModelProto], ModelProto]
    says: str


def resized(how: str, side: int, scale: float, features: int, **given: Any) -> ModelProto:
    return law.model(
        f'r = Resize <{how}> (x, "", s)  m = Conv (r, k)  f = Flatten (m)  y = MatMul (f, w)',
        image=f"float[N,3,{side},{side}] x", s=np.float32([1, 1, scale, scale]), k=(4, 3, 3, 3), w=(features, 5),
        **given,
    )  # fmt: skip


POOL = "<kernel_shape = [2, 2], strides = [2, 2]>"
HEAD = "f = Flatten (m)  y = MatMul (f, w)"

FAULTS = {
    "a resize that is centred on the whole map": Fault(
        resized('mode = "linear", coordinate_transformation_mode = "half_pixel"', 12, 0.5, 64, opset=19),
        lambda m: with_attribute(m, "Resize", "coordinate_transformation_mode", "half_pixel_symmetric"),
        "is not the same network",
    ),
    "a nearest resize by a factor that drifts": Fault(
        resized(
            'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"', 9, 1.25, 324
        ),
        lambda m: with_weight(m, lambda s: np.where(s > 1, s * np.float32(0.998), s), 4),
        "is not the same network",
    ),
    "a pooling that rounds up": Fault(
        law.model(
            f"c = Conv (x, k)  m = MaxPool {POOL} (c)  {HEAD}", image="float[N,3,10,10] x", k=(4, 3, 3, 3), w=(64, 5)
        ),
        lambda m: with_attribute(m, "MaxPool", "ceil_mode", 1),
        "(has shape|is a grid of)",
    ),
    "branches that meet at some sizes only": Fault(
        law.model(
            f"c = Conv (x, k)  a = MaxPool {POOL} (c)  b = AveragePool {POOL} (c)  m = Add (a, b)  {HEAD}",
            image="float[N,3,10,10] x", k=(4, 3, 3, 3), w=(64, 5),
        ),
        lambda m: with_attribute(m, "MaxPool", "ceil_mode", 1),
        r"the converted model fails at \d+×\d+",
    ),
    "padding at the far end": Fault(
        law.model(
            f"c = Conv <strides = [4, 4], pads = [1, 1, 0, 0]> (x, k)  m = Relu (c)  {HEAD}",
            image="float[N,3,15,15] x", k=(4, 3, 4, 4), w=(64, 5),
        ),
        lambda m: with_attribute(m, "Conv", "pads", [1, 1, 2, 2]),
        "(has shape|is a grid of)",
    ),
    "a size that was not frozen": Fault(
        law.model(f"c = Conv (x, k)  m = Relu (c)  {HEAD}", image="float[N,3,6,6] x", k=(4, 3, 3, 3), w=(64, 5)),
        lambda m: with_size_factor(m, "c", 4),
        "is not the same network",
    ),
}  # fmt: skip


def at_native_size(model: ModelProto, side: int) -> list[law.Array]:
    return law.session(model)({model.graph.input[0].name: law.random("x", 1, 3, side, side).astype(np.float32)})


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_of_larger_images_is_rejected(what: str) -> None:
    fault = FAULTS[what]
    converted = onnx_fcn.convert(fault.original).to_proto()
    wrong = fault.plant(converted)
    side = fault.original.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    for right, answer in zip(at_native_size(converted, side), at_native_size(wrong, side), strict=True):
        np.testing.assert_array_equal(right, answer)
    for seed in SEEDS:
        with pytest.raises(ValidationError, match=fault.says):
            onnx_fcn.validate(fault.original, wrong, seed=seed)


@pytest.mark.parametrize("seed", range(20, 30))
def test_an_answer_that_cancels_is_as_exact_as_its_terms(seed: int) -> None:
    """In half floats the mean of a map that is nearly nothing for one window is rounded as it is for others."""
    kernel = [[0.8706, -0.1278, -0.0844], [-0.2382, -0.3171, 0.4507], [0.658, 0.4746, -0.51]]
    mean = law.model(
        "c = Conv <pads = [1, 1, 1, 1]> (x, k)  g = GlobalAveragePool (c)  y = Flatten (g)",
        image="float16[1,1,6,13] x", k=np.array([[kernel]], np.float16),
    )  # fmt: skip
    assert onnx_fcn.convert(mean, seed=seed).report.validation.passed


TRUNKS = {
    "a shift by what is cut off": resized(
        'mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"', 12, 0.5, 64, opset=19
    ),
    "sizes that are rounded": law.model(
        """all = Shape (x)  half = Div (all, two)  r = Resize <mode = "linear"> (x, "", "", half)
           m = Conv (r, k)  f = Flatten (m)  y = MatMul (f, w)""",
        image="float[N,3,12,12] x", two=np.int64([1, 1, 2, 2]),
        k=(4, 3, 3, 3), w=(64, 5), opset=13,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TRUNKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_original_that_resizes_otherwise_at_other_sizes_is_no_reference(what: str, seed: int) -> None:
    """The trunk of the original means something else on an image with pixels left over, and rejects nothing there."""
    assert onnx_fcn.convert(TRUNKS[what], seed=seed).report.validation.passed


def test_a_wrong_count_is_found_where_the_trunk_is_the_original_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooling that rounds up stays as it is; what is said of its cells has to be so at every size."""
    original = law.model(
        f"c = Conv (x, k)  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (c)  {HEAD}",
        image="float[N,3,10,10] x", k=(4, 3, 3, 3), w=(64, 5),
    )  # fmt: skip
    assert onnx_fcn.convert(original).report.validation.passed
    slid = Count.slid

    def rounding_down(count: Count, *sizes: int, ceil: bool = False, **more: int) -> Count:
        return slid(count, *sizes, **more)

    monkeypatch.setattr(Count, "slid", rounding_down)
    for seed in SEEDS:
        with pytest.raises(ValidationError, match=r"(is a grid of \(\d+, \d+\) where|has shape)"):
            onnx_fcn.convert(original, seed=seed)


# The reference --------------------------------------------------------------------------------------------------------


def judged(original: ModelProto, plant: Callable[[ModelProto], ModelProto], seed: int) -> Validation:
    """What validation says where the conversion itself is at fault, so that its own trunk is no better."""
    given = Given.open(original, Asked())
    document = given.selected.copy()
    walk = lift(document, Request())
    document.commit(assemble(document, walk))
    wrong = Document.open(plant(document.to_proto()))
    return run_checks(Comparison(given, walk, wrong, wrong, seed))


def rejected(original: ModelProto, plant: Callable[[ModelProto], ModelProto], seed: int) -> bool:
    try:
        return not judged(original, plant, seed).passed
    except ValidationError as failure:
        return "the converted model fails at" in str(failure)


SHUFFLE = "r = Reshape (a, split)  t = Transpose <perm = [0, 2, 1, 3, 4]> (r)  c = Reshape (t, joined)"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_is_not_hidden_by_the_trunk_that_has_it(seed: int) -> None:
    """A channel shuffle names the map's size: the original's trunk runs at no other, and the converted one serves."""
    original = law.model(
        f"a = Conv <pads = [1, 1, 1, 1]> (x, k)  {SHUFFLE}  m = Conv <pads = [1, 1, 1, 1]> (c, v)  {HEAD}",
        image="float[1,3,12,12] x", k=(4, 3, 3, 3), split=[1, 2, 2, 12, 12], joined=[1, 4, 12, 12], v=(4, 4, 3, 3),
        w=(576, 5),
    )  # fmt: skip
    assert judged(original, lambda m: m, seed).passed
    validation = judged(original, lambda m: with_size_factor(m, "a", 12), seed)
    assert not validation.passed
    assert {c.kind for c in validation.checks if not c.passed} == {"trunk"}


def with_gate(pooling: str) -> ModelProto:
    return law.model(
        f"c = Conv (x, k)  p = {pooling} (c)  g = Sigmoid (p)  s = Mul (c, g)  m = Conv (s, v)  {HEAD}",
        image="float[N,3,10,8] x", k=(4, 3, 3, 3), v=(4, 4, 3, 3), w=(96, 5),
    )  # fmt: skip


@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool", "LpPool"])
def test_a_gate_whose_pooling_has_the_size_of_the_map(operator: str) -> None:
    """On a larger image the original's own trunk would pool its top left corner; and so would a wrong conversion."""
    original = with_gate(f"{operator} <kernel_shape = [8, 6], strides = [8, 6]>")
    assert onnx_fcn.convert(original).report.context
    converted = onnx_fcn.convert(original).to_proto()

    def baked(model: ModelProto) -> ModelProto:
        made = with_attribute(model, f"Global{operator}", "kernel_shape", [8, 6])
        made = with_attribute(made, f"Global{operator}", "strides", [8, 6])
        next(n for n in made.graph.node if n.op_type == f"Global{operator}").op_type = operator
        return made

    for seed in SEEDS:
        assert onnx_fcn.validate(original, converted, seed=seed).passed
        assert rejected(original, baked, seed)


def test_a_gate_that_reads_rows_of_a_named_size() -> None:
    """Its context is computed in the converted model; all else of the trunk is the original's."""
    gate = "q = Reshape (c, rows)  p = ReduceMean <axes = [2], keepdims = 0> (q)  e = Reshape (p, cells)"
    original = law.model(
        f"c = Conv (x, k)  {gate}  g = Sigmoid (e)  s = Mul (c, g)  m = Conv (s, v)  {HEAD}",
        image="float[1,3,10,8] x", k=(4, 3, 3, 3), v=(4, 4, 3, 3), w=(96, 5), rows=[1, 4, 48], cells=[1, 4, 1, 1],
    )  # fmt: skip
    for seed in SEEDS:
        assert judged(original, lambda m: m, seed).passed
        negated = judged(original, lambda m: with_weight(m, np.negative, 4, 4, 3, 3), seed)
        assert "law" in {c.kind for c in negated.checks if not c.passed}


@pytest.mark.parametrize("size", ["h = Shape (c)  i = Gather (h, three)", "i = Size (c)"])
def test_a_trunk_that_divides_by_the_size_of_its_map(size: str) -> None:
    original = law.model(
        f"c = Conv (x, k)  {size}  n = Cast <to = 1> (i)  d = Div (c, n)  m = Conv (d, v)  {HEAD}",
        image="float[1,3,8,8] x", k=(4, 3, 3, 3), v=(4, 4, 3, 3), w=(64, 5), three=np.array(3),
    )  # fmt: skip
    report = onnx_fcn.convert(original).report
    assert report.validation is not None
    assert max(c.error for c in report.validation.checks if c.kind == "crops" and c.tolerance is not None) < 1e-5


# The file as it was given ---------------------------------------------------------------------------------------------

DENSE = law.model(
    "c = Conv (x, k)  m = Relu (c)  f = Flatten (m)  d = MatMul (f, w)  y = Softmax <axis = 1> (d)  z = Abs (d)",
    outputs="y, z", image="float[N,3,6,6] x", k=(4, 3, 3, 3), w=(64, 5),
)  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"logits": True}, {"outputs": ["y"]}, {"outputs": ["y"], "logits": True}], ids=str)
def test_the_file_is_compared_and_not_what_was_made_of_it(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_fcn.convert(DENSE, **how).report.validation.passed

    def without_relu(file: Document) -> Document:
        made = file.copy()
        made.commit(Edit(nodes={1: [helper.make_node("Identity", ["c"], ["m"])]}))
        return made

    monkeypatch.setattr(onnx_fcn.walk.given, "_ready", without_relu)
    with pytest.raises(ValidationError, match="is not the same network") as failure:
        onnx_fcn.convert(DENSE, **how)
    assert "native" in {c.kind for c in failure.value.report.checks if not c.passed}


def with_function(domain: str, name: str, body: str, *, version: int = 1, overload: str = "") -> ModelProto:
    """A network whose activation is a call of a local function."""
    made = ModelProto()
    made.CopyFrom(DENSE)
    node = made.graph.node[1]
    node.op_type, node.domain, node.overload = name, domain, overload
    made.ir_version = 10
    if domain:
        made.opset_import.append(helper.make_opsetid(domain, version))
    calls = [helper.make_node(body, ["a"], ["b"])]
    function = helper.make_function(domain, name, ["a"], ["b"], calls, [helper.make_opsetid("", 13)])
    function.overload = overload
    made.functions.append(function)
    return made


@pytest.mark.parametrize(
    ("domain", "name", "overload", "runs"),
    [
        ("", "Relu", "", "Relu"),  # an operator of onnxruntime's goes before a function of its name
        ("", "Relu", "other", "Relu"),
        ("com.microsoft", "QuickGelu", "", "QuickGelu"),
        ("com.microsoft", "Own", "", "Neg"),
        ("own", "Relu", "", "Neg"),
        ("own", "Relu", "other", "Neg"),
    ],
)
def test_a_function_is_inlined_where_onnxruntime_calls_it(domain: str, name: str, overload: str, runs: str) -> None:
    model = with_function(domain, name, "Neg", overload=overload)
    conversion = onnx_fcn.convert(model)
    assert runs in {n.op_type for n in conversion.to_proto().graph.node}
    assert conversion.report.validation.passed


def test_nodes_in_any_order() -> None:
    """onnxruntime runs such a file; the comparison is with the file, and not with nodes that were sorted."""
    made = ModelProto()
    made.CopyFrom(DENSE)
    nodes = list(made.graph.node)[::-1]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    assert onnx_fcn.convert(made).report.validation.passed


def test_a_random_model_is_not_blamed_on_its_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no rule sees that it is random, two runs of the original do."""
    noise = [helper.make_node("RandomUniformLike", ["c"], ["n"], "noise"), helper.make_node("Add", ["c", "n"], ["e"])]
    model = ModelProto()
    model.CopyFrom(DENSE)
    rest = list(model.graph.node)
    rest[1].input[0] = "e"
    del model.graph.node[:]
    model.graph.node.extend([rest[0], *noise, *rest[1:]])

    def unseen(site: Any, x: Any) -> Any:
        return x.on(site.emit([x]))

    monkeypatch.setitem(onnx_fcn.lifting.registry._RULES, ("", "RandomUniformLike"), unseen)
    monkeypatch.setattr(onnx_fcn.walk.interpret, "RANDOM", frozenset())
    with pytest.raises(
        ModelError, match=r"the model is random \(RandomUniformLike 'noise'\): on one image two runs differ"
    ):
        onnx_fcn.convert(model)


# What the metadata say ------------------------------------------------------------------------------------------------

FALSE = {
    "window": [12, 12], "stride": [2, 2], "offset": [1, 0], "field": [7, 6], "padding": [0, 1],
    "cells": [[[1, -4, 1]], []], "inner": [{"front": 0, "behind": []}] * 2,
    "formula": ["height", "width"], "exactness": "padded", "context": ["c"], "form": "mean", "layout": "NCWH",
}  # fmt: skip


def edited(model: ModelProto, key: str, change: Callable[[Any], Any]) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    entry = next(e for e in made.metadata_props if e.key == f"onnx_fcn.{key}")
    entry.value = change(entry.value)
    return made


@pytest.fixture(scope="module")
def written() -> ModelProto:
    return onnx_fcn.convert(DENSE, outputs=["y"]).to_proto()


@pytest.mark.parametrize("value", FALSE)
def test_a_false_value_in_the_metadata_is_named(value: str, written: ModelProto) -> None:
    words = VALUES[value]
    wrong = edited(written, "output.y", lambda text: json.dumps(json.loads(text) | {value: FALSE[value]}))
    assert onnx_fcn.validate(DENSE, written).passed
    with pytest.raises(ValidationError, match=rf"what the metadata say of 'y': the {words} is given as .*, but it is"):
        onnx_fcn.validate(DENSE, wrong)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("window", "[12, 12]", r"of 'x': the window is given as \[12, 12\], but it is \[6, 6\]"),
        ("window", "[", "the window is not given"),
        ("image", "z", "the image is given as 'z', but it is 'x'"),
        ("layout", "NHWC", "the layout is given as 'NHWC', but it is 'NCHW'"),
        ("output.y", "[" * 100_000, "of 'y': they do not say where these answers are"),
        ("output.y", "{}", "of 'y': the window is not given"),
    ],
)
def test_any_entry_may_be_false(key: str, value: str, says: str, written: ModelProto) -> None:
    with pytest.raises(ValidationError, match=says):
        onnx_fcn.validate(DENSE, edited(written, key, lambda _: value))


def test_metadata_that_say_nothing_are_no_fault(written: ModelProto) -> None:
    bare = ModelProto()
    bare.CopyFrom(written)
    asked = [e for e in bare.metadata_props if e.key == "onnx_fcn.asked"]
    del bare.metadata_props[:]
    bare.metadata_props.extend(asked)
    assert "metadata" not in {c.kind for c in onnx_fcn.validate(DENSE, bare).checks}


STRIDED = law.model(
    f"c = Conv <strides = [4, 4]> (x, k)  m = Relu (c)  {HEAD}", image="float[N,3,16,16] x", k=(4, 3, 4, 4), w=(64, 5)
)

# Sizes ----------------------------------------------------------------------------------------------------------------


def test_every_remainder_is_met_over_the_seeds() -> None:
    """Along each axis, by each of the images; and along both axes of an image independently."""
    found = [remainders((8, 5), 3, np.random.default_rng(seed)) for seed in range(200)]
    for image in range(3):
        assert {sizes[image] for sizes in found} == {(a, b) for a in range(1, 8) for b in range(1, 5)}
    for sizes in found:
        assert len({a for a, _ in sizes}) == len({b for _, b in sizes}) == 3


@pytest.mark.parametrize(
    ("native", "period", "most", "size"),
    [
        ((28, 28), (4, 4), 100, (28 + 8 + 1, 28 + 4 + 3)),
        ((12, 12), (5653, 5653), 100, (13, 15)),  # not even one period more can be afforded
        ((12, 12), (5653, 5653), 1.2, (13, 13)),
        ((64,), (2,), 100, (64 + 6 + 1,)),
    ],
)
def test_a_wide_image_is_affordable(
    native: tuple[int, ...], period: tuple[int, ...], most: float, size: tuple[int, ...]
) -> None:
    assert wide_size(native, period, (1, 3), most) == size


@pytest.mark.parametrize(
    ("axis", "most", "size"),
    [(0, 100, (28 + 43 * 4 + 1, 31)), (1, 100, (29, 28 + 43 * 4 + 3)), (0, 3, (29 + 11 * 4, 31)), (0, 1.5, None)],
)
def test_a_long_image_is_affordable(axis: int, most: float, size: tuple[int, ...] | None) -> None:
    assert long_size((28, 28), (4, 4), (1, 3), axis, 3, most) == size


def test_what_was_not_compared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_fcn.convert(DENSE).report.validation.uncovered == ()
    monkeypatch.setattr(onnx_fcn.checking.cases, "LONG_BUDGET", 1)
    monkeypatch.setattr(onnx_fcn.checking.cases, "largest_factor", lambda _: 1.1)
    report = onnx_fcn.convert(STRIDED).report
    assert report.validation.passed
    second, long = report.validation.uncovered
    assert second == "images with a second window along each axis, which begins 4×4 pixels on"
    assert long.startswith("images much longer than the native size")
    for text in (str(report), report.text(verbose=True)):
        assert f"– not compared {second}" in " ".join(text.split())
        assert f"– not compared {long}" in " ".join(text.split())


def test_every_value_of_an_output_is_compared_or_follows_from_one_that_is() -> None:
    answers = onnx_fcn.inspect(DENSE).geometry.of()
    assert set(metadata.to_json(answers)) - set(VALUES) == {"reason"}


@pytest.mark.parametrize("end", [2**63 - 1, -1, -3])
@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize(("native", "stride"), [(20, 1), (20, 2), (21, 1), (22, 1), (22, 2), (23, 2)])
def test_a_slice_with_steps_ends_where_the_image_does(native: int, stride: int, step: int, end: int) -> None:
    """Where pixels are left over, too: what pads after it has to begin behind the last cell that the original has."""
    cells = len(range(native)[:end:step])
    original = law.model(
        "a = Conv <pads = [1, 1, 1, 1]> (x, k)  s = Slice (a, zero, end, axis, step)  "
        f"m = Conv <pads = [1, 1, 1, 1], strides = [1, {stride}]> (s, l)  {HEAD}",
        image=f"float[N,3,8,{native}] x", k=(4, 3, 3, 3), zero=[0], end=[end], axis=[3], step=[step], l=(4, 4, 3, 3),
        w=(32 * ((cells - 1) // stride + 1), 5),
    )  # fmt: skip
    converted = law.session(onnx_fcn.convert(original, seed=step).to_proto())
    trunk = law.session(law.trunk_of(original, ["m"]))
    for width in range(native, native + 9):
        image = {"x": law.random("image", 1, 3, 9, width).astype(np.float32)}
        (seen,), (got,) = trunk(image), converted(image)
        head = law.session(law.head_of(original, {"m": seen}))
        want = law.by_window(head, {"m": seen}, "m", (8, (cells - 1) // stride + 1), (2, 3), (1, 1))
        assert got.shape[2:] == tuple(n + 1 for n in max(want))
        for (row, column), (answer,) in want.items():
            law.agree(got[..., row, column], answer, f"row {row}, column {column} of a width of {width}")


def test_no_image_is_huge_for_windows_that_hardly_repeat() -> None:
    """A Resize by 79/56 before strides of 32 repeats every 1792 pixels: that is said, not run on 10 megapixels."""
    body = (
        'r = Resize <mode = "nearest"> (x, "", "", to)  c = Conv <strides = [4, 4]> (r, k)  '
        "p = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (c)  g = GlobalAveragePool (p)  f = Flatten (g)  "
        "y = MatMul (f, w)"
    )
    model = law.model(body, image="float[1,3,1344,1344] x", k=(4, 3, 4, 4), w=(4, 5), to=[1, 3, 1896, 1896])
    validation = onnx_fcn.convert(model).report.validation
    assert validation is not None
    assert validation.passed
    assert max(check.size[0] * check.size[1] for check in validation.checks if check.size) < 2 * 1344**2
    assert "images with a second window along each axis, which begins 1792×1792 pixels on" in validation.uncovered


@pytest.mark.parametrize(("values", "factor"), [(1000, 1048.576), (1 << 20, 8), (1 << 21, 4), (1 << 24, 2)])
def test_the_larger_the_native_image_the_less_it_is_enlarged(values: int, factor: float) -> None:
    assert largest_factor(values) == factor
