"""What a conversion costs beside a copy of the file, and beside tools that parse and serialise the weights.

Every tool reads and writes the same files, round by round, one after the other. The copy and our conversion reach the
disk (fsync) before they end; the others end when the system has taken their bytes.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import Record, Say
from benchmarks.files import ARCHITECTURES, FILES
from benchmarks.process import Failed, Limits, Usage, measure

__all__ = ["run"]

COPY = 'for f in "$0".*; do cp "$f" "$1${f#"$0"}" && sync "$1${f#"$0"}" || exit; done'
LOAD_SAVE = """
import sys, onnx
source, output, *data = sys.argv[1:]
onnx.save(onnx.load(source), output, save_as_external_data=bool(data), location=data[0] if data else None)
"""
SCRIPT = """
import sys, onnx, onnxscript.optimizer
source, output, *_ = sys.argv[1:]
onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), output)
"""
SLOW = 60.0  # seconds; what takes longer is run once


Command = Callable[[Path, Path, bool], list[str]]  # from (source, output, whether the weights are external)


@dataclass(frozen=True)
class Tool:
    """Something that reads one model and writes another.

    Attributes:
        name: as it is printed.
        command: what runs it.
        needs: the package that has to be installed.
        applies: to which files.
    """

    name: str
    command: Command
    needs: str = "onnx_fcn"
    applies: Callable[[str], bool] = lambda file: True


def onnx_fcn(*options: str) -> Command:
    return lambda source, output, _: [sys.executable, "-m", "onnx_fcn", str(source), str(output), "--quiet", *options]


def load_save(source: Path, output: Path, external: bool) -> list[str]:
    data = [output.with_suffix(".data").name] if external else []
    return [sys.executable, "-c", LOAD_SAVE, str(source), str(output), *data]


def optimizer(module: str) -> Command:
    """An optimizer, told to keep the weights where they were."""

    def command(source: Path, output: Path, external: bool) -> list[str]:
        options = ["--save-as-external-data"] if external else []
        return [sys.executable, "-m", module, str(source), str(output), *options]

    return command


TOOLS = (
    Tool(
        "cp + fsync",
        lambda source, output, _: ["sh", "-c", COPY, str(source.with_suffix("")), str(output.with_suffix(""))],
    ),
    Tool("onnx-fcn --no-validate", onnx_fcn("--no-validate")),
    Tool(
        "onnx-fcn --no-validate --link-data",
        onnx_fcn("--no-validate", "--link-data"),
        applies=lambda file: file == "external",
    ),
    Tool("onnx-fcn", onnx_fcn()),
    Tool("onnx.load + onnx.save", load_save),
    Tool("onnxslim", optimizer("onnxslim"), needs="onnxslim"),
    Tool("onnxsim", optimizer("onnxsim"), needs="onnxsim"),
    Tool(
        "onnxscript's optimizer",
        lambda source, output, _: [sys.executable, "-c", SCRIPT, str(source), str(output)],
        needs="onnxscript",
        applies=lambda file: file in ARCHITECTURES,
    ),
)


def run(folder: Path, files: Sequence[str], rounds: int, limits: Limits, say: Say) -> Iterator[Record]:
    """Measure every tool on every file: one record for each of these, and for an import."""
    package = importlib.util.find_spec("onnx_fcn")
    compileall.compile_dir(os.path.dirname(package.origin), quiet=1)  # as pip does when it installs
    yield from _imports(rounds, limits, say)
    for file in files:
        say(f"{file}: writing the model")
        source = FILES[file].write(folder / f"{file}.onnx")
        try:
            yield from _on_file(file, source, rounds, limits, say)
        finally:
            for path in folder.glob(f"{file}.*"):
                path.unlink()


def _imports(rounds: int, limits: Limits, say: Say) -> Iterator[Record]:
    imports = ("import onnx", "import onnx_fcn", "from onnx_fcn import convert")
    statements = {"python": "pass", **{statement: statement for statement in imports}}
    runs: dict[str, list[Usage]] = {name: [] for name in statements}
    for _ in range(3 * rounds):
        for name, statement in statements.items():
            say(name)
            runs[name].append(measure([sys.executable, "-c", statement], limits))
    for name, usages in runs.items():
        yield _record("imports", name, usages)


def _on_file(file: str, source: Path, rounds: int, limits: Limits, say: Say) -> Iterator[Record]:
    external = source.with_suffix(".data").exists()
    tools = [tool for tool in TOOLS if tool.applies(file)]
    runs: dict[str, list[Usage]] = {tool.name: [] for tool in tools}
    notes = {tool.name: "not installed" for tool in tools if importlib.util.find_spec(tool.needs) is None}
    for k in range(rounds):
        for tool in tools:
            done = runs[tool.name]
            if tool.name in notes or (done and done[0].seconds > SLOW):
                continue
            say(f"{file}: {tool.name}, round {k + 1} of {rounds}")
            try:
                done.append(measure(tool.command(source, source.with_name("out.onnx"), external), limits))
            except Failed as failure:
                notes[tool.name] = str(failure)
            finally:
                for path in source.parent.glob("out.*"):
                    path.unlink()
    for name, usages in runs.items():
        yield _record(file, name, usages, notes.get(name, ""))


def _record(file: str, tool: str, usages: Sequence[Usage], note: str = "") -> Record:
    if not usages:
        return {"file": file, "tool": tool, "note": note}
    return {
        "file": file,
        "tool": tool,
        "seconds": median(u.seconds for u in usages),
        "fastest": min(u.seconds for u in usages),
        "cpu": median(u.cpu for u in usages),
        "peak": max(u.peak for u in usages),
        "rounds": len(usages),
    }
