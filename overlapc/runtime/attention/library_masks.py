"""What leaves keys out of a spec's attention, as torch's ops are told: a mask, or a diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch

from overlapc.codegen.attention.spec import ALIGNMENTS, AttentionSpec
from overlapc.codegen.epilogue import Call
from overlapc.planning.attention.fills import FINITE_FILL, WEAKEST_FILL
from overlapc.runtime.attention.program import scores_of, seen_by

ADDS = "aten.add.Tensor"
FILLS = ("aten.where.ScalarOther", "aten.where.ScalarSelf")
LOOKED_THROUGH = 8
"""Numbers of keys for each boolean of a mask from which on it is looked through; chosen."""


def fill_of(call: Call) -> float | None:
    """The number that a mask puts in for scores."""
    numbers = [x for x in call.arguments if _is_number(x)]
    return numbers[0] if numbers and call.op in FILLS else None


def _is_number(argument: object) -> TypeGuard[float]:
    return isinstance(argument, (int, float)) and not isinstance(argument, bool)


def cut_by_mask(
    key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Operands up to the last key that has a part in any row; whole where none has.

    A mask that is not small beside the keys is not looked through.
    """
    if LOOKED_THROUGH * mask.numel() > key.numel():
        return key, value, mask
    parts = mask if mask.dtype == torch.bool else has_part(mask)
    kept = parts.flatten(0, -2).any(0).nonzero()
    last = int(kept[-1]) + 1 if len(kept) else key.shape[2]
    return key[:, :, :last], value[:, :, :last], mask[..., :last]


def has_part(added: torch.Tensor) -> torch.Tensor:
    """Which keys may have a weight under numbers that are added: in a row whose every number takes
    the score away, those of a finite one, for it is the mean of their values. NaN is no mask."""
    kept = ~(added <= WEAKEST_FILL)
    is_row_kept = kept.any(-1, keepdim=True)
    return kept if is_row_kept.all() else torch.where(is_row_kept, kept, added != -math.inf)


def told(
    spec: AttentionSpec,
    query: torch.Tensor,
    keys: int,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
) -> tuple[bool, torch.Tensor | None]:
    """Return whether it is what torch calls causal, row r sees the keys up to the r-th, and else
    its mask, if any: as of ``mask_of``."""
    rows = query.shape[2]
    starts_together = spec.align == ALIGNMENTS[0] or rows == keys
    is_band = rows > 1 and spec.after == 0 and spec.before is None and starts_together
    # Torch's kernel for processors scales after it has put minus infinity where a later key is.
    is_causal = is_band and not spec.program and lengths is None and spec.scale > 0
    return is_causal, None if is_causal else mask_of(spec, query, keys, inputs, lengths)


def mask_of(
    spec: AttentionSpec,
    query: torch.Tensor,
    keys: int,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
) -> torch.Tensor | None:
    """Booleans that keep where all it does is to leave keys out, else float32 that is added."""
    rows = query.shape[2]
    sees_all = rows == 1 and spec.align == ALIGNMENTS[1] and spec.before is None
    seen = None
    if lengths is not None or not sees_all:
        seen = seen_by(spec, rows, keys, lengths, query.device)
        seen = None if seen is None else seen.expand(*seen.shape[:-2], rows, keys)
    if not spec.scores:
        return seen
    wide = torch.promote_types(query.dtype, torch.float32)
    nothing = torch.zeros((1, 1, 1, 1), dtype=wide, device=query.device)
    added = scores_of(spec, nothing, inputs)
    added = added.expand(*added.shape[:2], rows, keys)
    if all(call.op in FILLS and -math.inf in call.arguments for call in spec.scores.calls[1:]):
        kept = added > -math.inf
        return kept if seen is None else kept & seen
    added = _lowered(spec, added)
    return added if seen is None else added.masked_fill(~seen, -math.inf)


def _lowered(spec: AttentionSpec, added: torch.Tensor) -> torch.Tensor:
    """Masks of which a weak fill is a number that scores are lost in: a row of it alone is uniform.
    In a row of other weak numbers too it stays, for which is less tells what that gives."""
    fill = fill_of(spec.scores.calls[-1]) if spec.scores else None
    if fill is None or not FINITE_FILL < fill <= WEAKEST_FILL:
        return added
    is_fill = added == torch.full((), fill, dtype=added.dtype, device=added.device)
    others = (added <= WEAKEST_FILL) & (added >= FINITE_FILL) & ~is_fill
    return added.masked_fill(is_fill & ~others.any(-1, keepdim=True), FINITE_FILL)


def without_keys(mask: torch.Tensor) -> torch.Tensor:
    """Which rows have minus infinity alone, ``[..., rows, 1]``."""
    kept = mask if mask.dtype == torch.bool else mask > -math.inf
    return ~kept.any(-1, keepdim=True)
