"""The chains that are measured: as compilers are given them, in series, and cut by hand.

A producer computes a GEMM whose result a collective sends; a consumer computes with what a
collective brought. The same GEMM on every rank is ``C[m, n] = A[m, k] @ W[n, k].T`` throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed import _functional_collectives as functional

from benchmarks.overlap_link.shapes import Shape

Tensor = torch.Tensor
Group = dist.ProcessGroup


class Work(Protocol):
    """What has been started; ``dist.Work`` is one."""

    def wait(self) -> object:
        """Return when the result is there."""
        ...


Start = Callable[[Tensor, Tensor, Group], Work]
"""``start(received, sent, group)`` begins the collective; the result is there after ``wait``."""


BOUND_PARTS = 4
"""Of the collective in the second form of the bound."""


@dataclass(frozen=True)
class Operands:
    """Of one chain on one rank, and the operands of a collective that depends on no GEMM."""

    x: Tensor
    """What the chain is given: ``[m, k]``, or a rank's ``[m / ranks, k]`` of what is gathered."""
    weight: Tensor
    """``[n, k]``."""
    whole: Tensor
    """``[m, k]``: what the GEMM reads when it waits for no collective."""
    unrelated: Tensor
    """What is sent when it waits for no GEMM."""
    received: Tensor
    """Where that arrives; ``unrelated`` itself if the collective works in place."""
    fresh: Tensor
    """What ``unrelated`` is filled with before each run: sums of sums would overflow."""

    def renew(self) -> None:
        """Make ``unrelated`` fit to be sent again."""
        self.unrelated.copy_(self.fresh)


@dataclass(frozen=True)
class Chain:
    """One kind of chain; ``CHAINS`` has all of them."""

    collective: str
    """As ``overlapc.plan`` names it."""
    is_consumer: bool
    """Whether the collective comes before the GEMM."""
    compiled: Callable[[Tensor, Tensor, Group], Tensor]
    """``(x, weight, group)``, in functional collectives: what the compilers are given."""
    start: Start
    """The collective by itself, asynchronously."""
    chunked: Callable[[Tensor, Tensor, Sequence[int], Group], Tensor]
    """``(x, weight, rows, group)``: the chain cut by hand into groups of GEMM rows. A consumer's
    group moves all its rows and computes those of other ranks: its own are computed first."""
    rows_received: Callable[[int, int], int]
    """``(rows, ranks)``: rows that arrive where every rank sends so many."""
    quick: Start
    """The collective as overlapc sends it: ``start``, but for gloo's reduce-scatter."""

    def row_multiple(self, ranks: int) -> int:
        """Rows of a group are multiples of this, for every rank takes as many of them."""
        return 1 if self.collective == "all_reduce" else ranks

    def operands(self, shape: Shape, rank: int, ranks: int) -> Operands:
        """Random operands of one rank; each rank's differ."""
        generator = torch.Generator().manual_seed(rank)

        def random(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator)

        weight, whole = random(shape.n, shape.k), random(shape.m, shape.k)
        is_gather = self.collective == "all_gather"
        x = whole.chunk(ranks)[rank].clone() if is_gather else whole.clone()
        fresh = x.clone() if self.is_consumer else random(shape.m, shape.n)
        unrelated = fresh.clone()
        received = self._room_for(unrelated, ranks)
        return Operands(x, weight, whole, unrelated, received, fresh)

    def serial(self, x: Tensor, weight: Tensor, group: Group) -> Tensor:
        """One after the other, in eager mode."""
        sent = x if self.is_consumer else F.linear(x, weight)
        received = self._room_for(sent, group.size())
        self.start(received, sent, group).wait()
        return F.linear(received, weight) if self.is_consumer else received

    def together(self, operands: Operands, group: Group) -> Tensor:
        """The same GEMM and collective without a dependency: what no schedule can beat."""
        work = self.start(operands.received, operands.unrelated, group)
        out = F.linear(operands.whole, operands.weight)
        work.wait()
        return out

    def together_in_parts(self, operands: Operands, group: Group) -> Tensor:
        """The same with the collective in parts: a large one may use a link less well."""
        rows, arrived = operands.unrelated.size(0), operands.received.size(0)
        step = group.size() if self.collective == "all_to_all" else 1
        ends = [rows // step * part // BOUND_PARTS * step for part in range(BOUND_PARTS + 1)]
        sizes = [end - start for start, end in pairwise(ends)]
        sent = operands.unrelated.split(sizes)
        received = operands.received.split([size * arrived // rows for size in sizes])
        works = [self.start(r, s, group) for r, s in zip(received, sent, strict=True)]
        out = F.linear(operands.whole, operands.weight)
        for work in works:
            work.wait()
        return out

    def together_quickly(self, operands: Operands, group: Group) -> Tensor:
        """The same with the collective as overlapc sends it."""
        work = self.quick(operands.received, operands.unrelated, group)
        out = F.linear(operands.whole, operands.weight)
        work.wait()
        return out

    def in_columns(self, x: Tensor, weight: Tensor, columns: Sequence[int], group: Group) -> Tensor:
        """A producer cut by hand into groups of columns, each put in its place at the end."""
        under_way = []
        for part in weight.split(list(columns)):
            sent = torch.mm(x, part.t())
            received = self._room_for(sent, group.size())
            under_way.append((received, self.quick(received, sent, group), sent))
        out = x.new_empty(under_way[0][0].size(0), weight.size(0))
        for place, (received, work, _) in zip(out.split(list(columns), 1), under_way, strict=True):
            work.wait()
            place.copy_(received)
        return out

    def _room_for(self, sent: Tensor, ranks: int) -> Tensor:
        if self.collective == "all_reduce":
            return sent
        return sent.new_empty(self.rows_received(sent.size(0), ranks), sent.size(1))


def spans(rows: Sequence[int], blocks: int) -> Iterator[tuple[int, int]]:
    """Of each group: where its share of every block begins, and how many rows that is.

    A rank's block is its m / ranks rows; a group takes equally many rows of each.
    """
    begin = 0
    for count in rows:
        yield begin, count // blocks
        begin += count // blocks


def all_reduce_by_hand(x: Tensor, weight: Tensor, rows: Sequence[int], group: Group) -> Tensor:
    """Bands of rows, each band's all-reduce on its way while the next is computed."""
    out = x.new_empty(x.size(0), weight.size(0))
    works = []
    for part, band in zip(x.split(list(rows)), out.split(list(rows)), strict=True):
        torch.mm(part, weight.t(), out=band)
        works.append(_all_reduce(band, band, group))
    for work in works:
        work.wait()
    return out


def reduce_scatter_by_hand(x: Tensor, weight: Tensor, rows: Sequence[int], group: Group) -> Tensor:
    """Each group takes rows of every rank's block, and its result is a band of ours."""
    return scattered_by_hand(x, weight, rows, group, _reduce_scatter)


def scattered_by_hand(
    x: Tensor, weight: Tensor, rows: Sequence[int], group: Group, start: Start
) -> Tensor:
    """The same, by a reduce-scatter that ``start`` starts."""
    ranks = group.size()
    blocks = x.view(ranks, -1, x.size(1))
    out = x.new_empty(blocks.size(1), weight.size(0))
    works, sent = [], []
    for begin, count in spans(rows, ranks):
        part = blocks[:, begin : begin + count].reshape(-1, x.size(1))
        sent.append(torch.mm(part, weight.t()))
        works.append(start(out[begin : begin + count], sent[-1], group))
    for work in works:
        work.wait()
    return out


def all_to_all_by_hand(x: Tensor, weight: Tensor, rows: Sequence[int], group: Group) -> Tensor:
    """Each group takes rows for every rank; what arrives is put in its place at the end."""
    ranks = group.size()
    blocks = x.view(ranks, -1, x.size(1))
    out = x.new_empty(x.size(0), weight.size(0))
    under_way = []
    for begin, count in spans(rows, ranks):
        part = blocks[:, begin : begin + count].reshape(-1, x.size(1))
        sent = torch.mm(part, weight.t())
        received = torch.empty_like(sent)
        under_way.append((begin, count, sent, received, _all_to_all(received, sent, group)))
    places = out.view(ranks, -1, weight.size(0))
    for begin, count, _, received, work in under_way:
        work.wait()
        places[:, begin : begin + count] = received.view(ranks, count, -1)
    return out


def all_gather_by_hand(x: Tensor, weight: Tensor, rows: Sequence[int], group: Group) -> Tensor:
    """Gather in parts, and compute each as it arrives; own rows while the first is on its way."""
    parts = [x[begin : begin + count] for begin, count in spans(rows, group.size())]
    return _compute_arrivals(x, parts, weight, _all_gather, group)


def dispatch_by_hand(x: Tensor, weight: Tensor, rows: Sequence[int], group: Group) -> Tensor:
    """The same for rows that every rank sends to every other."""
    ranks = group.size()
    blocks = x.view(ranks, -1, x.size(1))
    parts = [
        blocks[:, begin : begin + count].contiguous().view(-1, x.size(1))
        for begin, count in spans(rows, ranks)
    ]
    return _compute_arrivals(blocks[group.rank()], parts, weight, _all_to_all, group)


def _compute_arrivals(
    own: Tensor, parts: Sequence[Tensor], weight: Tensor, start: Start, group: Group
) -> Tensor:
    ranks, k = group.size(), own.size(1)
    out = own.new_empty(ranks, own.size(0), weight.size(0))
    under_way = []
    for part in parts:
        # A gather multiplies the rows that are sent, an all-to-all does not.
        rows = part.size(0) * (ranks if start is _all_gather else 1)
        received = part.new_empty(rows, k)
        under_way.append((received, start(received, part, group)))
    torch.mm(own, weight.t(), out=out[group.rank()])
    begin = 0
    for received, work in under_way:
        work.wait()
        blocks = received.view(ranks, -1, k)
        end = begin + blocks.size(1)
        for rank in range(ranks):
            if rank != group.rank():
                torch.mm(blocks[rank], weight.t(), out=out[rank, begin:end])
        begin = end
    return out.flatten(0, 1)


def _all_reduce(received: Tensor, sent: Tensor, group: Group) -> dist.Work:
    assert received is sent, "an all-reduce works in place"
    return _work(dist.all_reduce(received, group=group, async_op=True))


def _reduce_scatter(received: Tensor, sent: Tensor, group: Group) -> dist.Work:
    return _work(dist.reduce_scatter_single(received, sent, group=group, async_op=True))


def _all_gather(received: Tensor, sent: Tensor, group: Group) -> dist.Work:
    return _work(dist.all_gather_single(received, sent, group=group, async_op=True))


def _all_to_all(received: Tensor, sent: Tensor, group: Group) -> dist.Work:
    return _work(dist.all_to_all_single(received, sent, group=group, async_op=True))


@dataclass(frozen=True)
class _Sum:
    """Parts of every rank, to be added up when they have come."""

    work: Work
    parts: Tensor
    out: Tensor

    def wait(self) -> None:
        """Return when the sum is there."""
        self.work.wait()
        torch.sum(self.parts, 0, out=self.out)


def dealt_reduce_scatter(received: Tensor, sent: Tensor, group: Group) -> Work:
    """Reduce-scatter by an all-to-all and a sum: half the bytes of gloo's own."""
    parts = torch.empty_like(sent)
    work = _all_to_all(parts, sent, group)
    return _Sum(work, parts.view(group.size(), *received.shape), received)


def _work(work: dist.Work | None) -> dist.Work:
    assert work is not None, "an asynchronous collective gives its work"
    return work


def _linear_all_reduce(x: Tensor, weight: Tensor, group: Group) -> Tensor:
    return functional.all_reduce(F.linear(x, weight), "sum", group)


def _linear_reduce_scatter(x: Tensor, weight: Tensor, group: Group) -> Tensor:
    return functional.reduce_scatter_single(F.linear(x, weight), "sum", 0, group)


def _linear_all_to_all(x: Tensor, weight: Tensor, group: Group) -> Tensor:
    out = functional.all_to_all_single(F.linear(x, weight), None, None, group)
    return functional.wait_tensor(out)


def _all_gather_linear(x: Tensor, weight: Tensor, group: Group) -> Tensor:
    return F.linear(functional.all_gather_single(x, 0, group), weight)


def _all_to_all_linear(x: Tensor, weight: Tensor, group: Group) -> Tensor:
    out = functional.all_to_all_single(x, None, None, group)
    return F.linear(functional.wait_tensor(out), weight)


def _as_many(rows: int, ranks: int) -> int:
    return rows


CHAINS = {
    "gemm_all_reduce": Chain(
        "all_reduce",
        False,
        _linear_all_reduce,
        _all_reduce,
        all_reduce_by_hand,
        _as_many,
        _all_reduce,
    ),
    "gemm_reduce_scatter": Chain(
        "reduce_scatter",
        False,
        _linear_reduce_scatter,
        _reduce_scatter,
        reduce_scatter_by_hand,
        lambda rows, ranks: rows // ranks,
        dealt_reduce_scatter,
    ),
    "all_gather_gemm": Chain(
        "all_gather",
        True,
        _all_gather_linear,
        _all_gather,
        all_gather_by_hand,
        lambda rows, ranks: rows * ranks,
        _all_gather,
    ),
    "gemm_all_to_all": Chain(
        "all_to_all",
        False,
        _linear_all_to_all,
        _all_to_all,
        all_to_all_by_hand,
        _as_many,
        _all_to_all,
    ),
    "all_to_all_gemm": Chain(
        "all_to_all", True, _all_to_all_linear, _all_to_all, dispatch_by_hand, _as_many, _all_to_all
    ),
}
"""By the kind of site that overlapc makes of them."""
