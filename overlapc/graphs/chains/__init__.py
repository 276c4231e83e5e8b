"""Chains of GEMMs and a collective: how they are read from nodes, and how they are laid out."""
