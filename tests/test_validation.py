"""What validation runs, and what it says of crops: planted faults are in test_rules.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import law
import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import onnx_fcn
import onnx_fcn.checking.asking
import onnx_fcn.checking.judging
import onnx_fcn.checking.reference
import onnx_fcn.checking.validation
from onnx_fcn import Check, ModelError, ValidationError
from onnx_fcn.checking.claims import claimed_image
from onnx_fcn.checking.comparison import Comparison
from onnx_fcn.checking.trunks import same_trunk
from onnx_fcn.model.agreement import Scale, difference
from onnx_fcn.model.document import Document
from onnx_fcn.walk.cut import Cut

ROOT = Path(__file__).parent.parent
UNPADDED, PADDED = (ROOT / f"fixtures/digits_{kind}.onnx" for kind in ("unpadded", "padded"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that onnxruntime is given, in order."""
    shapes: list[tuple[int, ...]] = []
    session = onnx_fcn.checking.validation.session

    def recorded(document: Any, model: Any = None) -> Any:
        run = session(document, model)

        def with_record(feeds: Any) -> Any:
            shapes.extend(feed.shape for name, feed in feeds.items() if name in inputs)
            return run(feeds)

        inputs = {i.name for i in (model or document.proto).graph.input}
        return with_record

    for module in (
        onnx_fcn.checking.validation,
        onnx_fcn.checking.asking,
        onnx_fcn.checking.judging,
        onnx_fcn.checking.reference,
    ):
        monkeypatch.setattr(module, "session", recorded)
    return shapes


#: Larger images of the seed that is the default: with pixels left over, and one of them long.
WIDE, LONG, UNEVEN = (1, 1, 39, 34), (1, 1, 29, 191), (1, 1, 30, 29)


def test_an_untouched_trunk_runs_once_at_every_size(runs: list[tuple[int, ...]]) -> None:
    onnx_fcn.convert(PADDED)
    images = [shape for shape in runs if shape[1] == 1]
    assert images[:4] == [(1, 1, 28, 28), WIDE, LONG, UNEVEN]
    assert set(images[4:]) == {(1, 1, 28, 28)}  # the original, and crops
    heads = [shape[0] for shape in runs if shape[1] != 1]
    assert heads == [17, 6, 6]  # windows of both images, and shaken ones; batches of both heads, also negated


def test_another_trunk_is_run_beside_the_original(runs: list[tuple[int, ...]], tmp_path: Path) -> None:
    """The same numbers from other bytes: the trunk counts as another one, and everything is run."""
    onnx_fcn.convert(PADDED, tmp_path / "out.onnx", validate=False)
    model = onnx.load(tmp_path / "out.onnx")
    kernel = next(t for t in model.graph.initializer if t.name == model.graph.node[0].input[1])
    values = numpy_helper.to_array(kernel).copy()
    values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    assert onnx_fcn.validate(PADDED, model).passed
    assert [runs.count(size) for size in (WIDE, LONG, UNEVEN)] == [2, 2, 1]
    assert [s for s in runs if s[1] == 1].count((3, 1, 28, 28)) == 2


#: A network that TensorFlow exported: channels last, with a Transpose before and after each convolution.
LAST = law.model(
    "t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv <pads = [1, 1, 1, 1]> (t, k)  "
    "u = Transpose <perm = [0, 2, 3, 1]> (c)  r = Relu (u)  "
    "s = Transpose <perm = [0, 3, 1, 2]> (r)  d = Conv <strides = [2, 2]> (s, l)  "
    "v = Transpose <perm = [0, 2, 3, 1]> (d)  q = Relu (v)  f = Flatten (q)  y = MatMul (f, w)",
    image="float[N,9,9,2] x",
    k=(3, 2, 3, 3),
    l=(4, 3, 3, 3),
    w=(64, 5),
)


def with_turned_trunk(model: ModelProto) -> None:
    """Exchange height and width before the first convolution."""
    node = next(node for node in model.graph.node if node.op_type == "Transpose")
    node.attribute[0].ints[:] = [0, 3, 2, 1]


def with_other_weight(model: ModelProto) -> None:
    kernel = next(t for t in model.graph.initializer if t.name == "k")
    values = numpy_helper.to_array(kernel).copy()
    values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))


def with_other_cells(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.attribute.append(onnx.helper.make_attribute("dilations", [1, 2]))


@pytest.mark.parametrize("change", [None, with_turned_trunk, with_other_weight, with_other_cells])
def test_a_trunk_without_its_transposes_is_the_same(
    change: Callable[[ModelProto], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the original's map of larger images is not computed twice."""
    compared: list[tuple[Comparison, Cut]] = []

    def recorded(c: Comparison, cut: Cut) -> bool:
        compared.append((c, cut))
        return same_trunk(c, cut)

    monkeypatch.setattr(onnx_fcn.checking.validation, "same_trunk", recorded)
    model = onnx_fcn.convert(LAST).to_proto()
    assert [n.op_type for n in model.graph.node].count("Transpose") == 1
    if change is not None:
        change(model)
    comparison, cut = compared[0]
    comparison.converted = Document.open(model)
    assert same_trunk(comparison, cut) == (change is None)


def test_a_batch_that_is_mixed_in_the_head_is_found(tmp_path: Path) -> None:
    """At batch 1 nothing shows."""
    onnx_fcn.convert(PADDED, tmp_path / "out.onnx", validate=False)
    model = onnx.load(tmp_path / "out.onnx")
    last = model.graph.node[-1]
    scores, last.output[0] = last.output[0], "apart"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
    model.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMean", ["apart", "batch_axis"], ["mean"], keepdims=1),
            onnx.helper.make_node("Sub", ["apart", "mean"], ["deviation"]),
            onnx.helper.make_node("Add", ["apart", "deviation"], [scores]),
        ]
    )
    with pytest.raises(ValidationError, match="the answer at the native size of"):
        onnx_fcn.validate(PADDED, model)


def test_a_head_may_read_its_batch_off_the_image() -> None:
    """Windows go through the head as one batch, and the image has to have as many."""
    head = "p = GlobalAveragePool (x)  s = Shape (x)  n = Slice (s, zero, one)  t = Concat <axis = 0> (n, rest)"
    model = law.model(f"{head}  y = Reshape (p, t)", zero=[0], one=[1], rest=[-1], outputs="float[N,6] y")
    trunk = law.behind_a_trunk(model)
    shape = next(n for n in trunk.graph.node if n.op_type == "Shape")
    shape.input[0] = trunk.graph.input[0].name
    assert onnx_fcn.convert(trunk).report.validation.passed


def test_what_is_no_conversion_of_the_model_is_told_by_its_signature() -> None:
    model = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 2, 2), w=(30, 4))
    table = law.model("y = MatMul (x, w)", image="float[N,6] x", w=(6, 4))
    with pytest.raises(ModelError, match=r"not a conversion of the first: its input 'x' has 2 axes in place of 4$"):
        onnx_fcn.validate(model, table)
    grey = law.model(
        "c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", image="float[N,1,4,3] x", k=(5, 1, 2, 2), w=(30, 4)
    )
    with pytest.raises(ModelError, match=r"not a conversion of the first: its input 'x' has 1 channels in place of 6$"):
        onnx_fcn.validate(model, onnx_fcn.convert(grey, validate=False).to_proto())
    converted = onnx_fcn.convert(model, validate=False).to_proto()
    converted.graph.input.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match=r"not a conversion of the first: it has another input, 'v'$"):
        onnx_fcn.validate(model, converted)
    del converted.graph.input[-1]
    converted.graph.output[0].name = converted.graph.node[-1].output[0] = "z"
    with pytest.raises(ModelError, match=r"not a conversion of the first: it has no output 'y'$"):
        onnx_fcn.validate(model, converted)


def test_a_conversion_of_another_network_says_so() -> None:
    model = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 2, 2), w=(30, 4))
    other = law.model("c = Conv (x, k)  r = Relu (c)  f = Flatten (r)  y = MatMul (f, w)", k=(5, 6, 2, 2), w=(30, 4))
    converted = onnx_fcn.convert(other, validate=False).to_proto()
    says = r"^the metadata of the second model say that it was made from another model, and the .* not the same network"
    with pytest.raises(ValidationError, match=says):
        onnx_fcn.validate(model, converted)


def test_a_size_that_the_metadata_name_is_not_run_when_it_is_huge() -> None:
    """It is only a file's word."""
    model = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 2, 2), w=(30, 4))
    converted = onnx_fcn.convert(model, validate=False).to_proto()
    assert claimed_image(converted) == ("x", (4, 3))
    entry = next(e for e in converted.metadata_props if e.key == "onnx_fcn.window")
    for text in ("[99999, 99999]", "[0, 9]", "[true, 9]", '["9", 9]', "9", "[" * 9999):
        entry.value = text
        assert claimed_image(converted) == ("x", None)


@pytest.mark.parametrize("channels", [1, 7])
def test_another_number_of_channels_is_a_fault(channels: int) -> None:
    model = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 2, 2), w=(30, 4))
    other = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 2, 2), w=(30, channels))
    wrong = onnx_fcn.convert(other, validate=False).to_proto()
    with pytest.raises(ValidationError, match="shape"):
        onnx_fcn.validate(model, wrong)


def crops_of(model: Path) -> list[Check]:
    validation = onnx_fcn.convert(model).report.validation
    assert validation is not None
    return [check for check in validation.checks if check.kind == "crops"]


def test_crops_are_told_by_their_worst_and_their_median_and_the_best_class() -> None:
    for check in crops_of(UNPADDED):
        assert check.compared > 1
        assert check.tolerance is not None
        assert check.median is not None
        assert check.median <= check.error <= check.tolerance
        assert check.top1 == 1
    for check in crops_of(PADDED):
        assert check.tolerance is None
        assert check.median is not None
        assert 0 < check.median <= check.error
        assert check.top1 is not None
        assert 0 <= check.top1 <= 1


def test_a_map_inside_a_branch_is_no_cut() -> None:
    """It has a name in the walk, which puts the branch into the program, but the original cannot be fed with it."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[N,6,4,3] x) => (float[N,36] y) <bool yes = {1}> {
        y = If (yes) <
            then_branch = a () => (float[N,36] r) {
                pooled = MaxPool <kernel_shape = [3, 3]> (x)
                tall = Concat <axis = 2> (pooled, pooled, pooled)
                r = Flatten (tall) },
            else_branch = b () => (float[N,72] q) { q = Flatten (x) }> }"""
    )
    validation = onnx_fcn.convert(model).report.validation
    assert validation is not None
    assert {c.kind for c in validation.checks} == {"native", "law", "crops", "grid", "metadata"}


def test_a_rare_event_is_as_exact_as_its_logit() -> None:
    """onnxruntime's Sigmoid is right to 1e-7, which is much of a score of 1e-4; the logit in front of it agrees."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[N,3,12,12] x) => (float[N,4] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, k)
        f = Flatten (a)
        l = Gemm (f, w, b)
        y = Sigmoid (l) }"""
    )
    random = np.random.default_rng(0)
    for name, shape, shift in (("k", (8, 3, 3, 3), 0.0), ("w", (8 * 144, 4), 0.0), ("b", (4,), -9.0)):
        values = (random.standard_normal(shape) * 0.02 + shift).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    validation = onnx_fcn.convert(model).report.validation
    assert validation is not None
    assert {c.subject for c in validation.checks if c.kind == "law"} == {"l", "y"}
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.full(4, -200, np.float32), "b"))  # always 0
    mutant = onnx_fcn.convert(model).to_proto()
    bias = next(t for t in mutant.graph.initializer if t.name == "b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1), "b"))
    with pytest.raises(ValidationError, match="'l'"):
        onnx_fcn.validate(model, mutant)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, 0.001),
        ([[10.0, 0.5]], 0.02),  # the second score by its own size
        ([[10.0, 20.0]], 0.001),  # never more than by the largest
        ([[10.0, 0.001]], 0.05),  # never less than by the answer itself
        ([[10.0, np.inf]], 0.001),
        ([[[10.0]], [[0.5]]], 0.02),  # other axes, the same answers
        ([[1.0, 2.0, 3.0]], 0.001),  # not of these answers
    ],
)
def test_scores_are_compared_by_their_own_size(own: list[Any] | None, expected: float) -> None:
    scale = Scale(own=None if own is None else np.array(own))
    assert difference(np.array([[10.0, 0.21]]), np.array([[10.0, 0.2]]), scale) == pytest.approx(expected)


def test_a_batch_of_scores_is_compared_by_the_size_of_one_image() -> None:
    scale, want = Scale(own=np.array([[10.0, 0.1]])), np.array([[10.0, 0.0], [-10.0, 0.0], [1.0, 0.0]])
    wrong = want.copy()
    wrong[2, 1] = 0.01
    assert difference(wrong, want, scale) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(5))
def test_what_saturates_is_not_compared_by_its_own_size(seed: int) -> None:
    """The best class's log-probability is 0 but for the rounding of sums as large as the others."""
    model = law.model(
        "c = Conv (x, k)  f = Flatten (c)  d = MatMul (f, w)  g = Mul (d, h)  m = ReduceMax <axes = [1]> (g)  "
        "l = Sub (g, m)  e = Exp (l)  s = ReduceSum (e, one)  t = Log (s)  y = Sub (l, t)",
        image="float[N,3,5,6] x", k=(4, 3, 2, 2), w=(80, 5), h=30.0, one=[1],
    )  # fmt: skip
    assert onnx_fcn.convert(model, seed=seed).report.validation.passed


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "saturates",
    [
        *(
            "Sigmoid (g)",
            "Tanh (g)",
            "Softmax <axis = 1> (g)",
            "HardSigmoid (g)",
            "Sign (g)",
            "Erf (g)",
            "Softsign (g)",
        ),
        *("Greater (g, h)", "Less (g, h)"),
    ],
)
def test_a_fault_is_not_hidden_by_what_saturates_within_the_head(saturates: str, seed: int) -> None:
    """A weight that hardly ever turns 0 into 1, and so no answer of most images."""
    model = law.model(
        f"f = Flatten (x)  d = MatMul (f, w)  g = Mul (d, h)  s = {saturates}  "
        "t = Cast <to = 1> (s)  r = Abs (t)  y = MatMul (r, v)",
        image="float[N,3,4,5] x", w=(60, 5), h=300.0, v=(5, 4),
    )  # fmt: skip
    assert onnx_fcn.convert(model, seed=seed).report.validation.passed
    with pytest.raises(ValidationError, match="is not the same network"):
        onnx_fcn.validate(model, with_a_weight_zeroed(model), seed=seed)


@pytest.mark.parametrize("seed", [59, *range(7)])
def test_a_single_score_may_be_small_by_chance(seed: int) -> None:
    """It has no others beside it that tell its size: those for other images do."""
    original, converted = with_a_single_score()
    assert onnx_fcn.validate(original, converted, seed=seed).passed


@functools.cache
def with_a_single_score() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = law.model(
        "m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, v)", image="float[N,3,8,9] x", k=(16, 3, 3, 3), v=(672, 1)
    )
    return model, onnx_fcn.convert(model, validate=False).to_proto()


@pytest.mark.parametrize("seed", range(8))
def test_a_fault_behind_a_unit_that_is_mostly_off_is_found(seed: int) -> None:
    """It is on in a window of large values, or in the same one negated."""
    bias = np.array([-100, 0, 0, 0, 0], np.float32)
    model = law.model(
        "m = Conv (x, k)  f = Flatten (m)  d = Gemm (f, w, b)  r = Relu (d)  y = MatMul (r, v)",
        image="float[N,3,5,6] x", k=(3, 3, 2, 2), w=(60, 5), b=bias, v=(5, 4),
    )  # fmt: skip
    mutant = onnx_fcn.convert(model, seed=seed).to_proto()
    weight = next(t for t in mutant.graph.initializer if list(t.dims)[:2] == [4, 5])
    values = numpy_helper.to_array(weight).copy()
    values[:, 0] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ValidationError, match="is not the same network"):
        onnx_fcn.validate(model, mutant, seed=seed)


def test_a_wrong_weight_behind_a_large_bias_is_found() -> None:
    """It changes less than a thousandth of the answer, and far more than rounding does."""
    bias = np.array([1e4, 0, 0, 0, 0], np.float32)
    model = law.model("f = Flatten (x)  d = MatMul (f, w)  y = Add (d, b)", image="float[N,3,4,5] x", w=(60, 5), b=bias)
    with pytest.raises(ValidationError, match=r"is not the same network: .* differs by [^;]*$"):
        onnx_fcn.validate(model, with_a_weight_zeroed(model))


def test_a_difference_of_integers_may_be_the_processor() -> None:
    """Products of signed and unsigned bytes saturate where there is no VNNI."""
    model = law.model(
        "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  f = Flatten (d)  y = MatMul (f, w)",
        image="float[N,3,4,5] x", s=0.05, z=np.uint8(128), w=(60, 5),
    )  # fmt: skip
    with pytest.raises(ValidationError, match=r"if this processor has no VNNI, .*: quantise with reduce_range=True"):
        onnx_fcn.validate(model, with_a_weight_zeroed(model, count=3))


def with_a_weight_zeroed(model: onnx.ModelProto, *, count: int = 1) -> onnx.ModelProto:
    """A conversion that lost some weights of the first class."""
    converted = onnx_fcn.convert(model, validate=False).to_proto()
    kernel = next(t for t in converted.graph.initializer if list(t.dims) == [5, 3, 4, 5])
    values = numpy_helper.to_array(kernel).copy()
    values[0].flat[:count] = 0
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    return converted


@pytest.mark.parametrize(
    "trunk",
    [
        "n = Gather (s, three)  v = Cast <to = 1> (n)  g = Div (e, v)  r = Reshape (g, t)  a = Mul (x, r)",
        "b = Slice (s, start, one)  o = Concat <axis = 0> (b, ones)  n = Gather (s, three)  v = Cast <to = 1> (n)  "
        "g = Expand (v, o)  a = Add (x, g)",
    ],
    ids=["beside the image", "repeated for each image"],
)
def test_a_trunk_may_compute_with_sizes(trunk: str) -> None:
    """The reference reads those of a window too."""
    original = law.model(
        f"s = Shape (x)  {trunk}  c = Conv (a, k)  m = Relu (c)  f = Flatten (m)  y = MatMul (f, w)",
        image="float[N,6,8,7] x, float[N,6] e", outputs="float[N,5] y", three=3, t=[-1, 6, 1, 1], start=[0], one=[1],
        ones=[1, 1, 1], k=(3, 6, 3, 3), w=(90, 5),
    )  # fmt: skip
    validation = onnx_fcn.convert(original).report.validation
    assert validation is not None
    assert validation.worst("law") < 1e-5
