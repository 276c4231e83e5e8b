"""A discrete-event simulation of two resources that slow each other: the oracle of the cost model.

Shares no code with `overlapc.planning`, and computes in fractions, so it rounds nothing. Of a
generated kernel it goes through the tiles one by one, by the table that the kernel itself reads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from heapq import heappop, heappush

from overlapc.codegen import Bands


def simulate(
    work: Sequence[float],
    alone: Sequence[float],
    queued: Sequence[float],
    compute_slowdown: float,
    link_slowdown: float,
) -> tuple[list[Fraction], list[Fraction]]:
    """When each group's compute and each group's transfer ends, where compute comes first.

    Compute takes the groups in order. A computed group joins the link's queue: if that is empty it
    is ``alone`` seconds of work, else ``queued``, or more where all that is queued were less than
    ``alone``. While both resources have something to do, compute runs ``compute_slowdown`` and the
    link ``link_slowdown`` times slower. Steps from one completion to the next.
    """
    to_compute = [Fraction(seconds) for seconds in work]
    to_send: list[Fraction] = []
    computed: list[Fraction] = []
    sent: list[Fraction] = []
    now = Fraction(0)
    while len(sent) < len(to_compute):
        computing = len(computed) < len(to_compute)
        sending = len(sent) < len(to_send)
        both = computing and sending
        compute_rate = 1 / Fraction(compute_slowdown if both else 1)
        link_rate = 1 / Fraction(link_slowdown if both else 1)
        until_computed = to_compute[len(computed)] / compute_rate if computing else None
        until_sent = to_send[len(sent)] / link_rate if sending else None
        step = min(until for until in (until_computed, until_sent) if until is not None)
        now += step
        if computing:
            to_compute[len(computed)] -= step * compute_rate
        if sending:
            to_send[len(sent)] -= step * link_rate
        if sending and to_send[len(sent)] == 0:
            sent.append(now)
        if computing and to_compute[len(computed)] == 0:
            group, left = len(computed), sum(to_send)
            computed.append(now)
            needs = max(Fraction(queued[group]), Fraction(alone[group]) - left)
            to_send.append(needs if left else Fraction(alone[group]))
    return computed, sent


def simulate_consumer(
    local: float,
    sent: Sequence[float],
    work: Sequence[float],
    compute_slowdown: float,
    link_slowdown: float,
) -> tuple[Fraction, list[Fraction], list[Fraction]]:
    """When the local rows are computed, each group has come, and each group is computed.

    All transfers are under way from the start, one after the other. Compute takes the local rows,
    then each group in order, once it has come. Slowdowns as in `simulate`. Every piece of work is
    done at the rate of the moment, from one change of what runs to the next.
    """
    chores = [Fraction(seconds) for seconds in (local, *work)]
    parcels = [Fraction(seconds) for seconds in sent]
    finished: list[Fraction] = []
    come: list[Fraction] = []
    now = Fraction(0)
    while len(finished) < len(chores):
        # Chore 0 waits for nothing, chore g for parcel g - 1.
        link_runs, compute_runs = len(come) < len(parcels), len(finished) <= len(come)
        slow = link_runs and compute_runs
        events = []
        if link_runs:
            events.append(parcels[len(come)] * Fraction(link_slowdown if slow else 1))
        if compute_runs:
            events.append(chores[len(finished)] * Fraction(compute_slowdown if slow else 1))
        passed = min(events)
        now += passed
        chore, parcel = len(finished), len(come)
        if compute_runs:
            chores[chore] -= passed / Fraction(compute_slowdown if slow else 1)
        if link_runs:
            parcels[parcel] -= passed / Fraction(link_slowdown if slow else 1)
        if compute_runs and chores[chore] == 0:
            finished.append(now)
        if link_runs and parcels[parcel] == 0:
            come.append(now)
    return finished[0], come, finished[1:]


Place = tuple[int, int, int]
"""Of a tile: its group, the first row of A that it reads, and its column of tiles."""


def tile_places(bands: Bands, row_tiles: int, sweep: int) -> list[Place]:
    """Every tile of C in the order in which a generated kernel begins them, from its own table.

    ``row_tiles`` are in one tile row, and ``sweep`` tile rows are visited together.
    """
    table = bands.table
    places: list[Place] = []
    for at in range(table[0]):
        group, first, tall, source, _, _ = table[table[1 + at] : table[1 + at] + 6]
        for tile in range(at * row_tiles, (at + 1) * row_tiles):
            position = tile - first * row_tiles
            begun = position // (sweep * row_tiles) * sweep
            height = min(sweep, tall - begun)
            inside = position - begun * row_tiles
            row = begun + inside % height
            places.append((group, source + row * bands.block_m, inside // height))
    return places


def finished(places: Sequence[Place], workers: int) -> list[int]:
    """After how many tiles of one worker each group is whole; the first that is free takes each."""
    free = [0] * workers
    ends: dict[int, int] = {}
    for group, _, _ in places:
        done = heappop(free) + 1
        heappush(free, done)
        ends[group] = max(ends.get(group, 0), done)
    return [ends[group] for group in sorted(ends)]


def panels_read(
    places: Sequence[Place],
    workers: int,
    panel_bytes: tuple[int, int],
    cache_bytes: int,
    steps: int = 1,
) -> int:
    """Bytes of A's and B's panels that a cache fetches which drops what was used longest ago.

    The tiles of a wave read side by side, in so many steps, so that each step's part of a panel is
    fetched once for all of them.
    """
    cached: OrderedDict[tuple[str, int, int], int] = OrderedDict()
    fetched = held = 0
    for start in range(0, len(places), workers):
        wave = places[start : start + workers]
        sides = [
            (name, dict.fromkeys(place[of] for place in wave), size // steps)
            for name, of, size in (("A", 1, panel_bytes[0]), ("B", 2, panel_bytes[1]))
        ]
        for step in range(steps):
            for name, panels, size in sides:
                for panel in panels:
                    if (name, panel, step) not in cached:
                        fetched += size
                        held += size
                    cached[name, panel, step] = size
                    cached.move_to_end((name, panel, step))
            while held > cache_bytes:
                held -= cached.popitem(last=False)[1]
    return fetched
