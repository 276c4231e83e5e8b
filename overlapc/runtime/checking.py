"""Whether a call's operands fit its chain, and what the other ranks are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
import torch.distributed as dist

from overlapc.errors import ProblemError
from overlapc.runtime.cutting.layout import Dealing
from overlapc.runtime.programs.program import ROWS
from overlapc.runtime.ranks import comparing
from overlapc.runtime.spec import ChainSpec

Sizes = tuple[int, ...]


def dealing_of(
    spec: ChainSpec,
    operands: Sequence[torch.Tensor],
    outer: int,
    receives: Sizes,
    sends: Sizes,
    group: dist.ProcessGroup,
) -> Dealing:
    """Return how the units of these operands are dealt out; ``ProblemError`` if they cannot be."""
    ranks, me = group.size(), group.rank()
    given = zip(operands, spec.program.modes, strict=True)
    rows = [t.shape[0] if t.dim() else 0 for t, mode in given if mode == ROWS]
    if spec.is_consumer:
        rows[0] = _gathered(spec, rows[0], receives, ranks)
    if not rows or set(rows) != {rows[0]}:
        _refuse(spec, f"Operands that are cut by rows have {rows} rows, which differ")
    deal = Dealing(spec.collective, spec.axis, rows[0], ranks, me, outer, receives, sends)
    if deal.is_uneven:
        _check_uneven(spec, deal, operands[0].shape[0] if spec.is_consumer else rows[0])
    elif deal.by_rank and (outer < 1 or deal.units % (outer * ranks)):
        _refuse(spec, f"{deal.units} rows are not {outer} times the same for {ranks} ranks")
    elif spec.kind == "all_to_all_gemm" and operands[0].shape[0] % ranks:
        _refuse(spec, f"{operands[0].shape[0]} rows are not the same for {ranks} ranks")
    return deal


def _gathered(spec: ChainSpec, rows: int, receives: Sizes, ranks: int) -> int:
    """Units of the program when the collective has given so many for ``rows``."""
    if spec.collective == "all_gather":
        return rows * (1 if spec.axis else ranks)
    if spec.axis:
        return rows // ranks
    return sum(receives) if receives else rows


def _check_uneven(spec: ChainSpec, deal: Dealing, sent: int) -> None:
    sizes = f"receives {deal.receives} and sends {deal.sends} rows"
    if not deal.by_rank or deal.outer != 1:
        _refuse(spec, f"Only whole rows are sent unevenly, but one rank {sizes}")
    counts = {len(deal.receives), len(deal.sends)}
    if counts != {deal.ranks} or min(*deal.receives, *deal.sends) < 0:
        _refuse(spec, f"Rank {deal.me} of {deal.ranks} {sizes}")
    if sum(deal.sends) != sent or deal.receives[deal.me] != deal.sends[deal.me]:
        _refuse(spec, f"Rank {deal.me} has {sent} rows to send, but {sizes}")


def _refuse(spec: ChainSpec, what: str) -> NoReturn:
    raise ProblemError(
        f"{what}.",
        where=comparing.place_of(spec),
        remedy="call the compiled function with the sizes that its collective takes",
    )


def check_columns(spec: ChainSpec, sent: torch.Tensor, ranks: int) -> None:
    """Raise ``ProblemError`` unless dimension 1 has the same number of columns for every rank."""
    if sent.dim() < 2 or sent.shape[1] % ranks:
        _refuse(spec, f"Columns of {tuple(sent.shape)} are not the same number for {ranks} ranks")


def sizes_text(deal: Dealing, rest: Sequence[int], dtype: torch.dtype) -> str:
    """Return the sizes that a collective wants equal on all ranks, of what is moved."""
    rows = "*" if deal.is_uneven else f"{deal.outer}x{deal.units}" if deal.outer > 1 else deal.units
    return comparing.sizes_text((rows, *rest), dtype)


def verify(spec: ChainSpec, group: dist.ProcessGroup, deal: Dealing, text: str) -> None:
    """Raise ``DisagreementError`` on every rank unless this call's sizes fit on all of them."""
    call, at = comparing.call_of(spec), comparing.place_of(spec)
    comparing.verify(group, call, text, deal.receives, deal.sends, spec.wait_seconds, at)
