"""How fast, how large, compared with what: see `python -m benchmarks --help` and docs/performance.md."""
