"""Process groups by name, and the check that their members would plan alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C._distributed_c10d import PrefixStore, Store

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


def backend_name(group: dist.ProcessGroup, device: str = "cpu") -> str:
    """Return the group's communication backend for a device type, such as ``gloo``."""
    is_ours = isinstance(group, dist.ProcessGroup) and group not in c10d._world.pg_map
    name = "undefined" if is_ours else dist.get_backend(group).lower()
    if name != "undefined" and ":" not in name:
        return name
    # Made with "cpu:gloo,cuda:nccl", or without a choice, or by ourselves: the group knows one a
    # device type.
    try:
        return group._get_backend(torch.device(device)).name().lower()
    except RuntimeError as error:
        raise GroupError(
            f"The group has no backend for {device}: {error}",
            where=f"process group {group.group_name!r}",
            remedy="name one in init_process_group, or keep the tensors where it has one",
        ) from error


class _Talk:
    """Where the comparisons of one group stand: every member makes them in the same order."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.store = c10d._get_process_group_store(group)
        self.rank, self.size = group.rank(), group.size()
        # A group that is made again under its name finds the keys of the one before in its store.
        generation = self.store.add(f"overlapc/generation/{self.rank}", 1)
        self.prefix = f"overlapc/{generation}"
        self.turn = 0

    def exchange(self, value: str, seconds: float) -> list[str] | None:
        """Return every member's value of this turn; None if one did not come in time."""
        turn, self.turn = self.turn, self.turn + 1
        keys = [f"{self.prefix}/{turn}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], value)
        try:
            self.store.wait(keys, timedelta(seconds=seconds))
        except (RuntimeError, dist.DistError):
            self.late = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
            self.store.set(keys[self.rank], GAVE_UP)  # who comes later shall fail as well
            return None
        if turn:  # all have come to this turn, so none still reads what was said at the last
            self.store.delete_key(f"{self.prefix}/{turn - 1}/{self.rank}")
        return [self.store.get(key).decode() for key in keys]


GAVE_UP = "gave up waiting"

_talks: WeakKeyDictionary[dist.ProcessGroup, _Talk] = WeakKeyDictionary()
_agreed: WeakKeyDictionary[dist.ProcessGroup, set[str]] = WeakKeyDictionary()


def agree_once(
    group: dist.ProcessGroup, choices: str, seconds: float, sends: Sequence[str] | None = None
) -> None:
    """Compare ``choices`` with the group's other members, at their first use only.

    ``choices`` holds everything that decides a plan: sources, options, target. ``sends`` tells the
    collectives of a graph on the group in their order, each as "how at where", and is compared
    where every member knows its own: None where this one does not.
    """
    agreed = _agreed.setdefault(group, set())
    if choices in agreed:
        return
    digest = "" if sends is None else hashlib.sha256(repr(list(sends)).encode()).hexdigest()
    values = exchange(group, f"{choices}{GRAPH}{digest}", seconds)
    # A member that meets us elsewhere says something else altogether.
    said = [value.partition(GRAPH) for value in values]
    if any(other != choices for other, _, _ in said):
        others = [other for other, _, _ in said]
        raise_disagreement(group, others, "their sources, options or targets differ", ALIKE)
    digests = [other for _, _, other in said]
    if sends is not None and all(digests) and len(set(digests)) > 1:
        _compare_sends(group, sends, seconds)
    agreed.add(choices)


GRAPH = " graph="


def _compare_sends(group: dist.ProcessGroup, sends: Sequence[str], seconds: float) -> None:
    """Raise on every member where their graphs, which differ, send one collective differently.

    A graph that ends earlier on one rank goes on in that rank's next one.
    """
    values = exchange(group, json.dumps(sends), seconds)
    if not all(value.startswith("[") for value in values):
        raise_disagreement(group, values, "they send the graph's collectives differently", DECIDED)
    lists = [json.loads(value) for value in values]
    for number, sent in enumerate(zip(*lists, strict=False), 1):
        if len({how.partition(" at ")[0] for how in sent}) > 1:
            what = f"they send collective {number} of a graph differently"
            raise_disagreement(group, sent, what, DECIDED)


ALIKE = (
    "start every rank with the same installation, options, environment and target, and the same "
    "table of linear layers, where there is one"
)
DECIDED = (
    "give all ranks equal sizes, or set option overlap to 'off'; overlapc.explain tells on each "
    "rank why it decides so"
)


def raise_disagreement(
    group: dist.ProcessGroup, values: Sequence[str], what: str, remedy: str, at: str = ""
) -> NoReturn:
    """Raise the ``DisagreementError`` that shows what every rank said; ``at`` is of which call."""
    named = f"process group {group.group_name!r} of {group.size()} ranks, on rank {group.rank()}"
    raise DisagreementError(
        f"The ranks of this group do not agree: {what}. {_said(values)}.",
        where=f"{at}, {named}" if at else named,
        remedy=remedy,
    )


def exchange(group: dist.ProcessGroup, value: str, seconds: float) -> list[str]:
    """Return the value that every member passes, by rank.

    Works through the group's store: nothing is sent on the group itself, so members that would
    issue different collectives still meet here. ``DisagreementError`` after ``seconds``, GroupError
    where the process that keeps the store has ended.
    """
    if group.size() == 1 or _is_fake(group):
        return [value]  # a fake group has no other members to ask
    with _store_that_answers(group):
        values = _talk(group).exchange(value, seconds)
    if values is None:
        _raise_late(
            group, f"Ranks {_talk(group).late} did not say within {seconds:g} s what they run."
        )
    if GAVE_UP in values:
        gone = [rank for rank, other in enumerate(values) if other == GAVE_UP]
        _raise_late(group, f"Ranks {gone} have given up waiting for what this rank runs.")
    return values


def _raise_late(group: dist.ProcessGroup, what: str) -> NoReturn:
    raise DisagreementError(
        what,
        where=f"process group {group.group_name!r}, where compiled graphs compare what they run",
        remedy="compile with backend 'overlapc' on every rank, and look for the rank that failed "
        "or is still compiling (option agreement_seconds)",
    )


def store_beside(group: dist.ProcessGroup, name: str) -> Store:
    """Return the part of the group's store that its members alone know under this name.

    No group of the same name, before or after, reads what is written there.
    """
    talk = _talk(group)
    return PrefixStore(f"{talk.prefix}/{name}", talk.store)


@contextmanager
def _store_that_answers(group: dist.ProcessGroup) -> Iterator[None]:
    try:
        yield
    except dist.DistError as error:
        raise GroupError(
            unheard(error),
            where=f"process group {group.group_name!r}, where ranks compare their graphs",
            remedy="look for the rank that ended first, and start all of them again",
        ) from error


def unheard(error: RuntimeError) -> str:
    """Return what it means that a group's store raises this."""
    return (
        "The store of the group does not answer, so the process that keeps it, often rank 0's, has "
        f"ended: {error}."
    )


def _talk(group: dist.ProcessGroup) -> _Talk:
    talk = _talks.get(group)
    if talk is None:
        talk = _talks[group] = _Talk(group)
    return talk


def _is_fake(group: dist.ProcessGroup) -> bool:
    return any(group._get_backend(d).name().lower() == "fake" for d in group._device_types)


def _said(values: Sequence[str]) -> str:
    return ", ".join(f"Rank {rank}: {value}" for rank, value in enumerate(values))
