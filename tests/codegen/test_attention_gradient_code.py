"""Machine code of an attention's backward, built ahead of time: registers and shared memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from overlapc.codegen.attention.aot import build_kept_for
from overlapc.codegen.attention.backward_aot import build_backward_for
from overlapc.codegen.attention.backward_module import parts_of
from overlapc.codegen.attention.backward_tiles import (
    MOST_COLUMNS,
    MOST_INPUT_COLUMNS,
    backward_tile_for,
)
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.attention.visibility import hides
from overlapc.errors import KernelError
from tests.codegen import score_programs as programs
from tests.codegen.machine_code import SHARED_BYTES
from tests.codegen.machine_loops import Loop, loops_of
from tests.codegen.spills import Spills, check_spills
from tests.codegen.test_attention_machine_code import (
    LITTLE,
    MATRIX,
    SPEC,
    triton_cache,  # noqa: F401
)

CHANGES = {
    "causal": {},
    "everything": {
        "before": 1024, "align": "bottom_right", "program": programs.SOFT_CAP, "sinks": True,
        "lengths": True,
    },
    "biased": {"program": programs.ADDED},
    "kept": {"after": None, "program": programs.KEPT},
}  # fmt: skip
FEW = Spills(64, 0.012)
"""Sixteen numbers, under masks of float32 on sm_120; on sm_100 and sm_90 at most twelve, and eight
where there is no mask."""
BETWEEN = Spills(184)
"""Between the heads of queries that share keys, and in no loop over their rows."""
DIMS = [(64, 64), (80, 80), (128, 128), (192, 128), (192, 192), (256, 256)]


def check(spec: AttentionSpec, part: str, architecture: str) -> None:
    """Raise AssertionError unless the machine code keeps its budgets."""
    tile = backward_tile_for(spec, architecture, part)
    for is_looked in (False, True) if hides(spec.scores) else (False,):
        binary = build_backward_for(spec, part, tile, architecture, is_looked=is_looked)
        is_tall = (architecture, part, tile.block_m) == ("sm_90", "keys", 128)
        check_spills(binary, BETWEEN if is_tall else FEW)
        assert binary.shared_bytes <= SHARED_BYTES[architecture]
        if spec.dtype != "float32" and part in ("keys", "queries"):
            # The wider units of sm_90 and sm_100 take 64 rows or more.
            assert MATRIX[architecture] in binary.assembly or "mma.sync" in binary.assembly
    if hides(spec.scores):
        kept = build_kept_for(spec, tile, architecture)
        assert (kept.spilled_bytes, kept.shared_bytes <= LITTLE) == (0, True)


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_every_budget(architecture, dtype, dims, change):
    precision = "tf32x3" if dtype == "float32" and architecture != "gfx942" else "ieee"
    spec = replace(SPEC, dtype=dtype, head_dim=dims[0], value_dim=dims[1], precision=precision)
    spec = replace(spec, **CHANGES[change])
    if max(dims) > MOST_COLUMNS[dtype]:
        with pytest.raises(KernelError, match="do not fit"):
            backward_tile_for(spec, architecture, "keys")
        return
    is_trained = change == "biased" and max(dims) <= MOST_INPUT_COLUMNS[dtype]
    for part in parts_of(spec, [0] if is_trained else []):
        check(spec, part, architecture)


PLAIN = {
    "all keys": {"after": None},
    "a window": {"before": 1024, "align": "bottom_right", "sinks": True},
    "zeros of no key": {"before": 64, "after": 64, "dead": "zero"},
    "lengths": {"lengths": True, "align": "bottom_right"},
}
"""Beside causal ones, what takes a tile of its own."""


@pytest.mark.long
@pytest.mark.parametrize("change", PLAIN)
@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (128, 128)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_budgets_of_the_scaled_product(dtype, dims, change):
    spec = replace(SPEC, dtype=dtype, head_dim=dims[0], value_dim=dims[1], **PLAIN[change])
    for part in ("queries", "keys"):
        check(spec, part, "sm_90")
    queries = build_backward_for(spec, "queries", backward_tile_for(spec, "sm_90", "queries"),
                                 "sm_90")  # fmt: skip
    check_spills(queries)


CAPPED = programs.program(
    "matrix:bool", ("tanh.default", "%0"), ("where.ScalarOther", "@0", "%1", -math.inf)
)


@pytest.mark.parametrize(
    ("its", "dim", "names"),
    [
        ("queries", 64, [""]),
        ("queries", 128, [""]),
        ("keys", 64, ["", "lengths", "a mask"]),
        ("keys", 128, ["", "lengths"]),
    ],
)
def test_what_takes_a_tile_of_its_own(its, dim, names):
    """On sm_90, of the scaled product. Mutants: of other programs of scores, or of lengths, too; of
    another part; on every device; of masks of any columns, or of none."""
    spec = replace(SPEC, head_dim=dim, value_dim=dim)
    changes = {
        "": {}, "lengths": {"lengths": True}, "a mask": {"program": programs.KEPT},
        "program": {"program": programs.SOFT_CAP}, "float32": {"dtype": "float32"},
        "a mask of other scores": {"program": CAPPED},
        "no mask": {"program": programs.program("", ("tanh.default", "%0"))},
    }  # fmt: skip
    own = backward_tile_for(spec, "sm_90", its)
    taking = [
        (architecture, name, part)
        for architecture in ("sm_80", "sm_90", "sm_100", "gfx942")
        for name, change in changes.items()
        for part in ("queries", "keys", "input 0")
        if (name, part) != ("float32", "input 0")  # of 128 columns there is none
        and backward_tile_for(replace(spec, **change), architecture, part) == own
    ]
    assert taking == [("sm_90", name, its) for name in names]


SHARED_ROWS = {
    ("queries", 64): (64, 64, 8, 1), ("queries", 128): (64, 64, 8, 1),
    ("keys", 64): (64, 32, 8, 1), ("keys", 128): (32, 64, 8, 1),
}  # fmt: skip
"""Tiles of which two warps or more make weights of the same rows, by part and columns."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "part", "dim", "change"),
    [*(("sm_90", *key, {"after": None}) for key in SHARED_ROWS),
     *((name, "queries", 64, {"program": programs.SOFT_CAP})
       for name in ("sm_80", "sm_90", "sm_120"))],
)  # fmt: skip
def test_warps_that_have_rows_of_their_own_take_half_of_the_instructions(
    architecture, part, dim, change
):
    """And where there are wider units, they make all products of the scaled product."""
    spec = replace(SPEC, head_dim=dim, value_dim=dim, **change)
    own = backward_tile_for(spec, architecture, part)
    other = AttentionTile(*SHARED_ROWS[part, dim], registers=own.registers)
    (loop, mine), (_, most) = (least_loop(spec, part, tile, architecture) for tile in (own, other))
    if spec.scores is None:
        assert (loop.count("HMMA"), loop.count("HGMMA") > 0) == (0, True)
    assert mine <= 0.55 * most, f"{mine:.3f} of {most:.3f}"


def least_loop(
    spec: AttentionSpec, part: str, tile: AttentionTile, architecture: str
) -> tuple[Loop, float]:
    """The shortest loop that makes a gradient, which hides nothing; its instructions a score."""
    loops = loops_of(build_backward_for(spec, part, tile, architecture).cubin)
    multiplying = (one for one in loops if one.count("HGMMA|HMMA"))
    least = min(multiplying, key=lambda one: len(one.instructions))
    return least, len(least.instructions) * tile.warps / (tile.block_m * tile.block_n)


@pytest.mark.long
def test_a_tile_that_is_too_large_is_noticed():
    binary = build_backward_for(SPEC, "keys", AttentionTile(128, 128, 4, 1), "sm_90")
    with pytest.raises(AssertionError, match="registers and"):
        check_spills(binary, FEW)
