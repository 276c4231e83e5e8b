"""Signaled GEMMs and their collectives on one GPU, over an EMULATED link."""
