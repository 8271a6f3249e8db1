"""A digest that identifies a file, or a store of many files, and changes when any of them changes.

Only directories are read: the digest is taken over each file's relative path, size, modification time and inode change
time (ctime). No program can set the last, so replaced content is noticed even if its size and modification time were
kept. A million chunks take some seconds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

__all__ = ["stamp"]


def stamp(paths: Iterable[str | os.PathLike[str]]) -> str:
    """SHA-256 of the file system's data on some files, and on all files below some folders.

    Raises:
        OSError: if one of them is gone.
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
