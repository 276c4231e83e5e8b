"""The sizes of one GEMM and the collective before or after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import ClassVar

from overlapc.errors import ProblemError
from overlapc.planning.kernel_tiles import LAYOUT
from overlapc.planning.packed_order import packs
from overlapc.planning.tiles import FP8, Tile

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}

SENT_BYTES = {**ITEM_BYTES, "uint8": 1}
"""Bytes of an element of what is sent: fp8 travels as uint8 too."""

COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")

GEMM_FIRST, COLLECTIVE_FIRST = ORDERS = ("gemm_first", "collective_first")

_SIZES = (
    *("m", "n", "k", "world_size", "epilogue_bytes", "row_multiple", "kernel_sums", "blocks"),
)

_REMEDY = "give the local sizes of one rank, a floating dtype and a known collective"

_ORDERS_OF = {
    "all_reduce": (GEMM_FIRST,),
    "reduce_scatter": (GEMM_FIRST,),
    "all_gather": (COLLECTIVE_FIRST,),
    "all_to_all": ORDERS,
}
"""The orders that each collective comes in, its natural one first."""

ROWS, COLUMNS = DIMENSIONS = ("rows", "columns")
"""What groups may be made of: rows of what is sent or gathered, or columns of what is sent."""

PER_TENSOR = "tensor"
"""How GEMMs of float8 are scaled that have one number for A and one for B."""

TILES = "tiles"
"""What groups are made of where a generated kernel stores its tiles as they complete."""


def orders_of(collective: str) -> tuple[str, ...]:
    """The orders that a problem with this collective may have, its natural one first."""
    return _ORDERS_OF[collective]


@dataclass(frozen=True)
class Problem:
    """``C[m, n] = A[m, k] @ B[k, n]`` on every rank, and one collective over C or A.

    A producer sends C after it is computed, a consumer computes with A after it has come. What is
    cut into groups is the m rows: those before a scatter, those after a gather. Or it is the n
    columns of C, where they may be cut.
    """

    m: int
    """Rows of the GEMM on one rank."""
    n: int
    """Columns of the GEMM on one rank; the sum over all GEMMs that share a gathered A."""
    k: int
    """Contracted size on one rank."""
    dtype: str
    """Name of the dtype of A, B and C, as torch spells it without ``torch.``."""
    collective: str
    """One of ``COLLECTIVES``."""
    world_size: int
    """Members of the group."""
    epilogue_bytes: int = 0
    """Bytes that pointwise work beside the whole GEMM reads and writes."""
    order: str = ""
    """One of ``ORDERS``; empty for the natural one. Only an all-to-all may be either."""
    sent_dtype: str = ""
    """Name of the dtype of what is sent; empty where it is ``dtype``."""
    row_multiple: int = 0
    """Groups are multiples of so many rows; 0 for the natural number, which is ``world_size`` where
    rows are dealt out to ranks and else 1. It divides m."""
    cuts_columns: bool = False
    """Producers: what is sent may be cut along its n columns too."""
    kernel_sums: int = 0
    """Producers that one generated kernel computes: how many elements of C a thread of it may hold
    beside the epilogue (`tiles`); 0 where no kernel is generated."""
    takes_map: bool = False
    """Whoever reads the result of an all-reduce can read it where the tiles of a kernel lie."""
    blocks: int = 1
    """Blocks of rows, one after another, each of which is dealt out to all ranks, or comes from
    all. They do not divide m where rows are only tried."""
    deals_unevenly: bool = False
    """Producers: ranks get different numbers of rows."""
    program: str = ""
    """What is computed, as text, for those who run it, where it is more than a GEMM and a cast.
    Nothing is predicted from it, but what was measured holds for the same text."""
    axis: int = 0
    """What is scattered or gathered of rows that come in units of ``row_multiple``: 0 units, or 1 a
    part of every unit, so that groups are plain bands."""
    computes_beside: bool = False
    """Producers that one generated kernel computes: it computes or reads more than the product."""
    layouts: tuple[str, str] = ("row", "col")
    """Producers that one generated kernel computes: how A and B lie (`kernel_tiles.LAYOUT`); "col"
    is a transposed weight."""
    scales: str = ""
    """Float8 only: "tensor" where A and B have one scale each; empty where each row of A and column
    of B has one, and of other dtypes."""
    GONE: ClassVar[frozenset[str]] = frozenset({"local_first"})
    """Fields that older formats have and nobody reads: that one was true where rows are moved."""

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._error(f"{name} is {value!r}, not an integer")
            if value < 0:
                raise self._error(f"{name} is {value}, but sizes are not negative")
        if self.world_size < 1:
            raise self._error(f"world_size is {self.world_size}, but a group has members")
        if self.axis not in (0, 1):
            raise self._error(f"axis is {self.axis!r}, not 0 or 1")
        if self.blocks < 1:
            raise self._error(f"blocks is {self.blocks}, but rows are at least one block")
        if self.dtype not in ITEM_BYTES:
            raise self._error(f"dtype {self.dtype!r} is not one of {', '.join(ITEM_BYTES)}")
        if self.sent_dtype and self.sent_dtype not in SENT_BYTES:
            raise self._error(
                f"sent_dtype {self.sent_dtype!r} is not one of {', '.join(SENT_BYTES)}"
            )
        if self.collective not in COLLECTIVES:
            raise self._error(
                f"collective {self.collective!r} is not one of {', '.join(COLLECTIVES)}"
            )
        if self.order and self.order not in _ORDERS_OF[self.collective]:
            known = " or ".join(_ORDERS_OF[self.collective])
            raise self._error(f"order {self.order!r} of {self.collective} is not {known}")
        if len(self.layouts) != 2 or not all(LAYOUT.fullmatch(one) for one in self.layouts):
            raise self._error(f"layouts are {self.layouts!r}, not row, col, row:16 or strided")
        if self.scales not in ("", PER_TENSOR):
            raise self._error(f"scales is {self.scales!r}, not {PER_TENSOR!r} or empty")
        if self.m % self.granule:
            of = f", of which each of {self.world_size} ranks has as many" if self.parts > 1 else ""
            raise self._error(
                f"m is {self.m}, no multiple of {self.granule} rows{of}",
                remedy=f"pad m to {-(-self.m // self.granule) * self.granule}",
            )

    def _error(self, what: str, remedy: str = _REMEDY) -> ProblemError:
        return ProblemError(
            f"{what}.",
            where=f"GEMM {self.m}x{self.n}x{self.k} {self.dtype}, {self.collective}",
            remedy=remedy,
        )

    def resolved(self) -> Problem:
        """The problem with every default filled in: equal for problems that mean the same."""
        has_kernel = self.kernel_sums > 0 and not self.is_consumer
        return replace(
            self,
            order=COLLECTIVE_FIRST if self.is_consumer else GEMM_FIRST,
            sent_dtype=self.sent_dtype or self.dtype,
            row_multiple=self.granule,
            cuts_columns=COLUMNS in self.dimensions,
            kernel_sums=self.kernel_sums if has_kernel else 0,
            takes_map=self.takes_map and self.collective == "all_reduce" and has_kernel,
            blocks=self.blocks if self.parts > 1 else 1,
            deals_unevenly=self.deals_unevenly and not self.is_consumer,
            axis=0 if self.collective == "all_reduce" else self.axis,
            computes_beside=self.computes_beside and has_kernel,
            layouts=self.layouts if has_kernel else ("row", "col"),
            scales=self.scales if self.dtype in FP8 else "",
        )

    def common(self) -> Problem:
        """The resolved problem without what may differ between ranks that compute unlike things
        beside the GEMM."""
        return replace(
            self.resolved(),
            program="",
            epilogue_bytes=0,
            cuts_columns=False,
            kernel_sums=0,
            # What is told of a kernel alone, and left to a default by ranks that have none.
            takes_map=False,
            computes_beside=False,
            layouts=("row", "col"),
            scales="",
        )

    @property
    def is_consumer(self) -> bool:
        """Whether the collective comes first."""
        return (self.order or _ORDERS_OF[self.collective][0]) == COLLECTIVE_FIRST

    @property
    def kind(self) -> str:
        """Kind of a site with this problem, such as ``gemm_all_reduce``."""
        return f"{self.collective}_gemm" if self.is_consumer else f"gemm_{self.collective}"

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of what a program calls, such as "addmm" and "gelu"; none where there is none."""
        steps = json.loads(self.program)["program"]["steps"] if self.program else ()
        return tuple(op.split(".")[1] for op, *_ in steps)

    @property
    def granule(self) -> int:
        """Every group of rows is a multiple of so many."""
        return self.row_multiple or (self.world_size if self._moves_units else 1)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What may be cut into groups: some of ``DIMENSIONS``, rows first."""
        return DIMENSIONS if self.cuts_columns and not self.is_consumer else (ROWS,)

    @property
    def parts(self) -> int:
        """Ranks that rows of C are dealt out to, or of A come from, each as many; 1 where a group
        is a plain band."""
        is_dealt = self._moves_units and self.granule % self.world_size == 0
        return self.world_size if is_dealt and not self.deals_unevenly else 1

    @property
    def _moves_units(self) -> bool:
        """Whether each rank sends or gets rows of its own."""
        return self.collective != "all_reduce" and self.axis == 0

    @property
    def run_rows(self) -> int:
        """Rows of C that lie together and go to one rank, where they are dealt out; else all."""
        return -(-self.m // (self.parts * self.blocks))

    @property
    def kernel_dimensions(self) -> tuple[str, ...]:
        """What groups of a generated kernel may be made of, rows first."""
        is_packed = self.takes_map and self.collective == "all_reduce" and self.m > 0
        return (ROWS, TILES) if is_packed else (ROWS,)

    def band_rows(self, tile: Tile, height: int = 1) -> int:
        """Rows of the smallest band of whole tiles, each rank's share ``height`` tile rows high.

        Runs that are no whole tile rows have tiles of their own, and are not cut.
        """
        share = height * tile.block_m
        if self.blocks > 1 and self.run_rows % tile.block_m:
            share = self.run_rows
        return lcm(self.parts * share, self.granule)

    def is_cut_by(self, counts: Sequence[int], by: str = ROWS, tile: Tile | None = None) -> bool:
        """Whether groups of so many rows, columns or tiles make up all, each as it has to be.

        With a ``tile`` they are those of a generated kernel, whose bands end between tiles. No rows
        are one group of none.
        """
        if by not in (self.kernel_dimensions if tile else self.dimensions):
            return False
        size, granule = {ROWS: (self.m, self.granule), COLUMNS: (self.n, 1)}.get(by, (0, 1))
        if tile and by == TILES and not packs(tile, self.m):
            return False
        if tile and by == TILES:
            size = tile.count(self.m, self.n)
        if tile and by == ROWS and any(x % self.band_rows(tile) for x in counts[:-1]):
            return False
        fewest = 1 if size else 0
        is_whole = all(x >= fewest and x % granule == 0 for x in counts)
        return len(counts) > 0 and sum(counts) == size and is_whole

    @property
    def flops(self) -> int:
        """Floating-point operations of the GEMM on one rank."""
        return 2 * self.m * self.n * self.k

    @property
    def item_bytes(self) -> int:
        """Bytes of one element of the GEMM."""
        return ITEM_BYTES[self.dtype]

    @property
    def sent_item_bytes(self) -> int:
        """Bytes of one element of what is sent."""
        return SENT_BYTES[self.sent_dtype or self.dtype]

    def sent_bytes(self, rows: int, columns: int | None = None) -> int:
        """Bytes of ``rows`` rows of the tensor that is communicated, whole on one rank.

        Of a reduce-scatter its input, of an all-gather its output, of an all-to-all either; of all
        columns, or of so many.
        """
        if columns is None:
            columns = self.k if self.is_consumer else self.n
        return rows * columns * self.sent_item_bytes

    def local_rows(self, rows: int) -> int:
        """How many of a group's rows are computed before it has come: a consumer's own."""
        return rows // self.world_size if self.is_consumer and self._moves_units else 0
