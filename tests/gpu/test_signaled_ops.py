"""The ops on a real device: signaled on a communicator of their own, captured, and by the library.

Of one rank every collective gives what it is given; of two on one GPU, NCCL has to allow it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from overlapc.codegen import tiles
from overlapc.codegen.packing import unpack
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.target import Target
from overlapc.planning.tiles import Tile, tiles_for
from overlapc.runtime import ops, reference
from overlapc.runtime.signaled import kernels
from overlapc.runtime.spec import ChainSpec
from tests.ranks import Ranks
from tests.runtime.chains import MM, call, chain, into, ragged

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

M, N, K = 1536, 1024, 512
KINDS = [
    ("gemm_all_reduce", 0),
    ("gemm_reduce_scatter", 0),
    ("gemm_reduce_scatter", 1),
    ("gemm_all_to_all", 0),
    ("gemm_all_to_all", 1),
]
BOUND = 1e-2
"""Of the relative error of bfloat16: a few of its roundings."""
REPLAYS = 1000
OLDEST_NCCL_OF_TWO_RANKS = (2, 30, 3)
"""The first that lets two ranks share a GPU, where a variable says so."""


def spec_of(kind: str, axis: int, site: str, **more: Any) -> ChainSpec:
    major, minor = torch.cuda.get_device_capability()
    target = replace(
        Target.load("h100-nvlink"), architecture=f"sm_{major}{minor}", communication_sms=8
    )
    reduce = "" if kind == "gemm_all_to_all" else "sum"
    return chain(kind, MM, target, axis=axis, reduce=reduce, site=site, **more)


def operands(seed: int, rows: int = M) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = (rows, K), (N, K)
    a, w = (torch.randn(s, generator=generator, device="cuda").bfloat16() for s in shapes)
    return [a, w.t()]


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def product(given: list[torch.Tensor]) -> torch.Tensor:
    return given[0].double() @ given[1].double()


@contextmanager
def counted(spec: ChainSpec) -> Iterator[tuple[Any, Any]]:
    """Calls of a site by schedule, and why the library computed them."""
    counts = ops.calls_of(spec.site), ops.by_library_of(spec.site)
    for each in counts:
        each.clear()
    with ragged(7, cut="signaled"):
        yield counts


@pytest.mark.parametrize(("kind", "axis"), KINDS)
def test_a_call_is_signaled_and_replays(one_rank, kind, axis):
    spec = spec_of(kind, axis, f"gpu {kind} {axis}")
    given = operands(axis)
    with counted(spec) as (calls, why):
        for _ in range(3):
            (found,) = call(spec, given, group=one_rank.group_name)
            assert error_of(found, product(given)) < BOUND
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            (found,) = call(spec, given, group=one_rank.group_name)
        assert (dict(calls), dict(why)) == ({"signaled": 4}, {})
    for _ in range(REPLAYS):
        graph.replay()
    given[0].neg_()
    found.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert error_of(found, product(given)) < BOUND


def test_packed_tiles_are_signaled_and_replay(one_rank):
    major, minor = torch.cuda.get_device_capability()
    tile = tiles_for(f"sm_{major}{minor}", "bfloat16")[0]
    order = PackedOrder(1000, N, tile)
    spec = spec_of("gemm_all_reduce", 0, "gpu packed", takes_map=True, packed=tile)
    given, groups = operands(4, 1000), (5, order.tiles - 5)
    with counted(spec) as (calls, why), into(groups, tile):
        for _ in range(3):
            (found,) = call(spec, given, group=one_rank.group_name)
            assert error_of(unpack(found, order), product(given)) < BOUND
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            (found,) = call(spec, given, group=one_rank.group_name)
        assert (dict(calls), dict(why)) == ({"signaled": 4}, {})
    given[0].neg_()
    for _ in range(REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    assert error_of(unpack(found, order), product(given)) < BOUND


def test_a_first_call_in_a_capture_is_computed_by_the_library(one_rank):
    spec, given = spec_of("gemm_all_reduce", 0, "gpu captured"), operands(1)
    torch.mm(*given)  # what the library itself sets up
    dist.all_reduce(given[0].clone())
    with counted(spec) as (calls, why):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            (found,) = call(spec, given, group=one_rank.group_name)
        graph.replay()
        torch.cuda.synchronize()
        assert error_of(found, product(given)) < BOUND
        ((reason, _),) = why.items()
        assert "called in a graph capture" in reason
        call(spec, given, group=one_rank.group_name)
        assert calls["signaled"] == 1


def test_a_kernel_that_is_too_large_is_left_to_the_library(one_rank, monkeypatch):
    huge = Tile(128, 256, 128, 8, 8)

    def spec_for(*operands: Any, **named: Any) -> Any:
        return replace(tiles.spec_for(*operands, **named), **huge.built)

    monkeypatch.setattr(kernels, "spec_for", spec_for)
    spec, given = spec_of("gemm_reduce_scatter", 0, "gpu too large"), operands(2)
    with counted(spec) as (calls, why):
        for _ in range(2):
            (found,) = call(spec, given, group=one_rank.group_name)
            assert error_of(found, product(given)) < BOUND
        ((reason, count),) = why.items()
        assert "shared memory" in reason
        assert (count, dict(calls)) == (2, {"chunked": 2})


def test_verify_names_no_group_where_all_come(one_rank):
    spec = spec_of("gemm_all_reduce", 0, "gpu verified", verify=True, wait_seconds=20)
    given = operands(3)
    with counted(spec) as (calls, _):
        for _ in range(3):
            (found,) = call(spec, given, group=one_rank.group_name)
            assert error_of(found, product(given)) < BOUND
        assert calls["signaled"] == 3


def on_two_ranks(rank: int, backend: str) -> dict[str, tuple[float, dict, dict]]:
    """By kind, the error of calls on two ranks of one GPU, and who computed them."""
    group = dist.new_group([0, 1], backend=backend)
    found = {}
    for kind, axis in KINDS:
        spec = spec_of(kind, axis, f"{backend} {kind} {axis}")
        given = operands(10 * rank + axis)
        with counted(spec) as (calls, why):
            errors = []
            for _ in range(3):
                (result,) = call(spec, given, group=group.group_name)
                torch.cuda.synchronize()
                # The oracle's collectives are gloo's, on the host.
                (wanted,) = reference.chain(spec, [tensor.cpu() for tensor in given])
                errors.append(error_of(result.cpu(), wanted.double()))
            found[f"{kind} {axis}"] = max(errors), dict(calls), dict(why)
    dist.destroy_process_group(group)
    return found


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_ranks_on_one_gpu(backend):
    if backend == "nccl":
        version = torch.cuda.nccl.version()
        if version < OLDEST_NCCL_OF_TWO_RANKS:
            pytest.skip(f"NCCL {version} lets no two ranks share a GPU")
    variables = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_NVLS_ENABLE": "0"}
    ranks = Ranks(2, environment={**variables, "PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    try:
        for found in ranks.run(on_two_ranks, backend, timeout=100):
            for error, calls, why in found.values():
                assert error < BOUND
                if backend == "nccl":
                    assert (calls, why) == ({"signaled": 3}, {})
                else:
                    assert why == {"Collectives of gloo do not run on streams.": 3}
    finally:
        ranks.close()
