"""Sequences in pages, and their attention in float64 by eager calls over each sequence alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from overlapc.runtime.attention.paged import paged_attention

PAGE = 16


@dataclass(frozen=True)
class Case:
    """Sizes of one call of two heads of keys."""

    rows: int = 1
    groups: int = 2
    dim: int = 16
    value_dim: int = 16
    lengths: tuple[int, ...] = (50, 21)
    dtype: str = "float32"
    narrow: bool = False
    """Keys and values are float8, with a scale for each head."""
    window: int | None = None
    is_latent: bool = False
    """Keys begin with their values."""

    @property
    def allowed(self) -> float:
        """The largest deviation that roundings lead to."""
        return 2e-6 if self.dtype == "float32" else 3e-2


def operands(case: Case) -> dict[str, Any]:
    """Arguments of ``paged_attention``; NaN wherever nothing may be read."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    kept = torch.float8_e4m3fn if case.narrow else dtype
    batch, most = len(case.lengths), 4
    pages = batch * most + 3
    query = torch.randn(batch, 2 * case.groups, case.rows, case.dim).to(dtype)
    columns = case.dim - case.value_dim * case.is_latent, case.value_dim
    sides = [torch.full((pages, 2, PAGE, n), torch.nan) for n in columns]
    table = torch.randperm(pages)[: batch * most].view(batch, most).int()
    for b, length in enumerate(case.lengths):
        for key in range(length):
            for side in sides:
                side[table[b, key // PAGE], :, key % PAGE] = torch.randn(2, side.shape[-1])
        table[b, -(-length // PAGE) :] = 2**30
    found = {
        "query": query,
        "keys": sides[0].to(kept),
        "values": sides[1].to(kept),
        "table": table,
        "lengths": torch.tensor(case.lengths, dtype=torch.int32),
        "window": case.window,
    }
    if case.narrow:
        found |= {"k_scale": torch.rand(2) + 0.5, "v_scale": torch.rand(2) + 0.5}
    return found


def error(case: Case, given: dict[str, Any] | None = None) -> float:
    """The largest deviation of a call from float64; ``given`` in place of the case's own."""
    wanted = _wanted(case, operands(case))
    found = paged_attention(**(given or given_up(case, operands(case))))
    assert found.shape == wanted.shape
    assert found.dtype == getattr(torch, case.dtype)
    assert torch.equal(found.isnan(), wanted.isnan())
    return (found.double() - wanted).abs().nan_to_num().max().item()


def given_up(case: Case, given: dict[str, Any]) -> dict[str, Any]:
    """The same by a table that names no page before all windows, as servers have it; its own."""
    for b, length in enumerate(case.lengths if case.window is not None else ()):
        oldest = length - case.rows - (case.window or 0)
        given["table"][b, : max(oldest, 0) // PAGE] = -1
    return given


def _wanted(case: Case, given: dict[str, Any]) -> torch.Tensor:
    results = []
    for b, length in enumerate(case.lengths):
        places = [(int(given["table"][b, key // PAGE]), key % PAGE) for key in range(length)]
        sides: list[torch.Tensor] = []
        for name, scale in (("keys", "k_scale"), ("values", "v_scale")):
            held = given[name].double()
            if case.is_latent and name == "keys":
                held = torch.cat((given["values"].double(), held), -1)
            dim = held.shape[-1]
            rows = [held[page, :, slot] for page, slot in places]
            side = torch.stack(rows, 1) if rows else torch.zeros(2, 0, dim, dtype=torch.float64)
            if case.narrow:
                side = side * given[scale].double()[:, None, None]
            sides.append(side.repeat_interleave(case.groups, 0))
        scores = given["query"][b].double() @ sides[0].mT * case.dim**-0.5
        own = torch.arange(case.rows)[:, None] + length - case.rows
        key = torch.arange(length)
        off = key > own
        if case.window is not None:
            off |= key < own - case.window
        # A row that sees no key is zeros, as the product with no values is.
        weights = scores.masked_fill(off, -torch.inf).softmax(-1).masked_fill(off, 0)
        results.append(weights @ sides[1])
    return torch.stack(results)
