"""Ranks of which one runs another graph than before, and the others do not: sizes that a collective
does not want equal changed on that rank alone. Eager runs such programs, and so do we."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import overlapc
from overlapc.errors import DisagreementError
from overlapc.planning.tiles import Tile
from overlapc.runtime.ranks import groups
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.spec import CONSUMERS, ChainSpec
from tests.runtime.chains import MM, call, chain, errors_of
from tests.runtime.matrix import forget
from tests.runtime.programs.cases import CASES
from tests.targets import SLOW_LINK

SECONDS = 10.0
"""How long a rank waits that alone has something to compare: it fails the test."""

CALLS = {
    "rank 1 has two": ((512, 512, 512), (16, 512, 512)),
    "rank 0 has two": ((16, 512, 16), (512, 512, 512)),
    "alike at first": ((512, 512, 16), (512, 16, 16)),
    "three": ((512, 16, 64, 16), (512, 512, 512, 64)),
    "both known, then mixed": ((512, 16, 512, 16), (512, 16, 16, 512)),
}
"""What each rank contracts at each call, or how many columns it gives after an all-gather: a graph
each. Alone, calls of 16 and of 512 are cut differently."""

KINDS = ("gemm_all_reduce", "gemm_reduce_scatter", "all_gather_gemm")


def spec_of(kind: str, size: int, verify: bool, **more) -> ChainSpec:
    program = CASES["mm"].consumer() if kind in CONSUMERS else MM
    named = {"site": f"graph {size}", "place": "f.py:1", "wait_seconds": SECONDS, **more}
    return chain(kind, program, SLOW_LINK, verify=verify, **named)


def operands_of(kind: str, size: int, rows: int) -> list[torch.Tensor]:
    if kind in CONSUMERS:
        return [torch.randn(rows // 2, 96), torch.randn(96, size)]
    return [torch.randn(rows, size), torch.randn(size, 96)]


def called(rank: int, kind: str, sizes: tuple, verify: bool, **more) -> tuple:
    """The worst error of calls with other rows each, what was sent, and what was compared."""
    forget()
    torch.manual_seed(rank)
    errors, started, compared = [], [], []
    start, exchange = Sender.start, groups.exchange

    def recorded(self, group, out, sent, *parts):
        started.append(tuple(sent.shape))
        return start(self, group, out, sent, *parts)

    def heard(group, value, seconds):
        compared.append(value.partition("\n")[0])
        return exchange(group, value, seconds)

    groups.agree_once(dist.group.WORLD, "warm", SECONDS)
    with patch.object(Sender, "start", recorded), patch.object(groups, "exchange", heard):
        for number, size in enumerate(sizes[rank]):
            for rows in (512, 512 - 64 * number):
                spec = spec_of(kind, size, verify, **more)
                errors += errors_of(spec, operands_of(kind, size, rows))
    forget()
    return max(errors), started, [text for text in compared if "sources=" not in text]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verify", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_graph_that_is_new_on_one_rank_alone(two_ranks, kind, name, verify):
    first, second = two_ranks.run(called, kind, CALLS[name], verify)
    assert max(first[0], second[0]) < 1e-5
    assert first[1] == second[1]
    assert len(first[1]) > 2 * len(CALLS[name][0]), "nothing was cut, and so nothing tried"
    assert first[2] == second[2]
    # Once, at the first call; under ``verify`` at every call besides.
    assert len(first[2]) == 1 + verify * 2 * len(CALLS[name][0])


def test_what_only_a_graph_tells_is_no_identity() -> None:
    read = ({}, {"takes_map": True}, {"takes_map": True, "packed": Tile(64, 64, 32, 4, 3)})
    assert len({spec_of("gemm_all_reduce", 16, False, **more).role for more in read}) == 1


def apart(rank: int) -> list[str]:
    """What calls raise under the mutant that agrees on each graph by itself."""
    group = dist.new_group(timeout=timedelta(seconds=2))
    said = []
    for size in (512, (512, 16)[rank]):
        spec = spec_of("gemm_all_reduce", size, False, place=f"graph {size}", wait_seconds=1.0)
        try:
            call(spec, operands_of("gemm_all_reduce", size, 512), group=group.group_name)
            said.append("")
        except (DisagreementError, RuntimeError) as error:
            said.append(type(error).__name__)
    dist.destroy_process_group(group)
    return said


def test_an_agreement_of_each_graph_by_itself_is_caught(fresh_ranks):
    assert fresh_ranks.run(apart) == [["", "RuntimeError"], ["", "DisagreementError"]]


def compiled(rank: int, name: str, verify: bool) -> tuple[float, int]:
    """The worst error of a compiled function, and how many of its calls were cut."""
    torch._dynamo.reset()
    forget()

    def f(x, a):
        return functional.all_reduce(x @ a, "sum", dist.group.WORLD)

    def cut() -> int:
        return sum(site.calls.get("chunked", 0) for site in overlapc.report().sites)

    options = {"target": SLOW_LINK, "verify": verify, "agreement_seconds": SECONDS}
    ours = torch.compile(f, backend="overlapc", dynamic=False, options=options)
    errors, before = [], cut()
    for k in CALLS[name][rank]:
        x, a = torch.randn(512, k), torch.randn(k, 96)
        wanted = f(x.double(), a.double())
        errors.append(((ours(x, a) - wanted).norm() / wanted.norm()).item())
    return max(errors), cut() - before


@pytest.mark.parametrize(
    ("name", "verify"),
    [
        pytest.param(name, verify, marks=[pytest.mark.long] if verify or number else [])
        for number, name in enumerate(CALLS)
        for verify in (False, True)
    ],
)
def test_a_function_that_one_rank_alone_compiles_again(two_ranks, name, verify):
    for error, cut in two_ranks.run(compiled, name, verify):
        assert error < 1e-5
        assert cut == len(CALLS[name][0])
