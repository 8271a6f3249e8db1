"""The same model gives the same bytes, wherever, whenever and however it is converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import damaged
import pytest

import onnx_fcn

ROOT = Path(__file__).parent.parent
MODELS = ("digits_padded", "gated", "functions", "branch", "quantised", "computed shapes")
OPTIONS = (["--inline", "--dynamic-batch"], ["--external-data", "--head", "folded"])
SCRIPT = """
import os, sys
from onnx_fcn.cli import main
os.umask(int(sys.argv[1], 8))
for line in sys.stdin:
    code = main(line.split("\\t")[:-1])
    assert code in (0, 1, 2), code
"""

#: How runs differ: hash seed, umask, the name of the folder, and whether paths are relative.
RUNS = [
    ({"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"}, "022", "a", False),
    ({"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}, "077", "another folder", True),
    ({"PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "1", "HOME": "/nonexistent"}, "027", "ä", False),
]


def outputs(folder: Path, environment: dict[str, str], umask: str, relative: bool) -> dict[str, bytes]:
    """Every file that the conversions of all models write into a folder."""
    folder.mkdir()
    commands = []
    for number, name in enumerate(MODELS):
        source = folder / f"{number}.onnx"
        source.write_bytes(damaged.seeds()[name]["model.onnx"])
        for k, options in enumerate(OPTIONS):
            output = folder / f"{number}-{k}.onnx"
            paths = [p.name if relative else str(p) for p in (source, output)]
            commands.append("\t".join([*paths, "-q", "--no-validate", *options, ""]))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, umask],
        input="\n".join(commands),
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=folder if relative else ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_same_bytes_under_all_circumstances(tmp_path: Path) -> None:
    first, *others = (
        outputs(tmp_path / name, environment, umask, relative) for environment, umask, name, relative in RUNS
    )
    assert len(first) > 2.5 * len(MODELS)  # sources, and nearly all that could be made of them
    for other in others:
        assert set(other) == set(first)
        assert [name for name in first if first[name] != other[name]] == []


def test_same_bytes_at_another_time_from_a_model_in_memory_and_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(damaged.seeds()["gated"]["model.onnx"])
    onnx_fcn.convert(source, tmp_path / "now.onnx", validate=False)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e8)
    os.utime(source, (0, 0))
    onnx_fcn.convert(source, tmp_path / "later.onnx", seed=7)
    onnx_fcn.convert(damaged.onnx.load(source), tmp_path / "memory.onnx", validate=False)
    written = {(tmp_path / f"{name}.onnx").read_bytes() for name in ("now", "later", "memory")}
    assert len(written) == 1


def test_the_seed_is_all_that_chooses_the_images(tmp_path: Path) -> None:
    """Errors of the comparison are the same to the last bit in other processes, and others for another seed."""

    def errors(seed: int, hash_seed: str) -> list[float]:
        command = [sys.executable, "-m", "onnx_fcn", "model.onnx", "out.onnx", "--json", "-", "--seed", str(seed)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return [check["error"] for check in json.loads(done.stdout)["validation"]["checks"]]

    (tmp_path / "model.onnx").write_bytes((ROOT / "fixtures/digits_padded.onnx").read_bytes())
    assert errors(3, "0") == errors(3, "1") != errors(4, "0")
