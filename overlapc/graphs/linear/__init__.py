"""Linear layers as FX graphs spell them."""
