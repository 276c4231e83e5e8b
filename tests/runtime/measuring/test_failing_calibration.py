"""Ranks of which one fails or ends while a group is calibrated: all stop, and say who and where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from overlapc.calibration import calibrate
from overlapc.errors import GroupError
from overlapc.planning.target import Target, stored_path
from overlapc.runtime.measuring import bench as measuring
from overlapc.runtime.measuring import contention, link_curves
from overlapc.runtime.measuring.bench import Bench
from overlapc.runtime.measuring.link_curves import Calls
from overlapc.runtime.measuring.trials import Trial
from overlapc.runtime.ranks import patience
from tests.ranks import Ranks

LONG = pytest.mark.long

PLACES: dict[str, tuple[Any, str, int, str]] = {
    "what is asked": (Bench, "dtypes", 0, "calibrate: "),
    "whether a GEMM is computed": (Bench, "why_no_gemm", 0, "calibrate, at GEMM: "),
    "a GEMM": (Bench, "repeat", 4, "calibrate, at GEMM: "),
    "pointwise work": (Bench, "_pointwise", 0, "calibrate, at GEMM: "),
    "whether it is sent": (Calls, "buffers", 0, "calibrate: "),
    "a curve": (Calls, "train", 5, "calibrate, at all-reduce: "),
    "side by side": (contention, "_side_by_side", 1, "calibrate, at GEMM beside all-reduce: "),
    "groups": (Trial, "_gemm", 4, "calibrate, at GEMM and all-reduce in groups: "),
    "the target": (Bench, "conditions", 0, "calibrate: "),
    "storing": (Target, "save", 0, "calibrate: "),
}
"""What fails at which call of it, and what the error says of it."""


def raises(*_: object) -> None:
    raise MemoryError("no memory for it")


def leaves(*_: object) -> None:
    os._exit(3)


def is_killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def quick() -> Iterator[None]:
    """Little is measured, and those who wait look often."""
    shapes = {"GEMM_ROWS": (16, 32, 64), "GEMM_WIDTHS": measuring.GEMM_WIDTHS[:4]}
    small = {"GEMM_BESIDE": (32, 64, 64), "POINTWISE_BYTES": 1 << 12, "REST_SECONDS": 0.0}
    with (
        mock.patch.multiple(measuring, **shapes, **small),
        mock.patch.object(contention, "PIPELINED", 3),
        mock.patch.object(contention, "GEMM_BESIDE", (32, 64, 64)),
        mock.patch.multiple(link_curves, LARGEST_BYTES=1 << 13, ENOUGH_BYTES=1 << 13),
        mock.patch.multiple(patience, LOOKS_EVERY=timedelta(seconds=0.05), SIGNS_WITHIN=1.0),
    ):
        yield


@contextmanager
def failing(owner: Any, name: str, at: int, how: Callable[..., None]) -> Iterator[None]:
    """What has this name fails at its call ``at``, when others wait already."""
    calls, call = [0], getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == at + 1:
            time.sleep(0.1)  # longer than the patience of those who wait
            how()
        return call(*given, **named)

    with mock.patch.object(owner, name, counted):
        yield


Failed = tuple[str, str, float, bool]
"""The errors of two calls, the seconds of both, and whether a target is stored."""


def errors(
    rank: int, places: list[str], failed: int, how: Callable[..., None], size: int
) -> list[Failed]:
    """Where a rank fails at each of these places, each on a group of its own."""
    return [_errors(rank == failed, place, how, f"cpu-gloo-{size}") for place in places]


def _errors(fails: bool, place: str, how: Callable[..., None], target: str) -> Failed:
    owner, name, at, _ = PLACES[place]
    path = stored_path(target)
    path.unlink(missing_ok=True)  # another test's, before all meet in the new group
    group, begun = dist.new_group(timeout=timedelta(seconds=20)), time.perf_counter()
    with quick():
        with failing(owner, name, at, how) if fails else nullcontext():
            first = _error(group, place)
        again = _error(group, place)
    is_stored = path.exists()
    path.unlink(missing_ok=True)
    return first, again, time.perf_counter() - begun, is_stored


def _error(group: Any, place: str) -> str:
    dtypes = ["bfloat16"] if place == "whether a GEMM is computed" else []
    try:
        calibrate(group, collectives=["all_reduce"], dtypes=dtypes, seconds=0.05)
    except GroupError as error:
        return str(error)
    return ""


def of_those_who_fail(ranks: Ranks, places: list[str]) -> None:
    found = ranks.run(errors, places, 1, raises, 2, timeout=60)
    for place, *said in zip(places, *found, strict=True):
        assert said[0][:2] == said[1][:2], place
        for first, again, taken, is_stored in said:
            assert f"Rank 1 failed in {PLACES[place][-1]}MemoryError: no memory for it" in first
            assert "Remedy: " in first
            assert again == first, place
            assert taken < 10, place
            assert not is_stored or place == "storing"


def test_a_rank_that_fails_stops_all_and_is_named(two_ranks: Ranks) -> None:
    """Mutants: torch's own gathering of objects, which waits on; a calibration whose failures are
    not told."""
    of_those_who_fail(two_ranks, ["what is asked", "side by side"])


@LONG
def test_a_rank_that_fails_anywhere_stops_all_and_is_named(two_ranks: Ranks) -> None:
    """Mutants: as above; links whose transfers are waited for without patience; nobody waits for
    what the others store."""
    of_those_who_fail(two_ranks, list(PLACES))


@pytest.fixture(scope="module")
def mortal_ranks() -> Iterator[Ranks]:
    """Which are started again where a test ended one."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


SHORT = "a curve"


@pytest.mark.parametrize(
    ("place", "how"),
    [
        pytest.param(place, how, marks=[] if place == SHORT and how is is_killed else LONG)
        for place in PLACES
        for how in (leaves, is_killed)
    ],
)
def test_a_rank_that_ends_is_named(
    place: str, how: Callable[..., None], mortal_ranks: Ranks
) -> None:
    """Mutant: who sees the transfer break says that it failed itself."""
    (found, _), (_, ended) = mortal_ranks.outcomes(errors, [place], 1, how, 2, timeout=40)
    ((first, again, taken, is_stored),) = found
    assert "Rank 1 has ended, or gave no sign for 1 s, when a collective broke: " in first
    assert "Remedy: " in first
    assert again == first
    assert taken < 10
    assert not is_stored or place == "storing"
    assert "ended" in ended


def among_three(rank: int) -> str:
    """What those say who live: rank 0 sees that a sum breaks, and rank 2 waits for rank 0 alone."""
    world, pair, value = dist.group.WORLD, dist.new_group([0, 2]), torch.ones(1)
    assert world is not None
    with quick(), patience.failures_told(world, "a sum"):
        if rank == 1:
            leaves()
        work = dist.all_reduce(value, group=pair if rank else world, async_op=True)
        assert work is not None
        try:
            patience.wait(world, work, value.device)
        except GroupError as error:
            return str(error)
    return ""


@LONG
def test_those_who_live_are_not_named() -> None:
    """Mutant: who waits gives no sign, so that rank 2 counts as one that ended."""
    ranks = Ranks(3)
    try:
        (first, _), _, (last, _) = ranks.outcomes(among_three, timeout=60)
    finally:
        ranks.close()
    assert "Rank 1 has ended" in first
    assert last == first


def keeper_ends(rank: int) -> str:
    """The error of rank 1 where rank 0, whose process keeps the group's store, ends."""
    place, port, store = "a curve", torch.zeros(1, dtype=torch.int64), None
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        port.fill_(store.port)
    dist.broadcast(port, 0)
    store = store or dist.TCPStore("127.0.0.1", int(port), 2)
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    owner, name, at, _ = PLACES[place]
    with quick(), nullcontext() if rank else failing(owner, name, at, leaves):
        return _error(dist.group.WORLD, place)


@LONG
def test_where_the_store_ends_as_well_it_is_said(mortal_ranks: Ranks) -> None:
    """Mutant: what the store raises is not caught."""
    _, (said, _) = mortal_ranks.outcomes(keeper_ends, timeout=40)
    assert "The store of the group does not answer" in said
    assert "often rank 0's, has ended" in said
    assert "Remedy: " in said
