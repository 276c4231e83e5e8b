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
    reduce: str,
) -> None:
    """Fill ``out[m, n]`` with the all-reduce of ``a @ b (+ bias)``, in bands of ``rows``.

    Each band's all-reduce is on its way while the next band is computed; one band is ``serial``.
    Returns when all of ``out`` is reduced, as far as the device's current stream can see.
    """
    if len(rows) == 1:
        gemm(out, a, b, bias)
        start_all_reduce(out, group, reduce).wait()
        return
    works = []
    first = 0
    for count in rows:
        band = out.narrow(0, first, count)
        gemm(band, a.narrow(0, first, count), b, rows_of(bias, first, count, out.size(0)))
        works.append(start_all_reduce(band, group, reduce))
        first += count
    for work in works:
        work.wait()


def gemm(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Write ``a @ b (+ bias)`` to ``out`` with the vendor's library."""
    if bias is None:
        return torch.mm(a, b, out=out)
    return torch.addmm(bias, a, b, out=out)


def rows_of(bias: torch.Tensor | None, first: int, count: int, m: int) -> torch.Tensor | None:
    """Return the part of a bias that belongs to a band; one that is the same for all rows, whole."""
    if bias is None or bias.dim() < 2 or bias.size(0) != m:
        return bias
    return bias.narrow(0, first, count)


def start_all_reduce(band: torch.Tensor, group: dist.ProcessGroup, reduce: str) -> dist.Work:
    """Start the all-reduce of a contiguous band in place."""
    options = dist.AllreduceOptions()
    options.reduceOp = OPERATIONS[reduce]
    options.asyncOp = True
    return group.allreduce([band], options)
