"""Seconds of a producer's problem that is cut into groups of columns, not of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overlapc.planning.cost import Costs
from overlapc.planning.problem import COLUMNS, ROWS, Problem
from overlapc.planning.target import Target

COLUMN_GRANULARITY = 64
"""Columns of the smallest unit: some register blocks of CPU libraries, some cache lines of C."""


@dataclass(frozen=True)
class ColumnCosts(Costs):
    """As `Costs`, where a group is some columns of C, and with them of B, and all rows.

    So each group packs its own part of the weight only, which groups of rows all pack again. But
    what has come of a group is not where it belongs in memory: one more pass puts it there.
    """

    by: ClassVar[str] = COLUMNS

    @property
    def size(self) -> int:
        """Columns of the problem, all groups together."""
        return self.problem.n

    @property
    def granule(self) -> int:
        """Groups are of any number of columns."""
        return 1

    @property
    def tile(self) -> int:
        """Columns of the fewest whole tiles that make a unit."""
        tile = self.rates.tile_columns
        return tile * -(-COLUMN_GRANULARITY // tile)

    def gemm(self, columns: int, /, *, beside: bool = False) -> float:
        """Seconds of a library GEMM for ``columns`` columns and their share of pointwise work."""
        if not columns:
            return 0.0
        p = self.problem
        extra = p.epilogue_bytes * columns // p.n
        least = self.waves_beside(p.m, columns) if beside else 0.0
        return self.rates.seconds(p.m, columns, p.k, p.item_bytes, extra, least)

    def placing(self, columns: int) -> float:
        """Seconds of the pass that puts so many columns of the result in their place.

        Of a reduce-scatter they have the rows of one rank.
        """
        p = self.problem
        rows = p.m // p.world_size if p.collective == "reduce_scatter" else p.m
        return self.rates.pointwise_seconds(2 * p.sent_bytes(rows, columns))

    def compute(self, columns: int, /, *, beside: bool = False) -> float:
        """Seconds of compute of a group of ``columns`` columns, with putting it in its place."""
        return self.gemm(columns, beside=beside) + self.placing(columns) + self.issue(columns)

    def sent_bytes(self, columns: int, /) -> int:
        """Bytes that ``columns`` columns of what is sent have, whole on one rank."""
        return self.problem.sent_bytes(self.problem.m, columns)


def costs_by(by: str, problem: Problem, target: Target) -> Costs:
    """The costs of groups of rows or of columns, as ``by`` says."""
    return {ROWS: Costs, COLUMNS: ColumnCosts}[by](problem, target)
