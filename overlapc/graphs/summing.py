"""The sum of what two collectives send."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.algebra import Term, are_alike
from overlapc.graphs.bands import is_view, shape_of
from overlapc.graphs.collectives import Collective, Refusal, functional
from overlapc.graphs.nodes import add_call, through
from overlapc.graphs.packing import packed
from overlapc.graphs.padding import Padded, without_padding
from overlapc.graphs.walking import between, ordered

aten = torch.ops.aten


def add_sources(graph: fx.Graph, early: Term, late: Term) -> fx.Node:
    """Insert the sum of what two terms send, where the later one is started.

    Where both lay it out alike, the sum is laid out: a GEMM's result is then added to another's.
    """
    one, two = early.collective, late.collective
    first, second = _laid_out(one), _laid_out(two)
    with graph.inserting_before(two.start):
        if first is None or second is None or not _are_alike(first, second):
            return add_call(graph, aten.add.Tensor, (one.source, two.source), like=late.add)
        whole = second.split.whole
        added = add_call(graph, aten.add.Tensor, (first.split.whole, whole), like=late.add)
        copies = {whole: added}
        for node in ordered(between(whole, two.start), graph):
            copies[node] = graph.node_copy(node, lambda n: copies.get(n, n))
        return copies[two.source]


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
    return Refusal(start, "other_layout", "A rank may be sent padding alone, and reads none of it.")


def _ranks(collective: Collective) -> int:
    ranks = collective.start.args[2]
    assert isinstance(ranks, int)
    return ranks


def _parts(collective: Collective) -> Padded:
    return without_padding(packed(collective.source, _ranks(collective)))


def _laid_out(collective: Collective) -> Padded | None:
    """What a reduce-scatter's parts are of; None where that is what it sends."""
    if collective.start.target is not functional.reduce_scatter_tensor.default:
        return None
    found = _parts(collective)
    return None if found.split.whole is collective.source else found


def _are_alike(one: Padded, other: Padded) -> bool:
    is_same = one.rows == other.rows and replace(one.split, whole=other.split.whole) == other.split
    return is_same and are_alike(one.split.whole, other.split.whole)
