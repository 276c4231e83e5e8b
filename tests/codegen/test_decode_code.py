"""Decode kernels built ahead of time: budgets, and what the loop over keys is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.decode_aot import build_decode_for
from overlapc.codegen.attention.decode_tiles import OF_MANY_ROWS, TRIED, decode_tile, decode_tiles
from overlapc.codegen.attention.policies import POLICIES
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from tests.codegen import score_programs as programs
from tests.codegen.machine_code import ARCHITECTURES, SHARED_BYTES
from tests.codegen.machine_loops import Loop, loops_of
from tests.codegen.machine_order import (
    arrival_faults,
    arrival_mutants,
    settling_faults,
    settling_mutants,
)
from tests.codegen.spills import Spills, check_spills, release

LLAMA = AttentionSpec(
    "bfloat16", 128, 128, groups=4, scale=128**-0.5, after=0, align="bottom_right", lengths=True
)
LATENT = AttentionSpec("bfloat16", 576, 512, groups=16, scale=576**-0.5, lengths=True)
SHARED = Cache(shares_values=True)
NARROW = Cache(dtype="float8_e4m3fn", scales=True)
WIDE = replace(LLAMA, head_dim=256, value_dim=256)

MOST_OF_ONLINE, MOST_WITH = 0.72, {"3.9": 0.73}
"""Instructions a tile of the loop without a running maximum may take, of those with one, and by
release of Triton: 3.9 spares eleven of 291 with one, and adds three to 201 without."""


MOST_SPILLED = {("sm_120", "first_tile"): 8}
"""Bytes of a thread, outside of all loops, of four warps that look for a φ of their own."""
MOST_OF_FLOAT8 = 425
"""Instructions a tile of 64 keys and values of float8."""


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("modules")))
        yield


def check(
    spec: AttentionSpec,
    cache: Cache,
    architecture: str,
    rows: int = 1,
    tile: AttentionTile | None = None,
):
    """Raise AssertionError unless a kernel keeps its budgets; its machine code."""
    tile = tile or decode_tile(spec, cache, rows, architecture)
    binary = build_decode_for(build_decode(spec, cache, tile), architecture)
    most = MOST_SPILLED.get((architecture, spec.softmax), 0)
    check_spills(binary, Spills(most))
    if 0 < binary.spilled_bytes <= most:
        assert all(loop.count("LDL|STL") == 0 for loop in loops_of(binary.cubin))
    assert binary.shared_bytes <= SHARED_BYTES[architecture]
    assert binary.registers <= (512 if architecture.startswith("gfx") else 255)
    if architecture.startswith("sm_"):
        assert "cp.async.c" in binary.assembly, "keys are not loaded ahead"
    assert arrival_faults(binary.assembly) == []
    if spec.moves_phi:
        assert settling_faults(binary.assembly) == []
    return binary


def first_loop(spec: AttentionSpec, tile: AttentionTile) -> Loop:
    """The loop over keys that all rows see: the first one that multiplies matrices."""
    binary = build_decode_for(build_decode(spec, Cache(), tile), "sm_90")
    return next(loop for loop in loops_of(binary.cubin) if loop.count("HMMA"))


def test_the_loop_over_keys_has_no_maximum_and_rescales_nothing():
    tile = AttentionTile(16, 64, 4, 4)
    unified, running, online = (
        first_loop(replace(LLAMA, softmax=s), tile) for s in ("zero", "running", "online")
    )
    assert unified.count("HMMA") == online.count("HMMA")
    assert unified.count("FMNMX|SHFL") == 0
    assert unified.count("FMUL") == unified.count("MUFU.EX2") == 8  # the scale of each score
    assert running.count("FMNMX|SHFL|FMUL") == 0  # it is a part of taking φ off
    assert len(running.instructions) <= len(unified.instructions)
    assert online.count("FMNMX") > 0  # what is counted is there to be found
    assert online.count("FFMA") >= 8  # a score's scale, and its maximum taken off
    assert online.count("SHFL") > 0
    share = len(unified.instructions) / len(online.instructions)
    most = MOST_WITH.get(release(), MOST_OF_ONLINE)
    assert share <= most, f"{share:.3f} of the instructions of a running maximum"


def test_warps_that_share_rows_add_up_nothing_in_the_loop():
    """Mutant: blocks of 64 rows keep no columns of sums apart (375 instructions)."""
    binary = check(replace(LLAMA, groups=8), Cache(), "sm_80", 16)
    loop = next(loop for loop in loops_of(binary.cubin) if loop.count("HMMA"))
    assert loop.count("SHFL") == 0
    assert len(loop.instructions) <= 300


def test_keys_that_a_mask_keeps_are_loaded_ahead():
    check(replace(LLAMA, program=programs.ADDED), Cache(), "sm_90")


def test_a_cache_of_float8_is_built():
    """And its keys are widened to float16 alone, two in one instruction; values, which weights of
    bfloat16 meet, to float32 and back as well. Neither is read from shared memory by bytes.
    Mutants: a constant of devices that comes in a tuple, which makes a number of it; keys that are
    widened as values are (a hundred instructions more); values that are no pairs (547)."""
    binary = check(LLAMA, NARROW, "sm_90")
    loop = next(loop for loop in loops_of(binary.cubin) if loop.count("HMMA"))
    each = 64 * 128 // 128  # keys' numbers of a thread, and values' as well
    assert loop.count(r"F2FP\.F16\.E4M3") == 2 * each // 2
    assert loop.count(r"HADD2\.F32") == each
    assert loop.count(r"F2FP\.BF16") == each // 2
    assert loop.count(r"LDS\.U8") == 0
    assert loop.count("LDSM") == 3 * each // 16  # of queries, keys and pairs of values
    assert len(loop.instructions) <= MOST_OF_FLOAT8


@pytest.mark.long
def test_wide_heads_of_float8_spill_nothing():
    """Mutant: 64 rows a CTA (280 bytes). On gfx942 they do (200 bytes), of 32 rows too."""
    check(replace(WIDE, groups=8), NARROW, "sm_90", 16)


@pytest.mark.long
def test_a_latent_cache_is_not_read_twice():
    binary = check(LATENT, SHARED, "sm_90")
    loop = next(loop for loop in loops_of(binary.cubin) if loop.count("HMMA"))
    # 64 keys of 576 in pieces of 16 bytes, by 256 threads.
    assert loop.count("LDGSTS") == 64 * 576 * 2 // 16 // 256


@pytest.mark.parametrize(
    ("architecture", "page"),
    [
        ("sm_89", 0),
        pytest.param("sm_89", 64, marks=pytest.mark.long),
        pytest.param("sm_80", 0, marks=pytest.mark.long),
        pytest.param("sm_90", 0, marks=pytest.mark.long),
        pytest.param("sm_90", 64, marks=pytest.mark.long),
    ],
)
def test_blocks_of_many_rows_load_each_tile_once(architecture, page):
    """And spill nothing. Mutant, which sm_80 alone shows: rows are written after bad ones are
    computed again, which takes two results. Of others ``test_decode_order`` tells."""
    cache = replace(SHARED, page=page)
    *_, tile = decode_tiles(replace(LATENT, groups=128), cache, 1, architecture, with_tried=True)
    assert tile == (OF_MANY_ROWS | TRIED)[architecture] or page
    binary = check(replace(LATENT, groups=128), cache, architecture, tile=tile)
    loop = next(loop for loop in loops_of(binary.cubin) if loop.count("HMMA|HGMMA"))
    of_keys = -(-tile.block_n * 576 * 2 // 16 // (32 * tile.warps))
    assert loop.count("LDGSTS") == of_keys + (page > 0)  # and a number of a page
    assert loop.count("LDL|STL") == 0


@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=pytest.mark.long), "gfx942"])
def test_a_running_phi_is_moved_when_all_have_read_it(architecture):
    assembly = check(replace(LLAMA, softmax="running"), Cache(), architecture).assembly
    for name, mutant in settling_mutants(assembly).items():
        assert settling_faults(mutant), f"{name} on {architecture}"


@pytest.mark.parametrize("architecture", ["sm_80", "gfx942"])
def test_budgets(architecture):
    assembly = check(LLAMA, Cache(), architecture).assembly
    for name, mutant in arrival_mutants(assembly).items():
        assert arrival_faults(mutant), f"{name} on {architecture}"


CASES = {
    **{softmax: (replace(LLAMA, softmax=softmax, sinks=softmax == "sink"), Cache(), 1)
       for softmax in POLICIES},
    "float16": (replace(LLAMA, dtype="float16", softmax="first_tile"), Cache(), 1),
    "float32": (replace(LLAMA, dtype="float32"), Cache(), 1),
    "window": (replace(LLAMA, before=4095), Cache(), 1),
    "window, pages of 16": (replace(LLAMA, before=4095), Cache(page=16), 1),
    "pages of 16": (LLAMA, Cache(page=16), 1),
    "pages of 64": (LLAMA, Cache(page=64), 1),
    "pages of 256": (LLAMA, Cache(page=256), 1),
    "latent": (LATENT, SHARED, 1),
    "latent, 128 heads, pages": (replace(LATENT, groups=128), replace(SHARED, page=64), 1),
    "fp8": (LLAMA, NARROW, 1),
    "fp8, pages": (LLAMA, replace(NARROW, page=32), 1),
    "four rows": (replace(LLAMA, groups=8), Cache(), 4),
    "sixteen rows": (replace(LLAMA, groups=8), Cache(), 16),
    "sixteen rows, heads of 256": (replace(WIDE, groups=8), Cache(), 16),
    "sixteen rows, fp8": (replace(LLAMA, groups=8), NARROW, 16),
    "four rows, fp8": (replace(LLAMA, groups=8), NARROW, 4),
    "sixteen rows, float32": (replace(LLAMA, groups=8, dtype="float32"), Cache(), 16),
    "sixteen rows, float32, pages": (replace(LLAMA, groups=8, dtype="float32"), Cache(page=16), 16),
    "heads of 64": (replace(LLAMA, head_dim=64, value_dim=64), Cache(), 1),
    "heads of 80": (replace(LLAMA, head_dim=80, value_dim=80), Cache(), 1),
    "heads of 96": (replace(LLAMA, head_dim=96, value_dim=96), Cache(), 1),
    "heads of 192 and 128": (replace(LLAMA, head_dim=192), Cache(), 1),
    "heads of 256": (WIDE, Cache(), 1),
    "heads of 256 of float32": (replace(WIDE, dtype="float32"), Cache(), 1),
    "booleans": (replace(LLAMA, program=programs.KEPT), Cache(), 1),
    "booleans of float16": (
        replace(LLAMA, program=programs.KEPT, dtype="float16", softmax="first_tile"), Cache(), 1,
    ),
    "added": (replace(LLAMA, program=programs.ADDED), Cache(), 1),
    "added, online": (replace(LLAMA, program=programs.ADDED, softmax="online"), Cache(), 1),
    "added, sixteen rows": (replace(LLAMA, program=programs.ADDED, groups=8), Cache(), 16),
    "added, fp8": (replace(LLAMA, program=programs.ADDED), NARROW, 1),
    "added, heads of 256": (replace(WIDE, program=programs.ADDED), Cache(), 1),
    "added, float32": (replace(LLAMA, program=programs.ADDED, dtype="float32"), Cache(), 1),
    "booleans, latent": (replace(LATENT, program=programs.KEPT), SHARED, 1),
    "inputs of every shape": (replace(LLAMA, program=programs.EVERY_SHAPE), Cache(), 1),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_every_case_on_every_device_keeps_the_budgets(name, architecture):
    spec, cache, rows = CASES[name]
    check(spec, cache, architecture, rows)
