"""The sizes of one GEMM and the collective that depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.errors import ProblemError

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}

COLLECTIVES = ("all_reduce",)


@dataclass(frozen=True)
class Problem:
    """``C[m, n] = A[m, k] @ B[k, n]`` on every rank, then one collective over ``C``."""

    m: int
    """Rows of the GEMM on one rank."""
    n: int
    """Columns of the GEMM on one rank."""
    k: int
    """Contracted size on one rank."""
    dtype: str
    """Name of the dtype of A, B and C, as torch spells it without ``torch.``."""
    collective: str
    """One of ``COLLECTIVES``."""
    world_size: int
    """Members of the group."""
    epilogue_bytes: int = 0
    """Bytes that an epilogue reads or writes beside C."""

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            if getattr(self, name) < 0:
                raise self._error(f"{name} is {getattr(self, name)}, but sizes are not negative")
        if self.world_size < 1:
            raise self._error(f"world_size is {self.world_size}, but a group has members")
        if self.dtype not in ITEM_BYTES:
            raise self._error(f"dtype {self.dtype!r} is not one of {', '.join(ITEM_BYTES)}")
        if self.collective not in COLLECTIVES:
            raise self._error(
                f"collective {self.collective!r} is not one of {', '.join(COLLECTIVES)}"
            )

    def _error(self, what: str) -> ProblemError:
        return ProblemError(
            f"{what}.",
            where=f"GEMM {self.m}x{self.n}x{self.k} {self.dtype}, {self.collective}",
            remedy="give the local sizes of one rank, a floating dtype and a known collective",
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of the GEMM on one rank."""
        return 2 * self.m * self.n * self.k

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    def output_bytes(self, rows: int) -> int:
        """Bytes of ``rows`` rows of C."""
        return rows * self.n * self.item_bytes
