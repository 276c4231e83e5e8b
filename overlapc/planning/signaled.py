"""The `signaled` schedule: one persistent GEMM that releases runs of waves to the link. Exact."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from overlapc.planning import reasons
from overlapc.planning.cost import Costs, advance
from overlapc.planning.kernel_costs import KernelCosts, kernel_costs
from overlapc.planning.kernel_tiles import (
    VECTOR,
    KernelFacts,
    loads_by_tma,
    reads_vectors,
    strides_of,
    tma_reads,
)
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Event
from overlapc.planning.target import Target
from overlapc.planning.tiles import SWEEP, Tile, tiles_for
from overlapc.planning.timelines import Cut

MAX_BOUNDARIES = 256
"""Places where a group may end; with more waves than that, evenly spaced ones are kept."""


@dataclass(frozen=True)
class Boundary:
    """A moment of the GEMM at which a first part of C is whole."""

    ready: float
    """Seconds from the start."""
    rows: int
    """Rows complete, from the top; or tiles, in their order, where those make groups."""


def configurations(problem: Problem, target: Target) -> tuple[Tile, ...]:
    """The tile configurations of a site: at most four; none where nothing can signal or C is
    empty."""
    if problem.is_consumer or target.device == "cpu" or not problem.kernel_sums:
        return ()
    if not problem.m or not problem.n:
        return ()
    known = tiles_for(target.architecture, problem.dtype)
    facts = _kernel_facts(problem, target.architecture)
    return tuple(dict.fromkeys(facts.tile(tile) for tile in known))


def _kernel_facts(problem: Problem, architecture: str) -> KernelFacts:
    """What the choice of the kernel will see of its operands, whose bases are taken as aligned."""
    (a, b), (m, n, k) = problem.layouts, (problem.m, problem.n, problem.k)
    lies = [(layout, strides_of(layout, *shape)) for layout, *shape in ((a, m, k), (b, k, n))]
    aligned = min(m, n, k) > 0 and all(
        tma_reads(layout.partition(":")[0], strides, problem.item_bytes) for layout, strides in lies
    )
    by_tma = loads_by_tma(architecture, problem.item_bytes, aligned=aligned)
    by_vectors = by_tma or all(reads_vectors(strides) for _, strides in lies)
    return KernelFacts(
        architecture,
        problem.dtype,
        problem.sent_dtype or problem.dtype,
        k,
        problem.layouts,
        by_tma,
        by_vectors and n % VECTOR == 0,
        most_sums=problem.kernel_sums,
        is_bare=not problem.computes_beside,
    )


def reachable_tiles(problem: Problem, target: Target, schedule: str) -> tuple[Tile, ...]:
    """The configurations that plans of this GEMM in compiled graphs may have, whatever its rows.

    "auto" takes those alone that won a trial.
    """
    known = configurations(problem, target)
    if schedule == "signaled":
        return known
    won = {
        tuned.tile.configuration
        for tuned in target.tuned
        if tuned.tile and _is_like(tuned.problem, problem)
    }
    return tuple(tile for tile in known if tile in won)


def _is_like(one: Problem, other: Problem) -> bool:
    """Whether two problems differ in their rows at most, as far as a kernel is concerned."""
    same = (
        *("n", "k", "dtype", "collective", "world_size", "kernel_sums"),
        *("computes_beside", "layouts"),
    )
    return all(getattr(one, name) == getattr(other, name) for name in same)


def signaled_cuts(problem: Problem, target: Target) -> Iterator[Cut]:
    """The best groups and the best sweep of every tile configuration and order.

    One group where no multiprocessor is left to the collective: the kernel's CTAs hold all of them
    to its end, before which nothing could be sent.
    """
    for tile in configurations(problem, target):
        for by in problem.kernel_dimensions:
            kernels = kernel_costs(by, problem, target, tile).swept
            waits = not target.communication_sms
            yield swept_cut(kernels, [kernels[0].size]) if waits else best_cut_of(kernels)


def overlapping_cuts(problem: Problem, target: Target) -> list[Cut]:
    """The ``signaled_cuts`` that have several groups; none where `why_no_overlap` says why."""
    if why_no_overlap(problem, target):
        return []
    return [cut for cut in signaled_cuts(problem, target) if len(cut.rows) > 1]


def why_no_overlap(problem: Problem, target: Target) -> str:
    """Why no generated kernel of a problem overlaps with its collective, as a clause; or empty.

    Whether one has several groups to overlap with is another question.
    """
    if problem.is_consumer:
        return "its GEMM comes after the collective"
    if not configurations(problem, target):
        return reasons.lacking_kernel(problem, target)
    if not target.communication_sms:
        return reasons.without_multiprocessors(target)
    if problem.deals_unevenly:
        return "ranks have different numbers of rows, and none knows of how many tiles the others'"
    return ""


def best_cut_of(kernels: Sequence[KernelCosts]) -> Cut:
    """The groups that finish first with one of these, which differ in their sweeps alone.

    Bands of more tile rows read less, but end in fewer places: where that is no quicker, only the
    lower ones are tried. Groups are as quick as the greatest height that they fit (`signaled_cut`),
    and never quicker at a lower one, and of kernels with bands of one height the one with the
    quickest waves has the quickest groups: so the best of the best at each height is the best of
    all.
    """
    best, before = None, math.inf
    for height in sorted({height for kernel in kernels for height in kernel.heights}):
        able = (kernel for kernel in kernels if height in kernel.heights)
        tried = min(able, key=lambda kernel: kernel.read_at(height)).at(height)
        if tried.wave_seconds >= before:
            continue
        before = tried.wave_seconds
        ends = [0, *(group.rows for group in best_groups(tried, boundaries(tried)))]
        cut = swept_cut(kernels, [right - left for left, right in pairwise(ends)])
        if best is None or cut.seconds < best.seconds:
            best = cut
    assert best is not None, "a kernel has a height"
    return best


def swept_cut(kernels: Sequence[KernelCosts], rows: Sequence[int]) -> Cut:
    """These groups, computed by whichever of the kernels is best for them."""
    return signaled_cut(ranked(kernels, rows)[0], rows)


def ranked(kernels: Sequence[KernelCosts], rows: Sequence[int]) -> list[KernelCosts]:
    """Kernels that differ in their sweeps alone, at the greatest height that these groups fit, the
    best first.

    That is the quickest one, of those the one that reads least from memory: on a device it may be
    what the GEMM waits for after all. Where nothing tells sweeps apart, `SWEEP` is nearest.
    """

    def rank(kernel: KernelCosts) -> tuple[float, float, int]:
        far = abs(kernel.tiling.sweep.bit_length() - SWEEP.bit_length())
        return kernel.wave_seconds, kernel.bytes_read_in(rows), far

    return sorted((kernel.fitting(rows) for kernel in kernels), key=rank)


def signaled_cut(costs: KernelCosts, rows: Sequence[int]) -> Cut:
    """These groups, computed by a kernel with the highest bands that they are made of."""
    costs = costs.fitting(rows)
    ends = tuple(Boundary(costs.ready(end), end) for end in accumulate(rows))
    return Cut("signaled", costs, tuple(rows), signaled_timeline(costs, ends), costs.tiling)


def boundaries(costs: KernelCosts) -> tuple[Boundary, ...]:
    """Where groups may end: after each wave that makes at least one more unit whole.

    The GEMM runs on the multiprocessors that the collective does not use, so at one speed however
    it is cut. Its waves fill one band after another.
    """
    unit, workers = costs.unit, costs.workers
    tiles = costs.tiles_in(unit)
    before = (costs.waves - 1) * workers // tiles
    # Either every unit takes a wave or more, or every wave completes a unit or more.
    places = min(before, costs.waves - 1)
    step = -(-(places + 1) // MAX_BOUNDARIES)
    kept = range(places + 1 - step, 0, -step)
    rows = [at * unit if tiles >= workers else at * workers // tiles * unit for at in kept]
    return tuple(Boundary(costs.ready(end), end) for end in (*reversed(rows), costs.size))


def best_groups(costs: Costs, ends: tuple[Boundary, ...]) -> tuple[Boundary, ...]:
    """The boundaries that end the groups of the fastest cut.

    ``end`` never falls as the one before rises, so one best label a boundary is enough:
    O(boundaries squared).
    """
    rows_at = [0, *(boundary.rows for boundary in ends)]
    later = _Later(costs)
    best, groups, chosen = [0.0], [0], [-1]
    for index, boundary in enumerate(ends, 1):
        start, rows = boundary.ready + costs.target.signal_seconds, boundary.rows
        least, fewest, found = start + costs.sent(rows, is_first=True)[0], 1, 0
        for before in range(index - 1, 0, -1):
            alone, queued = later[rows - rows_at[before]]
            # `advance` between lanes that do not slow each other, written out for speed: a later
            # transfer is never quicker for finding the link idle.
            rested, end = start + alone, best[before] + queued
            if end < rested:
                end = rested
            if end < least or (end == least and groups[before] < fewest - 1):
                least, fewest, found = end, groups[before] + 1, before
            elif rested > least and later.rises:
                break
        best.append(least)
        groups.append(fewest)
        chosen.append(found)
    cut, index = [], len(ends)
    while index > 0:
        cut.append(ends[index - 1])
        index = chosen[index]
    return tuple(reversed(cut))


class _Later(dict[int, tuple[float, float]]):
    """Seconds of a transfer that is not the first, on an idle and on a busy link, by its rows."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        link = costs.link
        self.rises = link is None or (link.issue is None and link.alone.rises and link.queued.rises)
        """Whether more rows never take less time."""

    def __missing__(self, rows: int) -> tuple[float, float]:
        self[rows] = self._costs.sent(rows, is_first=False)
        return self[rows]


def _sent(costs: Costs, boundary: Boundary, end: float, start_row: int) -> float:
    """When the link is done, at ``end`` with the rows above ``start_row``, with the next group."""
    rows, start = boundary.rows - start_row, boundary.ready + costs.target.signal_seconds
    return advance(start, end, 0.0, *costs.sent(rows, is_first=start_row == 0), 1.0, 1.0)[1]


def signaled_timeline(costs: KernelCosts, groups: tuple[Boundary, ...]) -> tuple[Event, ...]:
    """Start and end of every group's waves and collective, by group.

    In the end stands what a reader loses by packed tiles, as compute of the last group.
    """
    events: list[Event] = []
    computed = end = 0.0
    rows = 0
    for group, boundary in enumerate(groups):
        events.append(Event("compute", group, computed, boundary.ready))
        start = max(end, boundary.ready + costs.target.signal_seconds)
        end = _sent(costs, boundary, end, rows)
        events.append(Event("communication", group, start, end))
        computed, rows = boundary.ready, boundary.rows
    if lost := costs.reading_seconds:
        events.append(Event("compute", len(groups) - 1, end, end + lost))
    return tuple(events)
