"""Start one of c10d's plain collectives and return its work, straight on the process group.

Where a backend has no reduce-scatter worth the name, an all-to-all and a sum take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions

from overlapc.errors import ProblemError
from overlapc.runtime.ranks.groups import backend_name

OPERATIONS = {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG}
"""The reductions whose result does not depend on how rows are grouped, by c10d's names."""

MOVED_AS_THEY_ARE = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
    }
)
"""What gloo and NCCL both move; elements of other dtypes go as bytes where nothing is computed."""


class Work(Protocol):
    """What is on its way; `dist.Work` is one."""

    def wait(self) -> object:
        """Return when what was received may be read, and what was sent written to."""
        ...


class Sender:
    """Starts the collective of one chain. Holds no group: those that are destroyed shall go."""

    def __init__(self, collective: str, reduce: str, *, in_stream: bool = False) -> None:
        """``in_stream``: where the backend can, it runs on the current stream itself.

        Then nothing after it on that stream begins before it has ended; else it runs beside, until
        it is waited for.
        """
        self.collective, self.reduce = collective, reduce
        self.options = _options(collective, reduce, in_stream)
        self.dealt, self.is_mean = _options("all_to_all", "", in_stream), reduce == "avg"

    def start(
        self,
        group: dist.ProcessGroup,
        out: torch.Tensor,
        sent: torch.Tensor,
        receives: Sequence[int] = (),
        sends: Sequence[int] = (),
    ) -> Work:
        """Send ``sent`` and let what comes be written to ``out``; an all-reduce is in place.

        ``receives`` and ``sends``: rows of an all-to-all from and to each rank, where uneven.
        Both are contiguous, ``out`` unless ``puts_anywhere``, and neither may be touched before the
        work is waited for.
        """
        options = self.options
        if self.collective == "all_reduce":
            return self.on_its_way(lambda: group.allreduce([sent], options))
        if self.collective == "reduce_scatter":
            if adds_here(self.collective, group, sent.device.type):
                return self._dealt_out(group, out, sent)
            return self.start_plain(group, out, sent)
        if sent.dtype not in MOVED_AS_THEY_ARE:
            out, sent = as_bytes(out), as_bytes(sent)
        if self.collective == "all_gather":
            return self.on_its_way(lambda: group._allgather_base(out, sent, options))
        sizes = list(receives), list(sends)
        return self.on_its_way(lambda: group.alltoall_base(out, sent, *sizes, options))

    def start_plain(self, group: dist.ProcessGroup, out: torch.Tensor, sent: torch.Tensor) -> Work:
        """Do the same as a graph that is left alone does: by the backend's own collective."""
        if self.collective == "reduce_scatter":
            return self.on_its_way(lambda: group._reduce_scatter_base(out, sent, self.options))
        return self.start(group, out, sent)

    def puts_anywhere(self, group: dist.ProcessGroup, device: str) -> bool:
        """Return whether ``out`` may have any strides: sums made here are written to it."""
        return adds_here(self.collective, group, device)

    def on_its_way(self, begin: Callable[[], Work | None]) -> Work:
        """Begin a collective and return what it is waited for by.

        NCCL gives nothing for one in the stream. What fails before it is called has sent nothing.
        """
        work = begin()
        return IN_STREAM if work is None else work

    def _dealt_out(self, group: dist.ProcessGroup, out: torch.Tensor, sent: torch.Tensor) -> Work:
        parts = sent.new_empty((group.size(), *out.shape))
        here, there = parts.view(sent.shape), sent
        if sent.dtype not in MOVED_AS_THEY_ARE:
            here, there = as_bytes(here), as_bytes(there)
        work = self.on_its_way(lambda: group.alltoall_base(here, there, [], [], self.dealt))
        return _Sum(work, parts, out, self.is_mean)


def adds_here(collective: str, group: dist.ProcessGroup, device: str) -> bool:
    """Return whether parts that ranks send are added up here, not by the backend.

    gloo's reduce-scatter is an all-reduce of which a part is kept: twice the bytes of an
    all-to-all.
    """
    return collective == "reduce_scatter" and backend_name(group, device) == "gloo"


@dataclass(frozen=True)
class _Sum:
    """Parts of all ranks, added up in the order of the ranks when they have come."""

    work: Work
    parts: torch.Tensor
    out: torch.Tensor
    is_mean: bool

    def wait(self) -> None:
        self.work.wait()
        if len(self.parts) == 2 and not self.is_mean:  # a third of the time of a reduction
            torch.add(*self.parts, out=self.out)
            return
        add = torch.mean if self.is_mean else torch.sum
        add(self.parts, 0, out=self.out)


class _InStream:
    """Of what runs on the current stream: the stream itself waits for it."""

    def wait(self) -> None:
        pass


IN_STREAM = _InStream()


def _options(collective: str, reduce: str, in_stream: bool):  # noqa: ANN202 - unrelated classes
    kinds = {
        "all_reduce": dist.AllreduceOptions,
        "reduce_scatter": dist.ReduceScatterOptions,
        "all_gather": AllgatherOptions,
        "all_to_all": dist.AllToAllOptions,
    }
    options = kinds[collective]()
    options.asyncOp = not in_stream
    if collective in ("all_reduce", "reduce_scatter"):
        if reduce not in OPERATIONS:
            raise ProblemError(
                f"A reduction {reduce!r} is not overlapped.",
                where=collective,
                remedy=f"reduce by {' or '.join(OPERATIONS)}",
            )
        options.reduceOp = dist.ReduceOp(OPERATIONS[reduce])
    return options


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as uint8, with the same dimension 0."""
    return (tensor.unsqueeze(-1) if tensor.dim() == 1 else tensor).view(torch.uint8)
