"""Tensor parallelism with data parallelism beside it, on a fake world of four ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

import overlapc
from overlapc.graphs.collectives import Refusal
from overlapc.passes import chain_decisions, overlap_chains
from overlapc.passes.overlap_chains import OverlapChains
from tests.passes.catalogue import COLUMNS, INNER, x3
from tests.passes.test_overlap_chains import Block, kinds, sequence_plan
from tests.targets import SLOW_LINK

RS, AG = "gemm_reduce_scatter", "all_gather_gemm"


@pytest.fixture
def mesh(tmp_path, monkeypatch) -> Iterator[DeviceMesh]:
    """Two by two ranks that are not there: data parallel, tensor parallel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dist.destroy_process_group()
    torch._dynamo.reset()


def explained(model, x):
    return overlapc.explain(model, {"target": SLOW_LINK})(x)


def found(report, mesh):
    """The rewritten sites, all of which are on the tensor-parallel group."""
    rewritten = [site for site in report.sites if site.decision == "rewritten"]
    assert {site.group for site in rewritten} == {mesh["tp"].get_group().group_name}
    return sorted(kinds(type(report)(rewritten)))


def test_a_sub_mesh_is_planned_for_its_own_size(mesh):
    model = parallelize_module(Block(), mesh["tp"], sequence_plan(1))
    report = explained(model, x3().requires_grad_())
    assert len(found(report, mesh)) == 4
    assert {site.plan.problem.world_size for site in report.sites if site.plan} == {2}


def test_fully_sharded_data_parallel(mesh):
    """Its hooks end graphs, so a gather before a hook is read by no GEMM of its graph."""
    model = parallelize_module(Block(), mesh["tp"], sequence_plan(1))
    fully_shard(model.ffn, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    report = explained(model, x3().requires_grad_())
    assert ("forward", RS, "rewritten") in found(report, mesh)
    assert ("backward", AG, "rewritten") in found(report, mesh)
    refused = [site for site in report.sites if site.decision == "refused"]
    assert [(site.kind, site.code) for site in refused] == [(AG, "no_gemm")]


class RowParallel(torch.nn.Module):
    """Tensor parallelism by hand: DDP takes no distributed tensors."""

    def __init__(self, group):
        super().__init__()
        self.linear, self.group = torch.nn.Linear(INNER, COLUMNS), group

    def forward(self, x):
        return all_reduce(F.linear(x, self.linear.weight), "sum", self.group) + self.linear.bias


def test_distributed_data_parallel(mesh):
    replicated = mesh["dp"].get_group()
    model = DistributedDataParallel(RowParallel(mesh["tp"].get_group()), process_group=replicated)
    with torch.no_grad():
        report = explained(model, x3())
    assert found(report, mesh) == [("inference", "gemm_all_reduce", "rewritten")]


def test_activation_checkpointing_runs_the_forward_chains_again(mesh):
    block = parallelize_module(Block(), mesh["tp"], sequence_plan(1))
    report = explained(lambda x: checkpoint(block, x, use_reentrant=False), x3().requires_grad_())
    assert [graph for graph, kind, _ in found(report, mesh) if kind == AG].count("backward") == 2


def of_the_world(monkeypatch, mesh):
    """Chains are planned for all ranks there are."""
    original = chain_decisions.problem_of

    def problem_of(spec, shapes, dtypes, ranks, *dealing):
        return original(spec, shapes, dtypes, dist.get_world_size(), *dealing)

    monkeypatch.setattr(chain_decisions, "problem_of", problem_of)


def forward_only(monkeypatch, mesh):
    """Backward graphs are left as they are."""
    original = OverlapChains._decided

    def decided(self, start, compilation):
        if compilation.graph_kind == "backward":
            return None, Refusal(start, "backward", "It is of a backward graph.")
        return original(self, start, compilation)

    monkeypatch.setattr(OverlapChains, "_decided", decided)


def on_the_other_group(monkeypatch, mesh):
    """Chains communicate on the data-parallel group."""
    original = overlap_chains.read_collective

    def read_collective(start):
        return replace(original(start), group=mesh["dp"].get_group().group_name)

    monkeypatch.setattr(overlap_chains, "read_collective", read_collective)


def first_of_a_kind(monkeypatch, mesh):
    """Of the chains of a graph that do alike, one is rewritten."""
    original, seen = OverlapChains._decided, set()

    def decided(self, start, compilation):
        key = compilation.graph_id, start.target
        if key in seen:
            return None, Refusal(start, "again", "Another one was rewritten.")
        seen.add(key)
        return original(self, start, compilation)

    monkeypatch.setattr(OverlapChains, "_decided", decided)


@pytest.mark.parametrize(
    ("mutant", "test"),
    [
        (of_the_world, test_a_sub_mesh_is_planned_for_its_own_size),
        (on_the_other_group, test_a_sub_mesh_is_planned_for_its_own_size),
        (forward_only, test_fully_sharded_data_parallel),
        (on_the_other_group, test_fully_sharded_data_parallel),
        (on_the_other_group, test_distributed_data_parallel),
        (forward_only, test_activation_checkpointing_runs_the_forward_chains_again),
        (first_of_a_kind, test_activation_checkpointing_runs_the_forward_chains_again),
    ],
)
def test_a_wrong_pass_is_seen(mutant, test, mesh, monkeypatch):
    mutant(monkeypatch, mesh)
    with pytest.raises(AssertionError):
        test(mesh)
