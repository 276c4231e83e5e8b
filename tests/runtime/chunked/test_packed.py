"""Chains in packed order over real gloo ranks, their kernels interpreted, against float64."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F

import overlapc
from overlapc.codegen.packing import unpack
from overlapc.errors import DisagreementError
from overlapc.graphs import replacing
from overlapc.graphs.chains import readers
from overlapc.graphs.chains.readers import read_tiles
from overlapc.passes import PIPELINE
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.tiles import Tile
from overlapc.runtime import ops, reference
from overlapc.runtime.chunked import packed
from overlapc.runtime.programs.program import Program
from overlapc.runtime.spec import ChainSpec
from tests.passes.test_catalogue_values import rewritten
from tests.ranks import Ranks
from tests.runtime.chains import call, chain, into, poisoned
from tests.runtime.matrix import forget
from tests.runtime.measuring.test_kernel_trials import GPU
from tests.runtime.programs.cases import value
from tests.runtime.signaled.cases import (
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
from tests.runtime.signaled.pretended import SECONDS, pretended_gpu

N = 72
TILE = Tile(32, 32, 32, 4, 3, 2)
ROWS = {"one sweep": 40, "two sweeps": 120}
"""Two tile rows, or four; of three tile columns, as the last rows and columns are ragged."""


@pytest.fixture(params=["pair", pytest.param("three", marks=pytest.mark.long)])
def ranks(request) -> Ranks:
    """Processes whose kernels run in Triton's interpreter."""
    return request.getfixturevalue(f"interpreted_{request.param}")


def spec_of(
    rows: int, tile: Tile | None = TILE, program: Program = GATED, **more: Any
) -> tuple[Case, ChainSpec]:
    case = Case("gemm_all_reduce", GATED, rows=rows, reduce="avg")
    named = {"wait_seconds": SECONDS, "site": f"packed {rows} {more}", **more}
    spec = chain(
        case.kind, program, TARGET, reduce="avg", takes_map=tile is not None, packed=tile, **named
    )  # fmt: skip
    return case, spec


def read(spec: ChainSpec, c: torch.Tensor, rows: int) -> torch.Tensor:
    return unpack(c, PackedOrder(rows, N, spec.packed)) if spec.packed else c


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


OTHER = Tile(16, 64, 32, 4, 3, 4)
KEEPS = replace(GATED, kept=(value(0), value(1)))
GRAPHS = {
    "the same": (TILE, GATED),
    "other tiles": (OTHER, GATED),
    "more warps": (replace(TILE, warps=8), GATED),
    "rows": (None, GATED),
    "rows, and keeps values": (None, KEEPS),
}
"""How they read C, and what they compute."""
BANDS = (32, 8)


def graph_of(name: str, rows: int) -> tuple[Case, ChainSpec]:
    """One of the graphs in which a line of the source is compiled."""
    tile, program = GRAPHS[name]
    return spec_of(rows, tile, program, site=f"reads {name}", place="unlike.py:1")


def unlike(rank: int, *names: str) -> list[tuple[float, list]]:
    """The errors of calls of rank 1's graphs beside the first one's on the others; what was sent.

    Of either kind of tiles there are as many.
    """
    rows = ROWS["one sweep"]
    assert {PackedOrder(rows, N, tile).tiles for tile in (TILE, OTHER)} == {6}
    forget()
    found = []
    for name in names:
        case, spec = graph_of(name if rank == 1 else "the same", rows)
        given = case.operands(rank)
        wanted = reference.chain(spec, [tensor.clone() for tensor in given])
        with pretended_gpu(), into((2, 4), TILE, BANDS), poisoned(), recorded() as log:
            c, *kept = call(spec, given)
        assert all(value.is_contiguous() for value in (c, *kept))
        pairs = zip([read(spec, c, rows), *kept], wanted, strict=True)
        found.append((max(error_of(*pair) for pair in pairs), log))
    return found


TILES_SENT = [("beside", "all_reduce", (count, TILE.elements), ()) for count in (2, 4)]
ROWS_SENT = [("beside", "all_reduce", (count, N), ()) for count in BANDS]


@pytest.mark.parametrize("name", GRAPHS)
def test_ranks_send_tiles_where_all_their_graphs_read_them(ranks, name):
    for ((error, log),) in ranks.run(unlike, name):
        assert error < BOUND
        assert log == (TILES_SENT if name in ("the same", "more warps") else ROWS_SENT)


def test_a_graph_that_one_rank_alone_compiles_later_sends_what_was_agreed_on(ranks):
    for found in ranks.run(unlike, *GRAPHS):
        for error, log in found:
            assert error < BOUND
            assert log == TILES_SENT


def met_alone(rank: int) -> str:
    """What a call raises whose graph reads rows on rank 1, where tiles tell calls apart."""
    forget()
    group = dist.new_group(timeout=timedelta(seconds=2))
    said, role = "", ChainSpec.role.func  # type: ignore[attr-defined]
    mutant = cached_property(lambda spec: f"{role(spec)} {spec.packed}")
    mutant.__set_name__(ChainSpec, "role")
    with (
        patch.object(ChainSpec, "role", mutant), pretended_gpu(), into((2, 4), TILE, BANDS)
    ):  # fmt: skip
        for name in ("the same", "rows" if rank == 1 else "the same"):
            case, spec = graph_of(name, ROWS["one sweep"])
            try:
                call(replace(spec, wait_seconds=1.0), case.operands(rank), group=group.group_name)
            except (DisagreementError, RuntimeError) as error:
                said = type(error).__name__
    dist.destroy_process_group(group)
    return said


def test_ranks_that_meet_by_how_they_read_are_caught(ranks):
    found = ranks.run(met_alone)
    assert found[1] == "DisagreementError"
    assert "" not in found


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


def compiled(
    rank: int, *depths: tuple[int, int]
) -> tuple[list[float], list[tuple[str, str, dict]]]:
    """Errors of a compiled layer over calls that contract so much on rank 1 and on the others, and
    what the report says of its sites."""
    torch._dynamo.reset()
    forget()
    torch.manual_seed(rank)
    errors = []
    for counts in ops._calls.values():  # of the same graph, run op by op
        counts.clear()
    with pretended_gpu():
        options = {"target": GPU, "overlap": "signaled", "agreement_seconds": float(SECONDS)}
        run = torch.compile(layer, backend="overlapc", options=options)
        for depth in depths:
            k = depth[rank == 1]
            shapes = ((60, k), (1000, k), *SHAPES[2:])
            true = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
            with torch.no_grad():
                pairs = zip(run(*[t.float() for t in true]), layer(*true), strict=True)
            errors += [error_of(*pair) for pair in pairs]
        sites = [site for site in overlapc.report().sites if site.plan and site.calls]
    return errors, [(site.plan.order, site.code, dict(site.calls)) for site in sites]


@pytest.mark.long
def test_a_compiled_layer_reads_packed_tiles(ranks):
    for errors, sites in ranks.run(compiled, (40, 40), (40, 40), timeout=240):
        assert max(errors) < BOUND
        assert sites == [("packed", "forced", {"signaled": 2})]


@pytest.mark.long
def test_a_layer_that_one_rank_alone_compiles_again(ranks):
    """There k is a symbol then, and so C is read in rows."""
    found = ranks.run(compiled, (40, 40), (40, 48), (40, 56), timeout=240)
    for rank, (errors, sites) in enumerate(found):
        assert max(errors) < BOUND
        packed, *others = sites
        assert packed == ("packed", "forced", {"signaled": 1 if rank == 1 else 3})
        assert [(order, calls) for order, _, calls in others] == [("band", {"signaled": 2})] * (
            rank == 1
        )
