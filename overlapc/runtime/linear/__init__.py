"""Linear layers of few rows that run: the op, its kernels, and the library where that is faster."""
