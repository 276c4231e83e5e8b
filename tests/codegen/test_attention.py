"""Values of generated attention, in Triton's interpreter, against float64, and what is redone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen import attention_specs
from tests.codegen import score_programs as programs
from tests.codegen.attention_specs import BRAIN, CAUSAL, HALF, SPEC, WINDOW
from tests.codegen.catching import wrong_values
from tests.codegen.pairs import all_pairs

ROWS = 40
"""In two batches of 20 rows."""

CASES = {
    **attention_specs.CASES,
    "causal from the first key": (replace(HALF, after=0), {"rows": 45}),
    "more rows than keys": (CAUSAL, {"rows": 45, "keys": 20}),
    "a window about the row": (replace(SPEC, before=3, after=5), {"rows": 45}),
    "lengths": (replace(WINDOW, lengths=True), {"lengths": (33, 0)}),
    "lengths, of rows that see all": (replace(SPEC, lengths=True), {"lengths": (33, 0)}),
    "lengths beyond the keys": (replace(WINDOW, lengths=True), {"lengths": (46, 60)}),
    "sinks": (replace(BRAIN, sinks=True, softmax="sink", groups=2), {}),
    "a sink of nothing": (
        replace(SPEC, sinks=True, softmax="sink", groups=2), {"first_sink": -math.inf},
    ),
    "a sink of nothing, rows of no key": (
        replace(WINDOW, sinks=True, softmax="sink", lengths=True, groups=2, dead="zero"),
        {"first_sink": -math.inf, "lengths": (45, 3)},
    ),
    "a sink of the least number, rows of no key": (
        replace(WINDOW, sinks=True, softmax="sink", lengths=True, groups=2),
        {"first_sink": -3.4e38, "lengths": (45, 3), "redone": "any"},
    ),
    "sinks without keys": (
        replace(BRAIN, sinks=True, softmax="sink", groups=2),
        {"first_sink": -math.inf, "keys": 0},
    ),
    "sinks of rows of no key": (
        replace(HALF, program=programs.KEPT, sinks=True, groups=2), {"kept": 0.03},
    ),
    "sinks below φ, of rows of no key": (
        replace(SPEC, program=programs.KEPT, sinks=True), {"kept": 0.03, "first_sink": -3.0},
    ),
    "rows of no key": (replace(SPEC, program=programs.KEPT), {"kept": 0.03}),
    "rows of no key, by their scores": (replace(SPEC, program=programs.KEPT_BY_SCORE), {}),
    "many keys of float16": (
        replace(HALF, dtype="float16"),
        {"batch": 1, "rows": 4, "keys": 20000, "spread": 8.0, "tile": (16, 32768)},
    ),
    "many keys of float16, beside sinks": (
        replace(HALF, sinks=True, softmax="sink"),
        {"batch": 1, "rows": 2, "keys": 20000, "spread": 0.0, "first_sink": 12.0,
         "tile": (16, 4096)},
    ),
    "first keys that a mask hides": (
        replace(HALF, program=programs.KEPT), {"hidden": 18, "far": 40.0},
    ),
    "online": (replace(SPEC, softmax="online", sinks=True), {"scaled": {3: 300.0}}),
    "sums by products": (replace(BRAIN, after=0, sinks=True), {"rows": 45, "ones": 16}),
    "online, sums by products": (
        replace(BRAIN, softmax="online", sinks=True), {"spread": 100.0, "ones": 16},
    ),
    "φ of each head": (replace(BRAIN, softmax="head"), {"phi": 3.0}),
    "by the TMA unit, grouped, ragged heads": (
        replace(BRAIN, groups=3, head_dim=20, value_dim=33), {"heads": 2, "by_tma": True},
    ),
    "by the TMA unit, a window": (
        replace(WINDOW, dtype="float16", softmax="first_tile"),
        {"rows": 45, "tile": (16, 32), "by_tma": True},
    ),
    "by the TMA unit, lengths": (
        replace(BRAIN, lengths=True), {"lengths": (33, 0), "by_tma": True, "ones": 16},
    ),
    "values a tile behind": (
        replace(BRAIN, after=0, sinks=True), {"rows": 90, "keys": 80, "ahead": True, "ones": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "named"), CASES.values(), ids=CASES.keys())
def test_values(interpreted, spec, named):
    interpreted("attention_cases.run", str(spec), **named)


REDONE = {
    # As in OPT, whose scores reach ±500.
    "scores of hundreds": (replace(BRAIN, dtype="bfloat16"), {"spread": 300.0, "redone": None}),
    "scores of hundreds, sums by products": (
        replace(HALF, softmax="zero"), {"spread": 300.0, "redone": None, "ones": 16},
    ),
    "scores of hundreds, values a tile behind": (
        replace(HALF, softmax="zero"), {"spread": 300.0, "redone": None, "ahead": True},
    ),
    "one row above": (SPEC, {"scaled": {3: 400.0}, "redone": 2}),
    "all below φ": (replace(SPEC, softmax="bound", bound=90.0), {"redone": ROWS}),
    "all above φ": (replace(SPEC, softmax="bound", bound=-90.0), {"redone": ROWS}),
    "float16 below its normal numbers": (
        replace(HALF, softmax="bound", bound=10.0), {"redone": ROWS},
    ),
    "float16 above": (replace(HALF, softmax="bound", bound=-16.0), {"redone": ROWS}),
    "φ is NaN": (replace(SPEC, softmax="head"), {"phi": float("nan"), "redone": ROWS}),
    "values of which a sum overflows": (
        replace(SPEC, softmax="bound", bound=-50.0), {"values": 1e30, "redone": ROWS},
    ),
    "a finite mask, of whole rows too": (
        replace(SPEC, program=programs.KEPT_FINITE), {"kept": 0.0, "redone": ROWS},
    ),
    "a mask of two numbers, of whole rows": (
        replace(SPEC, program=programs.OF_TWO_MASKS), {"redone": ROWS},
    ),
    "a mask of the score, of whole rows": (
        replace(SPEC, program=programs.LEAST_BY_SCORE), {"redone": ROWS},
    ),
    "masks that are turned": (replace(SPEC, program=programs.TURNED), {"redone": ROWS}),
    "scores far above zero": (replace(SPEC, program=programs.HIGH), {"redone": ROWS}),
    "a sink as low as a mask of whole rows": (
        replace(SPEC, program=programs.LOW, sinks=True, softmax="sink"),
        {"kept": 0.0, "first_sink": -(2.0**127), "redone": "any"},
    ),
    "a sink of plus infinity": (
        replace(BRAIN, sinks=True, softmax="sink"), {"first_sink": math.inf, "redone": "any"},
    ),
    "products near the largest number": (
        replace(SPEC, scale=1.0), {"far": 3e38, "spread": 1e36, "redone": ROWS},
    ),
    "products near the largest number of bfloat16": (
        replace(BRAIN, scale=1.0), {"far": 3e38, "spread": 1e36, "redone": ROWS},
    ),
    "a sink far above keys that are lost": (
        replace(BRAIN, softmax="head", sinks=True),
        {"far": 10.0, "first_sink": 60.0, "phi": 105.0, "redone": ROWS},
    ),
    "a sink far below φ, of rows without a key": (
        replace(SPEC, softmax="bound", bound=200.0, sinks=True, program=programs.KEPT),
        {"kept": 0.0, "redone": ROWS},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "named"), REDONE.values(), ids=REDONE.keys())
def test_rows_that_left_the_safe_range_are_redone(interpreted, spec, named):
    interpreted("attention_cases.run", str(spec), **named)


MULTIPLIED_FIRST = (
    "power = apart * FACTOR",
    "power = score * FACTOR - base * FACTOR",
)
"""What is rounded, or infinite, before it is subtracted."""

MUTANTS = {
    "a row is not redone": ("one row above", "if count > 0:", "if count > 1000:"),
    "dead rows are redone": (
        "rows of no key, by their scores", 'is_bad & (highest_score > float("-inf"))', "is_bad",
    ),
    "φ of hidden keys is zero": (
        "first keys that a mask hides", "peak = tl.where(waits, found, peak)", "peak = peak",
    ),
    "sums of each key beside sinks": (
        "many keys of float16, beside sinks", "counted = tl.where(is_kept, 0, seen)",
        "counted = seen",
    ),
    "what a sink weighs hides that keys are lost": (
        "a sink far above keys that are lost", "(tl.where(is_kept, sums, of_keys) >=", "(sums >=",
    ),
    "rows of a sink alone are redone": (
        "sinks below φ, of rows of no key", '((sink == float("-inf")) | is_kept)',
        '(sink == float("-inf"))',
    ),
    "turned masks are multiplied before they are subtracted": (
        "masks that are turned", *MULTIPLIED_FIRST,
    ),
    "so are masks of two numbers": ("a mask of two numbers, of whole rows", *MULTIPLIED_FIRST),
    "so are products": ("products near the largest number", *MULTIPLIED_FIRST),
    "products are taken to be near": (
        "products near the largest number of bfloat16",
        'UNIT, STEP == "fixed", TYPE)', "UNIT, True, TYPE)",
    ),
    "no check of small sums": (
        "all below φ", "(tl.where(is_kept, sums, of_keys) >= least) & (sums <= MOST)",
        "sums <= MOST",
    ),
    "no check of each key": (
        "float16 below its normal numbers", "LEAST_EACH, LEAST)", "0.0, LEAST / 64)",
    ),
    "no check of sums of values": ("values of which a sum overflows", " & is_finite", ""),
    "the least number becomes infinite": (
        "a finite mask, of whole rows too", *MULTIPLIED_FIRST,
    ),
    "a sink of nothing is φ": ("a sink of nothing", "peak = or_zero(sink)", "peak = sink"),
    "not of ones": ("sums by products", "sums.shape[1]), 1.0,", "sums.shape[1]), 0.9,"),
    "sums by products are not rescaled": (
        "online, sums by products", "(shrunk[:, None] if", "(1.0 if",
    ),
    "rows of a sink alone are rows of nothing": (
        "a sink far below φ, of rows without a key", "is_kept = (sums >= LEAST)",
        "is_kept = (sums >= 0.0)",
    ),
    "no sinks": (
        "sinks", "sums += sink_relative_to(",
        "sums += 0.0 * sink_relative_to(",
    ),
    "another head's keys": ("grouped, ragged heads", "head // GROUPS", "head * 0"),
    "one key too many": ("causal from the first key", "own + (AFTER + 1)", "own + (AFTER + 2)"),
    "one key too few": ("a window", "tl.maximum(own - BEFORE, 0)",
                        "tl.maximum(own - BEFORE + 1, 0)"),
    "aligned at the wrong end": ("causal from the last key", "row + (end - rows)", "row"),
    "keys beyond the length": ("lengths, of rows that see all",
                               "tl.minimum(end_of(lengths, batch, keys), keys)", "keys"),
    "own keys move with the last one": ("lengths beyond the keys", "    return end\n",
                                        "    return tl.minimum(end, keys)\n"),
    "the last tile is taken whole": ("lengths", "AFTER) // BLOCK_N * BLOCK_N",
                                     "AFTER) // 1 * 1 + BLOCK_N"),
    "by the TMA unit, of another batch": (
        "by the TMA unit, grouped, ragged heads", "[side[4], side[5]", "[0, side[5]",
    ),
    "by the TMA unit, of another head": (
        "by the TMA unit, grouped, ragged heads", "[side[4], side[5]", "[side[4], 0",
    ),
    "by the TMA unit, another tile": (
        "by the TMA unit, a window", "side[5], start, 0]", "side[5], start + 1, 0]",
    ),
    "by the TMA unit, beyond a sequence": (
        "by the TMA unit, lengths", "v_by_tma, lengths is None", "v_by_tma, True",
    ),
    "values of other keys": (
        "values a tile behind", "load_keys(v, start - BLOCK_N", "load_keys(v, start",
    ),
    "last values of other keys": (
        "values a tile behind", "load_keys(v, stop - BLOCK_N", "load_keys(v, begin",
    ),
    "weights of other keys": (
        "values a tile behind", "            bits = weight_bits", "            _ = weight_bits",
    ),
    "not rescaled": ("online", "total = total * shrunk[:, None]", "pass"),
    "a column is of the first row": ("inputs of every shape", "x + rows, mask",
                                     "x + rows * 0, mask"),
    "logarithms without φ": ("φ of each head",
                             "or_zero(peak).to(sums.dtype) * UNIT + tl", "tl"),
}  # fmt: skip


@pytest.mark.parametrize(("case", "old", "new"), MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_is_caught(interpreted, case, old, new):
    spec, named = {**CASES, **REDONE}[case]
    with wrong_values():
        interpreted("attention_cases.run", str(spec), **named, mutate=(old, new))


@pytest.mark.parametrize("policy", ["zero", "first_tile"])
def test_rows_that_masks_leave_no_key_cost_no_walk(interpreted, policy):
    spec = replace(SPEC, program=programs.KEPT, softmax=policy)
    sizes = {"batch": 1, "rows": 16, "keys": 64}
    plain, with_dead = (
        interpreted("attention_cases.keys_read", str(spec), **sizes, hidden=hidden)
        for hidden in ({3: 0}, {3: 64})
    )
    assert plain == with_dead


WIDE = [-58.0, -30.0, -4.0, 0.3, 4.0, 30.0, 60.0]
SAFE = {"float32": WIDE, "bfloat16": WIDE, "float16": [-2.0, 0.3, 4.0, 10.5]}
"""Distances of the maximum above φ, in nats, at which rows of 1024 scores of N(0, 1) are kept."""
FAR = {
    "float32": [-80.0, 82.0, 88.0],
    "bfloat16": [-80.0, 82.0, 88.0],
    "float16": [-20.0, -8.0, 11.5],
}
"""Those at which they are redone."""
MOST_ERROR = 1.5
"""Beside that of online softmax."""


@pytest.mark.long
@pytest.mark.parametrize("is_decode", [False, True], ids=["forward", "decode"])
@pytest.mark.parametrize("dtype", SAFE)
def test_errors_at_every_distance_of_phi(interpreted, dtype, is_decode):
    spec = AttentionSpec(dtype, 64, 64, scale=0.125)
    for distance, is_kept in [(d, True) for d in SAFE[dtype]] + [(d, False) for d in FAR[dtype]]:
        named = {"is_decode": is_decode}
        ((error, redone),) = interpreted(
            "attention_cases.errors_by_phi", str(spec), [distance], **named
        )
        assert error <= MOST_ERROR, f"{error:.2f} at {distance}"
        assert redone == (0 if is_kept else 32), f"{redone} rows are redone at {distance}"


DIMS = [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256), (16, 64)]
POLICIES = ["online", "zero", "bound", "head", "first_tile", "sink"]
STRUCTURES = [
    {}, {"after": 0}, {"after": 0, "align": "bottom_right"}, {"before": 5, "after": 0},
    {"lengths": True}, {"lengths": True, "after": 0, "align": "bottom_right"},
]  # fmt: skip
PROGRAMS = ["", programs.SOFT_CAP, programs.ALIBI, programs.ADDED, programs.KEPT]


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_every_head_dim(interpreted, dtype, dims):
    spec = replace(SPEC, dtype=dtype, head_dim=dims[0], value_dim=dims[1], scale=dims[0] ** -0.5)
    interpreted("attention_cases.run", str(replace(spec, softmax="first_tile", groups=2)))


@pytest.mark.long
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_with_every_structure_and_program(interpreted, policy, structure):
    for program, sinks in itertools.product(PROGRAMS, [False, True]):
        if policy == "sink" and not sinks:
            continue
        spec = replace(SPEC, program=program, softmax=policy, sinks=sinks, **structure)
        named = {"lengths": (45, 17)} if spec.lengths else {}
        # Additions of masks may leave no key, and a row of few keys a small sum.
        interpreted("attention_cases.run", str(spec), **named, kept=0.8)


FEATURES = {
    "dtype": ["float32", "float16", "bfloat16"],
    "dims": [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (20, 33)],
    "structure": [*STRUCTURES, {"before": 3, "after": 4}],
    "program": [*PROGRAMS, programs.KEPT_FINITE, programs.EVERY_SHAPE],
    "softmax": POLICIES,
    "groups": [1, 2, 3],
    "sinks": [False, True],
    "dead": ["nan", "zero"],
    "sizes": [{}, {"rows": 45, "keys": 20}, {"rows": 1}, {"rows": 33, "keys": 32}],
    "lengths": [(60, 17), (20, 0), (1, 32)],
    "layout": ["odd", "dense"],
    "tile": [(16, 16), (32, 16), (16, 32)],
    "ones": [0, 16],
    "by_tma": [False, True],
    "ahead": [False, True],
    "kept": [0.1, 0.8],
}
MATRIX = all_pairs(FEATURES)
SHORT = 1
"""Rows of the matrix in every run."""


@pytest.mark.parametrize(
    "index",
    [pytest.param(i, marks=() if i < SHORT else pytest.mark.long) for i in range(len(MATRIX))],
)
def test_every_pair_of_features(interpreted, index):
    """Of ``MUTANTS`` the short row finds "another head's keys", "no sinks" and logarithms."""
    text, named = combination(MATRIX[index])
    interpreted("attention_cases.run", text, **named)


def combination(row):
    """A spec's text and the rest of a case."""
    softmax = row["softmax"] if row["sinks"] or row["softmax"] != "sink" else "zero"
    spec = replace(
        SPEC, dtype=row["dtype"], head_dim=row["dims"][0], value_dim=row["dims"][1],
        scale=row["dims"][0] ** -0.5, groups=row["groups"], program=row["program"],
        sinks=row["sinks"], dead=row["dead"], softmax=softmax,
        bound=1.5 if softmax == "bound" else 0.0, **row["structure"],
    )  # fmt: skip
    named = {name: row[name] for name in ("tile", "kept", "layout", "ones", "ahead")} | row["sizes"]
    named["by_tma"] = row["by_tma"] and spec.dtype != "float32"
    if spec.lengths:
        named["lengths"] = row["lengths"]
    if spec.takes_phi:
        named["phi"] = 0.7
    if "e+38" in spec.program:  # rows of the mask alone, which some combinations have
        named["redone"] = "any"
    return str(spec), named | {"heads": 1 if spec.groups == 3 else 2}
