"""What was measured of linear layers at one row count, what is concluded, and the page about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measuring.paired import Samples
from benchmarks.measuring.tables import NOTHING, listed, table

INDUCTOR, AGAIN, OVERLAPC = "inductor", "inductor again", "overlapc"
TUNED = "inductor, max-autotune and freezing"
VARYING, OVERLAPC_VARYING = "inductor, rows vary", "overlapc, rows vary"
PAIRS = {OVERLAPC: INDUCTOR, OVERLAPC_VARYING: VARYING}
"""What has not to be slower than what."""


@dataclass(frozen=True)
class LinearRow:
    """One layer at one row count."""

    layer: str
    """Its name, sizes and dtype."""
    rows: int
    weights: int
    """So many are read in turn by a call: what times are divided by."""
    read: int
    """Bytes of all of them."""
    samples: Samples
    """Seconds of all of them together."""
    decision: str
    """What overlapc did where the row count is known."""
    varying: str
    """And where it is not; empty if that was not measured."""
    error: float
    """Largest deviation of overlapc's values from float64, relative to their largest."""

    def slower(self, ours: str) -> bool:
        """Whether ours is surely slower than its peer: its whole 95 % interval lies below one, and
        below that of Inductor against itself."""
        if ours not in self.samples.seconds:
            return False
        noise = self.samples.ratio(INDUCTOR, AGAIN)
        return self.samples.ratio(PAIRS[ours], ours).high < min(1.0, noise.low)


HEADER = ("layer", "rows", "MiB", f"{INDUCTOR}, us", "A/A", OVERLAPC, "decision", OVERLAPC_VARYING,
          "decision", TUNED, "rounds", "error")  # fmt: skip


def cells(row: LinearRow) -> list[str]:
    """A line of the table."""

    def ratio(peer: str, other: str) -> str:
        return str(row.samples.ratio(peer, other)) if other in row.samples.seconds else NOTHING

    return [
        row.layer,
        str(row.rows),
        f"{row.read / (1 << 20):.0f}",
        f"{1e6 * row.samples.median(INDUCTOR) / row.weights:.0f}",
        ratio(INDUCTOR, AGAIN),
        ratio(INDUCTOR, OVERLAPC),
        row.decision,
        ratio(VARYING, OVERLAPC_VARYING),
        row.varying or NOTHING,
        ratio(INDUCTOR, TUNED),
        str(row.samples.rounds),
        f"{row.error:.0e}",
    ]


def verdicts(rows: Sequence[LinearRow]) -> list[str]:
    """The conclusions, one sentence each."""
    below = sum(row.samples.ratio(INDUCTOR, AGAIN).high < 1 for row in rows)
    said = [f"Of {len(rows)} rows Inductor was slower than itself in {below}: the noise."]
    for ours, peer in PAIRS.items():
        its = [row for row in rows if ours in row.samples.seconds]
        slower = [f"{row.layer} at {row.rows}" for row in its if row.slower(ours)]
        named = f": {', '.join(slower)}" if slower else ""
        faster = sum(row.samples.ratio(peer, ours).low > 1.02 for row in its)
        said.append(
            f"`{ours}` was surely slower than `{peer}` in {len(slower)} of {len(its)}{named}; and "
            f"more than 2 % faster, interval and all, in {faster}."
        )
    return said


def page(rows: Sequence[LinearRow], about: Mapping[str, str]) -> str:
    """The whole page."""
    legend = (
        "Each call reads other weights in turn, `MiB` of all layers together: from cold caches "
        "where the last cache holds less. Times are of one layer. Ratios are of Inductor's time, "
        "paired by round in random order, with their 95 % sign-test interval: above 1 the other "
        "is faster. `A/A` is Inductor against itself, which is the noise. overlapc was "
        "calibrated first, and what it chose is measured afresh here. "
        "`rows vary`: both compiled for any row count (from 2 on; 1 is compiled for by torch). "
        f"`{TUNED}` holds weights as constants, packed anew, and may take Inductor's C++ "
        "templates: it is slow to compile and sees no change of weights; under it overlapc leaves "
        "all layers as they are."
    )
    parts = ["# Linear layers of few rows on a processor", listed(about), legend]
    parts += ["\n".join(f"* {line}" for line in verdicts(rows))]
    return "\n\n".join([*parts, table(HEADER, [cells(row) for row in rows])]) + "\n"


def to_json(row: LinearRow) -> str:
    """One line of text: seconds of every candidate in every round, and what is said of them."""
    said = {name: value for name, value in vars(row).items() if name != "samples"}
    seconds = {name: list(times) for name, times in row.samples.seconds.items()}
    return json.dumps({**said, "seconds": seconds})


def from_json(row: Mapping[str, Any]) -> LinearRow:
    """What `to_json` wrote, read."""
    said = {name: value for name, value in row.items() if name != "seconds"}
    samples = Samples({name: tuple(times) for name, times in row["seconds"].items()})
    return LinearRow(**said, samples=samples)
