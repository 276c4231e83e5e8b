"""Bands: a partition of the rows of C, and the table that the kernel reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlapc.codegen import Bands
from overlapc.errors import KernelError


@st.composite
def bands(draw):
    block_m = draw(st.sampled_from([16, 64, 128]))
    whole = draw(st.lists(st.integers(1, 6), max_size=6))
    last = draw(st.integers(1, 3 * block_m))
    return Bands.of([block_m * tiles for tiles in whole] + [last], block_m)


def test_an_example():
    three = Bands.of((32, 96, 22), 32)
    assert three.slices == (slice(0, 32), slice(32, 128), slice(128, 150))
    assert three.targets(tiles_n=3) == (3, 9, 3)
    assert three.table == (0, 1, 1, 1, 2, 0, 1, 4, 5)


@given(bands(), st.integers(1, 5))
def test_slices_cover_the_rows_and_targets_the_tiles(bands, tiles_n):
    rows = [row for piece in bands.slices for row in range(piece.start, piece.stop)]
    m = sum(bands.rows)
    assert rows == list(range(m))
    assert sum(bands.targets(tiles_n)) == -(-m // bands.block_m) * tiles_n


@given(bands())
def test_the_table_says_of_each_tile_row_what_the_slices_say(bands):
    tiles_m = -(-sum(bands.rows) // bands.block_m)
    groups, firsts = bands.table[:tiles_m], bands.table[tiles_m:]
    assert len(firsts) == len(bands.rows) + 1
    for tile_row, group in enumerate(groups):
        piece = bands.slices[group]
        assert piece.start <= tile_row * bands.block_m < piece.stop
        assert firsts[group] <= tile_row < firsts[group + 1]


@pytest.mark.parametrize("rows", [(), (0, 32), (33, 32), (32, -1)], ids=str)
def test_what_is_no_partition_into_bands_is_refused(rows):
    with pytest.raises(KernelError, match="no partition"):
        Bands.of(rows, 32)
