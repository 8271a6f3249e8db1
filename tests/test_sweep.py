"""Every model of the ONNX backend suite: converted and verified, or refused, and then nothing is written.

The suite has a few models for each operator, at its corner cases: scalars, empty tensors, sequences, strings, no input
at all. Few of them are classifiers. That is the point: whatever comes in, what comes out is a verified network or an
`FcnError` in the user's words (`wording`), never another exception, a crash of the interpreter or a hang. So they are
converted in processes that may die.

Print the tally that docs/reliability.md shows: `PYTHONPATH=.:tests/support python tests/test_sweep.py`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnx
import pytest
import wording
from onnx.backend.test import loader

import onnx_fcn

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")

#: Seconds for one model. The light ones are whole networks: VGG-19 makes 570 MB of weights when it is run.
LIMITS = dict.fromkeys(KINDS, 60) | {"light": 120}

#: Parts of the large kinds.
SHARES = {"node": 4}

#: Exceptions by which a model may be refused. A `ValidationError` is none of them: it is a wrong conversion, if one
#: that was caught.
REFUSALS = frozenset({"UnsupportedModel", "ModelError", "OptionError"})


@dataclass(frozen=True)
class Outcome:
    """What became of a model: ``converted``, the name of an exception, ``crash`` or ``hang``; and what was said."""

    kind: str
    name: str
    result: str
    words: str = ""

    @property
    def is_allowed(self) -> bool:
        return self.result == "converted" or (self.result in REFUSALS and not wording.faults(self.words))


@functools.cache
def models(kind: str) -> list[tuple[str, bytes | Path]]:
    """(name, model) of each test, as bytes or as a file."""
    return list(_models(kind))


def _models(kind: str) -> Iterator[tuple[str, bytes | Path]]:
    if kind == "light":
        folder = Path(loader.__file__).parents[1] / "data/light"
        yield from ((path.stem, path) for path in sorted(folder.glob("*.onnx")))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite makes its data on the way, with overflows and divisions by zero
        cases = loader.load_model_tests(kind=kind)
    for case in cases:
        yield case.name, Path(case.model_dir, "model.onnx") if case.model is None else case.model.SerializeToString()


def work(connection: Connection) -> None:
    """Convert the models that come in, in a process of its own, and send what became of each."""
    warnings.simplefilter("error")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # onnxruntime's own words
    connection.send("ready")
    while (source := connection.recv()) is not None:
        with tempfile.TemporaryDirectory() as folder:
            connection.send(converted(source, Path(folder)))


def converted(source: bytes | Path, folder: Path) -> tuple[str, str]:
    """What becomes of one model, and what is said."""
    output = folder / "out.onnx"
    try:
        onnx_fcn.convert(onnx.load_from_string(source) if isinstance(source, bytes) else source, output)
        onnx.checker.check_model(output)
    except Exception as error:
        if left := os.listdir(folder):
            return "left behind", f"{left} after {error}"
        return type(error).__name__, str(error)
    return "converted", ""


class Worker:
    """A process that converts, and is replaced when it hangs or dies."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()

    def outcome(self, kind: str, name: str, source: bytes | Path) -> Outcome:
        """What becomes of one model."""
        self.connection.send(source)
        if not self.connection.poll(LIMITS[kind]):
            self.process.kill()
            return Outcome(kind, name, "hang", f"after {LIMITS[kind]} s")
        try:
            return Outcome(kind, name, *self.connection.recv())
        except EOFError:
            self.process.join()
            return Outcome(kind, name, "crash", f"exit code {self.process.exitcode}")


#: Workers that wait for more: they take seconds to start.
IDLE: queue.SimpleQueue[Worker] = queue.SimpleQueue()


def sweep_some(kind: str, some: Sequence[tuple[str, bytes | Path]]) -> list[Outcome]:
    """What becomes of some models, one after the other."""
    worker, outcomes = IDLE.get() if not IDLE.empty() else Worker(), []
    for name, source in some:
        outcomes.append(worker.outcome(kind, name, source))
        if outcomes[-1].result in ("hang", "crash"):
            worker = Worker()
    IDLE.put(worker)
    return outcomes


def sweep(kind: str, share: int = 0, of: int = 1) -> list[Outcome]:
    """What becomes of all models of one kind, or of every so-and-so-many-th."""
    everything, workers = models(kind)[share::of], os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda k: sweep_some(kind, everything[k::workers]), range(workers))
        return [outcome for some in found for outcome in some]


def shares() -> Iterator[Any]:
    """(kind, share) of all models: a test of some seconds each, which processes can divide among them."""
    for kind in KINDS:
        marks = [pytest.mark.slow] if kind == "light" else []
        yield from (pytest.param(kind, k, marks=marks) for k in range(SHARES.get(kind, 1)))


@pytest.mark.parametrize(("kind", "share"), list(shares()))
def test_converted_or_refused(kind: str, share: int) -> None:
    outcomes = sweep(kind, share, SHARES.get(kind, 1))
    assert outcomes
    assert [o for o in outcomes if not o.is_allowed] == []


def tally() -> None:
    """Print how many models of each kind were converted or refused, and everything that is neither."""
    columns = ("converted", *sorted(REFUSALS))
    print("| models |", *(f"{c} |" for c in ("all", *columns, "else")))
    print("|---" * (len(columns) + 3) + "|")
    outside = []
    for kind in KINDS:
        outcomes = sweep(kind)
        count = Counter(o.result for o in outcomes)
        others = [o for o in outcomes if not o.is_allowed]
        print(
            f"| {kind} | {len(outcomes)} |",
            *(f"{n} |" for n in (*(count[c] for c in columns), len(others))),
            flush=True,
        )
        outside += others
    for o in outside:
        print(f"{o.kind} {o.name}: {o.result}: {o.words[:300]}")


if __name__ == "__main__":
    tally()
