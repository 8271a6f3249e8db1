"""The ranges within which activations are rounded to 8 bits: those that cost the least.

A range from the smallest value to the largest is wide for the sake of a few, and everything is rounded coarsely. Within
a narrower one most values are rounded more finely, and a few are cut off. For each tensor the range is chosen for which
both together have the least mean square over the images, as in Banner et al., "Post training 4-bit quantization of
convolutional networks" (2019), from a histogram.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.running.network import inference_session, lean_options, run_session

__all__ = ["cheapest_range", "ranges"]


#: Bins of a histogram.
BINS = 2048

#: The shares of both ends of a range that are tried.
SHARES = np.linspace(0.2, 1, 33)

#: Steps of 8 bits.
STEPS = 255

#: The most bytes of tensors that are looked at in one run, and those of one for each value of the image, until it is
#: known: 32 channels of the image's size for one of three channels.
MOST_BYTES, GUESS = 1 << 28, 43.0

Feeds = Mapping[str, Array]


def ranges(
    model: Path,
    feeds: Callable[[str], Iterable[Feeds]],
    size_of: Callable[[Feeds], Sequence[int]],
) -> dict[str, tuple[float, float]]:
    """For each tensor of floats that depends on the image, the (smallest, largest) value that is kept.

    Args:
        model: a file without subgraphs.
        feeds: gives what the model reads for each image, as often as it is called with what is being done.
        size_of: the size of that image, for messages.

    Raises:
        ModelError: if onnxruntime does not run the model.
        OptionError: if there is not enough memory.
    """
    tensors = _with_all_outputs(model, size_of)
    ends: dict[str, tuple[float, float]] = {}
    for name, values in tensors(feeds("measuring the ranges of activations")):
        low, high = ends.get(name, (0.0, 0.0))  # zero is a value in any case: padding
        ends[name] = min(low, float(values.min())), max(high, float(values.max()))
    counts = {name: np.zeros(BINS) for name, (low, high) in ends.items() if low < high < math.inf and low > -math.inf}
    for name, values in tensors(feeds("choosing the ranges of activations")):
        if name in counts:
            counts[name] += np.histogram(values, BINS, ends[name])[0]
    return {name: cheapest_range(found, *ends[name]) for name, found in counts.items()}


def cheapest_range(counts: Array, low: float, high: float) -> tuple[float, float]:
    """The range whose rounding and cutting off have the least sum of squares.

    Args:
        counts: number of values in each bin, (bins,).
        low: the lower end of the first bin, at most 0.
        high: the upper end of the last bin, at least 0.
    """
    middles = low + (np.arange(len(counts)) + 0.5) * (high - low) / len(counts)
    lows, highs = (end * (SHARES if end else SHARES[-1:]) for end in (low, high))
    cut_below = np.array([(counts * np.square(np.minimum(middles - a, 0))).sum() for a in lows])
    cut_above = np.array([(counts * np.square(np.maximum(middles - b, 0))).sum() for b in highs])
    left = np.array([counts[middles < a].sum() for a in lows])
    right = np.array([counts[middles > b].sum() for b in highs])
    steps = (highs[None] - lows[:, None]) / STEPS
    inside = np.maximum(counts.sum() - left[:, None] - right[None], 0)
    costs = cut_below[:, None] + cut_above[None] + inside * np.square(steps) / 12
    best = np.unravel_index(costs.argmin(), costs.shape)
    return float(lows[best[0]]), float(highs[best[1]])


def _with_all_outputs(
    model: Path, size_of: Callable[[Feeds], Sequence[int]]
) -> Callable[[Iterable[Feeds]], Iterator[tuple[str, Array]]]:
    """A function from inputs to (name, values) of every tensor of floats, as many at a time as fit."""
    document = Document.open(model)
    graph = document.proto.graph
    before = {output.name for output in graph.output}
    made = [name for node in graph.node for name in node.output if name and name not in before]
    document.commit(Edit(added_outputs=[ValueInfoProto(name=name) for name in made]))
    whole, folder = document.session_model()
    session = inference_session(whole, options=lean_options(folder))
    names = [o.name for o in session.get_outputs() if o.type in ("tensor(float)", "tensor(float16)")]
    sizes = dict.fromkeys(names, GUESS)

    def run(feeds: Iterable[Feeds]) -> Iterator[tuple[str, Array]]:
        for each in feeds:
            pixels = sum(value.size for value in each.values())
            for name, value in each.items():
                yield name, value
            for group in _groups(sizes, pixels):
                for name, value in zip(group, run_session(session, group, each, size_of(each))):
                    sizes[name] = value.nbytes / pixels
                    if value.size:
                        yield name, value

    return run


def _groups(sizes: Mapping[str, float], pixels: int) -> list[list[str]]:
    """Tensors that fit into memory together; `sizes` are in bytes for each value of the image."""
    groups: list[list[str]] = []
    total = math.inf
    for name, size in sizes.items():
        total += size * pixels
        if total > MOST_BYTES:
            groups.append([])
            total = size * pixels
        groups[-1].append(name)
    return groups
