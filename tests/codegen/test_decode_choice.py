"""Which rows a CTA of a decode holds: whatever is predicted to take least, and never more than one
block of a few."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode_choice import choose_decode
from overlapc.codegen.attention.spec import AttentionSpec

LATENT = AttentionSpec("bfloat16", 576, 512, groups=128, scale=576**-0.5)
SHARED = Cache(shares_values=True)
K = 1024


def chosen(
    pairs, keys, groups=128, architecture="sm_80", rows=1, cache=SHARED, tile="planned"
):  # fmt: skip
    spec = replace(LATENT, groups=groups, tile=tile)
    sizes = {"pairs": pairs, "keys": keys, "multiprocessors": 108}
    return choose_decode(spec, cache, rows, architecture, **sizes)


@pytest.mark.parametrize("sizes", [(16, 8 * K), (32, 4 * K), (64, 8 * K)], ids=str)
def test_many_heads_of_many_sequences_read_a_latent_cache_four_times(sizes):
    """Sixteen rows at a time read it eight times. Mutant: the least block is taken."""
    way = chosen(*sizes)
    assert (way.tile.block_m, way.blocks.count) == (32, 4)
    few = chosen(*sizes, tile="few_rows")
    assert (few.tile.block_m, few.blocks.count) == (16, 8)
    assert few.time > 1.3 * way.time


@pytest.mark.parametrize("groups", [16, 32, 64, 128])
@pytest.mark.parametrize("sizes", [*product((1, 8, 64), (512, 4 * K, 128 * K))], ids=str)
def test_no_other_way_is_predicted_to_take_less(sizes, groups):
    way = chosen(*sizes, groups=groups)
    each = [chosen(*sizes, groups=groups, tile=tile) for tile in ("few_rows", "many_rows")]
    assert [one.tile.block_m for one in each] == [16, 32 if groups > 16 else 16]
    assert way.time == min(one.time for one in each)


def test_rows_of_several_tokens_share_a_block_as_heads_do():
    assert chosen(16, 8 * K, groups=16, rows=4) == chosen(16, 8 * K, groups=64)
    assert chosen(16, 8 * K, groups=16, rows=4).blocks.count == 2


def test_sixteen_heads_take_a_block_of_sixteen():
    way = chosen(16, 8 * K, groups=16)
    assert (way.tile.block_m, way.blocks.count) == (16, 1)


def test_other_caches_and_devices_keep_to_what_was_built():
    """Mutant: pages leave a block of many rows as many registers on sm_80."""
    for cache, architecture in (
        (Cache(page=64, shares_values=True), "sm_80"),
        (Cache("float8_e4m3fn", scales=True, shares_values=True), "sm_80"),
        (Cache(), "sm_80"),
        (SHARED, "gfx942"),
        (SHARED, "sm_90"),
    ):
        assert chosen(16, 8 * K, cache=cache, architecture=architecture).tile.block_m == 16


def test_what_is_to_be_tried_is_taken_where_it_is_asked_for_alone():
    for tile, rows in (("many_rows", 32), ("few_rows", 16), ("planned", 16)):
        assert chosen(16, 8 * K, architecture="sm_90", tile=tile).tile.block_m == rows


@pytest.mark.parametrize(("groups", "reads"), [(16, 1), (32, 1), (64, 1), (71, 2)])
def test_heads_of_128_columns_read_a_cache_once_for_64_rows(groups, reads):
    spec = AttentionSpec("bfloat16", 128, 128, groups=groups)
    way = choose_decode(spec, Cache(), 1, "sm_90", pairs=8, keys=8 * K, multiprocessors=132)
    assert way.blocks.count == reads
