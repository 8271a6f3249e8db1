"""A page to explore the answers: one self-contained HTML file.

`page.html` is the template, with two placeholders: its title and its data, a JSON object whose arrays are base64.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from importlib.resources import files

import numpy as np

from onnx_fcn._types import Array
from onnx_fcn.images.image import resize
from onnx_fcn.running.dense_model import DenseResult, ranking
from onnx_fcn.viewing.drawing import colours, to_rgb

__all__ = ["page"]


#: Number of classes, the best ones, with a heat map; the best answers of a cell are over all classes.
CLASSES = 64

#: Answers shown for each cell.
TOP = 5

#: The longer side of the picture in the page, in pixels.
EXTENT = 1600

#: Pictures whose PNG has more bytes are stored as JPEG.
LOSSLESS = 500_000


def page(result: DenseResult, pixels: Array, name: str, scores: str, chosen: int | None = None) -> str:
    """The page for a picture, as HTML.

    Args:
        result: its answers.
        pixels: its pixels, (H, W, C) from 0 to 255.
        name: its name.
        scores: what the scores are, in words.
        chosen: the class shown first; by default the best one.
    """
    order = ranking([result])
    first = order[0] if chosen is None else chosen
    order = sorted(order) if len(order) <= CLASSES else [first, *(k for k in order if k != first)][:CLASSES]
    maps = result.probabilities[order]
    low, high = min(0.0, float(maps.min())), max(float(maps.max()), 1e-6)
    classes, best = result.top(TOP)
    answers, scale = result.grid.answers, result.scale
    field = [
        [float(f.start) / s, float(f.size) / s] if f.is_local else None
        for f, s in zip(answers.field, scale, strict=True)
    ]
    data = {
        "picture": _data_url(pixels),
        "name": name,
        "size": result.size,
        "grid": result.grid.shape,
        "offset": [float(o) / s for o, s in zip(answers.offset, scale)],
        "stride": [float(n) / s for n, s in zip(answers.stride, scale)],
        "window": [float(w) / s for w, s in zip(answers.window, scale)],
        "field": field if all(field) else None,
        "scores": scores,
        "range": [low, high],
        "labels": result.labels,
        "classes": order,
        "first": order.index(first),
        "maps": _base64(np.rint((maps - low) / (high - low) * 65535), "<u2"),
        "top": _base64(np.moveaxis(classes, 0, -1), "<u4"),
        "topScores": _base64(np.moveaxis(best, 0, -1), "<f4"),
        "colours": _base64(colours(), "u1"),
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")  # no tag ends the script
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    before, between, behind = template.replace("{{title}}", "{{data}}").split("{{data}}")
    return f"{before}{html.escape(name)}{between}{text}{behind}"


def _data_url(pixels: Array) -> str:
    """A picture as a data URL."""
    import PIL.Image

    share = EXTENT / max(pixels.shape[:2])
    if share < 1:
        pixels = resize(pixels, [max(math.floor(n * share), 1) for n in pixels.shape[:2]])
    image = PIL.Image.fromarray(np.rint(to_rgb(pixels)).clip(0, 255).astype(np.uint8))
    for kind in ("png", "jpeg"):
        file = io.BytesIO()
        image.save(file, kind, quality=90, optimize=True)
        if file.tell() < LOSSLESS:
            break
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _base64(values: Array, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()
