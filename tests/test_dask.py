"""Converted networks on dask arrays, in this process and on a cluster of two."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dask.array
import law
import numpy as np
import onnx
import pytest
from test_tiles import COLOURS, GATED, ROOT, assert_same, converted, noise, once

import onnx_fcn.dask
from onnx_fcn import OptionError, Preprocessing

CLUSTER = """
import os, sys
import dask.array, numpy
from dask.distributed import Client, LocalCluster
import onnx_fcn.dask

def processes(block):
    return numpy.full((1, 1, 1), os.getpid())

if __name__ == "__main__":
    model, image, answers = sys.argv[1:]
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        array = dask.array.from_array(numpy.load(image), chunks=(1, 64, 64))
        found = onnx_fcn.dask.apply(model, array, tile=40)
        where = found.map_blocks(processes, chunks=(1, 1, 1), dtype=int)
        values, pids = client.gather(client.compute([found, where]))
        numpy.save(answers, values)
        print(len(set(pids.ravel()) - {os.getpid()}))
"""


@pytest.mark.parametrize("chunks", [(1, 50, 37), (1, 203, 151)])
@pytest.mark.parametrize("name", ["digits_padded", "digits_unpadded"])
def test_tiles_are_one_pass(name: str, chunks: tuple[int, ...], tmp_path: Path) -> None:
    path, image = converted(tmp_path, onnx.load(ROOT / f"fixtures/{name}.onnx")), noise(1, 203, 151)
    answers = onnx_fcn.dask.apply(path, dask.array.from_array(image, chunks=chunks), tile=50)
    expected = once(path, image)
    assert (answers.shape, answers.dtype) == (expected.shape, expected.dtype)
    assert answers.chunksize == (11, 12, 12)
    assert_same(answers.compute(scheduler="threads"), expected)
    part = answers[:, 20:24, 3:5]  # runs the tiles of these cells only
    assert_same(part.compute(scheduler="sync"), expected[:, 20:24, 3:5])


def test_colours_and_best_classes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 91, 3)).astype(np.uint8)
    path = converted(tmp_path, COLOURS, argmax=True)
    formula = Preprocessing(1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    answers = onnx_fcn.dask.apply(path, dask.array.from_array(pixels), tile=20, preprocess=formula)
    seen = ((pixels / 255 - formula.mean) / formula.std).transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(answers.compute(scheduler="sync"), once(path, seen))


def test_a_cluster_of_two(tmp_path: Path) -> None:
    """Real processes: a model is opened by each of them, and both of them run tiles."""
    path = converted(tmp_path, onnx.load(ROOT / "fixtures/digits_padded.onnx"))
    np.save(tmp_path / "image.npy", noise(1, 203, 151))
    (tmp_path / "cluster.py").write_text(CLUSTER)
    command = [sys.executable, "cluster.py", str(path), "image.npy", "answers.npy"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2"]
    assert_same(np.load(tmp_path / "answers.npy"), once(path, noise(1, 203, 151)))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = converted(tmp_path, GATED)
    array = dask.array.from_array(noise(1, 40, 48))
    with pytest.raises(OptionError, match="tiles cannot be exact"):
        onnx_fcn.dask.apply(path, array)
    assert onnx_fcn.dask.apply(path, array, tile=12, approximate=True).compute(scheduler="sync").shape == (1, 29, 37)
    with pytest.raises(OptionError, match="takes a dask array, not ndarray"):
        onnx_fcn.dask.apply(path, noise(1, 40, 48))
    with pytest.raises(OptionError, match=re.escape("the array has the shape (2, 40, 48), and the model takes")):
        onnx_fcn.dask.apply(path, dask.array.from_array(noise(2, 40, 48)))


def test_dask_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(
        OptionError, match=r"onnx_fcn.dask needs dask, which is not installed: pip install 'onnx-fcn\[tiles\]'"
    ):
        onnx_fcn.dask.apply(tmp_path / "out.onnx", None)


def test_sound(tmp_path: Path) -> None:
    body = "c = Conv <strides = [4], pads = [3, 3]> (x, k)  g = GlobalAveragePool (c)  y = Flatten (g)"
    path = converted(tmp_path, law.model(body, image="float[N,1,64] x", k=(2, 1, 9)))
    answers = onnx_fcn.dask.apply(path, dask.array.from_array(noise(1, 999)[0], chunks=100), tile=100)
    assert_same(answers.compute(scheduler="sync"), once(path, noise(1, 999)))


def test_sizes_of_chunks_that_are_not_known(tmp_path: Path) -> None:
    path = converted(tmp_path, COLOURS)
    pixels = dask.array.from_array(np.zeros((70, 91, 3), np.uint8), chunks=(20, 30, 3))
    with pytest.raises(
        OptionError, match=r"sizes of its chunks are unknown: call array\.compute_chunk_sizes\(\) first"
    ):
        onnx_fcn.dask.apply(path, pixels[pixels[:, 0, 0] >= 0])
    assert onnx_fcn.dask.apply(path, pixels[pixels[:, 0, 0] >= 0].compute_chunk_sizes()).shape == (2, 30, 41)
