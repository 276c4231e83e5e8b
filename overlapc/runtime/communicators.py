"""The communicator on which signaled chains talk to a group: its own, and held to a few SMs.

A collective that shares the user's communicator would queue behind waiters, or they behind it; and
only a communicator of its own can be held to the SMs that the GEMM leaves free.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from overlapc.errors import GroupError
from overlapc.runtime.streams import communication_stream

_made: WeakKeyDictionary[dist.ProcessGroup, dict[int, dist.ProcessGroup]] = WeakKeyDictionary()


def communicator(group: dist.ProcessGroup, sms: int) -> dist.ProcessGroup | None:
    """The communicator with the members of ``group`` and at most ``sms`` CTAs; None if unmade."""
    return _made.get(group, {}).get(sms)


def make_communicator(group: dist.ProcessGroup, sms: int, device: torch.device) -> None:
    """Make it, once, and use it once: what a first collective sets up must not wait behind others.

    Every member of ``group`` calls this, with the same ``sms`` and in the same order as for other
    groups, before any signaled op runs and outside graph captures. Other ranks take no part.
    """
    if communicator(group, sms):
        return
    if torch.cuda.is_current_stream_capturing():
        raise GroupError(
            "A communicator cannot be made during graph capture.",
            where=f"process group {group.group_name!r}",
            remedy="run once before the capture",
        )
    made = sibling(group, "nccl", _at_most(sms))
    stream = communication_stream(device, group.group_name)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        made.allreduce([torch.zeros(1, device=device)]).wait()
    stream.synchronize()
    _made.setdefault(group, {})[sms] = made


def sibling(group: dist.ProcessGroup, backend: str, options: Any = None) -> dist.ProcessGroup:
    """A group of the same members in the same order; only they take part in making it."""
    ranks = dist.get_process_group_ranks(group)
    # Sorting would deal the rows out to other ranks than the group does.
    order: dict[str, Any] = {} if ranks == sorted(ranks) else {"sort_ranks": False}
    made = dist.new_group(
        ranks,
        backend=backend,
        pg_options=options,
        use_local_synchronization=True,
        group_desc=f"overlapc beside {group.group_name}",
        **order,
    )
    if not isinstance(made, dist.ProcessGroup) or made.rank() != group.rank():
        raise GroupError(
            "No group with the same members in the same order could be made.",
            where=f"process group {group.group_name!r} of ranks {ranks}",
            remedy="use the chunked schedule, and report this",
        )
    return made


def _at_most(sms: int) -> Any:
    """Options of NCCL: no more CTAs than these, on a stream that goes first."""
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options.config.max_ctas = sms
    return options
