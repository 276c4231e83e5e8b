"""Attention that runs: the op, its kernels, its gradients, and torch's own where those may not."""
