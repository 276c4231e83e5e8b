"""Specs of GEMMs that signal, and the Triton modules that are generated from them."""

# A second copy under the bare name would split the state of this one.
if __name__ != "overlapc.codegen":
    raise ImportError(
        "import overlapc.codegen, not codegen: the bare name would load a second copy"
    )

from overlapc.codegen.bands import COUNTER_STRIDE, Bands
from overlapc.codegen.builder import build
from overlapc.codegen.kernel import Kernel
from overlapc.codegen.spec import GemmSpec

__all__ = ["COUNTER_STRIDE", "Bands", "GemmSpec", "Kernel", "build"]
