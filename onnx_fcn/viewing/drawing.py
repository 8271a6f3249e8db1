"""Heat maps and class maps as matplotlib figures: the picture in grey, the answers in colour, a key beside them.

Heat maps use magma, which is perceptually uniform: equal steps in the score look equally large, in greyscale print too.
Classes use the colours of Okabe and Ito, which colour-blind people can distinguish.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import LUMA
from onnx_fcn.running.dense_model import Detection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "class_map", "colour_of", "colours", "encode", "heat_map", "to_rgb"]


COLOURS = "magma"

#: Okabe, Ito, "Color Universal Design", 2008, without black and in an order in which neighbours differ.
CLASSES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442")

#: Number of classes with their own line in the key of a class map; the smaller ones share one, and a colour.
LEGEND = 12
OTHERS = "#9a9a9a"

#: Letters of a name in the key, their size in points, and inches from line to line.
LETTERS, KEY, LINE = 24, 8.5, 0.19

#: How dark the darkest pixel is under a colour: a colour on black would be another one.
DARKEST = 0.35

#: Width of an outline, in pixels of the drawing.
LINES = 1.6

INK, PALE = "#1b1b1b", "#666666"
BOX = "#4de8ff"

#: Pictures with more pixels along the longer side are drawn at a fraction of their resolution.
DRAWN = 2000

#: Inches for the title, above each picture, and around everything.
TITLE, CAPTION, MARGIN = 0.28, 0.27, 0.15

#: Inches along the longer side of a picture.
EXTENT = 6.4
DPI = 160


@dataclass(frozen=True)
class Panel:
    """The heat map of one class: scores (H, W) at the pixels, and the windows to draw, the best first."""

    title: str
    scores: Array
    found: Sequence[Detection]


def heat_map(picture: Array, panels: Sequence[Panel], title: str, scores: str) -> Figure:
    """The picture under the scores of one class, or of several side by side, which share a colour bar.

    `picture` is (H, W, 3) from `to_rgb`; `scores` is the label of the colour bar.
    """
    _require_matplotlib()
    columns = min(len(panels), 1 if len(panels) == 1 else 2 if len(panels) <= 4 else 3)
    rows = math.ceil(len(panels) / columns)
    figure, width, height = _figure(picture, columns, rows, title, side=0.95)
    low, peak = min(0.0, *(float(p.scores.min()) for p in panels)), max(float(p.scores.max()) for p in panels)
    peak = max(math.ceil(peak * 100) / 100, low + 0.01)
    step = _step(picture)
    grey = _grey(picture, step)
    for k, panel in enumerate(panels):
        axes = _axes(figure, k, columns, width, height)
        share = ((panel.scores[::step, ::step] - low) / (peak - low)).clip(0, 1)
        opacity = (0.4 + 0.4 * share)[..., None]
        blended = grey * (1 - opacity) + _apply_colours(share) * opacity
        axes.imshow(blended, interpolation="bilinear", extent=_extent(picture))
        for best, found in reversed(list(enumerate(panel.found))):
            _box(axes, found.box, (2.2 if best == 0 else 1.1) / min(columns, 2) ** 0.5)
        size = 10.0 if columns == 1 else 8.5
        caption = _shorten(panel.title, int((figure.get_size_inches()[0] if columns == 1 else width) * 120 / size))
        axes.set_title(caption, loc="left", fontsize=size, color=INK, pad=5, parse_math=False)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure_width, figure_height = figure.get_size_inches()
    span = min(height, 3.6)
    bottom = figure_height - TITLE - CAPTION - span
    place = ((figure_width - 0.85) / figure_width, bottom / figure_height, 0.14 / figure_width, span / figure_height)
    bar = figure.colorbar(ScalarMappable(Normalize(low, peak), COLOURS), cax=figure.add_axes(place))
    bar.set_label(scores, fontsize=8, color=PALE)
    bar.ax.tick_params(labelsize=8, colors=PALE, length=2)
    bar.outline.set_visible(False)
    return figure


def class_map(
    picture: Array,
    classes: Array,
    names: Sequence[str],
    title: str,
    background: int | None = None,
    *,
    contours: bool = False,
) -> Figure:
    """The picture under the best class at each pixel, (H, W), and a key of the classes by their share.

    A class has the same colour in every picture. `background` is left uncoloured; with `contours` the picture keeps
    its own colours, and classes are outlined.
    """
    _require_matplotlib()
    found, counts = np.unique(classes, return_counts=True)
    order = [int(k) for k in found[np.argsort(-counts, kind="stable")] if k != background]
    shares = dict(zip(found.tolist(), counts / classes.size))
    table = _class_colours(int(found[-1]) + 1, order)
    entries = [(table[i], _shorten(names[i], LETTERS), shares[i]) for i in order[:LEGEND]]
    if rest := order[LEGEND:]:
        entries.append((table[rest[0]], f"{len(rest)} others", sum(shares[i] for i in rest)))
    side = 1.05 + max(_width_of(name) for _, name, _ in entries) if entries else 0.0
    figure, width, height = _figure(picture, 1, 1, title, side, caption=0.05, least=LINE * len(entries))
    axes = _axes(figure, 0, 1, width, height, caption=0.05)
    step = _step(picture)
    thinned = classes[::step, ::step]
    if contours:
        axes.imshow(picture[::step, ::step] / 255, interpolation="antialiased", extent=_extent(picture))
        pixels = DPI * min(width / thinned.shape[1], height / thinned.shape[0])
        axes.imshow(_outlines(thinned, table, background, pixels), interpolation="antialiased", extent=_extent(picture))
    else:
        grey = _grey(picture, step)
        coloured = 0.4 * (DARKEST + (1 - DARKEST) * grey) + 0.6 * table[thinned]
        drawn = np.where((thinned == background)[..., None], grey, coloured)
        axes.imshow(drawn, interpolation="nearest", extent=_extent(picture))
    _key(figure, entries, MARGIN + width + 0.12)
    return figure


def colour_of(index: int) -> Array:
    """The colour of a class, (red, green, blue) from 0 to 1: it goes by the number, and begins anew after 14."""
    turn, place = divmod(index, len(CLASSES))
    colour: Array = np.array([int(CLASSES[place][k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return 0.5 + 0.5 * colour if turn % 2 else colour  # the second round is lighter


def _class_colours(count: int, order: Sequence[int]) -> Array:
    """The colours of classes, (count, 3): each its own by its index, in grey those that have no line in the key."""
    import matplotlib.colors

    table = np.array([colour_of(k) for k in range(count)])
    table[list(order[LEGEND:])] = matplotlib.colors.to_rgb(OTHERS)
    return table


def _outlines(classes: Array, table: Array, background: int | None, pixels: float) -> Array:
    """Lines along the insides of the classes' borders, with a dark edge: RGBA in uint8, finer than the drawing.

    `pixels` is the size of one in the drawing, (H, W) the best class at each.
    """
    factor = max(math.ceil(2 * pixels), 1)
    fine = classes.repeat(factor, 0).repeat(factor, 1)
    unit = factor / pixels  # one pixel of the drawing
    line, edge = _near_border(fine, LINES * unit), _near_border(fine, (LINES + 1) * unit)
    if background is not None:
        bare = fine == background
        line, edge = line & ~bare, np.where(bare, _near_border(fine, unit), edge)
    drawn = np.zeros((*fine.shape, 4), np.uint8)
    drawn[edge] = (0, 0, 0, 110)
    drawn[line, :3] = np.rint(table * 255).astype(np.uint8)[fine[line]]
    drawn[line, 3] = 255
    return drawn


def _near_border(classes: Array, radius: float) -> Array:
    """Is a pixel within a radius of one of another class? For areas wider than that: only the circle is looked at."""
    reach, (height, width) = max(round(radius), 1), classes.shape
    padded = np.pad(classes, reach, mode="edge")
    near = np.zeros(classes.shape, bool)
    angles = np.arange(16) * (math.pi / 8)
    for down, right in {(round(reach * math.sin(a)), round(reach * math.cos(a))) for a in angles}:
        top, left = reach + down, reach + right
        near |= padded[top : top + height, left : left + width] != classes
    return near


def _key(figure: Figure, entries: Sequence[tuple[Array, str, float]], left: float) -> None:
    """A line for each class, from the right of the picture to the margin: its colour, its name and its share."""
    from matplotlib.patches import Rectangle

    wide, high = figure.get_size_inches()
    for k, (colour, name, share) in enumerate(entries):
        middle = high - TITLE - 0.05 - LINE * (k + 0.5)
        place = (left / wide, (middle - 0.065) / high)
        figure.add_artist(Rectangle(place, 0.13 / wide, 0.13 / high, color=tuple(colour)))
        how: dict[str, Any] = {"va": "center_baseline", "fontsize": KEY, "parse_math": False}
        figure.text((left + 0.22) / wide, middle / high, name, color=INK, **how)
        figure.text((wide - MARGIN) / wide, middle / high, f"{share:.1%}", color=PALE, ha="right", **how)


def _width_of(text: str) -> float:
    """The width of a text in the key, in inches."""
    from matplotlib.figure import Figure

    with _any_glyphs():
        box = Figure(dpi=DPI).text(0, 0, text, fontsize=KEY, parse_math=False).get_window_extent()
    return float(box.width) / DPI


def _require_matplotlib() -> None:
    """Raises OptionError if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OptionError("figures require matplotlib, which is not installed: pip install 'onnx-fcn[view]'") from None


def to_rgb(pixels: Array) -> Array:
    """Pixels from 0 to 255 with any number of channels → (H, W, 3)."""
    if pixels.shape[-1] == 3:
        return pixels
    return np.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1)


def colours() -> Array:
    """The colour map: (256, 3) in uint8."""
    _require_matplotlib()
    table: Array = np.rint(_apply_colours(np.linspace(0, 1, 256)) * 255).astype(np.uint8)
    return table


def encode(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a png, jpg, webp, pdf or svg file."""
    file = io.BytesIO()
    with _any_glyphs():
        figure.savefig(
            file, format=kind, dpi=DPI, facecolor="white", metadata={"Date": None} if kind == "svg" else None
        )
    return file.getvalue()


@contextlib.contextmanager
def _any_glyphs() -> Iterator[None]:
    """No warnings about a label in a script that the font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def _apply_colours(share: Array) -> Array:
    """(...,) from 0 to 1 → (..., 3) from 0 to 1."""
    import matplotlib

    rgb: Array = matplotlib.colormaps[COLOURS](share)[..., :3]
    return rgb


def _figure(
    picture: Array, columns: int, rows: int, title: str, side: float, caption: float = CAPTION, least: float = 0
) -> tuple[Figure, float, float]:
    """A figure with room for a grid of pictures and a key beside it; width and height of each picture, in inches.

    `side` is the width of the key, `least` its height, and `caption` the height of the text above each picture.
    """
    from matplotlib.figure import Figure

    high, wide = picture.shape[:2]
    extent = EXTENT if columns == 1 else 2 * EXTENT / 3 if columns == 2 else EXTENT / 2
    width = max(extent * min(1, wide / high), 1.2 * extent / EXTENT)
    height = max(width * high / wide, 0.6) if wide >= high else extent
    size = (columns * (MARGIN + width) + side, TITLE + max(rows * (height + caption), least + caption) + MARGIN)
    figure = Figure(figsize=size)
    title = _shorten(title, int(size[0] * 12))
    figure.text(MARGIN / size[0], 1 - 0.1 / size[1], title, fontsize=9, color=PALE, va="top", parse_math=False)
    return figure, width, height


def _axes(figure: Figure, k: int, columns: int, width: float, height: float, caption: float = CAPTION) -> Axes:
    """The axes of the k-th picture in the grid, rows from the top."""
    figure_width, figure_height = figure.get_size_inches()
    row, column = divmod(k, columns)
    left, bottom = MARGIN + column * (width + MARGIN), figure_height - TITLE - (row + 1) * (height + caption)
    axes = figure.add_axes((left / figure_width, bottom / figure_height, width / figure_width, height / figure_height))
    axes.set_axis_off()
    return axes


def _box(axes: Axes, box: Sequence[float], line: float) -> None:
    """The outline of a window, legible on light and dark."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = (edge - 0.5 for edge in box)
    for colour, width in (("#000000", line + 1.4), (BOX, line)):
        axes.add_patch(
            Rectangle(
                (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width, clip_on=False
            )
        )


def _step(picture: Array) -> int:
    """The step at which the pixels of a large picture are drawn."""
    height, width = picture.shape[:2]
    return int(max(height // DRAWN, width // DRAWN, 1))


def _grey(picture: Array, step: int) -> Array:
    """(H, W, 3) from 0 to 255 → grey (H', W', 3) from 0 to 1."""
    return np.repeat((picture[::step, ::step] @ LUMA)[..., None], 3, axis=-1) / 255


def _extent(picture: Array) -> tuple[float, float, float, float]:
    """The extent of the picture in the axes: the centre of its first pixel is at 0."""
    height, width = picture.shape[:2]
    return (-0.5, width - 0.5, height - 0.5, -0.5)


def _shorten(name: str, characters: int) -> str:
    return name if len(name) <= characters else f"{name[: characters - 1]}…"
