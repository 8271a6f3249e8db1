"""The images in a folder."""

from __future__ import annotations

import os

from onnx_fcn.errors import OptionError, reason_of

__all__ = ["files_of", "is_folder"]


#: Suffixes of files beside images that are none.
TEXTS = (".csv", ".db", ".geojson", ".html", ".ini", ".json", ".log", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml")

#: Files that a zarr store has in its folder.
STORE = ("zarr.json", ".zarray", ".zgroup")


def is_folder(path: str) -> bool:
    """Is it a folder of files, and not a zarr store, which is one image?"""
    return os.path.isdir(path) and not any(os.path.exists(os.path.join(path, name)) for name in STORE)


def files_of(path: str, *, images: bool) -> list[str]:
    """A file itself, or the files in a folder, by name, without those in folders below and hidden ones.

    Args:
        path: a file, the folder of a zarr store, or a folder of files.
        images: without files that cannot be images, by their suffix.

    Raises:
        OptionError: if it does not exist, or the folder has no file.
    """
    if not is_folder(path):
        if not os.path.exists(path):
            raise OptionError(f"'{path}' does not exist")
        return [path]
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise OptionError(f"'{path}' cannot be read: {reason_of(error)}") from None
    if images:
        names = [name for name in names if os.path.splitext(name)[1].lower() not in TEXTS]
    found = [file for name in names if not is_folder(file := os.path.join(path, name))]
    if not found:
        raise OptionError(f"the folder '{path}' contains no {'image' if images else 'labels'}")
    return found
