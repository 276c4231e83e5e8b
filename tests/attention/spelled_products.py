"""Products of queries, keys, weights and values in the spellings that torch has beside matmul."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.attention.catalogue import Spelling, keep, plain, square, two
from tests.attention.sizes import D, H, K, Q


def of_elements(q, k, v):
    w = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1).softmax(-1)
    return torch.sum(w.unsqueeze(-1) * v.unsqueeze(-3), -2)


def scores_of_elements(q, k, v, kept):
    s = torch.sum(k[:, :, None] * q[:, :, :, None], dim=[-1]) * 0.3
    return s.masked_fill(~kept, -torch.inf).softmax(-1) @ v


def values_of_elements(q, k, v):
    return (v[:, :, None] * (q @ k.mT).softmax(-1)[..., None]).sum(dim=3)


def elements_of_one_row(q, k, v):
    """Its one row is a dimension of one in both factors, but only queries have it."""
    w = (q[:, :, :1].unsqueeze(-2) * k.unsqueeze(-3)).sum(-1).softmax(-1)
    return (w.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)


def elements_kept(q, k, v):
    s = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1, keepdim=True)
    return s.squeeze(-1).softmax(-1) @ v


def elements_read(q, k, v):
    products = q.unsqueeze(-2) * k.unsqueeze(-3)
    return products.sum(-1).softmax(-1) @ v + products.mean()


def elements_written(q, k, v):
    products = q.unsqueeze(-2) * k.unsqueeze(-3)
    products.mul_(0.5)
    return products.sum(-1).softmax(-1) @ v


def elements_multiplied_in_place(q, k, v):
    """Keys are their products with the one row since, and are read once more."""
    k = k + 0
    products = k.unsqueeze(-3).mul_(q[:, :, :1].unsqueeze(-2))
    return products.sum(-1).softmax(-1) @ k


def values_multiplied_in_place(q, k, v):
    v = v + 0
    w = (q[:, :, :1] @ k.mT).softmax(-1)
    return v.unsqueeze(-3).mul_(w.unsqueeze(-1)).sum(-2), v


def elements_of_a_view_that_changes(q, k, v):
    k = k + 0
    view = k.unsqueeze(-3)
    k.mul_(2)
    return (q.unsqueeze(-2) * view).sum(-1).softmax(-1) @ v


def elements_of_three(q, k, v):
    s = (q.unsqueeze(-2) * k.unsqueeze(-3) * torch.arange(D)).sum(-1)
    return s.softmax(-1) @ v


def elements_over_rows(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return (w.unsqueeze(-1) * v.unsqueeze(-3)).sum(-3)


def inner(q, k, v):
    return torch.inner(torch.inner(q, k).softmax(-1), v.t())


def inner_of_batches(q, k, v):
    """All queries meet the keys of one head."""
    return torch.inner(q, k[0, 0]).softmax(-1) @ v[0, 0]


def inner_of_all_batches(q, k, v):
    return torch.inner(q, k).flatten(3).softmax(-1) @ v.flatten(0, 2)


def tensordots(q, k, v):
    w = torch.tensordot(q, k, dims=([1], [1])).softmax(-1)
    return torch.tensordot(w, v, dims=1)


def tensordots_of_lists(q, k, v):
    w = torch.tensordot(q, k, [[-1], [-1]]).softmax(-1)
    return torch.tensordot(w, v, ([1], [0]))


def tensordots_over_two(q, k, v):
    w = torch.tensordot(q, k, ([1, 2], [1, 2])).softmax(-1)
    return torch.tensordot(w, v, 1)


def linears(q, k, v):
    return F.linear(F.linear(q, k).softmax(-1), v.T)


def linear_of_keys(q, k, v):
    """As one head of keys for all."""
    return F.linear(q, k[0, 0] * 0.5).softmax(-1) @ v


def linear_with_a_mask(q, k, v):
    return F.linear(q, k, torch.linspace(-1, 1, K, dtype=q.dtype)).softmax(-1) @ v


def layer(q, k, v):
    return F.softmax(F.linear(q, torch.nn.Parameter(k[0, 0])), -1) @ v


def addmms(q, k, v):
    s = torch.addmm(torch.linspace(-1, 1, K, dtype=q.dtype), q, k.t(), beta=0.5, alpha=0.3)
    return torch.addmm(q, s.softmax(-1), v, beta=0)


def addmm_of_a_residual(q, k, v):
    return torch.addmm(q, (q @ k.t()).softmax(-1), v)


def addbmms(q, k, v):
    s = torch.addbmm(torch.zeros(Q, K, dtype=q.dtype), q[0], k[0].mT)
    return s.softmax(-1) @ v


def chain(q, k, v):
    return torch.chain_matmul(torch.linalg.multi_dot([q, k.t()]).softmax(-1), v)


def einsum_without_result(q, k, v):
    """The labels that stand once, in the order of the alphabet."""
    w = torch.einsum("bc,ac", q, k).softmax(0)
    return torch.einsum("ab,ad", w, v)


def einsum_of_batches_without_result(q, k, v):
    return torch.einsum("...ac, ...bc", q, k).softmax(-1) @ v


def einsum_of_three(q, k, v):
    w = torch.einsum("bhqd,bhkd,h->bhqk", q, k, torch.linspace(0.1, 1, H, dtype=q.dtype)).softmax(
        -1
    )
    return w @ v


def einsum_of_values_and_weights(q, k, v):
    w = (q @ k.mT).softmax(-1)
    return torch.einsum("bhqk,bhkd,hde->bqe", w, v, torch.ones(H, D, D, dtype=q.dtype))


def keys_of_one_head(q, k, v):
    """A product of four dimensions and two, and of three and four."""
    return (q @ k[0, 0].t()).softmax(-1) @ v[0]


def batch_of_keys(q, k, v):
    return torch.matmul(torch.matmul(q[0], k.mT).softmax(-1), v)


def vector(q, k, v):
    return torch.mv(k[0, 0], q[0, 0, 0]).softmax(-1) @ v[0, 0]


def rows_of_dots(q, k, v):
    q, k, v = q[0, 0], k[0, 0], v[0, 0]
    s = torch.stack([torch.stack([torch.vdot(a, b) for b in k[:2]]) for a in q[:2]])
    return s.softmax(-1) @ v[:2]


PRODUCTS = {
    "of_elements": Spelling(of_elements),
    "elements_of_a_view_that_changes": Spelling(elements_of_a_view_that_changes),
    "scores_of_elements": Spelling(scores_of_elements, more=keep),
    "values_of_elements": Spelling(values_of_elements),
    "elements_of_one_row": Spelling(elements_of_one_row),
    "inner": Spelling(inner, operands=two),
    "inner_of_batches": Spelling(inner_of_batches),
    "tensordots": Spelling(tensordots, operands=two),
    "tensordots_of_lists": Spelling(tensordots_of_lists, operands=two),
    "linears": Spelling(linears, operands=two),
    "linear_of_keys": Spelling(linear_of_keys),
    "linear_with_a_mask": Spelling(linear_with_a_mask, operands=two),
    "addmms": Spelling(addmms, operands=two),
    "einsum_without_result": Spelling(einsum_without_result, operands=two),
    "einsum_of_batches_without_result": Spelling(einsum_of_batches_without_result),
    "keys_of_one_head": Spelling(keys_of_one_head),
    "batch_of_keys": Spelling(batch_of_keys),
}
UNREAD = {
    "elements_kept": Spelling(elements_kept, "!score_function"),
    "elements_read": Spelling(elements_read, "!scores_read"),
    "elements_written": Spelling(elements_written, "!product"),
    "elements_multiplied_in_place": Spelling(elements_multiplied_in_place, "!product"),
    "values_multiplied_in_place": Spelling(values_multiplied_in_place, "!product"),
    "elements_of_three": Spelling(elements_of_three, "!product"),
    "elements_over_rows": Spelling(elements_over_rows, "!product", operands=square),
    "inner_of_all_batches": Spelling(inner_of_all_batches, "!score_function"),
    "tensordots_over_two": Spelling(
        tensordots_over_two, "!product", operands=lambda: (*three_of_one_head(),)
    ),
    "layer": Spelling(layer, ""),
    "addmm_of_a_residual": Spelling(addmm_of_a_residual, "!weights_changed", operands=two),
    "addbmms": Spelling(addbmms, "!product"),
    "chain": Spelling(chain, "!product", operands=two),
    "einsum_of_three": Spelling(einsum_of_three, "!product"),
    "einsum_of_values_and_weights": Spelling(einsum_of_values_and_weights, "!product"),
    "vector": Spelling(vector, "!product"),
    "rows_of_dots": Spelling(rows_of_dots, "!product"),
}


def three_of_one_head():
    q, k, v = plain()
    return q[0].transpose(0, 1), k[0].transpose(0, 1), v[0, 0]
