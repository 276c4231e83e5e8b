"""Programs that drawing found wrong, as short as they could be made: each is refused, or right."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from overlapc.graphs.attention import problems
from tests.attention import running_programs  # noqa: F401 - its ops write to what they are given
from tests.attention.catalogue import plain, square
from tests.attention.rewriting import rewrite
from tests.attention.sizes import INF, MIN
from tests.attention.test_catalogue import assert_alike


def of_one_column(q, k, v):
    """Einsum repeats the one column of keys for all of queries."""
    return torch.einsum("bhqd,bhkd->bhqk", q, k[..., :1]).softmax(-1) @ v


def of_one_value(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).softmax(-1), v[:, :, :1])


def whole_weights(q, k, v):
    return (q @ k.mT).softmax(-1).to(torch.int32).to(q.dtype) @ v


def whole_scores(q, k, v):
    return (q @ k.mT).to(torch.int32).to(q.dtype).softmax(-1) @ v


def weights_of_eight_bits(q, k, v):
    return (q @ k.mT).softmax(-1).to(torch.float8_e4m3fn).to(q.dtype) @ v


def scores_of_eight_bits(q, k, v):
    return (q @ k.mT).to(torch.float8_e4m3fn).to(q.dtype).softmax(-1) @ v


def less_logarithm(q, k, v):
    """Of a row of -3.4e38 the logarithm of its sum is no other number than the mask."""
    s = (q @ k.mT).masked_fill(torch.arange(q.shape[-2])[:, None] < 2, MIN)
    return (s - s.logsumexp(-1, keepdim=True)).exp() @ v


def less_logarithm_of_some(q, k, v):
    """As above, beside a row of minus infinity."""
    rows = torch.arange(q.shape[-2])[:, None]
    s = (q @ k.mT).masked_fill(rows < 2, MIN).masked_fill(rows == 0, -INF)
    return (s - s.logsumexp(-1, keepdim=True)).exp() @ v


def over_batches(q, k, v):
    """Rows are a batch, and what is added has fewer dimensions."""
    q, k, v = q[0], k[0], v[0]
    return (q @ k.mT + torch.eye(q.shape[-2], k.shape[-2])).softmax(0) @ v


def written_out(q, k, v):
    """What is read is what ``out=`` names."""
    memory = torch.empty_like(k)
    twice = torch.mul(k, 2, out=memory)
    s = q @ twice.mT
    memory.zero_()
    return s.softmax(-1) @ v + twice.sum()


def values_written_out(q, k, v):
    """Rewritten: what is read is there yet."""
    memory = torch.empty_like(v)
    own = torch.mul(v, 2, out=memory)
    w = (q @ k.mT).softmax(-1)
    memory.fill_(0.5)
    return w @ own


def through_einsum(q, k, v):
    """With one operand it is a view."""
    s = q @ v.mT
    torch.einsum("...ij->...ji", v).mul_(0.5)
    return s.softmax(-1) @ v


def by_the_name_of_a_method(q, k, v):
    s = q @ k.mT
    k.__imul__(0.5)
    return s.softmax(-1) @ v


def by_an_op_of_others(q, k, v):
    s = q @ k.mT
    torch.ops.fuzzing.halve(k)
    return s.softmax(-1) @ v


def by_an_op_that_takes_lists(q, k, v):
    k = k.clone()
    s = q @ k.mT
    torch.ops.fuzzing.halve_all([k, v.clone()])
    return s.softmax(-1) @ v


def through_an_unsafe_split(q, k, v):
    """Its schema marks nothing, and its parts are views."""
    s = q @ k.mT
    torch.unsafe_split(k, 8, 2)[0].mul_(0.5)
    return s.softmax(-1) @ v


def by_a_function_at_its_place(q, k, v):
    """``inplace`` is no keyword here."""
    s = q @ k.mT
    F.silu(k, True)
    return s.softmax(-1) @ v


def by_norms_of_an_embedding(q, k, v):
    """Rows that it takes are made shorter where they lie."""
    s = q @ k[0, 0].mT
    taken = F.embedding(torch.arange(3), k[0, 0], max_norm=0.5)
    return s.softmax(-1) @ v + taken.sum()


def by_averages_that_run(q, k, v):
    s = q @ k.mT
    F.batch_norm(q.flatten(0, 2), k[0, 0, 0], torch.ones(q.shape[-1]), training=True)
    return s.softmax(-1) @ v


def scores_by_an_op_of_others(q, k, v):
    s = q @ k.mT
    torch.ops.fuzzing.halve(s)
    return s.softmax(-1) @ v


def written_before_exp(q, k, v):
    s = q @ k.mT
    s[..., :1].add_(1.0)
    e = s.exp()
    total = e.sum(-1, keepdim=True)
    e.mul_(2)
    return (e / total) @ v


def weights_beside_what_is_written(q, k, v):
    """`type_as` gives no view of what it gives the dtype of."""
    v = v.clone()
    w = (q @ k.mT).softmax(-1).type_as(v)
    torch.clamp(v, max=0.2, out=v)
    return w @ v


def written_to_a_part(q, k, v):
    """Scores stand in a wider tensor, and a part of that is weighed."""
    memory = torch.zeros(*q.shape[:-1], k.shape[-2] + 1, dtype=q.dtype)
    memory[..., 1:] = q @ k.mT
    return memory[..., 1:].softmax(-1) @ v


def repeated_by_a_mask(q, k, v):
    s = q[0, 0] @ k[0, 0].mT + torch.ones(2, 1, *q.shape[-2:-1], k.shape[-2]).cumsum(0)
    return s.softmax(-1) @ v


def of_one_batch_more(q, k, v):
    """Rewritten: values of a batch of one beside scores of none."""
    return (q[0, 0] @ k[0, 0].mT).softmax(-1) @ v[0, :1]


def mapped(q, k, v):
    return torch.vmap(lambda q, k, v: (q @ k.mT).softmax(-1) @ v)(q, k, v)


def causal_less_scores(q, k, v):
    """Rewritten: torch's causal kernel would scale minus infinity by a negative number."""
    later = torch.full((q.shape[-2], k.shape[-2]), -INF).triu(1)
    return (later - q @ k.mT).softmax(-1) @ v


def causal_without_scores(q, k, v):
    s = (q @ k.mT * 0.0).masked_fill(torch.ones(q.shape[-2], k.shape[-2]).triu(1) > 0, -INF)
    return s.softmax(-1) @ v


def aten_softmax(q, k, v):
    return torch.ops.aten._softmax(q @ k.mT, -1, False) @ v


REFUSED = {
    through_an_unsafe_split: "mutated_operand", by_a_function_at_its_place: "mutated_operand",
    by_norms_of_an_embedding: "mutated_operand", by_averages_that_run: "mutated_operand",
    of_one_column: "product", of_one_value: "product", whole_weights: "weights_changed",
    weights_of_eight_bits: "weights_changed", scores_of_eight_bits: "score_function",
    whole_scores: "product", less_logarithm: "dead_rows", less_logarithm_of_some: "dead_rows",
    written_out: "mutated_operand",
    through_einsum: "mutated_operand", by_the_name_of_a_method: "mutated_operand",
    by_an_op_of_others: "mutated_operand", by_an_op_that_takes_lists: "mutated_operand",
    scores_by_an_op_of_others: "product", written_before_exp: "unread_softmax",
    written_to_a_part: "product", repeated_by_a_mask: "product",
    mapped: "transformed", over_batches: "softmax_dim",
}  # fmt: skip


def check(function, operands, code, softmax="sdpa"):
    done = rewrite(function, *(t.clone() for t in operands), softmax=softmax)
    assert done.codes == [code]
    found = done.function(*(t.clone() for t in operands))
    wanted = function(*(t.clone() for t in operands)).double()
    assert_alike(found, wanted, torch.float32, times=5)


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_refused(function):
    torch.manual_seed(0)
    check(function, plain(), f"!{REFUSED[function]}")


@pytest.mark.parametrize(
    "function",
    [of_one_batch_more, aten_softmax, values_written_out, weights_beside_what_is_written],
)
def test_rewritten(function):
    torch.manual_seed(0)
    check(function, plain(), "fused")


@pytest.mark.parametrize("softmax", ["sdpa", "unified"])
@pytest.mark.parametrize("function", [causal_less_scores, causal_without_scores])
def test_causal_with_no_positive_scale(function, softmax, monkeypatch):
    """Mutant: the scale is given as it is, and rows are NaN."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    torch.manual_seed(0)
    check(function, square(), {"sdpa": "fused"}.get(softmax, softmax), softmax)


def test_inputs_may_be_views_of_one_memory():
    """Mutant: each input has memory of its own."""

    def function(whole, part, q):
        s = q @ part.mT
        whole.mul_(2)
        return s.softmax(-1) @ part

    def inputs():
        torch.manual_seed(0)
        whole = torch.randn(2, 3, 20, 8)
        return whole, whole[:, :, :17], torch.randn(2, 3, 5, 8)

    done = rewrite(function, *inputs())
    assert done.codes == ["!mutated_operand"]
    torch.testing.assert_close(done.function(*inputs()), function(*inputs()))


def where_it_overflows(scores, dropped):
    return torch.where(dropped, -1e30, scores)


def where_a_tensor_overflows(scores, dropped):
    return torch.where(dropped, torch.tensor(-1e30), scores)


@pytest.mark.parametrize("softmax", ["sdpa", "unified"])
@pytest.mark.parametrize("fill", [where_it_overflows, where_a_tensor_overflows])
def test_a_number_beyond_the_dtype_of_scores_is_infinite(fill, softmax, monkeypatch):
    """A row that keeps no key is NaN. Mutant: the number is read as it is spelled, and the row is
    a mean."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)

    def function(q, k, v):
        dropped = torch.arange(q.shape[-2])[:, None] < torch.arange(k.shape[-2]) + 3
        return fill(q @ k.mT, dropped).softmax(-1) @ v

    torch.manual_seed(0)
    half = [side.half() for side in square()]
    done = rewrite(function, *half, softmax=softmax)
    assert done.codes == [{"sdpa": "fused"}.get(softmax, softmax)]
    found, wanted = done.function(*half), function(*half)
    assert 0 < wanted.isnan().sum() < wanted.numel()
    torch.testing.assert_close(found, wanted, atol=4e-3, rtol=1e-2, equal_nan=True)


def product_is_not(q, k, v):
    with torch.no_grad():
        s = q @ k.mT
    return s.softmax(-1) @ v


def softmax_is_not(q, k, v):
    s = q @ k.mT
    with torch.no_grad():
        w = s.softmax(-1)
    return w @ v


def view_is_not(q, k, v):
    with torch.no_grad():
        across = k.mT
    return (q @ across).softmax(-1) @ v


def only_the_mask_is_not(q, k, v):
    with torch.no_grad():
        mask = torch.full((q.shape[-2], k.shape[-2]), -INF).triu(1)
    return (q @ k.mT + mask).softmax(-1) @ v


@pytest.mark.parametrize("softmax", ["sdpa", "unified"])
@pytest.mark.parametrize(
    "function", [product_is_not, softmax_is_not, view_is_not, only_the_mask_is_not]
)
def test_gradients_that_are_recorded_of_a_part(function, softmax, monkeypatch):
    """Mutant: modes are not looked at, and gradients go where eager has none."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    torch.manual_seed(0)
    leaves = [t.requires_grad_() for t in square()]
    done = rewrite(function, *leaves, softmax=softmax)
    is_taken = function is only_the_mask_is_not
    assert done.codes == [{"sdpa": "fused"}.get(softmax, softmax) if is_taken else "!gradient_mode"]
    results = [one(*leaves) for one in (done.function, function)]
    weights = torch.randn_like(results[0])
    found, wanted = (torch.autograd.grad(r, leaves, weights, allow_unused=True) for r in results)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or math.isclose(float((one - other).abs().max()), 0, abs_tol=1e-5)


def test_without_gradients_modes_do_not_matter():
    assert rewrite(product_is_not, *plain()).codes == ["fused"]
