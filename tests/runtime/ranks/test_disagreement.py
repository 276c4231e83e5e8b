"""Ranks that would not run the same plan, groups that are gone, peers that die: errors, no hang."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.runtime.ranks import groups
from tests.targets import FAST_LINK, SLOW_LINK, machine

MIDDLE = machine("middle-link", 4e8)


def project(x, w):
    return functional.all_reduce(x @ w.t(), "sum", dist.group.WORLD)


def compiled_call(rank, options):
    torch._dynamo.reset()
    compiled = torch.compile(project, backend="overlapc", options=options[rank])
    with torch.no_grad():
        return compiled(torch.randn(512, 64), torch.randn(128, 64)).shape


DIFFERENT = {
    "options": [{"target": SLOW_LINK}, {"target": SLOW_LINK, "overlap": "serial"}],
    "targets": [{"target": SLOW_LINK}, {"target": FAST_LINK}],
    "off": [{"target": SLOW_LINK}, {"target": SLOW_LINK, "overlap": "off"}],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_choices_are_one_error_on_every_rank(name, fresh_ranks):
    started = time.monotonic()
    outcomes = fresh_ranks.outcomes(compiled_call, DIFFERENT[name])
    assert time.monotonic() - started < 60
    for _, error in outcomes:
        assert "DisagreementError" in error
        assert "Remedy" in error
    # The group still works afterwards: nothing was left in flight.
    alike = [{"target": SLOW_LINK}] * 2
    assert fresh_ranks.run(compiled_call, alike) == [(512, 128)] * 2


def disguised(rank, options):
    """As compiled_call, but rank 1 has other sources."""
    from overlapc.runtime import ops

    if rank == 1:
        ops.fingerprint_of_sources = lambda: "another version"
    return compiled_call(rank, options)


def test_different_sources_are_an_error(fresh_ranks):
    for _, error in fresh_ranks.outcomes(disguised, [{"target": SLOW_LINK}] * 2):
        assert "DisagreementError" in error


def only_rank_0(rank, options):
    return compiled_call(rank, options) if rank == 0 else None


def test_a_rank_that_never_comes_is_named_after_the_timeout(fresh_ranks):
    options = [{"target": SLOW_LINK, "agreement_seconds": 0.5}] * 2
    (_, error), (_, nothing) = fresh_ranks.outcomes(only_rank_0, options)
    assert "DisagreementError: Ranks [1] did not say within 0.5 s" in error
    assert not nothing


def verified(rank):
    torch._dynamo.reset()
    options = {"target": SLOW_LINK, "verify": True, "agreement_seconds": 20.0}
    compiled = torch.compile(project, backend="overlapc", options=options, dynamic=True)
    w = torch.randn(128, 64)
    with torch.no_grad():
        for rows in (512, 300):
            compiled(torch.randn(rows, 64), w)
        compiled(torch.randn(400 + rank, 64), w)


def test_verify_finds_sizes_that_differ(fresh_ranks):
    for _, error in fresh_ranks.outcomes(verified):
        assert "DisagreementError" in error
        assert "the sizes of a call differ" in error
        assert "401" in error


def uneven_shards(rank):
    """One rank has more of k: the plan of the other would differ, so all follow its own."""
    from overlapc.runtime import ops
    from tests.runtime.chains import MM, call, chain

    k = (600, 40)[rank]
    a, b = torch.randn(512, k), torch.randn(k, 128)
    (found,) = call(chain("gemm_all_reduce", MM, MIDDLE, site="uneven.0"), [a, b])
    wanted = a.double() @ b.double()
    dist.all_reduce(wanted)
    rows = plan(Problem(512, 128, k, "float32", "all_reduce", 2), MIDDLE).rows
    error = ((found.double() - wanted).norm() / wanted.norm()).item()
    return error, rows, dict(ops.calls_of("uneven.0"))


def test_shards_of_uneven_size_run_alike(fresh_ranks):
    (error, rows, calls), (other_error, other_rows, other_calls) = fresh_ranks.run(uneven_shards)
    assert rows != other_rows  # otherwise the ranks had nothing to disagree on
    assert max(error, other_error) < 1e-5
    assert calls == other_calls == {"serial": 1}


def comes_late(rank, sends):
    group = dist.group.WORLD
    dist.barrier()
    if rank == 1:
        time.sleep(1.5)  # a file store counts whole seconds
    groups.agree_once(group, "alike", 0.5 if rank == 0 else 10.0, sends)


@pytest.mark.parametrize("sends", [None, ["all_reduce at x.py:1"]])
def test_who_comes_after_the_timeout_fails_as_well(sends, fresh_ranks):
    for _, error in fresh_ranks.outcomes(comes_late, sends):
        assert "DisagreementError" in error


def other_kinds(rank):
    """An all-reduce meets a reduce-scatter of as many rows; neither may be sent."""
    from tests.runtime.chains import MM, call, chain

    kind = ("gemm_all_reduce", "gemm_reduce_scatter")[rank]
    a, b = torch.randn(512, 64 + rank), torch.randn(64 + rank, 128)
    call(chain(kind, MM, SLOW_LINK, site=f"kinds.{rank}"), [a, b])


def test_ops_of_other_kinds_do_not_meet(fresh_ranks):
    for _, error in fresh_ranks.outcomes(other_kinds, timeout=30):
        assert "DisagreementError" in error
        assert "gemm_reduce_scatter" in error


def destroyed_group(rank):
    from overlapc.runtime import ops

    group = dist.new_group([0, 1])
    w = torch.randn(128, 64)

    def on_group(x):
        return functional.all_reduce(x @ w.t(), "sum", group)

    compiled = torch.compile(on_group, backend="overlapc", options={"target": SLOW_LINK})
    with torch.no_grad():
        compiled(torch.randn(512, 64))
        name = group.group_name
        (text,) = ops._callers[group]
        dist.destroy_process_group(group)
        op = torch.ops.overlapc.gemm_all_reduce
        op([torch.randn(512, 64), w.t()], 1, [], [], name, text)


def test_a_destroyed_group_is_named(fresh_ranks):
    for _, error in fresh_ranks.outcomes(destroyed_group):
        assert "GroupError: There is no process group" in error


def peer_dies(rank):
    dist.destroy_process_group()
    store = dist.FileStore(os.environ["XDG_CACHE_HOME"] + "/second", 2)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=groups.timedelta(seconds=2)
    )
    options = [{"target": SLOW_LINK}] * 2
    compiled_call(rank, options)
    if rank == 1:
        os._exit(1)
    time.sleep(0.5)
    compiled_call(rank, options)


def test_a_peer_that_dies_surfaces_the_collectives_own_error(fresh_ranks):
    started = time.monotonic()
    (_, error), (_, ended) = fresh_ranks.outcomes(peer_dies)
    assert time.monotonic() - started < 60
    assert ended == "the process ended"
    assert "Error" in error
    assert "DisagreementError" not in error


@pytest.fixture
def pair_of_stores(monkeypatch):
    """Two members of one group as far as ``exchange`` looks: one store, two ranks."""

    class Member:
        group_name = "pair"
        _device_types = ()

        def __init__(self, rank):
            self.mine = rank

        def size(self):
            return 2

        def rank(self):
            return self.mine

    store = dist.HashStore()
    monkeypatch.setattr(groups, "backend_name", lambda group: "gloo")
    monkeypatch.setattr(groups.c10d, "_get_process_group_store", lambda group: store)
    return lambda: (Member(0), Member(1))


def test_the_nth_comparison_meets_the_nth(pair_of_stores):
    first, second = pair_of_stores()
    assert both(first, "abc", second, "abc") == [None, None]
    for error in both(first, "xy", second, "yx"):
        assert "they differ" in str(error)


def test_a_group_made_again_does_not_read_what_the_one_before_said(pair_of_stores):
    for value in ("first", "second", "third"):
        first, second = pair_of_stores()  # new groups over the store of the ones before
        # The second comes late: what the last ones left over must not be taken for its answer.
        assert both(first, value, second, value, late=0.2) == [None, None]


def both(first, values, second, others, late=0.0):
    """What two members raise, each comparing its letters or words in turn."""

    def compare_all(member, said, wait):
        time.sleep(wait)
        for value in said if late == 0.0 else [said]:
            values = groups.exchange(member, value, 5.0)
            if any(other != value for other in values):
                groups.raise_disagreement(member, values, "they differ", groups.ALIKE)

    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(compare_all, first, values, 0.0),
            pool.submit(compare_all, second, others, late),
        ]
        return [one.exception() for one in running]
