"""How generated kernels are compiled, as text of their modules."""

from __future__ import annotations


def options_text(warps: int, stages: int, registers: int = 0) -> str:
    """``OPTIONS`` of a module; ``registers``, if any, are the most that a thread may take.

    A product and its sum are one instruction, as all budgets assume: Triton leaves that to an
    environment variable, whose default changes in 3.10.
    """
    most = f', "maxnreg": {registers}' if registers else ""
    return f'{{"num_warps": {warps}, "num_stages": {stages}, "enable_fp_fusion": True{most}}}'
