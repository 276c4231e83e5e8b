"""Importable only as ``overlapc.codegen``: a second copy under a bare name would split its state."""

if __name__ != "overlapc.codegen":
    raise ImportError("import overlapc.codegen, not codegen: the bare name would load a second copy")

from overlapc.codegen.bands import COUNTER_STRIDE, Bands
from overlapc.codegen.builder import build
from overlapc.codegen.kernel import Kernel
from overlapc.codegen.spec import GemmSpec

__all__ = ["COUNTER_STRIDE", "Bands", "GemmSpec", "Kernel", "build"]
