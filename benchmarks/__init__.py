"""What colorjax is measured by: `python -m benchmarks NAME`; see docs/performance.md."""
