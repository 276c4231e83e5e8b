"""Waiting for the members of a group, of which one may have failed where the others send on.

Who fails between two collectives leaves them in one that never ends. It says so through the group's
store, which needs nothing of what is being sent, and who waits looks there from time to time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from overlapc.errors import GroupError
from overlapc.runtime import groups
from overlapc.runtime.sending import Work

LOOKS_EVERY = timedelta(seconds=2)
"""What a wait lasts before the store is asked; one that ends sooner pays nothing for it."""

FAILED = "failed"


def wait(group: dist.ProcessGroup, work: Work, device: torch.device) -> None:
    """Wait for work of the group; ``GroupError`` where a member said that it failed.

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
            if work.is_completed():  # by now, or it failed itself, which is raised here
                work.wait()
                return


def check(group: dist.ProcessGroup) -> None:
    """Raise GroupError where a member has failed before. All call it, before they wait."""
    if said := failure(group):
        raise _error(said)


def failure(group: dist.ProcessGroup) -> str:
    """What the member that failed first said; empty where none did."""
    store = groups.store_beside(group, "trials")
    return store.get(FAILED).decode() if store.check([FAILED]) else ""


@contextmanager
def failures_told(group: dist.ProcessGroup, where: str) -> Iterator[None]:
    """Let every member raise the same GroupError where one fails in here, at whatever it was.

    From then on the group is of no use, as `check` says.
    """
    try:
        yield
    except BaseException as error:
        mine = f"Rank {group.rank()} failed in {where}: {type(error).__name__}: {error}"
        store = groups.store_beside(group, "trials")
        said = store.compare_set(FAILED, "", mine).decode()
        if isinstance(error, Exception):
            raise _error(said) from error
        raise


def _error(said: str) -> GroupError:
    return GroupError(
        f"{said}. What its group still sends is not known, so all its members stop.",
        where="trials of chains",
        remedy="see to the error of that rank, and call again on a new group; what was measured "
        "before it is kept where results are stored",
    )
