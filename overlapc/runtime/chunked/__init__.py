"""Chains whose groups the library computes, one after another; and those that are not cut."""
