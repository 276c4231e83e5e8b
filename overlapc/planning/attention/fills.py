"""Numbers that are put in for scores, or added to them, so that a key is left out."""

WEAKEST_FILL = -9.98e8
"""One above it might be no mask, but a score; any score's bits are lost in one below. Chosen: -1e9
is common, which bfloat16 rounds to -9.9824e8, and far below any score."""

FINITE_FILL = -1e30
"""Scores are lost in a finite one from here down, so that a row of it alone is uniform; it stands
for those above it. Chosen: with a mask of the least number added it is still a number."""
