"""Importable only as ``overlapc.passes``: a second copy under a bare name would split its state."""

if __name__ != "overlapc.passes":
    raise ImportError("import overlapc.passes, not passes: the bare name would load a second copy")
