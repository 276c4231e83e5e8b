"""A cut that was measured to be the fastest: what a target knows of one problem for certain."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.planning.problem import Problem


@dataclass(frozen=True)
class TunedPlan:
    """The rows that won when the best plans of a problem were run side by side on the group."""

    problem: Problem
    """The exact problem; `Problem.resolved`, so that equal meanings are equal."""
    rows: tuple[int, ...]
    """Of each group; a single one is ``serial``."""
    seconds: float
    """Median on the slowest rank."""

    def __post_init__(self) -> None:
        if self.problem != self.problem.resolved():
            raise ValueError("the problem of a tuned plan leaves something to a default")
        granule = self.problem.granule
        if sum(self.rows) != self.problem.m or any(r < 1 or r % granule for r in self.rows):
            raise ValueError(f"rows {self.rows} do not cut {self.problem.m} rows by {granule}")
        if not self.seconds > 0:
            raise ValueError("seconds of a tuned plan must be above zero")
