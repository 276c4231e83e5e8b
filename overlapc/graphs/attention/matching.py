"""Softmax attention as one record, whatever calls spell it, or why it is to stay as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from overlapc.graphs.attention.calling import read_arguments
from overlapc.graphs.attention.functions import Function
from overlapc.graphs.attention.layouts import (
    four_dimensional,
    is_dense,
    is_plain,
    layout_is_read,
    merged_steps,
    takes_groups,
)
from overlapc.graphs.attention.masks import Mask, read_mask
from overlapc.graphs.attention.modules import CLOSED, MODULE
from overlapc.graphs.attention.narrow import unwidened
from overlapc.graphs.attention.norms import Norms, norms_of
from overlapc.graphs.attention.prefixes import Prefix, prefix_of
from overlapc.graphs.attention.repeats import unrepeated
from overlapc.graphs.attention.scores import Scores, Step, read_scores, tensors_of
from overlapc.graphs.attention.sinks import Sinks
from overlapc.graphs.attention.softmaxes import Softmax, read_softmax
from overlapc.graphs.attention.spelling import Call, read_call, tensor_of
from overlapc.graphs.attention.tensors import Expression, expression, is_cast, is_same
from overlapc.graphs.attention.versions import Versions
from overlapc.graphs.attention.weights import Weights, read_weights, weighs_values
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.nodes import where

log = logging.getLogger(__name__)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Each holds the range of those before it."""


@dataclass(frozen=True)
class Attention:
    """``softmax(scale * query @ key^T + mask) @ value``, the heads of key and value repeated."""

    node: fx.Node
    """What gives the result."""
    query: Expression
    """``[batch, groups * heads, rows, dim]``"""
    key: Expression
    """``[batch, heads, keys, dim]``"""
    value: Expression
    """``[batch, heads, keys, value_dim]``"""
    groups: int
    """Heads of ``query`` that share one of ``key``."""
    scale: float
    mask: Mask
    chain: tuple[fx.Node, ...]
    """The calls that the rewrite makes superfluous, in their order."""
    frame: tuple[Any, ...]
    """Leading sizes of scores, as the softmax reads them."""
    batch: tuple[Any, ...]
    """Leading sizes of the result, before ``order``."""
    order: tuple[int, ...]
    """Dimensions of the result in the order of ``node``; empty: as they are."""
    is_contiguous: bool
    """Somebody reads strides of the result: before ``order`` it is to be contiguous."""
    repeated: tuple[Expression, Expression] | None = None
    """Keys and values as the graph repeats their heads; None where it does not."""
    length: Prefix | str = ""
    """What the mask says, where that is which keys of a cache are valid, or why it is not; empty
    where it does not look like it."""
    program: tuple[Step, ...] = ()
    """What is done to scaled scores before ``mask``."""
    sinks: Sinks | None = None
    norms: Norms | str = ""
    """What made rows of queries and keys of a length, or why nothing did."""
    narrow: tuple[Expression, Expression] | None = None
    """Keys and values in the narrower dtype that they are widened from; None where they are not."""

    @property
    def prefix(self) -> Prefix | None:
        """Which keys of a cache are valid, where the mask says that."""
        return self.length if isinstance(self.length, Prefix) else None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All that is done to scaled scores."""
        return (*self.program, *self.mask.parts)

    @property
    def untold(self) -> Refusal | None:
        """Why torch's attention cannot be told the same; a kernel of our own can."""
        if self.sinks is not None:
            reason = "A column that is no key takes part in the softmax, not in torch's attention."
            return Refusal(self.node, "sinks", reason)
        if self.program:
            names = ", ".join(s.name for s in self.program if isinstance(s, Function))
            reason = f"Scores go through {names}, which torch's attention cannot do."
            return Refusal(self.node, "score_function", reason)
        return self.mask.untold

    @property
    def is_trained(self) -> bool:
        """A gradient is wanted of queries, keys or values, or of what scores are made of."""
        beside = (tensor for step in self.program for tensor in tensors_of(step))
        sinks = (self.sinks.tensor,) if self.sinks else ()
        sides = (self.query, self.key, self.value, *beside, *sinks)
        return torch.is_grad_enabled() and any(side.value.requires_grad for side in sides)

    @property
    def for_torch(self) -> Attention:
        """The same with heads repeated where no fused kernel of torch's takes them once."""
        if self.repeated is None or takes_groups(self.query, self.mask.says == "given"):
            return self
        key, value = self.repeated
        return replace(self, key=key, value=value, groups=1, repeated=None)


@dataclass(frozen=True)
class Fused:
    """A call of torch's own attention."""

    node: fx.Node
    query: Expression
    key: Expression
    value: Expression
    """With each head once; all three as of ``Attention``."""
    groups: int
    """How often the graph repeats heads that torch's kernel takes once."""
    spelled: Attention | Refusal
    """The same as one that is spelled out, for a kernel of our own, or why it is none."""


Site = Attention | Fused | Refusal
ROOTS = ("softmax", "exp", "scaled_dot_product_attention", MODULE, *CLOSED)
"""Calls that an attention has exactly one of."""


def has_attention(graph: fx.Graph) -> bool:
    """Return whether a graph has a site; quick where it has no call of ``ROOTS``."""
    try:
        calls = (read_call(node) for node in graph.nodes)
        has_root = any(call is not None and call.name in ROOTS for call in calls)
        return has_root and next(find_sites(graph), None) is not None
    except Exception:  # the program is compiled without us
        log.exception("a fault of overlapc: attention is not looked for in a graph")
        return False


def find_sites(graph: fx.Graph) -> Iterator[tuple[fx.Node, Site]]:
    """Yield every softmax attention of a graph, by its softmax or its one call."""
    versions = Versions(graph)
    for node, call in list(versions.calls.items()):
        try:
            found = _read_site(versions, call)
        except Exception as error:  # nothing is changed: the program is compiled without us
            log.exception("a fault of overlapc at %s", where(node))
            reason = f"A fault of overlapc, which its log tells, please report it: {error!r}."
            found = Refusal(node, "internal", reason)
        if found is not None:
            yield node, found


def _read_site(versions: Versions, call: Call) -> Attention | Fused | Refusal | None:
    softmax = read_softmax(versions, call)
    if softmax is not None and weighs_values(versions, softmax.node):
        return _match(versions, softmax)
    if call.name == "scaled_dot_product_attention":
        return _read_fused(versions, call)
    if call.name == MODULE and call.node.users:
        reason = "nn.MultiheadAttention is one call here, and is read as what it calls."
        return Refusal(call.node, "multi_head_module", reason)
    if call.name in CLOSED:
        reason = f"{call.name} is a kernel of torch's for more than the attention."
        return Refusal(call.node, "multi_head_module", reason)
    return None


def _match(versions: Versions, softmax: Softmax) -> Attention | Refusal | None:
    scores = read_scores(versions, softmax)
    if scores is None:
        return None
    if not softmax.is_over_keys:
        reason = "Its softmax is over another dimension than the keys."
        return Refusal(softmax.node, "softmax_dim", reason)
    has_sinks = isinstance(scores, Scores) and scores.sinks is not None
    weights = read_weights(versions, softmax, has_sinks=has_sinks)
    for part in (scores, weights):
        if isinstance(part, Refusal):
            return part
    assert isinstance(scores, Scores)
    assert isinstance(weights, Weights)
    return _assemble(versions, softmax, scores, weights)


def _assemble(
    versions: Versions, softmax: Softmax, scores: Scores, weights: Weights
) -> Attention | Refusal:
    node, frame = weights.product.node, scores.frame
    calls = {*scores.nodes, *softmax.nodes, *weights.nodes}
    chain = tuple(sorted(calls, key=versions.index.__getitem__))
    values = weights.product.right.shaped(weights.product.batch, frame)
    refusal = _why_not_alone(chain, node) or _why_not_dtypes(softmax, scores, weights)
    if refusal:
        return refusal
    dtype = values.value.dtype
    sides = [
        _in_dtype(versions, side, dtype)
        for side in (scores.product.left, scores.product.right.transposed())
    ]
    if any(side is None for side in sides):
        reason = "Queries and keys have another dtype than the values."
        return Refusal(node, "mixed_dtypes", reason)
    query, key = (side.shaped(scores.product.batch, frame) for side in sides if side is not None)
    rows, keys = query.shape[-2], key.shape[-2]
    mask = read_mask(versions, scores.masks, dtype, rows, keys)
    if isinstance(mask, Refusal):
        return mask
    if softmax.is_by_exp and not scores.is_shifted and mask.dead == "mean":
        reason = "Its exponentials of a row that keeps no key are zero, and so is their sum."
        return Refusal(node, "dead_rows", reason)
    flat = four_dimensional(versions, query, key, values, mask, frame)
    if isinstance(flat, Refusal):
        return flat
    is_read = layout_is_read(versions, node)
    if is_read and not is_dense(node, weights.product.order):
        reason = "Somebody reads the strides of its result, which has gaps or an order of its own."
        return Refusal(node, "layout_read", reason)
    found = Attention(
        node,
        flat.query,
        flat.key,
        flat.value,
        flat.groups,
        scores.factor,
        flat.mask,
        chain,
        frame,
        weights.product.batch,
        weights.product.order,
        is_read,
        flat.repeated,
        prefix_of(versions, flat.mask, rows, keys),
        merged_steps(scores.program, frame),
        scores.sinks,
    )
    return _checked(versions, found)


def _why_not_alone(chain: tuple[fx.Node, ...], last: fx.Node) -> Refusal | None:
    inside = set(chain)
    for node in chain:
        others = [user for user in node.users if user not in inside]
        if node is not last and others:
            reason = (
                f"Scores or weights are read by {len(others)} others, who need them as they are."
            )
            return Refusal(node, "scores_read", reason)
    return None


def _why_not_dtypes(softmax: Softmax, scores: Scores, weights: Weights) -> Refusal | None:
    for product in (scores.product, weights.product):
        value = tensor_of(product.node)
        sides = (product.left.value, product.right.value)
        if value is None or any(not isinstance(side, FakeTensor) for side in (value, *sides)):
            return _no_plain_tensors(product.node, (value, *sides))
        if value.dtype not in DTYPES or any(side.dtype not in DTYPES for side in sides):
            return Refusal(product.node, "dtype", f"Attention in {value.dtype} has no kernel.")
        if any(side.dtype != value.dtype for side in sides):
            reason = "Under autocast a product has another dtype than its operands."
            return Refusal(product.node, "autocast", reason)
    return _why_not_range(softmax, scores, weights.product.right.value.dtype)


def _no_plain_tensors(node: fx.Node, values: Sequence[object]) -> Refusal:
    names = {type(value).__name__ for value in values if not isinstance(value, FakeTensor)}
    reason = f"Its operands are of {', '.join(sorted(names))}, and whose rules hold is not known"
    remedy = "on parts that are plain tensors, such as to_local gives, it would be read"
    return Refusal(node, "tensor_subclass", f"{reason}: {remedy}.")


def _why_not_range(softmax: Softmax, scores: Scores, own: torch.dtype) -> Refusal | None:
    """Scores may only be widened: in a narrower dtype a mask that was finite may be infinite."""
    values = [tensor_of(node) for node in (*scores.nodes, softmax.node)]
    floats = [value.dtype for value in values if value is not None and value.dtype in DTYPES]
    widths = list(map(DTYPES.index, floats))
    if widths != sorted(widths):
        reason = (
            "Scores are narrowed before their softmax, where a finite mask may become infinite."
        )
        return Refusal(softmax.node, "narrowed_scores", reason)
    if DTYPES[widths[-1]] == torch.float64 != own:
        reason = "Its softmax is in float64, and torch's attention computes in float32."
        return Refusal(softmax.node, "wide_softmax", reason)
    return None


def _in_dtype(versions: Versions, side: Expression, dtype: torch.dtype) -> Expression | None:
    """A side in the dtype of the values, where it was widened from that: the same numbers."""
    if side.value.dtype == dtype:
        return side
    node = versions.read(*side.read[0])
    call = versions.calls.get(node) if node is not None else None
    if call is None or not is_cast(versions, call.node):
        return None
    base = expression(versions, call.node, call.get("input"))
    is_wider = torch.finfo(side.value.dtype).bits > torch.finfo(dtype).bits
    if base is None or base.value.dtype != dtype or not is_wider:
        return None
    return replace(base.replayed(side.calls), read=(*base.read, *side.read))


def _checked(versions: Versions, found: Attention) -> Attention | Refusal:
    refusal = _why_not_computed(versions, found)
    if refusal:
        return refusal
    norms = norms_of(versions, found.query, found.key)
    return replace(found, norms=norms, narrow=unwidened(versions, found.key, found.value))


def _why_not_computed(versions: Versions, found: Attention) -> Refusal | None:
    sizes = (*found.query.shape, *found.key.shape, *found.value.shape)
    if any(isinstance(size, int) and size == 0 for size in sizes):
        return Refusal(found.node, "empty", "It has no keys, no rows or no columns.")
    return _why_not_readable(versions, found)


def _why_not_readable(versions: Versions, found: Attention) -> Refusal | None:
    """Operands have to be, where the result is computed, what they were where they were read."""
    beside = [tensor for step in found.steps for tensor in tensors_of(step)]
    sinks = (found.sinks.tensor,) if found.sinks else ()
    sides = (found.query, found.key, found.value, *beside, *sinks)
    varying = [size for size in found.batch if isinstance(size, torch.SymInt)]
    is_regrouped = not is_same(found.batch, found.frame)
    if any(side.has_symbols for side in sides) or (is_regrouped and len(varying) > 1):
        reason = "It is regrouped by sizes that vary."
        return Refusal(found.node, "symbolic_layout", reason)
    for side in sides:
        for reader, source in side.read:
            writer = versions.changes(source, after=reader, before=found.node)
            if writer is not None and writer not in found.chain:
                reason = "An operand is written to before the result is computed."
                return Refusal(writer, "mutated_operand", reason)
    return None


def _read_fused(versions: Versions, call: Call) -> Fused | Refusal:
    names = ("query", "key", "value")
    sides = [expression(versions, call.node, call.get(name)) for name in names]
    query, key, value = sides
    if query is None or key is None or value is None:
        reason = "An operand is no tensor, or was written through another view."
        return Refusal(call.node, "hidden_write", reason)
    spelled = _as_spelled_out(versions, call, query, key, value)
    key, groups = unrepeated(versions, key)
    value, others = unrepeated(versions, value)
    is_grouped = call.get("enable_gqa") is True
    has_mask = call.get("attn_mask") is not None
    is_alike = groups == others and is_same(key.shape[:2], value.shape[:2])
    if is_grouped or not is_alike or not takes_groups(query, has_mask):
        groups = 1
    for side in (key, value):
        for reader, source in side.read:
            if groups > 1 and versions.changes(source, after=reader, before=call.node):
                groups = 1
    return Fused(call.node, query, key, value, groups, spelled)


def _as_spelled_out(
    versions: Versions, call: Call, query: Expression, key: Expression, value: Expression
) -> Attention | Refusal:
    """A call of torch's attention as the softmax and products that it stands for."""
    sides = (query, key, value)
    if any(not isinstance(side.value, FakeTensor) for side in sides):
        return _no_plain_tensors(call.node, [side.value for side in sides])
    said = read_arguments(versions, call, query, key)
    if isinstance(said, Refusal):
        return said
    frame = query.shape[:-2]
    groups, repeated = said.groups, None
    if groups == 1:
        flat = four_dimensional(versions, query, key, value, said.mask, frame)
        if isinstance(flat, Refusal):
            return flat
        key, value, groups, repeated = flat.key, flat.value, flat.groups, flat.repeated
    is_read, result = layout_is_read(versions, call.node), tensor_of(call.node)
    if result is None or (is_read and not is_plain(result)):
        reason = "Somebody reads the strides of its result, which has gaps or an order of its own."
        return Refusal(call.node, "layout_read", reason)
    if result.dtype != query.value.dtype:
        reason = "Under autocast its result has another dtype than its operands."
        return Refusal(call.node, "autocast", reason)
    found = Attention(
        call.node,
        query,
        key,
        value,
        groups,
        said.scale,
        said.mask,
        (call.node,),
        frame,
        frame,
        (),
        is_read and result.is_contiguous(),
        repeated,
        prefix_of(versions, said.mask, query.shape[-2], key.shape[-2]),
    )
    return _checked(versions, found)
