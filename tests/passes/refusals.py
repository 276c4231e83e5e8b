"""What is refused, and why: each leaves its graph textually as it was."""

from __future__ import annotations

import torch
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F

from tests.passes.catalogue import ends
from tests.passes.spelling import (
    BATCH,
    COLUMNS,
    INNER,
    RANKS,
    ROWS,
    Spelling,
    all_gather,
    all_reduce,
    all_to_all,
    group,
    plain_all_gather,
    plain_reduce_scatter,
    reduce_scatter,
    weight,
    x2,
    x3,
)


def reduced_by(op):
    return lambda x, w: all_reduce(F.linear(x, w), op)


def scattered_by(op):
    return lambda x, w: plain_reduce_scatter(F.linear(x, w), op)


def of_an_input(x):
    return all_reduce(x)


def of_pointwise(x):
    return all_reduce(x.relu() * 2)


def dropped_out(x, w):
    return all_reduce(F.dropout(F.linear(x, w), 0.1, training=True))


def softmax_of_rows(x, w):
    return all_reduce(F.linear(x, w).softmax(1))


def turned_residual(x, w, r):
    """The sum is laid out as the result is not."""
    return all_reduce(F.linear(x, w).transpose(0, 1) + r)


def turned_unevenly(x, w):
    """Whole rows are sent, but each is rearranged: of parts that are alike it would be a view."""
    come = all_to_all(x, [ROWS, ROWS // 2], [ROWS // 2, ROWS])
    return F.linear(come.transpose(1, 2).contiguous(), w)


def turned_within_rows(x, w):
    """As many blocks as ranks, each rearranged by itself, but ranks get other rows than these."""
    come = all_to_all(x, [ROWS // 2 - 8, ROWS // 2 + 8], [ROWS // 2 + 8, ROWS // 2 - 8])
    blocks = come.view(2, ROWS // 2, BATCH, INNER).transpose(1, 2)
    return F.linear(blocks.contiguous(), w)


def rows_turned(x, w):
    """Each rank gets as many rows from this one; of the others nothing is known."""
    return F.linear(all_to_all(x).transpose(0, 1), w)


def rows_turned_back(x, w):
    return all_to_all(F.linear(x, w).transpose(0, 1).contiguous())


def heads_to_ranks_flat(x, w):
    """Heads first, and no dimension that is as many as ranks: even parts are numbers only."""
    heads = F.linear(x, w).view(BATCH, ROWS, 2 * RANKS, -1).permute(2, 1, 0, 3)
    return all_to_all(heads.contiguous())


def scattered_after_two_turns(x, w):
    return reduce_scatter(F.linear(x, w).transpose(0, 1).relu(), 1)


def turned_sum(x, w, r):
    return reduce_scatter(F.linear(x, w).transpose(0, 1) + r)


def heads_unevenly(x, w):
    """Three heads of two ranks: a part begins inside of one."""
    heads = F.linear(x, w).view(BATCH * ROWS, 3, -1).permute(1, 0, 2)
    return plain_reduce_scatter(heads.reshape(3 * BATCH * ROWS, -1))


def heads_from_ranks(x, w):
    """After attention over the whole sequence: each rank sends some heads of all columns."""
    heads = all_to_all(x.view(RANKS, BATCH, ROWS // RANKS, INNER)).permute(1, 2, 0, 3)
    return F.linear(heads.reshape(BATCH, -1, RANKS * INNER), w)


def turned_and_trimmed(x, w):
    full = all_gather(x, 0)
    return F.linear(full.transpose(0, 1)[:, :-1], w), full.relu()


def permuted_tokens(x, w, order):
    """Rows that have come are put in the order of their experts, which the data say."""
    return all_to_all(x)[order] @ w.t()


def combined_tokens(x, w, order):
    return all_to_all((x @ w.t())[order])


def flipped(x, w):
    return all_reduce(F.linear(x, w).flip(1))


def cumulative(x, w):
    return all_reduce(F.linear(x, w).cumsum(1))


def uneven_batches(x, w):
    """How many batches go to each rank varies, and each is several rows."""
    count = x.shape[0]
    return all_to_all(F.linear(x, w), [count - 1, 1], [count - 1, 1])


def grouped_blocks(x, w, ends):
    """Experts of as many rows, which a grouped GEMM does not know of."""
    come = all_to_all(x.view(RANKS, 4, -1, INNER)).transpose(0, 1)
    return torch._grouped_mm(come.reshape(-1, INNER), w, offs=ends)


def grouped_blocks_back(x, w, ends):
    made = torch._grouped_mm(x, w, offs=ends).view(4, RANKS, -1, COLUMNS)
    return all_to_all(made.transpose(0, 1).contiguous())


def experts_one_by_one(x, *weights):
    """Each expert is a GEMM of its own, of a slice of what has come."""
    parts = all_to_all(x.view(RANKS, 4, -1, INNER)).unbind(1)
    return [part @ w.t() for part, w in zip(parts, weights, strict=True)]


def centred(x, w):
    y = F.linear(x, w)
    return all_reduce(y - y.mean(0))


def repeated_batch(x, w, b):
    return all_reduce(F.linear(x, w) + b)


def flat_scatter(x, w):
    return plain_reduce_scatter((x @ w.t()).view(-1))


def padded_front(x, w):
    return plain_reduce_scatter(F.pad(F.linear(x[:-1], w), (0, 0, 1, 0)))


def padded_ones(x, w):
    return plain_reduce_scatter(F.pad(F.linear(x[:-1], w), (0, 0, 0, 1), value=1.0))


def padded_columns(x, w):
    return reduce_scatter(F.pad(F.linear(x, w[:-1]), (0, 1)), 2)


def padded_between(x, w):
    first, last = F.linear(x[1:-1], w).split(BATCH * ROWS // 2 - 1)
    return plain_reduce_scatter(torch.cat([F.pad(first, (0, 0, 0, 1)), F.pad(last, (0, 0, 0, 1))]))


def padded_part_twice(x, w):
    first, last = F.linear(x[:-1], w).split(BATCH * ROWS // 2)
    return plain_reduce_scatter(torch.cat([first, F.pad(first[:-1], (0, 0, 0, 1))])), last


def padded_groups(x, w, ends):
    return plain_reduce_scatter(F.pad(torch._grouped_mm(x[:-1], w, offs=ends), (0, 0, 0, 1)))


def uneven_inner_scatter(x, w):
    y = F.pad(torch.bmm(x, w), (0, 1))
    return reduce_scatter(y, 2)


def reversed_parts(x, w):
    parts = F.linear(x, w).split(ROWS // RANKS, 1)
    return plain_reduce_scatter(torch.cat([parts[1], parts[0]]))


def contracted(x, w):
    return F.linear(all_gather(x, 2), w)


def whole_numbers_sent(x, w):
    return all_reduce((x @ w.t()).int())


def gathered_weight(x, w):
    return F.linear(x, plain_all_gather(w))


def weight_gradient(x, w):
    return plain_all_gather(x).t() @ w


def not_gemm(x):
    return all_gather(x, 0).relu()


def not_waited(x, w):
    y = torch.ops._c10d_functional.all_reduce(x @ w.t(), "sum", group().group_name)
    return functional.wait_tensor(y), functional.wait_tensor(y)


def coalesced(x, w):
    (y,) = functional.all_reduce_coalesced([x @ w.t()], "sum", group())
    return y + 1


def broadcast(x, w):
    return functional.broadcast(x @ w.t(), 0, group()) + 1


def block_scales(x, w, sx, sw):
    return all_reduce(torch._scaled_mm(x, w.t(), sx, sw, out_dtype=torch.bfloat16))


def whole_numbers(x, w):
    return all_reduce(x @ w.t())


def whole_numbers_gemm(x, w):
    return all_reduce(torch._int_mm(x, w).float())


def padded_by_what_varies(x, w):
    y = x @ w.t()
    return reduce_scatter(F.pad(y, (0, 0, 0, -y.shape[0] % RANKS)))


def unlike(x, w, v):
    return all_reduce((x @ w.t()).float() + x.double() @ v.t())


def dispatched_to_none(x):
    return all_to_all(x) * 2


def varying_number(x, w):
    return all_reduce((x @ w.t()) * x.shape[0])


def varying(x):
    torch._dynamo.mark_dynamic(x, 0)
    return x


def many_ops(x, w):
    y = F.linear(x, w)
    for _ in range(30):
        y = y.sin()
    return all_reduce(y)


def complex_numbers(x, w):
    return all_reduce(x @ w.t())


def part_read(x, w):
    """A part of what is gathered has another reader."""
    first, second = all_gather(x, 0).split(BATCH * ROWS)
    return F.linear(torch.cat([first, second]), w), second.relu()


def trimmed_batches(x, w):
    return torch.bmm(all_gather(x, 1)[:, :-1], w)


def trimmed_groups(x, w, ends):
    return torch._grouped_mm(all_gather(x, 0)[: 2 * BATCH * ROWS - 3], w, offs=ends)


def read_twice(x, w):
    full = plain_all_gather(x)
    return F.linear(torch.cat([full[:BATCH], full[BATCH:]], 1), w), full + 1


def squared(x):
    full = all_gather(x, 0)
    return full @ full


def unlike_batches(x, w, a, v):
    return all_reduce(x @ w.t() + torch.bmm(a, v).view(-1, COLUMNS))


REFUSALS = {
    "trimmed_batches": Spelling(
        trimmed_batches,
        lambda: (torch.randn(32, 16, INNER), torch.randn(32, INNER, COLUMNS)),
        ("!trimmed",),
    ),
    "trimmed_groups": Spelling(
        trimmed_groups,
        lambda: (
            x2(torch.bfloat16),
            torch.randn(2, INNER, COLUMNS).bfloat16(),
            ends(200, 2 * BATCH * ROWS - 3),
        ),
        ("!trimmed",),
    ),
    "squared": Spelling(squared, lambda: (torch.randn(32, 64),), ("!other_users",)),
    "unlike_batches": Spelling(
        unlike_batches,
        lambda: (x2(), weight(), x3(), torch.randn(BATCH, INNER, COLUMNS)),
        ("!unlike_gemms",),
    ),
    "max": Spelling(reduced_by("max"), lambda: (x3(), weight()), ("!reduction",), None, 1),
    "min": Spelling(reduced_by("min"), lambda: (x3(), weight()), ("!reduction",), None, 1),
    "product": Spelling(reduced_by("product"), lambda: (x3(), weight()), ("!reduction",), None, 1),
    "scatter_max": Spelling(scattered_by("max"), lambda: (x2(), weight()), ("!reduction",)),
    "input": Spelling(of_an_input, lambda: (x2(),), ("!no_gemm",), None, 0),
    "pointwise": Spelling(of_pointwise, lambda: (x2(),), ("!no_gemm",), None, 0),
    "dropout": Spelling(dropped_out, lambda: (x3(), weight()), ("!random",), None, 1),
    "softmax": Spelling(softmax_of_rows, lambda: (x3(), weight()), ("!not_rowwise",), None, 1),
    "turned_residual": Spelling(
        turned_residual,
        lambda: (x3(), weight(), torch.randn(ROWS, BATCH, COLUMNS)),
        ("!not_rowwise",),
    ),
    "turned_unevenly": Spelling(
        turned_unevenly,
        lambda: (torch.randn(3 * ROWS // 2, 2, BATCH, INNER), weight()),
        ("!uneven_layout",),
    ),
    "turned_within_rows": Spelling(
        turned_within_rows,
        lambda: (torch.randn(ROWS, BATCH, INNER), weight()),
        ("!uneven_layout",),
    ),
    "rows_turned": Spelling(
        rows_turned, lambda: (torch.randn(ROWS, BATCH, INNER), weight()), ("!perhaps_uneven",)
    ),
    "rows_turned_back": Spelling(rows_turned_back, lambda: (x3(), weight()), ("!perhaps_uneven",)),
    "heads_to_ranks_flat": Spelling(
        heads_to_ranks_flat, lambda: (x3(), weight()), ("!perhaps_uneven",)
    ),
    "scattered_after_two_turns": Spelling(
        scattered_after_two_turns, lambda: (x3(), weight()), ("!turned_twice",)
    ),
    "turned_sum": Spelling(
        turned_sum,
        lambda: (x3(), weight(), torch.randn(ROWS, BATCH, COLUMNS)),
        ("!not_rowwise",),
    ),
    "heads_unevenly": Spelling(
        heads_unevenly, lambda: (x2(), torch.randn(96, INNER)), ("!not_rowwise",)
    ),
    "heads_from_ranks": Spelling(
        heads_from_ranks, lambda: (x3(), torch.randn(COLUMNS, RANKS * INNER)), ("!contraction",)
    ),
    "turned_and_trimmed": Spelling(turned_and_trimmed, lambda: (x3(), weight()), ("!trimmed",)),
    "permuted_tokens": Spelling(
        permuted_tokens,
        lambda: (x2(), weight(), torch.randperm(BATCH * ROWS)),
        ("!no_gemm",),
    ),
    "combined_tokens": Spelling(
        combined_tokens,
        lambda: (x2(), weight(), torch.randperm(BATCH * ROWS)),
        ("!not_rowwise",),
    ),
    "flipped": Spelling(flipped, lambda: (x3(), weight()), ("!not_rowwise",), None, 1),
    "cumulative": Spelling(cumulative, lambda: (x3(), weight()), ("!not_rowwise",), None, 1),
    "uneven_batches": Spelling(
        uneven_batches, lambda: (varying(x3()), weight()), ("!uneven_layout",)
    ),
    **{
        name: Spelling(
            function,
            lambda: (
                x2(torch.bfloat16),
                torch.randn(4, INNER, COLUMNS).bfloat16(),
                ends(128, 256, 384, 512),
            ),
            ("!grouped_order",),
        )
        for name, function in (
            ("grouped_blocks", grouped_blocks),
            ("grouped_blocks_back", grouped_blocks_back),
        )
    },
    "experts_one_by_one": Spelling(
        experts_one_by_one,
        lambda: (x2(), *(weight() for _ in range(4))),
        ("!parts",),
    ),
    "centred": Spelling(centred, lambda: (x2(), weight()), ("!other_users",), None, 0),
    "repeated_batch": Spelling(
        repeated_batch,
        lambda: (x3(), weight(), torch.randn(BATCH, 1, COLUMNS)),
        ("!partial_broadcast",),
        None,
        1,
    ),
    "flat_scatter": Spelling(
        flat_scatter, lambda: (x2(), weight()), ("!view_mixes_rows",), None, 0
    ),
    "padded_front": Spelling(padded_front, lambda: (x2(), weight()), ("!not_rowwise",)),
    "padded_ones": Spelling(padded_ones, lambda: (x2(), weight()), ("!not_rowwise",)),
    "padded_columns": Spelling(padded_columns, lambda: (x3(), weight()), ("!padded",)),
    "padded_between": Spelling(padded_between, lambda: (x2(), weight()), ("!not_rowwise",)),
    "padded_part_twice": Spelling(padded_part_twice, lambda: (x2(), weight()), ("!not_rowwise",)),
    "padded_by_what_varies": Spelling(
        padded_by_what_varies, lambda: (varying(x2()), weight()), ("!padded",)
    ),
    "padded_groups": Spelling(
        padded_groups,
        lambda: (
            x2(torch.bfloat16),
            torch.randn(2, INNER, COLUMNS).bfloat16(),
            ends(200, BATCH * ROWS - 1),
        ),
        ("!padded",),
    ),
    "uneven_inner_scatter": Spelling(
        uneven_inner_scatter,
        lambda: (x3(), torch.randn(BATCH, INNER, COLUMNS - 1)),
        ("!padded",),
    ),
    "reversed_parts": Spelling(reversed_parts, lambda: (x3(), weight()), ("!not_rowwise",)),
    "contraction": Spelling(
        contracted, lambda: (x3(), torch.randn(COLUMNS, RANKS * INNER)), ("!contraction",), None, 1
    ),
    "whole_numbers_sent": Spelling(whole_numbers_sent, lambda: (x2(), weight()), ("!dtype",)),
    "gathered_weight": Spelling(
        gathered_weight, lambda: (x2(), weight()), ("!gathered_weight",), None, 0
    ),
    "weight_gradient": Spelling(
        weight_gradient,
        lambda: (x2(), torch.randn(RANKS * BATCH * ROWS, 8)),
        ("!contraction",),
    ),
    "gather_without_gemm": Spelling(not_gemm, lambda: (x2(),), ("!no_gemm",), None, 0),
    "waited_twice": Spelling(not_waited, lambda: (x2(), weight()), ("!not_waited_once",), None, 0),
    "coalesced": Spelling(coalesced, lambda: (x2(), weight()), ("!collective",), None, 0),
    "broadcast": Spelling(broadcast, lambda: (x2(), weight()), ("!collective",), None, 0),
    "unlike_gemms": Spelling(
        unlike, lambda: (x2(), weight(), weight(torch.float64)), ("!unlike_gemms",), None, 0
    ),
    "dispatch_without_gemm": Spelling(dispatched_to_none, lambda: (x2(),), ("!no_gemm",), None, 0),
    "varying_number": Spelling(
        varying_number, lambda: (varying(x2()), weight()), ("!symbolic_argument",)
    ),
    "part_read": Spelling(part_read, lambda: (x2(), weight()), ("!no_gemm",)),
    "many_ops": Spelling(many_ops, lambda: (x3(), weight()), ("!too_long",), None, 1),
    "whole_numbers_gemm": Spelling(
        whole_numbers_gemm,
        lambda: (
            torch.randint(-9, 9, (512, 64), dtype=torch.int8),
            torch.randint(-9, 9, (64, 128), dtype=torch.int8),
        ),
        ("!dtype",),
    ),
    "complex": Spelling(
        complex_numbers,
        lambda: (x2(torch.complex64), weight(torch.complex64)),
        ("!dtype",),
    ),
    "integers": Spelling(
        whole_numbers,
        lambda: (
            torch.randint(-9, 9, (512, 64)),
            torch.randint(-9, 9, (128, 64)),
        ),
        ("!dtype",),
    ),
}
