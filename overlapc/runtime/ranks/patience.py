"""Waiting for the members of a group, of which one may have failed where the others send on.

Who fails between two collectives leaves them in one that never ends. It says so through the group's
store, which needs nothing of what is being sent, and who waits looks there from time to time, and
leaves a sign of life. Whose process ended says nothing: it is who gives no sign when a collective
breaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from overlapc.errors import GroupError
from overlapc.runtime.ranks import groups
from overlapc.runtime.ranks.sending import Work

LOOKS_EVERY = timedelta(seconds=2)
"""What a wait lasts before the store is asked; one that ends sooner pays nothing for it."""

SIGNS_WITHIN = 30.0
"""Seconds in which whoever lives gives a sign, once a collective broke: some looks, and what a rank
computes between two waits. Chosen: to compile a trial takes about so long."""

FAILED, SIGNS = "failed", "signs"


def wait(group: dist.ProcessGroup, work: Work, device: torch.device) -> None:
    """Wait for work of the group; ``GroupError`` where a member said that it failed, or ended.

    On a GPU it is the stream that waits, and the group's own timeout ends what never comes.
    """
    if device.type != "cpu" or not isinstance(work, dist.Work):
        work.wait()
        return
    while True:
        try:
            work.wait(LOOKS_EVERY)
            return
        except RuntimeError:
            check(group)
            if work.is_completed():
                break
            _sign(group)
    try:
        work.wait()  # which it came to by now, or it failed itself
    except RuntimeError as error:
        _look_for_the_dead(group, error)
        raise


def check(group: dist.ProcessGroup) -> None:
    """Raise GroupError where a member has failed before. All call it, before they wait."""
    if said := failure(group):
        raise _error(said)


def failure(group: dist.ProcessGroup) -> str:
    """What the member that failed first said; empty where none did."""
    try:
        store = _store(group)
        return store.get(FAILED).decode() if store.check([FAILED]) else ""
    except dist.DistError as error:
        return groups.unheard(error)


@contextmanager
def failures_told(group: dist.ProcessGroup, where: str) -> Iterator[None]:
    """Let every member raise the same GroupError where one fails in here, at whatever it was.

    From then on the group is of no use, as `check` says.
    """
    try:
        yield
    except BaseException as error:
        mine = f"Rank {group.rank()} failed in {where}: {type(error).__name__}: {error}"
        said = _tell(group, mine)
        if isinstance(error, Exception):
            raise _error(said) from error
        raise


def _look_for_the_dead(group: dist.ProcessGroup, error: RuntimeError) -> None:
    """Raise GroupError where a collective broke for a member said that it failed, or gives no sign
    of life; return where all give one."""
    until = time.monotonic() + SIGNS_WITHIN
    try:
        before = _signs(group)
        while True:
            _sign(group)
            check(group)
            now = _signs(group)
            silent = [rank for rank, sign in enumerate(now) if sign == before[rank]]
            if not silent:
                return
            if time.monotonic() > until:
                break
            time.sleep(min(0.1, SIGNS_WITHIN / 10))
    except dist.DistError as other:
        raise _error(f"{groups.unheard(other)} A collective broke before: {error}") from error
    ranks = f"Rank {silent[0]} has" if len(silent) == 1 else f"Ranks {silent} have"
    said = f"{ranks} ended, or gave no sign for {SIGNS_WITHIN:g} s, when a collective broke: "
    raise _error(_tell(group, f"{said}{error}")) from error


def _tell(group: dist.ProcessGroup, mine: str) -> str:
    """What is told of the first failure: ``mine``, where none was told before."""
    try:
        return _store(group).compare_set(FAILED, "", mine).decode()
    except dist.DistError as error:
        return f"{mine}. {groups.unheard(error)}"


def _sign(group: dist.ProcessGroup) -> None:
    _store(group).add(f"{SIGNS}/{group.rank()}", 1)


def _signs(group: dist.ProcessGroup) -> list[int]:
    """How many each rank gave so far."""
    return [_store(group).add(f"{SIGNS}/{rank}", 0) for rank in range(group.size())]


def _store(group: dist.ProcessGroup) -> Store:
    return groups.store_beside(group, "trials")


def _error(said: str) -> GroupError:
    return GroupError(
        f"{said}. What its group still sends is not known, so all its members stop.",
        where="what the ranks of a group measure together",
        remedy="see to the error of that rank, and call again on a new group; what was stored "
        "before it stays",
    )
