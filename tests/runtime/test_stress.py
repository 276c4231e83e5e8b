"""Many steps of several chains in flight after one another, with ranks that are late at random."""

from __future__ import annotations

import random
import time
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from overlapc.runtime.ranks.sending import Sender
from tests.runtime import matrix, mutants
from tests.runtime.chains import call, chain, poisoned, ragged
from tests.runtime.programs.cases import CASES
from tests.targets import machine

TARGET = machine("stress", 4e7)
SITES = [
    ("gemm_all_reduce", "rich"),
    ("all_gather_gemm", "many"),
    ("gemm_reduce_scatter", "sum"),
    ("gemm_all_to_all", "mm"),
    ("all_to_all_gemm", "mm"),
    ("uneven_producer", "mm"),
    ("uneven_consumer", "mm"),
]
UNEVEN = {"uneven_producer": "gemm_all_to_all", "uneven_consumer": "all_to_all_gemm"}
LATE_SHARE, LATE_SECONDS = 0.03, 0.004
"""Of collectives, and at most: often two or three chains long."""


def exact(tensors):
    """Small integers: sums are exact in any order, so one wrong element is seen."""
    return [(2 * tensor).round().clamp(-4, 4) for tensor in tensors]


def calls_of_step(step, rank, ranks):
    """Every site's call of a step: spec, operands of this rank, and sizes."""
    dice = random.Random(step)
    order = dice.sample(SITES, len(SITES))
    for place, (site, name) in enumerate(order):
        kind, case = UNEVEN.get(site, site), CASES[name]
        each = dice.choice((0, 1, 2, 3, dice.randint(4, 40)))
        rows = [[dice.randint(0, 9) for _ in range(ranks)] for _ in range(ranks)]
        generator = torch.Generator().manual_seed(step * 100 + place * 10 + rank)
        is_consumer = kind.endswith("gemm")
        program = case.consumer() if is_consumer else case.producer()
        spec = chain(kind, program, TARGET, schedule="chunked", site=f"stress.{site}")
        if site in UNEVEN:
            receives, sends = [row[rank] for row in rows], rows[rank]
            operands = case.operands(sum(sends), generator)
            yield spec, exact(operands), (1, receives, sends)
            continue
        operands = case.operands(each * ranks, generator)
        if kind == "all_gather_gemm":
            operands[0] = operands[0][:each]
        yield spec, exact(operands), (1, [], [])


def steps(rank, first, last, seed):
    """Run steps and check each against c10d; how many, and (step, site) of each wrong result."""
    from overlapc.runtime import reference

    dice, original = random.Random(100 * seed + rank), Sender.start
    ranks, wrong = dist.get_world_size(), []

    def start(self, *args):
        if dice.random() < LATE_SHARE:
            time.sleep(dice.random() * LATE_SECONDS)
        return original(self, *args)

    for step in range(first, last):
        called = list(calls_of_step(step, rank, ranks))
        with patch.object(Sender, "start", start), poisoned(), ragged(step):
            found = [[r.clone() for r in call(spec, given, *size)] for spec, given, size in called]
        for (spec, given, sizes), results in zip(called, found, strict=True):
            wanted = reference.chain(spec, given, *sizes)
            # gelu and bfloat16 round; all else is exact.
            allowed = 0.05 if spec.site == "stress.gemm_all_reduce" else 0.0
            pairs = zip(results, wanted, strict=True)
            wrong += [(step, spec.site) for pair in pairs if not is_near(*pair, allowed)]
    return last - first, wrong


def is_near(found, wanted, allowed):
    """Whether the largest difference is at most so many times the largest element."""
    if found.shape != wanted.shape or not found.numel():
        return found.shape == wanted.shape
    difference = (found.double() - wanted).abs().max().item()
    return difference <= allowed * (1 + wanted.abs().max().item())


def test_150_steps_on_two_ranks(two_ranks):
    assert two_ranks.run(steps, 0, 150, 1, timeout=100) == [(150, [])] * 2


@pytest.mark.long
def test_1000_steps_on_two_ranks(two_ranks):
    assert two_ranks.run(steps, 0, 1000, 2, timeout=900) == [(1000, [])] * 2


@pytest.mark.long
def test_1000_steps_on_four_ranks(four_ranks):
    assert four_ranks.run(steps, 0, 1000, 3, timeout=1500) == [(1000, [])] * 4


def broken_steps(rank, mutant):
    """As ``steps``, a few of them, while ``mutant`` breaks something."""
    matrix.forget()
    try:
        with mutant(rank):
            return steps(rank, 0, 15, 4)
    finally:
        dist.barrier()
        matrix.forget()


@pytest.mark.parametrize(
    ("mutant", "site"),
    [
        (mutants.no_wait, "gemm_all_reduce"),
        (mutants.destinations_reversed, "gemm_reduce_scatter"),
        (mutants.first_rows_always, "gemm_reduce_scatter"),
        (mutants.kept_where_it_came, "all_to_all_gemm"),
    ],
)
def test_a_few_steps_tell(mutant, site, two_ranks):
    for _, wrong in two_ranks.run(broken_steps, mutant):
        assert any(name == f"stress.{site}" for _, name in wrong)
