"""Linear layers of the same rows as one: queries, keys and values of a model in one launch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from overlapc.graphs.chains.gemms import left_of
from overlapc.graphs.chains.walking import ordered
from overlapc.graphs.collectives import collective_starts
from overlapc.graphs.edges import descendants
from overlapc.graphs.linear.layers import Linear, merged, rows_key, weight_of
from overlapc.graphs.memory import mutates
from overlapc.graphs.values import value_of
from overlapc.runtime.programs.program import Program, Ref, mapped


def may_join(layer: Linear, gemm: fx.Node) -> bool:
    """Return whether a GEMM, by its operands, may be one more of a layer's launch."""
    first = layer.gemms[0].node
    ours, other = value_of(weight_of(first)), value_of(weight_of(gemm))
    of_one_k = ours.shape[-2] == other.shape[-2]
    return of_one_k and rows_key(left_of(gemm)) == rows_key(left_of(first))


def join(layer: Linear, other: Linear) -> Linear | None:
    """Return two layers of the same rows as one of all their results; None where one needs what
    the other gives, something is written between them, or a collective would be sent later.

    Ranks may have unlike rows, and tables that say unlike things of them: what one of them joins
    and another does not has to leave collectives in their order.
    """
    results = (*layer.results, *other.results)
    nodes = [result.node for result in results]
    operands = [*layer.operands, *other.operands]
    reached = descendants(nodes)
    mine = {*layer.dead, *other.dead, *nodes}
    if any(operand.node in reached for operand in operands) or is_crossed(mine):
        return None
    if is_moved(nodes):
        return None
    program, kept = merged(_beside(layer.program, other.program), operands)
    graph = nodes[0].graph
    dead = ordered({*layer.dead, *other.dead}, graph)
    return Linear((*layer.gemms, *other.gemms), program, tuple(kept), results, dead)


def _beside(one: Program, other: Program) -> Program:
    """Both programs, each on operands of its own."""
    operands, values = len(one.modes), len(one.steps)

    def place(ref: Ref) -> Ref:
        return Ref(ref.kind, ref.index + (operands if ref.is_operand else values))

    steps = (*one.steps, *mapped(other.steps, place))
    return Program((*one.modes, *other.modes), steps, None, (*one.kept, *map(place, other.kept)))


def is_crossed(nodes: set[fx.Node]) -> bool:
    """Whether anything is written to between the first of some calls and the last."""
    (node, *_), last = (found := ordered(nodes, next(iter(nodes)).graph)), found[-1]
    while node is not last:
        if mutates(node):
            return True
        node = node.next
    return False


def is_moved(results: Sequence[fx.Node]) -> bool:
    """Whether a collective that needs one of some results starts before the last of them, where
    one op would give them all: it would come behind that, and others perhaps before it."""
    below, last = descendants(results), max(results)
    starts = collective_starts(last.graph)
    return any(start in below and start < last for start in starts)
