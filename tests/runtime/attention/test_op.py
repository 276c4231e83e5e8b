"""What torch is promised of the ops of attention: shapes, strides, and which have gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.errors import KernelError
from overlapc.runtime.attention import gradients, paged
from overlapc.runtime.attention import op as attention
from overlapc.runtime.attention.masks import Added, Input, program_of

SPEC = AttentionSpec("float32", 8, 8, groups=2, scale=0.3)
OP = torch.ops.overlapc.attention.default
BACKWARD = torch.ops.overlapc.attention_backward.default
assert gradients.BACKWARD  # which registers the other op

LAYOUTS = {
    "dense": lambda x: x,
    "rows before heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "of one sequence": lambda x: x[:1].expand_as(x),
    "of one column": lambda x: x[..., :1].expand_as(x),
}


def operands(batch=2, rows=5, keys=7):
    torch.manual_seed(0)
    q = torch.randn(batch, 4, rows, 8)
    return q, torch.randn(batch, 2, keys, 8), torch.randn(batch, 2, keys, 8)


def call(spec, sides, inputs=(), lengths=None):
    return (*sides, list(inputs), lengths, None, None, str(spec), "a site of its op")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "sizes", [{}, {"rows": 1}, {"batch": 0}, {"rows": 0}, {"keys": 0}], ids=str
)
@pytest.mark.parametrize("lse", [True, False])
def test_results_lie_as_was_said(layout, sizes, lse):
    spec = replace(SPEC, lse=lse, lengths=True)
    sides = map(LAYOUTS[layout], operands(**sizes))
    batch = sizes.get("batch", 2)
    for lengths in (torch.tensor([3], dtype=torch.int32), torch.full((batch,), 4).int()):
        torch.library.opcheck(
            OP,
            call(spec, sides := [*sides], (), lengths),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_one_length_is_of_however_many_sequences(batch):
    """The mutant that gives kernels, which refuse it, one length of no sequence."""
    found = attention.lengths_of_each(torch.tensor([5], dtype=torch.int32), batch)
    assert found.tolist() == [5] * batch
    assert found.stride(0) == 0 or batch < 2  # no launch of its own copies it


def test_any_of_its_operands_may_be_trained():
    spec = replace(SPEC, program=program_of([Added(Input("matrix", "float32"))]))
    for trained in ("q", "k", "v", "m", "qm"):
        named = dict(zip("qkvm", (*operands(), torch.randn(2, 1, 5, 7)), strict=True))
        for name in trained:
            named[name].requires_grad_()
        *sides, mask = named.values()
        torch.library.opcheck(OP, call(spec, sides, [mask]))


def test_a_gradient_of_its_gradients_is_an_error():
    """Torch would take them for constants. The mutant that does not refuse."""
    sides = [side.requires_grad_() for side in operands()]
    out, _ = OP(*call(SPEC, sides))
    (once,) = torch.autograd.grad(out.square().sum(), sides[0], create_graph=True)
    with pytest.raises(KernelError, match="gradients of an attention have none"):
        (once.square().sum() + out.sum()).backward()


def test_a_gradient_of_attention_over_pages_is_an_error():
    query = torch.randn(1, 2, 1, 16, requires_grad=True)
    pages = torch.randn(2, 1, 16, 16)
    table, lengths = torch.tensor([[1]]).int(), torch.tensor([9]).int()
    found = paged.paged_attention(query, pages, pages, table, lengths)
    with pytest.raises(KernelError, match="over pages has no gradient"):
        found.sum().backward()


def test_rows_are_counted_beyond_32_bits(monkeypatch):
    monkeypatch.setattr(attention, "_redone", {})
    count = attention.counter_of("a site", torch.device("cpu"))
    count += 2**31
    attention.calls_of("a site")["prefill"] += 1
    assert attention.redone_of("a site") == 2**31


def test_where_torch_computed_every_call_no_rows_are_counted(monkeypatch):
    """Mutant: a counter that was made is told of."""
    monkeypatch.setattr(attention, "_redone", {})
    site = "a site of torch's"
    attention.counter_of(site, torch.device("cpu"))
    attention.calls_of(site)[attention.BY_TORCH] += 1
    assert attention.redone_of(site) is None
    attention.calls_of(site)["prefill"] += 1
    assert attention.redone_of(site) == 0
