"""Benchmarks: they print figures and never pass or fail. `make bench` runs all; `python -m tests.bench NAME...` some."""
