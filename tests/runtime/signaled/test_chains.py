"""Signaled chains over real gloo ranks, their kernels in Triton's interpreter, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import overlapc
from overlapc.codegen import GemmSpec, Kernel
from overlapc.errors import KernelError, SignalError
from overlapc.planning.tiles import SWEEP, SWEEPS, Tile
from overlapc.runtime import ops
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.plans import remember
from overlapc.runtime.programs.program import ROWS
from overlapc.runtime.signaled import communicators, staged
from overlapc.runtime.signaled import schedule as signaled
from overlapc.runtime.signaled.schedule import Signaled
from overlapc.runtime.signaled.signals import Signals
from overlapc.runtime.signaled.staged import StagedGemm
from tests.ranks import Ranks
from tests.runtime.chains import call, errors_of, poisoned, ragged
from tests.runtime.matrix import forget
from tests.runtime.signaled.cases import (
    BOUND,
    CASES,
    TARGET,
    alone,
    assert_met,
    error_of,
    recorded,
    wanted_of,
)
from tests.runtime.signaled.pretended import SECONDS, SMS, pretended_gpu

NO_STREAMS = "Collectives of gloo do not run on streams."
SELDOM = ("scatter rows", "scatter blocks", "all-to-all", "all-to-all of columns", "rowless")
"""Not every time with a rank that falls back."""


@pytest.fixture(params=["pair", pytest.param("three", marks=pytest.mark.long)])
def ranks(request) -> Ranks:
    """Processes whose kernels run in Triton's interpreter."""
    return request.getfixturevalue(f"interpreted_{request.param}")


def run(rank: int, name: str, without: tuple[int, ...] = ()) -> tuple[float, dict, dict, list]:
    """The error of a case, by whom its calls were computed and why, and what was sent."""
    case = CASES[name]
    spec = case.spec
    forget()
    falls_back = alone() if rank in without else nullcontext()
    with pretended_gpu(), ragged(3, cut="signaled"), poisoned(), falls_back, recorded() as log:
        case.agree(rank)
        for counts in (log, ops.calls_of(spec.site), ops.by_library_of(spec.site)):
            counts.clear()
        errors = [errors_of(spec, case.operands(rank), *case.arguments(rank))[0] for _ in range(2)]
    sent = [its for its in log if its[0] == "beside"]
    return max(errors), dict(ops.calls_of(spec.site)), dict(ops.by_library_of(spec.site)), sent


@pytest.mark.parametrize("name", CASES)
def test_every_producer_gives_what_pytorch_gives(ranks, name):
    found = ranks.run(run, name)
    for rank, (error, calls, why, _) in enumerate(found):
        assert error < BOUND
        if name == "rowless" and rank == 1:
            assert (calls, why) == ({"chunked": 2}, {"There is no row to compute.": 2})
        else:
            assert (calls, why) == ({"signaled": 2}, {})
    assert_met(found)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in SELDOM else n for n in CASES]
)
def test_ranks_that_fall_back_alone_meet_the_others(ranks, name):
    found = ranks.run(run, name, (1,))
    for rank, (error, calls, why, _) in enumerate(found):
        assert error < BOUND
        assert calls == {"chunked" if rank == 1 else "signaled": 2}
        assert why == ({"It falls back.": 2} if rank == 1 else {})
    assert_met(found)


def begins_at(rank: int, name: str) -> list[int]:
    """The rows of A with which this rank's kernel would begin each of its groups."""
    case, found = CASES[name], []
    forget()

    def seen(self: StagedGemm, *_: Any, **__: Any) -> Any:
        found.extend(runs[0].source for runs in self.bands.runs)
        raise KernelError("It is not launched.", where="a test", remedy="none")

    with pretended_gpu(), ragged(3, cut="signaled"), patch.object(StagedGemm, "__call__", seen):
        errors_of(case.spec, case.operands(rank), *case.arguments(rank))
    return found


@pytest.mark.parametrize("name", ["scatter rows", "all-to-all"])
def test_every_rank_begins_with_what_it_keeps(ranks, name):
    """Mutant: ``first_run=0`` in ``Signaled._staged``, so that all begin with what rank 0 gets."""
    found = ranks.run(begins_at, name)
    kept = CASES[name].rows // len(found)
    for rank, rows in enumerate(found):
        assert len(rows) > 1
        assert {row // kept for row in rows} == {rank}


def mutated(rank: int, name: str, mutant: str) -> list:
    """What a rank would send if rank 1 had a mistake."""
    case = CASES[name]
    forget()
    stack: list[Any] = []
    if rank == 1 and mutant == "the user's group":
        original = Signaled.__call__

        def wrong(self: Signaled, operands: Any, group: Any) -> Any:
            beside = communicators._known[group]
            before, beside[2] = beside[2], "a mistake"
            result = original(self, operands, group)
            beside[2] = before
            return result

        stack = [alone(), patch.object(Signaled, "__call__", wrong)]
    if rank == 1 and mutant == "no empty groups":
        collectives = staged.staged_collectives

        def some(parts: Any, *more: Any) -> Any:
            return collectives([part for part in parts if part.computed.count], *more)

        stack = [patch.object(staged, "staged_collectives", some)]
    with pretended_gpu(), ragged(3, cut="signaled"), recorded(sends=False) as log:
        communicators.communicator(dist.group.WORLD, 2, torch.device("cpu"), SECONDS)
        case.agree(rank)
        log.clear()
        for each in stack:
            each.start()
        try:
            call(case.spec, case.operands(rank), *case.arguments(rank))
        finally:
            for each in stack:
                each.stop()
    return [its[:2] for its in log]


@pytest.mark.parametrize(
    ("name", "mutant"), [("scatter rows", "the user's group"), ("uneven", "no empty groups")]
)
def test_a_rank_that_sends_something_else_is_seen(ranks, name, mutant):
    right = ranks.run(mutated, name, "")
    assert all(its == right[0] for its in right)
    wrong = ranks.run(mutated, name, mutant)
    assert wrong[0] == right[0]
    assert wrong[1] != wrong[0]


@contextmanager
def too_large(calls: list[int]) -> Iterator[None]:
    """Every launch of a kernel finds too little shared memory."""

    def fails(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise RuntimeError("out of resource: shared memory")

    with patch.object(Kernel, "__call__", fails):
        yield


def without_memory(rank: int) -> tuple[list[float], dict, int]:
    """Errors of three calls where rank 1's device cannot hold the tiles; why; and launches."""
    case, launched = CASES["all-to-all"], []
    forget()
    ops.by_library_of(case.spec.site).clear()
    fails = too_large(launched) if rank == 1 else nullcontext()
    with pretended_gpu(), ragged(4, cut="signaled"), poisoned(), fails:
        errors = [errors_of(case.spec, case.operands(rank))[0] for _ in range(3)]
    return errors, dict(ops.by_library_of(case.spec.site)), len(launched)


def test_too_little_shared_memory_is_found_once_and_said(ranks):
    for rank, (errors, why, launched) in enumerate(ranks.run(without_memory)):
        assert max(errors) < BOUND
        if rank != 1:
            assert not why
            continue
        ((reason, count),) = why.items()
        assert "out of resource: shared memory" in reason
        assert (count, launched) == (3, 1)


def refused(rank: int, what: str) -> tuple[float, dict, dict, set[str]]:
    """The error of a call that no kernel serves on any rank; who computed it, why, and who sent."""
    group = dist.new_group(list(range(dist.get_world_size())))  # what it lacks, it lacks for good
    case = CASES["scatter blocks"]
    forget()
    counts = ops.calls_of(case.spec.site), ops.by_library_of(case.spec.site)
    for each in counts:
        each.clear()
    given = case.operands(rank)
    if what == "dtype":
        given = [tensor.double() for tensor in given]
    lacks = NO_STREAMS if what == "streams" else ""
    with pretended_gpu(lacks=lacks), ragged(3, cut="signaled"), poisoned(), recorded(group) as log:
        (found,) = call(case.spec, given, 1, (), (), group.group_name)
        error = error_of(found, wanted_of(case.spec, given))
    dist.destroy_process_group(group)
    return error, dict(counts[0]), dict(counts[1]), {who for who, *_ in log}


@pytest.mark.parametrize(
    ("what", "why", "sender"),
    [
        ("streams", NO_STREAMS, "group"),
        ("dtype", "No GEMM is generated for operands of float64.", "beside"),
    ],
)
def test_what_no_kernel_serves_the_library_computes_and_says_so(ranks, what, why, sender):
    """In as many groups. Mutants: no reason is counted; a group without streams is sent beside."""
    for error, calls, said, senders in ranks.run(refused, what):
        assert error < BOUND
        assert (calls, said) == ({"chunked": 1}, {why: 1})
        assert senders == {sender}


def short_of_memory(rank: int) -> tuple[list[float], dict, dict]:
    """Errors of three calls, by whom they were computed and why, where rank 1 has no memory for
    the counters of the second."""
    case, calls = CASES["all-to-all"], []
    forget()
    counts = ops.calls_of(case.spec.site), ops.by_library_of(case.spec.site)
    for each in counts:
        each.clear()
    zeroed = Signals.zeroed

    def fails_second(*given: Any) -> Signals:
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            raise torch.OutOfMemoryError("tried to allocate 2 MiB")
        return zeroed(*given)

    with (
        pretended_gpu(), ragged(4, cut="signaled"), poisoned(),
        patch.object(Signals, "zeroed", fails_second),
    ):  # fmt: skip
        errors = [errors_of(case.spec, case.operands(rank))[0] for _ in range(3)]
    return errors, dict(counts[0]), dict(counts[1])


def test_a_call_without_memory_is_computed_by_the_library_and_the_next_is_not(ranks):
    for rank, (errors, calls, why) in enumerate(ranks.run(short_of_memory)):
        assert max(errors) < BOUND
        assert calls == ({"signaled": 2, "chunked": 1} if rank == 1 else {"signaled": 3})
        assert all("no memory to stage" in reason for reason in why)
        assert sum(why.values()) == (rank == 1)


def captures(rank: int) -> tuple[list[float], list[str], list[set[str]]]:
    """Errors of captured and other calls, why the library computed them, and who sent in each."""
    group = dist.new_group(list(range(dist.get_world_size())))
    case = CASES["scatter rows"]
    more = replace(case, rows=2 * case.rows)
    forget()
    errors, reasons, senders = [], [], []
    known = ops.by_library_of(case.spec.site)
    with ragged(5, cut="signaled"), poisoned(), pretended_gpu():
        for its, is_captured in ((case, True), (case, False), (case, True), (more, True)):
            known.clear()
            capturing = patch.object(
                torch.cuda, "is_current_stream_capturing", lambda c=is_captured: c
            )
            given = its.operands(rank)
            with capturing, recorded(group) as log:
                (found,) = call(case.spec, given, 1, (), (), group.group_name)
            errors.append(error_of(found, wanted_of(case.spec, given)))
            reasons.append("".join(known))
            senders.append({who for who, *_ in log})
    dist.destroy_process_group(group)
    return errors, reasons, senders


def test_a_capture_needs_a_call_before_it(ranks):
    for errors, reasons, senders in ranks.run(captures):
        assert max(errors) < BOUND
        first, warm, again, other = reasons
        assert "called in a graph capture" in first
        assert (warm, again) == ("", "")
        assert "cannot be loaded during graph capture" in other
        # Whether a size is warm may differ by rank: only whether there is a communicator decides.
        assert senders == [{"group"}, {"beside"}, {"beside"}, {"beside"}]


def late(rank: int) -> tuple[float, str]:
    """The error of a call under verify, and what is said where rank 0 never announces a group."""
    case = CASES["all-reduce"]
    forget()
    launch: Callable[..., Any] = Kernel.__call__

    def silent(self: Kernel, *given: Any, counters: torch.Tensor, **named: Any) -> Any:
        if rank == 0:
            counters = torch.zeros_like(counters)
        return launch(self, *given, counters=counters, **named)

    spec, given = replace(case.spec, verify=True), case.operands(rank)
    wanted = wanted_of(spec, given)
    with (
        pretended_gpu(), ragged(3, cut="signaled"), poisoned(),
        patch.object(Kernel, "__call__", silent), patch.object(signaled, "polls_in", lambda _: 5),
    ):  # fmt: skip
        try:
            (found,) = call(spec, given)
        except SignalError as error:
            return 0.0, str(error)
    return error_of(found, wanted), ""


def test_under_verify_a_group_that_never_comes_is_named_and_hangs_nobody(ranks):
    outcomes = ranks.run(late)
    assert "Band 0 was never complete: 0 of" in outcomes[0][1]
    for error, said in outcomes[1:]:
        assert error < BOUND
        assert said == ""


def ahead(rank: int) -> list[list[int]]:
    """Heights of the tiles that are compiled ahead, by calls of so many rows, one after another."""
    case = CASES["all-reduce"]
    target, given = replace(TARGET, device="cuda"), case.operands(rank)
    remember(target)
    spec = replace(case.spec, schedule="signaled", target=target.fingerprint)
    modes = spec.program.modes
    forget()
    found: list[list[int]] = []
    current: list[torch.device] = []

    @contextmanager
    def guard(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def compile_(self: Kernel, a: torch.Tensor, b: torch.Tensor, inputs: Any = ()) -> None:
        assert current == [a.device]  # Triton compiles for the current one
        found[-1].append(self.spec.block_m)

    tiles = {Tile(height, 64, 32, 8, 3): 1.0 for height in (64, 32)}
    with (
        pretended_gpu(), ragged(3, cut="signaled"), patch.object(Kernel, "compile", compile_),
        patch.object(torch.cuda, "device", guard),
        patch.dict("overlapc.planning.tiles.CONFIGURATIONS", {("sm_80", "float32"): tiles}),
    ):  # fmt: skip
        for rows in (24, 23):
            found.append([])
            call(spec, [t[:rows] if m == ROWS else t for t, m in zip(given, modes, strict=True)])
    return found


def test_a_second_number_of_rows_compiles_all_that_others_may_need(ranks):
    # The plans here name no tile, so that all of them may be another's.
    for found in ranks.run(ahead):
        assert [sorted(tiles) for tiles in found] == [[], [32, 64]]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_kernel_is_launched_with_the_sweep_of_the_plan(sweep: int) -> None:
    tile, deal = Tile(64, 64, 32, 8, 3, sweep), Dealing("all_reduce", 0, 180, 2, 0)
    spec = GemmSpec("float32", "float32", **tile.built)
    library: Any = SimpleNamespace(parts=producer_parts(deal, (128, 52)), by_columns=False)
    its = Signaled(CASES["all-reduce"].spec, TARGET, deal, library, tile)
    assert its._staged(Kernel(spec, Path(), ModuleType(""))).sweep == sweep
    unplanned = replace(its, tile=None)
    assert unplanned._staged(Kernel(spec, Path(), ModuleType(""))).sweep == SWEEP


def layer(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A reduce-scatter of a gated product, and an all-reduce of what follows."""
    scattered = functional.reduce_scatter_tensor(torch.relu(x @ w.t()), "sum", 0, dist.group.WORLD)
    return functional.all_reduce(scattered @ v.t(), "sum", dist.group.WORLD).tanh()


def compiled(rank: int) -> tuple[list[float], list[tuple[str, str, dict, str]]]:
    """Errors of a compiled layer over several calls, and what the report says of its sites."""
    torch.manual_seed(rank)
    rates = [replace(r, resident=SMS, tile_rows=64, tile_columns=64) for r in TARGET.gemm]
    target = replace(TARGET, device="cuda", gemm=tuple(rates))
    options = {"target": target, "overlap": "signaled"}
    errors, before = [], {site.id for site in overlapc.report().sites}
    with pretended_gpu():
        run = torch.compile(layer, backend="overlapc", options=options)
        for _ in range(2):
            true = [torch.randn(s, dtype=torch.float64) for s in ((768, 40), (256, 40), (192, 256))]
            seen = [tensor.float() for tensor in true]
            with torch.no_grad():
                errors.append(error_of(run(*seen), layer(*true)))
        sites = [site for site in overlapc.report().sites if site.id not in before]
    return errors, [(site.kind, site.code, dict(site.calls), site.reason) for site in sites]


@pytest.mark.long
def test_a_compiled_layer_is_planned_compiled_and_run_signaled(ranks):
    for errors, sites in ranks.run(compiled):
        assert max(errors) < BOUND
        kinds = [kind for kind, *_ in sites]
        assert kinds == ["gemm_reduce_scatter", "gemm_all_reduce"]
        for _, code, calls, reason in sites:
            assert (code, calls) == ("forced", {"signaled": 2}), reason
