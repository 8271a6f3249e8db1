"""Damaged and hostile models by the thousand: each is converted or refused, in bounded time and memory.

    PYTHONPATH=. python tests/support/fuzz.py 10000        # the cases 0 to 9,999 of damaged.py, with a tally
    PYTHONPATH=. python tests/support/fuzz.py --case 4711  # one of them, in this process
    PYTHONPATH=. python tests/support/fuzz.py 10000 --inputs   # those of reading.py, for the commands that read

Cases run in worker processes, so that a crash of the interpreter, a hang or a memory that is exhausted is seen, and
known by its number. A case passes when `convert` (with validation), `validate` and `read_geometry` return or raise an
`FcnError` of one line, within `SECONDS` and `MEMORY`, and no file but the output has changed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import math
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import damaged
import onnxruntime  # noqa: F401 — before the limit on memory, as its threads are
import reading
from onnx import ModelProto

import onnx_fcn
from onnx_fcn import FcnError, Geometry, OptionError, UnsupportedModel

SECONDS = 20  # of a processor's time for one case,
HANG = 120  # and of the clock, which whoever else computes shares
MEMORY = 3 << 30  # bytes of address space that a worker may take, its libraries and their threads' stacks among them


@dataclass(frozen=True)
class Outcome:
    """What became of one case: a class of errors or `converted`, or else `failed`, and how.

    Attributes:
        number: of the case.
        kind: ``converted``, the name of an `FcnError`, or ``FAILED``.
        seconds: of a processor's time that it took.
        what: the message or the fault, on one line.
    """

    number: int
    kind: str
    seconds: float
    what: str


def campaign(numbers: Sequence[int], workers: int = 1, *, inputs: bool = False) -> Iterator[Outcome]:
    """The outcomes of some cases, in any order: of models, or of inputs for the commands that read."""
    waiting = queue.SimpleQueue[Sequence[int]]()
    for k in range(0, len(numbers), 100):
        waiting.put(numbers[k : k + 100])
    found = queue.SimpleQueue[Outcome | None]()

    def work() -> None:
        try:
            while True:
                left = list(waiting.get_nowait())
                while left:
                    left = left[_worker(left, found, inputs) :]
        except queue.Empty:
            found.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for _ in threads:
        while (outcome := found.get()) is not None:
            yield outcome


def _worker(numbers: Sequence[int], found: queue.SimpleQueue[Outcome | None], inputs: bool) -> int:
    """Run cases in one process until it is done or dead; how many were dealt with."""
    command = [sys.executable, __file__, "--worker", *map(str, numbers), *["--inputs"] * inputs]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        done = 0
        for line in process.stdout:
            number, kind, seconds, what = line.rstrip("\n").split("\t")
            found.put(Outcome(int(number), kind, float(seconds), what))
            done += 1
        code = process.wait()
        if done < len(numbers):
            errors.seek(0)
            last = [line for line in errors.read().splitlines() if line.strip()][:12]
            what = f"the process ended with {code}: {' | '.join(last)}"
            found.put(Outcome(numbers[done], "FAILED", 0.0, what))
            return done + 1
    return done


def serve(numbers: Sequence[int], *, inputs: bool) -> None:
    """A worker: a line of tab-separated values for each case."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    judged = reading.judge if inputs else judge
    if inputs:
        reading.models(), reading.images()
    else:
        damaged.seeds()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    for number in numbers:
        faulthandler.dump_traceback_later(HANG, exit=True)
        start = time.process_time()
        kind, what = judged(number)
        seconds = time.process_time() - start
        faulthandler.cancel_dump_traceback_later()
        if seconds > SECONDS:
            kind, what = "FAILED", f"it took {seconds:.0f} s: {what}"
        print(number, kind, f"{seconds:.3f}", " ".join(what.split())[:1000], sep="\t", file=output, flush=True)


def judge(number: int) -> tuple[str, str]:
    """Run one case: (kind, what)."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        inside = folder / "inside"
        inside.mkdir()
        (folder / "outside").write_bytes(bytes(100_000))
        if number % 16 == 15:
            try:
                use(onnx_fcn.read_geometry(damaged.metadata(number)))
                verify(original(), damaged.metadata(number))
            except FcnError as error:
                return _one_line(error)
            return "converted", ""
        case = damaged.case(number)
        case.write(inside)
        before = state(folder)
        kind, what = _converted(inside / "model.onnx", inside / "out.onnx")
        if case.seed in ("plain", "converted"):
            files = (inside / "model.onnx", result()) if case.seed == "plain" else (original(), inside / "model.onnx")
            with contextlib.suppress(FcnError):
                verify(*files)
        after = state(folder)
        if kind == "converted":
            after = {name: s for name, s in after.items() if not name.startswith("inside/out.onnx")}
        if before != after:
            return "FAILED", f"{case}: files changed: {set(before) ^ set(after)}"
        return kind, what if kind != "FAILED" else f"{case}: {what}"
    except BaseException:
        return "FAILED", f"{'' if number % 16 == 15 else damaged.case(number)}: {traceback.format_exc()[-900:]}"
    finally:
        shutil.rmtree(folder)


def use(geometry: Geometry) -> None:
    """Ask a geometry whatever it can be asked; it may have no outputs and refuse sizes, and that is all."""
    for name, answers in geometry.outputs.items():
        size = [max(n, int(w)) for n, w in zip(answers.least, answers.window, strict=True)]
        size = [n if held is None else held for n, held in zip(size, answers.held or [None] * len(size), strict=True)]
        assert len(answers.fitted(*size)) == len(answers.padding) == len(answers.formulas())
        if max(size) < 10_000:
            grid = geometry.grid(*size, output=name)
            if math.prod(grid.shape) < 1_000_000:
                assert grid.boxes.shape == grid.fields.shape == (*grid.shape, 2 * len(size))
                assert grid.interior.shape == grid.shape
                grid.cell_at(*grid.pixel_of(*[0] * len(size)))
        assert answers.exactness in ("exact", "padded", "context")
    try:
        geometry.grid(*[300] * len(geometry.window))
    except OptionError:
        return


def original() -> ModelProto:
    """What `result` was made of."""
    return ModelProto.FromString(damaged.seeds()["plain"]["model.onnx"])


def result() -> ModelProto:
    """A converted model."""
    return ModelProto.FromString(damaged.seeds()["converted"]["model.onnx"])


def verify(source: Path | ModelProto, converted: Path | ModelProto) -> None:
    """Compare two files of which one is damaged: as good as the other, or refused in words that can be printed.

    Raises:
        FcnError: they are not.
        AssertionError: its words are none.
    """
    try:
        onnx_fcn.validate(source, converted)
    except FcnError as error:
        kind, what = _one_line(error)
        assert kind != "FAILED", what
        raise


def _converted(model: Path, output: Path) -> tuple[str, str]:
    with contextlib.suppress(FcnError):
        use(onnx_fcn.read_geometry(model))
    try:
        onnx_fcn.convert(model, output)
        use(onnx_fcn.read_geometry(output))
    except FcnError as error:
        return _one_line(error)
    return "converted", ""


def _one_line(error: Exception) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, UnsupportedModel):  # a line for each cause, and one of advice
        text = text.replace("\n  - ", " ").replace("\n--windows ", " --windows ")
    if "\n" in text or len(text) > 20_000 or not text.strip():
        return (
            "FAILED",
            f"{type(error).__name__} of {len(text.splitlines())} lines and {len(text)} letters: {text[:200]}",
        )
    return type(error).__name__, text


def state(folder: Path) -> dict[str, object]:
    """Every file below a folder: its content and when it was changed."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        directory = path.is_dir() and not path.is_symlink()
        found[str(path.relative_to(folder))] = (status.st_mode, None if directory else status.st_mtime_ns, content)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", nargs="?", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", type=int)
    parser.add_argument("--inputs", action="store_true")
    parser.add_argument("--worker", nargs="+", type=int)
    given = parser.parse_args()
    if given.worker:
        serve(given.worker, inputs=given.inputs)
        return 0
    if given.case is not None:
        print(*(reading.judge if given.inputs else judge)(given.case), sep="\n")
        return 0
    start = time.perf_counter()
    tally = collections.Counter[str]()
    slowest, failed = 0.0, 0
    for outcome in campaign(range(given.first, given.first + given.count), given.workers, inputs=given.inputs):
        tally[outcome.kind] += 1
        slowest = max(slowest, outcome.seconds)
        failed += outcome.kind == "FAILED"
        if outcome.kind in ("FAILED", "ValidationError") or outcome.seconds > SECONDS / 4:
            print(outcome.number, outcome.kind, f"{outcome.seconds:.1f} s", outcome.what, sep="\t", flush=True)
    print(dict(tally), f"slowest {slowest:.1f} s, {time.perf_counter() - start:.0f} s in all")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
