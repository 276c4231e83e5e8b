"""Everything that decides the text and the machine code of one generated GEMM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.promotion import FLOATS, FP8
from overlapc.codegen.records import Canonical
from overlapc.planning.tiles import Tile

DTYPES = FLOATS
LAYOUTS = ("row", "col", "strided")
PRECISIONS = ("ieee", "tf32", "fast")
LOADS = ("pointers", "descriptors")
ORDERS = ("band", "packed")


@dataclass(frozen=True)
class GemmSpec(Canonical):
    """One GEMM ``C[m, n] = A[m, k] @ B[k, n]``, summed in float32, and what follows it there.

    ``str(spec)`` is its canonical one-line text and ``GemmSpec.parse`` reads it back. Sizes are not
    part of it: one kernel serves every m, n, k that keeps the facts below.
    """

    KIND: ClassVar[str] = "gemm"
    NEEDS: ClassVar[str] = "No GEMM can be generated"
    REMEDY: ClassVar[str] = "change that field, or use the serial or chunked schedule"

    dtype: str
    """Name of the dtype of A and B: one of ``DTYPES``."""
    out: str
    """Name of the dtype of C."""
    block_m: int
    """Rows of a tile of C."""
    block_n: int
    """Columns of a tile of C."""
    block_k: int
    """Length of one step along k."""
    warps: int = 4
    """Warps of one CTA."""
    stages: int = 3
    """Depth of the software pipeline that loads A and B."""
    a: str = "row"
    """Layout of A: ``row`` has unit stride along k, ``col`` along m, ``strided`` along neither."""
    b: str = "col"
    """Layout of B: ``row`` has unit stride along n, ``col`` (``weight.t()``) along k."""
    bias: bool = False
    """Whether ``bias[n]``, of the dtype of A, is added before C is rounded."""
    signals: bool = True
    """Whether every tile bumps the counter of its band after it is stored."""
    even_k: bool = False
    """Whether k is a multiple of ``block_k``, so that no load is masked along k."""
    precision: str = "ieee"
    """How operands are multiplied: ``ieee`` is true float32; ``tf32`` rounds operands of float32;
    ``fast`` keeps sums of fp8 products in what the matrix units have, which may be less."""
    loads: str = "pointers"
    """How A and B are read: ``pointers``, or ``descriptors`` for the TMA unit of sm_90 and later,
    which takes aligned operands alone."""
    flatten: bool = False
    """Whether the loops over tiles and over k become one pipeline, of NVIDIA's devices: the next
    tile's operands are loaded while one is stored, and it is announced while that one is computed.
    It takes memory that the pipeline would lend."""
    order: str = "band"
    """Where tiles are stored: ``band`` in row-major C, ``packed`` one after another."""
    epilogue: str = ""
    """Text of the ``Epilogue`` that gives C; empty for the GEMM alone, with its bias if any."""

    def __post_init__(self) -> None:
        self.require(self.dtype in DTYPES, f"dtype is one of {', '.join(DTYPES)}")
        self.require(self.out in DTYPES, f"out is one of {', '.join(DTYPES)}")
        for name in ("block_m", "block_n", "block_k", "warps"):
            size = getattr(self, name)
            self.require(size > 0 and size & (size - 1) == 0, f"{name} is a power of two")
        for name in ("block_m", "block_n", "block_k"):
            # The least size that Triton's dot takes on every device.
            self.require(getattr(self, name) >= 16, f"{name} is at least 16")
        self.require(self.stages > 0, "stages are positive")
        self.require(self.a in LAYOUTS and self.b in LAYOUTS, f"a and b are of {LAYOUTS}")
        self.require(self.precision in PRECISIONS, f"precision is one of {PRECISIONS}")
        self.require(self.precision != "tf32" or self.dtype == "float32", "tf32 is for float32")
        self.require(self.precision != "fast" or self.dtype in FP8, "fast sums are for fp8")
        self.require(self.loads in LOADS and self.order in ORDERS, f"it is of {LOADS}, {ORDERS}")
        strided = "strided" in (self.a, self.b)
        self.require(self.loads == "pointers" or not strided, "descriptors have a unit stride")
        self.require(not (self.bias and self.epilogue), "an epilogue holds the bias itself")
        if self.epilogue:
            Epilogue.parse(self.epilogue)

    @cached_property
    def chain(self) -> Epilogue:
        """The GEMM and what follows it."""
        if self.epilogue:
            return Epilogue.parse(self.epilogue)
        operands = (Ref("gemm", 0), Ref("gemm", 1), Dtype(self.out))
        if not self.bias:
            return Epilogue((), (Call("aten.mm.dtype", operands),))
        call = Call("aten.addmm.dtype", (Ref("input", 0), *operands))
        return Epilogue((Input("vector", self.dtype),), (call,))

    @property
    def tile(self) -> Tile:
        """What of it suits a device; a launch may have any sweep."""
        return Tile(self.block_m, self.block_n, self.block_k, self.warps, self.stages)

    def without_signals(self) -> GemmSpec:
        """The same GEMM in one band, whose tiles tell nobody that they are done."""
        return replace(self, signals=False)
