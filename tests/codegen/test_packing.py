"""Packed order: where the elements of C lie, which groups are ranges of it, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from overlapc.codegen import GemmSpec
from overlapc.codegen.packing import Packing, pack, unpack
from overlapc.errors import KernelError
from overlapc.planning.packed_order import PackedOrder, packs
from overlapc.planning.tiles import SWEEPS, Tile

SPEC = GemmSpec("float16", "float16", 32, 64, 32, order="packed")


def tile_of(sweep: int) -> Tile:
    return Tile(32, 64, 32, 4, 3, sweep)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 200), st.sampled_from(SWEEPS))
def test_what_is_packed_is_read_back_from_tiles_that_lie_whole(m, n, sweep):
    tile = tile_of(sweep)
    assume(packs(tile, m))
    order = PackedOrder(m, n, tile)
    numbers = torch.arange(order.elements)
    places = unpack(numbers, order)
    assert places.shape == (m, n)
    assert places.unique().numel() == m * n
    # Rows and columns of one tile, and no others, have their places in one block of the buffer.
    blocks = places // tile.elements
    rows, columns = torch.arange(m)[:, None] // 32 * 32, torch.arange(n)[None, :] // 64 * 64
    assert torch.equal(blocks, blocks[rows, columns])
    assert blocks.unique().numel() == order.tiles
    c = torch.randn(m, n)
    packed = pack(c, order)
    assert packed.shape == (order.elements,)
    assert torch.equal(unpack(packed, order), c)


def test_groups_are_ranges_of_the_buffer():
    packing = Packing.of(SPEC, 120, 80, (1, 3, 4), 2)
    tile = 32 * 64
    assert packing.slices == (slice(0, tile), slice(tile, 4 * tile), slice(4 * tile, 8 * tile))
    assert packing.targets == (1, 3, 4)
    assert packing.table == (0, 1, 1, 1, 2, 2, 2, 2)
    # Sweeps of two tile rows, column by column.
    places = unpack(torch.arange(packing.order.elements), packing.order) // tile
    assert places[::32, ::64].tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]


@pytest.mark.parametrize(
    ("m", "rows"), [(1, True), (64, True), (65, False), (97, True), (128, True), (160, False)]
)
def test_tile_rows_are_whole_sweeps(m, rows):
    assert packs(tile_of(2), m) == rows
    if not rows:
        with pytest.raises(ValueError, match="no whole sweeps"):
            PackedOrder(m, 80, tile_of(2))
    assert not packs(tile_of(2), 0)


@pytest.mark.parametrize(
    ("m", "tiles", "message"),
    [(70, (6,), "whole sweeps"), (64, (5,), "all 4 tiles"), (64, (4, 0), "all"), (64, (), "all")],
)
def test_what_cannot_be_packed_is_refused(m, tiles, message):
    with pytest.raises(KernelError, match=message):
        Packing.of(SPEC, m, 80, tiles, 2)


def test_a_kernel_that_does_not_pack_is_refused():
    band = GemmSpec("float16", "float16", 32, 64, 32)
    with pytest.raises(KernelError, match="the kernel packs"):
        Packing.of(band, 70, 80, (6,))
