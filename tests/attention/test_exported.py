"""Models that ``torch.export`` wrote down: it asserts what tensors are, and spells in ATen."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from tests.attention.catalogue import square
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF, G, H, K


class Attention(nn.Module):
    """As transformers spells it: a softmax in float32, and a cast back."""

    def forward(self, q, k, v):
        later = torch.ones(K, K, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(later, -INF)
        weights = F.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
        return F.dropout(weights, 0.1, training=self.training) @ v


class Cast(Attention):
    """In a region of autocast, masked by what is made before it: a body of its own, which a call
    is given the mask."""

    def forward(self, q, k, v):
        later = torch.full((K, K), -INF).triu(1)
        with torch.autocast("cpu", torch.bfloat16):
            return (q @ k.transpose(-1, -2) / 4 + later).softmax(-1) @ v


class Read(Attention):
    """Whose weights somebody reads."""

    def forward(self, q, k, v):
        weights = (q @ k.transpose(-1, -2)).softmax(-1, dtype=torch.float32)
        return weights.to(q.dtype) @ v, weights.to(q.dtype).sum()


class Broadcast(Attention):
    """Whose weights are spread over batches of values."""

    def forward(self, q, k, v):
        return (q[:1] @ k[:1].transpose(-1, -2)).softmax(-1).expand(2, -1, -1, -1) @ v


def exported(module, operands, *, is_decomposed=False):
    program = torch.export.export(module.eval(), operands)
    return (program.run_decompositions() if is_decomposed else program).module()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_decomposed", [False, True])
def test_what_is_asserted_of_weights_does_not_read_them(dtype, is_decomposed):
    """Mutants: an assertion is a reader; it stays, and with it the softmax that it reads."""
    torch.manual_seed(0)
    operands = tuple(t.to(dtype) for t in square())
    module = exported(Attention(), operands, is_decomposed=is_decomposed)
    asserted = [n for n in module.graph.nodes if "_assert_tensor_metadata" in str(n.target)]
    assert asserted
    done = rewrite(module, *operands)
    assert done.codes == ["fused"]
    (text,) = done.after
    assert "softmax" not in text
    assert "_assert_tensor_metadata" not in text
    wanted = Attention().eval()(*(t.double() for t in operands))
    error = (done.function(*operands).double() - wanted).abs().max()
    assert error <= (1e-6 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("is_decomposed", [False, True])
def test_a_region_of_autocast_is_no_checkpoint(is_decomposed):
    """Mutants: each body of an inference is a checkpoint's; of a body that is not the first thing
    that its call is given nothing is known."""
    torch.manual_seed(0)
    operands = square()
    module = exported(Cast(), operands, is_decomposed=is_decomposed)
    assert is_decomposed != any("autocast" in str(n.target) for n in module.graph.nodes)
    done = rewrite(module, *operands)
    assert done.codes == ["fused"]
    assert done.calls("softmax") == 0
    assert any("is_causal=True" in text for text in done.after)
    wanted, found = Cast()(*operands), done.function(*operands)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.02)


class Called(nn.Module):
    """Torch's own attention."""

    def __init__(self, **named) -> None:
        super().__init__()
        self.named = named

    def forward(self, q, k, v, mask=None):
        return F.scaled_dot_product_attention(q, k, v, mask, **self.named)


def kept_rows():
    """But for one row, which keeps no key."""
    kept = torch.rand(K, K) > 0.4
    kept[3] = False
    return kept


DECOMPOSED = {
    "plain": ({}, None),
    "causal, scaled": ({"is_causal": True, "scale": 0.3}, None),
    "grouped": ({"enable_gqa": True}, None),
    "kept": ({}, kept_rows),
    "added": ({}, lambda: torch.where(kept_rows(), torch.randn(K, K), -INF)),
}


@pytest.mark.parametrize("is_exported", [False, True])
@pytest.mark.parametrize("name", DECOMPOSED)
def test_what_torch_decomposes_its_attention_to_is_found(name, is_exported):
    """It asks scores for rows that keep no key, and makes their weights zeros. Repeated heads are
    taken once. Mutants: not behind a copy, a view of batch and heads, or a number."""
    torch.manual_seed(0)
    (named, mask), operands = DECOMPOSED[name], square()
    if "enable_gqa" in named:
        operands = (operands[0], *(side[:, :G] for side in operands[1:]))
    if mask is not None:
        operands = (*operands, mask())
    if is_exported:
        module = exported(Called(**named), operands, is_decomposed=True)
    else:
        module = make_fx(Called(**named), core_aten_decompositions())(*operands)
    assert any(".eq." in str(node.target) for node in module.graph.nodes)
    with torch.no_grad():
        done = rewrite(module, *operands)
    assert done.codes == ["fused"]
    assert (f"{H}/{G}x" in done.sites[0].shape) is ("enable_gqa" in named)
    assert done.calls("aten._softmax.default") == 0
    assert done.after[0].count("aten.eq") == 0
    wide = [t.double() if t.is_floating_point() else t for t in operands]
    found, wanted = done.function(*operands), Called(**named)(*wide)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)


def test_what_make_fx_traced_is_found():
    """Mutant: _unsafe_view, which products are regrouped by there, is no view."""
    torch.manual_seed(0)
    operands = square()
    module = make_fx(Attention().eval())(*operands)
    assert any("_unsafe_view" in str(node.target) for node in module.graph.nodes)
    done = rewrite(module, *operands)
    assert done.codes == ["fused"]
    wanted = Attention().eval()(*(t.double() for t in operands))
    assert (done.function(*operands) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("is_decomposed", [False, True])
@pytest.mark.parametrize(
    ("kind", "code"), [(Read, "!weights_read"), (Broadcast, "!weights_changed")]
)
def test_who_reads_more_than_what_they_are_keeps_them(kind, code, is_decomposed):
    """Mutants: whatever asserts nothing is passed over too; any expansion keeps rows."""
    operands = square()
    done = rewrite(exported(kind(), operands, is_decomposed=is_decomposed), *operands)
    assert done.codes == [code]
    assert done.after == done.before
