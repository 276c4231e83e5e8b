"""Importable only as ``overlapc.codegen``: a second copy under a bare name would split its state."""

if __name__ != "overlapc.codegen":
    raise ImportError("import overlapc.codegen, not codegen: the bare name would load a second copy")
