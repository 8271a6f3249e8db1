"""Which labels belong to which image: files with equal names, or names in one file of labels."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.codes import Note, listed

__all__ = ["pair_files", "pair_names"]


def pair_files(images: Sequence[str], labels: Sequence[str], note: Note) -> list[tuple[str, str]]:
    """(image, labels) of the files with equal names up to the suffix, or, of the others, up to the first dot.

    Raises:
        OptionError: if two images, or two files of labels, have equal names; if no names are equal.
    """
    found: dict[str, str] = {}
    for key in (_stem, _first_word):
        for several, files in _equal(key, images, labels, found):
            if len(several) != 1 or len(files) != 1:
                raise OptionError(_ambiguous(several, files))
            found[several[0]] = files[0]
    if not found:
        image, file = (os.path.basename(names[0]) for names in (images, labels))
        raise OptionError(
            f"no labels have the name of an image: images are called such as '{image}', and labels such as '{file}'"
        )
    if left := _left(labels, found):
        note(
            f"{len(left)} {'files of labels have' if len(left) > 1 else 'file of labels has'} no image: {listed(left)}"
        )
    return [(image, found[image]) for image in images if image in found]


def pair_names(path: str, images: Sequence[str], names: Sequence[str], note: Note) -> list[tuple[str, str]]:
    """(image, name) of the images that are named in a file of labels, with or without folders and suffix.

    Raises:
        OptionError: if two images, or two names, are equal without their folders; if no image is named.
    """
    if not names:
        return []
    found: dict[str, str] = {}
    for key in (_base, _stem):
        for several, called in _equal(key, images, names, found):
            if len(several) != 1 or len(called) != 1:
                raise OptionError(_ambiguous(several, called))
            found[several[0]] = called[0]
    if not found:
        raise OptionError(f"'{path}' names images such as '{names[0]}', and there are others, such as '{images[0]}'")
    left = _left(names, found)
    by_stem = {_stem(image): image for image in found}
    for name in left:
        if again := by_stem.get(_base(name)):  # another spelling of the same image
            raise OptionError(_ambiguous([again], [found[again], name]))
    if left:
        note(f"{len(left)} {'images are' if len(left) > 1 else 'image is'} only in '{path}': {listed(left)}")
    return [(image, found[image]) for image in images if image in found]


def _equal(
    key: Callable[[str], str], images: Sequence[str], labels: Sequence[str], found: Mapping[str, str]
) -> list[tuple[list[str], list[str]]]:
    """(images, labels) of which a part of the name is equal, without those that were found already."""
    by_name: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for image in images:
        if image not in found:
            by_name[key(image)][0].append(image)
    for file in _left(labels, found):
        by_name[key(file)][1].append(file)
    return [(several, files) for several, files in by_name.values() if several and files]


def _left(labels: Sequence[str], found: Mapping[str, str]) -> list[str]:
    """The labels without an image."""
    taken = set(found.values())
    return [file for file in labels if file not in taken]


def _ambiguous(images: Sequence[str], labels: Sequence[str]) -> str:
    """The message for several images, or several labels, of one name."""
    several, of = (images, labels) if len(images) > 1 else (labels, images)
    return f"{listed(several)} have equal names, so it is not clear which of them belongs to {listed(of)}"


def _base(name: str) -> str:
    """a/b.ome.tif → b.ome.tif, also as Windows writes it, and as macOS does, which takes letters and accents apart."""
    return PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")).name


def _stem(name: str) -> str:
    """a/b.ome.tif → b.ome."""
    return PurePosixPath(_base(name)).stem


def _first_word(name: str) -> str:
    """a/b.ome.tif → b."""
    return _base(name).partition(".")[0]
