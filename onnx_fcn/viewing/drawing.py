"""Heat maps and class maps as matplotlib figures: the picture in grey, the answers in colour, a key beside them.

Heat maps use magma, which is perceptually uniform: equal steps in the score look equally large, in greyscale print too.
Classes use the colours of Okabe and Ito, which colour-blind people can distinguish.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.errors import OptionError
from onnx_fcn.images.channels import LUMA
from onnx_fcn.running.dense_model import Detection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "class_map", "colours", "encode", "heat_map", "to_rgb"]


COLOURS = "magma"

#: Okabe, Ito, "Color Universal Design", 2008, without black and in an order in which neighbours differ.
CLASSES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442")

#: Number of classes with their own colour in a class map; the smaller ones share one.
LEGEND = 12
OTHERS = "#9a9a9a"

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


def class_map(picture: Array, classes: Array, names: Sequence[str], title: str, background: int | None) -> Figure:
    """The picture under the best class at each pixel, (H, W), and a legend; `background` is left uncoloured."""
    _require_matplotlib()
    import matplotlib.colors
    from matplotlib.patches import Patch

    found, counts = np.unique(classes, return_counts=True)
    order = [int(k) for k in found[np.argsort(-counts, kind="stable")] if k != background]
    palette = _palette(min(len(order), LEGEND))
    step = _step(picture)
    grey, thinned = _grey(picture, step), classes[::step, ::step]
    drawn = grey.copy()
    others = np.array(matplotlib.colors.to_rgb(OTHERS))
    for k, index in enumerate(order):
        where = thinned == index
        drawn[where] = 0.42 * grey[where] + 0.58 * (palette[k] if k < LEGEND else others)
    figure, width, height = _figure(picture, 1, 1, title, side=1.9)
    axes = _axes(figure, 0, 1, width, height)
    axes.imshow(drawn, interpolation="nearest", extent=_extent(picture))
    shares = dict(zip(found.tolist(), counts / classes.size))
    entries = [(tuple(palette[k]), f"{_shorten(names[i], 18)}  {shares[i]:.1%}") for k, i in enumerate(order[:LEGEND])]
    if rest := order[LEGEND:]:
        entries.append((tuple(others), f"{len(rest)} others  {sum(shares[i] for i in rest):.1%}"))
    if entries:
        figure_width, figure_height = figure.get_size_inches()
        legend = figure.legend(
            handles=[Patch(color=colour, label=str(k)) for k, (colour, _) in enumerate(entries)],
            loc="upper left",
            bbox_to_anchor=((MARGIN + width) / figure_width, (MARGIN + height + 0.08) / figure_height),
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
            handlelength=1.0,
            handleheight=1.0,
        )
        for text, (_, words) in zip(legend.get_texts(), entries):  # not as labels: a name may begin with _
            text.set_parse_math(False)
            text.set_text(words)
    return figure


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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a label in a script that the font lacks
        figure.savefig(
            file, format=kind, dpi=DPI, facecolor="white", metadata={"Date": None} if kind == "svg" else None
        )
    return file.getvalue()


def _apply_colours(share: Array) -> Array:
    """(...,) from 0 to 1 → (..., 3) from 0 to 1."""
    import matplotlib

    rgb: Array = matplotlib.colormaps[COLOURS](share)[..., :3]
    return rgb


def _palette(count: int) -> Array:
    """Colours of classes, (count, 3); the second round is lighter."""
    import matplotlib.colors

    first = np.array([matplotlib.colors.to_rgb(c) for c in CLASSES])
    palette: Array = np.concatenate([first, 0.5 + 0.5 * first])[:count]
    return palette


def _figure(picture: Array, columns: int, rows: int, title: str, side: float) -> tuple[Figure, float, float]:
    """A figure with room for a grid of pictures and a key beside it; width and height of each picture, in inches."""
    from matplotlib.figure import Figure

    high, wide = picture.shape[:2]
    extent = EXTENT if columns == 1 else 2 * EXTENT / 3 if columns == 2 else EXTENT / 2
    width = max(extent * min(1, wide / high), 1.2 * extent / EXTENT)
    height = max(width * high / wide, 0.6) if wide >= high else extent
    size = (columns * (MARGIN + width) + side, TITLE + rows * (height + CAPTION) + MARGIN)
    figure = Figure(figsize=size)
    title = _shorten(title, int(size[0] * 12))
    figure.text(MARGIN / size[0], 1 - 0.1 / size[1], title, fontsize=9, color=PALE, va="top", parse_math=False)
    return figure, width, height


def _axes(figure: Figure, k: int, columns: int, width: float, height: float) -> Axes:
    """The axes of the k-th picture in the grid, rows from the top."""
    figure_width, figure_height = figure.get_size_inches()
    row, column = divmod(k, columns)
    left, bottom = MARGIN + column * (width + MARGIN), figure_height - TITLE - (row + 1) * (height + CAPTION)
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
