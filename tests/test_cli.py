"""The command line: what it prints, what it writes, and what it returns, also for whatever can be wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_fcn
import onnx_fcn.conversion.comparing
import onnx_fcn.conversion.converting
from onnx_fcn.cli import main
from onnx_fcn.reporting.report import Report

FIXTURES = Path(__file__).parent.parent / "fixtures"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in a folder with `model.onnx`, a converted `good.onnx`, and a file `old.onnx` of four bytes."""
    shutil.copy(FIXTURES / "digits_unpadded.onnx", tmp_path / "model.onnx")
    (tmp_path / "old.onnx").write_bytes(b"old\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        return Result(main(arguments), *capfd.readouterr())

    return run


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# What it does ---------------------------------------------------------------------------------------------------------


def test_converts(command: Command, tmp_path: Path) -> None:
    result = command("model.onnx", "out.onnx")
    assert result.code == 0
    assert result.err == ""
    assert "Conv 4×4, 20 → 64" in result.out
    assert "it is the same network" in result.out
    assert "\x1b" not in result.out
    assert set(files(tmp_path)) == {"model.onnx", "old.onnx", "folder", "out.onnx"}
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


def test_sizes_to_tell_the_cost_of(command: Command) -> None:
    result = command("model.onnx", "--sizes", "64", "50x63", "--json", "-")
    assert [(c["size"], c["answers"]) for c in json.loads(result.out)["costs"]] == [
        ([28, 28], [1, 1]), ([64, 64], [10, 10]), ([50, 63], [6, 9]),
    ]  # fmt: skip
    assert "; 50×63: 4.20 M for 6×9 answers, 26.2 M as crops" in command("model.onnx", "--sizes", "50x63").out
    assert "  50×63  6×9 " in command("model.onnx", "--sizes", "50x63", "-v").out
    assert "too small for an answer, whose window is 28×28" in command("model.onnx", "--sizes", "20").err


def test_explains_a_node(command: Command) -> None:
    result = command("model.onnx", "--explain", "/7/Gemm")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("node     Gemm '/7/Gemm'\npart     head: ")
    assert json.loads(command("model.onnx", "--explain", "/7/Gemm", "--json", "-").out)["becomes"] == "Conv 4×4"


def test_inspects_without_an_output(command: Command, tmp_path: Path) -> None:
    before = files(tmp_path)
    result = command("model.onnx")
    assert result.code == 0
    assert "Conv 4×4, 20 → 64" in result.out
    assert "Validation" not in result.out
    assert files(tmp_path) == before


def test_replaces_an_output(command: Command, tmp_path: Path) -> None:
    assert command("model.onnx", "old.onnx", "--no-validate").code == 0
    onnx.checker.check_model(str(tmp_path / "old.onnx"))


def test_says_when_nothing_was_compared(command: Command) -> None:
    assert "not compared with the original" in command("model.onnx", "out.onnx", "--no-validate").out


def test_quiet(command: Command) -> None:
    assert command("model.onnx", "out.onnx", "-q") == Result(0, "", "")


def test_verbose_shows_every_check(command: Command) -> None:
    out = command("model.onnx", "out.onnx", "-v").out
    assert "native: 'scores', batch 1" in out
    assert "native: 'scores', batch 6" in out
    short = command("model.onnx", "out.onnx").out
    for title in (
        "From an image to its answers", "What answers at every position", "What changed", "What a larger image costs",
        "Every check",
    ):  # fmt: skip
        assert (f"\n{title}\n" in out, title in short) == (True, False)
    assert command("--verify", "model.onnx", "out.onnx", "-v").out in out


def test_json_file(command: Command, tmp_path: Path) -> None:
    assert command("model.onnx", "out.onnx", "--json", "report.json").code == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["version"] == 1
    assert report["outputs"][0]["stride"] == [4, 4]
    assert report["validation"]["passed"] is True
    assert set(files(tmp_path)) == {"model.onnx", "old.onnx", "folder", "out.onnx", "report.json"}


def test_json_on_stdout_is_all_there_is(command: Command) -> None:
    result = command("model.onnx", "--json", "-")
    assert json.loads(result.out)["source"] == "model.onnx"
    assert result.err == ""


def test_dynamic_batch(command: Command, tmp_path: Path) -> None:
    model = onnx.load("model.onnx")
    for declared in (*model.graph.input, *model.graph.output):
        declared.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, "static.onnx")
    assert command("static.onnx", "kept.onnx", "--no-validate").code == 0
    assert command("static.onnx", "free.onnx", "--no-validate", "--dynamic-batch").code == 0
    batches = [onnx.load(f).graph.input[0].type.tensor_type.shape.dim[0] for f in ("kept.onnx", "free.onnx")]
    assert [(b.dim_value, b.dim_param) for b in batches] == [(1, ""), (0, "batch")]


def test_weights_go_where_they_are_told_to(command: Command, tmp_path: Path) -> None:
    onnx.save(onnx.load("model.onnx"), "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    for option, inside in (("--inline", True), ("--external-data", False), ("--link-data", False)):
        assert command("big.onnx", "out.onnx", "--no-validate", option, "-q") == Result(0, "", "")
        stored = onnx.load("out.onnx", load_external_data=False).graph.initializer
        places = {e.key: e.value for t in stored if t.name == "7.weight" for e in t.external_data}
        assert (places == {}) == inside
        assert (places.get("location") == "big.data") == (option == "--link-data")


def test_folded_head(command: Command, tmp_path: Path) -> None:
    for head in ("conv", "folded"):
        assert command("model.onnx", f"{head}.onnx", "--head", head, "-q") == Result(0, "", "")
    assert (tmp_path / "conv.onnx").read_bytes() != (tmp_path / "folded.onnx").read_bytes()


def test_input_size(command: Command) -> None:
    model = onnx.load("model.onnx")
    for k, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[k].dim_param = name
    onnx.save(model, "free.onnx")
    assert "28×28 pixels" in command("free.onnx", "--input-size", "28x28", "--input", "image").out
    assert "28×28 pixels" in command("free.onnx", "--input-size", "28×28").out
    assert "28×28 pixels" in command("free.onnx", "--input-size", "28").out


def test_data(command: Command) -> None:
    page = np.load(FIXTURES / "digits_page.npy")[None, None]
    np.save("page.npy", page)
    np.savez("crops.npz", image=page[:, :, :28, :28] / 255)  # of another type too
    result = command("model.onnx", "out.onnx", "--data", "page.npy")
    assert result.code == 0
    assert "{}×{}".format(*page.shape[2:]) in command("model.onnx", "out.onnx", "--data", "page.npy", "-v").out
    assert "given data" in command("model.onnx", "out.onnx", "--data", "crops.npz", "-v").out


def test_options_may_stand_between_the_files(command: Command) -> None:
    assert command("model.onnx", "-q", "--input-size", "28", "out.onnx") == Result(0, "", "")
    assert command("model.onnx", "--verify", "out.onnx", "-q") == Result(0, "", "")


def test_verify(command: Command, tmp_path: Path) -> None:
    assert command("model.onnx", "out.onnx").code == 0
    before = files(tmp_path)
    result = command("--verify", "model.onnx", "out.onnx", "--json", "-")
    assert result.code == 0
    assert json.loads(result.out)["validation"]["passed"] is True
    assert "it is the same network" in command("--verify", "model.onnx", "out.onnx").out
    assert files(tmp_path) == before


def test_verify_finds_what_differs(command: Command) -> None:
    assert command("model.onnx", "out.onnx").code == 0
    model = onnx.load("out.onnx")
    kernel = next(t for t in model.graph.initializer if t.name == "7.weight")
    mirrored = numpy_helper.to_array(kernel)[..., ::-1]
    kernel.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(mirrored), kernel.name))
    onnx.save(model, "wrong.onnx")
    result = command("--verify", "model.onnx", "wrong.onnx")
    assert result.code == 3
    assert result.out == ""
    assert result.err.startswith("error: the converted model is not the same network: ")
    assert "EXCEEDS" in command("--verify", "model.onnx", "wrong.onnx", "-v").err


def test_version(command: Command) -> None:
    assert command("--version") == Result(0, f"onnx-fcn {onnx_fcn.__version__}\n", "")


def test_help_tells_the_exit_codes(command: Command) -> None:
    out = command("--help").out
    for code in (0, 1, 2, 3, 130, 143):
        assert f"\n  {code:<3}  " in out


# Bad input: one clear sentence, its exit code, and every file as it was -----------------------------------------------


def truncated() -> None:
    Path("bad.onnx").write_bytes(Path("model.onnx").read_bytes()[:60_000])


def random_bytes() -> None:
    Path("bad.onnx").write_bytes(np.random.default_rng(0).bytes(5_000))


def unknown_operator() -> None:
    model = onnx.load("model.onnx")
    model.graph.node[0].op_type = "Konv"
    onnx.save(model, "bad.onnx")


def without_its_weights() -> None:
    onnx.save(onnx.load("model.onnx"), "bad.onnx", save_as_external_data=True, location="bad.data", size_threshold=0)
    Path("bad.data").unlink()


def without_a_size() -> None:
    """A network that fits any size, and does not say which it was made for."""
    text = """<ir_version: 8, opset_import: ["": 13]> any (float[N,3,h,w] image) => (float[N,3,1,1] y) {
        y = GlobalAveragePool (image) }"""
    onnx.save(onnx.parser.parse_model(text), "bad.onnx")


def attention() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> attention (float[N,3,8,8] image) => (float[N,64,64] y) {
        shape = Constant <value_ints = [0, 3, 64]> ()
        tokens = Reshape (image, shape)
        turned = Transpose <perm = [0, 2, 1]> (tokens)
        [affinity] y = MatMul (turned, tokens) }"""
    onnx.save(onnx.parser.parse_model(text), "bad.onnx")


def in_two() -> None:
    onnx.save(onnx.load("model.onnx"), "w.onnx", save_as_external_data=True, location="w.data", size_threshold=0)


def linked_to_weights() -> None:
    in_two()
    Path("a.onnx").symlink_to("w.data")


@dataclass(frozen=True)
class Bad:
    """What is wrong: the sentence that says so, the command line, its exit code, and what makes the file."""

    says: str
    arguments: str = "bad.onnx old.onnx"
    code: int = 1
    make: Callable[[], object] = lambda: None


def asked(options: str, says: str, make: Callable[[], object] = lambda: None) -> Bad:
    """Options that cannot be met, with a model that is as it should be."""
    return Bad(says, f"model.onnx old.onnx {options}", 2, make)


BAD = {
    "not there": Bad("'bad.onnx' does not exist"),
    "a directory": Bad("'folder' is a directory", "folder old.onnx"),
    "empty": Bad("'bad.onnx' is empty", make=lambda: Path("bad.onnx").touch()),
    "truncated": Bad("'bad.onnx' is not an ONNX model, or damaged: ", make=truncated),
    "random bytes": Bad("'bad.onnx' is not an ONNX model, or damaged", make=random_bytes),
    "text": Bad("'bad.onnx' is not an ONNX model", make=lambda: Path("bad.onnx").write_text("hello, world\n")),
    "a checkpoint": Bad("perhaps a PyTorch checkpoint", make=lambda: Path("bad.onnx").write_bytes(b"PK\3\4")),
    "rejected by the checker": Bad("No Op registered for Konv", make=unknown_operator),
    "external data missing": Bad("'bad.data', is missing", make=without_its_weights),
    "no native size": Bad("give it with --input-size", code=2, make=without_a_size),
    "positions times positions": Bad("MatMul 'affinity': multiplies positions with positions", make=attention),
    "output is the model": Bad("'model.onnx' is the model itself", "model.onnx model.onnx", 2),
    "output is a link to the model": Bad(
        "'a.onnx' is the model itself", "model.onnx a.onnx", 2, lambda: Path("a.onnx").symlink_to("model.onnx")
    ),
    "output folder missing": Bad("there is no directory", "model.onnx nowhere/out.onnx", 2),
    "output is a directory": Bad("folder': it is a directory", "model.onnx folder", 2),
    "no arguments": Bad("the following arguments are required: model", "", 2),
    "unknown option": asked("--fast", "unrecognized arguments: --fast"),
    "size of no pixels": asked("--input-size 0x28", "'0x28' is not a size in pixels"),
    "size of words": asked("--input-size big", "'big' is not a size in pixels"),
    "size of another rank": asked("--input-size 30x30x30", "--input-size 30×30×30 does not fit input 'image'"),
    "no such input": asked("--input picture", "no input 'picture': its inputs are 'image'"),
    "negative seed": asked("--seed=-1", "'-1' is not a whole number"),
    "no such node": Bad("did you mean '/7/Gemm'", "model.onnx --explain 7/Gemm", 2),
    "explain and convert": asked("--explain /7/Gemm", "takes neither an output nor options"),
    "cost of a size of words": asked("--sizes 64 big", "'big' is not a size in pixels"),
    "JSON folder missing": asked("--json nowhere/report.json", "cannot write 'nowhere/report.json'"),
    "JSON is a directory": asked("--json folder", "cannot write 'folder'"),
    "JSON is a device": asked("--json /dev/null", "cannot write '/dev/null'"),
    "JSON is the model": asked("--json model.onnx", "cannot write 'model.onnx': it is an input"),
    "JSON is the output": asked("--json old.onnx", "cannot write 'old.onnx': it is an input"),
    "verify one file": Bad("--verify compares two files", "model.onnx --verify", 2),
    "verify nothing": asked("--verify --no-validate", "contradict each other"),
    "verify and convert": asked("--verify --dynamic-batch", "--verify converts nothing"),
    "weights in two places": asked("--inline --link-data", "not allowed with argument --inline"),
    "weights without an output": Bad("storing the weights require an output", "model.onnx --inline", 2),
    "verify what is no model": Bad("'old.onnx' is not an ONNX model", "model.onnx old.onnx --verify"),
    "data without an output": Bad("--data requires an output", "model.onnx --data x.npy", 2),
    "data not to be used": asked("--data x.npy --no-validate", "contradict each other"),
    "data missing": asked("--data x.npy", "'x.npy' cannot be read"),
    "data of no numbers": asked(
        "--data x.npy",
        "'x.npy' is not an .npy or .npz file of numbers",
        lambda: Path("x.npy").write_bytes(b"PK\3\4 no archive"),
    ),
    "data of another shape": asked(
        "--data x.npy",
        "has shape (1, 28, 28), and the model takes (any, 1, ≥28, ≥28)",
        lambda: np.save("x.npy", np.zeros((1, 28, 28))),
    ),
    "data is the output": Bad(
        "cannot write 'x.npy': it is an input",
        "model.onnx x.npy --data x.npy",
        2,
        lambda: np.save("x.npy", np.zeros((1, 1, 28, 28), np.float32)),
    ),
    "output is the weights": Bad("cannot write 'w.data': the model's weights are in it", "w.onnx w.data", 2, in_two),
    "output is a link to the weights": Bad(
        "cannot write 'a.onnx': the model's weights are in it", "w.onnx a.onnx", 2, linked_to_weights
    ),
    "JSON is the weights": Bad("cannot write 'w.data': it is an input", "w.onnx --json w.data", 2, in_two),
    "a batch beyond counting": asked("--batch 99999999999999", "a batch is a number of images from 1 to 2147483647"),
    "a size beyond memory": asked("--fix-size 900000 --batch 1", "for maps, and "),
    "data of another type": asked(
        "--data x.npy",
        "is complex128, and the model takes float32",
        lambda: np.save("x.npy", np.zeros((1, 1, 28, 28), complex)),
    ),
    "data of another input": asked(
        "--data x.npz",
        "no input 'picture': its inputs are 'image'",
        lambda: np.savez("x.npz", picture=np.zeros((1, 1, 28, 28))),
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input(bad: Bad, command: Command, tmp_path: Path) -> None:
    bad.make()
    before = files(tmp_path)
    result = command(*bad.arguments.split())
    assert result.code == bad.code, result.err
    assert result.out == ""
    assert bad.says in result.err
    assert "error: " in result.err
    assert "Traceback" not in result.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("option", [(), ("--json", "locked/report.json")], ids=["output", "JSON"])
def test_no_permission(option: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("model.onnx", "out.onnx", "--no-validate").code == 0  # imports what it needs
    with unprivileged() as folder:
        monkeypatch.chdir(folder)
        result = command("model.onnx", "old.onnx" if option else "locked/out.onnx", "--no-validate", *option)
        assert Path("old.onnx").read_bytes() == b"old\n"
        assert list(Path("locked").iterdir()) == []
        monkeypatch.undo()
    assert result.code == 2
    assert result.err.startswith("error: cannot write ")
    assert "ermission denied" in result.err


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder with a `locked` one in it, for a process that is not, or no longer, the administrator's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy("model.onnx", folder)
        (folder / "old.onnx").write_bytes(b"old\n")
        (folder / "locked").mkdir(mode=0o555)
        administrator = os.geteuid() == 0
        if administrator:
            folder.chmod(0o777)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if administrator:
                os.seteuid(0)
            (folder / "locked").chmod(0o755)


def test_a_failed_validation_writes_nothing(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(tmp_path)
    passed = onnx_fcn.convert("model.onnx").report.validation
    assert passed is not None
    failed = replace(passed, checks=tuple(replace(c, error=0.5) for c in passed.checks))
    monkeypatch.setattr(onnx_fcn.conversion.comparing, "run_checks", lambda *_: failed)
    result = command("model.onnx", "old.onnx", "--json", "report.json")
    assert result.code == 3
    assert result.out == ""
    assert result.err == (
        "error: the converted model is not the same network: the answer at the native size of 'scores' at 28×28 "
        "differs by 0.5 (allowed 0.0002)\n"
    )
    assert files(tmp_path) == before


def test_interrupted(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = files(tmp_path)
    monkeypatch.setattr(onnx_fcn.conversion.comparing, "run_checks", interrupt)
    assert command("model.onnx", "old.onnx", "--json", "report.json") == Result(130, "", "")
    assert files(tmp_path) == before


def test_a_bug_of_ours_keeps_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Report:
        raise AssertionError("an invariant")

    monkeypatch.setattr(onnx_fcn.conversion.converting, "describe", broken)
    with pytest.raises(AssertionError, match="an invariant"):
        command("model.onnx")


# In a process of its own ----------------------------------------------------------------------------------------------

MODULE = [sys.executable, "-m", "onnx_fcn"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(FIXTURES.parent)}


def test_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run([*MODULE, tmp_path / "none.onnx"], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: '{tmp_path / 'none.onnx'}' does not exist\n"


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'onnxruntime', 'rich', 'torch', 'PIL', 'matplotlib'}"
    script = f"import atexit, sys, onnx_fcn.cli.convert; atexit.register(lambda: print({heavy} & set(sys.modules)))"
    script += "; onnx_fcn.cli.convert.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_warnings_of_dependencies_are_not_shown() -> None:
    warns = (
        "import sys, warnings, onnx_fcn.cli.convert as cli; cli._run = lambda _: warnings.warn('deep in a dependency')"
    )
    script = f"{warns}; sys.exit(cli.main(['model.onnx']))"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*MODULE, "digits_unpadded.onnx"], cwd=FIXTURES, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_pipe_without_unicode() -> None:
    ascii_only = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*MODULE, "digits_unpadded.onnx"], cwd=FIXTURES, env=ascii_only, capture_output=True)
    assert b"Conv 4?4, 20 ? 64" in done.stdout
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "NO_COLOR"])
def test_terminal(colour: bool) -> None:
    import pty

    environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "70", "NO_COLOR": "" if colour else "1"}
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [*MODULE, "digits_unpadded.onnx", "-v"], cwd=FIXTURES, env=environment, stdout=end, stderr=end
    ) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while block := os.read(terminal, 4096):
                shown += block
    os.close(terminal)
    assert process.returncode == 0
    assert " …" in shown.decode()  # the progress
    assert ("\x1b[36m" in shown.decode()) == colour  # labels
    table = shown.decode().partition("What answers at every position")[2].splitlines()[1:5]
    assert any("Conv 4×4" in line for line in table)
    assert all(len(re.sub(r"\x1b\[[\d;]*m", "", line)) <= 70 for line in table)


# Streams that are closed or full, and the first moments ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirected", "code", "says"),
    [
        (">&-", 0, ""),
        ("-q >&-", 0, ""),
        ("> /dev/full", 0, "warning: the report cannot be written: no space left on device\n"),
        ("--json - > /dev/full", 0, "warning: the report cannot be written: no space left on device\n"),
        ("> /dev/null <&-", 0, ""),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_streams_that_are_closed_or_full(redirected: str, code: int, says: str, tmp_path: Path) -> None:
    """The model is written, since only the report finds no room."""
    line = f"exec {' '.join(map(shlex.quote, MODULE))} {FIXTURES}/digits_unpadded.onnx out.onnx {redirected}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, says)
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("model.onnx > /dev/full", 2),
        ("none.onnx 2>&-", 1),
        ("none.onnx 2> /dev/full", 1),
        ("--version | true", 0),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_report_that_finds_no_room(line: str, code: int, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "digits_unpadded.onnx", tmp_path / "model.onnx")
    line = f"set -o pipefail; {' '.join(map(shlex.quote, MODULE))} {line}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr in ("", "error: the report cannot be written: no space left on device\n")


def test_memory_that_runs_out_is_a_sentence(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    before = files(tmp_path)
    monkeypatch.setattr(onnx_fcn.conversion.comparing, "run_checks", exhausted)
    says = "error: there is not enough memory: use a machine with more\n"
    assert command("model.onnx", "old.onnx") == Result(2, "", says)
    assert files(tmp_path) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("module", ["onnx_fcn", "numpy", "onnx_fcn.reporting.report", "onnxruntime"])
def test_interrupted_while_something_is_imported(number: int, code: int, module: str, tmp_path: Path) -> None:
    """Also where a library makes something else of it."""
    hook = f"""
import os, sys, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), {int(number)})
                for _ in range(1000): pass
            except KeyboardInterrupt as error:
                raise ImportError("of a library") from error
        return None
import runpy
sys.argv = ["onnx_fcn", "{FIXTURES}/digits_unpadded.onnx", "out.onnx"]
import onnx_fcn.__main__
sys.meta_path.insert(0, Finder())
for name in [n for n in sys.modules if n == "onnx_fcn.cli.convert"]: del sys.modules[name]
sys.exit(onnx_fcn.__main__.main())
"""
    done = subprocess.run([sys.executable, "-c", hook], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    if module == "onnx_fcn":  # imported by then
        assert done.returncode == 0
    else:
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [(["-m", "onnx_fcn"], 130), (["-m", "pipeline"], -signal.SIGINT), (["pipeline.py"], -signal.SIGINT)],
)
def test_interrupted_before_anything_is_imported(words: list[str], code: int) -> None:
    """The command ends at once from its first line on; a pipeline that imports the package is its own."""
    hook = f"""
import sys, os
sys.argv, sys.orig_argv = {words[:1]!r}, ["python", *{words!r}]
class Interrupts:
    def find_spec(name, path, target=None):
        if name == "onnx_fcn.model.version":
            os.kill(os.getpid(), {int(signal.SIGINT)})
            for _ in range(1000): pass
sys.meta_path.insert(0, Interrupts)
import onnx_fcn
"""
    done = subprocess.run([sys.executable, "-c", hook], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code
    assert bool(done.stderr) == (code != 130)


def test_a_file_that_appears_meanwhile_stays(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = onnx_fcn.conversion.comparing.run_checks

    def meanwhile(*arguments: Any) -> Any:
        for name in ("new.onnx", "new.json"):
            (tmp_path / name).write_text("precious")
        return checks(*arguments)

    monkeypatch.setattr(onnx_fcn.conversion.comparing, "run_checks", meanwhile)
    for words in (["model.onnx", "new.onnx"], ["model.onnx", "other.onnx", "--json", "new.json"]):
        for name in ("new.onnx", "new.json"):
            (tmp_path / name).unlink(missing_ok=True)
        result = command(*words)
        assert result.code == 2
        assert re.search(
            r"error: '.*new\.\w+' appeared meanwhile, and was left unchanged: move it away, or", result.err
        )
        assert (tmp_path / "new.onnx").read_text() == (tmp_path / "new.json").read_text() == "precious"
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".onnx_fcn")]
