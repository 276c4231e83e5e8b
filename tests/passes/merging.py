"""Sums and repeated collectives that become one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F

RANKS, ROWS, COLUMNS = 2, 8, 6
GROUPS: dict[str, Any] = {}
"""Groups that tests make before anything is traced."""


def all_reduce(x, how="sum", group=None):
    return functional.all_reduce(x, how, group or dist.group.WORLD)


def scatter(x, how="sum", dim=0):
    return functional.reduce_scatter_tensor(x, how, dim, dist.group.WORLD)


def gather(x, dim=0):
    return functional.all_gather_tensor(x, dim, dist.group.WORLD)


# --- merged: name -> (function, collectives before, after) ---


def two(a, b, c):
    return all_reduce(a) + all_reduce(b)


def three(a, b, c):
    return all_reduce(a) + all_reduce(b) + all_reduce(c)


def three_the_other_way(a, b, c):
    return all_reduce(a) + (all_reduce(b) + all_reduce(c))


def with_a_residual_between(a, b, c):
    return (all_reduce(a) + c).relu() * 0 + (c + all_reduce(a + 1) + b + all_reduce(b))


def through_views(a, b, c):
    left = all_reduce(a).view(2, -1, COLUMNS).unsqueeze(0)
    return left + all_reduce(b).reshape(1, 2, -1, COLUMNS)


def averages(a, b, c):
    return (all_reduce(a, "avg") + all_reduce(b, "avg")).tanh()


def integers(a, b, c):
    a, b = (a * 100).long(), (b * 100).long()
    return all_reduce(a) + all_reduce(b)


def half(a, b, c):
    return all_reduce(a.bfloat16()) + all_reduce(b.bfloat16())


def taken_away_in_half(a, b, c):
    """Nothing is scaled: what is sent is no larger than the results."""
    return all_reduce(a.half()) - all_reduce(b.half())


def scattered(a, b, c):
    return scatter(a) + scatter(b)


def scattered_averages(a, b, c):
    return c[: ROWS // 2] + scatter(a, "avg") + scatter(b, "avg")


def two_sums(a, b, c):
    return all_reduce(a) + all_reduce(b), (all_reduce(c) + all_reduce(a * 2)) @ c.t()


def of_two_reductions(a, b, c):
    return all_reduce(a) + all_reduce(b, "avg") + all_reduce(c) + all_reduce(a * 2, "avg")


def cut(y):
    """What a rank reads whose part is padded: all but the last row."""
    return y[:-1]


def padded(x):
    return F.pad(x[:-1], (0, 0, 0, 1))


def scattered_and_cut(a, b, c):
    return cut(scatter(a)) + cut(scatter(b))


def scattered_along_columns(a, b, c):
    return scatter(a, dim=1) + scatter(b, dim=1)


def padded_and_scattered(a, b, c):
    return scatter(padded(a)) + scatter(padded(b)).view(-1, COLUMNS)


def one_of_them_padded(a, b, c):
    return scatter(padded(a)) + scatter(b)


def padded_once_and_gathered(a, b, c):
    a = a[:-1]
    return gather(F.pad(a, (0, 0, 0, 1))) @ b.t(), gather(F.pad(a, (0, 0, 0, 1))) @ c.t()


def gathered_twice(a, b, c):
    return gather(a) @ b.t(), gather(a) @ c.t()


def gathered_along_columns(a, b, c):
    return gather(a, 1) @ gather(a, 1).t(), gather(a, 1).relu()


def both_returned(a, b, c):
    return gather(a), gather(a)


def a_view_of_both_returned(a, b, c):
    return gather(a).view(-1), gather(a).view(-1, 2)


def reduced_twice(a, b, c):
    return all_reduce(a).relu(), all_reduce(a).tanh()


def the_same_twice_in_a_sum(a, b, c):
    return all_reduce(a) + all_reduce(a)


def scaled_terms_are_not_needed(a, b, c):
    return torch.add(all_reduce(a), all_reduce(b), alpha=1)


def scaled(a, b, c):
    return torch.add(all_reduce(a), all_reduce(b), alpha=2)


def difference(a, b, c):
    return all_reduce(a) - all_reduce(b)


def through_a_transpose(a, b, c):
    return all_reduce(a).t() + all_reduce(b).t()


def gathers_of_two_tensors(a, b, c):
    return gather(a) + gather(b)


def scaled_apart(a, b, c):
    """Sums inside of sums, each with its own scale, and a difference from a residual."""
    return c - 2 * (all_reduce(a) * 3 - (all_reduce(b) / -4 - c)) + -all_reduce(b + 1)


def whole_multiples(a, b, c):
    a, b = (a * 100).long(), (b * 100).long()
    return all_reduce(a) * 6 - torch.sub(c.long(), all_reduce(b), alpha=3)


def by_python(a, b, c):
    return sum(all_reduce(x) for x in (a, b, c))


def views_on_other_sides(a, b, c):
    return all_reduce(a).view(2, -1, COLUMNS) + all_reduce(b.view(2, -1, COLUMNS))


def rounded(a, b, c):
    cast = torch.ops.prims.convert_element_type.default
    left, right = all_reduce(a).t(), all_reduce(b).t()
    return cast(left, torch.bfloat16).contiguous() - cast(right, torch.bfloat16)


def sent_as_a_sum(a, b, c):
    """A sum of sums is a term of another."""
    return all_reduce(all_reduce(a) + all_reduce(b)) + all_reduce(c)


def other_shape(a, b, c):
    return all_reduce(a) + all_reduce(b.view(COLUMNS, ROWS)).view(ROWS, COLUMNS)


def beside_a_bias(a, b, c):
    return (all_reduce(a) + a[0]) + all_reduce(b)


def gathers_along_columns(a, b, c):
    return gather(a, 1) + gather(b, 1) - c[:, :1]


def gathers_by_slices(a, b, c):
    """As a program puts parts side by side that slices cut out."""
    left, right = gather(a), gather(b)
    cut = [(y[:ROWS], y[ROWS:]) for y in (left, right)]
    return torch.cat(cut[0], 1) - torch.cat(cut[1], 1)


def gathers_by_permutation(a, b, c):
    turned = [gather(y).view(RANKS, ROWS, COLUMNS).movedim(0, 1) for y in (a, b)]
    return turned[0].reshape(ROWS, -1) + turned[1].reshape(ROWS, -1)


def three_gathers_scaled_along_columns(a, b, c):
    total = c.sum()
    return total * (gather(a, 1) + 2 * gather(b, 1)) + gather(c, 1) * total


def scaled_by_a_tensor(a, b, c):
    scale = c.mean()
    return all_reduce(a) * scale + scale * all_reduce(b)


def scaled_by_columns(a, b, c):
    scale = c[0]
    return (all_reduce(a) * scale + b) - all_reduce(b) * scale


def over_a_tensor(a, b, c):
    norm = c.abs().sum(1, keepdim=True)[: ROWS // 2]
    return scatter(a) / norm + 3 * (scatter(b) / norm)


def over_what_all_have_counted(a, b, c):
    count = all_reduce(c.sum())
    return all_reduce(a) / count + all_reduce(b) / count


def turned_and_scaled(a, b, c):
    scale = c[:, 0]
    return all_reduce(a).t() * scale + all_reduce(b).t() * scale


def integers_by_a_tensor(a, b, c):
    a, b, c = ((x * 100).long() for x in (a, b, c))
    return all_reduce(a) * c + all_reduce(b) * c


def of_products(a, b, c):
    """A product of two collectives is a term scaled by one of them, where all are."""
    y = all_reduce(c)[0]
    return all_reduce(a) * y + all_reduce(b) * y


MERGED = {
    "gathers_along_columns": (gathers_along_columns, 2, 1),
    "gathers_by_slices": (gathers_by_slices, 2, 1),
    "gathers_by_permutation": (gathers_by_permutation, 2, 1),
    "three_gathers_scaled_along_columns": (three_gathers_scaled_along_columns, 3, 1),
    "scaled_by_a_tensor": (scaled_by_a_tensor, 2, 1),
    "scaled_by_columns": (scaled_by_columns, 2, 1),
    "over_a_tensor": (over_a_tensor, 2, 1),
    "over_what_all_have_counted": (over_what_all_have_counted, 3, 2),
    "turned_and_scaled": (turned_and_scaled, 2, 1),
    "integers_by_a_tensor": (integers_by_a_tensor, 2, 1),
    "of_products": (of_products, 3, 2),
    "beside_a_bias": (beside_a_bias, 2, 1),
    "two": (two, 2, 1),
    "three": (three, 3, 1),
    "three_the_other_way": (three_the_other_way, 3, 1),
    "with_a_residual_between": (with_a_residual_between, 3, 2),
    "through_views": (through_views, 2, 1),
    "averages": (averages, 2, 1),
    "integers": (integers, 2, 1),
    "half": (half, 2, 1),
    "taken_away_in_half": (taken_away_in_half, 2, 1),
    "scattered": (scattered, 2, 1),
    "scattered_averages": (scattered_averages, 2, 1),
    "scattered_and_cut": (scattered_and_cut, 2, 1),
    "scattered_along_columns": (scattered_along_columns, 2, 1),
    "padded_and_scattered": (padded_and_scattered, 2, 1),
    "one_of_them_padded": (one_of_them_padded, 2, 1),
    "padded_once_and_gathered": (padded_once_and_gathered, 2, 1),
    "two_sums": (two_sums, 4, 2),
    "of_two_reductions": (of_two_reductions, 4, 2),
    "gathered_twice": (gathered_twice, 2, 1),
    "gathered_along_columns": (gathered_along_columns, 3, 1),
    "both_returned": (both_returned, 2, 1),
    "a_view_of_both_returned": (a_view_of_both_returned, 2, 1),
    "reduced_twice": (reduced_twice, 2, 1),
    "the_same_twice_in_a_sum": (the_same_twice_in_a_sum, 2, 1),
    "scaled_terms_are_not_needed": (scaled_terms_are_not_needed, 2, 1),
    "other_shape": (other_shape, 2, 1),
    "scaled": (scaled, 2, 1),
    "difference": (difference, 2, 1),
    "through_a_transpose": (through_a_transpose, 2, 1),
    "gathers_of_two_tensors": (gathers_of_two_tensors, 2, 1),
    "scaled_apart": (scaled_apart, 3, 1),
    "whole_multiples": (whole_multiples, 2, 1),
    "by_python": (by_python, 3, 1),
    "views_on_other_sides": (views_on_other_sides, 2, 1),
    "rounded": (rounded, 2, 1),
    "sent_as_a_sum": (sent_as_a_sum, 4, 2),
}


# --- not merged: the graph stays as it was, to the letter ---
