"""Bands that do not lie as they are computed: what staging makes of parts, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from overlapc.codegen import Bands
from overlapc.codegen.bands import Run


def rotated_bands(rows: Sequence[int], block_m: int, by: int) -> Bands:
    """``Bands.of`` these rows, beginning with number ``by`` and going round."""
    runs = Bands.of(rows, block_m).runs
    return Bands(runs[by:] + runs[:by], block_m)


def staged_bands(rows: Sequence[int], ranks: int, block_m: int, first: int = 0) -> Bands:
    """Bands that hold ``rows`` rows of each rank's part of A @ B, those of rank 0 on top.

    Inside a band the part of rank ``first`` is computed first, and the others go round from it.
    """
    starts, part = (0, *accumulate(rows)), sum(rows)
    order = [(first + rank) % ranks for rank in range(ranks)]
    return Bands(
        tuple(
            tuple(Run(rank * part + at, ranks * at + rank * count, count) for rank in order)
            for at, count in zip(starts, rows, strict=False)
        ),
        block_m,
    )
