"""What commands write beside their files: reports as JSON, text on stdout, and what they are doing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onnx_fcn._types import Progress
from onnx_fcn.errors import FcnError, reason_of
from onnx_fcn.files import check_other, drafted
from onnx_fcn.model.document import Document
from onnx_fcn.process import silence

__all__ = ["StdoutError", "json_file", "progress_on", "write_out"]


class StdoutError(Exception):
    """Stdout cannot be written."""


def write_out(write: Callable[[], object]) -> None:
    """Call a function that writes to stdout, and flush.

    A reader that closes the pipe early, as `head` does, is not an error.

    Raises:
        StdoutError: if stdout cannot be written.
    """
    try:
        write()
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        raise StdoutError(reason_of(error)) from None


@contextlib.contextmanager
def json_file(path: str | None, inputs: Iterable[str | None]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes the JSON file, completely or not at all. The path is checked before the work begins.

    Raises:
        OptionError: if the file cannot be written, or is one of the inputs or of the files with their weights.
    """
    if path is None:
        yield lambda _: None
        return
    if path == "-":
        yield lambda values: write_out(lambda: print(_to_json(values), end=""))
        return
    read = [p for p in inputs if p is not None]
    check_other(path, others=[*read, *(_files_of(read) if os.path.exists(path) else ())])
    with drafted(path) as draft:

        def finish(values: dict[str, Any]) -> None:
            draft.write(_to_json(values).encode())
            draft.commit()

        yield finish


def _files_of(inputs: Iterable[str]) -> Iterator[os.PathLike[str]]:
    """The files with the weights of the models among these inputs."""
    for path in inputs:
        with contextlib.suppress(FcnError):  # said when it is read
            yield from Document.open(path).files


@contextlib.contextmanager
def progress_on(quiet: bool) -> Iterator[Progress | None]:
    """A function that shows what is being done on a terminal; None without a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    import rich.console

    with rich.console.Console(stderr=True).status("") as status:
        yield lambda words: status.update(f"{words} …")


def _to_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
