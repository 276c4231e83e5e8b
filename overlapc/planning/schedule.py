"""What will run in place of a GEMM and its collective: the `Plan`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate

from overlapc.errors import PlanError
from overlapc.planning.problem import ROWS, TILES, Problem
from overlapc.planning.records import check_format, from_value, to_value
from overlapc.planning.tiles import Tile

FORMAT = 7
"""Version of the text that `to_json` writes: one more whenever a record gets a field
or loses one. Texts of all versions before are read, and what they lack has a default; a newer one
is refused."""

SCHEDULES = ("serial", "chunked", "signaled")

LANES = ("compute", "communication")

LOCAL = -1
"""Group of an event that computes the rows a consumer has itself, before any group has come."""


@dataclass(frozen=True)
class Event:
    """One interval of a predicted timeline."""

    lane: str
    """"compute" or "communication"."""
    group: int
    """Index into the plan's ``rows``, or ``LOCAL``."""
    start: float
    """Seconds from the start of the plan."""
    end: float
    """Seconds from the start of the plan."""


@dataclass(frozen=True)
class Plan:
    """How one problem runs. Equal problems, targets and options give equal plans on every rank.

    ``serial``: one GEMM and one collective, one after the other. ``chunked``: a library GEMM and a
    collective for each group, so that the one is in flight while the other computes.
    ``signaled``: one GEMM that signals each group of rows to a waiting collective. Seconds are
    predictions.
    """

    problem: Problem
    target: str
    """Name of the target."""
    fingerprint: str
    """Fingerprint of the target's content."""
    schedule: str
    """One of ``SCHEDULES``."""
    rows: tuple[int, ...]
    """Rows of each group, or columns or tiles where ``by`` says so, in the order they are sent,
    each group as one collective. Rows add up to m, and each count is a multiple of the problem's
    ``granule``; columns add up to n, and tiles to all there are."""
    predicted_seconds: float
    """Predicted for this plan."""
    serial_seconds: float
    """Predicted for the serial schedule."""
    bound_seconds: float
    """Predicted for the same GEMM and collective started together, with no dependency between them
    and what is sent cut as it takes least: no plan of the problem is predicted to be quicker."""
    code: str
    """Stable short name of the reason."""
    reason: str
    """Why this schedule, in one sentence."""
    timeline: tuple[Event, ...]
    """What each lane does when, as predicted, compute and communication by turns. Where groups are
    of tiles, what readers of the result lose by them ends it, as compute of the last group."""
    by: str = ROWS
    """What groups are made of: "rows", "columns" of a ``chunked`` plan, or "tiles" of a
    ``signaled`` one."""
    tile: Tile | None = None
    """Tile of the generated kernel of a ``signaled`` plan; other plans have none. None in one that
    was made before there was a choice."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is not one of {', '.join(SCHEDULES)}")
        if not self.problem.is_cut_by(self.rows, self.by, self.tile):
            raise ValueError(f"{self.by} {self.rows} do not cut the problem into groups")
        if self.by != ROWS and self.schedule != {TILES: "signaled"}.get(self.by, "chunked"):
            raise ValueError(f"a {self.schedule} plan has no groups of {self.by}")
        if self.tile and self.schedule != "signaled":
            raise ValueError(f"a {self.schedule} plan has no tile")
        if self.schedule == "serial" and len(self.rows) != 1:
            raise ValueError("a serial plan has one group")
        if not self.reason or not self.code:
            raise ValueError("a plan says why")

    @property
    def order(self) -> str:
        """In which order a generated kernel stores tiles; empty where none runs.

        "band": rows from the top. "staged": some rows for every rank, then more for every rank.
        "packed": one tile after another, as they complete.
        """
        if self.schedule != "signaled":
            return ""
        if self.by == TILES:
            return "packed"
        return "staged" if self.problem.parts > 1 else "band"

    @property
    def starts(self) -> tuple[int, ...]:
        """First row, column or tile of each group."""
        return (0, *accumulate(self.rows[:-1]))

    @property
    def has_local(self) -> bool:
        """Whether rows that this rank has itself are computed before any has come."""
        return any(event.group == LOCAL for event in self.timeline)

    @property
    def reading_seconds(self) -> float:
        """What whoever reads the result is predicted to lose by packed tiles."""
        last = self.timeline[-1]
        is_loss = self.by == TILES and last.lane == "compute"
        return last.end - last.start if is_loss else 0.0

    @property
    def speedup(self) -> float:
        """Predicted, over the serial schedule."""
        return self.serial_seconds / self.predicted_seconds if self.predicted_seconds else 1.0

    def __str__(self) -> str:
        p = self.problem
        predicted, serial, bound = map(
            format_seconds, (self.predicted_seconds, self.serial_seconds, self.bound_seconds)
        )
        kernel = f", {self.order} order of tiles {self.tile}" if self.tile else ""
        return (
            f"{self.schedule} {p.m}x{p.n}x{p.k} {p.dtype} {p.collective} over {p.world_size} "
            f"on {self.target}: {self.by} {format_rows(self.rows)}{kernel}, "
            f"{predicted} (serial {serial}, bound {bound}). {self.reason} [{self.code}]"
        )

    def to_json(self) -> str:
        """Text from which `from_json` makes an equal plan."""
        return json.dumps({"overlapc_plan": FORMAT, **to_value(self)})

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote; raises PlanError for anything else."""
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or "overlapc_plan" not in content:
                raise ValueError("the text is no plan")
            check_format(content.pop("overlapc_plan"), FORMAT)
            return from_value(Plan, content)
        except ValueError as error:
            raise PlanError(
                f"The plan cannot be read: {error}.",
                where="Plan.from_json",
                remedy="give the text that Plan.to_json wrote, unchanged",
            ) from error


def format_seconds(seconds: float) -> str:
    """Three significant digits in s, ms or us."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * scale:  # else it would be rounded to 1e+03 of the next
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def format_rows(rows: tuple[int, ...]) -> str:
    """``4x128 + 96`` for (128, 128, 128, 128, 96)."""
    runs: list[list[int]] = []
    for count in rows:
        if runs and runs[-1][1] == count:
            runs[-1][0] += 1
        else:
            runs.append([1, count])
    return " + ".join(f"{times}x{count}" if times > 1 else str(count) for times, count in runs)
