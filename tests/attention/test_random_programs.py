"""Programs that are drawn around attention give what eager gives, whatever the matcher does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.graphs.attention import problems
from tests.attention.program_texts import RARE
from tests.attention.random_programs import Program, draw
from tests.attention.running_programs import Tried, attempt, attempt_compiled, smallest

FEW, MANY = range(12), range(12, len(RARE))
CAST = range(512, 526)
LEAST = 2
"""Of a few programs are rewritten."""


@pytest.fixture
def own(monkeypatch):
    """Sites are decided as where generated kernels run."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


def tried(seed: int, *, is_cast: bool = False) -> Tried | None:
    """Try a program; what fails has its seed, what is wrong, and the least that is so."""
    found = attempt(replace(draw(seed), is_cast=is_cast))
    if found is not None and found.is_wrong:
        least = smallest(found.program, _is_wrong)
        raise AssertionError(f"seed {seed}: {found.wrong}\n{least.text}")
    return found


def _is_wrong(program: Program) -> bool:
    found = attempt(program)
    return found is not None and found.is_wrong


def is_taken(found: Tried | None) -> bool:
    codes = found.codes("sdpa") + found.codes("unified") if found is not None else []
    return any(code[0] not in "!=" for code in codes)


def test_a_few(own):
    assert sum(is_taken(tried(seed)) for seed in FEW) >= LEAST


def test_a_few_under_autocast(own):
    """Mutant: operands are left in their own dtype, and so is the result."""
    assert sum(is_taken(tried(seed, is_cast=True)) for seed in CAST) >= LEAST


@pytest.mark.long
@pytest.mark.parametrize("part", [MANY[at : at + 50] for at in range(0, len(MANY), 50)], ids=str)
def test_many(own, part):
    """Every rare statement once."""
    for seed in part:
        tried(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20, 80))
def test_compiled(seed):
    """By Inductor, as a user's is: what of writes, memory and gradients is left after AOT."""
    program = draw(seed)
    found = attempt(program)
    if is_taken(found):
        wrong = attempt_compiled(program)
        assert not wrong, f"seed {seed}: {'; '.join(wrong)}\n{program.text}"


def test_a_program_is_known_by_its_seed():
    one, other = draw(7), draw(7)
    assert one == other
    assert all(map(torch.equal, one.make(), other.make()))
