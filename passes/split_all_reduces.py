"""An all-reduce between two GEMMs becomes a reduce-scatter and an all-gather, one for each.

Cut as a whole, it can only hide behind the GEMM before it. Its halves take as long together, and
each has a GEMM to hide behind. What stands between it and the next GEMM, a residual add and a norm,
is computed of every band as it arrives, and on every rank as before: nothing is assumed to be equal
on all ranks.

Contract. Values are the same but for the order in which ranks' parts are added. The halves stand
where the all-reduce stood, and are two sites. It is split where all sizes are numbers, the ranks
divide its rows evenly, no GEMM after it feeds another collective, and the halves are predicted to
save the planner's margin over the best that is known for the whole. Else the graph is as it was.
Ranks whose GEMMs have unlike shards may decide differently. A whole that could be split is an op of
ours as its halves are, and so that is an error at the first call, and not a hang.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from overlapc.errors import GroupError
from overlapc.graphs.chains.chain import Chain
from overlapc.graphs.chains.consuming import read_consumer
from overlapc.graphs.chains.gemms import form_of
from overlapc.graphs.chains.halves import Halves, drop_whole, join, split
from overlapc.graphs.chains.producing import read_producer
from overlapc.graphs.collectives import (
    NAMES,
    Collective,
    Refusal,
    collective_starts,
    read_collective,
)
from overlapc.graphs.faults import fault_at
from overlapc.graphs.origins import where
from overlapc.passes.base import Compilation, Fuel
from overlapc.passes.chain_decisions import Decision, decide
from overlapc.passes.overlap_chains import OPERATIONS
from overlapc.planning.cost import Costs
from overlapc.planning.schedule import format_seconds
from overlapc.planning.search import MEASURED_MARGIN, UNMEASURED_MARGIN
from overlapc.runtime.ranks.groups import resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weighed:
    """Predicted seconds from the start of the GEMM before an all-reduce to the end of those after.

    As a whole, at its best, and in halves.
    """

    whole: float
    halves: float
    margin: float
    """Share of ``whole`` that must be saved."""
    is_met: bool
    """Whole it is an op too, in which a rank that leaves it so meets those that split it."""

    @property
    def saves(self) -> bool:
        """Whether the halves are predicted to save the margin."""
        return self.halves < (1 - self.margin) * self.whole

    @property
    def pays(self) -> bool:
        """Whether the all-reduce is split."""
        return self.saves and self.is_met

    def __str__(self) -> str:
        return f"{format_seconds(self.halves)} instead of {format_seconds(self.whole)}"


@dataclass(frozen=True)
class SplitAllReduces:
    """Gives both GEMMs around an all-reduce a half of it to overlap with."""

    name: str = "split_all_reduces"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Split what pays; ``notes`` say of every half why, and of a whole why not."""
        if compilation.is_disabled(self.name) or compilation.options.overlap != "auto":
            return
        for start in collective_starts(graph):
            whole = read_collective(start)
            if isinstance(whole, Refusal) or start in compilation.taken:
                continue
            if whole.name == "all_reduce" and whole.reduce in OPERATIONS:
                self._visit(whole, compilation)

    def _visit(self, whole: Collective, compilation: Compilation) -> None:
        found = weigh(whole, compilation)
        if isinstance(found, Refusal):
            log.debug("%s is not split: %s", whole.start, found.reason)
            return
        halves, weighed = found
        if not weighed.pays or not Fuel.take(compilation.options):
            join(halves)
            note = f"In halves, beside the GEMMs before and after it, it would take {weighed}"
            unmet = ", and whole no rank would make an op of it" if not weighed.is_met else ""
            why = unmet if weighed.saves else f", and the margin is {weighed.margin:.0%}"
            compilation.note(whole.start, f"{note}{why}.")
            return
        note = f"It is half of an all-reduce, whose halves are predicted to take {weighed}."
        for half in (halves.scatter, halves.gather):
            compilation.note(half.start, compilation.noted(whole.start, note))
        log.info("split at %s: %s", where(whole.start), note)
        drop_whole(halves)


def weigh(whole: Collective, compilation: Compilation) -> tuple[Halves, Weighed] | Refusal:
    """Split an all-reduce and predict what it gives; a refusal leaves the graph as it was."""
    try:
        ranks = resolve(whole.group).size()
    except GroupError as error:
        return Refusal(whole.start, "no_target", error.what)
    before = read_producer(whole, ranks)
    halves = split(whole, ranks) if isinstance(before, Chain) else before
    if isinstance(halves, Refusal):
        return halves
    try:
        weighed = _weighed(before, halves, ranks, compilation)
    except Exception as error:  # the graph goes on without us
        weighed = fault_at(whole.start, error)
    if isinstance(weighed, Refusal):
        join(halves)
        return weighed
    return halves, weighed


def _weighed(
    before: Chain | Refusal, halves: Halves, ranks: int, compilation: Compilation
) -> Weighed | Refusal:
    chains = before, read_producer(halves.scatter, ranks), read_consumer(halves.gather, ranks)
    decided = []
    for chain in chains:
        decision = chain if isinstance(chain, Refusal) else decide(chain, compilation)
        if isinstance(decision, Refusal):
            return decision
        assert isinstance(chain, Chain)
        if not all(gemm.static for gemm in chain.gemms):
            reason = "A size of its GEMMs varies, and hints may differ by rank."
            return Refusal(halves.whole.start, "varying_sizes", reason)
        decided.append((chain, decision))
    (_, alone), (_, first), (gather, second) = decided
    if feeds := _feeds(gather):
        return feeds
    target = compilation.target_for(gather.gemms[0].device, gather.collective.group)
    problem = second.plan.problem
    after = second.plan.serial_seconds - Costs(problem, target).alone(problem.m)
    known = all(target.knows(one.plan.problem) for _, one in decided)
    return Weighed(
        whole=_seconds(alone) + after,
        halves=_seconds(first) + _seconds(second),
        margin=MEASURED_MARGIN if known else UNMEASURED_MARGIN,
        is_met=alone.decision == "rewritten",
    )


def _seconds(decided: Decision) -> float:
    """Predicted seconds of a chain as it will be, overlapped or left to Inductor."""
    plan = decided.plan
    return plan.predicted_seconds if decided.decision == "rewritten" else plan.serial_seconds


def _feeds(chain: Chain) -> Refusal | None:
    """Why a GEMM after an all-gather is another chain's: a collective sends what it gives."""
    mine = {gemm.node for gemm in chain.gemms}
    for start in _starts_below(mine):
        other = read_collective(start)
        if not isinstance(other, Collective) or other.name == "all_gather":
            continue
        found = read_producer(other, resolve(other.group).size())
        if isinstance(found, Chain) and mine & {gemm.node for gemm in found.gemms}:
            reason = "The GEMM after it feeds another collective, whose chain it belongs to."
            return Refusal(start, "feeds_another", reason)
    return None


def _starts_below(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """Yield the collectives that take what ``nodes`` give, through whatever is no GEMM."""
    seen = set(nodes)
    waiting = list(seen)
    while waiting:
        for user in waiting.pop().users:
            if user.target in NAMES:
                yield user
            elif user not in seen and form_of(user) is None:
                seen.add(user)
                waiting.append(user)
