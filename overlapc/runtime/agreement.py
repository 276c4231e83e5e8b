"""How the ranks of a group come to cut a call alike, although their own plans might differ."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low
from weakref import WeakKeyDictionary

import torch.distributed as dist

from overlapc.runtime import groups

MOST_REMEMBERED = 4096
"""Agreements of one group, of which the oldest are asked for again: about one a size and site."""


@dataclass(frozen=True)
class Cut:
    """How a call is cut: by which schedule, and how many GEMM rows each group has."""

    schedule: str
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.schedule} rows {self.rows}"


_agreed: WeakKeyDictionary[dist.ProcessGroup, dict[str, Cut]] = WeakKeyDictionary()


def common_cut(group: dist.ProcessGroup, chain: str, sizes: str, mine: Cut, seconds: float) -> Cut:
    """Return ``mine`` if every rank would cut the same, else one group for everything.

    A shard of uneven size has other sizes on some ranks, and so may have another plan. ``sizes``
    are those that the collective wants equal: ranks that differ in them are an error. Asked once
    for each chain and sizes, which all ranks come to in the same order.
    """
    known = _agreed.setdefault(group, {})
    key = f"{chain} {sizes}"
    if key not in known:
        values = groups.exchange(group, f"{sizes} in {mine}", seconds)
        if len({value.partition(" in ")[0] for value in values}) > 1:
            groups.raise_disagreement(group, values, what="the sizes of a call differ")
        alike = len(set(values)) == 1
        _remember(known, key, mine if alike else Cut("serial", (sum(mine.rows),)))
    return known[key]


def known_cut(group: dist.ProcessGroup, chain: str) -> Cut | None:
    """Return what ``common_count`` returned for the chain, or None if it was not asked."""
    return _agreed.get(group, {}).get(chain)


def common_count(group: dist.ProcessGroup, chain: str, mine: Cut, seconds: float) -> Cut:
    """Return into how many portions all ranks cut every block of an uneven all-to-all.

    Sizes differ by rank and by call, so the ranks' wishes at the first call are compared, and the
    middle one is kept for the chain. The rows of the cut only say how many groups there are.
    """
    values = groups.exchange(group, f"uneven {len(mine.rows)} {mine.schedule}", seconds)
    wishes = [value.split() for value in values]
    if any(wish[0] != "uneven" for wish in wishes):
        groups.raise_disagreement(group, values, what="some send evenly, and others do not")
    count, schedule = median_low((int(count), schedule) for _, count, schedule in wishes)
    cut = Cut(schedule, (1,) * count)
    _remember(_agreed.setdefault(group, {}), chain, cut)
    return cut


def _remember(known: dict[str, Cut], key: str, cut: Cut) -> None:
    if len(known) >= MOST_REMEMBERED:
        del known[next(iter(known))]
    known[key] = cut
