"""Machine code of generated attention, built ahead of time: registers, shared memory, instructions.

The loop without a running maximum has to be the shorter one: there is nothing else to gain.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest

from overlapc.codegen.attention.aot import build_floors_for, build_for, build_kept_for
from overlapc.codegen.attention.backward_aot import build_backward_for
from overlapc.codegen.attention.backward_tiles import backward_tile_for
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.decode_aot import build_decode_for
from overlapc.codegen.attention.decode_tiles import decode_tile
from overlapc.codegen.attention.module import module_text
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile, tile_for
from overlapc.codegen.attention.visibility import FINITE, hides
from overlapc.errors import KernelError
from overlapc.planning.shared_memory import shared_bytes
from overlapc.planning.tiles import CDNA
from tests.codegen import score_programs as programs
from tests.codegen.machine_code import SHARED_BYTES
from tests.codegen.machine_loops import Loop, loops_of, written_too_soon
from tests.codegen.spills import Spills, check_spills, release

SPEC = AttentionSpec("bfloat16", 128, 128, groups=4, scale=128**-0.5, after=0)
EVERYTHING = {
    "before": 1024, "align": "bottom_right", "program": programs.SOFT_CAP, "sinks": True,
    "softmax": "first_tile", "lengths": True,
}  # fmt: skip
MATRIX = {"sm_80": "mma.sync", "sm_89": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05.mma",
          "sm_120": "mma.sync", "gfx942": "v_mfma"}  # fmt: skip
TMA = "cp.async.bulk.tensor"
WIDEST = [
    {"before": 1024, "align": "bottom_right", "sinks": True, "softmax": "sink"},
    {"softmax": "online"},
    {"softmax": "running"},
    {"softmax": "first_tile"},
    {"lengths": True, "align": "bottom_right"},
    {"program": programs.KEPT, "after": None},
]
"""What takes a tile of its own by the TMA unit, and what does not, at its most."""
LITTLE = 1024
"""Bytes of shared memory of what looks masks through: threads tell one another of a flag alone."""
MOST_OF_POINTERS = {
    "sm_90": {64: 1.0, 128: 0.75},
    "sm_100": {64: 0.5, 128: 0.7},
}
"""Instructions a score, of those by pointers."""
WIDE_BY_POINTERS = {"3.9": Spills(336, 0.08)}
"""Of 128 keys of 64 columns, by release of Triton: 56 of 799 instructions of the loop over tiles
that a causal row sees in part, of which a block of rows has one. A tile of 64 keys spills nothing,
and takes 1.24 times as many instructions a score; one of a single stage loads nothing ahead."""
DIMS = [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)]


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("modules")))
        yield


NOTHING = Spills()
LOOKED_AT, LOOKED_AT_NARROW = Spills(32), Spills(16)
"""Of heads of 192 columns and more whose masks are looked through, and of narrower ones (heads of
128 on sm_80 16 bytes, of 64 on sm_120 8), in no loop that multiplies."""


def check(
    spec: AttentionSpec, architecture: str, *, is_aligned: bool = False, most: Spills = NOTHING
) -> None:
    """Raise AssertionError unless the machine code keeps its budgets."""
    tile = tile_for(spec, architecture, is_aligned=is_aligned)
    binary = build_for(spec, tile, architecture)
    assert tile.by_tma == (TMA in binary.assembly)
    is_wide = tile.block_n == 128 and not tile.by_tma
    check_spills(binary, WIDE_BY_POINTERS.get(release() if is_wide else "", most))
    assert binary.shared_bytes <= SHARED_BYTES[architecture]
    if spec.dtype != "float32":
        assert MATRIX[architecture] in binary.assembly
    hiding = hides(spec.scores)
    launches = [build_kept_for] if hiding else []
    launches += [build_floors_for] if hiding == FINITE else []
    for build_for_masks in launches:
        looking = build_for_masks(spec, tile, architecture)
        assert (looking.spilled_bytes, looking.shared_bytes <= LITTLE) == (0, True)


@pytest.mark.parametrize("is_aligned", [False, True])
def test_budgets(is_aligned):
    check(SPEC, "sm_90", is_aligned=is_aligned)


def test_products_are_added_in_one_instruction_whatever_the_environment_says(monkeypatch):
    """Mutants: modules that leave it to Triton, or say no."""
    spec = replace(SPEC, head_dim=64, value_dim=64)
    built = build_for(spec, tile_for(spec, "sm_80"), "sm_80")
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    assert build_for(spec, tile_for(spec, "sm_80"), "sm_80").assembly == built.assembly
    assert "fma.rn.f32" in built.assembly


@pytest.mark.parametrize("part", ["forward", "keys"])
def test_no_base_is_added_to_a_product_where_masks_may_be(part):
    """One instruction would round the product of a mask not as its maximum was: apart by many nats.

    The interpreter does not show it. Mutants: ``near_relative_to`` of programs, in either.
    """
    spec = replace(
        SPEC, head_dim=16, value_dim=16, after=None, softmax="online",
        program=programs.LEAST_BY_SCORE,
    )  # fmt: skip
    tile = AttentionTile(16, 16, 1, 1)
    build = build_for if part == "forward" else partial(build_backward_for, part=part)
    text = build(spec, tile=tile, architecture="sm_80").assembly
    given = re.findall(r"ex2\S+\s+%\w+, (%\w+);", text)
    assert given
    assert not [name for name in given if re.search(rf"fma\S+ \t{name}, ", text)]


def test_the_tma_unit_loads_where_there_is_one():
    """Mutants: on every device, of float32 too, of what is not aligned, of programs on sm_100."""
    found = {
        (architecture, dtype): tile_for(
            replace(SPEC, dtype=dtype), architecture, is_aligned=True
        ).by_tma
        for architecture in ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
        for dtype in ("float16", "float32")
    }
    half = [("sm_90", "float16"), ("sm_100", "float16")]
    assert [key for key, by_tma in found.items() if by_tma] == half
    capped = replace(SPEC, program=programs.SOFT_CAP)
    assert tile_for(capped, "sm_90", is_aligned=True).by_tma
    assert tile_for(capped, "sm_100", is_aligned=True) == tile_for(capped, "sm_100")
    assert not tile_for(SPEC, "sm_90").by_tma


def test_keys_of_192_columns_have_a_tile_of_their_own_beside_narrow_values():
    """On sm_100, and where gradients are made; values of as many spill in it.

    Mutant: whatever has no more columns takes it.
    """
    wide = replace(SPEC, head_dim=192)
    by_tma = partial(tile_for, architecture="sm_100", is_aligned=True)
    assert by_tma(wide).block_m == 128
    assert by_tma(replace(wide, value_dim=192)) == by_tma(replace(SPEC, head_dim=256))
    keys = partial(backward_tile_for, architecture="sm_90", part="keys")
    assert keys(wide) != keys(replace(wide, value_dim=192)) == keys(replace(SPEC, head_dim=256))


def test_budgets_where_masks_are_looked_through():
    check(replace(SPEC, after=None, program=programs.KEPT_FINITE, softmax="first_tile"), "sm_90")


@pytest.mark.long
@pytest.mark.parametrize("architecture", CDNA)
def test_every_architecture_of_amd_that_is_served_has_its_units(architecture):
    decode = build_decode(SPEC, Cache(), decode_tile(SPEC, Cache(), 1, architecture))
    binaries = [
        build_for(SPEC, tile_for(SPEC, architecture), architecture),
        build_decode_for(decode, architecture),
    ]
    for part in ("keys", "queries"):
        tile = backward_tile_for(SPEC, architecture, part)
        binaries.append(build_backward_for(SPEC, part, tile, architecture))
    for binary in binaries:
        assert binary.spilled_bytes == 0
        assert binary.shared_bytes <= shared_bytes(architecture)
        assert "v_mfma" in binary.assembly


def tiles_of(architecture):
    """What asks for a tile of each kind of kernel."""
    yield partial(tile_for, SPEC, architecture)
    yield partial(decode_tile, SPEC, Cache(), 1, architecture)
    for part in ("rows", "shares", "queries", "keys", "input 0"):
        yield partial(backward_tile_for, SPEC, architecture, part)


@pytest.mark.parametrize("architecture", ["gfx1030", "gfx1100", "gfx1201", "gfx90a"])
def test_no_attention_is_generated_for_other_units_of_amd(architecture):
    """Mutant: whatever is called gfx has the tiles of gfx942."""
    said = f"No attention is generated for {architecture}, only for gfx942 and gfx950"
    for tile_of in tiles_of(architecture):
        with pytest.raises(KernelError, match=said):
            tile_of()
    assert all(tile_of() for tile_of in tiles_of("gfx950"))


@pytest.mark.long
@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["causal", "everything"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_every_budget(architecture, dtype, dims, change):
    precision = "tf32x3" if dtype == "float32" and architecture != "gfx942" else "ieee"
    spec = replace(SPEC, dtype=dtype, head_dim=dims[0], value_dim=dims[1], precision=precision)
    spec = replace(spec, **change)
    if dtype == "float32" and max(dims) > 128 and architecture != "gfx942":
        with pytest.raises(KernelError, match="do not fit"):
            tile_for(spec, architecture)
        return
    check(spec, architecture)


@pytest.mark.long
@pytest.mark.parametrize("change", [{}, EVERYTHING, *WIDEST], ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", list(MOST_OF_POINTERS))
def test_every_budget_by_the_tma_unit(architecture, dtype, dims, change):
    spec = replace(SPEC, dtype=dtype, head_dim=dims[0], value_dim=dims[1], **change)
    if tile_for(spec, architecture, is_aligned=True).by_tma:  # else it is as by pointers
        check(spec, architecture, is_aligned=True)


@pytest.mark.long
@pytest.mark.parametrize("mask", ["bool", "float32", "16 bits"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), *DIMS[-3:]], ids=str)
@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_budgets_of_what_reads_no_hidden_keys(architecture, dims, mask):
    for dtype, softmax in (("bfloat16", "zero"), ("float16", "first_tile")):
        added = programs.program(f"matrix:{dtype}", ("add.Tensor", "%0", "@0"))
        program = {"bool": programs.KEPT, "float32": programs.ADDED}.get(mask, added)
        spec = replace(SPEC, dtype=dtype, softmax=softmax, after=None, program=program)
        most = LOOKED_AT if dims[0] >= 192 else LOOKED_AT_NARROW
        check(replace(spec, head_dim=dims[0], value_dim=dims[1]), architecture, most=most)


@pytest.mark.long
def test_a_tile_that_is_too_large_is_noticed():
    binary = build_for(SPEC, AttentionTile(128, 128, 4, 2), "sm_90")
    assert binary.spilled_bytes > 0


LOOPS = {
    "by the TMA unit": (tile_for(SPEC, "sm_90", is_aligned=True), 0.66),
    "by pointers": (tile_for(SPEC, "sm_90"), 0.70),
    "by pointers, 128 keys": (AttentionTile(128, 128, 8, 2, ones=16), 0.74),
}
"""Instructions a tile may take without a running maximum, of those with one that costs what it
must: it is taken off a score by the instruction that scales it. Studies count 128 by 128."""


@pytest.mark.long
@pytest.mark.parametrize(("tile", "most"), LOOPS.values(), ids=LOOPS)
def test_the_loop_over_keys_has_no_maximum_and_adds_up_nothing(tile, most):
    """Mutant: a score and its maximum are multiplied one by one."""
    unified, running, online = (
        first_loop(replace(SPEC, after=None, softmax=s), tile) for s in POLICIES
    )
    assert unified.count("HGMMA") == online.count("HGMMA") > 0
    assert unified.count("FMNMX|SHFL|FADD|F2F") == 0
    scores = tile.block_m * tile.block_n // (tile.warps * 32)
    assert unified.count("FMUL") == unified.count("MUFU.EX2") == scores  # the scale of each
    assert running.count("HGMMA") == online.count("HGMMA")
    assert running.count("FMNMX|SHFL|FADD|F2F|FMUL") == 0  # the scale is a part of taking φ off
    assert len(running.instructions) <= len(unified.instructions)
    assert online.count("FMNMX") > 0  # what is counted is there to be found
    assert online.count("SHFL") > 0
    assert online.count("FFMA") >= scores
    share = len(unified.instructions) / len(online.instructions)
    assert share <= most, f"{share:.3f} of the instructions of a running maximum"


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "dim"), [(name, dim) for name in MOST_OF_POINTERS for dim in (64, 128)]
)
def test_the_loop_by_the_tma_unit_has_no_addresses(architecture, dim):
    spec = replace(SPEC, after=None, head_dim=dim, value_dim=dim, softmax="zero")
    tiles = [tile_for(spec, architecture, is_aligned=on) for on in (False, True)]
    slow, fast = (first_loop(spec, tile, architecture) for tile in tiles)
    assert slow.count("LDGSTS") > 0
    assert (fast.count("LDGSTS"), fast.count("UTMALDG")) == (0, 2)
    each = [len(loop.instructions) * tile.warps / (tile.block_m * tile.block_n)
            for loop, tile in zip((slow, fast), tiles, strict=True)]  # fmt: skip
    share = each[1] / each[0]
    assert share <= MOST_OF_POINTERS[architecture][dim], f"{each[1]:.3f} of {each[0]:.3f} a score"


def behind(spec: AttentionSpec, architecture: str = "sm_90") -> AttentionTile:
    """The tile of values a tile behind keys, wherever there is one."""
    return tile_for(replace(spec, tile="values_behind"), architecture, is_aligned=True)


@pytest.mark.long
@pytest.mark.parametrize("dim", [64, 128])
def test_exponentials_are_made_while_products_are_in_flight(dim):
    """Where values are a tile behind; else all products are waited for first."""
    for change in ({}, {"after": None}, {"softmax": "running"}, {"softmax": "sink", "sinks": True}):
        spec = replace(SPEC, head_dim=dim, value_dim=dim, **change)
        tile = behind(spec)
        assert tile.ahead
        binary = build_for(spec, tile, "sm_90")
        assert not written_too_soon(binary.assembly)
        assert (binary.spilled_bytes, binary.shared_bytes <= SHARED_BYTES["sm_90"]) == (0, True)
        late = first_loop(spec, tile)
        at_once = first_loop(spec, tile_for(spec, "sm_90", is_aligned=True))
        assert late.in_flight("MUFU.EX2") >= 0.9 * late.count("MUFU.EX2") > 0
        assert at_once.in_flight("MUFU.EX2") == 0 < at_once.count("MUFU.EX2")


def test_values_are_behind_where_they_can_be():
    """Mutants: of scores that are a program, of a running maximum, of float32."""
    changes = ({"program": programs.SOFT_CAP}, {"softmax": "online"}, {"dtype": "float32"})
    assert not any(behind(replace(SPEC, **change)).ahead for change in changes)
    assert not behind(SPEC, "sm_80").ahead
    assert not tile_for(replace(SPEC, tile="values_behind"), "sm_90").ahead  # no TMA
    assert behind(SPEC).ahead
    for change in changes:
        text = module_text(replace(SPEC, **change), AttentionTile(32, 32, 4, 2, ahead=True))
        assert '"AHEAD": False' in text


POLICIES = ("zero", "running", "online")


def first_loop(spec: AttentionSpec, tile: AttentionTile, architecture: str = "sm_90") -> Loop:
    """The loop over keys that all rows see: the first one that multiplies matrices, and returns by
    no branch that stands behind the end of the kernel."""
    loops = loops_of(build_for(spec, tile, architecture).cubin)
    return next(loop for loop in loops if loop.count("HGMMA|UTCHMMA") and not loop.count("EXIT"))
