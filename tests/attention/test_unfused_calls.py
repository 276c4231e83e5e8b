"""Calls of torch's attention on processors that torch has no fused kernel for."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from tests.attention.rewriting import rewrite

HEADS, SIZE, DIM = 2, 256, 16
FLASH = 1
"""What ``torch._fused_sdp_choice`` says where a fused kernel is taken."""
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def sides(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes]


def alike(batch: int = 1, heads: int = HEADS, size: int = SIZE) -> list[torch.Tensor]:
    return sides(*[(batch, heads, size, DIM)] * 3)


def call_of(seed: int) -> tuple[list[torch.Tensor], dict[str, bool]]:
    """Operands, a mask perhaps, and flags of a call that torch takes, of all that decides how."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    batch, heads, rows, keys = draw.choice([1, 2]), 4, draw.choice([20, 24]), 24
    is_grouped = draw.random() < 0.2
    shared = draw.choice([4, 4, 2 if is_grouped else 4, 1])
    of_keys = (draw.choice([batch, batch, batch, 1]), shared, keys)
    shapes = [(batch, heads, rows, DIM), (*of_keys, DIM), (*of_keys, draw.choice([DIM, DIM, 8]))]
    kind = draw.choice(["whole", "whole", "whole", "merged", "five"])
    if kind != "whole":
        shapes, is_grouped = [(batch, heads, *shape[2:]) for shape in shapes], False
    given = [torch.randn(shape) for shape in shapes]
    if kind == "merged":
        given = [side.flatten(0, 1) for side in given]
    elif kind == "five":
        given = [side[None] for side in given]
    if draw.random() < 0.2:
        index = draw.randrange(3)
        given[index] = given[index].mT.contiguous().mT
    sizes = [(rows, keys), (1, keys), (rows, 1)]
    if kind == "whole":
        sizes += [(heads, rows, keys), (1, rows, keys), (batch, heads, rows, keys), (1, 1, 1, keys)]
    if draw.random() < 0.4:
        mask = torch.randn(draw.choice(sizes))
        return [*given, mask > -1 if draw.random() < 0.5 else mask], {"enable_gqa": is_grouped}
    return given, {"is_causal": draw.random() < 0.5, "enable_gqa": is_grouped}


@pytest.mark.parametrize("first", range(0, 80, 8))
def test_torch_itself_says_the_same(first):
    """Mutants of ``why_unfused``: without each of its conditions."""
    for seed in range(first, first + 8):
        given, flags = call_of(seed)
        q, k, v, *mask = given
        said = torch._fused_sdp_choice(q, k, v, *mask, **flags)

        def attend(q, k, v, mask=None, flags=flags):
            return F.scaled_dot_product_attention(q, k, v, mask, **flags)

        (code,) = rewrite(attend, *given, softmax="auto").codes
        assert (code == "=fused_already") == (said == FLASH), (seed, code, [*map(_shape, given)])


def _shape(side: torch.Tensor) -> tuple[int, ...]:
    return tuple(side.shape)


def test_a_mask_that_is_trained_is_read_where_no_gradient_is_recorded():
    """Torch takes products there too. Mutant: the mask that is put in requires a gradient."""
    given = [*alike(), torch.randn(SIZE, SIZE).requires_grad_()]
    assert rewrite(attend, *given, softmax="auto").codes == ["=no_fused_kernel"]
    with torch.no_grad():
        assert torch._fused_sdp_choice(*given) != FLASH
        done = rewrite(attend, *given, softmax="auto")
        assert done.codes == ["fused"]
        assert runs_fused(done.function, given)


def runs_fused(function, given) -> bool:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        function(*given)
    return FUSED in {event.key for event in seen.key_averages()}


def attend(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, mask)


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def masks(kind: str) -> torch.Tensor:
    """Of three dimensions; every seventh row keeps no key."""
    torch.manual_seed(1)
    scores = torch.randn(HEADS, SIZE, SIZE)
    dead = (torch.arange(SIZE) % 7 == 0)[:, None]
    if kind == "kept":
        return (scores > 0) & ~dead
    least = -math.inf if kind == "infinite" else torch.finfo(torch.float32).min
    return scores.masked_fill(dead, least)


CASES = {
    "merged": (attend, [side.flatten(0, 1) for side in alike(2)]),
    "merged causal": (causal, [side.flatten(0, 1) for side in alike(2)]),
    "one head": (attend, [side[0, 0] for side in alike()]),
    "five": (attend, [side[None] for side in alike(2)]),
    "shared head": (attend, [alike(2)[0], *(side[:, :1] for side in alike(2)[1:])]),
    "strided": (causal, [side.mT.contiguous().mT for side in alike()]),
    "kept": (attend, [*alike(), masks("kept")]),
    "infinite": (attend, [*alike(), masks("infinite")]),
    "finite": (attend, [*alike(), masks("finite")]),
}


@pytest.mark.parametrize("name", CASES)
def test_torchs_fused_kernel_runs_in_its_place_and_gives_the_same(name):
    """Rows that keep no key too: zeros, or of finite numbers the mean, as of torch's products.

    Mutants: strided operands are not copied; rows without a key are NaN."""
    function, given = CASES[name]
    with torch.no_grad():
        done = rewrite(function, *given, softmax="auto")
        assert done.codes == ["fused"]
        assert runs_fused(done.function, given)
        found = done.function(*given)
        eager = function(*given)
        wide = (side.double() if side.is_floating_point() else side for side in given)
        wanted = function(*wide)
    assert (found.shape, found.stride()) == (eager.shape, eager.stride())
    torch.testing.assert_close(found, wanted.float(), atol=5e-6, rtol=1e-5)
    dead = (found == 0).all(-1)
    assert torch.equal(dead, (eager == 0).all(-1))
    assert bool(dead.any()) == (name in ("kept", "infinite"))


@pytest.mark.parametrize("rows", [1023, 1024])
def test_values_narrower_than_keys_are_padded(rows):
    given = sides(*[(1, HEADS, rows, columns) for columns in (12, 12, 8)])
    with torch.no_grad():
        done = rewrite(causal, *given, softmax="auto")
        assert done.codes == ["fused_padded" if rows == 1024 else "=no_fused_kernel"]
        assert runs_fused(done.function, given) == (rows == 1024)
        found = done.function(*given)
        wanted = causal(*(side.double() for side in given))
    assert found.stride() == causal(*given).stride()
    torch.testing.assert_close(found, wanted.float(), atol=5e-6, rtol=1e-5)


def test_gradients_follow_the_rules_of_what_is_spelled():
    """Rows without a key have another gradient fused. Mutant: that is not asked of a call."""
    leaves = [side.flatten(0, 1).requires_grad_() for side in alike(2)]
    done = rewrite(attend, *leaves, softmax="auto")
    assert done.codes == ["fused"]
    wide = [side.detach().double().requires_grad_() for side in leaves]
    (slopes,) = sides((2 * HEADS, SIZE, DIM))
    found = torch.autograd.grad(done.function(*leaves), leaves, slopes)
    wanted = torch.autograd.grad(attend(*wide), wide, slopes.double())
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other.float(), atol=1e-5, rtol=1e-5)
    trained = [side.requires_grad_() for side in alike()]
    assert rewrite(attend, *trained, masks("kept"), softmax="auto").codes == ["!dead_rows"]
    narrow = [side.requires_grad_() for side in sides(*[(1, 1, 1024, c) for c in (12, 12, 8)])]
    assert rewrite(causal, *narrow, softmax="auto").codes == ["=no_fused_kernel"]


def test_what_cannot_be_read_stays_and_says_why():
    """Batches that broadcast. Mutant: it is said to be fused."""
    q, k, v = alike(2)
    done = rewrite(attend, q, k[:1], v[:1], softmax="auto")
    assert done.codes == ["=no_fused_kernel"]
    assert done.sites[0].reason == (
        "Torch has no fused kernel for it: its heads or batches are of different numbers. Its "
        "queries and keys have batches or heads that broadcast."
    )
