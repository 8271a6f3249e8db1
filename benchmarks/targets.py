"""What the project set itself, beside what was measured: every limit is a ratio or a difference within one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import Record
from benchmarks.files import ARCHITECTURES

__all__ = ["Target", "targets"]

MB = 1e6

Results = dict[str, list[Record]]


@dataclass(frozen=True)
class Target:
    """One claim: `measured` has to be at most the limit, or at least where `at_least`."""

    claim: str
    measured: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def targets(results: Results) -> list[Target]:
    """The targets that these results can tell about."""
    return [*_conversion(results), *_dense(results), *_native(results), *_stride(results)]


def _conversion(results: Results) -> Iterator[Target]:
    records = {(r["file"], r["tool"]): r for r in results.get("conversion", []) if "seconds" in r}

    def has(file: str, *tools: str) -> bool:
        return all((file, tool) in records for tool in tools)

    def seconds(file: str, tool: str) -> float:
        return float(records[file, tool]["seconds"])

    def cpu(file: str, tool: str) -> float:
        return float(records[file, tool]["cpu"])

    def peak(file: str, tool: str) -> float:
        return float(records[file, tool]["peak"])

    copy, fast, checked, parsed = "cp + fsync", "onnx-fcn --no-validate", "onnx-fcn", "onnx.load + onnx.save"
    for file, extra, memory in (("vgg16", 0.5, 80), ("vgg16-channels-last", 0.9, 130)):
        if has(file, copy, fast):
            yield Target(f"{file}: wall beyond cp + fsync", seconds(file, fast) - seconds(file, copy), extra, " s")
            yield Target(f"{file}: peak", peak(file, fast) / MB, memory, " MB")
    if has("vgg16", checked, parsed):
        for name, of in (("wall", seconds), ("peak", peak)):
            ratio = of("vgg16", checked) / of("vgg16", parsed)
            yield Target(f"vgg16: {name} with validation ÷ onnx.load + onnx.save", ratio, 0.5, "×")
    if has("external", fast):
        yield Target("3 GB external: peak", peak("external", fast) / MB, 80, " MB")
    if has("external", f"{fast} --link-data"):
        yield Target("3 GB external, --link-data: wall", seconds("external", f"{fast} --link-data"), 1, " s")
    for file in ARCHITECTURES:
        if has(file, fast, checked, parsed):
            extra = cpu(file, fast) - cpu(file, parsed)
            yield Target(f"{file}: processor time beyond onnx.load + onnx.save", extra, 0.2, " s")
        for tool, other, limit in ((fast, "onnxslim", 0.5), (checked, "onnxsim", 0.8)):
            if has(file, tool, other):
                what = f"{file}: processor time{' with validation' if tool == checked else ''} ÷ {other}"
                yield Target(what, cpu(file, tool) / cpu(file, other), limit, "×")
    if has("nodes-10k", fast) and has("nodes-100k", fast):
        growth = seconds("nodes-100k", fast) / seconds("nodes-10k", fast)
        yield Target("10,000 → 100,000 nodes: growth of wall", growth, 12, "×")
    for statement in ("import onnx_fcn", "from onnx_fcn import convert"):
        if has("imports", statement):
            yield Target(statement, seconds("imports", statement) - seconds("imports", "python"), 0.25, " s")


def _dense(results: Results) -> Iterator[Target]:
    for record in results.get("dense", []):
        network, size, speedup = record["network"], record["size"], record["speedup"]
        at = f"{network}, {size}×{size}"
        batched = min(speedup[b] for b in speedup if b != "1") if len(speedup) > 1 else None
        if network == "AlexNet" and record["windows"] == 64:
            yield Target(f"{at}: 64 answers ÷ time of one", record["of_one"], 3, "×")
            continue
        if network == "AlexNet" and record["windows"] == 100:
            yield Target(f"{at}: faster than single crops", speedup["1"], 24.5, "×", at_least=True)
            if batched:
                yield Target(f"{at}: faster than batched crops", batched, 5.45, "×", at_least=True)
        if batched:
            share = 0.88 if network == "ResNet-50" else 0.95
            yield Target(f"{at}: share of the FLOP ratio", batched / record["limit"], share, at_least=True)


def _native(results: Results) -> Iterator[Target]:
    for record in results.get("native", []):
        at = f"{record['network']} at its native size, batch {record['batch']}"
        if record["batch"] == 1:
            yield Target(f"{at}: time ÷ original", record["ratio"]["conv"], 1.05, "×")
        yield Target(f"{at}, folded: time ÷ original", record["ratio"]["folded"], 1.0, "×")


def _stride(results: Results) -> Iterator[Target]:
    for record in results.get("stride", []):
        at = f"{record['network']}, {record['size']}×{record['size']}, every {record['stride']} pixels"
        for other, speedup in record["speedup"].items():
            yield Target(f"{at}: time an answer of {other} ÷ dilated", speedup, 1, "×", at_least=True)
