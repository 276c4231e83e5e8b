"""Sums and repeated collectives that may not become one."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F

from tests.passes.merging import COLUMNS, GROUPS, RANKS, ROWS, all_reduce, gather, scatter


def other_reader(a, b, c):
    y = all_reduce(a)
    return y + all_reduce(b), y.relu()


def other_reader_of_a_view(a, b, c):
    y = all_reduce(a).view(-1)
    return y + all_reduce(b).view(-1), y.relu()


def returned_too(a, b, c):
    y = all_reduce(a)
    return y, y + all_reduce(b)


def other_group(a, b, c):
    return all_reduce(a) + all_reduce(b, group=GROUPS["other"])


def maxima(a, b, c):
    return all_reduce(a, "max") + all_reduce(b, "max")


def other_reduction(a, b, c):
    return all_reduce(a) + all_reduce(b, "avg")


def other_dtype(a, b, c):
    return all_reduce(a) + all_reduce(b.float())


def broadcast(a, b, c):
    return all_reduce(a) + all_reduce(b[0])


def one_needs_the_other(a, b, c):
    y = all_reduce(a)
    return y + all_reduce(y @ c.t() @ c)


def other_parts(a, b, c):
    return scatter(a)[:1] + scatter(b)[1:2]


def other_parts_by_views(a, b, c):
    return scatter(a).view(2, -1)[:, :COLUMNS] + scatter(b)[:2]


def padding_alone(a, b, c):
    """The last rank is sent padding alone, and its graph reads nothing of it."""
    pad = (0, 0, 0, ROWS // RANKS)
    return scatter(F.pad(a[: ROWS // RANKS], pad)) + scatter(F.pad(b[: ROWS // RANKS], pad))


def parts_of_two(a, b, c):
    left, right = torch.cat([a[: ROWS // 2], c[: ROWS // 2]]), torch.cat([b[: ROWS // 2], c[:4]])
    return scatter(left) + scatter(right)


def padded_unlike(a, b, c):
    a = a[:-1]
    return gather(F.pad(a, (0, 0, 0, 1))).relu(), gather(F.pad(a, (0, 0, 1, 0))).tanh()


def a_cast_between(a, b, c):
    return all_reduce(a.float()).double() + all_reduce(b.float()).double()


def an_average_of_integers(a, b, c):
    return all_reduce((a * 9).long(), "avg") + all_reduce((b * 9).long(), "avg")


def booleans(a, b, c):
    return all_reduce(a > 0) + all_reduce(b > 0)


def only_one_is_reduced(a, b, c):
    return all_reduce(a) + b


def another_collective(a, b, c):
    return scatter(a) + all_reduce(b[: ROWS // 2])


def gathers_on_two_groups(a, b, c):
    other = functional.all_gather_tensor(a, 0, GROUPS["other"])
    return gather(a) @ c.t(), other.relu()


def two_reductions_of_one_tensor(a, b, c):
    return all_reduce(a).relu(), all_reduce(a, "max").tanh()


def turned_otherwise(a, b, c):
    a, b = a[:COLUMNS], b[:COLUMNS]
    return all_reduce(a).t() + all_reduce(b)


def scaled_in_half(a, b, c):
    return all_reduce(a.half()) * 100 + all_reduce(b.half())


def multiples_that_are_not_whole(a, b, c):
    a, b = (a * 100).long(), (b * 100).long()
    return all_reduce(a) * 3 + all_reduce(b) * 2


def after_a_number(a, b, c):
    return (all_reduce(a) + 1) + all_reduce(b)


def cut_to_integers(a, b, c):
    return all_reduce(a * 9).int() + all_reduce(b * 9).int()


def turned_beside_a_bias(a, b, c):
    return (all_reduce(a) + a[0]).t() + all_reduce(b).t()


def float8_beside(a, b, c):
    narrow = a.to(torch.float8_e4m3fn).bfloat16() + b.bfloat16()
    return narrow, all_reduce(a).relu(), all_reduce(b).sin()


def scaled_without_end(a, b, c):
    return all_reduce(a) * float("inf") + all_reduce(b) * float("inf")


def taken_from_a_number(a, b, c):
    return (1 - all_reduce(a)) + all_reduce(b)


def widened_by_the_sum(a, b, c):
    return all_reduce(a.bfloat16()).float() + all_reduce(b.bfloat16()).float()


def exchanged(a, b, c):
    split = [ROWS // RANKS] * RANKS
    sent = [functional.all_to_all_single(x, split, split, dist.group.WORLD) for x in (a, b)]
    return sent[0] + sent[1]


def gathers_along_other_dimensions(a, b, c):
    return gather(a[:4], 1) + gather(b[:4]).view(4, -1)


def gathers_in_another_order(a, b, c):
    left, right = gather(a).split(ROWS), gather(b).split(ROWS)
    return torch.cat(left, 1) + torch.cat(right[::-1], 1)


def gathers_of_which_parts_are_read(a, b, c):
    left, right = gather(a).split(ROWS), gather(b).split(ROWS)
    return torch.cat(left, 1) + torch.cat(right, 1), left[0].relu()


def gathers_of_other_widths(a, b, c):
    return gather(a[:, :2].contiguous(), 1)[:, :3] + gather(b[:, :3].contiguous(), 1)[:, :3]


def scattered_and_regrouped(a, b, c):
    left, right = scatter(a).split(2), scatter(b).split(2)
    return torch.cat(left, 1) + torch.cat(right, 1)


def scaled_by_other_tensors(a, b, c):
    return all_reduce(a) * c[0] + all_reduce(b) * c[1]


def one_is_scaled_by_a_tensor(a, b, c):
    return all_reduce(a) * c[0] + all_reduce(b)


def one_is_times_and_one_over(a, b, c):
    return all_reduce(a) * c[0] + all_reduce(b) / c[0]


def broadcast_by_a_scale(a, b, c):
    return all_reduce(a[:1]) * c + all_reduce(b[:1]) * c


def scaled_to_another_dtype(a, b, c):
    return all_reduce(a.float()) * c + all_reduce(b.float()) * c


def scaled_by_each_other(a, b, c):
    y, z = all_reduce(a), all_reduce(b)
    return y * z + all_reduce(c)


def a_number_over_each(a, b, c):
    return c / all_reduce(a) + c / all_reduce(b)


REFUSED = {
    gathers_along_other_dimensions: "other parts of their results",
    gathers_in_another_order: "",
    gathers_of_which_parts_are_read: "",
    gathers_of_other_widths: "they send other shapes",
    scattered_and_regrouped: "its part is put together otherwise",
    scaled_by_other_tensors: "they are scaled by other tensors",
    one_is_scaled_by_a_tensor: "only one of them by one",
    one_is_times_and_one_over: "they are scaled by other tensors",
    broadcast_by_a_scale: "scaled by a tensor, it is of another shape or dtype",
    scaled_to_another_dtype: "scaled by a tensor, it is of another shape or dtype",
    scaled_by_each_other: "",
    a_number_over_each: "",
    other_reader: "it is read by aten.relu.default, too",
    other_reader_of_a_view: "it is read by aten.relu.default, too",
    returned_too: "it is returned, too",
    other_group: "they are of other groups",
    maxima: "max of a sum is no sum of max",
    other_reduction: "one is a sum and the other an average",
    other_dtype: "it is float32, and added up as float64",
    broadcast: "it is broadcast from [6] to [8, 6]",
    one_needs_the_other: "too",
    other_parts: "",
    other_parts_by_views: "other parts of their results",
    padding_alone: "a rank may be sent padding alone",
    parts_of_two: "a rank may be sent padding alone",
    padded_unlike: "",
    a_cast_between: "it is cast from float32 to float64 before",
    an_average_of_integers: "every average of whole numbers is rounded",
    booleans: "a sum of booleans is none",
    only_one_is_reduced: "",
    another_collective: "they are other collectives",
    gathers_on_two_groups: "",
    two_reductions_of_one_tensor: "",
    turned_otherwise: "other parts of their results",
    scaled_in_half: "they are scaled by 100 and 1",
    multiples_that_are_not_whole: "they are scaled by 3 and 2",
    after_a_number: "1 is added to it first",
    taken_from_a_number: "it is added to 1, or subtracted from it, first",
    cut_to_integers: "to int32 before",
    turned_beside_a_bias: "is broadcast, and their sum read so",
    float8_beside: "",
    scaled_without_end: "they are scaled by inf and inf",
    widened_by_the_sum: "it is cast from bfloat16 to float32 before",
    exchanged: "parts that are equal here need not be on other ranks",
}
"""What the report says of why not; nothing where no two collectives are added up."""
