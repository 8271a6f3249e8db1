"""What users install: a wheel in an empty environment, far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_the_first_command_of_the_readme(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # builds leave folders behind, and find those of older builds
    shutil.copytree(ROOT / "onnx_fcn", tree / "onnx_fcn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, tree, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    source = {f.relative_to(ROOT).as_posix() for f in (ROOT / "onnx_fcn").rglob("*") if "__pycache__" not in f.parts}
    assert {f for f in source if Path(f).suffix in (".py", ".html", ".typed")} <= set(files)
    assert not [f for f in files if f.startswith(("tests", "docs", "benchmarks", "fixtures"))]
    assert any(f.endswith("licenses/LICENSE") for f in files)

    run(sys.executable, "-m", "venv", "empty", cwd=tmp_path)
    binaries = tmp_path / "empty" / ("Scripts" if os.name == "nt" else "bin")
    run(binaries / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    first = (ROOT / "README.md").read_text("utf-8").partition("-m onnx_fcn ")[2].splitlines()[0].split()
    assert first == ["fixtures/digits_unpadded.onnx", "out.onnx"]
    for name, command in (("a.onnx", [binaries / "python", "-m", "onnx_fcn"]), ("b.onnx", [binaries / "onnx-fcn"])):
        assert "it is the same network" in run(*command, ROOT / first[0], tmp_path / name, cwd=tmp_path)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
