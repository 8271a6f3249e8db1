"""Runs of the command that end at a chosen stage: by a signal, or because the ground is pulled from under them.

    python interrupted.py FOLDER EVENT ARGUMENT…

Stages are the events that a run makes in its folder: files opened, renamed and removed, ranges copied, files put onto
the disk. For each stage the folder is made anew, the command runs in a child process, and at that stage EVENT happens:
a signal by its name, or `truncate`, which cuts the model short. One line of JSON says how each run ended, and the last
one ran undisturbed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_fcn import cli
from onnx_fcn.conversion.converting import convert
from onnx_fcn.model import staged

CUT = 5_000  # bytes that are left of a model


def main() -> None:
    folder, event, *arguments = sys.argv[1:]
    convert(f"{folder}/model.onnx", validate=False)  # imports what it needs; no threads are started
    work = Path(folder) / "work"
    code, stage = -1, 0
    while code != 0:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for given in Path(folder).iterdir():
            if given.is_file():
                shutil.copy(given, work / given.name)
        (work / "model.onnx").chmod(0o444)
        os.chdir(work)
        pid = os.fork()
        if pid == 0:
            os._exit(child(stage, event, arguments))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"stage": stage, "code": code, "files": files(work)}), flush=True)
        os.chdir(folder)
        stage += 1


def child(stage: int, event: str, arguments: list[str]) -> int:
    """Run the command; at this stage, the event happens."""
    left = stage
    inside = os.getcwd()

    def reached(name: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if name not in ("open", "os.rename", "os.remove", "os.chmod", "mmap.__new__", "copy", "fsync"):
            return
        if name == "open" and not os.path.abspath(
            os.fsdecode(args[0] if isinstance(args[0], str | bytes) else "/")
        ).startswith(inside):
            return
        left -= 1
        if left == -1:
            if event == "truncate":
                os.chmod("model.onnx", 0o644)
                os.truncate("model.onnx", CUT)
            else:
                os.kill(os.getpid(), signal.Signals[event])

    def announced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            reached(name, args)
            return function(*args)

        return call

    staged.COPIERS[:] = [announced("copy", copy) for copy in staged.COPIERS]
    os.fsync = announced("fsync", os.fsync)
    sys.argv = ["onnx-fcn", *arguments]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.addaudithook(reached)
    try:
        return cli.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)


def files(folder: Path) -> dict[str, str]:
    """The files of a folder in hexadecimals."""
    return {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    main()
