"""One picture of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import Record
from benchmarks.files import FILES

__all__ = ["draw"]

OURS, OTHERS, LIMIT = "#1f6fb2", "#b8bec6", "#222222"


def draw(results: dict[str, list[Record]], path: Path) -> None:
    """Draw what was measured: conversion by wall time and memory, and dense inference beside its limit."""
    converted = [r for r in results.get("conversion", []) if r["file"] in FILES and "seconds" in r]
    files = list(dict.fromkeys(r["file"] for r in converted))
    rows = len(files) + bool(results.get("dense"))
    if not rows:
        return
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.6 * rows), squeeze=False, layout="constrained")
    for (left, right), file in zip(axes, files):
        records = [r for r in converted if r["file"] == file][::-1]
        _bars(left, records, [r["seconds"] for r in records], "wall time, s")
        _bars(right, records, [r["peak"] / 1e6 for r in records], "peak memory, MB")
        left.set_title(FILES[file].title, loc="left", fontsize=10)
        right.set_yticklabels([])
    if results.get("dense"):
        _dense(axes[-1], results["dense"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes: Axes, records: Sequence[Record], values: Sequence[float], label: str) -> None:
    colours = [OURS if r["tool"].startswith("onnx-fcn") else OTHERS for r in records]
    bars = axes.barh([r["tool"] for r in records], values, color=colours)
    axes.bar_label(bars, [f"{v:.2f}" if v < 10 else f"{v:,.0f}" for v in values], padding=3, fontsize=8)
    axes.set_xlabel(label, fontsize=8)
    axes.margins(x=0.15)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _dense(axes: Sequence[Axes], records: Sequence[Record]) -> None:
    left, right = axes
    names = [f"{r['network']}\n{r['size']}×{r['size']}" for r in records]
    batches = list(records[0]["speedup"])
    width = 0.8 / len(batches)
    shades = plt.get_cmap("Blues")
    for k, batch in enumerate(batches):
        at = [i + (k - (len(batches) - 1) / 2) * width for i in range(len(records))]
        heights = [r["speedup"][batch] for r in records]
        left.bar(at, heights, width, color=shades(0.4 + 0.5 * k / len(batches)), label=f"crops in batches of {batch}")
    for i, record in enumerate(records):
        left.hlines(record["limit"], i - 0.45, i + 0.45, color=LIMIT, label="" if i else "ratio of operations")
    left.set_title("One large image, times faster than its windows as crops", loc="left", fontsize=10)
    left.set_xticks(range(len(names)), names)
    left.legend(fontsize=7, frameon=False)
    right.bar(names, [r["gflops"] for r in records], color=OURS)
    right.set_title("GFLOP/s on the large image", loc="left", fontsize=10)
    for ax in axes:
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
