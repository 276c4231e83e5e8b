"""Of meta tensors a report says what it says of real ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import overlapc
from overlapc.graphs.attention import layouts, problems
from tests.attention.catalogue import filled, functional, in_checkpoint
from tests.attention.repeated_heads import grouped_queries, repeat_kv


def operands(rows: int, keys: int, heads: int = 4):
    shapes = [(1, 4, rows, 64), (1, heads, keys, 64), (1, heads, keys, 64)]
    return [torch.randn(shape) for shape in shapes]


def called(q, k, v, mask):
    k, v = (repeat_kv(t, 2) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def given_cache(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


CASES = {
    "large": (functional, [*operands(512, 512)], "auto", ["fused"]),
    "small": (functional, [*operands(1, 512)], "auto", ["too_small"]),
    "grouped": (grouped_queries, [*operands(8, 16, 2), torch.ones(1, 1, 8, 16)], "sdpa",
                ["fused"]),
    "called": (called, [*operands(8, 16, 2), torch.randn(1, 1, 8, 16)], "sdpa", ["fused_groups"]),
    "masked": (filled, [*operands(8, 16), torch.rand(1, 1, 8, 16) > 0.5], "sdpa", ["fused"]),
    "cache": (given_cache, [*operands(1, 8192), torch.rand(1, 1, 1, 8192) > 0], "auto",
              ["valid_keys"]),
    "no kernel": (functional, [*operands(8, 16)], "unified", ["no_own_kernel"]),
    "checkpointed": (in_checkpoint, [*operands(8, 16)], "sdpa", ["checkpointed"]),
}  # fmt: skip


def said(function, choice, inputs):
    with torch.no_grad():
        sites = overlapc.explain(function, {"softmax": choice})(*inputs).sites
    return [(s.decision, s.code, s.reason, s.shape, s.where) for s in sites]


@pytest.mark.parametrize("name", CASES)
def test_the_report_of_meta_tensors_is_that_of_real_ones(name):
    """Mutants: it is decided on for the meta device, or heads are taken once as if on a GPU."""
    function, inputs, choice, codes = CASES[name]
    real = said(function, choice, inputs)
    assert [code for _, code, *_ in real] == codes
    assert said(function, choice, [one.to("meta") for one in inputs]) == real


def test_the_accelerator_of_the_machine_is_planned_for(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(layouts, "planned_device", lambda device: "cuda")
    monkeypatch.setattr(problems, "planned_on", lambda device: cuda)
    monkeypatch.setattr(problems, "architecture", lambda device: "sm_90" if device == cuda else "")
    monkeypatch.setattr(problems, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(problems, "decode_for", lambda *_, **__: None)
    inputs = [one.to("meta") for one in operands(512, 512)]
    (site,) = said(functional, "sdpa", inputs)
    assert site[1] == "fused"
    (site,) = said(filled, "sdpa", [*inputs, torch.ones(1, 1, 512, 512, device="meta") > 0])
    assert site[1] == "dead_rows"
