"""The tile configurations of generated linear layers of few rows, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from overlapc.planning.shared_memory import shared_bytes
from overlapc.planning.tiles import CDNA, FP8, HALVES, sm_number

GEMV, FLAT = "gemv", "flat"
GEMV_MOST, FLAT_MOST = 2, 64
"""The most rows of each."""
TILE_ROWS = {GEMV: (1, 2), FLAT: (8, 16, 32, 64)}
"""Rows of the tiles that are generated."""
MOST_SPLITS = 16
"""CTAs that share the k of one tile: chosen; their parts are all read by one of them."""


@dataclass(frozen=True)
class LinearTile:
    """What of a linear layer's kernel suits a device and the way in which its weight lies."""

    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1

    def step_bytes(self, way: str, weights: int, item: int) -> int:
        """Bytes of weights that one step along k loads; gemv loads one of gate and up at a time."""
        return (weights if way == FLAT else 1) * self.block_n * self.block_k * item

    def bytes_ahead(self, way: str, weights: int, item: int) -> int:
        """Bytes of weights that the pipeline of one CTA asks for ahead."""
        return max(1, self.stages - 1) * self.step_bytes(way, weights, item)


CONFIGURATIONS: dict[tuple[str, str], dict[str, LinearTile]] = {
    # Of 64 x 128 two bytes three stages are 48 KiB on their way: what 4.8 TB/s times 0.65 us ask
    # of each of 132 multiprocessors is 24 (Little's law, docs/design.md section 7).
    ("sm_90", FLAT): {"col": LinearTile(64, 128, 4, 4), "row": LinearTile(64, 128, 4, 4)},
    ("sm_100", FLAT): {"col": LinearTile(64, 64, 4, 6), "row": LinearTile(64, 64, 4, 6)},
    ("sm_80", FLAT): {"col": LinearTile(64, 64, 4, 4), "row": LinearTile(64, 64, 4, 4)},
    ("sm_120", FLAT): {"col": LinearTile(64, 64, 4, 4), "row": LinearTile(64, 64, 4, 4)},
    ("gfx942", FLAT): {"col": LinearTile(64, 64, 4, 2), "row": LinearTile(64, 64, 4, 2)},
    ("sm_80", GEMV): {"col": LinearTile(8, 512, 4, 4), "row": LinearTile(64, 64, 4, 4)},
    ("sm_100", GEMV): {"col": LinearTile(16, 256, 4, 4), "row": LinearTile(64, 32, 4, 4)},
    ("sm_120", GEMV): {"col": LinearTile(8, 512, 4, 4), "row": LinearTile(64, 32, 4, 4)},
    ("gfx942", GEMV): {"col": LinearTile(8, 512, 4, 2), "row": LinearTile(64, 64, 4, 2)},
}
"""By the oldest architecture that runs them and the implementation, then by the weight's layout.
None was compared with others on a device yet."""

LEAST_COLUMNS = min(t.block_n for tiles in CONFIGURATIONS.values() for t in tiles.values())
MOST_SMS = 1024
"""More multiprocessors than a device has: as many tiles or more never share their k."""
LITTLE_SHARED = 99 * 1024
"""Bytes of a CTA in which four stages of many rows do not fit beside what Triton puts there."""
FP8_SINCE = 89
"""The first architecture of NVIDIA's that widens fp8; of others none was built."""
DTYPES = {FLAT: HALVES, GEMV: (*HALVES, "float32")}
"""What x may be. Matrix units make no products of float32."""


def tile_for(
    way: str, architecture: str, dtype: str, layout: str, *, rows: int, pair: bool, held: str = ""
) -> LinearTile | None:
    """The configuration on ``sm_<number>`` or ``gfx<name>``, unsplit; None where there is none.

    ``layout`` is "col" of a weight [n, k], "row" of one [k, n]; ``pair`` says that two are read,
    ``held`` in which dtype they lie where that is another one.
    """
    if dtype not in DTYPES[way] or (held in FP8 and sm_number(architecture) < FP8_SINCE):
        return None
    known = CONFIGURATIONS.get((_family(way, architecture), way))
    tile = known.get(layout) if known else None
    if tile is None:
        return None
    if way == FLAT and pair and not architecture.startswith("gfx"):
        # Two weights are as many bytes in half the steps, and leave room for x in shared memory.
        # (Matrix units of gfx942 multiply eight rows from steps of 64 on.)
        tile = replace(tile, block_k=tile.block_k // 2)
    if way == GEMV and rows > 1:
        # Sums of a second row take the registers of as many threads again.
        tile = replace(tile, warps=2 * tile.warps)
    if way == FLAT and rows > 32 and shared_bytes(architecture) <= LITTLE_SHARED:
        tile = replace(tile, stages=min(tile.stages, 3))
    return tile


def splits_for(tile: LinearTile, n: int, k: int, sms: int) -> int:
    """How many CTAs share k, so that every multiprocessor has one where the columns are few.

    A part has at least as many steps as the pipeline has stages; parts are a power of two.
    """
    tiles, steps = -(-n // tile.block_n), -(-k // tile.block_k)
    splits = 1
    while (
        tiles * splits < sms
        and 2 * splits <= MOST_SPLITS
        and steps // (2 * splits) >= max(tile.stages, 2)
    ):
        splits *= 2
    return splits


def most_counters(columns: Sequence[int]) -> int:
    """The most tiles that may share their k, of results of so many columns each in one launch:
    counters that are enough on every device, rounded up to 16 bytes."""
    tiles = sum(-(-n // LEAST_COLUMNS) for n in columns)
    return -(-min(tiles, MOST_SMS + len(columns)) // 4) * 4


def rows_of_tile(way: str, m: int) -> int | None:
    """The fewest rows of a tile that hold m; None where none does."""
    return next((rows for rows in TILE_ROWS[way] if rows >= m), None)


def _family(way: str, architecture: str) -> str:
    if architecture.startswith("gfx"):
        return "gfx942" if architecture in CDNA else ""
    number = sm_number(architecture)
    known = [sm_number(name) for name, its in CONFIGURATIONS if its == way]
    return f"sm_{max((other for other in known if 0 < other <= number), default=0)}"
