"""How many heads a launch deals out together: see ``planning.attention.launch_order``."""

from __future__ import annotations

from overlapc.codegen.attention.checking import Sizes
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.planning.attention.launch_order import heads_together
from overlapc.planning.problem import ITEM_BYTES


def together_of_rows(spec: AttentionSpec, sizes: Sizes) -> int:
    """Heads of queries, where a CTA is of a block of rows and reads keys; one where all rows see
    all keys, for then no block is longer than another."""
    if spec.after is None:
        return 1
    return heads_together(sizes.batch * sizes.heads, spec.groups, sizes.keys * _row_bytes(spec))


def together_of_keys(spec: AttentionSpec, sizes: Sizes) -> int:
    """Heads of keys, where a CTA is of a block of keys and reads rows of all its heads of queries;
    one likewise."""
    if spec.after is None:
        return 1
    units = sizes.batch * sizes.heads // spec.groups
    return heads_together(units, 1, spec.groups * sizes.rows * _row_bytes(spec))


def _row_bytes(spec: AttentionSpec) -> int:
    """Of a key and its value, or of a query and the gradient of its result."""
    return (spec.head_dim + spec.value_dim) * ITEM_BYTES[spec.dtype]
