"""Spellings in which a permutation stands between a GEMM and its collective."""

from __future__ import annotations

import torch
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F

from tests.passes.spelling import (
    BATCH,
    COLUMNS,
    INNER,
    RANKS,
    ROWS,
    Spelling,
    all_gather,
    all_reduce,
    group,
    plain_reduce_scatter,
    reduce_scatter,
    weight,
    x2,
    x3,
)

AR, RS, AG = "gemm_all_reduce", "gemm_reduce_scatter", "all_gather_gemm"
TO, FROM = "gemm_all_to_all", "all_to_all_gemm"

# Several experts of one rank: what it gets from all ranks lies rank by rank, and is wanted expert
# by expert.

EXPERTS, CAPACITY, HIDDEN = 4, 48, 96


def moved(x):
    return functional.all_to_all_single_autograd(x, None, None, group())


def tokens():
    return torch.randn(RANKS, EXPERTS, CAPACITY, INNER)


def up():
    return torch.randn(EXPERTS, INNER, HIDDEN)


def down():
    return torch.randn(EXPERTS, HIDDEN, INNER)


def few_experts(x, up, down):
    come = moved(x).permute(1, 0, 2, 3).reshape(EXPERTS, -1, INNER)
    made = torch.bmm(torch.bmm(come, up).relu(), down).view(EXPERTS, RANKS, -1, INNER)
    return moved(made.permute(1, 0, 2, 3).contiguous())


def flat_experts(x, up, down):
    """As Megatron's dispatcher: rows are flat while they are sent."""
    come = moved(x.flatten(0, 2)).view(RANKS, EXPERTS, -1, INNER).transpose(0, 1)
    made = torch.bmm(come.reshape(EXPERTS, -1, INNER), up).relu().bmm(down)
    made = made.view(EXPERTS, RANKS, -1, INNER).transpose(0, 1)
    return moved(made.reshape(-1, INNER)).view(x.shape)


def einsum_experts(x, up, down):
    hidden = torch.einsum("recd,edf->recf", moved(x), up).relu()
    return moved(torch.einsum("recf,efd->recd", hidden, down))


def tokens_first(x, w):
    """A rank's part has its experts inside."""
    come = moved(x.view(RANKS, CAPACITY, EXPERTS, INNER)).permute(2, 0, 1, 3)
    return torch.bmm(come.reshape(EXPERTS, -1, INNER), w)


def tokens_last(x, w):
    made = torch.bmm(x.view(EXPERTS, -1, INNER), w).view(EXPERTS, RANKS, CAPACITY, HIDDEN)
    return moved(made.permute(1, 2, 0, 3).contiguous())


def one_expert(x, w):
    come = moved(x).permute(1, 0, 2, 3).reshape(1, -1, INNER)
    return torch.bmm(come, w)


def grouped_batches(x, up, down):
    come = moved(x).transpose(0, 1).reshape(EXPERTS, -1, INNER)
    made = torch._grouped_mm(torch._grouped_mm(come, up).relu(), down)
    return moved(made.view(EXPERTS, RANKS, -1, INNER).transpose(0, 1).contiguous())


def experts_read(x, w):
    come = moved(x)
    return torch.bmm(come.permute(1, 0, 2, 3).reshape(EXPERTS, -1, INNER), w), come.relu()


EXPERT_LAYERS = {
    "few_experts": Spelling(
        few_experts, lambda: (tokens(), up(), down()), (FROM, TO), (FROM, TO), 2
    ),
    "flat_experts": Spelling(
        flat_experts, lambda: (tokens(), up(), down()), (FROM, TO), (FROM, TO), 2
    ),
    "einsum_experts": Spelling(
        einsum_experts, lambda: (tokens(), up(), down()), (FROM, TO), (FROM, TO)
    ),
    "grouped_batches": Spelling(
        grouped_batches,
        lambda: (tokens().bfloat16(), up().bfloat16(), down().bfloat16()),
        (FROM, TO),
        None,
        2,
    ),
    "tokens_first": Spelling(tokens_first, lambda: (tokens(), up()), (FROM,), (TO,)),
    "tokens_last": Spelling(tokens_last, lambda: (tokens(), up()), (TO,), (FROM,)),
    "experts_read": Spelling(experts_read, lambda: (tokens(), up()), (FROM,), ("!not_rowwise",), 2),
    "one_expert": Spelling(
        one_expert,
        lambda: (torch.randn(RANKS, 1, 256, INNER), torch.randn(1, INNER, HIDDEN)),
        (FROM,),
        (TO,),
    ),
}


# Sequence first where it is sent, batch first where it is computed, and other orders


def gather_turned(x, w):
    return F.linear(all_gather(x, 0).transpose(0, 1), w)


def gather_turned_copy(x, w):
    full = all_gather(x, 0).transpose(0, 1).contiguous()
    return F.linear(full, w), full.relu()


def gather_turned_read(x, w):
    """What has come is read as it came as well."""
    full = all_gather(x, 0)
    return F.linear(full.transpose(0, 1), w), full.relu()


def gather_both(x, w, v):
    """One GEMM takes it as it came: that one is overlapped, and the other one follows."""
    full = all_gather(x, 0)
    return F.linear(full, w), F.linear(full.transpose(0, 1), v)


def gather_turned_trimmed(x, w):
    return F.linear(all_gather(x, 0).transpose(0, 1)[:, : 2 * ROWS - 3].contiguous(), w)


def scatter_turned(x, w):
    return reduce_scatter(F.linear(x, w).transpose(0, 1).contiguous(), 0).relu()


def scatter_turned_padded(x, w):
    y = F.pad(F.linear(x[:, :-1], w), (0, 0, 0, 1))
    return reduce_scatter(y.transpose(0, 1).contiguous(), 0)


def scatter_heads_first(x, w):
    """Each rank gets some batches, with heads before their rows."""
    y = F.linear(x, w).view(BATCH, -1, 4, COLUMNS // 4)
    return reduce_scatter(y.transpose(1, 2).contiguous(), 0)


def scatter_columns_first(x, w):
    return reduce_scatter((x @ w.t()).t().contiguous(), 0)


def heads_to_ranks(x, w):
    """As before attention over the whole sequence: some heads to each rank, sequence first."""
    y = F.linear(x, w).view(BATCH, ROWS, RANKS, 2, -1)
    return moved(y.permute(2, 1, 0, 3, 4).contiguous())


def turned(x, w):
    return all_reduce((x @ w.t()).t().contiguous())


def turned_copy(x, w):
    y = F.linear(x, w).transpose(0, 1)
    return all_reduce(y.contiguous()), y.relu()


def einsum_heads(x, w):
    """The projection after attention, whose heads lie before its rows."""
    heads = x.view(BATCH, 4, -1, INNER)
    return all_reduce(torch.einsum("bhse,hed->bsd", heads, w))


def einsum_scattered(x, w):
    heads = x.view(BATCH, 4, -1, INNER)
    return reduce_scatter(torch.einsum("bhse,hed->sbd", heads, w), 0)


def einsum_gathered(x, w):
    return torch.einsum("bsd,dhe->bhse", all_gather(x, 1), w)


def scattered_after_a_turn(x, w):
    return reduce_scatter(F.linear(x, w).transpose(0, 1), 1)


def gathered_before_a_turn(x, w):
    return F.linear(all_gather(x, 1).transpose(0, 1), w)


def scattered_heads(x, w):
    """Each rank gets some rows of every head."""
    y = F.linear(x, w).view(BATCH, -1, 4, COLUMNS // 4)
    return reduce_scatter(y.transpose(1, 2), 2)


def sequence_first():
    return torch.randn(ROWS, BATCH, INNER)


def head_weights():
    return torch.randn(4, INNER, COLUMNS)


def batched_columns(x, w):
    return reduce_scatter(torch.bmm(x, w), 2)


def inner_scatter(x, w):
    y = F.linear(x, w).view(BATCH * ROWS, 2, RANKS, -1)
    return plain_reduce_scatter(y.permute(2, 0, 1, 3).reshape(RANKS * BATCH * ROWS, -1))


TURNED = {
    "batched_columns": Spelling(
        batched_columns, lambda: (x3(), torch.randn(BATCH, INNER, COLUMNS)), (RS,)
    ),
    "inner_scatter": Spelling(inner_scatter, lambda: (x3(), weight()), (RS,)),
    "gather_turned": Spelling(gather_turned, lambda: (sequence_first(), weight()), (AG,), (RS,), 0),
    "gather_turned_copy": Spelling(
        gather_turned_copy, lambda: (sequence_first(), weight()), (AG,), (RS,), 0
    ),
    "gather_turned_read": Spelling(
        gather_turned_read, lambda: (sequence_first(), weight()), (AG,), ("!not_rowwise",), 0
    ),
    "gather_both": Spelling(
        gather_both, lambda: (sequence_first(), weight(), weight()), (AG,), None, 0
    ),
    "gather_turned_trimmed": Spelling(
        gather_turned_trimmed, lambda: (sequence_first(), weight()), (AG,)
    ),
    "scatter_turned": Spelling(scatter_turned, lambda: (x3(), weight()), (RS,), (AG,), 1),
    "scatter_turned_padded": Spelling(scatter_turned_padded, lambda: (x3(), weight()), (RS,)),
    "scatter_heads_first": Spelling(scatter_heads_first, lambda: (x3(), weight()), (RS,), (AG,)),
    "scattered_after_a_turn": Spelling(
        scattered_after_a_turn, lambda: (x3(), weight()), (RS,), (AG,)
    ),
    "gathered_before_a_turn": Spelling(
        gathered_before_a_turn, lambda: (x3(), weight()), (AG,), (RS,)
    ),
    "scattered_heads": Spelling(scattered_heads, lambda: (x3(), weight()), (RS,), (AG,)),
    "scatter_columns_first": Spelling(scatter_columns_first, lambda: (x2(), weight()), (RS,)),
    "heads_to_ranks": Spelling(heads_to_ranks, lambda: (x3(), weight()), (TO,)),
    "turned": Spelling(turned, lambda: (x2(), weight()), (AR,), None, 0),
    "turned_copy": Spelling(turned_copy, lambda: (x3(), weight()), (AR,), None, 1),
    "einsum_heads": Spelling(
        einsum_heads, lambda: (torch.randn(BATCH, 4 * ROWS, INNER), head_weights()), (AR,)
    ),
    "einsum_scattered": Spelling(
        einsum_scattered,
        lambda: (torch.randn(BATCH, 4 * ROWS, INNER), head_weights()),
        (RS,),
        (AG,),
    ),
    "einsum_gathered": Spelling(
        einsum_gathered, lambda: (x3(), torch.randn(INNER, 4, 32)), (AG,), (RS,)
    ),
}
