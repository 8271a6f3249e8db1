"""Labels opened for images: masks, or GeoJSON, COCO and CSV, whichever the files contain.

The codes of a mask are its numbers. Classes that have names get codes in the order of these names, or of COCO's
categories, over all files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.coco import draw_coco, is_coco
from onnx_fcn.fitting.codes import Labels, Note, listed
from onnx_fcn.fitting.drawings import Drawing, Vectors
from onnx_fcn.fitting.geojson import draw_geojson, features_of
from onnx_fcn.fitting.pairing import pair_files, pair_names
from onnx_fcn.fitting.points import draw_csv
from onnx_fcn.fitting.rasters import Raster
from onnx_fcn.fitting.reading import read_json
from onnx_fcn.images.folders import files_of, is_folder

__all__ = ["BOXES", "Labelled", "Labels", "open_labels"]


#: What a box labels: the pixel in its middle, or all its pixels.
BOXES = ("centre", "fill")

#: What a file draws, by the names of images, or under None if it names none; and its names of classes in order.
Drawn = tuple[Mapping[str | None, Drawing], Sequence[str]]


@dataclass(frozen=True)
class Labelled:
    """An image and its labels.

    Attributes:
        image: the file of the image.
        name: the image in messages.
        labels: its labels.
        number: its place among the images that have labels, which makes its random numbers its own.
    """

    image: str
    name: str
    labels: Labels
    number: int = 0


def open_labels(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    ignore: int | None = 255,
    boxes: str = "centre",
    rank: int = 2,
    level: int = 0,
    note: Note = lambda sentence: None,
) -> list[Labelled]:
    """The images that have labels, by name.

    Args:
        images: an image, or a folder of images.
        labels: a file of labels, or a folder of files with the names of the images.
        ignore: the number in masks that stands for no label.
        boxes: what a box labels, its ``centre`` or all of it (``fill``).
        rank: number of axes of the images.
        level: the level at which images are read; a mask is one of that level, or itself a pyramid. Coordinates are
            pixels of level 0, see `Labels.at_level`.
        note: is told what is left out.

    Raises:
        OptionError: if a file cannot be read, or is not valid; if labels do not belong to images.
    """
    if boxes not in BOXES:
        raise OptionError(f"a box labels its 'centre', or all its pixels ('fill'), and not '{boxes}'")
    pictures = files_of(os.fspath(images), images=True)
    files = _files_of_images(pictures, os.fspath(labels), note)
    masks = [file for file in files if _is_mask(file)]
    if masks and len(masks) < len(files):
        other = next(file for file in files if file not in masks)
        raise OptionError(f"'{masks[0]}' is a mask, which numbers classes, and '{other}' names them: give one kind")
    if masks:
        alone = {_only(own, file, "is the mask of one image"): file for file, own in files.items()}
        found: dict[str, Labels] = {
            image: Raster(file, image, rank, ignored=ignore, level=level) for image, file in alone.items()
        }
    else:
        found = _vectors(files, rank, boxes, level, note, by_folder=is_folder(os.fspath(labels)))
    if without := [image for image in pictures if image not in found]:
        have = "images have no labels and are" if len(without) > 1 else "image has no labels and is"
        note(f"{len(without)} {have} left out: {listed(without)}")
    return [
        Labelled(image, f"'{image}'", found[image], number)
        for number, image in enumerate(image for image in pictures if image in found)
    ]


def _files_of_images(pictures: Sequence[str], labels: str, note: Note) -> dict[str, list[str]]:
    """The images of each file of labels: one image each, if the files are those of a folder."""
    files = files_of(labels, images=False)
    if not is_folder(labels):
        return {files[0]: list(pictures)}
    known = {os.path.realpath(picture) for picture in pictures}
    files = [file for file in files if os.path.realpath(file) not in known]  # labels may be beside the images
    if not files:
        raise OptionError(f"the folder '{labels}' contains images, and no labels")
    return {file: [image] for image, file in pair_files(pictures, files, note)}


def _is_mask(path: str) -> bool:
    """Is it a picture, an array or a store, and neither JSON nor CSV?"""
    if os.path.splitext(path)[1].lower() in (".csv", ".geojson", ".json"):
        return False
    if os.path.isdir(path):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"[")
    except OSError:
        return True  # opening it says why it cannot be read


def _only(images: Sequence[str], file: str, what: str) -> str:
    """The image of a file. Raises OptionError if it is given for several."""
    if len(images) > 1:
        raise OptionError(f"'{file}' {what}, and there are {len(images)} images: give a folder with a file for each")
    return images[0]


def _vectors(
    files: Mapping[str, Sequence[str]], rank: int, boxes: str, level: int, note: Note, *, by_folder: bool
) -> dict[str, Labels]:
    """The shapes in JSON and CSV on each image; images without any are left out."""
    drawings: dict[str, tuple[str, Drawing]] = {}
    order: list[str] = []
    for file, images in files.items():
        drawn, names = _drawn(file, rank, boxes)
        order += names
        if None in drawn:
            drawings[_only(images, file, "is for one image, since it names none")] = file, drawn[None]
        elif by_folder:
            raise OptionError(f"'{file}' names its images itself: give this file as the labels, and not its folder")
        else:
            named = [name for name in drawn if name is not None]
            drawings |= {image: (file, drawn[name]) for image, name in pair_names(file, images, named, note)}
    _tell_unnamed(drawings.values(), note)
    drawings = {image: (file, drawing) for image, (file, drawing) in drawings.items() if drawing.shapes}
    if not drawings:
        raise OptionError(f"no pixel has a label: nothing in {listed(list(files))} has a class")
    used = {name for _, drawing in drawings.values() for name in drawing.used()}
    ordered = dict.fromkeys(order) if order else sorted(used, key=_rank_of(used))
    codes = {name: code for code, name in enumerate(name for name in ordered if name in used)}
    return {image: Vectors(file, image, drawing, codes, level) for image, (file, drawing) in drawings.items()}


def _drawn(path: str, rank: int, boxes: str) -> Drawn:
    """What a file of JSON or CSV draws; only COCO has an order of classes."""
    if path.lower().endswith(".csv"):
        return draw_csv(path, rank), ()
    content = read_json(path)
    if rank != 2:
        kind = "one axis" if rank == 1 else f"{rank} axes"
        raise OptionError(f"'{path}' draws in two axes, and the model takes images with {kind}: give points as CSV")
    if is_coco(content):
        return draw_coco(path, content, boxes)
    features = features_of(content)
    if features is None:
        raise OptionError(f"'{path}' is neither GeoJSON with features nor COCO with images and annotations")
    return {None: draw_geojson(path, features)}, ()


def _tell_unnamed(drawings: Iterable[tuple[str, Drawing]], note: Note) -> None:
    """Say how many features, or rows of CSV, have no class."""
    found = list(drawings)
    for is_csv, word, what in ((False, "feature", "class"), (True, "row", "label")):
        unnamed = [(f, d.unnamed) for f, d in found if d.unnamed and f.lower().endswith(".csv") is is_csv]
        if total := sum(number for _, number in unnamed):
            have = f"{word}s have no {what} and are" if total > 1 else f"{word} has no {what} and is"
            note(f"{total} {have} ignored, in {listed(list(dict(unnamed)))}")


def _rank_of(names: set[str]) -> Callable[[str], tuple[int, str]]:
    """The key by which names are sorted: as numbers, if all are numbers."""
    numbers = all(name.isdecimal() and len(name) < 20 for name in names)
    return lambda name: (int(name) if numbers else 0, name)
