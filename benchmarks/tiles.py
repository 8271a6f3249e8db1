"""What tiles cost: time a cell of `apply` against one pass over the same image, and the peak of resident memory.

    python -m benchmarks.tiles CONVERTED.onnx [--size 4096] [--tile 2048] [--free 4G]

Each runs in a process of its own, in turns; CPU time counts, since it hardly knows what else a machine does. Without
--tile it is the default one, for as much memory as is free or as --free says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import onnx_fcn
from onnx_fcn import memory
from onnx_fcn.tiles.choice import choose_tile
from onnx_fcn.tiles.tiled import open_tiled

CHILD = """
import sys, time
import numpy as np, onnx_fcn
import onnxruntime
from onnx_fcn.running.preprocess import Preprocessing
from onnx_fcn.tiles.application import apply
from onnx_fcn.tiles.tiled import open_tiled
model, image, output, tile = sys.argv[1:]
begun = time.process_time()
if tile == "0":
    np.save(output, open_tiled(model).runner(Preprocessing(1.0), arena=True)([np.load(image)])[0])
else:
    apply(model, image, output, tile=int(tile))
spent = time.process_time() - begun
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(spent, int(peak) / 2**20)
"""


def measured(model: str, image: Path, output: Path, tile: int) -> tuple[float, float]:
    """(CPU seconds, GB at the peak)."""
    command = [sys.executable, "-c", CHILD, model, str(image), str(output), str(tile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--tile", type=int, nargs="+")
    parser.add_argument("--free", type=memory.parse_bytes)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    tiled = open_tiled(given.model)
    network, size = tiled.network, [given.size] * tiled.network.rank
    cells = np.prod(onnx_fcn.read_geometry(given.model).grid(*size).shape)
    tiles = given.tile or [choose_tile(tiled, size, 1, given.free or memory.available())]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = np.random.default_rng(0).random((network.channels, *size), np.float32)
        np.save(folder / "image.npy", pixels)
        del pixels
        results: dict[int, list[tuple[float, float]]] = {}
        for number in range(given.repeat):
            for tile in (0, *tiles):
                output = folder / f"map{tile}-{number}.npy"
                results.setdefault(tile, []).append(measured(given.model, folder / "image.npy", output, tile))
        one = np.load(folder / "map0-0.npy")
        for tile, found in results.items():
            seconds, peak = min(s for s, _ in found), max(p for _, p in found)
            error = np.abs(np.load(folder / f"map{tile}-0.npy") - one).max() / np.abs(one).max()
            share = min(s for s, _ in results[0]) / seconds
            what = f"tiles of {tile}" if tile else "one pass"
            tiling = tiled.tiling(size, tile or given.size)
            counted = (tiled.activations(tiling.largest_crop.crop, 1) or 0) / 2**30
            what = f"{what:14} {tiling.overhead:+6.1%}  {counted:5.2f} GB counted"
            print(f"{what} {seconds / cells * 1e6:9.1f} µs a cell  {share:6.1%}  {peak:5.2f} GB  error {error:.1e}")


if __name__ == "__main__":
    main()
