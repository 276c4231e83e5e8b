"""What `overlapc calibrate` measures of a model, and keeps: chains, attention, linear layers."""
