"""Storage: weights are streamed, hostile files refused, and a target is the old file or the new one."""

import hashlib
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from perceptron import DENSE, FLOAT, RNG, SECOND, answer, classifier, location, run, tensor, value_info, weights

from onnx_fcn.errors import ModelError, OptionError
from onnx_fcn.model import payloads, wire
from onnx_fcn.model import staged as staging
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit, Weight
from onnx_fcn.model.staged import Staged


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".onnx_fcn-")]


# --- streaming -------------------------------------------------------------------------------------------------------


def permutations() -> list[np.ndarray]:
    array = np.arange(7 * 8 * 9 * 40, dtype=np.uint32).reshape(7, 8, 9, 40)
    views = [array.transpose(axes) for axes in itertools.permutations(range(4))]
    views += [
        array[:, ::2], array[::-1, :, ::-1], array[1:, :, 2:5].T, array[:, :1].transpose(2, 3, 1, 0),
        np.broadcast_to(array[0, 0, 0], (30, 40)), np.broadcast_to(array[:, :, :, :1], (7, 8, 9, 5)), array[0, 0, :, 3],
        array.reshape(56, 360).T, array[3].reshape(8, 360)[:, ::-1],
    ]  # fmt: skip
    return views


@pytest.mark.parametrize(
    ("band", "tile", "chunk"), [(48 << 20, 32 << 10, 2 << 20), (20_000, 300, 500), (3_000, 64, 10_000), (500, 1, 1)]
)
def test_permuted_arrays_are_streamed_in_order(
    monkeypatch: pytest.MonkeyPatch, band: int, tile: int, chunk: int
) -> None:
    for name, value in (("BAND", band), ("TILE", tile), ("CHUNK", chunk), ("BLOCK", 4 * chunk)):
        monkeypatch.setattr(payloads, name, value)
    for view in permutations():
        blocks = [bytes(block) for block in payloads.blocks(view, lambda: None)]
        assert b"".join(blocks) == view.tobytes(), (view.shape, view.strides)
        assert max(map(len, blocks)) <= max(band, 4 * chunk)


def test_permuted_weight_takes_a_band_of_memory(tmp_path: Path) -> None:
    """64 MB, transposed: interleaved rows are gathered without ever holding them all."""
    import tracemalloc

    elements = 4096 * 4096
    with open(tmp_path / "data", "wb") as file:
        file.truncate(elements * 4)
    model = classifier()
    wide = model.graph.initializer.add(name="wide", data_type=FLOAT, dims=[4096, 4096])
    wire.refer(wide, "data", 0, elements * 4)
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    document = Document.open(tmp_path / "in.onnx")
    array = document.array(tensor(document, "wide"))
    document.commit(Edit(initializers={"wide": Weight(array.T, (4096, 4096), FLOAT)}))
    tracemalloc.start()
    document.save(tmp_path / "out.onnx", external_data=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < payloads.BAND + 2 * payloads.CHUNK + (4 << 20)


# --- what cannot be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\x08\x09", "has no graph"),
        (classifier().SerializeToString()[:30_000], "bytes are missing at its end"),
        (np.random.default_rng(1).bytes(5_000), "is not an ONNX model"),
        (b"PK\x03\x04rest", "zip archive.*torch.onnx.export"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite.*tf2onnx"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
    ],
    ids=["empty", "no graph", "cut", "random", "zip", "pickle", "tflite", "hdf5", "gzip", "lfs", "html"],
)
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=complaint) as caught:
        Document.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, complaint in (
        ("nowhere.onnx", "does not exist"),
        ("", "is a directory"),
        ("pipe", "not a regular file"),
        ("n\0l", "cannot be opened"),
        ("n" * 300, "cannot be opened: file name too long"),
    ):
        with pytest.raises(ModelError, match=complaint):
            Document.open(os.path.join(tmp_path, name))


def with_data(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    data = model.graph.initializer[0].external_data
    kept = {e.key: e.value for e in data} | entries
    del data[:]
    for key, value in kept.items():
        data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"location": "missing.bin"}, "'missing.bin', is missing: put it into"),
        ({"location": "../model.onnx"}, "outside of the model's folder"),
        ({"location": "nested/../../model.onnx"}, "outside of the model's folder"),
        ({"location": "/etc/passwd"}, "is not a relative path"),
        ({"location": ""}, "is not a relative path"),
        ({"location": "."}, "is a directory"),
        ({"location": "out"}, "outside of the model's folder"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "\0computed"}, "is not a relative path"),
        ({"location": "empty"}, "which has 0"),
        ({"offset": "60000"}, "is it incomplete"),
        ({"offset": "-1"}, "the offset or length of tensor"),
        ({"offset": "١"}, "the offset or length of tensor"),
        ({"offset": "9" * 5000}, "the offset or length of tensor"),
        ({"length": "1e9"}, "the offset or length of tensor"),
        ({"length": "47000"}, "takes 47040 bytes, but 47000 are stored"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_external_data_that_is_not_as_it_says_is_refused(
    external: Path, entries: dict[str, str], complaint: str
) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(100_000))
    (external.parent / "out").symlink_to("../secret")
    (external.parent / "empty").touch()
    os.mkfifo(external.parent / "pipe")
    with_data(external, **entries)
    with pytest.raises(ModelError, match=complaint):
        Document.open(external)


def test_external_data_of_a_model_in_memory_needs_its_path(external: Path) -> None:
    with pytest.raises(ModelError, match="pass the path"):
        Document.open(onnx.load(external, load_external_data=False))


def test_external_data_with_a_hostile_shape_is_refused(external: Path) -> None:
    for dims in ([-120, -98], [2**40, 2**40], [2**62] * 300, [120, 980]):
        model = onnx.load(external, load_external_data=False)
        model.graph.initializer[0].dims[:] = dims
        del model.graph.initializer[0].external_data[1:]
        path = external.with_name("hostile.onnx")
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"negative dimension|more bytes than any file|is it incomplete"):
            Document.open(path)


def test_model_that_names_itself_as_its_data_reads_its_own_bytes(tmp_path: Path) -> None:
    model = classifier()
    own = model.graph.initializer.add(name="own", data_type=TensorProto.UINT8, dims=[2, 8])
    wire.refer(own, "in.onnx", 0, 16)
    data = model.SerializeToString()
    (tmp_path / "in.onnx").write_bytes(data)
    document = Document.open(tmp_path / "in.onnx")
    assert document.array(tensor(document, "own")).tobytes() == data[:16]
    document.commit(Edit())
    document.save(tmp_path / "out.onnx")
    assert weights(tmp_path / "out.onnx")["own"].tobytes() == data[:16]


# --- external data ---------------------------------------------------------------------------------------------------


def check_same(path: Path) -> None:
    found = weights(path)
    assert np.array_equal(found["dense"], DENSE)
    assert np.array_equal(found["second"], SECOND)


def test_external_stays_external(external: Path, tmp_path: Path) -> None:
    document = Document.open(external)
    assert document.external
    assert document.size == external.stat().st_size + (external.parent / "weights.bin").stat().st_size
    assert np.array_equal(document.array(tensor(document, "dense")), DENSE)
    document.check()
    with document.staged(tmp_path / "out.onnx") as staged:
        assert staged.data is not None
        staged.commit()
    digest = hashlib.sha256(staged.data.read_bytes()).hexdigest()[:16]
    assert staged.data == tmp_path / f"out.onnx.{digest}.data"
    assert staged.size == staged.target.stat().st_size + staged.data.stat().st_size
    check_same(staged.target)


def test_external_can_come_inline_and_go_out_again(external: Path, tmp_path: Path) -> None:
    Document.open(external).save(tmp_path / "inline.onnx", external_data=False)
    assert not Document.open(tmp_path / "inline.onnx").external
    check_same(tmp_path / "inline.onnx")
    Document.open(tmp_path / "inline.onnx").save(tmp_path / "again.onnx", external_data=True)
    assert Document.open(tmp_path / "again.onnx").external
    check_same(tmp_path / "again.onnx")
    assert len(os.listdir(tmp_path)) == 4


def test_small_models_have_nothing_to_put_into_a_data_file(tmp_path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value_info("x", [1])], [])
    with Document.open(helper.make_model(graph)).staged(tmp_path / "out.onnx", external_data=True) as staged:
        assert staged.data is None


def test_large_tensors_are_aligned_and_stored_once(tmp_path: Path) -> None:
    model = classifier()
    big = RNG.standard_normal((600, 500)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(big, "big"))
    document = Document.open(model)
    shared = document.array(tensor(document, "big"))
    document.commit(Edit(initializers={"shared": Weight(shared, (500, 600), FLOAT)}))
    document.save(tmp_path / "out.onnx", external_data=True)
    saved = Document.open(tmp_path / "out.onnx")
    assert int(location(saved, "big")["offset"]) % 4096 == 0
    assert location(saved, "big") == location(saved, "shared")
    assert np.array_equal(saved.array(tensor(saved, "shared")), big.reshape(500, 600))
    assert saved.size < big.nbytes + 200_000


def test_weights_can_be_linked(external: Path, tmp_path: Path) -> None:
    document = Document.open(external)
    dense = document.array(tensor(document, "dense"))
    document.commit(Edit(initializers={"dense": Weight(dense.T, (98, 120), FLOAT)}))
    with document.staged(tmp_path / "out.onnx", link_data=True) as staged:
        assert staged.data is not None
        assert staged.data.stat().st_size == DENSE.nbytes
        staged.commit()
    saved = Document.open(tmp_path / "out.onnx")
    assert location(saved, "second")["location"] == "external/weights.bin"
    found = weights(tmp_path / "out.onnx")
    assert np.array_equal(found["dense"], DENSE.T)
    assert np.array_equal(found["second"], SECOND)
    (external.parent / "beneath").mkdir()
    with pytest.raises(OptionError, match="copy them"):
        document.save(external.parent / "beneath" / "out.onnx", link_data=True)


def test_weights_can_be_linked_into_a_model_file(source: Path) -> None:
    out = source.with_name("out.onnx")
    with Document.open(source).staged(out, external_data=True, link_data=True) as staged:
        assert staged.data is None
        staged.commit()
    assert out.stat().st_size < 2_000
    check_same(out)


def test_models_over_the_limit_go_external_by_themselves(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "LARGEST_FILE", 60_000)
    out = source.with_name("out.onnx")
    document = Document.open(source)
    with document.staged(out) as staged:
        assert staged.data is not None
        staged.commit()
    check_same(out)
    with pytest.raises(OptionError, match="larger than 2 GB"):
        document.save(out, external_data=False)
    check_same(out)


def test_data_file_that_is_replaced_goes_but_no_other(source: Path) -> None:
    out = source.with_name("out.onnx")
    folder = source.parent
    (folder / "out.onnx.0123456789abcdef.data").write_bytes(b"not of the model that is replaced")
    (folder / "out.onnx.data").write_bytes(b"of somebody else")
    document = Document.open(source)
    document.save(out, external_data=True)
    (first,) = set(os.listdir(folder)) - {
        "model.onnx", "out.onnx", "out.onnx.data", "out.onnx.0123456789abcdef.data", "external"
    }  # fmt: skip
    document.save(out, external_data=True)
    assert (folder / first).exists()
    document.commit(Edit(removed_initializers={"second"}))
    document.save(out, external_data=True)
    assert not (folder / first).exists()
    document.save(out, external_data=False)
    assert sorted(os.listdir(folder)) == ["model.onnx", "out.onnx", "out.onnx.0123456789abcdef.data", "out.onnx.data"]


def test_model_in_place_has_one_data_file(source: Path) -> None:
    """The old one goes with the old model, unless the new one has the same contents, or links to it."""
    out = source.with_name("out.onnx")
    Document.open(source).save(out, external_data=True)

    def changed(edit: Edit, **options: bool) -> set[str]:
        before = set(os.listdir(source.parent))
        document = Document.open(out)
        document.commit(edit)
        document.save(out, **options)
        return set(os.listdir(source.parent)) - before

    assert not changed(Edit(metadata={"a": "b"}))
    doubled = Edit(initializers={"dense": Weight(2 * DENSE, (120, 98), FLOAT)})
    assert len(changed(doubled)) == 1
    assert len(os.listdir(source.parent)) == 3
    other = Edit(initializers={"second": Weight(-SECOND, (120, 50), FLOAT)})
    assert len(changed(other, link_data=True)) == 1
    assert len(os.listdir(source.parent)) == 4
    assert np.array_equal(weights(out)["dense"], 2 * DENSE)
    assert np.array_equal(weights(out)["second"], -SECOND)
    changed(Edit(metadata={"a": "c"}), external_data=False)
    assert sorted(os.listdir(source.parent)) == ["model.onnx", "out.onnx"]


def test_data_file_that_is_not_what_its_name_says_is_not_taken_for_it(source: Path) -> None:
    """Somebody changed it; writing the first contents again would find it in the way."""
    out = source.with_name("out.onnx")
    Document.open(source).save(out, external_data=True)
    (data,) = source.parent.glob("*.data")
    content = bytearray(data.read_bytes())
    content[:4] = b"\0\0\0\0"
    data.write_bytes(content)
    document = Document.open(out)
    document.commit(Edit(initializers={"dense": Weight(DENSE, (120, 98), FLOAT)}))
    with pytest.raises(OptionError, match=r"\.data' was changed after it was written: write the model to another file"):
        document.save(out)
    assert data.read_bytes() == content
    assert len(os.listdir(source.parent)) == 3


def test_data_file_in_place_is_kept_when_a_stage_is_dropped(source: Path) -> None:
    out = source.with_name("out.onnx")
    document = Document.open(source)
    with document.staged(out, external_data=True) as staged:
        assert staged.data is not None
        assert staged.data.exists()
    assert os.listdir(source.parent) == ["model.onnx"]
    document.save(out, external_data=True)
    with document.staged(out, external_data=True):
        pass
    check_same(out)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_same_input_gives_the_same_bytes(source: Path) -> None:
    folder = source.parent
    saved: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        document = Document.open(source)
        dense = document.array(tensor(document, "dense"))
        document.commit(Edit(initializers={"turned": Weight(dense.T, (98, 120), FLOAT)}, metadata={"a": "b"}))
        document.save(folder / name / "out.onnx", external_data=True)
        saved.append({path.name: path.read_bytes() for path in (folder / name).iterdir()})
    assert saved[0] == saved[1]
    assert len(saved[0]) == 2


@pytest.mark.parametrize("copiers", [1, 2, 3])
def test_every_way_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copiers: int) -> None:
    """The slower ones take over where the faster ones cannot, as between file systems."""

    def refuse(*_: int) -> int:
        raise OSError(18, "Invalid cross-device link")

    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3_000_000, dtype=np.int32).reshape(3, -1), "big"))
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    available: list[Callable[..., int]] = [*[refuse] * (3 - copiers), *staging.COPIERS[-copiers:]]
    monkeypatch.setattr(staging, "COPIERS", available)
    Document.open(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
def test_file_systems_that_reserve_no_room_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3_000_000, dtype=np.int32).reshape(3, -1), "big"))
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    Document.open(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()


def test_disk_writes_while_the_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the stretches of the file is handed to the disk, and the last one after all is written."""
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((30, 100_000), np.int32), "big"))
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    sizes: list[int] = []
    synced = threading.Event()

    def sync(fd: int) -> None:
        sizes.append(os.lseek(fd, 0, os.SEEK_CUR))
        synced.set()

    def copied(source: int, target: int, offset: int, count: int) -> int:
        if offset > 6 << 20:
            assert synced.wait(10)
        return copy(source, target, offset, count)

    copy = staging.COPIERS[-1]
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(staging, "SYNCED", 1 << 20)
    monkeypatch.setattr(staging, "COPIERS", [copied])
    Document.open(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    *_, whole, _ = sizes  # the last one is the folder's
    assert sizes[0] < whole == (tmp_path / "out.onnx").stat().st_size


class Deliberate(Exception):
    """What a validation raises."""


@pytest.mark.parametrize("external_data", [False, True])
def test_dropped_stage_leaves_the_old_file(source: Path, external_data: bool) -> None:
    out = source.with_name("out.onnx")
    out.write_bytes(b"old")
    document = Document.open(source)
    with pytest.raises(Deliberate), document.staged(out, external_data=external_data):
        raise Deliberate
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(source.parent)) == ["model.onnx", "out.onnx"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "copy_file_range", "posix_fallocate"])
def test_failures_while_writing_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(500_000), "big"))
    model.graph.initializer[-1].dims[:] = [500, 1000]
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    document = Document.open(tmp_path / "in.onnx")

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr(Staged, "_write_file", full)
    elif call == "copy_file_range":
        monkeypatch.setattr(staging, "COPIERS", [full])
    elif hasattr(os, call):
        monkeypatch.setattr(os, call, full)
    else:
        pytest.skip(f"this system has no {call}")
    for external_data in (False, True):
        with pytest.raises(OptionError, match=r"cannot write '.*out.onnx': no space left on device"):
            document.save(out, external_data=external_data)
        assert out.read_bytes() == b"old"
        assert sorted(os.listdir(tmp_path)) == ["in.onnx", "out.onnx"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_is_said_in_one_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, *mode: real("/dev/full" if flags & os.O_CREAT else path, flags & ~os.O_EXCL)
    )
    with pytest.raises(OptionError, match="no space left on device"):
        Document.open(source).save(source.with_name("out.onnx"))


def test_targets_that_cannot_be_written_are_refused(source: Path) -> None:
    os.mkfifo(source.with_name("pipe"))
    document = Document.open(source)
    for target, complaint in (
        (source.parent, "is a directory"),
        (source.with_name("pipe"), "not a regular file"),
        (source.parent / "nowhere" / "out.onnx", "there is no directory"),
        (source / "out.onnx", "there is no directory"),
        (source.with_name("n" * 300), "file name too long"),
        (source.with_name("n\0l"), "null"),
    ):
        with pytest.raises(OptionError, match=complaint):
            document.save(target)
    assert sorted(os.listdir(source.parent)) == ["model.onnx", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_missing_permission_is_said_in_one_sentence(source: Path) -> None:
    document = Document.open(source)
    out = source.with_name("out.onnx")
    out.write_bytes(b"old")
    out.chmod(0o444)
    with pytest.raises(OptionError, match="permission"):
        document.save(out)
    source.parent.chmod(0o555)
    with pytest.raises(OptionError, match="permission denied"):
        document.save(source.with_name("new.onnx"))
    source.parent.chmod(0o755)
    source.chmod(0)
    with pytest.raises(ModelError, match="permission denied"):
        Document.open(source)


def test_new_files_follow_the_umask_and_old_ones_keep_their_mode(source: Path) -> None:
    document = Document.open(source)
    before = os.umask(0o027)
    try:
        with document.staged(source.with_name("new.onnx"), external_data=True) as staged:
            staged.commit()
        old = source.with_name("old.onnx")
        old.touch()
        old.chmod(0o664)
        document.save(old)
    finally:
        os.umask(before)
    assert staged.data is not None
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (staged.target, staged.data, old)]
    assert modes == [0o640, 0o640, 0o664]


def test_links_stay_links(source: Path) -> None:
    real = source.with_name("real")
    real.mkdir()
    link = source.with_name("link.onnx")
    link.symlink_to("real/out.onnx")
    for _ in range(2):
        Document.open(source).save(link)
        assert link.is_symlink()
        assert (real / "out.onnx").read_bytes() == source.read_bytes()
    assert os.listdir(real) == ["out.onnx"]


def test_linked_source_is_opened_where_it_is(source: Path) -> None:
    link = source.with_name("elsewhere") / "link.onnx"
    link.parent.mkdir()
    link.symlink_to(source)
    document = Document.open(link)
    assert document.path == source
    x = RNG.standard_normal((1, 98)).astype(np.float32)
    assert np.allclose(run(document, x), answer(x), rtol=1e-4, atol=1e-3)


def test_output_onto_the_source_is_safe(source: Path) -> None:
    document = Document.open(source)
    dense = document.array(tensor(document, "dense"))
    document.commit(Edit(initializers={"turned": Weight(dense.T, (98, 120), FLOAT)}, removed_initializers={"second"}))
    document.save(source)
    found = weights(source)
    assert np.array_equal(found["dense"], DENSE)
    assert np.array_equal(found["turned"], DENSE.T)
    assert np.array_equal(dense, DENSE)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: os.replace(path.with_name("other"), path),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    ],
    ids=["touched", "replaced", "removed", "grown"],
)
def test_changed_source_is_refused(source: Path, change: Callable[[Path], None]) -> None:
    out = source.with_name("out.onnx")
    out.write_bytes(b"old")
    source.with_name("other").write_bytes(source.read_bytes())
    document = Document.open(source)
    document.check_unchanged()
    with document.staged(out) as staged:
        change(source)
        with pytest.raises(ModelError, match=r"was (changed|removed) since it was opened"):
            staged.commit()
    assert out.read_bytes() == b"old"
    assert not leftovers(source.parent)


def test_source_that_was_cut_short_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "big"))
    path.write_bytes(model.SerializeToString())
    document = Document.open(path)
    os.truncate(path, 2_000_000)
    with pytest.raises(ModelError, match="was changed"):
        document.save(tmp_path / "out.onnx")


def test_stale_temporary_files_are_harmless(source: Path) -> None:
    (source.parent / ".onnx_fcn-00000000.tmp").write_bytes(b"left by a killed run")
    Document.open(source).save(source.with_name("out.onnx"))
    assert leftovers(source.parent) == [".onnx_fcn-00000000.tmp"]


def test_two_runs_at_once_onto_one_output(source: Path) -> None:
    """A reader always finds a whole model; with unique data names, two writers never mix."""
    out = source.with_name("out.onnx")
    wrong: list[BaseException] = []

    def write(scale: float) -> None:
        try:
            document = Document.open(source)
            turned = DENSE * np.float32(scale)
            document.commit(Edit(initializers={n: Weight(turned, (120, 98), FLOAT) for n in ("dense", "twin")}))
            while time.monotonic() < deadline:
                save(document, external_data=scale == 2)
        except BaseException as error:
            wrong.append(error)

    def save(document: Document, external_data: bool) -> None:
        try:
            document.save(out, external_data=external_data)
        except OptionError as error:  # the other one replaced the model whose data this one would have shared
            if "was removed, perhaps by another run" not in str(error):
                raise

    Document.open(source).save(out)
    deadline = time.monotonic() + 2
    threads = [threading.Thread(target=write, args=(scale,)) for scale in (2, 3)]
    for thread in threads:
        thread.start()
    reads = 0
    while any(thread.is_alive() for thread in threads):
        try:
            found = weights(out)
        except (OSError, onnx.checker.ValidationError):
            continue  # the data file of a model that was replaced since
        if "twin" in found:
            assert np.array_equal(found["dense"], found["twin"])
            assert np.isclose(found["dense"] / DENSE, 2).all() or np.isclose(found["dense"] / DENSE, 3).all()
        reads += 1
    assert not wrong
    assert reads
    assert not leftovers(source.parent)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    """Such a name cannot be written into a model: sessions get the weights themselves."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    path.write_bytes(classifier().SerializeToString())
    document = Document.open(path)
    x = RNG.standard_normal((1, 98)).astype(np.float32)
    assert np.allclose(run(document, x), answer(x), rtol=1e-4, atol=1e-3)
    document.commit(Edit())
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.onnx"))
    document.save(out)
    check_same(out)
    with pytest.raises(OptionError, match="UTF-8"):
        document.save(out, external_data=True)
    assert not leftovers(tmp_path)
