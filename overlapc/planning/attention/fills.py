"""Numbers that are put in for scores, or added to them, so that a key is left out."""

WEAKEST_FILL = -1e9
"""One above it might be no mask, but a score; any score's bits are lost in one below. Chosen: what
is common, and far below any score."""

FINITE_FILL = -1e38
"""Stands for any finite one: scores are lost in it, so that a row of it alone is uniform; in the
range of bfloat16."""
