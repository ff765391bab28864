"""Benchmarks that a stranger can run: `make bench`, or one case alone: `make bench CASE=latency`."""
