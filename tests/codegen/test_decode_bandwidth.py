"""What a decode kernel needs to read as fast as an H200's memory gives, as its machine code and the
planner have it: simulated, for no device is here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product

import pytest

from benchmarks.gpu.attention.checks import PAGE
from benchmarks.gpu.attention.part import SIZES
from benchmarks.gpu.attention.speed import HEADS, DecodeShape
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.decode_aot import build_decode_for
from overlapc.codegen.attention.decode_tiles import AHEAD_BYTES, decode_tile, key_bytes
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.planning.attention.decode_splits import (
    LATENCY_BYTES,
    RESIDENT,
    least,
    plan_splits,
    predicted,
)
from tests.codegen.machine_loops import Loop, loops_of

SMS, SM_SHARED, SM_REGISTERS, OF_DRIVER = 132, 228 << 10, 64 << 10, 1 << 10
"""Of an H200: the last is what each CTA takes beside its own shared memory."""
SCHEDULERS = 4
CYCLES = 1600
"""Of a multiprocessor in the microsecond of `LATENCY_BYTES`; below what it is sold to run at."""
MOST_BUSY = 0.5
"""Of the cycles in which a tile arrives, to issue what is done to it; chosen: a warp waits for its
own results most of the time."""
LONG = 32 * 1024
SPEC = AttentionSpec("bfloat16", 128, 128, groups=4, scale=128**-0.5)
LATENT = AttentionSpec("bfloat16", 576, 512, groups=16, scale=576**-0.5)
STATIC, PAGED = Cache(), Cache(page=PAGE)
FLOAT8 = Cache("float8_e4m3fn", scales=True)
TILE = decode_tile(SPEC, STATIC, 1, "sm_90")


@dataclass(frozen=True)
class Reading:
    """How one CTA reads, by the loop over keys that all rows see."""

    tile_bytes: int
    ahead: int
    """Tiles that are on their way while it computes."""
    resident: int
    """CTAs on a multiprocessor."""
    loop: Loop
    warps: int

    @property
    def loads(self) -> int:
        """Bytes that a step of the loop loads in pieces of 16."""
        return self.loop.count(r"LDGSTS\.E\.BYPASS\.128") * 32 * self.warps * 16

    @property
    def busy(self) -> float:
        """Share of the time in which the memory gives a tile that issuing takes."""
        issued = len(self.loop.instructions) * self.warps / SCHEDULERS
        return issued / (CYCLES * self.tile_bytes / LATENCY_BYTES)

    def faults(self) -> list[str]:
        """Why the memory would wait for it."""
        found = []
        if self.loads != self.tile_bytes:
            found.append(f"{self.loads} of {self.tile_bytes} bytes are loaded in pieces of 16")
        if self.loop.count("LDG|LDL"):
            found.append("what is loaded is waited for")
        if self.ahead * self.tile_bytes < LATENCY_BYTES:
            found.append(f"{self.ahead} tiles ahead are too few")
        if self.resident < RESIDENT:
            found.append(f"{self.resident} CTAs fit")
        if self.busy > MOST_BUSY:
            found.append(f"issuing takes {self.busy:.0%} of the time")
        return found


def reading(spec: AttentionSpec, cache: Cache, tile: AttentionTile | None = None) -> Reading:
    """Of a kernel that is built for sm_90."""
    tile = tile or decode_tile(spec, cache, 1, "sm_90")
    binary = build_decode_for(build_decode(spec, cache, tile), "sm_90")
    loop = next(loop for loop in loops_of(binary.cubin) if loop.count("HMMA"))
    waits = [re.search(r"DEPBAR\.LE SB0, (0x\w+)", text) for text in loop.instructions]
    left = min(int(wait[1], 16) for wait in waits if wait)
    threads = 32 * tile.warps
    registers = -(-binary.registers // 8) * 8 * threads
    return Reading(
        tile.block_n * key_bytes(spec, cache),
        left // loop.count("LDGDEPBAR"),
        min(SM_SHARED // (binary.shared_bytes + OF_DRIVER), SM_REGISTERS // registers),
        loop,
        tile.warps,
    )


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.mark.parametrize("cache", [STATIC, PAGED], ids=["static", "pages"])
def test_enough_bytes_are_on_their_way_while_a_cta_computes(cache):
    found = reading(SPEC, cache)
    assert found.faults() == []
    steps = found.loop.instructions
    for mutant in (
        replace(found, ahead=found.ahead - 1),
        replace(found, resident=1),
        replace(found, loop=Loop((*steps, "LDG.E R1, desc[UR4][R2.64]"))),
        replace(found, loop=Loop(tuple(text.replace(".128", ".64") for text in steps))),
        replace(found, loop=Loop((*steps, *["NOP"] * 999))),
    ):
        assert len(mutant.faults()) == 1


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_tiles_that_are_half_as_large_have_as_many_bytes_on_their_way(architecture):
    """Of heads of 64 and of float8, in pages too, beside the tile that is multiplied; smaller ones
    are no more. Mutants: a buffer fewer, or one more; fewer in pages."""
    narrow, wide = replace(SPEC, head_dim=64, value_dim=64), SPEC
    for page, (spec, cache) in product((0, PAGE), ((narrow, STATIC), (wide, FLOAT8))):
        tile, buffers = buffers_of(spec, replace(cache, page=page), architecture)
        ahead = (buffers - 1) * tile.block_n * key_bytes(spec, cache)
        assert (ahead, buffers) == (AHEAD_BYTES, 5)
    for page in (0, PAGE):
        assert buffers_of(narrow, replace(FLOAT8, page=page), architecture)[1] == 5


def buffers_of(spec: AttentionSpec, cache: Cache, architecture: str) -> tuple[AttentionTile, int]:
    """Of a decode of one row: its tile, and how many of keys and values shared memory holds."""
    tile = decode_tile(spec, cache, 1, architecture)
    # Numbers of pages are as many stages ahead again.
    return tile, ((tile.stages + 1) // 2 if cache.page else tile.stages) - 1


@pytest.mark.long
def test_one_buffer_is_found_to_be_too_few():
    """The mutant: it leaves nothing on its way while what came is worked on."""
    found = reading(SPEC, STATIC, replace(TILE, stages=2)).faults()
    assert [fault for fault in found if "ahead" in fault]


@pytest.mark.long
def test_numbers_of_pages_that_are_not_loaded_ahead_are_found():
    """The mutant has as few stages as a cache without pages: not all loads are ahead by two."""
    assert reading(SPEC, PAGED, TILE).faults()


@pytest.mark.long
def test_eight_query_heads_cost_no_more_than_four():
    assert reading(replace(SPEC, groups=8), STATIC).faults() == []


@pytest.mark.long
def test_float8_is_widened_without_conversions_of_single_numbers():
    """At a quarter of the rate of others they alone took longer than to read the keys."""
    found = reading(SPEC, FLOAT8)
    assert found.loop.count("F2F") <= 8, "those of weights"
    assert found.ahead * found.tile_bytes >= LATENCY_BYTES
    assert found.resident >= RESIDENT
    assert found.busy < 0.6


@pytest.mark.long
def test_a_latent_cache_is_loaded_while_its_keys_are_multiplied():
    found = reading(LATENT, Cache(shares_values=True))
    assert found.ahead * found.tile_bytes >= LATENCY_BYTES
    assert found.loads == 64 * 576 * 2 < found.tile_bytes + 1


ASKED = [
    DecodeShape(batch, groups, thousands * 1024, page)
    for (batch, thousands), groups, page in product(SIZES, (4, 8), (0, PAGE))
]


@pytest.mark.parametrize("shape", ASKED, ids=str)
def test_the_planner_predicts_what_is_asked(shape):
    """All but the time to begin a launch: at 32k keys of one sequence, the share that is predicted
    leaves a quarter of a microsecond for it."""
    pairs, spec = shape.batch * HEADS, replace(SPEC, groups=shape.groups)
    cache = Cache(page=shape.page)
    tile, each = decode_tile(spec, cache, 1, "sm_90"), key_bytes(spec, cache)
    splits = plan_splits(pairs, shape.keys, tile.block_n, SMS, each)
    sizes = [len(run) for run in splits.runs]
    assert max(sizes) <= min(sizes) + 1
    if shape.batch * shape.keys < LONG:
        return
    time = predicted(splits, pairs, SMS, tile.block_n * each)
    share = least(splits.tiles, pairs, SMS, tile.block_n * each) / time
    assert share >= 0.9, f"{share:.2f} of the bandwidth"
    ctas = pairs * splits.count
    assert ctas / (-(-ctas // SMS) * SMS) >= 0.9, "the last wave leaves multiprocessors idle"
