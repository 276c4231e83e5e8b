"""Linear layers of few rows on a processor: ``python -m benchmarks.linear``."""
