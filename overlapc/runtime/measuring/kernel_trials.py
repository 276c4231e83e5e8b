"""Run a plan on random operands as an op in a compiled graph would, by a kernel or without."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
import torch.distributed as dist

from overlapc.errors import TrialError
from overlapc.planning.problem import TILES, Problem
from overlapc.planning.schedule import Plan, format_rows
from overlapc.planning.target import Target
from overlapc.runtime import checking
from overlapc.runtime.measuring.trial_sending import TrialSender
from overlapc.runtime.plans import remember
from overlapc.runtime.preparing import Chain, Ready, assemble, cut_of
from overlapc.runtime.programs.trial_programs import TrialProgram, sent_of
from overlapc.runtime.signaled.schedule import why_not_signaled
from overlapc.runtime.spec import ChainSpec


@dataclass(frozen=True)
class KernelTrial:
    """A problem with a chain and operands of its own, which lie as those of a linear layer do."""

    problem: Problem
    target: Target
    group: dist.ProcessGroup
    device: torch.device
    chains: dict[Hashable, Ready] = field(default_factory=dict)
    """By how they are cut."""

    @cached_property
    def program(self) -> TrialProgram:
        """What is computed and sent."""
        return TrialProgram.of(self.problem)

    @cached_property
    def operands(self) -> list[torch.Tensor]:
        """Random: A[m, k], B[k, n], a transposed weight, and what pointwise work reads. Of a
        consumer the first is what this rank sends."""
        first, *others = self.program.tensors(self.problem.m, self.device)
        return [sent_of(self.problem, first) if self.problem.is_consumer else first, *others]

    def spec(self, plan: Plan | None = None) -> ChainSpec:
        """The chain of the problem; of a plan of tiles it gives them as they lie."""
        p = self.problem
        return ChainSpec(
            kind=p.kind,
            target=self.target.fingerprint,
            options="",
            program=self.program.program,
            schedule="signaled",
            axis=p.axis,
            takes_map=p.takes_map,
            packed=plan.tile if plan and plan.by == TILES else None,
        )

    @cached_property
    def sender(self) -> TrialSender:
        """Of what the library computes."""
        return TrialSender(self.problem.collective, self.group, self.device)

    @cached_property
    def _splits(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Units from and to each rank where a graph holds their numbers: as even as can be."""
        if not self.problem.deals_unevenly:
            return (), ()
        ranks, units = self.group.size(), self.problem.m // self.program.rows_per_unit
        ends = [units * end // ranks for end in range(ranks + 1)]
        sends = tuple(end - start for start, end in pairwise(ends))
        return (sends[self.group.rank()],) * ranks, sends

    def why_no_kernel(self, plan: Plan) -> str:
        """Why no kernel runs here, as far as can be told before it is launched."""
        if self.problem.deals_unevenly:
            return "No kernel is tried where ranks may get different numbers of rows."
        spec = self.spec(plan)
        return why_not_signaled(spec, self.target, self.operands, self.device, self.group)

    def seconds(self, plan: Plan) -> float:
        """Seconds until everything is there; TrialError where the library had to step in.

        What readers lose by packed tiles is added as it is predicted. Every member calls it at the
        same time.
        """
        ready, why = self.ready(plan), ""
        run = ready.signaled
        assert run is not None or not plan.tile, f"{plan} has one group"
        self._synchronize()
        start = time.perf_counter()
        if run is None:
            ready.run(self.operands, self.group)
        else:
            _, why = run(self.operands, self.group)
        self._synchronize()
        seconds = time.perf_counter() - start
        if why:
            raise trial_error(why, plan)
        return seconds + plan.reading_seconds

    def ready(self, plan: Plan) -> Ready:
        """What runs any plan of the problem: the library, or a kernel where it is ``signaled``."""
        key = plan.schedule, plan.rows, plan.by, plan.tile
        if key not in self.chains:
            remember(self.target)
            spec = self.spec(plan)
            deal = checking.dealing_of(
                spec, self.operands, self.problem.blocks, *self._splits, self.group
            )
            chain = Chain(spec, self.sender)
            self.chains[key] = assemble(chain, self.operands, deal, cut_of(plan), plan)
        return self.chains[key]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def trial_error(said: str, plan: Plan) -> TrialError:
    """Why a plan is not weighed."""
    problem = plan.problem
    return TrialError(
        said,
        where=f"a trial of {problem.kind} {problem.m}x{problem.n}x{problem.k} {problem.dtype} over "
        f"{problem.world_size}, {plan.schedule}, {format_rows(plan.rows)} {plan.by}",
        remedy="see to it on that rank and try again, or leave it: what could be measured counts",
    )
