"""Puts our own attention in the place of one that is spelled out. It chooses nothing."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from overlapc.errors import KernelError
from overlapc.graphs.adding import add_call
from overlapc.graphs.attention.known_scores import as_lowered
from overlapc.graphs.attention.masks.bands import Band
from overlapc.graphs.attention.masks.prefixes import Prefix
from overlapc.graphs.attention.reading.tensors import Expression
from overlapc.graphs.attention.rewriting import as_spelled, take_out
from overlapc.graphs.attention.scores.sinks import Sinks
from overlapc.graphs.attention.scores.steps import Step, tensors_of
from overlapc.graphs.attention.site import Attention
from overlapc.graphs.values import hint_of
from overlapc.runtime.attention.masks import AttentionSpec, program_of
from overlapc.runtime.attention.score_watching import attention_text


def spec_of(found: Attention, policy: str, phi: float = 0.0) -> AttentionSpec:
    """Return what a kernel is to compute; KernelError where none can.

    ``phi`` is for a policy that takes a number.
    """
    query, value = found.query.value, found.value.value
    band = band_seen(found)
    return AttentionSpec(
        dtype=_name(query.dtype),
        head_dim=int(found.head_dim),
        value_dim=int(value.shape[-1]),
        groups=found.groups,
        scale=float(found.scale),
        before=band.before,
        after=band.after,
        align=band.align,
        lengths=found.prefix is not None,
        program=program_of(list(map(as_lowered, _steps(found)))),
        sinks=found.sinks is not None,
        softmax=policy,
        bound=phi,
        dead="zero" if found.mask.dead == "zero" else "nan",
        lse=found.is_trained or found.mask.is_trained,
        precision="tf32x3" if query.dtype == torch.float32 and not torch.version.hip else "ieee",
    )


def band_seen(found: Attention) -> Band:
    """Return which keys rows see, beside what tensors say: blocks of others are skipped."""
    prefix = found.prefix
    if prefix is not None and prefix.says_all:
        return Band(prefix.before, 0, "bottom_right")
    if found.mask.says == "causal":
        return Band(None, 0)
    return found.mask.band or Band(None, None)


def text_of(found: Attention) -> str:
    """Return what φ of its heads depends on beside the weights; empty where no kernel can run."""
    try:
        return attention_text(spec_of(found, "online"), hint_of(found.query.shape[1]))
    except KernelError:
        return ""


Lengths = dict[tuple[fx.Node, object], fx.Node]
"""By positions and batch, the lengths that a graph has: layers that share a mask share them."""


def inputs_of(found: Attention) -> list[Expression]:
    """Return what scores are made of beside queries and keys, in the order of the spec."""
    return [part for step in _steps(found) for part in tensors_of(step)]


def place(
    graph: fx.Graph,
    found: Attention,
    spec: AttentionSpec,
    site: str,
    known: Lengths,
    of_heads: Sequence[float] = (),
    *,
    reads_narrow: bool = False,
) -> None:
    """Let one call of ``overlapc.attention`` give the result, and erase the chain.

    ``of_heads`` is φ of each, where the spec's policy takes those; with ``reads_narrow`` keys and
    values are as they were before they were widened.
    """
    node = found.node
    narrow = found.narrow if reads_narrow else None
    if narrow is not None:
        found = replace(found, key=narrow.key.side, value=narrow.value.side)
    operands = operands_of(graph, found, known, of_heads)
    with graph.inserting_before(node):
        scales = narrow.emit_scales(graph, node) if narrow is not None else [None, None]
        args = (*operands, str(spec), site, *(scale for scale in scales if scale is not None))
        both = add_call(graph, torch.ops.overlapc.attention.default, args, node)
        result = add_call(graph, operator.getitem, (both, 0), node)
        result = as_spelled(result, found).emit(graph)
    take_out(graph, found, result)


def operands_of(
    graph: fx.Graph, found: Attention, known: Lengths, of_heads: Sequence[float] = ()
) -> tuple[Any, ...]:
    """Put what ``overlapc.attention`` takes, up to its sinks, before the result."""
    lengths = _lengths(graph, found.prefix, found.query.shape[0], known) if found.prefix else None
    with graph.inserting_before(found.node):
        sides = [side.emit(graph) for side in (found.query, found.key, found.value)]
        if found.rest is not None:
            both = (sides[0], found.rest.emit(graph))
            sides[0] = add_call(graph, torch.cat, (both, -1), found.node)
        inputs = [side.emit(graph) for side in inputs_of(found)]
        sinks = _sinks(found.sinks).emit(graph) if found.sinks else None
        return (*sides, inputs, lengths, list(of_heads) or None, sinks)


def _lengths(graph: fx.Graph, prefix: Prefix, batch: object, known: Lengths) -> fx.Node:
    """Lengths for every site below: rewrites go from the last site to the first."""
    key = prefix.positions, batch if isinstance(batch, int) else None
    if key not in known:
        first = prefix.positions.next
        while first.op == "placeholder":
            first = first.next
        with graph.inserting_before(first):
            known[key] = prefix.emit_lengths(graph, batch)
    return known[key]


def _steps(found: Attention) -> tuple[Step, ...]:
    """What a kernel has to do to scores: no mask where a length or a band says it all."""
    says_all = found.prefix.says_all if found.prefix else found.mask.band is not None
    return found.program if says_all else found.steps


def _sinks(sinks: Sinks) -> Expression:
    return sinks.tensor if sinks.factor == 1 else sinks.tensor.then(torch.mul, sinks.factor)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
