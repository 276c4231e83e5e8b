"""A mask that a graph is given says how much of a cache is read, on processors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from overlapc.runtime.attention import library
from tests.attention.rewriting import rewrite

MIN = torch.finfo(torch.float32).min
BATCH, HEADS, KEYS, DIM = 2, 4, 4096, 64
"""A cache of 16 MiB."""


def operands(rows: int, held: int) -> list[torch.Tensor]:
    """Keys and values beyond ``held`` are NaN, which a weight of zero would not hide."""
    torch.manual_seed(0)
    shapes = [(BATCH, 2 * HEADS, rows, DIM), *[(BATCH, HEADS, KEYS, DIM)] * 2]
    made = [torch.randn(shape) for shape in shapes]
    for side in made[1:]:
        side[:, :, held:] = torch.nan
    return made


def attend(q, k, v, mask):
    k, v = (side.repeat_interleave(2, 1) for side in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def mask_of(rows: int, held: int) -> torch.Tensor:
    kept = torch.arange(KEYS) <= torch.arange(rows)[:, None] + held - rows
    return kept.expand(BATCH, 1, rows, KEYS).contiguous()


def added_of(rows: int, held: int, fill: float) -> torch.Tensor:
    """As eager attention of transformers has it."""
    return torch.where(mask_of(rows, held), 0.0, fill)


def error(function, rows: int, held: int, mask: torch.Tensor) -> float:
    inputs = operands(rows, held)
    clean = [side.nan_to_num(0.0).double() for side in inputs]
    wanted = attend(*clean, mask if mask.dtype == torch.bool else mask.double())
    return (function(*inputs, mask).double() - wanted).abs().max().item()


@pytest.mark.parametrize("rows", [1, 3])
def test_keys_beyond_the_last_that_is_kept_are_not_read(rows, monkeypatch):
    """Fails where ``cut_by_mask`` gives its operands as they are."""
    with torch.no_grad():
        done = rewrite(attend, *operands(rows, 100), mask_of(rows, 100))
        assert done.codes == ["valid_keys"]
        for held in (100, 7):
            assert error(done.function, rows, held, mask_of(rows, held)) < 1e-5
        padded = mask_of(rows, 100)
        padded[1] = False
        assert error(done.function, rows, 100, padded) < 1e-5, "a sequence of no key is zeros"
        assert len(done.after) == 1, "no length compiles another graph"
        monkeypatch.setattr(library, "cut_by_mask", lambda *given: given)
        assert not error(done.function, rows, 100, mask_of(rows, 100)) < 1e-5


@pytest.mark.parametrize(("rows", "fill"), [(1, MIN), (3, -math.inf)])
def test_so_it_is_of_numbers_that_are_added(rows, fill, monkeypatch):
    """Mutants: all numbers keep their key; only minus infinity takes it away."""
    with torch.no_grad():
        done = rewrite(attend, *operands(rows, 100), added_of(rows, 100, fill))
        assert done.codes == ["valid_keys"]
        for held in (100, 7):
            assert error(done.function, rows, held, added_of(rows, held, fill)) < 1e-5
        assert len(done.after) == 1, "no length compiles another graph"
        monkeypatch.setattr(library, "cut_by_mask", lambda *given: given)
        assert not error(done.function, rows, 100, added_of(rows, 100, fill)) < 1e-5


def test_a_row_of_finite_numbers_alone_is_the_mean_of_its_values():
    """Of those that no minus infinity leaves out. Fails where such a row is cut as others are."""
    with torch.no_grad():
        given = operands(2, KEYS), added_of(2, 100, MIN)
        done = rewrite(attend, *given[0], given[1])
        assert done.codes == ["valid_keys"]
        mask = given[1].clone()
        mask[1, :, 0] = MIN
        assert error(done.function, 2, KEYS, mask) < 1e-5
        mask[1, :, 0, 2000:] = -math.inf
        assert error(done.function, 2, 2000, mask) < 1e-5
        mask[0, :, 0, KEYS - 1] = torch.nan
        assert done.function(*operands(2, KEYS), mask)[0, :, 0].isnan().all(), "no mask"


def test_where_no_row_keeps_a_key_all_is_zeros():
    with torch.no_grad():
        done = rewrite(attend, *operands(1, KEYS), mask_of(1, 5))
        nothing = torch.zeros(BATCH, 1, 1, KEYS, dtype=torch.bool)
        assert not done.function(*operands(1, KEYS), nothing).any()


@pytest.mark.parametrize("way", [torch.sub, torch.Tensor.sub_], ids=["sub", "sub_"])
def test_whole_numbers_beside_products_may_hide_keys(way):
    """Gradients of a row that has a large one of each key. Mutant: whole numbers are places."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 24, 16)
    hidden = torch.where(torch.rand(2, 1, 24, 24) > 0.5, 2**31 - 5, 0).to(torch.int32)
    hidden[:, :, 3] = 2**31 - 5

    def function(q, k, v):
        apart = torch.cat([q.detach() @ k.detach().mT, torch.ones(2, 2, 24, 0)], -1)
        return (q @ k.mT + way(apart, hidden)).softmax(-1) @ v

    leaves = [side.clone().requires_grad_() for side in (q, k, v)]
    done = rewrite(function, *leaves)
    assert done.codes == ["fused_if_kept"]
    taken = [
        torch.autograd.grad(f(*leaves).square().sum(), leaves) for f in (done.function, function)
    ]
    for found, wanted in zip(*taken, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
