"""What tells a file, or a store of many files, from every other one, and from itself before a change.

Nothing is read but the directory: each file counts with its name below the path, its size, when its content was last
written and when the system last changed anything about it. The last of these nobody can set, so that content which was
replaced is noticed even where its size and time were kept. A million chunks take some seconds, and become one digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

__all__ = ["stamp"]


def stamp(paths: Iterable[str | os.PathLike[str]]) -> str:
    """SHA-256 of what the system knows of some files, and of all files below some folders.

    Raises:
        OSError: one of them is gone.
    """
    digest = hashlib.sha256()
    for path in paths:
        for name, file in sorted(_files(os.fspath(path))):
            state = os.stat(file)
            known = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n"
            digest.update(os.fsencode(name) + b"\0" + known.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _files(path: str) -> Iterator[tuple[str, str]]:
    """(name below the path, path) of each file; links to folders are followed, once."""
    if not os.path.isdir(path):
        yield "", path
        return
    seen, waiting = set(), [path]
    while waiting:
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    yield os.path.relpath(entry.path, path), entry.path
