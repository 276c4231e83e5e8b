"""Ranks of which one fails while a trial runs: who says what, what goes on, and that nobody hangs.

Each call has so little time that ranks in unlike collectives fail their test.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from overlapc.errors import GroupError, OverlapcError
from overlapc.planning.problem import Problem
from overlapc.planning.target import Target, stored_path
from overlapc.runtime.chunked.computing import Computation
from overlapc.runtime.measuring import bench as measuring
from overlapc.runtime.measuring.trial_sending import TrialSender
from overlapc.runtime.measuring.trials import Trial
from overlapc.runtime.ranks import patience
from overlapc.tuning.chains import tune_chains
from tests.ranks import Ranks
from tests.runtime.measuring.test_chain_trials import problem, uncompiled
from tests.targets import SLOW_LINK

PLAIN = Problem(96, 128, 64, "float32", "all_reduce", 2)
PLAINS = {
    "all_reduce": PLAIN,
    "reduce_scatter": replace(PLAIN, collective="reduce_scatter"),
    "all_to_all": replace(PLAIN, collective="all_to_all", order="gemm_first"),
    "all_gather": replace(PLAIN, collective="all_gather"),
}


@contextmanager
def failing(rank: int, at: int, *, rehearsing: bool = False) -> Iterator[list[int]]:
    """Rank 1 has no memory for GEMM ``at`` of any plan that it sends, and rank 0 waits meanwhile.

    Or none in a rehearsal. Gives how many failed here.
    """
    computed, failed = [0], [0]
    begin, rehearsal = TrialSender.begin, TrialSender.rehearsal

    def begins(self: TrialSender) -> None:
        computed[0] = 0
        begin(self)

    def rehearses(self: TrialSender) -> Any:
        computed[0] = 0
        return rehearsal(self)

    def counted(call: Any, is_meant: Any) -> Any:
        def compute(self: Any, *given: Any) -> Any:
            computed[0] += 1
            if rank and is_meant(self) and computed[0] == at + 1:
                time.sleep(0.1)  # longer than the patience of those who wait
                failed[0] += 1
                raise torch.OutOfMemoryError("no memory for it")
            return call(self, *given)

        return compute

    senders: list[TrialSender] = []
    made = TrialSender.__init__

    def makes(self: TrialSender, *given: Any) -> None:
        senders.append(self)
        made(self, *given)

    def is_meant(self: Any) -> bool:
        return any(sender._noted is not None for sender in senders) == rehearsing

    with (
        mock.patch.object(TrialSender, "__init__", makes),
        mock.patch.object(TrialSender, "begin", begins),
        mock.patch.object(TrialSender, "rehearsal", rehearses),
        mock.patch.object(Trial, "_gemm", counted(Trial._gemm, is_meant)),
        mock.patch.object(Computation, "__call__", counted(Computation.__call__, is_meant)),
        mock.patch.object(measuring, "REST_SECONDS", 0.0),
        mock.patch.object(patience, "LOOKS_EVERY", timedelta(seconds=0.05)),
        uncompiled(),
    ):
        yield failed


class Said(logging.Handler):
    """What was logged, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def heard() -> Iterator[list[str]]:
    said = Said()
    logging.getLogger("overlapc").addHandler(said)
    try:
        yield said.texts
    finally:
        logging.getLogger("overlapc").removeHandler(said)


def tuned(
    rank: int, problems: list[Problem], at: int, rehearsing: bool = False
) -> tuple[Any, list[str], int, float]:
    """What is tuned or the error, what is logged, how often this rank failed, and a sum that has to
    be right afterwards."""
    with failing(rank, at, rehearsing=rehearsing) as failed, heard() as said:
        try:
            found: Any = tune_chains(problems, target=SLOW_LINK, seconds=0.05, save=False)
        except OverlapcError as error:
            found = error
    total = torch.ones(1)
    dist.all_reduce(total)
    return found, said, failed[0], total.item()


LONG = ("all_reduce", "all_gather", "all_to_all", "program", "consumer")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in LONG else name
        for name in (*PLAINS, "program", "consumer")
    ],
)
def test_a_plan_that_fails_on_one_rank_is_left_out_on_all(name: str, two_ranks: Ranks) -> None:
    """Rank 1 fails in the second group. Mutants: `TrialSender.finish` that sends nothing, or
    all of it again; `rounds` that goes on with what failed; a wait whose first look is the last."""
    its = {
        **PLAINS, "program": problem("epilogue"), "consumer": problem("several", "all_gather_gemm")
    }[name]  # fmt: skip
    results = two_ranks.run(tuned, [its], 1, timeout=25)
    for target, said, _, total in results:
        assert isinstance(target, Target)
        assert target == results[0][0]
        (won,) = target.tuned
        assert (won.problem, won.rows) == (its.resolved(), (its.m,))
        assert total == 2
        failed = [text for text in said if "no memory for it" in text]
        assert failed == results[0][1][: len(failed)]
        assert len(failed) == results[1][2] >= 2  # a plan that failed is not run again
        for text in failed:
            assert "rank 1: OutOfMemoryError" in text
            assert f"{its.kind} {its.m}x{its.n}x{its.k}" in text
            assert "chunked, " in text
            assert "Remedy: " in text


def test_a_plan_that_one_rank_cannot_compute_is_sent_by_none(two_ranks: Ranks) -> None:
    """Mutants: nothing is rehearsed, so that it fails when it is sent; rehearsals that send."""
    (target, said, _, total), (other, *_) = two_ranks.run(tuned, [PLAIN], 1, True, timeout=25)
    assert target == other
    assert (target.tuned[0].rows, total) == ((PLAIN.m,), 2)
    # Told once, for the reason is one, and not again in rounds.
    assert len([text for text in said if "rank 1: OutOfMemoryError" in text]) == 1


@pytest.mark.long
def test_a_chain_whose_serial_plan_fails_is_left_out(two_ranks: Ranks) -> None:
    """Rank 1 fails at its first GEMM; the second chain's serial plan is a graph, and runs."""
    first, second = PLAIN, problem("epilogue")
    for target, said, *_, total in two_ranks.run(tuned, [first, second], 0, timeout=25):
        assert total == 2
        assert [won.problem for won in target.tuned] == [second.resolved()]
        assert any("serial, 96 rows" in text for text in said)
        assert any(text.startswith("not tried") for text in said)


def lost(rank: int, problems: list[Problem]) -> tuple[list[str], float, list[Problem]]:
    """Errors of two calls on a group whose rank 1 cannot send in the second problem, the seconds of
    both, and what is stored."""
    group = dist.new_group()
    start_of, errors = TrialSender.start, []

    def start(self: TrialSender, *given: Any) -> Any:
        if rank and self.collective == problems[1].collective and self._noted is None:
            raise RuntimeError("no link here")
        return start_of(self, *given)

    begun = time.perf_counter()
    with failing(rank, 99), mock.patch.object(TrialSender, "start", start):
        for _ in range(2):
            try:
                tune_chains(problems, group, SLOW_LINK, seconds=0.05)
            except GroupError as error:
                errors.append(str(error))
    stored = Target.load(stored_path("cpu-gloo-2")).tuned
    return errors, time.perf_counter() - begun, [won.problem for won in stored]


def test_a_rank_that_cannot_send_stops_all(two_ranks: Ranks) -> None:
    """What was measured before it is stored. Mutants: peers that only wait, an error that is each
    rank's own, `tune_chains` that stores at its end, a group that is used again."""
    first, second = PLAIN, PLAINS["reduce_scatter"]
    (said, *_), (other, *_) = found = two_ranks.run(lost, [first, second], timeout=25)
    assert said == other
    assert len(said) == 2
    assert (
        "Rank 1 failed in the tuning of gemm_reduce_scatter: RuntimeError: no link here" in said[0]
    )
    assert said[1] == said[0]
    for _, taken, stored in found:
        assert taken < 20
        assert stored == [first.resolved()]


@contextmanager
def without_room(rank: int) -> Iterator[list[int]]:
    """Rank 1 has no memory for the parts of a scatter's second group that are added up there."""
    dealt_out, failed = TrialSender._dealt_out, [0]

    def deals(self: TrialSender, group: Any, out: torch.Tensor, sent: torch.Tensor) -> Any:
        if not rank or self._started != 1:
            return dealt_out(self, group, out, sent)
        failed[0] += 1
        no_room = mock.patch.object(torch.Tensor, "new_empty", side_effect=MemoryError("no room"))
        with no_room:
            return dealt_out(self, group, out, sent)

    with mock.patch.object(TrialSender, "_dealt_out", deals):
        yield failed


def sent_without_room(rank: int) -> tuple[bool, int, float]:
    """Whether what fails so is sent to its end by ``finish``, failures, and a sum afterwards."""
    assert dist.group.WORLD is not None
    sender = TrialSender("reduce_scatter", dist.group.WORLD, torch.device("cpu"))
    out, sent = torch.empty(4, 8), torch.randn(8, 8)
    with sender.rehearsal() as rehearsed:
        for _ in range(3):
            sender.start(sender.group, out, sent)
    is_sent = True
    with without_room(rank) as failed:
        try:
            for _ in range(3):
                sender.start(sender.group, out, sent).wait()
        except MemoryError:
            is_sent = False
    if not is_sent:
        is_sent = sender.finish(rehearsed)
    total = torch.ones(1)
    dist.all_reduce(total)
    return is_sent, failed[0], total.item()


def test_a_rank_without_room_for_what_comes_sends_all_the_same(two_ranks: Ranks) -> None:
    """Nothing was sent when it failed. Mutant: a sender that is lost by whatever `start` raises."""
    found = two_ranks.run(sent_without_room, timeout=25)
    assert found == [(True, 0, 2.0), (True, 1, 2.0)]


def full(rank: int, failing: str, at: int) -> tuple[str, float]:
    """The error on a group whose rank 1 fails beside trials of the chain ``at``, and seconds."""
    group, calls, saves = dist.new_group(timeout=timedelta(seconds=20)), [0], Target.save

    def fails(what: str) -> None:
        if rank and failing == what:
            calls[0] += 1
            if calls[0] == at + 1:
                time.sleep(0.1)  # longer than the patience of those who wait
                raise OSError(28, "No space left on device")

    def save(self: Target, path: Any) -> None:
        fails("save")
        saves(self, path)

    problems = [PLAIN, replace(PLAIN, m=192)]
    begun, said = time.perf_counter(), ""
    with (
        mock.patch.object(Target, "save", save),
        mock.patch.object(measuring, "REST_SECONDS", 0.0),
        mock.patch.object(patience, "LOOKS_EVERY", timedelta(seconds=0.05)),
    ):
        try:
            tune_chains(
                problems,
                group,
                SLOW_LINK,
                run=lambda plan: 1e-3,
                seconds=0.05,
                progress=lambda *_: fails("progress"),
            )
        except GroupError as error:
            said = str(error)
    return said, time.perf_counter() - begun


@pytest.mark.parametrize(("failing", "at"), [("save", 0), ("save", 1), ("progress", 1)])
def test_a_rank_that_fails_beside_its_trials_stops_all(
    failing: str, at: int, two_ranks: Ranks
) -> None:
    """After the first chain, the last, and before the second. Mutants: failures told in trials
    alone; nobody waits for what the others store."""
    (said, taken), (other, _) = two_ranks.run(full, failing, at, timeout=25)
    assert said == other
    assert "Rank 1 failed in the tuning of gemm_all_reduce: OSError: [Errno 28] No space" in said
    assert taken < 10
