"""Attentions of a whole program, bodies of its higher-order ops among them, in one order."""

from __future__ import annotations

from torch import fx

from overlapc.graphs.attention.finding import find_sites
from overlapc.graphs.attention.site import Site
from overlapc.graphs.bodies import nodes_in_order


def sites_in_order(graph: fx.Graph) -> list[tuple[fx.Node, Site]]:
    """Return the sites of a graph and of the bodies that it calls, by their nodes.

    They are in the order of the calls, so that they are counted alike whether or not a part of the
    program stands in an activation checkpoint. A body that is called twice counts once.
    """
    nodes = list(nodes_in_order(graph))
    graphs = dict.fromkeys(node.graph for node in nodes)
    found = {node: site for own in graphs for node, site in find_sites(own)}
    return [(node, found[node]) for node in nodes if node in found]
