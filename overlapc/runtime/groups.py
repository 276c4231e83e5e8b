"""Process groups by name, and the check that their members would plan alike."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from weakref import WeakKeyDictionary

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from overlapc.errors import DisagreementError, GroupError


def resolve(name: str) -> dist.ProcessGroup:
    """Return the living process group of that name; ``GroupError`` if there is none."""
    try:
        return c10d._resolve_process_group(name)  # pyright: ignore
    except (RuntimeError, ValueError, LookupError) as error:
        raise GroupError(
            f"There is no process group {name!r} (any more): {error}",
            where="a compiled graph that communicates on it",
            remedy="keep the group while the compiled model is used, or call "
            "torch._dynamo.reset() and compile again for the new group",
        ) from error


def sizes_of_groups() -> dict[str, int]:
    """Return the size of every process group of this process, by name."""
    if not dist.is_available() or not dist.is_initialized():
        return {}
    return {name: group.size() for group, name in c10d._world.pg_names.items()}


def backend_name(group: dist.ProcessGroup) -> str:
    """Return the name of the group's communication backend, such as ``gloo``."""
    return dist.get_backend(group).lower()


# How many comparisons each group has made here. Every member compares in the same order, so the
# n-th of one rank meets the n-th of the others in the group's store.
_comparisons: WeakKeyDictionary[dist.ProcessGroup, int] = WeakKeyDictionary()
_agreed: WeakKeyDictionary[dist.ProcessGroup, set[str]] = WeakKeyDictionary()


def agree_once(group: dist.ProcessGroup, digest: str, seconds: float) -> None:
    """Compare ``digest`` with the group's other members, at its first use only.

    ``digest`` stands for everything that decides a plan: sources, options, target.
    """
    agreed = _agreed.setdefault(group, set())
    if digest not in agreed:
        compare(group, digest, seconds, what="their sources, options or targets differ")
        agreed.add(digest)


def compare(group: dist.ProcessGroup, value: str, seconds: float, *, what: str) -> None:
    """Raise ``DisagreementError`` on every member unless all members pass equal values.

    Works through the group's store: nothing is sent on the group itself, so members that would
    issue different collectives still meet here. Waits at most ``seconds`` for the others.
    """
    if group.size() == 1 or backend_name(group) == "fake":
        return  # a fake group has no other members to ask
    turn = _comparisons.get(group, 0)
    _comparisons[group] = turn + 1
    store = c10d._get_process_group_store(group)
    mine = group.rank()
    keys = [f"overlapc/{turn}/{rank}" for rank in range(group.size())]
    store.set(keys[mine], value)
    others = _values_of_others(store, keys, seconds, group)
    different = [rank for rank, other in enumerate(others) if other != value]
    if turn:  # all have come to this turn, so none still reads what was said at the last
        store.delete_key(f"overlapc/{turn - 1}/{mine}")
    if different:
        raise DisagreementError(
            f"The ranks of this group would not run the same plan: {what}. "
            f"Rank {mine} has {value}; {_said(others)}.",
            where=f"process group {group.group_name!r} of {group.size()} ranks",
            remedy="start every rank with the same installation, options, environment and target",
        )


def _values_of_others(
    store: c10d.Store, keys: list[str], seconds: float, group: dist.ProcessGroup
) -> list[str]:
    try:
        store.wait(keys, timedelta(seconds=seconds))
    except (RuntimeError, dist.DistError) as error:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        raise DisagreementError(
            f"Ranks {missing} did not say within {seconds:g} s which plan they follow.",
            where=f"process group {group.group_name!r}, first call of a compiled graph",
            remedy="compile with backend 'overlapc' on every rank, and look for the rank that "
            "failed or is still compiling (option agreement_seconds)",
        ) from error
    return [store.get(key).decode() for key in keys]


def _said(values: list[str]) -> str:
    return ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))


def digest_of(*parts: str) -> str:
    """Return a short hash of the parts."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]
