"""From measured seconds to the rates of a target: small fits in plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf

from overlapc.planning.cost import Costs
from overlapc.planning.curve import Curve
from overlapc.planning.problem import Problem
from overlapc.planning.rates import GemmRates
from overlapc.planning.target import Target
from overlapc.planning.timelines import chunked_timeline

SIGNIFICANT_DIGITS = 5
"""Digits of a stored number: finer than any measurement, and the same text on every machine."""

REWEIGHTINGS = 20
"""Rounds that turn least squares into least absolute errors, which one disturbed sample cannot
pull; the weights have settled well before."""

MOST_SLOWDOWN = 10.0
"""Most that the link is taken to slow down beside compute: beyond it no overlap pays anyhow."""

FREE = 1e-18
"""Seconds for an operation or byte that a fit calls free: keeps rates finite."""


BLOCKS_FROM_SECONDS = 3e-4
"""Calls that take less to start just take that long: about what a busy core adds now and then."""

GROWS_BY = 5.0
"""Times as long as the quickest start: less is noise, for sizes span four decades."""


@dataclass(frozen=True)
class GemmSample:
    """One measured GEMM."""

    rows: int
    n: int
    k: int
    seconds: float


def rounded(value: float) -> float:
    """``value`` with as many digits as a target stores."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def fit_gemm(shape: GemmRates, samples: Sequence[GemmSample], item_bytes: int) -> GemmRates:
    """``shape`` with the rates that explain the samples best, in relative error.

    ``shape`` says which terms there are: its tile, its resident tiles, and whether calls pack the
    weight. No term comes out negative.
    """
    unit = replace(shape, flops_per_second=1.0, launch_seconds=0.0)
    unit = replace(unit, pack_bytes_per_second=None, memory_bytes_per_second=None)
    packs = shape.pack_bytes_per_second is not None
    terms = [
        [
            1.0,
            unit.seconds(sample.rows, sample.n, sample.k, item_bytes),
            *([float(sample.n * sample.k * item_bytes)] if packs else []),
        ]
        for sample in samples
    ]
    launch, per_flop, *per_byte = non_negative_fit(terms, [sample.seconds for sample in samples])
    return replace(
        shape,
        launch_seconds=rounded(launch),
        flops_per_second=rounded(1 / max(per_flop, FREE)),
        pack_bytes_per_second=rounded(1 / max(per_byte[0], FREE)) if packs else None,
    )


def non_negative_fit(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Factors, none negative, with the least sum of |terms . factors / seconds - 1|."""
    rows = [[term / second for term in row] for row, second in zip(terms, seconds, strict=True)]
    count = len(rows[0])
    best, least = [0.0] * count, inf
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            found = _reweighted([[row[index] for index in chosen] for row in rows])
            if found is None or min(found) < 0:
                continue
            factors = [0.0] * count
            for index, factor in zip(chosen, found, strict=True):
                factors[index] = factor
            error = sum(_misses(rows, factors))
            if error < least:
                best, least = factors, error
    return best


def _misses(rows: Sequence[Sequence[float]], factors: Sequence[float]) -> list[float]:
    return [abs(sum(map(float.__mul__, row, factors)) - 1) for row in rows]


def _reweighted(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """Factors that make every row's sum one, by iterated least squares; None if undetermined."""
    weights = [1.0] * len(rows)
    factors: list[float] | None = None
    for _ in range(REWEIGHTINGS):
        factors = _least_squares(rows, weights)
        if factors is None:
            return None
        # The floor keeps a sample that fits exactly from taking all the weight.
        weights = [1 / max(miss, 1e-3) for miss in _misses(rows, factors)]
    return factors


def _least_squares(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float] | None:
    """Solve the normal equations by elimination; the columns are scaled to be comparable."""
    count = len(rows[0])
    scale = [max(abs(row[column]) for row in rows) or 1.0 for column in range(count)]
    scaled = [[value / size for value, size in zip(row, scale, strict=True)] for row in rows]
    system = [
        [
            *(_dot(weights, scaled, left, right) for right in range(count)),
            sum(w * row[left] for w, row in zip(weights, scaled, strict=True)),
        ]
        for left in range(count)
    ]
    for pivot in range(count):
        best = max(range(pivot, count), key=lambda index: abs(system[index][pivot]))
        system[pivot], system[best] = system[best], system[pivot]
        if abs(system[pivot][pivot]) < 1e-12 * len(rows):
            return None
        for other in range(count):
            if other != pivot:
                factor = system[other][pivot] / system[pivot][pivot]
                system[other] = [
                    a - factor * b for a, b in zip(system[other], system[pivot], strict=True)
                ]
    return [system[index][count] / system[index][index] / scale[index] for index in range(count)]


def _dot(weights: Sequence[float], rows: Sequence[Sequence[float]], left: int, right: int) -> float:
    return sum(w * row[left] * row[right] for w, row in zip(weights, rows, strict=True))


def rising_curve(points: Iterable[tuple[int, float]]) -> Curve:
    """A curve through the points that never falls: fewer bytes take no more time than more.

    The smaller of two times that are out of order is kept: disturbance only ever adds.
    """
    least, rising = inf, []
    for size, seconds in sorted(points, reverse=True):
        least = min(least, seconds)
        rising.append((size, rounded(least)))
    return Curve(tuple(reversed(rising)))


def sustained_curve(points: Iterable[tuple[int, float]], enough: int) -> Curve:
    """A rising curve on which no small call moves bytes faster than a larger one does.

    A short train of small calls can live on what a link saved up while idle (a token bucket, a
    buffer); a plan with many of them cannot. Calls of more than ``enough`` bytes outlast that, and
    are no measure for small ones: beyond what sockets hold, some move in one direction at a time.
    """
    per_byte, sustained = 0.0, []
    for size, seconds in sorted(points, reverse=True):
        if size > enough:
            sustained.append((size, seconds))
            continue
        per_byte = max(per_byte, seconds / size)
        sustained.append((size, per_byte * size))
    return rising_curve(sustained)


def blocking_curve(points: Iterable[tuple[int, float]]) -> Curve | None:
    """Seconds that starting a call blocks compute, by bytes; None where they do not grow.

    Some backends copy or reduce what they are given before they return (gloo's reduce-scatter
    does), most only put it in a queue.
    """
    curve = rising_curve(points)
    least, most = curve.points[0][1], curve.points[-1][1]
    # What grows with the bytes has done so before the last size: one disturbed time has not.
    grows = len(curve.points) > 1 and curve.points[-2][1] > most / GROWS_BY
    if most < BLOCKS_FROM_SECONDS or most < GROWS_BY * least or not grows:
        return None
    return curve


@dataclass(frozen=True)
class SideBySide:
    """GEMMs and collectives started together, the collectives taking longer."""

    compute_alone: float
    """Seconds of the GEMMs with nothing in flight."""
    link_alone: float
    """Seconds of the collectives with nothing computed."""
    computed: float
    """When the GEMMs were done, side by side."""
    sent: float
    """When the collectives were done, side by side."""
    issued: float = 0.0
    """When all collectives were started, which a backend may take its time for."""

    @property
    def compute_slowdown(self) -> float:
        """c, at least 1: the link was busy all the while that the GEMMs ran."""
        return max(1.0, (self.computed - self.issued) / self.compute_alone)

    @property
    def link_slowdown(self) -> float:
        """d, at least 1: while the GEMMs ran the link did all but what was left afterwards."""
        done = self.link_alone - (self.sent - self.computed)
        return max(1.0, self.computed / max(done, self.computed / MOST_SLOWDOWN))


@dataclass(frozen=True)
class Pipeline:
    """A chunked schedule that was run, in groups of equal rows."""

    problem: Problem
    rows: int
    """Rows of each group."""
    computed: float
    """Seconds that compute was at it, which is not when it waited for the link."""


def with_group_cost(target: Target, pipeline: Pipeline) -> Target:
    """``target`` with the ``issue_seconds`` that predict the pipeline; never less than it has.

    What a group costs is not only starting its collective: its GEMM finds other things in the
    caches, and what the other rates miss adds up over groups. Halves an interval, since predicted
    time rises with the cost. A consumer's cost is its own.
    """
    link = target.link(pipeline.problem)
    name = "consumer_issue_seconds" if pipeline.problem.is_consumer else "issue_seconds"

    def trial(issue: float) -> Target:
        mended = replace(link, **{name: rounded(issue)})
        return replace(
            target, links=tuple(mended if each is link else each for each in target.links)
        )

    low = getattr(link, name)
    high = low + pipeline.computed
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if _computed(trial(middle), pipeline) < pipeline.computed
            else (low, middle)
        )
    return trial(low)


def _computed(target: Target, pipeline: Pipeline) -> float:
    groups = (pipeline.rows,) * (pipeline.problem.m // pipeline.rows)
    timeline = chunked_timeline(Costs(pipeline.problem, target), groups)
    return sum(event.end - event.start for event in timeline if event.lane == "compute")
