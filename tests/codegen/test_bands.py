"""Bands: a partition of the rows of C, and the table that the kernel reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlapc.codegen import Bands
from overlapc.codegen.bands import Run
from overlapc.errors import KernelError
from tests.codegen.band_orders import rotated_bands, staged_bands


@st.composite
def bands(draw):
    block_m = draw(st.sampled_from([16, 64, 128]))
    whole = draw(st.lists(st.integers(1, 6), max_size=6))
    last = draw(st.integers(1, 3 * block_m))
    by = draw(st.integers(0, len(whole)))
    return rotated_bands([block_m * tiles for tiles in whole] + [last], block_m, by)


def test_an_example():
    three = Bands.of((32, 96, 22), 32)
    assert three.rows == (32, 96, 22)
    assert three.slices == (slice(0, 32), slice(32, 128), slice(128, 150))
    assert three.targets(tiles_n=3) == (3, 9, 3)
    places, runs = three.table[1:6], three.table[6:]
    assert three.table[0] == 5
    assert places == (6, 12, 12, 12, 18)
    # Band, first tile row, tile rows, first row of A, rows to its place in C, end of A's rows.
    assert runs == (0, 0, 1, 0, 0, 32, 1, 1, 3, 32, 0, 128, 2, 4, 1, 128, 0, 150)


def test_a_rotated_example():
    turned = rotated_bands((32, 96, 22), 32, 1)
    assert turned.rows == (96, 22, 32)
    assert turned.slices == (slice(32, 128), slice(128, 150), slice(0, 32))


def test_a_staged_example():
    staged = staged_bands((32, 16), 2, 32, first=1)
    assert staged.rows == (64, 32)
    assert staged.slices == (slice(0, 64), slice(64, 96))
    assert staged.runs == ((Run(48, 32, 32), Run(0, 0, 32)), (Run(80, 80, 16), Run(32, 64, 16)))


@given(bands(), st.integers(1, 5))
def test_slices_cover_the_rows_and_targets_the_tiles(bands, tiles_n):
    rows = sorted(row for piece in bands.slices for row in range(piece.start, piece.stop))
    m = sum(bands.rows)
    assert rows == list(range(m))
    assert sum(bands.targets(tiles_n)) == bands.table[0] * tiles_n


@given(st.integers(1, 4), st.lists(st.integers(1, 70), min_size=1, max_size=4), st.data())
def test_a_staged_band_holds_the_same_rows_of_every_rank(ranks, rows, data):
    staged = staged_bands(rows, ranks, 16, first=data.draw(st.integers(0, ranks - 1)))
    part = sum(rows)
    source_of = {
        run.target + row: run.source + row
        for runs in staged.runs for run in runs for row in range(run.rows)
    }  # fmt: skip
    # What a reduce-scatter gives to each rank, band after band, are that rank's rows in order.
    for rank in range(ranks):
        given = []
        for piece, count in zip(staged.slices, rows, strict=True):
            given += range(piece.start + rank * count, piece.start + (rank + 1) * count)
        assert [source_of[row] for row in given] == list(range(rank * part, (rank + 1) * part))


@given(bands())
def test_the_table_says_of_each_tile_row_what_the_slices_say(bands):
    total = bands.table[0]
    assert total == sum(bands.tile_rows)
    for tile_row, at in enumerate(bands.table[1 : 1 + total]):
        group, first, tall, source, moved, end = bands.table[at : at + 6]
        assert first <= tile_row < first + tall
        row = source + (tile_row - first) * bands.block_m
        assert row < end
        assert bands.slices[group].start <= row + moved < bands.slices[group].stop


@pytest.mark.parametrize("rows", [(), (0, 32), (33, 32), (32, -1)], ids=str)
def test_what_is_no_partition_into_bands_is_refused(rows):
    with pytest.raises(KernelError, match="no partition"):
        Bands.of(rows, 32)
