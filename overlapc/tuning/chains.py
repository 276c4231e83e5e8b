"""Run the best plans of a report's chains on a group, and let the target remember which won."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch.distributed as dist

from overlapc.calibration import Progress, find_target, group_errors, target_name
from overlapc.errors import ProblemError, TrialError
from overlapc.planning.candidates import even_plans, plan_in_another_order, top_plans
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.signaled import why_no_overlap
from overlapc.planning.target import Target, stored_path
from overlapc.planning.tuned import TunedPlan
from overlapc.reporting.report import Report
from overlapc.runtime.measuring.bench import Bench
from overlapc.runtime.measuring.kernel_trials import trial_error
from overlapc.runtime.measuring.trials import Trials
from overlapc.runtime.ranks import patience

log = logging.getLogger(__name__)

CANDIDATES = 6
"""The best by prediction of each problem, ``serial`` among them, that are run at all, beside even
cuts and those of generated kernels."""

FIRST_ROUNDS = 3
"""After which only `FINALISTS` stay; the others are slower by more than rounds could mend."""

FINALISTS = 3
"""Plans that are measured afresh, beside ``serial``: who was lucky in the first rounds is not in
later ones."""

FEWEST_ROUNDS, MOST_ROUNDS = 5, 25
"""In each of which every plan runs once: medians of fewer are noise, of more no better."""

LAST_ROUNDS = 7
"""Of the winner beside ``serial``: it took less than it does in the rounds by which it won, seen to
be 2 % over six chains."""

TIE = 0.01
"""Share of the serial time below which a cut has not won: it would be gone the next day."""

Runner = Callable[[Plan], float]
"""Runs a plan's problem as the plan says: a library's GEMM cut into its groups, of which one is
``serial``, or the generated kernel of a ``signaled`` plan. Seconds on this rank; TrialError where
it has none, and its peers go on."""

WhyNot = Callable[[Plan], str]
"""Why this rank cannot run a plan, for which it makes everything ready; empty where it can. Nothing
is sent."""


def tune_chains(
    chains: Report | Iterable[Problem],
    group: dist.ProcessGroup | None = None,
    target: Target | None = None,
    *,
    run: Runner | None = None,
    why_not: WhyNot | None = None,
    seconds: float = 30.0,
    save: bool = True,
    progress: Progress | None = None,
) -> Target:
    """Measure the best plans of every chain on the group; the target with what won.

    ``chains`` are the planned sites of a report, or problems; those for other group sizes are left
    out, and those of float8 that do not say how they are scaled. Every member calls it at the same
    time, with nothing else running, and gets rank 0's chains and target (by default the group's
    own, `find_target`). Plans that one member cannot run are left out on all, and chains that one
    cannot compute, which is logged. In each round every plan of a problem runs once; the slowest
    rank counts, and of the rounds the median. After the first rounds the best few, the best kernel
    with another sweep, and ``serial`` are measured afresh, and then the winner and ``serial``.
    Takes about ``seconds``. With ``save`` each member stores the target where `find_target` looks,
    after every chain. Raises, on every member, GroupError where the group is gone, a member leaves,
    or one fails and nobody knows what it still sends (the group is of no use then), ProblemError
    where there is nothing to tune, TargetError where the target cannot be read or lacks a rate.
    """
    with group_errors():
        bench = Bench.of(group)
        name = target_name(bench.device.type, bench.backend, bench.world_size)
        known, problems, seconds = bench.by_first(
            lambda: (
                target or find_target(bench.device.type, bench.backend, bench.world_size),
                _problems(chains, bench.world_size),
                seconds,
            )
        )
        problems = _with_rates(problems, known, bench.world_size)
        if run is None:
            trials = Trials(bench.group, bench.device, known)
            run, why_not = trials.run, trials.why_not
        tried, best = _Tried(bench, run, why_not or _any_plan), _without_stale(known.renamed(name))
        found = 0
        for index, problem in enumerate(problems):
            # All of it: whoever fails between two trials leaves the others in the next.
            with patience.failures_told(bench.group, f"the tuning of {problem.kind}"):
                if progress:
                    sizes = f"{problem.m}x{problem.n}x{problem.k}"
                    progress(f"{problem.kind} {sizes}", index / len(problems))
                if won := _tuned(tried, known, problem, seconds / len(problems)):
                    # What could not be tried this time keeps what was measured before.
                    others = tuple(other for other in best.tuned if other.problem != won.problem)
                    best = replace(best, tuned=(*others, won))
                    found += 1
                    if save:
                        best.save(stored_path(name))
                bench.together()  # or who fails after the last chain would be alone with it
    if not found:
        raise ProblemError(
            f"None of {len(problems)} chains could be tried: each member's log says why not.",
            where="tune_chains",
            remedy="give a report of chains that every member of the group can compute",
        )
    return best


def _without_stale(target: Target) -> Target:
    """The target without what older versions tried, which chains of today may be no part of."""
    kept = tuple(plan for plan in target.tuned if not plan.is_stale)
    if dropped := len(target.tuned) - len(kept):
        log.warning(
            "%s forgets %d trials of an older version, which computed less than the chains do: "
            "name a report of those chains to run them again",
            target.name,
            dropped,
        )
    return replace(target, tuned=kept)


def _problems(chains: Report | Iterable[Problem], world_size: int) -> tuple[Problem, ...]:
    """The distinct problems that can be cut at all, and be tried, in their order."""
    if isinstance(chains, Report):
        chains = [site.plan.problem for site in chains.sites if site.plan]
    found = dict.fromkeys(problem.resolved() for problem in chains)
    return tuple(p for p in found if p.world_size == world_size > 1 and p.flops and _is_tried(p))


def _with_rates(
    problems: tuple[Problem, ...], target: Target, world_size: int
) -> tuple[Problem, ...]:
    """The problems that the target has rates for: of others there are no plans to choose from.

    Where none is left, ProblemError or TargetError, on every member for all have the same.
    """
    if not problems:
        raise ProblemError(
            f"No chain is planned for {world_size} ranks.",
            where="tune_chains",
            remedy="save a report of a model compiled for as many ranks as the group has",
        )
    found = tuple(problem for problem in problems if not target.lacks(problem))
    if not found:  # one of these raises what is lacking
        target.rates(problems[0])
        target.link(problems[0])
    return found


def _is_tried(problem: Problem) -> bool:
    """Whether a trial can compute it: GEMMs of float8 take scales, which a program has."""
    return bool(problem.program) or not problem.dtype.startswith("float8")


def _any_plan(plan: Plan) -> str:
    return ""


@dataclass(frozen=True)
class _Tried:
    """Plans on a group: what this rank does with them, and what all of them say of it."""

    bench: Bench
    run: Runner
    why_not: WhyNot

    def runnable(self, plans: Sequence[Plan]) -> list[Plan]:
        """The plans that every member can run; of the others it is logged why."""
        found: list[Plan] = []
        reasons: dict[str, Plan] = {}
        for plan in plans:
            # Whoever cannot run a plan must not leave the others alone with its collectives.
            if said := self.bench.refusal(self.why_not(plan)):
                reasons.setdefault(said, plan)
            else:
                found.append(plan)
        for said, plan in reasons.items():
            log.warning("%s", trial_error(said, plan))
        return found

    def rounds(self, plans: Sequence[Plan], count: int) -> list[dict[Plan, float]]:
        """Seconds of the slowest rank, round by round, of the plans that never fail."""
        rounds, left = [], list(plans)
        for index in range(count):
            # Nobody always runs first: after each other, plans find different caches and links.
            first = index % max(1, len(left))
            rounds.append({plan: self._seconds(plan) for plan in [*left[first:], *left[:first]]})
            left = [plan for plan in left if rounds[-1][plan] < math.inf]
        return [{plan: times[plan] for plan in left} for times in rounds]

    def _seconds(self, plan: Plan) -> float:
        """Infinitely many where a member failed, which is logged."""
        self.bench.rest()
        taken, said = math.inf, ""
        try:
            taken = self.run(plan)
        except TrialError as error:
            said = error.what
        taken = self.bench.slowest(taken)
        if math.isinf(taken):
            said = self.bench.refusal(said) or "Its seconds are no number."
            log.warning("%s", trial_error(said, plan))
        return taken


def _tuned(tried: _Tried, target: Target, problem: Problem, seconds: float) -> TunedPlan | None:
    untuned = replace(target, tuned=())
    plans = tried.runnable(_candidates(problem, untuned))
    won = _best(tried, plans, seconds, untuned)
    if won is None:
        log.warning("not tried, for a member cannot compute it: %s", problem)
    return won


def _candidates(problem: Problem, target: Target) -> list[Plan]:
    """Distinct plans, the best by prediction first; it is logged why no kernel is among them."""
    is_asked = target.device != "cpu" and not problem.is_consumer
    if is_asked and (why := why_no_overlap(problem, target)):
        sizes = f"{problem.m}x{problem.n}x{problem.k}"
        log.warning("no generated kernel is tried for %s %s: %s", problem.kind, sizes, why)
    predicted = top_plans(problem, target, CANDIDATES)
    cuts = {(plan.by, plan.rows) for plan in predicted if not plan.tile}
    even = even_plans(problem, target)
    return [*predicted, *(plan for plan in even if (plan.by, plan.rows) not in cuts)]


def _best(tried: _Tried, plans: Sequence[Plan], seconds: float, target: Target) -> TunedPlan | None:
    """The plan that won; the serial one where none beats it by more than a tie.

    The kernel that is quickest at first goes on with two sweeps. None where a member failed with
    the serial one, which all are compared with.
    """
    serial = next((plan for plan in plans if plan.schedule == "serial"), None)
    if serial is None:
        return None
    bench = tried.bench
    start = bench.now()
    first = _standings(tried.rounds(plans, 1 + FIRST_ROUNDS)[1:])  # one round warms up
    taken = bench.slowest(bench.now() - start)
    if serial not in first:
        return None
    ranked = sorted((plan for plan in first if plan != serial), key=first.__getitem__)
    kernels = [plan for plan in ranked[:FINALISTS] if plan.tile]
    others = [plan_in_another_order(plan, target) for plan in kernels[:1]]
    finalists = [serial, *ranked[:FINALISTS], *tried.runnable([its for its in others if its])]
    once = taken / (1 + FIRST_ROUNDS) / len(plans)
    left = seconds - taken - LAST_ROUNDS * 2 * once
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(left / once / len(finalists))))
    standings = _standings(tried.rounds(finalists, rounds))
    if serial not in standings:
        return None
    best = min(standings, key=standings.__getitem__)
    times = tried.rounds(list(dict.fromkeys([serial, best])), LAST_ROUNDS)
    if serial not in times[0]:
        return None
    # By rounds: what disturbs a round disturbs both.
    if best not in times[0] or statistics.median(t[best] / t[serial] for t in times) > 1 - TIE:
        best = serial
    predicted = statistics.median(t[best] for t in times)
    return TunedPlan(best.problem, best.rows, predicted, best.by, best.tile)


def _standings(rounds: Sequence[Mapping[Plan, float]]) -> dict[Plan, float]:
    """Median share that each plan has of its round: what disturbs a round disturbs all plans."""
    totals = [sum(times.values()) for times in rounds]
    return {
        plan: statistics.median(t[plan] / total for t, total in zip(rounds, totals, strict=True))
        for plan in rounds[0]
    }
