"""What was measured of a whole model, and the page about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.measuring.paired import Samples
from benchmarks.measuring.tables import listed, table
from benchmarks.overlap_link.rows import INDUCTOR, OVERLAPC

EAGER = "eager"
INDUCTOR_AGAIN = "inductor again"
NOTHING = "–"


@dataclass(frozen=True)
class EndRow:
    """One case over one link."""

    case: str
    """What was run, and how it was sharded."""
    rate: str
    """Of the link."""
    samples: Samples
    """Seconds of Inductor, of Inductor again, and of overlapc if it was measured."""
    errors: Mapping[str, float]
    """Largest relative deviation of logits or of gradients from eager, per compiler."""
    bound_seconds: float | None
    """Inductor's time less what its sites could save at most; None where it was not measured."""
    sites: Mapping[str, int]
    """How many sites of each kind met which decision: "gemm_all_reduce rewritten" to a count."""

    @property
    def has_overlapc(self) -> bool:
        """Whether overlapc was measured."""
        return OVERLAPC in self.samples.seconds


def lines(rows: Sequence[EndRow]) -> list[list[str]]:
    """The cells of the table, a list for each row."""
    return [_cells(row) for row in rows]


def _cells(row: EndRow) -> list[str]:
    bound = NOTHING if row.bound_seconds is None else f"{row.bound_seconds:.3f}"
    cells = [row.case, row.rate, f"{row.samples.median(INDUCTOR):.3f}"]
    again = str(row.samples.ratio(INDUCTOR, INDUCTOR_AGAIN))
    error = max(row.errors.values())
    if not row.has_overlapc:
        return [*cells, NOTHING, bound, again, NOTHING, NOTHING, f"{error:.0e}"]
    seconds = row.samples.median(OVERLAPC)
    share = NOTHING if row.bound_seconds is None else f"{row.bound_seconds / seconds:.3f}"
    speedup = str(row.samples.ratio(INDUCTOR, OVERLAPC))
    return [*cells, f"{seconds:.3f}", bound, again, speedup, share, f"{error:.0e}"]


def markdown(rows: Sequence[EndRow], about: Mapping[str, str]) -> str:
    """The whole page."""
    header = ["case", "rate", INDUCTOR, OVERLAPC, "bound", "A/A", "speedup", "of bound", "error"]
    legend = (
        "Medians in seconds, of the slowest rank in each round; ratios to Inductor are paired by "
        "round, with their 95 % sign-test interval, and `A/A` is Inductor against itself. A "
        "training step is forward, loss, backward and AdamW. `bound`: Inductor's time less what "
        "its row-parallel GEMMs and all-reduces save if they run together without a dependency; an "
        "all-reduce in halves has a second GEMM to hide behind, and may beat it. "
        "`error`: largest relative deviation of the logits, or of any gradient, from eager mode."
    )
    parts = ["# A Llama end to end", listed(about), legend, table(header, lines(rows))]
    sites = [f"* {row.case}, {row.rate}: {_sites(row)}" for row in rows if row.sites]
    if sites:
        parts += ["What became of the sites:", "\n".join(sites)]
    return "\n\n".join(parts) + "\n"


def _sites(row: EndRow) -> str:
    return ", ".join(f"{count} x {what}" for what, count in row.sites.items())


def to_json(row: EndRow) -> str:
    """One line of text that ``from_json`` reads back."""
    return json.dumps({**asdict(row), "samples": row.samples.seconds})


def from_json(text: str) -> EndRow:
    """Read the row that ``to_json`` wrote."""
    value = json.loads(text)
    seconds = {name: tuple(times) for name, times in value.pop("samples").items()}
    return EndRow(**value, samples=Samples(seconds))
