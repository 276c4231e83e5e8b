"""Whether a chain may be worth an op, from what all ranks of its group have in common.

A collective's own contract makes its tensor, group and dtype equal on all ranks. What each computes
before or after it is its own affair: a contracted size that the ranks do not divide, a bias that
one of them adds. A rank that cuts a collective waits for ranks that do not, so whether the op is
there has to follow from what is common, and no rank can ask another before it compiles.
"""

from __future__ import annotations

from dataclasses import replace

from overlapc.planning.problem import COLLECTIVE_FIRST, Problem

SHARES = tuple(2.0**power for power in range(-2, 4))
"""Sizes that a GEMM has beside a collective, in parts of that collective's own: chosen. Layers of a
model contract, or give, a fourth of its hidden size (narrow experts) to eight times as much (gate
and up together), of which each rank has its part."""


def typical(problem: Problem) -> list[Problem]:
    """Return chains of usual sizes around the same collective.

    They are equal on ranks whose own chains differ in their contracted size (consumers: in their
    columns) and in what they compute beside the GEMM.
    """
    common = replace(problem.common(), cuts_columns=may_cut_columns(problem))
    size, name = (common.k, "n") if common.order == COLLECTIVE_FIRST else (common.n, "k")
    # Experts are dealt out whole, layers in parts.
    parts = 1 if common.collective == "all_to_all" else common.world_size
    sizes = dict.fromkeys(max(1, round(share * size / parts)) for share in SHARES)
    return [replace(common, **{name: other}) for other in sizes]


def may_cut_columns(problem: Problem) -> bool:
    """Return whether a rank could cut columns, whatever this one computes beside its GEMM."""
    return not problem.is_consumer and (problem.axis == 0 or problem.collective == "all_reduce")


def are_alike(one: Problem, other: Problem, *, rows: bool) -> bool:
    """Return whether ranks of one group may have both at one call; with ``rows``, of other rows.

    Blocks of rows, and rows that stay together, may then be as many as a hint said.
    """
    return _without_own(one, rows) == _without_own(other, rows)


def _without_own(problem: Problem, rows: bool) -> Problem:
    common = problem.common()
    own = {"n" if common.order == COLLECTIVE_FIRST else "k": 0}
    hinted = {"m": 0, "blocks": 1, "row_multiple": common.parts} if rows else {}
    return replace(common, **own, **hinted)
