"""The structural walk between a collective and its GEMMs, and what it leaves dead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.chains.bands import Band, Builder
from overlapc.graphs.chains.gemms import add_gemm
from overlapc.graphs.chains.reductions import (
    add_reduction,
    add_spread,
    is_pair,
    is_reduction,
    is_spread,
)
from overlapc.graphs.collectives import Collective
from overlapc.graphs.edges import descendants
from overlapc.graphs.elementwise import is_pointwise, is_view
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import FEWER, Dim, is_static, lead_of, shape_of
from overlapc.graphs.values import value_of
from overlapc.runtime.programs.program import OFFSETS

FARTHEST = 40
"""Views and pointwise ops that a walk passes on its way to a GEMM."""

FOUND = -1


@dataclass
class Walk:
    """Which nodes lead to an end, a GEMM or a known tensor, through ops that keep rows apart."""

    is_end: Callable[[fx.Node], bool]
    takes_all: bool = False
    """Go through every input that leads to an end."""
    found: dict[fx.Node, int] = field(default_factory=dict)
    """``FOUND``, or the smallest depth from which no end was found."""

    def leads(self, node: fx.Node, depth: int = 0) -> bool:
        """Whether an end is above ``node``, or it is one."""
        # What was not found from farther away may be found from here.
        if self.found.get(node, FARTHEST + 1) > depth:
            passes = depth < FARTHEST and keeps_rows(node)
            is_found = self.is_end(node) or (
                passes and any([self.leads(n, depth + 1) for n in node.all_input_nodes])
            )
            self.found[node] = FOUND if is_found else depth
        return self.found[node] == FOUND

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The inputs through which the walk goes on.

        Up to a GEMM that others read, too, it goes only where there is no other way: such a GEMM
        is another chain's, or a residual.
        """
        leading = [n for n in node.all_input_nodes if self.leads(n)]
        own = [n for n in leading if len(n.users) == 1]
        return leading if self.takes_all else own or leading[-1:]

    def first_end(self, node: fx.Node) -> fx.Node:
        """The end that is found first on the way up."""
        while not self.is_end(node):
            node = self.inputs(node)[0]
        return node

    def build(self, builder: Builder, node: fx.Node) -> Band:
        """Add everything from the ends to ``node`` to a program."""
        if node in builder.bands:
            return builder.bands[node]
        if self.is_end(node):
            return add_gemm(builder, node)
        for source in self.inputs(node):
            self.build(builder, source)
        if is_view(node):
            (source,) = node.all_input_nodes[:1]
            return builder.view(node, builder.bands[source])
        if is_spread(node):
            return add_spread(builder, node)
        return add_reduction(builder, node) if is_reduction(node) else builder.pointwise(node)


def keeps_rows(node: fx.Node) -> bool:
    """Return whether a node may keep the rows of its inputs apart."""
    return is_view(node) or is_pointwise(node) or is_reduction(node) or is_spread(node)


def passes_rows(node: fx.Node) -> bool:
    """Return whether a node keeps the rows of its first argument apart."""
    return keeps_rows(node) and bool(node.args) and isinstance(node.args[0], fx.Node)


def between(whole: fx.Node, start: fx.Node) -> set[fx.Node]:
    """The nodes through which ``start`` depends on ``whole``, both left out."""
    below = descendants([whole])
    found: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source in below and source is not whole and source not in found:
                found.add(source)
                waiting.append(source)
    return found


def dead_and_kept(
    builder: Builder,
    candidates: set[fx.Node],
    ends: set[fx.Node],
    graph: fx.Graph,
    base: fx.Node | None = None,
) -> tuple[set[fx.Node], list[fx.Node]]:
    """Which of the candidates nothing reads but ``ends``, and which a result takes the place of.

    Others read the latter. A view that others read stays, and reads a result; but ``base``, a view
    or not, is one.
    """
    dead: set[fx.Node] = set()
    kept: set[fx.Node] = set()
    for node in reversed(ordered(candidates - ends, graph)):
        if all(user in dead or user in kept or user in ends for user in node.users):
            dead.add(node)
        elif node is base or (node in builder.bands and not is_view(node) and not is_pair(node)):
            kept.add(node)
    return dead, [node for node in builder.bands if node in kept]


def ordered(nodes: set[fx.Node], graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the nodes in program order."""
    return tuple(node for node in graph.nodes if node in nodes)


def dims_or_refuse(node: fx.Node, band: Band) -> tuple[Dim, ...] | None:
    """Return what a result of the op is reshaped to; None where its rows are one dimension."""
    if band.lead == 1:
        return None
    if band.dims is None:
        refuse(node, "dynamic_shape", f"Nothing says the sizes of a result. {FEWER}")
    return band.dims


Splits = tuple[int | fx.Node, ...]


def check_groups(builder: Builder, node: fx.Node, outer: tuple[Dim, ...]) -> None:
    """Refuse blocks of rows that all ranks have a part of, where a grouped GEMM counts the rows."""
    if outer and any(operand.mode == OFFSETS for operand in builder.operands):
        reason = "Rows of all ranks lie together in blocks, and a grouped GEMM counts their order."
        refuse(node, "grouped_order", reason)


def row_splits(
    collective: Collective,
    moved: fx.Node,
    rows: int | torch.SymInt,
    *,
    by_rows: bool,
    permutes_rows: bool,
) -> tuple[Splits, Splits]:
    """Return the same in rows of a program, which has so many of ``moved``.

    What the collective counts is dimension 0 of that, each of which may be several rows. With
    ``permutes_rows`` parts of several of these are rearranged, which have to be even on every rank.
    """
    if permutes_rows:
        if (uneven := splits_of(collective, by_rows=True)) != ((), ()):
            _refuse_permuted(collective, uneven)
        return (), ()
    receives, sends = splits_of(collective, by_rows=by_rows)
    if not receives or statically_known_true(shape_of(moved)[0] == rows):
        return receives, sends
    shape = shape_of(moved)
    inner = shape[1 : lead_of(shape, rows) or 1]
    if not inner or not is_static((*inner, *receives, *sends)):
        reason = f"How many rows are sent to each rank is not known by its number. {FEWER}"
        refuse(collective.start, "uneven_layout", reason)
    each = prod(map(int, inner))
    return (
        tuple(each * size for size in receives if isinstance(size, int)),
        tuple(each * size for size in sends if isinstance(size, int)),
    )


def _refuse_permuted(collective: Collective, splits: tuple[Splits, Splits]) -> None:
    if len({*splits[0], *splits[1]}) == 1:
        reason = (
            "It is rearranged, and each rank gets as much from this one, but a graph holds only "
            "the number, which other ranks need not have. Remedy: give the ranks a dimension of "
            "their own in front, such as [ranks, heads, ..] in place of [ranks * heads, ..]."
        )
        refuse(collective.start, "perhaps_uneven", reason)
    reason = "What is sent is rearranged, and need not be as much on other ranks."
    refuse(collective.start, "uneven_layout", reason)


def splits_of(collective: Collective, *, by_rows: bool) -> tuple[Splits, Splits]:
    """Return what an all-to-all receives and sends, empty where that is even on every rank.

    Equal numbers say nothing of other ranks; one symbol for all parts does. Other layouts than rows
    have no other splits than even ones.
    """
    sizes = (*collective.receives, *collective.sends)
    known = [value_of(size) if isinstance(size, fx.Node) else size for size in sizes]
    is_even = all(statically_known_true(size == known[0]) for size in known)
    if not by_rows and not is_even:
        refuse(collective.start, "uneven_layout", "Uneven parts are of another layout than rows.")
    if is_even and (not by_rows or any(isinstance(size, fx.Node) for size in sizes) or not sizes):
        return (), ()
    return collective.receives, collective.sends
