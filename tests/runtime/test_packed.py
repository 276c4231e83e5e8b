"""Chains in packed order over real gloo ranks, their kernels interpreted, against float64."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F

import overlapc
from overlapc.codegen.packing import unpack
from overlapc.graphs import readers, replacing
from overlapc.graphs.readers import read_tiles
from overlapc.passes import PIPELINE
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.tiles import Tile
from overlapc.runtime import ops, packed
from overlapc.runtime.spec import ChainSpec
from tests.passes.test_catalogue_values import rewritten
from tests.ranks import Ranks
from tests.runtime.chains import call, chain, into, poisoned
from tests.runtime.matrix import forget
from tests.runtime.pretended import SECONDS, pretended_gpu
from tests.runtime.test_kernel_trials import GPU
from tests.runtime.test_signaled import (
    BOUND,
    GATED,
    TARGET,
    Case,
    alone,
    assert_met,
    error_of,
    recorded,
    wanted_of,
)

N = 72
TILE = Tile(32, 32, 32, 4, 3, 2)
ROWS = {"one sweep": 40, "two sweeps": 120}
"""Two tile rows, or four; of three tile columns, as the last rows and columns are ragged."""


@pytest.fixture(params=["pair", pytest.param("three", marks=pytest.mark.long)])
def ranks(request) -> Ranks:
    """Processes whose kernels run in Triton's interpreter."""
    return request.getfixturevalue(f"interpreted_{request.param}")


def spec_of(rows: int, tile: Tile = TILE, **more: Any) -> tuple[Case, ChainSpec]:
    case = Case("gemm_all_reduce", GATED, rows=rows, reduce="avg")
    named = {"wait_seconds": SECONDS, "site": f"packed {rows} {more}", **more}
    spec = chain(
        case.kind, GATED, TARGET, reduce="avg", takes_map=True, packed=tile, **named
    )  # fmt: skip
    return case, spec


def read(spec: ChainSpec, buffer: torch.Tensor, rows: int) -> torch.Tensor:
    assert spec.packed is not None
    return unpack(buffer, PackedOrder(rows, N, spec.packed))


def run(rank: int, rows: int, without: tuple[int, ...] = ()) -> tuple[float, dict, dict, list]:
    """The error of two calls, by whom they were computed and why, and what was sent."""
    case, spec = spec_of(rows)
    forget()
    for counts in (ops.calls_of(spec.site), ops.by_library_of(spec.site)):
        counts.clear()
    falls_back = alone() if rank in without else nullcontext()
    groups = (1, 3, 2) if rows == ROWS["one sweep"] else (1, 7, 4)
    given, errors = case.operands(rank), []
    wanted = wanted_of(spec, given)
    with pretended_gpu(), into(groups, TILE), poisoned(), falls_back, recorded() as log:
        for _ in range(2):
            (buffer,) = call(spec, given)
            errors.append(error_of(read(spec, buffer, rows), wanted))
    sent = [its for its in log if its[0] == "beside"]
    assert [its[2] for its in sent] == [(count, TILE.elements) for count in groups] * 2
    return max(errors), dict(ops.calls_of(spec.site)), dict(ops.by_library_of(spec.site)), sent


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_tiles_are_sent_as_they_lie(ranks, rows):
    found = ranks.run(run, rows)
    for error, calls, why, _ in found:
        assert error < BOUND
        assert (calls, why) == ({"signaled": 2}, {})
    assert_met(found)


@pytest.mark.parametrize("without", [(1,), (0, 1, 2)], ids=["one", "all"])
def test_ranks_without_a_kernel_pack_what_the_library_gave(ranks, without):
    found = ranks.run(run, ROWS["two sweeps"], without)
    for rank, (error, calls, why, _) in enumerate(found):
        assert error < BOUND
        assert calls == {"chunked" if rank in without else "signaled": 2}
        assert why == ({"It falls back.": 2} if rank in without else {})
    assert_met(found)


def of_rows(rank: int) -> float:
    """The error where rank 1 falls back alone, and sends its rows as they are."""

    def unpacked(c: torch.Tensor, order: PackedOrder) -> torch.Tensor:
        return F.pad(c.reshape(-1), (0, order.elements - c.numel()))

    with patch.object(packed, "pack", unpacked):
        return run(rank, ROWS["two sweeps"], (1,))[0]


def test_a_rank_that_sends_rows_is_seen(ranks):
    assert not any(error < 0.1 for error in ranks.run(of_rows))


def unlike(rank: int) -> tuple[float, list]:
    """The error where ranks planned other tiles, of which there are as many; and what was sent."""
    rows = ROWS["one sweep"]
    tile = Tile(16, 64, 32, 4, 3, 4) if rank else TILE
    assert PackedOrder(rows, N, tile).tiles == 6
    case, spec = spec_of(rows, tile)
    given = case.operands(rank)
    wanted = wanted_of(spec, given)
    forget()
    with pretended_gpu(), into((2, 4), tile), poisoned(), recorded() as log:
        (buffer,) = call(spec, given)
        return error_of(read(spec, buffer, rows), wanted), log


def test_ranks_that_planned_other_tiles_send_rows(ranks):
    for error, log in ranks.run(unlike):
        assert error < BOUND
        assert log == [("group", "all_reduce", (ROWS["one sweep"], N), ())]


SHAPES = ((60, 40), (1000, 40), (60, 1000), (1000,))


def layer(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, scale: torch.Tensor) -> Any:
    """The end of a row-parallel layer: residual and RMSNorm."""
    y = functional.all_reduce(x @ w.t(), "sum", dist.group.WORLD) + r
    return F.rms_norm(y, (w.shape[0],), scale, 1e-6), y


def straight(graph: Any, buffer: Any, order: PackedOrder) -> Any:
    """As ``read_tiles``, but in the order in which they lie."""
    with patch.object(readers, "AXES", (0, 1, 2, 3, 4)):
        return read_tiles(graph, buffer, order)


def in_graph(rank: int, without: tuple[int, ...], reads: Any = read_tiles) -> tuple[float, int]:
    """The error of a layer whose graph the passes left, run op by op; and its packed ops."""
    torch._dynamo.reset()
    forget()
    torch.manual_seed(rank)
    true = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    seen, wanted, count = [t.float() for t in true], layer(*true), [0]
    falls_back = alone() if rank in without else nullcontext()

    def counted(*given: Any) -> Any:
        count[0] += 1
        return reads(*given)

    with pretended_gpu(), falls_back, patch.object(replacing, "read_tiles", counted):
        ours = rewritten(layer, PIPELINE, [], GPU, "signaled")
        with torch.no_grad():
            ours(*seen)
            with poisoned():
                found = ours(*seen)
    return max(error_of(*pair) for pair in zip(found, wanted, strict=True)), count[0]


@pytest.mark.parametrize("without", [(), (1,)], ids=["by kernels", "one by the library"])
def test_a_graph_reads_what_the_op_packed(ranks, without):
    for error, count in ranks.run(in_graph, without):
        assert error < BOUND
        assert count == 1


def test_a_graph_that_reads_another_order_is_seen(ranks):
    assert not any(error < 0.1 for error, _ in ranks.run(in_graph, (), straight))


def compiled(rank: int) -> tuple[list[float], list[tuple[str, str, dict]]]:
    """Errors of a compiled layer over several calls, and what the report says of its site."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    errors = []
    for counts in ops._calls.values():  # of the same graph, run op by op
        counts.clear()
    before = {site.id for site in overlapc.report().sites}  # of other tests of these ranks
    with pretended_gpu():
        options = {"target": GPU, "overlap": "signaled"}
        run = torch.compile(layer, backend="overlapc", options=options)
        for _ in range(2):
            true = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
            with torch.no_grad():
                pairs = zip(run(*[t.float() for t in true]), layer(*true), strict=True)
            errors += [error_of(*pair) for pair in pairs]
        sites = [site for site in overlapc.report().sites if site.plan and site.id not in before]
    return errors, [(site.plan.order, site.code, dict(site.calls)) for site in sites]


@pytest.mark.long
def test_a_compiled_layer_reads_packed_tiles(ranks):
    for errors, sites in ranks.run(compiled, timeout=240):
        assert max(errors) < BOUND
        assert sites == [("packed", "forced", {"signaled": 2})]
