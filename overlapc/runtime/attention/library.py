"""An attention of a spec by torch's fused one, where that can say the same.

On processors it reads the keys that a cache holds and no others: their number is at hand there. On
GPUs to ask for it would wait for the device, so there lengths become a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F

from overlapc.codegen.attention.spec import ALIGNMENTS, AttentionSpec
from overlapc.codegen.epilogue import Call, Ref
from overlapc.planning.attention.fills import FINITE_FILL, WEAKEST_FILL
from overlapc.planning.attention.library_calls import MOST_CUT_ROWS
from overlapc.runtime.attention.program import scores_of, seen_by
from overlapc.runtime.attention.with_sums import fused_with_sums

ADDS = "aten.add.Tensor"
FILLS = ("aten.where.ScalarOther", "aten.where.ScalarSelf")
CUT_ROWS = 64
"""Of a causal attention on processors, of one call of torch's: as many as its kernel takes at a
time of fewer than 768 rows."""
LOOKED_THROUGH = 8
"""Numbers of keys for each boolean of a mask from which on it is looked through; chosen."""


def why_not_fused(spec: AttentionSpec, device: str) -> str:
    """Return why torch's fused attention cannot compute a spec on a type of device; empty if it
    can."""
    if spec.sinks and device != "cpu":
        return "a sink takes part in the softmax"
    is_padded = device == "cpu" and spec.value_dim < spec.head_dim
    if spec.head_dim != spec.value_dim and not is_padded:
        return f"heads of {spec.head_dim} meet values of {spec.value_dim}"
    calls = spec.scores.calls[1:] if spec.scores else ()
    others = {call.op for index, call in enumerate(calls) if not _is_mask(call, index)}
    if others:
        return f"{min(others)} changes its scores"
    *before, last = (_fill_of(call) for call in calls) if calls else (None,)
    scores = [value for value in before if value is not None and value > FINITE_FILL]
    scores += [last] if last is not None and last > WEAKEST_FILL else []
    return f"{scores[0]} is put in for scores" if scores else ""


def _fill_of(call: Call) -> float | None:
    """The number that a mask puts in for scores."""
    numbers = [x for x in call.arguments if _is_number(x)]
    return numbers[0] if numbers and call.op in FILLS else None


def _is_mask(call: Call, index: int) -> bool:
    """Whether a call adds something to scores of value ``index``, or puts something in for them."""
    score = Ref("value", index)
    values = [x for x in call.arguments if isinstance(x, Ref) and x.kind == "value"]
    return call.op in (ADDS, *FILLS) and values == [score]


def _is_number(argument: object) -> TypeGuard[float]:
    return isinstance(argument, (int, float)) and not isinstance(argument, bool)


def attention_by_fused(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the result, rows before heads in memory; ``why_not_fused`` has to be empty."""
    on_processor = query.device.type == "cpu"
    if not (query.numel() and key.numel()):
        # A sum of nothing is zero, where torch's fused attention over no key is NaN.
        batch, heads, rows, _ = query.shape
        return query.new_zeros((batch, rows, heads, value.shape[-1])).transpose(1, 2)
    if lengths is not None and on_processor:
        key, value, inputs, lengths = _cut(key, value, inputs, lengths)
    columns, missing = value.shape[-1], key.shape[-1] - value.shape[-1]
    value = F.pad(value, (0, missing)) if missing else value  # its kernel has one number of columns
    out = _fused(spec, query, key, value, inputs, lengths, sinks, takes_masked_groups=on_processor)
    return out[..., :columns].transpose(1, 2).contiguous().transpose(1, 2) if missing else out


def _fused(
    spec: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    lengths: torch.Tensor | None,
    sinks: torch.Tensor | None = None,
    *,
    takes_masked_groups: bool,
) -> torch.Tensor:
    keys = key.shape[2]
    # Torch's kernel for processors scales after it has put minus infinity where a later key is.
    may_be_causal = not spec.program and lengths is None and spec.scale > 0
    is_causal = may_be_causal and _is_causal(spec, query.shape[2], keys)
    if is_causal and sinks is None and _is_cut_by_rows(query, key):
        return by_rows(spec, query, key, value)
    mask = None if is_causal else mask_of(spec, query, keys, inputs, lengths)
    if mask is not None and spec.program and lengths is None and query.device.type == "cpu":
        key, value, mask = _cut_by_mask(key, value, mask)
    if sinks is not None:
        out, _ = fused_with_sums(query, key, value, mask, spec.scale, sinks, is_causal=is_causal)
        absent = sinks == -math.inf
        if mask is None or spec.dead != "nan" or not absent.any():
            return out
        return out.masked_fill(_without_keys(mask) & absent[:, None, None], math.nan)
    takes_groups = takes_masked_groups or mask is None
    if not takes_groups:
        key, value = (side.repeat_interleave(spec.groups, 1) for side in (key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=spec.scale,
        enable_gqa=takes_groups and spec.groups > 1,
    )  # fmt: skip
    if mask is not None and spec.dead == "nan":
        out = out.masked_fill(_without_keys(mask), math.nan)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _without_keys(mask: torch.Tensor) -> torch.Tensor:
    """Which rows have minus infinity alone, ``[..., rows, 1]``."""
    kept = mask if mask.dtype == torch.bool else mask > -math.inf
    return ~kept.any(-1, keepdim=True)


def _is_cut_by_rows(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether to call torch's for some rows at a time: on processors, and not where a key is no
    number, whose score no minus infinity that is added takes from the rows before it."""
    if query.device.type != "cpu" or not CUT_ROWS < query.shape[2] <= MOST_CUT_ROWS:
        return False
    return math.isfinite(float(key.sum(dtype=torch.promote_types(key.dtype, torch.float32))))


def by_rows(
    spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Return causal attention by a call for every ``CUT_ROWS`` rows, over the keys that some see:
    torch's own computes scores above the diagonal, which it skips by 512 keys alone."""
    batch, heads, rows, dim = query.shape
    width = -(-rows // CUT_ROWS) * CUT_ROWS
    # What the last rows add to scores; those before them add as much to keys before.
    later = query.new_full((CUT_ROWS, width), -math.inf).triu_(width - CUT_ROWS + 1)
    out = query.new_empty((batch, rows, heads, dim))
    for start in range(0, rows, CUT_ROWS):
        stop = min(start + CUT_ROWS, rows)
        seen, shift = min(stop, key.shape[2]), width - CUT_ROWS - start
        part = F.scaled_dot_product_attention(
            query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen],
            attn_mask=later[: stop - start, shift : shift + seen], scale=spec.scale,
            enable_gqa=spec.groups > 1,
        )  # fmt: skip
        out[:, start:stop] = part.transpose(1, 2)
    return out.transpose(1, 2)


def _cut(
    key: torch.Tensor, value: torch.Tensor, inputs: Sequence[torch.Tensor], lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor], torch.Tensor | None]:
    """Operands up to the longest sequence; without lengths where all are as long.

    At least one key stays, so that it is a mask that leaves it out.
    """
    keys, known = key.shape[2], lengths.tolist()
    longest = max(min(max(known), keys), 1)
    key, value = (side[:, :, :longest] for side in (key, value))
    inputs = [x[..., :longest] if x.dim() and x.shape[-1] == keys else x for x in inputs]
    is_whole = all(length == longest for length in known)
    return key, value, inputs, None if is_whole else lengths


def _cut_by_mask(
    key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Operands up to the last key that has a part in any row; whole where none has.

    A mask that is not small beside the keys is not looked through.
    """
    if LOOKED_THROUGH * mask.numel() > key.numel():
        return key, value, mask
    parts = mask if mask.dtype == torch.bool else _has_part(mask)
    kept = parts.flatten(0, -2).any(0).nonzero()
    last = int(kept[-1]) + 1 if len(kept) else key.shape[2]
    return key[:, :, :last], value[:, :, :last], mask[..., :last]


def _has_part(added: torch.Tensor) -> torch.Tensor:
    """Which keys may have a weight under numbers that are added: in a row whose every number takes
    the score away, those of a finite one, for it is the mean of their values. NaN is no mask."""
    kept = ~(added <= WEAKEST_FILL)
    is_row_kept = kept.any(-1, keepdim=True)
    return kept if is_row_kept.all() else torch.where(is_row_kept, kept, added != -math.inf)


def _is_causal(spec: AttentionSpec, rows: int, keys: int) -> bool:
    """Whether it is what torch calls causal: row r sees the keys up to the r-th."""
    starts_together = spec.align == ALIGNMENTS[0] or rows == keys
    return rows > 1 and spec.after == 0 and spec.before is None and starts_together


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
    fill = _fill_of(spec.scores.calls[-1]) if spec.scores else None
    if fill is None or not FINITE_FILL < fill <= WEAKEST_FILL:
        return added
    is_fill = added == torch.full((), fill, dtype=added.dtype, device=added.device)
    others = (added <= WEAKEST_FILL) & (added >= FINITE_FILL) & ~is_fill
    return added.masked_fill(is_fill & ~others.any(-1, keepdim=True), FINITE_FILL)
