"""Operands that a graph fills slice by slice, as the latent attention of ``transformers`` does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from overlapc.graphs.attention import problems
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF
from tests.attention.test_catalogue import assert_alike


def filled(kv, turned):
    """Keys of two parts in memory of their own, and values, which are a view of another."""
    k, v = torch.split(kv, [8, 8], dim=-1)
    keys = kv.new_empty(*kv.shape[:-1], 12)
    keys[..., :8].copy_(k)
    keys[..., 8:].copy_(turned.expand(-1, kv.shape[1], -1, -1))
    return keys, v


def eager(q, kv, turned):
    keys, v = filled(kv, turned)
    return torch.softmax(q @ keys.mT * 0.3, -1) @ v


def fused(q, kv, turned):
    return F.scaled_dot_product_attention(q, *filled(kv, turned), scale=0.3)


def filled_after_its_view(q, kv, turned):
    keys = torch.zeros(*kv.shape[:-1], 12)
    across = keys.mT
    keys[..., :8] = kv[..., :8]
    keys[..., 8:] = turned
    return torch.softmax(q @ across, -1) @ kv[..., 8:]


def filled_again(q, kv, turned):
    keys, v = filled(kv, turned)
    scores = q @ keys.mT
    keys[..., :3].fill_(7.0)
    return torch.softmax(scores, -1) @ v


def mask_filled(q, kv, turned):
    """What a mask is made of is asked for: what was there first is not what is added."""
    keys, v = filled(kv, turned)
    mask = torch.zeros(q.shape[-2], keys.shape[-2])
    mask[:, 5:].fill_(-INF)
    return torch.softmax(q @ keys.mT + mask, -1) @ v


def inputs():
    return torch.randn(2, 3, 18, 12), torch.randn(2, 3, 20, 16), torch.randn(2, 1, 20, 4)


def written_beside(q, kv, turned):
    """What is written between the products is of the dtype of queries, and not their memory."""
    beside = q.new_zeros(3)
    scores = q[..., :8] @ kv[..., :8].mT
    beside.fill_(2.0)
    return torch.softmax(scores, -1) @ kv[..., 8:] * beside[0]


@pytest.mark.parametrize("function", [eager, filled_after_its_view, written_beside])
def test_it_is_rewritten(function):
    """Mutants: operands that were written to are refused; new memory is that of its example."""
    torch.manual_seed(0)
    operands = inputs()
    done = rewrite(function, *operands)
    assert done.codes == ["fused"]
    wanted = function(*operands).double()
    assert_alike(done.function(*operands), wanted, torch.float32)


def test_torchs_own_attention_gives_way_to_ours(monkeypatch):
    """Also where only what was written is trained."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    torch.manual_seed(0)
    q, kv, turned = inputs()
    turned.requires_grad_()
    done = rewrite(fused, q, kv, turned, softmax="unified")
    assert done.codes == ["unified"]
    results = [function(q, kv, turned) for function in (done.function, fused)]
    assert_alike(results[0], results[1].double(), torch.float32)
    weights = torch.randn_like(results[0])
    found, wanted = (torch.autograd.grad(r, turned, weights)[0] for r in results)
    assert_alike(found, wanted.double(), torch.float32, times=2)


def test_what_is_written_later_is_not_read():
    """Mutant: writes after the read are not looked for."""
    done = rewrite(filled_again, *inputs())
    assert done.codes == ["!mutated_operand"]


def mask_wiped_later(q, k, v, m):
    """Eager keeps no mask for its gradients; one op would."""
    mask = m * 2
    result = torch.softmax(q @ k.mT + mask, -1) @ v
    mask.zero_()
    return result + mask.sum()


def test_a_mask_that_is_written_later_is_not_kept_for_gradients():
    """Mutant: writes after the result are not looked for, and the backward raises."""
    operands = torch.randn(3, 2, 3, 18, 8).requires_grad_().unbind(0)
    mask = torch.randn(18, 18)
    done = rewrite(mask_wiped_later, *operands, mask)
    assert done.codes == ["!mutated_operand"]
    results = [function(*operands, mask) for function in (done.function, mask_wiped_later)]
    weights = torch.randn_like(results[0])
    found, wanted = (torch.autograd.grad(one, operands, weights) for one in results)
    for one, other in zip(found, wanted, strict=True):
        assert_alike(one, other.double(), torch.float32)
    assert rewrite(mask_wiped_later, *(t.detach() for t in operands), mask).codes == ["fused"]


def test_a_mask_that_was_written_to_is_not_known():
    """Mutant: masks are read as operands are, and this one is zero."""
    done = rewrite(mask_filled, *inputs())
    assert done.after == done.before
    assert len(done.codes) == 1
    assert done.codes[0].startswith("!")
