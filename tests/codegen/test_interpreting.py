"""Where Triton's interpreter is put right."""

from __future__ import annotations


def test_one_truth_that_is_repeated_stays_one(interpreted):
    """Mutant: it is repeated as Triton does, as a number, of which 3.9 makes no mask."""
    assert interpreted("masks_of_one.dtype_of_mask") == "bool"
    assert interpreted("masks_of_one.kept", 2) == [0.0, -1.0, 2.0, -1.0]
    assert interpreted("masks_of_one.kept", 1) == [-1.0] * 4
