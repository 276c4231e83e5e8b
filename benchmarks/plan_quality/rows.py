"""How a plan compares to the best of twelve fixed cuts: what was measured, what is concluded."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.measuring.paired import Samples
from benchmarks.measuring.tables import listed, milliseconds, table
from benchmarks.overlap_link.shapes import Pair, Shape
from benchmarks.overlap_link.table import TITLES
from overlapc.planning.ratios import Ratio, median_ratio
from overlapc.planning.schedule import format_rows

PLAN = "plan"
PLAN_AGAIN = "plan again"

FINALISTS = 3
"""Of the fixed cuts, measured afresh together with the plan."""

TOLERANCE = 0.03
"""A plan may be slower by this share than the best of the fixed cuts ..."""

SHARE = 0.9
"""... in this share of the cases."""


@dataclass(frozen=True)
class QualityRow:
    """One pair: the fixed cuts and the plan."""

    pair: Pair
    cuts: Mapping[str, tuple[int, ...]]
    """GEMM rows of each group of every candidate, and of ``PLAN`` what ``plan_schedule`` says."""
    plan_schedule: str
    """How the plan runs: "serial", in "rows", or in "columns"; empty without one."""
    first: Samples
    """Seconds of all candidates."""
    fresh: Samples
    """Seconds of the plan, the plan again and the finalists, measured after ``first``."""
    errors: Mapping[str, float]
    """Largest relative deviation from the serial result, per candidate."""
    predicted: Mapping[str, float]
    """Seconds that overlapc predicts for each of ``cuts``; empty without a plan."""
    reason: str = ""
    """Of the plan."""

    @property
    def has_plan(self) -> bool:
        """Whether overlapc planned."""
        return PLAN in self.fresh.seconds

    @property
    def best(self) -> str:
        """The fastest of the fresh finalists."""
        return _fastest(self.fresh)

    @property
    def excess(self) -> Ratio:
        """plan / best, paired: above 1, a fixed cut is faster than the plan.

        Each half of the fresh rounds is compared with the cut that is fastest in the other half:
        the best of three noisy values would be judged by the very rounds that it was lucky in.
        """
        halves = self.fresh.every_other(0), self.fresh.every_other(1)
        return median_ratio(
            [
                ratio
                for judged, chosen_by in (halves, halves[::-1])
                for ratio in judged.ratios(PLAN, _fastest(chosen_by))
            ]
        )

    @property
    def is_within(self) -> bool:
        """Whether the plan is as good as the goal asks for."""
        return self.excess.median <= 1 + TOLERANCE

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether the plan surely misses the goal: the whole 95 % interval does."""
        return self.excess.low > 1 + TOLERANCE

    @property
    def prediction_ratios(self) -> dict[str, float]:
        """Predicted / measured seconds of every candidate, in the first rounds."""
        return {name: said / self.first.median(name) for name, said in self.predicted.items()}

    @property
    def noise(self) -> float:
        """|plan again / plan - 1| of the fresh rounds."""
        return abs(self.fresh.ratio(PLAN_AGAIN, PLAN).median - 1)


@dataclass(frozen=True)
class Quality:
    """Over all rows with a plan."""

    cases: int
    within: int
    """Cases in which the plan is within the tolerance."""
    beyond_doubt: int
    """Cases in which it surely is not."""
    median_excess: float | None
    """Median of plan / best; None without cases."""
    noise: float | None
    """Median over the cases; None without any."""
    prediction_error: float | None
    """Median of |predicted / measured - 1| over all candidates of all cases."""

    @property
    def is_reached(self) -> bool:
        """Whether the goal is reached; it is not missed where nothing was planned."""
        return self.within >= SHARE * self.cases


def finalists(first: Samples) -> list[str]:
    """The fastest fixed candidates of the first rounds, fastest first."""
    return sorted(_fixed(first), key=first.median)[:FINALISTS]


def _fastest(samples: Samples) -> str:
    return min(_fixed(samples), key=samples.median)


def _fixed(samples: Samples) -> list[str]:
    return [name for name in samples.seconds if name not in (PLAN, PLAN_AGAIN)]


def summarise(rows: Sequence[QualityRow]) -> Quality:
    """Count the rows that have a plan."""
    planned = [row for row in rows if row.has_plan]
    ratios = [ratio for row in planned for ratio in row.prediction_ratios.values()]
    return Quality(
        cases=len(planned),
        within=sum(row.is_within for row in planned),
        beyond_doubt=sum(row.is_beyond_doubt for row in planned),
        median_excess=_median([row.excess.median for row in planned]),
        noise=_median([row.noise for row in planned]),
        prediction_error=_median([abs(ratio - 1) for ratio in ratios]),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def summary_lines(rows: Sequence[QualityRow]) -> list[str]:
    """The conclusions, one sentence each."""
    found = summarise(rows)
    if None in (found.median_excess, found.noise, found.prediction_error):
        return ["Nothing was planned in this run: only the fixed cuts were measured."]
    return [
        f"Within {TOLERANCE:.0%} of the best of the fixed cuts: {found.within} of {found.cases} "
        f"({found.within / found.cases:.0%}; the goal is {SHARE:.0%}).",
        f"Surely not within (the whole 95 % interval): {found.beyond_doubt}.",
        f"Median of plan / best: {found.median_excess:.3f}.",
        f"Noise (median of |{PLAN_AGAIN} / {PLAN} - 1|): {found.noise:.1%}.",
        f"Median prediction error over all cuts: {found.prediction_error:.1%}.",
    ]


def markdown(rows: Sequence[QualityRow], about: Mapping[str, str]) -> str:
    """The whole page."""
    legend = (
        "Times are medians in ms, of the slowest rank in each round; all cuts run on one executor "
        f"that was written by hand. The {FINALISTS} fastest fixed cuts of the first rounds were "
        f"measured afresh with the plan, and `{PLAN} / best` compares fresh rounds only, paired, "
        "with the 95 % sign-test interval; each half of them is compared with the cut that was "
        "fastest in the other half. `best` and its ms are those of all fresh rounds."
    )
    parts = [
        f"# Plans against twelve fixed cuts, {rows[0].pair.ranks} ranks",
        listed(about),
        legend,
        "\n".join(f"* {line}" for line in summary_lines(rows)),
        _table(rows),
        "First rounds, all candidates; in brackets, predicted / measured:",
        _first_rounds(rows),
    ]
    if reasons := [row for row in rows if row.reason]:
        parts += [
            "Why each plan was chosen:",
            "\n".join(
                f"* {TITLES[row.pair.kind]}, {row.pair.rate}, {row.pair.shape}: {row.reason}"
                for row in reasons
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[QualityRow]) -> str:
    header = ["chain", "rate", "M×N×K", "best", "ms", "plan", "rows", "ms", "plan / best", "A/A"]
    return table(header, [_cells(row) for row in rows])


def _cells(row: QualityRow) -> list[str]:
    best = row.best
    cells = [
        TITLES[row.pair.kind],
        row.pair.rate,
        str(row.pair.shape),
        best,
        milliseconds(row.fresh.median(best)),
    ]
    if not row.has_plan:
        return [*cells, *["–"] * 5]
    note = "" if row.is_within else " missed" if row.is_beyond_doubt else " missed?"
    return [
        *cells,
        row.plan_schedule,
        format_rows(row.cuts[PLAN]),
        milliseconds(row.fresh.median(PLAN)),
        f"{row.excess}{note}",
        str(row.fresh.ratio(PLAN_AGAIN, PLAN)),
    ]


def _first_rounds(rows: Sequence[QualityRow]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.first.seconds))
    lines = []
    for row in rows:
        cells = [_first(row, name) for name in names]
        lines.append([TITLES[row.pair.kind], row.pair.rate, str(row.pair.shape), *cells])
    return table(["chain", "rate", "M×N×K", *names], lines)


def _first(row: QualityRow, name: str) -> str:
    if name not in row.first.seconds:
        return "–"
    measured = milliseconds(row.first.median(name))
    ratio = row.prediction_ratios.get(name)
    return measured if ratio is None else f"{measured} ({ratio:.2f})"


def to_json(row: QualityRow) -> str:
    """One line of text that ``from_json`` reads back."""
    value = asdict(row)
    for samples in ("first", "fresh"):
        value[samples] = value[samples]["seconds"]
    return json.dumps(value)


def from_json(text: str) -> QualityRow:
    """Read the row that ``to_json`` wrote."""
    value = json.loads(text)
    pair = value.pop("pair")
    return QualityRow(
        pair=Pair(**{**pair, "shape": Shape(**pair["shape"])}),
        cuts={name: tuple(rows) for name, rows in value.pop("cuts").items()},
        first=_samples(value.pop("first")),
        fresh=_samples(value.pop("fresh")),
        **value,
    )


def _samples(seconds: Mapping[str, Sequence[float]]) -> Samples:
    return Samples({name: tuple(times) for name, times in seconds.items()})
