"""In the body of a checkpoint a mask is what the graph that calls it made it."""

from __future__ import annotations

import pytest
import torch
from torch._higher_order_ops.wrap import wrap_with_autocast
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

import overlapc
from overlapc import dynamo
from overlapc.graphs.attention import problems
from tests.attention.catalogue import square
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF


def masked(q, k, v, mask):
    return (q @ k.mT + mask).softmax(-1) @ v


def later(q):
    return torch.full((q.shape[-2], q.shape[-2]), -INF).triu(1)


def causal(q, k, v):
    mask = later(q)
    for _ in range(2):
        q = checkpoint(masked, q, k, v, mask, use_reentrant=False)
    return q


def nested(q, k, v):
    mask = later(q)

    def outer(q, k, v, mask):
        return checkpoint(masked, q, k, v, mask, use_reentrant=False)

    return checkpoint(outer, q, k, v, mask, use_reentrant=False)


def written(q, k, v):
    """The mask is written before the body reads it: there a row keeps no key."""
    mask = later(q)
    mask[3] = torch.finfo(torch.float32).min
    return checkpoint(masked, q, k, v, mask, use_reentrant=False)


def written_inside(q, k, v):
    def body(q, k, v, mask):
        mask = mask.clone()
        mask[3] = torch.finfo(torch.float32).min
        return masked(q, k, v, mask)

    return checkpoint(body, q, k, v, later(q), use_reentrant=False)


def of_an_input(q, k, v):
    return checkpoint(masked, q, k, v, later(q) + q[0, 0, 0, 0].detach(), use_reentrant=False)


CODES = {
    causal: ["fused"] * 2,
    nested: ["fused"],
    written: ["fused_if_kept"],
    written_inside: ["fused_if_kept"],
    of_an_input: ["fused_if_kept"],
}


def results(function, operands):
    wanted = [operand.detach().clone().requires_grad_() for operand in operands]
    result = function(*wanted)
    result.square().sum().backward()
    return [result, *(operand.grad for operand in wanted)]


@pytest.mark.parametrize("function", CODES, ids=lambda function: function.__name__)
def test_a_mask_that_is_made_outside_is_known(function):
    """Mutants: a write between is not seen; what a body of a body is given is not followed."""
    torch.manual_seed(0)
    operands = [operand.requires_grad_() for operand in square()]
    done = rewrite(function, *operands)
    assert done.codes == CODES[function]
    wide = results(function, [operand.double() for operand in operands])
    for found, wanted in zip(results(done.function, operands), wide, strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_kernel_of_our_own_skips_what_it_hides(monkeypatch):
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    operands = [operand.requires_grad_() for operand in square()]
    done = rewrite(causal, *operands, softmax="unified")
    own = [
        line for part in done.after for line in part.splitlines() if "overlapc.attention" in line
    ]
    assert len(own) == 2
    assert all(", [], None" in line and " after=0 " in line for line in own)  # no mask is loaded


def test_a_fault_there_leaves_bodies_as_they_were(monkeypatch, caplog):
    def fails(graph):
        raise RuntimeError("a fault")

    monkeypatch.setattr(dynamo, "outer_of_bodies", fails)
    operands = [operand.requires_grad_() for operand in square()]
    assert rewrite(causal, *operands).codes == ["fused_if_kept"] * 2
    assert "a fault of overlapc" in caplog.text


def test_a_region_of_autocast_stands_in_the_checkpoint_around_it():
    """Where no gradient is computed it stays. Mutant: a body in a body is no checkpoint's."""

    def body(q, k, v, mask):
        return wrap_with_autocast("cpu", torch.bfloat16, True, False, masked, q, k, v, mask)

    def function(q, k, v):
        return checkpoint(body, q, k, v, later(q), use_reentrant=False)

    with torch.no_grad():
        done = rewrite(function, *square())
    assert done.codes == ["!checkpointed"]
    assert "without the checkpoint" in done.sites[0].reason
    assert done.after == done.before


class Gated(torch.autograd.Function):
    """Its backward is an attention over gradients, under a mask that was saved."""

    @staticmethod
    def forward(ctx, mask, zeros):
        ctx.save_for_backward(mask)
        return 2 * mask + zeros

    @staticmethod
    def backward(ctx, *gradients):
        (mask,), (given,) = ctx.saved_tensors, gradients
        return masked(given, given, given, mask), None


def test_a_backward_has_other_inputs_than_its_forward_however_many():
    """The mask is no constant. Mutant: of a call's bodies the last is given all behind it."""

    def function(mask):
        return Gated.apply(mask, torch.zeros(2, 2, 24, 24)).sin()

    torch.manual_seed(0)
    mask = torch.randn(2, 2, 24, 24, requires_grad=True)
    done = rewrite(function, mask)
    assert done.codes == ["fused"]
    taken = [results(one, [mask]) for one in (done.function, function)]
    for found, wanted in zip(*taken, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


class OfModule(torch.nn.Module):
    """``nn.MultiheadAttention`` of the queries alone, by parameters that save for backward."""

    def __init__(self):
        super().__init__()
        self.own = torch.nn.MultiheadAttention(8, 1, batch_first=True)

    def forward(self, q, k, v):
        return self.own(q[0], q[0], q[0], need_weights=False)[0]


@pytest.mark.parametrize("function", [causal, OfModule()], ids=["spelled", "module"])
def test_what_a_compilation_computes_is_saved_for_no_backward(function):
    """A checkpoint, or who offloads, around the first call saves what it computes and no more.

    Mutant: hooks on saved tensors see those of passes, and a checkpoint counts more in its
    forward than in its recomputation.
    """
    saved = []

    def keep(tensor):
        saved.append(tensor)
        return tensor.detach()

    operands = [operand.requires_grad_() for operand in square()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        done = rewrite(function, *operands)
    assert done.codes
    assert saved
    assert not any(isinstance(tensor, FakeTensor) for tensor in saved)


def test_equal_layers_behind_checkpoints_are_sites_of_their_own():
    """Their bodies have one text. Mutant: and one name, under which a report kept the last."""
    operands = [operand.requires_grad_() for operand in square()]
    options = {"softmax": "sdpa"}
    explained = overlapc.explain(causal, options)(*operands)
    torch._dynamo.reset()
    torch.compile(causal, backend="overlapc", options=options)(*operands)
    ids = [site.id for site in explained.sites]
    assert len(set(ids)) == 2
    assert set(ids) <= {site.id for site in overlapc.report().sites}
