"""Every spelling of a chain that is found, as one table.

A row holds a function of tensors, its inputs, and what is expected of each site that it makes, in
program order: the kind of a rewritten chain, or the code of a refusal.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.passes.layouts import EXPERT_LAYERS, TURNED
from tests.passes.spelling import (
    BATCH,
    COLUMNS,
    FP8,
    INNER,
    RANKS,
    ROWS,
    Spelling,
    all_gather,
    all_reduce,
    all_to_all,
    bias,
    plain_all_gather,
    plain_reduce_scatter,
    reduce_scatter,
    weight,
    x2,
    x3,
)
from tests.passes.uneven import PADDED, TRIMMED

# GEMM -> all-reduce


def in_place(x, w):
    y = F.linear(x, w)
    dist.all_reduce(y)
    return y.relu()


def functional_mm(x, w):
    return all_reduce(x @ w.t()) + 1


def average(x, w):
    return all_reduce(x @ w.t(), "avg")


def with_bias(x, w, b):
    return all_reduce(F.linear(x, w, b)).tanh()


def scaled_bias(x, w, b):
    return all_reduce(torch.addmm(b, x, w.t(), alpha=0.5, beta=2))


def divided_bias(x, w, b):
    return all_reduce(F.linear(x, w, b / RANKS))


def views_between(x, w):
    y = (x @ w.t()).view(BATCH, -1, 2, w.shape[0] // 2).unsqueeze(0)
    return all_reduce(y).squeeze(0).flatten(2)


def flat(x, w):
    return all_reduce((x @ w.t()).view(-1)).view(-1, w.shape[0])


def two_chains(x, w):
    y = all_reduce(x @ w.t()).relu()
    return all_reduce(y @ w)


def cast_between(x, w):
    return all_reduce(F.linear(x.bfloat16(), w.bfloat16()).float())


def under_autocast(x, w):
    with torch.autocast("cpu", torch.bfloat16):
        return all_reduce(F.linear(x, w))


def scattered_under_autocast(x, w):
    with torch.autocast("cpu", torch.bfloat16):
        return reduce_scatter(F.linear(x, w))


def pointwise_between(x, w, b):
    return all_reduce(F.gelu(F.linear(x, w, b)) * 0.5)


def residual_between(x, w, r):
    return all_reduce(F.linear(x, w) + r / RANKS)


def column_of_rows(x, w):
    return all_reduce(F.linear(x, w) * x[..., :1])


def sum_of_two(x, w, v):
    return all_reduce(F.linear(x, w) + F.linear(x.relu(), v))


def same_weight_twice(x, w):
    return all_reduce(F.linear(x, w)) * all_reduce(F.linear(x.relu(), w))


def result_read_twice(x, w):
    y = F.linear(x, w)
    return all_reduce(y), y.relu()


def softmax_between(x, w):
    return all_reduce(F.linear(x, w).softmax(-1))


def batched(x, w):
    return all_reduce(torch.bmm(x, w))


def batched_bias(x, w, b):
    return all_reduce(torch.baddbmm(b, x, w))


def product(x, w):
    return all_reduce(torch.matmul(x, w))


def scaled(x, w, sx, sw):
    return all_reduce(torch._scaled_mm(x, w.t(), sx, sw, out_dtype=torch.bfloat16))


def scaled_3d(x, w, sx, sw):
    y = torch._scaled_mm(x.view(-1, INNER), w.t(), sx, sw, out_dtype=torch.bfloat16)
    return all_reduce(y.view(BATCH, -1, COLUMNS))


def grouped(x, w, ends):
    return all_reduce(torch._grouped_mm(x, w, offs=ends))


def unread(x, w):
    y = x @ w.t()
    dist.all_reduce(y)
    return x.sum()


def summed_twice(x, w):
    return all_reduce(all_reduce(x @ w.t()))


def ends(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


AR = "gemm_all_reduce"
ALL_REDUCE = {
    "in_place_2d": Spelling(in_place, lambda: (x2(), weight()), (AR,), ("!no_gemm",), 0),
    "in_place_3d": Spelling(in_place, lambda: (x3(), weight()), (AR,), ("!no_gemm",), 1),
    "one_matrix": Spelling(
        product,
        lambda: (torch.randn(2, 3, 64, INNER), torch.randn(1, 1, INNER, COLUMNS)),
        (AR,),
    ),
    "matrix_of_each_head": Spelling(
        product,
        lambda: (torch.randn(2, 3, 64, INNER), torch.randn(1, 3, INNER, COLUMNS)),
        (AR,),
    ),
    "summed_twice": Spelling(summed_twice, lambda: (x2(), weight()), (AR, "!taken")),
    "functional_2d": Spelling(functional_mm, lambda: (x2(), weight()), (AR,), None, 0),
    "functional_3d": Spelling(functional_mm, lambda: (x3(), weight()), (AR,), None, 1),
    "average": Spelling(average, lambda: (x2(), weight()), (AR,), None, 0),
    "bias": Spelling(with_bias, lambda: (x3(), weight(), bias()), (AR,), None, 1),
    "scaled_bias": Spelling(scaled_bias, lambda: (x2(), weight(), bias()), (AR,), None, 0),
    "divided_bias": Spelling(divided_bias, lambda: (x3(), weight(), bias()), (AR,), None, 1),
    "views_between": Spelling(views_between, lambda: (x2(), weight()), (AR,)),
    "flat": Spelling(flat, lambda: (x2(), weight()), (AR,), None, 0),
    "two_chains": Spelling(two_chains, lambda: (x2(), weight()), (AR, AR), None, 0),
    "float64": Spelling(
        functional_mm, lambda: (x2(torch.float64), weight(torch.float64)), (AR,), None, 0
    ),
    "bfloat16": Spelling(
        functional_mm, lambda: (x2(torch.bfloat16), weight(torch.bfloat16)), (AR,), None, 0
    ),
    "cast": Spelling(cast_between, lambda: (x3(), weight()), (AR,), None, 1),
    "autocast": Spelling(under_autocast, lambda: (x3(), weight()), (AR,)),
    "pointwise": Spelling(pointwise_between, lambda: (x3(), weight(), bias()), (AR,), None, 1),
    "residual": Spelling(
        residual_between,
        lambda: (x3(), weight(), torch.randn(BATCH, ROWS, COLUMNS)),
        (AR,),
    ),
    "column_of_rows": Spelling(column_of_rows, lambda: (x3(), weight()), (AR,), None, 1),
    "sum_of_two_gemms": Spelling(sum_of_two, lambda: (x3(), weight(), weight()), (AR,), None, 1),
    "same_weight_twice": Spelling(same_weight_twice, lambda: (x2(), weight()), (AR, AR), None, 0),
    "result_read_twice": Spelling(result_read_twice, lambda: (x3(), weight()), (AR,), None, 1),
    "softmax_between": Spelling(softmax_between, lambda: (x3(), weight()), (AR,), None, 1),
    "bmm": Spelling(
        batched, lambda: (torch.randn(32, 16, INNER), torch.randn(32, INNER, COLUMNS)), (AR,)
    ),
    "baddbmm": Spelling(
        batched_bias,
        lambda: (
            torch.randn(32, 16, INNER),
            torch.randn(32, INNER, COLUMNS),
            torch.randn(32, 1, COLUMNS),
        ),
        (AR,),
    ),
    "scaled_mm_of_tensors": Spelling(
        scaled, lambda: (x2(FP8), weight(FP8), torch.rand(()), torch.rand(())), (AR,), None, 0
    ),
    "scaled_mm_of_rows": Spelling(
        scaled_3d,
        lambda: (x3().to(FP8), weight(FP8), torch.rand(BATCH * ROWS, 1), torch.rand(1, COLUMNS)),
        (AR,),
    ),
    "grouped_mm": Spelling(
        grouped,
        lambda: (
            x2(torch.bfloat16),
            torch.randn(3, INNER, COLUMNS).bfloat16(),
            ends(100, 300, BATCH * ROWS),
        ),
        (AR,),
    ),
    "unread": Spelling(unread, lambda: (x2(), weight()), (AR,), None, 0),
}


# GEMM -> reduce-scatter


def scattered(dim, op="sum"):
    return lambda x, w: reduce_scatter(F.linear(x, w), dim, op)


def sliced(x, w):
    y = F.linear(x, w)
    half = ROWS // RANKS
    packed = torch.cat([y[:, i * half : (i + 1) * half] for i in range(RANKS)])
    return plain_reduce_scatter(packed)


def permuted(x, w):
    y = F.linear(x, w).view(BATCH, RANKS, -1, COLUMNS)
    return plain_reduce_scatter(y.permute(1, 0, 2, 3).reshape(RANKS * BATCH, -1, COLUMNS))


def scattered_bias(x, w, b):
    return reduce_scatter(F.linear(x, w, b).relu(), 1)


RS = "gemm_reduce_scatter"
REDUCE_SCATTER = {
    "scatter_under_autocast": Spelling(
        scattered_under_autocast, lambda: (x2(), weight()), (RS,), ("all_gather_gemm",)
    ),
    "scatter_rows": Spelling(scattered(0), lambda: (x2(), weight()), (RS,), ("all_gather_gemm",)),
    "scatter_batch": Spelling(scattered(0), lambda: (x3(), weight()), (RS,)),
    "scatter_sequence": Spelling(
        scattered(1), lambda: (x3(), weight()), (RS,), ("all_gather_gemm",)
    ),
    "scatter_columns": Spelling(scattered(2), lambda: (x3(), weight()), (RS,), None, 1),
    "scatter_average": Spelling(scattered(1, "avg"), lambda: (x3(), weight()), (RS,)),
    "slices": Spelling(sliced, lambda: (x3(), weight()), (RS,)),
    "permuted_view": Spelling(permuted, lambda: (x3(), weight()), (RS,)),
    "scatter_bias": Spelling(scattered_bias, lambda: (x3(), weight(), bias()), (RS,)),
}


# all-gather -> GEMM


def gathered(dim):
    return lambda x, w: F.linear(all_gather(x, dim), w)


def three(x, q, k, v):
    full = all_gather(x, 1)
    return F.linear(full, q), F.linear(full, k), F.linear(full, v)


def gate_up(x, gate, up):
    full = all_gather(x, 0)
    return F.silu(full @ gate.t()) * (full @ up.t())


def gathered_returned(x, w):
    full = all_gather(x, 1)
    return F.linear(full, w), full


def gathered_read(x, w):
    full = all_gather(x, 0)
    return F.linear(full, w), full.sum(0)


def joined_slices(x, w):
    full = plain_all_gather(x)
    return F.linear(torch.cat([full[i * BATCH : (i + 1) * BATCH] for i in range(RANKS)], 1), w)


def joined_view(x, w):
    full = plain_all_gather(x).view(RANKS, BATCH, -1, INNER)
    return F.linear(full.permute(1, 0, 2, 3).reshape(BATCH, -1, INNER), w)


def fp8_as_bytes(x, w, sx, sw):
    full = plain_all_gather(x.view(torch.uint8)).view(FP8)
    return torch._scaled_mm(full, w.t(), sx, sw, out_dtype=torch.bfloat16)


def cast_after(x, w):
    return all_gather(x.bfloat16(), 0).float().relu() @ w.t()


def gathered_norm(x, w, g):
    return F.linear(F.rms_norm(all_gather(x, 1), (INNER,), g), w)


def gathered_residual(x, w, r):
    h = all_gather(x, 0) + r
    return h, F.linear(F.layer_norm(h, (INNER,)), w)


def pooled(x, w, v):
    """One GEMM needs all rows at once, the other does not."""
    full = all_gather(x, 0)
    return F.linear(full, w), F.linear(full.mean(1), v), F.linear(full.mean(0), v)


def gathered_variance(x, w):
    full = all_gather(x, 0)
    return full.var(-1), (full - full.mean(-1, keepdim=True)) @ w.t()


def gathered_bias(x, w, b):
    return F.linear(all_gather(x, 0), w, b)


def gathered_batches(x, w):
    return torch.bmm(all_gather(x, 1), w)


AG = "all_gather_gemm"
ALL_GATHER = {
    "gather_rows": Spelling(gathered(0), lambda: (x2(), weight()), (AG,), (RS,), 0),
    "gather_sequence": Spelling(gathered(1), lambda: (x3(), weight()), (AG,), (RS,), 1),
    "q_k_v": Spelling(three, lambda: (x3(), weight(), weight(), weight()), (AG,), (RS,), 1),
    "gate_up": Spelling(gate_up, lambda: (x2(), weight(), weight()), (AG,), (RS,), 0),
    "gathered_returned": Spelling(gathered_returned, lambda: (x3(), weight()), (AG,), None, 1),
    "gathered_read": Spelling(gathered_read, lambda: (x2(), weight()), (AG,), None, 0),
    "joined_slices": Spelling(joined_slices, lambda: (x3(), weight()), (AG,)),
    "joined_view": Spelling(joined_view, lambda: (x3(), weight()), (AG,)),
    "fp8_as_bytes": Spelling(
        fp8_as_bytes, lambda: (x2(FP8), weight(FP8), torch.rand(()), torch.rand(())), (AG,), None, 0
    ),
    "cast_after": Spelling(cast_after, lambda: (x2(), weight()), (AG,), None, 0),
    "rms_norm_after": Spelling(
        gathered_norm, lambda: (x3(), weight(), torch.randn(INNER)), (AG,), (RS,), 1
    ),
    "residual_and_layer_norm_after": Spelling(
        gathered_residual,
        lambda: (x2(), weight(), torch.randn(2 * BATCH * ROWS, INNER)),
        (AG,),
        (RS,),
    ),
    "pooled": Spelling(pooled, lambda: (x3(), weight(), weight()), (AG,)),
    "variance_after": Spelling(gathered_variance, lambda: (x2(), weight()), (AG,), None, 0),
    "gather_bias": Spelling(gathered_bias, lambda: (x2(), weight(), bias()), (AG,), None, 0),
    "gather_bmm": Spelling(
        gathered_batches,
        lambda: (torch.randn(32, 16, INNER), torch.randn(32, INNER, COLUMNS)),
        (AG,),
    ),
}


# all-to-all around GEMMs

EXPERTS, CAPACITY = 16, 32


def combined(x, w):
    return all_to_all(x @ w.t())


def dispatched(x, w):
    return all_to_all(x) @ w.t()


SENDS = ((200, 312), (300, 212))
"""Rows that each rank sends to each rank."""


def uneven(x, w):
    rank = dist.get_rank()
    return all_to_all(x @ w.t(), [sent[rank] for sent in SENDS], list(SENDS[rank]))


def uneven_dispatch(x, w):
    rank = dist.get_rank()
    return all_to_all(x, [sent[rank] for sent in SENDS], list(SENDS[rank])) @ w.t()


def experts(x, up, down):
    """Capacity-based experts: dispatch, two batched GEMMs, combine."""
    x = all_to_all(x).view(RANKS, EXPERTS, CAPACITY, INNER).permute(1, 0, 2, 3)
    h = torch.bmm(x.reshape(EXPERTS, RANKS * CAPACITY, INNER), up).relu()
    y = torch.bmm(h, down).view(EXPERTS, RANKS, CAPACITY, INNER).permute(1, 0, 2, 3)
    return all_to_all(y.reshape(-1, INNER))


def grouped_experts(x, up, down, offsets):
    h = torch._grouped_mm(all_to_all(x), up, offs=offsets).relu()
    return all_to_all(torch._grouped_mm(h, down, offs=offsets))


TO, FROM = "gemm_all_to_all", "all_to_all_gemm"
ALL_TO_ALL = {
    "combine": Spelling(combined, lambda: (x2(), weight()), (TO,), None, 0),
    "dispatch": Spelling(dispatched, lambda: (x2(), weight()), (FROM,), None, 0),
    "combine_batches": Spelling(combined, lambda: (x3(), weight()), (TO,)),
    "dispatch_batches": Spelling(dispatched, lambda: (x3(), weight()), (FROM,)),
    "uneven_combine": Spelling(uneven, lambda: (x2(), weight()), (TO,)),
    "uneven_dispatch": Spelling(uneven_dispatch, lambda: (x2(), weight()), (FROM,)),
    "experts": Spelling(
        experts,
        lambda: (
            torch.randn(RANKS * EXPERTS * CAPACITY, INNER),
            torch.randn(EXPERTS, INNER, 96),
            torch.randn(EXPERTS, 96, INNER),
        ),
        (FROM, TO),
    ),
    "grouped_experts": Spelling(
        grouped_experts,
        lambda: (
            x2(torch.bfloat16),
            torch.randn(2, INNER, 96).bfloat16(),
            torch.randn(2, 96, INNER).bfloat16(),
            ends(200, BATCH * ROWS),
        ),
        (FROM, TO),
    ),
}

REWRITES = {
    **ALL_REDUCE,
    **REDUCE_SCATTER,
    **ALL_GATHER,
    **ALL_TO_ALL,
    **PADDED,
    **TRIMMED,
    **EXPERT_LAYERS,
    **TURNED,
}
