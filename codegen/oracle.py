"""What a generated GEMM must compute, and how far from it rounding may lead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from overlapc.codegen.spec import GemmSpec

if TYPE_CHECKING:
    from torch import Tensor

HALF_STEP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "tf32": 2.0**-11}
"""The largest relative error of one rounding to nearest."""
DEVIATIONS = 4.0
"""Standard deviations of a random walk of roundings that are allowed; chosen."""
STEP_K = 16
"""Products that a matrix unit adds before it cuts the sum to float32; the least of all devices."""


def random_operand(layout: str, rows: int, columns: int, dtype: str, device: str) -> Tensor:
    """Normal random values ``[rows, columns]`` in the layout that a spec names."""
    import torch

    kind = getattr(torch, dtype)
    match layout:
        case "row":
            return torch.randn(rows, columns, device=device).to(kind)
        case "col":
            return torch.randn(columns, rows, device=device).to(kind).t()
    return torch.randn(rows, 3, columns, 2, device=device).to(kind)[:, 1, :, 1]


def error_over_bound(spec: GemmSpec, a: Tensor, b: Tensor, bias: Tensor | None, c: Tensor) -> float:
    """The largest ``|C - float64|`` over what roundings explain for normal random operands.

    At most 1 for a right result; infinite where C is not finite. The bound adds one rounding of the
    result, and for the float32 sum along k a random walk (rounding) plus a drift (matrix units cut
    instead of rounding). A sum kept in float16 or bfloat16, or operands rounded to tf32, exceed it.
    """
    import torch

    k = max(a.shape[1], 1)
    reference = a.double() @ b.double() + (0 if bias is None else bias.double())
    lengths = a.double().square().sum(1, keepdim=True).sqrt() * b.double().square().sum(0).sqrt()
    summing = HALF_STEP["float32"] * (1 + math.sqrt(k) / STEP_K)
    if spec.precision == "tf32":
        summing += HALF_STEP["tf32"] / math.sqrt(k)
    bound = HALF_STEP[spec.out] * reference.abs() + DEVIATIONS * summing * (1 + lengths)
    ratio = (c.double() - reference).abs() / bound
    return torch.where(c.isfinite(), ratio, torch.inf).max().item() if c.numel() else 0.0
