"""Tensor parallelism with data parallelism beside it, on a fake world of four ranks."""

from __future__ import annotations

from collections.abc import Iterator

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
