"""Attentions drawn at random, in Triton's interpreter: values against float64 and against online
softmax, what is redone, what is touched, and equal bits of every order of programs."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.codegen.catching import wrong_values

IS_BAD = "is_bad = row_inside & is_alive & (is_good == 0)"
NEVER_BAD = IS_BAD.replace("== 0", "== 2")
FAST_MUTANTS = {
    "rows are never redone": ("prefill", 0, (IS_BAD, NEVER_BAD)),
    "stores beyond the last column": (
        "prefill", 0,
        ("tl.store(places, result.to(x.dtype.element_ty), mask=both)",
         "tl.store(places, result.to(x.dtype.element_ty), mask=inside[:, None])"),
    ),
    "keys of a page are read from its first": (
        "decode", 4, ("((start & (PAGE - 1)) + n)", "n"),
    ),
    "a sink's own rounding is not given back": (
        "decode", 184,
        ("sums + sink_relative_to(sink, peak, UNIT, IS_NEAR, dtype)",
         "sums + exp_apart(sink, peak, UNIT)"),
    ),
    "operands are rounded to tf32": (
        "prefill", 0,
        ("return tl.dot(queries, keys.T, input_precision=PRECISION)",
         'return tl.dot(queries, keys.T, input_precision="tf32")'),
    ),
    "a row that is NaN says nothing to keys that it does not see": (
        "backward", 27, ('poison + place, float("nan")', "poison + place, 0.0"),
    ),
    "gradients of keys of one head alone": (
        "backward", 1, ("for member in tl.range(0, GROUPS):", "for member in tl.range(0, 1):"),
    ),
}  # fmt: skip
MUTANTS = {
    "what the rounding of a sink took is not given back": (
        "prefill", 70,
        ("    if dtype != tl.float32:\n", "    if dtype != tl.float64:\n"),
    ),
    "keys beyond the last are read": (
        "prefill", 137,
        ("return tl.minimum(end_of(lengths, batch, keys), keys)",
         "return end_of(lengths, batch, keys)"),
    ),
    "rows of few keys are never redone": ("decode", 4, (IS_BAD, NEVER_BAD)),
    "a sink counts in each part": (
        "decode", 16, ('tl.where(split == 0, sink, float("-inf"))', "sink"),
    ),
    "weights of rows that lost their sums": (
        "backward", 18, ("weights = weights * share[:, None]", "weights = weights * 1.0"),
    ),
    "gradients of scores are not centered": (
        "backward", 5,
        ("(tl.dot(slopes, values.T, input_precision=PRECISION) - delta[:, None])",
         "tl.dot(slopes, values.T, input_precision=PRECISION)"),
    ),
}  # fmt: skip
EACH = 10
"""Attentions of one test: what the interpreter computes in a minute."""
FEW = {
    "prefill": (0, 3, 4, 8, 9, 18),
    "decode": (7, 10, 14, 15, 18, 21),
    "backward": (0, 1, 3),
}
"""Of each of these the interpreter has less than a second to do."""
MANY = {"prefill": range(300), "decode": range(300), "backward": range(160)}
PARTS = [
    (kind, seeds[at : at + EACH]) for kind, seeds in MANY.items()
    for at in range(0, len(seeds), EACH)
]  # fmt: skip
FOUND = {
    "a sink beside a φ of float32 that is far from it": ("prefill", 70),
    "a query that is infinite": ("prefill", 104),
    "products of tf32": ("prefill", 59),
    "a number that is none in a backward": ("backward", 27),
    "a sink far above a φ of float32": ("decode", 184),
    "a sink whose weight is infinite, alone": ("prefill", 255),
}
"""What draws have found wrong, and of rare ones those that are small."""


def drawn(interpreted, kind, seeds, mutate=None):
    """Check the attentions of these seeds; how many had each feature."""
    if kind == "backward":
        return interpreted("drawn_gradients.run", seeds, mutate)
    return interpreted("drawn_runs.run", kind, seeds, mutate)


@pytest.mark.parametrize("kind", FEW)
def test_a_few(interpreted, kind):
    found = Counter(drawn(interpreted, kind, FEW[kind]))
    assert found["redone"] > 0 or kind == "backward"


@pytest.mark.long
@pytest.mark.parametrize(("kind", "seeds"), PARTS, ids=str)
def test_many(interpreted, kind, seeds):
    drawn(interpreted, kind, seeds)


@pytest.mark.parametrize(("kind", "seed"), FOUND.values(), ids=FOUND.keys())
def test_what_was_found(interpreted, kind, seed):
    drawn(interpreted, kind, [seed])


@pytest.mark.parametrize(("kind", "seed", "mutate"), FAST_MUTANTS.values(), ids=FAST_MUTANTS.keys())
def test_mutants(interpreted, kind, seed, mutate):
    with wrong_values():
        drawn(interpreted, kind, [seed], mutate)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "seed", "mutate"), MUTANTS.values(), ids=MUTANTS.keys())
def test_more_mutants(interpreted, kind, seed, mutate):
    with wrong_values():
        drawn(interpreted, kind, [seed], mutate)
