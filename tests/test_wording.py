"""What messages say is checked wherever one is tested, by `wording.faults`; here is what no test reaches."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import law
import numpy as np
import pytest
import wording

import onnx_fcn
from onnx_fcn import FcnError, ModelError, UnsupportedModel
from onnx_fcn.lifting.lifted import BATCH

PACKAGE = Path(onnx_fcn.__file__).parent

#: What people are told with.
ERRORS = {"ArgumentTypeError", "Diagnostic", "ModelError", "OptionError", "Unsupported", "ValidationError", "error"}


def messages() -> list[tuple[str, str]]:
    """(where, words) of every message in the code, and of every constant that may be a part of one."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _called(n) in ERRORS]
        hints = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]).isupper()]
        for top in (*calls, *hints):
            for node in ast.walk(top):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node.value))
    return found


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def test_messages_name_options_that_there_are() -> None:
    found = messages()
    assert len(found) > 300
    assert [(where, fault) for where, text in found for fault in wording.faults(text)] == []
    own = {"lifting", "rules", "walk"}
    foreign = wording.every_option() - wording.options()
    converting = [(where, text) for where, text in found if re.split("[/:]", where)[0] in own]
    assert [(where, option) for where, text in converting for option in foreign if option in text.split()] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"reshapes x to {3 * BATCH}x5", str(3 * BATCH)),
        ("the origins of it are Blocked", "origins"),
        ("docs/architecture.md says how", "docs/"),
        ("GEMM: Dimension mismatch", "GEMM"),
        ("try --faster", "--faster"),
        ("a coarser --output-stride", "--output-stride"),
        ("keep only one of the outputs", "one of the outputs"),
    ],
)
def test_faults_are_found(text: str, fault: str) -> None:
    assert any(fault in found for found in wording.faults(text, outputs=1, given=()))
    assert wording.faults("node 'origins' reads 'docs/a.md' (--input-size 224x224)", outputs=1, given=()) == []


BATCHES = {
    "a reshape that does not divide": ("r = Reshape (x, s)  y = MatMul (r, w)", {"s": [-1, 48], "w": (48, 5)}),
    "a shape of the batch and a number": (
        "p = Shape (x)  n = Slice (p, zero, one)  t = Concat <axis = 0> (n, five)  y = Reshape (x, t)",
        {"zero": [0], "one": [1], "five": [5]},
    ),
    "an expansion": (
        "p = Shape (x)  n = Slice (p, zero, one)  t = Concat <axis = 0> (n, n, n, five)  y = Expand (x, t)",
        {"zero": [0], "one": [1], "five": [5]},
    ),
    "a constant of the batch": (
        "p = Shape (x)  n = Slice (p, zero, one)  c = ConstantOfShape (n)  r = Reshape (c, s)  y = Add (x, r)",
        {"zero": [0], "one": [1], "s": [5, 3]},
    ),
    "a constant that cannot be": (
        "p = Shape (x)  n = Slice (p, zero, one)  c = ConstantOfShape (n)  m = MatMul (c, w)  y = Add (x, m)",
        {"zero": [0], "one": [1], "w": (4, 3)},
    ),
    "a split": ("t = Transpose <perm = [1, 0, 2, 3]> (x)  a, b = Split <axis = 1> (t, s)  y = Relu (a)", {"s": [3, 4]}),
    "a weight along the batch": ("t = Transpose <perm = [1, 2, 3, 0]> (x)  y = MatMul (t, w)", {"w": (4, 3)}),
    "a kernel along the batch": (
        't = Transpose <perm = [1, 2, 0, 3]> (x)  y = Conv <auto_pad = "VALID"> (t, k)',
        {"k": (5, 4, 3, 9)},
    ),
}


@pytest.mark.parametrize(("body", "given"), BATCHES.values(), ids=BATCHES.keys())
def test_the_batch_is_no_number(body: str, given: dict[str, object]) -> None:
    """Neither a refusal nor an explanation of any node shows which number stands for the batch."""
    model = law.model(body, outputs="float[A,B,C,D] y", **given)
    with pytest.raises(FcnError) as refused:
        onnx_fcn.convert(model, validate=False)
    assert wording.faults(str(refused.value), outputs=1, given=()) == []
    for node in model.graph.node:
        explanation = onnx_fcn.explain(model, node.output[0])
        assert wording.faults(str(explanation)) == []
        assert wording.batches(str(explanation.to_dict())) == []


def test_padding_behind_the_cut_of_one_output() -> None:
    """There is no other output to keep; the map before it can be taken."""
    body = (
        "c = Conv <pads = [1, 1, 1, 1]> (x, k)  f = Flatten (c)  d = MatMul (f, w)  g = Flatten (x)  e = MatMul (g, v)"
    )
    model = law.model(f"{body}  y = Add (d, e)", k=(2, 6, 3, 3), w=(24, 5), v=(72, 5))
    with pytest.raises(UnsupportedModel, match="it can only run on windows of 'x'") as refused:
        onnx_fcn.convert(law.behind_a_trunk(model), validate=False)
    assert wording.faults(str(refused.value), outputs=1, given=()) == []


def test_a_map_that_dilates_for_other_outputs() -> None:
    """Nobody asked for an output stride, so nothing is said about one."""
    body = """a = Conv <strides = [2, 2]> (x, k)  [up] r = Resize <mode = "nearest"> (a, , s)  f = Flatten (r)
        y = MatMul (f, w)  g = Flatten (x)  z = MatMul (g, v)"""
    scales = np.float32([1, 1, 2, 2])
    model = law.model(body, outputs="y, z", image="float[N,6,7,5] x", k=(5, 6, 3, 3), w=(120, 4), v=(210, 4), s=scales)
    with pytest.raises(UnsupportedModel, match="share one grid only if the map before it is dilated") as refused:
        onnx_fcn.convert(law.behind_a_trunk(model), validate=False)
    assert wording.faults(str(refused.value), outputs=2, given=()) == []


def test_metadata_that_do_not_fit_the_original() -> None:
    """Who compares has given no option: the metadata of the converted model did."""
    with_softmax = law.model("f = Flatten (x)  d = MatMul (f, w)  y = Softmax (d)", w=(72, 5))
    without = law.model("f = Flatten (x)  y = MatMul (f, w)", w=(72, 5))
    converted = onnx_fcn.convert(with_softmax, logits=True).to_proto()
    with pytest.raises(ModelError, match="name the options logits: True, which do not fit the original") as refused:
        onnx_fcn.validate(without, converted)
    assert wording.faults(str(refused.value), given=()) == []
