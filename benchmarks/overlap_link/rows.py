"""What was measured of one chain of one shape at one rate, and what is concluded from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measuring.paired import Samples
from benchmarks.overlap_link.shapes import Pair, Shape
from overlapc.planning.ratios import Ratio

SERIAL = "serial"
SERIAL_AGAIN = "serial again"
BOUND = "bound"
INDUCTOR = "inductor"
OVERLAPC = "overlapc"

SLOWER_BELOW = 0.98
"""A row counts as slower when the whole 95 % interval of serial/overlapc lies below this."""


@dataclass(frozen=True)
class Prediction:
    """What the planner said, and what ran."""

    schedule: str
    rows: tuple[int, ...]
    """Rows, or columns, of each group."""
    seconds: float
    """Predicted for the plan."""
    serial_seconds: float
    """Predicted for the serial schedule."""
    reason: str
    """In one sentence."""
    calls: dict[str, int]
    """Calls of the compiled site per schedule that ran, as the report counts them."""
    by: str = "rows"
    """What groups are made of: "rows" or "columns"."""


@dataclass(frozen=True)
class Row:
    """One pair, measured."""

    pair: Pair
    samples: Samples
    """Seconds of every candidate, the slowest rank of each round."""
    errors: dict[str, float]
    """Largest deviation from the serial result, relative to its largest value; per candidate."""
    prediction: Prediction | None
    """None where overlapc was not measured."""

    @property
    def has_overlapc(self) -> bool:
        """Whether overlapc was a candidate."""
        return OVERLAPC in self.samples.seconds

    @property
    def speedup(self) -> Ratio:
        """serial / overlapc, paired: above 1, overlapc is faster."""
        return self.samples.ratio(SERIAL, OVERLAPC)

    @property
    def is_slower(self) -> bool:
        """Whether overlapc is slower than serial beyond doubt and beyond the tolerance."""
        return self.has_overlapc and self.speedup.high < SLOWER_BELOW

    @property
    def is_slower_than_inductor(self) -> bool:
        """The same against Inductor, whose graphs are called at the same cost as ours."""
        ratio = self.samples.ratio(INDUCTOR, OVERLAPC) if self.has_overlapc else None
        return ratio is not None and ratio.high < SLOWER_BELOW

    def share_of_bound(self, candidate: str) -> float:
        """bound / candidate, paired: 1 is what no schedule can beat."""
        return self.samples.ratio(BOUND, candidate).median

    @property
    def prediction_ratio(self) -> float | None:
        """Predicted / measured seconds of what ran; None where nothing was predicted."""
        if self.prediction is None:
            return None
        return self.prediction.seconds / self.samples.median(OVERLAPC)


@dataclass(frozen=True)
class Summary:
    """The lines under the table."""

    pairs: int
    """Pairs that are not extreme."""
    shares: dict[str, float]
    """Median share of the bound over those pairs, per candidate."""
    worst: Ratio | None
    """The lowest serial/overlapc over all pairs; None without overlapc."""
    slower: int
    """Pairs, extremes included, in which overlapc is slower."""
    slower_usual: int
    """Of these, the pairs that are not extreme."""
    slower_than_inductor: int
    """Pairs, extremes included, in which overlapc is slower than Inductor."""
    prediction_error: float | None
    """Median of |predicted / measured - 1| over the pairs that are not extreme."""
    prediction_error_all: float | None
    """The same over all pairs."""
    noise: float
    """Median of |serial again / serial - 1| over all pairs: differences below it mean nothing."""


def summarise(rows: Sequence[Row]) -> Summary:
    """Summarise the rows of one kind of chain, or of all; it needs at least one."""
    usual = [row for row in rows if not row.pair.is_extreme]
    names = [name for name in rows[0].samples.seconds if name not in (BOUND, SERIAL_AGAIN)]
    shares = {n: statistics.median(r.share_of_bound(n) for r in usual) for n in names if usual}
    ours = [row for row in rows if row.has_overlapc]
    known = [(row.prediction_ratio, row.pair.is_extreme) for row in ours]
    ratios = [(ratio, is_extreme) for ratio, is_extreme in known if ratio is not None]
    again = [row.samples.ratio(SERIAL_AGAIN, SERIAL).median for row in rows]
    return Summary(
        pairs=len(usual),
        shares=shares,
        worst=min((row.speedup for row in ours), key=lambda r: r.median, default=None),
        slower=sum(row.is_slower for row in ours),
        slower_usual=sum(row.is_slower and not row.pair.is_extreme for row in ours),
        slower_than_inductor=sum(row.is_slower_than_inductor for row in ours),
        prediction_error=_typical_deviation([ratio for ratio, extreme in ratios if not extreme]),
        prediction_error_all=_typical_deviation([ratio for ratio, _ in ratios]),
        noise=_typical_deviation(again) or 0.0,
    )


def _typical_deviation(ratios: Sequence[float]) -> float | None:
    return statistics.median(abs(ratio - 1) for ratio in ratios) if ratios else None


def by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each kind of chain, in the order of their first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.pair.kind, []).append(row)
    return found


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of results."""
    return [from_json(json.dumps(row)) for row in json.loads(path.read_text())["rows"]]


def to_json(row: Row) -> str:
    """One line of text that ``from_json`` reads back."""
    return json.dumps(
        {
            **asdict(row.pair),
            "seconds": {name: list(times) for name, times in row.samples.seconds.items()},
            "errors": row.errors,
            "prediction": asdict(row.prediction) if row.prediction else None,
        }
    )


def from_json(text: str) -> Row:
    """Read the row that ``to_json`` wrote."""
    value = json.loads(text)
    seconds, errors, said = (value.pop(name) for name in ("seconds", "errors", "prediction"))
    return Row(
        pair=Pair(**{**value, "shape": Shape(**value["shape"])}),
        samples=Samples({name: tuple(times) for name, times in seconds.items()}),
        errors=errors,
        prediction=Prediction(**{**said, "rows": tuple(said["rows"])}) if said else None,
    )
