"""A cut that was measured to be the fastest: what a target knows of one problem for certain."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.planning.problem import ROWS, Problem
from overlapc.planning.tiles import Tile

TRIALS = 6
"""Format of target files since which trials compute what they do now. Those of older files may have
run less than the chains whose problems they stand under."""


@dataclass(frozen=True)
class TunedPlan:
    """The groups that won when the best plans of a problem were run side by side on the group."""

    problem: Problem
    """The exact problem; `Problem.resolved`, so that equal meanings are equal."""
    rows: tuple[int, ...]
    """Rows of each group, or its columns or tiles where ``by`` says so; a single group is
    ``serial``."""
    seconds: float
    """Median on the slowest rank."""
    by: str = ROWS
    """What groups are made of, "rows", "columns" or "tiles"."""
    tile: Tile | None = None
    """Tile of the generated kernel that won, whose groups were signaled; None where a library
    won."""
    since: int = TRIALS
    """Format of the file that it was first written to, where that is an older one."""

    @property
    def is_stale(self) -> bool:
        """Whether an older version ran it."""
        return self.since < TRIALS

    def __post_init__(self) -> None:
        if self.problem != self.problem.resolved():
            raise ValueError("the problem of a tuned plan leaves something to a default")
        if not self.problem.is_cut_by(self.rows, self.by, self.tile):
            raise ValueError(f"{self.by} {self.rows} do not cut the problem into groups")
        if not self.seconds > 0:
            raise ValueError("seconds of a tuned plan must be above zero")
