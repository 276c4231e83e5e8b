"""The communicator on which signaled chains talk to a group: its own, and held to a few SMs.

A collective that shares the user's communicator would queue behind waiters, or they behind it; and
only a communicator of its own can be held to the SMs that the GEMM leaves free.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend, Store

from overlapc.runtime.ranks import groups
from overlapc.runtime.signaled.requirements import why_no_streams
from overlapc.runtime.signaled.streams import communication_stream

log = logging.getLogger(__name__)

READY, LATER, NEVER = "ready", "later: ", "never: "


@dataclass(frozen=True)
class Communicator:
    """The same members as a group, in the same order."""

    group: dist.ProcessGroup
    """None of c10d's own list: nobody else finds or uses it."""
    name: Hashable
    """Of its communication stream, and of what it has loaded. Groups' names come again; it does
    not."""


_known: WeakKeyDictionary[dist.ProcessGroup, dict[int, Communicator | str]] = WeakKeyDictionary()
_numbers = count()


def communicator(
    group: dist.ProcessGroup, sms: int, device: torch.device, seconds: float
) -> Communicator | str:
    """The communicator beside ``group`` with at most ``sms`` CTAs, or any for 0; or why there is
    none.

    The first call makes it, outside graph captures: every member calls this with the same ``sms``
    at the same place among the group's ops, before it sends anything of that op. Members say to
    each other whether they can, so all have one or none. Other ranks take no part. It goes with the
    group. ``DisagreementError`` where a member does not come within ``seconds``.
    """
    known = _known.get(group, {}).get(sms)
    return _meet(group, sms, device, seconds) if known is None else known


def adopt(group: dist.ProcessGroup, sms: int, made: Communicator) -> None:
    """Let ``communicator`` give this one for a group whose members cannot meet: an emulated one."""
    _known.setdefault(group, {})[sms] = made


def _meet(
    group: dist.ProcessGroup, sms: int, device: torch.device, seconds: float
) -> Communicator | str:
    made = None
    why = _common(group, f"communicator of {sms}", _answer(device, group), seconds)
    if not why:
        try:
            made, failed = _made(group, sms, device), READY
        except Exception as error:
            failed = f"{NEVER}{error}"
        why = _common(group, f"communicator of {sms}, made", failed, seconds)
    if made is not None and not why:
        finalize(group, _end, made.group).atexit = False
    elif made is not None:
        _end(made.group)
        made = None
    if not why.startswith(LATER):
        _known.setdefault(group, {})[sms] = made or why
    return made or why.removeprefix(LATER)


def _answer(device: torch.device, group: dist.ProcessGroup) -> str:
    if why := why_no_streams(device, group):
        return f"{NEVER}{why}"
    if torch.cuda.is_current_stream_capturing():
        return f"{LATER}It is first called in a graph capture, and has to be called once before."
    return READY


def _common(group: dist.ProcessGroup, topic: str, mine: str, seconds: float) -> str:
    """What keeps some member from it, "later" only if nothing does for ever; empty if nothing."""
    values = groups.exchange(group, f"{topic}: {mine}", seconds)
    if not all(value.startswith(f"{topic}: ") for value in values):
        groups.raise_disagreement(
            group, values, "they run other ops, or in another order", groups.ALIKE
        )
    said = [value.removeprefix(f"{topic}: ") for value in values]
    for rank, value in enumerate(said):
        if value.startswith(NEVER):
            why = value.removeprefix(NEVER)
            return why if said[group.rank()] == value else f"Rank {rank} of the group says: {why}"
    return next((value for value in said if value != READY), "")


def _made(group: dist.ProcessGroup, sms: int, device: torch.device) -> Communicator:
    """Make it and use it once: what a first collective sets up must not wait behind others."""
    name = group.group_name, next(_numbers)
    made = beside(group, f"communicator/{sms}", sms, device)
    stream = communication_stream(device, name)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        made.allreduce([torch.zeros(1, device=device)]).wait()
    stream.synchronize()
    return Communicator(made, name)


def beside(
    group: dist.ProcessGroup, name: str, sms: int, device: torch.device
) -> dist.ProcessGroup:
    """A group of NCCL's with the members of ``group`` and their order, and at most so many CTAs.

    Not by ``new_group``, even with its local synchronization: that names a group after how many
    groups a rank knows, and ranks of which one knows more wait for each other for ever; and where
    a device is bound it splits a communicator, in which every rank of the world has to take part.
    """
    store = groups.store_beside(group, name)
    options: Any = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    if sms:  # of none a kernel leaves none: it has ended before anything is sent
        options.config.max_ctas = sms
    options.global_ranks_in_group = dist.get_process_group_ranks(group)
    options.group_name = f"overlapc_{group.group_name}_{name}"
    theirs = group._get_backend(device)
    options._timeout = getattr(theirs, "options", options)._timeout
    backend = dist.ProcessGroupNCCL(store, group.rank(), group.size(), options)
    return registered(backend, store, dist.ProcessGroup.BackendType.NCCL, device)


def registered(
    backend: Backend, store: Store, kind: dist.ProcessGroup.BackendType, device: torch.device
) -> dist.ProcessGroup:
    """A group of one backend alone."""
    made = dist.ProcessGroup(store, backend.rank(), backend.size())
    made._set_default_backend(kind)
    made._register_backend(torch.device(device.type), kind, backend)
    return made


def _end(made: dist.ProcessGroup) -> None:
    try:
        made.shutdown()
    except RuntimeError as error:  # of a communicator whose peers are gone, too
        log.info("a communicator was not shut down: %s", error)
