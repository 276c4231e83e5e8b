"""Where the rows of C stand so that each group is one range of memory, and so is each rank's part.

The GEMM stores to a staging buffer in place of C: group after group, and inside a group in the
order in which its collective sends, rank after rank. What a collective sends is then contiguous,
and what it receives lands in the rows that PyTorch's own collective would have written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from overlapc.codegen import Bands
from overlapc.codegen.bands import Run
from overlapc.errors import KernelError
from overlapc.runtime.cutting.layout import Part


@dataclass(frozen=True)
class Staging:
    """A permutation of the rows of C, which the parts of a producer decide."""

    runs: tuple[tuple[Run, ...], ...]
    """Of each group, in the order of the staging buffer; a group may have no rows on this rank."""

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Staging:
        """The staging of a producer's groups, a row a unit; of an all-reduce it is C itself."""
        groups: list[tuple[Run, ...]] = []
        staged = 0
        for part in parts:
            runs = []
            for row, rows in _sent(part):
                runs.append(Run(row, staged, rows))
                staged += rows
            groups.append(tuple(runs))
        return cls(tuple(groups))

    def bands(self, block_m: int, first_run: int = 0) -> Bands:
        """What the kernel announces: the groups that have rows here.

        Inside a group, run number ``first_run`` is computed first and the others go round from it:
        another one on each rank, lest all read and send the same at once. KernelError without rows.
        """
        announced = [runs for runs in self.runs if runs]
        if not announced:
            raise KernelError(
                "There is no row to compute.",
                where="the staging of a GEMM",
                remedy="send the empty groups without a kernel",
            )
        return Bands(tuple(_rotated(runs, first_run) for runs in announced), block_m)


def _rotated(runs: tuple[Run, ...], by: int) -> tuple[Run, ...]:
    by %= len(runs)
    return runs[by:] + runs[:by]


def _sent(part: Part) -> tuple[tuple[int, int], ...]:
    """(first, count) of the rows of C that stay together, in the order in which they are sent."""
    if part.sent.is_all:
        return part.computed.slices
    if part.computed.is_all:
        return part.sent.slices
    raise KernelError(
        "A group that sends some of what it computes cannot be staged.",
        where=f"{part}",
        remedy="use the chunked schedule, and report this",
    )


def consecutive(start: int, counts: Sequence[int]) -> tuple[slice, ...]:
    """Ranges of so many rows, one after another: of groups, or of the ranks in one."""
    return tuple(slice(a, b) for a, b in pairwise(accumulate(counts, initial=start)))
