"""The chains that benchmarks measure, against what they mean, over real ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from benchmarks.overlap_link.chains import CHAINS, Operands, spans
from benchmarks.overlap_link.shapes import COLLECTIVES, KINDS, Shape
from overlapc.planning.problem import COLLECTIVES as PLANNED
from tests.ranks import Ranks

SHAPE = Shape(48, 7, 5, "")


def meant(kind: str, operands: list[Operands], rank: int) -> torch.Tensor:
    ranks = len(operands)
    xs, ws = [o.x.double() for o in operands], [o.weight.double() for o in operands]
    products = [x @ w.t() for x, w in zip(xs, ws, strict=True)]
    if kind == "gemm_all_reduce":
        return torch.stack(products).sum(0)
    if kind == "gemm_reduce_scatter":
        return torch.stack(products).sum(0).chunk(ranks)[rank]
    if kind == "gemm_all_to_all":
        return torch.cat([product.chunk(ranks)[rank] for product in products])
    if kind == "all_gather_gemm":
        return torch.cat(xs) @ ws[rank].t()
    return torch.cat([x.chunk(ranks)[rank] for x in xs]) @ ws[rank].t()


def sent_alone(kind: str, operands: list[Operands], rank: int) -> torch.Tensor:
    ranks = len(operands)
    sent = [o.fresh for o in operands]
    if kind in ("gemm_all_reduce", "gemm_reduce_scatter"):
        whole = torch.stack(sent).sum(0)
        return whole if kind == "gemm_all_reduce" else whole.chunk(ranks)[rank]
    if kind == "all_gather_gemm":
        return torch.cat(sent)
    return torch.cat([part.chunk(ranks)[rank] for part in sent])


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), atol=1e-4
    )


class CountedRows(TorchFunctionMode):
    rows = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.mm:
            self.rows += args[0].size(0)
        return func(*args, **(kwargs or {}))


def check(rank: int, ranks: int) -> None:
    group = dist.group.WORLD
    for kind, chain in CHAINS.items():
        operands = [chain.operands(SHAPE, r, ranks) for r in range(ranks)]
        mine, expected = operands[rank], meant(kind, operands, rank)
        assert not close(expected, meant(kind, operands, 1 - rank % 2)) or kind == "gemm_all_reduce"
        for _ in range(2):
            assert close(chain.serial(mine.x, mine.weight, group), expected), kind
            assert close(chain.compiled(mine.x, mine.weight, group), expected), kind
        for rows in ((48,), (24, 24), (8, 16, 24), (4,) * 12, (44, 4)):
            with CountedRows() as counted:
                out = chain.chunked(mine.x, mine.weight, rows, group)
            assert close(out, expected), (kind, rows)
            assert counted.rows == SHAPE.m, (kind, rows, "a row is computed once")
        for _ in range(2):
            mine.renew()
            out = chain.together(mine, group)
            assert close(out, mine.whole.double() @ mine.weight.double().t()), kind
            assert close(mine.received, sent_alone(kind, operands, rank)), kind
            mine.renew()
            chain.together_quickly(mine, group)
            assert close(mine.received, sent_alone(kind, operands, rank)), kind
        if not chain.is_consumer:
            columns = (1, SHAPE.n - 1)
            assert close(chain.in_columns(mine.x, mine.weight, columns, group), expected), kind
    # A mutant: groups of which another rank takes the rows in another order arrive misplaced.
    chain = CHAINS["gemm_all_to_all"]
    operands = [chain.operands(SHAPE, r, ranks) for r in range(ranks)]
    mine = operands[rank]
    turned = replace(mine, x=mine.x.view(ranks, -1, 5).flip(1).reshape(48, 5))
    out = chain.chunked(turned.x, mine.weight, (16, 32), group)
    assert not close(out, meant("gemm_all_to_all", operands, rank))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_every_chain_computes_what_it_means(ranks: int, request: pytest.FixtureRequest) -> None:
    started: Ranks = request.getfixturevalue("two_ranks" if ranks == 2 else "four_ranks")
    started.run(check, ranks)


def test_spans_share_every_block_alike() -> None:
    assert list(spans((8, 4, 12), 4)) == [(0, 2), (2, 1), (3, 3)]
    assert list(spans((5, 7), 1)) == [(0, 5), (5, 7)]


def test_all_kinds_have_names_and_the_planner_knows_their_collectives() -> None:
    assert tuple(CHAINS) == KINDS
    assert {CHAINS[kind].collective: kind for kind in COLLECTIVES.values()} == COLLECTIVES
    assert set(COLLECTIVES) <= set(PLANNED)
