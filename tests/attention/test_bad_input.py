"""What is wrong, not finite or empty: eager's result, or eager's error."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.nn.functional as F

from overlapc.graphs.attention import problems
from tests.attention.catalogue import added, filled, functional, plain, square
from tests.attention.rewriting import rewrite
from tests.attention.score_functions import scaled_sinks
from tests.attention.sizes import INF, B, D, H, K, Q


@pytest.fixture(params=["sdpa", "unified"])
def choice(request, monkeypatch):
    """Torch's attention, and our own, whose program runs by torch's ops."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: request.param == "unified")
    return request.param


def fused(q, k, v, *mask):
    return F.scaled_dot_product_attention(q, k, v, *mask)


def negative_window(q, k, v):
    """No row keeps a key."""
    rows, keys = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    kept = (keys <= rows) & (keys > rows + 2)
    return (q @ k.mT).masked_fill(~kept, -INF).softmax(-1) @ v


def capped(q, k, v):
    return (5 * torch.tanh((q @ k.mT) / 5)).softmax(-1) @ v


def sizes(*shapes):
    return [torch.randn(shape) for shape in shapes]


WRONG = {
    "heads of other widths": (functional, sizes((B, H, Q, D), (B, H, K, D - 1), (B, H, K, D))),
    "other keys than values": (functional, sizes((B, H, Q, D), (B, H, K, D), (B, H, K + 1, D))),
    "heads that do not divide": (functional, sizes((B, H, Q, D), (B, 3, K, D), (B, 3, K, D))),
    "torch's, of other widths": (fused, sizes((B, H, Q, D), (B, H, K, D - 1), (B, H, K, D))),
    "a mask of other rows": (filled, [*plain(), torch.ones(Q - 1, K, dtype=torch.bool)]),
    "a mask of other keys": (added, [*plain(), torch.randn(B, 1, Q, K - 1)]),
    "torch's mask": (fused, [*plain(), torch.ones(Q - 1, K, dtype=torch.bool)]),
}


@pytest.mark.long
@pytest.mark.parametrize("name", WRONG)
def test_raises_what_eager_raises(choice, name, caplog):
    function, inputs = WRONG[name]
    caplog.set_level(logging.CRITICAL, "torch._subclasses.fake_tensor")
    with pytest.raises(RuntimeError):
        function(*inputs)
    with pytest.raises(RuntimeError):
        rewrite(function, *inputs, softmax=choice)


def spoiled(operand, number):
    def make():
        inputs = [t.clone() for t in plain()]
        inputs[operand][0, 1, 2, 3] = number
        return inputs

    return make


def all_keys_spoiled():
    q, k, v = (t.clone() for t in plain())
    k[0, 1] = math.nan
    return q, k, v


def spoiled_bias():
    bias = torch.randn(B, 1, Q, K)
    bias[0, 0, 2, 3], bias[1, 0, 1] = math.nan, math.nan
    return [*plain(), bias]


def sinks():
    return [*plain(), torch.tensor([0.0, math.nan, math.inf, -math.inf])]


NOT_FINITE = {
    **{f"NaN in {'qkv'[i]}": (functional, spoiled(i, math.nan)) for i in range(3)},
    **{f"infinity in {'qkv'[i]}": (functional, spoiled(i, math.inf)) for i in range(3)},
    "NaN in all keys": (functional, all_keys_spoiled),
    "NaN in a bias": (added, spoiled_bias),
    "NaN in queries, capped": (capped, spoiled(0, math.nan)),
    "infinity in queries, capped": (capped, spoiled(0, math.inf)),
    "sinks": (scaled_sinks, sinks),
    "a negative window": (negative_window, square),
}


SHORT = ("NaN in q", "sinks", "no keys, masked", "no columns, torch's")


def some(cases):
    return [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in cases]


@pytest.mark.parametrize("name", some(NOT_FINITE))
def test_is_not_finite_where_eager_is_not(choice, name):
    function, make = NOT_FINITE[name]
    torch.manual_seed(0)
    inputs = make()
    found = rewrite(function, *inputs, softmax=choice).function(*inputs)
    torch.testing.assert_close(found, function(*inputs), equal_nan=True)


NO_MASK = torch.ones(Q, 0, dtype=torch.bool)
EMPTY = {
    "no keys": (functional, sizes((B, H, Q, D), (B, H, 0, D), (B, H, 0, D))),
    "no keys, masked": (filled, [*sizes((B, H, Q, D), (B, H, 0, D), (B, H, 0, D)), NO_MASK]),
    "no keys, torch's": (fused, sizes((B, H, Q, D), (B, H, 0, D), (B, H, 0, D))),
    "no rows": (functional, sizes((B, H, 0, D), (B, H, K, D), (B, H, K, D))),
    "no batch": (functional, sizes((0, H, Q, D), (0, H, K, D), (0, H, K, D))),
    "no heads": (functional, sizes((B, 0, Q, D), (B, 0, K, D), (B, 0, K, D))),
    "no columns": (functional, sizes((B, H, Q, 0), (B, H, K, 0), (B, H, K, D))),
    "no columns of values": (functional, sizes((B, H, Q, D), (B, H, K, D), (B, H, K, 0))),
    "no columns, torch's": (fused, sizes((B, H, Q, 0), (B, H, K, 0), (B, H, K, D))),
    "no rows, torch's": (fused, sizes((B, H, 0, D), (B, H, K, D), (B, H, K, D))),
}


@pytest.mark.parametrize("name", some(EMPTY))
def test_what_is_empty_stays(choice, name, caplog):
    """Mutants: a division by the columns of a head; strides are asked for before sizes."""
    function, inputs = EMPTY[name]
    done = rewrite(function, *inputs, softmax=choice)
    assert done.after == done.before
    assert all(site.decision != "rewritten" for site in done.sites)
    reasons = [site.reason for site in done.sites]
    is_told = choice == "unified" or function is not fused
    assert not is_told or all("no rows, no keys or no columns" in reason for reason in reasons)
    assert "a fault of overlapc" not in caplog.text
    torch.testing.assert_close(done.function(*inputs), function(*inputs), equal_nan=True)
