"""Attention in numbers: which is worth a rewrite, which kernel, and where φ comes from."""
