"""Run a planned problem on random operands: what a schedule takes, no more."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist

from overlapc.errors import TrialError
from overlapc.planning.problem import COLUMNS, ROWS, Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.runtime.linear.trials import graph_of
from overlapc.runtime.measuring.kernel_trials import KernelTrial, trial_error
from overlapc.runtime.measuring.trial_sending import Sent, TrialSender
from overlapc.runtime.programs.execution import function
from overlapc.runtime.programs.trial_programs import (
    TrialProgram,
    packed,
    placed,
    random_matrix,
    sent_of,
)
from overlapc.runtime.ranks.sending import Work


@dataclass(frozen=True)
class Run:
    """One run of a schedule on this rank."""

    seconds: float
    """Until everything was there."""
    computing: float
    """Of them, those in which this rank did not just wait for its collectives."""


@dataclass(frozen=True)
class Trial:
    """A problem with operands of its own. Every member of the group runs the same groups at a time.

    A group has as many rows of every rank that rows are dealt out to or come from, or columns of
    all rows. Its GEMM reads and writes them where they lie in the whole, as the ops do.
    """

    problem: Problem
    group: dist.ProcessGroup
    device: torch.device

    def __post_init__(self) -> None:
        # Before any run: making operands takes longer than computing with them.
        if self.problem.is_consumer and self.problem.program:
            self.alone(self._operands[0])
            _ = self._mine
        elif self.problem.program:
            self.alone()
        else:
            _ = self._a, self._b, self._out, self._come
        _ = self.sender

    @cached_property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.problem.dtype)

    @cached_property
    def _sent_dtype(self) -> torch.dtype:
        return getattr(torch, self.problem.sent_dtype or self.problem.dtype)

    @cached_property
    def _a(self) -> torch.Tensor:
        """``[shards, rows, k]``."""
        p = self.problem
        return self._random(p.m, p.k, p.layouts[0]).unflatten(0, (p.parts, -1))

    @cached_property
    def _b(self) -> torch.Tensor:
        """``[k, n]``, by default as a linear layer has it: its weight transposed."""
        return self._random(self.problem.k, self.problem.n, self.problem.layouts[1])

    @cached_property
    def _out(self) -> torch.Tensor:
        """``[shards, rows, n]``."""
        p = self.problem
        out = torch.empty(p.m, p.n, dtype=self._dtype, device=self.device)
        return out.unflatten(0, (p.parts, -1))

    @cached_property
    def _come(self) -> torch.Tensor:
        """``[rows, n]``: where columns that have come are put; of a scatter, those of one rank."""
        p = self.problem
        rows = p.m // p.world_size if p.collective == "reduce_scatter" else p.m
        return torch.empty(rows, p.n, dtype=self._sent_dtype, device=self.device)

    @cached_property
    def sender(self) -> TrialSender:
        """Of all that is run."""
        return TrialSender(self.problem.collective, self.group, self.device)

    @cached_property
    def alone(self) -> Callable[..., torch.Tensor]:
        """Computes a problem with a program as a graph that is left alone: the library its GEMMs,
        and one kernel all pointwise work. Of a consumer it is given what has come."""
        program = TrialProgram.of(self.problem).program
        given, compute = self._operands[self.problem.is_consumer :], function(program)
        if len(program.steps) == 1:
            return lambda *come: compute((*come, *given), ())[0]
        # Whole, or the comparison would not be with what Inductor makes of it.
        run = torch.compile(graph_of(program), dynamic=False, fullgraph=True)
        if len(program.results) > 1:
            return lambda *come: run(*come, *given)[0]
        return lambda *come: run(*come, *given)

    @cached_property
    def _operands(self) -> list[torch.Tensor]:
        """Of a problem with a program."""
        return TrialProgram.of(self.problem).tensors(self.problem.m, self.device)

    @cached_property
    def _mine(self) -> torch.Tensor:
        """What this rank sends to a consumer with a program."""
        return sent_of(self.problem, self._operands[0])

    def _random(self, rows: int, columns: int, layout: str) -> torch.Tensor:
        return random_matrix((rows, columns), layout, self._dtype, self.device)

    def seconds(self, plan: Plan) -> float:
        """Seconds of a plan that the library computes."""
        return self.run(plan.rows, plan.by).seconds

    def run(self, counts: Sequence[int], by: str = ROWS) -> Run:
        """Run groups of so many rows, or columns; a single one is the serial schedule."""
        start = self._now()
        if by == COLUMNS:
            waited = self._produce_columns(counts)
        else:
            waited = self._consume(counts) if self.problem.is_consumer else self._produce(counts)
        seconds = self._now() - start
        return Run(seconds, seconds - waited)

    def _produce(self, rows: Sequence[int]) -> float:
        if self.problem.program:
            assert len(rows) == 1, "a trial of the library alone has one group"
            sent = packed(self.problem, self.alone()).flatten()
            return self._wait_for([self._start(sent, is_plain=True)])
        in_flight = []
        for first, last in self._bands(rows):
            sent = self._gemm(self._a[:, first:last]).to(self._sent_dtype).flatten()
            # One group is the serial schedule: a graph that is left alone.
            in_flight.append(self._start(sent, is_plain=len(rows) == 1))
        return self._wait_for(in_flight)

    def _produce_columns(self, columns: Sequence[int]) -> float:
        in_flight = []
        for first, last in pairwise([0, *accumulate(columns)]):
            product = self._a.flatten(0, 1) @ self._b[:, first:last]
            started = self._start(product.to(self._sent_dtype).flatten())
            in_flight.append((started, slice(first, last)))
        waited, rows = 0.0, len(self._come)
        for started, place in in_flight:
            waited += self._wait_for([started])
            width = place.stop - place.start
            self._come[:, place] = started.landing[: rows * width].view(rows, width)
        return waited

    def _consume(self, rows: Sequence[int]) -> float:
        p = self.problem
        if p.program:
            assert len(rows) == 1, "a trial of the library alone has one group"
            come = self._operands[0]
            started = self._start(self._mine.flatten(), come.numel(), is_plain=True)
            waited = self._wait_for([started])
            self.alone(placed(p, started.landing, come))
            return waited
        shards = p.parts
        bands = list(self._bands(rows))
        # Of an all-gather every rank sends its own rows, of an all-to-all some of everyone's.
        mine = self._a[:1] if p.collective == "all_gather" else self._a
        in_flight = [
            self._start(mine[:, first:last].flatten().to(self._sent_dtype), count * p.k)
            for (first, last), count in zip(bands, rows, strict=True)
        ]
        others = slice(None)
        if len(rows) > 1 and shards > 1:
            self._out[:1] = self._gemm(self._a[:1]).unflatten(0, (1, -1))
            others = slice(1, None)
        waited = 0.0
        for (first, last), started in zip(bands, in_flight, strict=True):
            waited += self._wait_for([started])
            come = started.landing.to(self._dtype).view(shards, last - first, p.k)[others]
            self._out[others, first:last] = self._gemm(come).view(len(come), last - first, p.n)
        return waited

    def _gemm(self, a: torch.Tensor) -> torch.Tensor:
        return a.flatten(0, 1) @ self._b

    def _bands(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """First and last row of each group on every shard."""
        return list(pairwise([0, *(end // self.problem.parts for end in accumulate(rows))]))

    def _start(self, sent: torch.Tensor, count: int = 0, *, is_plain: bool = False) -> _Started:
        """Send a group, flat; ``count`` elements come, by default as many as are sent.

        What cannot be dealt out evenly is left behind: it is fewer elements than ranks.
        """
        size, collective = self.problem.world_size, self.problem.collective
        if collective == "all_reduce":
            return _Started(self.sender.start(self.group, sent, sent), sent, sent)
        landing = sent.new_empty(count or sent.numel())
        whole = landing.numel() // size * size
        if collective == "reduce_scatter":
            into, given = landing[: whole // size], sent[:whole]
        elif collective == "all_gather":
            into, given = landing[:whole], sent[: whole // size]
        else:
            into, given = landing[:whole], sent[:whole]
        start = self.sender.start_plain if is_plain else self.sender.start
        return _Started(start(self.group, into, given), landing, sent)

    def _wait_for(self, in_flight: Sequence[_Started]) -> float:
        """Wait for transfers; the seconds for which this rank computed nothing meanwhile."""
        self._computed()
        start = time.perf_counter()
        for started in in_flight:
            started.work.wait()
        # Not for the whole device: later transfers may still be on their way.
        self._computed()
        return time.perf_counter() - start

    def _computed(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Trials:
    """Runs plans with random operands, those of one problem at a time."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, target: Target) -> None:
        self._group, self._device, self._target = group, device, target
        self._libraries: dict[Problem, Trial] = {}
        self._kernels: dict[Problem, KernelTrial] = {}
        self._failed: dict[Problem, str] = {}
        self._rehearsed: dict[Plan, list[Sent]] = {}

    def run(self, plan: Plan) -> float:
        """Seconds on this rank until everything is there; all members run the plan at a time.

        TrialError where it fails here and the others can go on, for what it sends was sent all the
        same; any other error leaves them in a collective that this rank does not enter.
        """
        trial = self._trial(plan)
        trial.sender.begin()
        try:
            return trial.seconds(plan)
        except TrialError:
            raise
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # which hold the memory that ran out
            sends = self._rehearsed.get(plan)
            if sends is None or not trial.sender.finish(sends):
                raise
            raise trial_error(_said(error), plan) from error

    def why_not(self, plan: Plan) -> str:
        """Why this rank cannot run a plan, as far as can be told before; empty where it can.

        All is made ready, and what the library computes of it is computed once, with nothing sent.
        """
        problem = plan.problem
        if problem in self._failed:
            return self._failed[problem]
        try:
            self._library(problem)
        except Exception as error:  # an op or a dtype that the library lacks on this device
            self._failed[problem] = _said(error)
            return self._failed[problem]
        try:
            trial = self._trial(plan)
            if plan.tile:
                return self._kernel(problem).why_no_kernel(plan)
            with trial.sender.rehearsal() as sends:
                trial.seconds(plan)
        except Exception as error:
            return _said(error)
        self._rehearsed[plan] = sends
        return ""

    def _trial(self, plan: Plan) -> Trial | KernelTrial:
        # A trial of the library alone cuts plain bands of a GEMM alone.
        its = plan.problem
        if plan.tile or ((its.program or its.deals_unevenly) and plan.schedule != "serial"):
            return self._kernel(plan.problem)
        return self._library(plan.problem)

    def _library(self, problem: Problem) -> Trial:
        if problem not in self._libraries:
            self._libraries.clear()
            self._libraries[problem] = Trial(problem, self._group, self._device)
        return self._libraries[problem]

    def _kernel(self, problem: Problem) -> KernelTrial:
        if problem not in self._kernels:
            self._kernels.clear()
            self._kernels[problem] = KernelTrial(problem, self._target, self._group, self._device)
        return self._kernels[problem]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class _Started:
    work: Work
    landing: torch.Tensor
    sent: torch.Tensor
    """Must live until the work is done."""
