"""What a refusal proposes can be done: the option exists, its value parses, and it leads to something else.

The command of the hint is run on the model that was refused. It succeeds, or fails with another message.
"""

from __future__ import annotations

import re
from pathlib import Path

import law
import onnx
import pytest
import wording
from test_rules import REFUSALS

import onnx_fcn
from onnx_fcn.cli import main

#: Values of an option, as a message lists them.
VALUES = r"\d[\dx]*(?:(?:, | or )\d[\dx]*)*"

#: Models that are refused with a proposal, beside those of the rules, and the options with which they are.
REFUSED: dict[str, tuple[onnx.ModelProto, tuple[str, ...]]] = {
    "a size that the file leaves open": (
        law.model("m = Conv (x, k)  g = GlobalAveragePool (m)  f = Flatten (g)  y = MatMul (f, w)",
            image="float[N,3,H,W] x", k=(4, 3, 3, 3), w=(4, 2)),
        (),
    ),
    "a row that may be a picture or a signal": (
        law.model("y = MatMul (x, w)",
            image="float[N,784] x", w=(784, 3)),
        (),
    ),
    "slices that may be a depth": (
        law.model("f = Flatten (x)  y = MatMul (f, w)",
            image="float[N,16,96] x", w=(1536, 3)),
        (),
    ),
    "one channel that has no best": (
        law.model("m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, w)",
            image="float[N,3,6,6] x", k=(4, 3, 3, 3), w=(64, 1)),
        ("--argmax",),
    ),
    "one channel of one of two outputs": (
        law.model("m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, w)  z = MatMul (f, v)",
            image="float[N,3,6,6] x", outputs="y, z", k=(4, 3, 3, 3), w=(64, 1), v=(64, 3)),
        ("--argmax",),
    ),
    "no probabilities": (
        law.model("m = Conv (x, k)  f = Flatten (m)  y = MatMul (f, w)",
            image="float[N,3,6,6] x", k=(4, 3, 3, 3), w=(64, 5)),
        ("--logits",),
    ),
    "answers between pixels": (
        law.model("m = Conv <strides = [4, 4]> (x, k)  f = Flatten (m)  y = MatMul (f, w)",
            image="float[N,3,11,11] x", k=(4, 3, 3, 3), w=(36, 5)),
        ("--output-stride", "3"),
    ),
    "a factor for each band of a spectrogram": (
        law.model("a = Mul (x, e)  m = Conv (a, k)  f = Flatten (m)  y = MatMul (f, w)",
            image="float[N,1,6,9] x", e=(1, 1, 6, 1), k=(4, 1, 3, 3), w=(112, 5)),
        (),
    ),
    "padding behind the cut": (
        law.model("f = Flatten (x)  y = MatMul (f, w)  c = Conv <pads = [1, 1, 1, 1]> (x, k)  "
            "g = Flatten (c)  z = MatMul (g, v)",
            image="float[N,3,4,4] x", outputs="y, z", w=(48, 5), k=(2, 3, 3, 3), v=(32, 7)),
        (),
    ),
}  # fmt: skip


def proposals(said: str, given: tuple[str, ...], outputs: list[str]) -> list[tuple[str, ...]]:
    """The commands that a message proposes: with an option of a value that it names, and without one of those given."""
    found: list[tuple[str, ...]] = []
    for option in re.findall(r"leave (--[a-z-]+) out", said):
        assert option in given, said
        at = given.index(option)
        end = at + 1 + (at + 1 < len(given) and not given[at + 1].startswith("--"))
        found.append(given[:at] + given[end:])
    for option, values in re.findall(rf"(--input-size)(?:, such as)? ({VALUES})", said):
        found += [(*given, option, value) for value in re.split(", | or ", values)]
    found += [(*given, "--slide", word) for word in re.findall(r"--slide (\w+) converts it", said)]
    for values in re.findall(rf"--output-stride \d+ does not divide: use ({VALUES})", said):
        found += [("--output-stride", value) for value in re.split(", | or ", values)]
    if "--outputs" in said:
        named = [name for name in outputs if f"--outputs {name}" in said]
        found += [(*given, "--outputs", name) for name in named or outputs]
    return found


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it says of an error."""
    code = main([*arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_proposed_leads_on(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, options = REFUSED[name]
    onnx.save(model, tmp_path / "model.onnx")
    path = str(tmp_path / "model.onnx")
    code, said = answered(capsys, path, *options)
    assert code in (1, 2)
    commands = proposals(said, options, [o.name for o in model.graph.output])
    assert commands, said
    ends = [answered(capsys, path, *command) for command in commands]
    assert all(message != said for _, message in ends), (commands, ends)
    assert any(code == 0 for code, _ in ends), (commands, ends)


def test_what_rules_propose_leads_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all refusals of the rules: few name an option, since most have no way out but another file."""
    tried = 0
    for case in REFUSALS:
        model = law.model(case.body, **case.given)
        model = law.behind_a_trunk(model) if case.trunk else model
        with pytest.raises(onnx_fcn.UnsupportedModel) as refused:
            onnx_fcn.convert(model, validate=False)
        hints = "; ".join(d.hint for d in refused.value.diagnostics if d.hint)
        assert set(re.findall(r"--[a-z][a-z-]*", hints)) <= wording.every_option(), hints
        commands = proposals(hints, (), [o.name for o in model.graph.output])
        onnx.save(model, tmp_path / "model.onnx")
        for command in commands:
            tried += 1
            _, said = answered(capsys, str(tmp_path / "model.onnx"), *command)
            assert str(refused.value) not in said, (case.name, command, said)
    assert tried
