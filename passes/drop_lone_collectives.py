"""A collective among one rank is removed: it gives what it was given.

Contract. Same values; a result that the caller receives never shares memory with an input.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import fx

from overlapc.errors import GroupError
from overlapc.graphs.collectives import Collective, collective_starts, read_collective
from overlapc.graphs.memory import clone, returned_aliases
from overlapc.graphs.values import is_contiguous
from overlapc.passes.base import Compilation, Fuel, add_site
from overlapc.runtime.ranks.groups import resolve

log = logging.getLogger(__name__)

REDUCTIONS = ("", "sum", "avg", "product", "min", "max", "band", "bor", "bxor")
"""Of one value they give that value; ``premul_sum`` does not."""


@dataclass(frozen=True)
class DropLoneCollectives:
    """Removes the collectives of groups that have one member."""

    name: str = "drop_lone_collectives"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Replace each such collective by what it sends; each is a site."""
        if compilation.is_disabled(self.name) or compilation.options.overlap == "off":
            return
        for start in collective_starts(graph):
            collective = read_collective(start)
            if not isinstance(collective, Collective) or not is_alone(collective):
                continue
            if not Fuel.take(compilation.options):
                continue
            add_site(
                compilation,
                start,
                "rewritten",
                "one_rank",
                "Its group has one rank, so it gives what it is given.",
            )
            remove(graph, collective)


def is_alone(collective: Collective) -> bool:
    """Return whether a collective gives what it is given, for its group has one rank."""
    if collective.reduce not in REDUCTIONS:
        return False
    try:
        return resolve(collective.group).size() == 1
    except GroupError as error:
        log.debug("%s stays: %s", collective.start, error.what)
        return False


def remove(graph: fx.Graph, collective: Collective) -> None:
    """Let every reader read what is sent: a copy of it where layout or ownership needs one."""
    source, wait = collective.source, collective.wait
    if returned_aliases(wait) or not is_contiguous(source):
        source = clone(graph, source, before=collective.start)
    wait.replace_all_uses_with(source)
    for asked in collective.asked:
        asked.replace_input_with(collective.start, source)
    for node in (wait, collective.start):
        graph.erase_node(node)
