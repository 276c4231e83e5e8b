"""Rows that several finite masks leave no key: which number is the least tells what eager gives."""

from __future__ import annotations

import pytest
import torch

from overlapc.graphs.attention import problems
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF, MIN, B, D, H, K, Q

WEAK = -1e9
HALF = K // 2


@pytest.fixture(params=["sdpa", "unified"])
def choice(request, monkeypatch):
    """Both write and run no kernel here: torch computes what is put in."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    return request.param


def sides(dtype=torch.float32, times=1.0):
    torch.manual_seed(0)
    return [torch.randn(B, H, n, D).mul(size).to(dtype) for n, size in ((Q, times), (K, 1), (K, 1))]


def first_half():
    """Which keys: hidden of all rows by one mask, and the others by another."""
    return torch.arange(K).lt(HALF).expand(B, 1, Q, K).contiguous()


def of_two_numbers(q, k, v, first):
    """As it is added by models whose padding and causal masks differ."""
    return (q @ k.mT + torch.where(first, WEAK, MIN)).softmax(-1) @ v


def of_two_numbers_beside_sinks(q, k, v, first):
    s = q @ k.mT + torch.where(first, WEAK, MIN)
    sinks = torch.full((B, H, Q, 1), MIN)
    return torch.cat([s, sinks], -1).softmax(-1)[..., :-1] @ v


def filled_beside_as_much(q, k, v, first):
    s = q @ k.mT + torch.where(first, WEAK, 0.0)
    return s.masked_fill(~first, WEAK).softmax(-1) @ v


def filled_beside_less(q, k, v, first):
    s = q @ k.mT + torch.where(first, 2 * WEAK, 0.0)
    return s.masked_fill(~first, WEAK).softmax(-1) @ v


def filled_beside_the_least(q, k, v, first):
    s = q @ k.mT + torch.where(first, MIN, 0.0)
    return s.masked_fill(~first, WEAK).softmax(-1) @ v


def filled_beside_a_narrow_mask(q, k, v, first):
    """-1e9 is more in bfloat16."""
    s = q @ k.mT + torch.where(first, WEAK, 0.0).bfloat16()
    return s.masked_fill(~first, WEAK).softmax(-1) @ v


def filled_and_doubled(q, k, v, first):
    """Of the first row both become infinite, and it is no number."""
    s = (q @ k.mT).masked_fill(first & (torch.arange(Q)[:, None] == 0), MIN)
    return (2 * s.masked_fill(~first & (torch.arange(Q)[:, None] < 2), MIN)).softmax(-1) @ v


def filled_doubled_and_divided(q, k, v, first):
    s = (q @ k.mT).masked_fill(first | (torch.arange(Q)[:, None] == 0), MIN)
    return (0.25 * (2 * s)).softmax(-1) @ v


def first_row():
    return torch.arange(Q)[:, None] == 0


def added_and_doubled(q, k, v, first):
    """The first row becomes infinite, and is no number."""
    return (2 * (q @ k.mT + torch.where(first | first_row(), MIN, 0.0))).softmax(-1) @ v


def added_twice(q, k, v, first):
    s = q @ k.mT + torch.where(first | first_row(), MIN, 0.0)
    return (s + torch.where(~first | first_row(), MIN, 0.0)).softmax(-1) @ v


def filled_and_added(q, k, v, first):
    s = (q @ k.mT).masked_fill(first | first_row(), MIN)
    return (s + torch.where(~first | first_row(), MIN, 0.0)).softmax(-1) @ v


ALIKE = [
    of_two_numbers, of_two_numbers_beside_sinks, filled_beside_as_much, filled_beside_less,
    filled_beside_the_least, filled_beside_a_narrow_mask, filled_and_doubled,
    filled_doubled_and_divided, added_and_doubled, added_twice, filled_and_added,
]  # fmt: skip


def check(function, operands, choice, codes):
    done = rewrite(function, *operands, softmax=choice)
    assert done.codes == [codes[choice]]
    found, wanted = done.function(*operands), function(*operands)
    rough = 2e-2 if wanted.dtype != torch.float32 else 1e-5
    torch.testing.assert_close(found, wanted, atol=rough, rtol=rough, equal_nan=True)


@pytest.mark.parametrize("function", ALIKE)
def test_a_row_of_both_is_eagers(function, choice):
    fused = "fused_sinks" if "sinks" in function.__name__ else "fused"
    check(function, (*sides(), first_half()), choice, {"sdpa": fused, "unified": "unified"})


def test_a_fill_alone_takes_scores_away_that_are_more_than_its_last_bit(choice):
    """Mutants: -1e9 is added as itself, wherever torch's attention is called."""

    def function(q, k, v, bias):
        return (q @ k.mT + bias).masked_fill(torch.ones(K) > 0, WEAK).softmax(-1) @ v

    operands = (*sides(times=200.0), torch.randn(B, 1, Q, K))
    check(function, operands, choice, {"sdpa": "fused", "unified": "unified"})


def test_a_row_of_a_fill_alone_is_even_where_another_row_is_of_both(choice):
    """Mutant: the fill stays a number that scores are not lost in for all rows, if for one."""

    def function(q, k, v, first):
        s = q @ k.mT + torch.where(first & ~first_row(), WEAK, 0.0)
        return s.masked_fill(~first | first_row(), WEAK).softmax(-1) @ v

    q, k, v = sides()
    q[:, :, :1] *= 200
    check(function, (q, k, v, first_half()), choice, {"sdpa": "fused", "unified": "unified"})


def wide_fill_beside_a_wide_mask(q, k, v, first):
    """The least number of float32 is less than that of bfloat16."""
    s = (q @ k.mT).float() + torch.where(first, MIN, 0.0)
    return s.masked_fill(~first, MIN).softmax(-1).to(v.dtype) @ v


def fill_beside_a_mask_of_as_few_bits(q, k, v, first):
    s = q @ k.mT + torch.where(first, WEAK, 0.0).to(q.dtype)
    return s.masked_fill(~first, WEAK).softmax(-1) @ v


@pytest.mark.parametrize(
    "function", [wide_fill_beside_a_wide_mask, fill_beside_a_mask_of_as_few_bits]
)
def test_of_bfloat16(function, choice):
    operands = (*sides(torch.bfloat16), first_half())
    check(function, operands, choice, {"sdpa": "fused", "unified": "unified"})


@pytest.mark.parametrize("function", [wide_fill_beside_a_wide_mask])
def test_of_float16(function, choice):
    operands = (*sides(torch.float16), first_half())
    check(function, operands, choice, {"sdpa": "!weak_fill", "unified": "unified"})


def test_slices_of_float16_take_numbers_beyond_its_range(choice):
    """Mutant: the number is read as it is spelled, and the row is a mean."""

    def function(q, k, v):
        s = q @ k.mT
        s[..., :2, :] = -1e38
        return s.softmax(-1) @ v

    operands = sides(torch.float16)
    assert function(*operands)[..., 0, 0].isnan().all()
    check(function, operands, choice, {"sdpa": "fused", "unified": "unified"})


def shifted_between(q, k, v, first):
    """Nothing is left of the fill in a row of it, and the second mask tells."""
    s = (q @ k.mT).masked_fill(first | (torch.arange(Q)[:, None] == 0), MIN)
    return (s - s.amax(-1, keepdim=True) - 0.1 * torch.arange(K)).softmax(-1) @ v


def shifted_twice(q, k, v, first):
    """The mask stands behind the first shift, and before the second."""
    s = q @ k.mT
    s = (s - s.amax(-1, keepdim=True)).masked_fill(first | first_row(), MIN)
    return (s - s.amax(-1, keepdim=True) - 0.1 * torch.arange(K)).softmax(-1) @ v


def added_in_another_dtype_less_logarithm(q, k, v, first):
    s = q @ k.mT + torch.where(first | first_row(), -1e38, 0.0).double().float()
    return (s - s.logsumexp(-1, keepdim=True)).exp() @ v


def raised_less_logarithm(q, k, v, first):
    """Of a row of the least number the logarithm of the sum is no other number."""
    s = torch.where(first | (torch.arange(Q)[:, None] == 0), -1e38, 0.0) + q @ k.mT
    s = s.clamp(MIN, -MIN)
    return (s - s.logsumexp(-1, keepdim=True)).exp() @ v


def halves_less_logarithm(q, k, v, first):
    """The least number of float16 is one that no other dtype loses a score in."""
    s = q @ k.mT
    s[..., :2, :] = torch.finfo(torch.float16).min
    return (s - s.logsumexp(-1, keepdim=True)).exp() @ v


def raised_halves(q, k, v, first):
    least = torch.finfo(torch.float16).min
    s = (q @ k.mT).half() + torch.where(first, least, 0.0).half()
    return s.clamp(min=least).softmax(-1).to(v.dtype) @ v


REFUSED = {
    shifted_between: "dead_rows",
    shifted_twice: "dead_rows",
    added_in_another_dtype_less_logarithm: "dead_rows",
    raised_less_logarithm: "dead_rows",
    halves_less_logarithm: "dead_rows",
    raised_halves: "half_mask",
}


@pytest.mark.parametrize("function", REFUSED)
def test_refused(function, choice):
    """Each gave other numbers than eager."""
    dtype = torch.float16 if "halves" in function.__name__ else torch.float32
    given = (*sides(dtype), first_half())
    assert rewrite(function, *given, softmax=choice).codes == [f"!{REFUSED[function]}"]


def test_a_shift_before_masks_and_between_what_hides_nothing_is_read(choice):
    def function(q, k, v, kept):
        s = q @ k.mT + 0.1 * torch.arange(K)
        return (s - s.amax(-1, keepdim=True)).masked_fill(~kept, -INF).softmax(-1) @ v

    operands = (*sides(), first_half())
    check(function, operands, choice, {"sdpa": "fused", "unified": "unified"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_before_a_function_are_no_mask(dtype, monkeypatch):
    """They hide nothing. Mutant: all that is added before a function is taken for a mask."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)

    def function(q, k, v):
        s = q @ k.mT + (0.1 * torch.arange(K)).to(dtype)
        s = torch.exp(5 * torch.tanh(s / 5))
        return s / s.sum(-1, keepdim=True) @ v

    check(function, sides(dtype), "unified", {"unified": "unified"})


@pytest.mark.parametrize("fill", [True, False], ids=["booleans", "numbers"])
def test_a_sink_of_minus_infinity_leaves_a_row_without_keys_nothing(fill, choice):
    """It is NaN, of that head alone. Mutants: zeros; NaN of all heads."""

    def function(q, k, v, kept, sinks):
        s = q @ k.mT
        s = s.masked_fill(~kept, -INF) if fill else s + torch.where(kept, 0.0, -INF)
        column = sinks.reshape(1, -1, 1, 1).expand(B, H, Q, 1)
        return torch.cat([s, column], -1).softmax(-1)[..., :-1] @ v

    kept = first_half()
    kept[:, :, 2] = False
    operands = (*sides(), kept, torch.tensor([-INF, 0.5, -INF, MIN]))
    wanted = function(*operands)
    assert wanted[:, ::2, 2].isnan().all()
    assert not wanted[:, 1::2].isnan().any()
    with torch.no_grad():
        check(function, operands, choice, {"sdpa": "fused_sinks", "unified": "unified"})


@pytest.mark.parametrize(("rows", "after"), [(K, 0), (Q, 2)], ids=["causal", "band"])
def test_a_band_behind_a_function_of_masked_scores_hides_nothing(rows, after, choice):
    """Keys of the band are hidden by a lower number, and what it leaves out counts.

    Mutants: it is told as causal; it is told as a band.
    """

    def function(q, k, v, first):
        s = torch.clamp(q @ k.mT + torch.where(first, MIN, 0.0), max=9.0)
        beyond = torch.arange(K) > torch.arange(rows)[:, None] + after
        return (s + torch.where(beyond, WEAK, 0.0)).softmax(-1) @ v

    q, k, v = sides()
    operands = (k.flip(2) if rows == K else q, k, v, first_half()[:, :, :1])
    check(function, operands, choice, {"sdpa": "!score_function", "unified": "unified"})
