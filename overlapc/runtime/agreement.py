"""How the ranks of a group come to cut a call alike, although their own plans might differ."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch.distributed as dist

from overlapc.planning.problem import ROWS
from overlapc.planning.tiles import Tile
from overlapc.runtime import comparing, groups

MOST_REMEMBERED = 4096
"""Agreements of one group, of which the oldest are asked for again: about one a size and site."""


@dataclass(frozen=True)
class Cut:
    """How a call is cut: by which schedule, and how many GEMM rows, columns or tiles each group
    has."""

    schedule: str
    rows: tuple[int, ...]
    by: str = ROWS
    """What ``rows`` counts, "rows", "columns" or "tiles"."""
    tile: Tile | None = None
    """Of groups of tiles: other tiles lie elsewhere."""

    def __str__(self) -> str:
        return f"{self.schedule} {self.by} {self.rows}{f' of {self.tile}' if self.tile else ''}"


_agreed: WeakKeyDictionary[dist.ProcessGroup, dict[str, Cut]] = WeakKeyDictionary()


def common_cut(group: dist.ProcessGroup, site: str, sizes: str, mine: Cut, seconds: float) -> Cut:
    """Return ``mine`` if every rank would cut the same, else one group for everything.

    A shard of uneven size has other sizes on some ranks, and so may have another plan. ``sizes``
    are those that the collective wants equal: ranks that differ in them are an error. Asked once
    for each site and sizes, which all ranks come to in the same order.
    """
    known = _agreed.setdefault(group, {})
    key = f"{site} {sizes}"
    if key not in known:
        values = groups.exchange(group, f"{sizes} in {mine}", seconds)
        if len({value.partition(" in ")[0] for value in values}) > 1:
            comparing.raise_unlike(group, values)
        alike = len(set(values)) == 1
        _remember(known, key, mine if alike else Cut("serial", (sum(mine.rows),)))
    return known[key]


def known_cut(group: dist.ProcessGroup, site: str) -> Cut | None:
    """Return what ``common_count`` returned for the site, or None if it was not asked."""
    return _agreed.get(group, {}).get(site)


def common_count(group: dist.ProcessGroup, site: str, call: str, mine: Cut, seconds: float) -> Cut:
    """Return in which proportion all ranks cut every block of an uneven all-to-all, or its columns.

    Rows differ by rank and by call, so the ranks' wishes at the first call are compared, and the
    one with the middle number of groups is kept for the site. Columns are cut where all wish it: of
    them every rank has as many.
    """
    text = f"{call} of uneven parts in "
    wish = f"{mine.schedule} {mine.by} {','.join(map(str, mine.rows))}"
    values = groups.exchange(group, text + wish, seconds)
    if not all(value.startswith(text) for value in values):
        comparing.raise_unlike(group, values)
    wishes = [_read_wish(value.removeprefix(text)) for value in values]
    if any(cut.by == ROWS for cut in wishes):
        wishes = [cut for cut in wishes if cut.by == ROWS]
    wishes.sort(key=lambda cut: (len(cut.rows), str(cut)))
    cut = wishes[(len(wishes) - 1) // 2]
    _remember(_agreed.setdefault(group, {}), site, cut)
    return cut


def _read_wish(value: str) -> Cut:
    schedule, by, rows = value.split()
    # A rank that has no rows now wishes for nothing; blocks that come later are one group.
    return Cut(schedule, tuple(max(1, int(count)) for count in rows.split(",")), by)


def _remember(known: dict[str, Cut], key: str, cut: Cut) -> None:
    if len(known) >= MOST_REMEMBERED:
        del known[next(iter(known))]
    known[key] = cut
