"""Signaled chains on ranks that pretend to have a GPU, and what is seen of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from overlapc.runtime import reference
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Step
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.signaled.schedule import Signaled
from overlapc.runtime.spec import ChainSpec
from tests.runtime.chains import MM, call, chain
from tests.runtime.programs.cases import operand, value
from tests.runtime.signaled.pretended import SECONDS
from tests.targets import machine

K, N = 24, 72
TARGET = replace(
    machine("pretended", 4e7, world_sizes=(2, 3)), architecture="sm_80", communication_sms=2
)
BOUND = 2e-6
"""Of the relative error of float32."""
GATED = Program(
    (WHOLE, ROWS, WHOLE, ROWS),
    (
        Step("aten.addmm.default", (operand(0), operand(1), operand(2))),
        Step("aten.silu.default", (value(0),)),
        Step("aten.mul.Tensor", (value(1), operand(3))),
    ),
    value(2),
)
AGREED = {2: ((5, 70), (60, 9)), 3: ((9, 70, 30), (60, 9, 5), (20, 40, 9))}
"""Rows from each rank to each at a first call, which decides in which proportion blocks are cut."""
UNEVEN = {2: ((5, 70), (1, 0)), 3: ((0, 70, 3), (0, 0, 1), (2, 40, 0))}
"""Rows from each rank to each: rank 1 has none in some groups."""
ROWLESS = {2: ((5, 70), (0, 0)), 3: ((0, 70, 3), (0, 0, 0), (2, 40, 0))}
"""Rank 1 has none at all."""


@dataclass(frozen=True)
class Case:
    """A chain and the rows of its operands."""

    kind: str
    program: Program = MM
    axis: int = 0
    outer: int = 1
    rows: int = 180
    uneven: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict, hash=False)
    """By the number of ranks."""
    reduce: str = "sum"

    @property
    def spec(self) -> ChainSpec:
        reduce = "" if self.kind == "gemm_all_to_all" else self.reduce
        return chain(
            self.kind, self.program, TARGET, axis=self.axis, reduce=reduce,
            site=f"{self}", wait_seconds=SECONDS,
        )  # fmt: skip

    def agree(self, rank: int) -> None:
        """Let the ranks agree on proportions, where they have to."""
        if self.uneven:
            first = replace(self, uneven=AGREED)
            call(self.spec, first.operands(rank), *first.arguments(rank))

    def arguments(self, rank: int) -> tuple[Any, ...]:
        if not self.uneven:
            return self.outer, (), ()
        sizes = self.uneven[dist.get_world_size()]
        return 1, tuple(sends[rank] for sends in sizes), sizes[rank]

    def operands(self, rank: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(rank)
        rows = sum(self.uneven[dist.get_world_size()][rank]) if self.uneven else self.rows
        a = torch.randn(rows, K, generator=generator)
        b = torch.randn(N, K, generator=generator).t()
        if self.program is MM:
            return [a, b]
        shapes = (N,), (rows, N)
        bias, gate = (torch.randn(shape, generator=generator) for shape in shapes)
        return [bias, a, b, gate]


CASES = {
    "all-reduce": Case("gemm_all_reduce", GATED, rows=201, reduce="avg"),
    "scatter rows": Case("gemm_reduce_scatter", GATED),
    "scatter blocks": Case("gemm_reduce_scatter", outer=5),
    "scatter columns": Case("gemm_reduce_scatter", axis=1, rows=130),
    "all-to-all": Case("gemm_all_to_all", GATED),
    "all-to-all of columns": Case("gemm_all_to_all", axis=1, rows=130),
    "uneven": Case("gemm_all_to_all", uneven=UNEVEN),
    "rowless": Case("gemm_all_to_all", uneven=ROWLESS),
}


@contextmanager
def recorded(users: Any = None, *, sends: bool = True) -> Iterator[list[tuple[Any, ...]]]:
    """What every collective is, in order: which group sends what sizes. Or it is not sent.

    ``users``: the user's own group, if not the world.
    """
    start, log = Sender.start, []

    def started(self: Sender, group: Any, out: Any, sent: Any, receives=(), to=()) -> Any:
        is_users = group is (users or dist.group.WORLD)
        log.append(
            ("group" if is_users else "beside", self.collective, tuple(sent.shape), tuple(to))
        )
        if sends:
            return start(self, group, out, sent, receives, to)
        return SimpleNamespace(wait=lambda: None)

    with patch.object(Sender, "start", started):
        yield log


def alone(reason: str = "It falls back.") -> Any:
    """This rank has no kernel."""
    return patch.object(Signaled, "_build", lambda *_: reason)


def assert_met(found: list[tuple[float, dict, dict, list]]) -> None:
    """All ranks send the same collectives in the same order, several a call."""
    logs = [log for *_, log in found]
    assert len(logs[0]) > 2
    *_, sends = logs[0][0]
    same = [[its[:2] if sends else its for its in log] for log in logs]
    assert all(its == same[0] for its in same)


def wanted_of(spec: ChainSpec, operands: list[torch.Tensor]) -> torch.Tensor:
    """What a chain gives; all ranks take part."""
    (wanted,) = reference.chain(spec, [tensor.clone() for tensor in operands])
    return wanted


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()
