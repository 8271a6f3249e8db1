"""The results as tables: for the terminal, and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import rich.box
import rich.console
import rich.table

from benchmarks import Record
from benchmarks.files import ARCHITECTURES, FILES
from benchmarks.targets import Target, targets

__all__ = ["Table", "markdown", "show", "tables"]


@dataclass(frozen=True)
class Table:
    """A title, the headings of the columns, and rows of as many cells; the first column is text, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(results: dict[str, list[Record]]) -> Iterator[Table]:
    """Everything that was measured, and the targets."""
    records = results.get("conversion", [])
    for file in dict.fromkeys(r["file"] for r in records if r["file"] not in ARCHITECTURES):
        yield _conversion(file, [r for r in records if r["file"] == file])
    if exported := [r for r in records if r["file"] in ARCHITECTURES]:
        yield _architectures(exported)
    if "dense" in results:
        yield _dense(results["dense"])
    if "beside" in results:
        yield _beside(results["beside"])
    if "native" in results:
        yield _native(results["native"])
    if "stride" in results:
        yield _stride(results["stride"])
    yield Table("Targets", ("", "measured", "target", "met"), [_target(t) for t in targets(results)])


def _target(target: Target) -> Sequence[str]:
    limit = f"{'≥' if target.at_least else '≤'} {target.limit:g}{target.unit}"
    return target.claim, f"{target.measured:.2f}{target.unit}", limit, "yes" if target.met else "no"


def _conversion(file: str, records: Sequence[Record]) -> Table:
    done = {r["tool"]: r for r in records if "seconds" in r}
    reference = done.get("onnx.load + onnx.save") or done.get("import onnx") or next(iter(done.values()))
    first = records[0]

    def cells(record: Record) -> Sequence[str]:
        if "seconds" not in record:
            return record["tool"], record["note"], *[""] * 5
        beyond = record["seconds"] - first["seconds"]
        return (
            record["tool"],
            f"{record['seconds']:.2f} s",
            f"{beyond:+.2f} s" if record is not first else "",
            f"{record['seconds'] / reference['seconds']:.2f}",
            f"{record['cpu']:.2f} s",
            f"{record['peak'] / 1e6:,.0f} MB",
            f"{record['peak'] / reference['peak']:.2f}",
        )

    title = f"{FILES[file].title if file in FILES else 'Start'} (ratios: to {reference['tool']})"
    columns = ("", "wall", f"beyond {first['tool'].split()[0]}", "ratio", "processor", "peak memory", "ratio")
    return Table(title, columns, [cells(r) for r in records])


def _architectures(records: Sequence[Record]) -> Table:
    """One row for each network: processor time of whole processes, and what the targets are about."""
    found = {(r["file"], r["tool"]): r["cpu"] for r in records if "cpu" in r}
    tools = list(dict.fromkeys(r["tool"] for r in records if r["tool"] != "cp + fsync"))
    rows = []
    for file in dict.fromkeys(r["file"] for r in records):
        cpu = {tool: found.get((file, tool)) for tool in tools}
        row = [FILES[file].title.partition(",")[0], *("–" if s is None else f"{s:.2f} s" for s in cpu.values())]
        for tool, to in COMPARED:
            (spent, other) = cpu.get(tool), cpu.get(to)
            row.append("–" if spent is None or other is None else f"{spent / other:.2f}")
        rows.append(row)
    ratios = [f"{'validated' if tool == CHECKED else 'not'} ÷ {to}" for tool, to in COMPARED]
    return Table("Today's networks: processor time of whole processes", ("", *tools, *ratios), rows)


#: What is compared with what.
CHECKED, UNCHECKED = "onnx-fcn", "onnx-fcn --no-validate"
COMPARED = ((UNCHECKED, "onnx.load + onnx.save"), (UNCHECKED, "onnxslim"), (CHECKED, "onnxsim"))


def _beside(records: Sequence[Record]) -> Table:
    ways = ("8 bits", "compiled", "channels last", "torch", "crops")
    rows = [
        (
            f"{r['network']}, {r['size']}×{r['size']}",
            f"{r['seconds']['onnxruntime'] * 1e3:.0f} ms",
            *(f"{r['seconds'][w] * 1e3:,.0f} ms" if w in r["seconds"] else "–" for w in ways),
            f"{r['apart']:.0e}",
            "–" if r["agreement"] is None else f"{r['agreement']:.1%}",
        )
        for r in records
    ]
    columns = ("", "converted, in onnxruntime", "in 8 bits", "torch, compiled", "torch, channels last", "torch")
    columns += ("torch, crops", "difference to torch", "same best class in 8 bits")
    return Table("One large image, beside the network made dense by hand in torch, and its crops there", columns, rows)


def _dense(records: Sequence[Record]) -> Table:
    batches = list(records[0]["crops"])
    rows = [
        (
            f"{r['network']}, {r['size']}×{r['size']}",
            f"{r['windows']}",
            f"{r['seconds']:.3f} s",
            f"{r['gflops']:.0f}",
            *(f"{r['speedup'][b]:.1f}×" for b in batches),
            f"{r['limit']:.1f}×",
        )
        for r in records
    ]
    columns = ("", "windows", "time", "GFLOP/s", *(f"batch {b}" for b in batches), "FLOP ratio")
    return Table("One large image: times faster than its windows as crops, in batches", columns, rows)


def _native(records: Sequence[Record]) -> Table:
    rows = [
        (
            f"{r['network']}, batch {r['batch']}",
            f"{r['seconds']['original'] * 1e3:.1f} ms",
            f"{r['ratio']['conv']:.2f}",
            f"{r['ratio']['folded']:.2f}",
        )
        for r in records
    ]
    return Table("Native size: time ÷ original", ("", "original", "conv", "folded"), rows)


def _stride(records: Sequence[Record]) -> Table:
    rows = [
        (
            f"{r['network']}, {r['size']}×{r['size']}, every {r['stride']} pixels",
            str(r["answers"]),
            f"{r['seconds']['dilated'] * 1e3:.0f} ms",
            f"{r['of_plain']:.1f}",
            f"{r['speedup']['fragments']:.2f}",
            f"{r['speedup']['shifted']:.2f}",
        )
        for r in records
    ]
    columns = ("", "answers", "dilated", "÷ plain map", "fragments ÷ dilated", "shifted images ÷ dilated")
    return Table("Answers in between", columns, rows)


def show(found: Sequence[Table], console: rich.console.Console) -> None:
    """Print tables to a terminal."""
    for table in found:
        drawn = rich.table.Table(title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for k, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if k else "left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)


def markdown(found: Sequence[Table]) -> str:
    """The same for a document."""
    blocks = []
    for table in found:
        rule = ["---", *["---:"] * (len(table.columns) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (table.columns, rule, *table.rows)]
        blocks.append("\n".join([f"### {table.title}", "", *lines]))
    return "\n\n".join(blocks) + "\n"
