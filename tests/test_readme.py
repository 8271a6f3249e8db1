"""What README.md and docs/report.md show is what happens: their commands are run, and their output is compared.

Times and file sizes differ between machines, and so do the digits of rounding errors; they are masked. To bring the
output in these pages up to date: `python tests/test_readme.py`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_fcn
from onnx_fcn.cli import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
#: Pages whose commands are run.
PAGES = (README, ROOT / "docs/report.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)

ATTENTION = """<ir_version: 8, opset_import: ["": 13]> attention (float[N,3,64,64] image) => (float[N,10] scores) {
    [stem] patches = Conv <kernel_shape = [8, 8], strides = [8, 8]> (image, kernel)
    [tokens] columns = Reshape (patches, shape)
    [queries] rows = Transpose <perm = [0, 2, 1]> (columns)
    [affinity] affinity = MatMul (rows, columns)
    [softmax] weights = Softmax (affinity)
    [mix] mixed = MatMul (weights, rows)
    [pool] pooled = ReduceMean <axes = [1], keepdims = 0> (mixed)
    [classify] scores = Gemm (pooled, head)
}"""


def blocks(language: str, page: Path = README) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text("utf-8")) if found == language]


@functools.cache
def trained() -> bytes:
    """The file that the README's `fit` writes."""
    fixtures = ROOT / "fixtures"
    clicks = fixtures / "digits_clicks.csv"
    return (
        onnx_fcn.fit(fixtures / "digits_unpadded.onnx", fixtures / "digits_page.npy", clicks)
        .to_proto()
        .SerializeToString()
    )


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[None]:
    """A folder in which the README's commands find their files."""
    (folder / "fixtures").symlink_to(ROOT / "fixtures")
    model, random = onnx.parser.parse_model(ATTENTION), np.random.default_rng(0)
    for name, value in {
        "kernel": random.normal(0, 0.05, (16, 3, 8, 8)).astype(np.float32),
        "shape": np.array([0, 16, 64]),
        "head": random.normal(0, 0.5, (16, 10)).astype(np.float32),
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, folder / "attention.onnx")
    onnx_fcn.convert(ROOT / "fixtures/digits_unpadded.onnx", folder / "out.onnx", validate=False)
    (folder / "parity.onnx").write_bytes(trained())
    (folder / "docs").mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def printed(command: str) -> str:
    """What a command prints, without its first words: `python -m onnx_fcn`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(shlex.split(command)[3:])
    return out.getvalue()


MASKS = {
    r"\d+\.\d+ (kB|MB)|\d+ bytes": "<size>",
    r"\d+\.\d\d s \(.*\)": "<times>",
    r"\d\.\de-0[5-9]|0\.0e\+00": "<rounding>",
    r"\d\.\de-01": "<error>",
    r"\d+\.\d% of the picture": "<share>",  # of classes whose borders are where two scores are equal
    r" {2,}": "  ",
}


def masked(text: str) -> str:
    for pattern, mask in MASKS.items():
        text = re.sub(pattern, mask, text)
    return text


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path) -> Iterator[None]:
    with workplace(tmp_path):
        yield


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks("console", page)],
    ids=lambda block: block.splitlines()[0].removeprefix("$ "),
)
def test_commands_print_what_the_pages_show(block: str) -> None:
    command, _, output = block.partition("\n")
    result = printed(command.removeprefix("$ "))
    if output.startswith("…\n"):
        result = result[result.index(output.splitlines()[1]) :]
    assert masked(result) == masked(output.removeprefix("…\n"))


def test_setting_up_ends_with_the_main_job_and_with_the_tests() -> None:
    main_job, tests = (block.strip().split(" && ") for block in blocks("bash"))
    assert [step[:2] for step in map(shlex.split, (main_job[0], tests[0]))] == [["python", "-m"]] * 2
    assert main_job[1:] == [
        ".venv/bin/pip install .",
        ".venv/bin/python -m onnx_fcn fixtures/digits_unpadded.onnx out.onnx",
    ]
    assert tests[1:] == [".venv/bin/pip install -e '.[test-full]'", ".venv/bin/python -m pytest"]
    assert main(shlex.split(main_job[-1])[3:]) == 0
    onnx.checker.check_model("out.onnx", full_check=True)


def test_the_page_is_read() -> None:
    script, output = blocks("python")[0], blocks("text")[0]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(script, {})
    assert out.getvalue() == output
    labels = [box["label"] for box in json.loads(Path("fixtures/digits_page.json").read_text("utf-8"))]
    assert output.splitlines()[-1] == "".join(map(str, labels))


def fed(model: onnx.ModelProto, size: int) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": np.zeros((1, 1, size, size), np.float32)})[0]


def freed(name: str) -> onnx.ModelProto:
    """A fixture that claims to take any size."""
    model = onnx.load(f"fixtures/{name}.onnx")
    for k, size in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[k].dim_param = size
    return model


def test_errors_are_those_that_onnxruntime_gives() -> None:
    for model, phrase in (
        (onnx.load("fixtures/digits_unpadded.onnx"), "Got invalid dimensions for input"),
        (freed("digits_unpadded"), "GEMM: Dimension mismatch"),
    ):
        assert phrase in README.read_text("utf-8")
        with pytest.raises(Exception, match=phrase):
            fed(model, 64)


def test_a_reshape_makes_a_batch_of_four() -> None:
    assert fed(freed("digits_padded"), 56).shape == (4, 11)


def test_the_rule_and_the_row_are_real() -> None:
    rule, row = blocks("python")[1:]
    assert rule in (ROOT / "onnx_fcn/rules/normalization.py").read_text("utf-8")
    assert row in (ROOT / "tests/test_rules.py").read_text("utf-8")


def test_exit_codes_are_those_of_the_help() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", README.read_text("utf-8"), re.MULTILINE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["--help"]) == 0
    assert [code for code, _ in rows] == ["0", "1", "2", "3", "130", "143"]
    assert all(f"  {code:<4} {meaning}" in out.getvalue() for code, meaning in rows)


def update() -> None:
    """Write the present output of each command into the pages."""

    def again(found: re.Match[str]) -> str:
        command, _, output = found[2].partition("\n")
        if found[1] != "console":
            return found[0]
        result, skipped = printed(command.removeprefix("$ ")), ""
        if output.startswith("…\n"):
            result, skipped = result[result.index(output.splitlines()[1]) :], "…\n"
        return f"```console\n{command}\n{skipped}{result}```\n"

    with tempfile.TemporaryDirectory() as folder, workplace(Path(folder)):
        for page in PAGES:
            page.write_text(BLOCK.sub(again, page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    update()
