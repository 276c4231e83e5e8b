"""Rows that are of a known length, whatever the inputs hold."""
