"""The schedules that need nothing of the device: ``serial`` and ``chunked``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

OPERATIONS = {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG}


def run_rows(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    rows: Sequence[int],
    group: dist.ProcessGroup,
    options: dist.AllreduceOptions,
) -> None:
    """Fill ``out[m, n]`` with the all-reduce of ``a @ b (+ bias)``, in bands of ``rows``.

    Each band's all-reduce is on its way while the next band is computed; one band is ``serial``.
    Returns when all of ``out`` is reduced, as far as the device's current stream can see.
    """
    if len(rows) == 1:
        gemm(out, a, b, bias)
        group.allreduce([out], options).wait()
        return
    works = []
    bands = zip(out.split(rows), a.split(rows), split_bias(bias, rows), strict=True)
    for band, rows_of_a, rows_of_bias in bands:
        gemm(band, rows_of_a, b, rows_of_bias)
        works.append(group.allreduce([band], options))
    for work in works:
        work.wait()


def gemm(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Write ``a @ b (+ bias)`` to ``out`` with the vendor's library."""
    if bias is None:
        return torch.mm(a, b, out=out)
    return torch.addmm(bias, a, b, out=out)


def split_bias(bias: torch.Tensor | None, rows: Sequence[int]) -> Sequence[torch.Tensor | None]:
    """Return each band's part of a bias; all of one that is the same for every row."""
    if bias is None or bias.dim() < 2 or bias.size(0) != sum(rows):
        return [bias] * len(rows)
    return bias.split(rows)


def all_reduce_options(reduce: str) -> dist.AllreduceOptions:
    """Return what c10d has to know to start an all-reduce and not wait for it."""
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp(OPERATIONS[reduce])
    options.asyncOp = True
    return options
