"""Which tile a decode takes, and how many CTAs share its keys: what is predicted to take least.

A tile of more rows reads the keys less often, multiplies more at a time, and leaves more to add.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode_tiles import decode_tiles, key_bytes
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile, padded
from overlapc.planning.attention.decode_splits import (
    Blocks,
    Splits,
    blocks_of,
    plan_splits,
    predicted,
)
from overlapc.planning.attention.tile_names import FEW_ROWS, MANY_ROWS


@dataclass(frozen=True)
class DecodeWay:
    """One way to compute a decode, and what it is predicted to take."""

    tile: AttentionTile
    blocks: Blocks
    splits: Splits
    time: float
    """Of a launch, in the bytes of ``decode_splits``."""


@lru_cache(maxsize=4096)
def choose_decode(
    spec: AttentionSpec,
    cache: Cache,
    rows: int,
    architecture: str,
    *,
    pairs: int,
    keys: int,
    multiprocessors: int,
) -> DecodeWay:
    """The way that is predicted to take least to attend with ``rows`` rows of queries to ``keys``
    of each of ``pairs`` sequences and heads; of equals that of the fewest rows a CTA. A spec may
    name that of the fewest or of the most rows, be it to be tried only.

    It depends on sizes and the device alone. KernelError where nothing is generated for it.
    """
    found = []
    tiles = decode_tiles(spec, cache, rows, architecture, with_tried=spec.tile == MANY_ROWS)
    if spec.tile in (FEW_ROWS, MANY_ROWS):
        tiles = tiles[:1] if spec.tile == FEW_ROWS else tiles[-1:]
    for tile in tiles:
        found.append(way_of(spec, tile, rows, pairs, keys, multiprocessors, key_bytes(spec, cache)))
    return min(found, key=lambda way: way.time)


@lru_cache(maxsize=4096)
def way_of(
    spec: AttentionSpec,
    tile: AttentionTile,
    rows: int,
    pairs: int,
    keys: int,
    multiprocessors: int,
    each: int,
) -> DecodeWay:
    """That of one tile, of keys of ``each`` so many bytes with their values."""
    columns = padded(spec.value_dim)
    blocks = blocks_of(
        rows * spec.groups, tile.block_m, tile.block_n, spec.head_dim + columns, columns
    )
    pairs = max(pairs, 1)
    splits = plan_splits(pairs, keys, tile.block_n, multiprocessors, each, blocks)
    size = tile.block_n * each
    time = predicted(splits, pairs, multiprocessors, size, blocks)
    return DecodeWay(tile, blocks, splits, time)
