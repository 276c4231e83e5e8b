"""How the keys and values lie that the few rows of a decode step attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.records import Canonical
from overlapc.planning.linear.tiles import FP8_SINCE
from overlapc.planning.tiles import sm_number

NARROW = ("float8_e4m3fn",)
"""Dtypes that a cache may have beside that of the queries, to which they are widened when read."""
PAGES = (16, 32, 64, 128, 256)
"""Keys that a page may hold: powers of two, for numbers of keys are taken apart by their bits."""


@dataclass(frozen=True)
class Cache(Canonical):
    """The layout of K and V beside ``AttentionSpec``; ``str`` and ``parse`` as there."""

    KIND: ClassVar[str] = "cache"
    NEEDS: ClassVar[str] = "No decode kernel can read a cache"
    REMEDY: ClassVar[str] = "change that field, or use torch's scaled_dot_product_attention"

    dtype: str = ""
    """Name of the dtype of K and V; empty: that of Q."""
    scales: bool = False
    """A launch brings float32 factors of K and V: one each, or one for each head of keys."""
    page: int = 0
    """Keys of one page, a power of two: K and V are [pages, heads, page, dim] then, and a table
    int32[batch, most pages] tells which pages hold a sequence. 0: [batch, heads, keys, dim]."""
    shares_values: bool = False
    """Keys begin with their values (latent attention), and each is read once: V is that part, and
    K either the rest, [..., head_dim - value_dim], in memory of its own or behind V, or the whole,
    of which V is a view."""

    def check(self, spec: AttentionSpec) -> None:
        """KernelError unless an attention of ``spec`` can read it."""
        of, dtypes = f" of {spec}", ("", spec.dtype, *NARROW)
        self.require(self.dtype in dtypes, f"its dtype is one of {', '.join(dtypes[1:])}", of)
        is_page = self.page in (0, *PAGES)
        self.require(is_page, f"a page is a power of two, {PAGES[0]} to {PAGES[-1]} keys", of)
        if self.shares_values:
            dim = spec.value_dim
            is_part = dim == leading(spec.head_dim)
            self.require(is_part, f"{dim} shared values are the largest power of two in a key", of)

    def of(self, spec: AttentionSpec) -> str:
        """The dtype of K and V."""
        return self.dtype or spec.dtype

    def comes_as_bytes(self, spec: AttentionSpec, architecture: str) -> bool:
        """Whether a kernel is given it as uint8, and takes its bits apart: where ``sm_<number>``
        does not convert its dtype."""
        number = sm_number(architecture)
        return self.of(spec) in NARROW and 0 < number < FP8_SINCE

    def has_pairs(self, spec: AttentionSpec, architecture: str) -> bool:
        """Whether a kernel for ``sm_<number>`` may take values of float8 in pairs of columns, where
        they lie so; "" is Triton's interpreter."""
        is_narrow = self.of(spec) in NARROW and not self.comes_as_bytes(spec, architecture)
        is_even = spec.value_dim % 2 == 0 and not self.shares_values
        return is_narrow and is_even and not architecture.startswith("gfx")


def leading(dim: int) -> int:
    """Elements of a vector of ``dim`` that are read as one part: the rest is another."""
    return max(16, 1 << (dim.bit_length() - 1))
