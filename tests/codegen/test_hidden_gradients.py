"""What a given mask hides is not read by a backward either, and gradients are those of float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.visibility import FINITE, INFINITE, hides_in_gradients
from overlapc.codegen.epilogue import Epilogue
from tests.codegen import score_programs as programs
from tests.codegen.attention_specs import SPEC
from tests.codegen.catching import wrong_values
from tests.codegen.test_hidden_keys import CASES as MASKS
from tests.codegen.test_hidden_keys import first

DOCUMENTS = {"kept": (((0, 64),),), "documents": (20, 40, 64), "dims": "rk"}
"""Three of 64 keys, of one batch."""
FULL = {"rows": 64, "keys": 64, "batch": 1}

CASES = {
    **{name: (SPEC, MASKS[name], {}) for name in MASKS},
    "documents": (SPEC, DOCUMENTS, FULL),
    "documents of minus infinity": (SPEC, {**DOCUMENTS, "fill": "infinite"}, FULL),
    "documents of grouped heads": (
        replace(SPEC, groups=2, dtype="bfloat16", after=0), {**DOCUMENTS, "fill": "least"}, FULL,
    ),
    "documents of tiles that differ": (SPEC, DOCUMENTS, {**FULL, "tile": (32, 16)}),
    "heads that share keys and differ": (
        replace(SPEC, groups=2), {"kept": (((0, 9),),), "dims": "bhrk", "apart": 25},
        {"heads": 2, "batch": 1, "rows": 8, "tile": (16, 32)},
    ),
    "beside places and lengths": (
        replace(SPEC, lengths=True, before=50, after=0, align="bottom_right", sinks=True),
        MASKS["booleans"], {"lengths": (100, 61)},
    ),
    "no rows of their own": (replace(SPEC, dead="zero"), MASKS["a sequence of nothing"], {}),
    "sums that are lost": (SPEC, MASKS["minus infinity"], {"far": 5000.0}),
    "more tiles than one number tells": (
        SPEC, {"kept": (((0, 3), (490, 500), (550, 560)),), "fill": "least"},
        {"batch": 1, "rows": 4, "keys": 560},
    ),
    "more blocks of rows than one number tells": (
        SPEC, {"kept": (((0, 32),),), "documents": (16, 560)},
        {"batch": 1, "rows": 530, "keys": 32},
    ),
}  # fmt: skip
QUICK = (
    "a row of the least number", "documents", "heads that share keys and differ",
)  # fmt: skip
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CASES]


def run(interpreted, name, **named):
    """One backward under a mask of ``CASES``, of which nothing that is hidden is a number."""
    spec, hiding, case = CASES[name]
    case = {"rows": 20, "keys": 100, **case, **named}
    interpreted("attention_gradient_cases.run", str(spec), hiding=hiding, **case)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_read_nothing_that_is_hidden_from_all(interpreted, name):
    run(interpreted, name)


@pytest.mark.parametrize("case", first(("", 1), ("infinite", 2), ("low", 3)))
def test_numbers_that_a_backward_reads(interpreted, case):
    """Of 16 tiles documents keep 10: queries and keys of those, and once of each block of both."""
    fill, groups = case
    spec, hiding = replace(SPEC, groups=groups), {**DOCUMENTS, "fill": fill}
    of_q, of_k = interpreted("attention_gradient_cases.numbers_read", str(spec), hiding=hiding,
                             **FULL)  # fmt: skip
    of_mask = 10 if fill else 0
    assert of_q == groups * (10 + 4 + of_mask) * 16 * 16
    assert of_k == (4 + groups * (10 + of_mask)) * 16 * 16


def test_a_head_with_a_row_of_nothing_reads_all(interpreted):
    """Its weights are NaN where it is hidden too. Mutant: it is not."""
    hiding = {**DOCUMENTS, "dead_row": 30}
    of_q, _ = interpreted("attention_gradient_cases.numbers_read", str(SPEC), hiding=hiding, **FULL)
    assert of_q == (16 + 4) * 16 * 16


@pytest.mark.long
@pytest.mark.parametrize("name", ["documents of grouped heads", "heads that share keys and differ"])
def test_the_order_of_programs_shows_in_no_bit(interpreted, name):
    spec, hiding, case = CASES[name]
    case = {"rows": 20, "keys": 100, **case}
    interpreted("attention_gradient_cases.bits", str(spec), hiding=hiding, **case)


MUTANTS = {
    "a row of nothing is passed over": (
        "a row of nothing", "found = tl.where(is_all, inside.to(tl.int32), found)", "pass",
    ),
    "a tile further": (
        "the least number", "start = (group + lowest_of(bits)) * BLOCK_N",
        "start = (group + 1 + lowest_of(bits)) * BLOCK_N",
    ),
    "rows of the block before": (
        "documents", "start = (group + lowest_of(bits)) * BLOCK_M",
        "start = (group + lowest_of(bits) - 1) * BLOCK_M",
    ),
    "the rows of the first keys": (
        "documents", "flags + corner // BLOCK_N, blocks", "flags, blocks",
    ),
    "flags of keys for those of rows": (
        "more blocks of rows than one number tells", "flags + corner // BLOCK_N, blocks",
        "flags + corner // BLOCK_N, 1",
    ),
    "the flags of the first rows": (
        "documents", "flags += corner // BLOCK_M * tl.cdiv(keys, BLOCK_N)\n        own_poison",
        "own_poison",
    ),
    "the flags of the first head": (
        "heads that share keys and differ", "tl.minimum(head, own_heads - 1)", "head * 0",
    ),
    "all is read": (
        "the least number", "found = tl.where(is_all, inside.to(tl.int32), found)",
        "found = inside.to(tl.int32)",
    ),
    "a mask has the gradient of the first keys": (
        "documents of minus infinity", "tl.load(flags + key_at // BLOCK_N) > 0",
        "tl.load(flags) > 0",
    ),
    "sums of what is hidden": ("sums that are lost", "tl.load(flags + start // BLOCK_N) > 0",
                               "start >= 0"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", first(*MUTANTS))
def test_a_mutant_is_caught(interpreted, mutant):
    name, old, new = MUTANTS[mutant]
    with wrong_values():
        run(interpreted, name, mutate=(old, new))


TOLD = {
    INFINITE: (programs.program("matrix:float32 one:float32", ("add.Tensor", "%0", "@0"),
                                ("mul.Tensor", "%1", "@1")), ""),
    FINITE: (programs.ADDED, FINITE),
    "": (programs.SOFT_CAP, ""),
}  # fmt: skip
CUBED = programs.program(
    "matrix:float32", ("add.Tensor", "%0", "@0"), ("mul.Tensor", "%1", "%1"),
    ("mul.Tensor", "%1", "%2"),
)  # fmt: skip


@pytest.mark.parametrize("told", TOLD)
def test_what_programs_tell_of_hidden_gradients(told):
    """That of an input by which minus infinity is multiplied is no number."""
    program, of_input = TOLD[told]
    assert hides_in_gradients(Epilogue.parse(program)) == told
    assert hides_in_gradients(Epilogue.parse(program), of_input=True) == of_input
    assert hides_in_gradients(Epilogue.parse(CUBED)) == ""
