"""Every chain over real gloo ranks against float64, and mutants that these trials catch."""

from __future__ import annotations

import pytest

from tests.runtime import matrix, mutants

PRODUCERS = ("gemm_reduce_scatter", "gemm_all_to_all")
CONSUMERS = ("all_gather_gemm", "all_to_all_gemm")


def test_every_chain_on_two_ranks(two_ranks):
    assert two_ranks.run(matrix.run_all) == [{}] * 2


def test_some_chains_on_four_ranks(four_ranks):
    assert four_ranks.run(matrix.run_all, matrix.KINDS, 8) == [{}] * 4


def test_steps_that_are_one_call_give_what_steps_give(two_ranks):
    """Sent, kept and scattered. Mutant: what is written left out of the call."""
    for wrong, made in two_ranks.run(matrix.run_fused):
        assert (wrong, made > 2) == ({}, True)


@pytest.mark.long
def test_every_chain_on_four_ranks(four_ranks):
    assert four_ranks.run(matrix.run_all, timeout=300) == [{}] * 4


MUTANTS = [
    (mutants.destinations_reversed, ("gemm_reduce_scatter",)),
    (mutants.destinations_reversed, ("gemm_all_to_all",)),
    (mutants.first_rows_always, ("gemm_all_reduce",)),
    (mutants.first_rows_always, CONSUMERS),
    (mutants.own_offsets, PRODUCERS),
    (mutants.own_offsets, CONSUMERS),
    (mutants.put_nothing, ("gemm_all_to_all",)),
    (mutants.kept_where_it_came, CONSUMERS),
    *((mutants.no_wait, (kind,)) for kind in matrix.KINDS),
]


@pytest.mark.parametrize(
    ("mutant", "kinds"), MUTANTS, ids=[f"{m.__name__}-{'-'.join(k)}" for m, k in MUTANTS]
)
def test_mutants_are_caught(two_ranks, mutant, kinds):
    found = two_ranks.run(matrix.run_mutated, mutant, kinds)
    assert any(found)


def test_four_ranks_catch_what_two_cannot(two_ranks, four_ranks):
    """With two ranks there is only one other."""
    given = matrix.run_mutated, mutants.sources_reversed, CONSUMERS
    assert not any(two_ranks.run(*given))
    assert any(four_ranks.run(*given))
