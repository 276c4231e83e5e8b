"""A GEMM and its collective over an emulated link: ``python -m benchmarks.overlap_link``."""
