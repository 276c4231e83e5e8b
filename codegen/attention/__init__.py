"""Softmax attention as one generated kernel: its spec, its scores, and where φ comes from."""
