"""Whether a call's operands fit its chain, on this rank and across ranks: before it sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
import torch.distributed as dist

from overlapc.errors import ProblemError
from overlapc.runtime import groups
from overlapc.runtime.layout import Dealing
from overlapc.runtime.program import ROWS
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
        where=f"a call of overlapc::{spec.kind}, site {spec.site or '?'}",
        remedy="call the compiled function with the sizes that its collective takes",
    )


def check_columns(spec: ChainSpec, sent: torch.Tensor, ranks: int) -> None:
    """Raise ``ProblemError`` unless dimension 1 has the same number of columns for every rank."""
    if sent.dim() < 2 or sent.shape[1] % ranks:
        _refuse(spec, f"Columns of {tuple(sent.shape)} are not the same number for {ranks} ranks")


def sizes_text(deal: Dealing, rest: Sequence[int], dtype: torch.dtype) -> str:
    """Return the sizes that a collective wants equal on all ranks, of what is moved."""
    rows = "*" if deal.is_uneven else f"{deal.outer}x{deal.units}" if deal.outer > 1 else deal.units
    return f"{'x'.join(map(str, (rows, *rest)))} {str(dtype).removeprefix('torch.')}"


def verify(group: dist.ProcessGroup, deal: Dealing, text: str, seconds: float) -> None:
    """Raise ``DisagreementError`` on every rank unless this call's sizes fit on all of them."""
    what = "the sizes of a call differ"
    mine = f"{text}, sends {_spelled(deal.sends)}, receives {_spelled(deal.receives)}"
    if not deal.is_uneven:
        groups.compare(group, text, seconds, what=what)
        return
    values = groups.exchange(group, mine, seconds)
    parts = [value.split(", ") for value in values]
    if any(len(part) != 3 or part[0] != text for part in parts):
        groups.raise_disagreement(group, values, what)
    sends, receives = ([part[at].split(" ")[1].split("/") for part in parts] for at in (1, 2))
    if len(values) > 1 and list(zip(*sends, strict=True)) != [tuple(row) for row in receives]:
        groups.raise_disagreement(group, values, what="ranks expect other rows than are sent")


def _spelled(sizes: Sizes) -> str:
    return "/".join(map(str, sizes))
