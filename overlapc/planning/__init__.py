"""Numbers only: sizes and measured rates in, plans and seconds out. Imports no torch, no triton."""

from overlapc.planning.search import plan_gemm as plan

__all__ = ["plan"]
