"""Gathers and scatters of a sequence-parallel plan through Inductor, on real gloo ranks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import overlapc
from tests.passes.test_overlap_chains import Block, sequence_plan
from tests.ranks import Ranks
from tests.runtime import matrix, mutants
from tests.targets import SLOW_LINK

OPTIONS = {"target": SLOW_LINK, "overlap": "chunked"}
"""A forced schedule: what the planner prefers on this link is tested elsewhere."""

BATCH, ROWS, INNER = 4, 32, 64


def error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def train(rank, size):
    """Errors of the output and of every gradient against the whole model in float64."""
    torch.manual_seed(0)
    whole = Block().double()
    split = copy.deepcopy(whole).float()
    mesh = init_device_mesh("cpu", (size,))
    compiled = torch.compile(
        parallelize_module(split, mesh, sequence_plan(1)), backend="overlapc", options=OPTIONS
    )
    x = torch.randn(BATCH, size * ROWS, INNER, dtype=torch.float64)
    weights = torch.randn_like(x)
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    x32 = x[:, mine].float().requires_grad_()
    x.requires_grad_()
    found, wanted = compiled(x32), whole(x)
    found = found.to_local() if isinstance(found, DTensor) else found
    (found * weights[:, mine].float()).sum().backward()
    (wanted * weights).sum().backward()
    errors = {"output": error(found.detach(), wanted.detach()[:, mine])}
    assert x.grad is not None
    errors["input"] = error(x32.grad, x.grad[:, mine])
    for name, parameter in split.named_parameters():
        grad = parameter.grad.full_tensor()
        errors[name] = error(grad, whole.get_parameter(name).grad)
    sites = [site for site in overlapc.report().sites if site.calls]
    return errors, {(site.graph, site.kind): dict(site.calls) for site in sites}


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_sequence_parallel_plan_trains_right(size, request):
    ranks = request.getfixturevalue("two_ranks" if size == 2 else "four_ranks")
    for errors, calls in ranks.run(train, size, timeout=160):
        assert {name: value for name, value in errors.items() if not value < 1e-5} == {}
        for graph in ("forward", "backward"):
            for kind in ("all_gather_gemm", "gemm_reduce_scatter"):
                assert calls[graph, kind] == {"chunked": 1}


def uneven(rank, size, dim):
    """The same of shards that differ, of a model whose activations stay distributed."""
    torch._dynamo.reset()  # what it saw of other sizes would make these vary
    torch.manual_seed(0)
    whole = Block().double()
    split = copy.deepcopy(whole).float()
    mesh, shard = init_device_mesh("cpu", (size,)), Shard(dim)
    plan = {
        "norm": SequenceParallel(sequence_dim=dim, use_local_output=False),
        "ffn.gate": ColwiseParallel(input_layouts=shard),
        "ffn.up": ColwiseParallel(input_layouts=shard),
        "ffn.down": RowwiseParallel(output_layouts=shard, use_local_output=False),
    }
    compiled = torch.compile(
        parallelize_module(split, mesh, plan), backend="overlapc", options=OPTIONS
    )
    x = torch.randn(size + 1, 33, INNER, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    x32 = distribute_tensor(x.detach().float(), mesh, [shard]).requires_grad_()
    found, wanted = compiled(x32), whole(x)
    found.backward(distribute_tensor(weights.float(), mesh, [shard]))
    wanted.backward(weights)
    pairs = {"output": (found, wanted), "input": (x32.grad, x.grad)}
    for name, parameter in split.named_parameters():
        pairs[name] = parameter.grad, whole.get_parameter(name).grad
    errors = {name: error(one.full_tensor(), other) for name, (one, other) in pairs.items()}
    sites = [site for site in overlapc.report().sites if site.calls]
    return errors, {(site.graph, site.kind, *site.calls) for site in sites}


@pytest.mark.parametrize(
    ("size", "dim"),
    [
        (2, 0),
        pytest.param(2, 1, marks=pytest.mark.long),
        pytest.param(4, 0, marks=pytest.mark.long),
    ],
)
def test_uneven_shards_train_right(size, dim, request):
    """Scatters as well as gathers, with biases: along the batch and along the sequence.

    Gate and up gather for themselves: the ranks have to merge that alike, too. Of five rows four
    ranks have two, two, one and none, and the padding of none is an input of the backward graph,
    whose scatters stay as they are.
    """
    chunked = {(graph, "all_gather_gemm", "chunked") for graph in ("backward", "forward")}
    chunked.add(("forward", "gemm_reduce_scatter", "chunked"))
    if size == 2:
        chunked.add(("backward", "gemm_reduce_scatter", "chunked"))
    ranks = request.getfixturevalue("two_ranks" if size == 2 else "four_ranks")
    for errors, sites in ranks.run(uneven, size, dim, timeout=160):
        assert {name: value for name, value in errors.items() if not value < 1e-5} == {}
        assert chunked <= sites


def varying_rows(rank, counts):
    """Worst error over many row counts, how often it compiled, and what became of its sites."""
    torch.manual_seed(0)
    up, down = torch.randn(2, 48, 32).unbind()
    group = dist.group.WORLD
    counter = CompileCounterWithBackend("overlapc")

    def layer(x):
        h = (functional.all_gather_tensor(x, 0, group) @ up.t()).relu()
        return functional.reduce_scatter_tensor(h @ down, "sum", 0, group)

    def counting(graph_module, example_inputs):
        from overlapc.backend import backend

        counter.frame_count += 1
        return backend(graph_module, example_inputs, options={"target": SLOW_LINK})

    compiled = torch.compile(layer, backend=counting)
    worst = 0.0
    for rows in counts:
        full = torch.randn(2 * rows, 32)
        x = full[rank * rows : (rank + 1) * rows].clone()
        if rows > 1:  # torch makes graphs of their own for sizes zero and one
            torch._dynamo.mark_dynamic(x, 0)
        h = (full.double() @ up.double().t()).relu()
        wanted = (2 * h @ down.double())[rank * rows : (rank + 1) * rows]
        found = compiled(x)
        assert found.shape == wanted.shape
        worst = max(worst, error(found, wanted) if rows else 0.0)
    found = [site for site in overlapc.report().sites if "(test_sequence_para" in site.where]
    return worst, counter.frame_count, {site.decision for site in found}


@pytest.mark.parametrize("many", [60, pytest.param(500, marks=pytest.mark.long)])
def test_row_counts_that_change_at_every_call_compile_once(many, two_ranks):
    counts = [137, *torch.randperm(900)[: many - 1].add(2).tolist()]
    for worst, compiled, decisions in two_ranks.run(varying_rows, counts, timeout=120):
        assert worst < 1e-5
        assert compiled == 1
        assert decisions == {"rewritten"}


def varying_columns(rank, sizes):
    """As ``varying_rows`` of weights that are given, with so many rows, inputs and hidden units."""
    torch.manual_seed(0)
    counter = torch._dynamo.testing.CompileCounterWithBackend("overlapc")

    def layer(x, up, down):
        h = (functional.all_gather_tensor(x, 0, dist.group.WORLD) @ up.t()).relu()
        return functional.reduce_scatter_tensor(h @ down, "sum", 0, dist.group.WORLD)

    def counting(graph_module, example_inputs):
        from overlapc.backend import backend

        counter.frame_count += 1
        return backend(graph_module, example_inputs, options={"target": SLOW_LINK})

    before = {site.id for site in overlapc.report().sites}
    compiled = torch.compile(layer, backend=counting, dynamic=True)
    worst = 0.0
    for rows, inner, hidden in sizes:
        full, up, down = (torch.randn(n, inner) for n in (2 * rows, hidden, hidden))
        mine = slice(rank * rows, (rank + 1) * rows)
        h = (full.double() @ up.double().t()).relu()
        found = compiled(full[mine], up, down)
        worst = max(worst, error(found, (2 * h @ down.double())[mine]))
    sites = [site for site in overlapc.report().sites if site.id not in before]
    return worst, counter.frame_count, sorted((site.kind, site.decision) for site in sites)


def test_columns_that_vary_compile_once(two_ranks):
    sizes = [(137, 32, 48), (90, 40, 60), (33, 17, 96), (512, 200, 31), (3, 8, 5)]
    for worst, compiled, sites in two_ranks.run(varying_columns, sizes, timeout=120):
        assert worst < 1e-5
        assert compiled == 1
        assert sites == [("all_gather_gemm", "rewritten"), ("gemm_reduce_scatter", "rewritten")]


def varying_rows_of(rank, mutant, counts):
    """As ``varying_rows`` while ``mutant`` breaks something."""
    torch._dynamo.reset()
    matrix.forget()
    with mutant(rank):
        return varying_rows(rank, counts)


def test_a_guard_on_rows_is_seen(two_ranks):
    """As many rows as above would do; a few tell as well."""
    given = mutants.guarded_rows, [137, 400, 20]
    for worst, compiled, decisions in two_ranks.run(varying_rows_of, *given):
        assert worst < 1e-5
        assert compiled == 2
        assert decisions == {"rewritten"}


@pytest.mark.long
def test_a_schedule_of_other_rows_is_seen(tmp_path):
    """On ranks of its own: what they send is in disorder then."""
    ranks = Ranks(2, environment={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    try:
        for _, error in ranks.outcomes(varying_rows_of, mutants.first_rows_prepared, [137, 400]):
            assert "expected size 274==800" in error
    finally:
        ranks.close()


def test_no_row_and_one_row(two_ranks):
    for worst, compiled, _ in two_ranks.run(varying_rows, [64, 0, 1, 0, 1, 2], timeout=120):
        assert worst < 1e-5
        assert compiled <= 3
