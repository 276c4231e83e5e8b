"""What a planner is told of an attention: numbers in place of nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from overlapc.errors import KernelError
from overlapc.graphs.attention.known_scores import scores_of
from overlapc.graphs.attention.placing import inputs_of, spec_of
from overlapc.graphs.attention.reading.varying import varies
from overlapc.graphs.attention.scores.steps import Bias
from overlapc.graphs.attention.site import Attention, Fused
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.values import hint_of
from overlapc.planning.attention.own import most_columns
from overlapc.planning.attention.policy import UNKNOWN
from overlapc.planning.attention.problem import AttentionProblem
from overlapc.runtime.attention.gradients import why_no_gradient
from overlapc.runtime.attention.kernels import (
    DecodeWay,
    architecture,
    decode_for,
    multiprocessors,
)
from overlapc.runtime.kernel_attempts import runs_kernels
from overlapc.runtime.planned_devices import planned_on

Sizes = tuple[int | torch.SymInt, ...]
NO_WEIGHTS: Mapping[fx.Node, torch.Tensor] = {}


def problem_of(
    found: Attention | Fused, weights: Mapping[fx.Node, torch.Tensor] = NO_WEIGHTS
) -> AttentionProblem:
    """Return the sizes of an attention, hints where they vary; weights as of ``scores_of``."""
    problem = _problem(found, weights)
    own = found if isinstance(found, Attention) else found.spelled
    latent = _latent(own) if isinstance(own, Attention) else None
    return replace(problem, latent=_problem(latent, weights)) if latent else problem


def _problem(found: Attention | Fused, weights: Mapping[fx.Node, torch.Tensor]) -> AttentionProblem:
    query, key, value = (side.value for side in (found.query, found.key, found.value))
    is_spelled = isinstance(found, Attention)
    own = found if is_spelled else found.spelled
    flat = found if isinstance(own, Refusal) else own
    sizes = [hint_of(size) for size in flat.query.shape]
    device = planned_on(query.device)
    way = None if isinstance(own, Refusal) else _decode(own)
    untold = found.untold if is_spelled else None
    return AttentionProblem(
        batch=sizes[0] if len(sizes) == 4 else 1,
        heads=sizes[-3] if len(sizes) > 2 else 1,
        groups=flat.groups,
        rows=sizes[-2],
        keys=hint_of(key.shape[-2]),
        head_dim=hint_of(found.head_dim) if is_spelled else sizes[-1],
        value_dim=hint_of(value.shape[-1]),
        dtype=str(query.dtype).removeprefix("torch."),
        device=device.type,
        mask="given" if isinstance(own, Refusal) else own.mask.says,
        mask_comes="given" if isinstance(own, Refusal) else own.mask.comes or "given",
        is_mask_trained=is_spelled and found.mask.is_trained,
        is_dense=all(hint_of(side.stride(-1)) == 1 for side in (query, key, value)),
        is_fused=not is_spelled and not found.unfused,
        unfused=found.unfused,
        undoes_repeats=not is_spelled and found.groups > 1,
        why_only_torch=own.reason if isinstance(own, Refusal) else "",
        prefix=isinstance(own, Attention) and own.prefix is not None,
        is_kept_by_mask=isinstance(own, Attention) and _is_kept_by_mask(own),
        why_whole=own.length if isinstance(own, Attention) and isinstance(own.length, str) else "",
        dead=found.mask.dead if is_spelled else "",
        is_trained=isinstance(own, Attention) and own.is_trained,
        is_plain=isinstance(own, Attention) and not own.program,
        rounds=is_spelled and found.rounds,
        untold=(untold.code, untold.reason) if untold else None,
        why_no_gradient=_why_no_gradient(own) if isinstance(own, Attention) else "",
        runs_kernels=runs_kernels(device.type),
        architecture=architecture(device),
        scores=UNKNOWN if isinstance(own, Refusal) else scores_of(own, weights),
        varying=_varying(flat.query.shape, tuple(key.shape), tuple(value.shape)),
        multiprocessors=multiprocessors(device),
        threads=torch.get_num_threads(),
        splits=way.splits.count if way else 0,
        reads=way.blocks.count if way else 1,
        is_latent=is_spelled and found.is_latent,
        is_broadcast=isinstance(own, Attention) and own.is_broadcast,
        narrow=_narrow(own) if isinstance(own, Attention) else "",
    )


def _varying(query: Sizes, key: Sizes, value: Sizes) -> tuple[str, ...]:
    """Names of the sizes of an attention that are symbols."""
    named = {
        "batch": query[:-3],
        "heads": (*query[-3:-2], *key[-3:-2]),
        "rows": query[-2:-1],
        "keys": key[-2:-1],
        "head_dim": (query[-1], key[-1], value[-1]),
    }
    return tuple(name for name, sizes in named.items() if any(map(varies, sizes)))


def _is_kept_by_mask(own: Attention) -> bool:
    """Whether a tensor known when the graph runs may leave keys out, and nothing else is done: of
    booleans, or of what is added."""
    mask = own.mask
    is_alone = len(mask.parts) == 1 and not own.program and own.sinks is None
    if not is_alone or mask.says != "given" or not mask.dead:
        return False
    part = mask.parts[0]
    return isinstance(part, Bias) or part.value == -math.inf


def _latent(own: Attention) -> Attention | None:
    """What reads keys and values as one, where a kernel does: of few rows, and not too wide."""
    latent = own.latent
    way = _decode(latent) if latent is not None else None
    if latent is None or way is None:
        return None
    name = str(latent.query.value.dtype).removeprefix("torch.")
    most = most_columns(name, way.splits.count)
    return latent if hint_of(latent.head_dim) <= most else None


def _narrow(found: Attention) -> str:
    return str(found.narrow.key.side.value.dtype).removeprefix("torch.") if found.narrow else ""


def _decode(found: Attention) -> DecodeWay | None:
    """How few rows are computed, where sizes are as hinted; None of many."""
    query, *others = (side.value for side in (found.query, found.key, found.value))
    q, k, v = (tuple(map(hint_of, side.shape)) for side in (query, *others))
    whole = (*k[:3], hint_of(found.head_dim))
    name = str(query.dtype).removeprefix("torch.")
    return decode_for(name, q, whole, v, planned_on(query.device), shares_values=found.is_latent)


def _why_no_gradient(found: Attention) -> str:
    if not torch.is_grad_enabled():
        return ""
    of_inputs = [side.value.requires_grad for side in inputs_of(found)]
    if not found.is_trained and not any(of_inputs):
        return ""
    try:
        return why_no_gradient(spec_of(found, "online"), of_inputs)
    except KernelError:
        return ""  # no kernel for it at all: there are other reasons
