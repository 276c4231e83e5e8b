"""The groups of one call: which units each computes and sends, and where what comes belongs.

Every function here gives the same on all ranks but for ``me``, so all send the same groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlapc.runtime.cutting.units import (
    WHOLE_SHARE,
    Box,
    Range,
    Share,
    Units,
    band,
    dealt,
    portions,
    ranges,
)


@dataclass(frozen=True)
class Dealing:
    """How the moved tensor's units belong to ranks."""

    collective: str
    axis: int
    """Dimension that is scattered or gathered; of an all-reduce neither is."""
    units: int
    """Of the program."""
    ranks: int
    me: int
    outer: int = 1
    """The units are [outer, ranks, inner] where dimension 0 is scattered or gathered."""
    receives: tuple[int, ...] = ()
    """Units from each rank, and to each: of an uneven all-to-all, else empty."""
    sends: tuple[int, ...] = ()

    @property
    def is_uneven(self) -> bool:
        """Whether ranks differ in how much they send each other."""
        return bool(self.sends)

    @property
    def by_rank(self) -> bool:
        """Whether a group has some units of every rank, and not parts of whole units."""
        return self.axis == 0 and self.collective != "all_reduce"

    @property
    def each(self) -> int:
        """Units of each rank where dimension 0 is dealt out evenly, else all units."""
        return self.units // self.ranks if self.by_rank else self.units

    @property
    def result_units(self) -> int:
        """Dimension 0 of what a producer's collective gives."""
        if self.collective == "all_to_all":
            return sum(self.receives) if self.is_uneven else self.ranks * self.each
        return self.each

    @property
    def grid(self) -> tuple[int, int, int]:
        """The program's units as [outer, ranks, inner]."""
        return self.outer, self.ranks, self.each // self.outer

    @property
    def others(self) -> list[int]:
        """Every rank but this one."""
        return [rank for rank in range(self.ranks) if rank != self.me]

    @property
    def other_spans(self) -> list[Range]:
        """The same as ranges."""
        spans = [(0, self.me), (self.me + 1, self.ranks)]
        return [span for span in spans if span[0] < span[1]]


@dataclass(frozen=True)
class Part:
    """One group: what is computed, and one collective."""

    computed: Units
    """Of the program's units, in the order in which they are computed."""
    sent: Units
    """Which go, in the order in which they are sent: of the units just computed, or of what a
    consumer was given."""
    landed: Units
    """Where in a producer's result it lands; which of what arrived a consumer computes with."""
    receives: tuple[int, ...] = ()
    """Units from each rank, and to each, where uneven."""
    sends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Local:
    """What a consumer computes before anything has arrived."""

    computed: Units
    own: Units
    """``own`` in what the rank itself sends."""


def everything(units: int) -> Units:
    """Return all units in their order."""
    return band(0, units, units)


def producer_parts(deal: Dealing, counts: Sequence[int]) -> list[Part]:
    """Return the groups of a producer: ``counts`` units each, of every rank where dealt by rank.

    Of an uneven all-to-all ``counts`` only says in which proportion every block is cut.
    """
    if deal.is_uneven:
        return [_uneven_producer(deal, share) for share in shares(counts)]
    if len(counts) == 1:
        return [_whole_producer(deal)]
    parts = []
    for start, end in ranges(counts):
        computed = dealt(deal.grid, start, end) if deal.by_rank else band(start, end, deal.units)
        landed = band(start, end, deal.each)
        if deal.collective == "all_to_all":
            landed = dealt((1, deal.ranks, deal.each), start, end)
        parts.append(Part(computed, everything(computed.count), landed))
    return parts


def _whole_producer(deal: Dealing) -> Part:
    packed = dealt(deal.grid, 0, deal.each) if deal.by_rank else everything(deal.units)
    landed = deal.each * (deal.ranks if deal.collective == "all_to_all" else 1)
    return Part(everything(deal.units), packed, everything(landed))


def shares(counts: Sequence[int]) -> list[Share]:
    """Return each group's share of a block that is cut in the proportion of ``counts``."""
    return [(start, end, sum(counts)) for start, end in ranges(counts)]


def _uneven_producer(deal: Dealing, share: Share) -> Part:
    everyone = range(deal.ranks)
    computed = portions(deal.sends, share, everyone)
    return Part(
        computed,
        everything(computed.count),
        portions(deal.receives, share, everyone),
        _sizes(deal.receives, share),
        _sizes(deal.sends, share),
    )


def consumer_parts(deal: Dealing, counts: Sequence[int]) -> tuple[Local | None, list[Part]]:
    """Return what a consumer computes first, and its groups; ``counts`` as above.

    Without ``counts`` it is one collective for everything, and then one computation.
    """
    if not counts:
        return None, [_whole_consumer(deal)]
    if deal.is_uneven:
        parts = [_uneven_consumer(deal, share) for share in shares(counts)]
        computed = portions(deal.receives, WHOLE_SHARE, [deal.me])
        return Local(computed, portions(deal.sends, WHOLE_SHARE, [deal.me])), parts
    parts = [_even_consumer(deal, start, end) for start, end in ranges(counts)]
    if not deal.by_rank:
        return None, parts
    mine = [(deal.me, deal.me + 1)]
    own = everything(deal.each)
    if deal.collective == "all_to_all":
        own = dealt((1, deal.ranks, deal.each), 0, deal.each, mine)
    return Local(dealt(deal.grid, 0, deal.each, mine), own), parts


def _even_consumer(deal: Dealing, start: int, end: int) -> Part:
    count = end - start
    sent = band(start, end, deal.each)
    if deal.collective == "all_to_all":
        sent = dealt((1, deal.ranks, deal.each), start, end)
    if not deal.by_rank:
        return Part(band(start, end, deal.units), sent, everything(count))
    computed = dealt(deal.grid, start, end, deal.other_spans)
    landed = dealt((1, deal.ranks, count), 0, count, deal.other_spans)
    return Part(computed, sent, landed)


def _whole_consumer(deal: Dealing) -> Part:
    if deal.is_uneven:
        computed = everything(deal.units)
        sent = everything(sum(deal.sends))
        return Part(computed, sent, computed, deal.receives, deal.sends)
    each = deal.each * (deal.ranks if deal.collective == "all_to_all" else 1)
    landed = everything(deal.units)
    if deal.outer > 1:
        outer, ranks, inner = deal.grid
        # It arrives as [ranks, outer, inner] and is wanted as [outer, ranks, inner].
        landed = Units((ranks, outer, inner), (Box((0, ranks), (0, outer), (0, inner)),))
    return Part(everything(deal.units), everything(each), landed)


def _uneven_consumer(deal: Dealing, share: Share) -> Part:
    receives = _sizes(deal.receives, share)
    return Part(
        portions(deal.receives, share, deal.others),
        portions(deal.sends, share, range(deal.ranks)),
        portions(receives, WHOLE_SHARE, deal.others),
        receives,
        _sizes(deal.sends, share),
    )


def _sizes(sizes: Sequence[int], share: Share) -> tuple[int, ...]:
    """Units of a share of every block."""
    low, high, whole = share
    return tuple(size * high // whole - size * low // whole for size in sizes)
