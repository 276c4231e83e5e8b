"""Chosen plans against fixed cuts: ``python -m benchmarks.plan_quality``."""
