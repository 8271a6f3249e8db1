"""Faults while writing: afterwards there is the old output or the new one, whole, and the source is as it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_fcn
from onnx_fcn import OptionError
from onnx_fcn.cli import main
from onnx_fcn.model.document import Document

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
LARGE = 300_000  # numbers of a weight that the system copies from file to file
WAYS = {"inline": [], "data file": ["--external-data"]}
TEMPORARY = re.compile(r"\.onnx_fcn-[0-9a-f]{8}\.tmp")
DATA = re.compile(r"old\.onnx\.([0-9a-f]{16})\.data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of a megabyte, `model.onnx`, and a file `old.onnx` to replace."""
    folder = tmp_path_factory.mktemp("faults")
    model = onnx.load(ROOT / "fixtures/digits_unpadded.onnx")
    next(t for t in model.graph.initializer if t.name == "10.weight").name = "narrow"
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal(shape).astype(np.float32) for shape in ((LARGE // 64, 64), (11, LARGE // 64))]
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for w, n in zip(wide, ("wide", "10.weight")))
    last = next(n for n in model.graph.node if n.name == "/10/Gemm")
    inside = last.input[0]
    node = onnx.helper.make_node("Gemm", [inside, "wide"], ["between"], name="between", transB=1)
    model.graph.node.insert(list(model.graph.node).index(last), node)
    last.input[0] = "between"
    onnx.save(model, folder / "model.onnx")
    (folder / "old.onnx").write_bytes(b"old")
    return folder


def runs(folder: Path, event: str, way: str) -> list[dict[str, Any]]:
    """How a conversion ended, interrupted at one stage after the other."""
    return ended(folder, event, "model.onnx", "old.onnx", "--no-validate", "-q", *WAYS[way])


def ended(folder: Path, event: str, *arguments: str) -> list[dict[str, Any]]:
    """How the command ended, interrupted at one stage after the other."""
    script = ROOT / "tests/support/interrupted.py"
    done = subprocess.run(
        [sys.executable, script, folder, event, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for run in found:
        run["files"] = {name: bytes.fromhex(content) for name, content in run["files"].items()}
    assert len(found) > 8
    assert found[-1]["code"] == 0
    return found


@pytest.mark.parametrize(
    ("event", "code", "way"),
    [
        ("SIGINT", 130, "data file"),
        ("SIGTERM", 143, "inline"),
        ("SIGKILL", -9, "inline"),
        ("SIGKILL", -9, "data file"),
    ],
)
def test_ended_by_a_signal_at_every_stage(folder: Path, event: str, code: int, way: str) -> None:
    *others, undisturbed = runs(folder, event, way)
    model, new = (folder / "model.onnx").read_bytes(), undisturbed["files"]["old.onnx"]
    outcomes = set()
    for run in others:
        files = run["files"]
        assert run["code"] == code
        assert files.pop("model.onnx") == model
        output = files.pop("old.onnx")
        assert output in (b"old", new)
        outcomes.add(output == new)
        if output == new:
            needed = set(undisturbed["files"]) - {"model.onnx", "old.onnx"}
            assert needed <= set(files)
        if code == -9:
            assert all(TEMPORARY.fullmatch(name) or DATA.fullmatch(name) for name in files)
        else:
            assert set(files) == (set(undisturbed["files"]) - {"model.onnx", "old.onnx"} if output == new else set())
        for name, content in files.items():
            if data := DATA.fullmatch(name):
                assert hashlib.sha256(content).hexdigest().startswith(data[1])
    assert outcomes == {False, True}  # the last stages come after the new file is in place


#: Commands that write small files, and the files.
WRITERS = {
    "report": (["model.onnx", "--no-validate", "--json", "old.json", "-q"], {"old.json"}),
    "classes": (["segment", "out.onnx", "page.npy", "old.json", "old.npy", "-q"], {"old.json", "old.npy"}),
}


def shelve(folder: Path) -> None:
    """What these commands read."""
    shutil.copy(ROOT / "fixtures/digits_unpadded.onnx", folder / "model.onnx")
    onnx_fcn.convert(folder / "model.onnx", folder / "out.onnx", validate=False)
    np.save(folder / "page.npy", np.load(ROOT / "fixtures/digits_page.npy")[:60, :80])


@pytest.mark.parametrize(("event", "code"), [("SIGTERM", 143), ("SIGKILL", -9)])
@pytest.mark.parametrize("what", WRITERS)
def test_small_files_are_whole_at_every_stage(what: str, event: str, code: int, tmp_path: Path) -> None:
    """Each is the old one or the new one, with its permissions; what is left over is called temporary."""
    words, outputs = WRITERS[what]
    shelve(tmp_path)
    for name in outputs:
        (tmp_path / name).write_bytes(b"old")
    given = {p.name for p in tmp_path.iterdir()}
    *others, undisturbed = ended(tmp_path, event, *words)
    assert set(undisturbed["files"]) == given
    outcomes = set()
    for run in others:
        assert run["code"] == code
        left = set(run["files"]) - given
        assert all(TEMPORARY.fullmatch(name) for name in left) if code == -9 else not left
        for name in outputs:
            content = run["files"][name]
            if name.endswith(".json") and content != b"old":
                json.loads(content)  # seconds and the like differ from run to run
            else:
                assert content in (b"old", undisturbed["files"][name])
            outcomes.add((name, content == b"old"))
    assert outcomes == {(name, old) for name in outputs for old in (True, False)}


@pytest.mark.parametrize("what", WRITERS)
def test_small_files_keep_their_permissions(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shelve(tmp_path)
    words, outputs = WRITERS[what]
    for name in outputs:
        Path(f"real.{name}").touch(mode=0o640)
        Path(name).symlink_to(f"real.{name}")
    assert main(words) == 0
    for name in outputs:
        assert Path(name).is_symlink()
        assert Path(name).stat().st_mode & 0o777 == 0o640
        assert Path(name).stat().st_size > 100


def test_a_report_on_a_full_disk(tmp_path: Path) -> None:
    """In a process that may write files of 1 kB only: the old report stays, and nothing is left behind."""
    shutil.copy(ROOT / "fixtures/digits_unpadded.onnx", tmp_path / "model.onnx")
    (tmp_path / "report.json").write_bytes(b"old")
    limited = "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from onnx_fcn.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", limited, "model.onnx", "--json", "report.json", "--no-validate"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: cannot write 'report.json': file too large\n"
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "report.json"}
    assert (tmp_path / "report.json").read_bytes() == b"old"


@pytest.mark.parametrize("way", WAYS)
def test_source_cut_short_at_every_stage(folder: Path, tmp_path: Path, way: str) -> None:
    """Pages of a map that the file lost are a signal to whoever reads them; what was there before stays even then."""
    *others, done = runs(folder, "truncate", way)
    codes = set()
    for run in others:
        files = run["files"]
        codes.add(run["code"])
        assert run["code"] in (1, -signal.SIGBUS)
        assert files["old.onnx"] == b"old"
        if run["code"] == 1:
            assert set(files) == {"model.onnx", "old.onnx"}
    assert 1 in codes
    onnx_fcn.convert(folder / "model.onnx", tmp_path / "old.onnx", external_data=bool(WAYS[way]), validate=False)
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert whole.items() <= done["files"].items()  # cut after everything had been read, or never


@pytest.mark.parametrize("way", WAYS)
def test_disk_full_at_every_block(folder: Path, tmp_path: Path, way: str) -> None:
    """The system's limit on the size of a file, as a disk that has room for so many bytes."""
    (tmp_path / "old.onnx").write_bytes(b"old")
    document = Document.open(folder / "model.onnx")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder / "model.onnx").stat().st_size
    for room in (0, 1, 4_096, 100_000, 1 << 20, size // 2, size - 200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(OptionError, match=r"cannot write '.*old.onnx': file too large"):
                document.save(tmp_path / "old.onnx", external_data=bool(WAYS[way]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"old.onnx": b"old"}


def other_file_system(folder: Path) -> Path | None:
    shared = Path("/dev/shm")
    usable = shared.is_dir() and os.access(shared, os.W_OK) and shared.stat().st_dev != folder.stat().st_dev
    return shared if usable else None


def test_output_on_another_file_system(folder: Path) -> None:
    shared = other_file_system(folder)
    if shared is None:
        pytest.skip("needs a second file system")
    there = shared / f"onnx_fcn-test-{os.getpid()}"
    there.mkdir()
    try:
        onnx_fcn.convert(folder / "model.onnx", folder / "here.onnx", validate=False)
        for external in (False, True):
            onnx_fcn.convert(folder / "model.onnx", there / "out.onnx", external_data=external)
            if not external:
                assert (there / "out.onnx").read_bytes() == (folder / "here.onnx").read_bytes()
        (folder / "link.onnx").symlink_to(there / "out.onnx")
        onnx_fcn.convert(folder / "model.onnx", folder / "link.onnx", external_data=False, validate=False)
        assert (folder / "link.onnx").is_symlink()
        assert os.listdir(there) == ["out.onnx"]
        assert (there / "out.onnx").read_bytes() == (folder / "here.onnx").read_bytes()
    finally:
        shutil.rmtree(there)
        for name in ("here.onnx", "link.onnx"):
            (folder / name).unlink(missing_ok=True)


def test_the_source_is_only_read(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    shutil.copy(folder / "model.onnx", source)
    source.chmod(0o444)
    before = source.stat().st_mtime_ns, source.stat().st_ino, source.read_bytes()
    opened: list[int] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if opened is not None and event == "open" and str(args[0]) == str(source):
            opened.append(args[2])

    sys.addaudithook(watch)
    onnx_fcn.convert(source, tmp_path / "out.onnx")
    assert opened
    assert all(flags & os.O_ACCMODE == os.O_RDONLY for flags in opened)
    assert before == (source.stat().st_mtime_ns, source.stat().st_ino, source.read_bytes())
    watch.__defaults__ = None


def test_two_processes_onto_one_output(folder: Path, tmp_path: Path) -> None:
    """Whoever is last wins, or the first where there was none; both are whole."""
    ways = (["--head", "conv"], ["--head", "folded"])
    command = [sys.executable, "-m", "onnx_fcn", str(folder / "model.onnx")]
    whole = []
    for k, way in enumerate(ways):
        out = tmp_path / f"{k}" / "out.onnx"
        out.parent.mkdir()
        subprocess.run([*command, out, *way, "-q", "--external-data"], env=ENVIRONMENT, check=True)
        whole.append({p.name: p.read_bytes() for p in out.parent.iterdir()})
    assert whole[0]["out.onnx"] != whole[1]["out.onnx"]
    shared = tmp_path / "shared" / "out.onnx"
    shared.parent.mkdir()
    for _ in range(3):
        racing = [
            subprocess.Popen([*command, shared, *way, "-q", "--external-data"], env=ENVIRONMENT, stderr=subprocess.PIPE)
            for way in ways
        ]
        for process in racing:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0 or b"was removed, perhaps by another run" in said or b"appeared mean" in said
        found = {p.name: p.read_bytes() for p in shared.parent.iterdir()}
        (won,) = [files for files in whole if files["out.onnx"] == found["out.onnx"]]
        assert won.items() <= found.items()
        assert not [name for name in found if TEMPORARY.fullmatch(name)]


def test_data_that_another_run_removed_is_missed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    with Document.open(folder / "model.onnx").staged(out, external_data=True) as stage:
        assert stage.data is not None
        stage.data.unlink()
        with pytest.raises(OptionError, match="was removed, perhaps by another run: start again"):
            stage.commit()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"out.onnx": b"old"}


def test_data_that_another_run_still_needs_stays(folder: Path, tmp_path: Path) -> None:
    """Both write the same data; one replaces the model that referred to it, the other one is not done yet."""
    out = tmp_path / "out.onnx"
    first, second = Document.open(folder / "model.onnx"), Document.open(folder / "model.onnx")
    first.save(out, external_data=True)
    with second.staged(out, external_data=True) as stage:
        first.save(out, external_data=False)
        assert stage.data is not None
        assert stage.data.exists()
        stage.commit()
    assert Document.open(out).external
    first.save(out, external_data=False)
    assert os.listdir(tmp_path) == ["out.onnx"]
