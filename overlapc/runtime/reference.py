"""What every op means, written with plain torch: the oracle of all tests, never a fast path."""

from __future__ import annotations

import torch


def gemm_all_reduce(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, group: str, reduce: str
) -> torch.Tensor:
    """Return the all-reduce over ``group`` of ``a[m, k] @ b[k, n] (+ bias)``."""
    product = torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
    functional = torch.ops._c10d_functional
    return functional.wait_tensor(functional.all_reduce(product, reduce, group))
