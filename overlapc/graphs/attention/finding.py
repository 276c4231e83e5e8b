"""The softmax attentions of a graph, spelled out or as one call."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import fx

from overlapc.graphs.attention.fused import read_fused
from overlapc.graphs.attention.matching import match
from overlapc.graphs.attention.modules import CLOSED, MODULE
from overlapc.graphs.attention.site import Site
from overlapc.graphs.attention.softmaxes import read_softmax
from overlapc.graphs.attention.spelling import Call, read_call
from overlapc.graphs.attention.versions import Versions
from overlapc.graphs.attention.weights import weighs_values
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.faults import fault_at

log = logging.getLogger(__name__)

ROOTS = ("softmax", "exp", "exp2", "scaled_dot_product_attention", MODULE, *CLOSED)
"""Calls that an attention has exactly one of."""


def has_attention(graph: fx.Graph) -> bool:
    """Return whether a graph has a site; quick where it has no call of ``ROOTS``."""
    try:
        calls = (read_call(node) for node in graph.nodes)
        has_root = any(call is not None and call.name in ROOTS for call in calls)
        return has_root and next(find_sites(graph), None) is not None
    except Exception:  # the program is compiled without us
        log.exception("a fault of overlapc: attention is not looked for in a graph")
        return False


def find_sites(graph: fx.Graph) -> Iterator[tuple[fx.Node, Site]]:
    """Yield every softmax attention of a graph, by its softmax or its one call."""
    versions = Versions(graph)
    for node, call in list(versions.calls.items()):
        try:
            found = _read_site(versions, call)
        except Exception as error:  # nothing is changed: the program is compiled without us
            found = fault_at(node, error)
        if found is not None:
            yield node, found


def _read_site(versions: Versions, call: Call) -> Site | None:
    softmax = read_softmax(versions, call)
    if softmax is not None and weighs_values(versions, softmax):
        return match(versions, softmax)
    if call.name == "scaled_dot_product_attention":
        return read_fused(versions, call)
    if call.name == MODULE and call.node.users:
        reason = "nn.MultiheadAttention is one call here, and is read as what it calls."
        return Refusal(call.node, "multi_head_module", reason)
    if call.name in CLOSED:
        reason = f"{call.name} is a kernel of torch's for more than the attention."
        return Refusal(call.node, "multi_head_module", reason)
    return None
