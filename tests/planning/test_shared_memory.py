"""What a CTA may have of shared memory, and that tiles of attention keep to it on every device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode_tiles import decode_tile
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import tile_for
from overlapc.planning.linear import tiles as linear_tiles
from overlapc.planning.shared_memory import SHARED_KIB, shared_bytes
from overlapc.planning.tiles import tiles_for, why_not_served

GUIDES = {
    64: "sm_75 gfx90a gfx942", 99: "sm_86 sm_89 sm_120 sm_121", 160: "gfx950",
    163: "sm_80 sm_87", 227: "sm_90 sm_100 sm_103 sm_110",
}  # fmt: skip
"""KiB of a CTA, as the tables of the vendors list them."""
LLAMA = AttentionSpec("bfloat16", 128, 128, groups=4, after=0, align="bottom_right")
LATENT = AttentionSpec("bfloat16", 576, 512, groups=16)
CACHES = {
    "llama": (LLAMA, Cache()),
    "pages": (LLAMA, Cache(page=64)),
    "fp8": (LLAMA, Cache(dtype="float8_e4m3fn", scales=True)),
    "wide": (replace(LLAMA, head_dim=256, value_dim=256), Cache()),
    "wide float32": (replace(LLAMA, head_dim=256, value_dim=256, dtype="float32"), Cache()),
    "latent": (LATENT, Cache(shares_values=True)),
}


def test_every_listed_device_has_what_its_vendor_says():
    said = {name: size for size, names in GUIDES.items() for name in names.split()}
    assert {name: shared_bytes(name) // 1024 for name in SHARED_KIB} == said


@pytest.mark.parametrize(
    ("architecture", "kib"),
    [
        ("sm_88", 99),
        ("sm_101", 227),
        ("sm_122", 99),
        ("sm_70", 64),
        ("sm_130", 48),
        ("gfx1100", 64),
    ],
)
def test_one_that_is_not_listed_has_the_least_of_its_generation(architecture, kib):
    assert shared_bytes(architecture) == kib * 1024


@pytest.mark.parametrize("architecture", [own for own in SHARED_KIB if not why_not_served(own)])
@pytest.mark.parametrize("case", CACHES)
def test_what_a_decode_step_keeps_on_its_way_fits(case, architecture):
    spec, cache = CACHES[case]
    tile = decode_tile(spec, cache, 1, architecture)
    depth = (tile.stages + 1) // 2 if cache.page else tile.stages
    dims = spec.head_dim + (0 if cache.shares_values else spec.value_dim)
    item = {"float32": 4, "float8_e4m3fn": 1}.get(cache.of(spec), 2)
    assert depth * tile.block_n * dims * item <= shared_bytes(architecture)


@pytest.mark.parametrize("architecture", SHARED_KIB)
@pytest.mark.parametrize(("dtype", "item"), [("bfloat16", 2), ("float32", 4), ("float8_e5m2", 1)])
def test_operands_of_every_stage_of_a_gemm_fit(architecture, dtype, item):
    for tile in tiles_for(architecture, dtype):
        stage = (tile.block_m + tile.block_n) * tile.block_k * item
        assert tile.stages * stage <= shared_bytes(architecture), tile


@pytest.mark.parametrize("architecture", SHARED_KIB)
@pytest.mark.parametrize("weights", [1, 2])
@pytest.mark.parametrize("rows", linear_tiles.TILE_ROWS[linear_tiles.FLAT])
def test_operands_of_every_stage_of_few_rows_fit(architecture, rows, weights):
    for layout in ("col", "row"):
        tile = linear_tiles.tile_for(
            linear_tiles.FLAT, architecture, "bfloat16", layout, rows=rows, pair=weights == 2
        )
        if tile is not None:
            stage = (weights * tile.block_n + rows) * tile.block_k * 2
            # On AMD one of the stages is registers.
            depth = tile.stages - architecture.startswith("gfx")
            assert depth * stage <= shared_bytes(architecture), tile


def test_new_consumer_devices_multiply_as_old_ones():
    """They have no matrix units that read shared memory, and less of it than the tiles of those."""
    old, new = tile_for(LLAMA, "sm_80"), tile_for(LLAMA, "sm_120")
    assert tile_for(LLAMA, "sm_86") == old
    assert (new.block_m, new.warps, new.ones) == (old.block_m, old.warps, old.ones)
    assert new.block_n < old.block_n  # its assembler leaves fewer registers
    assert tile_for(LLAMA, "sm_121") == new
    assert tile_for(LLAMA, "sm_103") == tile_for(LLAMA, "sm_100")
