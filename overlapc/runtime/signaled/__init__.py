"""Chains whose GEMM is one generated kernel that signals each group as it is computed."""
