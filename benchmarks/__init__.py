"""How fast, how large, compared with what: see `python -m benchmarks --help` and docs/performance.md."""

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]  # one measurement, as it is stored in the JSON file
Say = Callable[[str], None]  # called with what will be measured next, before it is
