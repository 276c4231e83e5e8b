"""What is known of a mask that depends on no input is found once for all that spell it alike."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from overlapc.graphs.attention.masks import combined as masks
from overlapc.graphs.attention.reading import constants, remembering
from tests.attention.catalogue import plain, square
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF

LAYERS = 4


def windowed(q, k, v):
    rows = torch.arange(q.shape[-2])
    apart = rows[:, None] - rows
    mask = torch.where((apart >= 0) & (apart < 3), 0.0, -INF)
    return (q @ k.mT + mask).softmax(-1) @ v


def in_layers(q, k, v):
    for _ in range(LAYERS):
        q = windowed(q, k, v)
    return q


def in_checkpoints(q, k, v):
    for _ in range(LAYERS):
        q = checkpoint(windowed, q, k, v, use_reentrant=False)
    return q


def counted(monkeypatch, module, name):
    real, calls = getattr(module, name), []

    def function(*args):
        calls.append(name)
        return real(*args)

    monkeypatch.setattr(module, name, function)
    return calls


@pytest.mark.parametrize("function", [in_layers, in_checkpoints])
def test_layers_share_it(function, monkeypatch):
    """Mutant: nothing is kept (of 8 constants 33 are computed, and 5 masks are looked at)."""
    computed = counted(monkeypatch, constants, "computed")
    told = counted(monkeypatch, masks, "_told")
    done = rewrite(function, *(operand.requires_grad_() for operand in square()))
    assert done.codes == ["fused"] * LAYERS
    assert len(computed) < 10
    assert len(told) == 1
    assert remembering._kept == []


def of_other_numbers(q, k, v):
    for diagonal in (1, 2):
        mask = torch.full((q.shape[-2], q.shape[-2]), -1e9).triu(diagonal)
        for alpha in (1, 1e-9):
            q = q + torch.add(q @ k.mT, mask, alpha=alpha).softmax(-1) @ v
    return q


def of_other_shapes(q, k, v):
    """The same calls, of what is read for its shape alone: keys are hidden of one."""
    keys = k.shape[-2]
    for scores in (q @ k.mT, k @ q.mT):
        columns = torch.ones_like(scores, dtype=torch.long).cumsum(-1)[0, 0, :keys, -1]
        hidden = (columns > keys) & (torch.arange(keys) > 3)
        q = q + (q @ k.mT).masked_fill(hidden, -1e9).softmax(-1) @ v
    return q


@pytest.mark.parametrize(
    ("function", "make"), [(of_other_numbers, square), (of_other_shapes, lambda: plain(20, 17))]
)
def test_what_differs_is_told_apart(function, make):
    """Mutants: arguments, shapes of what is read for its shape, or by what a mask is multiplied are
    left out of the key."""
    torch.manual_seed(0)
    operands = make()
    done = rewrite(function, *operands)
    assert set(done.codes) == {"fused"}
    wanted = function(*(operand.double() for operand in operands))
    torch.testing.assert_close(done.function(*operands).double(), wanted, atol=1e-5, rtol=1e-5)


def test_memory_for_it_is_bounded(monkeypatch):
    monkeypatch.setattr(remembering, "MOST_BYTES", 100)
    known: remembering.Known = {}
    with remembering.remembered(known):
        for key in range(5):
            remembering.recalled(key, lambda: torch.zeros(15))
    assert len(known) == 1
