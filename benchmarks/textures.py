"""Mosaics of textures, with the exact truth: what a segmenter that is trained on some images knows of others.

Six images of scikit-image, all of them in its package, are made grey and equally bright, so that neither colour nor
brightness tells one from another. A mosaic has 16 regions around random points, each filled with a random piece of one
of them. Mosaics to train on are made of the left halves of the images, mosaics to test on of the right halves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

__all__ = ["NAMES", "SIZE", "Half", "mosaic", "write_mosaics"]

#: The names of the classes are those of the functions in skimage.data.
NAMES = ("brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field", "retina")

SIZE = 448  # of a mosaic, along both axes
POINTS = 4  # of the middles of regions, along both axes
JITTER = 0.35  # of their distance, to all sides
BRIGHTNESS, CONTRAST = 128, 40  # mean and standard deviation of every texture
INSIDE = {"retina": slice(255, 1155)}  # the black rim is none of its texture

Half = Literal["left", "right"]


@functools.cache
def texture(name: str, half: Half) -> np.ndarray:
    """Half of an image in grey: (height, width) from 0 to 255, of the same mean and deviation as all others."""
    import skimage.data

    image = np.asarray(getattr(skimage.data, name)(), np.float64)
    grey = image.mean(2) if image.ndim == 3 else image
    inside = INSIDE.get(name, slice(None))
    grey = grey[inside, inside]
    middle = grey.shape[1] // 2
    part = grey[:, :middle] if half == "left" else grey[:, middle:]
    even = (part - part.mean()) / part.std() * CONTRAST + BRIGHTNESS
    return np.clip(np.rint(even), 0, 255).astype(np.uint8)


def mosaic(half: Half, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One mosaic: the picture (SIZE, SIZE) and the class of each of its pixels."""
    step = SIZE / POINTS
    grid = (np.stack(np.meshgrid(range(POINTS), range(POINTS), indexing="ij"), -1).reshape(-1, 2) + 0.5) * step
    points = grid + random.uniform(-JITTER, JITTER, grid.shape) * step
    places = np.stack(np.meshgrid(range(SIZE), range(SIZE), indexing="ij"), -1)
    region = np.square(places[:, :, None] - points).sum(-1).argmin(-1)
    shares = np.resize(random.permutation(len(NAMES)), len(points))
    classes = random.permutation(shares)
    picture = np.empty((SIZE, SIZE), np.uint8)
    for number, index in enumerate(classes):
        rows, columns = np.nonzero(region == number)
        top, left, height, width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
        source = texture(NAMES[index], half)
        y, x = (random.integers(0, n - m + 1) for n, m in zip(source.shape, (height, width)))
        picture[rows, columns] = source[rows - top + y, columns - left + x]
    return picture, classes[region].astype(np.uint8)


def write_mosaics(folder: Path, half: Half, seed: int, count: int) -> tuple[Path, Path]:
    """Mosaics as PNG: a folder with pictures in colour, and one with masks of the same names."""
    from PIL import Image

    folders = folder / "images", folder / "labels"
    for each in folders:
        each.mkdir(parents=True)
    for number, (picture, classes) in enumerate(_mosaics(half, seed, count)):
        Image.fromarray(np.stack([picture] * 3, 2)).save(folders[0] / f"{number}.png")
        Image.fromarray(classes).save(folders[1] / f"{number}.png")
    return folders


def _mosaics(half: Half, seed: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng((seed, ("left", "right").index(half)))
    for _ in range(count):
        yield mosaic(half, random)
