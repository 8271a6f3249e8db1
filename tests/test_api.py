"""The public API: what is exported, what it takes and returns, and what importing it costs."""

from __future__ import annotations

import ast
import graphlib
import inspect
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_fcn
import onnx_fcn.rules
from onnx_fcn import (
    Conversion,
    FcnError,
    ModelError,
    OptionError,
    Report,
    UnsupportedModel,
    Validation,
    ValidationError,
)
from onnx_fcn.lifting.registry import operators
from onnx_fcn.model import operators as tables_of_operators

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "fixtures/digits_unpadded.onnx"


def answers(model: Path | bytes, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def test_everything_public_is_listed() -> None:
    """What a type checker sees, what is imported on use, and `__all__` are the same names."""
    tree = ast.parse(Path(onnx_fcn.__file__).read_text("utf-8"))
    checked = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {(n.module, a.name) for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == {(f"onnx_fcn.{module}", name) for name, module in onnx_fcn._MODULES.items()}
    assert {name for _, name in seen} | {"__version__"} == set(onnx_fcn.__all__)
    assert set(onnx_fcn.__all__) <= set(dir(onnx_fcn))
    for name in onnx_fcn.__all__:
        assert getattr(onnx_fcn, name) is not None
    with pytest.raises(AttributeError, match="module 'onnx_fcn' has no attribute 'covert'"):
        getattr(onnx_fcn, "covert")  # noqa: B009


def test_the_reference_has_everything_public() -> None:
    pages = re.findall(r"^::: onnx_fcn\.(.+)$", (ROOT / "docs/api.md").read_text("utf-8"), re.MULTILINE)
    homes = {f"{module}.{name}" for name, module in onnx_fcn._MODULES.items()}
    assert set(pages) == homes | {"dask.apply"}


@pytest.mark.parametrize(
    "function",
    [onnx_fcn.apply, onnx_fcn.convert, onnx_fcn.fit, onnx_fcn.inspect, onnx_fcn.replace_weights, onnx_fcn.validate],
)
def test_is_typed(function: Callable[..., object]) -> None:
    hints = typing.get_type_hints(function)
    assert set(hints) == {*inspect.signature(function).parameters, "return"}
    assert typing.Any not in hints.values()
    assert (ROOT / "onnx_fcn/py.typed").exists()


def test_convert_to_a_file(tmp_path: Path) -> None:
    said: list[str] = []
    conversion = onnx_fcn.convert(DIGITS, tmp_path / "out.onnx", progress=said.append)
    assert isinstance(conversion, Conversion)
    assert isinstance(conversion.report, Report)
    assert isinstance(conversion.report.validation, Validation)
    assert conversion.report.output == str(tmp_path / "out.onnx")
    assert conversion.report.output_bytes == (tmp_path / "out.onnx").stat().st_size
    assert said[0] == "open"
    page = np.load(ROOT / "fixtures/digits_page.npy")[None, None].astype(np.float32) / 255
    rows, columns = ((n - 28) // 4 + 1 for n in page.shape[2:])
    scores = answers(tmp_path / "out.onnx", page)
    assert scores.shape == (1, 11, rows, columns)
    np.testing.assert_allclose(scores[:, :, 5, 7], answers(DIGITS, page[:, :, 20:48, 28:56]), atol=1e-4)


def test_convert_in_memory(tmp_path: Path) -> None:
    conversion = onnx_fcn.convert(onnx.load(DIGITS))
    assert conversion.report.output is None
    assert conversion.report.validation is not None
    proto = conversion.to_proto()
    conversion.save(tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == proto
    assert answers(proto.SerializeToString(), np.zeros((1, 1, 32, 40), np.float32)).shape == (1, 11, 2, 4)


def test_a_source_is_left_as_it_was() -> None:
    model = onnx.load(DIGITS)
    before = model.SerializeToString()
    onnx_fcn.convert(model)
    assert model.SerializeToString() == before


def test_inspect_is_a_conversion_that_is_not_carried_out() -> None:
    inspected, converted = onnx_fcn.inspect(DIGITS), onnx_fcn.convert(DIGITS, validate=False).report
    inspected.seconds = converted.seconds = {}
    assert inspected == converted


def test_validate_a_pair(tmp_path: Path) -> None:
    """Also after another tool has optimised the converted model."""
    onnx_fcn.convert(DIGITS, tmp_path / "out.onnx", validate=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(tmp_path / "out.onnx", options, providers=["CPUExecutionProvider"])
    for converted in ("out.onnx", "optimized.onnx"):
        validation = onnx_fcn.validate(DIGITS, tmp_path / converted)
        assert isinstance(validation, Validation)
        assert validation.passed
        assert {c.kind for c in validation.checks} == {"native", "law", "crops", "grid", "metadata"}
        assert validation.worst("law") < 1e-5


def test_data_of_the_user(tmp_path: Path) -> None:
    page = np.load(ROOT / "fixtures/digits_page.npy")[None, None] / 255
    for data in (page, {"image": page}):
        validation = onnx_fcn.convert(DIGITS, data=data).report.validation
        assert validation is not None
        assert next(c for c in validation.checks if c.kind == "law").size == page.shape[2:]


def test_seed_chooses_the_images() -> None:
    def errors(seed: int) -> list[float]:
        validation = onnx_fcn.convert(DIGITS, seed=seed).report.validation
        assert validation is not None
        return [c.error for c in validation.checks]

    assert errors(1) == errors(1) != errors(2)


def test_exceptions_are_one_tree(tmp_path: Path) -> None:
    assert {ModelError, OptionError, UnsupportedModel, ValidationError} <= set(FcnError.__subclasses__())
    with pytest.raises(ModelError, match="does not exist"):
        onnx_fcn.convert(tmp_path / "none.onnx")
    with pytest.raises(OptionError, match="no input 'picture'"):
        onnx_fcn.inspect(DIGITS, input="picture")
    with pytest.raises(OptionError, match="is the model itself"):
        onnx_fcn.convert(DIGITS, DIGITS)
    with pytest.raises(UnsupportedModel) as refused:
        onnx_fcn.inspect(attention())
    (cause,) = refused.value.diagnostics
    assert (cause.code, cause.node, cause.op) == ("product-of-maps", "affinity", "MatMul")


def attention() -> onnx.ModelProto:
    return onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 13]>
        attention (float[N,3,8,8] x) => (float[N,64,64] y) {
        shape = Constant <value_ints = [0, 3, 64]> ()
        tokens = Reshape (x, shape)
        turned = Transpose <perm = [0, 2, 1]> (tokens)
        [affinity] y = MatMul (turned, tokens)
    }""")


def test_import_is_light() -> None:
    """Nothing heavy until it is used, and neither torch nor onnxruntime then, unless something is validated."""
    script = "import sys, onnx_fcn; print({'numpy', 'onnx'} & set(sys.modules)); onnx_fcn.convert; " + (
        "print({'torch', 'onnxruntime', 'rich', 'PIL', 'matplotlib'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "set()"]


def test_reading_a_geometry_needs_no_converter(tmp_path: Path) -> None:
    onnx_fcn.convert(DIGITS, tmp_path / "out.onnx", validate=False)
    script = "import sys, onnx_fcn; print(onnx_fcn.read_geometry(sys.argv[1]).grid(64, 64).shape); " + (
        "print({'onnx_graphsurgeon', 'onnx_fcn.walk.interpret', 'onnx_fcn.model.document'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path / "out.onnx")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(10, 10)", "set()"]


# The house ------------------------------------------------------------------------------------------------------------


CONVERTING = {"lifting", "rules", "walk", "checking", "reporting", "conversion"}
RUNNING = {"images", "running", "viewing", "tiles", "dask"}


def modules() -> dict[str, Path]:
    """The modules of the package, by their dotted names below it."""
    package = ROOT / "onnx_fcn"
    named = {".".join(f.relative_to(package).with_suffix("").parts): f for f in package.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in named.items() if "__" not in name[:2]}


def imported_by(file: Path, named: Iterable[str]) -> set[str]:
    """The modules of the package that one names in any import statement, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "onnx_fcn":
            below = str(node.module).partition(".")[2]
            found |= {m if (m := f"{below}.{a.name}".strip(".")) in named else below for a in node.names}
    return found - {""}


def test_every_operator_with_a_rule_was_considered_in_the_tables() -> None:
    """A saturating operator that is not in HIDING weakens the validation, and a product not in PRODUCTS is free."""
    tables = {name: set(getattr(tables_of_operators, name)) for name in tables_of_operators.__all__}
    ordinary = tables.pop("ORDINARY")
    ruled = {operator for _, operator in operators()}
    assert ordinary == ruled - set().union(*tables.values()), "see onnx_fcn/model/operators.py"


def test_imports_run_one_way() -> None:
    """Each folder imports only from those above it in docs/architecture.md, and no module imports itself by others."""
    listed = (ROOT / "docs/architecture.md").read_text("utf-8").partition("```rooms\n")[2].partition("```")[0]
    rooms = [line.split()[0] for line in listed.splitlines() if line.strip()]
    named = modules()
    edges = {name: imported_by(file, named) for name, file in named.items()}
    room_of = {name: name.partition(".")[0] for name in named}
    assert {r for r in room_of.values() if r != "_version"} == set(rooms)
    for name, others in edges.items():
        for other in others - {"_version"} if name != "_version" else ():
            assert rooms.index(room_of[other]) <= rooms.index(room_of[name]), f"{name} imports {other}"
            crossing = {room_of[name], room_of[other]}
            assert not (crossing & CONVERTING and crossing & RUNNING), f"{name} imports {other}"
    graphlib.TopologicalSorter(edges).prepare()  # raises CycleError


#: Where a rule or the walk reads an opset for what operators mean, which is not a spelling.
READ_OPSETS = {
    "rules.normalization.softmax": "an early softmax runs along all axes from its own on",
    "rules.quantization.quantized_softmax": "so does onnxruntime's, which says in an attribute whose it is",
    "rules.whole.softmax": "so does one between positions",
    "rules.resizing._is_early": "an early Resize does not say where cells lie, and has its scales first",
    "walk.search.explored": "which opsets are read at all",
}


def test_what_is_spelled_by_opset_is_spelled_in_one_file() -> None:
    """Nothing but `lifting.emitter` compares the opset in what is emitted or refused."""
    found = set()
    for name, file in modules().items():
        if name.partition(".")[0] not in {"lifting", "rules", "walk"} or name == "lifting.emitter":
            continue
        for function in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                compared = [ast.unparse(n) for n in ast.walk(function) if isinstance(n, ast.Compare)]
                if any(re.search(r"opset\b", text) for text in compared):
                    found.add(f"{name}.{function.name}")
    assert found == set(READ_OPSETS)


def test_what_others_import_is_listed() -> None:
    """A name that another module imports, or reads off the module, stands in its `__all__` where there is one."""
    named = modules()
    trees = {name: ast.parse(file.read_text("utf-8")) for name, file in named.items()}
    lists = {name: listed for name, tree in trees.items() if (listed := listed_in(tree)) is not None}
    wanted: set[tuple[str, str]] = set()
    for tree in trees.values():
        whole: dict[str, str] = {}  # modules that are imported as such, by the names that they get
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnx_fcn."):
                module = str(node.module).removeprefix("onnx_fcn.")
                for alias in node.names:
                    if f"{module}.{alias.name}" in named:
                        whole[alias.asname or alias.name] = f"{module}.{alias.name}"
                    else:
                        wanted.add((module, alias.name))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
                module = whole[node.value.id]
                wanted |= {(module, node.attr)} if node.attr in defined_in(trees[module]) else set()
    missing = {(module, name) for module, name in wanted if name not in lists.get(module, {name})}
    assert not missing
    for name, listed in lists.items():
        assert listed <= defined_in(trees[name]), f"{name} lists what it does not have"


def listed_in(tree: ast.Module) -> set[str] | None:
    """The names in a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def defined_in(tree: ast.Module) -> set[str]:
    """The names that a module has at its top level, imported ones included."""
    found: set[str] = set()
    for node in ast.walk(ast.Module([n for n in tree.body if not isinstance(n, ast.ClassDef | ast.FunctionDef)], [])):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name for a in node.names}
    return found | {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
