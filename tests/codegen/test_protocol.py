"""The waiter against the GEMM that signals, in two processes that share only memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from tests.codegen.protocol_groups import CASES

FEW = 500
"""Reads of a counter after which a waiter hangs that shall; the GEMM has ended long before."""
LATE = ["late", "late and packed", "all to all"]
UNLIKE = ["bands", "late and packed", "late and scattered"]
"""Of each order, and of each way to announce, one; all others have the mutants they alone can."""
WRONG = "launch 1 was read too early"


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory, interpreted) -> Iterator:
    other = type(interpreted)(tmp_path_factory.mktemp("consumer"), processes=1)
    yield other
    other.close()


@pytest.fixture
def both(interpreted, consumer, tmp_path):
    """Run a case in two processes, with a mistake in one of them or in both."""

    memory = count()

    def run(name: str, seed: int = 0, *, gemm: Any = None, waiter: Any = None, **more: Any) -> None:
        path = tmp_path / str(next(memory))
        path.mkdir()
        its = str(path), name, seed
        consumed = consumer.start("protocol_cases.consume", *its, waiter, **more)
        produced = interpreted.start("protocol_cases.produce", *its, gemm)
        # Both end, whatever happens to either: the next run has them to itself.
        errors = [future.exception(60) for future in (consumed, produced)]
        for error in errors:
            if error:
                raise error

    return run


@pytest.mark.parametrize("name", CASES)
def test_whole_groups_alone_are_sent(both, name):
    both(name, seed=len(name))


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize(
    "mistake",
    [
        ('sem="release", scope="gpu"', 'sem="relaxed", scope="gpu"'),
        ('sem="release", scope="gpu"', 'sem="release", scope="cta"'),
        ("    return cta_barrier(FLATTEN)\n", "    return 0\n"),
    ],
    ids=["lost release", "release to the CTA", "no barrier"],
)
def test_stores_that_nothing_orders_are_seen(both, name, mistake):
    with pytest.raises(AssertionError, match=WRONG):
        both(name, gemm=mistake)


@pytest.mark.parametrize("name", LATE)
def test_a_tile_that_is_announced_before_it_is_stored_is_seen(both, name):
    its = "SUM_K,\n                counters, stored, COUNTER"
    with pytest.raises(AssertionError, match=WRONG):
        both(name, gemm=(its, its.replace("stored", "group")))


@pytest.mark.parametrize("name", LATE)
def test_a_last_tile_that_nobody_announces_is_seen(both, name):
    with pytest.raises(AssertionError, match="StillPolling"):
        both(name, gemm=("    if LATE:  # noqa", "    if not LATE:  # noqa"), most=FEW)


@pytest.mark.parametrize("name", UNLIKE)
def test_counters_that_are_not_reset_are_seen(both, name):
    with pytest.raises(AssertionError, match="launch 2 was read too early"):
        both(name, gemm="not reset")


@pytest.mark.parametrize("name", UNLIKE)
def test_wrong_thresholds_are_seen(both, name):
    with pytest.raises(AssertionError, match=WRONG):
        both(name, waiter="one tile too few")
    for mistake in ("one tile too many", "another group's"):
        with pytest.raises(AssertionError, match=f"StillPolling|{WRONG}"):
            both(name, waiter=mistake, most=FEW)


def test_counters_beyond_their_targets_let_a_waiter_go_but_not_one_for_equality(both):
    """As after a first launch at which the GEMM ran more than once."""
    both("bands", gemm="tuned", most=FEW)
    with pytest.raises(AssertionError, match="StillPolling"):
        both("bands", gemm="tuned", waiter=("while (seen < target)", "while (seen != target)"),
             most=FEW)  # fmt: skip


def test_a_band_that_never_comes_is_named(consumer, tmp_path):
    with pytest.raises(AssertionError, match="Band 0 was never complete: 0 of 2 tiles"):
        consumer("protocol_cases.give_up", str(tmp_path), "bands", 100)
