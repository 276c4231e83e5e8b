"""What the bodies of higher-order ops are given, as the graphs that call them read it."""

from __future__ import annotations

from torch import fx

from overlapc.graphs.attention.reading.versions import Outer, Versions
from overlapc.graphs.bodies import bodies_called


def outer_of_bodies(graph: fx.Graph, outer: Outer | None = None) -> dict[fx.Graph, Outer]:
    """Return, of the bodies that a graph calls at any depth, what it is that each is given.

    What a call reads as it was made, no write between: a mask that is made once for all layers is
    then known in the activation checkpoint of each.
    """
    found: dict[fx.Graph, Outer] = {}
    bodies = list(bodies_called(graph))
    versions = Versions(graph, outer) if bodies else None
    for body in bodies:
        own: Outer = {}
        if versions is not None and body.call is not None:
            own = {
                inner: (versions, node)
                for inner, node in body.operands.items()
                if versions.read(body.call, node) is node
            }
        found[body.graph] = own
        found.update(outer_of_bodies(body.graph, own))
    return found
