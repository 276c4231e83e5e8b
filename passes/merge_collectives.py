"""Collectives that say the same become one: equal calls, and terms of one sum.

Contract. A collective that is called again with the same arguments is called once; the first
result then lives until the last reader of both, and the reason says how many bytes that is.
``AR(a) + AR(b)`` becomes ``AR(a + b)``, likewise for reduce-scatter and all-gather, where both are
sums (or both averages) of one dtype on one group, and nothing else reads either result. Terms may
be subtracted, scaled by constants or by one tensor, laid out alike (as gathers along other
dimensions than the first are) and rounded alike before they are added. The one
collective stands where the later of the two stood: an order that is a function of the graph only.
Values are the same but for rounding: partial sums of the ranks are added in another order, and the
sum of two on one rank may leave a narrow dtype's range where each sum over the ranks would not.
A tensor that scales both is read once, after the collective, and may differ by rank; where it is
infinite, or divides and is zero, terms of other signs give an infinity in place of NaN.
Of what is added and not merged, a note at one collective's site says why, and one at the other's
where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from overlapc.graphs.collectives import Collective, collective_starts, read_collective
from overlapc.graphs.equality import call_key, equal_rearrangements, erase_unread, why_not_same
from overlapc.graphs.faults import unless_faulty
from overlapc.graphs.memory import clone, returned_aliases
from overlapc.graphs.origins import where
from overlapc.graphs.sums.merging import send_sum, why_not_all_add
from overlapc.graphs.sums.reading import Term, Total, named, read_sum, sums_of
from overlapc.graphs.sums.terms import why_not_one
from overlapc.graphs.values import tensor_facts
from overlapc.passes.base import Compilation, Fuel, add_site
from overlapc.planning.problem import ITEM_BYTES

CODE = "merged"

LEFT = "sums of collectives are left as they are"


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
            note = f"It is sent again after {named(early)}: {refusal.reason}."
            compilation.note(late.start, note)
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
    for root in unless_faulty(lambda: sums_of(graph), [], LEFT):
        total = read_sum(root)
        while (
            pair := unless_faulty(lambda total=total: _next_pair(total, compilation), None, LEFT)
        ) and Fuel.take(compilation.options):
            early, late = pair
            _report(early.collective, _sum_reason(late.collective), compilation)
            left_over = send_sum(graph, early, late)
            total = read_sum(left_over if total.root is early.way.add else total.root)


def _next_pair(total: Total, compilation: Compilation) -> tuple[Term, Term] | None:
    """The first two terms of a sum that can be one; where there are none, notes say why not."""
    notes: dict[fx.Node, str] = {}
    pointers: dict[fx.Node, str] = {}
    for index, late in enumerate(total.terms):
        for early in total.terms[:index]:
            if early.collective.start is late.collective.start:
                continue
            refusal = why_not_one(early, late)
            refusals = (why_not_all_add(term.collective) for term in (early, late))
            refusal = refusal or next(filter(None, refusals), None)
            if refusal is None:
                return early, late
            mine, other = early.collective, late.collective
            if refusal.node is other.start:
                mine, other = other, mine
            note = f"Its result is added to that of {named(other)}, and they stay two"
            notes.setdefault(mine.start, f"{note}: {refusal.reason}.")
            note = f"Its result is added to that of {named(mine)}, where it says why they stay two."
            pointers.setdefault(other.start, note)
    for start, note in {**pointers, **notes}.items():
        compilation.note(start, note)
    return None


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
