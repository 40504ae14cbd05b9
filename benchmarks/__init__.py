"""Benchmarks: `python -m benchmarks NAME`; see docs/performance.md."""
