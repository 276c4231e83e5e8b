"""What a mask hides is found in time that grows as the mask does, whatever it hides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.checking import Sizes
from overlapc.codegen.attention.looking import shape_of
from overlapc.codegen.attention.spec import AttentionSpec
from tests.codegen.catching import wrong_values

SPEC = AttentionSpec("bfloat16", 128, 128, groups=4)
USUAL = {"causal": 1, "window": 1, "cached": 1}
"""By how many tiles of each row show a key that it keeps."""
OTHERS = (
    "padded on the left", "padded on the right", "a row of nothing", "nothing", "of heads",
    "few", "one",
)  # fmt: skip
LARGE = (1, 1, 96, 192)
SMALL = (2, 2, 24, 70)


def loads(interpreted, kind, sizes, **named):
    return interpreted("looking_cases.looked", kind, sizes, **named)


CASES = [
    ("window", SMALL), ("window", LARGE), ("nothing", LARGE), ("padded on the left", SMALL),
    ("of heads", SMALL), ("one", SMALL),
]  # fmt: skip
"""In every run of the tests."""
EVERY = [
    (kind, sizes) if (kind, sizes) in CASES else pytest.param(kind, sizes, marks=pytest.mark.long)
    for kind in (*USUAL, *OTHERS)
    for sizes in (SMALL, LARGE)
]


@pytest.mark.parametrize(("kind", "sizes"), EVERY)
def test_masks_are_loaded_at_most_twice(interpreted, kind, sizes):
    """And one tile of each row more; by the first tile of a row where that shows a key."""
    count, tile = loads(interpreted, kind, sizes)
    assert count <= 1 + USUAL.get(kind, 1 / tile + 1) * tile * 1.1


def test_rows_that_see_nothing_by_their_place_alone(interpreted):
    count, tile = loads(interpreted, "nothing", (1, 1, 64, 128), after=0)
    assert count <= 1 + 0.5 + 2 * tile


def test_masks_of_minus_infinity_beside_finite_ones(interpreted):
    loads(interpreted, "nothing", SMALL, fill="infinite")


MUTANTS = {
    "from the first key": ("window", ("near = tl.minimum(tl.maximum(highest // BLOCK_N - begin, 0)"
                                      ", tiles - 1)", "near = begin * 0")),
    "until all have shown one": ("a row of nothing", ("tl.where(tiles > 1, around + 1, tiles)",
                                                      "3 * around")),
    "each row once more": ("causal", ("(tl.max((score > KEPT).to(tl.int32), 1) == 0)",
                                      "(trip < 1)")),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_that_loads_more_is_caught(interpreted, mutant):
    kind, change = MUTANTS[mutant]
    with wrong_values():
        count, tile = loads(interpreted, kind, LARGE, change=change)
        assert count <= 1 + USUAL.get(kind, 1 / tile + 1) * tile * 1.1, "error: loads"


WRONG = {
    "floors of the first head": ("of heads", ("tl.load(floors + unit.to(tl.int64) * rows + row",
                                              "tl.load(floors + row")),
    "a tile is left out": ("one", ("(next_tile + step) & (around - 1)",
                                   "(next_tile + 2 * step) & (around - 1)")),
}  # fmt: skip


@pytest.mark.parametrize("mutant", WRONG)
def test_a_mutant_of_floors_is_caught(interpreted, mutant):
    kind, change = WRONG[mutant]
    with wrong_values():
        loads(interpreted, kind, SMALL, change=change)


def test_as_many_tiles_are_looked_for_as_a_grid_has_place_for():
    """Mutants: one program more; no bound of memory."""
    most = Sizes(1, 4, 16, 16 * (2**31 - 1))
    assert shape_of(SPEC, most, 1, (16, 16)) == (1, 1, 1, 2**31 - 1)
    assert shape_of(SPEC, replace(most, keys=most.keys + 1), 1, (16, 16)) is None
    assert shape_of(SPEC, Sizes(8, 32, 1 << 20, 1 << 20), 1, (64, 64)) is None
    assert shape_of(SPEC, Sizes(1, 32, 1 << 20, 1 << 20), 1, (128, 64)) == (1, 1, 1 << 13, 1 << 14)


def test_flags_take_an_eighth_of_what_operands_do():
    one, heads = Sizes(1, 4, 1 << 18, 1 << 18), Sizes(1, 32, 1 << 18, 1 << 18)
    assert shape_of(SPEC, one, 1, (64, 64)) == (1, 1, 1 << 12, 1 << 12)
    assert shape_of(SPEC, one, 4, (64, 64)) is None
    assert shape_of(SPEC, heads, 1, (64, 64)) is not None
