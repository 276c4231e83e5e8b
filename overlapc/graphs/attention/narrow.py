"""Keys and values that a cache holds in a narrow dtype: the cast that widens them is their load."""

from __future__ import annotations

from dataclasses import replace

from overlapc.graphs.attention.tensors import Expression, expression, is_cast
from overlapc.graphs.attention.versions import Versions
from overlapc.runtime.attention_kernels import NARROW


def unwidened(
    versions: Versions, key: Expression, value: Expression
) -> tuple[Expression, Expression] | None:
    """Return keys and values as they were before they were widened, both of one dtype; None where
    they were not.

    A cast counts as a view of what it widens: that nobody writes to one before the result is
    computed, as of any operand, is that nobody writes to the other.
    """
    found = [_before_cast(versions, side) for side in (key, value)]
    one, other = found
    if one is None or other is None or one.value.dtype != other.value.dtype:
        return None
    return one, other


def _before_cast(versions: Versions, side: Expression) -> Expression | None:
    node = versions.read(*side.read[0])
    if node is None or not is_cast(versions, node):
        return None
    base = expression(versions, node, versions.calls[node].get("input"))
    if base is None or str(base.value.dtype).removeprefix("torch.") not in NARROW:
        return None
    return replace(base.replayed(side.calls), read=(*base.read, *side.read))
