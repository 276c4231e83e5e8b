"""The measured attentions of one machine: from which keys on a kernel of our own surely won."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overlapc.planning.attention.problem import AttentionProblem
from overlapc.planning.attention.tile_names import PLANNED, TILES
from overlapc.planning.linear.regions import LEAST_GAIN
from overlapc.planning.tables import MeasuredTable

MEASURED_KEYS = tuple(1 << power for power in range(9, 18))
"""From 512 to 128k, each twice the one before: chosen."""


@dataclass(frozen=True)
class AttentionShape:
    """All attentions that are computed alike: everything but the keys."""

    batch: int
    heads: int
    """Of queries."""
    groups: int
    """Heads of queries that share one of keys."""
    rows: int
    head_dim: int
    value_dim: int
    dtype: str
    mask: str
    """"nothing", "causal", "given" to both, or "length": ours is given a number, torch's a mask."""
    is_latent: bool = False
    """Keys begin with their values: ours reads each once, torch's are two products."""

    def text(self, keys: int | str) -> str:
        """Sizes as a person reads them, for so many keys."""
        heads = f"{self.heads}/{self.heads // self.groups}" if self.groups > 1 else str(self.heads)
        dims = "" if self.value_dim == self.head_dim else f"/{self.value_dim}"
        sizes = f"{self.batch}x{heads}x{self.rows}x{keys}x{self.head_dim}{dims}"
        latent = ", keys begin with values" * self.is_latent
        return f"{sizes} {self.dtype}, mask: {self.mask}{latent}"


def shape_of(problem: AttentionProblem) -> AttentionShape:
    """Return what attentions that are computed alike have in common, of one as ours reads it."""
    return AttentionShape(
        problem.batch,
        problem.heads,
        problem.groups,
        problem.rows,
        problem.head_dim,
        problem.value_dim,
        problem.dtype,
        "length" if problem.prefix else problem.mask,
        problem.is_latent,
    )


@dataclass(frozen=True)
class AttentionTrial:
    """What was measured at one number of keys, all of them valid; and of a mask that is given,
    where it keeps a quarter of them, as of a static cache that is not full."""

    keys: int
    library_seconds: float
    """Median of torch's attention."""
    low: float
    """How many times as fast ours was: the ends of the 95 % interval, and the median; zeros where
    no kernel of ours ran."""
    median: float
    high: float
    quarter_low: float = 0.0
    """The same of a mask that keeps a quarter; zeros where none was tried."""
    quarter_median: float = 0.0
    tile: str = PLANNED
    """Of ours, which was the fastest of those that were tried over all keys."""

    def __post_init__(self) -> None:
        if self.keys < 1 or not self.library_seconds > 0:
            raise ValueError("keys and seconds of a trial are above zero")
        if not 0 <= self.low <= self.median <= self.high:
            raise ValueError("the interval of a trial does not hold its median")
        if not 0 <= self.quarter_low <= self.quarter_median:
            raise ValueError("the median of a quarter is below its interval")
        if self.tile not in TILES:
            raise ValueError(f"a tile is one of {', '.join(TILES)}")

    @property
    def is_won(self) -> bool:
        """Whether ours was faster even at the low end of the interval, by a gain that lasts: over
        all keys, or over a quarter where it was not surely slower over all."""
        is_won_by_part = self.quarter_low >= LEAST_GAIN and self.high >= 1.0
        return self.low >= LEAST_GAIN or is_won_by_part


@dataclass(frozen=True)
class AttentionEntry:
    """One shape and what was measured of it, by rising keys."""

    problem: AttentionShape
    trials: tuple[AttentionTrial, ...]

    def __post_init__(self) -> None:
        keys = [trial.keys for trial in self.trials]
        if keys != sorted(set(keys)):
            raise ValueError("keys of trials do not rise")

    def gain_at(self, keys: int) -> AttentionTrial | None:
        """The trial that tells how many times as fast as torch's ours was at so many keys; None
        where it did not win.

        Between two numbers that were measured one tile has to have won at both: of another than
        the fastest is not known how it compares. Beyond them nothing is known.
        """
        above = [trial for trial in self.trials if trial.keys >= keys]
        below = [trial for trial in self.trials if trial.keys <= keys]
        if not above or not below or not (above[0].is_won and below[-1].is_won):
            return None
        if above[0].tile != below[-1].tile:
            return None
        return min(above[0], below[-1], key=lambda trial: trial.median)


@dataclass(frozen=True)
class AttentionTable(MeasuredTable):
    """Every attention that was measured, by its shape."""

    KEY: ClassVar[str] = "overlapc_attention"
    FORMAT: ClassVar[int] = 4
    """1 had no latent caches, 2 no masks that keep a quarter, 3 one tile alone."""
    ABOUT: ClassVar[str] = "attentions"
    AGAIN: ClassVar[str] = (
        "run overlapc calibrate --attention on this machine, or compile with softmax='sdpa'"
    )
    FOLDER: ClassVar[str] = "attention"

    entries: tuple[AttentionEntry, ...] = ()

    def entry(self, problem: AttentionShape) -> AttentionEntry | None:
        """What is known of exactly this shape."""
        return self._by_problem.get(problem)
