"""How the keys and values lie that the few rows of a decode step attend to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.records import from_line, to_line
from overlapc.errors import KernelError
from overlapc.planning.linear_tiles import FP8_SINCE
from overlapc.planning.tiles import sm_number

KIND = "cache"
NARROW = ("float8_e4m3fn",)
"""Dtypes that a cache may have beside that of the queries, to which they are widened when read."""
LEAST_PAGE, MOST_PAGE = 16, 256


@dataclass(frozen=True)
class Cache:
    """The layout of K and V beside ``AttentionSpec``; ``str`` and ``parse`` as there."""

    dtype: str = ""
    """Name of the dtype of K and V; empty: that of Q."""
    scales: bool = False
    """A launch brings float32 factors of K and V: one each, or one for each head of keys."""
    page: int = 0
    """Keys of one page, a power of two: K and V are [pages, heads, page, dim] then, and a table
    int32[batch, most pages] tells which pages hold a sequence. 0: [batch, heads, keys, dim]."""
    shares_values: bool = False
    """V is the first ``value_dim`` elements of K, and not read for itself (latent attention)."""

    def __str__(self) -> str:
        return to_line(KIND, self)

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> Cache:
        """Read what ``str`` printed; KernelError on any other text."""
        return from_line(KIND, cls, text)

    def check(self, spec: AttentionSpec) -> None:
        """KernelError unless an attention of ``spec`` can read it."""
        dtypes = ("", spec.dtype, *NARROW)
        self._require(self.dtype in dtypes, f"its dtype is one of {', '.join(dtypes[1:])}", spec)
        is_power = self.page & (self.page - 1) == 0
        is_page = self.page == 0 or (is_power and LEAST_PAGE <= self.page <= MOST_PAGE)
        self._require(is_page, f"a page is a power of two, {LEAST_PAGE} to {MOST_PAGE} keys", spec)
        if self.shares_values:
            dim = spec.value_dim
            is_part = dim == leading(spec.head_dim)
            self._require(is_part, f"{dim} shared values are the largest power of two in a key",
                          spec)  # fmt: skip

    def of(self, spec: AttentionSpec) -> str:
        """The dtype of K and V."""
        return self.dtype or spec.dtype

    def comes_as_bytes(self, spec: AttentionSpec, architecture: str) -> bool:
        """Whether a kernel is given it as uint8, and takes its bits apart: where ``sm_<number>``
        does not convert its dtype."""
        number = sm_number(architecture)
        return self.of(spec) in NARROW and 0 < number < FP8_SINCE

    def _require(self, holds: bool, rule: str, spec: AttentionSpec) -> None:
        if not holds:
            raise KernelError(
                f"No decode kernel can read a cache unless {rule}.",
                where=f"{self} of {spec}",
                remedy="change that field, or use torch's scaled_dot_product_attention",
            )


def leading(dim: int) -> int:
    """Elements of a vector of ``dim`` that are read as one part: the rest is another."""
    return max(16, 1 << (dim.bit_length() - 1))
