"""Rows of a decode are written before any is computed again: two results take as many registers."""

from __future__ import annotations

import pytest

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen.catching import wrong_values

SPEC = AttentionSpec("float32", 32, 32, groups=3, after=0, align="bottom_right", scale=32**-0.5)
FAR = {"batch": 1, "offset": 300.0, "redone": 3}
LATE = [
    ("        store_rows(result, 0, total, sums, row_inside, DEAD, VALUE_DIM)\n    else:\n",
     "    else:\n"),
    ("store_rows(result, 0, redone_total, redone_sums, is_bad, DEAD, VALUE_DIM)",
     "total = tl.where(is_bad[:, None], redone_total, total)"),
    ("    if lse is not None:\n        lse +=",
     "    store_rows(result, 0, total, sums, row_inside, DEAD, VALUE_DIM)\n"
     "    if lse is not None:\n        lse +="),
]  # fmt: skip


@pytest.mark.parametrize("splits", [1, 3])
def test_rows_are_written_before_any_is_computed_again(interpreted, splits):
    case = {**FAR, "splits": splits}
    interpreted("decode_order.written_first", str(SPEC), str(Cache()), case)


def test_a_mutant_that_writes_them_late_is_caught(interpreted):
    """On any device; machine code shows by spills only what has no registers left for it."""
    case = {**FAR, "splits": 1}
    with wrong_values():
        interpreted("decode_order.written_first", str(SPEC), str(Cache()), case, LATE)
