"""Sums that collectives are terms of, of which one collective may send the whole."""
