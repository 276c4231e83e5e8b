"""Collectives among one rank are removed, and what the caller receives is still its own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from overlapc.graphs.collectives import collective_starts
from overlapc.options import Options
from overlapc.passes import drop_lone_collectives
from overlapc.passes.base import Compilation
from overlapc.passes.drop_lone_collectives import DropLoneCollectives
from tests.passes import lockstep
from tests.targets import FAST_LINK

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def alone(fake_group):
    return dist.new_group([0])


def reduced(group):
    return lambda a, w: functional.all_reduce(a @ w, "sum", group).relu()


def averaged(group):
    return lambda a, w: functional.all_reduce(a @ w, "avg", group) * 2


def maximum(group):
    return lambda a, w: functional.all_reduce(a @ w, "max", group) + 1


def scattered(group):
    return lambda a, w: functional.reduce_scatter_tensor(a @ w, "sum", 0, group).tanh()


def gathered(group):
    return lambda a, w: functional.all_gather_tensor(a, 0, group) @ w


def gathered_along_columns(group):
    return lambda a, w: functional.all_gather_tensor(a, 1, group) @ w


def exchanged(group):
    return lambda a, w: functional.all_to_all_single(a, None, None, group) @ w


def returned(group):
    return lambda a, w: (functional.all_reduce(a, "sum", group), a)


def a_view_returned(group):
    return lambda a, w: (functional.all_gather_tensor(a, 0, group).view(-1)[2:], a)


def not_contiguous(group):
    return lambda a, w: functional.all_reduce(a.t(), "sum", group).view(-1) + 1


def unread(group):
    return lambda a, w: functional.all_reduce(a, "sum", group) * 0 + w.sum()


REMOVED = [
    reduced,
    averaged,
    maximum,
    scattered,
    gathered,
    gathered_along_columns,
    exchanged,
    returned,
    a_view_returned,
    not_contiguous,
    unread,
]


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (8, 6), (6, 4)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def dropped(module, **options):
    after = copy.deepcopy(module)
    compilation = Compilation(Options(**options), "inference", lambda device, group: FAST_LINK)
    DropLoneCollectives().apply(after.graph, compilation)
    after.graph.lint()
    return after, compilation.sites


def outcome(module, group):
    """Values on two ranks that are both alone, and which of them share memory with an input."""
    feeds = [inputs(seed) for seed in range(2)]
    found = lockstep.run(module, feeds, alone=[group.group_name])
    shared = [
        value.untyped_storage().data_ptr() in {feed.untyped_storage().data_ptr() for feed in own}
        for values, own in zip(found, feeds, strict=True)
        for value in values
    ]
    return [value for values in found for value in values], shared


@pytest.mark.parametrize("make", REMOVED, ids=lambda make: make.__name__)
def test_removed_and_the_values_stay(make, alone):
    module = lockstep.traced(make(alone), *inputs())
    assert len(collective_starts(module.graph)) == 1
    result, sites = dropped(module)
    assert collective_starts(result.graph) == []
    assert [(site.decision, site.code, site.plan) for site in sites] == [
        ("rewritten", "one_rank", None)
    ]
    (wanted, shared), (found, still_shared) = outcome(module, alone), outcome(result, alone)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert [one.stride() for one in wanted] == [one.stride() for one in found]
    if make in (returned, a_view_returned):
        assert still_shared == shared == [False, True, False, True]


@pytest.mark.parametrize("name", ["reduced", "gathered_along_columns", "a_view_returned"])
def test_golden(name, explained, golden, fake_group):
    group = dist.new_group([0])
    make = next(make for make in REMOVED if make.__name__ == name)
    with torch.no_grad():
        result = explained(make(group), *inputs(), target=FAST_LINK)
    golden(result.text())
    assert [site.code for site in result.report.sites] == ["one_rank"]


def test_symbolic_rows_and_gradients(explained):
    group = dist.new_group([0])
    a, w = (value.requires_grad_() for value in inputs())
    torch._dynamo.mark_dynamic(a, 0)
    result = explained(lambda a, w: functional.all_reduce(a @ w, "sum", group).sin(), a, w)
    assert {site.code for site in result.report.sites} == {"one_rank"}
    assert all("_c10d_functional" not in after for _, after in result.graphs.values())


# --- refusals ---


def of_two(x, w):
    return functional.all_reduce(x @ w, "sum", dist.group.WORLD).relu()


@pytest.mark.parametrize(
    "options", [{"disable": ("drop_lone_collectives",)}, {"overlap": "off"}, {"fuel": 0}]
)
def test_options_that_remove_nothing(options, alone):
    module = lockstep.traced(reduced(alone), *inputs())
    result, sites = dropped(module, **options)
    assert (len(collective_starts(result.graph)), sites) == (1, [])


def test_a_group_of_two_stays(fake_group):
    module = lockstep.traced(of_two, *inputs())
    result, sites = dropped(module)
    assert (len(collective_starts(result.graph)), sites) == (1, [])


def test_a_destroyed_group_stays(alone):
    module = lockstep.traced(reduced(alone), *inputs())
    dist.destroy_process_group(alone)
    result, sites = dropped(module)
    assert (len(collective_starts(result.graph)), sites) == (1, [])


def test_a_reduction_that_scales_stays(alone):
    module = lockstep.traced(reduced(alone), *inputs())
    (start,) = collective_starts(module.graph)
    start.update_arg(1, "premul_sum")
    assert len(collective_starts(dropped(module)[0].graph)) == 1


# --- mutants ---


def test_sharing_memory_with_the_caller_is_caught(alone, monkeypatch):
    monkeypatch.setattr(drop_lone_collectives, "returned_aliases", lambda node: [])
    module = lockstep.traced(returned(alone), *inputs())
    assert outcome(dropped(module)[0], alone)[1] == [True, True, True, True]


def test_removing_a_collective_of_two_is_caught(fake_group, monkeypatch):
    monkeypatch.setattr(drop_lone_collectives, "is_alone", lambda collective: True)
    module = lockstep.traced(of_two, *inputs())
    result, _ = dropped(module)
    feeds = [inputs(seed) for seed in range(2)]
    wanted, found = lockstep.run(module, feeds), lockstep.run(result, feeds)
    assert not torch.allclose(wanted[0][0], found[0][0])
