"""Rates of a machine: how long a GEMM and a collective take, as measured numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlapc.planning.curve import ROUNDED_TO_DIGITS, Curve
from overlapc.planning.problem import COLLECTIVES, PER_TENSOR

ASSUMED_SHARE = 0.85
"""Share of the library's rate that a generated kernel reaches: assumed, and low for that."""


@dataclass(frozen=True)
class GemmRates:
    """How fast the library GEMM of one dtype runs on one rank.

    One formula serves both kinds of device. A CPU computes ``tile_rows`` rows at a time, has one
    resident tile, and packs the weight again at each call; a GPU runs waves of resident tiles and
    is never faster than its memory.
    """

    dtype: str
    """Name of the dtype, as torch spells it without ``torch.``."""
    flops_per_second: float
    """Rate of full tiles on all resident places together."""
    launch_seconds: float
    """Time of a call before the first useful operation."""
    pack_bytes_per_second: float | None = None
    """Rate at which each call reorders the k x n weight first; None where no call does."""
    memory_bytes_per_second: float | None = None
    """Rate at which operands stream from memory; None where the arithmetic rate includes it."""
    tile_rows: int = 1
    """Rows of a tile; fewer rows take as long as a whole tile."""
    tile_columns: int = 1
    """Columns of a tile."""
    resident: int = 1
    """Tiles that run at the same time: one wave."""
    pointwise_bytes_per_second: float | None = None
    """Rate of pointwise work beside a GEMM; None where it is that of memory."""
    generated_share: float | None = None
    """Share of ``flops_per_second`` that a generated kernel reaches on full tiles. None where
    nobody has measured or assumed it: `ASSUMED_SHARE` stands in."""
    scales: str = ""
    """Float8 only: how A and B were scaled, as `Problem.scales` says."""

    def __post_init__(self) -> None:
        rates = (
            self.flops_per_second,
            self.pack_bytes_per_second,
            self.memory_bytes_per_second,
            self.pointwise_bytes_per_second,
        )
        if any(rate is not None and not rate > 0 for rate in rates):
            raise ValueError(f"rates of {self.dtype} must be above zero, or null where allowed")
        if self.scales not in ("", PER_TENSOR):
            raise ValueError(f"scales of {self.dtype} are {self.scales!r}, not {PER_TENSOR!r}")
        if self.generated_share is not None and not 0 < self.generated_share <= 1:
            raise ValueError(f"generated_share of {self.dtype} is none of its flops_per_second")
        if not self.launch_seconds >= 0:
            raise ValueError(f"launch_seconds of {self.dtype} cannot be negative")
        if min(self.tile_rows, self.tile_columns, self.resident) < 1:
            raise ValueError(f"tile and resident of {self.dtype} must be at least one")

    def tiles(self, rows: int, n: int) -> int:
        """Tiles of a ``rows`` x ``n`` output."""
        return -(-rows // self.tile_rows) * -(-n // self.tile_columns)

    def waves(self, rows: int, n: int, taken: int = 0) -> int:
        """Waves of those tiles, where ``taken`` of the places have no room for any."""
        return -(-self.tiles(rows, n) // max(1, self.resident - taken))

    def wave_seconds(self, k: int) -> float:
        """Seconds of one wave of resident tiles over a contraction of ``k``."""
        elements = self.resident * self.tile_rows * self.tile_columns
        return 2.0 * elements * k / self.flops_per_second

    def seconds(
        self,
        rows: int,
        n: int,
        k: int,
        item_bytes: int,
        extra_bytes: int = 0,
        least_waves: float = 0.0,
    ) -> float:
        """Seconds of a call on a ``rows`` x ``k`` slice, then ``extra_bytes`` of pointwise work;
        of at least so many waves."""
        busy = max(self.waves(rows, n), least_waves) * self.wave_seconds(k)
        if self.pack_bytes_per_second is not None:
            busy += k * n * item_bytes / self.pack_bytes_per_second
        if self.memory_bytes_per_second is not None:
            moved = (rows * k + k * n + rows * n) * item_bytes
            busy = max(busy, moved / self.memory_bytes_per_second)
        return self.launch_seconds + busy + self.pointwise_seconds(extra_bytes)

    def pointwise_seconds(self, moved_bytes: int) -> float:
        """Seconds of pointwise work that reads and writes so many bytes.

        Packing a weight is such work too, where nothing better was measured.
        """
        for rate in (
            self.pointwise_bytes_per_second,
            self.memory_bytes_per_second,
            self.pack_bytes_per_second,
        ):
            if rate is not None:
                return moved_bytes / rate
        return 0.0


@dataclass(frozen=True)
class Link:
    """How fast one collective runs among ``world_size`` ranks."""

    collective: str
    """A name of ``problem.COLLECTIVES``."""
    world_size: int
    """Members of the group that was measured, at least two."""
    alone: Curve
    """Seconds of a blocking call after a GEMM, by bytes of the whole tensor on one rank."""
    queued: Curve
    """Seconds that one more call adds to a train of asynchronous calls."""
    issue_seconds: float = 0.0
    """Compute time that a producer's group costs beside its GEMM: starting its call, and colder
    caches."""
    consumer_issue_seconds: float = 0.0
    """Compute time that a consumer's group costs beside its GEMM."""
    issue: Curve | None = None
    """Compute time of starting a call, where it grows with the bytes: added to the seconds above.
    None where starting a call blocks no one for long."""
    compute_slowdown: float | None = None
    """How much slower compute runs while this collective does; None as the target says for all."""
    link_slowdown: float | None = None
    """How much slower this collective runs while compute does; None as the target says for all."""
    plain: Curve | None = None
    """As ``alone``, of the backend's own collective, where overlapc sends in another way."""

    def __post_init__(self) -> None:
        if self.collective not in COLLECTIVES:
            raise ValueError(f"unknown collective {self.collective!r}")
        if self.world_size < 2:
            raise ValueError("a link joins at least two ranks")
        if any(not value >= 0 for value in (self.issue_seconds, self.consumer_issue_seconds)):
            raise ValueError("issue_seconds cannot be negative")
        slowdowns = (self.compute_slowdown, self.link_slowdown)
        if any(value is not None and not value >= 1 for value in slowdowns):
            raise ValueError("compute_slowdown and link_slowdown cannot be below 1")

    def scaled(self, seconds: Curve, size: int, world_size: int) -> float:
        """Seconds of ``seconds`` for ``size`` bytes among another number of ranks.

        Ring rule: a ring over p ranks makes steps in proportion to p - 1, each moving size / p
        bytes; a step of the same bytes takes the same time, however many steps there are. So do
        all four collectives.
        """
        if world_size == self.world_size:
            return seconds.seconds(size)
        steps = (world_size - 1) / (self.world_size - 1)
        return steps * seconds.seconds(size * self.world_size / world_size)

    def least(self, first: Sequence[Curve], size: int, world_size: int) -> float:
        """Fewest seconds of any number of calls that move ``size`` bytes, above zero, in all.

        The first takes what the quickest of the curves ``first`` says, the others are ``queued``.
        Many small calls may be quicker than one: a whole tensor need not be what takes least.
        """
        own_size = size * self.world_size / world_size
        rate = self.queued.least_rate(own_size)
        beyond = min(curve.least_beyond(rate, own_size) for curve in first)
        steps = (world_size - 1) / (self.world_size - 1)
        return round(steps * (rate * own_size + beyond), ROUNDED_TO_DIGITS)
