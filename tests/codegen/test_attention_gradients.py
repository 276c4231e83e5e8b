"""Gradients of generated attention, in Triton's interpreter, against those of eager in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from overlapc.codegen.attention.backward_module import parts_of
from tests.codegen import attention_specs
from tests.codegen import score_programs as programs
from tests.codegen.attention_specs import BRAIN, CAUSAL, HALF, SPEC, WINDOW
from tests.codegen.catching import wrong_values
from tests.codegen.pairs import all_pairs

LEAST = programs.program(
    "matrix:bool matrix:float32", ("where.ScalarOther", "@0", "@1", -3.4e38),
    ("add.Tensor", "%0", "%1"),
)  # fmt: skip
"""A mask of the least number, of every row, where a bias stands otherwise."""

FARTHER = programs.program("", ("add.Tensor", "%0", -2e8))
"""Of as many keys as float32 rounds the logarithm of their sum up by 16, half of which it is."""

CASES = {
    "plain": (SPEC, {}),
    "a window in one loop": (
        replace(SPEC, before=9, after=3, groups=2, program=programs.SOFT_CAP), {"one_loop": True},
    ),
    **attention_specs.CASES,
    "causal from the first key": (replace(HALF, after=0), {"rows": 45, "sums": True}),
    "more rows than keys": (replace(CAUSAL, groups=2), {"rows": 45, "keys": 20}),
    "lengths": (replace(WINDOW, lengths=True, dead="zero"), {"lengths": (60, 0)}),
    "no keys in a batch": (replace(SPEC, lengths=True), {"lengths": (33, 0)}),
    "sinks": (replace(BRAIN, sinks=True, softmax="sink", groups=2), {"sums": True}),
    "rows of no key": (replace(SPEC, program=programs.KEPT, after=0), {"kept": 0.2}),
    "a bias of each head and batch": (replace(CAUSAL, program=programs.ADDED, groups=2), {}),
    "a bias of each row and key": (
        replace(WINDOW, program=programs.ADDED, dtype="float16", groups=2),
        {"shared": (0, 1), "tile": (32, 16)},
    ),
    "a bias of each head": (
        replace(SPEC, program=programs.ADDED, lengths=True, groups=2),
        {"shared": (0,), "lengths": (45, 20)},
    ),
    "slopes of each head and key": (replace(CAUSAL, program=programs.ALIBI), {"heads": 2}),
    "a finite mask, of whole rows too": (
        replace(SPEC, program=programs.KEPT_FINITE, after=3), {"kept": 0.0, "rows": 45},
    ),
    "sinks as low as a mask of whole rows": (
        replace(SPEC, program=programs.LOW, sinks=True), {"kept": 0.0, "sink": -(2.0**127)},
    ),
    "sinks of the least number, rows of no key": (
        replace(WINDOW, sinks=True, lengths=True), {"sink": -3.4e38, "lengths": (45, 3)},
    ),
    "sinks of nothing, rows of no key": (
        replace(WINDOW, sinks=True, lengths=True, dead="zero"),
        {"sink": -math.inf, "lengths": (45, 3)},
    ),
    "logarithms of float16 that are above their masks": (
        replace(SPEC, dtype="float16", program=FARTHER),
        {"batch": 1, "rows": 16, "keys": 3500, "spread": 0.0, "tile": (16, 128)},
    ),
    "scores far above zero": (replace(SPEC, program=programs.HIGH), {}),
    "masks that are turned": (replace(SPEC, program=programs.TURNED, groups=2), {}),
    "masks that are turned, the largest late": (
        replace(SPEC, program=programs.TURNED), {"kept": 0.95},
    ),
    "a mask of the score": (replace(SPEC, program=programs.LEAST_BY_SCORE), {}),
    "a finite mask that is added": (replace(SPEC, program=LEAST), {"kept": 0.0}),
    "scores of hundreds": (replace(SPEC, softmax="online"), {"spread": 100.0}),
}  # fmt: skip


QUICK = (
    "causal from the first key", "more rows than keys", "a bias of each row and key",
    "a finite mask, of whole rows too", "sinks as low as a mask of whole rows",
    "scores far above zero", "a window in one loop", "sinks of nothing, rows of no key",
    "logarithms of float16 that are above their masks",
)  # fmt: skip


def each(cases, quick):
    """All of them by name, those that are not quick marked long."""
    return [
        pytest.param(*case, id=name, marks=() if name in quick else pytest.mark.long)
        for name, case in cases.items()
    ]


@pytest.mark.parametrize(("spec", "named"), each(CASES, QUICK))
def test_values(interpreted, spec, named):
    interpreted("attention_gradient_cases.run", str(spec), **named)


MUTANTS = {
    "no delta": ("plain", "PRECISION) - delta[:, None])", "PRECISION))"),
    "no derivative of scores": (
        "soft-cap", "DERIVATIVE(product * SCALE, gradient, tile, inputs)", "gradient",
    ),
    "the first head of a group alone": (
        "grouped, ragged heads", "head_of_keys * GROUPS + member", "head_of_keys * GROUPS",
    ),
    "half of a group": ("sinks", "tl.range(0, GROUPS)", "tl.range(0, GROUPS // 2)"),
    "logarithms of another base": (
        "plain", "base.to(log.dtype) * UNIT - log", "base.to(log.dtype) * (1.1 * UNIT) - log",
    ),
    "keys without their scale": ("plain", "k_total * SCALE", "k_total"),
    "queries without their scale": ("plain", "total * SCALE, BLOCK_M", "total, BLOCK_M"),
    "no gradient of sums": ("sinks", "total -= tl.load(", "total -= 0.0 * tl.load("),
    "rows of too late a window": ("a window", "key + (BEFORE + 1) - shift", "key - shift"),
    "rows of too early a key": ("causal from the first key", "key - AFTER - shift, 0)",
                                "key + 24 - shift, 0)"),
    "rows aligned at the wrong end": ("more rows than keys",
                                      "own_key(corner * 0, rows, until, ALIGN)", "corner * 0"),
    "keys beyond the length": (
        "no keys in a batch", "column < length\n    k = of_head", "column < keys\n    k = of_head",
    ),
    "rows of no key are passed over": ("rows of no key", 'poison + place, float("nan")',
                                       "poison + place, 0.0"),
    "what is not seen has a gradient": ("more rows than keys",
                                        "gradient = tl.where(seen, gradient, 0.0)", "pass"),
    "weights of rows that are not there": (
        "rows of no key, as torch's own", 'tl.where(base == float("-inf"), float("inf"), base)',
        "base",
    ),
    "sums that are lost stay lost": ("a finite mask, of whole rows too",
                                     "1.0 / sums, mask=is_lost", "1.0 / sums, mask=row < 0"),
    "queries of rows whose sums are lost": (
        "a finite mask that is added", "total *= tl.load(shares", "total *= 1 + 0 * tl.load(shares",
    ),
    "rows whose sums are lost keep their base": (
        "logarithms of float16 that are above their masks",
        "+ row, peak, mask=is_lost", "+ row, peak, mask=row < 0",
    ),
    "sums of rows that are lost are not rescaled": (
        "masks that are turned, the largest late", "sums *= exp_apart(peak, near, UNIT)", "pass",
    ),
    "one head of those that share a bias": ("a bias of each row and key",
                                            "own_head + step % same_heads", "own_head"),
    "one batch of those that share a bias": ("a bias of each head",
                                             "own_batch + step // same_heads", "own_batch"),
    "the first keys of a slope alone": ("inputs of every shape",
                                        "start + step * BLOCK_N", "start"),
    "the first rows of a slope alone": ("slopes of each head and key",
                                        "corner + step * BLOCK_M", "corner"),
    "one loop of keys takes what is cut alone": (
        "a window in one loop", "total, cut_begin, stop, queries",
        "total, tl.maximum(whole_begin, whole_stop), stop, queries",
    ),
    "one loop of rows takes what is cut alone": (
        "a window in one loop", "v_total, cut_begin, stop",
        "v_total, tl.maximum(whole_begin, whole_stop), stop",
    ),
    "tiles that are seen are passed over": (
        "a bias of each head and batch", "start < end_seen(before_last, keys, AFTER)",
        "start + 16 < end_seen(before_last, keys, AFTER)",
    ),
}  # fmt: skip
QUICK_MUTANTS = ("rows of too early a key", "what is not seen has a gradient")


FAR = {
    # As in OPT, whose scores reach ±500.
    "scores of hundreds": (replace(SPEC, scale=0.3, softmax="online"), {"spread": 100.0}),
    "scores of tens": (replace(CAUSAL, scale=0.3), {"spread": 8.0, "rows": 45}),
    "a mask": (replace(SPEC, program=programs.ADDED, groups=2), {"spread": 8.0}),
    "few rows": (replace(SPEC, scale=0.3), {"spread": 100.0, "few_rows": True}),
    "few rows of a running maximum": (
        replace(SPEC, scale=0.3, softmax="online"), {"spread": 100.0, "few_rows": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "named"), FAR.values(), ids=FAR.keys())
def test_errors_are_no_larger_than_those_of_eager(interpreted, spec, named):
    """Mutants in the forward: logarithms of float32; roundings of products are not given back."""
    interpreted("attention_gradient_cases.beside_eager", str(spec), **named)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("scores of hundreds", "tl.exp2(taken * LOG2E)", "tl.exp2(taken * 0.0)"),
        ("scores of tens", "weights = weights * share[:, None]", "pass"),
        (
            "a mask", "tl.exp2((score - base) * (UNIT * LOG2E))",
            "tl.exp2(score * (UNIT * LOG2E) - base * (UNIT * LOG2E))",
        ),
        ("few rows", "scale: tl.constexpr = SCALE", "scale = SCALE"),
        ("few rows of a running maximum", "scale: tl.constexpr = SCALE", "scale = SCALE"),
    ],
    ids=["rounded logarithms", "no shares", "multiplied first", "scaled first", "scaled first too"],
)  # fmt: skip
def test_an_error_larger_than_eagers_is_caught(interpreted, name, old, new):
    spec, named = FAR[name]
    with wrong_values():
        interpreted("attention_gradient_cases.beside_eager", str(spec), **named, mutate=(old, new))


def test_rows_are_summed_again_where_masks_may_be():
    """Mutants: of any program, of none without an input, of minus infinity too."""
    made = {"a mask": programs.ADDED, "a number": programs.LEAST_BY_SCORE, "plain": "",
            "a cap": programs.SOFT_CAP, "minus infinity": programs.KEPT_BY_SCORE}  # fmt: skip
    found = [name for name, program in made.items()
             if "shares" in parts_of(replace(SPEC, program=program), ())]  # fmt: skip
    assert found == ["a mask", "a number"]


@pytest.mark.parametrize(("case", "old", "new"), each(MUTANTS, QUICK_MUTANTS))
def test_a_mutant_is_caught(interpreted, case, old, new):
    spec, named = CASES[case]
    with wrong_values():
        interpreted("attention_gradient_cases.run", str(spec), **named, mutate=(old, new))


@pytest.mark.long
@pytest.mark.parametrize("case", ["grouped, ragged heads", "inputs of every shape",
                                  "a bias of each row and key", "rows of no key"])  # fmt: skip
def test_the_order_of_programs_shows_in_no_bit(interpreted, case):
    """Sums by atomics would show it, and partial results that one program reads of another."""
    spec, named = CASES[case]
    interpreted("attention_gradient_cases.bits", str(spec), **named)


FEATURES = {
    "dtype": ["float32", "float16", "bfloat16"],
    "dims": [(16, 16), (20, 33), (64, 32)],
    "groups": [1, 2, 3],
    "structure": [
        {}, {"after": 0}, {"after": 0, "align": "bottom_right"}, {"before": 5, "after": 0},
        {"before": 3, "after": 4}, {"lengths": True},
        {"lengths": True, "after": 0, "align": "bottom_right"},
    ],
    "program": [
        "", programs.SOFT_CAP, programs.ALIBI, programs.ADDED, programs.KEPT, programs.KEPT_FINITE,
        programs.EVERY_SHAPE, LEAST,
    ],
    "sinks": [False, True],
    "dead": ["nan", "zero"],
    "sizes": [{}, {"rows": 45, "keys": 20}, {"rows": 1}, {"rows": 33, "keys": 32}],
    "tile": [(16, 16), (32, 16), (16, 32)],
    "one_loop": [False, True],
    "kept": [0.0, 0.1, 0.8],
    "sums": [False, True],
}  # fmt: skip
MATRIX = all_pairs(FEATURES)


@pytest.mark.long
@pytest.mark.parametrize("index", range(len(MATRIX)))
def test_every_pair_of_features(interpreted, index):
    row = MATRIX[index]
    spec = replace(
        SPEC, dtype=row["dtype"], head_dim=row["dims"][0], value_dim=row["dims"][1],
        groups=row["groups"], program=row["program"], sinks=row["sinks"], dead=row["dead"],
        softmax="online", **row["structure"],
    )  # fmt: skip
    named = {name: row[name] for name in ("tile", "one_loop", "kept", "sums")}
    if "e+38" in spec.program:  # of which eager's logarithm of a sum has lost the sum
        named["sums"] = False
    if spec.lengths:
        named["lengths"] = (60, 17)
    interpreted("attention_gradient_cases.run", str(spec), **named, **row["sizes"])
