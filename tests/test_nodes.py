"""What makes a walk fast does not change what it finds: light nodes, maps that are alike, rare garbage collection."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from test_operands import ROWS

import onnx_fcn
from onnx_fcn.errors import FcnError
from onnx_fcn.lifting.lifted import PIXEL, Axis, atoms_of
from onnx_fcn.model.collector import OBJECTS, rarely_collected
from onnx_fcn.model.document import Document
from onnx_fcn.model.edit import Edit
from onnx_fcn.model.nodes import Node
from onnx_fcn.rules import broadcasting

TENSOR = onnx.numpy_helper.from_array(np.arange(3.0), "t")


@pytest.mark.parametrize(
    "value", [3, -1, 0.5, "words", [1, 2, 3], [0.5, 1.5], ["a", "ü"], [2**40, -1], TENSOR, np.int64(5), True], ids=str
)
def test_a_node_that_is_made_is_stored_as_onnx_makes_it(value: Any) -> None:
    made = Node("Op", "name", ["a", "", "b"], ["c"], {"value": value}, "some.domain").proto
    wanted = helper.make_node("Op", ["a", "", "b"], ["c"], "name", domain="some.domain", value=value)
    assert made.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


def test_a_node_of_a_model_is_read_as_it_stands() -> None:
    body = helper.make_graph([helper.make_node("Add", ["x", "outer"], ["s"])], "g", [], [])
    proto = helper.make_node("If", ["c"], ["y", ""], "branches", then_branch=body, number=2, row=[1, 2], text="ü")
    node = Node.of(proto)
    assert (node.op, node.name, node.domain, node.inputs, node.outputs) == ("If", "branches", "", ["c"], ["y", ""])
    assert node.reads == ["c", "x", "outer"]
    assert node.attrs == {"then_branch": body, "number": 2, "row": [1, 2], "text": "ü"}
    assert node.proto is proto


def test_a_node_that_is_made_reads_what_its_subgraph_reads() -> None:
    body = helper.make_graph([helper.make_node("Add", ["x", "outer"], ["s"])], "g", [], [])
    assert Node("Scan", "", ["a"], ["b"], {"body": body}).reads == ["a", "x", "outer"]


def test_renaming_tensors_leaves_the_node_of_a_model_as_it_is() -> None:
    for node in (Node("Add", "", ["a", "b"], ["c"]), Node.of(helper.make_node("Add", ["a", "b"], ["c"]))):
        assert list(node.proto.input) == node.reads == ["a", "b"]
        made = node.renamed({"a": "z", "c": "d"})
        assert (list(made.proto.input), made.reads, list(made.proto.output)) == (["z", "b"], ["z", "b"], ["d"])
        assert (list(node.proto.input), node.reads, list(node.proto.output)) == (["a", "b"], ["a", "b"], ["c"])
        assert node.renamed({"x": "y"}) is node


def test_a_commit_keeps_the_nodes_that_have_been_read() -> None:
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", [a], [b]) for a, b in ("xa", "ab", "by")], "g", [], [])
    )
    document = Document.open(model)
    first, second, last = document.nodes
    inserted = [helper.make_node("Abs", ["a"], ["c"]), helper.make_node("Relu", ["c"], ["b"])]
    document.commit(Edit(nodes={1: inserted}))
    assert (document.nodes[0], document.nodes[-1]) == (first, last)
    assert second not in document.nodes
    assert [node.proto for node in document.nodes] == list(document.proto.graph.node)
    document.commit(Edit(order=[0, 2, 1, 3]))
    assert [node.proto for node in document.nodes] == list(document.proto.graph.node)


def test_rows_and_columns_share_what_is_known_of_both() -> None:
    axis = Axis(atoms_of(8, "h"), image=0)
    other, moved = Axis(atoms_of(8, "w"), image=1), Axis(atoms_of(8, "w"), PIXEL.slid(3), image=1)
    assert axis.is_parallel(other)
    assert not axis.is_parallel(moved)
    assert not axis.is_parallel(Axis(atoms_of(9, "w")))
    made = axis.slid(6, "h", 3)
    assert other.parallel(made, atoms_of(6, "w")).count is made.count
    assert replace(other.parallel(made, ()), atoms=()) == replace(other.slid(6, "w", 3), atoms=())


def test_maps_that_are_alike_are_joined_as_any_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of the rules' table, with the general machinery for these maps, too."""

    alike: set[str] = set()  # rows with maps that are
    current, are_alike = "", broadcasting._are_alike

    def noted(*maps: Any) -> bool:
        if found := are_alike(*maps):
            alike.add(current)
        return found

    def converted(name: str) -> Any:
        model = ROWS[name].model(ROWS[name].opsets[-1])
        try:
            found = onnx_fcn.convert(model, validate=False, input=model.graph.input[0].name)
        except FcnError as error:
            return str(error)
        return found.to_proto(), found.report.geometry, found.report.fields

    monkeypatch.setattr(broadcasting, "_are_alike", noted)
    fast = {}
    for current in ROWS:
        fast[current] = converted(current)
    assert len(alike) > 20
    monkeypatch.setattr(broadcasting, "_are_alike", lambda *_: False)
    for name in alike:
        assert converted(name) == fast[name], name


def test_garbage_is_collected_as_before_afterwards() -> None:
    before = gc.get_threshold()
    with rarely_collected():
        assert gc.get_threshold()[0] == OBJECTS
        with rarely_collected():
            pass
        assert gc.get_threshold()[0] == OBJECTS
    assert gc.get_threshold() == before
    with pytest.raises(ZeroDivisionError), rarely_collected():
        _ = 1 / 0
    assert gc.get_threshold() == before


@pytest.mark.parametrize("threshold", [0, 10 * OBJECTS])
def test_what_others_have_set_is_kept(threshold: int) -> None:
    before = gc.get_threshold()
    gc.set_threshold(threshold)
    try:
        with rarely_collected():
            assert gc.get_threshold()[0] == threshold
        assert gc.get_threshold()[0] == threshold
    finally:
        gc.set_threshold(*before)


def test_threads_that_overlap() -> None:
    before, inside, done = gc.get_threshold(), threading.Event(), threading.Event()

    def other() -> None:
        with rarely_collected():
            inside.set()
            done.wait()

    thread = threading.Thread(target=other)
    with rarely_collected():
        thread.start()
        inside.wait()
    assert gc.get_threshold()[0] == OBJECTS  # the other is still walking
    done.set()
    thread.join()
    assert gc.get_threshold() == before
