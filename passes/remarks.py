"""What a report, and nothing else, has beside the reason of a chain: it takes time to find out."""

from __future__ import annotations

from overlapc.errors import ProblemError
from overlapc.graphs.chains.chain import Chain, symbolic_rows
from overlapc.planning.crossovers import crossovers_in
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan as plan_with_kernels
from overlapc.planning.target import Target

MOST_ROWS = 1 << 17
"""Row counts up to which changes of the schedule are told."""


def remarks(chain: Chain, plan: Plan, target: Target) -> str:
    """Return sentences to be put behind the reason for a plan that nobody asked for by name."""
    return _untried_kernel(plan, target) + _by_rows(chain, plan, target)


def _untried_kernel(plan: Plan, target: Target) -> str:
    """That a generated kernel is predicted to be faster, where none has been tried."""
    best = plan_with_kernels(plan.problem, target)
    if best.schedule != "signaled" or plan.schedule == "signaled":
        return ""
    times = plan.predicted_seconds / best.predicted_seconds
    return (
        f" A generated kernel that signals {len(best.rows)} groups is predicted to be {times:.2f} "
        "times as fast, but none has run here: overlapc calibrate --chains tries it."
    )


def _by_rows(chain: Chain, plan: Plan, target: Target) -> str:
    """Where the schedule changes with rows that vary, in terms of their symbol."""
    rows = symbolic_rows(chain)
    if rows is None:
        return ""
    high = max(1, MOST_ROWS // max(1, int(rows.subs(dict.fromkeys(rows.free_symbols, 1)))))
    try:
        found = crossovers_in(
            rows, plan.problem, target, 1, high, by_groups=False, untried_kernels=False
        )
    except (ProblemError, NameError):  # a function of sizes that has no name here
        return ""
    return f" With {rows} rows: {found}"
