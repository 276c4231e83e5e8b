"""What two processes compute and send of one signaled GEMM; needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from overlapc.codegen import GemmSpec
from overlapc.planning.packed_order import PackedOrder
from overlapc.runtime.cutting import columns
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.signaled.staged import StagedGemm

SPEC = GemmSpec("float32", "float32", 16, 16, 16)
SWEEP = 2
"""Tile rows that are visited together."""
LATE = replace(SPEC, flatten=True)
"""Announces a tile while the next one is computed, also where the interpreter has no pipeline."""
N, K = 24, 24
"""Tiles are not whole at the last columns, nor at the last step along k."""
RANKS, ME = 2, 1


@dataclass(frozen=True)
class Case:
    """A GEMM whose groups are sent by a collective."""

    spec: GemmSpec
    collective: str
    counts: tuple[int, ...]
    """Rows of each group, of every rank where dimension 0 is dealt out; or its tiles."""
    axis: int = 0

    @property
    def units(self) -> int:
        """Rows of C; packed ones are all of four tile rows, in whole sweeps."""
        if self.spec.order == "packed":
            return 57
        by_rank = self.collective != "all_reduce" and not self.axis
        return sum(self.counts) * (RANKS if by_rank else 1)

    def gemm(self, sender: Any) -> StagedGemm:
        """The groups that are announced, and the collective of each."""
        kernel: Any = SimpleNamespace(spec=self.spec)
        if self.spec.order == "packed":
            order = PackedOrder(self.units, N, self.spec.tile.swept(SWEEP))
            deal = Dealing("all_reduce", 0, order.tiles, RANKS, ME)
            return StagedGemm.packed(kernel, sender, producer_parts(deal, self.counts), order)
        deal = Dealing(self.collective, self.axis, self.units, RANKS, ME)
        return StagedGemm.of(
            kernel, sender, producer_parts(deal, self.counts), result_units=deal.result_units,
            across=RANKS if self.axis else 1, first_run=ME, sweep=SWEEP,
        )  # fmt: skip

    def wanted(self, c: torch.Tensor) -> torch.Tensor:
        """What PyTorch's collective gives of C, rank number r of which has r + 1 times as much."""
        return of_all_ranks(self.collective, columns.pack(c, RANKS) if self.axis else c)


def of_all_ranks(collective: str, sent: torch.Tensor) -> torch.Tensor:
    """What this rank receives where rank number r sends r + 1 times what this one has."""
    everything = sum(range(1, RANKS + 1))
    if collective == "all_reduce":
        return everything * sent
    mine = sent.chunk(RANKS)[ME]
    if collective == "reduce_scatter":
        return everything * mine
    return torch.cat([(rank + 1) * mine for rank in range(RANKS)])


ROWS, PART, TILES = (16, 32, 10), (16, 13), (1, 4, 3)
CASES = {
    "bands": Case(SPEC, "all_reduce", ROWS),
    "late": Case(LATE, "all_reduce", ROWS),
    "packed": Case(replace(SPEC, order="packed"), "all_reduce", TILES),
    "late and packed": Case(replace(LATE, order="packed"), "all_reduce", TILES),
    "scattered": Case(SPEC, "reduce_scatter", PART),
    "late and scattered": Case(LATE, "reduce_scatter", PART),
    "scattered by columns": Case(SPEC, "reduce_scatter", ROWS, axis=1),
    "all to all": Case(LATE, "all_to_all", PART),
}
