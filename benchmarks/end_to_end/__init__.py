"""A sharded Llama end to end: ``python -m benchmarks.end_to_end``."""
