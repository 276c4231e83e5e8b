"""Lets one collective send the sum of what two have sent."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.adding import add_call
from overlapc.graphs.chains.packing import Split, packed
from overlapc.graphs.chains.padding import Padded, without_padding
from overlapc.graphs.chains.walking import between, ordered
from overlapc.graphs.collectives import Collective, Refusal, functional
from overlapc.graphs.edges import through
from overlapc.graphs.elementwise import is_view
from overlapc.graphs.equality import are_alike, erase_unread
from overlapc.graphs.sizes import shape_of
from overlapc.graphs.sums.reading import Number, Term, factor_of
from overlapc.graphs.sums.terms import scale_between

aten = torch.ops.aten


def send_sum(graph: fx.Graph, early: Term, late: Term) -> fx.Node:
    """Let the later collective send the sum of what both sent, and erase the earlier one.

    Returns what has taken the place of the addition that read the earlier one.
    """
    one, two = early.collective, late.collective
    scale = scale_between(early, late)
    assert scale is not None, "these terms may not be merged"
    added = _add_sources(graph, early, late, scale)
    two.start.replace_input_with(two.source, added)
    left_over = _without(graph, early)
    for node in (early.way.add, *reversed(early.way.path), one.wait, one.start):
        graph.erase_node(node)
    for source in (one.source, two.source):
        erase_unread(source)
    return left_over


def _without(graph: fx.Graph, term: Term) -> fx.Node:
    """Let those who read a sum of two read it without a term."""
    add = term.way.add
    other, factor = next(
        (node, times)
        for node, times in zip(add.all_input_nodes, (1, factor_of(add)), strict=True)
        if node is not term.read
    )
    if factor != 1:
        with graph.inserting_before(add):
            other = add_call(graph, aten.mul.Tensor, (other, factor), like=add)
    add.replace_all_uses_with(other)
    return other


def _add_sources(graph: fx.Graph, early: Term, late: Term, scale: Number) -> fx.Node:
    """Insert the sum of what two terms send, where the later one is started.

    Where both lay it out alike, the sum is laid out: a GEMM's result is then added to another's.
    """
    one, two = early.collective, late.collective
    first, second = _laid_out(one), _laid_out(two)
    with graph.inserting_before(two.start):
        if not _are_alike(first, second):
            return _added(graph, one.source, two.source, scale, late)
        whole = second.split.whole
        added = _added(graph, first.split.whole, whole, scale, late)
        copies = {whole: added}
        for node in ordered(between(whole, two.start), graph):
            copies[node] = graph.node_copy(node, lambda n: copies.get(n, n))
        return copies[two.source]


def _added(graph: fx.Graph, one: fx.Node, two: fx.Node, scale: Number, late: Term) -> fx.Node:
    """``scale * one + two`` in the shape of ``two``; at most one size of that varies."""
    like = late.way.add
    if not are_alike(one, two):
        sizes = [size if isinstance(size, int) else -1 for size in shape_of(two)]
        one = add_call(graph, aten.reshape.default, (one, sizes), like=like)
    if scale == -1:
        return add_call(graph, aten.sub.Tensor, (two, one), like=like)
    if scale == 1:
        return add_call(graph, aten.add.Tensor, (one, two), like=like)
    return add_call(graph, aten.add.Tensor, (two, one), like=like, kwargs={"alpha": scale})


def why_not_all_add(collective: Collective) -> Refusal | None:
    """Return why some ranks may not add up what they receive, as this one does.

    A rank that is sent nothing but padding reads nothing of it.
    """
    start = collective.start
    if start.target is not functional.reduce_scatter_tensor.default:
        return None
    found, ranks = _parts(collective), _ranks(collective)
    whole = found.split.whole
    length = shape_of(whole)[found.split.dim] + found.rows
    is_read = statically_known_true(found.rows * ranks < length) if found.rows else True
    if is_read and through(whole, is_view)[0].target is not aten.cat.default:
        return None
    return Refusal(start, "other_layout", "a rank may be sent padding alone, and reads none of it")


def _ranks(collective: Collective) -> int:
    ranks = collective.start.args[2]
    assert isinstance(ranks, int)
    return ranks


def _parts(collective: Collective) -> Padded:
    return without_padding(packed(collective.source, _ranks(collective)))


def _laid_out(collective: Collective) -> Padded:
    """What the collective's parts are of; where it has none, what it sends a view of."""
    if collective.start.target is functional.reduce_scatter_tensor.default:
        return _parts(collective)
    is_summed = collective.start.target is functional.all_reduce.default
    source = collective.source
    return Padded(Split(through(source, is_view)[0] if is_summed else source, 0), 0)


def _are_alike(one: Padded, other: Padded) -> bool:
    """Whether the same is sent of both; as many rows as wholes lack are padding."""
    is_same = replace(one.split, whole=other.split.whole) == other.split
    return is_same and are_alike(one.split.whole, other.split.whole)
