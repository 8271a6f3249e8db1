"""What tiles cost: time a cell of `apply` against one pass over the same image, and the peak of resident memory.

    python -m benchmarks.tiles CONVERTED.onnx [--size 4096] [--tile 2048]

Each runs in a process of its own, in turns; CPU time counts, since it hardly knows what else a machine does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx_fcn.tiles.converted import open_converted

import onnx_fcn

CHILD = """
import sys, time
import numpy as np, onnx_fcn
import onnxruntime
from onnx_fcn.tiles.application import apply
from onnx_fcn.tiles.converted import Pixels, open_converted
model, image, output, tile = sys.argv[1:]
begun = time.process_time()
if tile == "0":
    np.save(output, open_converted(model).runner()([np.load(image)], Pixels())[0])
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
    parser.add_argument("--tile", type=int, nargs="+", default=[2048])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    converted = open_converted(given.model)
    cells = np.prod(onnx_fcn.read_geometry(given.model).grid(*[given.size] * converted.rank).shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = np.random.default_rng(0).random((converted.channels, *[given.size] * converted.rank), np.float32)
        np.save(folder / "image.npy", pixels)
        del pixels
        results: dict[int, list[tuple[float, float]]] = {}
        for number in range(given.repeat):
            for tile in (0, *given.tile):
                output = folder / f"map{tile}-{number}.npy"
                results.setdefault(tile, []).append(measured(given.model, folder / "image.npy", output, tile))
        one = np.load(folder / "map0-0.npy")
        for tile, found in results.items():
            seconds, peak = min(s for s, _ in found), max(p for _, p in found)
            error = np.abs(np.load(folder / f"map{tile}-0.npy") - one).max() / np.abs(one).max()
            share = min(s for s, _ in results[0]) / seconds
            what = f"tiles of {tile}" if tile else "one pass"
            print(f"{what:14} {seconds / cells * 1e6:9.1f} µs a cell  {share:6.1%}  {peak:5.2f} GB  error {error:.1e}")


if __name__ == "__main__":
    main()
