"""At which numbers of rows the best plan of a family of problems changes.

The family is one problem with other numbers of rows. Plans are made for sampled row counts and,
between two samples that differ, by halving down to neighbours on the grid of row counts. So every
change that is reported is exact: the row count below it has the one plan, it has the other. A plan
that comes and goes between two samples that agree is not seen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

from overlapc.errors import ProblemError
from overlapc.planning.problem import ROWS, Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan
from overlapc.planning.target import Target

if TYPE_CHECKING:
    import sympy

INTEGER_FUNCTIONS = {
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
}
"""Functions that torch's sizes have beside those of sympy, by name: planning does not import it."""

SAMPLES = 33
"""Row counts that are planned in any case, evenly spaced in their logarithm."""

MOST_SPOKEN = 6
"""Changes that a sentence tells one by one."""


@dataclass(frozen=True)
class Choice:
    """What tells two plans apart here: the schedule, and its groups if they are asked for."""

    schedule: str
    groups: int
    by: str = ROWS
    """What groups are made of."""

    @staticmethod
    def of(plan: Plan, *, by_groups: bool) -> Choice:
        """The choice that a plan makes; groups are left out unless asked ``by_groups``."""
        if not by_groups:
            return Choice(plan.schedule, 0)
        return Choice(plan.schedule, len(plan.rows), plan.by)

    def __str__(self) -> str:
        of = "" if self.by == ROWS else f" of {self.by}"
        return f"{self.schedule} in {self.groups} groups{of}" if self.groups > 1 else self.schedule


@dataclass(frozen=True)
class Crossover:
    """A place on the grid of row counts where the choice changes."""

    at: int
    """The first value with the new choice: of the symbol where there is one, else rows."""
    rows: int
    """Rows there."""
    before: Choice
    """At the grid's value before it."""
    after: Choice


@dataclass(frozen=True)
class Crossovers:
    """How the choice depends on the rows over a range. Prints as one sentence."""

    name: str
    """Name of what varies: a symbol, or "m"."""
    low: int
    """First value of the grid."""
    high: int
    """Last value of the grid."""
    first: Choice
    """At the first value."""
    changes: tuple[Crossover, ...]
    """In rising order."""

    def __str__(self) -> str:
        spoken = [f"{change.after} from {self.name} = {change.at}" for change in self.changes]
        text = ", ".join([f"{self.first} at {self.name} = {self.low}", *spoken[:MOST_SPOKEN]])
        if more := len(spoken) - MOST_SPOKEN:
            text += f", and {more} more changes" if more > 0 else ""
        return f"{text}, up to {self.name} = {self.high}."


def crossovers(
    problem: Problem, target: Target, low: int, high: int, *, by_groups: bool = True
) -> Crossovers:
    """How the plan of ``problem`` depends on its rows, from ``low`` to ``high``.

    The grid has the multiples of the problem's granule. Pointwise bytes grow with the rows. Raises
    ProblemError where no row count of the range is on the grid.
    """
    grid = range(-(-max(low, 1) // problem.granule) * problem.granule, high + 1, problem.granule)
    return _crossovers("m", problem, target, grid, lambda rows: rows, by_groups)


def crossovers_in(
    expression: sympy.Expr,
    problem: Problem,
    target: Target,
    low: int,
    high: int,
    *,
    by_groups: bool = True,
    untried_kernels: bool = True,
) -> Crossovers:
    """As `crossovers`, for rows that are an expression in one symbol, which goes from ``low`` to
    ``high``.

    The grid has the integers of the range that give a row count on the problem's own grid. Raises
    ProblemError for an expression without symbol or with several.
    """
    import sympy

    if len(expression.free_symbols) != 1:
        raise ProblemError(
            f"The rows {expression} have {len(expression.free_symbols)} symbols, not one.",
            where="crossovers_in",
            remedy="put numbers in place of the others",
        )
    (symbol,) = expression.free_symbols
    rows_at = sympy.lambdify(symbol, expression, [INTEGER_FUNCTIONS, "math"])
    rows = {value: round(rows_at(value)) for value in range(low, high + 1)}
    grid = [value for value, m in rows.items() if m > 0 and m % problem.granule == 0]
    plan_of = partial(plan, untried_kernels=untried_kernels)
    return _crossovers(str(symbol), problem, target, grid, rows.__getitem__, by_groups, plan_of)


def _crossovers(
    name: str,
    problem: Problem,
    target: Target,
    grid: Sequence[int],
    rows_at: Callable[[int], int],
    by_groups: bool,
    plan_of: Callable[[Problem, Target], Plan] = plan,
) -> Crossovers:
    if not grid:
        raise ProblemError(
            f"No value of {name} in the range gives a multiple of {problem.granule} rows.",
            where=f"crossovers of {problem.kind}",
            remedy="give a wider range",
        )

    @cache
    def choice(index: int) -> Choice:
        m = rows_at(grid[index])
        extra = problem.epilogue_bytes * m // problem.m if problem.m else 0
        varied = replace(problem, m=m, epilogue_bytes=extra)
        return Choice.of(plan_of(varied, target), by_groups=by_groups)

    def between(left: int, right: int) -> Iterator[Crossover]:
        if choice(left) == choice(right):
            return
        if right - left == 1:
            at = grid[right]
            yield Crossover(at, rows_at(at), choice(left), choice(right))
            return
        middle = (left + right) // 2
        yield from between(left, middle)
        yield from between(middle, right)

    sampled = _sampled(len(grid))
    changes = [change for left, right in pairwise(sampled) for change in between(left, right)]
    return Crossovers(name, grid[0], grid[-1], choice(0), tuple(changes))


def _sampled(count: int) -> list[int]:
    """Indexes from the first to the last, evenly spaced in the logarithm of their place."""
    places = (round(count ** (step / (SAMPLES - 1))) - 1 for step in range(SAMPLES))
    return sorted({0, count - 1, *places})
