"""What the ops promise of every kind: what is sent, what is counted, schemas, cost and memory."""

from __future__ import annotations

import gc
import time
import weakref
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from overlapc.planning.problem import Problem
from overlapc.planning.search import plan
from overlapc.runtime import callers, ops, preparing
from overlapc.runtime.chunked.consumers import Consumer
from overlapc.runtime.chunked.producers import Producer
from overlapc.runtime.plans import plan_call
from overlapc.runtime.programs.program import Program
from overlapc.runtime.ranks import agreement
from overlapc.runtime.ranks.sending import Sender
from overlapc.runtime.sizing import problem_of
from overlapc.runtime.spec import COLLECTIVE_OF, CONSUMERS, ChainSpec
from tests.runtime.chains import call, chain
from tests.runtime.matrix import KINDS, Trial
from tests.runtime.programs.cases import CASES
from tests.targets import FAST_LINK, SLOW_LINK

KINDS_WITH = [(kind, name) for kind in KINDS for name in ("mm", "many", "bmm")]


def spec_of(kind, name, target=SLOW_LINK, **more) -> ChainSpec:
    case = CASES[name]
    program = case.consumer() if kind in CONSUMERS else case.producer()
    return chain(kind, program, target, **more)


def operands_of(kind, name, units, ranks, seed=0):
    """Operands of a chain with so many units on every rank, those of all for a consumer."""
    operands = CASES[name].operands(units, torch.Generator().manual_seed(seed))
    if kind == "all_gather_gemm":
        operands[0] = operands[0][: units // ranks]
    return operands


@contextmanager
def recorded_starts(calls):
    """Append the arguments of every collective that is started: out, sent and splits."""
    original = Sender.start

    def start(self, group, *args):
        calls.append(args)
        return original(self, group, *args)

    with patch.object(Sender, "start", start):
        yield


def sent_and_planned(rank):
    found = []
    for kind, name in KINDS_WITH:
        spec, started = spec_of(kind, name, site=f"{kind} {name}"), []
        operands = operands_of(kind, name, 480, 2, rank)
        with recorded_starts(started):
            call(spec, operands)
        sent = [tuple(tensor.shape) for _, tensor, *_ in started]
        shapes, dtypes = zip(*((t.shape, t.dtype) for t in operands), strict=True)
        plan = plan_call(spec.target, spec.schedule, problem_of(spec, shapes, dtypes, 2))
        found.append((kind, name, sent, plan.rows, plan.problem.m))
    return found


def test_what_is_sent_is_the_plan_on_every_rank(two_ranks):
    first, second = two_ranks.run(sent_and_planned)
    assert first == second
    cut = 0
    for kind, _, sent, rows, m in first:
        # An all-gather sends what its rank has; all else is the whole group.
        ranks = 2 if kind == "all_gather_gemm" else 1
        rows_per_unit = m // 480
        assert [shape[0] * ranks * rows_per_unit for shape in sent] == list(rows)
        cut += len(rows) > 1
    assert cut > len(KINDS)  # otherwise too little was cut to say so


def counted(rank):
    calls = {}
    for kind in KINDS:
        site = f"counted.{kind}"
        ops.calls_of(site).clear()
        for target, times in ((SLOW_LINK, 3), (FAST_LINK, 2)):
            spec = spec_of(kind, "mm", target, site=site)
            for _ in range(times):
                call(spec, operands_of(kind, "mm", 512, 2))
        calls[kind] = dict(ops.calls_of(site))
    return calls


def test_calls_are_counted_by_schedule(two_ranks):
    wanted = {kind: {"chunked": 3, "serial": 2} for kind in KINDS}
    assert two_ranks.run(counted) == [wanted] * 2


def how_whole_chains_run(rank):
    """Of every kind, whether calls that are not cut walk over groups."""
    found = {}
    for kind in KINDS:
        for name, target, each in (("mm", FAST_LINK, 512), ("many", FAST_LINK, 512),
                                   ("mm", SLOW_LINK, 512), ("mm", FAST_LINK, 0)):  # fmt: skip
            spec = spec_of(kind, name, target, site=f"whole.{kind}.{name}.{target.name}.{each}")
            call(spec, operands_of(kind, name, each, 2))
            (ready,) = ops._chains[dist.group.WORLD][spec.key].ready.values()
            found[kind, name, target.name, each] = isinstance(ready.run, Producer | Consumer)
    return found


def test_what_is_not_cut_does_not_walk_over_groups(two_ranks):
    """What it gives, tests/runtime/test_chains.py compares. Mutant: no chain is taken as whole."""
    for found in two_ranks.run(how_whole_chains_run):
        for (kind, name, target, each), walks in found.items():
            assert walks == (target == SLOW_LINK.name or not each), (kind, name, target, each)


def opcheck_results(rank):
    results = {}
    for kind in KINDS:
        for name, target in (("mm", SLOW_LINK), ("rich", FAST_LINK)):
            args = operands_of(kind, name, 256, 2), 1, [], [], "0"
            op = getattr(torch.ops.overlapc, kind).default
            checked = torch.library.opcheck(op, (*args, spec_of(kind, name, target).text()))
            results[kind, name] = set(checked.values())
    for kind in ("gemm_all_to_all", "all_to_all_gemm"):
        sends, receives = ((60, 40), (60, 7)) if rank == 0 else ((7, 20), (40, 20))
        operands = CASES["mm"].operands(sum(sends), torch.Generator().manual_seed(rank))
        args = operands, 1, list(receives), list(sends), "0", spec_of(kind, "mm").text()
        op = getattr(torch.ops.overlapc, kind).default
        results[kind, "uneven"] = set(torch.library.opcheck(op, args).values())
    return results


def test_opcheck(two_ranks):
    for results in two_ranks.run(opcheck_results):
        assert all(found == {"SUCCESS"} for found in results.values()), results


def seconds_of(function, seconds=0.3):
    """The least mean of a few calls: short enough to fall between what else the machine does."""
    function()
    best, end = 1.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(5):
            function()
        best = min(best, (time.perf_counter() - start) / 5)
    return best


def at_most(seconds):
    """The bound where torch makes a view in 1 us (chosen); on slower machines as many views."""
    x = torch.randn(8, 8)
    return seconds * max(1.0, seconds_of(lambda: x.narrow(0, 0, 2), 0.05) / 1e-6)


@contextmanager
def groups_of(rows):
    """Cut every call into these groups, without a target that would give this plan."""

    def plan_call(fingerprint, schedule, problem):
        whole = schedule == "serial"
        return SimpleNamespace(
            schedule="serial" if whole else "chunked",
            rows=(problem.m,) if whole else rows,
            by="rows",
            problem=problem,
        )

    with patch.object(preparing, "plan_call", plan_call):
        yield


COPIES = {"gemm_reduce_scatter": 1, "gemm_all_to_all": 2, "all_to_all_gemm": 1}
"""Of each group: rows of several ranks become contiguous, or come to their places."""


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["serial", "chunked"])
def test_a_call_adds_at_most_60_us_to_its_gemms_collectives_and_copies(
    kind, schedule, fake_group, one_thread
):
    """The fake group sends nothing, and tensors are tiny: what is left is Python's and ours."""
    rows = (16, 16, 16, 16)
    spec = spec_of(kind, "mm", schedule=schedule)
    program = CASES["mm"].producer()
    if kind in CONSUMERS:
        program = Program(program.modes, program.steps, None, (program.sent,))
    text = replace(spec, program=program).text()
    operands = operands_of(kind, "mm", 64, 2)
    x, w = operands_of("gemm_all_reduce", "mm", 64, 2)
    sender = Sender(spec.collective, spec.reduce)
    op = getattr(torch.ops.overlapc, kind).default

    def direct():
        out = x.new_empty((64, w.shape[1]))
        works = []
        for band, place, moved in zip(x.split(cut), out.split(cut), started, strict=True):
            torch.mm(band, w, out=place)
            works.append(sender.start(fake_group, *moved))
            for _ in range(COPIES.get(kind, 0) if len(cut) > 1 else 0):
                x.view(2, 32, -1)[:, 8:16].flatten(0, 1)
        for work in works:
            work.wait()

    cut, started = rows if schedule == "chunked" else (64,), []
    with groups_of(rows):
        with recorded_starts(started):
            op(operands, 1, [], [], "0", text)

        def added():
            return seconds_of(lambda: op(operands, 1, [], [], "0", text)) - seconds_of(direct)

        # Once is enough: whatever else the machine does only ever adds.
        assert any(added() < at_most(60e-6) for _ in range(3))


def many_row_counts(rank):
    spec = spec_of("gemm_reduce_scatter", "mm", site="many.0", wait_seconds=20.0)
    with patch.object(callers, "MOST_READY", 16):
        group = dist.group.WORLD
        for known in (agreement._agreed, ops._callers, ops._chains):  # of other tests
            known.pop(group, None)
        for step in [*range(1, 60), *range(1, 60)]:
            operands = operands_of("gemm_reduce_scatter", "mm", 8 * step, 2, rank)
            (found,) = call(spec, operands)
            assert found.shape[0] == 4 * step
    chain_of = ops._chains[group][spec.key]
    return len(chain_of.ready), len(chain_of.rests), len(agreement._agreed[group].works)


def test_ever_new_row_counts_keep_a_bounded_memory(two_ranks):
    assert two_ranks.run(many_row_counts) == [(16, 1, 1)] * 2


def many_column_counts(rank):
    """Schedules of calls of other columns, when two agreements are all that is remembered."""
    agreement._agreed.pop(dist.group.WORLD, None)
    spec = spec_of("gemm_all_reduce", "mm", schedule="chunked", site="columns.0")
    ops.calls_of(spec.site).clear()
    with patch.object(agreement, "MOST_REMEMBERED", 2):
        for n in (24, 32, 40, 24, 40):
            call(spec, [torch.randn(512, 16), torch.randn(16, n)])
    agreement._agreed.pop(dist.group.WORLD, None)
    for known in (ops._chains, ops._callers):
        known.pop(dist.group.WORLD)
    return dict(ops.calls_of(spec.site))


def test_what_is_not_remembered_runs_serial(two_ranks):
    assert two_ranks.run(many_column_counts) == [{"chunked": 3, "serial": 2}] * 2


def forgotten(rank):
    group = dist.new_group([0, 1])
    operands = operands_of("gemm_all_reduce", "mm", 64, 2)
    call(spec_of("gemm_all_reduce", "mm"), operands, 1, [], [], group.group_name)
    alive = weakref.ref(group)
    dist.destroy_process_group(group)
    del group
    gc.collect()
    return alive() is None


def test_a_destroyed_group_is_not_held(two_ranks):
    assert two_ranks.run(forgotten) == [True, True]


def test_sites_that_do_the_same_share_what_is_worked_out(fake_group):
    for site in ("first.0", "second.0"):
        spec = spec_of("gemm_all_reduce", "mm", site=site, place="f.py:1")
        call(spec, operands_of("gemm_all_reduce", "mm", 64, 2))
    key = spec_of("gemm_all_reduce", "mm", site="", place="f.py:1").text()
    assert set(ops._chains[fake_group]) == {key}
    assert len(ops._chains[fake_group][key].ready) == 1
    assert ops.calls_of("first.0").total() == ops.calls_of("second.0").total() == 1


def cuts_of_two_sites(rank, uneven):
    """Rows that are sent by two sites that move the same and compute differently."""
    found = []
    for site, k in (("wide.0", 512), ("narrow.0", 4 if uneven and rank else 16)):
        spec = spec_of("gemm_all_reduce", "mm", site=f"{site}.{uneven}")
        generator, started = torch.Generator().manual_seed(rank), []
        operands = [torch.randn(512, k, generator=generator), torch.randn(k, 96)]
        with recorded_starts(started):
            call(spec, operands)
        planned = plan(Problem(512, 96, k, "float32", "all_reduce", 2), SLOW_LINK)
        found.append(([len(tensor) for _, tensor, *_ in started], list(planned.rows)))
    return found


def test_sites_that_move_the_same_follow_their_own_plans(two_ranks):
    first, second = two_ranks.run(cuts_of_two_sites, False)
    assert first == second
    assert all(sent == planned for sent, planned in first)
    assert first[0] != first[1]


def test_ranks_that_compute_differently_send_alike(two_ranks):
    """A shard of uneven size has another plan on some ranks: that of most work is for all."""
    first, second = two_ranks.run(cuts_of_two_sites, True)
    assert first[1][1] != second[1][1]
    assert first[1][0] == second[1][0] == first[1][1]


def test_every_kind_has_its_trial():
    assert set(KINDS) == set(COLLECTIVE_OF)
    assert Trial("mm", KINDS[0], 1).spec().kind == KINDS[0]
