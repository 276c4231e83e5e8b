"""The tile configurations of generated GEMMs: at most four a device and dtype, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

FP8 = ("float8_e4m3fn", "float8_e5m2")
HALVES = ("float16", "bfloat16")
CDNA = ("gfx942", "gfx950")
"""AMD's architectures that kernels are generated for: matrix units of waves of 64 lanes, and a
release that writes the L2 cache of each die back, as tests read in what is built. RDNA (gfx10 to
gfx12) has waves of 32 and other units, older CDNA another release: nothing was built for them."""


def why_not_served(architecture: str) -> str:
    """Why no kernel is generated for an architecture of AMD's, to follow "none" or "no kernel".

    Empty where kernels are generated, and for other makers.
    """
    if not architecture.startswith("gfx") or architecture in CDNA:
        return ""
    return f"is generated for {architecture}, only for {' and '.join(CDNA)}"


SWEEPS = (1, 2, 4, 8, 16)
"""Numbers of tile rows that a plan may have visited together."""

SWEEP = 8
"""The sweep of a kernel without a plan, and of plans that no prediction tells apart."""


@dataclass(frozen=True)
class Tile:
    """The parameters of a generated GEMM that are tuned to a device and to sizes.

    The first five make a configuration, for which a kernel is built. The sweep is an argument of
    each launch.
    """

    block_m: int
    """Rows of a tile of C."""
    block_n: int
    """Columns of a tile of C."""
    block_k: int
    """Length of one step along k."""
    warps: int
    """Warps of one CTA."""
    stages: int
    """Depth of the software pipeline that loads A and B."""
    sweep: int = SWEEP
    """Tile rows visited together inside a band, so that their part of A stays in the L2 cache; one
    of ``SWEEPS``."""

    def __post_init__(self) -> None:
        if min(self.block_m, self.block_n, self.block_k, self.warps, self.stages) < 1:
            raise ValueError(f"sizes of a tile are above zero, unlike those of {self}")
        if self.sweep not in SWEEPS:
            raise ValueError(f"the sweep of a tile is one of {SWEEPS}, unlike that of {self}")

    @property
    def elements(self) -> int:
        """Elements of C in one tile."""
        return self.block_m * self.block_n

    @property
    def built(self) -> dict[str, Any]:
        """What a kernel is built for, by name."""
        return {name: size for name, size in asdict(self).items() if name != "sweep"}

    @property
    def _work(self) -> tuple[int, ...]:
        """What a step along k multiplies, and who does it."""
        return self.block_m, self.block_n, self.block_k, self.warps

    @property
    def configuration(self) -> Tile:
        """The tile with the default sweep: equal for all tiles that one kernel serves."""
        return self.swept(SWEEP)

    def swept(self, sweep: int) -> Tile:
        """The tile with another sweep."""
        return replace(self, sweep=sweep)

    def count(self, m: int, n: int) -> int:
        """Tiles of C[m, n]."""
        return -(-m // self.block_m) * -(-n // self.block_n)

    def __str__(self) -> str:
        return (
            f"{self.block_m}x{self.block_n}x{self.block_k} with {self.warps} warps, "
            f"{self.stages} stages and sweeps of {self.sweep}"
        )


MOST_SUMS = 128
"""Accumulators (elements of C in registers) of one thread at most, where an epilogue is light or
absent."""

SPARING_SUMS = 64
"""Accumulators of one thread beside any other epilogue; `tests/codegen/test_built_tiles.py` builds
them all."""

CONFIGURATIONS: dict[tuple[str, str], dict[Tile, float]] = {
    ("sm_80", "half"): {
        Tile(128, 128, 32, 8, 3): 1.0,
        Tile(128, 256, 32, 8, 3): 1.0,
        Tile(64, 128, 32, 4, 4): 0.85,
        Tile(64, 64, 64, 4, 3): 0.65,
    },
    ("sm_90", "half"): {
        Tile(128, 256, 64, 8, 4): 1.0,
        Tile(128, 128, 64, 8, 4): 0.9,
        Tile(64, 256, 64, 8, 4): 0.85,
        Tile(64, 128, 64, 4, 4): 0.7,
    },
    # The matrix units of sm_80, the TMA unit of sm_90, and 99 KiB of shared memory.
    ("sm_120", "half"): {
        Tile(128, 128, 64, 8, 3): 1.0,
        Tile(64, 128, 32, 4, 4): 0.85,
        Tile(64, 64, 64, 4, 4): 0.65,
    },
    ("gfx942", "half"): {
        Tile(128, 128, 32, 4, 2): 0.9,
        Tile(256, 128, 32, 8, 2): 1.0,
        Tile(64, 128, 32, 4, 2): 0.75,
        Tile(64, 64, 32, 4, 2): 0.55,
    },
    # Larger ones, and fewer warps, spill without matrix units beside ragged sizes or epilogues.
    ("sm_80", "float32"): {Tile(64, 64, 32, 8, 3): 1.0},
    ("sm_100", "float32"): {Tile(64, 64, 32, 8, 2): 1.0},
    ("gfx942", "float32"): {
        Tile(64, 64, 32, 4, 2): 0.8,
        Tile(128, 64, 32, 4, 2): 0.9,
        Tile(128, 128, 32, 8, 2): 1.0,
    },
    ("sm_89", "fp8"): {
        Tile(128, 128, 64, 8, 3): 1.0,
        Tile(64, 128, 64, 4, 3): 0.8,
        Tile(64, 64, 64, 4, 3): 0.6,
    },
    ("sm_90", "fp8"): {
        Tile(128, 128, 128, 8, 4): 1.0,
        Tile(64, 256, 128, 8, 3): 0.85,
        Tile(64, 128, 128, 4, 4): 0.75,
    },
    ("sm_120", "fp8"): {
        Tile(128, 128, 64, 8, 4): 1.0,
        Tile(64, 128, 64, 8, 3): 0.8,
        Tile(64, 64, 128, 4, 4): 0.6,
    },
    ("gfx942", "fp8"): {
        Tile(128, 128, 32, 8, 2): 1.0,
        Tile(64, 128, 32, 4, 2): 0.75,
        Tile(64, 64, 32, 4, 2): 0.6,
    },
}
"""Tiles by the oldest architecture that runs them and the kind of operands; a site without a plan
takes the first. Each builds without spills. The number beside each is its share of the best tile's
rate, on full tiles: assumed, for none was compared with others on a device yet."""

LEAST_SHARE = 0.5
"""The share of a tile that is none of these: assumed."""


def tiles_for(architecture: str, dtype: str) -> tuple[Tile, ...]:
    """The configurations for operands of a dtype on ``sm_<number>`` or ``gfx<name>``.

    Devices take the newest that is no newer than they are; empty where no GEMM is generated.
    """
    return tuple(_configurations(architecture, dtype))


def share_of(tile: Tile, architecture: str, dtype: str) -> float:
    """Share of the best tile's rate that generated kernels reach with this one, whatever its
    stages."""
    known = _configurations(architecture, dtype).items()
    alike = (share for its, share in known if its._work == tile._work)
    return next(alike, LEAST_SHARE)


def sums(tile: Tile, architecture: str) -> float:
    """Accumulators, elements of a tile of C, that one thread holds."""
    lanes = 64 if architecture.startswith("gfx") else 32
    return tile.elements / (tile.warps * lanes)


def sm_number(architecture: str) -> int:
    """The number of an architecture of NVIDIA's, such as 90 of ``sm_90``; 0 for others."""
    number = architecture.removeprefix("sm_")
    return int(number) if number != architecture and number.isdecimal() else 0


def _configurations(architecture: str, dtype: str) -> dict[Tile, float]:
    kind = "half" if dtype in HALVES else "fp8" if dtype in FP8 else dtype
    if architecture.startswith("gfx"):
        return CONFIGURATIONS.get(("gfx942", kind), {}) if architecture in CDNA else {}
    number = sm_number(architecture)
    known = [sm_number(name) for name, its in CONFIGURATIONS if its == kind]
    newest = max((other for other in known if 0 < other <= number), default=0)
    return CONFIGURATIONS.get((f"sm_{newest}", kind), {})
