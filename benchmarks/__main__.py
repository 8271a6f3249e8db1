"""`python -m benchmarks`: measure, print ratios, write JSON and a chart."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rich.console

from benchmarks import conversion, dense, tables
from benchmarks.files import FILES

PARTS = ("conversion", "dense", "native")
PACKAGES = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "protobuf", "onnxslim", "onnxsim")


def main() -> None:
    """Run the parts that were asked for."""
    given = _parse()
    console = rich.console.Console()
    results: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": _machine()}
    if given.add and given.json.exists():
        results = json.loads(given.json.read_text("utf-8")) | results
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, console.status("") as status:
        where = Path(folder)
        if "conversion" in given.parts:
            results["conversion"] = conversion.run(where, given.files, given.rounds, given.limit, status.update)
        for network in given.networks:
            if "dense" in given.parts:
                sizes = [*([dense.CAFFE] if network == "AlexNet" else []), *given.sizes]
                results["dense"] = [
                    *(r for r in results.get("dense", []) if r["network"] != network),
                    *dense.dense(where, network, sizes, given.rounds, status.update),
                ]
            if "native" in given.parts:
                results["native"] = [
                    *(r for r in results.get("native", []) if r["network"] != network),
                    *dense.native(where, network, given.batches, given.rounds, status.update),
                ]
    found = list(tables.tables(results))
    tables.show(found, console)
    given.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if given.markdown:
        given.markdown.write_text(tables.markdown(found), "utf-8")
    if given.chart:
        _draw(results, given.chart, console)
