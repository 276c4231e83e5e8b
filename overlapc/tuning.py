"""Run the best plans of a report's chains on a group, and let the target remember which won."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch.distributed as dist

from overlapc.calibration import Progress, find_target, group_errors, target_name
from overlapc.errors import ProblemError
from overlapc.planning.candidates import top_plans
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target, stored_path
from overlapc.planning.tuned import TunedPlan
from overlapc.reporting.records import Report
from overlapc.runtime.measuring import Bench
from overlapc.runtime.trials import Trials

CANDIDATES = 3
"""Plans that are run of each problem, ``serial`` among them, beside those of generated kernels."""

FEWEST_ROUNDS, MOST_ROUNDS = 5, 25
"""In each of which every plan runs once: medians of fewer are noise, of more no better."""

TIE = 0.01
"""Share of the serial time below which a cut has not won: it would be gone the next day."""

Runner = Callable[[Plan], float]
"""Runs a plan's problem as the plan says: a library's GEMM cut into its groups, of which one is
``serial``, or the generated kernel of a ``signaled`` plan. Seconds on this rank."""

CanRun = Callable[[Plan], bool]
"""Whether this rank can run a plan, for which it makes everything ready; nothing is sent."""


def tune_chains(
    chains: Report | Iterable[Problem],
    group: dist.ProcessGroup | None = None,
    target: Target | None = None,
    *,
    run: Runner | None = None,
    can_run: CanRun | None = None,
    seconds: float = 30.0,
    save: bool = True,
    progress: Progress | None = None,
) -> Target:
    """Measure the best plans of every chain on the group; the target with what won.

    ``chains`` are the planned sites of a report, or problems; those for other group sizes are left
    out, and those of float8. Every member calls it at the same time, with nothing else running, and
    gets rank 0's chains and target (by default the group's own, `find_target`). Plans that one
    member cannot run are left out on all. In each round every plan of a problem runs once; the
    slowest rank counts, and of the rounds the median. Takes about ``seconds``. With ``save`` each
    member stores the target where `find_target` looks. Raises, on every member, GroupError where
    the group is gone or a member leaves, ProblemError where there is nothing to tune, TargetError
    where the target cannot be read or lacks a rate.
    """
    with group_errors():
        bench = Bench.of(group)
        name = target_name(bench.device.type, bench.backend, bench.world_size)
        known, problems = bench.by_first(
            lambda: (
                target or find_target(bench.device.type, bench.backend, bench.world_size),
                _problems(chains, bench.world_size),
            )
        )
        # What the target has no rates for has no plans to choose from; if that is all, it is said.
        problems = tuple(p for p in problems if not known.lacks(p)) or problems
        if run is None:
            trials = Trials(bench.group, bench.device, known)
            run, can_run = trials.run, trials.can_run
        tuned = _tuned(bench, known, problems, run, can_run or _any_plan, seconds, progress)
    others = tuple(plan for plan in known.tuned if plan.problem not in set(problems))
    best = replace(known, name=name, tuned=others + tuned)
    if save:
        best.save(stored_path(name))
    return best


def _problems(chains: Report | Iterable[Problem], world_size: int) -> tuple[Problem, ...]:
    """The distinct problems that can be cut at all, and be tried, in their order."""
    if isinstance(chains, Report):
        chains = [site.plan.problem for site in chains.sites if site.plan]
    found = dict.fromkeys(problem.resolved() for problem in chains)
    return tuple(p for p in found if p.world_size == world_size > 1 and p.flops and _is_tried(p))


def _is_tried(problem: Problem) -> bool:
    """Whether a trial can compute it: GEMMs of float8 take scales, of which it knows nothing."""
    return not problem.dtype.startswith("float8")


def _any_plan(plan: Plan) -> bool:
    return True


def _tuned(
    bench: Bench,
    target: Target,
    problems: Sequence[Problem],
    run: Runner,
    can_run: CanRun,
    seconds: float,
    progress: Progress | None,
) -> tuple[TunedPlan, ...]:
    if not problems:
        raise ProblemError(
            f"No chain is planned for {bench.world_size} ranks.",
            where="tune_chains",
            remedy="save a report of a model compiled for as many ranks as the group has",
        )
    found = []
    for index, problem in enumerate(problems):
        if progress:
            progress(f"{problem.kind} {problem.m}x{problem.n}x{problem.k}", index / len(problems))
        plans = top_plans(problem, replace(target, tuned=()), CANDIDATES)
        # Whoever cannot run a plan must not leave the others alone with its collectives.
        plans = [plan for plan in plans if not bench.slowest(0.0 if can_run(plan) else 1.0)]
        found.append(_best(bench, plans, run, seconds / len(problems)))
    return tuple(found)


def _best(bench: Bench, plans: Sequence[Plan], run: Runner, seconds: float) -> TunedPlan:
    """The plan that won; the serial one where none beats it by more than a tie."""

    def round_of(order: Sequence[Plan]) -> dict[Plan, float]:
        times = {}
        for plan in order:
            bench.rest()
            times[plan] = bench.slowest(run(plan))
        return times

    # The first round warms up, and tells how many there is time for.
    start = bench.now()
    round_of(plans)
    once = bench.slowest(bench.now() - start)
    rounds = range(max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / once))))
    # Nobody always runs first: after each other, plans find different caches and links.
    taken = [round_of([*plans[i % len(plans) :], *plans[: i % len(plans)]]) for i in rounds]
    medians = {plan: statistics.median(t[plan] for t in taken) for plan in plans}
    serial = next(plan for plan in plans if plan.schedule == "serial")
    best = min(plans, key=lambda plan: medians[plan])
    # By rounds: what disturbs a round disturbs both.
    if statistics.median(t[best] / t[serial] for t in taken) > 1 - TIE:
        best = serial
    return TunedPlan(best.problem, best.rows, medians[best], best.by, best.tile)
