"""Puts our own attention in the place of one that is spelled out. It chooses nothing."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.attention.matching import Attention
from overlapc.graphs.attention.prefixes import Prefix
from overlapc.graphs.attention.rewriting import as_spelled
from overlapc.graphs.attention.scores import Bias, Fill
from overlapc.graphs.attention.tensors import Expression
from overlapc.graphs.nodes import add_call
from overlapc.runtime.attention_masks import Added, AttentionSpec, Filled, Input, program_of

OF_SHAPE = {(False, False): "matrix", (False, True): "column", (True, False): "vector"}
"""By whether an input of scores has one row, and one key; else it is one number of a head."""


def spec_of(found: Attention, policy: str) -> AttentionSpec:
    """Return what a kernel is to compute; KernelError where none can."""
    query, value = found.query.value, found.value.value
    prefix = found.prefix
    return AttentionSpec(
        dtype=_name(query.dtype),
        head_dim=int(query.shape[-1]),
        value_dim=int(value.shape[-1]),
        groups=found.groups,
        scale=float(found.scale),
        before=prefix.before if prefix else None,
        after=0 if prefix or found.mask.says == "causal" else None,
        align="bottom_right" if prefix else "top_left",
        lengths=prefix is not None,
        program=program_of([_mask(part) for part in _parts(found)]),
        softmax=policy,
        dead="zero" if found.mask.dead == "zero" else "nan",
        lse=found.is_trained,
        precision="tf32x3" if query.dtype == torch.float32 and not torch.version.hip else "ieee",
    )


Lengths = dict[tuple[fx.Node, object], fx.Node]
"""By positions and batch, the lengths that a graph has: layers that share a mask share them."""


def place(
    graph: fx.Graph, found: Attention, spec: AttentionSpec, site: str, known: Lengths
) -> None:
    """Let one call of ``overlapc.attention`` give the result, and erase the chain."""
    node = found.node
    lengths = _lengths(graph, found.prefix, found.query.shape[0], known) if found.prefix else None
    with graph.inserting_before(node):
        sides = [side.emit(graph) for side in (found.query, found.key, found.value)]
        inputs = [_tensor(part).emit(graph) for part in _parts(found)]
        args = (*sides, inputs, lengths, None, None, str(spec), site)
        both = add_call(graph, torch.ops.overlapc.attention.default, args, node)
        result = add_call(graph, operator.getitem, (both, 0), node)
        result = as_spelled(result, found).emit(graph)
    node.replace_all_uses_with(result)
    for dead in reversed(found.chain):
        if not dead.users:
            graph.erase_node(dead)


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


def _parts(found: Attention) -> tuple[Bias | Fill, ...]:
    """The masks that a kernel has to be given: none where a length says it all."""
    return () if found.prefix else found.mask.parts


def _mask(part: Bias | Fill) -> Added | Filled:
    if isinstance(part, Bias):
        return Added(_input(part.tensor.value), part.factor)
    return Filled(_input(part.condition.value), part.value, part.is_kept)


def _tensor(part: Bias | Fill) -> Expression:
    return part.tensor if isinstance(part, Bias) else part.condition


def _input(value: torch.Tensor) -> Input:
    if value.ndim == 0:
        return Input("scalar", _name(value.dtype))
    row = value.shape[-2] if value.ndim > 1 else 1
    has_one_row = statically_known_true(row == 1)
    has_one_key = statically_known_true(value.shape[-1] == 1)
    return Input(OF_SHAPE.get((has_one_row, has_one_key), "one"), _name(value.dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
