"""The measured linear layers of one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overlapc.planning.linear.regions import LinearEntry, LinearProblem
from overlapc.planning.tables import MeasuredTable


@dataclass(frozen=True)
class LinearTable(MeasuredTable):
    """Every linear layer that was measured, by its problem."""

    KEY: ClassVar[str] = "overlapc_linear"
    FORMAT: ClassVar[int] = 5
    ABOUT: ClassVar[str] = "linear layers"
    AGAIN: ClassVar[str] = (
        "run overlapc calibrate --linear on this machine, or compile with linear='off'"
    )
    FOLDER: ClassVar[str] = "linear"

    entries: tuple[LinearEntry, ...] = ()

    def entry(self, problem: LinearProblem) -> LinearEntry | None:
        """What is known of exactly this problem."""
        return self._by_problem.get(problem)
