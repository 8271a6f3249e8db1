"""Measure, print ratios, write JSON and a chart.

    python -m benchmarks                      everything: an hour or two, and 12 GB of disk for a while
    python -m benchmarks --quick              a taste of it, in some minutes
    python -m benchmarks dense --networks AlexNet --rounds 9
    python -m benchmarks training --help      how good `fit` is: it has options of its own, and only prints

What was not measured this time stays in the JSON file as it was.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rich.console

from benchmarks import Record, Say, conversion, dense, process, tables, training
from benchmarks.files import FILES
from benchmarks.process import Limits

PACKAGES = (
    "onnx",
    "onnxruntime",
    "onnx-graphsurgeon",
    "numpy",
    "protobuf",
    "onnxslim",
    "onnxsim",
    "onnxscript",
    "torch",
)
QUICK = {"files": ["vgg16", "nodes-10k"], "networks": ["AlexNet"], "sizes": [512], "batches": [1, 8], "rounds": 1}


def main() -> None:
    """Run the parts that were asked for."""
    if sys.argv[1:2] == ["training"]:
        training.main(sys.argv[2:])
        return
    given, console = _parse(), rich.console.Console()
    stored = given.output.with_suffix(".json")
    results: dict[str, Any] = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, console.status("") as status:

        def say(words: str) -> None:
            status.update(words)
            process.wait_until_quiet(given.patience)

        for part in given.parts or PARTS:
            records = list(PARTS[part](Path(folder), given, say))
            results[part] = {"date": datetime.date.today().isoformat(), "machine": _machine(), "records": records}
            stored.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    found = list(tables.tables({part: results[part]["records"] for part in PARTS if part in results}))
    tables.show(found, console)
    if given.markdown:
        given.markdown.write_text(tables.markdown(found), "utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        console.print("no chart: matplotlib is not installed")
    else:
        from benchmarks import chart

        chart.draw({part: result["records"] for part, result in results.items()}, given.output.with_suffix(".png"))


def _conversion(folder: Path, given: argparse.Namespace, say: Say) -> Iterator[Record]:
    return conversion.run(folder, given.files, given.rounds, Limits(given.seconds, given.memory << 30), say)


def _dense(folder: Path, given: argparse.Namespace, say: Say) -> Iterator[Record]:
    for network in given.networks:
        sizes = [dense.CAFFE, *given.sizes] if network == "AlexNet" else given.sizes
        yield from dense.dense(folder, network, sizes, given.rounds, say)


def _native(folder: Path, given: argparse.Namespace, say: Say) -> Iterator[Record]:
    for network in given.networks:
        yield from dense.native(folder, network, given.batches, given.rounds, say)


def _stride(folder: Path, given: argparse.Namespace, say: Say) -> Iterator[Record]:
    for network in given.networks:
        yield from dense.stride(folder, network, given.sizes[:1], given.rounds, say)


def _beside(folder: Path, given: argparse.Namespace, say: Say) -> Iterator[Record]:
    if importlib.util.find_spec("torch") is None:
        return
    from benchmarks.beside import NETWORKS, beside

    for network in NETWORKS:
        yield from beside(folder, network, given.sizes[-1:], given.rounds, say)


PARTS: dict[str, Callable[[Path, argparse.Namespace, Say], Iterator[Record]]] = {
    "conversion": _conversion,
    "dense": _dense,
    "beside": _beside,
    "native": _native,
    "stride": _stride,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them")
    parser.add_argument("--quick", action="store_true", help="few and small ones, one round")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), metavar="FILE", help=", ".join(FILES))
    parser.add_argument(
        "--networks", nargs="+", choices=dense.NETWORKS, default=list(dense.NETWORKS), metavar="NETWORK",
        help=", ".join(dense.NETWORKS),
    )  # fmt: skip
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024], help="of the large images")
    parser.add_argument("--batches", nargs="+", type=int, default=list(dense.BATCHES), help="at the native size")
    parser.add_argument("--rounds", type=int, default=5, help="in which everything takes its turn")
    parser.add_argument("--seconds", type=float, default=600, help="after which a conversion is given up")
    parser.add_argument("--memory", type=int, default=12, help="GiB with which a conversion is given up")
    parser.add_argument("--patience", type=float, default=0, help="seconds to wait for a busy machine, each time")
    parser.add_argument("--folder", type=Path, help="for the models, on a disk rather than in memory")
    parser.add_argument("--output", type=Path, default=Path("performance"), help="results: .json and .png of this name")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables for a document too")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"there is no part '{min(unknown)}'")
    if given.quick:
        vars(given).update(QUICK)
    return given


def _machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "load": round(os.getloadavg()[1], 1),
        "system": platform.system(),
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := _version(package))},
    }


def _processor() -> str:
    """Its name and its widest vectors, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return ", ".join(filter(None, (facts.get("model name", platform.machine()), vectors)))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
