"""Everything that decides the text and the machine code of a linear layer of few rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Ref
from overlapc.codegen.products import GEMMS
from overlapc.codegen.promotion import FLOATS, FP8, HALVES
from overlapc.codegen.records import Canonical
from overlapc.codegen.spec import LAYOUTS
from overlapc.planning.linear.regions import BYTES
from overlapc.planning.linear.tiles import LinearTile

GEMV, FLAT = "gemv", "flat"
WAYS = (GEMV, FLAT)
WIDE = ("float32", *HALVES)
GEMV_ROWS = (1, 2)
FLAT_ROWS = (8, 16, 32, 64)
"""Rows of the activations that one tile holds: 8 is what a matrix instruction takes as its N."""
INTEGERS = ("int8", "uint8")
HELD = (*FLOATS, *INTEGERS)
"""Dtypes in which a weight may lie in memory; it is multiplied in the activations' dtype."""
MOST_WEIGHTS = 2
"""Whose products one epilogue takes."""
MOST_RESULTS = 3
"""Of one launch: queries, keys and values. Chosen; each is code of its own."""


@dataclass(frozen=True)
class LinearSpec(Canonical):
    """``C[m, n] = x[m, k] @ weight[k, n]`` of at most ``rows`` rows, and what follows it there.

    ``gemv`` multiplies on the ordinary cores, ``flat`` on the matrix units with the weight's
    columns as their M and the rows as their N. With two weights (gate and up) both products of
    one x go into the epilogue. With several results one launch computes as many layers of one x,
    which differ in their columns alone. ``str(spec)`` is its canonical text and ``parse`` reads it
    back. Sizes are not part of it: one kernel serves every m up to ``rows``, every n, and every k
    that keeps ``even_k``.
    """

    KIND: ClassVar[str] = "linear"
    NEEDS: ClassVar[str] = "No linear layer can be generated"
    REMEDY: ClassVar[str] = "change that field, or leave the layer to the library"

    way: str
    """One of ``WAYS``."""
    dtype: str
    """Name of the dtype of x."""
    out: str
    """Name of the dtype of C."""
    rows: int
    """At most so many rows; of ``GEMV_ROWS`` or ``FLAT_ROWS``."""
    block_n: int
    """Columns of a tile of C."""
    block_k: int
    """Length of one step along k."""
    warps: int = 4
    """Warps of one CTA."""
    stages: int = 4
    """Depth of the software pipeline that loads the weight."""
    splits: int = 1
    """CTAs that share the k of one tile; the last to finish adds their parts, in a fixed order."""
    held: str = ""
    """Dtype of the weight in memory; empty where it is that of x."""
    weight: str = "col"
    """Layout of the weight as [k, n]: ``col`` of a weight [n, k], ``row``, or ``strided``."""
    even_k: bool = False
    """Whether k is a multiple of ``block_k``, so that no load is masked along k."""
    epilogue: str = ""
    """Text of the ``Epilogue`` that gives C; empty for the GEMM alone."""
    results: int = 1
    """How many layers of the same rows one launch computes, each by a weight of its own."""
    scales: str = ""
    """Dtype of what the weight is multiplied by before the product; empty where it is not."""
    group: int = 0
    """How many consecutive k share a scale, beside one for each column; 0 where all do."""
    zeros: str = ""
    """Dtype of zero points, as many as scales, that are subtracted from it before: that of the
    weight, or a floating one, to which differences are rounded; empty where there are none."""
    norm: bool = False
    """Whether rows are divided by the root of the mean of their squares, and ``eps``."""
    eps: float = 0.0
    gain: str = ""
    """Dtype of what normed rows are multiplied by along k; empty where they are not."""
    shift: float = 0.0
    """Added to the gain first."""

    def __post_init__(self) -> None:
        self.require(self.way in WAYS, f"way is one of {', '.join(WAYS)}")
        rows = GEMV_ROWS if self.way == GEMV else FLAT_ROWS
        self.require(self.rows in rows, f"rows of {self.way} are one of {rows}")
        self.require(self.dtype in FLOATS, f"dtype is one of {', '.join(FLOATS)}")
        self.require(self.out in FLOATS, f"out is one of {', '.join(FLOATS)}")
        self.require(self.held in ("", *HELD), f"held is one of {', '.join(HELD)}")
        self.require(self.held != self.dtype, "held is empty where it is the dtype of x")
        for name in ("block_n", "block_k", "warps", "splits"):
            size = getattr(self, name)
            self.require(size > 0 and size & (size - 1) == 0, f"{name} is a power of two")
        # What matrix instructions have at least.
        least = 16 if self.way == FLAT else 1
        self.require(min(self.block_n, self.block_k) >= least, f"tiles have at least {least}")
        self.require(self.stages > 0, "stages is positive")
        self.require(self.weight in LAYOUTS, f"weight is of {LAYOUTS}")
        self.require(1 <= self.weights <= MOST_WEIGHTS, f"it has at most {MOST_WEIGHTS} weights")
        self.require(1 <= self.results <= MOST_RESULTS, f"it has at most {MOST_RESULTS} results")
        self.require(min(self.weights, self.results) == 1, "one of several results has one weight")
        self.require(self.scales in ("", *FLOATS), f"scales are of {', '.join(FLOATS)}")
        self.require(self.group >= 0, "group is positive or zero")
        self.require(bool(self.scales) or not self.group, "only scales come in groups")
        self.require(bool(self.scales) or not self.zeros, "only scales come with zero points")
        its_zeros = ("", self.held, *WIDE) if self.held in INTEGERS else ("",)
        self.require(self.zeros in its_zeros, f"zero points are of {', '.join(its_zeros)}")
        self.require(self.gain in ("", *FLOATS), f"a gain is of {', '.join(FLOATS)}")
        self.require(self.norm or not (self.gain or self.eps), "only normed rows have a gain")
        self.require(bool(self.gain) or not self.shift, "only to a gain something is added")

    @cached_property
    def chain(self) -> Epilogue:
        """The GEMMs and what follows them."""
        if self.epilogue:
            return Epilogue.parse(self.epilogue)
        operands = (Ref("gemm", 0), Ref("gemm", 1), Dtype(self.out))
        return Epilogue((), (Call("aten.mm.dtype", operands),))

    @cached_property
    def weights(self) -> int:
        """How many weights x is multiplied by for one result."""
        return sum(call.op in GEMMS for call in self.chain.calls)

    @property
    def precision(self) -> str:
        """Products are those of true float32, or of narrower operands summed in float32."""
        return "ieee"

    @property
    def sum_k(self) -> int | None:
        """After how many products sums of fp8 are carried on in float32."""
        return self.block_k if self.dtype in FP8 else None

    @property
    def bytes_in_flight(self) -> int:
        """Of weights, what the pipeline of one CTA asks for ahead."""
        tile = LinearTile(self.block_n, self.block_k, self.warps, self.stages)
        return tile.bytes_ahead(self.way, self.weights, BYTES[self.held or self.dtype])
