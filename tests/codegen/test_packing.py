"""Packed order: where each atom of C lies, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overlapc.codegen import GemmSpec
from overlapc.codegen.packing import ATOM, Packing, identity_map, unpack
from overlapc.errors import KernelError

SPEC = GemmSpec("float16", "float16", 32, 64, 32, sweep=2, order="packed")


def test_the_identity_is_the_map_of_what_is_not_packed():
    c = torch.randn(5, 3 * ATOM)
    places = identity_map(5, 3 * ATOM)
    assert places.dtype == torch.int32
    assert torch.equal(unpack(c.flatten(), places), c)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 5))
def test_no_two_atoms_share_a_place_and_tiles_lie_whole(m, atoms, sweep):
    spec = GemmSpec("float16", "float16", 32, 64, 32, sweep=sweep, order="packed")
    n = atoms * ATOM
    tiles = -(-m // 32) * -(-n // 64)
    packing = Packing.of(spec, m, n, (tiles,))
    places = packing.map()
    assert places.shape == (m, atoms)
    assert places.unique().numel() == places.numel()
    assert places.max() < packing.elements // ATOM
    size = 32 * 64 // ATOM
    # Rows and columns of one tile, and no others, have their places in one block of the buffer.
    tile_of = places // size
    rows, columns = torch.arange(m)[:, None] // 32, torch.arange(atoms)[None, :] // (64 // ATOM)
    assert torch.equal(tile_of, tile_of[rows * 32, columns * (64 // ATOM)])
    assert tile_of.unique().numel() == tiles


def test_groups_are_ranges_of_the_buffer():
    packing = Packing.of(SPEC, 70, 80, (1, 3, 2))
    tile = 32 * 64
    assert packing.slices == (slice(0, tile), slice(tile, 4 * tile), slice(4 * tile, 6 * tile))
    assert packing.targets == (1, 3, 2)
    assert packing.table == (0, 1, 1, 1, 2, 2)
    # Sweeps of two tile rows, column by column.
    assert packing.map()[::32, ::4].tolist() == [[0, 256], [128, 384], [512, 640]]


@pytest.mark.parametrize(
    ("n", "tiles", "message"),
    [(81, (6,), "multiple of 16"), (80, (5,), "all 6 tiles"), (80, (6, 0), "all"), (80, (), "all")],
)
def test_what_cannot_be_packed_is_refused(n, tiles, message):
    with pytest.raises(KernelError, match=message):
        Packing.of(SPEC, 70, n, tiles)


def test_a_kernel_that_does_not_pack_is_refused():
    band = GemmSpec("float16", "float16", 32, 64, 32)
    with pytest.raises(KernelError, match="the kernel packs"):
        Packing.of(band, 70, 80, (6,))
