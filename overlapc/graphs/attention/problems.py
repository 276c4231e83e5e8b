"""What a planner is told of an attention: numbers in place of nodes."""

from __future__ import annotations

from overlapc.graphs.attention.matching import Attention, Fused
from overlapc.graphs.nodes import hint_of
from overlapc.planning.attention import AttentionProblem
from overlapc.runtime.attention import runs_kernels


def problem_of(found: Attention | Fused) -> AttentionProblem:
    """Return the sizes of an attention, hints where they vary."""
    query, key, value = (side.value for side in (found.query, found.key, found.value))
    sizes = [hint_of(size) for size in query.shape]
    is_spelled = isinstance(found, Attention)
    untold = found.untold if is_spelled else None
    return AttentionProblem(
        batch=sizes[0] if len(sizes) == 4 else 1,
        heads=sizes[-3] if len(sizes) > 2 else 1,
        groups=found.groups,
        rows=sizes[-2],
        keys=hint_of(key.shape[-2]),
        head_dim=sizes[-1],
        value_dim=hint_of(value.shape[-1]),
        dtype=str(query.dtype).removeprefix("torch."),
        device=query.device.type,
        mask=found.mask.says if is_spelled else "given",
        is_mask_trained=is_spelled and found.mask.is_trained,
        is_dense=all(hint_of(side.stride(-1)) == 1 for side in (query, key, value)),
        is_fused=not is_spelled,
        dead=found.mask.dead if is_spelled else "",
        is_trained=is_spelled and found.is_trained,
        untold=(untold.code, untold.reason) if untold else None,
        runs_kernels=runs_kernels(query.device.type),
    )
