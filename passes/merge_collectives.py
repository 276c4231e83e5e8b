"""Collectives that say the same become one: equal calls, and terms of one sum.

Contract. A collective that is called again with the same arguments is called once; the first
result then lives until the last reader of both, and the reason says how many bytes that is.
``AR(a) + AR(b)`` becomes ``AR(a + b)``, likewise for reduce-scatter, where both are sums (or both
averages) of alike tensors on one group, and nothing else reads either result. The one collective
stands where the later of the two stood: an order that is a function of the graph only. Values are
the same but for rounding: partial sums of the ranks are added in another order, and the sum of two
on one rank may leave a narrow dtype's range where each sum over the ranks would not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from overlapc.graphs.algebra import (
    Term,
    call_key,
    clone,
    equal_rearrangements,
    erase_unread,
    read_term,
    returned_aliases,
    why_not_one,
    why_not_same,
)
from overlapc.graphs.collectives import Collective, Refusal, collective_starts, read_collective
from overlapc.graphs.nodes import tensor_facts, where
from overlapc.graphs.summing import add_sources, why_not_all_add
from overlapc.passes.base import Compilation, Fuel, add_site
from overlapc.planning.problem import ITEM_BYTES

log = logging.getLogger(__name__)

CODE = "merged"


@dataclass(frozen=True)
class MergeCollectives:
    """Replaces several collectives by one where one gives the same."""

    name: str = "merge_collectives"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Merge equal calls, then sums; each collective that is removed is a site."""
        if compilation.is_disabled(self.name) or compilation.options.overlap == "off":
            return
        merge_equal_calls(graph, compilation)
        merge_sums(graph, compilation)


def _collectives(graph: fx.Graph) -> Iterator[Collective]:
    for start in collective_starts(graph):
        collective = read_collective(start)
        if isinstance(collective, Collective):
            yield collective


def merge_equal_calls(graph: fx.Graph, compilation: Compilation) -> None:
    """Let every call of a collective use the result of the first call that is like it."""
    first: dict[object, Collective] = {}
    for late in list(_collectives(graph)):
        early = first.setdefault(call_key(late.start), late)
        if early is late:
            continue
        if refusal := why_not_same(early, late):
            log.debug("%s is not merged: %s", late.start, refusal.reason)
            first[call_key(late.start)] = late
        elif Fuel.take(compilation.options):
            _report(late, _same_reason(early), compilation)
            use_result_of(graph, early, late)


def use_result_of(graph: fx.Graph, early: Collective, late: Collective) -> None:
    """Replace ``late`` by ``early``, and what only moves elements of both by one of a kind."""
    if returned_aliases(early.wait):
        for returned in returned_aliases(late.wait):  # two results must not share memory
            output = next(user for user in returned.users if user.op == "output")
            output.replace_input_with(returned, clone(graph, returned, before=output))
    if late.wait < early.wait:
        late.wait.prepend(early.wait)
    late.wait.replace_all_uses_with(early.wait)
    for asked in late.asked:
        asked.replace_input_with(late.start, early.start)
    for node in (late.wait, late.start):
        graph.erase_node(node)
    erase_unread(late.source)
    for kept, dropped in equal_rearrangements(early.wait):
        dropped.replace_all_uses_with(kept)
        graph.erase_node(dropped)


def merge_sums(graph: fx.Graph, compilation: Compilation) -> None:
    """Merge the collectives of every sum, until no two of one sum can be one."""
    sums: dict[fx.Node, list[Collective]] = {}
    for collective in _collectives(graph):
        term = read_term(collective)
        if isinstance(term, Term):
            sums.setdefault(term.root, []).append(collective)
        else:
            log.debug("%s is no term of a sum: %s", collective.start, term.reason)
    for terms in sums.values():
        _merge_sum([collective.start for collective in terms], graph, compilation)


def _merge_sum(starts: list[fx.Node], graph: fx.Graph, compilation: Compilation) -> None:
    alone: list[fx.Node] = []
    for late in starts:
        for early in alone:
            pair = _pair(early, late)
            if isinstance(pair, Refusal):
                log.debug("%s is not merged with %s: %s", late, early, pair.reason)
            elif Fuel.take(compilation.options):
                _report(pair[0].collective, _sum_reason(pair[1].collective), compilation)
                send_sum(graph, *pair)
                alone.remove(early)
                break
        alone.append(late)


def _pair(early: fx.Node, late: fx.Node) -> tuple[Term, Term] | Refusal:
    """Read both terms anew: a merge before has changed what they are added to."""
    found = []
    for start in (early, late):
        collective = read_collective(start)
        term = collective if isinstance(collective, Refusal) else read_term(collective)
        if isinstance(term, Refusal):
            return term
        found.append(term)
    refusals = (why_not_all_add(term.collective) for term in found)
    refusal = why_not_one(*found) or next(filter(None, refusals), None)
    return refusal or (found[0], found[1])


def send_sum(graph: fx.Graph, early: Term, late: Term) -> None:
    """Let the later collective send the sum of what both sent, and erase the earlier one."""
    one, two = early.collective, late.collective
    added = add_sources(graph, early, late)
    two.start.replace_input_with(two.source, added)
    early.add.replace_all_uses_with(early.other)
    for node in (early.add, *reversed(early.views), one.wait, one.start):
        graph.erase_node(node)
    for source in (one.source, two.source):
        erase_unread(source)


def _same_reason(early: Collective) -> str:
    facts = tensor_facts(early.wait)
    size = ITEM_BYTES.get(facts.dtype, 0) if facts else 0
    for length in facts.shape if facts else ():
        size *= length
    return (
        f"The same tensor is sent at {where(early.start)}; that result of {size} bytes is read "
        "instead, and kept as long."
    )


def _sum_reason(late: Collective) -> str:
    return (
        f"Its result is only added to that of the {late.name} at {where(late.start)}, "
        "which sends the sum of both."
    )


def _report(removed: Collective, reason: str, compilation: Compilation) -> None:
    add_site(compilation, removed.start, "rewritten", CODE, reason)
