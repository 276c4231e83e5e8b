"""A mask of a window is no tensor to a kernel of our own: blocks beside it are skipped."""

from __future__ import annotations

import math

import pytest
import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.graphs.attention import problems
from overlapc.graphs.attention.masks.bands import band_of
from overlapc.runtime.attention.program import seen_by
from tests.attention.rewriting import rewrite


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Sites are decided as where generated kernels run; they are run by torch's ops."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


@pytest.mark.parametrize("keys", [1, 6, 9])
@pytest.mark.parametrize("rows", [1, 6])
def test_a_band_is_what_a_kernel_sees_of_it(rows, keys):
    """All bands of some rows and keys, and a hole in each."""
    row, key = torch.arange(rows)[:, None], torch.arange(keys)
    found = 0
    for low in range(-rows, keys):
        for high in range(low, keys):
            kept = (key - row >= low) & (key - row <= high)
            band = band_of(~kept, rows, keys)
            if band is None:
                assert kept.all() or not kept.any(-1).all() or low > 0 or high < 0
                continue
            found += 1
            spec = AttentionSpec(
                "float32", 16, 16, before=band.before, after=band.after, align=band.align
            )
            seen = seen_by(spec, rows, keys, None, kept.device)
            assert torch.equal(seen.expand(rows, keys), kept)
            for r, k in kept.nonzero().tolist():
                holed = kept.clone()
                holed[r, k] = False
                other = band_of(~holed, rows, keys)
                if other is not None:
                    spec = AttentionSpec(
                        "float32", 16, 16, before=other.before, after=other.after,
                        align=other.align,
                    )  # fmt: skip
                    seen = seen_by(spec, rows, keys, None, kept.device)
                    assert torch.equal(seen.expand(rows, keys), holed)
    assert found > 0 or keys == 1


def test_heads_that_differ_are_no_band():
    later = torch.ones(2, 5, 5, dtype=torch.bool).triu(1)
    later[1] = later[1].triu(2)
    assert band_of(later[:1], 5, 5) is not None
    assert band_of(later, 5, 5) is None


def window(q, k, v):
    rows, keys = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    off = (keys > rows) | (keys <= rows - 4)
    return (q @ k.mT).masked_fill(off, -math.inf).softmax(-1) @ v


def window_added(q, k, v):
    """As transformers has it: the least number, added."""
    rows, keys = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    off = (keys > rows) | (keys <= rows - 4)
    mask = torch.where(off, torch.finfo(q.dtype).min, 0.0)
    return (q @ k.mT + mask).softmax(-1) @ v


def last_rows(q, k, v):
    """Causal, of the last rows of a longer sequence, by torch's call."""
    rows, keys = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    kept = keys <= rows + k.shape[-2] - q.shape[-2]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept)


CASES = {
    "window": (window, 70, 70, "before=3 after=0 align=top_left"),
    "window, added": (window_added, 70, 70, "before=3 after=0 align=top_left"),
    "last rows": (last_rows, 70, 90, "before=none after=20 align=top_left"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_spec_says_it_and_no_tensor(name):
    function, rows, keys, said = CASES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, n, 16) for n in (rows, keys, keys)]
    with torch.no_grad():
        wanted = function(*inputs)
        done = rewrite(function, *inputs, softmax="unified")
        torch.testing.assert_close(done.function(*inputs), wanted)
    assert f"{said} lengths=0 program= " in done.after[-1]


def test_torchs_is_given_the_mask_all_the_same():
    inputs = [torch.randn(2, 3, 70, 16) for _ in range(3)]
    with torch.no_grad():
        done = rewrite(window, *inputs, softmax="sdpa")
        torch.testing.assert_close(done.function(*inputs), window(*inputs))
    assert "attn_mask=%" in done.after[-1]
