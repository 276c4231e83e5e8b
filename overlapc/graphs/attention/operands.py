"""Operands of an attention: plain tensors, which hold where its result is computed what they held
where they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from overlapc.graphs.attention.latent import latent_of_one
from overlapc.graphs.attention.narrow import Narrow, unwidened
from overlapc.graphs.attention.norms.lengths import norms_of
from overlapc.graphs.attention.reading.tensors import Expression, is_same
from overlapc.graphs.attention.reading.varying import has_sizes, inferred
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.site import Attention
from overlapc.graphs.collectives import Refusal


def checked(versions: Versions, found: Attention) -> Attention | Refusal:
    """Return an attention with what its operands say beside, or why it cannot be computed."""
    refusal = _why_not_computed(versions, found)
    if refusal:
        return refusal
    norms = norms_of(versions, found.query, found.key)
    narrow = _narrow(versions, found)
    return replace(found, norms=norms, narrow=narrow, latent=_latent(versions, found, narrow))


def _narrow(versions: Versions, found: Attention) -> Narrow | None:
    """Keys and values as they were before they were widened, where they still are."""
    narrow = unwidened(versions, found.key, found.value)
    is_same_yet = narrow and _writer(versions, found, narrow.expressions) is None
    return narrow if is_same_yet else None


def _latent(versions: Versions, found: Attention, narrow: Narrow | None) -> Attention | None:
    """The same of keys that begin with their values, where that can be computed, and is not read in
    a wider dtype than without."""
    latent = found.latent or latent_of_one(versions, found)
    if latent is None or _why_not_computed(versions, latent) is not None:
        return None
    own = _narrow(versions, latent)
    if own is not None and not own.is_scaled_alike(versions):
        own = None  # a kernel has one scale for whole keys
    return replace(latent, narrow=own) if own or not narrow else None


def why_empty(node: fx.Node, *sides: Expression) -> Refusal | None:
    """Return the refusal of operands of which one has no element; None where none has."""
    sizes = (size for side in sides for size in side.shape)
    if not any(isinstance(size, int) and size == 0 for size in sizes):
        return None
    return Refusal(node, "empty", "It has no batch, no heads, no rows, no keys or no columns.")


def _why_not_computed(versions: Versions, found: Attention) -> Refusal | None:
    """Operands have to be, where the result is computed, what they were where they were read."""
    sides = found.made_of(found.steps)
    is_regrouped = len(found.frame) > 2 or not is_same(found.batch, found.frame)
    sizes = (inferred(found.batch), inferred(found.frame[1:])) if is_regrouped else ()
    if any(side.has_symbols for side in sides) or not has_sizes(found.node.graph, sizes):
        reason = "It is regrouped by sizes that vary, and that are no inputs of its graph."
        return Refusal(found.node, "symbolic_layout", reason)
    if any(side.value.requires_grad for side in sides) and _is_cut(versions, found, sides):
        reason = "Gradients are not recorded of all of its calls, and would be of what is put in."
        return Refusal(found.node, "gradient_mode", reason)
    writer = _writer(versions, found, sides)
    if writer is not None:
        reason = "An operand is written to before the result is computed."
        return Refusal(writer, "mutated_operand", reason)
    later = _writer_later(versions, found, sides)
    if later is not None:
        reason = "An operand is written to later, and gradients are computed of what it held."
        return Refusal(later, "mutated_operand", reason)
    return None


def _writer_later(
    versions: Versions, found: Attention, sides: Sequence[Expression]
) -> fx.Node | None:
    """Who writes, after the result, to what a backward of one op reads: all of its operands, where
    what is spelled may keep fewer (a mask that is added is none of them)."""
    if not torch.is_grad_enabled() or not any(side.value.requires_grad for side in sides):
        return None
    end = next(iter(reversed(found.node.graph.nodes)))
    sources = (source for side in sides for _, source in side.read)
    writes = (versions.changes(source, after=found.node, before=end) for source in sources)
    return next((writer for found_writes in writes for writer in found_writes), None)


def _writer(versions: Versions, found: Attention, sides: Sequence[Expression]) -> fx.Node | None:
    """Who writes to tensors after they are read, and before the result is computed."""
    for side in sides:
        for reader, source in side.read:
            for writer in versions.changes(source, after=reader, before=found.node):
                if writer not in found.chain:
                    return writer
    return None


def _is_cut(versions: Versions, found: Attention, sides: Sequence[Expression]) -> bool:
    """Whether gradients are recorded of a part of its calls, or only within the graph."""
    readers = {reader for side in sides for reader, _ in side.read}
    outside = torch.is_grad_enabled()
    told = {versions.records[node] for node in (*found.chain, *readers)}
    modes = {outside if mode is None else mode for mode in told}
    return len(modes) > 1 or (True in modes and not outside)


def no_plain_tensors(node: fx.Node, values: Sequence[object]) -> Refusal:
    """Return the refusal of operands of a subclass of tensors."""
    names = {type(value).__name__ for value in values if not isinstance(value, FakeTensor)}
    reason = (
        f"Its operands are of {', '.join(sorted(names))}, which may compute otherwise than tensors"
    )
    remedy = "give plain tensors, such as those of to_local"
    return Refusal(node, "tensor_subclass", f"{reason}: {remedy}.")
