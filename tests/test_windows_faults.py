"""Faults in what runs on windows are rejected: planted one by one, by name and by `mutations.py`."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import law
import numpy as np
import onnx
import pytest
import test_mutations
from law import Array
from mutations import copied, mutants
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from test_windows import CASES
from test_windows_forms import PADDED, attended, body_of, close, made_by, scan_in

import onnx_fcn
import onnx_fcn.dask
from onnx_fcn import FcnError, UnsupportedModel, ValidationError

# Proofs ---------------------------------------------------------------------------------------------------------------


def put(graph: GraphProto, node: NodeProto, operand: int, change: Callable[[Array], Array]) -> None:
    """Change a constant that a node reads."""
    tensor = next(t for t in graph.initializer if t.name == node.input[operand])
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))


def give(model: ModelProto, node: NodeProto, operand: int, value: Array) -> None:
    """Give a node a constant of its own."""
    name = f"given {len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[operand] = name


def set_attribute(node: NodeProto, name: str, value: object) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def weight_of_the_region(model: ModelProto) -> None:
    put(model.graph, made_by(body_of(model), "MatMul", 1), 1, lambda w: w.T.copy())


def weight_of_the_trunk(model: ModelProto) -> None:
    put(model.graph, made_by(model.graph, "Conv"), 1, lambda w: w[..., ::-1].copy())


def places_of_the_positions(model: ModelProto) -> None:
    put(model.graph, made_by(body_of(model), "Add", 1), 1, lambda e: np.roll(e, 1, 1))


def steps_of(model: ModelProto) -> NodeProto:
    """The cells between windows along each axis, times the cells between neighbours along it."""
    return made_by(model.graph, "Mul")


def rows_of(model: ModelProto) -> NodeProto:
    """The cells of a window along the first axis, times the cells of a row."""
    return next(n for n in model.graph.node if n.op_type == "Mul" and n.input[1] == columns_of(model).output[0])


def columns_of(model: ModelProto) -> NodeProto:
    """The cells of a row of the map."""
    return made_by(model.graph, "Slice")


def wrong_step(model: ModelProto) -> None:
    put(model.graph, steps_of(model), 1, lambda s: s - np.array([0, 1]))


def no_step(model: ModelProto) -> None:
    put(model.graph, steps_of(model), 1, np.ones_like)


def rows_backwards(model: ModelProto) -> None:
    put(model.graph, rows_of(model), 0, lambda c: c[::-1].copy())


def a_cell_further(model: ModelProto) -> None:
    """Where the last window has room for it."""
    put(model.graph, rows_of(model), 0, lambda c: np.minimum(c + 1, c.max()))


def rows_for_columns(model: ModelProto) -> None:
    """A row has as many cells as a column."""
    give(model, columns_of(model), 1, np.array([0]))
    give(model, columns_of(model), 2, np.array([1]))


def images_for_windows(model: ModelProto) -> None:
    """Of the windows that run together, and the images of the batch, each has a row of the other."""
    set_attribute(made_by(body_of(model), "Transpose"), "perm", [0, 2, 1, 3])


def one_window_in_each_step(model: ModelProto) -> None:
    """For all that run together with it."""
    body = body_of(model)
    first = made_by(body, "Add").input[0]
    body.node.insert(0, helper.make_node("Gather", [first, "zero"], ["one"], axis=0))
    body.node.insert(1, helper.make_node("Shape", [first], ["as many"]))
    body.node.insert(2, helper.make_node("Expand", ["one", "as many"], ["all"]))
    made_by(body, "Add").input[0] = "all"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))


def answers_that_only_fill(model: ModelProto) -> None:
    """The first ones are left out, not those of the windows that fill the last step."""
    rows = made_by(model.graph, "Slice", -1)
    rows.input[1] = made_by(model.graph, "Mod").output[0]
    give(model, rows, 2, np.array([np.iinfo(np.int64).max]))


def no_window_that_fills(model: ModelProto) -> None:
    """A step that is not full has other numbers."""
    made_by(model.graph, "Mod").op_type = "Mul"


def windows_in_another_order(model: ModelProto) -> None:
    set_attribute(scan_in(model), "scan_input_directions", [1])


def answers_in_another_order(model: ModelProto) -> None:
    set_attribute(scan_in(model), "scan_output_directions", [1])


def columns_first(model: ModelProto) -> None:
    """Each place is (column, row): of as many places, those that a square grid would have."""
    places = made_by(model.graph, "NonZero")
    made = helper.make_node("Gather", ["found", "turned"], list(places.output), axis=0)
    places.output[0] = "found"
    model.graph.node.insert([n.op_type for n in model.graph.node].index("NonZero") + 1, made)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "turned"))


def one_window_for_all(model: ModelProto) -> None:
    put(model.graph, steps_of(model), 1, np.zeros_like)


def fewer_windows(model: ModelProto) -> None:
    put(model.graph, made_by(model.graph, "Sub"), 1, lambda n: n + 1)


def answers_and_images_exchanged(model: ModelProto) -> None:
    set_attribute(made_by(model.graph, "Transpose", -1), "perm", [2, 1, 0])


def scores_over_images(model: ModelProto) -> None:
    set_attribute(made_by(body_of(model), "Softmax"), "axis", 1)


def no_softmax(model: ModelProto) -> None:
    made_by(body_of(model), "Softmax").op_type = "Identity"
    del made_by(body_of(model), "Identity").attribute[:]


def another_position(model: ModelProto) -> None:
    made_by(body_of(model), "Gather", -1).input[1] = "sixth"
    model.graph.initializer.append(numpy_helper.from_array(np.array(6), "sixth"))


def stride_in_the_metadata(model: ModelProto) -> None:
    entry = next(e for e in model.metadata_props if e.key == "onnx_fcn.output.y")
    entry.value = entry.value.replace('"stride": [4, 4]', '"stride": [4, 2]')


FAULTS = (weight_of_the_region, weight_of_the_trunk, places_of_the_positions, wrong_step, no_step, rows_backwards,
          a_cell_further, rows_for_columns, images_for_windows, one_window_in_each_step, answers_that_only_fill,
          no_window_that_fills, windows_in_another_order, answers_in_another_order, columns_first,
          one_window_for_all, fewer_windows, answers_and_images_exchanged, scores_over_images, no_softmax,
          another_position, stride_in_the_metadata)  # fmt: skip


@functools.cache
def apart() -> tuple[ModelProto, ModelProto]:
    """A network and what became of it, with windows of two cells of the map apart."""
    original = attended()
    return original, onnx_fcn.convert(original, windows=True, window_stride=4, validate=False).to_proto()


def test_a_converted_file_passes(tmp_path: Path) -> None:
    original, converted = apart()
    onnx.save(original, tmp_path / "model.onnx")
    onnx.save(converted, tmp_path / "out.onnx")
    checks = onnx_fcn.validate(tmp_path / "model.onnx", tmp_path / "out.onnx").checks
    assert {"native", "law", "crops", "grid", "metadata"} <= {c.kind for c in checks}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_rejected(fault: Callable[[ModelProto], None]) -> None:
    original, converted = apart()
    wrong = copied(converted)
    fault(wrong)
    assert wrong.SerializeToString() != converted.SerializeToString()
    with pytest.raises(ValidationError):
        onnx_fcn.validate(original, wrong)


@pytest.mark.parametrize("images", [1, 3, 7])
def test_answers_that_the_number_of_images_changes(images: int) -> None:
    """From one number on, for all images alike: the original runs on one window, which has no others beside it."""
    original = law.model(
        "c = Conv <strides = [4, 4], pads = [1, 1, 1, 1]> (x, k)  r = Reshape (c, flat)  "
        "t = Transpose <perm = [0, 2, 1]> (r)  u = Transpose <perm = [0, 2, 1]> (t)  s = MatMul (t, u)  "
        "p = Softmax <axis = -1> (s)  z = MatMul (p, t)  g = ReduceMean <axes = [1], keepdims = 0> (z)  "
        "h = MatMul (g, w)  n = Shape <start = 0, end = 1> (x)  m = Greater (n, images)  f = Cast <to = 1> (m)  "
        "e = Exp (f)  y = Mul (h, e)",
        image="float[N,3,16,16] x", opset=15, k=(6, 3, 6, 6), flat=[0, 6, -1], w=(6, 5), images=[images],
    )  # fmt: skip
    with pytest.raises((UnsupportedModel, ValidationError)):
        onnx_fcn.convert(original, windows=True)


def test_the_size_of_the_image_in_place_of_the_window_s() -> None:
    """Larger images show it alone."""
    original = CASES["a number of pixels that divides"].model()
    wrong = onnx_fcn.convert(original, windows=True).to_proto()
    body = body_of(wrong)
    cast = made_by(body, "Cast")
    side = next(n for n in body.node if cast.input[0] in n.output)
    side.input[0] = "size of the image"
    body.node.insert(0, helper.make_node("Shape", ["c"], ["size of the image"]))
    image = law.random("x", 1, 3, 9, 7).astype(np.float32)
    close(law.session(wrong)({"x": image})[0][..., 0, 0], law.session(original)({"x": image})[0])
    with pytest.raises(ValidationError, match="on its window"):
        onnx_fcn.validate(original, wrong)


def body_mutants(model: ModelProto) -> Iterator[tuple[str, ModelProto]]:
    """Faults within the windows."""
    for what, mutant in mutants(ModelProto(graph=body_of(model))):
        made = copied(model)
        body_of(made).CopyFrom(mutant.graph)
        yield f"in a window: {what}", made


TOO_SMALL = """
import numpy, onnxruntime, sys
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for size in ((8, 7), (9, 6), (7, 5), (4, 4)):
    try:
        session.run(None, {"x": numpy.zeros((1, 3, *size), numpy.float32)})
    except Exception:  # those of onnxruntime have no common base
        print("error")
"""


def test_an_image_that_is_too_small_is_an_error(tmp_path: Path) -> None:
    """Of onnxruntime, which must not end the process: its Scan may divide by a length of nothing."""
    onnx.save(apart()[1], tmp_path / "out.onnx")
    onnx_fcn.convert(attended(), tmp_path / "closer.onnx", windows=True)
    for name in ("out.onnx", "closer.onnx"):
        run = subprocess.run([sys.executable, "-c", TOO_SMALL, tmp_path / name], capture_output=True, text=True)
        assert (run.returncode, run.stdout) == (0, 4 * "error\n"), run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedded positions", "an LSTM along the positions", PADDED])
def test_every_fault_is_rejected(name: str) -> None:
    """Or is none: the answers to random images are those of the converted model."""
    original = CASES[name].model()
    conversion = onnx_fcn.convert(original, windows=True, window_stride=4)
    converted = conversion.to_proto()
    pictures = test_mutations.sampled(converted, conversion.report.window)
    expected = [test_mutations.answers(converted, picture) for picture in pictures]
    judged, rejected, missed = 0, 0, {}
    for what, mutant in (*mutants(converted), *body_mutants(converted)):
        judged += 1
        try:
            onnx_fcn.validate(original, mutant)
        except FcnError:
            rejected += 1
            continue
        got = [test_mutations.answers(mutant, picture) for picture in pictures]
        change = max(map(test_mutations.changes, expected, got))
        if change > test_mutations.ROUNDING:
            missed[what] = change
    assert judged > 30
    assert rejected > judged // 2
    assert missed == {}
