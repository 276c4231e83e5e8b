"""Processes of one machine, one a rank, and emulated links between them."""
