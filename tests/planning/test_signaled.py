from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from random import Random

import pytest

from overlapc.codegen import Bands
from overlapc.codegen.bands import Run
from overlapc.planning import signaled
from overlapc.planning.cost import Costs, advance
from overlapc.planning.curve import Curve
from overlapc.planning.kernel_costs import KernelCosts
from overlapc.planning.signaled import (
    MAX_BOUNDARIES,
    Boundary,
    best_cut_of,
    best_groups,
    boundaries,
    signaled_cut,
    signaled_timeline,
)
from overlapc.planning.target import Target
from overlapc.planning.timelines import Cut
from tests.codegen.band_orders import staged_bands
from tests.planning.machines import KERNELS, random_kernel
from tests.planning.simulation import Place, finished, simulate, tile_places


@dataclass(frozen=True)
class Recurrence:
    """The model of a cut, written out, with its terms looked up: no code of the search."""

    signal: float
    sends: dict[tuple[int, bool], tuple[float, float]]
    """Seconds on an idle and on a busy link, by rows and whether they are the first."""

    @classmethod
    def of(cls, costs: Costs, ends: Sequence[Boundary]) -> Recurrence:
        rows = [0, *(end.rows for end in ends)]
        sizes = {
            (after - before, not before)
            for i, after in enumerate(rows)
            for before in rows[:i]
            if after > before
        }
        sends = {(count, first): costs.sent(count, is_first=first) for count, first in sizes}
        return cls(costs.target.signal_seconds, sends)

    def then(self, end: float, done: int, group: Boundary) -> float:
        """When the link is done with one more group, at ``end`` with ``done`` rows."""
        start = group.ready + self.signal
        alone, queued = self.sends[group.rows - done, not done]
        return start + alone if end <= start else max(end + queued, start + alone)

    def of_cut(self, groups: Sequence[Boundary]) -> float:
        end, done = 0.0, 0
        for group in groups:
            end, done = self.then(end, done, group), group.rows
        return end

    def of_the_best_cut(self, ends: Sequence[Boundary]) -> float:
        """Every cut is tried to its end: nothing is dropped."""

        def best(index: int, end: float, done: int) -> float:
            if index == len(ends):
                return end
            return min(
                best(after + 1, self.then(end, done, ends[after]), ends[after].rows)
                for after in range(index, len(ends))
            )

        return best(0, 0.0, 0)


def excess(costs: KernelCosts, ends: tuple[Boundary, ...]) -> float:
    """By how much the found cut is slower than the best of all cuts, as a ratio less 1."""
    model = Recurrence.of(costs, ends)
    return abs(model.of_cut(best_groups(costs, ends)) / model.of_the_best_cut(ends) - 1)


def compared(seed: int, cases: int, most: int, kind: str) -> tuple[float, int]:
    """The worst excess over cuts of the last waves, and the most waves there were."""
    random = Random(seed)
    worst, sizes = 0.0, set()
    for _ in range(cases):
        costs = random_kernel(random, kind)
        ends = boundaries(costs)[-random.choice([random.randint(1, most), most]) :]
        sizes.add(len(ends))
        worst = max(worst, excess(costs, ends))
    return worst, max(sizes)


@pytest.mark.parametrize("kind", KERNELS)
def test_no_grouping_of_waves_is_faster(kind: str) -> None:
    worst, most = compared(0, 100, 11, kind)
    assert worst < 1e-12
    assert most == 11


@pytest.mark.long
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("seed", range(1, 11))
def test_no_grouping_of_waves_is_faster_at_length(seed: int, kind: str) -> None:
    """With the other kinds and seeds 50,000 cases."""
    worst, most = compared(seed, 1000, 14, kind)
    assert worst < 1e-12
    assert most == 14


class Hasty(signaled._Later):
    """Takes every curve for one that rises, so that the search ends too early."""

    def __init__(self, costs: Costs) -> None:
        super().__init__(costs)
        self.rises = True


class Unhurried(signaled._Later):
    """A group that finds the link busy hides no latency."""

    def __missing__(self, rows: int) -> tuple[float, float]:
        alone, _ = super().__missing__(rows)
        return alone, alone


class Idle(signaled._Later):
    """A group that finds the link idle has no latency."""

    def __missing__(self, rows: int) -> tuple[float, float]:
        _, queued = super().__missing__(rows)
        return queued, queued


@pytest.mark.parametrize("mutant", [Hasty, Unhurried, Idle], ids=lambda mutant: mutant.__name__)
def test_a_wrong_search_is_seen(monkeypatch: pytest.MonkeyPatch, mutant: type) -> None:
    monkeypatch.setattr(signaled, "_Later", mutant)
    worst, _ = compared(0, 500, 10, "all_reduce")
    assert worst > 1e-3


def places_of(costs: KernelCosts, rows: Sequence[int]) -> list[Place]:
    """The tiles of a kernel whose groups have so many rows, or tiles."""
    p, tile = costs.problem, costs.tiling
    row_tiles = -(-p.n // tile.block_n)
    if costs.by == "tiles":
        tiles = tile_places(Bands.of((p.m,), tile.block_m), row_tiles, tile.sweep)
        groups = [group for group, count in enumerate(rows) for _ in range(count)]
        return [(group, *place[1:]) for group, place in zip(groups, tiles, strict=True)]
    if p.blocks > 1:
        bands = bands_in_blocks(p.run_rows, p.world_size, rows, tile.block_m)
    elif p.collective == "all_reduce" or p.granule % p.world_size:
        bands = Bands.of(rows, tile.block_m)
    else:
        shares = [count // p.world_size for count in rows]
        bands = staged_bands(shares, p.world_size, tile.block_m, first=1)
    return tile_places(bands, row_tiles, tile.sweep)


def bands_in_blocks(run_rows: int, ranks: int, rows: Sequence[int], block_m: int) -> Bands:
    """Bands of a C of which every block of rows is dealt out to all ranks, in runs."""
    ends = [0, *accumulate(count // ranks for count in rows)]
    return Bands(
        tuple(
            tuple(
                Run((block * ranks + rank) * run_rows + start, 0, stop - start)
                for rank in range(ranks)
                for block in range(first // run_rows, -(-last // run_rows))
                for start, stop in [
                    (max(0, first - block * run_rows), min(run_rows, last - block * run_rows))
                ]
            )
            for first, last in pairwise(ends)
        ),
        block_m,
    )


def ready_by_tiles(costs: KernelCosts, rows: Sequence[int]) -> list[float]:
    """When each group is whole, of as many equal tiles in a row as one worker has by then."""
    launch = costs.rates.launch_seconds
    workers = max(1, costs.rates.resident - costs.target.communication_sms)
    taken = finished(places_of(costs, rows), workers)
    return [launch + waves * costs.wave_seconds for waves in taken]


def lateness(seed: int, cases: int, kind: str) -> tuple[float, int]:
    """Largest relative difference of when groups are ready, and in how many cases of several."""
    random = Random(seed)
    worst, several = 0.0, 0
    for _ in range(cases):
        costs = random_kernel(random, kind)
        *inner, last = boundaries(costs)
        ends = [end.rows for end in inner if random.random() < 0.4] + [last.rows]
        rows = [right - left for left, right in pairwise([0, *ends])]
        several += len(rows) > 2
        cut = signaled_cut(costs, rows)
        # An earlier group whose last tile shares a wave with the next one's is as early.
        expected = accumulate(ready_by_tiles(at_height(cut), rows), max)
        computed = [event.end for event in cut.timeline if event.lane == "compute"]
        both = zip(computed, expected, strict=False)
        worst = max(worst, *(abs(mine / its - 1) for mine, its in both))
    return worst, several


def at_height(cut: Cut) -> KernelCosts:
    """The kernel that a cut was predicted for."""
    assert isinstance(cut.costs, KernelCosts)
    return cut.costs


@pytest.mark.parametrize("kind", KERNELS)
def test_groups_are_ready_when_their_last_tile_is(kind: str) -> None:
    worst, several = lateness(2, 100, kind)
    assert worst < 1e-12
    assert several > 20


WRONG_TILES = {
    "no multiprocessor is left": ("workers", property(lambda costs: costs.rates.resident)),
    "a part of a wave takes no time": (
        "ready",
        lambda costs, rows: (
            costs.rates.launch_seconds + costs.tiles_in(rows) // costs.workers * costs.wave_seconds
        ),
    ),
    "what is left of a part has no tile": (
        "run_tiles",
        property(lambda costs: costs.problem.m // costs.runs // costs.tiling.block_m or 1),
    ),
    "one tile a row": ("row_tiles", property(lambda costs: 1)),
}


@pytest.mark.parametrize(("name", "wrong"), WRONG_TILES.values(), ids=WRONG_TILES)
def test_wrongly_counted_tiles_are_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: object
) -> None:
    monkeypatch.setattr(KernelCosts, name, wrong)
    assert lateness(2, 100, "reduce_scatter")[0] > 1e-3


@pytest.mark.parametrize("kind", KERNELS)
def test_a_place_to_end_is_the_most_that_a_wave_completes(kind: str) -> None:
    """One more unit of rows would be ready one wave later."""
    random = Random(1)
    checked = 0
    for _ in range(60):
        costs = random_kernel(random, kind, 1000)
        ends = boundaries(costs)
        assert 1 <= len(ends) <= MAX_BOUNDARIES
        assert ends[-1].rows == costs.size
        assert all(end.rows % costs.unit == 0 for end in ends[:-1])
        assert all(a.rows < b.rows and a.ready < b.ready for a, b in pairwise(ends))
        for end in ends[:-1] if len(ends) < 20 else ():
            more = end.rows + costs.unit
            if more < costs.size:
                rows = (end.rows, costs.unit, costs.size - more)
                first, second, _ = ready_by_tiles(costs, rows)
                assert first == pytest.approx(end.ready)
                assert second > first
                checked += 1
    assert checked > 30


def places_to_end(costs: KernelCosts) -> list[list[int]]:
    """Of each height that is quicker than those below, in rows or tiles, the end left out."""
    quicker = [
        costs.at(height)
        for height in costs.heights
        if all(costs.at(h).wave_seconds > costs.at(height).wave_seconds for h in costs.heights
               if h < height)
    ]  # fmt: skip
    return [[end.rows for end in boundaries(at)[:-1]] for at in quicker]


def best_at_any_height(costs: KernelCosts) -> float:
    """Of every grouping that ends in such places, each as quick as its own sweeps allow."""
    found = []
    for inner in places_to_end(costs):
        for chosen in range(2 ** len(inner)):
            ends = [rows for bit, rows in enumerate(inner) if chosen >> bit & 1]
            rows = [right - left for left, right in pairwise([0, *ends, costs.size])]
            at = costs.at(
                max(h for h in costs.heights if all(x % costs.at(h).unit == 0 for x in rows[:-1]))
            )
            ready = accumulate(ready_by_tiles(at, rows), max)
            groups = [
                Boundary(when, end) for when, end in zip(ready, accumulate(rows), strict=True)
            ]
            found.append(Recurrence.of(at, groups).of_cut(groups) + at.reading_seconds)
    return min(found)


def reads_much(random: Random, kind: str) -> KernelCosts:
    """A kernel that waits for memory, which keeps nothing of A and B, with few places to end."""
    while True:
        costs = random_kernel(random, kind, 120)
        if random.random() < 0.7:
            rates = replace(
                costs.rates, flops_per_second=1e13, memory_bytes_per_second=1e9,
                pack_bytes_per_second=None, pointwise_bytes_per_second=1e12,
            )  # fmt: skip
            target = replace(costs.target, gemm=(rates,), l2_bytes=0, signal_seconds=0.0)
            costs = replace(costs, target=target)
            costs = replace(costs, target=balanced(random, costs))
        if 2 <= max(map(len, places_to_end(costs))) <= 8:
            return costs


def balanced(random: Random, costs: KernelCosts) -> Target:
    """The target with a link that takes about as long as the kernel."""
    sent, seconds = costs.problem.sent_bytes(costs.problem.m), costs.ready(costs.size)
    whole = seconds * random.uniform(0.5, 2)
    curve = Curve(((64, 0.05 * whole), (64 + sent, whole)))
    links = [
        replace(link, alone=curve, queued=curve, issue=None, world_size=costs.problem.world_size)
        for link in costs.target.links
    ]
    return replace(costs.target, links=tuple(links))


@pytest.mark.parametrize("kind", KERNELS)
def test_no_grouping_at_any_height_of_sweeps_is_faster(kind: str) -> None:
    random, higher = Random(3), 0
    for _ in range(25):
        costs = reads_much(random, kind)
        best = best_at_any_height(costs)
        assert best_cut_of([costs]).seconds == pytest.approx(best, rel=1e-12)
        lowest = costs.at(costs.heights[0])
        ends = [0, *(group.rows for group in best_groups(lowest, boundaries(lowest)))]
        first = signaled_cut(costs, [right - left for left, right in pairwise(ends)])
        higher += first.seconds > best * (1 + 1e-6)
    # Where there are several heights, the lowest one's best is not always the best.
    assert higher > 2 or kind == "packed"


def difference(costs: KernelCosts, groups: tuple[Boundary, ...]) -> float:
    """Largest relative difference between a timeline's ends and those of the simulation.

    The signal delays a group and not the GEMM: for the link it is as if all waves came so much
    later. When groups are ready is asked of the tiles.
    """
    signal = Fraction(costs.target.signal_seconds)
    rows = [right - left for left, right in pairwise([0, *(group.rows for group in groups)])]
    ready = list(accumulate(ready_by_tiles(costs, rows), max))
    released = [Fraction(when) + signal for when in ready]
    queued = [costs.queued(count) for count in rows]
    # What starting a call takes is the compute's, and no longer of the transfer.
    alone = [
        max(costs.alone(count) - costs.blocking(count), min(costs.alone(count), later))
        for count, later in zip(rows, queued, strict=True)
    ]
    alone[1:] = [max(pair) for pair in zip(alone[1:], queued[1:], strict=True)]
    work = [released[0], *(right - left for left, right in pairwise(released))]
    computed, sent = simulate(work, alone, queued, 1.0, 1.0)
    expected = [
        end for wave, end in zip(computed, sent, strict=True) for end in (wave - signal, end)
    ]
    ends = [event.end for event in signaled_timeline(costs, groups)]
    if costs.by == "tiles" and costs.reading_seconds:
        # What readers lose comes after everything.
        expected.append(expected[-1] + Fraction(costs.reading_seconds))
    return max(abs(mine / float(end) - 1) for mine, end in zip(ends, expected, strict=True))


def worst_difference(seed: int, cases: int, kind: str) -> float:
    """Of random cuts and of the best ones."""
    random = Random(seed)
    worst = 0.0
    for _ in range(cases):
        costs = random_kernel(random, kind)
        *inner, last = boundaries(costs)[-40:]
        chosen = tuple(end for end in inner if random.random() < 0.5)
        worst = max(worst, difference(costs, (*chosen, last)))
        worst = max(worst, difference(costs, best_groups(costs, (*inner, last))))
    return worst


@pytest.mark.parametrize("kind", KERNELS)
def test_the_timeline_is_that_of_the_simulation(kind: str) -> None:
    assert worst_difference(0, 60, kind) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("seed", range(1, 6))
def test_the_timeline_is_that_of_the_simulation_at_length(seed: int, kind: str) -> None:
    """With the other kinds and seeds 50,000 cuts."""
    assert worst_difference(seed, 1000, kind) < 1e-9


MUTANTS: dict[str, Callable[..., tuple[float, float]]] = {
    "a queue costs as much as an idle link": lambda R, E, w, a, q, *x: advance(R, E, w, a, a, *x),
    "an idle link costs as little as a queue": lambda R, E, w, a, q, *x: advance(R, E, w, q, q, *x),
    "the transfer waits for no one": lambda R, E, w, a, *x: (R + w, R + w + a),
    "the signal is forgotten": lambda R, E, w, a, q, *x: advance(0.0, E, w, a, q, *x),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_timeline_is_seen(monkeypatch: pytest.MonkeyPatch, mutant: Callable) -> None:
    monkeypatch.setattr(signaled, "advance", mutant)
    assert worst_difference(0, 60, "all_reduce") > 1e-3
