"""Which collectives become one, which may not, and that the values stay."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.fx.experimental.proxy_tensor import make_fx

from overlapc.graphs.collectives import collective_starts
from overlapc.options import Options
from overlapc.passes import merge_collectives
from overlapc.passes.base import Compilation
from overlapc.passes.merge_collectives import MergeCollectives
from tests.passes import lockstep
from tests.passes.merging import (
    COLUMNS,
    GROUPS,
    MERGED,
    RANKS,
    ROWS,
    all_reduce,
    both_returned,
    difference,
    gather,
    gathers_of_two_tensors,
    scaled,
    scaled_apart,
    three,
    whole_multiples,
)
from tests.passes.unmerged import (
    REFUSED,
    gathers_along_other_dimensions,
    maxima,
    other_reader,
    other_reduction,
    scaled_by_other_tensors,
    turned_otherwise,
)
from tests.targets import FAST_LINK

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def second_group(fake_group):
    """Another group of the same ranks, made where nothing is traced."""
    GROUPS["other"] = dist.new_group([0, 1])


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, COLUMNS)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)]


def merged(module, **options):
    """A copy of the graph after the pass, and the sites."""
    after = copy.deepcopy(module)
    compilation = Compilation(Options(**options), "inference", lambda device, group: FAST_LINK)
    MergeCollectives().apply(after.graph, compilation)
    after.graph.lint()
    after.recompile()
    return after, compilation.sites


def count(module):
    return len(collective_starts(module.graph))


def agree(before, after):
    """Whether both graphs give the same values on every rank, and share memory between none."""
    feeds = [inputs(seed) for seed in range(RANKS)]
    wanted, found = lockstep.run(before, feeds), lockstep.run(after, feeds)
    for own in found:
        places = [value.untyped_storage().data_ptr() for value in own]
        if len(set(places)) < len(places):
            return False
    for one, other in zip(wanted, found, strict=True):
        for left, right in zip(one, other, strict=True):
            digits = 2 if left.dtype in (torch.bfloat16, torch.float16) else 12
            if left.dtype != right.dtype or left.shape != right.shape:
                return False
            if not torch.allclose(left.double(), right.double(), rtol=0, atol=10.0**-digits * 8):
                return False
    return True


@pytest.mark.parametrize("name", MERGED)
def test_merged_and_the_values_stay(name, fake_group):
    function, before, after = MERGED[name]
    module = lockstep.traced(function, *inputs(0))
    assert count(module) == before
    result, sites = merged(module)
    assert count(result) == after
    assert [(site.decision, site.code) for site in sites] == [("rewritten", "merged")] * (
        before - after
    )
    assert agree(module, result)


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_not_merged_and_unchanged(function, explained):
    with torch.no_grad():
        result = explained(function, *inputs(0), target=FAST_LINK)
    assert "merged" not in {site.code for site in result.report.sites}
    ((before, after),) = result.graphs.values()
    assert before == after
    notes = [one.reason for one in result.report.sites if "and they stay two: " in one.reason]
    assert len(notes) == bool(REFUSED[function])
    assert all(REFUSED[function] in note for note in notes)


def told(result):
    """The text of what was explained, without the sites of other passes."""
    lines = result.text().splitlines()
    return "\n".join(line for line in lines if line[:3] != "---" or "[merged]" in line)


@pytest.mark.parametrize(
    "name",
    [
        *("three", "through_views", "scattered", "scattered_along_columns"),
        *("gathered_along_columns", "gathers_along_columns", "scaled_by_columns"),
    ],
)
def test_golden(name, explained, golden):
    with torch.no_grad():
        golden(told(explained(MERGED[name][0], *inputs(0), target=FAST_LINK)))


@pytest.mark.parametrize(
    "function",
    [gathers_along_other_dimensions, scaled_by_other_tensors],
    ids=lambda function: function.__name__,
)
def test_why_not_is_told_at_both_sites(function, explained, golden):
    with torch.no_grad():
        report = explained(function, *inputs(0), target=FAST_LINK).report
    golden(re.sub(r":\d+\)", ")", "\n".join(site.reason for site in report.sites)))


def test_symbolic_rows(explained, golden):
    a, b, c = (value.clone() for value in inputs(0))
    for value in (a, b, c):
        torch._dynamo.mark_dynamic(value, 0)
    with torch.no_grad():
        result = explained(three, a, b, c, target=FAST_LINK)
    golden(told(result))
    assert [site.code for site in result.report.sites].count("merged") == 2


def gathered_and_asked(a, b):
    """What asks for the size of what has come may read the start of its collective."""
    one, two = gather(a), gather(b)
    return one + two, torch.arange(one.shape[0]), torch.arange(two.shape[1])


def test_what_is_asked_for_its_size_before_it_has_come_stays():
    module = make_fx(gathered_and_asked, tracing_mode="symbolic")(*inputs(0)[:2])
    starts = collective_starts(module.graph)
    assert any(user.target is torch.ops.aten.sym_size.int for one in starts for user in one.users)
    result, sites = merged(module)
    assert (str(result.graph), sites) == (str(module.graph), [])


class Attention(torch.nn.Module):
    """Column-wise projections of one input: their backward reduces one gradient for each."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(64, 64, bias=False) for _ in range(3))

    def forward(self, x):
        return self.q(x).sin() * self.k(x).cos() + self.v(x)


class ToRanks(torch.autograd.Function):
    """The identity, whose gradient is summed over the ranks: Megatron's f."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        (gradient,) = gradients
        return all_reduce(gradient)


def by_hand(x, q, k, v):
    return (ToRanks.apply(x) @ q).sin() * (ToRanks.apply(x) @ k).cos() + ToRanks.apply(x) @ v


def sharded():
    mesh = init_device_mesh("cpu", (2,))
    model = parallelize_module(Attention(), mesh, dict.fromkeys("qkv", ColwiseParallel()))
    return model, (torch.randn(4, 16, 64, requires_grad=True),)


def symbolic():
    x = torch.randn(32, 64, requires_grad=True)
    torch._dynamo.mark_dynamic(x, 0)
    return by_hand, (x, *(torch.randn(64, 32) for _ in range(3)))


@pytest.mark.parametrize("make", [sharded, symbolic])
def test_the_backward_of_column_wise_projections_reduces_once(make, explained):
    function, values = make()
    result = explained(function, *values, target=FAST_LINK)
    before, after = result.graphs["backward"]
    assert ("s" in before.splitlines()[0]) == (make is symbolic)
    assert before.count("_c10d_functional.all_reduce") == 3
    assert after.count("_c10d_functional.all_reduce") + after.count("overlapc.gemm_all_reduce") == 1
    codes = [site.code for site in result.report.sites if site.graph == "backward"]
    assert codes[:2] == ["merged", "merged"]
    assert len(codes) == 3  # one site for each collective that was there


@pytest.mark.parametrize(
    "options",
    [
        {"disable": ("merge_collectives",)},
        {"disable": ("all",)},
        {"overlap": "off"},
        {"fuel": 0},
    ],
)
def test_options_that_merge_nothing(options, fake_group):
    module = lockstep.traced(three, *inputs(0))
    result, sites = merged(module, **options)
    assert (count(result), sites) == (3, [])


def test_fuel_is_one_merge_each(fake_group, monkeypatch):
    monkeypatch.setattr(merge_collectives.Fuel, "spent", 0)
    module = lockstep.traced(three, *inputs(0))
    result, sites = merged(module, fuel=1)
    assert (count(result), len(sites)) == (2, 1)
    assert agree(module, result)


@pytest.mark.filterwarnings("ignore")
def test_a_write_between_keeps_both_apart(fake_group):
    """Only a graph by hand writes into what a collective sends."""

    def writes(a, b, c):
        left = all_reduce(a)
        a.add_(1)
        return left + all_reduce(a), c

    def functional_writes(a, b, c):
        return all_reduce(a) + all_reduce(b), c

    module = lockstep.traced(functional_writes, *inputs(0))
    late = collective_starts(module.graph)[1]
    with module.graph.inserting_before(late):
        (a, *_) = module.graph.find_nodes(op="placeholder")
        module.graph.call_function(torch.ops.aten.add_.Tensor, (a, 1))
    result, _ = merged(module)
    assert count(result) == 2
    again = lockstep.traced(writes, *inputs(0))
    assert count(merged(again)[0]) == 2


# --- mutants: what the tests above catch ---


def without_refusals(monkeypatch):
    """What can be no term of a sum is taken for one all the same."""
    monkeypatch.setattr("overlapc.graphs.sums.reading._why_no_term", lambda collective, way: None)


def test_a_merge_that_ignores_other_readers_is_caught(fake_group, monkeypatch):
    without_refusals(monkeypatch)
    with pytest.raises(RuntimeError, match="still had"):
        merged(lockstep.traced(other_reader, *inputs(0)))


@pytest.mark.parametrize("function", [scaled, difference, scaled_apart, whole_multiples])
def test_a_merge_that_ignores_the_scale_is_caught(function, fake_group, monkeypatch):
    monkeypatch.setattr("overlapc.graphs.sums.merging.scale_between", lambda early, late: 1)
    module = lockstep.traced(function, *inputs(0))
    result, _ = merged(module)
    assert count(result) == 1
    assert not agree(module, result)


def test_a_merge_of_maxima_is_caught(fake_group, monkeypatch):
    monkeypatch.setattr("overlapc.graphs.sums.reading.LINEAR", {"all_reduce": ("max",)})
    module = lockstep.traced(maxima, *inputs(0))
    result, _ = merged(module)
    assert count(result) == 1
    assert not agree(module, result)


def test_a_merge_across_a_turn_is_caught(fake_group, monkeypatch):
    monkeypatch.setattr("overlapc.graphs.sums.terms._other_way", lambda early, late: None)
    module = lockstep.traced(turned_otherwise, *inputs(0))
    result, _ = merged(module)
    assert count(result) == 1
    assert not agree(module, result)


@pytest.mark.parametrize("function", [gathers_along_other_dimensions, scaled_by_other_tensors])
def test_a_merge_across_moves_is_caught(function, fake_group, monkeypatch):
    monkeypatch.setattr("overlapc.graphs.sums.terms._other_way", lambda early, late: None)
    module = lockstep.traced(function, *inputs(0))
    result, _ = merged(module)
    assert count(result) == 1
    assert not agree(module, result)


def test_a_merge_across_reductions_is_caught(fake_group, monkeypatch):
    monkeypatch.setattr(merge_collectives, "why_not_one", lambda early, late: None)
    module = lockstep.traced(other_reduction, *inputs(0))
    result, _ = merged(module)
    assert count(result) == 1
    assert not agree(module, result)


def test_results_that_share_memory_are_caught(fake_group, monkeypatch):
    monkeypatch.setattr(merge_collectives, "returned_aliases", lambda node: [])
    module = lockstep.traced(both_returned, *inputs(0))
    result, _ = merged(module)
    assert not agree(module, result)


def test_a_merge_of_different_gathers_is_caught(fake_group, monkeypatch):
    monkeypatch.setattr(merge_collectives, "call_key", lambda node: node.target)
    monkeypatch.setattr(merge_collectives, "why_not_same", lambda early, late: None)
    module = lockstep.traced(gathers_of_two_tensors, *inputs(0))
    result, _ = merged(module)
    assert count(result) == 1
    assert not agree(module, result)
