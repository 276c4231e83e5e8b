"""Which implementation computes a linear layer of few rows, from what was measured. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overlapc.planning.linear.tiles import DTYPES, FLAT, FLAT_MOST, GEMV, GEMV_MOST
from overlapc.planning.problem import SENT_BYTES

LIBRARY = "library"
OURS = (GEMV, FLAT)
MOST_ROWS = {GEMV: GEMV_MOST, FLAT: FLAT_MOST}
MEASURED_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Row counts that are measured: those next to which a tile or the cost of a library changes."""
BYTES = {**SENT_BYTES, "int8": 1}
"""Bytes of an element of a weight or of rows."""
CAST = "convert_element_type"
"""Name of an op that gives another dtype."""
LEAST_GAIN = 1.02
"""Times as fast as the library that an implementation has to be at least, at the low end of its
interval: chosen, so that what is won is still there the next day."""


@dataclass(frozen=True)
class LinearProblem:
    """All linear layers that are computed alike: everything but the rows."""

    n: int
    """Columns of the result."""
    k: int
    """Contracted."""
    dtype: str
    """Dtype of the rows."""
    layout: str = "col"
    """How the weight [k, n] lies: "col" of one held as [n, k], "row" as [k, n]."""
    weights: int = 1
    """Two for gate and up."""
    held: str = ""
    """Dtype of the weight in memory; empty where it is that of the rows."""
    epilogue: str = ""
    """Names of the ops after the GEMM, separated by spaces."""
    more: tuple[int, ...] = ()
    """Columns of further results of the same rows, which one launch computes beside."""
    scaled: str = ""
    """How the weight is scaled before the product; empty where it is not."""
    before: str = ""
    """What is done to the rows before the product; empty where nothing is."""

    def __post_init__(self) -> None:
        if min(self.n, self.k, self.weights, *self.more) < 1:
            raise ValueError(f"n, k and weights are above zero, unlike {self.n}, {self.k}")

    def text(self, rows: int | str) -> str:
        """Sizes as a person reads them, for so many rows."""
        times = f"{self.weights}x" if self.weights > 1 else ""
        columns = "+".join(map(str, (self.n, *self.more)))
        held = f" by {self.held}" if self.held else ""
        scaled = f" scaled in {self.scaled}" if self.scaled else ""
        lies = {"col": "", "row": " [k, n]"}.get(self.layout, f" {self.layout}")
        normed = ", normed" if self.before else ""
        sizes = f"{rows}x{times}{columns}x{self.k} {self.dtype}{lies}"
        return f"{sizes}{normed}{held}{scaled}{_then(self.epilogue.split())}"

    @property
    def columns(self) -> int:
        """Of all results together."""
        return self.n + sum(self.more)

    @property
    def weight_bytes(self) -> int:
        """Of what every row count has to read."""
        return self.weights * self.columns * self.k * BYTES[self.held or self.dtype]


def _then(ops: Sequence[str]) -> str:
    """An epilogue as a person reads it: the first op and the last, of those that are no casts."""
    if len(ops) < 2:
        return f", then {ops[0]}" if ops else ""
    named = [op for op in ops if op != CAST] or ops
    return f", then {len(ops)} ops, {named[0]} to {named[-1]}"


@dataclass(frozen=True)
class Regions:
    """Row counts by implementation: gemv, then flat; the library below, and from there on."""

    gemv_from: int = 1
    flat_from: int = 1
    """M1: the first row count at which flat is at least as fast as gemv."""
    library_from: int = 1
    """M2: the first row count at which neither has won for certain."""

    def __post_init__(self) -> None:
        if not 1 <= self.gemv_from <= self.flat_from <= self.library_from:
            raise ValueError(f"regions do not follow one another: {self}")

    def implementation(self, rows: int) -> str:
        """What computes so many rows."""
        if not self.gemv_from <= rows < self.library_from:
            return LIBRARY
        return GEMV if rows < self.flat_from else FLAT

    @property
    def is_empty(self) -> bool:
        """The library computes every row count."""
        return self.gemv_from == self.library_from

    def __str__(self) -> str:
        if self.is_empty:
            return "the library at every row count"
        spans = ((GEMV, self.gemv_from, self.flat_from), (FLAT, self.flat_from, self.library_from))
        said = [f"{name} {low}..{end - 1}" for name, low, end in spans if low < end]
        return f"{', '.join(said)} rows, else the library"


FORCED = Regions(1, GEMV_MOST + 1, FLAT_MOST + 1)
"""Where a user asks for what is generated wherever it may be."""


def most_rows(dtype: str, device: str) -> dict[str, int]:
    """Up to how many rows each of ours is there on a type of device of which no more is known."""
    return {way: rows for way, rows in MOST_ROWS.items() if device == "cpu" or dtype in DTYPES[way]}


@dataclass(frozen=True)
class Gain:
    """How many times as fast as the library one implementation was: median and 95 % interval.

    Of a prediction: what is likely, between the worst and the best that is thought possible.
    """

    implementation: str
    low: float
    median: float
    high: float

    def __post_init__(self) -> None:
        known = (*OURS, LIBRARY)
        if self.implementation not in known:
            raise ValueError(f"implementation {self.implementation!r} is not one of {known}")
        if not 0 < self.low <= self.median <= self.high:
            raise ValueError(f"the interval of {self.implementation} does not hold its median")

    @property
    def is_repeatable(self) -> bool:
        """Whether even the low end of the interval is a gain."""
        return self.low >= LEAST_GAIN


@dataclass(frozen=True)
class LinearTrial:
    """What was measured at one row count, or predicted."""

    rows: int
    library_seconds: float
    """Median, or what is likely."""
    gains: tuple[Gain, ...]
    """Of those implementations that could run."""
    launched: tuple[Gain, ...] | None = None
    """Where a host launches each call, over what a library's GEMMs alone take then; None where that
    is how all was measured."""
    by_op: Gain | None = None
    """Of the library where the op calls it, over a graph without the op; of processors alone."""

    def __post_init__(self) -> None:
        if self.rows < 1 or not self.library_seconds > 0:
            raise ValueError("rows and seconds of a trial are above zero")

    def gain(self, implementation: str) -> Gain | None:
        """Of one implementation; None where it did not run."""
        return next((g for g in self.gains if g.implementation == implementation), None)


def choose(trials: Sequence[LinearTrial], counts: Sequence[int] = MEASURED_ROWS) -> Regions:
    """The regions that the trials of one problem speak for; their row counts rise.

    A row count belongs to ours where one of them won for certain. Of the runs of such row counts
    that is taken which gains the most for certain over all of its counts, ended where gemv would
    come after flat, and before a gap in which one of ``counts`` was not measured. No repeatable
    win: the library.
    """
    runs = [_run(trials[start:], counts) for start in range(len(trials))]
    best = max(runs, key=lambda run: math.prod(won.low for _, won in run), default=[])
    return _regions(best) if best else Regions()


def _run(trials: Sequence[LinearTrial], counts: Sequence[int]) -> list[tuple[int, Gain]]:
    """The row counts from the first trial on that one of ours won, and what it gains there."""
    run: list[tuple[int, Gain]] = []
    for trial in trials:
        won = _winner(trial, may_be_gemv=not run or run[-1][1].implementation == GEMV)
        if won is None or (run and any(run[-1][0] < rows < trial.rows for rows in counts)):
            break
        run.append((trial.rows, won))
    return run


def _winner(trial: LinearTrial, *, may_be_gemv: bool) -> Gain | None:
    """Of the fastest of ours that won for certain."""
    allowed = OURS if may_be_gemv else (FLAT,)
    gains = [g for g in trial.gains if g.implementation in allowed and g.is_repeatable]
    return max(gains, key=lambda g: (g.median, g.implementation == FLAT), default=None)


def _regions(run: Sequence[tuple[int, Gain]]) -> Regions:
    first, last = run[0][0], run[-1][0]
    flat = next((rows for rows, won in run if won.implementation == FLAT), last + 1)
    return Regions(first, flat, last + 1)


@dataclass(frozen=True)
class Prediction:
    """What the cost model says of a problem, of which nothing was measured."""

    target: str
    """Name of the machine."""
    regions: Regions
    """From what is likely at each row count."""
    trials: tuple[LinearTrial, ...]
    """At `MEASURED_ROWS`."""

    def trial(self, rows: int) -> LinearTrial | None:
        """What is likely at a row count; None where it is none of those."""
        return next((trial for trial in self.trials if trial.rows == rows), None)


@dataclass(frozen=True)
class LinearEntry:
    """One problem, what was measured of it, and what follows."""

    problem: LinearProblem
    regions: Regions
    """On a GPU: in CUDA graphs, in which launches cost no time of a host."""
    trials: tuple[LinearTrial, ...]
    launched: Regions | None = None
    """Where a host launches each call; None where that makes no difference."""
    predicted: Prediction | None = None
    """Said before, in CUDA graphs; decides nothing. None where the model knows too little."""

    def regions_of(self, *, in_graphs: bool) -> Regions:
        """What holds in CUDA graphs, or where a host launches each call."""
        return self.regions if in_graphs or self.launched is None else self.launched

    @property
    def is_empty(self) -> bool:
        """The library computes every row count, however it is called."""
        return self.regions.is_empty and (self.launched is None or self.launched.is_empty)


def entry_of(
    problem: LinearProblem, trials: Sequence[LinearTrial], predicted: Prediction | None = None
) -> LinearEntry:
    """What the trials of a problem, whose row counts rise, speak for."""
    launched = [replace(t, gains=t.launched) for t in trials if t.launched is not None]
    alone = choose(launched) if launched else None
    return LinearEntry(problem, choose(trials), tuple(trials), alone, predicted)
