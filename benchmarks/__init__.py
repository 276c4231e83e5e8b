"""Measurements of overlapc, run from the repository root with ``python -m benchmarks.NAME``."""
