"""Kernels of attention on a GPU."""
