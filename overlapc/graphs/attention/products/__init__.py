"""Products of matrices in every spelling, and what was repeated for them."""
