"""Specifications and calls of chains in runtime tests, and how they are cut."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from overlapc.planning.problem import Problem
from overlapc.planning.tiles import Tile
from overlapc.runtime import ops, preparing, reference
from overlapc.runtime.plans import remember
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Step
from overlapc.runtime.spec import ChainSpec
from tests.runtime.programs.cases import MM, operand, value

__all__ = ["MM", "operand", "ops", "value"]  # `ops` for what it registers


def addmm(bias_mode: str) -> Program:
    step = Step("aten.addmm.default", (operand(2), operand(0), operand(1)))
    return Program((ROWS, WHOLE, bias_mode), (step,), value(0))


def chain(kind: str, program: Program, target: Any, **more: Any) -> ChainSpec:
    """A specification with a target that this process then knows."""
    remember(target)
    site = more.get("site", "test.0")
    fields = {"options": "test", "site": site, "place": site, **more}
    return ChainSpec(kind=kind, program=program, target=target.fingerprint, **fields)


def call(
    spec: ChainSpec,
    operands: Sequence[torch.Tensor],
    outer: int = 1,
    receives: Sequence[int] = (),
    sends: Sequence[int] = (),
    group: str = "0",
) -> list[torch.Tensor]:
    """Call the op of a specification."""
    op = getattr(torch.ops.overlapc, spec.kind)
    return op(list(operands), outer, list(receives), list(sends), group, spec.text())


def errors_of(spec: ChainSpec, operands: Sequence[torch.Tensor], *sizes: Any) -> list[float]:
    """Relative error of every result of a call; inf where shape or dtype is not the oracle's."""
    given = [tensor.clone() for tensor in operands]
    # A copy, before the oracle's own collectives give late ones time to end.
    found = [result.clone() for result in call(spec, operands, *sizes)]
    wanted = reference.chain(spec, given, *sizes)
    for tensor, before in zip(operands, given, strict=True):
        assert torch.equal(*(t.view(torch.uint8) if t.dim() and t.itemsize == 1 else t
                             for t in (tensor, before)))  # fmt: skip
    assert len(found) == len(wanted)
    return [_error(result, oracle) for result, oracle in zip(found, wanted, strict=True)]


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if found.shape != wanted.shape or not found.is_contiguous():
        return float("inf")
    wide = torch.complex128 if wanted.is_complex() else torch.float64
    found, wanted = found.to(wide), wanted.to(wide)
    difference = (found - wanted).norm() / wanted.norm().clamp(min=1)
    return float("inf") if difference.isnan() else difference.item()


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written to yet is not a number."""
    original = torch.Tensor.new_empty

    def new_empty(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        made = original(self, *args, **kwargs)
        if made.device.type != "cpu" or not made.numel():
            return made
        made.view(-1).view(torch.uint8).fill_(0xFF)
        return made

    torch.Tensor.new_empty = new_empty
    try:
        yield
    finally:
        torch.Tensor.new_empty = original


@contextmanager
def ragged(seed: int, by: str = "rows", cut: str = "chunked") -> Iterator[None]:
    """Cut every call into groups of random sizes, whatever the planner says; alike on all ranks.

    By columns those that may be cut so, the others by rows. ``cut`` is the schedule of the groups.
    """
    original = preparing.plan_call

    def plan_call(fingerprint: str, schedule: str, problem: Problem) -> Any:
        along = by if by in problem.dimensions and problem.m else "rows"
        size, granule = (problem.m, problem.granule) if along == "rows" else (problem.n, 1)
        pieces = size // granule
        if schedule == "serial" or pieces < 2:
            return SimpleNamespace(
                schedule="serial", rows=(problem.m,), by="rows", tile=None, problem=problem
            )
        dice = random.Random(seed * 7919 + pieces)
        cuts = sorted(dice.sample(range(1, pieces), min(pieces - 1, dice.randint(1, 4))))
        ends = zip([0, *cuts], [*cuts, pieces], strict=True)
        rows = tuple((end - start) * granule for start, end in ends)
        return SimpleNamespace(schedule=cut, rows=rows, by=along, tile=None, problem=problem)

    preparing.plan_call = plan_call
    try:
        yield
    finally:
        preparing.plan_call = original


@contextmanager
def into(groups: Sequence[int], tile: Tile, bands: Sequence[int] = ()) -> Iterator[None]:
    """Cut every call into groups of so many tiles, whatever the planner says.

    Where the ranks do not send tiles, it is into ``bands`` of so many rows.
    """
    original = preparing.plan_call

    def plan_call(fingerprint: str, schedule: str, problem: Problem) -> Any:
        rows, by = (groups, "tiles") if problem.takes_map else (bands or (problem.m,), "rows")
        return SimpleNamespace(
            schedule="signaled", rows=tuple(rows), by=by, tile=tile, problem=problem
        )

    preparing.plan_call = plan_call
    try:
        yield
    finally:
        preparing.plan_call = original
