"""Which of the tiles that a device has for an attention computes it, by name."""

from __future__ import annotations

PLANNED = "planned"
"""What a kernel takes unasked."""
VALUES_BEHIND, FEW_ROWS, MANY_ROWS = "values_behind", "few_rows", "many_rows"
TRIED = {
    VALUES_BEHIND: "with values a tile behind keys",
    FEW_ROWS: "in CTAs of the fewest rows",
    MANY_ROWS: "in CTAs of the most rows",
}
"""What a calibration times beside it, where a device has such a tile, and how reasons say it. The
first is of kernels of many rows, the others are of decode kernels."""
TILES = (PLANNED, *TRIED)
