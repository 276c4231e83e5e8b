"""Decoding on a real device: lengths that move under a captured graph, pages, and the choice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import overlapc
from overlapc.planning.attention.table import AttentionShape
from overlapc.runtime.attention.paged import paged_attention
from overlapc.tuning.attention import calibrate_attentions, describe
from tests.runtime.attention.paged_cases import Case, error, operands

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

KEYS, GROUPS = 8192, 4


def static_cache(q, k, v, offset):
    """As transformers compiles it."""
    own = torch.arange(q.shape[2], device=q.device) + offset
    mask = torch.arange(KEYS, device=q.device)[None, None, None] <= own[None, None, :, None]
    batch, heads, _, dim = k.shape
    shape = (batch, heads, GROUPS, KEYS, dim)
    k, v = (side[:, :, None].expand(shape).reshape(batch, -1, KEYS, dim) for side in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).contiguous()


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("choice", ["unified", "online", "auto"])
def test_a_static_cache_is_read_to_a_length_that_moves(choice, rows, mode):
    torch._dynamo.reset()
    q = torch.randn(2, 8 * GROUPS, rows, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, 8, KEYS, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    inductor = {"triton.cudagraphs": mode is not None}
    run = torch.compile(
        static_cache, backend="overlapc", options={"softmax": choice, "inductor": inductor}
    )
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for offset in (5, 64, 2000, 2001, KEYS - rows):
            # What is not yet valid is NaN, which a weight of zero would not hide.
            valid = [side.clone() for side in (k, v)]
            for side in valid:
                side[:, :, offset + rows :] = torch.nan
            found = run(q, *valid, torch.tensor(offset, device="cuda")).double()
            wanted = static_cache(q.double(), k.double(), v.double(), offset)
            assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    site = overlapc.report().sites[-1]
    assert site.decision == "rewritten"
    what = "decode" if rows == 1 else "few rows"
    assert all(what in way for way in site.calls), site.calls


@pytest.mark.parametrize("rows", [1, 3])
def test_pages(rows, monkeypatch):
    case = Case(rows=rows, dtype="bfloat16")
    monkeypatch.setattr("tests.runtime.attention.paged_cases.paged_attention", on_device)
    assert error(case, operands(case)) < case.allowed


def on_device(**given):
    moved = {k: x.cuda() if isinstance(x, torch.Tensor) else x for k, x in given.items()}
    return paged_attention(**moved).cpu()


def test_both_are_timed():
    """A trial of a shape compares ours with torch's, by a CUDA graph of each."""
    shape = AttentionShape(1, 32, 4, 1, 128, 128, "bfloat16", "length")
    table = calibrate_attentions([shape], keys=(2048,), seconds=2, save=False)
    (trial,) = table.entries[0].trials
    assert trial.median > 0, describe(table.entries[0])
