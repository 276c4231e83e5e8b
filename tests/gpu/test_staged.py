"""Staged GEMMs on a real device: the result of every collective in PyTorch's own order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overlapc.codegen import GemmSpec, build
from overlapc.codegen.oracle import random_operand
from overlapc.planning.tiles import tiles_for
from overlapc.runtime.cutting import columns
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.signaled.staged import StagedGemm

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

SPEC = GemmSpec("float32", "float32", **tiles_for("sm_80", "float32")[0].built)
RANKS, ME = 4, 1
COUNTS = (200, 100, 300)
"""Rows of each group, of every rank where dimension 0 is dealt out."""
K, N = 256, 712
REPLAYS = 100
KINDS = [
    ("all_reduce", 0),
    ("reduce_scatter", 0),
    ("reduce_scatter", 1),
    ("all_to_all", 0),
    ("all_to_all", 1),
]


def of_all_ranks(collective: str, sent: torch.Tensor) -> torch.Tensor:
    """What arrives where rank r has r + 1 times what this rank has."""
    if collective == "all_reduce":
        return sum(r + 1 for r in range(RANKS)) * sent
    mine = sent.chunk(RANKS)[ME]
    if collective == "reduce_scatter":
        return sum(r + 1 for r in range(RANKS)) * mine
    return torch.cat([(r + 1) * mine for r in range(RANKS)])


class Sends:
    """Stands for the other ranks on the current stream."""

    def __init__(self, collective: str) -> None:
        self.collective, self.reduce = collective, "sum"

    def start(self, group: Any, out, sent, receives, sends) -> Any:
        where = sent if self.collective == "all_reduce" else out
        where.copy_(of_all_ranks(self.collective, sent))
        return SimpleNamespace(wait=lambda: None)


@pytest.mark.parametrize(("kind", "axis"), KINDS)
def test_results_are_in_pytorchs_order(kind, axis):
    units = sum(COUNTS) * (1 if kind == "all_reduce" or axis else RANKS)
    deal = Dealing(kind, axis, units, RANKS, ME)
    kernel, sender, group = build(SPEC), Sends(kind), None
    fakes: Any = (kernel, sender, group)
    gemm = StagedGemm.of(
        *fakes[:2], producer_parts(deal, COUNTS), result_units=deal.result_units,
        across=RANKS if axis else 1, first_run=ME,
    )  # fmt: skip
    a = random_operand("row", units, K, "float32", "cuda")
    b = random_operand("col", K, N, "float32", "cuda")

    def check(out: torch.Tensor) -> None:
        c = a.double() @ b.double()
        whole = of_all_ranks(kind, columns.pack(c, RANKS) if axis else c)
        torch.testing.assert_close(out.double(), whole, rtol=1e-4, atol=1e-2)

    for _ in range(3):
        check(gemm(a, b, fakes[2], 8, name=(kind, axis)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gemm(a, b, fakes[2], 8, name=(kind, axis))
    a.neg_()
    for _ in range(REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    check(out)
