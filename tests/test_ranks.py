"""The processes of these tests: one that breaks fails its own test, and no other."""

from __future__ import annotations

import os

import pytest

from tests.ranks import RankError


def process(rank: int) -> int:
    return os.getpid()


def ends(rank: int) -> None:
    if rank == 1:
        os._exit(3)


def test_those_after_one_that_ended_are_new(fresh_ranks):
    before = fresh_ranks.run(process)
    with pytest.raises(RankError, match="rank 1:\nthe process ended"):
        fresh_ranks.run(ends)
    assert set(fresh_ranks.run(process)).isdisjoint(before)
