"""Every kind of chain with every program, cut at random: what each rank runs, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from overlapc.runtime import ops
from overlapc.runtime.programs import compiling, fusing
from overlapc.runtime.ranks import agreement
from overlapc.runtime.spec import COLLECTIVE_OF, CONSUMERS, ChainSpec
from tests.runtime.chains import chain, errors_of, poisoned, ragged
from tests.runtime.programs.cases import CASES, Case
from tests.sparing import as_it_is
from tests.targets import machine

TARGET = machine("matrix", 4e7, world_sizes=(2, 3, 4))

KINDS = tuple(COLLECTIVE_OF)

BOUND = 2e-6
"""Of the relative error of float32 GEMMs as small as these; coarser dtypes by their rounding."""


@dataclass(frozen=True)
class Trial:
    """One call, the same on every rank but for the data and, where uneven, the sizes."""

    name: str
    kind: str
    each: int
    """Units of each rank; of an all-reduce and of columns, units."""
    outer: int = 1
    axis: int = 0
    schedule: str = "chunked"
    reduce: str = "sum"
    uneven: bool = False

    def run(self, rank: int, ranks: int) -> float:
        """The worst error over its bound: above 1 is wrong."""
        case = CASES[self.name]
        sizes = self._sizes(rank, ranks)
        operands = self._operands(case, rank, ranks, *sizes[1:])
        worst = max(errors_of(self.spec(), operands, *sizes))
        coarser = torch.finfo(case.rounding).eps / torch.finfo(torch.float32).eps
        return worst / (BOUND * coarser)

    def spec(self) -> ChainSpec:
        case = CASES[self.name]
        program = case.consumer() if self.kind in CONSUMERS else case.producer()
        return chain(
            self.kind,
            program,
            TARGET,
            schedule=self.schedule,
            reduce=self.reduce,
            axis=self.axis,
        )

    def _sizes(self, rank: int, ranks: int) -> tuple[int, list[int], list[int]]:
        """Outer, receives, sends."""
        if not self.uneven:
            return self.outer, [], []
        rows = [[(7 * i + 3 * j * j + self.each) % 11 * (j != 1) for j in range(ranks)]
                for i in range(ranks)]  # fmt: skip
        return 1, [row[rank] for row in rows], rows[rank]

    def _operands(
        self, case: Case, rank: int, ranks: int, receives: list[int], sends: list[int]
    ) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * rank + self.each)
        by_rank = self.axis == 0 and self.kind != "gemm_all_reduce"
        units = self.each * ranks * self.outer if by_rank else self.each
        if sends:
            units = sum(receives) if self.kind in CONSUMERS else sum(sends)
        operands = case.operands(units, generator)
        if self.axis == 1:
            return self._columns(operands, ranks)
        if self.kind == "all_gather_gemm":
            operands[0] = operands[0][: self.each * self.outer]
        if sends and self.kind in CONSUMERS:
            operands[0] = case.operands(sum(sends), generator)[0]
        return operands

    def _columns(self, operands: list[torch.Tensor], ranks: int) -> list[torch.Tensor]:
        """Operand 0 such that dimension 1 is dealt out to the ranks or gathered from them."""
        if self.kind in CONSUMERS and self.kind != "all_gather_gemm":
            operands[0] = torch.cat([operands[0]] * ranks)
        elif self.kind not in CONSUMERS:
            operands[0] = torch.cat([operands[0]] * ranks, 1)
        return operands


def trials(ranks: int) -> Iterator[Trial]:
    """Every kind, program, outer, axis and reduction, some sizes and both schedules."""
    for kind in COLLECTIVE_OF:
        is_reduced = COLLECTIVE_OF[kind] == "all_reduce"
        for name, case in CASES.items():
            for outer in (1,) if is_reduced else (1, 3):
                yield Trial(name, kind, 13, outer)
                yield Trial(name, kind, 5, outer, schedule="serial")
            if kind in ("gemm_all_to_all", "all_to_all_gemm"):
                yield Trial(name, kind, 4, uneven=True)
                yield Trial(name, kind, 9, uneven=True, schedule="serial")
            if case.batched and not is_reduced:
                yield Trial(name, kind, 9, axis=1)
                yield Trial(name, kind, 9, axis=1, schedule="serial")
        for each in (0, 1, 2):
            yield Trial("mm", kind, each)
            yield Trial("rich", kind, each, 2)
        if COLLECTIVE_OF[kind] in ("all_reduce", "reduce_scatter"):
            yield Trial("mm", kind, 17, reduce="avg")


def run_all(
    rank: int,
    kinds: tuple[str, ...] = KINDS,
    every: int = 1,
    names: tuple[str, ...] = tuple(CASES),
) -> dict[str, float]:
    """Errors over their bounds by trial, of those above 1; of these kinds and programs, every so
    manieth."""
    ranks, wrong = dist.get_world_size(), {}
    chosen = [one for one in trials(ranks) if one.kind in kinds and one.name in names][::every]
    assert len(chosen) > 10
    with poisoned():
        for seed, trial in enumerate(chosen):
            with ragged(seed):
                error = trial.run(rank, ranks)
            if not error < 1:
                wrong[str(trial)] = error
    return wrong


def run_fused(rank: int) -> tuple[dict[str, float], int]:
    """Errors as of ``run_all`` of chains whose steps between GEMMs are one call, and how many calls
    were made."""
    made = []

    def counted(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return as_it_is(graph, inputs)

    forget()
    try:
        with (
            patch.object(fusing, "LEAST_ELEMENTS", 0),
            patch.object(compiling, "by_inductor", counted),
        ):
            return run_all(rank, every=2, names=("rich",)), len(made)
    finally:
        dist.barrier()
        forget()


def run_mutated(
    rank: int, mutant: Callable[[int], AbstractContextManager[None]], kinds: tuple[str, ...]
) -> dict[str, float]:
    """As ``run_all`` while ``mutant`` breaks something."""
    forget()
    try:
        with mutant(rank):
            return run_all(rank, kinds, every=2)
    finally:
        dist.barrier()
        forget()


def forget() -> None:
    """Let nothing that was made ready before a mutation be used after it."""
    fusing._function.cache_clear()
    for memory in (ops._callers, ops._chains, agreement._agreed):
        memory.clear()
