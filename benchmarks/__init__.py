"""Benchmarks of the core, each a command: `python -m benchmarks.slow_step --help`."""
