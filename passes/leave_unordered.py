"""Collectives stay as they are where Inductor would move our ops past other collectives.

Inductor keeps the order of the collectives that it knows. Ours are not among them; control
dependencies keep them in their place (``order_collectives``), but one of Inductor's optional passes
drops these. Contract: where that pass is switched on and a graph has several collectives, nothing
that Inductor knows as a collective becomes an op of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch._inductor import config as inductor_config

from overlapc.graphs.collectives import collective_starts, is_ours
from overlapc.passes.base import Compilation, add_site

DROPPING = "reorder_communication_preserving_peak_memory"
"""Moves collectives by what they read alone (torch 2.11 to 2.13)."""


@dataclass(frozen=True)
class LeaveUnordered:
    """Refuses every collective that is not taken yet, where order could not be kept."""

    name: str = "leave_unordered"

    def apply(self, graph: fx.Graph, compilation: Compilation) -> None:
        """Refuse, and change nothing."""
        starts = [start for start in collective_starts(graph) if not is_ours(start)]
        if compilation.is_disabled(self.name) or len(starts) < 2 or not drops_order():
            return
        for start in starts:
            if start not in compilation.taken:
                add_site(compilation, start, "refused", "reordered_by_inductor", REASON)
                compilation.taken.add(start)


REASON = (
    f"Inductor's pass {DROPPING}, which is switched on, would move an op of ours past the graph's "
    "other collectives, and ranks could then send in different orders."
)


def drops_order() -> bool:
    """Return whether Inductor is configured to move nodes against control dependencies.

    A function of the user's among its passes may do so too.
    """
    passes = inductor_config.reorder_for_compute_comm_overlap_passes
    drops = any(one == DROPPING or callable(one) for one in passes)
    return inductor_config.reorder_for_compute_comm_overlap and drops
