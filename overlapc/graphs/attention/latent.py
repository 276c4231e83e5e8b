"""Keys that begin with their values, as latent attention in its absorbed form has them.

One cache is read for both then: each key once, and no value. Model code has the rest of keys beside
it, and adds two products (``q @ c^T + q_rest @ k_rest^T``), or makes keys whole.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.graphs.attention.layouts import four_dimensional
from overlapc.graphs.attention.products.above import scaled_product
from overlapc.graphs.attention.products.matmuls import Product, read_product
from overlapc.graphs.attention.products.places import Places
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import (
    Expression,
    expression,
    insertion,
    is_same,
    is_same_tensor,
)
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias
from overlapc.graphs.attention.scores.upward import Scores
from overlapc.graphs.attention.site import Attention
from overlapc.graphs.collectives import Refusal
from overlapc.runtime.attention.kernels import may_share


@dataclass(frozen=True)
class Apart:
    """Scores of two products that are added, before anything else is done to them."""

    scores: Scores
    """Those of one product, without the other."""
    rest: Product
    """The other one."""


def apart(versions: Versions, scores: Scores) -> Iterator[Apart]:
    """Yield both ways to read scores that are a sum of two products; nothing where they are not."""
    steps = (*scores.program, *scores.masks)
    added = steps[0] if steps else None
    if not isinstance(added, Bias):
        return
    (rest, between), own = _product(versions, added.tensor, scores), scores.product
    if rest is None or rest.added is not None or rest.order or own.order:
        return
    if rest.dtype != own.dtype:  # autocast is on for one of them
        return
    if added.factor * rest.alpha != scores.factor:
        return
    # Who else reads the product, or writes to it, is found as of all that the chain reads.
    nodes = {*between, *scores.nodes, *(reader for reader, _ in added.tensor.read)}
    fewer = replace(scores, nodes=tuple(sorted(nodes, key=versions.index.__getitem__)))
    if scores.program:
        fewer = replace(fewer, program=scores.program[1:])
    else:
        fewer = replace(fewer, masks=scores.masks[1:])
    yield Apart(fewer, rest)
    yield Apart(replace(fewer, product=rest), own)


def _product(
    versions: Versions, added: Expression, scores: Scores
) -> tuple[Product | None, list[fx.Node]]:
    """The product whose result is added to that of ``scores``, of as many batches, as it is or with
    rows and keys exchanged, and the calls that scale it; None where there is none."""
    value, batch = tensor_of(added.node), scores.product.batch
    calls = scaled_product(versions, added.node)
    if calls is None or value is None or added.has_symbols:
        return None, []
    if not is_same(tuple(value.shape[:-2]), batch) or not added.is_unwritten(versions):
        return None, []
    nodes, factor = calls
    plain = Expression(added.node, value)
    for side in (plain, plain.transposed()):
        moved = side.shaped(batch, scores.frame)
        if not moved.has_symbols and added.calls == moved.calls:
            places = Places() if side is plain else Places(-1, -2)
            found = read_product(versions, versions.calls[nodes[0]], places=places)
            if isinstance(found, Refusal):
                break
            return replace(found, alpha=found.alpha * factor), nodes
    return None, []


def latent_of_two(versions: Versions, found: Attention, rest: Product) -> Attention | None:
    """Return the attention of ``Apart``, ``found`` of its scores; None where its keys are not its
    values."""
    if not is_same_tensor(found.key, found.value):
        return None
    sides = rest.left, rest.right.transposed()
    query, key = (side.shaped(rest.batch, found.frame) for side in sides)
    flat = four_dimensional(versions, query, key, key, found.mask, found.frame)
    if flat.groups != found.groups:
        return None
    lengths = [(one.shape[-2], other.shape[-2]) for one, other in
               ((flat.query, found.query), (flat.key, found.key))]  # fmt: skip
    if not all(is_same((one,), (other,)) for one, other in lengths):
        return None
    latent = replace(
        found, key=flat.key, value=_read_by(found.value, found.key), rest=flat.query, is_latent=True
    )
    dtypes = {side.value.dtype for side in (found.query, found.value, flat.query, flat.key)}
    return latent if len(dtypes) == 1 and _is_known(latent) else None


def latent_of_one(versions: Versions, found: Attention) -> Attention | None:
    """Return an attention whose whole keys begin with its values; None where they do not."""
    rest, value = _behind(found.key, found.value), found.value
    if rest is not None:  # of what keys are made of, such as a cache in a narrower dtype
        value = _read_by(found.key.then(torch.narrow, -1, 0, value.shape[-1]), value)
    else:
        rest = _put_behind(versions, found.key, value)
    if rest is None or rest.value.dtype != value.value.dtype:
        return None
    latent = replace(found, key=rest, value=value, is_latent=True)
    return latent if _is_known(latent) else None


def _is_known(latent: Attention) -> bool:
    """Whether a kernel knows such columns, and no gradient is wanted, which none gives."""
    columns = latent.head_dim, latent.value.shape[-1]
    is_static = all(isinstance(count, int) for count in columns)
    return is_static and may_share(*map(int, columns)) and not latent.is_trained


def _behind(key: Expression, value: Expression) -> Expression | None:
    """What of keys stands behind values that are a view of them."""
    columns, first = key.shape[-1], value.shape[-1]
    if not isinstance(columns, int) or not isinstance(first, int) or first >= columns:
        return None
    if not is_same_tensor(key.then(torch.narrow, -1, 0, first), value):
        return None
    return key.then(torch.narrow, -1, first, columns - first)


def _put_behind(versions: Versions, key: Expression, value: Expression) -> Expression | None:
    """What the graph puts behind values to make keys of both."""
    reader, source = key.read[0]
    inserted: list[object] = []
    node = versions.read(reader, source)
    while node is not None and (index := insertion(versions, node)) is not None:
        inserted.append(index)
        (source,) = node.all_input_nodes
        node = versions.read(node, source)
    call = versions.calls.get(node) if node is not None else None
    parts = call.get("input") if call is not None and call.name == "cat" else None
    if call is None or not isinstance(parts, list | tuple) or len(parts) != 2:
        return None
    both = []
    for part in parts:
        side = expression(versions, call.node, part)
        if side is None:
            return None
        for index in reversed(inserted):
            side = side.then(operator.getitem, index)
        both.append(replace(side.replayed(key.calls), read=(*side.read, *key.read)))
    first, rest = both
    is_over_columns = is_same((*first.shape[:-1],), (*rest.shape[:-1],))
    is_value = is_over_columns and is_same_tensor(first, value)
    return _read_by(rest, first) if is_value else None


def _read_by(one: Expression, other: Expression) -> Expression:
    """An expression that has to be read before anybody writes to what another one reads, too."""
    return replace(one, read=(*one.read, *other.read))
