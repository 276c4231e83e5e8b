"""Values of fewer columns than keys (MiMo: 128 and 192), which are padded for torch's kernel."""

from __future__ import annotations

import pytest
import torch

from overlapc.graphs.attention import problems
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF
from tests.attention.test_catalogue import assert_alike, wide

ROWS, HEADS, DIM, VALUE_DIM = 1024, 2, 12, 8


def causal(q, k, v, sinks):
    k, v = (side.repeat_interleave(HEADS // side.shape[1], 1) for side in (k, v))
    s = q @ k.mT * DIM**-0.5
    s = s.masked_fill(torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1), -INF)
    if sinks is None:
        return s.softmax(-1) @ v
    column = sinks.reshape(1, -1, 1, 1).expand(*s.shape[:-1], 1)
    return torch.cat([s, column], -1).softmax(-1)[..., :-1] @ v


@pytest.mark.parametrize(
    ("has_sinks", "key_heads", "code"),
    [(False, 2, "fused_padded"), (False, 1, "fused_padded"), (True, 1, "fused_sinks")],
)
def test_what_is_put_in_by_itself_gives_what_eager_gives(has_sinks, key_heads, code):
    torch.manual_seed(0)
    shapes = [(HEADS, DIM), (key_heads, DIM), (key_heads, VALUE_DIM)]
    sides = [torch.randn(1, ROWS, heads, columns).transpose(1, 2) for heads, columns in shapes]
    given = (*sides, torch.randn(HEADS) if has_sinks else None)
    done = rewrite(causal, *given, softmax="auto")
    assert done.codes == [code]
    found, eager = done.function(*given), causal(*given)
    assert found.shape == eager.shape
    assert found.stride() == eager.stride()
    assert_alike(found, causal(*(x if x is None else wide(x) for x in given)), torch.float32, 2)


def test_gradients_are_of_what_is_spelled(monkeypatch):
    """Mutant: torch's kernel, which takes as many columns of values, is called for them."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)

    def function(q, k, v):
        return (q @ k.mT).softmax(-1) @ v

    torch.manual_seed(0)
    sides = [torch.randn(1, HEADS, 20, columns) for columns in (DIM, DIM, VALUE_DIM)]
    leaves = [side.requires_grad_() for side in sides]
    done = rewrite(function, *leaves, softmax="unified")
    assert done.codes == ["unified"]
    slopes = torch.randn(1, HEADS, 20, VALUE_DIM)
    taken = [torch.autograd.grad(f(*leaves), leaves, slopes) for f in (done.function, function)]
    for found, wanted in zip(*taken, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
