"""From labelled images to samples: labelled pixels with the features that a network has for them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.candidates import Candidate
from onnx_fcn.fitting.choice import census, draw
from onnx_fcn.fitting.classes import Classes, classes_of
from onnx_fcn.fitting.features import Extractor
from onnx_fcn.fitting.labels import Labelled, open_labels
from onnx_fcn.fitting.network import Network
from onnx_fcn.fitting.search import Samples
from onnx_fcn.images.image import Image, open_image
from onnx_fcn.running.preprocess import Preprocessing, are_unit, for_training
from onnx_fcn.running.truth import numbers_of

__all__ = ["Data", "Progress", "Sampler"]


#: Called with what is being done, and how much of it is done: (words, done, of how many).
Progress = Callable[[str, int, int], None]

#: More classes than segmentation masks usually have: the numbers of ADE20K end at 150.
MANY = 200

#: Classes named in a sentence.
SHOWN = 12

#: Rows of an image that are read at once to see its range.
STRIP = 256

#: The most bytes of features that are computed. Choosing among them and training copy parts of them.
MOST_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Data:
    """Labelled images.

    Attributes:
        labelled: the images that have labels.
        classes: the classes in them.
        sizes: pixels of each image.
        censuses: labelled pixels of each code, for each image.
        level: level at which pyramids are read.
        notes: sentences about what is left out.
    """

    labelled: tuple[Labelled, ...]
    classes: Classes
    sizes: tuple[tuple[int, ...], ...]
    censuses: tuple[dict[int, int], ...]
    level: int
    notes: tuple[str, ...]

    @classmethod
    def open(
        cls,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        names: Sequence[str],
        say: Progress,
        *,
        rank: int,
        channels: int,
        level: int,
        ignore: int | None,
        boxes: str,
        trained: Data | None = None,
    ) -> Data:
        """The labelled images in these files.

        Args:
            images: an image, or a folder.
            labels: its labels, or a folder.
            names: of the classes; by default those of the labels.
            say: is told of the progress.
            rank: number of axes of the images.
            channels: number of channels that the network reads.
            level: level at which pyramids are read.
            ignore: as of `open_labels`.
            boxes: as of `open_labels`.
            trained: what a layer was trained on, if these images are to test it.

        Raises:
            OptionError: if they do not fit each other; if there are fewer than two classes, or one that is not trained.
        """
        notes: list[str] = []
        labelled = open_labels(images, labels, ignore=ignore, boxes=boxes, rank=rank, level=level, note=notes.append)
        sizes, censuses = [], []
        for done, one in enumerate(labelled):
            say("reading labels", done, len(labelled))
            size = _size(one.image, rank, channels, level)
            if level:  # drawings are in pixels of level 0
                at_level = one.labels.at_level(_size(one.image, rank, channels, 0), size)
                labelled[done] = one = replace(one, labels=at_level)
            notes += one.labels.check(size)
            sizes.append(size)
            censuses.append(census(one, size))
        if trained is None:
            classes = classes_of(censuses, labelled, names, notes)
        else:
            classes = _as_trained(trained, censuses, labelled)
            if not labelled[0].labels.codes and trained.labelled[0].labels.codes:
                notes.append(f"their masks are read as {_numbered(classes)}")
        if not labelled[0].labels.codes and len(classes) > MANY and not names:
            notes.append(
                f"{len(classes)} class numbers are many: the labels may be pictures, or exchanged with the images"
            )
        return cls(tuple(labelled), classes, tuple(sizes), tuple(censuses), level, tuple(notes))

    @property
    def counts(self) -> Array:
        """Labelled pixels of each class in all images."""
        return np.array([sum(c.get(code, 0) for c in self.censuses) for code in self.classes.codes], np.int64)

    def images_with(self, index: int) -> int:
        """The number of images with labels of a class."""
        return sum(bool(c.get(self.classes.codes[index])) for c in self.censuses)


def _numbered(classes: Classes) -> str:
    """The number of each class in masks: 0 = even, 1 = odd."""
    pairs = [f"{code} = {name}" for code, name in zip(classes.codes, classes.names)]
    return ", ".join(pairs[:SHOWN]) + (", …" if len(pairs) > SHOWN else "")


def _size(image: str, rank: int, channels: int, level: int) -> tuple[int, ...]:
    """The size of an image file at a level, as a network with these axes and channels reads it."""
    with contextlib.closing(open_image(image, rank, channels, level)) as opened:
        return opened.size


def _as_trained(trained: Data, censuses: Sequence[dict[int, int]], labelled: Sequence[Labelled]) -> Classes:
    """The trained classes, with the codes that they have in other labels.

    Classes that have names go by these. In masks, a code is that of the masks that were trained on, or the number that
    `segment --truth` reads for the class: `numbers_of`.

    Raises:
        OptionError: if there is a class that is not trained, or no label.
    """
    own, names = labelled[0].labels.codes, trained.classes.names
    from_masks = not trained.labelled[0].labels.codes
    numbers = trained.classes.codes if from_masks else [*numbers_of(names)]
    codes = {name: code for code, name in own.items()} if own else dict(zip(names, numbers))
    occurring = sorted({code for c in censuses for code, count in c.items() if count})
    known = {codes.get(name) for name in names}
    if unknown := [code for code in occurring if code not in known]:
        name = own.get(unknown[0], str(unknown[0]))
        raise OptionError(f"the held-out labels have a class '{name}', which is not trained")
    if not occurring:
        raise OptionError("no pixel of the held-out images has a label")
    absent = -2  # a code that no label has: -1 is no label
    return Classes(tuple(codes.get(name, absent - k) for k, name in enumerate(names)), names)


class Sampler:
    """Takes labelled pixels of images, and computes their features.

    Attributes:
        formula: how pixels become the network's input, once an image was read: about full scale for pictures.
        samples: the most pixels of each class and image.
    """

    def __init__(
        self,
        network: Network,
        candidates: Sequence[Candidate],
        preprocess: str | Preprocessing | None,
        samples: int,
        seed: int,
        tile: int | None,
        providers: Sequence[str],
    ) -> None:
        """Open a session.

        Raises:
            ModelError: if onnxruntime does not load the model.
            OptionError: if it has no such provider, or the network reads more than an image.
        """
        self._features = list({f.tensor: f for c in candidates for f in c.features}.values())
        self.samples = samples
        self._numbers = sum(f.numbers for f in self._features)
        self._extract = Extractor(network, self._features, tile, providers)
        self._preprocess, self._seed = preprocess, seed
        self.formula: Preprocessing | None = None
        self._is_unit: bool | None = None

    def limit(self, data: Data) -> str:
        """Take fewer pixels if their features would not fit into memory; a sentence if so."""

        def total(most: int) -> int:
            return 4 * self._numbers * sum(min(most, n) for c in data.censuses for n in c.values())

        wanted = self.samples
        while total(self.samples) > MOST_BYTES and self.samples > 1:
            self.samples = max(self.samples * 9 // 10, 1)
        if self.samples == wanted:
            return ""
        return f"only {self.samples} pixels of each class and image are taken, since more features would exceed 2 GB"

    def take(self, data: Data, say: Progress) -> Samples:
        """The samples of labelled images.

        Raises:
            OptionError: if an image cannot be read, or does not fit the network.
        """
        drawn = [draw(one, n, data.classes, self.samples, self._seed) for one, n in zip(data.labelled, data.sizes)]
        ends = np.cumsum([0, *(len(c.classes) for c in drawn)])
        features = {f.tensor: np.empty((ends[-1], f.numbers), np.float32) for f in self._features}
        network = self._extract.converted
        if self._is_unit is None:  # decided by what is trained on; held-out images are read in the same way
            self._is_unit = self._are_floats_unit(data)
        for k, (one, chosen) in enumerate(zip(data.labelled, drawn)):
            what = f"computing features of image {k + 1} of {len(data.labelled)}"
            with contextlib.closing(open_image(one.image, network.rank, network.channels, data.level)) as image:
                formula = self._formula_of(image)
                found = self._extract(image, formula, chosen.positions, functools.partial(say, what))
            for values, part in zip(features.values(), found):
                values[ends[k] : ends[k + 1]] = part
        count = len(data.classes)
        weights = [c.counts[c.classes] / np.bincount(c.classes, minlength=count)[c.classes] for c in drawn]
        return Samples(
            features,
            np.concatenate([c.classes for c in drawn]),
            np.repeat(np.arange(len(drawn)), np.diff(ends)),
            np.concatenate([c.positions for c in drawn]),
            np.concatenate(weights),
            count,
        )

    def beyond(self, chosen: Candidate, data: Data, taken: Samples) -> int:
        """The number of samples that are beyond the outermost cells of the finest map."""
        finest, places = chosen.features[0], [taken.positions[taken.images == k] for k in range(len(data.sizes))]
        return sum(self._extract.beyond(finest, size, at) for size, at in zip(data.sizes, places))

    def _are_floats_unit(self, data: Data) -> bool:
        """Are the floats of all images from 0 to 1, so that they are pictures?

        Raises:
            OptionError: if an image cannot be read.
        """
        network = self._extract.converted
        for one in data.labelled:
            with contextlib.closing(open_image(one.image, network.rank, network.channels, data.level)) as image:
                if image.dtype.kind == "f" and not all(map(are_unit, _strips(image))):
                    return False
        return True

    def _formula_of(self, image: Image) -> Preprocessing:
        """The formula for the numbers of an image as they are stored.

        Raises:
            OptionError: if it is another one than that of the images before.
        """
        network = self._extract.converted
        reads_integers = network.image_type.kind != "f"
        found = for_training(
            self._preprocess,
            image.dtype,
            image.white,
            network.rank,
            network.channels,
            reads_integers,
            bool(self._is_unit),
        )
        if self.formula not in (None, found):
            raise OptionError(
                f"{image.name} has other numbers than the images before it: some are pictures and some are not, or "
                "their full scales differ, so give a formula for pixels from 0 to 255 with --preprocess"
            )
        self.formula = found
        return network.preprocessing_for(found, image.dtype, image.white, image.name)


def _strips(image: Image) -> Iterator[Array]:
    """The pixels of an image, some rows at a time."""
    rest = tuple(slice(0, n) for n in image.size[1:])
    for start in range(0, image.size[0], STRIP):
        yield image.read((slice(start, min(start + STRIP, image.size[0])), *rest))
